"""Compiled programs: kept until there are too many, and compiled fast where what they compute is small."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np

#: What makes XLA compile small programs in half the time, and run them as fast as without.
FAST_COMPILATION = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1}

#: Up to so many numbers in what it computes with a program is small. On chains of 10 and 1000 parameters and on small
#: perceptrons runs then take as long; with 17,000 numbers they would take a fifth longer, with 100,000 a third.
SMALL = 5000

_programs: list["Program"] = []


class Program:
    """A function as `equinox.filter_jit` compiles it, in one of two ways.

    Attributes:
        function: what is compiled.
        compiles_fast: whether it may be compiled by `FAST_COMPILATION`, on CPUs and for small inputs.
        sized_by: of the arguments, what it computes with.
    """

    def __init__(
        self, function: Callable[..., Any], compiles_fast: bool, sized_by: Callable[..., Any], options: dict[str, Any]
    ):
        functools.update_wrapper(self, function)
        self.compiles_fast, self.sized_by = compiles_fast, sized_by
        self._slow = eqx.filter_jit(function, **options)
        self._fast = eqx.filter_jit(function, compiler_options=FAST_COMPILATION, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not (self.compiles_fast and _is_alone((args, kwargs)) and _is_small(self.sized_by(*args, **kwargs))):
            return self._slow(*args, **kwargs)
        try:
            return self._fast(*args, **kwargs)
        except (ValueError, jax.errors.JaxRuntimeError) as error:
            # This XLA does not know one of the options, or the function closes over a tracer and is part of a larger
            # program, which has its own. Nothing has run yet.
            is_nested = "compiler_options" in str(error)
            if not is_nested and "compile option" not in str(error):
                raise
            self.compiles_fast = is_nested
        return self._slow(*args, **kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def release(self) -> None:
        """Forget what was compiled."""
        self._slow._cached.clear_cache()
        self._fast._cached.clear_cache()

    def count(self) -> int:
        """How many programs are kept, one for each shape of the inputs."""
        return self._slow._cached._cache_size() + self._fast._cached._cache_size()


def _all(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def program(
    function: Callable[..., Any] | None = None,
    *,
    compiles_fast: bool = True,
    sized_by: Callable[..., Any] = _all,
    **options: Any,
) -> Callable[..., Any]:
    """`equinox.filter_jit` for a function of a loss, whose programs are released when there are too many.

    Args:
        function: what is compiled.
        compiles_fast: whether small programs are compiled fast; not where few inputs make much work.
        sized_by: of the arguments, what is computed with: all, or all but rows that are saved.
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


def _is_alone(inputs: Any) -> bool:
    """Whether this is no part of a larger program."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(inputs)):
        return False
    # Within a program even this is a tracer.
    return not isinstance(jax.device_put(0.0), jax.core.Tracer)


def _is_small(inputs: Any) -> bool:
    """Whether these are few numbers on a CPU."""
    if jax.default_backend() != "cpu":
        return False
    return sum(leaf.size for leaf in jax.tree.leaves(inputs) if isinstance(leaf, jax.Array | np.ndarray)) <= SMALL
