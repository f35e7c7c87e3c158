"""The discrete run: one driver for every optimizer."""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import equinox.internal
import jax
import jax.numpy as jnp
import numpy as np

from adamflow.checks import check_count, check_flag, check_path, is_concrete
from adamflow.flows import Snapshot
from adamflow.flows.flow import StartLike
from adamflow.losses import count_program, loss_and_aux
from adamflow.optimizers import Optimizer, OptimizerState
from adamflow.programs import program
from adamflow.runs.failure import OnFailure, check_on_failure, tell_failure
from adamflow.runs.input_checks import check_observe, check_optimizer, check_restart, check_run
from adamflow.runs.interruption import Interruption
from adamflow.runs.progress import Bar, RunMeter, next_part
from adamflow.runs.trajectory import (
    DIVERGED,
    INTERRUPTED,
    NOT_FINITE,
    Outcome,
    Stats,
    Trajectory,
    conclude,
    divergence_limit,
    exact_iterations,
    largest,
    largest_exact_float,
    namespace_for,
    on_device,
    within,
)
from adamflow.runs.underflow import count_underflowed
from adamflow.types import ArrayLike, Batch, Loss, Params


def iterate(
    optimizer: Optimizer,
    loss: Loss,
    params: Params,
    steps: int,
    *,
    save_at: ArrayLike | None = None,
    start: StartLike | None = None,
    observe: Callable[[Snapshot], Any] | None = None,
    stream: str | Path | None = None,
    stream_every: int | None = None,
    batches: Callable[[Any], Batch] | None = None,
    has_aux: bool = False,
    progress: bool = False,
    on_failure: OnFailure = "warn",
) -> Trajectory:
    """Run the discrete optimizer: θₙ₊₁ = θₙ − η (λ θₙ + uₙ), n = 0 … steps − 1.

    Args:
        optimizer: the record.
        loss: `loss(params)`, or `loss(params, batch)` with `batches`; a real scalar. Programs are cached by the
            identity of the function: a lambda made anew for each call is compiled anew (after the 20th a
            warning says so, and from time to time all programs are released), and an object whose attributes
            have changed since its first run, or the object behind a bound method, still runs what it was then. Make it
            an `equinox.Module`, whose arrays are inputs of the program.
        params: θ₀, or with `start` θ at its iteration; any pytree of float32 or float64 arrays.
        steps: the iteration at which the run ends, at least 1: without `start` the number of iterations.
        save_at: increasing whole iterations in [0, steps], or from that of `start` on; by default each.
        start: where the run goes on: (n₀, memory), with the `OptimizerState` before the gradient at θ. With
            `params, start = run.restart` it is, with the same optimizer, bit for bit the run that did not end there,
            and with another optimizer of the same stages a fork.
        observe: a jax-traceable function of a `Snapshot`, called at the saved iterations; what it returns is kept in
            `observed` *instead of* the parameters. That of the last iteration costs a gradient of its own.
        stream: a folder, in which the run is kept while it goes on: what is saved, and the state. Each file is complete
            or not there, so that a run that is killed keeps all but the last piece. `af.load(folder)` is the run, also
            of one that goes on there by `start=af.load(folder).restart[1]` with the same folder.
        stream_every: how many saved iterations a file holds; by default a twentieth of them.
        batches: a jax-traceable function from the iteration to the batch that the loss gets. Batches 0 … steps − 1 are
            drawn, and batch `steps` only if the last iteration is saved and `observe` uses more there than `iteration`
            and `params`.
        has_aux: whether the loss returns (value, aux), aux any pytree of arrays: `observe` finds it as `snapshot.aux`.
        progress: whether to show a bar, in a batch of the slowest element. Numbers are the same to the bit. Where the
            output is no terminal a run of less than ten seconds shows none.
        on_failure: what to do if the run does not complete, as its `outcome` says: "warn" at the line of this call,
            "raise" an `af.IncompleteRunError`, whose attribute `trajectory` holds the run, or "ignore". Under `jit`,
            `vmap` and `grad` an outcome has no value yet and nothing is said: look at `outcome` afterwards.

    Returns:
        the trajectory. A run that explodes or leaves the finite numbers ends there, says so in `outcome`, and keeps
        what it has; so does one that Ctrl-C ends, unless it is a part of a larger program. Memory is bounded by what is
        saved. Works under `jax.jit`, `jax.vmap` and `jax.grad`.

    Raises:
        TypeError: if the optimizer is none.
        ValueError: if an argument is out of its range, or loss or gradient is not finite at the start.
        IncompleteRunError: with on_failure="raise", if the run does not complete.

    Warns:
        IncompleteRunWarning: with on_failure="warn", if the run does not complete.

    Example:
        >>> import adamflow as af
        >>> problem = af.problems.chain(dimension=10)
        >>> run = af.iterate(af.adam(1e-3), problem.loss, problem.params, 50, observe=lambda snapshot: snapshot.loss)
        >>> run.observed.shape
        (51,)
    """
    check_optimizer(optimizer)
    check_observe(observe)
    check_on_failure(on_failure)
    check_count("steps", steps, high=jnp.iinfo(jnp.result_type(int)).max - 1)
    first, state = check_restart(start, optimizer, params)
    params, steps, rows = check_run(loss, params, steps, save_at, first)
    if optimizer.uses_gradient_change and not getattr(loss, "one_sample_everywhere", True):
        raise ValueError(
            f"{optimizer.name!r} takes two gradients of one sample, but the noise of this loss, known by its "
            "covariance at each place, does not say what one sample is at two; take kind='full', or "
            "af.noise.known_covariance"
        )
    if batches is not None and not callable(batches):
        raise ValueError(f"batches must be a function of the iteration, got {type(batches).__name__}")
    if np.any(rows != np.round(rows)):
        raise ValueError(
            f"save_at must hold whole iterations in a discrete run, got {rows[rows != np.round(rows)][0]:g}"
        )
    count_program(loss)
    has_aux = check_flag("has_aux", has_aux)
    # That of a run inside a larger program; a run by itself moves a bar between its parts.
    meter = RunMeter(None, (first, steps)) if progress else diffrax.NoProgressMeter()
    task = _Task(optimizer, loss, params, observe, batches, has_aux, meter, rows, first, state)
    with Bar(first, steps, progress and is_concrete(task)) as bar:
        if stream is None:
            trajectory = _run(task, steps, rows, bar)
        else:
            trajectory = _run_in_pieces(task, steps, rows, check_path("stream", stream), stream_every, bar)
    return tell_failure(trajectory, on_failure, rows[0])


def _run(task: "_Task", steps: int, rows: np.ndarray, bar: Bar) -> Trajectory:
    """The run of a task up to an iteration, with the rows that are to be saved."""
    started, first, observe = time.perf_counter(), task.first, task.observe
    relative = (rows - first).astype(int)
    task = task._replace(saved_at=on_device(relative), first=on_device(first))
    plan = _plan(steps - first, relative, observe is not None)
    # A loss may close over a tracer that only the result shows: then the run is part of a larger program, too.
    ended = _in_parts(task, plan, bar) if is_concrete(task) else None
    saved, carry, looked = _in_one_program(task, plan) if ended is None else ended
    code, last = carry.code, carry.reached
    if is_concrete(code, last) and np.any(np.asarray(last) < 0) and not first:
        raise ValueError("the loss or its gradient is not finite at the start; check the loss at `params`")
    xp = namespace_for(code, last)
    code, last = xp.asarray(code), xp.asarray(last)
    counts = _counts(xp, last, steps - first, looked, task.optimizer.gradients_per_step)
    last = last + first
    reached = last if steps > largest_exact_float() else last.astype(jnp.result_type(float))
    code, reached, counts = jax.tree.map(on_device, (code, reached, counts))
    gradients, accepted, rejected, jacobians = counts
    trajectory = Trajectory(
        iterations=exact_iterations(rows),
        params=saved if observe is None else None,
        observed=None if observe is None else saved,
        initial_params=task.params,
        final_state=(carry.params, carry.state),
        outcome=Outcome(code, reached, carry.underflowed),
        stats=Stats(gradients, accepted, rejected, jacobians, None, accepted),
        name=f"{task.optimizer.name}, discrete",
    )
    return conclude(trajectory, started)


#: In so many pieces a run is streamed, if it is not said otherwise.
_PIECES = 20


def _run_in_pieces(
    task: "_Task", steps: int, rows: np.ndarray, folder: Path, count: int | None, bar: Bar
) -> Trajectory:
    """A run of which each piece is written into a folder before the next one begins.

    Pieces of as many iterations and rows share one compiled program.
    """
    from adamflow.runs.storage import file_for, files_of, joined, save

    if not is_concrete(task):
        raise ValueError("stream= writes files, which a run under jit, vmap or grad cannot; leave it out")
    count = -(-len(rows) // _PIECES) if count is None else check_count("stream_every", count)
    folder.mkdir(parents=True, exist_ok=True)
    ends = [last for _, last, _ in files_of(folder)]
    if ends and ends[-1] != task.first:
        raise ValueError(
            f"{folder} holds a run up to iteration {ends[-1]}, but this one starts at {task.first}; go on from it by "
            "params, start = af.load(folder).restart, or give a new folder"
        )
    pieces, begin = [], task.first
    starts = list(range(0, len(rows), count))
    if len(starts) > 1 and rows[starts[-1]] == steps:
        # A piece of no iterations: its row is one of the piece before.
        starts.pop()
    for index, following in zip(starts, [*starts[1:], len(rows)], strict=True):
        own, behind = rows[index:following], rows[following:]
        end = int(behind[0]) if len(behind) else steps
        piece = _run(task._replace(first=begin), end, own, bar)
        reached = int(piece.outcome.last_valid_iteration) + (piece.outcome.name == "interrupted")
        save(piece, file_for(folder, begin, reached), wanted=steps)
        pieces.append(piece)
        if not piece.outcome.successful:
            break
        begin, (params, state) = end, piece.final_state
        task = task._replace(params=params, state=state)
    return joined(pieces)


def _counts(xp: Any, last: Any, steps: int, looked: bool, gradients_per_step: int) -> tuple[Any, Any, Any, Any]:
    """Gradients, accepted steps, rejected steps and Jacobians of a run whose last good iteration is `last`."""
    gradients = xp.minimum(last + 1, steps)
    if looked:
        gradients = gradients + (last == steps)
    none = xp.zeros_like(last)
    return gradients * gradients_per_step, xp.minimum(last, steps), none, none


#: From so many blocks on, one more of them for the look at the end does not matter.
_MANY_BLOCKS = 16

#: The iterations of the first part of a run.
_FIRST_PART = 16


class _Task(NamedTuple):
    """What a run is made of."""

    optimizer: Optimizer
    loss: Loss
    params: Params
    observe: Callable[[Snapshot], Any] | None
    batches: Callable[[Any], Batch] | None
    has_aux: bool
    meter: Any
    #: The iterations that are saved, from that of the start on.
    saved_at: Any
    #: The iteration of the start, and the memory before the gradient there; `None` for that of a new run.
    first: Any
    state: OptimizerState | None


class _Plan(NamedTuple):
    """The shape of a run, in iterations from its start on, so that the pieces of one share a program.

    A run by itself has its number of iterations as an array, and no stride.

    In one program it is a scan over blocks of `stride` iterations, the longest such that every saved iteration starts
    one (or ends the last). A look at the end takes a block more, if it is in the loop: outside of it that would be
    compiled a second time. But where blocks are few and long, reverse-mode derivatives would store far more for that
    block than for what it does.
    """

    steps: Any
    stride: int
    saves_all: bool
    #: Whether `observe` looks at the end.
    looks_at_end: bool


def _plan(steps: int, rows: np.ndarray, observed: bool) -> _Plan:
    stride = math.gcd(steps, *rows.astype(int).tolist())
    return _Plan(steps, stride, len(rows) == steps + 1, bool(rows[-1] == steps) and observed)


class _Carry(NamedTuple):
    """The last parameters within bounds, the last iteration at which all was finite, and the code of a failure.

    And how many parameters stood still in the last iteration because their second moment underflowed.
    """

    params: Params
    state: OptimizerState
    reached: jax.Array
    code: jax.Array
    underflowed: jax.Array


class _Loop(NamedTuple):
    """Where a run is: before an iteration, with the number of rows that are saved, the rows, and the state of a bar."""

    carry: _Carry
    iteration: jax.Array
    saved: jax.Array
    rows: Any
    ticks: Any


class _Driver(NamedTuple):
    """The parts of a run: `start`, `evaluate`, `step`, and `look`."""

    task: _Task
    plan: _Plan
    limit: jax.Array
    #: Whether the last row is that of an iteration with a gradient and, where there are batches, with one.
    end_is_evaluated: bool

    @classmethod
    def make(cls, task: _Task, plan: _Plan) -> "_Driver":
        driver = cls(task, plan, divergence_limit(task.params), plan.looks_at_end)
        batch_is_spared = plan.looks_at_end and task.batches is not None and not driver.sees_batch()
        return driver._replace(end_is_evaluated=plan.looks_at_end and not batch_is_spared)

    def start(self) -> _Loop:
        zero = jnp.zeros((), int)
        params = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), self.task.params)
        given = self.task.state
        state = self.task.optimizer.initial_state(params) if given is None else jax.tree.map(_copied, given)
        carry = _Carry(params, state, zero - 1, zero, zero)
        size = len(self.task.saved_at)
        rows = jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), self.shape_of_row())
        return _Loop(carry, zero, zero, rows, self.task.meter.init())

    def value(self, params: Params, n: jax.Array) -> tuple[jax.Array, Any]:
        batch = () if self.task.batches is None else (self.task.batches(self.task.first + n),)
        return loss_and_aux(self.task.loss, params, *batch, has_aux=self.task.has_aux)

    def evaluate(self, params: Params, state: OptimizerState, n: jax.Array) -> tuple[Snapshot, OptimizerState]:
        def gradient_of(params: Params) -> Params:
            return jax.grad(self.value, has_aux=True)(params, n)[0]

        (value, aux), gradient = jax.value_and_grad(self.value, has_aux=True)(params, n)
        iteration = self.task.first + n
        direction, state = self.task.optimizer.consume(gradient_of, gradient, state, iteration, params)
        snapshot = Snapshot(iteration, params, gradient, direction, state.filters, value, aux=aux, memory=state.memory)
        return snapshot, state

    def look(self, snapshot: Snapshot) -> Any:
        return None if self.task.observe is None else jax.tree.map(jnp.asarray, self.task.observe(snapshot))

    def shape_of_snapshot(self) -> Snapshot:
        def first(params: Params) -> Snapshot:
            return self.evaluate(params, self.task.optimizer.initial_state(params), jnp.zeros((), int))[0]

        return jax.eval_shape(first, self.task.params)

    def shape_of_row(self) -> Any:
        params = self.task.params
        return params if self.task.observe is None else jax.eval_shape(self.look, self.shape_of_snapshot())

    def sees_batch(self) -> bool:
        """Whether what is observed depends on more than the iteration and the parameters."""
        shape = self.shape_of_snapshot()
        place = {"iteration": shape.iteration, "params": shape.params}
        others = {name: value for name, value in vars(shape).items() if name not in place}

        def look(others: dict[str, Any]) -> Any:
            return self.look(Snapshot(**_zeros_like(place), **others))

        return _depends_on_inputs(jax.make_jaxpr(look)(others).jaxpr)

    def step(self, loop: tuple[_Carry, Any], place: tuple[jax.Array, jax.Array]) -> tuple[tuple[_Carry, Any], None]:
        """Iteration n, if the run has not failed: look at it if that is wanted, then move on, unless n is the end."""
        (carry, row), (n, wanted) = loop, place
        snapshot, state = self.evaluate(carry.params, carry.state, n)
        if self.task.observe is not None:
            row = jax.lax.cond(wanted, self.look, lambda _: row, snapshot)
        params = self.task.optimizer.at(self.task.first + n).apply(carry.params, snapshot.direction)
        alive, ends = carry.code == 0, n == self.plan.steps
        finite = jnp.where(ends, jnp.isfinite(snapshot.loss), _is_finite(snapshot))

        def classify() -> tuple[jax.Array, jax.Array]:
            failure = jnp.where(finite & jnp.isfinite(largest(params)), DIVERGED, NOT_FINITE)
            return jnp.where(alive, failure, carry.code), jnp.where(alive & finite, n, carry.reached)

        good = alive & finite & (ends | within(params, self.limit))
        code, reached = jax.lax.cond(good, lambda: (carry.code, n), classify)
        new, old = (params, state), (carry.params, carry.state)
        kept = jax.tree.map(lambda moved, stayed: jnp.where(good & ~ends, moved, stayed), new, old)

        def count() -> jax.Array:
            underflowed = count_underflowed(self.task.optimizer, snapshot.gradient, snapshot.filters)
            return jnp.where(good, underflowed, carry.underflowed)

        # Of a large problem it takes a quarter of an iteration.
        underflowed = jax.lax.cond(n + 1 == self.plan.steps, count, lambda: carry.underflowed)
        return (_Carry(kept[0], kept[1], reached, code, underflowed), row), None

    def step_if_alive(self, loop: tuple[_Carry, Any], place: tuple[jax.Array, jax.Array]) -> tuple[tuple, None]:
        """`step` in a scan, which goes on behind the end. Of a batch all lanes work while one is alive."""
        # So `wanted` stays one for all.
        alive = eqx.internal.unvmap_any(loop[0].code == 0) & (place[0] <= self.plan.steps)
        return jax.lax.cond(alive, lambda loop: self.step(loop, place)[0], lambda unchanged: unchanged, loop), None

    def block(self, loop: _Loop, repeat: Callable[..., Any]) -> _Loop:
        """Iterations of which only the first may be saved: how many, `repeat` knows."""
        saved_at = self.task.saved_at
        slot = jnp.minimum(loop.saved, len(saved_at) - 1)
        wanted = jnp.asarray(True)
        if not self.plan.saves_all:
            wanted = (loop.saved < len(saved_at)) & (saved_at[slot] == loop.iteration)
        saved, rows = loop.saved + wanted, loop.rows
        # Without `observe` the row is what the block starts from; with it, what its first step looks at.
        if self.task.observe is None:
            rows, row = _write(rows, slot, loop.carry.params, wanted), None
        else:
            row = _zeros_like(self.shape_of_row())
        (carry, row), iteration = repeat((loop.carry, row), loop.iteration, wanted, saved)
        if self.task.observe is not None:
            rows = _write(rows, slot, row, wanted)
        ticks = self.task.meter.step(loop.ticks, iteration / self.plan.steps)
        return _Loop(carry, iteration, saved, rows, ticks)

    def end(self, loop: _Loop) -> _Loop:
        """The row of the last iteration and a look at the loss there, for a loop that ends before it."""
        n, carry = jnp.asarray(self.plan.steps), loop.carry
        finite = jnp.asarray(True)
        if self.end_is_evaluated:
            snapshot, _ = self.evaluate(carry.params, carry.state, n)
            row, finite = self.look(snapshot), jnp.isfinite(snapshot.loss)
        elif self.plan.looks_at_end:
            blank = _zeros_like(self.shape_of_snapshot())
            row = self.look(dataclasses.replace(blank, iteration=self.task.first + n, params=carry.params))
        else:
            row = carry.params
        if not self.end_is_evaluated and self.task.batches is None:
            finite = jnp.isfinite(self.value(carry.params, n)[0])
        code = jnp.where((carry.code == 0) & ~finite, NOT_FINITE, carry.code)
        reached = jnp.where(code == 0, self.plan.steps, carry.reached)
        rows = loop.rows
        if self.task.observe is None or self.plan.looks_at_end:
            slot = len(self.task.saved_at) - 1
            rows = _write(rows, slot, row, self.task.saved_at[slot] == n)
        underflowed = jnp.where(code == 0, carry.underflowed, 0)
        return loop._replace(carry=carry._replace(code=code, reached=reached, underflowed=underflowed), rows=rows)


@program
def _in_one_program(task: _Task, plan: _Plan) -> tuple:
    """A run as a part of a larger program, which may be differentiated or batched: blocks of iterations in a scan."""
    driver, blocks = _Driver.make(task, plan), plan.steps // plan.stride
    ends_in_loop = driver.end_is_evaluated and blocks >= _MANY_BLOCKS

    def repeat(work: tuple[_Carry, Any], n: jax.Array, wanted: jax.Array, _: jax.Array) -> tuple:
        if plan.stride == 1:
            return driver.step_if_alive(work, (n, wanted))[0], n + 1
        places = (n + jnp.arange(plan.stride), wanted & (jnp.arange(plan.stride) == 0))
        return jax.lax.scan(driver.step_if_alive, work, places)[0], n + plan.stride

    def block(loop: _Loop, _: None) -> tuple[_Loop, None]:
        return driver.block(loop, repeat), None

    loop, _ = jax.lax.scan(block, driver.start(), length=blocks + ends_in_loop)
    if not ends_in_loop:
        loop = driver.end(loop)
    task.meter.close(loop.ticks)
    carry = loop.carry
    return loop.rows, carry, driver.end_is_evaluated


def _in_parts(task: _Task, plan: _Plan, bar: Bar) -> tuple | None:
    """A run by itself, in parts of about half a second, so that Ctrl-C is heard between them and keeps what is saved.

    `None` if the loss turned out to hold a tracer.
    """
    # The number of iterations is an input, so that runs of any length with as many rows share a program.
    steps, plan = plan.steps, plan._replace(steps=on_device(plan.steps), stride=0)
    task, first = task._replace(meter=diffrax.NoProgressMeter()), int(task.first)
    # Without `observe` the start knows nothing of the loss, so that all losses share its program.
    beginning = task if task.observe is not None else task._replace(loss=_no_loss, batches=None)
    loop, stop, size = _begin(beginning, plan), 0, _FIRST_PART
    with Interruption() as interruption:
        while True:
            stop = min(stop + size, steps + 1)
            begun = time.perf_counter()
            loop, finished, looked = _advance((task, plan, on_device(stop)), loop)
            if not is_concrete(loop, finished):
                return None
            if bar.shown:
                bar.move(first + min(int(loop.iteration), steps))
            if bool(finished):
                break
            if interruption.asked.is_set():
                code = jnp.full_like(loop.carry.code, INTERRUPTED)
                loop = loop._replace(carry=loop.carry._replace(code=code))
                break
            size = next_part(size, time.perf_counter() - begun)
    carry = loop.carry
    return loop.rows, carry, looked


def _no_loss(params: Params) -> jax.Array:
    return jnp.zeros(())


@program(sized_by=lambda task, _: task._replace(saved_at=None))
def _begin(task: _Task, plan: _Plan) -> _Loop:
    return _Driver.make(task, plan).start()


@program(sized_by=lambda given, _: given[0]._replace(saved_at=None), donate="all-except-first")
def _advance(given: tuple[_Task, _Plan, jax.Array], loop: _Loop) -> tuple[_Loop, jax.Array, bool]:
    """Go on until iteration `stop`, and tell whether the run has ended and whether the end takes a gradient."""
    task, plan, stop = given
    driver = _Driver.make(task, plan)
    stop = jnp.minimum(stop, plan.steps + driver.end_is_evaluated)

    def goes_on(loop: _Loop) -> jax.Array:
        return (loop.iteration < stop) & (loop.carry.code == 0)

    def repeat(work: tuple[_Carry, Any], first: jax.Array, wanted: jax.Array, saved: jax.Array) -> tuple:
        if plan.saves_all:
            return driver.step(work, (first, wanted))[0], first + 1
        size = len(task.saved_at)
        following = jnp.where(saved < size, task.saved_at[jnp.minimum(saved, size - 1)], stop)

        def unsaved(inner: tuple) -> jax.Array:
            work, n = inner
            return (n < jnp.minimum(following, stop)) & (work[0].code == 0)

        def step(inner: tuple) -> tuple:
            work, n = inner
            return driver.step(work, (n, wanted & (n == first)))[0], n + 1

        return jax.lax.while_loop(unsaved, step, (work, first))

    loop = jax.lax.while_loop(goes_on, lambda loop: driver.block(loop, repeat), loop)
    failed, at_end = loop.carry.code != 0, loop.iteration == plan.steps + driver.end_is_evaluated
    if not driver.end_is_evaluated:
        loop = jax.lax.cond(at_end & ~failed, driver.end, lambda unchanged: unchanged, loop)
    return loop, failed | at_end, driver.end_is_evaluated


def _depends_on_inputs(program: Any) -> bool:
    """Whether any output of a program, or an effect in it, depends on one of its inputs."""
    known = set(program.invars)

    def depends(values: Any) -> bool:
        return any(not hasattr(value, "val") and value in known for value in values)

    for equation in program.eqns:
        if depends(equation.invars):
            if equation.effects:
                return True
            known.update(equation.outvars)
    return depends(program.outvars)


def _is_finite(snapshot: Snapshot) -> jax.Array:
    """Whether the loss, the gradient and its square, which the filters keep, are finite."""
    finite = [jnp.all(jnp.isfinite(leaf * leaf)) for leaf in jax.tree.leaves(snapshot.gradient)]
    return jnp.stack([jnp.isfinite(snapshot.loss), *finite]).all()


def _copied(leaf: jax.Array) -> jax.Array:
    """A new array: one that is also the caller's could not be donated to the program."""
    return jnp.array(leaf, copy=True)


def _zeros_like(shapes: Any) -> Any:
    """Zeros of given shapes and types."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _write(buffer: Any, slot: Any, row: Any, wanted: jax.Array) -> Any:
    """Rows with a new one in a slot, if it is wanted."""

    def written(into: jax.Array, leaf: jax.Array) -> jax.Array:
        leaf = jnp.where(wanted, leaf, into[slot])
        return jax.lax.dynamic_update_index_in_dim(into, leaf, slot, 0)

    return jax.tree.map(written, buffer, row)
