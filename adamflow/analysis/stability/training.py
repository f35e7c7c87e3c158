"""Where does a training run stand? One look at a state: sharpness against its edge, cheap measures, and the update.

The preconditioned sharpness, its edge and the bound on the update are derivations of this project and results of [GT] =
R. Gould and H. Tanaka, arXiv:2411.05746, as the functions say that are used here. Critical sharpness is that of D. S.
Kalra et al., arXiv:2601.16979 (2026).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from adamflow.analysis.bounds.formulas import stability_exponent, update_bound
from adamflow.analysis.bounds.regions import bounded_update_sign
from adamflow.analysis.stability.critical import critical_curvature
from adamflow.analysis.stability.critical_step import CriticalStep, critical_step
from adamflow.analysis.stability.leading_pair import LeadingPair, leading_pair
from adamflow.checks import check_count, check_flag, check_params, check_range, describe, is_concrete
from adamflow.flows.norms import numpy_norm
from adamflow.losses import check_loss, program, scalar_loss
from adamflow.optimizers import Optimizer, OptimizerState, StageInput, check_optimizer, decays_as_adam
from adamflow.optimizers.hyperparameters import beside
from adamflow.types import Batch, Loss, Params, WholeNumber

#: A coordinate lags if g² is at most this share of v̂: then v shrinks by nearly its decay β at each iteration.
LAGGING_SHARE = 0.01

#: By name for loggers and tables, the fields of a report that hold a number for each leaf.
BY_LEAF = {
    "share": "share_by_leaf",
    "leaf_sharpness": "leaf_sharpness",
    "leaf_sharpness_residual": "leaf_sharpness_residual",
}

_REGIONS = {1: "B+", 0: "border", -1: "B-"}


class LocalLoss(NamedTuple):
    """A loss near the parameters, as functions of flat NumPy vectors: what a report needs of any library.

    Attributes:
        gradient: () ↦ (L(θ), ∇L(θ)).
        product: x ↦ H x with the Hessian H at θ.
        difference: d ↦ (c ↦ L(θ + c d) − L(θ)).
    """

    gradient: Callable[[], tuple[float, np.ndarray]]
    product: Callable[[np.ndarray], np.ndarray]
    difference: Callable[[np.ndarray], Callable[[float], float]]


@dataclasses.dataclass(frozen=True)
class ReportSettings:
    """How a report is made; the attributes are the arguments of `training_report` of the same names."""

    cheap: bool = False
    plain_sharpness: bool = True
    leaf_sharpness: bool = False
    start: "TrainingReport | None" = None
    tolerance: float = 1e-3
    max_products: int = 40
    seed: int = 0

    def __post_init__(self):
        check_range("tolerance", self.tolerance, 0.0, 1.0, low_open=True, high_open=True)
        check_count("max_products", self.max_products, low=2)
        check_count("seed", self.seed, low=0)
        if check_flag("leaf_sharpness", self.leaf_sharpness) and self.cheap:
            raise ValueError("a cheap report has no eigenvalues, so leaf_sharpness=True needs cheap=False")
        if self.start is not None and not isinstance(self.start, TrainingReport):
            raise TypeError(f"start must be the TrainingReport of an earlier state, got {describe(self.start)}")


@dataclasses.dataclass(frozen=True)
class TrainingReport:
    """What `training_report` returns. A number that was not asked for, or does not exist here, is nan.

    Attributes:
        iteration: n, the number of gradients that the state has consumed.
        loss: L(θ).
        gradient_norm: ‖g‖, before clipping.
        learning_rate: η.
        preconditioned_sharpness: s, the largest eigenvalue of P^{−1/2} H P^{−1/2}, with the P of the step that leaves
            this state.
        preconditioned_sharpness_residual: some eigenvalue lies within this distance of s.
        lowest_eigenvalue_bound: an upper bound of the smallest eigenvalue: negative says that H is indefinite.
        edge: the ηs at which the step turns unstable.
        sharpness: the largest eigenvalue of H itself.
        sharpness_residual: some eigenvalue lies within this distance of it.
        share_by_leaf: the squared norm of the eigenvector of s in each leaf; the sum is 1.
        leaf_sharpness: the largest eigenvalue of each leaf's diagonal block of P^{−1/2} H P^{−1/2}, at most s: that of
            a run in which the leaf alone moves. Empty unless it was asked for.
        leaf_sharpness_residual: some eigenvalue of the block lies within this distance.
        gradient_curvature: gᵀHg/‖g‖², at most the sharpness.
        update_curvature: dᵀHd/‖d‖², d the step that leaves this state, at most the sharpness.
        gradient_preconditioned_curvature: gᵀHg/gᵀPg, at most s.
        update_preconditioned_curvature: dᵀHd/dᵀPd, at most s.
        critical_sharpness: 2/η_c, η_c the smallest learning rate with which the step d raises the loss; inf if all do.
        critical_sharpness_error: half the width of the bracket in which it lies; inf where `critical_sharpness` is 0,
            since no step that was tried raised the loss.
        lagging_share: the share of the coordinates with v̂ > 0 in which g² ≤ v̂/100.
        growth_from_second_moment: the change of ln s in the last iteration that the change of v (and of its bias
            correction) alone makes, to first order.
        update_max, update_norm: ‖u‖∞ and ‖u‖ of the direction u.
        update_bound: the largest ‖u‖∞ that any gradients can lead to at this iteration, attained.
        stability_exponent: C(β, γ) of the last stage; updates stay bounded where C > 0 [GT].
        region: "B+" where updates stay bounded for ever, "B-" where they need not, "border" between; "" where the
            optimizer has no pair (β, γ).
        products, evaluations: Hessian-vector products, and evaluations of the loss alone. There is one gradient.
        vector: the unit eigenvector y of s, like the parameters; the direction in parameter space is P^{−1/2} y. `None`
            in a cheap report.
        plain_vector: the unit eigenvector of the sharpness, or `None`.
        leaf_vectors: the unit eigenvector of each leaf's block, like the parameters, or `None`.
    """

    iteration: int
    loss: float
    gradient_norm: float
    learning_rate: float
    edge: float
    gradient_curvature: float
    update_curvature: float
    gradient_preconditioned_curvature: float
    update_preconditioned_curvature: float
    critical_sharpness: float
    critical_sharpness_error: float
    lagging_share: float
    update_max: float
    update_norm: float
    update_bound: float
    stability_exponent: float
    region: str
    products: int
    evaluations: int
    preconditioned_sharpness: float = math.nan
    preconditioned_sharpness_residual: float = math.nan
    lowest_eigenvalue_bound: float = math.nan
    sharpness: float = math.nan
    sharpness_residual: float = math.nan
    growth_from_second_moment: float = math.nan
    share_by_leaf: dict[str, float] = dataclasses.field(default_factory=dict)
    leaf_sharpness: dict[str, float] = dataclasses.field(default_factory=dict)
    leaf_sharpness_residual: dict[str, float] = dataclasses.field(default_factory=dict)
    tolerance: float = 1e-3
    vector: Params = dataclasses.field(default=None, repr=False)
    plain_vector: Params = dataclasses.field(default=None, repr=False)
    leaf_vectors: Params = dataclasses.field(default=None, repr=False)

    @property
    def scaled_sharpness(self) -> float:
        """ηs, which the edge is to be compared with."""
        return self.learning_rate * self.preconditioned_sharpness

    @property
    def ratio(self) -> float:
        """ηs over its edge; above 1 the step is unstable along the eigenvector while P is held."""
        return self.scaled_sharpness / self.edge if self.edge > 0 else math.inf

    @property
    def converged(self) -> bool:
        """Whether the residual of s is at most `tolerance` of it. False in a cheap report."""
        return self.preconditioned_sharpness_residual <= 1.01 * self.tolerance * abs(self.preconditioned_sharpness)

    def scalars(self) -> dict[str, float]:
        """All numbers by name, without those that are nan: what a logger takes.

        Numbers by leaf have the names "share/" + leaf, "leaf_sharpness/" + leaf and "leaf_sharpness_residual/" + leaf.
        """
        left_out = ("region", "vector", "plain_vector", "leaf_vectors", "tolerance", *BY_LEAF.values())
        names = [field.name for field in dataclasses.fields(self) if field.name not in left_out]
        numbers = {name: float(getattr(self, name)) for name in names}
        if not math.isnan(self.preconditioned_sharpness):
            numbers["scaled_sharpness"] = self.scaled_sharpness
            numbers["ratio"] = self.ratio
        for name, field in BY_LEAF.items():
            numbers |= {f"{name}/{leaf}": number for leaf, number in getattr(self, field).items()}
        return {name: number for name, number in numbers.items() if not math.isnan(number)}

    def __str__(self) -> str:
        sentences = [
            f"Iteration {self.iteration}: loss {self.loss:.6g}, gradient norm {self.gradient_norm:.4g}.",
            *_sentences_of_edge(self),
            *_sentences_of_cheap_measures(self),
            *_sentences_of_second_moment(self),
            *_sentences_of_update(self),
        ]
        return " ".join(sentences)


def training_report(
    loss: Loss,
    params: Params,
    optimizer: Optimizer,
    optimizer_state: OptimizerState,
    iteration: WholeNumber,
    *,
    cheap: bool = False,
    plain_sharpness: bool = True,
    leaf_sharpness: bool = False,
    start: TrainingReport | None = None,
    batches: Sequence[Batch] | None = None,
    tolerance: float = 1e-3,
    max_products: int = 40,
    seed: int = 0,
) -> TrainingReport:
    r"""Where a training run stands at a state: sharpness against its edge, and how large the update is.

    Everything is of the step that leaves this state: the gradient g at θ is consumed, which gives the direction u, the
    step d = −η(λθ + u) and the preconditioner P (of k-Adam the product over its stages). The state itself is not
    changed. The edge is that of `critical_curvature`, for P held and with bias correction over.

    It is a function of numbers, not to be called under jit. In float32 vectors and products are in float32; parameters
    in half precision are converted to float32 first, and so is what the loss gets.

    Args:
        loss: `loss(params)`, or `loss(params, batch)` with `batches`; a real scalar with second derivatives. Programs
            are cached by the function, so in a loop pass the same one.
        params: θ, any pytree of floating-point arrays.
        optimizer: the optimizer. Of schedules the numbers of this iteration count; the gradient is clipped as it says.
            Where rates differ between leaves the edge is that of the largest rate and of the largest weight decay, and
            P of a leaf is divided by its rate over the largest one.
        optimizer_state: its state before the gradient at θ: that of `run.final_state`, of `from_optax` or of
            `adamflow.torch.from_torch`.
        iteration: n, how many gradients the state has consumed.
        cheap: whether to leave out the eigenvalues: one gradient, two Hessian-vector products and some evaluations of
            the loss remain.
        plain_sharpness: whether to compute the largest eigenvalue of H too, which costs as much as s does.
        leaf_sharpness: whether to compute the largest eigenvalue of each leaf's block of P^{−1/2} H P^{−1/2} too, which
            costs as much as s does for each leaf.
        start: the report of an earlier state of the run. Its eigenvectors, with 3% of a random vector, are where the
            iteration starts: where little has changed it takes 4 to 8 products.
        batches: batches over which the loss, the gradient and each product are averaged, one at a time.
        tolerance: the residual, as a share of the eigenvalue, at which the iteration ends.
        max_products: the most products for each eigenvalue; as many vectors of the size of the parameters are kept, and
            two more. Without batches what a gradient's pass computes is kept too, for all products.
        seed: a whole number that determines the random vector.

    Returns:
        a `TrainingReport`; `print` says it in words, `scalars()` is for a logger.

    Raises:
        TypeError: `optimizer` is none, its direction is not linear in the gradients (sign descent), or the state is no
            `OptimizerState`.
        ValueError: the loss or its gradient is not finite, the state is not one of these parameters, the learning rate
            of this iteration is 0, or a number is out of its range.

    >>> import adamflow as af
    >>> problem, optimizer = af.problems.quadratic([1.0, 3.0]), af.adam(0.01)
    >>> run = af.iterate(optimizer, problem.loss, problem.params, 20)
    >>> report = training_report(problem.loss, *run.final_state[:1], optimizer, run.final_state[1], 20)
    >>> print(f"{report.scaled_sharpness:.4f} of {report.edge:.4f}")
    0.0111 of 38.0000
    """
    settings = ReportSettings(cheap, plain_sharpness, leaf_sharpness, start, tolerance, max_products, seed)
    check_loss(loss)
    if not is_concrete(params, optimizer, optimizer_state):
        raise ValueError("training_report needs numbers, but jax is tracing the parameters; call it outside of jit")
    params = in_working_precision(params)
    every = [()] if batches is None else [(batch,) for batch in batches]

    def gradient_of(place: Params) -> np.ndarray:
        return _local_loss(loss, place, every).gradient()[1]

    local = _local_loss(loss, params, every)
    return report_of(local, params, optimizer, optimizer_state, iteration, settings, gradient_of)


def report_of(
    local: LocalLoss,
    params: Params,
    optimizer: Optimizer,
    optimizer_state: OptimizerState,
    iteration: WholeNumber,
    settings: ReportSettings,
    gradient_of: Callable[[Params], np.ndarray] | None = None,
) -> TrainingReport:
    """The report of a loss of which any library computes the derivatives; arguments as in `training_report`.

    `gradient_of` has the flat gradient at other parameters, for optimizers that take a second one.
    """
    check_optimizer("training_report", optimizer)
    iteration = check_count("iteration", iteration, low=0)
    optimizer_state = _checked_state(optimizer, params, optimizer_state)
    unravel = ravel_pytree(params)[1]
    optimizer = optimizer.at(iteration)
    uniform = optimizer.uniform(params)
    learning_rate = float(uniform.learning_rate)
    if not learning_rate > 0:
        raise ValueError(
            f"the learning rate is 0 at iteration {iteration} (a warm-up that starts there?), so there is no step to "
            "report on; look at a later iteration"
        )
    edge = learning_rate * float(critical_curvature(uniform))
    loss, gradient = local.gradient()
    if not (math.isfinite(loss) and np.all(np.isfinite(gradient))):
        what = "its gradient is not finite" if math.isfinite(loss) else f"is {loss}"
        raise ValueError(f"the loss {what} at these parameters, so there is no curvature; look at an earlier state")
    gradients = unravel(jnp.asarray(gradient)), _at_previous(optimizer, optimizer_state, gradient_of, unravel)
    step = _step_measures(optimizer, uniform, params, gradients, optimizer_state, iteration)
    numbers: dict[str, Any] = _curvatures(local, gradient, step)
    products = 2
    if not settings.cheap:
        eigenvalues = _eigenvalues(local, step, settings, unravel)
        products += eigenvalues.pop("products")
        numbers |= eigenvalues
    # dᵀHd, by which a parabola would say where the loss is back at its value.
    bend = numbers["update_curvature"] * float(numpy_norm(step.increment)) ** 2
    guess = _guess(gradient, step, bend, settings.start, learning_rate)
    search = _critical_step(local, loss, gradient, step, bend, guess)
    return TrainingReport(
        iteration=iteration,
        loss=loss,
        gradient_norm=float(numpy_norm(gradient)),
        learning_rate=learning_rate,
        edge=edge,
        critical_sharpness=2 / (learning_rate * search.value) if search.value != 0 else math.inf,
        critical_sharpness_error=_error_of(search, learning_rate),
        update_max=float(np.max(np.abs(step.direction))),
        update_norm=float(numpy_norm(step.direction)),
        **_bounds(optimizer, iteration),
        lagging_share=step.lagging_share,
        products=products,
        evaluations=search.evaluations,
        tolerance=settings.tolerance,
        **numbers,
    )


def _at_previous(
    optimizer: Optimizer,
    state: OptimizerState,
    gradient_of: Callable[[Params], np.ndarray] | None,
    unravel: Callable[[Any], Params],
) -> Params | None:
    """The gradient at the parameters before, for an optimizer that takes it."""
    if not optimizer.uses_gradient_change:
        return None
    if gradient_of is None:
        raise TypeError(f"{optimizer.name!r} takes a second gradient; take af.analysis.training_report")
    return unravel(jnp.asarray(gradient_of(state.previous_params)))


def in_working_precision(params: Params) -> Params:
    """The parameters as jax arrays, in float64 if a leaf is, otherwise in float32; `ValueError` for other types."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(params) if hasattr(leaf, "dtype")]
    dtype = jnp.promote_types(jnp.result_type(*leaves), jnp.float32) if leaves else jnp.float32

    def converted(leaf: Any) -> Any:
        is_floating = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(leaf, dtype) if is_floating else leaf

    return check_params(jax.tree.map(converted, params))


class _StepMeasures(NamedTuple):
    """What the optimizer makes of the gradient, as flat vectors.

    Attributes:
        direction: u.
        increment: d, what the step adds to the parameters.
        inverse: 1/P; 0 where P = 0, where nothing moves.
        previous_inverse: 1/P of the step before; 0 throughout at iteration 0.
        lagging_share: as in `TrainingReport`.
    """

    direction: np.ndarray
    increment: np.ndarray
    inverse: np.ndarray
    previous_inverse: np.ndarray
    lagging_share: float


def _step_measures(
    optimizer: Optimizer,
    uniform: Optimizer,
    params: Params,
    gradients: tuple[Params, Params | None],
    state: OptimizerState,
    iteration: int,
) -> _StepMeasures:
    arrays, lagging = _consume(optimizer, uniform, params, gradients, state, jnp.asarray(iteration))
    direction, increment, inverse, previous = (np.asarray(array) for array in arrays)
    return _StepMeasures(direction, increment, inverse, previous, float(lagging))


@eqx.filter_jit
def _consume(
    optimizer: Optimizer,
    uniform: Optimizer,
    params: Params,
    gradients: tuple[Params, Params | None],
    state: OptimizerState,
    iteration: Any,
) -> Any:
    """The direction, increment, 1/P and 1/P of the iteration before, flat; and the lagging share.

    The gradients are that at θₙ and, for optimizers that take it, that of the same loss at θₙ₋₁.
    """
    gradient, at_previous = gradients
    if at_previous is None:
        direction, new_state = optimizer.update(gradient, state, iteration)
    else:
        direction, new_state = optimizer.update(gradient, state, iteration, params, gradient_at_previous=at_previous)
    inverse = _inverse_preconditioner(optimizer, params, new_state, iteration)
    previous = _inverse_preconditioner(optimizer, params, state, jnp.maximum(iteration - 1, 0))
    previous = jax.tree.map(lambda leaf: jnp.where(iteration > 0, leaf, 0.0), previous)
    increment = optimizer.increment(params, direction)
    if uniform is not optimizer:
        relative = jax.tree.map(lambda rate: rate / uniform.learning_rate, optimizer.learning_rates(params))
        inverse, previous = (
            jax.tree.map(lambda leaf, share: leaf * beside(share, leaf), tree, relative) for tree in (inverse, previous)
        )
    flat = tuple(ravel_pytree(tree)[0] for tree in (direction, increment, inverse, previous))
    return flat, _lagging_share(optimizer, new_state, optimizer.clipped(gradient), iteration)


def _inverse_preconditioner(optimizer: Optimizer, params: Params, state: OptimizerState, iteration: Any) -> Params:
    """1/P, the product over the stages: what the direction is for inputs and first moments of 1; 0 where P is 0."""
    inverse = jax.tree.map(jnp.ones_like, params)
    for index, stage in enumerate(optimizer.stages):
        corrected = optimizer.bias_corrected(state.filters, iteration)[index]
        memory = state.memory[index]
        squares = [filter.name for filter in stage.filters() if filter.nonnegative]
        trees = [corrected[name] for name in squares] + list(memory.values())

        def respond(product, *values, stage=stage, squares=squares, corrected=corrected, memory=memory):
            ones = jnp.ones_like(product)
            averages = dict.fromkeys(corrected, ones) | dict(zip(squares, values, strict=False))
            remembered = dict(zip(memory, values[len(squares) :], strict=True))
            return product * stage.direction(StageInput(ones), averages, remembered, iteration, optimizer.ratio)

        inverse = jax.tree.map(respond, inverse, *trees)
    return inverse


def _lagging_share(optimizer: Optimizer, state: OptimizerState, gradient: Params, iteration: Any) -> Any:
    """The share of the coordinates of v̂ > 0, of the first stage, in which g² is far below; nan if there are none."""
    squares = [filter.name for filter in optimizer.stages[0].filters() if filter.nonnegative]
    if len(squares) != 1:
        return jnp.nan
    square = optimizer.bias_corrected(state.filters, iteration)[0][squares[0]]
    flat, values = ravel_pytree(square)[0], ravel_pytree(gradient)[0]
    known = flat > 0
    lags = known & (jnp.abs(values) <= LAGGING_SHARE**0.5 * jnp.sqrt(flat))
    return jnp.where(known.any(), lags.sum() / jnp.maximum(known.sum(), 1), jnp.nan)


def _curvatures(local: LocalLoss, gradient: np.ndarray, step: _StepMeasures) -> dict[str, Any]:
    """The quotients xᵀHx/‖x‖² and xᵀHx/xᵀPx along the gradient and along the step."""
    numbers = {}
    moves = step.inverse > 0
    weights = np.sqrt(np.where(moves, step.inverse, 1))
    for name, vector in (("gradient", gradient), ("update", step.increment)):
        length = float(numpy_norm(vector))
        unit = vector / length if length > 0 else vector
        image = local.product(unit)
        numbers[f"{name}_curvature"] = float(np.vdot(unit, image)) if length > 0 else math.nan
        # Where nothing moves, neither P nor s knows of the coordinate: the quotient is that of the others.
        inside = np.where(moves, unit, 0)
        image = image if np.array_equal(inside, unit) else local.product(inside)
        scaled = float(numpy_norm(inside / weights))
        value = float(np.vdot(inside / scaled, image / scaled)) if scaled > 0 else math.nan
        numbers[f"{name}_preconditioned_curvature"] = value
    return numbers


def _eigenvalues(
    local: LocalLoss, step: _StepMeasures, settings: ReportSettings, unravel: Callable[[Any], Params]
) -> dict[str, Any]:
    """The preconditioned sharpness, the plain one if it is wanted, and what follows from their vectors."""
    start = settings.start
    moves = step.inverse > 0
    dtype = step.inverse.dtype
    unit = float(step.inverse.max()) or 1.0
    weights = np.sqrt(step.inverse / unit).astype(step.inverse.dtype)

    def preconditioned(vector: np.ndarray) -> np.ndarray:
        return weights * local.product(weights * vector)

    pair = _leading(preconditioned, moves, dtype, None if start is None else start.vector, settings)
    numbers: dict[str, Any] = dict(
        preconditioned_sharpness=pair.value * unit,
        preconditioned_sharpness_residual=pair.residual * unit,
        lowest_eigenvalue_bound=pair.lowest * unit,
        growth_from_second_moment=_growth(pair.vector, step),
        share_by_leaf=_share_by_leaf(unravel(jnp.asarray(pair.vector))),
        vector=unravel(jnp.asarray(pair.vector)),
        products=pair.products,
    )
    if settings.plain_sharpness:
        last = None if start is None else start.plain_vector
        plain = _leading(local.product, np.ones_like(moves), dtype, last, settings)
        numbers |= dict(
            sharpness=plain.value,
            sharpness_residual=plain.residual,
            plain_vector=unravel(jnp.asarray(plain.vector)),
            products=numbers["products"] + plain.products,
        )
    if settings.leaf_sharpness:
        last = None if start is None else start.leaf_vectors
        names = list(numbers["share_by_leaf"])
        sizes = [leaf.size for leaf in jax.tree.leaves(numbers["vector"])]
        pairs = _leading_of_blocks(preconditioned, moves, sizes, dtype, last, settings)
        numbers |= dict(
            leaf_sharpness={name: leaf.value * unit for name, leaf in zip(names, pairs, strict=True)},
            leaf_sharpness_residual={name: leaf.residual * unit for name, leaf in zip(names, pairs, strict=True)},
            leaf_vectors=unravel(jnp.asarray(np.concatenate([leaf.vector for leaf in pairs]))),
            products=numbers["products"] + sum(leaf.products for leaf in pairs),
        )
    return numbers


def _leading_of_blocks(
    apply: Callable[[np.ndarray], np.ndarray],
    moves: np.ndarray,
    sizes: Sequence[int],
    dtype: np.dtype,
    last: Params,
    settings: ReportSettings,
) -> list[LeadingPair]:
    """The leading pair of each diagonal block of an operator; vectors have the length of the block."""
    ends = np.cumsum(sizes)
    starts = [None] * len(sizes) if last is None else jax.tree.leaves(last)
    pairs = []
    for end, size, start in zip(ends, sizes, starts, strict=True):
        place = slice(end - size, end)

        def of_block(vector: np.ndarray, place: slice = place) -> np.ndarray:
            whole = np.zeros(moves.size, vector.dtype)
            whole[place] = vector
            return apply(whole)[place]

        pairs.append(_leading(of_block, moves[place], dtype, start, settings))
    return pairs


def _leading(
    apply: Callable[[np.ndarray], np.ndarray],
    moves: np.ndarray,
    dtype: np.dtype,
    last: Params,
    settings: ReportSettings,
) -> LeadingPair:
    start = None if last is None else np.asarray(ravel_pytree(last)[0])
    if start is not None and start.size != moves.size:
        raise ValueError(
            f"start is the report of {start.size} parameters, but these are {moves.size}; start= needs a report of the "
            "same run"
        )
    return leading_pair(
        apply,
        moves,
        start=start,
        dtype=dtype,
        tolerance=settings.tolerance,
        max_products=settings.max_products,
        seed=settings.seed,
    )


def _growth(vector: np.ndarray, step: _StepMeasures) -> float:
    """The change of ln s by that of P: the sum of yᵢ² ln(Pᵢ before/Pᵢ), over coordinates that have moved before."""
    known = (step.previous_inverse > 0) & (step.inverse > 0)
    if not known.any():
        return math.nan
    ratio = np.log(step.inverse[known].astype(float)) - np.log(step.previous_inverse[known].astype(float))
    return float(np.sum(vector[known].astype(float) ** 2 * ratio))


def _share_by_leaf(vector: Params) -> dict[str, float]:
    leaves = jax.tree_util.tree_leaves_with_path(vector)
    named = [(jax.tree_util.keystr(path, simple=True, separator="/"), np.asarray(leaf, float)) for path, leaf in leaves]
    return {name or "params": float(np.sum(leaf**2)) for name, leaf in named}


def _guess(
    gradient: np.ndarray, step: _StepMeasures, bend: float, last: TrainingReport | None, learning_rate: float
) -> float:
    """A multiple of the step at which the loss may be back at its value: the last one, or that of a parabola."""
    if last is not None and 0 < last.critical_sharpness < math.inf:
        return 2 / (learning_rate * last.critical_sharpness)
    return -2 * float(np.vdot(gradient, step.increment)) / bend if bend > 0 else 1.0


def _critical_step(
    local: LocalLoss, loss: float, gradient: np.ndarray, step: _StepMeasures, bend: float, guess: float
) -> CriticalStep:
    """The multiple of the step that raises the loss."""
    slope = float(np.vdot(gradient, step.increment))
    rounding = 2 * float(np.finfo(gradient.dtype).eps) * abs(loss)
    return critical_step(local.difference(step.increment), slope, bend, guess, rounding)


def _error_of(search: CriticalStep, learning_rate: float) -> float:
    """The larger distance of the critical sharpness from the ends of its bracket."""
    if math.isnan(search.value):
        return math.nan
    if search.value == 0:
        return 0.0
    if math.isinf(search.high):
        return 2 / (learning_rate * search.low)
    return 2 / learning_rate * max(1 / search.low - 1 / search.value, 1 / search.value - 1 / search.high)


def _bounds(optimizer: Optimizer, iteration: int) -> dict[str, Any]:
    """The bound of the last stage and its region, where that has a pair (β, γ) and a v for each coordinate."""
    decays = decays_as_adam(optimizer.stages[-1])
    if decays is None:
        return dict(update_bound=math.nan, stability_exponent=math.nan, region="")
    beta, gamma = map(float, decays)
    bound = update_bound(iteration, beta=beta, gamma=gamma, kind="discrete", bias_correction=optimizer.bias_correction)
    return dict(
        update_bound=float(bound),
        stability_exponent=float(stability_exponent(beta=beta, gamma=gamma)),
        region=_REGIONS[int(bounded_update_sign(beta=beta, gamma=gamma))],
    )


def _checked_state(optimizer: Optimizer, params: Params, state: Any) -> OptimizerState:
    """The state in the precision of the parameters, or an error if it is not of this optimizer and parameters."""
    if not isinstance(state, OptimizerState):
        raise TypeError(
            f"optimizer_state must be an OptimizerState, got {describe(state)}; run.final_state[1] is one, and "
            "af.from_optax and adamflow.torch.from_torch read one"
        )
    expected = jax.eval_shape(optimizer.initial_state, params)
    same = jax.tree.structure(state) == jax.tree.structure(expected)
    if not same or [*map(jnp.shape, jax.tree.leaves(state))] != [*map(jnp.shape, jax.tree.leaves(expected))]:
        raise ValueError(
            f"optimizer_state is not a state of {optimizer.name!r} for these parameters: its filters or their shapes "
            "differ from those of optimizer.initial_state(params)"
        )
    return jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), state, expected)


def _local_loss(loss: Loss, params: Params, batches: Sequence[tuple[Any, ...]]) -> LocalLoss:
    """A loss of jax near parameters, averaged over batches.

    Of a single batch the gradient is linearized once: a product is then the linear part alone, two thirds of the work.
    What that keeps, about the memory of a gradient's own pass, would grow with the number of batches.
    """
    if not batches:
        raise ValueError("batches must hold at least one batch, got none; leave it out for loss(params)")
    flat, unravel = ravel_pytree(params)
    linear: list[Any] = []

    def mean_of(values: list[Any]) -> Any:
        return sum(values[1:], values[0]) / len(values)

    def gradient() -> tuple[float, np.ndarray]:
        if len(batches) == 1:
            value, slope, product_of = _linearized(loss, params, *batches[0])
            linear[:] = [product_of]
            return float(value), np.asarray(slope)
        results = [_value_and_gradient(loss, params, *batch) for batch in batches]
        return mean_of([float(value) for value, _ in results]), mean_of([np.asarray(flat) for _, flat in results])

    def product(vector: np.ndarray) -> np.ndarray:
        tangent = jnp.asarray(vector, flat.dtype)
        if linear:
            return np.asarray(_linear_product(linear[0], params, tangent))
        return mean_of([np.asarray(_product(loss, params, tangent, *batch)) for batch in batches])

    def difference(direction: np.ndarray) -> Callable[[float], float]:
        tree = unravel(jnp.asarray(direction, flat.dtype))

        def value(step: float) -> float:
            values = [_value(loss, params, tree, jnp.asarray(step, flat.dtype), *batch) for batch in batches]
            return mean_of([float(value) for value in values])

        initial = value(0.0)
        return lambda step: value(step) - initial

    return LocalLoss(gradient, product, difference)


@program
def _value_and_gradient(loss: Loss, params: Params, *batch: Batch) -> Any:
    value, gradient = jax.value_and_grad(lambda x: scalar_loss(loss, x, *batch))(params)
    return value, ravel_pytree(gradient)[0]


@program
def _linearized(loss: Loss, params: Params, *batch: Batch) -> Any:
    """The loss, its gradient, and x ↦ H x as a function of pytrees that holds what it needs."""
    value_and_gradient = jax.value_and_grad(lambda x: scalar_loss(loss, x, *batch))
    gradient, linear, value = jax.linearize(lambda x: value_and_gradient(x)[::-1], params, has_aux=True)
    return value, ravel_pytree(gradient)[0], linear


@program
def _linear_product(linear: Callable[[Params], Params], params: Params, vector: jax.Array) -> Any:
    return ravel_pytree(linear(ravel_pytree(params)[1](vector)))[0]


@program
def _product(loss: Loss, params: Params, vector: jax.Array, *batch: Batch) -> Any:
    tangent = ravel_pytree(params)[1](vector)
    image = jax.jvp(jax.grad(lambda x: scalar_loss(loss, x, *batch)), (params,), (tangent,))[1]
    return ravel_pytree(image)[0]


@program
def _value(loss: Loss, params: Params, direction: Params, step: Any, *batch: Batch) -> Any:
    return scalar_loss(loss, jax.tree.map(lambda leaf, part: leaf + step * part, params, direction), *batch)


def _sentences_of_edge(report: TrainingReport) -> list[str]:
    if math.isnan(report.preconditioned_sharpness):
        return []
    place = "past" if report.ratio > 1 else "below"
    sentences = [
        f"ηs = {report.scaled_sharpness:.4g} is {report.ratio:.3g} of the edge {report.edge:.4g}: {place} it, with the "
        f"preconditioned sharpness s = {report.preconditioned_sharpness:.5g} (residual "
        f"{report.preconditioned_sharpness_residual:.1e}{'' if report.converged else ', not converged'})."
    ]
    if report.preconditioned_sharpness > 0 and report.edge > 0:
        sentences.append(
            f"With this s and P a learning rate of {report.learning_rate / report.ratio:.3g} is at the edge."
        )
    largest = sorted(report.share_by_leaf.items(), key=lambda item: -item[1])[:2]
    if len(report.share_by_leaf) > 1:
        named = " and ".join(f"{100 * share:.0f}% in {leaf}" for leaf, share in largest)
        sentences.append(f"Its eigenvector lies {named}.")
    if report.leaf_sharpness:
        leaf, value = max(report.leaf_sharpness.items(), key=lambda item: item[1])
        sentences.append(
            f"Of the leaves alone {leaf} has the largest s, {value:.4g} (residual "
            f"{report.leaf_sharpness_residual[leaf]:.1e})."
        )
    if not math.isnan(report.sharpness):
        sentences.append(
            f"Without P the sharpness is {report.sharpness:.5g} (residual {report.sharpness_residual:.1e})."
        )
    return sentences


def _sentences_of_cheap_measures(report: TrainingReport) -> list[str]:
    sentences = [
        "Curvature relative to P: "
        f"{report.gradient_preconditioned_curvature:.4g} along the gradient, "
        f"{report.update_preconditioned_curvature:.4g} along the update; s is at least as large."
    ]
    if math.isinf(report.critical_sharpness):
        sentences.append("Any step along the update raises this loss.")
    elif report.critical_sharpness == 0:
        sentences.append("No step along the update that was tried raises the loss.")
    elif not math.isnan(report.critical_sharpness):
        sentences.append(
            f"A learning rate of {2 / report.critical_sharpness:.3g} would make this step raise the loss (critical "
            f"sharpness {report.critical_sharpness:.4g} ± {report.critical_sharpness_error:.1g})."
        )
    return sentences


def _sentences_of_second_moment(report: TrainingReport) -> list[str]:
    if math.isnan(report.lagging_share):
        return []
    sentence = f"g² is below v̂/{1 / LAGGING_SHARE:.0f} in {100 * report.lagging_share:.1f}% of the coordinates"
    if not math.isnan(report.growth_from_second_moment):
        sentence += f"; v alone multiplied s by {math.exp(report.growth_from_second_moment):.3g} in one iteration"
    return [f"{sentence}."]


def _sentences_of_update(report: TrainingReport) -> list[str]:
    sentence = f"The update has ‖u‖∞ = {report.update_max:.4g} and ‖u‖ = {report.update_norm:.4g}"
    if not report.region:
        return [f"{sentence}."]
    place = {
        "B+": "updates stay bounded for ever",
        "B-": "the bound grows without end",
        "border": "the border of bounded updates",
    }[report.region]
    return [f"{sentence}; no entry can exceed {report.update_bound:.4g} here ({report.region}: {place})."]
