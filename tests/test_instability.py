"""Through which point of the unit circle a step leaves stability, by theory and at states of runs."""

import functools
import math
import re
import warnings
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamflow as af


@pytest.mark.slow
def test_formula_period_two_at_the_edge_and_a_turn_for_two_momenta():
    """For two equal filters of decay γ in a row the pair is e^{±iω}, and it obeys the characteristic polynomial."""
    for record in (af.sgd(0.1, 0.9), af.adamw(0.01, gamma=0.5, weight_decay=0.1)):
        found = af.analysis.first_instability(record)
        np.testing.assert_allclose(found.periods, [2], rtol=1e-9)
        assert not found.has_complex_multipliers
    gamma = 0.9
    found = af.analysis.first_instability(af.kadam(2, 0.01, gamma=gamma, strategy="naive"))
    (value,) = found.multipliers
    np.testing.assert_allclose(abs(value), 1, rtol=1e-9)
    rest = (value - 1) * (value - gamma) ** 2 + found.curvature * (1 - gamma) ** 2 * value**2
    np.testing.assert_allclose(rest, 0, atol=1e-9)
    assert found.has_complex_multipliers
    assert "so no TwoBranchFlow models it" in str(found)


@pytest.mark.slow
def test_formula_at_a_state_the_multipliers_of_a_quadratic():
    stage = af.sgd(0.1, 0.9).stages[0]
    record, loss = af.Optimizer(0.1, (stage, stage), bias_correction=False), af.problems.quadratic([0.5, 10.0]).loss
    state = af.iterate(record, loss, jnp.ones(2), 3).final_state
    found = af.analysis.unstable_multipliers(record, loss, state, iteration=3, count=6)
    expected = complex(af.analysis.dominant_eigenvalue(record, 10.0))
    assert abs(expected) > 1
    np.testing.assert_allclose(found.multipliers[:1], expected, rtol=1e-9)
    assert found.has_complex_multipliers
    assert math.isnan(found.curvature)
    slow = af.iterate(af.sgd(0.01), loss, jnp.ones(2), 3)
    stable = af.analysis.unstable_multipliers(af.sgd(0.01), loss, slow.final_state,
                                              iteration=3, count=2)  # fmt: skip
    assert stable.multipliers.size == 0
    assert str(stable) == "no multiplier is on or outside of the unit circle: the step is stable"


@pytest.mark.slow
def test_identity_the_mean_of_an_edge_flow_is_at_the_edge():
    """θ⁺ = θ − η(cθ − θ³), with a cycle about 0, where the multiplier is 1 − ηc."""
    eta, c = 0.1, 22.0

    def loss(theta):
        return jnp.sum(c * theta**2 / 2 - theta**4 / 4)

    flow = af.TwoBranchFlow(af.sgd(eta), order=1)
    run = af.solve(flow, loss, jnp.array([0.1]), 200, save_at=[200], solver=diffrax.Euler(), step_size=0.5)
    found = af.analysis.unstable_multipliers(af.sgd(eta), loss, run.final_state, iteration=200, count=1)
    np.testing.assert_allclose(found.multipliers, [1 - eta * c], rtol=1e-6)
    np.testing.assert_allclose(found.periods, [2])


class TableStage(af.AbstractStage):
    """Momentum whose decay stands in a table of the iterations."""

    table: Any

    def filters(self):
        decay = lambda n: self.table[jnp.minimum(jnp.asarray(n, int), len(self.table) - 1)]  # noqa: E731
        return (af.Filter("first", decay, lambda signal, _: signal.value, weight_sum=lambda n: jnp.ones(())),)

    def direction(self, signal, averages, memory, iteration, ratio):
        return averages["first"]


SINGLE = functools.partial(np.asarray, dtype=np.float32)


@pytest.mark.parametrize(
    ("record", "rotates"),
    [
        (af.kadam(2, 0.01, gamma=0.9), True),
        pytest.param(af.kadam(3, 0.01, gamma=0.9, strategy="naive"), True, marks=pytest.mark.slow),
        pytest.param(af.kadam(2, 0.01, gamma=0.5), False, marks=pytest.mark.slow),
        pytest.param(af.kadam(2, 0.01, gamma=0.99, strategy="naive"), True, marks=pytest.mark.slow),
        pytest.param(
            af.adamw(SINGLE(0.01), beta=SINGLE(0.999), gamma=SINGLE(0.9), weight_decay=SINGLE(0.1)),
            False,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["2-adam", "3-adam", "2-adam, gamma 0.5", "2-adam, gamma 0.99", "adamw in single precision"],
)
def test_failure_an_edge_flow_of_a_record_that_rotates_warns(record, rotates):
    """Whenever `first_instability` finds a rotation, at about its curvature and period, never else; in a trace too."""
    crossing = af.analysis.first_instability(record)
    assert crossing.has_complex_multipliers == rotates
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        af.TwoBranchFlow(record)
        jax.jit(lambda eta: af.TwoBranchFlow(record).optimizer.learning_rate * eta)(1.0)
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == 2 * rotates
    for text in texts:
        found = re.search(r"by a rotation: from about ηs = (\S+) on a complex pair .* of period (\S+), is", text)
        assert found is not None
        expected = [crossing.curvature, float(crossing.periods[0])]
        np.testing.assert_allclose([float(number) for number in found.groups()], expected, rtol=0.03)
    assert {warning.filename for warning in caught} <= {__file__}


def test_failure_a_record_whose_rotation_cannot_be_looked_at_has_an_edge_flow():
    """A decay from a table has no limit after infinitely many iterations; several records at once are no one record."""
    af.TwoBranchFlow(af.Optimizer(0.01, (TableStage(jnp.linspace(0.5, 0.99, 100)),)))
    assert eqx.filter_vmap(lambda eta: af.TwoBranchFlow(af.kadam(2, eta)).optimizer)(
        jnp.ones(2)
    ).learning_rate.shape == (2,)


def test_failure_batches_of_records():
    rates = jnp.array([0.1, 0.2])
    with pytest.raises(ValueError, match="first_instability takes one record with known numbers, not a batch"):
        af.analysis.first_instability(eqx.filter_vmap(af.adam)(rates))


def test_formula_a_direction_that_the_loss_does_not_depend_on_is_neutral():
    """Its multiplier is 1: no growth, and no period 2."""

    def flat(params):
        return 2 * params[0] ** 2

    def steep(params):
        return 12 * params[0] ** 2

    optimizer, params = af.sgd(0.1), jnp.ones(2)
    state = params, optimizer.initial_state(params)
    found = af.analysis.unstable_multipliers(optimizer, flat, state, iteration=1, count=2)
    assert str(found) == (
        "at the border of stability: 1: neutral, 1 to rounding; directions in which nothing pulls back"
    )
    found = af.analysis.unstable_multipliers(optimizer, steep, state, iteration=1, count=2)
    assert str(found) == "leaves stability by -1.4: period 2, 1: neutral, 1 to rounding"
    saddle = af.analysis.unstable_multipliers(optimizer, lambda x: x[0] ** 2 - x[1] ** 2, state, iteration=1, count=2)
    assert str(saddle) == "leaves stability by 1.2: growth without oscillation"
