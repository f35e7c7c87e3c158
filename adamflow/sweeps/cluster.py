"""A sweep on the workers of a dask cluster: chunks go there, results into the store, and the driver holds neither."""

import hashlib
import importlib
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import xarray as xr

from adamflow.runs import IncompleteRunWarning
from adamflow.runs.interruption import Interruption
from adamflow.sweeps.choice import Trial, Wishes, choose
from adamflow.sweeps.dataset import attributes_of
from adamflow.sweeps.isolated import compute_apart
from adamflow.sweeps.lanes import Chunk, Lanes, Layout
from adamflow.sweeps.settings import difference, settings_digest, settings_of, versions
from adamflow.sweeps.store import Store, SweepStoreError, alone, check_path, zarr_module
from adamflow.sweeps.stored import create, dataset_of_store, is_there, unfinished
from adamflow.sweeps.work import count_of_lanes, lane_bar

#: So many chunks are with the scheduler for each thread of a worker, so that its memory does not grow with the sweep.
_AHEAD = 4

#: A scheduler that does not answer for so many seconds is taken to be gone.
_PATIENCE = 20.0


def sweep_on(
    client: Any, path: Any, lanes: Lanes, wishes: Wishes, progress: bool, retries: int
) -> tuple[xr.Dataset, dict[int, str], str]:
    """A sweep on a cluster: its dataset, read from the store; what lanes said; and why it ended."""
    path = check_path(path)
    zarr_module()
    distributed = distributed_module()
    if not isinstance(client, distributed.Client):
        raise ValueError(f"client must be a dask.distributed.Client, got {type(client).__name__}")
    settings = settings_of(lanes.run, lanes.grid, wishes.difficulty)
    check_workers(client)
    payload = _pack(lanes, wishes)
    with Interruption() as interruption, lane_bar(lanes.grid.lanes, 0, progress) as bar:
        if is_there(path):
            store, trial = Store(path), None
        else:
            trial, attributes = client.submit(_plan, payload, settings_digest(settings), pure=False).result()
            store = create(path, trial.plan, lanes, wishes, settings, attributes)
        store.check_settings(settings, wishes.method, wishes.chunk)
        _check_store_is_seen(client, path)
        layout = Layout(lanes.grid, store.plan.chunk, store.plan.fixed, wishes.difficulty)
        with alone(path):
            rest = unfinished(store, lanes.grid.lanes, layout, bar)
            chunks = trial.chunks if trial is not None and trial.plan == store.plan else {}
            for number in sorted(set(chunks).intersection(rest)):
                store.write(number, chunks[number])
                bar.update(count_of_lanes(chunks[number]))
                rest.remove(number)
            sent = client.submit(bytes, payload, key=f"adamflow-sweep-{_digest(payload)}")
            work = _Work(client, sent, _digest(payload), path, retries)
            work.finish(rest, layout, bar, interruption.asked)
    return (*dataset_of_store(store), "ended by Ctrl-C; the same call goes on")


def distributed_module() -> Any:
    """dask.distributed, or an error that says how to install it."""
    try:
        return importlib.import_module("distributed")
    except ImportError as error:
        raise ImportError("client= needs dask.distributed: pip install 'adamflow[cluster]'") from error


def check_workers(client: Any) -> None:
    """Raise `ValueError` if the cluster has no worker, or one with other versions than this process."""
    here = versions()
    if not client.scheduler_info()["workers"]:
        raise ValueError("the cluster of client= has no worker; start some, and wait with client.wait_for_workers(1)")
    for worker, there in client.run(versions).items():
        if (words := difference(here, there)) is not None:
            raise ValueError(f"worker {worker} of client= is another environment: {words}; start it in this one")


def _check_store_is_seen(client: Any, path: Path) -> None:
    blind = [worker for worker, seen in client.run(is_there, path).items() if not seen]
    if blind:
        raise SweepStoreError(
            f"worker {blind[0]} does not see {path}; put the store on a file system that all workers share"
        )


def _pack(lanes: Lanes, wishes: Wishes) -> bytes:
    cloudpickle = importlib.import_module("cloudpickle")
    content = (lanes.run, lanes.grid, wishes, bool(jax.config.read("jax_enable_x64")))
    try:
        return cloudpickle.dumps(content)
    except Exception as error:
        raise ValueError(f"run cannot be sent to the workers of client=: {str(error)[:300]}") from error


def _digest(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()[:16]


class _Work:
    """Chunks with the scheduler, few at a time.

    Args:
        client: of the cluster.
        payload: the future of the packed function, which the scheduler can make again on any worker.
        digest: of that.
        path: of the store.
        retries: how often a lane is tried again whose process died.
    """

    def __init__(self, client: Any, payload: Any, digest: str, path: Path, retries: int) -> None:
        self.client, self.payload, self.digest, self.path, self.retries = client, payload, digest, path, retries
        self.distributed = distributed_module()
        self.running: dict[Any, tuple[int, bool]] = {}

    def submit(self, number: int, apart: bool) -> None:
        future = self.client.submit(
            _compute, self.payload, self.digest, self.path, number, self.retries if apart else None, pure=False
        )
        self.running[future] = number, apart

    def finish(self, rest: list[int], layout: Layout, bar: Any, stop: threading.Event) -> None:
        """See all chunks through, until `stop` is set."""
        left = iter(rest)
        self._fill(left)
        while self.running and not stop.is_set():
            for future in self._ready():
                number, apart = self.running.pop(future)
                error = future.exception() if future.status == "error" else None
                if isinstance(error, self.distributed.KilledWorker) and not apart:
                    # One of its lanes kills workers: now each lane in a process of its own.
                    self.submit(number, apart=True)
                elif future.status != "finished":
                    raise error if error is not None else self._gone()
                else:
                    bar.update(int((layout.lanes_of(number) >= 0).sum()))
            self._fill(left)
        for future in self.running:
            future.cancel()

    def _fill(self, left: Iterator[int]) -> None:
        threads = sum(worker["nthreads"] for worker in self.client.scheduler_info()["workers"].values())
        while len(self.running) < _AHEAD * max(1, threads):
            number = next(left, None)
            if number is None:
                return
            self.submit(number, apart=False)

    def _ready(self) -> list[Any]:
        """The futures that have ended, once there are some; none after a second, so that Ctrl-C is heard."""
        try:
            self.distributed.wait(list(self.running), timeout=1.0, return_when="FIRST_COMPLETED")
        except TimeoutError:
            pass
        except Exception:
            raise self._gone() from None
        if self.client.status != "running":
            self._wait_for_scheduler()
        return [future for future in self.running if future.status != "pending"]

    def _wait_for_scheduler(self) -> None:
        started = time.monotonic()
        while self.client.status != "running":
            if self.client.status == "closed" or time.monotonic() - started > _PATIENCE:
                raise self._gone()
            time.sleep(0.2)

    def _gone(self) -> SweepStoreError:
        store = Store(self.path)
        done = sum(store.state(number) == "finished" for number in range(store.count))
        return SweepStoreError(
            f"the scheduler of client= is gone, or has lost its tasks; {done} of {store.count} chunks are in "
            f"{self.path}, and the same call with another client, or without one, goes on"
        )


def _plan(payload: bytes, settings: str) -> tuple[Trial, dict[str, Any]]:
    """On a worker: how the sweep is computed, by a trial there, and the attributes that say so."""
    lanes, wishes = _unpacked(payload)
    trial = choose(lanes, wishes)
    trial.known = {}
    return trial, attributes_of(lanes.run, trial.plan, settings)


def _compute(payload: bytes, digest: str, path: Path, number: int, retries: int | None) -> int:
    """On a worker: compute a chunk, each lane in a process of its own if `retries` is given, and write it."""
    lanes, store, layout = _prepared(payload, digest, path)
    of_chunk = layout.lanes_of(number)
    chunk: Chunk
    if retries is None:
        chunk = lanes.compute(store.plan, of_chunk)
    else:
        chunk = compute_apart(payload, store.plan, of_chunk, retries)
    store.write(number, chunk)
    return number


_PREPARED: dict[str, tuple[Lanes, Store, Layout]] = {}
_PREPARING = threading.Lock()


def _prepared(payload: bytes, digest: str, path: Path) -> tuple[Lanes, Store, Layout]:
    """What a worker keeps of a sweep: its compiled programs, and the open store."""
    with _PREPARING:
        if digest not in _PREPARED:
            lanes, wishes = _unpacked(payload)
            store = Store(path)
            layout = Layout(lanes.grid, store.plan.chunk, store.plan.fixed, wishes.difficulty)
            _PREPARED.clear()
            _PREPARED[digest] = lanes, store, layout
        return _PREPARED[digest]


def _unpacked(payload: bytes) -> tuple[Lanes, Wishes]:
    run, grid, wishes, float64 = importlib.import_module("cloudpickle").loads(payload)
    jax.config.update("jax_enable_x64", float64)
    warnings.simplefilter("ignore", IncompleteRunWarning)
    return Lanes(run, grid), wishes
