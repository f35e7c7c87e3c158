"""Do stochastic flows describe minibatch training, and can the batch be made larger?

a: weak errors of the stochastic flows of Adam and RMSprop on θ²/2 + θ⁴/8 under noise of deviation .5, at ηn = 1 with
1−γ = 2η and 1−β = .7η: the norm of the errors of E θ, E θ² and E v, over learning rates. b: the variance in the end on
a quadratic of curvature 2 over that of the flow of order 1 in closed form: runs of the optimizer (full dots), of the
flow (open), and the optimizer's closed form (lines). c: runs of a digits perceptron by SVAG, whose noise is inflated by
l while steps shrink: the variance of the parameters over runs and the mean loss, over those of the stochastic flow. d,
e: the loss of a transformer on fixed windows of its text against the characters seen, for batches of B, 4B and 16B
windows, with Adam's rule for other batches (η → √κ η, 1−β → κ(1−β), 1−γ → κ(1−γ)) and without it. f: η times batch
sharpness along the runs with the rule; a run is unstable at 2 if noise dominates, and at (2+2γ)/(1−γ) if none is there.

Claim: flows of order p have weak order p; the closed forms hold; SVAG approaches the flow; with the rule the curves of
B, 4B and 16B are close at equal numbers of characters, without it larger batches fall behind.

Source: docs/noise.md; the rule: Malladi et al. 2022, arXiv 2205.10287. Run time on 2 cores: 11 minutes beside another
figure; --quick 2 to 4 minutes.
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
    stationary_rates: tuple = (0.05, 0.1, 0.2)
    stationary_paths: int = 2000
    inflations: tuple = (1, 2, 4, 8)
    svag_rate: float = 0.2
    svag_steps: int = 60
    svag_runs: int = 800
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
    """Variances in the end on a quadratic: of iterates and flow, each measured and in closed form, by optimizer.

    A measurement is the mean over paths and over ten late times, twice as far apart as θ takes to forget.
    """
    problem = af.problems.quadratic([CURVATURE])
    noise = af.noise.known_covariance(VARIANCE, problem.params)
    rows: dict[str, list[float]] = {}
    for place, rate in enumerate(config.stationary_rates):
        for number, (name, optimizer) in enumerate(stationary_optimizers(rate).items()):
            # θ forgets within 1/(ηh) iterations; Adam's η/√v is of the same size.
            apart = round(2 / (CURVATURE * rate))
            first = 4 * apart + (0 if name == "SGD" else 1000)
            times = first + apart * np.arange(10)
            options = {"paths": config.stationary_paths, "save_at": times}
            keys = jax.random.split(jax.random.fold_in(jax.random.key(1), 2 * place + number))
            flow = af.StochasticFlow(optimizer, noise)
            start = jnp.zeros(1)
            sides = {
                "discrete": af.noise.discrete_paths(
                    optimizer, problem.loss, start, int(times[-1]), noise, key=keys[0], **options
                ),
                # At a step of one iteration the solver's own error is 5% of the variance at ηh = .4.
                "flow": flow.solve(problem.loss, start, int(times[-1]), key=keys[1], step_size=0.25, **options),
            }
            for time, runs in sides.items():
                form = af.noise.stationary_covariance(optimizer, [CURVATURE], [VARIANCE], time=time)[0, 0]
                squares = np.square(np.asarray(runs.observed)[..., 0]).mean(axis=1)
                found = squares.mean(), squares.std(ddof=1) / np.sqrt(len(squares))
                for key, value in zip(("form", "measured", "error"), (form, *found), strict=True):
                    rows.setdefault(f"stationary_{time}_{key}_{name}", []).append(float(value))
    data = {name: np.array(row) for name, row in rows.items()}
    return data | {"stationary_rates": np.array(config.stationary_rates)}


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
    # η times the largest curvature comes near 1, where whole iterations would be too long for the solver.
    options = {"key": jax.random.key(3), "paths": config.svag_runs, "save_at": [config.svag_steps], "step_size": 0.25}
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
    losses, sharpness, scales = [], [], []
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
                along = [
                    batch_sharpness(problem, optimizer, (size, seed), run, saved[1:] // factor)
                    for seed, run in enumerate(runs)
                ]
                sharpness.append(np.stack(along))
            if factor == 1:
                scales = noise_scales(problem, runs[0])
    characters = saved * config.batch_size * config.context
    return {
        "characters": characters,
        "batches": config.batch_size * np.array(config.factors),
        "losses": np.stack(losses).reshape(2, len(config.factors), config.seeds, -1),
        "batch_sharpness": np.stack(sharpness),
        "noise_scales": np.array(scales),
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


def noise_scales(problem: Any, run: tuple) -> list[float]:
    """The number of windows at which noise and gradient are equally large, along a run."""
    windows = problem.sampler.evenly_spaced(1024)
    places = [jax.tree.map(lambda leaf, place=place: leaf[place], run[1]) for place in range(len(run[0]))]
    return [float(af.noise.noise_scale(problem.loss, params, windows)) for params in places]


def batch_sharpness(
    problem: Any, optimizer: af.Optimizer, batches: tuple[int, int], run: tuple, iterations: np.ndarray
) -> np.ndarray:
    """η times batch sharpness in Adam's metric along a run, for batches of a size and a seed.

    Over the batches of the last iterations: a character that no batch has had yet has a second moment of 0, and would
    decide the number alone.
    """
    _, *states = run
    found = []
    for place, iteration in enumerate(iterations, 1):
        params, filters = jax.tree.map(lambda leaf, place=place: leaf[place], states)
        metric = af.noise.metric_of(optimizer, params, filters, iteration)
        before = Before(problem.batches(*batches), jnp.asarray(iteration))
        value = af.noise.batch_sharpness(problem.loss, params, before, metric, draws=min(40, int(iteration))).value
        found.append(float(optimizer.learning_rate) * float(value))
    return np.array(found)


def apart(data: figure.Data) -> np.ndarray:
    """How far the loss at larger batches is from that of the smallest, over what that has learnt until then.

    Shape (with and without the rule, batches, saved states after the start).
    """
    losses = data["losses"].mean(axis=2)
    learnt = losses[0, 0, 0] - losses[0, 0, 1:]
    return np.abs(losses - losses[0, 0])[..., 1:] / learnt


def check(data: figure.Data) -> list[figure.Claim]:
    checks = (check_weak_errors, check_stationary, check_svag, check_rule, check_batch_sharpness)
    return [check_one(data) for check_one in checks]


def check_weak_errors(data: figure.Data) -> figure.Claim:
    """Weak orders."""
    slopes, numbers = [], {}
    for name in map(str, data["weak_optimizers"]):
        for order in (1, 2):
            found = weak_convergence(data, name, order)
            numbers[f"{name}, order {order}"] = found.order
            slopes.append(abs(found.order - order) < (0.2 if order == 1 else 0.3))
            # What is left of it must not be noise.
            slopes.append(found.errors[-1] > 5 * np.linalg.norm(found.deviations[-1]))
    weak = (
        "weak errors of the flows have slopes 1 ± .2 (order 1) and 2 ± .3 (order 2) in the learning rate, and are more"
    )
    weak += " than 5 standard errors at the smallest"
    return figure.Claim(weak, all(slopes), numbers)


def check_stationary(data: figure.Data) -> figure.Claim:
    """Variances in the end, against closed forms."""
    numbers, holds = {}, []
    for name in ("SGD", "Adam"):
        for time in ("discrete", "flow"):
            form, measured, error = (data[f"stationary_{time}_{key}_{name}"] for key in ("form", "measured", "error"))
            away = np.abs(measured - form)
            holds.append(np.all(away < 3.5 * error + (0.02 * form if name == "Adam" else 0.0)))
            numbers[f"{name}, {time}, largest share away"] = float((away / form).max())
            numbers[f"{name}, {time}, largest standard error"] = float((error / form).max())
    other = data["stationary_flow_form_SGD"][-1] - data["stationary_discrete_measured_SGD"][-1]
    numbers["iterates of SGD from the flow's form, standard errors"] = other = float(
        abs(other) / data["stationary_discrete_error_SGD"][-1]
    )
    form = (
        "stationary variances of SGD, iterates and flow, are within 3.5 standard errors of their closed forms; at the"
    )
    form += (
        " largest rate the iterates are more than 4 from the flow's form; for Adam's, which hold v still, 2% more are"
    )
    form += " allowed"
    return figure.Claim(form, bool(all(holds) and other > 4), numbers)


def check_svag(data: figure.Data) -> figure.Claim:
    """SVAG against the flow."""
    spread, spread_error, loss, loss_error = data["svag"].T
    names = [f"l = {inflation}" for inflation in data["inflations"]]
    off = [
        (values[:-1] - values[-1]) / np.hypot(errors[:-1], errors[-1])
        for values, errors in ((spread, spread_error), (loss, loss_error))
    ]
    numbers = {f"variance, {name}, standard errors": value for name, value in zip(names, off[0], strict=True)}
    numbers |= {f"loss, {name}, standard errors": value for name, value in zip(names, off[1], strict=True)}
    ends = "SVAG at the largest l has the flow's variance over runs and its mean loss within 3 standard errors"
    holds = abs(off[0][-1]) < 3 and abs(off[1][-1]) < 3
    if len(names) > 2:
        ends += "; l = 1 does not"
        holds = holds and max(abs(off[0][0]), abs(off[1][0])) > 3
    return figure.Claim(ends, bool(holds), {name: float(value) for name, value in numbers.items()})


def check_rule(data: figure.Data) -> figure.Claim:
    """The rule for larger batches."""
    distance = apart(data)
    late = distance[..., distance.shape[-1] // 2 :].max(axis=-1)
    numbers = {"least noise scale along the run of the smallest, in windows": float(data["noise_scales"].min())}
    for place, size in enumerate(data["batches"][1:], 1):
        numbers |= {f"B = {size}, with, late": float(late[0, place]), f"B = {size}, without": float(late[1, place])}
        numbers[f"B = {size}, with, whole run"] = float(distance[0, place].max())
    # A single seed is a small version, whose shorter run has learnt less.
    limit = 0.05 if data["losses"].shape[2] > 1 else 0.1
    rule = f"with the rule the loss at larger batches is within {limit:.0%} of what the smallest has learnt at equal"
    rule += " numbers of characters, in the second half of the run; without it the largest batch is at least three"
    rule += " times as far"
    holds = late[0].max() < limit and late[1, -1] > 3 * late[0, -1]
    return figure.Claim(rule, bool(holds), numbers)


def check_batch_sharpness(data: figure.Data) -> figure.Claim:
    """Batch sharpness along the runs with the rule."""
    sharpness = data["batch_sharpness"].mean(axis=1)
    sharpness = sharpness[:, sharpness.shape[1] // 2 :]
    numbers = {f"B = {size}": float(np.median(row)) for size, row in zip(data["batches"], sharpness, strict=True)}
    rises = (
        "in the second half of the runs with the rule η times batch sharpness rises with the batch, and ends below 2"
    )
    middle = np.array(list(numbers.values()))
    below = bool(np.all(middle[1:] > middle[:-1]) and middle.max() < 2)
    return figure.Claim(rises, below, numbers)


def weak_convergence(data: figure.Data, name: str, order: int) -> af.noise.WeakConvergence:
    differences, deviations = data[f"weak_{name}_{order}"], data[f"weak_deviation_{name}_{order}"]
    return af.noise.WeakConvergence(data["weak_rates"], differences, deviations, f"{name}, order {order}")


def draw(data: figure.Data) -> Figure:
    drawn, panels = plt.subplots(2, 3, figsize=(12, 7))
    (weak, still, spread), (with_rule, without, sharp) = panels
    names = map(str, data["weak_optimizers"])
    af.plotting.convergence(*(weak_convergence(data, name, order) for name in names for order in (1, 2)), ax=weak)
    weak.set_xticks(data["weak_rates"], [f"1/{round(1 / rate)}" for rate in data["weak_rates"]])
    weak.xaxis.set_minor_locator(NullLocator())
    weak.set_title("a  Weak errors of stochastic flows")
    for name, marker in (("SGD", "o"), ("Adam", "s")):
        flow = data[f"stationary_flow_form_{name}"]
        rates = data["stationary_rates"]
        (line,) = still.plot(rates, data[f"stationary_discrete_form_{name}"] / flow, label=f"{name}, closed form")
        for time, face in (("discrete", line.get_color()), ("flow", "white")):
            measured, error = (data[f"stationary_{time}_{key}_{name}"] / flow for key in ("measured", "error"))
            style: Any = {"fmt": marker, "color": line.get_color(), "markerfacecolor": face, "markersize": 4}
            still.errorbar(rates, measured, 2 * error, **style, label=f"{name}, {'flow' if face == 'white' else 'run'}")
    still.set(title="b  Stationary variance", xlabel="η (Adam: η/4)", ylabel="over that of the flow in closed form")
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
        ax.set(title=title, xlabel="thousands of characters seen", ylabel="training loss, nats per character")
    for size, rows in zip(data["batches"], data["batch_sharpness"], strict=True):
        shown = np.where(rows.mean(axis=0) > 0, rows.mean(axis=0), np.nan)
        sharp.plot(data["characters"][1:] / 1000, shown, marker="o", markersize=3, label=f"batches of {size}")
    sharp.set_yscale("log")
    sharp.set_ylim(top=20)
    sharp.axhline(2.0, color="black", linestyle="--", linewidth=1)
    sharp.set(title="f  Batch sharpness, with the rule", xlabel="thousands of characters seen")
    sharp.set_ylabel("η batch sharpness")
    for ax in panels.ravel():
        ax.legend(fontsize=7)
    return drawn


if __name__ == "__main__":
    sys.exit(figure.main(__file__, __doc__, CONFIGS, compute, check, draw))
