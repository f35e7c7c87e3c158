"""A small convolutional network on images, by default scikit-learn's digits."""

from collections.abc import Sequence
from typing import TypeAlias

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from adamflow.checks import check_choice, check_count
from adamflow.problems.classification import ACTIVATIONS, Examples, classification
from adamflow.problems.digits import check_widths, load_digits
from adamflow.problems.examples import check_parts
from adamflow.problems.invariant import NORMALIZATIONS, shift_and_scale, weights_before_normalization, with_gain
from adamflow.problems.numbers import array_size
from adamflow.problems.problem import Problem

#: One {"weight": (kernel, kernel, inputs, outputs), "bias": (outputs,)} per convolution, with "gain": (outputs,) where
#: it is normalized, then {"weight": (features, classes), "bias": (classes,)}.
Layers: TypeAlias = tuple[dict[str, Float[Array, "..."]], ...]
#: Images and labels as users have them, of NumPy or jax.
Part: TypeAlias = tuple[Float[Array | np.ndarray, "_ height width colours"], Integer[Array | np.ndarray, "_"]]
DIGITS_SIDE = 8


def convolve(
    images: Float[Array, "examples height width inputs"], weight: Float[Array, "kernel kernel inputs outputs"]
) -> Float[Array, "examples height width outputs"]:
    """The convolution with zeros around the image, so that its size is kept; the kernel's side is odd.

    One matrix product over shifted images: as `jax.lax.conv` in value, but on a CPU faster, about twice under
    `jax.vmap` over weights, which turns that into a grouped convolution.
    """
    side, (height, width) = weight.shape[0], images.shape[1:3]
    border = (side // 2, side // 2)
    padded = jnp.pad(images, ((0, 0), border, border, (0, 0)))
    shifted = [padded[:, i : i + height, j : j + width] for i in range(side) for j in range(side)]
    return jnp.concatenate(shifted, axis=-1) @ weight.reshape(-1, weight.shape[-1])


def halve(images: Float[Array, "examples height width channels"]) -> Float[Array, "examples rows columns channels"]:
    """The mean of each 2 by 2 square; a last odd row or column is left out."""
    examples, height, width, channels = images.shape
    even = images[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(examples, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


class ConvolutionalNetwork(eqx.Module):
    """Convolutions, each followed by normalization (if there is one), activation and `halve`; then an affine map."""

    activation: str = eqx.field(static=True)
    normalization: str | None = eqx.field(static=True, default=None)

    @eqx.filter_jit
    def __call__(
        self, params: Layers, images: Float[Array, "examples height width colours"]
    ) -> Float[Array, "examples classes"]:
        *convolutions, last = params
        for layer in convolutions:
            affine = shift_and_scale(layer, convolve(images, layer["weight"]), self.normalization)
            images = halve(ACTIVATIONS[self.activation](affine))
        return images.reshape(images.shape[0], -1) @ last["weight"] + last["bias"]


def cnn(
    channels: Sequence[int] = (8, 16),
    activation: str = "gelu",
    *,
    kernel: int = 3,
    normalization: str | None = None,
    data: tuple[Part, Part] | None = None,
    train_size: int | None = None,
    test_fraction: float = 0.25,
    seed: int = 0,
    data_seed: int = 0,
) -> Problem:
    """A convolutional network on images: softmax cross-entropy, metrics as in `logistic`.

    For each width in `channels` a convolution that keeps the image's size, an activation, and the mean over squares of
    2 by 2; then an affine map from all that is left to the classes. Weights start normal with variance 2 / inputs for
    relu (He et al. 2015, eq. 10) and 2 / (inputs + outputs) otherwise (Glorot & Bengio 2010, eq. 12), where inputs and
    outputs of a convolution count the kernel's positions; biases start at zero.

    Args:
        channels: channels of each convolution, at least one; each halves the image's sides.
        activation: "tanh", "gelu", "relu" or "softplus". All but relu are smooth, as flows want them.
        kernel: side of the convolutions' kernels, odd.
        normalization: "layer" (over all of an example) or "batch" (over examples and positions, with the statistics of
            the examples at hand) for φ(gain · norm(x ∗ W) + bias); `None` for φ(x ∗ W + bias). A normalized W is
            scale-invariant: f(cW) = f(W) for c > 0.
        data: the train and the test part, each images of shape (examples, height, width, colours), finite floats scaled
            to about [0, 1], and integer labels from 0 of shape (examples,); `None` for scikit-learn's digits, of shape
            (8, 8, 1).
        train_size: how many of the train images loss and batches see, the first ones; `None` for all.
        test_fraction: of the digits, share of the images held out for the metrics, strictly between 0 and 1.
        seed: of the initial weights.
        data_seed: of the digits, which images are held out.

    Returns:
        A problem whose parameters are a tuple with one `{"weight": (kernel, kernel, inputs, outputs), "bias":
        (outputs,)}` per convolution, in a normalized one also `"gain"`, then `{"weight": (features, classes), "bias":
        (classes,)}`. Its `scale_invariant` names the normalized weights.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: an argument out of range, data of other shapes or types, pixels that are not finite, labels below
            0, or images too small for so many halvings.

    Warns:
        UserWarning: pixels above 30, which look like bytes, or images whose colours seem to come first.

    Example:
        >>> import adamflow as af
        >>> problem = af.problems.cnn(channels=(4, 8))
        >>> [layer["weight"].shape for layer in problem.params]
        [(3, 3, 1, 4), (3, 3, 4, 8), (32, 10)]
        >>> problem.loss.examples[0].shape
        (1348, 8, 8, 1)
    """
    check_choice("activation", activation, tuple(ACTIVATIONS))
    if normalization is not None:
        check_choice("normalization", normalization, NORMALIZATIONS)
    channels = check_widths("channels", channels, "convolution", "af.problems.mlp")
    if array_size("kernel", kernel) % 2 == 0:
        raise ValueError(f"kernel must be odd, so that the image keeps its size, got {kernel}; try {kernel + 1}")
    train, test = _digit_images(test_fraction, data_seed) if data is None else check_parts(data)
    if train_size is not None:
        train = _first(train, train_size)
    params = _initial(train, test, channels, activation, kernel, normalization, check_count("seed", seed, low=0))
    network = ConvolutionalNetwork(activation, normalization)
    return classification("cnn", params, network, train, test, weights_before_normalization(len(params), normalization))


def _initial(
    train: Examples,
    test: Examples,
    channels: tuple[int, ...],
    activation: str,
    kernel: int,
    normalization: str | None,
    seed: int,
) -> Layers:
    (height, width, colours), halvings = train[0].shape[1:], len(channels)
    if min(height, width) < 2**halvings:
        raise ValueError(
            f"{halvings} convolutions halve images of {height} by {width} to nothing; take at most "
            f"{min(height, width).bit_length() - 1} channels, got {channels}"
        )
    classes = int(max(train[1].max(), test[1].max())) + 1
    generator = np.random.default_rng(seed)

    def layer(*shape: int, window: int = 1) -> dict[str, Array]:
        inputs, outputs = shape[-2] * window, shape[-1] * window
        deviation = np.sqrt(2 / inputs if activation == "relu" else 2 / (inputs + outputs))
        weight = jnp.asarray(generator.normal(0.0, deviation, shape), dtype=float)
        return {"weight": weight, "bias": jnp.zeros(shape[-1])}

    sizes = [colours, *channels]
    convolutions = [
        with_gain(layer(kernel, kernel, sizes[i], sizes[i + 1], window=kernel**2), normalization)
        for i in range(halvings)
    ]
    features = (height // 2**halvings) * (width // 2**halvings) * channels[-1]
    return (*convolutions, layer(features, classes))


def _digit_images(test_fraction: float, data_seed: int) -> tuple[Examples, Examples]:
    def as_images(part: Examples) -> Examples:
        return part[0].reshape(-1, DIGITS_SIDE, DIGITS_SIDE, 1), part[1]

    train, test = load_digits(test_fraction, data_seed)
    return as_images(train), as_images(test)


def _first(examples: Examples, size: int) -> Examples:
    available = len(examples[1])
    if check_count("train_size", size) > available:
        raise ValueError(f"train_size must be at most {available}, the number of train images, got {size}")
    return examples[0][:size], examples[1][:size]
