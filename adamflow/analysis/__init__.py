
from adamflow.analysis.bounds import growth_rate, log_update_bound, stability_exponent, update_bound
from adamflow.analysis.critical import critical_curvature
from adamflow.analysis.curves import level_curve, normal_curve
from adamflow.analysis.linear import dominant_eigenvalue, linear_stability, linear_system
from adamflow.analysis.phase import phase_diagram
from adamflow.analysis.sharpness import Sharpness, adaptive_edge, preconditioned_sharpness

__all__ = [
    "Sharpness",
    "adaptive_edge",
    "critical_curvature",
    "dominant_eigenvalue",
    "growth_rate",
    "level_curve",
    "linear_stability",
    "linear_system",
    "log_update_bound",
    "normal_curve",
    "phase_diagram",
    "preconditioned_sharpness",
    "stability_exponent",
    "update_bound",
]
