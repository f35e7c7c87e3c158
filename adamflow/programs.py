"""Compiled programs: kept until there are too many, and compiled fast where what they compute is small."""

import functools
import json
import os
import re
import types
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.core
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir


def _unless_set(option: str, value: Any) -> Any:
    """The value of an option of XLA, or that of the user's `XLA_FLAGS`, which the options of a program go before."""
    given = re.findall(rf"--{option}=(true|false|\d+)", os.environ.get("XLA_FLAGS", ""), re.IGNORECASE)
    return json.loads(given[-1].lower()) if given else value


#: What makes XLA compile small programs in half the time, and run them as fast as without. Split into fewer modules
#: than XLA's 32 a small program is ready earlier, since each module has a cost of its own.
FAST_COMPILATION = {
    name: _unless_set(name, value)
    for name, value in {
        "xla_cpu_use_fusion_emitters": False,
        "xla_backend_optimization_level": 1,
        "xla_cpu_parallel_codegen_split_count": 4,
    }.items()
}

#: Up to so many numbers in what it computes with a program is small. On chains of 10 and 1000 parameters and on small
#: perceptrons runs then take as long; with 17,000 numbers they would take a fifth longer, with 100,000 a third.
SMALL = 5000

_programs: list["Program"] = []


class Program:
    """A function as `equinox.filter_jit` compiles it, in one of two ways.

    Attributes:
        function: what is compiled.
        compiles_fast: whether it may be compiled by `FAST_COMPILATION`, on CPUs and for small inputs.
        sized_by: of the arguments, what it computes with; `None` for all.
        xla_knows_options: whether this XLA knows those of `FAST_COMPILATION`, as far as was tried.
    """

    xla_knows_options: ClassVar[bool] = True

    def __init__(
        self,
        function: Callable[..., Any],
        compiles_fast: bool,
        sized_by: Callable[..., Any] | None,
        options: dict[str, Any],
    ):
        functools.update_wrapper(self, function)
        self.function = function
        self.compiles_fast, self.sized_by = compiles_fast, sized_by
        self._slow: Any = eqx.filter_jit(function, **options)
        self._options = options

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._is_fast(args, kwargs):
            return self._slow(*args, **kwargs)
        # Compilation comes first: where options are unknown nothing has run yet.
        return _with_known_options(lambda: self._fast(*args, **kwargs), lambda: self._slow(*args, **kwargs))

    @functools.cached_property
    def _fast(self) -> Any:
        compiled: Any = eqx.filter_jit
        return compiled(self.function, compiler_options=FAST_COMPILATION, **self._options)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else eqx.Partial(self, instance)

    def _is_fast(self, args: tuple, kwargs: dict[str, Any]) -> bool:
        if not (self.compiles_fast and self.xla_knows_options) or jax.default_backend() != "cpu":
            return False
        size = _size((args, kwargs))
        if self.sized_by is not None and np.isfinite(size):
            size = _size(self.sized_by(*args, **kwargs))
        return size <= SMALL and not _is_within_a_program()

    def release(self) -> None:
        """Forget what was compiled."""
        for compiled in self._kept():
            compiled.clear_cache()

    def count(self) -> int:
        """How many programs are kept, one for each shape of the inputs."""
        return sum(compiled._cache_size() for compiled in self._kept())

    def _kept(self) -> list[Any]:
        return [compiled._cached for compiled in (self._slow, vars(self).get("_fast")) if compiled is not None]


def program(
    function: Callable[..., Any] | None = None,
    *,
    compiles_fast: bool = True,
    sized_by: Callable[..., Any] | None = None,
    **options: Any,
) -> Callable[..., Any]:
    """`equinox.filter_jit` for a function of a loss, whose programs are released when there are too many.

    Args:
        function: what is compiled.
        compiles_fast: whether small programs are compiled fast; not where few inputs make much work.
        sized_by: of the arguments, what is computed with, if that is not all: not rows that are saved.
        options: of `equinox.filter_jit`.
    """
    if function is None:
        return functools.partial(program, compiles_fast=compiles_fast, sized_by=sized_by, **options)
    compiled = Program(function, compiles_fast, sized_by, options)
    _programs.append(compiled)
    return compiled


def release_programs() -> None:
    """Forget the compiled programs of all losses, and with them their memory."""
    for compiled in _programs:
        compiled.release()


def kept_programs() -> list["Program"]:
    """The functions of which some program is kept."""
    return [compiled for compiled in _programs if compiled.count()]


def compile_traced(traced: Any, lanes: int, device: Any) -> Any:
    """Compile what `jax.jit` has traced for so many lanes; fast, if it is for a CPU and each lane is small.

    A lane is as large as the largest array that is made, with saved rows, over the lanes, and all constants.
    """
    lowered, constants = traced.lower(), {}
    size = _largest(traced.jaxpr, constants) / lanes + sum(constants.values())
    if not (Program.xla_knows_options and device.platform == "cpu" and size <= SMALL):
        return lowered.compile()
    options: Any = FAST_COMPILATION
    return _with_known_options(lambda: lowered.compile(compiler_options=options), lowered.compile)


def _largest(closed: Any, constants: dict[int, int]) -> int:
    """How many numbers the largest array has that a closed jaxpr makes; its constants' are entered, by identity."""
    constants |= {id(constant): np.size(constant) for constant in getattr(closed, "consts", ())}
    largest = 0
    for equation in getattr(closed, "jaxpr", closed).eqns:
        sizes = [getattr(made.aval, "size", 0) for made in equation.outvars]
        for value in equation.params.values():
            inner = value if isinstance(value, tuple | list) else [value]
            sizes += [_largest(one, constants) for one in inner if hasattr(getattr(one, "jaxpr", one), "eqns")]
        largest = max([largest, *sizes])
    return largest


def _with_known_options(fast: Callable[[], Any], slow: Callable[[], Any]) -> Any:
    """What one of two compiled programs returns: that with options, unless this XLA does not know them.

    Nor can options be those of a part of a larger program, which one becomes that closes over a tracer unseen.
    """
    try:
        return fast()
    except ValueError as error:
        if "can only be passed to top-level" not in str(error):
            raise
        return slow()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
    Program.xla_knows_options = False
    return slow()


def _size(tree: Any) -> float:
    """How many numbers a pytree has, with those of what its functions close over; ∞ where they are traced or on no CPU.

    What a function closes over becomes constants of the program.
    """
    size = 0.0
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.core.Tracer):
            return np.inf
        if isinstance(leaf, jax.Array):
            size += leaf.size if all(device.platform == "cpu" for device in leaf.devices()) else np.inf
        elif isinstance(leaf, np.ndarray):
            size += leaf.size
        elif isinstance(leaf, functools.partial):
            size += _size((leaf.func, leaf.args, leaf.keywords))
        elif isinstance(leaf, types.MethodType):
            size += _size((leaf.__self__, leaf.__func__))
        elif isinstance(leaf, types.FunctionType):
            if leaf not in _sizes:
                # For a function that names itself.
                _sizes[leaf] = 0.0
                _sizes[leaf] = _size(_captured(leaf))
            size += _sizes[leaf]
    return size


#: Of each function when it was first seen: what it keeps later, such as a list of its arguments, does not matter.
_sizes: weakref.WeakKeyDictionary[types.FunctionType, float] = weakref.WeakKeyDictionary()


def _captured(function: types.FunctionType) -> list[Any]:
    """What a function closes over, its defaults, and the arrays and functions that it names."""
    known = [cell.cell_contents for cell in function.__closure__ or () if not _is_empty(cell)]
    known += [function.__defaults__, function.__kwdefaults__]
    named = [function.__globals__.get(name) for name in function.__code__.co_names]
    return known + [value for value in named if isinstance(value, jax.Array | np.ndarray | types.FunctionType)]


def _is_empty(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is None
    except ValueError:
        return True


def _is_within_a_program() -> bool:
    """Whether this is a part of a larger program, which has options of its own: then even a constant is a tracer."""
    return isinstance(_probe.bind(0.0), jax.core.Tracer)


_probe = Primitive("probe")
_probe.def_impl(lambda value: value)
_probe.def_abstract_eval(lambda value: value)
mlir.register_lowering(_probe, lambda context, value: [value])
batching.defvectorized(_probe)
