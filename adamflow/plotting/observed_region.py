"""Pictures of an observed region of bounded updates: maps over (β, γ), and its share against the learning rate.

Maps have the axes −log₁₀(1−β) and −log₁₀(1−γ), since the decays crowd at 1. Colours are those of Okabe and Ito and the
map viridis, told apart by colour-blind readers.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import matplotlib.patheffects as effects
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm

from adamflow.checks import check_range
from adamflow.plotting.arguments import check_cell_edges, check_data, check_rising, check_rows
from adamflow.plotting.colours import LINES, MARKERS, VERMILLION, YELLOW
from adamflow.plotting.phase import lines_at

Points: TypeAlias = Float[np.ndarray, "points"]

_TICKS = (0.0, 0.9, 0.99, 0.999, 0.9999, 0.99999)


def map_of_updates(
    ax: Axes,
    beta_edges: Float[np.ndarray, "column_edges"],
    gamma_edges: Float[np.ndarray, "row_edges"],
    largest: Float[np.ndarray, "columns rows"],
    *,
    thresholds: Sequence[float],
    top: float,
) -> ScalarMappable:
    """The largest update by (β, γ), and the lines along which it is one of the thresholds.

    Args:
        ax: where to draw.
        beta_edges, gamma_edges: the borders of the cells, rising, in [0, 1).
        largest: the largest update of each cell, at least 1; coloured on a log scale from 1 to `top`.
        thresholds: rising, where an observed region ends: white lines with their value.
        top: the end of the colours.

    Returns:
        what a colour bar needs, so that several maps can share one; all else is in `ax`.
    """
    beta_edges, gamma_edges, largest = check_data(
        {
            "beta_edges": (beta_edges, "columns+1"),
            "gamma_edges": (gamma_edges, "rows+1"),
            "largest": (largest, "columns rows"),
        }
    )
    check_cell_edges({"beta_edges": beta_edges, "gamma_edges": gamma_edges}, low_open=False)
    levels, end = check_data({"thresholds": (thresholds, "lines"), "top": (top, "")})
    check_range("thresholds", levels, 0.0, np.inf, low_open=True, high_open=True)
    check_rising("thresholds", levels)
    check_range("top", end, 1.0, np.inf, low_open=True, high_open=True)
    x, y = (-np.log10(1 - edges) for edges in (beta_edges, gamma_edges))
    mesh = ax.pcolormesh(x, y, largest.T, norm=LogNorm(1, top), rasterized=True)
    middles = ((edges[1:] + edges[:-1]) / 2 for edges in (x, y))
    with np.errstate(divide="ignore", invalid="ignore"):
        heights, levels = np.log(largest.T), np.log(levels)
    line = lines_at(ax, next(middles), next(middles), heights, levels, colors="white", linewidths=1.3)
    if line is not None:
        ax.clabel(line, fmt=lambda level: f"{np.exp(level):g}", fontsize=8)
    for axis, edges in ((ax.xaxis, beta_edges), (ax.yaxis, gamma_edges)):
        shown = [decay for decay in _TICKS if decay <= edges[-1]]
        axis.set_ticks(-np.log10(1 - np.array(shown)), [f"{decay:g}".lstrip("0") or "0" for decay in shown])
    ax.set_xlabel("β, as −log₁₀(1−β)")
    ax.set_ylabel("γ, as −log₁₀(1−γ)")
    ax.grid(False)
    return mesh


def borders(ax: Axes, gamma: Points, paper_beta: Points, discrete_beta: Points) -> Axes:
    """The borders of the theory on a `map_of_updates`, with the regions named on both sides.

    Args:
        ax: where to draw.
        gamma: γ along both borders.
        paper_beta: β on the border C(β, γ) = 0 of [GT].
        discrete_beta: β on the border γ² = β of the discrete optimizer.
    """
    gamma, paper_beta, discrete_beta = check_data(
        {"gamma": (gamma, "points"), "paper_beta": (paper_beta, "points"), "discrete_beta": (discrete_beta, "points")}
    )
    y = -np.log10(1 - gamma)
    limits = ax.get_xlim(), ax.get_ylim()
    dark: Any = [effects.Stroke(linewidth=3, foreground="black"), effects.Normal()]
    ax.plot(-np.log10(1 - paper_beta), y, color=YELLOW, linewidth=1.5, path_effects=dark, label="C = 0 [GT]")
    light: Any = [effects.Stroke(linewidth=3, foreground="white"), effects.Normal()]
    ax.plot(-np.log10(1 - discrete_beta), y, "--", color=VERMILLION, path_effects=light, label="γ² = β")
    for x, height, name in ((0.12, 0.88, "B₋"), (0.86, 0.66, "B₊")):
        text = ax.text(x, height, name, transform=ax.transAxes, fontsize=13, color="white", ha="center", va="center")
        text.set_path_effects(dark)
    ax.set(xlim=limits[0], ylim=limits[1])
    return ax


def shares(ax: Axes, learning_rates: Points, rows: Mapping[str, Points], theory: float) -> Axes:
    """The share of the map in which updates stay bounded, against the learning rate.

    Args:
        ax: where to draw; its horizontal axis becomes logarithmic, with small learning rates at the right.
        learning_rates: η.
        rows: by name the shares at each η.
        theory: the share of the map where γ² < β, a dashed line.
    """
    rows = _against_learning_rates(ax, learning_rates, rows)
    ax.axhline(theory, color="black", linestyle="--", linewidth=1, label="γ² < β")
    ax.set_ylim(min(theory, *(np.nanmin(row) for row in rows.values())) - 0.2, 1.02)
    ax.legend(ncols=3, loc="lower center", columnspacing=1, handlelength=1.5)
    ax.set_ylabel("share of runs with bounded updates")
    return ax


def chances(ax: Axes, learning_rates: Points, rows: Mapping[str, Points]) -> Axes:
    """The chance that a run outside of a border has a larger update than one inside, against the learning rate.

    Args:
        ax: where to draw; its horizontal axis becomes logarithmic, with small learning rates at the right.
        learning_rates: η.
        rows: by the name of the border the chances at each η; ½, no relation, is a dashed line.
    """
    _against_learning_rates(ax, learning_rates, rows)
    ax.axhline(0.5, color="black", linestyle="--", linewidth=1, label="no relation")
    ax.set_ylim(top=1.02)
    ax.legend(loc="lower right", fontsize=7)
    ax.set_ylabel("P(update outside > update inside)")
    return ax


def _against_learning_rates(ax: Axes, learning_rates: Points, rows: Mapping[str, Points]) -> dict[str, Points]:
    """Draw the rows and return them; they are checked first."""
    (learning_rates,) = check_data({"learning_rates": (learning_rates, "points")})
    check_range("learning_rates", learning_rates, 0.0, np.inf, low_open=True, high_open=True)
    checked = check_rows("rows", rows, "points", {"learning_rates": (learning_rates, "points")})
    ax.set_xscale("log")
    styles = itertools.cycle(zip(LINES, MARKERS, strict=True))
    for (name, row), (colour, marker) in zip(checked.items(), styles, strict=False):
        ax.plot(learning_rates, row, marker + "-", color=colour, markersize=4, linewidth=1.2, label=name)
    ax.invert_xaxis()
    ax.set_xlabel("learning rate η (falls to the right)")
    return checked
