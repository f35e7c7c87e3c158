"""Pictures of the Adam family: paths of iterates and flows, edges, and how runs differ in what they learn."""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Real
from matplotlib.axes import Axes

from adamflow.plotting.arguments import check_axes, check_data, check_rows
from adamflow.plotting.colours import LINES, MARKERS

Row: TypeAlias = Real[np.ndarray, " points"]


def paths(
    ax: Axes,
    iterates: Float[np.ndarray, "iterations 2"],
    flow: Float[np.ndarray, "times 2"],
    *,
    title: str,
) -> Axes:
    """Iterates as points and a flow as a line in the plane of two parameters, with the start and the minimum at 0.

    Args:
        ax: where to draw.
        iterates: both parameters at each iteration.
        flow: both parameters at each saved time.
        title: the name of the optimizer.
    """
    check_axes(ax)
    points, line = check_data({"iterates": (iterates, "iterations plane"), "flow": (flow, "times plane")})
    ax.axhline(0, color="black", linewidth=0.5)
    ax.axvline(0, color="black", linewidth=0.5)
    ax.plot(line[:, 0], line[:, 1], color=LINES[1], linewidth=1.2)
    ax.plot(points[:, 0], points[:, 1], ".", color=LINES[0], markersize=2.5)
    ax.plot(*points[0], "o", color="black", markersize=3)
    ax.set_title(title, fontsize=8)
    ax.tick_params(labelbottom=False, labelleft=False, length=0)
    return ax


def edges(ax: Axes, gammas: Row, curves: Mapping[str, Float[np.ndarray, " points"]]) -> Axes:
    """ηs at the edge of stability against γ, a line for each optimizer; where there is no edge there is no line.

    Args:
        ax: where to draw.
        gammas: γ, rising.
        curves: by the name of the optimizer, the edge at each γ.
    """
    check_axes(ax)
    rows = check_rows("curves", curves, "points", {"gammas": (gammas, "points")})
    for place, (name, row) in enumerate(rows.items()):
        shown = np.where(np.isfinite(row), row, np.nan)
        marker = MARKERS[place % len(MARKERS)]
        colour = LINES[place % len(LINES)]
        ax.plot(gammas, shown, marker=marker, markevery=max(len(row) // 6, 1), markersize=3.5, color=colour, label=name)
    ax.set_yscale("log")
    ax.set_xlabel("γ")
    ax.set_ylabel("η s at the edge")
    ax.legend()
    return ax


def histories(
    ax: Axes,
    iterations: Row,
    rows: Mapping[str, Float[np.ndarray, " points"]],
    *,
    label: str,
) -> Axes:
    """A number along several runs, each with its colour and marker.

    Args:
        ax: where to draw.
        iterations: of the numbers.
        rows: by the name of the run, its numbers; NaN where there is none.
        label: of the vertical axis.
    """
    check_axes(ax)
    checked = check_rows("rows", rows, "points", {"iterations": (iterations, "points")})
    for place, (name, row) in enumerate(checked.items()):
        marker, colour = MARKERS[place % len(MARKERS)], LINES[place % len(LINES)]
        ax.plot(iterations, row, marker=marker, markersize=3.5, color=colour, label=name)
    ax.set_xlabel("iteration")
    ax.set_ylabel(label)
    ax.legend()
    return ax
