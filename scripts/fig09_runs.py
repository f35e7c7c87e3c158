"""The runs behind figure 9: networks with scale-invariant weights, noise alone, flows, and 2-Adam on fixed norms."""

import dataclasses
from collections.abc import Callable
from typing import Any

import cores
import diffrax
import equinox as eqx
import figure
import jax
import jax.numpy as jnp
import numpy as np
import resume

import adamflow as af

jax.config.update("jax_enable_x64", True)

GRANULARITIES = ("elementwise", "per_tensor")
MODELS: tuple[str, ...] = ("iterates", "flow of order 1", "flow of order 2")
ARMS: tuple[str, ...] = (
    "2-Adam",
    "2-Adam, K = 1",
    "AdamW, one v per tensor",
    "AdamW, other data",
    "AdamW, W(0) .1% away",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; `seed` determines the weights and batches of the first of `seeds` runs of each network."""

    seed: int = 0
    seeds: int = 3
    networks: tuple[str, ...] = ("perceptron", "convolutions", "transformer")
    learning_rate: float = 2e-3
    weight_decay: float = 0.5
    flow_learning_rate: float = 1e-3
    beta: float = 0.999
    gamma: float = 0.9
    gammas: tuple[float, ...] = (0.0, 0.3, 0.5, 0.8, 0.9, 0.95, 0.99)
    orders: tuple[int, ...] = (0, 1, 2)
    flow_gammas: tuple[float, ...] = (0.2, 0.5, 0.8, 0.9, 0.95, 0.99)
    steps: int = 800
    save_every: int = 10
    flow_steps: int = 400
    flow_examples: int = 128
    step_size: float = 0.5
    batch_sizes: tuple[int, ...] = (32, 16, 4)


FEW: dict[str, Any] = dict(networks=("perceptron",), gammas=(0.0, 0.9), orders=(0, 1), flow_gammas=(0.5, 0.9))
QUICK = Config(seeds=1, steps=400, flow_examples=32, step_size=1.0, **FEW)
FULL = Config(seeds=10, flow_examples=1024)
CONFIGS = {"quick": QUICK, "default": Config(), "full": FULL}


class OfWeights(eqx.Module):
    """The loss of a perceptron on one batch as a function of its first weights, in one axis; the rest is held."""

    problem: af.problems.Problem
    batch: Any

    def __call__(self, weights: jax.Array) -> jax.Array:
        first, *others = self.problem.params
        layers = ({**first, "weight": weights.reshape(first["weight"].shape)}, *others)
        return self.problem.loss(layers, self.batch)


def problem_of(name: str, config: Config, seed: int) -> af.problems.Problem:
    """A network whose scale-invariant weights start at the equilibrium of uncorrelated gradients."""
    if name == "noise":
        problem = af.problems.rayleigh(200, spread=0.0, seed=seed)
    elif name == "perceptron":
        problem = af.problems.mlp((32, 32), "gelu", normalization="layer", seed=seed)
    elif name == "convolutions":
        problem = af.problems.cnn((4, 8), normalization="batch", seed=seed)
    else:
        sizes: dict[str, Any] = dict(layers=1, heads=2, width=16, context=16, batch_size=8, validation_size=4)
        problem = af.problems.char_transformer(**sizes, normalize_queries_and_keys=True, seed=seed, data_seed=seed)
    mean_square = config.learning_rate / (2 * config.weight_decay)

    def rescaled(path: Any, leaf: jax.Array) -> jax.Array:
        known = jax.tree_util.keystr(path) in problem.scale_invariant
        return leaf * jnp.sqrt(mean_square / jnp.mean(leaf**2)) if known else leaf

    return dataclasses.replace(problem, params=jax.tree_util.tree_map_with_path(rescaled, problem.params))


def nearby(problem: af.problems.Problem, away: float, seed: int) -> Any:
    """The problem's parameters with each scale-invariant tensor moved by a share of its norm, at random."""
    generator = np.random.default_rng(seed)

    def moved(path: Any, leaf: jax.Array) -> jax.Array:
        known = jax.tree_util.keystr(path) in problem.scale_invariant
        size = away * jnp.sqrt(jnp.mean(leaf**2))
        return leaf + size * generator.normal(size=leaf.shape) if known else leaf

    return jax.tree_util.tree_map_with_path(moved, problem.params)


def record(config: Config, second_moment: str, gamma: Any = None) -> af.Optimizer:
    gamma = config.gamma if gamma is None else gamma
    numbers: dict[str, Any] = dict(weight_decay=config.weight_decay, second_moment=second_moment)
    return af.adamw(config.learning_rate, beta=config.beta, gamma=gamma, **numbers)


def lanes(run: Any, gammas: tuple[float, ...]) -> list[af.Trajectory]:
    """Runs for several γ, one program for all."""
    batch = eqx.filter_jit(eqx.filter_vmap(run))(jnp.array(gammas))
    return [jax.tree.map(lambda leaf, i=i: leaf[i], batch) for i in range(len(gammas))]


def compute(config: Config) -> figure.Data:
    """All parts side by side: most of the time goes into compiling, which threads share among the cores."""
    with resume.Parts("fig09_scale_invariance", config) as kept, cores.threads() as pool:

        def part(name: str, find: Callable[..., figure.Data], *arguments: Any) -> figure.Data:
            return kept.get(name, lambda: find(config, *arguments))

        jobs = [pool.submit(part, f"order-{order}", of_flow, order) for order in reversed(config.orders)]
        jobs += [pool.submit(of_network, config, name, part) for name in reversed(config.networks)]
        jobs += [pool.submit(part, f"gammas-{name}", of_gammas, name) for name in (*GRANULARITIES, "noise")]
        parts = [job.result() for job in figure.progress(jobs, "parts", unit="part")]
    flows, others = parts[: len(config.orders)][::-1], parts[len(config.orders) :]
    return {
        "factors": np.stack([part["measured"] for part in flows]),
        "predicted_factors": np.stack([part["predicted"] for part in flows]),
        "models": [MODELS[order] for order in config.orders],
        "flow_gammas": config.flow_gammas,
        "gammas": config.gammas,
        "networks": config.networks,
        "decay": 2 * config.learning_rate * config.weight_decay,
    } | {name: value for part in others for name, value in part.items()}


def of_flow(config: Config, order: int) -> figure.Data:
    """The factor K over γ, of the iterates (order 0) or a flow: one batch, one v per tensor."""
    problem, eta = af.problems.mlp((16,), "gelu", normalization="layer", seed=config.seed), config.flow_learning_rate
    loss = OfWeights(problem, problem.batches(config.flow_examples, seed=config.seed)(0))
    start, steps = problem.params[0]["weight"].ravel(), config.flow_steps
    options: dict[str, Any] = dict(save_at=np.arange(0, steps + 1, 2), observe=af.analysis.invariance_observer([""]))

    def model(gamma: Any) -> Any:
        optimizer = dataclasses.replace(record(config, "per_tensor", gamma), learning_rate=jnp.asarray(eta))
        return af.GouldTanakaFlow(optimizer, 1 if order == 1 else 2) if order else optimizer

    def run(gamma: Any) -> af.Trajectory:
        if order == 0:
            # One more iteration than is saved: a look at the end would compile the gradient once more.
            return af.iterate(model(gamma), loss, start, steps + 1, **options)
        # Filters' rates are at most 4 per iteration, so that half of one is a step short enough.
        return af.solve(model(gamma), loss, start, steps, solver=diffrax.Tsit5(), step_size=config.step_size, **options)

    runs = zip(config.flow_gammas, lanes(run, config.flow_gammas), strict=True)
    reports = [af.analysis.scale_invariance_report(trajectory, model(gamma)) for gamma, trajectory in runs]
    measured, predicted = zip(*((report.measured_factor[0], report.factor) for report in reports), strict=True)
    return {"measured": np.array(measured, float), "predicted": np.array(predicted)}


def of_gammas(config: Config, kind: str) -> figure.Data:
    """Minibatch runs over γ, on the perceptron or on noise alone: the last quarter of each, beside the laws."""
    noise = kind == "noise"
    problem = problem_of(kind if noise else "perceptron", config, config.seed)
    observe = af.analysis.invariance_observer(problem.scale_invariant)
    batches = problem.batches(1 if noise else config.batch_sizes[0], seed=config.seed)
    second_moment = "elementwise" if noise else kind

    def run(gamma: Any) -> af.Trajectory:
        optimizer = record(config, second_moment, gamma)
        options: dict[str, Any] = dict(save_at=np.arange(config.steps + 1), observe=observe, batches=batches)
        return af.iterate(optimizer, problem.loss, problem.params, config.steps + 1, **options)

    names = ("square_norm", "law_paper", "law_corrected", "law_exact", "rotation", "equilibrium")
    table: dict[str, list[Any]] = {name: [] for name in names}
    for gamma, trajectory in zip(config.gammas, lanes(run, config.gammas), strict=True):
        report = af.analysis.scale_invariance_report(trajectory, record(config, second_moment, gamma))
        last = report.isel(iteration=slice(-(config.steps // 4), None)).mean("iteration")
        for name in names:
            table[name].append(last[name].values if name in last else np.full(report.tensor.size, np.nan))
    return {f"{kind} {name}": np.array(values) for name, values in table.items()}


def of_network(config: Config, name: str, part: Callable[..., figure.Data]) -> figure.Data:
    """The assumptions along runs of AdamW, by seed, each a part that is kept, and how far other runs turn from it."""
    seeds = config.seed + np.arange(config.seeds)
    parts = [part(f"{name}-{seed}", of_seed, name, int(seed)) for seed in seeds]
    result = {f"{name} {key}": np.stack([part[key] for part in parts]) for key in parts[0]}
    return result | {f"{name} tensors": np.array(problem_of(name, config, config.seed).scale_invariant)}


def of_seed(config: Config, name: str, seed: int) -> figure.Data:
    problem, steps = problem_of(name, config, seed), config.steps
    names, saved = problem.scale_invariant, np.arange(0, config.steps + 1, config.save_every)
    size = config.batch_sizes[config.networks.index(name)]
    batches, other = (problem.batches(size, seed=place) for place in (seed, seed + 1000))
    observe = Watch(af.analysis.invariance_observer(names, vectors=True))

    def run(second_moment: str, batches: Any, away: float = 0.0) -> af.Trajectory:
        options: dict[str, Any] = dict(save_at=saved, observe=observe, batches=batches)
        start = nearby(problem, away, seed)
        return af.iterate(record(config, second_moment), problem.loss, start, steps + 1, **options)

    def on_spheres(momentum_correction: bool) -> af.Trajectory:
        mean_square = config.learning_rate / (2 * config.weight_decay)
        options: dict[str, Any] = dict(mean_square=mean_square, momentum_correction=momentum_correction)
        adamw = record(config, "elementwise")
        two_adam = af.analysis.equivalent_two_adam(adamw, **options)
        options = dict(other_optimizer=adamw, save_every=config.save_every, batches=batches)
        return af.analysis.iterate_on_spheres(two_adam, problem.loss, problem.params, steps, names, **options)

    adamw = run("elementwise", batches)
    report = af.analysis.scale_invariance_report(looks(adamw), record(config, "elementwise"))
    arms = [on_spheres(True), on_spheres(False), run("per_tensor", batches), run("elementwise", other)]
    arms.append(run("elementwise", batches, away=1e-3))
    distances = [af.analysis.direction_distance(params(adamw), params(arm), names) for arm in arms]
    return {
        **{key: report[key].values for key in ("square_norm", "law_paper", "law_corrected", "spread", "cosine")},
        **{key: report[key].values for key in ("orthogonality", "alignment")},
        "iterations": report.iteration.values,
        "moved": distances[0].moved.values,
        "distance": np.stack([distance.relative.values for distance in distances]),
        "entries": entries([params(run) for run in (adamw, *arms[:2])], names[0]),
    }


def entries(runs: list[af.Trajectory], name: str) -> np.ndarray:
    """Five entries of a tensor, divided by its root mean square, by run and iteration."""
    tables = []
    for run in runs:
        leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(run.params)}
        table = np.asarray(leaves[name]).reshape(len(run), -1)
        tables.append(table / np.sqrt(np.mean(table**2, axis=1, keepdims=True)))
    largest = np.argsort(tables[0][-1] - tables[0][0])
    shown = largest[np.linspace(0, len(largest) - 1, 5).astype(int)]
    return np.stack(tables)[:, :, shown]


class Watch(eqx.Module):
    """What an observer sees, and the parameters too."""

    observe: Any

    def __call__(self, snapshot: af.Snapshot) -> Any:
        return self.observe(snapshot), snapshot.params


def looks(run: af.Trajectory) -> af.Trajectory:
    return dataclasses.replace(run, observed=run.observed[0])


def params(run: af.Trajectory) -> af.Trajectory:
    return run if run.observed is None else dataclasses.replace(run, params=run.observed[1])
