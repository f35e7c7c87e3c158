"""Where minibatch noise moves Adam's edge: the spectral edge index Q of digits perceptrons, over batch sizes.

The network has one hidden layer; the loss is the square loss of one output (the digit as a number) or of ten, or the
cross-entropy. a: Q along runs of three batch sizes, one output. b: for the base runs, η times the largest eigenvalue of
P^(−1/2) H P^(−1/2) and η times batch sharpness, over the edge of a full batch, (2+2γ)/(1−γ). c to e: Q in the second
half of the runs (median) against the batch size, over learning rates and γ; over widths, weight decay and both ways to
sample; over networks, outputs and losses. f: as e, with the law factor of the examples.

Claim: with one output and batches of up to a quarter of the data Q rises towards 1 along the runs and then changes far
less with the batch size than the largest eigenvalue does; for larger batches it meets its pole instead. It is no law
for all losses: with ten outputs the Gaussian Q ends far above 1, and the law factor, near a tenth, accounts for most of
that; under the cross-entropy, whose curvature vanishes with it, Q falls. On a transformer at B = 1 Q is far above 1,
too, and the law factor accounts for most of that, while at B = 16 rounding decides where it ends; a convolutional
network with one output does as the perceptrons do.

Source: docs/noise.md. Run time on 2 cores: 9 minutes beside another figure; --quick 25 seconds.
"""

import dataclasses
import itertools
import sys
from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import adamflow as af
from adamflow.figures import figure

jax.config.update("jax_enable_x64", True)

BETA = 0.999


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings: examples, iterations, saved states, batch sizes of the base runs and of the variations."""

    examples: int = 64
    steps: int = 5000
    saved: int = 6
    batches: tuple = (1, 2, 4, 8, 16, 32)
    few: tuple = (1, 16)
    variations: int = 13
    seeds: int = 2
    probes: int = 4


CONFIGS = {
    "quick": Config(steps=3000, saved=4, batches=(1, 16), few=(), variations=0, seeds=1),
    "default": Config(),
    "full": Config(examples=256, steps=20000, saved=16, seeds=4, few=(1, 2, 4, 8, 16, 32), probes=8),
}


class Setting(NamedTuple):
    """One run: all but network, width and loss are numbers of one program."""

    group: str = "base"
    network: str = "perceptron"
    width: int = 8
    loss: str = "one output"
    learning_rate: float = 0.005
    gamma: float = 0.9
    weight_decay: float = 0.0
    epochs: bool = False
    batch_size: int = 1
    seed: int = 0


VARIATIONS = (
    Setting("ten outputs", loss="ten outputs"),
    Setting("cross-entropy", loss="cross-entropy"),
    Setting("η = .0015", learning_rate=0.0015),
    Setting("η = .015", learning_rate=0.015),
    Setting("γ = 0", gamma=0.0),
    Setting("γ = .5", gamma=0.5),
    Setting("width 4", width=4),
    Setting("width 16", width=16),
    Setting("decay .1", weight_decay=0.1),
    Setting("epochs", epochs=True),
    Setting("ten outputs, η = .015", loss="ten outputs", learning_rate=0.015),
    Setting("convolutions", network="convolutions", width=4),
    Setting("transformer", network="transformer", width=16, loss="next character"),
)


class WeightedLoss(eqx.Module):
    """The mean loss of digits under weights of the examples: batches of any size are one program."""

    network: Any
    features: jax.Array
    labels: jax.Array
    kind: str = eqx.field(static=True)

    def __call__(self, params: Any, weights: Any = None) -> jax.Array:
        each = self.of_examples(params, (self.features, self.labels))
        return jnp.mean(each) if weights is None else jnp.vdot(weights, each)

    def of_examples(self, params: Any, examples: Any) -> jax.Array:
        """The loss of each example."""
        features, labels = examples
        if self.kind == "next character":
            return jax.vmap(lambda window: self.network(params, window[None]))(features)
        outputs = self.network(params, features)
        if self.kind == "one output":
            return (outputs[:, 0] - (labels - 4.5) / 3) ** 2 / 2
        hot = jax.nn.one_hot(labels, 10, dtype=outputs.dtype)
        if self.kind == "ten outputs":
            return jnp.sum((outputs - hot) ** 2, axis=1) / 2
        return -jnp.sum(jax.nn.log_softmax(outputs) * hot, axis=1)


class MeanLoss(eqx.Module):
    """The mean over the examples of a batch."""

    weighted: WeightedLoss

    def __call__(self, params: Any, batch: Any) -> jax.Array:
        return jnp.mean(self.weighted.of_examples(params, batch))


class Weights(eqx.Module):
    """The weights of the examples in the batch of an iteration: drawn with replacement, or by reshuffled epochs."""

    key: Any
    batch_size: Any
    epochs: Any
    examples: int = eqx.field(static=True)

    def __call__(self, n: Any) -> jax.Array:
        places = jnp.arange(self.examples)
        drawn = jax.random.randint(jax.random.fold_in(self.key, n), (self.examples,), 0, self.examples)
        independent = jnp.zeros(self.examples).at[drawn].add(jnp.where(places < self.batch_size, 1.0, 0.0))
        per_epoch = self.examples // self.batch_size
        order = jax.random.permutation(jax.random.fold_in(self.key, n // per_epoch), self.examples)
        mine = order // self.batch_size == n % per_epoch
        return jnp.where(self.epochs, mine, independent) / self.batch_size


def settings_of(config: Config) -> list[Setting]:
    """All runs, those of one program side by side."""
    found = [
        Setting(batch_size=size, seed=seed, epochs=size == config.examples)
        for size, seed in itertools.product(config.batches, range(config.seeds))
    ]
    for varied in VARIATIONS[: config.variations]:
        found += [varied._replace(batch_size=size) for size in config.few]
    return sorted(found, key=program_of)


def program_of(setting: Setting) -> tuple[str, int, str]:
    return setting.network, setting.width, setting.loss


def compute(config: Config) -> figure.Data:
    settings = settings_of(config)
    saved = np.unique(np.linspace(0, config.steps, config.saved + 1).astype(int))[1:]
    rows: dict[str, list[np.ndarray]] = {}
    groups = [list(members) for _, members in itertools.groupby(settings, key=program_of)]
    for members in figure.progress(groups, "programs"):
        problem, loss = problem_of(members[0], config.examples)
        runs = train(members, problem, loss, config.steps, saved)
        for place, setting in enumerate(members):
            states = jax.tree.map(lambda leaf, place=place: leaf[place], runs)
            for name, row in measure(setting, loss, states, config).items():
                rows.setdefault(name, []).append(row)
    data = {name: np.stack(row) for name, row in rows.items()}
    fields = {name: np.array([getattr(s, name) for s in settings]) for name in Setting._fields}
    return data | fields | {"saved": saved, "examples": np.array(config.examples)}


def problem_of(setting: Setting, examples: int) -> tuple[af.Problem, WeightedLoss]:
    if setting.network == "transformer":
        problem = af.problems.char_transformer(layers=1, heads=2, width=setting.width, context=16)
        windows = cast(Any, problem.sampler).evenly_spaced(examples)
        return problem, WeightedLoss(problem.loss, windows, jnp.zeros(examples), setting.loss)
    if setting.network == "convolutions":
        problem = af.problems.cnn((setting.width, 2 * setting.width), activation="tanh")
    else:
        problem = af.problems.mlp((setting.width,), activation="tanh")
    whole: Any = problem.loss
    features, labels = whole.examples
    return problem, WeightedLoss(whole.network, features[:examples], labels[:examples], setting.loss)


def record(setting: Setting) -> af.Optimizer:
    eta, gamma, decay = setting.learning_rate, setting.gamma, setting.weight_decay
    return af.adamw(eta, beta=BETA, gamma=gamma, weight_decay=decay)


def train(members: list[Setting], problem: Any, loss: WeightedLoss, steps: int, saved: np.ndarray) -> Any:
    """States (θ, filters) of all runs of a program at the saved iterations."""

    def run(numbers: Any, key: Any, size: Any, epochs: Any) -> Any:
        eta, gamma, decay = numbers
        optimizer = af.Optimizer(eta, (af.AdamStage(beta=BETA, gamma=gamma),), weight_decay=decay)
        batches = Weights(key, size, epochs, loss.labels.shape[0])
        look = lambda snapshot: (snapshot.params, snapshot.filters)  # noqa: E731
        options = {"save_at": saved, "observe": look, "batches": batches, "on_failure": "ignore"}
        return af.iterate(optimizer, loss, problem.params, steps, **options).observed

    numbers = tuple(
        jnp.array([getattr(s, name) for s in members]) for name in ("learning_rate", "gamma", "weight_decay")
    )
    keys = jnp.stack([jax.random.key(s.seed) for s in members])
    sizes, epochs = jnp.array([s.batch_size for s in members]), jnp.array([s.epochs for s in members])
    return jax.jit(jax.vmap(run))(numbers, keys, sizes, epochs)


def measure(setting: Setting, loss: WeightedLoss, states: Any, config: Config) -> dict[str, np.ndarray]:
    """Q, its error, the pole, λ_max, batch sharpness and the loss at each saved state."""
    optimizer = record(setting)
    if setting.gamma == 0:
        states = (states[0], tuple({"second_moment": stage["second_moment"]} for stage in states[1]))
    examples = config.examples if setting.epochs else None
    batches = Weights(jax.random.key(99), jnp.array(setting.batch_size), jnp.array(setting.epochs), config.examples)
    found: dict[str, list[float]] = {}
    for place in range(len(jax.tree.leaves(states)[0])):
        params, filters = jax.tree.map(lambda leaf, place=place: leaf[place], states)
        metric = af.noise.metric_of(optimizer, params, filters, 1e9)
        data = (loss.features, loss.labels)
        factor = float(af.noise.law_factor(MeanLoss(loss), params, metric, data, probes=config.probes))
        options = {"examples": examples, "probes": config.probes, "depth": 24}
        index = af.noise.edge_index(loss, params, optimizer, filters, setting.batch_size, **options)
        own = af.noise.edge_index(loss, params, optimizer, filters, setting.batch_size, law_factor=factor, **options)
        sharpness = af.noise.batch_sharpness(loss, params, batches, metric, draws=40)
        edge = setting.learning_rate / float(af.analysis.adaptive_edge(setting.gamma))
        numbers = {
            "index": float(index.value),
            "own_index": float(own.value),
            "law_factor": factor,
            "index_error": float(index.error),
            "pole": float(index.pole),
            "sharpness": edge * float(index.leading[-1]),
            "batch_sharpness": edge * float(sharpness.value),
            "loss_value": float(loss(params)),
        }
        for name, number in numbers.items():
            found.setdefault(name, []).append(number)
    return {name: np.array(row) for name, row in found.items()}


def late(data: figure.Data, name: str) -> np.ndarray:
    """The median over the second half of each run."""
    return np.median(data[name][:, data[name].shape[1] // 2 :], axis=1)


def members(data: figure.Data, group: str) -> np.ndarray:
    """Which runs belong to a group and have batches smaller than the data."""
    return (data["group"] == group) & (data["batch_size"] < data["examples"])


def by_size(data: figure.Data, group: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Batch sizes of a group, and the median over seeds of a late number."""
    chosen = members(data, group)
    sizes = np.unique(data["batch_size"][chosen])
    values = late(data, name)
    return sizes, np.array([np.median(values[chosen & (data["batch_size"] == size)]) for size in sizes])


def spread_of(values: np.ndarray) -> float:
    """The largest over the smallest."""
    return float(values.max() / values.min())


def check(data: figure.Data) -> list[figure.Claim]:
    sizes, index = by_size(data, "base", "index")
    _, sharpness = by_size(data, "base", "sharpness")
    small, largest = sizes <= data["examples"] // 4, index[-1]
    index, sharpness = index[small], sharpness[small]
    numbers = {"smallest Q": index.min(), "largest Q": index.max(), "Q, largest over smallest": spread_of(index)}
    numbers["sharpness, largest over smallest"] = spread_of(sharpness)
    base = "one output, batches of up to a quarter of the data: Q ends between .4 and 2.5, and its largest value is at"
    base += " most a third as far above its smallest as that of the sharpness is"
    near = index.min() > 0.4 and index.max() < 2.5 and spread_of(index) < spread_of(sharpness) / 3
    claims = [figure.Claim(base, bool(near), numbers)]
    if not small[-1]:
        pole = "one output, batches of half of the data: Q ends above 2.5, no number near 1, as its largest term nears"
        pole += " its pole"
        share = by_size(data, "base", "pole")[1][-1]
        numbers = {"Q": largest, "x of the largest eigenvalue": share}
        claims.append(figure.Claim(pole, bool(largest > 2.5 and share > 0.5), numbers))
    chosen = members(data, "base")
    first, last = data["index"][chosen, 0], late(data, "index")[chosen]
    rises = "one output: Q is higher in the second half of every run than at its first look"
    rise = {"least rise": (last / first).min()}
    claims.append(figure.Claim(rises, bool(np.all(last > first)), rise))
    ten = np.isin(data["group"], ("ten outputs", "ten outputs, η = .015"))
    if ten.any():
        factors, gaussian, own = (late(data, name)[ten] for name in ("law_factor", "index", "own_index"))
        outputs = "ten outputs: the law factor is below .25 in every run, and with it no index ends above 1.5"
        numbers = {"largest factor": factors.max(), "largest Q": gaussian.max(), "largest with factor": own.max()}
        claims.append(figure.Claim(outputs, bool(factors.max() < 0.25 and own.max() < 1.5), numbers))
    claims += check_networks(data)
    entropy = data["group"] == "cross-entropy"
    if entropy.any():
        first, last = data["index"][entropy, 0], data["index"][entropy, -1]
        falls = "cross-entropy: Q falls along every run"
        claims.append(figure.Claim(falls, bool(np.all(last < first)), {"largest at the end": last.max()}))
    return claims


def check_networks(data: figure.Data) -> list[figure.Claim]:
    """Of a transformer and a convolutional network, where they have run."""
    claims = []
    text = data["group"] == "transformer"
    if text.any():
        factors, gaussian, own = (late(data, name)[text] for name in ("law_factor", "index", "own_index"))
        outputs = "transformer on text: the law factor ends below .3; at B = 1 Q ends above 2.5 (medians of the second"
        outputs += " half), and the index with the factor is nearer to 1. At B = 16 rounding decides where Q ends"
        numbers = {"largest factor": factors.max()}
        for size, index, with_factor in zip(data["batch_size"][text], gaussian, own, strict=True):
            numbers |= {f"Q at B = {size}": index, f"with factor at B = {size}": with_factor}
        one = data["batch_size"][text] == 1
        nearer = np.all(np.abs(np.log(own[one])) < np.abs(np.log(gaussian[one])))
        holds = factors.max() < 0.3 and one.any() and gaussian[one].min() > 2.5 and nearer
        claims.append(figure.Claim(outputs, bool(holds), numbers))
    image = (data["group"] == "convolutions") & (data["batch_size"] == 1)
    if image.any():
        rows = data["index"][image]
        alike = (
            "convolutional network with one output, B = 1: Q is higher at the end than at the first look, and below 2.5"
        )
        numbers = {"first": rows[0, 0], "last": rows[0, -1]}
        claims.append(figure.Claim(alike, bool(rows[0, 0] < rows[0, -1] < 2.5), numbers))
    return claims


#: The groups of each panel of the late index, beside the base.
SETTINGS = ("η = .0015", "η = .015", "γ = 0", "γ = .5")
NETWORKS = ("width 4", "width 16", "decay .1", "epochs")
LOSSES = ("convolutions", "ten outputs", "cross-entropy", "transformer")


def draw(data: figure.Data) -> Figure:
    drawn, panels = plt.subplots(2, 3, figsize=(12, 7))
    panels = panels.ravel()
    chosen = [place for place in np.flatnonzero(members(data, "base")) if data["seed"][place] == 0]
    shown = [place for place in chosen if data["batch_size"][place] in (1, 4, 16)]
    rows = {f"B = {data['batch_size'][place]}": data["index"][place] for place in shown}
    af.plotting.noise.along_runs(panels[0], data["saved"].astype(float), rows, label="edge index Q")
    measures = {"η λ": "sharpness", "η batch sharpness": "batch_sharpness"}
    lines = {name: by_size(data, "base", key) for name, key in measures.items()}
    af.plotting.noise.against_batch(panels[1], lines, label="over the edge of a full batch")
    for ax, groups, name in (
        (panels[2], SETTINGS, "index"),
        (panels[3], NETWORKS, "index"),
        (panels[4], LOSSES, "index"),
        (panels[5], LOSSES, "own_index"),
    ):
        there = [group for group in ("base", *groups) if members(data, group).any()]
        lines = {group: by_size(data, group, name) for group in there}
        af.plotting.noise.against_batch(
            ax, lines, label="Q, late" if name == "index" else "Q with the law factor, late"
        )
    titles = (
        "a  Along runs, one output",
        "b  Sharpness, one output",
        "c  Q by learning rate and γ, one output",
        "d  Q by network and sampling, one output",
        "e  Q by network, outputs and loss",
        "f  The same with the law factor",
    )
    for ax, title in zip(panels, titles, strict=True):
        ax.set_title(title)
    return drawn


if __name__ == "__main__":
    sys.exit(figure.main(__file__, __doc__, CONFIGS, compute, check, draw, compiles_much=True))
