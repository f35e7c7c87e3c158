"""Collocation where the curvature is not diagonal: a run on a surrogate of the gradient."""

from typing import NamedTuple

import equinox as eqx
import equinox.internal
import jax
import jax.numpy as jnp
from jaxtyping import Array

from adamflow.solve.collocation import curvature
from adamflow.solve.collocation.diagonal import Stop
from adamflow.solve.collocation.lanes import loop
from adamflow.solve.collocation.path import Path, Place, path_over
from adamflow.solve.collocation.step import Attempt, Past, Settings, Step
from adamflow.solve.collocation.task import Progress, Task

#: Up to so many parameters the Hessian is computed, when it has become wrong, instead of learnt.
DENSE_LIMIT = 32
#: A step that takes as many gradients is of the right length.
_USUAL = 4


class _Carry(NamedTuple):
    progress: Progress
    past: Past
    known: curvature.Curvature
    rate: Array
    age: Array


def settings_for(size: int) -> Settings:
    """Three nodes and the Hessian itself for few parameters; two and a Hessian of low rank for many.

    With the Hessian itself, what the surrogate says is wrong only where a gradient crosses zero, and more rounds do not
    mend that: a large inflation means a Hessian of the past.
    """
    return Settings(nodes=3, dense=True, inflation=0.5) if size <= DENSE_LIMIT else Settings()


class Runner(NamedTuple):
    """A run on a surrogate of the gradient."""

    task: Task
    settings: Settings

    def run(self, stop: Stop) -> Progress:
        """Integrate from there to the end."""

        def unfinished(run: Runner, carry: _Carry) -> Array:
            return run.task.unfinished(carry.progress)

        return loop(unfinished, Runner._advance, self, self._begin(stop)).progress

    def _begin(self, stop: Stop) -> _Carry:
        place, settings = stop.progress.place, self.settings
        params, dtype = place.params, place.params.dtype
        # The places before the start only say that nothing is known of how the gradient changes.
        before = place.time + jnp.arange(1 - settings.past, 1).astype(dtype)
        past = Past(before, *(jnp.tile(x, (settings.past, 1)) for x in (params, place.gradient)))
        none = curvature.none(params.size, settings.width, dtype)
        known = none if stop.hessian is None else curvature.positive(stop.hessian)
        return _Carry(stop.progress, past, known, jnp.asarray(0.3, dtype), jnp.zeros((), int))

    def _advance(self, carry: _Carry) -> _Carry:
        """Attempt a step; go on from its end or, where it failed, with a shorter one."""
        progress, task = carry.progress, self.task
        length = task.fitted(progress.place.time, progress.length)
        path = path_over(task.flow, task.unravel, self.settings.nodes, progress.place, length)
        step = Step(path, task.gradient, carry.past, task.rtol * progress.scale, task.rtol, self.settings)
        tried = step.attempt(carry.known, carry.rate)
        error = step.error(tried)
        good = tried.converged & (error <= 1.0)
        new = self._accepted(carry, tried, length)
        ends = jnp.concatenate([path.start.params[None], tried.path.params[path.nodes.places]])
        rows = task.write(progress.rows, path, ends, tried.path, good)
        counts = progress.counts.after(good, ~good, tried.evaluations)
        known = tried.curvature if self.settings.dense else curvature.compressed(tried.curvature, self.settings.rank)
        usable = jnp.all(jnp.isfinite(tried.curvature.core)) & jnp.all(jnp.isfinite(tried.curvature.gram))
        known = jax.tree.map(lambda a, b: jnp.where(usable, a, b), known, carry.known)
        old = carry._replace(rate=jnp.full_like(carry.rate, 0.5))
        chosen = jax.tree.map(lambda a, b: jnp.where(good, a, b), _without_rows(new), _without_rows(old))
        length = (length * self._factor(carry, tried, error, good)).astype(length.dtype)
        now = chosen.progress._replace(rows=rows, length=length, counts=counts, just_rejected=~good)
        carry = chosen._replace(progress=now, known=known, age=carry.age + 1)
        return self._renewed(carry, tried, good) if self.settings.dense else carry

    def _accepted(self, carry: _Carry, tried: Attempt, length: Array) -> _Carry:
        time = self.task.after(carry.progress.place.time, length)
        end: Path = jax.tree.map(lambda leaf: leaf[-1], tried.path)
        past = Past(
            jnp.append(carry.past.times[1:], time),
            jnp.concatenate([carry.past.params[1:], tried.end[None]]),
            jnp.concatenate([carry.past.gradients[1:], tried.true[None]]),
        )
        rate = jnp.where(tried.worst_rate > 0, tried.rate, 1.1 * tried.rate)
        progress = carry.progress._replace(
            place=Place(time, end.params, end.velocity, end.filters, tried.gradients[-1]),
            scale=self.task.scale(end.params, carry.progress.scale),
            finite=jnp.all(jnp.isfinite(tried.true)) & jnp.all(jnp.isfinite(end.params)),
        )
        return carry._replace(progress=progress, past=past, rate=jnp.clip(rate, 0.1, 1.0))

    def _factor(self, carry: _Carry, tried: Attempt, error: Array, good: Array) -> Array:
        """By how much the next step is longer: by its error, and so that a few gradients will do for it."""
        order = 1 / (self.settings.nodes + 1)
        by_error = 0.9 * jnp.maximum(error, 1e-6) ** -order
        by_rounds = jnp.sqrt(_USUAL / jnp.maximum(tried.evaluations, 1))
        longest = jnp.where(carry.progress.just_rejected, 1.0, 3.0)
        shorter = jnp.clip(0.8 * error**-order, 0.2, 0.9)
        shorter = jnp.where(tried.converged & jnp.isfinite(error), shorter, 0.5)
        return jnp.where(good, jnp.clip(jnp.minimum(by_error, by_rounds), 0.3, longest), shorter)

    def _renewed(self, carry: _Carry, tried: Attempt, good: Array) -> _Carry:
        """Compute the Hessian anew where rounds contract slowly or not at all."""
        slow = (good & (tried.worst_rate > 0.4)) | (~tried.converged & tried.solved)
        renew, progress = (carry.age > 2) & slow, carry.progress

        # In a batch a condition of each lane would not be one: all would compute a Hessian at every step.
        def renewed() -> curvature.Curvature:
            new = curvature.positive(self.task.hessian(progress))
            return jax.tree.map(lambda a, b: jnp.where(renew, a, b), new, carry.known)

        known = jax.lax.cond(eqx.internal.unvmap_any(renew), renewed, lambda: carry.known)
        counts = progress.counts._replace(hessians=progress.counts.hessians + renew)
        progress = progress._replace(counts=counts)
        return carry._replace(progress=progress, known=known, age=jnp.where(renew, 0, carry.age))


def _without_rows(carry: _Carry) -> _Carry:
    return carry._replace(progress=carry.progress._replace(rows=None))
