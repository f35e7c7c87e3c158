"""Build wheel and sdist, install each into a bare environment without extras, and run the quick start there.

`python tests/package_check.py`, or `make package-check`. The environments see the dependencies that this one has (they
are not downloaded again), but none of the packages that only extras bring: an import of one fails.
"""

import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: What extras bring and the core must do without.
EXTRAS = ("matplotlib", "sklearn", "zarr", "distributed", "torch", "bokeh", "pytest", "sphinx")
#: Folders that a wheel must not hold, and those of an sdist.
NOT_IN_WHEEL = ("figures/", "tests/", "scripts/", "docs/", "bench/", "examples/")
NOT_IN_SDIST = ("figures/",)

_BLOCK = """import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {extras!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}: it belongs to an extra", name=name)

sys.meta_path.insert(0, Refuse())
"""


def main() -> int:
    """Check both; the exit status is 0 if all holds."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = bare_environment(folder / "environment")
        wheel, sdist = build(python, folder)
        print(f"built {wheel.name} ({wheel.stat().st_size / 1e6:.2f} MB) and {sdist.name}")
        check_contents(wheel, sdist)
        for archive in (wheel, sdist):
            install(python, archive)
            run_quick_start(python, folder)
            print(f"{archive.name}: the quick start runs without extras, version {version_of(python, folder)}")
    print(f"package-check: all holds, {time.perf_counter() - begun:.0f} s")
    return 0


def bare_environment(folder: Path) -> Path:
    """A fresh environment with pip, which finds the dependencies of this one."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    site = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    here = Path(importlib.metadata.distribution("jax").locate_file(""))
    # A folder on the path, without the .pth files in it: an editable adamflow there is not seen.
    (site / "dependencies.pth").write_text(f"{here}\n")
    (site / "extras.pth").write_text(f"import {_REFUSAL}\n")
    (site / f"{_REFUSAL}.py").write_text(_BLOCK.format(extras=set(EXTRAS)))
    return python


_REFUSAL = "refuse_extras"


def call(*command: object, cwd: Path | None = None) -> str:
    """The standard output of a command, which has to succeed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd, env=environment)
    if run.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{run.stdout}{run.stderr}")
    return run.stdout


def build(python: Path, folder: Path) -> tuple[Path, Path]:
    """The sdist of the files that git knows, and the wheel of that sdist."""
    call(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "hatchling>=1.27")
    call(python, "-m", "hatchling", "build", "-d", folder / "dist", cwd=ROOT)
    (wheel,), (sdist,) = ((folder / "dist").glob(pattern) for pattern in ("*.whl", "*.tar.gz"))
    return wheel, sdist


def check_contents(wheel: Path, sdist: Path) -> None:
    """Both hold the package, its data and its license, and neither figures."""
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = archive.namelist()
    with tarfile.open(sdist) as archive:
        in_sdist = [member.split("/", 1)[1] for member in archive.getnames() if "/" in member]
    for names, refused in ((in_wheel, NOT_IN_WHEEL), (in_sdist, NOT_IN_SDIST)):
        if extra := [name for name in names if name.startswith(refused)]:
            raise SystemExit(f"the archive holds {extra[:3]}, which it must not")
        for wanted in ("adamflow/py.typed", "adamflow/problems/data/python-3.11-help.txt.xz"):
            if wanted not in names:
                raise SystemExit(f"the archive lacks {wanted}")
    if not any(name.endswith("LICENSE") for name in in_wheel):
        raise SystemExit("the wheel lacks LICENSE")


def install(python: Path, archive: Path) -> None:
    """Put an archive in the place of what is there. Its dependencies have to be there."""
    flags = ("--quiet", "--disable-pip-version-check", "--no-deps", "--force-reinstall", "--no-build-isolation")
    call(python, "-m", "pip", "install", *flags, archive)
    call(python, "-c", _CHECK_DEPENDENCIES)


#: Every requirement without an extra is met.
_CHECK_DEPENDENCIES = """
import importlib.metadata as metadata
from packaging.requirements import Requirement
for text in metadata.requires("adamflow"):
    requirement = Requirement(text)
    if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
        assert metadata.version(requirement.name) in requirement.specifier, text
"""


def run_quick_start(python: Path, folder: Path) -> None:
    """The first two examples of the README, which need no extra, and the command line, from an empty folder."""
    examples = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    for example in examples[:2]:
        (folder / "example.py").write_text(example)
        if not call(python, folder / "example.py", cwd=folder).strip():
            raise SystemExit("an example of the README printed nothing")
    place = call(python, "-c", "import adamflow; print(adamflow.__file__)", cwd=folder)
    if not place.startswith(str(folder)):
        raise SystemExit(f"not the installed package was imported but {place}")
    call(python, "-m", "adamflow", "region", "--beta", "0.95", "--gamma", "0.9", cwd=folder)


def version_of(python: Path, folder: Path) -> str:
    """The version that the package and its metadata agree on."""
    program = "import adamflow, importlib.metadata as m; print(adamflow.__version__, m.version('adamflow'))"
    ours, installed = call(python, "-c", program, cwd=folder).split()
    if ours != installed:
        raise SystemExit(f"adamflow.__version__ is {ours}, but the metadata says {installed}")
    return ours


if __name__ == "__main__":
    sys.exit(main())
