"""The colours of all pictures: those of Okabe and Ito, which colour-blind readers tell apart.

The order is that in which lines take them. A test, tests/test_plotting_colours.py, simulates the three kinds of colour
blindness.
More lines than colours repeat them with another line style, and lines that are to be told apart have markers or styles
of their own as well.
"""

from collections.abc import Iterator
from typing import Any

BLUE = "#0072B2"
VERMILLION = "#D55E00"
GREEN = "#009E73"
PURPLE = "#CC79A7"
ORANGE = "#E69F00"
SKY = "#56B4E9"
BLACK = "#000000"
#: Too light for a line on white; for a line with a dark outline.
YELLOW = "#F0E442"

#: Of lines, in their order.
LINES = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
#: The markers that go with them.
MARKERS = ("o", "s", "^", "D", "v", "x", "P")
#: The line styles of the first seven lines, of the next seven, and so on.
STYLES = ("-", "--", ":", "-.")


def line_styles(count: int) -> Iterator[dict[str, Any]]:
    """The colour and the line style of each of `count` lines, as keywords of `ax.plot`.

    Example:
        >>> from adamflow.plotting.colours import line_styles
        >>> [style["linestyle"] for style in line_styles(8)][-2:]
        ['-', '--']
    """
    for index in range(count):
        turn, place = divmod(index, len(LINES))
        yield {"color": LINES[place], "linestyle": STYLES[turn % len(STYLES)]}
