"""Equality and hash by value, so that records can be static arguments of programs and keys; text with their numbers."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
import wadler_lindig

from adamflow.checks import is_concrete
from adamflow.display import changed_fields, fields_text, html_table


class Record(eqx.Module):
    """A module whose instances are equal if their class, structure and numbers are, and hash by the same.

    Numbers are equal if their type, shape and bits are: .1 in float32 is not .1 in float64. While jax traces its
    numbers a record has none yet: it is equal to itself alone, and has no hash.

    `repr` is the call that makes it, with its numbers; fields at their default are left out. Jupyter shows a table.
    """

    def __repr__(self) -> str:
        return fields_text(self)

    def __pdoc__(self, **_: Any) -> wadler_lindig.AbstractDoc:
        # What equinox shows of a record within another module.
        return wadler_lindig.TextDoc(repr(self))

    def _repr_html_(self) -> str | None:
        return html_table(type(self).__name__, changed_fields(self))

    def __eq__(self, other: object) -> Any:
        if self is other:
            return True
        if not isinstance(other, Record) or type(self) is not type(other) or not is_concrete(self, other):
            return False
        return _value_of(self) == _value_of(other)

    def __hash__(self) -> int:
        if not is_concrete(self):
            raise TypeError(
                f"{type(self).__name__} has no hash while jax is tracing its numbers; pass it as an argument that is "
                "traced, not as a static one, and make keys outside of jit, vmap and grad"
            )
        return hash(_value_of(self))


def _value_of(record: Record) -> tuple[Any, ...]:
    """The structure of a record and its leaves, arrays by their bits."""
    leaves, structure = jax.tree.flatten(record)
    return structure, tuple(_bits_of(leaf) for leaf in leaves)


def _bits_of(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        return leaf
    values = np.asarray(leaf)
    return str(values.dtype), values.shape, values.tobytes()
