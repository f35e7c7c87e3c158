"""What users give to a run by collocation, and what they get from it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import equinox.internal
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from adamflow.flows import AbstractFlow, PaperFlow, Snapshot
from adamflow.flows.averages import FlowState
from adamflow.optimizers import Optimizer, overrides
from adamflow.solve.collocation.diagonal import Diagonal, Stop
from adamflow.solve.collocation.path import restore
from adamflow.solve.collocation.surrogate import Runner, settings_for
from adamflow.solve.collocation.task import Progress, Rows, Task, place_of
from adamflow.solve.trajectory import COMPLETED, divergence_limit
from adamflow.types import Loss, Params


def check_collocation(flow: AbstractFlow, params: Params) -> None:
    """Raise unless collocation can integrate the flow from these parameters."""
    if not isinstance(flow, PaperFlow):
        raise TypeError(
            f'solver="collocation" integrates a PaperFlow, got the {flow.name}; take solver="auto", or for order 1 of '
            'ModifiedFlow the same flow as PaperFlow(optimizer, rate="exact")'
        )
    if not fits(flow, params):
        dtypes = sorted({leaf.dtype.name for leaf in jax.tree.leaves(params)})
        raise ValueError(
            'solver="collocation" needs stages that each keep a filter, all of constant decay, and parameters of one '
            f'type; {flow.optimizer.name!r} with {" and ".join(dtypes)} has another form: take solver="auto"'
        )


def fits(flow: AbstractFlow, params: Params) -> bool:
    """Whether collocation can integrate a flow: its filters have constant decays, its parameters one type."""
    if not isinstance(flow, PaperFlow) or overrides(flow, PaperFlow) or overrides(flow.optimizer, Optimizer):
        return False
    filters = [stage.filters() for stage in flow.optimizer.stages]
    constant = all(filters) and not any(callable(filter.decay) for stage in filters for filter in stage)
    return constant and len({leaf.dtype for leaf in jax.tree.leaves(params)}) == 1


class Result(NamedTuple):
    """A run: its rows, whether the loss is finite at each if observed, the state and code of its end, and its cost."""

    rows: Any
    finite: jax.Array | None
    final: FlowState
    code: jax.Array
    reached: jax.Array
    accepted: jax.Array
    rejected: jax.Array
    gradients: jax.Array
    hessians: jax.Array


def _zero(leaf: Any) -> Any:
    return jnp.zeros_like(leaf) if eqx.is_inexact_array(leaf) else None


class Given(NamedTuple):
    """What a run starts from; all that derivatives can reach."""

    flow: PaperFlow
    loss: Loss
    state: FlowState
    times: jax.Array
    numbers: Any


#: What users look at, and the most steps.
Options = tuple[Callable[[Snapshot], Any] | None, int]
#: A differentiable run of the same flow: from what is given to rows, final state and outcome.
Reference = Callable[[Given], tuple[Any, FlowState, jax.Array]]


def collocate(given: Given, options: Options, reference: Reference, eager: bool) -> Result:
    """Integrate from the initial state to `numbers.steps`; rows at `times`, of parameters or what was observed.

    The second solver is compiled when a run first needs it, or with the first one if the run is traced.
    """
    if not eager:
        return _traced(given, options, reference)
    stop = _first(given, options)
    return _result(given, options, _second(given, options, stop) if bool(stop.coupled) else stop.progress)


@eqx.filter_jit
def _traced(given: Given, options: Options, reference: Reference) -> Result:
    """A run inside another program.

    The loops of a run have no fixed length, so reverse-mode differentiation goes through a run of the reference
    instead, which only then takes place.
    """
    # What the loss closes over becomes an input, which derivatives reach.
    given = given._replace(loss=eqx.filter_closure_convert(given.loss, given.state.params))

    @eqx.filter_custom_vjp
    def run(given: Given) -> Result:
        stop = _first(given, options)
        # In a batch the second part runs if one lane needs it, and leaves the others, which have ended, as they are.
        coupled = eqx.internal.unvmap_any(stop.coupled)
        progress = jax.lax.cond(coupled, lambda: _second(given, options, stop), lambda: stop.progress)
        return _result(given, options, progress)

    def forward(perturbed: Any, given: Given) -> tuple[Result, jax.Array]:
        result = run(given)
        return result, result.code

    def backward(code: jax.Array, gradient: Result, perturbed: Any, given: Given) -> Given:
        ends, pull = eqx.filter_vjp(reference, given)
        # Rows that the reference did not reach would count as constants.
        lost = (ends[2] != COMPLETED) & (code == COMPLETED)
        known = (gradient.rows, gradient.final)
        known = jax.tree.map(
            lambda g, x: jax.tree.map(_zero, x) if g is None else g, known, ends[:2], is_leaf=lambda x: x is None
        )
        known = jax.tree.map(lambda leaf: jnp.where(lost, jnp.nan, leaf), known)
        return pull((*known, None))[0]

    run.def_fwd(forward)
    run.def_bwd(backward)
    return run(given)


@eqx.filter_jit
def _first(given: Given, options: Options) -> Stop:
    """The run as far as the curvature is near diagonal."""
    task = _task(given, options)
    first = jnp.asarray(given.numbers.first, task.start.dtype)
    progress = task.begin(place_of(given.state, first, task.start, task.gradient(task.start)))
    settings = settings_for(task.start.size)
    return Diagonal(task, settings.nodes, checks=settings.dense).run(progress)


@eqx.filter_jit
def _second(given: Given, options: Options, stop: Stop) -> Progress:
    """The rest of the run, with a surrogate of the gradient."""
    task = _task(given, options)
    return Runner(task, settings_for(task.start.size)).run(stop)


def _task(given: Given, options: Options) -> Task:
    params, unravel = ravel_pytree(given.state.params)
    numbers, limit = given.numbers, divergence_limit(given.state.params)
    ends = (numbers.steps, numbers.rtol, numbers.step_size, limit, options[1])
    return Task(given.flow, given.loss, unravel, params, given.times, *ends, looks=options[0] is not None)


@eqx.filter_jit
def _result(given: Given, options: Options, progress: Progress) -> Result:
    """What users get of a run: rows, of parameters or what was observed, its end, and what it cost."""
    task, (observe, _), counts = _task(given, options), options, progress.counts
    rows, finite = jax.vmap(task.unravel)(progress.rows.params), None
    if observe is not None:

        def look(row: tuple[jax.Array, Rows]) -> tuple[Any, jax.Array]:
            time, (params, filters) = row
            state = FlowState(task.unravel(params), None, restore(task.unravel, filters))
            snapshot = given.flow.snapshot(time, state, given.loss)
            return jax.tree.map(jnp.asarray, observe(snapshot)), jnp.isfinite(snapshot.loss)

        rows, finite = jax.lax.map(look, (given.times, progress.rows))
    return Result(
        rows,
        finite,
        task.state(progress.place),
        task.code(progress),
        jnp.asarray(progress.place.time),
        counts.accepted,
        counts.rejected,
        counts.gradients + (task.start.size + 1) * counts.hessians,
        counts.hessians,
    )
