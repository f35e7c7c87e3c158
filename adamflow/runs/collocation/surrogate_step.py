"""One step of collocation on a surrogate of the gradient, checked against true gradients at its end."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from adamflow.runs.collocation.integration import DIVERGENCE_RATE
from adamflow.runs.collocation.low_rank_hessian import (
    LowRankHessian,
    LowRankSolver,
    Metric,
    end_metric,
    low_rank_solver,
    solve_newton_system,
    sr1_update,
)
from adamflow.runs.collocation.nodes import lagrange_weights
from adamflow.runs.collocation.step_integrator import StageValues, StepIntegrator, StepSolution, Vector
from adamflow.types import Scalar

#: A correction beyond this, in units of the tolerance, will not converge.
_MAX_CORRECTION = 1e6
#: Inner iterations stop at this share of the last correction, after the first gradient at a share of the tolerance.
_INNER_TOLERANCE_RATIO = 0.03
_FIRST_INNER_TOLERANCE = 0.3
#: What the gradient at the end is expected to leave of the noise that it finds, as long as no second one has.
_FIRST_NOISE_RATE = 0.25


class SurrogateSettings(NamedTuple):
    """How a step is taken; norms of errors are in units of the tolerance.

    Attributes:
        nodes: Radau's.
        history_length: how many true gradients the surrogate's constant part is extrapolated from.
        rank: of the Hessian.
        max_outer_iterations: true gradients in a step at most.
        max_inner_iterations: iterations without gradients at most, after each of them.
        outer_tolerance: how far the end may move at the last true gradient.
        inner_tolerance: how far inner iterations go at most, in units of that.
        noise_tolerance: how much the direction may fall because second moments average, like noise, what the surrogate
            does not know of the gradient at the end; in units of rtol.
        weight_of_correction: of the difference between prediction and result in the estimate of the error.
    """

    nodes: int = 2
    history_length: int = 3
    rank: int = 40
    max_outer_iterations: int = 6
    max_inner_iterations: int = 20
    outer_tolerance: float = 0.1
    inner_tolerance: float = 0.05
    noise_tolerance: float = 0.05
    weight_of_correction: float = 0.5

    @property
    def width(self) -> int:
        """The columns of H with those that a step adds."""
        return self.rank + self.max_outer_iterations


class GradientHistory(NamedTuple):
    """The last true gradients, and where they were taken."""

    times: Float[Array, " past"]
    params: Float[Array, "past size"]
    gradients: Float[Array, "past size"]


class TrialStep(NamedTuple):
    """A step as far as it has come.

    Attributes:
        outer_iteration: how many have been done.
        gradient_evaluations: in this step.
        gradients: of the surrogate, at the nodes.
        hessian: with what this step has added.
        metric: of its Gram matrix.
        stage_jacobian: −∂θᵢ/∂Gⱼ at these gradients.
        end_params: where the last true gradient was taken.
        end_gradient: that gradient.
        solution: of the step.
        end_displacement: by how much the end moved in the last outer iteration, in units of the tolerance.
        noise: what second moments average of the gradient at the end, relative to the direction.
        noise_rate: what an outer iteration leaves of it.
        contraction_rate: of the last outer iterations.
        max_contraction_rate: of the step.
        first_correction: by how far the end moved after the first true gradient of the step.
        inner_converged: whether the inner iterations have.
        converged: whether the step has.
        can_continue: whether more outer iterations may help.
    """

    outer_iteration: Int[Array, ""]
    gradient_evaluations: Int[Array, ""]
    gradients: StageValues
    hessian: LowRankHessian
    metric: Metric
    stage_jacobian: Float[Array, "node node size"]
    end_params: Vector
    end_gradient: Vector
    solution: StepSolution
    end_displacement: Float[Array, ""]
    noise: Float[Array, ""]
    noise_rate: Float[Array, ""]
    contraction_rate: Float[Array, ""]
    max_contraction_rate: Float[Array, ""]
    first_correction: Float[Array, ""]
    inner_converged: Bool[Array, ""]
    converged: Bool[Array, ""]
    can_continue: Bool[Array, ""]


class SurrogateStep(eqx.Module):
    """The equations of a step: gradients G at the nodes, θ(G) by the integrator, and the surrogate G = e + H (θ − θ₀).

    H is of low rank and e = g − H θ is extrapolated from the last true gradients and one at the end of the step, which
    each outer iteration evaluates again. Between two of them Newton's method solves for G without gradients.
    """

    integrator: StepIntegrator
    gradient: Callable[[Vector], Vector]
    history: GradientHistory
    tolerance: Scalar
    rtol: Scalar
    settings: SurrogateSettings = eqx.field(static=True)

    def solve(self, hessian: LowRankHessian, contraction_rate: Array) -> TrialStep:
        """Outer iterations until the end does not move and the gradient there is the surrogate's, or they fail."""
        guess = lagrange_weights(self._history_times, self._radau) @ self.history.gradients
        one, zero = jnp.ones((), guess.dtype), jnp.zeros((), int)
        stage_jacobian = self.integrator.linearize(guess).stage_jacobian
        metric = end_metric(stage_jacobian)
        shape = jax.eval_shape(lambda: self.integrator(guess))
        start = TrialStep(
            outer_iteration=zero,
            gradient_evaluations=zero,
            gradients=guess,
            hessian=hessian.with_metric(metric),
            metric=metric,
            stage_jacobian=stage_jacobian,
            end_params=self.history.params[-1],
            end_gradient=self.history.gradients[-1],
            solution=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape),
            end_displacement=one * jnp.inf,
            noise=0 * one,
            noise_rate=one,
            contraction_rate=contraction_rate,
            max_contraction_rate=0 * one,
            first_correction=one * jnp.inf,
            inner_converged=jnp.array(True),
            converged=jnp.array(False),
            can_continue=jnp.array(True),
        )

        def should_continue(trial: TrialStep) -> Array:
            more = trial.outer_iteration <= self.settings.max_outer_iterations
            return more & ~trial.converged & trial.can_continue

        return jax.lax.while_loop(should_continue, lambda trial: self._outer_iterate(trial), start)

    def error(self, trial: TrialStep, repeats: Array) -> Array:
        """The error of the end: what the polynomial through the left end changes, or half of the first correction.

        Args:
            trial: the step.
            repeats: how many such steps an error lives for, at least 1.
        """
        other = self.integrator(trial.gradients, include_left_end=True)
        difference, hessian = other.params[-1] - trial.solution.params[-1], trial.hessian
        # Its stiff part is damped by (I + p H)⁻¹, as in Hairer and Wanner's Radau5.
        identity = jnp.eye(hessian.core.shape[0], dtype=difference.dtype)
        (image,) = hessian.project(difference[None])
        image = hessian.core @ jnp.linalg.solve(identity + hessian.gram @ hessian.core, image)
        difference = difference - trial.metric * hessian.expand(image[None])[0]
        of_params = self._norm(difference)
        return repeats * jnp.maximum(of_params, self.settings.weight_of_correction * trial.first_correction)

    @property
    def _radau(self) -> Array:
        return jnp.asarray(self.integrator.nodes.radau, self.integrator.start.params.dtype)

    @property
    def _history_times(self) -> Array:
        """The times of the history's gradients, in units of the step from its start."""
        return (self.history.times - self.integrator.start.time) / self.integrator.step_size

    def _norm(self, error: Array) -> Array:
        return jnp.sqrt(jnp.mean(error * error, axis=-1)) / self.tolerance

    def _interpolated(self, trial: TrialStep) -> tuple[Array, Array]:
        """g and θ − θ₀ at the nodes through which e goes: of the history alone without a gradient at the end."""
        latest = jnp.append(self._history_times, jnp.ones((), trial.end_gradient.dtype))
        first = jnp.pad(lagrange_weights(self._history_times, self._radau), ((0, 0), (0, 1)))
        weights = jnp.where(trial.outer_iteration == 0, first, lagrange_weights(latest, self._radau))
        gradients = jnp.concatenate([self.history.gradients, trial.end_gradient[None]])
        moved = jnp.concatenate([self.history.params, trial.end_params[None]]) - self.integrator.start.params
        return weights @ gradients, weights @ moved

    def _inner_solve(self, trial: TrialStep) -> tuple[Array, Array, Array]:
        """G of the surrogate, the stage Jacobian there, and the last correction of θ."""
        interpolated, moved_through = self._interpolated(trial)
        tolerance, indices = self._inner_tolerance(trial), self.integrator.nodes.radau_indices

        def refresh_jacobian(gradients: Array) -> tuple[Array, LowRankSolver]:
            linearization = self.integrator.linearize(gradients)
            metric = end_metric(linearization.stage_jacobian)
            hessian = trial.hessian.with_metric(metric)
            return linearization.solution.params, low_rank_solver(hessian, linearization.stage_jacobian, metric)

        def correct(carry: tuple) -> tuple:
            iteration, gradients, solver, previous_norm, contracts_slowly = carry
            params, solver = jax.lax.cond(
                contracts_slowly,
                lambda: refresh_jacobian(gradients),
                lambda: (self.integrator(gradients).params, solver),
            )
            moved = params[indices] - self.integrator.start.params - moved_through
            correction = solve_newton_system(trial.hessian, solver, interpolated - gradients, moved)
            norm = jnp.max(self._norm(jnp.einsum("ijd,jd->id", solver.stage_jacobian, correction)))
            return iteration + 1, gradients + correction, solver, norm, norm > 0.2 * previous_norm

        def should_continue(carry: tuple) -> Array:
            iteration, _, _, norm, _ = carry
            more = iteration < self.settings.max_inner_iterations
            return more & (norm > tolerance) & (norm < 100 * _MAX_CORRECTION)

        # The Gram matrix of the Hessian at hand is in the metric that the step began with.
        solver = low_rank_solver(trial.hessian, trial.stage_jacobian, trial.metric)
        first_norm = jnp.asarray(10 * _MAX_CORRECTION, interpolated.dtype)
        start = (0, trial.gradients, solver, first_norm, jnp.array(False))
        _, gradients, solver, norm, _ = jax.lax.while_loop(should_continue, correct, start)
        return gradients, solver.stage_jacobian, norm

    def _inner_tolerance(self, trial: TrialStep) -> Array:
        """How far inner iterations may be from their end: a small part of what the next gradient moves."""
        least = self.settings.inner_tolerance * self.settings.outer_tolerance
        return jnp.clip(_INNER_TOLERANCE_RATIO * trial.end_displacement, least, _FIRST_INNER_TOLERANCE)

    def _outer_iterate(self, trial: TrialStep) -> TrialStep:
        """Solve on the surrogate and, unless that has converged, evaluate the true gradient at the end."""
        settings, first = self.settings, trial.outer_iteration == 0
        gradients, stage_jacobian, inner_norm = self._inner_solve(trial)
        solution = self.integrator(gradients)
        displacement = jnp.where(first, jnp.inf, self._norm(solution.params[-1] - trial.end_params))
        displacement = displacement.astype(inner_norm.dtype)
        measured_rate = displacement / trial.end_displacement
        later = trial.outer_iteration > 1
        rate = jnp.where(later, measured_rate, trial.contraction_rate)
        inner_converged = inner_norm <= 5 * self._inner_tolerance(trial)
        noise_left = trial.noise * jnp.minimum(trial.noise_rate, 1.0)
        end_settled = displacement * jnp.minimum(rate, 1.0) < settings.outer_tolerance
        settled = end_settled & (noise_left < settings.noise_tolerance * self.rtol)
        converged = ~first & settled & (inner_norm <= settings.outer_tolerance)
        diverges = (trial.outer_iteration > 2) & (rate > DIVERGENCE_RATE) & (displacement > settings.outer_tolerance)
        has_failed = ~inner_converged | (~first & ~(displacement < _MAX_CORRECTION)) | diverges
        stop = converged | has_failed | (trial.outer_iteration >= settings.max_outer_iterations)
        previous = (trial.end_params, trial.end_gradient, trial.hessian, trial.noise)
        end_params, end_gradient, hessian, noise = jax.lax.cond(
            stop, lambda: previous, lambda: self._evaluate_end_gradient(trial, solution, gradients)
        )
        noise_rate = jnp.where(first, _FIRST_NOISE_RATE, noise / jnp.maximum(trial.noise, 1e-30))
        max_rate = jnp.maximum(trial.max_contraction_rate, measured_rate)
        return TrialStep(
            outer_iteration=trial.outer_iteration + 1,
            gradient_evaluations=trial.gradient_evaluations + ~stop,
            gradients=gradients,
            hessian=hessian,
            metric=trial.metric,
            stage_jacobian=stage_jacobian,
            end_params=end_params,
            end_gradient=end_gradient,
            solution=solution,
            end_displacement=displacement,
            noise=noise,
            noise_rate=jnp.where(stop, trial.noise_rate, noise_rate).astype(noise_left.dtype),
            contraction_rate=rate,
            max_contraction_rate=jnp.where(later, max_rate, trial.max_contraction_rate),
            first_correction=jnp.where(trial.outer_iteration == 1, displacement, trial.first_correction),
            inner_converged=inner_converged,
            converged=converged,
            can_continue=~has_failed,
        )

    def _evaluate_end_gradient(
        self, trial: TrialStep, solution: StepSolution, gradients: Array
    ) -> tuple[Vector, Vector, LowRankHessian, Array]:
        """The end, the true gradient there, the Hessian updated by it, and the noise of what it did not know."""
        end = solution.params[-1]
        true_gradient = self.gradient(end)
        noise = self.integrator.second_moment_noise(solution, gradients[-1], true_gradient - gradients[-1])
        column_index = self.settings.rank + trial.outer_iteration
        moved, changed = end - trial.end_params, true_gradient - trial.end_gradient
        return end, true_gradient, sr1_update(trial.hessian, column_index, moved, changed, trial.metric), noise
