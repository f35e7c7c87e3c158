"""Checks of the numbers that users pass to problems: real, finite in jax's arithmetic, and of the right shape."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from adamflow.checks import check_count, check_range, check_real, is_concrete


def array_size(name: str, value: Any, low: int = 1) -> int:
    """The value as an `int`, or a `ValueError` unless it is an integer in [low, 2³¹), as sizes of arrays are."""
    number = check_count(name, value, low=low)
    if number >= 2**31:
        raise ValueError(f"{name} must be below 2**31, got about 2**{number.bit_length() - 1}")
    return number


def real_array(name: str, value: Any) -> Float[Array, "..."]:
    """The value as an array in jax's default float type, or a `ValueError` unless its entries are real and finite.

    Args:
        name: what the value is called in the API.
        value: a number, a sequence or an array; tracers pass with their type checked alone.
    """
    if isinstance(value, list | tuple):
        # NumPy would take a truth value among numbers for a number.
        for leaf in jax.tree.leaves(value, is_leaf=lambda leaf: leaf is None):
            check_real(name, leaf)
    if not is_concrete(value):
        return jnp.asarray(value if isinstance(value, list | tuple) else check_real(name, value), dtype=float)
    numbers = np.asarray(check_real(name, value))
    check_range(name, numbers, -np.inf, np.inf, low_open=True, high_open=True)
    with np.errstate(over="ignore"):
        converted = numbers.astype(jnp.result_type(float))
    bad = ~np.isfinite(converted)
    if bad.any():
        raise ValueError(f"{name} must be finite in {converted.dtype}, got {float(numbers[bad].flat[0])!r}")
    return jnp.asarray(converted)


def real_number(
    name: str, value: Any, low: float = -np.inf, high: float = np.inf, *, low_open: bool = False
) -> Float[Array, ""]:
    """The value as an array of shape (), or a `ValueError` unless it is one finite real number in the interval.

    Args:
        name: what the value is called in the API.
        value: a number, or an array of shape (); tracers pass with type and shape checked alone.
        low, high: the ends of the interval; the upper one is excluded.
        low_open: whether the lower one is excluded too.
    """
    number = real_array(name, value)
    if number.shape:
        raise ValueError(f"{name} must be one number, got shape {number.shape}")
    check_range(name, value, low, high, low_open=low_open or low == -np.inf, high_open=True)
    return number
