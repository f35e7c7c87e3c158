"""The directive `{reference} MODULE`: a table of names of a module, and the full text of each below.

Names stand in its content, separated by spaces or lines; without content they are all of the module's `__all__` that
are no modules. tests/test_documents.py holds the pages against the public names.
"""

import importlib
import importlib.util
import inspect
import sys
from types import ModuleType

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from typing_extensions import TypeAliasType


def public_names(module: ModuleType) -> list[str]:
    """The public names of a module that are no modules; without `__all__`, the functions that it defines."""
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if not inspect.ismodule(getattr(module, name))]
    functions = inspect.getmembers(module, inspect.isfunction)
    return [name for name, function in functions if function.__module__ == module.__name__ and name[0] != "_"]


class _StandIn(type):
    """A class whose attributes are such classes, in the place of those of a package that is not installed."""

    def __getattr__(cls, name: str) -> type:
        return _stand_in(f"{cls.__module__}.{cls.__name__}", name)


class _Package(ModuleType):
    """A package of nothing but stand-ins."""

    def __getattr__(self, name: str) -> type:
        return _stand_in(self.__name__, name)


def _stand_in(module: str, name: str) -> type:
    """A stand-in; an object of it, as a decorator, changes nothing."""
    if name.startswith("__"):
        raise AttributeError(name)
    return _StandIn(name, (), {"__module__": module, "__call__": lambda self, function: function})


def import_without_torch() -> None:
    """Import `adamflow.torch` where PyTorch, which is gigabytes, is missing: for signatures and docstrings."""
    if importlib.util.find_spec("torch") is None:
        sys.modules["torch"] = _Package("torch")
        try:
            importlib.import_module("adamflow.torch")
        finally:
            del sys.modules["torch"]


def _directive(module: ModuleType, name: str) -> list[str]:
    thing = getattr(module, name)
    if inspect.isclass(thing):
        return [f".. autoclass:: {module.__name__}.{name}", ""]
    is_function = callable(thing) and hasattr(thing, "__name__") and not isinstance(thing, TypeAliasType)
    kind = "autofunction" if is_function else "autodata"
    return [f".. {kind}:: {module.__name__}.{name}", *(["   :no-value:"] if kind == "autodata" else []), ""]


class Reference(SphinxDirective):
    """A table of names, and the text of each."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        module = importlib.import_module(self.arguments[0])
        names = " ".join(self.content).split() or public_names(module)
        lines = ["```{eval-rst}", f".. currentmodule:: {module.__name__}", ""]
        lines += [".. autosummary::", "   :nosignatures:", "", *(f"   {name}" for name in names)]
        lines += [""]
        for name in names:
            lines += _directive(module, name)
        lines += ["```"]
        container = nodes.container()
        self.state.nested_parse(StringList(lines, source=module.__file__ or ""), self.content_offset, container)
        return container.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    import_without_torch()
    app.add_directive("reference", Reference)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
