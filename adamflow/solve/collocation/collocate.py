"""What users give to a run by collocation, and what they get from it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from adamflow.flows import AbstractFlow, PaperFlow, Snapshot
from adamflow.flows.averages import FlowState
from adamflow.solve.collocation.diagonal import Diagonal
from adamflow.solve.collocation.path import restore
from adamflow.solve.collocation.surrogate import Runner, settings_for
from adamflow.solve.collocation.task import Rows, Task, place_of
from adamflow.solve.trajectory import divergence_limit
from adamflow.types import Loss, Params


def check_collocation(flow: AbstractFlow, params: Params, step_size: Any, progress: bool) -> None:
    """Raise unless collocation can integrate the flow from these parameters as it is asked to."""
    if not isinstance(flow, PaperFlow):
        raise TypeError(
            f'solver="collocation" integrates a PaperFlow, got the {flow.name}; take solver="auto", or for order 1 of '
            'ModifiedFlow the same flow as PaperFlow(optimizer, rate="exact")'
        )
    if not fits(flow):
        raise ValueError(
            'solver="collocation" needs stages that each keep a filter, all of constant decay; '
            f'{flow.optimizer.name!r} has another form: take solver="auto"'
        )
    if step_size is not None or progress:
        raise ValueError(
            'solver="collocation" chooses its own steps and shows no bar: leave out step_size and progress'
        )
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(params)}
    if len(dtypes) > 1:
        raise ValueError(f'solver="collocation" needs parameters of one type, got {sorted(dtypes)}; convert them')


def fits(flow: AbstractFlow) -> bool:
    """Whether a flow is of the form that collocation integrates: its filters have constant decays."""
    if not isinstance(flow, PaperFlow):
        return False
    filters = [stage.filters() for stage in flow.optimizer.stages]
    return all(filters) and not any(callable(filter.decay) for stage in filters for filter in stage)


class Result(NamedTuple):
    """A run: its rows, the state at its end, the place of its outcome in `OUTCOMES`, and what it cost."""

    rows: Any
    final: FlowState
    code: jax.Array
    reached: jax.Array
    accepted: jax.Array
    rejected: jax.Array
    gradients: jax.Array
    hessians: jax.Array


@eqx.filter_jit
def collocate(
    flow: PaperFlow,
    loss: Loss,
    state: FlowState,
    times: jax.Array,
    numbers: Any,
    observe: Callable[[Snapshot], Any] | None,
    max_steps: int,
) -> Result:
    """Integrate from the initial state to `numbers.steps`; rows at `times`, of parameters or what was observed."""
    params, unravel = ravel_pytree(state.params)
    limit = divergence_limit(state.params)
    task = Task(
        flow, loss, unravel, params, times, numbers.steps, numbers.rtol, limit, max_steps, looks=observe is not None
    )
    first = jnp.asarray(numbers.first, params.dtype)
    progress = task.begin(place_of(state, first, params, task.gradient(params)))
    settings = settings_for(params.size)
    progress, coupled = Diagonal(task, settings.nodes).run(progress)
    progress = jax.lax.cond(coupled, Runner(task, settings).run, lambda progress: progress, progress)
    counts = progress.counts
    rows: Any = jax.vmap(unravel)(progress.rows.params)
    if observe is not None:

        def look(row: tuple[jax.Array, Rows]) -> Any:
            time, (params, filters) = row
            state = FlowState(unravel(params), None, restore(unravel, filters))
            return jax.tree.map(jnp.asarray, observe(flow.snapshot(time, state, loss)))

        rows = jax.lax.map(look, (times, progress.rows))
    return Result(
        rows,
        task.state(progress.place),
        task.code(progress),
        jnp.asarray(progress.place.time),
        counts.accepted,
        counts.rejected,
        counts.gradients + 2 * params.size * counts.hessians,
        counts.hessians,
    )
