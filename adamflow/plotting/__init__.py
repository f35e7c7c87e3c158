"""Pictures of results. Each function draws into `ax` and returns it; nothing is run or computed here."""

from adamflow.plotting import (
    edge,
    edge_flow,
    generalization,
    kadam,
    observed_region,
    phase,
    region,
    scale_invariance,
    worst_case,
)
from adamflow.plotting.runs import convergence, errors, sharpness, trajectories

__all__ = [
    "convergence",
    "edge",
    "edge_flow",
    "errors",
    "generalization",
    "kadam",
    "observed_region",
    "phase",
    "region",
    "scale_invariance",
    "sharpness",
    "trajectories",
    "worst_case",
]
