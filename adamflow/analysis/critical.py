"""The critical curvature: where the discrete step of an optimizer, or a flow, turns unstable."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
from jax import Array
from jaxtyping import Float

from adamflow.analysis.eigenvalues import characteristic_polynomial
from adamflow.analysis.linear import Model, linear_stability, linear_system
from adamflow.optimizers import Optimizer

#: Where larger systems are searched for the first crossing: ηs from 1e-6 to 1e9, 20 samples per decade.
_LOG_SAMPLES = np.log(10.0) * np.linspace(-6, 9, 301)


def critical_curvature(optimizer: Optimizer, *, model: Model = "discrete") -> Float[Array, "..."]:
    r"""The smallest curvature s at which `linear_stability` turns unstable: the edge of stability.

    ====================================== =====================================================
    record and model                       edge
    ====================================== =====================================================
    Adam, AdamW; "discrete"                $\eta s = (2 - \eta\lambda)(1+\gamma)/(1-\gamma)$
    RMSprop; "discrete"                    $\eta s = 2 - \eta\lambda$
    any of them; `PaperFlow`, order 1      none: stable for every s > 0
    Adam, AdamW; `PaperFlow`, order 2      $\eta s = 2 + a + 2\eta\lambda/a$, filters with rate a
    ====================================== =====================================================

    with $a = (1-\gamma)/\gamma$ (rate "paper") or $-\ln\gamma$ (rate "exact"). These are examples: systems of up to
    three rows, in which are also 2-Adam and every optimizer with at most two filters that are not second moments, are
    solved by the criteria of Jury and of Routh and Hurwitz. Their conditions are polynomials in s of degree at most 2,
    as the characteristic polynomial is linear in s. For larger systems the first crossing of stability on a grid of ηs
    from 1e-6 to 1e9, 20 samples per decade, is refined by bisection to rounding; an instability narrower than
    a sample is not seen.

    Args:
        optimizer: the record, or a batch of records, as in `linear_stability`.
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
    >>> flow = af.PaperFlow(optimizer, order=2)
    >>> print(round(0.01 * float(critical_curvature(optimizer, model=flow)), 6))
    2.111111
    """
    unit = 1 / optimizer.learning_rate
    start = linear_system(optimizer, 0.0, model=model)
    rows = start.shape[-1]
    if rows > 3:
        return _by_search(optimizer, model)
    # The characteristic polynomial is linear in s: one other value of s gives its slope.
    at_zero, at_unit = (
        characteristic_polynomial(system) for system in (start, linear_system(optimizer, unit, model=model))
    )
    lines = [_Quadratic(a, b - a, jnp.zeros_like(a)) for a, b in zip(at_zero, at_unit, strict=True)]
    conditions = _jury(lines) if model == "discrete" else _routh(lines)
    return unit * jnp.min(jnp.stack([condition.first_failure() for condition in conditions]), axis=0)


class _Quadratic(NamedTuple):
    """A polynomial p(x) = constant + linear·x + square·x² in x = ηs."""

    constant: Any
    linear: Any
    square: Any

    def __add__(self, other: "_Quadratic") -> "_Quadratic":  # type: ignore[override]
        return _Quadratic(*(a + b for a, b in zip(self, other, strict=True)))

    def __neg__(self) -> "_Quadratic":
        return _Quadratic(*(-a for a in self))

    def __sub__(self, other: "_Quadratic") -> "_Quadratic":
        return self + -other

    def times(self, other: "_Quadratic") -> "_Quadratic":
        """The product of two linear ones."""
        a, b = self, other
        return _Quadratic(a.constant * b.constant, a.constant * b.linear + a.linear * b.constant, a.linear * b.linear)

    def first_failure(self) -> Array:
        """The end of the interval (0, x) in which the polynomial is positive: 0 if it is not, inf if it always is."""
        c, b, a = self
        rounding = 64 * jnp.finfo(jnp.result_type(c)).eps
        scale = jnp.maximum(jnp.abs(c), jnp.maximum(jnp.abs(b), jnp.abs(a))) + jnp.finfo(jnp.result_type(c)).tiny
        c, b, a = (jnp.where(jnp.abs(part) > rounding * jnp.maximum(scale, 1.0), part, 0.0) for part in (c, b, a))
        starts = jnp.where(c != 0, c > 0, jnp.where(b != 0, b > 0, a > 0))
        root = jnp.sqrt(jnp.maximum(b**2 - 4 * a * c, 0.0))
        far = -(b + jnp.where(b < 0, -root, root)) / 2
        candidates = jnp.stack([_positive_quotient(far, a), _positive_quotient(c, far)])
        first = jnp.where(b**2 - 4 * a * c > 0, jnp.min(candidates, axis=0), jnp.inf)
        return jnp.where(starts, first, 0.0)


def _positive_quotient(numerator: Array, denominator: Array) -> Array:
    defined = (denominator != 0) & (numerator != 0)
    quotient = numerator / jnp.where(defined, denominator, 1.0)
    return jnp.where(defined & (quotient > 0), quotient, jnp.inf)


def _jury(c: list[_Quadratic]) -> list[_Quadratic]:
    """What is positive where all roots of zⁿ + cₙ₋₁zⁿ⁻¹ + … + c₀, n ≤ 3, lie inside the unit circle."""
    one = _Quadratic(*(jnp.full_like(c[0].constant, value) for value in (1.0, 0.0, 0.0)))
    if len(c) == 1:
        return [one + c[0], one - c[0]]
    if len(c) == 2:
        return [one + c[1] + c[0], one - c[1] + c[0], one - c[0]]
    difference = c[0].times(c[2]) - c[1]
    inner = one - c[0].times(c[0])
    return [
        one + c[2] + c[1] + c[0],
        one - c[2] + c[1] - c[0],
        one - c[0],
        one + c[0],
        inner - difference,
        inner + difference,
    ]


def _routh(c: list[_Quadratic]) -> list[_Quadratic]:
    """What is positive where all roots of xⁿ + cₙ₋₁xⁿ⁻¹ + … + c₀, n ≤ 3, have a negative real part."""
    return c if len(c) < 3 else [*c, c[2].times(c[1]) - c[0]]


@eqx.filter_jit
def _by_search(optimizer: Optimizer, model: Model) -> Array:
    """The first crossing on samples of ηs, refined by bisection in its logarithm."""
    shape = jnp.broadcast_shapes(*map(jnp.shape, jax.tree.leaves(optimizer)))
    flat = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, shape).reshape(-1), optimizer)
    return jax.vmap(lambda numbers: _first_crossing(numbers, model))(flat).reshape(shape)


def _first_crossing(optimizer: Optimizer, model: Model) -> Array:
    def excess(log: Array, _: Any = None) -> Array:
        measured = linear_stability(optimizer, jnp.exp(log) / optimizer.learning_rate, model=model)
        return measured - (1.0 if model == "discrete" else 0.0)

    logs = jnp.asarray(_LOG_SAMPLES, jnp.result_type(optimizer.learning_rate))
    unstable = jax.vmap(excess)(logs) > 0
    first = jnp.argmax(unstable)
    bracket = {"lower": logs[jnp.maximum(first, 1) - 1], "upper": logs[jnp.maximum(first, 1)]}
    tolerance = 4 * float(jnp.finfo(logs.dtype).eps)
    method = optimistix.Bisection(rtol=tolerance, atol=tolerance, flip=False)
    crossing = optimistix.root_find(excess, method, bracket["lower"], options=bracket, throw=False).value
    found = jnp.where(first > 0, jnp.exp(crossing), jnp.where(unstable[0], 0.0, jnp.inf))
    return found / optimizer.learning_rate
