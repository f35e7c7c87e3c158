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
from adamflow import losses, programs

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


def square(params):
    return jnp.sum(params**2) / 2


def square_and_aux(params):
    return square(params), {"norm": jnp.sqrt(square(params))}


PARAMS = jnp.array([1.0, 2.0])
STEPPED = af.iterate(ADAM, square, PARAMS, 3)
FLOWS = {
    "paper": af.GouldTanakaFlow(ADAM),
    "modified": af.ModifiedFlow(ADAM, order=2),
    "map": af.InterpolatingFlow(ADAM, order=2),
    "memoryless": af.MemorylessFlow(af.adam(1e-2, beta=0.9, epsilon=1e-3)),
    "edge": af.TwoBranchFlow(af.sgd(0.1)),
}

#: What takes a loss, by name: functions of a loss and of options for what takes `has_aux`.
ANALYSES = {
    "sharpness": lambda loss, **o: af.analysis.preconditioned_sharpness(loss, PARAMS, jnp.ones(2), **o).value,
    "observed sharpness": lambda loss, **o: (
        af.iterate(ADAM, square, PARAMS, 2, observe=af.analysis.sharpness_observer(ADAM, loss, **o)).observed.value
    ),
    "spectrum": lambda loss, **o: (
        af.analysis.jacobian_spectrum(ADAM, loss, STEPPED.final_state, iteration=3, count=2, **o).values
    ),
    "multipliers": lambda loss, **o: (
        af.analysis.unstable_multipliers(
            ADAM, loss, STEPPED.final_state, iteration=3, count=6, margin=0.5, **o
        ).multipliers
    ),
    "orbit": lambda loss, **o: af.analysis.periodic_orbit(
        af.adam(0.1, beta=0.9, gamma=0.1), loss, PARAMS, 2, settle=50, **o
    ).points[0],
    "spheres": lambda loss, **o: af.analysis.iterate_on_spheres(
        ADAM, loss, {"w": PARAMS}, 4, ["['w']"], other_optimizer=ADAM, **o
    ).params["w"],
}


@pytest.mark.parametrize("name", ANALYSES)
def test_failure_analyses_name_the_loss_and_what_is_wrong_with_it(name, unchecked):
    wrong = {
        "the loss must return a real scalar, got a tuple; for (value, aux) give has_aux=True": square_and_aux
        if name != "spheres"
        else lambda params: (square(params["w"]), 0.0),
        "the loss must return a real scalar, got None; does it lack a return?": lambda params: None,
        "the loss must return a real scalar, got shape (2,) of float64; reduce it": lambda params: jnp.ones(2),
        "loss must be a function of the parameters that returns a real scalar, got float": 1.5,
    }
    for words, loss in wrong.items():
        with pytest.raises(ValueError, match=re.escape(words)):
            ANALYSES[name](loss)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda p: np.sum(np.square(np.asarray(p))), "which JAX cannot differentiate; write it with jax.numpy"),
        (lambda p, data: jnp.sum(p) * data, r"lambda params: loss\(params, data\)"),
        (lambda p: jnp.sum(p) + "1", "unsupported operand"),
    ],
)
def test_failure_losses_that_cannot_be_called(loss, words):
    flow = af.GouldTanakaFlow(ADAM)
    with pytest.raises(TypeError, match=words):
        af.iterate(ADAM, loss, jnp.ones(2), 3)
    with pytest.raises(TypeError, match=words):
        af.solve(flow, loss, jnp.ones(2), 3)


@pytest.mark.parametrize("name", [name for name in ANALYSES if name != "spheres"])
def test_identity_analyses_of_a_loss_with_aux_are_those_of_its_value(name):
    np.testing.assert_allclose(ANALYSES[name](square_and_aux, has_aux=True), ANALYSES[name](square), rtol=1e-12)


@pytest.mark.parametrize("name", FLOWS)
def test_failure_flows_name_the_loss_and_what_is_wrong_with_it(name, unchecked):
    words = "the loss must return a real scalar, got a tuple; for (value, aux) give has_aux=True"
    state = FLOWS[name].initial_state(square, PARAMS)
    with pytest.raises(ValueError, match=re.escape(words)):
        FLOWS[name].vector_field(1.0, state, square_and_aux)
    with pytest.raises(ValueError, match="loss must be a function of the parameters that returns a real scalar, got N"):
        FLOWS[name].vector_field(1.0, state, None)


def test_failure_losses_of_analyses_made_anew_are_told():
    def make(power):
        return lambda params: jnp.sum(params**power)

    for _ in range(losses.WARN_AFTER - 1):
        af.analysis.sharpness_observer(ADAM, make(2))
    with pytest.warns(UserWarning, match="20 losses .*make.<locals>.<lambda>' .* were compiled"):
        af.analysis.sharpness_observer(ADAM, make(2))


def test_identity_programs_of_analyses_and_of_collocation_are_released():
    def collocation():
        return af.solve(af.GouldTanakaFlow(ADAM), square, PARAMS, 3, solver="collocation").params

    runs = [collocation, *(lambda name=name: ANALYSES[name](square) for name in ("sharpness", "spectrum", "orbit"))]
    before = [run() for run in runs]
    kept = programs.kept_programs()
    owners = {compiled.__module__.rpartition(".")[2] for compiled in kept}
    assert {"sharpness", "spectrum", "newton", "transient", "solve"} <= owners
    programs.release_programs()
    assert not programs.kept_programs()
    for run, expected in list(zip(runs, before, strict=True))[:2]:
        np.testing.assert_array_equal(run(), expected)
