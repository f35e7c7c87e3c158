"""Pictures of results. Each function draws into `ax` and returns it; nothing is run or computed here."""

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
from adamflow.plotting.runs import convergence, errors, sharpness, trajectories
from adamflow.plotting.sweep import sweep_lines, sweep_map
from adamflow.plotting.training import training_run

__all__ = [
    "convergence",
    "edge",
    "errors",
    "family",
    "generalization",
    "kadam",
    "noise",
    "observed_region",
    "phase",
    "region",
    "scale_invariance",
    "sharpness",
    "sweep_lines",
    "sweep_map",
    "training_run",
    "trajectories",
    "two_branch_flow",
    "worst_case",
]
