"""A sweep into a store, on this machine, and the dataset of a store."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core.indexing import (
    ExplicitIndexer,
    IndexingSupport,
    LazilyIndexedArray,
    MemoryCachedArray,
    explicit_indexing_adapter,
)

from adamflow.runs.interruption import Interruption
from adamflow.sweeps.choice import Trial, Wishes, choose, workers
from adamflow.sweeps.dataset import attributes_of, coordinates_of, dataset_of, messages_of
from adamflow.sweeps.lanes import Chunk, Lanes, Layout, Plan
from adamflow.sweeps.results import outcome_variable
from adamflow.sweeps.settings import settings_digest, settings_of
from adamflow.sweeps.store import Store, alone, check_path, zarr_module
from adamflow.sweeps.work import InMemory, compute_here, count_of_lanes, lane_bar, warn_at_caller

#: Results of up to so many bytes are read at once, larger ones when they are used.
_READ_AT_ONCE = 2**24

#: So many numbers of damaged chunks are named.
_NAMED = 10


def sweep_into(path: Any, lanes: Lanes, wishes: Wishes, progress: bool) -> tuple[xr.Dataset, dict[int, str], str]:
    """A sweep whose chunks are written when they are finished: its dataset, what lanes said, and why it ended."""
    path = check_path(path)
    zarr_module()
    with Interruption() as interruption, lane_bar(lanes.grid.lanes, 0, progress) as bar:
        store, trial = open_or_create(path, lanes, wishes, lambda: choose(lanes, wishes))
        layout = Layout(lanes.grid, store.plan.chunk, store.plan.fixed, wishes.difficulty)
        with alone(path):
            rest = unfinished(store, lanes.grid.lanes, layout, bar)

            def compute(number: int) -> Chunk:
                return lanes.compute(store.plan, layout.lanes_of(number), trial.known, interruption.asked)

            def add(number: int, chunk: Chunk) -> None:
                if chunk.complete:
                    store.write(number, chunk)
                    bar.update(count_of_lanes(chunk))

            for number in sorted(set(trial.chunks).intersection(rest)):
                add(number, trial.chunks.pop(number))
                rest.remove(number)
            compute_here(rest, compute, add, workers(), interruption.asked)
    return (*dataset_of_store(store), "ended by Ctrl-C; the same call goes on")


def open_or_create(path: Path, lanes: Lanes, wishes: Wishes, plan: Callable[[], Trial]) -> tuple[Store, Trial]:
    """The store at a path, checked to be of these settings, or a new one whose plan is made by a trial."""
    settings = settings_of(lanes.run, lanes.grid, wishes.difficulty)
    if is_there(path):
        store, trial = Store(path), None
    else:
        check_writable(path)
        trial = plan()
        attributes = attributes_of(lanes.run, trial.plan, settings_digest(settings))
        store = create(path, trial.plan, lanes, wishes, settings, attributes)
    store.check_settings(settings, wishes.method, wishes.chunk)
    # Another process may have made the store meanwhile, with another plan.
    return store, trial if trial is not None and trial.plan == store.plan else Trial(store.plan)


def is_there(path: Path) -> bool:
    """Whether a folder holds something."""
    return path.is_dir() and any(path.iterdir())


def create(path: Path, plan: Plan, lanes: Lanes, wishes: Wishes, settings: dict[str, str], attributes: Any) -> Store:
    """A new store of a sweep that is computed by a plan."""
    layout = Layout(lanes.grid, plan.chunk, plan.fixed, wishes.difficulty)
    return Store.create(path, plan, layout, settings, attributes)


def check_writable(path: Path) -> None:
    """Raise `ValueError` if a store cannot be made, before anything is computed."""
    folder = path
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"store {str(path)!r} cannot be written, since {str(folder)!r} cannot; name another folder")


def unfinished(store: Store, lanes: int, layout: Layout, bar: Any) -> list[int]:
    """The chunks that are still to be computed; what is damaged is told in a warning."""
    with ThreadPoolExecutor(2 * workers()) as pool:
        states = list(pool.map(store.state, range(store.count)))
    damaged = [number for number, state in enumerate(states) if state == "damaged"]
    words = [*store.repaired]
    if damaged:
        words.append(_listed(damaged, store.count))
    if words:
        again = "; these chunks are computed again, and no others" if damaged else "; it was made anew"
        warn_at_caller(f"{store.path} is damaged: {' and '.join(words)}{again}")
    rest = [number for number, state in enumerate(states) if state != "finished"]
    todo = sum(int(np.sum(layout.lanes_of(number) >= 0)) for number in rest)
    bar.initial = bar.n = lanes - todo
    bar.refresh()
    return rest


def open_store(store: str | os.PathLike) -> xr.Dataset:
    """The dataset of a store as it is, finished or not, while it is written or afterwards.

    Args:
        store: the folder that `af.sweep` was given.

    Returns:
        what `af.sweep` would return; lanes that are not finished, or whose chunk is damaged, have the outcome
        "not_run".

    Raises:
        SweepStoreError: if it is no store of a sweep.

    Warns:
        SweepWarning: if chunks are damaged.
    """
    zarr_module()
    return dataset_of_store(Store(check_path(store)))[0]


def dataset_of_store(store: Store) -> tuple[xr.Dataset, dict[int, str]]:
    """The dataset of a store, and what lanes said that raised or crashed; what is large is read when it is used."""
    grid, schema = store.grid, store.plan.schema
    sizes = [np.dtype(v.dtype).itemsize * int(np.prod(v.shape, dtype=np.int64)) * grid.lanes for v in schema.values()]
    at_once = sum(sizes) <= _READ_AT_ONCE
    results, slots, damaged = InMemory(grid, schema if at_once else {}), np.full(grid.lanes, -1), []
    for number in range(store.count):
        try:
            chunk = store.finished(number, all_of_it=at_once)
        except Exception:
            damaged.append(number)
            continue
        if chunk is not None:
            results.add(number, chunk)
            inside = np.flatnonzero(chunk.lanes >= 0)
            slots[chunk.lanes[inside]] = number * store.plan.chunk + inside
    if damaged:
        warn_at_caller(f"{store.path} is damaged: {_listed(damaged, store.count)}; af.sweep computes them again")
    attributes = store.attributes | messages_of(results.errors, grid)
    if at_once:
        return dataset_of(grid, schema, results.arrays, attributes), results.errors
    return _when_used(store, slots, results.arrays["outcome"]).assign_attrs(attributes), results.errors


def _when_used(store: Store, slots: np.ndarray, outcomes: np.ndarray) -> xr.Dataset:
    """The dataset of a store whose results are read when they are used."""
    grid = store.grid
    stored = xr.open_zarr(store.path, consolidated=False, chunks=None)
    dims, slots = tuple(grid.sizes), slots.reshape(grid.shape)
    variables: dict[str, Any] = {"outcome": (dims, outcomes.reshape(grid.shape), outcome_variable().attrs)}
    for name, described in store.plan.schema.items():
        variable = stored[name].variable
        # Kept once they are read, as xarray does with those of a file.
        by_lane = MemoryCachedArray(LazilyIndexedArray(_ByLane(variable, slots, described.fill)))
        variables[name] = xr.Variable((*dims, *variable.dims[2:]), by_lane, variable.attrs)
    return xr.Dataset(variables, coordinates_of(grid))


class _ByLane(BackendArray):
    """A variable of a store by the dimensions of the grid, whose chunks are read when their lanes are used.

    xarray's own indexing by arrays would hold an index of 8 bytes for each dimension of each number.

    Args:
        stored: dimensions (chunk, slot, …), not yet read.
        slots: by lane, chunk · (slots of a chunk) + slot, −1 where it is not finished; shape that of the grid.
        fill: of lanes that are not finished, whatever is written where they will be.
    """

    def __init__(self, stored: xr.Variable, slots: np.ndarray, fill: Any) -> None:
        self.stored, self.slots, self.fill = stored, slots, fill
        self.shape, self.dtype = (*slots.shape, *stored.shape[2:]), stored.dtype

    def __getitem__(self, key: ExplicitIndexer) -> Any:
        return explicit_indexing_adapter(key, self.shape, IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple) -> np.ndarray:
        count = self.slots.ndim
        slots, rest = _selected(self.slots, key[:count]), key[count:]
        chunks, inside = np.divmod(slots.ravel(), self.stored.shape[1])
        order = np.argsort(chunks, kind="stable")
        numbers, starts = np.unique(chunks[order], return_index=True)
        shape = _selected(np.broadcast_to(np.zeros((), bool), self.shape[count:]), rest).shape
        found = np.full((slots.size, *shape), self.fill, self.dtype)
        for number, start, end in zip(numbers, starts, [*starts[1:], len(order)], strict=False):
            if number < 0:
                continue
            lanes = order[start:end]
            block = self.stored[int(number)].values
            found[lanes] = _selected(block[inside[lanes]], (slice(None), *rest))
        return found.reshape(*slots.shape, *shape)


def _selected(array: np.ndarray, key: tuple) -> np.ndarray:
    """An array by a number, a slice or an array of places for each axis."""
    for axis in reversed(range(len(key))):
        array = np.asarray(array[(slice(None),) * axis + (key[axis],)])
    return array


def _listed(numbers: list[int], count: int) -> str:
    listed = ", ".join(map(str, numbers[:_NAMED])) + (", …" if len(numbers) > _NAMED else "")
    return f"chunk{'s' if len(numbers) > 1 else ''} {listed} of {count}"
