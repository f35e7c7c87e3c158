"""The modified flow: continuous time that follows the iterates of an optimizer made of averages to any order."""

import functools
import math
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from adamflow.flows import averages
from adamflow.flows.averages import AbstractAveragesFlow, FlowState
from adamflow.flows.flow import StartLike
from adamflow.flows.kinks import has_kinks
from adamflow.losses import as_scalar
from adamflow.optimizers import Optimizer, check_optimizer
from adamflow.optimizers.hyperparameters import count_called
from adamflow.types import Filters, Loss, Params, Scalar

#: Terms of Bernoulli's series at −ln α < 1: each is smaller than the one before by 1/2π.
_TERMS = 40


class ModifiedFlow(AbstractAveragesFlow):
    r"""The flow that follows the iterates of an optimizer made of averages to order p in η, θ and filters alike.

    A sequence that is sampled from a smooth function of n moves by $e^D - 1$ in an iteration, $D = d/dn$. Solved for D,
    the step $\theta_{n+1} - \theta_n = -\eta(\lambda\theta_n + u_n)$ and the filter
    $\bar x_n = \alpha\bar x_{n-1} + (1-\alpha) x_n$ become

    $$\theta' = -\eta \sum_{j<p} \frac{B_j}{j!} D^j (\lambda\theta + u), \qquad
      \bar x' = A \Big(\sum_{j<p} c_j(\alpha) D^j x - \bar x\Big), \quad A = -\ln\alpha,$$

    with Bernoulli's numbers $B_j/j! = 1, -\tfrac12, \tfrac1{12}, 0, \dots$ and
    $\sum_j c_j y^j = (1 + y/A)(1-\alpha)/(1-\alpha e^{-y})$. At n = 0 the first gradient has been consumed, and bias
    correction divides by $1-\alpha^{n+1}$, as in `GouldTanakaFlow`, which with order 1 and the exact rate is this flow
    for p = 1. The error against the iterates at fixed ηn is $O(\eta^p)$ once filters have settled, for smooth losses,
    while no coordinate of the gradient crosses zero. Where one does, order 1 remains if ε = 0, and at most 3 if ε
    stands outside the root; with ε inside nothing is lost.

    What is fast in n is only as exact as the truncated series at its rate A: a part $\alpha^n$ of u is integrated with
    a relative error of about $A^p B_p/p!$, whatever η. With bias correction such parts are of size η and die out in
    the first 1/A iterations: from n = 0 a small error of order 2 remains beside $O(\eta^p)$, 1e-10 at p = 4, γ = .9,
    η = .01. Without it, or where a filter starts far from its input (AdaBelief), they are of size 1, and a small error
    of order 1 remains. `start=` of `af.solve` leaves the first iterations to the optimizer. For p ≥ 2 it does so by
    default where a coordinate of the gradient changes its sign in them, beside which v is still small and the flow
    rough.

    $D^j$ is the derivative along this flow itself. The equations of order p need it from those of order p − 1 alone,
    so it is found from p passes, each of which differentiates the gradient once along a Taylor polynomial of the path
    by nested forward mode. Its program grows by a factor of 3 with each order, and so does compilation; XLA merges
    most of what it repeats: an evaluation takes the time of some 1, 2, 5, 10, 21 gradients for p = 1, …, 5 on a
    perceptron, and 1, 2.3, 8, 14 for p ≤ 4 on a small transformer (`make bench`). In operations, the 4th derivative of
    the gradient costs 8 gradients nested and 11 in jax's Taylor mode on a perceptron, 22 and 18 on a transformer.

    Args:
        optimizer: a record whose memory consists of averages alone, with constant decays (Adam, AdamW, RMSprop, sign
            descent, k-Adam, AdaBelief), ε inside or outside, with or without bias correction.
        order: p ≥ 1. Order 3 compiles long, order 5 for minutes, and rounding soon limits what is gained.

    Raises:
        ValueError: if order is no whole number of at least 1, or a decay is 0.
        TypeError: if a stage keeps memory that is no average, asks for differences of its input, or has decays that
            depend on the iteration.

    Warns:
        UserWarning: if order > 4; and if order > 1 and the loss has kinks, as far as its program shows them: relu,
            clip, elu.

    Source: derivation of this project, step by step in docs/modified-flows.md.

    Example:
        >>> import adamflow as af, diffrax
        >>> problem, optimizer = af.problems.quadratic([0.5, 1.0], start=[3.0, 4.0]), af.adam(0.01)
        >>> discrete = af.iterate(optimizer, problem.loss, problem.params, 100)
        >>> for flow in (af.GouldTanakaFlow(optimizer), af.ModifiedFlow(optimizer, order=2)):
        ...     continuous = af.solve(flow, problem.loss, problem.params, 100, solver=diffrax.Tsit5())
        ...     print(float(abs(continuous.params - discrete.params).max()) < 1e-4)
        False
        True
    """

    optimizer: Optimizer
    order: int = eqx.field(static=True, converter=count_called("order"), default=2)

    def __check_init__(self):
        check_optimizer("ModifiedFlow", self.optimizer)
        averages.check_averages(self.optimizer, "ModifiedFlow")
        for stage in self.optimizer.stages:
            if any(callable(filter.decay) for filter in stage.filters()):
                raise TypeError(
                    f"ModifiedFlow needs constant decays, but one of {type(stage).__name__} depends on the iteration; "
                    "take af.InterpolatingFlow, which needs the discrete step alone"
                )

    @property
    def name(self) -> str:
        return f"modified flow of order {self.order}"

    @property
    def gradients_per_evaluation(self) -> int:
        # Pass s differentiates the gradient s − 1 times.
        return 1 + self.order * (self.order - 1)

    @property
    def transient_iterations(self) -> int:
        return averages.transient_iterations(self.optimizer) if self.order > 1 else 0

    def initial_state(self, loss: Loss, params: Params, start: StartLike | None = None) -> FlowState:
        if self.order > 4:
            warnings.warn(
                f"{self.name} may compile for many minutes, since its program grows by a factor of 3 with each order; "
                f"take order=4 at most, or InterpolatingFlow(order={self.order}), which needs no derivatives",
                stacklevel=2,
            )
        if self.order > 1 and has_kinks(loss, params):
            warnings.warn(
                f"{self.name} differentiates the loss {self.order + 1} times, but the loss takes the larger of numbers "
                "or compares them, as relu and clip do. Where it has kinks the flow is of order 1; take a smooth "
                f"activation such as tanh, gelu or softplus, or order=1, at 1 gradient instead of "
                f"{self.gradients_per_evaluation}",
                stacklevel=2,
            )
        return averages.initial_state(self.optimizer, loss, params, start)[0]

    def vector_field(self, time: Scalar, state: FlowState, loss: Loss) -> FlowState:
        path = _Path([state.params], [averages.clipped(self.optimizer, state.filters)])
        for order in range(1, self.order + 1):
            path = self._refine(path, time, loss, order)
        return FlowState(path.params[1], None, path.filters[1])

    def _refine(self, path: "_Path", time: Scalar, loss: Loss, order: int) -> "_Path":
        """The derivatives up to `order` of the solution through a state, from those of one order less."""
        dtype = jnp.result_type(*jax.tree.leaves(path.params[0]))
        gradients = derivatives(lambda x: jax.grad(as_scalar(loss))(taylor(path.params, x)), order - 1, dtype)
        filters = path.filters

        def read(x: Any) -> tuple[Params, Filters]:
            params = taylor(path.params, x)
            direction, targets = self.optimizer.direction_and_targets(
                taylor(gradients, x), taylor(filters, x), time + x, params
            )
            return self.optimizer.at(time + x).increment(params, direction), targets

        readings = derivatives(read, order - 1, dtype)
        for _ in range(averages.levels(self.optimizer.stages) if order > 1 else 0):
            filters = self._filters(path.filters[0], [targets for _, targets in readings])
            readings = derivatives(read, order - 1, dtype)
        steps, targets = ([reading[i] for reading in readings] for i in (0, 1))
        weights = step_coefficients(order)
        params = [combine(weights, steps[k:]) for k in range(order)]
        return _Path([path.params[0], *params], self._filters(path.filters[0], targets))

    def _filters(self, filters: Filters, targets: list[Filters]) -> list[Filters]:
        """The filters and their derivatives, from those of what drives them."""
        found = [filters, *(tuple({} for _ in filters) for _ in targets)]
        for index, stage in enumerate(self.optimizer.stages):
            for filter in stage.filters():
                name, decay = filter.name, filter.decay_at(0)
                rate, weights = averages.filter_rate(decay, paper=False), filter_coefficients(decay, len(targets))
                for k in range(len(targets)):
                    driving = combine(weights, [target[index][name] for target in targets[k:]])
                    found[k + 1][index][name] = averages.relax(rate, driving, found[k][index][name])
        return found


class _Path(eqx.Module):
    """The solution through a state: θ and the filters, each with its derivatives by the iteration."""

    params: list[Params]
    filters: list[Filters]


def step_coefficients(order: int) -> Float[np.ndarray, "order"]:
    """B_j/j! for j < order: the series of y/(e^y − 1), which turns differences into derivatives."""
    return _bernoulli_numbers(order) / _factorials(order)


@functools.cache
def _exact_bernoulli_numbers(count: int) -> tuple[Fraction, ...]:
    numbers = [Fraction(1)]
    for order in range(1, count):
        total = sum((math.comb(order + 1, j) * number for j, number in enumerate(numbers)), Fraction(0))
        numbers.append(-total / Fraction(order + 1))
    return tuple(numbers)


def _bernoulli_numbers(count: int) -> Float[np.ndarray, "count"]:
    """B₀, B₁ = −½, …, exact up to their rounding, without the import of scipy."""
    return np.array([float(number) for number in _exact_bernoulli_numbers(count)])


def filter_coefficients(decay: Scalar, order: int) -> Float[Array, "order"]:
    r"""c_j(α) for j < order: the series of (1 + y/A)(1−α)/(1−α e^{−y}), A = −ln α.

    With z = y + A it is (1−α)/A · h(z), h(z) = z/(1−e^{−z}) = Σ B_i zⁱ/i! (B₁ = +½), expanded around z = A: the pole of
    the one factor meets the zero of the other in the first form, which loses all digits near α = 1. For α < 1/e, where
    this series is slow, the first form does.
    """
    decay = jnp.asarray(decay)
    rate = -jnp.log(decay)
    near_rate = jnp.where(rate < 1, rate, 1.0)
    # (1−α)/A, also where α rounds to 1.
    share = jnp.where(near_rate > 0, (1 - decay) / jnp.where(near_rate > 0, near_rate, 1.0), 1.0)
    bernoullis = _bernoulli_numbers(_TERMS + 1) / _factorials(_TERMS + 1)
    bernoullis[1] = 0.5
    powers = near_rate[..., None] ** jnp.arange(_TERMS + 1)
    near = []
    for j in range(order):
        binomials = np.array([math.comb(i, j) for i in range(j, _TERMS + 1)], float)
        terms = jnp.asarray(bernoullis[j:] * binomials, rate.dtype)
        near.append(share * jnp.sum(terms * powers[..., : terms.size], axis=-1))
    quotient = [jnp.ones_like(rate)]
    far_decay = jnp.where(rate < 1, 0.1, decay)
    for k in range(1, order):
        terms = [(-1) ** i / math.factorial(i) * quotient[k - i] for i in range(1, k + 1)]
        quotient.append(far_decay / (1 - far_decay) * sum(terms[1:], terms[0]))
    far = [q + (quotient[k - 1] / -jnp.log(far_decay) if k else 0.0) for k, q in enumerate(quotient)]
    return jnp.where(rate < 1, jnp.stack(near), jnp.stack(far))


def derivatives(function: Callable[[Any], Any], order: int, dtype: DTypeLike) -> list[Any]:
    """f(0), f'(0), …, f^(order)(0) of a function of one real variable, by nested forward mode."""

    def extended(lower: Callable[[Any], list[Any]]) -> Callable[[Any], list[Any]]:
        def higher(x: Any) -> list[Any]:
            values, tangents = jax.jvp(lower, (x,), (jnp.ones_like(x),))
            return [*values, tangents[-1]]

        return higher

    every: Callable[[Any], list[Any]] = lambda x: [function(x)]  # noqa: E731
    for _ in range(order):
        every = extended(every)
    return every(jnp.zeros((), dtype))


def taylor(series: list[Any], x: Any) -> Any:
    """The Taylor polynomial at x of what has these derivatives at 0."""
    return combine([x**k / math.factorial(k) for k in range(len(series))], series) if len(series) > 1 else series[0]


def combine(weights: Any, trees: list[Any]) -> Any:
    """Σ wᵢ treeᵢ, over as many weights as there are trees."""

    def leaf(*parts: Array) -> Array:
        terms = [weight * part for weight, part in zip(weights, parts, strict=False)]
        return functools.reduce(jnp.add, terms).astype(parts[0].dtype)

    return jax.tree.map(leaf, *trees)


def _factorials(count: int) -> np.ndarray:
    return np.array([math.factorial(j) for j in range(count)], float)
