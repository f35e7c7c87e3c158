"""Where does a step, or a flow, become unstable? Linear stability, critical curvatures, and sharpness at a state.

- `linear`: how fast perturbations of a step or a flow grow.
- `eigenvalues`: the dominant eigenvalue of many small matrices.
- `critical`: the curvature at which stability ends.
- `instability`: in which way it ends: period 2, rotation, growth.
- `phase`: how these depend on the hyperparameters.
- `sharpness`: the largest eigenvalue of the preconditioned Hessian at a state.
- `generalized_sharpness`: the same in the norms of sign descent and Muon.
- `training`, by `leading_pair` and `critical_step`: where a training run stands, with its optimizer's state.
- `spectrum`, by `krylov`: the leading eigenvalues of the step at a state.
"""

from adamflow.analysis.stability.critical import critical_curvature
from adamflow.analysis.stability.generalized_sharpness import GeneralizedSharpness, generalized_sharpness
from adamflow.analysis.stability.instability import Instability, first_instability, unstable_multipliers
from adamflow.analysis.stability.linear import dominant_eigenvalue, linear_stability, linear_system
from adamflow.analysis.stability.phase import phase_diagram
from adamflow.analysis.stability.report_table import stack_reports
from adamflow.analysis.stability.sharpness import (
    ObservedSharpness,
    Sharpness,
    adaptive_edge,
    preconditioned_sharpness,
    sharpness_observer,
)
from adamflow.analysis.stability.spectrum import Spectrum, jacobian_spectrum
from adamflow.analysis.stability.training import TrainingReport, training_report

__all__ = [
    "GeneralizedSharpness",
    "Instability",
    "ObservedSharpness",
    "Sharpness",
    "Spectrum",
    "TrainingReport",
    "adaptive_edge",
    "critical_curvature",
    "dominant_eigenvalue",
    "first_instability",
    "generalized_sharpness",
    "jacobian_spectrum",
    "linear_stability",
    "linear_system",
    "phase_diagram",
    "preconditioned_sharpness",
    "sharpness_observer",
    "stack_reports",
    "training_report",
    "unstable_multipliers",
]
