"""Minibatch noise: its covariance, where it moves the edge of stability, and optimizers as stochastic flows.

- `covariance`: the noise of minibatch gradients, measured or given.
- `mean_square`: the learning rate at which second moments grow, in closed form, by the moment operator or particles.
- `edge_index`: how far a network is from that edge.
- `stochastic_flow`: optimizers as stochastic differential equations, many paths at once; `ensemble`: their statistics.
- `weak_error`: the order of a stochastic flow, measured with few paths.
- `scaling`: rules for other batch sizes, and SVAG.
- `stationary`: covariances in the end on quadratics, in closed form, and Langevin dynamics.
- `vradam`: Adam with a variance-reduced first moment.
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
from adamflow.noise.edge_index import (
    BatchSharpness,
    EdgeIndex,
    EdgeIndexObserver,
    batch_sharpness,
    edge_index,
    edge_index_observer,
    law_factor,
    metric_of,
)
from adamflow.noise.ensemble import Ensemble, Estimate
from adamflow.noise.mean_square import (
    MeanSquareEdge,
    mean_square_edge,
    one_dimensional_edge,
    spectral_edge_index,
    stationary_loss,
)
from adamflow.noise.scaling import Inflated, scale_batch, svag
from adamflow.noise.stationary import anisotropic, bound_trace, langevin_noise, stationary_covariance
from adamflow.noise.stochastic_flow import StochasticFlow, StrangSplitting, discrete_paths
from adamflow.noise.vradam import VarianceReducedRun, iterate_vradam
from adamflow.noise.weak_error import WeakConvergence, measure_weak_convergence

__all__ = [
    "BatchSharpness",
    "EdgeIndex",
    "EdgeIndexObserver",
    "Ensemble",
    "Estimate",
    "GradientNoise",
    "Inflated",
    "Keys",
    "MeanSquareEdge",
    "MinibatchNoise",
    "NoisyLoss",
    "StochasticFlow",
    "StrangSplitting",
    "VarianceReducedRun",
    "WeakConvergence",
    "anisotropic",
    "batch_sharpness",
    "bound_trace",
    "covariance",
    "discrete_paths",
    "edge_index",
    "edge_index_observer",
    "effective_batch_size",
    "iterate_vradam",
    "known_covariance",
    "langevin_noise",
    "law_factor",
    "mean_square_edge",
    "measure_weak_convergence",
    "metric_of",
    "noise_scale",
    "noise_scale_from_norms",
    "one_dimensional_edge",
    "scale_batch",
    "spectral_edge_index",
    "stationary_covariance",
    "stationary_loss",
    "svag",
]
