"""Checks of what a run is given, before anything is computed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamflow.checks import check_count, check_params, is_concrete
from adamflow.types import Loss, Params


def check_run(params: Params, steps: Any, save_at: Any, first: int = 0) -> tuple[Params, int, np.ndarray]:
    """The parameters as arrays, the number of steps, and the iterations to save, or a `ValueError` that says why not.

    Args:
        params: any pytree of floating-point arrays.
        steps: the last iteration, after the first.
        save_at: increasing iterations in [first, steps], or `None` for every one.
        first: where the run starts.
    """
    steps = check_count("steps", steps, low=first + 1)
    return check_params(params), steps, check_save_at(save_at, steps, first)


def scalar_loss(loss: Loss, params: Params, *batch: Any) -> jax.Array:
    """The loss, or a `ValueError` if it is no real scalar; called inside programs, where the check costs nothing."""
    value = loss(params, *batch)
    shape, dtype = jnp.shape(value), jnp.result_type(value)
    if shape != () or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"the loss must return a real scalar, got shape {shape} of {dtype}; reduce it, for example with jnp.mean"
        )
    return value


def check_save_at(save_at: Any, steps: int, first: int = 0) -> np.ndarray:
    """The iterations to save as increasing floats in [first, steps]; raise `ValueError` if they are not."""
    if save_at is None:
        return np.arange(first, steps + 1, dtype=float)
    if not is_concrete(save_at):
        raise ValueError("save_at must be known before the run is compiled, got a traced value; pass it as a constant")
    iterations = np.atleast_1d(np.asarray(save_at, dtype=float))
    if iterations.ndim != 1 or iterations.size == 0:
        raise ValueError(f"save_at must be a sequence of at least one iteration, got shape {iterations.shape}")
    outside = iterations[~((iterations >= first) & (iterations <= steps))]
    if outside.size:
        raise ValueError(f"save_at must lie in [{first}, steps={steps}], got {outside[0]:g}")
    if np.any(np.diff(iterations) <= 0):
        raise ValueError("save_at must increase strictly; sort it and drop what stands twice")
    return iterations


def check_tolerance(rtol: Any, params: Params) -> None:
    """Raise `ValueError` if the arithmetic of the parameters cannot reach the tolerance."""
    if not is_concrete(rtol):
        return
    epsilon = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(params))
    if not 8 * epsilon <= float(rtol) < 1:
        hint = "enable float64 with jax.config.update('jax_enable_x64', True)" if epsilon > 1e-10 else "loosen it"
        raise ValueError(
            f"rtol must lie in [{8 * epsilon:.1e}, 1), which the arithmetic of the parameters can resolve, "
            f"got {float(rtol):g}; {hint}"
        )
