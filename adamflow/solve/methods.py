"""Which diffrax solver integrates a flow, and how it steps."""

from collections.abc import Callable
from typing import Any, NamedTuple, get_origin

import diffrax
import jax
import jax.numpy as jnp
import optimistix

from adamflow.checks import is_concrete
from adamflow.flows import AbstractFlow, PaperFlow

#: The root finder for implicit diffrax solvers: chord iteration with the tolerances of the step size control. Their own
#: default takes tens of times the steps on flows.
CHORD = diffrax.with_stepsize_controller_tols(optimistix.Chord)()

#: The largest number of parameters for which "auto" takes an implicit solver with dense Jacobians.
DENSE_LIMIT = 200

#: The tightest rtol for which it takes collocation beyond that, where its order is 3.
LOOSE = 1e-4


class Method(NamedTuple):
    """How a flow is integrated.

    Attributes:
        solver: the diffrax solver.
        implicit: whether its steps solve equations; these follow logarithms of nonnegative filters.
        fields: vector fields evaluated in an attempted step, or `None` where that is not known beforehand.
        first_fields: vector fields evaluated before the first step.
        jacobians: dense Jacobians of the vector field in an attempted step.
    """

    solver: diffrax.AbstractSolver
    implicit: bool
    fields: int | None
    first_fields: int
    jacobians: int


def prefers_collocation(flow: AbstractFlow, size: int, rtol: Any) -> bool:
    """Whether "auto" takes collocation for a flow that it can integrate.

    The flow of order 1 is stable at every curvature; that of order 2 is not, and long steps would hide it.
    """
    loose = is_concrete(rtol) and float(rtol) >= LOOSE
    return isinstance(flow, PaperFlow) and flow.order == 1 and (size <= DENSE_LIMIT or loose)


def choose_method(solver: Any, dimension: int, step_size: Any) -> Method:
    """The diffrax method for "auto" or for a solver that the user chose; raise `ValueError` for anything else.

    For flows that collocation cannot integrate "auto" is Kvaerno5 up to `DENSE_LIMIT` parameters: the flows of adaptive
    optimizers are stiff, since filters forget within some iterations and the preconditioned curvature goes up to tens
    per iteration. Beyond the limit dense Jacobians cost more than what stiffness costs an explicit method: Tsit5.
    """
    if isinstance(solver, str) and solver == "auto":
        adaptive = dimension <= DENSE_LIMIT and step_size is None
        solver = diffrax.Kvaerno5(root_finder=CHORD) if adaptive else diffrax.Tsit5()
    if not isinstance(solver, diffrax.AbstractSolver):
        raise ValueError(
            f'solver must be "auto", "collocation" or a diffrax solver such as diffrax.Tsit5(), got {solver!r}'
        )
    if step_size is None and not isinstance(solver, diffrax.AbstractAdaptiveSolver):
        raise ValueError(
            f"{type(solver).__name__} estimates no error, so it needs a constant step_size=, in iterations"
        )
    if isinstance(solver, diffrax.AbstractImplicitSolver):
        every_stage = getattr(solver, "calculate_jacobian", None) == diffrax.CalculateJacobian.every_stage
        tableau: Any = getattr(solver, "tableau", None)
        tableau = tableau.tableaus[-1] if isinstance(tableau, diffrax.MultiButcherTableau) else tableau
        return Method(solver, True, None, 0, tableau.num_stages if every_stage else 1)
    if isinstance(solver, diffrax.AbstractERK) and isinstance(solver.tableau, diffrax.ButcherTableau):
        fsal = int(solver.tableau.fsal)
        return Method(solver, False, solver.tableau.num_stages - fsal, fsal, 0)
    return Method(solver, False, None, 0, 0)


def terms_of(solver: diffrax.AbstractSolver, field: Callable[[Any, Any, Any], Any]) -> diffrax.AbstractTerm:
    """A vector field as the solver takes it: solvers that split it (KenCarp, Sil3) get all of it as the implicit part.

    Both the filters and the preconditioned curvature are stiff, so nothing is left for the explicit part.
    """
    whole = diffrax.ODETerm(field)
    if get_origin(solver.term_structure) is not diffrax.MultiTerm:
        return whole
    return diffrax.MultiTerm(diffrax.ODETerm(lambda time, state, args: jax.tree.map(jnp.zeros_like, state)), whole)


def step_controller(steps: Any, rtol: Any, atol: Any, step_size: Any) -> tuple[diffrax.AbstractStepSizeController, Any]:
    """How steps are chosen, and the first of them, in iterations.

    Steps below ten units in the last place of the time end the run: it cannot go on.
    """
    if step_size is not None:
        return diffrax.ConstantStepSize(), step_size
    smallest = 10 * jnp.finfo(rtol.dtype).eps * steps
    return diffrax.PIDController(rtol=rtol, atol=atol, dtmin=smallest, force_dtmin=False), jnp.ones((), rtol.dtype)
