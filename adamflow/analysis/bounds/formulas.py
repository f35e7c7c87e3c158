"""How large one update of Adam can become: the stability exponent C(β, γ) and bounds on the update at iteration n.

[GT] = R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization, arXiv:2411.05746.
It writes (β, γ) for the decays of the second and the first moment, where PyTorch and optax write (b2, b1).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamflow.analysis.array_namespace import with_namespace
from adamflow.checks import check_choice, check_range, is_concrete, keyword_decays
from adamflow.flows.averages import filter_rate
from adamflow.types import Numbers

_KINDS = ("gould_tanaka", "flow", "discrete")
_RATES = ("exact", "gould_tanaka")


@keyword_decays
def stability_exponent(*, beta: Numbers, gamma: Numbers) -> Numbers:
    r"""The exponent that decides in [GT] whether Adam's updates stay bounded.

    $$C(\beta, \gamma) = 2\,\frac{1-\gamma}{\gamma} - \frac{1-\beta}{\beta}$$

    $C > 0$, which is $\beta > \gamma/(2-\gamma)$, is the region of bounded updates $B_+$. Where $C < 0$ (the region
    $B_-$) the paper's bound grows as $e^{n|C|/2}$ with the iteration $n$. The result is as accurate as the rounding of
    the arguments allows, also near β = γ = 1 and near C = 0.

    Args:
        beta: decay β of the second moment, 0 < β < 1. [GT] writes (β, γ) where PyTorch and optax write (b2, b1).
        gamma: decay γ of the first moment, 0 ≤ γ < 1. At γ = 0 the exponent is +inf.

    Returns:
        C per iteration, in the arguments' common shape: float64 by NumPy if no argument is a jax array, otherwise
        a jax array of the arguments' dtype.

    Raises:
        ValueError: an argument is outside its interval.

    Source: [GT] = R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization,
    arXiv:2411.05746.

    >>> print(round(float(stability_exponent(beta=0.999, gamma=0.9)), 6))
    0.221221
    """
    check_decays(beta, gamma)
    return _paper_exponent(*with_namespace(beta, gamma))[()]


@keyword_decays
def bound_growth_rate(*, beta: Numbers, gamma: Numbers, kind: str = "gould_tanaka", rate: str = "exact") -> Numbers:
    r"""The signed exponent per iteration of the terms in a bound on Adam's update.

    ============== ================================== =========================================================
    kind           exponent                           source
    ============== ================================== =========================================================
    "gould_tanaka" $-C/2$, see `stability_exponent`   [GT]
    "flow"         $-c/2$, $c = 2a_\gamma - a_\beta$  derivation of this project, for rates $a$ per iteration
    "discrete"     $\ln\gamma - \tfrac12 \ln\beta$    derivation of this project
    ============== ================================== =========================================================

    The bound itself, `update_bound`, grows as $e^{n \max(0, \text{exponent})}$: where the exponent is negative the
    bound tends to a constant. The flow with exact rates has exactly the region of the discrete optimizer, γ² < β; the
    paper's region C > 0 lies strictly inside it.

    Args:
        beta: decay β of the second moment, 0 < β < 1. [GT] writes (β, γ) where PyTorch and optax write (b2, b1).
        gamma: decay γ of the first moment, 0 ≤ γ < 1. At γ = 0 the exponent is −inf.
        kind: which bound, one of "gould_tanaka", "flow", "discrete".
        rate: the filters' rates in the flow, per iteration: "exact", $a_\alpha = -\ln\alpha$, or "gould_tanaka",
            $a_\alpha = (1-\alpha)/\alpha$ as in [GT]. The other kinds do not depend on it.

    Returns:
        The exponent per iteration, in the arguments' common shape: float64 by NumPy if no argument is a jax array,
        otherwise a jax array of the arguments' dtype.

    Raises:
        ValueError: an argument is outside its interval, or `kind` or `rate` is unknown.

    Source: [GT] = R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization,
    arXiv:2411.05746.

    >>> for kind in ("gould_tanaka", "discrete"):
    ...     print(round(float(bound_growth_rate(beta=0.9, gamma=0.99, kind=kind)), 6))
    0.045455
    0.04263
    """
    kind, rate = check_kind(kind, rate)
    check_decays(beta, gamma)
    xp, beta, gamma = with_namespace(beta, gamma)
    exponent = _paper_exponent if has_paper_rates(kind, rate) else _exact_exponent
    return -exponent(xp, beta, gamma)[()] / 2


@keyword_decays
def update_bound(
    iteration: Numbers,
    *,
    beta: Numbers,
    gamma: Numbers,
    kind: str = "gould_tanaka",
    rate: str = "exact",
    bias_correction: bool = True,
) -> Numbers:
    r"""A bound on the largest entry of Adam's update, $\|u_n\|_\infty$, at iteration n, with ε = 0.

    With the bias factor $b_n = \sqrt{1-\beta^{n+1}}/(1-\gamma^{n+1})$ and $C$ from `stability_exponent`:

    - "gould_tanaka" [GT]: $b_n \frac{1-\gamma}{\gamma} \sqrt{\frac{\beta}{1-\beta}}\, S_n$ with $S_n^2 =
      (1-e^{-nC})/C$, continued by $S_n^2 = n$ at C = 0.
    - "flow" (derivation of this project), for filters with rates $a_\gamma, a_\beta$ per iteration that start at
      $(1-\alpha)\,x(0)$, with $c = 2a_\gamma - a_\beta$:
      $b_n \sqrt{\frac{(1-\gamma)^2}{1-\beta} e^{-nc} + \frac{a_\gamma^2}{a_\beta} \frac{1-e^{-nc}}{c}}$.
    - "discrete" (derivation of this project):
      $b_n \sqrt{\sum_{k=0}^{n} \frac{((1-\gamma)\gamma^k)^2}{(1-\beta)\beta^k}}$.

    The flow's and the discrete bound follow from the Cauchy-Schwarz inequality and are attained: the discrete one by
    the gradients $g_{n-k} \propto (\gamma/\beta)^k$. k-Adam's bound is that of its last stage.

    The paper's bound neglects the filters' initial state. It is 0 at n = 0, although $|u_0| = 1$; at every n it lies
    below the attained bound "flow" with rate "gould_tanaka", whose square has the additional term
    $b_n^2 (1-\gamma)^2 e^{-nC}/(1-\beta)$. For the discrete optimizer it holds from one iteration n* on and fails at
    each earlier one. Derivation of this project: with $\delta = \ln\beta - 2\ln\gamma$, the squared ratio to the
    attained discrete bound is $R(n) = (e^\delta-1)\,\frac{1-e^{-nC}}{C} / (1-e^{-(n+1)\delta})$. It starts at 0 and
    increases without bound if δ or C is not positive, and to a limit above 1 if 0 < C ≤ δ. If C > δ > 0, it increases
    to one maximum and then decreases to a limit of at least 1. The limit is $(e^\delta-1)/C$, and
    $e^\delta - 1 - C = (\beta-\gamma)^2/(\beta\gamma^2) \ge 0$. So R crosses 1 once. For (β, γ) = (.999, .9) it does at
    n* = 6, for (.95, .9) at 9, (.95, .99) at 64, (.9, .99) at 33, (.999, .5) at 1, (.5, .9) at 4; for β = γ at about
    2/(1−γ).

    Args:
        beta: decay β of the second moment, 0 < β < 1. [GT] writes (β, γ) where PyTorch and optax write (b2, b1).
        gamma: decay γ of the first moment, 0 < γ < 1; "discrete" also takes γ = 0, where only k = 0 remains.
        iteration: the iteration n ≥ 0, counted from 0. Between whole numbers, as in a flow at time nη, the same
            formulas hold (for "discrete" they are a continuation).
        kind: which bound, one of "gould_tanaka", "flow", "discrete".
        rate: the filters' rates in the flow, per iteration: "exact", $a_\alpha = -\ln\alpha$, or "gould_tanaka",
            $a_\alpha = (1-\alpha)/\alpha$ as in [GT]. The other kinds do not depend on it.
        bias_correction: whether the optimizer divides its filters by $1-\alpha^{n+1}$. If not, $u_n = m_n/\sqrt{v_n}$,
            and the bound is the same formula with $b_n = 1$.

    Returns:
        The bound, in the arguments' common shape: float64 by NumPy if no argument is a jax array, otherwise a jax array
        of the arguments' dtype. Where it exceeds the largest number of that dtype it is inf: use `log_update_bound`.

    Raises:
        ValueError: an argument is outside its interval, or `kind` or `rate` is unknown.

    Source: [GT] = R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization,
    arXiv:2411.05746.

    >>> print(round(float(update_bound(100, beta=0.999, gamma=0.9)), 7))
    2.3148747
    >>> for kind in ("gould_tanaka", "discrete"):
    ...     print(update_bound(np.array([0, 5, 6]), beta=0.999, gamma=0.9, kind=kind).round(3))
    [0.    1.008 1.025]
    [1.    1.016 1.021]
    """
    logarithm = log_update_bound(
        iteration, beta=beta, gamma=gamma, kind=kind, rate=rate, bias_correction=bias_correction
    )
    xp, logarithm = with_namespace(logarithm)
    with np.errstate(over="ignore"):
        return xp.exp(logarithm)


@keyword_decays
def log_update_bound(
    iteration: Numbers,
    *,
    beta: Numbers,
    gamma: Numbers,
    kind: str = "gould_tanaka",
    rate: str = "exact",
    bias_correction: bool = True,
) -> Numbers:
    r"""The natural logarithm of `update_bound`, which does not overflow however large the bound is.

    All kinds are written with $\varphi(x) = (1-e^{-x})/x$: $(1-e^{-nC})/C = n\,\varphi(nC)$, and with
    $\delta = \ln\beta - 2\ln\gamma$ the sum of the discrete bound is
    $\sum_{k=0}^{n} e^{-k\delta} = (n+1)\,\varphi((n+1)\delta)/\varphi(\delta)$. So C = 0, c = 0 and δ = 0 are no
    special cases: there, and on both sides, only the rounding of C, c or δ limits the accuracy.

    Args:
        beta, gamma, iteration, kind, rate, bias_correction: as in `update_bound`. [GT] writes (β, γ) where PyTorch
            and optax write (b2, b1).

    Returns:
        The logarithm, in the arguments' common shape and the dtype of `update_bound`. It is −inf for kind
        "gould_tanaka" at iteration 0.

    Raises:
        ValueError: an argument is outside its interval, or `kind` or `rate` is unknown.

    Source: [GT] = R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization,
    arXiv:2411.05746, for "gould_tanaka"; derivation of this project for "flow" and "discrete".

    >>> print(round(float(log_update_bound(100_000, beta=0.5, gamma=0.9)), 4))
    38886.8173
    """
    kind, rate = check_kind(kind, rate)
    check_decays(beta, gamma, unbounded_at_zero="" if kind == "discrete" else kind)
    check_range("iteration", iteration, 0.0, math.inf, high_open=True, hint="iterations are counted from 0")
    xp, beta, gamma, n = with_namespace(beta, gamma, iteration)
    positive = xp.where(gamma > 0, gamma, 0.5)
    log_start = 2 * xp.log1p(-gamma) - xp.log1p(-beta)
    if kind == "discrete":
        delta = _exact_exponent(xp, beta, positive)
        log_sum = xp.log(n + 1) + _log_phi(xp, (n + 1) * delta) - _log_phi(xp, delta)
        log_square = log_start + xp.where(gamma > 0, log_sum, 0.0)
    else:
        paper = has_paper_rates(kind, rate)
        exponent = _paper_exponent(xp, beta, positive) if paper else _exact_exponent(xp, beta, positive)
        log_square = _log_square_of_flow(xp, beta, positive, n, exponent, log_start, kind, paper)
        log_square = xp.where(gamma > 0, log_square, xp.inf)
    if not bias_correction:
        return (log_square / 2)[()]
    log_bias_gamma = xp.where(gamma > 0, xp.log(-xp.expm1((n + 1) * xp.log(positive))), 0.0)
    log_bias = xp.log(-xp.expm1((n + 1) * xp.log(beta))) / 2 - log_bias_gamma
    return (log_bias + log_square / 2)[()]


def _log_square_of_flow(
    xp: Any, beta: Any, gamma: Any, n: Any, exponent: Any, log_start: Any, kind: str, paper: bool
) -> Any:
    """The logarithm of the square of a flow's bound without bias factor, also where C overflows."""
    positive_n = xp.where(n > 0, n, 1.0)
    with np.errstate(over="ignore"):
        change = xp.where(n > 0, positive_n * exponent, 0.0)
    is_fast = change == xp.inf
    # There φ(nC) is 1/nC, and C is (2β − γ)/βγ, of which the logarithm does not overflow.
    numerator = xp.where(is_fast, 2 * beta - gamma, 1.0)
    log_fast = xp.log(beta) + xp.log(gamma) - xp.log(numerator) - xp.log(positive_n)
    log_phi = _log_phi(xp, xp.where(xp.isinf(change), 0.0, change))
    log_phi = xp.where(is_fast, log_fast, xp.where(change == -xp.inf, xp.inf, log_phi))
    log_beta, log_gamma = (_log_rate(decay, paper, xp) for decay in (beta, gamma))
    log_n = xp.where(n > 0, xp.log(positive_n), -xp.inf)
    log_integral = 2 * log_gamma - log_beta + log_n + log_phi
    return log_integral if kind == "gould_tanaka" else xp.logaddexp(log_start - change, log_integral)


def _log_rate(decay: Any, paper: bool, xp: Any) -> Any:
    """The logarithm of `filter_rate`, which the rate of [GT] of a decay near the smallest numbers would overflow."""
    return xp.log1p(-decay) - xp.log(decay) if paper else xp.log(filter_rate(decay, False, xp))


def _paper_exponent(xp: Any, beta: Any, gamma: Any) -> Any:
    positive = xp.where(gamma > 0, gamma, 0.5)
    # Near the smallest numbers 2/γ and 1/β overflow, though their difference need not.
    small = xp.minimum(beta, positive) < 4 / float(np.finfo(beta.dtype).max)
    safe_beta, safe_gamma = xp.where(small, 0.5, beta), xp.where(small, 0.5, positive)
    exponent = 2 * (1 - safe_gamma) / safe_gamma - (1 - safe_beta) / safe_beta
    with np.errstate(over="ignore"):
        of_small = ((2 * beta - positive) / positive) / beta - 1
    return xp.where(gamma > 0, xp.where(small, of_small, exponent), xp.inf)


def _exact_exponent(xp: Any, beta: Any, gamma: Any) -> Any:
    positive = xp.where(gamma > 0, gamma, 0.5)
    return xp.where(gamma > 0, xp.log(beta) - 2 * xp.log(positive), xp.inf)


def _log_phi(xp: Any, x: Any) -> Any:
    """The logarithm of φ(x) = (1 − e^{−x})/x with full precision for any finite x: near 0 by its Taylor series."""
    is_small = xp.abs(x) < 0.1
    size = xp.where(is_small, 1.0, xp.abs(x))
    far = xp.maximum(-x, 0.0) + xp.log(-xp.expm1(-size) / size)
    square = xp.where(is_small, x, 0.0) ** 2
    near = -x / 2 + square * (1 / 24 - square * (1 / 2880 - square * (1 / 181440 - square / 9676800)))
    return xp.where(is_small, near, far)


def has_paper_rates(kind: str, rate: str) -> bool:
    """Whether the exponent is that of filters with the rates of [GT]."""
    return kind == "gould_tanaka" or (kind == "flow" and rate == "gould_tanaka")


def check_kind(kind: str, rate: str) -> tuple[str, str]:
    """Both by their present names, or raise `ValueError` if one is unknown."""
    return check_choice("kind", kind, _KINDS), check_choice("rate", rate, _RATES)


def check_decays(beta: Numbers, gamma: Numbers, *, unbounded_at_zero: str = "") -> None:
    """Raise `ValueError` unless 0 < β < 1 and 0 ≤ γ < 1, or 0 < γ for the kind named as unbounded at 0.

    Decays in jax arrays may not be below the smallest normal number either: jax computes with 0 in their place.
    """
    for name, value in (("beta", beta), ("gamma", gamma)):
        if isinstance(value, jax.Array) and is_concrete(value) and jnp.issubdtype(value.dtype, jnp.floating):
            numbers, tiny = np.asarray(value, float), float(jnp.finfo(value.dtype).tiny)
            if np.any((numbers > 0) & (numbers < tiny)):
                hint = "smaller numbers are 0 in jax; pass NumPy or Python numbers, which are computed with in float64"
                raise ValueError(f"{name} must be at least {tiny:.3g} in {value.dtype}, or 0 for gamma; {hint}")
    check_range(
        "beta", beta, 0.0, 1.0, low_open=True, high_open=True, hint="beta decays the second moment: b2 in optax"
    )
    if unbounded_at_zero:
        hint = f"kind={unbounded_at_zero!r} is infinite at gamma = 0: use kind='discrete' for an optimizer without it"
        check_range("gamma", gamma, 0.0, 1.0, low_open=True, high_open=True, hint=hint)
    else:
        check_range("gamma", gamma, 0.0, 1.0, high_open=True, hint="gamma decays the first moment: b1 in optax")
