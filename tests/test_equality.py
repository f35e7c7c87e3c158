"""Results are equal, and hash, by value: they can be keys, and static arguments of programs."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import adamflow as af

ADAM = af.adam(1e-2, beta=0.9, gamma=0.1)
PROBLEM = af.problems.quadratic([0.5, 2.0])


def run():
    return af.iterate(ADAM, PROBLEM.loss, PROBLEM.params, 5)


def without_time(trajectory):
    return dataclasses.replace(trajectory, stats=dataclasses.replace(trajectory.stats, seconds=None))


RESULTS = {
    "run": lambda: without_time(run()),
    "flow": lambda: without_time(af.solve(af.GouldTanakaFlow(ADAM), PROBLEM.loss, PROBLEM.params, 5)),
    "outcome": lambda: run().outcome,
    "state": lambda: run().final_state[1],
    "flow state": lambda: af.GouldTanakaFlow(ADAM).initial_state(PROBLEM.loss, PROBLEM.params),
    "map state": lambda: af.InterpolatingFlow(ADAM).initial_state(PROBLEM.loss, PROBLEM.params),
    "comparison": lambda: af.compare(run(), run()),
    "split": lambda: without_time(af.mean_and_oscillation(run()).mean),
    "sharpness": lambda: af.analysis.preconditioned_sharpness(PROBLEM.loss, PROBLEM.params, jnp.ones(2)),
    "spectrum": lambda: af.analysis.jacobian_spectrum(ADAM, PROBLEM.loss, run().final_state, iteration=5, count=2),
    "multipliers": lambda: af.analysis.first_instability(ADAM),
    "orbit": lambda: af.analysis.periodic_orbit(ADAM, PROBLEM.loss, PROBLEM.params, 1, settle=20),
}


@pytest.mark.parametrize("name", RESULTS)
def test_identity_results_are_equal_and_hash_by_value(name):
    one, other = RESULTS[name](), RESULTS[name]()
    assert one is not other
    assert one == other
    assert {one: name}[other] == name
    changed = jax.tree.map(lambda leaf: leaf + 1, one)
    assert one != changed
    assert one != name


def test_failure_results_have_no_hash_while_they_are_traced():
    def traced(params):
        hash(af.iterate(ADAM, PROBLEM.loss, params, 2))

    with pytest.raises(TypeError, match="Trajectory has no hash while jax is tracing its numbers"):
        jax.jit(traced)(PROBLEM.params)


def test_identity_a_result_is_a_static_argument():
    def scaled(params, outcome):
        return params * float(outcome.last_valid_iteration)

    compiled = jax.jit(scaled, static_argnums=1)
    for _ in range(2):
        assert compiled(jnp.ones(()), run().outcome) == 5.0
    assert compiled._cache_size() == 1
