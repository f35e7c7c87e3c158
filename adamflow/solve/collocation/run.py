"""A run by collocation: steps, their size, the rows that are saved, and how the run ends."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from adamflow.flows import PaperFlow, averages
from adamflow.flows.averages import FlowState
from adamflow.solve.collocation import curvature
from adamflow.solve.collocation.path import FlowPath, Path, Place, flat, path_over, restore
from adamflow.solve.collocation.step import Attempt, Past, Settings, Step
from adamflow.solve.trajectory import COMPLETED, DIVERGED, NOT_FINITE, STALLED, STEP_LIMIT
from adamflow.types import Loss, Params, Scalar

#: Up to so many parameters the Hessian is computed, when it has become wrong, instead of learnt.
DENSE_LIMIT = 32
#: The scale of errors is the distance moved, plus this share of the initial parameters.
_SHARE_OF_START = 0.1


class Result(NamedTuple):
    """A run: its rows, the state at its end, the place of its outcome in `OUTCOMES`, and what it cost."""

    rows: Any
    final: FlowState
    code: Array
    reached: Array
    accepted: Array
    rejected: Array
    gradients: Array
    hessians: Array


class _Carry(NamedTuple):
    place: Place
    past: Past
    factor: curvature.Factor
    rate: Array
    scale: Array
    length: Array
    rows: FlowState
    accepted: Array
    rejected: Array
    gradients: Array
    hessians: Array
    age: Array
    just_rejected: Array
    finite: Array


def settings_for(size: int) -> Settings:
    """Three nodes and the Hessian itself for few parameters; two and a Hessian of low rank for many.

    With the Hessian itself, what the surrogate says is wrong only where a gradient crosses zero, and more rounds do not
    mend that: a large residual means a Hessian of the past.
    """
    return Settings(nodes=3, dense=True, residual=0.5) if size <= DENSE_LIMIT else Settings()


class Runner(NamedTuple):
    """What does not change along a run."""

    flow: PaperFlow
    loss: Loss
    unravel: Callable[[Any], Params]
    times: Array
    end: Scalar
    rtol: Scalar
    limit: Array
    max_steps: int
    settings: Settings

    def loss_of(self, params: Array) -> Array:
        """The loss as a function of the vector of all parameters."""
        return self.loss(self.unravel(params))

    def gradient(self, params: Array) -> Array:
        return jax.grad(self.loss_of)(params)

    def hessian_factor(self, params: Array) -> curvature.Factor:
        return curvature.exact(self.loss_of, params)

    def run(self, state: FlowState, first: Scalar) -> Result:
        """Integrate from a state at the iteration `first` to the end."""
        params = ravel_pytree(state.params)[0]
        carry = self._begin(state, params, jnp.asarray(first, params.dtype))
        smallest = 10 * jnp.finfo(params.dtype).eps * self.end

        def unfinished(carry: _Carry) -> Any:
            tried = carry.accepted + carry.rejected
            going = (carry.place.time < self.end) & (tried < self.max_steps) & (carry.length > smallest)
            return going & carry.finite & (jnp.max(jnp.abs(carry.place.params)) <= self.limit)

        carry = jax.lax.while_loop(unfinished, lambda carry: self._advance(carry, params), carry)
        return Result(
            carry.rows,
            self._state(carry.place),
            self._code(carry),
            jnp.asarray(carry.place.time),
            carry.accepted,
            carry.rejected,
            carry.gradients,
            carry.hessians,
        )

    def _state(self, place: Place | Path) -> FlowState:
        """A flow at one time as its state."""
        velocity = self.unravel(place.velocity) if self.flow.order == 2 else None
        return FlowState(self.unravel(place.params), velocity, restore(self.unravel, place.filters))

    def _code(self, carry: _Carry) -> Array:
        """How the run ended: the first of these that holds."""
        size = jnp.max(jnp.abs(carry.place.params))
        endings = (
            (~carry.finite | ~jnp.isfinite(size), NOT_FINITE),
            (size > self.limit, DIVERGED),
            (carry.place.time >= self.end, COMPLETED),
            (carry.accepted + carry.rejected >= self.max_steps, STEP_LIMIT),
        )
        code = jnp.full((), STALLED)
        for holds, meaning in reversed(endings):
            code = jnp.where(holds, meaning, code)
        return code

    def _begin(self, state: FlowState, params: Array, first: Array) -> _Carry:
        dtype, settings = params.dtype, self.settings
        gradient, zero = self.gradient(params), jnp.zeros((), int)
        velocity = ravel_pytree(state.velocity)[0] if self.flow.order == 2 else jnp.zeros((0,), dtype)
        # The places before the start only say that nothing is known of how the gradient changes.
        before = first + jnp.arange(1 - settings.past, 1).astype(dtype)
        past = Past(before, *(jnp.tile(x, (settings.past, 1)) for x in (params, gradient)))
        factor = self.hessian_factor(params) if settings.dense else jnp.zeros((params.size, settings.rank + 1), dtype)
        rows = jax.tree.map(lambda leaf: jnp.zeros((self.times.size, *leaf.shape), leaf.dtype), state)
        at_start = self.times[0] == first
        rows = jax.tree.map(lambda row, leaf: row.at[0].set(jnp.where(at_start, leaf, row[0])), rows, state)
        return _Carry(
            place=Place(first, params, velocity, flat(state.filters), gradient),
            past=past,
            factor=factor,
            rate=jnp.asarray(0.3, dtype),
            scale=_SHARE_OF_START * jnp.sqrt(jnp.mean(params**2)),
            length=jnp.ones((), dtype),
            rows=rows,
            accepted=zero,
            rejected=zero,
            gradients=zero + 1,
            hessians=zero + int(settings.dense),
            age=zero,
            just_rejected=jnp.array(False),
            finite=jnp.all(jnp.isfinite(gradient)),
        )

    def _advance(self, carry: _Carry, start: Array) -> _Carry:
        """Attempt a step; go on from its end or, where it failed, with a shorter one."""
        left = self.end - carry.place.time
        # What would be left after a step is done with it, if it is next to nothing.
        length = jnp.where(left < 1.01 * carry.length, left, carry.length)
        scale = self.rtol * carry.scale
        path = path_over(self.flow, self.unravel, self.settings.nodes, carry.place, length)
        step = Step(path, self.gradient, carry.past, scale, self.settings)
        tried = step.attempt(carry.factor, carry.rate)
        error = step.error(tried)
        good = tried.converged & (error <= 1.0)
        new = self._accepted(carry, tried, length, start)
        rows = self._write(carry, path, tried.path, good)
        usable = jnp.all(jnp.isfinite(tried.factor))
        old = carry._replace(factor=jnp.where(usable, tried.factor, carry.factor), rate=jnp.full_like(carry.rate, 0.5))
        chosen = jax.tree.map(lambda a, b: jnp.where(good, a, b), new._replace(rows=None), old._replace(rows=None))
        carry = chosen._replace(
            rows=rows,
            length=(length * self._factor(carry, tried, error, good)).astype(length.dtype),
            accepted=carry.accepted + good,
            rejected=carry.rejected + ~good,
            gradients=carry.gradients + tried.evaluations,
            age=carry.age + 1,
            just_rejected=~good,
        )
        return self._renewed(carry, tried, good) if self.settings.dense else carry

    def _accepted(self, carry: _Carry, tried: Attempt, length: Array, start: Array) -> _Carry:
        time = carry.place.time + length
        end: Path = jax.tree.map(lambda leaf: leaf[-1], tried.path)
        moved, size = (jnp.sqrt(jnp.mean(x**2)) for x in (end.params - start, start))
        past = Past(
            jnp.append(carry.past.times[1:], time),
            jnp.concatenate([carry.past.params[1:], tried.end[None]]),
            jnp.concatenate([carry.past.gradients[1:], tried.true[None]]),
        )
        rate = jnp.where(tried.worst_rate > 0, tried.rate, 1.1 * tried.rate)
        return carry._replace(
            place=Place(time, end.params, end.velocity, end.filters, tried.gradients[-1]),
            past=past,
            factor=tried.factor,
            rate=jnp.clip(rate, 0.1, 1.0),
            scale=moved + _SHARE_OF_START * size,
            finite=jnp.all(jnp.isfinite(tried.true)) & jnp.all(jnp.isfinite(end.params)),
        )

    def _factor(self, carry: _Carry, tried: Attempt, error: Array, good: Array) -> Array:
        """By how much the next step is longer: by its error, and so that a few gradients will do for it."""
        order = 1 / (self.settings.nodes + 1)
        by_error = 0.9 * jnp.maximum(error, 1e-6) ** -order
        contraction = jnp.maximum(0.6, jnp.sqrt(0.3 / jnp.maximum(tried.worst_rate, 1e-3)))
        by_rounds = jnp.where(tried.worst_rate > 0, contraction, jnp.sqrt(2.0))
        longest = jnp.where(carry.just_rejected, 1.0, 3.0)
        shorter = jnp.clip(0.8 * error**-order, 0.2, 0.9)
        shorter = jnp.where(tried.converged & jnp.isfinite(error), shorter, 0.5)
        return jnp.where(good, jnp.clip(jnp.minimum(by_error, by_rounds), 0.3, longest), shorter)

    def _renewed(self, carry: _Carry, tried: Attempt, good: Array) -> _Carry:
        """Compute the Hessian anew where rounds contract slowly or not at all."""
        slow = (good & (tried.worst_rate > 0.4)) | (~tried.converged & tried.solved)
        renew = (carry.age > 2) & slow
        factor = jax.lax.cond(renew, lambda: self.hessian_factor(carry.place.params), lambda: carry.factor)
        return carry._replace(factor=factor, age=jnp.where(renew, 0, carry.age), hessians=carry.hessians + renew)

    def _write(self, carry: _Carry, step: FlowPath, path: Path, good: Array) -> FlowState:
        """The states at the saved times within a step, from the polynomial through its fine nodes."""
        length = step.length
        begin, end = carry.place.time, carry.place.time + length * (1 + 1e-9)
        first, last = (jnp.searchsorted(self.times, time, side="right") for time in (begin, end))

        def write(row: Array, rows: FlowState) -> FlowState:
            at: Path = jax.tree.map(lambda leaf: step.nodes.interpolate((self.times[row] - begin) / length, leaf), path)
            at = at._replace(filters=averages.clipped(self.flow.optimizer, at.filters))
            state = self._state(at)
            return jax.tree.map(lambda every, one: every.at[row].set(one.astype(every.dtype)), rows, state)

        return jax.lax.fori_loop(first, jnp.where(good, last, first), write, carry.rows)
