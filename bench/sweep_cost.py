"""What a sweep of 10⁶ or 10⁹ lanes on a cluster would take, and what bounds it: `python bench/sweep_cost.py`.

Three times are measured here: of a lane, of writing a chunk, and of the scheduler for a task. Then the task graph is
simulated at full size: the scheduler takes one task after the other, a worker one chunk after the other, and the store
so many chunks at once. Network and file system are those of this machine; on another one measure again.
"""

import argparse
import functools
import heapq
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import sweep_rows

from adamflow.sweeps.choice import Wishes, choose
from adamflow.sweeps.grid import Grid
from adamflow.sweeps.lanes import Lanes, Layout
from adamflow.sweeps.store import Store


class Costs(NamedTuple):
    """Seconds of a lane, of writing a chunk, and of the scheduler for a task; and the lanes of a chunk."""

    lane: float
    write: float
    task: float
    chunk: int


def simulate(chunks: int, workers: int, costs: Costs, writers: int = 16) -> dict[str, float]:
    """The seconds of a sweep on a cluster, and how busy its parts are.

    Args:
        chunks: how many there are.
        workers: processes that compute, one chunk at a time each.
        costs: measured.
        writers: how many chunks the file system takes at once.
    """
    scheduler, free, disks = 0.0, [0.0] * workers, [0.0] * writers
    for _ in range(chunks):
        # The scheduler hands a task to the worker that is free first, and hears of its end.
        scheduler = max(scheduler, 0.0) + costs.task
        begun = max(scheduler, heapq.heappop(free))
        computed = begun + costs.chunk * costs.lane
        written = max(computed, heapq.heappop(disks)) + costs.write
        heapq.heappush(disks, written)
        heapq.heappush(free, written)
    end = max(free)
    return {
        "hours": end / 3600,
        "scheduler": chunks * costs.task / end,
        "workers": chunks * costs.chunk * costs.lane / end / workers,
        "store": chunks * costs.write / end / writers,
    }


def measure(chunk: int) -> Costs:
    """The costs on this machine, of lanes of 1000 iterations on a quadratic."""
    beta, gamma = sweep_rows.decays(4 * chunk)
    lanes = Lanes(functools.partial(sweep_rows.adam_on_quadratic, 1000), Grid({"beta": beta, "gamma": gamma}))
    plan = choose(lanes, Wishes(method="vmap", chunk=chunk)).plan
    layout = Layout(lanes.grid, plan.chunk, plan.fixed)
    computed, seconds = [], []
    for number in range(layout.count - 1):
        started = time.perf_counter()
        computed.append(lanes.compute(plan, layout.lanes_of(number)))
        seconds.append(time.perf_counter() - started)
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "runs.zarr", plan, layout, {}, {})
        started = time.perf_counter()
        for number, found in enumerate(computed):
            store.write(number, found)
        write = (time.perf_counter() - started) / len(computed)
    return Costs(float(np.median(seconds)) / chunk, write, seconds_of_task(), chunk)


def seconds_of_task(count: int = 1000) -> float:
    """The scheduler's time for a task that does nothing."""
    import distributed

    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        client.submit(abs, -1, pure=False).result()
        started = time.perf_counter()
        futures = [client.submit(abs, number, pure=False) for number in range(count)]
        distributed.wait(futures)
        return (time.perf_counter() - started) / count


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chunk", type=int, default=4096, help="lanes of a chunk")
    costs = measure(parser.parse_args().chunk)
    print(
        f"measured: {1e6 * costs.lane:.3g} us a lane, {1e3 * costs.write:.3g} ms to write a chunk of {costs.chunk}, "
        f"{1e3 * costs.task:.3g} ms of the scheduler for a task"
    )
    for lanes in (10**6, 10**9):
        for workers in (16, 256, 4096):
            found = simulate(-(-lanes // costs.chunk), workers, costs)
            bound = max(("scheduler", "workers", "store"), key=lambda name: found[name])
            shares = ", ".join(f"{name} {found[name]:.0%}" for name in ("scheduler", "workers", "store"))
            print(f"{lanes:.0e} lanes, {workers:4} workers: {found['hours']:.3g} h, busy: {shares}; bound by {bound}")


if __name__ == "__main__":
    main()
