"""Compiled programs: the fast compilation of small ones changes no result, and gives way where it is not possible."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamflow as af
from adamflow import programs

ADAM = af.adam(1e-2)


def powers(x, exponent):
    return jnp.sum(jnp.tanh(x) ** exponent)


def compiled_fast(compiled):
    return compiled._fast._cached._cache_size() == 1


@pytest.mark.parametrize(("size", "fast"), [(3, True), (programs.SMALL + 1, False)])
def test_identity_small_programs_alone_are_compiled_fast(size, fast):
    x = jnp.linspace(0.1, 1.0, size)
    compiled = programs.program(powers)
    assert compiled(x, 2) == pytest.approx(np.sum(np.tanh(x) ** 2), rel=1e-13)
    assert (compiled_fast(compiled), compiled.count()) == (fast, 1)
    compiled.release()
    assert compiled.count() == 0


def test_identity_where_few_inputs_make_much_work_nothing_is_compiled_fast():
    compiled = programs.program(powers, compiles_fast=False)
    assert compiled(jnp.ones(3), 2) == pytest.approx(3 * np.tanh(1.0) ** 2, rel=1e-13)
    assert not compiled_fast(compiled)


ONE, SEVERAL = jnp.array(0.3), jnp.linspace(0.1, 1.0, 3)
AROUND = {
    "jit": (jax.jit, ONE),
    "grad": (jax.grad, ONE),
    "vmap": (jax.vmap, SEVERAL),
    "both": (lambda f: jax.jit(jax.grad(f)), ONE),
}


@pytest.mark.parametrize(("around", "inputs"), AROUND.values(), ids=AROUND)
@pytest.mark.parametrize("closes_over", [False, True])
def test_identity_within_a_transformation_a_program_is_a_part_of_it(around, inputs, closes_over):
    def of(inner):
        def function(x):
            if closes_over:
                return inner(jnp.ones(2), lambda y: jnp.sum(x * y))
            return inner(x * jnp.ones(2), jnp.sum)

        return function

    def apply(x, function):
        return jnp.sin(function(x))

    compiled = programs.program(apply)
    found, expected = around(of(compiled))(inputs), around(of(apply))(inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    assert compiled.compiles_fast
    assert compiled(jnp.ones(2), jnp.sum) == pytest.approx(np.sin(2.0), rel=1e-13)


def test_identity_without_the_options_of_this_xla_a_program_runs_all_the_same(monkeypatch):
    monkeypatch.setattr(programs, "FAST_COMPILATION", {"xla_option_that_there_is_not": True})
    compiled = programs.program(powers)
    assert compiled(jnp.ones(3), 2) == pytest.approx(3 * np.tanh(1.0) ** 2, rel=1e-13)
    assert not compiled.compiles_fast
    assert compiled(2 * jnp.ones(3), 2) == pytest.approx(3 * np.tanh(2.0) ** 2, rel=1e-13)


def test_failure_an_error_of_the_function_itself_is_raised_once():
    calls = []

    @programs.program
    def fails(x):
        calls.append(x)
        raise ValueError("no such number")

    with pytest.raises(ValueError, match="no such number"):
        fails(jnp.ones(2))
    assert len(calls) == 1


def test_identity_runs_of_small_problems_are_those_of_a_slow_compilation(monkeypatch):
    problem, flow = af.problems.chain(10), af.GouldTanakaFlow(ADAM)

    def runs():
        discrete = af.iterate(ADAM, problem.loss, problem.params, 200, save_at=[100, 200])
        return discrete.params, af.solve(flow, problem.loss, problem.params, 200, save_at=[100, 200]).params

    fast = runs()
    programs.release_programs()
    monkeypatch.setattr(programs, "SMALL", 0)
    for ours, theirs, tolerance in zip(fast, runs(), (1e-12, 1e-7), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance)
