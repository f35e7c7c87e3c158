"""The command line: `adamflow --help`.

Each command prints words, or with `--json` an object for machines. Exit codes: 0 done, 1 a run or check failed, 2 the
command was not understood, 3 a number was out of its range, 4 something that the command needs is not there.
"""

import ast
import enum
import importlib.metadata
import importlib.util
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Adaptive optimizers as dynamical systems. Names: beta is b2 of PyTorch and optax, gamma is b1.",
    epilog="Exit codes: 0 done, 1 a run or check failed, 2 not understood, 3 a number out of its range, 4 missing.",
)

Beta = Annotated[float, typer.Option("--beta", "--b2", help="Decay of the second moment.")]
Gamma = Annotated[float, typer.Option("--gamma", "--b1", help="Decay of the first moment.")]
LearningRate = Annotated[float, typer.Option("--learning-rate", "--lr", help="Learning rate.")]
WeightDecay = Annotated[float, typer.Option(help="Decoupled weight decay.")]
Epsilon = Annotated[float, typer.Option("--epsilon", "--eps", help="What is added to the root of the second moment.")]
Json = Annotated[bool, typer.Option("--json", help="Print a JSON object.")]

FAILED, OUT_OF_RANGE, MISSING = 1, 3, 4


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False) -> None:
    """Adaptive optimizers as dynamical systems. Names: beta is b2 of PyTorch and optax, gamma is b1."""
    if version:
        typer.echo(importlib.metadata.version("adamflow"))
        raise typer.Exit


@contextmanager
def _ranges_told() -> Iterator[None]:
    """Tell a number that is out of its range in one line, with an exit code of its own."""
    try:
        yield
    except ValueError as error:
        typer.echo(f"adamflow: {error}", err=True)
        raise typer.Exit(OUT_OF_RANGE) from error


def _print(words: str, numbers: dict[str, Any], as_json: bool) -> None:
    if as_json:
        words = json.dumps({name: _plain(value) for name, value in numbers.items()}, allow_nan=False)
    typer.echo(words)


def _plain(value: Any) -> Any:
    """A value that JSON has: it knows no nan and no infinity."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


@app.command()
def assess(
    learning_rate: LearningRate = 1e-3,
    beta: Beta = 0.999,
    gamma: Gamma = 0.9,
    weight_decay: WeightDecay = 0.0,
    epsilon: Epsilon = 1e-8,
    as_json: Json = False,
) -> None:
    """Is this setting of AdamW safe? Bounded updates or not, the largest step, and the sharpness that is too much.

    Example: adamflow assess --lr 3e-4 --b1 0.9 --b2 0.95 --weight-decay 0.1
    """
    import adamflow as af

    with _ranges_told():
        optimizer = af.adamw(learning_rate, beta=beta, gamma=gamma, weight_decay=weight_decay, epsilon=epsilon)
        answer = af.assess(optimizer)
    numbers = {name: getattr(answer, name) for name in answer.__dataclass_fields__ if name not in ("default", "run")}
    _print(str(answer), numbers, as_json)


@app.command()
def region(beta: Beta, gamma: Gamma, as_json: Json = False) -> None:
    """Which side of the border of bounded updates a pair of decays is on, in [GT] and for the discrete optimizer.

    Example: adamflow region --beta 0.95 --gamma 0.99
    """
    from adamflow import analysis

    with _ranges_told():
        signs = {
            kind: int(analysis.bounded_update_sign(beta=beta, gamma=gamma, kind=kind))
            for kind in ("gould_tanaka", "discrete")
        }
        exponent = float(analysis.stability_exponent(beta=beta, gamma=gamma))
    names = {1: "bounded", 0: "on the border", -1: "not bounded"}
    words = (
        f"discrete optimizer (γ² < β): {names[signs['discrete']]}\n"
        f"flow of Gould and Tanaka (C > 0): {names[signs['gould_tanaka']]}, C = {exponent:.6g}"
    )
    _print(words, {"beta": beta, "gamma": gamma, **signs, "exponent": exponent}, as_json)


@app.command()
def bound(
    beta: Beta,
    gamma: Gamma,
    iteration: Annotated[list[int], typer.Option(help="May be given more than once.")],
    as_json: Json = False,
) -> None:
    """The largest entry of an update, over all gradients, at some iterations.

    Example: adamflow bound --beta 0.999 --gamma 0.9 --iteration 10 --iteration 100
    """
    from adamflow import analysis

    with _ranges_told():
        bounds = [float(analysis.update_bound(n, beta=beta, gamma=gamma, kind="discrete")) for n in iteration]
    words = "\n".join(f"iteration {n}: |u| ≤ {value:.8g}" for n, value in zip(iteration, bounds, strict=True))
    _print(words, {"beta": beta, "gamma": gamma, "iteration": iteration, "bound": bounds}, as_json)


@app.command()
def edge(
    learning_rate: LearningRate = 1e-3,
    gamma: Gamma = 0.9,
    weight_decay: WeightDecay = 0.0,
    as_json: Json = False,
) -> None:
    """The preconditioned sharpness at which a step of AdamW turns unstable.

    Example: adamflow edge --lr 1e-3 --b1 0.9
    """
    import adamflow as af

    with _ranges_told():
        optimizer = af.adamw(learning_rate, gamma=gamma, weight_decay=weight_decay)
        critical = float(af.analysis.critical_curvature(optimizer))
    words = f"sharpness {critical:.8g}, that is learning rate times sharpness {learning_rate * critical:.8g}"
    _print(words, {"critical_sharpness": critical, "edge": learning_rate * critical}, as_json)


class FlowName(enum.StrEnum):
    """The flows of the command `compare`."""

    modified = "modified"
    interpolating = "interpolating"
    gould_tanaka = "gould-tanaka"


@app.command()
def compare(
    learning_rate: LearningRate = 1e-3,
    beta: Beta = 0.999,
    gamma: Gamma = 0.9,
    flow: Annotated[FlowName, typer.Option(help="Which flow.")] = FlowName.modified,
    order: Annotated[int, typer.Option(help="Its order.")] = 2,
    steps: Annotated[int, typer.Option(help="Iterations.")] = 200,
    dimension: Annotated[int, typer.Option(help="Parameters of the chain of quadratics.")] = 10,
    as_json: Json = False,
) -> None:
    """Run Adam and a flow of it on a small problem, and print how far apart they are, after half a minute or so.

    Example: adamflow compare --flow gould-tanaka --order 1 --steps 500
    """
    import jax

    import adamflow as af
    from adamflow.checks import check_count

    jax.config.update("jax_enable_x64", True)
    kinds: dict[FlowName, Callable[..., Any]] = {
        FlowName.modified: af.ModifiedFlow,
        FlowName.interpolating: af.InterpolatingFlow,
        FlowName.gould_tanaka: af.GouldTanakaFlow,
    }
    with _ranges_told():
        if flow is FlowName.modified:
            # A program of order 5 compiles for minutes.
            check_count("order", order, high=4)
        problem, optimizer = af.problems.chain(dimension), af.adam(learning_rate, beta=beta, gamma=gamma)
        discrete = af.iterate(optimizer, problem.loss, problem.params, steps, on_failure="ignore")
        model = kinds[flow](optimizer, order=order)
        continuous = af.solve(model, problem.loss, problem.params, steps, on_failure="ignore")
    for run in (discrete, continuous):
        if not bool(run.outcome.successful):
            typer.echo(f"adamflow: the run {run.name!r} {run.outcome.message}", err=True)
            raise typer.Exit(FAILED)
    comparison = af.compare(discrete, continuous)
    numbers = {"flow": model.name, "steps": steps, "max_relative_error": float(comparison.max_relative_error)}
    _print(str(comparison), numbers | {"gradients": int(continuous.stats.gradient_evaluations)}, as_json)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Versions, devices, precision, and a check of some seconds against known numbers.

    Example: adamflow doctor
    """
    import jax
    import numpy as np

    import adamflow as af

    started = time.perf_counter()
    packages = ("adamflow", "jax", "jaxlib", "diffrax", "equinox", "optax", "numpy")
    numbers: dict[str, Any] = {name: importlib.metadata.version(name) for name in packages}
    numbers |= {
        "devices": [str(device) for device in jax.devices()],
        "float64": jax.numpy.zeros(()).dtype == jax.numpy.float64,
    }
    optimizer = af.adam(1e-3, beta=0.999, gamma=0.9)
    problem = af.problems.chain(dimension=4)
    discrete = af.iterate(optimizer, problem.loss, problem.params, 100)
    continuous = af.solve(af.GouldTanakaFlow(optimizer), problem.loss, problem.params, 100)
    bound_at_100 = float(af.analysis.update_bound(100, beta=0.999, gamma=0.9))
    checks = {
        "bound at iteration 100 is 2.3148747": round(bound_at_100, 7) == 2.3148747,
        "edge of stability is 38": bool(np.isclose(1e-3 * float(af.analysis.critical_curvature(optimizer)), 38.0)),
        "the flow follows the iterates": float(af.compare(discrete, continuous).relative_error[-1]) < 0.02,
    }
    numbers |= {"checks": checks, "seconds": round(time.perf_counter() - started, 1)}
    lines = [f"{name}: {value}" for name, value in numbers.items() if name != "checks"]
    lines += [f"{'ok' if good else 'FAILED'}: {name}" for name, good in checks.items()]
    _print("\n".join(lines), numbers, as_json)
    if not all(checks.values()):
        raise typer.Exit(FAILED)


#: The scripts of the figures, which a clone has and a wheel has not.
SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@app.command()
def figures(
    names: Annotated[
        list[str] | None, typer.Argument(help="fig02, or several; without any the list is printed.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small settings: a minute or two for each.")] = False,
    out: Annotated[Path | None, typer.Option(help="The folder that they are written into.")] = None,
    as_json: Json = False,
) -> None:
    """List the figures of the project, or make those that are named. Needs a clone and the extra `figures`.

    Example: adamflow figures

    Example: adamflow figures fig02 fig06 --quick --out build/figures
    """
    found = sorted(SCRIPTS.glob("fig[0-9][0-9]_*.py"))
    if not found:
        typer.echo(
            f"adamflow: the scripts of the figures are not in {SCRIPTS}: a wheel has none. Clone the repository, "
            "install it by pip install --editable '.[figures]', and call this again",
            err=True,
        )
        raise typer.Exit(MISSING)
    if not names:
        titles = {path.stem: _title_of(path) for path in found}
        width = max(map(len, titles))
        _print("\n".join(f"{name:{width}}  {title}" for name, title in titles.items()), titles, as_json)
        return
    if missing := _missing("matplotlib", "sklearn", "zarr"):
        typer.echo(
            f"adamflow: figures need {', '.join(missing)}, not installed; install the extra `figures`: "
            "pip install --editable '.[figures]'",
            err=True,
        )
        raise typer.Exit(MISSING)
    flags = [*(["--quick"] if quick else []), *(["--out", str(out)] if out else [])]
    command = [sys.executable, str(SCRIPTS / "make_figures.py"), *names, *flags]
    # With --json standard output is for the object alone.
    run = subprocess.run(command, check=False, capture_output=as_json, text=True)
    if as_json:
        typer.echo(run.stdout + run.stderr, err=True)
        _print("", {"names": names, "exit_code": run.returncode}, as_json)
    # The script says by 2 that it has no figure of such a name.
    raise typer.Exit(run.returncode if run.returncode in (0, 2) else FAILED)


def _title_of(script: Path) -> str:
    """The first sentence of a script's docstring."""
    text = ast.get_docstring(ast.parse(script.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split())


def _missing(*modules: str) -> list[str]:
    return [name for name in modules if importlib.util.find_spec(name) is None]


@app.command()
def explore(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of 127.0.0.1; 0 takes a free one.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Whether to open a browser.")] = True,
) -> None:
    """A page in the browser with a slider for each number of an optimizer, until Ctrl-C. Needs the extra `explorer`.

    Example: adamflow explore

    Example: adamflow explore --port 5006 --no-browser
    """
    from adamflow import explorer

    try:
        explorer.serve(port, show=browser)
    except ModuleNotFoundError as error:
        typer.echo(f"adamflow: {error}", err=True)
        raise typer.Exit(MISSING) from error
    except OSError as error:
        typer.echo(f"adamflow: port {port} cannot be had ({error}); take another one, or 0 for any", err=True)
        raise typer.Exit(FAILED) from error
