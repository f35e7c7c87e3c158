"""RMSprop with bias correction: Adam whose first moment is the gradient itself."""

from typing import ClassVar

import equinox as eqx
import jax

from adamflow.checks import keyword_decays
from adamflow.optimizers.hyperparameters import check_decays, number_called
from adamflow.optimizers.optimizer import Optimizer
from adamflow.optimizers.settings import Setting
from adamflow.optimizers.stage import AbstractStage, Filter, Ratio, StageInput
from adamflow.types import Leaf, Scalar


class RMSpropStage(AbstractStage):
    """One filter v of x² with decay β; direction u = x/(√v̂ + ε)."""

    forgets: ClassVar[tuple[str, ...]] = ("first_moment",)

    beta: jax.Array = eqx.field(converter=number_called("beta"))

    def __check_init__(self):
        check_decays(self.beta)

    def filters(self) -> tuple[Filter, ...]:
        return (Filter("second_moment", self.beta, lambda signal, _: signal.value**2, nonnegative=True),)

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        return ratio(signal.value, averages["second_moment"])


@keyword_decays
def rmsprop(
    learning_rate: Setting,
    beta: Scalar = 0.999,
    epsilon: Scalar = 0.0,
    *,
    weight_decay: Setting = 0.0,
    epsilon_inside_root: bool = False,
    bias_correction: bool = True,
) -> Optimizer:
    """RMSprop (Tieleman and Hinton, 2012), by default with bias correction: Adam with γ = 0.

        vₙ = β vₙ₋₁ + (1−β) gₙ²,   uₙ = gₙ / (√[vₙ/(1−βⁿ⁺¹)] + ε),   θₙ₊₁ = θₙ − η (λ θₙ + uₙ)

    Args:
        learning_rate: η > 0.
        beta: decay β of the second moment, in (0, 1): `decay` in optax, `alpha` in PyTorch.
        epsilon: ε ≥ 0.
        weight_decay: λ ≥ 0, decoupled: θ shrinks by ηλ per step whatever v is, as in AdamW. That of PyTorch's RMSprop
            is an l2 penalty, λθ added to the gradient and so divided by √v̂: for that add λ‖θ‖²/2 to the loss.
        epsilon_inside_root: whether ε stands under the root, as in optax.rmsprop by default.
        bias_correction: whether v is divided by 1 − βⁿ⁺¹; PyTorch's RMSprop does not.

    Raises:
        ValueError: if a number is out of its range.

    Example:
        >>> import adamflow as af
        >>> af.rmsprop(1e-3, beta=0.9).name
        'rmsprop'
    """
    return Optimizer(
        learning_rate=learning_rate,
        stages=(RMSpropStage(beta),),
        weight_decay=weight_decay,
        epsilon=epsilon,
        epsilon_inside_root=epsilon_inside_root,
        bias_correction=bias_correction,
        name="rmsprop",
    )
