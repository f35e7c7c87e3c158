r"""The covariance of a minibatch gradient, from per-example gradients: four models, a sampler, the noise scale.

With gᵢ the gradient of example i of N and ḡ their mean, Σ = (1/N) Σᵢ (gᵢ − ḡ)(gᵢ − ḡ)ᵀ (divisor N). The gradient of a
batch of B examples has mean ḡ and the covariance

    with replacement      Σ_B = Σ/B,
    without replacement   Σ_B = (Σ/B) (N − B)/(N − 1), which is 0 at B = N,

exactly, for any law of the examples. In epochs that are reshuffled each step has the second, but two batches of one
epoch are correlated, Cov = −Σ/(N − 1): what assumes independent steps overestimates the noise there.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key, PyTree

from adamflow.checks import check_choice, check_count, check_flag, check_params, check_real, describe, is_concrete
from adamflow.flows.tree_math import normal_like
from adamflow.losses import admit_loss, as_scalar
from adamflow.optimizers.hyperparameters import choice_called, count_called, flag_called
from adamflow.optimizers.record import Record
from adamflow.programs import program
from adamflow.types import ArrayLike, Batch, Loss, Numbers, Params, Scalar

KINDS = ("isotropic", "diagonal", "low_rank", "full")

#: Examples whose gradients are held at a time where their sum is enough.
_CHUNK = 64

#: Eigenvalues of a given covariance below minus this share of the largest are no rounding errors.
_ROUNDING = 1e-8


class GradientNoise(Record):
    """The noise of a gradient: a covariance Σ of one example, and Σ_B of a batch; how to apply it and to draw from it.

    Made by `covariance` from data, or by `known_covariance`. A pytree: it can be traced and batched with vmap.

    Attributes:
        mean: ḡ, the gradient without noise, a pytree like the parameters; 0 where the covariance was given.
        kind: "isotropic", "diagonal", "low_rank" or "full".
        variances: of one example: a number for "isotropic"; by coordinate for "diagonal"; for "low_rank" the variance
            of each direction beyond the leading ones; `None` for "full".
        factor: for "low_rank" and "full", rows F with Σ = FᵀF, the isotropic rest of "low_rank" left out.
        examples: N, or `None` where the covariance was given.
        batch_size: B.
        replacement: whether examples are drawn with replacement.
    """

    mean: Params
    kind: str = eqx.field(static=True, converter=choice_called("kind", KINDS))
    # Which of them is `None` follows from `kind`, which no type knows: `Any` spares readers a check.
    variances: Float[Array, "..."] | Any
    factor: Float[Array, "rows size"] | Any
    examples: int | None = eqx.field(static=True, default=None)
    batch_size: int = eqx.field(static=True, default=1)
    replacement: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        if not self.replacement and self.examples is not None and self.batch_size > self.examples:
            raise ValueError(
                f"batch_size must be at most the {self.examples} examples, got {self.batch_size}: without replacement "
                "a batch holds each example once; take a smaller batch, or replacement=True"
            )

    @property
    def scale(self) -> float:
        """Σ_B/Σ: 1/B with replacement, (N − B)/(B(N − 1)) without."""
        return 1 / effective_batch_size(self.batch_size, None if self.replacement else self.examples)

    @property
    def size(self) -> int:
        """The number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.mean))

    @property
    def trace(self) -> Float[Array, ""]:
        """tr Σ_B."""
        return jnp.sum(self._diagonal())

    @property
    def diagonal(self) -> Params:
        """The variances of the batch gradient by coordinate, diag Σ_B: a pytree like the parameters."""
        return self._unravel(self._diagonal())

    @property
    def noise_scale(self) -> Float[Array, ""]:
        """tr Σ/|ḡ|² (McCandlish et al., 1812.06162): the batch size at which noise and gradient are of one size."""
        flat, _ = ravel_pytree(self.mean)
        return self.trace / self.scale / jnp.sum(flat**2)

    def matrix(self) -> Float[Array, "size size"]:
        """Σ_B as a matrix, for few parameters."""
        return jax.vmap(lambda row: ravel_pytree(self.apply(self._unravel(row)))[0])(jnp.eye(self.size))

    def apply(self, vector: Params) -> Params:
        """Σ_B v for a pytree v like the parameters, without a matrix."""
        flat, unravel = ravel_pytree(vector)
        if self.kind in ("isotropic", "diagonal"):
            return unravel(self.scale * self.variances * flat)
        image = (self.factor @ flat) @ self.factor
        if self.kind == "low_rank":
            image = image + self.variances * self._beyond(flat)
        return unravel(self.scale * image)

    @property
    def one_sample_everywhere(self) -> bool:
        """Whether a key draws one sample at all places: this noise is the same wherever the parameters are."""
        return True

    def white(self, key: Key[Array, ""]) -> tuple[Array, ...]:
        """Independent standard normal numbers, as many as `root` needs."""
        return normal_like(key, self.white_shape)

    @property
    def white_shape(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The shapes of `white`: the Brownian motions that drive this noise."""
        dtype = jnp.result_type(*jax.tree.leaves(self.mean))
        full = jax.ShapeDtypeStruct((self.size,), dtype)
        if self.kind in ("isotropic", "diagonal"):
            return (full,)
        rows = jax.ShapeDtypeStruct((self.factor.shape[0],), dtype)
        return (rows, full) if self.kind == "low_rank" else (rows,)

    def root(self, white: tuple[Array, ...]) -> Params:
        """Σ_B^{1/2} dW: from independent numbers with unit variance to noise with the covariance Σ_B."""
        if self.kind in ("isotropic", "diagonal"):
            return self._unravel(np.sqrt(self.scale) * jnp.sqrt(self.variances) * white[0])
        flat = white[0] @ self.factor
        if self.kind == "low_rank":
            flat = flat + jnp.sqrt(self.variances) * self._beyond(white[1])
        return self._unravel(np.sqrt(self.scale) * flat)

    def sample(self, key: Key[Array, ""]) -> Params:
        """Noise with mean 0 and covariance Σ_B, Gaussian: a pytree like the parameters."""
        return self.root(self.white(key))

    def at(self, params: Params) -> "GradientNoise":
        """The noise at some parameters: this one, wherever they are."""
        return self

    def with_batch_size(self, batch_size: int) -> "GradientNoise":
        """The noise of batches of another size, by the exact law."""
        batch_size = check_count("batch_size", batch_size)
        return GradientNoise(
            self.mean, self.kind, self.variances, self.factor, self.examples, batch_size, self.replacement
        )

    def _diagonal(self) -> Float[Array, "size"]:
        if self.kind in ("isotropic", "diagonal"):
            diagonal = jnp.broadcast_to(self.variances, (self.size,))
        else:
            diagonal = jnp.sum(self.factor**2, axis=0)
        if self.kind == "low_rank":
            directions = self._directions()
            diagonal = diagonal + self.variances * (1 - jnp.sum(directions**2, axis=0))
        return self.scale * diagonal

    def _directions(self) -> Float[Array, "rank size"]:
        """The leading directions, in rows; 0 where the factor is."""
        norms = jnp.linalg.norm(self.factor, axis=1, keepdims=True)
        return self.factor / jnp.where(norms > 0, norms, 1.0)

    def _beyond(self, flat: Float[Array, "size"]) -> Float[Array, "size"]:
        """The part of a vector that is orthogonal to the leading directions."""
        directions = self._directions()
        return flat - (directions @ flat) @ directions

    def _unravel(self, flat: Float[Array, "size"]) -> Params:
        return ravel_pytree(self.mean)[1](flat)


class MinibatchNoise(Record):
    """The noise of minibatches of a loss wherever the parameters are: `at(params)` is the `covariance` there."""

    loss: Loss
    data: Batch
    batch_size: int = eqx.field(static=True, converter=count_called("batch_size"))
    kind: str = eqx.field(static=True, default="full", converter=choice_called("kind", KINDS))
    replacement: bool = eqx.field(static=True, default=True, converter=flag_called("replacement"))
    rank: int = eqx.field(static=True, default=10, converter=count_called("rank"))

    def __check_init__(self):
        check_examples(self.data)

    @property
    def one_sample_everywhere(self) -> bool:
        """Whether a key draws one sample at all places: a covariance at each place alone does not say what that is."""
        return self.kind == "full"

    def at(self, params: Params) -> GradientNoise:
        """The noise at some parameters."""
        count = check_examples(self.data)
        mean = jax.grad(as_scalar(self.loss))(params, self.data)
        variances, factor = None, None
        if self.kind in ("isotropic", "diagonal"):
            variances = _variances(self.loss, params, self.data, mean)
            variances = jnp.mean(variances) if self.kind == "isotropic" else variances
        else:
            factor = _centred(self.loss, params, self.data, mean) / np.sqrt(count)
            if self.kind == "low_rank":
                variances, factor = _leading(factor, min(self.rank, *factor.shape))
        return GradientNoise(mean, self.kind, variances, factor, count, self.batch_size, self.replacement)


def covariance(
    loss: Loss,
    params: Params,
    data: Batch | Callable[[Any], Batch],
    batch_size: int = 1,
    *,
    kind: str = "diagonal",
    replacement: bool = True,
    rank: int = 10,
    draws: int = 64,
) -> GradientNoise:
    r"""The covariance of a minibatch gradient at some parameters, from the gradient of each example.

    $\Sigma = \frac1N \sum_i (g_i - \bar g)(g_i - \bar g)^\top$, and for batches of B examples $\Sigma_B = \Sigma/B$
    with replacement, $\frac{\Sigma}{B}\frac{N-B}{N-1}$ without, both exact. The models are

    - "isotropic": (tr Σ/d) I;
    - "diagonal": the variance of each coordinate;
    - "low_rank": the `rank` leading eigenpairs, from the Gram matrix of the gradients; the rest of the trace is spread
      evenly over the other directions;
    - "full": Σ itself, never as a d × d array: n = (1/√(NB)) Σᵢ zᵢ (gᵢ − ḡ) with standard normal zᵢ has exactly this
      covariance. It keeps N gradients, as "low_rank" does while it is made.

    Args:
        loss: `loss(params, batch)`, the *mean* over the examples of a batch.
        params: θ, any pytree of floating-point arrays.
        data: a pytree of arrays whose leading axis is that of the N examples; or a function of the iteration that
            returns such batches, of which `draws` are put together: then N is the number of examples drawn.
        batch_size: B, at least 1.
        kind: one of the four models.
        replacement: whether examples are drawn with replacement.
        rank: the number of eigenpairs for "low_rank".
        draws: the number of batches to put together.

    Returns:
        a `GradientNoise`: `trace`, `diagonal`, `apply`, `sample`, `noise_scale`, `with_batch_size`.

    Raises:
        ValueError: an argument is out of its range, examples disagree in number, or without replacement a batch is
            larger than the data.

    Source: derivation of this project; enumerated over all batches in the tests.

    Example:
        >>> import adamflow as af, jax.numpy as jnp
        >>> loss = lambda params, batch: jnp.mean((batch - params) ** 2) / 2
        >>> noise = af.noise.covariance(loss, jnp.zeros(()), jnp.array([0.0, 1.0, 2.0, 5.0]), batch_size=2)
        >>> print(noise.trace, noise.with_batch_size(4).trace, noise.noise_scale)
        1.75 0.875 0.875
    """
    check_choice("kind", kind, KINDS)
    if callable(data):
        batches = [data(n) for n in range(check_count("draws", draws))]
        data = jax.tree.map(lambda *parts: jnp.concatenate([jnp.atleast_1d(part) for part in parts]), *batches)
    noise = MinibatchNoise(admit_loss(loss), jax.tree.map(jnp.asarray, data), batch_size, kind, replacement, rank)
    return _covariance(noise, check_params(params))


def known_covariance(covariance: ArrayLike | PyTree[Numbers], params: Params) -> GradientNoise:
    """A noise whose covariance is given, the same wherever the parameters are.

    Args:
        covariance: a number ≥ 0 (isotropic); a pytree like the parameters, of numbers ≥ 0 (diagonal); or a symmetric
            matrix without negative eigenvalues, over the parameters in the order of `jax.tree.leaves`.
        params: a pytree like the parameters.

    Raises:
        ValueError: the covariance has another shape, is not symmetric, or not positive.

    Example:
        >>> import adamflow as af, jax.numpy as jnp
        >>> af.noise.known_covariance(jnp.array([[1.0, 0.3], [0.3, 0.5]]), jnp.zeros(2)).trace
        Array(1.5, dtype=float64)
    """
    params = check_params(params)
    mean = jax.tree.map(jnp.zeros_like, params)
    flat, _ = ravel_pytree(mean)
    if jax.tree.structure(covariance) == jax.tree.structure(params):
        leaves = [_finite(leaf, flat.dtype) for leaf in jax.tree.leaves(covariance)]
        if [leaf.shape for leaf in leaves] == [leaf.shape for leaf in jax.tree.leaves(params)]:
            variances = ravel_pytree(leaves)[0]
            _check_positive(jnp.min(variances), "a variance")
            return GradientNoise(mean, "diagonal", variances, None)
    array = _finite(covariance, flat.dtype)
    if array.ndim == 0:
        _check_positive(array, "the variance")
        return GradientNoise(mean, "isotropic", array, None)
    if array.shape != (flat.size, flat.size):
        raise ValueError(
            f"covariance must be a number, a pytree like params, or a matrix of shape {(flat.size, flat.size)}, got "
            f"{describe(array)}"
        )
    if is_concrete(array) and not np.allclose(array, array.T, rtol=1e-6, atol=1e-12 * float(jnp.abs(array).max())):
        raise ValueError("covariance must be symmetric; give (S + S.T)/2 if that is what is meant")
    values, vectors = jnp.linalg.eigh(array)
    _check_positive(values[0] + _ROUNDING * jnp.abs(values).max(), "its smallest eigenvalue", values[0])
    return GradientNoise(mean, "full", None, jnp.sqrt(jnp.maximum(values, 0.0))[:, None] * vectors.T)


class NoisyLoss(eqx.Module):
    """A loss whose gradient is that of `loss` plus noise: `NoisyLoss(loss, noise)(params, key)`.

    What is added is ⟨n, θ⟩ with n drawn by the key from the noise at θ, held constant: its gradient is n. With
    `Keys(seed)` as `batches=` it runs in `af.iterate`, so that every optimizer can be tried under a known noise.

    Example:
        >>> import adamflow as af, jax.numpy as jnp
        >>> problem = af.problems.quadratic([1.0, 2.0])
        >>> loss = af.noise.NoisyLoss(problem.loss, af.noise.known_covariance(0.01, problem.params))
        >>> run = af.iterate(af.sgd(0.1), loss, problem.params, 50, batches=af.noise.Keys(0))
        >>> bool(run.outcome.successful)
        True
    """

    loss: Loss
    noise: "GradientNoise | MinibatchNoise"

    @property
    def one_sample_everywhere(self) -> bool:
        """Whether a key stands for one sample at all places, as optimizers with two gradients of one sample need."""
        return self.noise.one_sample_everywhere

    def __call__(self, params: Params, key: Key[Array, ""]) -> Float[Array, ""]:
        place = jax.lax.stop_gradient(params)
        noise = self.noise.at(place).sample(key)
        tilts = jax.tree.map(
            lambda n, leaf: jnp.sum(jax.lax.stop_gradient(n) * (leaf - jax.lax.stop_gradient(leaf))), noise, params
        )
        return self.loss(params) + sum(jax.tree.leaves(tilts))


def _as_key(key: int | Key[Array, ""]) -> Key[Array, ""]:
    return jax.random.key(key) if isinstance(key, int) else key


class Keys(eqx.Module):
    """A key for each iteration, as `batches=` of `af.iterate`."""

    key: Key[Array, ""] = eqx.field(converter=_as_key)

    def __call__(self, iteration: Scalar) -> Key[Array, ""]:
        return jax.random.fold_in(self.key, iteration)


def noise_scale(loss: Loss, params: Params, data: Batch, *, curvature: bool = False) -> Float[Array, ""]:
    """The noise scale of a problem as one number: the batch size at which noise and gradient are of one size.

    tr Σ/|ḡ|², or with the curvature tr(HΣ)/(ḡᵀHḡ), H the Hessian of the loss (McCandlish et al., 1812.06162).

    Args:
        loss: `loss(params, batch)`, the mean over the examples.
        params: θ.
        data: all examples, along the leading axis of each array.
        curvature: whether directions are weighted by the Hessian.

    Example:
        >>> import adamflow as af
        >>> problem = af.problems.logistic()
        >>> float(af.noise.noise_scale(problem.loss, problem.params, problem.loss.examples)) > 1
        True
    """
    loss, params = admit_loss(loss), check_params(params)
    data = jax.tree.map(jnp.asarray, data)
    check_examples(data)
    return _noise_scale(loss, params, data, check_flag("curvature", curvature))


def noise_scale_from_norms(
    small: Scalar, large: Scalar, small_batch: int, large_batch: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Unbiased estimates of |ḡ|² and tr Σ from mean square norms of gradients at two batch sizes.

    |ḡ|² ← (B|g_B|² − b|g_b|²)/(B − b),   tr Σ ← (|g_b|² − |g_B|²)/(1/b − 1/B).

    The ratio of the two is biased: average each of them over many batches first, then divide.

    Args:
        small, large: the mean of |g|² over batches of b, and of B examples.
        small_batch: b.
        large_batch: B > b.

    Example:
        >>> import adamflow as af
        >>> print(*af.noise.noise_scale_from_norms(3.0, 2.0, 1, 2))
        1.0 2.0
    """
    b, B = check_count("small_batch", small_batch), check_count("large_batch", large_batch)
    if b >= B:
        raise ValueError(f"large_batch must be above small_batch, got {B} and {b}; give the norms in that order")
    small, large = jnp.asarray(small, float), jnp.asarray(large, float)
    return (B * large - b * small) / (B - b), (small - large) / (1 / b - 1 / B)


def effective_batch_size(batch_size: int, examples: int | None = None) -> float:
    """Σ/Σ_B: B, or B (N − 1)/(N − B) for batches drawn without replacement from N examples (infinite at B = N).

    Args:
        batch_size: B ≥ 1.
        examples: N for batches without replacement, `None` for those with it.
    """
    batch_size = check_count("batch_size", batch_size)
    if examples is None:
        return float(batch_size)
    examples = check_count("examples", examples)
    if batch_size > examples:
        raise ValueError(f"batch_size must be at most the {examples} examples, got {batch_size}; take a smaller batch")
    return np.inf if batch_size == examples else batch_size * (examples - 1) / (examples - batch_size)


def check_examples(data: Batch) -> int:
    """The number of examples, or a `ValueError` unless all arrays have the same leading axis."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(data)]
    counts = {shape[0] if shape else 0 for shape in shapes}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(
            f"data must be arrays with one leading axis over the examples, got the shapes {shapes}; give all examples, "
            "such as problem.loss.examples, or a function of the iteration that returns batches"
        )
    return counts.pop()


def per_example_gradients(loss: Loss, params: Params, data: Batch) -> Params:
    """The gradient of each example: a pytree like the parameters with a leading axis."""
    alone = jax.tree.map(lambda leaf: leaf[:, None], data)
    return jax.vmap(jax.grad(as_scalar(loss)), (None, 0))(params, alone)


def _centred(loss: Loss, params: Params, data: Batch, mean: Params) -> Float[Array, "examples size"]:
    rows = per_example_gradients(loss, params, data)
    centred = jax.tree.map(lambda rows, mean: rows - mean, rows, mean)
    return jax.vmap(lambda row: ravel_pytree(row)[0])(centred)


def _variances(loss: Loss, params: Params, data: Batch, mean: Params) -> Float[Array, "size"]:
    """The mean of (gᵢ − ḡ)² by coordinate, with the gradients of a chunk of examples at a time."""
    count = check_examples(data)
    whole = count // _CHUNK * _CHUNK

    def add(total: Array, chunk: Batch) -> tuple[Array, None]:
        return total + jnp.sum(_centred(loss, params, chunk, mean) ** 2, axis=0), None

    total = jnp.zeros_like(ravel_pytree(mean)[0])
    if whole:
        chunks = jax.tree.map(lambda leaf: leaf[:whole].reshape(-1, _CHUNK, *leaf.shape[1:]), data)
        total, _ = jax.lax.scan(add, total, chunks)
    if whole < count:
        total, _ = add(total, jax.tree.map(lambda leaf: leaf[whole:], data))
    return total / count


def _leading(factor: Float[Array, "examples size"], rank: int) -> tuple[Float[Array, ""], Float[Array, "rank size"]]:
    """The variance of each of the other directions, and √λ times the leading eigenvectors, from the Gram matrix."""
    values, vectors = jnp.linalg.eigh(factor @ factor.T)
    # The rows uᵀF have the norm √λ.
    rows = vectors[:, -rank:].T @ factor
    others = factor.shape[1] - rank
    rest = jnp.maximum(jnp.sum(values) - jnp.sum(rows**2), 0.0)
    return rest / max(others, 1), rows


@program
def _covariance(noise: MinibatchNoise, params: Params) -> GradientNoise:
    return noise.at(params)


@program
def _noise_scale(loss: Loss, params: Params, data: Batch, curvature: bool) -> Float[Array, ""]:
    mean, hessian = jax.linearize(lambda params: jax.grad(as_scalar(loss))(params, data), params)
    flat, unravel = ravel_pytree(mean)
    if not curvature:
        return jnp.sum(_variances(loss, params, data, mean)) / jnp.sum(flat**2)
    rows = _centred(loss, params, data, mean)

    def form(vector: Array) -> Array:
        return jnp.vdot(vector, ravel_pytree(hessian(unravel(vector)))[0])

    return jnp.mean(jax.lax.map(form, rows)) / form(flat)


def _finite(covariance: Any, dtype: Any) -> jax.Array:
    """A covariance, or a leaf of one, as an array of the type of the parameters."""
    array = check_real("covariance", covariance)
    if is_concrete(array):
        with np.errstate(over="ignore"):
            array = np.asarray(array, dtype)
        if not np.isfinite(array).all():
            raise ValueError(f"covariance must be finite in {dtype}, the type of params, got {describe(covariance)}")
    return jnp.asarray(array, dtype)


def _check_positive(value: Any, what: str, shown: Any = None) -> None:
    if is_concrete(value) and not float(value) >= 0:
        raise ValueError(
            f"covariance must not be negative, but {what} is {float(value if shown is None else shown):.6g}; no noise "
            "has such a covariance"
        )
