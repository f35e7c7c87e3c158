"""Checks of what a run is given, before anything is computed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamflow.checks import check_count, check_params, check_single, describe, is_concrete
from adamflow.flows import AbstractFlow
from adamflow.losses import check_loss
from adamflow.optimizers import Optimizer, OptimizerState
from adamflow.optimizers.settings import Schedule, parts
from adamflow.types import Loss, Params


def check_run(loss: Loss, params: Params, steps: Any, save_at: Any, first: int = 0) -> tuple[Params, int, np.ndarray]:
    """The parameters as arrays, the number of steps, and the iterations to save, or a `ValueError` that says why not.

    Args:
        loss: a function.
        params: any pytree of floating-point arrays.
        steps: the last iteration, after the first.
        save_at: increasing iterations in [first, steps], or `None` for every one.
        first: where the run starts.
    """
    check_loss(loss)
    steps = check_count("steps", steps, low=first + 1)
    return check_params(params), steps, check_save_at(save_at, steps, first)


def check_optimizer(optimizer: Any) -> None:
    """Raise `TypeError` or `ValueError` unless this is an optimizer whose numbers are single ones."""
    if not isinstance(optimizer, Optimizer):
        hint = ""
        if isinstance(optimizer, AbstractFlow):
            hint = "; for a flow call af.solve, or take its `optimizer`"
        raise TypeError(f"optimizer must be a record such as af.adam(1e-3), got {describe(optimizer)}{hint}")
    numbers: list[tuple[str, Any]] = [("epsilon", optimizer.epsilon)]
    for name in ("learning_rate", "weight_decay"):
        numbers += [(name, part) for part in parts(getattr(optimizer, name)) if not isinstance(part, Schedule)]
    for name in ("l2", "clip_norm", "clip_value"):
        if getattr(optimizer, name) is not None:
            numbers.append((name, getattr(optimizer, name)))
    for index, stage in enumerate(optimizer.stages):
        for filter in stage.filters():
            decay = jax.eval_shape(filter.decay, 1) if callable(filter.decay) else filter.decay
            numbers.append((f"the decay of {filter.name!r} in stage {index}", decay))
    for name, value in numbers:
        if jnp.shape(value) != ():
            raise ValueError(
                f"{name} must be a single number in a run, got an array of shape {jnp.shape(value)}, one number for "
                "each run of a batch; run the batch by equinox.filter_vmap or jax.vmap over the numbers"
            )


def check_flow(flow: Any) -> None:
    """Raise `TypeError` or `ValueError` unless this is a flow of an optimizer whose numbers are single ones."""
    if not isinstance(flow, AbstractFlow):
        hint = "such as af.GouldTanakaFlow(optimizer)"
        if isinstance(flow, Optimizer):
            hint = "of this optimizer, such as af.GouldTanakaFlow(optimizer), or call af.iterate for its discrete run"
        elif hasattr(flow, "drift") and hasattr(flow, "spread"):
            hint = (
                "without noise; for a stochastic one call flow.solve(loss, params, steps, key=..., paths=...), which "
                "returns an Ensemble of paths"
            )
        raise TypeError(f"flow must be a flow {hint}, got {describe(flow)}")
    check_optimizer(flow.optimizer)


def check_observe(observe: Any) -> None:
    """Raise `ValueError` unless this is a function or `None`."""
    if observe is not None and not callable(observe):
        raise ValueError(f"observe must be a function of a Snapshot, got {type(observe).__name__}")


def check_start(start: Any, optimizer: Optimizer, params: Params) -> int:
    """The iteration of the parameters that a run is given.

    Raises:
        TypeError: if `start` is not "auto", `None`, a number of iterations, or a pair of an iteration and an
            `OptimizerState`.
        ValueError: if the number is negative, or the state is that of another optimizer or of other parameters.
    """
    if start is None or (isinstance(start, str) and start == "auto"):
        return 0
    if isinstance(start, int | np.integer) and not isinstance(start, bool):
        check_count("start", start, low=0)
        return 0
    how = "(n₀, memory): with iterates = af.iterate(..., steps=n₀) give params, memory = iterates.final_state"
    if not isinstance(start, tuple) or len(start) != 2:
        raise TypeError(
            f'start must be "auto", None, the number of iterations that the optimizer makes first, or {how}, got '
            f"{describe(start)}"
        )
    first, memory = start
    first = check_count("the iteration of start", first, low=0)
    if not isinstance(memory, OptimizerState):
        raise TypeError(f"the memory of start must be an OptimizerState, {how}, got {describe(memory)}")
    expected = jax.eval_shape(optimizer.initial_state, check_params(params))
    forms = [jax.tree.map(lambda leaf: jnp.shape(leaf), state) for state in (expected, memory)]
    if jax.tree.structure(expected) != jax.tree.structure(memory) or forms[0] != forms[1]:
        raise ValueError(
            f"the memory of start must be that of {optimizer.name!r} with parameters like `params`, {how}; got one of "
            "other filters or shapes"
        )
    return first


def check_restart(start: Any, optimizer: Optimizer, params: Params) -> tuple[int, OptimizerState | None]:
    """The iteration and the state from which a discrete run goes on: 0 and `None` for one from the beginning.

    Raises:
        TypeError: if `start` is neither `None` nor a pair of an iteration and an `OptimizerState`.
        ValueError: if the state is that of another optimizer or of other parameters.
    """
    if start is None:
        return 0, None
    if not isinstance(start, tuple):
        raise TypeError(
            f"start must be None or (n₀, memory), as in params, start = run.restart, got {describe(start)}; iterate "
            "has no first iterations that another method makes"
        )
    first = check_start(start, optimizer, params)
    like = jax.eval_shape(optimizer.initial_state, check_params(params))
    return first, jax.tree.map(lambda leaf, wanted: jnp.asarray(leaf, wanted.dtype), start[1], like)


def check_first_iterations(count: int, steps: int, saved: np.ndarray) -> None:
    """Raise `ValueError` unless a flow can start behind `count` iterations: before the end, with whole times so far.

    Args:
        count: what the user gave as `start`.
        steps: the last iteration.
        saved: the iterations to save.
    """
    if count >= steps:
        raise ValueError(f"start must lie before the last iteration, steps={steps}, got {count}")
    early = saved[saved < count]
    fractional = early[early != np.round(early)]
    if fractional.size:
        raise ValueError(
            f"save_at must hold whole iterations before start={count}, which the optimizer makes, got "
            f"{fractional[0]:g}; give an earlier start, or start=None"
        )


def _as_numpy(values: Any) -> np.ndarray | None:
    try:
        return np.asarray(values)
    except (TypeError, ValueError):
        return None


def _holds_bools(values: Any) -> bool:
    return isinstance(values, list | tuple) and any(isinstance(value, bool | np.bool_) for value in values)


def check_save_at(save_at: Any, steps: int, first: int = 0) -> np.ndarray:
    """The iterations to save as increasing floats in [first, steps]; raise `ValueError` if they are not."""
    if save_at is None:
        return np.arange(first, steps + 1, dtype=float)
    if not is_concrete(save_at):
        raise ValueError("save_at must be known before the run is compiled, got a traced value; pass it as a constant")
    numbers = _as_numpy(save_at)
    if numbers is None or numbers.dtype.kind not in "iuf" or _holds_bools(save_at):
        raise ValueError(f"save_at must be a sequence of iterations, as numbers, got {describe(save_at)}")
    if numbers.ndim == 0:
        raise ValueError(
            f"save_at must be a sequence of iterations, got {describe(save_at)}; write [n] to save iteration n alone, "
            "or range(0, steps + 1, n) to save every n-th"
        )
    iterations = numbers.astype(float)
    if iterations.ndim != 1 or iterations.size == 0:
        raise ValueError(f"save_at must be a sequence of at least one iteration, got shape {iterations.shape}")
    outside = iterations[~((iterations >= first) & (iterations <= steps))]
    if outside.size:
        raise ValueError(f"save_at must lie in [{first}, steps={steps}], got {outside[0]:g}")
    if np.any(np.diff(iterations) <= 0):
        raise ValueError("save_at must increase strictly; sort it and drop what stands twice")
    return iterations


def check_resolution(iterations: np.ndarray, dtype: Any) -> None:
    """Raise `ValueError` if two of the iterations to save are one and the same time in the arithmetic of a flow."""
    same = np.flatnonzero(np.diff(iterations.astype(dtype)) == 0)
    if same.size:
        first, second = iterations[same[0]], iterations[same[0] + 1]
        raise ValueError(
            f"save_at must hold times that {dtype} tells apart, which the parameters have and time with them, got "
            f"{first!s} and {second!s}; save fewer, or take float64 parameters with jax_enable_x64"
        )


def smallest_tolerance(params: Params) -> float:
    """The smallest rtol that the arithmetic of the parameters can resolve: 9.5e-7 in single precision."""
    return 8 * max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(params))


def check_tolerance(rtol: Any, params: Params) -> Any:
    """Return the tolerance, or raise `ValueError` unless the arithmetic of the parameters can reach it."""
    rtol = check_single("rtol", rtol)
    if not is_concrete(rtol):
        return rtol
    smallest = smallest_tolerance(params)
    if not smallest <= float(rtol) < 1:
        hint = "enable float64 with jax.config.update('jax_enable_x64', True)" if smallest > 1e-9 else "loosen it"
        raise ValueError(
            f"rtol must lie in [{smallest:.1e}, 1), which the arithmetic of the parameters can resolve, "
            f"got {float(rtol):g}; {hint}"
        )
    return rtol
