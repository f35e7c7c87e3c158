"""Optimizers as records: a chain of stages declared once, from which every reading derives."""

from adamflow.optimizers.adabelief import AdaBeliefStage, adabelief
from adamflow.optimizers.adabound import AdaBoundStage, adabound, nadambound
from adamflow.optimizers.adafom import AdaFomStage, adafom
from adamflow.optimizers.adagrad import AdagradStage, adagrad
from adamflow.optimizers.adam import AdamStage, adam, adamw
from adamflow.optimizers.adam_plus import ExtrapolationStage, RootNormStage, adam_plus
from adamflow.optimizers.adamax import AdamaxStage, adamax
from adamflow.optimizers.adan import AdanStage, adan
from adamflow.optimizers.ademamix import AdEMAMixStage, ademamix
from adamflow.optimizers.amsgrad import AMSGradStage, amsgrad
from adamflow.optimizers.clipping import with_clipping
from adamflow.optimizers.described_state import OptimizerReading
from adamflow.optimizers.from_optax import from_optax
from adamflow.optimizers.kadam import kadam
from adamflow.optimizers.l2 import with_l2
from adamflow.optimizers.lamb import TrustRatioStage, lamb
from adamflow.optimizers.lars import lars
from adamflow.optimizers.lion import SignMomentumStage, lion, signum
from adamflow.optimizers.maxva import MaxVarianceStage, lamadam, madam
from adamflow.optimizers.model_average import ClippedStage, ModelAverageStage, clipped_adam, with_model_average
from adamflow.optimizers.muon import MuonStage, muon
from adamflow.optimizers.nadam import NAdamScheduleStage, NAdamStage, nadam
from adamflow.optimizers.optimizer import (
    Optimizer,
    OptimizerState,
    check_constant,
    check_optimizer,
    check_standard,
    overrides,
)
from adamflow.optimizers.per_tensor import PerTensorAdamStage, PerTensorRMSpropStage
from adamflow.optimizers.radam import RAdamStage, radam
from adamflow.optimizers.reading import decays_as_adam, divides_by, reads_as_adam
from adamflow.optimizers.rmsprop import RMSpropStage, rmsprop
from adamflow.optimizers.schedule_free import ScheduleFreeStage, schedule_free
from adamflow.optimizers.settings import ByLeaf, Schedule, by_leaf
from adamflow.optimizers.sgd import GradientStage, MomentumStage, sgd
from adamflow.optimizers.shampoo import ShampooStage, shampoo
from adamflow.optimizers.signsgd import SignStage, signsgd
from adamflow.optimizers.stage import AbstractStage, Filter, StageInput
from adamflow.optimizers.steepest import SteepestStage, steepest_descent
from adamflow.optimizers.uadam import InterpolatedMomentumStage, UAdamStage, uadam
from adamflow.optimizers.vradam import VRAdamStage, vradam
from adamflow.optimizers.yogi import YogiStage, yogi

__all__ = [
    "AMSGradStage",
    "AbstractStage",
    "AdEMAMixStage",
    "AdaBeliefStage",
    "AdaBoundStage",
    "AdaFomStage",
    "AdagradStage",
    "AdamStage",
    "AdamaxStage",
    "AdanStage",
    "ByLeaf",
    "ClippedStage",
    "ExtrapolationStage",
    "Filter",
    "GradientStage",
    "InterpolatedMomentumStage",
    "MaxVarianceStage",
    "ModelAverageStage",
    "MomentumStage",
    "MuonStage",
    "NAdamScheduleStage",
    "NAdamStage",
    "Optimizer",
    "OptimizerReading",
    "OptimizerState",
    "PerTensorAdamStage",
    "PerTensorRMSpropStage",
    "RAdamStage",
    "RMSpropStage",
    "RootNormStage",
    "Schedule",
    "ScheduleFreeStage",
    "ShampooStage",
    "SignMomentumStage",
    "SignStage",
    "StageInput",
    "SteepestStage",
    "TrustRatioStage",
    "UAdamStage",
    "VRAdamStage",
    "YogiStage",
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
    "amsgrad",
    "by_leaf",
    "check_constant",
    "check_optimizer",
    "check_standard",
    "clipped_adam",
    "decays_as_adam",
    "divides_by",
    "from_optax",
    "kadam",
    "lamadam",
    "lamb",
    "lars",
    "lion",
    "madam",
    "muon",
    "nadam",
    "nadambound",
    "overrides",
    "radam",
    "reads_as_adam",
    "rmsprop",
    "schedule_free",
    "sgd",
    "shampoo",
    "signsgd",
    "signum",
    "steepest_descent",
    "uadam",
    "vradam",
    "with_clipping",
    "with_l2",
    "with_model_average",
    "yogi",
]
