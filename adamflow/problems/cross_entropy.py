"""The loss of every classifier here, characters included."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from adamflow.problems.examples import check_label_range, number_array


def mean_cross_entropy(logits: Float[Array, "*examples classes"], labels: Int[Array, "*examples"]) -> Float[Array, ""]:
    """The mean over examples of −log softmax(logits)[label], in nats.

    Args:
        logits: by example and class.
        labels: of each example, integers in [0, classes). Where a label outside is traced, which no error can tell, the
            result is NaN, so that a run ends as not finite.

    Raises:
        ValueError: labels not integers, not one for each example, or concrete and outside of [0, classes).

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(mean_cross_entropy(jnp.zeros((2, 10)), jnp.array([3, 9]))), 4)  # ln 10
        2.3026
    """
    logits, labels = number_array("logits", logits), number_array("labels", labels)
    if logits.ndim == 0 or not logits.size:
        raise ValueError(f"logits must have an axis of classes and at least one example, got shape {logits.shape}")
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"logits must be real floating-point numbers, got {logits.dtype}")
    if isinstance(logits, np.ndarray) and logits.dtype != np.float32:
        logits = jnp.asarray(logits, dtype=float)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be integers, got {labels.dtype}; from one-hot ones take labels.argmax(axis=-1)")
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels must have one entry for each example, shape {logits.shape[:-1]} for logits of shape "
            f"{logits.shape}, got shape {labels.shape}"
        )
    check_label_range("labels", labels, logits.shape[-1])
    return _mean_cross_entropy(jnp.asarray(logits), jnp.asarray(labels))


@jax.jit
def _mean_cross_entropy(logits: Array, labels: Array) -> Array:
    classes = logits.shape[-1]
    # A mask and not a gather: the gradient of a gather is a scatter, which is slow on a CPU.
    is_label = jnp.arange(classes) == labels[..., None]
    chosen = jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)
    known = (labels >= 0) & (labels < classes)
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - jnp.where(known, chosen, jnp.nan))
