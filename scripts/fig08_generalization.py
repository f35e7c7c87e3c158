"""Does a larger C(β, γ) train faster? Test loss along the normal curve, at one γ, and along a level curve of C.

A character transformer on minibatches, Adam with ε = 0, at points (β, γ) of three curves through (.999, .9): the normal
curve, which crosses all level sets of C at right angles; γ = .9 with those β that give the same values of C; and the
level curve, along which C is constant. At each point: the test loss after the last iteration, and the first measured
iteration at which it is at most a given loss, the same for all points. Once with one learning rate for all points, and
once with the rate tuned at each point on other seeds than those reported: is it C, or the rate?

Spearman's rank correlation is that of the mean over seeds; its interval is from resampled seeds (bootstrap, 95%). On
the normal curve C falls where γ rises, so the correlation there may be one with the length of the memory; the curve
with one γ tells them apart, and the level curve shows how much C leaves unexplained.

Source: [GT] = R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization,
arXiv:2411.05746, its third figure, which suggests that larger C is faster. The curve with one γ is this project's.
Run time on 2 cores: 1.5 minutes; --quick 20 seconds; --full, with 64 points on each curve, five seeds and 600
iterations of the same network, 18 minutes beside other work; cut short, it goes on where it stopped.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

import adamflow as af
from adamflow.figures import figure, resume
from adamflow.plotting import generalization

jax.config.update("jax_enable_x64", True)

CURVES = ("normal curve", "one γ", "level curve")
WAYS = ("fixed", "tuned")
OUTCOMES = ("test loss", "iterations")
#: A correlation's curve, what it is with, and whether it is over points with C > 0 alone.
SETS = ((0, "C", False), (0, "C", True), (1, "C", False), (1, "C", True), (2, "γ", False))


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; `learning_rate` is the fixed one, `given_loss` in nats per character."""

    points: int = 9
    learning_rate: float = 3e-3
    learning_rates: tuple[float, ...] = (3e-3, 1e-2, 2e-2, 4e-2)
    tuning_seeds: tuple[int, ...] = (100,)
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 300
    measure_every: int = 20
    given_loss: float = 2.6
    layers: int = 1
    heads: int = 2
    width: int = 16
    context: int = 16
    batch_size: int = 16
    validation_size: int = 32
    beta: float = 0.999
    gamma: float = 0.9
    resamples: int = 2000
    seed: int = 0


CONFIGS = {
    "quick": Config(points=5, learning_rates=(3e-3, 1e-2), seeds=(0, 1), steps=80, given_loss=3.3),
    "default": Config(),
    "full": Config(points=64, seeds=tuple(range(5)), steps=600, given_loss=2.5),
}


def compute(config: Config) -> figure.Data:
    """All runs share one program."""
    pairs = points_of(config)
    exponent = np.asarray(af.analysis.stability_exponent(beta=pairs[..., 0], gamma=pairs[..., 1]))
    seeds = (*config.tuning_seeds, *config.seeds)
    tasks = {seed: problem_of(config, seed) for seed in seeds}

    def run(seed: int, beta: float, gamma: float, learning_rate: float) -> dict[str, Any]:
        losses = train(config, *tasks[seed], np.array([beta, gamma]), float(learning_rate))
        return {"loss": ("iteration", losses, {"long_name": "test loss"})}

    beta, gamma = pairs.reshape(-1, 2).T
    grid = {"seed": seeds, "point": af.zip_axes(beta=beta, gamma=gamma), "learning_rate": config.learning_rates}
    with resume.Parts(__file__, config) as parts:
        runs = parts.sweep("runs", run, grid, method="threads")
    losses = runs.loss.values.reshape(len(seeds), *pairs.shape[:2], len(config.learning_rates), -1)
    tuning, reported = np.split(losses, [len(config.tuning_seeds)])
    best = np.argmin(tuning[..., -1].mean(axis=0), axis=-1)
    fixed = np.full_like(best, config.learning_rates.index(config.learning_rate))
    data: dict[str, Any] = {
        "beta": pairs[..., 0],
        "gamma": pairs[..., 1],
        "exponent": exponent,
        "learning_rates": config.learning_rates,
        "tuned_rates": np.array(config.learning_rates)[best],
        "given_loss": config.given_loss,
        "steps": config.steps,
    }
    for way, place in zip(WAYS, (fixed, best), strict=True):
        history = np.take_along_axis(reported, place[None, ..., None, None], axis=3)[:, :, :, 0]
        table = outcomes(config, np.moveaxis(history, 0, 2))
        data[f"{way}_outcomes"] = table
        data[f"{way}_correlations"] = np.array(
            [[correlation(config, x, part[points]) for _, points, x in sets(data)] for part in table]
        )
    return data


def points_of(config: Config) -> np.ndarray:
    """(β, γ) by curve and point; those of the second curve have the C of the first, as far as β allows, and one γ."""
    curves = (af.analysis.normal_curve, af.analysis.level_curve)
    normal, level = (np.stack(curve(config.points, beta=config.beta, gamma=config.gamma), 1) for curve in curves)
    exponent = np.asarray(af.analysis.stability_exponent(beta=normal[:, 0], gamma=normal[:, 1]))
    # The largest C of the normal curve is beyond what this γ allows.
    exponent = np.minimum(exponent, af.analysis.stability_exponent(beta=0.9999, gamma=config.gamma))
    beta = 1 / (2 / config.gamma - 1 - exponent)
    return np.stack([normal, np.stack([beta, np.full_like(beta, config.gamma)], axis=1), level])


def problem_of(config: Config, seed: int) -> tuple[af.Problem, Any]:
    """The transformer and its batches; a seed determines both."""
    sizes: dict[str, Any] = dict(layers=config.layers, heads=config.heads, width=config.width, context=config.context)
    problem = af.problems.char_transformer(**sizes, batch_size=1, validation_size=config.validation_size, seed=seed)
    return problem, problem.batches(config.batch_size, seed)


def train(config: Config, problem: af.Problem, batches: Any, pair: np.ndarray, rate: float) -> np.ndarray:
    """The test loss every `measure_every` iterations; infinite from the end of a run that failed."""
    rows = np.arange(0, config.steps + 1, config.measure_every)
    run = af.iterate(
        af.adam(rate, beta=pair[0], gamma=pair[1]),
        problem.loss,
        problem.params,
        config.steps,
        save_at=rows,
        observe=TestLoss(problem.metrics["validation_loss"]),
        batches=batches,
    )
    found = np.pad(np.asarray(run.observed), (0, rows.size - len(run)), constant_values=np.inf)
    return np.where(np.isfinite(found), found, np.inf)


class TestLoss(eqx.Module):
    """The metric of a snapshot's parameters; a module, so that all seeds share one program."""

    metric: Callable[[Any], Any]

    def __call__(self, snapshot: af.Snapshot) -> Any:
        return self.metric(snapshot.params)


def outcomes(config: Config, history: np.ndarray) -> np.ndarray:
    """The last test loss, and the first iteration measured at which it is at most the given one, or one beyond all."""
    reached = history <= config.given_loss
    first = np.where(reached.any(axis=-1), reached.argmax(axis=-1), history.shape[-1])
    return np.stack([history[..., -1], first * config.measure_every])


def sets(data: Mapping[str, Any]) -> list[tuple[str, Any, np.ndarray]]:
    """For each of `SETS` its name, the places of its points, and what to correlate with."""
    rows = []
    for curve, symbol, inside in SETS:
        chosen = np.flatnonzero(data["exponent"][curve] > (0 if inside else -np.inf))
        name = f"{CURVES[curve]}{', C > 0' if inside else ''}, with {symbol}"
        rows.append((name, (curve, chosen), data["exponent" if symbol == "C" else "gamma"][curve, chosen]))
    return rows


def correlation(config: Config, x: np.ndarray, table: np.ndarray) -> tuple[float, float, float]:
    """Spearman's ρ of x with the mean over seeds, and the ends of its 95% interval over resampled seeds."""
    generator, count = np.random.default_rng(config.seed), table.shape[1]
    resampled = table[:, generator.integers(0, count, (config.resamples, count))].mean(axis=-1)
    low, high = np.quantile(spearman(x, resampled), (0.025, 0.975))
    return float(spearman(x, table.mean(axis=1, keepdims=True))[0]), float(low), float(high)


def spearman(x: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Spearman's ρ of x with each column; infinite numbers are the largest, and a constant column has no relation."""
    ranks = [stats.rankdata(part, axis=0) for part in (x[:, None], columns)]
    first, others = (rank - rank.mean(axis=0) for rank in ranks)
    sizes = np.sqrt(np.sum(first**2) * np.sum(others**2, axis=0))
    return np.sum(first * others, axis=0) / np.where(sizes > 0, sizes, 1.0)


def ranges(data: Mapping[str, Any], way: str) -> np.ndarray:
    """By curve, how far the test loss, mean over seeds, ranges where C > 0."""
    inside = np.where(data["exponent"] > 0, data[f"{way}_outcomes"][0].mean(axis=-1), np.nan)
    return np.nanmax(inside, axis=1) - np.nanmin(inside, axis=1)


def check(data: figure.Data) -> list[figure.Claim]:
    numbers, spans = {}, {way: ranges(data, way) for way in WAYS}
    for way in WAYS:
        for outcome, rows in zip(OUTCOMES, data[f"{way}_correlations"], strict=True):
            for (name, *_), row in zip(sets(data), rows, strict=True):
                ends = zip(("", ", low", ", high"), row, strict=True)
                numbers |= {f"{outcome}, {way} rate, {name}{end}": float(value) for end, value in ends}
    sizes = {f"{way} rate, {name}": float(span) for way in WAYS for name, span in zip(CURVES, spans[way], strict=True)}
    normal = SETS.index((0, "C", False))
    faster = (
        "along the normal curve a larger C has a lower test loss, with one rate and with tuned ones: the intervals of "
        "Spearman's ρ lie below 0"
    )
    one = "but with one γ the same values of C > 0 change the test loss by less than half as much"
    level = "and along the level curve, where C is constant, it ranges over more than a tenth of that"
    return [
        figure.Claim(faster, all(np.all(data[f"{way}_correlations"][0, normal, 2] < 0) for way in WAYS), numbers),
        figure.Claim(one, all(spans[way][1] < spans[way][0] / 2 for way in WAYS), sizes),
        figure.Claim(level, all(spans[way][2] > spans[way][0] / 10 for way in WAYS), sizes),
    ]


def draw(data: figure.Data) -> Figure:
    drawn, axes = plt.subplots(2, 3, figsize=(13, 7.4), width_ratios=(1, 1, 1.1))
    labels = ("test loss after the last iteration", "iterations to the given loss")
    for outcome, label in enumerate(labels):
        for place, way in enumerate(WAYS):
            table = data[f"{way}_outcomes"][outcome]
            for curve, (name, line) in enumerate(zip(CURVES, ("-", "--", "-"), strict=True)):
                ax, x = (axes[1, outcome], "gamma") if name == "level curve" else (axes[0, outcome], "exponent")
                words = f"{name}, {way} rate"
                generalization.against(ax, data[x][curve], table[curve], label=words, place=place, line=line)
        generalization.border(axes[0, outcome])
        axes[0, outcome].set(
            xlabel="C(β, γ)", ylabel=label, title=f"{'ab'[outcome]}  The same values of C on two curves"
        )
        axes[1, outcome].set(xlabel="γ", ylabel=label, title=f"{'de'[outcome]}  Along a level curve C is constant")
        for ax in axes[:, outcome]:
            ax.legend(fontsize=7)
    draw_correlations(axes[0, 2], data)
    for curve, marker in zip((0, 1), "os", strict=True):
        x, rates = data["exponent"][curve], data["tuned_rates"][curve]
        axes[1, 2].semilogy(
            x, rates, marker + "-", markersize=4 + 2 * curve, label=CURVES[curve], markerfacecolor="none"
        )
    rates = data["learning_rates"]
    axes[1, 2].set_yticks(rates, [f"{rate:g}" for rate in rates])
    axes[1, 2].minorticks_off()
    axes[1, 2].set(xlabel="C(β, γ)", ylabel="tuned learning rate", title="f  The learning rate chosen at each point")
    axes[1, 2].legend()
    return drawn


def draw_correlations(ax: Axes, data: figure.Data) -> None:
    names = [f"{outcome},\n{name}" for outcome in OUTCOMES for name, *_ in sets(data)]
    for place, way in enumerate(WAYS):
        table = data[f"{way}_correlations"].reshape(-1, 3)
        options: dict[str, Any] = dict(place=place, offset=0.25 * place, label=f"{way} rate")
        generalization.correlations(ax, names, *table.T, **options)
    ax.tick_params(axis="y", labelsize=7)
    ax.legend(fontsize=7)
    ax.set_title("c  Rank correlations, 95% over seeds")


if __name__ == "__main__":
    sys.exit(figure.main(__file__, __doc__, CONFIGS, compute, check, draw))
