"""How the run of a flow ended, and why."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp

from adamflow.flows import AbstractFlow
from adamflow.losses import program
from adamflow.solve.trajectory import COMPLETED, DIVERGED, NOT_FINITE, STALLED, STEP_LIMIT, Outcome, largest
from adamflow.types import Loss


def meaning(result: diffrax.RESULTS, size: jax.Array, limit: jax.Array) -> jax.Array:
    """The code of an outcome, from diffrax's result and the largest of the last parameters."""
    exploded = jnp.isfinite(size) & (size > limit)
    code = jnp.full((), STALLED)
    for known, ending in (
        (diffrax.RESULTS.successful, COMPLETED),
        (diffrax.RESULTS.max_steps_reached, STEP_LIMIT),
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
    if not eager or int(code) in (STALLED, NOT_FINITE):
        code, reached = _explained(flow, loss, code, run.final, reached, (start, times, run.rows, run.finite))
    return Outcome(code, reached.astype(float), is_told_to_start_later=later)


@program
def _explained(flow: AbstractFlow, loss: Loss, code: jax.Array, final: Any, end: jax.Array, seen: Any) -> Any:
    """A stalled run's flow may not be finite ahead: then that is the reason."""
    smooth = jax.lax.cond(code == STALLED, lambda: _finite_ahead(flow, loss, final, end), lambda: jnp.array(True))
    code = jnp.where(smooth, code, NOT_FINITE)
    return code, jax.lax.cond(code == NOT_FINITE, lambda: _last_finite(loss, end, *seen), lambda: end)


def _finite_ahead(flow: AbstractFlow, loss: Loss, state: Any, time: jax.Array) -> jax.Array:
    """Whether loss and vector field are finite in a state, and where an Euler step of one iteration leads from it."""

    def visit(state: Any, time: jax.Array) -> tuple[Any, jax.Array]:
        change = flow.vector_field(time, state, loss)
        values = jax.tree.leaves((loss(flow.params(state)), change))
        return jax.tree.map(jnp.add, state, change), jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in values]).all()

    return jax.lax.scan(visit, state, jnp.stack([time, time + 1]))[1].all()


def _last_finite(loss: Loss, end: jax.Array, start: jax.Array, times: jax.Array, rows: Any, finite: Any) -> jax.Array:
    """The last saved time up to `end` until which the loss is finite, from flags or else from rows; `start` before."""
    if finite is None:
        finite = jax.lax.map(lambda params: jnp.isfinite(loss(params)) & jnp.isfinite(largest(params)), rows)
    good = jnp.cumprod(finite & (times <= end)).astype(bool)
    return jnp.max(jnp.where(good, times, start))
