"""Past the edge of stability: the flow of the mean of an oscillation of period 2, and of its amplitude."""

import dataclasses
import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from adamflow.checks import check_range
from adamflow.flows import tree_math as trees
from adamflow.flows.flow import AbstractFlow, ChangeOfVariables, Snapshot, StartLike, start_of
from adamflow.flows.instability_warning import warn_of_rotation
from adamflow.flows.interpolating import InterpolatingFlow, InterpolatingState, weights
from adamflow.flows.norms import tree_norm
from adamflow.losses import as_scalar
from adamflow.optimizers import Optimizer, check_optimizer
from adamflow.optimizers.hyperparameters import count_called, number_or_none
from adamflow.optimizers.record import Record
from adamflow.types import Leaf, Loss, Params, Scalar

#: K, of the difference of the first iterates in which an oscillation is looked for.
_ITERATES_OF_START = 8
#: Of the parameters, the most that the source adds per iteration and order to the shape: above what δ decays by.
_LARGEST_SHARE = 3.0
#: The fastest that the logarithm of the size of δ changes, per iteration.
_FASTEST = 2.0


class TwoBranchState(Record):
    """The two slow parts of an oscillation xₙ = x̄ₙ + (−1)ⁿ δₙ of the whole state of the discrete step.

    Attributes:
        mean: x̄: parameters, filters, memory, last inputs, weight_sums.
        scaled_oscillation: δ without its size, of the same structure; weight_sums do not oscillate, theirs are 0.
        log_scale: a in δ = eᵃ shape. So solvers hold errors small beside δ itself, however small that is.
        initial_norm: ‖θ‖ at the start, to which the norm of the shape's parameters tends.
    """

    mean: InterpolatingState
    scaled_oscillation: InterpolatingState
    log_scale: jax.Array
    initial_norm: jax.Array

    @property
    def oscillation(self) -> InterpolatingState:
        """δ."""
        return trees.scaled(self.scaled_oscillation, jnp.exp(self.log_scale))


class _Branches(eqx.Module):
    mean: InterpolatingState
    oscillation: InterpolatingState

    @property
    def both(self) -> tuple[InterpolatingState, InterpolatingState]:
        return trees.both(self.mean, self.oscillation)


class TwoBranchSnapshot(Snapshot):
    """What `observe=` functions get of an edge flow: a `Snapshot` of the mean path, and the oscillation about it.

    `params`, `gradient` and `loss` are those at the mean θ̄; `direction`, which moves θ̄, and `filters` are means of
    both branches. What a function does not use is not computed.

    Attributes:
        oscillation: δ of the parameters, a pytree like them; its sign has no meaning.
        mean_loss: ½ (L(θ̄ + δ) + L(θ̄ − δ)), which stands beside the mean loss of two iterates in a row.
    """

    oscillation: Params
    mean_loss: Leaf

    @property
    def amplitude(self) -> jax.Array:
        """‖δ‖ over all parameters, in the Euclidean norm."""
        return tree_norm(self.oscillation)

    @property
    def branches(self) -> tuple[Params, Params]:
        """θ̄ + δ and θ̄ − δ, between which the iterates jump."""
        return trees.both(self.params, self.oscillation)


class TwoBranchFlow(AbstractFlow):
    r"""The flow past the edge of stability, where the iterates oscillate about a mean; it exists for every record.

    With x = (θ, filters, memory, last inputs) before the gradient at θ is consumed, F the discrete step, and
    xₙ = x̄ₙ + (−1)ⁿ δₙ, exactly

        x̄ₙ₊₁ = ½ (F(x̄ₙ + δₙ) + F(x̄ₙ − δₙ)),     δₙ₊₁ = −½ (F(x̄ₙ + δₙ) − F(x̄ₙ − δₙ)).

    Both parts move slowly where x does not: a multiplier −1 + e of the step is one of 1 − e for δ. So the doubled step
    has a `InterpolatingFlow` of order p, x̄' = ln(1 + Δ) x̄ and likewise δ, exact along a δ that grows:

        δ' = ln(ρ) δ + ln(1 + Δ) (ρ⁻ⁿ δₙ),     ρ = max(1, ⟨δ₁, δ₀⟩/⟨δ₀, δ₀⟩) over the parameters,

    since the series alone turns the growth at a multiplier of 3 or more, as overshoots have, to decay. At ρ = 1 that is
    the series. An evaluation costs 2p gradients, and no derivatives of them. `params` is the mean path θ̄.

    *Source.* δ = 0 stays 0. In a discrete run what is left of the start, and rounding, seed the oscillation; a seed too
    large by a factor c brings it forward by ln c/growth iterations, and that error stays. So by default δ_θ starts at
    the eighth difference of the first iterates (9 gradients, once), and each coordinate gets θ̄ per iteration times the
    unit roundoff, 1.1e-16 or 6e-8, with a fixed random sign. A number takes the place of both (for iterates in float32
    beside a flow in float64: 6e-8). With seed_rate = 0 this is `InterpolatingFlow`.

    *Signs.* A nonnegative average has vₙ₊₁ ≥ α vₙ. On both branches in turn that means |δ_v| ≤ (1−α)/(1+α) v̄, a bound
    which is imposed where solvers try states beyond it; so both branches stay positive.

    *Steps.* Take Euler's method with half an iteration, `solver=diffrax.Euler(), step_size=0.5`, on order 1: stable
    wherever the iterates are, 4 gradients per iteration, and half of the error of order 1 integrated exactly.

    *Where it fails:* period 4, chaos, noise of batches, and multipliers that leave through another point of the circle.
    Such a record is told when a flow of it is made, if its numbers are known, and a warning says so: past its edge the
    iterates turn, and this flow stays on the mean that they turn about. `af.analysis.first_instability` says where that
    is.

    Args:
        optimizer: any record that `InterpolatingFlow` takes.
        order: p, 1 or 2.
        seed_rate: of δ per iteration, as a share of the parameters, at least 0; `None` for what the
            start and rounding leave.

    Raises:
        ValueError: if order is neither 1 nor 2, or seed_rate is negative or not finite.
        TypeError: if a stage keeps memory that is not made of floats, such as a counter.

    Warns:
        UserWarning: if, as curvature rises, a pair of complex multipliers of the record's step leaves the unit circle
            before −1 is one.

    Source: derivation of this project; docs/two-branch-flow.md has it, and the relation to central flows.

    Example:
        >>> import adamflow as af, diffrax, jax.numpy as jnp
        >>> problem, optimizer = af.problems.chain(dimension=4), af.adam(1e-3)
        >>> flow, steps = af.TwoBranchFlow(optimizer), dict(solver=diffrax.Euler(), step_size=0.5)
        >>> run = af.solve(flow, problem.loss, problem.params, 40, observe=lambda s: s.amplitude, **steps)
        >>> bool(run.observed.max() < 1e-3)
        True
    """

    follows_mean: ClassVar[bool] = True

    optimizer: Optimizer
    order: int = eqx.field(static=True, converter=count_called("order"), default=1)
    seed_rate: jax.Array | None = eqx.field(converter=number_or_none("seed_rate"), default=None)

    def __check_init__(self):
        check_optimizer("TwoBranchFlow", self.optimizer)
        if self.order > 2:
            raise ValueError(f"order must be 1 or 2, got {self.order!r}; the edge flow has no higher ones")
        hint = "it is a share of the parameters per iteration, or None for their rounding"
        if self.seed_rate is not None:
            check_range("seed_rate", self.seed_rate, 0, float("inf"), high_open=True, hint=hint)
        _ = self._map
        warn_of_rotation(self.optimizer)

    @property
    def name(self) -> str:
        return f"edge flow of order {self.order}"

    @property
    def gradients_per_evaluation(self) -> int:
        return 2 * self.order

    @property
    def _map(self) -> InterpolatingFlow:
        return InterpolatingFlow(self.optimizer, order=self.order)

    def initial_state(self, loss: Loss, params: Params, start: StartLike | None = None) -> TwoBranchState:
        mean, source = self._map.initial_state(loss, params, start), self._source(params)
        seed = trees.scaled(trees.signed(params), source)
        if self.seed_rate is None:
            found = self._found(loss, params, start)
            seed = jax.tree.map(jnp.add, seed, found)
            if start is not None:
                mean = dataclasses.replace(mean, params=jax.tree.map(jnp.subtract, params, found))
        unit = trees.positive(tree_norm(params))
        log_scale = jnp.log(trees.positive(tree_norm(seed)) / unit)
        shape = jax.tree.map(jnp.zeros_like, mean)
        shape = dataclasses.replace(shape, params=jax.tree.map(lambda d: trees.cast(d * jnp.exp(-log_scale), d), seed))
        return TwoBranchState(mean, shape, log_scale, unit)

    def vector_field(self, time: Scalar, state: TwoBranchState, loss: Loss) -> TwoBranchState:
        def visit(state: _Branches, ahead: jax.Array) -> tuple[_Branches, _Branches]:
            change = self._change(time + ahead, state, loss)
            return jax.tree.map(jnp.add, state, change), change

        length = tree_norm(state.scaled_oscillation.params) / state.initial_norm
        length = jnp.where(length > 0, length, 1.0)
        size = jnp.exp(state.log_scale) * length
        # Branches closer than this would differ by rounding alone; what they show of a smaller δ is linear in it.
        wide = jnp.maximum(size, jnp.finfo(size.dtype).eps ** (1 / 3))
        branches = self._inside(time, _Branches(state.mean, trees.scaled(state.scaled_oscillation, wide / length)))
        _, changes = jax.lax.scan(visit, branches, jnp.arange(self.order))
        factors = jnp.asarray(weights(self.order))
        mean = jax.tree.map(lambda c: jnp.tensordot(factors.astype(c.dtype), c, 1), changes.mean)
        rate = trees.scaled(self._rate(branches.oscillation, changes.oscillation), length / wide)
        # Bounded, since δ may have decayed far below its source, where the quotient is stiff without limit.
        share = jnp.minimum(self._source(state.mean.params) / size, self.order * _LARGEST_SHARE) * length
        seeded = jax.tree.map(lambda r, leaf: r + share * leaf, rate.params, trees.signed(state.mean.params))
        rate = dataclasses.replace(rate, params=jax.tree.map(trees.cast, seeded, rate.params))
        # The size takes what changes the norm of the shape, and in time what else has changed it. Bounded: what the
        # size does not take stays in the shape, while steps would be small without limit where a norm passes 0.
        growth = trees.share(rate.params, state.scaled_oscillation.params) + jnp.log(length)
        growth = jnp.clip(growth, -_FASTEST, _FASTEST)
        shape = jax.tree.map(lambda r, d: (r - growth * d).astype(d.dtype), rate, state.scaled_oscillation)
        mean = self._map.limited(time, state.mean, mean)
        return TwoBranchState(mean, shape, trees.cast(growth, state.log_scale), jnp.zeros_like(state.initial_norm))

    def params(self, state: TwoBranchState) -> Params:
        return state.mean.params

    def coordinates(self, state: TwoBranchState) -> ChangeOfVariables:
        encode, decode = self._map.coordinates(state.mean)
        return ChangeOfVariables(
            lambda state: TwoBranchState(
                encode(state.mean), encode(state.scaled_oscillation), state.log_scale, state.initial_norm
            ),
            lambda state: TwoBranchState(
                decode(state.mean), decode(state.scaled_oscillation), state.log_scale, state.initial_norm
            ),
        )

    def snapshot(self, time: Scalar, state: TwoBranchState, loss: Loss) -> TwoBranchSnapshot:
        branches = self._inside(time, _Branches(state.mean, state.oscillation))
        plus, minus = (self._map.snapshot(time, branch, loss) for branch in branches.both)
        direction, filters, memory, mean_loss = jax.tree.map(
            lambda a, b: (a + b) / 2,
            (plus.direction, plus.filters, plus.memory, plus.loss),
            (minus.direction, minus.filters, minus.memory, minus.loss),
        )
        params, oscillation = state.mean.params, branches.oscillation.params
        value, gradient = jax.value_and_grad(as_scalar(loss))(params)
        return TwoBranchSnapshot(
            time, params, gradient, direction, filters, value, oscillation, mean_loss, memory=memory
        )

    def _source(self, params: Params) -> jax.Array:
        dtype = jnp.result_type(*jax.tree.leaves(params))
        return jnp.asarray(jnp.finfo(dtype).eps / 2 if self.seed_rate is None else self.seed_rate, dtype)

    def _found(self, loss: Loss, params: Params, start: StartLike | None) -> Params:
        """δ of the parameters in the first K iterates, Σ (−1)ʲ C(K, j) θⱼ/2ᴷ: what is slow has no part in it."""
        first, memory = start_of(start, self.optimizer, params)

        def visit(carry: tuple, term: tuple) -> tuple[tuple, None]:
            state, total = carry
            ahead, weight = term
            total = jax.tree.map(lambda t, leaf: (t + weight * leaf).astype(t.dtype), total, state[0])
            return (self.optimizer.step(loss, state, first + ahead), total), None

        count = _ITERATES_OF_START
        factors = np.array([(-1) ** j * math.comb(count, j) / 2**count for j in range(count + 1)])
        carry = ((params, memory), jax.tree.map(jnp.zeros_like, params))
        (_, total), _ = jax.lax.scan(visit, carry, (jnp.arange(count + 1), jnp.asarray(factors)))
        return total

    def _change(self, time: Scalar, state: _Branches, loss: Loss) -> _Branches:
        """The next x̄ and δ less these."""
        # A loop, so that both branches run the same program: rounded alike, a δ of 0 stays 0.
        pair = jax.tree.map(lambda plus, minus: jnp.stack([plus, minus]), *state.both)
        changes = jax.lax.map(lambda branch: self._map.increment(time, branch, loss), pair)
        mean = jax.tree.map(lambda c: (c[0] + c[1]) / 2, changes)
        return _Branches(mean, jax.tree.map(lambda d, c: -2 * d - (c[0] - c[1]) / 2, state.oscillation, changes))

    def _rate(self, now: InterpolatingState, changes: InterpolatingState) -> InterpolatingState:
        """δ' from δ and its next p changes (a leading axis): with zᵢ = δᵢ/ρⁱ, zᵢ₊₁ − zᵢ = (δᵢ₊₁ − ρ δᵢ)/ρⁱ⁺¹."""
        first = jax.tree.map(lambda c: c[0], changes.params)
        growth = jnp.maximum(1 + trees.share(first, now.params), 1.0)

        def along(d: jax.Array, c: jax.Array) -> jax.Array:
            rate, ahead = jnp.log(growth) * d, d
            for i, weight in enumerate(weights(self.order)):
                rate = rate + weight * (c[i] - (growth - 1) * ahead) / growth ** (i + 1)
                ahead = ahead + c[i]
            return trees.cast(rate, d)

        return jax.tree.map(along, now, changes)

    def _inside(self, time: Scalar, state: _Branches) -> _Branches:
        """The state with nonnegative filters that are so on both branches."""
        mean, clipped = self._map.clipped(state.mean), []

        def clip(values: Params, means: Params, share: Scalar) -> Params:
            return jax.tree.map(lambda d, v: trees.cast(jnp.clip(d, -share * v, share * v), d), values, means)

        for stage, values, means in zip(self.optimizer.stages, state.oscillation.filters, mean.filters, strict=True):
            decays = {filter.name: filter.decay_at(time) for filter in stage.filters() if filter.nonnegative}
            held = {name: clip(values[name], means[name], (1 - a) / (1 + a)) for name, a in decays.items()}
            clipped.append(values | held)
        optimizer_state = dataclasses.replace(state.oscillation.optimizer_state, filters=tuple(clipped))
        return _Branches(mean, dataclasses.replace(state.oscillation, optimizer_state=optimizer_state))
