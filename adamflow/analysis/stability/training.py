"""Where does a training run stand? One look at a state: sharpness against its edge, cheap measures, and the update.

The preconditioned sharpness, its edge and the bound on the update are derivations of this project and results of [GT] =
R. Gould and H. Tanaka, arXiv:2411.05746, as the functions say that are used here. Critical sharpness is that of D. S.
Kalra et al., arXiv:2601.16979 (2026).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from adamflow.analysis.bounds.formulas import stability_exponent, update_bound
from adamflow.analysis.bounds.regions import bounded_update_sign
from adamflow.analysis.stability.critical import critical_curvature
from adamflow.analysis.stability.critical_step import CriticalStep, critical_step
from adamflow.analysis.stability.leading_pair import LeadingPair, leading_pair
from adamflow.checks import check_count, check_flag, check_params, check_range, describe, is_concrete
from adamflow.flows.tree_math import dot, length_of, masked, positive, total
from adamflow.losses import check_loss, scalar_loss
from adamflow.optimizers import AbstractStage, Optimizer, OptimizerState, StageInput, check_optimizer, decays_as_adam
from adamflow.optimizers.hyperparameters import beside
from adamflow.optimizers.optimizer import state_shapes
from adamflow.programs import program
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
    """A loss near the parameters, as functions of pytrees like them: what a report needs of any library.

    Attributes:
        gradient: () ↦ (L(θ), ∇L(θ)).
        curvatures: of some vectors x, xᵀHx with the Hessian H at θ.
        product: (x, D) ↦ D H D x, with a diagonal D like the parameters; H x where D is `None`.
        difference: d ↦ (c ↦ L(θ + c d) − L(θ)).
    """

    gradient: Callable[[], tuple[float, Params]]
    curvatures: Callable[[Sequence[Params]], list[float]]
    product: Callable[[Params, Params | None], Params]
    difference: Callable[[Params], Callable[[float], float]]


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

    def gradient_of(place: Params) -> Params:
        return _local_loss(loss, place, every).gradient()[1]

    local = _local_loss(loss, params, every, linearize=not cheap)
    return report_of(local, params, optimizer, optimizer_state, iteration, settings, gradient_of)


def report_of(
    local: LocalLoss,
    params: Params,
    optimizer: Optimizer,
    optimizer_state: OptimizerState,
    iteration: WholeNumber,
    settings: ReportSettings,
    gradient_of: Callable[[Params], Params] | None = None,
) -> TrainingReport:
    """The report of a loss of which any library computes the derivatives; arguments as in `training_report`.

    `gradient_of` has the gradient at other parameters, for optimizers that take a second one.
    """
    check_optimizer("training_report", optimizer)
    iteration = check_count("iteration", iteration, low=0)
    optimizer_state = _checked_state(optimizer, params, optimizer_state)
    optimizer = optimizer.at(iteration)
    uniform = optimizer.uniform(params)
    learning_rate = float(uniform.learning_rate)
    if not learning_rate > 0:
        raise ValueError(
            f"the learning rate is 0 at iteration {iteration} (a warm-up that starts there?), so there is no step to "
            "report on; look at a later iteration"
        )
    edge = learning_rate * _critical_curvature(uniform)
    loss, gradient = local.gradient()
    gradients = gradient, _at_previous(optimizer, optimizer_state, gradient_of)
    step = _step_measures(optimizer, uniform, params, gradients, optimizer_state, iteration)
    if not (math.isfinite(loss) and math.isfinite(step.gradient_norm)):
        what = "its gradient is not finite" if math.isfinite(loss) else f"is {loss}"
        raise ValueError(f"the loss {what} at these parameters, so there is no curvature; look at an earlier state")
    numbers: dict[str, Any] = _curvatures(local, step)
    products = 2
    if not settings.cheap:
        previous = _previous_inverse(optimizer, uniform, params, optimizer_state, jnp.asarray(iteration))
        eigenvalues = _eigenvalues(local, step, previous, settings)
        products += eigenvalues.pop("products")
        numbers |= eigenvalues
    search = _critical_step(local, loss, step, numbers["update_curvature"], settings.start, learning_rate)
    return TrainingReport(
        iteration=iteration,
        loss=loss,
        gradient_norm=step.gradient_norm,
        learning_rate=learning_rate,
        edge=edge,
        critical_sharpness=2 / (learning_rate * search.value) if search.value != 0 else math.inf,
        critical_sharpness_error=_error_of(search, learning_rate),
        update_max=step.update_max,
        update_norm=step.update_norm,
        **_bounds(optimizer, iteration),
        lagging_share=step.lagging_share,
        products=products,
        evaluations=search.evaluations,
        tolerance=settings.tolerance,
        **numbers,
    )


def _at_previous(
    optimizer: Optimizer, state: OptimizerState, gradient_of: Callable[[Params], Params] | None
) -> Params | None:
    """The gradient at the parameters before, for an optimizer that takes it."""
    if not optimizer.uses_gradient_change:
        return None
    if gradient_of is None:
        raise TypeError(f"{optimizer.name!r} takes a second gradient; take af.analysis.training_report")
    return gradient_of(state.previous_params)


def in_working_precision(params: Params) -> Params:
    """The parameters as jax arrays, in float64 if a leaf is, otherwise in float32; `ValueError` for other types."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(params) if hasattr(leaf, "dtype")]
    dtype = jnp.promote_types(jnp.result_type(*leaves), jnp.float32) if leaves else jnp.float32

    def converted(leaf: Any) -> Any:
        is_floating = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(leaf, dtype) if is_floating else leaf

    return check_params(jax.tree.map(converted, params))


class _StepMeasures(NamedTuple):
    """What the optimizer makes of the gradient: pytrees like the parameters, and numbers.

    The vectors g and d have norm 1 here, so that nothing underflows in single precision; 0 where they are 0.

    Attributes:
        gradient: g/‖g‖.
        increment: d/‖d‖, d what the step adds to the parameters.
        inverse: 1/P; 0 where P = 0, where nothing moves.
        largest_inverse: the largest entry of 1/P; 1 where all of it is 0.
        moving: by leaf, how many coordinates move.
        gradient_norm, increment_norm: ‖g‖, ‖d‖.
        gradient_length, increment_length: √(xᵀPx) of the part of g/‖g‖ and d/‖d‖ that moves.
        slope: ⟨g/‖g‖, d/‖d‖⟩.
        update_max, update_norm: ‖u‖∞ and ‖u‖ of the direction u.
        lagging_share: as in `TrainingReport`.
    """

    gradient: Any
    increment: Any
    inverse: Any
    largest_inverse: Any
    moving: Any
    gradient_norm: Any
    increment_norm: Any
    gradient_length: Any
    increment_length: Any
    slope: Any
    update_max: Any
    update_norm: Any
    lagging_share: Any

    @property
    def all_move(self) -> bool:
        """Whether no P is 0."""
        return self.moving == [leaf.size for leaf in jax.tree.leaves(self.inverse)]


def _step_measures(
    optimizer: Optimizer,
    uniform: Optimizer,
    params: Params,
    gradients: tuple[Params, Params | None],
    state: OptimizerState,
    iteration: int,
) -> _StepMeasures:
    """The measures, of which numbers are those of Python."""
    stepped = _consume(optimizer, uniform, params, gradients, state, jnp.asarray(iteration))
    found = _measured(gradients[0], *stepped)
    vectors = ("gradient", "increment", "inverse")
    numbers = jax.device_get({name: value for name, value in found._asdict().items() if name not in vectors})
    return found._replace(inverse=stepped[2], **{name: value.tolist() for name, value in numbers.items()})


@eqx.filter_jit
def _consume(
    optimizer: Optimizer,
    uniform: Optimizer,
    params: Params,
    gradients: tuple[Params, Params | None],
    state: OptimizerState,
    iteration: Any,
) -> tuple[Params, Params, Params, Any]:
    """u, d, 1/P, and which coordinates lag.

    The gradients are those at θₙ and, where it is taken, at θₙ₋₁. The sums over the vectors are another program: in one
    program XLA computes the update anew within each sum, and there entry by entry.
    """
    gradient, at_previous = gradients
    if at_previous is None:
        direction, new_state = optimizer.update(gradient, state, iteration)
    else:
        direction, new_state = optimizer.update(gradient, state, iteration, params, gradient_at_previous=at_previous)
    increment = optimizer.increment(params, direction)
    inverse = _relative(optimizer, uniform, params, _inverse_preconditioner(optimizer, params, new_state, iteration))
    return direction, increment, inverse, _lagging(optimizer, new_state, optimizer.clipped(gradient), iteration)


@jax.jit
def _measured(gradient: Params, direction: Params, increment: Params, inverse: Params, lagging: Any) -> _StepMeasures:
    """What `_StepMeasures` has, from what `_consume` returns."""
    largest = positive(_largest(inverse))
    norms = [length_of(vector) for vector in (gradient, increment)]
    units = [
        jax.tree.map(lambda leaf, norm=norm: leaf / positive(norm), vector)
        for vector, norm in zip((gradient, increment), norms, strict=True)
    ]
    known, lags = (sum(_count(leaf >= least) for leaf in jax.tree.leaves(lagging)) for least in (1, 2))
    return _StepMeasures(
        gradient=units[0],
        increment=units[1],
        inverse=None,
        largest_inverse=largest,
        moving=jnp.stack([_count(leaf > 0) for leaf in jax.tree.leaves(inverse)]),
        gradient_norm=norms[0],
        increment_norm=norms[1],
        gradient_length=_length(units[0], inverse, largest),
        increment_length=_length(units[1], inverse, largest),
        slope=dot(*units),
        update_max=_largest(direction),
        update_norm=length_of(direction),
        lagging_share=jnp.where(known > 0, lags / jnp.maximum(known, 1), jnp.nan),
    )


def _count(mask: jax.Array) -> jax.Array:
    """How many are true. A column is counted in single precision, which is exact up to 2²⁴, and faster."""
    if mask.ndim > 1 and len(mask) < 2**24:
        mask = jnp.sum(mask, axis=0, dtype=jnp.float32).astype(int)
    return jnp.sum(mask, dtype=int)


def _relative(optimizer: Optimizer, uniform: Optimizer, params: Params, inverse: Params) -> Params:
    """1/P of a leaf, times its learning rate over the largest one."""
    if uniform is optimizer:
        return inverse
    relative = jax.tree.map(lambda rate: rate / uniform.learning_rate, optimizer.learning_rates(params))
    return jax.tree.map(lambda leaf, share: leaf * beside(share, leaf), inverse, relative)


@eqx.filter_jit
def _previous_inverse(
    optimizer: Optimizer, uniform: Optimizer, params: Params, state: OptimizerState, iteration: Any
) -> Params:
    """1/P of the step before; 0 throughout at iteration 0."""
    inverse = _inverse_preconditioner(optimizer, params, state, jnp.maximum(iteration - 1, 0))
    inverse = _relative(optimizer, uniform, params, inverse)
    return jax.tree.map(lambda leaf: jnp.where(iteration > 0, leaf, 0.0), inverse)


def _largest(vector: Params) -> jax.Array:
    """The largest magnitude of all entries."""
    return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0.0) for leaf in jax.tree.leaves(vector)]))


def _length(vector: Params, inverse: Params, largest: jax.Array) -> jax.Array:
    """√(xᵀPx) of the part of a unit vector that moves; P over its smallest entry is at least 1."""
    scaled = jax.tree.map(
        lambda leaf, share: jnp.where(share > 0, leaf**2 / positive(share / largest), 0), vector, inverse
    )
    parts = [total(leaf) for leaf in jax.tree.leaves(scaled)]
    return jnp.sqrt(sum(parts[1:], parts[0]) / largest)


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


def _lagging(optimizer: Optimizer, state: OptimizerState, gradient: Params, iteration: Any) -> Any:
    """For each coordinate 1 where v̂ > 0, of the first stage, and 2 where g² is far below it; 0 if there is no v̂."""
    squares = [filter.name for filter in optimizer.stages[0].filters() if filter.nonnegative]
    if len(squares) != 1:
        return jnp.zeros(1, jnp.int8)
    square = optimizer.bias_corrected(state.filters, iteration)[0][squares[0]]

    def kind(average: jax.Array, value: jax.Array) -> jax.Array:
        lags = jnp.abs(value) <= LAGGING_SHARE**0.5 * jnp.sqrt(average)
        return jnp.where(average > 0, jnp.where(lags, 2, 1), 0).astype(jnp.int8)

    return jax.tree.map(kind, square, gradient)


def _curvatures(local: LocalLoss, step: _StepMeasures) -> dict[str, Any]:
    """The quotients xᵀHx/‖x‖² and xᵀHx/xᵀPx along the gradient and along the step."""
    vectors = [step.gradient, step.increment]
    # Where nothing moves, neither P nor s knows of the coordinate: the quotient with P is that of the others.
    parts = [] if step.all_move else [_masked(vector, step.inverse) for vector in vectors]
    curvatures = local.curvatures([*vectors, *parts])
    measures = (
        ("gradient", step.gradient_norm, step.gradient_length),
        ("update", step.increment_norm, step.increment_length),
    )
    numbers = {}
    for (name, norm, length), value, inside in zip(measures, curvatures[:2], curvatures[-2:], strict=True):
        numbers[f"{name}_curvature"] = value if norm > 0 else math.nan
        numbers[f"{name}_preconditioned_curvature"] = inside / length / length if length > 0 else math.nan
    return numbers


_masked = jax.jit(masked)


@jax.jit
def _scales(inverse: Params, largest: Any) -> Params:
    """P^(−1/2) over its largest entry."""
    return jax.tree.map(lambda leaf: jnp.sqrt(leaf / largest), inverse)


def _eigenvalues(
    local: LocalLoss, step: _StepMeasures, previous_inverse: Params, settings: ReportSettings
) -> dict[str, Any]:
    """The preconditioned sharpness, the plain one if it is wanted, and what follows from their vectors."""
    start = settings.start
    unit = step.largest_inverse
    scales = _scales(step.inverse, unit)
    moves = None if step.all_move else step.inverse

    def preconditioned(vector: Params) -> Params:
        return local.product(vector, scales)

    last = None if start is None else start.vector
    pair = _leading(preconditioned, scales, moves, sum(step.moving), last, settings)
    growth, shares = _growth_and_shares(pair.vector, *_growth(step.inverse, previous_inverse))
    numbers: dict[str, Any] = dict(
        preconditioned_sharpness=pair.value * unit,
        preconditioned_sharpness_residual=pair.residual * unit,
        lowest_eigenvalue_bound=pair.lowest * unit,
        growth_from_second_moment=float(growth),
        share_by_leaf=_by_leaf(shares),
        vector=pair.vector,
        products=pair.products,
    )
    if settings.plain_sharpness:
        last = None if start is None else start.plain_vector
        count = sum(leaf.size for leaf in jax.tree.leaves(scales))
        plain = _leading(lambda vector: local.product(vector, None), scales, None, count, last, settings)
        numbers |= dict(
            sharpness=plain.value,
            sharpness_residual=plain.residual,
            plain_vector=plain.vector,
            products=numbers["products"] + plain.products,
        )
    if settings.leaf_sharpness:
        last = None if start is None else start.leaf_vectors
        pairs = _leading_of_blocks(preconditioned, scales, moves, step.moving, last, settings)
        names = list(numbers["share_by_leaf"])
        numbers |= dict(
            leaf_sharpness={name: leaf.value * unit for name, leaf in zip(names, pairs, strict=True)},
            leaf_sharpness_residual={name: leaf.residual * unit for name, leaf in zip(names, pairs, strict=True)},
            leaf_vectors=jax.tree.structure(pair.vector).unflatten([leaf.vector[0] for leaf in pairs]),
            products=numbers["products"] + sum(leaf.products for leaf in pairs),
        )
    return numbers


def _leading_of_blocks(
    apply: Callable[[Params], Params],
    like: Params,
    moves: Params | None,
    counts: Sequence[int],
    last: Params,
    settings: ReportSettings,
) -> list[LeadingPair]:
    """The leading pair of each leaf's diagonal block of an operator; vectors are lists of that leaf alone."""
    leaves, structure = jax.tree.flatten(like)
    zeros = [jnp.zeros_like(leaf) for leaf in leaves]
    pairs = []
    for index, leaf in enumerate(leaves):

        def of_block(vector: list[jax.Array], index: int = index) -> list[jax.Array]:
            whole = structure.unflatten([*zeros[:index], vector[0], *zeros[index + 1 :]])
            return [jax.tree.leaves(apply(whole))[index]]

        inside, start = (None if tree is None else [jax.tree.leaves(tree)[index]] for tree in (moves, last))
        pairs.append(_leading(of_block, [leaf], inside, counts[index], start, settings))
    return pairs


def _leading(
    apply: Callable[[Params], Params],
    like: Params,
    moves: Params | None,
    dimensions: int,
    start: Params,
    settings: ReportSettings,
) -> LeadingPair:
    if start is not None:
        shapes = [[jnp.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (start, like)]
        if shapes[0] != shapes[1]:
            sizes = [sum(math.prod(shape) for shape in tree) for tree in shapes]
            others = ", of other shapes" if sizes[0] == sizes[1] else ""
            raise ValueError(
                f"start is the report of {sizes[0]} parameters, but these are {sizes[1]}{others}; start= needs a "
                "report of the same run"
            )
        start = jax.tree.structure(like).unflatten(jax.tree.leaves(start))
    return leading_pair(
        apply,
        like,
        moves,
        dimensions,
        start=start,
        tolerance=settings.tolerance,
        max_products=settings.max_products,
        seed=settings.seed,
    )


@jax.jit
def _growth(inverse: Params, previous: Params) -> tuple[Params, jax.Array]:
    """ln(P before/P) of each coordinate, and whether there is one that has moved before."""
    known = jax.tree.leaves(jax.tree.map(lambda now, before: jnp.any((now > 0) & (before > 0)), inverse, previous))
    return jax.tree.map(_log_ratio, inverse, previous), jnp.any(jnp.stack(known))


@jax.jit
def _growth_and_shares(vector: Params, growth: Params, is_known: Any) -> tuple[jax.Array, Params]:
    """The change of ln s by that of P, and the squared norm of each leaf.

    The change is the sum of yᵢ² ln(Pᵢ before/Pᵢ) over the coordinates that have moved before; nan if none has.
    """
    squares = jax.tree.map(jnp.square, vector)
    return jnp.where(is_known, dot(squares, growth), jnp.nan), jax.tree.map(total, squares)


def _log_ratio(now: jax.Array, before: jax.Array) -> jax.Array:
    """ln(now/before), accurate for numbers that are nearly equal; 0 where one of them is 0."""
    small, large = jnp.minimum(now, before), jnp.maximum(now, before)
    ratio = jnp.where(small > 0, (large - small) / positive(small), 0)
    return jnp.where(now > before, 1, -1) * jnp.log1p(jnp.minimum(ratio, jnp.finfo(ratio.dtype).max))


def _by_leaf(numbers: Params) -> dict[str, float]:
    """A pytree of numbers by the names of its leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(numbers))
    return {jax.tree_util.keystr(path, simple=True, separator="/") or "params": float(leaf) for path, leaf in leaves}


def _critical_step(
    local: LocalLoss,
    loss: float,
    step: _StepMeasures,
    update_curvature: float,
    last: TrainingReport | None,
    learning_rate: float,
) -> CriticalStep:
    """The multiple of the step that raises the loss; the first try is the last one, or that of a parabola."""
    norm = step.increment_norm
    slope = step.gradient_norm * norm * step.slope
    # dᵀHd, by which a parabola would say where the loss is back at its value.
    bend = update_curvature * norm**2
    if last is not None and 0 < last.critical_sharpness < math.inf:
        guess = 2 / (learning_rate * last.critical_sharpness)
    else:
        guess = -2 * slope / bend if bend > 0 else 1.0
    rounding = 2 * float(jnp.finfo(jax.tree.leaves(step.increment)[0].dtype).eps) * abs(loss)
    difference = local.difference(step.increment)
    return critical_step(lambda multiple: difference(multiple * norm), slope, bend, guess, rounding)


def _error_of(search: CriticalStep, learning_rate: float) -> float:
    """The larger distance of the critical sharpness from the ends of its bracket."""
    if math.isnan(search.value):
        return math.nan
    if search.value == 0:
        return 0.0
    if math.isinf(search.high):
        return 2 / (learning_rate * search.low)
    return 2 / learning_rate * max(1 / search.low - 1 / search.value, 1 / search.value - 1 / search.high)


@functools.lru_cache(maxsize=32)
def _critical_curvature(uniform: Optimizer) -> float:
    """`critical_curvature` of an optimizer, by value: in a run it is asked for again and again."""
    return float(critical_curvature(uniform))


def _bounds(optimizer: Optimizer, iteration: int) -> dict[str, Any]:
    """The bound of the last stage and its region, where that has a pair (β, γ) and a v for each coordinate."""
    decays = _decays(optimizer.stages[-1])
    if decays is None:
        return dict(update_bound=math.nan, stability_exponent=math.nan, region="")
    beta, gamma = decays
    bound = update_bound(iteration, beta=beta, gamma=gamma, kind="discrete", bias_correction=optimizer.bias_correction)
    return dict(
        update_bound=float(bound),
        stability_exponent=float(stability_exponent(beta=beta, gamma=gamma)),
        region=_REGIONS[int(bounded_update_sign(beta=beta, gamma=gamma))],
    )


@functools.lru_cache(maxsize=32)
def _decays(stage: AbstractStage) -> tuple[float, float] | None:
    """The pair (β, γ) of a stage, by value as above."""
    decays = decays_as_adam(stage)
    return None if decays is None else (float(decays[0]), float(decays[1]))


def _checked_state(optimizer: Optimizer, params: Params, state: Any) -> OptimizerState:
    """The state in the precision of the parameters, or an error if it is not of this optimizer and parameters."""
    if not isinstance(state, OptimizerState):
        raise TypeError(
            f"optimizer_state must be an OptimizerState, got {describe(state)}; run.final_state[1] is one, and "
            "af.from_optax and adamflow.torch.from_torch read one"
        )
    expected = state_shapes(optimizer, params)
    same = jax.tree.structure(state) == jax.tree.structure(expected)
    if not same or [*map(jnp.shape, jax.tree.leaves(state))] != [*map(jnp.shape, jax.tree.leaves(expected))]:
        raise ValueError(
            f"optimizer_state is not a state of {optimizer.name!r} for these parameters: its filters or their shapes "
            "differ from those of optimizer.initial_state(params)"
        )
    return jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), state, expected)


def _local_loss(
    loss: Loss, params: Params, batches: Sequence[tuple[Any, ...]], *, linearize: bool = False
) -> LocalLoss:
    """A loss of jax near parameters, averaged over batches.

    Of a single batch the gradient is linearized once, if asked for: a product is then the linear part alone, two thirds
    of the work. What that keeps, about the memory of a gradient's own pass, would grow with the number of batches.
    """
    if not batches:
        raise ValueError("batches must hold at least one batch, got none; leave it out for loss(params)")
    dtype = jax.tree.leaves(params)[0].dtype
    linear: list[Any] = []

    def gradient() -> tuple[float, Params]:
        if linearize and len(batches) == 1:
            value, slope, product_of = _linearized(loss, params, *batches[0])
            linear[:] = [product_of]
            return float(value), slope
        results = [_value_and_gradient(loss, params, *batch) for batch in batches]
        return _mean([float(value) for value, _ in results]), _mean_of_trees([slope for _, slope in results])

    def curvatures(vectors: Sequence[Params]) -> list[float]:
        results = [_second_derivatives(loss, params, list(vectors), *batch) for batch in batches]
        return [_mean([float(value) for value in values]) for values in zip(*jax.device_get(results), strict=True)]

    def product(vector: Params, scales: Params | None) -> Params:
        if linear:
            return _linear_product(linear[0], vector, scales)
        return _mean_of_trees([_product(loss, params, vector, scales, *batch) for batch in batches])

    def difference(direction: Params) -> Callable[[float], float]:
        def value(step: float) -> float:
            values = [_value(loss, params, direction, jnp.asarray(step, dtype), *batch) for batch in batches]
            return _mean([float(value) for value in values])

        initial = value(0.0)
        return lambda step: value(step) - initial

    return LocalLoss(gradient, curvatures, product, difference)


def _mean(values: Sequence[float]) -> float:
    return sum(values[1:], values[0]) / len(values)


def _mean_of_trees(trees: Sequence[Params]) -> Params:
    if len(trees) == 1:
        return trees[0]
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]) / len(leaves), *trees)


@program
def _value_and_gradient(loss: Loss, params: Params, *batch: Batch) -> Any:
    return jax.value_and_grad(lambda x: scalar_loss(loss, x, *batch))(params)


@program
def _linearized(loss: Loss, params: Params, *batch: Batch) -> Any:
    """The loss, its gradient, and x ↦ H x as a function of pytrees that holds what it needs."""
    value_and_gradient = jax.value_and_grad(lambda x: scalar_loss(loss, x, *batch))
    gradient, linear, value = jax.linearize(lambda x: value_and_gradient(x)[::-1], params, has_aux=True)
    return value, gradient, linear


@program
def _second_derivatives(loss: Loss, params: Params, vectors: list[Params], *batch: Batch) -> list[jax.Array]:
    """xᵀHx, the second derivative along x, of each vector: by forward mode it is some two thirds of a product."""

    def of_params(x: Params) -> jax.Array:
        return scalar_loss(loss, x, *batch)

    def along(vector: Params) -> jax.Array:
        def slope(x: Params) -> jax.Array:
            return jax.jvp(of_params, (x,), (vector,))[1]

        try:
            return jax.jvp(slope, (params,), (vector,))[1]
        except (TypeError, NotImplementedError):
            # A part with a custom_vjp has reverse mode alone.
            return dot(vector, jax.jvp(jax.grad(of_params), (params,), (vector,))[1])

    return [along(vector) for vector in vectors]


@program
def _linear_product(linear: Callable[[Params], Params], vector: Params, scales: Params | None) -> Params:
    return _between(linear, vector, scales)


@program
def _product(loss: Loss, params: Params, vector: Params, scales: Params | None, *batch: Batch) -> Params:
    gradient = jax.grad(lambda x: scalar_loss(loss, x, *batch))
    return _between(lambda tangent: jax.jvp(gradient, (params,), (tangent,))[1], vector, scales)


def _between(product: Callable[[Params], Params], vector: Params, scales: Params | None) -> Params:
    """D H D x, or H x."""
    if scales is None:
        return product(vector)
    return jax.tree.map(jnp.multiply, scales, product(jax.tree.map(jnp.multiply, scales, vector)))


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
