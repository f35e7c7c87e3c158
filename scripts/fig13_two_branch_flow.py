"""Past the edge of stability: flows of the mean beside the mean of the iterates, full batch.

a to c: distance of flows from the mean of the iterates, (θₙ₋₁ + 2θₙ + θₙ₊₁)/4, in units of the length of its path so
far, for each case: `TwoBranchFlow` (with --full of order 2 too: "edge 2"), `InterpolatingFlow` of orders 1 and 2 (the
stable flows, which end, at a cross, where they are too stiff), and the central flow of Cohen et al. where there is one.
All start from the iterates' state at n = 20. d to f, for the cases of one problem: η s, the learning rate times the
preconditioned sharpness at the mean of `TwoBranchFlow`, over its edge; the amplitude of `TwoBranchFlow` and (dotted) of
the iterates, of the three cases with the largest; its mean loss and (dotted) that of the iterates.

Claim: past the edge `TwoBranchFlow` stays beside the mean of the iterates where stable flows leave it, for every
record, with its amplitude and its mean loss.

Source: derivation of this project (docs/two-branch-flow.md); the central flow: Cohen et al., arXiv:2410.24206.
Run time on 2 cores: 3 minutes; --quick 20 seconds; --full, with every record and three learning rates, some hours: it
goes on where it was cut short. The claims are those of the default cases; of all cases, by the runs of
docs/two-branch-flow.md, only that on gradients holds.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any, cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import adamflow as af
from adamflow.figures import cores, figure, resume
from adamflow.types import Loss

jax.config.update("jax_enable_x64", True)


@dataclasses.dataclass(frozen=True)
class Case:
    """A record on a problem, at a learning rate, with the central flow or not, and stable flows of some orders."""

    problem: str
    record: str
    learning_rate: float
    central: bool = False
    orders: tuple[int, ...] = (1, 2)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings. Stable flows end after `attempts` steps per iteration; `second`: whether order 2 runs too."""

    cases: tuple[Case, ...]
    steps: int = 1220
    first: int = 20
    save_every: int = 20
    attempts: float = 2.0
    step_size: float = 0.5
    second: bool = False
    modes: int = 2
    lanczos_iterations: int = 12
    seed: int = 0


RECORDS: dict[str, Callable[[float], af.Optimizer]] = {
    "gradient descent": af.sgd,
    "RMSprop .99": lambda eta: af.rmsprop(eta, 0.99),
    "Adam .99, .5": lambda eta: af.adam(eta, beta=0.99, gamma=0.5),
    "Adam .999, .9": lambda eta: af.adam(eta, beta=0.999, gamma=0.9),
    # By the name of Adam, so that both share compiled programs.
    "AdamW .99, .5": lambda eta: dataclasses.replace(
        af.adamw(eta, beta=0.99, gamma=0.5, weight_decay=0.1), name="adam"
    ),
    "2-Adam .99, .5": lambda eta: af.kadam(2, eta, beta=0.99, gamma=0.5),
}
PROBLEMS: dict[str, Callable[[int], af.Problem]] = {
    "perceptron": lambda seed: af.problems.mlp((3,), test_fraction=0.5, seed=seed),
    "convolutional": lambda seed: af.problems.cnn((2, 2), train_size=400, seed=seed),
    "transformer": lambda seed: af.problems.char_transformer(
        layers=1, heads=2, width=16, context=16, batch_size=4, seed=seed, data_seed=seed
    ),
}
RATES = {
    "perceptron": (0.5, 0.003, 0.01, 0.02, 0.01, 0.003),
    "convolutional": (0.5, 0.003, 0.01, 0.02, 0.01, 0.003),
    "transformer": (0.7, 0.001, 0.001, 0.001, 0.001, 0.0005),
}
CENTRAL, ONLY_FIRST = ("gradient descent", "RMSprop .99"), ("RMSprop .99", "2-Adam .99, .5")
FIRST = tuple(
    Case("perceptron", record, rate, record in CENTRAL, (1,) if record in ONLY_FIRST else (1, 2))
    for record, rate in zip(RECORDS, RATES["perceptron"], strict=True)
)
DEFAULT = (
    *FIRST,
    Case("convolutional", "Adam .99, .5", 0.01, orders=(1,)),
    Case("transformer", "Adam .99, .5", 0.001, orders=(1,)),
)
EVERY = tuple(
    Case(problem, record, factor * rate, record in CENTRAL)
    for problem, rates in RATES.items()
    for record, rate in zip(RECORDS, rates, strict=True)
    for factor in (0.7, 1, 1.5)
)
CONFIGS = {
    "quick": Config((dataclasses.replace(FIRST[2], orders=(1,)),), steps=220),
    "default": Config(DEFAULT),
    "full": Config(EVERY, second=True),
}
FLOWS = ("edge", "stable 1", "stable 2", "central", "edge 2")
#: The same in legends.
FLOW_NAMES = ("TwoBranchFlow", "interpolating 1", "interpolating 2", "central", "TwoBranchFlow 2")
SERIES = ("sharpness", "amplitude", "loss", "iterates_amplitude", "iterates_loss")


def compute(config: Config) -> figure.Data:
    """All cases side by side: compiling takes much of the time, and threads share the cores."""
    with resume.Parts(__file__, config) as parts, cores.threads() as pool:

        def part(case: Case) -> dict[str, np.ndarray]:
            return parts.get(f"{case.problem}-{case.record}-{case.learning_rate:g}", lambda: follow(config, case))

        jobs = [pool.submit(part, case) for case in config.cases]
        found = [job.result() for job in figure.progress(jobs, "cases")]
    return {name: np.stack([row[name] for row in found]) for name in found[0]} | {
        "iterations": saved_iterations(config),
        "problems": [case.problem for case in config.cases],
        "records": [case.record for case in config.cases],
        "learning_rates": [case.learning_rate for case in config.cases],
    }


def saved_iterations(config: Config) -> np.ndarray:
    return np.arange(config.first + config.save_every, config.steps + 1, config.save_every, dtype=float)


def follow(config: Config, case: Case) -> dict[str, np.ndarray]:
    """One record on one problem: the distances of all flows, what `TwoBranchFlow` shows, and the iterates' own."""
    rate = case.learning_rate
    problem, record = PROBLEMS[case.problem](config.seed).flatten(), RECORDS[case.record](rate)
    loss, saved = problem.loss, saved_iterations(config)
    iterates = af.iterate(record, loss, problem.params, config.steps + 1)
    params, memory = af.iterate(record, loss, problem.params, config.first, save_at=[config.first]).final_state
    split, places = af.mean_and_oscillation(iterates), saved.astype(int) - 1
    losses = np.asarray(losses_at(loss, cast(Any, iterates.params)))
    begin: dict[str, Any] = {"save_at": saved, "start": (config.first, memory)}
    euler: dict[str, Any] = begin | {"solver": diffrax.Euler(), "step_size": config.step_size}
    limit = round(config.attempts * config.steps)
    # With the default atol, 1e-5, errors of v, which is smaller, make these flows explode at the edge.
    stable: dict[str, Any] = begin | {"solver": diffrax.Tsit5(), "rtol": 1e-3, "atol": 1e-8, "max_steps": limit}
    edge = af.solve(af.TwoBranchFlow(record), loss, params, config.steps, observe=look, **euler)
    means, *series = edge.observed
    runs: dict[str, Any] = {"edge": dataclasses.replace(edge, params=means[1], observed=None)}
    for order in case.orders:
        runs[f"stable {order}"] = af.solve(af.InterpolatingFlow(record, order), loss, params, config.steps, **stable)
    if config.second:
        # The longest steps that its stability allows are half as long.
        half: dict[str, Any] = euler | {"step_size": config.step_size / 2}
        runs["edge 2"] = af.solve(af.TwoBranchFlow(record, order=2), loss, params, config.steps, **half)
    if case.central:
        flow = af.CentralFlow(record, config.modes, config.lanczos_iterations, config.step_size)
        runs["central"] = af.solve(flow, loss, params, config.steps, **euler)
    errors = np.full((len(FLOWS), saved.size), np.nan)
    for row, name in zip(errors, FLOWS, strict=True):
        if name in runs and len(runs[name]):
            row[: len(runs[name])] = af.compare(iterates, runs[name], average="period 2").error_per_path_length
    scaled = rate * sharpness(loss, record, means, config.lanczos_iterations)
    shown = [padded(row, saved.size) for row in (scaled, *series)]
    own = [np.asarray(split.amplitude)[places], ((losses[:-2] + 2 * losses[1:-1] + losses[2:]) / 4)[places]]
    gradients = 2 * edge.stats.accepted_steps / (float(edge.outcome.last_valid_iteration) - config.first)
    numbers = {"edges": rate * af.analysis.critical_curvature(record), "gradients": gradients}
    return {"errors": errors} | dict(zip(SERIES, [*shown, *own], strict=True)) | jax.tree.map(np.asarray, numbers)


# These three are functions of the module, not of `follow`, so that cases share their programs.
def look(snapshot: Any) -> tuple:
    """The mean with its iteration and filters, the amplitude and the mean loss, of a snapshot of `TwoBranchFlow`."""
    return (snapshot.iteration, snapshot.params, snapshot.filters), snapshot.amplitude, snapshot.mean_loss


@eqx.filter_jit
def losses_at(loss: Loss, rows: jax.Array) -> jax.Array:
    return jax.lax.map(loss, rows)


@eqx.filter_jit
def sharpness(loss: Loss, record: af.Optimizer, means: Any, iterations: int) -> jax.Array:
    """The largest eigenvalue of P⁻¹H at each of the means; P is the product of those of all stages, or 1."""

    def value(mean: tuple) -> jax.Array:
        n, params, filters = mean
        scale = jnp.ones_like(params)
        for corrected in record.bias_corrected(filters, n):
            scale = scale * jnp.sqrt(corrected.get("second_moment", 1.0))
        return af.analysis.preconditioned_sharpness(loss, params, scale, iterations=iterations).value

    return jax.lax.map(value, means)


def padded(row: Any, size: int) -> np.ndarray:
    """A series with NaN after its end."""
    full = np.full(size, np.nan)
    full[: len(row)] = row
    return full


def past_edge(data: figure.Data) -> np.ndarray:
    """By case and iteration, whether η s at the mean of `TwoBranchFlow` has been at 95% of its edge or more."""
    return np.maximum.accumulate(data["sharpness"] >= 0.95 * data["edges"][:, None], axis=1)


def against(edge: np.ndarray, other: np.ndarray) -> float:
    """The largest distance of `TwoBranchFlow` over that of another flow, up to the other's end; NaN without one."""
    known = ~np.isnan(other)
    return float(np.max(edge[known]) / np.max(other[known])) if known.any() else np.nan


def check(data: figure.Data) -> list[figure.Claim]:
    distance = np.where(np.isnan(data["errors"][:, 0]), np.inf, data["errors"][:, 0]).max(axis=1)
    pairs = [[against(row[0], other) for other in row[1:]] for row in data["errors"]]
    to_stable, to_central = np.nanmax(np.array(pairs)[:, :2], axis=1), np.array(pairs)[:, 2]
    third, late = np.mean(to_stable <= 1 / 3), past_edge(data)
    names = np.array([f"{problem}, {record}, {rate:g}" for problem, record, rate in cases(data)])
    near = "TwoBranchFlow stays within 6% of the length of the path from the iterates' mean, in every case, to the end"
    nearer = (
        "up to where stable flows end, it is at most a third as far as the better one in 3/4 of the cases or more, and "
        "nowhere farther"
    )
    four = "it takes 4 gradients per iteration"
    claims = [
        (near, np.all(distance < 0.06), dict(zip(names, distance, strict=True))),
        (
            nearer,
            third >= 0.75 and np.all(to_stable <= 1),
            {"share": third, **dict(zip(names, to_stable, strict=True))},
        ),
        *check_series(data, late),
        (four, np.all(np.abs(data["gradients"] - 4) < 0.01), {"most": np.max(data["gradients"])}),
    ]
    known = np.isfinite(to_central)
    if known.any():
        rows = zip(data["errors"][known], late[known], strict=True)
        typical = [np.nanmedian(row[0][keep] / row[3][keep]) for row, keep in rows]
        words = (
            "where there is a central flow, the median past the edge of TwoBranchFlow's distance over its is below 1"
        )
        numbers = {f"{name}: median": value for name, value in zip(names[known], typical, strict=True)}
        numbers |= {f"{name}: largest": value for name, value in zip(names[known], to_central[known], strict=True)}
        claims.append((words, np.all(np.array(typical) < 1), numbers))
    return [figure.Claim(words, bool(holds), numbers) for words, holds, numbers in claims]


def check_series(data: figure.Data, late: np.ndarray) -> list[tuple[str, Any, dict[str, float]]]:
    """What `TwoBranchFlow` shows past the edge, against the edge and the iterates: sharpness, amplitude, mean loss."""

    def past(*names: str) -> list[list[np.ndarray]]:
        rows = zip(late, *(data[name] for name in names), strict=True)
        return [[row[keep] for row in series] for keep, *series in rows if keep.any()]

    edges = data["edges"][late.any(axis=1)]
    sharp = [np.median(s) / edge for (s,), edge in zip(past("sharpness"), edges, strict=True)]
    swings = np.array([np.sqrt(np.mean(a**2) / np.mean(b**2)) for a, b in past("amplitude", "iterates_amplitude")])
    # On the transformer iterates burst now and then; rounding decides when, and a burst is most of their mean square.
    bursts = np.asarray(data["problems"])[late.any(axis=1)] == "transformer"
    steady = swings[~bursts]
    in_bursts = {"transformer": np.min(swings[bursts])} if bursts.any() else {}
    losses = [np.median(np.abs(a - b) / b) for a, b in past("loss", "iterates_loss")]

    def extremes(found: np.ndarray | list[Any]) -> dict[str, float]:
        return {"least": np.min(found, initial=np.inf), "most": np.max(found, initial=0)}

    hovers = "past the edge η s at its mean hovers there: medians are .9 to 1.3 of the edge"
    swing = "but for the transformer the root mean square of the amplitude is that of the iterates within a factor of 2"
    mean = "medians of the relative error of the mean loss are at most 10%"
    return [
        (hovers, np.all((np.array(sharp) > 0.9) & (np.array(sharp) < 1.3)), extremes(sharp)),
        (swing, np.all(np.abs(np.log(steady)) < np.log(2)), extremes(steady) | in_bursts),
        (mean, np.all(np.array(losses) <= 0.1), extremes(losses)),
    ]


def cases(data: figure.Data) -> list[tuple[str, str, float]]:
    return list(zip(data["problems"], data["records"], data["learning_rates"], strict=True))


#: The cases of the first problem, and the flows, that the picture has; all are in the other one.
CASES = (0, 1)
FLOWS_SHOWN = ("TwoBranchFlow", "interpolating 1")


def draw(data: figure.Data) -> dict[str, Figure]:
    return {"": draw_cases(data, few=True), "all": draw_cases(data, few=False)}


def draw_cases(data: figure.Data, *, few: bool) -> Figure:
    """All panels, with some of the cases and flows or with all."""
    drawn, axes = plt.subplots(2, 3, figsize=(13, 7.6))
    problems = list(dict.fromkeys(map(str, data["problems"])))
    by_problem = {name: np.flatnonzero(np.asarray(data["problems"]) == name) for name in problems}
    errors = data["errors"].copy()
    if few:
        by_problem[problems[0]] = by_problem[problems[0]][
            [place for place in CASES if place < len(by_problem[problems[0]])]
        ]
        errors[:, [name not in FLOWS_SHOWN for name in FLOW_NAMES]] = np.nan
    for ax, (problem, rows), letter in zip(axes[0], by_problem.items(), "abc", strict=False):
        labels = [f"{data['records'][row]}, η = {data['learning_rates'][row]:g}" for row in rows]
        af.plotting.two_branch_flow.distances(ax, data["iterations"], errors[rows], FLOW_NAMES, labels)
        ax.set_title(f"{letter}  {problem.capitalize()}")
    for ax in axes[0, len(problems) :]:
        ax.set_axis_off()
    rows = by_problem[problems[0]]
    shown = [{name: data[name][row] for name in SERIES} for row in rows]
    af.plotting.two_branch_flow.sharpness(axes[1, 0], data["iterations"], shown, data["edges"][rows])
    af.plotting.two_branch_flow.beside_iterates(axes[1, 1], data["iterations"], shown, "amplitude", largest=3)
    af.plotting.two_branch_flow.beside_iterates(axes[1, 2], data["iterations"], shown, "loss")
    for ax, letter, title in zip(axes[1], "def", ("Sharpness at the mean", "Amplitude", "Mean loss"), strict=True):
        ax.set_title(f"{letter}  {title}, {problems[0]}")
    return drawn


if __name__ == "__main__":
    sys.exit(figure.main(__file__, __doc__, CONFIGS, compute, check, draw, compiles_much=True))
