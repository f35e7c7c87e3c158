"""The stability exponent and the bounds on the update."""

from decimal import Decimal, localcontext
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.integrate import quad

from adamflow.analysis import (
    bound_growth_rate,
    log_update_bound,
    stability_exponent,
    update_bound,
)

BOUNDS = [("gould_tanaka", "exact"), ("flow", "exact"), ("flow", "gould_tanaka"), ("discrete", "exact")]
# β, γ; C, ln γ − ½ ln β; the bounds at n = 100; the iteration from which on the paper's bound covers the discrete one.
TABLE = [
    (0.999, 0.9, 0.221221, -0.104860, "2.3148747", "2.2550150", "2.2539926", 6),
    (0.95, 0.9, 0.169591, -0.079714, "1.1727864", "1.1618531", "1.1617117", 9),
    (0.95, 0.99, -0.032430, 0.015596, "1.8968309", "1.8575380", "1.8574106", 64),
    (0.9, 0.99, -0.090909, 0.042630, "14.847427", "12.324002", "12.319720", 33),
    (0.999, 0.5, 1.998999, -0.692647, "6.9305344", "5.7721306", "5.6611167", 1),
    (0.5, 0.9, -0.777778, 0.241213, "9.7627003e15", "6.8977092e9", "6.8365622e9", 4),
]
PAIRS = [row[:2] for row in TABLE]
# Both sides of C = 0, of c = 0 (which is γ² = β for exact rates), the latter itself, and corners of the square.
LIMITS = [
    *((0.96192, float(gamma)) for gamma in 2 * 0.96192 / 1.96192 + np.array([-1e-9, 0, 1e-15, 1e-9])),
    *((0.25, 0.5 + shift) for shift in (-1e-9, -1e-16, 0.0, 2e-16, 1e-9)),
    (1 - 1e-9, 1 - 1e-9),
    (1e-3, 1 - 1e-6),
    (0.999, 1e-12),
]
decays = st.floats(0.01, 0.9999)


def reference(beta, gamma, n, kind, rate):
    """The logarithm of the bound by the formulas of [GT] and of this project, as they stand, with 80 digits."""
    with localcontext() as context:
        context.prec, context.Emax, context.Emin = 80, 10**12, -(10**12)
        b, g = Decimal(beta), Decimal(gamma)
        start = (1 - g) ** 2 / (1 - b)
        if kind == "discrete":
            ratio = g * g / b
            square = start * (n + 1 if ratio == 1 else (1 - ratio ** (n + 1)) / (1 - ratio))
        else:
            is_paper = kind == "gould_tanaka" or rate == "gould_tanaka"
            rate_b, rate_g = ((1 - x) / x if is_paper else -x.ln() for x in (b, g))
            c = 2 * rate_g - rate_b
            square = rate_g**2 / rate_b * (n if c == 0 else (1 - (-n * c).exp()) / c)
            square += start * (-n * c).exp() if kind == "flow" else 0
        if square == 0:
            return -np.inf
        return float((1 - b ** (n + 1)).ln() / 2 - (1 - g ** (n + 1)).ln() + square.ln() / 2)


def adam_update(gradients, beta, gamma):
    """The update of Adam after the last gradient, by its recursion, with ε = 0."""
    m = v = 0.0
    for x in gradients:
        m, v = gamma * m + (1 - gamma) * x, beta * v + (1 - beta) * x**2
    n = len(gradients)
    return 0.0 if v == 0 else m / (1 - gamma**n) / np.sqrt(v / (1 - beta**n))


def worst_gradients(beta, gamma, n):
    return (gamma / beta) ** np.arange(n, -1.0, -1.0)


@pytest.mark.parametrize(("beta", "gamma", "exponent", "rate", "paper", "flow", "discrete", "first"), TABLE)
def test_formula_table_of_bounds_to_all_its_digits(beta, gamma, exponent, rate, paper, flow, discrete, first):
    assert round(stability_exponent(beta=beta, gamma=gamma), 6) == exponent
    assert round(bound_growth_rate(beta=beta, gamma=gamma, kind="discrete"), 6) == rate
    for kind, printed in (("gould_tanaka", paper), ("flow", flow), ("discrete", discrete)):
        assert f"{update_bound(100, beta=beta, gamma=gamma, kind=kind):.7e}" == f"{float(printed):.7e}"


@given(st.floats(1e-6, 1 - 1e-12), st.floats(1e-6, 1 - 1e-12))
def test_formula_exponent_is_exact_but_for_the_rounding_of_its_terms(beta, gamma):
    b, g = Fraction(beta), Fraction(gamma)
    terms = 2 * (1 - g) / g, (1 - b) / b
    error = abs(Fraction(float(stability_exponent(beta=beta, gamma=gamma))) - (terms[0] - terms[1]))
    assert error <= 4 * np.finfo(float).eps * max(terms)


@pytest.mark.parametrize(("kind", "rate"), BOUNDS)
@pytest.mark.parametrize(("beta", "gamma"), PAIRS + LIMITS)
def test_formula_logarithm_against_80_digits(beta, gamma, kind, rate):
    for n in (0, 1, 7, 100, 100_000):
        expected = reference(beta, gamma, n, kind, rate)
        # What the rounding of C, c or δ, which the formula multiplies by n, leaves.
        unavoidable = n * (2 * (1 - gamma) / gamma + (1 - beta) / beta)
        tolerance = 1e-15 * (20 + unavoidable + (0 if np.isinf(expected) else abs(expected)))
        assert log_update_bound(n, beta=beta, gamma=gamma, kind=kind, rate=rate) == pytest.approx(
            expected, rel=0, abs=tolerance
        )


@given(decays, st.floats(0, 0.9999), st.integers(0, 200))
def test_formula_discrete_bound_is_its_sum(beta, gamma, n):
    k = np.arange(n + 1)
    terms = ((1 - gamma) * np.longdouble(gamma) ** k) ** 2 / ((1 - beta) * np.longdouble(beta) ** k)
    expected = (
        np.sqrt(1 - np.longdouble(beta) ** (n + 1)) / (1 - np.longdouble(gamma) ** (n + 1)) * np.sqrt(terms.sum())
    )
    np.testing.assert_allclose(
        log_update_bound(n, beta=beta, gamma=gamma, kind="discrete"), float(np.log(expected)), atol=1e-11
    )


@pytest.mark.parametrize("rate", ["exact", "gould_tanaka"])
@pytest.mark.parametrize(("beta", "gamma"), PAIRS)
def test_formula_flow_bound_is_the_integral_over_the_past(beta, gamma, rate):
    n = 12.5
    rate_b, rate_g = (-np.log(x) if rate == "exact" else (1 - x) / x for x in (beta, gamma))
    past = quad(lambda s: (rate_g * np.exp(-rate_g * s)) ** 2 / (rate_b * np.exp(-rate_b * s)), 0, n, epsrel=1e-12)[0]
    start = ((1 - gamma) * np.exp(-rate_g * n)) ** 2 / ((1 - beta) * np.exp(-rate_b * n))
    expected = np.sqrt(1 - beta ** (n + 1)) / (1 - gamma ** (n + 1)) * np.sqrt(start + past)
    np.testing.assert_allclose(update_bound(n, beta=beta, gamma=gamma, kind="flow", rate=rate), expected, rtol=1e-12)


@pytest.mark.parametrize(("beta", "gamma"), PAIRS)
@pytest.mark.parametrize(("kind", "rate"), BOUNDS)
def test_formula_logarithm_grows_at_the_positive_part_of_the_rate(beta, gamma, kind, rate):
    steps = np.array([10_000_000, 10_001_000])
    logarithms = log_update_bound(steps, beta=beta, gamma=gamma, kind=kind, rate=rate)
    expected = max(0.0, bound_growth_rate(beta=beta, gamma=gamma, kind=kind, rate=rate))
    np.testing.assert_allclose(np.diff(logarithms) / 1000, [expected], atol=1e-10)


@given(decays, decays)
def test_identity_flow_with_exact_rates_has_the_discrete_region(beta, gamma):
    rate = bound_growth_rate(beta=beta, gamma=gamma, kind="discrete")
    assert rate == bound_growth_rate(beta=beta, gamma=gamma, kind="flow")
    assert (
        bound_growth_rate(beta=beta, gamma=gamma, kind="flow", rate="gould_tanaka")
        == bound_growth_rate(beta=beta, gamma=gamma)
        == -stability_exponent(beta=beta, gamma=gamma) / 2
    )
    if abs(rate) > 1e-12:
        assert (rate < 0) == (gamma**2 < beta)
    if stability_exponent(beta=beta, gamma=gamma) > 1e-12:
        assert beta > gamma / (2 - gamma)
        assert rate < 0


@pytest.mark.parametrize("n", [0, 1, 10, 100])
@pytest.mark.parametrize(("beta", "gamma"), [*PAIRS, (0.9, 0.0)])
def test_identity_worst_gradients_attain_the_discrete_bound(beta, gamma, n):
    update = adam_update(worst_gradients(beta, gamma, n), beta, gamma)
    np.testing.assert_allclose(update, update_bound(n, beta=beta, gamma=gamma, kind="discrete"), rtol=1e-10)


magnitudes = arrays.arrays(float, st.integers(1, 60), elements=st.floats(-4, 4))


@given(decays, st.floats(0, 0.9999), magnitudes, st.integers(0, 2**32 - 1))
def test_identity_no_gradients_exceed_the_discrete_bound(beta, gamma, logarithms, seed):
    signs = np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], logarithms.shape)
    bound = update_bound(len(signs) - 1, beta=beta, gamma=gamma, kind="discrete")
    assert abs(adam_update(signs * 10**logarithms, beta, gamma)) <= bound * (1 + 1e-9)


@pytest.mark.parametrize(("beta", "gamma", "first"), [(*row[:2], row[-1]) for row in TABLE])
def test_identity_paper_bound_holds_from_one_iteration_on(beta, gamma, first):
    n = np.arange(5000)
    holds = log_update_bound(n, beta=beta, gamma=gamma) >= log_update_bound(n, beta=beta, gamma=gamma, kind="discrete")
    assert holds.argmax() == first
    assert holds[first:].all()
    worst = worst_gradients(beta, gamma, first - 1)
    assert adam_update(worst, beta, gamma) > update_bound(first - 1, beta=beta, gamma=gamma)


@given(decays, decays)
def test_identity_paper_bound_crosses_the_discrete_bound_once(beta, gamma):
    exponent, delta = stability_exponent(beta=beta, gamma=gamma), np.log(beta) - 2 * np.log(gamma)
    assume(min(abs(exponent), abs(delta)) > 1e-6)
    np.testing.assert_allclose(
        np.expm1(delta) - exponent, (beta - gamma) ** 2 / (beta * gamma**2), atol=1e-9 / gamma**2
    )
    n = np.concatenate([np.arange(1, 7), np.arange(7, 40_000, 7)])
    logarithm = 2 * (
        log_update_bound(n, beta=beta, gamma=gamma) - log_update_bound(n, beta=beta, gamma=gamma, kind="discrete")
    )
    few = n[:6]
    ratio = np.expm1(delta) * np.expm1(-few * exponent) / exponent / np.expm1(-(few + 1) * delta)
    np.testing.assert_allclose(logarithm[:6], np.log(ratio), atol=1e-8)
    assert (np.diff(np.sign(logarithm + 1e-9)) >= 0).all()


def test_identity_bounds_meet_at_gamma_0():
    n = np.array([0, 3, 50])
    expected = np.sqrt((1 - 0.9 ** (n + 1)) / (1 - 0.9))
    np.testing.assert_allclose(update_bound(n, beta=0.9, gamma=0.0, kind="discrete"), expected, rtol=1e-14)
    np.testing.assert_allclose(update_bound(n, beta=0.9, gamma=1e-14, kind="discrete"), expected, rtol=1e-12)
    assert stability_exponent(beta=0.9, gamma=0.0) == np.inf
    assert bound_growth_rate(beta=0.9, gamma=0.0, kind="discrete") == bound_growth_rate(beta=0.9, gamma=0.0) == -np.inf


def test_identity_bound_beyond_the_largest_float_is_inf():
    assert log_update_bound(10**9, beta=0.5, gamma=0.9) == pytest.approx(10**9 * 0.7777777777777778 / 2, rel=1e-6)
    assert update_bound(10**9, beta=0.5, gamma=0.9) == np.inf


@pytest.mark.slow
def test_identity_numpy_in_float64_and_jax_in_the_dtype_of_its_arguments():
    with jax.enable_x64(False):
        plain = update_bound(100, beta=0.999, gamma=0.9)
        single = update_bound(np.array([99, 100]), beta=jnp.float32(0.999), gamma=0.9)
        assert isinstance(plain, float)
        assert f"{plain:.7f}" == "2.3148747"
        assert isinstance(single, jax.Array)
        assert single.dtype == jnp.float32
        assert float(single[1]) == pytest.approx(plain, rel=1e-4)
    assert update_bound(100, beta=jnp.float64(0.999), gamma=0.9).dtype == jnp.float64
    assert update_bound(jnp.arange(3), beta=0.999, gamma=0.9).dtype == jnp.float64


@pytest.mark.parametrize(("kind", "rate"), BOUNDS)
def test_identity_jit_vmap_and_broadcasting(kind, rate):
    betas, gammas, n = np.array([0.9, 0.99, 0.999]), np.array([0.5, 0.9]), np.array([0, 1, 5, 1000])
    grid = log_update_bound(n, beta=betas[:, None, None], gamma=gammas[:, None], kind=kind, rate=rate)
    assert grid.shape == (3, 2, 4)
    row = jax.vmap(lambda b, g: log_update_bound(n, beta=b, gamma=g, kind=kind, rate=rate), (None, 0))
    traced = jax.jit(jax.vmap(row, (0, None)))(jnp.asarray(betas), jnp.asarray(gammas))
    np.testing.assert_allclose(traced, grid, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("kind", "rate"), BOUNDS)
@pytest.mark.parametrize(("beta", "gamma"), [(0.999, 0.9), (0.25, 0.5), (1 / 3, 0.5), (0.9, 0.99)])
def test_formula_derivative_also_at_the_limits(beta, gamma, kind, rate):
    step = 1e-5
    slope = jax.grad(lambda b: log_update_bound(20, beta=b, gamma=gamma, kind=kind, rate=rate))(beta)
    low, high = (log_update_bound(20, beta=beta + shift, gamma=gamma, kind=kind, rate=rate) for shift in (-step, step))
    np.testing.assert_allclose(slope, (high - low) / (2 * step), rtol=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: update_bound(5, beta=1.0, gamma=0.9), r"beta must lie in \(0, 1\), got 1.0; .*b2 in optax"),
        (lambda: stability_exponent(beta=np.array([0.5, 0.0]), gamma=0.9), r"beta must lie in \(0, 1\), got 0.0"),
        (lambda: bound_growth_rate(beta=0.9, gamma=1.0), r"gamma must lie in \[0, 1\), got 1.0; .*b1 in optax"),
        (lambda: update_bound(5, beta=0.9, gamma=-0.1, kind="discrete"), r"gamma must lie in \[0, 1\), got -0.1"),
        (lambda: update_bound(5, beta=0.9, gamma=0.0), r"gamma must lie in \(0, 1\), got 0.0; .*use kind='discrete'"),
        (lambda: log_update_bound(5, beta=0.9, gamma=0.0, kind="flow"), r"kind='flow' is infinite at gamma = 0"),
        (
            lambda: update_bound(-1, beta=0.9, gamma=0.9),
            r"iteration must lie in \[0, inf\), got -1.0; .*counted from 0",
        ),
        (lambda: update_bound(float("nan"), beta=0.9, gamma=0.9), r"iteration must lie in \[0, inf\), got nan"),
        (
            lambda: update_bound(5, beta=0.9, gamma=0.9, kind="tight"),
            "kind must be one of 'gould_tanaka', 'flow', 'discrete', got 'tight'",
        ),
        (
            lambda: bound_growth_rate(beta=0.9, gamma=0.9, kind="flow", rate="ours"),
            "rate must be one of 'exact', 'gould_tanaka', got 'ours'",
        ),
    ],
)
def test_failure_says_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_failure_traced_gamma_0_gives_the_limit():
    for kind in ("gould_tanaka", "flow"):
        assert jax.jit(lambda gamma, kind=kind: log_update_bound(5, beta=0.9, gamma=gamma, kind=kind))(0.0) == jnp.inf
    assert jnp.isfinite(jax.grad(lambda beta: log_update_bound(5, beta=beta, gamma=0.0, kind="discrete"))(0.9))


@pytest.mark.parametrize(
    ("kind", "rate"), [("gould_tanaka", "exact"), ("flow", "gould_tanaka"), ("flow", "exact"), ("discrete", "exact")]
)
@given(
    beta=st.floats(0, 1, exclude_min=True, exclude_max=True),
    gamma=st.floats(0, 1, exclude_min=True, exclude_max=True),
    n=st.floats(0, 1e9),
)
def test_identity_bounds_are_numbers_for_decays_of_every_size(kind, rate, beta, gamma, n):
    assert not np.isnan(stability_exponent(beta=beta, gamma=gamma))
    assert not np.isnan(log_update_bound(n, beta=beta, gamma=gamma, kind=kind, rate=rate))


def test_formula_exponent_and_bound_near_the_smallest_numbers():
    smallest = 5e-324
    assert stability_exponent(beta=smallest, gamma=2 * smallest) == -1
    assert stability_exponent(beta=smallest, gamma=smallest) == np.inf
    assert stability_exponent(beta=1e-320, gamma=1e-300) == -np.inf
    # For β = γ the square is about β/γ² · 1/C = 1, with C = 1/β.
    for decay in (smallest, 1e-320, 1e-300, 1e-100):
        assert float(log_update_bound(1000, beta=decay, gamma=decay)) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match=r"beta must be at least 1.18e-38 in float32, or 0 for gamma; smaller numbers"):
        stability_exponent(beta=jnp.float32(1e-40), gamma=0.9)
