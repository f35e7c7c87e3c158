"""Where a run of a flow starts: at 0, or behind the first iterations, which the optimizer then makes."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamflow as af

#: One coordinate starts so close to its minimum that its gradient crosses 0 in the second iteration.
CROSSING = af.problems.quadratic([0.5, 20.0], start=[1e-3, 1.0])
ADAM = af.adam(1e-2)
FLOW = af.ModifiedFlow(ADAM, order=2)
EXPLICIT = {"solver": diffrax.Tsit5()}

#: Flows of order 2 on problems of their own: each test compiles several programs.
pytestmark = pytest.mark.slow


def test_failure_a_flow_that_stalls_in_the_transient_is_told_to_start_later():
    with pytest.warns(af.IncompleteRunWarning, match="It saved nothing"):
        run = af.solve(FLOW, CROSSING.loss, CROSSING.params, 40, start=None, save_at=[40], **EXPLICIT)
    assert run.outcome.name == "min_step_reached"
    assert "leave these to the optimizer by start=20." in run.outcome.message


@pytest.mark.parametrize("flow", [FLOW, af.InterpolatingFlow(ADAM, order=2)], ids=["modified", "map"])
def test_identity_the_first_rows_are_the_iterates_where_a_gradient_changes_its_sign(flow):
    iterates = af.iterate(ADAM, CROSSING.loss, CROSSING.params, 60)
    run = af.solve(flow, CROSSING.loss, CROSSING.params, 60, **EXPLICIT)
    assert run.outcome.name == "completed"
    assert run.stats.discrete_steps == 20
    np.testing.assert_allclose(run.params[:21], iterates.params[:21], rtol=1e-13)
    assert not np.array_equal(run.params[21], iterates.params[21])
    assert af.compare(iterates, run).max_relative_error < 5e-3
    # The same state, handed over by hand.
    begin = af.iterate(ADAM, CROSSING.loss, CROSSING.params, 20)
    by_hand = af.solve(flow, CROSSING.loss, begin.final_state[0], 60, start=(20, begin.final_state[1]), **EXPLICIT)
    np.testing.assert_allclose(run.params[20:], by_hand.params, rtol=1e-9)
    # An accepted step for each iteration, a gradient for each, and one to see that of the last.
    assert run.stats.accepted_steps == by_hand.stats.accepted_steps + 20
    assert run.stats.gradient_evaluations == by_hand.stats.gradient_evaluations + 21


def test_identity_a_flow_whose_gradient_keeps_its_sign_starts_at_zero():
    problem = af.problems.quadratic([0.5, 2.0], start=[3.0, 4.0])
    run, from_zero = (
        af.solve(FLOW, problem.loss, problem.params, 60, start=start, **EXPLICIT) for start in ("auto", None)
    )
    assert run.stats.discrete_steps == 0
    np.testing.assert_array_equal(run.params, from_zero.params)


@pytest.mark.parametrize(
    "flow", [af.GouldTanakaFlow(ADAM), af.GouldTanakaFlow(ADAM, order=2), af.ModifiedFlow(ADAM, order=1)]
)
def test_identity_other_flows_start_at_zero(flow):
    run = af.solve(flow, CROSSING.loss, CROSSING.params, 40, save_at=[40])
    assert run.stats.discrete_steps == 0


def test_identity_a_number_of_iterations_is_left_to_the_optimizer_by_any_flow():
    iterates = af.iterate(ADAM, CROSSING.loss, CROSSING.params, 40)
    for flow in (af.GouldTanakaFlow(ADAM), FLOW):
        run = af.solve(flow, CROSSING.loss, CROSSING.params, 40, start=7, save_at=[0, 3, 7, 12.5, 40])
        assert run.stats.discrete_steps == 7
        np.testing.assert_allclose(run.params[:3], iterates.params[np.array([0, 3, 7])], rtol=1e-13)
        np.testing.assert_allclose(run.params[-1], iterates.params[-1], atol=0.02)


@pytest.mark.parametrize(
    ("save_at", "steps", "expected"),
    [([0, 60], 60, 20), ([0, 4.5, 60], 60, 4), ([0, 16], 16, 8), ([0, 0.5, 60], 60, 0)],
)
def test_formula_how_many_iterations_are_left_to_the_optimizer(save_at, steps, expected):
    # Twice the memory of m, which is 10 iterations; half of the run at most; none behind a time that is not whole.
    run = af.solve(FLOW, CROSSING.loss, CROSSING.params, steps, save_at=save_at, max_steps=1)
    assert run.stats.discrete_steps == expected


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [(af.adam(0.1), 20), (af.adam(0.1, gamma=0.95), 40), (af.adam(0.1, gamma=0.5), 10), (af.rmsprop(0.1, 0.999), 50)],
)
def test_formula_the_transient_is_that_of_the_fastest_filter(optimizer, expected):
    assert af.ModifiedFlow(optimizer, order=2).transient_iterations == expected
    assert af.InterpolatingFlow(optimizer, order=2).transient_iterations == expected
    assert af.ModifiedFlow(optimizer, order=1).transient_iterations == 0


def test_identity_observed_rows_are_the_snapshots_of_both_parts():
    def look(snapshot):
        return snapshot.loss, snapshot.iteration, snapshot.direction, snapshot.filters

    iterates = af.iterate(ADAM, CROSSING.loss, CROSSING.params, 20, observe=look)
    run = af.solve(FLOW, CROSSING.loss, CROSSING.params, 40, observe=look, **EXPLICIT)
    np.testing.assert_allclose(run.observed[1], np.arange(41))
    for ours, theirs in zip(jax.tree.leaves(run.observed), jax.tree.leaves(iterates.observed), strict=True):
        np.testing.assert_allclose(ours[:21], theirs, rtol=1e-12)


def test_identity_a_batch_of_runs_decides_for_each():
    starts = jnp.array([CROSSING.params, [3.0, 4.0]])

    def run(params):
        return af.solve(FLOW, CROSSING.loss, params, 40, **EXPLICIT)

    batch = jax.vmap(run)(starts)
    np.testing.assert_array_equal(batch.stats.discrete_steps, [20, 0])
    for row, params in zip(batch.params, starts, strict=True):
        np.testing.assert_allclose(row, run(params).params, rtol=1e-7)


def test_formula_the_derivative_through_both_parts_is_that_of_differences():
    def end(params):
        run = af.solve(FLOW, CROSSING.loss, params, 40, save_at=[40], rtol=1e-9, **EXPLICIT)
        return run.params[-1].sum()

    shift = jnp.array([1e-6, 0.0])
    expected = (end(CROSSING.params + shift) - end(CROSSING.params - shift)) / 2e-6
    assert jax.grad(end)(CROSSING.params)[0] == pytest.approx(float(expected), rel=1e-4)


def test_failure_a_number_of_iterations_that_leave_the_finite_numbers():
    with pytest.raises(ValueError, match="not finite at iteration 3, behind those of the optimizer"):
        af.solve(af.GouldTanakaFlow(ADAM), lambda p: jnp.sum(jnp.log(p - 0.985)), jnp.ones(2), 10, start=3)


@pytest.mark.parametrize("size", [1e-3, 1e-20])
def test_identity_small_problems_are_solved_relative_to_their_size(size):
    def run(size):
        problem = af.problems.quadratic([0.5, 20.0], start=[size, 2 * size])
        flow = af.ModifiedFlow(af.adam(1e-2 * size), order=2)
        return af.solve(flow, problem.loss, problem.params, 100, start=None, **EXPLICIT).params[-1] / size

    np.testing.assert_allclose(run(size), run(1.0), rtol=2e-4)


def test_failure_a_problem_too_small_for_single_precision():
    problem = af.problems.quadratic([1.0, 2.0])
    flow, start = af.ModifiedFlow(af.adam(1e-22), order=2), jnp.full(2, 1e-20, jnp.float32)
    with pytest.raises(ValueError, match=r"no parameter would move: the squares of all gradients .* Take float64, or"):
        af.solve(flow, problem.loss, start, 20)
