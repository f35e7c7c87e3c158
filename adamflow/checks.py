"""Checks of what users hand in: each error says what is wrong, with the value, why, and what to do instead.

A value that jax is tracing has no number yet, so it passes: ranges are checked where the values are concrete.
"""

import functools
import inspect
import operator
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

#: Messages show so many characters of a value.
_SHOWN = 80

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

#: What optax and PyTorch call the two decays.
_OTHER_NAMES = {"b1": "gamma", "b2": "beta"}
#: What PyTorch calls other arguments.
_FOREIGN_NAMES = {"lr": "learning_rate", "eps": "epsilon"}
_WHICH_IS_WHICH = (
    "beta is the decay of the second moment (b2 in optax, the second of betas in PyTorch), gamma that of the first (b1)"
)


def is_concrete(*values: Any) -> bool:
    """Whether none of the values (or leaves of pytrees) is being traced by jax."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def describe(value: Any) -> str:
    """A value as messages show it: short, with its type, and an array by its shape and type of numbers."""
    if isinstance(value, jax.Array) or getattr(value, "shape", ()):
        return f"an array of shape {value.shape} and type {value.dtype}"
    text = " ".join(repr(value).split())
    text = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    if value is None or isinstance(value, bool | int | float | np.generic):
        return text
    return f"{text}, a {type(value).__name__}"


def check_real(name: str, value: Any) -> Any:
    """Return `value` as real numbers: a float, a NumPy array of up to 64 bits in this machine's byte order, or as is.

    Args:
        name: what the value is called in the API.
        value: a number, an array, or a sequence of numbers. Arrays and tracers of jax are returned as they are.

    Raises:
        ValueError: if it is something else: a truth value, text, a complex number, a key of `jax.random`, an object.
    """
    refused = ValueError(f"{name} must be a real number, got {describe(value)}; give a float, or an array of floats")
    if isinstance(value, jax.Array):
        if not (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)):
            raise refused
        return value
    if isinstance(value, bool | np.ma.MaskedArray):
        raise refused
    if isinstance(value, int | float) and not isinstance(value, np.generic):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{name} must be a number that a float can hold, got {describe(value)}") from None
    try:
        array = np.asarray(value)
    except Exception:
        raise refused from None
    if array.dtype.kind in "iu" or jnp.issubdtype(array.dtype, jnp.floating):
        return array.astype(np.float64) if array.dtype.itemsize > 8 else array.astype(array.dtype.newbyteorder("="))
    if array.dtype.kind == "f":
        return array.astype(np.float64)
    raise refused


def check_single(name: str, value: Any) -> Any:
    """Return `value` as `check_real` does, or raise `ValueError` unless it is one real number, no array of them."""
    number = check_real(name, value)
    if jnp.shape(number) != ():
        raise ValueError(f"{name} must be a single number, got {describe(value)}; make one call for each")
    return number


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
        value: a number or array; tracers of real numbers pass.
        low, high: the ends of the interval; `None` for no end.
        low_open, high_open: whether that end itself is excluded.
        hint: what to do instead, appended to the message.
    """
    if isinstance(value, jax.core.Tracer):
        check_real(name, value)
    if not is_concrete(value):
        return
    numbers = np.asarray(check_real(name, value), dtype=float)
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
    # In the digits that single precision has, if it was given in that.
    shown = str(np.float32(worst) if getattr(value, "dtype", None) == np.float32 else worst)
    message = f"{name} must lie in {left}, {right}, got {shown}"
    raise ValueError(f"{message}; {hint}" if hint else message)


def check_count(name: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """Return `value` as an `int`, or raise `ValueError` unless it is a whole number from `low` to `high`."""
    try:
        number = operator.index(value)
    except Exception:
        number = None
    if isinstance(value, bool) or number is None or number < low:
        raise ValueError(f"{name} must be a whole number of at least {low}, got {describe(value)}")
    if high is not None and number > high:
        raise ValueError(f"{name} must be at most {high}, got {describe(value)}")
    return number


#: Former values of arguments, of version 0.1, kept for one version.
_FORMER_CHOICES = {"paper": "gould_tanaka"}


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`, or the present one for a former one, or raise `ValueError`."""
    if isinstance(value, str) and value not in choices and _FORMER_CHOICES.get(value) in choices:
        present = _FORMER_CHOICES[value]
        warnings.warn(f"{name}={value!r} is now called {name}={present!r}", DeprecationWarning, stacklevel=3)
        return present
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {listed}, got {describe(value)}")
    return value


def check_whole_iterations(time: float, learning_rate: float) -> int:
    """The number of iterations N at which ηN is a time."""
    steps = round(time / learning_rate)
    if steps < 1 or abs(steps * learning_rate - time) > 1e-6 * time:
        raise ValueError(
            f"time={time:g} is no whole number of iterations at learning rate {learning_rate:g}; "
            f"{time / max(steps, 1):.6g} is the nearest rate that divides it"
        )
    return steps


def check_flag(name: str, value: Any) -> bool:
    """Return `value` as a `bool`, or raise `ValueError` unless it is `True` or `False`."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {describe(value)}")
    return bool(value)


def check_path(name: str, value: Any) -> Path:
    """Return `value` as a path, or raise `TypeError` unless it is a string or a path."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a path, a string or a pathlib.Path, got {describe(value)}")
    return Path(value)


def check_precision(name: str, tree: Any) -> None:
    """Raise `ValueError` unless all leaves are float32 or float64: what the arithmetic of optimizers can do.

    Integers have no gradient, the square of a complex number is not that of its size, and in half precision squares
    of gradients underflow and an average with a decay such as .999 does not move.

    Args:
        name: what the tree is called in the API.
        tree: a pytree of arrays, tracers, or anything with a `dtype`; Python floats pass, too.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        where = f"{name}{jax.tree_util.keystr(path)}"
        if isinstance(leaf, bool) or not (hasattr(leaf, "dtype") or isinstance(leaf, float | int)):
            raise ValueError(
                f"{where} must be an array, got {type(leaf).__name__}; split what is no parameter off a "
                "module: params, static = equinox.partition(model, equinox.is_inexact_array), and in the loss "
                "equinox.combine(params, static)"
            )
        dtype = getattr(leaf, "dtype", None) or jnp.result_type(type(leaf))
        if dtype not in (jnp.float32, jnp.float64):
            raise ValueError(f"{where} must be float32 or float64, got {dtype}; {_remedy(dtype)}")


def _remedy(dtype: Any) -> str:
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return "keep its real and imaginary parts as two real arrays"
    if isinstance(dtype, np.dtype) and dtype.kind == "f" and (dtype.itemsize > 8 or not dtype.isnative):
        return "convert it with np.asarray(x, np.float64)"
    return "convert it, or close over it in the loss if it is not trained"


def check_params(params: Any, name: str = "params") -> Any:
    """The parameters as jax arrays.

    Args:
        params: any pytree of float32 or float64 arrays.
        name: what they are called in the API.

    Raises:
        ValueError: if there is no leaf or no entry, or a leaf is of another type.
    """
    if not jax.tree.leaves(params):
        raise ValueError(f"{name} has no leaves; give a pytree with at least one floating-point array")
    check_precision(name, params)
    params = jax.tree.map(jnp.asarray, params)
    if not any(leaf.size for leaf in jax.tree.leaves(params)):
        raise ValueError(f"{name} has no entries; give at least one number to optimize")
    return params


def keyword_decays(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let a function take its decays by keyword only, by this package's names or by those of optax and PyTorch.

    `beta`, `gamma` may be given as `b2`, `b1`, or together as `betas=(b1, b2)`. By position they would be taken the
    wrong way round: [GT] names the decay of the second moment first.

    Raises:
        TypeError: in the function, where decays are given by position or twice, or with PyTorch's `lr=` or `eps=`.
    """
    name = function.__name__
    known = inspect.signature(function).parameters
    parameters = known.values()
    positional = [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]

    @functools.wraps(function)
    def checked(*args: Any, **given: Any) -> Any:
        if len(args) > len(positional):
            raise TypeError(
                f"{name} takes {' and '.join(positional) or 'nothing'} by position, got {len(args)} values; write "
                f"{name}({', '.join([*positional, 'beta=…', 'gamma=…'])}): {_WHICH_IS_WHICH}"
            )
        for other, own in _FOREIGN_NAMES.items():
            if other in given and own in known:
                raise TypeError(f"{name} has no argument {other}; here it is called {own}")
        return function(*args, **_own_names(name, given))

    return checked  # pyright: ignore[reportReturnType]


def _own_names(function: str, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call, with the decays under the names that this package has for them."""
    if "betas" in given:
        betas = given["betas"]
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise TypeError(f"betas must be the two decays (b1, b2), got {describe(betas)}; {_WHICH_IS_WHICH}")
        given = {name: value for name, value in given.items() if name != "betas"}
        for other, value in zip(("b1", "b2"), betas, strict=True):
            if other in given:
                raise TypeError(f"{function} got {other} twice, as {other}= and in betas=; give one")
            given[other] = value
    for other, own in _OTHER_NAMES.items():
        if other in given:
            if own in given:
                raise TypeError(f"{function} got {own} twice: {other} is another name for it; {_WHICH_IS_WHICH}")
            given = {own if name == other else name: value for name, value in given.items()}
    return given
