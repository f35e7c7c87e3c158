r"""How far a network is from its mean-square edge: the index Q of its preconditioned Hessian, without matrices.

Q = Σᵢ q(λᵢ) over the eigenvalues of P^{−1/2} H P^{−1/2}, with q = x/(1 − x) of `mean_square`; negative ones count as 0.
The leading eigenvalues, where q is curved, are found by the Lanczos method and projected out; the sum over all others
by stochastic Lanczos quadrature with random signs, whose scatter is the error. For small steps Q ≈ η tr(P⁻¹H)/(2B).
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree
from jaxtyping import Float
from matfree.decomp import hessenberg

from adamflow.checks import check_count, check_params, check_range, is_concrete
from adamflow.flows import Snapshot
from adamflow.flows.lanczos import lanczos
from adamflow.losses import admit_loss, as_scalar
from adamflow.noise.covariance import check_examples, effective_batch_size
from adamflow.noise.mean_square import dynamics_of
from adamflow.optimizers import Optimizer, OptimizerState
from adamflow.optimizers.reading import reads_as_adam
from adamflow.optimizers.record import Record
from adamflow.programs import program
from adamflow.types import Batch, Filters, Loss, Params, Scalar


class EdgeIndex(Record):
    """What `edge_index` returns: Q with its error, and the spectrum behind it.

    Attributes:
        value: Q; infinite beyond the pole, where one direction alone is unstable.
        error: its standard error, from the scatter of the probes.
        leading: the largest eigenvalues of P^{−1/2} H P^{−1/2}, rising.
        residuals: of these; some eigenvalue lies within this distance of each.
        pole: the largest xᵢ: 1 is the pole of Q.
    """

    value: Float[Array, "*saved"]
    error: Float[Array, "*saved"]
    leading: Float[Array, "*saved leading"]
    residuals: Float[Array, "*saved leading"]
    pole: Float[Array, "*saved"]

    def __str__(self) -> str:
        if not is_concrete(self.value) or self.value.ndim:
            return repr(self)
        return (
            f"edge index {float(self.value):.4g} ± {float(self.error):.2g} (1 is the mean-square edge), largest "
            f"eigenvalue {float(self.leading[-1]):.4g}"
        )


class BatchSharpness(Record):
    """What `batch_sharpness` returns.

    Attributes:
        value: E[g_Bᵀ P⁻¹ H_B P⁻¹ g_B]/E[g_Bᵀ P⁻¹ g_B].
        error: its standard error over the batches.
    """

    value: Float[Array, "*saved"]
    error: Float[Array, "*saved"]


class _Step(eqx.Module):
    """The numbers of a step as inputs of a program: η, γ, λ and f."""

    learning_rate: Any
    gamma: Any
    weight_decay: Any
    share: Any

    def kick(self, s: Array) -> Array:
        """x = f λ² G of an eigenvalue; 0 for negative ones, infinite where the mean step is unstable."""
        eta, gamma, decay = self.learning_rate, self.gamma, self.weight_decay
        c, s = 1 - eta * decay, jnp.maximum(s, 0.0)
        rest = (1 + c) * (1 + gamma) - eta * (1 - gamma) * s
        total = (1 - gamma * c) * (s + decay) * jnp.where(rest > 0, rest, 1.0)
        x = self.share * s**2 * eta * (1 - gamma) * (1 + gamma * c) / jnp.where(total > 0, total, 1.0)
        return jnp.where(rest > 0, x, jnp.inf)

    def index(self, s: Array) -> Array:
        x = self.kick(s)
        return jnp.where(x < 1, x / jnp.where(x < 1, 1 - x, 1.0), jnp.inf)


def edge_index(
    loss: Loss,
    params: Params,
    optimizer: Optimizer,
    state: OptimizerState | Filters,
    batch_size: int,
    *,
    examples: int | None = None,
    law_factor: Scalar = 1.0,
    iteration: Scalar | None = None,
    leading: int = 10,
    depth: int = 40,
    probes: int = 8,
    probe_depth: int = 10,
    seed: Scalar = 0,
) -> EdgeIndex:
    r"""The spectral edge index Q of a network at a state: 1 is the mean-square edge of its minibatch steps.

    $Q = \sum_i 1/\big(B(2/(\eta\lambda_i) - k) - 1\big)$, $k = (1-\gamma)/(1+\gamma)$, over the positive eigenvalues of
    $P^{-1/2} H P^{-1/2}$ with the Hessian of the full loss; with weight decay, and without replacement, as in
    `mean_square_edge`. The law of the examples is taken to be that of Gaussian features.

    It takes `depth` + `probes` × `probe_depth` products with the Hessian. The leading eigenvalues are those of a
    Lanczos iteration; all others are summed by quadrature from random vectors, whose scatter gives the error.

    Args:
        loss: `loss(params)` on all the data, a real scalar.
        params: θ.
        optimizer: SGD, RMSprop, Adam or AdamW.
        state: the optimizer's state after an iteration, or its filters as a `Snapshot` has them; P is read from it.
        batch_size: B.
        examples: N, if batches are drawn without replacement.
        law_factor: κ > 0, the `law_factor` of the examples; 1 for Gaussian rank-one features.
        iteration: n of that state, for bias correction; by default late, where there is none.
        leading: eigenvalues to be told apart, at least 1.
        depth: iterations to find them.
        probes: random vectors for the others, at least 2.
        probe_depth: iterations for each.
        seed: a whole number that determines the random vectors.

    Returns:
        an `EdgeIndex`; `print` says it in words.

    Raises:
        ValueError: an argument is out of its range.
        TypeError: the optimizer is another one.

    Source: derivation of this project.

    Example:
        >>> import adamflow as af
        >>> problem, optimizer = af.problems.quadratic([0.25, 0.5]), af.sgd(1.0)
        >>> state = optimizer.initial_state(problem.params)
        >>> print(af.noise.edge_index(problem.loss, problem.params, optimizer, state, batch_size=1))
        edge index 0.6667 ± 0 (1 is the mean-square edge), largest eigenvalue 0.5
    """
    loss, params = admit_loss(loss), check_params(params)
    filters = state.filters if isinstance(state, OptimizerState) else state
    late = jnp.asarray(1e9, float) if iteration is None else jnp.asarray(iteration)
    preconditioner = metric_of(optimizer, params, filters, late)
    sizes = (
        check_count("leading", leading),
        check_count("depth", depth, 2),
        check_count("probes", probes, 2),
        check_count("probe_depth", probe_depth),
    )
    return _edge_index(
        loss,
        params,
        preconditioner,
        _step_of(optimizer, batch_size, examples, law_factor),
        sizes,
        jnp.asarray(seed),
    )


class EdgeIndexObserver(eqx.Module):
    """What `edge_index_observer` returns: a function from a `Snapshot` to an `EdgeIndex`."""

    optimizer: Optimizer
    loss: Loss
    step: _Step
    seed: Array
    sizes: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, snapshot: Snapshot) -> EdgeIndex:
        preconditioner = metric_of(self.optimizer, snapshot.params, snapshot.filters, snapshot.iteration)
        return _edge_index(self.loss, snapshot.params, preconditioner, self.step, self.sizes, self.seed)


def edge_index_observer(
    optimizer: Optimizer,
    loss: Loss,
    batch_size: int,
    *,
    examples: int | None = None,
    leading: int = 10,
    depth: int = 40,
    probes: int = 8,
    probe_depth: int = 10,
    seed: Scalar = 0,
) -> EdgeIndexObserver:
    """The `edge_index` along a run, as `observe=` of `af.iterate`; give the run a `save_at`.

    The arguments are those of `edge_index`; the loss is that of all the data. Observers made with the same settings
    share compiled programs.

    Example:
        >>> import adamflow as af
        >>> problem, optimizer = af.problems.quadratic([1.0, 3.0]), af.adam(0.01)
        >>> observe = af.noise.edge_index_observer(optimizer, problem.loss, batch_size=4)
        >>> run = af.iterate(optimizer, problem.loss, problem.params, 20, save_at=[0, 10, 20], observe=observe)
        >>> run.observed.value.shape, run.observed.leading.shape
        ((3,), (3, 2))
    """
    sizes = (
        check_count("leading", leading),
        check_count("depth", depth, 2),
        check_count("probes", probes, 2),
        check_count("probe_depth", probe_depth),
    )
    return EdgeIndexObserver(
        optimizer, admit_loss(loss), _step_of(optimizer, batch_size, examples), jnp.asarray(seed), sizes
    )


def law_factor(
    loss: Loss, params: Params, preconditioner: Params, data: Batch, *, probes: int = 8, seed: Scalar = 0
) -> Float[Array, ""]:
    r"""By how much curvature fluctuates between examples, in units of what Gaussian rank-one features would do.

    $\kappa = (E\,\mathrm{tr}\,s_i^2 - \mathrm{tr}\,\bar s^2) / ((\mathrm{tr}\,\bar s)^2 + \mathrm{tr}\,\bar s^2)$ with
    the curvature $s_i = P^{-1/2} H_i P^{-1/2}$ of each example. It is 1 for Gaussian rank-one features, about 1/r where
    an example has r outputs of equal weight, and larger where few examples have most of the curvature. For small steps,
    whose second moments are nearly isotropic in the metric of P, `edge_index(..., law_factor=κ)` is then the index for
    the law of the examples themselves.

    Traces are those of random signs, by per-example products with the Hessian.

    Args:
        loss: `loss(params, batch)`, the mean over the examples of a batch.
        params: θ.
        preconditioner: P, a pytree like the parameters, as `metric_of` reads it; where it is 0 nothing moves.
        data: all examples, along the leading axis of each array.
        probes: random vectors, at least 2.
        seed: a whole number that determines them.

    Source: derivation of this project.

    Example:
        >>> import adamflow as af, jax, jax.numpy as jnp
        >>> features = jax.random.normal(jax.random.key(0), (4000, 3))
        >>> loss = lambda params, x: jnp.mean((x @ params) ** 2) / 2
        >>> factor = af.noise.law_factor(loss, jnp.zeros(3), jnp.ones(3), features, probes=50)
        >>> print(abs(float(factor) - 1) < 0.2)
        True
    """
    loss, params = admit_loss(loss), check_params(params)
    data = jax.tree.map(jnp.asarray, data)
    check_examples(data)
    return _law_factor(loss, params, preconditioner, data, check_count("probes", probes, 2), jnp.asarray(seed))


def batch_sharpness(
    loss: Loss,
    params: Params,
    batches: Callable[[Any], Batch],
    preconditioner: Params | None = None,
    *,
    draws: int = 100,
    first: Scalar = 0,
) -> BatchSharpness:
    r"""Batch sharpness in the metric of P: $E[g_B^\top P^{-1} H_B P^{-1} g_B] / E[g_B^\top P^{-1} g_B]$.

    Under SGD (P = 1) it settles at 2/η (Andreyev and Beneventano, 2412.20553).

    Args:
        loss: `loss(params, batch)`.
        params: θ.
        batches: a function from an iteration to a batch.
        preconditioner: P, a pytree like the parameters; by default 1. Coordinates where it is 0 are left out.
        draws: batches to average over, at least 2.
        first: the iteration of the first batch that is drawn.

    Example:
        >>> import adamflow as af, jax.numpy as jnp
        >>> loss = lambda params, batch: batch * params**2 / 2
        >>> print(af.noise.batch_sharpness(loss, jnp.ones(()), lambda n: 1.0 + n % 2, draws=10).value)
        1.8
    """
    loss, params = admit_loss(loss), check_params(params)
    preconditioner = jax.tree.map(jnp.ones_like, params) if preconditioner is None else preconditioner
    return _batch_sharpness(loss, params, preconditioner, batches, check_count("draws", draws, 2), jnp.asarray(first))


def metric_of(optimizer: Optimizer, params: Params, filters: Filters, iteration: Scalar) -> Params:
    """P of a record: √v̂ + ε, or 1 where there is no second moment."""
    if not reads_as_adam(optimizer.stages[0]):
        return jax.tree.map(jnp.ones_like, params)
    return optimizer.preconditioner(filters, iteration)


def _step_of(optimizer: Optimizer, batch_size: int, examples: int | None, law_factor: Scalar = 1.0) -> _Step:
    check_range("law_factor", law_factor, 0, low_open=True)
    share = law_factor / effective_batch_size(batch_size, examples)
    return _Step(*(jnp.asarray(number) for number in (*dynamics_of("edge_index", optimizer), share)))


@program(compiles_fast=False)
def _edge_index(loss: Loss, params: Params, preconditioner: Params, step: _Step, sizes: Any, seed: Array) -> EdgeIndex:
    leading, depth, probes, probe_depth = sizes
    flat, unravel = ravel_pytree(params)
    leading, depth = min(leading, flat.size), min(depth, flat.size)
    weights = _weights(preconditioner)
    _, hessian = jax.linearize(jax.grad(as_scalar(loss)), params)

    def operator(vector: Array) -> Array:
        return weights * ravel_pytree(hessian(unravel(weights * vector)))[0]

    space = lanczos(operator, weights, depth, seed)
    values, coordinates = space.eigh()
    values, basis = space.unit * values[-leading:], coordinates[:, -leading:].T @ space.basis
    # Directions that the space does not have are vectors of 0; they take part in nothing.
    there = jnp.sum(basis**2, axis=1) > 0.5
    values = jnp.where(there, values, 0.0)
    residuals = jnp.linalg.norm(jax.vmap(operator)(basis) - values[:, None] * basis, axis=1)

    def beyond(vector: Array) -> Array:
        return vector - (basis @ vector) @ basis

    def quadrature(key: Array) -> Array:
        """vᵀ q(A) v in the complement, by Gauss quadrature in a Krylov space of v."""
        start = beyond((weights > 0) * jax.random.rademacher(key, flat.shape, flat.dtype))
        length = jnp.linalg.norm(start)
        safe = jnp.where(length > 1e-6, start, 1.0)
        projected = lambda vector: beyond(operator(beyond(vector)))  # noqa: E731
        found = hessenberg(min(probe_depth, flat.size), reortho="full", custom_vjp=False)(projected, safe)
        matrix = jnp.asarray(found.J_small)
        ritz, vectors = jnp.linalg.eigh(jnp.where(jnp.isfinite(matrix), matrix + matrix.T, 0.0) / 2)
        return jnp.where(length > 1e-6, length**2 * jnp.sum(vectors[0] ** 2 * step.index(ritz)), 0.0)

    rest = jax.lax.map(quadrature, jax.random.split(jax.random.fold_in(jax.random.key(0), seed), probes))
    value = jnp.sum(step.index(values)) + jnp.mean(rest)
    error = jnp.std(rest, ddof=1) / jnp.sqrt(probes)
    pole = step.kick(values[-1])
    return EdgeIndex(value, jnp.where(jnp.isfinite(value), error, jnp.nan), values, residuals, pole)


@program
def _batch_sharpness(
    loss: Loss, params: Params, preconditioner: Params, batches: Callable[[Any], Batch], draws: int, first: Array
) -> BatchSharpness:
    def divide(g: Array, p: Array) -> Array:
        return jnp.where(p > 0, g / jnp.where(p > 0, p, 1.0), 0.0)

    def look(n: Array) -> Array:
        batch = batches(n)
        gradient = jax.grad(lambda params: as_scalar(loss)(params, batch))
        value, hessian = jax.linearize(gradient, params)
        direction = jax.tree.map(
            lambda g, p: jnp.where(p > 0, g / jnp.where(p > 0, p, 1.0), 0.0), value, preconditioner
        )
        above, below = ravel_pytree(hessian(direction))[0], ravel_pytree(value)[0]
        flat = ravel_pytree(direction)[0]
        return jnp.stack([jnp.vdot(flat, above), jnp.vdot(flat, below)])

    rows = jax.lax.map(look, first + jnp.arange(draws))
    above, below = jnp.mean(rows, axis=0)
    value = above / below
    error = jnp.std(rows[:, 0] - value * rows[:, 1], ddof=1) / jnp.sqrt(draws) / jnp.abs(below)
    return BatchSharpness(value, error)


@program
def _law_factor(
    loss: Loss, params: Params, preconditioner: Params, data: Batch, probes: int, seed: Array
) -> Float[Array, ""]:
    flat, unravel = ravel_pytree(params)
    weights = _weights(preconditioner)
    alone = jax.tree.map(lambda leaf: leaf[:, None], data)

    def traces(key: Array) -> Array:
        """vᵀs̄v, |s̄v|² and the mean of |sᵢv|², of which the expectations are the traces."""
        signs = jax.random.rademacher(key, flat.shape, flat.dtype)

        def product(example: Batch) -> Array:
            gradient = jax.grad(lambda params: as_scalar(loss)(params, example))
            return weights * ravel_pytree(jax.jvp(gradient, (params,), (unravel(weights * signs),))[1])[0]

        rows = jax.vmap(product)(alone)
        mean = jnp.mean(rows, axis=0)
        return jnp.stack([jnp.vdot(signs, mean), jnp.vdot(mean, mean), jnp.mean(jnp.sum(rows**2, axis=1))])

    keys = jax.random.split(jax.random.fold_in(jax.random.key(1), seed), probes)
    rows = jax.lax.map(traces, keys)
    trace, square, each = jnp.mean(rows, axis=0)
    return (each - square) / (trace**2 + square)


def _weights(preconditioner: Params) -> Array:
    """P^{−1/2} as a vector; 0 where P is."""
    diagonal = ravel_pytree(preconditioner)[0]
    return jnp.where(diagonal > 0, 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0)), 0.0)
