"""Handwritten digits: softmax regression and a multilayer perceptron, small enough for full-batch runs."""

from collections.abc import Callable
from itertools import pairwise
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from adamflow.checks import check_choice, check_count, check_range
from adamflow.problems.cross_entropy import mean_cross_entropy
from adamflow.problems.problem import Problem

#: One {"weight": (inputs, outputs), "bias": (outputs,)} per layer.
Layers: TypeAlias = tuple[dict[str, Float[Array, "..."]], ...]
#: Images as rows of pixels in [0, 1], and the digit that each one shows.
Examples: TypeAlias = tuple[Float[Array, "_ pixels"], Int[Array, "_"]]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "relu": jax.nn.relu,
    "softplus": jax.nn.softplus,
}
PIXELS, CLASSES = 64, 10


class DigitRows(eqx.Module):
    """Draws examples uniformly with replacement."""

    examples: Examples

    def __call__(self, key: Key[Array, ""], size: int) -> Examples:
        rows = jax.random.randint(key, (size,), 0, self.examples[1].shape[0], dtype=jnp.int32)
        features, labels = self.examples
        return features[rows], labels[rows]


class Classifier(eqx.Module):
    """The network that maps images to logits: affine layers with the activation between them."""

    activation: str = eqx.field(static=True)

    def __call__(self, params: Layers, features: Float[Array, "examples pixels"]) -> Float[Array, "examples classes"]:
        *hidden_layers, last = params
        for layer in hidden_layers:
            features = ACTIVATIONS[self.activation](features @ layer["weight"] + layer["bias"])
        return features @ last["weight"] + last["bias"]


class DigitsLoss(eqx.Module):
    """Mean cross-entropy in nats over the module's own examples, or over a batch."""

    classifier: Classifier
    examples: Examples

    def __call__(self, params: Layers, batch: Examples | None = None) -> Float[Array, ""]:
        features, labels = self.examples if batch is None else batch
        return mean_cross_entropy(self.classifier(params, features), labels)


class DigitsAccuracy(eqx.Module):
    """Fraction of the examples whose largest logit is their label's."""

    classifier: Classifier
    examples: Examples

    def __call__(self, params: Layers) -> Float[Array, ""]:
        features, labels = self.examples
        return jnp.mean(jnp.argmax(self.classifier(params, features), axis=-1) == labels, dtype=float)


def logistic(*, test_fraction: float = 0.25, data_seed: int = 0) -> Problem:
    """Softmax regression on scikit-learn's digits: the convex loss −mean log softmax(x W + b)[label], from zero.

    The 1797 images of 8 by 8 pixels are scaled to [0, 1] and split once into a train and a test part.

    Args:
        test_fraction: share of the images held out for the metrics, strictly between 0 and 1.
        data_seed: which images are held out.

    Returns:
        A problem whose parameters are `({"weight": (64, 10), "bias": (10,)},)`, a batch of which is
        `(features, labels)` of shapes (size, 64) and (size,), with metrics `train_accuracy`, `test_accuracy` and
        `test_loss`. Pixels that are blank in every image give their weights a gradient of exactly zero.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: an argument out of range.

    Example:
        >>> import adamflow as af
        >>> problem = af.problems.logistic()
        >>> round(float(problem.loss(problem.params)), 4)  # ln 10
        2.3026
    """
    params = ({"weight": jnp.zeros((PIXELS, CLASSES)), "bias": jnp.zeros(CLASSES)},)
    return _digits_problem("logistic", params, Classifier("tanh"), test_fraction, data_seed)


def mlp(
    widths: tuple[int, ...] = (32,),
    activation: str = "tanh",
    *,
    test_fraction: float = 0.25,
    seed: int = 0,
    data_seed: int = 0,
) -> Problem:
    """A multilayer perceptron on scikit-learn's digits, data and metrics as in `logistic`.

    Weights start normal with variance 2 / inputs for relu (He et al. 2015, eq. 10) and 2 / (inputs + outputs)
    otherwise (Glorot & Bengio 2010, eq. 12), biases at zero.

    Args:
        widths: units of each hidden layer, at least one layer.
        activation: "tanh", "gelu", "relu" or "softplus". All but relu are smooth, as flows want them.
        test_fraction: share of the images held out for the metrics, strictly between 0 and 1.
        seed: of the initial weights.
        data_seed: which images are held out.

    Returns:
        A problem whose parameters are a tuple with one `{"weight": (inputs, outputs), "bias": (outputs,)}` per layer.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: an argument out of range.

    Example:
        >>> import adamflow as af
        >>> problem = af.problems.mlp(widths=(16,), activation="gelu")
        >>> [layer["weight"].shape for layer in problem.params]
        [(64, 16), (16, 10)]
    """
    check_choice("activation", activation, tuple(ACTIVATIONS))
    if not widths:
        raise ValueError("widths must name at least one hidden layer, got (); for none use af.problems.logistic")
    sizes = (PIXELS, *(check_count("widths", width) for width in widths), CLASSES)
    generator = np.random.default_rng(check_count("seed", seed, low=0))
    params = []
    for inputs, outputs in pairwise(sizes):
        deviation = np.sqrt(2 / inputs if activation == "relu" else 2 / (inputs + outputs))
        weight = generator.normal(0.0, deviation, (inputs, outputs))
        params.append({"weight": jnp.asarray(weight, dtype=float), "bias": jnp.zeros(outputs)})
    return _digits_problem("mlp", tuple(params), Classifier(activation), test_fraction, data_seed)


def _digits_problem(name: str, params: Layers, classifier: Classifier, test_fraction: float, data_seed: int) -> Problem:
    train, test = _load_digits(test_fraction, data_seed)
    metrics = {
        "train_accuracy": DigitsAccuracy(classifier, train),
        "test_accuracy": DigitsAccuracy(classifier, test),
        "test_loss": DigitsLoss(classifier, test),
    }
    return Problem(name, params, DigitsLoss(classifier, train), metrics, DigitRows(train))


def _load_digits(test_fraction: float, data_seed: int) -> tuple[Examples, Examples]:
    """The train and the test part of scikit-learn's digits."""
    check_range("test_fraction", test_fraction, 0.0, 1.0, low_open=True, high_open=True)
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the digits come with scikit-learn, which is missing; pip install 'adamflow[data]'"
        ) from error
    features, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(check_count("data_seed", data_seed, low=0)).permutation(len(labels))
    held_out = min(max(round(test_fraction * len(labels)), 1), len(labels) - 1)

    def part(rows: np.ndarray) -> Examples:
        return jnp.asarray(features[rows] / 16, dtype=float), jnp.asarray(labels[rows], dtype=jnp.int32)

    return part(order[held_out:]), part(order[:held_out])
