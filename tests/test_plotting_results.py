"""Pictures that take a result: its numbers, read back from the axes, and what is refused."""

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

import adamflow as af
from adamflow.noise import Ensemble

OPTIMIZER = af.adam(0.01)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def quadratic():
    """Adam on a quadratic: the record, the problem and its run, with the parameters kept."""
    problem, optimizer = af.problems.quadratic([1.0, 3.0]), af.adam(0.01)
    return optimizer, problem, af.iterate(optimizer, problem.loss, problem.params, 20)


@pytest.fixture(scope="module")
def reports(quadratic):
    optimizer, problem, run = quadratic
    params, memory = run.final_state
    return [af.analysis.training_report(problem.loss, params, optimizer, memory, n) for n in (20, 21)]


def test_formula_sharpness_is_drawn_in_learning_rates_below_its_edge(quadratic):
    optimizer, problem, _ = quadratic
    observe = af.analysis.sharpness_observer(optimizer, problem.loss)
    run = af.iterate(optimizer, problem.loss, problem.params, 20, save_at=[0, 20], observe=observe)
    ax = af.plotting.sharpness(run, optimizer)
    # At n = 0 v̂ = g², so P = |g| = h|θ|, and the Hessian in its units is h/(h|θ|) = 1/|θ|.
    first = 0.01 / np.abs(np.asarray(problem.params)).min()
    np.testing.assert_allclose(ax.lines[0].get_ydata()[0], first, rtol=1e-5)
    np.testing.assert_allclose(ax.lines[1].get_ydata(), 38, rtol=1e-6)


def test_identity_reports_and_their_updates_are_drawn_from_a_list_or_its_dataset(reports):
    ax = af.plotting.reports(reports)
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [20, 21])
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [report.scaled_sharpness for report in reports])
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [report.edge for report in reports])
    ax = af.plotting.updates(reports)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [report.update_max for report in reports])
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [report.update_bound for report in reports])


def test_identity_updates_of_a_bound_report(quadratic):
    optimizer, _, run = quadratic
    report = af.analysis.bound_report(run, optimizer)
    ax = af.plotting.updates(report)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), report.largest_update)
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), report.bound)


def test_formula_edge_of_a_phase_diagram_and_border_of_a_region():
    gamma = np.array([0.5, 0.9])
    diagram = af.analysis.phase_diagram(af.adam, {"learning_rate": 1.0, "gamma": gamma}, np.array([1.0, 10.0, 100.0]))
    ax = af.plotting.phase_diagram(diagram)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), (2 + 2 * gamma) / (1 - gamma), rtol=1e-6)
    beta, gamma = 1 - np.geomspace(0.5, 1e-3, 40), 1 - np.geomspace(0.5, 1e-2, 40)
    region = af.analysis.bounded_update_region(beta=beta, gamma=gamma, kind="discrete")
    ax = af.plotting.bounded_update_region(region)
    (border,) = [path for collection in ax.collections[1:] for path in collection.get_paths() if len(path.vertices)]
    np.testing.assert_allclose(border.vertices[:, 1] ** 2, border.vertices[:, 0], atol=0.01)


def test_formula_mean_and_deviation_of_an_ensemble():
    paths = np.random.default_rng(0).normal(size=(50, 3, 2))
    ax = af.plotting.ensemble(Ensemble.of([0, 5, 9], jnp.asarray(paths), "some paths"), entry=1)
    np.testing.assert_allclose(ax.lines[0].get_xydata(), np.column_stack([[0, 5, 9], paths[..., 1].mean(axis=0)]))
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    upper = paths[..., 1].mean(axis=0) + paths[..., 1].std(axis=0)
    assert heights.max() == pytest.approx(upper.max())


def test_failure_of_what_is_no_such_result(quadratic, unchecked):
    optimizer, _, run = quadratic
    plotting = af.plotting
    refused = [
        (lambda: plotting.sharpness(run, optimizer), r"a run with observe=af\.analysis\.sharpness_observer"),
        (lambda: plotting.reports([]), r"needs a monitor that has looked, .*got "),
        (lambda: plotting.updates(run), r"needs a monitor that has looked"),
        (lambda: plotting.phase_diagram(run), r"what af\.analysis\.phase_diagram returned, got Trajectory"),
        (lambda: plotting.bounded_update_region(run), r"what af\.analysis\.bounded_update_region returned"),
        (lambda: plotting.spectrum(run), r"what af\.analysis\.jacobian_spectrum returned, got Trajectory"),
        (lambda: plotting.square_norms(run), r"what af\.analysis\.scale_invariance_report returned"),
        (lambda: plotting.ensemble(), r"needs at least one result, got none"),
        (lambda: plotting.ensemble(run), r"what StochasticFlow\.solve returned, got Trajectory"),
    ]
    for draw, message in refused:
        with pytest.raises(ValueError, match=message):
            draw()
    kinds = ["discrete", "gould_tanaka"]
    region = af.analysis.bounded_update_region(beta=[0.9, 0.99], gamma=[0.5, 0.9], kind=kinds)
    with pytest.raises(ValueError, match=r"got kind, beta, gamma; choose one kind with region\.sel"):
        plotting.bounded_update_region(region)
    numbers = {"beta": np.array([0.9, 0.99]), "gamma": np.array([0.5, 0.9]), "learning_rate": 1.0}
    diagram = af.analysis.phase_diagram(af.adam, numbers, np.array([1.0, 10.0]))
    with pytest.raises(ValueError, match=r"got beta, gamma, curvature; choose one value of the others"):
        plotting.phase_diagram(diagram)
    paths = Ensemble.of([0, 1], jnp.ones((3, 2, 2)), "paths")
    with pytest.raises(ValueError, match=r"entry must lie in \[0, 2\), the entries of what was observed, got 2"):
        plotting.ensemble(paths, entry=2)


def test_identity_the_first_crossing_of_the_edge_is_marked():
    problem, optimizer = af.problems.quadratic([1.0, 3.0]), af.adam(0.1, beta=0.9, gamma=0.5)
    observe = af.analysis.sharpness_observer(optimizer, problem.loss)
    run = af.iterate(optimizer, problem.loss, problem.params, 150, save_at=np.arange(0, 151, 10), observe=observe)
    scaled = 0.1 * np.asarray(run.observed.value)
    # 2(1 + γ)/(1 − γ)
    first = np.flatnonzero(scaled >= 6)[0]
    assert first > 0
    (marked,) = [line for line in af.plotting.sharpness(run, optimizer).lines if line.get_marker() == "o"]
    np.testing.assert_allclose(marked.get_xydata(), [[10.0 * first, scaled[first]]], rtol=1e-6)


def test_formula_the_two_cycle_of_adam_is_drawn_at_its_amplitude():
    problem, optimizer = af.problems.quadratic([1.0], start=[0.05]), af.adam(0.1, beta=0.9, gamma=0.1)
    cycle = af.analysis.periodic_orbit(optimizer, problem.loss, problem.params, 2)
    ax = af.plotting.orbit(cycle)
    amplitude = float(af.analysis.two_cycle(0.1, beta=0.9, gamma=0.1).amplitude)
    drawn = ax.lines[0].get_ydata()
    np.testing.assert_allclose(np.abs(drawn), amplitude, rtol=1e-6)
    assert drawn[0] == drawn[2] == -drawn[1]
    assert ax.get_title() == "cycle of period 2, stable"


def test_identity_orbits_of_many_entries_show_those_that_move_most():
    rows = np.random.default_rng(0).normal(size=(3, 9)) * np.arange(9)
    points = {"a": jnp.asarray(rows[:, :4].reshape(3, 2, 2)), "b": jnp.asarray(rows[:, 4:])}
    options = {"stable": False, "residual": 0.0, "converged": True, "period": 3, "searched": 3}
    found = af.analysis.PeriodicOrbit((points, OPTIMIZER.initial_state(points)), np.zeros(9, complex), **options)
    ax = af.plotting.orbit(found)
    deviations = rows - rows.mean(axis=0)
    shown = sorted(np.argsort(np.abs(deviations).max(axis=0))[-5:])
    assert [line.get_label() for line in ax.lines] == [f"entry {entry}" for entry in shown]
    for line, entry in zip(ax.lines, shown, strict=True):
        np.testing.assert_allclose(line.get_ydata(), deviations[[0, 1, 2, 0], entry], rtol=1e-12)


def test_identity_multipliers_of_an_instability_and_their_periods():
    found = af.analysis.Instability(
        np.array([-1.1, 1.0 + 0.2j]), curvature=38.0, converged=np.array([True, False]), rounding=0.0
    )
    ax = af.plotting.instability(found)
    known, open_ones = ({(x, y) for x, y in line.get_xydata()} for line in ax.lines)
    assert known == {(-1.1, 0.0)}
    assert open_ones == {(1.0, 0.2), (1.0, -0.2)}
    assert [text.get_text() for text in ax.texts] == ["period 2", f"period {2 * np.pi / np.arctan(0.2):.4g}"]
    assert ax.get_title() == "unstable from ηs = 38 on"


def test_identity_an_explanation_shows_where_the_flow_departs():
    problem, optimizer = af.problems.chain(dimension=4), af.adam(1e-3)
    discrete = af.iterate(optimizer, problem.loss, problem.params, 100)
    continuous = af.solve(af.GouldTanakaFlow(optimizer), problem.loss, problem.params, 100)
    found = af.explain(discrete, continuous, optimizer, problem.loss, tolerance=2e-3)
    ax = af.plotting.explanation(found)
    moved = np.linalg.norm(np.asarray(discrete.params - discrete.initial_params), axis=1).max()
    distance = np.linalg.norm(np.asarray(discrete.params - continuous.params), axis=1) / moved
    np.testing.assert_allclose(ax.lines[0].get_ydata(), distance, rtol=1e-6, atol=1e-12)
    np.testing.assert_array_equal(ax.lines[2].get_xydata(), [[found.departs_at, found.error]])
    agreeing = af.explain(discrete, continuous, optimizer, problem.loss, tolerance=0.5)
    assert af.plotting.explanation(agreeing).get_title() == "within the tolerance"


@pytest.mark.parametrize("name", ["orbit", "instability", "explanation"])
def test_failure_other_results_are_named(unchecked, name):
    with pytest.raises(ValueError, match=rf"{name} draws what af\..* returned, got int"):
        getattr(af.plotting, name)(3)


def test_failure_results_that_hold_nothing_to_draw():
    nothing = af.analysis.Instability(np.zeros(0, complex), float("nan"), np.zeros(0, bool))
    with pytest.raises(ValueError, match="the step is stable"):
        af.plotting.instability(nothing)
    options = {"stable": False, "residual": 1.0, "converged": False, "period": 2, "searched": 2}
    points = jnp.zeros((2, 1))
    failed = af.analysis.PeriodicOrbit((points, OPTIMIZER.initial_state(points)), np.zeros(1, complex), **options)
    with pytest.raises(ValueError, match="result holds no orbit: no orbit of period 2"):
        af.plotting.orbit(failed)
