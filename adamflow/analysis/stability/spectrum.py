r"""The leading eigenvalues of one discrete step, or of a flow's vector field, at a state of it."""

import contextlib
import functools
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Complex, Float

from adamflow.analysis.differentiability import NOT_DIFFERENTIABLE, lacks_derivative
from adamflow.analysis.stability.krylov import BALANCING_ROUNDS, Rank, balance, krylov_space, real_part, sort_keys
from adamflow.checks import check_choice, check_count, check_params, check_range, check_single, is_concrete
from adamflow.flows import AbstractFlow
from adamflow.flows.norms import norm, numpy_norm, unit_of
from adamflow.losses import admit_loss
from adamflow.optimizers import Optimizer, OptimizerState, check_optimizer
from adamflow.optimizers.record import Record
from adamflow.programs import program
from adamflow.types import Loss, Scalar, State

#: Up to this many entries of the state method="auto" is "dense": below a second on one core.
DENSE_LIMIT = 400
_NOT_FINITE = "the Jacobian is not finite at this state; look at the loss's second derivatives, or try epsilon > 0"

Flat: TypeAlias = Float[Array, "size"]


class Spectrum(Record):
    r"""Leading eigenvalues μ of a Jacobian A, and how far each can be trusted; `print` says it in words.

    Attributes:
        values: μ, the most leading first; of a conjugate pair the one above the real axis first.
        residuals: ‖A y − μ y‖/‖y‖ for the eigenvector y, computed by products of their own. Norms are those of the
            entries divided by `scales`: θ, m and v have different units, so a plain norm would compare nothing.
        converged: whether the residual is at most the tolerance times the largest modulus found. If not, the value is
            the best estimate there is.
        splits_conjugate_pair: whether a value's conjugate, an eigenvalue too, did not fit into `count`.
        vector: the eigenvector of the first value, a pytree like the state, complex; the norm above is 1.
        scales: the scale of each entry of the state, a pytree like it.
        method: "dense" or "arnoldi".
        products: products with A or its transpose that were computed.
    """

    values: Complex[Array, "*batch count"]
    residuals: Float[Array, "*batch count"]
    converged: Bool[Array, "*batch count"]
    splits_conjugate_pair: Bool[Array, "*batch"]
    vector: State
    scales: State
    method: str = eqx.field(static=True)
    products: int = eqx.field(static=True)

    def __str__(self) -> str:
        if not is_concrete(self.values) or self.values.ndim != 1:
            return repr(self)
        rows = [f"{self.method}, {self.products} products: {_summary(np.asarray(self.converged), self.values)}"]
        for value, residual, converged in zip(self.values, self.residuals, self.converged, strict=True):
            number = complex(value)
            shown = f"{number.real:.8g}" if number.imag == 0 else f"{number.real:.8g} {number.imag:+.8g}i"
            rows.append(f"  {shown}, residual {float(residual):.1e}{'' if converged else ', not converged'}")
        if self.splits_conjugate_pair:
            rows.append("  (a conjugate is left out: one pair did not fit into the count)")
        return "\n".join(rows)


def jacobian_spectrum(
    model: Optimizer | AbstractFlow,
    loss: Loss,
    state: State,
    *,
    iteration: Scalar,
    count: int = 6,
    method: str = "auto",
    tolerance: float | None = None,
    max_products: int = 3000,
    depth: int | None = None,
    seed: int = 0,
    has_aux: bool = False,
) -> Spectrum:
    r"""The leading eigenvalues of the Jacobian of one step, or of a vector field, at a state: θ and all filters.

    For an optimizer the map takes (θₙ, memory after n − 1) to (θₙ₊₁, memory after n), with ε, weight decay and bias
    correction at n as the record says, and leading means largest modulus: above 1 the state's neighbours separate. For
    a flow it is the vector field at the time n, per iteration, and leading means largest real part: above 0 they do.

    Both methods divide each entry of the state by a scale that makes rows and columns of A about equal (Chen and
    Demmel's balancing), which changes no eigenvalue. Without it rounding of θ, m and v, of very different sizes, makes
    up eigenvalues in float32.

    - "dense": the full Jacobian and all its eigenvalues. Works under jit and vmap.
    - "arnoldi": the Krylov-Schur method, the restarted Arnoldi method of Stewart, by products with A alone (a jvp of
      the step, compiled once for each loss and shapes). It holds `depth` + 1 vectors of the size of the state and
      about a dozen more, besides two to three times what a gradient takes. Eigenvalues in a cluster, such as the many
      near β that slow filters have, come last or not at all: `converged` tells. Of equal or nearly equal ones it may
      find fewer than there are. Not under jit or vmap.

    Args:
        model: a record, for its discrete step, or a flow.
        loss: `loss(params)`, a real scalar with second derivatives.
        state: where to look: `Trajectory.final_state` of `af.iterate` or `af.solve`. Leaves that are no floating-point
            arrays are constants.
        iteration: n ≥ 0 of that state: `trajectory.iterations[-1]` if the run was saved to its end. `math.inf` is
            the limit in which bias correction is over.
        count: how many eigenvalues; at most the number of entries of the state.
        method: "dense", "arnoldi", or "auto": dense up to 400 entries (`DENSE_LIMIT`).
        tolerance: of the residuals, relative to the largest modulus; by default √(machine epsilon).
        max_products: "arnoldi" stops after about so many products with A, converged or not.
        depth: vectors that "arnoldi" keeps, by default 2 `count` + 8. More need fewer products.
        seed: a whole number that determines the random signs and the start.
        has_aux: whether the loss returns (value, aux); aux is left out.

    Returns:
        a `Spectrum`. Where there is no finite Jacobian, under jit or vmap, values and residuals are NaN.

    Raises:
        ValueError: the Jacobian is not finite, or does not exist: ε = 0 and v = 0, in a coordinate whose gradient does
            not vanish all around; "arnoldi" is asked for under jit or vmap; an argument is out of range.
        TypeError: the state is none of this model's.

    Source: derivation of this project for the map; T.-Y. Chen and J. W. Demmel, Balancing sparse matrices for computing
    eigenvalues, Linear Algebra Appl. 309 (2000); G. W. Stewart, A Krylov-Schur algorithm for large eigenproblems,
    SIAM J. Matrix Anal. Appl. 23 (2002).

    Example:
        >>> import adamflow as af, math
        >>> problem, optimizer = af.problems.quadratic([1.0]), af.adam(0.1, gamma=0.5, epsilon=0.1)
        >>> run = af.iterate(optimizer, problem.loss, problem.params, 2000)
        >>> print(af.analysis.jacobian_spectrum(optimizer, problem.loss, run.final_state, iteration=math.inf, count=1))
        dense, 3 products: all 1 converged
          0.999, residual ...
    """
    system = _system(model, admit_loss(loss, has_aux), state, iteration)
    missing = _lacks_derivative(system)
    if is_concrete(missing) and missing:
        raise ValueError(f"the Jacobian does not exist at this state: the map is {NOT_DIFFERENTIABLE}")
    size = system.point.size
    check_choice("method", method, ("auto", "dense", "arnoldi"))
    count = check_count("count", count)
    if count > size:
        raise ValueError(f"count must be at most the number of entries of the state, {size}, got {count}")
    limit = float(jnp.finfo(system.point.dtype).eps) ** 0.5 if tolerance is None else tolerance
    check_range("tolerance", check_single("tolerance", limit), 0, 1, low_open=True, high_open=True)
    rank = abs if isinstance(model, Optimizer) else real_part
    if method == "dense" or (method == "auto" and size <= DENSE_LIMIT):
        parts = _dense(system, rank, jnp.asarray(seed))
        if not is_concrete(missing):
            parts = [*(jnp.where(missing, jnp.nan, part) for part in parts[:2]), *parts[2:]]
        if is_concrete(parts) and not np.all(np.isfinite(parts[1])):
            raise ValueError(_NOT_FINITE)
        return _spectrum(*parts, count=count, tolerance=limit, method="dense", products=size)
    if not is_concrete(system):
        raise ValueError(
            f"a state of {size} entries is traced by jit or vmap, where only method='dense' works (by itself up to "
            f"{DENSE_LIMIT} entries); call jacobian_spectrum outside, state by state"
        )
    depth = 2 * count + 8 if depth is None else check_count("depth", depth, low=min(count + 4, size))
    return _arnoldi(system, rank, count, limit, min(depth, size), check_count("max_products", max_products), seed)


class _System(eqx.Module):
    """A map of the flattened state: the discrete step, or the vector field."""

    model: Optimizer | AbstractFlow
    loss: Loss
    moving: Any
    fixed: Any
    iteration: Array

    @property
    def point(self) -> Flat:
        return ravel_pytree(self.moving)[0]

    def __call__(self, flat: Flat) -> Flat:
        state = eqx.combine(self.unravel(flat), self.fixed)
        if isinstance(self.model, AbstractFlow):
            image = self.model.vector_field(self.iteration, state, self.loss)
        else:
            image = self.model.step(self.loss, state, self.iteration)
        return ravel_pytree(eqx.filter(image, eqx.is_inexact_array))[0]

    def unravel(self, flat: Any) -> Any:
        """A flat vector, real or complex, as a pytree like the state."""
        unravel = ravel_pytree(self.moving)[1]
        if jnp.iscomplexobj(flat):
            return jax.tree.map(jax.lax.complex, unravel(jnp.real(flat)), unravel(jnp.imag(flat)))
        return unravel(flat)


def _system(model: Optimizer | AbstractFlow, loss: Loss, state: Any, iteration: Scalar) -> _System:
    hint = "take that of the state: trajectory.iterations[-1], or math.inf"
    check_range("iteration", check_single("iteration", iteration), 0, hint=hint)
    hint = "hand in Trajectory.final_state of a run of this very optimizer (af.iterate) or flow (af.solve)"
    if not isinstance(model, AbstractFlow):
        check_optimizer("jacobian_spectrum", model)
    is_discrete = isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], OptimizerState)
    if isinstance(model, AbstractFlow):
        _check_flow_state(model, loss, state, is_discrete, hint)
    elif not is_discrete:
        raise TypeError(f"the state of a discrete step is (params, OptimizerState), got {type(state).__name__}; {hint}")
    else:
        check_params(state[0], "the state's params")
    moving, fixed = eqx.partition(jax.tree.map(jnp.asarray, state), eqx.is_inexact_array)
    system = _System(model, loss, moving, fixed, jnp.asarray(iteration, float))
    if (size := system.point.size) == 0:
        raise ValueError("the state has no floating-point entry, so it has no Jacobian")
    if (image := eqx.filter_eval_shape(system, system.point)).shape != (size,):
        raise TypeError(f"the state has {size} floating-point entries, its image {image.size}; {hint}")
    return system


def _check_flow_state(flow: AbstractFlow, loss: Loss, state: Any, is_discrete: bool, hint: str) -> None:
    wanted, params = "what its initial_state returns", None
    with contextlib.suppress(AttributeError, KeyError, IndexError, TypeError):
        params = state[0] if is_discrete else flow.params(state)
    if params is not None:
        expected = jax.eval_shape(lambda params: flow.initial_state(loss, params), params)
        if jax.tree.structure(expected) == jax.tree.structure(state):
            return
        wanted += f", a {type(expected).__name__} with all its parts"
    got = "(params, OptimizerState) of the discrete step" if is_discrete else type(state).__name__
    raise TypeError(f"the state of {flow.name!r} is {wanted}, got {got}; {hint}")


def _lacks_derivative(system: _System) -> Any:
    model, state = system.model, eqx.combine(system.moving, system.fixed)
    if isinstance(model, Optimizer):
        return lacks_derivative(model, system.loss, state[0], state[1], system.iteration)
    if not hasattr(state, "filters") or not all(stage.only_averages for stage in model.optimizer.stages):
        return False
    return lacks_derivative(model.optimizer, system.loss, model.params(state), state.filters, system.iteration)


@program
def _product(system: _System, scales: Flat, vector: Flat) -> Flat:
    """The balanced Jacobian S⁻¹ A S times a vector."""
    # A jvp recomputes the gradient in each product. To keep it (jax.linearize) would cost a compilation per state.
    return jax.jvp(system, (system.point,), (scales * vector,))[1] / scales


@program
def _transposed_product(system: _System, scales: Flat, vector: Flat) -> Flat:
    """The transpose of the balanced Jacobian, S Aᵀ S⁻¹, times a vector."""
    return scales * jax.vjp(system, system.point)[1](vector / scales)[0]


@program(compiles_fast=False)
def _dense(system: _System, rank: Rank, seed: Array) -> tuple[Any, ...]:
    """All eigenvalues by rank, their residuals, the first eigenvector, and the scales."""
    matrix = jax.jacfwd(system)(system.point)
    scales = balance(lambda s, x: matrix @ (s * x) / s, lambda s, x: s * (matrix.T @ (x / s)), system.point, seed)
    balanced = matrix * scales / scales[:, None]
    unit = unit_of(balanced, (0, 1))
    values, vectors = jnp.linalg.eig(balanced / unit)
    values = unit[0] * values
    order = jnp.lexsort(sort_keys(values, rank))
    values, vectors = values[order], vectors[:, order]
    residuals = norm(balanced @ vectors - values * vectors, axis=0)
    return values, residuals, system.unravel(scales * vectors[:, 0]), system.unravel(scales)


def _spectrum(
    found: Any, residuals: Any, vector: Any, scales: Any, *, count: int, tolerance: Any, method: str, products: int
) -> Spectrum:
    """The record, from all eigenvalues (or estimates) that were found and the residuals of the first."""
    values, residuals, converged, splits = _first_values(found, residuals, tolerance, count)
    return Spectrum(values, residuals, converged, splits, vector, scales, method, products)


@functools.partial(jax.jit, static_argnames="count")
def _first_values(found: Any, residuals: Any, tolerance: Any, count: int) -> tuple[Array, Array, Array, Array]:
    """So many values, their residuals, whether they are converged, and whether they split a conjugate pair."""
    values, residuals = found[:count], residuals[:count]
    has_conjugate = jnp.any(values[:, None] == jnp.conj(values), axis=1)
    converged = residuals <= tolerance * jnp.abs(found).max()
    return values, residuals, converged, ~jnp.all(has_conjugate | jnp.isnan(values))


def _arnoldi(
    system: _System, rank: Rank, count: int, tolerance: float, depth: int, max_products: int, seed: int
) -> Spectrum:
    point, products = system.point, 2 * BALANCING_ROUNDS
    scales = balance(lambda s, x: _product(system, s, x), lambda s, x: _transposed_product(system, s, x), point, seed)

    def apply(vector: np.ndarray) -> np.ndarray:
        nonlocal products
        products += 1
        image = np.asarray(_product(system, scales, jnp.asarray(vector, point.dtype)))
        if not np.all(np.isfinite(image)):
            raise ValueError(_NOT_FINITE)
        return image

    start = np.random.default_rng(seed).standard_normal(point.size).astype(point.dtype)
    space = krylov_space(apply, start, rank, count=count, depth=depth, tolerance=tolerance, max_products=max_products)
    values, residuals = space.values.astype(np.result_type(point.dtype, np.complex64)), np.empty(count, point.dtype)
    first = None
    for place, value in enumerate(values[:count].tolist()):
        vector = space.vector(place)
        image = apply(np.real(vector)) + (1j * apply(np.imag(vector)) if value.imag else 0)
        residuals[place] = numpy_norm(image - (value if value.imag else value.real) * vector)
        first = vector if place == 0 else first
    state = system.unravel(scales * jnp.asarray(first, values.dtype)), system.unravel(scales)
    found = jnp.asarray(values), jnp.asarray(residuals)
    return _spectrum(*found, *state, count=count, tolerance=tolerance, method="arnoldi", products=products)


def _summary(converged: np.ndarray, values: Array) -> str:
    if jnp.isnan(values).all():
        return f"the Jacobian is not finite, or the map is {NOT_DIFFERENTIABLE}"
    if converged.all():
        return f"all {converged.size} converged"
    return f"{converged.sum()} of {converged.size} converged, the others are estimates (see their residuals)"
