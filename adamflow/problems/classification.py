"""What the classifiers of images share: their loss, accuracy and batches, whatever the network and the images."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from adamflow.problems.cross_entropy import mean_cross_entropy
from adamflow.problems.examples import check_features, check_labels
from adamflow.problems.problem import Problem
from adamflow.types import Params

#: Images with pixels in [0, 1], as rows or as arrays (height, width, colours), and the class that each one shows.
Examples: TypeAlias = tuple[Float[Array, "_ ..."], Int[Array, "_"]]
#: From parameters and images to logits of shape (examples, classes).
Network: TypeAlias = Callable[[Params, Float[Array, "..."]], Float[Array, "..."]]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "relu": jax.nn.relu,
    "softplus": jax.nn.softplus,
}


class Rows(eqx.Module):
    """Draws examples uniformly with replacement."""

    examples: Examples

    def __call__(self, key: Key[Array, ""], size: int) -> Examples:
        return _draw(self.examples, key, int(size))


@functools.partial(jax.jit, static_argnames="size")
def _draw(examples: Examples, key: Key[Array, ""], size: int) -> Examples:
    features, labels = examples
    rows = jax.random.randint(key, (size,), 0, labels.shape[0], dtype=jnp.int32)
    return features[rows], labels[rows]


class ClassifierLoss(eqx.Module):
    """Mean cross-entropy in nats over the module's own examples, or over a batch, whose shapes are checked."""

    network: Network
    examples: Examples

    def __call__(self, params: Any, batch: Examples | None = None) -> Float[Array, ""]:
        features, labels = self.examples if batch is None else self._checked(batch)
        return mean_cross_entropy(self.network(params, features), labels)

    def _checked(self, batch: Any) -> Examples:
        """The batch, or a `ValueError` unless it holds features like the module's own and one label for each."""
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ValueError(f"batch must be a pair (features, labels), got {type(batch).__name__}")
        features, labels = map(jnp.asarray, batch)
        shape = self.examples[0].shape[1:]
        if features.shape[1:] != shape or features.ndim == 0 or features.shape[0] == 0:
            raise ValueError(
                f"batch[0] must hold at least one example of shape {shape}, as those of the problem, got shape "
                f"{features.shape}"
            )
        check_features("batch[0]", features)
        check_labels("batch[1]", labels, features.shape[0])
        return features, labels


class Accuracy(eqx.Module):
    """Fraction of the examples whose largest logit is their label's."""

    network: Network
    examples: Examples

    @eqx.filter_jit
    def __call__(self, params: Any) -> Float[Array, ""]:
        features, labels = self.examples
        return jnp.mean(jnp.argmax(self.network(params, features), axis=-1) == labels, dtype=float)


def classification(
    name: str,
    params: Params,
    network: Network,
    train: Examples,
    test: Examples,
    scale_invariant: tuple[str, ...] = (),
) -> Problem:
    """A network that classifies images as a problem.

    Args:
        name: what reports and figures call it.
        params: initial parameters.
        network: an `equinox.Module` from parameters and images to logits.
        train: images and labels of the loss, and of the batches.
        test: those of the metrics `test_accuracy` and `test_loss`.
        scale_invariant: names of the scale-invariant leaves, as in `Problem`.
    """
    metrics = {
        "train_accuracy": Accuracy(network, train),
        "test_accuracy": Accuracy(network, test),
        "test_loss": ClassifierLoss(network, test),
    }
    return Problem(name, params, ClassifierLoss(network, train), metrics, Rows(train), scale_invariant)
