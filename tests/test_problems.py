"""Problems: losses against closed forms, batches that repeat, and what bad input is told."""

import hashlib
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamflow import problems
from adamflow.problems.cnn import convolve, halve
from adamflow.problems.cross_entropy import mean_cross_entropy
from adamflow.problems.invariant import normalize
from adamflow.problems.text import encode, read_text, split
from adamflow.problems.transformer import attention, transformer_logits

TINY: dict[str, Any] = dict(layers=1, heads=2, width=16, context=16, batch_size=4, validation_size=4)
FINITE = st.floats(-3, 3)


@pytest.fixture(scope="module")
def transformer():
    return problems.char_transformer(**TINY)


@pytest.fixture(scope="module")
def mlp():
    return problems.mlp(widths=(8,))


@pytest.fixture
def alphabet(tmp_path):
    """A file of 1000 characters, each its position's letter."""
    path = tmp_path / "alphabet.txt"
    path.write_text(("abcdefghijklmnopqrstuvwxyz" * 39)[:1000])
    return path


def lanes(params, count):
    """Copies of the parameters along a new first axis, each perturbed a little."""
    return jax.tree.map(lambda x: np.stack([np.asarray(x) + 0.01 * lane for lane in range(count)]), params)


@eqx.filter_jit
def evaluate(loss, *args):
    """The loss, compiled once for all problems of equal shapes."""
    return loss(*args)


@eqx.filter_jit
def derivatives(loss, params):
    return loss(params), jax.grad(loss)(params), jax.hessian(loss)(params)


# --- formula ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=4))
def test_formula_quadratic_value_gradient_and_hessian(pairs):
    c, theta = np.array(pairs).T
    problem = problems.quadratic(c, start=theta)
    value, gradient, hessian = derivatives(problem.loss, problem.params)
    np.testing.assert_allclose(value, 0.5 * np.sum(c * theta**2), atol=1e-13)
    np.testing.assert_allclose(gradient, c * theta, atol=1e-13)
    np.testing.assert_allclose(hessian, np.diag(c), atol=1e-13)


def test_formula_quadratic_starts_at_ones():
    np.testing.assert_array_equal(problems.quadratic([1, -2, 3]).params, np.ones(3))


def test_formula_quartic_gradient():
    c, theta, coupling = np.array([1.0, -2.0, 0.5]), np.array([0.3, -1.2, 2.0]), 0.7
    problem = problems.quartic(c, start=theta, coupling=coupling)
    expected = c * theta + theta**3 + coupling * theta.sum()
    np.testing.assert_allclose(jax.grad(problem.loss)(problem.params), expected, atol=1e-13)


@pytest.mark.slow
def test_identity_flattened_problem_is_the_same_and_shares_programs():
    problem = problems.logistic()
    flat = problem.flatten()
    vector = jnp.arange(flat.params.size) / flat.params.size
    params = {"weight": vector[10:].reshape(64, 10), "bias": vector[:10]}
    batch = problem.batches(size=4)(0)
    assert flat.loss(vector) == problem.loss((params,))
    assert flat.loss(vector, batch) == problem.loss((params,), batch)
    assert flat.metrics["test_accuracy"](vector) == problem.metrics["test_accuracy"]((params,))
    traced = []
    program = eqx.filter_jit(lambda loss, x: traced.append(None) or loss(x))
    for seed in (0, 1):
        program(problems.logistic(data_seed=seed).flatten().loss, vector)
    assert len(traced) == 1


@pytest.mark.parametrize("power", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("x", [-1.5, 0.0, 0.5])
def test_formula_monomial_value_and_gradient(power, x):
    problem = problems.monomial(power, start=x)
    assert problem.params.shape == ()
    np.testing.assert_allclose(problem.loss(problem.params), x**power / power, rtol=1e-14)
    np.testing.assert_allclose(jax.grad(problem.loss)(problem.params), x ** (power - 1), rtol=1e-14)


@pytest.mark.parametrize("dimension", [2, 3, 10])
def test_formula_chain_value_and_gradient(dimension):
    problem = problems.chain(dimension)
    curvatures = np.linspace(0.5, 5, dimension)
    theta = np.linspace(-1, 1, dimension) + 0.3
    np.testing.assert_allclose(problem.params, theta, rtol=1e-14)
    gap = theta[1:] - theta[:-1] ** 2
    loss = np.sum(curvatures * theta**2) / 2 + 0.1 * np.sum(gap**2)
    gradient = curvatures * theta
    gradient[1:] += 0.2 * gap
    gradient[:-1] -= 0.4 * gap * theta[:-1]
    value, slope = jax.jit(jax.value_and_grad(problem.loss))(problem.params)
    np.testing.assert_allclose(value, loss, rtol=1e-13)
    np.testing.assert_allclose(slope, gradient, rtol=1e-12)


def test_formula_cross_entropy_and_its_gradient():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(3, 5, 4)), generator.integers(0, 4, (3, 5))
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = np.take_along_axis(softmax, labels[..., None], -1)
    value, gradient = jax.jit(jax.value_and_grad(mean_cross_entropy))(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(value, -np.log(chosen).mean(), rtol=1e-13)
    np.testing.assert_allclose(gradient, (softmax - np.eye(4)[labels]) / 15, rtol=1e-12)


def test_formula_logistic_from_zero():
    problem = problems.logistic()
    features, labels = problem.loss.examples
    value, (gradient,) = jax.jit(jax.value_and_grad(problem.loss))(problem.params)
    np.testing.assert_allclose(value, np.log(10), rtol=1e-13)
    residual = 0.1 - np.eye(10)[np.asarray(labels)]
    np.testing.assert_allclose(gradient["weight"], np.asarray(features).T @ residual / len(labels), atol=1e-14)
    np.testing.assert_allclose(gradient["bias"], residual.mean(0), atol=1e-14)


@pytest.mark.parametrize(("activation", "numpy_activation"), [("tanh", np.tanh), ("relu", lambda x: np.maximum(x, 0))])
def test_formula_mlp_loss_and_metrics_against_numpy(activation, numpy_activation):
    problem = problems.mlp(widths=(8, 6), activation=activation)
    features, labels = (np.asarray(part) for part in problem.metrics["test_loss"].examples)
    for layer in problem.params[:-1]:
        features = numpy_activation(features @ np.asarray(layer["weight"]) + np.asarray(layer["bias"]))
    logits = features @ np.asarray(problem.params[-1]["weight"])
    chosen = logits[np.arange(len(labels)), labels]
    expected = np.mean(np.log(np.exp(logits).sum(1)) - chosen)
    np.testing.assert_allclose(problem.metrics["test_loss"](problem.params), expected, rtol=1e-12)
    np.testing.assert_allclose(problem.metrics["test_accuracy"](problem.params), np.mean(logits.argmax(1) == labels))


def test_formula_transformer_starts_near_the_logarithm_of_its_vocabulary(transformer):
    expected = np.log(transformer.params["head"].shape[1])
    for loss in (transformer.loss, transformer.metrics["validation_loss"]):
        assert abs(evaluate(loss, transformer.params) - expected) < 0.05


def test_formula_transformer_accuracy_is_the_share_of_characters_guessed(transformer):
    metric = transformer.metrics["validation_accuracy"]
    logits = transformer_logits(transformer.params, metric.windows[:, :-1], 2)
    guessed = np.argmax(logits, axis=-1) == np.asarray(metric.windows[:, 1:])
    np.testing.assert_allclose(evaluate(metric, transformer.params), guessed.mean())


def test_formula_transformer_is_causal(transformer):
    tokens = transformer.batches(size=1)(0)[0, :-1]
    variants = jnp.concatenate([tokens[None], tokens + jnp.eye(16, dtype=int)])
    logits = transformer_logits(transformer.params, variants, 2)
    changed, read = np.nonzero(np.abs(logits[1:] - logits[0]).max(axis=-1))
    assert set(zip(changed, read, strict=True)) == set(zip(*np.triu_indices(16), strict=True))


def test_formula_transformer_attention_with_zero_queries_averages_the_past(transformer):
    block = transformer.params["blocks"][0]
    projections = np.array(block["attention"]["query_key_value"])
    projections[:, :16] = 0.0
    x = np.random.default_rng(0).normal(size=(2, 5, 16))
    out = jax.jit(attention, static_argnums=2)(block["attention"] | {"query_key_value": projections}, x, 2)
    value = x @ projections[:, 32:]
    past = np.cumsum(value, axis=1) / np.arange(1, 6)[:, None]
    np.testing.assert_allclose(out, past @ np.asarray(block["attention"]["out"]), atol=1e-14)


def test_formula_convolution_equals_that_of_jax():
    generator = np.random.default_rng(0)
    images, weight = (jnp.asarray(generator.normal(size=shape)) for shape in ((2, 5, 4, 3), (3, 3, 3, 2)))
    layout = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(images, weight, (1, 1), "SAME", dimension_numbers=layout)
    np.testing.assert_allclose(convolve(images, weight), expected, atol=1e-13)
    np.testing.assert_allclose(halve(images)[1, 0, 1, 2], np.mean(images[1, :2, 2:4, 2]), rtol=1e-13)
    assert halve(images).shape == (2, 2, 2, 3)


@pytest.mark.parametrize(("kind", "axes"), [("layer", (1, 2)), ("batch", (0, 1))])
def test_formula_normalization_by_example_or_by_unit(kind, axes):
    values = jnp.asarray(np.random.default_rng(0).normal(2.0, 3.0, (4, 5, 3)))
    found = normalize(values, kind)
    np.testing.assert_allclose(np.mean(found, axis=axes), 0.0, atol=1e-13)
    np.testing.assert_allclose(np.std(found, axis=axes), 1.0, rtol=1e-12)
    constant = jax.value_and_grad(lambda x: jnp.sum(normalize(x, kind)))(jnp.ones((4, 5, 3)))
    assert float(constant[0]) == 0.0
    np.testing.assert_array_equal(constant[1], 0.0)


def test_formula_rayleigh_quotient_with_noise():
    w, noise = jnp.array([1.0, -2.0, 0.5]), jnp.array([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]])
    problem = problems.rayleigh(3, spread=2.0)
    quotient = (w[1] ** 2 + 2 * w[2] ** 2) / (w @ w)
    np.testing.assert_allclose(problem.loss(w), quotient, rtol=1e-13)
    np.testing.assert_allclose(problem.loss(w, noise), quotient + (2 * w[0] + w[2]) / np.linalg.norm(w), rtol=1e-13)


@pytest.mark.slow
def test_formula_transformer_derivatives_are_finite_to_second_order(transformer):
    def slope(params):
        gradient = jax.grad(transformer.loss)(params)
        return sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(gradient))

    zeros = jax.tree.map(np.zeros_like, transformer.params)
    derivative = jax.jit(jax.grad(slope))
    for params in (transformer.params, zeros):
        assert np.isfinite(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(derivative(params))])).all()


def test_formula_encode_matches_sorted_set():
    text = "naïve “quotes”…\n𝄞"
    vocabulary, tokens = encode(text)
    assert vocabulary == "".join(sorted(set(text)))
    assert "".join(vocabulary[token] for token in tokens) == text


# --- identity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", ["mlp", "transformer"])
def test_identity_batches_repeat_and_run_under_jit_scan_and_vmap(problem, request):
    problem = request.getfixturevalue(problem)
    batches = problem.batches(size=3, seed=5)
    one_by_one = [batches(n) for n in range(4)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *one_by_one)
    iterations = jnp.arange(4)
    again = problem.batches(size=3, seed=5)
    for other in (
        eqx.filter_vmap(again)(iterations),
        eqx.filter_jit(lambda f, n: jax.lax.map(f, n))(again, iterations),
    ):
        jax.tree.map(np.testing.assert_array_equal, stacked, other)
    labels = jax.tree.leaves(stacked)[-1]
    assert not np.array_equal(labels[0], labels[1])
    assert not np.array_equal(labels[0], jax.tree.leaves(problem.batches(size=3, seed=6)(0))[-1])


@pytest.mark.parametrize("problem", ["mlp", "transformer"])
def test_identity_batch_loss_on_the_fixed_data_is_the_loss(problem, request):
    problem = request.getfixturevalue(problem)
    data = problem.loss.examples if problem.name == "mlp" else problem.loss.windows
    fixed = evaluate(problem.loss, problem.params)
    batched = evaluate(problem.loss, problem.params, data)
    np.testing.assert_allclose(fixed, batched, rtol=1e-14)


@pytest.mark.slow
def test_identity_lanes_of_parameters_and_batches_are_separate_runs(transformer):
    batches = transformer.batches(size=3)
    params = lanes(transformer.params, 2)

    def gradient(params, iteration):
        return jax.grad(transformer.loss)(params, batches(iteration))

    together = jax.jit(jax.vmap(gradient))(params, jnp.arange(2))
    one = jax.jit(gradient)
    for lane in range(2):
        alone = one(jax.tree.map(lambda x, lane=lane: x[lane], params), lane)
        for x, y in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(np.asarray(x)[lane], y, atol=1e-13)


@pytest.mark.parametrize(
    "make",
    [
        lambda: problems.rayleigh(5),
        pytest.param(lambda: problems.mlp((4, 3), normalization="layer"), marks=pytest.mark.slow),
        pytest.param(lambda: problems.mlp((4,), normalization="batch"), marks=pytest.mark.slow),
        pytest.param(lambda: problems.cnn((2, 3), normalization="layer", train_size=50), marks=pytest.mark.slow),
        pytest.param(lambda: problems.cnn((2,), normalization="batch", train_size=50), marks=pytest.mark.slow),
        pytest.param(
            lambda: problems.char_transformer(**TINY, normalize_queries_and_keys=True), marks=pytest.mark.slow
        ),
    ],
)
def test_identity_scale_invariant_leaves_are_those_that_are_named(make):
    """f(cW) = f(W) and ⟨W, g⟩ = 0 for the leaves named; other weights have neither."""
    problem = make()
    slopes = eqx.filter_jit(lambda loss, params: jax.value_and_grad(loss)(params))
    value, gradient = slopes(problem.loss, problem.params)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(problem.params)
    gradients, known = jax.tree.leaves(gradient), set(problem.scale_invariant)
    assert known
    assert known <= {jax.tree_util.keystr(path) for path, _ in leaves}
    for place, (path, leaf) in enumerate(leaves):
        cosine = jnp.vdot(leaf, gradients[place]) / (jnp.linalg.norm(leaf) * jnp.linalg.norm(gradients[place]) + 1e-30)
        scaled = [4.0 * other if place == number else other for number, (_, other) in enumerate(leaves)]
        change = float(evaluate(problem.loss, treedef.unflatten(scaled)) - value)
        if jax.tree_util.keystr(path) in known:
            assert abs(float(cosine)) < 1e-13
            assert change == pytest.approx(0.0, abs=1e-13)
        elif np.any(leaf) and np.any(gradients[place]):
            assert abs(change) > 1e-6, jax.tree_util.keystr(path)


def test_identity_normalized_transformer_starts_with_the_same_numbers():
    plain, normalized = (problems.char_transformer(**TINY, normalize_queries_and_keys=flag) for flag in (False, True))
    one, other = (problem.params["blocks"][0]["attention"] for problem in (plain, normalized))
    parts = [other[name] for name in ("query", "key", "value")]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), one["query_key_value"])
    np.testing.assert_array_equal(other["out"], one["out"])
    assert other["query_gain"].shape == (8,)
    assert plain.scale_invariant == normalized.flatten().scale_invariant == ()


def test_identity_cnn_takes_images_of_any_shape():
    generator = np.random.default_rng(0)
    parts = [
        (jnp.asarray(generator.uniform(size=(size, 6, 4, 3))), jnp.asarray(generator.integers(0, 5, size)))
        for size in (20, 7)
    ]
    problem = problems.cnn((2, 4), data=(parts[0], parts[1]), train_size=11)
    assert [layer["weight"].shape for layer in problem.params] == [(3, 3, 3, 2), (3, 3, 2, 4), (4, 5)]
    np.testing.assert_array_equal(problem.loss.examples[0], parts[0][0][:11])
    assert problem.batches(3)(0)[0].shape == (3, 6, 4, 3)
    np.testing.assert_array_equal(problem.metrics["test_loss"].examples[1], parts[1][1])


def test_identity_equal_shapes_share_compiled_code():
    traced = []

    @eqx.filter_jit
    def value(loss, params):
        traced.append(loss)
        return loss(params)

    for curvature in (1.0, 2.0):
        problem = problems.quadratic([curvature, 3.0])
        assert value(problem.loss, problem.params) == 0.5 * (curvature + 3.0)
    assert len(traced) == 1


def test_identity_losses_hold_their_data_as_arguments_of_jit(mlp, transformer):
    for problem in (mlp, transformer, problems.chain(3), problems.quadratic([1.0])):
        data, _ = eqx.partition(problem.loss, eqx.is_array)
        assert jax.tree.leaves(data)
        jaxpr = jax.make_jaxpr(lambda data, params, p=problem: eqx.combine(data, p.loss)(params))(data, problem.params)
        assert sum(np.size(constant) for constant in jaxpr.consts) == 0


def test_identity_equal_seeds_give_equal_problems(mlp, transformer):
    for problem, again, other in (
        (mlp, problems.mlp(widths=(8,)), problems.mlp(widths=(8,), seed=1)),
        (transformer, problems.char_transformer(**TINY), problems.char_transformer(**TINY, seed=1)),
    ):
        assert eqx.tree_equal(problem.params, again.params)
        assert eqx.tree_equal(problem.loss, again.loss)
        assert eqx.tree_equal(problem.loss, other.loss), "the seed of the weights leaves the data alone"
        assert not eqx.tree_equal(problem.params, other.params)
    assert not eqx.tree_equal(transformer.loss, problems.char_transformer(**TINY, data_seed=1).loss)


def test_identity_digits_parts_are_disjoint_and_complete(mlp):
    train, test = mlp.loss.examples, mlp.metrics["test_loss"].examples
    assert len(train[1]) + len(test[1]) == 1797
    assert len(test[1]) == 449
    rows = np.concatenate([np.asarray(train[0]), np.asarray(test[0])])
    assert rows.min() == 0
    assert rows.max() == 1
    from sklearn.datasets import load_digits

    images, digits = load_digits(return_X_y=True)
    labels = np.concatenate([train[1], test[1]])
    ours = sorted(map(tuple, np.column_stack([rows * 16, labels]).astype(int).tolist()))
    assert ours == sorted(map(tuple, np.column_stack([images, digits]).astype(int).tolist()))


def test_identity_text_is_split_by_position_and_windows_stay_inside():
    train, validation = split(np.arange(100), 0.2, length=7)
    np.testing.assert_array_equal(np.concatenate([train.tokens, validation.tokens]), np.arange(100))
    assert len(validation.tokens) == 20
    for windows in (train(jax.random.key(0), 2000), validation.evenly_spaced(5), validation(jax.random.key(0), 2000)):
        assert (np.diff(np.asarray(windows), axis=1) == 1).all(), "each window is consecutive"
    drawn = train(jax.random.key(0), 2000)
    assert (np.min(drawn), np.max(drawn)) == (0, 79), "both ends of the train part are drawn, nothing beyond"
    spaced = validation.evenly_spaced(5)
    assert (np.min(spaced), np.max(spaced)) == (80, 99)


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_identity_text_from_a_path(alphabet, kind):
    problem = problems.char_transformer(text=kind(alphabet), **TINY)
    assert problem.params["head"].shape == (16, 26)
    assert (np.diff(np.asarray(problem.batches(size=4)(0)), axis=1) % 26 == 1).all()
    assert read_text(kind(alphabet)) == alphabet.read_text()


def test_formula_the_default_text_is_the_same_for_everyone():
    """It was the help of the Python that runs, which differs from one version to the next."""
    text = read_text()
    assert len(text) == 464_970
    assert hashlib.sha256(text.encode()).hexdigest().startswith("37d06970fc926e60")


@pytest.mark.parametrize(
    "make",
    [
        problems.mlp,
        lambda: problems.char_transformer(**TINY),
        lambda: problems.rayleigh(3),
        pytest.param(lambda: problems.cnn(normalization="batch"), marks=pytest.mark.slow),
    ],
)
def test_identity_float32_problem_is_the_float64_one_rounded(make):
    double = make()
    with jax.enable_x64(False):
        single = make()
        loss, batch = evaluate(single.loss, single.params), single.batches(size=3)(2)
    assert {leaf.dtype for leaf in jax.tree.leaves(double.params)} == {np.dtype("float64")}
    assert {leaf.dtype for leaf in jax.tree.leaves(single.params)} == {np.dtype("float32")}
    assert loss.dtype == np.float32
    np.testing.assert_allclose(loss, evaluate(double.loss, double.params), rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-7), batch, double.batches(size=3)(2))


def test_identity_gradient_steps_learn(mlp):
    @jax.jit
    def train(params):
        def step(_, p):
            return jax.tree.map(lambda x, g: x - 0.5 * g, p, jax.grad(mlp.loss)(p))

        return jax.lax.fori_loop(0, 150, step, params)

    trained = train(mlp.params)
    assert mlp.metrics["test_accuracy"](trained) > 0.85
    assert mlp.metrics["train_accuracy"](trained) > 0.85
    assert mlp.metrics["test_loss"](trained) < 0.8


# --- failure ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: problems.quadratic(np.ones((2, 2))), r"curvatures must be a 1-D array .* got shape \(2, 2\)"),
        (lambda: problems.quadratic([]), r"curvatures must be a 1-D array .* got shape \(0,\)"),
        (lambda: problems.quadratic([1.0, np.nan]), r"curvatures must lie in \(-inf, inf\), got nan"),
        (lambda: problems.quadratic([1.0], start=[np.inf]), r"start must lie in \(-inf, inf\), got inf"),
        (lambda: problems.quadratic([1.0, 2.0], start=1.0), r"one number per curvature, shape \(2,\), got shape \(\)"),
        (lambda: problems.quartic(coupling=np.nan), r"coupling must lie in \(-inf, inf\), got nan"),
        (lambda: problems.monomial(0), "power must be a whole number of at least 1, got 0"),
        (lambda: problems.monomial(2, start=np.inf), r"start must lie in \(-inf, inf\), got inf"),
        (lambda: problems.chain(1), "dimension must be a whole number of at least 2, got 1"),
        (lambda: problems.mlp(widths=()), "at least one hidden layer, got .*use af.problems.logistic"),
        (lambda: problems.mlp(widths=(3, 0)), "widths must be a whole number of at least 1, got 0"),
        (lambda: problems.mlp(activation="sine"), "activation must be one of 'tanh', .*got 'sine'"),
        (lambda: problems.mlp(seed=-1), "seed must be a whole number of at least 0, got -1"),
        (lambda: problems.logistic(data_seed=-1), "data_seed must be a whole number of at least 0, got -1"),
        (lambda: problems.logistic(test_fraction=1.0), r"test_fraction must lie in \(0, 1\), got 1.0"),
        (lambda: problems.char_transformer(heads=3, width=64), "heads=3 and width=64; try width=66"),
        (lambda: problems.char_transformer(layers=0), "layers must be a whole number of at least 1, got 0"),
        (lambda: problems.char_transformer(context=0), "context must be a whole number of at least 1, got 0"),
        (lambda: problems.char_transformer(batch_size=0), "batch_size must be a whole number of at least 1"),
        (lambda: problems.char_transformer(validation_size=0), "validation_size must be a whole number of at least 1"),
        (lambda: problems.char_transformer(seed=-1), "seed must be a whole number of at least 0, got -1"),
        (lambda: problems.char_transformer(data_seed=-1), "data_seed must be a whole number of at least 0"),
        (lambda: problems.char_transformer(validation_fraction=0.0), r"validation_fraction must lie in \(0, 1\)"),
        (lambda: problems.mlp(normalization="group"), "normalization must be one of 'layer', 'batch', got 'group'"),
        (lambda: problems.mlp((8, 2), normalization="layer"), "widths with layer norm must be at least 3, .*got 2"),
        (
            lambda: problems.char_transformer(heads=8, width=16, normalize_queries_and_keys=True),
            "width / heads must be at least 3, .*got 2",
        ),
        (lambda: problems.cnn(()), "at least one convolution, got .*use af.problems.mlp"),
        (lambda: problems.cnn((2, 0)), "channels must be a whole number of at least 1, got 0"),
        (lambda: problems.cnn(kernel=2), "kernel must be odd, .*got 2; try 3"),
        (lambda: problems.cnn((2, 2, 2, 2)), "4 convolutions halve images of 8 by 8 to nothing; take at most 3"),
        (lambda: problems.cnn(train_size=2000), "train_size must be at most 1348, .*got 2000"),
        (lambda: problems.cnn(activation="sine"), "activation must be one of 'tanh', .*got 'sine'"),
        (lambda: problems.chain(3).batches(size=2), "problem 'chain' has no minibatches.*run it without batches="),
        (lambda: problems.logistic().batches(size=0), "size must be a whole number of at least 1, got 0"),
        (lambda: problems.logistic().batches(size=2, seed=-1), "seed must be a whole number of at least 0, got -1"),
    ],
)
def test_failure_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_failure_text_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone.txt' cannot be read: No such file.*give the path of a text"):
        problems.char_transformer(text=tmp_path / "gone.txt")


def test_failure_text_is_a_folder(tmp_path):
    with pytest.raises(IsADirectoryError, match="cannot be read: Is a directory; give the path"):
        problems.char_transformer(text=tmp_path)


def test_identity_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "marked.txt"
    path.write_bytes("\ufeffhello".encode())
    assert encode(read_text(path))[0] == "ehlo"


@pytest.mark.usefixtures("unchecked")
def test_failure_text_that_is_no_path_or_no_text(tmp_path):
    for path in ("", b"a", 3):
        with pytest.raises(ValueError, match="text must be a path, a non-empty string or"):
            read_text(path)
    path = tmp_path / "wide.txt"
    path.write_bytes("hello".encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"wide.txt' contains NUL characters, as UTF-16"):
        read_text(path)


def test_failure_text_not_utf8(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("déjà".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.txt' is not UTF-8 \(byte 1: .*give the path of a text file"):
        problems.char_transformer(text=path)


@pytest.mark.parametrize("text", ["", "a", "short text" * 20])
def test_failure_text_too_short(tmp_path, text):
    path = tmp_path / "short.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"text of {len(text)} characters is too short: .*context \+ 1 = 65; give"):
        problems.char_transformer(text=path)


def test_failure_batch_longer_than_the_context(transformer):
    with pytest.raises(ValueError, match=r"windows of 2 to context \+ 1 = 17 characters, got 18"):
        transformer.loss(transformer.params, jnp.zeros((2, 18), int))


def test_failure_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'adamflow\[data\]'"):
        problems.logistic()
