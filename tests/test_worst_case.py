"""The worst-case gradients, fed to the real optimizers and flows: they attain the bounds, and nothing exceeds them."""

import re

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import adamflow as af

# EQUATIONS.md's table, in B₊ and B₋; then B₀ of the discrete optimizer, B₀ of [GT], both sides of it, equal decays.
BETAS, GAMMAS = jnp.array(
    [
        *[(0.999, 0.9), (0.95, 0.9), (0.95, 0.99), (0.9, 0.99), (0.999, 0.5), (0.5, 0.9)],
        *[(0.81, 0.9), (0.25, 0.5), (1 / 3, 0.5), (0.96192, 2 * 0.96192 / 1.96192), (0.3, 0.5), (0.9, 0.9)],
    ]
).T
STEPS, COORDINATES = 30, 4
decays = st.tuples(st.floats(0.01, 0.9999), st.floats(0.01, 0.9999))


def linear(params, gradient):
    return jnp.sum(gradient * params)


def row_of(table, n):
    return table[n]


def direction_of(snapshot):
    return snapshot.direction


def directions(optimizer, gradients, save_at=None):
    """The updates of the discrete optimizer, fed with these gradients, from iteration 0 to the last of them."""
    run = af.iterate(
        optimizer,
        linear,
        jnp.ones(gradients.shape[1:]),
        max(1, len(gradients) - 1),
        save_at=save_at,
        batches=eqx.Partial(row_of, jnp.asarray(gradients)),
        observe=direction_of,
    )
    return run.observed


every_direction = eqx.filter_jit(directions)


def adam(beta, gamma, **options):
    # Updates of 1e150 shall not make the run diverge.
    return af.adam(1e-200, beta=beta, gamma=gamma, **options)


@eqx.filter_jit
def flow_directions(rate, bias_correction, beta, gamma, signal, end, jumps=None):
    """The directions at the time `end` of flows, each integrated with its signal as the gradient."""

    def direction(beta, gamma, signal):
        flow = af.GouldTanakaFlow(adam(beta=beta, gamma=gamma, bias_correction=bias_correction), rate=rate)
        params = jnp.ones(jnp.shape(signal.start))
        start = flow.initial_state(lambda p: linear(p, signal.start), params)
        term = diffrax.ODETerm(lambda t, y, args: flow.vector_field(t, y, lambda p: linear(p, signal(t))))
        # Only relative errors count: the second moment may be 1e-130.
        controller = diffrax.PIDController(rtol=1e-9, atol=1e-290)
        if jumps is not None:
            controller = diffrax.ClipStepSizeController(controller, jump_ts=jumps)
        solution = diffrax.diffeqsolve(
            term, diffrax.Tsit5(), 0.0, end, 1e-3, start, stepsize_controller=controller, max_steps=100_000
        )
        state = jax.tree.map(lambda leaf: leaf[-1], solution.ys)
        return flow.snapshot(end, state, lambda p: linear(p, signal(end))).direction

    return jax.vmap(direction)(beta, gamma, signal)


@pytest.mark.parametrize(("end", "bias_correction"), [(0, True), (100, True), (100, False)])
def test_formula_discrete_optimizer_attains_its_bound_in_every_coordinate(end, bias_correction):
    """Under vmap over (β, γ), with coordinates of both signs, of other sizes, and without gradient."""
    factors = jnp.array([1.0, -1e-3, 0.0])

    def attained(beta, gamma):
        gradients = af.analysis.worst_case_gradients(end + 1, beta=beta, gamma=gamma)
        return directions(
            adam(beta=beta, gamma=gamma, bias_correction=bias_correction), gradients[:, None] * factors, [end]
        )[0]

    betas, gammas = jnp.append(BETAS, 0.9), jnp.append(GAMMAS, 0.0)
    bounds = af.analysis.update_bound(end, beta=betas, gamma=gammas, kind="discrete", bias_correction=bias_correction)
    found = jax.jit(jax.vmap(attained))(betas, gammas)
    np.testing.assert_allclose(found, bounds[:, None] * np.sign(factors), rtol=1e-12)


@pytest.mark.parametrize("kind", ["gould_tanaka", "flow", "discrete"])
def test_formula_bound_without_bias_correction(kind):
    n = np.array([0, 1, 100, 10_000])
    beta, gamma = np.asarray(BETAS)[:, None], np.asarray(GAMMAS)[:, None]
    plain = af.analysis.log_update_bound(n, beta=beta, gamma=gamma, kind=kind, bias_correction=False)
    bias = np.log1p(-(beta ** (n + 1))) / 2 - np.log1p(-(gamma ** (n + 1)))
    np.testing.assert_allclose(
        plain + bias, af.analysis.log_update_bound(n, beta=beta, gamma=gamma, kind=kind), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(("rate", "bias_correction"), [("exact", True), ("gould_tanaka", False)])
def test_formula_flow_attains_its_bound_and_not_if_the_first_gradient_continues_the_signal(rate, bias_correction):
    signals = af.analysis.worst_case_gradients(101, beta=BETAS, gamma=GAMMAS, kind="flow", rate=rate)
    run = eqx.Partial(flow_directions, rate, bias_correction, BETAS, GAMMAS)
    bounds = af.analysis.update_bound(
        100, beta=BETAS, gamma=GAMMAS, kind="flow", rate=rate, bias_correction=bias_correction
    )
    np.testing.assert_allclose(run(signals, 100.0), bounds, rtol=1e-7)
    continued = eqx.tree_at(lambda signal: signal.start, signals, signals(0.0))
    slow = (GAMMAS == 0.99) & (BETAS == 0.9)
    assert (run(continued, 100.0)[slow] < bounds[slow] * (1 - 1e-5)).all()


@pytest.mark.parametrize("rate", ["exact", "gould_tanaka"])
def test_formula_shape_of_the_signal(rate):
    signal = af.analysis.worst_case_gradients(
        21, beta=np.array([[0.9], [0.95]]), gamma=np.array([0.5, 0.99]), kind="flow", rate=rate
    )
    beta, gamma = np.array([[0.9], [0.95]]), np.array([0.5, 0.99])
    of_beta, of_gamma = ((1 - x) / x if rate == "gould_tanaka" else -np.log(x) for x in (beta, gamma))
    np.testing.assert_allclose(signal.start / signal(0.0), (1 - gamma) / (1 - beta) * of_beta / of_gamma, rtol=1e-12)
    np.testing.assert_allclose(signal(5.0) / signal(3.0), np.exp(2 * (of_gamma - of_beta)), rtol=1e-12)
    largest = jnp.maximum(signal.start, jnp.maximum(signal(0.0), signal(20.0)))
    np.testing.assert_allclose(largest, np.ones((2, 2)), rtol=1e-13)


def test_formula_sequence_is_geometric_with_largest_entry_1():
    gradients = af.analysis.worst_case_gradients(901, beta=np.array([0.5, 0.999]), gamma=np.array([0.9, 0.5]))
    assert gradients.shape == (901, 2)
    assert gradients.max() == gradients[0, 0] == gradients[-1, 1] == 1
    np.testing.assert_allclose(gradients[1:300, 0] / gradients[:299, 0], 0.5 / 0.9, rtol=1e-11)
    np.testing.assert_allclose(gradients[-299:, 1] / gradients[-300:-1, 1], 0.999 / 0.5, rtol=1e-11)
    np.testing.assert_array_equal(af.analysis.worst_case_gradients(3, beta=0.9, gamma=0.0), [0.0, 0.0, 1.0])


def test_identity_jit_and_dtype():
    for kind in ("discrete", "flow"):
        plain = af.analysis.worst_case_gradients(50, beta=0.95, gamma=0.99, kind=kind)
        traced = jax.jit(lambda b, g, kind=kind: af.analysis.worst_case_gradients(50, beta=b, gamma=g, kind=kind))(
            0.95, 0.99
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), traced, plain)
    single = af.analysis.worst_case_gradients(50, beta=jnp.float32(0.95), gamma=0.99)
    assert single.dtype == jnp.float32
    with jax.enable_x64(False):
        assert af.analysis.worst_case_gradients(50, beta=0.95, gamma=0.99).dtype == jnp.float32


signs = st.sampled_from([-1.0, 0.0, 1.0])
rows = st.tuples(
    arrays.arrays(float, (STEPS, COORDINATES), elements=st.floats(-60, 60)),
    arrays.arrays(float, (STEPS, COORDINATES), elements=signs),
).map(lambda parts: parts[1] * 10.0 ** parts[0])


@given(decays, rows)
def test_identity_no_gradients_exceed_the_discrete_bound_at_any_iteration(pair, gradients):
    updates = every_direction(adam(beta=jnp.asarray(pair[0]), gamma=jnp.asarray(pair[1])), gradients)
    bounds = af.analysis.update_bound(np.arange(STEPS), beta=pair[0], gamma=pair[1], kind="discrete")
    assert (abs(updates).max(axis=1) <= bounds * (1 + 1e-12)).all()


@pytest.mark.parametrize(
    ("k", "strategy"), [pytest.param(2, "naive", marks=pytest.mark.slow), (3, "inverse_exponential")]
)
@given(decays, rows)
def test_identity_kadam_keeps_to_the_bound_of_its_last_stage(k, strategy, pair, gradients):
    optimizer = af.kadam(k, 1e-200, beta=jnp.asarray(pair[0]), gamma=jnp.asarray(pair[1]), strategy=strategy)
    last = optimizer.stages[-1]
    updates = every_direction(optimizer, gradients)
    bounds = af.analysis.update_bound(np.arange(STEPS), beta=last.beta, gamma=last.gamma, kind="discrete")
    assert (abs(updates).max(axis=1) <= bounds * (1 + 1e-12)).all()


class Piecewise(eqx.Module):
    """A signal that is constant on each of equal pieces."""

    start: jax.Array
    values: jax.Array
    length: float

    def __call__(self, time):
        return self.values[jnp.clip(jnp.floor(time / self.length).astype(int), 0, len(self.values) - 1)]


@pytest.mark.parametrize("rate", ["exact", pytest.param("gould_tanaka", marks=pytest.mark.slow)])
@given(
    st.tuples(st.floats(0.3, 0.999), st.floats(0.1, 0.999)),
    arrays.arrays(float, (9, COORDINATES), elements=st.floats(-3, 3)),
    arrays.arrays(float, (9, COORDINATES), elements=signs),
)
@settings(max_examples=10)
def test_identity_no_piecewise_signal_exceeds_the_bound_of_the_flow(rate, pair, logarithms, signs):
    values = jnp.asarray(signs * 10**logarithms)
    signal = Piecewise(values[:1], values[None, 1:], jnp.ones(1))
    beta, gamma = (jnp.asarray([decay]) for decay in pair)
    updates = flow_directions(rate, True, beta, gamma, signal, 8.0, jnp.arange(1.0, 8.0))
    assert abs(updates).max() <= af.analysis.update_bound(8.0, beta=pair[0], gamma=pair[1], kind="flow", rate=rate) * (
        1 + 1e-6
    )


@given(decays, st.integers(0, 2**32 - 1))
def test_identity_the_worst_case_is_a_maximum(pair, seed):
    """No derivative of the update by a gradient remains, and any change but a common factor lowers the update."""
    gradients = af.analysis.worst_case_gradients(8, beta=pair[0], gamma=pair[1])
    optimizer = adam(beta=jnp.asarray(pair[0]), gamma=jnp.asarray(pair[1]))
    bound = af.analysis.update_bound(7, beta=pair[0], gamma=pair[1], kind="discrete")
    update, slope = last_update(optimizer, gradients)
    assert float(update) == pytest.approx(bound, rel=1e-12)
    assert (abs(slope * gradients) <= 1e-12 * bound).all()
    noise = np.random.default_rng(seed).uniform(-1, 1, (8,))
    changed, _ = last_update(optimizer, gradients * (1 + 0.3 * noise))
    assert changed < bound


@eqx.filter_jit
def last_update(optimizer, gradients):
    def update(gradients):
        def step(memory, place):
            direction, memory = optimizer.update(*place[:1], memory, place[1])
            return memory, direction

        places = gradients, jnp.arange(len(gradients))
        return jax.lax.scan(step, optimizer.initial_state(gradients[0]), places)[1][-1]

    return jax.value_and_grad(update)(gradients)


class Passing(af.AbstractStage):
    """A stage that hands on its input, doubled."""

    def filters(self):
        return ()

    def direction(self, signal, averages, memory, iteration, ratio):
        return 2 * signal.value


def test_identity_the_last_stage_attains_its_bound_from_its_own_inputs():
    beta, gamma = 0.95, 0.99
    optimizer = af.Optimizer(1e-3, (Passing(), af.AdamStage(beta=beta, gamma=gamma)))
    updates = directions(optimizer, af.analysis.worst_case_gradients(31, beta=beta, gamma=gamma))
    assert float(updates[-1]) == pytest.approx(
        af.analysis.update_bound(30, beta=beta, gamma=gamma, kind="discrete"), rel=1e-12
    )


def test_formula_underflow_costs_nothing_where_the_oldest_gradients_are_smallest():
    """At a span beyond 1e308."""
    end = int(np.ceil(800 / np.log(0.999 / 0.5)))
    updates = directions(
        adam(beta=0.999, gamma=0.5), af.analysis.worst_case_gradients(end + 1, beta=0.999, gamma=0.5), [end]
    )
    assert float(updates[0]) == pytest.approx(
        af.analysis.update_bound(end, beta=0.999, gamma=0.5, kind="discrete"), rel=1e-12
    )


@pytest.mark.parametrize(("beta", "gamma"), [(0.5, 0.7), (0.5, 0.9)])
def test_failure_lengths_at_which_the_second_moment_underflows(beta, gamma):
    """The length that the message names attains the bound; a third more would give an update of 0."""
    with pytest.raises(
        ValueError, match=r"length must be at most \d+ .* in float64, got 9999: .* would underflow"
    ) as error:
        af.analysis.worst_case_gradients(9999, beta=beta, gamma=gamma)
    longest = int(re.search(r"at most (\d+)", str(error.value))[1])
    with pytest.raises(ValueError, match=f"at most {longest} "):
        af.analysis.worst_case_gradients(longest + 1, beta=np.array([beta, 0.9]), gamma=np.array([gamma, 0.5]))
    gradients = af.analysis.worst_case_gradients(longest, beta=beta, gamma=gamma)
    bound = af.analysis.update_bound(longest - 1, beta=beta, gamma=gamma, kind="discrete")
    update, _ = last_update(adam(beta=jnp.asarray(beta), gamma=jnp.asarray(gamma)), gradients)
    assert float(update) == pytest.approx(bound, rel=1e-12)
    traced = jax.jit(lambda b, g: af.analysis.worst_case_gradients(longest * 4 // 3, beta=b, gamma=g))(beta, gamma)
    assert last_update(adam(beta=jnp.asarray(beta), gamma=jnp.asarray(gamma)), traced)[0] == 0


def test_failure_lengths_in_float32_and_of_the_flow():
    lengths = []
    for pair, kind in (
        ((jnp.float32(0.9), jnp.float32(0.99)), "discrete"),
        ((0.9, 0.99), "discrete"),
        ((0.9, 0.99), "flow"),
    ):
        with pytest.raises(ValueError, match="length must be at most") as error:
            af.analysis.worst_case_gradients(10**6, beta=pair[0], gamma=pair[1], kind=kind)
        lengths.append(int(re.search(r"at most (\d+)", str(error.value))[1]))
    assert lengths[0] < lengths[1] / 8
    # The exact rates make the flow's filters forget as the discrete ones do.
    assert lengths[2] == pytest.approx(lengths[1], rel=1e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (0.9, 0.9, 5, "gould_tanaka"),
            "kind='gould_tanaka' has no worst-case .* neglects the first .* use kind='flow' with rate=",
        ),
        ((0.9, 0.0, 5, "flow"), r"gamma must lie in \(0, 1\), got 0.0; kind='flow' is infinite at gamma = 0"),
        ((1.0, 0.9, 5), r"beta must lie in \(0, 1\), got 1.0; .*b2 in optax"),
        ((0.9, 1.0, 5), r"gamma must lie in \[0, 1\), got 1.0; .*b1 in optax"),
        ((0.9, 0.9, 0), "length must be a whole number of at least 1, got 0"),
        ((0.9, 0.9, 5, "tight"), "kind must be one of 'gould_tanaka', 'flow', 'discrete', got 'tight'"),
        ((0.9, 0.9, 5, "flow", "ours"), "rate must be one of 'exact', 'gould_tanaka', got 'ours'"),
    ],
)
def test_failure_says_what_to_do(arguments, message):
    named = dict(zip(("beta", "gamma", "length", "kind", "rate"), arguments, strict=False))
    with pytest.raises(ValueError, match=message):
        af.analysis.worst_case_gradients(**named)
