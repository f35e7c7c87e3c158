"""What adamflow computes on a GPU, against the same on the CPU, and how long it takes beside a bare optax scan there.

`make gpu-check` runs it by the Python that is at hand, without an environment of its own: python3 with JAX, diffrax,
equinox, optax, optimistix, SciPy and xarray is enough, on a machine without network. matfree may be a wheel in `.whl/`.
On a machine without GPU it runs small, CPU against CPU, so that it works on the day when there is one.

The exit status is 1 if a number differs by more than its tolerance. Times decide nothing: they are printed with the
name of the device, as ratios to a bare jitted scan over optax on the same device.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), *map(str, (ROOT / ".whl").glob("matfree-*.whl"))]

import diffrax  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

import adamflow as af  # noqa: E402

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
        "two-branch flow": (solved(af.TwoBranchFlow(optimizer()), **steps), ADAPTIVE),
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

        return jax.vmap(final)(1 - jnp.geomspace(1e-1, 1e-3, 16))

    def spectrum() -> Any:
        state = af.iterate(record, problem.loss, problem.params, 50, save_at=[50]).final_state
        return jnp.abs(af.analysis.jacobian_spectrum(record, problem.loss, state, iteration=50, count=2).values)

    return {
        "64 lanes of iterate": (lanes, SAME),
        "16 lanes of the flow of order 1": (flows, ADAPTIVE),
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
    """The largest difference, relative to the largest magnitude of what is expected."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    worst = 0.0
    for one, other in pairs:
        one, other = np.asarray(one), np.asarray(other)
        scale = np.max(np.abs(other), initial=0.0) or 1.0
        worst = max(worst, float(np.max(np.abs(one - other), initial=0.0)) / scale)
    return worst


def check(device: Any) -> Iterator[dict[str, Any]]:
    """Every reading on the device and on the CPU."""
    host = jax.devices("cpu")[0]
    for make in (runs, analyses):
        for name in make(af.problems.chain(6)):
            results = []
            for where in (device, host):
                with jax.default_device(where):
                    reading, tolerance = make(af.problems.chain(6))[name]
                    results.append(jax.device_get(reading()))
            error = difference(*results)
            yield {"name": name, "difference": error, "tolerance": tolerance, "holds": error <= tolerance}
    error = torch_reading()
    if error is not None:
        yield {"name": "KAdam of PyTorch", "difference": error, "tolerance": SAME, "holds": error <= SAME}


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


def times(device: Any, sizes: tuple[int, ...], lanes: tuple[int, ...], steps: int) -> Iterator[dict[str, Any]]:
    """Times of one run at several sizes, and of many small ones, over those of a bare scan on the same device."""
    single = jnp.float32
    with jax.default_device(device):
        for size in sizes:
            loss = quadratic(jnp.linspace(0.1, 1.0, size, dtype=single))
            params = jnp.ones(size, single)
            record = af.adam(single(1e-3), beta=single(0.999), gamma=single(0.9), epsilon=single(1e-8))
            bare = jax.jit(lambda params, loss=loss: bare_scan(loss, params, 1e-3, steps))

            def run(loss: Any = loss, params: jax.Array = params, record: Any = record) -> Any:
                return af.iterate(record, loss, params, steps, save_at=[steps]).params

            peer = seconds(lambda bare=bare, params=params: bare(params))
            yield row(f"iterate, {size:.0e} parameters, {steps} iterations", seconds(run), peer)
        problem = af.problems.chain(10)
        for count in lanes:
            rates = jnp.geomspace(1e-4, 1e-2, count)

            @jax.jit
            @jax.vmap
            def sweep(rate: jax.Array) -> Any:
                record = af.adam(rate, epsilon=1e-8)
                return af.iterate(record, problem.loss, problem.params, steps, save_at=[steps]).params

            @jax.jit
            @jax.vmap
            def bare_sweep(rate: jax.Array) -> Any:
                return bare_scan(problem.loss, problem.params, rate, steps)

            ours, peer = seconds(lambda: sweep(rates)), seconds(lambda: bare_sweep(rates))  # noqa: B023
            yield row(f"sweep of iterate, {count:.0e} lanes of chain(10), {steps} iterations", ours, peer)
        for count in lanes[:2]:
            betas = 1 - jnp.geomspace(1e-1, 1e-3, count)

            @jax.jit
            @jax.vmap
            def flows(beta: jax.Array) -> Any:
                flow = af.GouldTanakaFlow(af.adam(1e-3, beta=beta, gamma=0.9))
                return af.solve(flow, problem.loss, problem.params, 2000, save_at=[2000], rtol=1e-3).params

            @jax.jit
            @jax.vmap
            def discrete(beta: jax.Array) -> Any:
                record = af.adam(1e-3, beta=beta, gamma=0.9)
                return af.iterate(record, problem.loss, problem.params, 2000, save_at=[2000]).params

            ours, peer = seconds(lambda: flows(betas)), seconds(lambda: discrete(betas))  # noqa: B023
            yield row(f"sweep of flows over iterate, {count:.0e} lanes of chain(10), 2000 iterations", ours, peer)


def row(name: str, ours: float, peer: float) -> dict[str, Any]:
    return {"name": name, "seconds": ours, "peer_seconds": peer, "ratio": ours / peer}


def main() -> int:
    """Print both tables, write them as json if asked, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the tables as json to this file")
    parser.add_argument("--no-times", action="store_true", help="check numbers only")
    flags = parser.parse_args()
    device = jax.devices()[0]
    small = device.platform == "cpu"
    print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}, adamflow {af.__version__}", flush=True)
    checks, measured = [], []
    for found in check(device):
        checks.append(found)
        word = "holds" if found["holds"] else "DIFFERS"
        print(f"  {found['name']:36} {found['difference']:8.1e} (at most {found['tolerance']:.0e}): {word}", flush=True)
    if not flags.no_times:
        sizes, lanes, steps = (
            ((10_000,), (100, 1000), 50) if small else ((10**4, 10**6, 10**8), (1000, 10**5, 10**6), 200)
        )
        for found in times(device, sizes, lanes, steps):
            measured.append(found)
            print(f"  {found['name']:72} {found['seconds']:9.4f} s, ratio {found['ratio']:6.2f}", flush=True)
    if flags.out is not None:
        tables = {"device": device.device_kind, "jax": jax.__version__, "checks": checks, "times": measured}
        with contextlib.suppress(FileExistsError):
            flags.out.parent.mkdir(parents=True)
        flags.out.write_text(json.dumps(tables, indent=2) + "\n")
    failed = [found["name"] for found in checks if not found["holds"]]
    print(f"{len(checks) - len(failed)} of {len(checks)} readings agree" + (f"; not {failed}" if failed else ""))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
