"""Yogi: a second moment that changes by no more than (1−β) g² at a time."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from adamflow.checks import check_range, keyword_decays
from adamflow.optimizers.hyperparameters import beside, check_decays, flag_called, number_called
from adamflow.optimizers.optimizer import Optimizer
from adamflow.optimizers.settings import Setting
from adamflow.optimizers.stage import AbstractStage, Filter, Ratio, StageInput, weight_sum_of
from adamflow.types import Leaf, Scalar


class YogiStage(AbstractStage):
    """A filter m of x (decay γ) and the memory v ← v − (1−β) sign(v − x²) x²; direction u = m̂/(√v + ε).

    m starts at `initial_first` and v at `initial_second`. With `corrects_second` v is divided by 1 − βⁿ⁺¹.
    """

    memory_moves: ClassVar[bool] = True

    beta: jax.Array = eqx.field(converter=number_called("beta"))
    gamma: jax.Array = eqx.field(converter=number_called("gamma"))
    initial_second: jax.Array = eqx.field(converter=number_called("initial_second"), default=1e-6)
    initial_first: jax.Array = eqx.field(converter=number_called("initial_first"), default=0.0)
    corrects_second: bool = eqx.field(static=True, converter=flag_called("corrects_second"), default=False)

    def __check_init__(self):
        check_decays(self.beta, self.gamma)
        hint = "it is a mean square"
        check_range("initial_second", self.initial_second, 0, float("inf"), high_open=True, hint=hint)
        ends = (-float("inf"), float("inf"))
        check_range("initial_first", self.initial_first, *ends, low_open=True, high_open=True)

    def filters(self) -> tuple[Filter, ...]:
        start = lambda leaf: jnp.full_like(leaf, self.initial_first)  # noqa: E731
        return (Filter("first_moment", self.gamma, lambda signal, _: signal.value, initial=start),)

    def initial_memory(self, leaf: Leaf) -> dict[str, Leaf]:
        return {"second_moment": jnp.full_like(leaf, self.initial_second)}

    def update_memory(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar
    ) -> dict[str, Leaf]:
        old, square = memory["second_moment"], signal.value**2
        return {"second_moment": old - beside(1 - self.beta, old) * jnp.sign(old - square) * square}

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        square = memory["second_moment"]
        if self.corrects_second:
            square = square / beside(weight_sum_of(self.beta, iteration + 1), square)
        return ratio(averages["first_moment"], square)


@keyword_decays
def yogi(
    learning_rate: Setting,
    *,
    beta: Scalar = 0.999,
    gamma: Scalar = 0.9,
    epsilon: Scalar = 1e-3,
    initial_second: Scalar = 1e-6,
    initial_first: Scalar = 0.0,
    weight_decay: Setting = 0.0,
    bias_correction: bool = False,
) -> Optimizer:
    """Yogi (Zaheer et al., 2018): v moves by ±(1−β) g², so that it falls linearly and not exponentially.

        mₙ = γ mₙ₋₁ + (1−γ) gₙ,   vₙ = vₙ₋₁ − (1−β) sign(vₙ₋₁ − gₙ²) gₙ²,   uₙ = mₙ/(√vₙ + ε).

    optax corrects m and v for their start and starts *both* at 1e-6: `bias_correction=True, initial_first=1e-6`.

    Args:
        learning_rate: η > 0.
        beta: 1 − β is the rate of the second moment, β in (0, 1): `b2` in optax.
        gamma: decay γ of the first moment, in [0, 1): `b1` in optax.
        epsilon: ε ≥ 0, added to the root.
        initial_second: v₋₁ ≥ 0.
        initial_first: m₋₁.
        weight_decay: λ ≥ 0, decoupled.
        bias_correction: whether m and v are divided by 1 − αⁿ⁺¹.

    Raises:
        ValueError: if a number is out of its range.

    References:
        M. Zaheer et al., Adaptive Methods for Nonconvex Optimization, NeurIPS (2018).

    Example:
        >>> import adamflow as af
        >>> af.yogi(1e-2).name
        'yogi'
    """
    return Optimizer(
        learning_rate=learning_rate,
        stages=(YogiStage(beta, gamma, initial_second, initial_first, bias_correction),),
        weight_decay=weight_decay,
        epsilon=epsilon,
        bias_correction=bias_correction,
        name="yogi",
    )
