"""AdEMAMix: a fast and a slow first moment in one numerator."""

import equinox as eqx
import jax

from adamflow.checks import check_range, keyword_decays
from adamflow.optimizers.hyperparameters import beside, check_decays, number_called
from adamflow.optimizers.optimizer import Optimizer
from adamflow.optimizers.settings import Setting
from adamflow.optimizers.stage import AbstractStage, Filter, Ratio, StageInput
from adamflow.types import Leaf, Scalar


class AdEMAMixStage(AbstractStage):
    """Filters m of x (decay γ), m₂ of x (decay b₃, never corrected) and v of x² (β); u = (m̂ + α m₂)/(√v̂ + ε).

    b₃ is `slow_decay`, α `slow_weight`.
    """

    beta: jax.Array = eqx.field(converter=number_called("beta"))
    gamma: jax.Array = eqx.field(converter=number_called("gamma"))
    slow_decay: jax.Array = eqx.field(converter=number_called("slow_decay"))
    slow_weight: jax.Array = eqx.field(converter=number_called("slow_weight"))

    def __check_init__(self):
        check_decays(self.beta, self.gamma)
        check_range("slow_decay", self.slow_decay, 0, 1, low_open=True, high_open=True)
        check_range("slow_weight", self.slow_weight, 0, float("inf"), high_open=True)

    def filters(self) -> tuple[Filter, ...]:
        return (
            Filter("first_moment", self.gamma, lambda signal, _: signal.value),
            Filter("slow_moment", self.slow_decay, lambda signal, _: signal.value, weight_sum=lambda iteration: 1.0),
            Filter("second_moment", self.beta, lambda signal, _: signal.value**2, nonnegative=True),
        )

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        weight = beside(self.slow_weight, signal.value)
        return ratio(averages["first_moment"] + weight * averages["slow_moment"], averages["second_moment"])


@keyword_decays
def ademamix(
    learning_rate: Setting,
    *,
    beta: Scalar = 0.999,
    gamma: Scalar = 0.9,
    slow_decay: Scalar = 0.9999,
    slow_weight: Scalar = 8.0,
    epsilon: Scalar = 0.0,
    weight_decay: Setting = 0.0,
) -> Optimizer:
    """AdEMAMix (Pagliardini, Ablin and Grangier, 2024): Adam with a second, slow first moment.

        m: decay γ of g,   m₂: decay b₃ of g, not corrected,   v: decay β of g²,   uₙ = (m̂ₙ + α m₂ₙ)/(√v̂ₙ + ε).

    The schedules of α and b₃ that the paper warms up with are not here. Since b₃² > β by default, no bound holds for u.

    Args:
        learning_rate: η > 0.
        beta: decay β of the second moment, in (0, 1): `b2` in optax.
        gamma: decay γ of the fast first moment, in [0, 1): `b1` in optax.
        slow_decay: b₃, decay of the slow one, in (0, 1).
        slow_weight: α ≥ 0; sources have 5 to 8, optax 5.
        epsilon: ε ≥ 0, added to the root.
        weight_decay: λ ≥ 0, decoupled.

    Raises:
        ValueError: if a number is out of its range.

    References:
        M. Pagliardini, P. Ablin, D. Grangier, The AdEMAMix Optimizer: Better, Faster, Older, arXiv:2409.03137 (2024).

    Example:
        >>> import adamflow as af
        >>> af.ademamix(1e-3).name
        'ademamix'
    """
    return Optimizer(
        learning_rate=learning_rate,
        stages=(AdEMAMixStage(beta, gamma, slow_decay, slow_weight),),
        weight_decay=weight_decay,
        epsilon=epsilon,
        name="ademamix",
    )
