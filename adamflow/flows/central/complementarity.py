"""A linear complementarity problem for small symmetric matrices: the covariance of a central flow."""

import jax
import jax.numpy as jnp
import numpy as np

from adamflow.flows.norms import norm

#: Of the splitting method for two modes or more: its most iterations, and the change at which it ends.
_ITERATIONS, _TOLERANCE = 3000, 1e-10
#: Of the constraint, relative to its size: a larger violation says that no matrix satisfies it.
_VIOLATION = 0.05


def complementary(constant: jax.Array, matrix: jax.Array) -> jax.Array:
    """x ⪰ 0 with c + B x ⪰ 0 and ⟨x, c + B x⟩ = 0: the minimum of ½⟨x, B x⟩ + ⟨c, x⟩ over the cone.

    Symmetric matrices as vectors, with √2 before entries off the diagonal; B is symmetric and nonnegative.
    """
    unit, size = _or_one(jnp.trace(matrix)), _or_one(norm(constant))
    matrix, constant = matrix / unit, constant / size
    # Where c ⪰ 0 the minimum is 0, whatever B is: also 0, where third derivatives vanish, or rounding.
    at_rest = jnp.linalg.eigvalsh(_square(constant))[0] >= 0
    if constant.size == 1:
        found = jnp.where(constant < 0, -constant / jnp.maximum(matrix[0, 0], jnp.finfo(matrix.dtype).tiny), 0.0)
    else:
        found = _split(constant, matrix)
    found = jnp.where(at_rest, 0.0, found)
    scale = jnp.where(at_rest, 0.0, size / unit)
    lowest = jnp.linalg.eigvalsh(_square(constant + matrix @ found))[0]
    return jnp.where(lowest > -_VIOLATION, found * scale, jnp.nan)


def _or_one(size: jax.Array) -> jax.Array:
    """A size to divide by."""
    return jnp.where(size > 0, size, 1.0)


def _split(constant: jax.Array, matrix: jax.Array) -> jax.Array:
    """The method of alternating directions, with the geometric mean of the extreme eigenvalues as its weight."""
    eigenvalues = jnp.linalg.eigvalsh(matrix)
    weight = jnp.sqrt(eigenvalues[-1] * jnp.maximum(eigenvalues[0], 1e-6 * eigenvalues[-1]))
    weight = jnp.where(weight > 0, weight, 1.0)
    inverse = jnp.linalg.inv(matrix + weight * jnp.eye(constant.size, dtype=constant.dtype))

    def visit(carry: tuple) -> tuple:
        count, found, dual, _ = carry
        inner = inverse @ (weight * (found - dual) - constant)
        new = _nonnegative(inner + dual)
        moved = jnp.linalg.norm(new - found) + jnp.linalg.norm(inner - new)
        return count + 1, new, dual + inner - new, moved > _TOLERANCE * (1 + jnp.linalg.norm(new))

    start = (jnp.zeros((), int), jnp.zeros_like(constant), jnp.zeros_like(constant), jnp.array(True))
    return jax.lax.while_loop(lambda carry: carry[-1] & (carry[0] < _ITERATIONS), visit, start)[1]


def _nonnegative(entries: jax.Array) -> jax.Array:
    """The nearest nonnegative matrix."""
    values, vectors = jnp.linalg.eigh(_square(entries))
    matrix = (vectors * jnp.maximum(values, 0.0)) @ vectors.T
    rows, columns = np.triu_indices(len(matrix))
    return matrix[rows, columns] * jnp.where(rows == columns, 1.0, 2**0.5).astype(entries.dtype)


def _square(entries: jax.Array) -> jax.Array:
    size = int((np.sqrt(8 * entries.size + 1) - 1) / 2)
    rows, columns = np.triu_indices(size)
    matrix = (
        jnp.zeros((size, size), entries.dtype).at[rows, columns].set(entries / jnp.where(rows == columns, 1.0, 2**0.5))
    )
    return matrix + jnp.triu(matrix, 1).T
