"""Numbers and sentences for answers in words."""

import textwrap


def approximately(value: float) -> str:
    """A number with three digits, without an exponent where it is short without."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e5 else f"{value:.3g}".replace("e+0", "e").replace("e+", "e")


def percent(share: float) -> str:
    """A share in percent, with two digits."""
    return f"{100 * share:.2g}%"


def paragraph(*sentences: str) -> str:
    """Sentences in lines of at most 100 characters, empty ones left out."""
    return textwrap.fill(" ".join(sentence for sentence in sentences if sentence), 100)
