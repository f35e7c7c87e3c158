"""The discrete run: one driver for every optimizer."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import equinox.internal
import jax
import jax.numpy as jnp
import numpy as np

from adamflow.checks import is_concrete
from adamflow.flows import Snapshot
from adamflow.optimizers import Optimizer, OptimizerState
from adamflow.solve.inputs import check_run, scalar_loss
from adamflow.solve.trajectory import (
    DIVERGED,
    NOT_FINITE,
    Outcome,
    Stats,
    Trajectory,
    conclude,
    divergence_limit,
    largest,
    within,
)
from adamflow.types import Batch, Loss, Params


def iterate(
    optimizer: Optimizer,
    loss: Loss,
    params: Params,
    steps: int,
    *,
    save_at: Any = None,
    observe: Callable[[Snapshot], Any] | None = None,
    batches: Callable[[Any], Batch] | None = None,
    progress: bool = False,
) -> Trajectory:
    """Run the discrete optimizer: θₙ₊₁ = θₙ − η (λ θₙ + uₙ), n = 0 … steps − 1.

    Args:
        optimizer: the record.
        loss: `loss(params)`, or `loss(params, batch)` with `batches`; a real scalar. Programs are cached by the
            identity of the function: a lambda made anew for each call is compiled anew.
        params: θ₀, any pytree of float32 or float64 arrays.
        steps: number of iterations, at least 1.
        save_at: increasing whole iterations in [0, steps]; by default each of 0 … steps.
        observe: a jax-traceable function of a `Snapshot`, called at the saved iterations; what it returns is kept in
            `observed` *instead of* the parameters. That of the last iteration costs a gradient of its own.
        batches: a jax-traceable function from the iteration to the batch that the loss gets.
        progress: whether to show a bar.

    Returns:
        the trajectory. A run that explodes or leaves the finite numbers ends there, says so in `outcome`, and keeps
        what it has. Memory is bounded by what is saved. Works under `jax.jit`, `jax.vmap` and `jax.grad`.

    Raises:
        ValueError: if an argument is out of its range, or loss or gradient is not finite at the start.

    Example:
        >>> import adamflow as af
        >>> problem = af.problems.chain(dimension=10)
        >>> run = af.iterate(af.adam(1e-3), problem.loss, problem.params, 50, observe=lambda snapshot: snapshot.loss)
        >>> run.observed.shape
        (51,)
    """
    params, steps, rows = check_run(params, steps, save_at)
    if batches is not None and not callable(batches):
        raise ValueError(f"batches must be a function of the iteration, got {type(batches).__name__}")
    if np.any(rows != np.round(rows)):
        raise ValueError(
            f"save_at must hold whole iterations in a discrete run, got {rows[rows != np.round(rows)][0]:g}"
        )
    started = time.perf_counter()
    meter = diffrax.TqdmProgressMeter() if progress else diffrax.NoProgressMeter()
    plan, slots = _plan(steps, rows, observe is not None)
    saved, final, code, last = _run(optimizer, loss, params, plan, slots, observe, batches, meter)
    if is_concrete(code, last) and np.any(np.asarray(last) < 0):
        raise ValueError("the loss or its gradient is not finite at the start; check the loss at `params`")
    done = jnp.minimum(last + 1, steps)
    none = jnp.zeros_like(done)
    gradients = done + (last == steps) if observe is not None and plan.saves_end else done
    trajectory = Trajectory(
        iterations=jnp.asarray(rows, float),
        params=saved if observe is None else None,
        observed=None if observe is None else saved,
        start=params,
        final=final,
        outcome=Outcome(code, last.astype(float)),
        stats=Stats(gradients, jnp.minimum(last, steps), none, none, None),
        name=f"{optimizer.name}, discrete",
    )
    return conclude(trajectory, started)


#: From so many blocks on, one more of them for the look at the end does not matter.
_MANY_BLOCKS = 16


class _Plan(NamedTuple):
    """Blocks of `stride` iterations, the longest such that every saved iteration starts one (or ends the last)."""

    stride: int
    blocks: int
    rows: int
    saves_end: bool
    #: Whether the loop has one block more, for the look at the end.
    ends_in_loop: bool


def _plan(steps: int, rows: np.ndarray, observed: bool) -> tuple[_Plan, np.ndarray]:
    """The blocks of a run, and for the start of each the row to be saved there, or one past the rows.

    A look at the end takes a block more: outside of the loop over blocks it would be compiled a second time. But where
    blocks are few and long, reverse-mode derivatives would store far more for that block than for what it does.
    """
    saved = rows.astype(int)
    stride = math.gcd(steps, *saved.tolist())
    saves_end = bool(saved[-1] == steps)
    blocks = steps // stride
    plan = _Plan(stride, blocks, len(saved), saves_end, saves_end and observed and blocks >= _MANY_BLOCKS)
    slots = np.full(plan.blocks + 1, plan.rows)
    slots[saved // stride] = np.arange(plan.rows)
    return plan, slots if plan.ends_in_loop else slots[:-1]


class _Carry(NamedTuple):
    """The last parameters within bounds, the last iteration at which all was finite, and the code of a failure."""

    params: Params
    state: OptimizerState
    reached: jax.Array
    code: jax.Array


class _Driver(NamedTuple):
    """The parts of a run: `start`, `evaluate`, `step`, and `look`."""

    optimizer: Optimizer
    loss: Loss
    observe: Callable[[Snapshot], Any] | None
    batches: Callable[[Any], Batch] | None
    limit: jax.Array
    end: int

    def start(self, params: Params) -> _Carry:
        return _Carry(params, self.optimizer.initial_state(params), jnp.full((), -1), jnp.zeros((), int))

    def value(self, params: Params, n: jax.Array) -> jax.Array:
        return scalar_loss(self.loss, params, *(() if self.batches is None else (self.batches(n),)))

    def evaluate(self, params: Params, state: OptimizerState, n: jax.Array) -> tuple[Snapshot, OptimizerState]:
        value, gradient = jax.value_and_grad(self.value)(params, n)
        direction, state = self.optimizer.update(gradient, state, n)
        return Snapshot(n, params, gradient, direction, state.filters, value), state

    def first_look(self, start: _Carry) -> Any:
        return self.look(self.evaluate(start.params, start.state, jnp.zeros((), int))[0])

    def look(self, snapshot: Snapshot) -> Any:
        return None if self.observe is None else jax.tree.map(jnp.asarray, self.observe(snapshot))

    def step(self, loop: tuple[_Carry, Any], place: tuple[jax.Array, jax.Array]) -> tuple[tuple[_Carry, Any], None]:
        """Iteration n, if the run has not failed: look at it if that is wanted, then move on, unless n is the end."""
        n, wanted = place

        def work(carry: _Carry, row: Any) -> tuple[_Carry, Any]:
            snapshot, state = self.evaluate(carry.params, carry.state, n)
            if self.observe is not None:
                row = jax.lax.cond(wanted, self.look, lambda _: row, snapshot)
            params = self.optimizer.apply(carry.params, snapshot.direction)
            alive, ends = carry.code == 0, n == self.end
            finite = jnp.where(ends, jnp.isfinite(snapshot.loss), _is_finite(snapshot))

            def classify() -> tuple[jax.Array, jax.Array]:
                failure = jnp.where(finite & jnp.isfinite(largest(params)), DIVERGED, NOT_FINITE)
                return jnp.where(alive, failure, carry.code), jnp.where(alive & finite, n, carry.reached)

            good = alive & finite & (ends | within(params, self.limit))
            code, reached = jax.lax.cond(good, lambda: (carry.code, n), classify)
            new, old = (params, state), (carry.params, carry.state)
            kept = jax.tree.map(lambda moved, stayed: jnp.where(good & ~ends, moved, stayed), new, old)
            return _Carry(kept[0], kept[1], reached, code), row

        # Of a batch all lanes work while one is alive, so that `wanted` stays one for all.
        alive = eqx.internal.unvmap_any(loop[0].code == 0) & (n <= self.end)
        return jax.lax.cond(alive, work, lambda *unchanged: unchanged, *loop), None


@eqx.filter_jit
def _run(optimizer, loss, params, plan: _Plan, slots, observe, batches, meter):
    """Blocks of iterations in a scan; the row at the start of each block is written where its slot says."""
    end = plan.blocks * plan.stride
    driver = _Driver(optimizer, loss, observe, batches, divergence_limit(params), end)
    start = driver.start(params)

    def last_row(carry: _Carry) -> tuple[Any, jax.Array]:
        n = jnp.asarray(end)
        if observe is None or not plan.saves_end:
            return carry.params, jnp.isfinite(driver.value(carry.params, n))
        snapshot, _ = driver.evaluate(carry.params, carry.state, n)
        return driver.look(snapshot), jnp.isfinite(snapshot.loss)

    shape = params if observe is None else jax.eval_shape(driver.first_look, start)
    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape)
    buffer = jax.tree.map(lambda leaf: jnp.zeros((plan.rows + 1, *leaf.shape), leaf.dtype), shape)

    def block(loop: tuple, place: tuple[jax.Array, jax.Array]) -> tuple[tuple, None]:
        carry, buffer, ticks = loop
        index, slot = place
        wanted = (slot < plan.rows) & (jnp.arange(plan.stride) == 0)
        places = (index * plan.stride + jnp.arange(plan.stride), wanted)
        # Without `observe` the row is what the block starts from; with it, what its first step looks at.
        buffer = buffer if observe is not None else _write(buffer, slot, carry.params)
        row = None if observe is None else blank
        if plan.stride == 1:
            (carry, row), _ = driver.step((carry, row), (places[0][0], wanted[0]))
        else:
            (carry, row), _ = jax.lax.scan(driver.step, (carry, row), places)
        buffer = buffer if observe is None else _write(buffer, slot, row)
        return (carry, buffer, meter.step(ticks, (index + 1) / len(slots))), None

    (carry, buffer, ticks), _ = jax.lax.scan(block, (start, buffer, meter.init()), (jnp.arange(len(slots)), slots))
    meter.close(ticks)
    code, reached = carry.code, carry.reached
    if not plan.ends_in_loop:
        row, finite = last_row(carry)
        code = jnp.where((code == 0) & ~finite, NOT_FINITE, code)
        reached = jnp.where(code == 0, end, reached)
        buffer = _write(buffer, jnp.asarray(plan.rows - 1), row) if plan.saves_end else buffer
    return jax.tree.map(lambda leaf: leaf[:-1], buffer), (carry.params, carry.state), code, reached


def _is_finite(snapshot: Snapshot) -> jax.Array:
    """Whether the loss, the gradient and its square, which the filters keep, are finite."""
    finite = [jnp.all(jnp.isfinite(leaf * leaf)) for leaf in jax.tree.leaves(snapshot.gradient)]
    return jnp.stack([jnp.isfinite(snapshot.loss), *finite]).all()


def _write(buffer: Any, slot: jax.Array, row: Any) -> Any:
    return jax.tree.map(lambda into, leaf: jax.lax.dynamic_update_index_in_dim(into, leaf, slot, 0), buffer, row)
