"""What a run by collocation is asked for, what it saves, and how it ends."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import equinox.internal
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from adamflow.flows import GouldTanakaFlow, averages
from adamflow.flows.averages import FlowState
from adamflow.runs.collocation.batched_loop import Report, Rows
from adamflow.runs.collocation.hessian import finite_difference_hessian
from adamflow.runs.collocation.nodes import reduce_over_nodes
from adamflow.runs.collocation.step_integrator import (
    Filters,
    FlatState,
    StepIntegrator,
    StepSolution,
    Vector,
    flatten_filters,
    unflatten_filters,
)
from adamflow.runs.trajectory import (
    COMPLETED,
    DIVERGED,
    INITIAL_NORM_WEIGHT,
    MAX_STEPS_REACHED,
    MIN_STEP_REACHED,
    NOT_FINITE,
)
from adamflow.types import Loss, Params, Scalar

#: The rate at which corrections of an iteration grow beyond which they diverge.
DIVERGENCE_RATE = 1.5
#: Two interpolants agree within this share of the distance that a coordinate could have gone in a step.
_INTERPOLANT_TOLERANCE = 3e-3


class SavedStates(NamedTuple):
    """θ, and the filters if they are observed, at the saved times."""

    params: Float[Array, "saved size"]
    filters: Filters


class StepCounts(NamedTuple):
    """What a run has cost."""

    accepted: Int[Array, ""]
    rejected: Int[Array, ""]
    gradients: Int[Array, ""]
    hessians: Int[Array, ""]

    def add_step(self, accepted: Any, rejected: Any, gradients: Any) -> "StepCounts":
        """These, and what a trial step has cost."""
        return StepCounts(
            self.accepted + accepted,
            self.rejected + rejected,
            self.gradients + gradients,
            self.hessians,
        )


class IntegrationState(NamedTuple):
    """How far a run has come.

    Attributes:
        state: of the flow, after the last accepted step.
        step_size: of the next step.
        error_scale: what errors are relative to.
        saved: states so far, as `SavedStates`.
        step_counts: what it has cost.
        is_finite: whether all is finite in this state.
        previous_step_rejected: whether the last trial step was.
    """

    state: FlatState
    step_size: Array
    error_scale: Array
    saved: Rows
    step_counts: StepCounts
    is_finite: Bool[Array, ""]
    previous_step_rejected: Bool[Array, ""]

    def count_hessians(self, computed: Array) -> "IntegrationState":
        """The same, with as many Hessians more."""
        counts = self.step_counts
        return self._replace(step_counts=counts._replace(hessians=counts.hessians + computed))


class IntegrationProblem(NamedTuple):
    """What does not change along a run.

    Attributes:
        flow: the vector field, with one stage.
        loss: of parameters.
        unravel: from a vector to parameters.
        initial_params: θ at the start.
        start_time: of the run.
        save_times: increasing.
        final_time: of the run.
        rtol: relative tolerance.
        step_size: a constant one, or `None`.
        divergence_limit: the largest magnitude of a parameter.
        max_steps: trial steps at most.
        saves_filters: whether filters are saved.
        whole_hessian: whether the Hessian is computed where it is not diagonal.
        bar: the number of a bar that loops move; `None` if they move none.
        pause_at: gradients after which a part of the run ends; `None` for a run in one part.
    """

    flow: GouldTanakaFlow
    loss: Loss
    unravel: Callable[[Any], Params]
    initial_params: Vector
    start_time: Array
    save_times: Array
    final_time: Array
    rtol: Scalar
    step_size: Scalar | None
    divergence_limit: Array
    max_steps: int
    saves_filters: bool
    whole_hessian: bool
    bar: Int[Array, ""] | None = None
    pause_at: Int[Array, ""] | None = None

    def flat_loss(self, params: Vector) -> Array:
        """The loss as a function of the vector of all parameters."""
        return self.loss(self.unravel(params))

    def gradient(self, params: Vector) -> Vector:
        return jax.grad(self.flat_loss)(params)

    def hessian(self, run: IntegrationState) -> Float[Array, "size size"]:
        """Where a run is, from size + 1 gradients."""
        return finite_difference_hessian(self.gradient, run.state.params, run.error_scale)

    def initial_state(self, state: FlatState) -> IntegrationState:
        """No step done; one gradient taken."""
        zero, dtype = jnp.zeros((), int), state.params.dtype
        at_start = self.save_times[0] == state.time

        def first(leaf: Array) -> Array:
            saved = jnp.zeros((self.save_times.size, *leaf.shape), leaf.dtype)
            return saved.at[0].set(jnp.where(at_start, leaf, saved[0]))

        return IntegrationState(
            state=state,
            step_size=jnp.ones((), dtype),
            error_scale=self.error_scale(state.params, jnp.zeros((), dtype)),
            saved=Rows(jax.tree.map(first, SavedStates(state.params, state.filters if self.saves_filters else {}))),
            step_counts=StepCounts(zero, zero, zero + 1, zero),
            is_finite=jnp.array(True),
            previous_step_rejected=jnp.array(False),
        )

    def should_continue(self, run: IntegrationState) -> Array:
        """Whether a step can and need be tried."""
        tried = run.step_counts.accepted + run.step_counts.rejected
        can_step = (run.state.time < self.final_time) & (tried < self.max_steps)
        can_step = can_step & (run.step_size > self._min_step_size)
        return can_step & run.is_finite & (jnp.max(jnp.abs(run.state.params)) <= self.divergence_limit)

    def should_continue_part(self, run: IntegrationState) -> Array:
        """Whether a step can and need be tried in this part of the run."""
        can_step = self.should_continue(run)
        return can_step if self.pause_at is None else can_step & (run.step_counts.gradients < self.pause_at)

    def share_done(self, run: IntegrationState) -> Array:
        """How much of the run is done, from 0 to 1."""
        return (run.state.time - self.start_time) / (self.final_time - self.start_time)

    @property
    def report(self) -> Report | None:
        """What moves the bar of a loop over an integrator's states, if there is one."""
        if self.bar is None:
            return None
        return lambda integrator, loop: (integrator.problem.bar, integrator.problem.share_done(loop.run))

    @property
    def _min_step_size(self) -> Scalar:
        """The least step that times can resolve."""
        return 10 * jnp.finfo(self.initial_params.dtype).eps * self.final_time

    def steps_in_lifetime(self, integrator: StepIntegrator) -> Array:
        """How many steps add their errors to each other: as many as an oscillation lives through, at least 1."""
        run_length = self.final_time - self.start_time
        return jnp.maximum(1.0, jnp.minimum(integrator.memory(), run_length) / integrator.step_size)

    def time_after_step(self, time: Array, step_size: Array) -> Array:
        """The time when a step is done: the end itself if next to nothing would be left."""
        after = time + step_size
        return jnp.where(self.final_time - after < self._min_step_size, self.final_time, after).astype(time.dtype)

    def clip_step_to_end(self, time: Array, step_size: Array) -> Array:
        """The size of a step from a time: up to the end, if next to nothing would be left after it."""
        left = self.final_time - time
        return jnp.where(left < 1.01 * step_size, left, step_size)

    def outcome_code(self, run: IntegrationState) -> Array:
        """How the run ended: the first of these that holds."""
        largest = jnp.max(jnp.abs(run.state.params))
        done = run.state.time >= self.final_time
        tried = run.step_counts.accepted + run.step_counts.rejected
        # Steps see gradients alone, which may be finite where the loss is not.
        loss_is_lost = ~jnp.isfinite(self.flat_loss(run.state.params))
        conditions = (
            (~run.is_finite | ~jnp.isfinite(largest), NOT_FINITE),
            (largest > self.divergence_limit, DIVERGED),
            (done & loss_is_lost, NOT_FINITE),
            (done, COMPLETED),
            (tried >= self.max_steps, MAX_STEPS_REACHED),
        )
        code = jnp.full((), MIN_STEP_REACHED)
        for holds, meaning in reversed(conditions):
            code = jnp.where(holds, meaning, code)
        return code

    def error_scale(self, params: Vector, previous: Array) -> Array:
        """Of errors: the largest distance from the start of the run so far, and a share of the initial norm."""
        moved = jnp.sqrt(jnp.mean((params - self.initial_params) ** 2))
        initial_norm = jnp.sqrt(jnp.mean(self.initial_params**2))
        least = jnp.maximum(previous, jnp.sqrt(jnp.finfo(moved.dtype).tiny))
        return jnp.maximum(moved + INITIAL_NORM_WEIGHT * initial_norm, least)

    def save_dense_output(
        self,
        run: IntegrationState,
        integrator: StepIntegrator,
        endpoint_values: Float[Array, "endpoint size"],
        solution: StepSolution,
        accepted: Array,
    ) -> Rows:
        """The saved states with those within a step that is accepted, from the interpolant through its fine nodes.

        Where a gradient crosses zero, directions between Radau's nodes may be worth nothing. There that interpolant and
        the one through the left end and the nodes alone differ, and θ is read from the latter.
        """
        step_start = integrator.start.time
        step_end = self.time_after_step(step_start, integrator.step_size)
        first, last = (jnp.searchsorted(self.save_times, time, side="right") for time in (step_start, step_end))

        nodes = integrator.nodes
        fine = jnp.asarray(nodes.fine, integrator.step_size.dtype)
        coarse = nodes.interpolation_weights(fine) @ endpoint_values
        interpolant_difference = reduce_over_nodes(jnp.maximum, jnp.abs(coarse - solution.params))
        use_fine_interpolant = interpolant_difference < _INTERPOLANT_TOLERANCE * solution.max_displacement
        # Elements of a batch that have ended are advanced beside the others, but write nothing.
        count = jnp.where(accepted & self.should_continue(run), last - first, 0)

        def save(index: Array, saved: SavedStates) -> SavedStates:
            # In a batch elements save together as long as one of them has something left; the others' goes nowhere.
            row = first + index
            row_index = jnp.where(index < count, row, self.save_times.size)
            x = jnp.minimum((self.save_times[row] - step_start) / integrator.step_size, 1.0)
            # Differences from the start keep their digits: the weights of the finer polynomial are large.
            start = endpoint_values[0]
            fine_value = nodes.fine_interpolation_weights(x) @ (solution.params - start)
            coarse_value = nodes.interpolation_weights(x) @ (endpoint_values - start)
            value = start + jnp.where(use_fine_interpolant, fine_value, coarse_value)
            params = saved.params.at[row_index].set(value, mode="drop")
            if not self.saves_filters:
                return SavedStates(params, {})
            filters = {name: nodes.fine_interpolation_weights(x) @ leaf for name, leaf in solution.filters.items()}
            (filters,) = averages.clipped(self.flow.optimizer, (filters,))
            return SavedStates(
                params,
                {name: saved.filters[name].at[row_index].set(leaf, mode="drop") for name, leaf in filters.items()},
            )

        return Rows(jax.lax.fori_loop(0, eqx.internal.unvmap_max(count), save, run.saved.rows))

    def flow_state(self, state: FlatState) -> FlowState:
        """The state of the flow with parameters as users have them."""
        return FlowState(self.unravel(state.params), None, unflatten_filters(self.unravel, state.filters))


def step_size_factor(
    run: IntegrationState,
    error: Array,
    accepted: Array,
    *,
    converged: Array,
    node_count: int,
    cost_factor: Array,
    max_factor: float,
) -> Array:
    """By how much the next step is longer: by the error of this one, and by what it cost.

    Args:
        run: before this step.
        error: of this step, in units of the tolerance; its order is one more than there are nodes.
        accepted: whether it was.
        converged: whether its equations were solved, so that the error means something.
        node_count: of the step.
        cost_factor: the most by which steps of this cost are lengthened.
        max_factor: the most for any step; 1 after one that was rejected.
    """
    exponent = 1 / (node_count + 1)
    by_error = 0.9 * jnp.maximum(error, 1e-6) ** -exponent
    limit = jnp.where(run.previous_step_rejected, 1.0, max_factor)
    longer = jnp.clip(jnp.minimum(by_error, cost_factor), 0.3, limit)
    shorter = jnp.where(converged & jnp.isfinite(error), jnp.clip(0.8 * error**-exponent, 0.2, 0.9), 0.5)
    return jnp.where(accepted, longer, shorter)


def flatten_state(state: FlowState, time: Array, params: Vector, gradient: Vector) -> FlatState:
    """The start of a run."""
    return FlatState(time, params, flatten_filters(state.filters), gradient)
