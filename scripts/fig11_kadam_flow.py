"""The flow of k-Adam follows the discrete k-Adam, and its updates keep to the bound of the last stage.

Above: a perceptron on images of digits, full batch, k-Adam with ε = 0 and k = 1, 2, 3, discrete and along its flow of
order 1 [GT], whose stage i is driven by the bias-corrected direction of stage i − 1 at the same time. Left the distance
over all parameters, relative to the distance moved; right some parameters, chosen at random, for the largest k. Below:
softmax regression on minibatches of the same images, k = 1 … 10 and all strategies: ‖uₙ‖∞ beside the bound Bₙ of the
last stage's (β, γ), whatever the stages before it do, and the largest share of the bound that a run comes to.

Source: [GT] = R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization,
arXiv:2411.05746, for k-Adam and its bound; the discrete bound and the formulas of the strategies are this project's.
Run time on 2 cores: 20 seconds; --quick 10 seconds; --full a minute.
"""

import dataclasses
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import Any

import diffrax
import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import adamflow as af
from adamflow.figures import cores, figure
from adamflow.optimizers.kadam import STRATEGIES
from adamflow.plotting import kadam

jax.config.update("jax_enable_x64", True)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; `seed` is of weights, split and minibatches."""

    flow_stages: tuple[int, ...] = (1, 2, 3)
    flow_strategies: tuple[str, ...] = ("inverse_exponential", "naive")
    learning_rate: float = 1e-3
    width: int = 16
    test_fraction: float = 0.75
    steps: int = 300
    save_every: int = 10
    rtol: float = 1e-5
    parameters_shown: int = 16
    bound_stages: tuple[int, ...] = (1, 2, 3, 4, 5, 7, 10)
    bound_steps: int = 300
    batch_size: int = 32
    beta: float = 0.999
    gamma: float = 0.9
    seed: int = 0


CONFIGS = {
    "quick": Config(flow_stages=(1, 2), flow_strategies=STRATEGIES[3:], width=4, bound_stages=(1, 2, 4)),
    "default": Config(),
    "full": Config(
        flow_strategies=STRATEGIES,
        width=32,
        test_fraction=0.25,
        steps=1000,
        bound_stages=tuple(range(1, 11)),
        bound_steps=3000,
    ),
}


def compute(config: Config) -> figure.Data:
    """Flows and bounds side by side: most of the time goes into compiling, one program for each k."""
    with cores.threads() as pool:
        flows = [pool.submit(followed, config, k) for k in config.flow_stages]
        bounds = [pool.submit(bounded_updates, config, k) for k in config.bound_stages]
        errors, paths = gather(figure.progress(flows, "flows"))
        updates, limits, exceeded = gather(figure.progress(bounds, "bounds"))
    return {
        "flow_stages": np.array(config.flow_stages),
        "flow_strategies": np.array(config.flow_strategies),
        "iterations": np.arange(0, config.steps + 1, config.save_every),
        "errors": errors,
        "paths": paths,
        "bound_stages": np.array(config.bound_stages),
        "strategies": np.array(STRATEGIES),
        "updates": updates,
        "bounds": limits,
        "exceeded": exceeded,
    }


def gather(jobs: Iterable[Future]) -> Iterator[np.ndarray]:
    """Of what the jobs return, the first parts of all, then the second, and so on, each with an axis for the job."""
    return (np.stack(parts) for parts in zip(*(job.result() for job in jobs), strict=True))


def declare(config: Config, k: int, strategy: str) -> af.Optimizer:
    """k-Adam with arrays as numbers, which have a type of their own, so that all strategies share one program."""
    numbers = [np.asarray(number) for number in (config.learning_rate, config.beta, config.gamma)]
    return af.kadam(k, numbers[0], beta=numbers[1], gamma=numbers[2], strategy=strategy)


def followed(config: Config, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances of the flow from the iterates relative to the distance moved, and how far some parameters have moved.

    The first by strategy and iteration, the other for the first strategy by kind of run, iteration and parameter.
    """
    seeds: dict[str, Any] = dict(seed=config.seed, data_seed=config.seed)
    problem = af.problems.mlp((config.width,), test_fraction=config.test_fraction, **seeds).flatten()
    loss, start, steps = problem.loss, problem.params, config.steps
    saved = np.arange(0, steps + 1, config.save_every)
    runs = []
    for strategy in config.flow_strategies:
        optimizer = declare(config, k, strategy)
        iterates = af.iterate(optimizer, loss, start, steps, save_at=saved)
        options: dict[str, Any] = dict(save_at=saved, rtol=config.rtol, solver=diffrax.Tsit5())
        flow = af.solve(af.GouldTanakaFlow(optimizer), loss, start, steps, **options)
        runs.append((iterates, flow))
    moving = np.flatnonzero(np.asarray(runs[0][0].params)[-1] != start)
    shown = np.random.default_rng(config.seed).choice(moving, config.parameters_shown, replace=False)
    paths = [np.asarray(run.params)[:, shown] - np.asarray(start)[shown] for run in runs[0]]
    return np.stack([af.compare(*pair).relative_error for pair in runs]), np.stack(paths)


def bounded_updates(config: Config, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """‖uₙ‖∞, its bound, and in how many iterations it exceeds that by more than rounding, by strategy."""
    problem = af.problems.logistic(data_seed=config.seed)
    batches = problem.batches(config.batch_size, config.seed)
    reports = []
    for strategy in STRATEGIES:
        optimizer = declare(config, k, strategy)
        run = af.iterate(
            optimizer,
            problem.loss,
            problem.params,
            config.bound_steps,
            batches=batches,
            observe=af.analysis.largest_update,
        )
        reports.append(af.analysis.bound_report(run, optimizer))
    names = ("largest_update", "bound", "exceeded")
    updates, bounds, exceeded = (np.stack([report[name].values for report in reports]) for name in names)
    return updates, bounds, exceeded


def shares(data: figure.Data) -> np.ndarray:
    """The largest ‖uₙ‖∞/Bₙ in the second half of each run, by k and strategy; at n = 0 it is 1 for every gradient."""
    ratio = data["updates"] / data["bounds"]
    return ratio[..., ratio.shape[-1] // 2 :].max(axis=-1)


def check(data: figure.Data) -> list[figure.Claim]:
    errors = {
        f"k = {k}, {strategy}, {what}": float(value)
        for k, rows in zip(data["flow_stages"], data["errors"], strict=True)
        for strategy, row in zip(data["flow_strategies"], rows, strict=True)
        for what, value in (("largest", row.max()), ("last", row[-1]))
    }
    largest = shares(data)
    place = np.unravel_index(np.argmax(largest), largest.shape)
    return [
        figure.Claim(
            "for every k the flow stays within 10% of the distance moved", bool(data["errors"].max() < 0.1), errors
        ),
        figure.Claim(
            "no update of any run exceeds the discrete bound of its last stage",
            bool(np.all(data["exceeded"] == 0)),
            dict(runs=float(largest.size), updates=float(data["updates"].size))
            | {"largest share in the second half": float(largest.max()), "of k": float(data["bound_stages"][place[0]])}
            | {
                f"share of k = {k}, at least": float(row.min())
                for k, row in zip(data["bound_stages"], largest, strict=True)
            },
        ),
    ]


def draw(data: figure.Data) -> dict[str, Figure]:
    return {"": draw_panels(data, parameters=5, runs=2), "all": draw_panels(data, parameters=16, runs=4)}


def draw_panels(data: figure.Data, parameters: int, runs: int) -> Figure:
    """All panels, with so many parameters in b and runs in c."""
    drawn, ((left, right), (low_left, low_right)) = plt.subplots(2, 2, figsize=(11, 7.5))
    for i, k in enumerate(data["flow_stages"]):
        for j, strategy in enumerate(data["flow_strategies"][: None if k > 1 else 1]):
            label = f"k = {k}, {strategy.replace('_', ' ')}" if k > 1 else "k = 1, Adam"
            error = data["errors"][i, j, 1:]
            left.semilogy(data["iterations"][1:], error, ("-", "--", ":", "-.")[j], color=f"C{i}", label=label)
    # Above the curves there is room for the legend.
    left.set_ylim(top=3 * data["errors"].max())
    left.set(xlabel="iteration n", ylabel="error / distance moved", title="a  The flow follows k-Adam")
    left.legend(fontsize=7, ncols=2)
    kadam.paths(right, data["iterations"], *data["paths"][-1][..., :parameters])
    strategy = str(data["flow_strategies"][0]).replace("_", " ")
    right.set_title(f"b  {parameters} parameters, k = {data['flow_stages'][-1]}, {strategy}")
    named = [list(data["strategies"]).index("inverse_exponential")]
    last = len(data["bound_stages"]) - 1
    shown = np.unique(np.linspace(0, last if runs > 2 else last // 3, runs).astype(int))
    n = np.arange(data["updates"].shape[-1])
    updates, bounds = (data[name][shown, named] for name in ("updates", "bounds"))
    kadam.updates_and_bounds(low_left, n, updates, bounds, [f"k = {k}" for k in data["bound_stages"][shown]])
    low_left.set_title("c  Updates and the bound of the last stage, inverse exponential")
    rows = dict(zip((str(name).replace("_", " ") for name in data["strategies"]), shares(data).T, strict=True))
    kadam.by_stages(low_right, data["bound_stages"], rows, references={"the bound": 1.0})
    title = "d  No run exceeds its bound"
    low_right.legend(fontsize=7)
    low_right.set(ylabel="largest ‖uₙ‖∞ / Bₙ in the second half", ylim=(0, 1.05), title=title)
    return drawn


if __name__ == "__main__":
    sys.exit(figure.main(__file__, __doc__, CONFIGS, compute, check, draw))
