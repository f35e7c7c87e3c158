"""How far two runs are apart, in numbers and in words."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from adamflow.checks import (
    check_choice,
    check_count,
    check_params,
    check_range,
    check_single,
    check_whole_iterations,
    describe,
    is_concrete,
)
from adamflow.display import html_table
from adamflow.flows import AbstractFlow, TwoBranchState
from adamflow.flows.norms import row_norms, tree_norm
from adamflow.optimizers.record import Record
from adamflow.runs.continuous import solve
from adamflow.runs.discrete import iterate
from adamflow.runs.oscillation import mean_and_oscillation, mean_beside, middles
from adamflow.runs.trajectory import Trajectory, check_rows, is_array, on_device
from adamflow.types import Loss, Params

Norm = Literal["euclidean", "maximum"]
Average = Literal["none", "period 2"]


#: Of the table that a comparison prints.
_COLUMNS = ("max. absolute", "max. relative", "at iteration", " at the end")


class Comparison(Record):
    """The distance of a run from a reference, at each saved iteration.

    Relative errors are divided by the distance that the reference has moved from its start so far: the largest at the
    iterations saved up to there. An error of 0 is 0 relatively, too.

    Attributes:
        iterations: n, shape (saved,).
        absolute_error: ‖θ − θ_ref‖ over all parameters, shape (saved,).
        relative_error: the same, divided by the distance moved.
        path_length: the length of the reference's way from its start, through all that it saved up to there, shape
            (saved,).
        absolute_error_by_leaf, relative_error_by_leaf: the same for each leaf alone: pytrees like the parameters.
        names: of the reference and of the run.
        norm: "euclidean" or "maximum".
    """

    iterations: Float[Array, " saved"]
    absolute_error: Float[Array, " saved"]
    relative_error: Float[Array, " saved"]
    path_length: Float[Array, " saved"]
    absolute_error_by_leaf: PyTree[Float[Array, " saved"]]
    relative_error_by_leaf: PyTree[Float[Array, " saved"]]
    names: tuple[str, str] = eqx.field(static=True)
    norm: str = eqx.field(static=True)

    @property
    def max_relative_error(self) -> float:
        """The largest relative error over all parameters."""
        return float(self.relative_error.max())

    @property
    def error_per_path_length(self) -> Float[Array, " saved"]:
        """The absolute error, divided by the length of the path; 0 where the error is."""
        return _quotient(self.absolute_error, self.path_length)

    @property
    def worst_iteration(self) -> float:
        """The iteration of the largest relative error."""
        return float(self.iterations[int(self.relative_error.argmax())])

    def _errors(self) -> list[tuple[str, Any, Any]]:
        """Name, absolute and relative errors: of all parameters, and of each leaf if there are several."""
        rows = [("all parameters", self.absolute_error, self.relative_error)]
        pairs = zip(
            jax.tree_util.tree_leaves_with_path(self.absolute_error_by_leaf),
            jax.tree.leaves(self.relative_error_by_leaf),
            strict=True,
        )
        if len(jax.tree.leaves(self.absolute_error_by_leaf)) > 1:
            rows += [(jax.tree_util.keystr(path), absolute, relative) for (path, absolute), relative in pairs]
        return rows

    def _title(self) -> str:
        reference, run = self.names
        count, end = len(self.iterations), float(self.iterations[-1])
        return f"{run} against {reference}, {count} iterations up to {end:g}, {self.norm} norm"

    def _cells(self) -> list[tuple[str, str, str, str, str]]:
        """Each row of the table as text."""
        return [
            (
                name,
                f"{float(absolute.max()):.3e}",
                f"{float(relative.max()):.3e}",
                f"{float(self.iterations[int(relative.argmax())]):g}",
                f"{float(relative[-1]):.3e}",
            )
            for name, absolute, relative in self._errors()
        ]

    def __str__(self) -> str:
        cells = self._cells()
        width = max(len(name) for name, *_ in cells)
        lines = [self._title(), "  ".join([" " * width, *_COLUMNS])]
        for name, *values in cells:
            aligned = [f"{value:>{len(column)}}" for value, column in zip(values, _COLUMNS, strict=True)]
            lines.append("  ".join([f"{name:{width}}", *aligned]))
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self) if is_array(self.relative_error) else super().__repr__()

    def _repr_html_(self) -> str:
        return html_table(self._title(), self._cells(), ("", *_COLUMNS))


def compare(
    reference: Trajectory, run: Trajectory, *, norm: Norm = "euclidean", average: Average = "none"
) -> Comparison:
    """Compare two runs saved at the same iterations, for example a discrete and a continuous one.

    Past the edge of stability, where iterates oscillate, average="period 2" compares with their mean, which is what an
    `TwoBranchFlow` follows. The reference then has to hold, for each iteration n of `run`, the iterates n − 1, n and n
    + 1.

    Args:
        reference: the run from which distances are measured, and whose way gives the unit of relative errors.
        run: the other one.
        norm: over parameters, "euclidean" or "maximum".
        average: of the reference: "none", or "period 2" for (θₙ₋₁ + 2θₙ + θₙ₊₁)/4 as in `mean_and_oscillation`. Then
            rows of `run` at the first and the last iteration of the reference, which have no mean, are left out.

    Returns:
        absolute and relative errors over time, for each leaf and over all parameters. `print` shows them as a table.

    Warns:
        UserWarning: without an average, if `run` is that of a flow of the mean and most of its distance at the end
            is the oscillation of the iterates about it.

    Raises:
        ValueError: if the runs were saved at other iterations (one of them may have failed: its `outcome` says so),
            hold other parameters, or hold none; if the reference lacks neighbours of an iteration to be averaged.

    Example:
        >>> import adamflow as af
        >>> problem, optimizer = af.problems.chain(dimension=4), af.adam(1e-3)
        >>> discrete = af.iterate(optimizer, problem.loss, problem.params, 100)
        >>> continuous = af.solve(af.GouldTanakaFlow(optimizer, order=1), problem.loss, problem.params, 100)
        >>> float(af.compare(discrete, continuous).relative_error[-1]) < 0.02
        True
    """
    check_choice("norm", norm, ("euclidean", "maximum"))
    check_choice("average", average, ("none", "period 2"))
    for trajectory in (reference, run):
        _check_single(trajectory)
    check_rows(reference, run)
    every = reference
    if average == "period 2":
        every, reference, run = mean_beside(reference, run)
    _check_comparable(reference, run)
    found = _distances(every, reference, run, norm)
    if average == "none":
        _warn_of_oscillation(reference, run, found.absolute, found.moved)
    found = jax.tree.map(on_device, found)
    return Comparison(
        iterations=reference.iterations,
        absolute_error=found.absolute,
        relative_error=found.relative,
        path_length=found.path_length,
        absolute_error_by_leaf=found.absolute_by_leaf,
        relative_error_by_leaf=found.relative_by_leaf,
        names=(reference.name, run.name),
        norm=norm,
    )


class _Distances(NamedTuple):
    """What `_distances` finds, with how far the reference has moved from its start, each of shape (saved,)."""

    absolute: Any
    relative: Any
    path_length: Any
    moved: Any
    absolute_by_leaf: Any
    relative_by_leaf: Any


@np.errstate(all="ignore")
def _distances(every: Trajectory, reference: Trajectory, run: Trajectory, norm: Norm) -> _Distances:
    """Distances between two runs, and along `every`, which is the reference with all that it saved.

    By NumPy where numbers are known: each operation of jax on its own would be compiled at the first call.
    """
    concrete = is_concrete(every, reference, run)
    xp: Any = np if concrete else jnp

    def size(*leaves: Any) -> Any:
        if norm == "euclidean":
            return row_norms(leaves, xp)
        rows = xp.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)
        return xp.max(xp.abs(rows), axis=1, initial=0.0)

    def relative(absolute: Any, moved: Any) -> Any:
        return _quotient(absolute, np.maximum.accumulate(moved) if concrete else jax.lax.cummax(moved))

    def step(leaf: Any, start: Any) -> Any:
        return xp.diff(leaf, axis=0, prepend=start[None])

    way, params, others = (jax.tree.map(xp.asarray, kept.params) for kept in (every, reference, run))
    way_start, start = (jax.tree.map(xp.asarray, kept.initial_params) for kept in (every, reference))
    error, moved = (jax.tree.map(xp.subtract, *pair) for pair in ((others, params), (params, start)))
    lengths = xp.cumsum(size(*jax.tree.leaves(jax.tree.map(step, way, way_start))))
    absolute, distance = size(*jax.tree.leaves(error)), size(*jax.tree.leaves(moved))
    absolute_by_leaf = jax.tree.map(size, error)
    return _Distances(
        absolute=absolute,
        relative=relative(absolute, distance),
        path_length=lengths[xp.searchsorted(xp.asarray(every.iterations), xp.asarray(reference.iterations))],
        moved=distance,
        absolute_by_leaf=absolute_by_leaf,
        relative_by_leaf=jax.tree.map(relative, absolute_by_leaf, jax.tree.map(size, moved)),
    )


def _quotient(absolute: Any, unit: Any) -> Any:
    """A quotient that is 0 where the dividend is."""
    if isinstance(absolute, np.ndarray):
        return np.divide(absolute, unit, out=np.zeros_like(absolute), where=absolute != 0)
    return jnp.where(absolute == 0, 0.0, absolute / unit)


def _check_single(trajectory: Trajectory) -> None:
    if not isinstance(trajectory, Trajectory):
        raise TypeError(f"compare takes two runs, as af.iterate and af.solve return them, got {describe(trajectory)}")
    if trajectory.params is None:
        raise ValueError(
            f"the run {trajectory.name!r} holds no parameters, since it had an observe= function; run it without "
            "one, or return snapshot.params from it"
        )
    if trajectory.iterations.ndim != 1:
        raise ValueError(
            f"the run {trajectory.name!r} is a batch of runs; compare lane by lane, for example under jax.vmap, or "
            "pick one with jax.tree.map(lambda leaf: leaf[lane], trajectory)"
        )


def _check_comparable(reference: Trajectory, run: Trajectory) -> None:
    same = reference.iterations.shape == run.iterations.shape
    if same and is_concrete(reference, run):
        same = np.array_equal(reference.iterations, run.iterations)
    if not same:
        known = is_concrete(reference, run)
        endings = "; ".join(
            f"{t.name}: {len(t)} saved{', ' + t.outcome.message if known else ''}" for t in (reference, run)
        )
        raise ValueError(f"the runs were saved at different iterations ({endings}); {_advice(reference, run)}")
    shapes = [jax.tree.map(jnp.shape, trajectory.params) for trajectory in (reference, run)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the runs hold different parameters: {shapes[0]} and {shapes[1]}; start both from the same")


def _advice(reference: Trajectory, run: Trajectory) -> str:
    """How to make two runs comparable that were saved at different iterations."""
    if not is_concrete(reference, run):
        return "give both the same save_at="
    one, other = np.asarray(reference.iterations), np.asarray(run.iterations)
    common = min(len(one), len(other))
    failed = not (reference.outcome.successful and run.outcome.successful)
    if failed and np.array_equal(one[:common], other[:common]):
        return (
            f"one of them ended early, so compare what both have: run the other to iteration {one[common - 1]:g} with "
            "the same save_at= up to there, or do what its message says"
        )
    return "give both the same save_at="


def _warn_of_oscillation(reference: Trajectory, run: Trajectory, absolute: Any, moved: Any) -> None:
    """Warn where most of the distance of a flow of the mean at the end is the oscillation of the iterates about it."""
    if not run.follows_mean or reference.follows_mean or not is_concrete(reference, run, absolute):
        return
    amplitude, error = 0.0, float(absolute[-1])
    if isinstance(run.final_state, TwoBranchState):
        amplitude = float(tree_norm(run.final_state.oscillation.params))
    places = middles(reference)
    if len(places):
        amplitude, error = float(mean_and_oscillation(reference).amplitude[-1]), float(absolute[places[-1]])
    if amplitude > max(error / 2, 1e-6 * float(moved.max())):
        warnings.warn(
            f"{run.name!r} follows the mean of an oscillation, and most of its distance from {reference.name!r} is the "
            'oscillation about that mean; compare with the mean of the iterates by average="period 2"',
            stacklevel=3,
        )


class Convergence(Record):
    """Errors of a flow against the iterates of its optimizer, over learning rates at the same time ηN.

    Attributes:
        learning_rates: η, shape (rates,).
        errors: the largest distance of θ from θₙ over the iterations compared, in the norm chosen, shape (rates,).
        name: of the flow.
    """

    learning_rates: Float[np.ndarray, " rates"]
    errors: Float[np.ndarray, " rates"]
    name: str = eqx.field(static=True)

    @property
    def order(self) -> float:
        """The slope of ln error against ln η, fitted by least squares."""
        return float(np.polyfit(np.log(self.learning_rates), np.log(self.errors), 1)[0])

    @property
    def local_orders(self) -> Float[np.ndarray, " steps"]:
        """The same slope between each pair of neighbours."""
        return np.diff(np.log(self.errors)) / np.diff(np.log(self.learning_rates))

    def __str__(self) -> str:
        rows = [f"  {rate:13.4g}  {error:.3e}" for rate, error in zip(self.learning_rates, self.errors, strict=True)]
        return "\n".join([self.name, "  learning rate  error", *rows, f"  fitted order {self.order:.2f}"])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        rows = [(f"{rate:.4g}", f"{error:.3e}") for rate, error in zip(self.learning_rates, self.errors, strict=True)]
        title = f"{self.name}, fitted order {self.order:.2f}"
        return html_table(title, rows, ("learning rate", "error"))


def measure_convergence(
    make_flow: Callable[[float], AbstractFlow],
    loss: Loss,
    params: Params,
    learning_rates: Sequence[float],
    *,
    time: float,
    points: int = 64,
    norm: Norm = "maximum",
    rtol: float | None = None,
    **options: Any,
) -> Convergence:
    """Measure the order of a flow: its errors against the iterates for several η at fixed t = ηN.

    Args:
        make_flow: from a learning rate to a flow with an optimizer of that rate.
        loss: `loss(params)`.
        params: where all runs start.
        learning_rates: at least two, each dividing `time` into whole iterations.
        time: t = ηN > 0.
        points: the number of iterations, evenly spaced up to N, at which the runs are compared; fewer if N is less.
        norm: over parameters; the error is its max_relative_error over these iterations.
        rtol: of `solve`, which must be small beside the errors measured; by default 1e-9, or 1e-6 for float32.
        options: for `solve`; by default with `start=None`, the flow from 0 on at every rate.

    Returns:
        learning rates, errors and fitted order. `print` shows them as a table.

    Raises:
        ValueError: if a rate does not divide the time, or a run does not complete.

    Example:
        >>> import adamflow as af, diffrax
        >>> problem, solver = af.problems.chain(dimension=2), diffrax.Tsit5()
        >>> flow = lambda eta: af.GouldTanakaFlow(af.adam(eta), order=1)
        >>> rates = [4e-3, 2e-3, 1e-3]
        >>> result = af.measure_convergence(flow, problem.loss, problem.params, rates, time=0.2, solver=solver)
        >>> 0.8 < result.order < 1.2
        True
    """
    check_range("learning_rates", learning_rates, 0, low_open=True)
    check_count("the number of learning rates", len(learning_rates), 2)
    params = check_params(params)
    if rtol is None:
        rtol = max(1e-9, 10 * max(float(jnp.finfo(jnp.result_type(leaf)).eps) for leaf in jax.tree.leaves(params)))
    check_range("time", check_single("time", time), 0, low_open=True)
    counts = [check_whole_iterations(time, rate) for rate in learning_rates]
    points = min(check_count("points", points), *counts)
    # What does not complete is an error below, whatever `options` say.
    settings: dict[str, Any] = {"start": None, **options, "on_failure": "ignore"}
    errors, name = [], ""
    for rate, steps in zip(learning_rates, counts, strict=True):
        flow = make_flow(rate)
        save_at = np.round(np.linspace(0, steps, points + 1))
        has_aux = bool(settings.get("has_aux"))
        discrete = iterate(flow.optimizer, loss, params, steps, save_at=save_at, has_aux=has_aux, on_failure="ignore")
        continuous = solve(flow, loss, params, steps, save_at=save_at, rtol=rtol, **settings)
        for run in (discrete, continuous):
            if not run.outcome.successful:
                raise ValueError(f"the run {run.name!r} at learning rate {rate:g} {run.outcome.message}")
        errors.append(float(compare(discrete, continuous, norm=norm).absolute_error.max()))
        name = continuous.name
    return Convergence(np.asarray(learning_rates, float), np.asarray(errors), name)
