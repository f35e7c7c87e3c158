r"""Stochastic flows: optimizers made of averages under minibatch noise as stochastic differential equations (Itô).

With y = (θ, filters, weight sums) and F(y, ξ) what a discrete step adds to y under the noise ξ of its gradient, let
b = E F and S = Cov F, at y. In units of iterations n,

    order 1:  dy = b dn + S^{1/2} dW,
    order 2:  dy = (b − ½ (∂b·b + ∂ₙb)) dn + S^{1/2} dW,

the second in the *ballistic* scaling, where noise is O(1) and 1−γ, 1−β and η are small of one order: then b = O(η) and
S = O(η²), and weak errors at fixed ηn are O(η) and O(η²). The drift of order 2 is the logarithm of the mean step.

b and S are found from the step itself. Every entry of F depends on the noise of its own coordinate, g = ḡ + sξ with
s² = diag Σ_B and ξ standard normal, so that three Gauss–Hermite nodes, ξ = 0, ±√3, give the first Hermite coefficients:

    b = E F,   c₁ = E[F ξ],   c₂ = E[F (ξ² − 1)]/√2,     S^{1/2} dW = c₁ (Σ_B^{1/2} dW₁)/s + c₂ dW₂,

exact for what is quadratic in the gradient, such as v. W₂ is independent of W₁: the noise of g² is uncorrelated with
that of g. Correlations between the W₂ of different coordinates, 2Σᵢⱼ² in the covariance of g², are left out.
Derivation of this project.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
from jaxtyping import Array, Float, Key, PyTree
from typing_extensions import TypeAliasType

from adamflow.checks import check_count, check_params, check_range, describe, is_concrete
from adamflow.flows import InterpolatingFlow, Snapshot, averages
from adamflow.flows.flow import StartLike
from adamflow.flows.interpolating import InterpolatingState
from adamflow.flows.tree_math import scaled
from adamflow.losses import admit_loss, as_scalar
from adamflow.noise.covariance import GradientNoise, MinibatchNoise
from adamflow.noise.ensemble import Ensemble
from adamflow.optimizers import Optimizer, OptimizerState, check_constant, check_optimizer
from adamflow.optimizers.hyperparameters import choice_called, count_called
from adamflow.optimizers.reading import reads_as_adam
from adamflow.optimizers.record import Record
from adamflow.optimizers.sgd import GradientStage, MomentumStage
from adamflow.programs import program
from adamflow.types import ArrayLike, Loss, Numbers, Params, Scalar

SCALINGS = ("ballistic", "diffusive")

#: Nodes of Gauss and Hermite for a standard normal number, and their weights.
_NODES = (0.0, math.sqrt(3.0), -math.sqrt(3.0))
_WEIGHTS = (2 / 3, 1 / 6, 1 / 6)


#: What drives the noise, normal numbers for that of the gradient, and one for each parameter in a pytree like them.
White = TypeAliasType("White", tuple[tuple[Array, ...], PyTree[Numbers]])


class StochasticFlow(Record):
    r"""An optimizer under minibatch noise as a stochastic differential equation (Itô), in units of iterations.

    $dy = b\,dn + S^{1/2} dW$ with the mean b and the covariance S of a discrete step, or of order 2
    $dy = (b - \tfrac12(\partial b\,b + \partial_n b))\,dn + S^{1/2} dW$; the file's head has the derivation. Weak
    errors against the iterates at fixed ηn are O(η^order) where 1−γ, 1−β and η are small of one order and noise is O(1)
    ("ballistic"). Steps are taken to be independent: batches of reshuffled epochs have less noise than that.

    With scaling="diffusive" it is the equations of Malladi et al. (2205.10287) for SGD, RMSprop and Adam, of order 1 in
    η² where the noise dominates (σ ~ 1/η, 1−γ and 1−β ~ η²): v then averages the variance of the noise alone.

    Args:
        optimizer: a record whose memory consists of averages and whose step acts on each entry by itself: SGD,
            momentum, RMSprop, Adam, AdamW, AdaBelief, NAdam, k-Adam, …
        noise: of the gradient: `known_covariance`, the result of `covariance`, or a `MinibatchNoise`, which depends on
            the parameters.
        order: 1 or 2.
        scaling: "ballistic", or "diffusive", which has order 1 alone.

    Raises:
        TypeError: the record keeps other memory than averages, takes signs, or mixes entries.
        ValueError: order or scaling is another one.

    Source: derivation of this project.

    Example:
        >>> import adamflow as af, jax, jax.numpy as jnp
        >>> problem = af.problems.quadratic([2.0])
        >>> noise = af.noise.known_covariance(0.25, problem.params)
        >>> flow = af.StochasticFlow(af.sgd(0.1), noise, order=2)
        >>> runs = flow.solve(problem.loss, problem.params, 50, key=jax.random.key(0), paths=400)
        >>> variance = runs.variance()
        >>> bool(abs(variance.value[-1, 0] - 0.1 * 0.25 / 4) < 5 * variance.error[-1, 0])
        True
    """

    optimizer: Optimizer
    noise: GradientNoise | MinibatchNoise
    order: int = eqx.field(static=True, converter=count_called("order"), default=1)
    scaling: str = eqx.field(static=True, converter=choice_called("scaling", SCALINGS), default="ballistic")

    def __check_init__(self):
        check_optimizer("StochasticFlow", self.optimizer)
        check_constant(
            "StochasticFlow", self.optimizer, "take optimizer.at(iteration), which has those of one iteration"
        )
        if not isinstance(self.noise, GradientNoise | MinibatchNoise):
            raise TypeError(
                f"noise must be a GradientNoise or a MinibatchNoise, got {describe(self.noise)}; make one by "
                "af.noise.known_covariance, af.noise.covariance or af.noise.MinibatchNoise"
            )
        if self.order == 2 and isinstance(self.noise, MinibatchNoise) and self.noise.kind == "low_rank":
            raise ValueError(
                "order 2 differentiates the noise by the parameters, but leading eigenpairs have no derivative where "
                "eigenvalues meet; take kind='full', 'diagonal' or 'isotropic', or order=1"
            )
        if self.order > 2:
            raise ValueError(f"order must be 1 or 2, got {self.order}; no equations of higher order are known")
        for stage in self.optimizer.stages:
            _check_stage(stage)
        if is_concrete(self.optimizer) and _mixes(self.optimizer):
            raise TypeError(
                f"StochasticFlow finds the mean and covariance of a step entry by entry, but an entry of the step of "
                f"{self.optimizer.name!r} depends on the gradient's other entries; it has no equations for that"
            )
        if self.scaling == "diffusive":
            self._check_diffusive()

    def _check_diffusive(self) -> None:
        if self.order != 1:
            raise ValueError(
                "scaling='diffusive' has order 1 alone, got order=2: a step's m and v share the noise, whose third "
                "cumulant Cum(m, m, v) is of the order of the step size there, and no diffusion of these coordinates "
                "has it; take order=1, or scaling='ballistic'"
            )
        stage = self.optimizer.stages[0]
        plain = isinstance(stage, GradientStage | MomentumStage) or reads_as_adam(stage)
        if len(self.optimizer.stages) != 1 or not plain:
            raise TypeError(
                "scaling='diffusive' has the equations of Malladi et al. for SGD, RMSprop, Adam and AdamW, but "
                f"{self.optimizer.name!r} is another one; take scaling='ballistic'"
            )

    @property
    def name(self) -> str:
        """What reports and legends call this flow."""
        return f"stochastic flow of order {self.order}, {self.scaling}"

    @property
    def additive(self) -> bool:
        """Whether the noise does not depend on the state: SGD with or without momentum under a known covariance."""
        stages = self.optimizer.stages
        plain = len(stages) == 1 and isinstance(stages[0], GradientStage | MomentumStage)
        return plain and isinstance(self.noise, GradientNoise)

    @property
    def _mean_flow(self) -> InterpolatingFlow:
        return InterpolatingFlow(self.optimizer, order=1)

    def initial_state(self, loss: Loss, params: Params, start: StartLike | None = None) -> InterpolatingState:
        """The state at n = 0, before the gradient there is consumed, or at the iteration of `start`."""
        return self._mean_flow.initial_state(loss, params, start)

    def params(self, state: InterpolatingState) -> Params:
        """The parameters θ in a state."""
        return state.params

    def drift(self, time: Scalar, state: InterpolatingState, loss: Loss) -> InterpolatingState:
        """The mean rate of change per iteration."""
        if self.scaling == "diffusive":
            return self._diffusive_drift(state, loss)
        time = jnp.asarray(time, float)
        if self.order == 1:
            return self._mean_step(time, state, loss)
        mean = self._mean_step(time, state, loss)
        mean_step = lambda time, state: self._mean_step(time, state, loss)  # noqa: E731
        _, turn = jax.jvp(mean_step, (time, state), (jnp.ones_like(time), mean))
        return jax.tree.map(lambda b, change: b - change / 2, mean, turn)

    def spread(self, time: Scalar, state: InterpolatingState, loss: Loss, white: White) -> InterpolatingState:
        """S^{1/2} dW at a state, for the numbers or increments that `white_shape` describes."""
        first, second = white
        noise = self.noise.at(state.params)
        correlated = noise.root(first)
        if self.scaling == "diffusive":
            return self._diffusive_spread(state, correlated)
        if self.additive:
            return self._additive_spread(correlated)
        steps, deviation = self._steps(time, state, loss, noise)
        linear = _weighted(steps, [weight * node for weight, node in zip(_WEIGHTS, _NODES, strict=True)])
        curved = [weight * (node**2 - 1) / math.sqrt(2) for weight, node in zip(_WEIGHTS, _NODES, strict=True)]
        quadratic = _weighted(steps, curved)

        def unit(noise: Array, s: Array) -> Array:
            return jnp.where(s > 0, noise / jnp.where(s > 0, s, 1.0), 0.0)

        unit_noise = jax.tree.map(unit, correlated, deviation)

        def mix(c1: Params, c2: Params) -> Params:
            return jax.tree.map(lambda a, b, x, w: (a * x + b * w).astype(a.dtype), c1, c2, unit_noise, second)

        filters = tuple(
            {name: mix(one[name], other[name]) for name in one}
            for one, other in zip(linear.filters, quadratic.filters, strict=True)
        )
        return _like(state, mix(linear.params, quadratic.params), filters)

    def white_shape(self, params: Params) -> tuple[tuple[jax.ShapeDtypeStruct, ...], PyTree[jax.ShapeDtypeStruct]]:
        """The shapes of the Brownian motions (W₁, W₂): those of the gradient's noise, and one for each parameter."""
        shapes = jax.eval_shape(lambda params: self.noise.at(params).white(jax.random.key(0)), params)
        return shapes, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)

    def term(self, loss: Loss, path: diffrax.AbstractPath) -> diffrax.MultiTerm:
        """This flow as a diffrax term, driven by a Brownian motion of the shape `white_shape`, in iterations."""

        def matrix(time: Scalar, state: InterpolatingState, args: Any) -> lineax.AbstractLinearOperator:
            spread = lambda white: self.spread(time, state, loss, white)  # noqa: E731
            return lineax.FunctionLinearOperator(spread, self.white_shape(state.params))

        drift = diffrax.ODETerm(lambda time, state, args: self.drift(time, state, loss))
        if self.additive and isinstance(self.noise, GradientNoise):
            return diffrax.MultiTerm(drift, _AdditiveNoise(self, self.noise, path))
        return diffrax.MultiTerm(drift, diffrax.ControlTerm(matrix, path))

    def solve(
        self,
        loss: Loss,
        params: Params,
        steps: int,
        *,
        key: Key[Array, ""],
        paths: int = 100,
        save_at: ArrayLike | None = None,
        observe: Callable[[Snapshot], Any] | None = None,
        start: int | None = None,
        step_size: float = 1.0,
        solver: diffrax.AbstractSolver | None = None,
        controller: diffrax.AbstractStepSizeController | None = None,
    ) -> Ensemble:
        """Many paths in one program, by vmap over keys.

        Args:
            loss: `loss(params)`, deterministic: the mean over all the data.
            params: θ₀, the start of all paths.
            steps: the length in iterations.
            key: of the Brownian motions.
            paths: how many.
            save_at: increasing times in iterations; by default 0 and `steps`.
            observe: a jax-traceable function of a `Snapshot`; by default the parameters.
            start: the first iterations, which are left to the discrete optimizer under Gaussian noise of this
                covariance: by default none without a second moment, else twice the memory of the fastest filter, from
                10 to 50. There v averages few squares, and as a diffusion would turn negative.
            step_size: of the solver, in iterations: 1 is enough for what is claimed; smaller ones show it.
            solver: a solver of diffrax for Itô equations; by default `StrangSplitting`. `diffrax.ShARK` and `SRA1`
                are for additive noise alone.
            controller: of the step size, for such solvers; by default steps are constant.

        Returns:
            an `Ensemble`: means, variances and quantiles with their standard errors.

        Raises:
            ValueError: an argument is out of its range.

        Warns:
            UserWarning: if paths leave the finite numbers, as they do where v turns negative; statistics are then over
                the others.
        """
        loss, params = admit_loss(loss), check_params(params)
        steps, paths = check_count("steps", steps), check_count("paths", paths)
        check_range("step_size", step_size, 0, 1, low_open=True)
        if start is None:
            memory = any(filter.nonnegative for stage in self.optimizer.stages for filter in stage.filters())
            start = min(averages.transient_iterations(self.optimizer), steps - 1) if memory else 0
        start = check_count("start", start, 0, steps - 1)
        times = np.asarray([start, steps] if save_at is None else save_at, float)
        if times.ndim != 1 or times.size == 0 or np.any(np.diff(times) <= 0) or times[0] < start or times[-1] > steps:
            raise ValueError(
                f"save_at must rise within [{start}, {steps}], got {describe(save_at)}; the first {start} iterations "
                "are left to the discrete optimizer, start= changes that"
            )
        if (solver is None and controller is not None) or (
            isinstance(solver, diffrax.AbstractSRK) and not self.additive
        ):
            raise ValueError(
                "adaptive steps and stochastic Runge-Kutta methods are for additive noise, SGD with or without "
                f"momentum under a known covariance, got {self.optimizer.name!r} and solver {describe(solver)}; give "
                "solver=diffrax.ShARK() there, and leave both out otherwise"
            )
        observe = _params_of if observe is None else observe
        settings = (steps, start, math.ceil(1 / step_size - 1e-9))
        observed = _solve(
            self, loss, params, jax.random.split(key, paths), jnp.asarray(times), observe, settings, solver, controller
        )
        return tell_failures(Ensemble.of(times, observed, self.name))

    def _mean_step(self, time: Scalar, state: InterpolatingState, loss: Loss) -> InterpolatingState:
        """b = E F."""
        return _weighted(self._steps(time, state, loss, self.noise.at(state.params))[0], list(_WEIGHTS))

    def _steps(self, time: Scalar, state: InterpolatingState, loss: Loss, noise: GradientNoise) -> tuple[list, Params]:
        """F at the nodes of the noise, and s."""
        gradient = jax.grad(as_scalar(loss))(state.params)
        deviation = jax.tree.map(_root, noise.diagonal)
        flow, steps = self._mean_flow, []
        for node in _NODES:
            noisy = jax.tree.map(lambda g, s, node=node: (g + node * s).astype(g.dtype), gradient, deviation)
            steps.append(flow.increment_by(time, state, noisy, jax.grad(as_scalar(loss))))
        return steps, deviation

    def _diffusive_drift(self, state: InterpolatingState, loss: Loss) -> InterpolatingState:
        """The drift of Malladi et al. per iteration: v averages diag Σ_B alone, and is read before its update."""
        gradient = jax.grad(as_scalar(loss))(state.params)
        targets = {"first_moment": gradient, "second_moment": self.noise.at(state.params).diagonal}
        stage = self.optimizer.stages[0]
        rates = {filter.name: 1 - filter.decay_at(0) for filter in stage.filters()}
        (values,), (sums,) = state.filters, state.weight_sums
        filters = {name: averages.relax(rate, targets[name], values[name]) for name, rate in rates.items()}
        weight_sums = {name: rates[name] * (1 - total) for name, total in sums.items()}
        numerator = self._corrected(state, "first_moment") if "first_moment" in rates else gradient
        direction = self._divided(state, numerator)
        change = self.optimizer.increment(state.params, direction)
        return _like(state, change, (filters,), (weight_sums,))

    def _diffusive_spread(self, state: InterpolatingState, noise: Params) -> InterpolatingState:
        rates = {filter.name: 1 - filter.decay_at(0) for filter in self.optimizer.stages[0].filters()}
        filters = jax.tree.map(jnp.zeros_like, state.filters)
        change = jax.tree.map(jnp.zeros_like, state.params)
        if "first_moment" in rates:
            rate = rates["first_moment"]
            filters[0]["first_moment"] = jax.tree.map(lambda n: (rate * n).astype(n.dtype), noise)
        else:
            still = jax.tree.map(jnp.zeros_like, state.params)
            change = self.optimizer.increment(still, self._divided(state, noise))
        return _like(state, change, filters)

    def _additive_spread(self, noise: Params) -> InterpolatingState:
        """−η(1−γ) n in θ and (1−γ) n in m, without reading the state: solvers for additive noise ask for that."""
        share, filters = jnp.ones(()), {}
        for filter in self.optimizer.stages[0].filters():
            share = 1 - filter.decay_at(0)
            filters[filter.name] = scaled(noise, share)
        rate = -share * self.optimizer.learning_rate
        still = jax.tree.map(jnp.zeros_like, self._mean_flow._masses_after(0, noise))
        return InterpolatingState(scaled(noise, rate), OptimizerState((filters,), ({},), (None,)), still)

    def _corrected(self, state: InterpolatingState, name: str) -> Params:
        values, sums = state.filters[0][name], state.weight_sums[0]
        return jax.tree.map(lambda leaf: leaf / sums[name], values) if name in sums else values

    def _divided(self, state: InterpolatingState, numerator: Params) -> Params:
        if "second_moment" not in state.filters[0]:
            return numerator
        return jax.tree.map(self.optimizer.ratio, numerator, self._corrected(state, "second_moment"))


class _AdditiveNoise(diffrax.AbstractTerm):
    """The noise of a flow whose noise is additive: its vector field is a number, 1, that multiplies `spread`.

    So solvers that difference vector fields under vmap need no operator.
    """

    flow: StochasticFlow
    noise: GradientNoise
    control: diffrax.AbstractPath

    def vf(self, t, y, args):
        return jnp.ones((), jnp.result_type(*jax.tree.leaves(y.params)))

    def contr(self, t0, t1, **kwargs):
        return self.control.evaluate(t0, t1, **kwargs)

    def prod(self, vf, control):
        change = self.flow._additive_spread(self.noise.root(control[0]))
        return jax.tree.map(lambda leaf: (vf * leaf).astype(leaf.dtype), change)


class StrangSplitting(diffrax.AbstractItoSolver):
    """Half a step of noise, a step of the drift by the classical Runge–Kutta method, half a step of noise.

    In the ballistic scaling its error per iteration is of third order in η: one step per iteration is enough.
    """

    term_structure: ClassVar = diffrax.MultiTerm[tuple[diffrax.ODETerm, diffrax.AbstractTerm]]
    interpolation_cls: ClassVar = diffrax.LocalLinearInterpolation

    def order(self, terms):
        return 2

    def strong_order(self, terms):
        return 0.5

    def init(self, terms, t0, t1, y0, args):
        return None

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        drift, diffusion = terms.terms
        middle, length = (t0 + t1) / 2, t1 - t0

        def kick(time: Any, state: Any, one: Any, other: Any) -> Any:
            moved = diffusion.vf_prod(time, state, args, diffusion.contr(one, other))
            return jax.tree.map(jnp.add, state, moved)

        def stage(time: Any, state: Any, slope: Any, share: float) -> Any:
            place = jax.tree.map(lambda y, k: y + (share * length * k).astype(y.dtype), state, slope)
            return drift.vf(time, place, args)

        state = kick(t0, y0, t0, middle)
        first = drift.vf(t0, state, args)
        second = stage(middle, state, first, 0.5)
        third = stage(middle, state, second, 0.5)
        fourth = stage(t1, state, third, 1.0)
        state = jax.tree.map(
            lambda y, a, b, c, d: y + (length / 6 * (a + 2 * b + 2 * c + d)).astype(y.dtype),
            *(state, first, second, third, fourth),
        )
        state = kick(t1, state, middle, t1)
        return state, None, {"y0": y0, "y1": state}, None, diffrax.RESULTS.successful

    def func(self, terms, t0, y0, args):
        return terms.terms[0].vf(t0, y0, args)


def discrete_paths(
    optimizer: Optimizer,
    loss: Loss,
    params: Params,
    steps: int,
    noise: GradientNoise | MinibatchNoise,
    *,
    key: Key[Array, ""],
    paths: int = 100,
    save_at: ArrayLike | None = None,
    observe: Callable[[Snapshot], Any] | None = None,
) -> Ensemble:
    """Many discrete runs under Gaussian noise of a covariance, in one program: what stochastic flows are held against.

    The arguments are those of `StochasticFlow.solve`; times are whole iterations. An optimizer that takes two gradients
    of one sample (`af.vradam`) gets both with the same normal numbers, one for each example where the noise is a
    `MinibatchNoise` of kind "full".

    Example:
        >>> import adamflow as af, jax
        >>> problem = af.problems.quadratic([2.0])
        >>> noise = af.noise.known_covariance(0.25, problem.params)
        >>> runs = af.noise.discrete_paths(
        ...     af.sgd(0.1), problem.loss, problem.params, 50, noise, key=jax.random.key(0), paths=400)
        >>> runs.observed.shape
        (400, 2, 1)
    """
    check_optimizer("discrete_paths", optimizer)
    if optimizer.uses_gradient_change and not noise.one_sample_everywhere:
        raise ValueError(
            f"{optimizer.name!r} takes two gradients of one sample, but the covariance at each place, of kind "
            f"{noise.kind!r}, does not say what one sample is at two; take kind='full', or known_covariance"
        )
    loss, params = admit_loss(loss), check_params(params)
    steps, paths = check_count("steps", steps), check_count("paths", paths)
    times = np.asarray([0, steps] if save_at is None else save_at, float)
    if times.ndim != 1 or np.any(np.diff(times) <= 0) or times[0] < 0 or times[-1] > steps or np.any(times % 1):
        raise ValueError(f"save_at must be rising whole iterations in [0, {steps}], got {describe(save_at)}")
    observe = _params_of if observe is None else observe
    keys = jax.random.split(key, paths)
    observed = _discrete(optimizer, loss, params, noise, keys, jnp.asarray(times.astype(int)), observe)
    return tell_failures(Ensemble.of(times, observed, f"{optimizer.name}, discrete"))


def tell_failures(ensemble: Ensemble) -> Ensemble:
    """Warn of paths that are not finite."""
    failed = ensemble.failed
    if is_concrete(failed) and int(failed):
        warnings.warn(
            f"{int(failed)} of {ensemble.finite.shape[0]} paths of the {ensemble.name} left the finite numbers, as "
            "where a second moment turns negative, and statistics are over the others, which biases them; take a "
            "smaller learning rate, a decay nearer to 1, or a later start=",
            stacklevel=3,
        )
    return ensemble


@program(compiles_fast=False)
def _solve(flow, loss, params, keys, times, observe, settings, solver, controller):
    steps, start, per_iteration = settings
    shape = flow.white_shape(params)

    def path_of(key: Array) -> Any:
        early, late = jax.random.split(key)
        state = _first_iterations(flow, loss, params, start, early)
        if solver is None:
            brownian: Any = diffrax.UnsafeBrownianPath(shape, late)
        else:
            area = diffrax.SpaceTimeLevyArea if isinstance(solver, diffrax.AbstractSRK) else diffrax.BrownianIncrement
            tolerance = 1e-3 / per_iteration if controller is None else 1e-4
            brownian = diffrax.VirtualBrownianTree(start, steps, tolerance, shape, late, levy_area=area)
        grid = start + jnp.arange((steps - start) * per_iteration + 1) / per_iteration
        solution = diffrax.diffeqsolve(
            flow.term(loss, brownian),
            StrangSplitting() if solver is None else solver,
            float(start),
            float(steps),
            None if controller is None else 1.0 / per_iteration,
            state,
            saveat=diffrax.SaveAt(ts=times, fn=lambda time, state, args: observe(_snapshot(flow, time, state, loss))),
            stepsize_controller=diffrax.StepTo(grid) if controller is None else controller,
            max_steps=None if controller is None else 100 * steps,
            adjoint=diffrax.ForwardMode(),
            throw=False,
        )
        return solution.ys

    return jax.vmap(path_of)(keys)


def _first_iterations(flow: StochasticFlow, loss: Loss, params: Params, count: int, key: Array) -> InterpolatingState:
    """The state after the first iterations of the discrete optimizer under Gaussian noise."""
    if count == 0:
        return flow.initial_state(loss, params)
    place, memory = params, flow.optimizer.initial_state(params)

    def advance(carry: Any, n: Array) -> tuple[Any, None]:
        return _noisy_step(flow.optimizer, loss, flow.noise, carry, n, key)[0], None

    (place, memory), _ = jax.lax.scan(advance, (place, memory), jnp.arange(count))
    return flow.initial_state(loss, place, (count, memory))


def _noisy_step(optimizer: Optimizer, loss: Loss, noise: Any, carry: Any, n: Array, key: Array) -> tuple[Any, Any]:
    """An iteration with a noisy gradient: what follows, and the snapshot with the gradient that was used."""
    params, memory = carry
    key = jax.random.fold_in(key, n)

    def gradient_of(params: Params) -> Params:
        return jax.tree.map(jnp.add, jax.grad(as_scalar(loss))(params), noise.at(params).sample(key))

    value, gradient = as_scalar(loss)(params), gradient_of(params)
    direction, after = optimizer.consume(gradient_of, gradient, memory, n, params)
    snapshot = Snapshot(n, params, gradient, direction, after.filters, value)
    return (optimizer.apply(params, direction), after), snapshot


@program(compiles_fast=False)
def _discrete(optimizer, loss, params, noise, keys, times, observe):
    def path_of(key: Array) -> Any:
        def to_row(carry: Any, row: Array) -> tuple[Any, Any]:
            inner, reached = carry
            advance = lambda n, inner: _noisy_step(optimizer, loss, noise, inner, n, key)[0]  # noqa: E731
            inner = jax.lax.fori_loop(reached, row, advance, inner)
            return (inner, row), observe(_noisy_step(optimizer, loss, noise, inner, row, key)[1])

        start = ((params, optimizer.initial_state(params)), jnp.zeros_like(times[0]))
        return jax.lax.scan(to_row, start, times)[1]

    return jax.vmap(path_of)(keys)


def _snapshot(flow: StochasticFlow, time: Scalar, state: InterpolatingState, loss: Loss) -> Snapshot:
    return flow._mean_flow.snapshot(time, state, loss)


def _params_of(snapshot: Snapshot) -> Params:
    return snapshot.params


def _like(state: InterpolatingState, params: Params, filters: Any, weight_sums: Any = None) -> InterpolatingState:
    """A change of a state: what is not given stands still."""
    still = jax.tree.map(jnp.zeros_like, state)
    memory = dataclasses.replace(still.optimizer_state, filters=filters)
    return InterpolatingState(params, memory, still.weight_sums if weight_sums is None else weight_sums)


def _weighted(trees: list[Any], weights: list[float]) -> Any:
    def combined(*leaves: jax.Array) -> jax.Array:
        terms = [weight * leaf for weight, leaf in zip(weights, leaves, strict=True)]
        return sum(terms[1:], terms[0]).astype(leaves[0].dtype)

    return jax.tree.map(combined, *trees)


@jax.custom_jvp
def _root(variance: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.sqrt(variance)


@_root.defjvp
def _root_jvp(primals: Any, tangents: Any) -> Any:
    # A coordinate without noise here has none near here to first order.
    root = jnp.sqrt(primals[0])
    return root, jnp.where(root > 0, tangents[0] / jnp.where(root > 0, 2 * root, 1.0), 0.0)


def _check_stage(stage: Any) -> None:
    if stage.uses_gradient_change:
        raise TypeError(
            f"{type(stage).__name__} has no stochastic flow: its step depends on the noise of one sample at two "
            "places, θₙ and θₙ₋₁, of which drift and diffusion at one place know nothing; take "
            "af.noise.discrete_paths, or af.iterate with batches"
        )
    if not stage.only_averages:
        raise TypeError(
            f"{type(stage).__name__} has no stochastic flow: it keeps memory that is no moving average, such as a "
            "maximum, whose distribution no drift and diffusion describe; take an optimizer made of averages"
        )
    if stage.takes_signs:
        raise TypeError(
            f"{type(stage).__name__} takes signs, whose mean under noise three nodes cannot find; smooth it, as "
            "af.rmsprop does with β near 0"
        )
    for filter in stage.filters():
        decay = filter.decay
        if not callable(decay) and is_concrete(decay) and np.any(np.asarray(decay) <= 0):
            raise ValueError(
                f"a filter of {type(stage).__name__} has decay 0, so it moves at once and has no diffusion; give the "
                "constructor the plain number 0 (gamma=0.0), which leaves that filter out"
            )


def _mixes(optimizer: Optimizer) -> bool:
    """Whether an entry of a step depends on other entries of the gradient, by a trial on a matrix."""
    params = jnp.array([[1.0, 2.0, 3.0], [0.5, -1.0, 1.5]])
    gradient = jnp.array([[0.3, -0.2, 0.5], [1.0, 0.7, -0.4]])
    with jax.ensure_compile_time_eval():
        results = [
            optimizer.update(g, optimizer.initial_state(params), 0, params)
            for g in (gradient, gradient.at[0, 0].add(0.1))
        ]
        leaves = [[np.asarray(leaf) for leaf in jax.tree.leaves(result)] for result in results]
    changed = [np.abs(one - other) for one, other in zip(*leaves, strict=True) if one.shape == (2, 3)]
    return any(change.ravel()[1:].max() > 1e-9 for change in changed)
