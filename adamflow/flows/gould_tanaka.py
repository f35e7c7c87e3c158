"""The flows of Gould and Tanaka: orders 1 and 2, with their rate or the exact one."""

from typing import Literal

import equinox as eqx
import jax

from adamflow.flows import averages
from adamflow.flows.averages import AbstractAveragesFlow, FlowState
from adamflow.flows.flow import Start, StartLike
from adamflow.losses import as_scalar
from adamflow.optimizers import Optimizer, check_optimizer
from adamflow.optimizers.hyperparameters import choice_called, count_called
from adamflow.types import Filters, Loss, Params, Scalar

#: What a flow with these rates of its filters is called.
_RATE_NAMES = {"gould_tanaka": "rates of [GT]", "exact": "exact rate"}


class GouldTanakaFlow(AbstractAveragesFlow):
    """The continuous-time limit of an optimizer made of averages [GT], in units of iterations n = t/η.

    A filter with decay α and input f(x) follows dx̄/dn = a (f(x) − x̄), with the rate a = (1−α)/α of [GT] or
    the *exact rate* a = −ln α, whose impulse response equals αⁿ at whole n. With u read from the bias-corrected
    filters at n, each stage driven by the direction of the one before,

        order 1:  dθ/dn = −η (λθ + u)
        order 2:  dθ/dn + ½ d²θ/dn² = −η (λθ + u),   dθ/dn = −η (λθ + u) at n = 0

    which is λθ + θ' (+ (η/2) θ'') = −u in the time t = ηn of [GT]. At n = 0 the first gradient has been consumed,
    x̄(0) = (1−α) f(x(0)), and bias correction divides by 1 − αⁿ⁺¹, so that x̄(n) stands beside x̄ₙ. From n = 0 both
    orders follow the iterates to O(η): with the paper's rate filters forget their start too fast, with the exact one
    they lag behind their input by half an iteration less than the iterates' do. Once filters have settled
    (`start=` of `af.solve`), order 2 with the paper's rate is of order 2.

    Args:
        optimizer: a record whose memory consists of averages (Adam, AdamW, RMSprop, sign descent, k-Adam, and most of
            the family in docs/family.md), or of what says how it moves (AMSGrad's maximum). Differences of gradients,
            as Adan averages them, and the changes of a batch's gradient of VRAdam are both H θ' here, where there is
            no noise, at the cost of a Hessian-vector product.
        order: 1 or 2.
        rate: "gould_tanaka" or "exact".

    Raises:
        ValueError: if order or rate is none of these.
        TypeError: if a stage keeps memory that has no limit, or a later stage asks for differences of its input.

    References:
        [GT] R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization,
        arXiv:2411.05746 (2024). The exact rate is this project's own.

    Example:
        >>> import adamflow as af
        >>> flow = af.GouldTanakaFlow(af.adam(1e-3), order=2, rate="exact")
        >>> problem = af.problems.chain(dimension=10)
        >>> bool(af.solve(flow, problem.loss, problem.params, steps=100).outcome.successful)
        True
    """

    optimizer: Optimizer
    order: Literal[1, 2] = eqx.field(static=True, converter=count_called("order"), default=1)
    rate: Literal["gould_tanaka", "exact"] = eqx.field(
        static=True, converter=choice_called("rate", ("gould_tanaka", "exact")), default="gould_tanaka"
    )

    def __check_init__(self):
        check_optimizer("GouldTanakaFlow", self.optimizer)
        if self.order > 2:
            raise ValueError(f"order must be 1 or 2 (the flows of [GT]), got {self.order!r}")
        averages.check_averages(self.optimizer, "GouldTanakaFlow", averages_alone=False)

    @property
    def name(self) -> str:
        return f"flow of order {self.order}, {_RATE_NAMES[self.rate]}"

    def initial_state(self, loss: Loss, params: Params, start: StartLike | None = None) -> FlowState:
        state, direction = averages.initial_state(self.optimizer, loss, params, start)
        first = 0 if start is None else Start(*start).iteration
        velocity = self.optimizer.at(first).increment(params, direction) if self.order == 2 else None
        return FlowState(params, velocity, state.filters, state.memory)

    @property
    def gradients_per_evaluation(self) -> int:
        return 3 if self.optimizer.stages[0].uses_change else 1

    def vector_field(self, time: Scalar, state: FlowState, loss: Loss) -> FlowState:
        optimizer, params = self.optimizer, state.params
        gradient = jax.grad(as_scalar(loss))(params)
        filters = averages.clipped(optimizer, state.filters)
        direction, targets = optimizer.direction_and_targets(gradient, filters, time, params, memory=state.memory)
        step = optimizer.at(time).increment(params, direction)
        velocity = step if self.order == 1 else state.velocity
        if optimizer.stages[0].uses_change:
            difference = self._difference(loss, params, velocity)
            _, targets = optimizer.direction_and_targets(
                gradient, filters, time, params, memory=state.memory, difference=difference
            )
        memory = state.memory
        if memory:
            memory = optimizer.memory_rates(gradient, filters, time, params, memory=memory)
        rates = self._relax(time, state.filters, targets)
        if self.order == 1:
            return FlowState(step, None, rates, memory)
        acceleration = jax.tree.map(lambda s, p: 2 * (s - p), step, state.velocity)
        return FlowState(state.velocity, acceleration, rates, memory)

    def _difference(self, loss: Loss, params: Params, velocity: Params) -> Params:
        """How fast what the first stage gets changes along the flow: D g = H θ', from a Hessian-vector product."""

        def first_input(params: Params) -> Params:
            return self.optimizer.first_input(jax.grad(loss)(params), params)

        return jax.jvp(first_input, (params,), (velocity,))[1]

    def _relax(self, time: Scalar, filters: Filters, targets: Filters) -> Filters:
        """a (f(x) − x̄) for every filter of every stage."""
        changes = []
        for stage, values, wanted in zip(self.optimizer.stages, filters, targets, strict=True):
            change = {}
            for filter in stage.filters():
                rate = averages.filter_rate(filter.decay_at(time + 1), self.rate == "gould_tanaka")
                change[filter.name] = averages.relax(rate, wanted[filter.name], values[filter.name])
            changes.append(change)
        return tuple(changes)
