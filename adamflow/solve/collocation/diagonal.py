"""Collocation where the curvature is near diagonal: true gradients at all nodes, one secant for each coordinate."""

from typing import NamedTuple

import equinox as eqx
import equinox.internal
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from adamflow.solve.collocation.lanes import loop
from adamflow.solve.collocation.nodes import along
from adamflow.solve.collocation.path import FlowPath, Path, Place, Vector, path_over
from adamflow.solve.collocation.task import Progress, Task

#: The largest correction, in units of the tolerance, with which a step has converged, and the same for the first one.
_SETTLED, _SETTLED_AT_ONCE = 0.1, 0.01
#: Corrections at most, and the rate beyond which they diverge.
_ROUNDS, _DIVERGES = 10, 1.5
#: A coordinate that moves less than this share of the mean tells nothing of its curvature.
_TELLING = 0.1
#: The curvature is looked at after so many steps whose corrections diverge (each step that takes more than a few counts
#: half, ten others undo one), and if it is diagonal for all that, after so many times more.
_PATIENCE, _MANY, _MORE_PATIENCE = 2.5, 3, 2.0
#: It counts as diagonal if no coordinate's row has more than this beside it, in units in which the diagonal is one.
_REST = 0.2
_FIRST_STEP = 2.0


class Carry(NamedTuple):
    """A run, and the step that it is at.

    Attributes:
        progress: where the run is, as far as steps are accepted.
        path: of the step.
        nodes: θ at Radau's nodes as it stands.
        before: the same, its gradients and its correction, one round earlier.
        move: size of that correction, in units of the tolerance.
        round: corrections so far.
        curvature: ∂g/∂θ for each coordinate.
        failures: steps whose corrections diverged, less a share of the others.
        patience: how many of them are borne.
    """

    progress: Progress
    path: FlowPath
    nodes: Float[Array, "node size"]
    before: tuple[Array, Array, Array]
    move: Array
    round: Int[Array, ""]
    curvature: Vector
    failures: Array
    patience: Array


class Corrected(NamedTuple):
    """A round: gradients at the nodes, the path that they give, and what that says of the nodes."""

    gradients: Float[Array, "node size"]
    path: Path
    change: Float[Array, "node size"]
    curvature: Vector
    move: Array
    error: Array
    converged: Bool[Array, ""]
    lost: Bool[Array, ""]


class Stop(NamedTuple):
    """Where a run ended, or was found not to be near diagonal.

    Attributes:
        progress: of the run.
        coupled: whether its curvature is not diagonal, so that the rest of it takes a surrogate.
        hessian: there, where it is coupled, else zeros or the last that was looked at; `None` if it is never computed.
    """

    progress: Progress
    coupled: Bool[Array, ""]
    hessian: Float[Array, "size size"] | None


class Diagonal(NamedTuple):
    """A run that solves the equations of a step, Θ = θ(g(Θ)) at the nodes, by Newton's method coordinate by coordinate.

    With J = −∂θ/∂G of the path, second moments held, and c the curvatures, the correction of a coordinate solves
    (I + J c) δ = θ(G) − Θ, G = g(Θ); Anderson's method of depth 1 takes up what couples the coordinates. One loop runs
    over the corrections of all steps, so that lanes of a batch do not wait for each other's steps.

    Attributes:
        task: what to integrate.
        node_count: of Radau's nodes.
        checks: whether the Hessian is computed before it counts as not diagonal.
    """

    task: Task
    node_count: int
    checks: bool

    def run(self, progress: Progress) -> Stop:
        """Integrate to the end, or until the curvature turns out not to be diagonal."""
        place = progress.place
        # A constant step has nothing to change to, and one coordinate nothing to be coupled to.
        never = self.task.step_size is not None or place.params.size == 1

        def unfinished(run: Diagonal, carry: Carry) -> Array:
            return run.task.unfinished(carry.progress) & (never | (carry.failures < carry.patience))

        def go_on(state: tuple[Carry, Array, Array | None]) -> tuple[Carry, Array, Array | None]:
            carry, coupled, before = state
            carry = loop(unfinished, Diagonal._round, self, carry)
            # What ends the loop before the run is that patience has run out.
            stopped = self.task.unfinished(carry.progress) & ~coupled
            if never or before is None:
                return carry, coupled | stopped, before

            def look() -> tuple[Array, Array]:
                hessian = jnp.where(stopped, self.task.hessian(carry.progress), before)
                return hessian, stopped & near_diagonal(hessian)

            # In a batch a condition of each lane would not be one: all would compute a Hessian whenever a loop ends.
            hessian, diagonal = jax.lax.cond(
                eqx.internal.unvmap_any(stopped), look, lambda: (before, jnp.zeros_like(stopped))
            )
            counts = carry.progress.counts
            counts = counts._replace(hessians=counts.hessians + stopped)
            carry = carry._replace(
                progress=carry.progress._replace(counts=counts),
                failures=jnp.where(diagonal, 0.0, carry.failures),
                patience=jnp.where(diagonal, _MORE_PATIENCE * carry.patience, carry.patience),
            )
            return carry, coupled | (stopped & ~diagonal), hessian

        def undecided(state: tuple[Carry, Array, Array | None]) -> Array:
            return self.task.unfinished(state[0].progress) & ~state[1]

        # Of the shape of what may be computed: where none is, no run goes on from it.
        hessian = jnp.zeros((place.params.size,) * 2, place.params.dtype) if self.checks else None
        begin = self._begin(progress), jnp.array(False), hessian
        carry, coupled, hessian = jax.lax.while_loop(undecided, go_on, begin)
        return Stop(carry.progress, coupled, hessian)

    def _begin(self, progress: Progress) -> Carry:
        """The first step, and curvatures from a gradient at the end of it."""
        place, task = progress.place, self.task
        length = _FIRST_STEP if task.step_size is None else task.step_size
        length = jnp.minimum(length, task.end - place.time).astype(place.params.dtype)
        step = self._step(place, length)
        constant = jnp.broadcast_to(place.gradient, (self.node_count, place.gradient.size))
        nodes = step(constant).params[step.nodes.places]
        ahead = nodes[-1] - place.params
        change = task.gradient(nodes[-1]) - place.gradient
        curvature = jnp.maximum(change / jnp.where(ahead == 0, 1.0, ahead), 0.0)
        counts = progress.counts._replace(gradients=progress.counts.gradients + 1)
        begun = progress._replace(length=length, counts=counts, scale=task.scale(nodes[-1], progress.scale))
        zeros, zero = jnp.zeros_like(nodes), jnp.zeros((), place.params.dtype)
        patience = zero + _PATIENCE
        return Carry(
            begun, step, nodes, (nodes, zeros, zeros), zero + jnp.inf, jnp.zeros((), int), curvature, zero, patience
        )

    def _step(self, place: Place, length: Array) -> FlowPath:
        return path_over(self.task.flow, self.task.unravel, self.node_count, place, length)

    def _corrected(self, carry: Carry) -> Corrected:
        """One batch of gradients, and the correction that follows from it."""
        step, nodes = carry.path, carry.nodes
        gradients = jax.vmap(self.task.gradient)(nodes)
        moved, changed = nodes - carry.before[0], gradients - carry.before[1]
        size = along(jnp.add, moved * moved)
        telling = (size > _TELLING**2 * jnp.mean(size)) & (carry.round > 0)
        secant = jnp.maximum(along(jnp.add, moved * changed) / jnp.where(telling, size, 1.0), 0.0)
        curvature = jnp.where(telling & jnp.isfinite(secant), secant, carry.curvature)

        path, slopes, gained = step.responses(gradients)
        matrix = jnp.eye(self.node_count, dtype=nodes.dtype)[:, :, None] + slopes * curvature
        # One elimination for both: Newton's correction, and the error of a polynomial that ignores the left end.
        change, error = solve(matrix, jnp.stack([path.params[step.nodes.places] - nodes, gained]))
        again = solve(matrix, error[None])[0]
        move, error, again = (self._norm(x, carry) for x in (change, error, again))
        rate = move / carry.move
        settled = move * jnp.minimum(rate, 1.0) < _SETTLED
        converged = jnp.where(carry.round > 0, settled, move < _SETTLED_AT_ONCE)
        lost = ~jnp.isfinite(move) | ((carry.round > 2) & (rate > _DIVERGES)) | (carry.round + 1 >= _ROUNDS)
        # After a rejection a stiff error is damped once more, as in Hairer and Wanner's Radau5.
        error = jnp.where((error > 1) & carry.progress.just_rejected, again, error)
        return Corrected(gradients, path, change, curvature, move, error, converged, lost & ~converged)

    def _norm(self, values: Float[Array, "node size"], carry: Carry) -> Array:
        largest = jnp.max(jnp.mean(values * values, axis=-1))
        return jnp.sqrt(largest) / (self.task.rtol * carry.progress.scale)

    def _round(self, carry: Carry) -> Carry:
        """A correction; where it is the last of its step, the step is accepted or not and the next one begun."""
        progress, step, now = carry.progress, carry.path, self._corrected(carry)
        constant = self.task.step_size
        good = now.converged & ((constant is not None) | (now.error <= 1))
        done = now.converged | now.lost
        nodes = carry.nodes + now.change
        ends = jnp.concatenate([step.start.params[None], nodes])
        before = progress.place, progress.scale, progress.finite
        end = self._end(carry, now, ends)
        place, scale, finite = jax.tree.map(lambda a, b: jnp.where(good, a, b), end, before)
        # A constant step whose corrections diverge ends the run: a length of 0 says so.
        longer = step.length * self._factor(carry, now, good)
        length = longer if constant is None else jnp.where(good, constant, 0.0)
        length = jnp.where(done, self.task.fitted(place.time, length), step.length).astype(step.length.dtype)
        following = jax.lax.cond(done, lambda: self._step(place, length), lambda: step)
        # The next step starts from the polynomial of this one, if that is worth anything.
        x = (good + length / step.length * jnp.asarray(step.nodes.radau)).astype(nodes.dtype)
        guess = step.nodes.at(x) @ ends
        counts = progress.counts.after(good, done & ~good, self.node_count)
        rows = self.task.write(progress.rows, step, ends, now.path, good)
        progress = Progress(
            place,
            length,
            scale,
            rows,
            counts,
            finite,
            jnp.where(done, ~good, progress.just_rejected),
        )
        many = (carry.round >= _MANY) & now.converged
        # Beyond the domain of the loss no curvature helps, only shorter steps do.
        diverged = now.lost & jnp.isfinite(now.move)
        failures = carry.failures + jnp.where(diverged, 1.0, jnp.where(many, 0.5, -0.1 * now.converged))
        failures = jnp.maximum(failures, 0.0).astype(carry.failures.dtype)
        return Carry(
            progress,
            following,
            jnp.where(done, jnp.where(now.converged, guess, place.params), self._accelerated(carry, now)),
            (carry.nodes, now.gradients, now.change),
            jnp.where(done, jnp.inf, now.move),
            jnp.where(done, 0, carry.round + 1),
            now.curvature,
            failures,
            carry.patience,
        )

    def _accelerated(self, carry: Carry, now: Corrected) -> Float[Array, "node size"]:
        """Anderson's method of depth 1: the combination of the last two corrections that is smallest."""
        nodes, _, change = carry.before
        difference = now.change - change
        size = jnp.maximum(jnp.sum(difference * difference), jnp.finfo(difference.dtype).tiny)
        share = jnp.clip(jnp.sum(now.change * difference) / size, -2.0, 2.0)
        share = jnp.where(carry.round > 0, share, 0.0)
        return carry.nodes + now.change - share * (carry.nodes - nodes + difference)

    def _end(self, carry: Carry, now: Corrected, ends: Array) -> tuple[Place, Array, Array]:
        """Where the step leads, the scale there, and whether all is finite."""
        time = self.task.after(carry.path.start.time, carry.path.length)
        gradient = now.gradients[-1] + now.curvature * now.change[-1]
        end: Path = jax.tree.map(lambda leaf: leaf[-1], now.path)
        place = carry.path.start._replace(
            time=time, params=ends[-1], velocity=end.velocity, filters=end.filters, gradient=gradient
        )
        finite = jnp.all(jnp.isfinite(gradient)) & jnp.all(jnp.isfinite(ends[-1]))
        return place, self.task.scale(ends[-1], carry.progress.scale), finite

    def _factor(self, carry: Carry, now: Corrected, good: Array) -> Array:
        """By how much the next step is longer: by its error, and by the corrections that this one took."""
        order = 1 / (self.node_count + 1)
        by_error = 0.9 * jnp.maximum(now.error, 1e-6) ** -order
        by_rounds = jnp.sqrt(6.0 / (carry.round + 1))
        longest = jnp.where(carry.progress.just_rejected, 1.0, 4.0)
        longer = jnp.clip(jnp.minimum(by_error, by_rounds), 0.3, longest)
        known = now.converged & jnp.isfinite(now.error)
        shorter = jnp.where(known, jnp.clip(0.8 * now.error**-order, 0.2, 0.9), 0.5)
        return jnp.where(good, longer, shorter)


def near_diagonal(hessian: Float[Array, "size size"]) -> Bool[Array, ""]:
    """Whether the Hessian is, whatever the units of the coordinates; one that is not finite is not.

    What is beside a curvature that is not positive counts as large.
    """
    diagonal = jnp.diagonal(hessian)
    # Beside the largest, curvatures below the error of the differences are 0.
    least = jnp.sqrt(jnp.finfo(diagonal.dtype).eps) * jnp.max(jnp.abs(diagonal))
    root = jnp.sqrt(jnp.maximum(diagonal, least))
    beside = hessian - jnp.diag(diagonal)
    rest = jnp.where(beside == 0, 0.0, beside / (root[:, None] * root))
    # Of the rows the largest: one coupled pair takes as many rounds among many coordinates as alone.
    return jnp.max(jnp.sum(rest**2, axis=-1)) <= _REST**2


def solve(matrix: Float[Array, "node node size"], right: Float[Array, "*side node size"]) -> Array:
    """x of A x = b for each coordinate, by elimination: A is near the identity plus a positive matrix."""
    count = matrix.shape[0]
    rows = [[matrix[i, j] for j in range(count)] for i in range(count)]
    values = [right[..., i, :] for i in range(count)]
    for k in range(count):
        for i in range(k + 1, count):
            share = rows[i][k] / rows[k][k]
            rows[i] = [a - share * b for a, b in zip(rows[i], rows[k], strict=True)]
            values[i] = values[i] - share * values[k]
    for k in reversed(range(count)):
        rest = sum((rows[k][j] * values[j] for j in range(k + 1, count)), 0.0)
        values[k] = (values[k] - rest) / rows[k][k]
    return jnp.stack(values, axis=-2)
