"""A page in the browser with a slider for each number of an optimizer: `adamflow explore`.

`settings_view` computes all that the page shows, by the public API, and needs no extra; `serve` needs the extra
`explorer`.
"""

import importlib.util

from adamflow.explorer.model import STEPS, Settings, View, is_prepared, prepare, settings_view

__all__ = ["STEPS", "Settings", "View", "is_prepared", "prepare", "serve", "settings_view"]


def serve(port: int = 0, *, show: bool = True) -> None:
    """Serve the page on this machine alone, until Ctrl-C.

    Each open page has sliders of its own. Programs are compiled once for each k and order, whoever asks first.

    Args:
        port: of 127.0.0.1; 0 takes a free one.
        show: whether to open a browser.

    Raises:
        ModuleNotFoundError: without Bokeh, which the extra `explorer` brings.
        OSError: if the port is taken.
    """
    if importlib.util.find_spec("bokeh") is None:
        raise ModuleNotFoundError(
            "the explorer draws with Bokeh, which is not installed; install the extra `explorer`: "
            "pip install '.[explorer]' in a clone of adamflow"
        )
    from adamflow.explorer.server import run

    run(port, show)
