"""How large can an update become? Bounds, the regions of (β, γ) where they stay finite, and the runs that attain them.

- `formulas`: the stability exponent C(β, γ), and the bound on an update at iteration n.
- `direction_bound`: the same bound, read off any stage that divides by a root of squares; singular values.
- `regions`: for which (β, γ) updates stay bounded.
- `curves`: along which curves in (β, γ) C changes, or stays constant.
- `worst_case`: the gradients that attain the bound.
- `report`: how close a run came to its bound.
"""

from adamflow.analysis.bounds.curves import level_curve, normal_curve
from adamflow.analysis.bounds.direction_bound import direction_bound, spectral_bound
from adamflow.analysis.bounds.formulas import bound_growth_rate, log_update_bound, stability_exponent, update_bound
from adamflow.analysis.bounds.regions import bounded_update_region, bounded_update_sign
from adamflow.analysis.bounds.report import bound_report, largest_update
from adamflow.analysis.bounds.worst_case import GradientSignal, worst_case_gradients

__all__ = [
    "GradientSignal",
    "bound_growth_rate",
    "bound_report",
    "bounded_update_region",
    "bounded_update_sign",
    "direction_bound",
    "largest_update",
    "level_curve",
    "log_update_bound",
    "normal_curve",
    "spectral_bound",
    "stability_exponent",
    "update_bound",
    "worst_case_gradients",
]
