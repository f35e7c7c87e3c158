"""Has a step, or a vector field, a derivative at this state?"""

import dataclasses
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from adamflow.checks import is_concrete
from adamflow.optimizers import Optimizer, OptimizerState
from adamflow.programs import program
from adamflow.types import Filters, Leaf, Loss, Params

#: What to say where a map `lacks_derivative`.
NOT_DIFFERENTIABLE = "not differentiable where v = 0; use epsilon > 0 (sign descent: where a gradient is 0)"

Flat: TypeAlias = Float[Array, "size"]


class _Marked(Optimizer):
    """A record with NaN as its ratio where the denominator is 0."""

    def ratio(self, numerator: Leaf, square: Leaf) -> Leaf:
        nothing = super().ratio(jnp.ones_like(square), square) == 0
        return jnp.where(nothing, jnp.nan, super().ratio(numerator, square))


def lacks_derivative(
    optimizer: Optimizer, loss: Loss, params: Params, memory: OptimizerState | Filters, iteration: Any
) -> Any:
    """Whether a step with this memory, or a flow with these filters, divides by 0 where the gradient is not 0 for ever.

    The direction is 0 there by convention, as is its derivative, while beside that point it is of size 1. A coordinate
    whose gradient vanishes at the point and at a random one close by (a pixel that is always dark) does no harm.
    """
    signs = optimizer.stages[-1].takes_signs
    if is_concrete(optimizer.epsilon) and np.all(optimizer.epsilon > 0) and not signs:
        return False
    return _lacks_derivative(optimizer, loss, params, memory, jnp.asarray(iteration), signs)


@program
def _lacks_derivative(
    optimizer: Optimizer, loss: Loss, params: Params, memory: Any, iteration: Array, signs: bool
) -> Bool[Array, ""]:
    flat, unravel = ravel_pytree(params)
    noise = jax.random.normal(jax.random.key(0), flat.shape, flat.dtype) * jnp.finfo(flat.dtype).eps ** 0.5
    rates = optimizer.at(iteration).learning_rates(params)
    rates = ravel_pytree(jax.tree.map(lambda leaf, rate: jnp.full_like(leaf, rate), params, rates))[0]
    near = unravel(flat + noise * (jnp.abs(flat) + rates))
    gradients = [jax.grad(loss)(place) for place in (params, near)]
    marked = _Marked(**{field.name: getattr(optimizer, field.name) for field in dataclasses.fields(Optimizer)})

    def direction(record: Optimizer) -> Flat:
        if isinstance(memory, OptimizerState):
            found = record.consume(jax.grad(loss), gradients[0], memory, iteration, params)
        else:
            found = record.direction_and_targets(gradients[0], memory, iteration, params)
        return ravel_pytree(found[0])[0]

    plain, other = direction(optimizer), direction(marked)
    missing = (plain == 0) if signs else jnp.isnan(other) & ~jnp.isnan(plain)
    here, there = (ravel_pytree(gradient)[0] != 0 for gradient in gradients)
    return jnp.any(missing & (here | there))
