"""Pictures of results of the analysis, of reports of a training run, and of noisy runs: each takes the result."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.patches import Circle
from typing_extensions import TypeAliasType
from xarray import Dataset

from adamflow.advice import Explanation
from adamflow.analysis import (
    Instability,
    ObservedSharpness,
    PeriodicOrbit,
    Spectrum,
    TrainingReport,
    critical_curvature,
    stack_reports,
)
from adamflow.checks import describe
from adamflow.noise.ensemble import Ensemble
from adamflow.optimizers import Optimizer
from adamflow.plotting.arguments import check_data, log_scale
from adamflow.plotting.colours import BLACK, LINES, ORANGE
from adamflow.plotting.edge import sharpness_of_run
from adamflow.plotting.new_axes import axes_or_new
from adamflow.plotting.phase import decay_scale, lines_at
from adamflow.runs import Trajectory

_DASHED: Any = dict(color=BLACK, linestyle="--", linewidth=1)
#: The bound of a map of updates is cut there: what is larger has one colour.
_LARGEST_SHOWN = 6.0
#: Of an orbit so many entries are drawn, those that move most.
_MOST_ENTRIES = 5


@runtime_checkable
class HasReports(Protocol):
    """An object that has looked at a training run, such as an `adamflow.torch.Monitor`."""

    @property
    def reports(self) -> Sequence[TrainingReport]: ...


#: Reports of a training run in their order, an object that holds them, or a table of them.
Reports = TypeAliasType("Reports", HasReports | Dataset | Sequence[TrainingReport])


def sharpness(run: Trajectory, optimizer: Optimizer, *, ax: Axes | None = None) -> Axes:
    """η times the preconditioned sharpness along a run, the edge of stability, and where it is first reached.

    Args:
        run: a run with `observe=af.analysis.sharpness_observer(optimizer, loss)`.
        optimizer: the optimizer that ran, with one learning rate; that of a flow is `flow.optimizer`.
        ax: where to draw; by default axes of a new figure.

    Returns:
        the axes.

    Raises:
        ValueError: if the run observed something else, or is a batch, or the learning rate is not one number.

    Example:
        >>> import adamflow as af
        >>> problem, optimizer = af.problems.quadratic([1.0, 3.0]), af.adam(0.01)
        >>> observe = af.analysis.sharpness_observer(optimizer, problem.loss)
        >>> run = af.iterate(optimizer, problem.loss, problem.params, 20, save_at=[0, 10, 20], observe=observe)
        >>> [text.get_text() for text in af.plotting.sharpness(run, optimizer).get_legend().get_texts()]
        ['adam, discrete', 'edge of stability, 38']
    """
    if not isinstance(run, Trajectory) or not isinstance(run.observed, ObservedSharpness):
        given = type(getattr(run, "observed", run)).__name__
        raise ValueError(
            "sharpness draws a run with observe=af.analysis.sharpness_observer(optimizer, loss), got one that observed "
            f"{given}; numbers of your own are drawn by af.plotting.edge.sharpness_of_run"
        )
    rate = optimizer.learning_rate
    if callable(rate) or np.ndim(rate):
        raise ValueError(f"sharpness needs an optimizer with one learning rate, got {describe(rate)}")
    values = float(rate) * np.asarray(run.observed.value)
    edge = float(rate) * float(critical_curvature(optimizer))
    iterations = np.asarray(run.iterations)
    ax = sharpness_of_run(iterations, values, edge, label=run.name, ax=ax)
    return _mark_crossing(ax, iterations, values, np.full(values.shape, edge))


def reports(monitor: Reports, *, ax: Axes | None = None) -> Axes:
    """η times the sharpness at each look at a training run, and the edge of stability at that moment, dashed.

    The first look at which the edge is reached is marked.

    Args:
        monitor: an `adamflow.torch.Monitor`, its `to_xarray()`, or a sequence of `TrainingReport`, in their order.
        ax: where to draw; by default axes of a new figure.

    Returns:
        the axes.

    Raises:
        ValueError: if there is no report, or none has a sharpness.

    Example:
        >>> import adamflow as af
        >>> problem, optimizer = af.problems.quadratic([1.0, 3.0]), af.adam(0.01)
        >>> run = af.iterate(optimizer, problem.loss, problem.params, 20)
        >>> report = af.analysis.training_report(problem.loss, *run.final_state[:1], optimizer, run.final_state[1], 20)
        >>> af.plotting.reports([report]).get_ylabel()
        'preconditioned sharpness, η s'
    """
    iterations, scaled, edge = _columns(monitor, "scaled_sharpness", "edge")
    ax = axes_or_new(ax)
    log_scale(ax, scaled, edge)
    ax.plot(iterations, scaled, "o-", markersize=3, color=LINES[0], label="η s")
    ax.plot(iterations, edge, label="edge of stability", **_DASHED)
    ax.set(xlabel="iteration n", ylabel="preconditioned sharpness, η s")
    return _mark_crossing(ax, iterations, scaled, edge)


def _mark_crossing(ax: Axes, iterations: np.ndarray, scaled: np.ndarray, edge: np.ndarray) -> Axes:
    """A circle where η s first reaches its edge, and the legend."""
    reached = np.flatnonzero(scaled >= edge)
    if reached.size:
        first = reached[0]
        style: Any = dict(color=BLACK, markersize=9, fillstyle="none", zorder=4)
        ax.plot(iterations[first], scaled[first], "o", label=f"edge reached at n = {iterations[first]:g}", **style)
    ax.legend()
    return ax


def updates(report: Reports, *, ax: Axes | None = None) -> Axes:
    """The largest entry of the update along a run, in learning rates, and the bound on it, dashed.

    Args:
        report: what `af.analysis.bound_report` returned, or what `reports` takes.
        ax: where to draw; by default axes of a new figure.

    Returns:
        the axes.

    Raises:
        ValueError: if it is none of these, or holds no finite number.

    Example:
        >>> import adamflow as af
        >>> problem, optimizer = af.problems.quadratic([1.0, 3.0]), af.adam(0.01)
        >>> run = af.iterate(optimizer, problem.loss, problem.params, 20)
        >>> len(af.plotting.updates(af.analysis.bound_report(run, optimizer)).lines)
        2
    """
    if isinstance(report, Dataset) and "largest_update" in report:
        iterations, largest, bound = _numbers(report, "iteration", "largest_update", "bound")
    else:
        iterations, largest, bound = _columns(report, "update_max", "update_bound")
    ax = axes_or_new(ax)
    ax.plot(iterations, largest, color=LINES[0], label="largest entry of the update")
    ax.plot(iterations, np.where(np.isfinite(bound), bound, np.nan), label="bound", **_DASHED)
    if np.nanmax(np.where(np.isfinite(bound), bound, 0.0), initial=0.0) > 100:
        log_scale(ax, largest, bound)
    ax.set(xlabel="iteration n", ylabel="‖uₙ‖∞ in learning rates")
    ax.legend()
    return ax


def phase_diagram(diagram: Dataset, *, ax: Axes | None = None) -> Axes:
    """Where a step or a flow is stable: purple, and where it is not: orange, with the edge of stability.

    Args:
        diagram: what `af.analysis.phase_diagram` returned, over one hyperparameter and the curvature; choose one value
            of the others with `diagram.sel`.
        ax: where to draw; by default axes of a new figure. A colour bar is placed next to it.

    Returns:
        the axes.

    Raises:
        ValueError: if it is no such dataset, or has other dimensions.

    Example:
        >>> import adamflow as af
        >>> numbers = {"learning_rate": 1.0, "gamma": np.array([0.5, 0.9])}
        >>> diagram = af.analysis.phase_diagram(af.adam, numbers, np.array([1.0, 10.0, 100.0]))
        >>> af.plotting.phase_diagram(diagram).get_xlabel()
        'gamma'
    """
    if not isinstance(diagram, Dataset) or "critical_curvature" not in diagram or "growth" not in diagram:
        raise ValueError(f"diagram must be what af.analysis.phase_diagram returned, got {type(diagram).__name__}")
    axes = diagram.growth.dims
    if len(axes) != 2 or axes[-1] != "curvature":
        raise ValueError(
            f"diagram must have one hyperparameter and the curvature as dimensions, got {', '.join(map(str, axes))}; "
            "choose one value of the others with diagram.sel"
        )
    name = str(axes[0])
    x, y, growth = _numbers(diagram, name, "curvature", "growth")
    ax = axes_or_new(ax)
    rate = float(np.abs(growth[np.isfinite(growth)]).max(initial=1e-3))
    norm = SymLogNorm(rate / 100, vmin=-rate, vmax=rate)
    mesh = ax.pcolormesh(x, y, growth.T, cmap="PuOr_r", norm=norm, rasterized=True)
    ax.plot(x, np.asarray(diagram.critical_curvature), color=BLACK, label="edge of stability")
    ax.set(xlabel=name, ylabel="curvature s", ylim=(y[0], y[-1]))
    if y[0] > 0:
        ax.set_yscale("log")
    ax.grid(False)
    ax.set_title("purple: stable, orange: unstable, line: edge")
    ax.figure.colorbar(mesh, ax=ax, label="growth per iteration", pad=0.02)
    return ax


def bounded_update_region(region: Dataset, *, ax: Axes | None = None) -> Axes:
    """The largest possible update over (β, γ), and the border beyond which updates can grow without limit, white.

    Args:
        region: what `af.analysis.bounded_update_region` returned, for one kind and one iteration; choose with `sel`.
        ax: where to draw; by default axes of a new figure. A colour bar is placed next to it.

    Returns:
        the axes.

    Raises:
        ValueError: if it is no such dataset, or has other dimensions than (beta, gamma).

    Example:
        >>> import adamflow as af
        >>> grid = af.analysis.bounded_update_region(beta=[0.9, 0.99], gamma=[0.5, 0.9, 0.99], kind="discrete")
        >>> af.plotting.bounded_update_region(grid).get_xlabel()
        'β (second moment, b2)'
    """
    if not isinstance(region, Dataset) or "exponent" not in region:
        raise ValueError(f"region must be what af.analysis.bounded_update_region returned, got {type(region).__name__}")
    if region.log_bound.dims != ("beta", "gamma"):
        dims = ", ".join(map(str, region.log_bound.dims))
        raise ValueError(f"region must have the dimensions beta and gamma, got {dims}; choose one kind with region.sel")
    beta, gamma, bound, exponent = _numbers(region, "beta", "gamma", "log_bound", "exponent")
    ax = axes_or_new(ax)
    decay_scale(ax.xaxis, beta, "β (second moment, b2)")
    decay_scale(ax.yaxis, gamma, "γ (first moment, b1)")
    shown = np.clip(bound / np.log(10), 0, _LARGEST_SHOWN)
    mesh = ax.pcolormesh(beta, gamma, shown.T, vmin=0, vmax=_LARGEST_SHOWN, rasterized=True)
    lines_at(ax, beta, gamma, exponent.T, np.array([0.0]), colors="white", linewidths=1.5)
    ax.grid(False)
    ax.set_title("largest possible update; white: border of B₊")
    label = f"log₁₀ of the bound in learning rates, cut at {_LARGEST_SHOWN:g}"
    ax.figure.colorbar(mesh, ax=ax, label=label, pad=0.02)
    return ax


def spectrum(result: Spectrum, *, ax: Axes | None = None) -> Axes:
    """Leading eigenvalues μ of a step in the complex plane, with the unit circle, beyond which the step is unstable.

    Args:
        result: what `af.analysis.jacobian_spectrum` returned. Eigenvalues that have not converged are hollow.
        ax: where to draw; by default axes of a new figure.

    Returns:
        the axes.

    Raises:
        ValueError: if it is no spectrum, or a batch of them.

    Example:
        >>> import adamflow as af
        >>> problem, optimizer = af.problems.quadratic([1.0, 3.0]), af.adam(0.01)
        >>> run = af.iterate(optimizer, problem.loss, problem.params, 20)
        >>> result = af.analysis.jacobian_spectrum(optimizer, problem.loss, run.final_state, iteration=20, count=2)
        >>> af.plotting.spectrum(result).get_xlabel()
        'real part of μ'
    """
    if not isinstance(result, Spectrum):
        raise ValueError(f"spectrum draws what af.analysis.jacobian_spectrum returned, got {type(result).__name__}")
    values, converged = np.asarray(result.values), np.asarray(result.converged)
    if values.ndim != 1:
        raise ValueError(f"spectrum draws one spectrum, got a batch of shape {values.shape[:-1]}")
    check_data({"the moduli of the eigenvalues": (np.abs(values), "entries")})
    return _multipliers(axes_or_new(ax), values, converged)


def instability(result: Instability, *, ax: Axes | None = None) -> Axes:
    """The multipliers with which a step turns unstable, and the unit circle; each with its period in iterations.

    Args:
        result: what `af.analysis.first_instability` or `unstable_multipliers` returned.
        ax: where to draw; by default axes of a new figure.

    Returns:
        the axes. Multipliers that have not converged are open circles.

    Raises:
        ValueError: if it is no such result, or has no multiplier, since the step is stable.

    Example:
        >>> import adamflow as af
        >>> ax = af.plotting.instability(af.analysis.first_instability(af.kadam(2, 0.01, gamma=0.9)))
        >>> [text.get_text() for text in ax.texts]
        ['period 12.76']
    """
    if not isinstance(result, Instability):
        raise ValueError(
            "instability draws what af.analysis.first_instability or unstable_multipliers returned, got "
            f"{type(result).__name__}"
        )
    if not result.multipliers.size:
        raise ValueError("result has no multiplier on or outside of the unit circle: the step is stable")
    ax = _multipliers(axes_or_new(ax), result.multipliers, result.converged)
    for value, period in zip(result.multipliers, result.periods, strict=True):
        words = "no oscillation" if np.isinf(period) else f"period {period:.4g}"
        place: Any = dict(xytext=(0, -14), textcoords="offset points", ha="center", fontsize=8)
        ax.annotate(words, (value.real, value.imag), **place)
    if np.isfinite(result.curvature):
        ax.set_title(f"unstable from ηs = {result.curvature:.6g} on")
    return ax


def _multipliers(ax: Axes, values: np.ndarray, converged: np.ndarray) -> Axes:
    """Eigenvalues and their conjugates, over the unit circle."""
    ax.add_patch(Circle((0, 0), 1, facecolor=ORANGE, alpha=0.08, edgecolor="none"))
    ax.add_patch(Circle((0, 0), 1, fill=False, **_DASHED))
    both = np.concatenate([values, values.conj()])
    real, imaginary = np.real(both), np.imag(both)
    known = np.concatenate([converged, converged])
    ax.plot(real[known], imaginary[known], "o", color=LINES[0], markersize=5)
    ax.plot(real[~known], imaginary[~known], "o", color=LINES[0], markersize=5, fillstyle="none")
    ax.set(xlabel="real part of μ", ylabel="imaginary part of μ", aspect="equal", title="inside of the circle: stable")
    return ax


def orbit(result: PeriodicOrbit, *, ax: Axes | None = None) -> Axes:
    """The parameters along a cycle of an optimizer over one period, less their mean over it: a line for each entry.

    Args:
        result: what `af.analysis.periodic_orbit` returned.
        ax: where to draw; by default axes of a new figure.

    Returns:
        the axes. Of more than five entries those that move most are drawn; the last point is the first one again.

    Raises:
        ValueError: if it is no such result, or a search that failed.

    Example:
        >>> import adamflow as af
        >>> optimizer, problem = af.adam(0.1, beta=0.9, gamma=0.1), af.problems.quadratic([1.0], start=[0.05])
        >>> cycle = af.analysis.periodic_orbit(optimizer, problem.loss, problem.params, 2)
        >>> len(af.plotting.orbit(cycle).lines[0].get_xdata())
        3
    """
    if not isinstance(result, PeriodicOrbit):
        raise ValueError(f"orbit draws what af.analysis.periodic_orbit returned, got {type(result).__name__}")
    if not result.converged:
        raise ValueError(f"result holds no orbit: {result}")
    leaves = [np.asarray(leaf).reshape(result.period, -1) for leaf in jax.tree.leaves(result.points[0])]
    rows = np.concatenate(leaves, axis=1)
    deviations = rows - rows.mean(axis=0)
    largest = np.argsort(-np.abs(deviations).max(axis=0), kind="stable")[:_MOST_ENTRIES]
    ax = axes_or_new(ax)
    steps = np.arange(result.period + 1)
    for entry, colour in zip(np.sort(largest), LINES, strict=False):
        values = np.append(deviations[:, entry], deviations[0, entry])
        ax.plot(steps, values, "o-", markersize=4, color=colour, label=f"entry {entry}")
    word = "stable" if result.stable else "not stable"
    kind = "fixed point" if result.period == 1 else f"cycle of period {result.period}"
    ax.set(xlabel="step of the period", ylabel="θ less its mean", title=f"{kind}, {word}")
    ax.legend()
    return ax


def explanation(result: Explanation, *, ax: Axes | None = None) -> Axes:
    """The distance of a flow from the iterates, over the largest distance moved, and where it leaves the tolerance.

    Args:
        result: what `af.explain` returned.
        ax: where to draw; by default axes of a new figure.

    Returns:
        the axes. The title names the causes that are met.

    Raises:
        ValueError: if it is no such result.

    Example:
        >>> import adamflow as af
        >>> problem, optimizer = af.problems.chain(dimension=4), af.adam(1e-3)
        >>> discrete = af.iterate(optimizer, problem.loss, problem.params, 100)
        >>> continuous = af.solve(af.GouldTanakaFlow(optimizer), problem.loss, problem.params, 100)
        >>> found = af.explain(discrete, continuous, optimizer, problem.loss, tolerance=2e-3)
        >>> af.plotting.explanation(found).get_title()
        'young filters'
    """
    if not isinstance(result, Explanation):
        raise ValueError(f"explanation draws what af.explain returned, got {type(result).__name__}")
    iterations = np.asarray(result.comparison.iterations)
    distance = np.asarray(result.comparison.absolute_error)
    departs = result.departs_at
    known = distance.max() if departs is None else distance[np.searchsorted(iterations, departs)]
    relative = distance * (result.error / known) if known > 0 else distance
    ax = axes_or_new(ax)
    log_scale(ax, relative)
    ax.plot(iterations, relative, color=LINES[0], label="distance of the flow")
    ax.axhline(result.tolerance, label="tolerance", **_DASHED)
    if departs is not None:
        ax.plot(departs, result.error, "o", color=BLACK, fillstyle="none", label=f"departs at n = {departs:g}")
    ax.set(xlabel="iteration n", ylabel="distance / largest distance moved")
    ax.set_title(", ".join(cause.name for cause in result.met) if departs is not None else "within the tolerance")
    ax.legend()
    return ax


def ensemble(*runs: Ensemble, entry: int = 0, ax: Axes | None = None) -> Axes:
    """The mean of one observed number over the paths of noisy runs, with the band of ± one standard deviation.

    Args:
        runs: what `StochasticFlow.solve` and `af.noise.discrete_paths` returned, at least one.
        entry: which entry of what was observed, counted as `jax.tree.leaves` and rows list them.
        ax: where to draw; by default axes of a new figure.

    Returns:
        the axes.

    Raises:
        ValueError: if there is no run, or no such entry.

    Example:
        >>> import adamflow as af
        >>> from adamflow.noise import Ensemble
        >>> paths = Ensemble.of([0, 1], np.array([[[1.0], [0.5]], [[1.0], [0.7]]]), "sgd, discrete")
        >>> af.plotting.ensemble(paths).get_xlabel()
        'iteration n'
    """
    if not runs:
        raise ValueError("ensemble needs at least one result, got none; make one with af.StochasticFlow(...).solve")
    ax = axes_or_new(ax)
    for run, colour in zip(runs, LINES, strict=False):
        if not isinstance(run, Ensemble):
            raise ValueError(f"ensemble draws what StochasticFlow.solve returned, got {type(run).__name__}")
        mean, variance = (_entry(part.value, entry) for part in (run.mean(), run.variance()))
        iterations, half = np.asarray(run.iterations), np.sqrt(variance)
        ax.plot(iterations, mean, color=colour, label=run.name)
        ax.fill_between(iterations, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0)
    ax.set(xlabel="iteration n", ylabel="mean ± standard deviation over paths")
    ax.legend()
    return ax


def square_norms(report: Dataset, tensor: str | None = None, *, ax: Axes | None = None) -> Axes:
    """‖W‖² of a scale-invariant tensor along a run, and what the laws say of it.

    Args:
        report: what `af.analysis.scale_invariance_report` returned.
        tensor: which, by its name in the report; by default the first.
        ax: where to draw; by default axes of a new figure.

    Returns:
        the axes.

    Raises:
        ValueError: if it is no such report, or has no such tensor.

    Example:
        >>> import adamflow as af
        >>> problem = af.problems.rayleigh(dimension=10)
        >>> optimizer = af.adamw(1e-2, weight_decay=0.1, second_moment="per_tensor")
        >>> observe = af.analysis.invariance_observer(problem.scale_invariant)
        >>> run = af.iterate(optimizer, problem.loss, problem.params, 50, observe=observe)
        >>> len(af.plotting.square_norms(af.analysis.scale_invariance_report(run, optimizer)).lines)
        3
    """
    if not isinstance(report, Dataset) or "square_norm" not in report:
        raise ValueError(
            f"report must be what af.analysis.scale_invariance_report returned, got {type(report).__name__}"
        )
    names = [str(name) for name in np.asarray(report.tensor)]
    if tensor is not None and tensor not in names:
        raise ValueError(f"tensor must be one of {', '.join(names)}, got {tensor!r}")
    chosen = report.isel(tensor=0 if tensor is None else names.index(tensor))
    words = {"square_norm": "measured", "law_corrected": "law, corrected for momentum", "law_paper": "law of [GT]"}
    ax = axes_or_new(ax)
    for (name, label), colour, style in zip(words.items(), LINES, ("-", "--", ":"), strict=False):
        iterations, values = _numbers(chosen, "iteration", name)
        ax.plot(iterations, values, style, color=colour, label=label)
    ax.set(xlabel="iteration n", ylabel="‖W‖²", title=f"{chosen.tensor.item()}")
    ax.legend()
    return ax


def _numbers(data: Dataset, *names: str) -> list[np.ndarray]:
    return [np.asarray(data[name], float) for name in names]


def _entry(tree: Any, entry: int) -> np.ndarray:
    """One entry of a pytree of arrays whose first axis is time."""
    rows = np.concatenate([np.asarray(leaf).reshape(len(leaf), -1) for leaf in jax.tree.leaves(tree)], axis=1)
    if not 0 <= entry < rows.shape[1]:
        raise ValueError(f"entry must lie in [0, {rows.shape[1]}), the entries of what was observed, got {entry}")
    return rows[:, entry]


def reports_table(monitor: Reports) -> Dataset:
    """The reports of a training run as a table: of a monitor, its dataset, or a sequence of reports."""
    if isinstance(monitor, Dataset):
        return monitor
    rows = getattr(monitor, "reports", monitor)
    if not isinstance(rows, Sequence) or not rows or not all(isinstance(row, TrainingReport) for row in rows):
        raise ValueError(
            "a picture of reports needs a monitor that has looked, its to_xarray(), or a sequence of "
            f"TrainingReport, got {describe(monitor)}"
        )
    return stack_reports(rows)


def _columns(monitor: Reports, *names: str) -> list[np.ndarray]:
    """The iterations of reports of a training run, and some of their numbers."""
    data = reports_table(monitor)
    if isinstance(monitor, Dataset):
        missing = [name for name in ("iteration", *names) if name not in data]
        if missing:
            raise ValueError(
                f"the dataset must be that of a monitor or of a bound report, but it has no {missing[0]!r}"
            )
    # A column of which no report has a number is missing.
    blank = np.full(data.sizes["iteration"], np.nan)
    found = [np.asarray(data.get(name, blank), float) for name in ("iteration", *names)]
    check_data({"iteration": (found[0], "looks"), names[0]: (found[1], "looks")})
    return found
