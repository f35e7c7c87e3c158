"""The dominant eigenvalue of each of many small real matrices, in closed form up to three rows."""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Complex, Float

from adamflow.checks import check_choice
from adamflow.flows.norms import unit_of

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
    by_modulus = measure == "modulus"
    if rows > 3:
        unit = unit_of(matrices, (-2, -1))
        values = unit[..., 0] * jnp.linalg.eigvals(matrices / unit)
        size = jnp.abs(values) if by_modulus else values.real
        chosen = jnp.take_along_axis(values, jnp.argmax(size, axis=-1)[..., None], axis=-1)[..., 0]
        return jax.lax.complex(chosen.real, jnp.abs(chosen.imag))
    entries = _entries(matrices)
    mean = sum((entries[i][i] for i in range(1, rows)), entries[0][0]) / rows
    if rows == 1:
        return jax.lax.complex(mean, jnp.zeros_like(mean))
    centred = [[entries[i][j] - mean if i == j else entries[i][j] for j in range(rows)] for i in range(rows)]
    size = functools.reduce(jnp.maximum, [jnp.abs(entry) for row in centred for entry in row])
    scale = jnp.where(size > 0, size, 1.0)
    scaled = [[entry / scale for entry in row] for row in centred]
    shift = mean / scale
    if rows == 2:
        (a, b), (c, _) = scaled
        real, imaginary = _dominant_of_pair(shift, a * a + b * c, by_modulus)
    else:
        real, imaginary = _dominant_of_three(shift, *_minors_and_determinant(scaled), by_modulus)
    return jax.lax.complex(scale * real, scale * imaginary)


def characteristic_polynomial(matrices: Float[Array, "*batch rows rows"]) -> tuple[Float[Array, "*batch"], ...]:
    """The coefficients c₀ … cₙ₋₁ of det(λ − M) = λⁿ + cₙ₋₁λⁿ⁻¹ + … + c₀, for up to three rows."""
    entries = _entries(matrices)
    if len(entries) == 1:
        return (-entries[0][0],)
    if len(entries) == 2:
        (a, b), (c, d) = entries
        return a * d - b * c, -(a + d)
    minors, determinant = _minors_and_determinant(entries)
    return -determinant, minors, -(entries[0][0] + entries[1][1] + entries[2][2])


def _entries(matrices: Array) -> list[list[Array]]:
    rows = matrices.shape[-1]
    return [[matrices[..., i, j] for j in range(rows)] for i in range(rows)]


def _minors_and_determinant(entries: list[list[Array]]) -> tuple[Array, Array]:
    """The sum of the principal minors and the determinant of three rows."""
    (a, b, c), (d, e, f), (g, h, i) = entries
    minors = (a * e - b * d) + (a * i - c * g) + (e * i - f * h)
    return minors, a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def _dominant_of_pair(half: Array, discriminant: Array, by_modulus: bool) -> tuple[Array, Array]:
    """Real and imaginary part of the dominant one of h ± √D."""
    root = jnp.sqrt(jnp.where(discriminant == 0, 1.0, jnp.abs(discriminant)))
    root = jnp.where(discriminant == 0, 0.0, root)
    is_real = discriminant > 0
    distance = jnp.where(is_real, root, 0.0)
    downwards = (half < 0) if by_modulus else False
    return jnp.where(downwards, half - distance, half + distance), jnp.where(is_real, 0.0, root)


def _dominant_of_three(shift: Array, p: Array, determinant: Array, by_modulus: bool) -> tuple[Array, Array]:
    """Of the roots of y³ + py − d, each moved by the shift."""
    root = _outer_root(p, determinant)
    # The other two have the sum −y and the product p + y²; of y³ + py = d the latter is d/y, which does not cancel.
    product = jnp.where(root == 0, p, _quotient(determinant, root))
    discriminant = root * root / 4 - product
    real, imaginary = _dominant_of_pair(shift - root / 2, discriminant, by_modulus)
    moved = shift + root
    wins = jnp.abs(moved) > jnp.hypot(real, imaginary) if by_modulus else moved > real
    return jnp.where(wins, moved, real), jnp.where(wins, 0.0, imaginary)


def _outer_root(p: Array, determinant: Array) -> Array:
    """The real root of y³ + py = d that is farthest from 0, of all real roots, or the only one.

    Its modulus is the positive root of y³ + py = |d|. From a start near it or above it, Halley's method needs a few
    steps; sqrt and division run many at a time, where Cardano's cube roots and Viète's cosines do not.
    """
    size = jnp.abs(determinant)
    fourth = jnp.sqrt(jnp.sqrt(size))
    sixteenth = jnp.sqrt(jnp.sqrt(fourth))
    cube_root = fourth * sixteenth * jnp.sqrt(jnp.sqrt(sixteenth))  # to the power 21/64
    line = _quotient(size, jnp.abs(p))
    y = jnp.where(p < 0, jnp.maximum(2 * jnp.sqrt(jnp.abs(p) / 3), cube_root), cube_root)
    y = jnp.where((p > 0) & (line < y), line, y)
    for _ in range(_ITERATIONS):
        value, slope = (y * y + p) * y - size, 3 * y * y + p
        y = y - _quotient(value * slope, slope * slope - 3 * value * y)
    return jnp.where(determinant < 0, -y, y)


def _quotient(numerator: Array, denominator: Array) -> Array:
    """The quotient, or 0 where the denominator is 0."""
    nothing = denominator == 0
    return jnp.where(nothing, 0.0, numerator / jnp.where(nothing, 1.0, denominator))
