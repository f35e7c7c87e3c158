"""Parameters that do not move because the square of their gradient is too small for the arithmetic."""

import jax
import jax.numpy as jnp

from adamflow.optimizers import Optimizer
from adamflow.types import Filters, Params

#: What to do about it.
REMEDY = "Take float64, or multiply the loss by a large number."


def count_underflowed(optimizer: Optimizer, gradient: Params, filters: Filters) -> jax.Array:
    """The number of parameters whose second moment is 0 beside a gradient that is not, where ε = 0.

    Args:
        optimizer: of the run.
        gradient: at one iteration.
        filters: by stage, after they have consumed it.
    """
    squares = filters[0].get("second_moment")
    if squares is None:
        return jnp.zeros((), int)
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(squares), strict=True)
    counts = [jnp.sum((slope != 0) & (square == 0), dtype=int) for slope, square in pairs]
    return jnp.where(optimizer.epsilon == 0, jnp.stack(counts).sum(), 0)
