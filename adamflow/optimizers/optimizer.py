"""The record of an optimizer, and the discrete step that it declares."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamflow.checks import check_count, check_precision, check_range, describe, is_concrete
from adamflow.losses import as_scalar
from adamflow.optimizers.hyperparameters import (
    beside,
    flag_called,
    is_zero,
    number,
    number_called,
    number_or_none,
)
from adamflow.optimizers.reading import divides_by
from adamflow.optimizers.record import Record
from adamflow.optimizers.settings import (
    ByLeaf,
    check_setting,
    dtype_of,
    is_zero_setting,
    setting_at,
    setting_called,
    spread,
    varies,
)
from adamflow.optimizers.stage import AbstractStage, Filter, StageInput
from adamflow.types import Filters, Leaf, Loss, Numbers, Params, Scalar


def check_optimizer(where: str, value: object) -> None:
    """Raise `TypeError` unless a value is an `Optimizer`.

    Args:
        where: the function or class that needs one.
        value: what it got.
    """
    if isinstance(value, Optimizer):
        return
    if isinstance(getattr(value, "optimizer", None), Optimizer):
        hint = "this is a flow: give its attribute `optimizer`"
    elif callable(value) and not isinstance(value, type):
        hint = "call the constructor: af.adam(1e-3), not af.adam"
    else:
        hint = "optimizers of other packages are declared anew, see AbstractStage"
    raise TypeError(f"{where} needs an optimizer, such as af.adam(1e-3), got {describe(value)}; {hint}")


def overrides(instance: object, base: type, names: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The names of methods and properties of a base class that the class of an instance defines anew.

    What computes the steps of an optimizer, or the vector field of a flow, by equations of its own asks this, and
    refuses an instance that changes what those equations assume.

    Args:
        instance: an object whose class derives from `base`.
        base: a class such as `Optimizer`.
        names: those to look at; by default all.
    """
    own = [name for name, value in vars(base).items() if callable(value) or isinstance(value, property)]
    own = [name for name in own if not names or name in names]
    return tuple(
        name for name in own if not _is_private(name) and getattr(type(instance), name) is not getattr(base, name)
    )


def _is_private(name: str) -> bool:
    """Whether a name is one that classes define for Python or equinox."""
    return name.startswith("__")


def check_standard(where: str, optimizer: object, hint: str) -> None:
    """Raise `TypeError` unless the step of an optimizer is the one that `Optimizer` declares.

    Args:
        where: what has equations for that step alone.
        optimizer: an `Optimizer`, or an object of a class that derives from it.
        hint: what to do instead.
    """
    check_optimizer(where, optimizer)
    changed = overrides(optimizer, Optimizer)
    if changed:
        raise TypeError(
            f"{where} has equations for the step of Optimizer, but {type(optimizer).__name__} overrides "
            f"{', '.join(changed)}, which they would ignore; {hint}"
        )


def check_constant(where: str, optimizer: "Optimizer", hint: str, *, takes_clipping: bool = False) -> None:
    """Raise `ValueError` unless the learning rate and weight decay of an optimizer are numbers, and nothing is clipped.

    Args:
        where: what has equations for such an optimizer alone.
        optimizer: the optimizer.
        hint: what to do instead.
        takes_clipping: whether clipped gradients are no obstacle.
    """
    reasons = optimizer.recipe(clipping=not takes_clipping)
    if reasons:
        raise ValueError(f"{where} has equations for numbers alone, but in {optimizer.name!r} {reasons[0]}; {hint}")


def _as_stages(value: Sequence[AbstractStage]) -> tuple[AbstractStage, ...]:
    """The stages as a tuple, or a `ValueError`."""
    if isinstance(value, tuple | list) and all(isinstance(stage, AbstractStage) for stage in value):
        return tuple(value)
    raise ValueError(
        f"stages must be a tuple of stages, such as (AdamStage(beta=0.999, gamma=0.9),), got {describe(value)}; a "
        "stage is an object whose class derives from AbstractStage"
    )


def _l2(value: Numbers | None) -> jax.Array | None:
    """The converter of `l2`: no penalty where it is the number 0."""
    return None if value is None or is_zero("l2", value) else number("l2", value)


class OptimizerState(Record):
    """What an optimizer remembers: for each stage its filters, other memory, and last input.

    Attributes:
        filters: by stage, a dict from the filter's name to a pytree like the parameters (before bias correction).
        memory: by stage, a dict of pytrees; empty for optimizers made of averages.
        previous_inputs: by stage, the input of the last iteration, or `None` where the stage does not ask for
            differences.
        previous_params: θₙ₋₁ (θ₀ before the first iteration), where the first stage asks for two gradients of one
            batch; otherwise `None`.
    """

    filters: Filters
    memory: Filters
    previous_inputs: tuple[Params | None, ...]
    previous_params: Params | None = None


@jax.custom_jvp
def _quotient(numerator: Leaf, denominator: Leaf) -> Leaf:
    """m/d, whose derivative (ṁ − (m/d) ḋ)/d needs no d²: in float32 its inverse is infinite below d = 1e-19."""
    return numerator / denominator


@_quotient.defjvp
def _quotient_jvp(primals: tuple[Leaf, Leaf], tangents: tuple[Leaf, Leaf]) -> tuple[Leaf, Leaf]:
    value = _quotient(*primals)
    return value, _quotient(tangents[0] - value * tangents[1], primals[1])


def state_shapes(optimizer: "Optimizer", params: Params) -> OptimizerState:
    """`optimizer.initial_state(params)` with shapes and types in the place of arrays; made once for all numbers.

    Args:
        optimizer: the optimizer.
        params: θ.
    """
    leaves, structure = jax.tree.flatten((optimizer, params))
    kinds = tuple((jnp.shape(leaf), jnp.result_type(leaf)) if eqx.is_array_like(leaf) else leaf for leaf in leaves)
    return _state_shapes(structure, kinds)


@functools.lru_cache(maxsize=32)
def _state_shapes(structure: Any, kinds: tuple[Any, ...]) -> OptimizerState:
    leaves = [jax.ShapeDtypeStruct(*kind) if isinstance(kind, tuple) else kind for kind in kinds]

    def initial_state(leaves: list[Any]) -> OptimizerState:
        optimizer, params = structure.unflatten(leaves)
        return optimizer.initial_state(params)

    return eqx.filter_eval_shape(initial_state, leaves)


class OptaxState(NamedTuple):
    """The state of `Optimizer.to_optax()`: the number of gradients consumed, and the optimizer's state."""

    iteration: jax.typing.ArrayLike
    inner: OptimizerState


@runtime_checkable
class SnapshotLike(Protocol):
    """What `Optimizer.evaluation_params` reads of a look at a run, such as an `af.Snapshot`."""

    @property
    def iteration(self) -> Scalar: ...

    @property
    def params(self) -> Params: ...

    @property
    def filters(self) -> Filters: ...

    @property
    def memory(self) -> Filters | None: ...


class Optimizer(Record):
    """An optimizer, declared once: θₙ₊₁ = θₙ − η (λ θₙ + uₙ), u the direction of the last of a chain of stages.

    Stage i gets the direction uⁱ⁻¹ₙ of the stage before it, the first one the gradient. The record is a pytree whose
    leaves are its numbers: they can be traced, batched with `jax.vmap`, and differentiated. Records are equal, and
    hash, by value, so that one with known numbers can be a static argument or a key. Usually made by `adam`, `adamw`,
    `rmsprop`, `signsgd` or `kadam`.

    A subclass that overrides methods, such as `increment` for a trust ratio, is honoured by `iterate`, `to_optax`, the
    analysis of the step, `GouldTanakaFlow`, `ModifiedFlow`, `InterpolatingFlow` and `TwoBranchFlow`. What has equations
    of its own for the step refuses it: `CentralFlow`, `MemorylessFlow` and `solver="collocation"`, in the place of
    which "auto" takes a solver of diffrax.

    Attributes:
        learning_rate: η > 0; or a function of the iteration, such as a schedule of optax; or a value for each leaf of
            the parameters, as `by_leaf` makes them. `at(iteration)` is the optimizer with the numbers of an iteration.
        stages: the chain of stages, at least one.
        weight_decay: λ ≥ 0, decoupled, of the same kinds.
        l2: λ₂ > 0 of a penalty λ₂‖θ‖²/2 whose gradient λ₂θ is added to gₙ before the stages; `None` for none. It passes
            through the filters, so that it is another system than `weight_decay`, unless u = g.
        epsilon: ε ≥ 0, the stabilizer of every ratio: m/(√v + ε). At ε = 0 a ratio with v = 0 is 0.
        epsilon_inside_root: whether the ratio is m/√(v + ε) instead.
        bias_correction: whether filters are divided by the same average of the constant 1.
        name: what reports and legends call it.
        clip_norm: the largest norm ‖g‖ over all parameters: a longer gradient is scaled to it, before the stages and
            before `l2`; `None` for no clipping. See `with_clipping`.
        clip_value: the largest entry of |g|: others are cut to it, before `clip_norm`; `None` for no clipping.

    Raises:
        ValueError: if a number is out of its range, or there is no stage; if a stage needs a constant learning rate.
    """

    # A setting is stored as an array, `Schedule` or `ByLeaf`. Most who read one know which, and would have to say so
    # before each product under a union.
    learning_rate: Any = eqx.field(converter=setting_called("learning_rate"))
    stages: tuple[AbstractStage, ...] = eqx.field(converter=_as_stages)
    weight_decay: Any = eqx.field(converter=setting_called("weight_decay"), default=0.0)
    epsilon: jax.Array = eqx.field(converter=number_called("epsilon"), default=0.0)
    epsilon_inside_root: bool = eqx.field(static=True, converter=flag_called("epsilon_inside_root"), default=False)
    bias_correction: bool = eqx.field(static=True, converter=flag_called("bias_correction"), default=True)
    name: str = eqx.field(static=True, default="optimizer")
    l2: jax.Array | None = eqx.field(converter=_l2, default=None)
    clip_norm: jax.Array | None = eqx.field(converter=number_or_none("clip_norm"), default=None)
    clip_value: jax.Array | None = eqx.field(converter=number_or_none("clip_value"), default=None)

    def __check_init__(self):
        if not self.stages:
            raise ValueError("an optimizer needs at least one stage, got none; for plain sign descent use af.signsgd")
        for index, stage in enumerate(self.stages[1:], 1):
            if stage.uses_gradient_change:
                raise ValueError(
                    f"stages[{index}], {type(stage).__name__}, uses two gradients of one batch, which the first stage "
                    "alone gets: what others get was made of one; put it first"
                )
        hint = "the step is θ − η(λθ + u)"
        check_setting("learning_rate", self.learning_rate, low_open=True, hint=hint)
        check_setting("weight_decay", self.weight_decay, low_open=False, hint=hint)
        for name in ("clip_norm", "clip_value"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 0, low_open=True, hint="give None for no clipping")
        if varies(self.learning_rate):
            for stage in self.stages:
                if stage.needs_constant_rate:
                    raise ValueError(f"learning_rate must not vary in {self.name!r}: {stage.needs_constant_rate}")
        check_range("epsilon", self.epsilon, 0, float("inf"), high_open=True)
        if self.l2 is not None:
            check_range(
                "l2", self.l2, 0, float("inf"), high_open=True, hint="what is added to the gradient is l2 times θ"
            )
        if not isinstance(self.name, str):
            raise ValueError(f"name must be a string, got {describe(self.name)}")

    def at(self, iteration: Numbers) -> "Optimizer":
        """This optimizer with the learning rate and weight decay of an iteration, as numbers.

        What knows no time, such as the edge of stability, is that of one iteration:
        `critical_curvature(optimizer.at(n))`. An optimizer whose numbers do not vary is returned as it is.

        Args:
            iteration: n, a real number in a flow; or an array, for a batch of optimizers.

        Raises:
            ValueError: if a schedule returns a negative number, or none that is finite.

        Example:
            >>> import adamflow as af, optax
            >>> optimizer = af.adamw(optax.linear_schedule(0.0, 0.1, 10))
            >>> print(optimizer.at(5).learning_rate.round(6))
            0.05
        """
        if not (varies(self.learning_rate) or varies(self.weight_decay)):
            return self
        names = ("learning_rate", "weight_decay")
        found = [setting_at(name, getattr(self, name), iteration) for name in names]
        # Not by `dataclasses.replace`, which checks again: the rate of an iteration may be 0.
        return eqx.tree_at(lambda optimizer: [getattr(optimizer, name) for name in names], self, found)

    def learning_rates(self, params: Params) -> Params:
        """η of each leaf of the parameters; a `ValueError` where it varies with the iteration: `at` comes first."""
        return spread("learning_rate", self.learning_rate, params)

    def weight_decays(self, params: Params) -> Params:
        """λ of each leaf of the parameters; a `ValueError` where it varies with the iteration: `at` comes first."""
        return spread("weight_decay", self.weight_decay, params)

    def uniform(self, params: Params) -> "Optimizer":
        """This optimizer with one rate and one decay for all leaves: the largest of each.

        Raises:
            ValueError: where they vary with the iteration: `at` comes first.
        """
        names = ("learning_rate", "weight_decay")
        if not any(isinstance(getattr(self, name), ByLeaf) for name in names):
            return self
        trees = self.learning_rates(params), self.weight_decays(params)
        largest = [jnp.max(jnp.stack([jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]), axis=0) for tree in trees]
        return eqx.tree_at(lambda optimizer: [getattr(optimizer, name) for name in names], self, largest)

    def recipe(self, *, clipping: bool = True) -> tuple[str, ...]:
        """In words, what of this optimizer is more than a number: schedules, groups and, if asked for, clipping."""
        found = []
        for name in ("learning_rate", "weight_decay"):
            value = getattr(self, name)
            if varies(value):
                found.append(f"{name} varies with the iteration")
            if isinstance(value, ByLeaf):
                found.append(f"{name} differs between leaves")
        if clipping and not (self.clip_norm is None and self.clip_value is None):
            found.append("gradients are clipped")
        return tuple(found)

    @property
    def dtype(self) -> np.dtype:
        """The type of its numbers."""
        return dtype_of(self.learning_rate)

    def initial_state(self, params: Params) -> OptimizerState:
        """The state before the first gradient: all filters are zero, but for those that declare another start.

        Args:
            params: any pytree of float32 or float64 arrays.

        Raises:
            ValueError: if a leaf is of another type.
        """
        check_precision("params", params)

        def zeros() -> Params:
            # New arrays each time: a state whose arrays are one and the same cannot be donated to a jitted step.
            return jax.tree.map(jnp.zeros_like, params)

        def initial(moving_average: Filter) -> Params:
            if moving_average.initial is None:
                return zeros()
            start = moving_average.initial
            return jax.tree.map(lambda leaf: jnp.array(start(leaf), jnp.result_type(leaf), copy=True), params)

        return OptimizerState(
            filters=tuple({filter.name: initial(filter) for filter in stage.filters()} for stage in self.stages),
            memory=tuple(_over_leaves(stage.initial_memory, (params,)) for stage in self.stages),
            previous_inputs=tuple(zeros() if stage.uses_difference else None for stage in self.stages),
            previous_params=jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)
            if self.uses_gradient_change
            else None,
        )

    @property
    def uses_gradient_change(self) -> bool:
        """Whether an iteration takes a second gradient of its batch, at the parameters before, as VRAdam does."""
        return self.stages[0].uses_gradient_change

    @property
    def gradients_per_step(self) -> int:
        """Gradients that an iteration takes: 2 where `uses_gradient_change`, otherwise 1."""
        return 2 if self.uses_gradient_change else 1

    def consume(
        self,
        gradient_of: Callable[[Params], Params],
        gradient: Params,
        state: OptimizerState,
        iteration: Scalar,
        params: Params,
    ) -> tuple[Params, OptimizerState]:
        """`update` for whoever can take gradients, with a second one where the optimizer asks for it.

        Args:
            gradient_of: the gradient of this iteration's batch, as a function of the parameters.
            gradient: gₙ, what it is at θₙ.
            state: the state after iteration n − 1.
            iteration: n = 0, 1, ….
            params: θₙ.

        Returns:
            the direction uₙ and the state after iteration n.
        """
        if not self.uses_gradient_change:
            return self.update(gradient, state, iteration, params)
        at_previous = gradient_of(state.previous_params)
        return self.update(gradient, state, iteration, params, gradient_at_previous=at_previous)

    def update(
        self,
        gradient: Params,
        state: OptimizerState,
        iteration: Scalar,
        params: Params | None = None,
        *,
        gradient_at_previous: Params | None = None,
    ) -> tuple[Params, OptimizerState]:
        """Feed the gradient gₙ through the stages.

        Args:
            gradient: gₙ, a pytree like the parameters.
            state: the state after iteration n − 1.
            iteration: n = 0, 1, ….
            params: θₙ; only needed with `l2`, or by stages that use the parameters or two gradients of one batch.
            gradient_at_previous: the gradient of the same batch at `state.previous_params`; only needed where
                `uses_gradient_change`.

        Returns:
            the direction uₙ and the state after iteration n.

        Raises:
            ValueError: if a leaf of the gradient is neither float32 nor float64, or parameters or the gradient at the
                previous ones are needed and missing.
        """
        check_precision("the gradient", gradient)
        signal = self.first_input(gradient, params)
        change = self._gradient_change(signal, gradient_at_previous, state, iteration)
        filters, memories, previous = [], [], []
        for index, stage in enumerate(self.stages):

            def respond(value, last, place, change, averages, memory, stage=stage):
                return self._advance(stage, value, last, place, change, averages, memory, iteration)

            trees = (
                signal,
                state.previous_inputs[index] if stage.uses_difference else signal,
                self._place(stage, params, signal),
                change if stage.uses_gradient_change else signal,
            )
            direction, averages, memory = _over_leaves(respond, trees, (state.filters[index], state.memory[index]))
            filters.append(averages)
            memories.append(memory)
            previous.append(signal if stage.uses_difference else None)
            signal = stage.combine(direction)
        here = params if self.uses_gradient_change else None
        return signal, OptimizerState(tuple(filters), tuple(memories), tuple(previous), here)

    def direction_and_targets(
        self,
        gradient: Params,
        filters: Filters,
        iteration: Scalar,
        params: Params | None = None,
        *,
        memory: Filters | None = None,
        difference: Params | None = None,
    ) -> tuple[Params, Filters]:
        """The direction that given filters yield, and what drives each of them: the reading on which flows build.

        Args:
            gradient: the gradient at this time.
            filters: the filters as they stand at this time, before bias correction.
            iteration: the time n = t/η, any real number ≥ 0.
            params: θ at this time; only needed with `l2`, or by stages that use the parameters.
            memory: by stage, the memory that is no average, at this time; only needed by stages that keep some.
            difference: how fast the first stage's input changes per iteration, for filters of its differences or of
                its changes on one batch; by default 0.

        Returns:
            the direction u and, by stage and name, the signal f(x) towards which each filter relaxes.
        """
        return self._read(gradient, filters, iteration, params, memory, difference)[:2]

    def memory_rates(
        self, gradient: Params, filters: Filters, iteration: Scalar, params: Params | None = None, *, memory: Filters
    ) -> Filters:
        """How memory that is no average moves per iteration in a flow, by stage and name.

        The arguments are those of `direction_and_targets`.
        """
        return self._read(gradient, filters, iteration, params, memory, None)[2]

    def first_input(self, gradient: Params, params: Params | None) -> Params:
        """What the first stage gets: the gradient, clipped, with λ₂θ added where there is an `l2`."""
        gradient = self.clipped(gradient)
        uses_params = self.uses_gradient_change or any(stage.uses_params for stage in self.stages)
        if params is None and (self.l2 is not None or uses_params):
            raise ValueError(
                f"{self.name!r} needs the parameters, for l2 or for a stage that uses them; call "
                "update(gradient, state, iteration, params), or of the optax transformation "
                "update(gradient, state, params)"
            )
        if self.l2 is None:
            return gradient

        def add(g: Leaf, leaf: Leaf) -> Leaf:
            return (g + beside(self.l2, leaf) * leaf).astype(g.dtype)

        return jax.tree.map(add, gradient, params)

    def clipped(self, gradient: Params) -> Params:
        """The gradient with entries of at most `clip_value`, and then a norm of at most `clip_norm`."""
        if self.clip_value is not None:
            limit = self.clip_value
            gradient = jax.tree.map(
                lambda g: jnp.clip(g, -beside(limit, g), beside(limit, g)).astype(g.dtype), gradient
            )
        if self.clip_norm is None:
            return gradient
        limit, length = self.clip_norm, _norm_of(gradient)
        # As optax has it, so that rounding is the same.
        divisor = jnp.where(length > 0, length, 1.0)

        def scaled(g: Leaf) -> Leaf:
            return jnp.where(length < beside(limit, g), g, g / divisor.astype(g.dtype) * beside(limit, g)).astype(
                g.dtype
            )

        return jax.tree.map(scaled, gradient)

    def evaluation_params(self, snapshot: SnapshotLike) -> Params:
        """Where the model is evaluated: θ itself, or what stages such as an average of the model make of it.

        Args:
            snapshot: a look at a run, as `observe=` functions get it; what is read are its `params`, `filters`,
                `memory` and `iteration`. So `observe=optimizer.evaluation_params` keeps this instead of θ.

        Example:
            >>> import adamflow as af
            >>> problem, optimizer = af.problems.chain(4), af.with_model_average(af.adam(1e-2), decay=0.9)
            >>> observe = lambda snapshot: (snapshot.params, optimizer.evaluation_params(snapshot))
            >>> run = af.iterate(optimizer, problem.loss, problem.params, 20, observe=observe)
            >>> [leaf.shape for leaf in run.observed]
            [(21, 4), (21, 4)]
        """
        params = snapshot.params
        rates = self.at(snapshot.iteration).learning_rates(params)
        memories = snapshot.memory or tuple({} for _ in self.stages)
        for stage, filters, memory in zip(self.stages, snapshot.filters, memories, strict=True):

            def evaluate(leaf, rate, averages, memory, stage=stage):
                corrected = self._corrected(stage, averages, snapshot.iteration)
                point = stage.evaluation_params(leaf, corrected, memory, beside(rate, leaf))
                return point.astype(leaf.dtype)

            params = _over_leaves(evaluate, (params, rates), (filters, memory))
        return params

    def _read(self, gradient, filters, iteration, params, memory, difference) -> tuple[Params, Filters, Filters]:
        """The direction, what drives each filter, and how memory moves, from the state of a flow."""
        signal, targets, rates = self.first_input(gradient, params), [], []
        for index, stage in enumerate(self.stages):

            def respond(value, change, place, averages, memory, stage=stage):
                place = place if stage.uses_params else None
                inputs = StageInput(
                    value,
                    change if stage.uses_difference else None,
                    place,
                    change if stage.uses_gradient_change else None,
                )
                wanted = {filter.name: filter.input(inputs, averages) for filter in stage.filters()}
                corrected = self._corrected(stage, averages, iteration)
                rate = stage.memory_rate(inputs, corrected, memory, iteration) if memory else {}
                # How the input changes is known once the direction is, so that this cannot depend on it.
                direction = stage.direction(StageInput(value, None, place), corrected, memory, iteration, self.ratio)
                return direction, wanted, rate

            change = jax.tree.map(jnp.zeros_like, signal) if difference is None or index else difference
            trees = (signal, change, self._place(stage, params, signal))
            own = memory[index] if memory else {}
            direction, wanted, rate = _over_leaves(respond, trees, (filters[index], own))
            targets.append(wanted)
            rates.append(rate)
            signal = stage.combine(direction)
        return signal, tuple(targets), tuple(rates)

    def _gradient_change(
        self, signal: Params, at_previous: Params | None, state: OptimizerState, iteration: Scalar
    ) -> Params | None:
        """gₙ(θₙ) − gₙ(θₙ₋₁), both as the first stage gets them, and 0 at n = 0; `None` where no stage asks for it."""
        if not self.uses_gradient_change:
            return None
        if at_previous is None or state.previous_params is None:
            raise ValueError(
                f"{self.name!r} takes two gradients of each batch, the second at the parameters before, "
                "state.previous_params of a state of this optimizer; give it by gradient_at_previous=, call consume, "
                "which takes it, or take af.iterate"
            )
        check_precision("the gradient at the previous parameters", at_previous)
        before = self.first_input(at_previous, state.previous_params)
        return jax.tree.map(lambda x, y: jnp.where(iteration == 0, 0.0, x - y).astype(x.dtype), signal, before)

    def _place(self, stage: AbstractStage, params: Params | None, signal: Params) -> Params:
        """The parameters for a stage that uses them; else what has their structure and costs nothing."""
        return params if stage.uses_params else signal

    def bias_corrected(self, filters: Filters, iteration: Scalar) -> Filters:
        """The filters at an iteration after bias correction: x̂ₙ = x̄ₙ/(1 − αⁿ⁺¹), or x̄ₙ where it is off."""
        return tuple(
            _over_leaves(lambda averages, stage=stage: self._corrected(stage, averages, iteration), (), (values,))
            for stage, values in zip(self.stages, filters, strict=True)
        )

    def moment(self, state: OptimizerState, name: str, stage: int = 0, *, inputs: Params | None = None) -> Params:
        """A filter by its name, the same way whatever the decays are.

        At γ = 0 a stage keeps no first moment: it is the stage's input, the gradient for the first stage.

        Args:
            state: the state after an iteration, or before the first one.
            name: of the filter: "first_moment", "second_moment" or "mean_square" in this package's stages.
            stage: the index of the stage.
            inputs: what the stage got in that iteration; only needed for a filter that it does not keep.

        Returns:
            the filter before bias correction, a pytree like the parameters.

        Raises:
            ValueError: if the stage has no such filter, or keeps none and `inputs` is missing.

        Example:
            >>> import adamflow as af, jax.numpy as jnp
            >>> gradient = jnp.array([3.0])
            >>> for gamma in (0.5, 0.0):
            ...     optimizer = af.adam(0.1, gamma=gamma)
            ...     _, state = optimizer.update(gradient, optimizer.initial_state(gradient), 0)
            ...     print(optimizer.moment(state, "first_moment", inputs=gradient))
            [1.5]
            [3.]
        """
        if self._keeps(name, stage):
            return state.filters[stage][name]
        if inputs is None:
            raise ValueError(
                f"{name!r} of stage {stage} has decay 0, so that it is the stage's input and not kept; give inputs=, "
                "for stage 0 the gradient"
            )
        return inputs

    def with_moment(self, state: OptimizerState, name: str, value: Params, stage: int = 0) -> OptimizerState:
        """The state with a filter set to a value, the same way whatever the decays are.

        A filter of decay 0, which a stage does not keep, forgets what it is set to: the state is then unchanged.

        Args:
            state: an `OptimizerState` of this optimizer.
            name: of the filter, as in `moment`.
            value: before bias correction, a pytree like the parameters.
            stage: the index of the stage.

        Raises:
            ValueError: if the stage has no such filter, or the value another structure or other shapes.
        """
        if not self._keeps(name, stage):
            return state
        check_precision("value", value)
        old = state.filters[stage][name]
        if jax.tree.structure(value) != jax.tree.structure(old) or [*map(jnp.shape, jax.tree.leaves(value))] != [
            *map(jnp.shape, jax.tree.leaves(old))
        ]:
            raise ValueError(f"value must have the structure and shapes of the parameters, got {describe(value)}")
        new = jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), value, old)
        filters = list(state.filters)
        filters[stage] = {**filters[stage], name: new}
        return dataclasses.replace(state, filters=tuple(filters))

    def _keeps(self, name: str, stage: int) -> bool:
        """Whether a stage keeps a filter; a `ValueError` if it has none of that name."""
        if not 0 <= check_count("stage", stage, low=0) < len(self.stages):
            raise ValueError(f"stage must be less than the number of stages, {len(self.stages)}, got {stage}")
        kept = [filter.name for filter in self.stages[stage].filters()]
        forgotten = self.stages[stage].forgets
        if name not in kept and name not in forgotten:
            raise ValueError(
                f"name must be that of a filter of stage {stage}, {', '.join(map(repr, (*kept, *forgotten)))}, got "
                f"{describe(name)}"
            )
        return name in kept

    def preconditioner(self, filters: Filters, iteration: Scalar) -> Params:
        """P = √v̂ + ε (or √(v̂ + ε)), by which the direction divides: a pytree like the parameters.

        Raises:
            ValueError: unless there is one stage, whose direction is a ratio over a filter named "second_moment".
        """
        if len(self.stages) != 1 or not divides_by(self.stages[0], "second_moment"):
            raise ValueError(
                f"{self.name!r} has no single preconditioner: that needs one stage with a filter named 'second_moment' "
                "by whose root its direction is divided, and by nothing else"
            )
        second = self.bias_corrected(filters, iteration)[0]["second_moment"]
        return jax.tree.map(lambda square: self._denominator(square).astype(square.dtype), second)

    def increment(self, params: Params, direction: Params) -> Params:
        """What a step adds to the parameters: −η (λ θ + u).

        Where η or λ varies, what iteration n adds is `optimizer.at(n).increment(...)`; a `ValueError` says so.
        """

        def moved(leaf: Leaf, u: Leaf, rate: Any, decay: Any) -> Leaf:
            rate, decay = beside(rate, leaf), beside(decay, leaf)
            return (-rate * (decay * leaf + u)).astype(leaf.dtype)

        return jax.tree.map(moved, params, direction, self.learning_rates(params), self.weight_decays(params))

    def apply(self, params: Params, direction: Params) -> Params:
        """The parameters after a step: θ − η (λ θ + u), with η and λ as in `increment`."""
        return jax.tree.map(jnp.add, params, self.increment(params, direction))

    def step(
        self, loss: Loss, state: tuple[Params, OptimizerState], iteration: Scalar
    ) -> tuple[Params, OptimizerState]:
        """The whole map of an iteration: from θₙ and the memory before its gradient to θₙ₊₁ and the memory after it."""
        params, memory = state
        gradient_of = jax.grad(as_scalar(loss))
        direction, memory = self.consume(gradient_of, gradient_of(params), memory, iteration, params)
        return self.at(iteration).apply(params, direction), memory

    def ratio(self, numerator: Leaf, square: Leaf) -> Leaf:
        """The stabilized ratio m/(√v + ε), or m/√(v + ε); 0 where its denominator is 0, in value and in derivative.

        A negative v gives NaN: it is the sign of an integration that went wrong, and not hidden.
        """
        denominator = self._denominator(square)
        # The division comes last, and what it needs is used once: the next stage has two uses for the quotient, and XLA
        # computes anew, or keeps in memory, whatever has two uses and is not the last.
        smallest = jnp.finfo(jnp.result_type(square)).tiny
        if is_concrete(self.epsilon) and np.all(np.asarray(self.epsilon) >= smallest):
            return _quotient(numerator, denominator)
        return _quotient(numerator, jnp.where(denominator == 0, jnp.inf, denominator))

    def to_optax(self) -> optax.GradientTransformation:
        """This optimizer as an optax transformation, equal to it step for step.

        Parameters and gradients are pytrees of float32 or float64 arrays, or Python floats. Complex parameters, whose
        second moment would be that of |g|, and half precision are refused: keep the real and imaginary parts as two
        real arrays, and the parameters that are averaged in float32.

        Where `uses_gradient_change`, an optax loop has to take the second gradient of its batch, which is an extra
        argument: `update(gradient, state, params, gradient_at_previous=grad(loss)(state.inner.previous_params,
        batch))`. Without it `update` raises a `ValueError`.

        Example:
            >>> import adamflow as af, jax.numpy as jnp, optax
            >>> transformation = af.adam(0.1).to_optax()
            >>> state = transformation.init(jnp.ones(2))
            >>> updates, state = transformation.update(jnp.array([3.0, -2.0]), state, jnp.ones(2))
            >>> optax.apply_updates(jnp.ones(2), updates).round(3).tolist()
            [0.9, 1.1]
        """

        def init(params: Params) -> Any:
            return OptaxState(jnp.zeros((), jnp.int32), self.initial_state(params))

        def update(
            updates: Params,
            state: Any,
            params: Params | None = None,
            *,
            gradient_at_previous: Params | None = None,
            **others: Any,
        ) -> tuple[Params, Any]:
            if self.uses_gradient_change and gradient_at_previous is None:
                raise ValueError(
                    f"{self.name!r} takes two gradients of each batch, of which an optax loop hands on one; call "
                    "update(gradient, state, params, gradient_at_previous=jax.grad(loss)(state.inner.previous_params, "
                    "batch)) with the batch of `gradient`, or take af.iterate, which does so"
                )
            given = params is not None
            if params is None:
                if not is_zero_setting(self.weight_decay):
                    raise ValueError("weight decay needs the parameters; call update(gradient, state, params)")
                params = jax.tree.map(jnp.zeros_like, updates)
            check_precision("params", params)
            updates, params = jax.tree.map(jnp.asarray, (updates, params))
            second = {}
            if self.uses_gradient_change:
                second = {"gradient_at_previous": jax.tree.map(jnp.asarray, gradient_at_previous)}
            direction, inner = self.update(updates, state.inner, state.iteration, params if given else None, **second)
            increment = self.at(state.iteration).increment(params, direction)
            return increment, OptaxState(optax.safe_increment(state.iteration), inner)

        if self.uses_gradient_change:
            return optax.GradientTransformationExtraArgs(init, update)
        return optax.GradientTransformation(init, update)

    def _denominator(self, square: Leaf) -> Leaf:
        epsilon = beside(self.epsilon, square)
        return _root(square + epsilon) if self.epsilon_inside_root else _root(square) + epsilon

    def _corrected(self, stage: AbstractStage, averages: dict[str, Leaf], iteration: Scalar) -> dict[str, Leaf]:
        if not self.bias_correction:
            return averages
        corrected = {}
        for filter in stage.filters():
            average = averages[filter.name]
            corrected[filter.name] = average * beside(1 / filter.weight_sum_at(iteration), average)
        return corrected

    def _advance(self, stage, value, last, place, change, averages, memory, iteration):
        """One iteration of one stage on one leaf: its direction, filters and memory."""
        difference = jnp.where(iteration == 0, 0.0, value - last) if stage.uses_difference else None
        signal = StageInput(
            value,
            difference,
            place if stage.uses_params else None,
            change if stage.uses_gradient_change else None,
        )
        averages = dict(averages)
        for filter in stage.filters():
            decay = filter.decay_at(iteration)
            kept, taken = beside(decay, value), beside(1 - decay, value)
            updated = kept * averages[filter.name] + taken * filter.input(signal, averages)
            averages[filter.name] = updated.astype(value.dtype)
        corrected = self._corrected(stage, averages, iteration)
        memory = stage.update_memory(signal, corrected, memory, iteration)
        direction = stage.direction(signal, corrected, memory, iteration, self.ratio)
        return direction.astype(value.dtype), averages, memory


@jax.custom_jvp
def _root(total: Leaf) -> Leaf:
    """√total, with derivative 0 at 0."""
    return jnp.sqrt(total)


@_root.defjvp
def _derivative_of_root(primals: tuple[Leaf], tangents: tuple[Leaf]) -> tuple[Leaf, Leaf]:
    # A rule of its own, so that the root itself costs what a root costs.
    root = _root(*primals)
    zero = root == 0
    return root, jnp.where(zero, 0.0, tangents[0] / jnp.where(zero, 1.0, 2 * root))


def _norm_of(tree: Params) -> jax.Array:
    """‖x‖ over all leaves, with derivative 0 at 0."""
    return _root(jnp.asarray(sum(jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(tree))))


def _over_leaves(
    function: Callable[..., Any], trees: tuple[Params, ...], groups: tuple[dict[str, Params], ...] = ()
) -> Any:
    """Apply a function leaf by leaf and gather what it returns into trees like those given.

    The function gets a leaf of each tree, and for each group, a dict of such trees, a dict of leaves.
    """
    every = (*trees, *(tree for group in groups for tree in group.values()))
    if not every:
        return function(*groups)
    treedef = jax.tree.structure(every[0])
    columns = [treedef.flatten_up_to(tree) for tree in trees]
    for group in groups:
        parts = {name: treedef.flatten_up_to(tree) for name, tree in group.items()}
        columns.append([{name: part[i] for name, part in parts.items()} for i in range(treedef.num_leaves)])
    if treedef.num_leaves == 0:
        nothing = jnp.zeros(())
        row = [nothing for _ in trees] + [dict.fromkeys(group, nothing) for group in groups]
        return jax.tree.map(lambda _: treedef.unflatten(()), function(*row))
    results = [function(*row) for row in zip(*columns, strict=True)]
    return jax.tree.map(lambda *parts: treedef.unflatten(parts), *results)
