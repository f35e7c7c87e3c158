"""The dominant eigenvalue of each of many small real matrices, in closed form up to three rows."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Complex, Float

from adamflow.checks import check_choice
from adamflow.flows.norms import numpy_unit_of, unit_of

#: What makes an eigenvalue the dominant one: of a map its modulus, of a vector field its real part.
MEASURES = ("modulus", "real part")
#: From their start, the iterations below converge in four.
_ITERATIONS = 5


@functools.partial(jax.jit, static_argnames="measure")
def dominant_of(matrices: Float[Array, "*batch rows rows"], measure: str) -> Complex[Array, "*batch"]:
    r"""The eigenvalue with the largest modulus, or with the largest real part, of each matrix.

    Up to three rows it is a root of the characteristic polynomial in closed form, so that a batch is one elementwise
    program, on every device. The polynomial is that of $B = (M - \mu)/\sigma$, with the mean eigenvalue
    $\mu = \mathrm{tr}\,M/n$ and the largest entry σ of $M - \mu$: clusters are spread out before products are formed,
    and nothing overflows. With two rows the roots are $\pm\sqrt{-\det B}$. With three, one real root is found by
    Halley's iteration, and the other two are those of the quadratic that remains. More rows take LAPACK.

    Args:
        matrices: real square matrices, of at least one row.
        measure: "modulus", for the spectral radius of a map, or "real part", for the abscissa of a vector field.

    Returns:
        The eigenvalue; of a conjugate pair the one with positive imaginary part; nan where an entry is not finite. Its
        error is some units of rounding of the norm of $M - \mu$ times its condition number: the square root of
        rounding near a double eigenvalue, and the cube root near a triple one.

    Raises:
        ValueError: if `measure` is neither of the two, or the matrices are not square.
    """
    check_choice("measure", measure, MEASURES)
    *_, rows, columns = matrices.shape
    if rows != columns or rows == 0:
        raise ValueError(f"matrices must be square with at least one row, got shape {matrices.shape}")
    return _dominant(jnp, matrices, measure == "modulus")


def dominant_by_numpy(matrices: Float[np.ndarray, "*batch rows rows"], measure: str) -> Complex[np.ndarray, "*batch"]:
    """The same by NumPy, of matrices of at least one row: nothing is compiled."""
    check_choice("measure", measure, MEASURES)
    with np.errstate(all="ignore"):
        return _dominant(np, matrices, measure == "modulus")


def _dominant(xp: Any, matrices: Any, by_modulus: bool) -> Any:
    """The dominant eigenvalues, by a namespace: NumPy or jax.numpy."""
    rows = matrices.shape[-1]
    if rows > 3:
        return _dominant_of_many(xp, matrices, by_modulus)
    entries = _entries(matrices)
    mean = sum((entries[i][i] for i in range(1, rows)), entries[0][0]) / rows
    if rows == 1:
        return _complex(xp, mean, xp.zeros_like(mean))
    centred = [[entries[i][j] - mean if i == j else entries[i][j] for j in range(rows)] for i in range(rows)]
    size = functools.reduce(xp.maximum, [xp.abs(entry) for row in centred for entry in row])
    scale = xp.where(size > 0, size, 1.0)
    scaled = [[entry / scale for entry in row] for row in centred]
    shift = mean / scale
    if rows == 2:
        (a, b), (c, _) = scaled
        real, imaginary = _dominant_of_pair(xp, shift, a * a + b * c, by_modulus)
    else:
        real, imaginary = _dominant_of_three(xp, shift, *_minors_and_determinant(scaled), by_modulus)
    return _complex(xp, scale * real, scale * imaginary)


def _dominant_of_many(xp: Any, matrices: Any, by_modulus: bool) -> Any:
    """The dominant eigenvalues by LAPACK; nan where an entry is not finite."""
    unit = unit_of(matrices, (-2, -1)) if xp is jnp else numpy_unit_of(matrices, (-2, -1))
    scaled = matrices / unit
    if xp is jnp:
        values = jnp.linalg.eigvals(scaled)
    else:
        # Unlike jax's, NumPy's raises an error where an entry is not finite, and is real where all values are.
        finite = np.isfinite(scaled).all(axis=(-2, -1), keepdims=True)
        values = np.where(finite[..., 0], np.linalg.eigvals(np.where(finite, scaled, 0.0)), np.nan + 0j)
        values = values.astype(np.result_type(matrices, np.complex64))
    values = unit[..., 0] * values
    size = xp.abs(values) if by_modulus else xp.real(values)
    chosen = xp.take_along_axis(values, xp.argmax(size, axis=-1)[..., None], axis=-1)[..., 0]
    return _complex(xp, xp.real(chosen), xp.abs(xp.imag(chosen)))


def _complex(xp: Any, real: Any, imaginary: Any) -> Any:
    """Complex numbers of two parts; a sum with 1j would make nan of what is infinite."""
    if xp is jnp:
        return jax.lax.complex(real, imaginary)
    real = np.asarray(real)
    values = np.empty(real.shape, np.result_type(real, np.complex64))
    values.real = real
    values.imag = imaginary
    return values


def characteristic_polynomial(
    matrices: Float[Array | np.ndarray, "*batch rows rows"],
) -> tuple[Any, ...]:
    """The coefficients c₀ … cₙ₋₁ of det(λ − M) = λⁿ + cₙ₋₁λⁿ⁻¹ + … + c₀, for up to three rows."""
    entries = _entries(matrices)
    if len(entries) == 1:
        return (-entries[0][0],)
    if len(entries) == 2:
        (a, b), (c, d) = entries
        return a * d - b * c, -(a + d)
    minors, determinant = _minors_and_determinant(entries)
    return -determinant, minors, -(entries[0][0] + entries[1][1] + entries[2][2])


def _entries(matrices: Any) -> list[list[Any]]:
    rows = matrices.shape[-1]
    return [[matrices[..., i, j] for j in range(rows)] for i in range(rows)]


def _minors_and_determinant(entries: list[list[Any]]) -> tuple[Any, Any]:
    """The sum of the principal minors and the determinant of three rows."""
    (a, b, c), (d, e, f), (g, h, i) = entries
    minors = (a * e - b * d) + (a * i - c * g) + (e * i - f * h)
    return minors, a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def _dominant_of_pair(xp: Any, half: Any, discriminant: Any, by_modulus: bool) -> tuple[Any, Any]:
    """Real and imaginary part of the dominant one of h ± √D."""
    root = xp.sqrt(xp.where(discriminant == 0, 1.0, xp.abs(discriminant)))
    root = xp.where(discriminant == 0, 0.0, root)
    is_real = discriminant > 0
    distance = xp.where(is_real, root, 0.0)
    downwards = (half < 0) if by_modulus else False
    return xp.where(downwards, half - distance, half + distance), xp.where(is_real, 0.0, root)


def _dominant_of_three(xp: Any, shift: Any, p: Any, determinant: Any, by_modulus: bool) -> tuple[Any, Any]:
    """Of the roots of y³ + py − d, each moved by the shift."""
    root = _outer_root(xp, p, determinant)
    # The other two have the sum −y and the product p + y²; of y³ + py = d the latter is d/y, which does not cancel.
    product = xp.where(root == 0, p, _quotient(xp, determinant, root))
    discriminant = root * root / 4 - product
    real, imaginary = _dominant_of_pair(xp, shift - root / 2, discriminant, by_modulus)
    moved = shift + root
    wins = xp.abs(moved) > xp.hypot(real, imaginary) if by_modulus else moved > real
    return xp.where(wins, moved, real), xp.where(wins, 0.0, imaginary)


def _outer_root(xp: Any, p: Any, determinant: Any) -> Any:
    """The real root of y³ + py = d that is farthest from 0, of all real roots, or the only one.

    Its modulus is the positive root of y³ + py = |d|. From a start near it or above it, Halley's method needs a few
    steps; sqrt and division run many at a time, where Cardano's cube roots and Viète's cosines do not.
    """
    size = xp.abs(determinant)
    fourth = xp.sqrt(xp.sqrt(size))
    sixteenth = xp.sqrt(xp.sqrt(fourth))
    cube_root = fourth * sixteenth * xp.sqrt(xp.sqrt(sixteenth))  # to the power 21/64
    line = _quotient(xp, size, xp.abs(p))
    y = xp.where(p < 0, xp.maximum(2 * xp.sqrt(xp.abs(p) / 3), cube_root), cube_root)
    y = xp.where((p > 0) & (line < y), line, y)
    for _ in range(_ITERATIONS):
        value, slope = (y * y + p) * y - size, 3 * y * y + p
        y = y - _quotient(xp, value * slope, slope * slope - 3 * value * y)
    return xp.where(determinant < 0, -y, y)


def _quotient(xp: Any, numerator: Any, denominator: Any) -> Any:
    """The quotient, or 0 where the denominator is 0."""
    nothing = denominator == 0
    return xp.where(nothing, 0.0, numerator / xp.where(nothing, 1.0, denominator))
