"""AdaBound and NAdamBound: rates between two bounds that close with the iterations."""

import equinox as eqx
import jax
import jax.numpy as jnp

from adamflow.checks import check_range, keyword_decays
from adamflow.optimizers.hyperparameters import beside, check_decays, flag_called, number, number_called
from adamflow.optimizers.optimizer import Optimizer
from adamflow.optimizers.settings import Setting, plain_rate
from adamflow.optimizers.stage import AbstractStage, Filter, Ratio, StageInput, moment_filters, weight_sum_of
from adamflow.types import Leaf, Scalar


class AdaBoundStage(AbstractStage):
    """Filters m of x (decay γ) and v of x² (decay β), both raw; direction u = a m, the rate a clipped.

    a = clip(√(1−βⁿ⁺¹)/(1−γⁿ⁺¹)/(√v + ε), f (1 − 1/(ϱ(n+1)+1)), f (1 + 1/(ϱ(n+1)))), in units of the learning rate;
    f is `final_rate`, ϱ `convergence_rate`. With `nesterov` u = a (γ m + (1−γ) x). The optimizer must not correct the
    bias: its correction stands inside the clip.
    """

    beta: jax.Array = eqx.field(converter=number_called("beta"))
    gamma: jax.Array = eqx.field(converter=number_called("gamma"))
    final_rate: jax.Array = eqx.field(converter=number_called("final_rate"), default=1.0)
    convergence_rate: jax.Array = eqx.field(converter=number_called("convergence_rate"), default=1e-3)
    nesterov: bool = eqx.field(static=True, converter=flag_called("nesterov"), default=False)

    def __check_init__(self):
        check_decays(self.beta, self.gamma)
        for name in ("final_rate", "convergence_rate"):
            check_range(name, getattr(self, name), 0, float("inf"), low_open=True, high_open=True)

    def filters(self) -> tuple[Filter, ...]:
        return moment_filters(self.beta, self.gamma)

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        first, count = averages["first_moment"], iteration + 1
        correction = jnp.sqrt(weight_sum_of(self.beta, count)) / weight_sum_of(self.gamma, count)
        rate = beside(correction, first) * ratio(jnp.ones_like(first), averages["second_moment"])
        age = self.convergence_rate * count
        lowest, highest = self.final_rate * (1 - 1 / (age + 1)), self.final_rate * (1 + 1 / age)
        rate = jnp.clip(rate, beside(lowest, first), beside(highest, first))
        share = beside(self.gamma, first)
        return rate * (share * first + (1 - share) * signal.value if self.nesterov else first)

    def bound(self, iteration: Scalar, *, bias_correction: bool) -> Scalar | None:
        """None holds: the rate is never below the lower clip, however large the gradients are."""
        return float("inf")


@keyword_decays
def adabound(
    learning_rate: Setting,
    *,
    beta: Scalar = 0.999,
    gamma: Scalar = 0.9,
    epsilon: Scalar = 1e-8,
    final_learning_rate: Scalar = 0.1,
    convergence_rate: Scalar = 1e-3,
    weight_decay: Setting = 0.0,
) -> Optimizer:
    """AdaBound (Luo et al., 2019): Adam that ends as gradient descent with momentum.

        aₙ = clip(η √(1−βⁿ⁺¹)/(1−γⁿ⁺¹)/(√vₙ + ε), f (1 − 1/(ϱ(n+1)+1)), f (1 + 1/(ϱ(n+1)))),   θₙ₊₁ = θₙ − aₙ mₙ,

    f the final learning rate; m and v as in `adam`, without bias correction outside the clip. In the limit it is
    `sgd(f, gamma)`, with the edge f s = (2+2γ)/(1−γ) in the Hessian's own eigenvalues. No bound holds for the
    direction, which is of the size of the gradient.

    Args:
        learning_rate: η > 0.
        beta: decay β of the second moment, in (0, 1): `b2` in PyTorch and optax.
        gamma: decay γ of the first moment, in [0, 1): `b1` in PyTorch and optax.
        epsilon: ε ≥ 0, added to the root.
        final_learning_rate: f > 0. Under a schedule of η it keeps its proportion to it, as in the authors' code.
        convergence_rate: ϱ > 0, how fast the bounds close.
        weight_decay: λ ≥ 0, decoupled.

    Raises:
        ValueError: if a number is out of its range.

    References:
        L. Luo, Y. Xiong, Y. Liu, X. Sun, Adaptive Gradient Methods with Dynamic Bound of Learning Rate,
        arXiv:1902.09843 (2019).

    Example:
        >>> import adamflow as af
        >>> af.adabound(1e-3).name
        'adabound'
    """
    numbers = (learning_rate, beta, gamma, epsilon, final_learning_rate, convergence_rate, weight_decay)
    return _adabound(*numbers, nesterov=False)


@keyword_decays
def nadambound(
    learning_rate: Setting,
    *,
    beta: Scalar = 0.999,
    gamma: Scalar = 0.9,
    epsilon: Scalar = 1e-8,
    final_learning_rate: Scalar = 0.1,
    convergence_rate: Scalar = 1e-3,
    weight_decay: Setting = 0.0,
) -> Optimizer:
    """NAdamBound (Jiang et al., 2023): the clipped rate of `adabound` times Nesterov's γ mₙ + (1−γ) gₙ.

    The arguments are those of `adabound`. The name stands in arXiv:2305.05675; this formula is our reading of it.

    Raises:
        ValueError: if a number is out of its range.

    Example:
        >>> import adamflow as af
        >>> af.nadambound(1e-3).name
        'nadambound'
    """
    numbers = (learning_rate, beta, gamma, epsilon, final_learning_rate, convergence_rate, weight_decay)
    return _adabound(*numbers, nesterov=True)


def _adabound(learning_rate, beta, gamma, epsilon, final, convergence_rate, weight_decay, *, nesterov) -> Optimizer:
    rate = plain_rate("nadambound" if nesterov else "adabound", learning_rate)
    check_range("final_learning_rate", final, 0, float("inf"), low_open=True, high_open=True)
    final_rate = number("final_learning_rate", final) / rate
    return Optimizer(
        learning_rate=learning_rate,
        stages=(AdaBoundStage(beta, gamma, final_rate, convergence_rate, nesterov),),
        weight_decay=weight_decay,
        epsilon=epsilon,
        bias_correction=False,
        name="nadambound" if nesterov else "adabound",
    )
