"""Linear stability of plain numbers by NumPy: nothing is compiled, and the numbers are those of compiled programs."""

import dataclasses

import equinox as eqx
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

import adamflow as af
from adamflow.analysis.stability.uncompiled import NotEvaluableError, evaluate

ADAMW = af.adamw(1e-2, gamma=0.8, weight_decay=0.5)
CASES = {
    "discrete": (ADAMW, "discrete"),
    "flow of order 2": (ADAMW, af.GouldTanakaFlow(ADAMW, order=2)),
    "2-Adam": (af.kadam(2, 1e-2), "discrete"),
    "3-Adam, by search": (af.kadam(3, 1e-2), "discrete"),
}


@pytest.mark.parametrize(("optimizer", "model"), CASES.values(), ids=CASES.keys())
def test_identity_plain_numbers_agree_with_a_compiled_program(optimizer, model):
    curvature = np.array([1.0, 50.0, 3e4])

    def measure(optimizer):
        growth = af.analysis.linear_stability(optimizer, curvature, model=model)
        return af.analysis.critical_curvature(optimizer, model=model), growth

    for plain, compiled in zip(measure(optimizer), eqx.filter_jit(measure)(optimizer), strict=True):
        assert (plain.shape, plain.dtype) == (compiled.shape, compiled.dtype)
        np.testing.assert_allclose(plain, compiled, rtol=1e-12)


def test_identity_a_batch_of_plain_numbers_is_each_of_them():
    batch = jax.vmap(lambda gamma: af.adam(1e-2, gamma=gamma))(jnp.array([0.0, 0.5, 0.9]) + 1e-3)
    edges = af.analysis.critical_curvature(batch)
    systems = af.analysis.linear_system(batch, 3.0)
    for index in range(3):
        single = jax.tree.map(lambda leaf, index=index: leaf[index], batch)
        assert float(edges[index]) == pytest.approx(float(af.analysis.critical_curvature(single)), rel=1e-12)
        np.testing.assert_allclose(systems[index], af.analysis.linear_system(single, 3.0), rtol=1e-12)


@pytest.mark.parametrize(("optimizer", "model"), CASES.values(), ids=CASES.keys())
def test_identity_plain_numbers_compile_nothing(optimizer, model):
    def analyse(name):
        # Programs are found again by the static fields of an optimizer: with another name there is none.
        named = dataclasses.replace(optimizer, name=name)
        af.analysis.critical_curvature(named, model=model)
        af.analysis.linear_stability(named, 10.0, model=model)

    # What puts a number of NumPy onto the device is a program, too, and shared by all.
    analyse("seen")
    compiled = []

    def listen(event, seconds, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        analyse("never seen")
        assert compiled == []
        jax.jit(lambda x: x + len(compiled) + 0.123)(1.0)
        assert len(compiled) == 1
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def everything(x, y):
    """Each operation that `evaluate` knows, on matrices of numbers in (0, 1)."""
    whole = jnp.arange(4).reshape(2, 2)
    flags = (x > y) & (x >= 0) | ~(x <= y) & (x != y)
    parts = jnp.split(jnp.concatenate([x, y]), 2)
    sums = jnp.where(flags, jnp.exp(x), jnp.expm1(y)) + jnp.log(x) * jnp.log1p(y) - jnp.sqrt(x) / (1 + y)
    powers = x**3 + x**-2 + x**y + jnp.square(x) + jnp.sign(x - y) * jnp.abs(x - y)
    extremes = jnp.maximum(x, y) + jnp.minimum(x, y) + jnp.max(x) + jnp.sum(y, axis=0)
    shapes = jnp.stack([x[0], y[:, 1]]).T + parts[1][:, None, :].squeeze(1) + whole + jnp.eye(2)
    finite = jnp.isfinite(x / (x - x)) | (x < 0.5)
    (carry, rows) = jax.lax.scan(lambda c, row: (c + row, c * row), x[0], y)
    _, backwards = jax.lax.scan(lambda c, row: (c + row, c), x[0], y, reverse=True)
    return sums, powers, -extremes, shapes, finite, carry, rows, backwards


def test_identity_each_operation_is_that_of_jax(key):
    x, y = jax.random.uniform(key, (2, 2, 2))
    found = evaluate(jax.make_jaxpr(everything)(x, y), np.asarray(x), np.asarray(y))
    for ours, theirs in zip(found, jax.jit(everything)(x, y), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=1e-13)


def test_failure_operations_that_are_not_known():
    for function, x in (
        (jnp.sin, np.ones(2)),
        (lambda x: jax.lax.div(x, x), np.ones(2, int)),
        (lambda x: jax.lax.select_n(x, x, x, x), np.ones(2, int)),
    ):
        with pytest.raises(NotEvaluableError):
            evaluate(jax.make_jaxpr(function)(x), x)


def test_identity_a_step_with_an_operation_that_is_not_known_is_compiled():
    class SineStage(af.AbstractStage):
        def filters(self):
            return ()

        def direction(self, signal, averages, memory, iteration, ratio):
            # Linear to first order, as far as the check looks.
            return jnp.sin(signal.value)

    optimizer = af.Optimizer(0.1, (SineStage(),))
    assert float(af.analysis.critical_curvature(optimizer)) == pytest.approx(20.0, rel=1e-12)
    assert float(af.analysis.linear_stability(optimizer, 15.0)) == pytest.approx(0.5, rel=1e-12)
