"""Discrete and continuous Adam and AdamW on a transformer: where they agree, and where and why they part.

A transformer that predicts characters is trained on one fixed batch, so that the loss is deterministic, by the discrete
optimizer with ε = 0 and along its flows of [GT], of orders 1 and 2. Rows 1 and 2: 16 parameters chosen at random, along
the iterates (circles) and along a flow (lines). Row 3: the error over all parameters, ‖θ(n) − θₙ‖ divided by the
distance that the iterates have moved so far, with the filters' rate of [GT], (1−γ)/γ, and the exact one, −ln γ. Row 4:
the learning rate times the preconditioned sharpness along the iterates, η s, beside the edges at which a step of the
iterates (38 at γ = .9) and the flow of order 2 (2.11) turn unstable. The flow of order 1 has no edge.

Claim: the flow of order 1 follows the iterates until η s reaches their edge, and leaves them soon after; the flow of
order 2 leaves them earlier, between its own edge and theirs. Measured: η s reaches 38 at iteration 251, for both
optimizers. Until then order 1 is within 3.0% (exact rate: 1.3%); at iteration 400 it is off by 9 to 10%. Order 2 is no
closer before its own edge, at iteration 157 (in the mean 2.2%; order 1: 1.8%, exact rate .7%), off by 9.5% where the
iterates reach theirs, and by 22% at the end. Seeds 1 to 3 give the iterations 243 to 272, at most 3.0% (2.2%), 7 to
9% at the end, and for order 2 9 to 11% and 21 to 25%. In the smaller model of --quick order 2 is closer than order 1
before its edge. Float64 changes iterates and flows by less than .1% of the distance moved.

Source: [GT] = R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization,
arXiv:2411.05746, its first figure; the exact rate and the edges are derivations of this project.
Run time on 2 cores: 2 minutes; --quick half a minute; --full, with 116,000 parameters, about half an hour.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

import adamflow as af
from adamflow.figures import cores, figure
from adamflow.types import Loss

Table: TypeAlias = np.ndarray

CROSSES = "η s along the iterates rises through their edge within the run"
FOLLOWS = "until then the flow of order 1 stays within 5% of the distance moved"
LEAVES = "from there to the end its error more than doubles"
LEAVES_EARLIER = (
    "the flow of order 2 leaves earlier: from its own edge to that of the iterates its error more than doubles, and "
    "becomes more than twice that of order 1"
)
INTEGRATES = "up to the iterates' edge, errors of integration are at most a tenth of the errors of the flows"
#: What flows with these rates of their filters are called in legends.
RATE_NAMES = {"gould_tanaka": "rates of [GT]", "exact": "exact rate"}
EXACT_IS_CLOSER = "up to the iterates' edge, the exact rate brings order 1 closer, in the mean over iterations"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; `seed` determines the weights, the batch and the parameters shown."""

    seed: int = 0
    layers: int = 2
    width: int = 32
    heads: int = 4
    context: int = 32
    batch_size: int = 8
    learning_rate: float = 3e-4
    beta: float = 0.999
    gamma: float = 0.9
    weight_decays: tuple[float, ...] = (0.0, 0.1)
    steps: int = 400
    save_every: int = 4
    flows: tuple[tuple[int, str], ...] = ((1, "gould_tanaka"), (1, "exact"), (2, "gould_tanaka"))
    rtol: float = 1e-5
    rtol_of_check: float = 1e-6
    lanczos_iterations: int = 16
    parameters_shown: int = 16

    @property
    def iterations(self) -> Table:
        return np.arange(0, self.steps + 1, self.save_every, dtype=float)


QUICK = Config(
    seed=3,
    width=16,
    heads=2,
    context=16,
    batch_size=4,
    learning_rate=5e-4,
    steps=320,
    save_every=8,
    flows=((1, "gould_tanaka"), (2, "gould_tanaka")),
)
FULL = Config(width=64, context=64, batch_size=16, learning_rate=1e-4, flows=(*Config().flows, (2, "exact")))
CONFIGS = {"quick": QUICK, "default": Config(), "full": FULL}


def compute(config: Config) -> figure.Data:
    same_names = ("layers", "heads", "width", "context", "batch_size", "seed")
    settings: dict[str, Any] = {name: getattr(config, name) for name in same_names}
    problem = af.problems.char_transformer(**settings, data_seed=config.seed).flatten()
    loss, start = problem.loss, problem.params
    runs = 2 * len(config.weight_decays) * (1 + len(config.flows))
    # Most of the time goes into compiling one program per kind of run, which threads do side by side.
    with figure.progress(describe="runs", total=runs) as bar, cores.threads() as pool:
        discrete = pool.submit(discrete_runs, config, loss, start, bar)
        flows = [pool.submit(flow_runs, config, loss, start, kind, bar) for kind in config.flows]
        by_optimizer = zip(discrete.result(), zip(*(job.result() for job in flows), strict=True), strict=True)
    shown = np.random.default_rng(config.seed).choice(start.size, config.parameters_shown, replace=False)
    columns = [of_optimizer(run, table, pairs, shown) for (run, table), pairs in by_optimizer]
    return {name: np.stack([column[name] for column in columns]) for name in columns[0]} | {
        "iterations": config.iterations,
        "parameters": np.asarray(start.size),
        "optimizers": np.asarray([f"AdamW, λ = {decay:g}" if decay else "Adam" for decay in config.weight_decays]),
        "orders": np.asarray([order for order, _ in config.flows]),
        "rates": np.asarray([rate for _, rate in config.flows]),
        "edge": np.asarray(af.analysis.adaptive_edge(config.gamma)),
        "edge_of_order_2": np.asarray(2 + (1 - config.gamma) / config.gamma),
    }


def declare(config: Config, weight_decay: float) -> af.Optimizer:
    """AdamW, or Adam where the weight decay is 0, under one name: so they share compiled programs."""
    optimizer = af.adamw(config.learning_rate, beta=config.beta, gamma=config.gamma, weight_decay=weight_decay)
    return dataclasses.replace(optimizer, name="AdamW")


def discrete_runs(config: Config, loss: Loss, start: jax.Array, bar: tqdm) -> list[tuple[af.Trajectory, Table]]:
    """The iterates of each optimizer; beside them, η s with P = √v̂, and the residual of that eigenvalue."""
    # The preconditioner does not depend on the weight decay, so that both runs share one program.
    record = declare(config, weight_decay=0.0)

    def watch(snapshot: af.Snapshot) -> tuple[jax.Array, jax.Array, jax.Array]:
        return snapshot.params, record.preconditioner(snapshot.filters, snapshot.iteration), snapshot.loss

    def eigenvalue(params: jax.Array, preconditioner: jax.Array) -> tuple[float, float]:
        depth = config.lanczos_iterations
        result = af.analysis.preconditioned_sharpness(loss, params, preconditioner, iterations=depth)
        return config.learning_rate * float(result.value), config.learning_rate * float(result.residual)

    results = []
    for weight_decay in config.weight_decays:
        optimizer = declare(config, weight_decay)
        run = af.iterate(optimizer, loss, start, config.steps, save_at=config.iterations, observe=watch)
        bar.update()
        table = np.array([eigenvalue(*row) for row in zip(*run.observed[:2], strict=True)])
        bar.update()
        results.append((dataclasses.replace(run, params=run.observed[0]), table))
    return results


def flow_runs(
    config: Config, loss: Loss, start: jax.Array, kind: tuple, bar: tqdm
) -> list[tuple[af.Trajectory, af.Trajectory]]:
    """The flow of one kind for each optimizer, and the same integrated more tightly, as a check."""

    def run(weight_decay: float, rtol: float) -> af.Trajectory:
        flow = af.GouldTanakaFlow(declare(config, weight_decay), *kind)
        result = af.solve(flow, loss, start, config.steps, save_at=config.iterations, rtol=rtol)
        if not result.outcome.successful:
            raise RuntimeError(f"the run {result.name!r} {result.outcome.message}")
        bar.update()
        return result

    return [(run(decay, config.rtol), run(decay, config.rtol_of_check)) for decay in config.weight_decays]


def of_optimizer(iterates: af.Trajectory, table: Table, flows: Sequence[tuple], shown: np.ndarray) -> figure.Data:
    """The numbers of one optimizer that the figure and its claims need; errors are relative to the distance moved."""
    return {
        "discrete_coordinates": np.asarray(iterates.params)[:, shown],
        "discrete_loss": np.asarray(iterates.observed[2]),
        "sharpness": table[:, 0],
        "sharpness_residual": table[:, 1],
        "flow_coordinates": np.stack([np.asarray(run.params)[:, shown] for run, _ in flows]),
        "flow_errors": np.stack([af.compare(iterates, run).relative_error for run, _ in flows]),
        "integration_errors": np.stack([af.compare(tighter, run).relative_error for run, tighter in flows]),
        "gradient_evaluations": np.asarray([run.stats.gradient_evaluations for run, _ in flows]),
    }


def crossings(data: figure.Data, edge: str) -> Table:
    """Where η s along the iterates of each optimizer first rises through an edge; infinite where it never does.

    The start does not count: P = |g₀| there, and a few coordinates with a gradient near zero make η s large.
    """
    places = []
    for values in data["sharpness"]:
        rises = np.flatnonzero((values[:-1] < data[edge]) & (values[1:] >= data[edge]))
        pair = slice(rises[0], rises[0] + 2) if rises.size else slice(0)
        places.append(np.interp(data[edge], values[pair], data["iterations"][pair]) if rises.size else np.inf)
    return np.array(places)


def check(data: figure.Data) -> list[figure.Claim]:
    n, error, first, second = data["iterations"], data["flow_errors"], data["orders"] == 1, data["orders"] == 2
    edges, own_edges = crossings(data, "edge"), crossings(data, "edge_of_order_2")
    before, early = (np.broadcast_to((n <= places[:, None])[:, None], error.shape) for places in (edges, own_edges))
    mean, early_mean = (np.mean(error, axis=-1, where=rows) for rows in (before, early))
    worst = np.max(error, axis=-1, where=before, initial=0)
    integration = np.max(data["integration_errors"], axis=-1, where=before, initial=0)
    at_edge, at_own_edge = (
        np.array([[np.interp(place, n, flow) for flow in flows] for place, flows in zip(places, error, strict=True)])
        for places in (edges, own_edges)
    )
    growth, lead = error[..., -1] / at_edge, at_edge / at_own_edge
    leaves_at_2 = lead[:, second].min() > 2 and at_edge[:, second].min() > 2 * at_edge[:, first].max()
    paper, exact = (mean[:, first & (data["rates"] == rate)] for rate in ("gould_tanaka", "exact"))
    of_order_2 = by_name(data, "iteration", own_edges) | {"edge": data["edge_of_order_2"]}
    table = {"mean error before": early_mean, "error grows by": lead, "error at the iterates' edge": at_edge}
    for what, values in table.items():
        of_order_2 |= by_name(data, what, values, second)
    of_growth = by_name(data, "error there", at_edge, first) | by_name(data, "error grows by", growth, first)
    claims = [
        (CROSSES, np.isfinite(edges).all(), by_name(data, "iteration", edges) | {"edge": data["edge"]}),
        (FOLLOWS, worst[:, first].max() < 0.05, by_name(data, "largest error", worst, first)),
        (LEAVES, growth[:, first].min() > 2, of_growth),
        (LEAVES_EARLIER, leaves_at_2, of_order_2),
        (INTEGRATES, (integration < 0.1 * worst).all(), by_name(data, "largest error", integration, first | second)),
    ]
    if exact.size:
        claims.append((EXACT_IS_CLOSER, (exact < paper).all(), by_name(data, "mean error", mean, first)))
    return [figure.Claim(sentence, bool(holds), numbers) for sentence, holds, numbers in claims]


def by_name(data: figure.Data, what: str, values: Table, chosen: Table | None = None) -> dict[str, float]:
    """A number for each optimizer, or for each optimizer and chosen flow."""
    if chosen is None:
        return {f"{name}, {what}": value for name, value in zip(data["optimizers"], values, strict=True)}
    kinds = [
        f"order {order}, {RATE_NAMES[str(rate)]}" for order, rate in zip(data["orders"], data["rates"], strict=True)
    ]
    rows = zip(data["optimizers"], values, strict=True)
    return {f"{name}, {kinds[flow]}, {what}": row[flow] for name, row in rows for flow in np.flatnonzero(chosen)}


def draw(data: figure.Data) -> dict[str, Figure]:
    return {
        "": draw_columns(data, {"parameters": 1, "errors": None, "sharpness": None}, count=5),
        "all": draw_columns(data, {"parameters": 1, "order 2": 2, "errors": None, "sharpness": None}, count=16),
    }


def draw_columns(data: figure.Data, rows: dict[str, int | None], count: int) -> Figure:
    """A column for each optimizer: `count` parameters along flows of an order, errors, sharpness."""
    edges = {"edge of the iterates": "edge", "edge of order 2": "edge_of_order_2"}
    places = np.stack([crossings(data, key) for key in edges.values()], axis=1)
    shape = (len(rows), len(places))
    size = (5 * shape[1], 2.9 * shape[0])
    drawn, axes = plt.subplots(*shape, figsize=size, sharex=True, sharey="row", squeeze=False)
    for optimizer, column in enumerate(axes.T):
        for ax, (row, order) in zip(column, rows.items(), strict=True):
            draw_row(ax, data, optimizer, row, order, count)
            ax.label_outer()
        for place, line in zip(places[optimizer], ("--", ":"), strict=True):
            if np.isinf(place):
                continue
            for ax in column:
                ax.axvline(place, color="black", linestyle=line, linewidth=0.8)
            style = dict(rotation=90, ha="right", va="bottom", fontsize=8)
            column[-1].text(place, 0.03, f"n = {place:.0f}", transform=column[-1].get_xaxis_transform(), **style)
    return drawn


def draw_row(ax: Axes, data: figure.Data, optimizer: int, row: str, order: int | None, count: int) -> None:
    """One panel: single parameters along the flow of an order, or the errors, or the sharpness."""
    if order is not None:
        draw_parameters(ax, data, optimizer, order, count)
        name = data["optimizers"][optimizer]
        ax.set_title(f"{name}: order 1 follows to the edge" if order == 1 else f"{name}: order 2 leaves earlier")
    elif row == "errors":
        draw_errors(ax, data, optimizer)
        ax.set_title(f"Error over all {data['parameters']:,} parameters")
    else:
        heights = {"edge of the iterates": float(data["edge"]), "edge of order 2": float(data["edge_of_order_2"])}
        af.plotting.edge.sharpness_of_run(
            data["iterations"], data["sharpness"][optimizer], heights, label="iterates", ax=ax
        )
        ax.set_title("The sharpness rises through both edges")
        ax.legend(loc="upper right", bbox_to_anchor=(1, 0.75), fontsize=7)


def draw_parameters(ax: Axes, data: figure.Data, optimizer: int, order: int, count: int) -> None:
    """How far `count` parameters, spread by how far they move, have moved along the iterates and the first flow."""
    flow = int(np.flatnonzero(data["orders"] == order)[0])
    n, zero = jnp.asarray(data["iterations"]), jnp.zeros((), int)
    shell: Any = dict(observed=None, final_state=None, outcome=af.Outcome(zero, n[-1]))
    stats = af.Stats(zero, zero, zero, zero, None)

    def moved(table: Table, name: str) -> af.Trajectory:
        return af.Trajectory(
            iterations=n, params=table - table[0], initial_params=table[0], stats=stats, name=name, **shell
        )

    table = data["discrete_coordinates"][optimizer]
    discrete = moved(table, f"{data['optimizers'][optimizer]}, discrete")
    name = f"flow of order {order}, {RATE_NAMES[str(data['rates'][flow])]}"
    continuous = moved(data["flow_coordinates"][optimizer, flow], name)
    by_distance = np.argsort(table[-1] - table[0])
    chosen = by_distance[np.linspace(0, len(by_distance) - 1, count).astype(int)]
    af.plotting.trajectories(discrete, continuous, parameters=np.sort(chosen), ax=ax)
    low, high = ax.get_ylim()
    ax.set_ylim(top=high + 0.25 * (high - low))
    legend = ax.get_legend()
    assert legend is not None
    ax.legend(handles=legend.legend_handles, loc="upper left", fontsize=7)
    ax.set_ylabel("change θ(n) − θ(0)")


def draw_errors(ax: Axes, data: figure.Data, optimizer: int) -> None:
    """The errors of all flows: orders by colour, rates by dashes."""
    n, kinds = jnp.asarray(data["iterations"]), list(zip(data["orders"], data["rates"], strict=True))
    comparisons = [
        af.Comparison(
            n, error, error, error, error, error, ("discrete", f"order {order}, {RATE_NAMES[str(rate)]}"), "euclidean"
        )
        for (order, rate), error in zip(kinds, map(jnp.asarray, data["flow_errors"][optimizer]), strict=True)
    ]
    af.plotting.errors(*comparisons, ax=ax)
    for line, (order, rate) in zip(ax.lines, kinds, strict=True):
        line.set(color=f"C{order - 1}", linestyle="--" if rate == "exact" else "-")
    ax.legend(loc="upper left", fontsize=7)


if __name__ == "__main__":
    sys.exit(figure.main(__file__, __doc__, CONFIGS, compute, check, draw))
