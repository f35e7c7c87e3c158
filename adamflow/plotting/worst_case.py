"""Pictures of the worst-case gradients, the updates they cause, and the bounds.

Bounds are wide pale lines, and what was measured lies on them. The colours are those of Okabe and Ito, told apart by
colour-blind readers.
"""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from adamflow.plotting.arguments import check_data, check_mapping, log_scale
from adamflow.plotting.colours import BLUE, GREEN, VERMILLION

Times: TypeAlias = Float[np.ndarray, "times"]

_GREY = "0.45"
_FLOWS = (BLUE, GREEN)


def gradients(ax: Axes, iterations: Times, discrete: Times, flows: Mapping[str, tuple[Times, float]]) -> Axes:
    """The gradients that attain the bounds, on a logarithmic axis.

    Args:
        ax: where to draw.
        iterations: n = 0, 1, ….
        discrete: |gₙ| of the sequence, drawn as dots.
        flows: by the name of its rate, the signal |g(n)| of a flow, drawn as a line, and its first gradient, drawn as a
            square at 0.
    """
    iterations, discrete = check_data({"iterations": (iterations, "times"), "discrete": (discrete, "times")})
    _check_flows(iterations, {name: (signal,) for name, (signal, _) in check_mapping("flows", flows).items()})
    log_scale(ax, discrete, *(signal for signal, _ in flows.values()))
    for colour, (name, (signal, start)) in zip(_FLOWS, flows.items(), strict=False):
        ax.plot(iterations[1:], signal[1:], color=colour, linewidth=1.2, label=f"flow, {name} rate")
        ax.plot(0, start, "s", color=colour, markersize=5, clip_on=False, zorder=4)
    every = max(1, len(iterations) // 25)
    ax.plot(iterations[::every], discrete[::every], "o", color="black", markersize=3, label="discrete")
    ax.set_ylabel("gradient |gₙ|, largest = 1")
    _label(ax, iterations)
    return ax


def discrete_updates(
    ax: Axes, iterations: Times, update: Times, bound: Times, paper: Times, random: Float[np.ndarray, "5 times"]
) -> Axes:
    """The update of the discrete optimizer under its worst-case gradients and under random ones, with the bounds.

    Args:
        ax: where to draw.
        iterations: n = 0, 1, ….
        update: |uₙ| under the worst-case gradients.
        bound: the bound that they attain.
        paper: the bound of [GT]; where it lies below the other one is shaded.
        random: of |uₙ| under random gradients, the quantiles 5%, 25%, 50% and 75%, 95%.
    """
    iterations, update, bound, paper, random = check_data(
        {
            "iterations": (iterations, "times"),
            "update": (update, "times"),
            "bound": (bound, "times"),
            "paper": (paper, "times"),
            "random": (random, "quantiles times"),
        }
    )
    if len(random) != 5:
        raise ValueError(f"random must hold 5 quantiles, 5%, 25%, 50%, 75% and 95%, got {len(random)}")
    log_scale(ax, update, bound)
    ax.fill_between(iterations, random[0], random[4], color=_GREY, alpha=0.2, linewidth=0)
    ax.fill_between(iterations, random[1], random[3], color=_GREY, alpha=0.3, linewidth=0)
    ax.plot(iterations, random[2], color=_GREY, linewidth=1)
    place = int(0.55 * len(iterations))
    for low, high, name in ((0, 1, "random gradients: central 90%"), (2, 3, "middle half, median")):
        height = np.sqrt(random[low, place] * random[high, place])
        ax.text(iterations[place], height, name, ha="center", va="center", fontsize=8)
    ax.plot(iterations, bound, color="black", alpha=0.25, linewidth=5, label="attained bound Bₙ")
    _paper_bound(ax, iterations, paper, bound)
    every = max(1, len(iterations) // 25)
    ax.plot(iterations[::every], update[::every], "o", color="black", markersize=3, label="worst case, measured")
    ax.set_ylabel("discrete update |uₙ|")
    _label(ax, iterations)
    return ax


def flow_updates(ax: Axes, iterations: Times, flows: Mapping[str, tuple[Times, Times]], paper: Times) -> Axes:
    """The update of flows under their worst-case signals, with the bounds.

    Args:
        ax: where to draw.
        iterations: n = 0, 1, ….
        flows: by the name of its rate, |u(n)| and the bound that it attains.
        paper: the bound of [GT]; where it lies below that of the first flow is shaded.
    """
    iterations, paper = check_data({"iterations": (iterations, "times"), "paper": (paper, "times")})
    _check_flows(iterations, check_mapping("flows", flows))
    every = max(1, len(iterations) // 25)
    for colour, (name, (update, bound)) in zip(_FLOWS, flows.items(), strict=False):
        ax.plot(iterations, bound, color=colour, alpha=0.3, linewidth=5, label=f"attained bound, {name} rate")
        ax.plot(iterations[::every], update[::every], "o", color=colour, markersize=3, label="worst case, integrated")
    _paper_bound(ax, iterations, paper, next(iter(flows.values()))[1])
    ax.set_ylabel("flow's update |u(n)|")
    _label(ax, iterations)
    return ax


def _check_flows(iterations: Times, flows: Mapping[str, tuple[Times, ...]]) -> None:
    """Raise `ValueError` unless there are at most two flows, each with a number for each iteration in its curves."""
    if len(flows) > len(_FLOWS):
        raise ValueError(f"flows must be at most {len(_FLOWS)}, the number of colours, got {len(flows)}")
    for name, curves in flows.items():
        named = {f"flows[{name!r}][{place}]": (curve, "times") for place, curve in enumerate(curves)}
        check_data({"iterations": (iterations, "times"), **named})


def _paper_bound(ax: Axes, iterations: Times, paper: Times, attained: Times) -> None:
    """The bound of [GT], which is 0 at n = 0, and a shade where updates exceed it."""
    ax.plot(iterations[1:], paper[1:], "--", color=VERMILLION, linewidth=1.3, label="bound of [GT]")
    fails = np.flatnonzero(paper < attained)
    if not fails.size:
        return
    everywhere, last = fails[-1] == len(iterations) - 1, float(iterations[fails[-1]])
    if not everywhere:
        ax.axvspan(0, last, color=VERMILLION, alpha=0.1, linewidth=0)
    text = "[GT] too low at every n" if everywhere else f"[GT] too low up to n = {last:.0f}"
    ax.text(0.03, 0.95, text, transform=ax.transAxes, color=VERMILLION, fontsize=9, va="top")


def _label(ax: Axes, iterations: Times) -> None:
    if len(iterations) > 1:
        ax.set_xlim(iterations[0], iterations[-1])
    ax.set_xlabel("iteration n")
