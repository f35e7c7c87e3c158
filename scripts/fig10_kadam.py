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
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from scipy import stats

import adamflow as af
from adamflow.figures import figure, resume
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


#: A method but for its learning rate and weight decay: problem, k, strategy.
Method = tuple[str, int, str]


def compute(config: Config) -> figure.Data:
    """A sweep over (η, λ) from the tuning seeds, and one of the chosen pairs from the others."""
    methods = methods_of(config)
    tasks = {(name, seed): problem_of(config, name, seed) for name in PROBLEMS for seed in seeds_of(config)}

    def run(problem: str, k: int, strategy: str, learning_rate: float, weight_decay: float, seed: int) -> Any:
        values = train(config, (problem, k, strategy), tasks[problem, seed], learning_rate, weight_decay)
        return {"metrics": ("metric", values)}

    with resume.Parts(__file__, config) as parts:
        rates, decays = config.learning_rates, config.weight_decays
        grid = {"method": zipped(methods), "learning_rate": rates, "weight_decay": decays, "seed": config.tuning_seeds}
        # A chunk for each method: those of different problems are compiled side by side.
        size = len(rates) * len(decays) * len(config.tuning_seeds)
        tuned = parts.sweep("tuning", run, grid, method="threads", chunk=size).metrics.values[..., TEST_LOSS]
        chosen = best_pairs(config, methods, tuned.mean(axis=-1))
        pairs = {"learning_rate": [pair[0] for _, pair in chosen], "weight_decay": [pair[1] for _, pair in chosen]}
        grid = {"method": zipped([method for method, _ in chosen], **pairs), "seed": config.seeds}
        final = parts.sweep("final", run, grid, method="threads", chunk=len(config.seeds)).metrics.values
    data: dict[str, Any] = {"stages": config.stages, "strategies": STRATEGIES, "baselines": BASELINES}
    data |= {"learning_rates": config.learning_rates, "weight_decays": config.weight_decays}
    data |= tables(config, chosen, final)
    # Afterwards, since runs side by side would disturb each other's times.
    data["milliseconds"] = [[milliseconds(config, name, k) for k in (1, *config.stages)] for name in PROBLEMS]
    return data


def seeds_of(config: Config) -> tuple[int, ...]:
    return (*config.tuning_seeds, *config.seeds)


def methods_of(config: Config) -> list[Method]:
    """The methods, those of a program next to each other, and with problems in turn; k = 1 has no strategy."""
    pairs = [(1, STRATEGIES[0])] + [(k, strategy) for k in reversed(config.stages) for strategy in STRATEGIES]
    return [(name, *pair) for pair in pairs for name in PROBLEMS]


def zipped(methods: Sequence[Method], **others: Any) -> Any:
    """Methods as one dimension of a grid."""
    names, stages, strategies = zip(*methods, strict=True)
    return af.zip_axes(problem=names, k=stages, strategy=strategies, **others)


def best_pairs(config: Config, methods: Sequence[Method], losses: np.ndarray) -> list[tuple[Method, tuple]]:
    """Each method with its best (η, λ); k = 1 stands for Adam, whose λ is the first, 0, and after it for AdamW.

    Args:
        config: settings.
        methods: by the first axis of `losses`.
        losses: the mean test losses of the tuning runs, by method, η and λ; NaN where one failed.
    """
    chosen = []
    for method, table in zip(methods, losses, strict=True):
        for count in (1, len(config.weight_decays)) if method[1] == 1 else (len(config.weight_decays),):
            allowed = np.where(np.isfinite(table), table, np.inf)[:, :count]
            row, column = np.unravel_index(np.argmin(allowed), allowed.shape)
            chosen.append((method, (config.learning_rates[row], config.weight_decays[column])))
    return chosen


def tables(config: Config, chosen: Sequence[tuple[Method, tuple]], final: np.ndarray) -> dict[str, np.ndarray]:
    """The final numbers and the chosen pairs, by problem: of the baselines, and of k and strategy."""
    data = {}
    for name in PROBLEMS:
        for key, of in (("final", list(final)), ("chosen", [pair for _, pair in chosen])):
            rows: dict[int, list[Any]] = {k: [] for k in (1, *config.stages)}
            for ((problem, k, _), _), values in zip(chosen, of, strict=True):
                if problem == name:
                    rows[k].append(values)
            data[f"{name}_baseline_{key}"] = np.array(rows[1])
            data[f"{name}_{key}"] = np.array([rows[k] for k in config.stages])
    return data


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


def train(config: Config, method: Method, task: tuple[af.Problem, Any], rate: float, decay: float) -> np.ndarray:
    """The numbers of `METRICS` after a run; NaN where it failed."""
    problem, batches = task
    # Arrays, which have a type of their own, so that all numbers and strategies share one program.
    eta, beta, gamma, lam = (np.asarray(number) for number in (rate, config.beta, config.gamma, decay))
    optimizer = af.kadam(
        method[1], eta, beta=beta, gamma=gamma, epsilon=config.epsilon, weight_decay=lam, strategy=method[2]
    )
    run = af.iterate(optimizer, problem.loss, problem.params, config.steps, save_at=[config.steps], batches=batches)
    if not run.outcome.successful:
        return np.full(len(METRICS), np.nan)
    return np.asarray(measure(problem, run.final_state[0]))


def milliseconds(config: Config, name: str, k: int) -> float:
    """The time of an iteration, gradient included: the fastest of three runs."""
    task, method = problem_of(config, name, config.seeds[0]), (name, k, STRATEGIES[0 if k == 1 else -1])
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
