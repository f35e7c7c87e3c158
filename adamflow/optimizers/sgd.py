"""Gradient descent, with momentum or without: no second moment."""

from typing import ClassVar

import equinox as eqx
import jax

from adamflow.checks import check_range, keyword_decays
from adamflow.optimizers.hyperparameters import is_zero, number_called
from adamflow.optimizers.optimizer import Optimizer
from adamflow.optimizers.settings import Setting
from adamflow.optimizers.stage import AbstractStage, Filter, Ratio, StageInput
from adamflow.types import Leaf, Scalar


class GradientStage(AbstractStage):
    """No filter; direction u = x."""

    forgets: ClassVar[tuple[str, ...]] = ("first_moment",)

    def filters(self) -> tuple[Filter, ...]:
        return ()

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        return signal.value


class MomentumStage(AbstractStage):
    """A filter m of x (decay γ); direction u = m."""

    gamma: jax.Array = eqx.field(converter=number_called("gamma"))

    def __check_init__(self):
        check_range("gamma", self.gamma, 0, 1, high_open=True, hint="gamma decays the first moment: b1 in optax")

    def filters(self) -> tuple[Filter, ...]:
        return (Filter("first_moment", self.gamma, lambda signal, _: signal.value),)

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        return averages["first_moment"]


@keyword_decays
def sgd(learning_rate: Setting, gamma: Scalar = 0.0, *, weight_decay: Setting = 0.0) -> Optimizer:
    """Gradient descent, with heavy-ball momentum where γ > 0.

        mₙ = γ mₙ₋₁ + (1−γ) gₙ,   m₋₁ = 0,   θₙ₊₁ = θₙ − η (λ θₙ + mₙ),

    without bias correction. PyTorch and optax leave out the factor 1 − γ: their learning rate is (1−γ) η, their
    momentum γ. With batches (`batches=` of `iterate`) it is stochastic gradient descent.

    Args:
        learning_rate: η > 0, what a constant gradient is multiplied by in the end.
        gamma: decay γ of the first moment, in [0, 1): `momentum` in PyTorch and optax.
        weight_decay: λ ≥ 0, decoupled.

    Raises:
        ValueError: if a number is out of its range.

    Example:
        >>> import adamflow as af
        >>> af.sgd(0.1, gamma=0.9).name
        'sgd'
    """
    stage = GradientStage() if is_zero("gamma", gamma) else MomentumStage(gamma)
    return Optimizer(
        learning_rate=learning_rate, stages=(stage,), weight_decay=weight_decay, bias_correction=False, name="sgd"
    )
