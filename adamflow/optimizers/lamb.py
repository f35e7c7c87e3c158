"""LAMB: Adam's direction, each tensor scaled to the norm of its parameters."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from adamflow.checks import check_range, keyword_decays
from adamflow.optimizers.adam import adam_stage
from adamflow.optimizers.hyperparameters import beside, flag_called, number_called
from adamflow.optimizers.optimizer import Optimizer
from adamflow.optimizers.settings import Setting
from adamflow.optimizers.stage import AbstractStage, Filter, Ratio, StageInput
from adamflow.types import Leaf, Scalar


class TrustRatioStage(AbstractStage):
    """No filter; with y = x + λθ the direction is u = κ y ‖θ‖/‖y‖ over the tensor, and y where one of the norms is 0.

    With `adds_norms` it is divided by ‖x‖ + λ‖θ‖ instead.
    """

    uses_params: ClassVar[bool] = True

    weight_decay: jax.Array = eqx.field(converter=number_called("weight_decay"), default=0.0)
    coefficient: jax.Array = eqx.field(converter=number_called("trust_coefficient"), default=1.0)
    adds_norms: bool = eqx.field(static=True, converter=flag_called("adds_norms"), default=False)

    def __check_init__(self):
        check_range("weight_decay", self.weight_decay, 0, float("inf"), high_open=True)
        check_range("trust_coefficient", self.coefficient, 0, float("inf"), low_open=True, high_open=True)

    def filters(self) -> tuple[Filter, ...]:
        return ()

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        params, decay = signal.params, beside(self.weight_decay, signal.value)
        direction = signal.value + decay * params
        squares = jnp.sum(params**2), jnp.sum((signal.value if self.adds_norms else direction) ** 2)
        # The roots of 1 in the place of 0, so that derivatives are finite there.
        is_zero = (squares[0] == 0) | (squares[1] == 0)
        size, other = [jnp.sqrt(jnp.where(is_zero, 1.0, square)) for square in squares]
        if self.adds_norms:
            other = other + jnp.where(is_zero, 0.0, decay * size)
        return direction * jnp.where(is_zero, 1.0, beside(self.coefficient, signal.value) * size / other)


@keyword_decays
def lamb(
    learning_rate: Setting,
    *,
    beta: Scalar = 0.999,
    gamma: Scalar = 0.9,
    epsilon: Scalar = 1e-6,
    weight_decay: Scalar = 0.0,
) -> Optimizer:
    """LAMB (You et al., 2019): every tensor moves by η times its own norm.

        yₙ = m̂ₙ/(√v̂ₙ + ε) + λ θₙ,   uₙ = yₙ ‖θₙ‖/‖yₙ‖ for each tensor,   θₙ₊₁ = θₙ − η uₙ,

    two stages: Adam's, and the trust ratio, which needs the parameters. λ stands inside the ratio.

    Args:
        learning_rate: η > 0.
        beta: decay β of the second moment, in (0, 1): `b2` in optax.
        gamma: decay γ of the first moment, in [0, 1): `b1` in optax.
        epsilon: ε ≥ 0, added to the root.
        weight_decay: λ ≥ 0.

    Raises:
        ValueError: if a number is out of its range.

    References:
        Y. You et al., Large Batch Optimization for Deep Learning: Training BERT in 76 minutes, arXiv:1904.00962 (2019).

    Example:
        >>> import adamflow as af
        >>> len(af.lamb(1e-3, weight_decay=0.1).stages)
        2
    """
    return Optimizer(
        learning_rate=learning_rate,
        stages=(adam_stage(beta, gamma), TrustRatioStage(weight_decay)),
        epsilon=epsilon,
        name="lamb",
    )
