"""The memoryless flow: against its formula by hand, its order against the iterates, and bad input."""

import re

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamflow as af
from adamflow.optimizers import AMSGradStage

QUARTIC = af.problems.quartic([0.5, 1.0, 3.0], coupling=0.0).loss
START = jnp.array([1.0, -1.2, 1.4])


@pytest.mark.parametrize("inside", [False, True], ids=["epsilon outside", "epsilon inside"])
@pytest.mark.parametrize(("beta", "gamma"), [(0.99, 0.9), (0.8, 0.0), (0.7, 0.7)])
def test_formula_in_one_dimension(beta, gamma, inside):
    """θ'/η = −(λθ + f) + η/2 λDθ − (Dg/P)[(β/(1−β)) ρ − γ/(1−γ) − (1−ρ)/2] at late times, Dg = −H(λθ + f)."""
    eta, epsilon, decay, c, theta = 1e-2, 0.3, 0.2, 0.5, 1.3
    record = af.adamw(eta, beta=beta, gamma=gamma, epsilon=epsilon, weight_decay=decay, epsilon_inside_root=inside)
    g, hessian = c * theta + theta**3, c + 3 * theta**2
    scale = np.sqrt(g**2 + epsilon) if inside else abs(g) + epsilon
    share = g**2 / scale**2 if inside else abs(g) / scale
    push = decay * theta + g / scale
    drift = -eta * hessian * push
    bias = beta / (1 - beta) * share - gamma / (1 - gamma) - (1 - share) / 2
    expected = -eta * (push + eta / 2 * decay * push + drift / scale * bias)
    loss, params = af.problems.quartic([c], coupling=0.0).loss, jnp.array([theta])
    for flow, time in ((af.MemorylessFlow(record), 3.0), (af.MemorylessFlow(record, include_transient=True), 1e5)):
        assert float(flow.vector_field(time, params, loss)[0]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
def test_formula_printed_in_the_paper_holds_with_its_names_of_the_decays():
    """[CKS], per unit of t: −g/P − η (H g/P)/P [γ/(1−γ) − β/(1−β) |g|/P + ε/(2P)], in several dimensions."""
    eta, beta, gamma, epsilon = 1e-2, 0.95, 0.8, 0.1
    params = jnp.array([0.7, -0.4])

    def loss(p):
        return jnp.sum(jnp.cosh(p)) + p[0] * p[1] ** 2

    g, hessian = jax.grad(loss)(params), jax.hessian(loss)(params)
    scale = jnp.abs(g) + epsilon
    bias = gamma / (1 - gamma) - beta / (1 - beta) * jnp.abs(g) / scale + epsilon / (2 * scale)
    expected = -g / scale - eta * (hessian @ (g / scale)) / scale * bias
    flow = af.MemorylessFlow(af.adam(eta, beta=beta, gamma=gamma, epsilon=epsilon))
    np.testing.assert_allclose(flow.vector_field(0.0, params, loss) / eta, expected, rtol=1e-12)


@pytest.mark.parametrize("n", [0, 1, 5, 40])
def test_formula_snapshot_has_the_mean_age_of_what_the_filters_hold(n):
    """Along a gradient that changes by a constant per iteration, filters hold g − aₙ Dg, aₙ by its sum."""
    eta, gamma = 1e-3, 0.9
    record = af.adam(eta, beta=0.99, gamma=gamma)
    flow = af.MemorylessFlow(record, include_transient=True)

    @jax.jit
    def found_and_expected(n, params):
        snapshot, g = flow.snapshot(n, params, QUARTIC), jax.grad(QUARTIC)(params)
        first = record.bias_corrected(snapshot.filters, n)[0]["first_moment"]
        return snapshot.filters, first, g, -eta * jax.hessian(QUARTIC)(params) @ jnp.sign(g)

    filters, first, g, drift = found_and_expected(float(n), START)
    weights = gamma ** np.arange(n + 1)
    age = weights @ np.arange(n + 1) / weights.sum()
    np.testing.assert_allclose(first, g - age * drift, rtol=1e-12)
    assert np.min(filters[0]["second_moment"]) > 0


def test_identity_at_equal_decays_without_epsilon_the_correction_vanishes():
    for n in (0.0, 7.5, 300.0):
        flow = af.MemorylessFlow(af.adam(1e-2, beta=0.9, gamma=0.9), include_transient=True)
        expected = -1e-2 * jnp.sign(jax.grad(QUARTIC)(START))
        np.testing.assert_allclose(flow.vector_field(n, START, QUARTIC), expected, rtol=1e-12)


@pytest.mark.parametrize("early", [False, True])
def test_identity_rmsprop_is_adam_with_gamma_zero(early):
    adam = af.Optimizer(1e-2, (af.AdamStage(beta=0.9, gamma=0.0),), epsilon=0.1)
    flows = [af.MemorylessFlow(record, include_transient=early) for record in (adam, af.rmsprop(1e-2, 0.9, 0.1))]
    changes = [flow.vector_field(4.0, START, QUARTIC) for flow in flows]
    np.testing.assert_allclose(changes[0], changes[1], rtol=1e-12)


@pytest.mark.slow
def test_identity_gradients_that_are_zero_do_not_move():
    def loss(p):
        return jnp.sum(p[:2] ** 2)

    run = af.solve(
        af.MemorylessFlow(af.adam(1e-3, beta=0.9, gamma=0.5), include_transient=True),
        loss,
        START,
        20,
        solver=diffrax.Tsit5(),
        save_at=[20],
    )
    assert run.outcome.name == "completed"
    assert float(run.params[0, 2]) == float(START[2])


RATES, TIME = (4e-3, 2e-3, 1e-3), 0.4


@pytest.mark.parametrize(
    ("options", "early"),
    [
        ({"epsilon": 0.0}, True),
        pytest.param({"epsilon": 0.3}, True, marks=pytest.mark.slow),
        ({"epsilon": 0.3}, False),
        pytest.param({"epsilon": 0.3, "epsilon_inside_root": True}, True, marks=pytest.mark.slow),
    ],
    ids=["no epsilon", "epsilon", "epsilon, late form", "epsilon inside"],
)
def test_order_against_the_iterates_is_two(options, early):
    errors = []
    for eta in RATES:
        record = af.adamw(eta, beta=0.8, gamma=0.6, weight_decay=0.1, **options)
        steps = round(TIME / eta)
        saved = np.linspace(0, steps, 11)
        flow = af.MemorylessFlow(record, include_transient=early)
        run = af.solve(flow, QUARTIC, START, steps, save_at=saved, rtol=1e-10, solver=diffrax.Dopri8())
        # The same length for every rate: one program.
        discrete = af.iterate(record, QUARTIC, START, round(TIME / min(RATES)))
        errors.append(np.abs(run.params - discrete.params[saved.astype(int)]).max())
    assert abs(np.polyfit(np.log(RATES), np.log(errors), 1)[0] - 2) < 0.3, errors


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (af.kadam(2, 0.1), "'2-adam' has AdamStage, AdamStage; use af.InterpolatingFlow instead"),
        (af.adabelief(0.1), "'adabelief' has AdaBeliefStage"),
        (af.adafom(0.1), "'adafom' has AdaFomStage"),
        (af.Optimizer(0.1, (AMSGradStage(0.99, 0.9),)), "'optimizer' has AMSGradStage"),
    ],
)
def test_failure_filters_that_cannot_be_eliminated(record, words):
    with pytest.raises(TypeError, match=re.escape(words)):
        af.MemorylessFlow(record)


def test_failure_early_form_without_bias_correction():
    record = af.adam(0.1, bias_correction=False)
    af.MemorylessFlow(record)
    with pytest.raises(ValueError, match="include_transient=True needs bias correction"):
        af.MemorylessFlow(record, include_transient=True)
