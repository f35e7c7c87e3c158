"""The flow past the edge: linear steps, cycles of period 2, its order, the flow without oscillation, and bad input."""

import re
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamflow as af
from adamflow.optimizers import AdaBeliefStage, AdaFomStage, AdanStage, AMSGradStage, GradientStage
from tests.stages import CountingStage

EXPLICIT = diffrax.Dopri8()


def descent(eta):
    return af.Optimizer(eta, (GradientStage(),))


class Polynomial(eqx.Module):
    """Σ c θ²/2 + d θ³/3 − q θ⁴/4."""

    curvatures: jax.Array
    cubic: jax.Array
    quartic: jax.Array

    def __call__(self, params):
        return jnp.sum(self.curvatures * params**2 / 2 + self.cubic * params**3 / 3 - self.quartic * params**4 / 4)


def polynomial(curvatures, cubic=0.0, quartic=0.0):
    return Polynomial(*map(jnp.asarray, (curvatures, cubic, quartic)))


SMOOTH, START = polynomial(jnp.array([0.5, 1.0, 3.0]), quartic=-1.0), jnp.array([1.0, -1.2, 1.4])


def with_oscillation(state, params):
    """The state with a δ of its parameters of size 1."""
    return eqx.tree_at(lambda s: (s.scaled_oscillation.params, s.log_scale), state, (params, jnp.zeros(())))


def rate_of_oscillation(state, change):
    return jax.tree.map(
        lambda d, shape: d + change.log_scale * shape, change.scaled_oscillation, state.scaled_oscillation
    )


@pytest.mark.parametrize("order", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_formula_of_a_linear_step_is_the_series_and_the_logarithm_where_it_grows(order):
    """θ⁺ = (1 − ηs) θ: δ has the multiplier ηs − 1."""
    eta, theta, delta = 0.1, 0.7, 0.3
    for s in (3.0, 19.0, 21.0, 45.0):
        loss, flow = polynomial(s), af.TwoBranchFlow(descent(eta), order=order, seed_rate=0.0)
        state = with_oscillation(flow.initial_state(loss, jnp.asarray(theta)), jnp.asarray(delta))
        change = flow.vector_field(0.0, state, loss)
        series = [
            sum((-1) ** (k + 1) / k * (m - 1) ** k for k in range(1, order + 1)) for m in (1 - eta * s, eta * s - 1)
        ]
        growth = np.log(eta * s - 1) if eta * s > 2 else series[1]
        np.testing.assert_allclose(change.mean.params, series[0] * theta, rtol=1e-12)
        np.testing.assert_allclose(rate_of_oscillation(state, change).params, growth * delta, rtol=1e-12)


@pytest.mark.slow
def test_formula_the_source_is_a_share_of_the_parameters():
    """θ̄' = b θ̄ and δ' = a δ + σ θ̄ from δ = σ θ₀: δ = σ θ₀ (e^{an} + (e^{bn} − e^{an})/(b − a))."""
    eta, s, start, share = 0.1, 21.0, 0.7, 1e-15
    a, b = np.log(eta * s - 1), -eta * s - (eta * s) ** 2 / 2
    times = np.arange(0.0, 31, 5)
    options: Any = {"save_at": times, "solver": EXPLICIT, "rtol": 1e-9}
    run = af.solve(
        af.TwoBranchFlow(descent(eta), order=2, seed_rate=share),
        polynomial(s),
        jnp.asarray(start),
        30,
        observe=lambda s: (s.params, s.amplitude),
        **options,
    )
    mean, amplitude = run.observed
    np.testing.assert_allclose(mean, start * np.exp(b * times), atol=1e-9)
    expected = share * start * np.abs(np.exp(a * times) + (np.exp(b * times) - np.exp(a * times)) / (b - a))
    np.testing.assert_allclose(amplitude, expected, rtol=1e-6)


def test_formula_the_start_of_the_oscillation_is_the_eighth_difference_of_the_iterates():
    """The modes of multipliers μ are left by ((1 − μ)/2)⁸: all of one at −1, nothing of a slow one."""
    eta, curvatures, start = 0.1, jnp.array([0.01, 19.0, 20.5]), jnp.array([0.7, -0.4, 1e-3])
    loss, flow = polynomial(curvatures), af.TwoBranchFlow(descent(eta))
    theta, memory = af.iterate(descent(eta), loss, start, 3, save_at=[3]).final_state
    state = flow.initial_state(loss, theta, (3, memory))
    np.testing.assert_allclose(state.oscillation.params, theta * (eta * curvatures / 2) ** 8, atol=1e-14)
    np.testing.assert_allclose(state.mean.params + state.oscillation.params, theta, atol=1e-14)
    np.testing.assert_allclose(jnp.linalg.norm(state.scaled_oscillation.params), jnp.linalg.norm(theta), rtol=1e-12)


def test_identity_a_step_of_the_flow_of_order_one_is_a_step_of_each_branch():
    """x̄⁺ − δ⁺ = F(x̄ + δ) and x̄⁺ + δ⁺ = F(x̄ − δ), where δ does not grow."""
    record, loss = (
        af.adam(0.01, beta=0.95, gamma=0.9, bias_correction=False),
        polynomial(jnp.array([0.5, 3.0]), 0.2, 0.1),
    )
    flow = af.TwoBranchFlow(record, order=1, seed_rate=0.0)
    theta, memory = af.iterate(record, loss, jnp.array([1.0, -1.2]), 7, save_at=[7]).final_state
    state = flow.initial_state(loss, theta, (7, memory))
    state = with_oscillation(state, jnp.array([0.02, -0.01]))
    state = eqx.tree_at(lambda s: s.scaled_oscillation.filters[0]["first_moment"], state, jnp.array([0.03, 0.05]))
    change = eqx.filter_jit(flow.vector_field)(7.0, state, loss)
    mean = jax.tree.map(jnp.add, state.mean, change.mean)
    delta = jax.tree.map(jnp.add, state.scaled_oscillation, rate_of_oscillation(state, change))
    step = eqx.filter_jit(record.step)
    for sign in (1, -1):
        branch = jax.tree.map(lambda m, d, sign=sign: m + sign * d, state.mean, state.scaled_oscillation)
        expected = step(loss, (branch.params, branch.optimizer_state), 7)
        jumped = jax.tree.map(lambda m, d, sign=sign: m - sign * d, mean, delta)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), (jumped.params, jumped.optimizer_state), expected
        )


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, 2])
def test_formula_of_the_cycle_of_gradient_descent_past_its_edge(order):
    """θ⁺ = θ − η(cθ − θ³) has the cycle ±√(c − 2/η), stable for 2 < ηc < 3."""
    eta, c = 0.1, 22.0
    loss, amplitude = polynomial(c, quartic=1.0), np.sqrt(c - 2 / eta)
    flow = af.TwoBranchFlow(descent(eta), order=order)
    options: Any = {"save_at": [200], "solver": EXPLICIT, "rtol": 1e-8}
    run = af.solve(
        flow, loss, jnp.asarray(0.1), 200, observe=lambda s: (s.params, s.amplitude, s.loss, s.mean_loss), **options
    )
    mean, size, at_mean, mean_loss = (float(row[0]) for row in run.observed)
    np.testing.assert_allclose(size, amplitude, rtol=1e-7)
    np.testing.assert_allclose([mean, at_mean], 0, atol=1e-7)
    np.testing.assert_allclose(mean_loss, loss(jnp.asarray(amplitude)), rtol=1e-7)


@pytest.mark.slow
def test_identity_branches_are_the_two_points_of_a_cycle_without_symmetry():
    loss, start = polynomial(22.0, cubic=1.5, quartic=1.0), jnp.asarray(0.1)
    last = af.iterate(descent(0.1), loss, start, 1001, save_at=[1000, 1001]).params
    flow = af.TwoBranchFlow(descent(0.1), order=2)
    options: Any = {"save_at": [300], "solver": EXPLICIT, "rtol": 1e-8, "observe": lambda s: (s.branches, s.params)}
    branches, mean = af.solve(flow, loss, start, 300, **options).observed
    np.testing.assert_allclose(np.sort(np.ravel(branches)), np.sort(last), rtol=1e-6)
    assert abs(float(mean[0])) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, 2])
def test_formula_of_the_cycle_of_rmsprop_in_a_parabola(order):
    """g alternates in sign and √v = |g|: θ = ±η/2, at any curvature."""
    eta, s = 0.01, 3.0

    def look(snapshot):
        return snapshot.params, snapshot.amplitude, snapshot.filters[0]["second_moment"]

    flow = af.TwoBranchFlow(af.rmsprop(eta, 0.9), order=order)
    run = af.solve(flow, polynomial(s), jnp.asarray(0.05), 400, save_at=[400], observe=look, solver=diffrax.Tsit5())
    mean, amplitude, second = (float(np.ravel(row)[0]) for row in run.observed)
    np.testing.assert_allclose(amplitude, eta / 2, rtol=1e-3)
    np.testing.assert_allclose(mean, 0, atol=1e-3 * eta)
    np.testing.assert_allclose(second, (s * eta / 2) ** 2, rtol=2e-3)


class Valley(eqx.Module):
    """f(x) + (2/η + a(x)) y²/2 with f = x²/2 + x⁴/4, a = sin 3x: y has the multiplier −(1 + η a(x)) at any η."""

    eta: jax.Array

    def __call__(self, params):
        x, y = params
        return x**2 / 2 + x**4 / 4 + (2 / self.eta + jnp.sin(3 * x)) * y**2 / 2


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, 2])
def test_order_of_mean_and_oscillation_is_p(order):
    rates, time, start = (0.01, 0.005, 0.0025), 1.0, jnp.array([1.2, 0.8])
    errors = []
    for eta in rates:
        loss, steps = Valley(jnp.asarray(eta)), round(time / eta)
        flow = af.TwoBranchFlow(descent(eta), order=order, seed_rate=0.0)
        state = flow.initial_state(loss, start * jnp.array([1.0, 0.0]))
        state = with_oscillation(state, start * jnp.array([0.0, 1.0]))
        final = integrate(flow, loss, state, steps)
        exact = af.iterate(descent(eta), loss, start, round(time / min(rates))).params[steps]
        errors.append([final.mean.params[0] - exact[0], jnp.abs(final.oscillation.params[1]) - jnp.abs(exact[1])])
    slopes = np.polyfit(np.log(rates), np.log(np.abs(errors)), 1)[0]
    np.testing.assert_allclose(slopes, order, atol=0.2)


@eqx.filter_jit
def integrate(flow, loss, state, steps):
    control = diffrax.PIDController(rtol=1e-10, atol=1e-12)
    args: Any = (0.0, jnp.asarray(steps, float), 0.1, state)
    solution = diffrax.diffeqsolve(flow.term(loss), diffrax.Tsit5(), *args, stepsize_controller=control)
    return jax.tree.map(lambda leaf: leaf[-1], solution.ys)


def test_formula_of_the_force_on_the_mean_of_gradient_descent():
    """θ̄' = −η (∇L + ½ ∇⟨δδᵀ, H⟩), without a rest for a quartic, and δ' = (ηH − 2) δ + O(δ³): those of central flows."""
    eta, theta, direction = 0.1, np.asarray(START), np.array([0.6, -0.3, 0.4])
    flow = af.TwoBranchFlow(descent(eta), order=1, seed_rate=0.0)
    curvatures = np.asarray(SMOOTH.curvatures)
    gradient, hessian, third = curvatures * theta + theta**3, curvatures + 3 * theta**2, 6 * theta
    rests, sizes = [], (0.1, 0.05)
    for size in sizes:
        delta = size * direction
        state = with_oscillation(flow.initial_state(SMOOTH, START), jnp.asarray(delta))
        change = flow.vector_field(0.0, state, SMOOTH)
        np.testing.assert_allclose(change.mean.params, -eta * (gradient + third * delta**2 / 2), rtol=1e-12)
        rests.append(np.abs(rate_of_oscillation(state, change).params - (eta * hessian - 2) * delta))
    np.testing.assert_allclose(rests[0] / rests[1], (sizes[0] / sizes[1]) ** 3, rtol=1e-6)


RECORDS = {
    "adam": af.adam(1e-3, beta=0.99, gamma=0.9),
    "amsgrad": af.Optimizer(1e-3, (AMSGradStage(0.99, 0.9),)),
    "adan": af.Optimizer(1e-3, (AdanStage(0.99, 0.95, 0.9, 0.1),), weight_decay=0.1),
    "adabelief": af.Optimizer(1e-3, (AdaBeliefStage(0.99, 0.9),), epsilon=0.1),
    "adafom": af.Optimizer(1e-3, (AdaFomStage(0.9),)),
    "adabound": af.adabound(1e-3, beta=0.99, final_learning_rate=1e-3, convergence_rate=0.01),
    "2-adam": af.kadam(2, 1e-3, beta=0.99, gamma=0.5),
}


@pytest.mark.parametrize("name", ["adam", *(pytest.param(n, marks=pytest.mark.slow) for n in RECORDS if n != "adam")])
@pytest.mark.parametrize("order", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_identity_without_oscillation_it_is_the_map_flow(name, order):
    flow, single = (
        af.TwoBranchFlow(RECORDS[name], order=order, seed_rate=0.0),
        af.InterpolatingFlow(RECORDS[name], order=order),
    )
    state, other = flow.initial_state(SMOOTH, START), single.initial_state(SMOOTH, START)
    for time in (0.0, 1.0):
        change, expected = flow.vector_field(time, state, SMOOTH), single.vector_field(time, other, SMOOTH)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15), change.mean, expected)
        assert all(not np.any(leaf) for leaf in jax.tree.leaves((change.scaled_oscillation, change.log_scale)))
        state, other = jax.tree.map(jnp.add, state, change), jax.tree.map(jnp.add, other, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDS)
def test_identity_every_record_has_a_flow_beside_its_iterates(name):
    """On a way of about ηN in each coordinate the mean stays within a hundredth of it."""
    options: Any = {"save_at": [1, 10, 50], "rtol": 1e-6, "solver": diffrax.Tsit5()}
    run = af.solve(af.TwoBranchFlow(RECORDS[name], order=2), SMOOTH, START, 50, **options)
    assert run.outcome.name == "completed"
    assert af.compare(af.iterate(RECORDS[name], SMOOTH, START, 50, save_at=[1, 10, 50]), run).max_relative_error < 0.01


@pytest.mark.slow
def test_identity_single_precision_pytrees_and_parameters_that_are_zero():
    params = {"w": jnp.array([1.0, -1.0], jnp.float32), "b": (jnp.float32(0.0),)}

    def loss(p):
        return jnp.sum(p["w"] ** 2)

    options: Any = {"solver": diffrax.Tsit5(), "save_at": [0, 40], "observe": lambda s: (s.params, s.amplitude)}
    run = af.solve(af.TwoBranchFlow(af.adam(1e-2), order=2), loss, params, 40, **options)
    assert run.outcome.name == "completed"
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(run.observed))
    np.testing.assert_array_equal(run.observed[0]["b"][0], 0.0)
    discrete = af.iterate(af.adam(1e-2), loss, params, 40, save_at=[0, 40]).params
    np.testing.assert_allclose(run.observed[0]["w"], discrete["w"], atol=5e-3)


@pytest.mark.slow
def test_identity_how_delta_is_shared_between_shape_and_size_changes_nothing():
    record = af.adam(0.01, beta=0.95, gamma=0.9)
    flow, loss = af.TwoBranchFlow(record, order=1), polynomial(jnp.array([0.5, 3.0]), 0.2, 0.1)
    theta, memory = af.iterate(record, loss, jnp.array([1.0, -1.2]), 7, save_at=[7]).final_state
    state = with_oscillation(flow.initial_state(loss, theta, (7, memory)), jnp.array([0.02, -0.01]))
    other = eqx.tree_at(
        lambda s: (s.scaled_oscillation, s.log_scale),
        state,
        (jax.tree.map(lambda d: 3 * d, state.scaled_oscillation), jnp.log(1 / 3)),
    )
    changes = [flow.vector_field(7.0, each, loss) for each in (state, other)]
    one, three = (rate_of_oscillation(each, change) for each, change in zip((state, other), changes, strict=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b / 3, rtol=1e-9, atol=1e-12), one, three)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), changes[0].mean, changes[1].mean)


@pytest.mark.slow
def test_identity_steps_of_euler_keep_the_shape_as_large_as_the_start_and_delta_at_its_source():
    record = af.adam(1e-3, beta=0.99, gamma=0.9)
    params, memory = af.iterate(record, SMOOTH, START, 20, save_at=[20]).final_state
    options: Any = {"start": (20, memory), "save_at": [320], "solver": diffrax.Euler(), "step_size": 0.5}
    run = af.solve(af.TwoBranchFlow(record, order=1), SMOOTH, params, 320, **options)
    shape, mean = (jnp.linalg.norm(part.params) for part in (run.final_state.scaled_oscillation, run.final_state.mean))
    assert 0.3 < shape / jnp.linalg.norm(params) < 3
    amplitude = jnp.linalg.norm(run.final_state.oscillation.params)
    assert 0.1 < amplitude / mean / jnp.finfo(mean.dtype).eps < 10


@pytest.mark.slow
def test_identity_lanes_of_a_batch_are_single_runs():
    """One past its edge, one not: θ⁺ = θ − η(cθ − θ³) oscillates from ηc = 2 on."""
    loss = polynomial(22.0, quartic=1.0)
    options: Any = {"save_at": [50, 200], "solver": diffrax.Euler(), "step_size": 0.5}

    def run(eta):
        flow = af.TwoBranchFlow(af.sgd(eta, 0.1))
        return af.solve(flow, loss, jnp.asarray(0.1), 200, observe=lambda s: (s.params, s.amplitude), **options)

    rates = jnp.array([0.09, 0.12])
    lanes = jax.vmap(run)(rates)
    assert list(lanes.outcome.name) == ["completed", "completed"]
    for place, eta in enumerate(rates):
        single = run(float(eta))
        jax.tree.map(
            lambda many, one, place=place: np.testing.assert_allclose(many[place], one, rtol=1e-9, atol=1e-12),
            lanes.observed,
            single.observed,
        )
    assert lanes.observed[1][0, -1] < 1e-6 < 1e-2 < lanes.observed[1][1, -1]


@pytest.mark.slow
def test_formula_eulers_method_leaves_a_share_of_the_error_of_order_one():
    """Steps of h leave 1 − h of it."""
    record, time = descent(0.01), 100
    exact = af.iterate(record, SMOOTH, START, time, save_at=[time]).params[0]

    def error(**options):
        flow = af.TwoBranchFlow(record, order=1, seed_rate=0.0)
        return af.solve(flow, SMOOTH, START, time, save_at=[time], **options).params[0] - exact

    whole = error(solver=EXPLICIT, rtol=1e-10)
    for step in (0.5, 0.25):
        np.testing.assert_allclose(error(solver=diffrax.Euler(), step_size=step) / whole, 1 - step, atol=0.02)


def test_identity_nonnegative_filters_are_held_so_on_both_branches():
    """δ_v beyond (1−α)/(1+α) v̄ is taken for that."""
    beta, flow = 0.6, af.TwoBranchFlow(af.rmsprop(1e-3, 0.6), order=2, seed_rate=0.0)
    state = flow.initial_state(SMOOTH, START)
    where = lambda s: s.scaled_oscillation.filters[0]["second_moment"]  # noqa: E731
    second = state.mean.filters[0]["second_moment"]
    changes = [
        flow.vector_field(1.0, eqx.tree_at(where, state, factor * second), SMOOTH)
        for factor in (5.0, (1 - beta) / (1 + beta))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), *changes)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(changes))


def test_failure_linear_stability_of_a_flow_that_is_not_linear():
    record = af.adam(0.1)
    with pytest.raises(TypeError, match="that of TwoBranchFlow has none"):
        af.analysis.linear_stability(record, 1.0, model=af.TwoBranchFlow(record))


@pytest.mark.parametrize("order", [0, 3, 1.5, True, None])
def test_failure_order_that_is_neither_one_nor_two(order: Any, unchecked):
    words = "order must be 1 or 2, got 3" if order == 3 else "order must be a whole number of at least 1, got"
    with pytest.raises(ValueError, match=re.escape(words)):
        af.TwoBranchFlow(af.adam(0.1), order=order)


@pytest.mark.parametrize("rate", [-1e-3, float("inf"), float("nan")])
def test_failure_source_that_is_no_share(rate):
    with pytest.raises(ValueError, match=re.escape("seed_rate must lie in [0, inf), got")):
        af.TwoBranchFlow(af.adam(0.1), seed_rate=rate)


def test_failure_memory_that_cannot_move_continuously():
    with pytest.raises(TypeError, match="CountingStage keeps memory that is not made of floats"):
        af.TwoBranchFlow(af.Optimizer(0.1, (CountingStage(),)))
