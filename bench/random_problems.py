"""Random losses, optimizers and tolerances by seed, for the measurement of solvers: one integer decides everything.

`draw(seed)` gives a `RandomProblem`. All problems of one `Shape` share their compiled programs: the losses are modules
with array fields, and every hyperparameter is an array. Ten seeds in a row have one shape. `VERSION` names what the
seeds mean; raise it with every change of what is drawn.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import adamflow as af

#: What the seeds mean: references of another version are of other problems.
VERSION = "3"
#: In so many directions the start of a problem is perturbed.
DIRECTIONS = 3

#: Data points of the losses that have data, and the least number of terms of a sum of ridge functions.
POINTS = 40

#: Iterations at which runs are saved, the first included.
SAVED = 21

STRATEGIES = ("naive", "uniform", "exponential", "inverse_exponential")


class Shape(NamedTuple):
    """What compiled programs depend on: the form of the loss, its number of parameters, and the form of the flow."""

    form: Literal["ridges", "valley", "perceptron"]
    dimension: int
    k: int
    order: Literal[1, 2]
    rate: Literal["gould_tanaka", "exact"]

    def __str__(self) -> str:
        return f"{self.form}, d = {self.dimension}, k = {self.k}, order {self.order}, {self.rate} rate"


def _shapes(k: int, order: Literal[1, 2], *parts: tuple[Any, Any, tuple[int, ...]]) -> tuple[Shape, ...]:
    return tuple(Shape(form, d, k, order, rate) for form, rate, dimensions in parts for d in dimensions)


#: By (k, order), the shapes: a part of all combinations, so that there are some forty sets of programs and not four
#: hundred. Of each the first ones are typical of the rest: small measurements meet them alone.
SHAPES: dict[tuple[int, int], tuple[Shape, ...]] = {
    (1, 1): _shapes(
        1,
        1,
        ("ridges", "gould_tanaka", (16,)),
        ("perceptron", "gould_tanaka", (16,)),
        ("ridges", "exact", (5,)),
        ("valley", "gould_tanaka", (2,)),
        ("ridges", "gould_tanaka", (40, 3, 8, 64)),
        ("valley", "exact", (13,)),
        ("ridges", "gould_tanaka", (13, 1)),
        ("perceptron", "exact", (40,)),
        ("ridges", "gould_tanaka", (24, 2)),
        ("ridges", "exact", (16,)),
    ),
    (1, 2): _shapes(
        1,
        2,
        ("ridges", "gould_tanaka", (8,)),
        ("perceptron", "gould_tanaka", (8,)),
        ("ridges", "exact", (16,)),
        ("valley", "exact", (3,)),
        ("ridges", "gould_tanaka", (24, 2)),
    ),
    (2, 1): _shapes(
        2,
        1,
        ("ridges", "gould_tanaka", (16,)),
        ("perceptron", "exact", (16,)),
        ("ridges", "gould_tanaka", (2, 8)),
        ("valley", "gould_tanaka", (5,)),
        ("ridges", "exact", (5,)),
        ("ridges", "gould_tanaka", (40,)),
    ),
    (3, 1): _shapes(
        3,
        1,
        ("ridges", "gould_tanaka", (16,)),
        ("perceptron", "gould_tanaka", (24,)),
        ("ridges", "exact", (5,)),
        ("valley", "exact", (3,)),
        ("ridges", "gould_tanaka", (8, 1, 64)),
    ),
}

#: Consecutive seeds that share a shape.
BLOCK = 10

#: The (k, order) of ten blocks in a row: a tenth has order 2, half k = 1 with order 1, a fifth each k = 2 and 3.
_TURNS = ((1, 1), (2, 1), (3, 1), (1, 1), (1, 2), (1, 1), (2, 1), (1, 1), (3, 1), (1, 1))


def shape_of(seed: int) -> Shape:
    """The shape of a problem; it turns through all of them, in blocks of `BLOCK` seeds."""
    cycle, turn = divmod(seed // BLOCK, len(_TURNS))
    kind = _TURNS[turn]
    earlier = cycle * _TURNS.count(kind) + _TURNS[:turn].count(kind)
    return SHAPES[kind][earlier % len(SHAPES[kind])]


class Ridges(eqx.Module):
    """A sum of functions of one direction each, p ↦ Σ_r φ_r(z_r) − shift·p with z = directions p − offsets.

        φ(z) = square z²/2 + fourth z⁴/4 + soft softplus(−steep z)/steep + root √(width² + z²) + wave sin(z)

    Attributes:
        directions: shape (terms, d).
        offsets, square, fourth, soft, steep, root, width, wave: shape (terms,).
        shift: shape (d,).
    """

    directions: jax.Array
    offsets: jax.Array
    square: jax.Array
    fourth: jax.Array
    soft: jax.Array
    steep: jax.Array
    root: jax.Array
    width: jax.Array
    wave: jax.Array
    shift: jax.Array

    def __call__(self, params: jax.Array) -> jax.Array:
        z = self.directions @ params - self.offsets
        polynomial = self.square * z**2 / 2 + self.fourth * z**4 / 4
        soft = self.soft * jax.nn.softplus(-self.steep * z) / self.steep
        root = self.root * jnp.sqrt(self.width**2 + z**2)
        return jnp.sum(polynomial + soft + root + self.wave * jnp.sin(z)) - self.shift @ params


class Perceptron(eqx.Module):
    """Regression by hidden units of three parameters each, and a tanh on top; parameters left over are linear.

    Attributes:
        inputs: shape (POINTS, d).
        targets: shape (POINTS,).
    """

    inputs: jax.Array
    targets: jax.Array

    def __call__(self, params: jax.Array) -> jax.Array:
        hidden = params.size // 3
        weights, biases, heights = params[: 3 * hidden].reshape(3, hidden)
        rest = params[3 * hidden :]
        output = jnp.tanh(self.inputs[:, :1] * weights + biases) @ heights
        output += self.inputs[:, params.size - rest.size :] @ rest
        return jnp.mean((2 * jnp.tanh(output / 2) - self.targets) ** 2)


class Valley(eqx.Module):
    """Rosenbrock's: a curved valley whose walls are `sharpness` times as steep as its floor, from 2 parameters on."""

    sharpness: jax.Array

    def __call__(self, params: jax.Array) -> jax.Array:
        walls = jnp.sum((params[1:] - params[:-1] ** 2) ** 2)
        return jnp.sum((1 - params) ** 2) + self.sharpness * walls


RandomLoss: TypeAlias = Ridges | Perceptron | Valley


@dataclasses.dataclass(frozen=True)
class RandomProblem:
    """A loss, a start, an optimizer and what a run is asked for.

    Attributes:
        seed: decides everything else.
        shape: what its compiled programs depend on.
        family: a name in `FAMILIES`.
        loss: of the parameters, shape (d,).
        params: θ(0), float64 of shape (d,).
        perturbed: θ(0) plus noise of min(1e-6, rtol) times its rms in three directions, shape (3, d).
        settings: hyperparameters of `af.kadam`, as numbers.
        strategy: one of `STRATEGIES`.
        rtol: of the run.
        steps: iterations of the run.
    """

    seed: int
    shape: Shape
    family: str
    loss: RandomLoss
    params: jax.Array
    perturbed: jax.Array
    settings: dict[str, float]
    strategy: str
    rtol: float
    steps: int

    @property
    def flow(self) -> af.GouldTanakaFlow:
        """The flow of its optimizer, with arrays of one type: numbers of another kind would be compiled anew."""
        settings: dict[str, Any] = {name: jnp.asarray(value, jnp.float64) for name, value in self.settings.items()}
        optimizer = af.kadam(self.shape.k, **settings, strategy=self.strategy)
        return af.GouldTanakaFlow(optimizer, self.shape.order, self.shape.rate)

    @property
    def save_at(self) -> np.ndarray:
        """The iterations that runs save, shape (SAVED,)."""
        return np.linspace(0, self.steps, SAVED)

    def describe(self) -> dict[str, Any]:
        """All that identifies the problem, as plain values."""
        return {
            "seed": self.seed,
            "family": self.family,
            "d": self.shape.dimension,
            "k": self.shape.k,
            "order": self.shape.order,
            "rate": self.shape.rate,
            "strategy": self.strategy,
            "rtol": self.rtol,
            "steps": self.steps,
            **self.settings,
        }


def draw(seed: int) -> RandomProblem:
    """The problem of a seed."""
    random = np.random.default_rng(seed)
    shape = shape_of(seed)
    settings = _draw_settings(random)
    strategy = str(random.choice(STRATEGIES))
    rtol = 10.0 ** -int(random.integers(2, 9))
    steps = int(random.choice([30, 200, 1000, 3000]))
    family = str(random.choice(RIDGES)) if shape.form == "ridges" else shape.form
    loss, params = FAMILIES[family](random, shape.dimension)
    noise = random.normal(size=(DIRECTIONS, *params.shape))
    noise *= min(1e-6, rtol) * np.sqrt(np.mean(params**2) / np.mean(noise**2, axis=1, keepdims=True))
    starts = jnp.asarray(params), jnp.asarray(params + noise)
    return RandomProblem(seed, shape, family, loss, *starts, settings, strategy, rtol, steps)


def _draw_settings(random: np.random.Generator) -> dict[str, float]:
    """Hyperparameters; (β, γ) where updates are bounded, β > γ/(2 − γ)."""
    while True:
        beta = 1 - 10 ** random.uniform(-4, -0.3)
        gamma = 1 - 10 ** random.uniform(-2.5, -0.01)
        if beta > gamma / (2 - gamma):
            break
    weight_decay = 10 ** random.uniform(-3, 0) if random.random() < 0.5 else 0.0
    epsilon = 10 ** random.uniform(-10, -2) if random.random() < 0.5 else 0.0
    return {
        "learning_rate": 10 ** random.uniform(-4, np.log10(0.3)),
        "beta": beta,
        "gamma": gamma,
        "weight_decay": weight_decay,
        "epsilon": epsilon,
    }


#: A loss and its start, shape (d,).
Drawn: TypeAlias = tuple[RandomLoss, np.ndarray]


def _ridges(d: int, **terms: Any) -> Ridges:
    """A sum of ridge functions; fields have one entry for each direction that is given, and are 0 (or 1) by default.

    Terms that are 0 fill it up to max(d, POINTS), so that all losses of d parameters have one form.
    """
    count = max(d, POINTS)
    directions = np.zeros((count, d))
    given = len(terms["directions"])
    directions[:given] = terms.pop("directions")
    fields = {"directions": directions, "shift": np.asarray(terms.pop("shift", np.zeros(d)))}
    for name in ("offsets", "square", "fourth", "soft", "steep", "root", "width", "wave"):
        fields[name] = np.full(count, 1.0 if name in ("steep", "width") else 0.0)
        fields[name][:given] = terms.pop(name, fields[name][:given])
    if terms:
        raise TypeError(f"a sum of ridge functions has no fields {', '.join(terms)}")
    return Ridges(**{name: jnp.asarray(value, jnp.float64) for name, value in fields.items()})


def _rotation(random: np.random.Generator, d: int) -> np.ndarray:
    return np.linalg.qr(random.normal(size=(d, d)))[0]


def _maybe(random: np.random.Generator, values: np.ndarray) -> np.ndarray:
    """The values, or zeros in half of the cases."""
    return values * (random.random() < 0.5)


def _quadratic(random: np.random.Generator, d: int) -> Drawn:
    """Rotated, of condition up to 1e4."""
    directions, square = _rotation(random, d), 10 ** random.uniform(-2, 2, d)
    loss = _ridges(d, directions=directions, square=square, shift=_maybe(random, random.normal(size=d)))
    return loss, random.normal(size=d) * 10 ** random.uniform(-1, 1)


def _diagonal_quadratic(random: np.random.Generator, d: int) -> Drawn:
    """Of equal curvatures in a fifth of the cases."""
    square = 10 ** random.uniform(-2, 2, d)
    if random.random() < 0.2:
        square[:] = square[0]
    loss = _ridges(d, directions=np.eye(d), square=square, shift=_maybe(random, random.normal(size=d)))
    return loss, random.normal(size=d) * 10 ** random.uniform(-1, 1)


def _quartic(random: np.random.Generator, d: int) -> Drawn:
    """Rotated, with curvatures that grow along the way out."""
    directions = random.normal(size=(d, d)) / np.sqrt(d)
    square, fourth = 10 ** random.uniform(-1, 1, d), 10 ** random.uniform(-1, 1, d)
    return _ridges(d, directions=directions, square=square, fourth=fourth), 2 * random.normal(size=d)


def _separable_quartic(random: np.random.Generator, d: int) -> Drawn:
    """Without a quadratic part in half of the cases: the curvature vanishes at the minimum."""
    square = _maybe(random, 10 ** random.uniform(-1, 1, d))
    shift = _maybe(random, random.normal(size=d))
    return _ridges(d, directions=np.eye(d), square=square, fourth=np.ones(d), shift=shift), 2 * random.normal(size=d)


def _logistic(random: np.random.Generator, d: int) -> Drawn:
    """Labels with noise, or separable ones, whose gradient vanishes without end."""
    inputs = random.normal(size=(POINTS, d)) * 10 ** random.uniform(-1, 0.5, d)
    labels = np.sign(inputs @ random.normal(size=d) + _maybe(random, random.normal(size=POINTS)))
    loss = _ridges(d, directions=labels[:, None] * inputs, soft=np.full(POINTS, 1 / POINTS))
    return loss, 0.1 * random.normal(size=d)


def _arrivals(random: np.random.Generator, d: int) -> Drawn:
    """Smooth absolute values, soft to sharp: coordinates arrive early and late, almost with a kink."""
    root, width = 10 ** random.uniform(-1, 1, d), 10 ** random.uniform(-2, 0.5, d)
    directions = np.eye(d) if random.random() < 0.5 else _rotation(random, d)
    loss = _ridges(d, directions=directions, root=root, width=width, offsets=_maybe(random, random.normal(size=d)))
    return loss, random.normal(size=d) * 10 ** random.uniform(-2, 0.7, d)


def _waves(random: np.random.Generator, d: int) -> Drawn:
    """A bowl with waves: gradients cross zero again and again."""
    directions = _rotation(random, d) * 10 ** random.uniform(0, 1)
    square, wave = 10 ** random.uniform(-1, 1, d), 10 ** random.uniform(-1, 1, d)
    loss = _ridges(d, directions=directions, square=square, wave=wave, offsets=random.normal(size=d))
    return loss, 2 * random.normal(size=d)


def _walls(random: np.random.Generator, d: int) -> Drawn:
    """A slope that ends at soft walls: the curvature rises suddenly, from almost 0 to about `steep`."""
    directions = random.normal(size=(POINTS, d)) / np.sqrt(d)
    steep, offsets = 10 ** random.uniform(0.5, 2.5), -random.uniform(0.5, 2, POINTS)
    square, shift = 10 ** random.uniform(-3, -1, POINTS), random.normal(size=d)
    fields = {"offsets": offsets, "square": square / POINTS, "soft": np.full(POINTS, 3 / np.sqrt(POINTS))}
    loss = _ridges(d, directions=directions, steep=np.full(POINTS, steep), shift=0.3 * shift, **fields)
    return loss, 0.3 * random.normal(size=d)


def _perceptron(random: np.random.Generator, d: int) -> Drawn:
    inputs = random.normal(size=(POINTS, d))
    targets = np.sin(2 * inputs[:, 0]) + 0.5 * inputs[:, -1]
    return Perceptron(jnp.asarray(inputs), jnp.asarray(targets)), random.normal(size=d)


def _valley(random: np.random.Generator, d: int) -> Drawn:
    return Valley(jnp.asarray(10 ** random.uniform(0, 2.5))), random.normal(size=d)


#: By name, how losses of a family are drawn.
FAMILIES: dict[str, Callable[[np.random.Generator, int], Drawn]] = {
    "quadratic": _quadratic,
    "diagonal quadratic": _diagonal_quadratic,
    "quartic": _quartic,
    "separable quartic": _separable_quartic,
    "logistic": _logistic,
    "arrivals": _arrivals,
    "waves": _waves,
    "walls": _walls,
    "perceptron": _perceptron,
    "valley": _valley,
}
#: The families whose losses are sums of ridge functions.
RIDGES = tuple(name for name in FAMILIES if name not in ("perceptron", "valley"))
