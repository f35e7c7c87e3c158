"""Schedules, clipping and groups: in the discrete step, in optax, in flows, edges, bounds and reports."""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamflow as af
from adamflow.analysis import critical_curvature, sharpness_observer, training_report
from adamflow.optimizers import Optimizer

LAYERS = ((3, 2), (2, 2))


def network(key: jax.Array) -> tuple[Any, Any]:
    """A perceptron of two layers with its data: the loss and its parameters."""
    keys = jax.random.split(key, 5)
    layers = [
        {"w": jax.random.normal(k, shape), "b": 0.1 * jax.random.normal(k, shape[1:])}
        for k, shape in zip(keys, LAYERS, strict=False)
    ]
    inputs, targets = jax.random.normal(keys[3], (20, 3)), jax.random.normal(keys[4], (20, 2))

    def loss(params: Any, noise: Any = 0.0) -> jax.Array:
        hidden = jnp.tanh(inputs @ params[0]["w"] + params[0]["b"])
        output = hidden @ params[1]["w"] + params[1]["b"]
        return jnp.mean((output - targets - noise) ** 2) * 3

    return loss, layers


def is_weight(leaf: Any) -> bool:
    return leaf.ndim > 1


def no_bias_decay(params: Any) -> Any:
    return jax.tree.map(lambda leaf: 0.3 if is_weight(leaf) else 0.0, params)


SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 3e-2, 20, 150, 1e-3)

#: By name: the optimizer, and the chain of optax that it is.
RECIPES: dict[str, tuple[Optimizer, optax.GradientTransformation]] = {
    "all": (
        af.with_clipping(af.adamw(SCHEDULE, epsilon=1e-8, weight_decay=af.by_leaf(no_bias_decay)), 0.7),
        optax.chain(
            optax.clip_by_global_norm(0.7),
            optax.adamw(SCHEDULE, weight_decay=0.3, mask=lambda params: jax.tree.map(is_weight, params)),
        ),
    ),
    "schedule of the decay": (
        af.adamw(1e-2, epsilon=1e-8, weight_decay=optax.linear_schedule(0.5, 0.0, 100)),
        optax.chain(
            optax.scale_by_adam(),
            optax.inject_hyperparams(optax.add_decayed_weights)(weight_decay=optax.linear_schedule(0.5, 0.0, 100)),
            optax.scale_by_learning_rate(1e-2),
        ),
    ),
    "entries, then the norm": (
        af.with_clipping(af.lion(SCHEDULE, weight_decay=0.1), 0.2, value=0.1),
        optax.chain(optax.clip(0.1), optax.clip_by_global_norm(0.2), optax.lion(SCHEDULE, weight_decay=0.1)),
    ),
    "rates by layer": (
        af.adam(af.by_leaf([1.0, {"w": 0.25, "b": 2.0}], times=SCHEDULE), epsilon=1e-8),
        optax.multi_transform(
            {rate: optax.adam(lambda n, rate=rate: rate * SCHEDULE(n)) for rate in (1.0, 0.25, 2.0)},
            [{"w": 1.0, "b": 1.0}, {"w": 0.25, "b": 2.0}],
        ),
    ),
}


def follow(transformation: Any, loss: Any, params: Any, steps: int) -> Any:
    """The parameters by optax, before each of the steps and after the last."""

    def step(carry: Any, n: jax.Array) -> Any:
        params, state = carry
        gradient = jax.grad(loss)(params, jnp.sin(n.astype(float)))
        updates, state = transformation.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), params

    (final, _), rows = jax.lax.scan(step, (params, transformation.init(params)), jnp.arange(steps))
    return jax.tree.map(lambda row, last: jnp.concatenate([row, last[None]]), rows, final)


def assert_close(ours: Any, theirs: Any, tolerance: float) -> None:
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    assert max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs) < tolerance


@pytest.mark.parametrize("name", RECIPES)
def test_formula_is_that_of_optax_step_for_step(name: str, key: jax.Array):
    optimizer, theirs = RECIPES[name]
    loss, params = network(key)
    expected = follow(theirs, loss, params, 200)
    run = af.iterate(optimizer, loss, params, 200, batches=lambda n: jnp.sin(n.astype(float)))
    assert_close(run.params, expected, 1e-12)
    if name == "all":
        assert_close(follow(optimizer.to_optax(), loss, params, 200), expected, 1e-12)
    moved = max(float(jnp.max(jnp.abs(leaf[-1] - leaf[0]))) for leaf in jax.tree.leaves(expected))
    assert moved > 0.1


def test_identity_a_constant_schedule_is_its_number(key: jax.Array):
    loss, params = network(key)
    plain = af.adamw(1e-2, weight_decay=0.1)
    same = af.adamw(lambda n: 1e-2, weight_decay=af.by_leaf([0.1, 0.1]))
    makers = (
        lambda optimizer: af.GouldTanakaFlow(optimizer, order=2),
        lambda optimizer: af.InterpolatingFlow(optimizer),
    )

    @eqx.filter_jit
    def rates(optimizer: Optimizer) -> Any:
        flows = [make(optimizer) for make in makers]
        found = [flow.vector_field(2.5, flow.initial_state(loss, params), loss) for flow in flows]
        return found, optimizer.step(loss, (params, optimizer.initial_state(params)), 3)[0]

    assert_close(rates(plain), rates(same), 1e-13)
    assert plain.at(7) is plain
    assert dataclasses.replace(same.at(7), weight_decay=0.1) == plain
    assert same != plain


class Ramp(eqx.Module):
    """A schedule with its numbers in arrays: η(n) = peak · (½ + ½ sin(n/length)), of scale `length`."""

    peak: jax.Array
    length: jax.Array

    def __call__(self, n: Any) -> Any:
        return self.peak * (0.6 + 0.4 * jnp.sin(n / self.length))


def slowly(rate: float) -> Ramp:
    """A schedule that at a fixed time ηn is the same for all η."""
    return Ramp(jnp.asarray(rate), jnp.asarray(0.4 / rate))


#: By name: the flow, and the order that it keeps under a schedule.
FLOWS = {
    "order 1": (lambda optimizer: af.GouldTanakaFlow(optimizer), 1),
    "modified 2": (lambda optimizer: af.ModifiedFlow(optimizer, order=2), 2),
    "interpolating 2": (lambda optimizer: af.InterpolatingFlow(optimizer, order=2), 2),
}


def run_discrete(optimizer: Optimizer, loss: Any, state: Any, first: Any, last: Any) -> Any:
    return jax.lax.fori_loop(first, last, lambda n, state: optimizer.step(loss, state, n), state)


def run_flow(flow: Any, loss: Any, state: Any, first: Any, last: Any) -> Any:
    """The classic method of Runge and Kutta with a step of one iteration, in which these flows vary little."""

    def step(n: Any, state: Any) -> Any:
        def stage(carry: Any, numbers: jax.Array) -> Any:
            slope, total = carry
            place, weight = numbers
            moved = jax.tree.map(lambda a, b: a + place * b, state, slope)
            slope = flow.vector_field(n + place, moved, loss)
            return (slope, jax.tree.map(lambda a, b: a + weight * b, total, slope)), None

        stages = jnp.array([[0.0, 1 / 6], [0.5, 1 / 3], [0.5, 1 / 3], [1.0, 1 / 6]])
        (_, end), _ = jax.lax.scan(stage, (jax.tree.map(jnp.zeros_like, state), state), stages)
        return end

    return flow.params(jax.lax.fori_loop(first, last, step, state))


@pytest.mark.parametrize("name", FLOWS)
def test_order_of_flows_is_kept_under_a_schedule(name: str):
    make, order = FLOWS[name]
    problem = af.problems.quadratic([1.0, 0.6], start=[3.0, 2.0])

    @eqx.filter_jit
    def error(optimizer: Optimizer, first: Any, last: Any) -> Any:
        """After fast filters have forgotten the start, from `first` on."""
        initial = problem.params, optimizer.initial_state(problem.params)
        params, memory = run_discrete(optimizer, problem.loss, initial, 0, first)
        expected, _ = run_discrete(optimizer, problem.loss, (params, memory), first, last)
        flow = make(optimizer)
        state = flow.initial_state(problem.loss, params, (first, memory))
        return jnp.max(jnp.abs(run_flow(flow, problem.loss, state, first, last) - expected))

    errors = []
    for rate in (0.01, 0.005):
        decay = dataclasses.replace(slowly(rate), peak=jnp.asarray(0.5))
        optimizer = af.adamw(slowly(rate), weight_decay=decay, epsilon=0.1, beta=0.5, gamma=0.3)
        errors.append(float(error(optimizer, jnp.asarray(round(0.6 / rate)), jnp.asarray(round(1.4 / rate)))))
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.2, errors


def test_formula_of_a_vector_field_with_clipping_groups_and_a_schedule(key: jax.Array):
    loss, params = network(key)
    optimizer = af.with_clipping(af.adamw(af.by_leaf([0.5, 2.0], times=SCHEDULE), weight_decay=0.1, epsilon=0.1), 0.3)
    flow = af.GouldTanakaFlow(optimizer)
    state, g = jax.jit(lambda: (flow.initial_state(loss, params), jax.grad(loss)(params)))()
    rates = jax.jit(lambda n: flow.vector_field(n, state, loss))
    for n in (3.5, 60.25):
        rate = rates(n)
        norm = math.sqrt(sum(float(np.sum(np.square(leaf))) for leaf in jax.tree.leaves(g)))
        assert norm > 0.3
        m, v = state.filters[0]["first_moment"], state.filters[0]["second_moment"]
        eta = float(SCHEDULE(n))
        for layer, share in enumerate((0.5, 2.0)):
            for part in ("w", "b"):
                theta, clipped = np.asarray(params[layer][part]), np.asarray(g[layer][part]) * 0.3 / norm
                m_hat = np.asarray(m[layer][part]) / (1 - 0.9 ** (n + 1))
                v_hat = np.asarray(v[layer][part]) / (1 - 0.999 ** (n + 1))
                expected = -eta * share * (0.1 * theta + m_hat / (np.sqrt(v_hat) + 0.1))
                np.testing.assert_allclose(rate.params[layer][part], expected, rtol=1e-12)
                drive = (1 - 0.9) / 0.9 * (clipped - np.asarray(m[layer][part]))
                np.testing.assert_allclose(rate.filters[0]["first_moment"][layer][part], drive, rtol=1e-9, atol=1e-15)


def test_identity_flows_of_order_2_start_with_the_rate_of_their_start(key: jax.Array):
    loss, params = network(key)
    optimizer = af.adam(SCHEDULE, epsilon=0.1)

    @jax.jit
    def found() -> Any:
        memory = optimizer.initial_state(params)
        state = af.GouldTanakaFlow(optimizer, order=2).initial_state(loss, params, (12, memory))
        direction, _ = optimizer.update(jax.grad(loss)(params), memory, 12)
        return state.velocity, jax.tree.map(lambda u: -SCHEDULE(12) * u, direction)

    assert_close(*found(), 1e-9)


def test_identity_two_branches_without_oscillation_are_the_interpolating_flow(key: jax.Array):
    loss, params = network(key)
    optimizer = af.with_clipping(af.adam(SCHEDULE, epsilon=0.1), 0.5)

    @jax.jit
    def found() -> Any:
        one, two = af.InterpolatingFlow(optimizer, order=1), af.TwoBranchFlow(optimizer, seed_rate=0.0)
        state = one.initial_state(loss, params)
        branches = dataclasses.replace(two.initial_state(loss, params), mean=state)
        return one.vector_field(7.0, state, loss).params, two.vector_field(7.0, branches, loss).mean.params

    assert_close(*found(), 1e-9)


def test_formula_of_the_edge_of_each_iteration():
    optimizer = af.adamw(SCHEDULE, weight_decay=optax.linear_schedule(1.0, 0.0, 100))
    iterations = jnp.array([5, 20, 90])
    edges = critical_curvature(optimizer.at(iterations))
    eta, decay = SCHEDULE(iterations), 1 - iterations / 100
    # A schedule of whole iterations, counted in 32 bits, is computed in single precision by optax.
    np.testing.assert_allclose(eta * edges, (2 - eta * decay) * 19, rtol=1e-6)
    clipped = af.with_clipping(optimizer.at(20), 1.0)
    np.testing.assert_allclose(critical_curvature(clipped), edges[1], rtol=1e-12)
    grouped = af.adam({"a": 0.1, "b": 0.4})
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    np.testing.assert_allclose(critical_curvature(grouped.uniform(params)), 38 / 0.4, rtol=1e-10)


def test_formula_of_the_sharpness_with_rates_by_leaf():
    curvatures, rates = jnp.array([2.0, 1.0, 3.0]), jnp.array([0.1, 0.4, 0.2])
    params = {name: jnp.ones(1) for name in "abc"}

    def loss(params: Any) -> jax.Array:
        return sum(c * jnp.sum(params[name] ** 2) / 2 for name, c in zip("abc", curvatures, strict=True))

    values = dict(zip("abc", map(float, rates), strict=True))
    optimizer = af.adam(af.by_leaf(values, times=lambda n: 0.5 + 0.1 * n), beta=0.99)
    observe = sharpness_observer(optimizer, loss)
    run = af.iterate(optimizer, loss, params, 3, observe=lambda s: (observe(s).value, s.filters[0]["second_moment"]))
    n = np.arange(4)
    largest = 0.4 * (0.5 + 0.1 * n)
    second = np.stack([np.asarray(run.observed[1][name])[:, 0] for name in "abc"], axis=1)
    root = np.sqrt(second / (1 - 0.99 ** (n[:, None] + 1)))
    expected = np.max(np.asarray(curvatures) * np.asarray(rates) / 0.4 / root, axis=1)
    np.testing.assert_allclose(run.observed[0], expected, rtol=1e-10)
    report = training_report(loss, run.final_state[0], optimizer, run.final_state[1], 3, tolerance=1e-9)
    np.testing.assert_allclose(report.scaled_sharpness, largest[3] * expected[3], rtol=1e-8)
    np.testing.assert_allclose([report.learning_rate, report.edge], [largest[3], 38], rtol=1e-10)


def test_identity_the_report_clips_as_the_run_does(key: jax.Array):
    loss, params = network(key)
    optimizer = af.with_clipping(af.adamw(SCHEDULE, weight_decay=af.by_leaf(no_bias_decay)), 0.3)
    run = af.iterate(optimizer, loss, params, 30)
    end, state = run.final_state
    report = training_report(loss, end, optimizer, state, 30, cheap=True)
    following = af.iterate(optimizer, loss, params, 31, observe=lambda s: s.direction)
    size = max(float(jnp.max(jnp.abs(leaf[30]))) for leaf in jax.tree.leaves(following.observed))
    np.testing.assert_allclose(report.update_max, size, rtol=1e-12)
    assert report.gradient_norm > 0.3
    with pytest.raises(ValueError, match="learning rate is 0 at iteration 0"):
        training_report(loss, params, optimizer, optimizer.initial_state(params), 0)


def test_identity_the_bound_report_recovers_updates_from_the_rate_of_each_iteration(key: jax.Array):
    loss, params = network(key)
    optimizer = af.with_clipping(af.adamw(SCHEDULE, weight_decay=af.by_leaf(no_bias_decay)), 0.3)
    seen = af.iterate(optimizer, loss, params, 30, observe=af.analysis.largest_update)
    run = af.iterate(optimizer, loss, params, 30)
    found = af.analysis.bound_report(run, optimizer)
    observed = af.analysis.bound_report(seen, optimizer)
    np.testing.assert_allclose(found.largest_update[1:], observed.largest_update[1:30], rtol=2e-6)
    assert int(found.exceeded) == 0
    assert int(observed.exceeded) == 0
    assert af.analysis.direction_bound(optimizer, 20) == af.analysis.direction_bound(af.adam(0.1), 20)


def test_identity_clipping_breaks_the_invariance_to_the_scale_of_the_loss(key: jax.Array):
    loss, params = network(key)

    @eqx.filter_jit
    def end(optimizer: Optimizer, scale: float) -> Any:
        def step(state: Any, n: jax.Array) -> tuple[Any, None]:
            return optimizer.step(lambda p: scale * loss(p), state, n), None

        return jax.lax.scan(step, (params, optimizer.initial_state(params)), jnp.arange(40))[0][0]

    drifts = []
    for optimizer in (af.adam(1e-2), af.with_clipping(af.adam(1e-2), 1.0)):
        ends = [jax.tree.leaves(end(optimizer, jnp.asarray(scale))) for scale in (0.01, 100.0)]
        drifts.append(max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(*ends, strict=True)))
    assert drifts[0] < 1e-10
    assert drifts[1] > 1e-4


def test_identity_runs_are_batched_over_schedules_with_arrays(key: jax.Array):
    loss, params = network(key)
    peaks = jnp.array([0.01, 0.03])

    def run(peak: jax.Array) -> Any:
        optimizer = af.with_clipping(af.adamw(Ramp(peak, jnp.asarray(9.0)), weight_decay=0.1), 0.5)
        return af.iterate(optimizer, loss, params, 20, save_at=[20]).params

    together = jax.vmap(run)(peaks)
    for index, peak in enumerate(peaks):
        assert_close(jax.tree.map(lambda leaf, index=index: leaf[index], together), run(peak), 1e-13)


def test_identity_of_subclasses_is_kept(key: jax.Array):
    class Halved(Optimizer):
        def increment(self, params: Any, direction: Any) -> Any:
            return jax.tree.map(lambda step: step / 2, super().increment(params, direction))

    loss, params = network(key)
    plain = af.adam(SCHEDULE)
    halved = Halved(SCHEDULE, plain.stages)
    expected = af.iterate(af.adam(lambda n: SCHEDULE(n) / 2), loss, params, 30)
    assert_close(af.iterate(halved, loss, params, 30).params, expected.params, 1e-13)


REFUSED: dict[str, tuple[Any, str]] = {
    "a schedule in critical_curvature": (
        lambda: critical_curvature(af.adam(SCHEDULE)),
        r"learning_rate varies with the iteration; take optimizer.at\(iteration\)",
    ),
    "groups in critical_curvature": (
        lambda: critical_curvature(af.adam({"a": 0.1, "b": 1.0})),
        r"learning_rate differs between leaves; take .* optimizer.uniform\(params\)",
    ),
    "clipping in CentralFlow": (
        lambda: af.CentralFlow(af.with_clipping(af.rmsprop(0.1), 1.0)),
        "CentralFlow has equations for numbers alone, but in 'rmsprop' gradients are clipped; take af.TwoBranchFlow",
    ),
    "a schedule in MemorylessFlow": (
        lambda: af.MemorylessFlow(af.adam(SCHEDULE)),
        "MemorylessFlow has equations for numbers alone, but in 'adam' learning_rate varies",
    ),
    "a schedule in collocation": (
        lambda: af.solve(af.GouldTanakaFlow(af.adam(SCHEDULE)), jnp.sum, jnp.ones(2), 5, solver="collocation"),
        'learning_rate varies with the iteration; take solver="auto"',
    ),
    "a schedule in an orbit": (
        lambda: af.analysis.periodic_orbit(af.adam(SCHEDULE), jnp.sum, jnp.ones(2), 2),
        "periodic_orbit has equations for numbers alone",
    ),
    "groups in 2-Adam": (
        lambda: af.analysis.equivalent_two_adam(af.adamw(0.1, weight_decay={"a": 0.1})),
        "weight_decay differs between leaves",
    ),
    "a schedule of schedule-free": (lambda: af.schedule_free(SCHEDULE), "the average of iterates takes the place"),
    "a schedule of adabound": (lambda: af.adabound(SCHEDULE), "learning_rate of adabound must be a number"),
    "a function of the parameters": (
        lambda: af.adamw(0.1, weight_decay=no_bias_decay),
        r"takes trees and returns trees; for a function of the parameters give af.by_leaf\(function\)",
    ),
    "a schedule of vectors": (lambda: af.adam(lambda n: jnp.ones(3) * n), "must return a number for an iteration"),
    "a negative rate": (
        lambda: af.adam(lambda n: 0.1 - n).at(3),
        r"learning_rate must lie in \[0, inf\) at every iteration, but its function returned -2.9.* at iteration 3",
    ),
    "a negative rate of a leaf": (lambda: af.adam({"a": -1.0}), r"learning_rate must lie in \[0, inf\), got -1"),
    "a step without iteration": (
        lambda: af.adam(SCHEDULE).apply(jnp.ones(2), jnp.ones(2)),
        r"learning_rate is a function of the iteration, which is not known here; take optimizer.at\(iteration\)",
    ),
    "other leaves": (
        lambda: af.adam({"a": 1.0}).apply({"b": jnp.ones(2)}, {"b": jnp.ones(2)}),
        "learning_rate must be a number, or a pytree prefix of params",
    ),
    "schedules from parameters": (
        lambda: af.adam(af.by_leaf(lambda p: SCHEDULE)).learning_rates(jnp.ones(2)),
        "must return numbers, got a function among them; give the schedule .* as times=",
    ),
    "no clipping": (lambda: af.with_clipping(af.adam(0.1)), "needs the largest norm, or value="),
    "a negative norm": (lambda: af.with_clipping(af.adam(0.1), -1.0), "clip_norm must lie in"),
    "text": (lambda: af.adam("fast"), "learning_rate must be a real number"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_failure_says_what_to_take(name: str, unchecked: None):
    call, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        call()


def test_failure_of_clipped_gradients_that_vanish_is_none():
    optimizer, zero = af.with_clipping(af.adam(0.1), 1.0, value=0.5), {"a": jnp.zeros(2), "b": jnp.zeros(3)}
    value, slope = jax.jvp(optimizer.clipped, (zero,), (jax.tree.map(jnp.ones_like, zero),))
    assert_close(value, zero, 1e-300)
    assert_close(slope, jax.tree.map(jnp.ones_like, zero), 1e-300)
