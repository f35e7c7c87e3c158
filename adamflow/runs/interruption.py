"""Ctrl-C that ends a run, or a sweep, with what it has."""

import signal
import threading
from typing import Any


class Interruption:
    """Ctrl-C as a flag, while a run or a sweep is at work; a second one raises `KeyboardInterrupt` as ever."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def __enter__(self) -> "Interruption":
        # Signals are for the main thread; whoever has a handler of their own keeps it.
        handler = signal.getsignal(signal.SIGINT)
        at_main = threading.current_thread() is threading.main_thread()
        self._listens = at_main and handler is signal.default_int_handler
        if self._listens:
            signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._listens:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _ask(self, *_: Any) -> None:
        self.asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
