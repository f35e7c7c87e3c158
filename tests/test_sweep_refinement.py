"""Refined sweeps: the boundary of the full grid, at a part of its lanes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamflow as af
from adamflow.sweeps import SweepWarning, open_store

AXIS = np.linspace(-1.0, 1.0, 129)


def waves(x, y):
    return {"height": jnp.hypot(x, y) + 0.1 * jnp.sin(9 * jnp.arctan2(y, x)), "twice": 2 * x}


def coarse(step=8, run=waves, **options):
    return af.sweep(run, {"x": AXIS[::step], "y": AXIS[::step]}, method="vmap", progress=False, **options)


@pytest.mark.parametrize("level", [0.4, 0.7])
def test_identity_the_boundary_is_that_of_all_lanes(level):
    fine = af.refine(coarse(), "height", level, budget=4000, grid={"x": AXIS, "y": AXIS}, progress=False)
    x, y = np.meshgrid(AXIS, AXIS, indexing="ij")
    expected = np.hypot(x, y) + 0.1 * np.sin(9 * np.arctan2(y, x))
    np.testing.assert_array_equal(fine.above, expected > level)
    ran = (fine.adamflow.outcome == "completed").values
    assert ran.sum() == fine.attrs["lanes_run"] < 129**2 / 6
    np.testing.assert_allclose(fine.height.values[ran], expected[ran], rtol=1e-12)
    np.testing.assert_allclose(fine.twice.values[ran], 2 * x[ran], rtol=1e-12)
    assert np.isnan(fine.height.values[~ran]).all()
    assert fine.adamflow.rerun(x=0.5, y=0)["twice"] == 1.0


@pytest.mark.parametrize(
    ("axis", "scale"),
    [
        (np.linspace(2.0, 5.0, 7), lambda x: x),
        (np.geomspace(1e-3, 10.0, 5), np.log),
        (1 - np.geomspace(0.5, 1e-3, 6), lambda x: np.log(1 - x)),
        (1 / (1 + np.geomspace(9, 1e-3, 5)), lambda x: np.log(x / (1 - x))),
    ],
)
def test_formula_a_crossing_is_found_by_halving_in_the_scale_of_the_axis(axis, scale):
    crossing = axis[1] + 0.3 * (axis[2] - axis[1])
    runs = af.sweep(lambda x: {"y": x}, {"x": axis}, method="vmap", progress=False)
    fine = af.refine(runs, "y", crossing, budget=36, progress=False)
    np.testing.assert_array_equal(fine.above, fine.x > crossing)
    assert fine.sizes["x"] == (len(axis) - 1) * 2**12 + 1
    assert fine.attrs["lanes_run"] - len(axis) == 12
    np.testing.assert_array_equal(fine.x[:: 2**12], axis)
    steps = np.diff(scale(fine.x.values))
    assert np.ptp(steps) < 1e-6 * np.abs(steps).mean()


def test_identity_other_axes_are_refined_one_by_one():
    def run(x, y, seed, way):
        return {"height": (x + y * seed) * (1 if way == "plus" else -1)}

    grid = {"way": ["plus", "minus"], "x": AXIS[::16], "seed": [1, 2, 3], "y": AXIS[::16]}
    runs = af.sweep(run, grid, progress=False)
    fine = af.refine(runs, lambda lanes: lanes.height, 0.1, 50_000, grid={"x": AXIS, "y": AXIS}, progress=False)
    x, y, seed = AXIS[:, None, None], AXIS, np.array([1, 2, 3])[:, None]
    np.testing.assert_array_equal(fine.above, np.stack([x + y * seed > 0.1, -x - y * seed > 0.1]))
    assert fine.attrs["lanes_run"] < fine.above.size / 5


def test_identity_lanes_that_diverge_are_above():
    problem = af.problems.quadratic([1.0])

    def run(rate):
        run = af.iterate(af.sgd(rate), problem.loss, problem.params, 300, save_at=[300])
        return {"size": jnp.abs(run.params[0, 0]), "run": run.outcome}

    runs = af.sweep(run, {"rate": np.linspace(0.5, 3.4, 5)}, method="vmap", progress=False)
    fine = af.refine(runs, "size", 1.0, 30, progress=False)
    edge = fine.rate.values[np.flatnonzero(fine.above)[0]]
    assert abs(edge - 2) < 2e-3
    by_outcome = af.refine(runs, lambda lanes: lanes.outcome > 0, 0.5, 30, progress=False)
    assert by_outcome.rate.values[np.flatnonzero(by_outcome.above)[0]] >= edge


def test_failure_a_budget_that_is_used_up_is_told():
    with pytest.warns(SweepWarning, match="the budget of 300 lanes was used up before"):
        fine = af.refine(coarse(), "height", 0.7, budget=300, grid={"x": AXIS, "y": AXIS}, progress=False)
    x, y = np.meshgrid(AXIS, AXIS, indexing="ij")
    expected = np.hypot(x, y) + 0.1 * np.sin(9 * np.arctan2(y, x)) > 0.7
    assert np.mean(fine.above.values == expected) > 0.9
    assert fine.attrs["lanes_run"] <= 300 + 17**2


@pytest.mark.parametrize(
    ("field", "level", "options", "message"),
    [
        ("depth", 0.5, {}, "the sweep has no result 'depth'; it has outcome, height, twice"),
        ("height", 9.0, {}, "every lane of the sweep is at or below 9, so that there is no boundary"),
        ("height", -9.0, {}, "every lane of the sweep is above -9"),
        (lambda lanes: lanes.height.max("x"), 0.5, {}, "must be one number for each lane"),
        ("height", 0.5, {"grid": {"z": AXIS}}, "grid has 'z', which is no axis of floats of the sweep"),
        ("height", 0.5, {"grid": {"x": AXIS[1:]}}, "must hold all 17 values of the sweep"),
        ("height", 0.5, {"grid": {"x": AXIS[::-1]}}, "must rise"),
        ("height", "high", {}, "level must be a real number"),
        ("height", 0.5, {"budget": 0}, "budget must be a whole number of at least 1"),
    ],
)
def test_failure_bad_input_is_named(unchecked, field, level, options, message):
    with pytest.raises(ValueError, match=message):
        af.refine(coarse(), field, level, **{"budget": 100, "progress": False} | options)


def test_failure_a_sweep_of_another_process_needs_its_function(tmp_path):
    pytest.importorskip("zarr")
    coarse(store=tmp_path / "runs.zarr", chunk=300)
    runs = open_store(tmp_path / "runs.zarr")
    runs.attrs["settings"] = "of another process"
    with pytest.raises(ValueError, match="this process does not know the function"):
        af.refine(runs, "height", 0.7, 100)
    fine = af.refine(runs, "height", 0.7, 2000, run=waves, progress=False)
    assert fine.above.size > 17**2


def network_loss(rate, gamma):
    """The loss of a network of 2 units on 8 points, trained by momentum; NaN if it diverges."""
    inputs, targets = jnp.linspace(-1, 1, 8), jnp.sin(3 * jnp.linspace(-1, 1, 8))
    start = jnp.array([1.0, -0.5, 0.3, 0.2, 0.7, -0.6])

    def loss(w):
        hidden = jnp.tanh(w[0:2, None] * inputs + w[2:4, None])
        return jnp.mean((w[4:6] @ hidden - targets) ** 2)

    def step(state, _):
        w, m = state
        m = gamma * m + (1 - gamma) * jax.grad(loss)(w)
        return (w - rate * m, m), None

    return {"loss": loss(jax.lax.scan(step, (start, 0 * start), length=60)[0][0])}


def check_boundary_of_network(size, level, share):
    """The boundary of size × size lanes at a share of them, the same to a cell."""
    grid = {"rate": np.geomspace(0.5, 60.0, size), "gamma": np.linspace(0.0, 0.95, size)}
    full = af.sweep(network_loss, grid, method="vmap", progress=False)
    some = np.append(np.arange(0, size - 1, 8), size - 1)
    runs = af.sweep(network_loss, {name: axis[some] for name, axis in grid.items()}, method="vmap", progress=False)
    fine = af.refine(runs, "loss", level, int(size**2 * share) - runs.loss.size, grid=grid, progress=False)
    expected = ~(full.loss.values <= level)
    assert fine.attrs["lanes_run"] <= size**2 * share
    wrong = fine.above.values != expected
    # Each point that differs, of islands that the coarse sweep does not show, is on the boundary of the full map.
    near = np.zeros_like(wrong)
    for axis in (0, 1):
        for shift in (-1, 1):
            near |= np.roll(expected, shift, axis) != expected
    assert not np.any(wrong & ~near)
    assert wrong.mean() < 0.01


def test_identity_the_boundary_of_a_trained_network_takes_a_part_of_its_lanes():
    check_boundary_of_network(128, 0.05, 1 / 8)


@pytest.mark.slow
@pytest.mark.parametrize("level", [0.05, 1.0])
def test_identity_the_boundary_of_a_trained_network_takes_a_tenth_of_its_lanes(level):
    check_boundary_of_network(256, level, 1 / 10)
