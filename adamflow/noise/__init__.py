"""Minibatch noise: its covariance, where it moves the edge of stability, and optimizers as stochastic flows.

- `covariance`: the noise of minibatch gradients, measured or given.
"""

from adamflow.noise.covariance import (
    GradientNoise,
    Keys,
    MinibatchNoise,
    NoisyLoss,
    covariance,
    effective_batch_size,
    known_covariance,
    noise_scale,
    noise_scale_from_norms,
)

__all__ = [
    "GradientNoise",
    "Keys",
    "MinibatchNoise",
    "NoisyLoss",
    "covariance",
    "effective_batch_size",
    "known_covariance",
    "noise_scale",
    "noise_scale_from_norms",
]
