"""Read the state of a PyTorch optimizer: which optimizer it is, its moments, and the iteration."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from adamflow.checks import check_count, describe
from adamflow.optimizers import (
    AMSGradStage,
    MomentumStage,
    NAdamScheduleStage,
    Optimizer,
    OptimizerReading,
    RMSpropStage,
    adamw,
    by_leaf,
    kadam,
    nadam,
    rmsprop,
    sgd,
)
from adamflow.torch.kadam import KAdam, state_names
from adamflow.torch.model_loss import check_real_and_dense, numpy_of


@dataclasses.dataclass(frozen=True)
class TorchReading(OptimizerReading):
    """An optimizer and its state, read from PyTorch: `optimizer, optimizer_state, iteration = reading`.

    Attributes:
        params: by name, the parameters of the optimizer, as jax arrays.
        penalties: by name, λ of the penalty λ‖θ‖²/2 that the optimizer adds to the loss (`weight_decay` of Adam,
            RMSprop and SGD), or `None` if all are 0. The loss of a report needs it.
    """

    params: dict[str, jax.Array] | None = None
    penalties: dict[str, float] | None = None


def from_torch(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module | None = None, *, iteration: int | None = None
) -> TorchReading:
    """The optimizer, its state and the iteration of a PyTorch optimizer, for the analysis.

    It reads `torch.optim.Adam`, `AdamW`, `NAdam`, `RMSprop`, `SGD` and `KAdam`, also with amsgrad, with any number of
    parameter groups, which may differ in learning rate and weight decay; states of foreach, fused and plain steps are
    alike. Adam's weight decay, and that of NAdam, RMSprop and SGD, is a penalty on the loss: `penalties`.

    Args:
        optimizer: after at least one step.
        model: gives the parameters their names; without it they are called by the names that the optimizer got, or by
            their number.
        iteration: the number of steps so far; needed for SGD alone, which does not count them.

    Returns:
        a reading, which unpacks into optimizer, optimizer_state and iteration, with the parameters' names as keys.

    Raises:
        TypeError: `optimizer` is none that this reader knows.
        ValueError: it has made no step, ascends, or uses Nesterov's momentum in SGD or a centred variance; its groups
            differ in what adamflow has one number for; its parameters have made different numbers of steps, or are
            complex or sparse; all learning rates are 0.

    Example:
        >>> import torch
        >>> from adamflow.torch import from_torch
        >>> model = torch.nn.Linear(2, 1)
        >>> theirs = torch.optim.AdamW(model.parameters(), lr=1e-3)
        >>> model(torch.ones(2)).backward()
        >>> theirs.step()
        >>> optimizer, optimizer_state, iteration = from_torch(theirs, model)
        >>> optimizer.name, iteration
        ('adamw', 1)
    """
    kind = _kind_of(optimizer)
    named = _named_parameters(optimizer, model)
    group = _shared_numbers(optimizer, kind)
    rates = {name: float(own["lr"]) * kind.scale(group) for name, (_, own) in named.items()}
    decays = {name: float(own["weight_decay"]) for name, (_, own) in named.items()}
    if not max(rates.values()) > 0:
        raise ValueError(
            "the learning rate of every group is 0 at this step (a warm-up that starts there?), so there is no step to "
            "report on; look after the scheduler's next step"
        )
    states = {name: optimizer.state.get(parameter, {}) for name, (parameter, _) in named.items()}
    count, notes = _steps(kind, states, iteration)
    decoupled = kind.is_decoupled(group)
    declared = kind.declare(group, _setting_of(rates), _setting_of(decays) if decoupled else 0.0)
    params = {name: jnp.asarray(numpy_of(parameter, _precision(parameter))) for name, (parameter, _) in named.items()}
    return TorchReading(
        optimizer=declared,
        optimizer_state=_filled(declared, params, states, kind.moments(group), kind.memory(group)),
        iteration=count,
        found=(f"{type(optimizer).__name__} with {len(optimizer.param_groups)} parameter groups",),
        not_described=tuple(notes),
        params=params,
        penalties=None if decoupled or not any(decays.values()) else decays,
    )


def _setting_of(numbers: dict[str, float]) -> Any:
    """The number that all parameters have, or one for each."""
    values = set(numbers.values())
    return by_leaf(numbers) if len(values) > 1 else values.pop()


def parameters_of(optimizer: torch.optim.Optimizer, model: torch.nn.Module | None) -> dict[str, torch.Tensor]:
    """By the names of `from_torch`, the parameters that the optimizer trains."""
    return {name: parameter for name, (parameter, _) in _named_parameters(optimizer, model).items()}


#: For each stage the filters by name: the key in torch's state, and what that is to be multiplied by.
Moments = list[dict[str, tuple[str, float]]]
#: For each stage other memory by name: the key in torch's state, and the function that makes ours of it.
Memory = list[dict[str, tuple[str, Callable[[Any], Any]]]]


@dataclasses.dataclass(frozen=True)
class _Kind:
    """How one class of torch.optim is read; functions of a parameter group.

    Attributes:
        shared: the keys that must be the same in all groups.
        refused: for keys that must be off, the reason.
        scale: what its learning rate is multiplied by, to be ours.
        declare: the optimizer, from a group, the learning rate and the weight decay.
        moments: where the filters stand.
        memory: where memory that is no average stands, and what it is made of.
        is_decoupled: whether weight decay is that of AdamW.
        counts: whether its state counts steps.
    """

    shared: tuple[str, ...]
    refused: dict[str, str]
    declare: Callable[[dict[str, Any], Any, Any], Optimizer]
    moments: Callable[[dict[str, Any]], Moments]
    scale: Callable[[dict[str, Any]], float] = lambda group: 1.0
    is_decoupled: Callable[[dict[str, Any]], bool] = lambda group: False
    counts: bool = True
    memory: Callable[[dict[str, Any]], Memory] = lambda group: []


def _adam(group: dict[str, Any], learning_rate: Any, weight_decay: Any) -> Optimizer:
    b1, b2 = map(float, group["betas"])
    plain = adamw(learning_rate, b1=b1, b2=b2, epsilon=float(group["eps"]), weight_decay=weight_decay)
    return _with_maximum(plain) if group.get("amsgrad") else plain


def _with_maximum(optimizer: Optimizer) -> Optimizer:
    """The optimizer that divides by the largest v so far in every stage, before bias correction, as torch does."""
    decays = [{filter.name: filter.decay for filter in stage.filters()} for stage in optimizer.stages]
    stages = tuple(AMSGradStage(own["second_moment"], own.get("first_moment", 0.0), maximum="raw") for own in decays)
    return dataclasses.replace(optimizer, stages=stages, name=f"{optimizer.name} with amsgrad")


def _nadam(group: dict[str, Any], learning_rate: Any, weight_decay: Any) -> Optimizer:
    b1, b2 = map(float, group["betas"])
    plain = nadam(learning_rate, b1=b1, b2=b2, epsilon=float(group["eps"]), weight_decay=weight_decay)
    # Torch's momentum starts at half of b1 for a momentum_decay of 0, too, and stays there.
    stage = NAdamScheduleStage(b2, b1, float(group["momentum_decay"]))
    return dataclasses.replace(plain, stages=(stage,))


def _nadam_memory(group: dict[str, Any]) -> Memory:
    return [{"weight_sum": ("mu_product", lambda product: 1 - product)}]


def _k_adam(group: dict[str, Any], learning_rate: Any, weight_decay: Any) -> Optimizer:
    b1, b2 = map(float, group["betas"])
    numbers = dict(epsilon=float(group["eps"]), weight_decay=weight_decay, strategy=group["strategy"])
    plain = kadam(group["k"], learning_rate, b1=b1, b2=b2, **numbers)
    return _with_maximum(plain) if group["amsgrad"] else plain


def _adam_moments(group: dict[str, Any]) -> Moments:
    names = state_names(group.get("k", 1))
    return [{"first_moment": (first, 1.0), "second_moment": (second, 1.0)} for first, second in names]


def _adam_memory(group: dict[str, Any]) -> Memory:
    if not group.get("amsgrad"):
        return []
    names = state_names(group.get("k", 1), amsgrad=True)
    return [{"maximum": (largest, lambda square: square)} for _, _, largest in names]


def _rmsprop(group: dict[str, Any], learning_rate: Any, weight_decay: Any) -> Optimizer:
    plain = rmsprop(learning_rate, float(group["alpha"]), float(group["eps"]), bias_correction=False)
    if not group["momentum"]:
        return plain
    stages = (RMSpropStage(float(group["alpha"])), MomentumStage(float(group["momentum"])))
    return dataclasses.replace(plain, stages=stages)


def _rmsprop_moments(group: dict[str, Any]) -> Moments:
    moments: Moments = [{"second_moment": ("square_avg", 1.0)}]
    # torch's buffer is μ b + u, without the factor 1 − μ.
    momentum = {"first_moment": ("momentum_buffer", 1 - float(group["momentum"]))}
    return [*moments, momentum] if group["momentum"] else moments


def _sgd_scale(group: dict[str, Any]) -> float:
    momentum, dampening = float(group["momentum"]), float(group["dampening"])
    return (1 - dampening) / (1 - momentum) if momentum else 1.0


def _sgd_moments(group: dict[str, Any]) -> Moments:
    return [{"first_moment": ("momentum_buffer", 1 / _sgd_scale(group))}] if group["momentum"] else [{}]


_ASCENT = "it ascends; minimize the negative"
_KINDS: dict[type, _Kind] = {
    KAdam: _Kind(
        ("betas", "eps", "k", "strategy", "amsgrad"),
        {"maximize": _ASCENT},
        _k_adam,
        _adam_moments,
        memory=_adam_memory,
        is_decoupled=lambda group: True,
    ),
    torch.optim.AdamW: _Kind(
        ("betas", "eps", "amsgrad"),
        {"maximize": _ASCENT},
        _adam,
        _adam_moments,
        memory=_adam_memory,
        is_decoupled=lambda group: True,
    ),
    torch.optim.Adam: _Kind(
        ("betas", "eps", "amsgrad", "decoupled_weight_decay"),
        {"maximize": _ASCENT},
        _adam,
        _adam_moments,
        memory=_adam_memory,
        is_decoupled=lambda group: bool(group.get("decoupled_weight_decay", False)),
    ),
    torch.optim.NAdam: _Kind(
        ("betas", "eps", "momentum_decay", "decoupled_weight_decay"),
        {"maximize": _ASCENT},
        _nadam,
        _adam_moments,
        memory=_nadam_memory,
        is_decoupled=lambda group: bool(group.get("decoupled_weight_decay", False)),
    ),
    torch.optim.RMSprop: _Kind(
        ("alpha", "eps", "momentum"),
        {"centered": "it divides by a variance, which adamflow does not describe", "maximize": _ASCENT},
        _rmsprop,
        _rmsprop_moments,
        scale=lambda group: 1 / (1 - float(group["momentum"])),
    ),
    torch.optim.SGD: _Kind(
        ("momentum", "dampening"),
        {"nesterov": "adamflow's momentum is the heavy ball's", "maximize": _ASCENT},
        lambda group, learning_rate, weight_decay: sgd(learning_rate, float(group["momentum"])),
        _sgd_moments,
        scale=_sgd_scale,
        counts=False,
    ),
}


def _kind_of(optimizer: Any) -> _Kind:
    for known, kind in _KINDS.items():
        if type(optimizer) is known:
            return kind
    names = ", ".join(known.__name__ for known in _KINDS)
    raise TypeError(
        f"from_torch reads {names}, got {describe(optimizer)}; for another optimizer declare it by AbstractStage and "
        "fill its OptimizerState"
    )


def _named_parameters(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module | None
) -> dict[str, tuple[torch.Tensor, dict[str, Any]]]:
    """By name, each parameter that is trained, and its group."""
    names = {} if model is None else {parameter: name for name, parameter in model.named_parameters()}
    named = {}
    for group in optimizer.param_groups:
        own = group.get("param_names", [None] * len(group["params"]))
        for parameter, own_name in zip(group["params"], own, strict=True):
            if not parameter.requires_grad:
                continue
            name = names.get(parameter, own_name)
            if name is None and model is not None:
                raise ValueError(
                    f"the optimizer has a parameter of shape {tuple(parameter.shape)} that is not one of the model's; "
                    "give the model that it trains"
                )
            name = str(len(named)) if name is None else name
            check_real_and_dense(name, parameter)
            named[name] = (parameter, group)
    if not named:
        raise ValueError("the optimizer has no parameters that require a gradient")
    return named


def _shared_numbers(optimizer: torch.optim.Optimizer, kind: _Kind) -> dict[str, Any]:
    """The first group, or an error where the groups differ in what is one number here, or use what is refused."""
    first = optimizer.param_groups[0]
    for key in kind.shared:
        values = {str(_plain(group.get(key))) for group in optimizer.param_groups}
        if len(values) > 1:
            raise ValueError(
                f"the parameter groups differ in {key}: {', '.join(sorted(values))}; a report needs one, while lr and "
                "weight_decay may differ"
            )
    for group in optimizer.param_groups:
        for key, reason in kind.refused.items():
            if group.get(key):
                raise ValueError(f"{type(optimizer).__name__} with {key}=True is not described: {reason}")
    return first


def _plain(value: Any) -> Any:
    """A hyperparameter as a Python number, or a tuple of them."""
    if isinstance(value, tuple | list):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, torch.Tensor) else value


def _steps(kind: _Kind, states: dict[str, dict[str, Any]], given: int | None) -> tuple[int, list[str]]:
    """The number of steps, and what there is to say of parameters without a state."""
    if not kind.counts:
        if given is None:
            raise ValueError("SGD does not count its steps; give iteration=, the number of steps so far")
        return check_count("iteration", given, low=0), []
    counts = {name: int(state["step"]) for name, state in states.items() if "step" in state}
    if not counts:
        raise ValueError("the optimizer has made no step yet, so it has no state; look at it after optimizer.step()")
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"the parameters have made different numbers of steps, {min(counts.values())} to {max(counts.values())}, "
            "some without gradient at times, but a report is of one iteration"
        )
    absent = [name for name in states if name not in counts]
    note = f"without a state, since they have had no gradient: {', '.join(absent)}"
    return next(iter(counts.values())), [note] if absent else []


def _precision(parameter: torch.Tensor) -> Any:
    return np.float64 if parameter.dtype == torch.float64 else np.float32


def _filled(
    declared: Optimizer, params: dict[str, Any], states: dict[str, Any], moments: Moments, memory: Memory
) -> Any:
    """The state of the declared optimizer with torch's moments; 0 where a parameter has none."""
    state = declared.initial_state(params)
    for index, filters in enumerate(moments):
        for name, (key, factor) in filters.items():
            value = {
                leaf: zero if states[leaf].get(key) is None else factor * _moment(states[leaf][key], zero)
                for leaf, zero in jax.tree.map(jnp.zeros_like, params).items()
            }
            state = declared.with_moment(state, name, value, index)
    memories = [dict(own) for own in state.memory]
    for own, sources in zip(memories, memory, strict=False):
        for name, (key, made) in sources.items():
            own[name] = {
                leaf: zero if states[leaf].get(key) is None else made(_moment(states[leaf][key], zero))
                for leaf, zero in own[name].items()
            }
    return dataclasses.replace(state, memory=tuple(memories))


def _moment(tensor: torch.Tensor, like: Any) -> Any:
    return jnp.asarray(numpy_of(tensor, np.dtype(like.dtype)))
