"""The flow from the discrete step alone: its series on linear maps, its order, every record, and bad input."""

import re
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamflow as af
from adamflow.analysis.stability.linear import linear_system
from adamflow.optimizers import AdaBeliefStage, AdaFomStage, AdanStage, AMSGradStage, GradientStage, MomentumStage
from tests.stages import CountingStage

EXPLICIT = diffrax.Dopri8()


class Quartic(eqx.Module):
    """Σ c θ²/2 + θ⁴/4, times a factor."""

    curvatures: jax.Array
    factor: jax.Array

    def __call__(self, params):
        return self.factor * jnp.sum(self.curvatures * params**2 / 2 + params**4 / 4)


QUARTIC = Quartic(jnp.array([0.5, 1.0, 3.0]), jnp.asarray(1.0))
START = jnp.array([1.0, -1.2, 1.4])


@pytest.mark.parametrize("order", [1, 2, 3, 6])
def test_formula_of_a_linear_map_is_the_series_of_its_logarithm(order):
    """θ⁺ = θ − η(λθ + m⁺), m⁺ = γm + (1−γ)sθ: the rates of its multipliers are Σ (−1)^{k+1}(μ−1)ᵏ/k."""
    eta, gamma, s, decay = 0.1, 0.9, 1.5, 0.2
    record = af.Optimizer(eta, (MomentumStage(gamma),), weight_decay=decay, bias_correction=False)
    step = np.array([[1 - eta * decay - eta * (1 - gamma) * s, -eta * gamma], [(1 - gamma) * s, gamma]])
    shift = step - np.eye(2)
    expected = sum((-1) ** (k + 1) / k * np.linalg.matrix_power(shift, k) for k in range(1, order + 1))

    def loss(p):
        return s * p**2 / 2

    flow = af.InterpolatingFlow(record, order=order)
    state = flow.initial_state(loss, jnp.asarray(0.7))
    state = eqx.tree_at(lambda s: s.filters[0]["first_moment"], state, jnp.asarray(-0.4))
    change = flow.vector_field(3.0, state, loss)
    np.testing.assert_allclose([change.params, change.filters[0]["first_moment"]], expected @ [0.7, -0.4], rtol=1e-12)


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("record", [af.adam(0.01, beta=0.95, gamma=0.9), af.kadam(2, 0.01, beta=0.99, gamma=0.9)])
def test_identity_map_flow_has_the_series_of_the_logarithm_of_the_multipliers(record, order):
    curvatures = jnp.array([1.0, 50.0, 700.0])
    rates = af.analysis.linear_stability(record, curvatures, model=af.InterpolatingFlow(record, order=order))
    multipliers = np.linalg.eigvals(linear_system(record, curvatures))
    expected = sum((-1) ** (k + 1) / k * (multipliers - 1) ** k for k in range(1, order + 1)).real.max(-1)
    np.testing.assert_allclose(rates, expected, rtol=1e-8)


def test_identity_sign_descent_of_order_one_is_the_flow_of_the_paper():
    record = af.signsgd(0.01, weight_decay=0.5)
    flows = (af.GouldTanakaFlow(record), af.InterpolatingFlow(record, order=1))
    changes = [flow.vector_field(0.0, flow.initial_state(QUARTIC, START), QUARTIC).params for flow in flows]
    np.testing.assert_allclose(changes[1], changes[0], rtol=1e-15)


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(record, marks=pytest.mark.slow)
        for record in (af.adam(0.01, beta=0.95, gamma=0.8), af.Optimizer(0.01, (AdaFomStage(0.9),)))
    ],
    ids=["adam", "decay that varies"],
)
def test_identity_a_constant_gradient_is_averaged_exactly(record):
    def loss(p):
        return jnp.sum(jnp.array([3.0, -1e-3]) * p)

    def look(s):
        return s.params, s.direction, s.filters

    start, saved = jnp.array([1.0, 2.0]), [0, 1, 7, 40]
    discrete = af.iterate(record, loss, start, 40, save_at=saved, observe=look)
    run = af.solve(af.InterpolatingFlow(record, order=2), loss, start, 40, save_at=saved, observe=look, solver=EXPLICIT)
    for a, b in zip(jax.tree.leaves(discrete.observed), jax.tree.leaves(run.observed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


RATES, TIME = (4e-3, 2e-3, 1e-3), 0.4


def order_of(make_record, order, first=0):
    """The slope of the largest distance from the iterates, of runs that start at iteration `first`."""
    errors, longest = [], first + round(TIME / min(RATES))
    for eta in RATES:
        record, steps = make_record(eta), first + round(TIME / eta)
        theta, start = START, None
        if first:
            theta, memory = af.iterate(record, QUARTIC, START, first, save_at=[first]).final_state
            start = (first, memory)
        saved = np.linspace(first, steps, 11)
        flow = af.InterpolatingFlow(record, order=order)
        options: Any = {"start": start, "save_at": saved, "rtol": 1e-11, "solver": EXPLICIT}
        run = af.solve(flow, QUARTIC, theta, steps, **options)
        # The same length for every rate: one program.
        discrete = af.iterate(record, QUARTIC, START, longest)
        errors.append(np.abs(run.params - discrete.params[saved.astype(int)]).max())
    return np.polyfit(np.log(RATES), np.log(errors), 1)[0]


@pytest.mark.slow
@pytest.mark.parametrize("order", [2, 4])
def test_order_without_filters_is_p(order):
    assert abs(order_of(lambda eta: af.Optimizer(eta, (GradientStage(),)), order) - order) < 0.3


def adamw(eta, **options):
    return af.adamw(eta, beta=0.5, gamma=0.6, epsilon=0.3, weight_decay=0.1, **options)


@pytest.mark.parametrize("order", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_order_of_adam_is_p_once_its_filters_have_settled(order):
    assert abs(order_of(adamw, order, first=40) - order) < 0.3


@pytest.mark.slow
@pytest.mark.parametrize(("correction", "attained"), [(True, 2), (False, 1)])
def test_order_of_adam_from_the_start_is_two_and_one_without_bias_correction(correction, attained):
    """What the wrong rates of the filters leave of their start."""
    assert abs(order_of(lambda eta: adamw(eta, bias_correction=correction), 3) - attained) < 0.3


RECORDS = {
    "amsgrad": af.Optimizer(1e-3, (AMSGradStage(0.99, 0.9),)),
    "adan": af.Optimizer(1e-3, (AdanStage(0.99, 0.95, 0.9, 0.1),), weight_decay=0.1),
    "adabelief": af.Optimizer(1e-3, (AdaBeliefStage(0.99, 0.9),), epsilon=0.1),
    "adafom": af.Optimizer(1e-3, (AdaFomStage(0.9),)),
    "adabound": af.adabound(1e-3, beta=0.99, final_learning_rate=1e-3, convergence_rate=0.01),
    "2-adam": af.kadam(2, 1e-3, beta=0.99, gamma=0.9),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDS)
def test_identity_every_record_has_a_flow_beside_its_iterates(name):
    """On a way of about ηN in each coordinate the flow stays within a hundredth of it."""
    record = RECORDS[name]
    flow = af.InterpolatingFlow(record, order=2)
    run = af.solve(flow, QUARTIC, START, 50, save_at=[1, 10, 50], rtol=1e-7, solver=diffrax.Tsit5())
    discrete = af.iterate(record, QUARTIC, START, 50, save_at=[1, 10, 50])
    assert run.outcome.name == "completed"
    assert af.compare(discrete, run).max_relative_error < 0.01


@pytest.mark.slow
def test_identity_implicit_and_explicit_solvers_agree_at_any_scale_of_the_loss():
    flow = af.InterpolatingFlow(af.adam(1e-3, beta=0.95), order=2)
    runs = [
        af.solve(flow, Quartic(QUARTIC.curvatures, jnp.asarray(factor)), START, 100, rtol=1e-6, solver=solver)
        for factor, solver in ((1.0, diffrax.Tsit5()), (1e-6, "auto"), (1e5, "auto"))
    ]
    for run in runs[1:]:
        np.testing.assert_allclose(run.params, runs[0].params, atol=1e-5)


@pytest.mark.slow
def test_identity_pytrees_single_precision_and_gradients_that_are_zero():
    params = {"w": jnp.array([1.0, -1.0], jnp.float32), "b": (jnp.float32(0.5),)}

    def loss(p):
        return jnp.sum(p["w"] ** 2)

    run = af.solve(af.InterpolatingFlow(af.adam(1e-2), order=3), loss, params, 40, solver=diffrax.Tsit5())
    assert run.outcome.name == "completed"
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(run.params))
    np.testing.assert_array_equal(run.params["b"][0], 0.5)
    assert af.compare(af.iterate(af.adam(1e-2), loss, params, 40), run).max_relative_error < 0.01


def test_failure_start_with_a_gradient_that_is_not_finite():
    with pytest.raises(ValueError, match="the loss or its gradient is not finite at the start"):
        af.solve(af.InterpolatingFlow(af.adam(0.1)), lambda p: jnp.sum(jnp.sqrt(p)), jnp.zeros(2), 10)


@pytest.mark.parametrize("order", [0, -1, 1.5, True, None])
def test_failure_order_that_is_no_whole_number(order: Any, unchecked):
    words = f"order must be a whole number of at least 1, got {order!r}"
    with pytest.raises(ValueError, match=re.escape(words)):
        af.InterpolatingFlow(af.adam(0.1), order=order)


def test_failure_memory_that_cannot_move_continuously():
    with pytest.raises(TypeError, match="CountingStage keeps memory that is not made of floats"):
        af.InterpolatingFlow(af.Optimizer(0.1, (CountingStage(),)))
