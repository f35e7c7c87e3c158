"""Pictures of k-Adam and of generalization show the numbers that they get."""

import numpy as np
import pytest

from adamflow.plotting import generalization, kadam

N = np.arange(5.0)
TABLE = np.outer([1.0, 3.0], 1 + N)


def test_identity_paths_are_circles_and_lines(ax):
    kadam.paths(ax, N, TABLE.T, 2 * TABLE.T)
    circles, line = ax.lines[2:4]
    np.testing.assert_array_equal(circles.get_ydata(), TABLE[1])
    np.testing.assert_array_equal(line.get_ydata(), 2 * TABLE[1])
    assert circles.get_color() == pytest.approx(line.get_color())


def test_identity_updates_have_their_bounds_in_the_same_colour(ax):
    kadam.updates_and_bounds(ax, N, TABLE, 2 * TABLE, ["k = 1", "k = 2"])
    run, bound = ax.lines[2:4]
    np.testing.assert_array_equal(run.get_ydata(), TABLE[1])
    np.testing.assert_array_equal(bound.get_ydata(), 2 * TABLE[1])
    assert run.get_color() == bound.get_color()
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["k = 1", "k = 2", "bound of the last stage"]


def test_identity_numbers_by_stages_with_intervals_and_references(ax):
    stages, rows = np.array([2, 3, 10, 11, 12]), {"naive": TABLE[0], "uniform": TABLE[1]}
    intervals = {name: np.stack([row - 1, row + 1]) for name, row in rows.items()}
    kadam.by_stages(ax, stages, rows, intervals, {"Adam": 2.0})
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_array_equal(lines["uniform"].get_ydata(), TABLE[1])
    assert set(lines["Adam"].get_ydata()) == {2.0}
    ends = np.array([segment[:, 1] for segment in ax.collections[1].get_segments()])
    np.testing.assert_array_equal(ends, intervals["uniform"].T)
    assert ax.get_xticks().tolist() == stages.tolist()


def test_identity_curve_is_the_mean_over_seeds_in_the_order_of_x(ax):
    table = np.array([[3.0, 5.0], [1.0, 3.0], [np.inf, 1.0]])
    generalization.against(ax, np.array([2.0, 1.0, 3.0]), table, label="fixed")
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xdata(), [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(line.get_ydata(), [2.0, 4.0, np.nan])
    generalization.border(ax)
    assert [text.get_text().strip() for text in ax.texts] == ["B₊", "B₋"]


def test_identity_correlations_stand_in_rows_from_the_top(ax):
    generalization.correlations(ax, ["loss", "iterations"], np.array([0.5, -0.5]), np.zeros(2), np.ones(2), label="a")
    assert [text.get_text() for text in ax.get_yticklabels()] == ["loss", "iterations"]
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0.5, 0.0], [-0.5, -1.0]])
