"""The covariance of minibatch gradients: against enumeration of all batches, and what is drawn from it."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import adamflow as af

EXAMPLES = 7


def loss(params, batch):
    features, targets = batch
    hidden = jnp.tanh(features @ params["weight"])
    return jnp.mean((hidden @ params["out"] - targets) ** 2)


@pytest.fixture
def case():
    generator = np.random.default_rng(3)
    params = {"out": jnp.asarray(generator.normal(size=2)), "weight": jnp.asarray(generator.normal(size=(3, 2)))}
    features, targets = generator.normal(size=(EXAMPLES, 3)), generator.normal(size=EXAMPLES)
    return params, (jnp.asarray(features), jnp.asarray(targets))


gradient_of = jax.jit(jax.grad(loss))


def gradients(params, data):
    """The gradient of each example, by one call each."""
    rows = [gradient_of(params, (data[0][i : i + 1], data[1][i : i + 1])) for i in range(EXAMPLES)]
    return np.stack([ravel_pytree(row)[0] for row in rows])


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_formula_full_covariance_is_that_of_all_batches_enumerated(case, batch_size, replacement):
    params, data = case
    rows = gradients(params, data)
    draws = itertools.product(range(EXAMPLES), repeat=batch_size)
    if not replacement:
        draws = itertools.permutations(range(EXAMPLES), batch_size)
    batches = np.stack([rows[list(draw)].mean(axis=0) for draw in draws])
    noise = af.noise.covariance(loss, params, data, batch_size, kind="full", replacement=replacement)
    expected = (batches - rows.mean(axis=0)).T @ (batches - rows.mean(axis=0)) / len(batches)
    np.testing.assert_allclose(noise.matrix(), expected, atol=1e-14)
    np.testing.assert_allclose(noise.trace, np.trace(expected), rtol=1e-12)
    # What a second moment averages: E g² = ḡ² + diag Σ_B.
    squares = ravel_pytree(noise.mean)[0] ** 2 + ravel_pytree(noise.diagonal)[0]
    np.testing.assert_allclose(squares, (batches**2).mean(axis=0), rtol=1e-11)


def test_formula_no_noise_in_a_batch_of_all_examples(case):
    params, data = case
    noise = af.noise.covariance(loss, params, data, EXAMPLES, kind="full", replacement=False)
    assert float(noise.trace) == 0.0
    assert af.noise.effective_batch_size(EXAMPLES, EXAMPLES) == np.inf


@pytest.mark.parametrize("kind", ["isotropic", "diagonal", "low_rank", "full"])
def test_identity_all_kinds_have_the_trace_and_apply_as_their_matrix(case, kind):
    params, data = case
    full = af.noise.covariance(loss, params, data, 2, kind="full")
    noise = af.noise.covariance(loss, params, data, 2, kind=kind, rank=2)
    np.testing.assert_allclose(noise.trace, full.trace, rtol=1e-12)
    matrix = noise.matrix()
    np.testing.assert_allclose(np.diag(matrix), ravel_pytree(noise.diagonal)[0], rtol=1e-10)
    # The root, column by column, has this covariance exactly.
    shapes = noise.white_shape
    columns = []
    for place, shape in enumerate(shapes):
        for row in np.eye(shape.shape[0]):
            white = tuple(jnp.asarray(row) if i == place else jnp.zeros(s.shape) for i, s in enumerate(shapes))
            columns.append(ravel_pytree(noise.root(white))[0])
    columns = np.stack(columns)
    np.testing.assert_allclose(columns.T @ columns, matrix, atol=1e-14)


def test_formula_models_are_mean_diagonal_and_leading_eigenpairs(case):
    params, data = case
    sigma = np.asarray(af.noise.covariance(loss, params, data, kind="full").matrix())
    isotropic = af.noise.covariance(loss, params, data, kind="isotropic").matrix()
    np.testing.assert_allclose(isotropic, np.trace(sigma) / len(sigma) * np.eye(len(sigma)), atol=1e-14)
    diagonal = af.noise.covariance(loss, params, data, kind="diagonal").matrix()
    np.testing.assert_allclose(diagonal, np.diag(np.diag(sigma)), atol=1e-14)
    low = np.linalg.eigvalsh(af.noise.covariance(loss, params, data, kind="low_rank", rank=3).matrix())
    values = np.linalg.eigvalsh(sigma)
    np.testing.assert_allclose(low[-3:], values[-3:], rtol=1e-10)
    np.testing.assert_allclose(low[:-3], values[:-3].mean(), rtol=1e-8)


def test_identity_chunks_of_examples_change_nothing(key):
    # 150 examples are two chunks and a rest.
    data = jax.random.normal(key, (150, 4))

    def square(params, batch):
        return jnp.mean(jnp.sum(jnp.sin(batch * params), axis=1))

    diagonal = af.noise.covariance(square, jnp.arange(1.0, 5.0), data, kind="diagonal").diagonal
    full = af.noise.covariance(square, jnp.arange(1.0, 5.0), data, kind="full").diagonal
    np.testing.assert_allclose(diagonal, full, rtol=1e-12)


def test_formula_samples_have_the_covariance(case, key):
    params, data = case
    noise = af.noise.covariance(loss, params, data, 2, kind="low_rank", rank=2)
    draws = np.asarray(jax.vmap(lambda key: ravel_pytree(noise.sample(key))[0])(jax.random.split(key, 20000)))
    matrix = np.asarray(noise.matrix())
    # Each entry of a sample covariance has the variance (S_ii S_jj + S_ij²)/n.
    errors = np.sqrt((np.outer(np.diag(matrix), np.diag(matrix)) + matrix**2) / len(draws))
    assert np.abs((draws.T @ draws / len(draws) - matrix) / errors).max() < 4.5


def test_formula_gaussian_squares_have_the_covariance_that_the_flows_assume(key):
    sigma = np.array([[1.0, 0.3], [0.3, 0.5]])
    noise, mean = af.noise.known_covariance(jnp.asarray(sigma), jnp.zeros(2)), np.array([0.7, -0.4])
    draws = mean + np.asarray(jax.vmap(noise.sample)(jax.random.split(key, 40000)))
    expected = 2 * sigma**2 + 4 * np.outer(mean, mean) * sigma
    np.testing.assert_allclose(np.cov((draws**2).T), expected, atol=0.06)


def test_formula_noise_scale_with_and_without_curvature(case):
    params, data = case
    rows = gradients(params, data)
    mean, sigma = rows.mean(axis=0), np.cov(rows.T, ddof=0)
    flat, unravel = ravel_pytree(params)
    hessian = np.asarray(jax.jit(jax.hessian(lambda x: loss(unravel(x), data)))(flat))
    np.testing.assert_allclose(af.noise.noise_scale(loss, params, data), np.trace(sigma) / (mean @ mean), rtol=1e-10)
    expected = np.trace(hessian @ sigma) / (mean @ hessian @ mean)
    np.testing.assert_allclose(af.noise.noise_scale(loss, params, data, curvature=True), expected, rtol=1e-9)
    np.testing.assert_allclose(
        af.noise.covariance(loss, params, data, 3).noise_scale, np.trace(sigma) / (mean @ mean), rtol=1e-10
    )


def test_formula_noise_scale_from_two_batch_sizes_is_unbiased(case):
    params, data = case
    rows = gradients(params, data)
    small, large = (
        np.mean([np.sum(rows[list(d)].mean(axis=0) ** 2) for d in itertools.product(range(EXAMPLES), repeat=size)])
        for size in (1, 3)
    )
    square, trace = af.noise.noise_scale_from_norms(small, large, 1, 3)
    np.testing.assert_allclose(square, np.sum(rows.mean(axis=0) ** 2), rtol=1e-10)
    np.testing.assert_allclose(trace, np.trace(np.cov(rows.T, ddof=0)), rtol=1e-10)


def test_identity_batches_of_a_problem_serve_as_data(case):
    params, data = case
    together = af.noise.covariance(loss, params, lambda n: jax.tree.map(lambda leaf: leaf[n : n + 1], data), draws=7)
    np.testing.assert_allclose(together.trace, af.noise.covariance(loss, params, data).trace, rtol=1e-12)


def test_formula_sgd_under_a_known_noise_has_the_stationary_variance_of_the_recursion(key):
    # η σ²/(2h − ηh²) = .00694 at η = .1, h = 2, σ = .5.
    problem = af.problems.quadratic([2.0])
    noisy = af.noise.NoisyLoss(problem.loss, af.noise.known_covariance(0.25, problem.params))

    def end(key):
        run = af.iterate(af.sgd(0.1), noisy, problem.params, 100, save_at=[100], batches=af.noise.Keys(key))
        return run.params[0, 0]

    ends = np.asarray(jax.vmap(end)(jax.random.split(key, 4000)))
    expected = 0.1 * 0.25 / (2 * 2 - 0.1 * 4)
    assert abs(np.mean(ends**2) / expected - 1) < 4 * np.sqrt(2 / len(ends))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda params, data: af.noise.covariance(loss, params, data, 8, replacement=False),
            "batch_size must be at most the 7 examples, got 8: without replacement",
        ),
        (lambda params, data: af.noise.covariance(loss, params, data, 0), "batch_size must be a whole number of at"),
        (
            lambda params, data: af.noise.covariance(loss, params, data, kind="sparse"),
            "kind must be one of 'isotropic'",
        ),
        (
            lambda params, data: af.noise.covariance(loss, params, (data[0], data[1][:3])),
            "data must be arrays with one leading axis over the examples, got the shapes [(7, 3), (3,)]",
        ),
        (
            lambda params, data: af.noise.known_covariance(jnp.array([[1.0, 2.0], [2.0, 1.0]]), jnp.zeros(2)),
            "covariance must not be negative, but its smallest eigenvalue is -1",
        ),
        (lambda params, data: af.noise.known_covariance(-1.0, jnp.zeros(2)), "but the variance is -1"),
        (
            lambda params, data: af.noise.known_covariance(jnp.array([1.0, -2.0]), jnp.zeros(2)),
            "but a variance is -2",
        ),
        (
            lambda params, data: af.noise.known_covariance(jnp.array([[1.0, 2.0], [0.0, 5.0]]), jnp.zeros(2)),
            "covariance must be symmetric",
        ),
        (
            lambda params, data: af.noise.known_covariance(jnp.ones((3, 3)), jnp.zeros(2)),
            "or a matrix of shape (2, 2), got an array of shape (3, 3)",
        ),
        (lambda params, data: af.noise.noise_scale_from_norms(1.0, 1.0, 4, 2), "large_batch must be above"),
    ],
)
def test_failure_bad_noise_says_what_and_why(case, unchecked, call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call(*case)


def test_formula_plain_numbers_for_each_leaf_are_a_diagonal_covariance():
    noise = af.noise.known_covariance({"a": 0.5, "b": 2.0}, {"a": jnp.zeros(()), "b": jnp.zeros(())})
    assert noise.kind == "diagonal"
    np.testing.assert_allclose(noise.trace, 2.5)
