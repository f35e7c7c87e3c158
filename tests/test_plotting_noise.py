"""Pictures of minibatch noise: what is drawn, and what bad input says."""

import numpy as np
import pytest

from adamflow.plotting import noise

SIZES = np.array([1.0, 4.0, 16.0])


def test_identity_values_without_a_number_are_left_out(ax):
    noise.along_runs(ax, SIZES, {"B = 1": np.array([0.5, np.inf, 1.2])}, label="Q")
    line, edge = ax.lines
    np.testing.assert_array_equal(line.get_ydata(), [0.5, np.nan, 1.2])
    assert set(edge.get_ydata()) == {1.0}
    assert ax.get_yscale() == "log"


def test_identity_groups_have_batch_sizes_of_their_own(ax):
    rows = {"a": (SIZES, np.array([1.0, 0.0, 2.0])), "b": (SIZES[:2], np.array([0.3, 0.4]))}
    noise.against_batch(ax, rows, label="Q", edge=2.0)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [1.0, np.nan, 2.0])
    np.testing.assert_array_equal(ax.lines[1].get_xdata(), [1.0, 4.0])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]


def test_failure_of_groups_without_runs(ax, unchecked):
    with pytest.raises(ValueError, match="rows must be a mapping with at least one entry"):
        noise.against_batch(ax, {}, label="Q")
