"""Checks of the images and labels that users pass: once, before anything is computed with them."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from adamflow.checks import is_concrete

#: Pixels above this are taken for bytes: images divided by 255 are at most 1, and standardized ones rarely exceed it.
LARGEST_PIXEL = 30.0
#: Labels are kept as int32.
LARGEST_LABEL = np.iinfo(np.int32).max


def check_parts(data: Any) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """The train and the test part as arrays of jax, or a `ValueError` that says which argument is wrong.

    Args:
        data: two pairs of images (examples, height, width, colours), finite floats, and labels (examples,), integers
            from 0. Labels must be concrete; the values of images are checked where they are.

    Warns:
        UserWarning: where pixels look like bytes, or the colours seem to come before height and width.
    """
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise ValueError(f"data must be two pairs, (images, labels) to train and to test on, got {_kind(data)}")
    train, test = (check_images(f"data[{i}]", part) for i, part in enumerate(data))
    if train[0].shape[1:] != test[0].shape[1:]:
        raise ValueError(
            f"data[1] must hold images of the shape of data[0], {train[0].shape[1:]}, got {test[0].shape[1:]}"
        )
    return train, test


def check_images(name: str, part: Any) -> tuple[Array, Array]:
    """Images and labels of one part of the data as arrays of jax, or a `ValueError`; see `check_parts`."""
    if not isinstance(part, tuple | list) or len(part) != 2:
        raise ValueError(f"{name} must be a pair (images, labels), got {_kind(part)}")
    images, labels = (number_array(f"{name}[{i}]", array) for i, array in enumerate(part))
    if images.ndim != 4 or 0 in images.shape:
        advice = "; add the axis of colours with images[..., None]" if images.ndim == 3 else ""
        raise ValueError(
            f"{name}[0] must hold images of shape (examples, height, width, colours), none of which is 0, "
            f"got shape {images.shape}{advice}"
        )
    check_features(f"{name}[0]", images)
    check_labels(f"{name}[1]", labels, images.shape[0])
    if not is_concrete(labels):
        raise ValueError(f"{name}[1] must be concrete, since its largest label sets the number of classes")
    if is_concrete(images):
        _check_pixels(f"{name}[0]", images)
    if images.shape[1] in (1, 3) and images.shape[3] > 4 and images.shape[2] == images.shape[3]:
        warnings.warn(
            f"{name}[0] has shape {images.shape}, so its images are {images.shape[1]} pixels high and have "
            f"{images.shape[3]} colours; if the colours come first, use images.transpose(0, 2, 3, 1)",
            stacklevel=5,
        )
    return jnp.asarray(images, dtype=images.dtype if images.dtype == np.float32 else float), jnp.asarray(
        labels, dtype=jnp.int32
    )


def check_features(name: str, features: Any) -> None:
    """Raise `ValueError` unless the features are of a real floating type, known also where they are traced."""
    if not jnp.issubdtype(features.dtype, jnp.floating):
        advice = "; scale them to [0, 1], for bytes by images / 255" if features.dtype.kind in "iub" else ""
        raise ValueError(f"{name} must hold real floating-point numbers, got {features.dtype}{advice}")


def check_labels(name: str, labels: Any, examples: int, classes: int | None = None) -> None:
    """Raise `ValueError` unless there is one integer label for each example; its range is checked where it is concrete.

    Args:
        name: what the labels are called in the API.
        labels: an array of any shape, perhaps traced.
        examples: how many there must be.
        classes: labels are below it; `None` where the labels themselves determine it.
    """
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        advice = "; convert them with labels.astype(int)" if labels.dtype.kind in "fb" and labels.ndim == 1 else ""
        if labels.ndim == 2:
            advice = "; from one-hot labels take labels.argmax(axis=1)"
        raise ValueError(f"{name} must hold the integer label of each example, got {labels.dtype}{advice}")
    if labels.shape != (examples,):
        one_hot = labels.ndim == 2 and labels.shape[1] > 1
        advice = f"; take labels{'.argmax(axis=1)' if one_hot else '[:, 0]'}" if labels.ndim == 2 else ""
        raise ValueError(
            f"{name} must hold one label for each of the {examples} examples, shape ({examples},), "
            f"got shape {labels.shape}{advice}"
        )
    check_label_range(name, labels, classes)


def check_label_range(name: str, labels: Any, classes: int | None = None) -> None:
    """Raise `ValueError` if a label is concrete and outside of [0, classes)."""
    if not is_concrete(labels) or not np.size(labels):
        return
    limit = LARGEST_LABEL if classes is None else classes - 1
    numbers = np.asarray(labels)
    outside = numbers[(numbers < 0) | (numbers > limit)]
    if outside.size:
        raise ValueError(
            f"{name} must lie in [0, {limit}], got {int(outside[0])}; labels count the classes from 0, and examples "
            "without a class must be left out"
        )


def _check_pixels(name: str, images: Any) -> None:
    values = np.asarray(images)
    finite = np.isfinite(values)
    if not finite.all():
        example = int(np.argwhere(~finite)[0][0])
        raise ValueError(f"{name} must be finite, got {float(values[~finite][0])!r} in image {example}")
    largest = float(np.max(np.abs(values)))
    if largest > LARGEST_PIXEL:
        warnings.warn(
            f"{name} has pixels up to {largest:g}; the initial weights are made for pixels in about [0, 1]: "
            "divide bytes by 255",
            stacklevel=6,
        )


def number_array(name: str, value: Any) -> Any:
    """The value as an array of NumPy or jax in the machine's byte order, or a `ValueError` if it holds no numbers."""
    if isinstance(value, jax.Array):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            raise ValueError(f"{name} must be an array of numbers, got random keys")
        return value
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be an array of numbers, got {_kind(value)} of rows of unequal length") from None
    if array.dtype.kind not in "biuf" and not jnp.issubdtype(array.dtype, jnp.inexact):
        raise ValueError(f"{name} must be an array of numbers, got {_kind(value)} of {array.dtype}")
    return array.astype(array.dtype.newbyteorder("="))


def _kind(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"an array of shape {tuple(shape)}"
    size = f" of length {len(value)}" if isinstance(value, tuple | list | dict | str) else ""
    return f"{type(value).__name__}{size}"
