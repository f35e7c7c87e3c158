"""A penalty on the parameters that passes through the filters: the l2 form of weight decay."""

import dataclasses

from adamflow.optimizers.optimizer import Optimizer, check_optimizer
from adamflow.types import Scalar


def with_l2(optimizer: Optimizer, l2: Scalar) -> Optimizer:
    """An optimizer that gets gₙ + λ₂ θₙ in the place of the gradient gₙ: that of the loss plus λ₂‖θ‖²/2.

    Decoupled weight decay, `weight_decay` of a constructor, leaves the filters alone; unless the direction is the
    gradient itself, the two are different systems. Where the gradient of the loss vanishes, this one moves θ at Adam's
    full speed η, whatever λ₂ is, and decoupled decay as e^{−λt}.

    Args:
        optimizer: any record.
        l2: λ₂ ≥ 0.

    Raises:
        TypeError: if the optimizer is none.
        ValueError: if l2 is out of its range.

    References:
        I. Loshchilov and F. Hutter, Decoupled Weight Decay Regularization, arXiv:1711.05101 (2017).

    Example:
        >>> import adamflow as af
        >>> optimizer = af.with_l2(af.adam(0.1, gamma=0.9), 0.5)
        >>> print(round(float(af.analysis.critical_curvature(optimizer)), 6))  # of s + λ₂ = 380
        379.5
    """
    check_optimizer("with_l2", optimizer)
    return dataclasses.replace(optimizer, l2=l2)
