"""The observed region of bounded updates of random quadratics: how it depends on the learning rate.

Each of tens of thousands of lanes runs the discrete Adam with ε = 0 on a random quadratic of its own, in 4 dimensions
with random eigenvectors, eigenvalues log-uniform in [.01, 1], and a standard normal start. a to c: the largest update,
max over n of ‖uₙ‖∞, by (β, γ), and the borders C = 0 of [GT] and γ² = β of the discrete optimizer. d, e: the share of
lanes whose updates stay within a threshold, against η. f: the chance that a lane outside of a border has a larger
update than one inside, which needs no threshold; two borders of no theory are drawn for comparison.

Claim: the learning rate only sets how many steps away the minimum is: with η and the start scaled alike, updates are
the same. While runs reach the minimum, the share of bounded lanes falls with η: the slower the approach, the longer old
gradients in m outlive those in v. Once η is so small that runs stop short of the minimum, it rises again. How large the
share is depends on the threshold (57 to 88% at η = 3e-4, for thresholds 1.2 to 10; γ² < β is 69% of the map); that it
falls and rises, at which η, and f do not. In f, γ² < β says nothing at η = 1 (.45) and sorts lanes at η = 3e-4 (.98).
It is not singled out: C = 0 passes so near that three cells lie between, and cannot be told apart; γ⁴ < β sorts even
better (.99), since growth just outside of γ² = β is too slow for runs of this length.

Where γ is near 1 and β small, the largest update grows as η^{−1/2} (measured: −.54): u ~ M/(h|θ|), with M the momentum
brought along and h the curvature, makes θ² fall linearly in n to a last step θ ~ ηu. No update grows as the bound does:
it peaks where a gradient passes through zero, at 151 at most. In B₊ the updates beyond 2, at β near 1 and small γ, are
bursts around the minimum: v has forgotten the way there, and η s passes the edge (2+2γ)/(1−γ), see figure 4.

Source: [GT] = R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization,
arXiv:2411.05746, for C = 0; the border γ² = β, the scaling and the exponent are derivations of this project.
Run time on 2 cores: half a minute; --quick 8 seconds; --full, 600,000 quadratics, four times the iterations, an hour;
cut short, it goes on where it stopped.
"""

import dataclasses
import sys
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import mannwhitneyu

import adamflow as af
from adamflow.figures import figure, resume
from adamflow.plotting import observed_region

jax.config.update("jax_enable_x64", True)

#: More than the rounding of ln‖uₙ‖∞, and too little to see.
ROUNDING = 1e-9
#: Runs count as reaching the minimum if they could move this far: starts are about 1 away in each coordinate.
REACH = 2.0
#: By how many standard errors two shares of lanes must differ to count as different.
ERRORS = 4.0
#: Where the largest update is expected to grow as η^{−1/2}, and how far off that exponent may be.
DEEP_BETA, DEEP_GAMMA, OFF_EXPONENT = 0.5, 0.99, 0.1
#: The scaling is exact but for rounding, which runs amplify: of this share of lanes the largest update must agree.
SAME, SAME_SHARE = 1e-6, 0.9

SCALES = f"with η and the start divided by 3, at least {SAME_SHARE:.0%} of the largest updates are the same to {SAME:g}"
WITHIN = f"at no iteration does an update exceed its discrete bound (ln‖uₙ‖∞ ≤ ln Bₙ + {ROUNDING:g})"
FINITE = "no run ends early, though the bound allows more than the largest number of the computer"
SHRINKS = (
    f"at every threshold the share of bounded lanes falls with η while η n ≥ {REACH:g}: it rises at no step, and from "
    f"end to end it falls, by {ERRORS:g} standard errors"
)
GROWS = f"from there on it rises as η falls, at every threshold by {ERRORS:g} standard errors: runs stop short"
RANKS = (
    "without a threshold: the chance that a lane with γ² > β has a larger update than one with γ² < β rises with "
    "every smaller η that reaches, from .5 or less to .9 or more"
)
ALIKE = "which border agrees with more lanes there, γ² = β or C = 0, depends on the threshold: they are not told apart"
EXPONENT = (
    f"where β < {DEEP_BETA:g} and γ > {DEEP_GAMMA:g}, from η = .1 to .001 the largest update grows as η to the power "
    f"−.5 ± {OFF_EXPONENT:g} (median)"
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings: cells are equally wide in −log₁₀(1−β) and −log₁₀(1−γ), lanes lie in their middles."""

    cells: int = 20
    beta_nines: float = 4.0
    gamma_nines: float = 3.0
    quadratics: int = 12
    dimension: int = 4
    condition: float = 100.0
    learning_rates: tuple[float, ...] = tuple(float(f"{10**-power:.3g}") for power in np.arange(0, 5.01, 0.5))
    iterations: tuple[int, ...] = (500, 2000, 8000)
    thresholds: tuple[float, ...] = (1.2, 1.5, 2.0, 3.0, 5.0, 10.0)
    shown: tuple[float, ...] = (1.0, 0.01, 0.0001)
    cells_at_once: int = 100
    seed: int = 0


CONFIGS = {
    "quick": Config(12, learning_rates=(1.0, 0.1, 0.01, 0.001, 1e-5), iterations=(100, 500, 2500), cells_at_once=72),
    "default": Config(),
    "full": Config(cells=48, quadratics=24, iterations=(500, 4000, 32_000)),
}


class Quadratic(eqx.Module):
    """The loss ½ θᵀ H θ."""

    hessian: jax.Array

    def __call__(self, params: jax.Array) -> jax.Array:
        return params @ self.hessian @ params / 2


def compute(config: Config) -> figure.Data:
    """A sweep over all cells, and one over some of them with η and the start scaled."""
    beta_edges, betas = cells_of(config.beta_nines, config.cells)
    gamma_edges, gammas = cells_of(config.gamma_nines, config.cells)
    axes = (np.array(config.learning_rates), betas, gammas)
    eta, beta, gamma = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
    cells = np.arange(len(eta))
    again = np.random.default_rng(config.seed + 1).choice(cells, config.cells_at_once, replace=False)
    options: dict[str, Any] = dict(method="vmap", chunk=config.cells_at_once)
    run = partial(run_cell, config)
    with resume.Parts(__file__, config) as parts:
        grid = af.zip_axes(learning_rate=eta, beta=beta, gamma=gamma, divisor=np.ones(len(eta)), cell=cells)
        runs = parts.sweep("runs", run, {"point": grid}, **options)
        points = dict(learning_rate=eta[again], beta=beta[again], gamma=gamma[again], cell=again)
        grid = af.zip_axes(**points, divisor=np.full(len(again), 3.0))
        scaled = parts.sweep("scaled", run, {"point": grid}, **options).largest.values
    largest = runs.largest.values
    last = af.analysis.log_update_bound(config.iterations[-1], beta=betas[:, None], gamma=gammas, kind="discrete")
    return {
        "beta_edges": beta_edges,
        "gamma_edges": gamma_edges,
        "beta": betas,
        "gamma": gammas,
        "learning_rates": axes[0],
        "iterations": np.array(config.iterations),
        "largest": np.moveaxis(largest.reshape(*map(len, axes), *largest.shape[1:]), -1, 0),
        "excess": runs.excess.values.max(),
        "ended_early": np.sum(runs.code.values != 0),
        "log_of_largest_bound": np.max(last),
        "scaled_differ_by": np.abs(scaled / largest[again] - 1),
        "thresholds": np.array(config.thresholds),
        "shown": np.array(config.shown),
    }


def cells_of(nines: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The borders and the middles of cells equally wide in −log₁₀(1−α), from α = 0 on."""
    decays = 1 - 10 ** -np.linspace(0, nines, 2 * count + 1)
    return decays[::2], decays[1::2]


def random_quadratics(config: Config, cell: Any) -> tuple[jax.Array, jax.Array]:
    """Of a cell: Hessians with random eigenvectors, eigenvalues log-uniform in [1/condition, 1], and normal starts."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), cell), 3)
    shape = (config.quadratics, config.dimension)
    vectors = jnp.linalg.qr(jax.random.normal(keys[0], (*shape, config.dimension)))[0]
    values = config.condition ** -jax.random.uniform(keys[1], shape)
    return jnp.einsum("...ij,...j,...kj->...ik", vectors, values, vectors), jax.random.normal(keys[2], shape)


def run_cell(config: Config, learning_rate: Any, beta: Any, gamma: Any, divisor: Any, cell: Any) -> dict[str, Any]:
    """For each quadratic the largest update up to each length, by how much ln‖uₙ‖∞ exceeds its bound, and the outcome.

    The learning rate and the start are divided by `divisor`.
    """
    lengths = config.iterations
    hessians, starts = random_quadratics(config, cell)
    bound = af.analysis.log_update_bound(jnp.arange(lengths[-1] + 1), beta=beta, gamma=gamma, kind="discrete")
    optimizer, watch = af.adam(learning_rate / divisor, beta=beta, gamma=gamma), af.analysis.largest_update

    def lane(hessian: jax.Array, start: jax.Array) -> tuple[jax.Array, ...]:
        run = af.iterate(optimizer, Quadratic(hessian), start / divisor, lengths[-1], observe=watch)
        largest = jnp.stack([jnp.max(run.observed[: length + 1]) for length in lengths])
        return largest, jnp.max(jnp.log(run.observed) - bound), run.outcome.code

    largest, excess, code = jax.vmap(lane)(hessians, starts)
    return {
        "largest": (("quadratic", "iterations"), largest, {"long_name": "largest update up to an iteration"}),
        "excess": ("quadratic", excess),
        "code": ("quadratic", code),
    }


def shares(data: figure.Data) -> tuple[np.ndarray, np.ndarray]:
    """By threshold, length and η, the share of lanes with bounded updates, and its standard error."""
    lanes = data["largest"].reshape(*data["largest"].shape[:2], -1)
    share = np.stack([np.mean(lanes <= threshold, axis=-1) for threshold in data["thresholds"]])
    return share, np.sqrt(share * (1 - share) / lanes.shape[-1])


def borders(data: figure.Data) -> dict[str, np.ndarray]:
    """By name the cells inside: of the theories, and of two other borders for comparison."""
    beta, gamma = data["beta"][:, None], data["gamma"]
    discrete, paper = (
        np.asarray(af.analysis.bounded_update_sign(beta=beta, gamma=gamma, kind=kind)) > 0
        for kind in ("discrete", "gould_tanaka")
    )
    return {"γ² < β": discrete, "C > 0 [GT]": paper, "γ < β": gamma < beta, "γ⁴ < β": gamma**4 < beta}


def chances(data: figure.Data) -> dict[str, np.ndarray]:
    """By border and η, the chance that a lane outside has a larger update than one inside; ½ is no relation."""
    found = {}
    for name, inside in borders(data).items():
        pairs = [(lanes[~inside].ravel(), lanes[inside].ravel()) for lanes in data["largest"][-1]]
        found[name] = np.array([mannwhitneyu(out, rest).statistic / (out.size * rest.size) for out, rest in pairs])
    return found


def check(data: figure.Data) -> list[figure.Claim]:
    eta, largest = data["learning_rates"], data["largest"]
    same, log_bound = data["scaled_differ_by"] <= SAME, data["log_of_largest_bound"]
    of_runs = {"lanes": largest[0].size, "largest": largest.max(), "log10 of the bound": log_bound / np.log(10)}
    chance = chances(data)["γ² < β"][eta * data["iterations"][-1] >= REACH]
    of_chance = {f"at η = {rate:g}": value for rate, value in zip(eta, chance, strict=False)}
    exponent = deep_exponent(data)
    claims = [
        (SCALES, same.mean() >= SAME_SHARE, {"share": same.mean(), "largest": data["scaled_differ_by"].max()}),
        (WITHIN, data["excess"] <= ROUNDING, {"largest excess": data["excess"]}),
        (FINITE, data["ended_early"] == 0 and log_bound > np.log(np.finfo(float).max), of_runs),
        *claims_of_shares(data),
        (RANKS, np.all(np.diff(chance) > 0) and chance[0] <= 0.5 and chance[-1] >= 0.9, of_chance),
        (EXPONENT, abs(exponent + 0.5) <= OFF_EXPONENT, {"exponent": exponent}),
    ]
    return [figure.Claim(sentence, bool(holds), numbers) for sentence, holds, numbers in claims]


def claims_of_shares(data: figure.Data) -> list[tuple[str, Any, dict[str, Any]]]:
    """What holds at every threshold, and which border agrees with more lanes at the smallest η that reaches."""
    eta, thresholds, inside = data["learning_rates"], data["thresholds"], borders(data)
    share, error = (values[:, -1] for values in shares(data))
    turn = np.flatnonzero(eta * data["iterations"][-1] >= REACH)[-1]

    def rises(first: Any, second: Any) -> np.ndarray:
        """By how many standard errors the second share is above the first."""
        return (share[:, second] - share[:, first]) / np.hypot(error[:, first], error[:, second])

    steps, falls, grows = rises(slice(0, turn), slice(1, turn + 1)), -rises(0, turn), rises(turn, -1)
    of_fall, of_rise, of_borders, leads = {}, {}, {}, []
    between = inside["γ² < β"] & ~inside["C > 0 [GT]"]
    for threshold, row in zip(thresholds, share, strict=True):
        of_fall |= {f"up to {threshold:g}: η = {eta[place]:g}": row[place] for place in (0, turn)}
        of_rise[f"up to {threshold:g}: η = {eta[-1]:g}"] = row[-1]
        bounded = data["largest"][-1, turn] <= threshold
        agree = {name: np.mean(bounded == inside[name][..., None]) for name in ("γ² < β", "C > 0 [GT]")}
        of_borders |= {f"up to {threshold:g}: {name}": value for name, value in agree.items()}
        of_borders[f"up to {threshold:g}: bounded between"] = bounded[between].sum()
        leads.append(agree["γ² < β"] - agree["C > 0 [GT]"])
    of_borders["lanes between"] = between.sum() * data["largest"].shape[-1]
    of_borders |= {f"chance, {name}": chance[turn] for name, chance in chances(data).items()}
    return [
        (SHRINKS, steps.max() < ERRORS and falls.min() > ERRORS, of_fall | {"largest rise, errors": steps.max()}),
        (GROWS, grows.min() > ERRORS, of_rise | {"least rise, errors": grows.min()}),
        (ALIKE, min(leads) <= 0 <= max(leads), of_borders),
    ]


def deep_exponent(data: figure.Data) -> float:
    """The power of η with which the median of the largest updates grows between η = .1 and .001, deep in B₋."""
    ends = [int(np.argmin(np.abs(data["learning_rates"] - eta))) for eta in (0.1, 0.001)]
    deep = data["largest"][-1][:, data["beta"] < DEEP_BETA][:, :, data["gamma"] > DEEP_GAMMA]
    sizes = np.log([np.median(deep[end]) for end in ends])
    return float(np.diff(sizes)[0] / np.diff(np.log(data["learning_rates"][ends]))[0])


def draw(data: figure.Data) -> Figure:
    drawn, (maps, (first, second, third)) = plt.subplots(2, 3, figsize=(12, 7.8))
    gamma = 1 - 10 ** -np.linspace(0.001, -np.log10(1 - data["gamma_edges"][-1]), 400)
    cells, thresholds = (data["beta_edges"], data["gamma_edges"]), data["thresholds"]
    eta, middle = data["learning_rates"], len(thresholds) // 2 - 1
    places = [int(np.argmin(np.abs(eta - shown))) for shown in data["shown"]]
    medians = np.median(data["largest"][-1, places], axis=-1)
    meshes = []
    for ax, median, letter, place in zip(maps, medians, "abc", places, strict=True):
        options: Any = dict(thresholds=thresholds[[0, middle, -1]], top=float(medians.max()))
        meshes.append(observed_region.map_of_updates(ax, *cells, median, **options))
        observed_region.borders(ax, gamma, gamma / (2 - gamma), gamma**2)
        ax.set_title(f"{letter}  Largest update at η = {eta[place]:g}")
    handles = maps[0].get_legend_handles_labels()
    drawn.legend(*handles, loc="outside upper right", ncols=2, title="borders in a to c", title_fontsize=8)
    drawn.colorbar(meshes[-1], ax=maps[-1], label="max over n of ‖uₙ‖∞, median", pad=0.02)
    share, lengths = shares(data)[0], data["iterations"]
    inside = float(np.mean(borders(data)["γ² < β"]))
    of_threshold = {f"up to {threshold:g}": row for threshold, row in zip(thresholds, share[:, -1], strict=True)}
    # Six lines are too many for an eye; the others say where those left out run.
    of_threshold = dict(list(of_threshold.items())[::2]) if len(of_threshold) > 4 else of_threshold
    observed_region.shares(first, eta, of_threshold, inside)
    first.set_title(f"d  Shares by threshold, n ≤ {lengths[-1]:,}")
    of_length = {f"n ≤ {length:,}": row for length, row in zip(lengths, share[middle], strict=True)}
    observed_region.shares(second, eta, of_length, inside)
    second.set_title(f"e  Shares by length, updates up to {thresholds[middle]:g}")
    observed_region.chances(third, eta, chances(data))
    third.set_title(f"f  How well borders sort the runs, n ≤ {lengths[-1]:,}")
    return drawn


if __name__ == "__main__":
    sys.exit(figure.main(__file__, __doc__, CONFIGS, compute, check, draw))
