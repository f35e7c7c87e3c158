"""The loss of every classifier here, characters included."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def mean_cross_entropy(logits: Float[Array, "*examples classes"], labels: Int[Array, "*examples"]) -> Float[Array, ""]:
    """The mean over examples of −log softmax(logits)[label], in nats."""
    # A mask and not a gather: the gradient of a gather is a scatter, which is slow on a CPU.
    is_label = jnp.arange(logits.shape[-1]) == labels[..., None]
    chosen = jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen)
