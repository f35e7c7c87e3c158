"""Flows of random problems by the stiff solvers of SciPy, in the coordinates that implicit solvers follow."""

from typing import Any

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


def run_scipy(problem: RandomProblem, solver: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Rows of θ, shape (saved, d), fewer if it failed; outcome, gradients and Jacobians."""
    flow, loss, start = problem.flow, problem.loss, jnp.asarray(problem.params)
    counts = {"gradients": 1, "jacobians": 0}

    def field(time: float, vector: np.ndarray) -> np.ndarray:
        counts["gradients"] += 1
        if counts["gradients"] > MOST_FIELDS:
            raise _StepLimitError
        return np.asarray(_field(flow, loss, start, time, vector))

    def jacobian(time: float, vector: np.ndarray) -> np.ndarray:
        counts["jacobians"] += 1
        return np.asarray(_jacobian(flow, loss, start, time, vector))

    options: dict[str, Any] = {"t_eval": problem.save_at, "rtol": problem.rtol, "atol": problem.rtol / 100}
    initial = np.asarray(_initial(flow, loss, start))
    try:
        with np.errstate(all="ignore"):
            found = solve_ivp(field, (0, problem.steps), initial, SCIPY[solver], jac=jacobian, **options)
    except _StepLimitError:
        return np.zeros((0, start.size)), counts | {"outcome": "step_limit"}
    except ValueError as error:
        # SciPy's linear algebra refuses what is not finite.
        return np.zeros((0, start.size)), counts | {"outcome": f"ValueError: {error}"}
    rows = np.asarray(_rows(flow, loss, start, found.y.T)) if found.y.size else np.zeros((0, start.size))
    return rows, counts | {"outcome": "completed" if found.success else "stalled"}


def _coordinates(flow: Any, loss: Any, start: jax.Array) -> tuple[Any, jax.Array, Any]:
    """The coordinates, the initial state in them as a vector, and what makes a state of a vector."""
    state = flow.initial_state(loss, start)
    coordinates = flow.coordinates(state)
    return coordinates, *ravel_pytree(coordinates.encode(state))


@eqx.filter_jit
def _initial(flow: Any, loss: Any, start: jax.Array) -> jax.Array:
    return _coordinates(flow, loss, start)[1]


def _vector_field(flow: Any, loss: Any, start: jax.Array, time: Any, vector: Any) -> jax.Array:
    coordinates, _, unravel = _coordinates(flow, loss, start)
    return ravel_pytree(coordinates.field(flow, loss, time, unravel(vector)))[0]


_field = eqx.filter_jit(_vector_field)


@eqx.filter_jit
def _jacobian(flow: Any, loss: Any, start: jax.Array, time: Any, vector: Any) -> jax.Array:
    return jax.jacfwd(lambda vector: _vector_field(flow, loss, start, time, vector))(jnp.asarray(vector))


@eqx.filter_jit
def _rows(flow: Any, loss: Any, start: jax.Array, vectors: Any) -> jax.Array:
    coordinates, _, unravel = _coordinates(flow, loss, start)
    return jax.vmap(lambda vector: flow.params(coordinates.decode(unravel(vector))))(vectors)
