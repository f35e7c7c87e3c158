"""Pictures of empty, all-NaN or one-row data: errors name the argument; and figures do not pile up."""

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import adamflow as af
from adamflow.plotting import edge, generalization, kadam, observed_region, phase, region, two_branch_flow, worst_case
from adamflow.plotting import scale_invariance as invariance

N, ONE = np.arange(4.0), np.ones(4)
DECAYS = np.array([0.5, 0.9, 0.99])
EDGES = np.array([0.1, 0.5, 0.9, 0.99])


def table(rows, columns=4):
    return 1.0 + np.arange(rows * columns, dtype=float).reshape(rows, columns)


#: By name: the picture, its arrays in order, and which of them are drawn over a plane of at least two by two.
PICTURES = {
    "edge.sharpness_of_runs": (edge.sharpness_of_runs, [N, table(2), np.array([38.0, 2.0])]),
    "edge.sharpness_over_edge": (edge.sharpness_over_edge, [N, table(2)]),
    "edge.losses": (edge.losses, [N, table(2)]),
    "edge.hovering": (lambda ax, ratios: edge.hovering(ax, ratios, ["a", "b"]), [table(6).reshape(2, 3, 4)]),
    "two_branch_flow.distances": (
        lambda ax, n, errors: two_branch_flow.distances(ax, n, errors, ["a", "b"], ["c"]),
        [N, table(2)[None]],
    ),
    "two_branch_flow.sharpness": (
        lambda ax, n, values: two_branch_flow.sharpness(ax, n, [{"sharpness": values}], np.array([38.0])),
        [N, ONE],
    ),
    "two_branch_flow.beside_iterates": (
        lambda ax, n, a, b: two_branch_flow.beside_iterates(ax, n, [{"loss": a, "iterates_loss": b}], "loss"),
        [N, ONE, ONE],
    ),
    "generalization.against": (lambda ax, x, y: generalization.against(ax, x, y, label="a"), [N, table(4, 2)]),
    "generalization.correlations": (
        lambda ax, *rows: generalization.correlations(ax, list("abcd"), *rows),
        [ONE / 2, ONE / 4, ONE],
    ),
    "kadam.paths": (kadam.paths, [N, table(4, 2), table(4, 2)]),
    "kadam.updates_and_bounds": (
        lambda ax, n, u, b: kadam.updates_and_bounds(ax, n, u, b, ["a", "b"]),
        [N, table(2), table(2)],
    ),
    "kadam.by_stages": (lambda ax, k, row: kadam.by_stages(ax, k, {"naive": row}), [N, ONE]),
    "observed_region.map_of_updates": (
        lambda ax, b, g, u: observed_region.map_of_updates(ax, b, g, u, thresholds=[2.0, 5.0], top=20.0),
        [EDGES, EDGES, table(3, 3)],
    ),
    "observed_region.shares": (
        lambda ax, eta, row: observed_region.shares(ax, eta, {"a": row}, 0.5),
        [10.0**-N, ONE / 2],
    ),
    "phase.regions": (
        lambda ax, b, g, c, d: phase.regions(ax, b, g, c, [-1.0, 4.0], d),
        [DECAYS, DECAYS, table(3, 3) - 5, table(3, 3) - 4],
    ),
    "phase.growth": (lambda ax, b, g, r: phase.growth(ax, b, g, r, 3.0), [DECAYS, DECAYS, table(3, 3) - 5]),
    "phase.edges": (lambda ax, g, e, s: phase.edges(ax, g, {"a": e}, s), [DECAYS, DECAYS, np.array([1.0, 9.0])]),
    "region.slopes": (region.slopes, [N - 1, table(2), ONE, ONE, ONE]),
    "region.histories": (
        lambda ax, n, u, b: region.histories(ax, n, u, b, ["a", "b"]),
        [N, table(2), table(2)],
    ),
    "region.largest_updates": (
        lambda ax, b, g, u: region.largest_updates(ax, b, g, u, np.eye(3) > 0),
        [EDGES, EDGES, table(3, 3)],
    ),
    "invariance.factors": (
        lambda ax, g, k, p: invariance.factors(ax, g, {"a": k}, {"a": p}),
        [DECAYS, ONE[:3], ONE[:3]],
    ),
    "invariance.norms": (lambda ax, n, *w: invariance.norms(ax, n, {"a": w}), [N, ONE, ONE, ONE]),
    "invariance.triangle": (invariance.triangle, [N, table(4) / 16]),
    "invariance.lines": (lambda ax, x, y: invariance.lines(ax, x, {"a": y}), [N, table(2)]),
    "invariance.distances": (
        lambda ax, n, d: invariance.distances(ax, n, {"a": d}, ["r", "s"]),
        [N, table(4).reshape(2, 2, 4)],
    ),
    "invariance.coordinates": (lambda ax, n, r, o: invariance.coordinates(ax, n, r, {"a": o}), [N, table(4), table(4)]),
    "worst_case.gradients": (lambda ax, n, d, f: worst_case.gradients(ax, n, d, {"a": (f, 1.0)}), [N, ONE, ONE]),
    "worst_case.discrete_updates": (worst_case.discrete_updates, [N, ONE, ONE, ONE, table(5)]),
    "worst_case.flow_updates": (
        lambda ax, n, u, b, p: worst_case.flow_updates(ax, n, {"a": (u, b)}, p),
        [N, ONE, ONE, ONE],
    ),
}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def drawn(name, arrays):
    """Draw and render; every warning of matplotlib is an error."""
    figure, ax = plt.subplots(layout="constrained")
    try:
        PICTURES[name][0](ax, *arrays)
        figure.draw_without_rendering()
    finally:
        plt.close(figure)


@pytest.mark.parametrize("name", PICTURES)
def test_identity_every_picture_is_drawn(name):
    drawn(name, PICTURES[name][1])


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.usefixtures("unchecked")
def test_failure_empty_and_all_nan_data_and_other_shapes_are_named(name):
    arrays = PICTURES[name][1]
    spoiled = [array[..., :0] for array in arrays]
    with pytest.raises(ValueError, match="must hold at least"):
        drawn(name, spoiled)
    for place, array in enumerate(arrays):
        spoiled = [array + 0j, None]
        if (name, place) != ("region.slopes", 1):
            # There more axes in front are more seeds.
            spoiled.append(array[None])
        if place == 0 and len(arrays) > 1:
            spoiled.append(array[:-1])
        if (name, place) != ("phase.edges", 1):
            # A model without an edge has NaN or inf throughout, and no line.
            spoiled.append(np.full_like(array, np.nan))
        for bad in spoiled:
            with pytest.raises(ValueError, match=r"must (hold|have|be|lie|rise)"):
                drawn(name, [*arrays[:place], bad, *arrays[place + 1 :]])


@given(rows=st.integers(0, 3), columns=st.integers(0, 3), kind=st.sampled_from(["mixed", "positive", "nan", "-inf"]))
@pytest.mark.usefixtures("unchecked")
def test_identity_phase_diagrams_are_drawn_from_two_by_two_on_and_refused_below(rows, columns, kind):
    values = np.linspace(-1.0, 2.0, rows * columns).reshape(columns, rows)
    values = {"mixed": values, "positive": np.abs(values) + 0.1, "nan": values * np.nan}.get(kind, values)
    if kind == "-inf":
        values = np.where(values < 0, -np.inf, values)
    pictures = {
        "phase.growth": [DECAYS[:columns], DECAYS[:rows], values],
        "phase.regions": [DECAYS[:columns], DECAYS[:rows], values, values],
    }
    for name, arrays in pictures.items():
        if min(rows, columns) >= 2 and kind != "nan":
            drawn(name, arrays)
        else:
            with pytest.raises(ValueError, match=r"must hold at least 2 (columns|rows)|must hold a finite number"):
                drawn(name, arrays)


def test_identity_calls_without_axes_leave_one_figure_open_and_all_axes_usable():
    n, values = np.arange(3.0), np.ones(3)
    axes = [edge.sharpness_of_run(n, values + place, 38.0) for place in range(5)]
    assert len(plt.get_fignums()) == 1
    assert plt.gca() is axes[-1]
    for place, ax in enumerate(axes):
        assert ax.lines[0].get_ydata()[0] == 1.0 + place
        ax.figure.draw_without_rendering()


@pytest.mark.parametrize(
    "name", ["edge.sharpness_of_runs", "edge.losses", "region.histories", "kadam.updates_and_bounds"]
)
def test_identity_numbers_without_a_logarithm_are_drawn_on_a_linear_axis(name):
    # Of the histories the logarithms are drawn: -1000 is 0.
    value = -1000.0 if name == "region.histories" else 0.0
    arrays = [array if array.ndim == 1 else np.full_like(array, value) for array in PICTURES[name][1]]
    drawn(name, arrays)


def test_identity_errors_that_are_all_zero_are_drawn():
    n, zero = jnp.arange(3.0), jnp.zeros(3)
    ax = af.plotting.errors(af.Comparison(n, zero, zero, zero, None, None, ("a", "b"), "euclidean"))
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), zero)
    ax.figure.draw_without_rendering()


@pytest.mark.usefixtures("unchecked")
def test_failure_runs_without_saved_states_and_things_that_are_no_result():
    problem = af.problems.quadratic([1.0])
    with pytest.warns(UserWarning, match="It saved nothing"):
        run = af.iterate(af.sgd(1e3), problem.loss, problem.params, 400, save_at=[399, 400])
    assert len(run) == 0
    with pytest.raises(ValueError, match="holds no rows: it ended before the first"):
        af.plotting.trajectories(run, run)
    for draw, words in (
        (lambda: af.plotting.trajectories(problem, problem), "a run must be what af.iterate or af.solve returned"),
        (lambda: af.plotting.errors(problem), "errors draws what af.compare returned, got Problem"),
        (
            lambda: af.plotting.convergence(problem),
            "convergence draws what af.measure_convergence or af.noise.measure_weak_convergence returned, got Problem",
        ),
        (
            lambda: edge.sharpness_of_run([0, 1], [1.0, 2.0], "38"),
            "edge of stability must hold real numbers, got str",
        ),
        (lambda: edge.sharpness_of_run([0, 1], [np.nan, np.nan], 38.0), "values must hold a finite number"),
        (
            lambda: edge.sharpness_of_run([0, 1], [1.0, 2.0], 10**400),
            "edge of stability must hold real numbers, got int",
        ),
        (
            lambda: edge.sharpness_of_run([[0], [1, 2]], [1.0, 2.0], 38.0),
            "iterations must hold real numbers, got list",
        ),
        (lambda: edge.sharpness_of_run([], [], 38.0), "iterations must hold at least 1 saved"),
        (
            lambda: edge.sharpness_of_run([0, 1], [1.0, 2.0], 38.0, ax=3),
            "ax must be axes of matplotlib, .*got int",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            draw()
    assert not plt.get_fignums()
