"""Adam and AdamW: the first moment over the root of the second."""

import equinox as eqx
import jax

from adamflow.checks import check_choice, keyword_decays
from adamflow.optimizers.hyperparameters import check_decays, is_zero, number_called
from adamflow.optimizers.optimizer import Optimizer
from adamflow.optimizers.per_tensor import PerTensorAdamStage, PerTensorRMSpropStage
from adamflow.optimizers.rmsprop import RMSpropStage
from adamflow.optimizers.settings import Setting, is_zero_setting, setting
from adamflow.optimizers.stage import AbstractStage, Filter, Ratio, StageInput, moment_filters
from adamflow.types import Leaf, Scalar

GRANULARITIES = ("elementwise", "per_tensor")


class AdamStage(AbstractStage):
    """Filters m of x (decay γ) and v of x² (decay β); direction u = m̂/(√v̂ + ε).

    [GT] and adamflow write (β, γ) where PyTorch and optax write (b2, b1).
    """

    beta: jax.Array = eqx.field(converter=number_called("beta"), kw_only=True)
    gamma: jax.Array = eqx.field(converter=number_called("gamma"), kw_only=True)

    def __check_init__(self):
        check_decays(self.beta, self.gamma)

    def filters(self) -> tuple[Filter, ...]:
        return moment_filters(self.beta, self.gamma)

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        return ratio(averages["first_moment"], averages["second_moment"])


def adam_stage(beta: Scalar, gamma: Scalar, second_moment: str = "elementwise") -> AbstractStage:
    """The stage of Adam, or of RMSprop where γ is the number 0: a filter that forgets at once is no filter."""
    check_choice("second_moment", second_moment, GRANULARITIES)
    forgets = is_zero("gamma", gamma)
    if second_moment == "per_tensor":
        return PerTensorRMSpropStage(beta) if forgets else PerTensorAdamStage(beta=beta, gamma=gamma)
    return RMSpropStage(beta) if forgets else AdamStage(beta=beta, gamma=gamma)


@keyword_decays
def adam(
    learning_rate: Setting,
    *,
    beta: Scalar = 0.999,
    gamma: Scalar = 0.9,
    epsilon: Scalar = 0.0,
    second_moment: str = "elementwise",
    epsilon_inside_root: bool = False,
    bias_correction: bool = True,
) -> Optimizer:
    r"""Adam (Kingma and Ba, 2015): `adamw` without weight decay.

    With gₙ the gradient at θₙ and m₋₁ = v₋₁ = 0,

        mₙ = γ mₙ₋₁ + (1−γ) gₙ,   vₙ = β vₙ₋₁ + (1−β) gₙ²,
        uₙ = [mₙ/(1−γⁿ⁺¹)] / (√[vₙ/(1−βⁿ⁺¹)] + ε),   θₙ₊₁ = θₙ − η uₙ.

    Args:
        learning_rate: η > 0, or a schedule, or values by leaf: docs/recipes.md.
        beta: decay β of the second moment, in (0, 1): `b2` in PyTorch and optax.
        gamma: decay γ of the first moment, in [0, 1): `b1` in PyTorch and optax. At the number 0 no first moment is
            kept: `Optimizer.moment` and `with_moment` read and set moments alike with it and without.
        epsilon: ε ≥ 0, added to the root. The default 0 is that of [GT]; where v = 0 the direction is then 0.
        second_moment: "elementwise", or "per_tensor" for one v per leaf of the parameters, the average of the mean of
            g².
        epsilon_inside_root: whether ε is added to v̂ under the root instead: `eps_root` in optax.
        bias_correction: whether filters are divided by 1 − αⁿ⁺¹.

    Returns:
        an `af.Optimizer`, which `iterate`, `to_optax`, the flows and the analysis take.

    Raises:
        ValueError: if a number is out of its range.

    References:
        [GT] R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization,
        arXiv:2411.05746 (2024).

    Example:
        >>> import adamflow as af
        >>> optimizer = af.adam(learning_rate=1e-3, beta=0.999, gamma=0.9)
        >>> problem = af.problems.chain(dimension=10)
        >>> bool(af.iterate(optimizer, problem.loss, problem.params, steps=100).outcome.successful)
        True
    """
    return adamw(
        learning_rate,
        beta=beta,
        gamma=gamma,
        epsilon=epsilon,
        weight_decay=0.0,
        second_moment=second_moment,
        epsilon_inside_root=epsilon_inside_root,
        bias_correction=bias_correction,
    )


@keyword_decays
def adamw(
    learning_rate: Setting,
    *,
    beta: Scalar = 0.999,
    gamma: Scalar = 0.9,
    epsilon: Scalar = 0.0,
    weight_decay: Setting = 1e-4,
    second_moment: str = "elementwise",
    epsilon_inside_root: bool = False,
    bias_correction: bool = True,
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019): θₙ₊₁ = θₙ − η (λ θₙ + uₙ).

    uₙ is the direction of `adam`, whose arguments are not repeated here.

    Args:
        learning_rate: η > 0, or a schedule, or values by leaf: docs/recipes.md.
        beta: decay β of the second moment, in (0, 1): `b2` in PyTorch and optax.
        gamma: decay γ of the first moment, in [0, 1): `b1` in PyTorch and optax.
        epsilon: ε ≥ 0.
        weight_decay: λ ≥ 0, multiplied by η as in PyTorch and optax; a schedule or values by leaf as well.
        second_moment: "elementwise", or "per_tensor" for one v per leaf of the parameters.
        epsilon_inside_root: whether ε stands under the root.
        bias_correction: whether filters are divided by 1 − αⁿ⁺¹.

    Raises:
        ValueError: if a number is out of its range.

    Example:
        >>> import adamflow as af
        >>> af.adamw(1e-3, weight_decay=0.1).name
        'adamw'
    """
    return Optimizer(
        learning_rate=learning_rate,
        stages=(adam_stage(beta, gamma, second_moment),),
        weight_decay=weight_decay,
        epsilon=epsilon,
        epsilon_inside_root=epsilon_inside_root,
        bias_correction=bias_correction,
        name="adam" if is_zero_setting(setting("weight_decay", weight_decay)) else "adamw",
    )
