"""The mean-square edge: closed forms, the moment operator, particles, and the index estimated without matrices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

import adamflow as af

SCALARS = [0.2, 0.5, 1.0, 2.5]
EIGENVALUES = [1.0, 0.5, 0.25, 0.125, 0.1, 0.05]


def growth(hessians, eta, gamma, decay, batch_size):
    """ρ(E[M ⊗ M]) as a dense matrix, all batches averaged by the moments of one example."""
    size, a = hessians.shape[1], 1 - gamma
    identity, mean = np.eye(size), hessians.mean(axis=0)

    def step(s):
        return np.block(
            [[(1 - eta * decay) * identity - eta * a * s, -eta * gamma * identity], [a * s, gamma * identity]]
        )

    each = np.mean([np.kron(step(s), step(s)) for s in hessians], axis=0)
    whole = np.kron(step(mean), step(mean))
    return np.abs(np.linalg.eigvals(whole + (each - whole) / batch_size)).max()


@pytest.mark.parametrize(
    ("batch_size", "expected"),
    [
        (1, (1.11405836, 1.82608696, 2.49843456, 2.66483867)),
        (4, (1.61771786, 3.72918979, 8.27908183, 10.43918128)),
        (16, (1.82385670, 5.04315197, 19.63854495, 38.57000707)),
    ],
)
def test_formula_edge_in_one_dimension(batch_size, expected):
    for gamma, edge in zip((0.0, 0.5, 0.9, 0.99), expected, strict=True):
        found = af.noise.mean_square_edge(af.adam(1.0, gamma=gamma), SCALARS, batch_size, law="examples")
        np.testing.assert_allclose(found.learning_rate, edge, rtol=1e-8)
        mean, variance = np.mean(SCALARS), np.var(SCALARS) / batch_size
        np.testing.assert_allclose(af.noise.one_dimensional_edge(gamma, mean, variance), edge, rtol=1e-8)
        hessians = np.array(SCALARS)[:, None, None]
        np.testing.assert_allclose(growth(hessians, found.learning_rate, gamma, 0.0, batch_size), 1.0, rtol=1e-9)


@pytest.mark.parametrize(
    ("gamma", "batch_size", "expected"),
    [
        (0.0, 1, 0.56179347),
        (0.0, 4, 1.27051349),
        (0.0, 64, 1.93865399),
        (0.9, 1, 0.71789399),
        (0.9, 4, 2.74921744),
        (0.9, 64, 22.45719002),
    ],
)
def test_formula_edge_of_gaussian_features(gamma, batch_size, expected):
    optimizer = af.adam(expected, gamma=gamma)
    found = af.noise.mean_square_edge(optimizer, EIGENVALUES, batch_size)
    np.testing.assert_allclose(found.learning_rate, expected, rtol=1e-8)
    np.testing.assert_allclose((found.growth, found.index), 1.0, atol=1e-7)
    operator = af.noise.mean_square_edge(optimizer, EIGENVALUES, batch_size, method="operator")
    np.testing.assert_allclose(operator.learning_rate, expected, rtol=1e-8)


@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("gamma", [0.0, 0.6])
def test_formula_edge_of_random_hessians_is_where_the_dense_moments_grow(gamma, decay):
    generator = np.random.default_rng(5)
    features = generator.normal(size=(9, 3)) * [1.0, 0.7, 0.3]
    hessians = np.einsum("ni,nj->nij", features, features)
    optimizer = af.adamw(0.4, gamma=gamma, weight_decay=decay)
    found = af.noise.mean_square_edge(optimizer, hessians, 2, law="examples")
    expected = brentq(lambda eta: growth(hessians, eta, gamma, decay, 2) - 1, 0.3, 4.0)
    np.testing.assert_allclose(found.learning_rate, expected, rtol=1e-8)
    np.testing.assert_allclose(found.growth, growth(hessians, 0.4, gamma, decay, 2), rtol=1e-9)
    rows = af.noise.mean_square_edge(optimizer, features, 2, law="features")
    np.testing.assert_allclose(rows.learning_rate, found.learning_rate, rtol=1e-8)


def test_formula_index_with_weight_decay_is_one_where_moments_of_gaussian_features_grow():
    # Two independent routes: the sum over gains, and the operator of the moments of (z, m).
    for gamma in (0.0, 0.9):
        optimizer = af.adamw(0.3, gamma=gamma, weight_decay=0.2)
        found = af.noise.mean_square_edge(optimizer, EIGENVALUES, 2)
        other = af.noise.mean_square_edge(
            af.adamw(found.learning_rate, gamma=gamma, weight_decay=0.2), EIGENVALUES, 2, method="operator"
        )
        np.testing.assert_allclose(other.growth, 1.0, atol=1e-9)
        np.testing.assert_allclose(other.learning_rate, found.learning_rate, rtol=1e-9)


def test_formula_large_moments_by_the_iterative_solver(key):
    # 20 dimensions have 1600 moments; the Gaussian closed form is the reference.
    eigenvalues = np.asarray(jax.random.uniform(key, (20,)))
    closed = af.noise.mean_square_edge(af.adam(0.3, gamma=0.5), eigenvalues, 2)
    operator = af.noise.mean_square_edge(af.adam(0.3, gamma=0.5), eigenvalues, 2, method="operator")
    np.testing.assert_allclose(operator.learning_rate, closed.learning_rate, rtol=1e-7)
    assert closed.growth < 1


def test_formula_particles_find_growth_and_edge_to_two_digits():
    optimizer = af.adam(1.5, gamma=0.5)
    exact = af.noise.mean_square_edge(optimizer, EIGENVALUES, 4)
    found = af.noise.mean_square_edge(optimizer, EIGENVALUES, 4, method="particles", particles=500, steps=200)
    assert abs(found.growth - exact.growth) < max(5 * found.growth_error, 0.005)
    assert abs(found.learning_rate / exact.learning_rate - 1) < 0.04


@pytest.mark.slow
def test_formula_particles_with_batches_without_replacement():
    scalars = af.noise.mean_square_edge(
        af.sgd(0.9), SCALARS, 2, law="examples", method="particles", replacement=False, particles=500, steps=100
    )
    closed = af.noise.mean_square_edge(af.sgd(0.9), SCALARS, 2, law="examples", replacement=False)
    assert abs(scalars.learning_rate / closed.learning_rate - 1) < 0.04


def test_formula_loss_of_gaussian_features_with_label_noise_is_the_floor_over_one_minus_the_index():
    # The stationary moment system, solved, against L0/(1 − Q); digits of the derivation.
    eta, gamma, batch_size, floor = 2.0, 0.9, 4, 0.3
    values = np.array(EIGENVALUES)
    index = af.noise.spectral_edge_index(af.adam(eta, gamma=gamma), values, batch_size)
    np.testing.assert_allclose(index, 0.6443439193, rtol=1e-9)
    # C_ii = G_i (λ_i² C_ii + λ_i (Σ λ_j C_jj + L0))/B, with the gain of momentum.
    k = (1 - gamma) / (1 + gamma)
    gain = eta / (values * (2 - eta * k * values)) / batch_size
    matrix = np.eye(len(values)) - np.diag(gain * values**2) - np.outer(gain * values, values)
    moments = np.linalg.solve(matrix, gain * values * floor)
    np.testing.assert_allclose(floor + values @ moments, af.noise.stationary_loss(floor, index), rtol=1e-9)


def test_identity_a_full_batch_without_replacement_has_the_deterministic_edge():
    found = af.noise.mean_square_edge(af.adam(1.0), SCALARS, 4, law="examples", replacement=False)
    np.testing.assert_allclose(found.learning_rate, 38 / np.mean(SCALARS), rtol=1e-9)
    batch = af.noise.mean_square_edge(af.adam(1.0), EIGENVALUES, 3, replacement=False, examples=10)
    larger = af.noise.mean_square_edge(af.adam(1.0), EIGENVALUES, 3)
    assert batch.learning_rate > larger.learning_rate


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((af.adam(1.0), [1.0, -1.0], 2), {}, "curvatures must not be negative for the Gaussian law, got -1"),
        ((af.adam(1.0), [1.0, -2.0], 2), {"law": "examples"}, "got one of -0.5"),
        ((af.adam(1.0), np.ones((2, 3)), 2), {}, "curvatures must have shape (d,) for law 'gaussian'"),
        ((af.adam(1.0), SCALARS, 2), {"replacement": False}, "examples must say how many there are"),
        ((af.adam(1.0), SCALARS, 5), {"replacement": False, "law": "examples"}, "at most the 4 examples, got 5"),
        ((af.adam(1.0), np.eye(3), 2), {"law": "features", "method": "closed"}, "'closed' has no formula for law"),
        ((af.adam(1.0), [0.0], 2), {}, "curvatures must have a positive entry"),
    ],
)
def test_failure_bad_curvatures_say_what_and_why(unchecked, arguments, options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        af.noise.mean_square_edge(*arguments, **options)


def test_failure_other_optimizers_have_no_linear_step():
    with pytest.raises(TypeError, match=r"knows the step of SGD, RMSprop, Adam and AdamW.*'lion' has another"):
        af.noise.mean_square_edge(af.lion(1.0), SCALARS, 2)


def quadratic(matrix):
    return lambda params: params @ matrix @ params / 2


@pytest.mark.parametrize("indefinite", [False, True])
def test_formula_index_by_probes_is_the_sum_over_eigenvalues_within_its_error(key, indefinite):
    size, optimizer = 60, af.adamw(0.5, gamma=0.5, beta=0.9, weight_decay=0.1)
    orthogonal, _ = np.linalg.qr(jax.random.normal(key, (size, size)))
    values = np.concatenate([[3.0, 2.0], np.geomspace(1.0, 1e-3, size - 2)])
    values[-20:] *= -1 if indefinite else 1
    matrix = orthogonal * values @ orthogonal.T
    second = np.geomspace(0.5, 2.0, size) ** 2
    state = optimizer.with_moment(optimizer.initial_state(jnp.zeros(size)), "second_moment", jnp.asarray(second))
    preconditioned = matrix / np.sqrt(np.outer(np.sqrt(second), np.sqrt(second)))
    eigenvalues = np.linalg.eigvalsh(preconditioned)
    exact = af.noise.spectral_edge_index(optimizer, eigenvalues, 3)
    found = af.noise.edge_index(
        quadratic(jnp.asarray(matrix)), jnp.zeros(size), optimizer, state, 3, leading=6, probes=24
    )
    np.testing.assert_allclose(found.leading, eigenvalues[-6:], rtol=1e-6)
    assert 0 < float(found.error) < 0.05 * exact
    assert abs(float(found.value) - exact) < 4 * float(found.error)
    assert float(np.max(found.residuals)) < 1e-4


def test_identity_index_of_few_dimensions_is_exact_and_infinite_beyond_its_pole():
    loss, start = quadratic(jnp.diag(jnp.array([1.0, 0.5, 0.25]))), jnp.ones(3)
    for rate in (0.3, 1.6):
        optimizer = af.sgd(rate)
        found = af.noise.edge_index(loss, start, optimizer, optimizer.initial_state(start), 2)
        exact = af.noise.spectral_edge_index(optimizer, [1.0, 0.5, 0.25], 2)
        np.testing.assert_allclose(found.value, exact, rtol=1e-9)
    assert np.isinf(exact)
    assert float(found.pole) > 1


def test_formula_batch_sharpness_of_one_dimension_and_its_error():
    # Batches of curvature s with probability p, else 0: g = sθ, so that BS = s whatever p is.
    curvatures = jnp.array([0.0, 3.0, 3.0, 0.0, 0.0, 3.0])

    def loss(params, batch):
        return batch * params**2 / 2

    sharpness = af.noise.batch_sharpness(loss, jnp.asarray(2.0), lambda n: curvatures[n % 6], draws=60)
    np.testing.assert_allclose((sharpness.value, sharpness.error), (3.0, 0.0), atol=1e-12)
    halved = af.noise.batch_sharpness(loss, jnp.asarray(2.0), lambda n: curvatures[n % 6], jnp.asarray(2.0), draws=60)
    np.testing.assert_allclose(halved.value, 1.5, rtol=1e-12)
    mixed = af.noise.batch_sharpness(loss, jnp.asarray(2.0), lambda n: 1.0 + (n % 2), draws=10)
    np.testing.assert_allclose(mixed.value, (1 + 8) / (1 + 4), rtol=1e-12)


def test_failure_index_of_another_optimizer_or_a_batch_of_records():
    start = jnp.ones(3)
    with pytest.raises(TypeError, match="edge_index knows the step of SGD"):
        af.noise.edge_index(quadratic(jnp.eye(3)), start, af.amsgrad(0.1), af.amsgrad(0.1).initial_state(start), 2)
    with pytest.raises(ValueError, match="needs the numbers of one record"):
        af.noise.mean_square_edge(jax.vmap(af.sgd)(jnp.array([0.1, 0.2])), SCALARS, 2)


def test_formula_law_factor_of_diagonal_hessians_is_exact_whatever_the_signs():
    rows = np.abs(np.random.default_rng(1).normal(size=(40, 5)))
    metric = np.array([1.0, 0.5, 2.0, 0.0, 1.5])

    def loss(params, batch):
        return jnp.mean(batch @ params**2) / 2

    found = af.noise.law_factor(loss, jnp.ones(5), jnp.asarray(metric), jnp.asarray(rows), probes=2)
    each = rows[:, metric > 0] / metric[metric > 0]
    mean = each.mean(axis=0)
    expected = (np.mean(np.sum(each**2, axis=1)) - np.sum(mean**2)) / (mean.sum() ** 2 + np.sum(mean**2))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_identity_a_law_factor_is_a_smaller_batch():
    loss, start, optimizer = quadratic(jnp.diag(jnp.array([1.0, 0.5, 0.25]))), jnp.ones(3), af.sgd(0.3)
    state = optimizer.initial_state(start)
    one = af.noise.edge_index(loss, start, optimizer, state, 2, law_factor=0.5)
    np.testing.assert_allclose(one.value, af.noise.spectral_edge_index(optimizer, [1.0, 0.5, 0.25], 4), rtol=1e-9)
