"""A power of one variable: the simplest loss whose curvature changes on the way."""

import equinox as eqx
from jaxtyping import Array, Float

from adamflow.problems.numbers import array_size, real_number
from adamflow.problems.problem import Problem
from adamflow.types import Scalar


class Monomial(eqx.Module):
    """The loss xᵏ / k."""

    power: int = eqx.field(static=True)

    def __call__(self, params: Float[Array, ""]) -> Float[Array, ""]:
        return params**self.power / self.power


def monomial(power: int, start: Scalar = 1.0) -> Problem:
    """The loss xᵏ / k in one dimension, with x(0) = `start`; its gradient is xᵏ⁻¹.

    Args:
        power: k, at least 1 and below 2³¹. An odd power is used as it is, so the loss has no minimum: it falls without
            bound as x goes to minus infinity.
        start: x(0), any real number.

    Returns:
        A problem whose parameters are one array of shape ().

    Raises:
        ValueError: power out of range or not whole; start not one finite number.

    Example:
        >>> import adamflow as af
        >>> problem = af.problems.monomial(power=4, start=2.0)
        >>> float(problem.loss(problem.params))
        4.0
    """
    power = array_size("power", power)
    return Problem("monomial", real_number("start", start), Monomial(power))
