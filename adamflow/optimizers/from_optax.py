"""Read an optax state: which optimizer it is of, its moments, and the iteration."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from adamflow.checks import check_count, check_flag, describe, keyword_decays
from adamflow.optimizers.adam import adamw
from adamflow.optimizers.amsgrad import amsgrad
from adamflow.optimizers.clipping import with_clipping
from adamflow.optimizers.described_state import OptimizerReading
from adamflow.optimizers.nadam import nadam
from adamflow.optimizers.optimizer import Optimizer, OptimizerState, state_shapes
from adamflow.optimizers.record import Record
from adamflow.optimizers.rmsprop import rmsprop
from adamflow.optimizers.settings import ByLeaf, Schedule, Setting, by_leaf, setting
from adamflow.optimizers.sgd import sgd
from adamflow.types import Params, Scalar

#: States in optax that hold others, by the field that does.
_WRAPPERS = {
    "InjectHyperparamsState": "inner_state",
    "InjectStatefulHyperparamsState": "inner_state",
    "MaskedState": "inner_state",
    "ApplyIfFiniteState": "inner_state",
    "MultiStepsState": "inner_opt_state",
}
#: States that change nothing in what a report says, or only which gradient comes.
_HARMLESS = {
    "ScaleByScheduleState": "a schedule",
    "WrappedScheduleState": "a schedule",
    "SnapshotState": "a snapshot",
    "MonitorState": "a monitor",
}
_MOMENTS = ("ScaleByAdamState", "ScaleByAmsgradState", "ScaleByRmsState", "ScaleByRmsWithCountState", "TraceState")
_DEFAULTS = dict(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)
_UNSEEN = (
    "optax keeps no state for clipping, constant rates, weight decay and its mask, and Nesterov's momentum: they are "
    "not seen here; give what there is of them as arguments"
)


@dataclasses.dataclass
class _Found:
    """The moments of some leaves: the state that has them, the label it stands under, injected hyperparameters."""

    state: Any
    label: Any
    hyperparameters: dict[str, Any]

    @property
    def kind(self) -> str:
        return type(self.state).__name__


@dataclasses.dataclass
class _Search:
    """What a walk through a state has found."""

    moments: list[_Found] = dataclasses.field(default_factory=list)
    names: list[str] = dataclasses.field(default_factory=list)
    unknown: list[str] = dataclasses.field(default_factory=list)
    counts: list[int] = dataclasses.field(default_factory=list)


@keyword_decays
def from_optax(
    opt_state: optax.OptState,
    learning_rate: Setting | None = None,
    *,
    beta: Scalar | None = None,
    gamma: Scalar | None = None,
    epsilon: Scalar | None = None,
    weight_decay: Setting | None = None,
    clip_norm: Scalar | None = None,
    nesterov: bool = False,
    epsilon_inside_root: bool | None = None,
    bias_correction: bool | None = None,
    iteration: int | None = None,
    params: Params = None,
) -> OptimizerReading:
    """The optimizer, its state and the iteration of an optax state, for the analysis and for runs.

    It finds the moments of `optax.adam`, `adamw`, `nadam`, `amsgrad`, `rmsprop` and `sgd` with momentum in any chain,
    also below `inject_hyperparams`, `multi_transform`, `masked`, `apply_if_finite` and `MultiSteps`. An optax state
    holds no hyperparameters, except those that `inject_hyperparams` put there: the others are arguments here, with the
    defaults of `optax.adam`.

    Args:
        opt_state: what `transformation.init` or `update` returned.
        learning_rate: η, or the schedule, a function of the iteration; or a dict of these by label of
            `multi_transform`. It may be left out where `inject_hyperparams` holds it.
        beta: decay of the second moment (`b2`; `decay` of `optax.rmsprop`, whose default is .9).
        gamma: decay of the first moment (`b1`; `momentum` of `optax.sgd`).
        epsilon: `eps`.
        weight_decay: λ of `optax.adamw`, a number, a schedule, or a dict of them by label. For a mask give
            `af.by_leaf`, with 0 where nothing decays; `learning_rate` takes that, too.
        clip_norm: c of `optax.clip_by_global_norm`, which leaves no trace in a state.
        nesterov: whether Adam's step has the momentum of the next iteration: `optax.nadam`, whose state is Adam's.
        epsilon_inside_root: whether ε stands under the root; by default as in optax: for `rmsprop` alone.
        bias_correction: whether v is bias-corrected; by default as in optax: for Adam alone.
        iteration: how many gradients the state has consumed; needed where no part of the state counts.
        params: θ, needed only where some leaves have no moments. These are then taken to be frozen (`set_to_zero`).

    Returns:
        a reading, which unpacks into optimizer, optimizer_state and iteration. `found` and `not_described` say what the
        state holds.

    Raises:
        ValueError: the state has no moments, or parts that this package does not describe, such as those of Lion,
            or parts that contradict each other; or a hyperparameter is missing.

    Example:
        >>> import adamflow as af, jax.numpy as jnp, optax
        >>> transformation = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
        >>> optimizer, state, iteration = af.from_optax(transformation.init(jnp.ones(3)), 1e-3, weight_decay=1e-4)
        >>> optimizer.name, iteration
        ('adamw', 0)
    """
    if hasattr(opt_state, "opt_state"):
        raise ValueError(f"opt_state must be an optax state, got a {type(opt_state).__name__}; give its opt_state")
    search = _Search()
    _walk(opt_state, None, {}, search)
    kind = _one_kind(opt_state, search)
    count = _iteration_of(search, iteration)
    settings = _Settings(search, count, dict(b1=gamma, b2=beta, eps=epsilon), kind, check_flag("nesterov", nesterov))
    scale = settings.gradient_scale()
    rates = settings.by_label("learning_rate", learning_rate)
    rates = {label: _divided(rate, scale) for label, rate in rates.items()}
    decays = settings.by_label("weight_decay", weight_decay)
    merged, leaf_labels, frozen = _merged(search.moments, params, kind)
    groups = _spread(rates, leaf_labels), _spread(decays, leaf_labels)
    optimizer = settings.optimizer(*groups, bias_correction, epsilon_inside_root)
    if clip_norm is not None:
        optimizer = with_clipping(optimizer, clip_norm)
    state = _state(optimizer, merged, scale)
    notes = [_UNSEEN]
    if frozen:
        notes.append(f"leaves without moments are taken to be frozen: {', '.join(frozen)}")
    return OptimizerReading(
        optimizer=optimizer,
        optimizer_state=state,
        iteration=count,
        found=tuple(dict.fromkeys(search.names)),
        not_described=tuple(notes + search.unknown),
    )


def _walk(node: Any, label: Any, hyperparameters: dict[str, Any], search: _Search) -> None:
    """Collect the moments of a state and name its parts."""
    name = type(node).__name__
    if name == "OptaxState" and isinstance(getattr(node, "inner", None), OptimizerState):
        raise ValueError(
            "opt_state is that of an adamflow optimizer's to_optax(): you have the optimizer already, and state.inner "
            "and state.iteration are its state and iteration"
        )
    if name in _MOMENTS:
        search.moments.append(_Found(node, label, hyperparameters))
        search.names.append(name if label is None else f"{name} of {label!r}")
        if "count" in node._fields:
            search.counts.append(int(node.count))
        return
    if name in _WRAPPERS:
        search.names.append(name)
        inner = hyperparameters | dict(getattr(node, "hyperparams", {}))
        _walk(getattr(node, _WRAPPERS[name]), label, inner, search)
        if name.startswith("Inject"):
            search.counts.append(int(node.count))
        return
    if name in _HARMLESS:
        search.names.append(_HARMLESS[name])
        if "count" in node._fields:
            search.counts.append(int(node.count))
    elif name in ("PartitionState", "MultiTransformState"):
        search.names.append("multi_transform")
        for key, inner in node.inner_states.items():
            _walk(inner, key, hyperparameters, search)
    elif hasattr(node, "_fields"):
        _note_unknown(node, name, search)
    elif isinstance(node, tuple | list):
        for part in node:
            _walk(part, label, hyperparameters, search)
    elif isinstance(node, Mapping):
        for part in node.values():
            _walk(part, label, hyperparameters, search)


def _note_unknown(node: Any, name: str, search: _Search) -> None:
    """Take note of a state that this reader does not know, or raise where it would make the update another one."""
    if name in ("EmptyState", "MaskedNode"):
        return
    if name.startswith("ScaleBy") or name in ("EmaState",):
        raise ValueError(
            f"opt_state holds a {name}, which adamflow has no reader for; it reads the states of optax.adam, adamw, "
            "nadam, amsgrad, rmsprop and sgd with momentum. "
            "Declare the optimizer by AbstractStage and fill its OptimizerState yourself"
        )
    search.unknown.append(f"{name} was found and is not described")


def _one_kind(opt_state: Any, search: _Search) -> str:
    """The kind of the moments, or an error unless all are of one."""
    kinds = {"Adam": [], "Amsgrad": [], "Rms": [], "Trace": []}
    for found in search.moments:
        next(group for word, group in kinds.items() if word in found.kind).append(found)
    present = [word for word, group in kinds.items() if group]
    if not present:
        named = ", ".join(search.names + search.unknown) or describe(opt_state)
        raise ValueError(
            f"opt_state has no moments of Adam, RMSprop or momentum (found: {named}); give what transformation.init or "
            "update returned. For sgd without momentum there is nothing to read: take af.sgd(...)"
        )
    if len(present) > 1:
        raise ValueError(
            f"opt_state mixes {' and '.join(found.kind for found in search.moments)}, which no single optimizer of "
            "adamflow describes; if these are labels of multi_transform, read the inner state of one of them"
        )
    labels = [found.label for found in search.moments]
    if len(labels) != len(set(labels)):
        raise ValueError(
            f"opt_state has {len(labels)} sets of moments, one after the other (or in parts without labels), where one "
            "was expected; give the part of the state that belongs to one optimizer"
        )
    return present[0]


def _iteration_of(search: _Search, given: int | None) -> int:
    moments = {int(found.state.count) for found in search.moments if "count" in found.state._fields}
    if len(moments) > 1:
        raise ValueError(f"the parts of opt_state have consumed different numbers of gradients: {sorted(moments)}")
    counts = moments or set(search.counts)
    if given is not None:
        given = check_count("iteration", given, low=0)
        if moments and given not in moments:
            raise ValueError(f"iteration is {given}, but the state counts {moments.pop()} gradients; leave it out")
        return given
    if len(counts) != 1:
        raise ValueError("no part of this opt_state counts the iterations; give iteration=, the number of updates made")
    return counts.pop()


@dataclasses.dataclass
class _Settings:
    """Hyperparameters: those given, those injected, and the defaults of optax."""

    search: _Search
    iteration: int
    given: dict[str, Any]
    kind: str
    nesterov: bool

    def labels(self) -> list[Any]:
        return [found.label for found in self.search.moments]

    def by_label(self, name: str, given: Any) -> dict[Any, Any]:
        """A setting for each label: a number, a schedule, or values by leaf."""
        numbers = {}
        has_labels = isinstance(given, Mapping)
        if has_labels and (missing := set(self.labels()) - set(given)):
            raise ValueError(f"{name} has no entry for the labels {sorted(map(repr, missing))} of multi_transform")
        for found in self.search.moments:
            value = given[found.label] if has_labels else given
            if value is None:
                value = found.hyperparameters.get(name, _DEFAULTS.get(name))
            if value is None:
                raise ValueError(
                    f"an optax state does not hold the {name}; give {name}=, a number or the schedule, as the "
                    "optimizer got it"
                )
            numbers[found.label] = setting(name, value)
        return numbers

    def shared(self, name: str) -> float:
        """A number that is the same for all labels."""
        if self.given[name] is not None:
            return self.given[name]
        rms = {"b2": 0.9} if self.kind == "Rms" else {}
        injected = "decay" if self.kind == "Rms" and name == "b2" else name
        injected = "momentum" if self.kind == "Trace" and name == "b1" else injected
        default = rms.get(name, _DEFAULTS[name])
        values = {float(found.hyperparameters.get(injected, default)) for found in self.search.moments}
        if len(values) > 1:
            raise ValueError(f"the labels of opt_state have different {injected}: {sorted(values)}; adamflow needs one")
        return values.pop()

    def gradient_scale(self) -> float:
        """What a trace of optax is multiplied by: it is t = g + μ t, and that of adamflow (1 − μ) t."""
        return 1 - float(self.shared("b1")) if self.kind == "Trace" else 1.0

    def optimizer(
        self, learning_rate: Any, weight_decay: Any, bias_correction: bool | None, inside: bool | None
    ) -> Optimizer:
        if self.kind == "Trace":
            return sgd(learning_rate, self.shared("b1"), weight_decay=weight_decay)
        if self.kind == "Rms":
            return rmsprop(
                learning_rate,
                self.shared("b2"),
                self.shared("eps"),
                weight_decay=weight_decay,
                epsilon_inside_root=True if inside is None else inside,
                bias_correction=bool(bias_correction),
            )
        numbers: dict[str, Any] = dict(
            beta=self.shared("b2"), gamma=self.shared("b1"), epsilon=self.shared("eps"), weight_decay=weight_decay
        )
        if self.kind == "Amsgrad":
            found = amsgrad(learning_rate, form="optax", **numbers)
        else:
            found = (nadam if self.nesterov else adamw)(learning_rate, **numbers)
        corrects = True if bias_correction is None else bias_correction
        return dataclasses.replace(found, epsilon_inside_root=bool(inside), bias_correction=corrects)


def _is_masked(node: Any) -> bool:
    return type(node).__name__ == "MaskedNode"


class _Leaves(NamedTuple):
    """The label of each leaf, and the structure of the parameters."""

    labels: list[Any]
    structure: Any


def _merged(moments: list[_Found], params: Params, kind: str) -> tuple[dict[str, Params], _Leaves, list[str]]:
    """The moments of all labels by name, the label of each leaf, and the names of leaves without moments."""
    merged, labels, frozen = {}, [], []
    structure = None
    trees = {"Adam": ("mu", "nu"), "Amsgrad": ("mu", "nu", "nu_max"), "Rms": ("nu",), "Trace": ("trace",)}
    for tree in trees[kind]:
        columns = [jax.tree.flatten(getattr(found.state, tree), is_leaf=_is_masked) for found in moments]
        structure = columns[0][1]
        if any(other != structure for _, other in columns):
            raise ValueError("the labels of opt_state have moments of different structure; give the state unchanged")
        chosen = [_chosen(leaves, moments) for leaves in zip(*(leaves for leaves, _ in columns), strict=True)]
        labels = [label for _, label in chosen]
        paths = jax.tree_util.tree_leaves_with_path(structure.unflatten(range(structure.num_leaves)))
        frozen = [jax.tree_util.keystr(path) for path, index in paths if labels[index] is _NOTHING]
        if frozen and params is None:
            raise ValueError(
                f"opt_state has no moments for the leaves {', '.join(frozen)}; if they are frozen, give params=, and "
                "they are left out of the report"
            )
        like = [None] * structure.num_leaves if params is None else structure.flatten_up_to(params)
        leaves = [jnp.zeros_like(like[i]) if leaf is None else leaf for i, (leaf, _) in enumerate(chosen)]
        merged[tree] = structure.unflatten([_in_precision(leaf) for leaf in leaves])
    return merged, _Leaves(labels, structure), frozen


def _state(optimizer: Optimizer, merged: dict[str, Params], scale: float) -> OptimizerState:
    """The state of the optimizer with the moments."""
    like = next(iter(merged.values()))
    # Shapes alone: arrays of zeros for each filter would take longer than all else here.
    shapes = state_shapes(optimizer, like)
    names = {"mu": "first_moment", "nu": "second_moment", "trace": "first_moment"}
    filters, memory = dict(shapes.filters[0]), shapes.memory
    for tree, value in merged.items():
        if tree == "nu_max":
            memory = ({"maximum": value},)
        elif names[tree] in filters:
            scaled = jax.tree.map(lambda leaf: scale * leaf, value) if tree == "trace" else value
            filters[names[tree]] = jax.tree.map(lambda leaf, to: jnp.asarray(leaf, to.dtype), scaled, like)
    return OptimizerState((filters,), memory, shapes.previous_inputs)


class _NoLabel:
    """The label of a leaf without moments."""


_NOTHING = _NoLabel()


def _chosen(leaves: tuple[Any, ...], moments: list[_Found]) -> tuple[Any, Any]:
    """The leaf that is not masked, and its label."""
    present = [(leaf, found.label) for leaf, found in zip(leaves, moments, strict=True) if not _is_masked(leaf)]
    if len(present) > 1:
        raise ValueError("a leaf has moments under two labels of opt_state; give the state of one optimizer")
    return present[0] if present else (None, _NOTHING)


def _in_precision(leaf: Any) -> Any:
    """A moment in single precision at least."""
    array = jnp.asarray(leaf)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _spread(numbers: dict[Any, Any], leaves: _Leaves) -> Any:
    """The setting of each leaf by its label, 0 where it has none; the setting itself if one is all."""
    values = [0.0 if label is _NOTHING else numbers[label] for label in leaves.labels]
    if all(value is values[0] or value == values[0] for value in values):
        return values[0]
    if any(isinstance(value, ByLeaf) for value in values):
        raise ValueError("a setting by leaf cannot be that of one label; give a dict of numbers or schedules by label")
    return by_leaf(leaves.structure.unflatten(values))


def _divided(rate: Any, scale: float) -> Any:
    """A learning rate over a number."""
    if scale == 1.0:
        return rate
    if isinstance(rate, ByLeaf):
        return ByLeaf(rate.values, _divided(rate.times, scale))
    return Schedule(_Quotient(rate, scale)) if isinstance(rate, Schedule) else rate / scale


class _Quotient(Record):
    """A schedule over a number."""

    schedule: Schedule
    divisor: float = eqx.field(static=True)

    def __call__(self, iteration: Scalar) -> Any:
        return self.schedule(iteration) / self.divisor
