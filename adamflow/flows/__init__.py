"""Continuous time: vector fields whose solutions approximate the discrete iterates. No integration happens here."""

from adamflow.flows.averages import FlowState
from adamflow.flows.central.flow import CentralFlow, CentralSnapshot
from adamflow.flows.flow import AbstractFlow, ChangeOfVariables, Snapshot, Start, StartLike
from adamflow.flows.gould_tanaka import GouldTanakaFlow
from adamflow.flows.interpolating import InterpolatingFlow, InterpolatingState
from adamflow.flows.memoryless import MemorylessFlow
from adamflow.flows.modified import ModifiedFlow
from adamflow.flows.two_branch import TwoBranchFlow, TwoBranchSnapshot, TwoBranchState

__all__ = [
    "AbstractFlow",
    "CentralFlow",
    "CentralSnapshot",
    "ChangeOfVariables",
    "FlowState",
    "GouldTanakaFlow",
    "InterpolatingFlow",
    "InterpolatingState",
    "MemorylessFlow",
    "ModifiedFlow",
    "Snapshot",
    "Start",
    "StartLike",
    "TwoBranchFlow",
    "TwoBranchSnapshot",
    "TwoBranchState",
]
