"""The worst-case gradients: the update that they cause is the bound, in discrete and in continuous time.

Columns: a pair (β, γ) in B₊, one on B₀ (C = 0) and one in B₋. Top: the gradients that attain the bound, in B₊ growing
and else falling; the first gradient of a flow, a square, stands apart. Middle: |uₙ| of the discrete Adam with ε = 0 fed
with them, beside the discrete bound, that of [GT], and quantiles of |uₙ| under independent normal gradients. Bottom:
|u(n)| along the integrated flows of order 1, with the rate of [GT] and the exact one, beside the bounds of each.

Claim: the bounds "discrete" and "flow" of `af.analysis.update_bound` are attained, at every iteration, since the
beginning of a worst-case sequence is one too. Measured: within 2e-15 (discrete) and 5e-9 (flows, rtol 1e-10). At
n = 100 the updates are those of the table: 2.2540 at (.999, .9), 12.320 at (.9, .99). Random gradients stay far below:
at n = 100 the largest of 2000 is .33, .36 and .03 of the bound. The bound of [GT] neglects the first gradient: the
discrete optimizer exceeds it up to n = 5, 12 and 32, and its own flow at every n, though in B₊ soon by too little to
see. On B₀ it grows as √n, while γ² < β, and the discrete bound and that of the flow with exact rates tend to constants.

Source: [GT] = R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization,
arXiv:2411.05746, for its bound; the attained bounds and gradients are derivations of this project. [GT] writes (β, γ)
where PyTorch and optax write (b2, b1).
Run time on 2 cores: 10 seconds; --quick the same; --full, with 300 iterations and 100,000 random sequences, 20.
"""

import dataclasses
import sys
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
from adamflow.figures import figure
from adamflow.plotting import worst_case

jax.config.update("jax_enable_x64", True)

RATES: tuple[Any, ...] = ("gould_tanaka", "exact")
#: How far an update may lie from a bound that it attains, as a share of it.
ATTAINED = 1e-6
#: More than the rounding of an update over its bound.
ROUNDING = 1e-9
#: The least distance of random gradients from the bound at the last iteration, as a factor: for 95% of them.
FAR_BELOW = 2.0

DISCRETE = f"the discrete update attains its bound at the last iteration, and at each before it, within {ATTAINED:g}"
FLOW = f"so do the flows of order 1, integrated, with the paper's rate and the exact one, within {ATTAINED:g}"
RANDOM = f"no random gradients pass the bound, and 95% of them end below it by a factor of {FAR_BELOW:g} or more"
PAPER_EARLY = "the bound of [GT] fails for the discrete optimizer up to some iteration, and holds from there on"
PAPER_FLOW = (
    "the flow of [GT] attains more than its bound, which neglects the first gradient: at no iteration less (up to "
    "rounding), and up to n = 5 by 1% or more"
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings: one pair in B₊, one on B₀ and one in B₋; `seed` is of the random gradients."""

    betas: tuple[float, ...] = (0.999, 0.9 / 1.1, 0.9)
    gammas: tuple[float, ...] = (0.9, 0.9, 0.99)
    steps: int = 100
    random: int = 2000
    seed: int = 0
    rtol: float = 1e-10


CONFIGS = {"quick": Config(random=200), "default": Config(), "full": Config(steps=300, random=100_000)}


class Linear(eqx.Module):
    """The loss g·θ, whose gradient is g, the batch of the iteration."""

    def __call__(self, params: jax.Array, gradient: jax.Array) -> jax.Array:
        return jnp.sum(gradient * params)


class Row(eqx.Module):
    """Row n of a table: the gradient of iteration n."""

    table: jax.Array

    def __call__(self, iteration: jax.Array) -> jax.Array:
        return self.table[iteration]


def compute(config: Config) -> figure.Data:
    """Gradients, updates and bounds by pair."""
    pairs = list(zip(config.betas, config.gammas, strict=True))
    with figure.progress(total=len(pairs) * 4, describe="runs") as bar:
        columns = [of_pair(config, *pair, bar) for pair in pairs]
    beta, gamma = np.array(pairs).T
    exponent = af.analysis.stability_exponent(beta=beta, gamma=gamma)
    data = {name: np.stack([column[name] for column in columns]) for name in columns[0]}
    n = np.arange(config.steps + 1.0)
    return data | {"iterations": n, "beta": beta, "gamma": gamma, "exponent": exponent}


def of_pair(config: Config, beta: float, gamma: float, bar: Any) -> dict[str, np.ndarray]:
    """What the figure shows of one pair; flows have a row for each rate."""
    n, optimizer = np.arange(config.steps + 1), af.adam(1e-3, beta=beta, gamma=gamma)
    worst = jnp.asarray(af.analysis.worst_case_gradients(len(n), beta=beta, gamma=gamma))
    update = discrete_updates(optimizer, worst[:, None])[:, 0]
    bar.update()
    generator = np.random.default_rng(config.seed)
    random = discrete_updates(optimizer, jnp.asarray(generator.standard_normal((len(n), config.random))))
    bar.update()
    signals, starts, updates, flow_bounds = [], [], [], []
    for rate in RATES:
        signal: Any = af.analysis.worst_case_gradients(len(n), beta=beta, gamma=gamma, kind="flow", rate=rate)
        signals.append(jax.vmap(signal)(n))
        starts.append(signal.start)
        updates.append(flow_updates(af.GouldTanakaFlow(optimizer, 1, rate), signal, config.rtol))
        flow_bounds.append(af.analysis.update_bound(n, beta=beta, gamma=gamma, kind="flow", rate=rate))
        bar.update()
    return {
        "discrete_gradient": np.asarray(worst),
        "discrete_update": update,
        "discrete_bound": np.asarray(af.analysis.update_bound(n, beta=beta, gamma=gamma, kind="discrete")),
        "paper_bound": np.asarray(af.analysis.update_bound(n, beta=beta, gamma=gamma)),
        "random_quantiles": np.quantile(random, (0.05, 0.25, 0.5, 0.75, 0.95), axis=1),
        "random_largest": random.max(axis=1),
        "flow_gradient": np.stack(signals),
        "flow_start": np.stack(starts),
        "flow_update": np.stack(updates),
        "flow_bound": np.stack(flow_bounds),
    }


def discrete_updates(optimizer: af.Optimizer, gradients: jax.Array) -> np.ndarray:
    """|uₙ| by iteration and coordinate, of the discrete optimizer fed with gradients of that shape."""
    start = jnp.zeros(gradients.shape[1])
    steps = len(gradients) - 1
    run = af.iterate(optimizer, Linear(), start, steps, batches=Row(gradients), observe=direction_sizes)
    return np.asarray(run.observed)


def direction_sizes(snapshot: af.Snapshot) -> jax.Array:
    return jnp.abs(snapshot.direction)


@eqx.filter_jit
def flow_updates(flow: af.GouldTanakaFlow, signal: af.analysis.GradientSignal, rtol: float) -> jax.Array:
    """|u(n)| at n = 0, 1, … along the integrated flow of one parameter whose gradient is the signal."""
    times = jnp.arange(signal.end + 1.0)
    start = flow.initial_state(lambda theta: signal.start * theta, jnp.zeros(()))
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda time, state, args: flow.vector_field(time, state, lambda theta: signal(time) * theta)),
        diffrax.Dopri8(),
        t0=0.0,
        t1=times[-1],
        dt0=0.01,
        y0=start,
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=0.0),
        max_steps=10_000,
    )
    return jax.vmap(lambda n, state: jnp.abs(flow.direction(n, state, lambda theta: signal(n) * theta)))(
        times, solution.ys
    )


def check(data: figure.Data) -> list[figure.Claim]:
    n, discrete, paper = data["iterations"], data["discrete_bound"], data["paper_bound"]
    off_discrete = np.abs(data["discrete_update"] / discrete - 1)
    off_flow = np.abs(data["flow_update"] / data["flow_bound"] - 1)
    largest = (data["random_largest"] / discrete)[:, 1:].max(axis=1)
    ends_below = discrete[:, -1] / data["random_quantiles"][:, -1, -1]
    largest_end = data["random_largest"][:, -1] / discrete[:, -1]
    fails = paper < discrete
    first_good = np.array([n[np.flatnonzero(row)[-1]] + 1 for row in fails])
    one_crossing = np.all(np.diff(fails.astype(int), axis=1) <= 0) and first_good.max() <= n[-1]
    of_flow = data["flow_bound"][:, RATES.index("gould_tanaka")] / paper.clip(min=1e-300)
    claims = [
        (DISCRETE, off_discrete.max() <= ATTAINED, by_pair(data, "off by", off_discrete.max(axis=1))),
        (FLOW, off_flow.max() <= ATTAINED, by_pair(data, "off by", off_flow.max(axis=(1, 2)))),
        (
            RANDOM,
            largest.max() <= 1 + ROUNDING and ends_below.min() >= FAR_BELOW,
            by_pair(data, "largest / bound", largest)
            | by_pair(data, "largest at the end / bound", largest_end)
            | by_pair(data, "bound / quantile 95% at the end", ends_below),
        ),
        (PAPER_EARLY, one_crossing, by_pair(data, "holds from n", first_good)),
        (
            PAPER_FLOW,
            of_flow.min() >= 1 - ROUNDING and of_flow[:, :6].min() >= 1.01,
            by_pair(data, "attained / [GT] at n = 5", of_flow[:, 5])
            | by_pair(data, "attained / [GT] − 1 at the end", of_flow[:, -1] - 1),
        ),
    ]
    return [figure.Claim(sentence, bool(holds), numbers) for sentence, holds, numbers in claims]


def by_pair(data: figure.Data, what: str, values: np.ndarray) -> dict[str, float]:
    pairs = zip(data["beta"], data["gamma"], values, strict=True)
    return {f"({beta:.4g}, {gamma:.4g}): {what}": value for beta, gamma, value in pairs}


#: What the rates of flows are called in legends.
NAMES = {"gould_tanaka": "[GT]", "exact": "exact"}


def draw(data: figure.Data) -> dict[str, Figure]:
    return {"": draw_rows(data, ("discrete", "flow")), "all": draw_rows(data, ("gradient", "discrete", "flow"))}


def draw_rows(data: figure.Data, rows: tuple[str, ...]) -> Figure:
    """A column for each (β, γ), with rows of gradients, updates of the optimizer and updates of the flows."""
    n, names = data["iterations"], {1: "B₊", 0: "B₀", -1: "B₋"}
    signs = np.asarray(af.analysis.bounded_update_sign(beta=data["beta"], gamma=data["gamma"]))
    drawn, axes = plt.subplots(len(rows), len(signs), figsize=(12, 3.2 * len(rows)), sharex=True)
    for place, column in enumerate(axes.T):
        here = {name: values[place] for name, values in data.items() if name != "iterations"}
        for ax, row in zip(column, rows, strict=True):
            draw_panel(ax, n, here, row)
        exponent = f"{here['exponent']:.3f}".replace("-", "−") if signs[place] else "0"
        name = names[int(signs[place])]
        column[0].set_title(f"{name}:  β = {here['beta']:.4g}, γ = {here['gamma']:.4g},  C = {exponent}")
        for ax in column[:-1]:
            ax.set_xlabel("")
        for ax in column if place else ():
            ax.set_ylabel("")
    for row, line in zip(rows, axes, strict=True):
        place, where = {"gradient": (0, "upper left"), "discrete": (2, (0.5, 0.47)), "flow": (2, (0.03, 0.42))}[row]
        line[place].legend(loc=where, fontsize=7)
    return drawn


def draw_panel(ax: Axes, n: np.ndarray, here: dict[str, np.ndarray], row: str) -> None:
    """One row at one (β, γ)."""
    if row == "gradient":
        signals = zip(here["flow_gradient"], here["flow_start"], strict=True)
        worst_case.gradients(
            ax, n, here["discrete_gradient"], dict(zip(map(NAMES.__getitem__, RATES), signals, strict=True))
        )
    elif row == "discrete":
        bounds = here["discrete_bound"], here["paper_bound"]
        worst_case.discrete_updates(ax, n, here["discrete_update"], *bounds, here["random_quantiles"])
    else:
        updates = zip(here["flow_update"], here["flow_bound"], strict=True)
        worst_case.flow_updates(
            ax, n, dict(zip(map(NAMES.__getitem__, RATES), updates, strict=True)), here["paper_bound"]
        )
    if (legend := ax.get_legend()) is not None:
        legend.remove()


if __name__ == "__main__":
    sys.exit(figure.main(__file__, __doc__, CONFIGS, compute, check, draw))
