"""Adaptive optimizers as dynamical systems: discrete runs, their continuous flows, and what theory says of both.

Names follow R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization,
arXiv:2411.05746 (2024), cited as [GT] in the docstrings.
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from adamflow import analysis, problems
from adamflow.flows import (
    AbstractFlow,
    CentralFlow,
    FlowState,
    GouldTanakaFlow,
    InterpolatingFlow,
    MemorylessFlow,
    ModifiedFlow,
    Snapshot,
    TwoBranchFlow,
)
from adamflow.optimizers import (
    AbstractStage,
    AdamStage,
    Filter,
    Optimizer,
    OptimizerReading,
    OptimizerState,
    PerTensorAdamStage,
    PerTensorRMSpropStage,
    RMSpropStage,
    SignStage,
    StageInput,
    adam,
    adamw,
    from_optax,
    kadam,
    rmsprop,
    sgd,
    signsgd,
)
from adamflow.problems import Problem
from adamflow.runs import (
    CHORD_ROOT_FINDER,
    OUTCOMES,
    Comparison,
    Convergence,
    Outcome,
    Stats,
    Trajectory,
    compare,
    iterate,
    mean_and_oscillation,
    measure_convergence,
    solve,
)

if TYPE_CHECKING:
    from adamflow import plotting

__version__ = "0.2.0"

__all__ = [
    "CHORD_ROOT_FINDER",
    "OUTCOMES",
    "AbstractFlow",
    "AbstractStage",
    "AdamStage",
    "CentralFlow",
    "Comparison",
    "Convergence",
    "Filter",
    "FlowState",
    "GouldTanakaFlow",
    "InterpolatingFlow",
    "MemorylessFlow",
    "ModifiedFlow",
    "Optimizer",
    "OptimizerReading",
    "OptimizerState",
    "Outcome",
    "PerTensorAdamStage",
    "PerTensorRMSpropStage",
    "Problem",
    "RMSpropStage",
    "SignStage",
    "Snapshot",
    "StageInput",
    "Stats",
    "Trajectory",
    "TwoBranchFlow",
    "adam",
    "adamw",
    "analysis",
    "compare",
    "from_optax",
    "iterate",
    "kadam",
    "mean_and_oscillation",
    "measure_convergence",
    "plotting",
    "problems",
    "rmsprop",
    "sgd",
    "signsgd",
    "solve",
]


#: Former names of version 0.1, kept for one version.
_FORMER_NAMES = {
    "CHORD": "CHORD_ROOT_FINDER",
    "EdgeFlow": "TwoBranchFlow",
    "MapFlow": "InterpolatingFlow",
    "PaperFlow": "GouldTanakaFlow",
    "convergence": "measure_convergence",
    "split_oscillation": "mean_and_oscillation",
}


def __getattr__(name: str) -> Any:
    """Import `plotting` at its first use, since the rest does not need matplotlib; find objects by former names."""
    if name == "plotting":
        return importlib.import_module("adamflow.plotting")
    if name in _FORMER_NAMES:
        present = _FORMER_NAMES[name]
        warnings.warn(f"adamflow.{name} is now called adamflow.{present}", DeprecationWarning, stacklevel=2)
        return globals()[present]
    raise AttributeError(f"module 'adamflow' has no attribute {name!r}")
