"""Examples run as they stand, in an empty folder: each ```python block of README.md and docs/, and all of examples/."""

import re
import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


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
