"""Kinks of a loss, as far as its program shows them."""

import math
from typing import Any

import jax

from adamflow.types import Loss, Params

_BOUNDS = frozenset({"max", "min"})
_COMPARISONS = frozenset({"gt", "ge", "lt", "le"})


def has_kinks(loss: Loss, params: Params) -> bool:
    """Whether a loss bounds numbers by a constant or compares arrays with one, as relu, clip and elu do.

    A kink that is written otherwise, such as |x|, is not found: the stable forms of smooth functions use it too.
    """
    return _has_kinks(jax.make_jaxpr(loss)(params).jaxpr)


def _has_kinks(program: Any) -> bool:
    for equation in program.eqns:
        name, values = equation.primitive.name, equation.invars
        bounded = any(_is_finite_number(value) for value in values)
        if equation.params.get("name") == "clip":
            return True
        if bounded and (name in _BOUNDS or (name in _COMPARISONS and equation.outvars[0].aval.shape)):
            return True
        parts = jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda part: hasattr(part, "eqns"))
        if any(_has_kinks(part) for part in (getattr(part, "jaxpr", part) for part in parts) if hasattr(part, "eqns")):
            return True
    return False


def _is_finite_number(value: Any) -> bool:
    """Whether an operand is a constant of the program, and a float."""
    number = getattr(value, "val", None)
    return value.aval.dtype.kind == "f" and number is not None and math.isfinite(number)
