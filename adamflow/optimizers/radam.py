"""RAdam: Adam with a factor that the variance of 1/√v̂ in the first iterations calls for."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from adamflow.checks import check_range, keyword_decays
from adamflow.optimizers.hyperparameters import beside, check_decays, number_called
from adamflow.optimizers.optimizer import Optimizer
from adamflow.optimizers.settings import Setting
from adamflow.optimizers.stage import AbstractStage, Filter, Ratio, StageInput, moment_filters
from adamflow.types import Leaf, Scalar

#: Iterations beyond which nothing is left of the start of v in any arithmetic; so that ∞ · 0 is none.
_FOREVER = 1e15


class RAdamStage(AbstractStage):
    """Filters m of x (decay γ) and v of x² (decay β); u = Rₙ m̂/(√v̂ + ε) where ρₙ > `threshold`, else u = m̂."""

    beta: jax.Array = eqx.field(converter=number_called("beta"))
    gamma: jax.Array = eqx.field(converter=number_called("gamma"))
    threshold: jax.Array = eqx.field(converter=number_called("threshold"), default=4.0)

    def __check_init__(self):
        check_decays(self.beta, self.gamma)
        hint = "at 4 and below the variance of 1/√v̂ is infinite: the paper has 4, PyTorch and optax 5"
        check_range("threshold", self.threshold, 4, float("inf"), high_open=True, hint=hint)

    def filters(self) -> tuple[Filter, ...]:
        return moment_filters(self.beta, self.gamma)

    def rectification(self, iteration: Scalar) -> tuple[Any, Any]:
        """Whether the second moment is used at an iteration, and the factor Rₙ."""
        final = 2 / (1 - self.beta) - 1
        count = jnp.minimum(jnp.asarray(iteration, self.beta.dtype) + 1, _FOREVER)
        power = self.beta**count
        length = final - 2 * count * power / (1 - power)
        used = length > self.threshold
        safe, safe_final = jnp.where(used, length, 5.0), jnp.where(used, final, 5.0)
        square = (safe - 4) * (safe - 2) * safe_final / ((safe_final - 4) * (safe_final - 2) * safe)
        return used, jnp.sqrt(square)

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        used, factor = self.rectification(iteration)
        first = averages["first_moment"]
        return jnp.where(used, beside(factor, first) * ratio(first, averages["second_moment"]), first)


@keyword_decays
def radam(
    learning_rate: Setting,
    *,
    beta: Scalar = 0.999,
    gamma: Scalar = 0.9,
    epsilon: Scalar = 0.0,
    weight_decay: Setting = 0.0,
    threshold: Scalar = 4.0,
) -> Optimizer:
    """RAdam (Liu et al., 2019): momentum alone at first, then Adam with a factor that rises to 1.

        ρ∞ = 2/(1−β) − 1,   ρₙ = ρ∞ − 2 (n+1) βⁿ⁺¹/(1−βⁿ⁺¹),
        uₙ = Rₙ m̂ₙ/(√v̂ₙ + ε) if ρₙ > 4, else m̂ₙ,   Rₙ² = (ρₙ−4)(ρₙ−2) ρ∞/((ρ∞−4)(ρ∞−2) ρₙ).

    The libraries switch at 5, an iteration later at β = .999: `threshold=5.0`.

    Args:
        learning_rate: η > 0.
        beta: decay β of the second moment, in (0, 1): `b2` in PyTorch and optax.
        gamma: decay γ of the first moment, in [0, 1): `b1` in PyTorch and optax.
        epsilon: ε ≥ 0, added to the root.
        weight_decay: λ ≥ 0, decoupled.
        threshold: of ρₙ, at least 4.

    Raises:
        ValueError: if a number is out of its range.

    References:
        L. Liu et al., On the Variance of the Adaptive Learning Rate and Beyond, arXiv:1908.03265 (2019).

    Example:
        >>> import adamflow as af
        >>> af.radam(1e-3).name
        'radam'
    """
    return Optimizer(
        learning_rate=learning_rate,
        stages=(RAdamStage(beta, gamma, threshold),),
        weight_decay=weight_decay,
        epsilon=epsilon,
        name="radam",
    )
