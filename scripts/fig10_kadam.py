"""k-Adam for k = 1 … 10 and four strategies against Adam and AdamW, each with its own learning rate and weight decay.

A convolutional network on scikit-learn's digits and a character transformer, on minibatches. Every method gets the same
grid over η and λ: the pair with the lowest test loss over the tuning seeds is then run from other seeds, which give new
weights, batches and, for the digits, a new split. Adam is AdamW with λ = 0. Bars are 95% intervals of the mean over
seeds (Student's t); differences from AdamW are taken seed by seed. ε is 1e-8 in every stage.

Source: [GT] = R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization,
arXiv:2411.05746, for k-Adam and the names of the strategies, whose formulas here are this project's reading.
Run time on 2 cores: 2 minutes; --quick 20 seconds; --full, every k and 10 seeds, 11; cut short, it goes on where it
stopped.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from scipy import stats

import adamflow as af
from adamflow.figures import cores, figure, resume
from adamflow.optimizers.kadam import STRATEGIES
from adamflow.plotting import kadam

BASELINES = ("Adam", "AdamW")
PROBLEMS = ("digits", "text")
METRICS = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")
TEST_LOSS = METRICS.index("test_loss")


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; a seed determines weights, batches and the split of the digits."""

    stages: tuple[int, ...] = (2, 3, 5, 10)
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    weight_decays: tuple[float, ...] = (0.0, 0.1)
    tuning_seeds: tuple[int, ...] = (100,)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    steps: int = 400
    channels: tuple[int, ...] = (4, 8)
    layers: int = 1
    heads: int = 2
    width: int = 16
    context: int = 16
    batch_sizes: tuple[int, ...] = (32, 16)
    measured_windows: int = 128
    beta: float = 0.999
    gamma: float = 0.9
    epsilon: float = 1e-8


CONFIGS = {
    "quick": Config(stages=(3,), learning_rates=(1e-2,), weight_decays=(0.0,), seeds=(0, 1, 2), steps=200),
    "default": Config(),
    "full": Config(
        stages=tuple(range(2, 11)),
        weight_decays=(0.0, 0.1, 1.0),
        tuning_seeds=(100, 101),
        seeds=tuple(range(10)),
        steps=800,
    ),
}


@dataclasses.dataclass(frozen=True)
class Method:
    """A record but for its learning rate and weight decay, and the weight decays that it may choose from."""

    k: int
    strategy: str
    weight_decays: tuple[float, ...]


def compute(config: Config) -> figure.Data:
    """One job for each problem and k, whose strategies, numbers and seeds share one program."""
    with resume.Parts(__file__, config) as parts, cores.threads() as pool:
        jobs = {
            (name, k): pool.submit(parts.get, f"{name}-{k}", partial(study, config, name, methods(config, k)))
            for k in reversed((1, *config.stages))
            for name in PROBLEMS
        }
        tables = {key: job.result() for key, job in figure.progress(jobs.items(), "problems and k")}
    data: dict[str, Any] = {"stages": config.stages, "strategies": STRATEGIES, "baselines": BASELINES}
    data |= {"learning_rates": config.learning_rates, "weight_decays": config.weight_decays}
    for name in PROBLEMS:
        for part in ("final", "chosen"):
            data[f"{name}_baseline_{part}"] = tables[name, 1][part]
            data[f"{name}_{part}"] = np.stack([tables[name, k][part] for k in config.stages])
    # Afterwards, since jobs side by side would disturb each other's times.
    data["milliseconds"] = [[milliseconds(config, name, k) for k in (1, *config.stages)] for name in PROBLEMS]
    return data


def methods(config: Config, k: int) -> list[Method]:
    """The methods of k stages: Adam and AdamW for k = 1."""
    if k == 1:
        return [Method(1, STRATEGIES[0], decays) for decays in ((0.0,), config.weight_decays)]
    return [Method(k, strategy, config.weight_decays) for strategy in STRATEGIES]


def problem_of(config: Config, name: str, seed: int) -> tuple[af.Problem, Any]:
    """A problem whose parameters are one vector, which compiles fastest, and its batches."""
    if name == "digits":
        problem = af.problems.cnn(config.channels, seed=seed, data_seed=seed)
    else:
        sizes: dict[str, Any] = dict(layers=config.layers, heads=config.heads, width=config.width)
        sizes |= dict(batch_size=config.measured_windows, validation_size=config.measured_windows)
        problem = af.problems.char_transformer(**sizes, context=config.context, seed=seed, data_seed=seed)
    problem = problem.flatten()
    return problem, problem.batches(config.batch_sizes[PROBLEMS.index(name)], seed)


@eqx.filter_jit
def measure(problem: af.Problem, params: Any) -> Any:
    """The numbers of `METRICS`; of text the test part is called validation."""
    values = {name.replace("validation", "test"): metric(params) for name, metric in problem.metrics.items()}
    return jnp.stack([problem.loss(params) if name == "train_loss" else values[name] for name in METRICS])


def train(config: Config, method: Method, problem: tuple[af.Problem, Any], rate: float, decay: float) -> np.ndarray:
    """The numbers of `METRICS` after a run; NaN where it failed."""
    task, batches = problem
    # Arrays, which have a type of their own, so that all numbers and strategies share one program.
    eta, beta, gamma, lam = (np.asarray(number) for number in (rate, config.beta, config.gamma, decay))
    optimizer = af.kadam(
        method.k, eta, beta=beta, gamma=gamma, epsilon=config.epsilon, weight_decay=lam, strategy=method.strategy
    )
    run = af.iterate(optimizer, task.loss, task.params, config.steps, save_at=[config.steps], batches=batches)
    if not run.outcome.successful:
        return np.full(len(METRICS), np.nan)
    return np.asarray(measure(task, run.final_state[0]))


def study(config: Config, name: str, chosen: Sequence[Method]) -> dict[str, np.ndarray]:
    """For each method the numbers at the best (η, λ), by seed, and that pair."""
    problems = {seed: problem_of(config, name, seed) for seed in (*config.tuning_seeds, *config.seeds)}
    finals, pairs = [], []
    for method in chosen:
        grid = [(rate, decay) for rate in config.learning_rates for decay in method.weight_decays]
        tuned = [
            np.mean([train(config, method, problems[seed], *pair)[TEST_LOSS] for seed in config.tuning_seeds])
            for pair in grid
        ]
        best = grid[int(np.argmin(np.where(np.isfinite(tuned), tuned, np.inf)))]
        finals.append([train(config, method, problems[seed], *best) for seed in config.seeds])
        pairs.append(best)
    return {"final": np.array(finals), "chosen": np.array(pairs)}


def milliseconds(config: Config, name: str, k: int) -> float:
    """The time of an iteration, gradient included: the fastest of three runs."""
    task, method = problem_of(config, name, config.seeds[0]), methods(config, k)[-1]
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        train(config, method, task, config.learning_rates[0], 0.0)
        seconds.append(time.perf_counter() - started)
    return 1e3 * min(seconds[1:]) / config.steps


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean over the last axis, seeds, and the ends of its 95% interval."""
    count, mean = values.shape[-1], values.mean(axis=-1)
    half = stats.t.ppf(0.975, count - 1) * values.std(axis=-1, ddof=1) / np.sqrt(count)
    return mean, mean - half, mean + half


def differences(data: figure.Data, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Test loss minus that of AdamW, seed by seed: mean and interval, by k and strategy."""
    return interval(data[f"{name}_final"][..., TEST_LOSS] - data[f"{name}_baseline_final"][1][:, TEST_LOSS])


def check(data: figure.Data) -> list[figure.Claim]:
    most, strategies = int(data["stages"][-1]), [str(strategy) for strategy in data["strategies"]]
    none = "no k > 1 of any strategy has a test loss below AdamW's by more than chance (intervals of the difference)"
    claims = []
    for name in PROBLEMS:
        mean, low, high = differences(data, name)
        place = np.unravel_index(np.argmin(mean), mean.shape)
        losses = data[f"{name}_baseline_final"][..., TEST_LOSS].mean(axis=1)
        numbers = dict(zip((str(baseline) for baseline in data["baselines"]), losses, strict=True)) | {
            "weight decay that AdamW chose": data[f"{name}_baseline_chosen"][1, 1],
            "share above 0": np.mean(low > 0),
            "share below 0": np.mean(high < 0),
            f"least mean difference, {strategies[place[1]]}": mean[place],
            "of k": data["stages"][place[0]],
            "low": low[place],
            "high": high[place],
        }
        last = dict(zip(strategies, mean[-1], strict=True))
        for sentence, holds, found in (
            (none, not np.any(high < 0), numbers),
            (
                f"at k = {most} naive is the worst strategy (mean differences)",
                max(last, key=last.__getitem__) == "naive",
                last,
            ),
        ):
            found = {key: float(number) for key, number in found.items()}
            claims.append(figure.Claim(f"{name}: {sentence}", bool(holds), found))
    return claims


def draw(data: figure.Data) -> dict[str, Figure]:
    return {"": draw_results(data), "time": draw_times(data)}


def draw_results(data: figure.Data) -> Figure:
    """What training reaches, by problem and metric."""
    drawn, axes = plt.subplots(2, 3, figsize=(12, 7))
    stages, labels = data["stages"], [str(strategy).replace("_", " ") for strategy in data["strategies"]]
    for row, name in zip(axes, PROBLEMS, strict=True):
        for ax, metric in zip(row, ("train_loss", "test_loss", "test_accuracy"), strict=False):
            place = METRICS.index(metric)
            mean, low, high = interval(data[f"{name}_final"][..., place])
            base = interval(data[f"{name}_baseline_final"][..., place])[0]
            rows = {label: mean[:, j] for j, label in enumerate(labels)}
            ends = {label: np.stack([low[:, j], high[:, j]]) for j, label in enumerate(labels)}
            references = dict(zip(map(str, data["baselines"]), base, strict=True))
            if len(set(references.values())) == 1:  # where AdamW chose no decay it is Adam
                references = {" and ".join(references): next(iter(references.values()))}
            kadam.by_stages(ax, stages, rows, ends, references)
            words = metric.replace("_", " ")
            ax.set(ylabel=words, title=f"{name}: {words}")
            if mean.max() > 5 * mean.min() and metric != "test_accuracy":
                ax.set_yscale("log")
                ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                ax.yaxis.set_major_formatter("{x:g}")
                ax.yaxis.set_minor_formatter(NullFormatter())
    drawn.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return drawn


def draw_times(data: figure.Data) -> Figure:
    """The time of an iteration."""
    drawn, axes = plt.subplots(1, 2, figsize=(8, 3.2))
    for ax, name, times in zip(axes, PROBLEMS, data["milliseconds"], strict=True):
        kadam.by_stages(ax, np.array([1, *data["stages"]]), {"k-Adam": times})
        ax.set(ylabel="milliseconds per iteration", title=f"{name}: time, with the gradient", ylim=(0, None))
    return drawn


if __name__ == "__main__":
    sys.exit(figure.main(__file__, __doc__, CONFIGS, compute, check, draw))
