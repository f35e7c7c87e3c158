"""Logarithms for the parts of a state that cannot be negative, so that no step makes them so."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp


class LogCoordinates(eqx.Module):
    """The change of variables ℓ = ln v in the marked leaves of a state: ℓ' = v'/v.

    A value below the floor (a filter that has seen no gradient, or has forgotten it) counts as the floor.

    Attributes:
        marks: a pytree like the state of bools that say which leaves are followed by their logarithm.
    """

    marks: Any = eqx.field(static=True)

    @classmethod
    def of(cls, marks: Any) -> "LogCoordinates":
        """From a pytree of bools, one for each leaf of the state."""
        leaves, structure = jax.tree.flatten(marks)
        return cls((structure, tuple(leaves)))

    def encode(self, state: Any) -> Any:
        """The state with ln v in place of v."""
        return self._marked(lambda v: jnp.log(jnp.maximum(v, _floor(v.dtype))), state)

    def decode(self, state: Any) -> Any:
        """The state with v in place of ln v."""
        return self._marked(lambda log_v: jnp.exp(jnp.maximum(log_v, jnp.log(_floor(log_v.dtype)))), state)

    def rate(self, change: Any, state: Any) -> Any:
        """The derivative in these coordinates, from the derivative of the decoded state."""
        return self._marked(lambda slope, v: slope / v, change, state)

    def _marked(self, function: Any, *states: Any) -> Any:
        return jax.tree.map(
            lambda mark, *leaves: function(*leaves) if mark else leaves[0], jax.tree.unflatten(*self.marks), *states
        )


def _floor(dtype: Any) -> jax.Array:
    return jnp.asarray(1e-30 if dtype == jnp.float32 else 1e-150, dtype)
