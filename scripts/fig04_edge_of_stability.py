"""The adaptive edge of stability: where v changes slowly, sharpness rises to (2−ηλ)(1+γ)/((1−γ)η) and hovers there.

Small networks (digits, tanh) are trained on the full batch by the discrete Adam, or AdamW with decay λ, with ε = 0.
Along each run the learning rate times the preconditioned sharpness is measured, η s, with s the largest eigenvalue of
P^{−1/2} H P^{−1/2}, H the Hessian and P = √v̂, by the Lanczos method. Top left: η s, and the edges (2−ηλ)(1+γ)/(1−γ) at
which a step turns unstable while P stands still. Top right: the same over the edge. Bottom left: the loss. Bottom
right: where η s over the edge stays in the last quarter of the runs: circles are medians of single seeds, bars the
middle half and lines the central 90% of all, the number their median.

The theory asks for two things, and each run of each seed is classified by its own data. v is slow: in the second half
ln P changes by at most .2 within 20 iterations, ten periods of the oscillation at the edge (mean of |Δ ln P| over the
coordinates; bursts of the loss last about as long). The threshold was set when the first runs had been seen. The loss
remains: some image is classified wrongly, or λ > 0. If all are right and λ = 0, longer weights make the loss as small
as one likes, and the Hessian vanishes with it, faster than √v forgets.

Networks of 16 or more units come to fit all images. So most of the runs that hover have 3 hidden units, too few for
that; in one, of 32 units, a large weight decay keeps the loss from vanishing, λ = 3.

Claim: where v is slow and the loss remains, η s rises to the edge, by a factor of 3 to 26, and hovers there, for five
settings with β = .999 and edges from 2 to 131. Measured, with one thread or two, on which rounding depends, and on it
when bursts come: medians over the last quarter are .96 to 1.02 of the edge. Where the learning rate is twenty times
smaller, η s is still rising at the end, at .15 to .25 of the edge. The more P changes, the farther off is η s
(Spearman's ρ of the settings .98 or .95): at β = .99, 5 to 10% in the mean (medians .93 to .97). With λ = 1 instead of
3, η s rises to the edge again and again, and bursts of the loss, in which P jumps, throw it back (medians .58 to .87).
At β = .5, it lies above the edge (medians 1.21 to 1.53). Where the loss does not remain, in a network of 16 units, η s
falls to .01 or .02 of the edge. The classes are the same with one thread and two: ln P changes by .01 to .16 where v
counts as slow, and by .28 to .97 where it does not.

Source: derivation of this project for the edge of Adam with momentum, as for gradient descent at 2/η; [GT] =
R. Gould and H. Tanaka, arXiv:2411.05746, for the notation: it writes (β, γ) where PyTorch and optax write (b2, b1).
Run time on 2 cores: 1 minute; --quick 15 seconds; --full, ten seeds and five times the iterations, over an hour.
"""

import dataclasses
import sys
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure
from scipy.stats import spearmanr

import adamflow as af
from adamflow.figures import cores, figure
from adamflow.plotting import edge
from adamflow.plotting.colours import line_styles

jax.config.update("jax_enable_x64", True)

#: How far a median of η s over the edge may lie from 1.
AGREEMENT = 0.15
#: The largest mean |Δ ln P| from one row to the next at which v counts as slow: in a gap of the first runs.
SLOW = 0.2
#: Largest residual of an eigenvalue over that eigenvalue: far less than what the medians are compared with.
CONVERGED = 1e-3

REACHES = "where v is slow and the loss remains, η s falls at first, then rises at least twofold and comes to the edge"
NOT_YET = "where that has not happened, η s is below the edge and still rising at the end"
HOVERS = f"in the last part of the runs that came to the edge the median of η s is the edge within {AGREEMENT:.0%}"
ORDERS = "where the loss remains and η s reached the edge, it is the farther off the more P changes: Spearman's ρ > .7"
VANISHES = "where the loss does not remain, η s falls with it, and ends below half of the edge"
IS_EIGENVALUE = f"after the start, residuals of the Lanczos method are at most {CONVERGED:g} of the eigenvalue"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; a run is (β, γ, η, λ, hidden units); `seeds` are of the weights."""

    runs: tuple[tuple[float, float, float, float, int], ...] = (
        (0.999, 0.97, 5e-2, 0.0, 3),
        (0.999, 0.9, 2e-2, 0.0, 3),
        (0.99, 0.9, 1e-2, 0.0, 3),
        (0.999, 0.5, 3e-3, 0.0, 3),
        (0.999, 0.0, 1e-3, 0.0, 3),
        (0.999, 0.9, 5e-2, 3.0, 32),
        (0.999, 0.9, 5e-2, 1.0, 32),
        (0.5, 0.5, 1e-3, 0.0, 3),
        (0.999, 0.9, 1e-3, 0.0, 3),
        (0.999, 0.9, 2e-2, 0.0, 16),
    )
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 4000
    observe_every: int = 20
    lanczos_iterations: int = 12
    last_part: float = 0.25


DEFAULT = Config()
CONFIGS = {
    "quick": Config(runs=(*DEFAULT.runs[:3], *DEFAULT.runs[7:9]), seeds=(0,), steps=2000),
    "default": DEFAULT,
    "full": Config(seeds=tuple(range(10)), steps=20_000),
}


class Watch(eqx.Module):
    """What is kept of an iteration: the preconditioner P, and the sharpness, its residual, the loss and accuracy."""

    optimizer: af.Optimizer
    problem: af.Problem
    iterations: int = eqx.field(static=True)

    def __call__(self, snapshot: af.Snapshot) -> tuple[jax.Array, jax.Array]:
        preconditioner = self.optimizer.preconditioner(snapshot.filters, snapshot.iteration)
        sharpness = af.analysis.preconditioned_sharpness(
            self.problem.loss, snapshot.params, preconditioner, iterations=self.iterations
        )
        accuracy = self.problem.metrics["train_accuracy"](snapshot.params)
        return ravel_pytree(preconditioner)[0], jnp.stack(
            [sharpness.value, sharpness.residual, snapshot.loss, accuracy]
        )


def changes(preconditioner: np.ndarray) -> np.ndarray:
    """The mean of |ln Pₙ − ln Pₘ| over the coordinates that move, m the row before n; 0 in the first row."""
    moves = np.all(preconditioner > 0, axis=0)
    return np.append(0.0, np.abs(np.diff(np.log(preconditioner[:, moves]), axis=0)).mean(axis=1))


def compute(config: Config) -> figure.Data:
    """Train every pair from every seed, in as many threads as there are cores."""
    n = np.arange(0, config.steps + 1, config.observe_every)
    lanes = [(run, seed) for run in config.runs for seed in config.seeds]

    def train(lane: tuple[Any, int]) -> np.ndarray:
        (beta, gamma, learning_rate, decay, width), seed = lane
        problem = af.problems.mlp((width,), seed=seed)
        optimizer = af.adamw(learning_rate, beta=beta, gamma=gamma, weight_decay=decay)
        # In wide networks more eigenvalues are near the largest.
        watch = Watch(optimizer, problem, max(config.lanczos_iterations, width))
        run = af.iterate(optimizer, problem.loss, problem.params, config.steps, save_at=n, observe=watch)
        if not run.outcome.successful:
            raise RuntimeError(f"the run at β = {beta}, γ = {gamma} {run.outcome.message}")
        preconditioner, rows = map(np.asarray, run.observed)
        return np.vstack([rows.T * [[learning_rate], [learning_rate], [1.0], [1.0]], changes(preconditioner)])

    with cores.threads() as pool, figure.progress(total=len(lanes), describe="training") as bar:
        # The first run compiles the program that most of the others share.
        results = [train(lanes[0])]
        bar.update()
        for result in pool.map(train, lanes[1:]):
            results.append(result)
            bar.update()
    curves = np.reshape(results, (len(config.runs), len(config.seeds), 5, -1))
    numbers = dict(zip(("beta", "gamma", "learning_rate", "decay", "width"), np.transpose(config.runs), strict=True))
    optimizers = [
        af.adamw(eta, beta=beta, gamma=gamma, weight_decay=decay) for beta, gamma, eta, decay, _ in config.runs
    ]
    edges = [float(optimizer.learning_rate * af.analysis.critical_curvature(optimizer)) for optimizer in optimizers]
    rows = dict(zip(("sharpness", "residual", "loss", "accuracy", "change"), np.moveaxis(curves, 2, 0), strict=True))
    last_from = np.asarray((1 - config.last_part) * config.steps)
    return {"iterations": n.astype(float), **numbers, "edge": np.array(edges), **rows, "last_from": last_from}


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


def classify(data: figure.Data) -> tuple[np.ndarray, np.ndarray]:
    """For each run and seed, the largest change of ln P between rows, and whether the loss remains."""
    # Bursts, in which P jumps, may be a thousand iterations apart.
    half = data["iterations"] >= data["iterations"][-1] / 2
    remains = (data["accuracy"][..., half].max(axis=-1) < 1) | (data["decay"][:, None] > 0)
    return data["change"][..., half].max(axis=-1), remains


def check(data: figure.Data) -> list[figure.Claim]:
    ratio, at_end = data["sharpness"] / data["edge"][:, None, None], data["iterations"] >= data["last_from"]
    last = ratio[..., at_end]
    median, end = np.median(last, axis=-1), last[..., -1]
    off = np.abs(last - 1).mean(axis=-1)
    arrival, rise = arrivals(data)
    residual = (data["residual"] / data["sharpness"])[..., 1:].max()
    change, remains = classify(data)
    slow = change <= SLOW
    came, vanishes = remains & (rise > 0), ~remains
    here, not_yet = slow & came, slow & remains & (rise == 0)
    of_rise = by_run(data, "iteration", arrival, here) | by_run(data, "rises by", rise, here)
    of_all = by_run(data, "off by", off, came) | by_run(data, "change of P", change, came)
    of_others = by_run(data, "median", median, came & ~slow)
    claims = [
        (REACHES, here.any() and rise[here].min() >= 2, of_rise | by_run(data, "change of P", change, here)),
        (HOVERS, here.any() and np.abs(median[here] - 1).max() <= AGREEMENT, by_run(data, "median", median, here)),
    ]
    # Settings count once, not each of their seeds; a rank correlation of the four of --quick would say nothing.
    all_came = came.all(axis=1)
    if all_came.sum() > 5:
        correlation = cast(Any, spearmanr(change.mean(axis=1)[all_came], off.mean(axis=1)[all_came])).statistic
        claims.append((ORDERS, correlation > 0.7, {"Spearman's ρ, settings": correlation} | of_all | of_others))
    if not_yet.any():
        rising = np.all((last[..., 0] < end)[not_yet]) and np.all(end[not_yet] < 1)
        claims.append((NOT_YET, rising, by_run(data, "end", end, not_yet)))
    if vanishes.any():
        found = by_run(data, "end", end, vanishes) | by_run(data, "loss", data["loss"][..., -1], vanishes)
        claims.append((VANISHES, end[vanishes].max() < 0.5, found))
    claims.append((IS_EIGENVALUE, residual <= CONVERGED, {"largest": residual}))
    return [figure.Claim(sentence, bool(holds), numbers) for sentence, holds, numbers in claims]


def by_run(data: figure.Data, what: str, values: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
    """The least and the largest number over the chosen seeds, for each run that has one, and how many these are."""
    numbers = {}
    for name, row, seeds in zip(names(data), values, chosen, strict=True):
        if seeds.any():
            of = name + ("" if seeds.all() else f" ({seeds.sum()} of {seeds.size} seeds)") + f": {what}"
            numbers |= {f"{of}, least": row[seeds].min(), f"{of}, largest": row[seeds].max()}
    return numbers


def names(data: figure.Data) -> list[str]:
    """The runs in words."""
    columns = (data[name] for name in ("beta", "gamma", "learning_rate", "decay", "width"))
    return [
        f"β {short(beta)}, γ {short(gamma)}, η {short(eta)}"
        + (f", λ {short(decay)}" if decay else "")
        + (f", {width:.0f} units" if width != data["width"].min() else "")
        for beta, gamma, eta, decay, width in zip(*columns, strict=True)
    ]


def short(number: float) -> str:
    return f"{number:g}".lstrip("0") or "0"


#: Which runs the picture has in its first panels: one for each γ, and one that stays below. The other has all.
SHOWN = (0, 1, 3, 4, 8)


def draw(data: figure.Data) -> dict[str, Figure]:
    count = len(data["edge"])
    return {
        "": draw_runs(data, [place for place in SHOWN if place < count]),
        "all": draw_runs(data, list(range(count))),
    }


def draw_runs(data: figure.Data, chosen: list[int]) -> Figure:
    """Panels a to c with some of the runs, and d with all; runs that are in d alone are grey."""
    n, ratio = data["iterations"], data["sharpness"] / data["edge"][:, None, None]
    drawn = plt.figure(figsize=(12, 7))
    grid = drawn.add_gridspec(2, 3, height_ratios=(1.1, 1))
    first, second, third = (drawn.add_subplot(grid[0, column]) for column in range(3))
    fourth = drawn.add_subplot(grid[1, :])
    colours = ["0.55"] * len(ratio)
    for place, style in zip(chosen, line_styles(len(chosen)), strict=True):
        colours[place] = style["color"]
    edge.sharpness_of_runs(first, n, data["sharpness"][chosen, 0], data["edge"][chosen])
    first.set_title("a  Sharpness rises to the edge")
    edge.sharpness_over_edge(second, n, ratio[chosen, 0])
    second.set_title("b  The same over the edge")
    edge.losses(third, n, data["loss"][chosen, 0])
    third.set_title("c  The loss")
    edge.hovering(fourth, ratio[..., n >= data["last_from"]], names(data), colours)
    fourth.set_title(f"d  All runs from n = {data['last_from']:.0f} on, seeds: {ratio.shape[1]}")
    return drawn


if __name__ == "__main__":
    sys.exit(figure.main(__file__, __doc__, CONFIGS, compute, check, draw))
