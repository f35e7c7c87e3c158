"""The continuous run: one driver for every flow."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from adamflow.checks import check_count, check_flag, check_range, check_single, is_concrete
from adamflow.flows import AbstractFlow, ChangeOfVariables, GouldTanakaFlow, Snapshot, StartLike
from adamflow.losses import ScalarLoss, count_program, loss_and_aux
from adamflow.optimizers import Optimizer
from adamflow.programs import program
from adamflow.runs.collocation import (
    RunInputs,
    StaticOptions,
    check_collocation,
    is_preferable,
    solve_by_collocation,
    supports_collocation,
    takes_whole_hessian,
)
from adamflow.runs.diffrax_methods import (
    Method,
    choose_method,
    default_atol,
    step_controller,
    terms_of,
    tolerances_of,
)
from adamflow.runs.error_estimate import with_error_estimate
from adamflow.runs.failure import OnFailure, check_on_failure, tell_failure
from adamflow.runs.forward_mode import forward_mode_refused, in_reverse_mode_alone
from adamflow.runs.input_checks import (
    check_first_iterations,
    check_flow,
    check_observe,
    check_resolution,
    check_run,
    check_start,
    check_tolerance,
    smallest_tolerance,
)
from adamflow.runs.outcome import meaning, outcome_of
from adamflow.runs.progress import HostedMeter, RunMeter
from adamflow.runs.trajectory import (
    SETTLING,
    Stats,
    Trajectory,
    conclude,
    divergence_limit,
    exact_iterations,
    known,
    largest,
    namespace_for,
    on_device,
    within,
)
from adamflow.runs.transient import (
    FirstIterations,
    FlowStart,
    initial_state,
    make_first_iterations,
    start_flow,
    transient_length,
    with_first_rows,
)
from adamflow.runs.underflow import REMEDY
from adamflow.types import ArrayLike, Loss, Params, Scalar


def solve(
    flow: AbstractFlow,
    loss: Loss,
    params: Params,
    steps: int,
    *,
    save_at: ArrayLike | None = None,
    start: StartLike | int | Literal["auto"] | None = "auto",
    observe: Callable[[Snapshot], Any] | None = None,
    solver: diffrax.AbstractSolver | Literal["auto", "collocation"] = "auto",
    rtol: Scalar = 1e-5,
    atol: Scalar | None = None,
    step_size: Scalar | None = None,
    max_steps: int = 100_000,
    has_aux: bool = False,
    estimate_error: bool = False,
    progress: bool = False,
    on_failure: OnFailure = "warn",
) -> Trajectory:
    """Integrate a flow over n ∈ [0, steps], beside `steps` iterations of its optimizer.

    Time runs in iterations, n = t/η. With solver="auto" a `GouldTanakaFlow` of order 1 with one stage whose filters
    have constant decays is integrated by collocation (docs/collocation.md): up to 64 parameters at every rtol, up to
    200 for rtol ≥ 1e-6, with more for rtol ≥ 1e-4 (and up to 32 if rtol is traced), and else by Dopri8. Those of order
    2, and of k-Adam, which can become unstable beyond a finite curvature, get Dopri8 at rtol/4. Other flows get
    Kvaerno5 with a chord iteration and dense Jacobians up to 200 parameters; beyond, `GouldTanakaFlow`, `ModifiedFlow`
    and `InterpolatingFlow` get Dopri8 if no stage takes signs, and all others Tsit5. Of 1027 random problems 99% were
    within ten tolerances, and three beyond a hundred, relative to the amplification of a perturbed start
    (docs/accuracy.md). Implicit solvers of diffrax follow the logarithm of filters that cannot be negative, which keeps
    them positive. For 100 iterations or fewer of a cheap loss the discrete run is faster than any flow.

    Args:
        flow: the vector field, for example `GouldTanakaFlow(optimizer)`.
        loss: `loss(params)`, deterministic, a real scalar. Programs are cached by the identity of the function, as in
            `iterate`: an object that has changed since still runs what it was.
        params: θ(0), any pytree of float32 or float64 arrays.
        steps: the iteration at which the run ends, at least 1.
        save_at: increasing times in iterations (they need not be whole) in [0, steps]; by default each of 0 … steps.
        start: where the flow starts. Flows follow the first iterations worst, in which filters forget their initial
            values. `None` starts the flow at 0. A number n₀ lets the optimizer make n₀ iterations, and starts the flow
            behind them: the first rows are then the iterates. "auto" does that for a `ModifiedFlow` of order 2 or more,
            if a coordinate of the gradient changes its sign in these iterations, where the flow is rough: n₀ is twice
            the memory 1/(1−α) of the fastest filter, from 10 to 50, at most half of `steps`, and not behind a saved
            time that is not whole. `stats.discrete_steps` is the n₀ of the run. For (n₀, memory) `params` is θ(n₀)
            and memory the `OptimizerState` before the gradient there: with `iterates = iterate(..., steps=n₀)`, take
            `params, memory = iterates.final_state`.
        observe: a jax-traceable function of a `Snapshot`, called at the saved times; what it returns is kept in
            `observed` *instead of* the parameters. Each call costs a gradient.
        solver: "auto", "collocation" or any diffrax solver. Give implicit ones `root_finder=af.CHORD_ROOT_FINDER`, the
            chord iteration that "auto" takes: their own takes tens of times the steps here.
        rtol: relative tolerance of a step: of θ by collocation relative to the distance moved so far, of the state by
            diffrax.
        atol: absolute tolerance of a step; collocation has none. By default rtol/100, or rtol times the size of a
            small problem: the largest of the parameters where the flow starts, or of `steps` times their first change,
            if that is more.
        step_size: a constant step in iterations instead of an adaptive one; what a solver without error estimate needs.
            "auto" is then Tsit5. Collocation ends where the equations of such a step cannot be solved.
        max_steps: attempted steps after which the run gives up.
        has_aux: whether the loss returns (value, aux), aux any pytree of arrays: `observe` finds it as `snapshot.aux`.
        estimate_error: whether to run a second time, with a tenth of rtol (or half of a constant step), and keep in
            `error_estimate` how far both are apart at the saved times, in the measure of rtol. It costs about as much
            as 2.5 runs (docs/accuracy.md has how good it is).
        progress: whether to show a bar, in a batch of the slowest element. The solver is the same. Where the output is
            no terminal a run of less than ten seconds shows none.
        on_failure: what to do if the run does not complete, as its `outcome` says: "warn" at the line of this call,
            "raise" an `af.IncompleteRunError`, whose attribute `trajectory` holds the run, or "ignore". Under `jit`,
            `vmap` and `grad` an outcome has no value yet and nothing is said: look at `outcome` afterwards.

    Returns:
        the trajectory. A run that fails ends there, says so in `outcome`, and keeps what it has. Ctrl-C raises
        `KeyboardInterrupt`, at the latest at the end of the compiled program that a run is, and nothing of it is kept,
        unlike in `iterate`; a bound on the time is `max_steps`. Works under
        `jax.jit`, `jax.vmap` and reverse-mode `jax.grad`, which goes through a run by diffrax.

    Raises:
        TypeError: if the flow is none, or `start` none of these; for forward-mode derivatives, which flows lack.
        ValueError: if an argument is out of its range, loss or gradient is not finite at the start, or all squares of
            gradients underflow there with ε = 0, so that nothing would move.
        IncompleteRunError: with on_failure="raise", if the run does not complete.

    Warns:
        IncompleteRunWarning: with on_failure="warn", if the run does not complete, or the second run of
            `estimate_error` does not.

    Example:
        >>> import adamflow as af
        >>> problem = af.problems.chain(dimension=10)
        >>> flow = af.GouldTanakaFlow(af.adam(1e-3), order=1)
        >>> af.solve(flow, problem.loss, problem.params, 50, save_at=[0, 12.5, 50]).params.shape
        (3, 10)
    """
    check_on_failure(on_failure)
    loss, observe, params, steps, rows, first = _checked(flow, loss, params, steps, save_at, start, observe, has_aux)
    rtol, atol, max_steps = _checked_steps(params, rtol, atol, step_size, steps - first, max_steps)
    if solver == "collocation":
        check_collocation(flow, params)
    if estimate_error and observe is not None:
        raise ValueError(
            "estimate_error compares the parameters of two runs, which observe= keeps none of: leave one out"
        )
    flow, loss, params, start = in_reverse_mode_alone((flow, loss, params, start))
    problem = _Problem(flow, loss, params, start, observe, rows, solver, max_steps, progress)
    numbers = _Numbers(first, steps, rtol, atol, step_size)
    started = time.perf_counter()
    trajectory = _solve_once(problem, numbers)
    if estimate_error:
        trajectory = with_error_estimate(trajectory, _solve_once(problem, _tighter(numbers, params)))
    return tell_failure(conclude(trajectory, started), on_failure, rows[0])


#: More steps than any run takes, and the largest that programs count to.
_MOST_STEPS = 2**31 - 1

#: One for the initial state of a flow, and one for the size of its first change.
_START_GRADIENTS = 2


class _Problem(NamedTuple):
    """What a run is asked for, but for its numbers."""

    flow: AbstractFlow
    loss: Loss
    params: Params
    start: StartLike | int | Literal["auto"] | None
    observe: Callable[[Snapshot], Any] | None
    rows: Any
    solver: Any
    max_steps: int
    progress: bool


def _solve_once(problem: _Problem, numbers: "_Numbers") -> Trajectory:
    """A run, with all rows that were asked for."""
    flow, loss, params, _, observe, rows, solver, max_steps, progress = problem
    rtol, step_size = numbers.rtol, numbers.step_size
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    suits = solver == "auto" and step_size is None and supports_collocation(flow, params)
    collocated = solver == "collocation" or (suits and is_preferable(size, rtol))
    # Dopri8 if collocation suits the flow, but not the tolerance. That of a run by collocation is the one for its
    # derivatives: explicit, since that compiles in a third of the time.
    chosen = diffrax.Dopri8() if collocated or suits else solver
    method = choose_method(chosen, flow, size, None if collocated else step_size)
    numbers, early, begin = _begin(problem, numbers)
    span = (int(numbers.first) if is_concrete(numbers.first) else 0, numbers.steps) if progress else None
    state, finite = begin.state, begin.is_finite
    # A loss may close over a tracer that only its value shows, and under `jax.grad` not even whether that is finite.
    eager = is_concrete(begin, flow, loss, rtol, numbers.atol, step_size)
    counter = _COUNTER if eager and not collocated and method.fields is None else None
    counted = _COUNTER.count
    later = numbers.steps > SETTLING and getattr(flow, "order", 1) >= 2 and _is_zero(numbers.first)
    times, run_times, start_or_none, numbers = _inputs(problem, numbers, early, finite)
    looks = 0 if observe is None else len(rows)
    with forward_mode_refused():
        if collocated:
            reference = _Reference(method, observe, max(max_steps, _REFERENCE_STEPS))
            inputs = RunInputs(cast(GouldTanakaFlow, flow), loss, state, run_times, numbers)
            options = StaticOptions(observe, max_steps, takes_whole_hessian(size, rtol))
            run = solve_by_collocation(inputs, options, reference, eager, span)
            gradients = known(run.gradients) + (looks + _START_GRADIENTS)
            stats = _make_stats(gradients, run.accepted, run.rejected, run.hessians)
        else:
            adjoint = _adjoint_for(eager, flow, observe)
            given = (flow, loss, state, run_times, numbers, method, observe, max_steps, adjoint)
            run = _run_with_bar(given, counter, span, eager)
            stats = _stats(run, method, counter, counted, flow.gradients_per_evaluation, looks)
    if early is not None:
        rows_and_finite = with_first_rows(early, times, run.rows, run.finite)
        run = run._replace(rows=rows_and_finite[0], finite=rows_and_finite[1])
        stats = _with_discrete(stats, early, flow.optimizer)
    return Trajectory(
        iterations=exact_iterations(rows),
        params=run.rows if observe is None else None,
        observed=None if observe is None else run.rows,
        initial_params=params,
        final_state=run.final,
        outcome=outcome_of(flow, loss, run, start_or_none, times, eager, later),
        stats=stats,
        name=f"{flow.optimizer.name}, {flow.name}",
        follows_mean=flow.follows_mean,
        filter_rate=getattr(flow, "rate", None),
    )


def _begin(problem: _Problem, numbers: "_Numbers") -> tuple["_Numbers", FirstIterations | None, FlowStart]:
    """Where the flow starts: numbers with its first iteration and atol, what the optimizer did before, the state."""
    flow, loss, params, start, rows = problem.flow, problem.loss, problem.params, problem.start, problem.rows
    count, early = transient_length(flow, start, rows, numbers.steps), None
    if count:
        early = make_first_iterations(flow, loss, params, count, rows, problem.observe, start != "auto")
        numbers = numbers._replace(first=known(early.first))
        begin = initial_state(flow, loss, params, early)
    else:
        begin = start_flow(flow, loss, params, start if isinstance(start, tuple) else None)
    if is_concrete(begin.is_finite) and not bool(begin.is_finite):
        is_later = early is not None and bool(early.is_kept)
        where = f"iteration {count}, behind those of the optimizer" if is_later else "the start"
        raise ValueError(f"the loss or its gradient is not finite at {where}; check the loss at `params`")
    if is_concrete(begin.is_frozen) and bool(begin.is_frozen):
        raise ValueError(
            "no parameter would move: the squares of all gradients at the start underflow in the arithmetic of the "
            f"parameters, and epsilon is 0. {REMEDY}"
        )
    if numbers.atol is None:
        largest_param, change = known(jax.lax.stop_gradient((begin.largest_param, begin.largest_change)))
        xp = namespace_for(largest_param, change, numbers.first)
        size = xp.maximum(largest_param, (numbers.steps - numbers.first) * change)
        numbers = numbers._replace(atol=default_atol(numbers.rtol, size))
    return numbers, early, begin


def _inputs(problem: _Problem, numbers: "_Numbers", early: FirstIterations | None, finite: Any) -> tuple:
    """Arrays that a run starts from: all rows, those of the flow, its first iteration or −1, and the numbers."""
    rows, first, dtype = problem.rows, numbers.first, jnp.result_type(*jax.tree.leaves(problem.params))
    epsilon = float(jnp.finfo(dtype).eps)
    rtol, atol = tolerances_of(problem.solver, problem.flow, numbers.rtol, numbers.atol, epsilon)
    # Before the start of the flow the rows are those of the optimizer.
    later = rows if early is None else namespace_for(first).maximum(rows, first)
    start_or_none = namespace_for(finite, first).where(finite, first, -1.0)
    return _arrays((rows, later, start_or_none, numbers._replace(rtol=rtol, atol=atol)), dtype)


def _arrays(values: Any, dtype: Any) -> Any:
    """These as arrays of jax of this type."""
    return jax.tree.map(lambda x: on_device(np.asarray(x, dtype)) if is_concrete(x) else jnp.asarray(x, dtype), values)


def _is_zero(first: Any) -> bool:
    return is_concrete(first) and int(first) == 0


def _tighter(numbers: "_Numbers", params: Params) -> "_Numbers":
    """The numbers of the run that an estimate of errors compares with: a tenth of rtol, half of a constant step."""
    rtol = namespace_for(numbers.rtol).maximum(0.1 * numbers.rtol, smallest_tolerance(params))
    atol = None if numbers.atol is None else 0.1 * numbers.atol
    half = None if numbers.step_size is None else 0.5 * numbers.step_size
    return numbers._replace(rtol=rtol, atol=atol, step_size=half)


def _checked(flow, loss, params, steps, save_at, start, observe, has_aux: bool) -> tuple:
    """What a run is given, checked: loss, observing function, parameters, steps, saved iterations and the first."""
    check_flow(flow)
    check_observe(observe)
    first = check_start(start, flow.optimizer, params)
    params, steps, rows = check_run(loss, params, steps, save_at, first)
    if isinstance(start, int | np.integer):
        check_first_iterations(int(start), steps, rows)
    check_resolution(rows, jnp.result_type(*jax.tree.leaves(params)))
    count_program(loss)
    if check_flag("has_aux", has_aux):
        observe = None if observe is None else _LookWithAux(observe, loss)
        loss = ScalarLoss(loss, has_aux=True)
    return loss, observe, params, steps, rows, first


def _checked_steps(params: Params, rtol, atol, step_size, length, max_steps) -> tuple[Any, Any, int]:
    """Both tolerances and the most steps; all that steps depend on is checked."""
    rtol = check_tolerance(rtol, params)
    if atol is not None:
        check_range("atol", check_single("atol", atol), 0, 1, high_open=True)
    if step_size is not None:
        check_range("step_size", check_single("step_size", step_size), 0, length, low_open=True)
    return rtol, atol, min(check_count("max_steps", max_steps), _MOST_STEPS)


#: Steps that derivatives through a run by collocation may take at least: diffrax takes more of them.
_REFERENCE_STEPS = 100_000


class _Reference(eqx.Module):
    """A run by diffrax, which derivatives of one by collocation go through."""

    method: Method = eqx.field(static=True)
    observe: Callable[[Snapshot], Any] | None
    max_steps: int = eqx.field(static=True)

    def __call__(self, inputs: RunInputs) -> Any:
        inputs = inputs._replace(settings=inputs.settings._replace(step_size=None))
        flow, loss, state, times, numbers, _ = inputs
        meter = diffrax.NoProgressMeter()
        reverse = diffrax.RecursiveCheckpointAdjoint()
        run = _run(flow, loss, state, times, numbers, self.method, self.observe, self.max_steps, reverse, meter, None)
        return run.rows, run.final, run.code


class _LookWithAux(eqx.Module):
    """An observing function, which finds what the loss returns beside its value in the snapshot."""

    observe: Callable[[Snapshot], Any]
    loss: Loss

    def __call__(self, snapshot: Snapshot) -> Any:
        aux = loss_and_aux(self.loss, snapshot.params, has_aux=True)[1]
        return self.observe(dataclasses.replace(snapshot, aux=aux))


class _Counter:
    """Counts vector fields evaluated by implicit solvers, of which diffrax keeps no account; one per process."""

    count = 0

    def tick(self) -> None:
        self.count += 1


_COUNTER = _Counter()


def _stats(run: "_Run", method: Method, counter: _Counter | None, before: int, each: int, looks: int) -> Stats:
    """What a run cost: the gradients of its start, those of the vector fields, and one for each look."""
    attempted = known(run.accepted) + known(run.rejected)
    if counter is not None:
        jax.block_until_ready(run)
        jax.effects_barrier()
        gradients = _START_GRADIENTS + each * (counter.count - before) + looks
    elif method.fields is not None:
        gradients = _START_GRADIENTS + each * (method.first_fields + method.fields * attempted) + looks
    else:
        gradients = None
    return _make_stats(gradients, run.accepted, run.rejected, method.jacobians * attempted)


def _make_stats(gradients: Any, accepted: Any, rejected: Any, jacobians: Any, discrete: Any = 0) -> Stats:
    counts = (gradients, accepted, rejected, jacobians, discrete)
    gradients, accepted, rejected, jacobians, discrete = _arrays(counts, jnp.result_type(int))
    return Stats(gradients, accepted, rejected, jacobians, None, discrete)


def _with_discrete(stats: Stats, early: FirstIterations, optimizer: Optimizer) -> Stats:
    """What a run cost, with the first iterations, which the optimizer made."""
    first, before = known(early.first), optimizer.gradients_per_step * known(early.gradient_evaluations)
    gradients = stats.gradient_evaluations
    gradients = None if gradients is None else known(gradients) + before
    accepted = known(stats.accepted_steps) + first
    return _make_stats(gradients, accepted, stats.rejected_steps, stats.jacobian_evaluations, first)


class _Numbers(NamedTuple):
    first: Any
    steps: Any
    rtol: Any
    atol: Any
    step_size: Any


class _Run(NamedTuple):
    rows: Any
    finite: Any
    final: Any
    code: jax.Array
    reached: jax.Array
    accepted: jax.Array
    rejected: jax.Array


def _adjoint_for(eager: bool, flow: AbstractFlow, observe: Any) -> diffrax.AbstractAdjoint:
    """For a run of numbers, which nobody can differentiate, a loop without checkpoints: a tenth of the first call.

    What a user observes, and a user's own flow, may close over what is differentiated, and nothing shows that before.
    """
    is_ours = type(flow).__module__.startswith("adamflow.")
    return diffrax.ForwardMode() if eager and is_ours and observe is None else diffrax.RecursiveCheckpointAdjoint()


def _run_with_bar(given: tuple, counter: Any, span: tuple[int, int] | None, eager: bool) -> _Run:
    """`_run` of what is given, with a bar from the first to the last iteration of `span`, if there is one."""
    if span is not None and not eager:
        # The program opens its bar itself, each time that it runs.
        return _run(*given, RunMeter(None, span), counter)
    with HostedMeter(*(span or (0, 1)), shown=span is not None) as hosted:
        run = _run(*given, hosted.meter, counter)
        if span is not None:
            hosted.bar.move(float(run.reached))
        return run


@program(sized_by=lambda flow, loss, state, *_: (flow, loss, state))
def _run(
    flow, loss, state, times, numbers: _Numbers, method: Method, observe, max_steps, adjoint, meter, counter
) -> _Run:
    """Hand the flow to diffrax, in the coordinates of the method."""
    limit = divergence_limit(flow.params(state))
    # An explicit method has no use for ln v: where v starts near 0 it makes the flow stiffer.
    coordinates = flow.coordinates(state) if method.implicit else ChangeOfVariables()
    encode, decode = coordinates

    # A program of its own, since solvers call it in many places: it is traced once.
    @jax.jit
    def field(time: Any, encoded: Any, args: Any) -> Any:
        if counter is not None:
            jax.debug.callback(counter.tick)
        return coordinates.field(flow, loss, time, encoded)

    def row(time: Any, encoded: Any, args: Any) -> tuple[Any, Any]:
        state = decode(encoded)
        if observe is None:
            return flow.params(state), None
        snapshot = flow.snapshot(time, state, loss)
        return jax.tree.map(jnp.asarray, observe(snapshot)), jnp.isfinite(snapshot.loss)

    def failed(t: Any, y: Any, args: Any, **_: Any) -> jax.Array:
        params = flow.params(decode(y))
        return ~within(params, limit) | ~jnp.isfinite(loss(params))

    start = encode(state)
    controller, first = step_controller(numbers.steps, numbers.rtol, numbers.atol, numbers.step_size)
    solution = diffrax.diffeqsolve(
        terms_of(method.solver, field),
        method.solver,
        t0=numbers.first,
        t1=numbers.steps,
        dt0=first,
        y0=start,
        saveat=diffrax.SaveAt(subs=(diffrax.SubSaveAt(ts=times, fn=row), diffrax.SubSaveAt(t1=True))),
        stepsize_controller=controller,
        event=diffrax.Event(failed),
        max_steps=max_steps,
        throw=False,
        adjoint=adjoint,
        progress_meter=meter,
    )
    rows, last = cast(Any, solution.ys)
    final = decode(jax.tree.map(lambda leaf: leaf[-1], last))
    accepted, rejected = solution.stats["num_accepted_steps"], solution.stats["num_rejected_steps"]
    # Without an accepted step not even the row at n = 0 is written.
    nothing = (times[0] == numbers.first) & (accepted == 0)
    rows = jax.lax.cond(nothing, lambda: jax.tree.map(_with_first, rows, row(times[0], start, None)), lambda: rows)
    end = cast(Any, solution.ts)[1][-1]
    rows, finite = rows
    code = meaning(solution.result, largest(flow.params(final)), limit)
    return _Run(rows, finite, final, code, end, accepted, rejected)


def _with_first(rows: jax.Array, first: jax.Array) -> jax.Array:
    return rows.at[0].set(first)
