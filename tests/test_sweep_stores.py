"""Sweeps into a store: resumed, refused, damaged, killed, full, shared; at the end always the uninterrupted dataset."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

import adamflow as af
from adamflow.sweeps import SweepStoreError, SweepWarning, open_store, stored
from adamflow.sweeps.store import Store, alone

zarr = pytest.importorskip("zarr")

GRID = {"x": np.linspace(0.5, 2.0, 12), "k": [1, 2, 3]}
OPTIONS = {"method": "threads", "chunk": 4, "progress": False}


def powers(x, k):
    return {"power": ((), x**k, {"units": "1"}), "row": ("order", x ** np.arange(k, k + 3)), "n": int(k)}


def counted(calls):
    """`powers`, and a list of the points at which it was called; the list does not count as a setting."""

    class Calls:
        def __call__(self, *point):
            calls.append(point)

    note = Calls()

    def run(x, k):
        note(float(x), int(k))
        return powers(x, k)

    return run


def reference(grid=None):
    return af.sweep(powers, grid or GRID, method="threads", chunk=4, progress=False)


def same(data, expected):
    """Whether two datasets hold the same bits; attributes of the dataset apart."""
    return data.load().drop_attrs(deep=False).identical(expected.drop_attrs(deep=False))


def flip(path, place=-3):
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)


@pytest.fixture
def store(tmp_path):
    return tmp_path / "runs.zarr"


def test_identity_a_store_has_the_dataset_and_is_read_without_running(store):
    calls = []
    run = counted(calls)
    data = af.sweep(run, GRID, store=store, **OPTIONS)
    assert same(data, reference())
    assert data.power.attrs == {"units": "1"}
    assert len(calls) == 36
    again = af.sweep(run, GRID, store=store, **OPTIONS)
    assert len(calls) == 36
    assert again.identical(data)
    assert same(open_store(store), data)
    assert not list(store.parent.glob(".*"))
    assert not list(store.rglob("*.partial"))


@pytest.mark.parametrize("method", ["vmap", "auto"])
def test_identity_one_program_and_a_trial_write_the_same(store, method):
    run = lambda x, y: {"product": x * y}  # noqa: E731
    grid = {"x": np.arange(40.0), "y": np.arange(1.0, 31.0)}
    data = af.sweep(run, grid, store=store, method=method, progress=False, difficulty=lambda x, y: x * y)
    np.testing.assert_array_equal(data["product"], np.outer(grid["x"], grid["y"]))
    assert Store(store).count > 2


def test_identity_large_results_are_read_when_they_are_used(store, monkeypatch):
    monkeypatch.setattr(stored, "_READ_AT_ONCE", 100)
    hard = lambda x, k: -x  # noqa: E731
    data = af.sweep(powers, GRID, store=store, difficulty=hard, **OPTIONS)
    assert not data.row.variable._in_memory
    for place in (
        {"x": 1},
        {"x": [2, 0], "order": 1},
        {"k": slice(None, None, -1), "order": [2, 0]},
        {"x": -1, "k": 0},
    ):
        np.testing.assert_array_equal(data.row.isel(place).values, reference().row.isel(place).values)
    assert same(data, reference())
    (store / "digest" / "c" / "2" / "0").unlink()
    missing = open_store(store)
    assert (missing.adamflow.outcome == "not_run").sum() == 4
    unknown = (missing.adamflow.outcome == "not_run").values
    assert np.isnan(missing.power.values[unknown]).all()
    np.testing.assert_array_equal(missing.power.values[~unknown], reference().power.values[~unknown])
    assert missing.row.isel(x=[]).values.shape == (0, 3, 3)


def test_identity_xarray_alone_reads_a_store(store):
    import xarray as xr

    af.sweep(powers, GRID, store=store, **OPTIONS)
    plain = xr.open_zarr(store, consolidated=False, chunks=None)
    assert dict(plain.sizes) == {"chunk": 9, "slot": 4, "byte": 200, "digest_byte": 32, "order": 3}
    flat = plain.power.stack(all=("chunk", "slot")).values[np.argsort(plain.lane.values.ravel())]
    np.testing.assert_array_equal(flat, reference().power.values.ravel())


def test_identity_a_sweep_that_was_interrupted_goes_on(store):
    calls = []
    run = counted(calls)
    af.sweep(run, GRID, store=store, **OPTIONS)
    for number in (1, 5):
        (store / "digest" / "c" / str(number) / "0").unlink()
    calls.clear()
    assert same(af.sweep(run, GRID, store=store, **OPTIONS), reference())
    assert len(calls) == 8


@pytest.mark.parametrize(
    ("damage", "said", "again"),
    [
        (lambda store: flip(store / "power" / "c" / "3" / "0"), r"chunk 3 of 9; these chunks are computed again", 4),
        (lambda store: flip(store / "digest" / "c" / "3" / "0"), r"chunk 3 of 9", 4),
        (lambda store: (store / "row" / "c" / "3" / "0" / "0").write_bytes(b""), r"chunk 3 of 9", 4),
        (lambda store: os.truncate(store / "row" / "c" / "0" / "0" / "0", 20), r"chunk 0 of 9", 4),
        (lambda store: (store / "row" / "c" / "0" / "0" / "0").unlink(), r"chunk 0 of 9", 4),
        (lambda store: (store / "power" / "zarr.json").unlink(), r"power/zarr\.json; it was made anew", 0),
        (lambda store: (store / "power" / "zarr.json").write_text("{"), r"power/zarr\.json; it was made anew", 0),
        (lambda store: (store / "zarr.json").unlink(), r"damaged: zarr\.json; it was made anew", 0),
        (lambda store: (store / "zarr.json").write_text("?"), r"damaged: zarr\.json; it was made anew", 0),
        (lambda store: (store / "digest" / "zarr.json").unlink(), r"digest/zarr\.json; it was made anew", 0),
    ],
)
def test_failure_damage_is_found_and_only_that_is_computed_again(store, damage, said, again):
    calls = []
    run = counted(calls)
    af.sweep(run, GRID, store=store, **OPTIONS)
    calls.clear()
    damage(store)
    with pytest.warns(SweepWarning, match=said):
        data = af.sweep(run, GRID, store=store, **OPTIONS)
    assert len(calls) == again
    assert same(data, reference())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(af.sweep(run, GRID, store=store, **OPTIONS), reference())


def test_failure_a_damaged_store_is_still_read(store):
    af.sweep(powers, GRID, store=store, **OPTIONS)
    flip(store / "power" / "c" / "3" / "0")
    with pytest.warns(SweepWarning, match="chunk 3 of 9; af.sweep computes them again"):
        data = open_store(store)
    done = data.adamflow.successful
    assert int(done.sum()) == 32
    np.testing.assert_array_equal(data.power.values[done], reference().power.values[done])


def test_failure_without_any_metadata_a_store_is_refused(store):
    af.sweep(powers, GRID, store=store, **OPTIONS)
    (store / "zarr.json").unlink()
    (store / "digest" / "zarr.json").unlink()
    with pytest.raises(SweepStoreError, match=r"its zarr\.json and that of digest are both missing or damaged"):
        af.sweep(powers, GRID, store=store, **OPTIONS)


def test_failure_a_store_of_other_settings_is_refused_and_stays(store):
    scale = 2.0

    def run(x, k):
        return {"y": scale * x * k}

    data = af.sweep(run, GRID, store=store, **OPTIONS)
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    scale = 3.0
    with pytest.raises(SweepStoreError, match=r"sweep of other settings: run: scale was 2\.0, is 3\.0\. Name another"):
        af.sweep(run, GRID, store=store, **OPTIONS)
    scale = 2.0
    for grid, options, said in (
        ({**GRID, "k": [1, 2, 4]}, {}, r"grid\['k'\] was along k, int64 \(3,\) from 1 to 3"),
        ({**GRID, "k": [1, 2]}, {}, "grid was x: 12, k: 3, is x: 12, k: 2"),
        (GRID, {"chunk": 5}, "chunk was 4, is 5"),
        (GRID, {"method": "vmap"}, "method was threads, is vmap"),
    ):
        with pytest.raises(SweepStoreError, match=said):
            af.sweep(run, grid, store=store, **OPTIONS | options)
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before
    assert af.sweep(run, GRID, store=store, progress=False).identical(data)


def test_failure_other_versions_are_named(store):
    af.sweep(powers, GRID, store=store, **OPTIONS)
    for place in (store / "zarr.json", store / "digest" / "zarr.json"):
        content = json.loads(place.read_text())
        content["attributes"]["settings"]["version of jax"] = "0.1"
        place.write_text(json.dumps(content))
    with pytest.raises(SweepStoreError, match=r"version of jax was 0\.1, is"):
        af.sweep(powers, GRID, store=store, **OPTIONS)
    content["attributes"]["adamflow_sweep"] = 0
    (store / "zarr.json").write_text(
        (store / "zarr.json").read_text().replace('"adamflow_sweep": 1', '"adamflow_sweep": 0')
    )
    with pytest.raises(SweepStoreError, match="a store of version 0, but this adamflow reads version 1"):
        open_store(store)


@pytest.mark.parametrize(
    ("path", "message"),
    [("", "must be the path of a folder"), ("s3://bucket/runs", "a folder of a file system"), (3, "must be the path")],
)
def test_failure_a_store_that_is_no_folder_is_named(unchecked, path, message):
    with pytest.raises(ValueError, match=message):
        af.sweep(powers, GRID, store=path, **OPTIONS)


def test_failure_a_file_or_another_store_is_not_overwritten(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file; name a folder"):
        af.sweep(powers, GRID, store=tmp_path / "file", **OPTIONS)
    zarr.create_group(tmp_path / "other")
    with pytest.raises(SweepStoreError, match="a zarr store, but not of a sweep"):
        af.sweep(powers, GRID, store=tmp_path / "other", **OPTIONS)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "text").write_text("mine")
    with pytest.raises(SweepStoreError, match="is no store of a sweep"):
        af.sweep(powers, GRID, store=tmp_path / "folder", **OPTIONS)


def test_failure_a_folder_that_cannot_be_written_is_named(tmp_path):
    if os.geteuid() == 0:
        target, message = Path("/proc/runs.zarr"), "cannot be made|cannot be written"
    else:
        target, message = tmp_path / "sealed" / "runs.zarr", "cannot be written"
        target.parent.mkdir(mode=0o500)
    with pytest.raises((SweepStoreError, ValueError), match=message):
        af.sweep(powers, GRID, store=target, **OPTIONS)


def test_failure_a_store_in_use_is_refused(store):
    data = af.sweep(powers, GRID, store=store, **OPTIONS)
    with alone(store):
        with pytest.raises(SweepStoreError, match="is in use by another process"):
            af.sweep(powers, GRID, store=store, **OPTIONS)
        assert same(open_store(store), data)
    assert same(af.sweep(powers, GRID, store=store, **OPTIONS), data)


@pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning", "ignore:.*fork:DeprecationWarning")
def test_failure_a_second_process_on_a_store_does_no_harm(store):
    process = multiprocessing.get_context("fork").Process(target=_sweep_slowly, args=(store,))
    process.start()
    while not list(store.glob("digest/c/*")):
        assert process.is_alive()
        time.sleep(0.01)
    with pytest.raises(SweepStoreError, match="is in use by another process; wait until it ends, or name another"):
        _sweep_slowly(store)
    process.join()
    assert process.exitcode == 0
    data = open_store(store)
    np.testing.assert_array_equal(data.power, SLOW_POWERS)


def test_failure_lanes_that_raise_are_kept_in_the_store(store):
    def run(x):
        if x == 3:
            raise ArithmeticError("ü" * 150)
        return {"y": float(x)}

    grid = {"x": np.arange(8.0)}
    with pytest.warns(SweepWarning, match="1 of 8 lanes raised"):
        data = af.sweep(run, grid, store=store, **OPTIONS)
    with pytest.warns(SweepWarning, match="at x=3: ArithmeticError: üüü"):
        again = af.sweep(run, grid, store=store, **OPTIONS)
    assert again.identical(data)
    assert again.adamflow.outcome.values.tolist() == ["completed"] * 3 + ["raised"] + ["completed"] * 4


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 kB; without the right to mount one, the test is left out."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("cannot mount a small file system")
    yield place
    subprocess.run(["umount", place], check=True)


def noise(seed):
    return {"row": np.random.default_rng(seed).normal(size=2000)}


def test_failure_a_full_disk_is_told_and_the_store_stays(small_disk):
    grid, options = {"seed": np.arange(40)}, {"method": "threads", "chunk": 1, "progress": False}
    with pytest.raises(SweepStoreError, match=r"cannot take chunk \d+: No space left on device"):
        af.sweep(noise, grid, store=small_disk / "runs.zarr", **options)
    data = open_store(small_disk / "runs.zarr")
    done = np.flatnonzero(data.adamflow.successful)
    assert 3 <= len(done) < 40
    for seed in done:
        np.testing.assert_array_equal(data.row.values[seed], noise(seed)["row"])
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    whole = af.sweep(noise, grid, store=small_disk / "runs.zarr", **options)
    assert same(whole, af.sweep(noise, grid, **options))


def test_failure_a_file_that_may_not_grow_is_told_and_the_store_stays(store):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    full = [True]

    class Limits:
        """At one lane no file may grow beyond 4 kB any more, as on a disk that is full."""

        def __call__(self, seed):
            if full and seed == 20:
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))

    limits = Limits()

    def run(seed):
        limits(seed)
        return noise(seed)

    grid, options = {"seed": np.arange(40)}, {"method": "threads", "chunk": 1, "progress": False}
    try:
        with pytest.raises(SweepStoreError, match=r"cannot take chunk \d+: File too large\. What is finished there"):
            af.sweep(run, grid, store=store, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    done = np.flatnonzero(open_store(store).adamflow.successful)
    assert 10 <= len(done) < 40
    full.clear()
    assert same(af.sweep(run, grid, store=store, **options), af.sweep(noise, grid, **options))


SLOW_GRID = {"x": np.linspace(0.5, 2.0, 60), "k": [1, 2]}
#: One by one, as lanes compute them: NumPy's powers of whole arrays may differ in the last bit, by the processor.
SLOW_POWERS = [[x**k for k in SLOW_GRID["k"]] for x in SLOW_GRID["x"]]


def slow_powers(x, k):
    time.sleep(0.002)
    return powers(x, k)


def _sweep_slowly(store):
    return af.sweep(slow_powers, SLOW_GRID, store=store, method="threads", chunk=3, progress=False)


def kill_and_go_on(store, kills, seed):
    """Start the same sweep in processes that are killed at random moments, until one ends; the number of kills."""
    chance, context, killed = random.Random(seed), multiprocessing.get_context("fork"), 0
    while True:
        process = context.Process(target=_sweep_slowly, args=(store,))
        process.start()
        if killed < kills:
            process.join(chance.uniform(0.0, 0.12))
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
        process.join()
        if process.exitcode == 0:
            return killed
        assert process.exitcode == -signal.SIGKILL


def check_kills(store, kills, seed):
    killed = kill_and_go_on(store, kills, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = _sweep_slowly(store)
    expected = _sweep_slowly(store.parent / "whole.zarr")
    assert data.identical(expected)
    np.testing.assert_array_equal(data.power, SLOW_POWERS)
    return killed


# Children are forked while threads of jax wait, and use nothing of jax; a start of Python for each would take minutes.
@pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning", "ignore:.*fork:DeprecationWarning")
def test_identity_a_sweep_that_is_killed_goes_on_bit_by_bit(store):
    assert check_kills(store, 4, seed=0) >= 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning", "ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("seed", range(1, 4))
def test_identity_twenty_kills_change_no_bit(store, seed):
    check_kills(store, 20, seed)


def test_failure_without_zarr_the_extra_is_named(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImportError, match=r"store= needs zarr: pip install 'adamflow\[sweeps\]'"):
        af.sweep(powers, GRID, store=store, **OPTIONS)
    assert not store.exists()
