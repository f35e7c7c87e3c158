"""Rows of `bench/run.py`: a step of k-Adam as an optax transformation, for each k against optax.adamw."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import adamflow as af

#: What a row holds: its name, adamflow's side, the peer's, and how often both are timed.
Fields = tuple[str, Callable[[], Any], Callable[[], Any], int]


def stepper(method: optax.GradientTransformation, params: jax.Array) -> Callable[[], Any]:
    """A step, compiled, with a gradient equal to the parameters; in place, as in training.

    Without donation the times are those of the allocator, which hands pages back and asks for them again.
    """

    def step(params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = method.update(params, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1))
    now = [jax.tree.map(jnp.array, (params, method.init(params)))]

    def advance() -> Any:
        now[0] = compiled(*now[0])
        return now[0]

    return advance


def one_step(k: int, dimension: int, repeats: int) -> Fields:
    """One step of k-Adam in float32; the ratio is to be at most 1.05 for k = 1, and about k for others."""
    params = jnp.linspace(-1.0, 1.0, dimension, dtype=jnp.float32)
    ours = af.kadam(k, 1e-3, epsilon=1e-8, weight_decay=0.1).to_optax()
    peer = optax.adamw(1e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1)
    name = f"k-Adam, k = {k}, {dimension} parameters, one step / optax.adamw"
    return name, stepper(ours, params), stepper(peer, params), repeats


def rows(dimension: int = 1_000_000, repeats: int = 300) -> list[Fields]:
    return [one_step(k, dimension, repeats) for k in (1, 2, 4, 10)]
