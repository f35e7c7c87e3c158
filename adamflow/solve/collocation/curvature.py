"""A Hessian of low rank, learnt from the gradients that a run takes anyway."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

#: Sizes of the parts of a secant: the metric is diag(p).
_SMALLEST_COSINE = 0.05

Factor = Float[Array, "size rank"]
Metric = Float[Array, " size"]


def product(factor: Factor, vectors: Float[Array, "*several size"]) -> Float[Array, "*several size"]:
    """H v, H = U Uᵀ."""
    return (vectors @ factor) @ factor.T


def exact(loss: Any, params: Float[Array, " size"]) -> Factor:
    """The factor of the positive part of the dense Hessian of a function of a vector."""
    hessian = jax.hessian(loss)(params)
    values, vectors = jnp.linalg.eigh((hessian + hessian.T) / 2)
    return vectors * jnp.sqrt(jnp.maximum(values, 0.0))


def add_secant(factor: Factor, step: Metric, change: Metric, metric: Metric) -> Factor:
    """Teach H a change of the gradient along a step: symmetric rank one where the curvature grows.

    Where it falls, H shrinks along its own image of the step. The column of least weight in the metric is dropped; the
    last one is empty, for the next secant.
    """
    tiny = jnp.finfo(factor.dtype).tiny
    image = factor.T @ step
    rest = change - factor @ image
    along, before = rest @ step, image @ image
    size = jnp.sqrt(jnp.sum(metric * rest * rest) * jnp.sum(step * step / metric))
    column = rest / jnp.sqrt(jnp.maximum(jnp.maximum(along, _SMALLEST_COSINE * size), tiny))
    grows = jnp.isfinite(size) & (along > 0.2 * _SMALLEST_COSINE * size) & (size > 0)
    falls = jnp.isfinite(size) & (along < 0) & (before > 0)
    kept = jnp.sqrt(jnp.clip((change @ step) / jnp.maximum(before, tiny), 0.0, 1.0))
    unit = image / jnp.maximum(jnp.sqrt(before), tiny)
    factor = factor - jnp.where(falls, 1 - kept, 0.0) * jnp.outer(factor @ unit, unit)
    factor = factor.at[:, -1].set(jnp.where(grows, column, factor[:, -1]))
    _, vectors = jnp.linalg.eigh(factor.T @ (metric[:, None] * factor))
    return (factor @ vectors[:, ::-1]).at[:, -1].set(0.0)


class Solver(NamedTuple):
    """What solves (I + H J) x = r, H = U Uᵀ, for J a matrix of diagonals, one for each pair of nodes.

    For many parameters J is taken as one s × s matrix times one diagonal p: then a single Gram matrix is needed.
    """

    slopes: Float[Array, "node node size"]
    factor: Factor
    metric: Metric
    vectors: Any
    inverse: Any


def solver(slopes: Float[Array, "node node size"], factor: Factor, metric: Metric, separable: bool) -> Solver:
    """Factorize I + H J by Woodbury's formula: a matrix of the size nodes × rank, or for each rank one of the nodes."""
    count, rank = slopes.shape[0], factor.shape[1]
    if not separable:
        gram = jnp.einsum("da,ijd,db->iajb", factor, slopes, factor).reshape(count * rank, count * rank)
        return Solver(slopes, factor, metric, None, jnp.linalg.inv(jnp.eye(count * rank, dtype=factor.dtype) + gram))
    small = 1e-30 * jnp.max(metric)
    mean = jnp.mean(slopes / jnp.maximum(metric, small), axis=-1)
    values, vectors = jnp.linalg.eigh(factor.T @ (metric[:, None] * factor))
    systems = jnp.eye(count, dtype=factor.dtype) + jnp.maximum(values, 0.0)[:, None, None] * mean
    return Solver(slopes, factor, metric, vectors, jnp.linalg.inv(systems) @ mean)


def solve_curved(known: Solver, right: Float[Array, "node size"]) -> Float[Array, "node size"]:
    """x of (I + H J) x = r."""
    factor = known.factor
    if known.vectors is None:
        image = jnp.einsum("ijd,jd->id", known.slopes, right) @ factor
        return right - (known.inverse @ image.reshape(-1)).reshape(image.shape) @ factor.T
    image = (known.metric * right) @ factor @ known.vectors
    return right - jnp.einsum("kij,jk->ik", known.inverse, image) @ known.vectors.T @ factor.T
