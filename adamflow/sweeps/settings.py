"""What the numbers of a sweep depend on, by name: its grid, its function with all that it closes over, and versions.

Two sweeps are the same if these are. Each entry is a short text or the digest of a value, so that a difference has a
name.
"""

import builtins
import dataclasses
import difflib
import dis
import enum
import functools
import hashlib
import importlib
import inspect
import json
import pickle
import platform
import sys
import sysconfig
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamflow.sweeps.grid import Grid

#: Packages whose versions matter to every sweep; others that a function uses are added to them.
PACKAGES = ("jax", "jaxlib", "numpy", "equinox", "diffrax", "optax")

#: Texts up to this length are kept as they are, sources always.
_SHORT = 120

_PACKAGE = Path(__file__).parents[1]
_LIBRARIES = tuple(Path(sysconfig.get_paths()[name]).resolve() for name in ("stdlib", "purelib", "platlib"))


def settings_of(run: Callable[..., Any], grid: Grid | None, difficulty: Callable[..., Any] | None) -> dict[str, str]:
    """The settings of a sweep, each by name; without a grid those of the function alone.

    Raises:
        TypeError: if the function closes over something whose value cannot be told.
    """
    found = _Settings()
    if grid is not None:
        found.entries["grid"] = ", ".join(f"{dim}: {size}" for dim, size in grid.sizes.items())
        for name, (dim, values) in grid.axes.items():
            found.entries[f"grid[{name!r}]"] = f"along {dim}, {_array_words(values)}"
    found.add("run", run)
    if difficulty is not None:
        found.add("difficulty", difficulty)
    found.entries["jax_enable_x64"] = str(bool(jax.config.read("jax_enable_x64")))
    return found.entries | versions(found.libraries)


def versions(libraries: Any = ()) -> dict[str, str]:
    """The versions of Python and of packages, and a digest of adamflow's sources."""
    entries = {"version of python": ".".join(platform.python_version_tuple()[:2])}
    for name in sorted({*PACKAGES, *libraries} - {"adamflow"}):
        version = getattr(importlib.import_module(name), "__version__", None)
        if version is not None:
            entries[f"version of {name}"] = str(version)
    return entries | {"sources of adamflow": _sources()}


def settings_digest(settings: Mapping[str, str]) -> str:
    """One text that tells settings from others."""
    return _digest(json.dumps(settings, sort_keys=True).encode())


def difference(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """What differs between two settings, in words; `None` if nothing does."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if not names:
        return None
    words = [_change(name, before.get(name), now.get(name)) for name in names[:3]]
    return "; ".join(words) + (f"; and {len(names) - 3} more" if len(names) > 3 else "")


def _change(name: str, before: str | None, now: str | None) -> str:
    if before is None or now is None:
        return f"{name} is {'new' if before is None else 'gone'}"
    if "\n" not in before + now:
        return f"{name} was {before}, is {now}"
    lines = list(difflib.ndiff(before.splitlines(), now.splitlines()))
    old, new = (next((line[2:].strip() for line in lines if line.startswith(mark)), "") for mark in "-+")
    return f"{name} has other lines: {old!r} became {new!r}"


@functools.cache
def _sources() -> str:
    """A digest of the package's sources that numbers depend on."""
    single = ("losses.py", "programs.py", "sweeps/lanes.py", "types.py")
    parts = ("analysis", "flows", "optimizers", "problems", "runs", *single)
    files = [path for part in parts for path in sorted([_PACKAGE / part, *(_PACKAGE / part).rglob("*.py")])]
    return _digest(b"".join(path.read_bytes() for path in files if path.is_file()))


class _Settings:
    """Collects entries from values, by their paths from the function."""

    def __init__(self) -> None:
        self.entries: dict[str, str] = {}
        self.libraries: set[str] = set()
        # What was entered before, by identity; kept alive, so that no identity is used twice.
        self._seen: dict[int, Any] = {}

    def add(self, path: str, value: Any) -> None:
        """Enter a value under its path, and what it is made of."""
        text = _plain_words(value)
        if text is not None:
            self.entries[path] = text
            return
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        for kind, enter in (
            (types.ModuleType, self._module),
            (type, self._class),
            (functools.partial, self._partial),
            (types.MethodType, self._method),
            (types.FunctionType, self._function),
            (Mapping, self._mapping),
            (tuple | list, self._sequence),
        ):
            if isinstance(value, kind):
                enter(path, value)
                return
        if hasattr(value, "__wrapped__"):
            self.add(path, value.__wrapped__)
        elif callable(value) and not hasattr(value, "__dict__"):
            self.entries[path] = self._name(value)
        else:
            self._object(path, value)

    def _name(self, value: Any) -> str:
        module = getattr(value, "__module__", None) or ""
        self._library(module)
        return f"{module}.{getattr(value, '__qualname__', type(value).__qualname__)}"

    def _library(self, module: str) -> bool:
        """Whether a module is installed: then its version tells what it does."""
        head = module.split(".")[0]
        found = sys.modules.get(module)
        file = getattr(found, "__file__", None)
        if head == "adamflow" or (file is None and module != "__main__"):
            return True
        path = Path(file or ".").resolve()
        if file is None or not ("site-packages" in path.parts or any(path.is_relative_to(lib) for lib in _LIBRARIES)):
            return False
        if head not in sys.stdlib_module_names:
            self.libraries.add(head)
        return True

    def _module(self, path: str, module: types.ModuleType) -> None:
        text = f"module {module.__name__}"
        file = getattr(module, "__file__", None)
        if not self._library(module.__name__) and file is not None:
            text += f" {_digest(Path(file).read_bytes())}"
        self.entries[path] = text

    def _class(self, path: str, value: type) -> None:
        self.entries[path] = self._name(value) if self._library(value.__module__) else _source(value)

    def _partial(self, path: str, value: functools.partial) -> None:
        self.add(path, value.func)
        for place, argument in enumerate(value.args):
            self.add(f"{path}, argument {place}", argument)
        for name, argument in value.keywords.items():
            self.add(f"{path}, argument {name}", argument)

    def _method(self, path: str, value: types.MethodType) -> None:
        self.add(path, value.__func__)
        self.add(f"{path}.self", value.__self__)

    def _function(self, path: str, function: types.FunctionType) -> None:
        known = self._library(function.__module__ or "")
        self.entries[path] = self._name(function) if known else _source(function)
        for name, default in inspect.signature(function).parameters.items():
            if default.default is not default.empty:
                self.add(f"{path}({name}=)", default.default)
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        for name, cell in cells:
            try:
                self.add(f"{path}: {name}", cell.cell_contents)
            except ValueError:  # a cell that is not yet filled
                continue
        if not known:
            for name in sorted(set(_globals_of(function.__code__))):
                if name in function.__globals__ and not hasattr(builtins, name):
                    self.add(f"{path}: {name}", function.__globals__[name])

    def _mapping(self, path: str, value: Mapping) -> None:
        for key in sorted(value, key=repr):
            self.add(f"{path}[{key!r}]", value[key])

    def _sequence(self, path: str, value: Any) -> None:
        for place, part in enumerate(value):
            self.add(f"{path}[{place}]", part)

    def _object(self, path: str, value: Any) -> None:
        self._class(f"{path}, type", type(value))
        if isinstance(value, np.random.Generator):
            self.add(path, value.bit_generator.state)
        elif dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                self.add(f"{path}.{field.name}", getattr(value, field.name, None))
        elif getattr(value, "__dict__", None) or not (
            hasattr(value, "__slots__") or self._library(type(value).__module__)
        ):
            self._mapping(path, vars(value))
        else:
            try:
                self.entries[path] = _digest(pickle.dumps(value))
            except Exception as error:
                raise TypeError(
                    f"{path} is a {type(value).__name__}, whose value cannot be told ({error}), so that a store could "
                    "not notice that it changed; make it inside of the function"
                ) from None


def _plain_words(value: Any) -> str | None:
    """A value that is told by its text, or by a digest of its numbers; `None` for others."""
    if isinstance(value, np.ndarray | jax.Array) and not isinstance(value, np.generic):
        if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            return f"key {_array_words(np.asarray(jax.random.key_data(value)))}"
        array = np.asarray(value)
        return _array_words(array) if not array.dtype.hasobject else None
    if isinstance(value, bytes | str) and len(value) > _SHORT:
        return f"{type(value).__name__} {_digest(value if isinstance(value, bytes) else value.encode())}"
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__} {_digest(repr(sorted(map(repr, value))).encode())}"
    plain = (bool, int, float, complex, str, bytes, np.generic, np.dtype, enum.Enum, Path, slice, range)
    if value is None or value is Ellipsis or isinstance(value, plain):
        return repr(value)
    return None


def _array_words(array: np.ndarray) -> str:
    digest = _digest(np.ascontiguousarray(array).tobytes())
    ends = f" from {array.flat[0]!s} to {array.flat[-1]!s}" if array.ndim == 1 and array.size else ""
    return f"{array.dtype} {array.shape}{ends}, digest {digest}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _source(value: Any) -> str:
    try:
        source = textwrap.dedent(inspect.getsource(value))
    except (OSError, TypeError):
        source = ""
    # A line may hold several lambdas; and what was typed at a prompt has no source.
    if isinstance(value, types.FunctionType) and (not source or value.__name__ == "<lambda>"):
        source += f"\ncode {_digest(value.__code__.co_code + repr(value.__code__.co_consts[:1]).encode())}"
    return source


def _globals_of(code: types.CodeType) -> Iterator[str]:
    """The global names that a function's code reads, those of functions inside of it included."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals_of(constant)
