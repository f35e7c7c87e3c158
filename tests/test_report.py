"""Runs beside the bound on their updates: real minibatch runs, worst cases, all kinds of last stage, and failures."""

import dataclasses

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamflow as af
from adamflow.analysis import bound_report, largest_update, update_bound, worst_case_gradients
from adamflow.optimizers import AdaBeliefStage

LOGISTIC = af.problems.logistic()
STEPS = 300


def run_minibatches(optimizer, steps=STEPS, **options):
    batches = LOGISTIC.batches(size=8)
    return af.iterate(optimizer, LOGISTIC.loss, LOGISTIC.params, steps, batches=batches, **options)


def linear(params, gradient):
    return jnp.sum(gradient * params)


def row_of(table, n):
    return table[n]


def run_gradients(optimizer, gradients, observe=largest_update):
    rows = eqx.Partial(row_of, jnp.asarray(gradients)[:, None])
    dtype = jnp.asarray(gradients).dtype
    # Gradients of the worst case make some of them diverge.
    options = dict(batches=rows, observe=observe, on_failure="ignore")
    return af.iterate(optimizer, linear, jnp.ones(1, dtype), len(gradients) - 1, **options)


@pytest.fixture(scope="module", params=[(0.9, 0.99), (0.999, 0.9)], ids=["B-", "B+"])
def minibatches(request):
    """A record on either side of γ² = β, and its run, observed and by its parameters."""
    optimizer = af.adamw(1e-2, beta=request.param[0], gamma=request.param[1], weight_decay=0.1)
    return optimizer, run_minibatches(optimizer, observe=largest_update), run_minibatches(optimizer)


def test_formula_report_of_a_minibatch_run(minibatches):
    optimizer, run, _ = minibatches
    report = bound_report(run, optimizer)
    stage = optimizer.stages[0]
    bounds = update_bound(np.arange(STEPS + 1), beta=float(stage.beta), gamma=float(stage.gamma), kind="discrete")
    np.testing.assert_array_equal(report.iteration, np.arange(STEPS + 1))
    np.testing.assert_array_equal(report.largest_update, run.observed)
    np.testing.assert_allclose(report.bound, bounds, rtol=1e-14)
    np.testing.assert_allclose(report.margin, np.log(bounds / run.observed), atol=1e-14)
    assert float(report.margin[0]) == pytest.approx(0, abs=1e-15)
    assert report.closest_iteration == 1 + np.argmin(report.margin[1:].values)
    assert report.smallest_margin == report.margin[1:].min() > 0
    assert report.exceeded == 0
    assert all(variable.attrs["long_name"] and variable.attrs["units"] == "1" for variable in report.variables.values())
    top = int(np.argmax(run.observed))
    assert f"stay within the bound in all {STEPS + 1} iterations" in report.summary
    assert f"closest at iteration {float(report.closest_iteration):g}" in report.summary
    assert f"is {run.observed[top]:.4g}, at iteration {top}, where the bound is {bounds[top]:.4g}." in report.summary


def test_identity_parameters_show_the_same_updates(minibatches):
    optimizer, observed, kept = minibatches
    expected, report = bound_report(observed, optimizer), bound_report(kept, optimizer)
    np.testing.assert_array_equal(report.iteration, np.arange(STEPS))
    difference = abs(report.largest_update - expected.largest_update)
    assert (difference <= report.rounding * report.largest_update).all()
    assert difference.max() < 1e-9
    assert report.exceeded == 0
    assert report.closest_iteration == expected.closest_iteration


def test_identity_parameters_in_float32_are_as_accurate_as_is_said(key):
    optimizer = af.adam(jnp.float32(1e-3), beta=jnp.float32(0.95), gamma=jnp.float32(0.99))
    gradients = jax.random.normal(key, (41,), jnp.float32)
    runs = [run_gradients(optimizer, gradients, observe) for observe in (largest_update, None)]
    expected, report = (bound_report(run, optimizer) for run in runs)
    difference = abs(report.largest_update - expected.largest_update)
    assert (difference <= report.rounding * report.largest_update).all()
    assert difference.max() > 1e-8
    assert report.exceeded == 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize(("beta", "gamma"), [(0.95, 0.99), (0.25, 0.5), (0.999, 0.9)])
def test_identity_worst_case_attains_the_bound_to_rounding(beta, gamma, dtype):
    decays = jnp.asarray(beta, dtype), jnp.asarray(gamma, dtype)
    optimizer = af.adam(jnp.asarray(1e-9, dtype), beta=decays[0], gamma=decays[1])
    report = bound_report(
        run_gradients(optimizer, worst_case_gradients(41, beta=decays[0], gamma=decays[1])), optimizer
    )
    assert abs(report.margin[-1]) <= report.rounding[-1] < 1e3 * jnp.finfo(dtype).eps
    assert report.exceeded == 0
    assert "attain it to rounding at iteration" in report.summary


def test_formula_paper_bound_is_exceeded_early_and_no_other():
    beta, gamma = 0.95, 0.9
    optimizer = af.adam(1e-3, beta=beta, gamma=gamma)
    run = run_gradients(optimizer, worst_case_gradients(41, beta=beta, gamma=gamma))
    report = bound_report(run, optimizer, kind="gould_tanaka")
    over = run.observed > update_bound(np.arange(41), beta=beta, gamma=gamma)
    assert report.exceeded == over.sum() > 1
    assert report.margin[0] == -np.inf
    assert report.closest_iteration == 1 + np.argmin(report.margin[1:].values)
    assert f"exceed the bound in {over.sum()} of 41 iterations, first in 0 (kind 'gould_tanaka'" in report.summary
    assert "pass it furthest at iteration" in report.summary
    assert bound_report(run, optimizer, kind="flow").exceeded == 0


def test_formula_a_wrong_record_shows_as_an_excess():
    run = run_gradients(af.adam(1e-3, beta=0.9, gamma=0.99), worst_case_gradients(41, beta=0.9, gamma=0.99))
    report = bound_report(run, af.adam(1e-3, beta=0.999, gamma=0.9))
    assert report.exceeded > 0
    assert "(second moments underflowed, so try float64 or epsilon > 0, or another record ran)" in report.summary


def test_identity_kadam_has_the_bound_of_its_last_stage(key):
    optimizer = af.kadam(3, 1e-2, beta=0.9, gamma=0.99, strategy="inverse_exponential")
    report = bound_report(run_gradients(optimizer, jax.random.normal(key, (41,))), optimizer)
    last = optimizer.stages[-1]
    expected = update_bound(np.arange(41), beta=float(last.beta), gamma=float(last.gamma), kind="discrete")
    np.testing.assert_allclose(report.bound, expected, rtol=1e-14)
    assert (report.attrs["beta"], report.attrs["gamma"]) == (float(last.beta), float(last.gamma))
    assert report.exceeded == 0


def test_identity_rmsprop_is_gamma_0_and_sign_descent_has_bound_1(key):
    gradients = jax.random.normal(key, (41,)) ** 9
    optimizer = af.rmsprop(1e-3, 0.9)
    report = bound_report(run_gradients(optimizer, gradients), optimizer)
    np.testing.assert_allclose(
        report.bound, update_bound(np.arange(41), beta=0.9, gamma=0.0, kind="discrete"), rtol=1e-14
    )
    assert report.attrs["gamma"] == 0
    assert report.exceeded == 0
    optimizer = af.signsgd(1e-3)
    report = bound_report(run_gradients(optimizer, gradients), optimizer, kind="gould_tanaka")
    np.testing.assert_array_equal(report.bound, np.ones(41))
    np.testing.assert_array_equal(report.margin, np.zeros(41))
    assert "beta" not in report.attrs
    assert "(kind 'gould_tanaka') and attain it to rounding" in report.summary


def test_identity_without_bias_correction_and_with_epsilon():
    gradients = worst_case_gradients(41, beta=0.95, gamma=0.99)
    optimizer = af.adam(1e-3, beta=0.95, gamma=0.99, bias_correction=False)
    report = bound_report(run_gradients(optimizer, gradients), optimizer)
    expected = update_bound(np.arange(41), beta=0.95, gamma=0.99, kind="discrete", bias_correction=False)
    np.testing.assert_allclose(report.bound, expected, rtol=1e-14)
    assert abs(report.margin[-1]) <= report.rounding[-1]
    for inside in (False, True):
        stabilized = af.adam(1e-3, beta=0.95, gamma=0.99, epsilon=0.1, epsilon_inside_root=inside)
        assert (bound_report(run_gradients(stabilized, gradients), stabilized).margin > 1e-3).all()


@pytest.fixture(scope="module")
def flow_run():
    problem = af.problems.chain(4)
    flow = af.GouldTanakaFlow(af.adam(1e-2), rate="exact")
    solver, times = diffrax.Tsit5(), [0.0, 1.5, 20.0, 60.0]
    return af.solve(flow, problem.loss, problem.params, 60, save_at=times, observe=largest_update, solver=solver)


def test_identity_flow_by_what_it_observed(flow_run):
    report = bound_report(flow_run, af.adam(1e-2))
    np.testing.assert_array_equal(report.largest_update, flow_run.observed)
    bounds = update_bound(np.asarray(flow_run.iterations), beta=0.999, gamma=0.9, kind="flow", rate="exact")
    np.testing.assert_allclose(report.bound, bounds, rtol=1e-14)
    assert "exact rate: bounded, since the bound tends to a constant; the updates stay" in report.summary
    assert "within the bound in all 4 iterations (kind 'flow'" in report.summary
    assert (report.attrs["kind"], report.attrs["rate"], int(report.exceeded)) == ("flow", "exact", 0)
    other = dataclasses.replace(flow_run, filter_rate="gould_tanaka", name="under another name")
    given = bound_report(flow_run, af.adam(1e-2), rate="gould_tanaka")
    np.testing.assert_array_equal(bound_report(other, af.adam(1e-2)).bound, given.bound)
    assert (abs(given.bound - report.bound)[1:] > 1e-6).all()


def test_failure_of_flows_is_not_blamed_on_underflow_and_their_rate_is_not_guessed(flow_run):
    tenfold = dataclasses.replace(flow_run, observed=10 * flow_run.observed)
    for kind in (None, "discrete"):
        summary = bound_report(tenfold, af.adam(1e-2), kind=kind).summary
        assert "exceed the bound in 4 of 4 iterations" in summary
        assert "underflow" not in summary
    other = dataclasses.replace(flow_run, name="adam, modified flow of order 2", filter_rate=None)
    with pytest.raises(ValueError, match=r"'adam, modified flow of order 2' does not know; give rate='exact' or rate="):
        bound_report(other, af.adam(1e-2))
    assert bound_report(other, af.adam(1e-2), kind="discrete").exceeded == 0


def test_failure_a_run_that_ends_early_keeps_its_rows():
    beta, gamma = 0.5, 0.9
    optimizer = af.adam(1.0, beta=beta, gamma=gamma)
    gradients = worst_case_gradients(151, beta=beta, gamma=gamma)
    for observe, missing in ((largest_update, 0), (None, 1)):
        run = run_gradients(optimizer, gradients, observe)
        assert run.outcome.name == "diverged"
        report = bound_report(run, optimizer)
        assert report.sizes["iteration"] == len(run) - missing < 150
        assert float(report.largest_update[-1]) > 1e6
        assert report.exceeded == 0
        np.testing.assert_allclose(report.largest_update[20:], report.bound[20:], rtol=1e-9)


def test_identity_lanes_of_a_batch_one_by_one():
    """A lane that diverged has blank rows, which do not count."""
    gradients = worst_case_gradients(151, beta=0.5, gamma=0.9)
    rates = jnp.array([1e-30, 1.0])

    def run(rate):
        return run_gradients(af.adam(rate, beta=0.5, gamma=0.9), gradients)

    batch = jax.vmap(run)(rates)
    for lane, rate in enumerate(rates):
        single = bound_report(run(float(rate)), af.adam(rate, beta=0.5, gamma=0.9))
        report = bound_report(
            jax.tree.map(lambda leaf, lane=lane: leaf[lane], batch), af.adam(rate, beta=0.5, gamma=0.9)
        )
        assert report.sizes == single.sizes
        np.testing.assert_allclose(report.margin, single.margin, atol=1e-9)
    with pytest.raises(ValueError, match=r"one run with known numbers, got a batch .*take one lane with jax.tree.map"):
        bound_report(batch, af.adam(1.0, beta=0.5, gamma=0.9))


def test_identity_updates_of_0_and_a_single_row():
    optimizer = af.adam(1e-3)
    run = run_gradients(optimizer, jnp.zeros(41))
    report = bound_report(run, optimizer)
    assert (report.margin == np.inf).all()
    assert report.exceeded == 0
    assert "all are 0" in report.summary
    assert bound_report(rows_of(run, [0]), optimizer).closest_iteration == 0


def rows_of(run, rows):
    """The run as if only some iterations had been saved."""
    kept = jax.tree.map(lambda leaf: leaf[jnp.array(rows)], (run.iterations, run.params, run.observed))
    return dataclasses.replace(run, iterations=kept[0], params=kept[1], observed=kept[2])


def test_identity_pairs_of_saved_iterations_are_enough(minibatches):
    optimizer, _, run = minibatches
    report = bound_report(rows_of(run, [0, 10, 11, 12, 20, 39, 40]), optimizer)
    np.testing.assert_array_equal(report.iteration, [10, 11, 39])
    np.testing.assert_array_equal(report.margin, bound_report(run, optimizer).margin.sel(iteration=[10, 11, 39]))
    with pytest.raises(ValueError, match=r"at two iterations in a row, but .* none such; run it with observe="):
        bound_report(rows_of(run, [0, 10, 20]), optimizer)


class VaryingStage(af.RMSpropStage):
    """A decay that varies with the iteration."""

    def filters(self):
        (second,) = super().filters()
        return (second._replace(decay=lambda n: 1 - 1 / (n + 2)),)


def test_failure_says_what_to_do(flow_run):
    adam = af.adam(1e-3)
    run = run_gradients(adam, jnp.ones(41))
    for changed, message in (
        ({"observed": {"loss": run.observed}}, r"one number at each iteration.*\{'loss': \(41,\)\}; .*largest_update"),
        ({"observed": run.observed[:, None]}, r"one number at each iteration.*\(41, 1\); run it with observe="),
        (
            {"observed": 0 * run.observed - 1},
            r"must be ‖u_n‖∞ ≥ 0, got -1.0; run it with observe=af.analysis.largest_update",
        ),
        ({"observed": run.observed.at[3].set(jnp.nan)}, "must be ‖u_n‖∞ ≥ 0, got nan; run it"),
    ):
        with pytest.raises(ValueError, match=message):
            bound_report(dataclasses.replace(run, **changed), adam)
    flow = dataclasses.replace(flow_run, params=jnp.ones((4, 4)), observed=None)
    with pytest.raises(ValueError, match=r"parameters of a flow do not show its direction; run it with observe="):
        bound_report(flow, adam)
    for optimizer, kind, message in (
        (
            af.Optimizer(1e-3, (AdaBeliefStage(0.9, 0.9),)),
            "discrete",
            "AdaBeliefStage does something else; af.analysis.direction_bound",
        ),
        (af.nadam(1e-3), "discrete", "NAdamStage does something else"),
        (af.amsgrad(1e-3), "discrete", "AMSGradStage does something else"),
        (af.signum(1e-3), "discrete", r"'second_moment' .* SignMomentumStage has \['first_moment'\]"),
        (af.Optimizer(1e-3, (VaryingStage(0.9),)), "discrete", "beta of the last stage varies with the iteration"),
        (
            jax.vmap(lambda b: af.adam(1e-3, beta=b))(jnp.array([0.9, 0.99])),
            "discrete",
            r"one number, got shape \(2,\): .*batch",
        ),
        (af.rmsprop(1e-3), "flow", "kind='flow' is infinite at gamma = 0"),
        (adam, "tight", "kind must be one of 'gould_tanaka', 'flow', 'discrete', got 'tight'"),
    ):
        with pytest.raises(ValueError, match=message):
            bound_report(run, optimizer, kind=kind)
    with pytest.raises(ValueError, match="rate must be one of 'exact', 'gould_tanaka', got 'ours'"):
        bound_report(run, adam, rate="ours")
    with pytest.raises(ValueError, match="one run with known numbers, got a batch or a run that jax is tracing"):
        jax.jit(lambda gradients: bound_report(run_gradients(adam, gradients), adam).margin.values)(jnp.ones(41))


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (
            af.adam(1e-2, beta=0.8, gamma=0.95),
            "adam, discrete: not bounded, since the bound grows by a factor e every ",
        ),
        (af.adam(1e-2, beta=0.99, gamma=0.9), "adam, discrete: bounded, since the bound tends to a constant; the upd"),
        (af.rmsprop(1e-2), "rmsprop, discrete: bounded, since the bound tends to a constant; the updates"),
        (af.signsgd(1e-2), "signsgd, discrete: bounded, as sign descent is by 1; the updates"),
    ],
)
def test_formula_the_summary_says_first_whether_updates_are_bounded(optimizer, words):
    problem = af.problems.chain(4)
    run = af.iterate(optimizer, problem.loss, problem.params, 5, observe=largest_update)
    assert bound_report(run, optimizer).summary.startswith(words)
