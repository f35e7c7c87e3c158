"""One step of collocation on a surrogate of the gradient, checked against true gradients at its end."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from adamflow.solve.collocation import curvature
from adamflow.solve.collocation.nodes import extrapolation
from adamflow.solve.collocation.path import FlowPath, Path, Vector
from adamflow.types import Scalar

#: A correction beyond this, in units of the tolerance, will not converge.
_HOPELESS = 1e6


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
        inner_tolerance: the same for the iterations without, in units of that.
        residual: of the gradient at the end, relative, weighted by what it does to θ. A part of it that H does not know
            would inflate the second moments like noise.
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
    residual: float = 0.02
    filtered: int = 1
    weight_of_correction: float = 0.5


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
    factor: curvature.Factor
    slopes: Float[Array, "node node size"]
    end: Vector
    true: Vector
    path: Path
    move: Float[Array, ""]
    residual: Float[Array, ""]
    residual_rate: Float[Array, ""]
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
    settings: Settings = eqx.field(static=True)

    def attempt(self, factor: curvature.Factor, rate: Array) -> Attempt:
        """Rounds until the end stays where it is and the gradient there is what the surrogate says, or hope is lost."""
        guess = extrapolation(self._places, self._radau) @ self.past.gradients
        one, zero = jnp.ones((), guess.dtype), jnp.zeros((), int)
        shape = jax.eval_shape(lambda: self.path(guess))
        begin = Attempt(
            round=zero,
            evaluations=zero,
            gradients=guess,
            factor=factor,
            slopes=self.path.slopes(guess),
            end=self.past.params[-1],
            true=self.past.gradients[-1],
            path=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape),
            move=one * jnp.inf,
            residual=0 * one,
            residual_rate=one,
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
        error, metric, factor = other.params[-1] - tried.path.params[-1], _metric(tried.slopes), tried.factor
        gram = jnp.eye(factor.shape[1], dtype=error.dtype) + factor.T @ (metric[:, None] * factor)
        for _ in range(self.settings.filtered):
            error = error - metric * (factor @ jnp.linalg.solve(gram, factor.T @ error))
        return jnp.maximum(self._norm(error), self.settings.weight_of_correction * tried.correction)

    @property
    def _radau(self) -> Array:
        return jnp.asarray(self.path.nodes.radau, self.path.start.params.dtype)

    @property
    def _places(self) -> Array:
        """The times of the past's gradients, in units of the step from its start."""
        return (self.past.times - self.path.start.time) / self.path.length

    def _norm(self, error: Array) -> Array:
        return jnp.sqrt(jnp.mean(error * error, axis=-1)) / self.scale

    def _constant_part(self, tried: Attempt) -> Array:
        """e at the nodes: from the past alone before there is a gradient at the end."""
        known = self.past.gradients - curvature.product(tried.factor, self.past.params - self.path.start.params)
        end = tried.true - curvature.product(tried.factor, tried.end - self.path.start.params)
        every = jnp.append(self._places, jnp.ones((), end.dtype))
        return jnp.where(
            tried.round == 0,
            extrapolation(self._places, self._radau) @ known,
            extrapolation(every, self._radau) @ jnp.concatenate([known, end[None]]),
        )

    def _solve(self, constant: Array, tried: Attempt) -> tuple[Array, Array, Array]:
        """G of the surrogate, the slopes there, and the last correction of θ."""
        tolerance = self.settings.inner_tolerance * self.settings.outer_tolerance
        places = self.path.nodes.places

        def known(slopes: Array) -> curvature.Solver:
            return curvature.solver(slopes, tried.factor, _metric(slopes), not self.settings.dense)

        def correct(carry: tuple) -> tuple:
            round, gradients, solver, before = carry
            params = self.path(gradients).params[places]
            wanted = constant + curvature.product(tried.factor, params - self.path.start.params)
            change = curvature.solve_curved(solver, wanted - gradients)
            move = jnp.max(self._norm(jnp.einsum("ijd,jd->id", solver.slopes, change)))
            gradients = gradients + change
            slow = (move > 0.2 * before) & (move > tolerance)
            solver = jax.lax.cond(slow, lambda: known(self.path.slopes(gradients)), lambda: solver)
            return round + 1, gradients, solver, move

        def unfinished(carry: tuple) -> Array:
            return (carry[0] < self.settings.inner_rounds) & (carry[3] > tolerance) & (carry[3] < 100 * _HOPELESS)

        begin = (0, tried.gradients, known(tried.slopes), jnp.asarray(10 * _HOPELESS, constant.dtype))
        _, gradients, solver, move = jax.lax.while_loop(unfinished, correct, begin)
        return gradients, solver.slopes, move

    def _round(self, tried: Attempt) -> Attempt:
        """Solve on the surrogate, and unless that has settled, take the true gradient at the end."""
        settings, first = self.settings, tried.round == 0
        gradients, slopes, inner = self._solve(self._constant_part(tried), tried)
        path = self.path(gradients)
        move = jnp.where(first, jnp.inf, self._norm(path.params[-1] - tried.end)).astype(inner.dtype)
        measured = move / tried.move
        rate = jnp.where(tried.round > 1, measured, tried.rate)
        solved = inner <= 5 * settings.inner_tolerance * settings.outer_tolerance
        residual = tried.residual * jnp.minimum(tried.residual_rate, 1.0)
        settled = (move * jnp.minimum(rate, 1.0) < settings.outer_tolerance) & (residual < settings.residual)
        converged = ~first & settled & solved
        lost = ~solved | (~first & ~(move < _HOPELESS)) | ((tried.round > 2) & (rate > 1.5))
        stop = converged | lost
        metric = _metric(slopes)

        def look() -> tuple[Array, ...]:
            end = path.params[-1]
            true = self.gradient(end)
            # The largest of the last gradients: where one crosses zero, its size of the moment says nothing.
            size = jnp.maximum(jnp.abs(true), jnp.max(jnp.abs(self.past.gradients), axis=0))
            total = jnp.maximum(jnp.sum((metric * size) ** 2), jnp.finfo(true.dtype).tiny)
            rest = jnp.sum((metric * (true - gradients[-1])) ** 2) / total
            if settings.dense:
                return end, true, tried.factor, jnp.sqrt(rest)
            factor = curvature.add_secant(tried.factor, end - tried.end, true - tried.true, metric / self.path.length)
            return end, true, factor, jnp.sqrt(rest)

        end, true, factor, left = jax.lax.cond(
            stop, lambda: (tried.end, tried.true, tried.factor, tried.residual), look
        )
        ratio = jnp.where(first, 0.5, left / jnp.maximum(tried.residual, 1e-30))
        return Attempt(
            round=tried.round + 1,
            evaluations=tried.evaluations + ~stop,
            gradients=gradients,
            factor=factor,
            slopes=slopes,
            end=end,
            true=true,
            path=path,
            move=move,
            residual=left,
            residual_rate=jnp.where(stop, tried.residual_rate, ratio).astype(left.dtype),
            rate=rate,
            worst_rate=jnp.where(tried.round > 1, jnp.maximum(tried.worst_rate, measured), tried.worst_rate),
            correction=jnp.where(tried.round == 1, move, tried.correction),
            solved=solved,
            converged=converged,
            alive=~lost,
        )


def _metric(slopes: Array) -> Array:
    """The slope of θ at the end by the gradient there, for each coordinate; positive."""
    last = slopes[-1, -1]
    return jnp.maximum(last, 1e-12 * jnp.max(jnp.abs(last)))
