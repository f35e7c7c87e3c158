"""Steepest descent in a norm that is not the Euclidean one: signs for the largest entry, polar factors of matrices."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from adamflow.optimizers.hyperparameters import choice_called, flag_called
from adamflow.optimizers.optimizer import Optimizer
from adamflow.optimizers.settings import Setting
from adamflow.optimizers.stage import AbstractStage, Filter, Ratio, StageInput
from adamflow.types import Leaf, Params, Scalar

NORMS = ("max", "spectral")


def steepest_direction(gradient: Params, norm: str) -> tuple[Params, Float[Array, ""]]:
    """The D with ‖D‖ ≤ 1 for which ⟨gradient, D⟩ is largest, and that product, the dual norm of the gradient.

    Args:
        gradient: any pytree.
        norm: "max", the largest entry, with D = sign g; or "spectral", the largest singular value of any matrix (leaves
            with two axes) or length of any other leaf, with D = U Vᵀ and g/‖g‖.
    """
    direction = jax.tree.map(jnp.sign if norm == "max" else _polar_factor, gradient)
    products = jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, direction)
    return direction, jnp.stack(jax.tree.leaves(products)).sum()


def _polar_factor(leaf: Leaf) -> Leaf:
    """U Vᵀ of a matrix, over the singular values that are not 0; of any other leaf the unit vector along it."""
    matrix = leaf if leaf.ndim == 2 else leaf.reshape(-1, 1)
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    seen = values > values.max() * max(matrix.shape) * jnp.finfo(leaf.dtype).eps
    return ((left * seen) @ right).reshape(leaf.shape)


class SteepestStage(AbstractStage):
    """No filter; direction u = argmax ⟨x, D⟩ over ‖D‖ ≤ 1, times the dual norm of x with `dual_norm`."""

    takes_signs: ClassVar[bool] = True
    mixes_entries: ClassVar[bool] = True

    norm: str = eqx.field(static=True, converter=choice_called("norm", NORMS))
    dual_norm: bool = eqx.field(static=True, converter=flag_called("dual_norm"), default=True)

    def filters(self) -> tuple[Filter, ...]:
        return ()

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        return signal.value

    def combine(self, direction: Params) -> Params:
        unit, length = steepest_direction(direction, self.norm)
        return jax.tree.map(lambda leaf: leaf * length.astype(leaf.dtype), unit) if self.dual_norm else unit

    def bound(self, iteration: Scalar, *, bias_correction: bool) -> Scalar | None:
        return float("inf") if self.dual_norm else 1.0

    def spectral_bound(self, shape: tuple[int, int]) -> float | None:
        if self.dual_norm:
            return float("inf")
        return 1.0 if self.norm == "spectral" else float(shape[0] * shape[1]) ** 0.5


def steepest_descent(
    learning_rate: Setting, norm: str, *, dual_norm: bool = True, weight_decay: Setting = 0.0
) -> Optimizer:
    """Steepest descent in a norm: sign descent and Muon without momentum are its members with steps of fixed length.

        θₙ₊₁ = θₙ − η (λ θₙ + ‖gₙ‖∗ Dₙ),   Dₙ = argmax ⟨gₙ, D⟩ over ‖D‖ ≤ 1,   ‖g‖∗ = ⟨g, D⟩ the dual norm.

    The loss falls where η times `analysis.generalized_sharpness` is below 2. With the largest entry as the norm D is
    sign g and ‖g‖∗ = Σ|gᵢ|; with the spectral norm D is U Vᵀ of each matrix and ‖g‖∗ the sum of all singular values.

    Args:
        learning_rate: η > 0.
        norm: "max" or "spectral". In the latter a leaf with two axes is a matrix, and any other a vector with its
            length; the norm of all is the largest of the leaves'.
        dual_norm: whether steps have the length η‖g‖∗; without it that of η: `signsgd` for "max".
        weight_decay: λ ≥ 0, decoupled.

    Raises:
        ValueError: if a number is out of its range, or the norm another one.

    References:
        R. Islamov et al., Non-Euclidean Gradient Descent Operates at the Edge of Stability, arXiv:2603.05002 (2026).

    Example:
        >>> import adamflow as af
        >>> af.steepest_descent(0.01, "spectral").name
        'steepest descent, spectral'
    """
    stage = SteepestStage(norm, dual_norm)
    return Optimizer(
        learning_rate=learning_rate, stages=(stage,), weight_decay=weight_decay, name=f"steepest descent, {stage.norm}"
    )
