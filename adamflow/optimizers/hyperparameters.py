"""The numbers of a record: how they are stored, and the ranges in which they make sense."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamflow.checks import check_choice, check_count, check_flag, check_range, check_real, describe, is_concrete
from adamflow.types import Numbers, WholeNumber


def number(name: str, value: Any) -> jax.Array:
    """A hyperparameter as an array, so that a new value never compiles a program anew.

    Args:
        name: what it is called in the API.
        value: a real number, or an array of them for a batch of records.

    Raises:
        ValueError: if it is no real number, or an empty array.
    """
    array = jnp.asarray(check_real(name, value))
    if array.size == 0:
        raise ValueError(f"{name} must be a number, or an array of one for each record, got {describe(array)}")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return array.astype(float)
    # 1 − .999 is 0 in half precision.
    return array if array.dtype.itemsize >= 4 else array.astype(jnp.float32)


# The type of a converter's argument is that of the argument of the class: equinox and type checkers read it there.


def number_called(name: str) -> Callable[[Numbers], jax.Array]:
    """The converter of a field of that name."""

    def convert(value: Numbers) -> jax.Array:
        return number(name, value)

    return convert


def number_or_none(name: str) -> Callable[[Numbers | None], jax.Array | None]:
    """The converter of a field of that name that may be `None`."""

    def convert(value: Numbers | None) -> jax.Array | None:
        return None if value is None else number(name, value)

    return convert


def flag_called(name: str) -> Callable[[bool], bool]:
    """The converter of a static field of that name that is `True` or `False`."""

    def convert(value: bool) -> bool:
        return check_flag(name, value)

    return convert


def count_called(name: str, low: int = 1) -> Callable[[WholeNumber], Any]:
    """The converter of a static field of that name that is a whole number of at least `low`."""

    def convert(value: WholeNumber) -> int:
        return check_count(name, value, low)

    return convert


def choice_called(name: str, choices: tuple[str, ...]) -> Callable[[str], Any]:
    """The converter of a static field of that name that is one of some words."""

    def convert(value: str) -> str:
        return check_choice(name, value, choices)

    return convert


def beside(value: Any, leaf: Any) -> jax.Array:
    """A number in the precision of a leaf, single at least: beside one in double all work would be in double."""
    return jnp.asarray(value, jnp.promote_types(jnp.result_type(leaf), jnp.float32))


def is_zero(name: str, value: Numbers) -> bool:
    """Whether a value is the number 0, and not a batch or tracer that might be; raise `ValueError` if it is no number.

    Args:
        name: what it is called in the API.
        value: a hyperparameter.
    """
    value = check_real(name, value)
    return is_concrete(value) and np.ndim(value) == 0 and float(value) == 0.0


def check_decays(beta: Any, gamma: Any = 0.0) -> None:
    """Raise `ValueError` unless 0 < β < 1 and 0 ≤ γ < 1."""
    hint = "for a pure sign update use af.signsgd"
    check_range("beta", beta, 0, 1, low_open=True, high_open=True, hint=hint)
    check_range("gamma", gamma, 0, 1, high_open=True, hint=hint)
