"""Hessians by which Newton's method solves a step at all nodes: one number for each coordinate, or a whole matrix."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import lu_factor, lu_solve
from jaxtyping import Array, Bool, Float

from adamflow.runs.collocation.nodes import reduce_over_nodes
from adamflow.runs.collocation.step_integrator import StageValues

#: A coordinate that moves less than this share of the mean gives no reliable secant.
_MIN_RELATIVE_DISPLACEMENT = 0.1
#: A Hessian counts as diagonal if no coordinate's row has more than this off the diagonal, scaled to a unit diagonal.
_OFF_DIAGONAL_LIMIT = 0.2

StageJacobian = Float[Array, "node node size"]
#: Solves (I + J H) x = b for stacked b.
LinearSolver = Callable[[Float[Array, "stack node size"]], Float[Array, "stack node size"]]


class DiagonalHessian(NamedTuple):
    """∂g/∂θ of each coordinate, at least 0."""

    diagonal: Float[Array, " size"]

    def product(self, vectors: Float[Array, "several size"]) -> Float[Array, "several size"]:
        return vectors * self.diagonal

    def with_secants(self, moved: StageValues, changed: StageValues, reliable: Bool[Array, ""]) -> "DiagonalHessian":
        """The same with the secants of the coordinates that have moved enough.

        Args:
            moved: by how much θ differs at the nodes from the last Newton iteration.
            changed: the same of the gradients.
            reliable: whether there was one.
        """
        norm = reduce_over_nodes(jnp.add, moved * moved)
        enough = (norm > _MIN_RELATIVE_DISPLACEMENT**2 * jnp.mean(norm)) & reliable
        secant = reduce_over_nodes(jnp.add, moved * changed) / jnp.where(enough, norm, 1.0)
        return DiagonalHessian(
            jnp.where(enough & jnp.isfinite(secant), jnp.maximum(secant, 0.0), self.diagonal).astype(moved.dtype)
        )

    def linear_solver(self, stage_jacobian: StageJacobian) -> LinearSolver:
        identity = jnp.eye(stage_jacobian.shape[0], dtype=stage_jacobian.dtype)
        matrix = identity[:, :, None] + stage_jacobian * self.diagonal
        return lambda right: solve_per_coordinate(matrix, right)


class DenseHessian(NamedTuple):
    """The positive part of a Hessian."""

    matrix: Float[Array, "size size"]

    @property
    def diagonal(self) -> Float[Array, " size"]:
        return jnp.maximum(jnp.diagonal(self.matrix), 0.0)

    def product(self, vectors: Float[Array, "several size"]) -> Float[Array, "several size"]:
        return vectors @ self.matrix

    def with_secants(self, moved: StageValues, changed: StageValues, reliable: Bool[Array, ""]) -> "DenseHessian":
        """The same: it is computed again where Newton's method contracts slowly."""
        return self

    def linear_solver(self, stage_jacobian: StageJacobian) -> LinearSolver:
        nodes, _, size = stage_jacobian.shape
        coupled = stage_jacobian.transpose(0, 2, 1)[..., None] * self.matrix[None, :, None, :]
        unknowns = nodes * size
        factors = lu_factor(jnp.eye(unknowns, dtype=coupled.dtype) + coupled.reshape(unknowns, unknowns))

        def solve(right: Float[Array, "stack node size"]) -> Float[Array, "stack node size"]:
            return lu_solve(factors, right.reshape(-1, unknowns).T).T.reshape(right.shape)

        return solve


Hessian = DiagonalHessian | DenseHessian


def positive_part(hessian: Float[Array, "size size"]) -> DenseHessian:
    """Of a symmetric matrix; 0 where it is not finite."""
    values, vectors = jnp.linalg.eigh(hessian)
    matrix = (vectors * jnp.maximum(values, 0.0)) @ vectors.T
    return DenseHessian(jnp.where(jnp.all(jnp.isfinite(matrix)), matrix, 0.0))


def finite_difference_hessian(
    gradient: Callable[[Any], Any], params: Float[Array, " size"], scale: Array
) -> Float[Array, "size size"]:
    """The Hessian by differences of gradients, size + 1 of them: a loss need have no forward-mode derivative.

    `scale` is a distance over which the loss changes.
    """
    small = jnp.sqrt(jnp.finfo(params.dtype).eps) * scale
    ahead = params + small * jnp.eye(params.size, dtype=params.dtype)
    # One row after the other: in a batch the rows of all elements at once would decide how much memory a run takes.
    change = jax.lax.map(gradient, ahead) - gradient(params)
    hessian = change / (jnp.diagonal(ahead) - params)[:, None]
    return (hessian + hessian.T) / 2


def is_nearly_diagonal(hessian: Float[Array, "size size"]) -> Bool[Array, ""]:
    """Whether the Hessian is, whatever the units of the coordinates; one that is not finite is not.

    What is off the diagonal in the row of a curvature that is not positive counts as large.
    """
    diagonal = jnp.diagonal(hessian)
    # Compared with the largest, curvatures below the error of the differences are 0.
    smallest_resolved = jnp.sqrt(jnp.finfo(diagonal.dtype).eps) * jnp.max(jnp.abs(diagonal))
    root = jnp.sqrt(jnp.maximum(diagonal, smallest_resolved))
    off_diagonal = hessian - jnp.diag(diagonal)
    scaled = jnp.where(off_diagonal == 0, 0.0, off_diagonal / (root[:, None] * root))
    # The largest row decides: one coupled pair slows the iteration as much among many coordinates as alone.
    return jnp.max(jnp.sum(scaled**2, axis=-1)) <= _OFF_DIAGONAL_LIMIT**2


def solve_per_coordinate(
    matrix: Float[Array, "node node size"], right: Float[Array, "*stack node size"]
) -> Float[Array, "*stack node size"]:
    """x of A x = b for each coordinate, by elimination: A is near the identity plus a positive matrix."""
    count = matrix.shape[0]
    rows = [[matrix[i, j] for j in range(count)] for i in range(count)]
    values = [right[..., i, :] for i in range(count)]
    for k in range(count):
        for i in range(k + 1, count):
            share = rows[i][k] / rows[k][k]
            rows[i] = [a - share * b for a, b in zip(rows[i], rows[k], strict=True)]
            values[i] = values[i] - share * values[k]
    for k in reversed(range(count)):
        rest = sum((rows[k][j] * values[j] for j in range(k + 1, count)), 0.0)
        values[k] = (values[k] - rest) / rows[k][k]
    return jnp.stack(values, axis=-2)
