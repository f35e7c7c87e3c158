"""What a reader of another library's state returns."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from adamflow.optimizers.optimizer import Optimizer, OptimizerState


@dataclasses.dataclass(frozen=True)
class OptimizerReading:
    """An optimizer and its state, read from another library: `optimizer, optimizer_state, iteration = reading`.

    `training_report(loss, params, *reading)` is the report of it, and
    `iterate(reading.optimizer, loss, params, steps, start=reading.start)` goes on from it.

    Attributes:
        optimizer: with its schedules, and where groups differ with the rate and weight decay of each leaf.
        optimizer_state: its state, before the gradient at the present parameters.
        iteration: how many gradients the state has consumed.
        found: what was found in the state, a phrase for each part.
        not_described: what was found and is not in `optimizer`, or cannot be seen in a state, a sentence each.
    """

    optimizer: Optimizer
    optimizer_state: OptimizerState
    iteration: int
    found: tuple[str, ...] = ()
    not_described: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter((self.optimizer, self.optimizer_state, self.iteration))

    @property
    def start(self) -> tuple[int, OptimizerState]:
        """Where a run goes on, as `start=` of `af.iterate` and `af.solve` takes it."""
        return self.iteration, self.optimizer_state

    def __str__(self) -> str:
        text = f"{self.optimizer.name} after {self.iteration} iterations; found: {', '.join(self.found)}"
        return ". ".join([text, *self.not_described])
