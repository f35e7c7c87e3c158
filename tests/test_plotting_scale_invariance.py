"""Pictures of scale-invariant weights show the numbers that they get."""

import numpy as np

from adamflow.plotting import scale_invariance

GAMMAS, N = np.array([0.0, 0.5, 0.9]), np.arange(4.0)


def labelled(ax):
    return {line.get_label(): np.asarray(line.get_ydata()) for line in ax.lines}


def test_identity_factors_over_gamma(ax):
    measured, predicted = {"a": np.array([1.0, 3.0, 18.0])}, {"a": np.array([1.0, 3.0, 19.0])}
    assert scale_invariance.factors(ax, GAMMAS, measured, predicted) is ax
    np.testing.assert_array_equal(labelled(ax)["a"], measured["a"])
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), predicted["a"])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0", "0.5", "0.9"]


def test_identity_ratios_of_two_tensors(ax):
    table = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert scale_invariance.ratios(ax, GAMMAS, {"b": table}, "ratio") is ax
    np.testing.assert_array_equal([line.get_ydata() for line in ax.lines[1:]], table.T)
    assert ax.get_ylabel() == "ratio"


def test_identity_norms_and_laws(ax):
    curves = [N + 1, N + 2, N + 3]
    assert scale_invariance.norms(ax, N, {"run": curves}) is ax
    np.testing.assert_array_equal([line.get_ydata() for line in ax.lines[:3]], curves)


def test_identity_triangle_marks_what_is_positive(ax):
    cosines = np.where(np.triu(np.ones((4, 4)), 1) > 0, np.nan, -0.1)
    cosines[3, 1] = 0.2
    assert scale_invariance.triangle(ax, N, cosines) is ax
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1.0, 3.0]])
    assert ax.collections[0].get_clim() == (-0.2, 0.2)


def test_identity_lines_are_means_over_runs(ax):
    table = np.array([[0.0, 1.0, 2.0, 3.0], [2.0, 3.0, 4.0, 5.0]])
    assert scale_invariance.lines(ax, N, {"c": table}) is ax
    np.testing.assert_array_equal(labelled(ax)["c"], N + 1)


def test_identity_distances_and_coordinates(ax):
    table = np.stack([np.stack([N, 2 * N]), np.stack([3 * N, 4 * N])])
    assert scale_invariance.distances(ax, N, {"one": table}, ["first", "second"]) is ax
    np.testing.assert_array_equal([line.get_ydata() for line in ax.lines[:2]], [2 * N, 3 * N])
    ax.clear()
    reference, other = np.stack([N, N + 1], axis=1), np.stack([N, N + 2], axis=1)
    assert scale_invariance.coordinates(ax, N, reference, {"other": other}) is ax
    np.testing.assert_array_equal([line.get_ydata() for line in ax.lines[:4]], [N, N, N + 1, N + 2])
