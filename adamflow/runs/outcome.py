"""How the run of a flow ended, and why."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp

from adamflow.flows import AbstractFlow
from adamflow.programs import program
from adamflow.runs.trajectory import (
    COMPLETED,
    DIVERGED,
    MAX_STEPS_REACHED,
    MIN_STEP_REACHED,
    NOT_FINITE,
    Outcome,
    largest,
)
from adamflow.types import Loss

#: Parameters beyond the first number that would grow outwards by the second as a factor within an iteration explode.
_LARGE = 100.0
_EXPLOSIVE_GROWTH = 1e4


def meaning(result: diffrax.RESULTS, size: jax.Array, limit: jax.Array) -> jax.Array:
    """The code of an outcome, from diffrax's result and the largest of the last parameters."""
    exploded = jnp.isfinite(size) & (size > limit)
    code = jnp.full((), MIN_STEP_REACHED)
    for known, ending in (
        (diffrax.RESULTS.successful, COMPLETED),
        (diffrax.RESULTS.max_steps_reached, MAX_STEPS_REACHED),
        (diffrax.RESULTS.event_occurred, jnp.where(exploded, DIVERGED, NOT_FINITE)),
    ):
        code = jnp.where(result == known, ending, code)
    return code


def outcome_of(
    flow: AbstractFlow, loss: Loss, run: Any, start: jax.Array, times: jax.Array, eager: bool, later: bool
) -> Outcome:
    """How a run of a flow ended.

    Few runs need an explanation, which is a program of its own: as part of the run it would double what is compiled.

    Args:
        flow: the vector field of the run.
        loss: of the run.
        run: with a `code`, the `final` state, the iteration that was `reached`, the `rows`, and whether the loss is
            `finite` at each, or `None` where rows are parameters and that is to be seen from them.
        start: the first iteration, -1 if the loss is not finite there.
        times: of the rows.
        eager: whether these are numbers, not tracers.
        later: whether a run that stalled early could start later.
    """
    code, reached = run.code, run.reached
    if not eager or int(code) in (MIN_STEP_REACHED, NOT_FINITE):
        code, reached = _explained(flow, loss, code, run.final, reached, (start, times, run.rows, run.finite))
    return Outcome(code, reached.astype(float), is_told_to_start_later=later)


@program
def _explained(flow: AbstractFlow, loss: Loss, code: jax.Array, final: Any, end: jax.Array, seen: Any) -> Any:
    """A stalled run's flow may explode ahead, or not be finite there: then that is the reason."""
    stalled = code == MIN_STEP_REACHED
    ahead = lambda: _ahead(flow, loss, final, end)  # noqa: E731
    explodes, finite = jax.lax.cond(stalled, ahead, lambda: (jnp.array(False), jnp.array(True)))
    code = jnp.where(explodes, DIVERGED, jnp.where(finite, code, NOT_FINITE))
    return code, jax.lax.cond(code == NOT_FINITE, lambda: _last_finite(loss, end, *seen), lambda: end)


def _ahead(flow: AbstractFlow, loss: Loss, state: Any, time: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where an Euler step of one iteration leads: beyond all bounds? And is all finite on the way?

    Near the time at which a solution becomes infinite steps become too small long before it exceeds any bound itself.
    """
    params = flow.params(state)
    change = flow.vector_field(time, state, loss)
    after = jax.tree.map(jnp.add, state, change)
    moved = jax.tree.map(jnp.subtract, flow.params(after), params)
    outwards = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(moved), strict=True)) > 0
    size = largest(params)
    explodes = outwards & (size > _LARGE) & (largest(moved) > _EXPLOSIVE_GROWTH * size)

    def all_finite(*values: Any) -> jax.Array:
        return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(values)]).all()

    here = all_finite(loss(params), change)
    there = all_finite(loss(flow.params(after)), flow.vector_field(time + 1, after, loss))
    return explodes & here, here & there


def _last_finite(loss: Loss, end: jax.Array, start: jax.Array, times: jax.Array, rows: Any, finite: Any) -> jax.Array:
    """The last saved time up to `end` until which the loss is finite, from flags or else from rows; `start` before."""
    if finite is None:
        finite = jax.lax.map(lambda params: jnp.isfinite(loss(params)) & jnp.isfinite(largest(params)), rows)
    good = jnp.cumprod(finite & (times <= end)).astype(bool)
    return jnp.max(jnp.where(good, times, start))
