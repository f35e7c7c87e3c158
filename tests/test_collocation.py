"""Collocation: its integrals, its agreement with tight solves of every kind of record, its cost, and bad input."""

import logging

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

import adamflow as af
from adamflow.optimizers import AdaBeliefStage, AdaFomStage
from adamflow.runs.collocation import batched_loop, is_preferable, low_rank_hessian, takes_whole_hessian
from adamflow.runs.collocation.batched_loop import compacting_while_loop
from adamflow.runs.collocation.hessian import finite_difference_hessian
from adamflow.runs.collocation.nodes import lagrange_weights, nodes
from adamflow.runs.collocation.step_integrator import FlatState, make_step_integrator
from conftest import KVAERNO, SEED

CHAIN = af.problems.chain(10)
TOLERANCE = 3e-4


def apart(flow, problem, steps, *, start=None, params=None, rtol=TOLERANCE):
    """A run by collocation, and its largest distance from a tight solve, in units of the distance moved."""
    first = 0 if start is None else start[0]
    params = problem.params if params is None else params
    options = {"save_at": np.linspace(first, steps, 21), "start": start}
    small = sum(leaf.size for leaf in jax.tree.leaves(params)) <= 200
    solver = KVAERNO if small else diffrax.Tsit5()
    reference = af.solve(flow, problem.loss, params, steps, rtol=1e-8, solver=solver, **options)
    run = af.solve(flow, problem.loss, params, steps, rtol=rtol, solver="collocation", **options)
    assert run.outcome.successful
    assert reference.outcome.successful
    return run, af.compare(reference, run).max_relative_error


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("rate", [0.0, 1e-3, 1.0, 30.0, 1e4])
def test_formula_integrals_against_exponentials(count, rate):
    points = nodes(count)
    values = np.sin(3 * points.fine) + 2
    polynomial = np.polynomial.Polynomial.fit(points.fine, values, points.fine.size - 1)
    expected = [
        quad(lambda x, end=end: np.exp(-rate * (end - x)) * polynomial(x), max(0.0, end - 40 / max(rate, 1)), end)[0]
        for end in points.fine
    ]
    np.testing.assert_allclose(
        points.exponential_integrals(jnp.asarray(rate)) @ values, expected, rtol=1e-9, atol=1e-14
    )


def test_formula_polynomials_through_the_nodes():
    points = nodes(3)
    cubic = np.polynomial.Polynomial([1.0, -2.0, 0.5, 3.0])
    ends = np.array([0.0, *points.radau])
    np.testing.assert_allclose(points.endpoints_to_fine @ cubic(ends), cubic(points.fine), atol=1e-13)
    x = jnp.asarray(0.37)
    assert points.fine_interpolation_weights(x) @ cubic(points.fine) == pytest.approx(cubic(0.37))
    assert points.interpolation_weights(x) @ cubic(ends) == pytest.approx(cubic(0.37))
    # The defect of a polynomial of one degree less vanishes for one of that degree, and not for one more.
    sextic = np.polynomial.Polynomial([0.3, -1.0, 0.0, 2.0, 0.0, 1.0, 4.0])
    assert points.skipped_weights @ points.fine**5 == pytest.approx(0, abs=1e-12)
    others = np.delete(points.fine, points.skipped)
    missed = sextic(points.fine[points.skipped]) - np.polynomial.Polynomial.fit(others, sextic(others), 5)(
        points.fine[points.skipped]
    )
    assert points.skipped_weights @ sextic(points.fine) == pytest.approx(missed, rel=1e-8)
    past, ahead = jnp.array([-3.0, -1.5, -0.2, 0.0]), jnp.array([0.4, 1.0])
    np.testing.assert_allclose(lagrange_weights(past, ahead) @ cubic(past), cubic(ahead), rtol=1e-12)


@pytest.mark.slow
def test_formula_second_moment_noise_is_what_noise_adds_to_the_second_moment():
    rng = np.random.default_rng(SEED)
    gradient, noise, first, second = rng.normal(size=(4, 5))
    second, noise = second**2, 0.3 * noise
    beta, n, length = 0.99, 40.0, 3.0
    flow = af.GouldTanakaFlow(af.adam(1e-3, beta=beta, gamma=0.9))
    filters = {"first_moment": jnp.asarray(first), "second_moment": jnp.asarray(second)}
    start = FlatState(jnp.asarray(n), jnp.zeros(5), filters, jnp.asarray(gradient))
    integrator = make_step_integrator(flow, lambda vector: vector, 2, start, jnp.asarray(length))
    solution = integrator(jnp.asarray(np.stack([gradient, gradient])))
    moments = {name: np.asarray(values[-1]) for name, values in solution.filters.items()}
    direction = moments["first_moment"] / np.sqrt(moments["second_moment"])
    mass = 1 - beta ** (n + length + 1)
    falls = np.minimum(noise**2 * mass / (2 * moments["second_moment"]), 1) * np.abs(direction)
    expected = np.sqrt(np.mean(falls**2) / np.mean(direction**2))
    found = integrator.second_moment_noise(solution, jnp.asarray(gradient), jnp.asarray(noise))
    assert found == pytest.approx(expected, rel=1e-12)
    assert found > 1e-3


def test_formula_displacement_is_that_of_a_direction_that_is_off_for_as_long_as_filters_remember():
    rng = np.random.default_rng(SEED)
    gradient, first, second, error = rng.normal(size=(4, 3))
    second, curvature = second**2 + 0.1, np.array([0.0, 1.0, 1e4])
    eta, beta, gamma, n, length = 1e-2, 0.99, 0.9, 1000.0, 2.0
    flow = af.GouldTanakaFlow(af.adam(eta, beta=beta, gamma=gamma))
    filters = {"first_moment": jnp.asarray(first), "second_moment": jnp.asarray(second)}
    start = FlatState(jnp.asarray(n), jnp.zeros(3), filters, jnp.asarray(gradient))

    @eqx.filter_jit
    def solution_and_displacement(start, gradients, errors, curvature):
        integrator = make_step_integrator(flow, lambda vector: vector, 3, start, jnp.asarray(length))
        solution = integrator(gradients)
        return solution, integrator.displacement_by_filters(gradients, solution, errors, curvature)

    gradients, repeated = (jnp.asarray(np.stack([x] * 3)) for x in (gradient, error))
    solution, found = solution_and_displacement(start, gradients, repeated, jnp.asarray(curvature))
    m, v = (np.asarray(solution.filters[name][-1]) for name in ("first_moment", "second_moment"))
    # A constant error of the gradient moves each filter by what it forgets of its value within the step.
    rates = {name: (1 - alpha) / alpha for name, alpha in (("m", gamma), ("v", beta))}
    m_error = -np.expm1(-rates["m"] * length) * error
    v_error = -np.expm1(-rates["v"] * length) * ((gradient + error) ** 2 - gradient**2)
    correction = np.sqrt(1 - beta ** (n + length + 1)) / (1 - gamma ** (n + length + 1))
    stiffness = eta * curvature * correction / np.sqrt(v)
    direction_errors = {"m": correction * m_error / np.sqrt(v), "v": -correction * m * v_error / (2 * v**1.5)}
    expected = sum(
        eta * np.abs(direction_errors[name]) / np.sqrt(rate**2 + rate * stiffness) for name, rate in rates.items()
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    # Without curvature it is how far θ ends from where it would have: the direction is off for 1/a iterations.
    assert found[0] > 0


@pytest.mark.slow
def test_formula_hessian_of_low_rank():
    rng = np.random.default_rng(SEED)
    size, rank, width = 12, 3, 5
    root, metric = rng.normal(size=(size, size)), jnp.asarray(rng.uniform(0.5, 2.0, size))
    hessian = root @ root.T
    steps = jnp.asarray(rng.normal(size=(rank, size)))
    known = low_rank_hessian.zero_hessian(size, width, jnp.float64).with_metric(metric)
    for place, step in enumerate(steps):
        known = low_rank_hessian.sr1_update(known, jnp.asarray(place), step, hessian @ step, metric)
        # What it has just been taught it reproduces.
        np.testing.assert_allclose(known.product(step[None])[0], hessian @ step, rtol=1e-9)
    dense = known.columns @ known.core @ known.columns.T
    np.testing.assert_allclose(known.gram, known.columns.T @ (metric[:, None] * known.columns), rtol=1e-9)
    np.testing.assert_allclose(known.diagonal, np.diag(dense), rtol=1e-9)
    np.testing.assert_allclose(low_rank_hessian.truncate_rank(known, rank).product(steps), steps @ dense, rtol=1e-6)
    # Where the curvature turns out to be less along a step, it is.
    less = low_rank_hessian.sr1_update(known, jnp.asarray(rank), steps[0], 0.5 * hessian @ steps[0], metric)
    np.testing.assert_allclose(steps[0] @ less.product(steps[:1])[0], 0.5 * steps[0] @ hessian @ steps[0], rtol=1e-9)
    weighed, whole = less.with_metric(metric), less.columns @ less.core @ less.columns.T
    np.testing.assert_allclose(less.diagonal, np.diag(whole), rtol=1e-9)
    np.testing.assert_allclose(weighed.diagonal, np.diag(whole), rtol=1e-9)
    np.testing.assert_allclose(weighed.gram, less.gram, rtol=1e-5, atol=1e-5)
    # Newton's matrix, for slopes that are one matrix times the metric.
    shares = jnp.asarray([[0.4, -0.1], [0.9, 1.0]])
    slopes, (rest, moved) = shares[:, :, None] * metric, jnp.asarray(rng.normal(size=(2, 2, size)))
    found = low_rank_hessian.solve_newton_system(
        known, low_rank_hessian.low_rank_solver(known, slopes, metric), rest, moved
    )
    matrix = np.eye(2 * size) + np.kron(np.asarray(shares), np.asarray(dense * metric))
    expected = np.linalg.solve(matrix, (rest + moved @ dense).ravel())
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-8)
    # The solver's own metric counts, not that of the curvature; with more parameters than columns in single precision.
    solver = low_rank_hessian.low_rank_solver(known.with_metric(2 * metric), 2 * slopes, 2 * metric)
    found = low_rank_hessian.solve_newton_system(known, solver, rest - moved @ dense, moved)
    matrix = np.eye(2 * size) + np.kron(np.asarray(shares), np.asarray(dense * 2 * metric))
    error = np.abs(found.ravel() - np.linalg.solve(matrix, rest.ravel())).max()
    assert error < 1e-5 * np.abs(moved @ dense).max()


@pytest.mark.slow
def test_identity_transformer_past_the_edge_with_few_gradients():
    problem = af.problems.char_transformer(layers=1, heads=2, width=32, context=16, batch_size=8).flatten()
    flow, saved = af.GouldTanakaFlow(af.adam(1e-3)), np.linspace(0, 400, 6)
    options = {"save_at": saved, "solver": diffrax.Tsit5(), "atol": 1e-9}
    reference = af.solve(flow, problem.loss, problem.params, 400, rtol=1e-4, **options)
    run = af.solve(flow, problem.loss, problem.params, 400, save_at=saved, rtol=1e-3, solver="collocation")
    assert run.outcome.successful
    assert af.compare(reference, run).max_relative_error < 0.012
    assert run.stats.gradient_evaluations < 480
    assert reference.stats.gradient_evaluations > 5 * run.stats.gradient_evaluations


@pytest.mark.slow
def test_identity_surrogate_in_lanes_in_single_precision_and_for_a_loss_in_other_units():
    problem, saved = af.problems.mlp((4,)).flatten(), np.linspace(0, 200, 6)

    def run(beta, dtype=jnp.float64, units=1.0):
        flow = jax.tree.map(lambda leaf: leaf.astype(dtype), af.GouldTanakaFlow(af.adam(1e-3, beta=beta)))
        params, options = problem.params.astype(dtype), {"save_at": saved, "rtol": 1e-3, "solver": "collocation"}
        return af.solve(flow, lambda p: units * problem.loss(p).astype(dtype), params, 200, **options)

    def apart(path):
        return np.max(np.linalg.norm(path - plain.params, axis=1)[1:] / moved[1:])

    betas = jnp.array([0.99, 0.999])
    plain = run(betas[1])
    moved = np.linalg.norm(plain.params - plain.params[0], axis=1)
    assert plain.stats.gradient_evaluations < 170
    assert apart(jax.vmap(lambda beta: run(beta).params)(betas)[1]) < 1e-3
    assert apart(run(betas[1], units=1e6).params) < 1e-3
    single = run(betas[1].astype(jnp.float32), jnp.float32)
    assert single.params.dtype == jnp.float32
    assert apart(single.params) < 3e-3


@pytest.mark.parametrize(
    ("beta", "gamma", "most"),
    [
        pytest.param(0.999, 0.9, 100, marks=pytest.mark.slow),
        pytest.param(0.95, 0.9, 900, marks=pytest.mark.slow),
        pytest.param(0.95, 0.5, 250, marks=pytest.mark.slow),
    ],
)
def test_identity_chain_to_a_tenth_of_a_percent_with_few_gradients(beta, gamma, most):
    run, error = apart(af.GouldTanakaFlow(af.adam(1e-3, beta=beta, gamma=gamma)), CHAIN, 2000, rtol=1e-3)
    assert error < 1.5e-3
    assert run.stats.gradient_evaluations < most


@pytest.mark.slow
@pytest.mark.parametrize(
    "flow",
    [
        af.GouldTanakaFlow(af.rmsprop(1e-3, beta=0.99)),
        af.GouldTanakaFlow(af.adamw(1e-3, weight_decay=0.1), rate="exact"),
        af.GouldTanakaFlow(af.adam(1e-3, second_moment="per_tensor")),
        af.GouldTanakaFlow(af.Optimizer(1e-3, (AdaBeliefStage(0.99, 0.9),), epsilon=1.0)),
    ],
    ids=lambda flow: f"{flow.optimizer.name}, {flow.name}",
)
def test_identity_every_record(flow):
    _, error = apart(flow, CHAIN, 500)
    assert error < 1e-3


@pytest.mark.slow
def test_identity_trees_starts_zero_gradients_saddles_and_networks():
    record = af.adam(1e-3)
    flow = af.GouldTanakaFlow(record)
    # The first gradient is zero for ever, the second direction one of descent without end.
    run, error = apart(flow, af.problems.quadratic([0.0, -1.0, 2.0]), 500)
    assert error < 1e-3
    np.testing.assert_allclose(run.params[:, 0], 1.0, rtol=1e-11)
    first = af.iterate(record, CHAIN.loss, CHAIN.params, 100)
    _, error = apart(flow, CHAIN, 500, start=(100, first.final_state[1]), params=first.final_state[0])
    assert error < 1e-3
    network = af.problems.mlp((8,))
    run, error = apart(flow, network, 200, rtol=1e-3)
    assert error < 1e-2
    assert run.stats.gradient_evaluations < 200
    assert run.stats.jacobian_evaluations == 0


@pytest.mark.slow
def test_identity_single_precision_and_lanes():
    def end(beta):
        flow = af.GouldTanakaFlow(af.adam(1e-3, beta=beta))
        run = af.solve(flow, CHAIN.loss, CHAIN.params, 500, save_at=[500], rtol=TOLERANCE, solver="collocation")
        return run.params[0]

    betas = jnp.array([0.99, 0.999])
    ends = jnp.stack([end(beta) for beta in betas])
    np.testing.assert_allclose(jax.vmap(end)(betas), ends, rtol=1e-9)
    single = CHAIN.params.astype(jnp.float32)
    flow = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), af.GouldTanakaFlow(af.adam(1e-3)))
    loss = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), CHAIN.loss)
    run = af.solve(flow, loss, single, 500, save_at=[500], rtol=TOLERANCE, solver="collocation")
    assert run.params.dtype == jnp.float32
    np.testing.assert_allclose(run.params[0], ends[1], atol=1e-3)


@pytest.mark.slow
def test_identity_lanes_that_are_left_go_on_in_smaller_batches():
    def run(beta, gamma):
        flow = af.GouldTanakaFlow(af.adam(1e-2, beta=beta, gamma=gamma))
        ended = af.solve(flow, CHAIN.loss, CHAIN.params, 200, save_at=[100, 200], rtol=1e-3)
        return ended.params, ended.stats.gradient_evaluations

    beta, gamma = (jnp.repeat(jnp.array(pair), 35) for pair in ((0.999, 0.95), (0.9, 0.5)))
    lanes, gradients = jax.jit(jax.vmap(run))(beta, gamma)
    for place in (0, 69):
        alone, count = jax.jit(run)(beta[place], gamma[place])
        np.testing.assert_allclose(lanes[place], alone, rtol=1e-6, atol=1e-9)
        assert gradients[place] == count
    assert gradients[69] != gradients[0]


@pytest.mark.parametrize(
    ("backend", "count", "widths"),
    [
        ("cpu", 0, ()),
        ("cpu", 5, (5,)),
        ("cpu", 10_000, (64, 16)),
        ("gpu", 5, (5,)),
        ("gpu", 1000, (1000, 125)),
        ("gpu", 100_000, (12_500, 1562, 195)),
        ("gpu", 10**7, (16_384, 2048, 256)),
    ],
)
def test_formula_widths_of_batches(monkeypatch, backend, count, widths):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert batched_loop.batch_widths(jax.ShapeDtypeStruct((count,), float), count) == widths
    # What runs elsewhere by `jax.default_device` follows that.
    with jax.default_device(jax.devices("cpu")[0]):
        assert max(batched_loop.batch_widths(jax.ShapeDtypeStruct((count,), float), count), default=0) <= 64


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "each"), [("cpu", 75), ("gpu", 1500)])
def test_identity_lanes_that_wait_take_the_places_of_those_that_have_ended(monkeypatch, backend, each):
    # More than are under way at once, and those that take long are neither all first nor all last.
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    lengths = jnp.asarray(np.random.default_rng(SEED).permutation(np.repeat([0, 3, 40, 200], each)))
    given = jnp.arange(4.0 * each)

    def run(*given):
        begin = (jnp.zeros((), int), jnp.zeros(()))
        return compacting_while_loop(
            lambda g, carry: carry[0] < g[1], lambda g, carry: (carry[0] + 1, carry[1] + g[0]), given, begin
        )

    counts, sums = jax.jit(jax.vmap(run))(given, lengths)
    np.testing.assert_array_equal(counts, lengths)
    np.testing.assert_allclose(sums, lengths * given)
    # Lanes of lanes, some of them with the same numbers, are lanes.
    counts, sums = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))(given[:20], lengths[:30])
    np.testing.assert_array_equal(counts, jnp.broadcast_to(lengths[:30], (20, 30)))
    np.testing.assert_allclose(sums, lengths[:30] * given[:20, None])


class Rotated(eqx.Module):
    """A quadratic whose curvatures are along random directions."""

    hessian: jax.Array

    def __init__(self, size, condition, seed):
        rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]
        self.hessian = jnp.asarray(rotation * 5 * condition ** np.linspace(-0.5, 0.5, size) @ rotation.T)

    def __call__(self, params):
        return params @ self.hessian @ params / 2


@pytest.mark.slow
def test_identity_hessians_are_computed_where_they_are_not_diagonal():
    flow, start = (
        af.GouldTanakaFlow(af.adam(1e-3, beta=0.95, gamma=0.5)),
        jnp.asarray(np.random.default_rng(SEED).normal(size=10)),
    )
    runs = [
        af.solve(flow, loss, start, 2000, save_at=[2000], rtol=1e-3) for loss in (CHAIN.loss, Rotated(10, 100, SEED))
    ]
    assert all(run.outcome.successful for run in runs)
    assert int(runs[0].stats.jacobian_evaluations) == 0
    assert int(runs[1].stats.jacobian_evaluations) > 0


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 10])
def test_identity_few_coordinates_that_are_coupled_are_seen_to_be(size):
    # Random signs, or the metric of a step, called some of these diagonal; they took up to 1400 gradients.
    flow, counts = af.GouldTanakaFlow(af.adam(1e-3, beta=0.95, gamma=0.5)), []
    for seed in range(SEED, SEED + 8):
        start = jnp.asarray(np.random.default_rng(seed).normal(size=size))
        run = af.solve(flow, Rotated(size, 100, seed), start, 2000, save_at=[2000], rtol=1e-3)
        counts.append(int(run.stats.gradient_evaluations))
    # With a diagonal Hessian they take thousands; oscillations are resolved, three gradients to a Newton iteration.
    assert max(counts) < 700
    assert np.median(counts) < 500


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "pairs", "related"),
    [(32, [(3, 20)], 0.7), (3, [(0, 1), (0, 2), (1, 2)], 0.25 / np.sqrt(2))],
    ids=["one pair among many", "three weakly"],
)
def test_identity_coordinates_that_are_coupled_to_few_or_weakly_are_seen_to_be(size, pairs, related):
    # The mean over all rows called the pair diagonal, a limit of .3 the three: they took 2600 and 3500 gradients.
    hessian = np.eye(size)
    for i, j in pairs:
        hessian[i, j] = hessian[j, i] = related
    root = np.sqrt(5 * 10 ** np.linspace(-0.5, 0.5, size))
    hessian = jnp.asarray(root[:, None] * hessian * root)
    start = jnp.asarray(np.random.default_rng(SEED).normal(size=size))
    flow = af.GouldTanakaFlow(af.adam(1e-3, beta=0.95, gamma=0.5))
    run = af.solve(flow, lambda params: params @ hessian @ params / 2, start, 2000, save_at=[2000], rtol=1e-3)
    assert run.outcome.successful
    assert int(run.stats.gradient_evaluations) < 400


@pytest.mark.slow
def test_identity_lanes_that_need_no_hessian_compute_none():
    taken = []

    @jax.custom_vjp
    def loss(params):
        return jnp.sum(jnp.logspace(-0.5, 0.5, params.size) * params**2)

    def backward(params, cotangent):
        jax.debug.callback(taken.append, params[0])
        return (2 * cotangent * jnp.logspace(-0.5, 0.5, params.size) * params,)

    loss.defvjp(lambda params: (loss(params), params), backward)

    def run(gamma):
        flow = af.GouldTanakaFlow(af.adam(1e-3, beta=0.999, gamma=gamma))
        return af.solve(flow, loss, jnp.ones(16), 500, save_at=[500], rtol=1e-3).stats

    stats = jax.vmap(run)(jnp.linspace(0.5, 0.9, 8))
    jax.effects_barrier()
    assert not np.any(stats.jacobian_evaluations)
    # Lanes are computed as long as the slowest is; the initial state's gradient, the same for all, is one more.
    assert len(taken) <= 8 * np.max(stats.gradient_evaluations) + 8


@pytest.mark.slow
def test_identity_lanes_that_forget_at_once_are_the_records_without_that_filter():
    problem = af.problems.chain(3)

    def run(beta, gamma, solver="collocation"):
        flow, options = af.GouldTanakaFlow(af.adam(1e-3, beta=beta, gamma=gamma)), {"save_at": [100, 300], "rtol": 1e-4}
        ended = af.solve(flow, problem.loss, problem.params, 300, solver=solver, **options)
        return ended.params, ended.outcome.code

    pairs = jnp.array([(0.99, 0.0), (0.99, 0.5), (0.9, 0.9), (0.0, 0.9)])
    lanes, codes = jax.vmap(run)(*pairs.T)
    assert not np.any(codes)
    for lane, pair in zip(lanes[:3], pairs.tolist(), strict=False):
        np.testing.assert_allclose(lane, run(*pair)[0], atol=1e-5)
    # Without a memory of g², each coordinate goes by η where gradients do not change sign.
    start = jax.grad(problem.loss)(problem.params)
    np.testing.assert_allclose(lanes[3, 0], problem.params - 0.1 * jnp.sign(start), atol=1e-2)
    # Diffrax's implicit solvers take as fast a filter too.
    ended, code = jax.jit(lambda gamma: run(0.99, gamma, KVAERNO))(0.0)
    assert code == 0
    np.testing.assert_allclose(ended, lanes[0], atol=1e-4)


@pytest.mark.slow
def test_identity_batches_without_lanes_and_of_one():
    def run(gamma):
        flow = af.GouldTanakaFlow(af.adam(1e-3, beta=0.99, gamma=gamma))
        return af.solve(flow, CHAIN.loss, CHAIN.params, 100, save_at=[50, 100], rtol=1e-3).params

    assert jax.vmap(run)(jnp.zeros((0,))).shape == (0, 2, 10)
    assert jax.vmap(jax.vmap(run))(jnp.zeros((3, 0))).shape == (3, 0, 2, 10)
    for shape in ((1,), (3, 1)):
        lanes = jnp.vectorize(run, signature="()->(r,d)")(jnp.full(shape, 0.9))
        np.testing.assert_allclose(lanes, jnp.broadcast_to(run(0.9), lanes.shape), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_formula_hessian_by_differences(dtype):
    def loss(params):
        return jnp.sum(params**4) + jnp.prod(jnp.cos(params)) + jnp.sum(params) ** 2

    place = jnp.asarray(np.random.default_rng(SEED).normal(size=6), dtype)
    hessian = jax.jit(lambda params: finite_difference_hessian(jax.grad(loss), params, jnp.ones((), dtype)))(place)
    assert hessian.dtype == dtype
    error = jnp.max(jnp.abs(hessian - jax.jit(jax.hessian(loss))(place))) / jnp.max(jnp.abs(hessian))
    assert error < 10 * np.sqrt(np.finfo(dtype).eps)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "start", "gamma"),
    [(Rotated(4, 100, SEED), jnp.asarray([1.0, -0.5, 0.3, 0.7]), 0.95), (CHAIN.loss, CHAIN.params, 0.98)],
    ids=["coupled", "diagonal"],
)
def test_identity_gradients_reported_are_those_taken(loss, start, gamma):
    # Of a loss without forward-mode derivatives, on both sides of a look at its Hessian.
    shapes, by_jax, taken = jax.ShapeDtypeStruct(start.shape, start.dtype), jax.jit(jax.grad(loss)), []

    def host(params):
        taken.append(params)
        return np.asarray(by_jax(params))

    called = jax.custom_vjp(lambda params: loss(params))
    called.defvjp(
        lambda params: (loss(params), jax.pure_callback(host, shapes, params, vmap_method="sequential")),
        lambda gradient, cotangent: (cotangent * gradient,),
    )
    flow, options = (
        af.GouldTanakaFlow(af.adam(1e-3, beta=0.9, gamma=gamma)),
        {"save_at": [1000], "rtol": 1e-3, "solver": "collocation"},
    )
    there, here = (af.solve(flow, function, start, 1000, **options) for function in (called, loss))
    np.testing.assert_allclose(there.params, here.params, rtol=1e-6, atol=1e-6)
    assert int(there.stats.gradient_evaluations) == len(taken)


@pytest.mark.slow
def test_identity_losses_that_integrate_an_equation():
    # diffrax's derivatives are by reverse mode alone.
    flow, times = af.GouldTanakaFlow(af.adam(1e-3, beta=0.9, gamma=0.95)), jnp.linspace(0, 1, 5)

    def fit(rates):
        term = diffrax.ODETerm(lambda t, y, rates: rates[1] - rates[0] * y)
        saved = diffrax.SaveAt(ts=times)
        return jnp.sum(
            (diffrax.diffeqsolve(term, diffrax.Tsit5(), 0, 1, 0.1, 1.0, rates, saveat=saved).ys - times) ** 2
        )

    assert af.solve(flow, fit, jnp.ones(2), 200, save_at=[200], rtol=1e-3).outcome.successful


@pytest.mark.slow
def test_identity_rows_of_lanes_are_those_of_single_runs():
    def run(gamma):
        flow, saved = af.GouldTanakaFlow(af.adam(1e-3, beta=0.95, gamma=gamma)), np.linspace(0, 500, 126).astype(int)
        options = {"save_at": saved, "rtol": 1e-3, "observe": lambda now: (now.params, now.direction)}
        return af.solve(flow, CHAIN.loss, CHAIN.params, 500, **options).observed

    gammas = jnp.array([0.5, 0.9, 0.95])
    lanes = jax.jit(jax.vmap(run))(gammas)
    single = jax.jit(run)
    for place, gamma in enumerate(gammas):
        for lane, alone in zip(lanes, single(gamma), strict=True):
            np.testing.assert_allclose(lane[place], alone, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_order_errors_fall_with_the_tolerance():
    flow = af.GouldTanakaFlow(af.adam(1e-3))
    coarse, fine = (apart(flow, CHAIN, 500, rtol=rtol)[1] for rtol in (1e-3, 1e-6))
    assert coarse > 30 * fine


@pytest.mark.slow
@pytest.mark.parametrize(("problem", "nodes", "counts"), [(CHAIN, 3, (12, 16)), (af.problems.chain(65), 2, (32, 64))])
def test_order_at_the_ends_of_constant_steps_is_that_of_radau(problem, nodes, counts):
    # From filters that have settled: the first iterations of a run are not smooth on the scale of these steps.
    record = af.adam(1e-3, beta=0.99, gamma=0.9)
    params, memory = af.iterate(record, problem.loss, problem.params, 20).final_state
    options = {"start": (20, memory), "save_at": [120]}

    def end(count=None, **solver):
        step = {} if count is None else {"step_size": 100 / count, "rtol": 1e-10, "solver": "collocation"}
        run = af.solve(af.GouldTanakaFlow(record), problem.loss, params, 120, **options, **step, **solver)
        assert run.outcome.successful
        return run.params[0]

    exact = end(rtol=1e-13, atol=1e-16, solver=diffrax.Dopri8())
    errors = [float(jnp.linalg.norm(end(count) - exact)) for count in counts]
    slope = np.log(errors[-2] / errors[-1]) / np.log(counts[-1] / counts[-2])
    assert slope == pytest.approx(2 * nodes - 1, abs=0.2)


@pytest.mark.slow
def test_identity_gradients_through_a_run_are_those_of_the_reference():
    problem = af.problems.chain(3)

    def end(eta, height, solver):
        def loss(params):
            return height * problem.loss(params)

        run = af.solve(
            af.GouldTanakaFlow(af.adam(eta, epsilon=1.0)), loss, problem.params, 40, save_at=[40], solver=solver
        )
        return jnp.sum(run.params**2)

    by_auto, by_diffrax = (jax.grad(end, argnums=(0, 1))(1e-2, 1.5, solver) for solver in ("auto", diffrax.Tsit5()))
    np.testing.assert_allclose(by_auto, by_diffrax, rtol=1e-3)


@pytest.mark.slow
def test_identity_random_records_agree_with_a_tight_solve():
    """Random (β, γ, η, λ, k): within ten tolerances of Kvaerno5, or a run that says where it ended."""
    generator, steps, rtol = np.random.default_rng(0), 300, 1e-3
    print("seed 0")
    saved, done, tried = np.linspace(0, steps, 11), 0, 0
    for k in (1, 2):

        @jax.jit
        def ends(beta, gamma, eta, decay, k=k):
            flow = af.GouldTanakaFlow(af.kadam(k, eta, beta=beta, gamma=gamma, weight_decay=decay))
            ours = af.solve(flow, CHAIN.loss, CHAIN.params, steps, save_at=saved, rtol=rtol, max_steps=3000)
            return ours.params, ours.outcome.code

        for _ in range(10 if k == 1 else 3):
            beta, gamma = 1 - 10 ** generator.uniform(-4, -1), 1 - 10 ** generator.uniform(-2, -0.05)
            eta, decay = 10 ** generator.uniform(-4, -2), 10 ** generator.uniform(-3, 0)
            flow = af.GouldTanakaFlow(af.kadam(k, eta, beta=beta, gamma=gamma, weight_decay=decay))
            path, code = ends(beta, gamma, eta, decay)
            tight = {"rtol": 1e-6, "atol": 1e-10, "solver": KVAERNO, "max_steps": 20_000}
            reference = af.solve(flow, CHAIN.loss, CHAIN.params, steps, save_at=saved, **tight)
            if not reference.outcome.successful:
                continue
            tried, done = tried + 1, done + int(code == 0)
            if code != 0:
                continue
            moved = np.linalg.norm(reference.params[1:] - reference.params[0], axis=1)
            error = np.max(np.linalg.norm(path[1:] - reference.params[1:], axis=1) / moved)
            assert error < 10 * rtol * k, (k, beta, gamma, eta, decay, error)
    assert done >= 0.9 * tried > 0


@pytest.mark.slow
def test_identity_rows_of_lanes_that_end_in_every_way_are_those_of_single_runs():
    """Lanes that complete, come to a cliff, take too many steps, or need the whole Hessian: more than run at once."""
    turned = jnp.array([[2.0, 1.5], [1.5, 2.0]])

    def end(kind, eta):
        def loss(params):
            cliff = jnp.sum(jnp.sqrt(params + 0.5))
            return jnp.where(kind == 0, jnp.sum(params**2), jnp.where(kind == 1, cliff, params @ turned @ params / 2))

        flow = af.GouldTanakaFlow(af.adam(eta, beta=jnp.where(kind == 3, 0.9, 0.99), gamma=0.8, epsilon=1e-8))
        options = {"save_at": np.linspace(0, 300, 101), "rtol": 1e-4, "max_steps": 60, "solver": "collocation"}
        run = af.solve(flow, loss, jnp.array([1.0, -0.4]), 300, **options)
        return run.params, run.outcome.code

    kinds, rates = jnp.arange(80) % 4, jnp.geomspace(1e-3, 3e-2, 80)
    rows, codes = jax.jit(jax.vmap(end))(kinds, rates)
    alone = jax.jit(end)
    for lane in range(0, 80, 7):
        single, code = alone(kinds[lane], rates[lane])
        assert codes[lane] == code
        np.testing.assert_allclose(rows[lane], single, rtol=1e-9, atol=1e-12)
    assert {af.OUTCOMES[code] for code in codes} == {"completed", "max_steps_reached"}


@pytest.mark.parametrize(
    ("make", "size", "rtol", "solver"),
    [
        (af.GouldTanakaFlow, 66, 1e-6, "collocation"),
        (af.GouldTanakaFlow, 66, 1e-7, diffrax.Dopri8()),
        (af.GouldTanakaFlow, 202, 1e-4, "collocation"),
        (af.GouldTanakaFlow, 202, 1e-5, diffrax.Dopri8()),
        (af.GouldTanakaFlow, 202, jnp.float32(1e-4), "collocation"),
        (af.ModifiedFlow, 202, 1e-3, diffrax.Dopri8()),
        (af.MemorylessFlow, 202, 1e-3, diffrax.Tsit5()),
    ],
)
def test_identity_auto_is_what_the_table_says(make, size, rtol, solver):
    """That of docs/collocation.md, by the number of parameters and the tolerance."""
    chain, flow = af.problems.chain(size), make(af.adam(1e-2, beta=0.99, gamma=0.9))
    auto, chosen = (
        af.solve(flow, chain.loss, chain.params, 3, save_at=[3], rtol=rtol, solver=one, start=None)
        for one in ("auto", solver)
    )
    np.testing.assert_array_equal(auto.params, chosen.params)
    assert auto.stats.gradient_evaluations == chosen.stats.gradient_evaluations


def test_formula_borders_of_the_table():
    def known(size, rtol):
        return is_preferable(size, rtol), takes_whole_hessian(size, rtol)

    single = jnp.float32
    for rtol in (1e-3, single(1e-3), 1e-4, single(1e-4)):
        assert [known(size, rtol) for size in (32, 33, 10**6)] == [(True, True), (True, False), (True, False)]
    for rtol in (9e-5, 1e-6, single(1e-6)):
        expected = [(True, True), (True, False), (True, False), (False, False)]
        assert [known(size, rtol) for size in (64, 65, 200, 201)] == expected
    for rtol in (9e-7, 1e-12):
        assert [known(size, rtol) for size in (64, 65)] == [(True, True), (False, False)]
    seen = []
    jax.eval_shape(lambda rtol: seen.extend(known(size, rtol) for size in (32, 33)), 1e-3)
    assert seen == [(True, True), (False, False)]


def test_identity_with_a_tolerance_that_is_traced_auto_is_what_is_right_for_each():
    chain, flow = af.problems.chain(33), af.GouldTanakaFlow(af.adam(1e-2, beta=0.99, gamma=0.9))

    def end(rtol, solver):
        return af.solve(flow, chain.loss, chain.params, 3, save_at=[3], rtol=rtol, solver=solver).params

    auto, chosen = (jax.jit(end, static_argnums=1)(1e-3, one) for one in ("auto", diffrax.Dopri8()))
    np.testing.assert_array_equal(auto, chosen)


def test_identity_tight_tolerances_have_the_order_of_the_whole_hessian():
    """Of 40 coupled parameters: steps of order 3 would be 512."""
    random = np.random.default_rng(SEED)
    turn = np.linalg.qr(random.normal(size=(40, 40)))[0]
    matrix = jnp.asarray(turn * 10 ** random.uniform(-1, 1, 40) @ turn.T)

    def loss(params):
        return 0.5 * params @ matrix @ params

    flow, options = af.GouldTanakaFlow(af.adam(1e-2, beta=0.999, gamma=0.9)), dict(save_at=[50, 100], start=None)
    run = af.solve(flow, loss, jnp.ones(40), 100, rtol=1e-8, **options)
    reference = af.solve(flow, loss, jnp.ones(40), 100, rtol=1e-12, solver=diffrax.Dopri8(), **options)
    moved = np.linalg.norm(reference.params - 1, axis=1)
    assert np.max(np.linalg.norm(run.params - reference.params, axis=1) / moved) < 1e-7
    assert run.stats.accepted_steps < 150


@pytest.mark.slow
def test_identity_what_is_observed_is_what_the_flow_shows():
    flow, saved = af.GouldTanakaFlow(af.adam(1e-3)), [0, 250, 500]

    def look(snapshot):
        return {"params": snapshot.params, "direction": snapshot.direction}

    options = {"save_at": saved, "observe": look}
    run = af.solve(flow, CHAIN.loss, CHAIN.params, 500, rtol=1e-5, solver="collocation", **options)
    reference = af.solve(flow, CHAIN.loss, CHAIN.params, 500, rtol=1e-8, solver=KVAERNO, **options)
    # Errors are controlled in θ; directions follow from filters.
    for name, within in (("params", 2e-4), ("direction", 2e-3)):
        np.testing.assert_allclose(run.observed[name], reference.observed[name], atol=within)


@pytest.mark.slow
def test_identity_other_numbers_compile_nothing(caplog):
    def run(eta, beta):
        flow = af.GouldTanakaFlow(af.adam(eta, beta=beta))
        return af.solve(flow, CHAIN.loss, CHAIN.params, 300, save_at=[300], rtol=10 * eta, solver="collocation")

    run(1e-3, 0.999)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        run(2e-3, 0.99)
    assert not [record for record in caplog.records if "_phase" in record.getMessage()]


def test_failure_flows_and_options_that_it_does_not_take(unchecked):
    def solve(flow, **options):
        return af.solve(flow, CHAIN.loss, CHAIN.params, 10, solver="collocation", **options)

    with pytest.raises(TypeError, match="integrates a GouldTanakaFlow, got the modified flow of order 2; take solver="):
        solve(af.ModifiedFlow(af.adam(1e-3), 2))
    for record in (af.signsgd(1e-3), af.Optimizer(1e-3, (AdaFomStage(0.9),))):
        with pytest.raises(
            ValueError, match=r"a stage that keeps a filter, all of constant decay, .* does not meet this"
        ):
            solve(af.GouldTanakaFlow(record))
    for flow in (af.GouldTanakaFlow(af.kadam(2, 1e-3)), af.GouldTanakaFlow(af.adam(1e-3), order=2)):
        with pytest.raises(ValueError, match=r"flows of order 1 with one stage, got the .*damp what should grow"):
            solve(flow)


@pytest.mark.slow
def test_identity_strong_weight_decay_in_order_two():
    record = af.adamw(1e-2, beta=0.9999, gamma=0.9, weight_decay=1.0)

    def loss(params):
        return 5e-4 * jnp.sum(params**2) + jnp.sum(params)

    options = {"save_at": [250, 500, 1000]}
    run, expected = (
        af.solve(af.GouldTanakaFlow(record, order=2), loss, jnp.full(2, 5.0), 1000, rtol=rtol, solver=solver, **options)
        for rtol, solver in ((1e-4, "auto"), (1e-8, KVAERNO))
    )
    np.testing.assert_allclose(run.params, expected.params, atol=2e-3)


@pytest.mark.slow
def test_identity_rest_stays_at_rest():
    run = af.solve(af.GouldTanakaFlow(af.adam(1e-2)), lambda x: 0.5 * jnp.sum(x**2), jnp.zeros(3), 100, save_at=[100])
    assert run.outcome.successful
    assert not np.any(run.params)


@pytest.mark.slow
def test_identity_derivatives_do_not_end_with_the_steps_of_the_run():
    def end(eta, **options):
        run = af.solve(
            af.GouldTanakaFlow(af.adam(eta, beta=0.99)), CHAIN.loss, CHAIN.params, 300, save_at=[300], **options
        )
        return jnp.sum(run.params**2)

    step = 1e-6
    difference = (end(1e-3 + step, rtol=1e-7) - end(1e-3 - step, rtol=1e-7)) / (2 * step)
    assert jax.grad(lambda eta: end(eta, rtol=1e-3, max_steps=40))(1e-3) == pytest.approx(float(difference), rel=1e-2)


@pytest.mark.slow
def test_failure_step_limit_and_losses_that_end():
    flow = af.GouldTanakaFlow(af.adam(1e-2))
    run = af.solve(flow, CHAIN.loss, CHAIN.params, 500, solver="collocation", max_steps=5, on_failure="ignore")
    assert run.outcome.name == "max_steps_reached"
    assert 0 < len(run) < 500

    def loss(params):
        return jnp.sum(jnp.sqrt(params))

    run = af.solve(flow, loss, jnp.ones(3), 500, solver="collocation", on_failure="ignore")
    assert run.outcome.name == "not_finite"
    assert np.isfinite(run.params).all()


def test_identity_steps_do_not_depend_on_what_is_saved():
    problem = af.problems.quadratic(np.ones(8), start=np.linspace(0.3, 3, 8))
    flow = af.GouldTanakaFlow(af.adam(0.1, beta=0.95, gamma=0.955))
    runs = [af.solve(flow, problem.loss, problem.params, 100, save_at=at, rtol=1e-4) for at in ([0, 100], [100])]
    assert runs[0].stats.accepted_steps == runs[1].stats.accepted_steps
    np.testing.assert_allclose(runs[0].params[-1], runs[1].params[-1], rtol=1e-9)


@pytest.mark.slow
def test_identity_a_gradient_that_is_not_finite_ahead_shortens_the_first_step():
    def loss(params):
        return jnp.sum(1e4 * params + params**-0.5)

    flow, start = af.GouldTanakaFlow(af.rmsprop(1e-3, 0.9)), jnp.array([1.5e-3, 1.0])
    options = dict(save_at=[50], rtol=1e-5, on_failure="ignore")
    run, reference = (af.solve(flow, loss, start, 50, solver=solver, **options) for solver in ("auto", KVAERNO))
    assert run.outcome.name == reference.outcome.name
    if run.outcome.successful:
        np.testing.assert_allclose(run.params, reference.params, rtol=1e-3)


@pytest.mark.slow
def test_identity_rmsprop_is_adam_that_forgets_at_once():
    def run(gamma):
        flow = af.GouldTanakaFlow(af.adam(1e-3, beta=0.99, gamma=gamma))
        return af.solve(flow, CHAIN.loss, CHAIN.params, 500, save_at=[500], rtol=1e-4)

    alone, batch = run(0.0), jax.vmap(lambda gamma: run(gamma).stats.gradient_evaluations)(jnp.zeros(1))
    assert int(batch[0]) <= 1.5 * alone.stats.gradient_evaluations <= 4 * int(batch[0])


@pytest.mark.parametrize("epsilon", [1e-25, 1e-20])
def test_identity_a_tiny_epsilon_in_single_precision_lets_a_coordinate_at_rest_be(epsilon):
    """The ratio 0/(√0 + ε) has a derivative, though 1/ε² is infinite in float32."""

    def run(epsilon):
        flow = af.GouldTanakaFlow(af.adam(1e-3, epsilon=epsilon))
        return af.solve(flow, lambda p: jnp.sum(p**2) / 2, jnp.array([1, 0], jnp.float32), 50, solver="collocation")

    plain, tiny = run(0.0), run(epsilon)
    assert tiny.outcome.name == "completed"
    np.testing.assert_allclose(tiny.params, plain.params, rtol=1e-6)
