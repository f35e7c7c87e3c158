"""The Adam family on one problem, its edges of stability, and two problems on which its members differ.

Small panels: iterates as points and `GouldTanakaFlow` of order 1 as a line, both from the same start, on one bowl of
two parameters; every optimizer with a learning rate of its own. Below, a: η s at the edge of the discrete step against
γ. b and c: the two-layer transformer of Li et al. on a signal and sparse noise: test error, and the attention of the
signal query to the signal. d: the patch network of Zou et al. with feature noise: alignment with the feature.

Claim: flows go beside the iterates of every member; edges are those in closed form, and shares of the gradient in the
direction lower them; sign descent and Adam fit signal and noise alike and generalize worse than gradient descent, and
with feature noise Adam, with either kind of decay, learns the opposite of the feature.

Source: docs/family.md; B. Li et al., arXiv:2410.04870 (2024); D. Zou et al., arXiv:2108.11371 (2021).
Run time on 2 cores: 2 minutes; --quick 20 seconds.
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
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import adamflow as af
from adamflow.figures import cores, figure

jax.config.update("jax_enable_x64", True)

Make = Callable[[], af.Optimizer]

#: By kind: signs, momentum, second moments, other memory, averages, matrices. Learning rates reach the minimum's side.
MEMBERS: dict[str, Make] = {
    "sign descent": lambda: af.signsgd(0.02),
    "Signum": lambda: af.signum(0.02),
    "Lion": lambda: af.lion(0.02),
    "heavy ball": lambda: af.sgd(0.02, gamma=0.9),
    "Nesterov": lambda: af.uadam(0.02, beta=None, gamma=0.9, interpolation=1.0),
    "RMSprop": lambda: af.rmsprop(0.02, beta=0.99),
    "Adam": lambda: af.adam(0.02, beta=0.99),
    "Adam, l2": lambda: af.with_l2(af.adam(0.02, beta=0.99), 1.0),
    "AdamW": lambda: af.adamw(0.02, beta=0.99, weight_decay=1.0),
    "UAdam, κ = .5": lambda: af.uadam(0.02, beta=0.99, gamma=0.9, interpolation=5.0, bias_correction=True),
    "NAdam": lambda: af.nadam(0.02, beta=0.99),
    "RAdam": lambda: af.radam(0.02, beta=0.9),
    "Adan": lambda: af.adan(0.02),
    "AdEMAMix": lambda: af.ademamix(0.01, beta=0.99, slow_decay=0.98, slow_weight=1.0),
    "AdaBelief": lambda: af.adabelief(0.01, beta=0.99, epsilon=0.1),
    "AdaFom": lambda: af.adafom(0.02, bias_correction=True),
    "Adagrad": lambda: af.adagrad(0.08),
    "AdaBound": lambda: af.adabound(0.02, beta=0.99, final_learning_rate=0.02, convergence_rate=0.05),
    "Adamax": lambda: af.adamax(0.02, beta=0.99),
    "AMSGrad": lambda: af.amsgrad(0.02, beta=0.99, form="optax"),
    "Yogi": lambda: af.yogi(0.02, beta=0.99, bias_correction=True),
    "MAdam": lambda: af.madam(0.02),
    "LaMAdam": lambda: af.lamadam(0.02),
    "clipped Adam": lambda: af.clipped_adam(0.02, clip=1.0),
    "Adam, averaged": lambda: af.with_model_average(af.adam(0.02, beta=0.99), 0.95),
    "schedule-free": lambda: af.schedule_free(0.03, beta=0.99),
    "Adam+": lambda: af.adam_plus(0.1),
    "LAMB": lambda: af.lamb(0.02, beta=0.99),
    "Muon": lambda: af.muon(0.022),
    "Shampoo": lambda: af.shampoo(0.1),
}
#: Their directions jump, or switch, so that the flow turns where the iterates overshoot.
DISCONTINUOUS = ("sign descent", "Signum", "Lion")

EDGES: dict[str, Callable[[Any], af.Optimizer]] = {
    "Adam, AMSGrad, Yogi, …": lambda gamma: af.adam(1.0, gamma=gamma),
    "UAdam, κ = .95": lambda gamma: af.uadam(1.0, gamma=gamma, interpolation=0.05 / (1 - gamma)),
    "NAdam, Nesterov": lambda gamma: af.nadam(1.0, gamma=gamma),
    "RMSprop, Adagrad": lambda gamma: af.uadam(1.0, gamma=gamma, interpolation=1 / (1 - gamma)),
    "AdEMAMix, α = 8": lambda gamma: af.ademamix(1.0, gamma=gamma),
    "Adan": lambda gamma: af.adan(1.0, gamma=gamma),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings. `members`: how many panels, spread over all kinds; `edges`: how many of the first curves."""

    members: int = len(MEMBERS)
    edges: int = len(EDGES)
    steps: int = 150
    gammas: int = 40
    dimension: int = 2000
    transformer_steps: int = 600
    noise_entries: int = 50
    size: int = 80
    network_steps: int = 1500
    seed: int = 0


CONFIGS = {
    "quick": Config(members=3, edges=2, steps=100, gammas=10, dimension=500, transformer_steps=300, size=40),
    "default": Config(),
    "full": Config(transformer_steps=900, network_steps=4500),
}
TRANSFORMER: dict[str, Make] = {
    "sign descent": lambda: af.signsgd(1e-4),
    "Adam": lambda: af.adam(1e-4, epsilon=1e-15),
    "gradient descent": lambda: af.sgd(0.1),
}
NETWORK: dict[str, Make] = {
    "Adam, l2": lambda: af.with_l2(af.adam(1.5e-4), 1e-5),
    "AdamW": lambda: af.adamw(1.5e-4, weight_decay=0.01),
    "gradient descent, l2": lambda: af.with_l2(af.sgd(0.06), 1e-5),
}
SAVED = 11


class Bowl(eqx.Module):
    """½ (x² + 4 y²) + ¼ x² y², as a function of a matrix of one column."""

    def __call__(self, params: jax.Array) -> jax.Array:
        x, y = params[:, 0]
        return (x**2 + 4 * y**2) / 2 + x**2 * y**2 / 4


START = jnp.array([[1.0], [0.8]])


def compute(config: Config) -> figure.Data:
    """Panels, edges and experiments side by side: compiling takes most of the time, and threads share the cores."""
    chosen = np.unique(np.linspace(0, len(MEMBERS) - 1, config.members).astype(int))
    names = [list(MEMBERS)[place] for place in chosen]
    with cores.threads() as pool:
        edges = [pool.submit(edge_of, make, config.gammas) for make in list(EDGES.values())[: config.edges]]
        panels = [pool.submit(follow, MEMBERS[name](), config.steps) for name in names]
        transformer = [pool.submit(train_transformer, make(), config) for make in TRANSFORMER.values()]
        network = [pool.submit(train_network, make(), config) for make in NETWORK.values()]
        jobs = [*edges, *panels, *transformer, *network]
        for job in figure.progress(jobs, "runs"):
            job.result()
    iterates, flows = (np.stack(rows) for rows in zip(*(job.result() for job in panels), strict=True))
    return {
        "names": np.array(names),
        "iterates": iterates,
        "flows": flows,
        "gammas": gammas_of(config.gammas),
        "edges": np.stack([job.result() for job in edges]),
        "transformer_iterations": np.linspace(0, config.transformer_steps, SAVED).astype(int),
        "transformer": np.stack([job.result() for job in transformer]),
        "network_iterations": np.linspace(0, config.network_steps, SAVED).astype(int),
        "network": np.stack([job.result() for job in network]),
    }


def follow(record: af.Optimizer, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Iterates and flow, from one start."""
    loss = Bowl()
    discrete = af.iterate(record, loss, START, steps)
    options: dict[str, Any] = {"solver": diffrax.Euler(), "step_size": 0.1}
    continuous = af.solve(af.GouldTanakaFlow(record), loss, START, steps, **options)
    rows = np.full((steps + 1, 2), np.nan)
    rows[: len(continuous)] = np.asarray(continuous.params)[:, :, 0]
    return np.asarray(discrete.params)[:, :, 0], rows


def gammas_of(count: int) -> np.ndarray:
    return np.linspace(0.02, 0.98, count)


def edge_of(make: Callable[[Any], af.Optimizer], count: int) -> np.ndarray:
    """ηs at the edge for every γ: a batch of records, at η = 1."""
    records = jax.vmap(make)(jnp.asarray(gammas_of(count)))
    return np.asarray(af.analysis.critical_curvature(records))


def train_transformer(record: af.Optimizer, config: Config) -> np.ndarray:
    """Training loss, test error, attention of signal and of noise queries to the signal, in single precision."""
    data = af.problems.signal_and_noise(config.dimension, seed=config.seed)
    problem = single(af.problems.two_layer_transformer(data, seed=config.seed))
    metrics = [problem.metrics[name] for name in ("test_error", "signal_attention", "noise_attention")]
    return train(record, problem, config.transformer_steps, metrics)


def train_network(record: af.Optimizer, config: Config) -> np.ndarray:
    """Training loss, training and test error, alignment with feature and noise, in single precision."""
    entries = config.noise_entries
    sizes = {"noise_entries": entries, "noise_level": entries**-0.5, "feature_noise": 0.2}
    data = af.problems.signal_and_noise(10 * entries, config.size, **sizes, seed=config.seed)
    problem = single(af.problems.patch_network(data, seed=config.seed))
    metrics = [problem.metrics[name] for name in ("train_error", "test_error", "feature", "noise")]
    return train(record, problem, config.network_steps, metrics)


def single(problem: af.Problem) -> af.Problem:
    """The problem in single precision, in which both experiments are twice as fast."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), problem)


def train(record: af.Optimizer, problem: af.Problem, steps: int, metrics: list[Callable]) -> np.ndarray:
    def look(snapshot: Any) -> jax.Array:
        return jnp.stack([snapshot.loss, *(metric(snapshot.params).astype(jnp.float32) for metric in metrics)])

    saved = np.linspace(0, steps, SAVED).astype(int)
    run = af.iterate(record, problem.loss, problem.params, steps, save_at=saved, observe=look)
    return np.asarray(run.observed).T


def closed_forms(gammas: np.ndarray) -> np.ndarray:
    """The edges by lemmas L1 and L2 of docs/family.md."""

    def interpolated(kappa: Any) -> np.ndarray:
        rest = 1 + gammas - 2 * kappa * gammas
        return np.where(rest > 0, 2 * (1 + gammas) / np.where(rest > 0, rest, 1.0), np.inf)

    average = (1 - gammas) / (1 + gammas)
    slow, difference = 8 * (1 - 0.9999) / 1.9999, 2 * 0.92 * (1 - 0.92) / 1.92
    return np.stack(
        [
            interpolated(1.0),
            interpolated(0.95),
            interpolated(gammas),
            interpolated(0.0),
            2 / (average + slow),
            2 / (average + difference),
        ]
    )


def check(data: figure.Data) -> list[figure.Claim]:
    lengths = np.linalg.norm(np.diff(data["iterates"], axis=1), axis=-1).sum(axis=1)
    errors = np.linalg.norm(data["iterates"] - data["flows"], axis=-1).max(axis=1) / lengths
    smooth = ~np.isin(data["names"], DISCONTINUOUS)
    numbers = dict(zip(map(str, data["names"]), errors, strict=True))
    near = "flows stay within 8% of the length of the path from the iterates, of all members"
    error = np.abs(data["edges"] / closed_forms(data["gammas"])[: len(data["edges"])] - 1).max()
    lower = "edges are those in closed form to 1e-9, and a share of the gradient in the direction lowers them"
    falls = np.all(data["edges"][1:4] <= data["edges"][0] * (1 + 1e-9))
    claims = [
        (near, np.all(errors < 0.08), numbers | {"largest, without signs": errors[smooth].max()}),
        (lower, error < 1e-9 and falls, {"largest relative error": error}),
        *check_experiments(data),
    ]
    return [figure.Claim(words, bool(holds), numbers) for words, holds, numbers in claims]


def check_experiments(data: figure.Data) -> list[tuple[str, Any, dict[str, float]]]:
    loss, test, attention, _ = (data["transformer"][:, place] for place in range(4))
    fits = "sign descent and Adam fit signal and noise below half of the loss at the start; their test error stays"
    fits += " above .25, and gradient descent's is at most half of theirs"
    ends = {f"{name}: test error": value for name, value in zip(TRANSFORMER, test[:, -1], strict=True)}
    ends |= {f"{name}: loss": value for name, value in zip(TRANSFORMER, loss[:, -1], strict=True)}
    ends |= {f"{name}: attention": value for name, value in zip(TRANSFORMER, attention[:, -1], strict=True)}
    first = np.all(loss[:2, -1] < 0.35) and np.all(test[:2, -1] > 0.25) and test[2, -1] < test[:2, -1].min() / 2
    _, train, test, feature, noise = (data["network"][:, place] for place in range(5))
    flips = "with feature noise all end with no training error; Adam, l2 or decoupled, with a test error above 1/2 and"
    flips += " filters against the feature, gradient descent with none and filters along it"
    second = np.all(train[:, -1] == 0) and np.all(test[:2, -1] > 0.5) and test[2, -1] == 0
    second = second and np.all(feature[:2, -1] < 0) and feature[2, -1] > 0
    numbers = {f"{name}: test error": value for name, value in zip(NETWORK, test[:, -1], strict=True)}
    numbers |= {f"{name}: feature": value for name, value in zip(NETWORK, feature[:, -1], strict=True)}
    numbers |= {f"{name}: noise": value for name, value in zip(NETWORK, noise[:, -1], strict=True)}
    return [(fits, first, ends), (flips, second, numbers)]


#: The optimizers whose paths the picture has; all are in the other one.
PATHS = ("Adam", "Lion", "MAdam")


def draw(data: figure.Data) -> dict[str, Figure]:
    return {"": draw_main(data), "all": draw_all(data)}


def draw_main(data: figure.Data) -> Figure:
    """Three paths, the edges, and what two problems learn."""
    drawn, (above, below) = plt.subplots(2, 3, figsize=(12, 7))
    names = list(map(str, data["names"]))
    for ax, letter, name in zip(above, "abc", [name for name in PATHS if name in names], strict=False):
        place = names.index(name)
        af.plotting.family.paths(ax, data["iterates"][place], data["flows"][place], title="")
        ax.set_title(f"{letter}  {name}")
        ax.tick_params(labelbottom=True, labelleft=True)
        ax.set(xlabel="first parameter", ylabel="second parameter")
    # That of AdEMAMix lies on that of Adam.
    edges = {name: row for name, row in zip(EDGES, data["edges"], strict=False) if "AdEMAMix" not in name}
    af.plotting.family.edges(below[0], data["gammas"], edges)
    draw_errors(below[1], data)
    draw_features(below[2], data)
    for ax, title in zip(below, ("d  Edges", "e  Two-layer transformer", "f  Patch network"), strict=True):
        ax.set_title(title)
    return drawn


def draw_all(data: figure.Data) -> Figure:
    """Every path, and below them four panels."""
    columns = 6
    rows = -(-len(data["names"]) // columns)
    drawn = plt.figure(figsize=(13, 1.7 * rows + 3.6))
    above, beneath = cast(Any, drawn.subfigures(2, 1, height_ratios=(1.7 * rows, 3.6)))
    panels, below = above.subplots(rows, columns, squeeze=False).ravel(), beneath.subplots(1, 4)
    for ax in panels[len(data["names"]) :]:
        ax.set_axis_off()
    for ax, name, iterates, flow in zip(panels, data["names"], data["iterates"], data["flows"], strict=False):
        af.plotting.family.paths(ax, iterates, flow, title=str(name))
    af.plotting.family.edges(below[0], data["gammas"], dict(zip(EDGES, data["edges"], strict=False)))
    draw_errors(below[1], data)
    attention = {name: row[2] for name, row in zip(TRANSFORMER, data["transformer"], strict=True)}
    af.plotting.family.histories(
        below[2], data["transformer_iterations"], attention, label="attention of signal to signal"
    )
    draw_features(below[3], data)
    titles = ("a  Edges", "b  Two-layer transformer", "c  Its attention", "d  Patch network")
    for ax, title in zip(below, titles, strict=True):
        ax.set_title(title)
    return drawn


def draw_errors(ax: Axes, data: figure.Data) -> None:
    errors = {name: row[1] for name, row in zip(TRANSFORMER, data["transformer"], strict=True)}
    af.plotting.family.histories(ax, data["transformer_iterations"], errors, label="test error")


def draw_features(ax: Axes, data: figure.Data) -> None:
    features = {name: row[3] for name, row in zip(NETWORK, data["network"], strict=True)}
    af.plotting.family.histories(ax, data["network_iterations"], features, label="alignment with the feature")


if __name__ == "__main__":
    sys.exit(figure.main(__file__, __doc__, CONFIGS, compute, check, draw))
