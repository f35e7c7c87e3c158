"""Functions of records and trajectories: update bounds, stability regions, sharpness and edges."""

from adamflow.analysis.bounds import growth_rate, log_update_bound, stability_exponent, update_bound
from adamflow.analysis.critical import critical_curvature
from adamflow.analysis.crossing import EdgeCrossing, edge_crossing, unstable_multipliers
from adamflow.analysis.curves import level_curve, normal_curve
from adamflow.analysis.cycles import TwoCycle, two_cycle
from adamflow.analysis.linear import dominant_eigenvalue, linear_stability, linear_system
from adamflow.analysis.norm_law import (
    equilibrium_norm,
    norm_factor,
    rotation_rate,
    square_norm_law,
    square_norm_recursion,
)
from adamflow.analysis.orbit import PeriodicOrbit, periodic_orbit
from adamflow.analysis.phase import phase_diagram
from adamflow.analysis.regions import region, region_sign
from adamflow.analysis.report import bound_report, largest_update
from adamflow.analysis.scale_invariance import InvarianceRow, observe_invariance, scale_invariance_report
from adamflow.analysis.sharpness import (
    Sharpness,
    SharpnessRow,
    adaptive_edge,
    observe_sharpness,
    preconditioned_sharpness,
)
from adamflow.analysis.spectrum import Spectrum, jacobian_spectrum
from adamflow.analysis.two_adam import direction_distance, equivalent_two_adam, iterate_on_spheres
from adamflow.analysis.worst_case import GradientSignal, worst_case_gradients

__all__ = [
    "EdgeCrossing",
    "GradientSignal",
    "InvarianceRow",
    "PeriodicOrbit",
    "Sharpness",
    "SharpnessRow",
    "Spectrum",
    "TwoCycle",
    "adaptive_edge",
    "bound_report",
    "critical_curvature",
    "direction_distance",
    "dominant_eigenvalue",
    "edge_crossing",
    "equilibrium_norm",
    "equivalent_two_adam",
    "growth_rate",
    "iterate_on_spheres",
    "jacobian_spectrum",
    "largest_update",
    "level_curve",
    "linear_stability",
    "linear_system",
    "log_update_bound",
    "norm_factor",
    "normal_curve",
    "observe_invariance",
    "observe_sharpness",
    "periodic_orbit",
    "phase_diagram",
    "preconditioned_sharpness",
    "region",
    "region_sign",
    "rotation_rate",
    "scale_invariance_report",
    "square_norm_law",
    "square_norm_recursion",
    "stability_exponent",
    "two_cycle",
    "unstable_multipliers",
    "update_bound",
    "worst_case_gradients",
]
