"""Adan: a first moment, an average of differences of gradients, and a second moment of both."""

from typing import ClassVar

import equinox as eqx
import jax

from adamflow.checks import check_range, keyword_decays
from adamflow.optimizers.hyperparameters import beside, check_decays, flag_called, number, number_called
from adamflow.optimizers.optimizer import Optimizer
from adamflow.optimizers.settings import Setting, plain_rate
from adamflow.optimizers.stage import AbstractStage, Filter, Ratio, StageInput
from adamflow.types import Leaf, Scalar


class AdanStage(AbstractStage):
    """Filters m of x (decay γ), d̄ of d = xₙ − xₙ₋₁ and q of (x + c d)² (decay β); u = (m̂ + c d̂)/(√q̂ + ε).

    c is `difference_weight`, the decay of d̄ `difference_decay`.
    """

    uses_difference: ClassVar[bool] = True

    beta: jax.Array = eqx.field(converter=number_called("beta"))
    gamma: jax.Array = eqx.field(converter=number_called("gamma"))
    difference_decay: jax.Array = eqx.field(converter=number_called("difference_decay"))
    difference_weight: jax.Array = eqx.field(converter=number_called("difference_weight"))

    def __check_init__(self):
        check_decays(self.beta, self.gamma)
        check_range("difference_decay", self.difference_decay, 0, 1, low_open=True, high_open=True)
        check_range("difference_weight", self.difference_weight, 0, float("inf"), high_open=True)

    def filters(self) -> tuple[Filter, ...]:
        def square(signal: StageInput, averages: dict[str, Leaf]) -> Leaf:
            return (signal.value + beside(self.difference_weight, signal.value) * signal.difference) ** 2

        return (
            Filter("first_moment", self.gamma, lambda signal, _: signal.value),
            Filter("difference", self.difference_decay, lambda signal, _: signal.difference),
            Filter("second_moment", self.beta, square, nonnegative=True),
        )

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        weight = beside(self.difference_weight, signal.value)
        return ratio(averages["first_moment"] + weight * averages["difference"], averages["second_moment"])


@keyword_decays
def adan(
    learning_rate: Setting,
    *,
    beta: Scalar = 0.99,
    gamma: Scalar = 0.98,
    difference_decay: Scalar = 0.92,
    difference_weight: Scalar | None = None,
    epsilon: Scalar = 1e-8,
    weight_decay: Setting = 0.0,
    proximal: bool = True,
) -> Optimizer:
    """Adan (Xie et al., 2022): Nesterov's momentum without a gradient at another point.

        dₙ = gₙ − gₙ₋₁ (0 at n = 0),   m: decay γ of g,   d̄: decay b₂ of d,   q: decay β of (g + c d)²,
        uₙ = (m̂ₙ + c d̂ₙ)/(√q̂ₙ + ε),   c = b₂,   θₙ₊₁ = (θₙ − η uₙ)/(1 + η λ).

    The decays here are 1 minus the paper's. c is then b₂, as in the paper and its code; optax has c = 1 − b₂, .08 in
    place of .92: `difference_weight=0.08`. In a flow d is D g = H θ', a Hessian-vector product.

    Args:
        learning_rate: η > 0.
        beta: decay of the second moment, in (0, 1): `b3` in optax.
        gamma: decay of the first moment, in [0, 1): `b1` in optax.
        difference_decay: b₂, decay of the average of differences, in (0, 1): `b2` in optax.
        difference_weight: c ≥ 0; by default b₂.
        epsilon: ε ≥ 0, added to the root.
        weight_decay: λ ≥ 0.
        proximal: whether decay divides by 1 + ηλ, which is the same as the rate η/(1+ηλ); otherwise θ is multiplied by
            1 − ηλ as in AdamW and optax.

    Raises:
        ValueError: if a number is out of its range.

    References:
        X. Xie et al., Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models, arXiv:2208.06677
        (2022).

    Example:
        >>> import adamflow as af
        >>> print(round(1e-3 * float(af.analysis.critical_curvature(af.adan(1e-3))), 4))
        23.0501
    """
    if flag_called("proximal")(proximal):
        check_range("weight_decay", weight_decay, 0, float("inf"), high_open=True, hint="give proximal a number")
        rate, decay = plain_rate("adan with proximal", learning_rate), number("weight_decay", weight_decay)
        learning_rate = rate / (1 + rate * decay)
    weight = difference_decay if difference_weight is None else difference_weight
    return Optimizer(
        learning_rate=learning_rate,
        stages=(AdanStage(beta, gamma, difference_decay, weight),),
        weight_decay=weight_decay,
        epsilon=epsilon,
        name="adan",
    )
