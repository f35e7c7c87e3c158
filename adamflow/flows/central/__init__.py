"""The central flow of gradient descent and RMSprop: the mean of their oscillation at the edge of stability.

`flow` has the flow, `complementarity` the covariance that keeps it at the edge.
"""

from adamflow.flows.central.flow import CentralFlow, CentralSnapshot

__all__ = ["CentralFlow", "CentralSnapshot"]
