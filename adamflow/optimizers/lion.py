"""Signum and Lion: the sign of a first moment, alone or with a share of the gradient."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from adamflow.checks import check_range, keyword_decays
from adamflow.optimizers.hyperparameters import beside, number, number_called
from adamflow.optimizers.optimizer import Optimizer
from adamflow.optimizers.settings import Setting
from adamflow.optimizers.stage import AbstractStage, Filter, Ratio, StageInput
from adamflow.types import Leaf, Scalar


class SignMomentumStage(AbstractStage):
    """A filter m of x (decay γ); direction u = sign(κ m + (1−κ) x), with sign(0) = 0."""

    takes_signs: ClassVar[bool] = True

    gamma: jax.Array = eqx.field(converter=number_called("gamma"))
    kappa: jax.Array = eqx.field(converter=number_called("kappa"), default=1.0)

    def __check_init__(self):
        check_range("gamma", self.gamma, 0, 1, low_open=True, high_open=True, hint="without momentum use af.signsgd")

    def filters(self) -> tuple[Filter, ...]:
        return (Filter("first_moment", self.gamma, lambda signal, _: signal.value),)

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        share = beside(self.kappa, signal.value)
        return jnp.sign(share * averages["first_moment"] + (1 - share) * signal.value)

    def bound(self, iteration: Scalar, *, bias_correction: bool) -> Scalar | None:
        return 1.0


@keyword_decays
def signum(learning_rate: Setting, *, gamma: Scalar = 0.9, weight_decay: Setting = 0.0) -> Optimizer:
    """Signum (Bernstein et al., 2018): the sign of the momentum.

        mₙ = γ mₙ₋₁ + (1−γ) gₙ,   m₋₁ = 0,   θₙ₊₁ = θₙ − η (λ θₙ + sign mₙ).

    The sign does not see bias correction. The step size does not see the curvature: there is no edge of stability, and
    the iterates end in cycles of size ∝ η.

    Args:
        learning_rate: η > 0.
        gamma: decay γ of the first moment, in (0, 1): `b1` in optax.
        weight_decay: λ ≥ 0, decoupled.

    Raises:
        ValueError: if a number is out of its range.

    References:
        J. Bernstein et al., signSGD: Compressed Optimisation for Non-Convex Problems, arXiv:1802.04434 (2018).

    Example:
        >>> import adamflow as af
        >>> af.signum(1e-3, gamma=0.9).name
        'signum'
    """
    return Optimizer(
        learning_rate=learning_rate,
        stages=(SignMomentumStage(gamma),),
        weight_decay=weight_decay,
        bias_correction=False,
        name="signum",
    )


@keyword_decays
def lion(
    learning_rate: Setting, *, gamma: Scalar = 0.99, interpolation: Scalar = 0.9, weight_decay: Setting = 0.0
) -> Optimizer:
    """Lion (Chen et al., 2023): the sign of a mean of momentum and gradient.

        uₙ = sign(b₁ mₙ₋₁ + (1−b₁) gₙ),   mₙ = γ mₙ₋₁ + (1−γ) gₙ,   m₋₁ = 0,   θₙ₊₁ = θₙ − η (λ θₙ + uₙ),

    b₁ = `interpolation`. In terms of the updated filter, which stages read, u = sign(κ mₙ + (1−κ) gₙ) with κ = b₁/γ:
    b₁ = γ is Signum, b₁ = 0 sign descent.

    Args:
        learning_rate: η > 0.
        gamma: decay γ of the first moment, in (0, 1): `b2` in optax.
        interpolation: b₁, the weight of the momentum in the direction, in [0, 1): `b1` in optax.
        weight_decay: λ ≥ 0, decoupled.

    Raises:
        ValueError: if a number is out of its range.

    References:
        X. Chen et al., Symbolic Discovery of Optimization Algorithms, arXiv:2302.06675 (2023).

    Example:
        >>> import adamflow as af
        >>> af.lion(1e-4, weight_decay=0.1).name
        'lion'
    """
    check_range("interpolation", interpolation, 0, 1, high_open=True, hint="it is the weight of m: b1 in optax")
    check_range("gamma", gamma, 0, 1, low_open=True, high_open=True, hint="without momentum use af.signsgd")
    kappa = number("interpolation", interpolation) / number("gamma", gamma)
    return Optimizer(
        learning_rate=learning_rate,
        stages=(SignMomentumStage(gamma, kappa),),
        weight_decay=weight_decay,
        bias_correction=False,
        name="lion",
    )
