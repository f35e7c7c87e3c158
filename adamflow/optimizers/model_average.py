"""An average of the model beside any optimizer, and the clipped Adam for which theory has it."""

import dataclasses
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from adamflow.checks import check_range, keyword_decays
from adamflow.optimizers.hyperparameters import beside, choice_called, number_called
from adamflow.optimizers.optimizer import Optimizer, check_optimizer
from adamflow.optimizers.settings import Setting
from adamflow.optimizers.stage import AbstractStage, Filter, Ratio, StageInput
from adamflow.types import Leaf, Scalar

STARTS = ("params", "zero")


class ModelAverageStage(AbstractStage):
    """A filter θ̄ of the parameters; the direction is the input, unchanged.

    θ̄ starts at the first parameters, or at 0 with bias correction: `start` is "params" or "zero".
    """

    uses_params: ClassVar[bool] = True

    decay: jax.Array = eqx.field(converter=number_called("decay"))
    start: Literal["params", "zero"] = eqx.field(
        static=True, converter=choice_called("start", STARTS), default="params"
    )

    def __check_init__(self):
        check_range("decay", self.decay, 0, 1, low_open=True, high_open=True, hint="it is that of the average of θ")

    def filters(self) -> tuple[Filter, ...]:
        at_params = self.start == "params"
        return (
            Filter(
                "model_average",
                self.decay,
                lambda signal, _: signal.params,
                weight_sum=(lambda iteration: 1.0) if at_params else None,
                initial=(lambda leaf: leaf) if at_params else None,
            ),
        )

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        return signal.value

    def evaluation_params(
        self, params: Leaf, averages: dict[str, Leaf], memory: dict[str, Leaf], learning_rate: Scalar
    ) -> Leaf:
        return averages["model_average"]


class ClippedStage(AbstractStage):
    """Filters m of x (decay γ) and v of x² (decay γ²), both raw; u = clip(√((1+γ)/(1−γ)) m/√v, −D, D).

    Without the clip that is Σ γᵏ x_{n−k}/√(Σ γ²ᵏ x²_{n−k}), which can be as large as √(n+1).
    """

    gamma: jax.Array = eqx.field(converter=number_called("gamma"))
    clip: jax.Array = eqx.field(converter=number_called("clip"))

    def __check_init__(self):
        check_range("gamma", self.gamma, 0, 1, low_open=True, high_open=True)
        check_range("clip", self.clip, 0, float("inf"), low_open=True, hint="it is the largest |u|")

    def filters(self) -> tuple[Filter, ...]:
        return (
            Filter("first_moment", self.gamma, lambda signal, _: signal.value),
            Filter("second_moment", self.gamma**2, lambda signal, _: signal.value**2, nonnegative=True),
        )

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        scale = beside(jnp.sqrt((1 + self.gamma) / (1 - self.gamma)), signal.value)
        largest = beside(self.clip, signal.value)
        return jnp.clip(scale * ratio(averages["first_moment"], averages["second_moment"]), -largest, largest)

    def bound(self, iteration: Scalar, *, bias_correction: bool) -> Scalar | None:
        return None if bias_correction else jnp.minimum(self.clip, jnp.sqrt(iteration + 1.0))


def with_model_average(
    optimizer: Optimizer, decay: Scalar, *, start: Literal["params", "zero"] = "params"
) -> Optimizer:
    """An optimizer that keeps an average of its model: θ̄ₙ = μ θ̄ₙ₋₁ + (1−μ) θₙ, μ = `decay`.

    θ is not affected. The average is a filter of its own stage, so every flow has it: θ̄' = a (θ − θ̄) in
    `GouldTanakaFlow`, to order p in `ModifiedFlow` and `InterpolatingFlow`. `optimizer.evaluation_params`, a function
    for `observe=`, returns it.

    Args:
        optimizer: any record.
        decay: μ, in (0, 1).
        start: "params" for θ̄₋₁ = θ₀, "zero" for θ̄₋₁ = 0 with division by 1 − μⁿ⁺¹ where the optimizer corrects the
            bias.

    Raises:
        TypeError: if the optimizer is none.
        ValueError: if decay is out of its range.

    References:
        K. Ahn and A. Cutkosky, Adam with model exponential moving average is effective for nonconvex optimization,
        arXiv:2405.18199 (2024).

    Example:
        >>> import adamflow as af
        >>> optimizer = af.with_model_average(af.adam(1e-2), decay=0.99)
        >>> problem = af.problems.chain(4)
        >>> run = af.iterate(optimizer, problem.loss, problem.params, 20, observe=optimizer.evaluation_params)
        >>> run.observed.shape
        (21, 4)
    """
    check_optimizer("with_model_average", optimizer)
    stages = (*optimizer.stages, ModelAverageStage(decay, start))
    return dataclasses.replace(optimizer, stages=stages, name=f"{optimizer.name}, averaged")


@keyword_decays
def clipped_adam(
    learning_rate: Setting, *, gamma: Scalar = 0.9, clip: Scalar = 1.0, weight_decay: Setting = 0.0
) -> Optimizer:
    """The clipped Adam of Ahn and Cutkosky (2024): Adam at β = γ² as a discounted online learner.

        uₙ = clip(Σₖ γᵏ g_{n−k} / √(Σₖ γ²ᵏ g²_{n−k}), −D, D),   θₙ₊₁ = θₙ − η (λ θₙ + uₙ),

    coordinate by coordinate, without bias correction. At β = γ² Adam's direction is on the border of the region in
    which it is bounded, and grows as √n: therefore the clip. Their analysis scales each step by an Exp(1) variable,
    which is not here, and evaluates an average of the model: `with_model_average(clipped_adam(...), decay=gamma)`.

    Args:
        learning_rate: η > 0.
        gamma: γ, in (0, 1).
        clip: D > 0.
        weight_decay: λ ≥ 0, decoupled.

    Raises:
        ValueError: if a number is out of its range.

    References:
        K. Ahn and A. Cutkosky, Adam with model exponential moving average is effective for nonconvex optimization,
        arXiv:2405.18199 (2024); the formula from memory.

    Example:
        >>> import adamflow as af
        >>> af.clipped_adam(1e-3, gamma=0.9, clip=2.0).name
        'clipped adam'
    """
    return Optimizer(
        learning_rate=learning_rate,
        stages=(ClippedStage(gamma, clip),),
        weight_decay=weight_decay,
        bias_correction=False,
        name="clipped adam",
    )
