"""Data of signal and noise and both models of them: against loops over examples, and bad input."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamflow as af

DATA = af.problems.signal_and_noise(12, 6, test_size=3, noise_entries=4, noise_level=0.5, feature_noise=0.2, seed=1)


def test_identity_patches_are_signal_and_sparse_noise_against_it():
    for examples, count in ((DATA.train, 6), (DATA.test, 3)):
        features, labels = np.asarray(examples.features), np.asarray(examples.labels)
        assert features.shape == (count, 2, 12)
        np.testing.assert_array_equal(features[:, 0, 0], labels)
        np.testing.assert_array_equal(features[:, 0, 1:], 0)
        np.testing.assert_allclose(features[:, 1, 0], -0.2 * labels)
        np.testing.assert_array_equal((features[:, 1, 1:] != 0).sum(axis=1), 4)
    again = af.problems.signal_and_noise(
        12, 6, test_size=3, noise_entries=4, noise_level=0.5, feature_noise=0.2, seed=1
    )
    np.testing.assert_array_equal(again.train.features, DATA.train.features)


def test_formula_transformer_is_its_sum_over_queries():
    problem = af.problems.two_layer_transformer(DATA, key_width=3, value_width=2, initial_scale=1.0, seed=2)
    weights = {name: np.asarray(leaf) for name, leaf in problem.params.items()}
    losses, shares = [], []
    for patches, label in zip(np.asarray(DATA.train.features), np.asarray(DATA.train.labels), strict=True):
        columns = patches.T
        total = 0.0
        for place in range(2):
            scores = columns.T @ weights["key"].T @ weights["query"] @ columns[:, place]
            share = np.exp(scores) / np.exp(scores).sum()
            total += np.ones(2) @ (weights["value_plus"] - weights["value_minus"]) @ columns @ share / 2
            shares.append(share[0])
        losses.append(np.log1p(np.exp(-label * total)))
    np.testing.assert_allclose(problem.loss(problem.params), np.mean(losses), rtol=1e-12)
    np.testing.assert_allclose(problem.metrics["signal_attention"](problem.params), np.mean(shares[::2]), rtol=1e-12)
    np.testing.assert_allclose(problem.metrics["noise_attention"](problem.params), np.mean(shares[1::2]), rtol=1e-12)


def test_formula_patch_network_is_its_sum_over_filters_and_patches():
    problem = af.problems.patch_network(DATA, filters=5, initial_scale=1.0, seed=3)
    weights = {name: np.asarray(leaf) for name, leaf in problem.params.items()}
    labels, outputs = np.asarray(DATA.train.labels), []
    for patches in np.asarray(DATA.train.features):
        parts = [
            sum(max(w @ patch, 0.0) ** 3 for w in weights[name] for patch in patches) for name in ("plus", "minus")
        ]
        outputs.append(parts[0] - parts[1])
    expected = np.mean(np.log1p(np.exp(-labels * np.array(outputs))))
    np.testing.assert_allclose(problem.loss(problem.params), expected, rtol=1e-12)
    wrong = np.mean(labels * np.array(outputs) <= 0)
    assert float(problem.metrics["train_error"](problem.params)) == wrong
    noise = np.asarray(DATA.train.features)[:, 1]
    best = [
        max(w @ patch for w in weights["plus" if label > 0 else "minus"])
        for patch, label in zip(noise, labels, strict=True)
    ]
    np.testing.assert_allclose(problem.metrics["noise"](problem.params), min(best), rtol=1e-12)
    feature = (weights["plus"][:, 0].max() - weights["minus"][:, 0].min()) / 2
    np.testing.assert_allclose(problem.metrics["feature"](problem.params), feature, rtol=1e-12)


@pytest.mark.slow
def test_identity_sign_descent_moves_attention_away_from_the_signal():
    """What the figure shows at full size: noise queries leave the signal, and the training loss falls."""
    data = af.problems.signal_and_noise(200, 8, test_size=50, noise_entries=10)
    problem = af.problems.two_layer_transformer(data, key_width=10, value_width=10)
    metric = problem.metrics["noise_attention"]
    run = af.iterate(
        af.signsgd(1e-3), problem.loss, problem.params, 60, observe=lambda s: jnp.stack([s.loss, metric(s.params)])
    )
    assert float(run.observed[-1, 0]) < 0.5 * float(run.observed[0, 0])
    assert float(run.observed[0, 1]) == pytest.approx(0.5, abs=0.01)
    assert float(run.observed[-1, 1]) < 0.1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: af.problems.signal_and_noise(1), "dimension must be a whole number of at least 2, got 1"),
        (lambda: af.problems.signal_and_noise(5, noise_entries=5), "noise_entries must be at most 4, got 5"),
        (lambda: af.problems.signal_and_noise(noise_level=0.0), "noise_level must lie in (0, inf), got 0.0"),
        (lambda: af.problems.signal_and_noise(feature_noise=-1.0), "feature_noise must lie in [0, inf), got -1.0"),
        (
            lambda: af.problems.two_layer_transformer(DATA, key_width=0),
            "key_width must be a whole number of at least 1",
        ),
        (lambda: af.problems.patch_network(DATA, power=2), "power must be a whole number of at least 3, got 2"),
        (lambda: af.problems.patch_network(DATA, initial_scale=0.0), "initial_scale must lie in (0, inf), got 0.0"),
    ],
)
def test_failure_says_what_is_wrong(make, words, unchecked):
    with pytest.raises(ValueError, match=re.escape(words)):
        make()


def test_identity_pictures_of_the_family(ax, unchecked):
    n = np.arange(5.0)
    path = np.stack([n, n**2], axis=1)
    assert af.plotting.family.paths(ax, path, path + 0.1, title="Adam") is ax
    assert af.plotting.family.edges(ax, n, {"Adam": n + 1, "none": np.where(n > 2, np.inf, n + 2)}) is ax
    assert af.plotting.family.histories(ax, n, {"Adam": n}, label="test error") is ax
    with pytest.raises(
        ValueError, match=re.escape("rows['Adam'] must hold 5 points, to fit iterations, got shape (4,)")
    ):
        af.plotting.family.histories(ax, n, {"Adam": n[:4]}, label="test error")


def test_identity_both_losses_are_modules_that_share_programs():
    problems = [af.problems.patch_network(DATA, filters=2, seed=seed) for seed in (0, 1)]
    assert jax.tree.structure(problems[0].loss) == jax.tree.structure(problems[1].loss)
