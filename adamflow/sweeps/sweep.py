"""One function for every sweep: in memory or into a store, on this machine or on a cluster."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from adamflow.checks import check_count, check_flag
from adamflow.runs.interruption import Interruption
from adamflow.sweeps.accessor import remember
from adamflow.sweeps.choice import Wishes, check_wishes, choose, workers
from adamflow.sweeps.dataset import attributes_of, dataset_of, messages_of
from adamflow.sweeps.grid import Grid, check_signature
from adamflow.sweeps.lanes import Chunk, Lanes, Layout
from adamflow.sweeps.settings import settings_digest, settings_of
from adamflow.sweeps.work import (
    InMemory,
    compute_here,
    count_of_lanes,
    lane_bar,
    quiet_runs,
    tell_failures,
)


def sweep(
    run: Callable[..., Any],
    grid: Mapping[str, Any],
    *,
    store: str | os.PathLike | None = None,
    progress: bool = True,
    method: str = "auto",
    chunk: int | str = "auto",
    memory: int | float | str | None = None,
    difficulty: Callable[..., Any] | None = None,
    client: Any = None,
    retries: int = 2,
) -> xr.Dataset:
    """Run a function at every point of a grid, and return all results with names, coordinates and outcomes.

    For a first sweep give `run` and `grid` alone. Give a `store` for a sweep of more than some minutes: it can then be
    stopped in any way, and the same call goes on where it stopped.

    Args:
        run: a function of one point, called by keyword as in `run(beta=0.9, gamma=0.5)`. It returns a mapping from
            names to numbers or arrays, each alone, or as (dims, array), or as (dims, array, attributes), where units
            and words belong; and the `outcome` of a run under any name. Floats are `np.float64`, or tracers if lanes
            are vectorized.
        grid: names and their values, numbers or strings. The lanes are all combinations; values that belong together
            are made by `af.zip_axes`, and their key is the name of the dimension.
        store: a folder for a zarr store (extra `sweeps`). Each chunk is written there when it is finished, with a
            checksum. If the folder exists, only what is missing or damaged is computed; if it is of other settings, it
            is refused.
        progress: whether to show a bar, with lanes per second and the time left.
        method: "vmap", chunks of lanes as one program; "threads", one lane after the other in each of as many threads
            as there are cores; or "auto", which is "threads" if jax cannot trace the function, and otherwise the faster
            one by a trial.
        chunk: how many lanes are computed, and stored, together. By default as many as fit `memory`, as the compiler
            measures it.
        memory: bytes, or such as "2 GB", that all chunks at work may take; by default half of what is free.
        difficulty: a function of arrays, by the names of the grid, to numbers that grow with the expected time of a
            lane: those of equal difficulty are computed together, the most difficult ones first.
        client: a `dask.distributed.Client` (extra `cluster`), on whose workers chunks are computed. They write into
            the store, which all of them must see under its path.
        retries: how often a lane is tried again whose process dies, with `client`.

    Returns:
        the dataset. It has the dimensions and coordinates of the grid; the results; `outcome`, an entry of
        `af.sweeps.LANE_OUTCOMES` for each lane as its place there (`data.adamflow.outcome` has the words); and in its
        attributes the versions, commit, device and method. What is large and in a store is read when it is used.
        `data.adamflow.rerun(beta=…, gamma=…)` runs one lane again. Ctrl-C ends a sweep with what is done.

    Raises:
        ValueError: if an argument is out of its range, the function does not take the grid's names, or lanes return
            results of different names or shapes.
        TypeError: with a store, if the function closes over something whose value cannot be told.
        SweepStoreError: if the store is of other settings, in use, or cannot be read or written.
        Exception: what `run` raises, if it does so at the first, the middle and the last lane.

    Warns:
        SweepWarning: if lanes raised or crashed, the sweep was ended, or chunks of the store were damaged.

    Example:
        >>> import adamflow as af
        >>> problem = af.problems.quadratic([1.0, 0.1])
        >>> def run(beta, gamma):
        ...     optimizer = af.adam(0.01, beta=beta, gamma=gamma)
        ...     end = af.iterate(optimizer, problem.loss, problem.params, 200, save_at=[200])
        ...     return {"loss": ((), problem.loss(end.params[0]), {"long_name": "loss at the end"}), "run": end.outcome}
        >>> runs = af.sweep(run, {"beta": [0.9, 0.99, 0.999], "gamma": [0.5, 0.9]}, progress=False)
        >>> runs.loss.dims, bool((runs.outcome == 0).all())
        (('beta', 'gamma'), True)
    """
    points = Grid(grid)
    check_signature(run, points)
    check_flag("progress", progress)
    check_count("retries", retries, low=0)
    wishes = check_wishes(method, chunk, memory, difficulty, store is not None, points.lanes)
    if client is not None and store is None:
        raise ValueError("client= needs store=, since workers write their results there; give a folder that all see")
    lanes = Lanes(run, points)
    with quiet_runs():
        if store is None:
            data, errors, stopped = _in_memory(lanes, wishes, progress)
        elif client is None:
            from adamflow.sweeps.stored import sweep_into

            data, errors, stopped = sweep_into(store, lanes, wishes, progress)
        else:
            from adamflow.sweeps.cluster import sweep_on

            data, errors, stopped = sweep_on(client, store, lanes, wishes, progress, retries)
    remember(data, run)
    tell_failures(np.asarray(data["outcome"]), errors, points, stopped)
    return data


def _in_memory(lanes: Lanes, wishes: Wishes, progress: bool) -> tuple[xr.Dataset, dict[int, str], str]:
    """A sweep whose results are kept in this process; what lanes said that raised; and why it ended."""
    with Interruption() as interruption, lane_bar(lanes.grid.lanes, 0, progress) as bar:
        trial = choose(lanes, wishes)
        plan = trial.plan
        layout = Layout(lanes.grid, plan.chunk, plan.fixed, wishes.difficulty)
        results = InMemory(lanes.grid, plan.schema)

        def add(number: int, chunk: Chunk) -> None:
            results.add(number, chunk)
            bar.update(count_of_lanes(chunk))

        def compute(number: int) -> Chunk:
            return lanes.compute(plan, layout.lanes_of(number), trial.known, interruption.asked)

        for number in sorted(trial.chunks):
            add(number, trial.chunks[number])
        rest = (number for number in range(layout.count) if number not in trial.chunks)
        compute_here(rest, compute, add, workers(), interruption.asked)
    attributes = attributes_of(lanes.run, plan, digest_of(lanes, wishes)) | messages_of(results.errors, lanes.grid)
    return dataset_of(lanes.grid, plan.schema, results.arrays, attributes), results.errors, "ended by Ctrl-C"


def digest_of(lanes: Lanes, wishes: Wishes) -> str:
    """The digest of the settings of a sweep, or of what is known of them."""
    try:
        return settings_digest(settings_of(lanes.run, lanes.grid, wishes.difficulty))
    except TypeError:
        return f"not known, {id(lanes.run)}"
