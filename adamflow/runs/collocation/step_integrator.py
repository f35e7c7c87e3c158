"""θ and the filters over a step, for given gradients at its nodes: all of a flow that needs no gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from adamflow.flows import GouldTanakaFlow, averages
from adamflow.runs.collocation.nodes import Nodes, nodes, reduce_over_nodes
from adamflow.types import Scalar

Vector = Float[Array, " size"]
#: Values at the fine nodes of a step.
Fine = Float[Array, "fine size"]
#: Values at Radau's nodes.
StageValues = Float[Array, "node size"]
#: By name, a filter for all parameters in one vector, or its values at the fine nodes.
Filters = dict[str, Any]


class FlatState(NamedTuple):
    """A flow at one time, all parameters in one vector."""

    time: Array
    params: Vector
    filters: Filters
    gradient: Vector


class StepSolution(NamedTuple):
    """A flow at the fine nodes of a step.

    Attributes:
        params: θ.
        filters: by name.
        direction: u.
        max_displacement: the largest change of each coordinate that the step's directions allow.
    """

    params: Fine
    filters: Filters
    direction: Fine
    max_displacement: Vector


class Linearization(NamedTuple):
    """A step's solution, and how it depends on the gradients at its nodes.

    Attributes:
        solution: for these gradients.
        stage_jacobian: −∂θᵢ/∂Gⱼ at Radau's nodes, by coordinate, with second moments held.
        left_end_change: what θ gains there if the polynomial through the gradients passes through the left end too.
        quadrature_error: what it gains there by a polynomial of one degree less through the directions.
    """

    solution: StepSolution
    stage_jacobian: Float[Array, "node node size"]
    left_end_change: StageValues
    quadrature_error: StageValues


class LinearPropagator(NamedTuple):
    """What a filter does over a step, or θ under weight decay: x̄(f) = decay_factors x̄(0) + input_weights q(f)."""

    decay_factors: Float[Array, " fine"]
    input_weights: Float[Array, "fine fine"]


class StepIntegrator(eqx.Module):
    r"""Filters and θ of a `GouldTanakaFlow` of order 1 with one stage over a step, by variation of constants.

    A filter with rate a obeys $\bar x(n) = e^{-an}\bar x(0) + a\int_0^n e^{-a(n-\nu)} q(x(\nu)) d\nu$; the integral is
    that of the polynomial through $q(x)$ at the fine nodes. A filter that cannot be negative is driven by the
    polynomial through the nodes and the left end of the step, others and θ by that through the nodes alone, as in
    Radau IIA. No step size limits what filters do, since their decay is exact.

    Attributes:
        flow: whose step it is.
        start: where the step begins.
        step_size: in iterations.
        filter_propagators: by name of the filter.
        parameter_propagator: of θ.
        unravel: from a vector to parameters.
        node_count: of Radau's nodes.
    """

    flow: GouldTanakaFlow
    start: FlatState
    step_size: Any
    filter_propagators: dict[str, LinearPropagator]
    parameter_propagator: LinearPropagator
    unravel: Callable[[Any], Any] = eqx.field(static=True)
    node_count: int = eqx.field(static=True)

    @property
    def nodes(self) -> Nodes:
        return nodes(self.node_count)

    def __call__(self, gradients: StageValues, *, include_left_end: bool = False) -> StepSolution:
        """The solution for gradients at Radau's nodes.

        Args:
            gradients: at the nodes.
            include_left_end: whether θ is driven by the polynomial through the left end too, to estimate errors.
        """
        inputs, inputs_with_left = self._interpolate(gradients)
        return self._solution(inputs_with_left if include_left_end else inputs, inputs_with_left)

    def linearize(self, gradients: StageValues) -> Linearization:
        """The solution and its derivatives. What second moments add is left out: it is not definite."""
        inputs, inputs_with_left = self._interpolate(gradients)
        solution = self._solution(inputs, inputs_with_left)
        direct, by_filter = self._direction_derivatives(inputs, solution.filters)
        radau_to_fine = jnp.asarray(self.nodes.radau_to_fine, gradients.dtype)
        change = inputs_with_left - inputs
        # Pairs of a matrix over the nodes and a diagonal over the coordinates; their sum is ∂u/∂G.
        terms = [(radau_to_fine, direct)]
        gained = direct * change
        for name, derivative in by_filter.items():
            weights = self.filter_propagators[name].input_weights
            terms.append((weights @ radau_to_fine, derivative))
            gained = gained + derivative * (weights @ change)
        kernel = self.parameter_propagator.input_weights[self.nodes.radau_indices]
        jacobian = jnp.zeros((self.node_count, *gradients.shape), gradients.dtype)
        for weights, derivative in terms:
            jacobian = jacobian + (kernel[:, None] * weights.T) @ jax.vmap(self._force)(derivative)
        forces = jax.vmap(self._force)(solution.direction)
        skipped = self.nodes.skipped
        defect = jnp.asarray(self.nodes.skipped_weights, forces.dtype) @ forces
        return Linearization(
            solution,
            -jacobian,
            kernel @ jax.vmap(self._force)(gained),
            kernel[:, skipped, None] * defect,
        )

    def memory(self) -> Scalar:
        """How many iterations an error of an oscillating coordinate lives: 1/(a_m/2 − 3 a_v/8), by its filters' rates.

        Oscillations lose a factor e in 2/a_m iterations; relative to √v, which falls meanwhile, it takes longer (the
        derivation is in docs/collocation.md). Without a filter that can be negative nothing oscillates.
        """
        if all(moving_average.nonnegative for moving_average in self._filters):
            return 0.0
        rate = 0.0
        for moving_average in self._filters:
            weight = -3 / 8 if moving_average.nonnegative else 1 / 2
            rate = rate + weight * self._rate(moving_average)
        return jnp.where(rate > 0, 1 / jnp.where(rate > 0, rate, 1.0), jnp.inf)

    def displacement_by_filters(
        self, gradients: StageValues, solution: StepSolution, gradient_error: StageValues, curvature: Vector
    ) -> Vector:
        r"""How far the errors of the filters at the end of the step will carry θ, in each coordinate.

        A filter with rate a that is off by δ changes the direction by δu for 1/a iterations; where θ oscillates faster,
        with frequency √(a ηs) for the preconditioned curvature s, for as long as a part of a turn takes: it carries θ
        by $\eta |\delta u| / \sqrt{a^2 + a \eta s}$.

        Args:
            gradients: at the nodes.
            solution: for them.
            gradient_error: of these gradients.
            curvature: ∂g/∂θ of each coordinate, at least 0.
        """
        inputs, inputs_with_left = self._interpolate(gradients)
        radau_to_fine = jnp.asarray(self.nodes.radau_to_fine, gradients.dtype)
        input_error = inputs_with_left - inputs + radau_to_fine @ gradient_error
        end = {name: values[-1] for name, values in solution.filters.items()}
        still = {name: jnp.zeros_like(value) for name, value in end.items()}

        def direction_change(filters: Filters) -> Vector:
            def read(at: Filters) -> Vector:
                return self._direction_and_targets(gradients[-1], at, self._times[-1])[0]

            return jax.jvp(read, (end,), (filters,))[1]

        learning_rate = jnp.asarray(self.flow.optimizer.learning_rate, gradients.dtype)
        targets = {
            nonnegative: (
                self._targets(base, solution.filters),
                self._targets(base + input_error, solution.filters),
            )
            for nonnegative, base in ((False, inputs), (True, inputs_with_left))
        }
        stiffness = jnp.zeros_like(curvature)
        for name in (f.name for f in self._filters if not f.nonnegative):
            slope = direction_change(still | {name: jnp.ones_like(end[name])})
            stiffness = stiffness + learning_rate * curvature * jnp.maximum(slope, 0.0)
        total = jnp.zeros_like(curvature)
        for moving_average in self._filters:
            name = moving_average.name
            before, after = targets[moving_average.nonnegative]
            weights = self.filter_propagators[name].input_weights[-1]
            error = direction_change(still | {name: weights @ (after[name] - before[name])})
            rate = jnp.asarray(self._rate(moving_average), gradients.dtype)
            total = total + learning_rate * jnp.abs(error) / jnp.sqrt(rate**2 + rate * stiffness)
        return total

    def second_moment_noise(self, solution: StepSolution, gradient: Vector, noise: Vector) -> Array:
        """How much a noise of the gradient at the end changes the direction by way of second moments.

        That is the part of it that is even in the noise, once filters that cannot be negative have averaged it;
        relative, in the root mean square.
        """
        time = self._times[-1]
        filters = {name: values[-1] for name, values in solution.filters.items()}
        up, down, plain = (
            self._direction_and_targets(gradient + shift, filters, time)[1] for shift in (noise, -noise, 0.0)
        )
        added = {name: jnp.zeros_like(value) for name, value in filters.items()}
        for moving_average in self._filters:
            if moving_average.nonnegative:
                name = moving_average.name
                added[name] = ((up[name] + down[name]) / 2 - plain[name]) * moving_average.weight_sum_at(time)
        direction, change = jax.jvp(
            lambda filters: self._direction_and_targets(gradient, filters, time)[0], (filters,), (added,)
        )
        change = jnp.minimum(jnp.abs(change), jnp.abs(direction))
        norm = jnp.sum(direction * direction)
        return jnp.sqrt(jnp.sum(change * change) / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))

    @property
    def _times(self) -> Array:
        return self.start.time + self.step_size * jnp.asarray(self.nodes.fine, self.start.params.dtype)

    @property
    def _filters(self) -> tuple[Any, ...]:
        return self.flow.optimizer.stages[0].filters()

    def _rate(self, moving_average: Any) -> Scalar:
        return averages.filter_rate(moving_average.decay_at(0), self.flow.rate == "gould_tanaka")

    def _interpolate(self, gradients: StageValues) -> tuple[Fine, Fine]:
        """At the fine nodes, the polynomials through Radau's nodes alone, and through them and the left end."""
        radau_to_fine = jnp.asarray(self.nodes.radau_to_fine, gradients.dtype)
        endpoints_to_fine = jnp.asarray(self.nodes.endpoints_to_fine, gradients.dtype)
        return radau_to_fine @ gradients, endpoints_to_fine @ jnp.concatenate([self.start.gradient[None], gradients])

    def _solution(self, inputs: Fine, inputs_with_left: Fine) -> StepSolution:
        filters = self._integrate_filters(inputs, inputs_with_left)
        direction = jax.vmap(lambda *at: self._direction_and_targets(*at)[0])(inputs, filters, self._times)
        force = jax.vmap(self._force)(direction)
        propagator = self.parameter_propagator
        params = propagator.decay_factors[:, None] * self.start.params + propagator.input_weights @ force
        max_displacement = self.step_size * reduce_over_nodes(jnp.maximum, jnp.abs(force))
        return StepSolution(params, filters, direction, max_displacement)

    def _integrate_filters(self, inputs: Fine, inputs_with_left: Fine) -> Filters:
        start = self.start.filters
        values = {name: jnp.broadcast_to(value, inputs.shape) for name, value in start.items()}
        # A filter may be driven by those before it.
        for _ in range(averages.levels(self.flow.optimizer.stages)):
            targets, targets_with_left = (self._targets(x, values) for x in (inputs, inputs_with_left))
            for moving_average in self._filters:
                name = moving_average.name
                propagator = self.filter_propagators[name]
                driven = targets_with_left[name] if moving_average.nonnegative else targets[name]
                value = propagator.decay_factors[:, None] * start[name] + propagator.input_weights @ driven
                values[name] = jnp.maximum(value, 0.0) if moving_average.nonnegative else value
        return values

    def _targets(self, inputs: Fine, filters: Filters) -> Filters:
        """What drives each filter at the fine nodes."""
        return jax.vmap(lambda *at: self._direction_and_targets(*at)[1])(inputs, filters, self._times)

    def _direction_derivatives(self, inputs: Fine, filters: Filters) -> tuple[Fine, Filters]:
        """How the direction changes with the input itself, and with the input of each filter that can be negative."""
        ones = jnp.ones_like(inputs)
        still = {name: jnp.zeros_like(value) for name, value in filters.items()}

        def derivative(input_change: Fine, **filter_changes: Fine) -> tuple[Fine, Filters]:
            def read(inputs: Fine, filters: Filters) -> tuple[Fine, Filters]:
                return jax.vmap(self._direction_and_targets)(inputs, filters, self._times)

            return jax.jvp(read, (inputs, filters), (input_change, still | filter_changes))[1]

        direct, target_changes = derivative(ones)
        names = [moving_average.name for moving_average in self._filters if not moving_average.nonnegative]
        return direct, {name: derivative(jnp.zeros_like(ones), **{name: target_changes[name]})[0] for name in names}

    def _force(self, direction: Vector) -> Vector:
        """What a direction adds to θ' without weight decay."""
        change = self.flow.optimizer.increment(self.unravel(jnp.zeros_like(direction)), self.unravel(direction))
        return ravel_pytree(change)[0]

    def _direction_and_targets(self, gradient: Vector, filters: Filters, time: Scalar) -> tuple[Vector, Filters]:
        filters_by_stage = unflatten_filters(self.unravel, filters)
        direction, targets = self.flow.optimizer.direction_and_targets(self.unravel(gradient), filters_by_stage, time)
        return ravel_pytree(direction)[0], flatten_filters(targets)


def make_step_integrator(
    flow: GouldTanakaFlow, unravel: Callable[[Any], Any], node_count: int, start: FlatState, step_size: Array
) -> StepIntegrator:
    """The integrator of a step, with the integrals that depend on its length alone."""
    points, optimizer = nodes(node_count), flow.optimizer
    fine = jnp.asarray(points.fine, step_size.dtype)
    moving_averages = optimizer.stages[0].filters()
    rates = [averages.filter_rate(f.decay_at(0), flow.rate == "gould_tanaka") for f in moving_averages]
    rates.append(optimizer.learning_rate * optimizer.weight_decay)
    decays = step_size * jnp.stack([jnp.asarray(rate, step_size.dtype) for rate in rates])
    # θ itself decays by weight decay, and is no average: what drives it adds up.
    gains = decays.at[-1].set(step_size)
    factors = jnp.exp(-decays[:, None] * fine)
    weights = gains[:, None, None] * points.exponential_integrals(decays)
    propagators = [LinearPropagator(*pair) for pair in zip(factors, weights, strict=True)]
    by_name = {f.name: propagator for f, propagator in zip(moving_averages, propagators[:-1], strict=True)}
    return StepIntegrator(flow, start, step_size, by_name, propagators[-1], unravel, node_count)


def flatten_filters(filters: Any) -> Filters:
    """The filters of a flow's only stage with all parameters in one vector."""
    (stage,) = filters
    return {name: ravel_pytree(value)[0] for name, value in stage.items()}


def unflatten_filters(unravel: Callable[[Any], Any], filters: Filters) -> Any:
    """The filters by stage, as pytrees like the parameters."""
    return ({name: unravel(value) for name, value in filters.items()},)
