r"""The mean-square edge: where the second moments of an optimizer under minibatch noise begin to grow.

Hold P = √v̂ + ε, and let z = P^{1/2} θ, s_B = P^{−1/2} H_B P^{−1/2} the curvature of a fresh batch in that metric. A
step is z⁺ = (1 − ηλ) z − η m⁺, m⁺ = γ m + (1−γ) s_B z, in short (z, m)⁺ = M_B (z, m), and second moments follow the
linear map T = E[M_B ⊗ M_B]. They stay bounded as long as its spectral radius ρ(T) is below 1; ρ(T) = 1 is the
mean-square edge.

With f = Σ_B/Σ (1/B with replacement) the part of T that comes from fluctuations is f E[δsᵢ C δsᵢ] of C = E z zᵀ.
Without it second moments settle wherever the mean step is stable; with gains Gᵢⱼ of the modes i, j of s̄, a kick of
covariance K per step leaves Gᵢⱼ Kᵢⱼ. So the edge is also where the index ρ(C ↦ G ∘ f E[δsᵢ C δsᵢ]) = 1. For Gaussian
rank-one features with eigenvalues λᵢ both are where

    Q = Σᵢ xᵢ/(1 − xᵢ) = 1,   xᵢ = f λᵢ² Gᵢ,   Gᵢ = η(1−γ)(1+γc) / ((1−γc)(λᵢ+λ)((1+c)(1+γ) − η(1−γ)λᵢ)),   c = 1 − ηλ,

which without weight decay is Σᵢ 1/(B(2/(ηλᵢ) − k) − 1), k = (1−γ)/(1+γ). Derivation of this project.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.sparse.linalg import LinearOperator, eigs

from adamflow.checks import check_choice, check_count, check_flag, check_real, describe, is_concrete
from adamflow.noise.covariance import effective_batch_size
from adamflow.optimizers import Optimizer, check_constant, check_optimizer
from adamflow.optimizers.reading import reads_as_adam
from adamflow.optimizers.record import Record
from adamflow.optimizers.sgd import GradientStage, MomentumStage
from adamflow.types import ArrayLike, Numbers

LAWS = ("gaussian", "examples", "features")
METHODS = ("auto", "closed", "operator", "particles")

#: Moment matrices of so many entries have their eigenvalues found as dense ones.
_DENSE = 260

#: A mode with less than this share of the largest curvature does not move, unless its examples do.
_FLAT = 1e-11

#: From so many dimensions on "auto" takes particles where the moments have no closed form.
_LARGE = 150

_BISECTIONS = 55


class Dynamics(NamedTuple):
    """The numbers of a linear step with momentum in the metric of P: η, γ, λ."""

    learning_rate: float
    gamma: float
    weight_decay: float

    def gain(self, one: Any, other: Any) -> Any:
        """Gᵢⱼ: the covariance of modes of curvature `one` and `other` that the same unit kicks of curvature leave.

        Infinite where the mean step is not stable.
        """
        eta, gamma, decay = self
        c, a = 1 - eta * decay, 1 - gamma
        one, other = np.broadcast_arrays(one, other)
        b = np.array([-eta * a, a])
        first, second = (
            np.stack([np.stack([c - eta * a * s, 0 * s - eta * gamma], -1), np.stack([a * s, 0 * s + gamma], -1)], -2)
            for s in (one, other)
        )
        product = np.einsum("...ij,...kl->...ikjl", first, second).reshape(*one.shape, 4, 4)
        solved = np.linalg.solve(np.eye(4) - product, np.broadcast_to(np.outer(b, b).reshape(4, 1), (*one.shape, 4, 1)))
        return np.where(self.stable(one) & self.stable(other), solved[..., 0, 0], np.inf)

    def own_gain(self, s: Any) -> Any:
        """Gᵢᵢ in closed form; infinite where the mean step is not stable."""
        eta, gamma, decay = self
        c = 1 - eta * decay
        rest = (1 + c) * (1 + gamma) - eta * (1 - gamma) * s
        total = (1 - gamma * c) * (s + decay) * rest
        good = self.stable(s)
        return np.where(good, eta * (1 - gamma) * (1 + gamma * c) / np.where(good, total, 1.0), np.inf)

    def stable(self, s: Any) -> Any:
        """Whether the mean step along a curvature is stable."""
        eta, gamma, decay = self
        c = 1 - eta * decay
        return (abs(gamma * c) < 1) & (s + decay > 0) & ((1 + c) * (1 + gamma) > eta * (1 - gamma) * s)

    def edge(self, s: float) -> float:
        """The learning rate at which the mean step along a curvature turns unstable."""
        return 2 * (1 + self.gamma) / ((1 - self.gamma) * s + self.weight_decay * (1 + self.gamma))


class MeanSquareEdge(Record):
    """What `mean_square_edge` returns.

    Attributes:
        learning_rate: η*, where ρ(T) = 1.
        growth: ρ(T) at the optimizer's own η: the factor by which second moments grow per iteration in the end.
        growth_error: the standard error of `growth` from particles; 0 for the other methods.
        index: at the optimizer's own η what is 1 at the edge: Q for the Gaussian law, else the spectral radius of the
            fluctuations' operator; infinite beyond its pole, and NaN where particles are used.
        method: how it was found.
    """

    learning_rate: float
    growth: float
    growth_error: float
    index: float
    method: str

    def __str__(self) -> str:
        return (
            f"mean-square edge at a learning rate of {self.learning_rate:.6g} ({self.method}); at the optimizer's own "
            f"second moments change by the factor {self.growth:.6g} per iteration, index {self.index:.4g}"
        )


def mean_square_edge(
    optimizer: Optimizer,
    curvatures: ArrayLike,
    batch_size: int,
    *,
    law: str = "gaussian",
    replacement: bool = True,
    examples: int | None = None,
    method: str = "auto",
    particles: int = 2000,
    steps: int = 400,
    seed: int = 0,
) -> MeanSquareEdge:
    r"""The learning rate at which the second moments of SGD, RMSprop or Adam under minibatch noise begin to grow.

    With P held, $\rho(E[M_B \otimes M_B]) = 1$; the file's head has the derivation. In one dimension, with mean s̄ and
    variance ν of the batch's curvature, $\eta^* = 2(1+\gamma)\bar s / ((1+\gamma)\nu + (1-\gamma)\bar s^2)$: momentum
    relaxes the mean part by (1+γ)/(1−γ), and the fluctuating part not at all.

    Args:
        optimizer: `af.sgd`, `af.rmsprop`, `af.adam`, `af.adamw`: γ, λ and its own η are read. P is taken to be in the
            curvatures: those of P^{−1/2} H P^{−1/2}.
        curvatures: by `law`. "gaussian": eigenvalues λᵢ ≥ 0 of the mean, shape (d,), where examples are rank one with
            Gaussian features. "examples": the Hessian of each example, shape (N, d, d), or (N,) in one dimension.
            "features": rows xᵢ, shape (N, d), of Hessians xᵢxᵢᵀ.
        batch_size: B.
        law: of the examples.
        replacement: whether batches are drawn with replacement.
        examples: N, for the Gaussian law without replacement.
        method: "closed" forms exist for the Gaussian law and in one dimension; "operator" finds the eigenvalue of the
            moment operator; "particles" estimates growth with `particles` pairs (z, m) that are resampled by their
            growth for `steps` iterations, to 2 or 3 digits. "auto" takes the first that is there and affordable.
        particles, steps, seed: of the particle estimate.

    Returns:
        a `MeanSquareEdge`.

    Raises:
        ValueError: an argument is out of its range, or the mean curvature has a negative eigenvalue: then no learning
            rate is stable.
        TypeError: the optimizer is another one.

    Example:
        >>> import adamflow as af
        >>> edge = af.noise.mean_square_edge(af.adam(0.1), [0.2, 0.5, 1.0, 2.5], batch_size=4, law="examples")
        >>> print(round(edge.learning_rate, 8), edge.method)
        8.27908183 closed
    """
    dynamics = dynamics_of("mean_square_edge", optimizer)
    check_choice("law", law, LAWS)
    check_choice("method", method, METHODS)
    curvatures = _checked(curvatures, law)
    examples = len(curvatures) if law != "gaussian" else examples
    if not check_flag("replacement", replacement) and examples is None:
        raise ValueError("examples must say how many there are, for batches without replacement; give examples=N")
    share = 1 / effective_batch_size(batch_size, None if replacement else examples)
    closed = law == "gaussian" or curvatures.shape[-1] == 1
    if method == "auto":
        method = "closed" if closed else "operator" if curvatures.shape[-1] < _LARGE else "particles"
    if method == "closed" and not closed:
        raise ValueError(f"method 'closed' has no formula for law {law!r} in more than one dimension; take 'operator'")
    if method == "particles":
        draw = _Draws(jnp.asarray(curvatures), law, check_count("batch_size", batch_size), replacement)
        return _by_particles(dynamics, curvatures, draw, particles, steps, seed)
    moments = _moments(curvatures, law, share)
    index = moments.gaussian_index if law == "gaussian" and method == "closed" else moments.index
    edge = _bisect(lambda eta: index(dynamics._replace(learning_rate=eta)), dynamics.edge(moments.values.max()))
    return MeanSquareEdge(edge, moments.growth(dynamics), 0.0, float(index(dynamics)), method)


def spectral_edge_index(
    optimizer: Optimizer, eigenvalues: ArrayLike, batch_size: int, *, examples: int | None = None
) -> float:
    r"""Q = Σᵢ 1/(B(2/(ηλᵢ) − k) − 1), k = (1−γ)/(1+γ), with its extension to weight decay; negative λᵢ count as 0.

    Args:
        optimizer: η, γ and λ are read.
        eigenvalues: of P^{−1/2} H P^{−1/2}, shape (d,).
        batch_size: B.
        examples: N for batches without replacement, `None` for those with it.

    Returns:
        Q; infinite beyond its pole, where one direction alone is unstable.

    Example:
        >>> import adamflow as af
        >>> af.noise.spectral_edge_index(af.sgd(1.0), [0.5, 0.25], batch_size=1)
        0.6666666667
    """
    dynamics = dynamics_of("spectral_edge_index", optimizer)
    share = 1 / effective_batch_size(batch_size, examples)
    values = np.maximum(np.asarray(check_real("eigenvalues", eigenvalues), float), 0.0)
    return _gaussian_index(dynamics, values, share)


def dynamics_of(where: str, optimizer: Any) -> Dynamics:
    """η, γ and λ of an optimizer whose step in the metric of P is linear.

    Args:
        where: who asks, for the message.
        optimizer: an SGD, RMSprop, Adam or AdamW.

    Raises:
        TypeError: it is another one.
        ValueError: its numbers are traced, or are those of a batch of records.
    """
    check_optimizer(where, optimizer)
    stage = optimizer.stages[0]
    plain = isinstance(stage, GradientStage | MomentumStage) or reads_as_adam(stage)
    if len(optimizer.stages) != 1 or not plain or optimizer.l2 is not None:
        raise TypeError(
            f"{where} knows the step of SGD, RMSprop, Adam and AdamW, whose direction is m or m/√v, but "
            f"{optimizer.name!r} has another one, or an l2 penalty; add the penalty to the loss, or take the "
            "optimizer among these that is nearest"
        )
    decays = [filter.decay for filter in stage.filters() if filter.name == "first_moment"]
    check_constant(where, optimizer, "take optimizer.at(iteration), which has those of one iteration")
    numbers: Any = (optimizer.learning_rate, decays[0] if decays else 0.0, optimizer.weight_decay)
    if not is_concrete(numbers) or any(np.ndim(number) for number in numbers):
        raise ValueError(f"{where} needs the numbers of one record; call it outside of jit and vmap")
    eta, gamma, decay = (float(number) for number in numbers)
    return Dynamics(eta, gamma, decay)


def _checked(curvatures: Any, law: str) -> np.ndarray:
    """The curvatures as an array: (d,) for the Gaussian law, (N, d) for features, (N, d, d) for examples."""
    array = np.asarray(check_real("curvatures", curvatures), float)
    if law == "examples" and array.ndim == 1:
        array = array[:, None, None]
    wanted = {"gaussian": 1, "features": 2, "examples": 3}[law]
    if array.ndim != wanted or array.size == 0 or (law == "examples" and array.shape[1] != array.shape[2]):
        shapes = {"gaussian": "(d,)", "features": "(N, d)", "examples": "(N,) or (N, d, d)"}
        raise ValueError(f"curvatures must have shape {shapes[law]} for law {law!r}, got {describe(array)}")
    if not np.all(np.isfinite(array)):
        raise ValueError("curvatures must be finite, got NaN or infinity; check the loss where they were taken")
    if law == "examples" and not np.allclose(array, array.swapaxes(1, 2), rtol=1e-6, atol=1e-9 * abs(array).max()):
        raise ValueError("curvatures must be symmetric matrices; give (H + H.transpose)/2")
    return array


@dataclasses.dataclass(frozen=True)
class _Moments:
    """The second moments of a linear step in the modes of the mean curvature.

    Attributes:
        values: eigenvalues of the mean curvature.
        noise: C ↦ f E[δsᵢ C δsᵢ] in these modes.
        share: f.
    """

    values: np.ndarray
    noise: Callable[[np.ndarray], np.ndarray]
    share: float

    def gaussian_index(self, dynamics: Dynamics) -> float:
        return _gaussian_index(dynamics, self.values, self.share)

    def index(self, dynamics: Dynamics) -> float:
        """The spectral radius of C ↦ G ∘ f E[δsᵢ C δsᵢ]; infinite where the mean step is not stable."""
        gains = dynamics.gain(self.values[:, None], self.values[None, :])
        if not np.all(np.isfinite(gains)):
            return np.inf
        return _perron(lambda moments: gains * self.noise(moments), len(self.values))

    def growth(self, dynamics: Dynamics) -> float:
        """ρ(T), of the map of the second moments of (z, m)."""
        eta, gamma, decay = dynamics
        a, c, size = 1 - gamma, 1 - eta * decay, len(self.values)
        identity, s = np.eye(size), np.diag(self.values)
        step = np.block([[c * identity - eta * a * s, -eta * gamma * identity], [a * s, gamma * identity]])
        b = np.array([[eta**2 * a**2, -eta * a**2], [-eta * a**2, a**2]])

        def advance(moments: np.ndarray) -> np.ndarray:
            return step @ moments @ step.T + np.kron(b, self.noise(moments[:size, :size]))

        return _perron(advance, 2 * size)


def _moments(curvatures: np.ndarray, law: str, share: float) -> _Moments:
    if law == "gaussian":
        if np.any(curvatures < 0):
            raise ValueError(
                f"curvatures must not be negative for the Gaussian law, got {curvatures.min():.4g}; along such a "
                "direction no learning rate is stable: leave it out to ask about the others"
            )
        values = curvatures[curvatures > 0]
        if not values.size:
            raise ValueError("curvatures must have a positive entry; without curvature every learning rate is stable")
        product = np.outer(values, values)
        # E[x xᵀ C x xᵀ] − ΛCΛ = ΛCΛ + Λ tr(ΛC) for symmetric C.
        gaussian = lambda C: share * (product * (C + C.T) / 2 + np.diag(values) * np.sum(values * np.diag(C)))  # noqa: E731
        return _Moments(values, gaussian, share)
    mean = curvatures.T @ curvatures / len(curvatures) if law == "features" else curvatures.mean(axis=0)
    values, vectors = np.linalg.eigh(mean)
    moves = np.abs(values) > _FLAT * np.abs(values).max()
    flat = vectors[:, ~moves]
    moved = curvatures @ flat
    if np.any(values[moves] < 0) or np.abs(moved).max(initial=0.0) > 1e-5 * np.abs(curvatures).max():
        raise ValueError(
            f"curvatures must have a mean without negative eigenvalues, got one of {values.min():.4g}, and examples "
            "that are 0 where it is: along such a direction no learning rate is stable; project it out"
        )
    if not moves.any():
        raise ValueError("curvatures must not all be 0; without curvature every learning rate is stable")
    values, vectors = values[moves], vectors[:, moves]
    if law == "features":
        rows = curvatures @ vectors

        def noise(C: np.ndarray) -> np.ndarray:
            forms = np.einsum("ni,ij,nj->n", rows, C, rows, optimize=True)
            return share * ((rows.T * forms) @ rows / len(rows) - values[:, None] * C * values)
    else:
        each = vectors.T @ curvatures @ vectors - np.diag(values)

        def noise(C: np.ndarray) -> np.ndarray:
            return share * np.mean(each @ C @ each, axis=0)

    return _Moments(values, noise, share)


def _gaussian_index(dynamics: Dynamics, values: np.ndarray, share: float) -> float:
    """Σ x/(1 − x), x = f λ² G; infinite beyond the pole, or where the mean step is unstable."""
    values = values[values > 0]
    with np.errstate(over="ignore", invalid="ignore"):
        x = share * values**2 * dynamics.own_gain(values)
    # At a full batch there are no fluctuations, but the mean step may be unstable.
    if not np.all(dynamics.stable(values)) or np.any(x >= 1):
        return np.inf
    return float(np.sum(x / (1 - x)))


def _bisect(index: Callable[[float], float], high: float) -> float:
    """Where an index that rises with η passes 1, below the edge of the mean step."""
    low = 0.0
    if index(high * (1 - 1e-12)) < 1:
        return high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if index(middle) < 1 else (low, middle)
    return (low + high) / 2


def _perron(map_: Callable[[np.ndarray], np.ndarray], size: int) -> float:
    """The spectral radius of a linear map that takes positive matrices to such: its rightmost eigenvalue."""

    def on_vectors(vector: np.ndarray) -> np.ndarray:
        matrix = vector.reshape(size, size)
        # What is antisymmetric plays no role; symmetric matrices stay so.
        return map_((matrix + matrix.T) / 2).ravel()

    count = size**2
    if count <= _DENSE:
        dense = np.stack([on_vectors(row) for row in np.eye(count)], axis=1)
        return float(np.abs(np.linalg.eigvals(dense)).max())
    operator = LinearOperator((count, count), matvec=on_vectors, dtype=float)  # pyright: ignore
    found = eigs(operator, k=1, which="LR", v0=np.eye(size).ravel(), tol=1e-10, return_eigenvectors=False)  # pyright: ignore
    return float(np.real(np.asarray(found)[0]))


class _Draws(eqx.Module):
    """s_B z for particles, each with a batch of its own."""

    curvatures: Array
    law: str = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)
    replacement: bool = eqx.field(static=True)

    def product(self, key: Any, z: Float[Array, "particles size"]) -> Float[Array, "particles size"]:
        count, size = z.shape
        if self.law == "gaussian":
            features = jax.random.normal(key, (count, self.batch_size, size)) * jnp.sqrt(self.curvatures)
            return jnp.einsum("kbi,kbj,kj->ki", features, features, z) / self.batch_size
        number = len(self.curvatures)
        if self.replacement:
            rows = jax.random.randint(key, (count, self.batch_size), 0, number)
        else:
            orders = jax.vmap(lambda one: jax.random.permutation(one, number))(jax.random.split(key, count))
            rows = orders[:, : self.batch_size]
        chosen = self.curvatures[rows]
        form = "kbi,kbj,kj->ki" if self.law == "features" else "kbij,kj->ki"
        operands = (chosen, chosen, z) if self.law == "features" else (chosen, z)
        return jnp.einsum(form, *operands) / self.batch_size


def _by_particles(dynamics, curvatures, draw: _Draws, particles: Any, steps: Any, seed: Any) -> MeanSquareEdge:
    if not draw.replacement and draw.law == "gaussian":
        raise ValueError("method 'particles' draws Gaussian features anew, with replacement; take method='closed'")
    particles, steps = check_count("particles", particles, 2), check_count("steps", steps, 20)
    law, key = draw.law, jax.random.key(check_count("seed", seed, low=0))

    def growth(eta: float) -> tuple[float, float]:
        numbers = tuple(jnp.asarray(number) for number in dynamics._replace(learning_rate=eta))
        value, error = _growth(numbers, draw, particles, steps, key)
        return float(value), float(error)

    if law == "gaussian":
        largest = curvatures.max()
    else:
        mean = curvatures.T @ curvatures / len(curvatures) if law == "features" else curvatures.mean(axis=0)
        largest = np.linalg.eigvalsh(mean)[-1]
    low, high = 0.0, dynamics.edge(largest)
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if growth(middle)[0] < 1 else (low, middle)
    value, error = growth(dynamics.learning_rate)
    return MeanSquareEdge((low + high) / 2, value, error, np.nan, "particles")


@eqx.filter_jit
def _growth(dynamics: Any, draw: _Draws, particles: int, steps: int, key: Any) -> tuple[Any, Any]:
    """ρ(T) and its standard error: pairs (z, m), each with its own batch, resampled by growth of |z|² + η²|m|²."""
    eta, gamma, decay = dynamics
    size = draw.curvatures.shape[-1]
    burn = steps // 5

    def advance(carry: Any, n: Any) -> tuple[Any, Any]:
        z, m = carry
        drawn, chosen = jax.random.split(jax.random.fold_in(key, n))
        m = gamma * m + (1 - gamma) * draw.product(drawn, z)
        z = (1 - eta * decay) * z - eta * m
        weights = jnp.sum(z**2, axis=1) + eta**2 * jnp.sum(m**2, axis=1)
        mean = jnp.mean(weights)
        # Systematic resampling: one uniform number, and evenly spaced places in the cumulated weights.
        places = (jnp.arange(particles) + jax.random.uniform(chosen)) / particles
        rows = jnp.searchsorted(jnp.cumsum(weights) / jnp.sum(weights), places, method="sort")
        rows = jnp.minimum(rows, particles - 1)
        units = jnp.sqrt(weights[rows])[:, None]
        return (z[rows] / units, m[rows] / units), jnp.log(mean)

    start = jax.random.normal(key, (particles, size))
    start = start / jnp.linalg.norm(start, axis=1, keepdims=True)
    _, logs = jax.lax.scan(advance, (start, jnp.zeros_like(start)), jnp.arange(steps))
    logs = logs[burn:]
    blocks = jnp.mean(logs[: len(logs) // 10 * 10].reshape(10, -1), axis=1)
    value = jnp.exp(jnp.mean(logs))
    return value, value * jnp.std(blocks, ddof=1) / np.sqrt(10)


def one_dimensional_edge(gamma: Numbers, mean: Numbers, variance: Numbers) -> Numbers:
    r"""η* = 2(1+γ)s̄/((1+γ)ν + (1−γ)s̄²): the mean-square edge in one dimension, without weight decay.

    Args:
        gamma: γ in [0, 1).
        mean: s̄ > 0, the mean curvature in the metric of P.
        variance: ν ≥ 0, the variance of the curvature of a batch.

    Example:
        >>> import adamflow as af
        >>> round(float(af.noise.one_dimensional_edge(0.9, 1.05, 0.195625)), 8)
        8.27908183
    """
    gamma, mean, variance = (
        np.asarray(check_real(name, value), float)
        for name, value in (("gamma", gamma), ("mean", mean), ("variance", variance))
    )
    return 2 * (1 + gamma) * mean / ((1 + gamma) * variance + (1 - gamma) * mean**2)


def stationary_loss(floor: Numbers, index: Numbers) -> Float[np.ndarray, "..."]:
    """L₀/(1 − Q): the mean square of the residuals that label noise of variance L₀ leaves in the end, for Q < 1.

    Exact for Gaussian features with P held. So Q = 1 − floor/loss: an index near 1 says that the loss is its own noise.
    """
    return np.where(np.asarray(index) < 1, np.asarray(floor) / (1 - np.minimum(np.asarray(index), 1 - 1e-300)), np.inf)
