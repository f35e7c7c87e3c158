"""What the flows of optimizers made of moving averages share: their state, its coordinates, and looks at it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamflow.checks import is_concrete
from adamflow.flows.flow import AbstractFlow, ChangeOfVariables, Snapshot, StartLike, start_of
from adamflow.losses import as_scalar
from adamflow.optimizers import AbstractStage, Optimizer, StageInput
from adamflow.optimizers.record import Record
from adamflow.types import Filters, Loss, Params, Scalar

#: Where ln v starts for a v of 0: far below what an iteration adds to it, (ηH)² of the largest.
_SHARE_OF_LARGEST = 1e-12

#: The iterations in which a direction varies fast, at least and at most, and the usual memory of a filter.
_SHORTEST_TRANSIENT, _LONGEST_TRANSIENT = 10, 50
_USUAL_MEMORY = 10.0


class FlowState(Record):
    """The state of a flow of an optimizer made of averages.

    Attributes:
        params: θ.
        velocity: dθ/dn in a flow of second order in time, otherwise `None`.
        filters: by stage, a dict from the filter's name to a pytree like the parameters (before bias correction).
        memory: by stage, memory that is no average but moves, by name; `None` where no stage keeps any.
    """

    params: Params
    velocity: Params | None
    filters: Filters
    memory: Filters | None = None


class AbstractAveragesFlow(AbstractFlow):
    """A flow whose state is a `FlowState`; what is left to define are `optimizer`, `initial_state`, `vector_field`."""

    def params(self, state: FlowState) -> Params:
        return state.params

    def coordinates(self, state: FlowState) -> ChangeOfVariables:
        return log_coordinates(self.optimizer, state)

    def snapshot(self, time: Scalar, state: FlowState, loss: Loss) -> Snapshot:
        value, gradient = jax.value_and_grad(as_scalar(loss))(state.params)
        direction, _ = self.optimizer.direction_and_targets(
            gradient, state.filters, time, state.params, memory=state.memory
        )
        return Snapshot(time, state.params, gradient, direction, state.filters, value, memory=state.memory)


def check_averages(optimizer: Optimizer, flow: str, *, averages_alone: bool = True) -> None:
    """Raise unless all memory of the optimizer consists of averages that have a rate.

    Args:
        optimizer: the record.
        flow: which flow asks, for the message.
        averages_alone: whether memory that moves, and differences of the gradient, are refused too.
    """
    for index, stage in enumerate(optimizer.stages):
        if stage.no_limit:
            raise TypeError(
                f"{flow} has no equations for {type(stage).__name__}: {stage.no_limit}; take af.InterpolatingFlow, "
                "which needs the discrete step alone"
            )
        if any(_is_zero(filter.decay) for filter in stage.filters()):
            raise ValueError(
                f"a filter of {type(stage).__name__} has decay 0, so it forgets at once and has no rate; give the "
                "constructor the plain number 0 (gamma=0.0), which leaves that filter out"
            )
        has_equations = stage.only_averages
        if not averages_alone:
            has_equations = _moves(stage) and not (stage.uses_change and index)
        if not has_equations:
            raise TypeError(
                f"{flow} needs stages made of moving averages, but {type(stage).__name__} keeps other memory or "
                "differences of its input, for which it has no equations; take af.InterpolatingFlow, which needs the "
                "discrete step alone"
            )


def check_no_l2(optimizer: Optimizer, flow: str) -> None:
    """Raise `ValueError` if an l2 penalty stands in the record, for flows that read the gradient of the loss alone."""
    if optimizer.l2 is not None:
        raise ValueError(
            f"{flow} takes the gradient of the loss alone, but {optimizer.name!r} adds l2·θ to it; add l2·‖θ‖²/2 to "
            "the loss instead, which is the same system, or take af.InterpolatingFlow"
        )


def initial_state(
    optimizer: Optimizer, loss: Loss, params: Params, start: StartLike | None
) -> tuple[FlowState, Params]:
    """The state when the first gradient has been consumed, x̄(0) = (1−α) x(0) at n = 0, and the direction there."""
    iteration, memory = start_of(start, optimizer, params)
    gradient_of = jax.grad(as_scalar(loss))
    direction, state = optimizer.consume(gradient_of, gradient_of(params), memory, iteration, params)
    return FlowState(params, None, state.filters, state.memory if any(state.memory) else None), direction


def _moves(stage: AbstractStage) -> bool:
    """Whether what a stage remembers beside averages, if anything, says how it moves."""
    return stage.memory_moves or not stage.initial_memory(jnp.zeros(()))


def transient_iterations(optimizer: Optimizer) -> int:
    """How long a direction varies fast: twice the memory of the fastest filter, between 10 and 50 iterations.

    Under 10 the second moment averages too few gradients, whatever its decay; beyond 50 it varies slowly anyway.
    """
    return round(min(max(2 * shortest_memory(optimizer, _USUAL_MEMORY), _SHORTEST_TRANSIENT), _LONGEST_TRANSIENT))


def shortest_memory(optimizer: Optimizer, default: float) -> float:
    """The memory 1/(1−α) of the fastest filter, in iterations.

    Args:
        optimizer: any optimizer.
        default: the result where no decay is known: those that jax traces, or that vary with the iteration, are not.
    """
    decays = [filter.decay for stage in optimizer.stages for filter in stage.filters()]
    known = [float(np.asarray(decay).min()) for decay in decays if not callable(decay) and is_concrete(decay)]
    return 1 / (1 - min(known)) if known else default


def filter_rate(decay: Any, paper: bool, xp: Any = jnp) -> Any:
    """The rate per iteration of a filter in a flow: (1−α)/α as in [GT], or the exact −ln α; for α = 0 a finite one."""
    at_once = decay == 0
    decay = xp.where(at_once, 1.0, decay)
    # Lanes of a sweep may have it. As fast as differences from what drives the filter still have digits at this rate.
    fastest = float(jnp.finfo(decay.dtype).eps) ** -0.5
    return xp.where(at_once, fastest, (1 - decay) / decay if paper else -xp.log(decay))


def levels(stages: tuple[AbstractStage, ...]) -> int:
    """How many filters stand in a row, each driven by what depends on the one before, up to the direction."""
    zero, count = jnp.zeros(()), 0
    for stage in stages:
        averages_so_far = _Watched({filter.name: zero for filter in stage.filters()})
        for filter in stage.filters():
            averages_so_far.read = False
            filter.input(StageInput(zero, zero, zero, zero), averages_so_far)
            count += averages_so_far.read
        count += bool(stage.filters())
    return count


def relax(rate: Any, targets: Params, values: Params) -> Params:
    """a (f(x) − x̄), leaf by leaf: how a filter with rate a follows what drives it."""
    return jax.tree.map(lambda target, value: (rate * (target - value)).astype(value.dtype), targets, values)


def log_coordinates(optimizer: Optimizer, state: FlowState) -> ChangeOfVariables:
    """ln v for a nonnegative filter v, and others divided by their largest entry in `state`, the start of the run.

    So v stays positive between the steps, and a factor in front of the loss changes nothing. A v of exactly 0, in
    coordinates whose first gradient vanishes, starts at a share of the largest one.
    """
    scales = map_filters(optimizer, lambda values, nonnegative: _largest(values), state.filters)

    def encode(values: Params, nonnegative: bool, scale: jax.Array) -> Params:
        start = scale * _SHARE_OF_LARGEST
        if nonnegative:
            return jax.tree.map(lambda v: jnp.log(jnp.where(v > 0, v, start)).astype(v.dtype), values)
        return jax.tree.map(lambda m: (m / scale).astype(m.dtype), values)

    def decode(values: Params, nonnegative: bool, scale: jax.Array) -> Params:
        if nonnegative:
            return jax.tree.map(lambda log: jnp.exp(jnp.maximum(log, jnp.log(jnp.finfo(log.dtype).tiny))), values)
        return jax.tree.map(lambda m: (m * scale).astype(m.dtype), values)

    def convert(function: Callable) -> Callable[[FlowState], FlowState]:
        return lambda state: FlowState(
            state.params, state.velocity, map_filters(optimizer, function, state.filters, scales), state.memory
        )

    return ChangeOfVariables(convert(encode), convert(decode))


def clipped(optimizer: Optimizer, filters: Filters) -> Filters:
    """The filters without the negative values of nonnegative ones that the stages of an explicit step may have."""

    def clip(values: Params, nonnegative: bool) -> Params:
        return jax.tree.map(lambda v: jnp.maximum(v, 0.0), values) if nonnegative else values

    return map_filters(optimizer, clip, filters)


def map_filters(optimizer: Optimizer, function: Callable[..., Any], *filters: Any) -> Any:
    """Apply `function(values, nonnegative, ...)` to every filter of every stage."""
    return tuple(
        {
            filter.name: function(parts[0][filter.name], filter.nonnegative, *(p[filter.name] for p in parts[1:]))
            for filter in stage.filters()
        }
        for stage, *parts in zip(optimizer.stages, *filters, strict=True)
    )


class _Watched(dict):
    """Averages that remember whether one of them was read."""

    read = False

    def __getitem__(self, name: str) -> Any:
        self.read = True
        return super().__getitem__(name)


def _largest(values: Params) -> jax.Array:
    """The largest magnitude, or 1 if all are 0."""
    largest = jnp.stack([jnp.max(jnp.abs(leaf), initial=0.0) for leaf in jax.tree.leaves(values)]).max()
    return jnp.where(largest > 0, largest, 1.0)


def _is_zero(decay: Any) -> bool:
    return not callable(decay) and is_concrete(decay) and bool(np.any(np.asarray(decay) == 0))
