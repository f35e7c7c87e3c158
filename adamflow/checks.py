"""Checks of what users hand in: each error says what is wrong, with the value, why, and what to do instead.

A value that jax is tracing has no number yet, so it passes: ranges are checked where the values are concrete.
"""

import operator
from typing import Any

import jax
import jax.core
import numpy as np


def is_concrete(*values: Any) -> bool:
    """Whether none of the values (or leaves of pytrees) is being traced by jax."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def check_range(
    name: str,
    value: Any,
    low: float | int | None = None,
    high: float | int | None = None,
    *,
    low_open: bool = False,
    high_open: bool = False,
    hint: str = "",
) -> None:
    """Raise `ValueError` unless every entry of `value` is a number in the interval.

    Args:
        name: what the value is called in the API.
        value: a number or array; tracers pass.
        low, high: the ends of the interval; `None` for no end.
        low_open, high_open: whether that end itself is excluded.
        hint: what to do instead, appended to the message.
    """
    if not is_concrete(value):
        return
    try:
        numbers = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a real number, got {value!r}") from None
    inside = np.ones(numbers.shape, bool)
    if low is not None:
        inside &= (numbers > low) if low_open else (numbers >= low)
    if high is not None:
        inside &= (numbers < high) if high_open else (numbers <= high)
    inside &= ~np.isnan(numbers)
    if inside.all():
        return
    left = "(-inf" if low is None else f"{'(' if low_open else '['}{low:g}"
    right = "inf)" if high is None else f"{high:g}{')' if high_open else ']'}"
    worst = numbers[~inside].flat[0]
    message = f"{name} must lie in {left}, {right}, got {float(worst)!r}"
    raise ValueError(f"{message}; {hint}" if hint else message)


def check_count(name: str, value: Any, low: int = 1) -> int:
    """Return `value` as an `int`, or raise `ValueError` unless it is a whole number of at least `low`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if isinstance(value, bool) or number is None or number < low:
        raise ValueError(f"{name} must be a whole number of at least {low}, got {value!r}")
    return number


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise `ValueError` unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {listed}, got {value!r}")
