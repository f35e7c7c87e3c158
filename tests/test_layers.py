"""The package's structure, read from its source: imports go down the layers, functions stay small."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "adamflow").rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))

LAYERS = ("figures", "plotting", "sweeps", "advice", "noise", "analysis", "runs", "flows", "optimizers")
BESIDE = ("problems",)
#: The doors for users of another library, over all that computes; nothing imports them.
PORTS = ("torch",)
#: What stands where users do, and imports the package as they do.
OUTSIDE = ("__init__", "__main__", "command_line", "explorer")
SHARED = ("types", "checks", "display", "losses", "programs")
ONLY_IN = {
    "diffrax": ("noise", "runs", "flows"),
    "diffrax.diffeqsolve": ("noise", "runs"),
    "matplotlib": ("figures", "plotting"),
    "torch": PORTS,
}

FUNCTION_LINES = 50
VAGUE_NAMES = {"utils", "helpers", "common", "core", "misc"}


def part_of(path: Path) -> str:
    """The layer (or shared module) that a file of the package belongs to; "__init__" for the package's own."""
    return path.relative_to(ROOT / "adamflow").with_suffix("").parts[0]


def may_import(part: str) -> tuple[str, ...]:
    """The parts of the package that a part may import."""
    if part in LAYERS:
        return LAYERS[LAYERS.index(part) :] + SHARED
    if part in PORTS:
        return (part, *LAYERS[LAYERS.index("analysis") :], *SHARED)
    return SHARED if part in SHARED else (part, *SHARED)


def imports(path: Path, source: str) -> Iterator[str]:
    """The absolute dotted name of everything that the source of a file imports, wherever in the file it does so."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *filter(None, [node.module])))
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.attr == "diffeqsolve":
            yield f"{node.value.id}.diffeqsolve"


def faults_of_imports(path: Path, source: str) -> Iterator[str]:
    """One sentence for each import of a file that the layers forbid."""
    part, file = part_of(path), path.relative_to(ROOT)
    if part in OUTSIDE:
        return
    if part not in LAYERS + BESIDE + PORTS + SHARED:
        beside = BESIDE + PORTS
        yield f"{file} belongs to no layer; the layers are {LAYERS}, beside them {beside}, shared by all {SHARED}"
        return
    for name in imports(path, source):
        head, *rest = name.split(".")
        if head == "adamflow" and (not rest or rest[0] not in may_import(part)):
            yield f"{file} imports {name}, but {part} may import only {may_import(part)}, from these themselves"
        for restricted, owners in ONLY_IN.items():
            if f"{name}.".startswith(f"{restricted}.") and part not in owners:
                yield f"{file} imports {name}, but only {owners} may use {restricted}"


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The number of lines of a function's body, without its docstring."""
    body = function.body[ast.get_docstring(function) is not None :]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def faults_of_size(path: Path, source: str) -> Iterator[str]:
    """One sentence for each vague name of a file and each function that is too long to be read."""
    file = path.relative_to(ROOT)
    for vague in VAGUE_NAMES.intersection(file.with_suffix("").parts):
        yield f"{file} is called {vague}, but a name says what is inside"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (lines := code_lines(node)) > FUNCTION_LINES:
            where = f"{file}:{node.lineno} {node.name}"
            yield f"{where} has {lines} lines of code, but a function has at most {FUNCTION_LINES}"


def report(faults: Iterator[str]) -> str:
    return "".join(f"\n  {fault}" for fault in faults)


def test_layers_imports_go_down_only():
    broken = report(fault for path in PACKAGE for fault in faults_of_imports(path, path.read_text()))
    assert not broken, broken


def test_layers_functions_are_small_and_files_are_named():
    broken = report(fault for path in PACKAGE + SCRIPTS for fault in faults_of_size(path, path.read_text()))
    assert not broken, broken


@pytest.mark.parametrize(
    ("file", "source", "fault"),
    [
        (
            "flows/gould_tanaka.py",
            "from ..runs import iterate",
            "imports adamflow.runs.iterate, but flows may import only",
        ),
        ("flows/gould_tanaka.py", "def f():\n    import adamflow.problems", "imports adamflow.problems"),
        ("flows/gould_tanaka.py", "from adamflow import adam", "imports adamflow.adam"),
        ("flows/gould_tanaka.py", "import adamflow as af", "imports adamflow, but"),
        (
            "flows/gould_tanaka.py",
            "import diffrax\ndiffrax.diffeqsolve",
            "only ('noise', 'runs') may use diffrax.diffeqsolve",
        ),
        (
            "problems/chain.py",
            "from .. import optimizers",
            "problems may import only ('problems', 'types', 'checks', 'display', 'losses', 'programs')",
        ),
        ("types.py", "from .runs import Trajectory", "types may import only"),
        (
            "analysis/bounds/regions.py",
            "import matplotlib.pyplot as plt",
            "only ('figures', 'plotting') may use matplotlib",
        ),
        (
            "analysis/bounds/regions.py",
            "from diffrax import ODETerm",
            "only ('noise', 'runs', 'flows') may use diffrax",
        ),
        ("runs/discrete.py", "import torch.nn", "only ('torch',) may use torch"),
        (
            "torch/kadam.py",
            "from adamflow.plotting import region",
            "torch may import only ('torch', 'analysis', 'runs', 'flows', 'optimizers', 'types', ",
        ),
        ("extras.py", "", "belongs to no layer"),
    ],
)
def test_layers_failure_names_file_import_and_rule(file, source, fault):
    path = ROOT / "adamflow" / file
    faults = list(faults_of_imports(path, source))
    assert len(faults) == 1
    assert faults[0].startswith(f"adamflow/{file} ")
    assert fault in faults[0]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (
            "flows/gould_tanaka.py",
            "from ..optimizers.adam import adam\nfrom ..types import Params\nfrom . import modified",
        ),
        ("flows/gould_tanaka.py", "import diffrax\ndiffrax.ODETerm"),
        ("runs/__init__.py", "from .discrete import iterate\nfrom diffrax import diffeqsolve\nimport matplotlibx"),
        ("plotting/grids.py", "from matplotlib.axes import Axes\nfrom ..analysis.bounds import region"),
        ("problems/chain.py", "from adamflow.checks import check_count"),
    ],
)
def test_layers_allow_what_goes_down(file, source):
    assert not report(faults_of_imports(ROOT / "adamflow" / file, source))


@pytest.mark.parametrize(
    ("file", "source", "fault"),
    [
        ("utils/chain.py", "", "is called utils"),
        ("chain.py", "def f():\n" + "    x = 1\n" * 51, "chain.py:1 f has 51 lines of code"),
        ("chain.py", 'def f():\n    """Say.' + "\n" * 60 + '    """\n' + "    x = 1\n" * 51, "f has 51 lines of code"),
    ],
)
def test_layers_failure_names_what_is_too_large(file, source, fault):
    faults = list(faults_of_size(ROOT / "adamflow" / file, source))
    assert len(faults) == 1
    assert fault in faults[0]
