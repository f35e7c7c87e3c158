r"""Adam's 2-cycle on a parabola, in closed form: how large it is, and for which (β, γ) it is stable."""

from jaxtyping import Array, Bool, Float
from numpy import ndarray

from adamflow.analysis.array_namespace import with_namespace
from adamflow.checks import check_range, keyword_decays
from adamflow.optimizers.record import Record
from adamflow.types import Numbers


class TwoCycle(Record):
    """Adam's 2-cycle on ½ s x², as `two_cycle` returns it; arrays in the common shape of its arguments.

    Attributes:
        amplitude: A > 0 of the cycle x = ±A; 0 where there is none.
        stable: whether there is one and all its multipliers are inside the unit circle.
        half_period_polynomial: the coefficients c₂, c₁, c₀ of z³ + c₂ z² + c₁ z + c₀, on the last axis. Its roots are
            the multipliers of half a period, (x, m, v) ↦ (−x⁺, −m⁺, v⁺); their squares are those of the cycle.
    """

    amplitude: Float[Array | ndarray, "..."]
    stable: Bool[Array | ndarray, "..."]
    half_period_polynomial: Float[Array | ndarray, "... 3"]


@keyword_decays
def two_cycle(
    learning_rate: Numbers, *, beta: Numbers, gamma: Numbers, epsilon: Numbers = 0.0, curvature: Numbers = 1.0
) -> TwoCycle:
    r"""The 2-cycle of Adam without bias correction on $\tfrac12 s x^2$, and its stability, in closed form.

    With ε beside the root (not under it) and no weight decay, $x_n = (-1)^n A$ is a solution with
    $m_n = (-1)^n sA\frac{1-\gamma}{1+\gamma}$, $v = s^2A^2$ and

    $$A = \frac{\eta}{2}\,\frac{1-\gamma}{1+\gamma} - \frac{\varepsilon}{s}.$$

    It exists where A > 0, which is where ηs/ε is above the adaptive edge $(2+2\gamma)/(1-\gamma)$ of the fixed point 0,
    so it is born there (at ε = 0 always, and it is then the only cycle of period 2). With
    $q = sA/(sA+\varepsilon) = 1 - \frac{2\varepsilon}{\eta s}\,\frac{1+\gamma}{1-\gamma}$ half a period, with the
    symmetry (x, m) ↦ (−x, −m) factored out, has the characteristic polynomial

    $$z^3 - [1+\beta+\gamma-2q(1-\beta)]\,z^2 + [\beta+\gamma+\beta\gamma+2q\gamma(1-\beta)]\,z - \beta\gamma .$$

    At ±1 it never vanishes (its values are $2q(1-\beta)(1+\gamma)$ and $-2(1+\beta)(1+\gamma)+2q(1-\beta)(1-\gamma)$),
    so by the conditions of Jury the cycle is stable exactly if

    $$(1-\gamma)(1-\beta\gamma) > 2q\,\gamma\,(1+\beta),$$

    and at the border a complex pair leaves the unit circle (Neimark-Sacker). At ε = 0, q = 1, this is
    $1 + \beta\gamma^2 > 3\gamma(1+\beta)$, or $\beta < \frac{1-3\gamma}{\gamma(3-\gamma)}$: stable for every β if
    γ < 3 − 2√2 = .1716, for none if γ ≥ 1/3. At β = .999, γ = .9 it is unstable; with ε > 0 it is stable there too, but
    only while q < .0028, just above the edge. Stable means for small deviations: some runs settle elsewhere.

    Args:
        learning_rate: η > 0.
        beta: decay β of the second moment, 0 < β < 1. (β, γ) are b2 and b1 in PyTorch and optax.
        gamma: decay γ of the first moment, 0 ≤ γ < 1.
        epsilon: ε ≥ 0.
        curvature: s > 0, the second derivative of the loss.

    Returns:
        a `TwoCycle`: float64 by NumPy if no argument is a jax array, otherwise jax arrays.

    Raises:
        ValueError: an argument is outside its interval.

    Source: derivation of this project, for stability, the border and the uniqueness. The cycle is that of [BW] = S.
    Bock and M. G. Weiß, Non-Convergence and Limit Cycles in the Adam Optimizer, arXiv:2210.02070. Its abstract, all we
    could read, says that such cycles exist for all hyperparameters, with bias correction, and were known before only
    for atypical ones without it. Here they exist without it too for all (β, γ) with ηs/ε above the edge, and bias
    correction, which fades, does not change the limit; "atypical" fits the stable ones, since the usual γ = .9 is
    unstable.

    >>> import numpy as np
    >>> cycle = two_cycle(0.1, beta=0.999, gamma=np.array([0.1, 0.9]))
    >>> print(cycle.amplitude.round(4), cycle.stable)
    [0.0409 0.0026] [ True False]
    """
    check_range("learning_rate", learning_rate, 0, low_open=True)
    check_range("beta", beta, 0, 1, low_open=True, high_open=True, hint="beta decays the second moment: b2 in optax")
    check_range("gamma", gamma, 0, 1, high_open=True, hint="gamma decays the first moment: b1 in optax")
    check_range("epsilon", epsilon, 0)
    check_range("curvature", curvature, 0, low_open=True, hint="at a maximum of the loss there is no cycle")
    xp, eta, beta, gamma, epsilon, s = with_namespace(learning_rate, beta, gamma, epsilon, curvature)
    reach = eta * (1 - gamma) / (1 + gamma) / 2
    amplitude = xp.maximum(reach - epsilon / s, 0.0)
    q, beta, gamma = xp.broadcast_arrays(amplitude / reach, beta, gamma)
    polynomial = (
        2 * q * (1 - beta) - 1 - beta - gamma,
        beta + gamma + beta * gamma + 2 * q * gamma * (1 - beta),
        -beta * gamma,
    )
    stable = (amplitude > 0) & ((1 - gamma) * (1 - beta * gamma) > 2 * q * gamma * (1 + beta))
    return TwoCycle(*(xp.asarray(part) for part in (amplitude + 0 * q, stable, xp.stack(polynomial, axis=-1))))
