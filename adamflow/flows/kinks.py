"""Kinks of a loss, as far as its program shows them."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from adamflow.losses import as_scalar
from adamflow.types import Loss, Params

_DECISIONS = frozenset({"max", "min", "gt", "ge", "lt", "le"})
#: Smooth functions whose programs decide: which of two numbers is larger, to take its exponential out.
_SMOOTH = frozenset({"logaddexp"})


def has_kinks(loss: Loss, params: Params) -> bool:
    """Whether a loss takes the larger of numbers that depend on the parameters, or compares them, as relu and clip do.

    A kink that is written otherwise, such as |x|, is not found: the stable forms of smooth functions use it too.
    """
    program = jax.make_jaxpr(as_scalar(loss))(params).jaxpr
    return _has_kinks(program, [True] * len(program.invars))


def _has_kinks(program: Any, moving: list[bool]) -> bool:
    """The same for a part of a program, some of whose inputs depend on the parameters."""
    known = {variable for variable, moves in zip(program.invars, moving, strict=True) if moves}
    for equation in program.eqns:
        moves = [not hasattr(value, "val") and value in known for value in equation.invars]
        if not any(moves):
            continue
        known.update(equation.outvars)
        name = equation.primitive.name
        if name in _DECISIONS and _decides(equation.invars, moves):
            return True
        parts = jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda part: hasattr(part, "eqns"))
        for part in (getattr(part, "jaxpr", part) for part in parts):
            if hasattr(part, "eqns") and _name(part) not in _SMOOTH:
                same = len(part.invars) == len(moves)
                if _has_kinks(part, moves if same else [True] * len(part.invars)):
                    return True
    return False


def _name(program: Any) -> str:
    return getattr(getattr(program, "debug_info", None), "func_name", "")


def _decides(values: Any, moves: list[bool]) -> bool:
    """Whether floats that depend on the parameters are compared with anything but ±inf."""
    floats = any(m and jnp.issubdtype(v.aval.dtype, jnp.floating) for v, m in zip(values, moves, strict=True))
    return floats and all(math.isfinite(value.val) for value in values if hasattr(value, "val"))
