"""Shampoo: a gradient matrix between the inverse fourth roots of its two sums of squares."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from adamflow.checks import check_range
from adamflow.optimizers.hyperparameters import beside, number_called
from adamflow.optimizers.optimizer import Optimizer
from adamflow.optimizers.settings import Setting
from adamflow.optimizers.stage import AbstractStage, Filter, Ratio, StageInput
from adamflow.types import Leaf, Scalar


@jax.custom_jvp
def inverse_fourth_root(matrix: Leaf) -> Leaf:
    """A^{−1/4} of a symmetric positive definite matrix, with a derivative at equal eigenvalues too."""
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * _root_of(values)) @ vectors.T


@inverse_fourth_root.defjvp
def _derivative(primals: tuple[Leaf], tangents: tuple[Leaf]) -> tuple[Leaf, Leaf]:
    values, vectors = jnp.linalg.eigh(primals[0])
    roots = _root_of(values)
    a, b = roots[:, None], roots[None, :]
    # Divided differences (a − b)/(a⁻⁴ − b⁻⁴), without cancellation.
    slopes = -((a * b) ** 4) / ((a + b) * (a**2 + b**2))
    change = vectors @ (slopes * (vectors.T @ tangents[0] @ vectors)) @ vectors.T
    return (vectors * roots) @ vectors.T, change


def _root_of(values: Leaf) -> Leaf:
    return jnp.maximum(values, jnp.finfo(values.dtype).tiny) ** -0.25


class ShampooStage(AbstractStage):
    """Memory L ← L + G Gᵀ and R ← R + Gᵀ G, both from ε·1; direction u = L^{−1/4} G R^{−1/4}.

    A vector is a column, and u = L^{−1/2} g; a tensor of more axes is a matrix of its first axis and the rest.
    """

    memory_moves: ClassVar[bool] = True
    mixes_entries: ClassVar[bool] = True

    initial_diagonal: jax.Array = eqx.field(converter=number_called("initial_diagonal"))

    def __check_init__(self):
        hint = "the sums must be positive definite"
        check_range(
            "initial_diagonal", self.initial_diagonal, 0, float("inf"), low_open=True, high_open=True, hint=hint
        )

    def filters(self) -> tuple[Filter, ...]:
        return ()

    def initial_memory(self, leaf: Leaf) -> dict[str, Leaf]:
        rows, columns = _as_matrix(leaf).shape
        start = beside(self.initial_diagonal, leaf)
        return {"left": start * jnp.eye(rows, dtype=leaf.dtype), "right": start * jnp.eye(columns, dtype=leaf.dtype)}

    def update_memory(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar
    ) -> dict[str, Leaf]:
        matrix = _as_matrix(signal.value)
        return {"left": memory["left"] + matrix @ matrix.T, "right": memory["right"] + matrix.T @ matrix}

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        left = inverse_fourth_root(memory["left"])
        matrix = left @ _as_matrix(signal.value)
        matrix = left @ matrix if signal.value.ndim < 2 else matrix @ inverse_fourth_root(memory["right"])
        return matrix.reshape(signal.value.shape)


def _as_matrix(leaf: Leaf) -> Leaf:
    """A leaf as a matrix: a number is one entry, a vector a column."""
    return leaf.reshape(leaf.shape[0], -1) if leaf.ndim else leaf.reshape(1, 1)


def shampoo(learning_rate: Setting, *, initial_diagonal: Scalar = 1e-4, weight_decay: Setting = 0.0) -> Optimizer:
    """Shampoo (Gupta, Koren and Singer, 2018): Adagrad with a matrix for the rows and one for the columns.

        Lₙ = Lₙ₋₁ + Gₙ Gₙᵀ,   Rₙ = Rₙ₋₁ + Gₙᵀ Gₙ,   L₋₁ = R₋₁ = ε·1,   uₙ = Lₙ^{−1/4} Gₙ Rₙ^{−1/4}.

    As for Adagrad, the natural time is nη². The roots are exact, from eigenvalues, in every iteration.

    Args:
        learning_rate: η > 0.
        initial_diagonal: ε > 0.
        weight_decay: λ ≥ 0, decoupled.

    Raises:
        ValueError: if a number is out of its range.

    References:
        V. Gupta, T. Koren, Y. Singer, Shampoo: Preconditioned Stochastic Tensor Optimization, arXiv:1802.09568 (2018).

    Example:
        >>> import adamflow as af
        >>> af.shampoo(0.1).name
        'shampoo'
    """
    return Optimizer(
        learning_rate=learning_rate,
        stages=(ShampooStage(initial_diagonal),),
        weight_decay=weight_decay,
        bias_correction=False,
        name="shampoo",
    )
