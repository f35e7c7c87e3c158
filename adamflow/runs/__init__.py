"""Runs: discrete, continuous, and the comparison of both. The only layer that runs diffrax."""

from adamflow.runs.comparison import Comparison, Convergence, compare, measure_convergence
from adamflow.runs.continuous import solve
from adamflow.runs.diffrax_methods import CHORD_ROOT_FINDER
from adamflow.runs.discrete import iterate
from adamflow.runs.failure import IncompleteRunError, IncompleteRunWarning
from adamflow.runs.loading import load
from adamflow.runs.oscillation import MeanAndOscillation, mean_and_oscillation
from adamflow.runs.trajectory import OUTCOMES, Outcome, Stats, Trajectory

__all__ = [
    "CHORD_ROOT_FINDER",
    "OUTCOMES",
    "Comparison",
    "Convergence",
    "IncompleteRunError",
    "IncompleteRunWarning",
    "MeanAndOscillation",
    "Outcome",
    "Stats",
    "Trajectory",
    "compare",
    "iterate",
    "load",
    "mean_and_oscillation",
    "measure_convergence",
    "solve",
]
