"""Sweeps on a real cluster of processes: the numbers of this one; dead workers, lanes and schedulers."""

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import adamflow as af
from adamflow.sweeps import SweepStoreError, SweepWarning, isolated, open_store
from adamflow.sweeps.choice import Wishes, choose
from adamflow.sweeps.cluster import _pack
from adamflow.sweeps.grid import Grid
from adamflow.sweeps.lanes import Lanes

distributed = pytest.importorskip("distributed")
pytest.importorskip("zarr")

# The loops of dask and its connections end a little after the cluster does.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

GRID = {"x": np.linspace(0.5, 2.0, 8), "k": [1, 2, 3]}


def make_powers(pause=0.0, deadly=None):
    """A function of this test that is sent to workers as it is, since they cannot import this file."""

    def powers(x, k):
        import os
        import signal
        import time

        time.sleep(pause)
        if deadly is not None and (round(float(x), 6), int(k)) == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"power": x**k, "row": ("order", x ** np.arange(k, k + 3))}

    powers.__module__ = "__main__"
    return powers


@pytest.fixture(scope="module")
def cluster():
    """A scheduler and two workers for all tests of this file, since a process takes seconds to start."""
    import dask

    options = {"distributed.scheduler.allowed-failures": 0, "distributed.comm.timeouts.connect": "20s"}
    with (
        dask.config.set(options),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
        ) as cluster,
    ):
        yield cluster


@pytest.fixture
def client(cluster):
    with distributed.Client(cluster) as client:
        # The test before may have killed one.
        client.wait_for_workers(2)
        yield client


@contextlib.contextmanager
def allowed_failures(client, count):
    """For a while a task may be on so many workers that die."""

    def allow(count, dask_scheduler):
        before, dask_scheduler.allowed_failures = dask_scheduler.allowed_failures, count
        return before

    before = client.run_on_scheduler(allow, count)
    yield
    client.run_on_scheduler(allow, before)


def reference(pause=0.0):
    return af.sweep(make_powers(), GRID, method="threads", chunk=4, progress=False)


def same(data, expected):
    return data.load().drop_attrs(deep=False).identical(expected.drop_attrs(deep=False))


@pytest.mark.slow
def test_identity_a_lane_apart_has_its_numbers_and_a_deadly_one_an_outcome():
    run, grid = make_powers(deadly=(0.5, 2)), Grid({"x": [0.5, 1.5], "k": [1, 2]})
    lanes, wishes = Lanes(run, grid), Wishes(method="threads", chunk=4)
    plan = choose(lanes, wishes).plan
    chunk = isolated.compute_apart(_pack(lanes, wishes), plan, np.array([0, 1, 2, 3]), retries=1)
    assert chunk.values["outcome"].tolist() == [0, 7, 0, 0]
    np.testing.assert_array_equal(chunk.values["power"], [0.5, np.nan, 1.5, 1.5**2])
    assert chunk.errors == {1: "its process ended by SIGKILL, 2 times"}


def test_identity_a_cluster_has_the_numbers_of_this_process_and_survives_a_deadly_lane(client, tmp_path):
    store = tmp_path / "runs.zarr"
    options = {"store": store, "client": client, "method": "threads", "chunk": 4, "progress": False}
    with pytest.warns(SweepWarning, match=r"1 of 24 lanes raised an error or crashed.*ended by SIGKILL, 1 times"):
        data = af.sweep(make_powers(deadly=(2.0, 3)), GRID, retries=0, **options)
    crashed = (data.adamflow.outcome == "crashed").values
    assert np.argwhere(crashed).tolist() == [[7, 2]]
    expected = reference()
    np.testing.assert_array_equal(data.power.values[~crashed], expected.power.values[~crashed])
    np.testing.assert_array_equal(data.row.values[~crashed], expected.row.values[~crashed])


@pytest.mark.slow
def test_identity_a_killed_worker_loses_nothing(client, tmp_path):
    def kill():
        while not list((tmp_path / "runs.zarr").glob("digest/c/*")):
            time.sleep(0.05)
        os.kill(next(iter(pids.values())), signal.SIGKILL)

    pids, killer = client.run(os.getpid), threading.Thread(target=kill)
    with allowed_failures(client, 3):
        killer.start()
        run = make_powers(pause=0.2)
        data = af.sweep(
            run, GRID, store=tmp_path / "runs.zarr", client=client, method="threads", chunk=2, progress=False
        )
        killer.join()
    assert same(data, reference())


def test_identity_what_is_begun_here_is_finished_by_a_cluster(client, tmp_path):
    run, store = make_powers(pause=0.05), tmp_path / "runs.zarr"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.6, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        with pytest.warns(SweepWarning, match="ended by Ctrl-C; the same call goes on"):
            af.sweep(run, GRID, store=store, method="threads", chunk=2, progress=False)
    finally:
        signal.signal(signal.SIGINT, before)
    data = af.sweep(run, GRID, store=store, client=client, progress=False)
    assert same(data, reference())


EXAMPLE = Path(__file__).parents[1] / "examples" / "region_sweep.py"


@pytest.mark.slow
def test_identity_the_region_of_the_tutorial_is_begun_killed_and_finished_by_a_cluster(tmp_path):
    settings = {"size": 5, "seeds": 2, "steps": 300}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    command = [sys.executable, EXAMPLE, *flags, "--store=region.zarr"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("region.zarr/digest/c/*/0")):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    begun = open_store(tmp_path / "region.zarr")
    assert 0 < int((begun.adamflow.outcome != "not_run").sum()) < 50
    output = subprocess.run([*command, "--workers=2"], cwd=tmp_path, check=True, capture_output=True, text=True)
    inside, outside = (float(part.split()[0]) for part in output.stdout.replace(":", ",").split(",")[1:])
    assert inside < outside
    example = runpy.run_path(str(EXAMPLE))
    run, grid = example["make_run"](2, 300), example["grid_of"](5, 2)
    assert same(open_store(tmp_path / "region.zarr"), af.sweep(run, grid, method="threads", progress=False))


SCHEDULER = """
import sys
from distributed import LocalCluster
if __name__ == "__main__":
    cluster = LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None)
    print(cluster.scheduler_address, flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_failure_a_scheduler_that_dies_is_told_with_what_is_stored(tmp_path):
    script = tmp_path / "scheduler.py"
    script.write_text(SCHEDULER)
    store = tmp_path / "runs.zarr"
    process = subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )

    def kill():
        while len(list(store.glob("digest/c/*/0"))) < 2:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)

    with distributed.Client(process.stdout.readline().strip()) as client:
        client.wait_for_workers(1)
        threading.Thread(target=kill).start()
        with pytest.raises(SweepStoreError, match=r"the scheduler of client= is gone.* of 12 chunks are in"):
            af.sweep(make_powers(0.3), GRID, store=store, client=client, method="threads", chunk=2, progress=False)
    process.stdin.close()
    process.stdout.close()
    process.wait()
    assert 4 <= int(open_store(store).adamflow.successful.sum()) < 24
    assert same(af.sweep(make_powers(0.3), GRID, store=store, progress=False), reference())


def test_failure_a_client_that_is_none_is_named(unchecked, tmp_path):
    with pytest.raises(ValueError, match=r"client must be a dask.distributed.Client, got object"):
        af.sweep(make_powers(), GRID, store=tmp_path / "runs.zarr", client=object(), progress=False)
