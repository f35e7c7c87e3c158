"""Phase diagrams show the numbers they are given, on axes that spread decays near 1."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from adamflow.plotting import phase

BETAS, GAMMAS = 1 - np.logspace(-0.3, -4, 40), 1 - np.logspace(0, -2, 30)


@pytest.fixture
def ax():
    yield plt.figure().subplots()
    plt.close("all")


def test_identity_decays_stand_at_their_logarithms(ax):
    phase.decay_plane(ax, BETAS, GAMMAS)
    pixels = ax.transData.transform([(beta, 0.5) for beta in (0.9, 0.99, 0.999)])[:, 0]
    assert np.diff(pixels)[0] == pytest.approx(np.diff(pixels)[1])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [".5", ".9", ".99", ".999", ".9999"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["0", ".5", ".9", ".99"]


def test_formula_edge_of_a_map_is_where_the_rate_changes_sign(ax):
    rates = np.broadcast_to(0.9 - GAMMAS, (BETAS.size, GAMMAS.size)) * 1.0
    phase.growth(ax, BETAS, GAMMAS, rates, 3.0)
    edge = ax.collections[-1].get_paths()[0].vertices
    np.testing.assert_allclose(edge[:, 1], 0.9, atol=0.01)
    assert any(drawn.hatches for drawn in ax.collections if hasattr(drawn, "hatches"))


def test_identity_diverged_runs_are_crossed(ax):
    rates = np.full((3, 2), -1.0)
    rates[1, 0] = np.nan
    phase.growth(ax, np.array([0.5, 0.9, 0.99]), np.array([0.1, 0.9]), rates, 3.0)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0.9, 0.1]])


def test_identity_regions_have_both_borders(ax):
    exponent = BETAS[:, None] - GAMMAS
    phase.regions(ax, BETAS, GAMMAS, exponent, [-0.2, 0.2], dashed=BETAS[:, None] - GAMMAS**2)
    border, dashed = (drawn.get_paths()[0].vertices for drawn in ax.collections[-2:])
    np.testing.assert_allclose(border[:, 0], border[:, 1], atol=2e-2)
    np.testing.assert_allclose(dashed[:, 0], dashed[:, 1] ** 2, atol=2e-2)
    assert {text.get_text() for text in ax.texts} <= {"−0.2", "0.2"}


def test_identity_edges_and_measured_points_are_the_numbers_given(ax):
    gamma = GAMMAS
    edges = {"step": 2 * (1 + gamma) / (1 - gamma), "no edge": np.full(gamma.size, np.inf)}
    phase.edges(ax, gamma, edges, np.array([0.5, 1e3]))
    assert phase.measured(ax, [0.1, 0.9], [2.4, 38.0], "measured") is ax
    step, measured = ax.lines
    np.testing.assert_array_equal(step.get_ydata(), edges["step"])
    np.testing.assert_array_equal(measured.get_xydata(), [[0.1, 2.4], [0.9, 38.0]])
    assert measured.get_linestyle() == "None"


def test_identity_small_rates_differ_in_colour(ax):
    rates = np.repeat(-np.geomspace(0.004, 2, BETAS.size)[:, None], GAMMAS.size, axis=1)
    filled = phase.growth(ax, BETAS, GAMMAS, rates, 3.0)
    assert sum(len(np.asarray(path.vertices)) > 0 for path in filled.get_paths()) > 10
