"""Arithmetic of pytrees like the parameters."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Key

from adamflow.flows.norms import tree_norm
from adamflow.types import Leaf, Params, Scalar


def share(values: Params, of: Params) -> jax.Array:
    """⟨values, of⟩/⟨of, of⟩; 0 where `of` is 0."""
    unit = positive(tree_norm(of))
    return sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum((a / unit) * (b / unit)), values, of)), jnp.zeros(()))


def dot(first: Params, second: Params) -> jax.Array:
    """⟨x, y⟩ over all leaves."""
    parts = jax.tree.leaves(jax.tree.map(lambda a, b: total(a * b), first, second))
    return functools.reduce(jnp.add, parts)


def total(leaf: jax.Array) -> jax.Array:
    """The sum of all entries, by columns first: in single precision that of ten million in a row is poor."""
    return jnp.sum(jnp.sum(leaf, axis=0)) if leaf.ndim > 1 else jnp.sum(leaf)


def length_of(vector: Params) -> jax.Array:
    """‖x‖, by a second turn of scaled entries only where the squares may underflow or overflow."""
    square = dot(vector, vector)
    limits = jnp.finfo(square.dtype)
    is_safe = (square > 1e6 * float(limits.tiny) / float(limits.eps)) & (square < float(limits.max))
    return jax.lax.cond(is_safe, lambda _: jnp.sqrt(square), tree_norm, vector)


def masked(vector: Params, where: Params | None) -> Params:
    """A vector with 0 wherever another is not positive; unchanged if that is `None`."""
    if where is None:
        return vector
    return jax.tree.map(lambda leaf, place: jnp.where(place > 0, leaf, 0), vector, where)


def normal_like(key: Key[Array, ""], shapes: Any) -> Any:
    """Independent standard normal numbers, of the shapes and types of the leaves of a pytree."""
    leaves, structure = jax.tree.flatten(shapes)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten(
        [jax.random.normal(one, leaf.shape, leaf.dtype) for one, leaf in zip(keys, leaves, strict=True)]
    )


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
