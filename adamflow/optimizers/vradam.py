r"""VRAdam: Adam whose first moment is corrected by a second gradient of the same batch."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from adamflow.checks import keyword_decays
from adamflow.optimizers.hyperparameters import beside, check_decays, is_zero, number_called
from adamflow.optimizers.optimizer import Optimizer
from adamflow.optimizers.rmsprop import RMSpropStage
from adamflow.optimizers.settings import Setting
from adamflow.optimizers.stage import AbstractStage, Filter, Ratio, StageInput, weight_sum_of
from adamflow.types import Leaf, Scalar


class VRAdamStage(AbstractStage):
    """Filters m of x + γ/(1−γ) (xₙ(θₙ) − xₙ(θₙ₋₁)) (decay γ, m₀ = x₀) and v of x² (decay β); u = m/(√v̂ + ε).

    m starts at the first input, so that bias correction leaves it as it is.
    """

    uses_gradient_change: ClassVar[bool] = True

    beta: jax.Array = eqx.field(converter=number_called("beta"), kw_only=True)
    gamma: jax.Array = eqx.field(converter=number_called("gamma"), kw_only=True)

    def __check_init__(self):
        check_decays(self.beta, self.gamma)

    def filters(self) -> tuple[Filter, ...]:
        def corrected(signal: StageInput, averages: dict[str, Leaf]) -> Leaf:
            # The filter takes 1 − γ of this: γ of the change is what corrects the γ of its past that it keeps.
            return signal.value + beside(self.gamma / (1 - self.gamma), signal.value) * signal.gradient_change

        return (
            Filter(
                "first_moment",
                lambda iteration: jnp.where(iteration < 1, 0.0, self.gamma),
                corrected,
                weight_sum=lambda iteration: jnp.ones_like(jnp.asarray(iteration, float)),
            ),
            Filter("second_moment", self.beta, lambda signal, _: signal.value**2, nonnegative=True),
        )

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        return ratio(averages["first_moment"], averages["second_moment"])

    def bound(self, iteration: Scalar, *, bias_correction: bool) -> Scalar:
        # v does not see the gradients at θₙ₋₁, so that nothing bounds what they add to m.
        weights = weight_sum_of(self.beta, iteration + 1) if bias_correction else 1.0
        return jnp.where((iteration > 0) & (self.gamma > 0), jnp.inf, jnp.sqrt(weights / (1 - self.beta)))


@keyword_decays
def vradam(
    learning_rate: Setting,
    *,
    beta: Scalar = 0.999,
    gamma: Scalar = 0.9,
    epsilon: Scalar = 1e-8,
    weight_decay: Setting = 0.0,
    bias_correction: bool = True,
) -> Optimizer:
    r"""VRAdam (Li, Rakhlin and Jadbabaie, 2023): Adam with two gradients of each batch, and so without a lag.

    With gₙ(θ) the gradient of batch n at θ, m₀ = g₀(θ₀) and v₋₁ = 0,

        mₙ = γ mₙ₋₁ + (1−γ) gₙ(θₙ) + γ (gₙ(θₙ) − gₙ(θₙ₋₁)),   vₙ = β vₙ₋₁ + (1−β) gₙ(θₙ)²,
        uₙ = mₙ/(√[vₙ/(1−βⁿ⁺¹)] + ε),   θₙ₊₁ = θₙ − η (λ θₙ + uₙ).

    The correction takes out of mₙ₋₁ that it is the gradient of an earlier place, on the sample at hand: with noise that
    does not depend on θ the error mₙ − ∇L(θₙ) is the average of the noise alone, and without noise mₙ = ∇L(θₙ), so that
    it is RMSprop, with RMSprop's flow and edge. The error of m₀ fades as γⁿ; Li et al. take it from a large batch. That
    is an iteration by hand:

        direction, state = optimizer.update(g, optimizer.initial_state(params), 0, params, gradient_at_previous=g)
        af.iterate(optimizer, loss, optimizer.at(0).apply(params, direction), steps, start=(1, state), batches=batches)

    `iterate` takes both gradients. An optax loop hands the second one to `to_optax()`, whose docstring says how.

    Args:
        learning_rate: η > 0.
        beta: decay β of the second moment, in (0, 1): `b2` in PyTorch and optax.
        gamma: decay γ of the first moment, in [0, 1): `b1` in PyTorch and optax. At the number 0 no second gradient is
            needed: it is then RMSprop with any noise.
        epsilon: ε ≥ 0, added to the root.
        weight_decay: λ ≥ 0, decoupled.
        bias_correction: whether v is divided by 1 − βⁿ⁺¹; m needs no correction.

    Raises:
        ValueError: if a number is out of its range.

    References:
        H. Li, A. Rakhlin and A. Jadbabaie, Convergence of Adam Under Relaxed Assumptions, arXiv:2304.13972 (2023),
        algorithm 2; its β and β_sq are 1 − γ and 1 − β.

    Example:
        >>> import adamflow as af
        >>> problem = af.problems.logistic()
        >>> run = af.iterate(af.vradam(1e-3), problem.loss, problem.params, 50, batches=problem.batches(8))
        >>> print(run.outcome.name, run.stats.gradient_evaluations)
        completed 100
    """
    stage = RMSpropStage(beta) if is_zero("gamma", gamma) else VRAdamStage(beta=beta, gamma=gamma)
    return Optimizer(
        learning_rate=learning_rate,
        stages=(stage,),
        weight_decay=weight_decay,
        epsilon=epsilon,
        bias_correction=bias_correction,
        name="vradam",
    )
