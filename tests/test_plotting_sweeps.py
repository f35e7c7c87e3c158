"""Pictures of sweeps: what is drawn is what the dataset holds, and bad input is named."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy import stats

import adamflow as af

DECAYS = 1 - np.geomspace(0.5, 1e-3, 6)


def sweep(run, grid):
    return af.sweep(run, grid, progress=False, method="threads")


@pytest.fixture(scope="module")
def runs():
    def run(rate, decay, seed):
        return {"loss": ((), rate * (1 + decay) + 0.1 * seed, {"long_name": "loss at the end", "units": "nats"})}

    return sweep(run, {"rate": np.geomspace(1e-3, 1.0, 7), "decay": DECAYS, "seed": [0, 1, 3]})


def test_formula_a_map_has_a_cell_for_each_lane(ax, runs):
    chosen = runs.sel(seed=0)
    assert af.plotting.sweep_map(chosen, "loss", level=0.1, ax=ax) is ax
    mesh = ax.collections[0]
    np.testing.assert_array_equal(mesh.get_array().reshape(6, 7).T, chosen.loss)
    np.testing.assert_allclose(mesh.get_coordinates()[0, :, 0], 1e-3 * 10 ** (0.5 * np.arange(-0.5, 7)), rtol=1e-12)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "function")
    assert [label.get_ylabel() for label in ax.figure.axes[1:]] == ["loss at the end [nats]"]
    # The boundary is where rate (1 + decay) = .1.
    line = ax.collections[1].get_paths()[0].vertices
    expected = 0.1 / (1 + line[:, 1])
    np.testing.assert_allclose(line[:, 0], expected, rtol=0.35)


def test_identity_axes_may_be_exchanged_and_failures_have_crosses(ax):
    def run(x, y):
        if x > 1 and y > 3:
            raise ArithmeticError
        return {"z": x * y}

    with pytest.warns(af.sweeps.SweepWarning):
        data = sweep(run, {"x": [0, 1, 2], "y": [3, 4]})
    af.plotting.sweep_map(data, "z", x="y", y="x", ax=ax)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("y", "x")
    assert [line.get_xydata().tolist() for line in ax.lines] == [[[4.0, 2.0]]]


def test_identity_a_refined_sweep_shows_its_boundary(ax):
    axis = np.linspace(-1, 1, 9)
    coarse = sweep(lambda x, y: {"r": float(np.hypot(x, y))}, {"x": axis, "y": axis})
    fine = af.refine(
        coarse, "r", 0.7, 300, grid={"x": np.linspace(-1, 1, 33), "y": np.linspace(-1, 1, 33)}, progress=False
    )
    af.plotting.sweep_map(fine, "r", ax=ax)
    corners = np.concatenate([path.vertices for path in ax.collections[1].get_paths()])
    assert np.abs(np.hypot(*corners.T) - 0.7).max() < 1 / 16


def test_formula_lines_are_means_with_intervals(ax, runs):
    chosen = runs.isel(decay=[0, 5])
    af.plotting.sweep_lines(chosen, "loss", x="rate", by="decay", over="seed", ax=ax)
    for line, band, rows in zip(ax.lines, ax.collections, np.moveaxis(chosen.loss.values, 1, 0), strict=True):
        np.testing.assert_allclose(line.get_ydata(), rows.mean(axis=1), rtol=1e-14)
        low, high = stats.t.interval(0.95, 2, rows.mean(axis=1), stats.sem(rows, axis=1))
        corners = band.get_paths()[0].vertices[:, 1]
        np.testing.assert_allclose([corners.min(), corners.max()], [low.min(), high.max()], rtol=1e-10)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["decay = 0.5", "decay = 0.999"]
    assert ax.get_ylabel() == "loss at the end [nats]"


def test_identity_lanes_without_a_number_are_left_out(ax):
    data = sweep(lambda x, seed: {"y": np.nan if seed == x else float(x)}, {"x": [1, 2, 3], "seed": [1, 5, 6]})
    af.plotting.sweep_lines(data, "y", x="x", over="seed", ax=ax)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda ax, runs: af.plotting.sweep_map(runs, "los", ax=ax),
            "name must be a result of the sweep, one of outcome, loss",
        ),
        (
            lambda ax, runs: af.plotting.sweep_map(runs, "loss", ax=ax),
            "got x='rate' and y='decay' where it has rate, decay, seed",
        ),
        (
            lambda ax, runs: af.plotting.sweep_map(runs.sel(seed=0) * np.nan, "loss", ax=ax),
            "'loss' holds no finite number",
        ),
        (
            lambda ax, runs: af.plotting.sweep_map(runs.isel(seed=0, decay=[0]), "loss", level=0.1, ax=ax),
            "level needs at least two",
        ),
        (
            lambda ax, runs: af.plotting.sweep_lines(runs, "loss", x="rate", ax=ax),
            "got rate where it has the dimensions rate, decay",
        ),
        (lambda ax, runs: af.plotting.sweep_map(3, "loss", ax=ax), "runs must be the dataset of a sweep, got int"),
    ],
)
def test_failure_bad_input_is_named(unchecked, runs, draw, message):
    figure, ax = plt.subplots()
    with pytest.raises(ValueError, match=message):
        draw(ax, runs)
    plt.close(figure)


def test_identity_axes_may_come_first_as_before_with_a_warning(ax, runs):
    chosen = runs.sel(seed=0, decay=DECAYS[0])
    with pytest.warns(DeprecationWarning, match=r"is now called as sweep_lines\(runs, name, \.\.\., ax=ax\)"):
        af.plotting.sweep_lines(ax, chosen, "loss", x="rate")
    new = af.plotting.sweep_lines(chosen, "loss", x="rate")
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), new.lines[0].get_xydata())
    assert new is not ax
    plt.close(new.figure)
