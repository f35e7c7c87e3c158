"""The contract of a stage: which filters it keeps, what each of them averages, and the direction it returns."""

import abc
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax.numpy as jnp

from adamflow.optimizers.record import Record
from adamflow.types import Leaf, Scalar

#: The stabilized ratio m/(√v + ε) that an optimizer hands to its stages: `ratio(m, v)`, and 0 where both vanish.
Ratio = Callable[[Leaf, Leaf], Leaf]


class StageInput(NamedTuple):
    """What a stage receives for one leaf of the parameters at one iteration.

    Attributes:
        value: the input xₙ: the gradient for the first stage, the direction of the stage before for the others.
        difference: xₙ − xₙ₋₁ (zero at n = 0) for a stage that sets `uses_difference`, otherwise `None`.
    """

    value: Leaf
    difference: Leaf | None = None


class Filter(NamedTuple):
    """An exponential moving average x̄ₙ = α x̄ₙ₋₁ + (1−α) f(xₙ), x̄₋₁ = 0.

    Attributes:
        name: the key under which it is found.
        decay: α, a number in (0, 1), or a function of the iteration n = 0, 1, … that returns one.
        input: f; gets the signal and the stage's filters declared *before* this one, already updated.
        nonnegative: whether f ≥ 0. Implicit solvers of the flows then follow ln x̄, which keeps x̄ positive.
        weight_sum: the same average of the constant 1, as a function of n, by which bias correction divides; by default
            1 − αⁿ⁺¹. A decay that is a function must come with its weight_sum.
    """

    name: str
    decay: Scalar | Callable[[Scalar], Scalar]
    input: Callable[[StageInput, dict[str, Leaf]], Leaf]
    nonnegative: bool = False
    weight_sum: Callable[[Scalar], Scalar] | None = None

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
        power = iteration + 1
        precise = -jnp.expm1(power * jnp.log(jnp.where(self.decay > 0, self.decay, 1.0)))
        return jnp.where(self.decay > 0, precise, 1 - self.decay**power)


class AbstractStage(Record):
    """One stage of an optimizer: filters driven by a signal, and a direction read from them.

    To add one, subclass it in a file of its own and define

    - `filters()`: the moving averages that it keeps, with their decays and what each averages;
    - `direction(...)`: what it returns from the bias-corrected averages.

    Only if it needs them, define too

    - `uses_difference = True`: the signal then carries xₙ − xₙ₋₁ (Adan);
    - `forgets`: names of moving averages that it does not keep since their decay is 0, so that they are its input;
    - `initial_memory` and `update_memory`: memory that is no average (AMSGrad's maximum).

    Decays, clips and bounds that change in time are functions of the iteration. The methods act on one leaf of the
    parameters at a time, so a norm inside them is a norm over that tensor. From this the discrete step, the optax
    transformation and, without memory or differences, the flows follow.
    """

    uses_difference: ClassVar[bool] = False
    forgets: ClassVar[tuple[str, ...]] = ()

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

    @property
    def only_averages(self) -> bool:
        """Whether this stage remembers nothing but moving averages, so that it has the flows of [GT]."""
        return not self.uses_difference and not self.initial_memory(jnp.zeros(()))


class Refiltered(AbstractStage):
    """A stage whose filters are changed: `change(filter)` in the place of each; all else is that of `stage`."""

    stage: AbstractStage
    change: Callable[[Filter], Filter]

    @property
    def uses_difference(self) -> bool:  # pyright: ignore
        return self.stage.uses_difference

    @property
    def forgets(self) -> tuple[str, ...]:  # pyright: ignore
        return self.stage.forgets

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
        return self.stage.update_memory(signal, averages, memory, iteration)
