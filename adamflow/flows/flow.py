"""The contract of a flow: a vector field whose solution stands beside the iterates of an optimizer."""

import abc
from typing import Any

import diffrax
import equinox as eqx
import jax

from adamflow.optimizers import Optimizer
from adamflow.types import Leaf, Loss, Params, Scalar


class Snapshot(eqx.Module):
    """A run at one iteration, as `observe=` functions get it.

    Attributes:
        iteration: n; in a flow n = t/η.
        params: θ.
        gradient: the gradient at θ, a pytree like the parameters.
        direction: u, from the filters after they have consumed that gradient.
        filters: by stage, a dict from the filter's name to a pytree like the parameters (before bias correction).
        loss: the loss at θ (on this iteration's batch, where there is one).
    """

    iteration: Scalar
    params: Params
    gradient: Params
    direction: Params
    filters: tuple[dict[str, Params], ...]
    loss: Leaf


class AbstractFlow(eqx.Module):
    """Continuous time for an optimizer, in units of iterations, n = t/η.

    To add one, subclass it in a file of its own and define the five members below. `af.solve` integrates it, and
    `term` hands it to diffrax for everything else.
    """

    optimizer: eqx.AbstractVar[Optimizer]

    @abc.abstractmethod
    def initial_state(self, loss: Loss, params: Params) -> Any:
        """The state at n = 0, when the first gradient has been consumed: a pytree of arrays, of the flow's choice."""

    @abc.abstractmethod
    def vector_field(self, time: Scalar, state: Any, loss: Loss) -> Any:
        """The derivative of the state per iteration, at the time n."""

    @abc.abstractmethod
    def params(self, state: Any) -> Params:
        """The parameters θ in a state."""

    @property
    def name(self) -> str:
        """What reports and legends call this flow."""
        return type(self).__name__

    def nonnegative(self, state: Any) -> Any:
        """Marks, as a pytree of bools like the state, the parts that stay nonnegative in exact arithmetic.

        Implicit solvers follow their logarithm, which keeps them positive between the steps. None by default.
        """
        return jax.tree.map(lambda _: False, state)

    @abc.abstractmethod
    def snapshot(self, time: Scalar, state: Any, loss: Loss) -> Snapshot:
        """Everything that users look at, at the time n; evaluates the gradient."""

    def direction(self, time: Scalar, state: Any, loss: Loss) -> Params:
        """The direction u at the time n."""
        return self.snapshot(time, state, loss).direction

    def term(self, loss: Loss) -> diffrax.ODETerm:
        """This flow as a diffrax term, to be solved from `initial_state` over time in iterations."""
        return diffrax.ODETerm(lambda time, state, args: self.vector_field(time, state, loss))
