"""k-Adam: k normalizations in a row, the input of each being the direction of the one before."""

import jax.numpy as jnp
import numpy as np

from adamflow.checks import check_choice, check_count, keyword_decays
from adamflow.optimizers.adam import adam_stage
from adamflow.optimizers.hyperparameters import check_decays, is_zero, number
from adamflow.optimizers.optimizer import Optimizer
from adamflow.optimizers.settings import Setting
from adamflow.types import Scalar

#: Each stage is compiled on its own.
MOST_STAGES = 1000
STRATEGIES = ("naive", "uniform", "exponential", "inverse_exponential")


def stage_weights(stages: int, strategy: str) -> np.ndarray:
    """The exponents wᵢ, i = 1 … k, by which a strategy shares one decay among the stages: 1−αᵢ = (1−α)^{wᵢ}."""
    powers = {"uniform": 0.0, "exponential": 1.0, "inverse_exponential": -1.0}
    if strategy == "naive":
        return np.ones(stages)
    exponents = powers[strategy] * np.arange(1, stages + 1)
    weights = np.exp2(exponents - exponents.max())
    return weights / weights.sum()


@keyword_decays
def kadam(
    k: int,
    learning_rate: Scalar,
    *,
    beta: Scalar = 0.999,
    gamma: Scalar = 0.9,
    epsilon: Scalar = 0.0,
    weight_decay: Setting = 0.0,
    strategy: str = "inverse_exponential",
    second_moment: str = "elementwise",
    epsilon_inside_root: bool = False,
    bias_correction: bool = True,
) -> Optimizer:
    """k-Adam [GT]: k stages of Adam in a row, u⁰ₙ = gₙ, uⁱₙ the direction of stage i fed with uⁱ⁻¹ₙ; k = 1 is Adam.

    The pairs (βᵢ, γᵢ) follow from one pair by 1−αᵢ = (1−α)^{wᵢ} for α = β and γ, with weights by `strategy`:

        naive wᵢ = 1;  uniform wᵢ = 1/k;  exponential wᵢ ∝ 2ⁱ;  inverse_exponential wᵢ ∝ 2⁻ⁱ;  the last three Σwᵢ = 1.

    [GT] names the four strategies; these formulas are this project's reading of them.

    Args:
        k: number of stages, from 1 to 1000.
        learning_rate: η > 0.
        beta: decay β of the second moments, in (0, 1), before it is shared: `b2` in PyTorch and optax.
        gamma: decay γ of the first moments, in [0, 1), before it is shared: `b1` in PyTorch and optax.
        epsilon: ε ≥ 0, the same in all stages.
        weight_decay: λ ≥ 0, decoupled, applied once.
        strategy: "naive", "uniform", "exponential" or "inverse_exponential".
        second_moment: "elementwise", or "per_tensor" for stages with one v per leaf of the parameters. For stages that
            differ in it, give them to `Optimizer`, as in
            `stages=(AdamStage(beta=0.999, gamma=0.9), PerTensorRMSpropStage(0.99))`.
        epsilon_inside_root: whether ε stands under the roots.
        bias_correction: whether filters are divided by 1 − αⁿ⁺¹.

    Raises:
        ValueError: if a number is out of its range or the strategy unknown.

    Example:
        >>> import adamflow as af
        >>> len(af.kadam(3, learning_rate=1e-3).stages)
        3
    """
    k = check_count("k", k, high=MOST_STAGES)
    check_choice("strategy", strategy, STRATEGIES)
    check_decays(beta, gamma)

    def share(name: str, decay: Scalar, weight: float) -> Scalar:
        if is_zero(name, decay):
            return 0.0
        return decay if weight == 1.0 else -jnp.expm1(weight * jnp.log1p(-number(name, decay)))

    weights = stage_weights(k, strategy)
    pairs = [(share("beta", beta, weight), share("gamma", gamma, weight)) for weight in weights]
    return Optimizer(
        learning_rate=learning_rate,
        stages=tuple(adam_stage(*pair, second_moment) for pair in pairs),
        weight_decay=weight_decay,
        epsilon=epsilon,
        epsilon_inside_root=epsilon_inside_root,
        bias_correction=bias_correction,
        name=f"{k}-adam",
    )
