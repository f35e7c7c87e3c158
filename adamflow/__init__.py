"""Adaptive optimizers as dynamical systems: discrete runs, their continuous flows, and what theory says of both.

Names follow R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization,
arXiv:2411.05746 (2024), cited as [GT] in the docstrings.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from adamflow import analysis, problems
from adamflow.flows import (
    AbstractFlow,
    CentralFlow,
    EdgeFlow,
    FlowState,
    MapFlow,
    MemorylessFlow,
    ModifiedFlow,
    PaperFlow,
    Snapshot,
)
from adamflow.optimizers import (
    AbstractStage,
    AdamStage,
    Filter,
    Optimizer,
    OptimizerState,
    RMSpropStage,
    Signal,
    SignStage,
    TensorAdamStage,
    TensorRMSpropStage,
    adam,
    adamw,
    kadam,
    rmsprop,
    sgd,
    signsgd,
)
from adamflow.problems import Problem
from adamflow.runs import (
    CHORD,
    OUTCOMES,
    Comparison,
    Convergence,
    Outcome,
    Stats,
    Trajectory,
    compare,
    convergence,
    iterate,
    solve,
    split_oscillation,
)

if TYPE_CHECKING:
    from adamflow import plotting

__version__ = "0.1.0"

__all__ = [
    "CHORD",
    "OUTCOMES",
    "AbstractFlow",
    "AbstractStage",
    "AdamStage",
    "CentralFlow",
    "Comparison",
    "Convergence",
    "EdgeFlow",
    "Filter",
    "FlowState",
    "MapFlow",
    "MemorylessFlow",
    "ModifiedFlow",
    "Optimizer",
    "OptimizerState",
    "Outcome",
    "PaperFlow",
    "Problem",
    "RMSpropStage",
    "SignStage",
    "Signal",
    "Snapshot",
    "Stats",
    "TensorAdamStage",
    "TensorRMSpropStage",
    "Trajectory",
    "adam",
    "adamw",
    "analysis",
    "compare",
    "convergence",
    "iterate",
    "kadam",
    "plotting",
    "problems",
    "rmsprop",
    "sgd",
    "signsgd",
    "solve",
    "split_oscillation",
]


def __getattr__(name: str) -> ModuleType:
    """Import `plotting` when it is first used: it needs matplotlib, which the rest does not."""
    if name == "plotting":
        return importlib.import_module("adamflow.plotting")
    raise AttributeError(f"module 'adamflow' has no attribute {name!r}")
