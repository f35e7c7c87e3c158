"""What a function of one point returns: numbers and arrays by name, and how the lane ended."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamflow.checks import describe, is_concrete
from adamflow.runs import OUTCOMES, Outcome

#: How a lane can end: as a run does, or because its function raised, its process died, or the sweep ended before.
LANE_OUTCOMES = (*OUTCOMES, "raised", "crashed", "not_run")
COMPLETED, RAISED, CRASHED, NOT_RUN = (LANE_OUTCOMES.index(n) for n in ("completed", "raised", "crashed", "not_run"))

OUTCOME_ATTRIBUTES = {
    "long_name": "how the lane ended",
    "flag_values": list(range(len(LANE_OUTCOMES))),
    "flag_meanings": " ".join(LANE_OUTCOMES),
}


@dataclasses.dataclass(frozen=True)
class Variable:
    """One result: its own dimensions, its shape along them, its type of numbers, and its attributes."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    attrs: dict[str, Any]

    @property
    def fill(self) -> Any:
        """What stands where a lane has no result: NaN, or zero where the type has none."""
        return np.nan if np.dtype(self.dtype).kind in "fc" else np.zeros((), self.dtype)[()]


#: The results by name. "outcome" is not among them: every sweep has it.
Schema = dict[str, Variable]


def outcome_variable() -> Variable:
    """The code of `LANE_OUTCOMES` in which each lane ended."""
    return Variable((), (), "int8", OUTCOME_ATTRIBUTES)


def separate(returned: Any, taken: Collection[str]) -> tuple[dict[str, Any], Schema]:
    """The arrays of what a function returned, "outcome" among them, and what is known of them without their numbers.

    Args:
        returned: a mapping from names to a number or array, or (dims, array), or (dims, array, attributes); or to an
            `Outcome`, which says how the lane ended.
        taken: names that the grid has.

    Raises:
        ValueError: if it is no such mapping, or a name or value cannot be stored.
    """
    if not isinstance(returned, Mapping) or not returned:
        raise ValueError(f"run must return numbers or arrays by name, as in {{'loss': loss}}, got {describe(returned)}")
    arrays: dict[str, Any] = {"outcome": np.int8(COMPLETED)}
    schema: Schema = {}
    for name, value in returned.items():
        if not isinstance(name, str) or not name.isidentifier() or name in taken:
            reason = "the grid has that name" if name in taken else "it is no name of Python"
            raise ValueError(f"run returns a result {name!r}, but {reason}; call it otherwise")
        if isinstance(value, Outcome):
            arrays["outcome"] = _as_code(value)
            name, value = "last_valid_iteration", ((), value.last_valid_iteration, _LAST_VALID)
        elif name == "outcome":
            raise ValueError(f"run returns 'outcome' as {describe(value)}; return the run's own, as in run.outcome")
        dims, array, attrs = _parts(name, value)
        arrays[name] = array
        schema[name] = Variable(dims, tuple(array.shape), np.dtype(array.dtype).name, attrs)
    return arrays, schema


_LAST_VALID = {"long_name": "last iteration up to which the run is good", "units": "iterations"}


def _as_code(outcome: Outcome) -> Any:
    if jnp.ndim(outcome.code) != 0:
        raise ValueError(f"run must return the outcome of one run, got one of shape {jnp.shape(outcome.code)}")
    return np.int8(outcome.code) if is_concrete(outcome.code) else outcome.code.astype(jnp.int8)


def _parts(name: str, value: Any) -> tuple[tuple[str, ...], Any, dict[str, Any]]:
    dims, attrs = None, {}
    if isinstance(value, tuple) and len(value) in (2, 3) and _are_dims(value[0]):
        dims, attrs = value[0], dict(value[2]) if len(value) == 3 else {}
        value = value[1]
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) or np.dtype(array.dtype).kind not in "biufc":
        raise ValueError(f"run returns {name!r} as {describe(value)}; a sweep keeps numbers and arrays of numbers")
    if dims is None:
        dims = [f"{name}_dim_{place}" for place in range(array.ndim)]
    dims = (dims,) if isinstance(dims, str) else tuple(dims)
    if len(dims) != array.ndim:
        raise ValueError(
            f"run returns {name!r} with dims {dims}, but its shape is {array.shape}: one dim for each axis"
        )
    return dims, array, attrs


def _are_dims(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, tuple | list) and all(isinstance(dim, str) for dim in value))


def check_alike(schema: Schema, found: Schema, here: str, first: str) -> None:
    """Raise `ValueError` unless a lane's results have the names, shapes and types of the first lane's.

    Args:
        schema: of the first lane.
        found: of this lane.
        here, first: the points, in words.
    """
    if set(schema) != set(found):
        name = min(set(schema) ^ set(found))
        has, lacks = (first, here) if name in schema else (here, first)
        raise ValueError(f"run returns {name!r} at {has}, but not at {lacks}; all lanes return the same names")
    for name, variable in schema.items():
        other = found[name]
        if other.shape != variable.shape:
            raise ValueError(
                f"run returns {name!r} with shape {other.shape} at {here}, but {variable.shape} at {first}; pad it to "
                "one shape, with NaN for example"
            )
        if not np.can_cast(other.dtype, variable.dtype, "same_kind"):
            raise ValueError(
                f"run returns {name!r} as {other.dtype} at {here}, but as {variable.dtype} at {first}; return floats "
                "at all lanes"
            )


def check_dims(schema: Schema, sizes: Mapping[str, int]) -> None:
    """Raise `ValueError` if a result's dimension has the name of one of the grid, or two lengths."""
    known = dict(sizes)
    for name, variable in schema.items():
        for dim, size in zip(variable.dims, variable.shape, strict=True):
            if dim in sizes:
                raise ValueError(f"run returns {name!r} along {dim!r}, which is a dimension of the grid; rename it")
            if known.setdefault(dim, size) != size:
                raise ValueError(f"run returns {name!r} with {size} along {dim!r}, where others have {known[dim]}")


def to_json(schema: Schema) -> dict[str, Any]:
    """A schema as json."""
    return {name: dataclasses.asdict(variable) for name, variable in schema.items()}


def from_json(content: Mapping[str, Any]) -> Schema:
    """The schema that `to_json` was given."""
    return {name: Variable(tuple(v["dims"]), tuple(v["shape"]), v["dtype"], v["attrs"]) for name, v in content.items()}
