"""The picture of a training run: its loss, its sharpness beside the edge, and its updates beside their bound."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: What is drawn beside ηs, times η: by name in the dataset, label and marker.
_CHEAP = {
    "critical_sharpness": ("η · critical sharpness", "s"),
    "update_preconditioned_curvature": ("η · curvature along the update", "^"),
    "gradient_preconditioned_curvature": ("η · curvature along the gradient", "v"),
}
_NEEDED = ("loss", "learning_rate", "edge", "update_max")


def training_run(data: xr.Dataset) -> Figure:
    """What the reports of a run say, in a new figure of three panels over the iterations.

    Above the loss; in the middle ηs beside its edge, above which the step is unstable, with the cheap measures, which
    are below s; below the largest entry of the update beside its bound. What is missing, as ηs in cheap reports, is
    left out.

    Args:
        data: `monitor.to_xarray()`, or `af.analysis.stack_reports(reports)`.

    Returns:
        the figure: `.savefig("run.png")` writes it, `.axes` are its panels.

    Raises:
        ValueError: if the dataset is none of reports.

    Example:
        >>> import adamflow as af
        >>> problem, optimizer = af.problems.quadratic([1.0, 3.0]), af.adam(0.01)
        >>> params, (n, memory) = af.iterate(optimizer, problem.loss, problem.params, 5).restart
        >>> report = af.analysis.training_report(problem.loss, params, optimizer, memory, n)
        >>> [axes.get_ylabel() for axes in training_run(af.analysis.stack_reports([report])).axes]
        ['loss', 'η × curvature', 'update']
    """
    missing = [name for name in _NEEDED if name not in data] if isinstance(data, xr.Dataset) else list(_NEEDED)
    if missing or "iteration" not in data.coords:
        raise ValueError(
            "data must be monitor.to_xarray() or af.analysis.stack_reports(reports), got "
            f"{type(data).__name__} without {', '.join(missing) or 'iteration'}"
        )
    figure, (top, middle, bottom) = plt.subplots(3, 1, figsize=(9, 8), sharex=True, layout="constrained")
    iterations = data["iteration"].values
    top.plot(iterations, data["loss"], "o-", markersize=3, label="loss of the closure")
    top.set_ylabel("loss")
    _curvatures(middle, iterations, data)
    if "update_bound" in data:
        bottom.plot(iterations, data["update_bound"], "k--", label="bound")
    bottom.plot(iterations, data["update_max"], "o-", markersize=3, label="‖u‖∞, largest entry of the update")
    bottom.set(ylabel="update", xlabel="iteration")
    for axes in (top, middle, bottom):
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _curvatures(axes: Axes, iterations: np.ndarray, data: Any) -> None:
    axes.plot(iterations, data["edge"], "k--", label="edge of stability")
    if "scaled_sharpness" in data:
        _positive(axes, iterations, data["scaled_sharpness"], "ηs", "o", "-")
    for name, (label, marker) in _CHEAP.items():
        if name in data:
            _positive(axes, iterations, data["learning_rate"] * data[name], label, marker, ":")
    axes.set_yscale("log", nonpositive="mask")
    axes.set_ylabel("η × curvature")


def _positive(axes: Axes, iterations: np.ndarray, values: Any, label: str, marker: str, line: str) -> None:
    """What a logarithmic axis can show of a curve."""
    values = np.asarray(values, float)
    shown = np.where((values > 0) & np.isfinite(values), values, np.nan)
    axes.plot(iterations, shown, marker=marker, markersize=4, linestyle=line, label=label)
