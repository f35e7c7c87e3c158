"""A loop that, in a batch, replaces elements that have ended by others."""

import functools
import itertools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from adamflow.runs.progress import report_share

#: Of one element, from constants and carry: the number of a bar, and the share of the work that is done.
Report = Callable[[Any, Any], tuple[jax.Array, jax.Array]]

#: On CPUs so many elements are advanced together: at most, at least, and as many as have so many bytes, for the caches.
_MAX_WIDTH = 64
_MIN_WIDTH = 8
_CACHE_BYTES = 2**21
#: On accelerators: this share of them, at least and at most so many; measured on an H200 (docs/how-to/gpu.md).
_ACCELERATOR_DIVISOR = 8
_MIN_ACCELERATOR_WIDTH = 1024
_MAX_ACCELERATOR_WIDTH = 16_384
#: Once none waits and the active elements are such a fraction of the width, they continue in a smaller batch, down to
#: so many. Each width is compiled by itself, which takes longer for accelerators.
_SHRINK_FACTOR = 4
_MIN_SHRUNK_WIDTH = 16
_ACCELERATOR_SHRINK_FACTOR = 8
_MIN_SHRUNK_ACCELERATOR_WIDTH = 64
#: As long as some wait, they replace those that have ended when this share has.
_REFILL_DIVISOR = 8


def compacting_while_loop(
    condition: Callable[[Any, Any], jax.Array],
    body: Callable[[Any, Any], Any],
    constants: Any,
    carry: Any,
    report: Report | None = None,
) -> Any:
    """`jax.lax.while_loop(condition, body, carry)`, both with `constants` in front, any pytree.

    Under `jax.vmap` a while loop computes every element until the slowest has ended. Here elements that have ended are
    replaced by others that wait. When none waits, those that are left are gathered into a smaller batch as soon as they
    fit into it, and so on. Nested `jax.vmap`s are one batch. With `report` a bar shows how far the slowest element is.
    """
    arrays, rest = eqx.partition(constants, eqx.is_array)

    def is_going(arrays: Any, carry: Any) -> jax.Array:
        return condition(eqx.combine(arrays, rest), carry)

    def advance(arrays: Any, carry: Any) -> Any:
        return body(eqx.combine(arrays, rest), carry)

    def share_of(arrays: Any, carry: Any) -> tuple[jax.Array, jax.Array]:
        assert report is not None
        return report(eqx.combine(arrays, rest), carry)

    @jax.custom_batching.custom_vmap
    def run(arrays: Any, carry: Any) -> Any:
        report_alone = None if report is None else functools.partial(share_of, arrays)
        return _reporting_while_loop(
            functools.partial(is_going, arrays), functools.partial(advance, arrays), carry, report_alone
        )

    @run.def_vmap
    def run_batch(count: int, batched: list, arrays: Any, carry: Any) -> tuple[Any, Any]:
        if count == 1:
            # A single element is compiled in half the time without a batch around it.
            alone = jax.tree.map(lambda leaf, yes: leaf[0] if yes else leaf, (arrays, carry), tuple(batched))
            return jax.tree.map(lambda leaf: leaf[None], run(*alone)), jax.tree.map(lambda _: True, carry)
        carry = jax.tree.map(lambda leaf, yes: leaf if yes else _broadcast_to_batch(leaf, count), carry, batched[1])
        loop = _batched(is_going, advance, None if report is None else share_of, batched[0], count)
        return loop(arrays, carry), jax.tree.map(lambda _: True, carry)

    return run(arrays, carry)


def _batched(
    is_going: Callable[[Any, Any], jax.Array],
    advance: Callable[[Any, Any], Any],
    report: Report | None,
    is_batched: Any,
    count: int,
) -> Callable:
    """The loop of `count` elements; `is_batched` says which arrays have a value for each."""

    @jax.custom_batching.custom_vmap
    def run(arrays: Any, carry: Any) -> Any:
        axes = jax.tree.map(lambda yes: 0 if yes else None, is_batched)
        is_active = jax.vmap(is_going, in_axes=(axes, 0))
        advance_batch = jax.vmap(advance, in_axes=(axes, 0))
        report_batch = None if report is None else jax.vmap(report, in_axes=(axes, 0))

        def constants_of(elements: jax.Array) -> Any:
            return jax.tree.map(lambda leaf, yes: leaf[elements] if yes else leaf, arrays, is_batched)

        for width, next_width in itertools.pairwise((*batch_widths(carry, count), 0)):
            batch = BatchedLoop(is_active, advance_batch, report_batch, constants_of, width, next_width)
            carry = _run_until_small(batch, is_active(arrays, carry), carry)
        return carry

    @run.def_vmap
    def run_batches(outer: int, batched: list, arrays: Any, carry: Any) -> tuple[Any, Any]:
        def flat(leaf: Any, each: bool, yes: bool) -> Any:
            if not (each or yes):
                return leaf
            leaf = leaf if yes else _broadcast_to_batch(leaf, outer)
            leaf = leaf if each else jnp.repeat(leaf[:, None], count, axis=1)
            return leaf.reshape(outer * count, *leaf.shape[2:])

        arrays = jax.tree.map(flat, arrays, is_batched, batched[0])
        carry = jax.tree.map(lambda leaf, yes: flat(leaf, True, yes), carry, batched[1])
        is_batched_now = jax.tree.map(operator.or_, is_batched, batched[0])
        ended = _batched(is_going, advance, report, is_batched_now, outer * count)(arrays, carry)
        ended = jax.tree.map(lambda leaf: leaf.reshape(outer, count, *leaf.shape[1:]), ended)
        return ended, jax.tree.map(lambda _: True, ended)

    return run


def batch_widths(carry: Any, count: int) -> tuple[int, ...]:
    """How many of so many elements to advance together, at first and as fewer are left."""
    if count == 0:
        return ()
    if _platform() == "cpu":
        copied = [leaf for leaf in jax.tree.leaves(carry, is_leaf=_is_rows) if not _is_rows(leaf)]
        element = sum(leaf.size * leaf.dtype.itemsize for leaf in copied) / count
        wanted = max(_MIN_WIDTH, min(_MAX_WIDTH, int(_CACHE_BYTES / element)))
        factor, least = _SHRINK_FACTOR, _MIN_SHRUNK_WIDTH
    else:
        wanted = max(_MIN_ACCELERATOR_WIDTH, min(_MAX_ACCELERATOR_WIDTH, count // _ACCELERATOR_DIVISOR))
        factor, least = _ACCELERATOR_SHRINK_FACTOR, _MIN_SHRUNK_ACCELERATOR_WIDTH
    widths = [min(count, wanted)]
    while widths[-1] // factor >= least:
        widths.append(widths[-1] // factor)
    return tuple(widths)


def _platform() -> str:
    """Where a program runs unless its arguments are elsewhere: `jax.default_device`, or the first of the backends."""
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform


def _broadcast_to_batch(leaf: Any, count: int) -> Any:
    return jnp.broadcast_to(leaf, (count, *jnp.shape(leaf)))


class Rows(NamedTuple):
    """A part of a carry that is only written to: it is updated where it is, and need not fit into the caches.

    An element that has ended is advanced beside the others, from the same state each time, and all of it is discarded
    but this. It may write what a later iteration from that state will overwrite, and nothing once there is none.
    """

    rows: Any


class BatchedLoop(NamedTuple):
    """A loop over a part of the elements of a batch.

    Attributes:
        is_active: which elements have not ended.
        advance_batch: one iteration of each.
        report_batch: the number of a bar and the share that is done of each, if that is shown.
        constants_of: the constants of the elements with these indices.
        width: how many are advanced together.
        next_width: the loop ends when no more are left.
    """

    is_active: Callable[[Any, Any], jax.Array]
    advance_batch: Callable[[Any, Any], Any]
    report_batch: Report | None
    constants_of: Callable[[jax.Array], Any]
    width: int
    next_width: int


def _run_until_small(batch: BatchedLoop, is_going: jax.Array, carry: Any) -> Any:
    """Advance the active elements until none of them waits and at most `next_width` are left."""
    order = jnp.argsort(~is_going, stable=True)
    count = jnp.sum(is_going)

    def should_continue(state: tuple) -> jax.Array:
        _, _, _, started_count, remaining_count = state
        return (started_count < count) | (remaining_count > batch.next_width)

    def advance_some(state: tuple) -> tuple:
        carry, active_indices, elements, started_count, _ = state
        constants = batch.constants_of(active_indices)
        refill_at = batch.width - max(batch.width // _REFILL_DIVISOR, 1)
        max_active = jnp.where(started_count < count, refill_at, batch.next_width)
        elements = _run_until_few_active(batch, constants, elements, max_active, started_count < count)
        carry = jax.tree.map(lambda leaf, element: leaf.at[active_indices].set(element), carry, elements)
        is_active = batch.is_active(constants, elements)
        waiting = started_count + jnp.cumsum(~is_active) - 1
        is_refilled = ~is_active & (waiting < count)
        active_indices = jnp.where(is_refilled, order[jnp.minimum(waiting, order.size - 1)], active_indices)
        started_count = started_count + jnp.sum(is_refilled)
        remaining_count = jnp.sum(is_active | is_refilled)
        return carry, active_indices, _gather(carry, active_indices), started_count, remaining_count

    active_indices = order[: batch.width]
    started_count = jnp.minimum(count, batch.width)
    start = (carry, active_indices, _gather(carry, active_indices), started_count, started_count)
    return jax.lax.while_loop(should_continue, advance_some, start)[0]


def _run_until_few_active(
    batch: BatchedLoop, constants: Any, elements: Any, max_active: jax.Array, some_wait: jax.Array
) -> Any:
    """Advance the active elements until at most so many are."""

    def advance(elements: Any) -> Any:
        is_active = batch.is_active(constants, elements)

        def choose(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(is_active.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        new = batch.advance_batch(constants, elements)
        return jax.tree.map(lambda a, b: a if _is_rows(a) else choose(a, b), new, elements, is_leaf=_is_rows)

    def should_continue(elements: Any) -> jax.Array:
        return jnp.sum(batch.is_active(constants, elements)) > max_active

    def slowest(elements: Any) -> tuple[jax.Array, jax.Array]:
        assert batch.report_batch is not None
        numbers, shares = batch.report_batch(constants, elements)
        share = jnp.min(jnp.where(batch.is_active(constants, elements), shares, 1.0))
        return jnp.max(numbers), jnp.where(some_wait, 0.0, share)

    return _reporting_while_loop(should_continue, advance, elements, None if batch.report_batch is None else slowest)


def _reporting_while_loop(
    condition: Callable[[Any], jax.Array],
    body: Callable[[Any], Any],
    carry: Any,
    report: Callable[[Any], tuple[jax.Array, jax.Array]] | None,
) -> Any:
    """`jax.lax.while_loop`, which moves a bar to what `report` says of the carry: its number, and the share done."""
    if report is None:
        return jax.lax.while_loop(condition, body, carry)

    def advance_and_report(state: tuple) -> tuple:
        carry = body(state[0])
        number, share = report(carry)
        return carry, report_share(number, state[1], share)

    start = carry, jnp.zeros_like(report(carry)[1])
    return jax.lax.while_loop(lambda state: condition(state[0]), advance_and_report, start)[0]


def _is_rows(part: Any) -> bool:
    return isinstance(part, Rows)


def _gather(elements: Any, indices: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[indices], elements)
