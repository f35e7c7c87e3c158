"""The numbers of a record: how they are stored, and the ranges in which they make sense."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamflow.checks import check_range, is_concrete
from adamflow.types import Scalar


def number(value: Any) -> jax.Array:
    """A hyperparameter as an array, so that a new value never compiles a program anew."""
    try:
        array = jnp.asarray(value)
    except TypeError:
        raise ValueError(f"an optimizer's number must be a real number, got {value!r}") from None
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)


def beside(value: Any, leaf: Any) -> jax.Array:
    """A number in the precision of a leaf, single at least: beside one in double all work would be in double."""
    return jnp.asarray(value, jnp.promote_types(jnp.result_type(leaf), jnp.float32))


def is_zero(value: Scalar) -> bool:
    """Whether a value is the number 0, and not an array or tracer that might be."""
    return is_concrete(value) and np.ndim(value) == 0 and float(value) == 0.0


def check_decays(beta: Any, gamma: Any = 0.0) -> None:
    """Raise `ValueError` unless 0 < β < 1 and 0 ≤ γ < 1."""
    hint = "for a pure sign update use af.signsgd"
    check_range("beta", beta, 0, 1, low_open=True, high_open=True, hint=hint)
    check_range("gamma", gamma, 0, 1, high_open=True, hint=hint)
