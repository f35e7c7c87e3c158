"""Muon: momentum, orthogonalized matrix by matrix; Adam for all other tensors."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from adamflow.checks import check_range, keyword_decays
from adamflow.optimizers.hyperparameters import beside, check_decays, count_called, flag_called, number_called
from adamflow.optimizers.optimizer import Optimizer
from adamflow.optimizers.settings import Setting
from adamflow.optimizers.stage import AbstractStage, Filter, Ratio, StageInput
from adamflow.types import Leaf, Scalar

#: a, b, c of the quintic iteration X ← aX + (bA + cA²)X, A = XXᵀ.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalized(matrix: Leaf, iterations: int, smallest_norm: Scalar) -> Leaf:
    """Newton–Schulz: singular values brought near 1, between .68 and 1.20 after 5 iterations, singular vectors kept.

    Args:
        matrix: shape (rows, columns).
        iterations: of the quintic X ← aX + (bA + cA²)X, A = XXᵀ, from X/(‖X‖_F + smallest_norm).
        smallest_norm: added to the norm. A matrix of zeros stays so.
    """
    norm = jnp.sqrt(jnp.sum(matrix**2)) + beside(smallest_norm, matrix)
    image = matrix / jnp.where(norm == 0, 1.0, norm)
    wide = image.shape[0] <= image.shape[1]
    image = image if wide else image.T
    a, b, c = _COEFFICIENTS
    for _ in range(iterations):
        gram = image @ image.T
        image = a * image + (b * gram + c * gram @ gram) @ image
    return image if wide else image.T


def newton_schulz_maximum(iterations: int) -> float:
    """The largest singular value that `orthogonalized` returns: the maximum of its polynomial over (0, 1]."""
    a, b, c = _COEFFICIENTS
    values = np.geomspace(1e-5, 1.0, 400_001)
    for _ in range(iterations):
        values = a * values + b * values**3 + c * values**5
    return float(np.abs(values).max())


class MuonStage(AbstractStage):
    """Filters of x: momentum (decay `momentum`, raw) for matrices; m (decay γ) and v of x² (decay β) for other tensors.

    A matrix has the direction √max(1, outputs/inputs) · NS(μ m + (1−μ) x), μ the momentum's decay, with `nesterov`, and
    NS(m) without; all other tensors have Adam's. Each filter is kept for every tensor.
    """

    mixes_entries: ClassVar[bool] = True

    momentum: jax.Array = eqx.field(converter=number_called("momentum"))
    beta: jax.Array = eqx.field(converter=number_called("beta"))
    gamma: jax.Array = eqx.field(converter=number_called("gamma"))
    smallest_norm: jax.Array = eqx.field(converter=number_called("smallest_norm"), default=1e-7)
    nesterov: bool = eqx.field(static=True, converter=flag_called("nesterov"), default=True)
    iterations: int = eqx.field(static=True, converter=count_called("iterations"), default=5)
    output_axis: int = eqx.field(static=True, converter=count_called("output_axis", low=0), default=0)

    def __check_init__(self):
        check_decays(self.beta, self.gamma)
        check_range("momentum", self.momentum, 0, 1, low_open=True, high_open=True)
        check_range("smallest_norm", self.smallest_norm, 0, float("inf"), high_open=True)
        check_range("output_axis", self.output_axis, 0, 1, hint="a matrix has two axes")

    def filters(self) -> tuple[Filter, ...]:
        return (
            Filter("momentum", self.momentum, lambda signal, _: signal.value, weight_sum=lambda iteration: 1.0),
            Filter("first_moment", self.gamma, lambda signal, _: signal.value),
            Filter("second_moment", self.beta, lambda signal, _: signal.value**2, nonnegative=True),
        )

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        if signal.value.ndim != 2:
            return ratio(averages["first_moment"], averages["second_moment"])
        matrix = averages["momentum"]
        if self.nesterov:
            share = beside(self.momentum, matrix)
            matrix = share * matrix + (1 - share) * signal.value
        return self._scale(matrix.shape) * orthogonalized(matrix, self.iterations, self.smallest_norm)

    def spectral_bound(self, shape: tuple[int, int]) -> float | None:
        return self._scale(shape) * newton_schulz_maximum(self.iterations)

    def _scale(self, shape: tuple[int, ...]) -> float:
        """√max(1, outputs/inputs)."""
        outputs, inputs = shape if self.output_axis == 0 else shape[::-1]
        return max(1.0, outputs / inputs) ** 0.5


@keyword_decays
def muon(
    learning_rate: Setting,
    *,
    momentum: Scalar = 0.95,
    beta: Scalar = 0.999,
    gamma: Scalar = 0.9,
    epsilon: Scalar = 1e-8,
    weight_decay: Setting = 0.0,
    nesterov: bool = True,
    iterations: int = 5,
    smallest_norm: Scalar = 1e-7,
    output_axis: int = 0,
) -> Optimizer:
    """Muon (Jordan et al., 2024): matrices move by an orthogonal matrix, all else by Adam.

        mₙ = μ mₙ₋₁ + (1−μ) Gₙ,   uₙ = √max(1, outputs/inputs) · NS(μ mₙ + (1−μ) Gₙ),

    NS five iterations of Newton and Schulz, which bring the singular values between .68 and 1.20. The largest singular
    value of u is at most 1.2024 √max(1, outputs/inputs). A matrix is a leaf with two axes: in a flattened problem there
    is none.

    Args:
        learning_rate: η > 0.
        momentum: decay μ of the matrices' momentum, in (0, 1): `beta` in optax.contrib.muon.
        beta: decay β of the second moment of other tensors, in (0, 1): `adam_b2` there.
        gamma: decay γ of their first moment, in [0, 1): `adam_b1` there.
        epsilon: ε ≥ 0, added to their root.
        weight_decay: λ ≥ 0, decoupled.
        nesterov: whether a share of the gradient is added to the momentum.
        iterations: of Newton and Schulz, at least 1.
        smallest_norm: added to the norm by which a matrix is divided first.
        output_axis: which axis of a matrix belongs to the outputs: 0 in the author's code and PyTorch, 1 in optax.

    Raises:
        ValueError: if a number is out of its range.

    References:
        K. Jordan et al., Muon: An optimizer for hidden layers in neural networks (2024), the author's code.

    Example:
        >>> import adamflow as af
        >>> af.muon(0.02).name
        'muon'
    """
    return Optimizer(
        learning_rate=learning_rate,
        stages=(MuonStage(momentum, beta, gamma, smallest_norm, nesterov, iterations, output_axis),),
        weight_decay=weight_decay,
        epsilon=epsilon,
        name="muon",
    )
