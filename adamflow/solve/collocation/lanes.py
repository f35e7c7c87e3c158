"""A loop that, in a batch, leaves lanes behind that have ended."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

#: Each time so many of the lanes have ended, the others go on among themselves, down to the smallest batch.
_SHRINK, _SMALLEST = 4, 16


def loop(
    unfinished: Callable[[Any, Any], jax.Array], advance: Callable[[Any, Any], Any], given: Any, carry: Any
) -> Any:
    """`jax.lax.while_loop(unfinished, advance, carry)`, both with `given` in front, any pytree.

    Under `jax.vmap` a while loop computes every lane until the slowest has ended. Here those that are left are gathered
    into a batch of a quarter of the size as soon as they fit into it, and so on.
    """
    arrays, rest = eqx.partition(given, eqx.is_array)

    def going(arrays: Any, carry: Any) -> jax.Array:
        return unfinished(eqx.combine(arrays, rest), carry)

    def ahead(arrays: Any, carry: Any) -> Any:
        return advance(eqx.combine(arrays, rest), carry)

    @jax.custom_batching.custom_vmap
    def run(arrays: Any, carry: Any) -> Any:
        return jax.lax.while_loop(lambda carry: going(arrays, carry), lambda carry: ahead(arrays, carry), carry)

    @run.def_vmap
    def run_lanes(count: int, batched: list, arrays: Any, carry: Any) -> tuple[Any, Any]:
        axes = jax.tree.map(lambda yes: 0 if yes else None, batched[0])

        def spread(leaf: Any, yes: bool) -> Any:
            return leaf if yes else jnp.broadcast_to(leaf, (count, *jnp.shape(leaf)))

        carry = jax.tree.map(spread, carry, batched[1])
        alive = jax.vmap(going, in_axes=(axes, 0))
        every = jax.vmap(ahead, in_axes=(axes, 0))
        size = count
        while True:
            smaller = size // _SHRINK if size // _SHRINK >= _SMALLEST else 0
            chosen = jnp.argsort(~alive(arrays, carry), stable=True)[:size]
            part = jax.tree.map(lambda leaf, yes, at=chosen: leaf[at] if yes else leaf, arrays, batched[0])
            lanes = _until(alive, every, part, jax.tree.map(lambda leaf, at=chosen: leaf[at], carry), smaller)
            carry = jax.tree.map(lambda leaf, lane, at=chosen: leaf.at[at].set(lane), carry, lanes)
            if smaller == 0:
                return carry, jax.tree.map(lambda _: True, carry)
            size = smaller

    return run(arrays, carry)


def _until(alive: Callable, every: Callable, given: Any, lanes: Any, most: int) -> Any:
    """Advance the lanes that are alive until at most so many are."""

    def advance(lanes: Any) -> Any:
        going = alive(given, lanes)

        def choose(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(going.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        return jax.tree.map(choose, every(given, lanes), lanes)

    return jax.lax.while_loop(lambda lanes: jnp.sum(alive(given, lanes)) > most, advance, lanes)
