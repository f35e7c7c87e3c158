"""Continuous time: vector fields that stand beside the discrete optimizers. No integration happens here."""

from adamflow.flows.averages import FlowState
from adamflow.flows.central.flow import CentralFlow, CentralSnapshot
from adamflow.flows.flow import AbstractFlow, Coordinates, Snapshot, Start
from adamflow.flows.gould_tanaka import PaperFlow
from adamflow.flows.interpolating import MapFlow, MapState
from adamflow.flows.memoryless import MemorylessFlow
from adamflow.flows.modified import ModifiedFlow
from adamflow.flows.two_branch import EdgeFlow, EdgeSnapshot, EdgeState

__all__ = [
    "AbstractFlow",
    "CentralFlow",
    "CentralSnapshot",
    "Coordinates",
    "EdgeFlow",
    "EdgeSnapshot",
    "EdgeState",
    "FlowState",
    "MapFlow",
    "MapState",
    "MemorylessFlow",
    "ModifiedFlow",
    "PaperFlow",
    "Snapshot",
    "Start",
]
