r"""How a discrete step turns unstable: by an oscillation of period 2, as at the edge of stability, or another way."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Complex, Float

from adamflow.analysis.stability.critical import critical_curvature
from adamflow.analysis.stability.linear import dominant_eigenvalue
from adamflow.analysis.stability.spectrum import jacobian_spectrum
from adamflow.checks import check_range, check_single, is_concrete
from adamflow.flows import InterpolatingState, TwoBranchState
from adamflow.optimizers import Optimizer
from adamflow.optimizers.record import Record
from adamflow.types import Loss, Scalar, State

#: An angle is that of period 2, or of none, if it is within this of π, or of 0.
_ANGLE = 1e-3


class Instability(Record):
    """The multipliers through which a step leaves stability; `print` says it in words.

    Attributes:
        multipliers: those on or outside of the unit circle, the largest modulus first, of a conjugate pair the one
            above the real axis; empty where the step is stable.
        curvature: the smallest η s of the preconditioned Hessian at which there is one; NaN for a state of a run.
        converged: whether the residual of each is small.
        rounding: a multiplier within this of 1 is 1 as far as its arithmetic and its residual can tell.
    """

    multipliers: Complex[np.ndarray, " found"]
    curvature: float
    converged: Bool[np.ndarray, " found"]
    rounding: float = 0.0

    @property
    def periods(self) -> Float[np.ndarray, " found"]:
        """2π/angle in iterations: 2 at the edge of stability; inf for growth without oscillation, as at a saddle."""
        angles = np.abs(np.angle(self.multipliers))
        return np.where(angles > _ANGLE, 2 * np.pi / np.where(angles > _ANGLE, angles, 1.0), np.inf)

    @property
    def has_complex_multipliers(self) -> bool:
        """Whether one of them is of a complex pair: an oscillation that no `TwoBranchFlow` models."""
        angles = np.abs(np.angle(self.multipliers))
        return bool(np.any((angles > _ANGLE) & (angles < np.pi - _ANGLE)))

    def __str__(self) -> str:
        if not self.multipliers.size:
            return "no multiplier is on or outside of the unit circle: the step is stable"
        rows = []
        for value, period, converged in zip(self.multipliers, self.periods, self.converged, strict=True):
            pair = abs(value.imag) > _ANGLE * abs(value)
            shown = f"{value.real:.6g} ± {abs(value.imag):.6g}i" if pair else f"{value.real:.6g}"
            growth = "neutral, 1 to rounding" if abs(value - 1) <= self.rounding else "growth without oscillation"
            kind = growth if np.isinf(period) else f"period {period:.4g}"
            rows.append(f"{shown}: {kind}{'' if converged else ', not converged'}")
        at = "" if np.isnan(self.curvature) else f" from ηs = {self.curvature:.6g} on"
        end = "; a period other than 2, so no TwoBranchFlow models it" if self.has_complex_multipliers else ""
        neutral = np.abs(self.multipliers - 1) <= self.rounding
        if neutral.all():
            return f"at the border of stability: {', '.join(rows)}; directions in which nothing pulls back"
        return f"leaves stability{at} by {', '.join(rows)}{end}"


def first_instability(optimizer: Optimizer) -> Instability:
    r"""The multiplier with which a record's step turns unstable as curvature rises, preconditioners held.

    At $s$ = `critical_curvature` the `dominant_eigenvalue` of the step is on the unit circle. For gradient descent,
    Adam, AdamW and RMSprop it is −1: the edge of stability, past which iterates oscillate with period 2 about a mean,
    and `TwoBranchFlow` follows that. Two filters of the first moment in a row, as in k-Adam with a slow γ, lag so far
    behind the gradient that a complex pair is first: iterates then turn about their mean with a longer period.

    Args:
        optimizer: a record, of which `critical_curvature` exists.

    Returns:
        An `Instability` with one multiplier, or none where no curvature is unstable.

    Raises:
        TypeError, ValueError: as in `critical_curvature`.

    Source: derivation of this project.

    >>> import adamflow as af
    >>> print(first_instability(af.adam(0.01, gamma=0.9)))
    leaves stability from ηs = 38 on by -1: period 2
    >>> print(first_instability(af.kadam(2, 0.01, gamma=0.9)))
    leaves stability from ηs = 1.3787 on by 0.881065 ± 0.472995i: period 12.76; a period other than 2, so no ...
    """
    curvature = critical_curvature(optimizer)
    if jnp.ndim(curvature) or not is_concrete(curvature):
        raise ValueError("first_instability takes one record with known numbers, not a batch, outside of jit and vmap")
    if not jnp.isfinite(curvature):
        return Instability(np.zeros(0, complex), float("nan"), np.zeros(0, bool))
    found = np.atleast_1d(np.asarray(dominant_eigenvalue(optimizer, curvature)))
    return Instability(found.astype(complex), float(curvature * optimizer.learning_rate), np.ones(1, bool))


def unstable_multipliers(
    optimizer: Optimizer,
    loss: Loss,
    state: State,
    *,
    iteration: Scalar,
    count: int = 8,
    margin: Scalar = 0.0,
    **options: Any,
) -> Instability:
    r"""The multipliers of one step on or outside of the unit circle, at a state of a run: in which way it is unstable.

    Args:
        optimizer: the record.
        loss: `loss(params)`.
        state: `Trajectory.final_state` of `af.iterate`, or of an `TwoBranchFlow` or `InterpolatingFlow`, whose mean is
            then looked at. The mean is the place to look: iterates past the edge are on a branch, where the curvature
            is another one.
        iteration: of that state.
        count: how many leading eigenvalues are computed.
        margin: those with a modulus of at least 1 − margin are returned.
        options: for `jacobian_spectrum`.

    Returns:
        An `Instability`. Eigenvalues slightly above 1, which slow directions of negative curvature have, are among
        them: "growth without oscillation". Multipliers that are 1 to rounding, of directions that the loss does not
        depend on, are "neutral". Where all `count` are outside, there may be more.

    Raises:
        TypeError, ValueError: as in `jacobian_spectrum`.

    Source: derivation of this project.

    >>> import adamflow as af
    >>> problem, optimizer = af.problems.quadratic([1.0, 21.0]), af.sgd(0.1)
    >>> run = af.iterate(optimizer, problem.loss, problem.params, 5)
    >>> print(unstable_multipliers(optimizer, problem.loss, run.final_state, iteration=5, count=2))
    leaves stability by -1.1: period 2
    """
    check_range("margin", check_single("margin", margin), 0, 1)
    if isinstance(state, TwoBranchState):
        state = state.mean
    if isinstance(state, InterpolatingState):
        state = state.params, state.optimizer_state
    found = jacobian_spectrum(optimizer, loss, state, iteration=iteration, count=count, **options)
    values, converged = np.asarray(found.values), np.asarray(found.converged)
    rounding = float(np.finfo(values.dtype).eps) ** 0.75
    kept = ((np.abs(values) >= 1 - margin) | (np.abs(values - 1) <= rounding)) & (np.imag(values) >= 0)
    return Instability(values[kept].astype(complex), float("nan"), converged[kept], rounding)
