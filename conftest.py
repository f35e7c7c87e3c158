"""Set-up of every test, at the root so that doctests see it too; it acts before anything imports adamflow."""

import gc
import importlib.util
import os
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["MPLBACKEND"] = "Agg"
# Most of what is compiled for a test runs for a moment: without any optimization the default tests take a fifth less.
# By its path: importing it as a part of adamflow would be too early.
runpy.run_path(str(Path(__file__).parent / "adamflow/figures/fast_compilation.py"))["compile_fast"](optimization=0)

import diffrax
import hypothesis
import jax
import jaxtyping
import pytest

jax.config.update("jax_enable_x64", True)
# Traces are many small objects that live long: looking for garbage among them takes a twentieth of the tests' time.
gc.set_threshold(200_000, 50, 50)
#: Modules whose functions are called a hundred thousand times: NumPy in the place of compiled programs.
UNCHECKED = {"adamflow.analysis.stability.uncompiled"}
_jaxtyped = jaxtyping.jaxtyped


def jaxtyped(*given: Any, **options: Any) -> Any:
    """As that of jaxtyping, but not for functions within functions, which would be decorated in each call."""
    if given:
        return _jaxtyped(*given, **options)

    def decorate(function: Any) -> Any:
        skipped = "<locals>" in function.__qualname__ or function.__module__ in UNCHECKED
        return function if skipped else _jaxtyped(**options)(function)

    return decorate


jaxtyping.jaxtyped = jaxtyped
assert all((Path(__file__).parent / f"{name.replace('.', '/')}.py").is_file() for name in UNCHECKED)
# From here on each call into adamflow checks the shapes and types that its signature declares.
jaxtyping.install_import_hook("adamflow", "beartype.beartype")
# The same inputs on each run; no deadline, since the first call of a property compiles.
hypothesis.settings.register_profile("adamflow", derandomize=True, deadline=None, max_examples=25)
hypothesis.settings.load_profile("adamflow")

# The modules of the package that need an extra at their import.
_NEEDS = {"torch": ["adamflow/torch"], "bokeh": ["adamflow/explorer/page.py", "adamflow/explorer/server.py"]}
collect_ignore = [path for extra, paths in _NEEDS.items() if not importlib.util.find_spec(extra) for path in paths]

import adamflow as af
import adamflow.losses

#: What references are integrated with: a stiff solver of diffrax, with the chord iteration that "auto" gives it.
KVAERNO = diffrax.Kvaerno5(root_finder=af.CHORD_ROOT_FINDER)
SEED = int(os.environ.get("ADAMFLOW_SEED", "0"))


def pytest_report_header() -> str:
    """The settings that numbers depend on, so that a log is enough to run the same again."""
    return f"adamflow: ADAMFLOW_SEED={SEED}, jax {jax.__version__} on {os.environ['JAX_PLATFORMS']}, float64"


@pytest.fixture(autouse=True)
def own_losses() -> None:
    """Count the losses of each test from 0, as in a program of its own: there is a warning at the twentieth."""
    adamflow.losses.forget_counts()


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Turn the check of types off, so that a test of bad input meets the library's own words."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def key() -> jax.Array:
    """The random key of a test: each test gets the same one, made from the seed in the header."""
    return jax.random.key(SEED)


@pytest.fixture
def ax() -> Iterator[Any]:
    """Axes on which a test draws; that they can be rendered is checked at its end."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(layout="constrained")
    yield axes
    figure.draw_without_rendering()
    plt.close(figure)
