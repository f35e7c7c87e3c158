"""How a stage reads its filters: whether it divides by the root of one, and whether it is Adam's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamflow.optimizers.stage import AbstractStage, StageInput

#: An iteration at which stages are tried.
_ITERATION = 3


class _Unread(dict):
    """Averages that none may read."""

    def __getitem__(self, name: str) -> Any:
        raise LookupError(name)


def divides_by(stage: AbstractStage, name: str) -> bool:
    """Whether the direction is a ratio over the filter of that name, and nothing else, for vectors and matrices.

    AMSGrad's is over a maximum, RAdam's has a factor, and Muon's matrices are divided by nothing. What is looked at are
    the arrays that the stage hands on, not their numbers, so that this holds under jit too.
    """
    return all(_read(stage, name, shape) is not None for shape in ((2,), (2, 2)))


def decays_as_adam(stage: AbstractStage) -> tuple[Any, Any] | None:
    """The decays (β, γ) of a stage that `reads_as_adam`, γ = 0 without momentum; `None` for others.

    They are constant: `None` too where one is a function of the iteration.
    """
    if not reads_as_adam(stage):
        return None
    filters = {filter.name: filter.decay for filter in stage.filters()}
    pair = filters["second_moment"], filters.get("first_moment", 0.0)
    return None if any(callable(decay) for decay in pair) else pair


def reads_as_adam(stage: AbstractStage, name: str = "second_moment") -> bool:
    """Whether a stage's direction is m̂/√v̂, or x/√v̂ without a filter "first_moment", as Adam's and RMSprop's are.

    Args:
        stage: a stage.
        name: of the filter v: "second_moment", the average of x², or "mean_square", that of its mean over the tensor.
    """
    filters = {filter.name: filter for filter in stage.filters()}
    if not stage.only_averages or stage.uses_params or name not in filters or not divides_by(stage, name):
        return False
    own_start = any(filter.weight_sum is not None or filter.initial is not None for filter in filters.values())
    if own_start or not set(filters) <= {"first_moment", name}:
        return False
    value: Any = np.array([1.5, -2.0])
    try:
        with jax.ensure_compile_time_eval():
            inputs: dict[str, Any] = {
                key: np.asarray(filter.input(StageInput(value), _Unread())) for key, filter in filters.items()
            }
    except (LookupError, jax.errors.TracerArrayConversionError):
        return False
    square = value**2 if name == "second_moment" else np.full(2, np.mean(value**2))
    plain = np.array_equal(inputs.get("first_moment", value), value) and np.allclose(inputs[name], square)
    return bool(plain) and _read(stage, name, (2,)) == ("first_moment" if "first_moment" in filters else "input")


def _read(stage: AbstractStage, name: str, shape: tuple[int, ...]) -> str | None:
    """What is divided by the filter: "first_moment", "input" or "other"; `None` if the direction is no such ratio."""
    value, result, seen = jnp.ones(shape), jnp.ones(shape), []

    def ratio(numerator: Any, square: Any) -> Any:
        seen.append((numerator, square))
        return result

    averages = {filter.name: jnp.ones(shape) for filter in stage.filters()}
    place = value if stage.uses_params else None
    signal = StageInput(
        value, value if stage.uses_difference else None, place, value if stage.uses_gradient_change else None
    )
    direction = stage.direction(signal, averages, stage.initial_memory(value), _ITERATION, ratio)
    if name not in averages or direction is not result or len(seen) != 1 or seen[0][1] is not averages[name]:
        return None
    if seen[0][0] is averages.get("first_moment"):
        return "first_moment"
    return "input" if seen[0][0] is value else "other"
