"""What users give to a run by collocation, and what they get from it."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from adamflow.flows import AbstractFlow, PaperFlow, Snapshot
from adamflow.flows.averages import FlowState
from adamflow.solve.collocation.run import Result, Runner, settings_for
from adamflow.solve.trajectory import divergence_limit
from adamflow.types import Loss, Params


def check_collocation(flow: AbstractFlow, params: Params, step_size: Any, progress: bool) -> None:
    """Raise unless collocation can integrate the flow from these parameters as it is asked to."""
    if not isinstance(flow, PaperFlow):
        raise TypeError(
            f'solver="collocation" integrates a PaperFlow, got the {flow.name}; take solver="auto", or for order 1 of '
            'ModifiedFlow the same flow as PaperFlow(optimizer, rate="exact")'
        )
    stages = flow.optimizer.stages
    filters = [filter for stage in stages for filter in stage.filters()]
    if len(stages) > 1 or not filters or any(callable(filter.decay) for filter in filters):
        raise ValueError(
            'solver="collocation" needs one stage, with filters of constant decay; '
            f'{flow.optimizer.name!r} has another form: take solver="auto"'
        )
    if step_size is not None or progress:
        raise ValueError(
            'solver="collocation" chooses its own steps and shows no bar: leave out step_size and progress'
        )
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(params)}
    if len(dtypes) > 1:
        raise ValueError(f'solver="collocation" needs parameters of one type, got {sorted(dtypes)}; convert them')


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
    limit = divergence_limit(state.params)
    vector, unravel = ravel_pytree(state.params)
    settings = settings_for(vector.size)
    runner = Runner(flow, loss, unravel, times, numbers.steps, numbers.rtol, limit, max_steps, settings)
    result = runner.run(state, numbers.first)
    rows: Any = result.rows.params
    if observe is not None:

        def look(row: tuple[jax.Array, FlowState]) -> Any:
            return jax.tree.map(jnp.asarray, observe(flow.snapshot(*row, loss)))

        rows = jax.lax.map(look, (times, result.rows))
    return result._replace(rows=rows, gradients=result.gradients + 2 * vector.size * result.hessians)
