"""The rule of docs/which-flow.md on ten real networks: how far flows are from the iterates, and where they fail.

    python bench/which_flow.py                        # the table, in Markdown
    python bench/which_flow.py --networks 0,3 --learning-rates 1e-2

Adam with β = .999 and γ = .9, 200 iterations on the full batch in float32, rtol as by default. Errors are the largest
distance from the iterates over the saved iterations, over the largest distance that these moved. The last columns are
the largest preconditioned sharpness η·s of the saved iterates, the first of them at which it is above 38, the edge of
stability, and the gradients that the flow of order 2 took, where the optimizer took 200. The default settings take 15
minutes on 2 slow cores.
"""

import argparse
import time
import warnings
from collections.abc import Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from networks import NETWORKS, Network

import adamflow as af

STEPS = 200
SAVED = np.arange(0, STEPS + 1, 8)
#: Attempted steps after which a run gives up; those of good runs take about 60.
MAX_STEPS = 500
LEARNING_RATES = (1e-2, 3e-3, 1e-3)
HEADER = (
    "| network | parameters | η | order 2 | order 2 from 0 | order 1 | largest η·s | edge passed at | gradients |",
    "|---|---|---|---|---|---|---|---|---|",
)


def distance(reference: Any, run: Any, initial: Any) -> float:
    """The largest distance over the rows of `run`, over the largest distance that the reference moved."""
    count = len(jax.tree.leaves(run)[0])

    def norms(rows: Any, others: Any) -> np.ndarray:
        pairs = zip(jax.tree.leaves(rows), jax.tree.leaves(others), strict=True)
        squares = [np.sum((np.asarray(a)[:count] - np.asarray(b)) ** 2, axis=tuple(range(1, a.ndim))) for a, b in pairs]
        return np.sqrt(np.sum(squares, axis=0))

    still = jax.tree.map(lambda leaf: leaf[None], initial)
    return float(np.max(norms(reference, run)) / np.max(norms(jax.tree.map(lambda r: r[:count], reference), still)))


def described(run: af.Trajectory, reference: Any, initial: Any) -> str:
    """The error of a run as the table shows it, or where and how it failed."""
    if not run.outcome.successful:
        return f"{run.outcome.name} at {float(run.outcome.last_valid_iteration):.0f}"
    return f"{distance(reference, run.params, initial):.1e}"


def sharpness_of(optimizer: af.Optimizer, network: Network) -> str:
    """Two cells of the table: the largest η·s of the saved iterates, and the first of these beyond its edge."""
    loss, params = network
    observe = af.analysis.sharpness_observer(optimizer, loss, iterations=24)
    run = af.iterate(optimizer, loss, params, STEPS, save_at=SAVED, observe=observe)
    scaled = float(optimizer.learning_rate) * np.asarray(run.observed.value)
    beyond = np.flatnonzero(scaled > float(optimizer.learning_rate * af.analysis.critical_curvature(optimizer)))
    return f"{scaled.max():.1f} | {SAVED[beyond[0]] if beyond.size else 'never'}"


def rows_of(name: str, network: Network, learning_rates: Iterable[float]) -> Iterable[str]:
    """The rows of the table of one network."""
    loss, params = network
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    for learning_rate in learning_rates:
        optimizer = af.adam(learning_rate, beta=0.999, gamma=0.9)
        iterates = af.iterate(optimizer, loss, params, STEPS, save_at=SAVED)
        cells, runs = [], []
        choices: tuple[tuple[int, Literal["auto"] | None], ...] = ((2, "auto"), (2, None), (1, "auto"))
        for order, start in choices:
            flow = af.ModifiedFlow(optimizer, order=order)
            runs.append(af.solve(flow, loss, params, STEPS, save_at=SAVED, start=start, max_steps=MAX_STEPS))
            cells.append(described(runs[-1], iterates.params, params))
        costs = f"{sharpness_of(optimizer, network)} | {runs[0].stats.gradient_evaluations}"
        yield f"| {name} | {size} | {learning_rate:.0e} | {' | '.join(cells)} | {costs} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Hold the rule of docs/which-flow.md against ten networks.")
    parser.add_argument("--networks", help="their places in the list, from 0; by default all")
    parser.add_argument("--learning-rates", help=f"by default {','.join(map(str, LEARNING_RATES))}")
    arguments = parser.parse_args()
    names = list(NETWORKS)
    if arguments.networks:
        names = [names[int(place)] for place in arguments.networks.split(",")]
    rates = LEARNING_RATES
    if arguments.learning_rates:
        rates = tuple(float(rate) for rate in arguments.learning_rates.split(","))
    started = time.perf_counter()
    print(*HEADER, sep="\n", flush=True)
    for name in names:
        # A run that ends before its first saved iteration says so; the table says it too.
        with warnings.catch_warnings(action="ignore"):
            for row in rows_of(name, NETWORKS[name](), rates):
                print(row, flush=True)
    print(f"\n{time.perf_counter() - started:.0f} seconds, jax {jax.__version__}, {jnp.float32.__name__}")


if __name__ == "__main__":
    main()
