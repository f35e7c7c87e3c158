"""The contract of a stage: which filters it keeps, what each of them averages, and the direction it returns."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from adamflow.optimizers.record import Record
from adamflow.types import Leaf, Params, Scalar

#: The stabilized ratio m/(√v + ε) that an optimizer hands to its stages: `ratio(m, v)`, and 0 where both vanish.
Ratio = Callable[[Leaf, Leaf], Leaf]


class StageInput(NamedTuple):
    """What a stage receives for one leaf of the parameters at one iteration.

    Attributes:
        value: the input xₙ: the gradient for the first stage, the direction of the stage before for the others.
        difference: xₙ − xₙ₋₁ (zero at n = 0) for a stage that sets `uses_difference`, otherwise `None`.
        params: θₙ for a stage that sets `uses_params`, otherwise `None`.
        gradient_change: gₙ(θₙ) − gₙ(θₙ₋₁), two gradients of one batch (zero at n = 0), for a first stage that sets
            `uses_gradient_change`, otherwise `None`.
    """

    value: Leaf
    # A stage has what it asks for, which no type knows: `Any` spares it a check for `None`.
    difference: Leaf | Any = None
    params: Leaf | Any = None
    gradient_change: Leaf | Any = None


class Filter(NamedTuple):
    """An exponential moving average x̄ₙ = α x̄ₙ₋₁ + (1−α) f(xₙ), x̄₋₁ = 0 unless `initial` says otherwise.

    Attributes:
        name: the key under which it is found.
        decay: α, a number in (0, 1), or a function of the iteration n = 0, 1, … that returns one.
        input: f; gets the signal and the stage's filters declared *before* this one, already updated.
        nonnegative: whether f ≥ 0. Implicit solvers of the flows then follow ln x̄, which keeps x̄ positive.
        weight_sum: the same average of the constant 1, as a function of n, by which bias correction divides; by default
            1 − αⁿ⁺¹. A decay that is a function must come with its weight_sum.
        initial: x̄₋₁ as a function of the leaf of the parameters at which a run starts; by default 0.
    """

    name: str
    decay: Scalar | Callable[[Scalar], Scalar]
    input: Callable[[StageInput, dict[str, Leaf]], Leaf]
    nonnegative: bool = False
    weight_sum: Callable[[Scalar], Scalar] | None = None
    initial: Callable[[Leaf], Leaf] | None = None

    def decay_at(self, iteration: Scalar) -> Scalar:
        """The decay α at an iteration."""
        return self.decay(iteration) if callable(self.decay) else self.decay

    def weight_sum_at(self, iteration: Scalar) -> Scalar:
        """The average of the constant 1 at an iteration: 1 − αⁿ⁺¹ for a constant decay."""
        if self.weight_sum is not None:
            return self.weight_sum(iteration)
        if callable(self.decay):
            raise TypeError(
                f"filter {self.name!r} has a decay that depends on the iteration but no weight_sum, so its bias "
                "correction is unknown; declare Filter(..., weight_sum=function of the iteration)"
            )
        return weight_sum_of(self.decay, iteration + 1)


def weight_sum_of(decay: Any, count: Any) -> Any:
    """1 − αᵏ: the weights of k gradients in a filter that started at 0, without cancellation near α = 1."""
    precise = -jnp.expm1(count * jnp.log(jnp.where(decay > 0, decay, 1.0)))
    return jnp.where(decay > 0, precise, 1 - decay**count)


def moment_filters(beta: Any, gamma: Any) -> tuple[Filter, Filter]:
    """Adam's two filters: the averages of x with decay γ, and of x² with decay β."""
    return (
        Filter("first_moment", gamma, lambda signal, _: signal.value),
        Filter("second_moment", beta, lambda signal, _: signal.value**2, nonnegative=True),
    )


class AbstractStage(Record):
    """One stage of an optimizer: filters driven by a signal, and a direction read from them.

    To add one, subclass it in a file of its own and define

    - `filters()`: the moving averages that it keeps, with their decays and what each averages;
    - `direction(...)`: what it returns from the bias-corrected averages.

    Only if it needs them, define too

    - `uses_difference = True`: the signal then carries xₙ − xₙ₋₁ (Adan);
    - `uses_gradient_change = True`, for a first stage: the signal then carries gₙ(θₙ) − gₙ(θₙ₋₁), two gradients of one
      batch (VRAdam); an iteration then costs a second gradient, and the state keeps θₙ₋₁;
    - `uses_params = True`: the signal then carries θₙ (LAMB's trust ratio, an average of the model);
    - `forgets`: names of moving averages that it does not keep since their decay is 0, so that they are its input;
    - `initial_memory` and `update_memory`: memory that is no average (AMSGrad's maximum, MAdam's decays that depend on
      the state); with `memory_moves = True` the flows of [GT] move it by `memory_rate`;
    - `combine(direction)`: what takes the leaves of the direction together (a norm over all parameters);
    - `evaluation_params(...)`: where the model is evaluated, if not at the point where gradients are taken.

    And say what is true of it, so that nothing computes what does not hold:

    - `takes_signs = True`: the direction is a sign, or another function with a jump;
    - `mixes_entries = True`: an entry of the direction depends on other entries in more than a common factor;
    - `needs_constant_rate`: a sentence that says why η must not vary with the iteration, where it must not;
    - `no_limit`: a sentence that says why this stage has no limit equations; flows of [GT] refuse it with that;
    - `bound(...)`: the largest entry of its direction, where lemma L3 (`af.analysis.direction_bound`) finds none;
      `spectral_bound(shape)`: the largest singular value, for a stage that acts on matrices.

    Decays, clips and bounds that change in time are functions of the iteration. The methods act on one leaf of the
    parameters at a time, so a norm inside them is a norm over that tensor. From this the discrete step, the optax
    transformation, the flows, linear stability and the bound of the direction follow.
    """

    uses_difference: ClassVar[bool] = False
    uses_gradient_change: ClassVar[bool] = False
    uses_params: ClassVar[bool] = False
    forgets: ClassVar[tuple[str, ...]] = ()
    memory_moves: ClassVar[bool] = False
    takes_signs: ClassVar[bool] = False
    mixes_entries: ClassVar[bool] = False
    no_limit: ClassVar[str] = ""
    needs_constant_rate: ClassVar[str] = ""

    @abc.abstractmethod
    def filters(self) -> tuple[Filter, ...]:
        """The filters of this stage, in the order in which they are updated."""

    @abc.abstractmethod
    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        """The direction uₙ.

        Args:
            signal: the input at this iteration.
            averages: the filters by name, updated, divided by their weight_sum if the optimizer corrects the bias.
            memory: the memory, updated; empty unless `initial_memory` says otherwise.
            iteration: n = 0, 1, …; a real number in a flow.
            ratio: `ratio(m, v)` = m/(√v + ε), stabilized as the optimizer says.
        """

    def initial_memory(self, leaf: Leaf) -> dict[str, Leaf]:
        """The memory before the first gradient, for one leaf of the parameters."""
        return {}

    def update_memory(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar
    ) -> dict[str, Leaf]:
        """The memory at this iteration, from the updated averages and the memory of the last one."""
        return memory

    def memory_rate(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar
    ) -> dict[str, Leaf]:
        """How the memory moves per iteration in a flow of [GT], for a stage with `memory_moves`.

        By default by what the discrete step would change. That is its limit as η → 0 once all of the state moves
        slowly: a sum rises by what is added, a maximum follows what exceeds it.
        """
        updated = self.update_memory(signal, averages, memory, iteration)
        return jax.tree.map(jnp.subtract, updated, memory)

    def combine(self, direction: Params) -> Params:
        """The direction of this stage from that of all its leaves; by default the same."""
        return direction

    def evaluation_params(
        self, params: Leaf, averages: dict[str, Leaf], memory: dict[str, Leaf], learning_rate: Scalar
    ) -> Leaf:
        """Where the model is evaluated, for one leaf of the parameters; by default where the gradient is taken.

        Args:
            params: θₙ, where the gradient is taken.
            averages: the filters by name, after that gradient, divided by their weight_sum if the optimizer does so.
            memory: the memory after that gradient.
            learning_rate: η.
        """
        return params

    def bound(self, iteration: Scalar, *, bias_correction: bool) -> Scalar | None:
        """The least upper bound of the direction's entries over all inputs; `None` where no closed form is known.

        Args:
            iteration: n.
            bias_correction: whether the optimizer divides filters by their weight_sum.
        """
        return None

    def spectral_bound(self, shape: tuple[int, int]) -> float | None:
        """The largest singular value that the direction of a matrix may have, for a stage that acts on matrices.

        Args:
            shape: of the matrix.
        """
        return None

    @property
    def only_averages(self) -> bool:
        """Whether this stage remembers nothing but moving averages, so that it has the flows of [GT]."""
        return not self.uses_change and not self.initial_memory(jnp.zeros(()))

    @property
    def uses_change(self) -> bool:
        """Whether it asks how its input changes. Without noise both kinds of change are one, in a flow D x."""
        return self.uses_difference or self.uses_gradient_change


class Refiltered(AbstractStage):
    """A stage whose filters are changed: `change(filter)` in the place of each; all else is that of `stage`.

    With `holds_memory` memory that is no average stays what it is.
    """

    stage: AbstractStage
    change: Callable[[Filter], Filter]
    holds_memory: bool = eqx.field(static=True, default=False)

    @property
    def uses_difference(self) -> bool:  # pyright: ignore
        return self.stage.uses_difference

    @property
    def uses_gradient_change(self) -> bool:  # pyright: ignore
        return self.stage.uses_gradient_change

    @property
    def uses_params(self) -> bool:  # pyright: ignore
        return self.stage.uses_params

    @property
    def forgets(self) -> tuple[str, ...]:  # pyright: ignore
        return self.stage.forgets

    @property
    def memory_moves(self) -> bool:  # pyright: ignore
        return self.stage.memory_moves

    @property
    def takes_signs(self) -> bool:  # pyright: ignore
        return self.stage.takes_signs

    @property
    def mixes_entries(self) -> bool:  # pyright: ignore
        return self.stage.mixes_entries

    @property
    def no_limit(self) -> str:  # pyright: ignore
        return self.stage.no_limit

    @property
    def needs_constant_rate(self) -> str:  # pyright: ignore
        return self.stage.needs_constant_rate

    def filters(self) -> tuple[Filter, ...]:
        return tuple(map(self.change, self.stage.filters()))

    def direction(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar, ratio: Ratio
    ) -> Leaf:
        return self.stage.direction(signal, averages, memory, iteration, ratio)

    def initial_memory(self, leaf: Leaf) -> dict[str, Leaf]:
        return self.stage.initial_memory(leaf)

    def update_memory(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar
    ) -> dict[str, Leaf]:
        return memory if self.holds_memory else self.stage.update_memory(signal, averages, memory, iteration)

    def memory_rate(
        self, signal: StageInput, averages: dict[str, Leaf], memory: dict[str, Leaf], iteration: Scalar
    ) -> dict[str, Leaf]:
        if self.holds_memory:
            return jax.tree.map(jnp.zeros_like, memory)
        return self.stage.memory_rate(signal, averages, memory, iteration)

    def combine(self, direction: Params) -> Params:
        return self.stage.combine(direction)

    def evaluation_params(
        self, params: Leaf, averages: dict[str, Leaf], memory: dict[str, Leaf], learning_rate: Scalar
    ) -> Leaf:
        return self.stage.evaluation_params(params, averages, memory, learning_rate)

    def bound(self, iteration: Scalar, *, bias_correction: bool) -> Scalar | None:
        return self.stage.bound(iteration, bias_correction=bias_correction)

    def spectral_bound(self, shape: tuple[int, int]) -> float | None:
        return self.stage.spectral_bound(shape)
