"""Ratios of adamflow's times to those of a peer or a baseline, in turn in one run: medians, as a table and json.

Run it with `make bench`, or `python bench/run.py --out bench.json`, with the names of some groups of rows if not all
are wanted. A ratio below 1 means that adamflow is faster; in the rows of vector fields it is what an evaluation costs,
in gradients. Both sides are warm; the time of the first call, compilation included, stands in the last columns. Only
the rows of the group "first" are of first calls, each in a fresh process.
"""

import argparse
import dataclasses
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import diffrax
import equinox as eqx
import first_calls
import jax
import jax.numpy as jnp
import kadam
import looks
import numpy as np
import optax
import sweep_rows
from jax.flatten_util import ravel_pytree
from scipy.integrate import solve_ivp

import adamflow as af
from adamflow.analysis.stability.eigenvalues import dominant_of

jax.config.update("jax_enable_x64", True)

#: (β, γ) of the rows on the chain: v slow, fast with and without slow m, very slow.
PAIRS = ((0.999, 0.9), (0.95, 0.9), (0.95, 0.5), (0.9999, 0.5))


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


class Row(NamedTuple):
    """One comparison: what is timed, adamflow's side, the peer's, how often, its share of our work, our first call.

    `clock` returns the seconds of a side.
    """

    name: str
    ours: Callable[[], Any]
    peer: Callable[[], Any]
    repeats: int
    part: float = 1.0
    first: float | None = None
    clock: Callable[[Callable[[], Any]], float] = seconds


def measure(row: Row) -> dict[str, Any]:
    """Time both sides in turn, so that a change of the machine's speed hits both."""
    first_ours, first_peer = row.clock(row.ours) if row.first is None else row.first, row.clock(row.peer)
    times = [(row.clock(row.ours), row.clock(row.peer)) for _ in range(row.repeats)]
    ours, peer = (statistics.median(side) for side in zip(*times, strict=True))
    ratio = row.part * statistics.median(a / b for a, b in times)
    found = {
        "ours": ours,
        "peer": peer,
        "ratio": ratio,
        "first_ours": first_ours,
        "first_peer": first_peer,
        "part": row.part,
    }
    return {"name": row.name} | found


def discrete(dimension: int, steps: int, repeats: int) -> Row:
    """`iterate` with checks, rows and outcome, against a bare scan over optax.adam that keeps the last parameters."""
    problem, optimizer, peer = af.problems.chain(dimension), af.adam(1e-3), optax.adam(1e-3, b1=0.9, b2=0.999, eps=0.0)

    @jax.jit
    def scan() -> jax.Array:
        def step(carry: tuple, _: None) -> tuple[tuple, None]:
            params, state = carry
            updates, state = peer.update(jax.grad(problem.loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        start = (problem.params, peer.init(problem.params))
        return jax.lax.scan(step, start, length=steps)[0][0]

    def ours() -> Any:
        return af.iterate(optimizer, problem.loss, problem.params, steps, save_at=[0, steps]).params

    return Row(f"iterate, chain({dimension}), {steps} iterations / scan over optax", ours, scan, repeats)


def continuous(beta: float, gamma: float, repeats: int) -> Row:
    """`solve` by itself against diffrax with its default implicit solver, on the same flow and tolerance."""
    problem, flow = af.problems.chain(10), af.GouldTanakaFlow(af.adam(1e-3, beta=beta, gamma=gamma))

    @jax.jit
    def diffrax_alone() -> Any:
        return diffrax.diffeqsolve(
            flow.term(problem.loss),
            diffrax.Kvaerno5(),
            0.0,
            2000.0,
            1.0,
            flow.initial_state(problem.loss, problem.params),
            stepsize_controller=diffrax.PIDController(rtol=1e-4, atol=1e-6),
            max_steps=100_000,
        ).ys

    def ours() -> Any:
        return af.solve(flow, problem.loss, problem.params, 2000, save_at=[0, 2000], rtol=1e-4).params

    return Row(f"solve, chain(10), beta {beta}, gamma {gamma} / diffrax's Kvaerno5", ours, diffrax_alone, repeats)


def collocation(
    where: str,
    problem: af.Problem,
    numbers: tuple[float, float, float],
    steps: int,
    rtol: float = 1e-3,
    reference: tuple[diffrax.AbstractSolver, float] | None = None,
    repeats: int = 5,
    epsilon: float = 0.0,
    checked: float = 1.0,
) -> Row:
    """A run by collocation against a bare scan over the discrete step; the name says its gradients, and its error.

    The error is relative to the distance moved, against a diffrax solver at its rtol (and an atol far below v), over
    the first part of the run, `checked`: a reference for all of a long run would take longer than all other rows.
    """
    optimizer, saved = (
        af.adam(numbers[0], beta=numbers[1], gamma=numbers[2], epsilon=epsilon),
        np.linspace(0, steps, 21),
    )
    flow = af.GouldTanakaFlow(optimizer)

    # Parameters are arguments: XLA would take minutes to compute with constants what does not change.
    @jax.jit
    def ours(params: Any) -> af.Trajectory:
        return af.solve(flow, problem.loss, params, steps, save_at=saved, rtol=rtol, solver="collocation")

    @jax.jit
    def scan(params: Any) -> Any:
        def step(state: Any, n: jax.Array) -> tuple[Any, None]:
            return optimizer.step(problem.loss, state, n), None

        return jax.lax.scan(step, (params, optimizer.initial_state(params)), jnp.arange(steps))[0][0]

    start = time.perf_counter()
    run = jax.block_until_ready(ours(problem.params))
    first = time.perf_counter() - start
    if not run.outcome.successful:
        raise RuntimeError(f"collocation on {where}: {run.outcome}")
    name = f"collocation, {where}, eta, beta, gamma {numbers[0]:g}, {numbers[1]}, {numbers[2]}"
    name += f", epsilon {epsilon:g}" if epsilon else ""
    name += f": {int(run.stats.gradient_evaluations) / steps:.3f} gradients/iteration"
    if reference is None:
        name += ", unchecked"
    else:
        solver, tight = reference
        options = {"rtol": tight, "atol": min(1e-6 * tight, 1e-9), "solver": solver, "max_steps": 5_000_000}
        rows = saved[saved <= checked * steps]
        exact = af.solve(flow, problem.loss, problem.params, round(rows[-1]), save_at=rows, **options)
        if not exact.outcome.successful:
            raise RuntimeError(f"the reference of {where}: {exact.outcome}")
        first_rows = jax.tree.map(lambda leaf: leaf[: len(rows)], (run.iterations, run.params))
        begin = dataclasses.replace(run, **dict(zip(("iterations", "params"), first_rows, strict=True)))
        name += f", error {af.compare(exact, begin).max_relative_error:.0e}"
        name += f" (to iteration {round(rows[-1])})" if checked < 1 else ""
    sides = lambda: ours(problem.params).params, lambda: scan(problem.params)
    return Row(f"{name} / scan", *sides, repeats, first=first)


def chains() -> Iterator[Row]:
    """Collocation on chains of growing size, and with smaller learning rates at ηN = 2."""
    chain, slow, implicit = (
        af.problems.chain(10),
        (0.999, 0.9),
        (diffrax.Kvaerno5(root_finder=af.CHORD_ROOT_FINDER), 1e-10),
    )
    for pair in PAIRS:
        yield collocation("chain(10)", chain, (1e-3, *pair), 2000, reference=implicit)
    for eta in (1e-2, 1e-4, 1e-5):
        yield collocation("chain(10)", chain, (eta, *slow), round(2 / eta), reference=implicit if eta > 1e-5 else None)
    # With fast v an explicit method is bound by stability: a tolerance of 1e-6 takes 320,000 steps, 1e-8 2.6 million
    # (9e-10 between the two), and at (.95, .5) any takes more than a million.
    tolerances = dict(zip(PAIRS, (1e-10, 1e-6, None, 1e-10), strict=True))
    for size, repeats in ((1000, 11), (100_000, 5)):
        for pair in PAIRS:
            tight = tolerances[pair] if size == 1000 else None
            reference = None if tight is None else (diffrax.Dopri8(), tight)
            yield collocation(f"chain({size})", af.problems.chain(size), (1e-3, *pair), 2000, 1e-3, reference, repeats)


def networks() -> Iterator[Row]:
    """Collocation on networks at ηN = 1: digits, and a transformer with a cheap and with an expensive gradient."""
    slow = (0.999, 0.9)
    # Where ε = 0, v of coordinates that have arrived falls without end, and steps get short.
    for width, eta, epsilon in (
        *((width, eta, 0.0) for width in (32, 128) for eta in (1e-3, 1e-4)),
        *((32, 1e-5, epsilon) for epsilon in (0.0, 1e-8)),
    ):
        # Long runs are checked at a tolerance that is tight beside their errors, of a percent or so.
        reference = (diffrax.Dopri8(), 1e-10 if eta == 1e-3 else 1e-6)
        where, steps, repeats = f"digits, {width} units", round(1 / eta), 1 if eta == 1e-5 else 3
        network, checked = af.problems.mlp((width,)), 0.1 if eta == 1e-5 else 1.0
        yield collocation(where, network, (eta, *slow), steps, 1e-3, reference, repeats, epsilon, checked)
    for batch, eta in ((16, 1e-3), (64, 1e-3), (16, 1e-4)):
        problem = af.problems.char_transformer(layers=1, heads=4, width=64, context=32, batch_size=batch).flatten()
        where = f"transformer, {problem.params.size} parameters, {32 * batch} characters"
        checked, reference = 0.2 if eta == 1e-4 else 1.0, (diffrax.Tsit5(), 1e-4)
        yield collocation(where, problem, (eta, *slow), round(1 / eta), 1e-3, reference, 1, checked=checked)


def pairs(side: int) -> np.ndarray:
    """(β, γ) of a sweep, shape (side², 2): β from .9 to .9999, γ from .5 to .99."""
    beta, gamma = 1 - np.geomspace(0.1, 1e-4, side), 1 - np.geomspace(0.5, 0.01, side)
    return np.stack(np.meshgrid(beta, gamma), axis=-1).reshape(-1, 2)


def sweep(eta: float, side: int, saved: int = 1) -> Row:
    """Flows from one point with side × side pairs (β, γ) in one program, against the same of the optimizer."""
    problem, steps, lanes = af.problems.chain(10), round(2 / eta), jnp.asarray(pairs(side))
    save_at = np.linspace(steps / saved, steps, saved).astype(int)

    @jax.jit
    @jax.vmap
    def flows(lane: jax.Array) -> Any:
        flow = af.GouldTanakaFlow(af.adam(eta, beta=lane[0], gamma=lane[1]))
        return af.solve(flow, problem.loss, problem.params, steps, save_at=save_at, rtol=1e-3).params

    @jax.jit
    @jax.vmap
    def discrete_runs(lane: jax.Array) -> Any:
        return af.iterate(
            af.adam(eta, beta=lane[0], gamma=lane[1]), problem.loss, problem.params, steps, save_at=save_at
        ).params

    name = f"sweep, {side} x {side} (beta, gamma), chain(10), eta {eta:g}, {saved} saved, flows / iterate"
    return Row(name, lambda: flows(lanes), lambda: discrete_runs(lanes), 3)


def sweep_by_scipy(side: int, sample: int) -> Row:
    """Some lanes of the same sweep, one after the other, by SciPy's LSODA in ln v; a lane of ours is its share."""
    row, problem, lanes = sweep(1e-3, side), af.problems.chain(10), pairs(side)
    # A sample of both axes: one lane in each part of either.
    part, which = side // sample, np.arange(sample)
    chosen = lanes[(part * which + part // 2) * side + part * ((3 * which + 1) % sample) + part // 2]

    def field_of(pair: np.ndarray) -> tuple[Callable[..., np.ndarray], np.ndarray]:
        flow = af.GouldTanakaFlow(af.adam(1e-3, beta=pair[0], gamma=pair[1]))
        state = flow.initial_state(problem.loss, problem.params)
        coordinates = flow.coordinates(state)
        start, unravel = ravel_pytree(coordinates.encode(state))

        @jax.jit
        def field(time: Any, vector: Any) -> jax.Array:
            return ravel_pytree(coordinates.field(flow, problem.loss, time, unravel(vector)))[0]

        return lambda *at: np.asarray(field(*at)), np.asarray(start)

    runs = [field_of(pair) for pair in chosen]

    def theirs() -> list[Any]:
        found = [solve_ivp(field, (0, 2000), start, "LSODA", rtol=1e-3, atol=1e-5) for field, start in runs]
        if not all(run.success for run in found):
            raise RuntimeError(f"LSODA failed: {[run.message for run in found if not run.success]}")
        return [run.y for run in found]

    name = f"sweep of {side**2} lanes, flows / {len(lanes)} lanes by LSODA, rtol 1e-3 (timed: {len(runs)})"
    return Row(name, row.ours, theirs, 1, len(runs) / len(lanes))


def eigenvalues(name: str, model: Any, repeats: int) -> Row:
    """The dominant eigenvalues of 256 x 256 systems over (gamma, eta s) against NumPy's eigvals of the same."""
    gamma, curvature = (x.ravel() for x in np.meshgrid(np.linspace(0.0, 0.99, 256), np.geomspace(0.1, 1e3, 256)))
    records = jax.vmap(lambda g: af.adamw(1.0, gamma=g, weight_decay=0.1))(jnp.asarray(gamma) + 1e-3)
    matrices = af.analysis.linear_system(records, curvature, model=model)
    measure = "modulus" if model == "discrete" else "real part"

    def theirs() -> np.ndarray:
        values = np.linalg.eigvals(matrices)
        return np.abs(values).max(-1) if measure == "modulus" else np.real(values).max(-1)

    def ours() -> jax.Array:
        return dominant_of(matrices, measure)

    found = np.asarray(ours())
    measured, expected = np.abs(found) if measure == "modulus" else np.real(found), theirs()
    error = np.max(np.abs(measured - expected) / np.maximum(1.0, np.abs(expected)))
    if error > 1e-10:
        raise AssertionError(f"dominant eigenvalues of {name} differ from NumPy's by {error:.1e}, more than 1e-10")
    return Row(f"dominant eigenvalues, 256 x 256, {name} / numpy.linalg.eigvals", ours, theirs, repeats)


def evaluation(where: str, problem: af.Problem, flow: af.AbstractFlow, repeats: int) -> Row:
    """One vector field of a flow against one gradient: what an evaluation costs, in gradients."""
    state = flow.initial_state(problem.loss, problem.params)
    field = jax.jit(lambda state: flow.vector_field(0.0, state, problem.loss))
    gradient = jax.jit(jax.grad(problem.loss))
    name = f"vector field, {flow.name}, {where} / gradient"
    return Row(name, lambda: field(state), lambda: gradient(problem.params), repeats)


def evaluations(repeats: int) -> Iterator[Row]:
    """Gradient equivalents: by time, where `gradients_per_evaluation` of a flow counts without what XLA merges."""
    optimizer = af.adam(1e-3)
    small = af.problems.char_transformer(layers=1, heads=2, width=32, context=32, batch_size=8)
    # Order 5 compiles for a minute on a transformer.
    for where, problem, highest in (("perceptron", af.problems.mlp(), 5), ("transformer", small, 4)):
        flows = [af.ModifiedFlow(optimizer, order) for order in range(1, highest + 1)]
        flows += [af.InterpolatingFlow(optimizer, 2), af.MemorylessFlow(optimizer)]
        yield from (evaluation(where, problem, flow, repeats) for flow in flows)


def discretes() -> Iterator[Row]:
    """The discrete run by itself, small to large."""
    for dimension, steps, repeats in ((10, 2000, 20), (1000, 2000, 20), (100_000, 200, 5)):
        yield discrete(dimension, steps, repeats)


def spectra() -> Iterator[Row]:
    """Eigenvalues of the discrete step and of both flows."""
    yield eigenvalues("discrete step", "discrete", 20)
    yield eigenvalues("flow of order 1", af.GouldTanakaFlow(af.adam(1.0)), 20)
    yield eigenvalues("flow of order 2", af.GouldTanakaFlow(af.adam(1.0), order=2), 20)


def sweeps() -> Iterator[Row]:
    """Many lanes in one program."""
    yield from (sweep(eta, 32) for eta in (1e-3, 1e-4))
    yield sweep(1e-3, 16, saved=2000)
    yield sweep_by_scipy(32, 8)


def stochastic(paths: int, steps: int) -> Row:
    """Paths of a stochastic flow of Adam on a perceptron, at the covariance of the start, against noisy iterates."""
    problem, optimizer, key = af.problems.mlp((8,)), af.adam(1e-3, beta=0.99), jax.random.key(0)
    few = jax.tree.map(lambda leaf: leaf[:64], cast(Any, problem.loss).examples)
    loss = eqx.Partial(problem.loss, batch=few)
    noise = af.noise.covariance(problem.loss, problem.params, few, 8)
    flow = af.StochasticFlow(optimizer, noise)
    options: dict[str, Any] = {"key": key, "paths": paths, "save_at": [steps], "observe": lambda look: look.loss}

    def ours() -> Any:
        return flow.solve(loss, problem.params, steps, **options).observed

    def theirs() -> Any:
        return af.noise.discrete_paths(optimizer, loss, problem.params, steps, noise, **options).observed

    name = f"stochastic flow of Adam, digits, 8 units, {paths} paths, {steps} iterations / noisy iterates"
    return Row(name, ours, theirs, 1)


#: By name, what makes rows, each when it is its turn.
GROUPS: dict[str, Callable[[], Iterable[Row]]] = {
    # Each side of these runs in a process of its own and returns its seconds.
    "first": lambda: (Row(*row, clock=lambda side: side()) for row in first_calls.rows()),
    "iterate": discretes,
    "kadam": lambda: (Row(*row) for row in kadam.rows()),
    "eigenvalues": spectra,
    "solve": lambda: (continuous(beta, gamma, 5) for beta, gamma in PAIRS),
    "chains": chains,
    "networks": networks,
    "sweeps": sweeps,
    "af.sweep": lambda: (Row(*row) for row in sweep_rows.rows()),
    "fields": lambda: evaluations(20),
    "noise": lambda: [stochastic(1000, 60)],
    "looks": lambda: (Row(*row) for row in looks.rows()),
}


def write(out: Path, results: list[dict[str, Any]]) -> None:
    """All results so far, never half of them."""
    report = {"machine": platform.platform(), "jax": jax.__version__, "adamflow": af.__version__, "rows": results}
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1))
    partial.replace(out)


def markdown(results: Iterable[dict[str, Any]]) -> str:
    """The rows as a table for a page of docs/."""

    def short(value: float) -> str:
        return f"{1e3 * value:.3g} ms" if value < 1 else f"{value:.3g} s"

    lines = ["| | ratio | ours | peer | first call | the peer's |", "|---|---|---|---|---|---|"]
    for row in results:
        times = " | ".join(short(row[name]) for name in ("ours", "peer", "first_ours", "first_peer"))
        lines.append(f"| {row['name']} | {row['ratio']:.2f} | {times} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("groups", nargs="*", metavar="group", help=f"which rows, by default all: {', '.join(GROUPS)}")
    parser.add_argument("--out", type=Path, default=None, help="write the results there as json")
    parser.add_argument("--table", type=Path, default=None, help="only print the results of such a file as Markdown")
    given = parser.parse_args()
    if given.table is not None:
        print(markdown(json.loads(given.table.read_text())["rows"]))
        return
    out, groups = given.out, given.groups or list(GROUPS)
    if unknown := sorted(set(groups) - set(GROUPS)):
        parser.error(f"there are no groups {', '.join(unknown)}; take some of {', '.join(GROUPS)}")
    results = []
    print(f"{'':68} {'ratio':>7} {'ours':>10} {'peer':>10} {'first call':>11} {'peer':>7}")
    for row in (row for group in groups for row in GROUPS[group]()):
        r = measure(row)
        results.append(r)
        print(
            f"{r['name']:68} {r['ratio']:7.2f} {1e3 * r['ours']:7.2f} ms {1e3 * r['peer']:7.2f} ms "
            f"{r['first_ours']:9.2f} s {r['first_peer']:5.2f} s",
            flush=True,
        )
        if out is not None:
            write(out, results)


if __name__ == "__main__":
    main()
