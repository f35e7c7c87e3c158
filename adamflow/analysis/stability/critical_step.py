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


def critical_step(difference: Callable[[float], float], slope: float, guess: float, rounding: float) -> CriticalStep:
    """Bracket the smallest c > 0 with a positive difference L(θ + c d) − L(θ).

    The search starts at the guess, goes up or down by growing factors until the sign changes, and then halves the
    logarithm of the bracket. A rise of the loss between two tried steps that both lower it is not seen.

    Args:
        difference: c ↦ L(θ + c d) − L(θ); nan and inf count as a rise.
        slope: its derivative at c = 0.
        guess: a positive first step, such as −2·slope/curvature.
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

    def raises(step: float) -> bool:
        return not difference(step) <= rounding

    is_above = raises(guess)
    low, high = (0.0, guess) if is_above else (guess, math.inf)
    evaluations = 1
    factor = BRACKET_RATIO
    while evaluations < MAX_EVALUATIONS and (low == 0.0 or math.isinf(high)):
        step = high / factor if is_above else low * factor
        evaluations += 1
        if raises(step):
            high = step
        else:
            low = step
        factor = min(factor * factor, _LARGEST_FACTOR)
    while evaluations < MAX_EVALUATIONS and low > 0 and 1.001 * BRACKET_RATIO * low < high < math.inf:
        middle = math.sqrt(low * high)
        evaluations += 1
        low, high = (low, middle) if raises(middle) else (middle, high)
    # The slope says that small steps lower the loss: if none was found, rounding hides them.
    return CriticalStep(math.nan, math.nan, evaluations) if low == 0.0 else CriticalStep(low, high, evaluations)
