"""Pictures of runs and their comparisons: parameters, errors, and errors against the learning rate."""

from collections.abc import Sequence
from typing import Any

import jax
import matplotlib as mpl
import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from adamflow.checks import check_count
from adamflow.noise.weak_error import WeakConvergence
from adamflow.plotting.arguments import check_data, log_scale
from adamflow.plotting.new_axes import axes_or_new
from adamflow.runs import Comparison, Convergence, Trajectory
from adamflow.runs.trajectory import check_rows

#: On each curve at most so many circles stand for the rows of a discrete run; the line of a flow shows between them.
_MARKERS = 25
_CIRCLES: Any = dict(linestyle="none", marker="o", markerfacecolor="white", markersize=3.5, markeredgewidth=0.8)
_LINE: Any = dict(linestyle="-", linewidth=1.1)


def trajectories(
    discrete: Trajectory,
    continuous: Trajectory,
    *,
    parameters: int | Sequence[int] | Int[np.ndarray, " chosen"] = 5,
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Single parameters along two runs: circles for the discrete one, lines for the continuous one.

    Each parameter has a colour, and the two kinds of curve an entry in the legend, which names the runs. The runs need
    not have been saved at the same iterations. Of a long run not every row gets its circle.

    Args:
        discrete: the run drawn as circles.
        continuous: the run drawn as lines.
        parameters: how many to draw at random, without replacement (all of them if the runs hold no more), or which:
            places in the parameters laid out in one row, leaf after leaf as `jax.tree.leaves` lists them.
        seed: determines the choice. Runs of equally many parameters get the same one.
        ax: where to draw; by default axes of a new figure. With a backend without windows, such as Agg, that figure
            takes the place of the one before in pyplot's list, whose axes stay usable.

    Returns:
        the axes.

    Raises:
        ValueError: if a run holds no parameters, or a batch of runs, or the two hold different numbers of them, or
            `parameters` asks for one that is not there.

    Example:
        >>> import adamflow as af
        >>> problem, optimizer = af.problems.chain(dimension=10), af.adam(1e-3)
        >>> discrete = af.iterate(optimizer, problem.loss, problem.params, 100)
        >>> continuous = af.solve(af.GouldTanakaFlow(optimizer), problem.loss, problem.params, 100)
        >>> ax = af.plotting.trajectories(discrete, continuous, parameters=4)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['adam, discrete', 'adam, flow of order 1, rates of [GT]']
    """
    tables = [_table(run) for run in (discrete, continuous)]
    size, other = (table.shape[1] for table in tables)
    if size != other:
        raise ValueError(f"the runs hold {size} and {other} parameters; give two runs of the same problem")
    chosen = _choose(parameters, size, seed)
    ax = axes_or_new(ax)
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(chosen)))
    for place, colour in zip(chosen, colours, strict=True):
        circles, line = (table[:, place] for table in tables)
        spacing = max(1, len(circles) // _MARKERS)
        ax.plot(discrete.iterations, circles, color=colour, markevery=spacing, **_CIRCLES)
        ax.plot(continuous.iterations, line, color=colour, **_LINE)
    handles = [
        Line2D([], [], color="0.3", label=discrete.name, **_CIRCLES),
        Line2D([], [], color="0.3", label=continuous.name, **_LINE),
    ]
    ax.legend(handles=handles)
    ax.set_xlabel("iteration n")
    ax.set_ylabel("parameters θ")
    return ax


def errors(*comparisons: Comparison, relative: bool = True, ax: Axes | None = None) -> Axes:
    """Errors over all parameters along the iterations, on a logarithmic axis, one line for each comparison.

    Args:
        comparisons: what `af.compare` returned, at least one; each line is labelled by the name of its run.
        relative: whether errors are divided by the distance that the reference has moved so far.
        ax: where to draw; by default axes of a new figure. With a backend without windows, such as Agg, that figure
            takes the place of the one before in pyplot's list, whose axes stay usable.

    Returns:
        the axes.

    Raises:
        ValueError: if there is no comparison, or they measure in different norms.

    Example:
        >>> import adamflow as af
        >>> problem = af.problems.chain(dimension=10)
        >>> runs = [af.iterate(af.adam(1e-3, beta=beta), problem.loss, problem.params, 100) for beta in (0.999, 0.99)]
        >>> af.plotting.errors(af.compare(*runs)).get_ylabel()
        'error / distance moved'
    """
    if not comparisons:
        raise ValueError("errors needs at least one comparison, got none; make one with af.compare(discrete, run)")
    for comparison in comparisons:
        if not isinstance(comparison, Comparison):
            raise ValueError(f"errors draws what af.compare returned, got {type(comparison).__name__}")
        check_data({"the iterations of a comparison": (comparison.iterations, "saved")})
    norms = sorted({comparison.norm for comparison in comparisons})
    if len(norms) > 1:
        raise ValueError(f"the comparisons measure in different norms, {norms}; one axis shows one norm")
    drawn = [comparison.relative_error if relative else comparison.absolute_error for comparison in comparisons]
    ax = axes_or_new(ax)
    log_scale(ax, *drawn)
    several = len({comparison.names[0] for comparison in comparisons}) > 1
    for comparison, values in zip(comparisons, drawn, strict=True):
        reference, name = comparison.names
        ax.plot(comparison.iterations, values, label=f"{name} against {reference}" if several else name)
    ax.set_xlabel("iteration n")
    way = "error" if norms == ["euclidean"] else "largest error"
    ax.set_ylabel(f"{way} / distance moved" if relative else f"{way} of θ")
    ax.legend()
    return ax


def convergence(*results: Convergence | WeakConvergence, ax: Axes | None = None) -> Axes:
    """Errors against the learning rate, on logarithmic axes, one line for each flow, with its fitted order.

    Args:
        results: what `af.measure_convergence` or `af.noise.measure_weak_convergence` returned, at least one; each line
            is labelled by the name of its flow.
        ax: where to draw; by default axes of a new figure. With a backend without windows, such as Agg, that figure
            takes the place of the one before in pyplot's list, whose axes stay usable.

    Returns:
        the axes.

    Raises:
        ValueError: if there is no result.

    Example:
        >>> import adamflow as af
        >>> result = af.Convergence(np.array([0.02, 0.01]), np.array([4e-4, 1e-4]), "modified flow of order 2")
        >>> [text.get_text() for text in af.plotting.convergence(result).get_legend().get_texts()]
        ['modified flow of order 2: slope 2.00']
    """
    if not results:
        raise ValueError("convergence needs at least one result, got none; make one with af.measure_convergence(...)")
    for result in results:
        if not isinstance(result, Convergence | WeakConvergence):
            raise ValueError(
                "convergence draws what af.measure_convergence or af.noise.measure_weak_convergence returned, got "
                f"{type(result).__name__}"
            )
        rates, errors = (result.learning_rates, "rates"), (result.errors, "rates")
        check_data({"learning_rates of a result": rates, "errors of a result": errors})
    weak = isinstance(results[0], WeakConvergence)
    if any(isinstance(result, WeakConvergence) != weak for result in results):
        raise ValueError("weak errors are errors of means, others of single runs; draw them into axes of their own")
    ax = axes_or_new(ax)
    for result in results:
        label = f"{result.name}: slope {result.order:.2f}"
        ax.loglog(result.learning_rates, result.errors, marker="o", markersize=3.5, label=label)
    ax.set_xlabel("learning rate η")
    ax.set_ylabel("weak error" if weak else "largest error of θ")
    ax.legend()
    return ax


def _table(run: Trajectory) -> np.ndarray:
    """The parameters of a run, one row for each saved iteration."""
    if not isinstance(run, Trajectory):
        raise ValueError(f"a run must be what af.iterate or af.solve returned, got {type(run).__name__}")
    if run.params is None:
        raise ValueError(
            f"the run {run.name!r} holds no parameters, since it had an observe= function; run it without one, or "
            "return snapshot.params from it"
        )
    if run.iterations.ndim != 1:
        raise ValueError(
            f"the run {run.name!r} is a batch of shape {run.iterations.shape[:-1]}; take one lane of it, for example "
            "jax.tree.map(lambda leaf: leaf[0], run)"
        )
    check_rows(run)
    leaves = [np.asarray(leaf).reshape(len(run), -1) for leaf in jax.tree.leaves(run.params)]
    return np.concatenate(leaves, axis=1)


def _choose(parameters: Any, size: int, seed: int) -> np.ndarray:
    """Places of the parameters to draw, of `size` in all."""
    if np.ndim(parameters) == 0:
        count = min(check_count("parameters", parameters), size)
        return np.sort(np.random.default_rng(check_count("seed", seed, low=0)).choice(size, count, replace=False))
    places = np.asarray(parameters)
    if places.ndim != 1 or places.size == 0 or not np.issubdtype(places.dtype, np.integer):
        raise ValueError(f"parameters must be a count or a sequence of whole numbers, got {parameters!r}")
    outside = places[(places < 0) | (places >= size)]
    if outside.size:
        raise ValueError(f"parameters must lie in [0, {size}), the places of the runs' parameters, got {outside[0]}")
    return places
