"""A loop that, in a batch, gives the places of lanes that have ended to others."""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

#: On CPUs so many lanes are under way at once: at most, at least, and as many as have this many bytes, for the caches.
_WIDEST, _NARROWEST, _CACHED = 64, 8, 2**21
#: Once none waits and so many of the lanes under way have ended, the others go on among themselves, down to the fewest.
_SHRINK, _SMALLEST = 4, 16
#: As long as some wait, they take the places of those that have ended when this share has.
_REFILL = 8


def loop(
    unfinished: Callable[[Any, Any], jax.Array], advance: Callable[[Any, Any], Any], given: Any, carry: Any
) -> Any:
    """`jax.lax.while_loop(unfinished, advance, carry)`, both with `given` in front, any pytree.

    Under `jax.vmap` a while loop computes every lane until the slowest has ended. Here lanes that have ended give their
    places to others that wait. When none waits, those that are left are gathered into a batch of a quarter of the size
    as soon as they fit into it, and so on. Lanes of nested `jax.vmap`s are those of one.
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
        if count == 1:
            # A single lane is compiled in half the time without a batch around it.
            alone = jax.tree.map(lambda leaf, yes: leaf[0] if yes else leaf, (arrays, carry), tuple(batched))
            return jax.tree.map(lambda leaf: leaf[None], run(*alone)), jax.tree.map(lambda _: True, carry)
        carry = jax.tree.map(lambda leaf, yes: leaf if yes else _repeated(leaf, count), carry, batched[1])
        return _lanes(going, ahead, batched[0], count)(arrays, carry), jax.tree.map(lambda _: True, carry)

    return run(arrays, carry)


def _lanes(going: Callable[[Any, Any], jax.Array], ahead: Callable[[Any, Any], Any], own: Any, count: int) -> Callable:
    """The loop of `count` lanes; `own` says which arrays have a value for each. A batch of batches is a larger one."""

    @jax.custom_batching.custom_vmap
    def run(arrays: Any, carry: Any) -> Any:
        axes = jax.tree.map(lambda yes: 0 if yes else None, own)
        alive = jax.vmap(going, in_axes=(axes, 0))
        every = jax.vmap(ahead, in_axes=(axes, 0))

        def of(lanes: jax.Array) -> Any:
            return jax.tree.map(lambda leaf, yes: leaf[lanes] if yes else leaf, arrays, own)

        size = _under_way(carry, count)
        while size:
            smaller = size // _SHRINK if size // _SHRINK >= _SMALLEST else 0
            carry = _through(Batch(alive, every, of, size, smaller), alive(arrays, carry), carry)
            size = smaller
        return carry

    @run.def_vmap
    def run_batches(outer: int, batched: list, arrays: Any, carry: Any) -> tuple[Any, Any]:
        def flat(leaf: Any, each: bool, yes: bool) -> Any:
            if not (each or yes):
                return leaf
            leaf = leaf if yes else _repeated(leaf, outer)
            leaf = leaf if each else jnp.repeat(leaf[:, None], count, axis=1)
            return leaf.reshape(outer * count, *leaf.shape[2:])

        arrays = jax.tree.map(flat, arrays, own, batched[0])
        carry = jax.tree.map(lambda leaf, yes: flat(leaf, True, yes), carry, batched[1])
        ended = _lanes(going, ahead, jax.tree.map(operator.or_, own, batched[0]), outer * count)(arrays, carry)
        ended = jax.tree.map(lambda leaf: leaf.reshape(outer, count, *leaf.shape[1:]), ended)
        return ended, jax.tree.map(lambda _: True, ended)

    return run


def _under_way(carry: Any, count: int) -> int:
    """How many of so many lanes to advance together."""
    if count == 0 or jax.default_backend() != "cpu":
        return count
    lane = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(carry)) / count
    return min(count, max(_NARROWEST, min(_WIDEST, int(_CACHED / lane))))


def _repeated(leaf: Any, count: int) -> Any:
    return jnp.broadcast_to(leaf, (count, *jnp.shape(leaf)))


class Batch(NamedTuple):
    """A batch of lanes: which of them are alive, their advance, the arrays of some, its size, and when it ends."""

    alive: Callable[[Any, Any], jax.Array]
    every: Callable[[Any, Any], Any]
    of: Callable[[jax.Array], Any]
    size: int
    smaller: int


def _through(batch: Batch, going: jax.Array, carry: Any) -> Any:
    """Advance the lanes that are going until none of them waits and at most `smaller` are left."""
    order, count = jnp.argsort(~going, stable=True), jnp.sum(going)

    def unfinished(state: tuple) -> jax.Array:
        _, _, _, begun, left = state
        return (begun < count) | (left > batch.smaller)

    def go_on(state: tuple) -> tuple:
        carry, chosen, lanes, begun, _ = state
        given = batch.of(chosen)
        most = jnp.where(begun < count, batch.size - max(batch.size // _REFILL, 1), batch.smaller)
        lanes = _until(batch, given, lanes, most)
        carry = jax.tree.map(lambda leaf, lane: leaf.at[chosen].set(lane), carry, lanes)
        alive = batch.alive(given, lanes)
        place = begun + jnp.cumsum(~alive) - 1
        taken = ~alive & (place < count)
        chosen = jnp.where(taken, order[jnp.minimum(place, order.size - 1)], chosen)
        return carry, chosen, _at(carry, chosen), begun + jnp.sum(taken), jnp.sum(alive | taken)

    chosen, begun = order[: batch.size], jnp.minimum(count, batch.size)
    return jax.lax.while_loop(unfinished, go_on, (carry, chosen, _at(carry, chosen), begun, begun))[0]


def _until(batch: Batch, given: Any, lanes: Any, most: jax.Array) -> Any:
    """Advance the lanes that are alive until at most so many are."""

    def advance(lanes: Any) -> Any:
        going = batch.alive(given, lanes)

        def choose(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(going.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        return jax.tree.map(choose, batch.every(given, lanes), lanes)

    return jax.lax.while_loop(lambda lanes: jnp.sum(batch.alive(given, lanes)) > most, advance, lanes)


def _at(lanes: Any, places: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[places], lanes)
