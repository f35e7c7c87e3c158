"""The Adam family: one row for each optimizer, and the facts by which its members differ."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import adamflow as af
from conftest import SEED
from tests import algorithms

STEPS = 25
ETA = 0.01
NO_LINEAR = "not linear in the gradients while second moments are held"
INF = float("inf")
NO_BOUND = "no bound is known for the direction of"


#: γᵏ and βᵏ of the defaults, for gradients k = 0 … 20 iterations ago.
AGES = np.arange(21)
WEIGHTS, BETA_WEIGHTS = 0.1 * 0.9**AGES, 0.001 * 0.999**AGES
MASS, BETA_MASS = 1 - 0.9**21, 1 - 0.999**21


def sup(numerator, square):
    """Lemma L3: the largest |Σ cₖ xₖ|/√(Σ dₖ xₖ²)."""
    return np.sqrt(np.sum(np.broadcast_to(numerator, AGES.shape) ** 2 / square))


def interpolated(kappa, gamma):
    """The weights of κ m + (1−κ) g."""
    return kappa * (1 - gamma) * gamma**AGES + (1 - kappa) * (AGES == 0)


@dataclasses.dataclass(frozen=True)
class Row:
    """An optimizer, what its steps are compared with, and its edge and bound."""

    name: str
    record: af.Optimizer
    #: An optax transformation, or a function of tests/algorithms.py.
    peer: Any
    #: ηs at the edge of the discrete step, or a part of the sentence that refuses it; `None` where steps end at 0.
    edge: float | str | None
    #: The largest |u₂₀|, or a part of the sentence that refuses it; `None` where another test has it.
    bound: float | str | None
    #: The largest error of `GouldTanakaFlow` beside the iterates, relative to the distance moved; `None` where it has
    #: none.
    flow_error: float = 0.05


#: A new optimizer is one more row here.
TABLE = [
    Row("signum", af.signum(ETA, gamma=0.8), algorithms.signum(0.8), NO_LINEAR, 1.0),
    Row("lion", af.lion(ETA, weight_decay=0.1), optax.lion(ETA, weight_decay=0.1), NO_LINEAR, 1.0),
    Row(
        "uadam",
        af.uadam(ETA, beta=0.99, gamma=0.8, interpolation=2.0, epsilon=1e-3),
        algorithms.uadam(0.99, 0.8, 2.0, 1e-3),
        2 * 1.8 / (1.8 - 2 * 0.6 * 0.8),
        sup(interpolated(0.6, 0.8), 0.01 * 0.99**AGES),
    ),
    Row(
        "interpolated momentum",
        af.uadam(ETA, beta=None, gamma=0.8, interpolation=1.0),
        algorithms.interpolated_momentum(0.8, 1.0),
        2 * 1.8 / (1.8 - 2 * 0.8 * 0.8),
        float("inf"),
    ),
    Row(
        "nadamw",
        af.nadam(ETA, beta=0.99, epsilon=1e-3, weight_decay=0.1),
        optax.nadamw(ETA, b2=0.99, eps=1e-3, weight_decay=0.1),
        1.9 * (2 - 0.1 * ETA) / (1.9 - 2 * 0.81),
        sup(0.9 * WEIGHTS / (1 - 0.9**22) + 0.1 / MASS * (AGES == 0), 0.01 * 0.99**AGES / (1 - 0.99**21)),
    ),
    Row(
        "nadam, unified form",
        af.nadam(ETA, form="uadam", epsilon=1e-3),
        algorithms.nadam(0.999, 0.9, 1e-3),
        13.571428571,
        sup(interpolated(0.9, 0.9) / MASS, BETA_WEIGHTS / BETA_MASS),
    ),
    Row(
        "nadam, rising momentum",
        af.nadam(ETA, momentum_decay=0.004, epsilon=1e-3),
        algorithms.nadam_of_torch(0.999, 0.9, 1e-3, 0.004),
        13.571428571,
        None,
    ),
    Row("adamax", af.adamax(ETA, epsilon=1e-8), optax.adamax(ETA), 38.0, np.sum(WEIGHTS / MASS / 0.999**AGES)),
    Row("adagrad", af.adagrad(ETA, epsilon=1e-3), algorithms.adagrad(1e-3), 2.0, 1.0),
    Row(
        "adagrad, of optax",
        af.adagrad(ETA, epsilon=1e-3, epsilon_inside_root=True, initial_sum=0.1),
        optax.adagrad(ETA, eps=1e-3),
        2.0,
        1.0,
    ),
    Row("amsgrad", af.amsgrad(ETA, epsilon=1e-3), algorithms.amsgrad(0.999, 0.9, 1e-3), 38.0, NO_BOUND),
    Row(
        "amsgrad, of optax",
        af.amsgrad(ETA, epsilon=1e-3, form="optax"),
        optax.amsgrad(ETA, eps=1e-3),
        38.0,
        1.1698983290,
    ),
    Row(
        "amsgrad, of torch",
        af.amsgrad(ETA, epsilon=1e-3, form="torch"),
        algorithms.amsgrad_of_torch(0.999, 0.9, 1e-3),
        38.0,
        NO_BOUND,
    ),
    Row(
        "adabelief",
        af.adabelief(ETA, epsilon=1e-3, epsilon_added=1e-6),
        optax.adabelief(ETA, eps=1e-3, eps_root=1e-6),
        38.0,
        NO_BOUND,
    ),
    Row("yogi", af.yogi(ETA), algorithms.yogi(0.999, 0.9, 1e-3, 1e-6), 38.0, NO_BOUND),
    Row("yogi, of optax", af.yogi(ETA, bias_correction=True, initial_first=1e-6), optax.yogi(ETA), 38.0, NO_BOUND),
    Row("radam", af.radam(ETA, epsilon=1e-3, beta=0.99), algorithms.radam(0.99, 0.9, 1e-3), 38.0, None),
    Row("radam, of optax", af.radam(ETA, epsilon=1e-3, threshold=5.0), optax.radam(ETA, eps=1e-3), 38.0, None),
    Row("adabound", af.adabound(ETA), algorithms.adabound(ETA, nesterov=False), 3.8, INF),
    Row("nadambound", af.nadambound(ETA), algorithms.adabound(ETA, nesterov=True), 1.3571428571, INF),
    Row(
        "adafom", af.adafom(ETA, epsilon=1e-3), algorithms.adafom(0.9, 1e-3, shrinks=False), 38.0, sup(WEIGHTS, 1 / 21)
    ),
    # Its steps go to 0, and with them what turns unstable.
    Row(
        "adafom, shrinking steps",
        af.adafom(ETA, epsilon=1e-3, shrinks=True),
        algorithms.adafom(0.9, 1e-3, shrinks=True),
        None,
        sup(WEIGHTS / 21**0.5, 1 / 21),
    ),
    Row(
        "adan",
        af.adan(ETA, weight_decay=0.1),
        algorithms.adan(0.98, 0.92, 0.99, 1e-8, 0.1),
        23.050058207 * (1 - 0.05 * ETA / (1 + 0.1 * ETA)),
        None,
    ),
    Row(
        "adan, of optax",
        af.adan(ETA, difference_weight=0.08, weight_decay=0.1, proximal=False),
        optax.adan(ETA, weight_decay=0.1, eps_root=0.0),
        119.277108434 * (1 - 0.05 * ETA),
        None,
    ),
    Row(
        "ademamix",
        af.ademamix(ETA, epsilon=1e-3, slow_weight=5.0, weight_decay=0.1),
        optax.contrib.ademamix(ETA, eps=1e-3, weight_decay=0.1),
        (2 - 0.1 * ETA) / (0.1 / 1.9 + 5 * 0.0001 / 1.9999),
        sup(WEIGHTS / MASS + 5 * 0.0001 * 0.9999**AGES, BETA_WEIGHTS / BETA_MASS),
    ),
    Row("madam", af.madam(ETA), algorithms.maxva(0.5, 0.98, 0.9, averages_last=False), 38.0, NO_BOUND),
    Row("lamadam", af.lamadam(ETA), algorithms.maxva(0.5, 0.98, 0.9, averages_last=True), 38.0, 2**0.5),
    Row("clipped adam", af.clipped_adam(ETA, clip=0.8), algorithms.clipped_adam(0.9, 0.8), 8.7177978871, 0.8),
    Row("adam+", af.adam_plus(ETA), algorithms.adam_plus(0.9), NO_LINEAR, NO_BOUND),
    Row("lamb", af.lamb(ETA, weight_decay=0.1), optax.lamb(ETA, weight_decay=0.1), NO_LINEAR, NO_BOUND),
    # optax leaves out 1 − γ.
    Row(
        "lars",
        af.lars(ETA, weight_decay=0.1, trust_coefficient=0.7, form="optax"),
        optax.lars(ETA / 10, weight_decay=0.1, trust_coefficient=0.7),
        NO_LINEAR,
        NO_BOUND,
    ),
    Row(
        "lars, of the paper",
        af.lars(ETA, gamma=0.8, weight_decay=0.1),
        algorithms.lars(0.8, 0.001, 0.1),
        NO_LINEAR,
        NO_BOUND,
    ),
    Row("steepest descent", af.steepest_descent(ETA, "max"), algorithms.steepest("max"), NO_LINEAR, INF),
    Row(
        "steepest descent, spectral",
        af.steepest_descent(ETA, "spectral", dual_norm=False),
        algorithms.steepest("spectral"),
        NO_LINEAR,
        1.0,
    ),
    Row(
        "muon",
        af.muon(ETA, nesterov=False, epsilon=0.0, smallest_norm=0.0, weight_decay=0.1, output_axis=1),
        optax.contrib.muon(ETA, nesterov=False, eps=0.0, weight_decay=0.1, adam_weight_decay=0.1),
        38.0 * (1 - 0.05 * ETA),
        1.1698983290,
    ),
    Row("muon, with nesterov", af.muon(ETA), algorithms.muon(0.95), 38.0, 1.1698983290),
    Row("shampoo", af.shampoo(ETA), algorithms.shampoo(1e-4), 2.0, NO_BOUND),
    Row(
        "schedule-free",
        af.schedule_free(ETA, epsilon=1e-8, weight_decay=0.1),
        optax.contrib.schedule_free_adamw(ETA, weight_decay=0.1),
        20.0 - 0.1 * ETA,
        NO_BOUND,
    ),
    # v does not see the second gradient, and without noise it is RMSprop.
    Row("vradam", af.vradam(ETA, beta=0.99, epsilon=1e-3), algorithms.vradam(0.99, 0.9, 1e-3), 2.0, INF),
    Row("adam, averaged", af.with_model_average(af.adam(ETA), 0.99), optax.adam(ETA, eps=0.0), 38.0, 1.1698983290),
    Row(
        "adam, l2",
        af.with_l2(af.adam(ETA, epsilon=1e-3), 0.1),
        optax.chain(optax.add_decayed_weights(0.1), optax.adam(ETA, eps=1e-3)),
        38.0 - 0.1 * ETA,
        1.1698983290,
    ),
]
ROWS = pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])


#: What acts on tensors gets a matrix and a vector; what treats each entry alike needs no more than a vector.
SHAPES = {"vector": (2,), "matrix": (3, 2)}
OF_TENSORS = (
    "lamb",
    "lars",
    "lars, of the paper",
    "steepest descent",
    "steepest descent, spectral",
    "muon",
    "muon, with nesterov",
    "shampoo",
    "adam+",
)


def numbers(row, seed, *leading):
    """Random tensors for an optimizer, by name."""
    generator = np.random.default_rng(seed)
    shapes = SHAPES if row.name in OF_TENSORS else {"vector": (2,)}
    return {name: jnp.asarray(generator.normal(size=(*leading, *shape))) for name, shape in shapes.items()}


@eqx.filter_jit
def path(transformation, params, sequence, before=None):
    """All parameters along a run of an optax transformation on a sequence of gradients.

    `before` are those at the previous parameters, for what takes two of each batch.
    """

    def step(carry, gradients):
        (params, state), (gradient, at_previous) = carry, gradients
        second = {} if at_previous is None else {"gradient_at_previous": at_previous}
        updates, state = transformation.update(gradient, state, params, **second)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(step, (params, transformation.init(params)), (sequence, before))[1]


@ROWS
def test_formula_steps_are_those_of_the_algorithm(row):
    params, sequence = numbers(row, SEED), numbers(row, SEED + 1, STEPS)
    before = numbers(row, SEED + 2, STEPS) if row.record.uses_gradient_change else None
    ours = path(row.record.to_optax(), params, sequence, before)
    if before is not None:
        # One pair for each iteration.
        sequence = jax.tree.map(lambda g, other: jnp.stack([g, other], axis=1), sequence, before)
    if isinstance(row.peer, optax.GradientTransformation):
        theirs = path(row.peer, params, sequence)
    else:
        theirs = row.peer(ETA, jax.tree.map(np.asarray, params), jax.tree.map(np.asarray, sequence))
    for name in params:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-12, atol=1e-12)


def quick_or_slow(names, rows=TABLE):
    """The rows, those of some names in the default suite."""
    marked = [pytest.param(row, id=row.name, marks=() if row.name in names else pytest.mark.slow) for row in rows]
    return pytest.mark.parametrize("row", marked)


@quick_or_slow(["yogi"], [row for row in TABLE if row.edge is not None])
def test_formula_edge_of_the_discrete_step(row):
    if isinstance(row.edge, str):
        with pytest.raises(TypeError, match=row.edge):
            af.analysis.critical_curvature(row.record)
    else:
        rate = float(row.record.learning_rate)
        assert rate * float(af.analysis.critical_curvature(row.record)) == pytest.approx(row.edge, rel=1e-8)


@quick_or_slow(["nadamw", "adamax"], [row for row in TABLE if row.bound is not None])
def test_formula_bound_of_the_direction(row):
    if isinstance(row.bound, str):
        with pytest.raises(TypeError, match=row.bound):
            af.analysis.direction_bound(row.record, 20)
    else:
        assert af.analysis.direction_bound(row.record, 20) == pytest.approx(row.bound, rel=1e-8)


class Bowl(eqx.Module):
    """A convex loss of a matrix, without sign changes of its gradient near the start."""

    def __call__(self, params):
        matrix = params["matrix"]
        return jnp.sum(jnp.array([[1.0], [3.0]]) * matrix**2) / 2 + 0.3 * jnp.sum(jnp.cos(matrix))


BOWL = Bowl()
BOWL_START = {"matrix": jnp.array([[1.0, 0.6], [-0.8, 1.4]])}


@quick_or_slow([])
@pytest.mark.parametrize("kind", [af.GouldTanakaFlow, af.InterpolatingFlow], ids=["paper", "map"])
def test_identity_flows_go_beside_the_iterates(row, kind):
    """From iteration 40, when filters have forgotten their start; errors are relative to the distance moved."""
    first, last = 40, 100
    record = dataclasses.replace(row.record, learning_rate=row.record.learning_rate / 5)
    discrete = af.iterate(record, BOWL, BOWL_START, last, save_at=[first, last])
    begin = af.iterate(record, BOWL, BOWL_START, first, save_at=[first]).final_state
    options = {"start": (first, begin[1]), "save_at": [last], "solver": diffrax.Heun(), "step_size": 0.25}
    run = af.solve(kind(record), BOWL, begin[0], last, **options)
    assert run.outcome.name == "completed"
    moved = jnp.abs(discrete.params["matrix"][1] - discrete.params["matrix"][0]).max()
    error = jnp.abs(run.params["matrix"][0] - discrete.params["matrix"][1]).max()
    assert float(error / moved) < (row.flow_error if kind is af.GouldTanakaFlow else 0.01)


@pytest.mark.slow
def test_formula_runs_of_the_family_on_a_parabola():
    """x₂₀ of x²/2 from 1 at η = .07: numbers of a computation apart from this package."""
    eta, tiny = 0.07, 1e-8
    expected = {
        "schedule-free": (af.schedule_free(eta, epsilon=tiny), 0.3742777614),
        "averaged": (af.with_model_average(af.adam(eta, epsilon=tiny), 0.99), 0.8758546200),
    }
    for name, (record, value) in expected.items():
        run = af.iterate(record, parabola, jnp.array(1.0), 20, save_at=[20], observe=record.evaluation_params)
        assert float(run.observed[0]) == pytest.approx(value, abs=1e-9), name


def parabola(x):
    return jnp.sum(x**2) / 2


def test_formula_lion_on_a_parabola_ends_in_a_cycle_of_the_size_of_a_step():
    for decay, expected in ((0.0, [0.3, -0.4, -0.12]), (0.5, [0.1008468225, -0.2537142095, -0.0239115325])):
        record = af.lion(0.07, weight_decay=decay)
        run = af.iterate(record, parabola, jnp.array(1.0), 40, save_at=[10, 20, 40])
        np.testing.assert_allclose(run.params, expected, atol=1e-9)


def test_formula_adam_plus_is_normalized_descent_on_a_quadratic():
    """θ, not θ̂: θₙ₊₁ = θₙ − η ∇f/‖∇f‖^½."""
    curvatures, eta = jnp.array([1.0, 3.0]), 0.07

    def loss(x):
        return jnp.sum(curvatures * x**2) / 2

    record = af.adam_plus(10 * eta, gamma=0.9)
    run = af.iterate(record, loss, jnp.ones(2), 20, observe=record.evaluation_params)
    x, rows = np.ones(2), []
    for _ in range(21):
        rows.append(x)
        g = np.asarray(curvatures) * x
        x = x - eta * g / np.sqrt(np.linalg.norm(g))
    np.testing.assert_allclose(run.observed, np.stack(rows), rtol=1e-12)
    np.testing.assert_allclose(run.observed[20], [0.1692844260, 0.0023650794], atol=1e-10)


def test_identity_lions_memory_leaves_no_force_and_adams_does():
    """Where no gradient changes its sign Lion is sign descent; Adam with β > γ drifts, as its memoryless flow says."""
    eta, start = 1e-3, jnp.array([1.0, 0.7])

    def loss(x):
        return jnp.sum(jnp.cosh(x))

    gradient = np.sinh(np.asarray(start))
    lion, adam = (
        af.MemorylessFlow(record).vector_field(1e6, start, loss) / -eta
        for record in (af.lion(eta), af.adam(eta, beta=0.95, gamma=0.5))
    )
    np.testing.assert_array_equal(lion, np.ones(2))
    # Gradients fall: ages 19 + ½ of v and 1 + ½ of m, so that the step is shorter than 1 by η H/g times 18.
    expected = 1 - eta * np.cosh(np.asarray(start)) / gradient * (19 - 1)
    np.testing.assert_allclose(adam, expected, rtol=1e-12)
    runs = [af.iterate(record, loss, start, 300, save_at=[300]).params for record in (af.lion(eta), af.signsgd(eta))]
    np.testing.assert_allclose(*runs, rtol=1e-12)


def test_formula_modified_loss_of_momentum():
    """L + (η/4)(1+γ)/(1−γ) ‖∇L‖²: its gradient is the memoryless flow's, and a run follows it."""
    eta, gamma, start = 1e-2, 0.8, jnp.array([1.0, -0.5])

    def loss(x):
        return jnp.sum(jnp.cosh(x)) + 0.3 * x[0] * x[1]

    def modified(x):
        return loss(x) + eta / 4 * (1 + gamma) / (1 - gamma) * jnp.sum(jax.grad(loss)(x) ** 2)

    flow = af.MemorylessFlow(af.sgd(eta, gamma=gamma))
    np.testing.assert_allclose(flow.vector_field(9.0, start, loss), -eta * jax.grad(modified)(start), rtol=1e-12)


def test_identity_amsgrads_maximum_never_falls_along_its_flow():
    record = af.amsgrad(0.05, beta=0.9, gamma=0.5)
    run = af.solve(
        af.GouldTanakaFlow(record),
        parabola,
        jnp.array([1.0, 3.0]),
        60,
        observe=lambda snapshot: (snapshot.memory[0]["maximum"], snapshot.filters[0]["second_moment"]),
        solver=diffrax.Heun(),
        step_size=0.25,
    )
    largest, square = run.observed
    assert float(jnp.diff(largest, axis=0).min()) >= 0
    # The second moment itself does fall, so that the ratchet is at work.
    assert float(jnp.diff(square, axis=0).min()) < -1e-3
    assert float((largest - square)[-1].min()) > 0.1


def test_identity_adabound_ends_as_gradient_descent_with_momentum():
    record, gradient = af.adabound(1e-3, gamma=0.9, final_learning_rate=0.1), jnp.array([1e-3, 2.0])
    state = record.initial_state(gradient)
    direction, _ = record.update(gradient, state, 1e12)
    expected, _ = af.sgd(0.1, gamma=0.9).update(gradient, af.sgd(0.1, gamma=0.9).initial_state(gradient), 0)
    np.testing.assert_allclose(1e-3 * direction, 0.1 * expected, rtol=1e-6)


def test_formula_nadams_edge_is_where_a_run_turns_unstable():
    """Runs on parabolas s x²/2, in which gradients are far below a second moment of 1: the smallest s that grows."""
    eta = 0.01
    record = af.nadam(eta, beta=1 - 1e-13, gamma=0.9)
    curvatures = jnp.linspace(1300.0, 1420.0, 1201)
    state = record.with_moment(record.initial_state(curvatures), "second_moment", jnp.ones_like(curvatures))

    @jax.jit
    def amplitudes(state):
        def step(carry, n):
            x, state = carry
            direction, state = record.update(curvatures * x, state, n)
            return (record.apply(x, direction), state), jnp.abs(x)

        # So late that bias correction is over.
        return jax.lax.scan(step, (jnp.full_like(curvatures, 1e-30), state), 1e15 + jnp.arange(300.0))[1]

    path = amplitudes(state)
    grows = np.asarray(path[-50:].max(axis=0) > path[-150:-100].max(axis=0))
    measured = float(curvatures[np.argmax(grows)])
    assert grows[-1]
    assert not grows[0]
    assert measured == pytest.approx(float(af.analysis.critical_curvature(record)), abs=0.2)


def test_formula_l2_moves_where_the_gradient_vanishes_and_decoupled_decay_shrinks():
    """λ = 1e-4, η = 1e-3, 200 steps from 1: full speed, whatever λ, against e^{−ηλn}."""
    penalty, decoupled = af.with_l2(af.adam(1e-3, epsilon=1e-8), 1e-4), af.adamw(1e-3, weight_decay=1e-4)
    ends = [
        float(af.iterate(record, lambda x: 0.0 * x, jnp.array(1.0), 200, save_at=[200]).params[0])
        for record in (penalty, decoupled)
    ]
    assert ends[0] == pytest.approx(0.8085006, abs=1e-6)
    assert ends[1] == pytest.approx(np.exp(-1e-3 * 1e-4 * 200), rel=1e-9)


@pytest.mark.parametrize("kind", [af.GouldTanakaFlow, af.InterpolatingFlow], ids=["gould_tanaka", "interpolating"])
def test_identity_the_flow_with_l2_is_that_of_the_loss_with_a_penalty(kind):
    plain = af.adam(0.02, beta=0.9, gamma=0.5, epsilon=1e-3)
    options = {"solver": diffrax.Euler(), "step_size": 0.5}

    def penalized(params):
        return parabola(params) + 0.1 / 2 * jnp.sum(params**2)

    with_field = af.solve(kind(af.with_l2(plain, 0.1), order=1), parabola, jnp.ones(2), 15, **options)
    with_penalty = af.solve(kind(plain, order=1), penalized, jnp.ones(2), 15, **options)
    np.testing.assert_allclose(with_field.params, with_penalty.params, rtol=1e-12)


@pytest.mark.slow
def test_identity_the_average_of_the_model_leaves_the_run_alone():
    plain, averaged = af.adam(0.05), af.with_model_average(af.adam(0.05), 0.9, start="zero")
    flow = af.GouldTanakaFlow(averaged, rate="exact")
    runs = [af.iterate(record, parabola, jnp.ones(2), 15) for record in (plain, averaged)]
    np.testing.assert_array_equal(runs[0].params, runs[1].params)
    means = af.iterate(averaged, parabola, jnp.ones(2), 15, observe=averaged.evaluation_params)
    apart = af.compare(runs[1], means.with_observed_as_params())
    assert float(apart.absolute_error[0]) == 0.0
    assert float(apart.absolute_error[-1]) > 0.1
    with pytest.raises(ValueError, match="did not observe anything with the structure of the parameters"):
        runs[0].with_observed_as_params()
    # θ̄' = a (θ − θ̄), a = −ln .9: the derivative of its filter.
    state = flow.initial_state(parabola, jnp.ones(2))
    rate = flow.vector_field(0.0, state, parabola).filters[1]["model_average"]
    np.testing.assert_allclose(rate, -np.log(0.9) * (np.ones(2) - 0.1), rtol=1e-12)


@pytest.mark.slow
def test_identity_one_minimum_of_a_convex_loss_with_a_penalty_and_another_with_decoupled_decay():
    """With l2 Adam and gradient descent end at the minimum of L + λ‖θ‖²/2; with decoupled decay Adam does not."""
    features = jnp.asarray(np.random.default_rng(SEED).normal(size=(20, 3)))
    labels = jnp.where(jnp.arange(20) % 2 == 0, 1.0, -1.0)

    def loss(x):
        return jnp.mean(jax.nn.softplus(-labels * (features @ x)))

    records = (
        af.with_l2(af.adam(2e-4), 0.1),
        af.with_l2(af.sgd(0.1), 0.1),
        af.adamw(2e-4, weight_decay=0.1),
    )
    ends = [af.iterate(record, loss, jnp.ones(3), 20000, save_at=[20000]).params[0] for record in records]
    np.testing.assert_allclose(ends[0], ends[1], atol=2e-3)
    assert float(jnp.abs(ends[2] - ends[1]).max()) > 0.05


@pytest.mark.slow
def test_formula_bound_of_adabelief_and_of_adan():
    """AdaBelief: 1/γ at n = 0, then above the direction under a constant gradient. Adan: attained by Q⁻¹c."""
    belief = af.adabelief(0.1, epsilon_added=0.0)
    assert af.analysis.direction_bound(belief, 0) == pytest.approx(1 / 0.9, rel=1e-9)
    assert af.analysis.direction_bound(belief, 10) > 1.6934159
    assert af.analysis.direction_bound(af.adan(0.1), 600) == pytest.approx(1.2040107, rel=1e-6)


def test_failure_of_stages_that_have_no_limit():
    class JumpingStage(af.AbstractStage):
        no_limit = "its basis changes every tenth iteration"

        def filters(self):
            return ()

        def direction(self, signal, averages, memory, iteration, ratio):
            return signal.value

    record = af.Optimizer(0.1, (JumpingStage(),))
    words = "has no equations for JumpingStage: its basis changes every tenth iteration; take af.InterpolatingFlow"
    for flow in (af.GouldTanakaFlow, af.ModifiedFlow):
        with pytest.raises(TypeError, match=f"{flow.__name__} {words}"):
            flow(record)
    assert af.InterpolatingFlow(record).optimizer == record


def test_failure_of_what_collocation_does_not_assume():
    """It has equations for averages whose directions treat each entry by itself; it refuses the rest by name."""
    records = [af.with_l2(af.adam(0.1), 0.1), af.signum(0.1), af.amsgrad(0.1), af.adan(0.1), af.muon(0.1)]
    for record in records:
        with pytest.raises(ValueError, match=r"no l2 .*does not meet this"):
            af.solve(af.GouldTanakaFlow(record), parabola, jnp.ones(2), 10, solver="collocation")
    for flow in (af.MemorylessFlow, af.CentralFlow):
        with pytest.raises(ValueError, match=f"{flow.__name__} takes the gradient of the loss alone, but 'rmsprop'"):
            flow(af.with_l2(af.rmsprop(0.1), 0.1))


def test_failure_of_a_step_without_the_parameters_that_it_needs():
    for record in (af.with_l2(af.adam(0.1), 0.1), af.lamb(0.1), af.with_model_average(af.adam(0.1), 0.9)):
        gradient = jnp.ones(2)
        with pytest.raises(ValueError, match="needs the parameters, for l2 or for a stage that uses them"):
            record.update(gradient, record.initial_state(gradient), 0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: af.signum(0.1, gamma=0.0), "gamma must lie in (0, 1), got 0.0; without momentum use af.signsgd"),
        (lambda: af.lion(0.1, interpolation=1.0), "interpolation must lie in [0, 1), got 1.0"),
        (lambda: af.uadam(0.1, interpolation=11.0), "interpolation must lie in [0, 10], got 11.0; 0 is Adam"),
        (lambda: af.nadam(0.1, form="keras"), "form must be one of 'dozat', 'uadam', got 'keras'"),
        (lambda: af.nadam(0.1, form="uadam", momentum_decay=0.1), "momentum_decay belongs to form='dozat'"),
        (lambda: af.nadam(0.1, beta=1.0), "beta must lie in (0, 1), got 1.0"),
        (lambda: af.adamax(0.1, epsilon=-1.0), "epsilon must lie in [0, inf), got -1.0"),
        (lambda: af.adagrad(0.1, initial_sum=-1.0), "initial_sum must lie in [0, inf), got -1.0"),
        (lambda: af.amsgrad(0.1, form="keras"), "form must be one of 'paper', 'optax', 'torch'"),
        (lambda: af.adabelief(0.1, epsilon_added=-1.0), "epsilon_added must lie in [0, inf), got -1.0"),
        (lambda: af.yogi(0.1, initial_second=-1.0), "initial_second must lie in [0, inf), got -1.0"),
        (lambda: af.radam(0.1, threshold=3.0), "threshold must lie in [4, inf), got 3.0; at 4 and below"),
        (lambda: af.adabound(0.1, final_learning_rate=0.0), "final_learning_rate must lie in (0, inf), got 0.0"),
        (lambda: af.nadambound(0.1, convergence_rate=0.0), "convergence_rate must lie in (0, inf), got 0.0"),
        (lambda: af.adafom(0.1, gamma=1.0), "gamma must lie in [0, 1), got 1.0"),
        (lambda: af.adan(0.1, difference_decay=1.0), "difference_decay must lie in (0, 1), got 1.0"),
        (lambda: af.adan(0.1, weight_decay=-1.0), "weight_decay must lie in [0, inf), got -1.0"),
        (lambda: af.ademamix(0.1, slow_weight=-1.0), "slow_weight must lie in [0, inf), got -1.0"),
        (lambda: af.madam(0.1, lowest_beta=0.99), "lowest_beta must lie in (0, 0.98], got 0.99; it is at most"),
        (lambda: af.lamadam(0.1, highest_beta=1.0), "highest_beta must lie in (0, 1), got 1.0"),
        (lambda: af.clipped_adam(0.1, clip=0.0), "clip must lie in (0, inf], got 0.0"),
        (lambda: af.adam_plus(0.1, gamma=0.0), "gamma must lie in (0, 1), got 0.0"),
        (lambda: af.lamb(0.1, weight_decay=-1.0), "weight_decay must lie in [0, inf), got -1.0"),
        (lambda: af.muon(0.1, iterations=0), "iterations must be a whole number of at least 1, got 0"),
        (lambda: af.muon(0.1, output_axis=2), "output_axis must lie in [0, 1], got 2.0"),
        (lambda: af.shampoo(0.1, initial_diagonal=0.0), "initial_diagonal must lie in (0, inf), got 0.0"),
        (lambda: af.schedule_free(0.1, interpolation=1.0), "interpolation must lie in (0, 1), got 1.0"),
        (lambda: af.with_model_average(af.adam(0.1), 1.0), "decay must lie in (0, 1), got 1.0"),
        (lambda: af.with_l2(af.adam(0.1), -1.0), "l2 must lie in [0, inf), got -1.0"),
        (lambda: af.signum(0.0), "learning_rate must lie in (0, inf), got 0.0"),
    ],
)
def test_failure_says_what_is_wrong(make: Callable, words, unchecked):
    with pytest.raises(ValueError, match=re.escape(words)):
        make()


def test_failure_of_what_is_no_optimizer(unchecked):
    for wrap in (lambda value: af.with_model_average(value, 0.9), lambda value: af.with_l2(value, 0.1)):
        with pytest.raises(TypeError, match=r"needs an optimizer, such as af\.adam\(1e-3\), got 3"):
            wrap(3)


def test_identity_what_is_adams_alone_is_known_by_how_a_stage_reads_its_filters():
    """Not by the names of its filters, which others share; bounds and laws of Adam would be wrong for them."""
    from adamflow.optimizers import divides_by, reads_as_adam

    def stage(record):
        return record.stages[0]

    adams = (af.adam(0.1), af.rmsprop(0.1))
    over_v = (af.uadam(0.1), af.nadam(0.1), af.adabelief(0.1), af.ademamix(0.1), af.adafom(0.1))
    others = (af.amsgrad(0.1), af.radam(0.1), af.adabound(0.1), af.muon(0.1), af.clipped_adam(0.1), af.yogi(0.1))
    assert all(reads_as_adam(stage(record)) for record in adams)
    assert reads_as_adam(stage(af.adam(0.1, second_moment="per_tensor")), "mean_square")
    assert not any(reads_as_adam(stage(record)) for record in (*over_v[1:], *others))
    assert all(divides_by(stage(record), "second_moment") for record in (*adams, *over_v))
    assert not any(divides_by(stage(record), "second_moment") for record in others)
    record = af.amsgrad(0.1)
    with pytest.raises(ValueError, match="'amsgrad' has no single preconditioner"):
        record.preconditioner(record.initial_state(jnp.ones(2)).filters, 0)
    with pytest.raises(ValueError, match="2-Adam stands in for one stage of Adam or RMSprop, but 'nadam'"):
        af.analysis.equivalent_two_adam(af.nadam(0.1, weight_decay=0.1))
