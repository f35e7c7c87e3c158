"""Pictures of k-Adam: updates compared with the bound of the last stage, and how well each k and strategy trains.

Colours are those of Okabe and Ito, told apart by colour-blind readers; strategies also differ in their markers.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Real
from matplotlib import colormaps
from matplotlib.axes import Axes

from adamflow.plotting.arguments import check_data, check_labels, check_rows, log_scale
from adamflow.plotting.colours import LINES, MARKERS

Row: TypeAlias = Real[np.ndarray, "points"]


def paths(
    ax: Axes,
    iterations: Row,
    discrete: Float[np.ndarray, "points parameters"],
    continuous: Float[np.ndarray, "points parameters"],
) -> Axes:
    """Single parameters along the iterates, as circles, and along a flow, as lines.

    Args:
        ax: where to draw.
        iterations: n.
        discrete, continuous: how far each parameter has moved.
    """
    iterations, discrete, continuous = check_data(
        {
            "iterations": (iterations, "points"),
            "discrete": (discrete, "points parameters"),
            "continuous": (continuous, "points parameters"),
        }
    )
    colours = colormaps["viridis"](np.linspace(0, 0.9, discrete.shape[1]))
    for circles, line, colour in zip(discrete.T, continuous.T, colours, strict=True):
        ax.plot(iterations, circles, "o", color=colour, markersize=3, markerfacecolor="white", markeredgewidth=0.8)
        ax.plot(iterations, line, color=colour, linewidth=1.1)
    ax.plot([], [], "o", color="0.3", markersize=3, markerfacecolor="white", label="iterates")
    ax.plot([], [], color="0.3", linewidth=1.1, label="flow")
    ax.set_xlabel("iteration n")
    ax.set_ylabel("change of parameters, θ(n) − θ(0)")
    ax.legend()
    return ax


def updates_and_bounds(
    ax: Axes,
    iterations: Row,
    updates: Float[np.ndarray, "runs points"],
    bounds: Float[np.ndarray, "runs points"],
    labels: Sequence[str],
) -> Axes:
    """‖uₙ‖∞ along some runs, as lines, and above each its bound, dashed in the same colour.

    Args:
        ax: where to draw; its vertical axis becomes logarithmic.
        iterations: n.
        updates: ‖uₙ‖∞ of each run.
        bounds: the bound at each n.
        labels: of the runs.
    """
    iterations, updates, bounds = check_data(
        {
            "iterations": (iterations, "points"),
            "updates": (updates, "runs points"),
            "bounds": (bounds, "runs points"),
        }
    )
    check_labels("labels", labels, len(updates), "runs")
    for run, bound, label, colour in zip(updates, bounds, labels, itertools.cycle(LINES), strict=False):
        ax.plot(iterations, run, color=colour, linewidth=1, label=label)
        ax.plot(iterations, bound, "--", color=colour, linewidth=1)
    ax.plot([], [], "--", color="0.3", label="bound of the last stage")
    log_scale(ax, updates, bounds)
    ax.set_xlabel("iteration n")
    ax.set_ylabel("largest update ‖uₙ‖∞")
    ax.legend()
    return ax


def by_stages(
    ax: Axes,
    stages: Row,
    rows: Mapping[str, Row],
    intervals: Mapping[str, Float[np.ndarray, "ends points"]] | None = None,
    references: Mapping[str, float] | None = None,
) -> Axes:
    """A number for each count of stages k, one line for each strategy; a legend is left to the caller.

    Args:
        ax: where to draw.
        stages: k, rising.
        rows: by strategy the number at each k; NaN where there is none.
        intervals: by strategy the lower and the upper ends of its interval.
        references: numbers to compare with, by name: dotted lines across.
    """
    rows = check_rows("rows", rows, "points", {"stages": (stages, "points")})
    if intervals is not None:
        if set(intervals) != set(rows):
            raise ValueError(f"intervals must be of {', '.join(rows)}, as rows, got {', '.join(intervals)}")
        check_rows("intervals", intervals, "ends points", {"stages": (stages, "points")})
    shift = 0.06 * (np.arange(len(rows)) - (len(rows) - 1) / 2)
    styles = itertools.cycle(zip(LINES, MARKERS, strict=True))
    for (name, row), (colour, marker), offset in zip(rows.items(), styles, shift, strict=False):
        ax.plot(stages + offset, row, marker + "-", color=colour, markersize=4, linewidth=1.1, label=name)
        if intervals is not None:
            ax.vlines(stages + offset, *intervals[name], color=colour, linewidth=1, alpha=0.7)
    for (name, value), dashes in zip((references or {}).items(), itertools.cycle((":", "-.", "--")), strict=False):
        ax.axhline(value, color="black", linestyle=dashes, linewidth=1, label=name)
    ax.set_xticks(stages)
    ax.set_xlabel("stages k")
    return ax
