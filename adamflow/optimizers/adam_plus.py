"""Adam+: an average of gradients at extrapolated points, over the root of its norm."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from adamflow.checks import check_range, keyword_decays
from adamflow.optimizers.hyperparameters import beside, number, number_called
from adamflow.optimizers.optimizer import Optimizer
from adamflow.optimizers.settings import Setting, plain_rate
from adamflow.optimizers.stage import AbstractStage, Filter, Ratio, StageInput
from adamflow.types import Leaf, Params, Scalar


class RootNormStage(AbstractStage):
    """A filter z of x (decay γ) that starts at the first x; direction u = z/max(√‖z‖, ε), the norm over all leaves."""

    gamma: jax.Array = eqx.field(converter=number_called("gamma"))
    smallest_root: jax.Array = eqx.field(converter=number_called("smallest_root"), default=1e-8)

    def __check_init__(self):
        check_range("gamma", self.gamma, 0, 1, low_open=True, high_open=True)
        check_range("smallest_root", self.smallest_root, 0, float("inf"), low_open=True, high_open=True)

    def filters(self) -> tuple[Filter, ...]:
        def decay(iteration: Scalar) -> Scalar:
            return jnp.where(iteration == 0, 0.0, self.gamma)

        return (Filter("first_moment", decay, lambda signal, _: signal.value, weight_sum=lambda iteration: 1.0),)

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        return averages["first_moment"]

    def combine(self, direction: Params) -> Params:
        square = jnp.stack([jnp.sum(leaf**2) for leaf in jax.tree.leaves(direction)]).sum()
        smallest = beside(self.smallest_root, square)
        # √‖z‖ = (‖z‖²)^¼, whose derivative at 0 is not finite, nor needed: the limit is in force there.
        is_small = square <= smallest**4
        root = jnp.where(is_small, smallest, jnp.where(is_small, 1.0, square) ** 0.25)
        return jax.tree.map(lambda leaf: (leaf / root).astype(leaf.dtype), direction)


class ExtrapolationStage(AbstractStage):
    """Memory of the last input; u = (xₙ − γ xₙ₋₁)/(1−γ), x₋₁ = 0: steps of the points θ̂ that θ averages.

    If θ moves by −ηx and θ̂ₙ₊₁ = θₙ + (θₙ₊₁ − θₙ)/(1−γ), then θ̂ moves by −ηu, and θ = θ̂ + ηγ/(1−γ) xₙ₋₁ is what the
    model is evaluated at.
    """

    memory_moves: ClassVar[bool] = True

    gamma: jax.Array = eqx.field(converter=number_called("gamma"))

    def __check_init__(self):
        check_range("gamma", self.gamma, 0, 1, low_open=True, high_open=True)

    def filters(self) -> tuple[Filter, ...]:
        return ()

    needs_constant_rate: ClassVar[str] = "its extrapolation takes the last step for one at the same rate; give a number"

    def initial_memory(self, leaf: Leaf) -> dict[str, Leaf]:
        return {"last": jnp.zeros_like(leaf), "previous": jnp.zeros_like(leaf)}

    def update_memory(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar
    ) -> dict[str, Leaf]:
        return {"last": signal.value, "previous": memory["last"]}

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        gamma = beside(self.gamma, signal.value)
        return (signal.value - gamma * memory["previous"]) / (1 - gamma)

    def evaluation_params(
        self, params: Leaf, averages: dict[str, Leaf], memory: dict[str, Leaf], learning_rate: Scalar
    ) -> Leaf:
        gamma = beside(self.gamma, params)
        return params + learning_rate * gamma / (1 - gamma) * memory["previous"]


@keyword_decays
def adam_plus(
    learning_rate: Setting, *, gamma: Scalar = 0.9, rate_exponent: Scalar = 1.0, smallest_root: Scalar = 1e-8
) -> Optimizer:
    """Adam+ (Liu et al., 2020): an average of gradients at extrapolated points, over the root of its norm.

        θₙ₊₁ = θₙ − η (1−γ)ᵃ zₙ/max(‖zₙ‖^½, ε),   θ̂ₙ₊₁ = θₙ + (θₙ₊₁ − θₙ)/(1−γ),
        zₙ₊₁ = γ zₙ + (1−γ) g(θ̂ₙ₊₁),   z₀ = g(θ₀),   the norm over all parameters.

    The parameters of a run are θ̂, where gradients are taken; θ, the average of θ̂ with decay γ, is what
    `optimizer.evaluation_params` gives. On a quadratic z = g(θ), so that θ obeys θₙ₊₁ = θₙ − η' ∇f/‖∇f‖^½.

    Args:
        learning_rate: η > 0; the steps of θ have η (1−γ)ᵃ.
        gamma: decay γ of the average, in (0, 1): 1 − β of the paper.
        rate_exponent: a ≥ 0.
        smallest_root: ε > 0, the smallest ‖z‖^½ to divide by.

    Raises:
        ValueError: if a number is out of its range.

    References:
        M. Liu, W. Zhang, F. Orabona, T. Yang, Adam+: A Stochastic Method with Adaptive Variance Reduction,
        arXiv:2011.11985 (2020).

    Example:
        >>> import adamflow as af
        >>> af.adam_plus(0.1).name
        'adam+'
    """
    rate = plain_rate("adam_plus", learning_rate)
    check_range("gamma", gamma, 0, 1, low_open=True, high_open=True)
    check_range("rate_exponent", rate_exponent, 0, float("inf"), high_open=True)
    share = 1 - number("gamma", gamma)
    return Optimizer(
        learning_rate=rate * share ** number("rate_exponent", rate_exponent),
        stages=(RootNormStage(gamma, smallest_root), ExtrapolationStage(gamma)),
        bias_correction=False,
        name="adam+",
    )
