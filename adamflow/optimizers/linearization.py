"""A record's step, or a flow of it, near rest: θ = 0 and m = 0 in a parabola, with second moments held at 1.

Memory that is no average is held at 1, too. There everything is linear, and its Jacobian says what is stable while
preconditioners change slowly. Here is what one coordinate does; `adamflow.analysis` has what follows from it.
Derivation of this project.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from adamflow.optimizers.optimizer import Optimizer
from adamflow.optimizers.stage import Filter, Refiltered
from adamflow.types import Filters, Loss, Scalar


class System(NamedTuple):
    """A step or vector field: its state at θ = 0, how that evolves, and where filters and other memory stand in it."""

    state: Any
    evolve: Callable[[Any], Any]
    filters: Callable[[Any], Filters]
    memory: Callable[[Any], Filters | None] = lambda state: None


#: What is linearized: from the record with its second moments held, and the loss, to the system.
Build = Callable[[Optimizer, Loss], System]


def step_system(optimizer: Optimizer, loss: Loss) -> System:
    """The discrete step after infinitely many iterations."""
    zero = zero_of(optimizer)
    return System(
        (zero, optimizer.initial_state(zero)),
        lambda state: optimizer.step(loss, state, math.inf),
        lambda state: state[1].filters,
        lambda state: state[1].memory,
    )


def zero_of(optimizer: Optimizer) -> Array:
    """One parameter at rest, in the precision of the record's numbers."""
    return jnp.zeros((), optimizer.dtype)


def without_bias(optimizer: Optimizer) -> Optimizer:
    """The record once bias correction is over, and with ε in P, which the curvature is measured by.

    Near rest gradients are too small to be clipped.
    """
    plain = dict(bias_correction=False, epsilon=jnp.zeros_like(optimizer.epsilon), clip_norm=None, clip_value=None)
    return dataclasses.replace(optimizer, **plain)


def at_rest(optimizer: Optimizer, curvature: Scalar, build: Build) -> tuple[Callable[[Array], Array], Array]:
    """The step or vector field as a function of the coordinates that are not held, and these at rest: zeros.

    Args:
        optimizer: the record, `without_bias`.
        curvature: s of the parabola s θ²/2.
        build: of the system.
    """

    def loss(params: Array) -> Any:
        return curvature * params**2 / 2

    stages = tuple(Refiltered(stage, _held, holds_memory=True) for stage in optimizer.stages)
    optimizer = dataclasses.replace(optimizer, stages=stages)
    system = build(optimizer, loss)
    start = eqx.tree_at(system.filters, system.state, _where_held(optimizer, system, jnp.ones_like))
    if jax.tree.leaves(system.memory(start)):
        start = eqx.tree_at(system.memory, start, jax.tree.map(jnp.ones_like, system.memory(start)))
    spec = _moving(optimizer, system)
    flat, unravel = ravel_pytree(eqx.filter(start, spec))

    def respond(coordinates: Array) -> Array:
        state = eqx.combine(unravel(coordinates), start)
        return ravel_pytree(eqx.filter(system.evolve(state), spec))[0]

    return respond, jnp.zeros_like(flat)


def jacobian(respond: Callable[[Array], Array], origin: Array) -> Array:
    """The matrix of a response."""
    # A barrier, since XLA turns (s·0)·s into 0·s², which is nan once s² overflows.
    return jax.jacfwd(respond)(jax.lax.optimization_barrier(origin))


def _held(filter: Filter) -> Filter:
    """A second moment that does not move: the limit in which it forgets infinitely slowly."""
    if not filter.nonnegative:
        return filter
    dtype = jnp.result_type(float if callable(filter.decay) else filter.decay)
    return filter._replace(decay=1 - float(jnp.finfo(dtype).eps), weight_sum=None)


def _where_held(optimizer: Optimizer, system: System, change: Callable[[Any], Any]) -> Any:
    """The filters, with the second moments changed."""
    return tuple(
        {
            filter.name: change(values[filter.name]) if filter.nonnegative else values[filter.name]
            for filter in stage.filters()
        }
        for stage, values in zip(optimizer.stages, system.filters(system.state), strict=True)
    )


def _moving(optimizer: Optimizer, system: System) -> Any:
    """By leaf of the state, whether it moves: all but second moments and memory that is no average."""
    every = system._replace(state=jax.tree.map(lambda _: True, system.state))
    spec = eqx.tree_at(system.filters, every.state, _where_held(optimizer, every, lambda _: False))
    memory = system.memory(system.state)
    if jax.tree.leaves(memory):
        spec = eqx.tree_at(system.memory, spec, jax.tree.map(lambda _: False, memory))
    return spec
