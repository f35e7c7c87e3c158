"""Pictures past the edge of stability: what is drawn, read back from the axes."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

import adamflow as af
from adamflow.plotting.colours import LINES

N = np.arange(40.0, 140.0, 20.0)


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def test_identity_distances_have_a_colour_by_case_and_a_style_by_flow_and_a_cross_where_a_flow_ends(ax):
    errors = np.full((2, 3, N.size), np.nan)
    errors[:, 0], errors[0, 1, :3] = np.array([[0.1], [0.2]]), 0.5
    af.plotting.two_branch_flow.distances(ax, N, errors, ("edge", "stable", "none"), ("a", "b"))
    curves = [line for line in ax.lines if line.get_marker() == "None"]
    styles = [(line.get_color(), line.get_linestyle()) for line in curves]
    assert styles == [(LINES[0], "-"), (LINES[0], "--"), (LINES[1], "-")]
    np.testing.assert_array_equal(curves[1].get_ydata(), errors[0, 1])
    (cross,) = (line for line in ax.lines if line.get_marker() == "x")
    np.testing.assert_array_equal(cross.get_xdata(), N[2])
    assert ax.get_ylim()[1] > 0.5


def test_identity_series_beside_those_of_the_iterates(ax):
    shown = [
        {"amplitude": np.full(N.size, size), "iterates_amplitude": np.full(N.size, 2 * size)}
        for size in (1e-3, 1.0, 0.1)
    ]
    af.plotting.two_branch_flow.beside_iterates(ax, N, shown, "amplitude", largest=2)
    drawn = [
        (line.get_color(), line.get_linestyle(), line.get_ydata()[0]) for line in ax.lines if line.get_xdata().size
    ]
    assert drawn == [(LINES[1], "-", 1.0), (LINES[1], ":", 2.0), (LINES[2], "-", 0.1), (LINES[2], ":", 0.2)]


def test_identity_sharpness_is_drawn_over_its_edge(ax):
    af.plotting.two_branch_flow.sharpness(ax, N, [{"sharpness": 3 * np.ones(N.size)}], np.array([6.0]))
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), 0.5)
