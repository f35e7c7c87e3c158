"""Which flow and solver fit a problem: a few gradients, and the rule of docs/which-flow.md."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamflow.advice.words import paragraph
from adamflow.analysis.stability import critical_curvature, preconditioned_sharpness
from adamflow.checks import check_params, is_concrete
from adamflow.display import html_table
from adamflow.flows import AbstractFlow, GouldTanakaFlow, InterpolatingFlow, ModifiedFlow, TwoBranchFlow, averages
from adamflow.flows.kinks import has_kinks
from adamflow.losses import as_scalar, check_loss
from adamflow.optimizers import Optimizer, check_constant, check_optimizer
from adamflow.runs import iterate
from adamflow.types import Loss, Params

#: The share of its edge from which on a run is said to be near it.
NEAR_THE_EDGE = 0.9

#: Gradients of the first iterations that are compared for changes of sign.
_LOOKS = 5


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """What `recommend` returns; `print` says it in words.

    Use it as `af.solve(answer.flow, loss, params, steps, **answer.options)`.

    Attributes:
        flow: the flow to take; `None` where no flow follows the iterates, and `af.iterate` is what remains.
        options: arguments for `af.solve`.
        rule: the sentence of the rule that applied.
        parameters: the number of parameters.
        iterations: how many first iterations were looked at.
        sign_changes: the share of coordinates whose gradient changed its sign in them.
        scaled_sharpness: η times the preconditioned sharpness behind them; nan where it is not defined.
        edge: the ηs at which the step turns unstable; nan likewise.
        kinks: whether the loss is seen to have kinks, as relu has.
        second_derivatives: whether the gradient can be differentiated.
        gradients: what the measurement took; a Hessian-vector product counts as two.
    """

    flow: AbstractFlow | None
    options: dict[str, Any]
    rule: str
    parameters: int
    iterations: int
    sign_changes: float
    scaled_sharpness: float
    edge: float
    kinks: bool
    second_derivatives: bool
    gradients: int

    def __str__(self) -> str:
        take = "Take the iterates alone: af.iterate(optimizer, loss, params, steps)"
        if self.flow is not None:
            options = "".join(f", {name}={value!r}" for name, value in self.options.items())
            take = f"Take\n\n    af.solve({_called(self.flow)}, loss, params, steps{options})"
        measured = [
            f"{self.parameters} parameters",
            f"in the first {self.iterations} iterations {self.sign_changes:.0%} of the gradient's coordinates change "
            "their sign",
        ]
        if self.scaled_sharpness == self.scaled_sharpness:
            measured.append(f"behind them ηs = {self.scaled_sharpness:.3g}, with an edge at {self.edge:.4g}")
        return f"{take}\n\n" + paragraph(self.rule, f"Measured: {'; '.join(measured)}.")

    def _repr_html_(self) -> str:
        return html_table("recommendation", [("in words", str(self))])


@dataclasses.dataclass(frozen=True)
class _Measured:
    parameters: int
    iterations: int
    sign_changes: float
    scaled_sharpness: float
    edge: float
    kinks: bool
    second_derivatives: bool
    gradients: int


def recommend(optimizer: Optimizer, loss: Loss, params: Params) -> Recommendation:
    """Which flow and solver to take for this problem, by a few gradients and the rule of docs/which-flow.md.

    The optimizer makes its first 10 to 50 iterations, twice the memory of its fastest filter. Five gradients of them
    say whether coordinates cross zero, some Hessian-vector products where the run stands to its edge of stability. The
    program of the loss is searched for kinks. What comes later in a run is not seen: `explain` tells where a flow and
    the iterates parted.

    Args:
        optimizer: with plain numbers.
        loss: `loss(params)`, deterministic, a real scalar.
        params: θ(0), any pytree of float32 or float64 arrays.

    Returns:
        a `Recommendation`.

    Raises:
        TypeError: `optimizer` is none.
        ValueError: jax is tracing an argument, or loss or gradient is not finite.

    >>> import adamflow as af
    >>> problem = af.problems.chain(dimension=4)
    >>> answer = recommend(af.adam(1e-3), problem.loss, problem.params)
    >>> type(answer.flow).__name__, answer.flow.order, answer.options
    ('ModifiedFlow', 2, {'rtol': 1e-05})
    """
    check_optimizer("recommend", optimizer)
    check_constant(
        "recommend", optimizer, "take optimizer.at(iteration), which has those of one iteration", takes_clipping=True
    )
    check_loss(loss)
    params = check_params(params)
    if not is_concrete(optimizer, params):
        raise ValueError("recommend needs numbers, but jax is tracing the optimizer or params; call it outside of jit")
    measured = _measure(optimizer, loss, params)
    flow, rule = _choose(optimizer, measured)
    single = jnp.result_type(*jax.tree.leaves(params)) == jnp.float32
    options = {} if flow is None else {"rtol": 1e-4 if single else 1e-5}
    return Recommendation(flow, options, rule, **dataclasses.asdict(measured))


def _measure(optimizer: Optimizer, loss: Loss, params: Params) -> _Measured:
    count = averages.transient_iterations(optimizer)
    looks = np.unique(np.linspace(0, count, _LOOKS).round())
    run = iterate(
        optimizer,
        loss,
        params,
        count,
        save_at=looks,
        observe=_gradient,
        on_failure="raise",
    )
    leaves = [np.asarray(leaf).reshape(len(looks), -1) for leaf in jax.tree.leaves(run.observed)]
    signs = np.sign(np.concatenate(leaves, axis=1))
    changes = np.mean((signs.max(axis=0) > 0) & (signs.min(axis=0) < 0))
    differentiable = _has_second_derivatives(loss, params)
    sharpness, edge, products = _sharpness(optimizer, loss, run, count) if differentiable else (np.nan, np.nan, 0)
    return _Measured(
        parameters=signs.shape[1],
        iterations=count,
        sign_changes=float(changes),
        scaled_sharpness=sharpness,
        edge=edge,
        kinks=has_kinks(loss, params),
        second_derivatives=differentiable,
        gradients=int(run.stats.gradient_evaluations) + 2 * products,
    )


def _gradient(snapshot: Any) -> Params:
    return snapshot.gradient


def _has_second_derivatives(loss: Loss, params: Params) -> bool:
    def product(vector: Params) -> Params:
        return jax.jvp(jax.grad(as_scalar(loss)), (vector,), (vector,))[1]

    try:
        jax.eval_shape(product, params)
    except Exception:  # What a loss of the user raises where a derivative is missing is of any kind.
        return False
    return True


def _sharpness(optimizer: Optimizer, loss: Loss, run: Any, count: int) -> tuple[float, float, int]:
    """ηs behind the first iterations, its edge, and the products it took; nan where one is not defined."""
    last, state = run.final_state
    try:
        edge = float(optimizer.learning_rate * critical_curvature(optimizer))
        preconditioner = optimizer.preconditioner(state.filters, count - 1)
        found = preconditioned_sharpness(loss, last, preconditioner, iterations=16)
    except (TypeError, ValueError):
        return float("nan"), float("nan"), 0
    return float(optimizer.learning_rate * found.value), edge, 18


def _choose(optimizer: Optimizer, measured: _Measured) -> tuple[AbstractFlow | None, str]:
    """The flow, and the sentence of the rule that applied."""
    if measured.scaled_sharpness > NEAR_THE_EDGE * measured.edge:
        flow = _made(TwoBranchFlow, optimizer)
        where = f"ηs is at {measured.scaled_sharpness / measured.edge:.0%} of its edge"
        if flow is None:
            return None, f"{where}, where iterates oscillate, and no flow of their mean exists for this optimizer."
        return flow, f"{where}, where iterates oscillate: this flow is of their mean, with the amplitude beside it."
    if any(stage.takes_signs for stage in optimizer.stages):
        flow = _made(GouldTanakaFlow, optimizer, rate="exact")
        return flow or InterpolatingFlow(optimizer, order=1), "The direction jumps, so flows of order 2 do not exist."
    if measured.kinks:
        flow = _made(ModifiedFlow, optimizer, order=1) or InterpolatingFlow(optimizer, order=1)
        return flow, "The loss has kinks, where flows of order 2 take derivatives that jump: order 1."
    flow = _made(ModifiedFlow, optimizer, order=2)
    if flow is not None and measured.second_derivatives:
        return flow, "Moving averages with constant decays and a smooth loss: the modified flow of order 2."
    why = (
        "The loss has no second derivatives"
        if flow is not None
        else "The optimizer is not made of moving averages with constant decays alone"
    )
    return InterpolatingFlow(optimizer, order=2), f"{why}: order 2 by differences of discrete steps."


def _made(kind: Any, optimizer: Optimizer, **options: Any) -> Any:
    """A flow of this kind, or `None` if the optimizer has none."""
    try:
        return kind(optimizer, **options)
    except (TypeError, ValueError):
        return None


def _called(flow: AbstractFlow) -> str:
    """The call that makes a flow, as a user would write it."""
    order = getattr(flow, "order", None)
    rate = getattr(flow, "rate", None)
    options = "".join(f", {name}={value!r}" for name, value in (("order", order), ("rate", rate)) if value is not None)
    return f"af.{type(flow).__name__}(optimizer{options})"
