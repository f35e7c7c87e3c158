"""Collocation where the Hessian is not diagonal and too large to be computed: a run on a surrogate of the gradient."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from adamflow.runs.collocation.batched_loop import compacting_while_loop
from adamflow.runs.collocation.integration import IntegrationProblem, IntegrationState, step_size_factor
from adamflow.runs.collocation.low_rank_hessian import LowRankHessian, truncate_rank, zero_hessian
from adamflow.runs.collocation.step_integrator import FlatState, make_step_integrator
from adamflow.runs.collocation.surrogate_step import GradientHistory, SurrogateSettings, SurrogateStep, TrialStep

#: A step that takes as many gradients is of the right length.
_TARGET_GRADIENTS = 4


class SurrogateLoopState(NamedTuple):
    """A run, the last true gradients, the Hessian, and the contraction rate of the last step."""

    run: IntegrationState
    history: GradientHistory
    hessian: LowRankHessian
    contraction_rate: Array


class SurrogateIntegrator(NamedTuple):
    """A run on a surrogate of the gradient."""

    problem: IntegrationProblem
    settings: SurrogateSettings

    def run(self, loop: SurrogateLoopState) -> SurrogateLoopState:
        """Integrate to the end of the part."""

        def should_continue(integrator: SurrogateIntegrator, loop: SurrogateLoopState) -> Array:
            return integrator.problem.should_continue_part(loop.run)

        return compacting_while_loop(should_continue, SurrogateIntegrator._advance, self, loop, self.problem.report)

    def start(self, run: IntegrationState) -> SurrogateLoopState:
        """Before the first step on a surrogate."""
        state, settings = run.state, self.settings
        params, dtype = state.params, state.params.dtype
        # The entries before the start only say that nothing is known of how the gradient changes.
        times = state.time + jnp.arange(1 - settings.history_length, 1).astype(dtype)
        repeated = (jnp.tile(x, (settings.history_length, 1)) for x in (params, state.gradient))
        history = GradientHistory(times, *repeated)
        hessian = zero_hessian(params.size, settings.width, dtype)
        return SurrogateLoopState(run, history, hessian, jnp.asarray(0.3, dtype))

    def _advance(self, loop: SurrogateLoopState) -> SurrogateLoopState:
        """Try a step; go on from its end or, where it failed, with a shorter one."""
        run, problem = loop.run, self.problem
        step_size = problem.clip_step_to_end(run.state.time, run.step_size)
        integrator = make_step_integrator(problem.flow, problem.unravel, self.settings.nodes, run.state, step_size)
        tolerance = problem.rtol * run.error_scale
        step = SurrogateStep(integrator, problem.gradient, loop.history, tolerance, problem.rtol, self.settings)
        trial = step.solve(loop.hessian, loop.contraction_rate)
        error = step.error(trial, problem.steps_in_lifetime(integrator))
        accepted = trial.converged & (error <= 1.0)
        stage_values = trial.solution.params[integrator.nodes.radau_indices]
        endpoint_values = jnp.concatenate([integrator.start.params[None], stage_values])
        saved = problem.save_dense_output(run, integrator, endpoint_values, trial.solution, accepted)

        new = _without_saved(self._state_after_acceptance(loop, trial, step_size))
        old = _without_saved(loop._replace(contraction_rate=jnp.full_like(loop.contraction_rate, 0.5)))
        next_state = jax.tree.map(lambda a, b: jnp.where(accepted, a, b), new, old)
        factor = step_size_factor(
            run,
            error,
            accepted,
            converged=trial.converged,
            node_count=self.settings.nodes,
            cost_factor=jnp.sqrt(_TARGET_GRADIENTS / jnp.maximum(trial.gradient_evaluations, 1)),
            max_factor=3.0,
        )
        run = next_state.run._replace(
            saved=saved,
            step_size=(step_size * factor).astype(step_size.dtype),
            step_counts=run.step_counts.add_step(accepted, ~accepted, trial.gradient_evaluations),
            previous_step_rejected=~accepted,
        )
        return next_state._replace(run=run, hessian=self._next_hessian(loop, trial))

    def _next_hessian(self, loop: SurrogateLoopState, trial: TrialStep) -> LowRankHessian:
        truncated = truncate_rank(trial.hessian, self.settings.rank)
        usable = jnp.all(jnp.isfinite(trial.hessian.core)) & jnp.all(jnp.isfinite(trial.hessian.gram))
        return jax.tree.map(lambda a, b: jnp.where(usable, a, b), truncated, loop.hessian)

    def _state_after_acceptance(
        self, loop: SurrogateLoopState, trial: TrialStep, step_size: Array
    ) -> SurrogateLoopState:
        time = self.problem.time_after_step(loop.run.state.time, step_size)
        params = trial.solution.params[-1]
        filters = {name: values[-1] for name, values in trial.solution.filters.items()}
        history = GradientHistory(
            jnp.append(loop.history.times[1:], time),
            jnp.concatenate([loop.history.params[1:], trial.end_params[None]]),
            jnp.concatenate([loop.history.gradients[1:], trial.end_gradient[None]]),
        )
        measured = trial.max_contraction_rate > 0
        rate = jnp.where(measured, trial.contraction_rate, 1.1 * trial.contraction_rate)
        run = loop.run._replace(
            state=FlatState(time, params, filters, trial.gradients[-1]),
            error_scale=self.problem.error_scale(params, loop.run.error_scale),
            is_finite=jnp.all(jnp.isfinite(trial.end_gradient)) & jnp.all(jnp.isfinite(params)),
        )
        return loop._replace(run=run, history=history, contraction_rate=jnp.clip(rate, 0.1, 1.0))


def _without_saved(loop: SurrogateLoopState) -> SurrogateLoopState:
    return loop._replace(run=loop.run._replace(saved=None))
