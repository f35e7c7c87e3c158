"""Rows of `bench/run.py`: what a user waits for at the first call, compilation included, each in a fresh process."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable

#: What a row holds: its name, adamflow's side, the peer's, and how often both are timed. Sides return their seconds.
Fields = tuple[str, Callable[[], float], Callable[[], float], int]

_SETUP = """
import jax
jax.config.update("jax_enable_x64", True)
import diffrax
import jax.numpy as jnp
import numpy as np
import optax
import adamflow as af
problem, optimizer, peer = af.problems.chain(10), af.adam(1e-3), optax.adam(1e-3, b1=0.9, b2=0.999, eps=0.0)
flow, second = af.GouldTanakaFlow(optimizer), af.GouldTanakaFlow(optimizer, order=2)
saved = np.linspace(0, 2000, 21)
jax.block_until_ready(problem.params)

def scan():
    def step(carry, _):
        params, state = carry
        updates, state = peer.update(jax.grad(problem.loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    start = (problem.params, peer.init(problem.params))
    return jax.jit(lambda start: jax.lax.scan(step, start, length=2000)[0][0])(start)

def bare(params, flow=flow):
    return diffrax.diffeqsolve(
        flow.term(problem.loss), diffrax.Tsit5(), 0.0, 2000.0, 1.0, flow.initial_state(problem.loss, params),
        saveat=diffrax.SaveAt(ts=jnp.asarray(saved)), max_steps=100_000,
        stepsize_controller=diffrax.PIDController(rtol=1e-3, atol=1e-6),
    ).ys

def tsit5(flow=flow):
    return jax.jit(lambda params: bare(params, flow))(problem.params)

def solve(flow=flow, params=problem.params, **options):
    return af.solve(flow, problem.loss, params, 2000, save_at=saved, **options).params
"""

#: The smallest program that jax compiles.
_SMALLEST = "jax.jit(lambda x: 2 * x + 1)(problem.params)"

#: By name, the statement of adamflow and that of the peer, both after the setup.
_CALLS = {
    "iterate, chain(10), 2000 iterations / scan over optax": (
        "af.iterate(optimizer, problem.loss, problem.params, 2000, save_at=[0, 2000]).params",
        "scan()",
    ),
    "solve, chain(10) / bare Tsit5 of diffrax": ("solve()", "tsit5()"),
    "solve by Tsit5, chain(10) / bare Tsit5": ("solve(solver=diffrax.Tsit5())", "tsit5()"),
    "solve by Kvaerno5, chain(10) / bare Tsit5": (
        "solve(solver=diffrax.Kvaerno5(root_finder=af.CHORD_ROOT_FINDER))",
        "tsit5()",
    ),
    "solve of ModifiedFlow of order 2, chain(10) / bare Tsit5": (
        "solve(af.ModifiedFlow(optimizer, 2))",
        "tsit5(af.ModifiedFlow(optimizer, 2))",
    ),
    "derivative of solve, chain(10) / of bare Tsit5": (
        "jax.jit(jax.grad(lambda params: jnp.sum(solve(params=params)[-1] ** 2)))(problem.params)",
        "jax.jit(jax.grad(lambda params: jnp.sum(bare(params).params[-1] ** 2)))(problem.params)",
    ),
    "critical_curvature, Adam / jit of 2x + 1": ("af.analysis.critical_curvature(optimizer)", _SMALLEST),
    "critical_curvature, 3-Adam / jit of 2x + 1": ("af.analysis.critical_curvature(af.kadam(3, 1e-3))", _SMALLEST),
    "critical_curvature, flow of order 2 / jit of 2x + 1": (
        "af.analysis.critical_curvature(optimizer, model=second)",
        _SMALLEST,
    ),
    "linear_stability, Adam / jit of 2x + 1": ("af.analysis.linear_stability(optimizer, 3800.0)", _SMALLEST),
    "bounded_update_region, 50 x 50 / jit of 2x + 1": (
        "af.analysis.bounded_update_region(beta=np.linspace(0.9, 0.99, 50), gamma=np.linspace(0.5, 0.9, 50))",
        _SMALLEST,
    ),
    "level_curve / jit of 2x + 1": ("af.analysis.level_curve(50, beta=0.999, gamma=0.9)", _SMALLEST),
    "normal_curve / jit of 2x + 1": ("af.analysis.normal_curve(50, beta=0.999, gamma=0.9)", _SMALLEST),
    "adaptive_edge / jit of 2x + 1": ("af.analysis.adaptive_edge(0.9)", _SMALLEST),
    "two_cycle / jit of 2x + 1": ("af.analysis.two_cycle(0.1, beta=0.999, gamma=0.9)", _SMALLEST),
}


def first_seconds(setup: str, statement: str) -> float:
    """The seconds that a statement takes in a fresh process after a setup, without a cache of compiled programs."""
    program = f"""{setup}
import time
start = time.perf_counter()
result = {statement}
if "jax" in globals():
    jax.block_until_ready(result)
print(time.perf_counter() - start)
"""
    # An installed package has its bytecode, which is not to be compiled anew at each import.
    left_out = ("JAX_COMPILATION_CACHE_DIR", "PYTHONDONTWRITEBYTECODE")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    run = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    return float(run.stdout.split()[-1])


def rows(repeats: int = 3) -> list[Fields]:
    """The import, the first run and flows, and the first call of each host-side analysis with plain numbers."""

    def import_seconds(*modules: str) -> Callable[[], float]:
        return functools.partial(first_seconds, "", f"[__import__(name) for name in {modules!r}]")

    def call_seconds(statement: str) -> Callable[[], float]:
        return functools.partial(first_seconds, _SETUP, statement)

    found = [
        (
            "first import of adamflow / of jax, diffrax and optax",
            import_seconds("adamflow"),
            import_seconds("jax", "diffrax", "optax"),
            repeats,
        )
    ]
    for name, (ours, peer) in _CALLS.items():
        found.append((f"first {name}", call_seconds(ours), call_seconds(peer), repeats))
    return found
