r"""What keeps the noise of a run when its batch size changes: scaling rules, and the inflated noise of SVAG.

The batch gradient's covariance falls as 1/B. With B → κB, and κ times fewer iterations, the same stochastic
differential equation follows the run under

    SGD:            η → κη,     1−γ → κ(1−γ);
    RMSprop, Adam:  η → √κ η,   1−β → κ(1−β),   1−γ → κ(1−γ),   ε → ε/√κ,   λ → √κ λ,

the first linear, the second (Malladi et al., 2205.10287) where noise dominates v: √v falls as 1/√κ there, beyond that
batch size it does not, and the rule fails silently. Neither holds beyond the mean-square edge, where κη is too large.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from adamflow.checks import check_count, check_range, is_concrete
from adamflow.losses import admit_loss
from adamflow.optimizers import Optimizer, check_constant, check_optimizer
from adamflow.optimizers.reading import reads_as_adam
from adamflow.optimizers.sgd import GradientStage, MomentumStage
from adamflow.types import Batch, Loss, Params, Scalar


def scale_batch(optimizer: Optimizer, factor: Scalar) -> Optimizer:
    r"""The record for batches `factor` times as large, whose run follows the same stochastic differential equation.

    With κ the factor: for SGD the linear rule η → κη, for RMSprop, Adam and AdamW the square-root rule η → √κ η,
    1−β → κ(1−β), ε → ε/√κ (κ ε' = ε where ε stands under the root), λ → √κ λ; for all of them 1−γ → κ(1−γ). Iteration n
    of the old run then stands beside n/κ of the new one.

    Limits. Both rules need steps below the mean-square edge (`mean_square_edge`); for SGD κη·curvature < 2. The
    square-root rule needs a second moment that noise dominates: batches below the `noise_scale`. Decays are off by
    O(κ(1−γ)), so that κ well below 1/(1−γ) and 1/(1−β) is meant: 10 and 1000 at the usual decays.

    Args:
        optimizer: `af.sgd`, `af.rmsprop`, `af.adam`, `af.adamw`.
        factor: κ > 0; below 1 for smaller batches.

    Returns:
        a record of the same kind.

    Raises:
        TypeError: another optimizer, for which no rule is known.
        ValueError: a decay would leave (0, 1).

    Example:
        >>> import adamflow as af
        >>> larger = af.scale_batch(af.adam(1e-3, beta=0.999, gamma=0.9), 4)
        >>> print(larger.learning_rate, larger.stages[0].beta, larger.stages[0].gamma)
        0.002 0.996 0.6
    """
    check_optimizer("scale_batch", optimizer)
    check_constant("scale_batch", optimizer, "take optimizer.at(iteration), which has those of one iteration")
    check_range("factor", factor, 0, low_open=True, high=float("inf"), high_open=True)
    if is_concrete(factor):
        # Not of a type that jax does not have.
        factor = np.asarray(factor, float)
        factor = factor.item() if factor.ndim == 0 else factor
    stage = optimizer.stages[0]
    has_moment = reads_as_adam(stage)
    if len(optimizer.stages) != 1 or not (has_moment or isinstance(stage, GradientStage | MomentumStage)):
        raise TypeError(
            f"scale_batch knows the rules of SGD, RMSprop, Adam and AdamW, but {optimizer.name!r} is another one, "
            "whose noise may scale otherwise"
        )
    stage = _with_rates(stage, factor, "factor")
    if not has_moment:
        return dataclasses.replace(optimizer, learning_rate=factor * optimizer.learning_rate, stages=(stage,))
    root = factor**0.5
    return dataclasses.replace(
        optimizer,
        learning_rate=root * optimizer.learning_rate,
        stages=(stage,),
        weight_decay=root * optimizer.weight_decay,
        epsilon=optimizer.epsilon / (factor if optimizer.epsilon_inside_root else root),
    )


class Inflated(NamedTuple):
    """What `svag` returns.

    Attributes:
        optimizer: the record with smaller steps.
        loss: of a pair of batches.
        batches: a function of the iteration that returns such pairs.
        steps: iterations that stand for one of the original run.
    """

    optimizer: Optimizer
    loss: Loss
    batches: Callable[[Any], Batch]
    steps: int


def svag(optimizer: Optimizer, loss: Loss, batches: Callable[[Any], Batch], inflation: int) -> Inflated:
    r"""A discrete run that converges to the stochastic differential equation of minibatch training as l grows.

    The gradient is r₁g₁ + r₂g₂ of two independent batches with r₁ + r₂ = 1, so that its mean is unchanged:

    - SGD (Li, Malladi and Arora, 2102.12470): r = ½(1 ± √(2l−1)), l times the covariance, η → η/l, 1−γ → (1−γ)/l, and l
      iterations for one;
    - RMSprop, Adam (Malladi et al., 2205.10287): r = ½(1 ± √(2l²−1)), l² times the covariance, η → η/l, ε → lε,
      1−β → (1−β)/l², 1−γ → (1−γ)/l², λ → λ/l, and l² iterations for one.

    If results do not move with l, the equation describes the run. The adaptive limit is that of
    `StochasticFlow(scaling="diffusive")`, whose v forgets ḡ²: they move where ḡ² is not small beside the variance, too.
    Step-size effects leave as 1/l²; beyond l = 4 little is gained, and costs rise as l².

    Args:
        optimizer: `af.sgd`, `af.rmsprop`, `af.adam`, `af.adamw`.
        loss: `loss(params, batch)`.
        batches: a function from an iteration to a batch, independent ones.
        inflation: l ≥ 1; 1 is the original run, with every other batch.

    Returns:
        (optimizer, loss, batches, steps): run `af.iterate` with the first three for `steps` times as many iterations.

    Example:
        >>> import adamflow as af
        >>> problem = af.problems.logistic()
        >>> optimizer, loss, batches, times = af.noise.svag(af.adam(1e-3), problem.loss, problem.batches(16), 2)
        >>> run = af.iterate(optimizer, loss, problem.params, 10 * times, batches=batches)
        >>> print(times, optimizer.learning_rate, optimizer.stages[0].gamma)
        4 0.0005 0.975
    """
    check_optimizer("svag", optimizer)
    check_constant("svag", optimizer, "take optimizer.at(iteration), which has those of one iteration")
    loss, inflation = admit_loss(loss), check_count("inflation", inflation)
    stage = optimizer.stages[0]
    adaptive = reads_as_adam(stage)
    if len(optimizer.stages) != 1 or not (adaptive or isinstance(stage, GradientStage | MomentumStage)):
        raise TypeError(f"svag knows SGD, RMSprop, Adam and AdamW, but {optimizer.name!r} is another one")
    steps = inflation**2 if adaptive else inflation
    changes: dict[str, Any] = {
        "learning_rate": optimizer.learning_rate / inflation,
        "stages": (_with_rates(stage, 1 / steps, "1/inflation"),),
    }
    if adaptive:
        scale = inflation**2 if optimizer.epsilon_inside_root else inflation
        changes |= {"epsilon": scale * optimizer.epsilon, "weight_decay": optimizer.weight_decay / inflation}
    root = float(np.sqrt(2 * steps - 1))
    return Inflated(
        dataclasses.replace(optimizer, **changes),
        _PairLoss(loss, (1 + root) / 2, (1 - root) / 2),
        _Pairs(batches),
        steps,
    )


class _PairLoss(eqx.Module):
    """r₁ L(θ, first batch) + r₂ L(θ, second batch)."""

    loss: Any
    first: float
    second: float

    def __call__(self, params: Params, batch: tuple[Batch, Batch]) -> Float[Array, ""]:
        one, other = batch
        return self.first * self.loss(params, one) + self.second * self.loss(params, other)


class _Pairs(eqx.Module):
    """Batches 2n and 2n + 1."""

    batches: Any

    def __call__(self, iteration: Any) -> tuple[Batch, Batch]:
        return self.batches(2 * iteration), self.batches(2 * iteration + 1)


def _with_rates(stage: Any, factor: Scalar, name: str) -> Any:
    """A stage whose decays are 1 − κ(1 − α)."""
    changes = {}
    for field in ("beta", "gamma"):
        decay = getattr(stage, field, None)
        if decay is None:
            continue
        if is_concrete(factor, decay):
            known = np.asarray(decay, float)
            new = 1 - np.asarray(factor, float) * (1 - known)
            if np.any(new < (0.0 if field == "gamma" else np.finfo(float).tiny)):
                raise ValueError(
                    f"{name} must be at most 1/(1 − {field}) = {np.min(1 / (1 - known)):.6g}, got {np.max(factor):g}: "
                    f"{field} would be {np.min(new):.3g}, outside (0, 1); take a smaller factor, or a {field} nearer "
                    "to 1 to start from"
                )
        changes[field] = 1 - factor * (1 - decay)
    return dataclasses.replace(stage, **changes) if changes else stage
