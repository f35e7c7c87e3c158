"""k-Adam for PyTorch: `KAdam` takes the place of `torch.optim.AdamW`. Needs the extra `torch`.

Importing adamflow does not import PyTorch; importing this module does.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

try:
    import torch
except ImportError as error:
    raise ImportError("adamflow.torch needs PyTorch, which is missing; pip install 'adamflow[torch]'") from error

from adamflow.checks import check_choice, check_count, check_range
from adamflow.optimizers.kadam import STRATEGIES, stage_weights

Result = TypeVar("Result")


class KAdam(torch.optim.Optimizer):
    """k-Adam [GT]: k normalizations in a row; k = 1 is `torch.optim.AdamW`.

    With u⁰ₙ the gradient and stage i = 1 … k fed with uⁱ⁻¹ₙ,

        mⁱₙ = γᵢ mⁱₙ₋₁ + (1−γᵢ) uⁱ⁻¹ₙ,   vⁱₙ = βᵢ vⁱₙ₋₁ + (1−βᵢ) (uⁱ⁻¹ₙ)²,
        uⁱₙ = [mⁱₙ/(1−γᵢⁿ⁺¹)] / (√[vⁱₙ/(1−βᵢⁿ⁺¹)] + ε),   θₙ₊₁ = θₙ − η (λ θₙ + uᵏₙ).

    The same numbers as `adamflow.kadam`, whose strategies share the two decays among the stages. Names and order of the
    arguments are those of `torch.optim.AdamW`, so that schedulers and parameter groups work unchanged; all can differ
    from one parameter group to the next, k and strategy too. Each parameter costs 2k tensors of memory, with amsgrad
    3k. With k = 1 the names in the state are AdamW's too: `load_state_dict` of either takes the `state_dict` of the
    other, and continues its run. k and amsgrad cannot change once a parameter has a state.

    Args:
        params: parameters, named parameters, or dicts that each describe a group.
        lr: learning rate η > 0, a number or a tensor with one entry. 0 is allowed, since schedulers start there.
        betas: the decays (γ, β) of the first and the second moment before they are shared, γ in [0, 1), β in (0, 1),
            numbers or tensors with one entry. [GT] and adamflow name them the other way around: `betas=(gamma, beta)`.
        eps: ε ≥ 0, added to each root, in every stage. At 0 a ratio with v = 0 is 0.
        weight_decay: λ ≥ 0, decoupled, applied once. The default is 0, that of `torch.optim.AdamW` is .01.
        amsgrad: whether each stage divides by the root of the largest v so far, uncorrected, as in AdamW.
        k: number of stages, at least 1.
        strategy: "naive", "uniform", "exponential" or "inverse_exponential".
        maximize: whether to ascend.
        foreach: whether all parameters of a kind move in one call; `None` for yes. `False` needs less memory at a time.
        capturable, differentiable, fused: as in AdamW, but only `False` (or `None`): there is no kernel for CUDA
            graphs, no derivative through a step, and no fused kernel.

    Raises:
        ValueError: a number out of its range, in any group, an unknown strategy, or an argument that is not supported.
        RuntimeError: in `step`, a gradient is sparse, a parameter complex, or a group's k or amsgrad is not that of the
            state.

    Source: [GT] = R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization,
    arXiv:2411.05746, for k-Adam; the formulas of the strategies are this project's reading of it.

    Example:
        >>> import torch
        >>> from adamflow.torch import KAdam
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
        >>> optimizer = KAdam([weight], lr=0.1, k=2)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> [round(x, 3) for x in weight.tolist()]
        [2.9, -1.9]
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, torch.Tensor]],
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float | torch.Tensor, float | torch.Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        k: int = 2,
        strategy: str = "inverse_exponential",
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        numbers = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, k=k, strategy=strategy)
        flags = dict(foreach=foreach, capturable=capturable, differentiable=differentiable, fused=fused)
        # The last one tells AdamW's state from Adam's, in torch as here.
        super().__init__(params, numbers | flags | dict(maximize=maximize, decoupled_weight_decay=True))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, after the check of its numbers, the defaults among them; called by torch for every group."""
        if isinstance(param_group, dict):
            _check(self.defaults | param_group)
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the run of another `KAdam`, or with k = 1 that of a `torch.optim.AdamW`.

        Args:
            state_dict: what `state_dict()` of the other returned. Its hyperparameters replace those of the groups here;
                k, strategy, and what only says how AdamW computes, stay where the other is no `KAdam`.

        Raises:
            ValueError: the state is of another optimizer, of another number of stages than its k, or of `Adam` with a
                weight decay, which is not decoupled there.
        """
        super().load_state_dict(_in_own_form(state_dict, self.param_groups))

    @torch.no_grad()
    def step(self, closure: Callable[[], Result] | None = None) -> Result | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move all parameters that have a gradient by one iteration.

        Args:
            closure: evaluates the model again, calls `backward`, and returns the loss.

        Returns:
            what the closure returned, or `None`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            # The fused kernels want tensors of one kind.
            kinds = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    kinds[param.device, param.dtype].append(param)
            for params in kinds.values():
                for together in [[param] for param in params] if group["foreach"] is False else [params]:
                    self._move(together, group)
        return loss

    def _move(self, params: list[torch.Tensor], group: dict[str, Any]) -> None:
        """One iteration of parameters of one kind."""
        gamma, beta = group["betas"]
        stages = stage_decays(group["k"], (float(gamma), float(beta)), group["strategy"])
        names = state_names(len(stages), group["amsgrad"])
        states = [self._state_of(param, names, group) for param in params]
        for state in states:
            state["step"] += 1
        counts = [state["step"].item() for state in states]
        signal: Any = [param.grad for param in params]
        if group["maximize"]:
            signal = torch._foreach_neg(signal)
        for in_stage, decays in zip(names, stages, strict=True):
            moments = [[state[name] for state in states] for name in in_stage]
            signal = _direction(signal, moments, counts, decays, float(group["eps"]))
        lr = float(group["lr"])
        weight_decay = float(group["weight_decay"])
        if weight_decay != 0:
            torch._foreach_mul_(params, 1 - lr * weight_decay)
        torch._foreach_add_(params, signal, alpha=-lr)

    def _state_of(self, param: torch.Tensor, names: list[tuple[str, ...]], group: dict[str, Any]) -> dict[str, Any]:
        """The state of a parameter with a gradient, made at its first iteration."""
        gradient = param.grad
        if gradient is not None and gradient.layout != torch.strided:
            raise RuntimeError(
                f"KAdam needs dense gradients, got one of layout {gradient.layout} for a parameter of shape "
                f"{tuple(param.shape)}; for an embedding set sparse=False"
            )
        if param.is_complex():
            raise RuntimeError(
                f"KAdam needs real parameters, got {param.dtype} of shape {tuple(param.shape)}; "
                "keep torch.view_as_real of it as the parameter"
            )
        state = self.state[param]
        if not state:
            # A tensor, as in torch.optim: so it is saved and loaded without a cast to the parameter's type.
            state["step"] = torch.zeros(())
            for name in itertools.chain(*names):
                state[name] = torch.zeros_like(param, memory_format=torch.preserve_format)
        elif f"exp_avg_{len(names) + 1}" in state or not state.keys() >= set(itertools.chain(*names)):
            raise RuntimeError(
                f"a group has k={group['k']} and amsgrad={group['amsgrad']}, but the state of its parameter of shape "
                f"{tuple(param.shape)} holds {', '.join(map(str, state))}; neither can change within a run: make a new "
                "KAdam"
            )
        return state


def state_names(k: int, amsgrad: bool = False) -> list[tuple[str, ...]]:
    """The names of the moments in the state of a parameter, by stage; with one stage those of `torch.optim.AdamW`.

    Example:
        >>> from adamflow.torch import state_names
        >>> state_names(1, amsgrad=True)
        [('exp_avg', 'exp_avg_sq', 'max_exp_avg_sq')]
        >>> state_names(2)
        [('exp_avg_1', 'exp_avg_sq_1'), ('exp_avg_2', 'exp_avg_sq_2')]
    """
    moments = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: 3 if amsgrad else 2]
    endings = [""] if k == 1 else [f"_{stage}" for stage in range(1, k + 1)]
    return [tuple(moment + ending for moment in moments) for ending in endings]


def stage_decays(k: int, betas: tuple[float, float], strategy: str) -> list[tuple[float, float]]:
    """The decays (γᵢ, βᵢ) of the stages i = 1 … k, from 1−αᵢ = (1−α)^{wᵢ} with the weights of a strategy.

    Example:
        >>> from adamflow.torch import stage_decays
        >>> [[round(decay, 3) for decay in pair] for pair in stage_decays(2, (0.9, 0.999), "uniform")]
        [[0.684, 0.968], [0.684, 0.968]]
    """

    def share(decay: float, weight: float) -> float:
        return decay if weight == 1 else -math.expm1(weight * math.log1p(-decay))

    gamma, beta = betas
    return [(share(gamma, weight), share(beta, weight)) for weight in stage_weights(k, strategy).tolist()]


def _check(group: dict[str, Any]) -> None:
    """Raise `ValueError` where a number of a group lies outside of its range, or an argument is not supported."""
    _check_number("lr", group["lr"], hint="the step is θ − lr (λ θ + u)")
    if not isinstance(group["betas"], tuple | list) or len(group["betas"]) != 2:
        raise ValueError(f"betas must be a pair, the decays of the first and second moment, got {group['betas']!r}")
    hint = "betas holds the decays of the first and of the second moment"
    _check_number("betas[0]", group["betas"][0], 1.0, hint=hint)
    _check_number("betas[1]", group["betas"][1], 1.0, low_open=True, hint=hint)
    _check_number("eps", group["eps"])
    _check_number("weight_decay", group["weight_decay"])
    check_count("k", group["k"])
    check_choice("strategy", group["strategy"], STRATEGIES)
    for name in ("amsgrad", "maximize"):
        if not isinstance(group[name], bool):
            raise ValueError(f"{name} must be True or False, got {group[name]!r}")
    if group["foreach"] not in (None, True, False):
        raise ValueError(f"foreach must be True, False or None, got {group['foreach']!r}")
    reasons = {
        "capturable": "a step reads its count of iterations, which a CUDA graph cannot",
        "differentiable": "a step changes parameters in place",
        "fused": "there is no fused kernel of k stages, and foreach is used",
    }
    for name, reason in reasons.items():
        if group[name] not in (None, False):
            raise ValueError(f"{name} must be False, got {group[name]!r}: {reason}; leave it out")
    if group["decoupled_weight_decay"] is not True:
        raise ValueError("decoupled_weight_decay must be True: KAdam decays weights as AdamW does; leave it out")


def _check_number(name: str, value: Any, high: float = math.inf, *, low_open: bool = False, hint: str = "") -> None:
    """Raise `ValueError` unless the value is one real number, perhaps in a tensor, from 0 to below `high`."""
    if isinstance(value, torch.Tensor):
        if value.numel() != 1 or value.is_complex() or value.dtype == torch.bool:
            raise ValueError(
                f"{name} must be one real number, got a tensor of shape {tuple(value.shape)} and {value.dtype}"
            )
        value = value.item()
    try:
        number = None if isinstance(value, bool | str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None:
        raise ValueError(f"{name} must be one real number, got {value!r}")
    check_range(name, number, 0.0, high, low_open=low_open, high_open=True, hint=hint)


def _in_own_form(state_dict: dict[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """A state as `KAdam` keeps it, from one of another `KAdam` or of AdamW."""
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
        raise ValueError("state_dict must be what state_dict() of an optimizer returned, a dict of state and groups")
    saved_groups, states = [], dict(state_dict["state"])
    # torch itself tells of another number of groups or parameters.
    for saved, own in zip(state_dict["param_groups"], groups, strict=False):
        foreign = "k" not in saved
        how = ("k", "strategy", "foreach", "capturable", "differentiable", "fused") if foreign else ()
        group = own | saved | {name: own[name] for name in how}
        group["params"] = saved["params"]
        if group["decoupled_weight_decay"] is False and group["weight_decay"] == 0:
            group["decoupled_weight_decay"] = True
        if foreign and "betas" not in saved:
            raise ValueError("state_dict must be of KAdam or AdamW, but its groups have no betas")
        _check(group)
        saved_groups.append(group)
        for place in saved["params"]:
            if states.get(place):
                states[place] = _state_in_own_form(states[place], group, foreign)
    rest = state_dict["param_groups"][len(saved_groups) :]
    return {**state_dict, "state": states, "param_groups": saved_groups + rest}


def _state_in_own_form(state: dict[str, Any], group: dict[str, Any], foreign: bool) -> dict[str, Any]:
    """The state of one parameter under the names of `state_names`."""
    if foreign and group["k"] != 1:
        raise ValueError(f"state_dict has the moments of one stage, but this KAdam has k={group['k']}; give it k=1")
    if group["k"] == 1:
        # The names of k stages with k = 1, as an earlier version had them.
        state = {name.removesuffix("_1"): value for name, value in state.items()}
    expected = {"step", *itertools.chain(*state_names(group["k"], group["amsgrad"]))}
    if not state.keys() >= expected or any(name.startswith(("mu_", "exp_inf")) for name in state):
        raise ValueError(
            f"state_dict must hold {', '.join(sorted(expected))} for a group with k={group['k']} and "
            f"amsgrad={group['amsgrad']}, got {', '.join(sorted(state))}"
        )
    step = state["step"]
    return state | {"step": step if isinstance(step, torch.Tensor) else torch.tensor(float(step))}


def _direction(
    signal: Any, moments: list[list[torch.Tensor]], counts: list[float], decays: tuple[float, float], eps: float
) -> Any:
    """Feed the signals of all parameters through one stage, whose moments change in place; its directions."""
    gamma, beta = decays
    firsts, seconds, *largest = moments
    torch._foreach_lerp_(firsts, signal, 1 - gamma)
    torch._foreach_mul_(seconds, beta)
    torch._foreach_addcmul_(seconds, signal, signal, 1 - beta)
    for maxima in largest:
        torch._foreach_maximum_(maxima, seconds)
    denominators = torch._foreach_sqrt(largest[0] if largest else seconds)
    torch._foreach_div_(denominators, [math.sqrt(1 - beta**count) for count in counts])
    if eps > 0:
        torch._foreach_add_(denominators, eps)
    else:
        for denominator in denominators:
            denominator.masked_fill_(denominator == 0, math.inf)
    directions = torch._foreach_div(firsts, [1 - gamma**count for count in counts])
    torch._foreach_div_(directions, denominators)
    return directions
