"""Phase diagrams: where updates stay bounded, and where the step and its flows are stable, over β, γ, ηs and ηλ.

a: the regions of bounded updates over (β, γ), with contours of the exponent C(β, γ) of [GT], its border C = 0 (B₀) and
the border γ² = β of the discrete optimizer. b: the edges of linear stability over (γ, ηs), s an eigenvalue of
P^{−1/2}HP^{−1/2}: of the discrete step, (2+2γ)/(1−γ), of the flow of order 2 of [GT], 2 + (1−γ)/γ, and of modified
flows; both flows of order 1 have none. Rings are edges of the real optimizer on a quadratic, found by bisection, with v
held by a large ε. c: growth of the discrete step over (ηs, ηλ) at γ = .9.

d to f: the growth rate per iteration of the dominant eigenvalue over (β, γ), of the discrete step and of the flows of
orders 1 and 2, at several ηs. The system is all of it, v included, at a minimum with P held by ε. There the square of
the gradient has no linear part, so that v has a mode of its own, with multiplier β (discrete) or rate −(1−β)/β (flows,
rate of [GT]), and θ and m have those of the edge, in which β does not enter. Right of the dotted line v's mode is the
slowest; left of it θ's is, and where P = √v it does not change slowly against θ any more. The last column takes the
largest s of a real network instead: digits MLP, full batch, trained by Adam with each (β, γ); there β enters through P
too, since v forgets the large early gradients.

Claim: the real optimizer turns unstable at the discrete edge. The flows do not: those of order 1 have no edge, that of
order 2 of [GT] is far below, and those of modified flows are above it from γ = .1 on, the less the higher the order. At
the end of training, discrete runs with slow v are near or below their edge, where the flow of order 2 of [GT] is
unstable. All have negative curvatures too, saddle directions, along which every model leaves at nearly the same rate.

Source: [GT] = R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization,
arXiv:2411.05746, for the regions and flows; the edges are derivations of this project.
Run time on 2 cores: 50 seconds; --quick 20 seconds; --full, a grid of 48 × 48 and 1000 iterations, about half an hour;
cut short, it goes on where it stopped.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import adamflow as af
from adamflow.figures import figure, resume
from adamflow.plotting import phase

jax.config.update("jax_enable_x64", True)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; decays are equally spaced in −log₁₀(1 − x)."""

    grid: int = 16
    map_grid: int = 201
    plane_range: tuple[float, float] = (0.01, 0.9999)
    beta_range: tuple[float, float] = (0.5, 0.9999)
    gamma_range: tuple[float, float] = (0.001, 0.99)  # above 0: flows have no filter with γ = 0 in an array
    curvatures: tuple[float, ...] = (1.0, 4.0, 40.0)
    curvature_range: tuple[float, float] = (0.5, 2000.0)
    orders: tuple[int, ...] = (1, 2, 3, 4)
    bracket: tuple[float, float] = (0.5, 4.0)
    bisections: int = 20
    measured_steps: int = 400
    decay_range: tuple[float, float] = (0.0, 2.4)
    steps: int = 200
    learning_rate: float = 3e-3
    width: int = 32
    seed: int = 0


CONFIGS = {
    "quick": Config(grid=5, map_grid=41, orders=(1, 2, 3)),
    "default": Config(),
    "full": Config(grid=48, map_grid=401, steps=1000),
}

#: The models of the rows, in their order; of a flow only its settings count.
MODELS: dict[str, Any] = {
    "discrete": "discrete",
    "order 1": af.GouldTanakaFlow(af.adam(1.0)),
    "order 2": af.GouldTanakaFlow(af.adam(1.0), order=2),
}


def nines(low: float, high: float, points: int) -> np.ndarray:
    return 1 - np.logspace(np.log10(1 - low), np.log10(1 - high), points)


def compute(config: Config) -> figure.Data:
    """Maps by theory, runs on a quadratic, and a network trained at each (β, γ)."""
    betas, gammas = (nines(*ends, config.map_grid) for ends in (config.beta_range, config.gamma_range))
    plane = nines(*config.plane_range, config.map_grid)
    data: dict[str, Any] = {"plane": plane, "beta": betas, "gamma": gammas, "curvatures": config.curvatures}
    for kind in ("gould_tanaka", "discrete"):
        dataset = af.analysis.bounded_update_region(beta=plane, gamma=plane, kind=kind)
        data |= {f"exponent_{kind}": dataset.exponent, f"region_{kind}": dataset.region}

    numbers = {"learning_rate": 1.0, "gamma": gammas}
    for name, model in MODELS.items():
        diagram = af.analysis.phase_diagram(af.adam, numbers, np.array(config.curvatures), model=model)
        data |= {f"growth_{name}": diagram.growth, f"edge_{name}": diagram.critical_curvature}
    edge, record = af.analysis.adaptive_edge(gammas), af.adam(1.0, gamma=jnp.asarray(gammas))
    for order in config.orders:
        # Each turns unstable once; the search of critical_curvature, from 0 on, takes three times as long.
        growth = functools.partial(af.analysis.linear_stability, record, model=af.ModifiedFlow(record, order))
        data[f"edge_modified {order}"] = bisect(config, edge, growth)
    decays = np.linspace(*config.decay_range, config.map_grid)
    curvature = np.geomspace(*config.curvature_range, config.map_grid)
    diagram = af.analysis.phase_diagram(af.adamw, {"learning_rate": 1.0, "weight_decay": decays}, curvature)
    data |= {"decay_growth": diagram.growth, "decay_edge": diagram.critical_curvature}
    return data | {"decay": decays, "curvature": curvature} | measure_edge(config) | train(config)


def bisect(config: Config, edge: Any, growth: Callable[[Any], Any]) -> np.ndarray:
    """Where growth turns positive between two multiples of `edge`, elementwise; inf where it does not."""
    low, high = ends = [factor * edge for factor in config.bracket]
    for _ in range(config.bisections):
        middle = (low + high) / 2
        beyond = growth(middle) > 0
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    return np.where(growth(ends[1]) > 0, (low + high) / 2, np.inf)


def measure_edge(config: Config) -> dict[str, Any]:
    """The ηs at which Adam's iterates on a quadratic start to grow, by bisection, with v held by ε, so that P = ε."""
    epsilon, steps = 1e6, config.measured_steps
    problem = af.problems.quadratic([1.0], start=[1e-100])

    def grows(gamma: jax.Array, curvature: jax.Array) -> jax.Array:
        optimizer = af.adam(epsilon * curvature, beta=0.999, gamma=gamma, epsilon=epsilon, bias_correction=False)
        run = af.iterate(optimizer, problem.loss, problem.params, steps)
        size = jnp.log(jnp.maximum(jnp.abs(jnp.asarray(run.params))[1:, 0], 1e-300))
        _, early, _, late = size.reshape(4, steps // 4).max(axis=1)
        # From 1e-100 to 1, or beyond all limits: the gradient is no longer small against ε.
        return (run.outcome.code != 0) | (size.max() > 0) | (late > early)

    gammas = jnp.asarray(nines(*config.gamma_range, config.grid))
    edge, growth = af.analysis.adaptive_edge(gammas), functools.partial(jax.jit(jax.vmap(grows)), gammas)
    return {"measured_gamma": gammas, "measured_edge": bisect(config, edge, growth), "theory_edge": edge}


def train(config: Config) -> dict[str, Any]:
    """The preconditioned sharpness of a network at the end of training, for each (β, γ), and the growth rates there."""
    problem = af.problems.mlp(widths=(config.width,), seed=config.seed)
    betas, gammas = (nines(*ends, config.grid) for ends in (config.beta_range, config.gamma_range))

    names = ("value", "residual", "lowest_eigenvalue_bound")

    def run(beta: float, gamma: float) -> dict[str, Any]:
        optimizer = af.adam(config.learning_rate, beta=beta, gamma=gamma)
        look = af.analysis.sharpness_observer(optimizer, problem.loss)
        options: dict[str, Any] = dict(save_at=[config.steps], observe=look, on_failure="ignore")
        result = af.iterate(optimizer, problem.loss, problem.params, config.steps, **options)
        if not result.outcome.successful:
            return dict.fromkeys(names, np.nan)
        return {name: getattr(result.observed, name)[0] for name in names}

    with resume.Parts(__file__, config) as parts:
        runs = parts.sweep("runs", run, {"beta": betas, "gamma": gammas}, method="threads")
    sharpness, residual, lowest = (runs[name].values for name in names)
    data = {"net_beta": betas, "net_gamma": gammas, "net_residual": residual}
    data["net_exponent"] = af.analysis.bounded_update_region(beta=betas, gamma=gammas).exponent
    records = jax.vmap(lambda gamma: af.adam(1.0, gamma=gamma))(jnp.asarray(gammas))
    for end, values in (("curvature", sharpness), ("lowest", lowest)):
        curvature = data[f"net_{end}"] = config.learning_rate * values
        for name in MODELS:
            rates = af.analysis.linear_stability(records, np.nan_to_num(curvature), model=MODELS[name])
            rates = np.log(rates) if name == "discrete" else rates
            data[f"net_{end}_growth_{name}"] = np.where(np.isfinite(curvature), rates, np.nan)
    return data


def check(data: figure.Data) -> list[figure.Claim]:
    return [*claims_of_theory(data), *claims_of_network(data)]


def claims_of_theory(data: figure.Data) -> list[figure.Claim]:
    inside, bounded = data["region_gould_tanaka"] > 0, data["region_discrete"] > 0
    error = np.abs(data["measured_edge"] / data["theory_edge"] - 1)
    order_2, order_1, discrete = (data[f"edge_{name}"] for name in ("order 2", "order 1", "discrete"))
    at = int(np.argmin(np.abs(data["gamma"] - 0.9)))
    first, *others = (edge for name, edge in data.items() if name.startswith("edge_modified"))
    falling = np.diff([*others, discrete], axis=0)[:, data["gamma"] >= 0.1] < 0
    return [
        figure.Claim(
            "the region C > 0 of [GT] lies strictly inside that of the discrete optimizer, γ² < β",
            bool(np.all(bounded[inside]) and bounded.sum() > inside.sum()),
            {"share_paper": inside.mean(), "share_discrete": bounded.mean()},
        ),
        figure.Claim(
            "with v held by a large epsilon, the real optimizer's iterates start to grow at ηs = (2+2γ)/(1−γ), to .1%",
            bool(error.max() < 1e-3),
            {"gammas": error.size, "largest_relative_error": error.max(), "largest_edge": data["measured_edge"].max()},
        ),
        figure.Claim(
            "the flow of order 1 of [GT] has no edge, and that of order 2 is below the discrete edge wherever γ > 1/2",
            bool(np.all(np.isinf(order_1)) and np.all((order_2 < discrete)[data["gamma"] > 0.5])),
            {"gamma": data["gamma"][at], "discrete": discrete[at], "order_2": order_2[at]},
        ),
        figure.Claim(
            "modified flows: order 1 has no edge; for γ ≥ .1 others fall with the order, all above the discrete one",
            bool(np.all(np.isinf(first)) and np.all(falling)),
            {f"order_{p}": edge[at] for p, edge in enumerate(others, 2)}
            | {f"order_{p}_to_discrete": (edge / discrete)[-1] for p, edge in enumerate(others, 2)},
        ),
    ]


def claims_of_network(data: figure.Data) -> list[figure.Claim]:
    curvature, beta = data["net_curvature"], data["net_beta"][:, None]
    done = np.isfinite(curvature)
    ratio = curvature / af.analysis.adaptive_edge(data["net_gamma"])
    beyond = {name: data[f"net_curvature_growth_{name}"][done] > 0 for name in ("discrete", "order 2")}
    between, numbers = beyond["order 2"] & ~beyond["discrete"], {name: x.mean() for name, x in beyond.items()}
    leaving = {name: data[f"net_lowest_growth_{name}"][done] for name in MODELS}
    spread = np.ptp(list(leaving.values()), axis=0) / leaving["discrete"]
    residual = np.max((data["net_residual"] / curvature)[done])
    slow, bounded = done & (beta >= 0.99), data["net_exponent"] > 0
    rates = {f"median_rate_{name}": float(np.median(rate)) for name, rate in leaving.items()}
    return [
        figure.Claim(
            "every run of the network with C > 0 completes, and every run that does not has γ² > β",
            bool(np.all(done[bounded]) and np.all((data["net_gamma"] ** 2 > beta)[~done])),
            {"runs": done.size, "completed": done.sum(), "with_C_above_0": bounded.sum()},
        ),
        figure.Claim(
            "where v is slow, β ≥ .99, no run is above its discrete edge by more than 10%; with faster v some are",
            bool(np.all(ratio[slow] < 1.1)),
            {"runs": slow.sum(), "largest_ratio": ratio[slow].max(), "largest_with_faster_v": np.nanmax(ratio)},
        ),
        figure.Claim(
            "along positive curvatures some of these runs are stable under the step and beyond the edge of order 2",
            bool(between.any()),
            {**numbers, "step_stable_order_2_not": between.mean()},
        ),
        figure.Claim(
            "all of these runs have negative curvatures, saddle directions, along which every model leaves",
            bool(all(np.all(rate > 0) for rate in leaving.values())),
            {"saddles": int(np.sum(data["net_lowest"] < 0)), **rates, "spread": float(np.median(spread))},
        ),
        figure.Claim("residuals of the largest curvatures are below .1%", bool(residual < 1e-3), {"largest": residual}),
    ]


def draw(data: figure.Data) -> dict[str, Figure]:
    return {"": draw_main(data), "all": draw_all(data)}


def draw_main(data: figure.Data) -> Figure:
    """The top row, and one map of each kind: with them goes what the others show, too."""
    drawn = plt.figure(figsize=(12, 7.4))
    parts: Any = drawn.subfigures(2, 1, height_ratios=(1, 1))
    draw_top(data, parts[0].subplots(1, 3, width_ratios=(1, 1.15, 1.1)))
    axes = parts[1].subplots(1, 3, sharey=True)
    column = int(np.argmin(np.abs(data["curvatures"] - 4)))
    filled = None
    for ax, letter, (name, place) in zip(
        axes, "def", (("discrete", column), ("order 2", column), ("discrete", len(data["curvatures"]))), strict=True
    ):
        filled = draw_map(ax, data, name, place)
        ax.set_title(f"{letter}  {ax.get_title(loc='left')}")
        ax.label_outer()
    draw_bar(parts[1], filled, axes)
    return drawn


def draw_all(data: figure.Data) -> Figure:
    """The top row and all maps."""
    drawn = plt.figure(figsize=(14, 13.5))
    parts: Any = drawn.subfigures(2, 1, height_ratios=(1, 2.35))
    draw_top(data, parts[0].subplots(1, 3, width_ratios=(1, 1.15, 1.1)))
    axes = parts[1].subplots(3, len(data["curvatures"]) + 1, sharex=True, sharey=True)
    filled = None
    for row, name in enumerate(MODELS):
        for column, ax in enumerate(axes[row]):
            filled = draw_map(ax, data, name, column)
            ax.set_title(f"{'def'[row]}{column + 1}  {ax.get_title(loc='left')}")
    phase.name(axes[0, 0], 0.88, 0.97, "θ slowest")
    phase.name(axes[0, 0], 0.995, 0.6, "v slowest")
    for ax in axes.flat:
        ax.label_outer()
    draw_bar(parts[1], filled, axes)
    return drawn


def draw_top(data: figure.Data, axes: Any) -> None:
    left, middle, right = axes
    plane, levels = data["plane"], [-8, -2, -0.5, -0.1, -0.01, 0.01, 0.1, 0.5, 2, 8]
    phase.regions(left, plane, plane, data["exponent_gould_tanaka"], levels, dashed=data["exponent_discrete"])
    phase.name(left, 0.997, 0.75, "B₊: bounded")
    phase.name(left, 0.82, 0.995, "B₋: grows")
    phase.name(left, 0.99, 0.99, "B₀")
    left.set_title("a  C(β, γ) [GT]; dashed: γ² = β")

    edges = {name.removeprefix("edge_"): edge for name, edge in data.items() if name.startswith("edge_")}
    phase.edges(middle, data["gamma"], edges, data["curvature"])
    phase.measured(middle, data["measured_gamma"], data["measured_edge"], "measured edge")
    phase.name(middle, 0.65, 80.0, "unstable")
    phase.name(middle, 0.95, 9.0, "discrete step stable,\norder 2 of [GT] unstable")
    middle.set_ylim(bottom=0.25)
    middle.legend(loc="lower right", fontsize=7, ncols=3)
    middle.set_title("b  Edges of stability (flows of order 1 have none)")

    plane, levels = (data["decay"], data["curvature"], data["decay_growth"].T), np.linspace(-0.15, 0.15, 13)
    filled = right.contourf(*plane, levels, cmap="PuOr_r", extend="both")
    right.plot(data["decay"], data["decay_edge"], color="black", linewidth=2)
    right.set(yscale="log", ylim=data["curvature"][[0, -1]], xlabel="ηλ (weight decay)", ylabel="ηs")
    phase.name(right, 0.7, 6.0, "stable")
    phase.name(right, 1.2, 200.0, "unstable")
    right.figure.colorbar(filled, ax=right, label="ln(spectral radius) per iteration", pad=0.02)
    right.set_title("c  Discrete AdamW, γ = .9")


def draw_map(ax: Any, data: figure.Data, name: str, column: int) -> Any:
    """The growth of a model over (β, γ) at one of the curvatures or, in the last column, on the network."""
    last = len(data["curvatures"])
    if column == last:
        x, y, rates = data["net_beta"], data["net_gamma"], data[f"net_curvature_growth_{name}"]
    else:
        x, y, rates = data["beta"], data["gamma"], data[f"growth_{name}"][:, column]
    of_v = (np.log(x) if name == "discrete" else -(1 - x) / x)[:, None] + np.zeros_like(y)
    filled = phase.growth(ax, x, y, np.maximum(rates, of_v), 3.0)
    phase.border(ax, x, y, rates - of_v)
    if (legend := ax.get_legend()) is not None:
        legend.remove()
    what = "digits MLP (×: diverged)" if column == last else f"ηs = {data['curvatures'][column]:g}"
    ax.set_title(f"{name}, {what}")
    return filled


def draw_bar(part: Any, filled: Any, axes: Any) -> None:
    bar = part.colorbar(filled, ax=axes, label="growth of the dominant eigenvalue\nper iteration", pad=0.01, aspect=40)
    bar.set_ticks([-3, -0.3, -0.03, 0, 0.03, 0.3, 3], labels=["−3", "−.3", "−.03", "0", ".03", ".3", "3"])


if __name__ == "__main__":
    sys.exit(figure.main(__file__, __doc__, CONFIGS, compute, check, draw))
