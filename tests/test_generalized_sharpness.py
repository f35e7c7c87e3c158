"""Sharpness in other norms against all vertices and closed forms, its edge 2/η, and bounds of singular values."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamflow as af
from adamflow.optimizers.muon import newton_schulz_maximum, orthogonalized
from conftest import SEED

#: Two axes: a matrix of the spectral norm.
SHAPE = (4, 2)
SIZE = 8


class Bowl(eqx.Module):
    """½ θᵀ H θ of the entries of a matrix."""

    hessian: jax.Array

    def __call__(self, params):
        flat = params.ravel()
        return flat @ self.hessian @ flat / 2


def hessian(seed, lowest=0.0):
    """A random symmetric matrix with eigenvalues from `lowest` to 3."""
    generator = np.random.default_rng(SEED + seed)
    basis = np.linalg.qr(generator.normal(size=(SIZE, SIZE)))[0]
    return jnp.asarray(basis * generator.uniform(lowest, 3.0, SIZE) @ basis.T)


def place(seed):
    return jnp.asarray(np.random.default_rng(SEED + 100 + seed).normal(size=SHAPE))


@pytest.mark.parametrize("lowest", [0.0, -2.0], ids=["convex", "indefinite"])
def test_formula_largest_entry_is_at_most_and_mostly_the_best_of_all_vertices(lowest):
    vertices = np.array(list(itertools.product([-1.0, 1.0], repeat=SIZE)))
    reached = []
    for seed in range(10):
        matrix = hessian(seed, lowest)
        found = af.analysis.generalized_sharpness(Bowl(matrix), place(seed), "max", starts=24)
        best = np.einsum("ki,ij,kj->k", vertices, matrix, vertices).max()
        reached.append(float(found.value) / best)
        gradient = np.asarray(matrix) @ np.asarray(place(seed)).ravel()
        np.testing.assert_allclose(found.dual_norm, np.abs(gradient).sum(), rtol=1e-12)
    # A lower bound, which most searches attain.
    assert max(reached) <= 1 + 1e-12
    assert min(reached) > 0.9
    assert np.mean(np.array(reached) > 1 - 1e-10) >= 0.7


def test_formula_spectral_sharpness_is_above_all_random_directions_and_that_of_one_curvature():
    """H = c gives c times the largest Σσ² = 2 of a 4 by 2 matrix; no random orthogonal one is above S of a random H."""
    found = af.analysis.generalized_sharpness(Bowl(1.5 * jnp.eye(SIZE)), place(0), "spectral", starts=24)
    np.testing.assert_allclose(found.value, 1.5 * 2, rtol=1e-12)
    matrix = hessian(1)
    found = af.analysis.generalized_sharpness(Bowl(matrix), place(1), "spectral", starts=24)
    np.testing.assert_allclose(jnp.linalg.svd(found.direction)[1], np.ones(2), rtol=1e-12)
    trials = np.linalg.qr(np.random.default_rng(SEED).normal(size=(20000, *SHAPE)))[0].reshape(-1, SIZE)
    best = np.einsum("ki,ij,kj->k", trials, matrix, trials).max()
    assert 0.9 * float(found.value) < best <= float(found.value) * (1 + 1e-12)
    gradient = (np.asarray(matrix) @ np.asarray(place(1)).ravel()).reshape(SHAPE)
    np.testing.assert_allclose(found.dual_norm, np.linalg.svd(gradient)[1].sum(), rtol=1e-12)


@pytest.mark.parametrize("norm", ["max", "spectral"])
def test_formula_two_over_eta_is_the_edge_of_steepest_descent(norm):
    """Along its direction a step multiplies by 1 − ηS; for ηS < 2 the loss falls from everywhere."""
    loss = Bowl(hessian(2))
    found = af.analysis.generalized_sharpness(loss, place(2), norm, starts=24, iterations=200)
    value = float(found.value)
    for share in (1.9, 2.0, 2.1):
        record = af.steepest_descent(share / value, norm)
        run = af.iterate(record, loss, found.direction, 2)
        np.testing.assert_allclose(run.params[1], (1 - share) * found.direction, rtol=1e-6, atol=1e-6)
    record = af.steepest_descent(1.9 / value, norm)
    for seed in range(3, 8):
        run = af.iterate(record, loss, place(seed), 2)
        assert loss(run.params[2]) < loss(run.params[1]) < loss(run.params[0])


def test_identity_steps_of_fixed_length_are_steepest_descent_at_another_rate():
    loss, start = Bowl(hessian(3)), place(3)
    dual = float(af.analysis.generalized_sharpness(loss, start, "max").dual_norm)
    runs = [
        af.iterate(record, loss, start, 1).params[1]
        for record in (af.signsgd(0.1), af.steepest_descent(0.1 / dual, "max"))
    ]
    np.testing.assert_allclose(*runs, rtol=1e-12)


def test_formula_singular_values_of_muon():
    """1.2023687 √max(1, outputs/inputs), approached by the matrices whose least singular value is worst."""
    assert newton_schulz_maximum(5) == pytest.approx(1.2023687, abs=1e-7)
    assert af.analysis.spectral_bound(af.muon(0.1), (8, 2), 20) == pytest.approx(2 * 1.2023687, abs=1e-6)
    assert af.analysis.spectral_bound(af.muon(0.1, output_axis=1), (8, 2), 20) == pytest.approx(1.2023687, abs=1e-6)
    shares = np.geomspace(1e-3, 1.0, 400)
    matrices = jnp.stack([jnp.diag(jnp.array([1.0, share])) for share in shares])
    values = jnp.linalg.svd(jax.vmap(lambda matrix: orthogonalized(matrix, 5, 0.0))(matrices), compute_uv=False)
    assert 1.2 < float(values.max()) <= newton_schulz_maximum(5) * (1 + 1e-12)


def test_formula_singular_values_where_entries_are_alone():
    """Bound times √(rows · columns), attained by one pattern of signs in all entries."""
    bound = af.analysis.spectral_bound(af.adam(0.1), (2, 3), 20)
    assert bound == pytest.approx(af.analysis.direction_bound(af.adam(0.1), 20) * 6**0.5)
    assert np.linalg.svd(np.outer([1, -1], [1, 1, -1]))[1][0] == pytest.approx(6**0.5)


def test_failure_of_norms_and_bounds_says_what_and_why(unchecked):
    with pytest.raises(ValueError, match=r"norm must be .*'max'.*'spectral'.*got 'l2'"):
        af.analysis.generalized_sharpness(Bowl(hessian(0)), place(0), "l2")
    with pytest.raises(ValueError, match="starts must be"):
        af.analysis.generalized_sharpness(Bowl(hessian(0)), place(0), "max", starts=1)
    with pytest.raises(TypeError, match="no bound is known for the singular values of 'shampoo'"):
        af.analysis.spectral_bound(af.shampoo(0.1), (2, 3), 20)
    with pytest.raises(ValueError, match="shape must be a pair of numbers of rows and columns"):
        af.analysis.spectral_bound(af.muon(0.1), (2,), 20)
