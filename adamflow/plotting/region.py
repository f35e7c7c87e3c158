"""Pictures of the region of bounded updates: maps over (β, γ), growth rates along a curve, and single runs.

Colours are those of Okabe and Ito and the map viridis, told apart by colour-blind readers.
"""

from collections.abc import Sequence
from typing import TypeAlias

import matplotlib.patheffects as effects
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from adamflow.plotting.arguments import check_cell_edges, check_data, check_labels, log_scale
from adamflow.plotting.colours import BLACK, BLUE, GREEN, ORANGE, VERMILLION

Points: TypeAlias = Float[np.ndarray, "points"]

#: Where the axes of a map have ticks: the decays crowd at 1, so the axes are ln x/(1−x).
_DECAYS = (0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)


def largest_updates(
    ax: Axes,
    beta_edges: Float[np.ndarray, "column_edges"],
    gamma_edges: Float[np.ndarray, "row_edges"],
    largest: Float[np.ndarray, "columns rows"],
    diverged: Bool[np.ndarray, "columns rows"],
) -> Axes:
    """A map of the largest update of each run of a (β, γ) grid, on logit axes.

    Args:
        ax: where to draw; a colour bar is placed next to it.
        beta_edges, gamma_edges: the borders of the cells, rising, inside (0, 1).
        largest: the largest update of each cell's run, positive; coloured on a log scale.
        diverged: which runs ended early; their cells get a cross.
    """
    beta_edges, gamma_edges, largest, diverged = check_data(
        {
            "beta_edges": (beta_edges, "columns+1"),
            "gamma_edges": (gamma_edges, "rows+1"),
            "largest": (largest, "columns rows"),
            "diverged": (diverged, "columns rows"),
        }
    )
    check_cell_edges({"beta_edges": beta_edges, "gamma_edges": gamma_edges}, low_open=True)
    if not (np.isfinite(largest) & (largest > 0)).any():
        raise ValueError("largest must hold a positive finite number, for its logarithmic colours, got none")
    ax.set_xscale("logit")
    ax.set_yscale("logit")
    mesh = ax.pcolormesh(beta_edges, gamma_edges, largest.T, norm=LogNorm(), rasterized=True)
    columns, rows = np.nonzero(diverged)
    beta, gamma = (_logit_middles(edges) for edges in (beta_edges, gamma_edges))
    ax.plot(beta[columns], gamma[rows], "x", color=BLACK, markersize=3.5, markeredgewidth=0.7, label="diverged")
    for axis, edges in ((ax.xaxis, beta_edges), (ax.yaxis, gamma_edges)):
        shown = [decay for decay in _DECAYS if edges[0] <= decay <= edges[-1]]
        axis.set_major_locator(FixedLocator(shown))
        axis.set_major_formatter(FixedFormatter([f"{decay:g}" for decay in shown]))
        axis.set_minor_locator(NullLocator())
    ax.set_xlim(beta_edges[0], beta_edges[-1])
    ax.set_ylim(gamma_edges[0], gamma_edges[-1])
    ax.set_xlabel("β (second moment, b2)")
    ax.set_ylabel("γ (first moment, b1)")
    ax.grid(False)
    ax.figure.colorbar(mesh, ax=ax, label="max over n of ‖uₙ‖∞", pad=0.02)
    return ax


def borders(ax: Axes, gamma: Points, paper_beta: Points, discrete_beta: Points) -> Axes:
    """The borders of the regions of bounded updates, [GT]'s C = 0 and the discrete γ² = β, on a `largest_updates`.

    Args:
        ax: where to draw.
        gamma: γ along both borders.
        paper_beta: β on the border C(β, γ) = 0.
        discrete_beta: β on the border γ² = β.
    """
    gamma, paper_beta, discrete_beta = check_data(
        {"gamma": (gamma, "points"), "paper_beta": (paper_beta, "points"), "discrete_beta": (discrete_beta, "points")}
    )
    outline = [effects.Stroke(linewidth=3.5, foreground="black"), effects.Normal()]
    ax.plot(paper_beta, gamma, color="white", linewidth=2, path_effects=outline, label="C = 0 [GT]")
    outline = [effects.Stroke(linewidth=3.5, foreground="white"), effects.Normal()]
    ax.plot(discrete_beta, gamma, "--", color=VERMILLION, linewidth=2, path_effects=outline, label="γ² = β (discrete)")
    return ax


def slopes(
    ax: Axes,
    position: Points,
    measured: Float[np.ndarray, "... points"],
    paper: Points,
    discrete: Points,
    bound: Points,
) -> Axes:
    """Measured slopes of ln‖uₙ‖∞ against what theory predicts, one circle for each run.

    Args:
        ax: where to draw; its halves, B₋ (left of 0) and B₊, are shaded and named.
        position: where each run stands on the horizontal axis: C/2, rising or falling.
        measured: its slope per iteration, from each seed.
        paper: the rate of [GT], max(0, −C/2).
        discrete: the rate of the discrete bound, max(0, ln γ − ½ ln β).
        bound: the slope of the discrete bound itself at the same iterations, bias correction included.
    """
    if np.ndim(measured) > 1 and np.size(measured):
        measured = np.reshape(measured, (-1, np.shape(measured)[-1]))
    position, paper, discrete, bound, measured = check_data(
        {
            "position": (position, "points"),
            "paper": (paper, "points"),
            "discrete": (discrete, "points"),
            "bound": (bound, "points"),
            "measured": (np.atleast_2d(measured), "seeds points"),
        }
    )
    low, high = position.min(), position.max()
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"position must hold two different finite numbers, got {low!r} to {high!r}")
    margin = 0.04 * (high - low)
    ax.axvspan(low - margin, 0, color=ORANGE, alpha=0.15, linewidth=0)
    ax.axvspan(0, high + margin, color=BLUE, alpha=0.08, linewidth=0)
    ax.plot(position, paper, color=BLUE, label="max(0, −C/2) [GT]")
    ax.plot(position, discrete, "--", color=VERMILLION, label="max(0, ln γ − ½ ln β), discrete")
    ax.plot(position, bound, ":", color=GREEN, linewidth=2, label="slope of the attained bound ln Bₙ")
    places = np.broadcast_to(position, measured.shape)
    ax.plot(places.ravel(), measured.ravel(), "o", color=BLACK, markersize=4, markerfacecolor="none", label="measured")
    for x, align, name in ((low, "left", "B₋"), (high, "right", "B₊")):
        ax.text(x, 0.55, name, transform=ax.get_xaxis_transform(), ha=align, va="center", fontsize=12)
    ax.set_xlim(low - margin, high + margin)
    ax.set_xlabel("C/2")
    ax.set_ylabel("slope of ln‖uₙ‖∞ per iteration")
    ax.legend(loc="upper right")
    return ax


def histories(
    ax: Axes,
    iterations: Float[np.ndarray, "times"],
    log_updates: Float[np.ndarray, "runs times"],
    log_bounds: Float[np.ndarray, "runs times"],
    labels: Sequence[str],
) -> Axes:
    """The largest entry of the update over the iterations, each run with its bound dashed in the same colour.

    Args:
        ax: where to draw.
        iterations: n.
        log_updates: ln‖uₙ‖∞ by run; NaN where there is none.
        log_bounds: ln Bₙ by run.
        labels: one for each run.
    """
    iterations, log_updates, log_bounds = check_data(
        {
            "iterations": (iterations, "times"),
            "log_updates": (log_updates, "runs times"),
            "log_bounds": (log_bounds, "runs times"),
        }
    )
    check_labels("labels", labels, len(log_updates), "runs")
    colours = (BLUE, GREEN, ORANGE, VERMILLION, BLACK)
    with np.errstate(over="ignore"):
        updates, bounds = np.exp(log_updates), np.exp(log_bounds)
    log_scale(ax, updates, bounds)
    for index, (update, bound, label) in enumerate(zip(updates, bounds, labels, strict=True)):
        colour = colours[index % len(colours)]
        ax.plot(iterations, update, color=colour, label=label)
        ax.plot(iterations, bound, "--", color=colour, linewidth=1)
    ax.set_xlabel("iteration n")
    ax.set_ylabel("‖uₙ‖∞ (dashed: bound Bₙ)")
    ax.legend(loc="upper left")
    return ax


def _logit_middles(edges: np.ndarray) -> np.ndarray:
    """The middles of cells as a logit axis shows them."""
    odds = edges / (1 - edges)
    return 1 / (1 + 1 / np.sqrt(odds[:-1] * odds[1:]))
