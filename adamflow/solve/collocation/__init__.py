"""Collocation for flows whose gradient is dear: exact filters, a Hessian that is learnt, few true gradients.

`nodes` has the nodes of a step and integrals over it; `path` what a flow does between gradients; `curvature` the
Hessian; `step` the equations of a step, and when it is accepted; `run` the steps of a run; `collocate` what users give
and get.
"""

from adamflow.solve.collocation.collocate import check_collocation, collocate

__all__ = ["check_collocation", "collocate"]
