"""Ten small networks on real data, written in flax, in equinox and with the problems of this package.

`NETWORKS` names them; each is a function without arguments that returns (loss, params) in float32. All are smooth,
since flows of order 2 and more differentiate the loss, and small enough for full-batch runs of a minute.
"""

from collections.abc import Callable
from typing import Any, TypeAlias, cast

import equinox as eqx
import flax.linen as nn  # pyright: ignore[reportMissingImports]
import jax
import jax.numpy as jnp
import numpy as np

import adamflow as af
from adamflow.problems.digits import load_digits
from adamflow.problems.text import read_text

#: A loss of the parameters, and the parameters that a run starts from.
Network: TypeAlias = tuple[Callable[[Any], jax.Array], Any]

#: Examples of the networks that see images: enough for a true loss, few enough for fast runs.
IMAGES = 256
CHARACTERS = 24


class ModuleLoss(eqx.Module):
    """The mean cross-entropy of a network on fixed data."""

    logits: Callable[[Any, jax.Array], jax.Array]
    features: jax.Array
    labels: jax.Array

    def __call__(self, params: Any) -> jax.Array:
        chances = jax.nn.log_softmax(self.logits(params, self.features))
        return -jnp.mean(jnp.take_along_axis(chances, self.labels[..., None], axis=-1))


def digits() -> tuple[jax.Array, jax.Array]:
    """Features of shape (256, 64) in [0, 1], and labels."""
    features, labels = load_digits(test_fraction=0.25, data_seed=0)[0]
    return features[:IMAGES], labels[:IMAGES]


def windows() -> tuple[jax.Array, jax.Array, int]:
    """Windows of 16 characters of the built-in text, the characters behind them, and the size of the vocabulary."""
    text, length = read_text()[:20_000], 16
    vocabulary = sorted(set(text))
    codes = np.array([vocabulary.index(letter) for letter in text])
    starts = np.random.default_rng(0).integers(0, len(codes) - length - 1, CHARACTERS)
    rows = np.stack([codes[start : start + length + 1] for start in starts])
    return jnp.asarray(rows[:, :-1]), jnp.asarray(rows[:, 1:]), len(vocabulary)


def from_flax(module: nn.Module, features: jax.Array, labels: jax.Array) -> Network:
    """A network of flax."""
    params = module.init(jax.random.key(0), features[:1])
    return ModuleLoss(cast(Any, module.apply), features, labels), params


def from_equinox(module: eqx.Module, features: jax.Array, labels: jax.Array) -> Network:
    """A network of equinox for one example."""
    params, static = eqx.partition(module, eqx.is_inexact_array)

    def logits(params: Any, features: jax.Array) -> jax.Array:
        return jax.vmap(eqx.combine(params, static))(features)

    return ModuleLoss(logits, features, labels), params


class FlaxPerceptron(nn.Module):
    """Dense layers with gelu or tanh, and layer normalization if it is wanted."""

    widths: tuple[int, ...]
    activation: Callable[[jax.Array], jax.Array]
    normalized: bool = False

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        for width in self.widths:
            features = nn.Dense(width)(features)
            if self.normalized:
                features = nn.LayerNorm()(features)
            features = self.activation(features)
        return nn.Dense(10)(features)


class FlaxConvolutions(nn.Module):
    """Two convolutions with gelu and mean pooling."""

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        images = features.reshape(-1, 8, 8, 1)
        for channels in (4, 8):
            images = nn.gelu(nn.Conv(channels, (3, 3))(images))
            images = nn.avg_pool(images, (2, 2), (2, 2))
        return nn.Dense(10)(images.reshape(images.shape[0], -1))


class FlaxRecurrent(nn.Module):
    """A GRU over the characters."""

    vocabulary: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        embedded = nn.Embed(self.vocabulary, 12)(tokens)
        return nn.Dense(self.vocabulary)(nn.RNN(nn.GRUCell(16))(embedded))


class EquinoxAttention(eqx.Module):
    """One layer of causal attention over the characters, with a perceptron behind it."""

    embedding: eqx.nn.Embedding
    attention: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    perceptron: eqx.nn.MLP

    def __init__(self, vocabulary: int, width: int = 16):
        keys = jax.random.split(jax.random.key(0), 3)
        self.embedding = eqx.nn.Embedding(vocabulary, width, key=keys[0])
        self.attention = eqx.nn.MultiheadAttention(2, width, key=keys[1])
        self.norm = eqx.nn.LayerNorm(width)
        self.perceptron = eqx.nn.MLP(width, vocabulary, 32, 1, activation=jax.nn.gelu, key=keys[2])

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = jax.vmap(self.embedding)(tokens)
        mask = jnp.tril(jnp.ones((len(tokens), len(tokens)), bool))
        x = x + self.attention(jax.vmap(self.norm)(x), jax.vmap(self.norm)(x), jax.vmap(self.norm)(x), mask=mask)
        return jax.vmap(self.perceptron)(x)


def perceptron_of_flax() -> Network:
    return from_flax(FlaxPerceptron((32,), jnp.tanh), *digits())


def deep_perceptron_of_flax() -> Network:
    return from_flax(FlaxPerceptron((24, 24, 24), nn.gelu), *digits())


def normalized_perceptron_of_flax() -> Network:
    return from_flax(FlaxPerceptron((24, 24), nn.gelu, normalized=True), *digits())


def convolutions_of_flax() -> Network:
    return from_flax(FlaxConvolutions(), *digits())


def recurrent_of_flax() -> Network:
    tokens, following, vocabulary = windows()
    return from_flax(FlaxRecurrent(vocabulary), tokens, following)


def perceptron_of_equinox() -> Network:
    module = eqx.nn.MLP(64, 10, 32, 2, activation=jax.nn.gelu, key=jax.random.key(0))
    return from_equinox(module, *digits())


def softplus_of_equinox() -> Network:
    module = eqx.nn.MLP(64, 10, 16, 1, activation=jax.nn.softplus, key=jax.random.key(1))
    return from_equinox(module, *digits())


def attention_of_equinox() -> Network:
    tokens, following, vocabulary = windows()
    return from_equinox(EquinoxAttention(vocabulary), tokens, following)


def logistic() -> Network:
    problem = af.problems.logistic()
    return problem.loss, problem.params


def transformer() -> Network:
    problem = af.problems.char_transformer(layers=1, heads=2, width=16, context=16, batch_size=16)
    return problem.loss, problem.params


NETWORKS: dict[str, Callable[[], Network]] = {
    "softmax regression, digits": logistic,
    "perceptron 32, tanh (flax), digits": perceptron_of_flax,
    "perceptron 24-24-24, gelu (flax), digits": deep_perceptron_of_flax,
    "the same with layer norms (flax), digits": normalized_perceptron_of_flax,
    "convolutions 4-8, gelu (flax), digits": convolutions_of_flax,
    "perceptron 32-32, gelu (equinox), digits": perceptron_of_equinox,
    "perceptron 16, softplus (equinox), digits": softplus_of_equinox,
    "GRU 16 (flax), text": recurrent_of_flax,
    "attention 16 (equinox), text": attention_of_equinox,
    "transformer 16, text": transformer,
}
