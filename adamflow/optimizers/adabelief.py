"""AdaBelief: the first moment over the root of the average of (g − m)²."""

import equinox as eqx
import jax

from adamflow.checks import check_range, keyword_decays
from adamflow.optimizers.hyperparameters import beside, check_decays, number_called
from adamflow.optimizers.optimizer import Optimizer
from adamflow.optimizers.settings import Setting
from adamflow.optimizers.stage import AbstractStage, Filter, Ratio, StageInput
from adamflow.types import Leaf, Scalar


class AdaBeliefStage(AbstractStage):
    """Filters m of x (decay γ) and v of (x − m)² + ε₀/(1−β) (decay β); direction u = m̂/(√v̂ + ε).

    m in v is the updated one, before bias correction. ε₀, `epsilon_added`, is what each iteration adds to v.
    """

    beta: jax.Array = eqx.field(converter=number_called("beta"))
    gamma: jax.Array = eqx.field(converter=number_called("gamma"))
    epsilon_added: jax.Array = eqx.field(converter=number_called("epsilon_added"), default=0.0)

    def __check_init__(self):
        check_decays(self.beta, self.gamma)
        check_range("epsilon_added", self.epsilon_added, 0, float("inf"), high_open=True)

    def filters(self) -> tuple[Filter, ...]:
        def surprise(signal: StageInput, averages: dict[str, Leaf]) -> Leaf:
            added = beside(self.epsilon_added / (1 - self.beta), signal.value)
            return (signal.value - averages["first_moment"]) ** 2 + added

        return (
            Filter("first_moment", self.gamma, lambda signal, _: signal.value),
            Filter("second_moment", self.beta, surprise, nonnegative=True),
        )

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        return ratio(averages["first_moment"], averages["second_moment"])


@keyword_decays
def adabelief(
    learning_rate: Setting,
    *,
    beta: Scalar = 0.999,
    gamma: Scalar = 0.9,
    epsilon: Scalar = 1e-16,
    epsilon_added: Scalar = 1e-16,
    weight_decay: Setting = 0.0,
) -> Optimizer:
    """AdaBelief (Zhuang et al., 2020): steps are long where the gradient is as its average foretold.

        mₙ = γ mₙ₋₁ + (1−γ) gₙ,   vₙ = β vₙ₋₁ + (1−β) (gₙ − mₙ)² + ε₀,   uₙ = m̂ₙ/(√v̂ₙ + ε).

    As η → 0 at fixed decays g − m is of order η, so that u grows as η^{−1/2}: its flow is an equation at given η, and
    has no limit of its own. No bound holds for u: under a constant gradient it grows as β^{−n/2}.

    Args:
        learning_rate: η > 0.
        beta: decay β of the second moment, in (0, 1): `b2` in optax.
        gamma: decay γ of the first moment, in [0, 1): `b1` in optax.
        epsilon: ε ≥ 0, added to the root.
        epsilon_added: ε₀ ≥ 0, added to v in each iteration: `eps_root` in optax.
        weight_decay: λ ≥ 0, decoupled.

    Raises:
        ValueError: if a number is out of its range.

    References:
        J. Zhuang et al., AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients,
        arXiv:2010.07468 (2020).

    Example:
        >>> import adamflow as af
        >>> af.adabelief(1e-3).name
        'adabelief'
    """
    return Optimizer(
        learning_rate=learning_rate,
        stages=(AdaBeliefStage(beta, gamma, epsilon_added),),
        weight_decay=weight_decay,
        epsilon=epsilon,
        name="adabelief",
    )
