"""Chunks at work on this machine: in threads, with a bar, until all are done or Ctrl-C ends them."""

import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
from tqdm import tqdm

from adamflow.runs import IncompleteRunWarning
from adamflow.sweeps.grid import Grid
from adamflow.sweeps.lanes import Chunk
from adamflow.sweeps.results import NOT_RUN, RAISED, Schema, outcome_variable


class SweepWarning(UserWarning):
    """A sweep has lanes that raised or crashed, ended before all were run, or found damage in its store."""


class InMemory:
    """Results by lane, as arrays of this process."""

    def __init__(self, grid: Grid, schema: Schema) -> None:
        self.grid = grid
        self.arrays = {
            name: np.full((grid.lanes, *variable.shape), variable.fill, variable.dtype)
            for name, variable in schema.items()
        }
        self.arrays["outcome"] = np.full(grid.lanes, NOT_RUN, outcome_variable().dtype)
        self.errors: dict[int, str] = {}

    def add(self, number: int, chunk: Chunk) -> None:
        """Keep what is done of a chunk."""
        inside = chunk.lanes >= 0
        for name, values in chunk.values.items():
            self.arrays[name][chunk.lanes[inside]] = values[inside]
        self.errors |= chunk.errors


def compute_here(
    numbers: Iterable[int],
    compute: Callable[[int], Chunk],
    add: Callable[[int, Chunk], Any],
    threads: int,
    stop: threading.Event,
) -> None:
    """Compute chunks in threads and hand them on in this one, until all are done or `stop` is set.

    Chunks that wait are numbers, so that memory does not grow with their count. The first error ends the work.
    """
    rest = iter(numbers)
    with ThreadPoolExecutor(threads) as pool:
        running: dict[Future[Chunk], int] = {}
        try:
            while True:
                for number in islice(rest, 0 if stop.is_set() else 2 * threads - len(running)):
                    running[pool.submit(compute, number)] = number
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    number = running.pop(future)
                    if not future.cancelled():
                        add(number, future.result())
                if stop.is_set():
                    for future in running:
                        future.cancel()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def quiet_runs() -> Iterator[None]:
    """A run that does not complete says nothing: its lane's outcome does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IncompleteRunWarning)
        yield


def lane_bar(total: int, done: int, shown: bool) -> Any:
    """A bar over lanes, with their rate and the time left; after a resumption the rate is that of the new ones."""
    return tqdm(total=total, initial=done, unit="lane", desc="sweep", disable=not shown, dynamic_ncols=True)


def count_of_lanes(chunk: Chunk) -> int:
    """The lanes of a chunk that are done."""
    return int(np.sum((chunk.lanes >= 0) & (chunk.values["outcome"] != NOT_RUN)))


def tell_failures(outcomes: np.ndarray, errors: dict[int, str], grid: Grid, stopped: str) -> None:
    """Warn at the caller's line if lanes raised, crashed or were not run."""
    words = []
    missing = int(np.sum(outcomes == NOT_RUN))
    if missing:
        words.append(f"{stopped}: {missing} of {grid.lanes} lanes are not run, and their outcome is 'not_run'")
    failed = int(np.sum((outcomes >= RAISED) & (outcomes != NOT_RUN)))
    if failed:
        lane = min(errors) if errors else int(np.flatnonzero((outcomes >= RAISED) & (outcomes != NOT_RUN))[0])
        said = f": {errors[lane]}" if lane in errors else ""
        words.append(
            f"{failed} of {grid.lanes} lanes raised an error or crashed, as their outcome says; the first, at "
            f"{grid.words(lane)}{said}"
        )
    if words:
        warn_at_caller("; ".join(words))


def warn_at_caller(text: str) -> None:
    """Warn at the line that called this package, whatever wraps its functions."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _is_inside(frame.f_back):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, SweepWarning, stacklevel=level)


def _is_inside(frame: Any) -> bool:
    head = str(frame.f_globals.get("__name__", "")).split(".")[0]
    return head in ("adamflow", "jaxtyping", "beartype") or frame.f_code.co_filename.startswith("<@beartype")
