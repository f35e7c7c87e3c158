"""Continuous time: vector fields that stand beside the discrete optimizers. No integration happens here."""

from adamflow.flows.averages import FlowState
from adamflow.flows.central import CentralFlow, CentralSnapshot
from adamflow.flows.edge import EdgeFlow, EdgeSnapshot, EdgeState
from adamflow.flows.flow import AbstractFlow, Coordinates, Snapshot, Start
from adamflow.flows.map import MapFlow, MapState
from adamflow.flows.memoryless import MemorylessFlow
from adamflow.flows.modified import ModifiedFlow
from adamflow.flows.paper import PaperFlow

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
