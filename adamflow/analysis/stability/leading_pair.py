"""The leading eigenpair of a symmetric operator by Lanczos, from a start that may be the eigenvector of a while ago.

Unlike `adamflow.flows.lanczos` this is a loop of Python: it ends as soon as the residual is small, and its products may
come from any library.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from adamflow.flows.norms import numpy_norm

#: The share of a random vector in a warm start: through it an eigenvector is found that the old one knows nothing of.
RANDOM_SHARE = 0.03
#: The fewest products, where there are so many dimensions: before them a small residual says little.
FEWEST_PRODUCTS = 4


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
    vector: np.ndarray
    lowest: float
    products: int


def leading_pair(
    apply: Callable[[np.ndarray], np.ndarray],
    moves: np.ndarray,
    *,
    start: np.ndarray | None,
    dtype: np.dtype,
    tolerance: float,
    max_products: int,
    seed: int,
) -> LeadingPair:
    """The algebraically largest eigenvalue of a symmetric A, with full orthogonalization.

    It keeps a vector for each product, and two more.

    Args:
        apply: x ↦ A x, on vectors that are 0 where `moves` is false.
        moves: which coordinates there are.
        start: a guess of the eigenvector, in any length; `None` for a random start.
        dtype: float32 or float64, that of the vectors.
        tolerance: the residual, relative to |θ|, at which to stop.
        max_products: the most products.
        seed: of the random vector.
    """
    first = _first_vector(moves, start, dtype, seed)
    dimensions = int(moves.sum())
    if dimensions == 0:
        return LeadingPair(0.0, 0.0, first, 0.0, 0)
    most = min(max_products, dimensions)
    basis = [first]
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        image = apply(basis[-1])
        diagonal.append(float(np.vdot(basis[-1], image)))
        remainder = _outside(basis, image)
        length = float(numpy_norm(remainder))
        values, coordinates = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
        residual = length * abs(float(coordinates[-1, -1]))
        scale = float(np.max(np.abs(values)))
        rounding = 10 * float(np.finfo(first.dtype).eps) * scale
        count = len(diagonal)
        is_small = residual <= max(tolerance * abs(float(values[-1])), rounding)
        enough = is_small and count >= min(FEWEST_PRODUCTS, dimensions)
        # Below that length nothing but rounding is left: the space is invariant.
        if enough or count >= most or not length > rounding:
            break
        beside.append(length)
        basis.append(remainder / length)
    vector = sum(float(c) * row for c, row in zip(coordinates[:, -1], basis, strict=True))
    vector = np.asarray(vector, first.dtype)
    vector = vector / numpy_norm(vector)
    return LeadingPair(float(values[-1]), residual, vector, float(values[0]), count)


def _first_vector(moves: np.ndarray, start: np.ndarray | None, dtype: np.dtype, seed: int) -> np.ndarray:
    """The unit vector to start from: random, or a guess with a share that is random."""
    random = np.random.default_rng(seed).standard_normal(moves.size).astype(dtype) * moves
    random /= max(float(numpy_norm(random)), float(np.finfo(dtype).tiny))
    if start is None:
        return random
    guess = np.where(moves, start, 0).astype(dtype)
    length = float(numpy_norm(guess))
    if not (np.isfinite(length) and length > 0):
        return random
    mixed = guess / length + RANDOM_SHARE * random
    return (mixed / numpy_norm(mixed)).astype(dtype)


def _outside(basis: list[np.ndarray], image: np.ndarray) -> np.ndarray:
    """What a vector has outside of the space of orthonormal ones; twice is enough."""
    for _ in range(2):
        for row in basis:
            image = image - np.vdot(row, image) * row
    return image
