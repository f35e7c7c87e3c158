"""Stochastic flows: drift and noise against their equations, weak orders, stationary covariances, and statistics."""

import re

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamflow as af
from adamflow.flows.interpolating import InterpolatingState
from adamflow.optimizers import OptimizerState

# The problem of the weak errors: γ = 1 − 2h, β = 1 − .7h, η = h, noise of deviation .5, on θ²/2 + θ⁴/8.
C1, C2, DEVIATION, START = 2.0, 0.7, 0.5, (1.0, 0.5, 1.5)


def loss(params):
    return params**2 / 2 + params**4 / 8


def record(h, gamma=True):
    return af.adam(h, beta=1 - C2 * h, gamma=1 - C1 * h if gamma else 0.0, bias_correction=False)


def flow_of(h, order, gamma=True, **options):
    noise = af.noise.known_covariance(DEVIATION**2, jnp.zeros(()))
    return af.StochasticFlow(record(h, gamma), noise, order=order, **options)


def state_of(flow, numbers):
    theta, m, v = numbers
    filters = {"first_moment": m, "second_moment": v}
    names = [filter.name for filter in flow.optimizer.stages[0].filters()]
    memory = OptimizerState(({name: filters[name] for name in names},), ({},), (None,))
    return InterpolatingState(theta, memory, ({},))


def numbers_of(state):
    filters = state.filters[0]
    return jnp.stack(
        [state.params, filters.get("first_moment", jnp.zeros_like(state.params)), filters["second_moment"]]
    )


def written_out(h, gamma, numbers):
    """The drift of order 2 per unit of time, at leading order, and the rows of the noise per √h."""
    theta, m, v = numbers
    g, H, s, r = theta + theta**3 / 2, 1 + 1.5 * theta**2, DEVIATION, v**-0.5
    b_v = C2 * (g**2 + s**2 - v)
    if gamma:
        b_m, b_theta = C1 * (g - m), -m * r
        theta_rate = b_theta + h / 2 * (-r * b_m + m * r**3 * b_v / 2)
        m_rate = b_m - h / 2 * C1 * (H * b_theta - b_m)
        noise = [[0.0, C1 * s, C2 * 2 * g * s], [0.0, 0.0, C2 * np.sqrt(2) * s**2]]
    else:
        b_theta, m_rate = -g * r, 0.0
        theta_rate = b_theta + h * C2 * r**3 * g * s**2 + h / 2 * (g * r**3 * b_v / 2) + h / 2 * r * H * b_theta
        noise = [[-s * r, 0.0, C2 * 2 * g * s], [0.0, 0.0, C2 * np.sqrt(2) * s**2]]
    v_rate = b_v - h / 2 * C2 * (2 * g * H * b_theta - b_v)
    return np.array([theta_rate, m_rate, v_rate]), np.array(noise)


@pytest.mark.parametrize("gamma", [True, False])
def test_order_drift_and_noise_approach_those_written_out_by_hand(gamma):
    errors, spreads = [], []
    for h in (1 / 16, 1 / 32, 1 / 64):
        flow = flow_of(h, 2, gamma)
        state = state_of(flow, jnp.array(START))
        rates, noise = written_out(h, gamma, START)
        errors.append(numbers_of(flow.drift(0.0, state, loss)) / h - rates)
        ones = [numbers_of(flow.spread(0.0, state, loss, ((jnp.array([a]),), b))) for a, b in ((1.0, 0.0), (0.0, 1.0))]
        spreads.append(np.stack(ones) / h - noise)
    thetas = np.abs(errors)[:, 0]
    errors, spreads = np.abs(errors).max(axis=1), np.abs(spreads).max(axis=(1, 2))
    assert 1.8 < np.log2(errors[0] / errors[1]) < 2.2
    assert 1.8 < np.log2(errors[1] / errors[2]) < 2.2
    assert spreads[2] < 0.6 * spreads[1] < 0.4 * spreads[0]
    if gamma:
        # The digits of an independent quadrature.
        np.testing.assert_allclose(thetas, [8.5e-3, 2.1e-3, 5.1e-4], rtol=0.02)


@pytest.mark.parametrize(
    ("gamma", "order"),
    [
        (True, 2),
        pytest.param(True, 1, marks=pytest.mark.slow),
        pytest.param(False, 1, marks=pytest.mark.slow),
        pytest.param(False, 2, marks=pytest.mark.slow),
    ],
)
def test_order_weak_error_of_adam_and_rmsprop(gamma, order, key):
    _, m, v = START
    start = {"first_moment": m, "second_moment": v} if gamma else {"second_moment": v}
    found = af.noise.measure_weak_convergence(
        lambda h: flow_of(h, order, gamma),
        loss,
        jnp.array(START[0]),
        [1 / 8, 1 / 16, 1 / 32],
        time=1.0,
        key=key,
        observe=lambda theta, filters: (theta**2, filters[0]["second_moment"], theta),
        filters=(start,),
        paths=20000 if order == 2 else 10000,
    )
    slopes = found.orders
    if order == 2:
        # Those of Adam's θ and θ² are so small that they change their sign on the way; the norm of all three does not.
        assert not gamma or np.isnan(slopes[[0, 2]]).all()
        assert np.all(np.abs(found.differences[-1]) < np.array([0.3, 0.3, 0.6]) * found.learning_rates[-1] ** 2 * 2)
        slopes = found.order
        assert found.errors[-1] > 5 * np.linalg.norm(found.deviations[-1])
    else:
        assert np.all(np.abs(found.differences[-1]) > 5 * found.deviations[-1])
    assert np.all(np.abs(slopes - order) < (0.2 if order == 1 else 0.3)), slopes


def test_formula_weak_errors_of_sgd_on_a_quadratic(key):
    """E θ² after time t from θ₀, by hand: the iterates' variance is geometric, that of the flow exponential."""
    problem, eta, t, start = af.problems.quadratic([2.0]), np.array([0.25, 0.125]), 1.0, 1.5
    noise = af.noise.known_covariance(0.25, problem.params)
    make_flow = lambda h: af.StochasticFlow(af.sgd(h), noise)  # noqa: E731
    found = af.noise.measure_weak_convergence(
        make_flow,
        problem.loss,
        jnp.array([start]),
        list(eta),
        time=t,
        key=key,
        observe=lambda theta, _: theta**2,
        paths=5000,
    )
    factor = (1 - 2 * eta) ** 2
    discrete = factor ** (t / eta) * start**2 + eta**2 * 0.25 * (1 - factor ** (t / eta)) / (1 - factor)
    # One step of Runge and Kutta for the drift, half of the noise on each side.
    decay = np.polyval([1 / 24, 1 / 6, 1 / 2, 1, 1], -2 * eta)
    added = eta**2 * 0.25 * (decay**2 + 1) / 2
    flow = decay ** (2 * t / eta) * start**2 + added * (1 - decay ** (2 * t / eta)) / (1 - decay**2)
    difference = (flow - discrete)[:, None]
    assert np.all(np.abs(found.differences - difference) < 4.5 * found.deviations + 1e-12)
    assert np.all(found.deviations < 0.01 * np.abs(difference))
    assert "fitted order" in str(found)


START_OF_ADAM = ({"first_moment": 0.0, "second_moment": 1e-3},)


def weak(**changes):
    noise = af.noise.known_covariance(0.25, jnp.zeros(1))
    problem = af.problems.quadratic([2.0])
    options = {
        "make_flow": lambda eta: af.StochasticFlow(af.sgd(eta), noise),
        "learning_rates": [0.25, 0.125],
        "time": 1.0,
        "key": jax.random.key(0),
        "observe": lambda theta, _: theta,
        "paths": 200,
    }
    loud = af.noise.known_covariance(1e4, jnp.zeros(1))

    def adam_of(eta, correction=False):
        return af.adam(eta, beta=0.9, gamma=0.8, bias_correction=correction)

    flows = {
        "adam": lambda eta: af.StochasticFlow(adam_of(eta), noise),
        "corrected": lambda eta: af.StochasticFlow(adam_of(eta, True), noise),
        "wild": lambda eta: af.StochasticFlow(adam_of(eta), loud),
        "fixed": lambda eta: af.StochasticFlow(af.sgd(0.1), noise),
        "flow": lambda eta: af.GouldTanakaFlow(adam_of(eta)),
    }
    options |= changes
    options["make_flow"] = flows.get(options["make_flow"], options["make_flow"])
    return af.noise.measure_weak_convergence(loss=problem.loss, params=problem.params, **options)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"paths": 40}, ValueError, "40 paths are too few for 40 regressors; take at least 80"),
        ({"learning_rates": [0.25, 0.3]}, ValueError, "is no whole number of iterations at learning rate 0.3"),
        ({"learning_rates": [0.25, 0.25]}, ValueError, "the number of different learning rates"),
        ({"make_flow": "fixed"}, ValueError, "returned a flow whose learning rate is 0.1; give the optimizer the rate"),
        ({"make_flow": "corrected", "filters": START_OF_ADAM}, ValueError, "corrects its filters for a start at 0"),
        ({"make_flow": "wild", "filters": START_OF_ADAM}, ValueError, "left the finite numbers at learning rate 0.25"),
        ({"make_flow": "flow"}, TypeError, "make_flow must return a StochasticFlow"),
        ({"make_flow": "adam"}, ValueError, "the second moment must start above 0"),
        ({"make_flow": "adam", "filters": ({"first_moment": 0.0},)}, ValueError, "filters must be"),
    ],
)
def test_failure_weak_errors_say_what_they_need(changes, error, words):
    with pytest.raises(error, match=words):
        weak(**changes)


@pytest.mark.parametrize("order", [1, 2])
def test_formula_stationary_variance_of_sgd(order, key):
    # The flow of order 1 has ησ²/(2h); that of order 2 ησ²/(2h + ηh²) with S₂ = S, the iterates ησ²/(2h − ηh²).
    problem = af.problems.quadratic([2.0])
    noise = af.noise.known_covariance(0.25, problem.params)
    flow = af.StochasticFlow(af.sgd(0.1), noise, order=order)
    runs = flow.solve(problem.loss, jnp.zeros(1), 40, key=key, paths=8000, save_at=[40])
    found = runs.second_moment()
    expected = 0.00625 if order == 1 else 0.1 * 0.25 / (2 * 2 + 0.1 * 4)
    assert abs(found.value[0, 0] - expected) < 4 * found.error[0, 0]
    assert found.error[0, 0] < 0.02 * expected


def test_formula_stationary_covariance_of_momentum_through_a_brownian_tree(key):
    # A full covariance, two dimensions, stochastic Runge-Kutta: HC + CH = ηS, with Var m = (1−γ)S/2.
    sigma, curvature = np.array([[1.0, 0.3], [0.3, 0.5]]), np.array([1.0, 2.0])
    problem = af.problems.quadratic(jnp.asarray(curvature))
    noise = af.noise.known_covariance(jnp.asarray(sigma), problem.params)
    flow = af.StochasticFlow(af.sgd(0.1, gamma=0.5), noise)
    assert flow.additive
    runs = flow.solve(
        problem.loss, jnp.zeros(2), 40, key=key, paths=2500, save_at=[40], step_size=0.5, solver=diffrax.ShARK()
    )
    found = runs.covariance()
    expected = 0.1 * sigma / (curvature[:, None] + curvature)
    assert np.abs((found.value[0] - expected) / found.error[0]).max() < 4.5


def test_formula_stationary_variance_of_momentum_is_that_of_the_mean_step(key):
    # At ηh = .4 a seventh below ησ²/(2h), which has θ move by m before its update.
    problem, optimizer = af.problems.quadratic([2.0]), af.sgd(0.2, gamma=0.9)
    noise = af.noise.known_covariance(0.25, problem.params)
    options = {"key": key, "paths": 2000, "save_at": 60 + 5 * np.arange(10), "step_size": 0.5}
    runs = af.StochasticFlow(optimizer, noise).solve(problem.loss, jnp.zeros(1), 105, **options)
    squares = np.square(np.asarray(runs.observed)[..., 0]).mean(axis=1)
    error = squares.std() / np.sqrt(2000)
    forms = [
        af.noise.stationary_covariance(optimizer, [2.0], [0.25], time=time)[0, 0] for time in ("flow", "continuous")
    ]
    assert abs(squares.mean() - forms[0]) < 4 * error
    assert abs(squares.mean() - forms[1]) > 6 * error


def test_formula_diffusive_adam_has_the_stationary_variance_linear_in_the_deviation(key):
    # C = ησ/(2h).
    problem = af.problems.quadratic([1.0])
    variances = []
    for deviation in (1.0, 3.0):
        noise = af.noise.known_covariance(deviation**2, problem.params)
        flow = af.StochasticFlow(af.adam(0.02, beta=0.99, gamma=0.8), noise, scaling="diffusive")
        runs = flow.solve(problem.loss, jnp.zeros(1), 250, key=key, paths=2000, save_at=[250], start=20)
        variance = runs.variance()
        # v has not forgotten the few squares of its start: 8% of its weight remain.
        assert abs(variance.value[0, 0] / (0.02 * deviation / 2) - 1) < 4 * variance.error[0, 0] / 0.01 + 0.05
        variances.append(variance.value[0, 0])
    assert abs(variances[1] / variances[0] - 3) < 0.3


@pytest.mark.parametrize("order", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_identity_without_noise_a_stochastic_flow_is_the_interpolating_flow(order, key):
    problem = af.problems.chain(dimension=4)
    optimizer = af.adamw(1e-2, beta=0.99, weight_decay=0.1)
    noise = af.noise.known_covariance(0.0, problem.params)
    flow = af.StochasticFlow(optimizer, noise, order=order)
    runs = flow.solve(problem.loss, problem.params, 60, key=key, paths=2, save_at=[30, 60], start=10)
    first = af.iterate(optimizer, problem.loss, problem.params, 10)
    other = af.solve(
        af.InterpolatingFlow(optimizer, order=order),
        problem.loss,
        first.final_state[0],
        60,
        save_at=[30, 60],
        start=(10, first.final_state[1]),
        solver=diffrax.Dopri5(),
        rtol=1e-8,
        atol=1e-10,
    )
    np.testing.assert_allclose(runs.observed[0], runs.observed[1])
    distance = np.abs(np.asarray(other.params) - problem.params).max()
    # Order 2 as a Jacobian-vector product and as differences agree to the next order.
    np.testing.assert_allclose(runs.observed[0], other.params, atol=(1e-4 if order == 1 else 1e-3) * distance)


def test_formula_minibatch_noise_follows_the_parameters(key):
    # Linear regression of one example of two: the mean of θ moves as the mean step does, and no noise is left at a fit.
    data = jnp.array([1.0, 3.0])

    def square(params, batch=data):
        return jnp.mean((batch * params - batch) ** 2) / 2

    noise = af.noise.MinibatchNoise(square, data, 1, "diagonal")
    flow = af.StochasticFlow(af.sgd(0.02), noise)
    assert not flow.additive
    runs = flow.solve(square, jnp.asarray(2.0), 30, key=key, paths=2000, save_at=[30])
    mean, second = runs.mean(), af.noise.Ensemble.of(runs.iterations, runs.observed - 1, "x").second_moment()
    # x = θ − 1: dx = −ηhx dn + ηνx dW, with the mean h = 5 and deviation ν = 4 of the curvature.
    assert abs(mean.value[0] - 1 - np.exp(-0.02 * 5 * 30)) < 4 * mean.error[0]
    expected = np.exp((-2 * 0.02 * 5 + 0.02**2 * 16) * 30)
    assert abs(second.value[0] / expected - 1) < 4 * second.error[0] / expected


def test_formula_statistics_of_an_ensemble_and_their_errors():
    values = np.random.default_rng(0).normal(size=(400, 3, 2))
    ensemble = af.noise.Ensemble.of(np.arange(3.0), jnp.asarray(values), "test")
    mean, covariance = ensemble.mean(), ensemble.covariance()
    np.testing.assert_allclose(mean.value, values.mean(axis=0))
    np.testing.assert_allclose(mean.error, values.std(axis=0, ddof=1) / 20)
    np.testing.assert_allclose(covariance.value[1], np.cov(values[:, 1].T, ddof=0))
    np.testing.assert_allclose(covariance.error, 1 / 20, atol=0.04)
    # The error of a median of normal numbers is √(π/2)/√n.
    np.testing.assert_allclose(ensemble.quantile(0.5).error, np.sqrt(np.pi / 2) / 20, rtol=0.7)
    np.testing.assert_allclose(ensemble.quantile(0.5).value, np.median(values, axis=0))


def test_failure_paths_that_leave_the_numbers_are_counted_and_told(key):
    # At h = 1/4 with large noise the second moment of some paths turns negative.
    noise = af.noise.known_covariance(0.8**2, jnp.zeros(1))
    optimizer = af.adam(0.25, beta=0.75, gamma=0.5, bias_correction=False)
    flow = af.StochasticFlow(optimizer, noise)
    quartic = lambda params: jnp.sum(loss(params))  # noqa: E731
    with pytest.warns(UserWarning, match=r"of 300 paths of the stochastic flow of order 1, ballistic left the finite"):
        runs = flow.solve(quartic, jnp.ones(1), 12, key=key, paths=300, start=3)
    assert 0 < int(runs.failed) < 300
    assert np.all(np.isfinite(runs.mean().value))
    assert "of them not finite" in str(runs)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda n: af.StochasticFlow(af.amsgrad(0.1), n), TypeError, "keeps memory that is no moving average, such as"),
        (lambda n: af.StochasticFlow(af.signsgd(0.1), n), TypeError, "takes signs, whose mean under noise"),
        (lambda n: af.StochasticFlow(af.lamb(0.1), n), TypeError, "depends on the gradient's other entries"),
        (lambda n: af.StochasticFlow(af.adam(0.1), 0.5), TypeError, "noise must be a GradientNoise or a Minibatch"),
        (lambda n: af.StochasticFlow(af.adam(0.1), n, order=3), ValueError, "order must be 1 or 2, got 3"),
        (
            lambda n: af.StochasticFlow(
                af.adam(0.1), af.noise.MinibatchNoise(lambda p, x: jnp.mean(x @ p), jnp.ones((4, 2)), 2, "low_rank"), 2
            ),
            ValueError,
            "order 2 differentiates the noise by the parameters, but leading eigenpairs have no derivative",
        ),
        (
            lambda n: af.StochasticFlow(af.adam(0.1), n, order=2, scaling="diffusive"),
            ValueError,
            "scaling='diffusive' has order 1 alone, got order=2: a step's m and v share the noise",
        ),
        (
            lambda n: af.solve(af.StochasticFlow(af.adam(0.1), n), lambda x: jnp.sum(x**2), jnp.ones(2), 20),
            TypeError,
            "for a stochastic one call flow.solve(loss, params, steps, key=..., paths=...), which returns an Ensemble",
        ),
        (
            lambda n: af.StochasticFlow(af.nadam(0.1), n, scaling="diffusive"),
            TypeError,
            "has the equations of Malladi et al. for SGD, RMSprop, Adam and AdamW",
        ),
        (
            lambda n: af.StochasticFlow(af.adam(0.1), n).solve(
                lambda x: jnp.sum(x**2), jnp.ones(2), 20, key=jax.random.key(0), solver=diffrax.ShARK()
            ),
            ValueError,
            "adaptive steps and stochastic Runge-Kutta methods are for additive noise",
        ),
        (
            lambda n: af.StochasticFlow(af.adam(0.1), n).solve(
                lambda x: jnp.sum(x**2), jnp.ones(2), 20, key=jax.random.key(0), save_at=[0, 20]
            ),
            ValueError,
            "save_at must rise within [19, 20]",
        ),
    ],
)
def test_failure_of_what_has_no_stochastic_flow(unchecked, make, error, words):
    with pytest.raises(error, match=re.escape(words)):
        make(af.noise.known_covariance(1.0, jnp.zeros(2)))
