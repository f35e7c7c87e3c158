"""Phase diagrams over the decays (β, γ), and over the curvature: filled regions with their names, contours with values.

Axes of decays run in −log₁₀(1 − x), since decays crowd at 1. Colours are told apart by colour-blind readers, and what
is unstable is hatched too.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.patheffects as effects
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.contour import QuadContourSet
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from adamflow.checks import check_range
from adamflow.plotting.arguments import check_data, check_rising
from adamflow.plotting.colours import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILLION

_TICKS = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999)
_OUTLINE = [effects.Stroke(linewidth=3, foreground="white"), effects.Normal()]


def decay_scale(axis: Any, values: Any, label: str) -> None:
    """Put −log₁₀(1 − x) on an axis (`ax.xaxis` or `ax.yaxis`) with ticks at decays of .5, .9, .99 and so on.

    Args:
        axis: the axis.
        values: decays in [0, 1) on it; ticks are within their range.
        label: the label of the axis.
    """
    (values,) = check_data({"decays": (np.ravel(values), "entries")})
    check_range("decays on an axis", values, 0.0, 1.0, low_open=False, high_open=True)
    low, high = float(np.min(values)), float(np.max(values))
    if low == high:
        raise ValueError(f"an axis of decays needs two different ones, got {low!r}; draw over the other axis")
    forward, inverse = (lambda x: -np.log10(1 - np.minimum(x, 1 - 1e-12))), (lambda y: 1 - 10.0**-y)
    set_scale, set_limits = (
        (axis.axes.set_xscale, axis.axes.set_xlim)
        if axis.axis_name == "x"
        else (axis.axes.set_yscale, axis.axes.set_ylim)
    )
    set_scale("function", functions=(forward, inverse))
    set_limits(low, high)
    shown = [tick for tick in _TICKS if low - 1e-9 <= tick <= high + 1e-9]
    axis.set_major_locator(FixedLocator(shown))
    axis.set_major_formatter(FixedFormatter([f"{tick:g}".removeprefix("0") or "0" for tick in shown]))
    axis.set_minor_locator(NullLocator())
    axis.set_label_text(label)


def lines_at(ax: Axes, x: Any, y: Any, heights: Any, levels: Any, **style: Any) -> QuadContourSet | None:
    """Contour lines at those of the levels that the heights cross; `None`, and no line, where they cross none.

    Args:
        ax: where to draw.
        x, y: the places of columns and rows.
        heights: by row and column; NaN and infinite ones are left blank.
        levels: rising.
        style: as `Axes.contour` takes it.
    """
    known = np.ma.masked_invalid(heights)
    crossed = [level for level in levels if known.min() < level < known.max()] if known.count() else []
    return ax.contour(x, y, known, crossed, **style) if crossed else None


def decay_plane(ax: Axes, betas: Any, gammas: Any) -> Axes:
    """The plane of β (horizontal) and γ (vertical), both in −log₁₀(1 − x)."""
    decay_scale(ax.xaxis, betas, "β (second moment, b2)")
    decay_scale(ax.yaxis, gammas, "γ (first moment, b1)")
    ax.grid(False)
    return ax


def _check_plane(betas: Any, gammas: Any, finite: bool = True, **tables: Any) -> list[Any]:
    """Decays of columns and rows, at least two of each, rising in [0, 1), and tables over them."""
    arrays = {"betas": (betas, "columns"), "gammas": (gammas, "rows")}
    betas, gammas, *rest = check_data(
        arrays | {name: (table, "columns rows") for name, table in tables.items()}, least=2, finite=finite
    )
    for name, decays in (("betas", betas), ("gammas", gammas)):
        check_range(name, decays, 0.0, 1.0, low_open=False, high_open=True)
        check_rising(name, decays)
    return [betas, gammas, *rest]


def regions(
    ax: Axes,
    betas: Float[np.ndarray, "columns"],
    gammas: Float[np.ndarray, "rows"],
    exponent: Float[np.ndarray, "columns rows"],
    levels: Sequence[float],
    dashed: Float[np.ndarray, "columns rows"],
) -> Axes:
    """The regions of bounded updates, filled, with contour lines of their exponent and its values.

    Args:
        ax: where to draw.
        betas, gammas: the decays of columns and rows.
        exponent: positive where updates are bounded.
        levels: values at which lines are drawn, rising, without 0: that line, the border, is thick.
        dashed: the exponent of another region, of which the border alone is drawn.
    """
    betas, gammas, exponent, dashed = _check_plane(betas, gammas, exponent=exponent, dashed=dashed)
    check_rising("levels", *check_data({"levels": (levels, "lines")}))
    decay_plane(ax, betas, gammas)
    ax.contourf(betas, gammas, exponent.T, [-np.inf, 0, np.inf], colors=[ORANGE, BLUE], alpha=0.25)
    lines = lines_at(ax, betas, gammas, exponent.T, levels, colors="0.35", linewidths=0.8, linestyles="solid")
    if lines is not None:
        ax.clabel(lines, fmt=lambda value: f"{value:g}".replace("-", "−"), fontsize=7)
    lines_at(ax, betas, gammas, exponent.T, [0], colors=BLACK, linewidths=2)
    lines_at(ax, betas, gammas, dashed.T, [0], colors=VERMILLION, linestyles="--", linewidths=2)
    return ax


def border(
    ax: Axes,
    betas: Float[np.ndarray, "columns"],
    gammas: Float[np.ndarray, "rows"],
    difference: Float[np.ndarray, "columns rows"],
) -> Axes:
    """A dotted line where a quantity over the decays is 0; nothing where it is NaN, or has one sign everywhere."""
    betas, gammas, difference = _check_plane(betas, gammas, finite=False, difference=difference)
    lines_at(ax, betas, gammas, difference.T, [0], colors=BLACK, linestyles=":", linewidths=2)
    return ax


def growth(
    ax: Axes,
    betas: Float[np.ndarray, "columns"],
    gammas: Float[np.ndarray, "rows"],
    rates: Float[np.ndarray, "columns rows"],
    largest: float,
) -> QuadContourSet:
    """A map of the growth rate per iteration over the decays: its edge, 0, a thick line; what grows hatched.

    Args:
        ax: where to draw.
        betas, gammas: the decays of columns and rows.
        rates: ln of the spectral radius, or the abscissa; NaN, where a run diverged, gets a cross.
        largest: the end of the colour scale, on both sides; linear below 1/1000 of it, logarithmic beyond.

    Returns:
        the filled contours, for a colour bar.
    """
    betas, gammas, rates = _check_plane(betas, gammas, rates=rates)
    (end,) = check_data({"largest": (largest, "")})
    check_range("largest", end, 0.0, np.inf, low_open=True, high_open=True)
    decay_plane(ax, betas, gammas)
    norm = SymLogNorm(largest / 1000, vmin=-largest, vmax=largest, base=10)
    tail = np.geomspace(largest / 1000, largest, 13)
    levels = np.concatenate([-tail[::-1], [0.0], tail])
    shown = np.clip(rates.T, -largest, largest)
    filled = ax.contourf(betas, gammas, shown, levels, norm=norm, cmap="PuOr_r", extend="both")
    if np.nanmax(rates) > 0:
        hatches = ax.contourf(betas, gammas, shown, [0, np.inf], colors="none", hatches=["////"])
        hatches.set_edgecolor("0.35")
        hatches.set_linewidth(0.0)
    lines_at(ax, betas, gammas, shown, [0], colors=BLACK, linewidths=2)
    columns, rows = np.nonzero(np.isnan(rates))
    if columns.size:
        ax.plot(betas[columns], gammas[rows], "x", color=BLACK, markersize=4, label="diverged", clip_on=False)
        ax.legend(loc="upper right")
    return filled


def edges(
    ax: Axes,
    gamma: Float[np.ndarray, "points"],
    edges: Mapping[str, Float[np.ndarray, "points"]],
    curvature: Float[np.ndarray, "levels"],
) -> Axes:
    """The edges of stability of several models over γ.

    Args:
        ax: where to draw.
        gamma: decays in [0, 1), rising.
        edges: by the model's name, the critical ηs at each; inf draws no line.
        curvature: the range of ηs to show.
    """
    gamma, curvature = check_data({"gamma": (gamma, "points"), "curvature": (curvature, "levels")})
    check_range("curvature", curvature, 0.0, np.inf, low_open=True, high_open=True)
    if curvature[0] == curvature[-1]:
        raise ValueError(f"curvature must be a range of ηs, with two different ends, got only {float(curvature[0])!r}")
    for name, edge in edges.items():
        check_data({"gamma": (gamma, "points"), f"edges[{name!r}]": (edge, "points")}, finite=False)
    decay_scale(ax.xaxis, gamma, "γ (first moment, b1)")
    ax.set_yscale("log")
    ax.set_ylim(curvature[0], curvature[-1])
    drawn = {name: edge for name, edge in edges.items() if np.isfinite(edge).any()}
    colours = itertools.cycle((VERMILLION, BLUE, GREEN, ORANGE, PURPLE))
    # Four styles to five colours: together they tell 20 lines apart.
    for (name, edge), colour, style in zip(drawn.items(), colours, itertools.cycle(("-", "--", "-.", ":"))):
        ax.plot(gamma, edge, style, color=colour, linewidth=2.2, label=name, path_effects=_OUTLINE)
    ax.set_ylabel("ηs")
    return ax


def measured(ax: Axes, x: Any, y: Any, label: str) -> Axes:
    """Measured points, as rings over the lines of the theory.

    Args:
        ax: where to draw.
        x, y: the places, one-dimensional.
        label: what they are, for the legend.
    """
    x, y = check_data({"x": (np.atleast_1d(x), "points"), "y": (np.atleast_1d(y), "points")})
    ring: Any = dict(color=BLACK, markerfacecolor="white", markersize=5.5, linestyle="none", clip_on=False, zorder=4)
    ax.plot(x, y, "o", label=label, **ring)
    return ax


def name(ax: Axes, x: float, y: float, text: str) -> Axes:
    """A name inside a region, at a place in data coordinates."""
    if not np.isfinite([x, y]).all():
        raise ValueError(f"x and y must be finite, the place of the name, got {x!r} and {y!r}")
    plate = dict(facecolor="white", edgecolor="none", alpha=0.75, boxstyle="round,pad=0.2")
    ax.text(x, y, text, ha="center", va="center", fontsize=10, bbox=plate)
    return ax
