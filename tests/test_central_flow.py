"""The central flow: closed forms, the stable flow below the edge, several modes, and bad input; gradient descent."""

import re
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamflow as af
from adamflow.flows.central.complementarity import complementary

EULER: Any = {"solver": diffrax.Euler(), "step_size": 0.25}


class Canyon(eqx.Module):
    """−drift · x + Σᵢ (sᵢ + cᵢ · x) yᵢ²/2: walls that grow steeper along x, each at its own pace."""

    drift: jax.Array
    steepness: jax.Array
    pace: jax.Array

    def __call__(self, params):
        x, y = jnp.split(params, [self.drift.size])
        return -jnp.sum(self.drift * x) + jnp.sum((self.steepness + self.pace @ x) * y**2) / 2


def canyon(drift, steepness, pace):
    return Canyon(*(jnp.asarray(part, float) for part in (drift, steepness, pace)))


def look(snapshot):
    return snapshot.params, snapshot.sharpness, snapshot.amplitude, snapshot.loss, snapshot.mean_loss


@pytest.mark.parametrize("momentum", [pytest.param(0.0, marks=pytest.mark.slow), 0.9])
def test_formula_gradient_descent_is_that_of_optax(momentum):
    """η (1 − γ) is optax's learning rate."""
    problem, eta = af.problems.chain(3), 1e-3
    ours = af.iterate(af.sgd(eta, momentum, weight_decay=0.1), problem.loss, problem.params, 20).params
    theirs = optax.chain(optax.trace(momentum), optax.scale(1 - momentum), optax.add_decayed_weights(0.1))
    theirs, params = optax.chain(theirs, optax.scale(-eta)), problem.params
    state = theirs.init(params)
    for _ in range(20):
        updates, state = theirs.update(jax.grad(problem.loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(ours[-1], params, rtol=1e-12)
    assert af.analysis.critical_curvature(af.sgd(eta, momentum)) * eta == pytest.approx(
        af.analysis.adaptive_edge(momentum)
    )


def test_formula_one_mode_at_the_edge():
    """x stays where s + c x = 2/η, held by ½ c σ² = drift; L + ½ σ² s there."""
    eta, s, pace, drift = 0.1, 19.0, 2.0, 3.0
    loss = canyon([drift], [s], [[pace]])
    run = af.solve(af.CentralFlow(af.sgd(eta), modes=1), loss, jnp.array([-0.5, 0.0]), 30, observe=look, **EULER)
    params, sharpness, amplitude, value, mean = (np.asarray(row) for row in run.observed)
    edge, variance = 2 / eta, 2 * drift / pace
    np.testing.assert_allclose(params[-1], [(edge - s) / pace, 0], atol=1e-9)
    np.testing.assert_allclose(sharpness[-1, 0], edge, rtol=1e-9)
    np.testing.assert_allclose(amplitude[-1], np.sqrt(variance), rtol=1e-9)
    np.testing.assert_allclose(mean[-1] - value[-1], variance * edge / 2, rtol=1e-9)
    assert np.all(amplitude[: int((edge - s) / pace / (eta * drift))] == 0)


@pytest.mark.slow
def test_formula_two_modes_at_the_edge_share_the_force():
    """Two walls that meet the edge one after the other along one x: the steeper alone. Along two: each its own."""
    eta, edge = 0.1, 20.0
    loss = canyon([1.0, 0.5], [19.0, 19.5], [[1.0, 0.0], [0.0, 2.0]])
    run = af.solve(af.CentralFlow(af.sgd(eta), modes=2), loss, jnp.zeros(4), 40, observe=look, **EULER)
    params, sharpness, amplitude, *_ = (np.asarray(row) for row in run.observed)
    np.testing.assert_allclose(sharpness[-1], edge, rtol=1e-7)
    np.testing.assert_allclose(params[-1], [1.0, 0.25, 0, 0], atol=1e-6)
    np.testing.assert_allclose(amplitude[-1] ** 2, 2 * 1.0 / 1.0 + 2 * 0.5 / 2.0, rtol=1e-6)


@pytest.mark.slow
def test_identity_modes_that_are_not_at_the_edge_change_nothing():
    loss, runs = canyon([1.0, 0.5], [19.0, 15.0], [[1.0, 0.3], [0.3, 0.1]]), []
    for modes in (1, 2):
        flow = af.CentralFlow(af.sgd(0.1), modes=modes)
        runs.append(af.solve(flow, loss, jnp.zeros(4), 40, observe=look, save_at=[40], **EULER).observed)
    assert runs[0][2] > 0
    assert runs[1][1][0, 1] < 0.95 * runs[1][1][0, 0]
    for place in (0, 2, 3, 4):
        np.testing.assert_allclose(runs[0][place], runs[1][place], rtol=1e-7, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("bias_correction", [True, False])
def test_identity_below_the_edge_it_is_the_papers_flow(bias_correction):
    record = af.rmsprop(1e-3, 0.9, 1e-4, weight_decay=0.1, bias_correction=bias_correction)
    problem = af.problems.chain(3)
    flow, paper = af.CentralFlow(record, modes=1), af.GouldTanakaFlow(record)
    state = flow.initial_state(problem.loss, problem.params)
    for time in (0.0, 2.5):
        change, expected = (model.vector_field(time, state, problem.loss) for model in (flow, paper))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), change, expected)


@pytest.mark.slow
def test_formula_of_rmsprop_at_the_edge():
    """One wall: x' = −η (−d + ½ c Σ)/√ν_x; ν_y' = r ((4/η²) ν_y Σ − ν_y) holds √ν_y η-fold at half the steepness."""
    eta, beta = 0.05, 0.9
    record = af.rmsprop(eta, beta, bias_correction=False)
    loss = canyon([1.0], [1.0], [[0.5]])
    flow = af.CentralFlow(record, modes=1)
    first = flow.initial_state(loss, jnp.array([0.0, 1e-3]))
    x, nu = 0.3, jnp.array([0.8, 6.0e-4])
    state = eqx.tree_at(lambda s: (s.params, s.filters[0]["second_moment"]), first, (jnp.array([x, 0.0]), nu))
    change = flow.vector_field(0.0, state, loss)
    steep, rate = 1 + 0.5 * x, (1 - beta) / beta
    distance = 2 * np.sqrt(nu[1]) / eta - steep
    # Σ, so that the distance 2 √ν_y/η − s falls to 0 at the rate 1/h.
    own = (1 / (eta * np.sqrt(nu[1]))) * -rate * nu[1] - 0.5 * eta / np.sqrt(nu[0])
    by = (1 / (eta * np.sqrt(nu[1]))) * rate * 4 / eta**2 * nu[1] + 0.5 * eta / np.sqrt(nu[0]) * 0.25
    variance = -(distance / 0.25 + own) / by
    assert variance > 0
    np.testing.assert_allclose(change.params, [-eta * (-1 + 0.25 * variance) / np.sqrt(nu[0]), 0], atol=1e-10)
    expected = rate * (np.array([1.0, 4 * nu[1] / eta**2 * variance]) - nu)
    np.testing.assert_allclose(change.filters[0]["second_moment"], expected, rtol=1e-9)


@pytest.mark.slow
def test_identity_the_covariance_solves_the_complementarity_problem(key):
    for seed in range(20):
        keys = jax.random.split(jax.random.fold_in(key, seed), 2)
        root, constant = jax.random.normal(keys[0], (6, 6)), jax.random.normal(keys[1], (6,)) - 1.0
        matrix = root @ root.T
        found = complementary(constant, matrix)

        def square(entries):
            rows, columns = np.triu_indices(3)
            halves = jnp.zeros((3, 3)).at[rows, columns].set(entries / np.where(rows == columns, 2.0, np.sqrt(2.0)))
            return halves + halves.T

        x, image = square(found), square(constant + matrix @ found)
        size = jnp.linalg.norm(constant)
        assert jnp.linalg.eigvalsh(x)[0] > -1e-8
        assert jnp.linalg.eigvalsh(image)[0] > -1e-6 * size
        np.testing.assert_allclose(jnp.sum(x * image) / (jnp.linalg.norm(x) + 1) / size, 0, atol=1e-6)


@pytest.mark.slow
def test_identity_lanczos_and_dense_eigenvectors_give_one_flow(monkeypatch):
    import adamflow.flows.central.flow as central

    problem, fields = af.problems.mlp((4,)).flatten(), []
    flow = af.CentralFlow(af.rmsprop(0.01, 0.99, 1e-3), modes=2, iterations=60)
    state = flow.initial_state(problem.loss, problem.params)
    for limit in (64, 10_000):
        monkeypatch.setattr(central, "_DENSE_LIMIT", limit)
        fields.append(flow.vector_field(0.0, state, problem.loss))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9), *fields)


@pytest.mark.slow
def test_failure_an_edge_that_nothing_holds():
    options = dict(EULER, on_failure="ignore")
    run = af.solve(af.CentralFlow(af.sgd(0.1)), lambda x: jnp.sum(21 * x**2) / 2, jnp.ones(2), 10, **options)
    assert run.outcome.name == "not_finite"


def test_failure_records_without_a_central_flow(unchecked):
    for record in (af.adam(0.1), af.sgd(0.1, 0.9), af.kadam(2, 0.1)):
        words = f"not for '{record.name}'; take af.TwoBranchFlow"
        with pytest.raises(TypeError, match=re.escape(words)):
            af.CentralFlow(record)
    with pytest.raises(ValueError, match="modes must be a whole number of at least 1, got 0"):
        af.CentralFlow(af.sgd(0.1), modes=0)
    with pytest.raises(ValueError, match="iterations must be more than modes, got iterations = 3 and modes = 3"):
        af.CentralFlow(af.sgd(0.1), modes=3, iterations=3)
    with pytest.raises(ValueError, match=re.escape("horizon must lie in (0, inf), got 0.0")):
        af.CentralFlow(af.sgd(0.1), horizon=0.0)


def quadratic(params):
    return (params[0] ** 2 + 3 * params[1] ** 2) / 2


def quartic(params):
    return jnp.sum(params**4) / 4


@pytest.mark.parametrize(
    "record", [af.sgd(0.1), af.rmsprop(0.1, 0.9), af.rmsprop(0.1, 0.9, 1.0)], ids=["sgd", "rmsprop", "epsilon"]
)
@pytest.mark.parametrize("modes", [1, 2])
def test_identity_without_third_derivatives_it_is_the_stable_flow_below_the_edge(record, modes):
    flow, stable = af.CentralFlow(record, modes=modes), af.GouldTanakaFlow(record)

    @eqx.filter_jit
    def fields_and_amplitude(loss, params):
        state = flow.initial_state(loss, params)
        fields = [one.vector_field(0.0, state, loss) for one in (flow, stable)]
        return *fields, flow.snapshot(0.0, state, loss).amplitude

    for loss, params in ((quadratic, jnp.ones(2)), (quadratic, jnp.zeros(2)), (quartic, jnp.zeros(2))):
        field, expected, amplitude = fields_and_amplitude(loss, params)
        for part, wanted in zip(jax.tree.leaves(field), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(part, wanted, rtol=1e-12)
        assert float(amplitude) == 0.0


def test_formula_central_flow_of_a_quadratic_below_the_edge():
    run = af.solve(af.CentralFlow(af.sgd(0.1)), quadratic, jnp.ones(2), 20, save_at=[20], **EULER)
    assert run.outcome.successful
    np.testing.assert_allclose(run.params[-1], [0.975**80, 0.925**80], rtol=1e-10)


def test_failure_a_quadratic_beyond_the_edge_has_no_central_flow():
    flow = af.CentralFlow(af.sgd(0.9))
    assert jnp.isnan(flow.vector_field(0.0, flow.initial_state(quadratic, jnp.ones(2)), quadratic).params).all()
