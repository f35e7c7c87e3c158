"""Which diffrax solver integrates a flow, and how it steps."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, get_origin

import diffrax
import jax
import jax.numpy as jnp
import optimistix

from adamflow.flows import AbstractFlow, GouldTanakaFlow, InterpolatingFlow, ModifiedFlow
from adamflow.runs.trajectory import namespace_for

#: The root finder for implicit diffrax solvers: chord iteration with the tolerances of the step size control. Their own
#: default takes tens of times the steps on flows.
CHORD_ROOT_FINDER = diffrax.with_stepsize_controller_tols(optimistix.Chord)()

#: The largest number of parameters for which "auto" takes an implicit solver with dense Jacobians.
DENSE_LIMIT = 200

#: What flows with a finite edge are integrated by, and at which share of rtol: errors of single steps add up there.
EXPLICIT_SHARE_OF_RTOL = 0.25


#: The default absolute tolerance over the relative one, for problems of at least this size.
_ATOL_OVER_RTOL = 0.01


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


def has_finite_edge(flow: AbstractFlow) -> bool:
    r"""Whether a flow of [GT] can become unstable beyond some curvature, so that no step may damp what should grow.

    With v kept constant, order 1 with one stage obeys $\lambda^2 + a\lambda + a\eta s = 0$ at preconditioned curvature
    s, which is stable for every s > 0. Order 2 and each further stage add a lag, and with it, but for some of them
    without momentum, an edge (`af.analysis.critical_curvature` has it).
    """
    return isinstance(flow, GouldTanakaFlow) and (flow.order != 1 or len(flow.optimizer.stages) > 1)


def choose_method(solver: Any, flow: AbstractFlow, dimension: int, step_size: Any) -> Method:
    """The diffrax method for "auto" or for a solver that the user chose; raise `ValueError` for anything else.

    For what collocation cannot integrate, or not as well, "auto" is

    - Dopri8 for flows with a finite edge: implicit methods damp in long steps what should grow (bench/accuracy.py has
      the errors of each);
    - for others Kvaerno5 up to `DENSE_LIMIT` parameters, since filters forget within some iterations and the
      preconditioned curvature goes up to tens per iteration;
    - beyond, where dense Jacobians cost more than what stiffness costs an explicit method, Dopri8 for smooth flows of
      three kinds, on which Tsit5 was off by up to 150 times rtol (perceptrons, docs/accuracy.md), and Tsit5 for others.
    """
    if isinstance(solver, str) and solver == "auto":
        solver = _automatic(flow, dimension, step_size)
    if not isinstance(solver, diffrax.AbstractSolver):
        given: Any = solver
        is_class = inspect.isclass(given) and issubclass(given, diffrax.AbstractSolver)
        hint = f"; call it: {given.__name__}()" if is_class else ""
        raise ValueError(
            f'solver must be "auto", "collocation" or a diffrax solver such as diffrax.Tsit5(), got {solver!r}{hint}'
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


def _automatic(flow: AbstractFlow, dimension: int, step_size: Any) -> diffrax.AbstractSolver:
    if step_size is not None:
        return diffrax.Tsit5()
    if has_finite_edge(flow):
        return diffrax.Dopri8()
    if dimension <= DENSE_LIMIT:
        return diffrax.Kvaerno5(root_finder=CHORD_ROOT_FINDER)
    measured = isinstance(flow, GouldTanakaFlow | ModifiedFlow | InterpolatingFlow)
    is_smooth = measured and not any(stage.takes_signs for stage in flow.optimizer.stages)
    return diffrax.Dopri8() if is_smooth else diffrax.Tsit5()


def tolerances_of(solver: Any, flow: AbstractFlow, rtol: Any, atol: Any, epsilon: float) -> tuple[Any, Any]:
    """The rtol and atol that a solver gets for those that the user asked for.

    Args:
        solver: what the user asked for.
        flow: to be integrated.
        rtol, atol: what the user asked for, or the default.
        epsilon: the precision of the arithmetic.
    """
    if isinstance(solver, str) and solver == "auto" and has_finite_edge(flow):
        return namespace_for(rtol).maximum(EXPLICIT_SHARE_OF_RTOL * rtol, 8 * epsilon), EXPLICIT_SHARE_OF_RTOL * atol
    return rtol, atol


def default_atol(rtol: Any, size: Any) -> Any:
    """The absolute tolerance for a problem of this size: rtol/100, or less where the problem is small.

    Below that size the absolute tolerance would decide alone, and a step could go anywhere.
    """
    xp = namespace_for(rtol, size)
    return rtol * xp.where(size > 0, xp.minimum(_ATOL_OVER_RTOL, size), _ATOL_OVER_RTOL)


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
