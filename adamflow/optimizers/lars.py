"""LARS: momentum of gradients that are scaled, tensor by tensor, to the norm of the parameters."""

from adamflow.checks import keyword_decays
from adamflow.optimizers.hyperparameters import choice_called
from adamflow.optimizers.lamb import TrustRatioStage
from adamflow.optimizers.optimizer import Optimizer
from adamflow.optimizers.settings import Setting
from adamflow.optimizers.sgd import MomentumStage
from adamflow.types import Scalar

FORMS = ("paper", "optax")


@keyword_decays
def lars(
    learning_rate: Setting,
    *,
    gamma: Scalar = 0.9,
    trust_coefficient: Scalar = 0.001,
    weight_decay: Scalar = 0.0,
    form: str = "paper",
) -> Optimizer:
    """LARS (You et al., 2017): momentum of gradients in units of the norm of their tensor.

        yₙ = (gₙ + λ θₙ) κ ‖θₙ‖/(‖gₙ‖ + λ‖θₙ‖) for each tensor,   mₙ = γ mₙ₋₁ + (1−γ) yₙ,   θₙ₊₁ = θₙ − η mₙ,

    two stages: the trust ratio, and momentum. Paper and optax leave out the factor 1 − γ: their learning rate is
    (1−γ) η. Where a norm is 0 the ratio is 1.

    Args:
        learning_rate: η > 0, what y is multiplied by in the end.
        gamma: decay γ of the momentum, in [0, 1): `momentum` in optax.
        trust_coefficient: κ > 0.
        weight_decay: λ ≥ 0, inside the ratio.
        form: "paper" divides by ‖g‖ + λ‖θ‖, "optax" by ‖g + λθ‖; one without weight decay.

    Raises:
        ValueError: if a number is out of its range.

    References:
        Y. You, I. Gitman, B. Ginsburg, Large Batch Training of Convolutional Networks, arXiv:1708.03888 (2017).

    Example:
        >>> import adamflow as af
        >>> [type(stage).__name__ for stage in af.lars(1.0, weight_decay=1e-4).stages]
        ['TrustRatioStage', 'MomentumStage']
    """
    adds_norms = choice_called("form", FORMS)(form) == "paper"
    return Optimizer(
        learning_rate=learning_rate,
        stages=(TrustRatioStage(weight_decay, trust_coefficient, adds_norms), MomentumStage(gamma)),
        bias_correction=False,
        name="lars",
    )
