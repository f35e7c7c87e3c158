"""Until when a flow is right, and why it stops: each known cause with its evidence."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from adamflow.advice.recommendation import NEAR_THE_EDGE
from adamflow.advice.words import paragraph, percent
from adamflow.analysis.stability import critical_curvature, preconditioned_sharpness
from adamflow.checks import check_range, describe
from adamflow.display import html_table
from adamflow.flows import AbstractFlow, Snapshot, averages
from adamflow.losses import check_loss
from adamflow.optimizers import Optimizer, check_constant, check_optimizer
from adamflow.runs import Comparison, Trajectory, compare, iterate, solve
from adamflow.runs.input_checks import smallest_tolerance
from adamflow.runs.underflow import count_underflowed
from adamflow.types import Loss, Params

#: The share of the squared distance that coordinates with a change of sign must hold to be its cause.
_SHARE_OF_DISTANCE = 0.5

#: The share of a distance from which on an error of the solver is its cause.
_SHARE_OF_SOLVER = 1 / 3

#: The tolerance of the run that tells the error of the solver, where the run itself did not estimate it; in single
#: precision, which cannot resolve that, twice the smallest that it can.
_TIGHT_RTOL = 1e-7


@dataclasses.dataclass(frozen=True)
class Cause:
    """A known cause of a distance between a flow and the iterates.

    Attributes:
        name: "edge of stability", "edge of the flow", "sign change", "young filters", "solver" or "underflow".
        met: whether it is there, or `None` if it was not looked for, or cannot be told.
        evidence: what was measured, in words.
        value: the number behind it: ηs over the edge, the share of the squared distance, iterations over the memory of
            the filters, the error of the solver over the distance, the number of parameters that underflow.
    """

    name: str
    met: bool | None
    evidence: str
    value: float


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What `explain` returns; `print` says it in words.

    Attributes:
        departs_at: the first saved iteration at which the error is above the tolerance; `None` if none is.
        agrees_until: the last saved iteration before it.
        tolerance: as given.
        error: the distance over the largest distance moved, at `departs_at`, or the largest.
        causes: all that are known, those that are met first.
        comparison: of both runs.
        ends: what the outcome of a run that did not complete says, "" if both did.
    """

    departs_at: float | None
    agrees_until: float
    tolerance: float
    error: float
    causes: tuple[Cause, ...]
    comparison: Comparison = dataclasses.field(repr=False)
    ends: str = ""

    @property
    def met(self) -> tuple[Cause, ...]:
        """The causes that are there."""
        return tuple(cause for cause in self.causes if cause.met)

    def __str__(self) -> str:
        if self.departs_at is None:
            return paragraph(
                f"Both agree within {percent(self.error)} of the distance moved, up to iteration "
                f"{self.agrees_until:g}.",
                self.ends,
            )
        open_ones = [cause for cause in self.causes if cause.met is None]
        found = [f"{cause.name.capitalize()}: {cause.evidence}" for cause in self.met]
        return paragraph(
            f"The flow is within {percent(self.tolerance)} of the distance moved until iteration "
            f"{self.agrees_until:g}, and {percent(self.error)} off at {self.departs_at:g}.",
            *(found or ["None of the known causes is met."]),
            *(f"Not told: {cause.name} ({cause.evidence})" for cause in open_ones),
            self.ends,
        )

    def _repr_html_(self) -> str:
        rows = [
            (cause.name, {True: "yes", False: "no", None: "not told"}[cause.met], cause.evidence)
            for cause in self.causes
        ]
        return html_table(str(self), rows, ("cause", "met", "evidence"))


def explain(
    discrete: Trajectory,
    continuous: Trajectory,
    optimizer: Optimizer,
    loss: Loss,
    *,
    flow: AbstractFlow | None = None,
    tolerance: float = 0.01,
) -> Explanation:
    """Until when a flow is right, and which of the known causes is there when it stops to be.

    The iterates are computed again, up to where the distance has grown to the tolerance, with a look at a few of them:

    - *edge of stability*: η times the preconditioned sharpness, by Lanczos, has come to its edge
      (`critical_curvature`), where iterates oscillate and no flow follows them; *edge of the flow*: to that of the
      flow;
    - *sign change*: coordinates whose gradient changed its sign shortly before hold most of the squared distance. With
      small ε, m/√v varies fast there;
    - *young filters*: it is still early, so that filters hold few gradients;
    - *solver*: the solver's own error is a third of the distance or more;
    - *underflow*: second moments are 0 beside gradients that are not.

    Args:
        discrete: the run of `af.iterate` on the full loss, with its parameters.
        continuous: the run of a flow, saved at the same iterations.
        optimizer: of both.
        loss: of both.
        flow: the flow that ran, if known: then its own edge is looked at, and a second run tells the solver's error
            where the first has no `error_estimate`.
        tolerance: the distance, over the largest distance that the iterates moved, above which the flow counts as
            wrong. (The `relative_error` of `compare` is over the distance moved so far, which is small at first.)

    Returns:
        an `Explanation`.

    Raises:
        TypeError: an argument is of another type.
        ValueError: the runs cannot be compared, or the iterates are not those of this optimizer and loss.

    >>> import adamflow as af
    >>> problem, optimizer = af.problems.chain(dimension=4), af.adam(1e-3)
    >>> discrete = af.iterate(optimizer, problem.loss, problem.params, 100)
    >>> continuous = af.solve(af.GouldTanakaFlow(optimizer), problem.loss, problem.params, 100)
    >>> [cause.name for cause in explain(discrete, continuous, optimizer, problem.loss, tolerance=2e-3).met]
    ['young filters']
    """
    check_optimizer("explain", optimizer)
    check_constant(
        "explain", optimizer, "take optimizer.at(iteration), which has those of one iteration", takes_clipping=True
    )
    check_loss(loss)
    check_range("tolerance", tolerance, 0.0, low_open=True)
    if flow is not None and not isinstance(flow, AbstractFlow):
        raise TypeError(f"flow must be a flow such as af.GouldTanakaFlow(optimizer), got {describe(flow)}")
    common = int(min(discrete.iterations[-1], continuous.iterations[-1]))
    discrete, continuous = (_until(run, common) for run in (discrete, continuous))
    comparison = compare(discrete, continuous)
    errors = _errors(comparison, discrete)
    ends = " ".join(
        f"The run {run.name!r} {run.outcome.message}"
        for run in (discrete, continuous)
        if not bool(run.outcome.successful)
    )
    beyond = np.flatnonzero(~(errors <= tolerance))
    iterations = np.asarray(comparison.iterations)
    if not beyond.size:
        return Explanation(None, float(iterations[-1]), tolerance, float(errors.max()), (), comparison, ends)
    index = int(beyond[0])
    place = _Place(discrete, continuous, optimizer, loss, flow, index, _looks(optimizer, loss, discrete, index))
    causes = [look(place) for look in _CAUSES]
    causes.sort(key=lambda cause: (not cause.met, cause.met is None))
    before = float(iterations[max(index - 1, 0)])
    return Explanation(
        float(iterations[index]), before, tolerance, float(errors[index]), tuple(causes), comparison, ends
    )


def _errors(comparison: Comparison, discrete: Trajectory) -> np.ndarray:
    """Distances over the largest distance that the iterates moved."""
    start = _rows(jax.tree.map(lambda leaf: leaf[None], discrete.initial_params))
    moved = np.linalg.norm(_rows(discrete.params) - start, axis=1).max()
    return np.asarray(comparison.absolute_error) / max(float(moved), np.finfo(float).tiny)


def _until(run: Trajectory, last: int) -> Trajectory:
    """The rows of a run up to an iteration, so that a run that ended early can be compared."""
    count = int(np.searchsorted(np.asarray(run.iterations), last, side="right"))
    cut = {name: jax.tree.map(lambda leaf: leaf[:count], getattr(run, name)) for name in ("iterations", "params")}
    if run.error_estimate is not None:
        cut["error_estimate"] = run.error_estimate[:count]
    return dataclasses.replace(run, **cut)


@dataclasses.dataclass(frozen=True)
class _Looks:
    """The iterates before the distance has grown: whole iterations, gradients by row, underflowed parameters."""

    iterations: np.ndarray
    gradients: np.ndarray
    underflowed: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Place:
    discrete: Trajectory
    continuous: Trajectory
    optimizer: Optimizer
    loss: Loss
    flow: AbstractFlow | None
    index: int
    looks: _Looks

    @property
    def iteration(self) -> int:
        """The whole iteration at which the distance is above the tolerance."""
        return int(np.ceil(float(self.discrete.iterations[self.index])))

    @property
    def distance(self) -> np.ndarray:
        """The difference of the parameters there, as one vector."""
        return _rows(self.continuous.params)[self.index] - _rows(self.discrete.params)[self.index]


def _rows(tree: Any) -> np.ndarray:
    """Leaves with a leading axis of time as rows."""
    return np.concatenate([np.asarray(leaf).reshape(len(leaf), -1) for leaf in jax.tree.leaves(tree)], axis=1)


def _looks(optimizer: Optimizer, loss: Loss, discrete: Trajectory, index: int) -> _Looks:
    """The iterates once more, up to the row of that index, with gradients shortly before it."""
    last = max(int(np.ceil(float(discrete.iterations[index]))), 1)
    looks = np.unique(np.linspace(last - max(5, last // 5), last, 9).round().clip(0))

    def observe(snapshot: Snapshot) -> tuple[Params, jax.Array, Params]:
        underflowed = count_underflowed(optimizer, snapshot.gradient, snapshot.filters)
        return snapshot.gradient, underflowed, snapshot.params

    run = iterate(optimizer, loss, discrete.initial_params, last, save_at=looks, observe=observe, on_failure="ignore")
    gradients, underflowed, params = run.observed
    if float(discrete.iterations[index]) == last and len(run) == len(looks):
        given, found = _rows(discrete.params)[index], _rows(params)[-1]
        moved = np.linalg.norm(given - _rows(jax.tree.map(lambda leaf: leaf[None], discrete.initial_params))[0])
        if not np.linalg.norm(given - found) <= 1e-2 * moved:
            raise ValueError(
                f"the iterates of {discrete.name!r} are not those of this optimizer and loss: at iteration {last} "
                "they differ; explain needs a run on the full loss, from n = 0, without batches="
            )
    return _Looks(np.asarray(run.iterations), _rows(gradients), np.asarray(underflowed))


class _ScaledSharpness(eqx.Module):
    """η times the preconditioned sharpness of a `Snapshot`, for `observe=`; P = 1 where nothing is divided."""

    optimizer: Optimizer
    loss: Loss

    def __call__(self, snapshot: Snapshot) -> jax.Array:
        filters = [filter for stage in self.optimizer.stages for filter in stage.filters()]
        if any(filter.nonnegative for filter in filters):
            preconditioner = self.optimizer.preconditioner(snapshot.filters, snapshot.iteration)
        else:
            preconditioner = jax.tree.map(jnp.ones_like, snapshot.params)
        found = preconditioned_sharpness(self.loss, snapshot.params, preconditioner, iterations=20)
        return self.optimizer.learning_rate * found.value


def _edges(place: _Place, model: Any, name: str, words: str) -> Cause:
    """ηs at a few iterations up to the place, against an edge."""
    optimizer = place.optimizer
    try:
        edge = float(optimizer.learning_rate * critical_curvature(optimizer, model=model))
        if not np.isfinite(edge):
            return Cause(name, False, "there is none, the step is stable at every sharpness.", 0.0)
        looks = np.unique(np.linspace(0, place.iteration, 5).round())[1:]
        observe = _ScaledSharpness(optimizer, place.loss)
        run = iterate(
            optimizer,
            place.loss,
            place.discrete.initial_params,
            place.iteration,
            save_at=looks,
            observe=observe,
            on_failure="ignore",
        )
    except (TypeError, ValueError) as error:
        return Cause(name, None, f"{str(error).splitlines()[0][:120]}.", float("nan"))
    scaled = np.asarray(run.observed)
    ratio = float(np.nanmax(scaled)) / edge
    at = int(run.iterations[int(np.nanargmax(scaled))])
    evidence = f"ηs = {np.nanmax(scaled):.3g} at iteration {at} is {ratio:.2g} of {words}, {edge:.4g}."
    return Cause(name, ratio >= NEAR_THE_EDGE, evidence, ratio)


def _edge_of_stability(place: _Place) -> Cause:
    return _edges(place, "discrete", "edge of stability", "the edge of the iterates")


def _edge_of_flow(place: _Place) -> Cause:
    if place.flow is None:
        return Cause("edge of the flow", None, "give flow= for it.", float("nan"))
    return _edges(place, place.flow, "edge of the flow", "the edge of the flow")


def _sign_change(place: _Place) -> Cause:
    signs = np.sign(place.looks.gradients)
    changed = (signs.max(axis=0) > 0) & (signs.min(axis=0) < 0)
    squares = np.square(place.distance / max(np.abs(place.distance).max(), np.finfo(float).tiny))
    share = float(squares[changed].sum() / max(squares.sum(), np.finfo(float).tiny))
    part = float(changed.mean())
    first, last = place.looks.iterations[[0, -1]]
    evidence = (
        f"{changed.sum()} of {changed.size} coordinates of the gradient changed their sign in iterations {first:g} to "
        f"{last:g}, and hold {share:.0%} of the squared distance."
    )
    return Cause("sign change", share >= _SHARE_OF_DISTANCE and share >= 2 * part, evidence, share)


def _young_filters(place: _Place) -> Cause:
    ratio = place.iteration / averages.shortest_memory(place.optimizer, default=1.0)
    evidence = f"iteration {place.iteration} is {ratio:.2g} memories 1/(1−α) of the fastest filter."
    if ratio <= 2:
        evidence += " The first iterations are where flows are least accurate: start=20 leaves them to the optimizer."
    return Cause("young filters", ratio <= 2, evidence, ratio)


def _solver(place: _Place) -> Cause:
    comparison = compare(place.discrete, place.continuous)
    distance = float(comparison.relative_error[place.index])
    if place.continuous.error_estimate is not None:
        error, how = float(place.continuous.error_estimate[place.index]), "as estimated by the run"
    elif place.flow is None:
        return Cause("solver", None, "give flow=, or run the flow with estimate_error=True.", float("nan"))
    else:
        rtol = max(_TIGHT_RTOL, 2 * smallest_tolerance(place.discrete.initial_params))
        tight = solve(
            place.flow,
            place.loss,
            place.discrete.initial_params,
            max(place.iteration, 1),
            save_at=np.asarray(place.discrete.iterations)[: place.index + 1],
            rtol=rtol,
            on_failure="ignore",
        )
        if len(tight) <= place.index:
            return Cause("solver", None, f"a run at rtol {rtol:.2g} {tight.outcome.message}", float("nan"))
        error = float(np.linalg.norm(_rows(tight.params)[-1] - _rows(place.continuous.params)[place.index]))
        error *= distance / float(comparison.absolute_error[place.index])
        how = f"against a run at rtol {rtol:.2g}"
        if rtol > _TIGHT_RTOL:
            how += " in single precision, with rounding in both; float64 tells that apart"
    ratio = error / distance
    evidence = f"its error of {error:.1e} ({how}) is {ratio:.1%} of the distance."
    return Cause("solver", ratio >= _SHARE_OF_SOLVER, evidence, ratio)


def _underflow(place: _Place) -> Cause:
    count = int(place.looks.underflowed.max(initial=0))
    evidence = f"{count} second moments are 0 beside gradients that are not."
    return Cause("underflow", count > 0, evidence + (" Take float64." if count else ""), float(count))


_CAUSES: tuple[Callable[[_Place], Cause], ...] = (
    _edge_of_stability,
    _edge_of_flow,
    _sign_change,
    _young_filters,
    _solver,
    _underflow,
)
