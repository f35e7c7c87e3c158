"""What goes into a run by collocation, and what comes out."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import equinox.internal
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from adamflow.checks import is_concrete
from adamflow.flows import AbstractFlow, GouldTanakaFlow, Snapshot
from adamflow.flows.averages import FlowState
from adamflow.optimizers import AbstractStage, Optimizer, check_constant, overrides
from adamflow.programs import program
from adamflow.runs.collocation.integration import IntegrationProblem, IntegrationState, SavedStates, flatten_state
from adamflow.runs.collocation.newton import DiagonalState, LoopState, NewtonIntegrator
from adamflow.runs.collocation.step_integrator import unflatten_filters
from adamflow.runs.collocation.surrogate_run import SurrogateIntegrator, SurrogateLoopState
from adamflow.runs.collocation.surrogate_step import SurrogateSettings
from adamflow.runs.progress import Bar, RunMeter, next_part
from adamflow.runs.trajectory import COMPLETED, divergence_limit, on_device
from adamflow.types import Loss, Params

#: Up to so many parameters the Hessian is computed where it is not diagonal, instead of estimated.
_FEW = 32
#: The same for a tight rtol, for which steps of order 3 on a surrogate are more, and worse.
_FEW_IF_TIGHT = 64
_TIGHT_RTOL = 1e-4
#: Up to how many parameters, and the tightest rtol for which collocation is then no worse than an explicit method
#: (docs/accuracy.md).
_TIGHTEST_RTOL = ((_FEW_IF_TIGHT, 0.0), (200, 1e-6), (math.inf, 1e-4))
#: What a tolerance may be off by its own rounding, in single precision.
_ROUNDED = 1 + 1e-6


def check_collocation(flow: AbstractFlow, params: Params) -> None:
    """Raise unless collocation can integrate the flow from these parameters."""
    if not isinstance(flow, GouldTanakaFlow):
        raise TypeError(
            f'solver="collocation" integrates a GouldTanakaFlow, got the {flow.name}; take solver="auto", '
            'or for a ModifiedFlow of order 1 the same flow as GouldTanakaFlow(optimizer, rate="exact")'
        )
    if flow.order != 1 or len(flow.optimizer.stages) != 1:
        raise ValueError(
            f'solver="collocation" integrates flows of order 1 with one stage, got the {flow.name} of '
            f"{flow.optimizer.name!r} with {len(flow.optimizer.stages)}: others can become unstable beyond a finite "
            'curvature, and its long steps would damp what should grow; take solver="auto"'
        )
    overridden = _overridden(flow)
    if overridden:
        raise ValueError(
            'solver="collocation" has equations of its own for the step of Optimizer and for GouldTanakaFlow, but '
            f'{" and ".join(overridden)}, which it would ignore; take solver="auto"'
        )
    check_constant('solver="collocation"', flow.optimizer, 'take solver="auto", which integrates them')
    if not supports_collocation(flow, params):
        dtypes = sorted({leaf.dtype.name for leaf in jax.tree.leaves(params)})
        raise ValueError(
            'solver="collocation" needs a stage that keeps a filter, all of constant decay, no other memory, no sign, '
            "no l2 (add it to the loss: that is the same flow), no use of the parameters or of other entries, and "
            f"parameters of one type; {flow.optimizer.name!r} with {' and '.join(dtypes)} does not meet this; take "
            'solver="auto"'
        )


def supports_collocation(flow: AbstractFlow, params: Params) -> bool:
    """Whether collocation can integrate a flow: order 1, one stage, constant decays, parameters of one type.

    What a subclass of the flow or of its optimizer overrides is not in the equations of collocation.
    """
    if not isinstance(flow, GouldTanakaFlow) or flow.order != 1 or len(flow.optimizer.stages) != 1 or _overridden(flow):
        return False
    if flow.optimizer.recipe() or flow.optimizer.l2 is not None or not _is_plain(flow.optimizer.stages[0]):
        return False
    filters = flow.optimizer.stages[0].filters()
    constant = bool(filters) and not any(callable(moving_average.decay) for moving_average in filters)
    return constant and len({leaf.dtype for leaf in jax.tree.leaves(params)}) == 1


def is_preferable(size: int, rtol: Any) -> bool:
    """Whether collocation is no worse than an explicit method, for so many parameters and this tolerance.

    A traced tolerance is unknown: then only for sizes for which the method does not depend on it.
    """
    if not is_concrete(rtol):
        return size <= _FEW
    tightest = next(least for most, least in _TIGHTEST_RTOL if size <= most)
    return float(rtol) * _ROUNDED >= tightest


def takes_whole_hessian(size: int, rtol: Any) -> bool:
    """Whether a run computes the Hessian where it is not diagonal, in steps of order 5, instead of estimating it.

    A traced tolerance counts as loose.
    """
    is_tight = is_concrete(rtol) and float(rtol) * _ROUNDED < _TIGHT_RTOL
    return size <= (_FEW_IF_TIGHT if is_tight else _FEW)


def _is_plain(stage: AbstractStage) -> bool:
    """Whether a stage is what collocation assumes: averages alone, a smooth direction, each entry by itself.

    A common factor of all entries, such as the root of their mean square, is allowed.
    """
    acts_alone = not (stage.uses_params or stage.mixes_entries or overrides(stage, AbstractStage, ("combine",)))
    return stage.only_averages and acts_alone and not stage.takes_signs


def _overridden(flow: GouldTanakaFlow) -> list[str]:
    """What subclasses of the flow and of its optimizer override, in words."""
    bases = ((flow, GouldTanakaFlow), (flow.optimizer, Optimizer))
    changed = [(type(instance).__name__, overrides(instance, base)) for instance, base in bases]
    return [f"{name} overrides {', '.join(methods)}" for name, methods in changed if methods]


class CollocationResult(NamedTuple):
    """A run: saved values, whether the loss is finite at each if observed, the state and code of its end, its cost."""

    rows: Any
    finite: jax.Array | None
    final: FlowState
    code: jax.Array
    reached: jax.Array
    accepted: jax.Array
    rejected: jax.Array
    gradients: jax.Array
    hessians: jax.Array


class RunInputs(NamedTuple):
    """What a run starts from; all that derivatives can reach."""

    flow: GouldTanakaFlow
    loss: Loss
    state: FlowState
    save_times: jax.Array
    settings: Any
    bar: jax.Array | None = None


class StaticOptions(NamedTuple):
    """What users observe, the most trial steps, and whether the Hessian is computed where it is not diagonal."""

    observe: Callable[[Snapshot], Any] | None
    max_steps: int
    whole_hessian: bool


#: A run with the Hessian itself, or with a surrogate of the gradient.
CoupledState = LoopState | SurrogateLoopState


#: A differentiable run of the same flow: from the inputs to saved values, final state and outcome.
DifferentiableRun = Callable[[RunInputs], tuple[Any, FlowState, jax.Array]]


def solve_by_collocation(
    inputs: RunInputs,
    options: StaticOptions,
    reference: DifferentiableRun,
    eager: bool,
    progress: tuple[int, int] | None = None,
) -> CollocationResult:
    """Integrate from the initial state to the final time.

    What follows a diagonal Hessian is compiled when a run first needs it, or with the first part if the run is traced.

    Args:
        inputs: what the run starts from.
        options: what does not change within a program.
        reference: what derivatives go through.
        eager: whether the run is no part of a larger program.
        progress: the first and the last iteration of the bar, if one is shown.
    """
    if not eager:
        return _solve_traced(inputs, options, reference, None if progress is None else RunMeter(None, progress))
    with Bar(*(progress or (0, 1)), shown=progress is not None) as bar:
        diagonal = _in_parts(_advance_diagonal, inputs, options, _start_diagonal(inputs, options), bar)
        run = diagonal.loop.run
        if bool(diagonal.is_coupled):
            run = _in_parts(_advance_coupled, inputs, options, _start_coupled(inputs, options, diagonal), bar).run
    return _result(inputs, options, run)


#: The gradients between the first two moves of a bar.
_FIRST_CHUNK = 64


def _in_parts(advance: Callable, inputs: RunInputs, options: StaticOptions, state: Any, bar: Bar) -> Any:
    """Advance by one program to the end; with a bar in parts of about half a second, between which it moves."""
    most = jnp.iinfo(jnp.result_type(int)).max
    if not bar.shown:
        return advance(inputs, options, state, on_device(most))[0]
    size, stop = _FIRST_CHUNK, _FIRST_CHUNK
    while True:
        begun = time.perf_counter()
        state, run, goes_on = advance(inputs, options, state, on_device(stop))
        bar.move(float(run.state.time))
        if not bool(goes_on):
            return state
        size = next_part(size, time.perf_counter() - begun)
        stop = min(int(run.step_counts.gradients) + size, most)


def _computed_with(inputs: RunInputs, *_: Any) -> Any:
    """What decides how large a program is: not the rows that it saves."""
    return inputs.flow, inputs.loss, inputs.state


@program
def _solve_traced(
    inputs: RunInputs, options: StaticOptions, reference: DifferentiableRun, meter: RunMeter | None
) -> CollocationResult:
    """A run inside another program.

    The loops of a run have no fixed length, so reverse-mode differentiation goes through a run of the reference
    instead, which only then takes place.
    """
    # What the loss closes over becomes an input, which derivatives reach.
    inputs = inputs._replace(loss=eqx.filter_closure_convert(inputs.loss, inputs.state.params))
    # Outside of what has a derivative of its own, in which a bar can be moved, but not opened.
    opened = None if meter is None else meter.init()
    inputs = inputs._replace(bar=None if opened is None else opened.number)

    @eqx.filter_custom_vjp
    def solve(inputs: RunInputs) -> CollocationResult:
        problem = _make_problem(inputs, options)
        diagonal = _newton_integrator(problem).run_diagonal(_first_state(problem, inputs))
        # In a batch the second part runs if one element needs it, and leaves the others, which have ended, unchanged.
        run = jax.lax.cond(
            eqx.internal.unvmap_any(diagonal.is_coupled),
            lambda: _run_coupled(problem, _first_coupled_state(problem, diagonal)).run,
            lambda: diagonal.loop.run,
        )
        return _result(inputs, options, run)

    def forward(perturbed: Any, inputs: RunInputs) -> tuple[CollocationResult, jax.Array]:
        result = solve(inputs)
        return result, result.code

    def backward(code: jax.Array, gradient: CollocationResult, perturbed: Any, inputs: RunInputs) -> RunInputs:
        outputs, vjp = eqx.filter_vjp(reference, inputs)
        # What the reference did not reach would count as constants.
        reference_failed = (outputs[2] != COMPLETED) & (code == COMPLETED)
        cotangents = jax.tree.map(
            lambda g, x: jax.tree.map(_zero, x) if g is None else g,
            (gradient.rows, gradient.final),
            outputs[:2],
            is_leaf=lambda x: x is None,
        )
        cotangents = jax.tree.map(lambda leaf: jnp.where(reference_failed, jnp.nan, leaf), cotangents)
        return vjp((*cotangents, None))[0]

    solve.def_fwd(forward)
    solve.def_bwd(backward)
    result = solve(inputs)
    if meter is not None and opened is not None:
        settings = inputs.settings
        share = (result.reached - settings.first) / (settings.steps - settings.first)
        meter.close(opened._replace(share=jax.lax.stop_gradient(share)))
    return result


@program(sized_by=_computed_with)
def _start_diagonal(inputs: RunInputs, options: StaticOptions) -> DiagonalState:
    return _first_state(_make_problem(inputs, options), inputs)


@program(sized_by=_computed_with)
def _advance_diagonal(inputs: RunInputs, options: StaticOptions, state: DiagonalState, pause_at: jax.Array) -> tuple:
    """The run as far as the Hessian counts as diagonal, or to the end of a part; the run, and whether that goes on."""
    problem = _make_problem(inputs, options)._replace(pause_at=pause_at)
    state = _newton_integrator(problem).run_diagonal(state)
    return state, _without_saved(state.loop.run), problem.should_continue(state.loop.run) & ~state.is_coupled


@program(sized_by=_computed_with)
def _start_coupled(inputs: RunInputs, options: StaticOptions, diagonal: DiagonalState) -> CoupledState:
    return _first_coupled_state(_make_problem(inputs, options), diagonal)


@program(sized_by=_computed_with)
def _advance_coupled(inputs: RunInputs, options: StaticOptions, state: CoupledState, pause_at: jax.Array) -> tuple:
    """The rest of the run, or a part of it; the run, and whether it goes on."""
    problem = _make_problem(inputs, options)._replace(pause_at=pause_at)
    state = _run_coupled(problem, state)
    return state, _without_saved(state.run), problem.should_continue(state.run)


def _without_saved(run: IntegrationState) -> IntegrationState:
    return run._replace(saved=None)


def _first_state(problem: IntegrationProblem, inputs: RunInputs) -> DiagonalState:
    gradient = problem.gradient(problem.initial_params)
    run = problem.initial_state(flatten_state(inputs.state, problem.start_time, problem.initial_params, gradient))
    return _newton_integrator(problem).start_diagonal(run)


def _first_coupled_state(problem: IntegrationProblem, diagonal: DiagonalState) -> CoupledState:
    if problem.whole_hessian:
        return _newton_integrator(problem).start_dense(diagonal)
    return _surrogate_integrator(problem).start(diagonal.loop.run)


def _run_coupled(problem: IntegrationProblem, state: CoupledState) -> CoupledState:
    """With the Hessian itself, or with a surrogate of the gradient for many parameters."""
    if isinstance(state, LoopState):
        return _newton_integrator(problem).run_dense(state)
    return _surrogate_integrator(problem).run(state)


def _surrogate_integrator(problem: IntegrationProblem) -> SurrogateIntegrator:
    return SurrogateIntegrator(problem, SurrogateSettings())


def _newton_integrator(problem: IntegrationProblem) -> NewtonIntegrator:
    whole = problem.whole_hessian
    return NewtonIntegrator(problem, node_count=3 if whole else 2, verifies=whole)


def _make_problem(inputs: RunInputs, options: StaticOptions) -> IntegrationProblem:
    params, unravel = ravel_pytree(inputs.state.params)
    return IntegrationProblem(
        flow=inputs.flow,
        loss=inputs.loss,
        unravel=unravel,
        initial_params=params,
        start_time=jnp.asarray(inputs.settings.first, params.dtype),
        save_times=inputs.save_times,
        final_time=inputs.settings.steps,
        rtol=inputs.settings.rtol,
        step_size=inputs.settings.step_size,
        divergence_limit=divergence_limit(inputs.state.params),
        max_steps=options.max_steps,
        saves_filters=options.observe is not None,
        whole_hessian=options.whole_hessian,
        bar=inputs.bar,
    )


@program(sized_by=_computed_with)
def _result(inputs: RunInputs, options: StaticOptions, run: IntegrationState) -> CollocationResult:
    """What users get of a run: saved parameters or what was observed, its end, and what it cost."""
    problem, observe, counts = _make_problem(inputs, options), options.observe, run.step_counts
    saved, loss_is_finite = jax.vmap(problem.unravel)(run.saved.rows.params), None
    if observe is not None:

        def evaluate_observer(row: tuple[jax.Array, SavedStates]) -> tuple[Any, jax.Array]:
            time, (params, filters) = row
            state = FlowState(problem.unravel(params), None, unflatten_filters(problem.unravel, filters))
            snapshot = inputs.flow.snapshot(time, state, inputs.loss)
            return jax.tree.map(jnp.asarray, observe(snapshot)), jnp.isfinite(snapshot.loss)

        saved, loss_is_finite = jax.lax.map(evaluate_observer, (inputs.save_times, run.saved.rows))
    return CollocationResult(
        rows=saved,
        finite=loss_is_finite,
        final=problem.flow_state(run.state),
        code=problem.outcome_code(run),
        reached=jnp.asarray(run.state.time),
        accepted=counts.accepted,
        rejected=counts.rejected,
        gradients=counts.gradients + (problem.initial_params.size + 1) * counts.hessians,
        hessians=counts.hessians,
    )


def _zero(leaf: Any) -> Any:
    return jnp.zeros_like(leaf) if eqx.is_inexact_array(leaf) else None
