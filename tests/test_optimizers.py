"""Records of optimizers: their discrete step against optax, limits, the contract of a stage, and bad input."""

import re
from decimal import Decimal

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import adamflow as af
from conftest import SEED

STEPS = 200


def tree():
    """A pytree of mixed shapes."""
    generator = np.random.default_rng(SEED)

    def normal(*shape):
        return jnp.asarray(generator.normal(size=shape))

    return {"matrix": normal(3, 4), "vector": normal(5), "deep": (normal(2, 1, 3), normal())}


def gradients(params):
    generator = np.random.default_rng(SEED + 1)
    return [jax.tree.map(lambda p: jnp.asarray(generator.normal(size=p.shape)), params) for _ in range(STEPS)]


def run(transformation):
    """All parameters along a run of an optax transformation on a fixed sequence of gradients."""
    params = tree()
    # Donated, as in training loops: the arrays of a state must not be one and the same.
    update = jax.jit(transformation.update, donate_argnums=1)
    state, path = transformation.init(params), []
    for gradient in gradients(params):
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        path.append(jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)]))
    return jnp.stack(path)


#: What optax calls it, its record, and optax's; the rest of the family is in test_family.py.
TABLE = [
    ("adam", af.adam(0.01, beta=0.99, gamma=0.8, epsilon=1e-8), optax.adam(0.01, b1=0.8, b2=0.99)),
    ("adam, no epsilon", af.adam(0.01, beta=0.99, gamma=0.8), optax.adam(0.01, b1=0.8, b2=0.99, eps=0.0)),
    (
        "adam, epsilon inside",
        af.adam(0.01, beta=0.99, gamma=0.8, epsilon=1e-3, epsilon_inside_root=True),
        optax.adam(0.01, b1=0.8, b2=0.99, eps=0.0, eps_root=1e-3),
    ),
    (
        "adamw",
        af.adamw(0.01, beta=0.99, gamma=0.8, epsilon=1e-3, weight_decay=0.1),
        optax.adamw(0.01, b1=0.8, b2=0.99, eps=1e-3, weight_decay=0.1),
    ),
    (
        "rmsprop, corrected",
        af.rmsprop(0.01, 0.99, 1e-8, epsilon_inside_root=True),
        optax.rmsprop(0.01, decay=0.99, eps=1e-8, bias_correction=True),
    ),
    (
        "rmsprop, epsilon outside",
        af.rmsprop(0.01, 0.99, 1e-3),
        optax.rmsprop(0.01, decay=0.99, eps=1e-3, eps_in_sqrt=False, bias_correction=True),
    ),
    (
        "rmsprop, not corrected",
        af.rmsprop(0.01, 0.99, 1e-3, bias_correction=False),
        optax.rmsprop(0.01, decay=0.99, eps=1e-3, eps_in_sqrt=False),
    ),
    ("signsgd", af.signsgd(0.01), optax.sign_sgd(0.01)),
]


@pytest.mark.parametrize(("record", "peer"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_formula_equals_optax(record, peer):
    np.testing.assert_allclose(run(record.to_optax()), run(peer), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("beta", [0.9, 0.999])
def test_formula_adam_without_bias_correction(beta):
    params, m, v = 1.0, 0.0, 0.0
    record = af.adam(0.1, beta=beta, gamma=0.5, bias_correction=False)
    state = record.initial_state(jnp.asarray(params))
    for n, gradient in enumerate([0.3, -2.0, 1.0, 0.5]):
        m, v = 0.5 * m + 0.5 * gradient, beta * v + (1 - beta) * gradient**2
        direction, state = record.update(jnp.asarray(gradient), state, n)
        assert float(direction) == pytest.approx(m / np.sqrt(v), rel=1e-12)
        assert float(state.filters[0]["second_moment"]) == pytest.approx(v, rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.8])
def test_formula_one_second_moment_for_each_tensor(gamma):
    record, params = (
        af.adamw(0.01, beta=0.99, gamma=gamma, epsilon=1e-3, weight_decay=0.1, second_moment="per_tensor"),
        tree(),
    )
    moments = [(jnp.zeros_like(leaf), 0.0) for leaf in jax.tree.leaves(params)]
    state = record.initial_state(params)
    for n, gradient in enumerate(gradients(params)[:5]):
        direction, state = record.update(gradient, state, n)
        parts = zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), moments, strict=True)
        for place, (g, u, (m, v)) in enumerate(parts):
            m, v = gamma * m + (1 - gamma) * g, 0.99 * v + 0.01 * np.mean(np.square(g))
            moments[place] = m, v
            expected = m / (1 - gamma ** (n + 1)) / (np.sqrt(v / (1 - 0.99 ** (n + 1))) + 1e-3)
            np.testing.assert_allclose(u, expected, rtol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.9])
def test_identity_granularity_does_not_matter_for_tensors_of_one_entry(gamma):
    params = {"one": jnp.array(2.0), "other": jnp.array([3.0])}
    records = [af.kadam(2, 0.01, beta=0.99, gamma=gamma, second_moment=kind) for kind in ("elementwise", "per_tensor")]
    states = [record.initial_state(params) for record in records]
    for n in range(3):
        gradient = {"one": jnp.sin(1.0 + n), "other": jnp.cos(jnp.array([5.0 * n]))}
        steps = [record.update(gradient, state, n) for record, state in zip(records, states, strict=True)]
        states = [state for _, state in steps]
        for a, b in zip(*(jax.tree.leaves(direction) for direction, _ in steps), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.slow
def test_identity_second_moments_of_tensors_work_in_every_reading():
    """The flow by two solvers, the transformation, and lanes of γ."""
    problem = af.problems.quartic()
    params = {"a": problem.params[:2], "b": problem.params[2:]}

    def loss(params):
        return problem.loss(jnp.concatenate([params["a"], params["b"]]))

    record = af.adamw(1e-2, beta=0.99, gamma=0.8, weight_decay=0.1, second_moment="per_tensor")
    flow = af.GouldTanakaFlow(record)
    runs = [
        af.solve(flow, loss, params, 100, save_at=[50, 100], rtol=1e-8, solver=solver)
        for solver in ("auto", "collocation")
    ]
    runs.append(af.solve(flow, loss, params, 100, save_at=[50, 100], rtol=1e-8, solver=diffrax.Tsit5()))
    for run in runs[:2]:
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), run.params, runs[2].params)
    discrete = af.iterate(record, loss, params, 100, save_at=[100])
    updates, state = record.to_optax(), record.to_optax().init(params)
    moving = params
    for _ in range(100):
        change, state = jax.jit(updates.update)(jax.grad(loss)(moving), state, moving)
        moving = optax.apply_updates(moving, change)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x[0], y, rtol=1e-10), discrete.params, moving)
    lanes = jax.vmap(
        lambda gamma: (
            af.iterate(
                af.adam(1e-2, beta=0.99, gamma=gamma, second_moment="per_tensor"), loss, params, 100, save_at=[100]
            ).params
        )
    )(jnp.array([0.5, 0.8]))
    alone = af.iterate(
        af.adam(1e-2, beta=0.99, gamma=0.5, second_moment="per_tensor"), loss, params, 100, save_at=[100]
    ).params
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x[0], y, rtol=1e-10), lanes, alone)


def test_failure_of_readings_that_know_elementwise_moments_only():
    record = af.adam(0.1, second_moment="per_tensor")
    with pytest.raises(ValueError, match="needs one stage with a filter named 'second_moment'"):
        record.preconditioner(record.initial_state(jnp.ones(2)).filters, 0)
    with pytest.raises(TypeError, match=r"CentralFlow has equations for af\.sgd without momentum and af\.rmsprop"):
        af.CentralFlow(record)


@pytest.mark.parametrize("strategy", ["naive", "uniform", "exponential", "inverse_exponential"])
def test_identity_one_stage_of_kadam_is_adamw(strategy):
    one = af.kadam(1, 0.01, beta=0.99, gamma=0.8, epsilon=1e-8, weight_decay=0.1, strategy=strategy)
    adamw = af.adamw(0.01, beta=0.99, gamma=0.8, epsilon=1e-8, weight_decay=0.1)
    np.testing.assert_allclose(run(one.to_optax()), run(adamw.to_optax()), rtol=1e-12)


def test_identity_two_adam_is_adam_fed_with_directions_of_adam():
    pair = af.kadam(2, 0.01, beta=0.99, gamma=0.8, strategy="naive")
    first, second = af.adam(0.01, beta=0.99, gamma=0.8), af.adam(0.01, beta=0.99, gamma=0.8)
    params = tree()
    states = [record.initial_state(params) for record in (pair, first, second)]
    for n, gradient in enumerate(gradients(params)[:20]):
        direction, states[0] = pair.update(gradient, states[0], n)
        inner, states[1] = first.update(gradient, states[1], n)
        outer, states[2] = second.update(inner, states[2], n)
        for a, b in zip(jax.tree.leaves(direction), jax.tree.leaves(outer), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)


@given(
    k=st.integers(1, 10),
    beta=st.floats(0.5, 0.9999),
    strategy=st.sampled_from(["uniform", "exponential", "inverse_exponential"]),
)
def test_identity_strategies_share_the_decay(k, beta, strategy):
    stages = af.kadam(k, 1e-3, beta=beta, gamma=beta, strategy=strategy).stages
    assert np.prod([1 - float(stage.beta) for stage in stages]) == pytest.approx(1 - beta, rel=1e-9)
    shares = np.array([np.log1p(-float(stage.gamma)) for stage in stages]) / np.log1p(-beta)
    ratios = {"uniform": 1.0, "exponential": 2.0, "inverse_exponential": 0.5}
    np.testing.assert_allclose(shares[1:] / shares[:-1], ratios[strategy], rtol=1e-6)


def test_identity_adam_without_momentum_is_rmsprop():
    adam, rmsprop = af.adam(0.01, beta=0.99, gamma=0.0), af.rmsprop(0.01, 0.99)
    np.testing.assert_array_equal(run(adam.to_optax()), run(rmsprop.to_optax()))
    traced = jax.jit(lambda gamma: run_params(af.adam(0.01, beta=0.99, gamma=gamma)))(0.0)
    np.testing.assert_allclose(traced, run_params(rmsprop), rtol=1e-12)


def run_params(record):
    problem = af.problems.chain(4)
    return af.iterate(record, problem.loss, problem.params, 50).params


def test_identity_sign_descent_is_the_limit_of_adam():
    tiny = af.adam(0.01, beta=1e-14, gamma=1e-14)
    np.testing.assert_allclose(run(tiny.to_optax()), run(af.signsgd(0.01).to_optax()), atol=1e-10)


@pytest.mark.parametrize(
    "record", [af.adam(0.1), af.rmsprop(0.1), af.kadam(3, 0.1), af.signsgd(0.1)], ids=lambda r: r.name
)
def test_identity_a_gradient_that_is_zero_moves_nothing_and_has_a_derivative(record):
    def moved(gradient):
        direction, state = record.update(gradient, record.initial_state(gradient), 0)
        return record.update(gradient, state, 1)[0].sum() + direction.sum()

    value, slope = jax.value_and_grad(moved)(jnp.zeros(3))
    assert float(value) == 0.0
    np.testing.assert_array_equal(slope, jnp.zeros(3))


def test_identity_precision_of_the_parameters_is_kept():
    record = af.adamw(np.float64(0.01), beta=np.float64(0.99), gamma=np.float64(0.8), weight_decay=jnp.float64(0.1))
    params = {"single": jnp.ones(3, jnp.float32), "double": jnp.ones(2, jnp.float64)}
    direction, state = record.update(params, record.initial_state(params), 0)
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, params)
    assert jax.tree.map(lambda leaf: leaf.dtype, direction) == dtypes
    assert jax.tree.map(lambda leaf: leaf.dtype, state.filters[0]["first_moment"]) == dtypes
    assert jax.tree.map(lambda leaf: leaf.dtype, record.apply(params, direction)) == dtypes


def test_identity_names_of_parameters_and_filters_may_coincide():
    params = {"first_moment": jnp.ones(2), "second_moment": jnp.ones(3)}
    record = af.adam(0.1)
    direction, _ = record.update(params, record.initial_state(params), 0)
    assert jax.tree.structure(direction) == jax.tree.structure(params)


def test_formula_preconditioner():
    filters = ({"first_moment": jnp.ones(2), "second_moment": jnp.array([4.0, 0.0])},)
    outside, inside = (
        af.adam(0.1, beta=0.75, gamma=0.5, epsilon=0.5),
        af.adam(0.1, beta=0.75, gamma=0.5, epsilon=0.25, epsilon_inside_root=True),
    )
    np.testing.assert_allclose(outside.preconditioner(filters, 0), [4.5, 0.5])
    np.testing.assert_allclose(inside.preconditioner(filters, 0), np.sqrt([16.25, 0.25]))
    np.testing.assert_allclose(outside.bias_corrected(filters, 1)[0]["first_moment"], [4 / 3, 4 / 3])
    with pytest.raises(ValueError, match="'2-adam' has no single preconditioner"):
        af.kadam(2, 0.1).preconditioner(filters, 0)


def test_identity_transformation_of_no_parameters():
    transformation = af.adam(0.1).to_optax()
    updates, _ = transformation.update({}, transformation.init({}), {})
    assert updates == {}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: af.adam(1e-3, gamma=1.0), "gamma must lie in [0, 1), got 1.0; for a pure sign update use af.signsgd"),
        (lambda: af.adam(1e-3, gamma=-0.1), "gamma must lie in [0, 1), got -0.1"),
        (lambda: af.adam(1e-3, beta=0.0), "beta must lie in (0, 1), got 0.0; for a pure sign update use af.signsgd"),
        (lambda: af.rmsprop(1e-3, beta=1.0), "beta must lie in (0, 1), got 1.0"),
        (lambda: af.adam(0.0), "learning_rate must lie in (0, inf), got 0.0"),
        (lambda: af.adam(float("nan")), "learning_rate must lie in (0, inf), got nan"),
        (lambda: af.adamw(1e-3, weight_decay=-1.0), "weight_decay must lie in [0, inf), got -1.0"),
        (lambda: af.adam(1e-3, epsilon=-1e-8), "epsilon must lie in [0, inf), got -1e-08"),
        (lambda: af.kadam(0, 1e-3), "k must be a whole number of at least 1, got 0"),
        (lambda: af.kadam(2, 1e-3, beta=1.5), "beta must lie in (0, 1), got 1.5"),
        (
            lambda: af.adam(1e-3, second_moment="row"),
            "second_moment must be one of 'elementwise', 'per_tensor', got 'row'",
        ),
        (lambda: af.kadam(2, 1e-3, strategy="best"), "strategy must be one of 'naive', 'uniform'"),
        (lambda: af.Optimizer(1e-3, ()), "an optimizer needs at least one stage"),
        (
            lambda: af.adamw(1e-3, weight_decay=0.1).to_optax().update(jnp.ones(2), None),
            "weight decay needs the parameters",
        ),
    ],
)
def test_failure_says_what_is_wrong(make, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        make()


#: By the name of an argument, a call that hands a value to it.
ARGUMENTS = {
    "learning_rate": lambda value: af.adam(value),
    "beta": lambda value: af.adam(0.1, beta=value),
    "beta of rmsprop": lambda value: af.rmsprop(0.1, beta=value),
    "beta of kadam": lambda value: af.kadam(2, 0.1, beta=value),
    "gamma": lambda value: af.adam(0.1, gamma=value),
    "gamma of tensors": lambda value: af.adam(0.1, gamma=value, second_moment="per_tensor"),
    "gamma of kadam": lambda value: af.kadam(2, 0.1, gamma=value),
    "gamma of sgd": lambda value: af.sgd(0.1, gamma=value),
    "epsilon": lambda value: af.adam(0.1, epsilon=value),
    "weight_decay": lambda value: af.adamw(0.1, weight_decay=value),
    "weight_decay of signsgd": lambda value: af.signsgd(0.1, weight_decay=value),
    "start": lambda value: af.PerTensorRMSpropStage(0.9, start=value),
    "horizon": lambda value: af.CentralFlow(af.sgd(0.1), horizon=value),
    "seed_rate": lambda value: af.TwoBranchFlow(af.sgd(0.1), seed_rate=value),
    "k": lambda value: af.kadam(value, 0.1),
    "second_moment": lambda value: af.adam(0.1, second_moment=value),
    "strategy": lambda value: af.kadam(2, 0.1, strategy=value),
    "bias_correction": lambda value: af.adam(0.1, bias_correction=value),
    "epsilon_inside_root": lambda value: af.adam(0.1, epsilon_inside_root=value),
    "stages": lambda value: af.Optimizer(0.1, value),
    "order": lambda value: af.GouldTanakaFlow(af.adam(0.1), order=value),
    "rate": lambda value: af.GouldTanakaFlow(af.adam(0.1), rate=value),
    "modes": lambda value: af.CentralFlow(af.sgd(0.1), modes=value),
    "include_transient": lambda value: af.MemorylessFlow(af.adam(0.1), include_transient=value),
    "GouldTanakaFlow": lambda value: af.GouldTanakaFlow(value),
    "ModifiedFlow": lambda value: af.ModifiedFlow(value),
    "InterpolatingFlow": lambda value: af.InterpolatingFlow(value),
    "TwoBranchFlow": lambda value: af.TwoBranchFlow(value),
    "CentralFlow": lambda value: af.CentralFlow(value),
    "MemorylessFlow": lambda value: af.MemorylessFlow(value),
}
#: What is a number, a word, a truth value or an optimizer nowhere.
GARBAGE = [
    "0",
    "0.5",
    b"1",
    Decimal("0.5"),
    10**400,
    1j,
    np.array(1j),
    jnp.array(0.5 + 1j),
    np.array([]),
    np.array(["a"]),
    np.array([0.5], object),
    np.ma.array([0.5]),
    np.datetime64("2020"),
    jax.random.key(0),
    object(),
    {},
    len,
    af.GouldTanakaFlow(af.adam(0.1)),
]


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_failure_of_a_constructor_names_its_argument(argument, unchecked):
    for value in GARBAGE:
        with pytest.raises((ValueError, TypeError), match=argument.split(" ")[0]):
            ARGUMENTS[argument](value)


@pytest.mark.parametrize("argument", ["learning_rate", "beta", "gamma", "gamma of sgd", "epsilon", "weight_decay"])
def test_failure_of_truth_values_and_none_as_numbers(argument, unchecked):
    for value in (True, np.True_, None):
        with pytest.raises(ValueError, match=f"{argument.split(' ')[0]} must be a real number, got {value!r}"):
            ARGUMENTS[argument](value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: af.adam("0.1"), "learning_rate must be a real number, got '0.1', a str; give a float"),
        (lambda: af.adam(jnp.array(1 + 1j)), "got an array of shape () and type complex"),
        (lambda: af.adam(10**400), "learning_rate must be a number that a float can hold, got 1000"),
        (lambda: af.adam(0.1, bias_correction="no"), "bias_correction must be True or False, got 'no'"),
        (lambda: af.GouldTanakaFlow(af.adam(0.1), order=True), "order must be a whole number of at least 1, got True"),
        (lambda: af.GouldTanakaFlow(af.adam(0.1), order=3), "order must be 1 or 2 (the flows of [GT]), got 3"),
        (
            lambda: af.GouldTanakaFlow(af.GouldTanakaFlow(af.adam(0.1))),
            "this is a flow: give its attribute `optimizer`",
        ),
        (lambda: af.GouldTanakaFlow(af.adam), "call the constructor: af.adam(1e-3), not af.adam"),
        (
            lambda: af.InterpolatingFlow(optax.adam(0.1)),
            "InterpolatingFlow needs an optimizer, such as af.adam(1e-3), got Gradient",
        ),
        (lambda: af.Optimizer(0.1, af.AdamStage(beta=0.9, gamma=0.9)), "stages must be a tuple of stages"),
        (lambda: af.Optimizer(0.1, (af.AdamStage,)), "a stage is an object whose class derives from AbstractStage"),
        (lambda: af.analysis.norm_factor(0.9, order=True), "order must be a whole number of at least 0, got True"),
        (
            lambda: af.analysis.critical_curvature(af.GouldTanakaFlow(af.adam(0.1))),
            "linear stability needs an optimizer",
        ),
        (
            lambda: af.GouldTanakaFlow(af.adam(0.1)).initial_state(jnp.sum, jnp.ones(2), 20),
            "start must be (iteration, ",
        ),
    ],
)
def test_failure_of_a_constructor_says_what_to_do(make, words, unchecked):
    with pytest.raises((ValueError, TypeError), match=re.escape(words)):
        make()


@pytest.mark.parametrize("value", [0.5, np.float16(0.5), np.longdouble(0.5), np.array(0.5, ">f8"), jnp.float16(0.5)])
def test_identity_numbers_of_every_precision_are_numbers(value, unchecked):
    record = af.adam(value, beta=value, gamma=value, epsilon=value)
    for number in (record.learning_rate, record.stages[0].beta, record.stages[0].gamma, record.epsilon):
        assert number.dtype in (jnp.float32, jnp.float64)
        assert float(number) == 0.5
    assert float(af.adam(2**63).learning_rate) == 2.0**63


@pytest.mark.parametrize("dtype", [jnp.complex64, jnp.complex128, jnp.float16, jnp.bfloat16, jnp.int32, bool])
@pytest.mark.parametrize(
    "read",
    [
        lambda x: af.adam(0.1).initial_state({"w": x}),
        lambda x: af.adam(0.1).to_optax().init({"w": x}),
        lambda x: af.kadam(2, 0.1).to_optax().update({"w": x}, af.kadam(2, 0.1).to_optax().init({"w": jnp.ones(2)})),
        lambda x: af.rmsprop(0.1).update({"w": x}, af.rmsprop(0.1).initial_state({"w": jnp.ones(2)}), 0),
        lambda x: af.iterate(af.adam(0.1), lambda p: jnp.sum(jnp.abs(p["w"])), {"w": x}, 3),
        lambda x: af.solve(af.GouldTanakaFlow(af.adam(0.1)), lambda p: jnp.sum(jnp.abs(p["w"])), {"w": x}, 3),
        lambda x: af.MemorylessFlow(af.adam(0.1)).initial_state(jnp.sum, {"w": x}),
        lambda x: af.analysis.preconditioned_sharpness(lambda p: p["w"] @ p["w"], {"w": x}, {"w": jnp.ones(2)}),
        lambda x: af.analysis.preconditioned_sharpness(lambda p: p["w"] @ p["w"], {"w": jnp.ones(2)}, {"w": x}),
        lambda x: af.analysis.periodic_orbit(af.adam(0.1), lambda p: p["w"] @ p["w"], {"w": x}, 2),
        lambda x: af.analysis.jacobian_spectrum(
            af.adam(0.1),
            lambda p: p["w"] @ p["w"],
            ({"w": x}, af.adam(0.1).initial_state({"w": jnp.ones(2)})),
            iteration=1,
        ),
    ],
)
def test_failure_of_leaves_that_the_arithmetic_cannot_do(read, dtype, unchecked):
    with pytest.raises(ValueError, match=r"\['w'\] must be float32 or float64, got ") as error:
        read(jnp.ones(2, dtype))
    remedy = "two real arrays" if jnp.issubdtype(dtype, jnp.complexfloating) else "convert it, or close over it"
    assert remedy in str(error.value)


def test_failure_of_arrays_in_another_byte_order_or_beyond_double(unchecked):
    for dtype in (">f8", np.longdouble):
        with pytest.raises(ValueError, match=re.escape("convert it with np.asarray(x, np.float64)")):
            af.iterate(af.adam(0.1), jnp.sum, np.ones(2, dtype), 3)


def test_identity_python_floats_are_parameters_in_every_reading(unchecked):
    record = af.adam(0.1)
    updates, _ = record.to_optax().update(3.0, record.to_optax().init(1.0), 1.0)
    assert float(updates) == pytest.approx(-0.1, rel=1e-12)
    sharpness = af.analysis.preconditioned_sharpness(lambda x: 2 * x**2, 1.0, 1.0)
    assert float(sharpness.value) == pytest.approx(4.0, rel=1e-12)


@pytest.mark.parametrize("second_moment", ["elementwise", "per_tensor"])
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_identity_moments_are_read_and_set_alike_with_and_without_a_first_one(gamma, second_moment):
    record, params = af.adam(0.1, beta=0.9, gamma=gamma, second_moment=second_moment), tree()
    gradient, second = gradients(params)[0], "second_moment" if second_moment == "elementwise" else "mean_square"
    state = record.initial_state(params)
    ones = jax.tree.map(jnp.ones_like, params)
    for name in ("first_moment", second):
        state = record.with_moment(state, name, ones)
    _, state = record.update(gradient, state, 5)
    first = record.moment(state, "first_moment", inputs=gradient)
    for m, g in zip(jax.tree.leaves(first), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(m, gamma + (1 - gamma) * g, rtol=1e-12)
    for v, g in zip(jax.tree.leaves(record.moment(state, second)), jax.tree.leaves(gradient), strict=True):
        square = g**2 if second_moment == "elementwise" else jnp.mean(g**2)
        np.testing.assert_allclose(v, jnp.broadcast_to(0.9 + 0.1 * square, v.shape), rtol=1e-12)


def test_failure_of_moments_that_a_stage_does_not_have(unchecked):
    record, params = af.adam(0.1, gamma=0.0), jnp.ones(2)
    state = record.initial_state(params)
    with pytest.raises(
        ValueError, match="name must be that of a filter of stage 0, 'second_moment', 'first_moment', got"
    ):
        record.moment(state, "momentum")
    with pytest.raises(ValueError, match="has decay 0, so that it is the stage's input and not kept; give inputs="):
        record.moment(state, "first_moment")
    with pytest.raises(ValueError, match="stage must be less than the number of stages, 1, got 1"):
        record.moment(state, "second_moment", 1)
    with pytest.raises(ValueError, match="value must have the structure and shapes of the parameters"):
        record.with_moment(state, "second_moment", jnp.ones(3))


RECORDS = {
    "adam": lambda rate: af.adam(rate),
    "kadam": lambda rate: af.kadam(2, rate, beta=0.99),
    "sgd": lambda rate: af.sgd(rate),
    "tensor": lambda rate: af.adam(rate, second_moment="per_tensor"),
    "batch": lambda rate: jax.vmap(af.adam)(rate * jnp.arange(1.0, 3.0)),
    "stage": lambda rate: af.AdamStage(beta=0.9, gamma=rate),
    "paper": lambda rate: af.GouldTanakaFlow(af.adam(rate)),
    "map": lambda rate: af.InterpolatingFlow(af.adam(rate)),
    "edge": lambda rate: af.TwoBranchFlow(af.sgd(rate)),
    "central": lambda rate: af.CentralFlow(af.sgd(rate)),
    "memoryless": lambda rate: af.MemorylessFlow(af.adam(rate)),
}


@pytest.mark.parametrize("name", RECORDS)
def test_identity_records_are_equal_and_hash_by_value(name):
    make = RECORDS[name]
    assert make(0.1) == make(0.1)
    assert hash(make(0.1)) == hash(make(0.1))
    assert make(0.1) != make(0.2)
    assert make(0.1) not in {make(0.2): "another number", RECORDS["adam"](0.3): "another record", 0.1: "no record"}
    assert {make(0.1): "the key"}[make(0.1)] == "the key"


def test_identity_a_record_is_a_static_argument():
    traces = []

    def step(record, x):
        traces.append(record)
        return record.learning_rate * x

    compiled = jax.jit(step, static_argnums=0)
    assert [float(compiled(af.sgd(rate), 1.0)) for rate in (0.1, 0.1, 0.2)] == [0.1, 0.1, 0.2]
    assert traces == [af.sgd(0.1), af.sgd(0.2)]


def test_failure_a_traced_record_has_no_hash():
    with pytest.raises(
        TypeError, match="Optimizer has no hash while jax is tracing its numbers; pass it as an argument"
    ):
        jax.jit(lambda rate: hash(af.sgd(rate)))(0.1)


class TrustRatio(af.Optimizer):
    """Steps of half the size: a change that no record of numbers declares."""

    def increment(self, params, direction):
        return jax.tree.map(lambda step: step / 2, super().increment(params, direction))


class SlowFlow(af.GouldTanakaFlow):
    """A flow at half the speed."""

    def vector_field(self, time, state, loss):
        return jax.tree.map(lambda rate: rate / 2, super().vector_field(time, state, loss))


@pytest.mark.parametrize(
    "flow",
    [af.GouldTanakaFlow(TrustRatio(0.01, (af.AdamStage(beta=0.99, gamma=0.9),))), SlowFlow(af.adam(0.01, beta=0.99))],
    ids=["optimizer", "flow"],
)
def test_identity_what_a_subclass_overrides_holds_for_every_solver(flow):
    problem = af.problems.chain(4)
    options = {"save_at": [20], "rtol": 1e-7}
    auto = af.solve(flow, problem.loss, problem.params, 20, **options)
    explicit = af.solve(flow, problem.loss, problem.params, 20, solver=diffrax.Tsit5(), **options)
    np.testing.assert_allclose(auto.params, explicit.params, rtol=1e-5)
    with pytest.raises(
        ValueError,
        match=r"(TrustRatio overrides increment|SlowFlow overrides vector_field), which it would ignore; take",
    ):
        af.solve(flow, problem.loss, problem.params, 20, solver="collocation")


def test_failure_of_equations_that_would_ignore_what_a_subclass_overrides():
    record = TrustRatio(0.01, (af.RMSpropStage(0.9),))
    for flow in (af.CentralFlow, af.MemorylessFlow):
        with pytest.raises(
            TypeError, match=f"{flow.__name__} has equations .*but TrustRatio overrides increment, which"
        ):
            flow(record)
    problem = af.problems.chain(4)
    run = af.iterate(record, problem.loss, problem.params, 5)
    with pytest.raises(TypeError, match="overrides increment, which they would ignore; no bound is known"):
        af.analysis.bound_report(run, record)


def test_failure_decay_of_the_iteration_without_mass():
    unfinished = af.Filter("second", lambda n: 1 - 1 / (n + 1), lambda signal, _: signal.value**2)
    with pytest.raises(TypeError, match="filter 'second' has a decay that depends on the iteration but no weight_sum"):
        unfinished.weight_sum_at(3)


STRONG = {"epsilon": np.asarray(1e-8), "weight_decay": np.asarray(0.1)}
IN_SINGLE = [
    af.adamw(np.float64(1e-3), beta=np.float64(0.999), gamma=np.float64(0.9), **STRONG),
    af.adamw(np.float64(1e-3), beta=np.float64(0.999), gamma=np.float64(0.9), **STRONG, epsilon_inside_root=True),
    af.rmsprop(*np.array([1e-3, 0.99])),
    af.kadam(2, np.float64(1e-3), beta=np.float64(0.999), gamma=np.float64(0.9), **STRONG, second_moment="per_tensor"),
    af.analysis.equivalent_two_adam(
        af.adamw(np.float64(1e-3), beta=np.float64(0.999), gamma=np.float64(0.9), weight_decay=np.asarray(0.1))
    ),
]


@pytest.mark.parametrize("record", IN_SINGLE, ids=["adamw", "epsilon inside", "rmsprop", "tensor", "two-adam"])
def test_identity_single_precision_is_worked_on_in_single_precision(record):
    """Beside float32 leaves, numbers in float64 would make a step several times as slow."""
    params = jnp.ones(7, jnp.float32)

    def step(params, state):
        direction, state = record.update(params, state, 3)
        known = len(record.stages) == 1
        return record.apply(params, direction), record.preconditioner(state.filters, 3) if known else None

    text = str(jax.make_jaxpr(step)(params, record.initial_state(params)))
    assert "f32[7]" in text
    assert "f64[7]" not in text


def test_identity_the_vector_field_of_single_precision_is_in_single_precision():
    flow, params = af.GouldTanakaFlow(af.adam(1e-3)), jnp.ones(7, jnp.float32)

    def field(params):
        return flow.vector_field(3.0, flow.initial_state(loss, params), loss)

    def loss(params):
        return jnp.sum(params**4)

    text = str(jax.make_jaxpr(field)(params))
    assert "f32[7]" in text
    assert "f64[7]" not in text


def test_failure_an_epsilon_that_single_precision_does_not_have_is_none():
    record = af.adam(1e-3, epsilon=1e-46)
    assert record.ratio(jnp.zeros(1, jnp.float32), jnp.zeros(1, jnp.float32)).tolist() == [0.0]


BOTH_DECAYS = {
    "adam": lambda **decays: af.adam(0.1, **decays),
    "adamw": lambda **decays: af.adamw(0.1, **decays),
    "kadam": lambda **decays: af.kadam(2, 0.1, **decays),
    "stability_exponent": af.analysis.stability_exponent,
    "bound_growth_rate": af.analysis.bound_growth_rate,
    "update_bound": lambda **decays: af.analysis.update_bound(10, **decays),
    "log_update_bound": lambda **decays: af.analysis.log_update_bound(10, **decays),
    "bounded_update_sign": af.analysis.bounded_update_sign,
    "normal_curve": lambda **decays: af.analysis.normal_curve(3, **decays),
    "level_curve": lambda **decays: af.analysis.level_curve(3, **decays),
    "worst_case_gradients": lambda **decays: af.analysis.worst_case_gradients(3, **decays),
    "two_cycle": lambda **decays: af.analysis.two_cycle(0.1, **decays),
}


@pytest.mark.parametrize("name", BOTH_DECAYS)
def test_identity_decays_by_the_names_of_optax_and_pytorch(name):
    call = BOTH_DECAYS[name]
    expected = jax.tree.leaves(call(beta=0.99, gamma=0.8))
    for names in ({"b1": 0.8, "b2": 0.99}, {"betas": (0.8, 0.99)}, {"b1": 0.8, "beta": 0.99}):
        for one, other in zip(jax.tree.leaves(call(**names)), expected, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: af.adamw(3e-4, 0.9, 0.95, weight_decay=0.1), "adamw takes learning_rate by position, got 3 values"),
        (lambda: af.adam(1e-3, 0.9), "beta is the decay of the second moment (b2 in optax, the second of betas in"),
        (lambda: af.kadam(2, 1e-3, 0.9, 0.99), "write kadam(k, learning_rate, beta=…, gamma=…)"),
        (lambda: af.analysis.update_bound(0.9, 0.99, 10), "write update_bound(iteration, beta=…, gamma=…)"),
        (lambda: af.analysis.stability_exponent(0.9, 0.99), "takes nothing by position, got 2 values"),
        (lambda: af.adam(1e-3, b2=0.9, beta=0.9), "adam got beta twice: b2 is another name for it"),
        (lambda: af.adam(1e-3, betas=(0.9, 0.99), b1=0.9), "adam got b1 twice, as b1= and in betas="),
        (lambda: af.adam(1e-3, betas=0.9), "betas must be the two decays (b1, b2), got 0.9"),
        (lambda: af.adam(lr=1e-3), "adam has no argument lr; here it is called learning_rate"),
        (lambda: af.adam(1e-3, eps=1e-8), "adam has no argument eps; here it is called epsilon"),
    ],
)
def test_failure_decays_by_position_or_twice(call, words, unchecked):
    with pytest.raises(TypeError, match=re.escape(words)):
        call()


@pytest.mark.parametrize(("former", "present"), af._FORMER_NAMES.items())
def test_identity_former_names_warn_and_work(former, present):
    with pytest.warns(DeprecationWarning, match=f"adamflow.{former} is now called adamflow.{present}"):
        assert getattr(af, former) is getattr(af, present)


def test_identity_former_values_of_arguments_warn_and_work():
    with pytest.warns(DeprecationWarning, match="rate='paper' is now called rate='gould_tanaka'"):
        assert af.GouldTanakaFlow(af.adam(0.1), rate="paper") == af.GouldTanakaFlow(af.adam(0.1))
    with pytest.warns(DeprecationWarning, match="kind='paper' is now called kind='gould_tanaka'"):
        former = af.analysis.update_bound(5, beta=0.9, gamma=0.8, kind="paper")
    assert former == af.analysis.update_bound(5, beta=0.9, gamma=0.8, kind="gould_tanaka")
