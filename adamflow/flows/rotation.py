"""Records whose steps turn unstable by a rotation, which no oscillation of period 2 can stand for."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from adamflow.checks import is_concrete
from adamflow.optimizers import Optimizer
from adamflow.optimizers.at_rest import at_rest, jacobian, step_system, without_bias

#: Beyond 1 by so much a modulus is no rounding of the record's numbers.
_ROUNDING = 1e3
#: Of the curvature, from this share of the edge of −1 up to it.
_SAMPLES, _SMALLEST = 1000, 1e-4


def warn_of_rotation(optimizer: Optimizer) -> None:
    """Warn if complex multipliers leave the unit circle at a smaller curvature than that at which −1 is a multiplier.

    The gradient enters a step once, so that det(J(s) + 1) is linear in the curvature s, and its zero is where −1 is a
    multiplier. Whether others are outside before is looked for on samples of s. A batch of records and traced numbers
    are not looked at, nor is a record without such a zero, as sign descent.
    """
    if not is_concrete(optimizer) or any(jnp.ndim(leaf) for leaf in jax.tree.leaves(optimizer)):
        return
    # A record whose numbers are known may be made while something else is traced.
    with jax.ensure_compile_time_eval():
        at_zero, at_unit = np.asarray(_steps(optimizer, jnp.array([0.0, 1.0])), float)
    first, second = (np.linalg.det(matrix + np.eye(len(matrix))) for matrix in (at_zero, at_unit))
    if not first > second:
        return
    edge = first / (first - second)
    curvatures = edge * np.geomspace(_SMALLEST, 1, _SAMPLES, endpoint=False)
    values = np.linalg.eigvals(at_zero + curvatures[:, None, None] * (at_unit - at_zero))
    rounding = _ROUNDING * float(jnp.finfo(jnp.result_type(optimizer.learning_rate)).eps)
    outside = (np.abs(values) > 1 + rounding) & (values.imag > rounding)
    if outside.any():
        place = int(np.argmax(outside.any(axis=1)))
        (pair,) = values[place][outside[place]][:1]
        warnings.warn(
            f"{optimizer.name!r} leaves stability by a rotation: from ηs = {curvatures[place]:.3g} on a complex pair "
            f"of multipliers, of period {2 * np.pi / np.angle(pair):.3g}, is outside of the unit circle, and "
            f"-1 is a multiplier only from ηs = {edge:.3g} on. Past that edge the iterates turn about a mean, and an "
            "EdgeFlow follows that mean as if they did not; see af.analysis.edge_crossing(optimizer).",
            UserWarning,
            stacklevel=2,
        )


@eqx.filter_jit
def _steps(optimizer: Optimizer, curvatures: jax.Array) -> jax.Array:
    """The matrices of the step at some ηs."""
    record = without_bias(optimizer)
    return jax.vmap(lambda s: jacobian(*at_rest(record, s / record.learning_rate, step_system)))(curvatures)
