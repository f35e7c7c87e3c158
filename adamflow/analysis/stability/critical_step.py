"""The smallest step along a direction that raises the loss, by evaluations of the loss alone.

The reciprocal measure of sharpness is that of D. S. Kalra et al., arXiv:2601.16979 (2026).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

#: The bracket of the critical step is narrowed to this ratio of its ends.
BRACKET_RATIO = 1.1
#: The most evaluations of the loss; 5 or 6 are usual.
MAX_EVALUATIONS = 14
#: No step of the search is longer than this factor.
_LARGEST_FACTOR = 4.0


class CriticalStep(NamedTuple):
    """Where the loss along a direction returns to its initial value.

    Attributes:
        low: the largest tried step that did not raise the loss; 0 if the loss rises at once, nan if rounding hides it.
        high: the smallest tried step that raised it; inf if none did.
        evaluations: how often the loss was evaluated.
    """

    low: float
    high: float
    evaluations: int

    @property
    def value(self) -> float:
        """The geometric mean of `low` and `high`; inf if no step raised the loss."""
        return self.high if self.low == 0.0 or math.isinf(self.high) else math.sqrt(self.low * self.high)


def critical_step(
    difference: Callable[[float], float], slope: float, bend: float, guess: float, rounding: float
) -> CriticalStep:
    """Bracket the smallest c > 0 with a positive difference L(θ + c d) − L(θ).

    The search starts at the guess. The cubic with the known slope, bend and value there says where the sign may change,
    and what lies a little before and behind is tried next. Otherwise it goes up or down by growing factors until the
    sign changes, and halves the logarithm of the bracket. A rise of the loss between two tried steps that both lower it
    is not seen.

    Args:
        difference: c ↦ L(θ + c d) − L(θ); nan and inf count as a rise.
        slope: its derivative at c = 0.
        bend: its second derivative there.
        guess: a positive first step, such as −2·slope/bend.
        rounding: differences of at most this size have no sign.
    """
    if not math.isfinite(slope):
        return CriticalStep(math.nan, math.nan, 0)
    if slope >= 0:
        return CriticalStep(0.0, 0.0, 0)
    guess = guess if math.isfinite(guess) and guess > 0 else 1.0
    # The dip of a parabola with this slope that returns at the guess.
    if -slope * guess / 4 <= 4 * rounding:
        return CriticalStep(math.nan, math.nan, 0)
    first = difference(guess)
    evaluations = 1
    is_above = not first <= rounding
    low, high = (0.0, guess) if is_above else (guess, math.inf)
    margin = math.sqrt(BRACKET_RATIO)
    root = _root_of_cubic(slope, bend, guess, first)
    # The nearer one first: if the root is right, the other one may not be needed.
    tries = [root / margin, root * margin] if is_above else [root * margin, root / margin]
    factor = BRACKET_RATIO
    while evaluations < MAX_EVALUATIONS and 1.001 * BRACKET_RATIO * low < high:
        known = [step for step in tries if 1.001 * low < step < high / 1.001]
        if known:
            step = known[0]
            tries.remove(step)
        elif low > 0 and high < math.inf:
            step = math.sqrt(low * high)
        else:
            step = high / factor if is_above else low * factor
            factor = min(factor * factor, _LARGEST_FACTOR)
        evaluations += 1
        low, high = (step, high) if difference(step) <= rounding else (low, step)
    # The slope says that small steps lower the loss: if none was found, rounding hides them.
    return CriticalStep(math.nan, math.nan, evaluations) if low == 0.0 else CriticalStep(low, high, evaluations)


def _root_of_cubic(slope: float, bend: float, step: float, value: float) -> float:
    """The smallest c > 0, within a factor 4 of the step, where slope c + bend c²/2 + k c³ is 0; else the step itself.

    k is such that it has the given value at the step.
    """
    if not (math.isfinite(bend) and math.isfinite(value)):
        return step
    # In units of the step, divided by c: a + b x/2 + k x² = 0.
    a, b = slope * step, bend * step**2
    k = value - a - b / 2
    discriminant = b**2 / 4 - 4 * a * k
    if discriminant < 0:
        return step
    # The root that tends to −2a/b for k → 0 in the form that does not cancel; a < 0.
    divisor = b / 2 + math.sqrt(discriminant)
    x = -2 * a / divisor if divisor > 0 else 1.0
    return step * x if 1 / _LARGEST_FACTOR < x < _LARGEST_FACTOR else step
