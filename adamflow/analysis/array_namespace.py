"""The choice between NumPy and jax.numpy that the closed formulas of `analysis` share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def with_namespace(*values: Any) -> tuple[Any, ...]:
    """Return the module to compute with, then the values as floating-point arrays of one dtype.

    The module is `jax.numpy`, with the dtype to which jax promotes the values, if any of them is a jax array or a
    tracer. Otherwise it is `numpy` with float64, so that results without jax arrays have 15 digits whether or not
    `jax_enable_x64` is set.
    """
    if any(isinstance(value, jax.Array) for value in values):
        dtype = jnp.result_type(*values, 1.0)
        return jnp, *(jnp.asarray(value, dtype) for value in values)
    return np, *(np.asarray(value, np.float64) for value in values)
