"""A chain of weakly coupled coordinates: small, smooth, neither convex nor separable."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from adamflow.problems.numbers import array_size
from adamflow.problems.problem import Problem


class Chain(eqx.Module):
    """The loss ½ Σ Aᵢ θᵢ² + 0.1 Σ (θᵢ₊₁ − θᵢ²)²."""

    curvatures: Float[Array, " dimension"]

    def __call__(self, params: Float[Array, " dimension"]) -> Float[Array, ""]:
        bowl = 0.5 * jnp.sum(self.curvatures * params**2)
        return bowl + 0.1 * jnp.sum((params[1:] - params[:-1] ** 2) ** 2)


def chain(dimension: int) -> Problem:
    """The loss ½ Σ Aᵢ θᵢ² + 0.1 Σ (θᵢ₊₁ − θᵢ²)², with A and θ(0) evenly spaced.

    A runs from 0.5 to 5 and θ(0) from −0.7 to 1.3, ends included. The coupling is Rosenbrock's, each coordinate
    drawn to the square of the one before.

    Args:
        dimension: how many coordinates, at least 2.

    Returns:
        A problem whose parameters are one array of shape (dimension,).

    Raises:
        ValueError: dimension below 2 or not whole.

    Example:
        >>> import adamflow as af
        >>> problem = af.problems.chain(dimension=2)
        >>> round(float(problem.loss(problem.params)), 4)
        4.4131
    """
    dimension = array_size("dimension", dimension, low=2)
    start = jnp.linspace(-1.0, 1.0, dimension) + 0.3
    return Problem("chain", start, Chain(jnp.linspace(0.5, 5.0, dimension)))
