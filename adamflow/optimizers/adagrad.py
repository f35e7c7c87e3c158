"""Adagrad: the gradient over the root of the sum of all squares."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from adamflow.checks import check_range
from adamflow.optimizers.hyperparameters import beside, number_called
from adamflow.optimizers.optimizer import Optimizer
from adamflow.optimizers.settings import Setting
from adamflow.optimizers.stage import AbstractStage, Filter, Ratio, StageInput
from adamflow.types import Leaf, Scalar


class AdagradStage(AbstractStage):
    """No filter; the memory v ← v + x², which starts at `initial_sum`; direction u = x/(√v + ε)."""

    memory_moves: ClassVar[bool] = True

    initial_sum: jax.Array = eqx.field(converter=number_called("initial_sum"), default=0.0)

    def __check_init__(self):
        check_range("initial_sum", self.initial_sum, 0, float("inf"), high_open=True, hint="it is a sum of squares")

    def filters(self) -> tuple[Filter, ...]:
        return ()

    def initial_memory(self, leaf: Leaf) -> dict[str, Leaf]:
        return {"sum": jnp.full_like(leaf, self.initial_sum)}

    def update_memory(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar
    ) -> dict[str, Leaf]:
        return {"sum": memory["sum"] + beside(signal.value, signal.value) ** 2}

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        return ratio(signal.value, memory["sum"])

    def bound(self, iteration: Scalar, *, bias_correction: bool) -> Scalar | None:
        return 1.0


def adagrad(
    learning_rate: Setting,
    *,
    epsilon: Scalar = 0.0,
    initial_sum: Scalar = 0.0,
    weight_decay: Setting = 0.0,
    epsilon_inside_root: bool = False,
) -> Optimizer:
    """Adagrad (Duchi, Hazan and Singer, 2011).

        vₙ = vₙ₋₁ + gₙ²,   uₙ = gₙ/(√vₙ + ε).

    Its natural time is σ = nη²: with w = η² v its flow is θ' = −g/√w, w' = g² in σ, and nothing is left of it in
    t = nη as η → 0. optax has ε inside the root and starts v at .1: `epsilon_inside_root=True, initial_sum=0.1`.

    Args:
        learning_rate: η > 0.
        epsilon: ε ≥ 0, added to the root.
        initial_sum: v₋₁ ≥ 0.
        weight_decay: λ ≥ 0, decoupled.
        epsilon_inside_root: whether ε stands under the root.

    Raises:
        ValueError: if a number is out of its range.

    References:
        J. Duchi, E. Hazan, Y. Singer, Adaptive Subgradient Methods for Online Learning and Stochastic Optimization,
        JMLR 12 (2011).

    Example:
        >>> import adamflow as af
        >>> af.adagrad(1e-2).name
        'adagrad'
    """
    return Optimizer(
        learning_rate=learning_rate,
        stages=(AdagradStage(initial_sum),),
        weight_decay=weight_decay,
        epsilon=epsilon,
        epsilon_inside_root=epsilon_inside_root,
        name="adagrad",
    )
