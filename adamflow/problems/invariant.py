"""Normalization after bias-free weights: a layer whose weights may be multiplied by any c > 0 without effect."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

NORMALIZATIONS = ("layer", "batch")


def normalize(values: Float[Array, "examples ..."], kind: str) -> Float[Array, "examples ..."]:
    """(x − mean) / deviation, without the usual ε, so that a factor in front of x is lost to rounding.

    Args:
        values: x, by example, then any axes, the last one of units or channels.
        kind: "layer", over all axes of each example (Ba et al. 2016), or "batch", over examples and positions for
            each unit or channel (Ioffe & Szegedy 2015), always with the statistics of the examples given.

    Returns:
        the normalized values; 0, in value and in derivative, where the deviation is 0.

    Example:
        >>> import jax.numpy as jnp
        >>> normalize(jnp.array([[1.0, 3.0], [0.0, 8.0]]), "layer").tolist()
        [[-1.0, 1.0], [-1.0, 1.0]]
    """
    axes = tuple(range(1, values.ndim)) if kind == "layer" else tuple(range(values.ndim - 1))
    centred = values - jnp.mean(values, axis=axes, keepdims=True)
    variance = jnp.mean(centred**2, axis=axes, keepdims=True)
    constant = variance == 0
    return jnp.where(constant, 0.0, centred * jax.lax.rsqrt(jnp.where(constant, 1.0, variance)))


def check_enough_to_normalize(name: str, units: int) -> None:
    """Raise `ValueError` unless there are 3 values: normalized, one is always 0, and two are always −1 and 1."""
    if units < 3:
        raise ValueError(
            f"{name} must be at least 3, since fewer values are constant once they are normalized, got {units}"
        )


def shift_and_scale(layer: dict[str, Any], values: Float[Array, "..."], kind: str | None) -> Float[Array, "..."]:
    """What follows the weights of a layer: plus the bias, or normalized, times the gain, plus the bias."""
    return values + layer["bias"] if kind is None else normalize(values, kind) * layer["gain"] + layer["bias"]


def with_gain(layer: dict[str, Any], kind: str | None) -> dict[str, Any]:
    """A layer of weight and bias, with the gains that normalization adds, all one."""
    return layer if kind is None else layer | {"gain": jnp.ones_like(layer["bias"])}


def weights_before_normalization(layers: int, kind: str | None) -> tuple[str, ...]:
    """The names of the scale-invariant leaves of a network of layers whose last one is not normalized."""
    return () if kind is None else tuple(f"[{index}]['weight']" for index in range(layers - 1))
