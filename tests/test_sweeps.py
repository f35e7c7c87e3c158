"""Sweeps in memory: the numbers of single runs, names and coordinates, outcomes, choices, bad input, Ctrl-C."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamflow as af
from adamflow.sweeps import LANE_OUTCOMES, SweepWarning, choice
from adamflow.sweeps.grid import Grid
from adamflow.sweeps.lanes import Lanes, Layout
from adamflow.sweeps.settings import difference, settings_of

PROBLEM = af.problems.quadratic([1.0, 0.1])
DECAYS = {"beta": np.array([0.9, 0.99, 0.999]), "gamma": np.array([0.1, 0.5, 0.9, 0.95])}


def adam_run(beta, gamma):
    """A run that jax can trace, with a number, an array with units, and an outcome."""
    optimizer = af.adam(0.05, beta=beta, gamma=gamma)
    run = af.iterate(optimizer, PROBLEM.loss, PROBLEM.params, 40, save_at=[20, 40], on_failure="ignore")
    losses = jnp.stack([PROBLEM.loss(row) for row in run.params])
    return {"last": losses[-1], "loss": ("iteration", losses, {"units": "1"}), "run": run.outcome}


def plain_run(beta, gamma):
    """Adam on ½θ² written out, which compiles fast."""

    def step(state, _):
        theta, m, v = state
        m, v = gamma * m + (1 - gamma) * theta, beta * v + (1 - beta) * theta**2
        return (theta - 0.1 * m / jnp.sqrt(v), m, v), None

    return {"theta": jax.lax.scan(step, (1.0 + 0 * beta, 0.0 * gamma, 0.0 * beta), length=100)[0][0]}


def sweep(run, grid, **options):
    return af.sweep(run, grid, progress=False, **options)


@pytest.mark.parametrize("method", ["vmap", "threads"])
@pytest.mark.parametrize("chunk", ["auto", 5])
def test_identity_a_sweep_has_the_numbers_of_single_runs(method, chunk):
    data = sweep(adam_run, DECAYS, method=method, chunk=chunk)
    assert data.last.dims == ("beta", "gamma")
    assert data.loss.dims == ("beta", "gamma", "iteration")
    assert data.loss.attrs == {"units": "1"}
    for beta in DECAYS["beta"]:
        for gamma in DECAYS["gamma"]:
            alone, lane = adam_run(beta, gamma), data.sel(beta=beta, gamma=gamma)
            np.testing.assert_allclose(lane.loss, alone["loss"][1], rtol=1e-12)
            np.testing.assert_allclose(lane.last, alone["last"], rtol=1e-12)
    assert (data.adamflow.outcome == "completed").all()
    assert data.attrs["method"] == method
    assert data.attrs["function"].endswith("adam_run")


def test_identity_a_sweep_is_numpys_product():
    grid = {"x": [1.0, 2.0, 4.0], "point": af.zip_axes(y=[10.0, 20.0], name=["a", "b"]), "k": range(4)}

    def run(x, y, name, k):
        return {"sum": x + y + len(name), "power": ("order", x ** np.arange(k, k + 2))}

    for method in ("auto", "threads"):
        data = sweep(run, grid, method=method)
        assert dict(data.sizes) == {"x": 3, "point": 2, "k": 4, "order": 2}
        x, y, k = np.meshgrid([1.0, 2.0, 4.0], [10.0, 20.0], range(4), indexing="ij")
        np.testing.assert_array_equal(data["sum"], x + y + 1)
        np.testing.assert_allclose(data.power, x[..., None] ** (k[..., None] + np.arange(2)), rtol=1e-13)
        assert data.name.values.tolist() == ["a", "b"]


def test_identity_whole_numbers_and_strings_are_constants_where_they_must_be():
    def run(x, k, way):
        total = x
        for _ in range(k):  # jax cannot trace this with an unknown k
            total = total * x if way == "times" else total + x
        return {"total": total}

    grid = {"k": [1, 2, 3], "way": ["times", "plus"], "x": np.linspace(0.5, 2.0, 7)}
    data = sweep(run, grid, method="vmap", chunk=4)
    k, x = np.array(grid["k"])[:, None], grid["x"]
    np.testing.assert_allclose(data.total.sel(way="times"), x ** (k + 1), rtol=1e-14)
    np.testing.assert_allclose(data.total.sel(way="plus"), x * (k + 1), rtol=1e-14)


def test_identity_order_by_difficulty_changes_no_number():
    hard = lambda beta, gamma: 1 / (1 - gamma) + beta  # noqa: E731
    plain, sorted_ = (sweep(adam_run, DECAYS, method="vmap", chunk=5, difficulty=d) for d in (None, hard))
    assert plain.drop_attrs().identical(sorted_.drop_attrs())


@pytest.mark.parametrize("fixed", [(), ("b",), ("a", "b")])
@pytest.mark.parametrize("hard", [None, lambda a, b, c: -c + 0 * a])
def test_identity_each_lane_is_in_one_chunk(fixed, hard):
    grid = Grid({"a": [3, 1, 2], "b": ["u", "v"], "c": np.arange(5.0)})
    layout = Layout(grid, 4, fixed, hard)
    chunks = [layout.lanes_of(number) for number in range(layout.count)]
    laid = np.concatenate(chunks)
    assert sorted(laid[laid >= 0]) == list(range(grid.lanes))
    for lanes in chunks:
        values = grid.values(lanes[lanes >= 0])
        assert all(len(set(values[name])) == 1 for name in fixed)
        assert hard is None or (np.diff(hard(**values)) <= 0).all()


FOUR_DEVICES = """
import sys
import jax
import numpy as np
jax.config.update("jax_enable_x64", True)
sys.path.insert(0, sys.argv[1])
import test_sweeps
data = test_sweeps.sweep(test_sweeps.plain_run, test_sweeps.DECAYS, method="vmap", chunk=3)
assert "4 in use" in data.attrs["device"]
print(*map(float.hex, data.theta.values.flat))
"""


def test_identity_on_four_devices_numbers_are_the_same():
    command = [sys.executable, "-c", FOUR_DEVICES, Path(__file__).parent]
    flags = os.environ.get("XLA_FLAGS", "")
    environment = os.environ | {"XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=4"}
    output = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout.split()
    data = sweep(plain_run, DECAYS, method="vmap", chunk=3)
    assert [float.fromhex(number) for number in output] == data.theta.values.ravel().tolist()


def test_identity_a_chunk_larger_than_the_sweep_is_the_sweep():
    for method in ("vmap", "threads"):
        data = sweep(lambda x: {"y": 2 * x}, ONE, method=method, chunk=2**63)
        assert data.attrs["chunk"] == 3
        assert data.y.values.tolist() == [2.0, 4.0, 6.0]


def test_formula_a_chunk_is_as_large_as_memory_allows():
    def run(x):
        return {"row": x * jnp.arange(1000.0)}

    # In two threads at most, chunks of rows of 8 kB, with as much again for what is computed on the way.
    data = sweep(run, {"x": np.linspace(0, 1, 600)}, memory="1 MB", method="vmap")
    assert 10 <= data.attrs["chunk"] <= 130
    np.testing.assert_allclose(data.row, np.outer(np.linspace(0, 1, 600), np.arange(1000.0)), rtol=1e-15)
    with pytest.raises(ValueError, match=r"a chunk of 1 lanes takes .* bytes .*, more than memory=.*; raise memory"):
        sweep(run, {"x": np.linspace(0, 1, 600)}, memory=1000, method="vmap")


@pytest.mark.parametrize("uneven", [True, False])
def test_identity_the_faster_method_is_chosen_by_a_trial(uneven, monkeypatch):
    monkeypatch.setattr(choice, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr(choice, "workers", lambda: 1)

    def run(x):
        # Lanes of one program wait for the slowest of their chunk; alone most would be done at once.
        turns = jnp.where(x % 64 == 0, 200_000, 1) if uneven else 1
        spend = lambda n, y: jnp.sin(y * jnp.ones(64)).sum()  # noqa: E731
        return {"y": jax.lax.fori_loop(0, turns, spend, x)}

    lanes = Lanes(jax.jit(run), Grid({"x": np.arange(4096.0) + 1}))
    plan = choice.choose(lanes, choice.Wishes(chunk=64)).plan
    assert plan.method == ("threads" if uneven else "vmap"), plan.reason
    assert "one program takes" in plan.reason


def test_failure_a_lane_that_raises_has_an_outcome_and_others_go_on():
    def run(x):
        if 2 <= x <= 3:
            raise ArithmeticError(f"no result at {float(x)}")
        return {"y": 2 * float(x), "n": int(x)}

    with pytest.warns(
        SweepWarning, match=r"2 of 6 lanes raised an error .* at x=2: ArithmeticError: no result at 2\.0"
    ):
        data = sweep(run, {"x": np.arange(6.0)})
    assert data.adamflow.outcome.values.tolist() == ["completed"] * 2 + ["raised"] * 2 + ["completed"] * 2
    np.testing.assert_array_equal(data.y, [0, 2, np.nan, np.nan, 8, 10])
    assert data.n.values.tolist() == [0, 1, 0, 0, 4, 5]
    assert data.attrs["errors"] == [f"x={x}: ArithmeticError: no result at {x}.0" for x in (2, 3)]


def test_failure_a_function_that_raises_everywhere_is_an_error():
    def run(x):
        raise KeyError("a fault of the function")

    with pytest.raises(KeyError, match="a fault of the function"):
        sweep(run, {"x": np.arange(6.0)})


def test_failure_runs_that_diverge_say_so_lane_by_lane():
    problem = af.problems.quadratic([1.0])

    def run(rate):
        run = af.iterate(af.sgd(rate), problem.loss, problem.params, 200, save_at=[200])
        return {"size": jnp.abs(run.params[0, 0]) if len(run) else jnp.nan, "run": run.outcome}

    for method in ("vmap", "threads"):
        data = sweep(run, {"rate": [0.5, 1.9, 3.0]}, method=method)
        assert data.adamflow.outcome.values.tolist() == ["completed", "completed", "diverged"]
        assert data.adamflow.successful.values.tolist() == [True, True, False]
        assert data.last_valid_iteration.values[2] < 40
        assert np.isnan(data["size"].values[2])


ONE = {"x": [1.0, 2.0, 3.0]}


@pytest.mark.parametrize(
    ("grid", "options", "message"),
    [
        ({}, {}, "grid must map names to values"),
        ({"x": []}, {}, r"grid\['x'\] is empty, so that there is nothing to run"),
        ({"x": [1.0, np.nan]}, {}, "holds NaN"),
        ({"x": [1.0, 1.0]}, {}, "holds 1 more than once"),
        ({"x": [[1.0]]}, {}, "must be a sequence of numbers or strings"),
        ({"x": [object()]}, {}, "for other objects give their names"),
        ({"x": 1.0}, {}, "must be a sequence"),
        ({"x": [1.0], "z": [2.0]}, {}, "run does not take 'z', a name of the grid; it takes x"),
        ({"y": [1.0]}, {}, "run does not take 'y'"),
        ({"x": [1.0], "p": af.zip_axes(x=[2.0])}, {}, "has 'x' twice"),
        ({"x": [1.0], "lane": [1.0]}, {}, "'lane' cannot be a name of the grid"),
        ({"a b": [1.0]}, {}, "must be names of Python"),
        (ONE, {"method": "gpu"}, "method must be one of 'auto', 'vmap', 'threads'"),
        (ONE, {"chunk": 0}, "chunk must be 'auto' or a whole number of lanes"),
        (ONE, {"memory": "much"}, "memory must be a number of bytes above 0"),
        (ONE, {"difficulty": 3}, "difficulty must be a function"),
        (ONE, {"difficulty": len}, "difficulty must take arrays by the names of the grid .* but it raised TypeError"),
        (ONE, {"method": np.array(["vmap", "auto"])}, "method must be one of 'auto', 'vmap', 'threads'"),
        (ONE, {"chunk": np.array([1, 2])}, "chunk must be 'auto' or a whole number of lanes"),
        (ONE, {"client": object()}, "client= needs store="),
    ],
)
def test_failure_bad_input_is_named(unchecked, grid, options, message):
    with pytest.raises(ValueError, match=message):
        sweep(lambda x: {"y": x}, grid, **options)


def test_failure_points_that_belong_together_have_one_length():
    with pytest.raises(ValueError, match="of one length, since they belong together, but beta has 2, gamma has 3"):
        af.zip_axes(beta=[0.9, 0.99], gamma=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="zip_axes needs at least one name"):
        af.zip_axes()


def test_failure_a_missing_name_is_named():
    with pytest.raises(ValueError, match="run takes 'y', which the grid does not have"):
        sweep(lambda x, y: {"z": x}, ONE)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda x: x, "run must return numbers or arrays by name"),
        (lambda x: {"x": x}, "run returns a result 'x', but the grid has that name"),
        (lambda x: {"y": "text"}, "run returns 'y' as 'text', a str; a sweep keeps numbers"),
        (lambda x: {"y": ("time", np.ones((2, 2)))}, r"with dims \('time',\), but its shape is \(2, 2\)"),
        (lambda x: {"y": ("x", np.ones(2))}, "along 'x', which is a dimension of the grid"),
        (lambda x: {"y": ("t", np.ones(2)), "z": ("t", np.ones(3))}, "with 3 along 't', where others have 2"),
        (lambda x: {"outcome": 1}, "return the run's own"),
        (lambda x: {"y": np.ones(int(x))}, r"with shape \(.,\) at x=., but \(1,\) at x=1; pad it"),
        (lambda x: {"y": 1} if x < 2 else {"y": 1.5}, "as float64 at x=., but as int.* at x=1; return floats"),
        (lambda x: {"y": 1.0} if x < 2 else {"z": 1.5}, "run returns 'y' at x=1, but not at x=.; all lanes"),
    ],
)
def test_failure_bad_results_are_named(run, message):
    with pytest.raises(ValueError, match=message):
        sweep(run, ONE, method="threads")


def test_failure_vmap_says_why_it_cannot():
    with pytest.raises(ValueError, match=r"(?s)needs a function that jax can trace, but .*; leave method out"):
        sweep(lambda x: {"y": float(x)}, ONE, method="vmap")


def test_identity_a_lane_is_run_again_by_its_coordinates():
    grid = {"point": af.zip_axes(beta=[0.9, 0.99], gamma=[0.3, 0.5]), "rate": [0.1, 1 / 3]}

    def run(beta, gamma, rate):
        return {"product": beta * gamma * rate}

    data = sweep(run, grid)
    for coordinates in ({"beta": 0.99, "gamma": 0.5}, {"beta": 0.99}, {"point": 1}):
        assert data.adamflow.rerun(**coordinates, rate=0.3333333333)["product"] == 0.99 * 0.5 * (1 / 3)
    assert data.sel(rate=0.1).expand_dims("rate").adamflow.rerun(point=0, rate=0.1)["product"] == 0.9 * 0.3 * 0.1
    assert data.adamflow.rerun(lambda **point: sorted(point), point=0, rate=0.1) == ["beta", "gamma", "rate"]
    with pytest.raises(ValueError, match=r"no lane at rate=0\.2; the nearest rate is 0\.1"):
        data.adamflow.rerun(point=0, rate=0.2)
    with pytest.raises(ValueError, match="name the lane's rate, too"):
        data.adamflow.rerun(point=0)
    with pytest.raises(ValueError, match="the sweep has no 'eta'"):
        data.adamflow.rerun(point=0, rate=0.1, eta=1)
    data.attrs["settings"] = "of another process"
    with pytest.raises(ValueError, match="this process does not know the function of this sweep"):
        data.adamflow.rerun(point=0, rate=0.1)


def test_failure_ctrl_c_keeps_what_is_done():
    begun = threading.Event()

    def interrupt():
        begun.wait()
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    def run(x):
        if x > 3:
            begun.set()
            time.sleep(0.05)
        return {"y": 2 * float(x)}

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt).start()
    try:
        with pytest.warns(SweepWarning, match="ended by Ctrl-C: .* of 200 lanes are not run"):
            data = sweep(run, {"x": np.arange(200.0)}, chunk=10)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    done = (data.adamflow.outcome == "completed").values
    assert 4 <= done.sum() < 200
    np.testing.assert_array_equal(data.y.values[done], 2 * data.x.values[done])
    assert np.isnan(data.y.values[~done]).all()
    assert set(data.adamflow.outcome.values) == {"completed", "not_run"}


def test_identity_a_bar_tells_lanes_and_rate(capsys):
    af.sweep(lambda x: {"y": 2 * x}, {"x": np.arange(50.0)})
    assert "50/50" in (shown := capsys.readouterr().err)
    assert "lane/s" in shown


def settings(run, grid=None, difficulty=None):
    return settings_of(run, Grid(grid or ONE), difficulty)


def test_identity_equal_functions_have_equal_settings():
    def make(scale, table):
        return lambda x: {"y": scale * x + table["a"].sum()}

    first, again = (settings(make(2.0, {"a": np.arange(3.0)})) for _ in range(2))
    assert first == again
    assert difference(first, again) is None
    assert settings(adam_run, DECAYS) == settings(adam_run, DECAYS)


GLOBAL = {"offset": 1.0}


def test_failure_settings_that_differ_are_named(monkeypatch):
    def make(scale, key=0):
        def run(x):
            return {"y": scale * x + GLOBAL["offset"] + jax.random.normal(jax.random.key(key))}

        return run

    def changed(x):
        return {"y": 3 * x}

    before = settings(make(2.0))
    assert difference(before, settings(make(3.0))) == "run: scale was 2.0, is 3.0"
    assert "run: key was 0, is 1" in difference(before, settings(make(2.0, key=1)))
    assert "grid['x'] was along x, float64 (3,) from 1.0 to 3.0" in difference(
        before, settings(make(2.0), {"x": [1.0]})
    )
    assert "difficulty is new" in difference(before, settings(make(2.0), difficulty=lambda x: x))
    assert "run has other lines: 'def run(x):' became 'def changed(x):'" in difference(before, settings(changed))
    jax.config.update("jax_enable_x64", False)
    try:
        assert "jax_enable_x64 was True, is False" in difference(before, settings(make(2.0)))
    finally:
        jax.config.update("jax_enable_x64", True)
    monkeypatch.setattr(np, "__version__", "0.1")
    assert "version of numpy was" in difference(before, settings(make(2.0)))
    monkeypatch.undo()
    monkeypatch.setitem(GLOBAL, "offset", 2.0)
    assert difference(before, settings(make(2.0))) == "run: GLOBAL['offset'] was 1.0, is 2.0"


def test_failure_settings_notice_what_a_problem_holds():
    def make(curvature):
        problem = af.problems.quadratic([curvature])
        return lambda x: {"y": problem.loss(problem.params * x)}

    text = difference(settings(make(1.0)), settings(make(2.0)))
    assert text.startswith("run: problem.loss")


def test_failure_what_cannot_be_told_is_named():
    lock = threading.Lock()
    with pytest.raises(TypeError, match="run: lock is a lock, whose value cannot be told"):
        settings(lambda x: {"y": x, "lock": lock.locked()})


def test_identity_outcomes_begin_with_those_of_runs():
    assert LANE_OUTCOMES[: len(af.OUTCOMES)] == af.OUTCOMES
