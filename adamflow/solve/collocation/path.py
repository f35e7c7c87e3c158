"""θ and the filters along a step, from the gradients at its nodes: all of a flow that needs no gradient."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from adamflow.flows import PaperFlow, averages
from adamflow.optimizers import Optimizer
from adamflow.solve.collocation.nodes import Nodes, along, nodes
from adamflow.types import Scalar

#: By stage and name, a filter for all parameters in one vector.
Filters = tuple[dict[str, Any], ...]
Vector = Float[Array, " size"]
Fine = Float[Array, "fine size"]
Slopes = Float[Array, "node node size"]


class Place(NamedTuple):
    """A flow at one time, all parameters in one vector."""

    time: Array
    params: Vector
    velocity: Float[Array, " velocities"]
    filters: Filters
    gradient: Vector


class Path(NamedTuple):
    """A flow at the fine nodes of a step: fields with a leading axis of nodes, and how far θ could have gone."""

    params: Fine
    velocity: Float[Array, "fine velocities"]
    filters: Filters
    reach: Vector


class StagePath(NamedTuple):
    """A stage at the fine nodes: what drives it, with the left end and without, its filters and its direction."""

    signal: Fine
    with_left: Fine
    filters: dict[str, Fine]
    direction: Fine


class Average(NamedTuple):
    """What a filter does over a step, or θ under weight decay: x̄(f) = kept x̄(0) + taken q, q its input at f."""

    kept: Float[Array, " fine"]
    taken: Float[Array, "fine fine"]


class FlowPath(eqx.Module):
    r"""Filters and θ of a `PaperFlow` over a step, by variation of constants from a polynomial through gradients.

    A filter with rate a obeys $\bar x(n) = e^{-an}\bar x(0) + a\int_0^n e^{-a(n-\nu)} q(x(\nu)) d\nu$; the integral is
    that of the polynomial through $q(x)$ at the fine nodes. A filter that cannot be negative is driven by the
    polynomial through the nodes and the left end of the step, others and θ by that through the nodes alone, as in
    Radau IIA. The signal of a later stage, the direction of the one before, is taken at the nodes and the left end
    like the gradient. No step size limits what filters do, since their decay is exact.

    Attributes:
        flow: whose path it is.
        start: where the step begins.
        length: of the step, in iterations.
        averages: by stage and filter.
        decay: of θ, in order 1.
        unravel: from a vector to parameters.
        count: of Radau's nodes.
    """

    flow: PaperFlow
    start: Place
    length: Any
    averages: tuple[dict[str, Average], ...]
    decay: Average
    unravel: Callable[[Any], Any] = eqx.field(static=True)
    count: int = eqx.field(static=True)

    @property
    def nodes(self) -> Nodes:
        return nodes(self.count)

    def __call__(self, gradients: Float[Array, "node size"], *, from_left: bool = False) -> Path:
        """The path for gradients at Radau's nodes.

        Args:
            gradients: at the nodes.
            from_left: whether θ is driven by the polynomial through the left end too, for the estimate of errors.
        """
        signal, with_left = self.signals(self.start.gradient, gradients)
        return self._path(self._stages(with_left if from_left else signal, with_left))

    def signals(self, left: Vector, at_nodes: Float[Array, "node size"]) -> tuple[Fine, Fine]:
        """At the fine nodes, the polynomials through Radau's nodes alone, and through them and the left end."""
        from_radau, from_ends = (jnp.asarray(x, at_nodes.dtype) for x in (self.nodes.from_radau, self.nodes.from_ends))
        return from_radau @ at_nodes, from_ends @ jnp.concatenate([left[None], at_nodes])

    def responses(self, gradients: Float[Array, "node size"]) -> tuple[Path, Slopes, Float[Array, "node size"]]:
        """The path; −∂θᵢ/∂Gⱼ at the nodes by coordinate; and what θ there gains by a signal that has the left end too.

        Second moments are held: what they would add is not definite, and spoils convergence.
        """
        places, from_radau = self.nodes.places, jnp.asarray(self.nodes.from_radau, gradients.dtype)
        stages = self._stages(*self.signals(self.start.gradient, gradients))
        through = jnp.eye(self.count, dtype=gradients.dtype)[:, :, None]
        gained = jnp.zeros_like(stages[0].signal)
        for index in range(len(stages) - 1):
            terms, gained = self._response(index, stages[index], gained)
            here = sum(weights[places][:, :, None] * by[places][:, None] for weights, by in terms)
            through = jnp.einsum("ikd,kjd->ijd", here, through)
            gained = from_radau @ gained[places]
        terms, gained = self._response(len(stages) - 1, stages[-1], gained)
        kernel = self._kernel[places]
        parts = [(kernel[:, None] * weights.T) @ jax.vmap(self._force)(by) for weights, by in terms]
        slopes = -functools.reduce(jnp.add, parts)
        slopes = slopes if len(stages) == 1 else jnp.einsum("ikd,kjd->ijd", slopes, through)
        return self._path(stages), slopes, kernel @ jax.vmap(self._force)(gained)

    def _response(self, index: int, stage: StagePath, gained: Fine) -> tuple[list[tuple[Array, Fine]], Fine]:
        """How a stage's direction changes with its signal at Radau's nodes, a sum of matrix times diagonal; its gain.

        That is what it gains by what its signal has gained, and by the left end.
        """
        from_radau = jnp.asarray(self.nodes.from_radau, gained.dtype)
        gained = gained + stage.with_left - stage.signal
        at_once, linear = self._sensitivities(self._single(index), stage)
        known = self.averages[index]
        terms = [(from_radau, at_once), *((known[name].taken @ from_radau, by) for name, by in linear.items())]
        return terms, sum((by * (known[name].taken @ gained) for name, by in linear.items()), at_once * gained)

    def slopes(self, gradients: Float[Array, "node size"]) -> Slopes:
        """−∂θᵢ/∂Gⱼ, by coordinate, with second moments held."""
        return self.responses(gradients)[1]

    def inflation(self, path: Path, gradient: Vector, noise: Vector) -> Array:
        """How much a noise of the gradient at the end changes the first stage's direction by way of second moments.

        That is the part of it that is even in the noise, once filters that cannot be negative have averaged it;
        relative, in the root mean square.
        """
        single, time = self._single(0), self._times[-1]
        filters = {name: values[-1] for name, values in path.filters[0].items()}
        (up,), (down,), (plain,) = (self._read(single, gradient + x, (filters,), time)[1] for x in (noise, -noise, 0.0))
        added = {name: jnp.zeros_like(value) for name, value in filters.items()}
        for filter in single.stages[0].filters():
            if filter.nonnegative:
                name = filter.name
                added[name] = ((up[name] + down[name]) / 2 - plain[name]) * filter.mass_at(time)
        direction, change = jax.jvp(
            lambda filters: self._read(single, gradient, (filters,), time)[0], (filters,), (added,)
        )
        change = jnp.minimum(jnp.abs(change), jnp.abs(direction))
        size = jnp.sum(direction * direction)
        return jnp.sqrt(jnp.sum(change * change) / jnp.maximum(size, jnp.finfo(size.dtype).tiny))

    @property
    def _times(self) -> Array:
        return self.start.time + self.length * jnp.asarray(self.nodes.fine, self.start.params.dtype)

    def _single(self, index: int) -> Optimizer:
        return dataclasses.replace(self.flow.optimizer, stages=(self.flow.optimizer.stages[index],))

    def _stages(self, signal: Fine, with_left: Fine) -> list[StagePath]:
        """What every stage does, each fed with the direction of the one before."""
        stages = []
        for index, (known, start) in enumerate(zip(self.averages, self.start.filters, strict=True)):
            single = self._single(index)
            if stages:
                before = stages[-1].direction
                signal, with_left = self.signals(before[0], before[self.nodes.places])
            filters = self._filters(single, known, start, signal, with_left)
            direction = jax.vmap(lambda *at, single=single: self._read(single, *at))(signal, (filters,), self._times)[0]
            stages.append(StagePath(signal, with_left, filters, direction))
        return stages

    def _sensitivities(self, single: Optimizer, stage: StagePath) -> tuple[Fine, dict[str, Fine]]:
        """How a direction changes with the signal itself, and with the signal of each filter that can be negative."""
        one, filters = jnp.ones_like(stage.signal), stage.filters
        still = {name: jnp.zeros_like(value) for name, value in filters.items()}

        def by(signal: Fine, **changes: Fine) -> tuple[Fine, dict[str, Fine]]:
            def read(signal: Fine, filters: Any) -> tuple[Fine, Filters]:
                return jax.vmap(lambda *at: self._read(single, *at))(signal, (filters,), self._times)

            direction, (targets,) = jax.jvp(read, (stage.signal, filters), (signal, still | changes))[1]
            return direction, targets

        at_once, taken = by(one)
        names = [filter.name for filter in single.stages[0].filters() if not filter.nonnegative]
        return at_once, {name: by(jnp.zeros_like(one), **{name: taken[name]})[0] for name in names}

    def _force(self, direction: Vector) -> Vector:
        """What a direction adds to θ' without weight decay."""
        return self._change(jnp.zeros_like(direction), direction)

    @property
    def _kernel(self) -> Float[Array, "fine fine"]:
        """From forces without weight decay at the fine nodes to θ there."""
        if self.flow.order == 1:
            return self.decay.taken
        plain, kernel, inverse = self._second_order
        return inverse @ plain @ kernel

    def _path(self, stages: list[StagePath]) -> Path:
        params, velocity, force = self._integrate(stages[-1].direction)
        reach = self.length * along(jnp.maximum, jnp.abs(force))
        return Path(params, velocity, tuple(stage.filters for stage in stages), reach)

    def _filters(
        self, single: Optimizer, known: dict[str, Average], start: Any, signal: Fine, with_left: Fine
    ) -> dict[str, Fine]:
        values = {name: jnp.broadcast_to(value, signal.shape) for name, value in start.items()}
        for _ in range(averages.levels(single)):
            (by_nodes,), (by_ends,) = (
                jax.vmap(lambda *at: self._read(single, *at))(x, (values,), self._times)[1] for x in (signal, with_left)
            )
            for filter in single.stages[0].filters():
                name = filter.name
                driven = by_ends[name] if filter.nonnegative else by_nodes[name]
                value = known[name].kept[:, None] * start[name] + known[name].taken @ driven
                values[name] = jnp.maximum(value, 0.0) if filter.nonnegative else value
        return values

    def _integrate(self, directions: Fine) -> tuple[Fine, Float[Array, "fine velocities"], Fine]:
        """θ, in order 2 its velocity, and what drives it, from directions at the fine nodes."""
        start, dtype = self.start, directions.dtype
        fine = jnp.asarray(self.nodes.fine, dtype)
        if self.flow.order == 1:
            force = jax.vmap(self._force)(directions)
            params = self.decay.kept[:, None] * start.params + self.decay.taken @ force
            return params, jnp.zeros((fine.size, 0), dtype), force
        force = jax.vmap(self._force)(directions)
        plain, kernel, inverse = self._second_order
        falling = jnp.exp(-2 * self.length * fine)[:, None] * start.velocity
        params = inverse @ (start.params + plain @ (falling + kernel @ force))
        force = jax.vmap(self._change)(params, directions)
        return params, falling + kernel @ force, force

    @property
    def _second_order(self) -> tuple[Array, Array, Array]:
        """From θ' to θ and from forces to θ' at the fine nodes, and (I + ηλ both)⁻¹, by which weight decay acts."""
        dtype = self.start.params.dtype
        plain = (self.length * jnp.asarray(self.nodes.plain, dtype)).astype(dtype)
        kernel = (2 * self.length * self.nodes.integrals(2 * self.length)).astype(dtype)
        optimizer = self.flow.optimizer
        both = (optimizer.learning_rate * optimizer.weight_decay * plain @ kernel).astype(dtype)
        return plain, kernel, jnp.linalg.inv(jnp.eye(len(both), dtype=dtype) + both)

    def _read(self, single: Optimizer, gradient: Vector, filters: Filters, time: Scalar) -> tuple[Vector, Filters]:
        direction, targets = single.read(self.unravel(gradient), restore(self.unravel, filters), time)
        return ravel_pytree(direction)[0], flat(targets)

    def _change(self, params: Vector, direction: Vector) -> Vector:
        return ravel_pytree(self.flow.optimizer.change(self.unravel(params), self.unravel(direction)))[0]


def path_over(flow: PaperFlow, unravel: Callable[[Any], Any], count: int, start: Place, length: Array) -> FlowPath:
    """The path of a flow over a step, with the integrals that depend on its length alone."""
    points, optimizer = nodes(count), flow.optimizer
    fine = jnp.asarray(points.fine, length.dtype)

    filters = [filter for stage in optimizer.stages for filter in stage.filters()]
    rates = [averages.filter_rate(filter.decay_at(0), flow.rate == "paper") for filter in filters]
    # θ itself decays by weight decay, and is no average: what drives it adds up.
    every = length * jnp.stack(
        [jnp.asarray(r, length.dtype) for r in (*rates, optimizer.learning_rate * optimizer.weight_decay)]
    )
    weights = every.at[-1].set(length)
    kept, taken = jnp.exp(-every[:, None] * fine), weights[:, None, None] * points.integrals(every)
    found = [Average(*pair) for pair in zip(kept, taken, strict=True)]
    rest = iter(found)
    known = tuple({filter.name: next(rest) for filter in stage.filters()} for stage in optimizer.stages)
    return FlowPath(flow, start, length, known, found[-1], unravel, count)


def flat(filters: Any) -> Filters:
    """Filters with all parameters in one vector."""
    return tuple({name: ravel_pytree(value)[0] for name, value in stage.items()} for stage in filters)


def restore(unravel: Callable[[Any], Any], filters: Filters) -> Filters:
    """Filters as pytrees like the parameters."""
    return tuple({name: unravel(value) for name, value in stage.items()} for stage in filters)
