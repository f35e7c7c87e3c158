"""Pictures of runs at the edge of stability: sharpness against the edges, the collapse onto one, and where runs hover.

Runs keep their colour from one picture to the next. The colours are those of Okabe and Ito, told apart by colour-blind
readers; `hovering` names them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from jax import Array
from jaxtyping import Float, Real
from matplotlib.axes import Axes

from adamflow.checks import check_range
from adamflow.plotting.arguments import check_data, check_labels, log_scale
from adamflow.plotting.colours import STYLES, VERMILLION, line_styles
from adamflow.plotting.new_axes import axes_or_new

Table: TypeAlias = Float[np.ndarray, "runs times"]
Runs: TypeAlias = Float[np.ndarray, "runs"]
Times: TypeAlias = Float[np.ndarray, "times"]
#: A number for each saved iteration.
Values: TypeAlias = Sequence[float | int] | Real[np.ndarray | Array, "saved"]

_EDGE: Any = dict(color="0.2", linestyle="--", linewidth=1, zorder=3)


def sharpness_of_runs(ax: Axes, iterations: Times, sharpness: Table, edges: Runs) -> Axes:
    """The learning rate times the preconditioned sharpness of several runs, with a dashed line for each edge.

    Args:
        ax: where to draw; its vertical axis becomes logarithmic.
        iterations: n.
        sharpness: η s of each run, positive.
        edges: the η s at which the step of each run turns unstable; a line carries its value, equal ones share it.
            Close ones share the text.
    """
    iterations, sharpness, edges = check_data(
        {"iterations": (iterations, "times"), "sharpness": (sharpness, "runs times"), "edges": (edges, "runs")}
    )
    check_range("edges", edges, 0.0, np.inf, low_open=True, high_open=True)
    _curves(ax, iterations, sharpness)
    log_scale(ax, sharpness)
    lines = np.unique(edges)
    for edge in lines:
        ax.axhline(edge, **_EDGE)
    # Values of edges within a line's height of each other would overlap: they share a text.
    for group in np.split(lines, np.flatnonzero(lines[1:] > 1.2 * lines[:-1]) + 1):
        place: Any = dict(xycoords=ax.get_yaxis_transform(), xytext=(3, 0), textcoords="offset points")
        text = "–".join(dict.fromkeys(f"{edge:.3g}" for edge in group[[0, -1]]))
        ax.annotate(text, (1, np.sqrt(group[0] * group[-1])), va="center", fontsize=8, annotation_clip=False, **place)
    ax.set_ylabel("preconditioned sharpness, η s")
    return ax


def sharpness_of_run(
    iterations: Values,
    values: Values,
    edge: float | Mapping[str, float],
    *,
    label: str = "along the run",
    ax: Axes | None = None,
) -> Axes:
    """The preconditioned sharpness along a run, with the edge of stability, on a logarithmic axis.

    Args:
        iterations: n at each value.
        values: the learning rate times the sharpness, η s, which has no unit; positive ones show.
        edge: the η s at which a step or a flow turns unstable, or several by name.
        label: what the legend calls the values.
        ax: where to draw; by default axes of a new figure. With a backend without windows, such as Agg, that figure
            takes the place of the one before in pyplot's list, whose axes stay usable.

    Returns:
        the axes.

    Raises:
        ValueError: if there is not one value for each iteration, or an edge is not positive.

    Example:
        >>> import adamflow as af
        >>> ax = af.plotting.edge.sharpness_of_run([0, 10, 20], [3.0, 30.0, 37.0], af.analysis.adaptive_edge(0.9))
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['along the run', 'edge of stability, 38']
    """
    (iterations,), (values,) = (
        check_data({name: (given, "saved")}) for name, given in (("iterations", iterations), ("values", values))
    )
    if iterations.shape != values.shape:
        raise ValueError(f"values must hold one number for each iteration, got {values.shape} for {iterations.shape}")
    edges = dict(edge) if isinstance(edge, Mapping) else {"edge of stability": edge}
    for name, height in edges.items():
        (number,) = check_data({name: (height, "")}, finite=False)
        if not 0 < number < np.inf:
            raise ValueError(f"{name} must be positive, got {height!r}; it is a learning rate times a sharpness")
    ax = axes_or_new(ax)
    log_scale(ax, values)
    ax.plot(iterations, values, label=label)
    for index, (name, height) in enumerate(edges.items()):
        style = STYLES[1:][index % len(STYLES[1:])]
        ax.axhline(height, linestyle=style, color="black", linewidth=1, label=f"{name}, {height:.3g}")
    ax.set_xlabel("iteration n")
    ax.set_ylabel("preconditioned sharpness, η s")
    ax.legend()
    return ax


def sharpness_over_edge(ax: Axes, iterations: Times, ratios: Table) -> Axes:
    """η s of several runs, each divided by its own edge, on a logarithmic axis; the unstable side is shaded.

    Args:
        ax: where to draw.
        iterations: n.
        ratios: η s over the edge, positive.
    """
    iterations, ratios = check_data({"iterations": (iterations, "times"), "ratios": (ratios, "runs times")})
    _curves(ax, iterations, ratios)
    log_scale(ax, ratios)
    later = ratios[:, 1:]
    top = 2.5 * max(later[np.isfinite(later)].max(initial=1.0), 1.0)
    ax.axhspan(1, top, color=VERMILLION, alpha=0.08, linewidth=0)
    ax.axhline(1, **_EDGE)
    ax.set_ylim(top=top)
    for height, side, name in ((0.985, "top", "unstable"), (0.02, "bottom", "stable")):
        ax.text(0.985, height, name, transform=ax.transAxes, ha="right", va=side, color="0.3", style="italic")
    ax.set_ylabel("η s / edge")
    return ax


def losses(ax: Axes, iterations: Times, loss: Table) -> Axes:
    """The loss of several runs over the iterations, on a logarithmic axis.

    Args:
        ax: where to draw.
        iterations: n.
        loss: of each run, positive.
    """
    iterations, loss = check_data({"iterations": (iterations, "times"), "loss": (loss, "runs times")})
    _curves(ax, iterations, loss)
    log_scale(ax, loss)
    ax.set_ylabel("loss")
    return ax


def updates(ax: Axes, iterations: Times, largest: Table, bound: Times, labels: Sequence[str]) -> Axes:
    """The largest entry of the update of several runs over the iterations, and the bound on it, dashed.

    Args:
        ax: where to draw.
        iterations: n.
        largest: ‖uₙ‖∞ of each run.
        bound: B_n.
        labels: the names of the runs.
    """
    iterations, largest, bound = check_data(
        {"iterations": (iterations, "times"), "largest": (largest, "runs times"), "bound": (bound, "times")}
    )
    check_labels("labels", labels, len(largest), "runs")
    _curves(ax, iterations, largest)
    for line, label in zip(ax.lines, labels, strict=False):
        line.set_label(label)
    ax.plot(iterations, bound, label="bound", **_EDGE)
    ax.set_ylabel("largest entry of the update")
    ax.legend()
    return ax


def hovering(
    ax: Axes,
    ratios: Float[np.ndarray, "runs seeds times"],
    labels: Sequence[str],
    colours: Sequence[str] | None = None,
) -> Axes:
    """Where η s over the edge stays in the last part of runs: the central 90% (line), middle half (bar) and medians.

    Args:
        ax: where to draw; the runs stand below each other, in their colours.
        ratios: η s over the edge. A circle marks the median of each seed, bars are of all seeds, and the number is the
            median of all.
        labels: the names of the runs.
        colours: of the runs; by default those in which the other functions draw them.
    """
    (ratios,) = check_data({"ratios": (ratios, "runs seeds times")})
    check_labels("labels", labels, len(ratios), "runs")
    if colours is None:
        colours = [style["color"] for style in line_styles(len(ratios))]
    check_labels("colours", colours, len(ratios), "runs")
    if not np.isfinite(ratios).all():
        raise ValueError("ratios must be finite, since others have no quantiles; leave failed runs out")
    for place, (values, colour) in enumerate(zip(ratios, colours, strict=True)):
        low, quarter, middle, three, high = np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95))
        ax.plot((low, high), (place, place), color=colour, linewidth=1.5)
        ax.plot((quarter, three), (place, place), color=colour, linewidth=6, solid_capstyle="butt")
        medians = np.median(values, axis=-1)
        ax.plot(medians, np.full(medians.shape, place), "o", color="white", markeredgecolor=colour, markersize=4)
        beside: Any = dict(xytext=(6, 0), textcoords="offset points", ha="left", va="center", fontsize=8)
        ax.annotate(f"{middle:.2f}", (max(high, *medians), place), zorder=4, **beside)
    ax.axvline(1, **_EDGE)
    ax.set_yticks(range(len(labels)), labels)
    for tick, colour in zip(ax.get_yticklabels(), colours, strict=True):
        # Grey, which is for what other panels leave out, is too pale for letters.
        tick.set_color(colour if colour.startswith("#") else "0.35")
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.set_xlim(left=-0.05)
    ax.set_xlabel("η s / edge")
    return ax


def _curves(ax: Axes, iterations: Times, table: Table) -> None:
    for values, style in zip(table, line_styles(len(table)), strict=True):
        ax.plot(iterations, values, linewidth=0.9, **style)
    if len(iterations) > 1:
        ax.set_xlim(iterations[0], iterations[-1])
    ax.set_xlabel("iteration n")
