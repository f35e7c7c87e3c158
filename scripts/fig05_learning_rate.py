"""The observed region of bounded updates of random quadratics: how it depends on the learning rate.

Each of tens of thousands of lanes runs the discrete Adam with ε = 0 on a random quadratic of its own, in 4 dimensions
with random eigenvectors, eigenvalues log-uniform in [.01, 1], and a standard normal start. Left: for three learning
rates, the largest update, max over n of ‖uₙ‖∞, by (β, γ), the line along which it is 2, and the borders C = 0 of [GT]
and γ² = β of the discrete optimizer. Right: the share of lanes whose updates stay within 2, against η.

Claim: the learning rate only sets how many steps away the minimum is: with η and the start scaled alike, all updates
are the same. While runs reach the minimum, the region shrinks as η falls, from nearly everything to γ² < β: the slower
the approach, the longer old gradients in m outlive those in v. Once η is so small that the runs stop short of the
minimum, the region grows again as η falls. Measured, up to n = 8000: 90% of the map at η = 1, 67% at η = .001 (theory:
69%), 94% at η = 1e-5; γ² < β tells bounded lanes from others in 60% at η = 1 and in 92% at η = 3e-4.

Where γ is near 1 and β small, the largest update grows as η^{−1/2} (measured: −.54): u ~ M/(h|θ|), with M the momentum
brought along and h the curvature, makes θ² fall linearly in n to a last step θ ~ ηu. No update grows as the bound does:
it peaks where a gradient passes through zero, at 161 at most. In B₊ the updates beyond 2, at β near 1 and small γ, are
bursts around the minimum: v has forgotten the way there, and η s passes the edge (2+2γ)/(1−γ), see figure 4.

Source: [GT] = R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization,
arXiv:2411.05746, for C = 0; the border γ² = β, the scaling and the exponent are derivations of this project.
Run time on 2 cores: half a minute; --quick 6 seconds; --full, 600,000 quadratics and four times the iterations, half
an hour.
"""

import dataclasses
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import equinox as eqx
import figure
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import adamflow as af
from adamflow.plotting import observed_region

jax.config.update("jax_enable_x64", True)

#: More than the rounding of ln‖uₙ‖∞, and too little to see.
ROUNDING = 1e-9
#: Runs count as reaching the minimum if they could move this far: starts are about 1 away in each coordinate.
REACH = 2.0
#: How far the shares of lanes at two learning rates may differ by chance.
CHANCE = 0.02
#: Where the largest update is expected to grow as η^{−1/2}, and how far off that exponent may be.
DEEP_BETA, DEEP_GAMMA, OFF_EXPONENT = 0.5, 0.99, 0.1

SCALES = "with η and the start divided by 8, every largest update is the same to the last digit"
WITHIN = f"up to the first length no update exceeds its discrete bound (ln‖uₙ‖∞ ≤ ln Bₙ + {ROUNDING:g})"
FINITE = "no run ends early, and the largest update of all is below a thousand, where the bound allows 10^100 and more"
SHRINKS = (
    f"up to the last length n, while η n ≥ {REACH:g}, the share of bounded lanes falls with η (up to {CHANCE:g} by "
    "chance), by .1 or more"
)
GROWS = "from there on it rises as η falls, by .1 or more: the runs stop short of the minimum"
THEORY = "at the smallest of these η, updates are bounded where γ² < β, and only there, in 85% of lanes or more"
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
    threshold: float = 2.0
    shown: tuple[float, ...] = (1.0, 0.01, 0.0001)
    lanes_at_once: int = 1200
    seed: int = 0


CONFIGS = {
    "quick": Config(cells=12, quadratics=2, learning_rates=(1.0, 0.1, 0.01, 0.001, 1e-4), iterations=(100, 500, 2500)),
    "default": Config(),
    "full": Config(cells=48, quadratics=24, iterations=(500, 4000, 32_000)),
}


class Quadratic(eqx.Module):
    """The loss ½ θᵀ H θ."""

    hessian: jax.Array

    def __call__(self, params: jax.Array) -> jax.Array:
        return params @ self.hessian @ params / 2


def compute(config: Config) -> figure.Data:
    """Run all lanes, a chunk at a time in each thread, and the first chunk once more with η and the start scaled."""
    beta_edges, betas = cells_of(config.beta_nines, config.cells)
    gamma_edges, gammas = cells_of(config.gamma_nines, config.cells)
    axes = (np.array(config.learning_rates), betas, gammas, np.arange(config.quadratics))
    eta, beta, gamma, _ = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
    hessians, starts = random_quadratics(config, len(eta))
    firsts = range(0, len(eta), config.lanes_at_once)
    jobs = [(slice(first, first + config.lanes_at_once), 1.0) for first in firsts] + [
        (slice(config.lanes_at_once), 8.0)
    ]

    def run(job: tuple[slice, float]) -> tuple[np.ndarray, ...]:
        rows, divisor = job
        lanes = (eta[rows] / divisor, beta[rows], gamma[rows], hessians[rows], starts[rows] / divisor)
        return jax.device_get(run_lanes(config.iterations, *lanes))

    with ThreadPoolExecutor(os.cpu_count()) as pool, figure.progress(total=len(jobs), describe="chunks") as bar:
        # The first chunk compiles the program that the others share.
        results = [run(jobs[0])]
        bar.update()
        for result in pool.map(run, jobs[1:]):
            results.append(result)
            bar.update()
    scaled = results.pop()[0]
    largest, excess, code = (np.concatenate(parts) for parts in zip(*results, strict=True))
    by_length = np.moveaxis(largest.reshape(*map(len, axes), -1), -1, 0)
    last = af.analysis.log_update_bound(betas[:, None], gammas, config.iterations[-1], "discrete")
    return {
        "beta_edges": beta_edges,
        "gamma_edges": gamma_edges,
        "beta": betas,
        "gamma": gammas,
        "learning_rates": axes[0],
        "iterations": np.array(config.iterations),
        "largest": by_length,
        "excess": excess.max(),
        "ended_early": np.sum(code != 0),
        "log10_of_largest_bound": np.max(last) / np.log(10),
        "scaled_differ_by": np.abs(scaled / largest[: len(scaled)] - 1).max(),
        "threshold": np.asarray(config.threshold),
        "shown": np.array(config.shown),
    }


def cells_of(nines: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The borders and the middles of cells equally wide in −log₁₀(1−α), from α = 0 on."""
    decays = 1 - 10 ** -np.linspace(0, nines, 2 * count + 1)
    return decays[::2], decays[1::2]


def random_quadratics(config: Config, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Hessians with random eigenvectors and eigenvalues log-uniform in [1/condition, 1], and normal starts."""
    generator = np.random.default_rng(config.seed)
    shape = (count, config.dimension)
    vectors = np.linalg.qr(generator.standard_normal((*shape, config.dimension)))[0]
    values = config.condition ** -generator.uniform(size=shape)
    return np.einsum("nij,nj,nkj->nik", vectors, values, vectors), generator.standard_normal(shape)


@partial(jax.jit, static_argnums=0)
def run_lanes(
    lengths: tuple[int, ...], eta: jax.Array, beta: jax.Array, gamma: jax.Array, hessian: jax.Array, start: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For each lane the largest update up to each length, by how much ln‖uₙ‖∞ exceeds its bound, and the outcome."""
    n = jnp.arange(lengths[0] + 1)

    def lane(eta, beta, gamma, hessian, start):
        optimizer, watch = af.adam(eta, beta, gamma), af.analysis.largest_update
        run = af.iterate(optimizer, Quadratic(hessian), start, lengths[-1], observe=watch)
        excess = jnp.log(run.observed[: len(n)]) - af.analysis.log_update_bound(beta, gamma, n, "discrete")
        largest = jnp.stack([jnp.max(run.observed[: length + 1]) for length in lengths])
        return largest, jnp.max(excess), run.outcome.code

    return jax.vmap(lane)(eta, beta, gamma, hessian, start)


def shares(data: figure.Data) -> tuple[np.ndarray, np.ndarray]:
    """By length and η, the share of lanes with bounded updates, and of those whose updates are bounded ⇔ γ² < β."""
    bounded = data["largest"] <= data["threshold"]
    inside = np.asarray(af.analysis.region_sign(data["beta"][:, None, None], data["gamma"][:, None], "discrete")) > 0
    return bounded.mean(axis=(2, 3, 4)), (bounded == inside).mean(axis=(2, 3, 4))


def check(data: figure.Data) -> list[figure.Claim]:
    share, agreement = shares(data)
    eta, largest = data["learning_rates"], data["largest"].max()
    log_bound = data["log10_of_largest_bound"]
    reaches = eta * data["iterations"][-1] >= REACH
    here, rest = share[-1, reaches], share[-1, ~reaches]
    smallest = np.flatnonzero(reaches)[-1]
    shrinks = np.all(np.diff(here) <= CHANCE) and here[0] - here[-1] >= 0.1
    of_ends = {f"at η = {eta[place]:g}": share[-1, place] for place in (0, smallest, -1)}
    of_theory = {f"at η = {eta[place]:g}": agreement[-1, place] for place in (0, smallest)}
    exponent = deep_exponent(data)
    claims = [
        (SCALES, data["scaled_differ_by"] == 0, {"relative difference": data["scaled_differ_by"]}),
        (WITHIN, data["excess"] <= ROUNDING, {"largest excess": data["excess"]}),
        (
            FINITE,
            data["ended_early"] == 0 and largest < 1000 and log_bound > 100,
            {"lanes": data["largest"][0].size, "largest": largest, "log10 of the largest bound": log_bound},
        ),
        (SHRINKS, shrinks, of_ends),
        (GROWS, rest.size > 0 and rest[-1] - here[-1] >= 0.1, of_ends),
        (THEORY, agreement[-1, smallest] >= 0.85 and agreement[-1, 0] < 0.7, of_theory),
        (EXPONENT, abs(exponent + 0.5) <= OFF_EXPONENT, {"exponent": exponent}),
    ]
    return [figure.Claim(sentence, bool(holds), numbers) for sentence, holds, numbers in claims]


def deep_exponent(data: figure.Data) -> float:
    """The power of η with which the median of the largest updates grows between η = .1 and .001, deep in B₋."""
    ends = [int(np.argmin(np.abs(data["learning_rates"] - eta))) for eta in (0.1, 0.001)]
    deep = data["largest"][-1][:, data["beta"] < DEEP_BETA][:, :, data["gamma"] > DEEP_GAMMA]
    sizes = np.log([np.median(deep[end]) for end in ends])
    return float(np.diff(sizes)[0] / np.diff(np.log(data["learning_rates"][ends]))[0])


def draw(data: figure.Data) -> Figure:
    drawn, axes = plt.subplots(1, 4, figsize=(14, 3.9), width_ratios=(1, 1, 1, 1.15))
    gamma = 1 - 10 ** -np.linspace(0.001, -np.log10(1 - data["gamma_edges"][-1]), 400)
    cells, threshold = (data["beta_edges"], data["gamma_edges"]), float(data["threshold"])
    places = [int(np.argmin(np.abs(data["learning_rates"] - eta))) for eta in data["shown"]]
    medians = np.median(data["largest"][-1, places], axis=-1)
    meshes = []
    for ax, median, letter, place in zip(axes, medians, "abc", places, strict=False):
        options = dict(threshold=threshold, top=float(medians.max()))
        meshes.append(observed_region.map_of_updates(ax, *cells, median, **options))
        observed_region.borders(ax, gamma, gamma / (2 - gamma), gamma**2)
        ax.set_title(f"{letter}  Largest update at η = {data['learning_rates'][place]:g}")
        ax.label_outer()
    axes[0].legend(loc=(0.45, 0.47))
    drawn.colorbar(meshes[-1], ax=axes[2], label="max over n of ‖uₙ‖∞, median", pad=0.02)
    column, row = data["beta"][:, None], data["gamma"]
    theory = [float(np.mean(af.analysis.region_sign(column, row, kind) > 0)) for kind in ("discrete", "paper")]
    share, lengths = shares(data)[0], data["iterations"].tolist()
    observed_region.share_bounded(axes[3], data["learning_rates"], share, lengths, theory, threshold=threshold)
    axes[3].set_title("d  The observed region against η")
    return drawn


if __name__ == "__main__":
    sys.exit(figure.main(__doc__, "fig05_learning_rate", CONFIGS, compute, check, draw))
