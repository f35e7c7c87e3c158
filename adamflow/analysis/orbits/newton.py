"""Fixed points and cycles of an optimizer's discrete map, by Newton's method, with their multipliers."""

import dataclasses
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
import optimistix
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Complex, Float
from numpy import ndarray

from adamflow.analysis.differentiability import NOT_DIFFERENTIABLE, lacks_derivative
from adamflow.checks import check_count, check_params, check_range, check_single, is_concrete
from adamflow.losses import admit_loss
from adamflow.optimizers import Optimizer, OptimizerState, check_constant, check_optimizer
from adamflow.optimizers.record import Record
from adamflow.programs import program
from adamflow.types import Loss, Params

#: The most entries of a state: Newton's method forms the Jacobian and solves with it.
SIZE_LIMIT = 1000
#: Iterations at which the map is compared with itself: it must not depend on them.
_ITERATIONS = (1, 2, 10, 1000, 1_000_000)

_NOT_AUTONOMOUS = (
    "{name!r} has {what} that depends on the iteration, so its map changes with n and has no periodic orbits; use a "
    "record with constant decays and stages"
)

_ONE = np.asarray(1)

Flat: TypeAlias = Float[Array, "size"]


class PeriodicOrbit(Record):
    """A fixed point (period 1) or cycle of an optimizer's map, or a failed search for one; `print` says which.

    Attributes:
        points: (params, OptimizerState) along the orbit, each leaf with a leading axis of length `period`: θₙ and the
            memory after n − 1, as `Trajectory.final_state` holds them. Of a failed search, where it ended (or started,
            if it ended in numbers that are not finite).
        multipliers: the eigenvalues of the Jacobian of the map composed over `period`, largest modulus first; NaN if
            the search failed or the map has no derivative on the orbit.
        stable: whether it converged and all moduli are below 1 − √(machine epsilon), so that neighbours approach it.
        residual: how far `period` steps take the first point from itself: the largest change of an entry, relative to
            the largest entry of its leaf, at the guess or in the orbit (for the parameters at least η).
        converged: whether the residual is at most the tolerance.
        period: the least period of what was found.
        searched: the period that was asked for, a multiple of `period`.
        reason: why an orbit that was found has no multipliers, in words; empty if it has.
    """

    points: tuple[Params, OptimizerState]
    multipliers: Complex[ndarray, "size"]
    stable: bool
    residual: float
    converged: bool
    period: int = eqx.field(static=True)
    searched: int = eqx.field(static=True)
    reason: str = eqx.field(static=True, default="")

    def __str__(self) -> str:
        if not self.converged:
            return (
                f"no orbit of period {self.searched}: Newton's method ended with residual {self.residual:.1e}. Give a "
                "guess closer to the orbit, such as the end of a run near it, with its OptimizerState."
            )
        kind = "fixed point" if self.period == 1 else f"cycle of period {self.period}"
        if self.period < self.searched:
            kind += f", found in a search for period {self.searched}"
        if self.reason:
            return f"{kind}, of unknown stability: {self.reason}. Residual {self.residual:.1e}"
        modulus = abs(self.multipliers[0])
        word = "stable" if self.stable else "unstable" if modulus > 1 else "not stable beyond rounding"
        return f"{kind}, {word}: largest multiplier {modulus:.8g} in modulus, residual {self.residual:.1e}"


def periodic_orbit(
    optimizer: Optimizer,
    loss: Loss,
    guess: Params | tuple[Params, OptimizerState],
    period: int,
    *,
    settle: int = 1000,
    tolerance: float | None = None,
    max_steps: int = 50,
    has_aux: bool = False,
) -> PeriodicOrbit:
    r"""A fixed point or cycle of the discrete map without bias correction, by Newton's method on θ and all memory.

    Bias correction fades as n grows, and only without it does the map stay the same; it is left out whatever the record
    says. Newton's method finds unstable orbits as well as stable ones. A solution that fewer steps bring back to itself
    (to 1000 times the tolerance) is reported with its least period.

    At ε = 0 Adam's map is not continuous at v = 0: beside it the direction is of size 1, however small the gradient. An
    orbit there, in a coordinate whose gradient is not 0 all around, has no multipliers, and `reason` says so.

    Args:
        optimizer: the record; its decays and stages must not depend on the iteration.
        loss: `loss(params)`, a real scalar with second derivatives.
        guess: (params, OptimizerState) near the orbit, as `Trajectory.final_state` holds them. Or params alone: the map
            then starts from them with all memory zero and runs for `settle` iterations, and Newton's method where that
            ends, which leads to attracting orbits, and to others only by luck.
        period: the number of steps after which the state is to return, at least 1. Fixed points are found at every
            period, if the guess is closer to them.
        settle: how long a guess without memory runs first.
        tolerance: of the residual, by default 1e6 times the arithmetic's epsilon (float64: 2e-10), 1e3 in float32.
        max_steps: the most Newton steps. Each takes `period` times as many Jacobian products as the state has entries.
        has_aux: whether the loss returns (value, aux); aux is left out.

    Returns:
        a `PeriodicOrbit`. If Newton's method fails, its `converged` and `stable` are `False`.

    Raises:
        ValueError: the map depends on the iteration; the state has over 1000 entries (`SIZE_LIMIT`); the guess is not
            finite; called under jit or vmap; an argument is out of range.

    Source: derivation of this project.

    Example:
        >>> import adamflow as af
        >>> optimizer, problem = af.adam(0.1, beta=0.9, gamma=0.1), af.problems.quadratic([1.0], start=[0.05])
        >>> print(af.analysis.periodic_orbit(optimizer, problem.loss, problem.params, 2))
        cycle of period 2, stable: largest multiplier 0.9... in modulus, residual ...
    """
    period, settle = check_count("period", period), check_count("settle", settle, low=0)
    max_steps = check_count("max_steps", max_steps)
    check_optimizer("periodic_orbit", optimizer)
    check_constant("periodic_orbit", optimizer, "take optimizer.at(iteration)", takes_clipping=True)
    if not is_concrete(optimizer, guess):
        raise ValueError("periodic_orbit works on concrete numbers only: call it outside of jit and vmap, in a loop")
    chain = _Chain(dataclasses.replace(optimizer, bias_correction=False), admit_loss(loss, has_aux))
    start = _start(chain, guess, settle)
    precision = jnp.finfo(_flat(start).dtype)
    limit = float(precision.eps) * (1e6 if precision.bits > 32 else 1e3) if tolerance is None else tolerance
    check_range("tolerance", check_single("tolerance", limit), 0, 1, low_open=True, high_open=True)
    accuracy = jnp.asarray(limit / 10, precision.dtype)
    scales, lowest = _scales(chain.optimizer, start), _lowest(chain.optimizer, start)
    found = _newton(chain, start, jnp.asarray(period), scales, lowest, accuracy, max_steps)
    end = found if bool(jnp.all(jnp.isfinite(found))) else _flat(start)
    return _record(chain, start, end, period, limit)


class _Chain(eqx.Module):
    """The map of an optimizer on its state (θ, memory)."""

    optimizer: Optimizer
    loss: Loss

    @program
    def follow(self, like: Any, flat: Flat, steps: Any, iteration: Any = _ONE) -> Flat:
        """The flattened state after some steps; `like` is a state of the same structure, with its constants."""
        # The number of steps is no constant of this program, so that one compilation serves every period.
        step = self.optimizer.step
        return _flat(jax.lax.fori_loop(0, steps, lambda _, s: step(self.loss, s, iteration), _state(like, flat)))


def _flat(state: Any) -> Flat:
    return ravel_pytree(eqx.filter(state, eqx.is_inexact_array))[0]


def _state(like: Any, flat: Flat) -> Any:
    moving, fixed = eqx.partition(like, eqx.is_inexact_array)
    return eqx.combine(ravel_pytree(moving)[1](flat), fixed)


@program(compiles_fast=False)
def _jacobian(chain: _Chain, like: Any, flat: Flat, steps: Array) -> Float[Array, "size size"]:
    return jax.jacfwd(lambda x: chain.follow(like, x, steps))(flat)


@program(compiles_fast=False)
def _newton(chain: _Chain, start: Any, period: Array, scales: Flat, lowest: Flat, tolerance: Any, steps: int) -> Flat:
    def change(scaled: Flat, _: None) -> Flat:
        return chain.follow(start, scales * scaled, period) / scales - scaled

    solver = optimistix.Newton(tolerance, tolerance, linear_solver=lineax.AutoLinearSolver(well_posed=True))
    # At a minimum v is 0, and a Newton step overshoots to negative ones, where the root is NaN.
    solution = optimistix.root_find(
        change, solver, _flat(start) / scales, options={"lower": lowest}, max_steps=steps, throw=False
    )
    return scales * solution.value


def _lowest(optimizer: Optimizer, state: Any) -> Flat:
    """0 for the entries of filters that cannot be negative, −∞ for all others."""
    lowest = jax.tree.map(lambda leaf: np.full_like(leaf, -np.inf), eqx.filter(state, eqx.is_inexact_array))
    for place, stage in enumerate(optimizer.stages):
        for filter in stage.filters():
            if filter.nonnegative:
                zeros = jax.tree.map(np.zeros_like, lowest[1].filters[place][filter.name])
                lowest[1].filters[place][filter.name] = zeros
    return _flat(lowest)


def _scales(optimizer: Optimizer, *states: Any) -> Flat:
    """For each entry the largest in its leaf in any of the states; for parameters at least η, and 1 where all are 0."""

    def largest(least: float, *leaves: Any) -> np.ndarray:
        size = np.max([least, *(np.max(np.abs(leaf), initial=0.0) for leaf in leaves)])
        return np.full(leaves[0].shape, size if size > 0 else 1.0, leaves[0].dtype)

    moving = [eqx.filter(state, eqx.is_inexact_array) for state in states]
    eta = float(optimizer.learning_rate)
    params = jax.tree.map(lambda *leaves: largest(eta, *leaves), *(state[0] for state in moving))
    memory = jax.tree.map(lambda *leaves: largest(0.0, *leaves), *(state[1] for state in moving))
    return _flat((params, memory))


def _start(chain: _Chain, guess: Any, settle: int) -> Any:
    """The state where Newton's method starts, or a `ValueError` that says why there is none."""
    if any(callable(filter.decay) for stage in chain.optimizer.stages for filter in stage.filters()):
        raise ValueError(_NOT_AUTONOMOUS.format(name=chain.optimizer.name, what="a decay"))
    has_memory = isinstance(guess, tuple) and len(guess) == 2 and isinstance(guess[1], OptimizerState)
    params = check_params(guess[0] if has_memory else guess, "guess")
    memory = guess[1] if has_memory else chain.optimizer.initial_state(params)
    state = jax.tree.map(jnp.asarray, (params, memory))
    size = _flat(state).size
    if size > SIZE_LIMIT:
        raise ValueError(
            f"the state has {size} entries, over the {SIZE_LIMIT} whose Jacobian Newton's method can handle; for a "
            "larger model run af.iterate until it settles, and take jacobian_spectrum there"
        )
    flat = _flat(state)
    if not has_memory:
        flat = chain.follow(state, flat, jnp.asarray(settle))
    images = [np.asarray(chain.follow(state, flat, _ONE, jnp.asarray(n))) for n in _ITERATIONS]
    if not np.all(np.isfinite(images[0])):
        raise ValueError("the guess, or its image under one step, is not finite; give one nearer to the orbit")
    if any(np.any(image != images[0]) for image in images):
        raise ValueError(_NOT_AUTONOMOUS.format(name=chain.optimizer.name, what="a stage"))
    return _state(state, flat)


def _record(chain: _Chain, start: Any, end: Flat, searched: int, tolerance: float) -> PeriodicOrbit:
    rows = [end]
    for _ in range(searched):
        rows.append(chain.follow(start, rows[-1], _ONE))
    states = [_state(start, row) for row in rows]
    scales, table = np.asarray(_scales(chain.optimizer, start, *states)), np.stack(rows)
    distances = np.max(np.abs(table - table[0]) / scales, axis=1)
    residual = float(distances[-1])
    converged, period, reason = residual <= tolerance, searched, ""
    multipliers = np.full(end.size, np.nan + 0j)
    if converged:
        close = [n for n in range(1, searched) if searched % n == 0 and distances[n] <= 1000 * tolerance]
        period = min(close, default=searched)
        if any(lacks_derivative(chain.optimizer, chain.loss, params, memory, 1) for params, memory in states[:period]):
            reason = NOT_DIFFERENTIABLE
        else:
            jacobian = _jacobian(chain, start, end, jnp.asarray(period))
            multipliers = np.linalg.eigvals(np.asarray(jacobian)).astype(complex)
            multipliers = multipliers[np.argsort(-np.abs(multipliers), kind="stable")]
    margin = float(jnp.finfo(end.dtype).eps) ** 0.5
    stable = converged and bool(np.all(np.abs(multipliers) < 1 - margin))
    points = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *states[:period])
    return PeriodicOrbit(points, multipliers, stable, residual, converged, period, searched, reason)
