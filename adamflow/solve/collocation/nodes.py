"""The nodes of a step of collocation, polynomials through them, and integrals of these against exponentials."""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_RADAU = {2: (1 / 3, 1.0), 3: ((4 - 6**0.5) / 10, (4 + 6**0.5) / 10, 1.0)}
_GAUSS_POINTS = 24
#: e^{−z x} is nothing beyond z x of this.
_FORGOTTEN = 40.0


class Nodes:
    r"""Radau IIA's nodes $c_1 < \dots < c_s = 1$ in a step [0, 1], and a finer set $f$ that contains 0 and them.

    Attributes:
        count: s.
        radau: c, shape (s,).
        fine: f, 0, c and the midpoints between them, shape (2s + 1,).
        places: where c stands in f.
        monomials: (j, k): the coefficient of $x^k$ in the polynomial that is 1 at $f_j$ and 0 at the rest of f.
        from_radau: values at f of the polynomial of degree s − 1 through values at c.
        from_ends: values at f of the polynomial of degree s through values at 0 and c.
    """

    def __init__(self, count: int):
        self.count, self.radau = count, np.array(_RADAU[count])
        ends = np.concatenate([[0.0], self.radau])
        self.fine = np.sort(np.concatenate([ends, (ends[1:] + ends[:-1]) / 2]))
        self.places = np.array([int(np.argmin(np.abs(self.fine - c))) for c in self.radau])
        self.monomials = _lagrange(self.fine)
        self.from_radau = np.vander(self.fine, count, increasing=True) @ _lagrange(self.radau).T
        self.from_ends = np.vander(self.fine, count + 1, increasing=True) @ _lagrange(ends).T

    def interpolate(self, x: Float[Array, ""], values: Float[Array, "fine *rest"]) -> Float[Array, "*rest"]:
        """The polynomial through values at f, at x."""
        weights = x ** np.arange(self.fine.size) @ jnp.asarray(self.monomials.T, values.dtype)
        return jnp.tensordot(weights, values, 1)

    def integrals(self, rate: Float[Array, ""]) -> Float[Array, "fine fine"]:
        r"""$\int_0^{f_i} e^{-z(f_i - x)} \ell_j(x) dx$ for a rate z ≥ 0, however large, by Gauss and Legendre's rule.

        $\ell_j$ is the polynomial that is 1 at $f_j$ and 0 at the rest of f.
        """
        points, weights = (jnp.asarray(x, rate.dtype) for x in _gauss())
        fine = jnp.asarray(self.fine, rate.dtype)
        length = jnp.minimum(fine, _FORGOTTEN / jnp.maximum(rate, jnp.finfo(rate.dtype).tiny))
        ages = length[:, None] * points
        basis = (fine[:, None] - ages)[..., None] ** np.arange(fine.size) @ jnp.asarray(self.monomials.T, rate.dtype)
        return jnp.einsum("iq,iqj->ij", length[:, None] * weights * jnp.exp(-rate * ages), basis)


@functools.cache
def nodes(count: int) -> Nodes:
    """Those of `count` Radau nodes, made once."""
    return Nodes(count)


def extrapolation(at: Float[Array, " past"], x: Float[Array, " now"]) -> Float[Array, "now past"]:
    """The weights that take values at some places to the polynomial through them at x."""
    gaps = at[:, None] - at + jnp.eye(at.size, dtype=at.dtype)
    ratios = (x[:, None, None] - at) / gaps
    return jnp.prod(jnp.where(jnp.eye(at.size, dtype=bool), 1.0, ratios), axis=-1)


def _lagrange(places: np.ndarray) -> np.ndarray:
    return np.linalg.inv(np.vander(places, increasing=True)).T


@functools.cache
def _gauss() -> tuple[np.ndarray, np.ndarray]:
    points, weights = np.polynomial.legendre.leggauss(_GAUSS_POINTS)
    return (points + 1) / 2, weights / 2
