"""Sweeps: a function of one point at every point of a grid, on a laptop's cores or a cluster, with nothing lost."""

from adamflow.sweeps.accessor import SweepAccessor
from adamflow.sweeps.grid import zip_axes
from adamflow.sweeps.refinement import refine
from adamflow.sweeps.results import LANE_OUTCOMES
from adamflow.sweeps.store import SweepStoreError
from adamflow.sweeps.stored import open_store
from adamflow.sweeps.sweep import sweep
from adamflow.sweeps.work import SweepWarning

__all__ = [
    "LANE_OUTCOMES",
    "SweepAccessor",
    "SweepStoreError",
    "SweepWarning",
    "open_store",
    "refine",
    "sweep",
    "zip_axes",
]
