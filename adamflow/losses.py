"""What a loss is: a function of the parameters that returns a real scalar, or with `has_aux` a pair.

Programs are cached by the loss. A function made anew for each call takes a new program each time, whose memory would
stay: so programs are counted, and released when they are many.
"""

import functools
import inspect
import warnings
import weakref
from collections import Counter
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from adamflow.checks import check_flag
from adamflow.programs import release_programs
from adamflow.types import Loss, Params

#: After so many losses made by one piece of code a warning says that each was compiled.
WARN_AFTER = 20

#: After so many new losses the programs of all are released: a program has some megabytes.
RELEASE_AFTER = 32

_known: weakref.WeakSet = weakref.WeakSet()
_counts: Counter = Counter()


def count_program(loss: Loss, *, stacklevel: int = 3) -> None:
    """Count a loss that was not seen before; warn, once, if the same code has made many, and bound what they keep.

    Args:
        loss: of a run, or of an analysis.
        stacklevel: of the warning, which names the caller of that function.
    """
    for part in jax.tree.leaves(loss):
        # A bound method is made anew at each access, but stands for its object.
        owner = getattr(part, "__self__", part)
        try:
            if not callable(part) or owner in _known:
                continue
            _known.add(owner)
        except TypeError:
            continue
        function: Any = part
        while isinstance(function, functools.partial) or hasattr(function, "__wrapped__"):
            function = function.func if isinstance(function, functools.partial) else function.__wrapped__
        code = getattr(function, "__code__", type(function))
        _counts["all"] += 1
        _counts[code] += 1
        if _counts["all"] % RELEASE_AFTER == 0:
            release_programs()
        if _counts[code] == WARN_AFTER:
            name = getattr(function, "__qualname__", type(function).__name__)
            place = f" ({code.co_filename}:{code.co_firstlineno})" if hasattr(code, "co_filename") else ""
            warnings.warn(
                f"{WARN_AFTER} losses {name!r}{place} were compiled, each anew, since each is another object; make the "
                "loss once, before the calls, or an equinox.Module with its data in fields, which are inputs of one "
                "program",
                stacklevel=stacklevel,
            )


def forget_counts() -> None:
    """Count from 0 again: for tests, of which each is a program of its own."""
    _counts.clear()


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


class ScalarLoss(eqx.Module):
    """A loss whose value is checked to be a real scalar where it is compiled; with `has_aux` without what it adds."""

    loss: Loss
    has_aux: bool = eqx.field(static=True, default=False)

    def __call__(self, params: Params, *batch: Any) -> jax.Array:
        return loss_and_aux(self.loss, params, *batch, has_aux=self.has_aux)[0]


def as_scalar(loss: Loss) -> ScalarLoss:
    """A loss as a function whose value is checked; for what users may call inside programs of their own."""
    return loss if isinstance(loss, ScalarLoss) else ScalarLoss(loss)


def admit_loss(loss: Loss, has_aux: bool = False) -> ScalarLoss:
    """A loss that a user gives to an analysis: checked, counted, and without what it returns beside its value.

    Args:
        loss: `loss(params)`.
        has_aux: whether it returns (value, aux).

    Raises:
        ValueError: if it cannot be called or has no hash; in its program, if it returns no real scalar.
    """
    check_loss(loss)
    check_flag("has_aux", has_aux)
    count_program(loss, stacklevel=4)
    return ScalarLoss(loss, bool(has_aux)) if has_aux else as_scalar(loss)


def loss_and_aux(loss: Loss, params: Params, *batch: Any, has_aux: bool = False) -> tuple[jax.Array, Any]:
    """The loss and what it returns beside it, or a `ValueError` if it is no real scalar.

    Called inside programs, where the check costs nothing.

    Args:
        loss: returns a real scalar, or with `has_aux` a pair of that and any pytree of arrays.
        params: its first argument.
        batch: its second one, if it takes one.
        has_aux: whether it returns a pair; otherwise the second result here is `None`.
    """
    if not callable(loss):
        check_loss(loss)
    value, aux = _called(loss, params, *batch), None
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
            hint = "for (value, aux) give has_aux=True, or where that is not taken lambda params: loss(params)[0]"
        raise ValueError(f"the loss must return a real scalar, got {_described(value)}; {hint}")
    return jnp.asarray(value), aux


def _called(loss: Loss, *arguments: Any) -> Any:
    """What a loss returns, or a `TypeError` that says why it cannot be computed with JAX."""
    try:
        return loss(*arguments)
    except jax.errors.TracerArrayConversionError as error:
        raise TypeError(
            "the loss turns its parameters into arrays of NumPy, which JAX cannot differentiate; write it with "
            "jax.numpy, or for a model of PyTorch take adamflow.torch.loss"
        ) from error
    except TypeError as error:
        try:
            inspect.signature(loss).bind(*arguments)
        except TypeError:
            given = "the parameters" if len(arguments) == 1 else "the parameters and a batch"
            raise TypeError(
                f"the loss is called with {given}, but {error}; if it needs more, bind that: "
                "lambda params: loss(params, data)"
            ) from error
        except ValueError:
            # Some callables have no signature.
            pass
        raise


def scalar_loss(loss: Loss, params: Params, *batch: Any) -> jax.Array:
    """The loss, or a `ValueError` if it is no real scalar; called inside programs, where the check costs nothing."""
    return loss_and_aux(loss, params, *batch)[0]


def _described(value: Any) -> str:
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return f"shape {jnp.shape(value)} of {jnp.result_type(value)}"
    return "None" if value is None else f"a {type(value).__name__}"
