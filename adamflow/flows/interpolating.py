"""A flow of any order for every record, from the discrete step alone: the logarithm of the shift by an iteration."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from adamflow.flows import averages
from adamflow.flows.flow import AbstractFlow, ChangeOfVariables, Snapshot, StartLike, start_of
from adamflow.losses import as_scalar
from adamflow.optimizers import Optimizer, OptimizerState, check_optimizer
from adamflow.optimizers.hyperparameters import count_called
from adamflow.optimizers.record import Record
from adamflow.optimizers.stage import Refiltered
from adamflow.types import Filters, Leaf, Loss, Params, Scalar, State

#: By stage and name, what each filter would be if it averaged the constant 1.
Masses = tuple[dict[str, jax.Array], ...]


class InterpolatingState(Record):
    """The state of the discrete step before the gradient at θ is consumed.

    Attributes:
        params: θ.
        optimizer_state: filters, other memory and last inputs, as the iteration before left them.
        weight_sums: by stage and name, the average of the constant 1 by each filter, by which bias correction divides;
            empty dicts where it is off.
    """

    params: Params
    optimizer_state: OptimizerState
    weight_sums: Masses

    @property
    def filters(self) -> tuple[dict[str, State], ...]:
        """By stage, a dict from the filter's name to a pytree like the parameters (before bias correction)."""
        return self.optimizer_state.filters


class InterpolatingFlow(AbstractFlow):
    r"""The flow through the iterates to order p in their differences; it exists for every record.

    With y = (θ, filters, memory, last inputs) before the gradient at θ is consumed, F(y, n) what the discrete step
    makes of it, and (Δf)(y, n) = f(F(y, n), n + 1) − f(y, n), the flow through all iterates is y' = ln(1 + Δ) y. Its
    series ends here after p terms:

        dy/dn = Σ_{k=1..p} ((−1)^{k+1}/k) Δᵏy = Σ_{i<p} wᵢ (yᵢ₊₁ − yᵢ),   y₀ = y,   yᵢ₊₁ = F(yᵢ, n + i),
        w = (1);  (3/2, −1/2);  (11/6, −7/6, 1/3);  …   exact differences of the map, in which no step size appears.

    An evaluation costs p gradients, and no derivatives of them. The form G − ½(∂G·G + ∂ₙG) of order 2, G = F − y, with
    a Jacobian-vector product, is as accurate up to a factor of 2 either way, costs more, and ends at order 2.

    *Order.* Where all of y moves slowly (filters that have forgotten their start, no gradient crossing zero) the flow
    is within O(ηᵖ) of the iterates. What y forgets by a factor α per iteration has the rate Σ_{k≤p} (1−α)ᵏ/k instead
    of −ln α, too small by about (1−α)ᵖ⁺¹/(p+1):

        α = .9:    −ln α = .105361;       p = 1, 2, 3: .1,   .105,     .105333
        α = .999:  −ln α = .0010005003;   p = 1, 2, 3: .001, .0010005, .0010005003

    So of the start at n = 0 there remains O(η²) for every p ≥ 2, with a small factor, and O(η) where bias correction
    is off; a run with `start=` leaves it out. Multipliers near 0, such as that of the last input that Adan keeps, or
    negative ones have no such logarithm: the flow damps them, and does not see the edge of stability. (At γ = .9 those
    of order 1 to 3 are stable for every step size, that of order 4 up to ηs = 5.7, the discrete step up to 38.) The
    maximum that AMSGrad keeps moves by the same formula. An average that cannot be negative falls no faster than αⁿ,
    which the series beyond order 1 would allow where the next gradients are many times this one.

    *Bias correction* divides by the weight_sum of each filter, the same average of the constant 1, which is part of y.
    So the wrong rates cancel: a constant gradient is averaged exactly.

    Args:
        optimizer: any record.
        order: p ≥ 1.

    Raises:
        ValueError: if order is no whole number of at least 1.
        TypeError: if a stage keeps memory that is not made of floats, such as a counter.

    Source: derivation of this project.

    Example:
        >>> import adamflow as af, diffrax
        >>> problem, optimizer = af.problems.chain(dimension=4), af.adam(1e-3)
        >>> discrete = af.iterate(optimizer, problem.loss, problem.params, 100)
        >>> flow, solver = af.InterpolatingFlow(optimizer, order=2), diffrax.Tsit5()
        >>> continuous = af.solve(flow, problem.loss, problem.params, 100, solver=solver)
        >>> af.compare(discrete, continuous).max_relative_error < 1e-3
        True
    """

    optimizer: Optimizer
    order: int = eqx.field(static=True, converter=count_called("order"), default=2)

    def __check_init__(self):
        check_optimizer("InterpolatingFlow", self.optimizer)
        for stage in self.optimizer.stages:
            memory = jax.tree.leaves(stage.initial_memory(jnp.zeros(())))
            if not all(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in memory):
                raise TypeError(
                    f"{type(stage).__name__} keeps memory that is not made of floats, which cannot move continuously; "
                    "let its methods use the iteration that they are given instead of a counter"
                )

    @property
    def name(self) -> str:
        return f"map flow of order {self.order}"

    @property
    def gradients_per_evaluation(self) -> int:
        return self.order * self.optimizer.gradients_per_step

    @property
    def transient_iterations(self) -> int:
        return averages.transient_iterations(self.optimizer) if self.order > 1 else 0

    def initial_state(self, loss: Loss, params: Params, start: StartLike | None = None) -> InterpolatingState:
        if start is not None:
            iteration, optimizer_state = start_of(start, self.optimizer, params)
            return InterpolatingState(params, optimizer_state, self._masses_after(iteration - 1, params))
        memory = self.optimizer.initial_state(params)
        gradient_of = jax.grad(as_scalar(loss))
        _, after = self.optimizer.consume(gradient_of, gradient_of(params), memory, 0, params)
        # To their start, 0 for most, filters get what rounding would take from the first gradient's share, so that
        # `coordinates` knows how large they will be, and `solve` whether the gradient is finite.
        first, weight_sums = jax.tree.map(
            lambda leaf: (leaf * jnp.finfo(leaf.dtype).eps).astype(leaf.dtype),
            (after.filters, self._masses_after(0, params)),
        )
        filters = jax.tree.map(jnp.add, memory.filters, first)
        # As the discrete step has it, the input before the first is the first.
        memory = dataclasses.replace(memory, filters=filters, previous_inputs=after.previous_inputs)
        return InterpolatingState(params, memory, weight_sums)

    def vector_field(self, time: Scalar, state: InterpolatingState, loss: Loss) -> InterpolatingState:
        def visit(
            carry: tuple[InterpolatingState, InterpolatingState], term: tuple[Any, Any]
        ) -> tuple[tuple[InterpolatingState, InterpolatingState], None]:
            (state, total), (ahead, weight) = carry, term
            change = self.increment(time + ahead, state, loss)
            total = jax.tree.map(lambda t, c: (t + weight * c).astype(c.dtype), total, change)
            return (jax.tree.map(jnp.add, state, change), total), None

        state = self.clipped(state)
        terms = (jnp.arange(self.order), jnp.asarray(weights(self.order)))
        (_, total), _ = jax.lax.scan(visit, (state, jax.tree.map(jnp.zeros_like, state)), terms)
        return self.limited(time, state, total)

    def params(self, state: InterpolatingState) -> Params:
        return state.params

    def coordinates(self, state: InterpolatingState) -> ChangeOfVariables:
        """Filters in units of what they average, so that the scale of the loss changes nothing.

        Not ln v, which would have to rise from −∞ at the start.
        """

        def unit(values: Params, _: bool) -> jax.Array:
            return jnp.stack([jnp.max(jnp.abs(leaf), initial=0.0) for leaf in jax.tree.leaves(values)]).max()

        units = averages.map_filters(self.optimizer, unit, state.filters)
        if self.optimizer.bias_correction:
            units = jax.tree.map(jnp.divide, units, state.weight_sums)
        units = jax.tree.map(lambda unit: jnp.where(unit > 0, unit, 1.0), units)

        def convert(operation: Callable[[Leaf, Leaf], Leaf]) -> Callable[[InterpolatingState], InterpolatingState]:
            def scale(values: Params, _: bool, unit: jax.Array) -> Params:
                return jax.tree.map(lambda leaf: operation(leaf, unit).astype(leaf.dtype), values)

            def change(state: InterpolatingState) -> InterpolatingState:
                return _with_filters(state, averages.map_filters(self.optimizer, scale, state.filters, units))

            return change

        return ChangeOfVariables(convert(jnp.divide), convert(jnp.multiply))

    def snapshot(self, time: Scalar, state: InterpolatingState, loss: Loss) -> Snapshot:
        value, gradient = jax.value_and_grad(as_scalar(loss))(state.params)
        gradient_of = jax.grad(as_scalar(loss))
        direction, optimizer_state, weight_sums = self._consume(time, self.clipped(state), gradient, gradient_of)
        if self.optimizer.bias_correction:
            # What iteration n divides by is 1 − αⁿ⁺¹, so that is the weight_sum that users expect in a filter.
            optimizer_state = dataclasses.replace(
                optimizer_state, filters=self._with_mass(time, optimizer_state.filters, weight_sums)
            )
        return Snapshot(
            time, state.params, gradient, direction, optimizer_state.filters, value, memory=optimizer_state.memory
        )

    def _consume(
        self, time: Scalar, state: InterpolatingState, gradient: Params, gradient_of: Callable[[Params], Params]
    ) -> tuple[Params, OptimizerState, Masses]:
        """The direction at the time n, and filters, memory, last inputs and weight_sums after it."""
        weight_sums, optimizer = self._advance_masses(state.weight_sums, time), self.optimizer
        if optimizer.bias_correction:
            stages = tuple(
                Refiltered(stage, lambda filter, known=known: filter._replace(weight_sum=lambda _: known[filter.name]))
                for stage, known in zip(optimizer.stages, weight_sums, strict=True)
            )
            optimizer = dataclasses.replace(optimizer, stages=stages)
        return *optimizer.consume(gradient_of, gradient, state.optimizer_state, time, state.params), weight_sums

    def increment(self, time: Scalar, state: InterpolatingState, loss: Loss) -> InterpolatingState:
        """F(y, n) − y; that of θ as the step itself has it, without a difference of large numbers."""
        gradient_of = jax.grad(as_scalar(loss))
        return self.increment_by(time, state, gradient_of(state.params), gradient_of)

    def increment_by(
        self, time: Scalar, state: InterpolatingState, gradient: Params, gradient_of: Callable[[Params], Params]
    ) -> InterpolatingState:
        """F(y, n) − y for a given gradient, and a function that has it at other parameters."""
        direction, optimizer_state, weight_sums = self._consume(time, state, gradient, gradient_of)
        optimizer_state, weight_sums = jax.tree.map(
            jnp.subtract, (optimizer_state, weight_sums), (state.optimizer_state, state.weight_sums)
        )
        moved = self.optimizer.at(time).increment(state.params, direction)
        return InterpolatingState(moved, optimizer_state, weight_sums)

    def clipped(self, state: InterpolatingState) -> InterpolatingState:
        """The state without the negative values of nonnegative filters that the stages of an explicit step may have."""
        return _with_filters(state, averages.clipped(self.optimizer, state.filters))

    def limited(self, time: Scalar, state: InterpolatingState, rate: InterpolatingState) -> InterpolatingState:
        """A rate at which nonnegative filters stay so: without input v falls as αⁿ, and never faster.

        Beyond order 1 the series goes below that where the next gradients are many times this one.
        """
        limited = []
        for stage, rates, values in zip(self.optimizer.stages, rate.filters, state.filters, strict=True):
            lowest = {filter.name: _log(filter.decay_at(time)) for filter in stage.filters() if filter.nonnegative}
            limited.append(
                {
                    name: jax.tree.map(
                        lambda r, v, low=lowest[name]: jnp.maximum(r, low * v).astype(r.dtype), change, values[name]
                    )
                    if name in lowest
                    else change
                    for name, change in rates.items()
                }
            )
        return _with_filters(rate, tuple(limited))

    def _masses_after(self, iteration: Scalar, params: Params) -> Masses:
        """The weight_sums that the discrete step has after an iteration; none where it does not correct the bias."""
        dtype = jnp.result_type(*jax.tree.leaves(params))
        return tuple(
            {filter.name: jnp.asarray(filter.weight_sum_at(iteration), dtype) for filter in stage.filters()}
            if self.optimizer.bias_correction
            else {}
            for stage in self.optimizer.stages
        )

    def _advance_masses(self, weight_sums: Masses, time: Scalar) -> Masses:
        """1 + α (M − 1) for every filter, at the decay α of the time n."""
        advanced = []
        for stage, known in zip(self.optimizer.stages, weight_sums, strict=True):
            decays = {filter.name: filter.decay_at(time) for filter in stage.filters()}
            advanced.append(
                {
                    name: jnp.asarray(1 + decays[name] * (weight_sum - 1), weight_sum.dtype)
                    for name, weight_sum in known.items()
                }
            )
        return tuple(advanced)

    def _with_mass(self, time: Scalar, filters: Filters, weight_sums: Masses) -> Filters:
        rescaled = []
        for stage, values, known in zip(self.optimizer.stages, filters, weight_sums, strict=True):
            ratios = {filter.name: filter.weight_sum_at(time) / known[filter.name] for filter in stage.filters()}
            rescaled.append(
                {
                    name: jax.tree.map(lambda leaf, ratio=ratio: (ratio * leaf).astype(leaf.dtype), values[name])
                    for name, ratio in ratios.items()
                }
            )
        return tuple(rescaled)


def _with_filters(state: InterpolatingState, filters: Filters) -> InterpolatingState:
    return InterpolatingState(
        state.params, dataclasses.replace(state.optimizer_state, filters=filters), state.weight_sums
    )


def _log(decay: Scalar) -> jax.Array:
    """ln α; finite at α = 0."""
    decay = jnp.asarray(decay, float)
    return jnp.log(jnp.maximum(decay, jnp.finfo(decay.dtype).tiny))


def weights(order: int) -> np.ndarray:
    """w: Σ_{k≤p} ((−1)^{k+1}/k) Δᵏ = Σ_j cⱼ Fʲ with cⱼ = (−1)^{j+1} C(p, j)/j for j ≥ 1, and wᵢ = Σ_{j>i} cⱼ."""
    terms = [(-1) ** (j + 1) * math.comb(order, j) / j for j in range(1, order + 1)]
    return np.cumsum(terms[::-1])[::-1].copy()
