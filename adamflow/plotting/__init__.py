"""Pictures of results: a function for each kind of result, which takes the result, draws into `ax` and returns it.

Nothing is run or computed here. The modules hold what figures are drawn with: functions that take arrays.
"""

from adamflow.plotting import (
    edge,
    family,
    generalization,
    kadam,
    noise,
    observed_region,
    phase,
    region,
    scale_invariance,
    two_branch_flow,
    worst_case,
)
from adamflow.plotting.results import (
    bounded_update_region,
    ensemble,
    explanation,
    instability,
    orbit,
    phase_diagram,
    reports,
    sharpness,
    spectrum,
    square_norms,
    updates,
)
from adamflow.plotting.runs import convergence, errors, trajectories
from adamflow.plotting.sweep import sweep_lines, sweep_map
from adamflow.plotting.training import training_run

__all__ = [
    "bounded_update_region",
    "convergence",
    "edge",
    "ensemble",
    "errors",
    "explanation",
    "family",
    "generalization",
    "instability",
    "kadam",
    "noise",
    "observed_region",
    "orbit",
    "phase",
    "phase_diagram",
    "region",
    "reports",
    "scale_invariance",
    "sharpness",
    "spectrum",
    "square_norms",
    "sweep_lines",
    "sweep_map",
    "training_run",
    "trajectories",
    "two_branch_flow",
    "updates",
    "worst_case",
]
