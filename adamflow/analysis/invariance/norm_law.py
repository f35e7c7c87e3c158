"""The norm of scale-invariant weights under AdamW, from the size of the updates alone.

[GT] = R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization, arXiv:2411.05746.
Proofs of what is this project's own: docs/scale-invariance.md. [GT] and adamflow write (β, γ) for the decays of the
second and the first moment, where PyTorch and optax write (b2, b1).
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from adamflow.analysis.array_namespace import with_namespace
from adamflow.checks import check_choice, check_count, check_range
from adamflow.flows.averages import filter_rate
from adamflow.types import Numbers


def norm_factor(gamma: Numbers, order: Literal[0, 1, 2] = 0, rate: str = "gould_tanaka") -> Numbers:
    r"""The factor K in the law of the norm, $(\|W\|^2)' = -2\lambda \|W\|^2 + K \eta \|u\|^2$ in the time t = ηn.

    For the iterates, and for flows whose filter of the first moment has the rate a per iteration:

    $$K = 1 + \frac{2\gamma}{1-\gamma} = \frac{1+\gamma}{1-\gamma}, \qquad K_{\text{order } p} = p - 1 + \frac{2}{a}$$

    [GT] has K = 1 for its order 2. The rest is the momentum's: $\langle W, g \rangle = 0$ at each time, so m, which
    lags behind g, keeps a component along −W. It outweighs the 1 by 18 at γ = .9.

    Args:
        gamma: decay γ of the first moment, 0 ≤ γ < 1: `b1` in PyTorch and optax.
        order: 0 for the iterates, 1 or 2 for a `GouldTanakaFlow` of that order.
        rate: the filters' rate in the flow: "gould_tanaka", a = (1−γ)/γ, or "exact", a = −ln γ. It does not matter at
            order 0.

    Returns:
        K, in the shape of γ.

    Raises:
        ValueError: an argument is outside its interval, or unknown.

    Source: derivation of this project; K = 1 is of [GT].

    >>> print(norm_factor(0.9), norm_factor(0.9, 1), norm_factor(0.9, 2), round(float(norm_factor(0.9, 1, "exact")), 3))
    19.0 18.0 19.0 18.982
    """
    check_range("gamma", gamma, 0, 1, high_open=True)
    rate = check_choice("rate", rate, ("gould_tanaka", "exact"))
    if check_count("order", order, low=0) > 2:
        raise ValueError(f"order must be 0 (the iterates), 1 or 2 (the flows of [GT]), got {order!r}")
    xp, gamma = with_namespace(gamma)
    if order == 0:
        return xp.asarray((1 + gamma) / (1 - gamma))[()]
    # γ = 0 forgets at once: the lag 1/a is 0.
    safe = xp.where(gamma > 0, gamma, 0.5)
    lag = xp.where(gamma > 0, 1 / filter_rate(safe, rate == "gould_tanaka", xp), 0.0)
    return xp.asarray(order - 1 + 2 * lag)[()]


def square_norm_law(
    iterations: Numbers,
    square_update: Numbers,
    start: Numbers,
    learning_rate: Numbers,
    weight_decay: Numbers,
    factor: Numbers = 1.0,
) -> Numbers:
    r"""The law of the norm of a scale-invariant tensor, by a running integral over the updates u.

    $$\|W(t)\|^2 = \|W(0)\|^2 e^{-2\lambda t} + K \eta \int_0^t e^{-2\lambda (t-\tau)} \|u(\tau)\|^2 d\tau$$

    in the time t = ηn. K = 1 is the law of [GT], `norm_factor(gamma)` the one corrected for momentum. The integral is
    exact for ‖u‖² linear between the given iterations.

    Args:
        iterations: n, increasing, shape (saved,).
        square_update: ‖u‖² over the tensor at these, shape (..., saved).
        start: ‖W‖² at the first of them, shape (...).
        learning_rate: η > 0.
        weight_decay: λ ≥ 0.
        factor: K ≥ 0.

    Returns:
        ‖W‖² at the iterations, shape (..., saved).

    Raises:
        ValueError: a number is outside its interval.

    Source: [GT] for K = 1, derivation of this project for other K.

    >>> law = square_norm_law(np.array([0.0, 500.0, 1000.0]), np.full(3, 4.0), 0.0, 1e-2, 1.0)
    >>> print(law.round(6))  # tends to K η ‖u‖² / 2λ
    [0. 0.019999 0.02 ]
    """
    _check_rates(learning_rate, weight_decay)
    check_range("factor", factor, 0)
    xp, n, u, start, eta, decay, factor = with_namespace(
        iterations, square_update, start, learning_rate, weight_decay, factor
    )
    step = n[1:] - n[:-1]
    rate = 2 * eta * decay
    kept = xp.exp(-rate * step)
    # ∫ e^{−r(h−s)} and ∫ e^{−r(h−s)} s/h over a step of length h; by series where r h is small.
    x = rate * step
    small = x < 1e-4
    safe = xp.where(small, 1.0, x)
    whole = xp.where(small, 1 - x / 2 + x**2 / 6, -xp.expm1(-safe) / safe)
    late = xp.where(small, 0.5 - x / 6 + x**2 / 24, (1 + xp.expm1(-safe) / safe) / safe)
    gain = factor * eta**2 * step * ((whole - late) * u[..., :-1] + late * u[..., 1:])

    def advance(norm: Any, kept: Any, gain: Any) -> Any:
        return kept * norm + gain

    return _along(xp, advance, xp.broadcast_to(start, u.shape[:-1]), lambda norm: norm, kept, gain)


def rotation_rate(learning_rate: Numbers, weight_decay: Numbers, gamma: Numbers) -> Numbers:
    r"""The angle by which the direction W/‖W‖ of scale-invariant weights turns per iteration, once ‖u‖² is steady.

    $$\frac{\eta \|u\|}{\|W\|} = \sqrt{2 \eta \lambda \frac{1-\gamma}{1+\gamma}}$$

    It follows from ‖W‖² = K η‖u‖²/2λ, whatever the gradients, as long as they change on; it is radians per iteration
    along the path, not the distance from the start.

    Args:
        learning_rate: η > 0.
        weight_decay: λ ≥ 0.
        gamma: decay γ of the first moment, 0 ≤ γ < 1: `b1` in PyTorch and optax.

    Raises:
        ValueError: a number is outside its interval.

    Source: derivation of this project.

    >>> print(round(float(rotation_rate(1e-3, 0.1, 0.9)), 6))
    0.003244
    """
    _check_rates(learning_rate, weight_decay)
    factor = norm_factor(gamma)
    xp, eta, decay, factor = with_namespace(learning_rate, weight_decay, factor)
    return (xp.sqrt(eta) * xp.sqrt(2 * decay / factor))[()]


def equilibrium_norm(size: Numbers, learning_rate: Numbers, weight_decay: Numbers) -> Numbers:
    r"""The norm at which scale-invariant weights settle when gradients are uncorrelated: $\sqrt{\eta d / 2\lambda}$.

    The updates of Adam with uncorrelated gradients have ‖u‖² = d (1−γ)/(1+γ), so that γ cancels from K‖u‖². Gradients
    that keep their sign have ‖u‖² up to d, and the norm is larger by at most √((1+γ)/(1−γ)).

    Args:
        size: d, the number of entries of the tensor whose gradients are not always 0.
        learning_rate: η > 0.
        weight_decay: λ > 0; at 0 the norm grows without end.

    Raises:
        ValueError: a number is outside its interval.

    Source: derivation of this project.

    >>> print(round(float(equilibrium_norm(200, 1e-3, 0.1)), 6))
    1.0
    """
    _check_rates(learning_rate, weight_decay)
    check_range("weight_decay", weight_decay, 0, low_open=True, hint="without decay there is no equilibrium")
    check_range("size", size, 0, low_open=True)
    xp, size, eta, decay = with_namespace(size, learning_rate, weight_decay)
    return (xp.sqrt(eta) * (xp.sqrt(size) / xp.sqrt(2 * decay)))[()]


def square_norm_recursion(
    square_update: Numbers,
    divisor: Numbers,
    start: Numbers,
    learning_rate: Numbers,
    weight_decay: Numbers,
    gamma: Numbers,
) -> Numbers:
    r"""The norm of a scale-invariant tensor under AdamW with one v per tensor, exactly, for any gradients.

    With $s_n = m_n/u_n$, the number by which the tensor's first moment is divided, and $a_n = \langle W_n, m_n\rangle$,

    $$\|W_{n+1}\|^2 = (1-\eta\lambda)^2 \|W_n\|^2 - 2\eta(1-\eta\lambda)\frac{a_n}{s_n} + \eta^2\|u_n\|^2, \qquad
      a_{n+1} = \gamma\left[(1-\eta\lambda)\, a_n - \eta s_n \|u_n\|^2\right], \quad a_0 = 0.$$

    Where $s$ and ‖u‖ are steady, $a_n/s_n = -\eta\frac{\gamma}{1-\gamma}\|u\|^2$ up to O(ηλ): the factor K of
    `norm_factor`. Nothing is assumed but ⟨W, g⟩ = 0 at each iteration.

    Args:
        square_update: ‖uₙ‖² for n = 0, 1, …, shape (..., iterations).
        divisor: sₙ = (1−γⁿ⁺¹)(√v̂ₙ + ε), without its first factor if biases are not corrected; same shape.
        start: ‖W₀‖², shape (...).
        learning_rate: η > 0.
        weight_decay: λ ≥ 0.
        gamma: decay γ of the first moment, 0 ≤ γ < 1: `b1` in PyTorch and optax.

    Returns:
        ‖Wₙ‖² for n = 0, 1, …, shape (..., iterations).

    Raises:
        ValueError: a number is outside its interval.

    Source: derivation of this project.

    >>> print(square_norm_recursion(np.ones(3), np.ones(3), 1.0, 0.1, 0.0, 0.0).round(2))
    [1.   1.01 1.02]
    """
    _check_rates(learning_rate, weight_decay)
    check_range("gamma", gamma, 0, 1, high_open=True)
    xp, u, s, start, eta, decay, gamma = with_namespace(
        square_update, divisor, start, learning_rate, weight_decay, gamma
    )
    kept = 1 - eta * decay

    def advance(state: Any, u: Any, s: Any) -> Any:
        norm, product = state
        # Where the gradients have all been 0, so is the update, whatever s is.
        component = xp.where(s > 0, product / xp.where(s > 0, s, 1.0), 0.0)
        norm = kept**2 * norm - 2 * eta * kept * component + eta**2 * u
        return norm, gamma * (kept * product - eta * s * u)

    begin = xp.broadcast_to(start, u.shape[:-1]), xp.zeros_like(u[..., 0])
    return _along(xp, advance, begin, lambda state: state[0], u[..., :-1], s[..., :-1])


def _along(xp: Any, advance: Callable[..., Any], state: Any, read: Callable[[Any], Any], *columns: Any) -> Any:
    """What is read of a state at each place of the last axis, as it advances by the columns there."""
    if xp is np:
        rows = [read(state)]
        for place in range(columns[0].shape[-1]):
            state = advance(state, *(column[..., place] for column in columns))
            rows.append(read(state))
        return np.stack(rows, axis=-1)

    def move(state: Any, column: Any) -> Any:
        state = advance(state, *column)
        return state, read(state)

    _, rows = jax.lax.scan(move, state, tuple(jnp.moveaxis(column, -1, 0) for column in columns))
    return jnp.concatenate([read(state)[..., None], jnp.moveaxis(rows, 0, -1)], axis=-1)


def _check_rates(learning_rate: Any, weight_decay: Any) -> None:
    check_range("learning_rate", learning_rate, 0, low_open=True)
    check_range("weight_decay", weight_decay, 0)
