"""Euclidean norms whose squares neither underflow nor overflow: entries are divided by the largest of them first."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamflow.types import Params


def unit_of(values: jax.Array, axis: int | tuple[int, ...] = -1) -> jax.Array:
    """The largest magnitude along axes, which are kept, to divide by; 1 where it is 0 or not finite.

    LAPACK's eigenvalues, too, are wrong where the squares of all entries underflow.
    """
    largest = jnp.max(jnp.abs(values), axis=axis, keepdims=True, initial=0.0)
    return jax.lax.stop_gradient(jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1.0))


def norm(values: jax.Array, axis: int = -1) -> jax.Array:
    """‖x‖ along an axis of real or complex numbers; 0, with derivative 0, where all are 0, and nan where one is."""
    unit = unit_of(values, axis)
    scaled = values / unit
    total = jnp.sum(jnp.real(scaled * jnp.conj(scaled)), axis=axis)
    vanishes = total == 0
    root = jnp.where(vanishes, 0.0, jnp.sqrt(jnp.where(vanishes, 1.0, total)))
    return jnp.squeeze(unit, axis) * root


def row_norms(rows: Any, xp: Any = jnp) -> Any:
    """The norm over all leaves of a pytree at each index of their leading axis, shape (rows,); by NumPy if `xp` is."""
    leaves = [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(rows)]
    return (numpy_norm if xp is np else norm)(xp.concatenate(leaves, axis=1))


def tree_norm(params: Params) -> jax.Array:
    """The norm over all leaves of a pytree; 0, with derivative 0, where all of it is 0."""
    return norm(jnp.stack([norm(leaf.reshape(-1)) for leaf in jax.tree.leaves(params)]))


def numpy_unit_of(values: np.ndarray, axis: int | tuple[int, ...] = -1) -> np.ndarray:
    """`unit_of` an array of NumPy, by NumPy."""
    largest = np.max(np.abs(values), axis=axis, keepdims=True, initial=0.0)
    return np.where((largest > 0) & np.isfinite(largest), largest, largest.dtype.type(1))


def numpy_norm(values: np.ndarray, axis: int = -1) -> Any:
    """`norm` of an array of NumPy, by NumPy."""
    unit = numpy_unit_of(values, axis)
    return np.squeeze(unit, axis) * np.linalg.norm(values / unit, axis=axis)
