"""A training run as people make them: AdamW with warm-up, cosine decay, clipping and no decay of biases.

A perceptron on images of digits, all of them at each iteration, three times: at the full rate from the first iteration
on, with warm-up to that rate, and with warm-up to a quarter of it. a: the loss. b: η(n) s over the edge of stability of
that iteration, with s the preconditioned sharpness; above 1 the step is unstable. c: the largest entry of the update,
and its bound.

Claim: adamflow's recipe is that of optax, step for step; where η(n) s crosses its edge the loss spikes a few iterations
later, and where it does not there is no spike; a warm-up to the same rate only puts the crossing off, to a rate that is
nearly the full one; clipping or not, no update exceeds its bound.

Source: docs/recipes.md, docs/training-runs.md; J. Cohen et al., arXiv:2207.14484 (2022) for the edge of Adam.
Run time on 2 cores: half a minute; --quick a little less, since compiling takes most of it.
"""

import dataclasses
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.figure import Figure

import adamflow as af
from adamflow.figures import figure

jax.config.update("jax_enable_x64", True)

RUNS = ("full rate at once", "warm-up to it", "warm-up to a quarter")
#: A spike is a loss of so many times the smallest one so far.
SPIKE = 1.05


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings. `stride`: iterations from one sharpness to the next; `products`: Hessian-vector products of each."""

    width: int = 8
    steps: int = 240
    warm_up: int = 80
    peak: float = 0.2
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    stride: int = 2
    products: int = 12
    seed: int = 0


CONFIGS = {
    "quick": Config(stride=4, products=8),
    "default": Config(),
    "full": Config(stride=1, products=24),
}


class Rate(eqx.Module):
    """Linear warm-up to a peak, if there is one, then a cosine to 0; with arrays, so that both runs share a program."""

    peak: jax.Array
    warm_up: jax.Array
    steps: jax.Array

    def __call__(self, n: Any) -> Any:
        rising = jnp.where(self.warm_up > 0, jnp.minimum(n / jnp.maximum(self.warm_up, 1), 1.0), 1.0)
        share = jnp.clip((n - self.warm_up) / (self.steps - self.warm_up), 0.0, 1.0)
        return self.peak * rising * (1 + jnp.cos(jnp.pi * share)) / 2


def rates_of(config: Config) -> list[Rate]:
    """The rates of the runs."""
    peaks, lengths = (config.peak, config.peak, config.peak / 4), (0, config.warm_up, config.warm_up)
    return [
        Rate(*(jnp.asarray(float(value)) for value in (peak, length, config.steps)))
        for peak, length in zip(peaks, lengths, strict=True)
    ]


def is_weight(params: Any) -> Any:
    """Whether a leaf decays: weights do, biases do not."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def recipe(config: Config, rate: Any) -> af.Optimizer:
    """The recipe by adamflow."""

    def decays(params: Any) -> Any:
        return jax.tree.map(lambda decays: config.weight_decay if decays else 0.0, is_weight(params))

    numbers: Any = dict(b1=config.b1, b2=config.b2, epsilon=1e-8, weight_decay=af.by_leaf(decays))
    return af.with_clipping(af.adamw(rate, **numbers), config.clip_norm)


def same_by_optax(config: Config, rate: Any) -> optax.GradientTransformation:
    """The recipe by optax."""
    numbers: Any = dict(b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=is_weight)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.adamw(rate, **numbers))


def compute(config: Config) -> figure.Data:
    problem = af.problems.mlp((config.width,), seed=config.seed)
    rates = rates_of(config)
    # A recipe whose function is one object for all runs, so that they share a program.
    record = recipe(config, rates[0])
    records = [dataclasses.replace(record, learning_rate=rate) for rate in rates]
    looks = [look(record, problem, config) for record in figure.progress(records, "runs")]
    iterations = np.arange(config.steps + 1)
    learning_rates = np.stack([np.asarray(jax.vmap(rate)(jnp.asarray(iterations))) for rate in rates])
    biases = {"beta": config.b2, "gamma": config.b1, "kind": "discrete"}
    return {
        "iterations": iterations,
        "learning_rates": learning_rates,
        "losses": np.stack([rows[0] for rows in looks]),
        "updates": np.stack([rows[1] for rows in looks]),
        "bounds": np.asarray(af.analysis.update_bound(iterations, **biases)),
        "sharpness_iterations": iterations[config.stride :: config.stride],
        "sharpness": np.stack([rows[2] for rows in looks]),
        "edges": np.stack(
            [edges_of(record, problem, iterations[config.stride :: config.stride]) for record in records]
        ),
        "distance_from_optax": distance_from_optax(problem, config, records[2]),
    }


class Observer(eqx.Module):
    """The loss, ‖u‖∞ and, at each so many iterations, the preconditioned sharpness s."""

    sharpness: Any
    stride: int = eqx.field(static=True)

    def __call__(self, snapshot: Any) -> Any:
        wanted = snapshot.iteration % self.stride == 0
        value = jax.lax.cond(
            wanted, lambda: self.sharpness(snapshot).value, lambda: jnp.full_like(snapshot.loss, jnp.nan)
        )
        return snapshot.loss, af.analysis.largest_update(snapshot), value


def look(record: af.Optimizer, problem: af.Problem, config: Config) -> list[np.ndarray]:
    """Of a run the loss and ‖u‖∞ at each iteration, and s at each so many."""
    sharpness = af.analysis.sharpness_observer(record, problem.loss, iterations=config.products)
    observe = Observer(sharpness, config.stride)
    run = af.iterate(record, problem.loss, problem.params, config.steps, observe=observe)
    loss, update, value = (np.asarray(row) for row in run.observed)
    return [loss, update, value[config.stride :: config.stride]]


def edges_of(record: af.Optimizer, problem: af.Problem, iterations: np.ndarray) -> np.ndarray:
    """η(n) s at the edge of each iteration, with the weight decay of the weights."""
    uniform = record.at(jnp.asarray(iterations)).uniform(problem.params)
    rates = np.asarray(uniform.learning_rate)
    moving = rates > 0
    edges = np.full(rates.shape, np.nan)
    at = dataclasses.replace(uniform, learning_rate=jnp.asarray(rates[moving]))
    edges[moving] = rates[moving] * np.asarray(af.analysis.critical_curvature(at))
    return edges


def distance_from_optax(problem: af.Problem, config: Config, record: af.Optimizer) -> np.ndarray:
    """The largest distance of a parameter between adamflow's run and optax's, at each iteration."""
    transformation = same_by_optax(config, record.learning_rate)

    @jax.jit
    def train() -> Any:
        def step(carry: Any, _: None) -> Any:
            params, state = carry
            updates, state = transformation.update(jax.grad(problem.loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), params

        start = (problem.params, transformation.init(problem.params))
        return jax.lax.scan(step, start, length=config.steps + 1)[1]

    ours = af.iterate(record, problem.loss, problem.params, config.steps).params
    rows = [abs(np.asarray(a) - np.asarray(b)) for a, b in zip(*map(jax.tree.leaves, (ours, train())), strict=True)]
    return np.max([row.reshape(len(row), -1).max(axis=1) for row in rows], axis=0)


def ratios_of(data: figure.Data) -> np.ndarray:
    """η(n) s over the edge of its iteration."""
    places = np.isin(data["iterations"], data["sharpness_iterations"])
    return data["learning_rates"][:, places] * data["sharpness"] / data["edges"]


def first(condition: np.ndarray, iterations: np.ndarray) -> float:
    """The first iteration at which a condition holds; inf if it never does."""
    return float(iterations[np.argmax(condition)]) if condition.any() else np.inf


def check(data: figure.Data) -> list[figure.Claim]:
    distance = float(np.max(data["distance_from_optax"]))
    ratios = ratios_of(data)
    crossings = [first(np.nan_to_num(ratio) > 1, data["sharpness_iterations"]) for ratio in ratios]
    lowest = np.minimum.accumulate(data["losses"], axis=1)
    spikes = [first(row, data["iterations"]) for row in data["losses"] > SPIKE * lowest]
    delays = np.array([b - a if np.isfinite([a, b]).all() else np.nan for a, b in zip(crossings, spikes, strict=True)])
    share = np.max(data["updates"] / data["bounds"])
    crossed = [index for index in (0, 1) if crossings[index] < np.inf]
    at_crossing = [data["learning_rates"][index, int(crossings[index])] for index in crossed]
    numbers = {f"crossing, {name}": value for name, value in zip(RUNS, crossings, strict=True)}
    numbers |= {f"first spike, {name}": value for name, value in zip(RUNS, spikes, strict=True)}
    numbers |= {f"largest ratio, {name}": np.nanmax(ratio) for name, ratio in zip(RUNS, ratios, strict=True)}
    claims = [
        ("the recipe is that of optax: parameters stay within 1e-10 of it", distance < 1e-10, {"distance": distance}),
        (
            f"a crossing is followed by a spike, a loss above {SPIKE} times the least so far, within 20 iterations; at "
            "a quarter of the rate there is neither",
            np.all((delays[:2] >= 0) & (delays[:2] <= 20)) and crossings[2] == spikes[2] == np.inf,
            numbers | {f"delay, {name}": value for name, value in zip(RUNS[:2], delays, strict=False)},
        ),
        (
            "a warm-up to the same rate puts the crossing off, and does not prevent it",
            crossings[0] < crossings[1] < np.inf,
            {f"rate at the crossing, {name}": value for name, value in zip(RUNS, at_crossing, strict=False)},
        ),
        ("no update exceeds its bound, clipped or not", share < 1 + 1e-9, {"largest share of the bound": share}),
    ]
    return [figure.Claim(words, bool(holds), numbers) for words, holds, numbers in claims]


def draw(data: figure.Data) -> Figure:
    drawn, axes = plt.subplots(1, 3, figsize=(13, 3.6))
    af.plotting.edge.losses(axes[0], data["iterations"], data["losses"])
    af.plotting.edge.sharpness_over_edge(axes[1], data["sharpness_iterations"], ratios_of(data))
    af.plotting.edge.updates(axes[2], data["iterations"], data["updates"], data["bounds"], RUNS)
    titles = ("a  Loss", "b  η s over its edge", "c  Update and its bound")
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title)
    return drawn


if __name__ == "__main__":
    sys.exit(figure.main(__file__, __doc__, CONFIGS, compute, check, draw))
