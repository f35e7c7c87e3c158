"""What adamflow computes on a GPU, against the same on the CPU, and how long it takes beside a bare optax scan there.

`make gpu-check` runs it by the Python that is at hand, without an environment of its own: python3 with JAX, diffrax,
equinox, optax, optimistix, SciPy and xarray is enough, on a machine without network. matfree may be a wheel in `.whl/`.
On a machine without GPU it runs small and compares nothing, so that it works on the day when there is one.

It has four parts; the first two, which take under five minutes on a GPU, are made unless `--parts` names others:

- `checks`: every reading on both devices.
- `times`: single runs and sweeps, as ratios to a bare jitted scan over optax on the same device.
- `networks`: collocation and Tsit5 on networks, as ratios to the scan over the optimizer's step.
- `widths`: sweeps of flows with more and fewer lanes advanced together, from which the width on GPUs was chosen.

The exit status is 1 if a reading differs by more than its tolerance, or raises. Times decide nothing: they are printed
with the name of the device. What was measured so far is written after every line.
"""

import argparse
import functools
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), *map(str, (ROOT / ".whl").glob("matfree-*.whl"))]

import diffrax  # noqa: E402
import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

import adamflow as af  # noqa: E402
from adamflow.runs.collocation import batched_loop  # noqa: E402

jax.config.update("jax_enable_x64", True)

Reading = Callable[[], Any]

#: Relative differences of numbers that are computed by the same operations in another order.
SAME = 1e-9
#: Of runs with adaptive steps, whose steps may differ where a test of an error is close.
ADAPTIVE = 1e-4


def optimizer() -> af.Optimizer:
    return af.adamw(1e-3, beta=0.99, gamma=0.9, weight_decay=0.1)


def runs(problem: Any) -> dict[str, tuple[Reading, float]]:
    """Discrete and continuous runs by name, each with its tolerance."""

    def solved(flow: af.AbstractFlow, rtol: float = 1e-6, **options: Any) -> Reading:
        return lambda: af.solve(flow, problem.loss, problem.params, 200, rtol=rtol, **options).params

    slow = af.GouldTanakaFlow(optimizer())
    kvaerno = diffrax.Kvaerno5(root_finder=af.CHORD_ROOT_FINDER)
    steps: dict[str, Any] = {"solver": diffrax.Euler(), "step_size": 0.5}
    return {
        "iterate, AdamW": (lambda: af.iterate(optimizer(), problem.loss, problem.params, 200).params, SAME),
        "iterate, 3-Adam": (lambda: af.iterate(af.kadam(3, 1e-3), problem.loss, problem.params, 200).params, SAME),
        "flow of order 1, collocation": (solved(slow), ADAPTIVE),
        "flow of order 1, Tsit5": (solved(slow, solver=diffrax.Tsit5()), ADAPTIVE),
        "flow of order 1, Kvaerno5": (solved(slow, solver=kvaerno), ADAPTIVE),
        "flow of order 2, auto": (solved(af.GouldTanakaFlow(optimizer(), order=2)), ADAPTIVE),
        "modified flow of order 2": (solved(af.ModifiedFlow(optimizer(), order=2)), ADAPTIVE),
        "interpolating flow of order 2": (solved(af.InterpolatingFlow(optimizer(), order=2)), ADAPTIVE),
        "two-branch flow": (solved(af.TwoBranchFlow(optimizer()), **steps), SAME),
    }


def analyses(problem: Any) -> dict[str, tuple[Reading, float]]:
    """Results of the analysis by name, each with its tolerance."""
    record, weights = optimizer(), jnp.linspace(0.5, 2.0, problem.params.size)

    def lanes() -> Any:
        def final(rate: jax.Array) -> Any:
            record = af.adam(rate, beta=0.99, gamma=0.9)
            return af.iterate(record, problem.loss, problem.params, 100, save_at=[100]).params

        return jax.vmap(final)(jnp.geomspace(1e-4, 1e-2, 64))

    def flows() -> Any:
        def final(beta: jax.Array) -> Any:
            flow = af.GouldTanakaFlow(af.adam(1e-3, beta=beta, gamma=0.9))
            return af.solve(flow, problem.loss, problem.params, 100, save_at=[100], rtol=1e-5).params

        # More than are advanced at once, on either device.
        return jax.vmap(final)(1 - jnp.geomspace(1e-1, 1e-3, 1200))

    def spectrum() -> Any:
        state = af.iterate(record, problem.loss, problem.params, 50, save_at=[50]).final_state
        return jnp.abs(af.analysis.jacobian_spectrum(record, problem.loss, state, iteration=50, count=2).values)

    return {
        "64 lanes of iterate": (lanes, SAME),
        "1200 lanes of the flow of order 1": (flows, ADAPTIVE),
        "preconditioned sharpness": (
            lambda: af.analysis.preconditioned_sharpness(problem.loss, problem.params, weights).value,
            SAME,
        ),
        "phase diagram": (
            lambda: (
                af.analysis.phase_diagram(
                    af.adam, {"learning_rate": 1e-3, "gamma": np.linspace(0.1, 0.9, 5)}, np.geomspace(1e2, 1e5, 8)
                ).growth.values
            ),
            SAME,
        ),
        "spectrum of the step": (spectrum, 1e-6),
    }


def single_precision(_: Any) -> dict[str, tuple[Reading, float]]:
    """Gradients of networks in single precision, whose products of matrices GPUs may take in less."""
    text = af.problems.char_transformer(layers=1, heads=4, width=64, context=32, batch_size=16)
    device = jnp.zeros(()).device
    networks = {"perceptron": af.problems.mlp((32,)), "transformer": text.flatten()}
    readings = {}
    for name, network in networks.items():
        # The data of a network may stay on the device on which they were read first.
        arrays, rest = eqx.partition(network, eqx.is_array)
        network = eqx.combine(jax.device_put(arrays, device), rest)
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), network.params)

        def gradient(precision: str, network: Any = network, params: Any = params) -> Any:
            with jax.default_matmul_precision(precision):
                return jax.grad(network.loss)(params)

        for precision, tolerance in {"default": 1e-3, "highest": 1e-5}.items():
            readings[f"gradient, {name}, float32, {precision}"] = functools.partial(gradient, precision), tolerance
    return readings


def torch_reading() -> float | None:
    """The largest relative difference of `KAdam` on a CUDA device from the CPU; `None` without PyTorch or CUDA."""
    try:
        import torch  # pyright: ignore[reportMissingImports]

        from adamflow.torch import KAdam
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None

    def trained(device: str) -> np.ndarray:
        curvatures = torch.arange(1.0, 9.0, dtype=torch.float64, device=device)
        params = torch.ones(8, dtype=torch.float64, device=device, requires_grad=True)
        stepper = KAdam([params], lr=1e-2, k=2)
        for _ in range(100):
            stepper.zero_grad()
            (0.5 * (curvatures * params**2).sum()).backward()
            stepper.step()
        return params.detach().cpu().numpy()

    return difference(trained("cuda"), trained("cpu"))


def difference(found: Any, expected: Any) -> float:
    """The largest difference, relative to the largest magnitude of what is expected; inf where one is not finite."""
    worst = 0.0
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        if one.shape != other.shape or not (np.isfinite(one).all() and np.isfinite(other).all()):
            return np.inf
        scale = np.max(np.abs(other), initial=0.0) or 1.0
        worst = max(worst, float(np.max(np.abs(one - other), initial=0.0) / scale))
    return worst


def checks(device: Any, only: str = "") -> Iterator[dict[str, Any]]:
    """Every reading of which the name has a word, on the device and on the CPU, several at once: they compile."""
    host = jax.devices("cpu")[0]

    def reading(make: Callable[[Any], dict[str, tuple[Reading, float]]], name: str) -> dict[str, Any]:
        results, spent, tolerance = [], [], SAME
        # On a machine without GPU once is enough: that it runs.
        for where in dict.fromkeys((device, host)):
            start = time.perf_counter()
            try:
                with jax.default_device(where):
                    call, tolerance = make(af.problems.chain(6))[name]
                    found = call()
                    arrays = [leaf for leaf in jax.tree.leaves(found) if isinstance(leaf, jax.Array)]
                    elsewhere = {at for leaf in arrays for at in leaf.devices()} - {where}
                    if elsewhere:
                        raise RuntimeError(f"computed on {elsewhere}")
                    results.append(jax.device_get(found))
            except Exception:
                return {"name": name, "error": f"on {where}: {traceback.format_exc()}", "holds": False}
            spent.append(time.perf_counter() - start)
        return judged(name, difference(results[0], results[-1]), tolerance) | dict(
            zip(("first_seconds", "first_host_seconds"), spent, strict=False)
        )

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        makes = (runs, analyses, single_precision)
        names = [(make, name) for make in makes for name in make(af.problems.chain(6)) if only in name]
        yield from pool.map(lambda one: reading(*one), names)
    error = torch_reading() if only in "KAdam of PyTorch" else None
    if error is not None:
        yield judged("KAdam of PyTorch", error, SAME)


def judged(name: str, error: float, tolerance: float) -> dict[str, Any]:
    return {"name": name, "difference": error, "tolerance": tolerance, "holds": bool(error <= tolerance)}


def seconds(function: Reading, repeats: int = 3) -> float:
    """The median time of a call, after one that compiles."""
    jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def quadratic(curvatures: jax.Array) -> Callable[[jax.Array], jax.Array]:
    return lambda params: 0.5 * jnp.sum(curvatures * params**2)


def bare_scan(loss: Any, params: jax.Array, rate: Any, steps: int) -> jax.Array:
    """The last parameters of Adam by optax alone, in one scan."""
    adam = optax.adam(rate, b1=0.9, b2=0.999, eps=1e-8)

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        params, state = carry
        updates, state = adam.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, adam.init(params)), length=steps)[0][0]


def times(device: Any, small: bool) -> Iterator[dict[str, Any]]:
    """Times of one run at several sizes, and of many small ones, over those of a bare scan on the same device."""
    sizes = (10_000,) if small else (10**4, 10**6, 10**8)
    lanes = (100, 1000) if small else (1000, 10**5, 10**6)
    steps = 50 if small else 200
    with jax.default_device(device):
        for size in sizes:
            yield one_run(size, steps)
        for count in lanes:
            yield many_runs(count, steps)
        for count in lanes[:2]:
            yield many_flows(count)


def one_run(size: int, steps: int) -> dict[str, Any]:
    single = jnp.float32
    params, curvatures = jnp.ones(size, single), jnp.linspace(0.1, 1.0, size, dtype=single)
    record = af.adam(single(1e-3), beta=single(0.999), gamma=single(0.9), epsilon=single(1e-8))

    # Parameters and curvatures are arguments: XLA would take minutes to compute with constants what does not change.
    @jax.jit
    def bare(params: jax.Array, curvatures: jax.Array) -> jax.Array:
        return bare_scan(quadratic(curvatures), params, 1e-3, steps)

    @jax.jit
    def ours(params: jax.Array, curvatures: jax.Array) -> Any:
        return af.iterate(record, quadratic(curvatures), params, steps, save_at=[steps]).params

    name = f"iterate, {size:.0e} parameters, {steps} iterations, float32"
    return row(name, lambda: ours(params, curvatures), lambda: bare(params, curvatures))


def many_runs(count: int, steps: int) -> dict[str, Any]:
    problem, rates = af.problems.chain(10), jnp.geomspace(1e-4, 1e-2, count)

    @jax.jit
    @jax.vmap
    def ours(rate: jax.Array) -> Any:
        record = af.adam(rate, epsilon=1e-8)
        return af.iterate(record, problem.loss, problem.params, steps, save_at=[steps]).params

    @jax.jit
    @jax.vmap
    def bare(rate: jax.Array) -> Any:
        return bare_scan(problem.loss, problem.params, rate, steps)

    name = f"sweep of iterate, {count:.0e} lanes of chain(10), {steps} iterations"
    return row(name, lambda: ours(rates), lambda: bare(rates))


def many_flows(count: int, steps: int = 2000) -> dict[str, Any]:
    problem, pairs, flows = af.problems.chain(10), jnp.asarray(lanes_of(count)), sweep_of_flows(steps)

    @jax.jit
    @jax.vmap
    def discrete(pair: jax.Array) -> Any:
        record = af.adam(1e-3, beta=pair[0], gamma=pair[1])
        return af.iterate(record, problem.loss, problem.params, steps, save_at=[steps]).params

    name = f"sweep of flows over iterate, {count:.0e} lanes of chain(10), {steps} iterations"
    return row(name, lambda: flows(pairs), lambda: discrete(pairs), repeats=1)


def sweep_of_flows(steps: int) -> Callable[[jax.Array], Any]:
    """The end of a flow on chain(10) for each (β, γ)."""
    problem = af.problems.chain(10)

    def end(pair: jax.Array) -> Any:
        flow = af.GouldTanakaFlow(af.adam(1e-3, beta=pair[0], gamma=pair[1]))
        return af.solve(flow, problem.loss, problem.params, steps, save_at=[steps], rtol=1e-3).params

    return jax.jit(jax.vmap(end))


def lanes_of(count: int) -> np.ndarray:
    """(β, γ) of a sweep, shape (count, 2): β from .9 to .9999, γ from .5 to .99, in no order."""
    beta_share, gamma_share = np.random.default_rng(0).random((2, count))
    return np.stack([1 - 0.1 ** (1 + 3 * beta_share), 1 - 0.5 * 0.02**gamma_share], axis=-1)


def widths(device: Any, small: bool) -> Iterator[dict[str, Any]]:
    """A sweep of flows with so many lanes advanced together, at first and as fewer are left, over all until the end."""
    sweeps: dict[int, tuple[tuple[int, ...], ...]] = {256: ((64, 16),)}
    if not small:
        sweeps = {1024: ((1024, 128), (64, 16)), 16_384: ((16_384, 2048, 256), (2048, 256))}
    chosen = batched_loop.batch_widths
    try:
        with jax.default_device(device):
            for count, some in sweeps.items():
                peer = None
                for schedule in ((count,), *some):
                    batched_loop.batch_widths = lambda carry, lanes, schedule=schedule: schedule
                    # What was traced with other widths is in JAX's caches.
                    jax.clear_caches()
                    flows, pairs = sweep_of_flows(2000), jnp.asarray(lanes_of(count))
                    start = time.perf_counter()
                    jax.block_until_ready(flows(pairs))
                    first, start = time.perf_counter() - start, time.perf_counter()
                    jax.block_until_ready(flows(pairs))
                    spent = time.perf_counter() - start
                    peer = peer or spent
                    name = f"sweep of {count} flows on chain(10), 2000 iterations, widths {schedule} / ({count},)"
                    times = {"seconds": spent, "peer_seconds": peer, "ratio": spent / peer, "first_seconds": first}
                    yield {"name": name} | times
    finally:
        batched_loop.batch_widths = chosen


class Case(NamedTuple):
    """A flow on a problem, compiled: by a solver, and the scan of the optimizer's step."""

    name: str
    steps: int
    solve: Callable[[], Any]
    scan: Callable[[], Any]
    compile_seconds: float


def networks(device: Any, small: bool) -> Iterator[dict[str, Any]]:
    """Flows on a chain and on networks by collocation and by Tsit5 to ηn = 1, over the scan of the optimizer's step."""
    problems: dict[str, Any] = {"chain(10)": af.problems.chain(10)}
    if not small:
        text = af.problems.char_transformer(layers=1, heads=4, width=64, context=32, batch_size=64)
        problems["chain(100000)"] = af.problems.chain(100_000)
        problems["digits, 128 units"] = af.problems.mlp((128,))
        problems["transformer, 65152 parameters, 2048 characters"] = text.flatten()
    solvers = {"collocation": "collocation", "Tsit5": diffrax.Tsit5()}
    cases = [
        (f"{word}, {where}, eta 0.001", problem, 1e-3, solver)
        for where, problem in problems.items()
        for word, solver in solvers.items()
    ]

    def compile_case(case: tuple[str, Any, float, Any]) -> Case:
        with jax.default_device(device):
            return compiled(*case)

    # Compiled side by side, timed one after the other.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        ready = list(pool.map(compile_case, cases))
    for case in ready:
        _, gradients, code = jax.block_until_ready(case.solve())
        ours, peer = seconds(case.solve, repeats=1), seconds(case.scan, repeats=1)
        name = f"{case.name}: {int(gradients) / case.steps:.3f} gradients/iteration"
        name += "" if int(code) == 0 else f", ended with code {int(code)}"
        times = {"seconds": ours, "peer_seconds": peer, "ratio": ours / peer, "compile_seconds": case.compile_seconds}
        yield {"name": name} | times


def compiled(name: str, problem: Any, rate: float, solver: Any) -> Case:
    """A run by a solver to ηn = 1, compiled, and the scan."""
    steps, record = round(1 / rate), af.adam(rate, beta=0.999, gamma=0.9)
    flow = af.GouldTanakaFlow(record)

    def solve(params: Any) -> Any:
        run = af.solve(flow, problem.loss, params, steps, save_at=[steps], rtol=1e-3, solver=solver)
        return run.params, run.stats.gradient_evaluations, run.outcome.code

    def scan(params: Any) -> Any:
        def step(state: Any, n: jax.Array) -> tuple[Any, None]:
            return record.step(problem.loss, state, n), None

        return jax.lax.scan(step, (params, record.initial_state(params)), jnp.arange(steps))[0][0]

    start = time.perf_counter()
    solve_now = jax.jit(solve).lower(problem.params).compile()
    spent = time.perf_counter() - start
    scan_now = jax.jit(scan).lower(problem.params).compile()
    return Case(name, steps, lambda: solve_now(problem.params), lambda: scan_now(problem.params), spent)


def row(name: str, ours: Reading, peer: Reading, repeats: int = 3) -> dict[str, Any]:
    ours_seconds, peer_seconds = seconds(ours, repeats), seconds(peer, repeats)
    return {
        "name": name,
        "seconds": ours_seconds,
        "peer_seconds": peer_seconds,
        "ratio": ours_seconds / peer_seconds,
    }


PARTS: dict[str, Callable[[Any, bool], Iterator[dict[str, Any]]]] = {
    "times": times,
    "networks": networks,
    "widths": widths,
}


def line(found: dict[str, Any]) -> str:
    """What one row says, for people."""
    if "error" in found:
        return f"  {found['name']:36} RAISES {found['error']}"
    if "difference" in found:
        word = "holds" if found["holds"] else "DIFFERS"
        return f"  {found['name']:36} {found['difference']:8.1e} (at most {found['tolerance']:.0e}): {word}"
    first = f", first call {found['first_seconds']:.1f} s" if "first_seconds" in found else ""
    return f"  {found['name']:84} {found['seconds']:9.4f} s, ratio {found['ratio']:7.2f}{first}"


def main() -> int:
    """Print the tables, write them as json if asked, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the tables as json to this file")
    parser.add_argument("--parts", nargs="+", choices=("checks", *PARTS), default=("checks", "times"))
    parser.add_argument("--only", default="", metavar="WORD", help="of the checks, those with it in their name")
    flags = parser.parse_args()
    device = jax.devices()[0]
    small = device.platform == "cpu"
    tables: dict[str, Any] = {"device": device.device_kind, "jax": jax.__version__}
    print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}, adamflow {af.__version__}", flush=True)
    for part in flags.parts:
        start, tables[part] = time.perf_counter(), []
        for found in checks(device, flags.only) if part == "checks" else PARTS[part](device, small):
            tables[part].append(found)
            print(line(found), flush=True)
            if flags.out is not None:
                write(flags.out, tables)
        print(f"  {part}: {time.perf_counter() - start:.0f} s", flush=True)
    found = tables.get("checks", [])
    failed = [one["name"] for one in found if not one["holds"]]
    if found:
        print(f"{len(found) - len(failed)} of {len(found)} readings agree" + (f"; not {failed}" if failed else ""))
    return int(bool(failed))


def write(out: Path, tables: dict[str, Any]) -> None:
    """The tables as json, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(tables, indent=2, default=float) + "\n")
    partial.replace(out)


if __name__ == "__main__":
    sys.exit(main())
