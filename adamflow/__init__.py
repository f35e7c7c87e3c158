"""Adaptive optimizers as dynamical systems: discrete runs, their continuous flows, and what theory says of both.

Names follow R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization,
arXiv:2411.05746 (2024), cited as [GT] in the docstrings.
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

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
    adabelief,
    adabound,
    adafom,
    adagrad,
    adam,
    adam_plus,
    adamax,
    adamw,
    adan,
    ademamix,
    amsgrad,
    by_leaf,
    clipped_adam,
    from_optax,
    kadam,
    lamadam,
    lamb,
    lars,
    lion,
    madam,
    muon,
    nadam,
    nadambound,
    radam,
    rmsprop,
    schedule_free,
    sgd,
    shampoo,
    signsgd,
    signum,
    steepest_descent,
    uadam,
    vradam,
    with_clipping,
    with_l2,
    with_model_average,
    yogi,
)
from adamflow.runs import (
    CHORD_ROOT_FINDER,
    OUTCOMES,
    Comparison,
    Convergence,
    IncompleteRunError,
    IncompleteRunWarning,
    Outcome,
    Stats,
    Trajectory,
    compare,
    iterate,
    load,
    mean_and_oscillation,
    measure_convergence,
    solve,
)

if TYPE_CHECKING:
    from adamflow import advice, analysis, noise, plotting, problems, sweeps
    from adamflow.advice import assess, explain, recommend
    from adamflow.noise import StochasticFlow, scale_batch
    from adamflow.problems import Problem
    from adamflow.sweeps import refine, sweep, zip_axes

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
    "IncompleteRunError",
    "IncompleteRunWarning",
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
    "StochasticFlow",
    "Trajectory",
    "TwoBranchFlow",
    "adabelief",
    "adabound",
    "adafom",
    "adagrad",
    "adam",
    "adam_plus",
    "adamax",
    "adamw",
    "adan",
    "ademamix",
    "advice",
    "amsgrad",
    "analysis",
    "assess",
    "by_leaf",
    "clipped_adam",
    "compare",
    "explain",
    "from_optax",
    "iterate",
    "kadam",
    "lamadam",
    "lamb",
    "lars",
    "lion",
    "load",
    "madam",
    "mean_and_oscillation",
    "measure_convergence",
    "muon",
    "nadam",
    "nadambound",
    "noise",
    "plotting",
    "problems",
    "radam",
    "recommend",
    "refine",
    "rmsprop",
    "scale_batch",
    "schedule_free",
    "sgd",
    "shampoo",
    "signsgd",
    "signum",
    "solve",
    "steepest_descent",
    "sweep",
    "sweeps",
    "uadam",
    "vradam",
    "with_clipping",
    "with_l2",
    "with_model_average",
    "yogi",
    "zip_axes",
]


#: Packages that are imported at their first use: runs need none of them, and `plotting` needs matplotlib.
_LATER = ("advice", "analysis", "noise", "plotting", "problems", "sweeps")

#: What such packages have and users find here, too.
_FROM_LATER = {
    "Problem": "problems",
    "StochasticFlow": "noise",
    "assess": "advice",
    "explain": "advice",
    "recommend": "advice",
    "refine": "sweeps",
    "scale_batch": "noise",
    "sweep": "sweeps",
    "zip_axes": "sweeps",
}

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
    """Import some packages at their first use; find objects by former names."""
    if name in _LATER:
        return importlib.import_module(f"adamflow.{name}")
    if name in _FROM_LATER:
        return getattr(importlib.import_module(f"adamflow.{_FROM_LATER[name]}"), name)
    if name in _FORMER_NAMES:
        present = _FORMER_NAMES[name]
        warnings.warn(f"adamflow.{name} is now called adamflow.{present}", DeprecationWarning, stacklevel=2)
        return globals()[present]
    raise AttributeError(f"module 'adamflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    """All public names, also those of what is imported at its first use."""
    return sorted({*globals(), *__all__})
