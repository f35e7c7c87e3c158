"""θ and the filters along a step, from the gradients at its nodes: all of a flow that needs no gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from adamflow.flows import PaperFlow, averages
from adamflow.solve.collocation.nodes import Nodes, nodes
from adamflow.types import Scalar

#: By stage and name, a filter for all parameters in one vector.
Filters = tuple[dict[str, Any], ...]
Vector = Float[Array, " size"]


class Place(NamedTuple):
    """A flow at one time, all parameters in one vector."""

    time: Scalar
    params: Vector
    velocity: Vector
    filters: Filters
    gradient: Vector


class Path(NamedTuple):
    """A flow at the fine nodes of a step: each field with a leading axis of nodes."""

    params: Float[Array, "fine size"]
    velocity: Float[Array, "fine size"]
    filters: Filters


class FlowPath(eqx.Module):
    r"""Filters and θ of a `PaperFlow` over a step, by variation of constants from a polynomial through gradients.

    A filter with rate a obeys $\bar x(n) = e^{-an}\bar x(0) + a\int_0^n e^{-a(n-\nu)} f(x(\nu)) d\nu$; the integral is
    that of the polynomial through $f(x)$ at the fine nodes. A filter that cannot be negative is driven by the
    polynomial through the nodes and the left end of the step, others and θ by that through the nodes alone, as in
    Radau IIA. No step size limits what filters do, since their decay is exact.

    Attributes:
        flow: whose path it is.
        start: where the step begins.
        length: of the step, in iterations.
        remembered: by filter, what is left of its start at the fine nodes.
        averaged: by filter, the matrix from f(x) at the fine nodes to what the filter has taken up of it.
        unravel: from a vector to parameters.
        count: of Radau's nodes.
    """

    flow: PaperFlow
    start: Place
    length: Any
    remembered: dict[str, Array]
    averaged: dict[str, Array]
    unravel: Callable[[Any], Any] = eqx.field(static=True)
    count: int = eqx.field(static=True)

    @property
    def nodes(self) -> Nodes:
        return nodes(self.count)

    def __call__(self, gradients: Float[Array, "node size"], *, frozen: bool = False, from_left: bool = False) -> Path:
        """The path for gradients at Radau's nodes.

        Args:
            gradients: at the nodes.
            frozen: whether second moments count as constants where this is differentiated.
            from_left: whether θ is driven by the polynomial through the left end too, for the estimate of errors.
        """
        points, dtype, start, length = self.nodes, gradients.dtype, self.start, self.length
        fine = jnp.asarray(points.fine, dtype)
        times = start.time + length * fine
        with_left = jnp.asarray(points.from_ends, dtype) @ jnp.concatenate([start.gradient[None], gradients])
        signal = with_left if from_left else jnp.asarray(points.from_radau, dtype) @ gradients
        filters = self._filters(signal, with_left, times, frozen)
        directions = jax.vmap(self._read)(signal, filters, times)[0]
        integral = points.integrals(jnp.zeros((), dtype))
        params, velocity = jnp.broadcast_to(start.params, signal.shape), jnp.zeros((fine.size, 0), dtype)
        # Weight decay changes θ slowly: two rounds of fixed point are as exact as the step.
        for _ in range(2):
            force = jax.vmap(self._change)(params, directions)
            if self.flow.order == 2:
                kernel = 2 * length * points.integrals(2 * length)
                force = velocity = jnp.exp(-2 * length * fine)[:, None] * start.velocity + kernel @ force
            params = start.params + length * integral @ force
        return Path(params, velocity, filters)

    def slopes(self, gradients: Float[Array, "node size"]) -> Float[Array, "node node size"]:
        """−∂θᵢ/∂gⱼ, by coordinate, with second moments held: what they add is not definite, and spoils convergence."""

        def ends(gradients: Array) -> Array:
            return self(gradients, frozen=True).params[self.nodes.places]

        def column(j: int) -> Array:
            return jax.jvp(ends, (gradients,), (jnp.zeros_like(gradients).at[j].set(1.0),))[1]

        return -jnp.stack([column(j) for j in range(self.count)], axis=1)

    def _filters(self, signal: Array, with_left: Array, times: Array, frozen: bool) -> Filters:
        (stage,), (before,) = self.flow.optimizer.stages, self.start.filters
        filters = {name: jnp.broadcast_to(value, signal.shape) for name, value in before.items()}
        for _ in range(averages.levels(self.flow.optimizer)):
            (by_nodes,), (by_ends,) = (jax.vmap(self._read)(x, (filters,), times)[1] for x in (signal, with_left))
            for filter in stage.filters():
                name = filter.name
                driven = by_ends[name] if filter.nonnegative else by_nodes[name]
                value = self.remembered[name][:, None] * before[name] + self.averaged[name] @ driven
                if filter.nonnegative:
                    value = jnp.maximum(value, 0.0)
                    value = jax.lax.stop_gradient(value) if frozen else value
                filters[name] = value
        return (filters,)

    def _read(self, gradient: Vector, filters: Filters, time: Scalar) -> tuple[Vector, Filters]:
        direction, targets = self.flow.optimizer.read(self.unravel(gradient), restore(self.unravel, filters), time)
        return ravel_pytree(direction)[0], flat(targets)

    def _change(self, params: Vector, direction: Vector) -> Vector:
        return ravel_pytree(self.flow.optimizer.change(self.unravel(params), self.unravel(direction)))[0]


def path_over(flow: PaperFlow, unravel: Callable[[Any], Any], count: int, start: Place, length: Array) -> FlowPath:
    """The path of a flow of one stage over a step, with the integrals that depend on its length alone."""
    points, remembered, averaged = nodes(count), {}, {}
    fine = jnp.asarray(points.fine, length.dtype)
    for filter in flow.optimizer.stages[0].filters():
        rate = (length * averages.filter_rate(filter.decay_at(0), flow.rate == "paper")).astype(length.dtype)
        remembered[filter.name] = jnp.exp(-rate * fine)
        averaged[filter.name] = rate * points.integrals(rate)
    return FlowPath(flow, start, length, remembered, averaged, unravel, count)


def flat(filters: Any) -> Filters:
    """Filters with all parameters in one vector."""
    return tuple({name: ravel_pytree(value)[0] for name, value in stage.items()} for stage in filters)


def restore(unravel: Callable[[Any], Any], filters: Filters) -> Filters:
    """Filters as pytrees like the parameters."""
    return tuple({name: unravel(value) for name, value in stage.items()} for stage in filters)
