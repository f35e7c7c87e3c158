"""The side of the border on which (β, γ) lies, in exact arithmetic, and the maps over a grid."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import adamflow as af

BOUNDS = [("gould_tanaka", "exact"), ("flow", "exact"), ("flow", "gould_tanaka"), ("discrete", "exact")]
BETAS, GAMMAS = np.array([0.5, 0.81, 0.9, 0.95, 0.999]), np.array([0.5, 0.9, 0.99])


def has_paper_border(kind, rate):
    return kind == "gould_tanaka" or (kind, rate) == ("flow", "gould_tanaka")


def side(value):
    return int(value > 0) - int(value < 0)


@pytest.mark.parametrize(("kind", "rate"), BOUNDS)
@given(st.floats(1e-6, 1 - 1e-9), st.integers(-9, 9))
def test_formula_sign_in_exact_arithmetic_around_the_border(kind, rate, gamma, spacings):
    """0 wherever the border passes through the half units around (β, γ), and the exact sign a little further out."""
    paper = has_paper_border(kind, rate)
    border = gamma / (2 - gamma) if paper else gamma**2
    beta = border + spacings * np.spacing(border)
    b, g = Fraction(beta), Fraction(gamma)
    half_b, half_g = Fraction(np.spacing(beta)) / 2, Fraction(np.spacing(gamma)) / 2
    value = 2 * b * (1 - g) - g * (1 - b) if paper else b - g * g
    box = half_b * (2 - g) + half_g * (1 + b) if paper else half_b + 2 * g * half_g
    arithmetic = Fraction(np.finfo(float).eps) * (b * (1 - g) if paper else g * g / 2)
    sign = af.analysis.bounded_update_sign(beta=beta, gamma=gamma, kind=kind, rate=rate)
    assert sign.dtype == np.int8
    if abs(value) <= box * Fraction(0.999):
        assert sign == 0
    if abs(value) > 2 * arithmetic + box * Fraction(1.001):
        assert sign == side(value)


@pytest.mark.parametrize(("kind", "rate"), BOUNDS)
@given(st.floats(1e-6, 1 - 1e-9), st.floats(1e-6, 1 - 1e-9))
def test_identity_sign_is_that_of_the_exponent(kind, rate, beta, gamma):
    exponent = -2 * af.analysis.bound_growth_rate(beta=beta, gamma=gamma, kind=kind, rate=rate)
    if abs(exponent) > 1e-9:
        assert af.analysis.bounded_update_sign(beta=beta, gamma=gamma, kind=kind, rate=rate) == side(exponent)
        assert side(exponent) == side(beta - (gamma / (2 - gamma) if has_paper_border(kind, rate) else gamma**2))


def test_formula_pairs_on_the_borders():
    assert af.analysis.bounded_update_sign(beta=0.25, gamma=0.5, kind="discrete") == 0
    assert af.analysis.bounded_update_sign(beta=0.81, gamma=0.9, kind="discrete") == 0
    assert af.analysis.bounded_update_sign(beta=1 / 3, gamma=0.5, kind="gould_tanaka") == 0
    for kind, rate in BOUNDS:
        assert af.analysis.bounded_update_sign(beta=0.5, gamma=0.0, kind=kind, rate=rate) == 1


@pytest.mark.parametrize(("kind", "rate"), BOUNDS)
def test_identity_region_says_how_the_bound_grows(kind, rate):
    """From n to 2n the logarithm grows by 0, ½ ln 2 or n|exponent|/2."""
    gammas = np.array([0.5, 0.75])
    betas = gammas / (2 - gammas) if has_paper_border(kind, rate) else gammas**2
    n = 10**7
    grid = af.analysis.bounded_update_region(
        beta=[0.2, *betas, 0.9], gamma=gammas, iteration=np.array([n, 2 * n]), kind=kind, rate=rate
    )
    growth = grid.log_bound.isel(iteration=1) - grid.log_bound.isel(iteration=0)
    expected = xr.where(grid.region > 0, 0.0, xr.where(grid.region < 0, -n * grid.exponent / 2, np.log(2) / 2))
    np.testing.assert_allclose(growth, expected.transpose("beta", "gamma"), rtol=1e-9, atol=1e-6)
    assert set(grid.region.values.flat) == {-1, 0, 1}
    for beta, gamma in zip(betas, gammas, strict=True):
        assert grid.region.sel(beta=beta, gamma=gamma) == 0


@pytest.mark.parametrize(("kind", "rate"), BOUNDS)
def test_identity_map_is_its_elementwise_functions(kind, rate):
    grid = af.analysis.bounded_update_region(beta=BETAS, gamma=jnp.asarray(GAMMAS), iteration=7, kind=kind, rate=rate)
    for beta in BETAS:
        for gamma in GAMMAS:
            point = grid.sel(beta=beta, gamma=gamma)
            assert point.exponent == -2 * af.analysis.bound_growth_rate(beta=beta, gamma=gamma, kind=kind, rate=rate)
            assert float(point.log_bound) == pytest.approx(
                af.analysis.log_update_bound(7, beta=beta, gamma=gamma, kind=kind, rate=rate)
            )
            assert point.region == af.analysis.bounded_update_sign(beta=beta, gamma=gamma, kind=kind, rate=rate)


def test_identity_flows_are_read_by_the_rates_of_their_filters():
    record = af.adam(1e-3)
    flows = {
        "exact": [
            af.GouldTanakaFlow(record, rate="exact"),
            af.GouldTanakaFlow(record, 2, "exact"),
            af.ModifiedFlow(record, 1),
        ],
        "gould_tanaka": [af.GouldTanakaFlow(record), af.GouldTanakaFlow(record, 2)],
    }
    for rate, same in flows.items():
        expected = af.analysis.bounded_update_region(beta=BETAS, gamma=GAMMAS, iteration=7, kind="flow", rate=rate)
        # The argument is for kinds given by name: for a flow the wrong one changes nothing.
        other = "gould_tanaka" if rate == "exact" else "exact"
        maps = af.analysis.bounded_update_region(beta=BETAS, gamma=GAMMAS, iteration=7, kind=same, rate=other)
        assert list(maps.kind.values) == [flow.name for flow in same]
        for flow in same:
            xr.testing.assert_equal(maps.sel(kind=flow.name, drop=True), expected.drop_vars("kind"))
    mixed = af.analysis.bounded_update_region(beta=BETAS, gamma=GAMMAS, kind=["flow", flows["gould_tanaka"][0]])
    assert not mixed.exponent.sel(kind="flow").equals(mixed.exponent.sel(kind=flows["gould_tanaka"][0].name))


@pytest.mark.parametrize("order", [2, 3, 5])
def test_identity_modified_flows_have_the_exact_region_and_no_bound_beyond_order_one(order):
    flow = af.ModifiedFlow(af.adam(1e-3), order)
    found = af.analysis.bounded_update_region(beta=BETAS, gamma=GAMMAS, iteration=np.array([1, 100]), kind=flow)
    expected = af.analysis.bounded_update_region(
        beta=BETAS, gamma=GAMMAS, iteration=np.array([1, 100]), kind="flow", rate="exact"
    )
    assert str(found.kind.values) == f"modified flow of order {order}"
    xr.testing.assert_equal(
        found[["exponent", "region"]].drop_vars("kind"), expected[["exponent", "region"]].drop_vars("kind")
    )
    discrete = af.analysis.bounded_update_region(beta=BETAS, gamma=GAMMAS, kind="discrete")
    np.testing.assert_array_equal(found.region, discrete.region)
    assert found.log_bound.shape == expected.log_bound.shape
    assert bool(found.log_bound.isnull().all())


def test_identity_names_of_axes_units_and_flags(tmp_path):
    plain = af.analysis.bounded_update_region(beta=BETAS, gamma=GAMMAS)
    assert all(plain[name].dims == ("beta", "gamma") for name in ("exponent", "log_bound", "region"))
    assert plain.iteration == 100
    kinds, n = ["discrete", "gould_tanaka"], [1, 10, 100]
    full = af.analysis.bounded_update_region(beta=list(BETAS), gamma=GAMMAS, iteration=np.array(n), kind=kinds)
    assert full.log_bound.dims == ("kind", "iteration", "beta", "gamma")
    assert full.exponent.dims == full.region.dims == ("kind", "beta", "gamma")
    xr.testing.assert_equal(
        full.sel(kind="gould_tanaka", iteration=100).drop_vars(["kind", "iteration"]),
        plain.drop_vars(["kind", "iteration"]),
    )
    for variable in full.data_vars.values():
        assert variable.attrs["long_name"]
        assert variable.attrs["units"] in ("1", "1/iteration")
        assert "2411.05746" in variable.attrs["source"]
        assert "derivation of adamflow" in variable.attrs["source"]
    assert full.region.dtype == np.int8
    flags = dict(zip(full.region.flag_values, full.region.flag_meanings.split(), strict=True))
    assert flags[int(full.region.sel(kind="discrete", beta=0.999, gamma=0.9))] == "B+"
    assert flags[int(full.region.sel(kind="discrete", beta=0.81, gamma=0.9))] == "B0"
    assert flags[int(full.region.sel(kind="gould_tanaka", beta=0.5, gamma=0.9))] == "B-"
    full.to_netcdf(tmp_path / "region.nc", engine="scipy")
    xr.testing.assert_equal(xr.load_dataset(tmp_path / "region.nc", engine="scipy"), full)


@pytest.mark.parametrize(("kind", "rate"), BOUNDS)
def test_identity_sign_under_jit_and_vmap(kind, rate):
    expected = af.analysis.bounded_update_sign(beta=BETAS[:, None], gamma=GAMMAS, kind=kind, rate=rate)
    row = jax.vmap(lambda b, g: af.analysis.bounded_update_sign(beta=b, gamma=g, kind=kind, rate=rate), (None, 0))
    traced = jax.jit(jax.vmap(row, (0, None)))(jnp.asarray(BETAS), jnp.asarray(GAMMAS))
    assert traced.dtype == jnp.int8
    np.testing.assert_array_equal(traced, expected)


def test_identity_rounding_is_that_of_the_dtype():
    """In float32 a pair may be on the border to rounding that is off it, in float64, as it stands."""
    beta, gamma = np.float32(0.49), np.float32(0.7)
    assert af.analysis.bounded_update_sign(beta=jnp.asarray(beta), gamma=jnp.asarray(gamma), kind="discrete") == 0
    exact = side(Fraction(float(beta)) - Fraction(float(gamma)) ** 2)
    assert af.analysis.bounded_update_sign(beta=float(beta), gamma=float(gamma), kind="discrete") == exact != 0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0.9, GAMMAS), {}, r"beta must have one dimension and at least one entry, got shape \(\)"),
        ((BETAS, GAMMAS[None]), {}, r"gamma must have one dimension and at least one entry, got shape \(1, 3\)"),
        (([], GAMMAS), {}, r"beta must have .* at least one entry, got shape \(0,\)"),
        (([0.5, 1.0], GAMMAS), {}, r"beta must lie in \(0, 1\), got 1.0"),
        ((BETAS, [0.0, 0.5]), {}, r"gamma must lie in \(0, 1\), got 0.0"),
        ((BETAS, [0.5, np.nan]), {}, r"gamma must lie in \(0, 1\), got nan"),
        ((BETAS, [0.5, 0.9, 0.9]), {}, "gamma must increase, got 0.9 before 0.9; sort it"),
        ((BETAS[::-1], GAMMAS), {}, "beta must increase, got 0.999 before 0.95; sort it"),
        ((BETAS, GAMMAS), {"iteration": -1}, r"iteration must lie in \[0, inf\), got -1.0; iterations are counted"),
        ((BETAS, GAMMAS), {"iteration": np.ones((2, 2))}, r"iteration must be a number or an axis .*\(2, 2\)"),
        ((BETAS, GAMMAS), {"kind": "tight"}, "kind must be one of 'gould_tanaka', 'flow', 'discrete', got 'tight'"),
        ((BETAS, GAMMAS), {"kind": ()}, "kind must name at least one of .*, got an empty sequence"),
        ((BETAS, GAMMAS), {"rate": "ours"}, "rate must be one of 'exact', 'gould_tanaka', got 'ours'"),
    ],
)
def test_failure_says_what_to_do(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        af.analysis.bounded_update_region(beta=arguments[0], gamma=arguments[1], **options)


def test_failure_under_tracing_names_the_elementwise_functions():
    with pytest.raises(
        ValueError, match=r"beta must be known numbers.*bound_growth_rate, log_update_bound and bounded_update_sign"
    ):
        jax.jit(lambda betas: af.analysis.bounded_update_region(beta=betas, gamma=GAMMAS).exponent.values)(
            jnp.asarray(BETAS)
        )
    with pytest.raises(ValueError, match=r"iteration must be a known number.*elementwise function log_update_bound"):
        jax.jit(lambda n: af.analysis.bounded_update_region(beta=BETAS, gamma=GAMMAS, iteration=n).log_bound.values)(5)
    with pytest.raises(ValueError, match=r"beta must lie in \(0, 1\), got 1.5; .*b2 in optax"):
        af.analysis.bounded_update_sign(beta=1.5, gamma=0.9)


@pytest.mark.parametrize(
    ("order", "beta", "sign"), [(1, 0.3, 1), (1, 0.2, 0), (2, 0.28, -1), (8, 0.3, -1), (8, 0.4, 1)]
)
def test_formula_map_flows_forget_at_the_rate_of_the_truncated_logarithm(order, beta, sign):
    # γ = .6: order 1 borders at β = 2γ − 1 = .2, order 2 near .29, and all orders together at γ² = .36.
    found = af.analysis.bounded_update_region(beta=[beta], gamma=[0.6], kind=af.InterpolatingFlow(af.adam(1e-3), order))
    assert int(found.region[0, 0]) == sign
    rates = [sum((1 - a) ** k / k for k in range(1, order + 1)) for a in (0.6, beta)]
    assert float(found.exponent[0, 0]) == pytest.approx(2 * rates[0] - rates[1], abs=1e-15)
    assert bool(found.log_bound.isnull().all())


def test_failure_flows_without_filters_have_no_region():
    with pytest.raises(TypeError, match="got MemorylessFlow: a region says what filters remember"):
        af.analysis.bounded_update_region(
            beta=BETAS, gamma=GAMMAS, kind=["gould_tanaka", af.MemorylessFlow(af.adam(1e-3))]
        )


def test_identity_iterations_in_half_precision_are_those_in_single():
    half, single = (
        af.analysis.bounded_update_region(beta=[0.9], gamma=[0.8], iteration=np.array([0.5, 8.0], kind))
        for kind in (np.float16, np.float32)
    )
    np.testing.assert_allclose(half.log_bound, single.log_bound, rtol=1e-6)
