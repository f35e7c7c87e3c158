"""Fixed points and cycles against closed forms, and Adam's 2-cycle against the optimizer itself."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import assume, given
from hypothesis import strategies as st

import adamflow as af
from adamflow.analysis import adaptive_edge, periodic_orbit, two_cycle
from adamflow.optimizers import AdaBoundStage, AdaFomStage

ETA = 0.1
#: On both sides of the border of stability.
STABLE = [(0.9, 0.1), (0.999, 0.15), (0.1, 0.3), (0.5, 0.0)]
UNSTABLE = [(0.9, 0.25), (0.999, 0.9), (0.1, 0.4)]


class Bowl(eqx.Module):
    """½ Σ sᵢ (xᵢ − cᵢ)² over a pytree."""

    curvature: dict
    centre: dict

    def __call__(self, params):
        terms = jax.tree.map(lambda s, x, c: jnp.sum(s * (x - c) ** 2) / 2, self.curvature, params, self.centre)
        return sum(jax.tree.leaves(terms))


def bowl(curvature, centre=0.0):
    return Bowl({"x": jnp.asarray(curvature)}, {"x": jnp.asarray(centre)})


def on_cycle(optimizer, amplitude, gamma, curvature):
    """The state on the 2-cycle before the step from +A, for pytrees of amplitudes and curvatures."""
    size = jax.tree.map(lambda s, a: s * a, curvature, amplitude)
    filters = {"second_moment": jax.tree.map(jnp.square, size)}
    if gamma > 0:
        filters["first_moment"] = jax.tree.map(lambda x: -x * (1 - gamma) / (1 + gamma), size)
    state = optimizer.initial_state(amplitude)
    return amplitude, eqx.tree_at(lambda s: s.filters, state, (filters,))


def follow(optimizer, loss, state, steps):
    """The parameters along the optimizer's own steps."""

    def step(state, n):
        params, memory = state
        direction, memory = optimizer.update(jax.grad(loss)(params), memory, n)
        return (optimizer.apply(params, direction), memory), params

    return jax.lax.scan(step, state, jnp.arange(steps))[1]


def by_modulus(values):
    values = np.asarray(values).astype(complex)
    return values[np.lexsort((values.imag, values.real.round(9), np.abs(values).round(9)))]


@pytest.mark.parametrize(
    ("beta", "gamma", "epsilon", "curvature"),
    [(*pair, 0.0, 1.0) for pair in STABLE + UNSTABLE] + [(0.9, 0.5, 0.01, 2.0), (0.9, 0.5, 0.027, 2.0)],
)
def test_formula_two_cycle_of_adam_its_size_multipliers_and_stability(beta, gamma, epsilon, curvature):
    optimizer = af.adam(ETA, beta=beta, gamma=gamma, epsilon=epsilon)
    cycle = two_cycle(ETA, beta=beta, gamma=gamma, epsilon=epsilon, curvature=curvature)
    amplitude = float(cycle.amplitude)
    guess = on_cycle(optimizer, {"x": jnp.asarray(1.02 * amplitude)}, gamma, {"x": curvature})
    orbit = periodic_orbit(optimizer, bowl(curvature), guess, 2)
    assert orbit.converged
    assert orbit.period == 2
    np.testing.assert_allclose(orbit.points[0]["x"], [amplitude, -amplitude], rtol=1e-8)
    squares = np.roots([1, *cycle.half_period_polynomial]) ** 2
    expected = squares if gamma > 0 else squares[np.abs(squares) > 1e-12]
    np.testing.assert_allclose(by_modulus(orbit.multipliers), by_modulus(expected), atol=1e-6)
    assert orbit.stable == cycle.stable
    assert f"cycle of period 2, {'stable' if cycle.stable else 'unstable'}: largest multiplier" in str(orbit)


@pytest.mark.parametrize(("beta", "gamma"), STABLE + UNSTABLE)
def test_identity_the_optimizer_stays_at_stable_cycles_and_leaves_others(beta, gamma):
    optimizer = af.adam(ETA, beta=beta, gamma=gamma, bias_correction=False)
    cycle = two_cycle(ETA, beta=beta, gamma=gamma)
    amplitude = float(cycle.amplitude)
    largest = np.abs(np.roots([1, *cycle.half_period_polynomial])).max()
    steps = int(np.ceil(np.log(30) / abs(np.log(largest))))
    steps += steps % 2
    params, state = on_cycle(optimizer, {"x": jnp.asarray(amplitude)}, gamma, {"x": 1.0})
    path = follow(optimizer, bowl(1.0), ({"x": params["x"] * (1 + 1e-6)}, state), steps + 20)["x"]
    distance = np.abs(path - amplitude * (-1.0) ** np.arange(len(path)))
    # A complex pair turns, so the distance is the largest of the last few.
    assert (distance[-20:].max() < distance[:20].max() / 3) == cycle.stable
    assert (distance[-20:].max() > distance[:20].max() * 3) == (not cycle.stable)


@pytest.mark.parametrize(("beta", "gamma"), [(0.9, 0.1), (0.5, 0.15), (0.999, 0.9)])
def test_identity_a_run_with_bias_correction_ends_on_stable_cycles_only(beta, gamma):
    cycle = two_cycle(ETA, beta=beta, gamma=gamma)
    run = af.iterate(
        af.adam(ETA, beta=beta, gamma=gamma), bowl(1.0), {"x": jnp.asarray(0.03)}, 4000, save_at=[3998, 3999, 4000]
    )
    last = np.abs(run.params["x"])
    assert np.allclose(last, float(cycle.amplitude), rtol=1e-6) == cycle.stable


decays = st.floats(1e-3, 0.999)


@given(decays, decays, st.floats(0, 2), st.floats(0.1, 10))
def test_formula_stability_is_that_of_the_roots_and_birth_is_at_the_adaptive_edge(beta, gamma, ratio, curvature):
    birth = ETA * curvature / adaptive_edge(gamma)
    assume(abs(ratio - 1) > 1e-6)
    cycle = two_cycle(ETA, beta=beta, gamma=gamma, epsilon=ratio * birth, curvature=curvature)
    assert (cycle.amplitude > 0) == (ratio < 1)
    largest = np.abs(np.roots([1, *cycle.half_period_polynomial])).max()
    if ratio < 1 and abs(largest - 1) > 1e-9:
        assert cycle.stable == (largest < 1)
    assert ratio < 1 or not cycle.stable


@given(st.floats(0.172, 0.333))
def test_formula_border_of_stability_at_epsilon_0(gamma):
    border = (1 - 3 * gamma) / (gamma * (3 - gamma))
    assume(1e-6 < border < 1 - 1e-6)
    roots = np.roots([1, *two_cycle(ETA, beta=border, gamma=gamma).half_period_polynomial])
    pair = roots[np.abs(roots.imag) > 1e-9]
    np.testing.assert_allclose(np.abs(pair), [1, 1], atol=1e-9)
    assert two_cycle(ETA, beta=border * (1 - 1e-6), gamma=gamma).stable
    assert not two_cycle(ETA, beta=border * (1 + 1e-6), gamma=gamma).stable


@given(decays, decays)
def test_formula_no_other_2_cycle_at_epsilon_0(beta, gamma):
    """With points 1 and r, x₂ − x₁ = −ηm₁/√v₁ and back need m₁/√v₁ = −m₂/√v₂; r ≠ ±1 that meets the squares fails."""
    for r in np.roots([beta - gamma**2, -2 * gamma * (1 - beta), beta - gamma**2]):
        if r.imag == 0 and abs(abs(r) - 1) > 1e-3:
            r = r.real
            m = np.array([1 + gamma * r, r + gamma]) / (1 + gamma)
            v = np.array([1 + beta * r**2, r**2 + beta]) / (1 + beta)
            u = m / np.sqrt(v)
            np.testing.assert_allclose(u[0] ** 2, u[1] ** 2, rtol=1e-6)
            assert np.prod(u) > 0


def test_identity_two_cycle_numpy_in_float64_and_jax_under_jit_and_vmap():
    betas, gammas = np.array([0.5, 0.9, 0.999]), np.array([0.1, 0.9])
    grid = two_cycle(ETA, beta=betas[:, None], gamma=gammas, epsilon=1e-3)
    assert grid.amplitude.shape == grid.stable.shape == (3, 2)
    assert grid.half_period_polynomial.shape == (3, 2, 3)
    row = jax.vmap(lambda b, g: two_cycle(ETA, beta=b, gamma=g, epsilon=1e-3), (None, 0))
    traced = jax.jit(jax.vmap(row, (0, None)))(jnp.asarray(betas), jnp.asarray(gammas))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), traced, grid)
    assert two_cycle(ETA, beta=jnp.float32(0.9), gamma=0.1).amplitude.dtype == jnp.float32


def test_formula_fixed_point_with_weight_decay_and_epsilon():
    decay, epsilon, beta, gamma, curvature, centre = 0.5, 0.2, 0.9, 0.5, 2.0, 1.0
    optimizer = af.adamw(0.01, beta=beta, gamma=gamma, epsilon=epsilon, weight_decay=decay)
    orbit = periodic_orbit(optimizer, bowl(curvature, centre), {"x": jnp.asarray(0.0)}, 1)

    def rest(x):
        slope = curvature * (x - centre)
        return decay * x + slope / (abs(slope) + epsilon)

    x = scipy.optimize.brentq(rest, 0, centre, xtol=1e-14)
    slope = curvature * (x - centre)
    np.testing.assert_allclose(orbit.points[0]["x"], [x], rtol=1e-10)
    np.testing.assert_allclose(orbit.points[1].filters[0]["second_moment"]["x"], [slope**2], rtol=1e-9)

    def step(state):
        theta, m, v = state
        g = curvature * (theta - centre)
        m, v = gamma * m + (1 - gamma) * g, beta * v + (1 - beta) * g**2
        return jnp.array([theta - 0.01 * (decay * theta + m / (jnp.sqrt(v) + epsilon)), m, v])

    expected = np.linalg.eigvals(jax.jit(jax.jacfwd(step))(jnp.array([x, slope, slope**2])))
    np.testing.assert_allclose(by_modulus(orbit.multipliers), by_modulus(expected), atol=1e-8)
    assert orbit.stable
    assert str(orbit).startswith("fixed point, stable: largest multiplier 0.9")


def test_formula_cycle_in_several_dimensions_of_a_pytree():
    beta, gamma, epsilon = 0.9, 0.1, 1e-3
    optimizer = af.adam(ETA, beta=beta, gamma=gamma, epsilon=epsilon)
    curvature = {"a": jnp.array([1.0, 5.0]), "b": jnp.array(0.5)}
    loss = Bowl(curvature, jax.tree.map(jnp.zeros_like, curvature))
    cycles = jax.tree.map(
        lambda s: two_cycle(ETA, beta=beta, gamma=gamma, epsilon=epsilon, curvature=np.asarray(s)), curvature
    )
    amplitude = {name: jnp.asarray(cycle.amplitude) for name, cycle in cycles.items()}
    guess = on_cycle(optimizer, jax.tree.map(lambda a: 0.98 * a, amplitude), gamma, curvature)
    orbit = periodic_orbit(optimizer, loss, guess, 2)
    assert orbit.stable
    for name, expected in amplitude.items():
        np.testing.assert_allclose(orbit.points[0][name], jnp.stack([expected, -expected]), rtol=1e-9)
    halves = np.concatenate([np.reshape(cycle.half_period_polynomial, (-1, 3)) for cycle in cycles.values()])
    squares = np.concatenate([np.roots([1, *half]) ** 2 for half in halves])
    np.testing.assert_allclose(by_modulus(orbit.multipliers), by_modulus(squares), atol=1e-8)


def test_identity_a_search_for_period_2_that_finds_a_fixed_point_says_so():
    optimizer = af.adam(ETA, beta=0.9, gamma=0.5, epsilon=0.1)
    orbit = periodic_orbit(optimizer, bowl(1.0), {"x": jnp.asarray(0.01)}, 2, settle=20)
    assert (orbit.period, orbit.searched, orbit.stable) == (1, 2, True)
    assert orbit.points[0]["x"].shape == (1,)
    assert str(orbit).startswith("fixed point, found in a search for period 2, stable")


def test_identity_a_long_period_is_reduced_to_the_least_one(caplog):
    """With multipliers of the cycle itself, and without another compilation for each period."""

    class Fresh(Bowl):
        """A loss that no other test has compiled."""

    def search(period):
        caplog.clear()
        with jax.log_compiles():
            orbit = periodic_orbit(optimizer, Fresh({"x": jnp.asarray(1.0)}, {"x": jnp.asarray(0.0)}), guess, period)
        return orbit, any(
            "Finished XLA compilation of jit(_newton)" in record.getMessage() for record in caplog.records
        )

    optimizer = af.adam(ETA, beta=0.9, gamma=0.1)
    amplitude = jnp.asarray(0.99 * two_cycle(ETA, beta=0.9, gamma=0.1).amplitude)
    guess = on_cycle(optimizer, {"x": amplitude}, 0.1, {"x": 1.0})
    short, compiled = search(2)
    assert compiled
    orbit, compiled = search(64)
    assert not compiled
    assert (orbit.period, orbit.searched, orbit.stable) == (2, 64, True)
    assert orbit.points[0]["x"].shape == (2,)
    np.testing.assert_allclose(orbit.points[0]["x"], short.points[0]["x"], rtol=1e-9)
    np.testing.assert_allclose(orbit.multipliers, short.multipliers, atol=1e-6)


@pytest.mark.parametrize("make", [af.adamw, af.signsgd])
def test_failure_fixed_points_without_derivative_have_no_multipliers(make):
    """At ε = 0 the minimum repels however near to it a run starts, although it is a fixed point."""
    optimizer = make(ETA, weight_decay=0.1)
    orbit = periodic_orbit(optimizer, bowl(1.0), {"x": jnp.asarray(0.0)}, 1)
    assert orbit.converged
    assert not orbit.stable
    assert np.isnan(orbit.multipliers).all()
    assert "not differentiable where v = 0; use epsilon > 0" in orbit.reason
    assert str(orbit).startswith(f"fixed point, of unknown stability: {orbit.reason}")
    start = {"x": jnp.asarray(1e-9)}
    path = follow(optimizer, bowl(1.0), (start, optimizer.initial_state(start)), 300)["x"]
    assert abs(path).max() > ETA / 2


def test_identity_a_coordinate_without_gradient_has_a_derivative():
    optimizer = af.adamw(ETA, beta=0.9, gamma=0.5, weight_decay=0.1)
    orbit = periodic_orbit(optimizer, bowl(0.0), {"x": jnp.asarray(0.0)}, 1)
    assert (orbit.stable, orbit.reason) == (True, "")
    np.testing.assert_allclose(orbit.multipliers, [1 - 0.1 * ETA, 0.9, 0.5], rtol=1e-12)


def test_failure_newton_far_from_any_orbit():
    optimizer = af.adam(ETA, beta=0.999, gamma=0.9)
    orbit = periodic_orbit(optimizer, bowl(1.0), {"x": jnp.asarray(3.0)}, 2, settle=5, max_steps=3)
    assert not orbit.converged
    assert not orbit.stable
    assert orbit.residual > 1e-3
    assert np.all(np.isnan(orbit.multipliers))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(orbit.points))
    assert str(orbit).startswith("no orbit of period 2: Newton's method ended with residual")


def test_failure_of_maps_that_depend_on_the_iteration_and_of_guesses():
    start, loss = {"x": jnp.asarray(0.5)}, bowl(1.0)
    for stage, word in ((AdaFomStage(0.9), "a decay"), (AdaBoundStage(0.99, 0.9), "a stage")):
        optimizer = af.Optimizer(ETA, (stage,), epsilon=1e-3, name="moody")
        with pytest.raises(ValueError, match=f"'moody' has {word} that depends on the iteration, .*constant decays"):
            periodic_orbit(optimizer, loss, start, 1)
    optimizer = af.adam(ETA)
    with pytest.raises(ValueError, match=r"the state has 1200 entries, over the 1000 .*jacobian_spectrum"):
        periodic_orbit(optimizer, bowl(jnp.ones(400), jnp.zeros(400)), {"x": jnp.ones(400)}, 1)
    with pytest.raises(ValueError, match="is not finite; give one nearer"):
        periodic_orbit(optimizer, loss, {"x": jnp.asarray(jnp.nan)}, 1)
    with pytest.raises(ValueError, match="period must be a whole number of at least 1, got 0"):
        periodic_orbit(optimizer, loss, start, 0)
    with pytest.raises(ValueError, match="outside of jit and vmap"):
        jax.jit(lambda x: periodic_orbit(optimizer, loss, {"x": x}, 1).residual)(0.5)
    with pytest.raises(ValueError, match=r"curvature must lie in \(0, inf\), got -1.0; at a maximum"):
        two_cycle(ETA, beta=0.9, gamma=0.1, curvature=-1.0)
