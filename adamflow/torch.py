"""k-Adam for PyTorch: `KAdam` takes the place of `torch.optim.AdamW`. Needs the extra `torch`.

Importing adamflow does not import PyTorch; importing this module does.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

try:
    import torch
except ImportError as error:
    raise ImportError("adamflow.torch needs PyTorch, which is missing; pip install 'adamflow[torch]'") from error

from adamflow.checks import check_choice, check_count, check_range
from adamflow.optimizers.kadam import STRATEGIES, stage_weights


class KAdam(torch.optim.Optimizer):
    """k-Adam [GT]: k normalizations in a row; k = 1 is `torch.optim.AdamW`.

    With u⁰ₙ the gradient and stage i = 1 … k fed with uⁱ⁻¹ₙ,

        mⁱₙ = γᵢ mⁱₙ₋₁ + (1−γᵢ) uⁱ⁻¹ₙ,   vⁱₙ = βᵢ vⁱₙ₋₁ + (1−βᵢ) (uⁱ⁻¹ₙ)²,
        uⁱₙ = [mⁱₙ/(1−γᵢⁿ⁺¹)] / (√[vⁱₙ/(1−βᵢⁿ⁺¹)] + ε),   θₙ₊₁ = θₙ − η (λ θₙ + uᵏₙ).

    The same numbers as `adamflow.kadam`, whose strategies share the two decays among the stages. Names and order of the
    arguments are those of `torch.optim.AdamW`, so that schedulers and parameter groups work unchanged; all can differ
    from one parameter group to the next, k and strategy too. Each parameter costs 2k tensors of memory.

    Args:
        params: parameters, named parameters, or dicts that each describe a group.
        lr: learning rate η > 0. A number of 0 is allowed, since schedulers start there.
        betas: the decays (γ, β) of the first and the second moment before they are shared, γ in [0, 1), β in (0, 1).
            [GT] and adamflow name them the other way around: `betas=(gamma, beta)`.
        eps: ε ≥ 0, added to each root, in every stage. At 0 a ratio with v = 0 is 0.
        weight_decay: λ ≥ 0, decoupled, applied once. The default is 0, that of `torch.optim.AdamW` is .01.
        k: number of stages, at least 1.
        strategy: "naive", "uniform", "exponential" or "inverse_exponential".
        maximize: whether to ascend.

    Raises:
        ValueError: a number out of its range, in any group, or an unknown strategy.
        RuntimeError: in `step`, a gradient is sparse, or a parameter complex.

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
        params: Iterable[Any],
        lr: Any = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        k: int = 2,
        strategy: str = "inverse_exponential",
        maximize: bool = False,
    ) -> None:
        defaults = dict(
            lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, k=k, strategy=strategy, maximize=maximize
        )
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, after the check of its numbers, the defaults among them; called by torch for every group."""
        if isinstance(param_group, dict):
            _check(self.defaults | param_group)
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
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
                self._move(params, group)
        return loss

    def _move(self, params: list[torch.Tensor], group: dict[str, Any]) -> None:
        """One iteration of parameters of one kind."""
        stages = stage_decays(group["k"], group["betas"], group["strategy"])
        states = [self._state_of(param, len(stages)) for param in params]
        for state in states:
            state["step"] += 1
        counts = [state["step"].item() for state in states]
        signal: Any = [param.grad for param in params]
        if group["maximize"]:
            signal = torch._foreach_neg(signal)
        for stage, decays in enumerate(stages, 1):
            firsts, seconds = ([state[f"{name}_{stage}"] for state in states] for name in ("exp_avg", "exp_avg_sq"))
            signal = _direction(signal, firsts, seconds, counts, decays, group["eps"])
        lr = float(group["lr"])
        if group["weight_decay"] != 0:
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_add_(params, signal, alpha=-lr)

    def _state_of(self, param: torch.Tensor, k: int) -> dict[str, Any]:
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
            for stage in range(1, k + 1):
                for name in ("exp_avg", "exp_avg_sq"):
                    state[f"{name}_{stage}"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        return state


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
    """Raise `ValueError` where a number of a group lies outside of its range."""
    check_range("lr", float(group["lr"]), 0.0, float("inf"), high_open=True, hint="the step is θ − lr (λ θ + u)")
    if len(group["betas"]) != 2:
        raise ValueError(f"betas must be a pair, the decays of the first and second moment, got {group['betas']!r}")
    hint = "betas holds the decays of the first and of the second moment"
    check_range("betas[0]", group["betas"][0], 0.0, 1.0, high_open=True, hint=hint)
    check_range("betas[1]", group["betas"][1], 0.0, 1.0, low_open=True, high_open=True, hint=hint)
    check_range("eps", group["eps"], 0.0, float("inf"), high_open=True)
    check_range("weight_decay", group["weight_decay"], 0.0, float("inf"), high_open=True)
    check_count("k", group["k"])
    check_choice("strategy", group["strategy"], STRATEGIES)


def _direction(
    signal: Any, firsts: list[torch.Tensor], seconds: list[torch.Tensor], counts: list[float], decays: Any, eps: float
) -> Any:
    """Feed the signals of all parameters through one stage, whose moments change in place; its directions."""
    gamma, beta = decays
    torch._foreach_lerp_(firsts, signal, 1 - gamma)
    torch._foreach_mul_(seconds, beta)
    torch._foreach_addcmul_(seconds, signal, signal, 1 - beta)
    denominators = torch._foreach_sqrt(seconds)
    torch._foreach_div_(denominators, [math.sqrt(1 - beta**count) for count in counts])
    if eps > 0:
        torch._foreach_add_(denominators, eps)
    else:
        for denominator in denominators:
            denominator.masked_fill_(denominator == 0, math.inf)
    directions = torch._foreach_div(firsts, [1 - gamma**count for count in counts])
    torch._foreach_div_(directions, denominators)
    return directions
