"""VRAdam: against a transcription, and its estimator's error in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamflow as af

CURVATURE = np.array([1.0, 3.0])


def loss(params, shift=0.0):
    return jnp.sum(CURVATURE * params**2) / 2 + jnp.sum(params * shift)


def test_formula_iterates_are_those_of_the_paper_written_out():
    shifts = np.random.default_rng(0).normal(size=(30, 2))
    data = jnp.asarray(shifts)
    run = af.noise.iterate_vradam(
        0.05, loss, jnp.array([1.0, -2.0]), 30, lambda n: data[n], beta=0.9, gamma=0.8, save_at=[0, 1, 7, 29]
    )
    theta, last, m, v = np.array([1.0, -2.0]), None, CURVATURE * [1.0, -2.0], np.zeros(2)
    places, errors = [], []
    for n in range(30):
        gradient = CURVATURE * theta + shifts[n]
        if n:
            m = 0.8 * m + 0.2 * gradient + 0.8 * (gradient - (CURVATURE * last + shifts[n]))
        v = 0.9 * v + 0.1 * gradient**2
        places.append(theta)
        errors.append(np.sum((m - CURVATURE * theta) ** 2))
        last, theta = theta, theta - 0.05 * m / (np.sqrt(v / (1 - 0.9 ** (n + 1))) + 1e-8)
    np.testing.assert_allclose(run.params, np.array(places)[[0, 1, 7, 29]], rtol=1e-10)
    np.testing.assert_allclose(run.estimator_error, np.array(errors)[[0, 1, 7, 29]], rtol=1e-9, atol=1e-20)


def test_formula_error_of_the_estimator_is_that_of_averaged_noise_without_lag(key):
    # With noise that does not depend on θ: e' = γe + (1−γ)n, of variance (1−γ)/(1+γ) σ² per coordinate.
    draws = jax.random.normal(key, (4000, 2))
    run = af.noise.iterate_vradam(
        1e-3, loss, jnp.ones(2), 4000, lambda n: draws[n], gamma=0.9, save_at=list(range(100, 4000, 30))
    )
    expected = 2 * 0.1 / 1.9
    values = np.asarray(run.estimator_error)
    assert abs(values.mean() / expected - 1) < 4 * values.std() / np.sqrt(len(values)) / expected
    assert np.asarray(run.gradient_error).mean() > 10 * values.mean()


def test_formula_without_noise_the_estimator_is_the_gradient_and_momentum_lags():
    run = af.noise.iterate_vradam(0.05, loss, jnp.ones(2), 12, lambda n: jnp.zeros(2), gamma=0.9)
    np.testing.assert_allclose(run.estimator_error, 0.0, atol=1e-25)
    assert np.asarray(run.momentum_error)[-1] > 1e-3


def test_failure_of_bad_numbers(unchecked):
    with pytest.raises(ValueError, match=r"gamma must lie in \[0, 1\), got 1.0"):
        af.noise.iterate_vradam(0.1, loss, jnp.ones(2), 5, lambda n: jnp.zeros(2), gamma=1.0)
    with pytest.raises(ValueError, match=r"save_at must be rising iterations in \[0, 4\]"):
        af.noise.iterate_vradam(0.1, loss, jnp.ones(2), 5, lambda n: jnp.zeros(2), save_at=[5])
