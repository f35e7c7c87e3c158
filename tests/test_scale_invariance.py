"""Scale-invariant weights: the laws of their norm, reports on runs, AdamW as 2-Adam, and bad input."""

import dataclasses

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import adamflow as af
from adamflow.optimizers import PerTensorRMSpropStage
from conftest import SEED

GAMMAS = st.floats(0.0, 0.995)
QUOTIENT = af.problems.rayleigh(dimension=12)


def adamw(gamma=0.9, **options):
    return af.adamw(1e-2, beta=0.99, gamma=gamma, **({"weight_decay": 0.5, "second_moment": "per_tensor"} | options))


@pytest.fixture(scope="module")
def run():
    """A noisy run with one v per tensor, and its report."""
    observe = af.analysis.invariance_observer(QUOTIENT.scale_invariant, vectors=True)
    trajectory = af.iterate(
        adamw(), QUOTIENT.loss, QUOTIENT.params, 60, observe=observe, batches=QUOTIENT.batches(1, seed=SEED)
    )
    return trajectory, af.analysis.scale_invariance_report(trajectory, adamw())


# --- formula ---------------------------------------------------------------------------------------------------------


@given(gamma=st.floats(0.01, 0.999))
def test_formula_norm_factors(gamma):
    factor = af.analysis.norm_factor
    assert factor(gamma) == pytest.approx((1 + gamma) / (1 - gamma), rel=1e-12)
    for rate, lag in (("gould_tanaka", gamma / (1 - gamma)), ("exact", -1 / np.log(gamma))):
        assert factor(gamma, 1, rate) == pytest.approx(2 * lag, rel=1e-9)
        assert factor(gamma, 2, rate) == pytest.approx(2 * lag + 1, rel=1e-9)


def test_formula_norm_factors_without_momentum():
    assert [float(af.analysis.norm_factor(0.0, order)) for order in (0, 1, 2)] == [1.0, 0.0, 1.0]


@given(
    decay=st.sampled_from([0.0, 1e-9, 0.1, 5.0]),
    factor=st.floats(0.0, 20.0),
    gaps=st.lists(st.floats(1.0, 900.0), min_size=1, max_size=5),
)
def test_formula_law_of_the_norm_for_a_constant_update(decay, factor, gaps):
    n, eta, update, start = np.concatenate([[3.0], 3.0 + np.cumsum(gaps)]), 1e-2, 2.5, 0.7
    law = af.analysis.square_norm_law(n, np.full(n.size, update), start, eta, decay, factor)
    t = eta * (n - 3.0)
    gathered = t if decay == 0 else -np.expm1(-2 * decay * t) / (2 * decay)
    np.testing.assert_allclose(law, start * np.exp(-2 * decay * t) + factor * eta * update * gathered, rtol=1e-9)


def test_formula_law_of_the_norm_for_an_update_that_grows():
    """∫ e^{−r(h−s)} s ds over [0, h] in closed form, in lanes, and the same as a jax program."""
    n, eta, decay = np.array([0.0, 40.0, 100.0]), 1e-2, 0.5
    rate, update = 2 * eta * decay, np.stack([n, 2 * n])
    expected = eta**2 * (n / rate - -np.expm1(-rate * n) / rate**2)
    law = af.analysis.square_norm_law(n, update, np.zeros(2), eta, decay)
    np.testing.assert_allclose(law, np.stack([expected, 2 * expected]), rtol=1e-12)
    compiled = jax.jit(af.analysis.square_norm_law)(n, jnp.asarray(update), np.zeros(2), eta, decay)
    np.testing.assert_allclose(compiled, law, rtol=1e-12)


@given(gamma=GAMMAS, eta=st.floats(1e-4, 1e-1), decay=st.floats(0.01, 3.0), size=st.integers(1, 10**6))
def test_identity_rotation_is_the_update_of_noise_over_the_equilibrium_norm(gamma, eta, decay, size):
    update = np.sqrt(size * (1 - gamma) / (1 + gamma))
    turn = eta * update / af.analysis.equilibrium_norm(size, eta, decay)
    assert turn == pytest.approx(af.analysis.rotation_rate(eta, decay, gamma), rel=1e-9)


def test_formula_equilibria_whose_squares_no_float_holds():
    assert af.analysis.equilibrium_norm(1e300, 2.0, 1e-300) == pytest.approx(1e300)
    assert af.analysis.rotation_rate(2e300, 1e300, 0.0) == pytest.approx(2e300)


# --- identity --------------------------------------------------------------------------------------------------------


def simulate(gamma, beta, eta, decay, slow, steps=60, dimension=5):
    """AdamW with one v per tensor in plain numpy, on gradients at a right angle to W: ‖W‖², ‖u‖² and m/u."""
    generator = np.random.default_rng(SEED)
    weights, m, v, trend = generator.normal(size=dimension), 0.0, 0.0, generator.normal(size=dimension)
    rows = []
    for n in range(steps):
        gradient = slow * trend + (1 - slow) * generator.normal(size=dimension)
        gradient -= weights * (weights @ gradient) / (weights @ weights)
        gradient /= np.linalg.norm(weights)
        m, v = gamma * m + (1 - gamma) * gradient, beta * v + (1 - beta) * np.mean(gradient**2)
        divisor = np.sqrt(v / (1 - beta ** (n + 1))) * (1 - gamma ** (n + 1))
        rows.append((weights @ weights, np.sum((m / divisor) ** 2), divisor))
        weights = weights - eta * (decay * weights + m / divisor)
    return np.array(rows).T


@given(
    gamma=GAMMAS,
    beta=st.floats(0.3, 0.9999),
    eta=st.floats(1e-4, 0.05),
    decay=st.floats(0.0, 2.0),
    slow=st.floats(0.0, 1.0),
)
def test_identity_recursion_is_exact_for_any_gradients(gamma, beta, eta, decay, slow):
    norm, update, divisor = simulate(gamma, beta, eta, decay, slow)
    recursion = af.analysis.square_norm_recursion(update, divisor, norm[0], eta, decay, gamma)
    np.testing.assert_allclose(recursion, norm, rtol=1e-9)


def test_identity_recursion_in_numpy_and_compiled_in_lanes():
    norm, update, divisor = simulate(0.8, 0.99, 1e-2, 0.1, 0.5)
    compiled = jax.jit(jax.vmap(af.analysis.square_norm_recursion, (0, 0, 0, None, None, None)))
    rows = compiled(*(jnp.stack([x, x]) for x in (update, divisor, norm[0])), 1e-2, 0.1, 0.8)
    np.testing.assert_allclose(rows, np.stack([norm, norm]), rtol=1e-10)


@pytest.mark.parametrize(("slow", "gamma"), [(1.0, 0.5), (1.0, 0.9), (0.0, 0.5), (0.0, 0.9)])
def test_identity_momentum_multiplies_the_growth_of_the_norm(slow, gamma):
    """Slow or uncorrelated gradients: the factor is (1+γ)/(1−γ) in both, as the proof says for all."""
    norm, update, _ = simulate(gamma, 0.9999, 1e-5, 0.0, slow, steps=4000, dimension=40)
    growth = (norm[-1] - norm[200]) / (1e-5**2 * update[200:-1].sum())
    assert growth == pytest.approx(af.analysis.norm_factor(gamma), rel=0.06)


def test_identity_report_of_a_run(run):
    trajectory, report = run
    row = trajectory.observed[""]
    assert dict(report.sizes) == {"tensor": 1, "iteration": 61, "gradient_iteration": 61}
    np.testing.assert_allclose(report.law_exact, report.square_norm, rtol=1e-10)
    assert float(report.orthogonality.max()) < 1e-14
    assert float(report.spread.max()) == 0.0
    assert report.factor == pytest.approx(19.0)
    assert float(report.measured_factor[0]) == pytest.approx(
        float((report.square_norm - report.square_norm[:, 0] * np.exp(-0.01 * 60))[0, -1])
        / float((report.law_paper - report.square_norm[:, 0] * np.exp(-0.01 * 60))[0, -1])
    )
    assert np.isnan(report.cosine.values[0][np.triu_indices(61, 1)]).all()
    later, earlier = 30, 12
    expected = row.weights[later] @ row.gradient[earlier]
    expected /= jnp.linalg.norm(row.weights[later]) * jnp.linalg.norm(row.gradient[earlier])
    assert float(report.cosine[0, later, earlier]) == pytest.approx(float(expected), rel=1e-9)
    assert "orthogonal to its gradient up to" in report.summary
    assert "The laws' K: 1 and 19." in report.summary


def test_identity_report_counts_good_rows_only(run):
    trajectory, _ = run
    failed = dataclasses.replace(trajectory, outcome=af.Outcome(jnp.asarray(2), jnp.asarray(40.0)))
    assert af.analysis.scale_invariance_report(failed, adamw()).sizes["iteration"] == 41


def test_identity_rotation_in_the_report_is_the_angle_between_iterates(run):
    trajectory, report = run
    rows = np.asarray(trajectory.observed[""].weights)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    angle = 2 * np.arcsin(np.linalg.norm(np.diff(rows, axis=0), axis=1) / 2)
    np.testing.assert_allclose(report.rotation.values[0, :-1], angle, rtol=0.03)


def test_formula_distance_of_directions():
    turned = np.array([0.0, 1e-9, 0.5])
    rows = 3 * np.stack([np.cos(turned), np.sin(turned)], axis=1)
    still = np.tile([2.0, 0.0], (3, 1))
    reference, other = (trajectory_of(table) for table in (rows, still))
    distance = af.analysis.direction_distance(reference, other, [""])
    np.testing.assert_allclose(distance.angle[0], turned, rtol=1e-6)
    np.testing.assert_allclose(distance.moved[0], turned, rtol=1e-6)
    np.testing.assert_allclose(distance.relative[0], [0.0, 1.0, 1.0], rtol=1e-6)


def trajectory_of(rows):
    zero = jnp.zeros((), int)
    stats = af.Stats(zero, zero, zero, zero, None)
    outcome = af.Outcome(zero, jnp.asarray(len(rows) - 1.0))
    rows = jnp.asarray(rows)
    return af.Trajectory(jnp.arange(float(len(rows))), rows, None, rows[0], None, outcome, stats, "run")


@given(gamma=GAMMAS, mean_square=st.floats(1e-6, 10.0))
def test_formula_equivalent_two_adam(gamma, mean_square):
    eta, decay, factor = 1e-2, 0.5, (1 + gamma) / (1 - gamma)
    corrected = af.analysis.equivalent_two_adam(adamw(gamma), mean_square=mean_square)
    first, second = corrected.stages
    assert first == adamw(gamma).stages[0]
    assert float(corrected.learning_rate) == pytest.approx(np.sqrt(2 * eta * decay / factor))
    assert float(second.beta) == pytest.approx(np.exp(-2 * eta * decay))
    # At the first step v₂ is its start: the step on the sphere is that of AdamW divided by the norm of W(0).
    step = float(corrected.learning_rate) / np.sqrt(float(second.start))
    assert step == pytest.approx(eta / np.sqrt(mean_square) * np.sqrt(2 * eta * decay / -np.expm1(-2 * eta * decay)))
    plain = af.analysis.equivalent_two_adam(adamw(gamma), momentum_correction=False)
    assert float(plain.learning_rate) == pytest.approx(np.sqrt(2 * eta * decay))
    assert plain.stages[1].start is None


def test_formula_second_moment_with_a_start():
    stage = PerTensorRMSpropStage(0.9, start=4.0)
    record, v = af.Optimizer(0.1, (stage,)), 4.0
    state = record.initial_state(jnp.zeros(2))
    for n, x in enumerate(([1.0, 3.0], [0.0, 2.0])):
        v = 0.9 * v + 0.1 * np.mean(np.square(x))
        direction, state = record.update(jnp.array(x), state, n)
        np.testing.assert_allclose(direction, np.array(x) / np.sqrt(v), rtol=1e-12)


def test_identity_spheres_keep_the_norm_and_leave_the_rest_to_its_optimizer():
    problem = af.problems.rayleigh(dimension=4)

    def loss(params):
        return problem.loss(params["w"]) + jnp.sum(params["free"])

    params = {"w": problem.params, "free": jnp.array([1.0, -2.0])}
    two_adam = af.analysis.equivalent_two_adam(adamw(0.5))
    run = af.analysis.iterate_on_spheres(
        two_adam, loss, params, 20, ["['w']"], other_optimizer=af.signsgd(0.1), save_every=5
    )
    np.testing.assert_array_equal(run.iterations, [0, 5, 10, 15, 20])
    np.testing.assert_allclose(run.params["free"], params["free"] - 0.1 * np.array(run.iterations)[:, None], atol=1e-12)
    np.testing.assert_allclose(np.mean(np.square(run.params["w"]), axis=1), 1.0, rtol=1e-12)
    assert run.outcome.successful
    assert problem.loss(run.params["w"][-1]) < problem.loss(problem.params)


@pytest.mark.slow
@pytest.mark.parametrize("second_moment", ["elementwise", "per_tensor"])
def test_identity_two_adam_follows_adamw_only_with_the_factor(second_moment):
    problem = af.problems.rayleigh(dimension=50)
    optimizer, mean_square = adamw(second_moment=second_moment), 1e-2 / (2 * 0.5)
    start, batches = problem.params * np.sqrt(50 * mean_square), problem.batches(1, seed=SEED)
    reference = af.iterate(optimizer, problem.loss, start, 600, batches=batches)
    ends = []
    for correction in (True, False):
        two_adam = af.analysis.equivalent_two_adam(optimizer, mean_square=mean_square, momentum_correction=correction)
        run = af.analysis.iterate_on_spheres(
            two_adam, problem.loss, start, 600, [""], other_optimizer=optimizer, batches=batches
        )
        ends.append(float(af.analysis.direction_distance(reference, run, [""]).relative[0, -1]))
    print(ends)
    assert ends[0] < 0.15
    assert ends[1] > 4 * ends[0]


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [0.5, 0.9])
def test_formula_quotient_on_200_dimensions_has_the_corrected_norm(gamma):
    """One v per tensor: the corrected law within 1%, that of [GT] further off; elementwise v and no noise: neither."""
    problem, errors = af.problems.rayleigh(dimension=200), {}
    observe = af.analysis.invariance_observer(problem.scale_invariant)
    for name, second_moment, noise in (
        ("smooth", "per_tensor", False),
        ("noisy", "per_tensor", True),
        ("entry", "elementwise", False),
    ):
        optimizer = af.adamw(1e-3, beta=0.999, gamma=gamma, weight_decay=0.1, second_moment=second_moment)
        batches = problem.batches(1, seed=SEED) if noise else None
        run = af.iterate(optimizer, problem.loss, problem.params, 4000, observe=observe, batches=batches)
        last = af.analysis.scale_invariance_report(run, optimizer).isel(iteration=-1, tensor=0)
        errors[name] = [float(last[law] / last.square_norm) - 1 for law in ("law_corrected", "law_paper")]
    for name in ("smooth", "noisy"):
        assert abs(errors[name][0]) < 0.01
        assert errors[name][1] < -0.03
    assert abs(errors["entry"][0]) > 0.3


@pytest.mark.slow
@pytest.mark.parametrize(("order", "rate"), [(1, "gould_tanaka"), (2, "gould_tanaka"), (1, "exact")])
def test_formula_flows_have_their_own_factor(order, rate):
    problem = af.problems.rayleigh(dimension=30)
    observe = af.analysis.invariance_observer(problem.scale_invariant)
    flow = af.GouldTanakaFlow(
        af.adamw(1e-3, beta=0.999, gamma=0.8, weight_decay=0.1, second_moment="per_tensor"), order, rate
    )
    options = dict(observe=observe, rtol=1e-8, solver=diffrax.Tsit5())
    run = af.solve(flow, problem.loss, 3 * problem.params, 1000, **options)
    report = af.analysis.scale_invariance_report(run, flow)
    assert float(report.measured_factor[0]) == pytest.approx(report.factor, rel=0.01)
    assert "law_exact" not in report


# --- failure ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: af.analysis.norm_factor(1.0), r"gamma must lie in \[0, 1\), got 1.0"),
        (lambda: af.analysis.norm_factor(0.9, 3), r"order must be 0 \(the iterates\), 1 or 2 .*got 3"),
        (lambda: af.analysis.norm_factor(0.9, 1, "other"), "rate must be one of 'gould_tanaka', 'exact', got 'other'"),
        (lambda: af.analysis.rotation_rate(0.0, 0.1, 0.9), r"learning_rate must lie in \(0, inf\), got 0.0"),
        (lambda: af.analysis.equilibrium_norm(5, 0.1, 0.0), "weight_decay .*without decay there is no equilibrium"),
        (lambda: af.analysis.equivalent_two_adam(af.adam(0.1)), "weight_decay .*the norm grows without end"),
        (lambda: af.analysis.equivalent_two_adam(adamw(epsilon=1e-8)), "epsilon must lie in .*the norm of the weights"),
        (lambda: af.analysis.equivalent_two_adam(af.kadam(2, 0.1)), "'2-adam' has another form"),
        (lambda: af.problems.rayleigh(1), "dimension must be a whole number of at least 2, got 1"),
        (lambda: af.problems.rayleigh(3, spread=-1.0), r"spread must lie in \[0, inf\), got -1.0"),
        (
            lambda: PerTensorRMSpropStage(0.9, start=-1.0),
            r"start must lie in \[0, inf\), got -1.0; it is a mean square",
        ),
    ],
)
def test_failure_bad_numbers_are_named(make, words, unchecked):
    with pytest.raises(ValueError, match=words):
        make()


def test_failure_report_of_other_runs_and_records(run, unchecked):
    trajectory, _ = run
    report = af.analysis.scale_invariance_report
    bare = dataclasses.replace(trajectory, observed=jnp.zeros(61))
    with pytest.raises(ValueError, match=r"observe=af.analysis.invariance_observer\(problem.scale_invariant\)"):
        report(bare, adamw())
    with pytest.raises(ValueError, match="'2-adam' has another form, or is a batch"):
        report(trajectory, af.kadam(2, 0.1))
    with pytest.raises(
        TypeError, match="model must be the optimizer that ran, or its GouldTanakaFlow, got InterpolatingFlow"
    ):
        report(trajectory, af.InterpolatingFlow(adamw()))
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), trajectory)
    with pytest.raises(ValueError, match="takes one run, got a batch"):
        report(batch, adamw())
    early = dataclasses.replace(trajectory, outcome=af.Outcome(jnp.asarray(2), jnp.asarray(0.0)))
    with pytest.raises(ValueError, match="saved 1 good iterations, but laws need two"):
        report(early, adamw())


def test_failure_unknown_names(run):
    trajectory, _ = run
    rows = dataclasses.replace(trajectory, params=trajectory.observed[""].weights, observed=None)
    with pytest.raises(ValueError, match=r"scale_invariant must name leaves .* got 'w'; the names of a problem"):
        af.analysis.direction_distance(rows, rows, ["w"])
    with pytest.raises(ValueError, match=r"scale_invariant must name leaves"):
        af.analysis.direction_distance(rows, rows, [])
    with pytest.raises(ValueError, match="saved at different iterations"):
        af.analysis.direction_distance(rows, dataclasses.replace(rows, iterations=rows.iterations + 1), [""])
    with pytest.raises(ValueError, match="must be one run, outside of jit, that holds its parameters"):
        af.analysis.direction_distance(trajectory, rows, [""])
    with pytest.raises(ValueError, match="save_every must divide steps=5, got 2"):
        af.analysis.iterate_on_spheres(
            adamw(), QUOTIENT.loss, QUOTIENT.params, 5, [""], other_optimizer=adamw(), save_every=2
        )


@pytest.mark.slow
def test_failure_of_a_run_on_spheres_is_said():
    def loss(w):
        return -w[0] / jnp.sqrt(jnp.sum(w**2)) * jnp.where(w[0] > 0.5, jnp.nan, 1.0)

    record = af.Optimizer(0.2, adamw(0.5).stages)
    given = record, loss, jnp.array([-1.0, 1.0]), 30, [""]
    with pytest.warns(af.IncompleteRunWarning, match="fixed norms' did not complete; not finite: after iteration"):
        run = af.analysis.iterate_on_spheres(*given, other_optimizer=record)
    assert run.outcome.name == "not_finite"
    assert 0 < float(run.outcome.last_valid_iteration) < 30
