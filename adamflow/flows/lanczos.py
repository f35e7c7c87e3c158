"""The Lanczos method for a symmetric operator: an orthonormal basis of a Krylov space, and the operator in it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from matfree.decomp import hessenberg

from adamflow.types import Scalar


class Krylov(NamedTuple):
    """A Krylov space of an operator A.

    Attributes:
        basis: orthonormal vectors, in rows; 0 from the row on at which the space has no further dimension.
        projected: the matrix of A/unit in this basis; rows and columns of missing vectors are 0.
        missing: which vectors are missing, shape (rows,).
        unit: the size of A, by which it is divided so that squares neither underflow nor overflow.
    """

    basis: jax.Array
    projected: jax.Array
    missing: jax.Array
    unit: jax.Array

    def eigh(self, sign: float = 1.0) -> tuple[jax.Array, jax.Array]:
        """Eigenvalues and coordinates of A/unit, ascending; those of missing vectors are the first, or last for −1."""
        beyond = 1.0 + jnp.abs(jnp.triu(self.projected)).sum()
        values, coordinates = jnp.linalg.eigh(self.projected - sign * jnp.diag(jnp.where(self.missing, beyond, 0.0)))
        return values, coordinates


def lanczos(operator: Callable[[jax.Array], jax.Array], weights: jax.Array, depth: int, seed: Scalar) -> Krylov:
    """The Krylov space of a random vector, with full orthogonalization, by depth + 2 products.

    Args:
        operator: x ↦ A x, A symmetric, on vectors that are 0 where the weights are.
        weights: a vector; where it is 0 so are the vectors of the space.
        depth: the most vectors.
        seed: a whole number that determines the first vector.
    """
    moves = weights != 0
    start = jax.random.normal(jax.random.key(seed), weights.shape, weights.dtype) * moves
    start = jnp.where(moves.any(), start, 1.0)
    largest = jnp.max(jnp.abs(operator(start / jnp.linalg.norm(start))))
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1.0)
    decomposition = hessenberg(depth, reortho="full", custom_vjp=False)(lambda vector: operator(vector) / unit, start)
    basis, products = jnp.asarray(decomposition.Q_tall), jnp.asarray(decomposition.J_small)
    # Once the vectors span an invariant space, the next ones are rounding errors or 0/0, and no longer orthogonal.
    overlaps = jnp.abs(jnp.triu(basis @ basis.T, 1))
    sound = jnp.cumprod(jnp.all(overlaps < jnp.finfo(basis.dtype).eps ** (2 / 3), axis=0)).astype(bool)
    # On and above its diagonal J_small has products of the vectors; below it, norms that may be mere rounding errors.
    upper = jnp.where(sound[:, None] & sound, jnp.triu(products), 0.0)
    return Krylov(jnp.where(sound[:, None], basis, 0.0), upper + jnp.triu(upper, 1).T, ~sound, unit)
