"""Compiled programs: the fast compilation of small ones changes no result, and gives way where it is not possible."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamflow as af
from adamflow import programs

ADAM = af.adam(1e-2)


def make_powers():
    """Programs of one function share what is compiled, so each test has its own."""
    return lambda x, exponent: jnp.sum(jnp.tanh(x) ** exponent)


def compiled_fast(compiled):
    return compiled._fast._cached._cache_size() == 1


@pytest.mark.parametrize(("size", "fast"), [(3, True), (programs.SMALL + 1, False)])
def test_identity_small_programs_alone_are_compiled_fast(size, fast):
    x = jnp.linspace(0.1, 1.0, size)
    compiled = programs.program(make_powers())
    assert compiled(x, 2) == pytest.approx(np.sum(np.tanh(x) ** 2), rel=1e-13)
    assert (compiled_fast(compiled), compiled.count()) == (fast, 1)
    compiled.release()
    assert compiled.count() == 0


def test_identity_where_few_inputs_make_much_work_nothing_is_compiled_fast():
    compiled = programs.program(make_powers(), compiles_fast=False)
    assert compiled(jnp.ones(3), 2) == pytest.approx(3 * np.tanh(1.0) ** 2, rel=1e-13)
    assert not compiled_fast(compiled)


MANY = np.linspace(0.0, 1.0, programs.SMALL + 1)


def closes_over(values):
    return lambda y: jnp.sum(y) * jnp.mean(jnp.asarray(values))


def calls(function):
    return lambda y: function(y)


LARGE = {
    "closure": lambda: closes_over(MANY),
    "global": lambda: lambda y: jnp.sum(y) * jnp.mean(jnp.asarray(MANY)),
    "partial": lambda: functools.partial(lambda values, y: jnp.sum(y) * jnp.mean(values), MANY),
    "default": lambda: lambda y, values=MANY: jnp.sum(y) * jnp.mean(jnp.asarray(values)),
    "within": lambda: calls(closes_over(MANY)),
}


@pytest.mark.parametrize("make", LARGE.values(), ids=LARGE)
def test_identity_data_that_a_loss_closes_over_count(make):
    def apply(y, function):
        return function(y)

    compiled = programs.program(apply)
    assert compiled(jnp.ones(3), make()) == pytest.approx(1.5, rel=1e-13)
    assert (compiled_fast(compiled), compiled.count()) == (False, 1)
    assert compiled(jnp.ones(3), closes_over(MANY[:2])) == pytest.approx(1.5 / programs.SMALL, rel=1e-12)
    assert compiled_fast(compiled)


def test_identity_a_program_of_a_batch_is_as_large_as_the_batch():
    def apply(function):
        return function(jnp.ones(2))

    compiled = programs.program(apply)
    found = jax.vmap(lambda a: compiled(lambda y: jnp.sum(a * y)))(jnp.arange(3.0))
    np.testing.assert_array_equal(found, [0.0, 2.0, 4.0])
    assert not compiled_fast(compiled)


ONE, SEVERAL = jnp.array(0.3), jnp.linspace(0.1, 1.0, 3)
AROUND = {
    "jit": (jax.jit, ONE),
    "grad": (jax.grad, ONE),
    "vmap": (jax.vmap, SEVERAL),
    "both": (lambda f: jax.jit(jax.grad(f)), ONE),
}


@pytest.mark.parametrize(("around", "inputs"), AROUND.values(), ids=AROUND)
@pytest.mark.parametrize("is_closed_over", [False, True])
def test_identity_within_a_transformation_a_program_is_a_part_of_it(around, inputs, is_closed_over):
    def of(inner):
        def function(x):
            if is_closed_over:
                return inner(jnp.ones(2), lambda y: jnp.sum(x * y))
            return inner(x * jnp.ones(2), jnp.sum)

        return function

    def apply(x, function):
        return jnp.sin(function(x))

    compiled = programs.program(lambda x, function: apply(x, function))
    found, expected = around(of(compiled))(inputs), around(of(apply))(inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    assert not compiled_fast(compiled)
    assert compiled(jnp.ones(2), jnp.sum) == pytest.approx(np.sin(2.0), rel=1e-13)


@pytest.mark.parametrize(
    ("made", "closed_over", "lanes", "fast"),
    [(10, 10, 3, True), (10, 10_000, 3, False), (10_000, 10, 3, False), (1000, 10, 100, True)],
)
def test_identity_what_is_traced_for_lanes_is_compiled_fast_if_each_is_small(
    monkeypatch, made, closed_over, lanes, fast
):
    options, compiled = [], jax.stages.Lowered.compile

    def compile(lowered, compiler_options=None):
        options.append(compiler_options)
        return compiled(lowered, compiler_options)

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile)
    numbers = jnp.ones(closed_over) * 2
    inner = jax.jit(lambda x: x + jnp.sum(numbers))

    def function(x):
        return inner(x) + jnp.sum(jnp.sin(x[0] * jnp.arange(made)))

    traced = jax.jit(jax.vmap(function)).trace(jax.ShapeDtypeStruct((lanes, 1), float))
    found = programs.compile_traced(traced, lanes, jax.devices("cpu")[0])(jnp.zeros((lanes, 1)))
    np.testing.assert_allclose(found, 2 * closed_over * np.ones((lanes, 1)))
    assert options == [programs.FAST_COMPILATION if fast else None]


def test_identity_without_the_options_of_this_xla_a_program_runs_all_the_same(monkeypatch):
    monkeypatch.setattr(programs, "FAST_COMPILATION", {"xla_option_that_there_is_not": True})
    monkeypatch.setattr(programs.Program, "xla_knows_options", True)
    compiled = programs.program(make_powers())
    assert compiled(jnp.ones(3), 2) == pytest.approx(3 * np.tanh(1.0) ** 2, rel=1e-13)
    assert not programs.Program.xla_knows_options
    assert compiled(2 * jnp.ones(3), 2) == pytest.approx(3 * np.tanh(2.0) ** 2, rel=1e-13)


def test_identity_flags_of_the_user_go_before_the_options_of_programs():
    command = [sys.executable, "-c", "import adamflow.programs as p; print(*p.FAST_COMPILATION.values())"]
    for flags, expected in {"--xla_backend_optimization_level=3": "False 3 4", "": "False 1 4"}.items():
        environment = os.environ | {"XLA_FLAGS": flags}
        printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        assert printed.split() == expected.split()


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
