"""Rows of `bench/run.py` on `af.sweep`, and the peak of its memory: `python bench/sweep_rows.py` prints that.

The peer is the bare program: one vmapped scan over all lanes, in one call, with its results fetched. The first call of
both compiles; the columns of first calls tell it.
"""

import functools
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import adamflow as af

#: What a row holds: its name, adamflow's side, the peer's, and how often both are timed.
Fields = tuple[str, Callable[[], Any], Callable[[], Any], int]

_CURVATURES = (1.0, 0.3, 0.1, 0.03)


def adam_on_quadratic(steps: int, beta: Any, gamma: Any) -> dict[str, Any]:
    """The end of `steps` iterations of Adam, written out, on a quadratic in 4 dimensions."""
    curvatures = jnp.array(_CURVATURES)

    def step(state: Any, n: Any) -> tuple[Any, None]:
        theta, m, v = state
        gradient = curvatures * theta
        m, v = gamma * m + (1 - gamma) * gradient, beta * v + (1 - beta) * gradient**2
        update = m / (1 - gamma ** (n + 1)) / jnp.sqrt(v / (1 - beta ** (n + 1)))
        return (theta - 1e-3 * update, m, v), None

    start = (jnp.ones(4), jnp.zeros(4), jnp.zeros(4))
    return {"theta": jax.lax.scan(step, start, jnp.arange(steps, dtype=float))[0][0]}


def decays(lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """β and γ whose product has so many lanes."""
    side = round(lanes**0.5)
    return 1 - np.geomspace(0.1, 1e-4, side), 1 - np.geomspace(0.9, 0.01, lanes // side)


def row(lanes: int, steps: int, stored: bool, repeats: int = 3) -> Fields:
    """A sweep against the bare program."""
    beta, gamma = decays(lanes)
    run = functools.partial(adam_on_quadratic, steps)
    bare = jax.jit(jax.vmap(run))
    pairs = [part.ravel() for part in np.meshgrid(beta, gamma, indexing="ij")]

    def ours() -> Any:
        grid: dict[str, Any] = dict(beta=beta, gamma=gamma)
        if not stored:
            return af.sweep(run, grid, progress=False).theta.values
        with tempfile.TemporaryDirectory() as folder:
            return af.sweep(run, grid, store=Path(folder) / "runs.zarr", progress=False).theta.values

    def peer() -> Any:
        return np.asarray(bare(*pairs)["theta"])

    name = f"af.sweep, {beta.size * gamma.size} lanes, {steps} iterations{', stored' if stored else ''} / vmapped scan"
    return name, ours, peer, repeats


def flows(side: int) -> Fields:
    """The flows of the group "sweeps" through `af.sweep`, against their program."""
    problem = af.problems.chain(10)
    beta, gamma = 1 - np.geomspace(0.1, 1e-4, side), 1 - np.geomspace(0.5, 0.01, side)

    def run(beta: Any, gamma: Any) -> dict[str, Any]:
        flow = af.GouldTanakaFlow(af.adam(1e-3, beta=beta, gamma=gamma))
        end = af.solve(flow, problem.loss, problem.params, 2000, save_at=[2000], rtol=1e-3)
        return {"params": jnp.asarray(end.params)[0]}

    bare = jax.jit(jax.vmap(run))
    pairs = [part.ravel() for part in np.meshgrid(beta, gamma, indexing="ij")]
    name = f"af.sweep, flows, {side} x {side}, chain(10) / vmapped program"
    return (
        name,
        lambda: af.sweep(run, {"beta": beta, "gamma": gamma}, progress=False).params.values,
        lambda: np.asarray(bare(*pairs)["params"]),
        3,
    )


def rows() -> Iterator[Fields]:
    """All rows."""
    yield row(100_000, 1000, stored=False)
    yield row(100_000, 1000, stored=True)
    yield flows(32)


def peak_of(lanes: int) -> float:
    """The largest memory of a fresh process that sweeps so many lanes into a store, in megabytes."""
    command = [sys.executable, __file__, str(lanes)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    if len(sys.argv) > 1:
        lanes = int(sys.argv[1])
        beta, gamma = decays(lanes)
        with tempfile.TemporaryDirectory() as folder:
            run = functools.partial(adam_on_quadratic, 20)
            af.sweep(run, {"beta": beta, "gamma": gamma}, store=Path(folder) / "runs.zarr", chunk=4096, progress=False)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    small, large = (peak_of(lanes) for lanes in (10_000, 1_000_000))
    print(f"peak memory: {small:.0f} MB for 1e4 lanes, {large:.0f} MB for 1e6, ratio {large / small:.3f}")


if __name__ == "__main__":
    main()
