"""Checks of what pictures are made of: shapes that agree, enough points to draw, and at least one finite number."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Real, Shaped

from adamflow.checks import check_range


def check_data(
    arrays: Mapping[str, tuple[Any, str]], *, least: int = 1, finite: bool = True
) -> list[Shaped[np.ndarray, "..."]]:
    """The arrays of a picture, or a `ValueError` that names the one which is empty, of another shape or not finite.

    Args:
        arrays: by the name of the argument, its value and the names of its axes, such as "runs times". Axes of one name
            must have one length; "times+1" is one longer than "times".
        least: how many entries each axis must have.
        finite: whether each array must hold a finite number.

    Returns:
        the arrays of NumPy, in the order given.

    Example:
        >>> from adamflow.plotting.arguments import check_data
        >>> [array.shape for array in check_data({"x": ([1, 2], "times"), "y": ([[3, 4]], "runs times")})]
        [(2,), (1, 2)]
    """
    lengths: dict[str, tuple[int, str]] = {}
    checked = []
    for name, (value, axes) in arrays.items():
        array = _numbers(name, value)
        axes = axes.split()
        if array.ndim != len(axes):
            raise ValueError(f"{name} must have {len(axes)} axes ({', '.join(axes)}), got shape {array.shape}")
        for axis, length in zip(axes, array.shape, strict=True):
            base, longer = axis.removesuffix("+1"), int(axis.endswith("+1"))
            if length < least + longer:
                raise ValueError(f"{name} must hold at least {least + longer} {base}, got shape {array.shape}")
            expected, first = lengths.setdefault(base, (length - longer, name))
            if length != expected + longer:
                raise ValueError(
                    f"{name} must hold {expected + longer} {base}, to fit {first}, got shape {array.shape}"
                )
        if finite and not np.isfinite(array).any():
            raise ValueError(f"{name} must hold a finite number, got none in shape {array.shape}: nothing can be drawn")
        checked.append(array)
    return checked


def check_rows(name: str, rows: Any, axes: str, arrays: Mapping[str, tuple[Any, str]]) -> dict[str, np.ndarray]:
    """A mapping of arrays with the same axes, at least one, checked with the arrays that they are drawn against."""
    named = {f"{name}[{key!r}]": (row, axes) for key, row in check_mapping(name, rows).items()}
    return dict(zip(rows, check_data({**arrays, **named})[len(arrays) :], strict=True))


def check_mapping(name: str, values: Any) -> Mapping[str, Any]:
    """The values by name, or a `ValueError` unless there is at least one."""
    if not isinstance(values, Mapping) or not values:
        raise ValueError(f"{name} must be a mapping with at least one entry, got {repr(values)[:60]}")
    return values


def check_labels(name: str, labels: Any, count: int, what: str) -> None:
    """Raise `ValueError` unless there is a text for each of the things drawn."""
    if isinstance(labels, str) or not isinstance(labels, Sequence) or not all(isinstance(text, str) for text in labels):
        raise ValueError(f"{name} must be a sequence of strings, got {repr(labels)[:60]}")
    if len(labels) != count:
        raise ValueError(f"{name} must name each of the {count} {what}, got {len(labels)}")


def check_rising(name: str, values: Real[np.ndarray, " entries"]) -> None:
    """Raise `ValueError` unless the values are finite and rise strictly."""
    if not (np.isfinite(values).all() and (np.diff(values) > 0).all()):
        raise ValueError(f"{name} must be finite and rise strictly, got {repr(values.tolist())[:60]}")


def check_cell_edges(edges: Mapping[str, np.ndarray], *, low_open: bool) -> None:
    """Raise `ValueError` unless the edges of the cells of a (β, γ) map rise strictly, from 0 on and below 1.

    Args:
        edges: by the name of the argument.
        low_open: whether 0 itself is excluded, as on logit axes.
    """
    for name, values in edges.items():
        check_range(name, values, 0.0, 1.0, low_open=low_open, high_open=True)
        check_rising(name, values)


def log_scale(ax: Any, *drawn: Any) -> None:
    """Make the vertical axis logarithmic, unless no number is positive, so that nothing would show."""
    if any(((np.asarray(values) > 0) & np.isfinite(values)).any() for values in drawn):
        ax.set_yscale("log", nonpositive="mask")


def check_axes(ax: Any) -> None:
    """Raise `ValueError` unless `ax` can be drawn on."""
    if not (hasattr(ax, "plot") and hasattr(ax, "figure")):
        raise ValueError(f"ax must be axes of matplotlib, as plt.subplots() makes them, got {type(ax).__name__}")


def _numbers(name: str, value: Any) -> Shaped[np.ndarray, "..."]:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must hold real numbers, got {type(value).__name__}") from None
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must hold real numbers, got {type(value).__name__} of {array.dtype}")
    return array
