"""Pictures of a sweep from its dataset, by name: maps with a boundary, lines with intervals.

Colours are those of Okabe and Ito and the map viridis, told apart by colour-blind readers.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import FixedLocator, NullLocator
from scipy.special import stdtrit
from xarray import Dataset

from adamflow.checks import check_single
from adamflow.plotting.colours import line_styles
from adamflow.plotting.new_axes import axes_or_new

Arguments = ParamSpec("Arguments")

#: Colours are logarithmic where the largest number is so many times the smallest.
_WIDE = 100.0

#: The ticks of an axis of decays, which crowd at 1.
_DECAYS = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)

#: Scales in which an axis may be equally spaced: how matplotlib calls it, and from values to that scale and back.
_SCALES: tuple[tuple[str, Callable[[Any], Any], Callable[[Any], Any]], ...] = (
    ("linear", lambda x: x, lambda y: y),
    ("log", np.log, np.exp),
    ("logit", lambda x: np.log(x / (1 - x)), lambda y: 1 / (1 + np.exp(-y))),
    ("function", lambda x: -np.log1p(-np.minimum(x, 1 - 1e-15)), lambda y: -np.expm1(-y)),
)


def _takes_former_order(draw: Callable[Arguments, Axes]) -> Callable[Arguments, Axes]:
    """A picture that also takes its axes first, as until version 0.2."""

    @functools.wraps(draw)
    def draw_in_either_order(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Axes:
        if args and isinstance(args[0], Axes):
            name = draw.__name__
            words = f"{name}(ax, runs, name, ...) is now called as {name}(runs, name, ..., ax=ax)"
            warnings.warn(words, DeprecationWarning, stacklevel=2)
            former: Any = draw
            return former(*args[1:], ax=args[0], **kwargs)
        return draw(*args, **kwargs)

    return draw_in_either_order


@_takes_former_order
def sweep_map(
    runs: Dataset,
    name: str,
    *,
    x: str | None = None,
    y: str | None = None,
    level: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A result of a sweep over two of its axes, with the boundary where it crosses a level.

    Args:
        runs: the dataset of `af.sweep` or `af.refine`. Of others than x and y it has no dimension; choose with
            `runs.sel(seed=0)`, or reduce with `runs.mean("seed")`.
        name: the result. Colours are logarithmic where it is positive and spans a factor of 100. Lanes that did not
            complete have a cross, those without a number are white.
        x, y: the axes, by default the first and the second. Each is drawn in the scale in which it is equally spaced:
            x, ln x, ln x/(1−x) or −ln(1−x).
        level: the boundary is drawn where the result crosses it; of a refined sweep that of `above` is, without it.
        ax: where to draw; by default axes of a new figure. A colour bar is placed next to it.

    Returns:
        the axes.

    Raises:
        ValueError: if there is no such result, axis, or number, or more dimensions than two.

    Example:
        >>> import adamflow as af
        >>> runs = af.sweep(lambda a, b: {"sum": a + b}, {"a": [0.0, 1.0, 2.0], "b": [0.0, 1.0]}, progress=False)
        >>> af.plotting.sweep_map(runs, "sum", level=1.5).get_xlabel()
        'a'
    """
    field = _field(runs, name)
    dims = [str(dim) for dim in field.dims]
    x, y = x or (dims[0] if dims else ""), y or next((dim for dim in dims if dim != x and dim != dims[0]), "")
    if set(dims) != {x, y} or x == y:
        raise ValueError(
            f"sweep_map draws {name!r} over x and y, got x={x!r} and y={y!r} where it has {', '.join(dims) or 'no'} "
            "dimensions; choose along others with runs.sel, or reduce them, as in runs.mean('seed')"
        )
    axes = {dim: _axis(runs, dim) for dim in (x, y)}
    values = np.asarray(field.transpose(x, y), float)
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise ValueError(f"{name!r} holds no finite number, so that nothing can be drawn")
    ax = axes_or_new(ax)
    wide = finite.min() > 0 and finite.max() > _WIDE * finite.min()
    for dim, axis in ((x, ax.xaxis), (y, ax.yaxis)):
        _apply(axis, axes[dim][0])
    edges = [_edges(*axes[dim]) for dim in (x, y)]
    shown = np.where(np.isfinite(values), values, np.nan)
    mesh = ax.pcolormesh(*edges, shown.T, norm=LogNorm() if wide else None, rasterized=True)
    _draw_failures(ax, runs, (x, y), axes)
    _draw_boundary(ax, runs, values, (x, y), axes, level)
    ax.set_xlim(edges[0][0], edges[0][-1])
    ax.set_ylim(edges[1][0], edges[1][-1])
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(False)
    ax.figure.colorbar(mesh, ax=ax, label=_words(field), pad=0.02)
    return ax


@_takes_former_order
def sweep_lines(
    runs: Dataset, name: str, *, x: str, by: str | None = None, over: str | None = None, ax: Axes | None = None
) -> Axes:
    """A result of a sweep along one of its axes or of the result's own: a line for each value of another.

    Args:
        runs: the dataset of `af.sweep`.
        name: the result.
        x: the dimension along the horizontal axis.
        by: the axis whose values have a line each, with an entry in the legend.
        over: the dimension, such as "seed", over which the line is the mean; the band is its 95% interval by Student's
            t. Lanes without a number are left out.
        ax: where to draw; by default axes of a new figure.

    Returns:
        the axes.

    Raises:
        ValueError: if there is no such result or dimension, more dimensions than named, or no number.

    Example:
        >>> import adamflow as af
        >>> runs = af.sweep(lambda a, seed: {"y": a + 0.1 * seed}, {"a": [0.0, 1.0], "seed": [0, 1, 2]}, progress=False)
        >>> len(af.plotting.sweep_lines(runs, "y", x="a", over="seed").lines)
        1
    """
    field = _field(runs, name)
    named = [dim for dim in (by, over, x) if dim is not None]
    if sorted(map(str, field.dims)) != sorted(named):
        raise ValueError(
            f"sweep_lines draws {name!r} along x, by and over, got {', '.join(named)} where it has the dimensions "
            f"{', '.join(map(str, field.dims))}; choose along others with runs.sel"
        )
    values = np.asarray(field.transpose(*named), float)
    if not np.isfinite(values).any():
        raise ValueError(f"{name!r} holds no finite number, so that nothing can be drawn")
    if by is None:
        values = values[None]
    if over is None:
        values = values[:, None]
    scale, places = _axis(runs, x)
    ax = axes_or_new(ax)
    _apply(ax.xaxis, scale)
    lines = [None] if by is None else np.asarray(runs[by]).tolist()
    for line, rows, style in zip(lines, values, line_styles(len(lines)), strict=True):
        mean, half = _mean_and_half(rows)
        label = None if line is None else f"{by} = {line:g}" if isinstance(line, float) else f"{by} = {line}"
        ax.plot(places, mean, label=label, **style)
        if over is not None:
            ax.fill_between(places, mean - half, mean + half, color=style["color"], alpha=0.2, linewidth=0)
    if by is not None:
        ax.legend()
    ax.set_xlabel(x)
    ax.set_ylabel(_words(field))
    return ax


def _mean_and_half(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean over rows that are numbers, and half of its 95% interval; NaN where there are not two."""
    finite = np.isfinite(rows)
    count = finite.sum(axis=0)
    filled = np.where(finite, rows, 0.0)
    mean = np.where(count > 0, filled.sum(axis=0) / np.maximum(count, 1), np.nan)
    square = np.where(finite, (filled - np.where(count > 0, mean, 0.0)) ** 2, 0.0).sum(axis=0)
    error = np.sqrt(square / np.maximum(count - 1, 1) / np.maximum(count, 1))
    return mean, np.where(count > 1, stdtrit(np.maximum(count - 1, 1), 0.975) * error, np.nan)


def _field(runs: Any, name: str) -> Any:
    if not hasattr(runs, "data_vars"):
        raise ValueError(f"runs must be the dataset of a sweep, got {type(runs).__name__}")
    if name not in runs.data_vars:
        raise ValueError(
            f"name must be a result of the sweep, one of {', '.join(map(str, runs.data_vars))}, got {name!r}"
        )
    return runs[name]


def _axis(runs: Any, dim: str) -> tuple[int, np.ndarray]:
    """The number of an axis' scale, and its values: those of its coordinate, or 0, 1, … without one."""
    values = np.asarray(runs[dim]) if dim in runs.coords else np.arange(runs.sizes[dim])
    if values.dtype.kind not in "biuf":
        raise ValueError(f"axis {dim!r} must hold numbers, got {values.dtype}; choose one value of it with runs.sel")
    values = values.astype(float)
    spreads = []
    for _, forth, _ in _SCALES:
        with np.errstate(all="ignore"):
            steps = np.diff(forth(values))
        fits = len(steps) > 0 and np.isfinite(steps).all() and np.any(steps)
        spreads.append(np.ptp(steps) / np.abs(steps).mean() if fits else np.inf)
    # The first that is nearly the best: of two values each scale is equally spaced.
    best = int(np.flatnonzero(np.array(spreads) <= min(spreads) + 1e-6)[0])
    return best, values


def _apply(axis: Any, scale: int) -> None:
    name, forth, back = _SCALES[scale]
    set_scale = axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale
    if name == "function":
        set_scale(name, functions=(forth, back))
        # Those of a linear axis would crowd at one end.
        axis.set_major_locator(FixedLocator(_DECAYS))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    else:
        set_scale(name)


def _edges(scale: int, values: np.ndarray) -> np.ndarray:
    """The borders of cells around values, in the middle between them on their scale."""
    _, forth, back = _SCALES[scale]
    places = forth(values)
    if len(places) == 1:
        return values[0] + np.array([-0.5, 0.5])
    middles = (places[:-1] + places[1:]) / 2
    ends = [2 * places[0] - middles[0]], [2 * places[-1] - middles[-1]]
    return back(np.concatenate([ends[0], middles, ends[1]]))


def _draw_failures(ax: Axes, runs: Any, dims: tuple[str, str], axes: dict[str, tuple[int, np.ndarray]]) -> None:
    """A cross at each lane that ended early, where outcomes are known by lane."""
    if "outcome" not in runs or set(runs["outcome"].dims) != set(dims):
        return
    codes = runs["outcome"].transpose(*dims)
    meanings = str(codes.attrs.get("flag_meanings", "")).split()
    unrun = meanings.index("not_run") if "not_run" in meanings else -1
    columns, rows = np.nonzero((codes.values != 0) & (codes.values != unrun))
    if len(columns):
        places = axes[dims[0]][1][columns], axes[dims[1]][1][rows]
        ax.plot(*places, "x", color="black", markersize=3.5, markeredgewidth=0.7, label="did not complete")


def _draw_boundary(
    ax: Axes, runs: Any, values: np.ndarray, dims: tuple[str, str], axes: Any, level: float | None
) -> None:
    if level is None and "above" in runs and set(runs["above"].dims) == set(dims):
        field, at = np.asarray(runs["above"].transpose(*dims), float), 0.5
    elif level is not None:
        field, at = values, float(check_single("level", level))
    else:
        return
    if min(field.shape) < 2:
        raise ValueError(f"level needs at least two values along {dims[0]!r} and {dims[1]!r}, got shape {field.shape}")
    finite = field[np.isfinite(field)]
    if finite.min() <= at < finite.max():
        ax.contour(
            axes[dims[0]][1], axes[dims[1]][1], np.ma.masked_invalid(field).T, [at], colors="white", linewidths=1.5
        )


def _words(field: Any) -> str:
    """What a result is called, with its units."""
    text = str(field.attrs.get("long_name", field.name))
    return f"{text} [{field.attrs['units']}]" if "units" in field.attrs else text
