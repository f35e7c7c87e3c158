"""The Krylov-Schur method: leading eigenvalues of a real matrix of which only products with vectors are known.

SciPy's ARPACK does the same, but it returns nothing on values that have not converged, may cut a conjugate pair, and
copies all eigenvectors several times at the end.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from adamflow.checks import is_concrete
from adamflow.flows.norms import numpy_norm

#: How leading an eigenvalue is: its modulus, or its real part. Conjugates rank the same.
Rank: TypeAlias = Callable[[Any], Any]
Apply: TypeAlias = Callable[[np.ndarray], np.ndarray]

#: How often `balance` improves the scales.
BALANCING_ROUNDS = 6
#: Columns of the basis that a restart rotates at once: its temporary memory.
_SLICE = 4096


class KrylovSpace(NamedTuple):
    """An orthonormal basis (in rows), the Ritz values by rank, and their vectors' coordinates (in columns)."""

    basis: np.ndarray
    values: np.ndarray
    coordinates: np.ndarray

    def vector(self, place: int) -> np.ndarray:
        """The unit Ritz vector of a value; real if the value is."""
        coordinates = self.coordinates[:, place]
        # The parts one by one: a product of complex with real makes a complex copy of the whole basis.
        real, imag = (
            part.astype(self.basis.dtype) @ self.basis for part in (np.real(coordinates), np.imag(coordinates))
        )
        vector = real + 1j * imag if np.imag(self.values[place]) else real
        return vector / numpy_norm(vector)


def krylov_space(
    apply: Apply, start: np.ndarray, rank: Rank, *, count: int, depth: int, tolerance: float, max_products: int
) -> KrylovSpace:
    """A space that holds leading eigenvectors: A Vᵀ = Vᵀ S + v bᵀ with few rows V, restarted until b is small.

    Args:
        apply: x ↦ A x.
        start: any vector that lacks no eigenvector; its dtype is that of the basis.
        rank: of eigenvalues; a restart keeps those of highest rank.
        count: how many leading values are to converge.
        depth: rows of the basis, at least min(count + 4, size), at most the size.
        tolerance: of the residuals of these values, relative to the largest modulus.
        max_products: no restart after so many products.
    """
    basis, small = np.empty((depth + 1, start.size), start.dtype), np.zeros((depth + 1, depth))
    basis[0], kept, used = start / numpy_norm(start), 0, 0
    generator = np.random.default_rng(0)
    while True:
        for column in range(kept, depth):
            _extend(apply, generator, basis, small, column)
        used += depth - kept
        values, coordinates = np.linalg.eig(small[:depth])
        values = values.astype(complex)
        order = np.lexsort(sort_keys(values, rank))
        errors = np.abs(small[depth] @ coordinates)[order[:count]]
        # Rounding adds to the errors of the vectors that are computed in the end: ask for more than is wanted.
        if used >= max_products or np.all(errors <= 0.1 * tolerance * np.abs(values).max()):
            return KrylovSpace(basis[:depth], values[order], coordinates[:, order])
        kept = _restart(basis, small, rank, _threshold(rank(values[order]), count))


def balance(product: Callable, transposed: Callable, like: Array, seed: Any) -> Array:
    """Scales S for which the rows and columns of S⁻¹ A S have about equal norms, by products with random signs."""
    key = jax.random.key(seed)

    def improve(round_: Any, scales: Array) -> Array:
        signs = jax.random.rademacher(jax.random.fold_in(key, round_), like.shape, like.dtype)
        row, column = jnp.abs(product(scales, signs)), jnp.abs(transposed(scales, signs))
        ratio = jnp.sqrt(row) / jnp.where(column > 0, jnp.sqrt(column), 1.0)
        return jnp.where((row > 0) & (column > 0) & jnp.isfinite(ratio), scales * ratio, scales)

    scales = jnp.ones_like(like)
    if not is_concrete(like):
        return jax.lax.fori_loop(0, BALANCING_ROUNDS, improve, scales)
    # Outside of jit the products are compiled programs that a loop would compile once more.
    for round_ in range(BALANCING_ROUNDS):
        scales = improve(round_, scales)
    return scales


def real_part(values: Any) -> Any:
    """A rank: the real part, in NumPy or jax."""
    return jnp.real(values) if isinstance(values, jax.Array) else np.real(values)


def sort_keys(values: Any, rank: Rank) -> tuple[Any, Any, Any]:
    """Keys for `lexsort`: by rank, conjugates side by side, the one above the real axis first."""
    imag = values.imag
    return -imag, -abs(imag), -rank(values)


def _extend(apply: Apply, generator: np.random.Generator, basis: np.ndarray, small: np.ndarray, column: int) -> None:
    """One step of Arnoldi: the image of a vector, made orthogonal to all before; twice is enough."""
    vectors, image = basis[: column + 1], apply(basis[column])
    size = numpy_norm(image)
    for _ in range(2):
        overlaps = vectors @ image
        small[: column + 1, column] += overlaps
        image = image - overlaps @ vectors
    remainder = numpy_norm(image)
    # Of as many vectors as there are entries nothing but rounding remains.
    is_full = column + 1 >= image.size
    if remainder > 10 * np.finfo(basis.dtype).eps * size and not is_full:
        direction = _outside(vectors, image / remainder)
        if direction is not None:
            small[column + 1, column] = remainder
            basis[column + 1] = direction
            return
    # The space is invariant: go on with a vector outside of it, if there is one.
    basis[column + 1] = 0
    while not is_full:
        direction = _outside(vectors, generator.standard_normal(image.size).astype(basis.dtype))
        if direction is not None:
            basis[column + 1] = direction
            return


def _outside(vectors: np.ndarray, direction: np.ndarray) -> np.ndarray | None:
    """The unit vector of what a direction has outside of a space, or `None` where that is little but rounding."""
    size = numpy_norm(direction)
    for _ in range(2):
        direction = direction - (vectors @ direction) @ vectors
    remainder = numpy_norm(direction)
    return direction / remainder if remainder > np.finfo(direction.dtype).eps ** 0.5 * size else None


def _threshold(ranks: np.ndarray, count: int) -> float:
    """The rank above which a restart keeps vectors: in the widest gap, so that conjugates stay together."""
    room = len(ranks) - count
    first, last = count + room // 4, len(ranks) - 1 - room // 4
    place = first + int(np.argmax(ranks[first - 1 : last] - ranks[first : last + 1]))
    return (ranks[place - 1] + ranks[place]) / 2


def _restart(basis: np.ndarray, small: np.ndarray, rank: Rank, threshold: float) -> int:
    """Rotate the leading Schur vectors to the front, and return how many they are."""
    depth = len(basis) - 1
    # Its import takes longer than all else of this package; whoever gets here compiles for seconds.
    from scipy.linalg import schur

    parts: tuple[Any, ...] = schur(small[:depth], sort=lambda real, imag: rank(complex(real, imag)) >= threshold)
    triangle, rotation, kept = parts
    kept = min(kept, depth - 1)
    last = small[depth] @ rotation
    small[:] = 0
    small[:kept, :kept], small[kept, :kept] = triangle[:kept, :kept], last[:kept]
    turn = rotation[:, :kept].T.astype(basis.dtype)
    for start in range(0, basis.shape[1], _SLICE):
        columns = slice(start, start + _SLICE)
        basis[:kept, columns] = turn @ basis[:depth, columns]
    basis[kept] = basis[depth]
    return kept
