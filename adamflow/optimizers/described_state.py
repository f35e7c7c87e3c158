"""What a reader of another library's state returns."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from adamflow.optimizers.optimizer import Optimizer, OptimizerState


@dataclasses.dataclass(frozen=True)
class OptimizerReading:
    """An optimizer and its state, read from another library: `optimizer, optimizer_state, iteration = reading`.

    `training_report(loss, params, *reading, **reading.groups)` is the report of it.

    Attributes:
        optimizer: with the learning rate of this iteration; where groups differ, the largest one, and the largest
            weight decay.
        optimizer_state: its state, before the gradient at the present parameters.
        iteration: how many gradients the state has consumed.
        found: what was found in the state, a phrase for each part.
        not_described: what was found and is not in `optimizer`, or cannot be seen in a state, a sentence each.
        learning_rates: η of each leaf, a pytree like the parameters, or `None` if all are that of `optimizer`.
        weight_decays: λ of each leaf likewise.
    """

    optimizer: Optimizer
    optimizer_state: OptimizerState
    iteration: int
    found: tuple[str, ...] = ()
    not_described: tuple[str, ...] = ()
    learning_rates: Any = None
    weight_decays: Any = None

    def __iter__(self) -> Iterator[Any]:
        return iter((self.optimizer, self.optimizer_state, self.iteration))

    @property
    def groups(self) -> dict[str, Any]:
        """The arguments of `training_report` for parameter groups; empty if there is one."""
        numbers = dict(learning_rates=self.learning_rates, weight_decays=self.weight_decays)
        return {name: value for name, value in numbers.items() if value is not None}

    def __str__(self) -> str:
        text = f"{self.optimizer.name} after {self.iteration} iterations; found: {', '.join(self.found)}"
        return ". ".join([text, *self.not_described])
