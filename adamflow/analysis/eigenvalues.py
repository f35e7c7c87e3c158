"""The dominant eigenvalue of each of many small real matrices, in closed form up to three rows."""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Complex, Float

from adamflow.checks import check_choice

#: What makes an eigenvalue the dominant one: of a map its modulus, of a vector field its real part.
MEASURES = ("modulus", "real part")


@functools.partial(jax.jit, static_argnames="measure")
def dominant_of(matrices: Float[Array, "*batch rows rows"], measure: str) -> Complex[Array, "*batch"]:
    r"""The eigenvalue with the largest modulus, or with the largest real part, of each matrix.

    Up to three rows it is a root of the characteristic polynomial in closed form, so that a batch is one elementwise
    program, on every device. With $h = \tfrac12\mathrm{tr}$ the roots of two rows are $h \pm \sqrt{h^2 - \det}$, with
    $h^2 - \det = (\tfrac12(a-d))^2 + bc$, which does not cancel. Of three rows, one real root is found by Cardano's or
    Viète's formula and polished by Newton's method, and the other two are those of the deflated quadratic. More rows
    take LAPACK.

    Args:
        matrices: real square matrices, of at least one row.
        measure: "modulus", for the spectral radius of a map, or "real part", for the abscissa of a vector field.

    Returns:
        The eigenvalue; of a conjugate pair the one with positive imaginary part. Its error is a few units of rounding
        of the matrix' norm where it is simple. Near a double root it is the square root of that, as for any method.

    Raises:
        ValueError: if `measure` is neither of the two, or the matrices are not square.
    """
    check_choice("measure", measure, MEASURES)
    *_, rows, columns = matrices.shape
    if rows != columns or rows == 0:
        raise ValueError(f"matrices must be square with at least one row, got shape {matrices.shape}")
    by_modulus = measure == "modulus"
    if rows == 1:
        return jax.lax.complex(matrices[..., 0, 0], jnp.zeros(matrices.shape[:-2], matrices.dtype))
    if rows == 2:
        (a, b), (c, d) = _entries(matrices)
        return jax.lax.complex(*_dominant_of_pair((a + d) / 2, ((a - d) / 2) ** 2 + b * c, by_modulus))
    if rows == 3:
        return jax.lax.complex(*_dominant_of_three(*_invariants(matrices), by_modulus))
    values = jnp.linalg.eigvals(matrices)
    size = jnp.abs(values) if by_modulus else values.real
    chosen = jnp.take_along_axis(values, jnp.argmax(size, axis=-1)[..., None], axis=-1)[..., 0]
    return jax.lax.complex(chosen.real, jnp.abs(chosen.imag))


def characteristic_polynomial(matrices: Float[Array, "*batch rows rows"]) -> tuple[Float[Array, "*batch"], ...]:
    """The coefficients c₀ … cₙ₋₁ of det(λ − M) = λⁿ + cₙ₋₁λⁿ⁻¹ + … + c₀, for up to three rows."""
    entries = _entries(matrices)
    if len(entries) == 1:
        return (-entries[0][0],)
    if len(entries) == 2:
        (a, b), (c, d) = entries
        return a * d - b * c, -(a + d)
    trace, minors, determinant = _invariants(matrices)
    return -determinant, minors, -trace


def _entries(matrices: Array) -> list[list[Array]]:
    rows = matrices.shape[-1]
    return [[matrices[..., i, j] for j in range(rows)] for i in range(rows)]


def _dominant_of_pair(half: Array, discriminant: Array, by_modulus: bool) -> tuple[Array, Array]:
    """Real and imaginary part of the dominant root of λ² − 2hλ + h² − D, the roots being h ± √D."""
    root = jnp.sqrt(jnp.abs(discriminant))
    is_real = discriminant > 0
    distance = jnp.where(is_real, root, 0.0)
    downwards = (half < 0) if by_modulus else False
    return jnp.where(downwards, half - distance, half + distance), jnp.where(is_real, 0.0, root)


def _dominant_of_three(trace: Array, minors: Array, determinant: Array, by_modulus: bool) -> tuple[Array, Array]:
    root = _real_root(trace, minors, determinant)
    # The other two have this sum and product. Differences of large numbers are avoided: which ones these are depends
    # on whether the root is larger or smaller than those two.
    product = _quotient(determinant, root)
    is_large = jnp.abs(root * root * root) > jnp.abs(determinant)
    total = jnp.where(is_large, _quotient(minors - product, root), trace - root)
    product = jnp.where(is_large, product, minors - root * (trace - root))
    real, imaginary = _dominant_of_pair(total / 2, (total / 2) ** 2 - product, by_modulus)
    wins = jnp.abs(root) > jnp.hypot(real, imaginary) if by_modulus else root > real
    return jnp.where(wins, root, real), jnp.where(wins, 0.0, imaginary)


def _invariants(matrices: Array) -> tuple[Array, Array, Array]:
    """The trace, the sum of the principal minors and the determinant of matrices with three rows."""
    (a, b, c), (d, e, f), (g, h, i) = _entries(matrices)
    minors = (a * e - b * d) + (a * i - c * g) + (e * i - f * h)
    determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    return a + e + i, minors, determinant


def _real_root(trace: Array, minors: Array, determinant: Array) -> Array:
    """A real root of λ³ − tλ² + mλ − d: the one farthest from the other two, so that these can be divided out.

    With λ = t/3 ± y it is the positive root of y³ + py = |q|. From a start near it or above it, Halley's method needs
    a few steps; sqrt and division run many at a time, where Cardano's cube roots and Viète's cosines do not.
    """
    middle = trace / 3
    p = minors - trace * middle
    q = middle * (minors - 2 * middle**2) - determinant
    size = jnp.abs(q)
    fourth = jnp.sqrt(jnp.sqrt(size))
    sixteenth = jnp.sqrt(jnp.sqrt(fourth))
    cube_root = fourth * sixteenth * jnp.sqrt(jnp.sqrt(sixteenth))  # to the power 21/64
    nothing = jnp.abs(p) == 0
    line = size / jnp.where(nothing, 1.0, jnp.abs(p))
    y = jnp.where(p < 0, jnp.maximum(2 * jnp.sqrt(jnp.abs(p) / 3), cube_root), cube_root)
    y = jnp.where((p > 0) & (line < y), line, y)
    for _ in range(5):
        value, slope = (y**2 + p) * y - size, 3 * y**2 + p
        y = y - _quotient(value * slope, slope**2 - 3 * value * y)
    root = middle + jnp.where(q > 0, -y, y)
    for _ in range(2):
        value = ((root - trace) * root + minors) * root - determinant
        root = root - _quotient(value, (3 * root - 2 * trace) * root + minors)
    return root


def _quotient(numerator: Array, denominator: Array) -> Array:
    """The quotient, or 0 where the denominator is 0."""
    nothing = denominator == 0
    return jnp.where(nothing, 0.0, numerator / jnp.where(nothing, 1.0, denominator))
