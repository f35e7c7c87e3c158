"""The command line: `adamflow --help`.

Each command prints words, or with `--json` an object for machines. Exit codes: 0 done, 1 a run or check failed, 2 the
command was not understood, 3 a number was out of its range.
"""

import enum
import importlib.metadata
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Adaptive optimizers as dynamical systems. Names: beta is b2 of PyTorch and optax, gamma is b1.",
)

Beta = Annotated[float, typer.Option("--beta", "--b2", help="Decay of the second moment.")]
Gamma = Annotated[float, typer.Option("--gamma", "--b1", help="Decay of the first moment.")]
LearningRate = Annotated[float, typer.Option("--learning-rate", "--lr", help="Learning rate.")]
WeightDecay = Annotated[float, typer.Option(help="Decoupled weight decay.")]
Epsilon = Annotated[float, typer.Option("--epsilon", "--eps", help="What is added to the root of the second moment.")]
Json = Annotated[bool, typer.Option("--json", help="Print a JSON object.")]

FAILED, OUT_OF_RANGE = 1, 3


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
    typer.echo(json.dumps({name: _plain(value) for name, value in numbers.items()}) if as_json else words)


def _plain(value: Any) -> Any:
    """A value that JSON has: it knows no nan and no infinity."""
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
    """Run Adam and a flow of it on a small problem, and print how far apart they are.

    Example: adamflow compare --flow gould-tanaka --order 1 --steps 500
    """
    import jax

    import adamflow as af

    jax.config.update("jax_enable_x64", True)
    kinds: dict[FlowName, Callable[..., Any]] = {
        FlowName.modified: af.ModifiedFlow,
        FlowName.interpolating: af.InterpolatingFlow,
        FlowName.gould_tanaka: af.GouldTanakaFlow,
    }
    with _ranges_told():
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
