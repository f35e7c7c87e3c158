"""Pictures of minibatch noise: a number along runs, and against the batch size."""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Real
from matplotlib.axes import Axes

from adamflow.plotting.arguments import check_axes, check_data, check_mapping, check_rows
from adamflow.plotting.colours import LINES, MARKERS

Row: TypeAlias = Real[np.ndarray, " points"]


def along_runs(
    ax: Axes, iterations: Row, rows: Mapping[str, Float[np.ndarray, " points"]], *, label: str, edge: float = 1.0
) -> Axes:
    """A number along several runs, on a logarithmic axis, with a dashed line where the edge is.

    Args:
        ax: where to draw.
        iterations: of the numbers.
        rows: by the name of the run, its numbers; NaN or infinite where there is none.
        label: of the vertical axis.
        edge: where the dashed line is.
    """
    check_axes(ax)
    checked = check_rows("rows", rows, "points", {"iterations": (iterations, "points")})
    for place, (name, row) in enumerate(checked.items()):
        shown = np.where(np.isfinite(row) & (row > 0), row, np.nan)
        marker, colour = MARKERS[place % len(MARKERS)], LINES[place % len(LINES)]
        ax.plot(iterations, shown, marker=marker, markersize=3.5, color=colour, label=name)
    _finish(ax, "iteration", label, edge)
    return ax


def against_batch(
    ax: Axes, rows: Mapping[str, tuple[Row, Float[np.ndarray, " points"]]], *, label: str, edge: float = 1.0
) -> Axes:
    """A number against the batch size for several groups of runs, both axes logarithmic, with a line at the edge.

    Args:
        ax: where to draw.
        rows: by the name of the group, batch sizes and numbers; NaN or infinite where there is none.
        label: of the vertical axis.
        edge: where the dashed line is.
    """
    check_axes(ax)
    for place, (name, (sizes, row)) in enumerate(check_mapping("rows", rows).items()):
        sizes, row = check_data({f"rows[{name!r}] sizes": (sizes, "points"), f"rows[{name!r}]": (row, "points")})
        shown = np.where(np.isfinite(row) & (row > 0), row, np.nan)
        marker, colour = MARKERS[place % len(MARKERS)], LINES[place % len(LINES)]
        ax.plot(sizes, shown, marker=marker, markersize=4, linewidth=1, color=colour, label=name)
    ax.set_xscale("log", base=2)
    _finish(ax, "batch size", label, edge)
    return ax


def _finish(ax: Axes, horizontal: str, label: str, edge: float) -> None:
    ax.axhline(edge, color="black", linestyle="--", linewidth=1)
    ax.set_yscale("log")
    ax.set_xlabel(horizontal)
    ax.set_ylabel(label)
    ax.legend(fontsize=6)
