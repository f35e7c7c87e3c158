r"""How much of the gradient's noise VRAdam's estimator has, beside that of Adam's momentum along the same run.

The optimizer itself is `af.vradam`. Here a second average stands beside its own, Adam's, and an observer of `iterate`
compares both with the gradient of all the data. Li, Rakhlin and Jadbabaie (2304.13972) start from m₀ on a large batch,
and so does this.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from adamflow.checks import check_count, check_params, check_range, describe
from adamflow.flows import Snapshot
from adamflow.losses import admit_loss, as_scalar
from adamflow.optimizers import AbstractStage, Filter, Optimizer, OptimizerState, StageInput, VRAdamStage
from adamflow.optimizers.record import Record
from adamflow.optimizers.stage import Ratio
from adamflow.programs import program
from adamflow.runs import iterate
from adamflow.types import ArrayLike, Batch, Leaf, Loss, Params, Scalar


class VarianceReducedRun(Record):
    """What `iterate_vradam` returns, with a leading axis of saved iterations.

    Attributes:
        iterations: the saved ones, as far as the run came.
        params: θₙ.
        loss: of all the data.
        estimator_error: |mₙ − ∇L(θₙ)|², of VRAdam's estimator.
        momentum_error: the same of Adam's m̂ along this run, γ m + (1−γ) gₙ(θₙ) from the same m₀.
        gradient_error: the same of the batch gradient alone.
    """

    iterations: Real[Array | np.ndarray, "saved"]
    params: Params
    loss: Float[Array, "saved"]
    estimator_error: Float[Array, "saved"]
    momentum_error: Float[Array, "saved"]
    gradient_error: Float[Array, "saved"]


def iterate_vradam(
    learning_rate: Scalar,
    loss: Loss,
    params: Params,
    steps: int,
    batches: Callable[[Any], Batch],
    *,
    beta: Scalar = 0.999,
    gamma: Scalar = 0.9,
    epsilon: Scalar = 1e-8,
    first_batch: Batch | None = None,
    save_at: ArrayLike | None = None,
) -> VarianceReducedRun:
    r"""Run VRAdam, and measure the error of its estimator against that of Adam's momentum along the same run.

    The equations are those of `af.vradam`, which `af.iterate` runs without the measurement; m₀ is the gradient of a
    large batch, v₀ that of batch 0. An iteration costs two gradients of one batch.

    Args:
        learning_rate: η > 0.
        loss: `loss(params)` on all the data, `loss(params, batch)` on a batch.
        params: θ₀.
        steps: iterations.
        batches: a function from an iteration to a batch.
        beta, gamma: decays of the second and the first moment, in (0, 1) and [0, 1).
        epsilon: ε ≥ 0.
        first_batch: the large batch of m₀; by default all the data.
        save_at: rising whole iterations in [0, steps − 1]; by default ten of them.

    Returns:
        a `VarianceReducedRun`.

    Raises:
        ValueError: an argument is out of its range.

    Warns:
        IncompleteRunWarning: the run ends before the last of `save_at`.

    Source: H. Li, A. Rakhlin and A. Jadbabaie, Convergence of Adam under relaxed assumptions, arXiv:2304.13972 (2023).

    Example:
        >>> import adamflow as af
        >>> problem = af.problems.logistic()
        >>> run = af.noise.iterate_vradam(1e-3, problem.loss, problem.params, 50, problem.batches(8), save_at=[40, 49])
        >>> bool((run.estimator_error < run.gradient_error).all())
        True
    """
    loss, params = admit_loss(loss), check_params(params)
    steps = check_count("steps", steps)
    check_range("learning_rate", learning_rate, 0, low_open=True)
    rows = np.unique(np.linspace(0, steps - 1, min(steps, 10)).astype(int)) if save_at is None else np.asarray(save_at)
    if rows.ndim != 1 or rows.size == 0 or np.any(np.diff(rows) <= 0) or rows[0] < 0 or rows[-1] >= steps:
        raise ValueError(f"save_at must be rising iterations in [0, {steps - 1}], got {describe(save_at)}")
    if np.any(rows % 1):
        raise ValueError(f"save_at must hold whole iterations, got {describe(save_at)}")
    stage = _WithMomentum(VRAdamStage(beta=beta, gamma=gamma))
    optimizer = Optimizer(learning_rate, (stage,), epsilon=epsilon, name="vradam")
    observe, rows = _Errors(loss), rows.astype(int)
    parts, (place, memory) = [], (params, optimizer.initial_state(params))
    first, (place, memory) = _first_iteration(optimizer, observe, place, memory, batches, first_batch)
    if rows[0] == 0:
        parts.append((rows[:1], jax.tree.map(lambda leaf: leaf[None], first)))
    later = rows[rows > 0]
    if len(later):
        # One iteration more than is saved, so that no look at the end is needed.
        last, start = int(later[-1]) + 1, (1, memory)
        run = iterate(optimizer, loss, place, last, save_at=later, start=start, observe=observe, batches=batches)
        parts.append((later[: len(run.iterations)], run.observed))
    iterations, observed = zip(*parts, strict=True)
    saved = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *observed)
    return VarianceReducedRun(np.concatenate(iterations), *saved)


class _WithMomentum(AbstractStage):
    """A stage with Adam's average of its input beside its filters, which nothing reads."""

    uses_gradient_change: ClassVar[bool] = True

    stage: VRAdamStage

    def filters(self) -> tuple[Filter, ...]:
        first, second = self.stage.filters()
        return first, second, first._replace(name="momentum", input=lambda signal, _: signal.value)

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        return self.stage.direction(signal, averages, memory, iteration, ratio)


class _Errors(eqx.Module):
    """The observer: θ, the loss of all the data, and how far estimator, momentum and batch gradient are from ∇L."""

    loss: Loss

    def __call__(self, snapshot: Snapshot) -> tuple[Any, ...]:
        params, filters = snapshot.params, snapshot.filters[0]
        value, truth = jax.value_and_grad(as_scalar(self.loss))(params)
        estimates = (filters["first_moment"], filters["momentum"], snapshot.gradient)
        return params, value, *(_square(jax.tree.map(jnp.subtract, estimate, truth)) for estimate in estimates)


@program
def _first_iteration(
    optimizer: Optimizer,
    observe: _Errors,
    params: Params,
    memory: OptimizerState,
    batches: Callable[[Any], Batch],
    first_batch: Batch | None,
) -> tuple[Any, tuple[Params, OptimizerState]]:
    """Iteration 0, whose m is the gradient of the large batch: its row, and what it leads to."""
    value_of, n = as_scalar(observe.loss), jnp.zeros((), int)
    gradient = jax.grad(value_of)(params, batches(n))
    start = jax.grad(value_of)(params, *(() if first_batch is None else (first_batch,)))
    _, memory = optimizer.update(gradient, memory, n, params, gradient_at_previous=gradient)
    for name in ("first_moment", "momentum"):
        memory = optimizer.with_moment(memory, name, start)
    direction, _ = optimizer.direction_and_targets(gradient, memory.filters, n, params)
    row = observe(Snapshot(n, params, gradient, direction, memory.filters, value_of(params)))
    return row, (optimizer.at(n).apply(params, direction), memory)


def _square(tree: Params) -> Array:
    return jnp.sum(jnp.stack([jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)]))
