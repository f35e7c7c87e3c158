"""Pictures of flows past the edge of stability: how far they are from the mean of the iterates, and what they show.

Cases keep their colour from one picture to the next; flows have a line style each.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

Times = Float[np.ndarray, "times"]
#: One for each kind of flow, in the order in which they are given.
_STYLES = ("-", "--", ":", "-.", (0, (4, 1, 1, 1, 1, 1)))


def distances(
    ax: Axes, iterations: Times, errors: Float[np.ndarray, "cases flows times"], flows: Sequence[str],
    labels: Sequence[str],
) -> Axes:  # fmt: skip
    """Distances of several flows, a line style for each, in several cases, a colour for each, on a logarithmic axis.

    Args:
        ax: where to draw.
        iterations: n.
        errors: in units of the length of the path; NaN where there is no flow, or it has ended: a cross marks its end.
        flows: names of the flows, at most five.
        labels: names of the cases.
    """
    present = ~np.all(np.isnan(errors), axis=(0, 2))
    for place, rows in enumerate(errors):
        for style, values, shown in zip(_STYLES, rows, present, strict=False):
            known = np.flatnonzero(~np.isnan(values))
            if not shown or not known.size:
                continue
            ax.plot(iterations, values, style, color=f"C{place}", linewidth=1.8 if style == "-" else 1.0)
            if known[-1] + 1 < len(iterations):
                ax.plot(iterations[known[-1]], values[known[-1]], "x", color=f"C{place}", markersize=5)
    colours = [Line2D([], [], color=f"C{place}", label=label) for place, label in enumerate(labels)]
    styles = [
        Line2D([], [], color="0.3", linestyle=style, label=name)
        for style, name, shown in zip(_STYLES, flows, present, strict=False)
        if shown
    ]
    ax.set_yscale("log")
    ax.set_ylim(top=4 * np.nanmax(errors))
    ax.add_artist(ax.legend(handles=colours, loc="lower right", fontsize=6.5))
    ax.legend(handles=styles, loc="upper left", fontsize=6.5, ncols=4)
    ax.set(xlabel="iteration n", ylabel="distance from the mean / length of its path")
    return ax


def sharpness(
    ax: Axes, iterations: Times, shown: Sequence[Mapping[str, Any]], edges: Float[np.ndarray, "cases"]
) -> Axes:
    """η s over the edge of each case, with a line at 1.

    Args:
        ax: where to draw.
        iterations: n.
        shown: by case, a mapping whose "sharpness" is η s.
        edges: of each case.
    """
    for place, (series, edge) in enumerate(zip(shown, edges, strict=True)):
        ax.plot(iterations, np.asarray(series["sharpness"]) / edge, color=f"C{place}", linewidth=1)
    ax.axhline(1, color="0.2", linestyle="--", linewidth=1)
    ax.set(xlabel="iteration n", ylabel="η s / edge", ylim=(0, None))
    return ax


def beside_iterates(
    ax: Axes, iterations: Times, shown: Sequence[Mapping[str, Any]], name: str, largest: int | None = None
) -> Axes:
    """A series of a flow in each case, and dotted that of the iterates, on a logarithmic axis.

    Args:
        ax: where to draw.
        iterations: n.
        shown: by case, a mapping with `name` and "iterates_" + `name`.
        name: "amplitude" or "loss".
        largest: how many cases are drawn, those with the largest medians; `None` for all.
    """
    medians = [-np.median(series[f"iterates_{name}"]) for series in shown]
    places = np.sort(np.argsort(medians)[:largest])
    lowest = min(np.nanmin(series[f"iterates_{name}"]) for series in shown)
    for place, series in zip(places, [shown[place] for place in places], strict=True):
        ax.plot(iterations, series[name], color=f"C{place}", linewidth=1)
        ax.plot(iterations, series[f"iterates_{name}"], ":", color=f"C{place}", linewidth=1.5)
    ax.plot([], [], color="0.3", label="EdgeFlow")
    ax.plot([], [], ":", color="0.3", label="iterates")
    ax.set_yscale("log")
    ax.set_ylim(bottom=lowest / 3)
    ax.set(xlabel="iteration n", ylabel={"amplitude": "‖δ‖", "loss": "mean loss"}[name])
    ax.legend(fontsize=7)
    return ax
