"""What a run by collocation is asked for, the rows that it saves, and how it ends."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import equinox.internal
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from adamflow.flows import PaperFlow, averages
from adamflow.flows.averages import FlowState
from adamflow.solve.collocation.curvature import hessian_of
from adamflow.solve.collocation.nodes import along
from adamflow.solve.collocation.path import Filters, FlowPath, Path, Place, Vector, flat, restore
from adamflow.solve.trajectory import COMPLETED, DIVERGED, NOT_FINITE, STALLED, STEP_LIMIT
from adamflow.types import Loss, Params, Scalar

#: The scale of errors is the distance moved, plus this share of the initial parameters.
_SHARE_OF_START = 0.1
#: Two polynomials agree within this share of the way that a coordinate could have gone in a step.
_AGREE = 3e-3


class Rows(NamedTuple):
    """θ, and the filters if they are looked at, at the saved times."""

    params: Float[Array, "saved size"]
    filters: Filters


class Counts(NamedTuple):
    """What a run has cost."""

    accepted: Int[Array, ""]
    rejected: Int[Array, ""]
    gradients: Int[Array, ""]
    hessians: Int[Array, ""]

    def after(self, accepted: Array, rejected: Array, gradients: Any) -> "Counts":
        """These, and what an attempt has cost."""
        return Counts(self.accepted + accepted, self.rejected + rejected, self.gradients + gradients, self.hessians)


class Progress(NamedTuple):
    """How far a run has come.

    Attributes:
        place: where it is.
        length: of the next step.
        scale: of errors.
        rows: those written so far.
        counts: what it has cost.
        finite: whether all is finite in this place.
        just_rejected: whether the last attempt at a step was thrown away.
    """

    place: Place
    length: Array
    scale: Array
    rows: Rows
    counts: Counts
    finite: Bool[Array, ""]
    just_rejected: Bool[Array, ""]


class Task(NamedTuple):
    """What does not change along a run; `start` are its first parameters, `looks` says whether rows need filters."""

    flow: PaperFlow
    loss: Loss
    unravel: Callable[[Any], Params]
    start: Vector
    times: Array
    end: Array
    rtol: Scalar
    step_size: Scalar | None
    limit: Array
    max_steps: int
    looks: bool

    def loss_of(self, params: Vector) -> Array:
        """The loss as a function of the vector of all parameters."""
        return self.loss(self.unravel(params))

    def gradient(self, params: Vector) -> Vector:
        return jax.grad(self.loss_of)(params)

    def hessian(self, progress: Progress) -> Float[Array, "size size"]:
        """Where a run is, from size + 1 gradients."""
        return hessian_of(self.gradient, progress.place.params, progress.scale)

    def begin(self, place: Place) -> Progress:
        """No step done; one gradient taken."""
        zero, dtype = jnp.zeros((), int), place.params.dtype
        at_start = self.times[0] == place.time

        def first(leaf: Array) -> Array:
            row = jnp.zeros((self.times.size, *leaf.shape), leaf.dtype)
            return row.at[0].set(jnp.where(at_start, leaf, row[0]))

        rows = jax.tree.map(first, Rows(place.params, place.filters if self.looks else ()))
        counts = Counts(zero, zero, zero + 1, zero)
        return Progress(
            place,
            jnp.ones((), dtype),
            self.scale(place.params, jnp.zeros((), dtype)),
            rows,
            counts,
            jnp.array(True),
            jnp.array(False),
        )

    def unfinished(self, progress: Progress) -> Array:
        """Whether a step can and need be tried."""
        place, counts = progress.place, progress.counts
        tried = counts.accepted + counts.rejected
        going = (place.time < self.end) & (tried < self.max_steps) & (progress.length > self._smallest)
        return going & progress.finite & (jnp.max(jnp.abs(place.params)) <= self.limit)

    @property
    def _smallest(self) -> Scalar:
        """The least step that times can resolve."""
        return 10 * jnp.finfo(self.start.dtype).eps * self.end

    def after(self, time: Array, length: Array) -> Array:
        """The time when a step is done: the end itself if next to nothing would be left."""
        return jnp.where(self.end - (time + length) < self._smallest, self.end, time + length).astype(time.dtype)

    def fitted(self, time: Array, length: Array) -> Array:
        """The length of a step from a time: up to the end, if next to nothing would be left after it."""
        left = self.end - time
        return jnp.where(left < 1.01 * length, left, length)

    def code(self, progress: Progress) -> Array:
        """How the run ended: the first of these that holds."""
        place, counts = progress.place, progress.counts
        size, done = jnp.max(jnp.abs(place.params)), place.time >= self.end
        # Steps look at gradients alone, which may be finite where the loss is not.
        lost = ~jnp.isfinite(self.loss_of(place.params))
        endings = (
            (~progress.finite | ~jnp.isfinite(size), NOT_FINITE),
            (size > self.limit, DIVERGED),
            (done & lost, NOT_FINITE),
            (done, COMPLETED),
            (counts.accepted + counts.rejected >= self.max_steps, STEP_LIMIT),
        )
        code = jnp.full((), STALLED)
        for holds, meaning in reversed(endings):
            code = jnp.where(holds, meaning, code)
        return code

    def scale(self, params: Vector, before: Array) -> Array:
        """Of errors: the largest distance from the start of the run so far, and a share of what was there."""
        moved, size = (jnp.sqrt(jnp.mean(x**2)) for x in (params - self.start, self.start))
        least = jnp.maximum(before, jnp.sqrt(jnp.finfo(size.dtype).tiny))
        return jnp.maximum(moved + _SHARE_OF_START * size, least)

    def write(self, rows: Rows, step: FlowPath, ends: Float[Array, "ends size"], path: Path, good: Array) -> Rows:
        """The rows within a step that is accepted, from the polynomial through its fine nodes.

        Where a gradient crosses zero, directions between Radau's nodes may be worth nothing. There that polynomial and
        the one through the ends and nodes alone are apart, and θ is read from the latter.
        """
        begin, after = step.start.time, self.after(step.start.time, step.length)
        first, last = (jnp.searchsorted(self.times, time, side="right") for time in (begin, after))

        fine = jnp.asarray(step.nodes.fine, step.length.dtype)
        apart = along(jnp.maximum, jnp.abs(step.nodes.at(fine) @ ends - path.params))
        smooth = apart < _AGREE * path.reach

        count = jnp.where(good, last - first, 0)

        def write(index: Array, rows: Rows) -> Rows:
            # In a batch lanes write together as long as one of them has a row left; the others' goes nowhere.
            row = first + index
            place = jnp.where(index < count, row, self.times.size)
            x = jnp.minimum((self.times[row] - begin) / step.length, 1.0)
            # Differences from the start keep their digits: the weights of the finer polynomial are large.
            moved = path.params - ends[0], ends - ends[0]
            now = jnp.where(smooth, step.nodes.finely_at(x) @ moved[0], step.nodes.at(x) @ moved[1])
            params = rows.params.at[place].set(ends[0] + now, mode="drop")
            if not self.looks:
                return Rows(params, ())
            now = jax.tree.map(lambda leaf: step.nodes.finely_at(x) @ leaf, path.filters)
            now = averages.clipped(self.flow.optimizer, now)
            return Rows(
                params, jax.tree.map(lambda every, one: every.at[place].set(one, mode="drop"), rows.filters, now)
            )

        return jax.lax.fori_loop(0, eqx.internal.unvmap_max(count), write, rows)

    def state(self, place: Place) -> FlowState:
        """A flow at one time as its state."""
        velocity = self.unravel(place.velocity) if self.flow.order == 2 else None
        return FlowState(self.unravel(place.params), velocity, restore(self.unravel, place.filters))


def place_of(state: FlowState, time: Array, params: Vector, gradient: Vector) -> Place:
    """The start of a run as a place."""
    none = jnp.zeros((0,), params.dtype)
    velocity = none if state.velocity is None else ravel_pytree(state.velocity)[0]
    return Place(time, params, velocity, flat(state.filters), gradient)
