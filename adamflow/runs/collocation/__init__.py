"""Collocation, the solver that "auto" integrates the flows of order 1 of Adam and its relatives by.

Read in this order; each file uses those below it:

- `solve`: what goes into a run and what comes out; one part with a diagonal Hessian, then one with a better one
- `newton`: the main loop: Newton's method at all nodes of a step, the test of its error, the next step
- `surrogate_run`, `surrogate_step`, `low_rank_hessian`: the same for many coupled parameters, on a surrogate of the
  gradient that needs one true gradient where Newton's method needs one for each node
- `batched_loop`: how elements of a batch share one loop
- `integration`: what is constant along a run, what changes, what is saved, and how it ends
- `hessian`: Hessians with which Newton's method solves, and whether one is nearly diagonal
- `step_integrator`: θ and the filters over a step, for given gradients at its nodes
- `nodes`: Radau's nodes, interpolants through them, and integrals against exponentials

docs/collocation.md has the mathematics. Nothing outside of `adamflow.runs` imports from here.
"""

from adamflow.runs.collocation.solve import (
    RunInputs,
    StaticOptions,
    check_collocation,
    is_preferable,
    solve_by_collocation,
    supports_collocation,
    takes_whole_hessian,
)

__all__ = [
    "RunInputs",
    "StaticOptions",
    "check_collocation",
    "is_preferable",
    "solve_by_collocation",
    "supports_collocation",
    "takes_whole_hessian",
]
