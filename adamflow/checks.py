"""Checks of what users hand in: each error says what is wrong, with the value, why, and what to do instead.

A value that jax is tracing has no number yet, so it passes: ranges are checked where the values are concrete.
"""

import operator
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from adamflow.types import Loss, Params


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


def check_count(name: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """Return `value` as an `int`, or raise `ValueError` unless it is a whole number in [low, high]."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if isinstance(value, bool) or number is None or number < low:
        raise ValueError(f"{name} must be a whole number of at least {low}, got {value!r}")
    if high is not None and number > high:
        raise ValueError(
            f"{name} must be at most {high}, which jax's default integers can count, got {value!r}; enable 64 bits "
            "with jax.config.update('jax_enable_x64', True)"
        )
    return number


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise `ValueError` unless `value` is one of `choices`."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {listed}, got {value!r}")


def check_params(params: Params, name: str = "params") -> Params:
    """The parameters as jax arrays; raise `ValueError` unless all leaves are float32 or float64.

    Args:
        params: any pytree of floating-point arrays and Python numbers.
        name: what they are called in the API.
    """
    paths = jax.tree_util.tree_leaves_with_path(params)
    if not paths:
        raise ValueError(f"{name} has no leaves; give a pytree with at least one floating-point array")
    leaves = [_checked_leaf(f"{name}{jax.tree_util.keystr(path)}", leaf) for path, leaf in paths]
    if not any(leaf.size for leaf in leaves):
        raise ValueError(f"{name} has no entries; give at least one number to optimize")
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _checked_leaf(where: str, leaf: Any) -> jax.Array:
    if not hasattr(leaf, "dtype") and not isinstance(leaf, float | int):
        raise ValueError(f"{where} must be an array, got {type(leaf).__name__}; filter modules with eqx.is_array")
    if isinstance(leaf, np.ndarray | np.generic) and not leaf.dtype.isnative:
        # jax has no arrays of the other byte order, and their values are none the worse for it.
        leaf = leaf.astype(leaf.dtype.newbyteorder("="))
    try:
        array = jnp.asarray(leaf)
        dtype = array.dtype if not isinstance(leaf, np.ndarray | np.generic) else leaf.dtype
    except (TypeError, ValueError):
        array, dtype = None, leaf.dtype
    if array is None or array.dtype not in (jnp.float32, jnp.float64) or dtype not in (jnp.float32, jnp.float64):
        raise ValueError(
            f"{where} must be float32 or float64, got {dtype}; convert it, or close over it in the loss "
            "if it is not trained"
        )
    return array


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
