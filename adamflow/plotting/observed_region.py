"""Pictures of an observed region of bounded updates: maps over (β, γ), and its share against the learning rate.

Maps have the axes −log₁₀(1−β) and −log₁₀(1−γ), since the decays crowd at 1. Colours are those of Okabe and Ito and the
map viridis, told apart by colour-blind readers.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import matplotlib.patheffects as effects
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm

Points: TypeAlias = Float[np.ndarray, "points"]

_BLUE, _VERMILLION, _GREEN, _ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
_TICKS = (0.0, 0.9, 0.99, 0.999, 0.9999, 0.99999)


def map_of_updates(
    ax: Axes,
    beta_edges: Float[np.ndarray, "column_edges"],
    gamma_edges: Float[np.ndarray, "row_edges"],
    largest: Float[np.ndarray, "columns rows"],
    *,
    threshold: float,
    top: float,
) -> ScalarMappable:
    """The largest update by (β, γ), and the line along which it is the threshold.

    Args:
        ax: where to draw.
        beta_edges, gamma_edges: the borders of the cells, rising, in [0, 1).
        largest: the largest update of each cell, at least 1; coloured on a log scale from 1 to `top`.
        threshold: where the observed region ends: a white line.
        top: the end of the colours.

    Returns:
        what a colour bar needs, so that several maps can share one; all else is in `ax`.
    """
    x, y = (-np.log10(1 - edges) for edges in (beta_edges, gamma_edges))
    mesh = ax.pcolormesh(x, y, largest.T, norm=LogNorm(1, top), rasterized=True)
    middles = ((edges[1:] + edges[:-1]) / 2 for edges in (x, y))
    line = ax.contour(*middles, np.log(largest.T), levels=[np.log(threshold)], colors="white", linewidths=1.3)
    ax.clabel(line, fmt={np.log(threshold): f"{threshold:g}"}, fontsize=8)
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
    y = -np.log10(1 - gamma)
    limits = ax.get_xlim(), ax.get_ylim()
    dark: Any = [effects.Stroke(linewidth=3, foreground="black"), effects.Normal()]
    ax.plot(-np.log10(1 - paper_beta), y, color="#F0E442", linewidth=1.5, path_effects=dark, label="C = 0 [GT]")
    light: Any = [effects.Stroke(linewidth=3, foreground="white"), effects.Normal()]
    ax.plot(-np.log10(1 - discrete_beta), y, "--", color=_VERMILLION, path_effects=light, label="γ² = β")
    for x, height, name in ((0.12, 0.88, "B₋"), (0.86, 0.66, "B₊")):
        text = ax.text(x, height, name, transform=ax.transAxes, fontsize=13, color="white", ha="center", va="center")
        text.set_path_effects(dark)
    ax.set(xlim=limits[0], ylim=limits[1])
    return ax


def share_bounded(
    ax: Axes,
    learning_rates: Points,
    shares: Float[np.ndarray, "lengths points"],
    iterations: Sequence[int],
    theory: Sequence[float],
    *,
    threshold: float,
) -> Axes:
    """The share of the map in which updates stay bounded, against the learning rate, for runs of several lengths.

    Args:
        ax: where to draw; its horizontal axis becomes logarithmic, with small learning rates at the right.
        learning_rates: η.
        shares: by length of the runs and η.
        iterations: the lengths.
        theory: the shares of the map where γ² < β (dashed) and where C > 0 (dotted).
        threshold: the largest update that counts as bounded.
    """
    ax.set_xscale("log")
    styles = zip((_ORANGE, _GREEN, _BLUE), ("s", "^", "o"), strict=True)
    for row, length, (colour, marker) in zip(shares, iterations, styles, strict=False):
        ax.plot(learning_rates, row, marker + "-", color=colour, markersize=4, label=f"n ≤ {length:,}")
    for share, line in zip(theory, ("--", ":"), strict=True):
        ax.axhline(share, color="black", linestyle=line, linewidth=1)
    ax.text(0.03, 0.03, "theory: γ² < β (dashed), C > 0 (dotted)", transform=ax.transAxes, fontsize=8)
    ax.set_ylim(min(theory) - 0.08, 1.02)
    ax.invert_xaxis()
    ax.set_xlabel("learning rate η (falls to the right)")
    ax.set_ylabel(f"share of the map with ‖uₙ‖∞ ≤ {threshold:g}")
    ax.legend(loc="upper center")
    return ax
