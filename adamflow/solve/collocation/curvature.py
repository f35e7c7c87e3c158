"""A Hessian of low rank, learnt from the gradients that a run takes anyway."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import lu_factor, lu_solve
from jaxtyping import Array, Float

#: A secant counts as if its step and what it teaches had at least this cosine, in the metric.
_SMALLEST_COSINE = 0.05

#: On CPUs XLA multiplies so many vectors with U or its transpose in half the time that it takes for one or two.
_IMAGES_AT_ONCE, _SPREAD_AT_ONCE = 4, 8

Metric = Float[Array, " size"]
Square = Float[Array, "width width"]


class Curvature(NamedTuple):
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
        return self.spread(self.images(vectors) @ self.core)

    def images(self, vectors: Float[Array, "several size"]) -> Float[Array, "several width"]:
        """Uᵀ v."""
        return (_padded(vectors, _IMAGES_AT_ONCE) @ self.columns)[: len(vectors)]

    def spread(self, images: Float[Array, "several width"]) -> Float[Array, "several size"]:
        """U y."""
        return (self.columns @ _padded(images, _SPREAD_AT_ONCE).T)[:, : len(images)].T

    def weighed(self, metric: Metric) -> "Curvature":
        """The same in another metric. Of many parameters single precision is enough, whatever the loss's scale."""
        size, width = self.columns.shape
        columns = jnp.sqrt(metric)[:, None] * self.columns
        columns = columns.astype(jnp.float32) if size > width else columns
        gram = jnp.matmul(columns.T, columns, precision="highest").astype(self.gram.dtype)
        return self._replace(gram=gram)

    def principal(self) -> tuple[Float[Array, " width"], Square]:
        """Λ, increasing, and V with H = U V Vᵀ Uᵀ and Vᵀ gram V = Λ: how stiff H is in the metric, and along what."""
        values, vectors = jnp.linalg.eigh(self.core)
        root = vectors * jnp.sqrt(jnp.maximum(values, 0.0))
        values, vectors = jnp.linalg.eigh(root.T @ self.gram @ root)
        return values, root @ vectors


def none(size: int, width: int, dtype: Any) -> Curvature:
    """No curvature, with room for as many columns."""
    zero = jnp.zeros((width, width), dtype)
    return Curvature(jnp.zeros((size, width), dtype), zero, zero, jnp.zeros((size,), dtype))


def hessian_of(gradient: Any, params: Float[Array, " size"], scale: Array) -> Float[Array, "size size"]:
    """The Hessian by differences of gradients, size + 1 of them: a loss need have no forward-mode derivative.

    `scale` is a distance over which the loss changes.
    """
    small = jnp.sqrt(jnp.finfo(params.dtype).eps) * scale
    ahead = params + small * jnp.eye(params.size, dtype=params.dtype)
    # One row after the other: in a batch the rows of all lanes at once would decide how much memory a run takes.
    change = jax.lax.map(gradient, ahead) - gradient(params)
    hessian = change / (jnp.diagonal(ahead) - params)[:, None]
    return (hessian + hessian.T) / 2


def positive(hessian: Float[Array, "size size"]) -> Curvature:
    """The positive part of a Hessian; 0 where it is not finite."""
    values, vectors = jnp.linalg.eigh(hessian)
    columns = vectors * jnp.sqrt(jnp.maximum(values, 0.0))
    columns = jnp.where(jnp.all(jnp.isfinite(columns)), columns, 0.0)
    one = jnp.eye(len(hessian), dtype=hessian.dtype)
    return Curvature(columns, one, one, jnp.sum(columns**2, axis=-1))


def add_secant(known: Curvature, place: Array, step: Metric, change: Metric, metric: Metric) -> Curvature:
    """Teach H a change of the gradient along a step: symmetric rank one where the curvature grows, in a free column.

    Where it falls, H shrinks along its own image of the step.
    """
    tiny = jnp.finfo(step.dtype).tiny
    (image,) = known.images(step[None])
    towards = known.core @ image
    (before_it,) = known.spread(towards[None])
    rest = change - before_it
    along, before = rest @ step, image @ towards
    size = jnp.sqrt(jnp.sum(metric * rest * rest) * jnp.sum(step * step / metric))
    column = rest / jnp.sqrt(jnp.maximum(jnp.maximum(along, _SMALLEST_COSINE * size), tiny))
    grows = jnp.isfinite(size) & (along > 0.2 * _SMALLEST_COSINE * size) & (size > 0)
    falls = jnp.isfinite(size) & (along < 0) & (before > 0)
    kept = jnp.clip((change @ step) / jnp.maximum(before, tiny), 0.0, 1.0)
    lost = jnp.where(falls, 1 - kept, 0.0) / jnp.maximum(before, tiny)
    core = known.core - lost * jnp.outer(towards, towards)
    column = jnp.where(grows, column, 0.0)
    columns = known.columns.at[:, place].set(column)
    (weights,) = known._replace(columns=columns).images((metric * column)[None])
    gram = known.gram.at[:, place].set(weights).at[place].set(weights)
    diagonal = known.diagonal - lost * before_it**2 + column**2
    return Curvature(columns, core.at[place, place].set(1.0), gram, diagonal)


def compressed(known: Curvature, rank: int) -> Curvature:
    """The part of H that matters most in the metric, in the first columns; the others are free."""
    _, vectors = known.principal()
    chosen = vectors[:, : -rank - 1 : -1]
    free = known.core.shape[0] - rank
    columns = jnp.pad(known.columns @ chosen, ((0, 0), (0, free)))
    core = jnp.diag((jnp.arange(rank + free) < rank).astype(known.core.dtype))
    return Curvature(columns, core, jnp.zeros_like(core), jnp.sum(columns**2, axis=-1))


def metric_of(slopes: Float[Array, "node node size"]) -> Metric:
    """p: how θ at the end of a step falls with the gradient there, for each coordinate; positive."""
    last = slopes[-1, -1]
    return jnp.maximum(last, 1e-12 * jnp.max(jnp.abs(last)))


class DenseSolver(NamedTuple):
    """What solves (I + H J) x = r for J a matrix of diagonals, one for each pair of nodes: all unknowns at once.

    It keeps H and the factors of I + H J, which cost a third of its inverse.
    """

    slopes: Float[Array, "node node size"]
    hessian: Float[Array, "size size"]
    factors: tuple[Array, Array]


def dense_solver(hessian: Float[Array, "size size"], slopes: Float[Array, "node node size"]) -> DenseSolver:
    """Factorize I + H J."""
    unknowns = slopes.shape[1] * slopes.shape[2]
    both = (hessian[None, :, None] * slopes[:, None]).reshape(unknowns, unknowns)
    return DenseSolver(slopes, hessian, lu_factor(jnp.eye(unknowns, dtype=both.dtype) + both))


class LowRankSolver(NamedTuple):
    """The same for many parameters: J is taken as one s × s matrix times one diagonal p, `metric`.

    Then a single Gram matrix is needed, `gram`, in this metric, whatever that of the curvature at hand is.
    """

    slopes: Float[Array, "node node size"]
    metric: Metric
    gram: Square
    vectors: Square
    inverse: Float[Array, "width node node"]


def low_rank_solver(known: Curvature, slopes: Float[Array, "node node size"], metric: Metric) -> LowRankSolver:
    """The same with a matrix of the size of the nodes for each column, in the metric of the Gram matrix."""
    count = slopes.shape[0]
    # Each coordinate counts by what it adds to the trace of H diag(p).
    mean = slopes @ known.diagonal / jnp.maximum(metric @ known.diagonal, jnp.finfo(slopes.dtype).tiny)
    values, vectors = known.principal()
    systems = jnp.eye(count, dtype=mean.dtype) + jnp.maximum(values, 0.0)[:, None, None] * mean
    return LowRankSolver(slopes, metric, known.gram, vectors, jnp.linalg.inv(systems) @ mean)


def solve_curved(
    known: Curvature,
    solver: DenseSolver | LowRankSolver,
    rest: Float[Array, "node size"],
    moved: Float[Array, "node size"],
) -> Float[Array, "node size"]:
    """x of (I + H J) x = rest + H moved; of low rank with U read twice, since that is what takes time.

    So Uᵀ diag(p) H moved follows from the Gram matrix, which may be in single precision: with many parameters x is
    right to 1e-6 of H moved or so, and `moved` should be small. Here it is the distance from a curve through θ.
    """
    if isinstance(solver, DenseSolver):
        right = rest + moved @ solver.hessian
        return lu_solve(solver.factors, right.reshape(-1)).reshape(right.shape)
    image, curved = jnp.split(known.images(jnp.concatenate([solver.metric * rest, moved])), 2)
    curved = curved @ known.core
    image = (image + curved @ solver.gram) @ solver.vectors
    return rest + known.spread(curved - jnp.einsum("kij,jk->ik", solver.inverse, image) @ solver.vectors.T)


def _padded(rows: Float[Array, "several size"], least: int) -> Float[Array, "more size"]:
    """With rows of 0, at least as many."""
    return jnp.pad(rows, ((0, max(0, least - len(rows))), (0, 0)))
