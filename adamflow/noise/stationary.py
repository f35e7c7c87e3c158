r"""The covariance of the parameters in the end, on a quadratic ½ θᵀHθ under gradient noise of covariance S.

Discrete and continuous time, for SGD, momentum, and RMSprop or Adam with v held at its mean, S_ii + (HCH)_ii; and
Langevin dynamics (SGLD), isotropic or with another covariance.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree
from scipy.linalg import solve_continuous_lyapunov, solve_discrete_lyapunov

from adamflow.checks import check_choice, check_count, check_range, check_real, describe
from adamflow.noise.covariance import GradientNoise, known_covariance
from adamflow.noise.mean_square import Dynamics, dynamics_of
from adamflow.optimizers import Optimizer
from adamflow.optimizers.reading import reads_as_adam
from adamflow.types import ArrayLike, Numbers, Params, Scalar

TIMES = ("discrete", "continuous", "flow")

Matrix = Float[np.ndarray, "size size"]


def stationary_covariance(
    optimizer: Optimizer, hessian: ArrayLike, noise: ArrayLike, *, time: str = "discrete", iterations: int = 500
) -> Matrix:
    r"""The covariance C of the parameters in the end, on ½ θᵀHθ under gradient noise of covariance S.

    Discrete: the Lyapunov equation of the step in (θ, m), exact for SGD and momentum; in one dimension, without
    momentum, ησ²/(2h − ηh²). Continuous: that of the flow of order 1, dm = (1−γ)((Hθ − m) dn + S^{1/2} dW),
    dθ = −η(λθ + m) dn; without momentum HC + CH = ηS. Flow: that of `StochasticFlow(optimizer, noise, order=1)`, whose
    drift and covariance are those of a discrete step, so that θ moves by m after its update; it differs from the one
    before by O(ηs), s the curvature in the optimizer's metric. For RMSprop and Adam v is held at S_ii + (HCH)_ii, which
    is exact to O(1−β).

    Args:
        optimizer: `af.sgd`, `af.rmsprop`, `af.adam`, `af.adamw`.
        hessian: H, shape (d, d), or (d,) for a diagonal one.
        noise: S, the covariance of the *batch* gradient, in the same shapes.
        time: "discrete", "continuous" or "flow".
        iterations: of the fixed point for v, at most.

    Returns:
        C, shape (d, d).

    Raises:
        ValueError: shapes disagree, or the step is not stable: then there is none.

    Example:
        >>> import adamflow as af
        >>> for time in ("discrete", "continuous"):
        ...     print(af.noise.stationary_covariance(af.sgd(0.1), [2.0], [0.25], time=time))
        [[0.00694444]]
        [[0.00625]]
    """
    dynamics = dynamics_of("stationary_covariance", optimizer)
    check_choice("time", time, TIMES)
    hessian, noise = _matrix("hessian", hessian), _matrix("noise", noise)
    if hessian.shape != noise.shape:
        raise ValueError(f"hessian and noise must have one shape, got {hessian.shape} and {noise.shape}")
    if not reads_as_adam(optimizer.stages[0]):
        return _linear(dynamics, hessian, noise, np.ones(len(hessian)), time)
    epsilon, covariance = float(optimizer.epsilon), np.zeros_like(hessian)
    for _ in range(check_count("iterations", iterations)):
        second = np.diag(noise) + np.diag(hessian @ covariance @ hessian)
        metric = np.sqrt(second + epsilon) if optimizer.epsilon_inside_root else np.sqrt(second) + epsilon
        last, covariance = covariance, _linear(dynamics, hessian, noise, metric, time)
        if np.allclose(covariance, last, rtol=1e-13, atol=0):
            break
    return covariance


def langevin_noise(
    learning_rate: Scalar, temperature: Scalar, params: Params, covariance: ArrayLike | PyTree[Numbers] = 1.0
) -> GradientNoise:
    r"""The noise with which SGD of rate η is Langevin dynamics: θ⁺ = θ − ηg + √(2ηT) K^{1/2} ξ.

    SGD under gradient noise of covariance 2TK/η is that step, in `NoisyLoss` and `discrete_paths`, and
    `StochasticFlow` of it is dθ = −g dt + √(2T) K^{1/2} dW. On a quadratic the stationary covariance is T H⁻¹ in
    continuous time with K = I, and HC + CH = 2TK else: `stationary_covariance(af.sgd(η), H, 2TK/η)`.

    Args:
        learning_rate: η > 0, that of the `af.sgd` it is used with.
        temperature: T ≥ 0.
        params: a pytree like the parameters.
        covariance: K, a number, a pytree like the parameters, or a matrix; `anisotropic` makes one.

    Example:
        >>> import adamflow as af, jax.numpy as jnp
        >>> noise = af.noise.langevin_noise(0.1, 0.05, jnp.zeros(2))
        >>> print(noise.trace, af.noise.stationary_covariance(af.sgd(0.1), [1.0, 2.0], noise.matrix())[0, 0].round(6))
        2.0 0.052632
    """
    check_range("learning_rate", learning_rate, 0, low_open=True)
    check_range("temperature", temperature, 0)
    noise = known_covariance(covariance, params)
    factor = 2 * jnp.asarray(temperature) / jnp.asarray(learning_rate)
    variances = None if noise.variances is None else factor * noise.variances
    rows = None if noise.factor is None else jnp.sqrt(factor) * noise.factor
    return GradientNoise(noise.mean, noise.kind, variances, rows)


def anisotropic(noise: ArrayLike) -> Matrix:
    """K = d S^{1/2}/tr S^{1/2}: the covariance for SGLD that makes the bound of Wang et al. (2110.13750) least.

    Among all K of trace d, tr(K⁻¹S) is least there, and is (tr S^{1/2})²/d.

    Args:
        noise: S, the expected covariance of the gradient, shape (d, d), or (d,).

    Example:
        >>> import adamflow as af
        >>> S = [[1.0, 0.3], [0.3, 0.5]]
        >>> K = af.noise.anisotropic(S)
        >>> print(round(af.noise.bound_trace(K, S), 10), af.noise.bound_trace([1.0, 1.0], S))
        1.3903124237 1.5
    """
    values, vectors = _eigen("noise", noise)
    roots = np.sqrt(np.maximum(values, 0.0))
    if not roots.sum() > 0:
        raise ValueError("noise must not be 0 everywhere, for a covariance like its root; take the identity")
    return (vectors * roots) @ vectors.T * len(roots) / roots.sum()


def bound_trace(covariance: ArrayLike, noise: ArrayLike) -> float:
    """tr(K⁻¹S), the factor of the generalization bound of Wang et al. that depends on the noise K of SGLD.

    Args:
        covariance: K, positive, shape (d, d) or (d,).
        noise: S, the expected covariance of the gradient.
    """
    values, _ = _eigen("covariance", covariance)
    if values.min() <= 0:
        raise ValueError(
            f"covariance must be positive in all directions, but its smallest eigenvalue is {values.min():.4g}: the "
            "bound is infinite there"
        )
    return float(np.trace(np.linalg.solve(_matrix("covariance", covariance), _matrix("noise", noise))))


def _linear(dynamics: Dynamics, hessian: Matrix, noise: Matrix, metric: np.ndarray, time: str) -> Matrix:
    """C for a given P: of θ⁺ = (1 − ηλ)θ − η P⁻¹ m⁺, m⁺ = γm + (1−γ)(Hθ + n), or of one of its two flows."""
    eta, gamma, decay = dynamics
    size, a = len(hessian), 1 - gamma
    identity = np.eye(size)
    inverse = identity / metric
    if time != "continuous":
        above = [(1 - eta * decay) * identity - eta * a * inverse @ hessian, -eta * gamma * inverse]
        step = np.block([above, [a * hessian, gamma * identity]])
        kick = np.concatenate([-eta * a * inverse, a * identity])
        if time == "flow":
            rate = step - np.eye(2 * size)
            _check_stable(np.linalg.eigvals(rate).real.max() < 0, "the flow")
            return solve_continuous_lyapunov(rate, -kick @ noise @ kick.T)[:size, :size]
        _check_stable(np.abs(np.linalg.eigvals(step)).max() < 1, "the step")
        return solve_discrete_lyapunov(step, kick @ noise @ kick.T)[:size, :size]
    if gamma == 0:
        rate = -eta * (decay * identity + inverse @ hessian)
        kick = eta * inverse
    else:
        rate = np.block([[-eta * decay * identity, -eta * inverse], [a * hessian, -a * identity]])
        kick = np.concatenate([np.zeros((size, size)), a * identity])
    _check_stable(np.linalg.eigvals(rate).real.max() < 0, "the flow")
    return solve_continuous_lyapunov(rate, -kick @ noise @ kick.T)[:size, :size]


def _check_stable(stable: Any, what: str) -> None:
    if not stable:
        raise ValueError(
            f"{what} is not stable on this quadratic, so that there is no stationary covariance; take a smaller "
            "learning rate, and a hessian whose eigenvalues are positive"
        )


def _matrix(name: str, value: Any) -> Matrix:
    array = np.asarray(check_real(name, value), float)
    array = np.diag(array) if array.ndim == 1 else array
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not np.allclose(array, array.T, rtol=1e-6, atol=1e-12):
        raise ValueError(f"{name} must be a symmetric matrix, or its diagonal, got {describe(np.asarray(value))}")
    return array


def _eigen(name: str, value: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.linalg.eigh(_matrix(name, value))
