"""The picture of a training run: its loss, its sharpness beside the edge, and its updates beside their bound."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adamflow.plotting.results import Reports, reports, reports_table, updates

#: What is drawn beside ηs, times η: by name in the dataset, label and marker.
_CHEAP = {
    "critical_sharpness": ("η · critical sharpness", "s"),
    "update_preconditioned_curvature": ("η · curvature along the update", "^"),
    "gradient_preconditioned_curvature": ("η · curvature along the gradient", "v"),
}
_NEEDED = ("loss", "learning_rate", "edge", "update_max")


def training_run(monitor: Reports) -> Figure:
    """What the reports of a run say, in a new figure of three panels over the iterations.

    Above the loss; in the middle ηs beside its edge, above which the step is unstable, with the cheap measures, which
    are below s; below the largest entry of the update beside its bound. What is missing, as ηs in cheap reports, is
    left out. `reports` and `updates` draw the last two into axes of your own.

    Args:
        monitor: an `adamflow.torch.Monitor`, its `to_xarray()`, or a sequence of `TrainingReport`, in their order.

    Returns:
        the figure: `.savefig("run.png")` writes it, `.axes` are its panels.

    Raises:
        ValueError: if there is no report, or the dataset is none of reports.

    Example:
        >>> import adamflow as af
        >>> problem, optimizer = af.problems.quadratic([1.0, 3.0]), af.adam(0.01)
        >>> params, (n, memory) = af.iterate(optimizer, problem.loss, problem.params, 5).restart
        >>> report = af.analysis.training_report(problem.loss, params, optimizer, memory, n)
        >>> [axes.get_ylabel() for axes in training_run([report]).axes]
        ['loss', 'η × curvature', '‖uₙ‖∞ in learning rates']
    """
    data = reports_table(monitor)
    missing = [name for name in _NEEDED if name not in data]
    if missing or "iteration" not in data.coords:
        raise ValueError(
            "training_run draws a monitor, its to_xarray() or a sequence of reports, got a dataset without "
            f"{', '.join(missing) or 'iteration'}"
        )
    figure, (top, middle, bottom) = plt.subplots(3, 1, figsize=(9, 8), sharex=True, layout="constrained")
    iterations = data["iteration"].values
    top.plot(iterations, data["loss"], "o-", markersize=3, label="loss of the closure")
    top.set_ylabel("loss")
    if "scaled_sharpness" in data:
        reports(data, ax=middle)
    else:
        middle.plot(iterations, data["edge"], "k--", label="edge of stability")
    for name, (label, marker) in _CHEAP.items():
        if name in data:
            _positive(middle, iterations, data["learning_rate"] * data[name], label, marker, ":")
    middle.set_yscale("log", nonpositive="mask")
    middle.set(xlabel="", ylabel="η × curvature")
    updates(data if "update_bound" in data else data.assign(update_bound=np.nan * data["loss"]), ax=bottom)
    for axes in (top, middle, bottom):
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _positive(axes: Axes, iterations: np.ndarray, values: Any, label: str, marker: str, line: str) -> None:
    """What a logarithmic axis can show of a curve."""
    values = np.asarray(values, float)
    shown = np.where((values > 0) & np.isfinite(values), values, np.nan)
    axes.plot(iterations, shown, marker=marker, markersize=4, linestyle=line, label=label)
