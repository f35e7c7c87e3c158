"""The leading eigenpair of a symmetric operator by Lanczos, from a start that may be the eigenvector of a while ago.

Unlike `adamflow.flows.lanczos` this is a loop of Python: it ends as soon as the residual is small, and its products may
come from any library. Vectors are pytrees like the parameters and stay on jax's device: per product two numbers come to
the host. A flat vector would be a copy of each of its parts, which on a CPU takes as long as half a gradient.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamflow.flows.tree_math import dot, length_of, masked
from adamflow.types import Params

#: The share of a random vector in a warm start: through it an eigenvector is found that the old one knows nothing of.
RANDOM_SHARE = 0.03
#: The fewest products, where there are so many dimensions: before them a small residual says little.
FEWEST_PRODUCTS = 4
#: How many vectors of the basis a program takes at once: more would compile a program for each length of the basis.
_ROWS_AT_ONCE = 4


class LeadingPair(NamedTuple):
    """The largest Ritz value of a Krylov space.

    Attributes:
        value: θ, at most the largest eigenvalue (but for rounding).
        residual: ‖A y − θ y‖: some eigenvalue of A lies within this distance of θ.
        vector: y, of norm 1; 0 where no coordinate moves.
        lowest: the smallest Ritz value, an upper bound of A's smallest eigenvalue.
        products: how many products A x were made.
    """

    value: float
    residual: float
    vector: Params
    lowest: float
    products: int


def leading_pair(
    apply: Callable[[Params], Params],
    like: Params,
    moves: Params | None,
    dimensions: int,
    *,
    start: Params | None,
    tolerance: float,
    max_products: int,
    seed: int,
) -> LeadingPair:
    """The algebraically largest eigenvalue of a symmetric A, with full orthogonalization.

    It keeps a vector for each product, and two more.

    Args:
        apply: x ↦ A x, on vectors that are 0 where `moves` is.
        like: a pytree of arrays of the shapes and the type of the vectors.
        moves: positive at the coordinates that there are, 0 elsewhere; `None` for all.
        dimensions: how many coordinates there are.
        start: a guess of the eigenvector, in any length; `None` for a random start.
        tolerance: the residual, relative to |θ|, at which to stop.
        max_products: the most products.
        seed: of the random vector.
    """
    first = _first_vector(like, moves, start, np.uint32(seed % 2**32))
    if dimensions == 0:
        return LeadingPair(0.0, 0.0, first, 0.0, 0)
    eps = float(jnp.finfo(jax.tree.leaves(like)[0].dtype).eps)
    most = min(max_products, dimensions)
    basis = [first]
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        image = apply(basis[-1])
        before = (basis[-2], beside[-1]) if beside else (basis[-1], 0.0)
        numbers, remainder = _three_terms(image, basis[-1], *before)
        entry, length = (float(number) for number in np.asarray(numbers))
        diagonal.append(entry)
        values, coordinates = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
        rounding = 10 * eps * float(np.max(np.abs(values)))
        last = abs(float(coordinates[-1, -1]))
        residual = length * last
        count = len(diagonal)
        is_small = residual <= max(tolerance * abs(float(values[-1])), rounding)
        enough = is_small and count >= min(FEWEST_PRODUCTS, dimensions)
        # Below that length nothing but rounding is left: the space is invariant.
        if enough or count >= most or not length > rounding:
            break
        length, following = _orthogonalized(basis, remainder, length)
        if not length > rounding:
            residual = length * last
            break
        beside.append(length)
        basis.append(following)
    vector = None
    for rows, weights in zip(_groups(basis), _groups(coordinates[:, -1].tolist()), strict=True):
        vector = _added(vector, rows, weights)
    return LeadingPair(float(values[-1]), residual, _unit(vector), float(values[0]), count)


def _orthogonalized(basis: list[Params], vector: Params, length: float) -> tuple[float, Params]:
    """The length and unit vector of what a vector of a given length has outside of an orthonormal basis.

    The three terms of Lanczos took out most before; what rounding has left of all vectors goes here.
    """
    scale = length
    while True:
        most = 0.0
        for rows in _groups(basis):
            share, vector = _outside(rows, vector, scale)
            length *= math.sqrt(max(1 - float(share), 0.0))
            most = max(most, float(share))
            scale = 1.0
        # Where much is taken, the length by Pythagoras is inexact, and rounding has left something again.
        if most <= 0.25 or length == 0:
            return length, vector
        scale = float(_length(vector))
        length *= scale


@jax.jit
def _first_vector(like: Params, moves: Params | None, start: Params | None, seed: Any) -> Params:
    """The unit vector to start from: random, or a guess with a share that is random."""
    leaves, structure = jax.tree.flatten(like)
    noise = structure.unflatten([_noise(leaf, seed, index) for index, leaf in enumerate(leaves)])
    random = _normalized(masked(noise, moves))
    if start is None:
        return random
    guess = masked(jax.tree.map(lambda leaf, to: leaf.astype(to.dtype), start, like), moves)
    length = length_of(guess)
    known = jnp.isfinite(length) & (length > 0)
    mixed = jax.tree.map(lambda a, b: jnp.where(known, a / length + RANDOM_SHARE * b, b), guess, random)
    return _normalized(mixed)


def _noise(leaf: jax.Array, seed: Any, index: int) -> jax.Array:
    """Numbers in [−1, 1) that look random: a hash of the places in 32 bits (C. Wellons' lowbias32, public domain).

    A start needs no more, and jax's own generators take as long as two gradients.
    """
    places = jax.lax.iota(jnp.uint32, leaf.size)
    bits = places + jnp.uint32(0x9E3779B9) * (jnp.asarray(seed, jnp.uint32) + jnp.uint32(7919 * index + 1))
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    bits = bits ^ (bits >> 16)
    return (bits.astype(jnp.int32).astype(leaf.dtype) / 2.0**31).reshape(leaf.shape)


def _normalized(vector: Params) -> Params:
    length = length_of(vector)
    return jax.tree.map(lambda leaf: leaf / jnp.where(length > 0, length, 1), vector)


_unit = jax.jit(_normalized)
_length = jax.jit(length_of)


@jax.jit
def _three_terms(image: Params, last: Params, before: Params, beside: Any) -> tuple[jax.Array, Params]:
    """α = ⟨q, A q⟩ and the length of what A q has outside of q and of the vector before; and that remainder."""
    entry = dot(last, image)
    remainder = jax.tree.map(lambda a, q, p: a - entry * q - (beside * p).astype(a.dtype), image, last, before)
    return jnp.stack([entry, length_of(remainder)]), remainder


@jax.jit
def _outside(rows: Sequence[Params], vector: Params, length: Any) -> tuple[jax.Array, Params]:
    """Which share of a vector's squared length is in the span of orthonormal ones, and the rest as a unit vector.

    Args:
        rows: the orthonormal ones.
        vector: any vector.
        length: its length, by which and Pythagoras that of the rest is known without a sum over it.
    """
    parts = [dot(row, vector) for row in rows]
    share = jnp.sum((jnp.stack(parts) / length) ** 2)
    rest = length * jnp.sqrt(jnp.maximum(1 - share, jnp.finfo(share.dtype).eps))
    taken = jax.tree.map(
        lambda leaf, *others: ((leaf - _mixed(parts, others)) / rest).astype(leaf.dtype), vector, *rows
    )
    return share, taken


@jax.jit
def _added(total: Params | None, rows: Sequence[Params], weights: Sequence[Any]) -> Params:
    """A sum of vectors with weights, added to a vector if there is one."""
    mixed = jax.tree.map(lambda *parts: _mixed(weights, parts), *rows)
    return mixed if total is None else jax.tree.map(jnp.add, total, mixed)


def _mixed(weights: Sequence[Any], parts: Sequence[jax.Array]) -> jax.Array:
    terms = [(weight * part).astype(part.dtype) for weight, part in zip(weights, parts, strict=True)]
    return functools.reduce(jnp.add, terms)


def _groups(values: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """A few at once."""
    for place in range(0, len(values), _ROWS_AT_ONCE):
        yield tuple(values[place : place + _ROWS_AT_ONCE])
