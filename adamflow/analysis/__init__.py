"""Functions of records and trajectories: update bounds, stability regions, sharpness and edges."""

from adamflow.analysis.bounds import growth_rate, log_update_bound, stability_exponent, update_bound
from adamflow.analysis.critical import critical_curvature
from adamflow.analysis.curves import level_curve, normal_curve
from adamflow.analysis.cycles import TwoCycle, two_cycle
from adamflow.analysis.linear import dominant_eigenvalue, linear_stability, linear_system
from adamflow.analysis.orbit import PeriodicOrbit, periodic_orbit
from adamflow.analysis.phase import phase_diagram
from adamflow.analysis.regions import region, region_sign
from adamflow.analysis.report import bound_report, largest_update
from adamflow.analysis.sharpness import (
    Sharpness,
    SharpnessRow,
    adaptive_edge,
    observe_sharpness,
    preconditioned_sharpness,
)
from adamflow.analysis.spectrum import Spectrum, jacobian_spectrum
from adamflow.analysis.worst_case import GradientSignal, worst_case_gradients

__all__ = [
    "GradientSignal",
    "PeriodicOrbit",
    "Sharpness",
    "SharpnessRow",
    "Spectrum",
    "TwoCycle",
    "adaptive_edge",
    "bound_report",
    "critical_curvature",
    "dominant_eigenvalue",
    "growth_rate",
    "jacobian_spectrum",
    "largest_update",
    "level_curve",
    "linear_stability",
    "linear_system",
    "log_update_bound",
    "normal_curve",
    "observe_sharpness",
    "periodic_orbit",
    "phase_diagram",
    "preconditioned_sharpness",
    "region",
    "region_sign",
    "stability_exponent",
    "two_cycle",
    "update_bound",
    "worst_case_gradients",
]
