"""Continuous time: vector fields that stand beside the discrete optimizers. No integration happens here."""

from adamflow.flows.flow import AbstractFlow, Coordinates, Snapshot
from adamflow.flows.paper import PaperFlow, PaperState

__all__ = ["AbstractFlow", "Coordinates", "PaperFlow", "PaperState", "Snapshot"]
