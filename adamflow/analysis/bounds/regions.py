"""The regions of bounded updates: on which side of its border a pair (β, γ) lies, and maps over a grid of them.

[GT] = R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization, arXiv:2411.05746.
It writes (β, γ) for the decays of the second and the first moment, where PyTorch and optax write (b2, b1).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jax import Array
from jaxtyping import Float, Int

from adamflow.analysis.array_namespace import with_namespace
from adamflow.analysis.bounds.formulas import (
    bound_growth_rate,
    check_decays,
    check_kind,
    has_paper_rates,
    log_update_bound,
)
from adamflow.checks import check_range, is_concrete, keyword_decays
from adamflow.flows import AbstractFlow, GouldTanakaFlow, InterpolatingFlow, ModifiedFlow
from adamflow.types import Dataset, Numbers

Betas: TypeAlias = Float[Array | np.ndarray, "beta"] | Sequence[float]
Gammas: TypeAlias = Float[Array | np.ndarray, "gamma"] | Sequence[float]
Signs: TypeAlias = Int[Array | np.ndarray, "..."] | np.int8

_ARTICLE = "R. Gould and H. Tanaka, arXiv:2411.05746"
_SOURCES = {
    "gould_tanaka": f"[GT] {_ARTICLE}",
    "flow": "derivation of adamflow: Cauchy-Schwarz inequality for the flow's filters",
    "discrete": "derivation of adamflow: Cauchy-Schwarz inequality for the discrete filters",
}


@keyword_decays
def bounded_update_sign(*, beta: Numbers, gamma: Numbers, kind: str = "gould_tanaka", rate: str = "exact") -> Signs:
    r"""On which side of the border of bounded updates a pair (β, γ) lies: 1 in B₊, 0 on B₀, −1 in B₋.

    It is the sign of the exponent C, c or ln β − 2 ln γ (−2 times `bound_growth_rate`), read from a polynomial P that
    has the same sign and suffers no cancellation but that of the numbers themselves:

    - "gould_tanaka", and "flow" with the paper's rates: $P = \beta\gamma C = (\beta-\gamma) + \beta(1-\gamma)$;
    - "discrete", and "flow" with exact rates: $P = \beta - \gamma^2$.

    A number in a computer stands for all reals within half a unit in its last place, h. So B₀ is where the border may
    pass through the rectangle of these reals,
    $|P| \le h_\beta |\partial_\beta P| + h_\gamma |\partial_\gamma P|$: $h_\beta (2-\gamma) + h_\gamma (1+\beta)$ or
    $h_\beta + 2\gamma h_\gamma$, plus what rounding adds to P there, $2u\beta(1-\gamma)$ or $u\gamma^2$ with $2u$ the
    spacing of numbers at 1 (the subtractions near the border are exact). In float64, B₀ is some 1e-16 wide. That near
    to it the rounding of logarithms may give `bound_growth_rate` the other sign.

    Args:
        beta: decay β of the second moment, 0 < β < 1. [GT] writes (β, γ) where PyTorch and optax write (b2, b1).
        gamma: decay γ of the first moment, 0 ≤ γ < 1. At γ = 0 every kind is in B₊.
        kind: whose bound, one of "gould_tanaka", "flow", "discrete".
        rate: the rates of the flow's filters, "exact" or "gould_tanaka", as in `bound_growth_rate`. Only kind "flow"
            depends on it.

    Returns:
        int8 in the arguments' common shape: by NumPy, for float64, if no argument is a jax array, otherwise a jax array
        for the rounding of the arguments' dtype. Works under jit and vmap.

    Raises:
        ValueError: an argument is outside its interval, or `kind` or `rate` is unknown.

    Source: [GT] for the regions of C; derivation of this project for the others and for B₀.

    >>> print(bounded_update_sign(beta=0.9, gamma=np.array([0.9, 0.99])))
    [ 1 -1]
    >>> print(bounded_update_sign(beta=0.81, gamma=0.9, kind="discrete"))
    0
    """
    kind, rate = check_kind(kind, rate)
    check_decays(beta, gamma)
    xp, beta, gamma = with_namespace(beta, gamma)
    half_beta, half_gamma = (xp.spacing(decay) / 2 for decay in (beta, gamma))
    unit = xp.spacing(xp.ones_like(beta)) / 2
    if has_paper_rates(kind, rate):
        value = (beta - gamma) + beta * (1 - gamma)
        rounding = half_beta * (2 - gamma) + half_gamma * (1 + beta) + 2 * unit * beta * (1 - gamma)
    else:
        value = beta - gamma**2
        rounding = half_beta + 2 * gamma * half_gamma + unit * gamma**2
    return xp.where(xp.abs(value) <= rounding, 0.0, xp.sign(value)).astype(xp.int8)[()]


@keyword_decays
def bounded_update_region(
    *,
    beta: Betas,
    gamma: Gammas,
    iteration: Numbers = 100,
    kind: str | AbstractFlow | Sequence[str | AbstractFlow] = "gould_tanaka",
    rate: str = "exact",
) -> Dataset:
    r"""The exponent, the logarithm of the bound and the region of bounded updates on a grid of (β, γ).

    =========== ============================================================ ============= =====================
    variable    meaning                                                      units         computed by
    =========== ============================================================ ============= =====================
    `exponent`  C ("gould_tanaka"), $c = 2a_\gamma - a_\beta$ ("flow"),      1/iteration   −2 `bound_growth_rate`
                $\ln\beta - 2\ln\gamma$ ("discrete")
    `log_bound` $\ln B_n$, the bound on $\ln\|u_n\|_\infty$                  1             `log_update_bound`
    `region`    1 in B₊ (updates bounded for all n), 0 on B₀,                1             `bounded_update_sign`
                −1 in B₋ (the bound grows as $e^{n|\text{exponent}|/2}$)
    =========== ============================================================ ============= =====================

    Everything is computed in float64 by NumPy. Inside a program of jax, use the functions in the last column, which
    work elementwise under jit and vmap.

    A flow stands for kind "flow" with the rates of its own filters. Those of `ModifiedFlow` forget exactly as αⁿ at
    every order, so exponent and region are those of the exact rates. Those of `InterpolatingFlow` of order p have the
    rate $r(\alpha) = \sum_{k\le p} (1-\alpha)^k/k$, so its exponent is $2r(\gamma) - r(\beta)$: at p = 1, β > 2γ − 1 is
    inside. For `InterpolatingFlow`, and `ModifiedFlow` from order 2 on, `log_bound` is nan: differences or derivatives
    of the gradient drive the filters, and no bound is known.

    Args:
        beta: decays β of the second moment, shape (beta,), increasing, inside (0, 1). [GT] writes (β, γ) where PyTorch
            and optax write (b2, b1).
        gamma: decays γ of the first moment, shape (gamma,), increasing, inside (0, 1).
        iteration: the iteration n ≥ 0 of the bound, a number or an array of shape (iteration,).
        kind: "gould_tanaka", "flow" or "discrete" as in `update_bound`, a `GouldTanakaFlow`, `ModifiedFlow` or
            `InterpolatingFlow`, or a sequence of these. Of a flow its order and rate count, and not the optimizer that
            it holds.
        rate: the rates of the flow's filters, "exact" or "gould_tanaka". Only kind "flow", the string, depends on it.

    Returns:
        A Dataset of the three variables with dimensions ("beta", "gamma"). If `kind` is a sequence, all have a leading
        dimension "kind", with flows under their names. If `iteration` is an array, `log_bound` has a dimension
        "iteration" before "beta". Each has attributes `long_name`, `units` and `source`; `region` has the `flag_values`
        and `flag_meanings` of the CF conventions. The attribute `rate` keeps the argument.

    Raises:
        ValueError: `beta` or `gamma` is not one-dimensional and increasing inside (0, 1), or is traced by jax;
            `iteration` has more than one dimension or is negative; `kind` or `rate` is unknown.
        TypeError: `kind` is another flow, such as `MemorylessFlow`, whose direction has no bound.

    Source: [GT] for "gould_tanaka"; derivation of this project for the others.

    >>> grid = bounded_update_region(beta=[0.9, 0.999], gamma=[0.5, 0.9, 0.99], kind=["gould_tanaka", "discrete"])
    >>> print(grid.region.sel(kind="gould_tanaka").values)
    [[ 1  1 -1]
     [ 1  1  1]]
    >>> print(round(float(grid.log_bound.sel(kind="discrete", beta=0.999, gamma=0.9)), 6), grid.exponent.units)
    0.812703 1/iteration
    """
    beta, gamma = _axis("beta", beta), _axis("gamma", gamma)
    n = _iterations(iteration)
    single_kind = isinstance(kind, str | AbstractFlow)
    kinds = [_read_kind(each, rate) for each in ((kind,) if single_kind else kind)]
    if not kinds:
        raise ValueError("kind must name at least one of 'gould_tanaka', 'flow', 'discrete', got an empty sequence")
    maps = [_map(beta, gamma, n, each) for each in kinds]
    coordinates = {
        "kind": ("kind", [each.name for each in kinds], {"long_name": "whose bound"}),
        "iteration": ("iteration", np.atleast_1d(n), {"long_name": "iteration n", "units": "1"}),
        "beta": ("beta", beta, {"long_name": "decay β of the second moment (b2 in PyTorch and optax)", "units": "1"}),
        "gamma": ("gamma", gamma, {"long_name": "decay γ of the first moment (b1 in PyTorch and optax)", "units": "1"}),
    }
    source = "; ".join(_SOURCES[each] for each in dict.fromkeys(each.kind for each in kinds))
    variables = {}
    for name, attributes in _ATTRIBUTES.items():
        dims = ("kind", "iteration", "beta", "gamma") if name == "log_bound" else ("kind", "beta", "gamma")
        variables[name] = dims, np.stack([each[name] for each in maps]), {**attributes, "source": source}
    import xarray as xr

    grid = xr.Dataset(variables, coordinates, {"rate": rate, "references": _ARTICLE})
    single = {"kind": single_kind, "iteration": n.ndim == 0}
    return grid.isel({name: 0 for name, drops in single.items() if drops})


_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "exponent": {"long_name": "stability exponent: C of [GT], 2a_γ − a_β or ln β − 2 ln γ", "units": "1/iteration"},
    "log_bound": {"long_name": "natural logarithm of the bound on the largest entry of the update", "units": "1"},
    "region": {
        "long_name": "region of bounded updates",
        "units": "1",
        "flag_values": np.array([-1, 0, 1], np.int8),
        "flag_meanings": "B- B0 B+",
    },
}


class _Kind(NamedTuple):
    """What a map is of: its name, kind and rate, the order of a `InterpolatingFlow`, and whether a bound is known."""

    name: str
    kind: str
    rate: str
    map_order: int = 0
    bounded: bool = True


def _read_kind(kind: Any, rate: str) -> _Kind:
    if isinstance(kind, GouldTanakaFlow):
        return _Kind(kind.name, "flow", kind.rate)
    if isinstance(kind, ModifiedFlow):
        return _Kind(kind.name, "flow", "exact", bounded=kind.order == 1)
    if isinstance(kind, InterpolatingFlow):
        return _Kind(kind.name, "flow", "exact", kind.order, bounded=False)
    if isinstance(kind, AbstractFlow):
        raise TypeError(
            "kind must be a flow with filters, af.GouldTanakaFlow, af.ModifiedFlow or af.InterpolatingFlow, got "
            f"{type(kind).__name__}: a region says what filters remember of past gradients"
        )
    kind, rate = check_kind(kind, rate)
    return _Kind(kind, kind, rate)


def _map(beta: np.ndarray, gamma: np.ndarray, n: np.ndarray, kind: _Kind) -> dict[str, Any]:
    arguments: dict[str, Any] = {"beta": beta[:, None], "gamma": gamma, "kind": kind.kind, "rate": kind.rate}
    log_bound = log_update_bound(np.atleast_1d(n)[:, None, None], **arguments)
    exponent = -2 * bound_growth_rate(**arguments)
    region = bounded_update_sign(**arguments)
    if kind.map_order:
        first, second = (sum((1 - a) ** k / k for k in range(1, kind.map_order + 1)) for a in (gamma, beta[:, None]))
        exponent = 2 * first - second
        rounding = 4 * np.finfo(float).eps * (1 + 2 * first + second)
        region = np.where(np.abs(exponent) <= rounding, 0, np.sign(exponent)).astype(np.int8)
    return {
        "exponent": exponent,
        "log_bound": log_bound if kind.bounded else np.full_like(log_bound, np.nan),
        "region": region,
    }


def _axis(name: str, values: Any) -> np.ndarray:
    if not is_concrete(values):
        raise ValueError(
            f"{name} must be known numbers, got a value that jax is tracing; inside a program use the elementwise "
            "functions bound_growth_rate, log_update_bound and bounded_update_sign"
        )
    check_range(name, values, 0.0, 1.0, low_open=True, high_open=True, hint="decays of the moments of Adam")
    decays = np.asarray(values, np.float64)
    if decays.ndim != 1 or decays.size == 0:
        raise ValueError(
            f"{name} must have one dimension and at least one entry, got shape {decays.shape}; give an axis"
        )
    falls = np.flatnonzero(np.diff(decays) <= 0)
    if falls.size:
        before, after = decays[falls[0] : falls[0] + 2]
        raise ValueError(f"{name} must increase, got {before} before {after}; sort it and drop what stands twice")
    return decays


def _iterations(iteration: Any) -> np.ndarray:
    if not is_concrete(iteration):
        raise ValueError(
            "iteration must be a known number or array, got a value that jax is tracing; inside a program use the "
            "elementwise function log_update_bound"
        )
    check_range("iteration", iteration, 0.0, float("inf"), high_open=True, hint="iterations are counted from 0")
    n = np.asarray(iteration)
    # Axes of xarray hold no half precision.
    n = n.astype(np.float32) if n.dtype.kind == "f" and n.dtype.itemsize < 4 else n
    if n.ndim > 1 or n.size == 0:
        raise ValueError(f"iteration must be a number or an axis with at least one entry, got shape {n.shape}")
    return n
