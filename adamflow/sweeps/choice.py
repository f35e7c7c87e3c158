"""How a sweep is computed: one program for many lanes, or threads over single ones, by a measured trial."""

import dataclasses
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from adamflow.checks import describe
from adamflow.sweeps.lanes import Chunk, Lanes, Layout, Plan
from adamflow.sweeps.results import check_dims

#: Chunks of one program on a CPU: so many lanes, of which all threads' numbers stay within so many bytes.
_MOST_LANES = 4096
_MOST_LANES_ON_ACCELERATORS = 65_536
_CHUNK_BYTES = 2**26

#: A single run by itself takes at least so long, whatever it computes.
_LEAST_SECONDS = 5e-4

#: One chunk of single lanes should take so many seconds: with a store, that is what a kill loses.
_SECONDS, _SECONDS_STORED = 0.5, 5.0

#: A trial of single lanes starts none after so many seconds.
_TRIAL_SECONDS = 0.3

#: So many lanes are tried to find one that does not raise.
_ATTEMPTS = 3


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What the user asked for: the method and the chunk, or "auto"; bytes that chunks may take; and the order."""

    method: str = "auto"
    chunk: int | str = "auto"
    memory: int | None = None
    difficulty: Callable[..., Any] | None = None
    stored: bool = False


@dataclasses.dataclass
class Trial:
    """A plan, and what was computed on the way to it: chunks by number, lanes by theirs."""

    plan: Plan
    chunks: dict[int, Chunk] = dataclasses.field(default_factory=dict)
    known: dict[int, Any] = dataclasses.field(default_factory=dict)


def workers() -> int:
    """How many chunks are computed at once: one on each device, or if that is a single CPU one on each core."""
    if jax.default_backend() != "cpu" or jax.local_device_count() > 1:
        return jax.local_device_count()
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int:
    """Half of the bytes that are free on the first device, or in this machine's memory."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return (stats["bytes_limit"] - stats.get("bytes_in_use", 0)) // 2
    limits = [2**33]
    meminfo, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if meminfo.exists():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        limits = [int(lines["MemAvailable"].split()[0]) * 1024]
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        limits.append(int(text) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return max(min(limits) // 2, 2**26)


def choose(lanes: Lanes, wishes: Wishes) -> Trial:
    """The plan of a sweep. Where both methods can run, the faster one by a trial, if a trial costs less than it saves.

    Raises:
        ValueError: if the function cannot be run as asked, or no chunk fits the memory.
        Exception: what the function raised, if it did so at every lane that was tried.
    """
    if wishes.method == "threads":
        return _single(lanes, wishes, "asked for")
    vector, error = _vectorized(lanes, wishes)
    if vector is None:
        if wishes.method == "vmap":
            raise ValueError(
                f"method='vmap' needs a function that jax can trace, but {type(error).__name__}: {str(error)[:300]}; "
                "leave method out to run its lanes one by one in threads"
            ) from error
        return _single(lanes, wishes, f"jax cannot trace the function ({type(error).__name__})")
    trial, seconds_to_compile = vector
    if wishes.method == "vmap":
        return trial
    return _compared(lanes, wishes, trial, seconds_to_compile)


class _DoesNotFitError(Exception):
    """No chunk fits the memory that was given."""


def _vectorized(lanes: Lanes, wishes: Wishes) -> tuple[tuple[Trial, float] | None, Exception | None]:
    """A plan with one program and the seconds that it took to compile, or why there is none."""
    kinds = {name: values.dtype.kind for name, (_, values) in lanes.grid.axes.items()}
    error: Exception | None = None
    # Strings are constants of a program; whole numbers are, where the function needs their values to be traced.
    for fixed in dict.fromkeys(tuple(n for n, kind in kinds.items() if kind in constant) for constant in ("U", "Ubiu")):
        if len(fixed) == len(kinds):
            return None, error or TypeError("the grid has no numbers to trace")
        layout = Layout(lanes.grid, 1, fixed)
        first = int(layout.lanes_of(0)[0])
        try:
            size = _compiled(lanes, wishes, fixed, first, layout.largest_group)
        except _DoesNotFitError as failure:
            raise ValueError(str(failure)) from None
        except Exception as failure:
            error = error or failure
            continue
        check_dims(lanes.schema, lanes.grid.sizes)
        plan = Plan("vmap", size, fixed, lanes.schema, first, "asked for")
        return (Trial(plan), lanes.seconds_to_compile), None
    return None, error


def _compiled(lanes: Lanes, wishes: Wishes, fixed: tuple[str, ...], first: int, most: int) -> int:
    """Compile the program of a chunk that fits the memory; return how many lanes it has."""
    on_cpu = jax.default_backend() == "cpu"
    # Threads share a machine's memory; accelerators have their own.
    shares = workers() if on_cpu else 1
    memory = (available_memory() if wishes.memory is None else wishes.memory) // shares
    asked = None if isinstance(wishes.chunk, str) else wishes.chunk
    size = asked or _even(most, _first_size(wishes, most, on_cpu))
    while True:
        compiled = lanes.program(fixed, size, first)
        needed = _bytes(compiled)
        wanted = min(memory, _CHUNK_BYTES) if on_cpu and asked is None else memory
        if needed <= memory and (needed <= 2 * wanted or size == 1):
            return size
        if asked or size == 1:
            raise _DoesNotFitError(
                f"a chunk of {size} lanes takes {needed * shares:.3g} bytes in {shares} threads at once, more than "
                f"memory={memory * shares:.3g}; raise memory, {'make chunk smaller, ' if asked else ''}or return less"
            )
        size = min(_even(most, int(size * wanted / needed)), size - 1)


def _first_size(wishes: Wishes, most: int, on_cpu: bool) -> int:
    if not on_cpu:
        return max(1, min(_MOST_LANES_ON_ACCELERATORS, -(-most // workers())))
    # With a store some chunks for each thread, so that a kill loses little.
    parts = workers() * (8 if wishes.stored else 1)
    return min(_MOST_LANES, max(-(-most // parts), 64 if wishes.stored else 1))


def _even(lanes: int, size: int) -> int:
    """At most `size`, such that chunks are nearly equally full, and threads have equally many."""
    size, threads = max(1, min(size, lanes)), workers()
    chunks = -(-lanes // size)
    if chunks > 1:
        chunks = -(-chunks // threads) * threads
    return -(-lanes // chunks)


def _bytes(compiled: Any) -> int:
    """What a program takes by its compiler's account, its arguments and results included."""
    stats = compiled.memory_analysis()
    if stats is None:
        return 0
    return stats.temp_size_in_bytes + stats.output_size_in_bytes + stats.argument_size_in_bytes


def _compared(lanes: Lanes, wishes: Wishes, trial: Trial, compile_seconds: float) -> Trial:
    """The plan of one program, or of single lanes if these are faster by a trial."""
    plan = trial.plan
    layout = Layout(lanes.grid, plan.chunk, plan.fixed, wishes.difficulty)
    threads = min(workers(), layout.count)
    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        found = pool.map(lambda number: lanes.compute(plan, layout.lanes_of(number)), range(threads))
        trial.chunks = dict(enumerate(found))
        seconds = time.perf_counter() - started
    rest = seconds * (layout.count - threads) / threads + compile_seconds * (layout.groups - 1)
    each = seconds / plan.chunk
    words = f"{1e6 * each / threads:.3g} us for a lane in chunks of {plan.chunk}"
    if rest < compile_seconds or each < _LEAST_SECONDS:
        trial.plan = dataclasses.replace(plan, reason=f"one program takes {words}")
        return trial
    try:
        single, lane_seconds, known = _tried(lanes)
    except Exception as error:
        trial.plan = dataclasses.replace(plan, reason=f"single lanes raise {type(error).__name__}")
        return trial
    words += f", single lanes {1e6 * lane_seconds:.3g} us"
    if lane_seconds * lanes.grid.lanes < rest:
        return _single_plan(lanes, wishes, single, lane_seconds, known, f"by a trial: one program takes {words}")
    trial.plan = dataclasses.replace(plan, reason=f"by a trial: one program takes {words}")
    return trial


def _tried(lanes: Lanes, timed: bool = True) -> tuple[int, float, dict[int, Any]]:
    """A lane that did not raise, the seconds for each lane if all threads run some, and the results."""
    total, threads = lanes.grid.lanes, workers()
    known: dict[int, Any] = {}
    failure: Exception | None = None
    for lane in dict.fromkeys(int(x) for x in np.linspace(0, total - 1, _ATTEMPTS)):
        try:
            known[lane] = lanes.one(lane)
            break
        except Exception as error:
            failure = failure or error
    if not known:
        raise failure or AssertionError
    first = next(iter(known))
    # One after the other from a spread of lanes, since a lane may take much longer than its neighbours.
    others = [lane for lane in np.linspace(0, total - 1, 8 * threads + 2)[1:-1].astype(int).tolist() if lane != first]
    if not timed or not others:
        return first, 0.0, known

    def run(lane: int) -> Any:
        if time.perf_counter() - started > _TRIAL_SECONDS:
            return None
        try:
            return lanes.one(lane)
        except Exception:
            return None

    # Those of the threads lie apart, the first ones of all first.
    others = [lane for start in range(8) for lane in others[start::8]]
    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        found = dict(zip(others, pool.map(run, others), strict=True))
        seconds = time.perf_counter() - started
    known |= {lane: result for lane, result in found.items() if result is not None}
    return first, seconds / max(1, len(known) - 1), known


def _single(lanes: Lanes, wishes: Wishes, reason: str) -> Trial:
    """The plan that runs lanes one by one; the first lanes are run to see what they return and how long they take."""
    return _single_plan(lanes, wishes, *_tried(lanes, timed=wishes.chunk == "auto"), reason)


def _single_plan(lanes: Lanes, wishes: Wishes, first: int, seconds: float, known: dict[int, Any], reason: str) -> Trial:
    schema = known[first][1]
    check_dims(schema, lanes.grid.sizes)
    most = max(1, lanes.grid.lanes // (4 * workers()))
    wanted = (_SECONDS_STORED if wishes.stored else _SECONDS) / max(seconds * workers(), 1e-9)
    chunk = int(min(most, max(1, wanted))) if isinstance(wishes.chunk, str) else wishes.chunk
    return Trial(Plan("threads", chunk, (), schema, first, reason), known=known)


def check_wishes(method: Any, chunk: Any, memory: Any, difficulty: Any, stored: bool, lanes: int) -> Wishes:
    """The user's wishes for so many lanes, or a `ValueError` that names the one that cannot be."""
    if not isinstance(method, str) or method not in ("auto", "vmap", "threads"):
        raise ValueError(f"method must be one of 'auto', 'vmap', 'threads', got {describe(method)}")
    by_itself = isinstance(chunk, str) and chunk == "auto"
    if not by_itself and (isinstance(chunk, bool) or not isinstance(chunk, int | np.integer) or chunk < 1):
        raise ValueError(f"chunk must be 'auto' or a whole number of lanes, at least 1, got {describe(chunk)}")
    if difficulty is not None and not callable(difficulty):
        raise ValueError(
            f"difficulty must be a function of arrays, by the names of the grid, got {describe(difficulty)}"
        )
    if memory is not None:
        memory = _as_bytes(memory)
    return Wishes(method, "auto" if by_itself else min(int(chunk), lanes), memory, difficulty, stored)


_UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "B": 1}


def _as_bytes(memory: Any) -> int:
    """A number of bytes, from a number or such as "2 GB"."""
    amount: Any = memory
    if isinstance(memory, str):
        unit = next((unit for unit in _UNITS if memory.upper().endswith(unit)), "")
        try:
            amount = float(memory[: -len(unit)]) * _UNITS[unit]
        except (ValueError, KeyError):
            amount = None
    if isinstance(amount, bool) or not isinstance(amount, int | float | np.integer) or not 0 < amount < np.inf:
        raise ValueError(f"memory must be a number of bytes above 0, or such as '2 GB', got {describe(memory)}")
    return int(amount)
