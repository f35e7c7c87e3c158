"""Losses made anew for each call: what is said, and what stays in memory."""

import functools
import re
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamflow as af
from adamflow import losses

ADAM = af.adam(1e-2)


def memory() -> float:
    """Megabytes of this process."""
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * 4096 / 1e6


@pytest.mark.slow
def test_failure_losses_made_anew_are_told_once_and_their_memory_is_bounded():
    def make():
        return lambda p: jnp.sum(p**2)

    def run_new_losses(count):
        return [af.iterate(ADAM, make(), jnp.ones(2), 3) for _ in range(count)][-1]

    expected = run_new_losses(1).params
    with pytest.warns(
        UserWarning, match=r"20 losses '.*make.<locals>.<lambda>' \(.*test_losses.py:\d+\) were compiled"
    ):
        run_new_losses(19)
    sizes = []
    for _ in range(2):
        run = run_new_losses(losses.RELEASE_AFTER)
        sizes.append(memory())
    np.testing.assert_array_equal(run.params, expected)
    # Each program has megabytes, of which all but few are used again.
    assert sizes[1] - sizes[0] < losses.RELEASE_AFTER * 0.5


def test_identity_losses_that_share_a_program_are_not_counted():
    class Module(eqx.Module):
        factor: jax.Array

        def __call__(self, p):
            return self.factor * jnp.sum(p**2)

    class Plain:
        def value(self, p):
            return jnp.sum(p**2)

    plain, once = Plain(), functools.partial(lambda p, power: jnp.sum(p**power), power=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for index in range(losses.WARN_AFTER + 2):
            for loss in (Module(jnp.asarray(float(index))), plain.value, once):
                losses.count_program(loss)


def test_failure_partial_functions_made_anew():
    def value(p, power):
        return jnp.sum(p**power)

    kept = [functools.partial(value, power=power) for power in range(losses.WARN_AFTER)]
    for loss in kept[:-1]:
        losses.count_program(loss)
    with pytest.warns(UserWarning, match=re.escape("losses 'test_failure_partial_functions_made_anew.<locals>.value'")):
        losses.count_program(kept[-1])
