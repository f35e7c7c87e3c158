"""Arithmetic of pytrees like the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from adamflow.flows.norms import tree_norm
from adamflow.types import Leaf, Params, Scalar


def share(values: Params, of: Params) -> jax.Array:
    """⟨values, of⟩/⟨of, of⟩; 0 where `of` is 0."""
    unit = positive(tree_norm(of))
    return sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum((a / unit) * (b / unit)), values, of)), jnp.zeros(()))


def signed(params: Params) -> Params:
    """θ, each coordinate with a sign of its own: the same ones in every run."""
    flat, unravel = ravel_pytree(params)
    return unravel(flat * jax.random.rademacher(jax.random.key(0), flat.shape, flat.dtype))


def both(mean: Any, oscillation: Any) -> tuple[Any, Any]:
    """Return the two branches mean + oscillation and mean − oscillation."""
    return jax.tree.map(jnp.add, mean, oscillation), jax.tree.map(jnp.subtract, mean, oscillation)


def positive(size: jax.Array) -> jax.Array:
    """Return the size, or 1 where it is 0, to divide by."""
    return jnp.where(size > 0, size, 1.0)


def scaled(tree: Any, factor: Scalar) -> Any:
    """Multiply every leaf by a factor, in the leaf's type."""
    return jax.tree.map(lambda leaf: (factor * leaf).astype(leaf.dtype), tree)


def cast(value: jax.Array, like: Leaf) -> jax.Array:
    """Convert a value to the type of a leaf."""
    return value.astype(like.dtype)
