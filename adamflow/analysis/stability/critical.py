"""The critical curvature: where the discrete step of an optimizer, or a flow, becomes unstable."""

import functools
import math
from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
from jax import Array
from jaxtyping import Float

from adamflow.analysis.stability.eigenvalues import characteristic_polynomial, dominant_by_numpy, dominant_of
from adamflow.analysis.stability.linear import (
    ONE_ITERATION,
    Model,
    check_model,
    linear_system,
    sample_of,
    systems_by_numpy,
)
from adamflow.checks import is_concrete
from adamflow.optimizers import Optimizer, check_constant, check_optimizer

#: Where larger systems are searched for the first crossing: ηs from 1e-6 to 1e9, 20 samples per decade.
_LOG_SAMPLES = np.log(10.0) * np.linspace(-6, 9, 301)


def critical_curvature(optimizer: Optimizer, *, model: Model = "discrete") -> Float[Array, "..."]:
    r"""The smallest curvature s at which `linear_stability` becomes unstable: the edge of stability.

    ======================================= =====================================================
    optimizer and model                     edge
    ======================================= =====================================================
    Adam, AdamW; "discrete"                 $\eta s = (2 - \eta\lambda)(1+\gamma)/(1-\gamma)$
    RMSprop; "discrete"                     $\eta s = 2 - \eta\lambda$
    any of them; `GouldTanakaFlow`, order 1 none: stable for every s > 0
    Adam, AdamW; `GouldTanakaFlow`, order 2 $\eta s = 2 + a + 2\eta\lambda/a$, filters with rate a
    ======================================= =====================================================

    with $a = (1-\gamma)/\gamma$ (rate "gould_tanaka") or $-\ln\gamma$ (rate "exact"). These are examples: systems of up
    to three rows, in which are also 2-Adam and every optimizer with at most two filters that are not second moments,
    are solved by the criterion of Routh and Hurwitz, for a step after a transformation of the unit disk to the half
    plane. Its conditions are polynomials in s of degree at most 2, as the characteristic polynomial is linear in s. For
    larger systems, and flows of higher order, whose gradients depend on gradients, the first crossing of stability on a
    grid of ηs from 1e-6 to 1e9, 20 samples per decade, is refined by bisection to rounding; an instability narrower
    than a sample is not seen.

    Args:
        optimizer: the optimizer, or a batch of optimizers, as in `linear_stability`.
        model: "discrete", or a flow, whose `optimizer` is replaced by `optimizer` and whose other settings count.

    Returns:
        The largest s such that all curvatures in (0, s) are stable, in the broadcast shape of the numbers: inf where no
        curvature is unstable, 0 where none is stable (as for ηλ ≥ 2). η times it is the edge that
        the learning rate times the preconditioned sharpness meets, and for Adam without weight decay `adaptive_edge`.

    Raises:
        TypeError, ValueError: as in `linear_stability`.

    Source: derivation of this project.

    >>> import adamflow as af
    >>> optimizer = af.adamw(learning_rate=0.01, gamma=0.9, weight_decay=0.0)
    >>> print(round(0.01 * float(critical_curvature(optimizer)), 9))
    38.0
    >>> flow = af.GouldTanakaFlow(optimizer, order=2)
    >>> print(round(0.01 * float(critical_curvature(optimizer, model=flow)), 6))
    2.111111
    """
    check_optimizer("linear stability", optimizer)
    check_constant("critical_curvature", optimizer, ONE_ITERATION, takes_clipping=True)
    checked_model = check_model(optimizer, model)
    sample = sample_of(optimizer, checked_model)
    is_closed = sample.rows <= 3 and sample.is_affine
    if is_concrete(optimizer, model):
        # Plain numbers: to compile would take a thousand times as long as to compute.
        by_numpy = _in_closed_form_by_numpy if is_closed else _by_search_in_numpy
        found = by_numpy(optimizer, checked_model)
        if found is not None:
            return jnp.asarray(found, jnp.result_type(optimizer.learning_rate))
    if not is_closed:
        return _by_search(optimizer, model)
    unit = 1 / optimizer.learning_rate
    at_zero, at_unit = (linear_system(optimizer, x * unit, model=model) for x in (0.0, 1.0))
    return unit * _first_failure(jnp, at_zero, at_unit, model)


def _in_closed_form_by_numpy(optimizer: Optimizer, model: Model) -> np.ndarray | None:
    """The critical curvature of an optimizer with plain numbers; `None` where it has to be compiled."""
    unit = 1 / np.asarray(optimizer.learning_rate)
    systems = [systems_by_numpy(optimizer, curvature, model) for curvature in (0 * unit, unit)]
    if systems[0] is None or systems[1] is None:
        return None
    with np.errstate(all="ignore"):
        return np.asarray(unit * _first_failure(np, systems[0], systems[1], model))


def _first_failure(xp: Any, at_zero: Any, at_unit: Any, model: Model) -> Any:
    """The end x = ηs of the interval (0, x) of stable curvatures, from the systems at x = 0 and at x = 1.

    Args:
        xp: NumPy or jax.numpy.
        at_zero, at_unit: the systems, whose characteristic polynomial is linear in x.
        model: what they are of.
    """
    # An eigenvalue 1 of the step is an eigenvalue 0 of the step minus the identity: nothing cancels near the edge.
    offset = np.eye(at_zero.shape[-1], dtype=at_zero.dtype) if model == "discrete" else 0.0
    ends = [characteristic_polynomial(systems - offset) for systems in (at_zero, at_unit)]
    lines = [_line(xp, a, b) for a, b in zip(*ends, strict=True)]
    conditions = _routh(_transformed(lines) if model == "discrete" else [*lines, _constant(lines[0], 1.0)])
    return xp.min(xp.stack([condition.first_failure(xp) for condition in conditions]), axis=0)


class _Quadratic(NamedTuple):
    """A polynomial p(x) = constant + linear·x + square·x² in x = ηs."""

    constant: Any
    linear: Any
    square: Any

    def __add__(self, other: "_Quadratic") -> "_Quadratic":  # type: ignore[override]
        return _Quadratic(*(a + b for a, b in zip(self, other, strict=True)))

    def scaled(self, factor: float) -> "_Quadratic":
        return _Quadratic(*(factor * a for a in self))

    def times(self, other: "_Quadratic") -> "_Quadratic":
        """The product of two linear ones."""
        a, b = self, other
        return _Quadratic(a.constant * b.constant, a.constant * b.linear + a.linear * b.constant, a.linear * b.linear)

    def first_failure(self, xp: Any) -> Any:
        """The end of the interval (0, x) in which the polynomial is positive: 0 if it is not, inf if it always is."""
        c, b, a = self
        starts = xp.where(c != 0, c > 0, xp.where(b != 0, b > 0, a > 0))
        discriminant = b * b - 4 * a * c
        crosses = discriminant > 0
        root = xp.sqrt(xp.where(crosses, discriminant, 1.0))
        far = -(b + xp.where(b < 0, -root, root)) / 2
        candidates = xp.stack([_positive_quotient(xp, far, a), _positive_quotient(xp, c, far)])
        first = xp.where(crosses, xp.min(candidates, axis=0), xp.inf)
        return xp.where(starts, first, 0.0)


def _line(xp: Any, at_zero: Any, at_unit: Any) -> _Quadratic:
    """The line through two values; a slope of the size of their rounding is 0."""
    slope = at_unit - at_zero
    rounding = 8 * np.finfo(slope.dtype).eps * xp.maximum(xp.abs(at_zero), xp.abs(at_unit))
    return _Quadratic(at_zero, xp.where(xp.abs(slope) > rounding, slope, 0.0), xp.zeros_like(slope))


def _constant(like: _Quadratic, value: float) -> _Quadratic:
    zero = 0 * like.constant
    return _Quadratic(zero + value, zero, zero)


def _positive_quotient(xp: Any, numerator: Any, denominator: Any) -> Any:
    defined = (denominator != 0) & (numerator != 0)
    quotient = numerator / xp.where(defined, denominator, 1.0)
    return xp.where(defined & (quotient > 0), quotient, xp.inf)


def _transformed(d: list[_Quadratic]) -> list[_Quadratic]:
    """The coefficients, lowest first, after w = 2x/(1 − x), which takes |1 + w| < 1 to the left half plane of x.

    `d` are those of wⁿ + dₙ₋₁wⁿ⁻¹ + … + d₀, with w an eigenvalue of the step minus 1.
    """
    n = len(d)
    powers = [np.poly1d([2.0, 0.0]) ** k * np.poly1d([-1.0, 1.0]) ** (n - k) for k in range(n + 1)]
    every = [*d, _constant(d[0], 1.0)]
    return [
        functools.reduce(_Quadratic.__add__, [c.scaled(power[i]) for c, power in zip(every, powers, strict=True)])
        for i in range(n + 1)
    ]


def _routh(c: list[_Quadratic]) -> list[_Quadratic]:
    """What is positive where all roots of cₙxⁿ + … + c₀, n ≤ 3, have a negative real part and cₙ > 0."""
    return c if len(c) < 4 else [*c, c[2].times(c[1]) + c[3].times(c[0]).scaled(-1.0)]


#: The batches that the search by NumPy takes; larger ones are compiled.
_FEW = 16


def _by_search_in_numpy(optimizer: Optimizer, model: Model) -> np.ndarray | None:
    """`_by_search` for an optimizer with plain numbers; `None` where it has to be compiled."""
    shape = np.broadcast_shapes(*map(np.shape, jax.tree.leaves(optimizer)))
    if not 0 < math.prod(shape) <= _FEW:
        return None
    flat = jax.tree.map(lambda leaf: np.broadcast_to(leaf, shape).ravel(), optimizer)
    found = []
    for index in range(math.prod(shape)):
        numbers = jax.tree.map(lambda leaf, index=index: leaf[index], flat)
        crossing = _first_crossing_in_numpy(numbers, model)
        if crossing is None:
            return None
        found.append(crossing / numbers.learning_rate)
    return np.reshape(found, shape)


def _first_crossing_in_numpy(optimizer: Optimizer, model: Model) -> Any:
    """ηs at the first crossing: its interval is divided into as many again until it is as narrow as rounding."""
    logs = _LOG_SAMPLES.astype(np.result_type(optimizer.learning_rate))
    tolerance = 4 * np.finfo(logs.dtype).eps
    excess = _excess_in_numpy(optimizer, logs, model)
    if excess is None:
        return None
    if np.any(np.isnan(excess)):
        return np.nan
    if not np.any(excess > 0):
        return np.inf
    if excess[0] > 0:
        return 0.0
    while True:
        first = int(np.argmax(excess > 0))
        low, high = logs[first - 1 : first + 1]
        if high - low <= tolerance * max(1.0, abs(high)):
            return np.exp((low + high) / 2)
        logs = np.linspace(low, high, len(_LOG_SAMPLES), dtype=logs.dtype)
        # The ends are known: rounding within a batch must not lose the crossing.
        excess = np.concatenate([[-1.0], cast(Any, _excess_in_numpy(optimizer, logs, model))[1:-1], [1.0]])


def _excess_in_numpy(optimizer: Optimizer, logs: np.ndarray, model: Model) -> np.ndarray | None:
    """By how much the systems at ηs = exp(logs) are beyond stability, as in `_first_crossing`."""
    systems = systems_by_numpy(optimizer, np.exp(logs) / optimizer.learning_rate, model)
    if systems is None:
        return None
    with np.errstate(all="ignore"):
        values = dominant_by_numpy(systems, "modulus" if model == "discrete" else "real part")
        measured = np.abs(values) - 1 if model == "discrete" else np.real(values)
        roots = np.sqrt(np.abs(systems))
        largest = np.max(roots * np.swapaxes(roots, -1, -2), axis=(-2, -1))
        return measured - 4 * np.finfo(largest.dtype).eps * largest


@eqx.filter_jit
def _by_search(optimizer: Optimizer, model: Model) -> Array:
    """The first crossing on samples of ηs, refined by bisection in its logarithm."""
    shape = jnp.broadcast_shapes(*map(jnp.shape, jax.tree.leaves(optimizer)))
    flat = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, shape).reshape(-1), optimizer)
    return jax.vmap(lambda numbers: _first_crossing(numbers, model))(flat).reshape(shape)


def _first_crossing(optimizer: Optimizer, model: Model) -> Array:
    def excess(log: Array, _: Any = None) -> Array:
        curvature = jnp.exp(log) / optimizer.learning_rate
        system = linear_system(optimizer, curvature, model=model)
        values = dominant_of(system, "modulus" if model == "discrete" else "real part")
        measured = jnp.abs(values) - 1 if model == "discrete" else values.real
        # The rates of a flow of high order grow as powers of ηs: a small one drowns in the rounding of the largest.
        # Their size is that of the entries of the balanced matrix.
        roots = jnp.sqrt(jnp.abs(system))
        largest = jnp.max(roots * roots.T)
        return measured - 4 * jnp.finfo(largest.dtype).eps * largest

    logs = jnp.asarray(_LOG_SAMPLES, jnp.result_type(optimizer.learning_rate))
    samples = jax.vmap(excess)(logs)
    unstable = samples > 0
    first = jnp.argmax(unstable)
    bracket = {"lower": logs[jnp.maximum(first, 1) - 1], "upper": logs[jnp.maximum(first, 1)]}
    tolerance = 4 * float(jnp.finfo(logs.dtype).eps)
    method = optimistix.Bisection(rtol=tolerance, atol=tolerance, flip=False)
    crossing = optimistix.root_find(excess, method, bracket["lower"], options=bracket, throw=False).value
    found = jnp.where(first > 0, jnp.exp(crossing), jnp.where(unstable[0], 0.0, jnp.inf))
    return jnp.where(jnp.any(jnp.isnan(samples)), jnp.nan, found) / optimizer.learning_rate
