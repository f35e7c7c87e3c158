"""Pictures of the edge, of the observed region and of the worst case show the numbers that they get."""

import numpy as np
import pytest

import adamflow as af
from adamflow.plotting import edge, observed_region, worst_case


def curves(ax):
    """The curves with more than two points, which are no lines across the axes."""
    return [line for line in ax.lines if len(line.get_xdata()) > 2]


def texts(ax):
    return [text.get_text() for text in ax.texts]


N = np.arange(5.0)
TABLE = np.outer([1.0, 3.0, 0.5], 1 + N)


@pytest.mark.parametrize("function", [edge.losses, edge.sharpness_over_edge])
def test_identity_runs_draw_their_rows(ax, function):
    assert function(ax, N, TABLE) is ax
    for line, row in zip(curves(ax), TABLE, strict=True):
        np.testing.assert_array_equal(line.get_xydata(), np.column_stack([N, row]))
    assert ax.get_xlabel() == "iteration n"


def test_identity_equal_edges_share_a_line_with_its_value(ax):
    edges = np.asarray(af.analysis.adaptive_edge(np.array([0.9, 0.5, 0.9])))
    assert edge.sharpness_of_runs(ax, N, TABLE, edges) is ax
    across = sorted(line.get_ydata()[0] for line in ax.lines if len(line.get_xdata()) == 2)
    np.testing.assert_allclose(across, np.unique(edges))
    assert texts(ax) == [f"{height:.3g}" for height in across]


def test_identity_close_edges_share_a_text(ax):
    edge.sharpness_of_runs(ax, N, TABLE, np.array([35.0, 38.0, 2.0]))
    assert texts(ax) == ["2", "35–38"]
    assert len([line for line in ax.lines if len(line.get_xdata()) == 2]) == 3


def test_identity_hovering_marks_the_median_of_each_seed_and_of_all(ax):
    ratios = np.random.default_rng(0).uniform(0.5, 1.5, (2, 3, 50))
    assert edge.hovering(ax, ratios, ["first", "second"]) is ax
    circles = [line.get_xdata() for line in ax.lines if line.get_marker() == "o"]
    np.testing.assert_array_equal(circles, np.median(ratios, axis=-1))
    assert texts(ax) == [f"{np.median(values):.2f}" for values in ratios]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["first", "second"]


def test_identity_map_stands_on_axes_of_nines_with_borders_in_place(ax):
    edges = 1 - 10.0 ** -np.arange(5)
    largest = np.geomspace(1, 30, 16).reshape(4, 4)
    mesh = observed_region.map_of_updates(ax, edges, edges, largest, thresholds=[2.0, 5.0], top=30.0)
    np.testing.assert_array_equal(np.ravel(np.asarray(mesh.get_array())), largest.T.ravel())
    np.testing.assert_allclose(ax.get_xticks(), np.arange(5), atol=1e-9)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", ".9", ".99", ".999", ".9999"]
    gamma = np.array([0.1, 0.5, 0.9])
    assert observed_region.borders(ax, gamma, gamma / (2 - gamma), gamma**2) is ax
    for line, beta in zip(curves(ax), (gamma / (2 - gamma), gamma**2), strict=True):
        np.testing.assert_allclose(10 ** -line.get_xdata(), 1 - beta)
        np.testing.assert_allclose(10 ** -line.get_ydata(), 1 - gamma)


def test_identity_shares_fall_to_the_right_beside_the_theory(ax):
    eta, rows = np.array([1.0, 0.1, 0.01]), {"up to 2": np.array([0.9, 0.8, 0.7]), "up to 3": np.array([0.9, 0.7, 0.9])}
    assert observed_region.shares(ax, eta, rows, 0.69) is ax
    for line, row in zip(curves(ax), rows.values(), strict=True):
        np.testing.assert_array_equal(line.get_xydata(), np.column_stack([eta, row]))
    assert ax.lines[-1].get_ydata()[0] == 0.69
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [*rows, "γ² < β"]
    assert ax.xaxis_inverted()


def test_identity_chances_stand_beside_one_half(ax):
    eta, rows = np.array([1.0, 0.1, 0.01]), {"γ² < β": np.array([0.45, 0.8, 0.98])}
    assert observed_region.chances(ax, eta, rows) is ax
    np.testing.assert_array_equal(curves(ax)[0].get_ydata(), rows["γ² < β"])
    assert ax.lines[-1].get_ydata()[0] == 0.5
    assert ax.xaxis_inverted()


def test_identity_worst_case_draws_updates_on_bounds_and_says_where_the_paper_is_too_low(ax):
    n = np.arange(11.0)
    discrete, paper = (
        np.asarray(af.analysis.update_bound(n, beta=0.999, gamma=0.9, kind=kind))
        for kind in ("discrete", "gould_tanaka")
    )
    random = np.outer([0.1, 0.2, 0.3, 0.4, 0.5], np.ones(11))
    assert worst_case.discrete_updates(ax, n, discrete, discrete, paper, random) is ax
    drawn = {line.get_label(): line.get_ydata() for line in ax.lines}
    np.testing.assert_array_equal(drawn["attained bound Bₙ"], discrete)
    np.testing.assert_array_equal(drawn["worst case, measured"], discrete)
    last = n[np.flatnonzero(paper < discrete)[-1]]
    assert texts(ax)[-1] == f"[GT] too low up to n = {last:.0f}"
    ax.clear()
    flow = np.asarray(af.analysis.update_bound(n, beta=0.999, gamma=0.9, kind="flow", rate="gould_tanaka"))
    flows = {"paper": (flow, flow)}
    assert worst_case.flow_updates(ax, n, flows, paper) is ax
    assert texts(ax) == ["[GT] too low at every n"]


def test_identity_worst_case_gradients_show_the_first_one_apart(ax):
    n = np.arange(6.0)
    assert worst_case.gradients(ax, n, 2.0**-n, {"paper": (3.0**-n, 0.7)}) is ax
    signal, start, dots = ax.lines
    np.testing.assert_array_equal(signal.get_ydata(), 3.0 ** -n[1:])
    assert (list(start.get_xdata()), list(start.get_ydata())) == ([0], [0.7])
    np.testing.assert_array_equal(dots.get_ydata(), 2.0**-n)
