"""Handwritten digits: softmax regression and a multilayer perceptron, small enough for full-batch runs."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, TypeAlias

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from adamflow.checks import check_choice, check_count
from adamflow.problems.classification import ACTIVATIONS, Examples, classification
from adamflow.problems.invariant import (
    NORMALIZATIONS,
    check_enough_to_normalize,
    shift_and_scale,
    weights_before_normalization,
    with_gain,
)
from adamflow.problems.numbers import array_size, real_number
from adamflow.problems.problem import Problem

#: One {"weight": (inputs, outputs), "bias": (outputs,)} per layer, and "gain": (outputs,) where it is normalized.
Layers: TypeAlias = tuple[dict[str, Float[Array, "..."]], ...]
PIXELS, CLASSES = 64, 10


class Perceptron(eqx.Module):
    """Affine layers with the activation between them, and before it the normalization if there is one."""

    activation: str = eqx.field(static=True)
    normalization: str | None = eqx.field(static=True, default=None)

    @eqx.filter_jit
    def __call__(self, params: Layers, features: Float[Array, "examples pixels"]) -> Float[Array, "examples classes"]:
        *hidden_layers, last = params
        for layer in hidden_layers:
            affine = shift_and_scale(layer, features @ layer["weight"], self.normalization)
            features = ACTIVATIONS[self.activation](affine)
        return features @ last["weight"] + last["bias"]


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
    return classification("logistic", params, Perceptron("tanh"), *load_digits(test_fraction, data_seed))


def mlp(
    widths: tuple[int, ...] = (32,),
    activation: str = "tanh",
    *,
    normalization: str | None = None,
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
        normalization: "layer" or "batch" for hidden layers φ(gain · norm(x W) + bias), "batch" with the statistics of
            the examples at hand; `None` for φ(x W + bias). A normalized W is scale-invariant: f(cW) = f(W) for c > 0.
        test_fraction: share of the images held out for the metrics, strictly between 0 and 1.
        seed: of the initial weights.
        data_seed: which images are held out.

    Returns:
        A problem whose parameters are a tuple with one `{"weight": (inputs, outputs), "bias": (outputs,)}` per layer,
        in a normalized one also `"gain": (outputs,)`. Its `scale_invariant` names the normalized weights.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: an argument out of range.

    Example:
        >>> import adamflow as af
        >>> problem = af.problems.mlp(widths=(16,), activation="gelu")
        >>> [layer["weight"].shape for layer in problem.params]
        [(64, 16), (16, 10)]
        >>> af.problems.mlp((16,), normalization="layer").scale_invariant
        ("[0]['weight']",)
    """
    if normalization is not None:
        check_choice("normalization", normalization, NORMALIZATIONS)
    check_choice("activation", activation, tuple(ACTIVATIONS))
    widths = check_widths("widths", widths, "hidden layer", "af.problems.logistic")
    sizes = (PIXELS, *widths, CLASSES)
    if normalization == "layer":
        check_enough_to_normalize("widths with layer norm", min(widths))
    generator = np.random.default_rng(check_count("seed", seed, low=0))
    params = []
    for inputs, outputs in pairwise(sizes):
        deviation = np.sqrt(2 / inputs if activation == "relu" else 2 / (inputs + outputs))
        weight = generator.normal(0.0, deviation, (inputs, outputs))
        layer = {"weight": jnp.asarray(weight, dtype=float), "bias": jnp.zeros(outputs)}
        params.append(layer if len(params) == len(widths) else with_gain(layer, normalization))
    network, data = Perceptron(activation, normalization), load_digits(test_fraction, data_seed)
    invariant = weights_before_normalization(len(params), normalization)
    return classification("mlp", tuple(params), network, *data, invariant)


def check_widths(name: str, widths: Any, kind: str, without: str) -> tuple[int, ...]:
    """The widths as integers, or a `ValueError` unless they are a sequence of at least one positive integer.

    Args:
        name: what they are called in the API.
        widths: of each layer.
        kind: what a layer is called.
        without: the problem without such layers.
    """
    if not isinstance(widths, Iterable) or isinstance(widths, str | bytes | dict) or getattr(widths, "ndim", 1) == 0:
        raise ValueError(f"{name} must be a sequence of whole numbers, one for each {kind}, got {widths!r}")
    checked = tuple(array_size(name, width) for width in widths)
    if not checked:
        raise ValueError(f"{name} must name at least one {kind}, got (); for none use {without}")
    return checked


def load_digits(test_fraction: float, data_seed: int) -> tuple[Examples, Examples]:
    """The train and the test part of scikit-learn's digits, as rows of 64 pixels.

    Args:
        test_fraction: share of the images in the test part, strictly between 0 and 1.
        data_seed: which images are held out.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: an argument out of range.
    """
    test_fraction = float(real_number("test_fraction", test_fraction, 0.0, 1.0, low_open=True))
    try:
        from sklearn.datasets import load_digits as read_digits
    except ImportError as error:
        raise ImportError(
            "the digits come with scikit-learn, which is missing; pip install 'adamflow[data]'"
        ) from error
    features, labels = read_digits(return_X_y=True)
    order = np.random.default_rng(check_count("data_seed", data_seed, low=0)).permutation(len(labels))
    held_out = min(max(round(test_fraction * len(labels)), 1), len(labels) - 1)

    def part(rows: np.ndarray) -> Examples:
        return jnp.asarray(features[rows] / 16, dtype=float), jnp.asarray(labels[rows], dtype=jnp.int32)

    return part(order[held_out:]), part(order[:held_out])
