"""What does normalization do to a run? The norm and the direction of weights whose scale does not change the loss.

- `norm_law`: which norm scale-invariant weights reach, from the size of their updates.
- `report`: whether a run follows that law and its assumptions.
- `two_adam`: whether 2-Adam on weights of fixed norm follows AdamW's directions.
"""

from adamflow.analysis.invariance.norm_law import (
    equilibrium_norm,
    norm_factor,
    rotation_rate,
    square_norm_law,
    square_norm_recursion,
)
from adamflow.analysis.invariance.report import TensorObservation, invariance_observer, scale_invariance_report
from adamflow.analysis.invariance.two_adam import direction_distance, equivalent_two_adam, iterate_on_spheres

__all__ = [
    "TensorObservation",
    "direction_distance",
    "equilibrium_norm",
    "equivalent_two_adam",
    "invariance_observer",
    "iterate_on_spheres",
    "norm_factor",
    "rotation_rate",
    "scale_invariance_report",
    "square_norm_law",
    "square_norm_recursion",
]
