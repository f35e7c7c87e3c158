"""Lanes in a process of their own, so that one which takes its process with it becomes an outcome.

    python -m adamflow.sweeps.isolated DESCRIPTOR < task

reads a pickled task and writes the lanes, as each is done, to an open file.
"""

import importlib
import os
import pickle
import signal
import subprocess
import sys
from typing import Any, BinaryIO

import jax
import numpy as np

from adamflow.sweeps.lanes import Chunk, Lanes, Plan, blank
from adamflow.sweeps.results import CRASHED
from adamflow.sweeps.work import quiet_runs


def compute_apart(payload: bytes, plan: Plan, lanes: np.ndarray, retries: int) -> Chunk:
    """A chunk whose lanes are run by another process, one after the other.

    Args:
        payload: the packed function, grid, wishes and whether numbers are of 64 bits.
        plan: of the sweep.
        lanes: of the chunk.
        retries: how often a lane is tried again after its process died; then its outcome is "crashed".
    """
    chunk, deaths = blank(plan, lanes), 0
    slots = np.flatnonzero(lanes >= 0).tolist()
    while slots:
        done, end = _in_another_process(payload, plan, lanes, slots)
        for slot, (values, errors) in done:
            for name, value in values.items():
                chunk.values[name][slot] = value
            chunk.errors |= errors
        slots, deaths = slots[len(done) :], 0 if done else deaths
        if not slots:
            break
        deaths += 1
        if deaths > retries:
            slot = slots.pop(0)
            chunk.values["outcome"][slot] = CRASHED
            chunk.errors[int(lanes[slot])] = f"its process ended by {end}, {deaths} times"
            deaths = 0
    return chunk


def _in_another_process(
    payload: bytes, plan: Plan, lanes: np.ndarray, slots: list[int]
) -> tuple[list[tuple[int, Any]], str]:
    """The slots that a process did before it ended, with what came out, and how it ended."""
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "adamflow.sweeps.isolated", str(writing)]
    done = []
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[writing]) as process,
        os.fdopen(reading, "rb") as results,
    ):
        os.close(writing)
        assert process.stdin is not None
        try:
            pickle.dump((payload, plan, lanes, slots), process.stdin)
            process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            while True:
                done.append(pickle.load(results))
        except (EOFError, pickle.UnpicklingError):
            pass
    code = process.returncode
    return done, signal.Signals(-code).name if code < 0 else f"exit status {code}"


def main(descriptor: int, task: BinaryIO) -> None:
    """Run the lanes of a task."""
    payload, plan, lanes, slots = pickle.load(task)
    run, grid, _, float64 = importlib.import_module("cloudpickle").loads(payload)
    jax.config.update("jax_enable_x64", float64)
    ready = Lanes(run, grid)
    with os.fdopen(descriptor, "wb", buffering=0) as results, quiet_runs():
        for slot in slots:
            # The program of a whole chunk, so that bits are the same; the lane stands in all of its slots.
            alone = np.full(len(lanes) if plan.method == "vmap" else 1, -1)
            alone[0] = lanes[slot]
            chunk = ready.compute(plan, alone)
            values = {name: array[0] for name, array in chunk.values.items()}
            results.write(pickle.dumps((slot, (values, chunk.errors))))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.stdin.buffer)
