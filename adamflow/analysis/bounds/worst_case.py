"""The gradients that make Adam's update as large as it can become: those with which the bounds are attained.

[GT] = R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization, arXiv:2411.05746,
writes (β, γ) for the decays of the second and the first moment, where PyTorch and optax write (b2, b1). The results of
this file are derivations of this project.
"""

import bisect
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from adamflow.analysis.array_namespace import with_namespace
from adamflow.analysis.bounds.formulas import check_decays, check_kind, has_paper_rates, log_update_bound
from adamflow.checks import check_count, is_concrete, keyword_decays
from adamflow.flows.averages import filter_rate
from adamflow.optimizers.record import Record
from adamflow.types import Numbers, Scalar


class GradientSignal(Record):
    r"""The gradients of a flow as a function of its time: what `worst_case_gradients` returns for kind "flow".

    A flow starts with filters that have consumed a first gradient, $\bar x(0) = (1-\alpha)\,x(0)$, as if it had arrived
    at once. In this signal that gradient is `start`, and `signal(n)` is the gradient at the time n > 0 in iterations,
    $g(n) = e^{\ln g_N + d\,(n - N)}$. Its limit at n → 0 differs from `start`.

    Attributes:
        start: the first gradient, from which `initial_state` is made.
        log_end: $\ln g_N$, at the iteration N where the update is largest.
        growth: d per iteration.
        end: N.
    """

    start: Float[Array, "..."]
    log_end: Float[Array, "..."]
    growth: Float[Array, "..."]
    end: int = eqx.field(static=True)

    def __call__(self, iteration: Scalar) -> Float[Array, "..."]:
        """The gradient at the time n > 0 (in iterations) of the flow."""
        return jnp.exp(self.log_end + self.growth * (iteration - self.end))


@keyword_decays
def worst_case_gradients(
    length: int, *, beta: Numbers, gamma: Numbers, kind: str = "discrete", rate: str = "exact"
) -> Float[Array, "length ..."] | GradientSignal:
    r"""The gradients with which the update of Adam (ε = 0) at iteration n = length − 1 attains its bound.

    The update is $m_n/\sqrt{v_n}$ times the bias factor, with $m_n = \sum_k p_k g_{n-k}$ and
    $v_n = \sum_k q_k g_{n-k}^2$. By the Cauchy-Schwarz inequality $m_n^2 \le v_n \sum_k p_k^2/q_k$, and the two sides
    are equal if and only if $g_{n-k} \propto p_k/q_k$:

    - "discrete", $p_k = (1-\gamma)\gamma^k$ and $q_k = (1-\beta)\beta^k$: $g_{n-k} \propto (\gamma/\beta)^k$.
    - "flow", with rates $a_\gamma, a_\beta$ per iteration: the same with an integral over the age s of a gradient, with
      $p(s) = a_\gamma e^{-s a_\gamma}$ and $q(s) = a_\beta e^{-s a_\beta}$, and a term for the first gradient, which
      enters with $(1-\gamma) e^{-n a_\gamma}$ and $(1-\beta) e^{-n a_\beta}$. So
      $g(n-s) \propto \frac{a_\gamma}{a_\beta} e^{-s(a_\gamma - a_\beta)}$, and
      $g_0 \propto \frac{1-\gamma}{1-\beta} e^{-n(a_\gamma - a_\beta)}$, which is not the limit of g at 0 but
      $\frac{1-\gamma}{1-\beta} \frac{a_\beta}{a_\gamma}$ of it (γ/β with the paper's rates).

    The factor in front is free; the largest magnitude is 1. These gradients attain the bound in every coordinate,
    with either sign, and with bias correction or without. For k-Adam they are the inputs of the last stage.

    The entries span a factor $(\gamma/\beta)^n$, and the optimizer squares them. If γ < β the smallest squares are of
    the oldest gradients, and nothing is lost where they vanish. If γ > β they are of the latest, and $v_n$ falls with n
    like the larger of $(\beta/\gamma)^{2n}$ and $\beta^n$. Once it underflows, the update vanishes. So lengths at which
    $v_n$ is below the smallest normal number of the dtype divided by its epsilon are refused (where β and γ are traced
    by jit or vmap they cannot be): with (.9, .99), those over 6384 in float64 and 680 in float32.

    Args:
        beta: decay β of the second moment, 0 < β < 1. [GT] writes (β, γ) where PyTorch and optax write (b2, b1).
        gamma: decay γ of the first moment, 0 ≤ γ < 1; 0 < γ for kind "flow". At γ = 0 only the last gradient counts,
            and the others are 0.
        length: the number of gradients n + 1, at least 1; for the flow the signal covers the times 0 to length − 1.
        kind: "discrete" or "flow". The bound of kind "gould_tanaka" is not attained.
        rate: the rates of the flow's filters, "exact" or "gould_tanaka", as in `update_bound`. Only kind "flow" depends
            on it.

    Returns:
        For "discrete", an array of shape (length, ...) with the common shape of β and γ after the axis of iterations:
        row n is $g_n$. For "flow", a `GradientSignal` of that common shape. Both are jax arrays, so that a run can
        index them by its iteration; without jax arrays among the arguments they are computed in float64 and then
        rounded to jax's default dtype. Works under jit (`length` static) and vmap.

    Raises:
        ValueError: an argument is outside its interval, `kind` or `rate` is unknown, or `kind` is "gould_tanaka";
            `length` is so large that the second moment would underflow: the message names the largest that works.

    Source: derivation of this project.

    >>> import adamflow as af, jax.numpy as jnp
    >>> gradients = worst_case_gradients(101, beta=0.95, gamma=0.99)
    >>> run = af.iterate(
    ...     af.adam(1e-3, beta=0.95, gamma=0.99),
    ...     lambda params, gradient: jnp.sum(params * gradient),
    ...     jnp.ones(3),
    ...     steps=100,
    ...     batches=lambda n: gradients[n],
    ...     observe=af.analysis.largest_update,
    ... )
    >>> print(f"{run.observed[100]:.5f} {af.analysis.update_bound(100, beta=0.95, gamma=0.99, kind='discrete'):.5f}")
    1.85741 1.85741
    """
    kind, rate = check_kind(kind, rate)
    end = check_count("length", length) - 1
    if kind == "gould_tanaka":
        raise ValueError(
            "kind='gould_tanaka' has no worst-case gradients: the bound of [GT] neglects the first gradient, so that "
            "no gradients attain it; use kind='flow' with rate='gould_tanaka' for the flow of [GT], or kind='discrete'"
        )
    check_decays(beta, gamma, unbounded_at_zero=kind if kind == "flow" else "")
    xp, beta, gamma = with_namespace(beta, gamma)
    beta, gamma = xp.broadcast_arrays(beta, gamma)
    _check_length(beta, gamma, end, kind, rate)
    return _sequence(xp, beta, gamma, end) if kind == "discrete" else _signal(xp, beta, gamma, end, rate)


def _check_length(beta: Any, gamma: Any, end: int, kind: str, rate: str) -> None:
    """Raise `ValueError` if the second moment at the end is so small that squares which it averages underflow."""
    if not is_concrete(beta, gamma):
        return
    numbers = jnp.finfo(beta.dtype if isinstance(beta, Array) else jnp.result_type(float))
    decays = np.asarray(beta, float), np.asarray(gamma, float)
    limit = np.log(float(numbers.tiny)) - np.log(float(numbers.eps))

    def works(end: int) -> bool:
        return bool(np.all(_log_second_moment(*decays, end, kind, rate) >= limit))

    if works(end):
        return
    # In n it rises to a maximum or not at all, and then falls.
    longest = bisect.bisect_left(range(1, end + 1), True, key=lambda end: not works(end))
    raise ValueError(
        f"length must be at most {longest + 1} for these beta and gamma in {numbers.dtype}, got {end + 1}: the second "
        "moment would underflow, since the last gradient is (beta/gamma)**n times the first, and the update would "
        f"stay below its bound{'' if numbers.bits == 64 else '; float64 reaches further'}"
    )


def _log_second_moment(beta: Any, gamma: Any, end: int, kind: str, rate: str) -> Any:
    """ln v at the end. For g = κ p/q it is κ² times the integral (or sum) of p²/q, which is the bound's square."""
    log_bound = log_update_bound(end, beta=beta, gamma=gamma, kind=kind, rate=rate, bias_correction=False)
    if kind == "discrete":
        log_last = -end * np.maximum(np.log(np.where(gamma > 0, gamma, beta)) - np.log(beta), 0.0)
        log_ratio = np.log1p(-gamma) - np.log1p(-beta)
    else:
        log_last = np.asarray(_signal(np, beta, gamma, end, rate).log_end)
        of_beta, of_gamma = (filter_rate(decay, has_paper_rates(kind, rate), np) for decay in (beta, gamma))
        log_ratio = np.log(of_gamma / of_beta)
    return 2 * (log_bound + log_last - log_ratio)


def _sequence(xp: Any, beta: Any, gamma: Any, end: int) -> Array:
    age = xp.arange(end, -1, -1, dtype=beta.dtype).reshape(-1, *(1,) * beta.ndim)
    slope = xp.log(xp.where(gamma > 0, gamma, 1.0)) - xp.log(beta)
    gradients = xp.exp(age * slope - end * xp.maximum(slope, 0.0))
    return jnp.asarray(xp.where(gamma > 0, gradients, age == 0))


def _signal(xp: Any, beta: Any, gamma: Any, end: int, rate: str) -> GradientSignal:
    positive = xp.where(gamma > 0, gamma, xp.nan)
    rate_beta, rate_gamma = (filter_rate(decay, has_paper_rates("flow", rate), xp) for decay in (beta, positive))
    growth = rate_gamma - rate_beta
    log_end = xp.log(rate_gamma) - xp.log(rate_beta)
    log_start = xp.log1p(-gamma) - xp.log1p(-beta) - end * growth
    largest = xp.maximum(log_start, log_end - end * xp.minimum(growth, 0.0))
    return GradientSignal(
        jnp.asarray(xp.exp(log_start - largest)), jnp.asarray(log_end - largest), jnp.asarray(growth), end
    )
