"""The discrete run: one driver for every optimizer."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from adamflow.checks import is_concrete
from adamflow.flows import Snapshot
from adamflow.optimizers import Optimizer, OptimizerState
from adamflow.solve.inputs import check_run, scalar_loss
from adamflow.solve.trajectory import OUTCOMES, Outcome, Stats, Trajectory, conclude, divergence_limit, largest, within
from adamflow.types import Batch, Loss, Params

_DIVERGED, _NOT_FINITE = OUTCOMES.index("diverged"), OUTCOMES.index("not_finite")


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
            `observed` *instead of* the parameters. The last one costs a gradient of its own.
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
    if np.any(rows != np.round(rows)):
        raise ValueError(
            f"save_at must hold whole iterations in a discrete run, got {rows[rows != np.round(rows)][0]:g}"
        )
    started = time.perf_counter()
    meter = diffrax.TqdmProgressMeter() if progress else diffrax.NoProgressMeter()
    plan, slots = _plan(steps, rows)
    saved, final, code, last = _run(optimizer, loss, params, plan, slots, observe, batches, meter)
    if is_concrete(code, last) and np.any((np.asarray(code) == _NOT_FINITE) & (np.asarray(last) == 0)):
        raise ValueError("the loss or its gradient is not finite at the start; check the loss at `params`")
    trajectory = Trajectory(
        iterations=jnp.asarray(rows, float),
        params=saved if observe is None else None,
        observed=None if observe is None else saved,
        final=final,
        outcome=Outcome(code, last.astype(float)),
        stats=Stats(last + (observe is not None), last, jnp.zeros_like(last), jnp.zeros_like(last), None),
        name=f"{optimizer.name}, discrete",
    )
    return conclude(trajectory, started)


class _Plan(NamedTuple):
    """Blocks of `stride` iterations, the longest such that every saved iteration starts one (or ends the last)."""

    stride: int
    blocks: int
    rows: int


def _plan(steps: int, rows: np.ndarray) -> tuple[_Plan, np.ndarray]:
    """The blocks of a run, and for the start of each (and the end) the row to be saved there, or one past the rows."""
    saved = rows.astype(int)
    stride = math.gcd(steps, *saved.tolist())
    plan = _Plan(stride, steps // stride, len(saved))
    slots = np.full(plan.blocks + 1, plan.rows)
    slots[saved // stride] = np.arange(plan.rows)
    return plan, slots


class _Carry(NamedTuple):
    """The run at iteration `reached`; `alive` until a step leaves the finite numbers or explodes."""

    params: Params
    state: OptimizerState
    alive: jax.Array
    reached: jax.Array


class _Driver(NamedTuple):
    """The parts of a run: `start`, `evaluate`, `advance`, `step`, and what is looked at."""

    optimizer: Optimizer
    loss: Loss
    observe: Callable[[Snapshot], Any] | None
    batches: Callable[[Any], Batch] | None
    limit: jax.Array

    def batch(self, n: jax.Array) -> tuple[Batch, ...]:
        return () if self.batches is None else (self.batches(n),)

    def start(self, params: Params) -> _Carry:
        zero = jnp.zeros((), int)
        finite = jnp.isfinite(scalar_loss(self.loss, params, *self.batch(zero)))
        return _Carry(params, self.optimizer.initial_state(params), finite, zero)

    def evaluate(self, carry: _Carry, n: jax.Array) -> tuple[Snapshot, OptimizerState]:
        value, gradient = jax.value_and_grad(self.loss)(carry.params, *self.batch(n))
        direction, state = self.optimizer.update(gradient, carry.state, n)
        return Snapshot(n, carry.params, gradient, direction, state.filters, value), state

    def look(self, snapshot: Snapshot) -> Any:
        assert self.observe is not None
        return jax.tree.map(jnp.asarray, self.observe(snapshot))

    def row_shape(self, carry: _Carry) -> Any:
        if self.observe is None:
            return carry.params
        return jax.eval_shape(lambda: self.look(self.evaluate(carry, carry.reached)[0]))

    def advance(self, carry: _Carry, snapshot: Snapshot, state: OptimizerState) -> _Carry:
        params = self.optimizer.apply(carry.params, snapshot.direction)
        alive = within(params, self.limit) & jnp.isfinite(snapshot.loss)
        return _Carry(params, state, alive, carry.reached + alive)

    def step(self, carry: _Carry, n: jax.Array) -> tuple[_Carry, None]:
        return jax.lax.cond(carry.alive, lambda: self.advance(carry, *self.evaluate(carry, n)), lambda: carry), None

    def observed_step(self, carry: _Carry, n: jax.Array, saved: jax.Array, blank: Any) -> tuple[_Carry, Any]:
        def work() -> tuple[_Carry, Any]:
            snapshot, state = self.evaluate(carry, n)
            row = jax.lax.cond(saved, self.look, lambda _: blank, snapshot)
            return self.advance(carry, snapshot, state), row

        return jax.lax.cond(carry.alive, work, lambda: (carry, blank))


@eqx.filter_jit
def _run(optimizer, loss, params, plan: _Plan, slots, observe, batches, meter):
    """Blocks of iterations in a scan; the row at the start of each block is written where its slot says."""
    driver = _Driver(optimizer, loss, observe, batches, divergence_limit(params))
    start = driver.start(params)
    shape = driver.row_shape(start)
    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape)
    buffer = jax.tree.map(lambda leaf: jnp.zeros((plan.rows + 1, *leaf.shape), leaf.dtype), shape)

    def block(loop: tuple, place: tuple[jax.Array, jax.Array]) -> tuple[tuple, None]:
        carry, buffer, ticks = loop
        index, slot = place
        slot = jnp.where(carry.alive, slot, plan.rows)
        iterations = index * plan.stride + jnp.arange(plan.stride)
        if observe is None:
            row = carry.params
        else:
            carry, row = driver.observed_step(carry, iterations[0], slot < plan.rows, blank)
            iterations = iterations[1:]
        if iterations.size == 1:
            carry, _ = driver.step(carry, iterations[0])
        elif iterations.size > 1:
            carry, _ = jax.lax.scan(driver.step, carry, iterations)
        return (carry, _write(buffer, slot, row), meter.step(ticks, (index + 1) / plan.blocks)), None

    places = (jnp.arange(plan.blocks), slots[:-1])
    (carry, buffer, ticks), _ = jax.lax.scan(block, (start, buffer, meter.init()), places)
    meter.close(ticks)
    end = jnp.asarray(plan.blocks * plan.stride)
    row = carry.params if observe is None else driver.look(driver.evaluate(carry, end)[0])
    buffer = _write(buffer, jnp.where(carry.alive, slots[-1], plan.rows), row)
    size = largest(carry.params)
    failure = jnp.where(jnp.isfinite(size) & (size > driver.limit), _DIVERGED, _NOT_FINITE)
    code = jnp.where(carry.alive, 0, failure)
    return jax.tree.map(lambda leaf: leaf[:-1], buffer), (carry.params, carry.state), code, carry.reached


def _write(buffer: Any, slot: jax.Array, row: Any) -> Any:
    return jax.tree.map(lambda into, leaf: jax.lax.dynamic_update_index_in_dim(into, leaf, slot, 0), buffer, row)
