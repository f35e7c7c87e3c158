"""Collocation: exact filters, few true gradients, a curvature that is learnt. What "auto" integrates a `PaperFlow` by.

`nodes` has the nodes of a step and integrals over it; `path` what a flow does between gradients; `task` what a run is
asked for and keeps; `diagonal` runs that learn one curvature for each coordinate, with `lanes`, their loop in a batch;
`surrogate` runs that learn a Hessian of low rank, with `step`, the equations of a step, and `curvature`; `collocate`
what users give and get.
"""

from adamflow.solve.collocation.collocate import Given, check_collocation, collocate, fits

__all__ = ["Given", "check_collocation", "collocate", "fits"]
