"""Scaling rules, SVAG, stationary covariances and Langevin dynamics: against closed forms and simulated chains."""

import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamflow as af

SIGMA, CURVATURE = np.array([[1.0, 0.3], [0.3, 0.5]]), np.array([1.0, 2.0])


@pytest.mark.parametrize(
    ("optimizer", "curvature", "variance", "expected"),
    [
        (af.sgd(0.1), 2.0, 0.25, (0.0069444444, 0.00625)),
        (af.sgd(0.1, gamma=0.9), 2.0, 0.25, (0.0062830688, 0.00625)),
        (af.adam(0.01, gamma=0.9), 1.0, 1.0, (0.0049888839, 0.0049875775)),
        (af.adam(0.05, gamma=0.9), 2.0, 0.25, (0.0060001635, 0.0059712585)),
        (af.rmsprop(0.05), 2.0, 0.25, (0.0065703076, 0.0059712585)),
    ],
)
def test_formula_stationary_variances(optimizer, curvature, variance, expected):
    for time, value in zip(("discrete", "continuous"), expected, strict=True):
        found = af.noise.stationary_covariance(optimizer, [curvature], [variance], time=time)
        np.testing.assert_allclose(found, [[value]], rtol=2e-8)


def test_formula_stationary_covariance_of_sgd_mode_by_mode():
    eta = 0.1
    discrete = eta * SIGMA / (np.add.outer(CURVATURE, CURVATURE) - eta * np.outer(CURVATURE, CURVATURE))
    np.testing.assert_allclose(af.noise.stationary_covariance(af.sgd(eta), CURVATURE, SIGMA), discrete, rtol=1e-10)
    continuous = af.noise.stationary_covariance(af.sgd(eta), CURVATURE, SIGMA, time="continuous")
    np.testing.assert_allclose(continuous, eta * SIGMA / np.add.outer(CURVATURE, CURVATURE), rtol=1e-10)


def test_formula_adamw_on_noise_alone_has_the_equilibrium_of_weight_decay():
    found = af.noise.stationary_covariance(af.adamw(0.01, gamma=0.9, weight_decay=0.1), [0.0], [1.0])
    np.testing.assert_allclose(found, [[0.0495553186]], rtol=1e-9)


def test_formula_stationary_variance_of_true_adam_is_near_that_with_a_held_second_moment(key):
    problem = af.problems.quadratic([2.0])
    noise = af.noise.known_covariance(0.25, problem.params)
    optimizer = af.adam(0.05, beta=0.99, gamma=0.9)
    runs = af.noise.discrete_paths(
        optimizer, problem.loss, jnp.zeros(1), 500, noise, key=key, paths=3000, save_at=[500]
    )
    found, held = runs.second_moment(), af.noise.stationary_covariance(optimizer, [2.0], [0.25])
    # Corrections are O(1 − β).
    assert abs(found.value[0, 0] / held[0, 0] - 1) < 4 * found.error[0, 0] / held[0, 0] + 0.02


@pytest.mark.parametrize(
    ("covariance", "time", "expected"),
    [
        (1.0, "continuous", [[0.0285714286, -0.0142857143], [-0.0142857143, 0.0571428571]]),
        (1.0, "discrete", [[0.0313512384, -0.0142125614], [-0.0142125614, 0.0597763612]]),
        (None, "continuous", [[0.0307977182, -0.0052093028], [-0.0052093028, 0.0436138665]]),
        (None, "discrete", [[0.0341047061, -0.0045636505], [-0.0045636505, 0.0457780701]]),
    ],
)
def test_formula_langevin_dynamics_on_a_quadratic(covariance, time, expected):
    hessian = np.array([[2.0, 0.5], [0.5, 1.0]])
    covariance = af.noise.anisotropic(SIGMA) if covariance is None else covariance
    noise = af.noise.langevin_noise(0.1, 0.05, jnp.zeros(2), jnp.asarray(covariance))
    found = af.noise.stationary_covariance(af.sgd(0.1), hessian, noise.matrix(), time=time)
    np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_formula_the_trace_of_the_bound_is_least_at_the_root_of_the_covariance():
    best = af.noise.anisotropic(SIGMA)
    np.testing.assert_allclose(np.trace(best), 2.0)
    np.testing.assert_allclose(af.noise.bound_trace(best, SIGMA), 1.3903124237, rtol=1e-9)
    np.testing.assert_allclose(af.noise.bound_trace(np.eye(2), SIGMA), 1.5)
    generator = np.random.default_rng(0)
    for _ in range(200):
        factor = generator.normal(size=(2, 2))
        other = factor @ factor.T
        assert af.noise.bound_trace(other * 2 / np.trace(other), SIGMA) >= 1.3903124


def test_formula_rule_for_batches_keeps_the_variance_to_second_order():
    # Digits of the held-v formula: .0050013161, .0050055617, .0050251256, .0051369863 at κ = 1, 2, 4, 8.
    start = af.adam(0.01, gamma=0.9)
    for factor, expected in ((1, 0.0050013161), (2, 0.0050055617), (4, 0.0050251256), (8, 0.0051369863)):
        scaled = af.scale_batch(start, factor)
        eta, gamma = float(scaled.learning_rate), float(scaled.stages[0].gamma)
        # v held at σ² alone, as in those digits: SGD at the rate η/σ.
        deviation = 1 / np.sqrt(factor)
        held = af.sgd(eta / deviation, gamma=gamma)
        found = af.noise.stationary_covariance(held, [1.0], [deviation**2])
        np.testing.assert_allclose(found, [[expected]], rtol=1e-8)


def test_formula_linear_rule_for_sgd():
    for factor, expected in ((1, 0.0069444444), (2, 0.0078125), (4, 0.0104166667)):
        found = af.noise.stationary_covariance(af.scale_batch(af.sgd(0.1), factor), [2.0], [0.25 / factor])
        np.testing.assert_allclose(found, [[expected]], rtol=1e-8)


def test_identity_rules_are_undone_and_leave_what_they_do_not_know():
    optimizer = af.adamw(1e-3, beta=0.999, gamma=0.9, weight_decay=0.1, epsilon=1e-8)
    larger = af.scale_batch(optimizer, 4)
    assert np.allclose([larger.learning_rate, larger.weight_decay, larger.epsilon], [2e-3, 0.2, 5e-9])
    back = af.scale_batch(larger, 0.25)
    for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(optimizer), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    inside = af.scale_batch(af.adam(1e-3, epsilon=1e-8, epsilon_inside_root=True), 4)
    np.testing.assert_allclose(inside.epsilon, 2.5e-9)


def test_order_svag_approaches_the_equation_as_one_over_inflation():
    # ησ²/(2h − ηh²/l) at l = 1, 2, 4, 8.
    for inflation, expected in ((1, 0.0069444444), (2, 0.0065789474), (4, 0.0064102564), (8, 0.0063291139)):
        optimizer, loss, _, times = af.noise.svag(
            af.sgd(0.1), lambda params, x: jnp.sum(params * x), lambda n: n, inflation
        )
        variance = 0.25 * (loss.first**2 + loss.second**2)
        np.testing.assert_allclose(loss.first + loss.second, 1.0)
        np.testing.assert_allclose(variance, 0.25 * inflation)
        assert times == inflation
        np.testing.assert_allclose(
            af.noise.stationary_covariance(optimizer, [2.0], [variance]), [[expected]], rtol=1e-8
        )


def test_identity_svag_draws_pairs_and_keeps_the_mean_gradient():
    problem = af.problems.logistic()
    optimizer, loss, batches, times = af.noise.svag(af.adam(1e-3, epsilon=1e-8), problem.loss, problem.batches(8), 2)
    one, other = batches(3)
    np.testing.assert_array_equal(one[1], problem.batches(8)(6)[1])
    np.testing.assert_array_equal(other[1], problem.batches(8)(7)[1])
    assert times == 4
    np.testing.assert_allclose(optimizer.epsilon, 2e-8)
    np.testing.assert_allclose((loss.first + loss.second, loss.first**2 + loss.second**2), (1.0, 4.0))
    value = loss(problem.params, (one, one))
    np.testing.assert_allclose(value, problem.loss(problem.params, one), rtol=1e-12)


class Pairs(eqx.Module):
    """Batches of two digits, by a key."""

    examples: Any
    key: Any

    def __call__(self, iteration):
        chosen = jax.random.randint(jax.random.fold_in(self.key, iteration), (2,), 0, 32)
        return jax.tree.map(lambda leaf: leaf[chosen], self.examples)


def test_formula_svag_keeps_the_spread_of_runs_of_a_network(key):
    """Digits, 4 units: the variance of θ over runs at l = 4 is that at l = 1; small steps alone leave a quarter."""
    problem, spreads = af.problems.mlp((4,)), []
    examples = jax.tree.map(lambda leaf: leaf[:32], problem.loss.examples)
    for inflation in (1, 4):

        @jax.jit
        @jax.vmap
        def end(key, inflation=inflation):
            optimizer, loss, batches, times = af.noise.svag(af.sgd(0.05), problem.loss, Pairs(examples, key), inflation)
            run = af.iterate(optimizer, loss, problem.params, 20 * times, save_at=[20 * times], batches=batches)
            return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(run.params)])

        spreads.append(float(jnp.var(end(jax.random.split(key, 100)), axis=0).sum()))
    assert spreads[0] > 1e-3
    assert 0.75 < spreads[1] / spreads[0] < 1.33


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: af.scale_batch(af.adam(1e-3), 16),
            ValueError,
            "factor must be at most 1/(1 − gamma) = 10, got 16: gamma would be -0.6, outside (0, 1)",
        ),
        (lambda: af.scale_batch(af.lion(1e-3), 2), TypeError, "knows the rules of SGD, RMSprop, Adam and AdamW, but"),
        (lambda: af.scale_batch(af.adam(1e-3), -1.0), ValueError, "factor must lie in (0, inf), got -1.0"),
        (
            lambda: af.noise.svag(af.amsgrad(1e-3), lambda p, b: p, lambda n: n, 2),
            TypeError,
            "svag knows SGD, RMSprop, Adam and AdamW",
        ),
        (
            lambda: af.noise.stationary_covariance(af.sgd(2.0), [2.0], [1.0]),
            ValueError,
            "the step is not stable on this quadratic",
        ),
        (lambda: af.noise.bound_trace([1.0, 0.0], [1.0, 1.0]), ValueError, "must be positive in all directions"),
        (
            lambda: af.noise.stationary_covariance(af.sgd(0.1), [[1.0, 2.0], [0.0, 1.0]], np.eye(2)),
            ValueError,
            "hessian must be a symmetric matrix",
        ),
    ],
)
def test_failure_rules_say_where_they_end(unchecked, call, error, words):
    with pytest.raises(error, match=re.escape(words)):
        call()
