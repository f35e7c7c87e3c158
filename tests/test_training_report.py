"""A look at a training run's state, against dense Hessians of NumPy and closed forms."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import adamflow as af
from adamflow.analysis import TrainingReport, training_report

INPUTS = np.linspace(-1.0, 1.0, 20).reshape(10, 2)
TARGETS = np.sin(3 * INPUTS[:, 0])


def network_loss(params):
    hidden = jnp.tanh(INPUTS @ params["inner"] + params["shift"])
    return jnp.mean((hidden @ params["outer"] - TARGETS) ** 2)


def batch_loss(params, batch):
    inputs, targets = batch
    hidden = jnp.tanh(inputs @ params["inner"] + params["shift"])
    return jnp.mean((hidden @ params["outer"] - targets) ** 2)


def quadratic_loss(params, curvature):
    return (curvature * params**2).sum() / 2


def diagonal_loss(curvature):
    return eqx.Partial(quadratic_loss, curvature=jnp.asarray(curvature))


def network_params(seed=0):
    generator = np.random.default_rng(seed)
    shapes = {"inner": (2, 4), "outer": (4,), "shift": (4,)}
    return {name: jnp.asarray(generator.standard_normal(shape)) for name, shape in shapes.items()}


def state_after(optimizer, steps=12, seed=0, loss=network_loss):
    run = af.iterate(optimizer, loss, network_params(seed), steps, save_at=[steps])
    return run.final_state


def dense(loss, params):
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.jit(jax.hessian(lambda x: loss(unravel(x))))(flat))


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


gradient_of_network = jax.jit(jax.grad(network_loss))


def denominators(optimizer, params, state, iteration):
    """The product of √v̂ + ε over the stages, written out: the P of the step that leaves this state."""
    signal = flat(gradient_of_network(params))
    product = np.ones_like(signal)
    for stage, filters in zip(optimizer.stages, state.filters, strict=True):
        beta, gamma = float(stage.beta), float(getattr(stage, "gamma", 0.0))
        first = signal
        if gamma:
            first = (gamma * flat(filters["first_moment"]) + (1 - gamma) * signal) / (1 - gamma ** (iteration + 1))
        second = (beta * flat(filters["second_moment"]) + (1 - beta) * signal**2) / (1 - beta ** (iteration + 1))
        denominator = np.sqrt(second) + float(optimizer.epsilon)
        product *= denominator
        signal = first / denominator
    return product


OPTIMIZERS = {
    "adamw": af.adamw(0.01, beta=0.99, gamma=0.9, epsilon=1e-8, weight_decay=0.3),
    "rmsprop": af.rmsprop(0.01, beta=0.9, epsilon=1e-3),
    "2-adam": af.kadam(2, 0.01, beta=0.99, gamma=0.8, epsilon=1e-8, weight_decay=0.1),
}


# --- formula ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_formula_dense_hessian_and_written_preconditioner(name, seed):
    optimizer = OPTIMIZERS[name]
    params, state = state_after(optimizer, seed=seed)
    report = training_report(network_loss, params, optimizer, state, 12, tolerance=1e-9)
    assert isinstance(report, TrainingReport)
    hessian = dense(network_loss, params)
    scale = denominators(optimizer, params, state, 12)
    values, vectors = np.linalg.eigh(hessian / np.sqrt(np.outer(scale, scale)))
    assert report.preconditioned_sharpness == pytest.approx(values[-1], rel=1e-9)
    assert report.converged
    assert abs(flat(report.vector) @ vectors[:, -1]) == pytest.approx(1, abs=1e-9)
    assert report.sharpness == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-9)
    edge = 0.01 * float(af.analysis.critical_curvature(optimizer))
    assert report.edge == pytest.approx(edge, rel=1e-12)
    assert report.ratio == pytest.approx(0.01 * values[-1] / edge, rel=1e-9)
    expected = {key: float(np.sum(np.asarray(leaf) ** 2)) for key, leaf in report.vector.items()}
    assert report.share_by_leaf == pytest.approx(expected)
    assert sum(report.share_by_leaf.values()) == pytest.approx(1)


def test_formula_sharpness_of_each_leaf_is_that_of_its_dense_block():
    optimizer = OPTIMIZERS["2-adam"]
    params, state = state_after(optimizer)
    asked = dict(plain_sharpness=False, leaf_sharpness=True)
    report = training_report(network_loss, params, optimizer, state, 12, tolerance=1e-9, **asked)
    scale = denominators(optimizer, params, state, 12)
    matrix = dense(network_loss, params) / np.sqrt(np.outer(scale, scale))
    ends = np.cumsum([leaf.size for leaf in jax.tree.leaves(params)])
    for (name, value), end in zip(report.leaf_sharpness.items(), ends, strict=True):
        place = slice(end - params[name].size, end)
        block = matrix[place, place]
        assert value == pytest.approx(np.linalg.eigvalsh(block)[-1], rel=1e-9)
        vector = np.ravel(report.leaf_vectors[name])
        assert np.linalg.norm(block @ vector - value * vector) <= 1.1e-9 * abs(value) + 1e-14 * np.abs(block).max()
        assert value <= report.preconditioned_sharpness * (1 + 1e-9)
    warm = training_report(network_loss, params, optimizer, state, 12, start=report, **asked)
    assert warm.leaf_sharpness == pytest.approx(report.leaf_sharpness, rel=1e-4)
    assert warm.scalars()["leaf_sharpness/outer"] == warm.leaf_sharpness["outer"]
    assert warm.scalars()["leaf_sharpness_residual/outer"] <= 1.1e-3 * warm.leaf_sharpness["outer"]
    top = max(warm.leaf_sharpness, key=warm.leaf_sharpness.get)
    assert f"Of the leaves alone {top} has the largest s" in str(warm)
    assert not training_report(network_loss, params, optimizer, state, 12, plain_sharpness=False).leaf_sharpness


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_formula_quotients_along_gradient_and_update(name):
    optimizer = OPTIMIZERS[name]
    params, state = state_after(optimizer)
    report = training_report(network_loss, params, optimizer, state, 12)
    hessian, scale = dense(network_loss, params), denominators(optimizer, params, state, 12)
    gradient = jax.grad(network_loss)(params)
    direction, _ = optimizer.update(gradient, state, 12)
    step = flat(optimizer.increment(params, direction))
    for vector, plain, relative in (
        (flat(gradient), report.gradient_curvature, report.gradient_preconditioned_curvature),
        (step, report.update_curvature, report.update_preconditioned_curvature),
    ):
        assert plain == pytest.approx(vector @ hessian @ vector / (vector @ vector), rel=1e-9)
        assert relative == pytest.approx(vector @ hessian @ vector / (vector @ (scale * vector)), rel=1e-9)
        assert plain <= report.sharpness * (1 + 1e-6)
        assert relative <= report.preconditioned_sharpness * (1 + 1e-6)
    assert report.update_max == pytest.approx(np.max(np.abs(flat(direction))))
    assert report.update_norm == pytest.approx(np.linalg.norm(flat(direction)))


def test_formula_gradient_descent_has_no_preconditioner():
    optimizer = af.sgd(0.1, gamma=0.5)
    params, state = state_after(optimizer)
    report = training_report(network_loss, params, optimizer, state, 12, tolerance=1e-8)
    assert report.preconditioned_sharpness == pytest.approx(np.linalg.eigvalsh(dense(network_loss, params))[-1])
    # Heavy ball with the gradient times 1 − γ: η(1−γ)s < 2(1+γ).
    assert report.edge == pytest.approx(6.0)
    assert report.region == ""
    assert not {"update_bound", "lagging_share", "stability_exponent"} & report.scalars().keys()


def test_formula_critical_sharpness_of_a_parabola():
    # L = (θ₀² + 10 θ₁²)/2; a step d with slope a and bend b is back at the old loss after −2a/b of it.
    optimizer, curvature, params = af.sgd(0.05), np.array([1.0, 10.0]), jnp.array([3.0, 1.0])
    report = training_report(diagonal_loss(curvature), params, optimizer, optimizer.initial_state(params), 0)
    gradient = curvature * np.asarray(params)
    exact = 2 / (2 * gradient @ gradient / (gradient @ (curvature * gradient)))
    assert abs(report.critical_sharpness - exact) <= report.critical_sharpness_error * (1 + 1e-9)
    assert report.critical_sharpness_error <= 0.06 * exact
    assert report.evaluations <= 6


@pytest.mark.parametrize("seed", range(4))
def test_formula_critical_sharpness_of_a_network(seed):
    optimizer = OPTIMIZERS["adamw"]
    params, state = state_after(optimizer, seed=seed)
    report = training_report(network_loss, params, optimizer, state, 12)
    direction, _ = optimizer.update(jax.grad(network_loss)(params), state, 12)
    step = optimizer.increment(params, direction)
    multiples = np.geomspace(1e-2, 1e4, 4000)
    along = jax.vmap(lambda c: network_loss(jax.tree.map(lambda leaf, d: leaf + c * d, params, step)))(multiples)
    first = multiples[np.argmax(np.asarray(along) > network_loss(params))]
    exact = 2 / (0.01 * first)
    assert abs(report.critical_sharpness - exact) <= report.critical_sharpness_error * (1 + 1e-9) + 0.004 * exact
    assert report.evaluations <= 8


def test_formula_growth_of_sharpness_by_the_second_moment_alone():
    optimizer = af.adam(0.01, beta=0.999, gamma=0.9, epsilon=1e-8)
    params, state = state_after(optimizer, 400)
    report = training_report(network_loss, params, optimizer, state, 400, tolerance=1e-9)
    hessian = dense(network_loss, params)
    now = denominators(optimizer, params, state, 400)
    before = flat(optimizer.preconditioner(state.filters, 399))
    tops = [np.linalg.eigvalsh(hessian / np.sqrt(np.outer(scale, scale)))[-1] for scale in (before, now)]
    assert report.growth_from_second_moment == pytest.approx(math.log(tops[1] / tops[0]), rel=0.02)
    # With no gradient at all v shrinks by β, and v̂ by what bias correction makes of that.
    most = -0.5 * math.log(0.999 * (1 - 0.999**400) / (1 - 0.999**401))
    assert report.growth_from_second_moment <= most * 1.001


def test_formula_share_of_coordinates_whose_second_moment_lags():
    optimizer, params = af.adam(0.01, beta=0.5, gamma=0.0), jnp.array([1.0, 0.01, 0.0, 1.0])
    state = optimizer.with_moment(optimizer.initial_state(params), "second_moment", jnp.array([1.0, 1.0, 1.0, 0.0]))
    report = training_report(diagonal_loss(np.ones(4)), params, optimizer, state, 1000, cheap=True)
    assert report.lagging_share == 0.5


def test_formula_bound_and_region_of_the_last_stage():
    optimizer = OPTIMIZERS["2-adam"]
    params, state = state_after(optimizer)
    report = training_report(network_loss, params, optimizer, state, 12, cheap=True)
    decays = dict(beta=optimizer.stages[-1].beta, gamma=optimizer.stages[-1].gamma)
    assert report.update_bound == pytest.approx(float(af.analysis.update_bound(12, kind="discrete", **decays)))
    assert report.stability_exponent == pytest.approx(float(af.analysis.stability_exponent(**decays)))
    assert report.region == "B+"
    assert report.update_max <= report.update_bound
    outside = af.adam(0.01, beta=0.9, gamma=0.99)
    assert training_report(network_loss, *parts(outside), 12, cheap=True).region == "B-"


def parts(optimizer):
    params, state = state_after(optimizer)
    return params, optimizer, state


@pytest.mark.parametrize("seed", range(5))
def test_formula_residual_bounds_the_distance_to_an_eigenvalue(seed):
    generator = np.random.default_rng(seed)
    curvature = generator.normal(size=60)
    params = jnp.ones(60)
    optimizer = af.sgd(0.01)
    state = optimizer.initial_state(params)
    report = training_report(diagonal_loss(curvature), params, optimizer, state, 0, max_products=6, tolerance=1e-12)
    vector, value = flat(report.vector), report.preconditioned_sharpness
    residual = np.linalg.norm(curvature * vector - value * vector)
    assert report.preconditioned_sharpness_residual == pytest.approx(residual, rel=1e-6)
    assert np.min(np.abs(curvature - value)) <= residual
    assert not report.converged
    assert "not converged" in str(report)


# --- identity --------------------------------------------------------------------------------------------------------


def test_identity_report_agrees_with_the_sharpness_observer_and_the_run():
    optimizer = OPTIMIZERS["adamw"]
    observe = af.analysis.sharpness_observer(optimizer, network_loss)
    run = af.iterate(optimizer, network_loss, network_params(), 12, save_at=[12], observe=observe)
    report = training_report(network_loss, *parts(optimizer), 12, tolerance=1e-9)
    assert report.preconditioned_sharpness == pytest.approx(float(run.observed.value[-1]), rel=1e-8)


@jax.custom_vjp
def reverse_mode_tanh(x):
    return jnp.tanh(x)


reverse_mode_tanh.defvjp(lambda x: (jnp.tanh(x), x), lambda x, cotangent: (cotangent * (1 - jnp.tanh(x) ** 2),))


def test_identity_a_loss_with_reverse_mode_alone_has_the_same_numbers():
    def loss(params):
        hidden = reverse_mode_tanh(INPUTS @ params["inner"] + params["shift"])
        return jnp.mean((hidden @ params["outer"] - TARGETS) ** 2)

    optimizer = OPTIMIZERS["adamw"]
    params, state = state_after(optimizer)
    found = training_report(loss, params, optimizer, state, 12, tolerance=1e-9).scalars()
    expected = training_report(network_loss, params, optimizer, state, 12, tolerance=1e-9).scalars()
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name] == pytest.approx(expected[name], rel=1e-7), name


@pytest.mark.parametrize("seed", range(3))
def test_identity_an_eigenvalue_among_close_ones_is_found_by_many_products(seed, key):
    """Eigenvalues a thousandth apart: without orthogonality to all vectors before, Lanczos finds copies."""
    curvature = np.concatenate([np.linspace(0.1, 9.0, 60), 10 - np.geomspace(1e-3, 0.5, 20)])
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((80, 80)))[0]
    matrix = jnp.asarray(rotation * curvature @ rotation.T)
    params, optimizer = jax.random.normal(key, (80,)), af.sgd(0.01)
    state = optimizer.initial_state(params)
    report = training_report(
        lambda x: x @ matrix @ x / 2, params, optimizer, state, 0, tolerance=1e-10, max_products=80
    )
    assert report.sharpness == pytest.approx(curvature.max(), rel=1e-9)


def test_identity_warm_start_takes_at_most_8_products_each_and_finds_the_same():
    generator = np.random.default_rng(0)
    curvature = np.append(generator.uniform(0.0, 1.0, 400), 1.5)
    optimizer, params = af.adam(1e-3, epsilon=1e-8), jnp.asarray(generator.normal(size=401))
    loss = diagonal_loss(curvature)
    run = af.iterate(optimizer, loss, params, 120, save_at=[100, 120])
    earlier = af.iterate(optimizer, loss, params, 100, save_at=[100]).final_state
    first = training_report(loss, earlier[0], optimizer, earlier[1], 100)
    params, state = run.final_state
    cold = training_report(loss, params, optimizer, state, 120, tolerance=1e-9, max_products=401)
    warm = training_report(loss, params, optimizer, state, 120, start=first)
    assert warm.products - 2 <= 16
    assert warm.converged
    assert warm.preconditioned_sharpness == pytest.approx(cold.preconditioned_sharpness, rel=1e-4)


def test_identity_warm_start_finds_an_eigenvector_that_has_overtaken():
    optimizer, params = af.sgd(0.01), jnp.ones(50)
    state = optimizer.initial_state(params)
    curvature = np.linspace(0.0, 1.0, 50)
    curvature[:2] = 3.0, 2.0
    first = training_report(diagonal_loss(curvature), params, optimizer, state, 0, tolerance=1e-9)
    curvature[:2] = 2.0, 3.0
    second = training_report(diagonal_loss(curvature), params, optimizer, state, 0, start=first)
    assert second.preconditioned_sharpness == pytest.approx(3.0, rel=1e-4)
    assert second.converged


def test_identity_batches_are_averaged():
    optimizer = OPTIMIZERS["adamw"]
    params, state = state_after(optimizer)
    batches = [(INPUTS[:5], TARGETS[:5]), (INPUTS[5:], TARGETS[5:])]
    whole = training_report(network_loss, params, optimizer, state, 12).scalars()
    mean = training_report(batch_loss, params, optimizer, state, 12, batches=batches).scalars()
    assert mean == pytest.approx(whole, rel=1e-7)


def test_identity_groups_rescale_parameters():
    # A leaf with the rate rη is the leaf θ/r of a loss of rθ' with the rate η, but for Adam's scale invariance.
    optimizer = af.sgd({"a": 0.1, "b": 0.4})
    params = {"a": jnp.array([1.0]), "b": jnp.array([2.0])}

    def loss(tree):
        return 2 * tree["a"][0] ** 2 + tree["a"][0] * tree["b"][0] + 3 * tree["b"][0] ** 2

    report = training_report(loss, params, optimizer, optimizer.initial_state(params), 0, tolerance=1e-9)
    rates = np.array([0.1, 0.4])
    expected = np.max(np.linalg.eigvals(rates[:, None] * np.array([[4.0, 1.0], [1.0, 6.0]])).real)
    assert report.scaled_sharpness == pytest.approx(expected, rel=1e-8)


def test_identity_clipping_scales_the_gradient_that_the_optimizer_gets():
    optimizer, params = af.with_clipping(af.sgd(0.1), 1.0), jnp.array([3.0, 4.0])
    report = training_report(diagonal_loss(np.ones(2)), params, optimizer, optimizer.initial_state(params), 0)
    assert report.gradient_norm == pytest.approx(5.0)
    assert report.update_norm == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_identity_lower_precision_computes_in_float32(dtype):
    optimizer = af.adam(jnp.float32(0.01), epsilon=1e-8)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), network_params())
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    double = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    low = training_report(network_loss, params, optimizer, optimizer.initial_state(single), 0)
    high = training_report(network_loss, double, optimizer, optimizer.initial_state(double), 0)
    assert low.vector["inner"].dtype == jnp.float32
    for name in ("preconditioned_sharpness", "sharpness", "update_curvature", "loss"):
        assert getattr(low, name) == pytest.approx(getattr(high, name), rel=1e-4)


def test_identity_cheap_report_has_the_same_cheap_numbers():
    full = training_report(network_loss, *parts(OPTIMIZERS["adamw"]), 12)
    cheap = training_report(network_loss, *parts(OPTIMIZERS["adamw"]), 12, cheap=True)
    assert cheap.products == 2
    assert cheap.vector is None
    numbers = cheap.scalars()
    assert all(isinstance(value, float) for value in numbers.values())
    assert not {"preconditioned_sharpness", "scaled_sharpness", "ratio", "sharpness"} & numbers.keys()
    for name in numbers.keys() - {"products"}:
        assert numbers[name] == full.scalars()[name]
    assert numbers.keys() < full.scalars().keys()


def test_identity_words_say_the_numbers():
    report = training_report(network_loss, *parts(OPTIMIZERS["adamw"]), 12)
    text = str(report)
    for number in (f"{report.scaled_sharpness:.4g}", f"{report.edge:.4g}", f"{report.update_bound:.4g}"):
        assert number in text
    assert "below it" in text
    assert len(text) < 1500


# --- failure ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (dict(optimizer_state=None), TypeError, "optimizer_state must be an OptimizerState, got None"),
        (dict(optimizer_state="other"), ValueError, "not a state of 'adamw' for these parameters"),
        (dict(optimizer=af.signsgd(0.1), optimizer_state="own"), TypeError, "sign descent"),
        (dict(optimizer=1.0), TypeError, "training_report needs an optimizer"),
        (dict(iteration=-1), ValueError, "iteration must be a whole number of at least 0, got -1"),
        (dict(iteration=1.5), ValueError, "iteration must be a whole number"),
        (dict(loss=lambda params: jnp.nan * params["outer"].sum()), ValueError, "the loss is nan at these parameters"),
        (dict(loss=3.0), ValueError, "loss must be a function"),
        (dict(params={"a": jnp.arange(3)}), ValueError, "must be float32 or float64, got int"),
        (dict(start=3), TypeError, "start must be the TrainingReport of an earlier state, got 3"),
        (dict(tolerance=0.0), ValueError, "tolerance must lie in"),
        (dict(cheap=True, leaf_sharpness=True), ValueError, "cheap report has no eigenvalues, so leaf_sharpness=True"),
        (dict(leaf_sharpness=1), ValueError, "leaf_sharpness must be True or False, got 1"),
        (dict(max_products=1), ValueError, "max_products must be a whole number of at least 2, got 1"),
        (dict(batches=[]), ValueError, "batches must hold at least one batch"),
        (dict(optimizer=af.adam({"x": 1.0})), ValueError, "learning_rate must be a number, or a pytree prefix"),
        (dict(optimizer=af.adam(lambda n: 0.0 * n)), ValueError, "the learning rate is 0 at iteration"),
    ],
)
def test_failure_words(change, error, words, unchecked):
    optimizer = change.get("optimizer", OPTIMIZERS["adamw"])
    params, state = state_after(OPTIMIZERS["adamw"])
    given = dict(loss=network_loss, params=params, optimizer=optimizer, optimizer_state=state, iteration=12) | change
    if given["optimizer_state"] == "other":
        given["optimizer_state"] = OPTIMIZERS["adamw"].initial_state(jnp.ones(3))
    if given["optimizer_state"] == "own":
        given["optimizer_state"] = given["optimizer"].initial_state(params)
    with pytest.raises(error, match=words):
        training_report(**given)


def test_failure_start_of_another_run():
    optimizer, params = af.sgd(0.1), jnp.ones(3)
    report = training_report(diagonal_loss(np.ones(3)), params, optimizer, optimizer.initial_state(params), 0)
    params, state = state_after(OPTIMIZERS["adamw"])
    with pytest.raises(ValueError, match="start is the report of 3 parameters, but these are 16"):
        training_report(network_loss, params, OPTIMIZERS["adamw"], state, 12, start=report)


def test_failure_under_jit():
    optimizer = af.sgd(0.1)

    def inside(params):
        return training_report(network_loss, params, optimizer, optimizer.initial_state(params), 0).loss

    with pytest.raises(ValueError, match="call it outside of jit"):
        jax.jit(inside)(network_params())


def test_failure_any_step_raises_the_loss_when_momentum_points_uphill():
    optimizer, params = af.adam(0.01, gamma=0.9), jnp.array([1.0])
    state = optimizer.with_moment(optimizer.initial_state(params), "first_moment", jnp.array([-5.0]))
    state = optimizer.with_moment(state, "second_moment", jnp.array([1.0]))
    report = training_report(diagonal_loss(np.ones(1)), params, optimizer, state, 50)
    assert math.isinf(report.critical_sharpness)
    assert "Any step along the update raises this loss" in str(report)
