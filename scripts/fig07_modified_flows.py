"""Flows of higher order: how closely they follow the iterates of Adam and AdamW, and where each of them stops.

a: AdamW with ε = 0 on a transformer that predicts characters, full batch: distance of the flows from the iterates over
all parameters, divided by the distance moved; "from n = 8": from that state of the iterates. Dotted: where η s, the
learning rate times the preconditioned sharpness, rises through the iterates' edge. b to d: the largest error over
parameters and iterations at fixed ηn, with fitted slopes, with weight decay; on the networks with √(v + 1e-4), without
which gradients cross zero; grey: other flows at β = .95, γ = .9. e: where a coordinate of the gradient crosses zero and
ε = 0, v dips, and for 1/(1−β) iterations the direction changes as fast as v, whatever η is. f: how far a drift of the
gradient's scale, g → e^(ct) g, moves Adam's iterates.

Claim: errors of `ModifiedFlow` of order p fall as η^p, until the share of order 2 shows that the first iterations leave
(p = 3 and 4 at 1e-11). Where a gradient coordinate crosses zero with ε = 0, order 1 remains, with a constant that falls
with p. From n = 40 to the edge of stability flows of order 2 are some ten times closer than those of [GT]; past it none
follows, and `ModifiedFlow` of order 2 cannot be integrated far. A drift of the scale moves the iterates by O(η), at
β = γ by O(η²).

Source: derivations of this project (docs/modified-flows.md); [GT] = R. Gould and H. Tanaka, arXiv:2411.05746. For the
drift at β = γ: A. Orvieto and R. Gower, In Search of Adam's Secret Sauce, arXiv:2505.21829.
Run time on 2 cores: 3 minutes; --quick 40 seconds; --full, with 116,000 parameters and more (β, γ), over an hour.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import adamflow as af
from adamflow.figures import cores, figure

jax.config.update("jax_enable_x64", True)


@dataclasses.dataclass(frozen=True)
class Study:
    """Errors at times up to `time`, by learning rate, order and (β, γ); ε is inside the root."""

    problem: str
    time: float
    learning_rates: tuple[float, ...]
    orders: tuple[int, ...]
    pairs: tuple[tuple[float, float], ...]
    epsilon: float = 0.0
    weight_decay: float = 0.1
    rtol: float = 1e-11
    flow: str = "modified"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; `seed` determines weights and batches of all networks."""

    studies: tuple[Study, ...]
    sizes: dict[str, int]
    learning_rate: float = 3e-4
    steps: int = 320
    save_every: int = 8
    flows: tuple[str, ...] = ("paper 1", "paper 2", "modified 1", "modified 2", "modified 2 from 8", "map 2 from 8")
    beta: float = 0.999
    gamma: float = 0.9
    weight_decay: float = 0.1
    rtol: float = 1e-5
    lanczos_iterations: int = 16
    drift_pairs: tuple[tuple[float, float], ...] = ((0.9, 0.9), (0.95, 0.95), (0.95, 0.9), (0.9, 0.95))
    drift_rates: tuple[float, ...] = (0.004, 0.002, 0.001, 0.0005)
    drift_time: float = 1.6
    seed: int = 0


PAIRS = ((0.999, 0.9), (0.95, 0.9), (0.999, 0.8))
HALVED = (0.004, 0.002, 0.001, 0.0005)
STUDIES = (
    Study("quartic", 1.6, HALVED, (1, 2, 3, 4), PAIRS, rtol=1e-13),
    Study("quartic", 1.6, HALVED, (2, 3), PAIRS[1:2], rtol=1e-13, flow="map"),
    Study("quartic", 1.6, HALVED, (2,), PAIRS[1:2], rtol=1e-11, flow="memoryless"),
    Study("perceptron", 0.1, (5e-4, 2.5e-4, 1.25e-4), (1, 2, 3), PAIRS[:1], epsilon=1e-4),
    Study("transformer", 0.04, (1e-4, 5e-5, 2.5e-5), (1, 2), PAIRS[:1], epsilon=1e-4),
    Study("crossing", 1.6, HALVED, (1, 2, 3), PAIRS[1:2], weight_decay=0.0),
    Study("crossing", 1.6, HALVED, (1, 2, 3), PAIRS[1:2], epsilon=0.1, weight_decay=0.0),
)
MORE = tuple(dataclasses.replace(study, pairs=PAIRS[1:]) for study in STUDIES[3:5])
MORE += (Study("transformer", 0.04, (2e-4, 1e-4, 5e-5), (3,), PAIRS[:1], epsilon=1e-4),)
SMALL = dict(layers=1, width=16, heads=2, context=16, batch_size=4)
QUICK: dict[str, Any] = dict(learning_rate=5e-4, steps=120, flows=("paper 1", "map 2 from 8"))
FEW = dataclasses.replace(STUDIES[0], learning_rates=HALVED[:2], orders=(1, 2), pairs=PAIRS[:1])
CONFIGS = {
    "quick": Config((FEW,), SMALL, drift_rates=HALVED[1:3], drift_pairs=PAIRS[1:2], **QUICK),
    "default": Config(STUDIES, dict(layers=2, width=32, heads=4, context=32, batch_size=4)),
    "full": Config(STUDIES + MORE, dict(layers=2, width=64, heads=4, context=64, batch_size=16), 1e-4, 380, 4),
}
NUMBERS = ("epsilon", "beta", "gamma", "order", "learning_rate", "error", "slope")
FLOWS: dict[str, Any] = {"paper": af.GouldTanakaFlow, "modified": af.ModifiedFlow, "map": af.InterpolatingFlow}
FLOWS["memoryless"] = lambda optimizer, _: af.MemorylessFlow(optimizer, include_transient=True)
MARKS = ("o-", "s--", "^:")


class Crossing(eqx.Module):
    """½ (θ₀ − 2θ₁)² + 4θ₁²: the first coordinate of the gradient crosses zero once, since its minimum moves faster."""

    def __call__(self, params: jax.Array) -> jax.Array:
        return 0.5 * (params[0] - 2 * params[1]) ** 2 + 4 * params[1] ** 2


class Drifting(eqx.Module):
    """A loss times e^(rate n), where n stands in for a batch."""

    loss: Callable[[jax.Array], jax.Array]
    rate: jax.Array

    def __call__(self, params: jax.Array, n: jax.Array) -> jax.Array:
        return jnp.exp(self.rate * n) * self.loss(params)


def problem_of(name: str, seed: int, sizes: dict[str, Any]) -> af.problems.Problem:
    if name == "crossing":
        return af.problems.Problem(name, jnp.array([1.0, 2.0]), Crossing())
    if name == "quartic":
        return af.problems.quartic()
    if name == "perceptron":
        return af.problems.mlp((16,), seed=seed).flatten()
    return af.problems.char_transformer(**sizes, seed=seed, data_seed=seed).flatten()


def compute(config: Config) -> figure.Data:
    """All parts side by side: most of the time goes into compiling, which threads share among the cores."""
    with cores.threads() as pool:
        parts = [pool.submit(follow, config), pool.submit(drift, config)]
        jobs = [pool.submit(measure, study, order, config.seed) for study in config.studies for order in study.orders]
        rows = np.concatenate([job.result() for job in figure.progress(jobs, "orders")])
        return {name: rows[name] for name in ("problem", *NUMBERS)} | parts[0].result() | parts[1].result()


def measure(study: Study, order: int, seed: int) -> np.ndarray:
    """The errors of a flow of one order, and their slopes, for each (β, γ), which share one program."""
    problem, rows = problem_of(study.problem, seed, SMALL), []
    name = study.problem if study.flow == "modified" else study.flow
    options: dict[str, Any] = {"rtol": study.rtol, "solver": diffrax.Dopri8(), "points": 200}
    for pair in study.pairs:

        def flow(rate: float, pair: tuple[float, float] = pair) -> af.AbstractFlow:
            optimizer = af.adamw(
                rate,
                beta=pair[0],
                gamma=pair[1],
                epsilon=study.epsilon,
                epsilon_inside_root=True,
                weight_decay=study.weight_decay,
            )
            return FLOWS[study.flow](optimizer, order)

        found = af.measure_convergence(
            flow, problem.loss, problem.params, study.learning_rates, time=study.time, **options
        )
        for rate, error in zip(found.learning_rates, found.errors, strict=True):
            rows.append((name, study.epsilon, *pair, order, rate, error, found.order))
    return np.array(rows, [("problem", "U12"), *((name, float) for name in NUMBERS)])


def follow(config: Config) -> dict[str, Any]:
    """The distances of all flows from the iterates on the transformer, relative to the distance moved, and η s."""
    problem = problem_of("transformer", config.seed, config.sizes)
    loss, start, steps = problem.loss, problem.params, config.steps
    optimizer = af.adamw(config.learning_rate, beta=config.beta, gamma=config.gamma, weight_decay=config.weight_decay)
    saved = np.arange(config.save_every, steps + 1, config.save_every, dtype=float)
    measure = af.analysis.sharpness_observer(optimizer, loss, iterations=config.lanczos_iterations)
    run = af.iterate(optimizer, loss, start, steps, save_at=saved, observe=lambda s: (s.params, measure(s).value))
    iterates, sharpness = map(np.asarray, run.observed)
    moved = np.maximum.accumulate(np.linalg.norm(iterates - np.asarray(start), axis=1))
    errors = np.full((len(config.flows), saved.size), np.nan)
    for row, (kind, order, *begin) in zip(errors, map(str.split, config.flows), strict=True):
        params = start
        options: dict[str, Any] = {"start": None}
        if begin:
            first = int(begin[1])
            params, memory = af.iterate(optimizer, loss, start, first, save_at=[first]).final_state
            options["start"] = first, memory
        flow, solver = FLOWS[kind](optimizer, int(order)), diffrax.Tsit5()
        run = af.solve(flow, loss, params, steps, save_at=saved, rtol=config.rtol, solver=solver, **options)
        kept = slice(len(run))
        row[kept] = np.linalg.norm(np.asarray(run.params) - iterates[kept], axis=1) / moved[kept]
    return {
        "flows": config.flows,
        "iterations": saved,
        "flow_errors": errors,
        "sharpness": config.learning_rate * sharpness,
        "edge": np.asarray(af.analysis.adaptive_edge(config.gamma)),
        "parameters": start.size,
    }


def drift(config: Config) -> dict[str, Any]:
    """How far g → e^(ct) g with c = 1 moves the iterates of Adam with ε = 0, at t up to `drift_time`."""
    problem = problem_of("quartic", config.seed, {})

    def run(rate: float, pair: tuple[float, float], c: float) -> np.ndarray:
        steps, loss = round(config.drift_time / rate), Drifting(problem.loss, jnp.asarray(c * rate))
        return np.asarray(
            af.iterate(
                af.adam(rate, beta=pair[0], gamma=pair[1]), loss, problem.params, steps, batches=jnp.asarray
            ).params
        )

    rates, pairs = config.drift_rates, config.drift_pairs
    moved = [[np.abs(run(rate, pair, 1.0) - run(rate, pair, 0.0)).max() for rate in rates] for pair in pairs]
    return {"drift_pairs": pairs, "drift_rates": rates, "drift": moved}


def at_edge(data: figure.Data) -> float:
    """The first saved iteration at which η s is at the edge or beyond; infinite if there is none."""
    return float(np.min(data["iterations"][data["sharpness"] >= data["edge"]], initial=np.inf))


def slopes(data: figure.Data, rows: np.ndarray) -> dict[str, tuple[float, float]]:
    """By name, the order and the fitted slope of each study among the rows."""
    columns = zip(*(data[name][rows] for name in ("problem", "beta", "gamma", "order", "slope")), strict=True)
    return {f"{problem} ({b:g}, {g:g}) p = {p:g}": (p, slope) for problem, b, g, p, slope in columns}


def check(data: figure.Data) -> list[figure.Claim]:
    crossing, low = data["problem"] == "crossing", (data["order"] < 4) & ~np.isin(data["problem"], list(FLOWS))
    usual = (data["beta"] == 0.999) & (data["gamma"] == 0.9)
    chosen = (~crossing & low, crossing & (data["epsilon"] == 0), ~crossing & low & usual)
    smooth, kinked, usual = (slopes(data, rows) for rows in chosen)
    drifts = np.polyfit(np.log(data["drift_rates"]), np.log(data["drift"]).T, 1)[0]
    expected = np.array([2.0 if beta == gamma else 1.0 for beta, gamma in data["drift_pairs"]])
    edge, n = at_edge(data), data["iterations"]
    before = (n <= edge) & (n >= n[-1] / 8)
    flows, errors, pairs = map(str, data["flows"]), data["flow_errors"], data["drift_pairs"]
    ends = {f"flow {i + 1} ends at": np.max(n[~np.isnan(e)]) for i, e in enumerate(errors)}
    worst = dict(zip(flows, np.nanmax(errors[:, before], axis=1), strict=True))
    later = max(error for name, error in worst.items() if name.endswith("from 8"))
    by_pair = {f"({beta:g}, {gamma:g})": slope for (beta, gamma), slope in zip(pairs, drifts, strict=True)}
    fast = "on smooth problems errors fall at least as η^(p − .25) for p = 1, 2, and as η^2.5 for p = 3, from n = 0"
    one = "where a gradient coordinate crosses zero and ε = 0, orders 2 and 3 have slope 1 ± .25"
    close = "transformer, from 1/8 of the run to the edge: order 2 from n = 8 is within .5%, a fifth of [GT]'s order 1"
    scale = "a drift of the scale moves the iterates by O(η), slope 1 ± .25, or where β = γ by O(η²), 2 ± .25"
    claims = [
        (fast, all(slope > p - (0.25 if p < 3 else 0.5) for p, slope in smooth.values()), smooth),
        ("at β = .999, γ = .9 these slopes are p ± .25", all(abs(s - p) < 0.25 for p, s in usual.values()), usual),
        (one, all(abs(slope - 1) < 0.25 for p, slope in kinked.values() if p > 1), kinked),
        (close, later < 0.005 and later < worst["paper 1"] / 5, {"edge at iteration": edge, **worst, **ends}),
        (scale, np.all(np.abs(drifts - expected) < 0.25), by_pair),
    ]
    return [
        figure.Claim(sentence, bool(holds), {name: np.ravel(number)[-1] for name, number in found.items()})
        for sentence, holds, found in claims
        if found
    ]


def draw(data: figure.Data) -> dict[str, Figure]:
    return {"": draw_panels(data, few=True), "all": draw_panels(data, few=False)}


#: What the first panel has of the flows, and the second of the (β, γ), where few lines are drawn.
FEW_FLOWS = ("paper 1", "paper 2", "modified 2", "modified 2 from 8")


def draw_panels(data: figure.Data, *, few: bool) -> Figure:
    """All panels, with a choice of the lines or all of them."""
    drawn, axes = plt.subplots(2, 3, figsize=(13, 7.6))
    draw_flows(axes[0, 0], data, few)
    titles = {"quartic": "b  Quadratic and quartic", "perceptron": "c  Perceptron, √(v + 1e-4)"}
    titles |= {"transformer": "d  Small transformer, √(v + 1e-4)", "crossing": "e  A gradient coordinate crosses zero"}
    for ax, (problem, title) in zip(axes.flat[1:], titles.items(), strict=False):
        chosen = data["problem"] == problem
        if few and problem == "quartic":
            chosen &= (data["beta"] == data["beta"][chosen][0]) & (data["gamma"] == data["gamma"][chosen][0])
        if few and problem == "crossing":
            chosen &= data["order"] > 1
        draw_orders(ax, data, chosen)
        ax.set_title(title)
    others = {pair for pair in zip(data["problem"], data["order"], strict=True) if pair[0] in FLOWS and not few}
    for name, order in sorted(others):
        rows = (data["problem"] == name) & (data["order"] == order)
        label = f"{_called(name)}, p = {order:g}: slope {data['slope'][rows][0]:.2f}"
        axes[0, 1].loglog(data["learning_rate"][rows], data["error"][rows], "x-", color="0.6", label=label)
    axes[0, 1].set_ylim(bottom=1e-16 if few else 1e-18)
    name_rates(axes[0, 1], np.unique(data["learning_rate"][data["problem"] == "quartic"]))
    axes[0, 1].legend(fontsize=6.5, loc="lower right", ncols=2)
    for (beta, gamma), errors in zip(data["drift_pairs"], data["drift"], strict=True):
        result = af.Convergence(data["drift_rates"], errors, f"β = {beta:g}, γ = {gamma:g}")
        af.plotting.convergence(result, ax=axes[1, 2])
    name_rates(axes[1, 2], data["drift_rates"])
    axes[1, 2].legend(fontsize=7, loc="lower right", borderaxespad=0.2)
    axes[1, 2].set(ylim=(data["drift"].min() / 10, None))
    axes[1, 2].set(title="f  The gradient's scale drifts: $g \\to e^t g$", ylabel="largest change of θ")
    return drawn


def _called(name: str) -> str:
    """What a flow is called in a legend."""
    return str(name).replace("paper", "[GT]").replace("map", "interpolating")


def draw_flows(ax: Axes, data: figure.Data, few: bool) -> None:
    for place, (name, errors) in enumerate(zip(data["flows"], data["flow_errors"], strict=True)):
        if few and str(name) not in FEW_FLOWS:
            continue
        label, style = _called(name).replace("from", "from n ="), "--" if "from" in name else "-"
        ax.semilogy(data["iterations"], np.where(errors > 0, errors, np.nan), style, color=f"C{place + 4}", label=label)
    if np.isfinite(edge := at_edge(data)):
        ax.axvline(edge, color="black", linestyle=":", label="edge of stability")
    title = f"a  Transformer, {int(data['parameters']):,} parameters, ε = 0"
    ax.set(xlabel="iteration n", ylabel="error / distance moved", ylim=(1e-4, 2.0), title=title)
    ax.legend(fontsize=7)


def name_rates(ax: Axes, rates: np.ndarray) -> None:
    """A tick for each learning rate, and no others."""
    ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
    ax.minorticks_off()


def draw_orders(ax: Axes, data: figure.Data, chosen: np.ndarray) -> None:
    """Colours for orders, with their slopes; line styles for (β, γ) or, where there is one only, for ε."""
    several = len(np.unique(data["epsilon"][chosen])) > 1
    style = np.stack([data[name] for name in (("epsilon",) if several else ("beta", "gamma"))], axis=1)
    for order in np.unique(data["order"][chosen]):
        found = []
        for value, line in zip(dict.fromkeys(map(tuple, style[chosen])), MARKS, strict=False):
            rows = chosen & (data["order"] == order) & np.all(style == value, axis=1)
            colour = f"C{int(order) - 1}"
            ax.loglog(data["learning_rate"][rows], data["error"][rows], line, color=colour, markersize=3.5)
            found += [f"{slope:.2f}" for slope in data["slope"][rows][:1]]
        ax.plot([], [], color=f"C{int(order) - 1}", label=f"p = {order:g}: slopes {', '.join(found)}")
    for value, line in zip(dict.fromkeys(map(tuple, style[chosen])), MARKS, strict=False):
        name = f"ε = {value[0]:g}" if several else f"β = {value[0]:g}, γ = {value[1]:g}"
        ax.plot([], [], line, color="black", markersize=3.5, label=name)
    ax.set(xlabel="learning rate η", ylabel="largest error of θ")
    name_rates(ax, np.unique(data["learning_rate"][chosen]))
    if chosen.any():
        ax.legend(fontsize=7)


if __name__ == "__main__":
    sys.exit(figure.main(__file__, __doc__, CONFIGS, compute, check, draw))
