"""Lanes in chunks: which lanes a chunk holds, and how they are run, in one program or one after the other."""

import contextlib
import dataclasses
import functools
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from adamflow.programs import compile_traced
from adamflow.sweeps.grid import Grid
from adamflow.sweeps.results import (
    COMPLETED,
    NOT_RUN,
    RAISED,
    Schema,
    check_alike,
    outcome_variable,
    separate,
)
from adamflow.sweeps.settings import settings_digest, settings_of

#: So much of an error's text is kept for a lane.
ERROR_LENGTH = 200


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a sweep is computed; with its grid and its function it determines every number.

    Attributes:
        method: "vmap", all lanes of a chunk in one program, or "threads", one after the other.
        chunk: the number of lanes that are computed, and written, together.
        fixed: names whose values are constants of the program, so that a chunk has one value of each.
        schema: what a lane returns.
        first: the lane that the schema is from.
        reason: why this method, in words.
    """

    method: str
    chunk: int
    fixed: tuple[str, ...]
    schema: Schema
    first: int
    reason: str


@dataclasses.dataclass
class Chunk:
    """What a chunk's lanes returned.

    Attributes:
        lanes: the numbers of the lanes; −1 where the chunk is not full.
        values: for each name, "outcome" included, an array with a leading axis of lanes.
        errors: for lanes that raised or crashed, what was said.
    """

    lanes: np.ndarray
    values: dict[str, np.ndarray]
    errors: dict[int, str]

    @property
    def complete(self) -> bool:
        """Whether all of its lanes were run."""
        return not np.any((self.values["outcome"] == NOT_RUN) & (self.lanes >= 0))


class Layout:
    """Which lanes each chunk holds: those with equal constants together, and the most difficult ones first.

    Args:
        grid: the points.
        chunk: the number of lanes of a chunk.
        fixed: names of which a chunk has one value each.
        difficulty: from arrays of the names' values to numbers; `None` for C order.
    """

    def __init__(
        self, grid: Grid, chunk: int, fixed: tuple[str, ...], difficulty: Callable[..., Any] | None = None
    ) -> None:
        self.grid, self.chunk = grid, chunk
        self.order: np.ndarray | None = None
        self._sizes = [grid.lanes]
        if not fixed and difficulty is None:
            self._starts = np.array([0])
        else:
            self._sort(fixed, difficulty)
        counts = [-(-size // chunk) for size in self._sizes]
        self._first_chunks = np.concatenate([[0], np.cumsum(counts)])
        self.count = int(self._first_chunks[-1])

    def _sort(self, fixed: tuple[str, ...], difficulty: Callable[..., Any] | None) -> None:
        lanes = np.arange(self.grid.lanes)
        keys = [np.unique(values, return_inverse=True)[1] for values in self.grid.values(lanes, fixed).values()]
        key = np.zeros(len(lanes), int)
        for part in keys:
            key = key * (part.max() + 1) + part
        hard = np.zeros(len(lanes)) if difficulty is None else self._difficulties(lanes, difficulty)
        self.order = np.lexsort((lanes, -hard, key))
        _, starts, sizes = np.unique(key[self.order], return_index=True, return_counts=True)
        self._starts, self._sizes = starts, sizes.tolist()

    def _difficulties(self, lanes: np.ndarray, difficulty: Callable[..., Any]) -> np.ndarray:
        try:
            return np.broadcast_to(np.asarray(difficulty(**self.grid.values(lanes)), float), lanes.shape)
        except Exception as error:
            raise ValueError(
                "difficulty must take arrays by the names of the grid and return as many numbers, but it raised "
                f"{type(error).__name__}: {error}; an example is lambda beta, gamma: 1 / (1 - gamma)"
            ) from error

    @property
    def groups(self) -> int:
        """The number of programs, one for each combination of constants."""
        return len(self._sizes)

    @property
    def largest_group(self) -> int:
        """The lanes of the largest of them."""
        return max(self._sizes)

    def lanes_of(self, number: int) -> np.ndarray:
        """The lanes of a chunk, −1 where it is not full."""
        group = int(np.searchsorted(self._first_chunks, number, side="right")) - 1
        inside = (number - self._first_chunks[group]) * self.chunk + np.arange(self.chunk)
        places = np.minimum(self._starts[group] + inside, self.grid.lanes - 1)
        lanes = places if self.order is None else self.order[places]
        return np.where(inside < self._sizes[group], lanes, -1)


class _Programs:
    """Compiled programs of one function, with the schema of each, for all sweeps of it."""

    def __init__(self) -> None:
        self.programs: dict[Any, tuple[Any, Schema, float]] = {}
        self.lock = threading.Lock()
        self.locks: dict[Any, threading.Lock] = {}


#: The programs of the last functions, by all that they depend on: a function that closes over another value is another.
_KEPT: OrderedDict[str, _Programs] = OrderedDict()
_FUNCTIONS = 8


def _shared(run: Callable[..., Any]) -> _Programs:
    try:
        key = settings_digest(settings_of(run, None, None))
    except TypeError:  # it closes over something whose value cannot be told
        return _Programs()
    programs = _KEPT.setdefault(key, _Programs())
    _KEPT.move_to_end(key)
    while len(_KEPT) > _FUNCTIONS:
        _KEPT.popitem(last=False)
    return programs


class Lanes:
    """A function of one point, ready to be run at many, by either method.

    Args:
        run: the function.
        grid: the points.
    """

    def __init__(self, run: Callable[..., Any], grid: Grid) -> None:
        self.run, self.grid = run, grid
        self.devices = jax.local_devices()
        #: Of the last program: what its lanes return, and how long it took to compile.
        self.schema: Schema = {}
        self.seconds_to_compile = 0.0
        self._shared = _shared(run)
        self._free_devices: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for device in self.devices:
            self._free_devices.put(device)

    def traced(self, fixed: tuple[str, ...], size: int, lane: int, device: Any = None) -> Any:
        """The program of a chunk of `size` lanes with the constants of one of them, traced but not compiled."""
        constants = {name: self.grid.point(lane)[name] for name in fixed}

        def one(point: Mapping[str, Any]) -> dict[str, Any]:
            arrays, self.schema = separate(self.run(**point, **constants), self._taken)
            return arrays

        shapes = {
            name: jax.ShapeDtypeStruct((size,), jax.dtypes.canonicalize_dtype(self.grid.axes[name][1].dtype))
            for name in self.grid.axes
            if name not in fixed
        }
        sharding = SingleDeviceSharding(device or self.devices[0])
        return jax.jit(jax.vmap(one), in_shardings=sharding).trace(shapes)

    def program(self, fixed: tuple[str, ...], size: int, lane: int, device: Any = None) -> Any:
        """The same compiled, or what was compiled before for an equal function."""
        key = self._key(fixed, size, lane, device or self.devices[0])
        with self._shared.lock:
            own = self._shared.locks.setdefault(key, threading.Lock())
        # Programs of several devices or constants are compiled side by side.
        with own:
            if key not in self._shared.programs:
                started = time.perf_counter()
                traced = self.traced(fixed, size, lane, device)
                compiled = compile_traced(traced, size, device or self.devices[0])
                self._shared.programs[key] = compiled, self.schema, time.perf_counter() - started
            compiled, self.schema, self.seconds_to_compile = self._shared.programs[key]
        return compiled

    def _key(self, fixed: tuple[str, ...], size: int, lane: int, device: Any) -> Any:
        point = self.grid.point(lane)
        kinds = tuple((name, values.dtype.str) for name, (_, values) in self.grid.axes.items() if name not in fixed)
        return size, device, kinds, tuple((name, point[name]) for name in fixed), tuple(self.grid.sizes)

    @contextlib.contextmanager
    def _a_device(self) -> Iterator[Any]:
        """A device for one chunk. With several each computes chunks of its own, and none waits for another."""
        device = self._free_devices.get() if len(self.devices) > 1 else self.devices[0]
        try:
            yield device
        finally:
            if len(self.devices) > 1:
                self._free_devices.put(device)

    @functools.cached_property
    def _taken(self) -> set[str]:
        return {*self.grid.axes, *self.grid.sizes}

    def vectorized(self, plan: Plan, lanes: np.ndarray) -> Chunk:
        """All lanes of a chunk in one program; where it is not full, its first lane is repeated."""
        first, size = int(lanes[lanes >= 0][0]), plan.chunk
        names = [name for name in self.grid.axes if name not in plan.fixed]
        points = self.grid.values(np.where(lanes < 0, first, lanes), names)
        points = {name: x.astype(jax.dtypes.canonicalize_dtype(x.dtype)) for name, x in points.items()}
        with self._a_device() as device:
            compiled = self.program(plan.fixed, size, first, device)
            values = {name: np.asarray(array) for name, array in compiled(points).items()}
        return Chunk(lanes, values, {})

    def one(self, lane: int) -> tuple[dict[str, np.ndarray], Schema]:
        """What the function returns at one lane, by itself."""
        arrays, schema = separate(self.run(**self.grid.point(lane)), self._taken)
        return {name: np.asarray(array) for name, array in arrays.items()}, schema

    def one_by_one(
        self, plan: Plan, lanes: np.ndarray, known: Mapping[int, Any], stop: threading.Event | None = None
    ) -> Chunk:
        """The lanes of a chunk one after the other, until `stop` is set; the outcome of one that raises says so.

        Args:
            plan: of the sweep.
            lanes: of the chunk.
            known: results of lanes that were run before.
            stop: whether to leave out what is not yet run.
        """
        chunk = blank(plan, lanes)
        for slot, lane in enumerate(lanes.tolist()):
            if lane < 0 or (stop is not None and stop.is_set()):
                continue
            try:
                arrays, schema = known[lane] if lane in known else self.one(lane)
            except Exception as error:
                chunk.values["outcome"][slot] = RAISED
                chunk.errors[lane] = f"{type(error).__name__}: {error}"[:ERROR_LENGTH]
                continue
            check_alike(plan.schema, schema, self.grid.words(lane), self.grid.words(plan.first))
            for name, array in arrays.items():
                chunk.values[name][slot] = array
        return chunk

    def compute(self, plan: Plan, lanes: np.ndarray, known: Mapping[int, Any] | None = None, stop: Any = None) -> Chunk:
        """The results of a chunk's lanes, by the method of the plan."""
        if plan.method == "vmap":
            return self.vectorized(plan, lanes)
        return self.one_by_one(plan, lanes, known or {}, stop)


def blank(plan: Plan, lanes: np.ndarray) -> Chunk:
    """A chunk of which no lane has been run."""
    values = {
        name: np.full((len(lanes), *variable.shape), variable.fill, variable.dtype)
        for name, variable in plan.schema.items()
    }
    outcome = np.where(lanes < 0, COMPLETED, NOT_RUN).astype(outcome_variable().dtype)
    return Chunk(lanes, {"outcome": outcome, **values}, {})
