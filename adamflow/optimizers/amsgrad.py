"""AMSGrad: Adam over the largest second moment so far."""

from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from adamflow.checks import check_choice, keyword_decays
from adamflow.optimizers.hyperparameters import beside, check_decays, choice_called, number_called
from adamflow.optimizers.optimizer import Optimizer
from adamflow.optimizers.settings import Setting
from adamflow.optimizers.stage import AbstractStage, Filter, Ratio, StageInput, moment_filters, weight_sum_of
from adamflow.types import Leaf, Scalar

MAXIMA = ("used", "raw")
FORMS = ("paper", "optax", "torch")


class AMSGradStage(AbstractStage):
    """Filters m of x (decay γ) and v of x² (decay β), and the memory V ← max(V, v̂); direction u = m̂/(√V + ε).

    With maximum "raw" V is that of v before bias correction, which divides it afterwards.
    """

    memory_moves: ClassVar[bool] = True

    beta: jax.Array = eqx.field(converter=number_called("beta"))
    gamma: jax.Array = eqx.field(converter=number_called("gamma"))
    maximum: Literal["used", "raw"] = eqx.field(static=True, converter=choice_called("maximum", MAXIMA), default="used")

    def __check_init__(self):
        check_decays(self.beta, self.gamma)

    def filters(self) -> tuple[Filter, ...]:
        return moment_filters(self.beta, self.gamma)

    def initial_memory(self, leaf: Leaf) -> dict[str, Leaf]:
        return {"maximum": jnp.zeros_like(leaf)}

    def update_memory(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar
    ) -> dict[str, Leaf]:
        square = averages["second_moment"]
        return {"maximum": jnp.maximum(memory["maximum"], square * self._mass(iteration, square))}

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        # In a flow the memory lags what exceeds it by about an iteration, so that the maximum is taken here, too.
        square = averages["second_moment"]
        return ratio(averages["first_moment"], jnp.maximum(memory["maximum"] / self._mass(iteration, square), square))

    def bound(self, iteration: Scalar, *, bias_correction: bool) -> Scalar | None:
        """1 for γ ≥ β; else Adam's, since the worst gradients let v̂ rise. Known with bias correction inside alone."""
        if not bias_correction or self.maximum == "raw":
            return None
        count, quotient = iteration + 1, self.gamma**2 / self.beta
        series = (1 - quotient**count) / (1 - jnp.where(quotient < 1, quotient, 0.0))
        square = (1 - self.gamma) ** 2 / (1 - self.beta) * series * weight_sum_of(self.beta, count)
        return jnp.where(self.gamma >= self.beta, 1.0, jnp.sqrt(square) / weight_sum_of(self.gamma, count))

    def _mass(self, iteration: Scalar, leaf: Leaf) -> Leaf:
        """What the corrected second moment is multiplied by before the maximum is taken."""
        mass = weight_sum_of(self.beta, iteration + 1) if self.maximum == "raw" else 1.0
        return beside(mass, leaf)


@keyword_decays
def amsgrad(
    learning_rate: Setting,
    *,
    beta: Scalar = 0.999,
    gamma: Scalar = 0.9,
    epsilon: Scalar = 0.0,
    weight_decay: Setting = 0.0,
    form: Literal["paper", "optax", "torch"] = "paper",
) -> Optimizer:
    """AMSGrad (Reddi, Kale and Kumar, 2018): a second moment that never falls.

        Vₙ = max(Vₙ₋₁, vₙ),   V₋₁ = 0,   uₙ = mₙ/(√Vₙ + ε),   m and v as in `adam`.

    Three forms differ in what is corrected for its start: in the paper nothing; in optax m̂ and v̂, of which the maximum
    is taken; in PyTorch the maximum is that of v, which is divided by 1 − βⁿ⁺¹ afterwards.

    Args:
        learning_rate: η > 0.
        beta: decay β of the second moment, in (0, 1): `b2` in PyTorch and optax.
        gamma: decay γ of the first moment, in [0, 1): `b1` in PyTorch and optax.
        epsilon: ε ≥ 0, added to the root.
        weight_decay: λ ≥ 0, decoupled.
        form: "paper", "optax" or "torch".

    Raises:
        ValueError: if a number is out of its range or the form unknown.

    References:
        S. J. Reddi, S. Kale, S. Kumar, On the Convergence of Adam and Beyond, arXiv:1904.09237 (2018).

    Example:
        >>> import adamflow as af
        >>> af.amsgrad(1e-3, form="optax").bias_correction
        True
    """
    check_choice("form", form, FORMS)
    return Optimizer(
        learning_rate=learning_rate,
        stages=(AMSGradStage(beta, gamma, "raw" if form == "torch" else "used"),),
        weight_decay=weight_decay,
        epsilon=epsilon,
        bias_correction=form != "paper",
        name="amsgrad",
    )
