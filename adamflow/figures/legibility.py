"""What makes a picture hard to read: too many panels or lines, legends over data, texts over each other."""

import itertools
from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import QuadMesh
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import BboxBase

MOST_PANELS = 6
MOST_LINES = 5
#: By how many pixels two texts may overlap: their boxes are a little larger than their letters.
_TOLERANCE = 1.5


def faults(drawn: Figure, *, few: bool = True) -> list[str]:
    """What is hard to read in a figure, a sentence each.

    Args:
        drawn: the figure; its layout is computed.
        few: whether it must have at most six panels, with at most five lines each. A line has more than two points and
            is drawn as one: markers alone, borders and straight references are none.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> from adamflow.figures import legibility
        >>> drawn, ax = plt.subplots()
        >>> for height in range(6):
        ...     line = ax.plot([height] * 3)
        >>> legibility.faults(drawn)
        ['a panel has 6 lines, more than 5']
        >>> plt.close(drawn)
    """
    drawn.draw_without_rendering()
    panels = [ax for ax in drawn.axes if ax.axison and ax.get_visible() and ax.get_label() != "<colorbar>"]
    found = []
    if few and len(panels) > MOST_PANELS:
        found.append(f"{len(panels)} panels, more than {MOST_PANELS}")
    for ax in panels:
        lines = [line for line in ax.lines if _is_curve(line)]
        if few and len(lines) > MOST_LINES:
            found.append(f"{_called(ax)} has {len(lines)} lines, more than {MOST_LINES}")
        found += [f"a legend of {_called(ax)} covers {what}" for what in _covered(ax)]
    texts = list(_texts(drawn))
    for (one, box), (other, other_box) in itertools.combinations(texts, 2):
        if _overlap(box, other_box):
            found.append(f"{one!r} and {other!r} overlap")
    return found


def _called(ax: Axes) -> str:
    title = ax.get_title(loc="left") or ax.get_title()
    return f"panel {title!r}" if title else "a panel"


def _is_curve(line: Line2D) -> bool:
    drawn = line.get_linestyle() not in ("None", "none", "", " ")
    return bool(line.get_visible()) and drawn and len(np.asarray(line.get_xydata())) > 2


def _covered(ax: Axes) -> Iterator[str]:
    """What a legend inside of the axes covers."""
    inside = ax.get_window_extent()
    legends = {id(child): child for child in (ax.get_legend(), *ax.get_children()) if isinstance(child, Legend)}
    for legend in legends.values():
        box = legend.get_window_extent()
        if not _overlap(box, inside):
            continue
        for text in ax.texts:
            if text.get_visible() and _overlap(box, text.get_window_extent()):
                yield f"the text {text.get_text()!r}"
        if any(isinstance(child, QuadMesh | ContourSet) for child in ax.get_children()):
            yield "a map"
            continue
        for line in ax.lines:
            if not line.get_visible() or not len(np.asarray(line.get_xydata())):
                continue
            path = line.get_path().transformed(line.get_transform())
            points = np.asarray(path.vertices)
            if _is_curve(line):
                hit = path.intersects_bbox(box, filled=False)
            elif line.get_linestyle() in ("None", "none", "", " "):
                hit = any(box.contains(x, y) for x, y in points)
            else:
                continue
            if hit:
                yield f"the line {line.get_label()!r}"


def _texts(drawn: Figure) -> Iterator[tuple[str, BboxBase]]:
    """Every text that shows, with its box in pixels; contour labels, which are turned, apart."""
    hidden: set[int] = set()
    for ax in drawn.axes:
        for axis in (ax.xaxis, ax.yaxis):
            hidden |= _hidden_ticks(axis)
        if not ax.axison or not ax.get_visible():
            hidden |= {id(text) for text in ax.findobj(Text)}
    for text in drawn.findobj(Text):
        assert isinstance(text, Text)
        if id(text) in hidden or not text.get_visible() or not text.get_text().strip() or text.get_rotation() % 90:
            continue
        yield text.get_text(), text.get_window_extent()


def _hidden_ticks(axis: Axis) -> set[int]:
    """The labels of ticks that are not drawn, since they are outside of the axis or not the side that has labels."""
    low, high = sorted(axis.get_view_interval())
    margin = 1e-9 * (high - low)
    return {
        id(label)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        for label in (tick.label1, tick.label2)
        if not low - margin <= tick.get_loc() <= high + margin or not axis.get_visible()
    }


def _overlap(one: BboxBase, other: BboxBase) -> bool:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return bool(width > _TOLERANCE and height > _TOLERANCE)
