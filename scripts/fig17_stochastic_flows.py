"""Do stochastic flows describe minibatch training, and can the batch be made larger?

a: weak errors of the stochastic flows of Adam and RMSprop on θ²/2 + θ⁴/8 under noise of deviation .5, at ηn = 1 with
1−γ = 2η and 1−β = .7η: the norm of the errors of E θ, E θ² and E v, over learning rates. b: the variance in the end on
a quadratic of curvature 2 over that of the flow of order 1, by simulation (dots) and in closed form (lines). c: runs of
a digits perceptron by SVAG, whose noise is inflated by l while steps shrink: the variance of the parameters over runs
and the mean loss, over those of the stochastic flow. d, e: the loss of a transformer on text against the characters
seen, for batches of B, 4B and 16B windows, with Adam's rule for other batches (η → √κ η, 1−β → κ(1−β), 1−γ → κ(1−γ))
and without it. f: η times batch sharpness along the runs with the rule, over 2, at which single steps become unstable.

Claim: flows of order p have weak order p; the closed forms hold; SVAG approaches the flow; with the rule the curves of
B, 4B and 16B are close at equal numbers of characters, without it larger batches fall behind.

Source: docs/noise.md; the rule: Malladi et al. 2022, arXiv 2205.10287. Run time on 2 cores: 4 minutes; --quick 40
seconds.
"""

import dataclasses
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

import adamflow as af
from adamflow.figures import figure

jax.config.update("jax_enable_x64", True)

#: Constants of the weak errors: 1 − γ = C1 η, 1 − β = C2 η; deviation of the noise; and the start of θ, m, v.
C1, C2, DEVIATION, START = 2.0, 0.7, 0.5, (1.0, 0.5, 1.5)
CURVATURE, VARIANCE = 2.0, 0.25
#: Of the transformer's Adam at batch size B; at 16 B the rule makes them .984 and .68.
BETA, GAMMA = 0.999, 0.98


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings: of the weak errors, of the stationary variances, of SVAG, and of the transformer."""

    weak_optimizers: tuple = ("Adam", "RMSprop")
    weak_rates: tuple = (1 / 8, 1 / 16, 1 / 32)
    weak_paths: int = 20_000
    stationary_rates: tuple = (0.02, 0.05, 0.1, 0.2)
    stationary_paths: int = 4000
    inflations: tuple = (1, 2, 4, 8)
    svag_rate: float = 0.2
    svag_steps: int = 60
    svag_runs: int = 400
    learning_rate: float = 2e-3
    batch_size: int = 4
    factors: tuple = (1, 4, 16)
    steps: int = 4800
    saved: int = 15
    seeds: int = 3
    width: int = 16
    context: int = 16


CONFIGS = {
    "quick": Config(
        weak_optimizers=("RMSprop",), weak_rates=(1 / 8, 1 / 16), weak_paths=4000, stationary_rates=(0.1,),
        stationary_paths=1000, inflations=(1, 4), svag_runs=60, steps=960, saved=5, seeds=1, factors=(1, 16),
    ),
    "default": Config(),
    "full": Config(
        weak_rates=(1 / 8, 1 / 16, 1 / 32, 1 / 64), weak_paths=100_000, stationary_paths=20_000, svag_runs=2000,
        steps=19200, seeds=5, width=32, context=32,
    ),
}  # fmt: skip


def compute(config: Config) -> figure.Data:
    parts = (weak_errors, stationary_variances, svag, batch_sizes)
    data: figure.Data = {}
    for part in figure.progress(parts, "parts"):
        data |= part(config)
    return data


def weak_errors(config: Config) -> figure.Data:
    """Differences of E θ², E v and E θ between flow and iterates, with standard errors, by optimizer and order."""
    noise = af.noise.known_covariance(DEVIATION**2, jnp.zeros(()))
    data: figure.Data = {
        "weak_rates": np.array(config.weak_rates),
        "weak_optimizers": np.array(config.weak_optimizers),
    }
    for name in config.weak_optimizers:
        momentum = name == "Adam"
        start: dict[str, float] = {"first_moment": START[1], "second_moment": START[2]}
        for order in (1, 2):

            def make_flow(eta: float, momentum: bool = momentum, order: int = order) -> af.StochasticFlow:
                gamma = 1 - C1 * eta if momentum else 0.0
                optimizer = af.adam(eta, beta=1 - C2 * eta, gamma=gamma, bias_correction=False)
                return af.StochasticFlow(optimizer, noise, order=order)

            found = af.noise.measure_weak_convergence(
                make_flow,
                lambda theta: theta**2 / 2 + theta**4 / 8,
                jnp.array(START[0]),
                config.weak_rates,
                time=1.0,
                key=jax.random.key(0),
                observe=lambda theta, filters: (theta**2, filters[0]["second_moment"], theta),
                filters=(start if momentum else {"second_moment": START[2]},),
                paths=config.weak_paths,
            )
            data[f"weak_{name}_{order}"] = found.differences
            data[f"weak_deviation_{name}_{order}"] = found.deviations
    return data


def stationary_optimizers(rate: float) -> dict[str, af.Optimizer]:
    return {"SGD": af.sgd(rate), "Adam": af.adam(rate / 4, beta=0.999, gamma=0.9)}


def stationary_variances(config: Config) -> figure.Data:
    """Stationary variances on a quadratic: of the iterates, simulated and in closed form, and of the flow."""
    problem = af.problems.quadratic([CURVATURE])
    noise = af.noise.known_covariance(VARIANCE, problem.params)
    rows: dict[str, list[float]] = {}
    for rate in config.stationary_rates:
        for name, optimizer in stationary_optimizers(rate).items():
            forms = [
                float(af.noise.stationary_covariance(optimizer, [CURVATURE], [VARIANCE], time=time)[0, 0])
                for time in ("discrete", "continuous")
            ]
            steps = round(8 / (CURVATURE * rate)) + (0 if name == "SGD" else 1000)
            options = {"key": jax.random.key(1), "paths": config.stationary_paths, "save_at": [steps]}
            runs = af.noise.discrete_paths(optimizer, problem.loss, jnp.zeros(1), steps, noise, **options)
            found = runs.second_moment()
            numbers = (*forms, float(found.value[0, 0]), float(found.error[0, 0]))
            for key, number in zip(("discrete", "continuous", "measured", "error"), numbers, strict=True):
                rows.setdefault(f"stationary_{key}_{name}", []).append(number)
    return {name: np.array(row) for name, row in rows.items()} | {"stationary_rates": np.array(config.stationary_rates)}


def svag(config: Config) -> figure.Data:
    """Variance of the parameters over runs, and mean loss, of SVAG at each l and of the flow, with their errors."""
    problem: Any = af.problems.mlp((4,))
    features, labels = (leaf[:32] for leaf in problem.loss.examples)
    optimizer = af.sgd(config.svag_rate)

    def loss(params: Any, batch: Any = None) -> jax.Array:
        return problem.loss(params, (features, labels) if batch is None else batch)

    def look(params: Any) -> tuple[jax.Array, jax.Array]:
        return ravel_pytree(params)[0], loss(params)

    rows = []
    keys = jax.random.split(jax.random.key(2), config.svag_runs)
    for inflation in config.inflations:

        @jax.jit
        @jax.vmap
        def end(key: Any, inflation: int = inflation) -> Any:
            def batches(n: Any) -> Any:
                chosen = jax.random.randint(jax.random.fold_in(key, n), (2,), 0, 32)
                return features[chosen], labels[chosen]

            inflated, pair_loss, pairs, times = af.noise.svag(optimizer, loss, batches, inflation)
            steps = config.svag_steps * times
            run = af.iterate(inflated, pair_loss, problem.params, steps, save_at=[steps], batches=pairs)
            return look(jax.tree.map(lambda leaf: leaf[-1], run.params))

        rows.append(_spread_and_loss(*end(keys)))
    noise = af.noise.MinibatchNoise(loss, (features, labels), 2, kind="full")
    flow = af.StochasticFlow(optimizer, noise)
    options = {"key": jax.random.key(3), "paths": config.svag_runs, "save_at": [config.svag_steps]}
    runs = flow.solve(
        loss, problem.params, config.svag_steps, observe=lambda snapshot: look(snapshot.params), **options
    )
    rows.append(_spread_and_loss(*(leaf[:, 0] for leaf in runs.observed)))
    return {"inflations": np.array(config.inflations), "svag": np.array(rows)}


def _spread_and_loss(params: Any, losses: Any) -> tuple[float, float, float, float]:
    """The summed variance over runs and the mean loss, each with its standard error."""
    params, losses = np.asarray(params), np.asarray(losses)
    squares = ((params - params.mean(axis=0)) ** 2).sum(axis=1)
    root = np.sqrt(len(losses))
    return squares.mean(), squares.std(ddof=1) / root, losses.mean(), losses.std(ddof=1) / root


def batch_sizes(config: Config) -> figure.Data:
    """Losses of a transformer and η times batch sharpness, at equal numbers of characters, for each batch and rule."""
    problem: Any = af.problems.char_transformer(
        layers=1, heads=2, width=config.width, context=config.context, batch_size=config.batch_size
    )
    held = problem.sampler.evenly_spaced(256)
    base = af.adam(config.learning_rate, beta=BETA, gamma=GAMMA, epsilon=1e-8)
    saved = np.linspace(0, config.steps, config.saved + 1).astype(int)
    saved = saved // max(config.factors) * max(config.factors)
    losses, sharpness, scale = [], [], 0.0
    for rule in (True, False):
        for factor in config.factors:
            optimizer = af.scale_batch(base, factor) if rule else base
            if factor == 1 and not rule:
                losses.append(losses[0])
                continue
            size = config.batch_size * factor
            runs = [train(problem, optimizer, size, saved // factor, seed, held) for seed in range(config.seeds)]
            losses.append(np.stack([run[0] for run in runs]))
            if rule:
                sharpness.append(batch_sharpness(problem, optimizer, size, runs[0], saved[1:] // factor))
            if factor == 1:
                last = jax.tree.map(lambda leaf: leaf[-1], runs[0][1])
                scale = float(af.noise.noise_scale(problem.loss, last, problem.sampler.evenly_spaced(1024)))
    characters = saved * config.batch_size * config.context
    return {
        "characters": characters,
        "batches": config.batch_size * np.array(config.factors),
        "losses": np.stack(losses).reshape(2, len(config.factors), config.seeds, -1),
        "batch_sharpness": np.stack(sharpness),
        "noise_scale": np.array(scale),
        "vocabulary": np.array(problem.params["head"].shape[1]),
    }


class Look(eqx.Module):
    """The loss on held windows, parameters and filters: a module, so that runs of one shape share a program."""

    loss: Any
    held: Any

    def __call__(self, snapshot: Any) -> tuple:
        return self.loss(snapshot.params, self.held), snapshot.params, snapshot.filters


class Before(eqx.Module):
    """The batches of the iterations before one, the last first."""

    batches: Any
    iteration: jax.Array

    def __call__(self, n: Any) -> Any:
        return self.batches(self.iteration - 1 - n)


def train(problem: Any, optimizer: af.Optimizer, size: int, saved: np.ndarray, seed: int, held: Any) -> tuple:
    """The loss on held windows, parameters and filters at the saved iterations."""
    options = {"save_at": saved, "observe": Look(problem.loss, held), "batches": problem.batches(size, seed)}
    run = af.iterate(optimizer, problem.loss, problem.params, int(saved[-1]), **options)
    values, params, filters = run.observed
    return np.asarray(values), params, filters


def batch_sharpness(problem: Any, optimizer: af.Optimizer, size: int, run: tuple, iterations: np.ndarray) -> np.ndarray:
    """η times batch sharpness in Adam's metric along a run, over 2.

    Over the batches of the last iterations: a character that no batch has had yet has a second moment of 0, and would
    decide the number alone.
    """
    _, *states = run
    found = []
    for place, iteration in enumerate(iterations, 1):
        params, filters = jax.tree.map(lambda leaf, place=place: leaf[place], states)
        metric = af.noise.metric_of(optimizer, params, filters, iteration)
        batches = Before(problem.batches(size, 0), jnp.asarray(iteration))
        value = af.noise.batch_sharpness(problem.loss, params, batches, metric, draws=min(40, int(iteration))).value
        found.append(float(optimizer.learning_rate) * float(value) / 2)
    return np.array(found)


def apart(data: figure.Data) -> np.ndarray:
    """How far the loss at larger batches is from that at B, at worst in the second half, over what B has learnt there.

    Shape (with and without the rule, batches).
    """
    losses = data["losses"].mean(axis=2)
    learnt = losses[0, 0, 0] - losses[0, 0]
    half = losses.shape[-1] // 2
    return np.abs((losses - losses[0, 0]) / np.where(learnt > 0, learnt, 1.0))[..., half:].max(axis=-1)


def check(data: figure.Data) -> list[figure.Claim]:
    slopes, numbers = [], {}
    for name in map(str, data["weak_optimizers"]):
        for order in (1, 2):
            errors = np.linalg.norm(data[f"weak_{name}_{order}"], axis=1)
            slope = float(np.polyfit(np.log(data["weak_rates"]), np.log(errors), 1)[0])
            numbers[f"{name}, order {order}"] = slope
            slopes.append(abs(slope - order) < (0.2 if order == 1 else 0.3))
    weak = "weak errors of the flows have slopes 1 ± .2 (order 1) and 2 ± .3 (order 2) in the learning rate"
    claims = [figure.Claim(weak, all(slopes), numbers)]

    numbers = {}
    for name in ("SGD", "Adam"):
        measured, error = data[f"stationary_measured_{name}"], data[f"stationary_error_{name}"]
        ratios = measured / data[f"stationary_discrete_{name}"]
        allowance = 4 * error / data[f"stationary_discrete_{name}"] + (0.02 if name == "Adam" else 0.0)
        numbers[f"{name}, largest deviation over what is allowed"] = float((np.abs(ratios - 1) / allowance).max())
    form = "stationary variances on a quadratic are those of the closed form within 4 standard errors, Adam's, whose"
    form += " form holds v still, within 2% more"
    claims.append(figure.Claim(form, all(number < 1 for number in numbers.values()), numbers))

    spread, spread_error, loss, loss_error = data["svag"].T
    far = np.abs(spread[:-1] - spread[-1]), np.abs(loss[:-1] - loss[-1])
    allowed = 4 * np.hypot(spread_error[-2], spread_error[-1]), 4 * np.hypot(loss_error[-2], loss_error[-1])
    numbers = {"variance at the largest l over the flow's": spread[-2] / spread[-1], "loss": loss[-2] / loss[-1]}
    ends = "SVAG at the largest l has the flow's variance over runs and its mean loss within 4 standard errors"
    holds = far[0][-1] < allowed[0] and far[1][-1] < allowed[1]
    if len(data["inflations"]) > 2:
        ends += ", and is nearer to both than l = 1 is"
        numbers |= {"variance at l = 1": spread[0] / spread[-1], "loss at l = 1": loss[0] / loss[-1]}
        holds = holds and far[0][-1] < far[0][0] and far[1][-1] < far[1][0]
    claims.append(figure.Claim(ends, bool(holds), numbers))

    distance, numbers = (
        apart(data),
        {"noise scale at the end of the run with B, in windows": float(data["noise_scale"])},
    )
    for size, with_rule, without in zip(data["batches"][1:], distance[0, 1:], distance[1, 1:], strict=True):
        numbers |= {f"B = {size}, with": float(with_rule), f"B = {size}, without": float(without)}
    rule = "with the rule the loss at larger batches is within 10% of what the smallest has learnt at equal numbers of"
    rule += " characters, in the second half of the run; without it the largest batch is at least three times as far"
    holds = distance[0].max() < 0.1 and distance[1, -1] > 3 * distance[0, -1]
    claims.append(figure.Claim(rule, bool(holds), numbers))
    return claims


def draw(data: figure.Data) -> Figure:
    drawn, panels = plt.subplots(2, 3, figsize=(12, 7))
    (weak, still, spread), (with_rule, without, sharp) = panels
    for name in map(str, data["weak_optimizers"]):
        for order in (1, 2):
            errors = np.linalg.norm(data[f"weak_{name}_{order}"], axis=1)
            marker, style = ("o", "-") if name == "Adam" else ("s", "--")
            weak.loglog(data["weak_rates"], errors, style, marker=marker, markersize=4, label=f"{name}, order {order}")
    weak.set_xticks(data["weak_rates"], [f"1/{round(1 / rate)}" for rate in data["weak_rates"]])
    weak.xaxis.set_minor_locator(NullLocator())
    weak.set(title="a  Weak errors of stochastic flows", xlabel="η", ylabel="|E f(flow) − E f(iterates)|")
    for name, marker in (("SGD", "o"), ("Adam", "s")):
        flow = data[f"stationary_continuous_{name}"]
        rates = data["stationary_rates"]
        (line,) = still.plot(rates, data[f"stationary_discrete_{name}"] / flow, label=f"{name}, closed form")
        measured, error = data[f"stationary_measured_{name}"] / flow, data[f"stationary_error_{name}"] / flow
        still.errorbar(rates, measured, 2 * error, fmt=marker, color=line.get_color(), markersize=4, label=name)
    still.set(title="b  Stationary variance", xlabel="η (Adam: η/4)", ylabel="iterates over flow of order 1")
    variance, variance_error, loss, loss_error = data["svag"].T
    for name, values, errors in (("variance of θ", variance, variance_error), ("mean loss", loss, loss_error)):
        shown = 2 * np.hypot(errors[:-1] / values[:-1], errors[-1] / values[-1]) * values[:-1] / values[-1]
        spread.errorbar(data["inflations"], values[:-1] / values[-1], shown, marker="o", markersize=4, label=name)
    spread.axhline(1.0, color="black", linestyle="--", linewidth=1)
    spread.set_xscale("log", base=2)
    spread.set(title="c  SVAG on a digits perceptron", xlabel="inflation l", ylabel="over the stochastic flow")
    for ax, rows, title in (
        (with_rule, data["losses"][0], "d  Transformer, with the rule"),
        (without, data["losses"][1], "e  Transformer, without"),
    ):
        for size, row in zip(data["batches"], rows, strict=True):
            ax.plot(data["characters"] / 1000, row.mean(axis=0), label=f"batches of {size}")
        ax.set(title=title, xlabel="thousands of characters seen", ylabel="loss, nats per character")
    for size, row in zip(data["batches"], data["batch_sharpness"], strict=True):
        sharp.plot(data["characters"][1:] / 1000, row, marker="o", markersize=3, label=f"batches of {size}")
    sharp.set_yscale("log")
    sharp.set_ylim(top=10)
    sharp.axhline(1.0, color="black", linestyle="--", linewidth=1)
    sharp.set(
        title="f  Batch sharpness, with the rule", xlabel="thousands of characters seen", ylabel="η batch sharpness / 2"
    )
    for ax in panels.ravel():
        ax.legend()
    return drawn


if __name__ == "__main__":
    sys.exit(figure.main(__file__, __doc__, CONFIGS, compute, check, draw))
