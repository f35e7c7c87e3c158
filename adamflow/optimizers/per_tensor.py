"""Stages of Adam and RMSprop that divide each tensor by one number: the root of its average mean square."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from adamflow.checks import check_range
from adamflow.optimizers.hyperparameters import beside, check_decays, number_called, number_or_none
from adamflow.optimizers.stage import AbstractStage, Filter, Ratio, StageInput
from adamflow.types import Leaf, Scalar


class PerTensorAdamStage(AbstractStage):
    """Filters m of x (decay γ) and v of the mean of x² over the tensor (decay β); direction u = m̂/(√v̂ + ε).

    The root mean square of u over the tensor has the bound that each entry of `AdamStage`'s direction has; a single
    entry may be larger by √(size of the tensor). A tensor is a leaf of the parameters: in a flattened problem all of
    them. v has the shape of the leaf, with equal entries. [GT] and adamflow write (β, γ) where PyTorch and optax write
    (b2, b1).
    """

    beta: jax.Array = eqx.field(converter=number_called("beta"), kw_only=True)
    gamma: jax.Array = eqx.field(converter=number_called("gamma"), kw_only=True)

    def __check_init__(self):
        check_decays(self.beta, self.gamma)

    def filters(self) -> tuple[Filter, ...]:
        return (
            Filter("first_moment", self.gamma, lambda signal, _: signal.value),
            Filter("mean_square", self.beta, _mean_square, nonnegative=True),
        )

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        return ratio(averages["first_moment"], averages["mean_square"])


class PerTensorRMSpropStage(AbstractStage):
    """One filter v of the mean of x² over the tensor with decay β; direction u = x/(√v̂ + ε).

    With `start` v begins there and not at 0, so that there is no bias to correct: v̂ₙ = vₙ + βⁿ⁺¹ start.
    """

    forgets: ClassVar[tuple[str, ...]] = ("first_moment",)

    beta: jax.Array = eqx.field(converter=number_called("beta"))
    start: jax.Array | None = eqx.field(converter=number_or_none("start"), default=None)

    def __check_init__(self):
        check_decays(self.beta)
        if self.start is not None:
            check_range("start", self.start, 0, high=float("inf"), high_open=True, hint="it is a mean square")

    def filters(self) -> tuple[Filter, ...]:
        weight_sum = None if self.start is None else lambda iteration: 1.0
        return (Filter("mean_square", self.beta, _mean_square, nonnegative=True, weight_sum=weight_sum),)

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        square = averages["mean_square"]
        if self.start is not None:
            square = square + beside(self.start * self.beta ** (iteration + 1), square)
        return ratio(signal.value, square)


def _mean_square(signal: StageInput, averages: dict[str, Leaf]) -> Leaf:
    # The shape is kept, since filters are pytrees like the parameters.
    return jnp.broadcast_to(jnp.mean(signal.value**2), signal.value.shape)
