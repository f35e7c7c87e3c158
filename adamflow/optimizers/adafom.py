"""AdaFom: Adagrad with a first moment, its squares averaged and not added."""

import equinox as eqx
import jax
import jax.numpy as jnp

from adamflow.checks import check_range, keyword_decays
from adamflow.optimizers.hyperparameters import beside, flag_called, number_called
from adamflow.optimizers.optimizer import Optimizer
from adamflow.optimizers.settings import Setting
from adamflow.optimizers.stage import AbstractStage, Filter, Ratio, StageInput
from adamflow.types import Leaf, Scalar


class AdaFomStage(AbstractStage):
    """Filters m of x (decay γ) and v of x² (decay βₙ = 1 − 1/(n+1): the plain mean); direction u = m̂/(√v + ε).

    With `shrinks` the direction is divided by √(n+1).
    """

    gamma: jax.Array = eqx.field(converter=number_called("gamma"))
    shrinks: bool = eqx.field(static=True, converter=flag_called("shrinks"), default=False)

    def __check_init__(self):
        check_range("gamma", self.gamma, 0, 1, high_open=True, hint="gamma decays the first moment: b1 in optax")

    def filters(self) -> tuple[Filter, ...]:
        return (
            Filter("first_moment", self.gamma, lambda signal, _: signal.value),
            Filter(
                "second_moment",
                lambda iteration: 1 - 1 / (iteration + 1.0),
                lambda signal, _: signal.value**2,
                nonnegative=True,
                weight_sum=lambda iteration: jnp.ones_like(jnp.asarray(iteration, float)),
            ),
        )

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        direction = ratio(averages["first_moment"], averages["second_moment"])
        return direction * beside((iteration + 1.0) ** -0.5, direction) if self.shrinks else direction


@keyword_decays
def adafom(
    learning_rate: Setting,
    *,
    gamma: Scalar = 0.9,
    epsilon: Scalar = 0.0,
    weight_decay: Setting = 0.0,
    bias_correction: bool = False,
    shrinks: bool = False,
) -> Optimizer:
    """AdaFom (Chen et al., 2018): Adam whose second moment is the mean of all squares so far.

        mₙ = γ mₙ₋₁ + (1−γ) gₙ,   vₙ = (n vₙ₋₁ + gₙ²)/(n+1),   uₙ = mₙ/(√vₙ + ε).

    Args:
        learning_rate: η > 0.
        gamma: decay γ of the first moment, in [0, 1): `b1` in PyTorch and optax.
        epsilon: ε ≥ 0, added to the root.
        weight_decay: λ ≥ 0, decoupled.
        bias_correction: whether m is divided by 1 − γⁿ⁺¹; v needs no correction.
        shrinks: whether steps are divided by √(n+1), as in the paper's theory.

    Raises:
        ValueError: if a number is out of its range.

    References:
        X. Chen, S. Liu, R. Sun, M. Hong, On the Convergence of a Class of Adam-Type Algorithms for Non-Convex
        Optimization, arXiv:1808.02941 (2018).

    Example:
        >>> import adamflow as af
        >>> af.adafom(1e-3).name
        'adafom'
    """
    return Optimizer(
        learning_rate=learning_rate,
        stages=(AdaFomStage(gamma, shrinks),),
        weight_decay=weight_decay,
        epsilon=epsilon,
        bias_correction=bias_correction,
        name="adafom",
    )
