"""The critical curvature: where the discrete step of an optimizer, or a flow, becomes unstable."""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
from jax import Array
from jaxtyping import Float

from adamflow.analysis.stability.eigenvalues import characteristic_polynomial, dominant_of
from adamflow.analysis.stability.linear import Model, linear_system
from adamflow.optimizers import Optimizer

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

    with $a = (1-\gamma)/\gamma$ (rate "paper") or $-\ln\gamma$ (rate "exact"). These are examples: systems of up to
    three rows, in which are also 2-Adam and every optimizer with at most two filters that are not second moments, are
    solved by the criterion of Routh and Hurwitz, for a step after a transformation of the unit disk to the half plane.
    Its conditions are polynomials in s of degree at most 2, as the characteristic polynomial is linear in s. For larger
    systems, and flows of higher order, whose gradients depend on gradients, the first crossing of stability on a grid
    of ηs from 1e-6 to 1e9, 20 samples per decade, is refined by bisection to rounding; an instability narrower than
    a sample is not seen.

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
    rows, affine = _shape(optimizer, model)
    if rows > 3 or not affine:
        return _by_search(optimizer, model)
    unit = 1 / optimizer.learning_rate
    # An eigenvalue 1 of the step is an eigenvalue 0 of the step minus the identity: nothing cancels near the edge.
    offset = jnp.eye(rows) if model == "discrete" else 0.0
    at_zero, at_unit = (
        characteristic_polynomial(linear_system(optimizer, x * unit, model=model) - offset) for x in (0.0, 1.0)
    )
    lines = [_line(a, b) for a, b in zip(at_zero, at_unit, strict=True)]
    conditions = _routh(_transformed(lines) if model == "discrete" else [*lines, _constant(lines[0], 1.0)])
    return unit * jnp.min(jnp.stack([condition.first_failure() for condition in conditions]), axis=0)


def _shape(optimizer: Optimizer, model: Model) -> tuple[int, bool]:
    """The number of rows of the linear system, and whether its characteristic polynomial is linear in s.

    It is for the step and for the flows of [GT], in which a gradient is taken once; not for flows of higher order.
    """
    with jax.ensure_compile_time_eval():
        sample = jax.tree.map(lambda leaf: jnp.full((), 0.5, jnp.result_type(leaf)), optimizer)
        systems = linear_system(sample, jnp.array([0.0, 1.0, 2.0]), model=model)
        rows = systems.shape[-1]
        if rows > 3:
            return rows, False
        bend = max(float(jnp.abs(c[0] - 2 * c[1] + c[2])) for c in characteristic_polynomial(systems))
    return rows, bend < 1e-4


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

    def first_failure(self) -> Array:
        """The end of the interval (0, x) in which the polynomial is positive: 0 if it is not, inf if it always is."""
        c, b, a = self
        starts = jnp.where(c != 0, c > 0, jnp.where(b != 0, b > 0, a > 0))
        discriminant = b * b - 4 * a * c
        crosses = discriminant > 0
        root = jnp.sqrt(jnp.where(crosses, discriminant, 1.0))
        far = -(b + jnp.where(b < 0, -root, root)) / 2
        candidates = jnp.stack([_positive_quotient(far, a), _positive_quotient(c, far)])
        first = jnp.where(crosses, jnp.min(candidates, axis=0), jnp.inf)
        return jnp.where(starts, first, 0.0)


def _line(at_zero: Array, at_unit: Array) -> _Quadratic:
    """The line through two values; a slope of the size of their rounding is 0."""
    slope = at_unit - at_zero
    rounding = 8 * jnp.finfo(slope.dtype).eps * jnp.maximum(jnp.abs(at_zero), jnp.abs(at_unit))
    return _Quadratic(at_zero, jnp.where(jnp.abs(slope) > rounding, slope, 0.0), jnp.zeros_like(slope))


def _constant(like: _Quadratic, value: float) -> _Quadratic:
    zero = jnp.zeros_like(like.constant)
    return _Quadratic(zero + value, zero, zero)


def _positive_quotient(numerator: Array, denominator: Array) -> Array:
    defined = (denominator != 0) & (numerator != 0)
    quotient = numerator / jnp.where(defined, denominator, 1.0)
    return jnp.where(defined & (quotient > 0), quotient, jnp.inf)


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
