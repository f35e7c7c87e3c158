"""One step of collocation on a surrogate of the gradient, checked against true gradients at its end."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from adamflow.solve.collocation.curvature import (
    Curvature,
    DenseSolver,
    LowRankSolver,
    Metric,
    add_secant,
    dense_solver,
    low_rank_solver,
    metric_of,
    solve_curved,
)
from adamflow.solve.collocation.nodes import extrapolation
from adamflow.solve.collocation.path import FlowPath, Path, Vector
from adamflow.types import Scalar

#: A correction beyond this, in units of the tolerance, will not converge.
_HOPELESS = 1e6
#: The same for a rate, while corrections matter.
_DIVERGES = 1.5
#: Iterations without gradients stop at this share of the last correction, after the first gradient at the tolerance.
_SHARE_OF_MOVE, _FIRST_TOLERANCE = 0.03, 0.3
#: What the gradient at the end is expected to leave of the inflation that it finds, as long as no second one has.
_FIRST_RATE = 0.25


class Settings(NamedTuple):
    """How a step is taken; numbers of the error's norm are in units of the tolerance.

    Attributes:
        nodes: Radau's, 2 or 3.
        past: how many true gradients the surrogate's constant part is extrapolated from.
        rank: of the Hessian that is learnt.
        dense: whether the Hessian is computed instead, for few parameters.
        rounds: true gradients in a step at most.
        inner_rounds: iterations without gradients at most, after each of them.
        outer_tolerance: how far the end may move at the last true gradient.
        inner_tolerance: how far the iterations without need go at most, in units of that.
        inflation: how much the direction may fall because second moments average, like noise, what the surrogate does
            not know of the gradient at the end; in units of rtol, but of 1 with the Hessian itself.
        filtered: how often the estimate of the error goes through (I + H p)⁻¹, which stiff parts of it need.
        weight_of_correction: of the difference between prediction and result in that estimate.
    """

    nodes: int = 2
    past: int = 3
    rank: int = 40
    dense: bool = False
    rounds: int = 6
    inner_rounds: int = 20
    outer_tolerance: float = 0.1
    inner_tolerance: float = 0.05
    inflation: float = 0.05
    filtered: int = 1
    weight_of_correction: float = 0.5

    @property
    def width(self) -> int:
        """The columns of H with those that a step adds."""
        return self.rank + self.rounds


class Past(NamedTuple):
    """The last true gradients, and where they were taken."""

    times: Float[Array, " past"]
    params: Float[Array, "past size"]
    gradients: Float[Array, "past size"]


class Attempt(NamedTuple):
    """A step as far as it has come; `end` and `true` are the last place of a true gradient, and that gradient."""

    round: Int[Array, ""]
    evaluations: Int[Array, ""]
    gradients: Float[Array, "node size"]
    curvature: Curvature
    metric: Metric
    slopes: Float[Array, "node node size"]
    end: Vector
    true: Vector
    path: Path
    move: Float[Array, ""]
    inflation: Float[Array, ""]
    inflation_rate: Float[Array, ""]
    rate: Float[Array, ""]
    worst_rate: Float[Array, ""]
    correction: Float[Array, ""]
    solved: Bool[Array, ""]
    converged: Bool[Array, ""]
    alive: Bool[Array, ""]


class Step(eqx.Module):
    """The equations of a step: gradients G at the nodes, θ(G) by the path, and the surrogate G = e + H (θ − θ₀).

    H is of low rank and e = g − H θ is extrapolated from the past's true gradients and one at the end of the step,
    which each round takes anew. Between two of them Newton's method with the slopes of the path solves for G.
    """

    path: FlowPath
    gradient: Callable[[Vector], Vector]
    past: Past
    scale: Scalar
    rtol: Scalar
    settings: Settings = eqx.field(static=True)

    def attempt(self, known: Curvature, rate: Array) -> Attempt:
        """Rounds until the end stays where it is and the gradient there is what the surrogate says, or hope is lost."""
        if self.settings.dense:
            # Where v is fast it matters more that second moments of the guess are those of a gradient than that it is
            # near.
            guess = jnp.broadcast_to(self.past.gradients[-1], (self.settings.nodes, self.past.params.shape[-1]))
        else:
            guess = extrapolation(self._places, self._radau) @ self.past.gradients
        one, zero = jnp.ones((), guess.dtype), jnp.zeros((), int)
        shape = jax.eval_shape(lambda: self.path(guess))
        slopes = self.path.slopes(guess)
        metric = metric_of(slopes)
        begin = Attempt(
            round=zero,
            evaluations=zero,
            gradients=guess,
            curvature=known.weighed(metric),
            metric=metric,
            slopes=slopes,
            end=self.past.params[-1],
            true=self.past.gradients[-1],
            path=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape),
            move=one * jnp.inf,
            inflation=0 * one,
            inflation_rate=one,
            rate=rate,
            worst_rate=0 * one,
            correction=one * jnp.inf,
            solved=jnp.array(True),
            converged=jnp.array(False),
            alive=jnp.array(True),
        )

        def unfinished(tried: Attempt) -> Array:
            return (tried.round <= self.settings.rounds) & ~tried.converged & tried.alive

        return jax.lax.while_loop(unfinished, lambda tried: self._round(tried), begin)

    def error(self, tried: Attempt) -> Array:
        """The error of the end: how far it is from that of the polynomial through the left end, or from prediction."""
        other = self.path(tried.gradients, from_left=True)
        error, known = other.params[-1] - tried.path.params[-1], tried.curvature
        one = jnp.eye(known.core.shape[0], dtype=error.dtype)
        for _ in range(self.settings.filtered):
            (image,) = known.images(error[None])
            image = known.core @ jnp.linalg.solve(one + known.gram @ known.core, image)
            error = error - tried.metric * known.spread(image[None])[0]
        return jnp.maximum(self._norm(error), self.settings.weight_of_correction * tried.correction)

    @property
    def _inflation_limit(self) -> Scalar:
        return self.settings.inflation * (1.0 if self.settings.dense else self.rtol)

    @property
    def _radau(self) -> Array:
        return jnp.asarray(self.path.nodes.radau, self.path.start.params.dtype)

    @property
    def _places(self) -> Array:
        """The times of the past's gradients, in units of the step from its start."""
        return (self.past.times - self.path.start.time) / self.path.length

    def _norm(self, error: Array) -> Array:
        return jnp.sqrt(jnp.mean(error * error, axis=-1)) / self.scale

    def _interpolated(self, tried: Attempt) -> tuple[Array, Array]:
        """g and θ − θ₀ at the nodes through which e goes: of the past alone before there is a gradient at the end."""
        latest = jnp.append(self._places, jnp.ones((), tried.true.dtype))
        first = jnp.pad(extrapolation(self._places, self._radau), ((0, 0), (0, 1)))
        weights = jnp.where(tried.round == 0, first, extrapolation(latest, self._radau))
        gradients = jnp.concatenate([self.past.gradients, tried.true[None]])
        moved = jnp.concatenate([self.past.params, tried.end[None]]) - self.path.start.params
        return weights @ gradients, weights @ moved

    def _solve(self, tried: Attempt) -> tuple[Array, Array, Array]:
        """G of the surrogate, the slopes there, and the last correction of θ."""
        interpolated, through = self._interpolated(tried)
        tolerance, places = self._inner_tolerance(tried), self.path.nodes.places

        known = tried.curvature
        hessian = known.columns @ known.columns.T if self.settings.dense else None

        def with_slopes(slopes: Array, metric: Metric | None = None) -> DenseSolver | LowRankSolver:
            if hessian is not None:
                return dense_solver(hessian, slopes)
            # The Gram matrix of the curvature at hand is in the metric that the attempt began with.
            if metric is not None:
                return low_rank_solver(known, slopes, metric)
            metric = metric_of(slopes)
            return low_rank_solver(known.weighed(metric), slopes, metric)

        def renewed(gradients: Array) -> tuple[Array, DenseSolver | LowRankSolver]:
            path, slopes, _ = self.path.responses(gradients)
            return path.params, with_slopes(slopes)

        def correct(carry: tuple) -> tuple:
            round, gradients, solver, before, slow = carry
            params, solver = jax.lax.cond(
                slow, lambda: renewed(gradients), lambda: (self.path(gradients).params, solver)
            )
            moved = params[places] - self.path.start.params - through
            change = solve_curved(known, solver, interpolated - gradients, moved)
            move = jnp.max(self._norm(jnp.einsum("ijd,jd->id", solver.slopes, change)))
            return round + 1, gradients + change, solver, move, move > 0.2 * before

        def unfinished(carry: tuple) -> Array:
            return (carry[0] < self.settings.inner_rounds) & (carry[3] > tolerance) & (carry[3] < 100 * _HOPELESS)

        now = with_slopes(tried.slopes, tried.metric)
        begin = (0, tried.gradients, now, jnp.asarray(10 * _HOPELESS, interpolated.dtype), jnp.array(False))
        _, gradients, solver, move, _ = jax.lax.while_loop(unfinished, correct, begin)
        return gradients, solver.slopes, move

    def _inner_tolerance(self, tried: Attempt) -> Array:
        """How far iterations without gradients may be from their end: a small part of what the next gradient moves."""
        least = self.settings.inner_tolerance * self.settings.outer_tolerance
        if self.settings.dense:
            return jnp.asarray(least, tried.move.dtype)
        return jnp.clip(_SHARE_OF_MOVE * tried.move, least, _FIRST_TOLERANCE)

    def _round(self, tried: Attempt) -> Attempt:
        """Solve on the surrogate, and unless that has settled, take the true gradient at the end."""
        settings, first = self.settings, tried.round == 0
        gradients, slopes, inner = self._solve(tried)
        path = self.path(gradients)
        move = jnp.where(first, jnp.inf, self._norm(path.params[-1] - tried.end)).astype(inner.dtype)
        measured = move / tried.move
        rate = jnp.where(tried.round > 1, measured, tried.rate)
        solved = inner <= 5 * self._inner_tolerance(tried)
        left = tried.inflation * jnp.minimum(tried.inflation_rate, 1.0)
        settled = (move * jnp.minimum(rate, 1.0) < settings.outer_tolerance) & (left < self._inflation_limit)
        converged = ~first & settled & (inner <= settings.outer_tolerance)
        diverges = (tried.round > 2) & (rate > _DIVERGES) & (move > settings.outer_tolerance)
        lost = ~solved | (~first & ~(move < _HOPELESS)) | diverges
        stop = converged | lost | (tried.round >= settings.rounds)
        before = (tried.end, tried.true, tried.curvature, tried.inflation)
        end, true, known, inflation = jax.lax.cond(stop, lambda: before, lambda: self._look(tried, path, gradients))
        ratio = jnp.where(first, _FIRST_RATE, inflation / jnp.maximum(tried.inflation, 1e-30))
        return Attempt(
            round=tried.round + 1,
            evaluations=tried.evaluations + ~stop,
            gradients=gradients,
            curvature=known,
            metric=tried.metric,
            slopes=slopes,
            end=end,
            true=true,
            path=path,
            move=move,
            inflation=inflation,
            inflation_rate=jnp.where(stop, tried.inflation_rate, ratio).astype(left.dtype),
            rate=rate,
            worst_rate=jnp.where(tried.round > 1, jnp.maximum(tried.worst_rate, measured), tried.worst_rate),
            correction=jnp.where(tried.round == 1, move, tried.correction),
            solved=solved,
            converged=converged,
            alive=~lost,
        )

    def _look(self, tried: Attempt, path: Path, gradients: Array) -> tuple[Vector, Vector, Curvature, Array]:
        """The end, the true gradient there, what H learns from it, and the inflation by what it did not know."""
        end, settings = path.params[-1], self.settings
        true = self.gradient(end)
        inflation = self.path.inflation(path, gradients[-1], true - gradients[-1])
        if settings.dense:
            return end, true, tried.curvature, inflation
        place = settings.rank + tried.round
        known = add_secant(tried.curvature, place, end - tried.end, true - tried.true, tried.metric)
        return end, true, known, inflation
