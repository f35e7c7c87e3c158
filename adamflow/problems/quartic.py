"""A quadratic and a quartic, coupled: the smooth problem on which the orders of flows are measured."""

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from adamflow.problems.numbers import real_array, real_number
from adamflow.problems.problem import Problem
from adamflow.problems.quadratic import quadratic
from adamflow.types import Numbers


class Quartic(eqx.Module):
    """The loss ½ Σ cᵢ θᵢ² + ¼ Σ θᵢ⁴ + κ/2 (Σ θᵢ)²."""

    curvatures: Float[Array, " dimension"]
    coupling: Float[Array, ""]

    def __call__(self, params: Float[Array, " dimension"]) -> Float[Array, ""]:
        bowl = 0.5 * jnp.sum(self.curvatures * params**2) + 0.25 * jnp.sum(params**4)
        return bowl + 0.5 * self.coupling * jnp.sum(params) ** 2


def quartic(
    curvatures: Numbers | Sequence[float | int] = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0),
    start: Numbers | Sequence[float | int] | None = None,
    coupling: float = 0.05,
) -> Problem:
    """The loss ½ Σ cᵢ θᵢ² + ¼ Σ θᵢ⁴ + κ/2 (Σ θᵢ)²: its curvature changes along the way, and coordinates interact.

    Where c ≥ 0 and all θ are positive, so is the gradient. From the default start no coordinate of it crosses zero
    before t = ηn = 2, and flows of every order are as exact as their order says.

    Args:
        curvatures: c, one real per dimension.
        start: θ(0), as many reals as curvatures; `None` for equally spaced numbers from 2.5 to 3.4.
        coupling: κ.

    Returns:
        A problem whose parameters are one array of shape (dimension,).

    Raises:
        ValueError: curvatures not one-dimensional, empty or not finite; start of another shape or not finite; coupling
            not finite.

    Example:
        >>> import adamflow as af
        >>> problem = af.problems.quartic([2.0, 0.0], start=[1.0, 2.0], coupling=0.0)
        >>> float(problem.loss(problem.params))
        5.25
    """
    bowl = quadratic(curvatures, start)
    params = jnp.linspace(2.5, 3.4, bowl.params.size) if start is None else bowl.params
    return Problem("quartic", params, Quartic(real_array("curvatures", curvatures), real_number("coupling", coupling)))
