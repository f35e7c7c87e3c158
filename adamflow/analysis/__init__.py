"""Functions of records and trajectories: update bounds, stability regions, sharpness and edges."""

from adamflow.analysis.bounds import growth_rate, log_update_bound, stability_exponent, update_bound
from adamflow.analysis.curves import level_curve, normal_curve
from adamflow.analysis.sharpness import Sharpness, adaptive_edge, preconditioned_sharpness

__all__ = [
    "Sharpness",
    "adaptive_edge",
    "growth_rate",
    "level_curve",
    "log_update_bound",
    "normal_curve",
    "preconditioned_sharpness",
    "stability_exponent",
    "update_bound",
]
