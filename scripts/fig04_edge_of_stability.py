"""The adaptive edge of stability: where v changes slowly, sharpness rises to (2+2γ)/((1−γ)η) and hovers there.

A small network (digits, tanh, 3 hidden units, so that it cannot fit the images) is trained on the full batch by the
discrete Adam with ε = 0. Along each run the learning rate times the preconditioned sharpness is measured, η s, with s
the largest eigenvalue of P^{−1/2} H P^{−1/2}, H the Hessian and P = √v̂, by the Lanczos method. Top left: η s, and the
edges (2+2γ)/(1−γ) at which a step turns unstable while P stands still. Top right: the same over the edge. Bottom left:
the loss. Bottom right: where η s over the edge stays in the last quarter of the runs: circles are medians of single
seeds, bars the middle half and lines the central 90% of all, the number their median.

Claim: η s rises by a factor of 7 to 27 to the edge and hovers there, for five pairs with β ≥ .99 and edges from 2 to
131, though the loss keeps falling. Measured: medians over the last quarter are .97 to 1.01 of the edge at β = .999, and
.94 to .97 at β = .99. Three runs do otherwise. At β = .5, P follows the oscillation within its period, the edge is not
one of a slow P, and η s lies above it (medians 1.25 to 1.48). At a learning rate twenty times smaller, η s also rises,
but has come to .15 to .25 of the edge at the end. In a network of 16 units, which fits the images, the Hessian
vanishes with the loss faster than √v forgets, and η s falls to .01 or .02 of the edge. With 4 units the edge is reached
too, but seeds that come to fit the images leave it again.

Source: derivation of this project for the edge of Adam with momentum, as for gradient descent at 2/η; [GT] =
R. Gould and H. Tanaka, arXiv:2411.05746, for the notation: it writes (β, γ) where PyTorch and optax write (b2, b1).
Run time on 2 cores: 1 minute; --quick 15 seconds; --full, ten seeds and five times the iterations, about 15.
"""

import dataclasses
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import equinox as eqx
import figure
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import adamflow as af
from adamflow.plotting import edge

jax.config.update("jax_enable_x64", True)

#: What the theory says of a run.
HOVERS, FAST, FAR, FITS = "hovers", "v is fast", "too far", "fits"
#: How far a median of η s over the edge may lie from 1.
AGREEMENT = 0.15
#: Largest residual of an eigenvalue over that eigenvalue: far less than what the medians are compared with.
CONVERGED = 1e-3

REACHES = "where v changes slowly and the loss lasts, η s falls at first, then rises at least twofold to the edge"
HOVERS_THERE = f"in the last part of these runs the median of η s is the edge within {AGREEMENT:.0%}, for every seed"
ABOVE = f"at β = .5, where v follows the oscillation, the median lies above the edge by more than {AGREEMENT:.0%}"
BELOW = "at a learning rate twenty times smaller, η s stays below half of the edge within the run"
VANISHES = "in a network that fits the images, η s falls with the loss, and ends below half of the edge"
IS_EIGENVALUE = f"after the start, residuals of the Lanczos method are at most {CONVERGED:g} of the eigenvalue"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; a run is (β, γ, η, hidden units, what the theory says of it); `seeds` are of the weights."""

    runs: tuple[tuple[float, float, float, int, str], ...] = (
        (0.999, 0.97, 5e-2, 3, HOVERS),
        (0.999, 0.9, 2e-2, 3, HOVERS),
        (0.99, 0.9, 1e-2, 3, HOVERS),
        (0.999, 0.5, 3e-3, 3, HOVERS),
        (0.999, 0.0, 1e-3, 3, HOVERS),
        (0.5, 0.5, 1e-3, 3, FAST),
        (0.999, 0.9, 1e-3, 3, FAR),
        (0.999, 0.9, 2e-2, 16, FITS),
    )
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 4000
    observe_every: int = 10
    lanczos_iterations: int = 16
    last_part: float = 0.25


DEFAULT = Config()
CONFIGS = {
    "quick": Config(runs=(*DEFAULT.runs[:3], *DEFAULT.runs[5:7]), seeds=(0,), steps=2000, observe_every=20),
    "default": DEFAULT,
    "full": Config(seeds=tuple(range(10)), steps=20_000),
}


class Watch(eqx.Module):
    """What is kept of an iteration: the sharpness, its residual, and the loss."""

    sharpness: Callable[[af.Snapshot], Any]

    def __call__(self, snapshot: af.Snapshot) -> jax.Array:
        row = self.sharpness(snapshot)
        return jnp.stack([row.value, row.residual, snapshot.loss])


def compute(config: Config) -> figure.Data:
    """Train every pair from every seed, in as many threads as there are cores."""
    n = np.arange(0, config.steps + 1, config.observe_every)
    lanes = [(run, seed) for run in config.runs for seed in config.seeds]

    def train(lane: tuple[Any, int]) -> np.ndarray:
        (beta, gamma, learning_rate, width, _), seed = lane
        problem, optimizer = af.problems.mlp((width,), seed=seed), af.adam(learning_rate, beta, gamma)
        observer = af.analysis.observe_sharpness(optimizer, problem.loss, iterations=config.lanczos_iterations)
        run = af.iterate(optimizer, problem.loss, problem.params, config.steps, save_at=n, observe=Watch(observer))
        if not run.outcome.successful:
            raise RuntimeError(f"the run at β = {beta}, γ = {gamma} {run.outcome.message}")
        return np.asarray(run.observed).T * np.array([[learning_rate], [learning_rate], [1.0]])

    with ThreadPoolExecutor(os.cpu_count()) as pool, figure.progress(total=len(lanes), describe="training") as bar:
        # The first run compiles the program that most of the others share.
        results = [train(lanes[0])]
        bar.update()
        for result in pool.map(train, lanes[1:]):
            results.append(result)
            bar.update()
    curves = np.reshape(results, (len(config.runs), len(config.seeds), 3, -1))
    beta, gamma, learning_rate, width, expected = (np.array(column) for column in zip(*config.runs, strict=True))
    return {
        "iterations": n.astype(float),
        "beta": beta,
        "gamma": gamma,
        "learning_rate": learning_rate,
        "width": width,
        "expected": expected,
        "edge": np.asarray(af.analysis.adaptive_edge(gamma)),
        "sharpness": curves[:, :, 0],
        "residual": curves[:, :, 1],
        "loss": curves[:, :, 2],
        "last_from": np.asarray((1 - config.last_part) * config.steps),
    }


def arrivals(data: figure.Data) -> tuple[np.ndarray, np.ndarray]:
    """For each run and seed, where η s first rises through the edge, and from how deep: the factor up from its least.

    Infinite and 0 where it never does. The start does not count: P = |g₀| there, and η s large.
    """
    ratio = data["sharpness"] / data["edge"][:, None, None]
    rises = (ratio[..., :-1] < 1) & (ratio[..., 1:] >= 1)
    first = np.where(rises.any(axis=-1), np.argmax(rises, axis=-1) + 1, 0)
    arrives = first > 0
    before = np.arange(ratio.shape[-1]) < first[..., None]
    least = np.min(ratio, axis=-1, where=before, initial=np.inf)
    return np.where(arrives, data["iterations"][first], np.inf), np.where(arrives, 1 / least, 0.0)


def check(data: figure.Data) -> list[figure.Claim]:
    ratio = data["sharpness"] / data["edge"][:, None, None]
    last = ratio[..., data["iterations"] >= data["last_from"]]
    median, top = np.median(last, axis=-1), ratio[..., 1:].max(axis=-1)
    arrival, rise = arrivals(data)
    residual = (data["residual"] / data["sharpness"])[..., 1:].max(axis=(-1, -2))
    hovers, fast, far, fits = (data["expected"] == kind for kind in (HOVERS, FAST, FAR, FITS))
    of_rise = by_run(data, "iteration", arrival, hovers) | by_run(data, "rises by", rise, hovers)
    claims = [
        (REACHES, rise[hovers].min() >= 2, of_rise),
        (HOVERS_THERE, np.abs(median[hovers] - 1).max() <= AGREEMENT, by_run(data, "median", median, hovers)),
        (ABOVE, median[fast].min() > 1 + AGREEMENT, by_run(data, "median", median, fast)),
        (BELOW, top[far].max() < 0.5, by_run(data, "largest", top, far) | by_run(data, "end", last[..., -1], far)),
    ]
    if fits.any():
        found = by_run(data, "end", last[..., -1], fits) | by_run(data, "loss", data["loss"][..., -1], fits)
        claims.append((VANISHES, last[fits, :, -1].max() < 0.5, found))
    claims.append((IS_EIGENVALUE, residual.max() <= CONVERGED, {"largest": residual.max()}))
    return [figure.Claim(sentence, bool(holds), numbers) for sentence, holds, numbers in claims]


def by_run(data: figure.Data, what: str, values: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
    """The least and the largest number over the seeds, for each chosen run."""
    numbers = {}
    for name, row in zip(np.array(names(data))[chosen], values[chosen], strict=True):
        numbers |= {f"{name}: {what}, least": row.min(), f"{name}: {what}, largest": row.max()}
    return numbers


def names(data: figure.Data) -> list[str]:
    """The runs in words."""
    columns = (data[name] for name in ("beta", "gamma", "learning_rate", "width"))
    usual = data["width"].min()
    return [
        f"β {short(beta)}, γ {short(gamma)}, η {short(eta)}" + (f", {width} units" if width != usual else "")
        for beta, gamma, eta, width in zip(*columns, strict=True)
    ]


def short(number: float) -> str:
    return f"{number:g}".lstrip("0") or "0"


def draw(data: figure.Data) -> Figure:
    n, ratio = data["iterations"], data["sharpness"] / data["edge"][:, None, None]
    drawn, ((first, second), (third, fourth)) = plt.subplots(2, 2, figsize=(11, 7))
    edge.sharpness_of_runs(first, n, data["sharpness"][:, 0], data["edge"])
    first.set_title("a  Sharpness rises to the edge of each γ")
    edge.sharpness_over_edge(second, n, ratio[:, 0])
    second.set_title("b  The same over the edge")
    edge.losses(third, n, data["loss"][:, 0])
    third.set_title("c  The loss falls all the while")
    edge.hovering(fourth, ratio[..., n >= data["last_from"]], names(data))
    fourth.set_title(f"d  From n = {data['last_from']:.0f} on, seeds: {ratio.shape[1]}")
    return drawn


if __name__ == "__main__":
    sys.exit(figure.main(__doc__, "fig04_edge_of_stability", CONFIGS, compute, check, draw))
