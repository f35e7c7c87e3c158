"""Every reading lowers for CUDA, which needs no GPU.

diffrax checks times by a callback to the host, which does not lower for another platform; equinox's documented switch
for such checks is read when it is imported, hence a process of its own.
"""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, jax, diffrax, jax.numpy as jnp, adamflow as af

chain = af.problems.chain(6)
look = lambda s: (s.loss, s.direction)

def iterate(beta):
    return af.iterate(af.kadam(2, 1e-3, beta=beta), chain.loss, chain.params, 20).params

def observed(beta):
    return af.iterate(af.adam(1e-3, beta=beta), chain.loss, chain.params, 20, observe=look).observed

def flow(order, solver):
    def run(beta):
        record = af.adamw(1e-3, beta=beta, weight_decay=0.1)
        return af.solve(af.GouldTanakaFlow(record, order), chain.loss, chain.params, 20, solver=solver).params
    return run

def collocation(problem):
    def run(beta):
        flow = af.GouldTanakaFlow(af.adam(1e-3, beta=beta))
        return af.solve(flow, problem.loss, problem.params, 20, solver="collocation", rtol=1e-3).params
    return run

def lanes(beta):
    return jax.vmap(collocation(chain))(beta * jnp.linspace(0.9, 1.0, 64))

def edge_flow(beta):
    steps = {"solver": diffrax.Euler(), "step_size": 0.5}
    return af.solve(af.TwoBranchFlow(af.adam(1e-3, beta=beta)), chain.loss, chain.params, 20, **steps).params

def optax(beta):
    transformation = af.adam(1e-3, beta=beta).to_optax()
    return transformation.update(jnp.ones(3), transformation.init(jnp.ones(3)), jnp.ones(3))[0]

def sharpness(scale):
    return af.analysis.preconditioned_sharpness(chain.loss, chain.params, jnp.full(6, scale)).value

def stability(gamma):
    record = af.adamw(1e-3, gamma=gamma, weight_decay=0.1)
    models = ("discrete", af.GouldTanakaFlow(record, order=2))
    return [af.analysis.linear_stability(record, jnp.arange(9.0), model=model) for model in models]

def critical_curvature(gamma):
    return af.analysis.critical_curvature(af.kadam(2, 1e-3, gamma=gamma))

def worst_case(gamma):
    gradients = af.analysis.worst_case_gradients(9, beta=0.95, gamma=gamma)
    return gradients, af.analysis.update_bound(8, beta=0.95, gamma=gamma, kind="discrete")

readings = {
    "iterate": iterate,
    "observe": observed,
    "implicit flow": flow(2, "auto"),
    "explicit flow": flow(1, diffrax.Tsit5()),
    "collocation": collocation(chain),
    "collocation of many parameters": collocation(af.problems.chain(40)),
    "collocation in lanes": lanes,
    "edge flow": edge_flow,
    "optax": optax,
    "sharpness": sharpness,
    "linear stability": stability,
    "critical curvature": critical_curvature,
    "worst case": worst_case,
}
sizes = {}
for name, reading in readings.items():
    exported = jax.export.export(jax.jit(reading), platforms=["cuda"])(jnp.asarray(0.99))
    sizes[name] = [list(exported.platforms), len(exported.mlir_module_serialized)]
print(json.dumps(sizes))
"""


@pytest.fixture(scope="module")
def lowered():
    environment = os.environ | {"EQX_ON_ERROR": "off", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


READINGS = ["iterate", "observe", "implicit flow", "explicit flow", "collocation", "collocation of many parameters"]
READINGS += ["collocation in lanes", "edge flow", "optax", "sharpness"]
READINGS += ["linear stability", "critical curvature", "worst case"]


@pytest.mark.slow
@pytest.mark.parametrize("reading", READINGS)
def test_identity_lowers_for_cuda(lowered, reading):
    platforms, size = lowered[reading]
    assert platforms == ["cuda"]
    assert size > 0
