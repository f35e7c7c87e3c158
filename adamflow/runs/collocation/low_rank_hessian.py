"""A Hessian of low rank, estimated from the gradients that a run takes anyway."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

#: A secant counts as if its step and what it teaches had at least this cosine, in the metric.
_SMALLEST_COSINE = 0.05

#: On CPUs XLA multiplies so many vectors with U or its transpose in half the time that it takes for one or two.
_MIN_PROJECT_ROWS = 4
_MIN_EXPAND_ROWS = 8

Metric = Float[Array, " size"]
Square = Float[Array, "width width"]


class LowRankHessian(NamedTuple):
    """H = U C Uᵀ.

    Attributes:
        columns: U, in the precision of the parameters: in a lower one steps get shorter.
        core: C, positive semidefinite.
        gram: Uᵀ diag(p) U in the metric p of the step at hand: how much the columns matter to it.
        diagonal: of H.
    """

    columns: Float[Array, "size width"]
    core: Square
    gram: Square
    diagonal: Metric

    def product(self, vectors: Float[Array, "several size"]) -> Float[Array, "several size"]:
        """H v."""
        return self.expand(self.project(vectors) @ self.core)

    def project(self, vectors: Float[Array, "several size"]) -> Float[Array, "several width"]:
        """Uᵀ v."""
        return (_padded(vectors, _MIN_PROJECT_ROWS) @ self.columns)[: len(vectors)]

    def expand(self, images: Float[Array, "several width"]) -> Float[Array, "several size"]:
        """U y."""
        return (self.columns @ _padded(images, _MIN_EXPAND_ROWS).T)[:, : len(images)].T

    def with_metric(self, metric: Metric) -> "LowRankHessian":
        """The same in another metric. Of many parameters single precision is enough, whatever the loss's scale."""
        size, width = self.columns.shape
        columns = jnp.sqrt(metric)[:, None] * self.columns
        columns = columns.astype(jnp.float32) if size > width else columns
        gram = jnp.matmul(columns.T, columns, precision="highest").astype(self.gram.dtype)
        return self._replace(gram=gram)

    def eigendecomposition(self) -> tuple[Float[Array, " width"], Square]:
        """Λ, increasing, and V with H = U V Vᵀ Uᵀ and Vᵀ gram V = Λ: how stiff H is in the metric, and along what."""
        values, vectors = jnp.linalg.eigh(self.core)
        root = vectors * jnp.sqrt(jnp.maximum(values, 0.0))
        values, vectors = jnp.linalg.eigh(root.T @ self.gram @ root)
        return values, root @ vectors


def zero_hessian(size: int, width: int, dtype: Any) -> LowRankHessian:
    """No curvature, with room for as many columns."""
    zero = jnp.zeros((width, width), dtype)
    return LowRankHessian(jnp.zeros((size, width), dtype), zero, zero, jnp.zeros((size,), dtype))


def sr1_update(
    hessian: LowRankHessian, column_index: Array, step: Metric, change: Metric, metric: Metric
) -> LowRankHessian:
    """H updated by a change of the gradient along a step: of rank one where the curvature grows, in a free column.

    Where it falls, H shrinks along its own image of the step.
    """
    tiny = jnp.finfo(step.dtype).tiny
    (image,) = hessian.project(step[None])
    towards = hessian.core @ image
    (predicted_change,) = hessian.expand(towards[None])
    rest = change - predicted_change
    missing_curvature, predicted_curvature = rest @ step, image @ towards
    norms = jnp.sqrt(jnp.sum(metric * rest * rest) * jnp.sum(step * step / metric))
    column = rest / jnp.sqrt(jnp.maximum(jnp.maximum(missing_curvature, _SMALLEST_COSINE * norms), tiny))
    grows = jnp.isfinite(norms) & (missing_curvature > 0.2 * _SMALLEST_COSINE * norms) & (norms > 0)
    falls = jnp.isfinite(norms) & (missing_curvature < 0) & (predicted_curvature > 0)
    kept = jnp.clip((change @ step) / jnp.maximum(predicted_curvature, tiny), 0.0, 1.0)
    lost = jnp.where(falls, 1 - kept, 0.0) / jnp.maximum(predicted_curvature, tiny)
    core = hessian.core - lost * jnp.outer(towards, towards)
    column = jnp.where(grows, column, 0.0)
    columns = hessian.columns.at[:, column_index].set(column)
    (weights,) = hessian._replace(columns=columns).project((metric * column)[None])
    gram = hessian.gram.at[:, column_index].set(weights).at[column_index].set(weights)
    diagonal = hessian.diagonal - lost * predicted_change**2 + column**2
    return LowRankHessian(columns, core.at[column_index, column_index].set(1.0), gram, diagonal)


def truncate_rank(hessian: LowRankHessian, rank: int) -> LowRankHessian:
    """The part of H that matters most in the metric, in the first columns; the others are free."""
    _, vectors = hessian.eigendecomposition()
    chosen = vectors[:, : -rank - 1 : -1]
    free = hessian.core.shape[0] - rank
    columns = jnp.pad(hessian.columns @ chosen, ((0, 0), (0, free)))
    core = jnp.diag((jnp.arange(rank + free) < rank).astype(hessian.core.dtype))
    return LowRankHessian(columns, core, jnp.zeros_like(core), jnp.sum(columns**2, axis=-1))


def end_metric(stage_jacobian: Float[Array, "node node size"]) -> Metric:
    """p: how θ at the end of a step falls with the gradient there, for each coordinate; positive."""
    last = stage_jacobian[-1, -1]
    return jnp.maximum(last, 1e-12 * jnp.max(jnp.abs(last)))


class LowRankSolver(NamedTuple):
    """What solves (I + H J) x = r, with J taken as one s × s matrix times one diagonal p, `metric`.

    Then a single Gram matrix is needed, `gram`, in this metric, whatever that of the curvature at hand is.
    """

    stage_jacobian: Float[Array, "node node size"]
    metric: Metric
    gram: Square
    vectors: Square
    inverse: Float[Array, "width node node"]


def low_rank_solver(
    hessian: LowRankHessian, stage_jacobian: Float[Array, "node node size"], metric: Metric
) -> LowRankSolver:
    """The solver for a Hessian whose Gram matrix is in this metric."""
    count = stage_jacobian.shape[0]
    # Each coordinate counts by what it adds to the trace of H diag(p).
    mean = (
        stage_jacobian @ hessian.diagonal / jnp.maximum(metric @ hessian.diagonal, jnp.finfo(stage_jacobian.dtype).tiny)
    )
    values, vectors = hessian.eigendecomposition()
    systems = jnp.eye(count, dtype=mean.dtype) + jnp.maximum(values, 0.0)[:, None, None] * mean
    return LowRankSolver(stage_jacobian, metric, hessian.gram, vectors, jnp.linalg.inv(systems) @ mean)


def solve_newton_system(
    hessian: LowRankHessian,
    solver: LowRankSolver,
    rest: Float[Array, "node size"],
    moved: Float[Array, "node size"],
) -> Float[Array, "node size"]:
    """x of (I + H J) x = rest + H moved; of low rank with U read twice, since that is what takes time.

    So Uᵀ diag(p) H moved follows from the Gram matrix, which may be in single precision: with many parameters x is
    right to 1e-6 of H moved or so, and `moved` should be small. Here it is the distance from a curve through θ.
    """
    image, curved = jnp.split(hessian.project(jnp.concatenate([solver.metric * rest, moved])), 2)
    curved = curved @ hessian.core
    image = (image + curved @ solver.gram) @ solver.vectors
    return rest + hessian.expand(curved - jnp.einsum("kij,jk->ik", solver.inverse, image) @ solver.vectors.T)


def _padded(rows: Float[Array, "several size"], least: int) -> Float[Array, "more size"]:
    """With rows of 0, at least as many."""
    return jnp.pad(rows, ((0, max(0, least - len(rows))), (0, 0)))
