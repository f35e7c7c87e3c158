"""The smallest scale-invariant loss: a Rayleigh quotient, with or without noise."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from adamflow.checks import check_count
from adamflow.problems.numbers import array_size, real_number
from adamflow.problems.problem import Problem


class Rayleigh(eqx.Module):
    """The loss Σ cᵢ wᵢ²/‖w‖², plus ⟨ξ, w⟩/‖w‖ with ξ the mean of a batch."""

    curvatures: Float[Array, " dimension"]

    def __call__(
        self, params: Float[Array, " dimension"], batch: Float[Array, "size dimension"] | None = None
    ) -> Float[Array, ""]:
        square = jnp.sum(params**2)
        quotient = jnp.sum(self.curvatures * params**2) / square
        if batch is None:
            return quotient
        if jnp.ndim(batch) != 2 or jnp.shape(batch)[0] == 0 or jnp.shape(batch)[1] != params.size:
            raise ValueError(
                f"batch must hold at least one noise vector, shape (size, {params.size}), got shape {jnp.shape(batch)}"
            )
        return quotient + jnp.mean(batch, axis=0) @ params / jnp.sqrt(square)


class Noise(eqx.Module):
    """Draws normal vectors of unit variance."""

    dimension: int = eqx.field(static=True)

    def __call__(self, key: Key[Array, ""], size: int) -> Float[Array, "size dimension"]:
        # Drawn in float32, so that equal seeds give equal noise whatever the precision.
        return jax.random.normal(key, (size, self.dimension), jnp.float32).astype(float)


def rayleigh(dimension: int = 200, *, spread: float = 1.0, seed: int = 0) -> Problem:
    """A Rayleigh quotient, Σ cᵢ wᵢ²/‖w‖² with c evenly spaced from 0 to `spread`: a scale-invariant loss, and no more.

    A batch is noise: its vectors ξ add ⟨ξ, w⟩/‖w‖, whose gradient is noise at a right angle to w. With `spread=0` noise
    is all there is.

    Args:
        dimension: d, at least 2.
        spread: the largest c, at least 0.
        seed: of w(0), a normal vector divided by its norm.

    Returns:
        A problem whose parameters are one array of shape (dimension,), a batch of which is (size, dimension) normal
        numbers of unit variance. All its parameters are scale-invariant.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> import adamflow as af
        >>> problem = af.problems.rayleigh(dimension=3)
        >>> bool(abs(problem.loss(7 * problem.params) - problem.loss(problem.params)) < 1e-6)
        True
    """
    dimension = array_size("dimension", dimension, low=2)
    largest = real_number("spread", spread, 0.0)
    start = np.random.default_rng(check_count("seed", seed, low=0)).normal(size=dimension)
    params = jnp.asarray(start / np.linalg.norm(start), dtype=float)
    loss = Rayleigh(jnp.linspace(0.0, largest, dimension))
    return Problem("rayleigh", params, loss, sampler=Noise(dimension), scale_invariant=("",))
