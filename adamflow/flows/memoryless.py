"""The memoryless flow: filters eliminated, what they do to first order kept as a force on θ."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from adamflow.checks import check_precision
from adamflow.flows.averages import check_no_l2, levels
from adamflow.flows.flow import AbstractFlow, Snapshot, StartLike
from adamflow.losses import as_scalar
from adamflow.optimizers import AbstractStage, Filter, Optimizer, StageInput, check_constant, check_standard, overrides
from adamflow.optimizers.hyperparameters import flag_called
from adamflow.types import Leaf, Loss, Params, Scalar


class MemorylessFlow(AbstractFlow):
    r"""An optimizer of averages as a flow of θ alone, to order 2: what is called the implicit bias of Adam.

    A bias-corrected filter with decay α and input x is x̂ₙ = x − aₙ(α) Dx to first order, where D is the derivative per
    iteration and aₙ the mean age of what it averages. The flow whose steps S are those of the iterates is S − ½ DS. So
    with r(m, v) = m/(√v + ε) or m/√(v + ε), and to lowest order Dθ = −η (λθ + r(g, g²)), Dg = H Dθ, D(g²) = 2 g Dg,

        dθ/dn = −η [λ (θ − ½ Dθ) + r(g, g²) − ∂ₘr · (aₙ(γ) + ½) Dg − ∂ᵥr · (aₙ(β) + ½) D(g²)],
        aₙ(α) = Σₖ k αᵏ (1−α)/(1−αⁿ⁺¹) = α/(1−α) − (n+1) αⁿ⁺¹/(1−αⁿ⁺¹), minus ½ daₙ/dn;   α/(1−α) without the transient.

    At late times, with λ = 0 and P = |g| + ε, this is the flow of [CKS], per unit of t = ηn,

        dθ/dt = −g/P − η (H (g/P))/P · [γ/(1−γ) − β/(1−β) · |g|/P + ½ ε/P],

    whose correction vanishes for β = γ, ε = 0. Every other stage whose filters average functions of the gradient, with
    constant decays, is read the same way: of u(g, x̂₁, x̂₂, …) each filter lags by its own age. For gradient descent
    with momentum that is the gradient of L + (η/4)(1+γ)/(1−γ) ‖∇L‖². A sign has the derivative 0, so that Lion's and
    Signum's memory leaves no force at all. With ε inside the root, P = √(g² + ε), |g|/P becomes g²/P² and ε/P
    becomes ε/P².

    The error against the iterates is O(η²) while no gradient coordinate crosses zero and the lag η/(1−β) is small
    beside |g|/|dg/dt|: a β near 1 breaks it first, and with ε = 0 the correction grows as 1/|g|. A vector field costs a
    gradient and a Hessian-vector product. Where g = 0 and ε = 0, r and its derivatives are 0.

    Args:
        optimizer: a record of one stage, whose filters are averages of functions of the gradient with constant decays:
            Adam, AdamW, RMSprop, sgd, UAdam, Signum, Lion; (β, γ) are (b2, b1) in PyTorch and optax.
        include_transient: whether to use the mean age at iteration n. Otherwise that of n → ∞, which [CKS] call the
            bias of Adam after many iterations; the difference lasts for 1/(1−β) iterations and moves θ by
            O((η/(1−β))²).

    Raises:
        TypeError: if the optimizer has more stages, or another one.
        ValueError: if include_transient is asked for without bias correction: the lag then has no closed form.

    References:
        [CKS] M. D. Cattaneo, J. M. Klusowski and B. Shigida, On the Implicit Bias of Adam, arXiv:2309.00079 (2023).
        The form above, with weight decay and both places of ε, is a derivation of this project.

    Example:
        >>> import adamflow as af, diffrax
        >>> problem, optimizer = af.problems.chain(dimension=4), af.adam(1e-4, beta=0.99)
        >>> discrete = af.iterate(optimizer, problem.loss, problem.params, 100)
        >>> flow = af.MemorylessFlow(optimizer, include_transient=True)
        >>> continuous = af.solve(flow, problem.loss, problem.params, 100, solver=diffrax.Tsit5())
        >>> af.compare(discrete, continuous).max_relative_error < 1e-3
        True
    """

    optimizer: Optimizer
    include_transient: bool = eqx.field(static=True, converter=flag_called("include_transient"), default=False)

    def __check_init__(self):
        check_standard(
            "MemorylessFlow", self.optimizer, "take af.InterpolatingFlow, which needs the discrete step alone"
        )
        check_constant(
            "MemorylessFlow", self.optimizer, "take af.InterpolatingFlow, which needs the discrete step alone"
        )
        stages = self.optimizer.stages
        if len(stages) != 1 or not _can_be_eliminated(stages[0]):
            raise TypeError(
                "MemorylessFlow needs one stage, whose filters average functions of the gradient alone, with constant "
                f"decays, as Adam's do, but {self.optimizer.name!r} has "
                f"{', '.join(type(stage).__name__ for stage in stages)}; use af.InterpolatingFlow instead"
            )
        check_no_l2(self.optimizer, "MemorylessFlow")
        if self.include_transient and not self.optimizer.bias_correction:
            raise ValueError(
                "include_transient=True needs bias correction: without it directions change at once in the first "
                "iterations, and "
                "what filters then lag behind has no closed form; use include_transient=False, or bias_correction=True"
            )

    @property
    def name(self) -> str:
        return f"memoryless flow{', early form' if self.include_transient else ''}"

    @property
    def gradients_per_evaluation(self) -> int:
        return 3

    def initial_state(self, loss: Loss, params: Params, start: StartLike | None = None) -> Params:
        check_precision("params", params)
        return params

    def vector_field(self, time: Scalar, state: Params, loss: Loss) -> Params:
        look = self._look(state, loss, time)
        # The flow lags half an iteration more than the step: θ' = S − ½ (DS + ∂ₙS).
        lags = {name: age + 0.5 - change / 2 for name, (age, change) in self._ages(time).items()}
        direction = self._lagged(look, time, lags, 0.5)
        return self.optimizer.increment(_behind(state, look.velocity, 0.5), direction)

    def params(self, state: Params) -> Params:
        return state

    def snapshot(self, time: Scalar, state: Params, loss: Loss) -> Snapshot:
        """A look at a state; filters are f(g − aₙ Dg), ≥ 0 where f is, times their masses."""
        look = self._look(state, loss, time)
        ages = {name: age for name, (age, _) in self._ages(time).items()}
        direction = self._lagged(look, time, ages, 0.0)
        (stage,), filters = self.optimizer.stages, {}
        for filter in stage.filters():
            weight_sum = filter.weight_sum_at(time) if self.optimizer.bias_correction else 1.0
            inputs = _behind(look.gradient, look.drift, ages[filter.name])
            filters[filter.name] = jax.tree.map(
                lambda leaf, weight_sum=weight_sum, filter=filter: (
                    weight_sum * filter.input(StageInput(leaf), {})
                ).astype(leaf.dtype),
                inputs,
            )
        return Snapshot(time, state, look.gradient, direction, (filters,), loss(state))

    def _look(self, params: Params, loss: Loss, time: Scalar) -> "_Look":
        gradient, product = jax.linearize(jax.grad(as_scalar(loss)), params)
        direction = jax.tree.map(lambda g: self._direction(g, self._inputs(g), time), gradient)
        velocity = self.optimizer.increment(params, direction)
        return _Look(gradient, velocity, product(velocity))

    def _inputs(self, gradient: Leaf) -> dict[str, Leaf]:
        """What each filter averages."""
        filters = self.optimizer.stages[0].filters()
        return {filter.name: filter.input(StageInput(gradient), {}) for filter in filters}

    def _direction(self, gradient: Leaf, averages: dict[str, Leaf], time: Scalar) -> Leaf:
        """What the stage makes of a gradient and of averages."""
        return self.optimizer.stages[0].direction(StageInput(gradient), averages, {}, time, self.optimizer.ratio)

    def _lagged(self, look: "_Look", time: Scalar, lags: dict[str, Scalar], lag: Scalar) -> Params:
        """The direction to first order, where each filter lags behind its input and the gradient by `lag`."""

        def respond(g: Leaf, change: Leaf) -> Leaf:
            inputs, drifts = jax.jvp(self._inputs, (g,), (change,))
            tangents = {name: (-lags[name] * drift).astype(g.dtype) for name, drift in drifts.items()}
            value, correction = jax.jvp(
                lambda g, averages: self._direction(g, averages, time),
                (g, inputs),
                ((-lag * change).astype(g.dtype), tangents),
            )
            return (value + correction).astype(g.dtype)

        return jax.tree.map(respond, look.gradient, look.drift)

    def _ages(self, time: Scalar) -> dict[str, tuple[Scalar, Scalar]]:
        """By filter, the mean age of what it averages at the time n, with its derivative by n."""
        time = jnp.asarray(time, float)

        def age(filter: Filter) -> tuple[Scalar, Scalar]:
            decay = filter.decay_at(time)
            final = decay / (1 - decay)
            if not self.include_transient:
                return final, 0.0

            def at(time: Scalar) -> Scalar:
                weight_sum = filter.weight_sum_at(time)
                return final - (time + 1) * (1 - weight_sum) / weight_sum

            return jax.jvp(at, (time,), (jnp.ones_like(time),))

        return {filter.name: age(filter) for filter in self.optimizer.stages[0].filters()}


def _can_be_eliminated(stage: AbstractStage) -> bool:
    """Whether a stage keeps plain averages of functions of its input, one leaf at a time."""
    if not stage.only_averages or stage.uses_params or overrides(stage, AbstractStage, ("combine",)):
        return False
    filters = stage.filters()
    if any(callable(filter.decay) or filter.weight_sum is not None or filter.initial is not None for filter in filters):
        return False
    return levels((stage,)) <= 1


class _Look(NamedTuple):
    """What a gradient and a Hessian-vector product tell: g, and by iteration Dθ and Dg to lowest order."""

    gradient: Params
    velocity: Params
    drift: Params


def _behind(values: Params, changes: Params, iterations: Scalar) -> Params:
    """x − k Dx: values as they stood some iterations before."""
    return jax.tree.map(lambda x, change: (x - iterations * change).astype(x.dtype), values, changes)
