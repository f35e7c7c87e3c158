"""What the page shows: numbers of the public API for one setting of the sliders.

Runs are compiled once for each number of stages and each order of the flow. All other numbers are arguments of the
programs, so that a slider that moves compiles nothing.
"""

import dataclasses
import functools
import threading
from collections.abc import Callable
from typing import Any, cast

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Complex, Float

import adamflow as af
from adamflow.optimizers import decays_as_adam

#: Iterations of both runs.
STEPS = 400
#: Trial steps after which the flow gives up.
_MAX_STEPS = 4000
#: What makes XLA compile twice as fast. The programs are small: they run in milliseconds anyway.
_FAST_COMPILATION = {"xla_backend_optimization_level": 1, "xla_llvm_disable_expensive_passes": True}
#: Up to this iteration the bound is shown.
_LAST_OF_BOUND = 10_000
#: Settings are prepared one after the other: two threads that compile the same would both wait for it.
_COMPILES = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Settings:
    """Where the sliders stand.

    Attributes:
        beta: decay β of the second moment, before k-Adam shares it among its stages.
        gamma: decay γ of the first moment, the same.
        learning_rate: η.
        weight_decay: λ.
        k: stages of k-Adam; 1 is AdamW.
        order: of the modified flow.
        iteration: n, at which eigenvalues are shown.
    """

    beta: float = 0.99
    gamma: float = 0.9
    learning_rate: float = 0.05
    weight_decay: float = 0.0
    k: int = 1
    order: int = 2
    iteration: int = STEPS

    @property
    def optimizer(self) -> af.Optimizer:
        """k-Adam with these numbers."""
        return _optimizer(self.k, self.learning_rate, self.beta, self.gamma, self.weight_decay)


@dataclasses.dataclass(frozen=True)
class View:
    """What a setting leads to; arrays over iterations are those of n = 0 … `STEPS`, nan where a run has ended.

    Attributes:
        settings: of the sliders.
        exponent: C(β, γ).
        is_bounded: whether the updates of the last stage, which bounds all, have a limit: γ² < β.
        decays: β and γ of each stage.
        bound_iterations: increasing, spaced evenly on a logarithmic scale.
        bound: Bₙ of the discrete optimizer at these.
        updates: the largest entry of |uₙ| in the run.
        discrete: θₙ.
        continuous: θ of the flow at the same times.
        relative_error: their distance, over the largest distance moved so far.
        scaled_sharpness: η times the preconditioned sharpness.
        edge: the value of it at which the discrete step turns unstable.
        flow_edge: that of the flow; inf if there is none.
        shown_iteration: the iteration of the eigenvalues: that of the sliders, or the last one of a run that ended.
        multipliers: eigenvalues of the step there, along the sharpest direction.
        flow_multipliers: those of the flow over one iteration.
        outcomes: how both runs ended, in words.
    """

    settings: Settings
    exponent: float
    is_bounded: bool
    decays: tuple[tuple[float, float], ...]
    bound_iterations: Float[np.ndarray, "points"]
    bound: Float[np.ndarray, "points"]
    updates: Float[np.ndarray, "saved"]
    discrete: Float[np.ndarray, "saved 2"]
    continuous: Float[np.ndarray, "saved 2"]
    relative_error: Float[np.ndarray, "saved"]
    scaled_sharpness: Float[np.ndarray, "saved"]
    edge: float
    flow_edge: float
    shown_iteration: int
    multipliers: Complex[np.ndarray, "rows"]
    flow_multipliers: Complex[np.ndarray, "flow_rows"]
    outcomes: tuple[str, str]


def problem() -> Any:
    """The problem of both runs: a valley with two parameters."""
    return af.problems.chain(2)


def settings_view(settings: Settings) -> View:
    """Run the optimizer and its flow with these settings, and say what theory knows of them.

    The first call for a k or an order compiles, which takes some seconds; from then on it takes some milliseconds.
    Precision is that of jax: set `jax_enable_x64` for the numbers of the page.

    Args:
        settings: of the sliders.

    Raises:
        ValueError: if a number is out of its range.

    Example:
        >>> import adamflow as af
        >>> from adamflow.explorer import Settings
        >>> round(float(af.analysis.adaptive_edge(Settings().gamma)), 6)
        38.0
    """
    decays = tuple(cast(Any, decays_as_adam(stage)) for stage in settings.optimizer.stages)
    decays = tuple((float(beta), float(gamma)) for beta, gamma in decays)
    beta, gamma = decays[-1]
    iterations = np.unique(np.geomspace(1, _LAST_OF_BOUND, 120).round())
    numbers = jnp.asarray([settings.learning_rate, settings.beta, settings.gamma, settings.weight_decay])
    discrete, observed = _discrete_program(settings.k)(numbers)
    continuous = _continuous_program(settings.k, settings.order)(numbers)
    scaled = settings.learning_rate * np.asarray(observed["sharpness"])
    shown = _last_finite(scaled, settings.iteration)
    sharpness = scaled[shown] / settings.learning_rate
    edges, systems = _theory_program(settings.k, settings.order)(numbers, sharpness)
    step, rates = (np.linalg.eigvals(np.asarray(system)).astype(complex) for system in systems)
    return View(
        settings=settings,
        exponent=float(af.analysis.stability_exponent(beta=beta, gamma=gamma)),
        is_bounded=bool(af.analysis.bounded_update_sign(beta=beta, gamma=gamma, kind="discrete") > 0),
        decays=decays,
        bound_iterations=iterations,
        bound=_bound(iterations, beta, gamma),
        updates=np.asarray(observed["update"]),
        discrete=np.asarray(discrete.params),
        continuous=np.asarray(continuous.params),
        relative_error=np.asarray(af.compare(discrete, continuous).relative_error),
        scaled_sharpness=scaled,
        edge=settings.learning_rate * float(edges[0]),
        flow_edge=settings.learning_rate * float(edges[1]),
        shown_iteration=shown,
        multipliers=step,
        flow_multipliers=np.exp(rates),
        outcomes=(discrete.outcome.name, continuous.outcome.name),
    )


def prepare(k: int, order: int) -> None:
    """Compile what a number of stages and an order need, unless that is done."""
    with _COMPILES:
        if not is_prepared(k, order):
            settings_view(Settings(k=k, order=order))
            _PREPARED.add((k, order))


def is_prepared(k: int, order: int) -> bool:
    """Whether a view with this k and order compiles nothing any more."""
    return (k, order) in _PREPARED


_PREPARED: set[tuple[int, int]] = set()


def _optimizer(k: int, learning_rate: Any, beta: Any, gamma: Any, weight_decay: Any) -> af.Optimizer:
    return af.kadam(k, learning_rate, beta=beta, gamma=gamma, weight_decay=weight_decay)


def _bound(iterations: np.ndarray, beta: float, gamma: float) -> np.ndarray:
    """Bₙ; inf where it leaves the range of floats."""
    with np.errstate(over="ignore"):
        return np.exp(af.analysis.log_update_bound(iterations, beta=beta, gamma=gamma, kind="discrete"))


@functools.cache
def _discrete_program(k: int) -> Callable[..., tuple[af.Trajectory, dict[str, Any]]]:
    """The program of the discrete run: from the numbers of an optimizer to the run and what was observed along it."""
    loss, params = problem().loss, problem().params

    @functools.partial(jax.jit, compiler_options=_FAST_COMPILATION)
    def run(numbers: jax.Array) -> tuple[af.Trajectory, dict[str, Any]]:
        optimizer = _optimizer(k, *numbers)

        def observe(snapshot: af.Snapshot) -> dict[str, Any]:
            # The direction of k-Adam divides by the roots of all stages, one after the other.
            stages = optimizer.bias_corrected(snapshot.filters, snapshot.iteration)
            roots = jnp.stack([jnp.sqrt(stage["second_moment"]) for stage in stages]).prod(axis=0)
            sharpness = af.analysis.preconditioned_sharpness(loss, snapshot.params, roots, iterations=2)
            return {
                "params": snapshot.params,
                "update": af.analysis.largest_update(snapshot),
                "sharpness": sharpness.value,
            }

        trajectory = af.iterate(optimizer, loss, params, STEPS, observe=observe, on_failure="ignore")
        observed = trajectory.observed
        return dataclasses.replace(trajectory, params=observed["params"], observed=None), observed

    return run


@functools.cache
def _continuous_program(k: int, order: int) -> Callable[..., af.Trajectory]:
    """The program of the flow, from the numbers of its optimizer. Explicit: that compiles in a fifth of the time."""
    loss, params = problem().loss, problem().params

    @functools.partial(jax.jit, compiler_options=_FAST_COMPILATION)
    def run(numbers: jax.Array) -> af.Trajectory:
        flow = af.ModifiedFlow(_optimizer(k, *numbers), order=order)
        return af.solve(flow, loss, params, STEPS, solver=diffrax.Tsit5(), max_steps=_MAX_STEPS, on_failure="ignore")

    return run


@functools.cache
def _theory_program(k: int, order: int) -> Callable[..., tuple[list[jax.Array], list[jax.Array]]]:
    """The program from the numbers and a sharpness to critical curvatures and linear systems, of step and flow."""

    @functools.partial(jax.jit, compiler_options=_FAST_COMPILATION)
    def run(numbers: jax.Array, sharpness: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        optimizer = _optimizer(k, *numbers)
        models = ("discrete", af.ModifiedFlow(optimizer, order=order))
        edges = [af.analysis.critical_curvature(optimizer, model=model) for model in models]
        return edges, [af.analysis.linear_system(optimizer, sharpness, model=model) for model in models]

    return run


def _last_finite(values: np.ndarray, index: int) -> int:
    """The last index, up to the given one, whose value is finite."""
    finite = np.flatnonzero(np.isfinite(values[: index + 1]))
    return int(finite[-1]) if len(finite) else 0
