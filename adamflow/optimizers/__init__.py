"""Optimizers as records: a chain of stages declared once, from which every reading derives."""

from adamflow.optimizers.adam import AdamStage, adam, adamw
from adamflow.optimizers.from_optax import from_optax
from adamflow.optimizers.kadam import kadam
from adamflow.optimizers.optimizer import Optimizer, OptimizerState, check_optimizer, check_standard, overrides
from adamflow.optimizers.per_tensor import PerTensorAdamStage, PerTensorRMSpropStage
from adamflow.optimizers.reading import OptimizerReading
from adamflow.optimizers.rmsprop import RMSpropStage, rmsprop
from adamflow.optimizers.sgd import GradientStage, MomentumStage, sgd
from adamflow.optimizers.signsgd import SignStage, signsgd
from adamflow.optimizers.stage import AbstractStage, Filter, StageInput

__all__ = [
    "AbstractStage",
    "AdamStage",
    "Filter",
    "GradientStage",
    "MomentumStage",
    "Optimizer",
    "OptimizerReading",
    "OptimizerState",
    "PerTensorAdamStage",
    "PerTensorRMSpropStage",
    "RMSpropStage",
    "SignStage",
    "StageInput",
    "adam",
    "adamw",
    "check_optimizer",
    "check_standard",
    "from_optax",
    "kadam",
    "overrides",
    "rmsprop",
    "sgd",
    "signsgd",
]
