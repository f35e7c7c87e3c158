"""Runs that are saved, read back, continued and forked; and what a killed run leaves."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr

import adamflow as af

SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 3e-2, 5, 30)
OPTIMIZER = af.with_clipping(af.adamw(SCHEDULE, epsilon=1e-8, weight_decay={"w": 0.1, "b": 0.0}), 1.0)
PARAMS = {"w": [jnp.array([[1.0, -2.0], [0.5, 3.0]])], "b": (jnp.array([0.1]), None)}


def loss(params: Any, noise: Any = 0.0) -> jax.Array:
    weights = params["w"][0]
    return jnp.sum(jnp.cos(weights + noise)) + jnp.sum((weights @ weights) ** 2) / 50 + (params["b"][0] ** 4).sum()


def noise(n: jax.Array) -> jax.Array:
    return jnp.sin(n.astype(float))


def observe(snapshot: Any) -> Any:
    return {"loss": snapshot.loss, "norm": jnp.sum(snapshot.params["w"][0] ** 2), "n": jnp.asarray(snapshot.iteration)}


def assert_same_bits(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def run(steps: int, params: Any = PARAMS, optimizer: Any = OPTIMIZER, **options: Any) -> Any:
    return af.iterate(optimizer, loss, params, steps, batches=noise, **options)


def test_identity_a_continued_run_has_the_bits_of_one_that_was_not_interrupted(tmp_path: Path):
    whole = run(30)
    run(12).save(tmp_path / "run.nc")
    params, start = af.load(tmp_path / "run.nc").restart
    rest = run(30, params, start=start)
    assert start[0] == 12
    np.testing.assert_array_equal(rest.iterations, np.arange(12, 31))
    assert_same_bits(rest.final_state, whole.final_state)
    assert_same_bits(rest.params, jax.tree.map(lambda leaf: leaf[12:], whole.params))
    assert rest.stats.gradient_evaluations == 18


def test_identity_a_saved_run_is_read_back_bit_for_bit(tmp_path: Path):
    for options in ({}, {"observe": observe, "save_at": [0, 4, 9, 12]}):
        saved = run(12, **options)
        saved.save(tmp_path / "run.nc")
        assert af.load(tmp_path / "run.nc") == saved
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), PARAMS)
    saved = run(6, single)
    saved.save(tmp_path / "run.nc")
    assert_same_bits(af.load(tmp_path / "run.nc").final_state, saved.final_state)


def test_formula_of_the_file_without_this_package(tmp_path: Path):
    saved = run(12)
    saved.save(tmp_path / "run.nc")
    with xr.open_dataset(tmp_path / "run.nc", engine="scipy") as data:
        np.testing.assert_array_equal(data["params.w.0"], saved.params["w"][0])
        np.testing.assert_array_equal(data["final_state.1.filters.0.second_moment.b.0"].size, 1)
        assert data.attrs["outcome"] == "completed"
        assert data.attrs["adamflow_format"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run.nc"]


def test_identity_a_fork_is_the_run_of_its_optimizer_from_there(tmp_path: Path):
    run(10).save(tmp_path / "run.nc")
    params, start = af.load(tmp_path / "run.nc").restart
    fork = dataclasses.replace(OPTIMIZER, learning_rate=1e-3, stages=(af.AdamStage(beta=0.9, gamma=0.5),))
    forked = run(20, params, fork, start=start)
    state = params, start[1]
    for n in range(10, 20):
        gradient = jax.grad(loss)(state[0], np.sin(n))
        direction, memory = fork.update(gradient, state[1], n, state[0])
        state = fork.apply(state[0], direction), memory
    for a, b in zip(jax.tree.leaves(forked.final_state), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_identity_a_flow_starts_where_a_saved_run_ends(tmp_path: Path):
    problem, optimizer = af.problems.chain(3), af.adam(1e-3)
    af.iterate(optimizer, problem.loss, problem.params, 10).save(tmp_path / "run.nc")
    params, start = af.load(tmp_path / "run.nc").restart
    flow = af.solve(af.GouldTanakaFlow(optimizer), problem.loss, params, 20, start=start)
    flow.save(tmp_path / "flow.nc")
    assert af.load(tmp_path / "flow.nc") == flow
    with pytest.raises(ValueError, match="is the run of a flow, whose state is none of an optimizer"):
        _ = flow.restart


class Model(eqx.Module):
    """Parameters of a class of the user's own."""

    weight: jax.Array


def test_identity_parameters_of_own_classes_are_read_back_like_others(tmp_path: Path):
    model = Model(jnp.array([1.0, 2.0]))
    saved = af.iterate(af.adam(0.1), lambda model: jnp.sum(model.weight**2), model, 5)
    saved.save(tmp_path / "run.nc")
    assert_same_bits(af.load(tmp_path / "run.nc", like=Model(jnp.zeros(2))).final_state, saved.final_state)
    with pytest.raises(ValueError, match="made of classes that a file does not hold; give like="):
        af.load(tmp_path / "run.nc")
    with pytest.raises(ValueError, match="like has 2 leaves, but the parameters of the run 1"):
        af.load(tmp_path / "run.nc", like=[jnp.zeros(()), jnp.zeros(())])


def test_identity_a_streamed_run_is_the_run(tmp_path: Path, capsys, monkeypatch):
    # As on a terminal, where bars are shown at once.
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    options: dict[str, Any] = dict(observe=observe, save_at=[0, 3, 6, 9, 14, 24])
    whole, streamed = run(24, **options), run(24, **options, stream=tmp_path / "run", stream_every=2, progress=True)
    assert "24/24" in capsys.readouterr().err
    loaded = af.load(tmp_path / "run")
    for other in (streamed, loaded):
        assert_same_bits(
            (other.iterations, other.observed, other.final_state),
            (
                whole.iterations,
                whole.observed,
                whole.final_state,
            ),
        )
        assert other.outcome == whole.outcome
        assert other.restart[1][0] == 24
    assert [path.name for path in sorted((tmp_path / "run").iterdir())] == [
        "run-000000000000-000000000006.nc",
        "run-000000000006-000000000014.nc",
        "run-000000000014-000000000024.nc",
    ]
    # From any state in it, and on in the same folder.
    params, start = af.load(tmp_path / "run", until=6).restart
    assert_same_bits(run(24, params, start=start, save_at=[24]).final_state, whole.final_state)
    params, start = loaded.restart
    run(30, params, start=start, observe=observe, save_at=[25, 30], stream=tmp_path / "run")
    np.testing.assert_array_equal(af.load(tmp_path / "run").iterations, [0, 3, 6, 9, 14, 24, 25, 30])
    with pytest.raises(ValueError, match="holds a run up to iteration 30, but this one starts at 0"):
        run(24, **options, stream=tmp_path / "run")
    with pytest.raises(ValueError, match=r"until must be an iteration at which a file of .* ends, \[6, 14, 24, 30\]"):
        af.load(tmp_path / "run", until=7)


KILLED = """
import sys, time
import jax
jax.config.update("jax_enable_x64", True)
sys.path[:0] = sys.argv[2:]
import test_storage, adamflow as af

def observe(snapshot):
    jax.debug.callback(lambda: time.sleep(0.2))
    return test_storage.observe(snapshot)

test_storage.run(400, observe=observe, stream=sys.argv[1], stream_every=1)
"""


def test_identity_a_run_that_was_killed_keeps_what_it_has_and_goes_on(tmp_path: Path):
    folder = tmp_path / "run"
    places = [str(Path(__file__).parent), str(Path(af.__file__).parents[1])]
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder), *places])
    deadline = time.monotonic() + 300
    while len([*folder.glob("run-*.nc")]) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    left = af.load(folder)
    assert left.outcome.name == "interrupted"
    count = len(left)
    assert 3 <= count < 400
    params, start = left.restart
    assert start[0] == count
    whole = run(count + 2, observe=observe)
    assert_same_bits(left.observed, jax.tree.map(lambda leaf: leaf[:count], whole.observed))
    assert_same_bits(run(count + 2, params, start=start, save_at=[count + 2]).final_state, whole.final_state)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: None, "there is no run at"),
        (lambda path: path.write_bytes(b"nothing"), "is no file of a run, or a damaged one"),
        (lambda path: xr.Dataset({"a": 1.0}).to_netcdf(path, engine="scipy"), "no file that Trajectory.save wrote"),
        (
            lambda path: xr.Dataset(attrs={"adamflow_format": 99}).to_netcdf(path, engine="scipy"),
            "has the format 99, and this version of adamflow reads up to 1",
        ),
        (lambda path: path.mkdir(), "holds no file of a run"),
    ],
)
def test_failure_of_what_is_no_run(tmp_path: Path, write: Any, words: str):
    write(tmp_path / "run.nc")
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        af.load(tmp_path / "run.nc")


def test_failure_of_a_start_or_a_run_that_cannot_go_on(tmp_path: Path, unchecked: None):
    saved = run(3)
    with pytest.raises(TypeError, match=r"start must be None or \(n₀, memory\), as in params, start = run.restart"):
        run(5, start=3)
    with pytest.raises(ValueError, match="the memory of start must be that of 'lion'"):
        run(5, saved.restart[0], af.lion(0.1), start=saved.restart[1])
    with pytest.raises(ValueError, match="steps must be a whole number of at least 4"):
        run(3, saved.restart[0], start=saved.restart[1])
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        saved.save(tmp_path / "none" / "run.nc")
    with pytest.raises(ValueError, match="save takes a single run, got a batch of shape"):
        jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], saved).save(tmp_path / "run.nc")
    diverged = run(20, optimizer=af.sgd(10.0), on_failure="ignore")
    with pytest.raises(ValueError, match="cannot go on from where it ended: "):
        _ = diverged.restart
