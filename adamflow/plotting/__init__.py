"""Pictures of results. Each function draws into `ax` and returns it; nothing is run or computed here."""

from adamflow.plotting import edge, observed_region, phase, region, worst_case
from adamflow.plotting.runs import convergence, errors, sharpness, trajectories

__all__ = [
    "convergence",
    "edge",
    "errors",
    "observed_region",
    "phase",
    "region",
    "sharpness",
    "trajectories",
    "worst_case",
]
