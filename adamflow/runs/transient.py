"""The first iterations of a run of a flow, made by the optimizer itself where the flow is rough.

Flows of order 2 and more differentiate the direction along the path. While filters forget their initial values and v is
the average of few gradients, m/√v varies fast where a coordinate of the gradient crosses zero: solvers then need tiny
steps or stall, and the flow is least accurate. After some iterations it is smooth.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from adamflow.checks import is_concrete
from adamflow.flows import AbstractFlow, Snapshot, Start, StartLike
from adamflow.losses import scalar_loss
from adamflow.optimizers import OptimizerState
from adamflow.programs import program
from adamflow.runs.trajectory import largest
from adamflow.runs.underflow import count_underflowed
from adamflow.types import Loss, Params


class FirstIterations(NamedTuple):
    """What the optimizer did in the first iterations of a run of a flow.

    Attributes:
        is_kept: whether the flow starts behind these iterations; otherwise it starts at 0.
        first: the iteration at which the flow starts.
        params: θ behind these iterations.
        memory: of the optimizer, before the gradient there.
        rows: what is saved at the whole iterations up to the last one of these, with a leading axis of time.
        finite: whether the loss is finite at each.
        gradient_evaluations: what they cost.
    """

    is_kept: Bool[Array, ""]
    first: jax.Array
    params: Params
    memory: OptimizerState
    rows: Any
    finite: Bool[Array, " saved"]
    gradient_evaluations: int


def transient_length(flow: AbstractFlow, start: Any, saved: np.ndarray, steps: int) -> int:
    """How many first iterations of a run the optimizer makes; 0 for none.

    Args:
        flow: the vector field, which knows how long it is rough.
        start: what the user gave: "auto", a number of iterations, or a start that leaves nothing to decide.
        saved: the iterations to save. Those that are not whole only the flow has, so it starts before the first.
        steps: the last iteration; at most half of a run is left to the optimizer.
    """
    if start is None or isinstance(start, tuple):
        return 0
    if start != "auto":
        return int(start)
    fractional = saved[saved != np.round(saved)]
    first_fractional = int(fractional[0]) if fractional.size else steps
    return min(flow.transient_iterations, first_fractional, steps // 2)


def make_first_iterations(
    flow: AbstractFlow,
    loss: Loss,
    params: Params,
    count: int,
    saved: np.ndarray,
    observe: Callable[[Snapshot], Any] | None,
    keeps_always: bool,
) -> FirstIterations:
    """Run the optimizer of a flow for `count` iterations, and decide whether the flow starts behind them.

    It does if a coordinate of the gradient changes its sign within them; otherwise they are as good in the flow.

    Args:
        flow: the vector field.
        loss: of the run.
        params: θ(0).
        count: the number of iterations.
        saved: the iterations to save in the whole run.
        observe: what is saved of them, by default the parameters.
        keeps_always: whether the flow starts behind them in any case.
    """
    early = jnp.asarray(saved[saved <= count].astype(int))
    settings = (flow.optimizer, loss, params, observe)
    end, is_kept, first = _first_iterations(settings, count, early, keeps_always)
    return FirstIterations(is_kept, first, end.params, end.memory, end.rows, end.rows_are_finite, count + 1)


class _Carry(NamedTuple):
    params: Params
    memory: OptimizerState
    gradient: Params
    has_sign_change: jax.Array
    is_finite: jax.Array
    rows: Any
    rows_are_finite: jax.Array


@program
def _first_iterations(settings: tuple, count: int, saved: jax.Array, keeps_always: bool) -> tuple[_Carry, Any, Any]:
    optimizer, loss, params, observe = settings
    memory = optimizer.initial_state(params)

    def evaluate(params: Params, memory: OptimizerState, n: jax.Array) -> tuple[Snapshot, OptimizerState]:
        def value_of(params: Params) -> Any:
            return scalar_loss(loss, params)

        value, gradient = jax.value_and_grad(value_of)(params)
        direction, memory = optimizer.consume(jax.grad(value_of), gradient, memory, n, params)
        time = n.astype(jnp.result_type(*jax.tree.leaves(params)))
        return Snapshot(time, params, gradient, direction, memory.filters, value), memory

    def row_of(snapshot: Snapshot) -> Any:
        return snapshot.params if observe is None else jax.tree.map(jnp.asarray, observe(snapshot))

    def iteration(carry: _Carry, n: jax.Array) -> tuple[_Carry, None]:
        snapshot, memory = evaluate(carry.params, carry.memory, n)
        rows, rows_are_finite = carry.rows, carry.rows_are_finite
        finite = _all_finite((snapshot.loss, snapshot.gradient, carry.params))
        if len(saved):
            slot = jnp.minimum(jnp.searchsorted(saved, n), len(saved) - 1)
            old = jax.tree.map(lambda leaf: leaf[slot], rows)
            row = jax.lax.cond(saved[slot] == n, row_of, lambda _: old, snapshot)
            rows = jax.tree.map(lambda leaf, new: leaf.at[slot].set(new), rows, row)
            rows_are_finite = rows_are_finite.at[slot].set(jnp.where(saved[slot] == n, finite, rows_are_finite[slot]))
        moved = (optimizer.at(n).apply(carry.params, snapshot.direction), memory)
        # The last iteration is looked at alone: the flow starts there.
        after = jax.tree.map(lambda new, old: jnp.where(n < count, new, old), moved, (carry.params, carry.memory))
        return _Carry(
            *after,
            gradient=snapshot.gradient,
            has_sign_change=carry.has_sign_change | _changes_sign(carry.gradient, snapshot.gradient),
            is_finite=carry.is_finite & finite,
            rows=rows,
            rows_are_finite=rows_are_finite,
        ), None

    row_shape = jax.eval_shape(lambda: row_of(evaluate(params, memory, jnp.zeros((), int))[0]))
    rows = jax.tree.map(lambda leaf: jnp.zeros((len(saved), *leaf.shape), leaf.dtype), row_shape)
    no, yes, zeros = jnp.array(False), jnp.array(True), jax.tree.map(jnp.zeros_like, params)
    start = _Carry(params, memory, zeros, no, yes, rows, jnp.zeros(len(saved), bool))
    end, _ = jax.lax.scan(iteration, start, jnp.arange(count + 1))
    is_kept = yes if keeps_always else end.has_sign_change & end.is_finite
    return end, is_kept, jnp.where(is_kept, count, 0)


class FlowStart(NamedTuple):
    """Where a flow starts.

    Attributes:
        state: of the flow.
        value: of the loss.
        is_finite: whether state and loss are.
        largest_param: the largest magnitude in the parameters.
        largest_change: the largest magnitude in the first change of the optimizer, per iteration.
        is_frozen: whether the second moment of every parameter that has a gradient underflows, so that nothing moves.
    """

    state: Any
    value: jax.Array
    is_finite: Bool[Array, ""]
    largest_param: jax.Array
    largest_change: jax.Array
    is_frozen: Bool[Array, ""]


def initial_state(flow: AbstractFlow, loss: Loss, params: Params, early: FirstIterations) -> FlowStart:
    """Where a flow starts: at 0, or behind the first iterations."""

    def behind() -> FlowStart:
        return start_flow(flow, loss, early.params, Start(early.gradient_evaluations - 1, early.memory))

    if is_concrete(early.is_kept):
        return behind() if bool(early.is_kept) else start_flow(flow, loss, params, None)
    later = behind()
    with warnings.catch_warnings():
        # What it may say of the loss it has just said.
        warnings.simplefilter("ignore")
        at_zero = start_flow(flow, loss, params, None)
    return jax.tree.map(lambda a, b: jnp.where(early.is_kept, a, b), later, at_zero)


@program
def start_flow(flow: AbstractFlow, loss: Loss, params: Params, start: StartLike | None) -> FlowStart:
    """Where a flow starts, at 0 or at what the user gave."""
    value, state = scalar_loss(loss, params), flow.initial_state(loss, params, start)
    optimizer, first = flow.optimizer, 0 if start is None else Start(*start).iteration
    gradient = jax.grad(loss)(params)
    direction, memory = optimizer.consume(jax.grad(loss), gradient, optimizer.initial_state(params), 0, params)
    underflowed = count_underflowed(optimizer, gradient, memory.filters)
    moving = jnp.stack([jnp.sum(leaf != 0, dtype=int) for leaf in jax.tree.leaves(gradient)]).sum()
    return FlowStart(
        state=state,
        value=value,
        is_finite=_all_finite((state, value)),
        largest_param=largest(params),
        largest_change=largest(optimizer.at(first).increment(params, direction)),
        is_frozen=(underflowed > 0) & (underflowed == moving),
    )


@program
def with_first_rows(early: FirstIterations, times: jax.Array, rows: Any, finite: Any) -> tuple[Any, Any]:
    """The rows of a run of a flow, and whether the loss is finite there, with those of the first iterations."""
    count = len(early.finite)
    is_early = early.is_kept & (times[:count] <= early.first)

    def merged(ours: jax.Array, theirs: jax.Array) -> jax.Array:
        kept = is_early.reshape((-1,) + (1,) * (theirs.ndim - 1))
        return theirs.at[:count].set(jnp.where(kept, ours.astype(theirs.dtype), theirs[:count]))

    return jax.tree.map(merged, (early.rows, None if finite is None else early.finite), (rows, finite))


def _changes_sign(before: Params, after: Params) -> jax.Array:
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return jnp.stack([jnp.any(jnp.sign(a) * jnp.sign(b) < 0) for a, b in pairs]).any()


def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]).all()
