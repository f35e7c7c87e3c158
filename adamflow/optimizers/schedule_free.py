"""Schedule-free AdamW: steps of one sequence, gradients at another, and their mean as the result."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from adamflow.checks import check_range, keyword_decays
from adamflow.optimizers.hyperparameters import beside, number_called
from adamflow.optimizers.optimizer import Optimizer
from adamflow.optimizers.rmsprop import RMSpropStage
from adamflow.optimizers.settings import Setting
from adamflow.optimizers.stage import AbstractStage, Filter, Ratio, StageInput
from adamflow.types import Leaf, Scalar


class ScheduleFreeStage(AbstractStage):
    """Memory w = (z − y)/η of the sequence z, where y are the parameters; the direction is that of y.

    With q = x + λy, c = 1/(n+1) and b = `interpolation`: u = (1 − b + bc) q − c w and w ← (1−c)(w − b q).
    The model is evaluated at the mean of z, y − η w (1−b)/b.
    """

    uses_params: ClassVar[bool] = True
    memory_moves: ClassVar[bool] = True
    needs_constant_rate: ClassVar[str] = "the average of iterates takes the place of a schedule; give a number"

    interpolation: jax.Array = eqx.field(converter=number_called("interpolation"))
    weight_decay: jax.Array = eqx.field(converter=number_called("weight_decay"), default=0.0)

    def __check_init__(self):
        hint = "gradients are taken at (1 − b) z + b x; from 0 and 1 the mean x could not be read off"
        check_range("interpolation", self.interpolation, 0, 1, low_open=True, high_open=True, hint=hint)
        check_range("weight_decay", self.weight_decay, 0, float("inf"), high_open=True)

    def filters(self) -> tuple[Filter, ...]:
        return ()

    def initial_memory(self, leaf: Leaf) -> dict[str, Leaf]:
        return {"offset": jnp.zeros_like(leaf), "next_offset": jnp.zeros_like(leaf)}

    def update_memory(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar
    ) -> dict[str, Leaf]:
        offset, direction = memory["next_offset"], self._direction_of_z(signal)
        kept = beside(1 - 1 / (iteration + 1.0), offset)
        return {"offset": offset, "next_offset": kept * (offset - beside(self.interpolation, offset) * direction)}

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        share = beside(1 / (iteration + 1.0), signal.value)
        weight = beside(self.interpolation, signal.value)
        return (1 - weight + weight * share) * self._direction_of_z(signal) - share * memory["offset"]

    def evaluation_params(
        self, params: Leaf, averages: dict[str, Leaf], memory: dict[str, Leaf], learning_rate: Scalar
    ) -> Leaf:
        weight = beside(self.interpolation, params)
        return params - (1 - weight) / weight * learning_rate * memory["offset"]

    def _direction_of_z(self, signal: StageInput) -> Leaf:
        return signal.value + beside(self.weight_decay, signal.value) * signal.params


@keyword_decays
def schedule_free(
    learning_rate: Setting,
    *,
    beta: Scalar = 0.999,
    interpolation: Scalar = 0.9,
    epsilon: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
) -> Optimizer:
    """Schedule-free AdamW (Defazio et al., 2024): an average of iterates in the place of a schedule.

        yₙ = (1−b) zₙ + b xₙ,   gradients at yₙ,   zₙ₊₁ = zₙ − η (g/(√v̂ₙ + ε) + λ yₙ),
        xₙ₊₁ = (1−c) xₙ + c zₙ₊₁,   c = 1/(n+1),   x₀ = z₀ = y₀,

    v as in `rmsprop`, at a constant η. The parameters of a run are y, as in optax; the model is evaluated at x, which
    `optimizer.evaluation_params` gives.

    Args:
        learning_rate: η > 0.
        beta: decay β of the second moment, in (0, 1): `b2` in optax.
        interpolation: b, in (0, 1): `b1` in optax.
        epsilon: ε ≥ 0, added to the root.
        weight_decay: λ ≥ 0, of y.

    Raises:
        ValueError: if a number is out of its range.

    References:
        A. Defazio et al., The Road Less Scheduled, arXiv:2405.15682 (2024).

    Example:
        >>> import adamflow as af
        >>> af.schedule_free(2.5e-3).name
        'schedule-free'
    """
    return Optimizer(
        learning_rate=learning_rate,
        stages=(RMSpropStage(beta), ScheduleFreeStage(interpolation, weight_decay)),
        epsilon=epsilon,
        name="schedule-free",
    )
