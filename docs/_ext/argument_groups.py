"""Arguments of the reference in two groups: those that everyone needs, and behind them the rest.

The rest are arguments that are taken by keyword only and have a default. Docstrings have one list; it is split here.
"""

import inspect
import re
from typing import Any

#: An argument, or several that share a line, in the list below "Args:".
_ENTRY = re.compile(r"^( +)([*\w]+(?:, [*\w]+)*):")


def optional_names(thing: Any) -> set[str]:
    """The arguments of a function or class that are taken by keyword only and have a default."""
    try:
        parameters = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):
        return set()
    return {one.name for one in parameters if one.kind is one.KEYWORD_ONLY and one.default is not one.empty}


def grouped(lines: list[str], optional: set[str]) -> list[str]:
    """The lines of a docstring with the optional arguments moved from "Args:" to "Other Parameters:" below it.

    Args:
        lines: of the docstring, without the indentation of the code.
        optional: names of arguments. Where several share a line it is moved if all of them are optional.
    """
    if "Args:" not in lines:
        return lines
    begin = lines.index("Args:") + 1
    end = next((place for place in range(begin, len(lines)) if lines[place] and lines[place][0] != " "), len(lines))
    entries: list[list[str]] = []
    indent = None
    for line in lines[begin:end]:
        match = _ENTRY.match(line)
        if match and (indent is None or match[1] == indent):
            indent = match[1]
            entries.append([line])
        elif entries:
            entries[-1].append(line)
        else:
            return lines
    moved = [entry for entry in entries if set(_ENTRY.match(entry[0])[2].split(", ")) <= optional]
    if not moved or len(moved) == len(entries):
        return lines
    kept = [entry for entry in entries if entry not in moved]
    parts = [*lines[:begin], *_joined(kept), "", "Other Parameters:", *_joined(moved), ""]
    return [*parts, *lines[end:]]


def _joined(entries: list[list[str]]) -> list[str]:
    lines = [line for entry in entries for line in entry]
    while lines and not lines[-1].strip():
        lines.pop()
    return lines
