"""The main loop: Newton's method at all nodes of a step, the test of its error, and the next step."""

from typing import NamedTuple

import equinox as eqx
import equinox.internal
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from adamflow.runs.collocation.batched_loop import compacting_while_loop
from adamflow.runs.collocation.hessian import DiagonalHessian, Hessian, is_nearly_diagonal, positive_part
from adamflow.runs.collocation.integration import (
    DIVERGENCE_RATE,
    IntegrationProblem,
    IntegrationState,
    step_size_factor,
)
from adamflow.runs.collocation.step_integrator import (
    FlatState,
    StageValues,
    StepIntegrator,
    StepSolution,
    make_step_integrator,
)

#: A step has converged if the correction, in units of the tolerance, times the contraction rate is below this; in its
#: first iteration, which has no rate, if the correction is below a tenth of it.
_NEWTON_TOLERANCE = 0.01
#: Weight of the displacement by errors of filters: with 1, runs take up to three times the gradients where settled
#: coordinates oscillate within the tolerance, and errors of random problems hardly fall.
_FILTER_ERROR_WEIGHT = 0.3
#: Weight of the quadrature error, which is that of a polynomial of one degree less: with 1 kinks take twice the steps.
_QUADRATURE_WEIGHT = 0.1
_MAX_NEWTON_ITERATIONS = 10
#: A diagonal Hessian is checked after so many steps whose Newton iteration diverges (each that takes four iterations or
#: more counts half, ten others undo one); if it is diagonal for all that, after twice as many.
_SLOW_STEP_LIMIT = 2.5
_SLOW_STEP_ITERATIONS = 4
_INITIAL_STEP_SIZE = 2.0


class LoopState(NamedTuple):
    """A run, and the step that it is at.

    Attributes:
        run: as far as steps are accepted.
        integrator: of the step.
        stage_values: θ at Radau's nodes.
        previous: stage values, gradients and corrections of the last Newton iteration.
        correction_norm: of that iteration, in units of the tolerance.
        contraction_rate: the largest of the step.
        newton_iteration: of the step.
        hessian: for Newton's method.
        steps_since_hessian: attempted since it was computed, for a dense one.
        slow_step_count: steps whose Newton iteration was slow or diverged, less a share of the others.
        slow_step_limit: of that count.
    """

    run: IntegrationState
    integrator: StepIntegrator
    stage_values: StageValues
    previous: tuple[StageValues, StageValues, StageValues]
    correction_norm: Array
    contraction_rate: Array
    newton_iteration: Int[Array, ""]
    hessian: Hessian
    steps_since_hessian: Int[Array, ""]
    slow_step_count: Array
    slow_step_limit: Array


class NewtonUpdate(NamedTuple):
    """A Newton iteration: gradients at the nodes, the solution that they give, and what follows from it."""

    gradients: StageValues
    solution: StepSolution
    correction: StageValues
    hessian: Hessian
    correction_norm: Array
    contraction_rate: Array
    error: Array
    converged: Bool[Array, ""]
    has_failed: Bool[Array, ""]


class DiagonalState(NamedTuple):
    """Where a run with a diagonal Hessian is, or was found to need another.

    Attributes:
        loop: as far as it came.
        is_coupled: whether the Hessian is not diagonal, so that the run goes on with another.
        hessian: there, where it was computed; `None` if it never is.
    """

    loop: LoopState
    is_coupled: Bool[Array, ""]
    hessian: Float[Array, "size size"] | None


class NewtonIntegrator(NamedTuple):
    """Solves the equations of each step, Θ = θ(g(Θ)) at the nodes, by Newton's method.

    With J = −∂θ/∂G, second moments held, the correction solves (I + J H) δ = θ(G) − Θ, G = g(Θ). Anderson's method of
    depth 1 takes up what H does not know. One loop runs over the Newton iterations of all steps, so that elements of a
    batch do not wait for each other's steps.

    Attributes:
        problem: what to integrate.
        node_count: of Radau's nodes.
        verifies: whether the whole Hessian is computed before a diagonal one is given up.
    """

    problem: IntegrationProblem
    node_count: int
    verifies: bool

    def start_diagonal(self, run: IntegrationState) -> DiagonalState:
        """Before the first step of a run with a diagonal Hessian."""
        size, dtype = run.state.params.size, run.state.params.dtype
        hessian = jnp.zeros((size, size), dtype) if self.verifies else None
        return DiagonalState(self._first_step(run), jnp.array(False), hessian)

    def run_diagonal(self, start: DiagonalState) -> DiagonalState:
        """Integrate with a diagonal Hessian to the end of the part, or until it turns out that it is not diagonal."""
        # A constant step has nothing to change to, and one coordinate nothing to be coupled to.
        never_switches = self.problem.step_size is not None or start.loop.run.state.params.size == 1

        def should_continue(integrator: NewtonIntegrator, loop: LoopState) -> Array:
            few_slow_steps = loop.slow_step_count < loop.slow_step_limit
            return integrator.problem.should_continue_part(loop.run) & (never_switches | few_slow_steps)

        def run_until_check(state: DiagonalState) -> DiagonalState:
            loop = compacting_while_loop(
                should_continue, NewtonIntegrator._advance, self, state.loop, self.problem.report
            )
            if never_switches:
                return state._replace(loop=loop)
            too_slow = loop.slow_step_count >= loop.slow_step_limit
            stopped = self.problem.should_continue(loop.run) & too_slow & ~state.is_coupled
            if state.hessian is None:
                return DiagonalState(loop, state.is_coupled | stopped, None)
            previous_hessian = state.hessian

            def check() -> tuple[Array, Array]:
                hessian = jnp.where(stopped, self.problem.hessian(loop.run), previous_hessian)
                return hessian, stopped & is_nearly_diagonal(hessian)

            # In a batch a condition of each element would not be one: all would compute a Hessian whenever a loop ends.
            hessian, is_diagonal = jax.lax.cond(
                eqx.internal.unvmap_any(stopped), check, lambda: (previous_hessian, jnp.zeros_like(stopped))
            )
            loop = loop._replace(
                run=loop.run.count_hessians(stopped),
                slow_step_count=jnp.where(is_diagonal, 0.0, loop.slow_step_count),
                slow_step_limit=jnp.where(is_diagonal, 2.0 * loop.slow_step_limit, loop.slow_step_limit),
            )
            return DiagonalState(loop, state.is_coupled | (stopped & ~is_diagonal), hessian)

        def undecided(state: DiagonalState) -> Array:
            return self.problem.should_continue_part(state.loop.run) & ~state.is_coupled

        return jax.lax.while_loop(undecided, run_until_check, start)

    def start_dense(self, diagonal: DiagonalState) -> LoopState:
        """Before the first step with the Hessian itself."""
        assert diagonal.hessian is not None
        run = diagonal.loop.run
        step_size = self.problem.clip_step_to_end(run.state.time, run.step_size)
        return self._loop_state(run, step_size, positive_part(diagonal.hessian))

    def run_dense(self, loop: LoopState) -> LoopState:
        """Integrate the rest with the Hessian itself, computed again whenever Newton's method contracts slowly."""

        def should_continue(integrator: NewtonIntegrator, loop: LoopState) -> Array:
            return integrator.problem.should_continue_part(loop.run)

        return compacting_while_loop(should_continue, NewtonIntegrator._advance, self, loop, self.problem.report)

    def _first_step(self, run: IntegrationState) -> LoopState:
        """The first step, and secants from a gradient at the end of it."""
        state, problem = run.state, self.problem
        step_size = _INITIAL_STEP_SIZE if problem.step_size is None else problem.step_size
        step_size = jnp.minimum(step_size, problem.final_time - state.time).astype(state.params.dtype)
        loop = self._loop_state(run, step_size, DiagonalHessian(jnp.zeros_like(state.params)))
        constant = jnp.broadcast_to(state.gradient, loop.stage_values.shape)
        stage_values = loop.integrator(constant).params[loop.integrator.nodes.radau_indices]
        displacement = stage_values[-1] - state.params
        change = problem.gradient(stage_values[-1]) - state.gradient
        # Where θ has not moved, or the gradient there is not finite, nothing is known of the curvature.
        reliable = (displacement != 0) & jnp.isfinite(change)
        secant = jnp.where(reliable, change, 0.0) / jnp.where(reliable, displacement, 1.0)
        diagonal = jnp.maximum(secant, 0.0)
        run = run._replace(
            step_size=step_size,
            step_counts=run.step_counts.add_step(False, False, 1),
            error_scale=problem.error_scale(stage_values[-1], run.error_scale),
        )
        return loop._replace(run=run, stage_values=stage_values, hessian=DiagonalHessian(diagonal))

    def _loop_state(self, run: IntegrationState, step_size: Array, hessian: Hessian) -> LoopState:
        """Before the first Newton iteration of a step, from constant stage values."""
        params = run.state.params
        stage_values = jnp.broadcast_to(params, (self.node_count, params.size))
        zeros, zero = jnp.zeros_like(stage_values), jnp.zeros((), params.dtype)
        return LoopState(
            run=run,
            integrator=self._integrator(run.state, step_size),
            stage_values=stage_values,
            previous=(stage_values, zeros, zeros),
            correction_norm=zero + jnp.inf,
            contraction_rate=zero,
            newton_iteration=jnp.zeros((), int),
            hessian=hessian,
            steps_since_hessian=jnp.zeros((), int),
            slow_step_count=zero,
            slow_step_limit=zero + _SLOW_STEP_LIMIT,
        )

    def _integrator(self, state: FlatState, step_size: Array) -> StepIntegrator:
        return make_step_integrator(self.problem.flow, self.problem.unravel, self.node_count, state, step_size)

    def _newton_update(self, loop: LoopState) -> NewtonUpdate:
        """Gradients at the nodes, and the correction and the error that follow from them."""
        stage_values, integrator, first = loop.stage_values, loop.integrator, loop.newton_iteration == 0
        gradients = jax.vmap(self.problem.gradient)(stage_values)
        hessian = loop.hessian.with_secants(stage_values - loop.previous[0], gradients - loop.previous[1], ~first)
        linearization = integrator.linearize(gradients)
        solve = hessian.linear_solver(linearization.stage_jacobian)
        residual = linearization.solution.params[integrator.nodes.radau_indices] - stage_values
        # One elimination for both: Newton's correction, and the error of a polynomial that ignores the left end.
        correction, difference = solve(jnp.stack([residual, linearization.left_end_change]))
        # After a rejection a stiff error is damped once more, as in Hairer and Wanner's Radau5.
        refiltered = (self._norm(difference, loop.run) > 1) & loop.run.previous_step_rejected
        difference = jnp.where(refiltered, solve(difference[None])[0], difference)

        norm = self._norm(correction, loop.run)
        rate = norm / loop.correction_norm
        below_tolerance = norm * jnp.minimum(rate, 1.0) < _NEWTON_TOLERANCE
        converged = jnp.where(first, norm < 0.1 * _NEWTON_TOLERANCE, below_tolerance)
        diverges = (loop.newton_iteration > 2) & (rate > DIVERGENCE_RATE)
        has_failed = ~jnp.isfinite(norm) | diverges | (loop.newton_iteration + 1 >= _MAX_NEWTON_ITERATIONS)

        quadrature_error = _QUADRATURE_WEIGHT * jnp.abs(linearization.quadrature_error)
        # Only a step that has converged has an error.
        error = jax.lax.cond(
            converged,
            lambda: self._error(loop, gradients, linearization.solution, hessian, difference, quadrature_error),
            lambda: jnp.full_like(norm, jnp.inf),
        )
        return NewtonUpdate(
            gradients,
            linearization.solution,
            correction,
            hessian,
            norm,
            rate,
            error,
            converged,
            has_failed & ~converged,
        )

    def _error(
        self,
        loop: LoopState,
        gradients: StageValues,
        solution: StepSolution,
        hessian: Hessian,
        difference: StageValues,
        quadrature_error: StageValues,
    ) -> Array:
        """The error of a step in units of the tolerance: of θ at the nodes, and of the filters by what they will do."""
        run, integrator, problem = loop.run, loop.integrator, self.problem
        of_params = problem.steps_in_lifetime(integrator) * self._norm(jnp.abs(difference) + quadrature_error, run)
        displacement = integrator.displacement_by_filters(
            gradients, solution, hessian.product(difference), hessian.diagonal
        )
        return jnp.maximum(of_params, _FILTER_ERROR_WEIGHT * self._norm(displacement[None], run))

    def _norm(self, values: Float[Array, "several size"], run: IntegrationState) -> Array:
        largest = jnp.max(jnp.mean(values * values, axis=-1))
        return jnp.sqrt(largest) / (self.problem.rtol * run.error_scale)

    def _advance(self, loop: LoopState) -> LoopState:
        """A Newton iteration; where it is the last of its step, the step is accepted or not and the next one begun."""
        run, integrator, update = loop.run, loop.integrator, self._newton_update(loop)
        constant = self.problem.step_size
        accepted = update.converged & ((constant is not None) | (update.error <= 1))
        finished = update.converged | update.has_failed
        stage_values = loop.stage_values + update.correction
        endpoint_values = jnp.concatenate([integrator.start.params[None], stage_values])

        new = self._state_at_end(loop, update, endpoint_values)
        old = run.state, run.error_scale, run.is_finite
        state, error_scale, is_finite = jax.tree.map(lambda a, b: jnp.where(accepted, a, b), new, old)
        # A constant step whose Newton iteration diverges ends the run: a step size of 0 says so.
        factor = step_size_factor(
            run,
            update.error,
            accepted,
            converged=update.converged,
            node_count=self.node_count,
            cost_factor=jnp.sqrt(6.0 / (loop.newton_iteration + 1)),
            max_factor=jnp.inf,
        )
        step_size = integrator.step_size * factor
        step_size = step_size if constant is None else jnp.where(accepted, constant, 0.0)
        clipped = self.problem.clip_step_to_end(state.time, step_size)
        step_size = jnp.where(finished, clipped, integrator.step_size).astype(integrator.step_size.dtype)
        next_integrator = jax.lax.cond(finished, lambda: self._integrator(state, step_size), lambda: integrator)
        # The next step starts from the polynomial of this one.
        x = accepted + step_size / integrator.step_size * jnp.asarray(integrator.nodes.radau)
        predicted = integrator.nodes.interpolation_weights(x.astype(stage_values.dtype)) @ endpoint_values
        predicted = jnp.where(update.converged, predicted, state.params)
        run = IntegrationState(
            state=state,
            step_size=step_size,
            error_scale=error_scale,
            saved=self.problem.save_dense_output(run, integrator, endpoint_values, update.solution, accepted),
            step_counts=run.step_counts.add_step(accepted, finished & ~accepted, self.node_count),
            is_finite=is_finite,
            previous_step_rejected=jnp.where(finished, ~accepted, run.previous_step_rejected),
        )
        loop = self._refresh_hessian(loop._replace(run=run), update, finished, accepted)
        return loop._replace(
            integrator=next_integrator,
            stage_values=jnp.where(finished, predicted, self._anderson_update(loop, update)),
            previous=(loop.stage_values, update.gradients, update.correction),
            correction_norm=jnp.where(finished, jnp.inf, update.correction_norm),
            newton_iteration=jnp.where(finished, 0, loop.newton_iteration + 1),
            slow_step_count=self._slow_steps(loop, update),
        )

    def _refresh_hessian(self, loop: LoopState, update: NewtonUpdate, finished: Array, accepted: Array) -> LoopState:
        """The loop with the Hessian of the last update; a dense one is computed again where it has become wrong."""
        rate = jnp.maximum(loop.contraction_rate, jnp.where(loop.newton_iteration > 1, update.contraction_rate, 0.0))
        loop = loop._replace(contraction_rate=jnp.where(finished, 0.0, rate), hessian=update.hessian)
        if isinstance(update.hessian, DiagonalHessian):
            return loop
        slow = (accepted & (rate > 0.4)) | (update.has_failed & jnp.isfinite(update.correction_norm))
        refresh = finished & slow & (loop.steps_since_hessian > 2)

        def computed() -> Hessian:
            new = positive_part(self.problem.hessian(loop.run))
            return jax.tree.map(lambda a, b: jnp.where(refresh, a, b), new, update.hessian)

        # In a batch a condition of each element would not be one: all would compute a Hessian at every step.
        hessian = jax.lax.cond(eqx.internal.unvmap_any(refresh), computed, lambda: update.hessian)
        return loop._replace(
            run=loop.run.count_hessians(refresh),
            hessian=hessian,
            steps_since_hessian=jnp.where(refresh, 0, loop.steps_since_hessian + finished),
        )

    def _slow_steps(self, loop: LoopState, update: NewtonUpdate) -> Array:
        is_slow = (loop.newton_iteration + 1 >= _SLOW_STEP_ITERATIONS) & update.converged
        # Beyond the domain of the loss no curvature helps, only shorter steps do.
        diverged = update.has_failed & jnp.isfinite(update.correction_norm)
        added = jnp.where(diverged, 1.0, jnp.where(is_slow, 0.5, -0.1 * update.converged))
        return jnp.maximum(loop.slow_step_count + added, 0.0).astype(loop.slow_step_count.dtype)

    def _anderson_update(self, loop: LoopState, update: NewtonUpdate) -> StageValues:
        """Anderson's method of depth 1: the combination of the last two corrections that is smallest."""
        stage_values, _, correction = loop.previous
        difference = update.correction - correction
        norm = jnp.maximum(jnp.sum(difference * difference), jnp.finfo(difference.dtype).tiny)
        share = jnp.clip(jnp.sum(update.correction * difference) / norm, -2.0, 2.0)
        share = jnp.where(loop.newton_iteration > 0, share, 0.0)
        return loop.stage_values + update.correction - share * (loop.stage_values - stage_values + difference)

    def _state_at_end(
        self, loop: LoopState, update: NewtonUpdate, endpoint_values: Float[Array, "endpoint size"]
    ) -> tuple[FlatState, Array, Array]:
        """The state at the end of the step, the scale of errors there, and whether all is finite."""
        integrator = loop.integrator
        time = self.problem.time_after_step(integrator.start.time, integrator.step_size)
        params = endpoint_values[-1]
        gradient = update.gradients[-1] + update.hessian.product(update.correction)[-1]
        filters = {name: values[-1] for name, values in update.solution.filters.items()}
        is_finite = jnp.all(jnp.isfinite(gradient)) & jnp.all(jnp.isfinite(params))
        return (
            FlatState(time, params, filters, gradient),
            self.problem.error_scale(params, loop.run.error_scale),
            is_finite,
        )
