r"""VRAdam: Adam whose first moment is corrected by a second gradient on the same sample.

    mₙ = γ mₙ₋₁ + (1−γ) gₙ(θₙ) + γ (gₙ(θₙ) − gₙ(θₙ₋₁)),   vₙ = β vₙ₋₁ + (1−β) gₙ(θₙ)²,
    θₙ₊₁ = θₙ − η mₙ/(√v̂ₙ + ε),

with gₙ(θ) the gradient of batch n at θ (Li, Rakhlin and Jadbabaie, 2304.13972). The correction takes out of mₙ₋₁ that
it is the gradient of an earlier place, on the sample at hand: with noise that does not depend on θ the error
mₙ − ∇L(θₙ) is the average of the noise alone, and the lag of the average is gone. Li et al. start from m₀ on a large
batch and correct the bias of v alone; so does this.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from adamflow.checks import check_count, check_params, check_range, describe
from adamflow.losses import admit_loss, as_scalar, program
from adamflow.optimizers.record import Record
from adamflow.optimizers.stage import weight_sum_of
from adamflow.types import Batch, Loss, Params, Scalar


class VarianceReducedRun(Record):
    """What `iterate_vradam` returns, with a leading axis of saved iterations.

    Attributes:
        iterations: the saved ones.
        params: θₙ.
        loss: of all the data.
        estimator_error: |mₙ − ∇L(θₙ)|², of VRAdam's estimator.
        momentum_error: the same of Adam's m̂ along this run, γ m + (1−γ) gₙ(θₙ) from the same m₀.
        gradient_error: the same of the batch gradient alone.
    """

    iterations: Any
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
    save_at: Any = None,
) -> VarianceReducedRun:
    r"""Run VRAdam, and measure the error of its estimator against that of Adam's momentum along the same run.

    The equations stand at the head of the file. An iteration costs two gradients of one batch.

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
    check_range("beta", beta, 0, 1, low_open=True, high_open=True)
    check_range("gamma", gamma, 0, 1, high_open=True)
    check_range("epsilon", epsilon, 0)
    rows = np.unique(np.linspace(0, steps - 1, min(steps, 10)).astype(int)) if save_at is None else np.asarray(save_at)
    if rows.ndim != 1 or rows.size == 0 or np.any(np.diff(rows) <= 0) or rows[0] < 0 or rows[-1] >= steps:
        raise ValueError(f"save_at must be rising iterations in [0, {steps - 1}], got {describe(save_at)}")
    if np.any(rows % 1):
        raise ValueError(f"save_at must hold whole iterations, got {describe(save_at)}")
    numbers = tuple(jnp.asarray(number) for number in (learning_rate, beta, gamma, epsilon))
    saved = _run(loss, params, batches, first_batch, numbers, jnp.asarray(rows.astype(int)))
    return VarianceReducedRun(rows, *saved)


@program
def _run(loss: Loss, params: Params, batches: Any, first_batch: Any, numbers: Any, rows: Array) -> Any:
    eta, beta, gamma, epsilon = numbers

    def gradient_of(params: Params, *batch: Any) -> Params:
        return jax.grad(as_scalar(loss))(params, *batch)

    start = gradient_of(params) if first_batch is None else gradient_of(params, first_batch)
    zeros = jax.tree.map(jnp.zeros_like, params)

    def moments(carry: Any, n: Array) -> tuple[Any, Params]:
        place, last, m, plain, v = carry
        batch = batches(n)
        here, before = gradient_of(place, batch), gradient_of(last, batch)
        corrected = jax.tree.map(lambda m, g, old: gamma * (m - old) + g, m, here, before)
        averaged = jax.tree.map(lambda m, g: gamma * m + (1 - gamma) * g, plain, here)
        # Iteration 0 has no place before it: both estimators are the gradient of the large batch.
        m, plain = (jax.tree.map(lambda a, b: jnp.where(n == 0, a, b), start, new) for new in (corrected, averaged))
        v = jax.tree.map(lambda v, g: beta * v + (1 - beta) * g**2, v, here)
        return (place, last, m, plain, v), here

    def advance(carry: Any, n: Array) -> Any:
        (place, _, m, plain, v), _ = moments(carry, n)
        mass = weight_sum_of(beta, n + 1)

        def moved(leaf: Array, m: Array, v: Array) -> Array:
            below = jnp.sqrt(v / mass) + epsilon
            return leaf - eta * jnp.where(below > 0, m / jnp.where(below > 0, below, 1.0), 0.0)

        return (jax.tree.map(moved, place, m, v), place, m, plain, v)

    def to_row(carry: Any, row: Array) -> tuple[Any, Any]:
        inner, reached = carry
        inner = jax.lax.fori_loop(reached, row, lambda n, inner: advance(inner, n), inner)
        (place, _, m, plain, _), here = moments(inner, row)
        truth = gradient_of(place)
        errors = [_square(jax.tree.map(jnp.subtract, estimate, truth)) for estimate in (m, plain, here)]
        return (inner, row), (place, as_scalar(loss)(place), *errors)

    start_of_run = ((params, params, zeros, zeros, zeros), jnp.zeros_like(rows[0]))
    return jax.lax.scan(to_row, start_of_run, rows)[1]


def _square(tree: Params) -> Array:
    return jnp.sum(jnp.stack([jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)]))
