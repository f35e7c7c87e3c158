"""The continuous run: against closed forms and tight references, how it ends, and bad input."""

import re
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg

import adamflow as af
from adamflow.optimizers import AdaFomStage, AdanStage, MomentumStage
from conftest import KVAERNO
from tests.stages import CountingStage

CHAIN = af.problems.chain(10)
TENS = np.arange(0, 2001, 10)
PAIRS = [(0.999, 0.9), (0.95, 0.9), (0.95, 0.5), (0.9999, 0.5)]


def rate_of(decay, rate):
    return (1 - decay) / decay if rate == "gould_tanaka" else -np.log(decay)


@pytest.mark.parametrize(("order", "rate"), [(1, "gould_tanaka"), (2, "exact")])
def test_formula_against_scipy_on_the_written_out_equations(order, rate):
    """θ' = −η(λθ+u) or p' = −2(p + η(λθ+u)); m' = a(g−m); v' = b(g²−v), written again in plain numpy."""
    eta, beta, gamma, decay, epsilon = 1e-2, 0.98, 0.8, 0.1, 1e-3
    curvatures, start = np.array([0.5, 2.0]), np.array([1.0, -0.7])
    a, b = rate_of(gamma, rate), rate_of(beta, rate)

    def field(n, y):
        theta, p, m, v = y.reshape(4, 2)
        g = curvatures * theta + theta**3
        u = (m / (1 - gamma ** (n + 1))) / (np.sqrt(v / (1 - beta ** (n + 1))) + epsilon)
        push = -eta * (decay * theta + u)
        motion = [push, 0 * p] if order == 1 else [p, 2 * (push - p)]
        return np.concatenate([*motion, a * (g - m), b * (g**2 - v)])

    g0 = curvatures * start + start**3
    p0 = -eta * (decay * start + g0 / (np.abs(g0) + epsilon))
    y0 = np.concatenate([start, p0, (1 - gamma) * g0, (1 - beta) * g0**2])
    times = np.linspace(0, 120, 7)
    peer = scipy.integrate.solve_ivp(field, (0, 120), y0, "DOP853", times, rtol=1e-11, atol=1e-13)
    record = af.adamw(eta, beta=beta, gamma=gamma, epsilon=epsilon, weight_decay=decay)

    def loss(theta):
        return jnp.sum(jnp.asarray(curvatures) * theta**2 / 2 + theta**4 / 4)

    solver = "auto" if (order, rate) == (1, "exact") else diffrax.Dopri8()
    flow = af.GouldTanakaFlow(record, order, rate)
    run = af.solve(flow, loss, jnp.asarray(start), 120, save_at=times, rtol=1e-9, solver=solver)
    np.testing.assert_allclose(run.params, peer.y[:2].T, atol=1e-8)


def test_formula_linear_flow_without_second_moment_equals_the_matrix_exponential():
    """A stage that returns its first moment alone makes the flow of momentum linear."""

    record = af.Optimizer(0.1, (MomentumStage(0.9),), bias_correction=False)
    run = af.solve(af.GouldTanakaFlow(record), lambda p: 1.5 * p**2, jnp.asarray(2.0), 50, save_at=[10, 50], rtol=1e-9)
    a = rate_of(0.9, "gould_tanaka")
    matrix = np.array([[0.0, -0.1], [3 * a, -a]])
    expected = [scipy.linalg.expm(matrix * n) @ [2.0, 0.1 * 6.0] for n in (10, 50)]
    np.testing.assert_allclose(run.params, np.array(expected)[:, 0], atol=1e-6)


def _look(snapshot):
    return snapshot.params, snapshot.filters[0]["second_moment"].min()


@pytest.mark.parametrize(
    ("beta", "gamma"), [PAIRS[0], *(pytest.param(*pair, marks=pytest.mark.slow) for pair in PAIRS[1:])]
)
def test_formula_chain_completes_within_a_thousandth_of_a_tight_reference(beta, gamma):
    flow = af.GouldTanakaFlow(af.adam(1e-3, beta=beta, gamma=gamma))

    reference, run = (
        af.solve(flow, CHAIN.loss, CHAIN.params, 2000, save_at=TENS, rtol=rtol, observe=_look, solver=KVAERNO)
        for rtol in (1e-10, 1e-4)
    )
    assert run.outcome.name == reference.outcome.name == "completed"
    assert float(run.observed[1].min()) > 0
    truth = reference.observed[0]
    moved = np.linalg.norm(truth - truth[0], axis=1)
    error = np.linalg.norm(run.observed[0] - truth, axis=1)
    assert np.all(error <= 1e-3 * np.maximum.accumulate(moved))


@pytest.mark.slow
def test_identity_explicit_and_implicit_solvers_agree():
    flow = af.GouldTanakaFlow(af.adam(1e-3), order=2, rate="exact")
    runs = [
        af.solve(flow, CHAIN.loss, CHAIN.params, 500, save_at=[100, 500], rtol=1e-8, solver=solver)
        for solver in ("auto", diffrax.Dopri8())
    ]
    for run in runs[1:]:
        np.testing.assert_allclose(run.params, runs[0].params, atol=1e-6)


@pytest.mark.slow
def test_identity_term_of_a_flow_is_solved_by_diffrax_alone():
    flow = af.GouldTanakaFlow(af.adam(1e-3))
    solution = diffrax.diffeqsolve(
        flow.term(CHAIN.loss),
        diffrax.Tsit5(),
        0.0,
        200.0,
        1.0,
        flow.initial_state(CHAIN.loss, CHAIN.params),
        stepsize_controller=diffrax.PIDController(rtol=1e-8, atol=1e-10),
    )
    run = af.solve(flow, CHAIN.loss, CHAIN.params, 200, save_at=[200], rtol=1e-8, solver=diffrax.Dopri8())
    np.testing.assert_allclose(flow.params(solution.ys)[-1], run.params[-1], atol=1e-7)


@pytest.mark.parametrize(
    ("record", "order"),
    [
        pytest.param(af.rmsprop(1.0, 0.99, weight_decay=0.1), 2, marks=pytest.mark.slow),
        pytest.param(af.kadam(2, 1.0, beta=0.99, weight_decay=0.1), 1, marks=pytest.mark.slow),
        pytest.param(af.kadam(3, 1.0, beta=0.99), 2, marks=pytest.mark.slow),
        pytest.param(af.adam(1.0, beta=0.99, bias_correction=False), 1, marks=pytest.mark.slow),
        pytest.param(af.Optimizer(1.0, (AdaFomStage(0.9),)), 1, marks=pytest.mark.slow),
    ],
    ids=["rmsprop", "2-adam", "3-adam", "adam without bias correction", "decay that depends on n"],
)
def test_order_of_the_flows_is_one_for_every_record(record, order):
    def flow(eta):
        return af.GouldTanakaFlow(eqx.tree_at(lambda r: r.learning_rate, record, jnp.asarray(eta)), order, "exact")

    problem, rates = af.problems.chain(4), [8e-3, 4e-3, 2e-3]
    result = af.measure_convergence(
        flow, problem.loss, problem.params, rates, time=0.4, rtol=1e-8, solver=diffrax.Tsit5()
    )
    assert 0.8 < result.order < 1.2, str(result)


@pytest.mark.slow
def test_identity_flow_of_adam_with_tiny_gamma_is_that_of_rmsprop():
    runs = [
        af.solve(
            af.GouldTanakaFlow(af.adam(1e-3, beta=0.99, gamma=gamma)),
            CHAIN.loss,
            CHAIN.params,
            200,
            save_at=[50, 200],
            rtol=1e-7,
            solver=solver,
        )
        for gamma, solver in ((1e-7, "auto"), (0.0, diffrax.Tsit5()))
    ]
    np.testing.assert_allclose(runs[0].params, runs[1].params, atol=1e-6)


def test_identity_snapshot_stands_beside_the_discrete_one():
    record = af.adamw(1e-4, beta=0.99, gamma=0.8, weight_decay=0.1)

    def look(s):
        return (s.direction, s.filters, s.gradient, s.loss)

    discrete = af.iterate(record, CHAIN.loss, CHAIN.params, 50, observe=look, save_at=[0, 50])
    continuous = af.solve(
        af.GouldTanakaFlow(record), CHAIN.loss, CHAIN.params, 50, observe=look, save_at=[0, 50], solver=diffrax.Tsit5()
    )
    for a, b in zip(jax.tree.leaves(discrete.observed), jax.tree.leaves(continuous.observed), strict=True):
        np.testing.assert_allclose(a[0], b[0], rtol=1e-12)
        np.testing.assert_allclose(a[1], b[1], rtol=0.02, atol=1e-3)
    flow = af.GouldTanakaFlow(record)
    state = flow.initial_state(CHAIN.loss, CHAIN.params)
    np.testing.assert_allclose(flow.direction(0, state, CHAIN.loss), jnp.sign(jax.grad(CHAIN.loss)(CHAIN.params)))


@pytest.mark.slow
def test_identity_coordinates_without_gradient_stay():
    def loss(p):
        return jnp.sum(p[:2] ** 2)

    for solver in ("auto", diffrax.Tsit5()):
        run = af.solve(
            af.GouldTanakaFlow(af.adam(1e-2, beta=0.9)), loss, jnp.array([1.0, -1.0, 0.5]), 400, solver=solver
        )
        assert run.outcome.name == "completed"
        np.testing.assert_array_equal(run.params[:, 2], 0.5)


@pytest.mark.parametrize(
    "solver",
    [pytest.param("auto", marks=pytest.mark.slow, id="implicit"), pytest.param(diffrax.Tsit5(), id="explicit")],
)
def test_identity_gradients_that_are_zero_at_the_start_alone(solver):
    def loss(p):
        return 0.5 * p[0] ** 2 + p[1] * (p[0] - 1) ** 2 + 0.5 * p[1] ** 2

    start = jnp.array([1.0, 0.0])
    run = af.solve(af.GouldTanakaFlow(af.adam(1e-3)), loss, start, 200, save_at=[200], solver=solver)
    discrete = af.iterate(af.adam(1e-3), loss, start, 200, save_at=[200])
    assert run.outcome.name == "completed"
    np.testing.assert_allclose(run.params, discrete.params, atol=2e-3)


class Scaled(eqx.Module):
    """A loss times a number, which may change without a new compilation."""

    loss: Any
    factor: jax.Array

    def __call__(self, params):
        return self.factor * self.loss(params)


@pytest.mark.slow
def test_identity_without_epsilon_the_scale_of_the_loss_does_not_matter():
    flow = af.GouldTanakaFlow(af.adam(1e-3, beta=0.95))
    losses = [Scaled(CHAIN.loss, jnp.asarray(factor)) for factor in (1.0, 1e-6, 1e12)]
    runs = [af.solve(flow, loss, CHAIN.params, 500, save_at=[500], rtol=1e-6, solver=KVAERNO) for loss in losses]
    for run in runs[1:]:
        np.testing.assert_allclose(run.params, runs[0].params, atol=1e-6)


def test_identity_pytrees_and_single_precision():
    params = {"w": jnp.ones((2, 2), jnp.float32), "b": (jnp.float32(0.3),)}

    def loss(p):
        return jnp.sum(p["w"] ** 2) + jnp.cosh(p["b"][0])

    record = af.adamw(1e-2, weight_decay=0.1)
    flow = af.GouldTanakaFlow(record, order=2)
    continuous = af.solve(flow, loss, params, 60, solver=diffrax.Tsit5())
    discrete = af.iterate(record, loss, params, 60)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((continuous.params, discrete.params)))
    assert af.compare(discrete, continuous).max_relative_error < 0.05


def root_loss(params):
    """Not finite, nor is its gradient, once a parameter is negative."""
    return jnp.sum(jnp.sqrt(params))


START = jnp.full(2, 1.05)


def test_identity_vmap_over_numbers_and_a_lane_that_fails():
    def run(eta):
        return af.solve(
            af.GouldTanakaFlow(af.signsgd(eta)), root_loss, START, 30, max_steps=500, solver=diffrax.Tsit5()
        )

    lanes = eqx.filter_vmap(run)(jnp.array([0.1, 0.01]))
    assert lanes.outcome.name.tolist() == ["not_finite", "completed"]
    assert np.isnan(lanes.params[0, 12:]).all()
    np.testing.assert_allclose(lanes.params[1, :, 0], 1.05 - 0.01 * np.arange(31), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["auto", diffrax.Tsit5()], ids=["auto", "explicit"])
def test_formula_derivative_of_the_final_loss_by_beta(solver):
    def final_loss(beta):
        flow = af.GouldTanakaFlow(af.adam(1e-2, beta=beta))
        run = af.solve(flow, CHAIN.loss, CHAIN.params, 50, save_at=[50], solver=solver, rtol=1e-9, max_steps=4096)
        return CHAIN.loss(run.params[-1])

    step = 1e-4
    difference = (final_loss(0.99 + step) - final_loss(0.99 - step)) / (2 * step)
    assert float(jax.grad(final_loss)(0.99)) == pytest.approx(float(difference), rel=1e-3)


@pytest.mark.parametrize(
    "solver",
    [
        diffrax.Tsit5(),
        diffrax.Heun(),
        pytest.param(diffrax.Kvaerno3(), marks=pytest.mark.slow),
        pytest.param(diffrax.KenCarp3(root_finder=KVAERNO.root_finder), marks=pytest.mark.slow),
        "auto",
    ],
    ids=["fsal", "plain", "implicit", "split", "auto"],
)
def test_identity_stats_count_every_gradient(solver):
    """What solve reports, by formula or by its own count, must equal the calls counted here."""
    calls = []

    @jax.custom_jvp
    def counted(x):
        return x

    @counted.defjvp
    def _(primals, tangents):
        # With an argument it is called for each gradient of a batch.
        jax.debug.callback(lambda _: calls.append(1), primals[0])
        return primals[0], tangents[0]

    def loss(p):
        return jnp.sum(counted(p) ** 2)

    flow = af.GouldTanakaFlow(af.adam(1e-2))
    run = af.solve(flow, loss, jnp.ones(3), 50, save_at=[10, 50], observe=lambda s: s.direction, solver=solver)
    jax.effects_barrier()
    assert len(calls) == run.stats.gradient_evaluations
    if isinstance(solver, diffrax.Kvaerno3 | diffrax.KenCarp3):
        assert run.stats.jacobian_evaluations == run.stats.accepted_steps + run.stats.rejected_steps


@pytest.mark.slow
@pytest.mark.parametrize("kind", [diffrax.KenCarp4, diffrax.Sil3])
def test_identity_solvers_that_split_the_field(kind):
    flow, options = af.GouldTanakaFlow(af.adam(1e-3, beta=0.95)), {"save_at": [50, 100], "atol": 1e-9}
    expected = af.solve(flow, CHAIN.loss, CHAIN.params, 100, rtol=1e-8, solver=KVAERNO, **options)
    found = af.solve(
        flow, CHAIN.loss, CHAIN.params, 100, rtol=1e-5, solver=kind(root_finder=KVAERNO.root_finder), **options
    )
    assert found.outcome.successful
    np.testing.assert_allclose(found.params, expected.params, atol=1e-4)
    assert found.stats.jacobian_evaluations > 0


def test_identity_a_program_is_compiled_once_for_all_numbers():
    traces = []

    def loss(params):
        traces.append(1)
        return jnp.sum(params**2)

    def run(rate, rtol):
        flow = af.GouldTanakaFlow(af.adam(rate))
        af.solve(flow, loss, jnp.ones(2), 20, rtol=rtol, save_at=[20], solver=diffrax.Tsit5())

    run(0.1, 1e-4)
    once = len(traces)
    run(0.2, 1e-5)
    assert len(traces) == once


def test_identity_constant_steps_of_euler_are_the_discrete_sign_descent():
    record = af.signsgd(0.01, weight_decay=0.5)
    flow = af.GouldTanakaFlow(record)
    euler = af.solve(flow, CHAIN.loss, CHAIN.params, 30, solver=diffrax.Euler(), step_size=1.0)
    np.testing.assert_allclose(euler.params, af.iterate(record, CHAIN.loss, CHAIN.params, 30).params, atol=1e-12)


def test_failure_explosion_keeps_what_came_before():
    class UphillStage(af.AbstractStage):
        def filters(self):
            return ()

        def direction(self, signal, averages, memory, iteration, ratio):
            return -signal.value

    flow = af.GouldTanakaFlow(af.Optimizer(0.1, (UphillStage(),)))
    options = dict(solver=diffrax.Tsit5(), on_failure="ignore")
    run = af.solve(flow, lambda p: jnp.sum(p**2) / 2, jnp.ones(2), 400, **options)
    assert run.outcome.name == "diverged"
    assert float(run.outcome.last_valid_iteration) == pytest.approx(10 * np.log(1e8), rel=0.1)
    assert 0 < len(run) < 401
    np.testing.assert_allclose(run.params[:, 0], np.exp(0.1 * run.iterations), rtol=1e-2)


@pytest.mark.parametrize(
    "step_size", [pytest.param(None, id="adaptive"), pytest.param(1.0, marks=pytest.mark.slow, id="constant")]
)
def test_failure_loss_that_stops_being_finite_ends_the_run(step_size):
    flow = af.GouldTanakaFlow(af.signsgd(0.1))
    run = af.solve(flow, root_loss, START, 30, step_size=step_size, solver=diffrax.Tsit5(), on_failure="ignore")
    assert run.outcome.name == "not_finite"
    assert (float(run.outcome.last_valid_iteration), len(run)) == (10.0, 11)
    assert np.isfinite(run.params).all()


def outcome_without_a_row(start):
    """Of a run whose loss ends before the first row that is saved; of the shapes of the run above."""
    flow, saved = af.GouldTanakaFlow(af.signsgd(0.1)), np.linspace(20, 30, 31)
    return af.solve(flow, root_loss, start, 30, save_at=saved, solver=diffrax.Tsit5()).outcome


def test_failure_where_no_row_was_saved_the_loss_was_finite_at_the_start():
    with pytest.warns(UserWarning, match="saved nothing, since it ended before the first iteration of its save_at, 20"):
        assert outcome_without_a_row(START).message.startswith("not finite: after iteration 0 the loss")


@pytest.mark.slow
def test_failure_a_lane_says_whether_the_loss_was_finite_at_its_start():
    later, at_once = jax.vmap(outcome_without_a_row)(jnp.stack([START, -START])).message
    assert later.startswith("not finite: after iteration 0 the loss")
    assert at_once.startswith("not finite: the loss or its gradient is not finite at the start")


@pytest.mark.parametrize("observe", [None, lambda s: s.loss], ids=["params", "observed"])
def test_failure_loss_that_is_nan_though_its_gradient_is_finite(observe):
    def loss(p):
        return jnp.sum(jnp.log(p)) + 0 * jnp.sum(p)

    options = dict(observe=observe, solver=diffrax.Tsit5(), on_failure="ignore")
    run = af.solve(af.GouldTanakaFlow(af.signsgd(0.1)), loss, START, 30, **options)
    assert (run.outcome.name, float(run.outcome.last_valid_iteration), len(run)) == ("not_finite", 10.0, 11)
    assert np.isfinite(run.params if observe is None else run.observed).all()


@pytest.mark.slow
@pytest.mark.parametrize("observe", [None, lambda snapshot: snapshot.params], ids=["plain", "observed"])
def test_failure_loss_that_is_nan_beyond_a_wall_which_its_gradient_does_not_show(observe):
    def loss(p):
        return jnp.where(p[0] < 0.5, jnp.nan, 0.0) + jnp.sum(p**2)

    def solve(start):
        flow = af.GouldTanakaFlow(af.adam(0.01))
        return af.solve(flow, loss, start, 100, solver="collocation", observe=observe, on_failure="ignore")

    run = solve(START)
    assert run.outcome.name == "not_finite"
    assert run.outcome.last_valid_iteration == len(run) - 1
    assert 50 < run.outcome.last_valid_iteration < 70
    assert np.isfinite(jax.vmap(loss)(run.params if observe is None else run.observed)).all()
    assert jax.jit(lambda start: solve(start).outcome.last_valid_iteration)(START) == run.outcome.last_valid_iteration


@pytest.mark.slow
def test_identity_lanes_by_a_number_that_only_the_loss_knows():
    # The initial state of this flow does not depend on the loss.
    flow = af.MemorylessFlow(af.adam(1e-3, beta=0.9, gamma=0.5))

    def final(scale):
        return af.solve(flow, lambda p: scale * jnp.sum(p**2), jnp.ones(2), 10, save_at=[10]).params[-1]

    lanes = jax.vmap(final)(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(lanes, [final(1.0), final(2.0)], rtol=1e-10)


@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.parametrize("solver", [diffrax.Tsit5(), KVAERNO], ids=["explicit", "implicit"])
def test_formula_derivative_by_a_number_that_only_the_loss_knows(solver, progress):
    """Of gradient flow θ' = −s θ, the end is e^(−T s): neither the start nor its memory shows that s is traced."""

    def final(scale):
        flow = af.GouldTanakaFlow(af.sgd(0.1))
        options = {"save_at": [20], "rtol": 1e-7, "solver": solver, "progress": progress}
        return af.solve(flow, lambda p: scale * p**2 / 2, jnp.ones(()), 20, **options).params[0]

    np.testing.assert_allclose([final(0.5), jax.grad(final)(0.5)], [np.exp(-1.0), -2.0 * np.exp(-1.0)], rtol=1e-5)
    with pytest.raises(TypeError, match="solve has reverse-mode derivatives alone"):
        jax.jvp(final, (0.5,), (1.0,))


def test_formula_derivative_by_a_number_that_only_the_observer_or_a_users_flow_knows():
    def observed(scale):
        flow, options = af.GouldTanakaFlow(af.sgd(0.1)), {"save_at": [20], "solver": diffrax.Tsit5(), "rtol": 1e-9}
        run = af.solve(flow, lambda p: p**2 / 4, jnp.ones(()), 20, observe=lambda now: scale * now.params, **options)
        return run.observed[0]

    def slowed(scale):
        class Slowed(af.GouldTanakaFlow):
            def vector_field(self, time, state, loss):
                return jax.tree.map(lambda rate: scale * rate, super().vector_field(time, state, loss))

        options = {"save_at": [20], "solver": diffrax.Tsit5(), "rtol": 1e-9}
        return af.solve(Slowed(af.sgd(0.1)), lambda p: p**2 / 2, jnp.ones(()), 20, **options).params[0]

    assert float(jax.grad(observed)(0.5)) == pytest.approx(np.exp(-1.0), rel=1e-6)
    assert float(jax.grad(slowed)(0.5)) == pytest.approx(-2 * np.exp(-1.0), rel=1e-6)


@pytest.mark.slow
def test_failure_step_limit_keeps_what_came_before():
    flow = af.GouldTanakaFlow(af.adam(1e-3, beta=0.95))
    run = af.solve(flow, CHAIN.loss, CHAIN.params, 2000, max_steps=10, on_failure="ignore")
    assert run.outcome.name == "max_steps_reached"
    assert 0 < len(run) < 2001
    assert np.isfinite(run.params).all()
    assert "max_steps was used up at iteration" in run.outcome.message


def test_failure_a_solution_that_becomes_infinite_is_told_as_diverged():
    # dθ/dn = .1 θ³ from 1 is infinite at n = 5; steps become too small long before θ exceeds any bound.
    options = dict(save_at=[0, 4, 50], on_failure="ignore")
    run = af.solve(af.GouldTanakaFlow(af.sgd(0.1)), lambda p: -jnp.sum(p**4) / 4, jnp.ones(2), 50, **options)
    assert run.outcome.name == "diverged"
    assert 4.9 < float(run.outcome.last_valid_iteration) < 5.1


def test_failure_without_any_step_the_start_is_kept():
    flow = af.GouldTanakaFlow(af.adam(1e-3))
    options = dict(max_steps=1, rtol=1e-12, solver=diffrax.Tsit5(), on_failure="ignore")
    run = af.solve(flow, CHAIN.loss, CHAIN.params, 50, **options)
    assert (run.outcome.name, run.stats.accepted_steps) == ("max_steps_reached", 0)
    np.testing.assert_array_equal(run.params, CHAIN.params[None])


def test_failure_decay_zero_as_an_array():
    with pytest.raises(ValueError, match="a filter of AdamStage has decay 0, so it forgets at once"):
        af.GouldTanakaFlow(af.Optimizer(1e-3, (af.AdamStage(beta=0.99, gamma=0.0),)))


def test_failure_flow_of_a_stage_that_is_no_average():
    counting, adan = CountingStage(), AdanStage(0.9, 0.9, 0.9, 0.1)
    # Differences of a direction, of which no Hessian-vector product tells how it changes.
    for stages in ((counting,), (af.AdamStage(beta=0.99, gamma=0.9), adan)):
        name = type(stages[-1]).__name__
        with pytest.raises(TypeError, match=f"GouldTanakaFlow needs stages made of moving averages, but {name}"):
            af.GouldTanakaFlow(af.Optimizer(0.1, stages))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"save_at": [0, 10.5]}, "save_at must lie in [0, steps=10], got 10.5"),
        ({"rtol": 1e-15}, "rtol must lie in [1.8e-15, 1)"),
        ({"rtol": 1e-8, "params": jnp.ones(3, jnp.float32)}, "enable float64"),
        ({"rtol": [1e-4, 1e-5]}, "rtol must be a single number, got [0.0001, 1e-05], a list; make one call for each"),
        ({"rtol": "1e-4"}, "rtol must be a real number, got '1e-4', a str"),
        ({"atol": np.array([])}, "atol must be a single number, got an array of shape (0,)"),
        ({"step_size": {}}, "step_size must be a real number, got {}, a dict"),
        ({"atol": -1.0}, "atol must lie in [0, 1), got -1.0"),
        ({"max_steps": 0}, "max_steps must be a whole number of at least 1, got 0"),
        ({"step_size": 0.0}, "step_size must lie in (0, 10], got 0.0"),
        ({"solver": "fast"}, "\"collocation\" or a diffrax solver such as diffrax.Tsit5(), got 'fast'"),
        ({"solver": diffrax.Tsit5}, "Tsit5'>; call it: Tsit5()"),
        ({"solver": diffrax.Euler()}, "Euler estimates no error, so it needs a constant step_size="),
        ({"params": jnp.arange(3)}, "params must be float32 or float64, got int64"),
        ({"params": jnp.zeros((0,))}, "params has no entries; give at least one number to optimize"),
        ({"loss": lambda p: p}, "the loss must return a real scalar"),
        ({"loss": lambda p: jnp.sum(p) * jnp.nan}, "the loss or its gradient is not finite at the start"),
    ],
)
def test_failure_says_what_is_wrong(change, words, unchecked):
    given = {"loss": lambda p: jnp.sum(p**2), "params": jnp.ones(3), "steps": 10} | change
    with pytest.raises(ValueError, match=re.escape(words)):
        af.solve(af.GouldTanakaFlow(af.adam(0.1)), **given)


def test_failure_params_without_entries_in_a_discrete_run():
    with pytest.raises(ValueError, match="params has no entries; give at least one number to optimize"):
        af.iterate(af.adam(0.1), jnp.sum, {"weights": jnp.zeros((0, 2))}, 10)


def test_failure_orders_and_rates_that_do_not_exist(unchecked):
    with pytest.raises(ValueError, match="order must be 1 or 2"):
        af.GouldTanakaFlow(af.adam(0.1), order=3)  # pyright: ignore
    with pytest.raises(ValueError, match="rate must be one of 'gould_tanaka', 'exact', got 'fast'"):
        af.GouldTanakaFlow(af.adam(0.1), rate="fast")  # pyright: ignore


def test_failure_saved_iterations_that_single_precision_does_not_tell_apart():
    with jax.enable_x64(False):
        params = jnp.ones(2, jnp.float32)
        flow = af.GouldTanakaFlow(af.sgd(1e-7), order=1)
        close = np.array([2**24, 2**24 + 1])
        with pytest.raises(ValueError, match=r"tells apart, .* got 16777216.0 and 16777217.0; save fewer, or take"):
            af.solve(flow, lambda p: jnp.sum(p**2) / 2, params, 20_000_000, save_at=close)
        # Alone it stays whole, and the time at which the parameters are taken is one iteration off at the most.
        run = af.solve(flow, lambda p: jnp.sum(p**2) / 2, params, 20_000_000, save_at=close[1:])
        assert int(run.iterations[0]) == 2**24 + 1
        np.testing.assert_allclose(run.params[0], np.exp(-1e-7 * close[1]), rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "transform"),
    [
        *(("iterate", transform) for transform in ("vmap", "grad", "jvp")),
        ("solve", "vmap"),
        pytest.param("solve", "grad", marks=pytest.mark.slow),
        pytest.param("collocation", "vmap", marks=pytest.mark.slow),
        pytest.param("collocation", "grad", marks=pytest.mark.slow),
    ],
)
def test_identity_a_healthy_run_makes_no_nan(kind, transform):
    record = af.adam(0.05, epsilon=0.0 if kind == "iterate" else 1e-3)

    def loss(p):
        return jnp.sum(p[:2] ** 2) / 2 + 0 * p[2]

    def end(p):
        if kind == "iterate":
            return af.iterate(record, loss, p, 20).params[-1]
        solver = diffrax.Tsit5() if kind == "solve" else "auto"
        return af.solve(af.GouldTanakaFlow(record), loss, p, 20, save_at=[0, 20], solver=solver).params[-1]

    params = jnp.array([1.0, -2.0, 3.0])
    with jax.debug_nans(True):
        if transform == "vmap":
            np.testing.assert_allclose(jax.vmap(end)(params[None])[0], end(params), rtol=1e-6)
        elif transform == "grad":
            assert np.all(np.isfinite(jax.grad(lambda p: loss(end(p)))(params)))
        else:
            assert np.all(np.isfinite(jax.jvp(end, (params,), (jnp.ones(3),))[1]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"flow": af.adam(0.1)},
            "flow must be a flow of this optimizer, such as af.GouldTanakaFlow(optimizer), or call af.it",
        ),
        (
            {"flow": "gould_tanaka"},
            "flow must be a flow such as af.GouldTanakaFlow(optimizer), got 'gould_tanaka', a str",
        ),
        ({"start": "later"}, 'start must be "auto", None, the number of iterations that the optimizer makes first, or'),
        (
            {"start": True},
            "with iterates = af.iterate(..., steps=n₀) give params, memory = iterates.final_state, got True",
        ),
        ({"start": -1}, "start must be a whole number of at least 0, got -1"),
        ({"start": 10}, "start must lie before the last iteration, steps=10, got 10"),
        (
            {"start": 5, "save_at": [0, 2.5, 10]},
            "save_at must hold whole iterations before start=5, which the optimizer makes, got 2.5",
        ),
        ({"start": (2.5, None)}, "the iteration of start must be a whole number of at least 0, got 2.5"),
        ({"start": (2, "x")}, "the memory of start must be an OptimizerState, (n₀, memory): with"),
        ({"start": (2, af.sgd(0.1).initial_state(jnp.ones(2)))}, "the memory of start must be that of 'adam' with"),
        ({"start": (2, af.adam(0.1).initial_state(jnp.ones(3)))}, "the memory of start must be that of 'adam' with"),
        ({"loss": lambda p: (jnp.sum(p), p)}, "the loss must return a real scalar, got a tuple; for (value, aux) give"),
        ({"loss": None}, "loss must be a function of the parameters that returns a real scalar, got NoneType"),
        ({"observe": "loss"}, "observe must be a function of a Snapshot, got str"),
        ({"save_at": ["1"]}, "save_at must be a sequence of iterations, as numbers, got ['1']"),
    ],
)
def test_failure_wrong_kinds_of_objects(change, words, unchecked):
    given = {
        "flow": af.GouldTanakaFlow(af.adam(0.1)),
        "loss": lambda p: jnp.sum(p**2),
        "params": jnp.ones(2),
        "steps": 10,
    }
    with pytest.raises((TypeError, ValueError), match=re.escape(words)):
        af.solve(**given | change)


#: Forward-mode derivatives of a function of parameters, with jit outside and inside of them.
FORWARD = {
    "jvp": lambda f: jax.jvp(f, (START,), (START,)),
    "jacfwd": lambda f: jax.jacfwd(f)(START),
    "jit of jvp": lambda f: jax.jit(lambda p: jax.jvp(f, (p,), (p,)))(START),
    "jvp of jit": lambda f: jax.jvp(jax.jit(f), (START,), (START,)),
}


@pytest.mark.parametrize("transform", FORWARD.values(), ids=FORWARD)
@pytest.mark.parametrize("solver", [diffrax.Tsit5(), "auto"], ids=["diffrax", "collocation"])
def test_failure_forward_mode(transform, solver):
    def end(p):
        flow = af.GouldTanakaFlow(af.adam(0.05, epsilon=1e-3))
        return af.solve(flow, lambda q: jnp.sum(q**2), p, 5, save_at=[5], solver=solver).params[-1]

    with pytest.raises(TypeError, match=r"solve has reverse-mode derivatives alone .* take jax.jacrev, differentiate"):
        transform(end)


def test_formula_both_tolerances_of_flows_with_a_finite_edge_are_a_quarter():
    """What "auto" does is what its solver does by itself at a quarter of rtol and of atol."""
    flow, problem = af.GouldTanakaFlow(af.adam(1e-2), order=2), af.problems.quadratic([0.5, 2.0])
    for atol in (1e-6, None):
        quarter = {"rtol": 2.5e-5, "atol": 2.5e-7 if atol is None else atol / 4}
        auto = af.solve(flow, problem.loss, problem.params, 60, rtol=1e-4, atol=atol)
        by_hand = af.solve(flow, problem.loss, problem.params, 60, solver=diffrax.Dopri8(), **quarter)
        np.testing.assert_allclose(auto.params, by_hand.params, rtol=1e-12)
        assert auto.stats.accepted_steps == by_hand.stats.accepted_steps


@pytest.mark.parametrize("solver", ["collocation", diffrax.Tsit5()], ids=["collocation", "Tsit5"])
def test_identity_more_steps_than_programs_count_to_are_no_limit(solver):
    """max_steps = 2⁶³, for "as many as it takes"."""
    problem = af.problems.chain(3)
    flow = af.GouldTanakaFlow(af.adam(1e-3))
    runs = [
        af.solve(flow, problem.loss, problem.params, 10, solver=solver, max_steps=most).params for most in (1000, 2**63)
    ]
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-12)
