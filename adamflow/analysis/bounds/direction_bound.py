"""The largest direction that an optimizer can take, from how its stages read their filters: lemma L3."""

import dataclasses
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from adamflow.checks import check_count
from adamflow.optimizers import AbstractStage, Optimizer, check_standard
from adamflow.types import Leaf

#: Iterations up to which the quadratic form is built, a matrix of that many rows.
LONGEST = 2000
#: Relative size of what counts as rounding beside the coefficients.
_ROUNDING = 1e-8


def direction_bound(optimizer: Optimizer, iteration: int) -> float:
    r"""The least upper bound of the entries of the direction $|u_n|$ over all sequences of gradients, at ε = 0.

    *Lemma.* A stage that divides what is linear in its inputs by the root of what is quadratic in them,
    $u_n = c \cdot g/\sqrt{g^T Q g}$, has $\sup |u_n| = \sqrt{c^T Q^{-1} c}$, attained by $g \propto Q^{-1} c$. For Adam
    Q is diagonal and this is `update_bound(..., "discrete")`. c and Q are read off the stage itself: its numerator for
    unit inputs, its denominator for pairs of them. A stage that divides by nothing, such as an average of directions,
    has $\sum |c_k|$ times the bound of the stage before, and none after the gradient. Where the memory is no average
    the stage states its bound (1 of signs, Adagrad and, for γ ≥ β, AMSGrad). k-Adam's bound is that of its last stage.

    Args:
        optimizer: the record. ε only lowers the bound; decoupled decay is no part of u.
        iteration: n ≥ 0, at most 2000.

    Returns:
        The bound, inf where there is none: gradient descent, RAdam while it does not divide.

    Raises:
        TypeError: no bound is known: the direction depends on the parameters, or is neither of the two.
        ValueError: the iteration is out of its range.

    Source: derivation of this project.

    >>> import adamflow as af
    >>> for optimizer in (af.adam(0.1), af.nadam(0.1), af.lion(0.1)):
    ...     print(round(direction_bound(optimizer, 20), 7))
    1.1698983
    1.3454134
    1.0
    """
    check_standard("direction_bound", optimizer, "no bound is known for such a record")
    n = check_count("iteration", iteration, low=0, high=LONGEST)
    bound = float("inf")
    for stage in optimizer.stages:
        known = stage.bound(n, bias_correction=optimizer.bias_correction)
        if known is not None:
            bound = float(known)
            continue
        alone = dataclasses.replace(optimizer, stages=(stage,), l2=None, clip_norm=None, clip_value=None)
        coefficients, form = _reading(alone, n)
        if form is None:
            bound = 0.0 if not coefficients.any() else bound * float(np.abs(coefficients).sum())
        else:
            bound = _quotient(coefficients, form)
    return bound


def spectral_bound(optimizer: Optimizer, shape: tuple[int, int], iteration: int) -> float:
    r"""An upper bound of the largest singular value of the direction of a matrix, over all sequences of gradients.

    For Muon it is $\sqrt{\max(1, \mathrm{outputs}/\mathrm{inputs})}$ times the maximum of the polynomial of Newton
    and Schulz over (0, 1], 1.2024 after five iterations: the curvatures, decays and gradients do not enter. Where each
    entry is treated by itself it is `direction_bound` times $\sqrt{\mathrm{rows} \cdot \mathrm{columns}}$, which the
    worst-case gradients attain in all entries at once.

    Args:
        optimizer: the record.
        shape: rows and columns.
        iteration: n ≥ 0, as in `direction_bound`; Muon's bound does not depend on it.

    Raises:
        TypeError: no bound is known: entries depend on each other in another way.
        ValueError: a number is out of its range.

    Source: derivation of this project.

    >>> import adamflow as af
    >>> print(round(spectral_bound(af.muon(0.02), (30, 30), 100), 4), spectral_bound(af.lion(0.1), (2, 8), 100))
    1.2024 4.0
    """
    check_standard("spectral_bound", optimizer, "no bound is known for such a record")
    if not isinstance(shape, tuple) or len(shape) != 2:
        raise ValueError(f"shape must be a pair of numbers of rows and columns, got {shape!r}")
    rows, columns = (check_count("shape", side) for side in shape)
    stage = optimizer.stages[-1]
    known = stage.spectral_bound((rows, columns))
    if known is not None:
        return float(known)
    if any(stage.mixes_entries for stage in optimizer.stages):
        raise TypeError(
            f"no bound is known for the singular values of {optimizer.name!r}: an entry of its direction depends on "
            "other entries"
        )
    return direction_bound(optimizer, iteration) * (rows * columns) ** 0.5


class _Reading(Optimizer):
    """A record whose ratio is its numerator, its denominator, 1 or 0."""

    reads: Literal["numerator", "square", "one", "zero"] = eqx.field(static=True, default="numerator")

    def ratio(self, numerator: Leaf, square: Leaf) -> Leaf:
        if self.reads == "numerator":
            return numerator
        if self.reads == "square":
            return jnp.broadcast_to(square, numerator.shape)
        return jnp.full_like(numerator, 1.0 if self.reads == "one" else 0.0)


@eqx.filter_jit
def _direction(optimizer: _Reading, inputs: jax.Array, params: jax.Array) -> jax.Array:
    """The direction after a sequence of inputs, of one parameter."""

    def consume(state: Any, row: Any) -> tuple[Any, None]:
        value, n = row
        direction, memory = optimizer.update(value, state[1], n, params)
        return (direction, memory), None

    start = (jnp.zeros_like(params), optimizer.initial_state(params))
    return jax.lax.scan(consume, start, (inputs, jnp.arange(inputs.size)))[0][0]


@eqx.filter_jit
def _derivatives(optimizer: _Reading, square: _Reading, inputs: jax.Array, params: jax.Array) -> tuple[Any, Any]:
    """The gradient of the direction by its inputs, and half of the Hessian of the square below it, both at 0."""
    nothing = jnp.zeros_like(inputs)
    gradient = jax.grad(lambda x: _direction(optimizer, x, params))(nothing)
    hessian = jax.hessian(lambda x: _direction(square, x, params))(nothing)
    return gradient, hessian / 2


def _reading(optimizer: Optimizer, n: int) -> tuple[np.ndarray, np.ndarray | None]:
    """c, and Q or `None` where the stage divides by nothing."""
    fields = {field.name: getattr(optimizer, field.name) for field in dataclasses.fields(Optimizer)}
    numerator, square, one, zero = (_Reading(**fields, reads=what) for what in ("numerator", "square", "one", "zero"))
    params = jnp.zeros((), optimizer.dtype)
    sample = jnp.asarray(np.random.default_rng(0).standard_normal(n + 1), params.dtype)
    nothing = jnp.zeros_like(sample)
    stage = optimizer.stages[0]
    if stage.uses_params:
        moved = _direction(numerator, sample, params + 1) - _direction(numerator, sample, params)
        _check(stage, "its direction depends on the parameters", abs(moved) <= _ROUNDING)
    values = [_direction(numerator, sample, params + 1 if stage.uses_params else params)]
    values += [_direction(record, x, params) for record in (one, zero) for x in (nothing, sample)]
    linear, factor, other_factor, offset, other_offset = (float(value) for value in values)
    divides = factor != offset or other_factor != other_offset
    c, form = _derivatives(numerator, square, sample, params)
    c, form, x = np.asarray(c, float), np.asarray(form, float), np.asarray(sample, float)
    scale = np.abs(c).sum() + np.finfo(float).tiny
    reason = "its direction is no quotient of a sum of its inputs by the root of a sum of their squares"
    _check(stage, reason, abs(c @ x - linear) <= _ROUNDING * scale)
    if not divides:
        return c, None
    _check(stage, reason, offset == other_offset == 0 and factor == other_factor)
    found = float(_direction(square, sample, params))
    _check(stage, reason, abs(x @ form @ x - found) <= _ROUNDING * abs(found))
    return c, form / factor


def _check(stage: AbstractStage, reason: str, holds: Any) -> None:
    if not bool(holds):
        raise TypeError(f"no bound is known for the direction of {type(stage).__name__}: {reason}")


def _quotient(c: np.ndarray, form: np.ndarray) -> float:
    """√(cᵀ Q⁻¹ c), in units in which the diagonal of Q is 1; inf where c has a part that Q does not see."""
    unit = np.sqrt(np.maximum(np.diag(form), np.finfo(float).tiny))
    values, vectors = np.linalg.eigh(form / unit[:, None] / unit)
    parts = vectors.T @ (c / unit)
    seen = values > values.max() * len(c) * np.finfo(float).eps
    if np.any(np.abs(parts[~seen]) > _ROUNDING * np.abs(parts).max()):
        return float("inf")
    return float(np.sqrt(np.sum(parts[seen] ** 2 / values[seen])))
