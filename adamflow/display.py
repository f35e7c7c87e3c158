"""How objects of this package show themselves: numbers as text, fields as text, and tables for Jupyter."""

import dataclasses
import html
from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import numpy as np

from adamflow.checks import is_concrete

#: Arrays of one axis are shown entry by entry up to this length.
_SHOWN_ENTRIES = 6


def value_text(value: Any) -> str:
    """A value in one line: a number as Python writes it, an array by its entries or its range.

    Args:
        value: anything. Values that jax is tracing are shown by their type, since they have no number yet.
    """
    if isinstance(value, jax.core.Tracer):
        return f"<traced {value.dtype}{list(value.shape) if value.shape else ''}>"
    if isinstance(value, jax.Array | np.ndarray | np.generic) and np.size(value):
        return _array_text(np.asarray(value))
    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        inside = ", ".join(map(value_text, value))
        if isinstance(value, list):
            return f"[{inside}]"
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if type(value) is dict:
        return f"{{{', '.join(f'{key!r}: {value_text(entry)}' for key, entry in value.items())}}}"
    return " ".join(repr(value).split())


def _array_text(array: np.ndarray) -> str:
    # In their own precision numbers are short: float32(.1) is .1, and as a Python float 0.10000000149011612.
    if array.ndim == 0:
        return str(array[()])
    if array.ndim == 1 and len(array) <= _SHOWN_ENTRIES:
        return f"[{', '.join(map(str, array))}]"
    shape = "×".join(map(str, array.shape))
    if array.dtype.kind not in "iuf":
        return f"<{shape} {array.dtype}>"
    low, high = array.min(), array.max()
    return f"<{shape} times {low}>" if low == high else f"<{shape} numbers from {low} to {high}>"


def changed_fields(module: Any) -> list[tuple[str, str]]:
    """The fields of a dataclass that differ from their default, by name, as text.

    Args:
        module: an instance of a dataclass, such as an `equinox.Module`.
    """
    pairs = []
    for field in dataclasses.fields(module):
        value = getattr(module, field.name, dataclasses.MISSING)
        if field.repr and value is not dataclasses.MISSING and not _is_default(value, field.default):
            pairs.append((field.name, value_text(value)))
    return pairs


def _is_default(value: Any, default: Any) -> bool:
    """Whether a value is the default of its field, where both are single values."""
    if default is dataclasses.MISSING or not is_concrete(value):
        return False
    if isinstance(value, jax.Array | np.ndarray):
        return value.ndim == 0 and isinstance(default, int | float) and float(value) == default
    return type(value) is type(default) and value == default


def fields_text(module: Any) -> str:
    """A module as the call that makes it: its class, with the fields that differ from their defaults."""
    inside = ", ".join(f"{name}={text}" for name, text in changed_fields(module))
    return f"{type(module).__name__}({inside})"


def html_table(title: str, rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """A table for Jupyter.

    Args:
        title: the text above it.
        rows: of texts, the first of each is its name.
        header: the names of the columns, or none.
    """
    lines = [f"<table><caption>{html.escape(title)}</caption>"]
    if header:
        lines.append("<tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in header) + "</tr>")
    for name, *values in rows:
        cells = "".join(f'<td style="text-align:left">{html.escape(value)}</td>' for value in values)
        lines.append(f'<tr><th style="text-align:left">{html.escape(name)}</th>{cells}</tr>')
    return "\n".join([*lines, "</table>"])
