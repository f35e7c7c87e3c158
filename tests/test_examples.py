"""Examples run as they stand, in an empty folder: code of README.md and docs/, the notebooks, and all of examples/."""

import re
import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CELL = re.compile(r"^```\{code-cell\}[^\n]*\n((?::[^\n]*\n)*)(.*?)^```$", re.DOTALL | re.MULTILINE)
#: What a notebook needs beside the extra `test`: `make test-torch`, before this, installs it.
EXTRAS = ("torch", "flax")


def examples() -> list:
    """A parameter (file, line, code) for each block, with an id that says where the block stands."""
    found = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]:
        text = path.read_text()
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start(1))
            name = f"{path.relative_to(ROOT)}:{line + 1}"
            found.append(pytest.param(path, line, match[1], id=name))
    return found


@pytest.mark.examples
@pytest.mark.parametrize(("path", "line", "code"), examples())
def test_example_runs(path, line, code, tmp_path, monkeypatch):
    if "import torch" in code:
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    # As many empty lines before the code as the file has, so that a traceback names the file's own line.
    program = compile("\n" * line + code, str(path), "exec")
    try:
        exec(program, {"__name__": "__main__"})
    finally:
        plt.close("all")


def notebooks() -> list:
    """A parameter (file, cells) for each page that is a notebook; cells are (line, options, code)."""
    found = []
    for path in sorted((ROOT / "docs").glob("**/*.md")):
        text = path.read_text()
        cells = [(text.count("\n", 0, match.start(2)), match[1], match[2]) for match in CELL.finditer(text)]
        if cells:
            found.append(pytest.param(path, cells, id=str(path.relative_to(ROOT))))
    return found


@pytest.mark.examples
@pytest.mark.parametrize(("path", "cells"), notebooks())
def test_notebook_runs(path, cells, tmp_path, monkeypatch):
    for package in EXTRAS:
        if any(f"import {package}" in code or f"from {package}" in code for _, _, code in cells):
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    try:
        for line, options, code in cells:
            program = compile("\n" * line + code, str(path), "exec")
            if "raises-exception" in options:
                with pytest.raises(Exception):  # noqa: B017, PT011  the page shows which
                    exec(program, namespace)
            else:
                exec(program, namespace)
    finally:
        plt.close("all")


@pytest.mark.examples
def test_every_notebook_of_the_site_is_found():
    pages = {path for path in (ROOT / "docs").glob("**/*.md") if "file_format: mystnb" in path.read_text()[:200]}
    assert {parameter.values[0] for parameter in notebooks()} == pages


@pytest.mark.examples
@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_script_runs(path, tmp_path, monkeypatch):
    if "import torch" in path.read_text():
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        plt.close("all")


@pytest.mark.examples
def test_readme_has_an_example():
    assert any(parameter.values[0].name == "README.md" for parameter in examples())
