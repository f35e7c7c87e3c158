"""VRAdam as a record of stages: two gradients of one batch in every reader of an optimizer."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamflow as af
from adamflow.optimizers import VRAdamStage

CURVATURES = np.array([1.0, 3.0, 0.4])
START = jnp.array([1.0, -2.0, 0.7])


def loss(params, example=0.0):
    """A quadratic whose curvature and place depend on the example, so that the noise depends on the parameters."""
    return jnp.sum((CURVATURES + example) * params**2) / 2 + jnp.sum(jnp.sin(3 * example) * params)


def gradient_by_hand(theta, example):
    return (CURVATURES + example) * theta + np.sin(3 * example)


def smooth_loss(params):
    return jnp.sum(CURVATURES * params**2) / 2 + 0.3 * jnp.sum(jnp.cos(params))


def test_formula_iterates_are_those_of_the_step_written_out():
    # With decay, a penalty, cut entries and a schedule: both gradients are cut, and both get the penalty.
    examples = np.random.default_rng(3).normal(size=(40, 3)) / 3
    data = jnp.asarray(examples)
    optimizer = af.vradam(lambda n: 0.05 - 0.001 * n, beta=0.9, gamma=0.8, epsilon=1e-3, weight_decay=0.1)
    optimizer = af.with_clipping(af.with_l2(optimizer, 0.2), value=1.5)
    run = af.iterate(optimizer, loss, START, 40, batches=lambda n: data[n])

    def first_input(theta, n):
        return np.clip(gradient_by_hand(theta, examples[n]), -1.5, 1.5) + 0.2 * theta

    theta, last, m, v = np.asarray(START), None, None, 0.0
    for n in range(40):
        np.testing.assert_allclose(run.params[n], theta, rtol=1e-11, atol=1e-12)
        g = first_input(theta, n)
        m = g if n == 0 else 0.8 * m + 0.2 * g + 0.8 * (g - first_input(last, n))
        v = 0.9 * v + 0.1 * g**2
        eta = 0.05 - 0.001 * n
        last = theta
        theta = theta - eta * (0.1 * theta + m / (np.sqrt(v / (1 - 0.9 ** (n + 1))) + 1e-3))
    assert run.stats.gradient_evaluations == 80


def test_identity_optax_loop_with_the_second_gradient_is_the_run(key):
    data = jax.random.normal(key, (30, 3)) / 3
    optimizer = af.with_model_average(af.vradam(0.03, gamma=0.7), 0.9)
    run = af.iterate(optimizer, loss, START, 30, batches=lambda n: data[n])
    transformation = optax.chain(optimizer.to_optax(), optax.identity())
    gradient_of = jax.jit(jax.grad(loss))
    params, state = START, transformation.init(START)
    for n in range(30):
        second = gradient_of(state[0].inner.previous_params, data[n])
        updates, state = transformation.update(gradient_of(params, data[n]), state, params, gradient_at_previous=second)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(run.params[-1], params, rtol=1e-12)


def test_identity_run_goes_on_from_its_state_and_from_a_file(key, tmp_path):
    data = jax.random.normal(key, (30, 3)) / 3
    optimizer, batches = af.vradam(0.03), lambda n: data[n]
    whole = af.iterate(optimizer, loss, START, 30, batches=batches)
    half = af.iterate(optimizer, loss, START, 12, batches=batches)
    half.save(tmp_path / "half.nc")
    params, start = af.load(tmp_path / "half.nc").restart
    rest = af.iterate(optimizer, loss, params, 30, start=start, batches=batches)
    np.testing.assert_array_equal(rest.params[-1], whole.params[-1])


def test_identity_without_noise_it_is_rmsprop_and_so_is_its_flow():
    optimizer, other = (make(0.02, beta=0.99, epsilon=1e-8) for make in (af.vradam, af.rmsprop))
    runs = [af.iterate(record, smooth_loss, START, 60) for record in (optimizer, other)]
    np.testing.assert_allclose(runs[0].params, runs[1].params, rtol=1e-9)
    for order in (1, 2):
        # m = g at the start, and with the rate of [GT] it stays so: m' = H θ', whatever θ' is.
        flows = [af.GouldTanakaFlow(record, order=order) for record in (optimizer, other)]
        states = [flow.initial_state(smooth_loss, START) for flow in flows]
        np.testing.assert_allclose(states[0].filters[0]["first_moment"], jax.grad(smooth_loss)(START), rtol=1e-14)
        fields = [flow.vector_field(0.0, state, smooth_loss) for flow, state in zip(flows, states, strict=True)]
        np.testing.assert_allclose(fields[0].params, fields[1].params, rtol=1e-12)
        change = (jnp.asarray(CURVATURES) - 0.3 * jnp.cos(START)) * fields[0].params
        np.testing.assert_allclose(fields[0].filters[0]["first_moment"], change, rtol=1e-10)


def test_formula_report_reads_the_second_gradient():
    data = np.random.default_rng(5).normal(size=(12, 3)) / 3
    optimizer = af.vradam(0.05, gamma=0.6)
    run = af.iterate(optimizer, loss, START, 12, batches=lambda n: jnp.asarray(data)[n], save_at=[12])
    params, state = run.final_state
    batches = [jnp.asarray(data[0]), jnp.asarray(data[1])]
    report = af.analysis.training_report(loss, params, optimizer, state, 12, batches=batches)
    g, before = (
        np.mean([gradient_by_hand(np.asarray(place), x) for x in data[:2]], axis=0)
        for place in (params, state.previous_params)
    )
    m = 0.6 * np.asarray(state.filters[0]["first_moment"]) + g - 0.6 * before
    v = (0.999 * np.asarray(state.filters[0]["second_moment"]) + 0.001 * g**2) / (1 - 0.999**13)
    assert report.update_norm == pytest.approx(np.linalg.norm(m / (np.sqrt(v) + 1e-8)), rel=1e-10)
    assert report.edge == pytest.approx(2.0, rel=1e-9)


def test_formula_gaussian_noise_is_one_sample_at_both_places(key):
    # Noise that does not depend on θ leaves the estimator without lag: (1−γ)/(1+γ) of its variance.
    noise = af.noise.known_covariance(0.25, START)
    observe = lambda s: s.filters[0]["first_moment"] - jnp.asarray(CURVATURES) * s.params  # noqa: E731
    options = {"key": key, "paths": 400, "save_at": [60], "observe": observe}
    runs = af.noise.discrete_paths(af.vradam(0.05, gamma=0.8), loss, START, 60, noise, **options)
    found = runs.observed.reshape(-1)
    variance, expected = float(jnp.mean(found**2)), 0.25 * 0.2 / 1.8
    assert abs(variance / expected - 1) < 5 * np.sqrt(2 / found.size)


def test_failure_of_what_has_no_second_gradient(unchecked):
    record = af.vradam(0.1)
    gradient, state = jnp.ones(3), record.initial_state(START)
    with pytest.raises(ValueError, match="takes two gradients of each batch, the second at the parameters before"):
        record.update(gradient, state, 0, START)
    with pytest.raises(ValueError, match="of which an optax loop hands on one; call update"):
        record.to_optax().update(gradient, record.to_optax().init(START), START)
    with pytest.raises(ValueError, match=r"stages\[1\], VRAdamStage, uses two gradients of one batch"):
        af.Optimizer(0.1, (af.AdamStage(beta=0.9, gamma=0.9), VRAdamStage(beta=0.9, gamma=0.9)))
    noise = af.noise.known_covariance(0.1, START)
    with pytest.raises(TypeError, match="VRAdamStage has no stochastic flow: its step depends on the noise of one sam"):
        af.StochasticFlow(record, noise)
    for kind, rank in (("low_rank", 2), ("diagonal", None), ("isotropic", None)):
        options = {} if rank is None else {"rank": rank}
        at_each_place = af.noise.MinibatchNoise(loss, jnp.ones((8, 3)), 2, kind=kind, **options)
        with pytest.raises(ValueError, match=f"two gradients of one sample, but the covariance .* kind '{kind}'"):
            af.noise.discrete_paths(record, loss, START, 3, at_each_place, key=jax.random.key(0))
        noisy = af.noise.NoisyLoss(loss, at_each_place)
        with pytest.raises(ValueError, match="two gradients of one sample, but the noise of this loss"):
            af.iterate(record, noisy, START, 3, batches=af.noise.Keys(0))
    for flow in (af.ModifiedFlow, af.MemorylessFlow):
        with pytest.raises(TypeError, match="VRAdamStage"):
            flow(record)
    with pytest.raises(TypeError, match="knows the rules of SGD"):
        af.scale_batch(record, 4)
    with pytest.raises(ValueError, match="decay of 'first_moment' in stage 0 must be a single number in a run"):
        af.iterate(af.vradam(0.1, gamma=jnp.array([0.5, 0.9])), loss, START, 5)
    problem = af.problems.rayleigh(dimension=4)
    with pytest.raises(ValueError, match="iterate_on_spheres takes one gradient of each batch"):
        af.analysis.iterate_on_spheres(
            af.adam(0.1), problem.loss, problem.params, 5, problem.scale_invariant, other_optimizer=record
        )


@pytest.mark.parametrize(
    ("make", "order"),
    [
        (lambda record: af.GouldTanakaFlow(record, order=1, rate="exact"), 1),
        (lambda record: af.InterpolatingFlow(record, order=2), 2),
    ],
    ids=["exact rate", "interpolating"],
)
def test_order_of_its_flows(make, order):
    etas, errors = [0.02, 0.01, 0.005], []
    # Filters that have settled at the start, from a run that hardly moves: the start does not depend on η.
    first = 200
    settled = af.iterate(af.vradam(1e-9, beta=0.9, gamma=0.5, epsilon=0.1), smooth_loss, START, first).final_state[1]
    for eta in etas:
        record, last = af.vradam(eta, beta=0.9, gamma=0.5, epsilon=0.1), first + round(0.6 / eta)
        options = {"start": (first, settled), "save_at": [last]}
        discrete = af.iterate(record, smooth_loss, START, last, **options)
        flow = af.solve(make(record), smooth_loss, START, last, solver=diffrax.Tsit5(), rtol=1e-9, **options)
        errors.append(float(jnp.linalg.norm(flow.params[-1] - discrete.params[-1])))
    slope = np.log(errors[0] / errors[-1]) / np.log(etas[0] / etas[-1])
    assert abs(slope - order) < 0.2, (errors, slope)
