"""Sign descent: no memory, only the sign of the gradient."""

from typing import ClassVar

import jax.numpy as jnp

from adamflow.optimizers.optimizer import Optimizer
from adamflow.optimizers.settings import Setting
from adamflow.optimizers.stage import AbstractStage, Filter, Ratio, StageInput
from adamflow.types import Leaf, Scalar


class SignStage(AbstractStage):
    """No filter; direction u = sign(x), with sign(0) = 0."""

    takes_signs: ClassVar[bool] = True

    def filters(self) -> tuple[Filter, ...]:
        return ()

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        return jnp.sign(signal.value)

    def bound(self, iteration: Scalar, *, bias_correction: bool) -> Scalar | None:
        return 1.0


def signsgd(learning_rate: Setting, *, weight_decay: Setting = 0.0) -> Optimizer:
    """Sign descent (Bernstein et al., 2018): θₙ₊₁ = θₙ − η (λ θₙ + sign gₙ), Adam's limit β, γ → 0 at ε = 0.

    Args:
        learning_rate: η > 0.
        weight_decay: λ ≥ 0, decoupled.

    Raises:
        ValueError: if a number is out of its range.

    Example:
        >>> import adamflow as af
        >>> af.signsgd(1e-3).name
        'signsgd'
    """
    return Optimizer(learning_rate=learning_rate, stages=(SignStage(),), weight_decay=weight_decay, name="signsgd")
