"""The preconditioned sharpness against dense eigenvalues, and the adaptive edge against the discrete step's matrix."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import adamflow as af
from adamflow.analysis import Sharpness, adaptive_edge, preconditioned_sharpness, sharpness_observer

INPUTS = np.linspace(-1.0, 1.0, 20).reshape(10, 2)


def network_loss(params):
    hidden = jnp.tanh(INPUTS @ params["inner"] + params["shift"])
    return jnp.mean((hidden @ params["outer"] - jnp.sin(3 * INPUTS[:, 0])) ** 2)


@pytest.fixture(scope="module")
def network():
    """Parameters of a small network, and a preconditioner with entries from .01 to 10."""
    generator = np.random.default_rng(0)
    shapes = {"inner": (2, 4), "outer": (4,), "shift": (4,)}
    params = {name: jnp.asarray(generator.standard_normal(shape)) for name, shape in shapes.items()}
    return params, {name: jnp.asarray(10 ** generator.uniform(-2, 1, shape)) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def hessian(network):
    flat, unravel = ravel_pytree(network[0])
    return np.asarray(jax.jit(jax.hessian(lambda x: network_loss(unravel(x))))(flat))


def precondition(hessian, preconditioner):
    diagonal = np.asarray(ravel_pytree(preconditioner)[0])
    moves = diagonal > 0
    return hessian[np.ix_(moves, moves)] / np.sqrt(np.outer(diagonal[moves], diagonal[moves]))


def quadratic_loss(params, curvature):
    return (curvature * params**2).sum() / 2


def diagonal_loss(curvature):
    return eqx.Partial(quadratic_loss, curvature=jnp.asarray(curvature))


def test_formula_dense_eigenvalue_on_a_network(network, hessian):
    params, preconditioner = network
    values, vectors = np.linalg.eigh(precondition(hessian, preconditioner))
    sharpness = preconditioned_sharpness(network_loss, params, preconditioner)
    assert isinstance(sharpness, Sharpness)
    np.testing.assert_allclose(sharpness.value, values[-1], rtol=1e-12)
    assert sharpness.residual < 1e-10 * values[-1]
    assert sharpness.converged
    words = f"largest eigenvalue {values[-1]:.6g}, residual {sharpness.residual:.1e}: converged; indefinite, lowest "
    assert str(sharpness).startswith(words)
    np.testing.assert_allclose(sharpness.lowest_eigenvalue_bound, values[0], rtol=1e-9)
    assert jax.tree.map(jnp.shape, sharpness.vector) == jax.tree.map(jnp.shape, params)
    assert abs(ravel_pytree(sharpness.vector)[0] @ vectors[:, -1]) == pytest.approx(1, abs=1e-12)


def test_formula_coordinates_without_gradient_are_left_out(network, hessian):
    params, preconditioner = network
    preconditioner = preconditioner | {"inner": preconditioner["inner"].at[0].set(0.0)}
    expected = np.linalg.eigvalsh(precondition(hessian, preconditioner))[-1]
    sharpness = preconditioned_sharpness(network_loss, params, preconditioner)
    np.testing.assert_allclose(sharpness.value, expected, rtol=1e-12)
    np.testing.assert_array_equal(sharpness.vector["inner"][0], 0.0)
    preconditioner = jax.tree.map(jnp.zeros_like, params)
    nothing_moves = preconditioned_sharpness(network_loss, params, preconditioner)
    assert nothing_moves.value == nothing_moves.residual == nothing_moves.lowest_eigenvalue_bound == 0


@given(st.lists(st.sampled_from([-3.0, -1.0, 0.0, 1e-9, 1.0, 2.0]), min_size=7, max_size=7), st.integers(0, 99))
def test_formula_invariant_spaces_end_the_iteration(curvature, seed):
    sharpness = preconditioned_sharpness(diagonal_loss(curvature), jnp.ones(7), jnp.ones(7), seed=seed)
    assert float(sharpness.value) == pytest.approx(max(curvature), abs=1e-10)
    assert sharpness.residual < 1e-9
    assert float(sharpness.lowest_eigenvalue_bound) == pytest.approx(min(curvature), abs=1e-10)


def test_formula_large_repeated_spectrum_in_float32():
    curvature = np.repeat(np.array([1, 2, 3, 1000], np.float32), 250)
    params = jnp.ones(1000, jnp.float32)
    sharpness = preconditioned_sharpness(diagonal_loss(curvature), params, params, iterations=60)
    assert sharpness.value.dtype == jnp.float32
    assert float(sharpness.value) == pytest.approx(1000, rel=1e-5)


def test_formula_negative_definite_and_indefinite():
    params = jnp.ones(7)
    for curvature, expected in ((np.arange(-7.0, 0.0), -1.0), (np.array([-100.0, 1, 2, 3, 4, 5, 6]), 6.0)):
        sharpness = preconditioned_sharpness(diagonal_loss(curvature), params, params)
        assert float(sharpness.value) == pytest.approx(expected, rel=1e-10)
        assert float(sharpness.lowest_eigenvalue_bound) == pytest.approx(curvature[0], rel=1e-10)


@pytest.mark.parametrize("smallest", [1e-20, 1e-36])
def test_formula_preconditioners_whose_squares_underflow_in_float32(smallest):
    params = jnp.ones(2, jnp.float32)
    loss = diagonal_loss(np.ones(2, np.float32))
    sharpness = preconditioned_sharpness(loss, params, jnp.array([smallest, 1], jnp.float32))
    assert float(sharpness.value) == pytest.approx(1 / smallest, rel=1e-6)
    assert sharpness.residual < 1e-6 * sharpness.value
    assert abs(sharpness.lowest_eigenvalue_bound) < 1e-6 * sharpness.value
    assert sharpness.converged
    assert str(sharpness).endswith(": converged")


def test_identity_too_few_iterations_show_in_the_residual_and_lowest_is_an_upper_bound():
    curvature, params = np.linspace(-1.0, 1.0, 60), jnp.ones(60)
    few, many = (
        preconditioned_sharpness(diagonal_loss(curvature), params, params, iterations=iterations)
        for iterations in (2, 60)
    )
    for sharpness in (few, many):
        value, residual = float(sharpness.value), float(sharpness.residual)
        assert np.abs(curvature - value).min() <= residual + 1e-14
        assert sharpness.converged == (residual <= 1e-3 * value) == (sharpness is many)
    assert few.value < 0.95
    assert few.residual > 0.1 * few.value
    assert "not converged, so take more iterations" in str(few)
    assert float(many.value) == pytest.approx(1.0, abs=1e-9)
    assert few.lowest_eigenvalue_bound > many.lowest_eigenvalue_bound == pytest.approx(-1, abs=1e-9)


def test_identity_deterministic_by_seed(network):
    def run(seed):
        return preconditioned_sharpness(network_loss, *network, iterations=2, seed=seed).value

    assert run(3) == run(3) != run(4)


def test_identity_scales_with_the_preconditioner(network):
    params, preconditioner = network
    once = preconditioned_sharpness(network_loss, params, preconditioner)
    scaled = preconditioned_sharpness(
        network_loss, params, jax.tree.map(lambda p: 2 * p, preconditioner), iterations=100
    )
    np.testing.assert_allclose(scaled.value, once.value / 2, rtol=1e-10)


@pytest.mark.slow
def test_identity_jit_vmap_scan_and_cond(network):
    params, preconditioner = network
    factors = jnp.array([1.0, 2.0, 5.0])

    def of_scale(factor):
        return preconditioned_sharpness(network_loss, jax.tree.map(lambda x: factor * x, params), preconditioner)

    expected = [float(of_scale(factor).value) for factor in factors]
    batch = jax.jit(jax.vmap(of_scale))(factors)
    np.testing.assert_allclose(batch.value, expected, rtol=1e-10)
    assert batch.residual.shape == (3,)

    def body(carry, factor):
        return carry, jax.lax.cond(factor > 1, lambda: of_scale(factor).value, lambda: jnp.nan)

    scanned = jax.lax.scan(body, None, factors)[1]
    np.testing.assert_allclose(scanned, [np.nan, *expected[1:]], rtol=1e-10)


def test_formula_derivative_of_the_value(network):
    params, preconditioner = network

    def of_scale(factor):
        return preconditioned_sharpness(network_loss, jax.tree.map(lambda x: factor * x, params), preconditioner).value

    step = 1e-5
    expected = (of_scale(1 + step) - of_scale(1 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(of_scale)(1.0), expected, rtol=1e-6)


def test_identity_observed_along_a_run_is_computed_by_hand(network):
    optimizer, saved, depths = af.adam(0.01, beta=0.9, gamma=0.5, epsilon=1e-3), [0, 20, 40], (2, 32)
    observers = [sharpness_observer(optimizer, network_loss, iterations=depth, seed=3) for depth in depths]

    def look(snapshot):
        return [observe(snapshot) for observe in observers], snapshot

    run = af.iterate(optimizer, network_loss, network[0], 40, save_at=saved, observe=look)
    both, snapshots = run.observed
    for rows, depth in zip(both, depths, strict=True):
        for place, n in enumerate(saved):
            snapshot = jax.tree.map(lambda leaf, place=place: leaf[place], snapshots)
            preconditioner = optimizer.preconditioner(snapshot.filters, n)
            expected = preconditioned_sharpness(network_loss, snapshot.params, preconditioner, iterations=depth, seed=3)
            for name in ("value", "residual", "lowest_eigenvalue_bound"):
                np.testing.assert_allclose(getattr(rows, name)[place], getattr(expected, name), rtol=1e-6, atol=1e-9)
    few, many = both
    assert np.all(many.lowest_eigenvalue_bound < 0)
    # Too few iterations show in the residual.
    np.testing.assert_array_equal(few.converged, [False] * 3)
    np.testing.assert_array_equal(many.converged, [True] * 3)


def test_identity_observers_of_equal_settings_share_programs():
    optimizer = af.adam(0.01)
    traced = []

    @eqx.filter_jit
    def program(observe, params):
        traced.append(observe)
        return params

    for seed in (0, 1):
        program(sharpness_observer(optimizer, quadratic_loss, seed=seed), jnp.ones(2))
    assert len(traced) == 1
    program(sharpness_observer(optimizer, quadratic_loss, iterations=8), jnp.ones(2))
    assert len(traced) == 2


def test_failure_not_finite_is_nan():
    params = jnp.ones(7)
    for value in (np.nan, np.inf):
        sharpness = preconditioned_sharpness(diagonal_loss(np.full(7, value)), params, params)
        assert jnp.isnan(sharpness.value)
        assert jnp.isnan(sharpness.residual)
        assert jnp.isnan(sharpness.lowest_eigenvalue_bound)
        assert not sharpness.converged
        assert "not finite" in str(sharpness)
    traced = jax.jit(lambda p: preconditioned_sharpness(diagonal_loss(np.ones(7)), params, p).value)
    assert jnp.isnan(traced(params.at[1].set(-1.0)))
    assert jnp.isnan(traced(params.at[1].set(jnp.nan)))


@pytest.mark.parametrize(
    ("preconditioner", "message"),
    [
        (
            {"a": jnp.ones(2)},
            r"preconditioner must have the shapes of params, \{'a': \(2,\), 'b': \(\)\}, got \{'a': \(2,\)\}",
        ),
        (
            ({"second_moment": {"a": jnp.ones(2), "b": jnp.ones(())}},),
            r"pass sqrt\(v_hat\) \+ epsilon, a pytree like params: optimizer.preconditioner\(filters, iteration\)",
        ),
        ({"a": jnp.ones(3), "b": jnp.ones(())}, r"got \{'a': \(3,\), 'b': \(\)\}; pass sqrt\(v_hat\) \+ epsilon"),
        (
            {"a": jnp.array([1.0, -2.0]), "b": jnp.ones(())},
            r"preconditioner must lie in \[0, inf\), got -2.0; pass sqrt",
        ),
        ({"a": jnp.ones(2), "b": jnp.array(jnp.nan)}, r"preconditioner must lie in \[0, inf\), got nan"),
    ],
)
def test_failure_preconditioner_unlike_params(preconditioner, message):
    params = {"a": jnp.ones(2), "b": jnp.ones(())}
    with pytest.raises(ValueError, match=message):
        preconditioned_sharpness(lambda x: (x["a"] ** 2).sum() + x["b"] ** 2, params, preconditioner)


def test_failure_of_numbers():
    with pytest.raises(ValueError, match="iterations must be a whole number of at least 1, got 0"):
        preconditioned_sharpness(diagonal_loss(1.0), jnp.ones(2), jnp.ones(2), iterations=0)
    with pytest.raises(ValueError, match="iterations must be a whole number of at least 1, got 0"):
        sharpness_observer(af.adam(0.1), diagonal_loss(1.0), iterations=0)
    problem, optimizer = af.problems.quadratic([1.0]), af.signsgd(0.1)
    observe = sharpness_observer(optimizer, problem.loss)
    with pytest.raises(ValueError, match="'signsgd' has no single preconditioner"):
        af.iterate(optimizer, problem.loss, problem.params, 2, observe=observe)
    with pytest.raises(ValueError, match="params has no entries"):
        preconditioned_sharpness(diagonal_loss(1.0), jnp.ones(0), jnp.ones(0))
    with pytest.raises(ValueError, match=r"gamma must lie in \[0, 1\), got 1.0; gamma decays the first moment"):
        adaptive_edge(1.0)


@given(st.floats(0, 0.99))
def test_formula_adaptive_edge_is_where_the_discrete_step_has_multiplier_minus_1(gamma):
    for factor, is_stable in ((1 - 1e-6, True), (1 + 1e-6, False)):
        edge = factor * adaptive_edge(gamma)
        step = np.array([[gamma, (1 - gamma) * edge], [-gamma, 1 - (1 - gamma) * edge]])
        multipliers = np.linalg.eigvals(step)
        assert (abs(multipliers).max() < 1) == is_stable
        assert abs(multipliers + 1).min() < 1e-3


def test_formula_adaptive_edge_of_the_usual_decays():
    np.testing.assert_allclose(adaptive_edge(np.array([0, 0.5, 0.9, 0.99])), [2, 6, 38, 398], rtol=1e-13)
    single = jax.jit(jax.vmap(adaptive_edge))(jnp.array([0.5, 0.9], jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, [6, 38], rtol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "exponents"), [(jnp.float32, (-30, -20, 20, 30)), (jnp.float64, (-300, -160, 160, 300))]
)
def test_identity_a_factor_before_the_loss_is_one_before_the_sharpness(dtype, exponents):
    """The squares of such Hessians underflow or overflow, they themselves do not."""
    matrix = np.random.default_rng(0).standard_normal((20, 20))
    matrix, params = matrix + matrix.T, jnp.ones(20, dtype)
    values = np.linalg.eigvalsh(matrix)
    for factor in 10.0 ** np.array(exponents):
        loss = eqx.Partial(whole_quadratic, matrix=jnp.asarray(factor * matrix, dtype))
        sharpness = preconditioned_sharpness(loss, params, jnp.ones_like(params))
        np.testing.assert_allclose(np.float64(sharpness.value) / factor, values[-1], rtol=1e-5)
        np.testing.assert_allclose(np.float64(sharpness.lowest_eigenvalue_bound) / factor, values[0], rtol=1e-5)
        assert sharpness.converged
        assert 0 <= sharpness.residual < 1e-5 * sharpness.value


def whole_quadratic(params, matrix):
    return params @ (matrix @ params) / 2


def test_formula_sharpness_of_a_classifier_far_along():
    def loss(weights):
        margins = jnp.array([[1.0, 2.0], [1.0, 2.0]], jnp.float32) @ weights
        return jnp.mean(jnp.logaddexp(jnp.zeros_like(margins), -margins))

    for margin in (25.0, 50.0, 80.0):
        weights = jnp.array([1.0, 2.0], jnp.float32) * margin / 5
        sharpness = preconditioned_sharpness(loss, weights, jnp.ones_like(weights))
        np.testing.assert_allclose(np.float64(sharpness.value), 5 * np.exp(-margin), rtol=1e-5)
        assert sharpness.converged
