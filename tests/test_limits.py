"""The limits of Adam: γ → 0 is RMSprop, β and γ → 0 is sign descent, for iterates and flows alike, and how fast."""

import diffrax
import numpy as np
import pytest

import adamflow as af

RATE, STEPS = 0.01, 40
BETA = 0.9
SMALL = np.array([1e-2, 1e-3, 1e-4])
#: A filter of a flow relaxes (1−α)/α times per iteration, so smaller decays are as many more steps.
SMALL_OF_FLOWS = np.array([0.05, 0.025, 0.0125])
PROBLEM = af.problems.quartic([1.0, 4.0], start=[1.0, 2.0])


def iterates(optimizer):
    return np.asarray(af.iterate(optimizer, PROBLEM.loss, PROBLEM.params, STEPS, save_at=[STEPS]).params)


def flow(rate):
    """From a record to the end of its flow of order 1."""

    def end(optimizer):
        run = af.solve(
            af.GouldTanakaFlow(optimizer, rate=rate),
            PROBLEM.loss,
            PROBLEM.params,
            STEPS,
            save_at=[STEPS],
            rtol=1e-8,
            atol=1e-12,
            solver=diffrax.Tsit5(),
        )
        assert run.outcome.successful
        return np.asarray(run.params)

    return end


def momentum_vanishes(end, decays):
    """By γ the distance of Adam from RMSprop."""
    limit = end(af.rmsprop(RATE, BETA))
    return np.array([np.abs(end(af.adam(RATE, beta=BETA, gamma=decay)) - limit).max() for decay in decays])


def both_vanish(end, decays):
    """By γ = 2β the distance of Adam from sign descent; at γ = β the first order in γ would cancel."""
    limit = end(af.signsgd(RATE))
    return np.array([np.abs(end(af.adam(RATE, beta=decay / 2, gamma=decay)) - limit).max() for decay in decays])


def slope(errors, sizes):
    return np.polyfit(np.log(sizes), np.log(errors), 1)[0]


@pytest.mark.parametrize("limit", [momentum_vanishes, both_vanish])
def test_order_iterates_of_adam_reach_their_limit_linearly_in_the_decays(limit):
    errors = limit(iterates, SMALL)
    assert errors[-1] > 0
    assert slope(errors, SMALL) == pytest.approx(1.0, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [momentum_vanishes, both_vanish])
def test_order_flows_of_adam_reach_their_limit_linearly_in_the_decays(limit):
    assert slope(limit(flow("gould_tanaka"), SMALL_OF_FLOWS), SMALL_OF_FLOWS) == pytest.approx(1.0, abs=0.1)


@pytest.mark.slow
def test_order_flows_with_exact_rates_reach_their_limit_as_slowly_as_the_logarithm():
    # A filter with rate −ln γ lags behind by 1/|ln γ| iterations.
    decays = np.array([1e-2, 1e-4, 1e-8])
    errors = momentum_vanishes(flow("exact"), decays)
    assert slope(errors, 1 / np.abs(np.log(decays))) == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("k", [2, 3])
def test_identity_kadam_without_memory_is_sign_descent(k):
    np.testing.assert_allclose(
        iterates(af.kadam(k, RATE, beta=1e-14, gamma=1e-14)), iterates(af.signsgd(RATE)), atol=1e-12
    )


def test_identity_sign_flow_is_the_straight_line_of_the_iterates():
    # No gradient coordinate of this problem crosses zero on the way.
    expected = np.asarray(PROBLEM.params) - RATE * STEPS
    np.testing.assert_allclose(iterates(af.signsgd(RATE))[0], expected, rtol=1e-12)
    np.testing.assert_allclose(flow("gould_tanaka")(af.signsgd(RATE))[0], expected, rtol=1e-9)
