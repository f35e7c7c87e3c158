"""The memoryless flow of Adam: its filters eliminated, what they do to first order kept as a force on θ."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from adamflow.checks import check_precision
from adamflow.flows.flow import AbstractFlow, Snapshot, Start
from adamflow.losses import as_scalar
from adamflow.optimizers import AdamStage, Optimizer, RMSpropStage, check_standard
from adamflow.optimizers.hyperparameters import flag_called
from adamflow.types import Leaf, Loss, Params, Scalar


class MemorylessFlow(AbstractFlow):
    r"""Adam, AdamW or RMSprop as a flow of θ alone, to order 2: what is called the implicit bias of Adam.

    A bias-corrected filter with decay α and input x is x̂ₙ = x − aₙ(α) Dx to first order, where D is the derivative per
    iteration and aₙ the mean age of what it averages. The flow whose steps S are those of the iterates is S − ½ DS. So
    with r(m, v) = m/(√v + ε) or m/√(v + ε), and to lowest order Dθ = −η (λθ + r(g, g²)), Dg = H Dθ, D(g²) = 2 g Dg,

        dθ/dn = −η [λ (θ − ½ Dθ) + r(g, g²) − ∂ₘr · (aₙ(γ) + ½) Dg − ∂ᵥr · (aₙ(β) + ½) D(g²)],
        aₙ(α) = Σₖ k αᵏ (1−α)/(1−αⁿ⁺¹) = α/(1−α) − (n+1) αⁿ⁺¹/(1−αⁿ⁺¹), minus ½ daₙ/dn;   α/(1−α) without the transient.

    At late times, with λ = 0 and P = |g| + ε, this is the flow of [CKS], per unit of t = ηn,

        dθ/dt = −g/P − η (H (g/P))/P · [γ/(1−γ) − β/(1−β) · |g|/P + ½ ε/P],

    whose correction vanishes for β = γ, ε = 0. With ε inside the root, P = √(g² + ε), |g|/P becomes g²/P² and ε/P
    becomes ε/P².

    The error against the iterates is O(η²) while no gradient coordinate crosses zero and the lag η/(1−β) is small
    beside |g|/|dg/dt|: a β near 1 breaks it first, and with ε = 0 the correction grows as 1/|g|. A vector field costs a
    gradient and a Hessian-vector product. Where g = 0 and ε = 0, r and its derivatives are 0.

    Args:
        optimizer: a record of one stage, that of Adam, AdamW or RMSprop; (β, γ) are (b2, b1) in PyTorch and optax.
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
        kinds = [type(stage) for stage in self.optimizer.stages]
        if kinds not in ([AdamStage], [RMSpropStage]):
            raise TypeError(
                "MemorylessFlow needs one stage, of Adam or RMSprop, whose filters it can eliminate, but "
                f"{self.optimizer.name!r} has {', '.join(kind.__name__ for kind in kinds)}; "
                "use af.InterpolatingFlow instead"
            )
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

    def initial_state(self, loss: Loss, params: Params, start: Start | None = None) -> Params:
        check_precision("params", params)
        return params

    def vector_field(self, time: Scalar, state: Params, loss: Loss) -> Params:
        look = self._look(state, loss)
        # The flow lags half an iteration more than the step: θ' = S − ½ (DS + ∂ₙS).
        lags = [age + 0.5 - change / 2 for age, change in self._ages(time)]
        direction = self._lagged(look, *lags)
        return self.optimizer.increment(_behind(state, look.velocity, 0.5), direction)

    def params(self, state: Params) -> Params:
        return state

    def snapshot(self, time: Scalar, state: Params, loss: Loss) -> Snapshot:
        """A look at a state; filters are g − aₙ(γ) Dg and (g − aₙ(β) Dg)², ≥ 0 as v must be, times their masses."""
        look = self._look(state, loss)
        ages = [age for age, _ in self._ages(time)]
        direction = self._lagged(look, *ages)
        (stage,), filters = self.optimizer.stages, {}
        for filter in stage.filters():
            weight_sum = filter.weight_sum_at(time) if self.optimizer.bias_correction else 1.0
            inputs = _behind(look.gradient, look.drift, ages[1] if filter.nonnegative else ages[0])
            filters[filter.name] = jax.tree.map(
                lambda leaf, weight_sum=weight_sum, square=filter.nonnegative: (
                    weight_sum * leaf ** (2 if square else 1)
                ).astype(leaf.dtype),
                inputs,
            )
        return Snapshot(time, state, look.gradient, direction, (filters,), loss(state))

    def _look(self, params: Params, loss: Loss) -> "_Look":
        gradient, product = jax.linearize(jax.grad(as_scalar(loss)), params)
        direction = jax.tree.map(lambda g: self.optimizer.ratio(g, g * g), gradient)
        velocity = self.optimizer.increment(params, direction)
        return _Look(gradient, velocity, product(velocity))

    def _lagged(self, look: "_Look", first: Scalar, second: Scalar) -> Params:
        """r(m, v) to first order about (g, g²), where m lags behind g by `first` iterations and v by `second`."""

        def respond(g: Leaf, change: Leaf) -> Leaf:
            tangents = ((-first * change).astype(g.dtype), (-second * 2 * g * change).astype(g.dtype))
            value, correction = jax.jvp(self.optimizer.ratio, (g, g * g), tangents)
            return (value + correction).astype(g.dtype)

        return jax.tree.map(respond, look.gradient, look.drift)

    def _ages(self, time: Scalar) -> list[tuple[Scalar, Scalar]]:
        """The mean ages of the first and the second moment at the time n, with their derivatives by n."""
        filters = {filter.name: filter for filter in self.optimizer.stages[0].filters()}
        time = jnp.asarray(time, float)

        def age(name: str) -> tuple[Scalar, Scalar]:
            if name not in filters:
                return 0.0, 0.0
            decay = filters[name].decay_at(time)
            final = decay / (1 - decay)
            if not self.include_transient:
                return final, 0.0

            def at(time: Scalar) -> Scalar:
                weight_sum = filters[name].weight_sum_at(time)
                return final - (time + 1) * (1 - weight_sum) / weight_sum

            return jax.jvp(at, (time,), (jnp.ones_like(time),))

        return [age("first_moment"), age("second_moment")]


class _Look(NamedTuple):
    """What a gradient and a Hessian-vector product tell: g, and by iteration Dθ and Dg to lowest order."""

    gradient: Params
    velocity: Params
    drift: Params


def _behind(values: Params, changes: Params, iterations: Scalar) -> Params:
    """x − k Dx: values as they stood some iterations before."""
    return jax.tree.map(lambda x, change: (x - iterations * change).astype(x.dtype), values, changes)
