"""A quadratic with diagonal Hessian."""

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from adamflow.problems.numbers import real_array
from adamflow.problems.problem import Problem
from adamflow.types import Numbers


class Quadratic(eqx.Module):
    """The loss ½ Σ cᵢ θᵢ²."""

    curvatures: Float[Array, " dimension"]

    def __call__(self, params: Float[Array, " dimension"]) -> Float[Array, ""]:
        return 0.5 * jnp.sum(self.curvatures * params**2)


def quadratic(
    curvatures: Numbers | Sequence[float | int], start: Numbers | Sequence[float | int] | None = None
) -> Problem:
    """The loss ½ Σ cᵢ θᵢ² with θ(0) = `start`; its Hessian is diag(c).

    Args:
        curvatures: c, one real per dimension; a negative one makes θ = 0 a saddle.
        start: θ(0), as many reals as curvatures; `None` for ones.

    Returns:
        A problem whose parameters are one array of shape (dimension,).

    Raises:
        ValueError: curvatures not one-dimensional, empty or not finite; start of another shape or not finite.

    Example:
        >>> import adamflow as af
        >>> problem = af.problems.quadratic([2.0, -1.0], start=[1.0, 2.0])
        >>> float(problem.loss(problem.params))
        -1.0
    """
    c = real_array("curvatures", curvatures)
    if c.ndim != 1 or c.size == 0:
        raise ValueError(f"curvatures must be a 1-D array with one number per dimension, got shape {c.shape}")
    params = jnp.ones_like(c) if start is None else real_array("start", start)
    if params.shape != c.shape:
        raise ValueError(f"start must have one number per curvature, shape {c.shape}, got shape {params.shape}")
    return Problem("quadratic", params, Quadratic(c))
