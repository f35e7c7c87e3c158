"""The nodes of a step of collocation, polynomials through them, and integrals of these against exponentials."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_RADAU = {2: (1 / 3, 1.0), 3: ((4 - 6**0.5) / 10, (4 + 6**0.5) / 10, 1.0)}
#: By type, the rate beyond which moments of an exponential follow from lower ones, and the terms of their series below
#: it; the way up loses digits that float32 has not.
_SERIES = {"float64": (1.5, 14), "float32": (6.0, 18)}


class Nodes:
    r"""Radau IIA's nodes $c_1 < \dots < c_s = 1$ in a step [0, 1], and a finer set $f$ that contains 0 and them.

    Attributes:
        count: s.
        radau: c, shape (s,).
        fine: f, 0, c and the midpoints between them, shape (2s + 1,).
        radau_indices: of c in f.
        fine_monomials: (j, k): the coefficient of $x^k$ in the polynomial that is 1 at $f_j$ and 0 at the rest of f.
        radau_to_fine: values at f of the polynomial of degree s − 1 through values at c.
        skipped: the index in f of a midpoint without which a polynomial of one degree less goes through the others.
        skipped_weights: from values at f to how far the value there is from that polynomial.
        endpoints_to_fine: values at f of the polynomial of degree s through values at 0 and c.
        radau_monomials: (j, k): the coefficient of $x^k$ in the polynomial that is 1 at the j-th of 0 and c, else 0.
    """

    def __init__(self, count: int):
        self.count, self.radau = count, np.array(_RADAU[count])
        ends = np.concatenate([[0.0], self.radau])
        self.fine = np.sort(np.concatenate([ends, (ends[1:] + ends[:-1]) / 2]))
        self.radau_indices = np.array([int(np.argmin(np.abs(self.fine - c))) for c in self.radau])
        self.fine_monomials = _lagrange(self.fine)
        self.skipped = 1
        others = np.delete(self.fine, self.skipped)
        lower = np.vander(self.fine[[self.skipped]], others.size, increasing=True) @ _lagrange(others).T
        self.skipped_weights = np.insert(-lower[0], self.skipped, 1.0)
        self.radau_to_fine = np.vander(self.fine, count, increasing=True) @ _lagrange(self.radau).T
        self.radau_monomials = _lagrange(ends)
        self.endpoints_to_fine = np.vander(self.fine, count + 1, increasing=True) @ self.radau_monomials.T

    def interpolation_weights(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape ends"]:
        """The weights that take values at 0 and c to the polynomial through them at x."""
        return _powers(x, self.count + 1) @ jnp.asarray(self.radau_monomials.T, x.dtype)

    def fine_interpolation_weights(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape fine"]:
        """The weights that take values at f to the polynomial through them at x."""
        return _powers(x, self.fine.size) @ jnp.asarray(self.fine_monomials.T, x.dtype)

    def exponential_integrals(self, rate: Float[Array, "*shape"]) -> Float[Array, "*shape fine fine"]:
        r"""$\int_0^{f_i} e^{-z(f_i - x)} \ell_j(x) dx$ for rates z ≥ 0, however large.

        $\ell_j$ is the polynomial that is 1 at $f_j$ and 0 at the rest of f.
        """
        fine = jnp.asarray(self.fine, rate.dtype)
        scale = jnp.asarray(self.fine[:, None] ** np.arange(1, self.fine.size + 1), rate.dtype)
        moments = scale * _moments(rate[..., None] * fine, fine.size)
        return moments @ jnp.asarray(self.fine_monomials.T, rate.dtype)


@functools.cache
def nodes(count: int) -> Nodes:
    """Those of `count` Radau nodes, made once."""
    return Nodes(count)


def reduce_over_nodes(
    combine: Callable[[Array, Array], Array], values: Float[Array, "few size"]
) -> Float[Array, " size"]:
    """A reduction over the few leading entries, written out: XLA's own takes ten times as long on CPUs."""
    return functools.reduce(combine, [values[i] for i in range(len(values))])


def lagrange_weights(at: Float[Array, " past"], x: Float[Array, " now"]) -> Float[Array, "now past"]:
    """The weights that take values at some points to the polynomial through them at x."""
    gaps = at[:, None] - at + jnp.eye(at.size, dtype=at.dtype)
    ratios = (x[:, None, None] - at) / gaps
    return jnp.prod(jnp.where(jnp.eye(at.size, dtype=bool), 1.0, ratios), axis=-1)


def _powers(x: Float[Array, "*shape"], count: int) -> Float[Array, "*shape count"]:
    powers = [jnp.ones_like(x)]
    for _ in range(count - 1):
        powers.append(powers[-1] * x)
    return jnp.stack(powers, axis=-1)


def _moments(rate: Float[Array, "*shape"], count: int) -> Float[Array, "*shape count"]:
    r"""$M_k = \int_0^1 e^{-w(1-x)} x^k dx$, k < count: upwards by $w M_k = 1 - k M_{k-1}$, for small w by a series."""
    upwards, terms = _SERIES[rate.dtype.name]
    large = jnp.maximum(rate, upwards)
    up = [-jnp.expm1(-large) / large]
    for k in range(1, count):
        up.append((1 - k * up[-1]) / large)
    around = jnp.minimum(rate, upwards) - upwards / 2
    series = _powers(around, terms) @ jnp.asarray(_taylor(count, upwards, terms), rate.dtype)
    return jnp.where((rate > upwards)[..., None], jnp.stack(up, axis=-1), series)


@functools.cache
def _taylor(count: int, upwards: float, terms: int) -> np.ndarray:
    r"""(j, k): $\int_0^1 e^{-c(1-x)} (x-1)^j/j! x^k dx$, the series of $M_k$ around the middle c of what is small."""
    points, weights = np.polynomial.legendre.leggauss(terms + count)
    x, weights = (points + 1) / 2, weights / 2
    j, k = np.arange(terms)[:, None], np.arange(count)[:, None]
    factorials = np.cumprod(np.maximum(j, 1), axis=0)
    return ((x - 1) ** j / factorials * np.exp(-upwards / 2 * (1 - x)) * weights) @ (x**k).T


def _lagrange(points: np.ndarray) -> np.ndarray:
    return np.linalg.inv(np.vander(points, increasing=True)).T
