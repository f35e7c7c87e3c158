"""Flows of random problems by the stiff solvers of SciPy, in the coordinates that implicit solvers follow."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from random_problems import RandomProblem
from scipy.integrate import solve_ivp

#: By name: what `solve_ivp` calls it.
SCIPY = {"radau": "Radau", "bdf": "BDF", "lsoda": "LSODA"}

#: Vector fields after which a run is given up.
MOST_FIELDS = 100_000


class _StepLimitError(Exception):
    """A run has used up its vector fields."""


class _Programs(NamedTuple):
    """Compiled functions of the arrays of a problem, and of (time, vector) or rows of vectors."""

    initial: Callable[..., jax.Array]
    field: Callable[..., jax.Array]
    jacobian: Callable[..., jax.Array]
    rows: Callable[..., jax.Array]


def run_scipy(problem: RandomProblem, solver: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Rows of θ, shape (saved, d), fewer if it failed; outcome, gradients and Jacobians."""
    arrays, static = eqx.partition((problem.flow, problem.loss, problem.params), eqx.is_array)
    leaves, form = jax.tree.flatten(arrays)
    static_leaves, static_form = jax.tree.flatten(static)
    programs = _programs(form, static_form, tuple(static_leaves))
    counts = {"gradients": 1, "jacobians": 0}

    def field(time: float, vector: np.ndarray) -> np.ndarray:
        counts["gradients"] += 1
        if counts["gradients"] > MOST_FIELDS:
            raise _StepLimitError
        return np.asarray(programs.field(leaves, float(time), vector))

    def jacobian(time: float, vector: np.ndarray) -> np.ndarray:
        counts["jacobians"] += 1
        return np.asarray(programs.jacobian(leaves, float(time), vector))

    options: dict[str, Any] = {"t_eval": problem.save_at, "rtol": problem.rtol, "atol": problem.rtol / 100}
    initial, nothing = np.asarray(programs.initial(leaves)), np.zeros((0, problem.params.size))
    try:
        with np.errstate(all="ignore"):
            found = solve_ivp(field, (0, problem.steps), initial, SCIPY[solver], jac=jacobian, **options)
    except _StepLimitError:
        return nothing, counts | {"outcome": "max_steps_reached"}
    except ValueError as error:
        # SciPy's linear algebra refuses what is not finite.
        return nothing, counts | {"outcome": f"ValueError: {error}"}
    rows = np.asarray(programs.rows(leaves, found.y.T)) if np.size(found.y) else nothing
    return rows, counts | {"outcome": "completed" if found.success else "min_step_reached"}


@functools.cache
def _programs(form: Any, static_form: Any, static_leaves: tuple) -> _Programs:
    """Programs for all problems of a shape. A call of `eqx.filter_jit` would take several times as long as a field."""

    def parts(leaves: list) -> tuple[Any, ...]:
        """Flow, loss, coordinates, the initial state in them as a vector, and what makes a state of a vector."""
        arrays, static = jax.tree.unflatten(form, leaves), jax.tree.unflatten(static_form, static_leaves)
        flow, loss, start = eqx.combine(arrays, static)
        state = flow.initial_state(loss, start)
        coordinates = flow.coordinates(state)
        return flow, loss, coordinates, *ravel_pytree(coordinates.encode(state))

    def initial(leaves: list) -> jax.Array:
        return parts(leaves)[3]

    def field(leaves: list, time: Any, vector: Any) -> jax.Array:
        flow, loss, coordinates, _, unravel = parts(leaves)
        return ravel_pytree(coordinates.field(flow, loss, time, unravel(vector)))[0]

    def jacobian(leaves: list, time: Any, vector: Any) -> jax.Array:
        return jax.jacfwd(lambda vector: field(leaves, time, vector))(jnp.asarray(vector))

    def rows(leaves: list, vectors: Any) -> jax.Array:
        flow, _, coordinates, _, unravel = parts(leaves)
        return jax.vmap(lambda vector: flow.params(coordinates.decode(unravel(vector))))(vectors)

    return _Programs(*map(jax.jit, (initial, field, jacobian, rows)))
