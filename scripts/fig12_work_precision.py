"""Work and precision of solvers of the flow: gradients and time against the error, for collocation and its peers.

Columns: pairs (β, γ) at which v is slow, fast with slow and with fast m, and very slow; the flow of order 1 of Adam
on the chain of 10 coordinates, η = 1e-3, 2000 iterations. Top: gradient equivalents per iteration of the optimizer, a
Jacobian counted as 2 for each parameter. Bottom: time, as a multiple of a scan over the discrete optimizer. Right on
the axes is the error: the largest distance from the reference over 20 saved times, relative to the distance moved up
to there. Each marker is a tolerance. Peers are diffrax's Tsit5, Kvaerno5 and KenCarp4 (with the chord iteration that
`solver="auto"` gives an implicit solver, and all of the flow in KenCarp's implicit part) and SciPy's Radau, BDF and
LSODA; the implicit ones follow ln v, without which some of them fail. SciPy's call a compiled vector field from
Python, so its seconds are not shown.

A third picture has random problems of eight parameters: rotated sums of quadratics, quartics, waves and soft kinks,
with random decays in the bounded region, rates, lengths and tolerances. It shows what part of them a solver brings
within a multiple of A·rtol, and its gradients over those of Dopri8 at the same rtol; an error is the rms over the
coordinates over the distance moved plus a tenth of the start, and A ≥ 1 the amplification of a perturbed start. A run
that does not complete counts as never there. Problems whose two references disagree, or which Dopri8 does not
complete, are left out and counted. The thousand problems of docs/accuracy.md are wider.

Claims: at the loosest tolerance that brings the error below 1e-3, collocation takes at most a twentieth of the
gradients of an optimizer with slow v (β ≥ .999), and 1.5 times as many with fast v; and fewer than any peer. On random
problems at most a twentieth of its errors is beyond 10·A·rtol, none beyond 100·A·rtol.
Measured: see the manifest, and docs/figures/fig12_work_precision.md.

Source: the flow is that of R. Gould and H. Tanaka, arXiv:2411.05746, which writes (β, γ) where PyTorch and optax write
(b2, b1); collocation is this project's (docs/collocation.md).
Run time on 2 cores: 6 minutes; --quick, with two pairs, one tolerance, two peers and 6 random problems, one; --full,
with tighter tolerances and 400 random problems, not measured.
"""

import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure
from scipy.integrate import solve_ivp

import adamflow as af
from adamflow.figures import figure
from adamflow.plotting.colours import LINES

jax.config.update("jax_enable_x64", True)

ERROR = 1e-3
#: Gradients per iteration of the optimizer that collocation may take, by whether v is slow.
MOST = {True: 0.05, False: 1.5}
SLOW = 0.999
DIFFRAX: dict[str, Any] = {
    "collocation": "collocation",
    "Tsit5": diffrax.Tsit5(),
    "Kvaerno5": diffrax.Kvaerno5(root_finder=af.CHORD_ROOT_FINDER),
    "KenCarp4": diffrax.KenCarp4(root_finder=af.CHORD_ROOT_FINDER),
}
SCIPY = ("Radau", "BDF", "LSODA")
NAMES = (*DIFFRAX, *SCIPY)

FEW = (
    f"at the loosest tolerance with an error below {ERROR:g}, collocation takes at most {MOST[True]:g} gradients per "
    f"iteration for β ≥ {SLOW:g}, and {MOST[False]:g} below"
)
#: Errors over A·rtol: what few may exceed, and none.
RARE, NEVER = 10.0, 100.0
FEW_MAY = 0.05
KEPT = (
    f"on random problems at most {FEW_MAY:.0%} of the errors of collocation are beyond {RARE:g} times, and none beyond "
    f"{NEVER:g} times, the amplified tolerance"
)
FEWEST = f"no peer reaches an error of {ERROR:g} with fewer gradients"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings: `pairs` of (β, γ); `solvers` with collocation first; the median of `repeats` of a run is timed.

    `problems` is the number of random ones.
    """

    pairs: tuple[tuple[float, float], ...] = ((0.999, 0.9), (0.95, 0.9), (0.95, 0.5), (0.9999, 0.5))
    dimension: int = 10
    learning_rate: float = 1e-3
    steps: int = 2000
    saved: int = 20
    tolerances: tuple[float, ...] = (1e-2, 1e-3, 3e-4, 1e-4)
    solvers: tuple[str, ...] = NAMES
    reference: float = 1e-9
    repeats: int = 3
    problems: int = 100


CONFIGS = {
    "quick": Config(
        pairs=((0.999, 0.9), (0.95, 0.5)),
        tolerances=(1e-3,),
        repeats=1,
        solvers=("collocation", "Radau", "LSODA"),
        problems=6,
    ),
    "default": Config(),
    "full": Config(tolerances=(1e-2, 1e-3, 3e-4, 1e-4, 1e-5, 1e-6, 1e-7), reference=1e-11, repeats=7, problems=400),
}


def compute(config: Config) -> figure.Data:
    """Errors, gradients per iteration and seconds by solver, pair and tolerance; NaN where a run failed."""
    problem = af.problems.chain(config.dimension)
    saved = np.linspace(0, config.steps, config.saved + 1)
    shape = (len(config.solvers), len(config.pairs), len(config.tolerances))
    errors, gradients, seconds = (np.full(shape, np.nan) for _ in range(3))
    baseline = np.array([discrete_seconds(config, problem, *pair) for pair in config.pairs])
    references = [reference(config, problem, pair, saved) for pair in config.pairs]
    with figure.progress(total=int(np.prod(shape)), unit="run") as bar:
        for i, name in enumerate(config.solvers):
            run = diffrax_runs(config, problem, name, saved) if name in DIFFRAX else scipy_runs(problem, name, saved)
            for j, pair in enumerate(config.pairs):
                flow = af.GouldTanakaFlow(af.adam(config.learning_rate, beta=pair[0], gamma=pair[1]))
                for k, rtol in enumerate(config.tolerances):
                    path, gradients[i, j, k], seconds[i, j, k] = run(flow, rtol)
                    errors[i, j, k] = distance(path, references[j])
                    bar.update()
    return {
        "pairs": np.array(config.pairs),
        "tolerances": np.array(config.tolerances),
        "solvers": np.array(config.solvers),
        "errors": errors,
        "gradients": gradients / config.steps,
        "seconds": seconds,
        "discrete_seconds": baseline,
        **random_runs(config),
    }


def distance(path: np.ndarray, expected: np.ndarray) -> float:
    """The largest distance, relative to the distance moved up to there; NaN for a path that ends early."""
    if len(path) < len(expected) or not np.isfinite(path).all():
        return np.nan
    moved = np.linalg.norm(expected[1:] - expected[0], axis=1)
    return float(np.max(np.linalg.norm(path[1:] - expected[1:], axis=1) / moved))


def reference(config: Config, problem: af.Problem, pair: tuple[float, float], saved: np.ndarray) -> np.ndarray:
    """θ by Kvaerno5 at a tolerance far below all others."""
    flow, tight = af.GouldTanakaFlow(af.adam(config.learning_rate, beta=pair[0], gamma=pair[1])), config.reference
    solver = DIFFRAX["Kvaerno5"]
    options = {"save_at": saved, "rtol": tight, "atol": tight * 1e-4, "solver": solver, "max_steps": 1_000_000}
    run = af.solve(flow, problem.loss, problem.params, config.steps, **options)
    if not run.outcome.successful:
        raise RuntimeError(f"the reference at beta = {pair[0]}, gamma = {pair[1]} {run.outcome.message}")
    return np.asarray(run.params)


def timed(function: Callable[[], Any], repeats: int) -> float:
    """The median time of a call that has been made before."""
    every = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        every.append(time.perf_counter() - start)
    return float(np.median(every))


def discrete_seconds(config: Config, problem: af.Problem, beta: float, gamma: float) -> float:
    """The time of a bare scan over the discrete optimizer."""
    optimizer = af.adam(config.learning_rate, beta=beta, gamma=gamma)

    @jax.jit
    def scan() -> Any:
        def step(state: Any, iteration: jax.Array) -> tuple[Any, None]:
            return optimizer.step(problem.loss, state, iteration), None

        start = (problem.params, optimizer.initial_state(problem.params))
        return jax.lax.scan(step, start, jnp.arange(config.steps))[0][0]

    jax.block_until_ready(scan())
    return timed(scan, 5 * config.repeats)


def diffrax_runs(config: Config, problem: af.Problem, name: str, saved: np.ndarray) -> Callable:
    """`(flow, rtol) -> θ, gradients, seconds` by `af.solve`, within one compiled program."""

    def solve(flow: Any, rtol: Any) -> af.Trajectory:
        options = {"save_at": saved, "rtol": rtol, "solver": DIFFRAX[name], "max_steps": 300_000}
        return af.solve(flow, problem.loss, problem.params, config.steps, **options)

    fast = eqx.filter_jit(solve)

    def run(flow: Any, rtol: float) -> tuple[np.ndarray, float, float]:
        result = fast(flow, jnp.asarray(rtol))
        path, stats = np.asarray(result.params), result.stats
        if not result.outcome.successful:
            return path, np.nan, np.nan
        if stats.gradient_evaluations is None:
            # An implicit solver's can be counted outside of jit only, by callbacks, which cost time.
            stats = solve(flow, rtol).stats
        # The driver's count for collocation has its Hessians already.
        extra = 0 if name == "collocation" else 2 * problem.params.size * int(stats.jacobian_evaluations)
        seconds = timed(lambda: fast(flow, jnp.asarray(rtol)), config.repeats)
        return path, int(stats.gradient_evaluations) + extra, seconds

    return run


def scipy_runs(problem: af.Problem, name: str, saved: np.ndarray) -> Callable:
    """The same by `scipy.integrate.solve_ivp`, with the flow's Jacobian."""

    def run(flow: Any, rtol: float) -> tuple[np.ndarray, float, float]:
        found, path = scipy_run((flow, problem.loss, problem.params), name, saved, rtol, first_step=1.0)
        return path, found.nfev + 2 * problem.params.size * found.njev, np.nan

    return run


def scipy_run(given: tuple, name: str, saved: np.ndarray, rtol: float, **options: Any) -> tuple[Any, np.ndarray]:
    """What `solve_ivp` returns for a flow, a loss and a start, and θ at the saved times, in the flow's coordinates."""
    flow, loss, params = given
    options |= {"method": name, "t_eval": saved, "rtol": rtol, "atol": rtol / 100}
    start = flow.initial_state(loss, params)
    coordinates = flow.coordinates(start)
    vector, unravel = ravel_pytree(coordinates.encode(start))
    found: Any = solve_ivp(
        lambda time, vector: np.asarray(scipy_field(*given, time, vector)),
        (0.0, float(saved[-1])),
        np.asarray(vector),
        jac=lambda time, vector: np.asarray(scipy_jacobian(*given, time, vector)),
        **options,
    )
    return found, np.array([np.asarray(coordinates.decode(unravel(jnp.asarray(y))).params) for y in found.y.T])


# `jax.jit`, whose calls cost a fifth of those of equinox: the solvers call these from Python.
@jax.jit
def scipy_field(flow: Any, loss: Any, params: Any, time: Any, vector: Any) -> jax.Array:
    """The vector field in the coordinates of the implicit solvers."""
    state = flow.initial_state(loss, params)
    coordinates = flow.coordinates(state)
    unravel = ravel_pytree(coordinates.encode(state))[1]
    return ravel_pytree(coordinates.field(flow, loss, time, unravel(vector)))[0]


@jax.jit
def scipy_jacobian(flow: Any, loss: Any, params: Any, time: Any, vector: Any) -> jax.Array:
    """Its derivative by the vector."""
    return jax.jacfwd(lambda vector: scipy_field(flow, loss, params, time, vector))(vector)


class RandomLoss(eqx.Module):
    """p ↦ Σᵢ φᵢ(zᵢ), φ(z) = square z²/2 + fourth z⁴/4 + kink √(width² + z²) + wave sin z, z = rotation p − offsets.

    Attributes:
        rotation: orthogonal, shape (d, d).
        offsets, square, fourth, kink, width, wave: shape (d,).
    """

    rotation: jax.Array
    offsets: jax.Array
    square: jax.Array
    fourth: jax.Array
    kink: jax.Array
    width: jax.Array
    wave: jax.Array

    def __call__(self, params: jax.Array) -> jax.Array:
        z = self.rotation @ params - self.offsets
        smooth = self.square * z**2 / 2 + self.fourth * z**4 / 4 + self.wave * jnp.sin(z)
        return jnp.sum(smooth + self.kink * jnp.sqrt(self.width**2 + z**2))


class Drawn(NamedTuple):
    """A random problem: a loss, its start, the flow's optimizer, the tolerance and the saved iterations."""

    loss: RandomLoss
    params: jax.Array
    optimizer: af.Optimizer
    rtol: float
    saved: np.ndarray


#: Of the random problems: their number of parameters, and at most so many steps of a run.
DIMENSION, MAX_STEPS = 8, 30_000
#: How far apart two references may be, over rtol.
TRUSTED = 0.1


def random_problem(seed: int, saved: int) -> Drawn:
    """One of the family; β > γ/(2 − γ), where updates are bounded."""
    random = np.random.default_rng(seed)
    square = 10 ** random.uniform(-2, 2, DIMENSION)
    # Each of the other terms is there in half of the problems.
    fourth, kink, wave = (
        (random.random() < 0.5) * 10 ** random.uniform(-1, 1, DIMENSION) for _ in ("fourth", "kink", "wave")
    )
    rotation = (
        np.linalg.qr(random.normal(size=(DIMENSION, DIMENSION)))[0] if random.random() < 0.7 else np.eye(DIMENSION)
    )
    width = 10 ** random.uniform(-2, 0.5, DIMENSION)
    fields = (rotation, random.normal(size=DIMENSION), square, fourth, kink, width, wave)
    beta = gamma = 0.0
    while beta <= gamma / (2 - gamma):
        beta, gamma = 1 - 10 ** random.uniform(-4, -0.3), 1 - 10 ** random.uniform(-2.5, -0.01)
    rate = 10 ** random.uniform(-4, np.log10(0.3))
    steps, rtol = int(random.choice([30, 200, 1000])), 10.0 ** -int(random.integers(2, 7))
    # Arrays, so that all problems share a program.
    settings: dict[str, Any] = {"beta": jnp.asarray(beta), "gamma": jnp.asarray(gamma)}
    loss = RandomLoss(*map(jnp.asarray, fields))
    params = jnp.asarray(2 * random.normal(size=DIMENSION))
    return Drawn(loss, params, af.adam(jnp.asarray(rate), **settings), rtol, np.linspace(0, steps, saved + 1))


def random_runs(config: Config) -> figure.Data:
    """By solver and random problem: the largest error over A·rtol, infinite for failures; gradients over Dopri8's."""
    solvers: dict[str, Any] = {name: DIFFRAX[name] for name in config.solvers if name in DIFFRAX}
    errors, gradients = [], []
    doubtful = 0
    with figure.progress(total=config.problems, unit="random problem") as bar:
        for seed in range(config.problems):
            problem = random_problem(seed, config.saved)
            truth = trusted(problem)
            bar.update()
            if truth is None:
                doubtful += 1
                continue
            rows, amplification, base = truth
            found = [random_run(problem, solver) for solver in solvers.values()]
            found += [random_run_by_scipy(problem, name) for name in config.solvers if name in SCIPY]
            errors.append([apart(path, rows) / (amplification * problem.rtol) for path, _ in found])
            gradients.append([count / base for _, count in found])
    names = np.array([*solvers, *(name for name in config.solvers if name in SCIPY)])
    return {
        "random_solvers": names,
        "random_errors": np.array(errors).reshape(-1, len(names)).T,
        "random_gradients": np.array(gradients).reshape(-1, len(names)).T,
        "random_left_out": np.array(doubtful),
    }


def trusted(problem: Drawn) -> tuple[np.ndarray, float, float] | None:
    """θ of the truth, the amplification A ≥ 1, Dopri8's gradients at the problem's rtol; `None` if that is in doubt.

    That is where two references differ, or one of Dopri8's runs does not complete. A is relative to the larger of the
    start and the distance moved.
    """
    tight = min(1e-10, 1e-4 * problem.rtol)
    rows, _ = random_run(problem, diffrax.Dopri8(), tight)
    other, _ = random_run(problem, diffrax.Dopri8(), 30 * tight)
    _, gradients = random_run(problem, diffrax.Dopri8())
    if not (apart(other, rows) <= TRUSTED * problem.rtol and np.isfinite(gradients)):
        return None
    size = min(1e-6, problem.rtol)
    direction = np.random.default_rng(0).normal(size=DIMENSION)
    shift = size * np.sqrt(np.mean(np.asarray(problem.params) ** 2) / np.mean(direction**2)) * direction
    moved, _ = random_run(problem._replace(params=problem.params + shift), diffrax.Dopri8(), tight)
    if len(moved) < len(rows):
        return None
    scale = np.maximum(rms(rows[0]), np.maximum.accumulate(rms(rows - rows[0])))
    growth = np.max(rms(moved - rows) / scale) / (rms(shift) / rms(rows[0]))
    return rows, float(max(1.0, growth)), gradients


def rms(values: np.ndarray) -> Any:
    return np.sqrt(np.mean(np.asarray(values) ** 2, axis=-1))


def apart(path: np.ndarray, expected: np.ndarray) -> float:
    """The largest rms distance over the distance moved so far plus a tenth of the start; infinite for half a path."""
    if not 0 < len(expected) <= len(path) or not np.isfinite(path).all():
        return np.inf
    moved = np.maximum.accumulate(rms(expected - expected[0]))
    return float(np.max(rms(path - expected) / (moved + 0.1 * rms(expected[0]))))


def random_run(problem: Drawn, solver: Any, rtol: float | None = None) -> tuple[np.ndarray, float]:
    """θ and gradients, a Jacobian counted as 2 for each parameter; an empty path and NaN if it does not complete."""
    rtol = problem.rtol if rtol is None else rtol
    implicit = isinstance(solver, diffrax.AbstractImplicitSolver)
    options: dict[str, Any] = {"rtol": rtol, "atol": rtol / 100, "solver": solver, "on_failure": "ignore"}
    options |= {"save_at": problem.saved, "max_steps": 3000 if implicit else MAX_STEPS}
    steps = int(problem.saved[-1])
    run = af.solve(af.GouldTanakaFlow(problem.optimizer), problem.loss, problem.params, steps, **options)
    if not run.outcome.successful:
        return np.empty((0, DIMENSION)), np.nan
    extra = 2 * DIMENSION * int(run.stats.jacobian_evaluations) if implicit else 0
    return np.asarray(run.params), int(run.stats.gradient_evaluations) + extra


def random_run_by_scipy(problem: Drawn, name: str) -> tuple[np.ndarray, float]:
    """The same by `scipy.integrate.solve_ivp`."""
    given = (af.GouldTanakaFlow(problem.optimizer), problem.loss, problem.params)
    with np.errstate(all="ignore"):
        found, path = scipy_run(given, name, problem.saved, problem.rtol)
    if not found.success:
        return np.empty((0, DIMENSION)), np.nan
    return path, found.nfev + 2 * DIMENSION * found.njev


def least(data: figure.Data) -> np.ndarray:
    """By solver and pair, the fewest gradients per iteration with which the error is small; infinite if it never is."""
    return np.where(data["errors"] < ERROR, data["gradients"], np.inf).min(axis=-1)


def check(data: figure.Data) -> list[figure.Claim]:
    """Few gradients, and fewer than every peer."""
    ours, *peers = least(data)
    most = np.array([MOST[bool(beta >= SLOW)] for beta in data["pairs"][:, 0]])
    best = np.min(peers, axis=0)
    names = [f"({beta:g}, {gamma:g})" for beta, gamma in data["pairs"]]
    numbers = {f"{name}: gradients per iteration": value for name, value in zip(names, ours, strict=True)}
    ratios = {f"{name}: best peer / collocation": value for name, value in zip(names, best / ours, strict=True)}
    return [
        figure.Claim(FEW, bool(np.all(ours <= most)), numbers),
        figure.Claim(FEWEST, bool(np.all(ours < best)), ratios),
        check_random(data),
    ]


def check_random(data: figure.Data) -> figure.Claim:
    """How often, and how far, collocation is beyond its tolerance on random problems, beside the others."""
    names, errors = [str(name) for name in data["random_solvers"]], data["random_errors"]
    numbers: dict[str, float] = {"problems": errors.shape[1], "without a reference": int(data["random_left_out"])}
    for name, row in zip(names, errors, strict=True):
        numbers |= {f"{name}: median": np.median(row), f"{name}: beyond {RARE:g}": np.mean(row > RARE)}
    ours = errors[names.index("collocation")]
    numbers["collocation: largest"] = np.max(ours)
    return figure.Claim(KEPT, bool(np.mean(ours > RARE) <= FEW_MAY and np.max(ours) <= NEVER), numbers)


#: The solvers of the picture; all are in the other one.
SHOWN = ("collocation", "Tsit5", "Kvaerno5", "Radau", "LSODA")


def draw(data: figure.Data) -> dict[str, Figure]:
    count = len(data["pairs"])
    shown = tuple(name for name in SHOWN if name in data["solvers"])
    return {
        "": draw_solvers(data, min(3, count), shown),
        "all": draw_solvers(data, count, tuple(data["solvers"])),
        "random": draw_random(data, shown),
    }


def draw_random(data: figure.Data, solvers: tuple[str, ...]) -> Figure:
    """The part of the random problems within an error, and within a cost, by solver."""
    drawn, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True)
    names = list(data["random_solvers"])
    for name, colour in zip(solvers, LINES, strict=False):
        style: dict[str, Any] = {"color": colour, "linewidth": 2.2 if name == "collocation" else 1.4, "label": name}
        for axes, values in ((left, data["random_errors"]), (right, data["random_gradients"])):
            row = np.sort(np.where(np.isfinite(values[names.index(name)]), values[names.index(name)], np.inf))
            axes.step(row, 100 * np.arange(1, len(row) + 1) / len(row), where="post", **style)
    left.axvline(RARE, color="0.5", linewidth=1, linestyle=":")
    left.set(xscale="log", xlabel="error / (amplification · rtol)", ylabel="% of random problems")
    right.axvline(1.0, color="0.5", linewidth=1, linestyle=":")
    right.set(xscale="log", xlabel="gradients / those of Dopri8")
    drawn.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(solvers))
    return drawn


def draw_solvers(data: figure.Data, columns: int, solvers: tuple[str, ...]) -> Figure:
    """A column for each of the first (β, γ): gradients, and times where they can be compared."""
    pairs = data["pairs"][:columns]
    size = (3.2 * columns + 2, 6.6)
    drawn, axes = plt.subplots(2, columns, figsize=size, sharex=True, sharey="row", squeeze=False)
    times = data["seconds"] / data["discrete_seconds"][:, None]
    for j, (beta, gamma) in enumerate(pairs):
        axes[0, j].set_title(f"β = {beta:g}, γ = {gamma:g}")
        for name, colour in zip(solvers, LINES, strict=False):
            i = list(data["solvers"]).index(name)
            style: dict[str, Any] = {"color": colour, "marker": "o" if i == 0 else "^" if name in SCIPY else "s"}
            style |= {"markersize": 5, "linewidth": 2.2 if i == 0 else 1.2, "label": str(name)}
            axes[0, j].loglog(data["errors"][i, j], data["gradients"][i, j], **style)
            if name in DIFFRAX:
                axes[1, j].loglog(data["errors"][i, j], times[i, j], **style)
        axes[1, j].axhline(1.0, color="0.5", linewidth=1, linestyle=":")
        axes[1, j].set_xlabel("error / distance moved")
    axes[0, 0].set_ylabel("gradients per iteration")
    axes[1, 0].set_ylabel("time / discrete optimizer")
    axes[0, 0].invert_xaxis()
    drawn.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(solvers))
    return drawn


if __name__ == "__main__":
    sys.exit(figure.main(__file__, __doc__, CONFIGS, compute, check, draw))
