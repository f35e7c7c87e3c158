"""Pictures of flows past the edge of stability: how far they are from the mean of the iterates, and what they show.

Cases keep their colour from one picture to the next; flows have a line style each.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from adamflow.plotting.arguments import check_data, check_labels, log_scale
from adamflow.plotting.colours import LINES

Times = Float[np.ndarray, "times"]
#: One for each kind of flow, in the order in which they are given.
_STYLES: Any = ("-", "--", ":", "-.", (0, (4, 1, 1, 1, 1, 1)))
#: What `beside_iterates` draws, and what its axis is called.
_NAMES = {"amplitude": "‖δ‖", "loss": "mean loss"}


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
    iterations, errors = check_data({"iterations": (iterations, "times"), "errors": (errors, "cases flows times")})
    check_labels("flows", flows, errors.shape[1], "flows")
    check_labels("labels", labels, errors.shape[0], "cases")
    if len(flows) > len(_STYLES):
        raise ValueError(f"flows must be at most {len(_STYLES)}, the number of line styles, got {len(flows)}")
    present = ~np.all(np.isnan(errors), axis=(0, 2))
    for place, rows in enumerate(errors):
        for style, values, shown in zip(_STYLES, rows, present, strict=False):
            known = np.flatnonzero(~np.isnan(values))
            if not shown or not known.size:
                continue
            ax.plot(iterations, values, style, color=LINES[place % len(LINES)], linewidth=1.8 if style == "-" else 1.0)
            if known[-1] + 1 < len(iterations):
                ax.plot(iterations[known[-1]], values[known[-1]], "x", color=LINES[place % len(LINES)], markersize=5)
    colours = [Line2D([], [], color=LINES[place % len(LINES)], label=label) for place, label in enumerate(labels)]
    styles = [
        Line2D([], [], color="0.3", linestyle=style, label=name)
        for style, name, shown in zip(_STYLES, flows, present, strict=False)
        if shown
    ]
    log_scale(ax, errors)
    largest = errors[np.isfinite(errors)].max()
    smallest = errors[errors > 0].min(initial=np.inf)
    if largest > 0:
        # Room for the legends, above and below the lines.
        ax.set_ylim(smallest / 2 ** len(labels), 4 * largest)
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
    _check_series(iterations, shown, ("sharpness",))
    if len(edges) != len(shown):
        raise ValueError(f"edges must hold one for each of the {len(shown)} cases, got {len(edges)}")
    for place, (series, edge) in enumerate(zip(shown, edges, strict=True)):
        ax.plot(iterations, np.asarray(series["sharpness"]) / edge, color=LINES[place % len(LINES)], linewidth=1)
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
    if name not in _NAMES:
        raise ValueError(f"name must be one of {', '.join(map(repr, _NAMES))}, got {name!r}")
    _check_series(iterations, shown, (name, f"iterates_{name}"))
    medians = [-np.nanmedian(series[f"iterates_{name}"]) for series in shown]
    places = np.sort(np.argsort(medians)[:largest])
    lowest = min(np.nanmin(series[f"iterates_{name}"]) for series in shown)
    for place, series in zip(places, [shown[place] for place in places], strict=True):
        ax.plot(iterations, series[name], color=LINES[place % len(LINES)], linewidth=1)
        ax.plot(iterations, series[f"iterates_{name}"], ":", color=LINES[place % len(LINES)], linewidth=1.5)
    ax.plot([], [], color="0.3", label="TwoBranchFlow")
    ax.plot([], [], ":", color="0.3", label="iterates")
    log_scale(ax, *(series[key] for series in shown for key in (name, f"iterates_{name}")))
    if lowest > 0:
        ax.set_ylim(bottom=lowest / 3)
    ax.set(xlabel="iteration n", ylabel=_NAMES[name])
    ax.legend(fontsize=7)
    return ax


def _check_series(iterations: Times, shown: Sequence[Mapping[str, Any]], names: tuple[str, ...]) -> None:
    """Raise `ValueError` unless every case has the series, one number for each iteration."""
    if not len(shown):
        raise ValueError("shown must hold at least one case, got none")
    for place, series in enumerate(shown):
        missing = [name for name in names if name not in series]
        if missing:
            raise ValueError(f"shown[{place}] must hold {missing[0]!r}, got {', '.join(map(repr, series))}")
        named = {f"shown[{place}][{name!r}]": (series[name], "times") for name in names}
        check_data({"iterations": (iterations, "times"), **named})
