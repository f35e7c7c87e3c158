"""The contract of a flow: a vector field whose solution stands beside the iterates of an optimizer."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeAlias

import diffrax
import equinox as eqx
import jax
from jaxtyping import PyTree

from adamflow.checks import describe
from adamflow.optimizers import Optimizer, OptimizerState
from adamflow.optimizers.record import Record
from adamflow.types import Filters, Leaf, Loss, Params, Scalar, State


class Start(NamedTuple):
    """Where a run starts that does not start at 0; a plain pair does as well.

    Attributes:
        iteration: n₀, that of the parameters that the run is given.
        optimizer_state: the memory before the gradient there.
    """

    iteration: Scalar
    optimizer_state: OptimizerState


#: What functions take for a start.
StartLike: TypeAlias = Start | tuple[Scalar, OptimizerState]


def start_of(start: Any, optimizer: Optimizer, params: Params) -> Start:
    """Where a run starts: what the user gave, and for `None` iteration 0 with a new memory.

    Raises:
        TypeError: unless `start` is `None` or a pair of an iteration and an `OptimizerState`.
    """
    if start is None:
        return Start(0, optimizer.initial_state(params))
    if isinstance(start, tuple) and len(start) == 2 and isinstance(start[1], OptimizerState):
        return Start(*start)
    raise TypeError(
        f"start must be (iteration, memory) with the OptimizerState before the gradient there, got {describe(start)}; "
        "with iterates = af.iterate(..., steps=n) take start=(n, iterates.final_state[1])"
    )


class Snapshot(Record):
    """A run at one iteration, as `observe=` functions get it.

    Attributes:
        iteration: n; in a flow n = t/η.
        params: θ.
        gradient: the gradient at θ, a pytree like the parameters.
        direction: u, from the filters after they have consumed that gradient.
        filters: by stage, a dict from the filter's name to a pytree like the parameters (before bias correction).
        loss: the loss at θ (on this iteration's batch, where there is one).
        aux: what the loss returns beside its value, in a run with `has_aux=True`; otherwise `None`.
        memory: by stage, memory that is no average, after that gradient, by name; `None` in flows without any.
    """

    iteration: Scalar
    params: Params
    gradient: Params
    direction: Params
    filters: Filters
    loss: Leaf
    aux: PyTree = eqx.field(default=None, kw_only=True)
    memory: Filters | None = eqx.field(default=None, kw_only=True)


class ChangeOfVariables(NamedTuple):
    """A change of variables: `encode` takes a state to its coordinates, `decode` takes it back; by default none."""

    encode: Callable[[State], State] = lambda state: state
    decode: Callable[[State], State] = lambda encoded: encoded

    def field(self, flow: "AbstractFlow", loss: Loss, time: Scalar, encoded: State) -> State:
        """What the vector field of a flow is in these coordinates."""
        state = self.decode(encoded)
        return jax.jvp(self.encode, (state,), (flow.vector_field(time, state, loss),))[1]


class AbstractFlow(Record):
    """Continuous time for an optimizer, in units of iterations, n = t/η.

    To add one, subclass it in a file of its own and define `optimizer`, `initial_state`, `vector_field`, `params` and
    `snapshot`; `coordinates` too if the state has some in which implicit solvers do better. `af.solve`
    integrates it, and `term` hands it to diffrax for everything else. A state with an attribute `filters`, by stage and
    name, gives `af.analysis.linear_stability` of the flow as well.
    """

    #: Whether `params` is the mean of an oscillation, about which the iterates jump.
    follows_mean: ClassVar[bool] = False

    optimizer: eqx.AbstractVar[Optimizer]

    @abc.abstractmethod
    def initial_state(self, loss: Loss, params: Params, start: StartLike | None = None) -> State:
        """The state when the gradient at `params` has been consumed: a pytree of arrays, of the flow's choice.

        It is that at n = 0, or at the iteration of `start`.
        """

    @abc.abstractmethod
    def vector_field(self, time: Scalar, state: State, loss: Loss) -> State:
        """The derivative of the state per iteration, at the time n."""

    @abc.abstractmethod
    def params(self, state: State) -> Params:
        """The parameters θ in a state."""

    @property
    def name(self) -> str:
        """What reports and legends call this flow."""
        return type(self).__name__

    @property
    def gradients_per_evaluation(self) -> int:
        """What an evaluation of the vector field costs, in gradients; a derivative of the gradient counts as 2."""
        return 1

    @property
    def transient_iterations(self) -> int:
        """The first iterations that a run leaves to the optimizer, if the gradient changes its sign in them.

        Above 0 for flows that are rough there, and closer to the iterates behind them.
        """
        return 0

    def coordinates(self, state: State) -> ChangeOfVariables:
        """The coordinates that implicit solvers follow in a run from this state; by default the state's own."""
        return ChangeOfVariables()

    @abc.abstractmethod
    def snapshot(self, time: Scalar, state: State, loss: Loss) -> Snapshot:
        """Everything that users look at, at the time n; evaluates the gradient."""

    def direction(self, time: Scalar, state: State, loss: Loss) -> Params:
        """The direction u at the time n."""
        return self.snapshot(time, state, loss).direction

    def term(self, loss: Loss) -> diffrax.ODETerm:
        """This flow as a diffrax term, to be solved from `initial_state` over time in iterations."""
        return diffrax.ODETerm(lambda time, state, args: self.vector_field(time, state, loss))
