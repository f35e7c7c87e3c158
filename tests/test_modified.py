"""The modified flow against the iterates it follows, order by order, and its coefficients against their series."""

import functools
from fractions import Fraction

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamflow as af
from adamflow.flows.modified import filter_coefficients, step_coefficients
from adamflow.optimizers import AdaBeliefStage, AdaFomStage, AMSGradStage

SPAN = 1.6
PRECISE = {"solver": diffrax.Tsit5(), "rtol": 1e-11, "atol": 1e-13}

#: Its gradient is positive where all θ are.
PROBLEM = af.problems.quartic(start=[3.0, 2.5, 2.8, 3.2, 2.6, 3.4])
LOSS, START = PROBLEM.loss, PROBLEM.params
ADAMW = {"beta": 0.999, "gamma": 0.9, "weight_decay": 0.1}
COARSE = 0.04


def errors(constructor, flow, *, ratio=2, look=None, after=0.0, **numbers):
    """The largest distance from the iterates at times up to 1.6, at η = .04 and `ratio` times less, in one program."""
    steps = round(SPAN / COARSE) * ratio
    found = []
    for eta in (COARSE, COARSE / ratio):
        record, rows = constructor(eta, **numbers), slice(round(after / eta), round(SPAN / eta) + 1)
        iterates = af.iterate(record, LOSS, START, steps, observe=look)
        run = af.solve(flow(record), LOSS, START, steps, observe=look, **PRECISE)
        assert run.outcome.successful
        sides = ((r.params if look is None else r.observed) for r in (run, iterates))
        apart = jax.tree.map(lambda a, b, rows=rows: float(jnp.abs(a - b)[rows].max()), *sides)
        found.append(max(jax.tree.leaves(apart)))
    return found


@pytest.mark.parametrize("order", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_order_of_the_flow_is_its_own(order):
    # At order 3 what m leaves in the first iterations, of size η² A⁴/720, is below what is seen here.
    coarse, fine = errors(af.adamw, lambda record: af.ModifiedFlow(record, order), **ADAMW)
    assert order - 0.25 < np.log2(coarse / fine) < order + (0.6 if order == 3 else 0.25)


@pytest.mark.slow
def test_formula_errors_of_the_equations_page():
    # η = .005, β = .999, γ = .9, λ = .1, up to t = 1.6: at most 2.5e-6 for p = 2 and 7e-9 for p = 3.
    for order, most in ((2, 2.5e-6), (3, 7e-9)):
        _, fine = errors(af.adamw, lambda record, order=order: af.ModifiedFlow(record, order), ratio=8, **ADAMW)
        assert most / 50 < fine < most


@pytest.mark.slow
@pytest.mark.parametrize(
    ("constructor", "numbers"),
    [
        (af.rmsprop, {"beta": 0.99}),
        (af.adamw, {"beta": 0.99, "gamma": 0.8, "epsilon": 1.0, "epsilon_inside_root": True, "weight_decay": 0.1}),
    ],
)
def test_order_two_for_other_records(constructor, numbers):
    coarse, fine = errors(constructor, lambda record: af.ModifiedFlow(record, 2), **numbers)
    assert 1.75 < np.log2(coarse / fine) < 2.35


@pytest.mark.slow
def test_order_of_directions_of_two_stages():
    def look(snapshot):
        return snapshot.params, snapshot.direction

    # After the first iterations, in which the filters of two stages settle one after the other.
    kadam, settled = functools.partial(af.kadam, 2, beta=0.99, gamma=0.8), 0.8
    coarse, fine = errors(kadam, lambda record: af.ModifiedFlow(record, 2), look=look, after=settled)
    assert 1.75 < np.log2(coarse / fine) < 2.6


def test_identity_order_one_is_the_flow_of_the_paper_with_exact_rates():
    record = af.kadam(2, 0.02, weight_decay=0.1)
    flows = af.ModifiedFlow(record, 1), af.GouldTanakaFlow(record, rate="exact")
    state = flows[0].initial_state(LOSS, START)
    ours, theirs = (flow.vector_field(3.0, state, LOSS) for flow in flows)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13)


@pytest.mark.slow
def test_identity_filters_that_read_others_are_followed_to_order_from_a_discrete_state():
    # AdaBelief's second moment is driven by its first one; both have settled where the flow starts.
    apart, steps = [], 120
    for eta in (0.02, 0.01):
        record, begin = af.Optimizer(eta, (AdaBeliefStage(0.5, 0.8),), epsilon=30.0), round(1 / eta)
        first = af.iterate(record, LOSS, START, begin)
        flow = af.ModifiedFlow(record, 2)
        run = af.solve(flow, LOSS, first.final_state[0], steps, start=(begin, first.final_state[1]), **PRECISE)
        np.testing.assert_array_equal(run.iterations, np.arange(begin, steps + 1))
        iterates = af.iterate(record, LOSS, START, steps)
        np.testing.assert_array_equal(run.params[0], iterates.params[begin])
        upto = round(1.2 / eta) + 1
        apart.append(float(jnp.abs(run.params[: upto - begin] - iterates.params[begin:upto]).max()))
    assert np.log2(apart[0] / apart[1]) > 1.75


def test_formula_coefficients_are_those_of_their_series():
    np.testing.assert_allclose(step_coefficients(6), [1, -1 / 2, 1 / 12, 0, -1 / 720, 0], atol=1e-16)
    # (1 + y/A)(1−α) = Σ c_j y^j · (1 − α e^{−y}), by exact arithmetic in the decay, for α on both sides of 1/e.
    for decay in (0.05, 0.3, 0.36, 0.37, 0.9, 0.999, 0.99999):
        c, rate = [float(x) for x in filter_coefficients(decay, 6)], -np.log(decay)
        assert c[0] == pytest.approx(1, rel=1e-13)
        kernel = [Fraction((-1) ** (i + 1), int(np.prod(range(1, i + 1)))) * Fraction(decay) for i in range(6)]
        kernel[0] += 1
        for k in range(1, 6):
            product = sum(Fraction(c[j]) * kernel[k - j] for j in range(k + 1))
            expected = (1 - decay) / rate if k == 1 else 0.0
            assert float(product) == pytest.approx(expected, abs=2e-13 * decay)
    np.testing.assert_allclose(filter_coefficients(0.9, 3)[1:], [0.4912215810, 0.0790057707], atol=1e-10)


@pytest.mark.slow
def test_formula_linear_stability_is_that_of_the_truncated_series():
    # RMSprop: θ' = −η s Σ B_j/j! D^j θ has the growth rate d with d = −ηs Σ_{j<p} B_j/j! d^j, order by order in ηs.
    s = 1e-2
    record = af.rmsprop(1.0)
    for order in (1, 2):
        rate = float(af.analysis.linear_stability(record, s, model=af.ModifiedFlow(record, order)))
        assert rate == pytest.approx(np.log1p(-s), abs=s ** (order + 1))


@pytest.mark.slow
@pytest.mark.parametrize("order", [2, 3, 4])
def test_formula_edge_is_that_of_the_recursion_written_out_for_theta_and_m(order):
    """By pass s: the derivatives D^k of θ and m as rows over (θ, m), k ≤ s, from those of pass s − 1."""
    gamma, record = 0.9, af.adam(1.0, gamma=0.9)
    rate, steps = -np.log(gamma), step_coefficients(order)
    weights = np.asarray(filter_coefficients(gamma, order))

    def growth(curvature):
        theta, m = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
        for level in range(1, order + 1):
            rows = [m[0]]
            for k in range(level):
                driving = sum(weights[j] * curvature * theta[j + k] for j in range(level - k))
                rows.append(rate * (driving - rows[k]))
            m = np.array(rows)
            theta = np.array([theta[0], *(-sum(steps[j] * m[j + k] for j in range(level - k)) for k in range(level))])
        return np.linalg.eigvals(np.array([theta[1], m[1]])).real.max()

    edge = float(af.analysis.critical_curvature(record, model=af.ModifiedFlow(record, order)))
    assert growth(edge * (1 - 1e-9)) < 0 < growth(edge * (1 + 1e-9))


@pytest.mark.slow
def test_identity_edges_in_single_precision():
    record = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), af.adam(1.0, gamma=0.9))
    edge = af.analysis.critical_curvature(record, model=af.ModifiedFlow(record, 2))
    assert edge.dtype == jnp.float32
    expected = af.analysis.critical_curvature(af.adam(1.0, gamma=0.9), model=af.ModifiedFlow(af.adam(1.0), 2))
    assert float(edge) == pytest.approx(float(expected), rel=1e-3)


def test_failure_orders_and_records_that_have_none(unchecked):
    with pytest.raises(ValueError, match="order must be a whole number of at least 1, got 0"):
        af.ModifiedFlow(af.adam(1e-3), 0)
    with pytest.raises(
        TypeError,
        match=r"ModifiedFlow needs stages made of moving averages, but AMSGradStage .* take af\.InterpolatingFlow",
    ):
        af.ModifiedFlow(af.Optimizer(1e-3, (AMSGradStage(0.99, 0.9),)))
    with pytest.raises(
        TypeError,
        match=r"ModifiedFlow needs constant decays, but one of AdaFomStage depends .* take af\.InterpolatingFlow",
    ):
        af.ModifiedFlow(af.Optimizer(1e-3, (AdaFomStage(0.9),)))


@pytest.mark.slow
@pytest.mark.parametrize("order", [4, 5])
def test_order_four_and_five_where_no_filter_is_fast(order):
    # Without m the rate is A = .01: what v leaves in the first iterations, A⁴/720 of it, is below rounding. With m that
    # part, of order 2 in η, is seen: at γ = .5 it rules order 4; at γ = .9 slopes are 4.3 and 5.9 until it does.
    coarse, fine = errors(af.rmsprop, lambda record: af.ModifiedFlow(record, order), beta=0.99)
    assert order - 0.25 < np.log2(coarse / fine) < order + 0.25


def test_formula_stats_count_derivatives_of_the_gradient_as_two():
    # Of order 2: a gradient in the first pass; in the second one more, merged with the first, and its derivative.
    flow, steps = af.ModifiedFlow(af.adamw(COARSE, **ADAMW), 2), 2 * round(SPAN / COARSE)
    run = af.solve(flow, LOSS, START, steps, start=None, **PRECISE)
    attempted = run.stats.accepted_steps + run.stats.rejected_steps
    # Tsit5 takes six vector fields in an attempted step and one before the first.
    assert run.stats.gradient_evaluations == 2 + (1 + 2) * (1 + 6 * attempted)


def test_failure_orders_that_compile_for_minutes_are_named():
    flow = af.ModifiedFlow(af.adam(0.01), order=5)
    problem = af.problems.quadratic([0.5, 1.0])
    with pytest.warns(UserWarning, match=r"may compile for many minutes.*InterpolatingFlow\(order=5\)"):
        flow.initial_state(problem.loss, problem.params)


def test_failure_losses_with_kinks_are_named_and_run():
    def kinked(params):
        return jnp.sum(jax.nn.relu(params) ** 2) + jnp.sum(jnp.clip(params, -1.0, 1.0))

    flow = af.ModifiedFlow(af.adam(1e-3), 2)
    with pytest.warns(UserWarning, match="of order 2 differentiates the loss 3 times, but .*take a smooth activation"):
        assert np.isfinite(flow.initial_state(kinked, START).filters[0]["first_moment"]).all()

    # Programs that compare and bound but are smooth in the parameters: no warning, which would be an error here.
    def smooth(x):
        masked = jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, x.shape) & (jnp.arange(6.0) > 1.0), x, 0.0)
        return jax.nn.softplus(masked).sum() + jax.nn.logsumexp(x) + jax.nn.gelu(x).sum() + jnp.var(x)

    flow.initial_state(smooth, START)
    af.ModifiedFlow(af.adam(1e-3), 1).initial_state(kinked, START)


class Drifting(eqx.Module):
    """A loss times e^(rate n), with the iteration as its batch."""

    loss: eqx.Module
    rate: jax.Array

    def __call__(self, params, n):
        return jnp.exp(self.rate * n) * self.loss(params)


@pytest.mark.parametrize(("beta", "gamma", "order"), [(0.9, 0.9, 2), (0.95, 0.9, 1), (0.9, 0.95, 1)])
def test_order_of_a_drifting_scale_is_two_at_equal_decays(beta, gamma, order):
    # u = Σ wₖ g e^{−ck} / √(Σ wₖ g² e^{−2ck}): to first order in c the mean ages of both filters cancel.
    moved = []
    for eta in (0.004, 0.002):
        ends = [
            af.iterate(
                af.adam(eta, beta=beta, gamma=gamma),
                Drifting(LOSS, jnp.asarray(c * eta)),
                START,
                round(SPAN / 0.002),
                batches=jnp.asarray,
            ).params[: round(SPAN / eta)]
            for c in (0.0, 1.0)
        ]
        moved.append(float(jnp.abs(ends[1] - ends[0]).max()))
    assert order - 0.2 < np.log2(moved[0] / moved[1]) < order + 0.2
