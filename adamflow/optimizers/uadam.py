"""The unified form of the Adam family: directions κ m + (1−κ) g over the root of a second moment, or over nothing."""

import equinox as eqx
import jax
import numpy as np

from adamflow.checks import check_range, is_concrete, keyword_decays
from adamflow.optimizers.hyperparameters import beside, check_decays, number, number_called
from adamflow.optimizers.optimizer import Optimizer
from adamflow.optimizers.settings import Setting
from adamflow.optimizers.stage import AbstractStage, Filter, Ratio, StageInput, moment_filters
from adamflow.types import Leaf, Scalar


class UAdamStage(AbstractStage):
    """Filters m of x (decay γ) and v of x² (decay β); direction u = (κ m̂ + (1−κ) x)/(√v̂ + ε)."""

    beta: jax.Array = eqx.field(converter=number_called("beta"))
    gamma: jax.Array = eqx.field(converter=number_called("gamma"))
    kappa: jax.Array = eqx.field(converter=number_called("kappa"))

    def __check_init__(self):
        check_decays(self.beta, self.gamma)

    def filters(self) -> tuple[Filter, ...]:
        return moment_filters(self.beta, self.gamma)

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        share = beside(self.kappa, signal.value)
        return ratio(share * averages["first_moment"] + (1 - share) * signal.value, averages["second_moment"])


class InterpolatedMomentumStage(AbstractStage):
    """A filter m of x (decay γ); direction u = κ m̂ + (1−κ) x."""

    gamma: jax.Array = eqx.field(converter=number_called("gamma"))
    kappa: jax.Array = eqx.field(converter=number_called("kappa"))

    def __check_init__(self):
        check_range("gamma", self.gamma, 0, 1, high_open=True, hint="gamma decays the first moment: b1 in optax")

    def filters(self) -> tuple[Filter, ...]:
        return (Filter("first_moment", self.gamma, lambda signal, _: signal.value),)

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        share = beside(self.kappa, signal.value)
        return share * averages["first_moment"] + (1 - share) * signal.value


@keyword_decays
def uadam(
    learning_rate: Setting,
    *,
    beta: Scalar | None = 0.999,
    gamma: Scalar = 0.9,
    interpolation: Scalar = 0.0,
    epsilon: Scalar = 0.0,
    weight_decay: Setting = 0.0,
    bias_correction: bool = False,
) -> Optimizer:
    """UAdam (Jiang et al., 2023): Adam, NAdam, RMSprop and all between in one interpolated momentum.

        mₙ = γ mₙ₋₁ + (1−γ) gₙ,   m̃ₙ = κ mₙ + (1−κ) gₙ,   κ = 1 − μ (1−γ),   uₙ = m̃ₙ/(√vₙ + ε),

    μ = `interpolation`: 0 is Adam or heavy ball, 1 is NAdam or Nesterov, 1/(1−γ) is RMSprop or gradient descent.
    The edge of stability of step sizes is ηs = (1+γ)(2−ηλ)/(1+γ−2κγ): 38, 13.57 and 2 at γ = .9, λ = 0.

    Args:
        learning_rate: η > 0.
        beta: decay β of the second moment, in (0, 1): `b2` in PyTorch and optax; `None` for none: u = m̃.
        gamma: decay γ of the first moment, in [0, 1): `b1` in PyTorch and optax.
        interpolation: μ, in [0, 1/(1−γ)].
        epsilon: ε ≥ 0, added to the root.
        weight_decay: λ ≥ 0, decoupled.
        bias_correction: whether filters are divided by 1 − αⁿ⁺¹; the framework has none.

    Raises:
        ValueError: if a number is out of its range.

    References:
        Y. Jiang et al., UAdam: Unified Adam-Type Algorithmic Framework for Non-Convex Stochastic Optimization,
        arXiv:2305.05675 (2023).

    Example:
        >>> import adamflow as af
        >>> optimizer = af.uadam(0.1, gamma=0.9, interpolation=1.0)
        >>> print(round(0.1 * float(af.analysis.critical_curvature(optimizer)), 4))
        13.5714
    """
    check_range("gamma", gamma, 0, 1, high_open=True, hint="gamma decays the first moment: b1 in optax")
    hint = "0 is Adam, 1 is NAdam and 1/(1 − gamma) RMSprop"
    largest = 1 / (1 - float(gamma)) if is_concrete(gamma) and np.ndim(gamma) == 0 else float("inf")
    check_range("interpolation", interpolation, 0, largest * (1 + 1e-12), hint=hint)
    kappa = 1 - number("interpolation", interpolation) * (1 - number("gamma", gamma))
    stage = InterpolatedMomentumStage(gamma, kappa) if beta is None else UAdamStage(beta, gamma, kappa)
    return Optimizer(
        learning_rate=learning_rate,
        stages=(stage,),
        weight_decay=weight_decay,
        epsilon=epsilon,
        bias_correction=bias_correction,
        name="uadam",
    )
