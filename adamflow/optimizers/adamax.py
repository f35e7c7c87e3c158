"""Adamax: the first moment over a decaying maximum of |g|."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from adamflow.checks import check_range, keyword_decays
from adamflow.optimizers.hyperparameters import beside, check_decays, number_called
from adamflow.optimizers.optimizer import Optimizer
from adamflow.optimizers.settings import Setting
from adamflow.optimizers.stage import AbstractStage, Filter, Ratio, StageInput, weight_sum_of
from adamflow.types import Leaf, Scalar


class AdamaxStage(AbstractStage):
    """A filter m of x (decay γ) and the memory w ← max(β w, |x| + ε); direction u = m̂/w, 0 where w is 0."""

    memory_moves: ClassVar[bool] = True

    beta: jax.Array = eqx.field(converter=number_called("beta"))
    gamma: jax.Array = eqx.field(converter=number_called("gamma"))
    epsilon: jax.Array = eqx.field(converter=number_called("epsilon"), default=0.0)

    def __check_init__(self):
        check_decays(self.beta, self.gamma)
        check_range("epsilon", self.epsilon, 0, float("inf"), high_open=True)

    def filters(self) -> tuple[Filter, ...]:
        return (Filter("first_moment", self.gamma, lambda signal, _: signal.value),)

    def initial_memory(self, leaf: Leaf) -> dict[str, Leaf]:
        return {"maximum": jnp.zeros_like(leaf)}

    def update_memory(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar
    ) -> dict[str, Leaf]:
        decayed = beside(self.beta, signal.value) * memory["maximum"]
        return {"maximum": jnp.maximum(decayed, jnp.abs(signal.value) + beside(self.epsilon, signal.value))}

    def memory_rate(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar
    ) -> dict[str, Leaf]:
        """w' = max(ln β · w, |x| + ε − w): it falls as βⁿ, and no lower than |x|."""
        falling = beside(jnp.log(self.beta), signal.value) * memory["maximum"]
        rising = jnp.abs(signal.value) + beside(self.epsilon, signal.value) - memory["maximum"]
        return {"maximum": jnp.maximum(falling, rising)}

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        largest = memory["maximum"]
        return averages["first_moment"] / jnp.where(largest == 0, jnp.inf, largest)

    def bound(self, iteration: Scalar, *, bias_correction: bool) -> Scalar | None:
        """(1−γ) Σ_{k≤n} (γ/β)ᵏ over 1 − γⁿ⁺¹: attained by |g_{n−k}| = β^{−k}."""
        quotient, count = self.gamma / self.beta, iteration + 1
        is_one = quotient == 1
        series = (1 - quotient**count) / jnp.where(is_one, 1.0, 1 - quotient)
        total = (1 - self.gamma) * jnp.where(is_one, count, series)
        return total / weight_sum_of(self.gamma, count) if bias_correction else total


@keyword_decays
def adamax(
    learning_rate: Setting,
    *,
    beta: Scalar = 0.999,
    gamma: Scalar = 0.9,
    epsilon: Scalar = 0.0,
    weight_decay: Setting = 0.0,
) -> Optimizer:
    """Adamax (Kingma and Ba, 2015): Adam in the maximum norm.

        mₙ = γ mₙ₋₁ + (1−γ) gₙ,   wₙ = max(β wₙ₋₁, |gₙ| + ε),   uₙ = mₙ/(1−γⁿ⁺¹)/wₙ,   m₋₁ = w₋₁ = 0.

    Args:
        learning_rate: η > 0.
        beta: decay β of the maximum, in (0, 1): `b2` in PyTorch and optax.
        gamma: decay γ of the first moment, in [0, 1): `b1` in PyTorch and optax.
        epsilon: ε ≥ 0, inside the maximum.
        weight_decay: λ ≥ 0, decoupled.

    Raises:
        ValueError: if a number is out of its range.

    References:
        D. P. Kingma and J. Ba, Adam: A Method for Stochastic Optimization, arXiv:1412.6980 (2015), section 7.1.

    Example:
        >>> import adamflow as af
        >>> af.adamax(2e-3).name
        'adamax'
    """
    return Optimizer(
        learning_rate=learning_rate,
        stages=(AdamaxStage(beta, gamma, epsilon),),
        weight_decay=weight_decay,
        name="adamax",
    )
