"""What theory says of optimizers and of their runs, in four packages with a question each.

- `bounds`: how large can an update become?
- `stability`: where does a step, or a flow, become unstable?
- `orbits`: which fixed points and cycles are there?
- `invariance`: what does normalization do to a run?

Every public name of the four is here too. Functions take optimizers and trajectories; results with axes are xarray
datasets.
"""

from adamflow.analysis import bounds, invariance, orbits, stability
from adamflow.analysis.bounds import (
    GradientSignal,
    bound_report,
    growth_rate,
    largest_update,
    level_curve,
    log_update_bound,
    normal_curve,
    region,
    region_sign,
    stability_exponent,
    update_bound,
    worst_case_gradients,
)
from adamflow.analysis.invariance import (
    InvarianceRow,
    direction_distance,
    equilibrium_norm,
    equivalent_two_adam,
    iterate_on_spheres,
    norm_factor,
    observe_invariance,
    rotation_rate,
    scale_invariance_report,
    square_norm_law,
    square_norm_recursion,
)
from adamflow.analysis.orbits import PeriodicOrbit, TwoCycle, periodic_orbit, two_cycle
from adamflow.analysis.stability import (
    EdgeCrossing,
    Sharpness,
    SharpnessRow,
    Spectrum,
    adaptive_edge,
    critical_curvature,
    dominant_eigenvalue,
    edge_crossing,
    jacobian_spectrum,
    linear_stability,
    linear_system,
    observe_sharpness,
    phase_diagram,
    preconditioned_sharpness,
    unstable_multipliers,
)

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
    "bounds",
    "critical_curvature",
    "direction_distance",
    "dominant_eigenvalue",
    "edge_crossing",
    "equilibrium_norm",
    "equivalent_two_adam",
    "growth_rate",
    "invariance",
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
    "orbits",
    "periodic_orbit",
    "phase_diagram",
    "preconditioned_sharpness",
    "region",
    "region_sign",
    "rotation_rate",
    "scale_invariance_report",
    "square_norm_law",
    "square_norm_recursion",
    "stability",
    "stability_exponent",
    "two_cycle",
    "unstable_multipliers",
    "update_bound",
    "worst_case_gradients",
]
