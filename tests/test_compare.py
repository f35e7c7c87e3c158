"""Comparisons of runs, and measured orders."""

import dataclasses
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
    np.testing.assert_allclose(result.absolute_error, [0, 0.5, 0.5])
    np.testing.assert_allclose(result.absolute_error_by_leaf["b"], [0, 0, 0])
    np.testing.assert_allclose(result.relative_error_by_leaf["a"], [0, 0.1, 0.1])
    np.testing.assert_allclose(result.relative_error, [0, 0.1, 0.5 / np.sqrt(145)])
    assert result.max_relative_error == pytest.approx(0.1)
    assert result.worst_iteration == 1
    largest = af.compare(run(reference, range(3)), run(other, range(3)), norm="maximum")
    np.testing.assert_allclose(largest.absolute_error, [0, 0.5, 0.4])
    np.testing.assert_allclose(largest.relative_error, [0, 0.5 / 4, 0.4 / 12])


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
    assert af.compare(discrete, discrete).max_relative_error == 0.0


def test_identity_distance_moved_counts_from_the_start_of_the_run():
    discrete = af.iterate(ADAM, PROBLEM.loss, PROBLEM.params, 20, save_at=[10, 20])
    other = af.iterate(af.adam(1.1e-3), PROBLEM.loss, PROBLEM.params, 20, save_at=[10, 20])
    distance = np.linalg.norm(discrete.params[0] - PROBLEM.params)
    expected = np.linalg.norm(other.params[0] - discrete.params[0]) / distance
    np.testing.assert_allclose(af.compare(discrete, other).relative_error[0], expected)


@pytest.mark.parametrize("order", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_order_of_the_papers_flows_is_one(order):
    result = af.measure_convergence(
        lambda eta: af.GouldTanakaFlow(af.adamw(eta, weight_decay=0.1), order),
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
    options = dict(max_steps=1, solver=diffrax.Tsit5(), on_failure="ignore")
    failed = af.solve(af.GouldTanakaFlow(ADAM), PROBLEM.loss, PROBLEM.params, 20, **options)
    with pytest.raises(ValueError, match="maximum number of steps reached: max_steps was used up"):
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
    with pytest.raises(TypeError, match=r"compare takes two runs, .* got None"):
        af.compare(discrete, None)  # pyright: ignore
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
        af.measure_convergence(
            lambda eta: af.GouldTanakaFlow(af.adam(eta)), PROBLEM.loss, PROBLEM.params, rates, time=time
        )


def oscillating(iterations, drift, decay):
    """θₙ = a + bn + cn² ± dρⁿ for two leaves."""
    n = np.asarray(iterations, float)
    mean = {"a": np.outer(1 + drift * n - 0.01 * n**2, [1.0, -2.0]), "b": 0.5 * n}
    delta = {"a": np.outer((-1) ** n * decay**n, [0.3, 0.4]), "b": 0.0 * n}
    return *(jax.tree.map(jnp.asarray, part) for part in (mean, delta)), n


def test_formula_the_split_is_exact_up_to_second_differences():
    mean, delta, n = oscillating(range(9), 0.2, 1.1)
    split = af.mean_and_oscillation(run(jax.tree.map(jnp.add, mean, delta), range(9)))
    np.testing.assert_array_equal(split.mean.iterations, n[1:-1])
    # ¼Δ² of the mean is −.005, and of 1.1ⁿ it is ¼ (1.1 − 2 + 1/1.1) of it.
    rest = 1 + (1.1 - 2 + 1 / 1.1) / 4
    expected = mean["a"] + jnp.outer(jnp.full(9, -0.005), jnp.array([1.0, -2.0])) - (rest - 1) * delta["a"]
    np.testing.assert_allclose(split.mean.params["a"], expected[1:-1], rtol=1e-12)
    np.testing.assert_allclose(split.mean.params["b"], mean["b"][1:-1], rtol=1e-12)
    oscillation = -rest * delta["a"] + jnp.outer(jnp.full(9, -0.005), jnp.array([1.0, -2.0]))
    np.testing.assert_allclose(split.oscillation["a"], oscillation[1:-1], rtol=1e-10)
    np.testing.assert_allclose(split.amplitude, np.linalg.norm(oscillation[1:-1], axis=1), rtol=1e-10)


def test_identity_what_is_infinite_is_split_without_a_warning():
    mean, _, _ = oscillating(range(4), 0.2, 1.1)
    whole = dataclasses.replace(run(mean, range(4)), observed=jnp.array([1.0, np.inf, np.inf, 2.0]))
    split = af.mean_and_oscillation(whole)
    np.testing.assert_array_equal(split.mean.observed, [np.inf, np.inf])
    assert np.isnan(split.observed_oscillation).all()


def test_identity_the_mean_of_what_was_observed_and_of_iterates_saved_in_threes():
    wanted = np.array([5, 12])
    save_at = np.unique(np.add.outer(wanted, [-1, 0, 1]))
    every = af.iterate(ADAM, PROBLEM.loss, PROBLEM.params, 20, observe=lambda s: (s.loss, s.params))
    some = af.iterate(ADAM, PROBLEM.loss, PROBLEM.params, 20, save_at=save_at, observe=lambda s: (s.loss, s.params))
    whole, parts = af.mean_and_oscillation(every), af.mean_and_oscillation(some)
    np.testing.assert_array_equal(parts.mean.iterations, wanted)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[wanted - 1], b, rtol=1e-14), whole.mean.observed, parts.mean.observed
    )
    losses = every.observed[0]
    np.testing.assert_allclose(parts.mean.observed[0][0], (losses[4] + 2 * losses[5] + losses[6]) / 4, rtol=1e-14)
    with pytest.raises(ValueError, match="the run holds no parameters, so their amplitude is unknown"):
        _ = parts.amplitude


def test_formula_comparison_with_the_mean_of_an_oscillation():
    mean, delta, _ = oscillating(range(9), 0.2, 1.0)
    iterates = run(jax.tree.map(jnp.add, mean, delta), range(9), "iterates")
    shifted = jax.tree.map(lambda leaf: leaf + 0.05, mean)
    whole = af.compare(iterates, run(shifted, range(9), "flow"), average="period 2")
    np.testing.assert_array_equal(whole.iterations, np.arange(1, 8))
    assert whole.names == ("mean of iterates", "flow")
    # ¼Δ² of the mean of the first leaf is −.005 and .01.
    np.testing.assert_allclose(
        whole.absolute_error, np.sqrt((0.05 + 0.005) ** 2 + (0.05 - 0.01) ** 2 + 0.05**2), rtol=1e-9
    )
    some = af.compare(iterates, run(jax.tree.map(lambda leaf: leaf[3:7:3], shifted), [3, 6]), average="period 2")
    for name in ("absolute_error", "path_length", "error_per_path_length"):
        np.testing.assert_allclose(getattr(some, name), getattr(whole, name)[jnp.array([2, 5])], rtol=1e-12)


def test_formula_the_path_is_longer_than_the_distance_moved():
    circle = jnp.stack([jnp.cos(jnp.linspace(0, 2 * jnp.pi, 13)), jnp.sin(jnp.linspace(0, 2 * jnp.pi, 13))], axis=1)
    result = af.compare(run(circle), run(circle + jnp.array([0.0, 0.1])))
    np.testing.assert_allclose(result.path_length, np.arange(13) * 2 * np.sin(np.pi / 12), rtol=1e-12)
    np.testing.assert_allclose(result.error_per_path_length[1:], 0.1 / result.path_length[1:])
    assert af.compare(run(circle), run(circle)).error_per_path_length.max() == 0


def test_failure_means_without_neighbours(unchecked):
    discrete = af.iterate(ADAM, PROBLEM.loss, PROBLEM.params, 20, save_at=[0, 4, 5, 6, 10, 20])
    other = af.iterate(ADAM, PROBLEM.loss, PROBLEM.params, 20, save_at=[5, 10])
    with pytest.raises(ValueError, match="lacks one of them at n = 10; save every iteration of it"):
        af.compare(discrete, other, average="period 2")
    with pytest.raises(ValueError, match="lacks one of them at n = 0; save every"):
        af.compare(discrete, af.iterate(ADAM, PROBLEM.loss, PROBLEM.params, 1, save_at=[0]), average="period 2")
    with pytest.raises(ValueError, match="no iteration of the run 'adam, discrete' was saved together with the one"):
        af.mean_and_oscillation(other)
    with pytest.raises(ValueError, match="average must be one of 'none', 'period 2', got 'period 4'"):
        af.compare(discrete, other, average="period 4")  # pyright: ignore
    rates = jnp.array([1e-3, 2e-3])
    batch = eqx.filter_vmap(lambda eta: af.iterate(af.adam(eta), PROBLEM.loss, PROBLEM.params, 20))(rates)
    with pytest.raises(ValueError, match="is a batch of runs, or is traced by jit or vmap"):
        af.mean_and_oscillation(batch)


@pytest.fixture
def empty():
    """A run that ends before its first saved iteration, as it says in a warning."""
    words = (
        r"'sgd, discrete' did not complete; diverged.* It saved nothing, since it ended before .* of its save_at, 50"
    )
    with pytest.warns(af.IncompleteRunWarning, match=words):
        return af.iterate(af.sgd(1.0), lambda p: jnp.sum(p**4), jnp.array([30.0, 1.0]), 100, save_at=[50, 100])


def test_failure_runs_without_rows(empty):
    assert (empty.outcome.name, len(empty), empty.params.shape) == ("diverged", 0, (0, 2))
    words = r"the run 'sgd, discrete' holds no rows: it ended before .* diverged: after iteration 1 .* `final_state`"
    readers = (
        lambda: af.compare(empty, empty),
        lambda: af.compare(empty, empty, average="period 2"),
        lambda: af.mean_and_oscillation(empty),
        lambda: af.plotting.trajectories(empty, empty),
        lambda: af.analysis.bound_report(empty, af.adam(0.1)),
        lambda: af.analysis.direction_distance(empty, empty, [""]),
    )
    for read in readers:
        with pytest.raises(ValueError, match=words):
            read()


def test_failure_a_run_that_ended_early_beside_one_that_did_not():
    discrete = af.iterate(ADAM, PROBLEM.loss, PROBLEM.params, 20)
    options = dict(solver=diffrax.Tsit5(), max_steps=3, step_size=2.0, on_failure="ignore")
    failed = af.solve(af.GouldTanakaFlow(ADAM), PROBLEM.loss, PROBLEM.params, 20, **options)
    words = r"maximum number of steps reached: .* both have: run the other to iteration 6 with the same save_at="
    assert len(failed) == 7
    with pytest.raises(ValueError, match=words):
        af.compare(discrete, failed)
    shorter = af.iterate(ADAM, PROBLEM.loss, PROBLEM.params, 6)
    assert af.compare(shorter, failed).max_relative_error < 1


@pytest.fixture(scope="module")
def beside_its_mean():
    """Iterates past their edge and the flow of their mean, as functions of the rate: one loss, compiled once."""

    def loss(p):
        return 10.5 * p[0] ** 2 - p[0] ** 4 + p[1] ** 2 / 2

    def runs(rate, save_at):
        record, start = af.sgd(rate), jnp.array([0.3, 1.0])
        discrete = af.iterate(record, loss, start, 60, save_at=save_at)
        flow = af.TwoBranchFlow(record, order=1)
        return discrete, af.solve(flow, loss, start, 60, save_at=save_at, solver=diffrax.Euler(), step_size=0.5)

    return runs


@pytest.mark.parametrize("save_at", [None, [0, 20, 40, 60]], ids=["every", "sparse"])
def test_failure_flow_of_the_mean_beside_iterates_that_oscillate(save_at, beside_its_mean):
    discrete, run = beside_its_mean(0.1, save_at)
    assert run.follows_mean
    with pytest.warns(UserWarning, match=r"follows the mean of an oscillation, .* by average=\"period 2\""):
        af.compare(discrete, run)
    if save_at is None:
        assert af.compare(discrete, run, average="period 2").absolute_error[-1] < 0.1
    # Far below the edge there is none to speak of.
    assert af.compare(*beside_its_mean(0.01, save_at)).max_relative_error < 0.1


@pytest.mark.parametrize(("dtype", "factor"), [(jnp.float32, 1e-25), (jnp.float32, 1e25), (jnp.float64, 1e-250)])
def test_identity_errors_scale_with_the_parameters(dtype, factor):
    """The squares of such parameters underflow or overflow, they themselves do not."""
    reference = {"a": jnp.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]], dtype), "b": jnp.array([0.0, 0.0, 12.0], dtype)}
    other = jax.tree.map(jnp.zeros_like, reference)
    one, scaled = (
        af.compare(*(run(jax.tree.map(lambda leaf, by=by: leaf * by, rows), range(3)) for rows in (reference, other)))
        for by in (1.0, factor)
    )
    np.testing.assert_allclose(one.relative_error, [0, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(scaled.relative_error, one.relative_error, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(scaled.absolute_error, float) / factor, one.absolute_error, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(scaled.path_length, float) / factor, one.path_length, rtol=1e-6)
    np.testing.assert_allclose(scaled.relative_error_by_leaf["b"], one.relative_error_by_leaf["b"], rtol=1e-6)


@pytest.mark.parametrize(("dtype", "factor"), [(jnp.float32, 1e-25), (jnp.float32, 1e25), (jnp.float64, 1e-250)])
def test_identity_amplitudes_scale_with_the_parameters(dtype, factor):
    params = {"a": jnp.array([[1.0, 2.0], [-1.0, -2.0], [1.0, 2.0]], dtype), "b": jnp.array([2.0, -2.0, 2.0], dtype)}
    amplitude = af.mean_and_oscillation(run(jax.tree.map(lambda leaf: leaf * factor, params), range(3))).amplitude
    np.testing.assert_allclose(np.asarray(amplitude, float) / factor, [3.0], rtol=1e-6)
