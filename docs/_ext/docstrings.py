"""Docstrings of adamflow for Sphinx: they are written as Markdown, with formulas between dollars."""

import functools
import importlib
import re
from typing import Any

from argument_groups import grouped, optional_names
from sphinx.application import Sphinx

#: Code stays as it is: between backticks, and behind the prompt of an example.
_PIECES = re.compile(r"(``.*?``|`[^`]*`|\$\$.*?\$\$|\$[^$\n]+(?:\n[^$\n]+)?\$)", re.DOTALL)


def _display(formula: str) -> str:
    """A formula on lines of its own."""
    lines = [line.strip() for line in formula.strip("$").strip().splitlines()]
    return "\n\n.. math::\n\n" + "\n".join(f"    {line}" for line in lines) + "\n\n"


def _plain(text: str) -> str:
    """Prose, in which bars and underscores mean themselves."""
    return re.sub(r"(?<!\\)([|]|_(?=\W|$)|\*(?=\w+,))", r"\\\1", text)


def as_restructured_text(text: str) -> str:
    """A paragraph, or several, with formulas and code as reStructuredText has them."""
    pieces = []
    for piece in _PIECES.split(text):
        if piece.startswith("$$"):
            pieces.append(_display(piece))
        elif piece.startswith("$"):
            pieces.append(f":math:`{' '.join(piece[1:-1].split())}`")
        else:
            pieces.append(_code(piece) if piece.startswith("`") else _plain(piece))
    # A role needs a space, or an escaped one, on both sides.
    return re.sub(r"(:math:`[^`]*`)(?=\w)", r"\1\\ ", re.sub(r"(?<=[\w(])(:math:`)", r"\\ \1", "".join(pieces)))


def _code(piece: str) -> str:
    """Code between single backticks: a name becomes a link where it is known, all else is literal."""
    text = " ".join(piece.strip("`").split())
    if text.startswith("af.") and re.fullmatch(r"[\w.]+", text):
        return f"`{text} <adamflow.{text[3:]}>`"
    if text in _full_names():
        return f"`{text} <{_full_names()[text]}>`"
    return f"`{text}`" if re.fullmatch(r"[\w.]+", text) else f"``{text}``"


@functools.cache
def _full_names() -> dict[str, str]:
    """The public names that docstrings use alone, with the modules in which the reference has them."""
    modules = ("adamflow.problems", "adamflow.analysis", "adamflow")
    return {name: f"{module}.{name}" for module in modules for name in importlib.import_module(module).__all__} | {
        "Problem": "adamflow.problems.Problem"
    }


def _table(block: str) -> str:
    """A simple table, whose columns are those of its first line, as a list of rows, so that formulas may grow."""
    first, *lines = block.strip("\n").splitlines()
    rulers = [match.span() for match in re.finditer("=+", first)]
    starts = [start for start, _ in rulers]
    ends = [*starts[1:], None]
    rows: list[list[str]] = []
    for line in lines:
        if line.strip().startswith("==="):
            continue
        cells = [line[start:end].strip() for start, end in zip(starts, ends, strict=True)]
        if cells[0]:
            rows.append(cells)
        else:
            rows[-1] = [f"{above} {cell}".strip() for above, cell in zip(rows[-1], cells, strict=True)]
    indent = " " * starts[0]
    text = [f"{indent}.. list-table::", f"{indent}   :header-rows: 1", ""]
    for row in rows:
        marks = ["* -"] + ["  -"] * (len(row) - 1)
        text += [f"{indent}   {mark} {as_restructured_text(cell)}" for mark, cell in zip(marks, row, strict=True)]
    return "\n".join(text)


def _process(_app: Sphinx, _what: str, _name: str, thing: Any, _options: Any, lines: list[str]) -> None:
    """Convert the lines of a docstring in place; examples with a prompt, and indented formulas, are kept."""
    lines[:] = grouped(lines, optional_names(thing))
    converted: list[str] = []
    for block in re.split(r"(\n[ ]*\n)", "\n".join(lines)):
        if block.lstrip().startswith("==="):
            converted.append(_table(block))
        elif block.lstrip().startswith((">>>", ".. ", "...")):
            converted.append(block)
        else:
            converted.append(as_restructured_text(block))
    lines[:] = "".join(converted).splitlines()


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx: before napoleon, which takes a colon outside of literal code for the end of a type."""
    app.connect("autodoc-process-docstring", _process, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
