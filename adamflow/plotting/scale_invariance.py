"""Pictures of scale-invariant weights: the law of their norm, the assumptions behind it, and how they turn.

Theory is drawn as wide pale lines, and what was measured lies on them. The colours are those of Okabe and Ito, told
apart by colour-blind readers; signs are told apart without colour too.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from adamflow.checks import check_range
from adamflow.plotting.arguments import check_data, check_labels, check_mapping, check_rows
from adamflow.plotting.colours import BLACK, BLUE, GREEN, PURPLE, VERMILLION

Gammas: TypeAlias = Float[np.ndarray, " gammas"]
Table: TypeAlias = Float[np.ndarray, "rows columns"]

_COLOURS = (BLACK, BLUE, VERMILLION, GREEN, PURPLE)
_MARKS = ("o", "s", "^", "D", "v")
_LINES = ("-", "--", ":", "-.")


def factors(
    ax: Axes, gammas: Gammas, measured: Mapping[str, Float[np.ndarray, " gammas"]], predicted: Mapping[str, Gammas]
) -> Axes:
    """The factor K of the law of the norm, over γ.

    Args:
        ax: where to draw.
        gammas: γ.
        measured: K by model.
        predicted: K by the same models.
    """
    measured = _check_gammas(gammas, "measured", measured)
    predicted = _check_gammas(gammas, "predicted", predicted)
    if set(measured) - set(predicted):
        raise ValueError(f"predicted must be of the models {', '.join(measured)}, got {', '.join(predicted)}")
    for place, (name, values) in enumerate(measured.items()):
        place %= len(_COLOURS)
        colour, mark = _COLOURS[place], _MARKS[place]
        ax.plot(1 / (1 - gammas), predicted[name], color=colour, alpha=0.25, linewidth=5)
        ax.plot(1 / (1 - gammas), values, mark, color=colour, markersize=5, fillstyle="none", label=name)
    ax.axhline(1, color="0.3", linestyle="--", linewidth=1.2, label="[GT]: K = 1")
    ax.set(xscale="log", yscale="log", ylabel="K in (‖W‖²)' = −2λ‖W‖² + K η‖u‖²")
    _gamma_axis(ax, gammas)
    ax.legend()
    return ax


def ratios(ax: Axes, gammas: Gammas, values: Mapping[str, Float[np.ndarray, "gammas tensors"]], ylabel: str) -> Axes:
    """Numbers over γ that theory says are 1; a line for each tensor, all tensors of a name alike.

    Args:
        ax: where to draw.
        gammas: γ.
        values: by name.
        ylabel: what they are.
    """
    values = {
        name: _check_gammas(gammas, "values", {name: table}, "gammas tensors")[name] for name, table in values.items()
    }
    ax.axhline(1, color="black", alpha=0.25, linewidth=5)
    for place, (name, table) in enumerate(values.items()):
        place %= len(_COLOURS)
        for number, column in enumerate(table.T):
            style: Any = dict(color=_COLOURS[place], marker=_MARKS[place], markersize=4, linewidth=1, fillstyle="none")
            ax.plot(1 / (1 - gammas), column, label=name if number == 0 else None, **style)
    ax.set(xscale="log", ylabel=ylabel)
    _gamma_axis(ax, gammas)
    ax.legend()
    return ax


def norms(
    ax: Axes, iterations: Float[np.ndarray, " saved"], values: Mapping[str, Sequence[Float[np.ndarray, " saved"]]]
) -> Axes:
    """‖W‖² along runs, and both laws.

    Args:
        ax: where to draw.
        iterations: n.
        values: by run: ‖W‖², the law corrected for momentum, and that of [GT].
    """
    for name, curves in check_mapping("values", values).items():
        if len(curves) != 3:
            raise ValueError(f"values[{name!r}] must hold 3 curves, ‖W‖² and both laws, got {len(curves)}")
        named = {f"values[{name!r}][{place}]": (curve, "times") for place, curve in enumerate(curves)}
        check_data({"iterations": (iterations, "times"), **named})
    colours = itertools.cycle(_COLOURS[1:])
    for colour, (name, (measured, corrected, paper)) in zip(colours, values.items(), strict=False):
        ax.plot(iterations, measured, color=colour, alpha=0.35, linewidth=4, label=name)
        ax.plot(iterations, corrected, "--", color=colour, linewidth=1.2)
        ax.plot(iterations, paper, ":", color=colour, linewidth=1.2)
    ax.plot([], [], "--", color="black", linewidth=1.2, label="law, corrected for momentum")
    ax.plot([], [], ":", color="black", linewidth=1.2, label="law of [GT]")
    drawn = np.concatenate([np.ravel(curve) for curves in values.values() for curve in curves])
    top = 1.45 * drawn[np.isfinite(drawn)].max()
    ax.set(xlabel="iteration n", ylabel="‖W‖² / ‖W(0)‖²", ylim=(0, top if top > 0 else None))
    ax.legend(loc="upper left", ncols=2)
    return ax


def triangle(ax: Axes, iterations: Float[np.ndarray, " saved"], cosines: Float[np.ndarray, "saved saved"]) -> Axes:
    """The cosine of W at one iteration with the gradient at an earlier one; dots where it is positive.

    Args:
        ax: where to draw.
        iterations: n.
        cosines: by the iteration of W, then that of the gradient; nan above the diagonal.
    """
    iterations, cosines = check_data({"iterations": (iterations, "saved"), "cosines": (cosines, "saved saved")})
    limit = float(np.abs(cosines[np.isfinite(cosines)]).max()) or 1.0
    image = ax.pcolormesh(iterations, iterations, cosines, cmap="RdBu", vmin=-limit, vmax=limit, rasterized=True)
    every = max(1, len(iterations) // 25)
    rows, columns = np.nonzero(np.nan_to_num(cosines[::every, ::every]) > 0)
    ax.plot(iterations[::every][columns], iterations[::every][rows], ".", color="black", markersize=1.5)
    ax.figure.colorbar(image, ax=ax, label="cosine of W(t) and g(τ)")
    ax.grid(visible=False)
    ax.set(xlabel="iteration of the gradient g(τ)", ylabel="iteration of W(t)")
    return ax


def lines(
    ax: Axes, positions: Float[np.ndarray, " places"], values: Mapping[str, Float[np.ndarray, "runs places"]]
) -> Axes:
    """Curves by name, each as the mean over runs with a band from the smallest to the largest.

    Args:
        ax: where to draw.
        positions: along the axis.
        values: by name, by run.
    """
    for name, table in check_mapping("values", values).items():
        check_data({"positions": (positions, "places"), f"values[{name!r}]": (table, "runs places")})
    for colour, (name, table) in zip(itertools.cycle(_COLOURS[1:]), values.items(), strict=False):
        ax.fill_between(positions, table.min(axis=0), table.max(axis=0), color=colour, alpha=0.15, linewidth=0)
        ax.plot(positions, table.mean(axis=0), color=colour, label=name)
    ax.legend()
    return ax


def distances(
    ax: Axes,
    iterations: Float[np.ndarray, " saved"],
    values: Mapping[str, Float[np.ndarray, "seeds runs saved"]],
    runs: Sequence[str],
) -> Axes:
    """How far the directions of runs are from those of a reference: colours for runs, line styles for problems.

    Args:
        ax: where to draw.
        iterations: n.
        values: by problem; means over seeds are drawn, and a band over the seeds of the first run.
        runs: what the runs are.
    """
    for name, table in check_mapping("values", values).items():
        check_data({"iterations": (iterations, "saved"), f"values[{name!r}]": (table, "seeds runs saved")})
        check_labels("runs", runs, np.shape(table)[1], f"runs of values[{name!r}]")
    for limit, name, given in ((len(_LINES), "values", values), (4, "runs", runs)):
        if len(given) > limit:
            raise ValueError(f"{name} must be at most {limit}, the number of styles, got {len(given)}")
    for line, table in zip(_LINES, values.values(), strict=False):
        ax.fill_between(iterations, *(f(table[:, 0], axis=0) for f in (np.min, np.max)), color=_COLOURS[1], alpha=0.15)
        for colour, row in zip((*_COLOURS[1:4], "0.6"), table.mean(axis=0), strict=False):
            ax.plot(iterations, row, line, color=colour, linewidth=1.2)
    for colour, name in zip((*_COLOURS[1:4], "0.6"), runs, strict=False):
        ax.plot([], [], color=colour, label=name)
    for line, name in zip(_LINES, values, strict=False):
        ax.plot([], [], line, color="black", linewidth=1.2, label=name)
    ax.set(xlabel="iteration n", ylabel="angle from AdamW / angle moved", ylim=(0, 1.8))
    ax.legend(ncols=2, fontsize=7, loc="upper left")
    return ax


def coordinates(ax: Axes, iterations: Float[np.ndarray, " saved"], reference: Table, runs: Mapping[str, Table]) -> Axes:
    """Entries of W divided by its root mean square: a reference as circles, other runs as lines.

    Args:
        ax: where to draw.
        iterations: n.
        reference: by iteration and entry.
        runs: by name, the same entries.
    """
    iterations, reference = check_data({"iterations": (iterations, "saved"), "reference": (reference, "saved entries")})
    for name, table in runs.items():
        check_data({"reference": (reference, "saved entries"), f"runs[{name!r}]": (table, "saved entries")})
    if len(runs) > len(_LINES):
        raise ValueError(f"runs must be at most {len(_LINES)}, the number of line styles, got {len(runs)}")
    every = max(1, len(iterations) // 25)
    for entry, column in enumerate(reference.T):
        colour = _COLOURS[entry % len(_COLOURS)]
        ax.plot(iterations[::every], column[::every], "o", color=colour, markersize=3, fillstyle="none")
        for line, table in zip(_LINES, runs.values(), strict=False):
            ax.plot(iterations, table[:, entry], line, color=colour, linewidth=1.2)
    ax.plot([], [], "o", color="black", markersize=3, fillstyle="none", label="AdamW")
    for line, name in zip(_LINES, runs, strict=False):
        ax.plot([], [], line, color="black", linewidth=1.2, label=name)
    ax.set(xlabel="iteration n", ylabel="entries of W / root mean square")
    ax.legend()
    return ax


def _check_gammas(
    gammas: Gammas, name: str, values: Mapping[str, Any], axes: str = "gammas"
) -> dict[str, Float[np.ndarray, "..."]]:
    """The values by name, one for each γ, or a `ValueError`."""
    (checked,) = check_data({"gammas": (gammas, "gammas")})
    check_range("gammas", checked, 0.0, 1.0, low_open=False, high_open=True)
    return check_rows(name, values, axes, {"gammas": (checked, "gammas")})


def _gamma_axis(ax: Axes, gammas: Gammas) -> None:
    """γ on an axis that is logarithmic in 1/(1−γ)."""
    ax.set_xlabel("γ")
    ax.set_xticks(1 / (1 - gammas), [f"{gamma:g}" for gamma in gammas])
    ax.set_xticks([], minor=True)
