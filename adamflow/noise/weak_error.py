r"""How far the distribution of a stochastic flow is from that of its optimizer, with few paths.

A weak error is |E f(flow) − E f(iterates)| of an observable f. Plain averages would need some 10⁸ paths for the errors
of an equation of order 2. Here iterate and flow share their noise, and what remains is regressed on functions of that
noise whose mean is exactly 0, so that some 10⁴ paths are enough:

- one step of `StrangSplitting` per iteration, half the noise, the drift, half the noise, whose own error is O(η³);
- with W₁ = a and b in the two halves the iterate has the noise (a + b)/√2; W₂ = c and d, which drives the noise of g²,
  is independent of it, as in the equation;
- ξ, ξ² − 1, a − b, c and d of every iteration are the regressors; the intercept is the estimate.

The Gaussian noise of the iterates has the covariance that the flow was given.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from adamflow.checks import check_count, check_params, check_range, check_single, check_whole_iterations, describe
from adamflow.flows.tree_math import normal_like
from adamflow.losses import admit_loss, as_scalar
from adamflow.noise.stochastic_flow import StochasticFlow, StrangSplitting
from adamflow.optimizers.record import Record
from adamflow.programs import program
from adamflow.types import Filters, Loss, Params


class WeakConvergence(Record):
    """Weak errors of a stochastic flow over learning rates at the same time ηN.

    Attributes:
        learning_rates: η, shape (rates,).
        differences: E f(flow) − E f(iterates) of each observable, shape (rates, observables).
        deviations: their standard errors, of the same shape.
        name: of the flow.
    """

    learning_rates: Float[np.ndarray, " rates"]
    differences: Float[np.ndarray, "rates observables"]
    deviations: Float[np.ndarray, "rates observables"]
    name: str = eqx.field(static=True)

    @property
    def errors(self) -> Float[np.ndarray, " rates"]:
        """The norm of the differences over all observables."""
        return np.linalg.norm(self.differences, axis=1)

    @property
    def order(self) -> float:
        """The slope of ln error against ln η, weighted by the standard errors; NaN if an error is 0."""
        return _slope(self.learning_rates, self.errors, np.linalg.norm(self.deviations, axis=1))

    @property
    def orders(self) -> Float[np.ndarray, " observables"]:
        """The same slope for each observable; NaN if the difference is 0 or changes its sign between the rates."""
        columns = zip(self.differences.T, self.deviations.T, strict=True)
        one_sign = np.abs(np.sign(self.differences).sum(axis=0)) == len(self.learning_rates)
        slopes = [_slope(self.learning_rates, np.abs(row), deviation) for row, deviation in columns]
        return np.where(one_sign, slopes, np.nan)

    def __str__(self) -> str:
        errors = zip(self.learning_rates, self.errors, np.linalg.norm(self.deviations, axis=1), strict=True)
        rows = [f"  {rate:13.4g}  {error:.3e}   {deviation:.0e}" for rate, error, deviation in errors]
        heading = "  learning rate  weak error  standard error"
        return "\n".join([self.name, heading, *rows, f"  fitted order {self.order:.2f}"])

    def __repr__(self) -> str:
        return str(self)


def measure_weak_convergence(
    make_flow: Callable[[float], StochasticFlow],
    loss: Loss,
    params: Params,
    learning_rates: Sequence[float],
    *,
    time: float,
    key: Key[Array, ""],
    observe: Callable[[Params, Filters], Any],
    filters: Sequence[Mapping[str, Any]] | None = None,
    paths: int = 20_000,
) -> WeakConvergence:
    """Measure the weak order of a stochastic flow: its errors against noisy iterates for several η at fixed t = ηN.

    Without any noise a flow of order 1 has weak order 1 in θ and its moments, too, since variances are O(η) in the
    ballistic scaling: the diffusion is tested by order 2, or by `stationary_covariance`.

    Args:
        make_flow: from a learning rate to a flow with an optimizer of that rate. In the ballistic scaling 1 − γ and
            1 − β are to be proportional to η.
        loss: `loss(params)`, deterministic: the mean over all the data.
        params: where all paths start.
        learning_rates: at least two, all different, each dividing `time` into whole iterations.
        time: t = ηN > 0.
        key: of the noise.
        observe: a jax-traceable function of the parameters and the filters (one dictionary for each stage, by the names
            of its moments), returning numbers or arrays whose means are compared: smooth ones, no thresholds.
        filters: where the filters start; by default at 0. A second moment must start above 0, since as a diffusion
            it would leave the positive numbers at once, and needs an optimizer without bias correction.
        paths: how many; at least twice the regressors, of which an iteration has five for each parameter. All rates run
            in one program, as long as the longest.

    Returns:
        rates, differences with their standard errors, and fitted orders. `print` shows them as a table.

    Raises:
        TypeError: `make_flow` returns something else than a stochastic flow.
        ValueError: a rate does not divide the time, or is not that of its flow; there are too few paths; paths left the
            finite numbers; a second moment starts at 0, or is corrected for a start there.

    Source: common random numbers and control variates are those of Milstein and Tretyakov (Stochastic Numerics for
    Mathematical Physics, 2004, section 2.4); the controls are this project's.

    Example:
        >>> import adamflow as af, jax
        >>> problem = af.problems.quadratic([2.0])
        >>> noise = af.noise.known_covariance(0.25, problem.params)
        >>> flow = lambda eta: af.StochasticFlow(af.sgd(eta), noise, order=2)
        >>> found = af.noise.measure_weak_convergence(
        ...     flow, problem.loss, problem.params, [1 / 8, 1 / 16, 1 / 32], time=1.0, key=jax.random.key(0),
        ...     observe=lambda params, filters: params**2, paths=2000)
        >>> 1.7 < found.order < 2.3
        True
    """
    check_range("learning_rates", learning_rates, 0, low_open=True)
    check_count("the number of different learning rates", len(set(map(float, learning_rates))), 2)
    check_range("time", check_single("time", time), 0, low_open=True)
    loss, params, paths = admit_loss(loss), check_params(params), check_count("paths", paths, 2)
    counts = [check_whole_iterations(time, rate) for rate in learning_rates]
    rows, deviations, name = [], [], ""
    for rate, steps in zip(learning_rates, counts, strict=True):
        flow = make_flow(rate)
        if not isinstance(flow, StochasticFlow):
            raise TypeError(f"make_flow must return a StochasticFlow, got {describe(flow)}")
        if not np.allclose(flow.optimizer.learning_rate, rate, rtol=1e-6):
            raise ValueError(
                f"make_flow({rate:g}) returned a flow whose learning rate is {float(flow.optimizer.learning_rate):g}; "
                "give the optimizer the rate that it is called with"
            )
        state = _start(flow, loss, params, filters)
        differences, controls = _coupled(flow, loss, state, jnp.asarray(steps), key, observe, (max(counts), paths))
        value, deviation = _regress(np.asarray(differences), np.asarray(controls)[:, :steps].reshape(paths, -1), rate)
        rows.append(value)
        deviations.append(deviation)
        name = flow.name
    return WeakConvergence(np.asarray(learning_rates, float), np.stack(rows), np.stack(deviations), name)


def _start(flow: StochasticFlow, loss: Loss, params: Params, filters: Sequence[Mapping[str, Any]] | None) -> Any:
    """The state of the flow at n = 0, with these filters."""
    state = flow.initial_state(loss, params)
    if filters is not None:
        filters = tuple(dict(stage) for stage in filters)
        expected, given = jax.tree.structure(state.filters), jax.tree.structure(filters)
        if expected != given:
            raise ValueError(f"filters must be {expected}, one dictionary for each stage, got {given}")
        if jax.tree.leaves(state.weight_sums):
            raise ValueError(
                f"{flow.optimizer.name!r} corrects its filters for a start at 0, so that filters= would be divided by "
                "the weights of no gradient; take bias_correction=False"
            )
        filters = jax.tree.map(
            lambda old, new: jnp.broadcast_to(jnp.asarray(new, old.dtype), old.shape), state.filters, filters
        )
        state = eqx.tree_at(lambda state: state.optimizer_state.filters, state, filters)
    for stage, values in zip(flow.optimizer.stages, state.filters, strict=True):
        names = [filter.name for filter in stage.filters() if filter.nonnegative]
        moments = jax.tree.leaves([values[name] for name in names])
        if moments and (filters is None or not all(bool(jnp.all(leaf > 0)) for leaf in moments)):
            raise ValueError(
                "the second moment must start above 0, since as a diffusion it would leave the positive numbers at "
                "once; give filters=, with an optimizer of bias_correction=False"
            )
    return state


class _Halves(diffrax.AbstractPath):
    """A driving path over one iteration with given increments in its halves."""

    t0: Any
    t1: Any
    first: Any
    second: Any

    def evaluate(self, t0, t1=None, left=True, use_levy=False):
        early = t0 < (self.t0 + self.t1) / 2
        return jax.tree.map(lambda one, other: jnp.where(early, one, other), self.first, self.second)


@program(compiles_fast=False)
def _coupled(flow: Any, loss: Any, state: Any, steps: Any, key: Any, observe: Any, shape: tuple[int, int]) -> Any:
    """f(flow) − f(iterates) at the end, shape (paths, observables), and the controls, (paths, longest, numbers).

    Iterations beyond `steps` change nothing, so that one program serves all learning rates.
    """
    longest, paths = shape
    white = flow.white_shape(state.params)
    optimizer, gradient = flow.optimizer, jax.grad(as_scalar(loss))

    def move(carry: Any, n: Any, key: Any) -> Any:
        state, (theta, memory) = carry
        one, other, third, fourth = jax.random.split(jax.random.fold_in(key, n), 4)
        a, b = normal_like(one, white[0]), normal_like(other, white[0])
        c, d = normal_like(third, white[1]), normal_like(fourth, white[1])
        shared = jax.tree.map(lambda a, b: (a + b) / np.sqrt(2), a, b)
        noisy = jax.tree.map(jnp.add, gradient(theta), flow.noise.at(theta).root(shared))
        direction, after = optimizer.update(noisy, memory, n, theta)
        begin = n.astype(float)
        half = lambda *white: jax.tree.map(lambda leaf: leaf * np.sqrt(0.5), white)  # noqa: E731
        terms = flow.term(loss, _Halves(begin, begin + 1, half(a, c), half(b, d)))
        moved = StrangSplitting().step(terms, begin, begin + 1, state, None, None, False)[0]
        differences = jax.tree.map(jnp.subtract, a, b)
        controls = (shared, jax.tree.map(lambda x: x**2 - 1, shared), differences, c, d)
        return (moved, (optimizer.apply(theta, direction), after)), _flat(controls)

    def path(key: Any) -> Any:
        def advance(carry: Any, n: Any) -> Any:
            moved, controls = move(carry, n, key)
            return jax.tree.map(lambda new, old: jnp.where(n < steps, new, old), moved, carry), controls

        start = (state, (state.params, state.optimizer_state))
        (end, (theta, memory)), controls = jax.lax.scan(advance, start, jnp.arange(longest))
        return _flat(observe(flow.params(end), end.filters)) - _flat(observe(theta, memory.filters)), controls

    return jax.vmap(path)(jax.random.split(key, paths))


def _regress(differences: np.ndarray, controls: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """The mean differences, shape (observables,), by regression on controls of mean 0; and their standard errors."""
    paths, count = controls.shape
    if paths < 2 * count:
        raise ValueError(f"{paths} paths are too few for {count} regressors; take at least {2 * count}")
    if not np.all(np.isfinite(differences)):
        failed = int((~np.isfinite(differences)).any(axis=1).sum())
        raise ValueError(
            f"{failed} of {paths} paths left the finite numbers at learning rate {rate:g}, as where a second moment "
            "turns negative; take smaller learning rates, or less noise"
        )
    design = np.column_stack([np.ones(paths), controls])
    inverse = np.linalg.inv(design.T @ design)
    found = inverse @ design.T @ differences
    spread = (differences - design @ found).std(axis=0, ddof=count + 1)
    return found[0], np.sqrt(inverse[0, 0]) * spread


def _flat(tree: Any) -> Array:
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def _slope(rates: np.ndarray, errors: np.ndarray, deviations: np.ndarray) -> float:
    """The slope of ln error against ln η, each weighted by error over standard error, up to 1000."""
    if np.any(errors <= 0):
        return float("nan")
    weights = np.minimum(errors / np.maximum(deviations, 1e-3 * errors), 1000.0)
    return float(np.polyfit(np.log(rates), np.log(errors), 1, w=weights)[0])
