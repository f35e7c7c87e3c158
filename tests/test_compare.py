"""Comparisons of runs, and measured orders."""

import re

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamflow as af

PROBLEM = af.problems.chain(4)
ADAM = af.adam(1e-3)


def run(values, iterations=None, name="run"):
    """A trajectory made of given parameters."""
    iterations = np.arange(len(values)) if iterations is None else np.asarray(iterations)
    shell = af.iterate(ADAM, PROBLEM.loss, PROBLEM.params, 1)
    rows = jnp.asarray(iterations, float)
    start = jax.tree.map(lambda leaf: leaf[0], values)
    return af.Trajectory(rows, values, None, start, None, shell.outcome, shell.stats, name)


def test_formula_errors_of_made_up_runs():
    reference = {"a": jnp.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]]), "b": jnp.array([0.0, 0.0, 12.0])}
    other = {"a": jnp.array([[0.0, 0.0], [3.0, 3.5], [0.3, 1.4]]), "b": jnp.array([0.0, 0.0, 12.0])}
    result = af.compare(run(reference, range(3), "reference"), run(other, range(3), "other"))
    np.testing.assert_allclose(result.absolute, [0, 0.5, 0.5])
    np.testing.assert_allclose(result.absolute_by_leaf["b"], [0, 0, 0])
    np.testing.assert_allclose(result.relative_by_leaf["a"], [0, 0.1, 0.1])
    np.testing.assert_allclose(result.relative, [0, 0.1, 0.5 / np.sqrt(145)])
    assert result.maximum == pytest.approx(0.1)
    assert result.worst_iteration == 1
    largest = af.compare(run(reference, range(3)), run(other, range(3)), norm="maximum")
    np.testing.assert_allclose(largest.absolute, [0, 0.5, 0.4])
    np.testing.assert_allclose(largest.relative, [0, 0.5 / 4, 0.4 / 12])


def test_formula_report_in_words():
    reference = {"a": jnp.array([[0.0], [2.0]]), "b": jnp.array([0.0, 1.0])}
    other = {"a": jnp.array([[0.0], [2.5]]), "b": jnp.array([0.0, 1.0])}
    text = str(af.compare(run(reference, name="adam, discrete"), run(other, name="adam, flow")))
    assert text.splitlines()[0] == "adam, flow against adam, discrete, 2 iterations up to 1, euclidean norm"
    assert re.search(r"\['a'\] +5\.000e-01 +2\.500e-01 +1 +2\.500e-01", text)
    assert re.search(r"\['b'\] +0\.000e\+00 +0\.000e\+00", text)
    assert "all parameters" in text


def test_identity_a_run_is_at_no_distance_from_itself():
    discrete = af.iterate(ADAM, PROBLEM.loss, PROBLEM.params, 20)
    assert af.compare(discrete, discrete).maximum == 0.0


def test_identity_distance_moved_counts_from_the_start_of_the_run():
    discrete = af.iterate(ADAM, PROBLEM.loss, PROBLEM.params, 20, save_at=[10, 20])
    other = af.iterate(af.adam(1.1e-3), PROBLEM.loss, PROBLEM.params, 20, save_at=[10, 20])
    distance = np.linalg.norm(discrete.params[0] - PROBLEM.params)
    expected = np.linalg.norm(other.params[0] - discrete.params[0]) / distance
    np.testing.assert_allclose(af.compare(discrete, other).relative[0], expected)


@pytest.mark.parametrize("order", [1, 2])
def test_order_of_the_papers_flows_is_one(order):
    result = af.convergence(
        lambda eta: af.PaperFlow(af.adamw(eta, weight_decay=0.1), order),
        PROBLEM.loss,
        PROBLEM.params,
        [8e-3, 4e-3, 2e-3, 1e-3],
        time=0.4,
        solver=diffrax.Tsit5(),
    )
    assert 0.8 < result.order < 1.2
    assert len(result.local_orders) == 3
    assert f"fitted order {result.order:.2f}" in str(result)


def test_failure_runs_that_do_not_fit(unchecked):
    discrete = af.iterate(ADAM, PROBLEM.loss, PROBLEM.params, 20)
    sparse = af.iterate(ADAM, PROBLEM.loss, PROBLEM.params, 20, save_at=[0, 20])
    with pytest.raises(ValueError, match=r"saved at different iterations .*give both the same save_at="):
        af.compare(discrete, sparse)
    failed = af.solve(af.PaperFlow(ADAM), PROBLEM.loss, PROBLEM.params, 20, max_steps=1, solver=diffrax.Tsit5())
    with pytest.raises(ValueError, match="step limit: max_steps was used up"):
        af.compare(discrete, failed)
    other = af.iterate(ADAM, af.problems.chain(5).loss, af.problems.chain(5).params, 20)
    with pytest.raises(ValueError, match="hold different parameters"):
        af.compare(discrete, other)
    blind = af.iterate(ADAM, PROBLEM.loss, PROBLEM.params, 20, observe=lambda s: s.loss)
    with pytest.raises(ValueError, match="holds no parameters, since it had an observe= function"):
        af.compare(discrete, blind)
    rates = jnp.array([1e-3, 2e-3])
    batch = eqx.filter_vmap(lambda eta: af.iterate(af.adam(eta), PROBLEM.loss, PROBLEM.params, 20))(rates)
    with pytest.raises(ValueError, match="is a batch of runs; compare lane by lane"):
        af.compare(batch, batch)
    with pytest.raises(ValueError, match="norm must be one of 'euclidean', 'maximum', got 'l3'"):
        af.compare(discrete, discrete, norm="l3")  # pyright: ignore


@pytest.mark.parametrize(
    ("rates", "time", "words"),
    [
        ([1e-3], 0.1, "the number of learning rates must be a whole number of at least 2, got 1"),
        ([3e-3, 1e-3], 0.1, "time=0.1 is no whole number of iterations at learning rate 0.003"),
        ([0.0, 1e-3], 0.1, "learning_rates must lie in (0, inf), got 0.0"),
    ],
)
def test_failure_convergence_says_what_is_wrong(rates, time, words, unchecked):
    with pytest.raises(ValueError, match=re.escape(words)):
        af.convergence(lambda eta: af.PaperFlow(af.adam(eta)), PROBLEM.loss, PROBLEM.params, rates, time=time)
