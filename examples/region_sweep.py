"""The region of bounded updates on a transformer: begun on one machine, stopped, finished by a cluster.

A small character transformer is trained by Adam, ε = 0, once for each pair of decays (β, γ) and each seed, and the
largest update of each run is kept, max over n of ‖uₙ‖∞. Where γ² < β it stays bounded; beyond, it grows.

    python examples/region_sweep.py --size 64 --seeds 3 --steps 550               # stop it whenever you like
    python examples/region_sweep.py --size 64 --seeds 3 --steps 550 --workers 2   # a local cluster finishes it

Without flags it is a map of 4 × 4 runs, which takes seconds.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import xarray as xr

import adamflow as af

jax.config.update("jax_enable_x64", True)


def largest(snapshot: af.Snapshot) -> jax.Array:
    """The largest entry of an update in units of the learning rate."""
    return optax.tree.norm(snapshot.direction, ord="inf")


def make_run(seeds: int, steps: int) -> Callable[..., dict[str, Any]]:
    """The function of one point: a training run, with what is kept of it by name."""
    sizes: dict[str, Any] = {"layers": 1, "heads": 2, "width": 16, "context": 16, "batch_size": 1}
    problems = [af.problems.char_transformer(**sizes, seed=seed) for seed in range(seeds)]

    def run(beta: float, gamma: float, seed: int) -> dict[str, Any]:
        problem, optimizer = problems[seed], af.adam(1e-3, beta=beta, gamma=gamma)
        batches = problem.batches(8, seed)
        end = af.iterate(
            optimizer, problem.loss, problem.params, steps, observe=largest, batches=batches, on_failure="ignore"
        )
        return {"largest": ((), np.max(end.observed), {"long_name": "largest update"}), "run": end.outcome}

    return run


def decays(low: float, high: float, count: int) -> np.ndarray:
    """Decays equally spaced in ln x/(1−x)."""
    first, last = (np.log(x / (1 - x)) for x in (low, high))
    return 1 / (1 + np.exp(-np.linspace(first, last, count)))


def grid_of(size: int, seeds: int) -> dict[str, Any]:
    """The points: a product of decays and seeds."""
    return {"beta": decays(0.1, 0.9999, size), "gamma": decays(0.1, 0.999, size), "seed": np.arange(seeds)}


def sweep(run: Callable[..., Any], grid: dict[str, Any], store: str, workers: int) -> xr.Dataset:
    """The sweep on this machine's cores, or on so many workers of a local cluster."""
    # For a model so small, lanes in threads are faster than one program for many (`method="auto"` would try).
    options: dict[str, Any] = {"store": store, "method": "threads"}
    if workers == 0:
        return af.sweep(run, grid, **options)
    from dask.distributed import Client, LocalCluster

    # On another cluster this line is another one; workers must see the folder of the store.
    cluster = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0")
    with cluster, Client(cluster) as client:
        return af.sweep(run, grid, client=client, **options)


def main() -> None:
    """Begin the sweep, or go on with it, and draw its map."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=4, help="values of β, and of γ")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=40, help="iterations of each run")
    parser.add_argument("--store", default="region.zarr", help="the folder that keeps what is finished")
    parser.add_argument("--workers", type=int, default=0, help="of a local cluster; 0: no cluster")
    flags = parser.parse_args()
    run, grid = make_run(flags.seeds, flags.steps), grid_of(flags.size, flags.seeds)
    runs = sweep(run, grid, flags.store, flags.workers)
    inside = af.analysis.bounded_update_sign(beta=grid["beta"][:, None], gamma=grid["gamma"], kind="discrete") > 0
    update = runs.largest.max("seed").values
    print(f"largest update: {update[inside].max():.3g} where γ² < β, {update[~inside].max():.3g} elsewhere")
    figure, ax = plt.subplots()
    af.plotting.sweep_map(runs.max("seed"), "largest", ax=ax)
    figure.savefig("region.png")


if __name__ == "__main__":
    main()
