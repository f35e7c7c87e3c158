"""A run compared with the bound on its updates: how close the largest update comes to it, and where."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from adamflow.analysis.bounds.formulas import bound_growth_rate, check_kind, log_update_bound
from adamflow.checks import is_concrete
from adamflow.flows import Snapshot
from adamflow.optimizers import Optimizer, OptimizerState, SignStage, check_standard, decays_as_adam
from adamflow.optimizers.settings import Schedule, parts
from adamflow.runs import Trajectory
from adamflow.runs.trajectory import check_rows, largest
from adamflow.types import Dataset, Params

#: For each variable of a report: its long name.
_LONG_NAMES = {
    "largest_update": "largest magnitude in the update, ‖u_n‖∞",
    "log_bound": "natural logarithm of the bound on the largest update",
    "bound": "bound on the largest update",
    "margin": "natural logarithm of bound / largest update",
    "rounding": "how far rounding may have moved the margin",
    "smallest_margin": "smallest margin after iteration 0",
    "closest_iteration": "iteration of the smallest margin",
    "exceeded": "number of iterations whose update exceeds the bound by more than rounding",
}


#: Why a discrete run exceeds a bound that is a theorem: nothing else is left.
_REASON = " (second moments underflowed, so try float64 or epsilon > 0, or another record ran)"


class _Updates(NamedTuple):
    """What a run says of its updates: ‖uₙ‖∞ at iterations, how wrong each may be, and the spacing of numbers at 1."""

    iterations: np.ndarray
    sizes: np.ndarray
    errors: np.ndarray
    spacing: float


def largest_update(snapshot: Snapshot) -> Float[Array, ""]:
    r"""The largest magnitude in the update, $\|u_n\|_\infty$: an `observe=` function for `af.iterate` and `af.solve`.

    Args:
        snapshot: a run at one iteration.

    Returns:
        The maximum of $|u_n|$ over all parameters, without learning rate and weight decay; nan if an entry is.

    >>> import adamflow as af
    >>> problem = af.problems.chain(dimension=10)
    >>> run = af.iterate(af.adam(1e-3), problem.loss, problem.params, 50, observe=largest_update)
    >>> run.observed.shape, round(float(run.observed[0]), 12)
    ((51,), 1.0)
    """
    return largest(snapshot.direction)


def bound_report(
    trajectory: Trajectory, optimizer: Optimizer, *, kind: str | None = None, rate: str | None = None
) -> Dataset:
    r"""The largest update $\|u_n\|_\infty$ of a run compared with the bound $B_n$ of `update_bound`.

    The bound is that of the last stage's (β, γ), whatever the stages before it do, with $b_n = 1$ if the optimizer has
    no bias correction. β is the decay of its filter "second_moment", of the squared input, and γ that of
    "first_moment", of the input; a stage without the latter (RMSprop) has γ = 0. The bound of sign descent is 1. With
    ε > 0 the updates are smaller than with ε = 0, so the bound holds too.

    A run that observed `largest_update` is taken at its word, discrete or flow. A discrete run that kept its parameters
    gives $u_n = (\theta_n - \theta_{n+1})/\eta - \lambda\theta_n$ where two iterations in a row were saved. Each
    coordinate is then wrong by about $u\,|\theta|/\eta$, with u = 1e-16 in float64 and 6e-8 in float32, which at
    η = 1e-3 and θ = 1 is 1e-13 and 6e-5.

    An update exceeds the bound if it does by more than rounding. The filters accumulate rounding over the age of what
    they remember: relative errors up to about $2u$ per iteration. The gradients of an update near its bound have a
    mean age of at most n and, in B₊, $1/(\ln\beta - 2\ln\gamma)$; `rounding` is $8u$ times that age plus one, plus
    the error of recovered updates. It does not cover second moments so small that they underflow (with ε = 0, gradients
    around 1e-19 in float32), nor the tolerance of a flow's solver.

    Args:
        trajectory: a single run that observed `largest_update`, or a discrete one that saved its parameters.
        optimizer: the optimizer that ran. For a flow, its `optimizer`.
        kind: which bound, "gould_tanaka", "flow" or "discrete"; by default that to which the run keeps, "discrete" or
            "flow". "gould_tanaka" is exceeded in early iterations, see `update_bound`.
        rate: for kind "flow", the rates of its filters, "exact" or "gould_tanaka". By default that of the
            `GouldTanakaFlow` that ran. No bound is known for other flows: name one to compare with.

    Returns:
        A Dataset with dimension "iteration". A run that ended early keeps the rows before its end.

        - `largest_update` = $\|u_n\|_\infty$, `bound` = $B_n$, which may overflow to inf, `log_bound` = $\ln B_n$;
        - `margin` = $\ln B_n - \ln\|u_n\|_\infty$: how far below the bound; inf where the update is 0;
        - `rounding`: how far rounding may have moved the margin;
        - `smallest_margin` and `closest_iteration`: where the run comes closest to the bound. Iteration 0 does not
          count, unless there is no other: $|u_0|$ is the bound there for every gradient, since it is the only one;
        - `exceeded`: the number of iterations, 0 included, with `margin` < −`rounding`.

        Its attribute `summary` says in words whether the bound stays bounded, and then the last three. `beta` and
        `gamma` are attributes too.

    Raises:
        ValueError: the run is a batch or traced by jax; it observed something else, or saved no two iterations in a
            row; the last stage has no such filters, or decays that vary; `kind` or `rate` is unknown, or is infinite
            at γ = 0; the run is that of a flow whose rate is not known.

    Source: [GT] = R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization,
    arXiv:2411.05746, for "gould_tanaka" and k-Adam; derivation of this project for the others. It writes (β, γ) where
    PyTorch and optax write (b2, b1).

    >>> import adamflow as af
    >>> problem, optimizer = af.problems.logistic(), af.adam(1e-2, beta=0.9, gamma=0.95)
    >>> batches = problem.batches(size=8)
    >>> run = af.iterate(optimizer, problem.loss, problem.params, 50, batches=batches, observe=largest_update)
    >>> report = bound_report(run, optimizer)
    >>> report.margin.dims, int(report.exceeded), round(float(report.closest_iteration))
    (('iteration',), 0, 1)
    >>> print(report.summary)
    adam, discrete: not bounded, since the bound grows by a factor e every 721 iterations; the updates stay within ...
    """
    check_standard("bound_report", optimizer, "no bound is known for its updates")
    kind = ("discrete" if _is_discrete(trajectory) else "flow") if kind is None else kind
    kind, known_rate = check_kind(kind, "exact" if rate is None else rate)
    rate = None if rate is None else known_rate
    if not is_concrete(trajectory, optimizer) or trajectory.iterations.ndim != 1:
        raise ValueError(
            "bound_report takes one run with known numbers, got a batch or a run that jax is tracing; take one lane "
            "with jax.tree.map(lambda leaf: leaf[i], trajectory), outside of jit"
        )
    check_rows(trajectory)
    updates = _recovered(trajectory, optimizer) if trajectory.observed is None else _observed(trajectory)
    decays = _decays_of_last_stage(optimizer)
    rate = _rate(trajectory, kind) if rate is None else rate
    log_bound, age = _bound(decays, updates.iterations, kind, rate, optimizer.bias_correction)
    with np.errstate(divide="ignore", over="ignore"):
        margin = np.where(updates.sizes > 0, log_bound - np.log(updates.sizes), np.inf)
        rounding = 4 * updates.spacing * (age + 1) + updates.errors / np.where(updates.sizes > 0, updates.sizes, 1.0)
        bound = np.exp(log_bound)
    later = np.flatnonzero(updates.iterations > 0)
    closest = later[np.argmin(margin[later])] if later.size else 0
    rows = {
        "largest_update": updates.sizes,
        "log_bound": log_bound,
        "bound": bound,
        "margin": margin,
        "rounding": rounding,
    }
    scalars = {
        "smallest_margin": margin[closest],
        "closest_iteration": updates.iterations[closest],
        "exceeded": np.sum(margin < -rounding),
    }
    import xarray as xr

    report = xr.Dataset(
        {name: ("iteration", values) for name, values in rows.items()} | scalars,
        {"iteration": ("iteration", updates.iterations, {"long_name": "iteration n", "units": "1"})},
        {"run": trajectory.name, "kind": kind, "rate": rate, **decays},
    )
    for name, long_name in _LONG_NAMES.items():
        report[name].attrs.update(long_name=long_name, units="1")
    return report.assign_attrs(summary=_summary(report, _REASON if _is_discrete(trajectory) else ""))


#: The relative error of a rate that a schedule returns.
_ROUNDING_OF_RATES = 16 * float(np.finfo(np.float32).eps)


def _is_discrete(trajectory: Trajectory) -> bool:
    final = trajectory.final_state
    return isinstance(final, tuple) and len(final) == 2 and isinstance(final[1], OptimizerState)


def _rate(trajectory: Trajectory, kind: str) -> str:
    """The rate of the filters in the flow that ran; any where the bound does not depend on it."""
    if kind != "flow" or _is_discrete(trajectory):
        return "exact"
    if trajectory.filter_rate is not None:
        return trajectory.filter_rate
    raise ValueError(
        f"the bound of a flow depends on the rates of its filters, which the run {trajectory.name!r} does not know; "
        "give rate='exact' or rate='gould_tanaka', or for a flow that follows the iterates closely kind='discrete'"
    )


def _observed(trajectory: Trajectory) -> _Updates:
    sizes = trajectory.observed
    if not isinstance(sizes, jax.Array) or sizes.ndim != 1 or not jnp.issubdtype(sizes.dtype, jnp.floating):
        shapes = jax.tree.map(jnp.shape, sizes)
        raise ValueError(
            f"the run must have observed one number at each iteration, ‖u_n‖∞, got {shapes}; run it with "
            "observe=af.analysis.largest_update, or take that part: dataclasses.replace(trajectory, observed=...)"
        )
    kept = np.asarray(trajectory.iterations <= trajectory.outcome.last_valid_iteration)
    values = np.asarray(sizes, np.float64)[kept]
    if not np.all(values >= 0):
        raise ValueError(
            f"what the run observed must be ‖u_n‖∞ ≥ 0, got {values[~(values >= 0)][0]}; run it with "
            "observe=af.analysis.largest_update"
        )
    iterations = np.asarray(trajectory.iterations)[kept]
    return _Updates(iterations, values, np.zeros_like(values), float(jnp.finfo(sizes.dtype).eps))


def _recovered(trajectory: Trajectory, optimizer: Optimizer) -> _Updates:
    """‖uₙ‖∞ from θₙ and θₙ₊₁, with the error that the rounding of θₙ₊₁ leaves."""
    if not _is_discrete(trajectory):
        raise ValueError(
            "the parameters of a flow do not show its direction; run it with observe=af.analysis.largest_update"
        )
    iterations = np.asarray(trajectory.iterations)
    iterations = iterations[iterations <= float(trajectory.outcome.last_valid_iteration)]
    place = np.flatnonzero(np.diff(iterations) == 1)
    if not place.size:
        raise ValueError(
            "updates follow from the parameters at two iterations in a row, but the run saved none such; run it with "
            "observe=af.analysis.largest_update, or leave save_at out"
        )
    rates, weight_decays = _rates(optimizer, trajectory.initial_params, iterations[place])
    sizes, errors, spacing = np.zeros(place.size), np.zeros(place.size), 0.0
    for leaf, eta, decay in zip(jax.tree.leaves(trajectory.params), rates, weight_decays, strict=True):
        theta = np.asarray(leaf, np.float64).reshape(len(leaf), -1)
        now, then = theta[place], theta[place + 1]
        unit = float(jnp.finfo(leaf.dtype).eps)
        scale = np.maximum(np.abs(now), np.abs(then)).max(axis=1, initial=0.0)
        sizes = np.fmax(sizes, np.abs((now - then) / eta[:, None] - decay[:, None] * now).max(axis=1, initial=0.0))
        errors = np.fmax(errors, unit * scale * (1 / eta + decay))
        spacing = max(spacing, unit)
    if optimizer.recipe(clipping=False):
        # Schedules of whole iterations are computed in single precision, and round as their programs do.
        errors = errors + _ROUNDING_OF_RATES * sizes
    return _Updates(iterations[place], sizes, errors, spacing)


def _rates(optimizer: Optimizer, params: Params, iterations: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """η and λ of each leaf, over the iterations; a rate of 0, which hides the direction, is nan."""
    for name in ("learning_rate", "weight_decay"):
        for part in parts(getattr(optimizer, name)):
            if not isinstance(part, Schedule):
                _number(name, part)

    def at(n: jax.Array) -> tuple[Params, Params]:
        now = optimizer.at(n)
        return now.learning_rates(params), now.weight_decays(params)

    found = (
        jax.vmap(at)(jnp.asarray(iterations.astype(int))) if optimizer.recipe(clipping=False) else at(jnp.asarray(0))
    )
    rates, decays = (
        [np.broadcast_to(np.asarray(leaf, float), iterations.shape) for leaf in jax.tree.leaves(tree)] for tree in found
    )
    return [np.where(rate > 0, rate, np.nan) for rate in rates], decays


def _decays_of_last_stage(optimizer: Optimizer) -> dict[str, float]:
    """β and γ of the stage that makes the direction; nothing for sign descent, whose updates are 1 or 0."""
    stage = optimizer.stages[-1]
    if isinstance(stage, SignStage):
        return {}
    filters = {filter.name: filter.decay for filter in stage.filters()}
    if "second_moment" not in filters:
        raise ValueError(
            f"the bound needs a last stage with a filter named 'second_moment' of its squared input, but "
            f"{type(stage).__name__} has {sorted(filters) or 'no filters'}; for other stages no bound is known"
        )
    for name, key in (("beta", "second_moment"), ("gamma", "first_moment")):
        if callable(filters.get(key)):
            raise ValueError(
                f"{name} of the last stage varies with the iteration, but the bound is that of constant decays"
            )
    decays = decays_as_adam(optimizer.stages[-1])
    if decays is None:
        raise ValueError(
            f"the bound is that of a last stage that divides an average of its input by the root of one of its square, "
            f"but {type(stage).__name__} does something else; af.analysis.direction_bound has the bound of other "
            "stages, where one is known"
        )
    return {name: _number(name, decay) for name, decay in zip(("beta", "gamma"), decays, strict=True)}


def _number(name: str, value: Any) -> float:
    if np.ndim(value) != 0:
        raise ValueError(
            f"{name} must be one number, got shape {np.shape(value)}: the record is a batch; take one lane with "
            "jax.tree.map(lambda leaf: leaf[i], optimizer)"
        )
    return float(value)


def _bound(
    decays: dict[str, float], n: np.ndarray, kind: str, rate: str, bias_correction: bool
) -> tuple[np.ndarray, np.ndarray]:
    """ln Bₙ, and the mean age of gradients whose update is near the bound."""
    if not decays:
        return np.zeros_like(n), np.zeros_like(n)
    beta, gamma = decays["beta"], decays["gamma"]
    log_bound = log_update_bound(n, beta=beta, gamma=gamma, kind=kind, rate=rate, bias_correction=bias_correction)
    forgetting = -2 * float(bound_growth_rate(beta=beta, gamma=gamma, kind="discrete"))
    return np.asarray(log_bound), np.minimum(n, 1 / forgetting) if forgetting > 0 else n


def _whether_bounded(report: Dataset) -> str:
    """Whether the bound itself tends to a constant: a run within a bound that grows is not safe for that."""
    if "beta" not in report.attrs:
        return "bounded, as sign descent is by 1"
    exponent = float(bound_growth_rate(beta=report.beta, gamma=report.gamma, kind=report.kind, rate=report.rate))
    if exponent < 0:
        return "bounded, since the bound tends to a constant"
    if exponent == 0:
        return "not bounded, since the bound grows with the root of the iteration"
    return f"not bounded, since the bound grows by a factor e every {1 / exponent:.4g} iterations"


def _summary(report: Dataset, reason: str) -> str:
    """Whether the bound was exceeded, where the run came closest to it, and its largest update of all."""
    n, exceeded = report.iteration.values, int(report.exceeded)
    numbers = "".join(
        f", {symbol} = {report.attrs[name]:.6g}"
        for name, symbol in (("beta", "β"), ("gamma", "γ"))
        if name in report.attrs
    )
    margin, closest = float(report.smallest_margin), float(report.closest_iteration)
    if exceeded:
        first = n[np.argmax(report.margin.values < -report.rounding.values)]
        verdict = f"exceed the bound in {exceeded} of {n.size} iterations, first in {first:g}"
        verdict += reason if report.kind == "discrete" else ""
    else:
        verdict = f"stay within the bound in all {n.size} iterations"
    if margin == np.inf:
        nearest = "all are 0"
    elif abs(margin) <= float(report.rounding.sel(iteration=closest)):
        nearest = f"attain it to rounding at iteration {closest:g}"
    else:
        comes = "come closest" if margin > 0 else "pass it furthest"
        nearest = f"{comes} at iteration {closest:g}, where ln(bound/update) = {margin:.3g}"
    top = report.isel(iteration=int(np.argmax(report.largest_update.values)))
    return (
        f"{report.run}: {_whether_bounded(report)}; the updates {verdict} "
        f"(kind {report.kind!r}{numbers}) and {nearest}. "
        f"The largest is {float(top.largest_update):.4g}, at iteration {float(top.iteration):g}, "
        f"where the bound is {float(top.bound):.4g}."
    )
