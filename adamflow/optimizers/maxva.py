"""MAdam and LaMAdam: second moments about the mean, whose decay maximizes the variance at each step."""

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from adamflow.checks import check_range, is_concrete, keyword_decays
from adamflow.optimizers.hyperparameters import beside, number_called, number_or_none
from adamflow.optimizers.optimizer import Optimizer
from adamflow.optimizers.settings import Setting
from adamflow.optimizers.sgd import MomentumStage
from adamflow.optimizers.stage import AbstractStage, Filter, Ratio, StageInput
from adamflow.types import Leaf, Scalar


class MaxVarianceStage(AbstractStage):
    """Memory: averages of x, x² and 1 under a common decay βₙ that depends on them; direction u = x/(√(v/w) + ε).

    With μ = ū/w, σ² = v/w − μ², δ = x − μ before the step, β̃ = (δ²+σ²)/(w(δ²−σ²) + δ²+σ²), clipped to [`lowest`,
    `highest`]; the first is `highest`. That is the decay for which the variance after the step is largest. With
    `gamma`, a filter m of x with that decay takes the place of x in the direction.
    """

    memory_moves: ClassVar[bool] = True

    lowest: jax.Array = eqx.field(converter=number_called("lowest"))
    highest: jax.Array = eqx.field(converter=number_called("highest"))
    gamma: jax.Array | None = eqx.field(converter=number_or_none("gamma"), default=None)

    def __check_init__(self):
        check_range("lowest", self.lowest, 0, 1, low_open=True, high_open=True)
        check_range("highest", self.highest, 0, 1, low_open=True, high_open=True)
        if self.gamma is not None:
            check_range("gamma", self.gamma, 0, 1, high_open=True, hint="gamma decays the first moment")

    def filters(self) -> tuple[Filter, ...]:
        if self.gamma is None:
            return ()
        return (Filter("first_moment", self.gamma, lambda signal, _: signal.value),)

    def initial_memory(self, leaf: Leaf) -> dict[str, Leaf]:
        return {name: jnp.zeros_like(leaf) for name in ("mean", "square", "weight")}

    def decay(self, value: Leaf, memory: dict[str, Leaf]) -> Leaf:
        """βₙ for an input, from the memory before it."""
        weight = memory["weight"]
        is_first = weight == 0
        safe = jnp.where(is_first, 1.0, weight)
        mean = memory["mean"] / safe
        variance = jnp.maximum(memory["square"] / safe - mean**2, 0.0)
        deviation = (value - mean) ** 2
        denominator = weight * (deviation - variance) + deviation + variance
        # Without any variance every decay is as good, and the authors' code takes the lowest.
        best = jnp.where(denominator == 0, 0.0, (deviation + variance) / jnp.where(denominator == 0, 1.0, denominator))
        lowest, highest = beside(self.lowest, value), beside(self.highest, value)
        return jnp.where(is_first, highest, jnp.clip(best, lowest, highest))

    def update_memory(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar
    ) -> dict[str, Leaf]:
        value = signal.value
        decay = self.decay(value, memory)
        inputs = {"mean": value, "square": value**2, "weight": jnp.ones_like(value)}
        return {name: decay * memory[name] + (1 - decay) * inputs[name] for name in inputs}

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        numerator = signal.value if self.gamma is None else averages["first_moment"]
        weight = memory["weight"]
        return ratio(numerator, memory["square"] / jnp.where(weight == 0, 1.0, weight))

    def bound(self, iteration: Scalar, *, bias_correction: bool) -> Scalar | None:
        """√2 without momentum: x²/v ≤ 2, with equality where all inputs before were equal to their mean 0."""
        return math.sqrt(2) if self.gamma is None else None


@keyword_decays
def madam(
    learning_rate: Setting,
    *,
    lowest_beta: Scalar = 0.5,
    highest_beta: Scalar = 0.98,
    gamma: Scalar = 0.9,
    epsilon: Scalar = 1e-15,
    weight_decay: Setting = 0.0,
) -> Optimizer:
    """MAdam (Zhu et al., 2020): Adam with a decay of the second moment that maximizes the observed variance.

        δₙ = gₙ − ūₙ₋₁,   σ² = v̂ₙ₋₁ − ūₙ₋₁²,   βₙ = clip((δ²+σ²)/(w(δ²−σ²) + δ²+σ²), β₋, β₊),
        (ũ, ṽ, w)ₙ = βₙ (ũ, ṽ, w)ₙ₋₁ + (1−βₙ) (gₙ, gₙ², 1),   uₙ = m̂ₙ/(√(ṽₙ/wₙ) + ε),

    each coordinate with a βₙ of its own, ū = ũ/w, v̂ = ṽ/w, and m as in `adam`.

    Args:
        learning_rate: η > 0.
        lowest_beta: β₋, in (0, 1); below .5 it never acts, but under gradients without any variance.
        highest_beta: β₊, in (0, 1), at least β₋.
        gamma: decay γ of the first moment, in [0, 1): `b1` in PyTorch and optax.
        epsilon: ε ≥ 0, added to the root.
        weight_decay: λ ≥ 0, decoupled.

    Raises:
        ValueError: if a number is out of its range.

    References:
        C. Zhu, Y. Cheng, Z. Gan, F. Huang, J. Liu, T. Goldstein, MaxVA: Fast Adaptation of Step Sizes by Maximizing
        Observed Variance of Gradients, arXiv:2006.11918 (2020).

    Example:
        >>> import adamflow as af
        >>> af.madam(1e-3).name
        'madam'
    """
    _check_order(lowest_beta, highest_beta)
    return Optimizer(
        learning_rate=learning_rate,
        stages=(MaxVarianceStage(lowest_beta, highest_beta, gamma),),
        weight_decay=weight_decay,
        epsilon=epsilon,
        name="madam",
    )


@keyword_decays
def lamadam(
    learning_rate: Setting,
    *,
    lowest_beta: Scalar = 0.5,
    highest_beta: Scalar = 0.98,
    gamma: Scalar = 0.9,
    epsilon: Scalar = 1e-15,
    weight_decay: Setting = 0.0,
) -> Optimizer:
    """LaMAdam (Zhu et al., 2020): `madam` that normalizes first and averages then: two stages in a row.

        uₙ = bias-corrected average, decay γ, of gₙ/(√(ṽₙ/wₙ) + ε).

    So |u| ≤ √2 whatever the gradients. The arguments are those of `madam`.

    Raises:
        ValueError: if a number is out of its range.

    Example:
        >>> import adamflow as af
        >>> len(af.lamadam(1e-3).stages)
        2
    """
    _check_order(lowest_beta, highest_beta)
    return Optimizer(
        learning_rate=learning_rate,
        stages=(MaxVarianceStage(lowest_beta, highest_beta), MomentumStage(gamma)),
        weight_decay=weight_decay,
        epsilon=epsilon,
        name="lamadam",
    )


def _check_order(lowest: Scalar, highest: Scalar) -> None:
    check_range("highest_beta", highest, 0, 1, low_open=True, high_open=True)
    check_range("lowest_beta", lowest, 0, 1, low_open=True, high_open=True)
    for value in (lowest, highest):
        if not is_concrete(value) or np.ndim(value):
            return
    check_range("lowest_beta", lowest, 0, float(highest), low_open=True, hint="it is at most highest_beta")
