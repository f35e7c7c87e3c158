"""Runs: discrete, continuous, and the comparison of both. The only layer that runs diffrax."""

from adamflow.solve.compare import Comparison, Convergence, compare, convergence
from adamflow.solve.integrate import solve
from adamflow.solve.iterate import iterate
from adamflow.solve.methods import CHORD
from adamflow.solve.oscillation import SplitRun, split_oscillation
from adamflow.solve.trajectory import OUTCOMES, Outcome, Stats, Trajectory

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
