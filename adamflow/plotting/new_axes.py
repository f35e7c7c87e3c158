"""The axes of a picture whose caller gave none."""

import weakref

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.backends.registry import BackendFilter, backend_registry
from matplotlib.figure import Figure

from adamflow.plotting.arguments import check_axes

_WITHOUT_WINDOWS = {name.lower() for name in backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE)}

#: The figure that `axes_or_new` made last.
_last_made: list[weakref.ref[Figure]] = []


def axes_or_new(ax: Axes | None) -> Axes:
    """The axes given, or those of a new figure.

    With a backend without windows the figure made before is closed, which takes it from pyplot's list and no more: its
    axes stay as they are. A program that draws a thousand pictures would keep all of them open otherwise. In windows
    and notebooks several figures are shown at a time, and closing them is up to the user.
    """
    if ax is not None:
        check_axes(ax)
        return ax
    figure, axes = plt.subplots(layout="constrained")
    previous = _last_made.pop()() if _last_made else None
    if previous is not None and mpl.get_backend().lower() in _WITHOUT_WINDOWS:
        plt.close(previous)
    _last_made.append(weakref.ref(figure))
    return axes
