"""Hyperparameters that are more than a number: functions of the iteration, and values that differ between leaves."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree
from typing_extensions import TypeAliasType

from adamflow.checks import check_range, describe, is_concrete
from adamflow.optimizers.hyperparameters import beside, is_zero, number
from adamflow.optimizers.record import Record
from adamflow.types import Numbers, Params

#: From the iteration n = 0, 1, …, which is a real number in a flow, to a number; every schedule of optax is one.
IterationFunction = TypeAliasType("IterationFunction", Callable[[Any], ArrayLike])
#: A pytree prefix of the parameters, at whose leaves are numbers or functions of the iteration. Dicts, lists and
#: modules are such trees, which no type can say.
Prefix = TypeAliasType("Prefix", PyTree)


class _Constant(Record):
    """A function that is a constant of programs: it is known by its identity."""

    function: Callable[..., Any] = eqx.field(static=True)

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __repr__(self) -> str:
        name = getattr(self.function, "__qualname__", type(self.function).__name__)
        return name.partition(".<locals>")[0]


def _as_function(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function as a part of a record; one that is a pytree, such as an `equinox.Module`, keeps its arrays."""
    leaves = jax.tree.leaves(function)
    is_tree = not (len(leaves) == 1 and leaves[0] is function)
    return function if is_tree else _Constant(function)


class Schedule(Record):
    """A hyperparameter that is a function of the iteration n = 0, 1, …; in a flow n is a real number.

    Attributes:
        function: n ↦ the number; every schedule of optax is one. A function is a constant of compiled programs, known
            by its identity; an `equinox.Module` keeps its arrays as inputs.
    """

    function: Callable[[Any], Any] = eqx.field(converter=_as_function)

    def __call__(self, iteration: Numbers) -> jax.Array:
        return jnp.asarray(self.function(iteration))

    def __repr__(self) -> str:
        return f"<function of the iteration: {self.function!r}>"


def _as_values(values: Prefix | Callable[[Any], Prefix]) -> Prefix | Callable[[Any], Prefix]:
    """A prefix of the parameters with numbers and schedules at its leaves, or a function that returns one."""
    if callable(values) and not isinstance(values, Schedule | _Constant):
        return _as_function(values)
    if isinstance(values, _Constant):
        return values
    return jax.tree.map(lambda value: _leaf_value("a value of by_leaf", value), values, is_leaf=_is_value)


def _is_value(value: Any) -> bool:
    return isinstance(value, Schedule) or callable(value)


def _leaf_value(name: str, value: Any) -> jax.Array | Schedule:
    if isinstance(value, Schedule):
        return value
    return Schedule(value) if callable(value) else number(name, value)


def _as_factor(times: Numbers | IterationFunction) -> Any:
    """The number or schedule by which all values of a `ByLeaf` are multiplied."""
    return _leaf_value("times", times)


class ByLeaf(Record):
    """A hyperparameter that differs between leaves of the parameters; made by `by_leaf`.

    Attributes:
        values: a pytree prefix of the parameters with numbers and schedules, or a function from the parameters to one
            with numbers.
        times: what all of them are multiplied by: a number or a `Schedule`.
    """

    values: Prefix | Callable[[Any], Prefix] = eqx.field(converter=_as_values)
    # A number or a `Schedule`. Most who read it know which, and would have to say so under a union.
    times: Any = eqx.field(converter=_as_factor, default=1.0)

    def prefix(self, params: Params) -> Prefix:
        """The prefix itself; a function is called with the shapes and types of the parameters."""
        if not callable(self.values):
            return self.values
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), params)
        prefix = self.values(shapes)
        if any(callable(value) for value in jax.tree.leaves(prefix)):
            raise ValueError(
                "the function of by_leaf must return numbers, got a function among them; give the schedule that all "
                "have in common as times="
            )
        return jax.tree.map(lambda value: number("what the function of by_leaf returns", value), prefix)


#: A number (or an array of them, for a batch of optimizers), a function of the iteration, a dict with a number or
#: function for each leaf or group of leaves, or what `by_leaf` returns: for `learning_rate` and `weight_decay`.
Setting = TypeAliasType("Setting", Numbers | IterationFunction | Mapping[Any, Prefix] | ByLeaf | Schedule)


def by_leaf(values: Prefix | Callable[[Any], Prefix], *, times: Numbers | IterationFunction = 1.0) -> ByLeaf:
    """A learning rate or weight decay that differs between the leaves of the parameters: parameter groups.

    Args:
        values: a pytree prefix of the parameters, at whose leaves are numbers or functions of the iteration; or a
            function from the parameters, of which it gets shapes and types, to a prefix with numbers.
        times: a number or a function of the iteration by which all are multiplied.

    Returns:
        a value for `learning_rate=` or `weight_decay=` of every optimizer. A dict there means `by_leaf` of it.

    Raises:
        ValueError: if a value is no number; once the parameters are known, if it is no prefix of them.

    Example:
        >>> import adamflow as af, jax, jax.numpy as jnp, optax
        >>> no_bias = af.by_leaf(lambda params: jax.tree.map(lambda leaf: 0.1 if leaf.ndim > 1 else 0.0, params))
        >>> rates = af.by_leaf({"in": 1.0, "out": 0.25}, times=optax.linear_schedule(0.0, 1e-2, 10))
        >>> optimizer = af.adamw(rates, weight_decay=no_bias)
        >>> params = {name: {"w": jnp.ones((2, 2)), "b": jnp.ones(2)} for name in ("in", "out")}
        >>> at_end = optimizer.at(10)
        >>> float(at_end.learning_rates(params)["out"]["w"]), float(at_end.weight_decays(params)["out"]["b"])
        (0.0025, 0.0)
    """
    return ByLeaf(values, times)


def setting(name: str, value: Any) -> jax.Array | ByLeaf | Schedule:
    """The converter of a field that may be a number, a schedule, or differ between leaves.

    Args:
        name: what it is called in the API.
        value: of the kinds of `Setting`.

    Raises:
        ValueError: if it is none of them.
    """
    if isinstance(value, ByLeaf | Schedule):
        return value
    if isinstance(value, Mapping):
        return ByLeaf(value)
    if callable(value):
        return Schedule(value)
    return number(name, value)


def setting_called(name: str) -> Callable[[Setting], Any]:
    """The converter of a field of that name."""

    def convert(value: Setting) -> jax.Array | ByLeaf | Schedule:
        return setting(name, value)

    return convert


def is_zero_setting(value: Any) -> bool:
    """Whether a setting is the number 0, and not a batch or tracer that might be."""
    return not isinstance(value, ByLeaf | Schedule) and is_zero("a setting", value)


def plain_rate(constructor: str, learning_rate: Any) -> jax.Array:
    """The learning rate of an optimizer whose other numbers depend on it: a number, or a `ValueError`."""
    if isinstance(setting("learning_rate", learning_rate), ByLeaf | Schedule):
        raise ValueError(
            f"learning_rate of {constructor} must be a number, since other numbers of it depend on it, got "
            f"{describe(learning_rate)}; where the proportion is to stay, give that of the largest rate, and then "
            "dataclasses.replace(optimizer, learning_rate=schedule)"
        )
    check_range("learning_rate", learning_rate, 0, float("inf"), low_open=True, high_open=True)
    return number("learning_rate", learning_rate)


def parts(value: Any) -> list[Any]:
    """The numbers and schedules of a setting; a function of the parameters is not called."""
    if not isinstance(value, ByLeaf):
        return [value]
    own = [] if callable(value.values) else jax.tree.leaves(value.values, is_leaf=_is_value)
    return [*own, value.times]


def check_setting(name: str, value: Any, *, low_open: bool, hint: str) -> None:
    """Raise `ValueError` unless numbers of a setting are in [0, inf), or (0, inf), and its schedules return numbers.

    Args:
        name: what it is called in the API.
        value: as `setting` returns it.
        low_open: whether 0 is excluded; the rate of some leaves, and of some iterations, may be 0.
        hint: what to do instead.
    """
    single = not isinstance(value, ByLeaf)
    if isinstance(value, ByLeaf) and len(parts(value)) == 1 and not callable(value.values):
        raise ValueError(f"{name} holds no number; give one for each leaf of the parameters, or for each group of them")
    for part in parts(value):
        if isinstance(part, Schedule):
            _check_schedule(name, part)
        else:
            check_range(name, part, 0, float("inf"), low_open=low_open and single, high_open=True, hint=hint)


def _check_schedule(name: str, schedule: Schedule) -> None:
    if _takes_trees(schedule.function):
        raise ValueError(
            f"{name} is a function of the iteration, but this one takes trees and returns trees; for a function of the "
            "parameters give af.by_leaf(function)"
        )
    try:
        shape: Any = jax.eval_shape(schedule, jax.ShapeDtypeStruct((), jnp.result_type(int)))
    except Exception as error:
        raise ValueError(
            f"{name} is a function, so it must take the iteration and return a number, but it raised "
            f"{type(error).__name__}: {str(error)[:120]}; for a function of the parameters give af.by_leaf(function)"
        ) from error
    kind = getattr(shape, "dtype", None)
    is_real = kind is not None and (jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer))
    if not is_real or shape.shape != ():
        raise ValueError(
            f"{name} is a function, so it must return a number for an iteration, but it returned {describe(shape)}; "
            "for a function of the parameters give af.by_leaf(function)"
        )


def _takes_trees(function: Any) -> bool:
    """Whether a function maps trees to trees, as those of the parameters do; schedules compute with their argument."""
    leaf = jax.ShapeDtypeStruct((2, 2), jnp.result_type(float))
    tree = {"first": leaf, "second": leaf}
    try:
        found = function(tree)
    except Exception:
        return False
    return isinstance(found, dict) and found.keys() == tree.keys()


def varies(value: Any) -> bool:
    """Whether a setting depends on the iteration."""
    return any(isinstance(part, Schedule) for part in parts(value))


def setting_at(name: str, value: Any, iteration: Numbers) -> Any:
    """A setting with its schedules evaluated at an iteration, or an array of iterations.

    Raises:
        ValueError: if a schedule returns a negative number, or none that is finite.
    """
    count = _as_count(iteration)

    def evaluated(part: Any) -> Any:
        if not isinstance(part, Schedule):
            return part
        found = number(name, part(count))
        if is_concrete(found):
            wrong = np.asarray(found)[~((np.asarray(found) >= 0) & np.isfinite(np.asarray(found)))]
            if wrong.size:
                raise ValueError(
                    f"{name} must lie in [0, inf) at every iteration, but its function returned {float(wrong.flat[0])} "
                    f"at iteration {describe(iteration)}"
                )
        return found

    if not varies(value):
        return value
    if not isinstance(value, ByLeaf):
        return evaluated(value)
    values = value.values if callable(value.values) else jax.tree.map(evaluated, value.values, is_leaf=_is_value)
    return ByLeaf(values, evaluated(value.times))


def _as_count(iteration: Any) -> Any:
    """A whole iteration as optax counts, in 32 bits, so that a schedule rounds as it does there; times as they are."""
    if not jnp.issubdtype(jnp.result_type(iteration), jnp.integer):
        return iteration
    return jnp.minimum(jnp.asarray(iteration), jnp.iinfo(jnp.int32).max).astype(jnp.int32)


def spread(name: str, value: Any, params: Params) -> Params:
    """A number for each leaf of the parameters, as a pytree like them.

    Args:
        name: what it is called in the API.
        value: a setting without schedules.
        params: the parameters, or a pytree with their structure and shapes.

    Raises:
        ValueError: if a schedule is left in it, or it is no prefix of the parameters.
    """
    if varies(value):
        raise ValueError(
            f"{name} is a function of the iteration, which is not known here; take optimizer.at(iteration), the "
            "optimizer with the numbers of that iteration"
        )
    if not isinstance(value, ByLeaf):
        return jax.tree.map(lambda leaf: value, params)
    prefix = value.prefix(params)
    for entry in jax.tree.leaves(prefix):
        check_range(name, entry, 0.0, float("inf"), high_open=True, hint="give a number for each leaf or group")
    try:
        return jax.tree.map(
            lambda entry, part: jax.tree.map(lambda leaf: beside(entry, leaf) * beside(value.times, leaf), part),
            prefix,
            params,
        )
    except ValueError as error:
        raise ValueError(f"{name} must be a number, or a pytree prefix of params: {error}") from None


def dtype_of(value: Any) -> Any:
    """The type of the numbers of a setting."""
    types = [
        jax.eval_shape(part, jax.ShapeDtypeStruct((), jnp.result_type(int))).dtype
        if isinstance(part, Schedule)
        else jnp.result_type(part)
        for part in parts(value)
    ]
    return jnp.promote_types(jnp.result_type(*types), jnp.float32)
