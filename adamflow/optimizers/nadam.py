"""NAdam: Adam with Nesterov's reading of the first moment, in its three forms."""

from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from adamflow.checks import check_choice, check_range, keyword_decays
from adamflow.optimizers.hyperparameters import beside, check_decays, choice_called, is_zero, number_called
from adamflow.optimizers.optimizer import Optimizer
from adamflow.optimizers.settings import Setting
from adamflow.optimizers.stage import AbstractStage, Filter, Ratio, StageInput, weight_sum_of
from adamflow.types import Leaf, Scalar

FORMS = ("dozat", "uadam")


class NAdamStage(AbstractStage):
    """Filters m of x (decay γ) and v of x² (decay β); u = (γ m/(1−γⁿ⁺²) + (1−γ) x/(1−γⁿ⁺¹))/(√v̂ + ε).

    With form "uadam" m too is divided by 1 − γⁿ⁺¹.
    """

    beta: jax.Array = eqx.field(converter=number_called("beta"))
    gamma: jax.Array = eqx.field(converter=number_called("gamma"))
    form: Literal["dozat", "uadam"] = eqx.field(static=True, converter=choice_called("form", FORMS), default="dozat")

    def __check_init__(self):
        check_decays(self.beta, self.gamma)

    def filters(self) -> tuple[Filter, ...]:
        ahead = None if self.form == "uadam" else lambda iteration: weight_sum_of(self.gamma, iteration + 2)
        return (
            Filter("first_moment", self.gamma, lambda signal, _: signal.value, weight_sum=ahead),
            Filter("second_moment", self.beta, lambda signal, _: signal.value**2, nonnegative=True),
        )

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        share = beside(self.gamma, signal.value)
        weight = beside((1 - self.gamma) / weight_sum_of(self.gamma, iteration + 1), signal.value)
        return ratio(share * averages["first_moment"] + weight * signal.value, averages["second_moment"])


class NAdamScheduleStage(AbstractStage):
    """NAdam whose momentum γₙ = γ (1 − ½ · .96^{(n+1)ψ}) rises from γ/2 to γ, as PyTorch has it.

    Memory is 1 − Πᵢ γᵢ up to now: u = (γₙ₊₁ m/(1−Π_{i≤n+1}) + (1−γₙ) x/(1−Π_{i≤n}))/(√v̂ + ε).
    """

    memory_moves: ClassVar[bool] = True

    beta: jax.Array = eqx.field(converter=number_called("beta"))
    gamma: jax.Array = eqx.field(converter=number_called("gamma"))
    momentum_decay: jax.Array = eqx.field(converter=number_called("momentum_decay"))

    def __check_init__(self):
        check_decays(self.beta, self.gamma)

    def momentum(self, iteration: Scalar) -> Scalar:
        """γₙ."""
        return self.gamma * (1 - 0.5 * 0.96 ** ((iteration + 1) * self.momentum_decay))

    def filters(self) -> tuple[Filter, ...]:
        return (
            Filter("first_moment", self.gamma, lambda signal, _: signal.value, weight_sum=lambda iteration: 1.0),
            Filter("second_moment", self.beta, lambda signal, _: signal.value**2, nonnegative=True),
        )

    def initial_memory(self, leaf: Leaf) -> dict[str, Leaf]:
        return {"weight_sum": jnp.zeros((), leaf.dtype)}

    def update_memory(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar
    ) -> dict[str, Leaf]:
        momentum = beside(self.momentum(iteration), signal.value)
        return {"weight_sum": momentum * memory["weight_sum"] + (1 - momentum)}

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        now, following = (beside(self.momentum(iteration + ahead), signal.value) for ahead in (0, 1))
        weights = memory["weight_sum"]
        of_moment = following / (following * weights + (1 - following)) * averages["first_moment"]
        return ratio(of_moment + (1 - now) / weights * signal.value, averages["second_moment"])


@keyword_decays
def nadam(
    learning_rate: Setting,
    *,
    beta: Scalar = 0.999,
    gamma: Scalar = 0.9,
    epsilon: Scalar = 0.0,
    weight_decay: Setting = 0.0,
    form: Literal["dozat", "uadam"] = "dozat",
    momentum_decay: Scalar = 0.0,
) -> Optimizer:
    """NAdam (Dozat, 2016): the momentum of the next iteration in the step of this one.

        uₙ = [γ mₙ/(1−γⁿ⁺²) + (1−γ) gₙ/(1−γⁿ⁺¹)] / (√v̂ₙ + ε),

    m and v as in `adam`. This is optax's; three forms are in use, which differ by more than rounding: with
    form="uadam" both parts are divided by 1 − γⁿ⁺¹, and with `momentum_decay` γ itself rises from γ/2 to γ over
    thousands of iterations, as in PyTorch (`momentum_decay=0.004` there by default).

    Args:
        learning_rate: η > 0.
        beta: decay β of the second moment, in (0, 1): `b2` in PyTorch and optax.
        gamma: decay γ of the first moment, in [0, 1): `b1` in PyTorch and optax.
        epsilon: ε ≥ 0, added to the root.
        weight_decay: λ ≥ 0, decoupled: optax.nadamw.
        form: "dozat" or "uadam".
        momentum_decay: ψ ≥ 0 of γₙ = γ (1 − ½ · .96^{(n+1)ψ}); 0 for a constant γ. Only with form "dozat".

    Raises:
        ValueError: if a number is out of its range, or momentum_decay is given with form "uadam".

    References:
        T. Dozat, Incorporating Nesterov Momentum into Adam, ICLR workshop (2016).

    Example:
        >>> import adamflow as af
        >>> optimizer = af.nadam(0.1, gamma=0.9)
        >>> print(round(0.1 * float(af.analysis.critical_curvature(optimizer)), 4))
        13.5714
    """
    check_choice("form", form, FORMS)
    check_range("momentum_decay", momentum_decay, 0, float("inf"), high_open=True, hint="0 keeps gamma constant")
    if is_zero("momentum_decay", momentum_decay):
        stage = NAdamStage(beta, gamma, form)
    elif form == "uadam":
        raise ValueError(f"momentum_decay belongs to form='dozat', got momentum_decay={momentum_decay!r} with 'uadam'")
    else:
        stage = NAdamScheduleStage(beta, gamma, momentum_decay)
    return Optimizer(
        learning_rate=learning_rate, stages=(stage,), weight_decay=weight_decay, epsilon=epsilon, name="nadam"
    )
