"""Pictures of results. Each function draws into `ax` and returns it; nothing is run or computed here."""

from adamflow.plotting import region
from adamflow.plotting.runs import errors, sharpness, trajectories

__all__ = ["errors", "region", "sharpness", "trajectories"]
