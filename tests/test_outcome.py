"""A run that does not complete says so at the caller's line."""

import warnings
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamflow as af

SIGN = af.signsgd(0.1)
OPTIONS = {"solver": diffrax.Tsit5()}
START = jnp.full(2, 1.05)


def root_loss(params):
    """Not finite, nor is its gradient, once a parameter is negative: after 10 steps of .1."""
    return jnp.sum(jnp.sqrt(params))


def discrete(**options):
    return af.iterate(SIGN, root_loss, START, 30, **options)


def continuous(**options):
    return af.solve(af.GouldTanakaFlow(SIGN), root_loss, START, 30, **OPTIONS, **options)


@pytest.mark.parametrize("make", [discrete, continuous])
def test_failure_warns_at_the_line_of_the_call(make):
    with pytest.warns(af.IncompleteRunWarning, match="did not complete; not finite: after iteration 10 ") as caught:
        run = make()
    assert len(run) == 11
    line = Path(__file__).read_text().splitlines()[caught[0].lineno - 1]
    assert caught[0].filename == __file__
    assert line.startswith("    return af.")
    assert 'Give on_failure="raise" for an error' in str(caught[0].message)


@pytest.mark.parametrize("make", [discrete, continuous])
def test_failure_raises_an_error_that_carries_the_run(make):
    with pytest.raises(af.IncompleteRunError, match="did not complete; not finite: after iteration 10 ") as caught:
        make(on_failure="raise")
    assert isinstance(caught.value, RuntimeError)
    np.testing.assert_allclose(caught.value.trajectory.params[:, 0], 1.05 - 0.1 * np.arange(11), atol=1e-6)


def test_identity_what_is_said_of_a_failure_does_not_change_the_run():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        silent = discrete(on_failure="ignore")
        # Within a larger program the outcome has no number yet.
        traced = jax.jit(lambda: discrete(on_failure="raise").params)()
        complete = af.iterate(SIGN, root_loss, START, 10, on_failure="raise")
    assert silent.outcome.name == "not_finite"
    np.testing.assert_allclose(silent.params, traced[:11], rtol=1e-12)
    assert np.isnan(traced[11:]).all()
    assert complete.outcome.name == "completed"


def test_failure_a_run_that_saved_nothing():
    with pytest.warns(af.IncompleteRunWarning, match=r"It saved nothing, since .* of its save_at, 20\. Give"):
        assert len(discrete(save_at=[20, 30])) == 0


@pytest.mark.parametrize("make", [discrete, continuous])
def test_failure_an_unknown_way_to_treat_failures(make, unchecked):
    with pytest.raises(ValueError, match=r"on_failure must be one of 'warn', 'raise', 'ignore', got 'throw', a str"):
        make(on_failure="throw")


def test_failure_the_run_that_estimates_the_error_ends_early():
    problem, flow = af.problems.chain(4), af.GouldTanakaFlow(af.adam(1e-3))
    # The second run takes steps of half the size.
    options = dict(step_size=1.0, max_steps=30, estimate_error=True, **OPTIONS)
    with pytest.warns(af.IncompleteRunWarning, match=r"completed, but not the second one, .* is NaN after iteration "):
        run = af.solve(flow, problem.loss, problem.params, 20, **options)
    assert run.outcome.successful
    assert np.isnan(run.error_estimate[-1])
    assert np.isfinite(run.error_estimate[0])


def test_failure_an_error_can_be_sent_to_another_process():
    import pickle

    with pytest.raises(af.IncompleteRunError) as caught:
        discrete(on_failure="raise")
    sent = pickle.loads(pickle.dumps(caught.value))
    assert str(sent) == str(caught.value)
    assert len(sent.trajectory) == 11
