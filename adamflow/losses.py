"""What a loss is: a function of the parameters that returns a real scalar, or with `has_aux` a pair."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from adamflow.types import Loss, Params


def check_loss(loss: Loss) -> None:
    """Raise `ValueError` unless a loss can be called, and its program found again by its hash."""
    if not callable(loss):
        raise ValueError(
            f"loss must be a function of the parameters that returns a real scalar, got {type(loss).__name__}; a "
            "problem of adamflow has it as problem.loss"
        )
    try:
        leaves, treedef = jax.tree.flatten(eqx.filter(loss, eqx.is_array, inverse=True))
        hash((tuple(leaves), treedef))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"loss of type {type(loss).__name__} has no hash ({str(error)[:80]}), by which its compiled program is "
            "found again; make it an equinox.Module with its arrays in fields, or give a function: "
            "lambda params: loss(params)"
        ) from None


def loss_and_aux(loss: Loss, params: Params, *batch: Any, has_aux: bool = False) -> tuple[jax.Array, Any]:
    """The loss and what it returns beside it, or a `ValueError` if it is no real scalar.

    Called inside programs, where the check costs nothing.

    Args:
        loss: returns a real scalar, or with `has_aux` a pair of that and any pytree of arrays.
        params: its first argument.
        batch: its second one, if it takes one.
        has_aux: whether it returns a pair; otherwise the second result here is `None`.
    """
    value, aux = loss(params, *batch), None
    if has_aux:
        if not isinstance(value, tuple) or len(value) != 2:
            raise ValueError(
                f"with has_aux=True the loss must return (value, aux), got {_described(value)}; leave has_aux out if "
                "it returns the value alone"
            )
        value, aux = value
        aux = jax.tree.map(jnp.asarray, aux)
    number = isinstance(value, jax.Array | np.ndarray | np.generic | float)
    if not number or jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        hint = "reduce it, for example with jnp.mean"
        if value is None:
            hint = "does it lack a return?"
        elif isinstance(value, tuple) and not has_aux:
            hint = "for (value, aux) give has_aux=True to iterate or solve, or elsewhere lambda params: loss(params)[0]"
        raise ValueError(f"the loss must return a real scalar, got {_described(value)}; {hint}")
    return jnp.asarray(value), aux


def scalar_loss(loss: Loss, params: Params, *batch: Any) -> jax.Array:
    """The loss, or a `ValueError` if it is no real scalar; called inside programs, where the check costs nothing."""
    return loss_and_aux(loss, params, *batch)[0]


def _described(value: Any) -> str:
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return f"shape {jnp.shape(value)} of {jnp.result_type(value)}"
    return "None" if value is None else f"a {type(value).__name__}"
