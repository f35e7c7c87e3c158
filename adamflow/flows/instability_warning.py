"""Records whose steps turn unstable by a rotation, which no oscillation of period 2 can stand for."""

import sys
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from adamflow.checks import is_concrete
from adamflow.optimizers import Optimizer
from adamflow.optimizers.linearization import at_rest, jacobian, step_system, without_bias

#: Beyond 1 by so many units of rounding a modulus is larger than 1.
_ROUNDING = 1e3
#: Where ηs is looked at, and how closely: so many samples in a decade.
_SMALLEST, _LARGEST, _PER_DECADE = 1e-9, 1e9, 100
#: Packages whose frames stand between a user's line and the warning.
_OURS = ("adamflow", "equinox", "jaxtyping", "beartype")


def warn_of_rotation(optimizer: Optimizer) -> None:
    """Warn if, as the curvature s rises, complex multipliers leave the unit circle before −1 is a multiplier.

    The gradient enters a step once, so that det(J(s) + 1) is linear in s; −1 is a multiplier at its zero, if it has
    one. Samples of s up to there say whether others are outside before. A batch of records, traced numbers and a record
    whose step has no limit after infinitely many iterations are not looked at.
    """
    if optimizer.recipe(clipping=False):
        # Where −1 is a multiplier is then a question of the iteration and of the leaf.
        return
    numbers = jax.tree.leaves(eqx.filter(optimizer, eqx.is_array_like))
    if not is_concrete(numbers) or any(jnp.ndim(leaf) for leaf in numbers):
        return
    try:
        # A record whose numbers are known may be made while something else is traced.
        with jax.ensure_compile_time_eval():
            at_zero, at_unit = np.asarray(_steps(optimizer, jnp.array([0.0, 1.0])), float)
    except Exception:
        # Its decays are functions that infinity is no argument of: whether it rotates is not known, and no failure.
        return
    first, second = (np.linalg.det(matrix + np.eye(len(matrix))) for matrix in (at_zero, at_unit))
    rounding = _ROUNDING * float(jnp.finfo(optimizer.dtype).eps)
    if not (np.isfinite(at_unit).all() and first > 0):
        return
    edge = first / (first - second) if first - second > rounding * first else np.inf
    log_range = np.log10(_SMALLEST), np.log10(min(edge, _LARGEST))
    curvatures = np.logspace(*log_range, int(_PER_DECADE * (log_range[1] - log_range[0])), endpoint=False)
    values = np.linalg.eigvals(at_zero + curvatures[:, None, None] * (at_unit - at_zero))
    outside = (np.abs(values) > 1 + rounding) & (values.imag > rounding)
    if outside.any():
        place = int(np.argmax(outside.any(axis=1)))
        (pair,) = values[place][outside[place]][:1]
        # The line that made the flow: the nearest one outside of this package and of what calls its functions.
        level, frame = 1, sys._getframe()
        while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _OURS:
            level, frame = level + 1, frame.f_back
        ahead = f"before -1 is one, at ηs = {edge:.3g}" if np.isfinite(edge) else "and -1 never is one"
        warnings.warn(
            f"{optimizer.name!r} leaves stability by a rotation: from about ηs = {curvatures[place]:.3g} on a complex "
            f"pair of multipliers of its step, of period {2 * np.pi / np.angle(pair):.3g}, is outside of the unit "
            f"circle, {ahead}. From there on the iterates turn about a mean, and a TwoBranchFlow follows that mean as "
            "if they did not; see af.analysis.first_instability(optimizer).",
            UserWarning,
            stacklevel=level,
        )


@eqx.filter_jit
def _steps(optimizer: Optimizer, curvatures: jax.Array) -> jax.Array:
    """The matrices of the step at some ηs."""
    record = without_bias(optimizer)
    return jax.vmap(lambda s: jacobian(*at_rest(record, s / record.learning_rate, step_system)))(curvatures)
