"""Is a setting of an optimizer safe? Its bound, its region, its edge, and what epsilon does, in words and numbers."""

import dataclasses
import math
from typing import Any

import numpy as np

from adamflow.advice.words import approximately, paragraph
from adamflow.analysis.bounds import bound_growth_rate, bound_report, direction_bound, update_bound
from adamflow.analysis.stability import critical_curvature
from adamflow.checks import describe, is_concrete
from adamflow.display import html_table
from adamflow.optimizers import Optimizer, adam, check_constant, check_optimizer, decays_as_adam
from adamflow.runs import Trajectory

#: The iterations at which bounds without a formula are computed.
_LOOKS = (0, 1, 3, 10, 30, 100, 300, 1000, 2000)


@dataclasses.dataclass(frozen=True)
class Assessment:
    """What `assess` returns; `print` says it in words. A number that does not exist for the optimizer is nan.

    Attributes:
        name: of the optimizer.
        learning_rate: η.
        beta, gamma: decays of the second and the first moment of the last stage (b2 and b1 in PyTorch).
        epsilon: what the optimizer adds to the root of the second moment.
        bounded: whether updates stay bounded for all gradients; `None` where no bound is known.
        largest_update: the least upper bound of |u|, in units of η, over all iterations and gradients; inf if there is
            none.
        largest_update_at: the iteration by which the bound is within 1% of that.
        growth_iterations: iterations in which an unbounded bound grows by a factor e; inf if it is bounded.
        smallest_beta: γ²: above it updates are bounded at this γ.
        largest_gamma: √β: below it updates are bounded at this β.
        edge: η times the preconditioned sharpness at which the step turns unstable; inf if it never does.
        critical_sharpness: the preconditioned sharpness itself, edge/η.
        safe_sharpness: ε edge/η: below that largest eigenvalue of the plain Hessian the step is stable whatever v is,
            since s ≤ λ_max(H)/ε; 0 where ε = 0.
        default: the same of PyTorch's Adam with its defaults, `None` in that one.
        run: what a run did, in words, "" without one.
        observed_update: the largest |u| of that run, nan where it is not known.
    """

    name: str
    learning_rate: float
    beta: float
    gamma: float
    epsilon: float
    bounded: bool | None
    largest_update: float
    largest_update_at: float
    growth_iterations: float
    smallest_beta: float
    largest_gamma: float
    edge: float
    critical_sharpness: float
    safe_sharpness: float
    default: "Assessment | None" = dataclasses.field(default=None, repr=False)
    run: str = ""
    observed_update: float = math.nan

    def __str__(self) -> str:
        sentences = (*_on_updates(self), *_on_edge(self), *_on_epsilon(self), self.run)
        return paragraph(*sentences)

    def _repr_html_(self) -> str:
        return html_table(f"{self.name}: assessment", [("in words", str(self))])


def assess(optimizer: Optimizer, trajectory: Trajectory | None = None) -> Assessment:
    r"""Is this setting safe? Whether updates stay bounded, how large they can become, and where the step is unstable.

    No run is needed. With Adam's decays, over all sequences of gradients and at ε = 0,

    $$\sup |u_n| = b_n \sqrt{\sum_{k=0}^{n} \frac{((1-\gamma)\gamma^k)^2}{(1-\beta)\beta^k}},$$

    which stays bounded exactly where γ² < β. Other optimizers have the bound of `direction_bound`, as far as iteration
    2000. The step is unstable where η times the preconditioned sharpness exceeds its edge (`critical_curvature`); that
    depends on the loss, and `training_report` measures it at a state.

    Args:
        optimizer: with plain numbers.
        trajectory: a run of it, for what the run did beside what could happen.

    Returns:
        an `Assessment`.

    Raises:
        TypeError: it is no optimizer, or no trajectory.
        ValueError: it is a batch of optimizers, or jax is tracing it.

    Source: derivation of this project; the region of bounded updates in another form is of R. Gould and H. Tanaka,
    arXiv:2411.05746.

    >>> import adamflow as af
    >>> safe = assess(af.adam(1e-3))
    >>> print(safe.bounded, round(safe.largest_update, 2), round(safe.edge, 6))
    True 7.27 38.0
    >>> assess(af.adam(1e-3, beta=0.8, gamma=0.95)).bounded
    False
    """
    default = _of(adam(1e-3, beta=0.999, gamma=0.9, epsilon=1e-8), None)
    return dataclasses.replace(_of(optimizer, trajectory), default=default)


def _of(optimizer: Optimizer, trajectory: Trajectory | None) -> Assessment:
    check_optimizer("assess", optimizer)
    check_constant(
        "assess", optimizer, "take optimizer.at(iteration), which has those of one iteration", takes_clipping=True
    )
    if not is_concrete(optimizer) or any(np.ndim(x) for x in (optimizer.learning_rate, optimizer.epsilon)):
        raise ValueError("assess takes one optimizer with known numbers, got a batch or one that jax is tracing")
    learning_rate, epsilon = float(optimizer.learning_rate), float(optimizer.epsilon)
    edge = _edge(optimizer)
    beta, gamma = map(float, decays_as_adam(optimizer.stages[-1]) or (math.nan, math.nan))
    bounds = _known_bound(beta, gamma, optimizer.bias_correction) if beta == beta else _computed_bound(optimizer)
    run, observed = ("", math.nan) if trajectory is None else _on_run(optimizer, trajectory)
    return Assessment(
        name=optimizer.name,
        learning_rate=learning_rate,
        beta=beta,
        gamma=gamma,
        epsilon=epsilon,
        **bounds,
        smallest_beta=gamma**2,
        largest_gamma=math.sqrt(beta),
        edge=edge,
        critical_sharpness=edge / learning_rate if learning_rate > 0 else math.inf,
        safe_sharpness=epsilon * edge / learning_rate if learning_rate > 0 and epsilon > 0 else 0.0,
        run=run,
        observed_update=observed,
    )


def _edge(optimizer: Optimizer) -> float:
    """ηs at the edge; nan where the step has no linear form, as a sign has none."""
    try:
        return float(optimizer.learning_rate * critical_curvature(optimizer))
    except (TypeError, ValueError):
        return math.nan


def _known_bound(beta: float, gamma: float, bias_correction: bool) -> dict[str, Any]:
    """The bound of Adam's formula: its supremum, and when it is nearly reached."""
    growth = float(bound_growth_rate(beta=beta, gamma=gamma, kind="discrete"))
    if growth > 0 or gamma**2 >= beta:
        at = 1 / growth if growth > 0 else math.inf
        return dict(bounded=False, largest_update=math.inf, largest_update_at=math.inf, growth_iterations=at)
    # Both the bias correction and the sum are at their limit after some memories of the slowest of their terms.
    slowest = max(beta, gamma, gamma**2 / beta)
    last = math.ceil(40 / -math.log(slowest)) if slowest > 0 else 0
    n = np.unique(np.round(np.geomspace(1, last + 1, 4000)) - 1)
    values = update_bound(n, beta=beta, gamma=gamma, kind="discrete", bias_correction=bias_correction)
    largest = float(np.max(values))
    at = float(n[np.argmax(values >= 0.99 * largest)])
    return dict(bounded=True, largest_update=largest, largest_update_at=at, growth_iterations=math.inf)


def _computed_bound(optimizer: Optimizer) -> dict[str, Any]:
    """The bound of another optimizer, at some iterations; bounded if it has stopped to grow at the last ones."""
    unknown = dict(bounded=None, largest_update=math.nan, largest_update_at=math.nan, growth_iterations=math.nan)
    try:
        values = np.array([direction_bound(optimizer, n) for n in _LOOKS])
    except (TypeError, ValueError):
        return unknown
    if not np.isfinite(values).all():
        return dict(bounded=False, largest_update=math.inf, largest_update_at=0.0, growth_iterations=math.nan)
    if values[-1] > 1.01 * values[-2]:
        return unknown | dict(largest_update=float(values.max()))
    at = float(_LOOKS[int(np.argmax(values >= 0.99 * values.max()))])
    return dict(bounded=True, largest_update=float(values.max()), largest_update_at=at, growth_iterations=math.inf)


def _on_run(optimizer: Optimizer, trajectory: Trajectory) -> tuple[str, float]:
    """What a run did, in words, and its largest update where that can be read from it."""
    if not isinstance(trajectory, Trajectory):
        raise TypeError(f"trajectory must be a run of af.iterate or af.solve, got {describe(trajectory)}")
    ending = f"The run {trajectory.name!r} {trajectory.outcome.message}"
    try:
        report = bound_report(trajectory, optimizer)
    except (TypeError, ValueError):
        more = "Its updates are not known: run it with observe=af.analysis.largest_update."
        return f"{ending} {more}", math.nan
    largest = float(report.largest_update.max())
    share = math.exp(-float(report.margin.min()))
    return f"{ending} Its largest update was {approximately(largest)} η, at most {share:.0%} of its bound.", largest


def _on_updates(of: Assessment) -> list[str]:
    decays = f" (β = {of.beta:g}, γ = {of.gamma:g})" if of.beta == of.beta else ""
    name = f"{of.name}{decays}"
    if of.bounded is None:
        return [f"{name}: no bound on the updates is known for all iterations."]
    if not of.bounded and of.beta != of.beta:
        return [f"{name}: the updates are not bounded, since they grow with the gradients."]
    default = of.default
    beside = f" (PyTorch's defaults: at most {approximately(default.largest_update)} η)" if default else ""
    if of.bounded:
        sentences = [
            f"{name}: the updates are bounded. No entry of a step can exceed {approximately(of.largest_update)} η"
            f"{beside}, nearly reached from iteration {of.largest_update_at:.0f} on."
        ]
    elif math.isinf(of.growth_iterations):
        sentences = [f"{name}: the updates are not bounded, on the border itself: the bound grows as √n{beside}."]
    else:
        sentences = [
            f"{name}: the updates are NOT bounded. The largest possible step grows by a factor e every "
            f"{approximately(of.growth_iterations)} iterations{beside}."
        ]
    if of.beta == of.beta and of.gamma > 0:
        word = "The border is" if of.bounded else "They would be bounded"
        sentences.append(f"{word} at β > γ² = {of.smallest_beta:.4g}, or γ < √β = {of.largest_gamma:.4g}.")
    return sentences


def _on_edge(of: Assessment) -> list[str]:
    if of.edge != of.edge:
        return ["It has no edge of stability: its step is not linear in the gradients."]
    if math.isinf(of.edge):
        return ["Its step is stable at every sharpness."]
    default = of.default
    beside = f" (PyTorch's defaults: {approximately(default.critical_sharpness)})" if default else ""
    return [
        f"At η = {of.learning_rate:g} a step turns unstable where the preconditioned sharpness exceeds "
        f"{approximately(of.critical_sharpness)}{beside}, that is ηs > {of.edge:.4g}; af.analysis.training_report "
        "measures s."
    ]


def _on_epsilon(of: Assessment) -> list[str]:
    if of.beta != of.beta:
        return []
    if of.epsilon == 0:
        return [
            "ε is 0 (the default here; PyTorch's is 1e-8): a coordinate moves by about η per iteration however small "
            "its gradient is."
        ]
    sentence = f"ε = {of.epsilon:g} shortens the steps of coordinates whose gradients are below it"
    if of.safe_sharpness > 0 and math.isfinite(of.safe_sharpness):
        sentence += (
            f", and keeps every step stable where the largest eigenvalue of the Hessian is below "
            f"{approximately(of.safe_sharpness)}"
        )
    return [sentence + "."]
