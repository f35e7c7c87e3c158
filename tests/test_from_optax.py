"""Optimizers and states read from optax, against the same runs by `iterate`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamflow as af
from adamflow.analysis import training_report

STEPS = 15


def loss(params):
    return (
        jnp.sum(jnp.cos(params["w"]) * jnp.arange(1.0, 4.0))
        + (params["b"] ** 4).sum()
        + params["w"][0] * params["b"][1]
    )


PARAMS = {"w": jnp.array([1.0, 2.0, 0.5]), "b": jnp.array([0.3, -1.2])}


def trained(transformation, params=PARAMS, steps=STEPS):
    """Parameters and state of an ordinary optax loop."""

    @jax.jit
    def step(params, state):
        updates, state = transformation.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(transformation.init)(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


SCHEDULE = optax.cosine_decay_schedule(0.02, 100)

CASES = {
    "adam": (optax.adam(0.01), af.adam(0.01, epsilon=1e-8), dict(learning_rate=0.01)),
    "adamw in a chain": (
        optax.chain(optax.clip_by_global_norm(1e6), optax.adamw(0.01, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.1)),
        af.adamw(0.01, b1=0.8, b2=0.95, epsilon=1e-6, weight_decay=0.1),
        dict(learning_rate=0.01, betas=(0.8, 0.95), epsilon=1e-6, weight_decay=0.1),
    ),
    "masked everywhere": (
        optax.masked(optax.adam(0.01), {"w": True, "b": True}),
        af.adam(0.01, epsilon=1e-8),
        dict(learning_rate=0.01),
    ),
    "injected": (
        optax.inject_hyperparams(optax.adamw)(learning_rate=0.01, b1=0.7, weight_decay=0.2),
        af.adamw(0.01, gamma=0.7, epsilon=1e-8, weight_decay=0.2),
        {},
    ),
    "apply_if_finite": (
        optax.apply_if_finite(optax.adam(0.01), 3),
        af.adam(0.01, epsilon=1e-8),
        dict(learning_rate=0.01),
    ),
    "rmsprop": (
        optax.rmsprop(0.01, decay=0.8),
        af.rmsprop(0.01, 0.8, 1e-8, epsilon_inside_root=True, bias_correction=False),
        dict(learning_rate=0.01, beta=0.8, iteration=STEPS),
    ),
    "momentum": (
        optax.sgd(0.002, momentum=0.9),
        af.sgd(0.02, 0.9),
        dict(learning_rate=0.002, gamma=0.9, iteration=STEPS),
    ),
    "nadam": (
        optax.nadam(0.01),
        af.nadam(0.01, epsilon=1e-8),
        dict(learning_rate=0.01, nesterov=True),
    ),
    "amsgrad": (
        optax.amsgrad(0.01, b2=0.9),
        af.amsgrad(0.01, beta=0.9, epsilon=1e-8, form="optax"),
        dict(learning_rate=0.01, beta=0.9),
    ),
    "multi_transform": (
        optax.multi_transform({"x": optax.adam(0.01), "y": optax.adam(0.01)}, {"w": "x", "b": "y"}),
        af.adam(0.01, epsilon=1e-8),
        dict(learning_rate=0.01),
    ),
}


# --- identity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_identity_report_equals_that_of_the_same_run_by_iterate(name):
    transformation, optimizer, settings = CASES[name]
    params, state = trained(transformation)
    run = af.iterate(optimizer, loss, PARAMS, STEPS, save_at=[STEPS])
    reading = af.from_optax(state, **settings)
    read_optimizer, read_state, iteration = reading
    assert iteration == STEPS
    assert read_optimizer.epsilon_inside_root == optimizer.epsilon_inside_root
    theirs = training_report(loss, params, read_optimizer, read_state, iteration, tolerance=1e-9).scalars()
    ours = training_report(loss, run.final_state[0], optimizer, run.final_state[1], STEPS, tolerance=1e-9).scalars()
    for scalars in (theirs, ours):
        # They are rounding errors here.
        assert scalars.pop("preconditioned_sharpness_residual") < 1e-8 * scalars["preconditioned_sharpness"]
        assert scalars.pop("sharpness_residual") < 1e-8 * scalars["sharpness"]
    assert theirs == pytest.approx(ours, rel=1e-10, abs=1e-12)


def test_identity_schedule_is_read_at_the_iteration():
    params, state = trained(optax.adamw(SCHEDULE, weight_decay=0.1))
    reading = af.from_optax(state, SCHEDULE, weight_decay=0.1)
    assert float(reading.optimizer.at(STEPS).learning_rate) == pytest.approx(float(SCHEDULE(STEPS)))
    direction, _ = reading.optimizer.update(jax.grad(loss)(params), reading.optimizer_state, reading.iteration)
    ours = reading.optimizer.at(STEPS).apply(params, direction)
    transformation = optax.adamw(SCHEDULE, weight_decay=0.1)
    theirs, _ = trained(transformation, steps=STEPS + 1)
    for name in params:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-12)


def test_identity_labels_with_rates_of_their_own_give_the_next_step():
    transforms = {"x": optax.adamw(0.01, weight_decay=0.3), "y": optax.adamw(0.03, weight_decay=0.0)}
    transformation = optax.multi_transform(transforms, {"w": "x", "b": "y"})
    params, state = trained(transformation)
    reading = af.from_optax(state, {"x": 0.01, "y": 0.03}, weight_decay={"x": 0.3, "y": 0.0})
    assert reading.optimizer.learning_rates(params) == {"w": 0.01, "b": 0.03}
    assert reading.optimizer.weight_decays(params) == {"w": 0.3, "b": 0.0}
    assert float(reading.optimizer.uniform(params).learning_rate) == pytest.approx(0.03)
    report = training_report(loss, params, *reading, tolerance=1e-9)
    assert report.learning_rate == pytest.approx(0.03)
    # The eigenvalues of diag(η) P⁻¹ H, from the state written out.
    gradient, moments = jax.jit(jax.grad(loss))(params), reading.optimizer_state.filters[0]
    rates = np.concatenate([np.full(2, 0.03), np.full(3, 0.01)])
    v = np.concatenate([np.asarray(moments["second_moment"][name]) for name in ("b", "w")])
    g = np.concatenate([np.asarray(gradient[name]) for name in ("b", "w")])
    scale = np.sqrt((0.999 * v + 0.001 * g**2) / (1 - 0.999 ** (STEPS + 1))) + 1e-8
    blocks = jax.jit(jax.hessian(loss))(params)
    hessian = np.block([[np.asarray(blocks[row][column]) for column in ("b", "w")] for row in ("b", "w")])
    expected = np.max(np.linalg.eigvals((rates / scale)[:, None] * hessian).real)
    assert report.scaled_sharpness == pytest.approx(expected, rel=1e-8)


def test_identity_frozen_leaves_are_left_out():
    transformation = optax.multi_transform({"x": optax.adam(0.01), "y": optax.set_to_zero()}, {"w": "x", "b": "y"})
    params, state = trained(transformation)
    with pytest.raises(ValueError, match=r"no moments for the leaves \['b'\]; if they are frozen, give params="):
        af.from_optax(state, 0.01)
    reading = af.from_optax(state, 0.01, params=params)
    assert any("taken to be frozen: ['b']" in note for note in reading.not_described)
    report = training_report(loss, params, *reading, tolerance=1e-9)

    def part(w):
        return loss(params | {"w": w})

    alone = af.from_optax(trained(optax.adam(0.01))[1], 0.01)
    assert report.share_by_leaf["b"] == 0.0
    state = alone.optimizer.initial_state(params["w"])
    for name in ("first_moment", "second_moment"):
        state = alone.optimizer.with_moment(state, name, reading.optimizer_state.filters[0][name]["w"])
    expected = training_report(part, params["w"], alone.optimizer, state, STEPS, tolerance=1e-9)
    assert report.preconditioned_sharpness == pytest.approx(expected.preconditioned_sharpness, rel=1e-8)


def test_identity_a_run_goes_on_from_an_optax_state():
    schedule = optax.cosine_decay_schedule(0.1, 30)
    rates = {"x": schedule, "y": lambda n: 0.5 * schedule(n)}
    transformation = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.multi_transform({label: optax.adam(rate) for label, rate in rates.items()}, {"w": "x", "b": "y"}),
    )
    params, state = trained(transformation)
    reading = af.from_optax(state, rates, clip_norm=0.5)
    run = af.iterate(reading.optimizer, loss, params, STEPS + 5, start=reading.start)
    theirs, _ = trained(transformation, steps=STEPS + 5)
    for name in params:
        np.testing.assert_allclose(run.params[name][-1], theirs[name], rtol=1e-12)


def test_identity_says_what_was_found():
    _, state = trained(optax.chain(optax.clip(1e6), optax.adamw(SCHEDULE)), steps=1)
    reading = af.from_optax(state, SCHEDULE)
    assert reading.found == ("ScaleByAdamState", "a schedule")
    assert "clipping" in str(reading)
    assert "after 1 iterations" in str(reading)


# --- failure ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transformation", "settings", "words"),
    [
        (optax.lion(0.1), dict(learning_rate=0.1), "holds a ScaleByLionState, which adamflow has no reader for"),
        (optax.lion(0.1), dict(learning_rate=0.1), "holds a ScaleByLionState"),
        (optax.sgd(0.1), dict(learning_rate=0.1), "no moments of Adam, RMSprop or momentum"),
        (optax.adam(0.1), {}, "does not hold the learning_rate; give learning_rate="),
        (optax.adam(0.1), dict(learning_rate=0.0), "learning_rate must lie in"),
        (optax.adam(0.1), dict(learning_rate=0.1, iteration=3), "iteration is 3, but the state counts 0 gradients"),
        (optax.rmsprop(0.1), dict(learning_rate=0.1), "no part of this opt_state counts the iterations"),
        (optax.rmsprop(0.1, momentum=0.9), dict(learning_rate=0.1, iteration=0), "mixes ScaleByRms.* and TraceState"),
        (optax.chain(optax.adam(0.1), optax.adam(0.1)), dict(learning_rate=0.1), "has 2 sets of moments"),
        (af.adam(0.1).to_optax(), {}, "adamflow optimizer's to_optax"),
        (
            optax.multi_transform({"x": optax.adam(0.1), "y": optax.adam(0.1)}, {"w": "x", "b": "y"}),
            dict(learning_rate={"x": 0.1}),
            "learning_rate has no entry for the labels",
        ),
    ],
)
def test_failure_words(transformation, settings, words):
    with pytest.raises(ValueError, match=words):
        af.from_optax(transformation.init(PARAMS), **settings)


def test_failure_training_state_of_another_library():
    class TrainState:
        opt_state = ()

    with pytest.raises(ValueError, match="got a TrainState; give its opt_state"):
        af.from_optax(TrainState(), 0.1)


def test_failure_lr_is_called_learning_rate():
    with pytest.raises(TypeError, match="no argument lr"):
        af.from_optax((), lr=0.1)
