"""Answers in words: their numbers on cases where the answer is known, and where it is "not known"."""

import dataclasses
import math

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import adamflow as af


@pytest.fixture(scope="module")
def chain():
    return af.problems.chain(dimension=4)


# --- assess -----------------------------------------------------------------------------------------------------------


def supremum(beta, gamma):
    """The largest of b_n √(Σ ((1−γ)γᵏ)²/((1−β)βᵏ)), summed by hand."""
    n = np.arange(30_000)
    terms = (1 - gamma) ** 2 / (1 - beta) * (gamma**2 / beta) ** n
    factors = np.sqrt(1 - beta ** (n + 1)) / (1 - gamma ** (n + 1))
    return float(np.max(factors * np.sqrt(np.cumsum(terms))))


@given(beta=st.floats(0.05, 0.999), share=st.floats(0.0, 0.99))
def test_formula_largest_update_is_the_largest_of_the_sum(beta, share):
    gamma = share * math.sqrt(beta)
    answer = af.assess(af.adam(1e-3, beta=beta, gamma=gamma))
    assert answer.bounded
    assert answer.largest_update == pytest.approx(supremum(beta, gamma), rel=1e-3)
    assert math.isinf(answer.growth_iterations)


@given(beta=st.floats(0.05, 0.9), share=st.floats(0.01, 0.9))
def test_formula_beyond_the_border_the_bound_grows_by_e(beta, share):
    gamma = math.sqrt(beta) + share * (1 - math.sqrt(beta))
    answer = af.assess(af.adam(1e-3, beta=beta, gamma=gamma))
    assert answer.bounded is False
    assert math.isinf(answer.largest_update)
    assert answer.growth_iterations == pytest.approx(2 / math.log(gamma**2 / beta), rel=1e-9)
    assert "NOT bounded" in str(answer)


def test_formula_edge_and_what_epsilon_does():
    answer = af.assess(af.adamw(2e-3, beta=0.99, gamma=0.8, weight_decay=0.5, epsilon=1e-6))
    edge = (2 - 2e-3 * 0.5) * (1 + 0.8) / (1 - 0.8)
    assert answer.edge == pytest.approx(edge, rel=1e-9)
    assert answer.critical_sharpness == pytest.approx(edge / 2e-3, rel=1e-9)
    assert answer.safe_sharpness == pytest.approx(1e-6 * edge / 2e-3, rel=1e-9)
    assert answer.default.epsilon == 1e-8
    assert "ε = 1e-06" in str(answer)


def test_identity_below_the_safe_sharpness_a_run_of_any_gradients_is_stable():
    """ε alone divides the gradient by enough: on a parabola below it v may be anything."""
    optimizer = af.adam(0.1, beta=0.5, gamma=0.5, epsilon=1.0)
    curvature = 0.99 * af.assess(optimizer).safe_sharpness
    problem = af.problems.quadratic([curvature], start=[1e-6])
    run = af.iterate(optimizer, problem.loss, problem.params, 400)
    assert abs(float(run.params[-1, 0])) < 1e-7


@pytest.mark.parametrize(
    ("optimizer", "bounded", "largest"),
    [(af.signsgd(0.1), True, 1.0), (af.sgd(0.1), False, math.inf), (af.lamb(0.1), None, math.nan)],
    ids=["sign", "sgd", "lamb"],
)
def test_identity_other_optimizers_have_their_own_bound_or_none(optimizer, bounded, largest):
    answer = af.assess(optimizer)
    assert answer.bounded is bounded
    np.testing.assert_equal(answer.largest_update, largest)
    assert str(answer)


def test_identity_words_of_a_run(chain):
    optimizer = af.adam(1e-3)
    run = af.iterate(optimizer, chain.loss, chain.params, 60, observe=af.analysis.largest_update)
    answer = af.assess(optimizer, run)
    assert answer.observed_update == float(run.observed.max())
    assert "reached iteration 60" in answer.run
    assert f"{answer.observed_update:.3g}" in str(answer)
    unread = af.assess(optimizer, af.iterate(optimizer, chain.loss, chain.params, 60, save_at=[0, 60]))
    assert math.isnan(unread.observed_update)
    assert "run it with observe=" in unread.run


def test_failure_what_cannot_be_assessed(chain, unchecked):
    with pytest.raises(TypeError, match="assess"):
        af.assess(af.GouldTanakaFlow(af.adam(1e-3)))
    with pytest.raises(ValueError, match="takes one optimizer with known numbers"):
        af.assess(jax.vmap(af.adam)(jnp.array([0.1, 0.2])))
    with pytest.raises(TypeError, match=r"trajectory must be a run of af.iterate or af.solve, got 3"):
        af.assess(af.adam(1e-3), 3)


# --- recommend --------------------------------------------------------------------------------------------------------


def relu_loss(params):
    return jnp.sum(jnp.maximum(params, 0.1 * params) ** 2 + jnp.maximum(params - 0.5, 0.0))


@pytest.mark.parametrize(
    ("optimizer", "loss", "name", "order"),
    [
        (af.adam(1e-3), None, "ModifiedFlow", 2),
        (af.amsgrad(1e-3), None, "InterpolatingFlow", 2),
        (af.adam(1e-3), relu_loss, "ModifiedFlow", 1),
        (af.signsgd(1e-3), None, "GouldTanakaFlow", 1),
    ],
    ids=["averages", "other memory", "kinks", "signs"],
)
def test_identity_rule_of_the_docs(chain, optimizer, loss, name, order):
    answer = af.recommend(optimizer, loss or chain.loss, chain.params)
    assert (type(answer.flow).__name__, answer.flow.order) == (name, order)
    assert f"af.{name}(optimizer, order={order}" in str(answer)


def test_identity_what_is_recommended_runs_and_is_closer_than_the_flow_of_order_one(chain):
    optimizer = af.adam(3e-3)
    answer = af.recommend(optimizer, chain.loss, chain.params)
    discrete = af.iterate(optimizer, chain.loss, chain.params, 80)
    errors = [
        float(
            af.compare(
                discrete,
                af.solve(flow, chain.loss, chain.params, 80, solver=diffrax.Tsit5(), **answer.options),
            ).max_relative_error
        )
        for flow in (answer.flow, af.GouldTanakaFlow(optimizer))
    ]
    assert errors[0] < errors[1] / 10


def test_identity_past_the_edge_it_is_the_flow_of_the_mean():
    problem = af.problems.quadratic([1.0, 300.0], start=[1.0, 1e-3])
    answer = af.recommend(af.rmsprop(0.05, beta=0.999), problem.loss, problem.params)
    assert answer.scaled_sharpness > 0.9 * answer.edge
    assert isinstance(answer.flow, af.TwoBranchFlow)
    assert "of its edge" in answer.rule


def test_formula_sign_changes_and_gradients():
    """Two of four gradients of a parabola cross zero in the first iterations."""
    problem = af.problems.quadratic(np.ones(4), start=[0.05, -0.05, 3.0, -3.0])
    answer = af.recommend(af.adam(0.02, beta=0.9, gamma=0.5), problem.loss, problem.params)
    assert answer.sign_changes == 0.5
    assert answer.iterations == 10
    assert answer.gradients == 11 + 2 * 18


def test_identity_a_loss_without_second_derivatives():
    @jax.custom_vjp
    def loss(params):
        return jnp.sum(params**2)

    def backward(params, seed):
        shape = jax.ShapeDtypeStruct(params.shape, params.dtype)
        return (seed * jax.pure_callback(lambda x: 2 * np.asarray(x), shape, params),)

    loss.defvjp(lambda params: (loss(params), params), backward)
    answer = af.recommend(af.adam(1e-3), loss, jnp.ones(3))
    assert not answer.second_derivatives
    assert isinstance(answer.flow, af.InterpolatingFlow)
    assert math.isnan(answer.scaled_sharpness)


def test_failure_recommend(chain, unchecked):
    with pytest.raises(ValueError, match="call it outside of jit"):
        jax.jit(lambda params: af.recommend(af.adam(1e-3), chain.loss, params).parameters)(chain.params)
    with pytest.raises(ValueError, match="loss must be a function"):
        af.recommend(af.adam(1e-3), 3.0, chain.params)


# --- explain ----------------------------------------------------------------------------------------------------------


def both(optimizer, flow, problem, steps, solver=None, **options):
    """A discrete and a continuous run; an explicit solver compiles fast."""
    discrete = af.iterate(optimizer, problem.loss, problem.params, steps)
    options |= {"solver": solver or diffrax.Tsit5(), "on_failure": "ignore"}
    return discrete, af.solve(flow, problem.loss, problem.params, steps, **options)


def names(answer):
    return [cause.name for cause in answer.met]


def test_identity_a_coordinate_arrives_and_bounces():
    """The iterates of one coordinate bounce by η/2 about 0, where the flow ends; the others are on their way."""
    problem = af.problems.quadratic(np.ones(6), start=[0.05, 3.0, 3.1, 3.2, 3.3, 3.4])
    optimizer = af.rmsprop(0.02, beta=0.5)
    runs = both(optimizer, af.GouldTanakaFlow(optimizer, rate="exact"), problem, 60, solver="auto")
    answer = af.explain(*runs, optimizer, problem.loss, tolerance=0.004)
    assert names(answer) == ["edge of stability", "sign change"]
    assert "1 of 6 coordinates" in answer.met[1].evidence
    agrees = af.explain(*runs, optimizer, problem.loss, tolerance=0.1)
    assert agrees.departs_at is None
    assert agrees.causes == ()
    assert "Both agree within" in str(agrees)


def test_identity_the_iterates_pass_their_edge():
    """Gradient descent past η times the curvature = 2, by a small part of the distance at first."""
    problem = af.problems.quadratic([0.1, 1.0], start=[10.0, 0.01])
    optimizer = af.sgd(2.1)
    answer = af.explain(
        *both(optimizer, af.GouldTanakaFlow(optimizer), problem, 60), optimizer, problem.loss, tolerance=0.2
    )
    assert "edge of stability" in names(answer)
    cause = next(cause for cause in answer.causes if cause.name == "edge of stability")
    assert cause.value == pytest.approx(2.1 / 2, rel=1e-6)
    assert "edge of the flow (give flow= for it.)" in " ".join(str(answer).split())


def test_identity_the_flow_passes_its_own_edge():
    """Order 2 of [GT] is unstable from ηs = 2 + a on, where the iterates are stable."""
    problem = af.problems.quadratic([0.002, 1.0], start=[100.0, 1e-3])
    optimizer = af.sgd(8.0, gamma=0.9)
    flow = af.GouldTanakaFlow(optimizer, order=2)
    answer = af.explain(*both(optimizer, flow, problem, 150), optimizer, problem.loss, flow=flow, tolerance=0.05)
    assert names(answer) == ["edge of the flow"]
    assert answer.met[0].value == pytest.approx(8 / (2 + 1 / 9), rel=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_identity_the_solver_is_the_cause(chain, dtype):
    """With steps of 30 iterations the solver's error is what is seen, and a run at a tight tolerance says so."""
    optimizer = af.adam(1e-3)
    flow = af.GouldTanakaFlow(optimizer, rate="exact")
    problem = dataclasses.replace(chain, params=chain.params.astype(dtype))
    runs = both(optimizer, flow, problem, 60, step_size=30.0)
    answer = af.explain(*runs, optimizer, chain.loss, flow=flow)
    assert "solver" in names(answer)


def test_identity_second_moments_underflow():
    optimizer = af.adam(0.05, beta=0.9, gamma=0.8)

    def loss(params):
        return jnp.sum(params**2) + 1e-30 * jnp.sum(params)

    params = jnp.array([3e-24, 1.0], jnp.float32)
    discrete = af.iterate(optimizer, loss, params, 30, on_failure="ignore")
    other = af.solve(af.GouldTanakaFlow(optimizer), loss, params, 30, solver="collocation", on_failure="ignore")
    answer = af.explain(discrete, other, optimizer, loss, tolerance=1e-4)
    assert "underflow" in names(answer)


def test_failure_explain(chain, unchecked):
    optimizer = af.adam(1e-3)
    flow = af.GouldTanakaFlow(optimizer)
    runs = both(optimizer, flow, chain, 30)
    with pytest.raises(ValueError, match="are not those of this optimizer and loss"):
        af.explain(*runs, af.adam(2e-3), chain.loss, tolerance=1e-6)
    with pytest.raises(TypeError, match="flow must be a flow"):
        af.explain(*runs, optimizer, chain.loss, flow=optimizer)
    with pytest.raises(ValueError, match="tolerance"):
        af.explain(*runs, optimizer, chain.loss, tolerance=0.0)


def test_failure_a_schedule_is_no_number(chain):
    scheduled = af.adam(optax.constant_schedule(1e-3))
    words = "has equations for numbers alone, .* take optimizer.at\\(iteration\\)"
    for call in (
        lambda: af.assess(scheduled),
        lambda: af.recommend(scheduled, chain.loss, chain.params),
        lambda: af.scale_batch(scheduled, 2),
        lambda: af.noise.svag(scheduled, chain.loss, lambda n: None, 2),
        lambda: af.noise.mean_square_edge(scheduled, [1.0], 4),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    assert af.assess(scheduled.at(3)).learning_rate == pytest.approx(1e-3)
