r"""Curves through the (β, γ) square along which [GT] compares optimizers, with points at equal distances.

Both functions are NumPy only (float64) and take one start point: their results are settings of runs, not part of one.

[GT] = R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization, arXiv:2411.05746.
It writes (β, γ) for the decays of the second and the first moment, where PyTorch and optax write (b2, b1).
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from adamflow.analysis.bounds.formulas import stability_exponent
from adamflow.checks import check_count, check_range, check_single, keyword_decays
from adamflow.types import Scalar

Decays: TypeAlias = Float[np.ndarray, "points"]

#: A curve holds them all, and those of a million are drawn as one line anyway.
MOST_POINTS = 10**6


@keyword_decays
def normal_curve(points: int, *, beta: Scalar, gamma: Scalar) -> tuple[Decays, Decays]:
    r"""Points on the curve through (β, γ) that crosses every level set of C at a right angle.

    The gradient of $C(\beta,\gamma) = 2(1-\gamma)/\gamma - (1-\beta)/\beta$ is $(1/\beta^2, -2/\gamma^2)$, so the curve
    is $2\beta^3 + \gamma^3 = \text{const}$ (derivation of this project; [GT] draws the curve in its second figure). It
    reaches from the border β = 1 (or γ = 0, where the constant is below 2) to the border γ = 1 (or β = 0, where the
    constant is below 1).

    Args:
        beta: decay β of the second moment, 0 < β < 1. [GT] writes (β, γ) where PyTorch and optax write (b2, b1).
        gamma: decay γ of the first moment, 0 < γ < 1.
        points: how many points.

    Returns:
        (betas, gammas), each of shape (points,), in the order of falling C: β falls and γ rises. The curve between the
        borders is cut into `points` pieces of equal length, and each point is the middle of its piece. So neighbours
        are equally far apart along the curve, and all lie strictly inside (0, 1)². The start point itself need not be
        among them.

    Raises:
        ValueError: β or γ is outside its interval, or `points` is no whole number from 1 to a million.

    Source: [GT] = R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization,
    arXiv:2411.05746.

    >>> betas, gammas = normal_curve(3, beta=0.999, gamma=0.9)
    >>> print(betas.round(4), gammas.round(4))
    [0.9928 0.9773 0.9605] [0.915  0.9495 0.9834]
    """
    beta, gamma = _start_point(beta, gamma)
    count = check_count("points", points, high=MOST_POINTS)
    # Far from the other borders curves are similar, and cubes of small numbers underflow.
    unit = max(beta, gamma) if max(beta, gamma) < 0.5 else 1.0
    constant = 2 * (beta / unit) ** 3 + (gamma / unit) ** 3
    # In the angle at the origin the curve is smooth up to all borders; in β or γ its speed is infinite at some.
    start = np.arctan2(np.cbrt(constant - 2), 1.0) if unit == 1 and constant > 2 else 0.0
    end = np.arctan2(1.0, np.cbrt((constant - 1) / 2)) if unit == 1 and constant > 1 else np.pi / 2

    def curve(angle):
        radius = np.cbrt(constant / (2 * np.cos(angle) ** 3 + np.sin(angle) ** 3))
        return radius * np.cos(angle), radius * np.sin(angle)

    def speed(angle):
        cos, sin = np.cos(angle), np.sin(angle)
        shape = 2 * cos**3 + sin**3
        return np.cbrt(constant / shape) * np.hypot(1.0, cos * sin * (sin - 2 * cos) / shape)

    return _middles_of_equal_arcs(curve, speed, float(start), float(end), count, unit)


@keyword_decays
def level_curve(points: int, *, beta: Scalar, gamma: Scalar) -> tuple[Decays, Decays]:
    r"""Points on the curve through (β, γ) along which C is constant.

    $C(\beta,\gamma) = 2/\gamma - 1/\beta - 1$, so the curve is $\gamma = 2\beta/(1 + (1+C)\beta)$. All level curves
    start at the corner (0, 0). If C ≥ 0 they end at the border β = 1, in γ = 2/(2+C); otherwise at the border γ = 1, in
    β = 1/(1−C).

    Args:
        beta: decay β of the second moment, 0 < β < 1. [GT] writes (β, γ) where PyTorch and optax write (b2, b1).
        gamma: decay γ of the first moment, 0 < γ < 1.
        points: how many points.

    Returns:
        (betas, gammas), each of shape (points,), in the order of rising β and γ, placed as by `normal_curve`: each
        point is the middle of one of `points` pieces of equal length, strictly inside (0, 1)².

    Raises:
        ValueError: β or γ is outside its interval, or `points` is no whole number from 1 to a million.

    Source: [GT] = R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization,
    arXiv:2411.05746, for C.

    >>> betas, gammas = level_curve(3, beta=0.999, gamma=0.9)
    >>> print(betas.round(4), gammas.round(4))
    [0.1137 0.4115 0.7911] [0.1996 0.5478 0.8048]
    """
    beta, gamma = _start_point(beta, gamma)
    count = check_count("points", points, high=MOST_POINTS)
    # The coordinate that ends at 1 is the parameter: the other one's slope is then at most 2 everywhere. The curve is
    # written by γ/β, since C itself overflows near the smallest numbers.
    if stability_exponent(beta=beta, gamma=gamma) >= 0:
        rest = 2 - gamma / beta
        return _middles_of_equal_arcs(
            lambda b: (b, gamma * (2 * b / (gamma + rest * b))),
            lambda b: np.hypot(1.0, 2 * (gamma / (gamma + rest * b)) ** 2),
            0.0,
            1.0,
            count,
            breaks=_around_the_bend(gamma / rest),
        )
    rest = 1 - 2 * (beta / gamma)
    return _middles_of_equal_arcs(
        lambda g: (beta * (g / (2 * beta + rest * g)), g),
        lambda g: np.hypot(1.0, 2 * (beta / (2 * beta + rest * g)) ** 2),
        0.0,
        1.0,
        count,
        breaks=_around_the_bend(2 * beta / rest),
    )


def _around_the_bend(scale: float) -> list[float]:
    """Where to divide [0, 1] for a level curve that bends near 0 on this scale.

    What is below 1e-14 is a rounding error of the length, since the speed is bounded.
    """
    count = int(np.ceil(np.log(1 / scale) / np.log(4))) if 1e-14 < scale < 1 else 0
    return [scale * 4**index for index in range(count)]


def _start_point(beta: Scalar, gamma: Scalar) -> tuple[float, float]:
    for name, value in (("beta", beta), ("gamma", gamma)):
        check_range(
            name,
            check_single(name, value),
            0.0,
            1.0,
            low_open=True,
            high_open=True,
            hint="the curve starts inside the unit square",
        )
    return float(beta), float(gamma)


def _middles_of_equal_arcs(
    curve: Callable,
    speed: Callable,
    start: float,
    end: float,
    points: int,
    unit: float = 1.0,
    breaks: Sequence[float] = (),
) -> tuple[Decays, Decays]:
    """`unit` times a curve at the middles of `points` arcs of equal length; `speed` is its length by its parameter.

    The integral of the speed is divided at `breaks`, between which it is smooth.
    """
    borders = np.unique(np.concatenate([np.linspace(start, end, _PANELS + 1), [x for x in breaks if start < x < end]]))
    lengths = np.concatenate([[0.0], np.cumsum(_length(speed, borders[:-1], borders[1:]))])
    targets = (np.arange(points) + 0.5) / points * lengths[-1]
    parts = np.array_split(targets, max(1, points // _POINTS_AT_ONCE))
    parameters = np.concatenate([_parameters_at(part, speed, borders, lengths) for part in parts])
    betas, gammas = curve(parameters)
    # Rounding may put a point onto a border that it is closer to than the spacing of floats.
    low, high = np.nextafter(0.0, 1.0), np.nextafter(1.0, 0.0)
    return np.clip(unit * betas, low, high), np.clip(unit * gammas, low, high)


#: The parameter's interval is divided into so many parts, on each of which the speed is nearly a polynomial.
_PANELS = 64
#: The nodes and weights of Gauss and Legendre on [0, 1]; on a panel they leave an error below rounding.
_NODES, _WEIGHTS = (part / 2 for part in np.polynomial.legendre.leggauss(14))
_NODES = _NODES + 0.5
#: So many points are placed at once, to bound memory.
_POINTS_AT_ONCE = 50_000
#: Newton's iterations converge in two or three.
_NEWTON_ITERATIONS = 8


def _length(speed: Callable, left: Any, right: Any) -> Any:
    """The length of each piece from `left` to `right`, by one Gauss formula for each."""
    width = right - left
    return width * (speed(left[:, None] + width[:, None] * _NODES) @ _WEIGHTS)


def _parameters_at(targets: np.ndarray, speed: Callable, borders: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The parameters at which the curve has the target lengths, by Newton's method within the panel of each."""
    panel = np.clip(np.searchsorted(lengths, targets, side="right") - 1, 0, len(borders) - 2)
    left, right = borders[panel], borders[panel + 1]
    rest = targets - lengths[panel]
    parameters = left + (right - left) * rest / (lengths[panel + 1] - lengths[panel])
    for _ in range(_NEWTON_ITERATIONS):
        correction = (rest - _length(speed, left, parameters)) / speed(parameters)
        parameters = np.clip(parameters + correction, left, right)
        if np.all(np.abs(correction) <= 1e-9 * (right - left)):
            # Convergence is quadratic: the next correction is below rounding.
            break
    return parameters
