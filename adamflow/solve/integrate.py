"""The continuous run: one driver for every flow."""

import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from adamflow.checks import check_count, check_range, is_concrete
from adamflow.flows import AbstractFlow, Snapshot
from adamflow.solve.coordinates import LogCoordinates
from adamflow.solve.inputs import check_run, check_tolerance, scalar_loss
from adamflow.solve.methods import Method, choose_method, step_controller
from adamflow.solve.trajectory import OUTCOMES, Outcome, Stats, Trajectory, conclude, divergence_limit, largest, within
from adamflow.types import Loss, Params, Scalar


def solve(
    flow: AbstractFlow,
    loss: Loss,
    params: Params,
    steps: int,
    *,
    save_at: Any = None,
    observe: Callable[[Snapshot], Any] | None = None,
    solver: diffrax.AbstractSolver | Literal["auto"] = "auto",
    rtol: Scalar = 1e-5,
    atol: Scalar | None = None,
    step_size: Scalar | None = None,
    max_steps: int = 100_000,
    progress: bool = False,
) -> Trajectory:
    """Integrate a flow over n ∈ [0, steps], beside `steps` iterations of its optimizer.

    Time runs in iterations, n = t/η. With solver="auto", up to 200 parameters (`solve.methods.DENSE_LIMIT`) are
    integrated by Kvaerno5 with a chord iteration and dense Jacobians, which stiff flows need, more of them by Tsit5.
    Implicit solvers follow the logarithm of filters that cannot be negative, which keeps them positive.

    Args:
        flow: the vector field, for example `PaperFlow(optimizer)`.
        loss: `loss(params)`, deterministic, a real scalar. Programs are cached by the identity of the function.
        params: θ(0), any pytree of float32 or float64 arrays.
        steps: the length of the run in iterations, at least 1.
        save_at: increasing times in iterations (they need not be whole) in [0, steps]; by default each of 0 … steps.
        observe: a jax-traceable function of a `Snapshot`, called at the saved times; what it returns is kept in
            `observed` *instead of* the parameters. Each call costs a gradient.
        solver: "auto" or any diffrax solver.
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step, by default rtol/100.
        step_size: a constant step in iterations instead of an adaptive one; what a solver without error estimate needs.
        max_steps: attempted steps after which the run gives up.
        progress: whether to show a bar.

    Returns:
        the trajectory. A run that fails ends there, says so in `outcome`, and keeps what it has. Works under
        `jax.jit`, `jax.vmap` and reverse-mode `jax.grad`.

    Raises:
        ValueError: if an argument is out of its range, or loss or gradient is not finite at the start.

    Example:
        >>> import adamflow as af
        >>> problem = af.problems.chain(dimension=10)
        >>> flow = af.PaperFlow(af.adam(1e-3), order=1)
        >>> af.solve(flow, problem.loss, problem.params, 50, save_at=[0, 12.5, 50]).params.shape
        (3, 10)
    """
    params, steps, rows = check_run(params, steps, save_at)
    check_tolerance(rtol, params)
    atol = rtol / 100 if atol is None else atol
    check_range("atol", atol, 0, 1, high_open=True)
    if step_size is not None:
        check_range("step_size", step_size, 0, steps, low_open=True)
    max_steps = check_count("max_steps", max_steps)
    method = choose_method(solver, sum(leaf.size for leaf in jax.tree.leaves(params)), step_size)
    started = time.perf_counter()
    state, finite = _start(flow, loss, params)
    if is_concrete(finite) and not bool(finite):
        raise ValueError("the loss or its gradient is not finite at the start; check the loss at `params`")
    eager = is_concrete(state, flow, loss, rtol, atol, step_size)
    counter = _COUNTER if eager and method.gradients is None else None
    counted = _COUNTER.count
    dtype = jnp.result_type(*jax.tree.leaves(params))
    times, numbers = jax.tree.map(
        lambda value: jnp.asarray(value, dtype), (rows, _Numbers(steps, rtol, atol, step_size))
    )
    run = _run(flow, loss, state, times, numbers, method, observe, max_steps, progress, counter)
    attempted = run.accepted + run.rejected
    gradients = None
    if method.gradients is not None:
        gradients = 2 + method.gradients * attempted + (0 if observe is None else times.size)
    elif counter is not None:
        jax.block_until_ready(run)
        jax.effects_barrier()
        gradients = jnp.asarray(1 + counter.count - counted)
    code = run.code
    if eager and int(code) == _STALLED and not bool(_finite_ahead(flow, loss, run.final, run.reached)):
        code = jnp.full_like(code, _NOT_FINITE)
    trajectory = Trajectory(
        iterations=times,
        params=run.rows if observe is None else None,
        observed=None if observe is None else run.rows,
        final=run.final,
        outcome=Outcome(code, run.reached),
        stats=Stats(gradients, run.accepted, run.rejected, method.jacobians * attempted, None),
        name=f"{flow.optimizer.name}, {flow.name}",
    )
    return conclude(trajectory, started)


_COMPLETED, _DIVERGED, _NOT_FINITE, _STEP_LIMIT, _STALLED = range(len(OUTCOMES))


class _Counter:
    """Counts vector fields evaluated by implicit solvers, of which diffrax keeps no account; one per process."""

    count = 0

    def tick(self) -> None:
        self.count += 1


_COUNTER = _Counter()


class _Numbers(NamedTuple):
    steps: Any
    rtol: Any
    atol: Any
    step_size: Any


class _Run(NamedTuple):
    rows: Any
    final: Any
    code: jax.Array
    reached: jax.Array
    accepted: jax.Array
    rejected: jax.Array


@eqx.filter_jit
def _start(flow: AbstractFlow, loss: Loss, params: Params) -> tuple[Any, jax.Array]:
    """The initial state, and whether it and the loss there are finite."""
    value, state = scalar_loss(loss, params), flow.initial_state(loss, params)
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((state, value))]
    return state, jnp.stack(finite).all()


@eqx.filter_jit
def _finite_ahead(flow: AbstractFlow, loss: Loss, state: Any, time: jax.Array) -> jax.Array:
    """Whether loss and vector field are finite here, and where an Euler step of one iteration leads."""
    ahead = jax.tree.map(jnp.add, state, flow.vector_field(time, state, loss))
    losses = [loss(flow.params(place)) for place in (state, ahead)]
    values = (losses, ahead, flow.vector_field(time + 1, ahead, loss))
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(values)]).all()


@eqx.filter_jit
def _run(flow, loss, state, times, numbers: _Numbers, method: Method, observe, max_steps, progress, counter) -> _Run:
    """Hand the flow to diffrax, in the coordinates of the method."""
    marks = flow.nonnegative(state) if method.implicit else jax.tree.map(lambda _: False, state)
    coordinates = LogCoordinates.of(marks)
    limit = divergence_limit(flow.params(state))

    def field(time: Any, encoded: Any, args: Any) -> Any:
        if counter is not None:
            jax.debug.callback(counter.tick)
        state = coordinates.decode(encoded)
        return coordinates.rate(flow.vector_field(time, state, loss), state)

    def row(time: Any, encoded: Any, args: Any) -> Any:
        state = coordinates.decode(encoded)
        if observe is None:
            return flow.params(state)
        return jax.tree.map(jnp.asarray, observe(flow.snapshot(time, state, loss)))

    def exploded(t: Any, y: Any, args: Any, **_: Any) -> jax.Array:
        return ~within(flow.params(y), limit)

    controller, first = step_controller(numbers.steps, numbers.rtol, numbers.atol, numbers.step_size)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        method.solver,
        t0=jnp.zeros_like(numbers.steps),
        t1=numbers.steps,
        dt0=first,
        y0=coordinates.encode(state),
        saveat=diffrax.SaveAt(subs=(diffrax.SubSaveAt(ts=times, fn=row), diffrax.SubSaveAt(t1=True))),
        stepsize_controller=controller,
        event=diffrax.Event(exploded),
        max_steps=max_steps,
        throw=False,
        progress_meter=diffrax.TqdmProgressMeter() if progress else diffrax.NoProgressMeter(),
    )
    assert solution.ts is not None
    assert solution.ys is not None
    rows, last = solution.ys
    final = coordinates.decode(jax.tree.map(lambda leaf: leaf[-1], last))
    code = _meaning(solution.result, jnp.isfinite(largest(flow.params(final))))
    end = solution.ts[1][-1]
    # Only with constant steps a step that left the finite numbers is taken.
    reached = jnp.where(code == _NOT_FINITE, end - first, end)
    accepted, rejected = solution.stats["num_accepted_steps"], solution.stats["num_rejected_steps"]
    return _Run(rows, final, code, reached, accepted, rejected)


def _meaning(result: diffrax.RESULTS, finite: jax.Array) -> jax.Array:
    """The code of an outcome, from diffrax's result and whether the last parameters are finite."""
    code = jnp.full((), _STALLED)
    for known, meaning in (
        (diffrax.RESULTS.successful, _COMPLETED),
        (diffrax.RESULTS.max_steps_reached, _STEP_LIMIT),
        (diffrax.RESULTS.event_occurred, jnp.where(finite, _DIVERGED, _NOT_FINITE)),
    ):
        code = jnp.where(result == known, meaning, code)
    return code
