"""Functions of records and trajectories: update bounds, stability regions, sharpness and edges."""

from adamflow.analysis.bounds import growth_rate, log_update_bound, stability_exponent, update_bound
from adamflow.analysis.critical import critical_curvature
from adamflow.analysis.curves import level_curve, normal_curve
from adamflow.analysis.linear import dominant_eigenvalue, linear_stability, linear_system
from adamflow.analysis.phase import phase_diagram
from adamflow.analysis.regions import region, region_sign
from adamflow.analysis.report import bound_report, largest_update
from adamflow.analysis.sharpness import Sharpness, adaptive_edge, preconditioned_sharpness
from adamflow.analysis.worst_case import GradientSignal, worst_case_gradients

__all__ = [
    "GradientSignal",
    "Sharpness",
    "adaptive_edge",
    "bound_report",
    "critical_curvature",
    "dominant_eigenvalue",
    "growth_rate",
    "largest_update",
    "level_curve",
    "linear_stability",
    "linear_system",
    "log_update_bound",
    "normal_curve",
    "phase_diagram",
    "preconditioned_sharpness",
    "region",
    "region_sign",
    "stability_exponent",
    "update_bound",
    "worst_case_gradients",
]
