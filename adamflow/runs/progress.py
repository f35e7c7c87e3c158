"""The bar of a run: moved from the host between the parts of a run, or by callbacks of a compiled loop."""

import itertools
import sys
import threading
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

#: Where the output is no terminal, as in a notebook, a run that is shorter shows nothing; logs wait longer.
_QUIET_SECONDS = 3.0
#: Seconds from one state of a bar to the next: on a terminal or in a notebook, and in a log file, which keeps all.
_LIVE_SECONDS, _LOGGED_SECONDS = 0.2, 10.0
#: A compiled loop reports when it has come so much further: 200 callbacks a run.
_REPORTED_SHARE = 0.005
#: The seconds that a part of a run should take, after which the host is asked whether to go on.
_SECONDS_OF_PART = 0.5


def _is_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})


def _opened(first: int, steps: int) -> Any:
    # Not at the import of adamflow, since few runs show a bar.
    from tqdm import tqdm

    is_terminal = sys.stderr.isatty()
    return tqdm(
        total=steps,
        initial=first,
        unit="iteration",
        dynamic_ncols=True,
        delay=0.0 if is_terminal else _QUIET_SECONDS,
        mininterval=_LIVE_SECONDS if is_terminal or _is_notebook() else _LOGGED_SECONDS,
        miniters=0,
    )


class Bar:
    """A bar over the iterations of a run, which is closed where its `with` ends, also by an error or Ctrl-C.

    It stays where the run has ended: a run that fails does not reach the right end.
    """

    def __init__(self, first: int, steps: int, shown: bool) -> None:
        self.shown = shown
        self._tqdm = _opened(first, steps) if shown else None

    def move(self, iteration: float | int) -> None:
        """Show that a run has come to an iteration; its slowest element, if it is a batch."""
        # Callbacks may come late: a bar never goes back.
        if self._tqdm is not None and int(iteration) > self._tqdm.n:
            self._tqdm.update(int(iteration) - self._tqdm.n)

    def move_to_share(self, share: float | int) -> None:
        """The same by the share of the run, from 0 at its first iteration to 1 at its last."""
        if self._tqdm is not None:
            first, steps = self._tqdm.initial, self._tqdm.total
            self.move(first + share * (steps - first))

    def close(self) -> None:
        """Leave it as it is."""
        if self._tqdm is not None:
            self._tqdm.close()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def next_part(size: int, seconds: float) -> int:
    """How much work the next part of a run gets, so that it takes half a second, if `size` took so many seconds."""
    growth = _SECONDS_OF_PART / max(seconds, 1e-9)
    return int(size * min(max(growth, 0.5), 64)) + 1


class _OpenBars:
    """The bars that callbacks of compiled programs may move, by their numbers."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._bars: dict[int, Bar] = {}
        self._lock = threading.Lock()

    def add(self, bar: Bar) -> int:
        with self._lock:
            number = next(self._numbers)
            self._bars[number] = bar
            return number

    def move(self, number: Any, share: Any) -> None:
        with self._lock:
            # The backward pass of a derivative repeats the steps of a run whose bar is closed.
            bar = self._bars.get(int(number))
            if bar is not None:
                bar.move_to_share(float(share))

    def remove(self, number: Any) -> Bar | None:
        with self._lock:
            return self._bars.pop(int(number), None)

    def finish(self, number: Any, share: Any) -> None:
        """Show where a run has ended, and close its bar."""
        self.move(number, share)
        bar = self.remove(number)
        if bar is not None:
            bar.close()


_OPEN_BARS = _OpenBars()


def report_share(number: Any, shown: Any, share: Any) -> jax.Array:
    """Move a bar from within a compiled loop, if it is behind by enough; return what it shows then."""

    def report() -> jax.Array:
        jax.debug.callback(_OPEN_BARS.move, number, share)
        return share

    is_due = share - shown >= _REPORTED_SHARE
    return jax.lax.cond(eqxi.nonbatchable(is_due), report, lambda: shown)


class MeterState(NamedTuple):
    """The number of a bar, what it shows, and how far the run has come."""

    number: Any
    shown: Any
    share: Any


class RunMeter(diffrax.AbstractProgressMeter):
    """A bar that a compiled loop moves, in a batch to its slowest element.

    Attributes:
        number: of a bar that the host has opened and closes.
        span: the first and the last iteration, if the program itself opens and closes a bar each time that it runs.
    """

    number: jax.Array | None
    span: tuple[int, int] | None = eqx.field(static=True)

    def init(self) -> MeterState:
        number = self.number
        if number is None:
            number = io_callback(self._open, jax.ShapeDtypeStruct((), jnp.int32))
        return MeterState(eqxi.nonbatchable(number), jnp.zeros(()), jnp.zeros(()))

    def _open(self) -> np.ndarray:
        assert self.span is not None
        return np.asarray(_OPEN_BARS.add(Bar(*self.span, shown=True)), np.int32)

    def step(self, state: MeterState, progress: Any) -> MeterState:
        share = -eqxi.unvmap_max(-jax.lax.stop_gradient(jnp.asarray(progress, float)))
        # Elements of a batch that have ended keep an older state.
        number, shown = eqxi.unvmap_max(state.number), eqxi.unvmap_max(state.shown)
        return MeterState(number, report_share(number, shown, share), share)

    def close(self, state: MeterState) -> None:
        if self.number is None:
            share = -eqxi.unvmap_max(-state.share)
            jax.debug.callback(_OPEN_BARS.finish, eqxi.unvmap_max(state.number), share)


class HostedMeter:
    """A bar that the host opens for a compiled program, which moves it by `meter`.

    It is closed where its `with` ends, also by an error or Ctrl-C.
    """

    def __init__(self, first: int, steps: int, shown: bool) -> None:
        self.bar = Bar(first, steps, shown)
        self._number = _OPEN_BARS.add(self.bar)
        self.meter = RunMeter(jnp.asarray(self._number, jnp.int32), None) if shown else diffrax.NoProgressMeter()

    def __enter__(self) -> "HostedMeter":
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            if self.bar.shown:
                jax.effects_barrier()
        finally:
            _OPEN_BARS.remove(self._number)
            self.bar.close()
