"""The region of bounded updates: where Adam's updates stay bounded, and how fast they grow elsewhere.

A character transformer is trained on minibatches by the discrete Adam with ε = 0, once for each (β, γ) of a grid, and
for each of 64 points on the normal curve through (.999, .9) from three seeds. Left: the largest update, max over n of
‖uₙ‖∞, of each run on the grid, with the border C(β, γ) = 0 of [GT] and the border γ² = β of the discrete optimizer.
Middle: the slope of ln‖uₙ‖∞ at iteration 500 along the curve, beside the prediction of [GT], max(0, −C/2), and the
discrete rate, max(0, ln γ − ½ ln β). Right: some of these runs, beside the bound Bₙ that the worst gradients attain.

Claim: where C > 0 updates stay bounded; beyond, they grow, at nearly the rate −C/2 of [GT], and nearer still to the
discrete rate. At every iteration they keep to the discrete bound, and most of the growing runs attain its slope, the
worst case: their largest updates belong to rare characters, whose gradient vanishes in batches without them, so that m
falls by γ and √v by √β per iteration. When a gradient returns they fall back; hence the scatter at small growth rates.
The bound of [GT], one of continuous time, is exceeded in early iterations.

The slope at iteration 500 is that of the least-squares line through ln‖uₙ‖∞ from iteration 450 to 550. A run that
diverges (a parameter beyond 1e8) counts up to there. In float32 a falling v becomes 0: hence float64.

Source: [GT] = R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization,
arXiv:2411.05746, its second figure; the discrete bound, its rate and border are derivations of this project.
Run time on 2 cores: 1 minute; --quick 20 seconds; --full, a grid of 64 × 64 and 1000 iterations, about half an hour;
cut short, it goes on where it stopped.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.figure import Figure

import adamflow as af
from adamflow.figures import figure, resume
from adamflow.plotting import region

jax.config.update("jax_enable_x64", True)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings: decays on the grid are equally spaced in ln x/(1−x); seeds are of the weights and of the batches."""

    grid: int = 16
    beta_range: tuple[float, float] = (0.1, 0.9999)
    gamma_range: tuple[float, float] = (0.1, 0.999)
    curve_points: int = 64
    curve_seeds: tuple[int, ...] = (0, 1, 2)
    seed: int = 0
    steps: int = 550
    slope_at: int = 500
    slope_half_window: int = 50
    learning_rate: float = 1e-3
    layers: int = 1
    heads: int = 2
    width: int = 16
    context: int = 16
    batch_size: int = 8


CONFIGS = {
    "quick": Config(grid=8, curve_points=16, curve_seeds=(0,), context=8),
    "default": Config(),
    "full": Config(grid=64, curve_seeds=tuple(range(10)), steps=1000, layers=2),
}

Finding: TypeAlias = tuple[str, Any, dict[str, Any]]
#: More than the rounding of ln‖uₙ‖∞, and too little to see.
ROUNDING = 1e-9
#: How far slopes may lie from the prediction of [GT], as a share of the largest slope predicted.
AGREEMENT = 0.1
#: A slope this near to that of the bound counts as equal to it; predicted slopes reach 0.024.
ATTAINED = 1e-4


def compute(config: Config) -> figure.Data:
    """Run the grid and the curve, and measure both beside the bounds."""
    beta_edges, betas = logit_cells(*config.beta_range, config.grid)
    gamma_edges, gammas = logit_cells(*config.gamma_range, config.grid)
    border = logit_cells(gamma_edges[0], gamma_edges[-1], 200)[1]
    curve = af.analysis.normal_curve(config.curve_points, beta=0.999, gamma=0.9)
    lanes = [(config.seed, beta, gamma) for beta in betas for gamma in gammas]
    lanes += [(seed, beta, gamma) for seed in config.curve_seeds for beta, gamma in zip(*curve, strict=True)]
    with resume.Parts(__file__, config) as parts:
        updates = train(config, lanes, parts)
    _, beta, gamma = np.array(lanes).T[..., None]
    n = np.arange(config.steps + 1)
    discrete, paper = (
        np.asarray(af.analysis.log_update_bound(n, beta=beta, gamma=gamma, kind=kind))
        for kind in ("discrete", "gould_tanaka")
    )
    cells, points = slice(config.grid**2), slice(config.grid**2, None)
    data = {
        "beta_edges": beta_edges,
        "gamma_edges": gamma_edges,
        "border_gamma": border,
        "border_beta_paper": border / (2 - border),
        "border_beta_discrete": border**2,
        **excesses(updates, discrete, paper),
        **map_of(config, beta[cells], gamma[cells], updates[cells], discrete[cells]),
        **slopes_of(config, *curve, updates[points], discrete[points]),
    }
    return {name: np.asarray(values) for name, values in data.items()}


def logit_cells(low: float, high: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The borders and the middles of cells equally wide in ln x/(1−x), the first and last middle at low and high."""
    start, stop = (np.log(end / (1 - end)) for end in (low, high))
    half = (stop - start) / (count - 1) / 2
    decays = 1 / (1 + np.exp(-np.linspace(start - half, stop + half, 2 * count + 1)))
    return decays[::2], decays[1::2]


def train(config: Config, lanes: list[tuple[int, float, float]], parts: resume.Parts) -> np.ndarray:
    """‖uₙ‖∞ for each (seed, β, γ) and n, over the parameters of characters and over all others; NaN after a run's end.

    Lanes in threads over one program: for a model this small that is faster than vmap over the runs, 0.6 ms against
    0.9 ms for each gradient, on 2 busy cores.
    """
    model: dict[str, Any] = dict(layers=config.layers, heads=config.heads, width=config.width, context=config.context)
    seeds = {config.seed, *config.curve_seeds}
    problems = {seed: af.problems.char_transformer(**model, batch_size=1, seed=seed) for seed in seeds}

    def run(seed: int, beta: float, gamma: float) -> dict[str, Any]:
        loss, params = problems[seed].loss, problems[seed].params
        batches = problems[seed].batches(config.batch_size, seed)
        optimizer = af.adam(config.learning_rate, beta=beta, gamma=gamma)
        result = af.iterate(optimizer, loss, params, config.steps, observe=largest_updates, batches=batches)
        updates = np.full((config.steps + 1, 2), np.nan)
        updates[: len(result)] = result.observed
        return {"updates": (("iteration", "parameters"), updates), "run": result.outcome}

    seed, beta, gamma = zip(*lanes, strict=True)
    points = af.zip_axes(seed=seed, beta=beta, gamma=gamma)
    return parts.sweep("runs", run, {"point": points}, method="threads").updates.values


def largest_updates(snapshot: af.Snapshot) -> jax.Array:
    """The largest entry of u among the parameters of characters, which are embedding and head, and among the others."""
    of_characters, others = {}, {}
    for name, update in snapshot.direction.items():
        (of_characters if name in ("tokens", "head") else others)[name] = update
    return jnp.stack([optax.tree.norm(updates, ord="inf") for updates in (of_characters, others)])


def excesses(updates: np.ndarray, discrete: np.ndarray, paper: np.ndarray) -> dict[str, Any]:
    """By how much ln‖uₙ‖∞ exceeds the bounds: for each run the most, and the last n (that of [GT] from n = 1 on)."""
    logs = np.log(updates.max(axis=2))
    above = (logs - paper)[:, 1:]
    return {
        "excess_discrete": np.nanmax(logs - discrete, axis=1),
        "excess_paper": np.nanmax(above, axis=1),
        "excess_paper_last": np.max(np.where(above > ROUNDING, np.arange(1, logs.shape[1]), 0), axis=1),
        "updates_counted": np.sum(np.isfinite(logs), axis=1),
    }


def map_of(config: Config, beta: Any, gamma: Any, updates: np.ndarray, log_bounds: np.ndarray) -> dict[str, Any]:
    """What the map shows and its claims need, by β and γ."""
    largest = np.nanmax(updates, axis=1)
    columns = {
        "cell_exponent": af.analysis.stability_exponent(beta=beta, gamma=gamma),
        "cell_rate": af.analysis.bound_growth_rate(beta=beta, gamma=gamma, kind="discrete"),
        "cell_largest": largest.max(axis=1),
        "cell_bound": np.exp(log_bounds.max(axis=1)),
        "cell_of_character": largest[:, 0] > largest[:, 1],
        "cell_diverged": np.isnan(updates[:, -1, 0]),
    }
    return {name: np.reshape(column, (config.grid, config.grid)) for name, column in columns.items()}


def slopes_of(config: Config, beta: Any, gamma: Any, updates: np.ndarray, log_bounds: np.ndarray) -> dict[str, Any]:
    """Histories and slopes along the curve, by seed and point, and those of the bounds."""
    logs = np.log(updates.max(axis=2)).reshape(len(config.curve_seeds), config.curve_points, -1)
    log_bounds = log_bounds[: config.curve_points]
    distance = np.arange(config.steps + 1) - config.slope_at
    weights = np.where(np.abs(distance) <= config.slope_half_window, distance, 0)
    return {
        "slope_at": config.slope_at,
        "curve_beta": beta,
        "curve_gamma": gamma,
        "curve_exponent": af.analysis.stability_exponent(beta=beta, gamma=gamma),
        "curve_rate": af.analysis.bound_growth_rate(beta=beta, gamma=gamma, kind="discrete"),
        "curve_logs": logs,
        "curve_log_bounds": log_bounds,
        "curve_slopes": logs @ weights / np.sum(weights**2),
        "curve_bound_slopes": log_bounds @ weights / np.sum(weights**2),
    }


def check(data: figure.Data) -> list[figure.Claim]:
    claims = [*claims_of_bounds(data), *claims_of_map(data), *claims_of_slopes(data)]
    return [
        figure.Claim(words, bool(holds), {key: float(x) for key, x in found.items()}) for words, holds, found in claims
    ]


def claims_of_bounds(data: figure.Data) -> list[Finding]:
    discrete, paper, last = data["excess_discrete"], data["excess_paper"], data["excess_paper_last"].max()
    return [
        (
            f"no update of any run exceeds the discrete bound of its iteration (ln‖uₙ‖∞ ≤ ln Bₙ + {ROUNDING:g})",
            np.all(discrete <= ROUNDING),
            dict(runs=len(discrete), updates=data["updates_counted"].sum(), largest_excess=discrete.max()),
        ),
        (
            "the bound of [GT], one of continuous time, is exceeded by discrete updates in early iterations",
            np.any(paper > ROUNDING),
            dict(share_of_runs=np.mean(paper > ROUNDING), largest_factor=np.exp(paper.max()), last_iteration=last),
        ),
    ]


def claims_of_map(data: figure.Data) -> list[Finding]:
    exponent, rate, largest, bound = (data[f"cell_{name}"] for name in ("exponent", "rate", "largest", "bound"))
    diverged = data["cell_diverged"]
    inside, outside, between = exponent > 0, rate > 0, (exponent <= 0) & (rate <= 0)
    highest = largest[inside].max()
    under, beyond = largest[inside] <= bound[inside] * (1 + ROUNDING), largest[outside] > highest
    found_outside = {
        "cells": outside.sum(),
        "share": np.mean(beyond),
        "median_update": np.median(largest[outside]),
        "share_diverged": np.mean(diverged[outside]),
        "share_of_these_in_embedding_or_head": np.mean(data["cell_of_character"][outside][beyond]),
    }
    return [
        (
            "where C > 0, every run completes, and its largest update is at most its largest discrete bound",
            np.all(under) and not np.any(diverged[inside]),
            dict(cells=inside.sum(), share=np.mean(under), largest_update=highest, largest_bound=bound[inside].max()),
        ),
        ("where γ² > β, most runs have an update larger than any where C > 0", np.mean(beyond) > 0.5, found_outside),
        (
            "between the borders, C ≤ 0 and γ² ≤ β, where the bound of [GT] grows, updates are no larger than inside",
            np.all(largest[between] <= highest),
            dict(cells=between.sum(), largest_update=largest[between].max(initial=0.0)),
        ),
    ]


def claims_of_slopes(data: figure.Data) -> list[Finding]:
    measured, outside = data["curve_slopes"], data["curve_exponent"] < 0
    inside, top = measured[:, ~outside], -data["curve_exponent"].min() / 2
    paper = (measured + data["curve_exponent"] / 2)[:, outside]
    discrete = (measured - np.maximum(0, data["curve_rate"]))[:, outside]
    median_paper, median_discrete = (np.median(np.abs(miss)) for miss in (paper, discrete))
    scatter = dict(rms=np.sqrt(np.mean(paper**2)), largest=np.abs(paper).max())
    attained = np.abs(measured - data["curve_bound_slopes"])[:, outside] <= ATTAINED
    return [
        (
            f"where C < 0, slopes along the normal curve are −C/2 within {AGREEMENT:.0%} of its largest value (median)",
            median_paper <= AGREEMENT * top,
            dict(median=median_paper, **scatter, largest_prediction=top),
        ),
        (
            f"where C ≥ 0, slopes are 0 within {AGREEMENT:.0%} of that value (rms)",
            np.sqrt(np.mean(inside**2)) <= AGREEMENT * top,
            dict(rms=np.sqrt(np.mean(inside**2)), least=inside.min(), largest=inside.max()),
        ),
        (
            "where C < 0, the discrete rate is nearer to the slopes than −C/2 (median)",
            median_discrete < median_paper,
            dict(discrete=median_discrete, paper=median_paper, most_above_discrete=discrete.max()),
        ),
        (
            f"where C < 0, runs attain the worst case: slopes equal to those of ln Bₙ within {ATTAINED:g}",
            np.any(attained),
            dict(runs=attained.size, share=np.mean(attained)),
        ),
    ]


def draw(data: figure.Data) -> dict[str, Figure]:
    return {"": draw_runs(data, (0.02, 0.94)), "all": draw_runs(data, (0.02, 0.7, 0.88, 0.94, 0.98))}


def draw_runs(data: figure.Data, places: Sequence[float]) -> Figure:
    """All panels, the last with runs at some places of the normal curve, from 0 at its start to 1 at its end."""
    drawn, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.6), width_ratios=(1.2, 1, 0.95))
    beta, gamma, exponent = data["curve_beta"], data["curve_gamma"], data["curve_exponent"]
    region.largest_updates(left, data["beta_edges"], data["gamma_edges"], data["cell_largest"], data["cell_diverged"])
    region.borders(left, data["border_gamma"], data["border_beta_paper"], data["border_beta_discrete"])
    left.plot(beta, gamma, ":", color="white", linewidth=1.2, label="normal curve")
    left.plot(0.999, 0.9, "*", color="white", markersize=9, markeredgecolor="black", label="(.999, .9)")
    handles = left.get_legend_handles_labels()
    drawn.legend(*handles, loc="outside lower left", ncols=5, facecolor="0.75", framealpha=1)
    left.set_title("a  Largest update of each run")

    rates = dict(paper=np.maximum(0, -exponent / 2), discrete=np.maximum(0, data["curve_rate"]))
    region.slopes(middle, exponent / 2, data["curve_slopes"], **rates, bound=data["curve_bound_slopes"])
    middle.set_title(f"b  Growth at iteration {data['slope_at']} along the normal curve")

    chosen = np.round(np.array(places) * (len(beta) - 1)).astype(int)
    labels = [f"β = {beta[i]:.4f}, γ = {gamma[i]:.4f}" for i in chosen]
    n = np.arange(data["curve_logs"].shape[-1])
    region.histories(right, n, data["curve_logs"][0, chosen], data["curve_log_bounds"][chosen], labels)
    right.set_title("c  Runs along the normal curve")
    return drawn


if __name__ == "__main__":
    sys.exit(figure.main(__file__, __doc__, CONFIGS, compute, check, draw))
