"""Pictures of how training depends on (β, γ) along curves through the region of bounded updates.

Colours are those of Okabe and Ito, told apart by colour-blind readers; curves also differ in their markers.
"""

from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Real
from matplotlib.axes import Axes

from adamflow.plotting.arguments import check_data, check_labels
from adamflow.plotting.colours import LINES, MARKERS

Row: TypeAlias = Real[np.ndarray, "points"]


def against(
    ax: Axes,
    x: Row,
    table: Float[np.ndarray, "points seeds"],
    *,
    label: str,
    place: int = 0,
    line: str = "-",
) -> Axes:
    """A number at each point of a curve: the mean over seeds as a line, from the least to the largest as a band.

    Args:
        ax: where to draw.
        x: the horizontal place of each point.
        table: the number by point and seed; not finite where a run failed, which leaves a gap.
        label: of the curve.
        place: which colour and marker.
        line: the style of the line; markers are hollow unless it is solid.
    """
    x, table = check_data({"x": (x, "points"), "table": (table, "points seeds")})
    shown = np.where(np.isfinite(table), table, np.nan)
    order = np.argsort(x)
    mean, low, high = shown.mean(axis=1)[order], shown.min(axis=1)[order], shown.max(axis=1)[order]
    ax.fill_between(x[order], low, high, color=LINES[place], alpha=0.15, linewidth=0)
    style = {"markersize": 3.5, "linewidth": 1, "markerfacecolor": LINES[place] if line == "-" else "white"}
    ax.plot(x[order], mean, MARKERS[place] + line, color=LINES[place], label=label, **style)
    return ax


def border(ax: Axes) -> Axes:
    """A dotted line where C = 0, with the regions named on both sides."""
    ax.axvline(0, color="black", linestyle=":", linewidth=1)
    for side, name in (("left", "B₊"), ("right", "B₋")):
        ax.text(0, 0.02, f" {name} ", transform=ax.get_xaxis_transform(), ha=side, va="bottom", fontsize=9)
    return ax


def correlations(
    ax: Axes,
    names: list[str],
    values: Row,
    low: Row,
    high: Row,
    *,
    place: int = 0,
    offset: float = 0.0,
    label: str = "",
) -> Axes:
    """Rank correlations with their intervals, one below the other, and a line at 0, no relation.

    Args:
        ax: where to draw.
        names: of the rows, from the top.
        values: ρ of each.
        low, high: the ends of the intervals.
        place: which colour and marker.
        offset: by how much the rows are shifted down, to put several sets into one picture.
        label: of the set.
    """
    values, low, high = check_data({"values": (values, "rows"), "low": (low, "rows"), "high": (high, "rows")})
    check_labels("names", names, len(values), "rows")
    heights = -np.arange(len(names)) - offset
    ax.hlines(heights, low, high, color=LINES[place], linewidth=1.5)
    ax.plot(values, heights, MARKERS[place], color=LINES[place], markersize=5, label=label)
    ax.axvline(0, color="black", linestyle=":", linewidth=1)
    ax.set_yticks(-np.arange(len(names)), names)
    ax.set_xlim(-1.05, 1.05)
    ax.set_xlabel("Spearman's ρ")
    return ax
