"""The flows of Gould and Tanaka: orders 1 and 2, with their rate or the exact one."""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from adamflow.checks import check_choice, is_concrete
from adamflow.flows.flow import AbstractFlow, Coordinates, Snapshot
from adamflow.optimizers import Optimizer
from adamflow.types import Filters, Loss, Params, Scalar

#: Where ln v starts for a v of 0: far below what an iteration adds to it, (ηH)² of the largest.
_SHARE_OF_LARGEST = 1e-12


class PaperState(eqx.Module):
    """The state of a `PaperFlow`.

    Attributes:
        params: θ.
        velocity: dθ/dn, or `None` at order 1.
        filters: by stage, a dict from the filter's name to a pytree like the parameters (before bias correction).
    """

    params: Params
    velocity: Params | None
    filters: Filters


class PaperFlow(AbstractFlow):
    """The continuous-time limit of an optimizer made of averages [GT], in units of iterations n = t/η.

    A filter with decay α and input f(x) follows dx̄/dn = a (f(x) − x̄), with the *paper rate* a = (1−α)/α of [GT] or
    the *exact rate* a = −ln α, whose impulse response equals αⁿ at whole n. With u read from the bias-corrected
    filters at n, each stage driven by the direction of the one before,

        order 1:  dθ/dn = −η (λθ + u)
        order 2:  dθ/dn + ½ d²θ/dn² = −η (λθ + u),   dθ/dn = −η (λθ + u) at n = 0

    which is λθ + θ' (+ (η/2) θ'') = −u in the time t = ηn of [GT]. At n = 0 the first gradient has been consumed,
    x̄(0) = (1−α) f(x(0)), and bias correction divides by 1 − αⁿ⁺¹, so that x̄(n) stands beside x̄ₙ. Both orders follow
    the iterates to O(η): order 2 models θ'' but not the filters.

    Args:
        optimizer: a record whose memory consists of averages alone (Adam, AdamW, RMSprop, sign descent, k-Adam).
        order: 1 or 2.
        rate: "paper" or "exact".

    Raises:
        ValueError: if order or rate is none of these.
        TypeError: if a stage keeps memory that is no average, or asks for differences of its input.

    References:
        [GT] R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization,
        arXiv:2411.05746 (2024). The exact rate is this project's own.

    Example:
        >>> import adamflow as af
        >>> flow = af.PaperFlow(af.adam(1e-3), order=2, rate="exact")
        >>> problem = af.problems.chain(dimension=10)
        >>> bool(af.solve(flow, problem.loss, problem.params, steps=100).outcome.successful)
        True
    """

    optimizer: Optimizer
    order: Literal[1, 2] = eqx.field(static=True, default=1)
    rate: Literal["paper", "exact"] = eqx.field(static=True, default="paper")

    def __check_init__(self):
        if self.order not in (1, 2):
            raise ValueError(f"order must be 1 or 2 (the flows of [GT]), got {self.order!r}")
        check_choice("rate", self.rate, ("paper", "exact"))
        for stage in self.optimizer.stages:
            if any(_is_zero(filter.decay) for filter in stage.filters()):
                raise ValueError(
                    f"a filter of {type(stage).__name__} has decay 0, so it forgets at once and has no rate; give the "
                    "constructor the plain number 0 (gamma=0.0), which leaves that filter out"
                )
            if not stage.only_averages:
                raise TypeError(
                    f"PaperFlow needs stages made of moving averages, but {type(stage).__name__} keeps other memory or "
                    "differences of its input, for which [GT] has no flow; run it with af.iterate instead"
                )

    @property
    def name(self) -> str:
        return f"flow of order {self.order}, {self.rate} rate"

    def initial_state(self, loss: Loss, params: Params) -> PaperState:
        gradient = jax.grad(loss)(params)
        direction, state = self.optimizer.update(gradient, self.optimizer.initial_state(params), 0)
        velocity = self.optimizer.change(params, direction) if self.order == 2 else None
        return PaperState(params, velocity, state.filters)

    def vector_field(self, time: Scalar, state: PaperState, loss: Loss) -> PaperState:
        gradient = jax.grad(loss)(state.params)
        direction, targets = self.optimizer.read(gradient, self._clipped(state.filters), time)
        step = self.optimizer.change(state.params, direction)
        filters = self._relax(time, state.filters, targets)
        if self.order == 1:
            return PaperState(step, None, filters)
        acceleration = jax.tree.map(lambda s, p: 2 * (s - p), step, state.velocity)
        return PaperState(state.velocity, acceleration, filters)

    def params(self, state: PaperState) -> Params:
        return state.params

    def coordinates(self, state: PaperState) -> Coordinates:
        """ln v for a nonnegative filter v, and others divided by their largest entry at the start.

        So v stays positive between the steps, and a factor in front of the loss changes nothing. A v of exactly 0, in
        coordinates whose first gradient vanishes, starts at a share of the largest one.
        """
        scales = self._map_filters(lambda values, nonnegative: _largest(values), state.filters)

        def encode(values: Params, nonnegative: bool, scale: jax.Array) -> Params:
            start = scale * _SHARE_OF_LARGEST
            if nonnegative:
                return jax.tree.map(lambda v: jnp.log(jnp.where(v > 0, v, start)).astype(v.dtype), values)
            return jax.tree.map(lambda m: (m / scale).astype(m.dtype), values)

        def decode(values: Params, nonnegative: bool, scale: jax.Array) -> Params:
            if nonnegative:
                return jax.tree.map(lambda log: jnp.exp(jnp.maximum(log, jnp.log(jnp.finfo(log.dtype).tiny))), values)
            return jax.tree.map(lambda m: (m * scale).astype(m.dtype), values)

        def convert(function: Callable) -> Callable[[PaperState], PaperState]:
            return lambda state: PaperState(
                state.params, state.velocity, self._map_filters(function, state.filters, scales)
            )

        return Coordinates(convert(encode), convert(decode))

    def snapshot(self, time: Scalar, state: PaperState, loss: Loss) -> Snapshot:
        value, gradient = jax.value_and_grad(loss)(state.params)
        direction, _ = self.optimizer.read(gradient, state.filters, time)
        return Snapshot(time, state.params, gradient, direction, state.filters, value)

    def _relax(self, time: Scalar, filters: Filters, targets: Filters) -> Filters:
        """a (f(x) − x̄) for every filter of every stage."""
        changes = []
        for stage, values, wanted in zip(self.optimizer.stages, filters, targets, strict=True):
            change = {}
            for filter in stage.filters():
                decay = filter.decay_at(time + 1)
                rate = (1 - decay) / decay if self.rate == "paper" else -jnp.log(decay)
                change[filter.name] = jax.tree.map(
                    lambda target, value, rate=rate: (rate * (target - value)).astype(value.dtype),
                    wanted[filter.name],
                    values[filter.name],
                )
            changes.append(change)
        return tuple(changes)

    def _clipped(self, filters: Filters) -> Filters:
        """The filters without the negative values of nonnegative ones that the stages of an explicit step may have."""

        def clip(values: Params, nonnegative: bool) -> Params:
            return jax.tree.map(lambda v: jnp.maximum(v, 0.0), values) if nonnegative else values

        return self._map_filters(clip, filters)

    def _map_filters(self, function: Callable[..., Any], *filters: Any) -> Any:
        """Apply `function(values, nonnegative, ...)` to every filter of every stage."""
        return tuple(
            {
                filter.name: function(parts[0][filter.name], filter.nonnegative, *(p[filter.name] for p in parts[1:]))
                for filter in stage.filters()
            }
            for stage, *parts in zip(self.optimizer.stages, *filters, strict=True)
        )


def _largest(values: Params) -> jax.Array:
    """The largest magnitude, or 1 if all are 0."""
    largest = jnp.stack([jnp.max(jnp.abs(leaf), initial=0.0) for leaf in jax.tree.leaves(values)]).max()
    return jnp.where(largest > 0, largest, 1.0)


def _is_zero(decay: Any) -> bool:
    return not callable(decay) and is_concrete(decay) and bool(np.any(np.asarray(decay) == 0))
