"""Two patches, a signal and sparse noise: data on which optimizers that fit equally well generalize differently."""

from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from adamflow.checks import check_count
from adamflow.problems.numbers import array_size, real_number
from adamflow.problems.problem import Problem

Weights: TypeAlias = dict[str, Float[Array, "..."]]


class Patches(NamedTuple):
    """Examples of two patches: `features` of shape (examples, 2, dimension), signal first; `labels` are −1 and 1."""

    features: Float[Array, "examples 2 dimension"]
    labels: Float[Array, " examples"]


class SignalAndNoise(eqx.Module):
    """Training and test examples, and where the signal is: the first coordinate of each patch."""

    train: Patches
    test: Patches


def signal_and_noise(
    dimension: int = 2000,
    size: int = 20,
    *,
    test_size: int = 500,
    noise_entries: int = 20,
    noise_level: float = 2.0,
    feature_noise: float = 0.0,
    seed: int = 0,
) -> SignalAndNoise:
    """Labels y = ±1; one patch is y e₁, the other N(0, σ²) on s random coordinates out of 2 … d, and −αy on the first.

    The order of the patches is that of this sentence: models which treat both alike do not see it.

    Args:
        dimension: d, at least 2.
        size: training examples, half of each label (an odd one has label 1).
        test_size: test examples, likewise.
        noise_entries: s, below d.
        noise_level: σ > 0.
        feature_noise: α ≥ 0, by which the second patch speaks against the label.
        seed: of coordinates and noise.

    Raises:
        ValueError: an argument out of range.

    Source: α = 0: B. Li et al., On the optimization and generalization of two-layer transformers with sign gradient
    descent, arXiv:2410.04870; α > 0: D. Zou et al., arXiv:2108.11371.

    Example:
        >>> import adamflow as af
        >>> af.problems.signal_and_noise(dimension=50, size=4, noise_entries=5).train.features.shape
        (4, 2, 50)
    """
    dimension = array_size("dimension", dimension, low=2)
    entries = check_count("noise_entries", noise_entries, high=dimension - 1)
    level = float(real_number("noise_level", noise_level, 0.0, low_open=True))
    against = float(real_number("feature_noise", feature_noise, 0.0))
    generator = np.random.default_rng(check_count("seed", seed, low=0))

    def draw(count: int) -> Patches:
        labels = np.where(np.arange(count) % 2 == 0, 1.0, -1.0)
        features = np.zeros((count, 2, dimension))
        features[:, 0, 0] = labels
        for row in features[:, 1]:
            chosen = 1 + generator.choice(dimension - 1, entries, replace=False)
            row[chosen] = level * generator.normal(size=entries)
        features[:, 1, 0] = -against * labels
        return Patches(jnp.asarray(features, dtype=float), jnp.asarray(labels, dtype=float))

    return SignalAndNoise(draw(array_size("size", size)), draw(array_size("test_size", test_size)))


class LogisticLoss(eqx.Module):
    """Mean of ln(1 + e^{−yF}) over the module's own examples."""

    model: Any
    examples: Patches

    def __call__(self, params: Weights) -> Float[Array, ""]:
        return jnp.mean(jax.nn.softplus(-self.examples.labels * self.model(params, self.examples.features)))


class ErrorRate(eqx.Module):
    """Fraction of the examples for which yF ≤ 0."""

    model: Any
    examples: Patches

    def __call__(self, params: Weights) -> Float[Array, ""]:
        return jnp.mean(self.examples.labels * self.model(params, self.examples.features) <= 0, dtype=float)


class Attention(eqx.Module):
    """The mean attention that a query, the signal (0) or the noise (1), gives to the signal."""

    model: "AttentionModel"
    examples: Patches
    query: int = eqx.field(static=True)

    def __call__(self, params: Weights) -> Float[Array, ""]:
        return jnp.mean(self.model.attention(params, self.examples.features)[:, self.query, 0])


class AttentionModel(eqx.Module):
    """F = Σ_l v̄ᵀ X softmax(Xᵀ W_Kᵀ W_Q x_l), v̄ the difference of the mean rows of both value matrices."""

    def attention(self, params: Weights, features: Float[Array, "examples 2 _"]) -> Float[Array, "examples 2 2"]:
        """Shares of the keys (last axis) by query."""
        queries, keys = (features @ params[name].T for name in ("query", "key"))
        return jax.nn.softmax(jnp.einsum("nqw,nkw->nqk", queries, keys))

    def __call__(self, params: Weights, features: Float[Array, "examples 2 _"]) -> Float[Array, " examples"]:
        value = jnp.mean(params["value_plus"], axis=0) - jnp.mean(params["value_minus"], axis=0)
        return jnp.einsum("nqk,nk->n", self.attention(params, features), features @ value)


def two_layer_transformer(
    data: SignalAndNoise,
    *,
    key_width: int = 50,
    value_width: int = 50,
    initial_scale: float | None = None,
    seed: int = 0,
) -> Problem:
    """Softmax attention over two patches, and a linear read-out: the two-layer transformer of Li et al. (2024).

    F = F₊ − F₋, F_j = (1/m_v) Σ_l 1ᵀ W_{V,j} X softmax(Xᵀ W_Kᵀ W_Q x_l); the loss is the mean of ln(1 + e^{−yF}), and
    all parameters are trained. Sign descent and Adam fit the training data fast and generalize badly: their attention
    leaves the signal for the noise, where gradient descent's stays.

    Args:
        data: of `signal_and_noise`.
        key_width: m_k, rows of W_Q and W_K.
        value_width: m_v, rows of each W_V.
        initial_scale: σ₀ > 0 of the normal initial parameters; by default .1/√d.
        seed: of the initial parameters.

    Returns:
        a problem with metrics `test_error`, `test_loss`, `signal_attention` and `noise_attention`, the latter two the
        mean share that the signal has of the attention of signal and noise queries, over the training data.

    Raises:
        ValueError: an argument out of range.

    Source: B. Li et al., On the optimization and generalization of two-layer transformers with sign gradient descent,
    arXiv:2410.04870 (2024). The sizes are this project's.

    Example:
        >>> import adamflow as af
        >>> data = af.problems.signal_and_noise(dimension=50, size=4, noise_entries=5)
        >>> problem = af.problems.two_layer_transformer(data, key_width=3, value_width=3)
        >>> sorted(problem.metrics)
        ['noise_attention', 'signal_attention', 'test_error', 'test_loss']
    """
    dimension = data.train.features.shape[-1]
    rows = array_size("key_width", key_width), array_size("value_width", value_width)
    scale = 0.1 / np.sqrt(dimension) if initial_scale is None else initial_scale
    scale = float(real_number("initial_scale", scale, 0.0, low_open=True))
    generator = np.random.default_rng(check_count("seed", seed, low=0))
    widths = {"query": rows[0], "key": rows[0], "value_plus": rows[1], "value_minus": rows[1]}
    params = {
        name: jnp.asarray(scale * generator.normal(size=(width, dimension)), dtype=float)
        for name, width in widths.items()
    }
    model = AttentionModel()
    metrics = {
        "test_error": ErrorRate(model, data.test),
        "test_loss": LogisticLoss(model, data.test),
        "signal_attention": Attention(model, data.train, 0),
        "noise_attention": Attention(model, data.train, 1),
    }
    return Problem("two-layer transformer", params, LogisticLoss(model, data.train), metrics)


class PatchNetwork(eqx.Module):
    """F = F₊ − F₋, F_j = Σ_r Σ_patches [⟨w_{j,r}, x⟩]₊^q."""

    power: int = eqx.field(static=True)

    def __call__(self, params: Weights, features: Float[Array, "examples 2 _"]) -> Float[Array, " examples"]:
        plus, minus = (
            jnp.sum(jax.nn.relu(features @ params[name].T) ** self.power, axis=(1, 2)) for name in ("plus", "minus")
        )
        return plus - minus


class FeatureLearned(eqx.Module):
    """The mean over j = ±1 of max_r j ⟨w_{j,r}, e₁⟩: how far the filters are aligned with the feature."""

    def __call__(self, params: Weights) -> Float[Array, ""]:
        return (jnp.max(params["plus"][:, 0]) + jnp.max(-params["minus"][:, 0])) / 2


class NoiseMemorized(eqx.Module):
    """The least over the training examples of max_r ⟨w_{y,r}, ξ⟩, ξ their noise patch."""

    examples: Patches

    def __call__(self, params: Weights) -> Float[Array, ""]:
        noise = self.examples.features[:, 1]
        plus, minus = (jnp.max(noise @ params[name].T, axis=1) for name in ("plus", "minus"))
        return jnp.min(jnp.where(self.examples.labels > 0, plus, minus))


def patch_network(
    data: SignalAndNoise, *, filters: int = 20, power: int = 3, initial_scale: float = 0.01, seed: int = 0
) -> Problem:
    """A two-layer convolutional network over two patches: the network of Zou et al. (2021).

    F = F₊ − F₋, F_j = Σ_{r≤m} ([⟨w_{j,r}, x₁⟩]₊^q + [⟨w_{j,r}, x₂⟩]₊^q); the loss is the mean of ln(1 + e^{−yF}), which
    is the cross-entropy of the two logits F_j. With feature noise in the data Adam with l2 fits the noise patches, each
    coordinate at the speed η, and flips to the feature's opposite, where gradient descent learns the feature. Give the
    penalty to the optimizer: `with_l2(optimizer, 1e-5)`.

    Args:
        data: of `signal_and_noise`, with `feature_noise` for the network to be led astray.
        filters: m, of each sign.
        power: q, at least 3.
        initial_scale: σ₀ > 0 of the normal initial weights.
        seed: of the initial weights.

    Returns:
        a problem with metrics `train_error`, `test_error`, `feature` and `noise`: the alignment of the filters with the
        feature and with the noise patches of the training data.

    Raises:
        ValueError: an argument out of range.

    Source: D. Zou et al., Understanding the generalization of Adam in learning neural networks with proper
    regularization, arXiv:2108.11371 (2021).

    Example:
        >>> import adamflow as af
        >>> data = af.problems.signal_and_noise(50, 4, noise_entries=5, noise_level=0.4, feature_noise=0.2)
        >>> problem = af.problems.patch_network(data, filters=3)
        >>> print(problem.loss(problem.params).round(3))
        0.693
    """
    dimension = data.train.features.shape[-1]
    rows = array_size("filters", filters)
    scale = float(real_number("initial_scale", initial_scale, 0.0, low_open=True))
    generator = np.random.default_rng(check_count("seed", seed, low=0))
    params = {
        name: jnp.asarray(scale * generator.normal(size=(rows, dimension)), dtype=float) for name in ("plus", "minus")
    }
    model = PatchNetwork(check_count("power", power, low=3))
    metrics = {
        "train_error": ErrorRate(model, data.train),
        "test_error": ErrorRate(model, data.test),
        "feature": FeatureLearned(),
        "noise": NoiseMemorized(data.train),
    }
    return Problem("patch network", params, LogisticLoss(model, data.train), metrics)
