"""Arithmetic of pytrees like the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from adamflow.types import Leaf, Params, Scalar


def size(params: Params) -> jax.Array:
    """The Euclidean norm of a pytree; 0, with derivative 0, where all of it is 0."""
    leaves = jax.tree.leaves(params)
    largest = jnp.stack([jnp.max(jnp.abs(leaf), initial=0.0) for leaf in leaves]).max()
    unit = jnp.where(largest > 0, largest, 1.0)
    total = sum(jnp.sum((leaf / unit) ** 2) for leaf in leaves)
    return jnp.where(largest > 0, unit * jnp.sqrt(jnp.where(largest > 0, total, 1.0)), 0.0)


def share(values: Params, of: Params) -> jax.Array:
    """⟨values, of⟩/⟨of, of⟩; 0 where `of` is 0."""
    unit = positive(size(of))
    return sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum((a / unit) * (b / unit)), values, of)), jnp.zeros(()))


def signed(params: Params) -> Params:
    """θ, each coordinate with a sign of its own: the same ones in every run."""
    flat, unravel = ravel_pytree(params)
    return unravel(flat * jax.random.rademacher(jax.random.key(0), flat.shape, flat.dtype))


def both(mean: Any, oscillation: Any) -> tuple[Any, Any]:
    return jax.tree.map(jnp.add, mean, oscillation), jax.tree.map(jnp.subtract, mean, oscillation)


def positive(size: jax.Array) -> jax.Array:
    return jnp.where(size > 0, size, 1.0)


def scaled(tree: Any, factor: Scalar) -> Any:
    return jax.tree.map(lambda leaf: (factor * leaf).astype(leaf.dtype), tree)


def cast(value: jax.Array, like: Leaf) -> jax.Array:
    return value.astype(like.dtype)
