"""Small programs of jax, traced and then evaluated by NumPy.

To compile the linearized step of an optimizer takes seconds, to trace it a tenth of one, and to evaluate what was
traced a millisecond. The formulas are those that jax would compile, so the numbers are the same up to rounding.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

#: The parameter of a call in which its program is found, by version of jax and kind of call.
_INNER_PROGRAMS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2")


class NotEvaluableError(Exception):
    """A program has an operation that is not known here; compile it instead."""


def evaluate(program: Any, *inputs: Any) -> list[np.ndarray]:
    """The outputs of a program, by NumPy.

    Args:
        program: what `jax.make_jaxpr` returns.
        inputs: the leaves of its arguments, numbers or arrays.

    Raises:
        NotEvaluableError: if an operation of the program is not known here, or this JAX describes it in another way.
    """
    with np.errstate(all="ignore"):
        return _run(program.jaxpr, program.consts, [np.asarray(value) for value in inputs])


def _run(program: Any, constants: Sequence[Any], inputs: Sequence[Any]) -> list[np.ndarray]:
    values = dict(zip(program.constvars, map(np.asarray, constants), strict=True))
    values.update(zip(program.invars, inputs, strict=True))

    def read(atom: Any) -> Any:
        # A literal holds its value.
        return np.asarray(atom.val) if hasattr(atom, "val") else values[atom]

    for equation in program.eqns:
        outputs = _operate(equation.primitive.name, [read(atom) for atom in equation.invars], equation.params)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [np.asarray(read(atom)) for atom in program.outvars]


def _operate(name: str, inputs: list[Any], options: dict[str, Any]) -> list[Any]:
    """The outputs of one operation."""
    if name in _ELEMENTWISE:
        return [_ELEMENTWISE[name](*inputs)]
    if name in _STRUCTURAL:
        try:
            return _STRUCTURAL[name](inputs, options)
        except (AttributeError, KeyError) as unknown:
            raise NotEvaluableError(f"{name}, of which this JAX says no {unknown}") from unknown
    if name in _CALLS:
        inner = next(options[key] for key in _INNER_PROGRAMS if key in options)
        if hasattr(inner, "consts"):
            return _run(inner.jaxpr, inner.consts, inputs)
        return _run(inner, (), inputs)
    raise NotEvaluableError(name)


def _divide(numerator: Any, denominator: Any) -> Any:
    if numerator.dtype.kind in "iu":
        # Integers are divided towards zero by jax, and downwards by NumPy.
        raise NotEvaluableError("div of integers")
    return numerator / denominator


def _select(which: Any, *cases: Any) -> Any:
    if which.dtype != bool:
        raise NotEvaluableError("select_n by integers")
    return np.where(which, cases[1], cases[0])


def _broadcast(inputs: list[Any], options: dict[str, Any]) -> list[Any]:
    if len(inputs) > 1:
        raise NotEvaluableError("broadcast_in_dim of dynamic shape")
    spread = [1] * len(options["shape"])
    for axis, size in zip(options["broadcast_dimensions"], np.shape(inputs[0]), strict=True):
        spread[axis] = size
    return [np.broadcast_to(np.reshape(inputs[0], spread), options["shape"])]


def _reshape(inputs: list[Any], options: dict[str, Any]) -> list[Any]:
    if len(inputs) > 1 or options["dimensions"] is not None:
        raise NotEvaluableError("reshape with an order of axes")
    return [np.reshape(inputs[0], options["new_sizes"])]


def _iota(_: list[Any], options: dict[str, Any]) -> list[Any]:
    shape, axis = options["shape"], options["dimension"]
    counts = np.arange(shape[axis], dtype=options["dtype"])
    return [np.broadcast_to(counts.reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape)]


def _scan(inputs: list[Any], options: dict[str, Any]) -> list[Any]:
    constants, carry, rows = _parts_of_scan(inputs, options)
    carries = len(carry)
    program = options["jaxpr"]
    order = range(options["length"])
    outputs = []
    for index in reversed(order) if options["reverse"] else order:
        given = [*constants, *carry, *(row[index] for row in rows)]
        results = _run(program.jaxpr, program.consts, given)
        carry = results[:carries]
        outputs.append(results[carries:])
    if options["reverse"]:
        outputs.reverse()
    if not outputs:
        raise NotEvaluableError("scan of no length")
    return [*carry, *(np.stack(column) for column in zip(*outputs, strict=True))]


def _parts_of_scan(inputs: list[Any], options: dict[str, Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Constants, the carry, and what is scanned over."""
    if "ft_in" in options:
        # From JAX 0.12 on the three are subtrees of one tree.
        constants, carry, rows = options["ft_in"].update(inputs).unpack()
        return list(constants), list(carry), list(rows)
    first, last = options["num_consts"], options["num_consts"] + options["num_carry"]
    return inputs[:first], inputs[first:last], inputs[last:]


def _slice(inputs: list[Any], options: dict[str, Any]) -> list[Any]:
    strides = options["strides"] or [1] * np.ndim(inputs[0])
    cuts = zip(options["start_indices"], options["limit_indices"], strides, strict=True)
    return [inputs[0][tuple(slice(*cut) for cut in cuts)]]


#: By the name of the primitive, what it does entry by entry.
_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "add": np.add,
    "add_any": np.add,
    "and": np.bitwise_and,
    "copy": np.asarray,
    "copy_p": np.asarray,
    "div": _divide,
    "eq": np.equal,
    "exp": np.exp,
    "expm1": np.expm1,
    "ge": np.greater_equal,
    "gt": np.greater,
    "is_finite": np.isfinite,
    "le": np.less_equal,
    "log": np.log,
    "log1p": np.log1p,
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    "not": np.invert,
    "or": np.bitwise_or,
    "pow": np.power,
    "select_n": _select,
    "sign": np.sign,
    "sqrt": np.sqrt,
    "square": np.square,
    "stop_gradient": np.asarray,
    "sub": np.subtract,
}

#: By the name of the primitive, what it does with its inputs and options.
_STRUCTURAL: dict[str, Callable[[list[Any], dict[str, Any]], list[Any]]] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda inputs, options: [np.concatenate(inputs, axis=options["dimension"])],
    "convert_element_type": lambda inputs, options: [np.asarray(inputs[0]).astype(options["new_dtype"])],
    "integer_pow": lambda inputs, options: [inputs[0] ** options["y"]],
    "iota": _iota,
    "optimization_barrier": lambda inputs, _: inputs,
    "reduce_max": lambda inputs, options: [np.max(inputs[0], axis=tuple(options["axes"]))],
    "reduce_sum": lambda inputs, options: [np.sum(inputs[0], axis=tuple(options["axes"]))],
    "reshape": _reshape,
    "slice": _slice,
    "split": lambda inputs, options: np.split(inputs[0], np.cumsum(options["sizes"])[:-1], axis=options["axis"]),
    "squeeze": lambda inputs, options: [np.squeeze(inputs[0], axis=tuple(options["dimensions"]))],
    "stack": lambda inputs, options: [np.stack(inputs, axis=options["axis"])],
    "scan": _scan,
    "transpose": lambda inputs, options: [np.transpose(inputs[0], options["permutation"])],
}
