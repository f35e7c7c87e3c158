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
    bound_growth_rate,
    bound_report,
    bounded_update_region,
    bounded_update_sign,
    direction_bound,
    largest_update,
    level_curve,
    log_update_bound,
    normal_curve,
    stability_exponent,
    update_bound,
    worst_case_gradients,
)
from adamflow.analysis.invariance import (
    TensorObservation,
    direction_distance,
    equilibrium_norm,
    equivalent_two_adam,
    invariance_observer,
    iterate_on_spheres,
    norm_factor,
    rotation_rate,
    scale_invariance_report,
    square_norm_law,
    square_norm_recursion,
)
from adamflow.analysis.orbits import PeriodicOrbit, TwoCycle, periodic_orbit, two_cycle
from adamflow.analysis.stability import (
    Instability,
    ObservedSharpness,
    Sharpness,
    Spectrum,
    TrainingReport,
    adaptive_edge,
    critical_curvature,
    dominant_eigenvalue,
    first_instability,
    jacobian_spectrum,
    linear_stability,
    linear_system,
    phase_diagram,
    preconditioned_sharpness,
    sharpness_observer,
    stack_reports,
    training_report,
    unstable_multipliers,
)

__all__ = [
    "GradientSignal",
    "Instability",
    "ObservedSharpness",
    "PeriodicOrbit",
    "Sharpness",
    "Spectrum",
    "TensorObservation",
    "TrainingReport",
    "TwoCycle",
    "adaptive_edge",
    "bound_growth_rate",
    "bound_report",
    "bounded_update_region",
    "bounded_update_sign",
    "bounds",
    "critical_curvature",
    "direction_bound",
    "direction_distance",
    "dominant_eigenvalue",
    "equilibrium_norm",
    "equivalent_two_adam",
    "first_instability",
    "invariance",
    "invariance_observer",
    "iterate_on_spheres",
    "jacobian_spectrum",
    "largest_update",
    "level_curve",
    "linear_stability",
    "linear_system",
    "log_update_bound",
    "norm_factor",
    "normal_curve",
    "orbits",
    "periodic_orbit",
    "phase_diagram",
    "preconditioned_sharpness",
    "rotation_rate",
    "scale_invariance_report",
    "sharpness_observer",
    "square_norm_law",
    "square_norm_recursion",
    "stability",
    "stability_exponent",
    "stack_reports",
    "training_report",
    "two_cycle",
    "unstable_multipliers",
    "update_bound",
    "worst_case_gradients",
]
