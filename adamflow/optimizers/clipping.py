"""Gradients that are clipped before the optimizer gets them."""

import dataclasses

from adamflow.optimizers.optimizer import Optimizer, check_optimizer
from adamflow.types import Scalar


def with_clipping(optimizer: Optimizer, norm: Scalar | None = None, *, value: Scalar | None = None) -> Optimizer:
    r"""An optimizer that gets g min(1, c/‖g‖) in the place of the gradient g, with the norm over all parameters.

    The bound on the update holds as ever: it is that of all gradients, hence of clipped ones. What is lost is that a
    factor in front of the loss changes nothing: Adam with ε = 0 divides it out, unless the norm is clipped at some
    iterations and not at others. Near a minimum nothing is clipped, so that the edge of stability is the same.

    Args:
        optimizer: any optimizer.
        norm: c > 0, `optax.clip_by_global_norm`. (That of PyTorch, `clip_grad_norm_`, divides by ‖g‖ + 1e-6.)
        value: the largest entry of |g|, > 0, as by `optax.clip`. With both, entries are cut first.

    Raises:
        TypeError: if the optimizer is none.
        ValueError: if a number is out of its range, or there is none.

    Example:
        >>> import adamflow as af, jax.numpy as jnp
        >>> optimizer = af.with_clipping(af.sgd(1.0), 1.0)
        >>> print(optimizer.update(jnp.array([3.0, 4.0]), optimizer.initial_state(jnp.zeros(2)), 0)[0])
        [0.6 0.8]
    """
    check_optimizer("with_clipping", optimizer)
    if norm is None and value is None:
        raise ValueError("with_clipping needs the largest norm, or value=, the largest entry; got neither")
    return dataclasses.replace(optimizer, clip_norm=norm, clip_value=value)
