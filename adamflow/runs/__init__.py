"""Runs: discrete, continuous, and the comparison of both. The only layer that runs diffrax."""

from adamflow.runs.comparison import Comparison, Convergence, compare, convergence
from adamflow.runs.continuous import solve
from adamflow.runs.diffrax_methods import CHORD
from adamflow.runs.discrete import iterate
from adamflow.runs.oscillation import SplitRun, split_oscillation
from adamflow.runs.trajectory import OUTCOMES, Outcome, Stats, Trajectory

__all__ = [
    "CHORD",
    "OUTCOMES",
    "Comparison",
    "Convergence",
    "Outcome",
    "SplitRun",
    "Stats",
    "Trajectory",
    "compare",
    "convergence",
    "iterate",
    "solve",
    "split_oscillation",
]
