"""The discrete run: against a plain loop, what is saved, how it ends, and bad input."""

import _thread
import dataclasses
import re
import signal
import tracemalloc

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamflow as af

CHAIN = af.problems.chain(6)
ADAM = af.adamw(1e-2, beta=0.99, gamma=0.8, weight_decay=0.1)


@dataclasses.dataclass
class PlainLoss:
    """Without a hash, since it has an equality of its own."""

    matrix: np.ndarray

    def __call__(self, p):
        return jnp.sum((self.matrix @ p) ** 2)


@dataclasses.dataclass(frozen=True)
class FrozenLoss:
    """With a hash that its array has not."""

    matrix: np.ndarray

    def __call__(self, p):
        return jnp.sum((self.matrix @ p) ** 2)


def numpy_adamw(gradient, params, steps, eta=1e-2, beta=0.99, gamma=0.8, decay=0.1):
    m = v = np.zeros_like(params)
    path, directions = [params], []
    for n in range(steps + 1):
        g = gradient(params)
        m, v = gamma * m + (1 - gamma) * g, beta * v + (1 - beta) * g**2
        u = m / (1 - gamma ** (n + 1)) / np.sqrt(v / (1 - beta ** (n + 1)))
        directions.append(u)
        params = params - eta * (decay * params + u)
        path.append(params)
    return np.array(path[: steps + 1]), np.array(directions)


def test_formula_equals_a_plain_loop_at_every_iteration():
    gradient = jax.jit(jax.grad(CHAIN.loss))
    path, directions = numpy_adamw(lambda p: np.asarray(gradient(p)), np.asarray(CHAIN.params), 40)
    run = af.iterate(ADAM, CHAIN.loss, CHAIN.params, 40)
    np.testing.assert_array_equal(run.iterations, np.arange(41))
    np.testing.assert_allclose(run.params, path, rtol=1e-11)
    seen = af.iterate(ADAM, CHAIN.loss, CHAIN.params, 40, observe=lambda s: (s.iteration, s.params, s.direction))
    assert seen.params is None
    np.testing.assert_array_equal(seen.observed[0], np.arange(41))
    np.testing.assert_allclose(seen.observed[1], path, rtol=1e-11)
    np.testing.assert_allclose(seen.observed[2], directions, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("save_at", [[0, 20, 40], [40], [0, 1, 7, 40], [3, 5], [0]])
def test_identity_what_is_saved_does_not_change_the_run(save_at):
    everything = af.iterate(ADAM, CHAIN.loss, CHAIN.params, 40).params
    run = af.iterate(ADAM, CHAIN.loss, CHAIN.params, 40, save_at=save_at)
    np.testing.assert_allclose(run.params, everything[np.array(save_at)], rtol=1e-12)
    seen = af.iterate(ADAM, CHAIN.loss, CHAIN.params, 40, save_at=save_at, observe=lambda s: s.params[0])
    np.testing.assert_allclose(seen.observed, everything[np.array(save_at), 0], rtol=1e-12)
    np.testing.assert_allclose(run.final_state[0], everything[-1], rtol=1e-12)


def test_identity_stats_count_what_was_done():
    run = af.iterate(ADAM, CHAIN.loss, CHAIN.params, 40)
    assert (run.stats.gradient_evaluations, run.stats.accepted_steps, run.stats.rejected_steps) == (40, 40, 0)
    assert run.stats.seconds is not None
    assert run.stats.seconds > 0
    observed = af.iterate(ADAM, CHAIN.loss, CHAIN.params, 40, observe=lambda s: s.loss)
    assert observed.stats.gradient_evaluations == 41


def test_identity_observed_filters_are_named_trees_like_the_parameters():
    params = {"a": jnp.ones(2), "b": (jnp.ones(()),)}

    def loss(p):
        return jnp.sum(p["a"] ** 2) + p["b"][0] ** 2

    run = af.iterate(af.kadam(2, 0.1), loss, params, 5, observe=lambda s: s.filters)
    assert len(run.observed) == 2
    assert jax.tree.map(jnp.shape, run.observed[1]["second_moment"]) == {"a": (6, 2), "b": ((6,),)}


def test_identity_batches_are_those_of_the_iteration():
    data = jnp.arange(7.0)

    def batches(n):
        return data[n % 7]

    run = af.iterate(
        af.signsgd(0.1), lambda p, b: p * b, jnp.zeros(()), 10, batches=batches, observe=lambda s: (s.gradient, s.loss)
    )
    np.testing.assert_allclose(run.observed[0], [n % 7 for n in range(11)])


def test_identity_batches_that_no_update_and_no_row_needs_are_not_drawn():
    data = jnp.asarray(np.random.default_rng(0).normal(size=(50, 8, 3)))
    drawn = []

    def load(n):
        drawn.append(int(n))
        return np.asarray(data)[n]

    def call(n):
        return jax.pure_callback(load, jax.ShapeDtypeStruct((8, 3), data.dtype), n)

    def loss(p, x):
        return jnp.mean((x @ p - x @ jnp.array([1.0, -2.0, 0.5])) ** 2)

    def run(batches, **options):
        return af.iterate(af.adam(0.05), loss, jnp.zeros(3), 50, batches=batches, **options)

    clamped = run(lambda n: data[n]).params
    for batches in (lambda n: jnp.take(data, n, axis=0), call):
        everything = run(batches)
        assert (everything.outcome.name, len(everything)) == ("completed", 51)
        np.testing.assert_allclose(everything.params, clamped, rtol=1e-12)
        seen = run(batches, save_at=[0, 49], observe=lambda s: s.loss)
        assert (seen.outcome.name, len(seen)) == ("completed", 2)
        places = run(batches, observe=lambda s: (s.iteration, s.params))
        assert places.outcome.name == "completed"
        assert places.stats.gradient_evaluations == 50
        np.testing.assert_array_equal(places.observed[0], np.arange(51))
        np.testing.assert_allclose(places.observed[1], clamped, rtol=1e-12)
        compiled = jax.jit(lambda p, batches=batches: af.iterate(ADAM, loss, p, 50, batches=batches))(jnp.zeros(3))
        assert compiled.outcome.name == "completed"
    assert set(drawn) == set(range(50))
    # The loss of the last row is on a batch of its own: where there is none, that row is none.
    last = run(lambda n: jnp.take(data, n, axis=0), observe=lambda s: s.loss, on_failure="ignore")
    assert (last.outcome.name, float(last.outcome.last_valid_iteration), len(last)) == ("not_finite", 49, 50)


def test_identity_whole_iterations_stay_whole_in_single_precision():
    with jax.enable_x64(False):
        wanted = [0, 2**24, 2**24 + 1, 2**24 + 2]
        run = af.iterate(af.sgd(1e-8), jnp.sum, jnp.zeros(1, jnp.float32), 2**24 + 3, save_at=wanted)
        np.testing.assert_array_equal(np.asarray(run.iterations), wanted)
        assert int(run.outcome.last_valid_iteration) == 2**24 + 3
        assert "reached iteration 16777219" in run.outcome.message
        few = af.iterate(af.sgd(1e-8), jnp.sum, jnp.zeros(1, jnp.float32), 3)
        assert few.iterations.dtype == few.outcome.last_valid_iteration.dtype == jnp.float32


def test_identity_runs_of_other_lengths_share_a_program():
    traces = []

    def loss(params):
        traces.append(params)
        return jnp.sum(params**2)

    def run(steps):
        before = len(traces)
        end = af.iterate(af.sgd(0.1), loss, jnp.ones(2), steps, save_at=[0, steps]).params[-1]
        np.testing.assert_allclose(end, np.full(2, 0.8**steps))
        return len(traces) - before

    first, again, longer = run(7), run(7), run(40)
    assert again == longer < first


@pytest.mark.parametrize("observe", [None, lambda s: s.params], ids=["params", "observed"])
def test_identity_memory_and_tracing_follow_what_is_saved(observe):
    """Ctrl-C in a run of 10⁹ iterations, which keeps what it has; its whole list of iterations has 8 GB."""
    # A shell starts what runs in its background with Ctrl-C ignored: then this run would not end.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def loss(p):
        return jnp.sum(p**2)

    def batches(n):
        jax.debug.callback(lambda m: _thread.interrupt_main() if m == 1000 else None, n)
        return n

    tracemalloc.start()
    try:
        with pytest.warns(af.IncompleteRunWarning, match="did not complete; interrupted: the run ended after"):
            run = af.iterate(
                ADAM, lambda p, _: loss(p), jnp.ones(2), 10**9, save_at=[0, 7, 10**9], observe=observe, batches=batches
            )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1e8
    assert run.outcome.name == "interrupted"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not run.outcome.successful
    assert float(run.outcome.last_valid_iteration) >= 1000
    assert run.outcome.message.startswith("interrupted: the run ended after iteration ")
    np.testing.assert_array_equal(run.iterations, [0, 7])
    short = af.iterate(ADAM, loss, jnp.ones(2), 7, save_at=[0, 7]).params
    np.testing.assert_allclose(run.params if observe is None else run.observed, short, rtol=1e-12)
    reached = af.iterate(ADAM, loss, jnp.ones(2), int(run.outcome.last_valid_iteration) + 1, save_at=[0])
    np.testing.assert_allclose(run.final_state[0], reached.final_state[0], atol=1e-12)


def test_identity_a_handler_of_interruptions_of_the_users_own_is_kept():
    heard = []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def batches(n):
        jax.debug.callback(lambda m: _thread.interrupt_main() if m == 5 else None, n)
        return n

    def own(*_):
        heard.append(1)

    signal.signal(signal.SIGINT, own)
    try:
        run = af.iterate(ADAM, lambda p, _: jnp.sum(p**2), jnp.ones(2), 16, batches=batches)
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert (run.outcome.name, heard) == ("completed", [1])


def test_failure_more_steps_than_integers_count():
    with (
        jax.enable_x64(False),
        pytest.raises(ValueError, match="steps must be at most 2147483646, got 2147483648"),
    ):
        af.iterate(af.adam(0.1), jnp.sum, jnp.ones(2, jnp.float32), 2**31, save_at=[0])


def test_identity_under_vmap_each_lane_is_its_own_run():
    betas = jnp.array([0.9, 0.99, 0.999])
    lanes = eqx.filter_vmap(lambda b: af.iterate(af.adam(1e-2, beta=b), CHAIN.loss, CHAIN.params, 30))(betas)
    assert lanes.params.shape == (3, 31, 6)
    assert lanes.outcome.name.tolist() == ["completed"] * 3
    for lane, beta in enumerate(betas):
        alone = af.iterate(af.adam(1e-2, beta=beta), CHAIN.loss, CHAIN.params, 30)
        np.testing.assert_allclose(lanes.params[lane], alone.params, rtol=1e-12)


def test_identity_under_vmap_only_saved_iterations_are_observed():
    looked = []

    def look(snapshot):
        jax.debug.callback(lambda n: looked.append(int(n)), snapshot.iteration)
        return snapshot.loss

    def run(eta):
        return af.iterate(af.adam(eta), CHAIN.loss, CHAIN.params, 20, save_at=[0, 5, 7], observe=look).observed

    eqx.filter_vmap(run)(jnp.array([0.1, 0.2]))
    jax.effects_barrier()
    assert sorted(looked) == [0, 5, 7]


@pytest.mark.parametrize(
    "save_at", [None, pytest.param([0, 30], marks=pytest.mark.slow)], ids=["many blocks", "one block"]
)
def test_identity_a_look_at_the_end_beside_a_lane_that_fails(save_at):
    def run(eta):
        look = lambda snapshot: (snapshot.iteration, snapshot.loss)  # noqa: E731
        options = dict(save_at=save_at, observe=look, on_failure="ignore")
        return af.iterate(af.sgd(eta), CHAIN.loss, CHAIN.params, 30, **options)

    lanes = eqx.filter_vmap(run)(jnp.array([1e-2, 1e9]))
    alone = run(1e-2)
    assert lanes.outcome.name.tolist() == ["completed", "diverged"]
    assert lanes.outcome.last_valid_iteration.tolist() == [30, 0]
    assert alone.observed[0][-1] == 30
    for lane, row in zip(lanes.observed, alone.observed, strict=True):
        np.testing.assert_allclose(lane[0], row, rtol=1e-12)
    assert run(1e9).outcome.name == "diverged"
    slopes = [transform(lambda eta: run(eta).observed[1][-1])(1e-2) for transform in (jax.grad, jax.jacfwd)]
    assert slopes[0] == pytest.approx(float(slopes[1]), rel=1e-9)


def test_formula_derivative_at_gamma_zero():
    def final_loss(gamma):
        return CHAIN.loss(af.iterate(af.adam(1e-2, beta=0.99, gamma=gamma), CHAIN.loss, CHAIN.params, 20).params[-1])

    step = 1e-6
    difference = (final_loss(2 * step) - final_loss(step)) / step
    assert float(jax.grad(final_loss)(0.0)) == pytest.approx(float(difference), rel=1e-3)


@pytest.mark.parametrize("transform", [jax.grad, jax.jacfwd])
def test_formula_derivative_of_the_final_loss_by_beta(transform):
    def final_loss(beta):
        run = af.iterate(af.adam(1e-2, beta=beta), CHAIN.loss, CHAIN.params, 50, save_at=[0, 50])
        return CHAIN.loss(run.params[-1])

    step = 1e-6
    difference = (final_loss(0.99 + step) - final_loss(0.99 - step)) / (2 * step)
    assert float(transform(final_loss)(0.99)) == pytest.approx(float(difference), rel=1e-5)


def test_identity_a_program_is_compiled_once_for_all_numbers():
    traces = []

    def loss(params):
        traces.append(1)
        return jnp.sum(params**2)

    for rate in (0.1, 0.2, 0.3):
        af.iterate(af.adamw(rate, beta=0.9 + rate / 10, weight_decay=rate), loss, jnp.ones(2), 5)
    once = len(traces)
    af.iterate(af.adamw(0.4, beta=0.99, weight_decay=0.7), loss, jnp.ones(2), 5)
    assert len(traces) == once


def test_failure_explosion_keeps_what_came_before():
    run = af.iterate(af.signsgd(3e6), jnp.sum, jnp.ones(1), 400, save_at=np.arange(0, 401, 10), on_failure="ignore")
    assert run.outcome.name == "diverged"
    assert not bool(run.outcome.successful)
    assert float(run.outcome.last_valid_iteration) == 33
    np.testing.assert_array_equal(run.iterations, [0, 10, 20, 30])
    assert np.isfinite(run.params).all()
    assert re.match(r"diverged: after iteration \d+ a parameter exceeded 1e\+08 times", run.outcome.message)


def log_loss(params):
    """NaN once a parameter is negative, where its gradient is still finite."""
    return jnp.sum(jnp.log(params))


@pytest.mark.parametrize("steps", [30, 11], ids=["on the way", "at the end"])
def test_failure_loss_that_stops_being_finite_ends_the_run(steps):
    start = jnp.full(2, 1.05)
    run = af.iterate(af.signsgd(0.1), log_loss, start, steps, on_failure="ignore")
    assert run.outcome.name == "not_finite"
    assert float(run.outcome.last_valid_iteration) == 10
    np.testing.assert_allclose(run.params[:, 0], 1.05 - 0.1 * np.arange(11), atol=1e-12)
    assert np.isfinite(jax.tree.leaves(run.final_state)[0]).all()
    seen = af.iterate(af.signsgd(0.1), log_loss, start, steps, observe=lambda s: s.loss, on_failure="ignore")
    assert seen.outcome.name == "not_finite"
    np.testing.assert_allclose(seen.observed, 2 * np.log(1.05 - 0.1 * np.arange(11)), atol=1e-12)


def test_failure_of_one_lane_leaves_the_others():
    def run(eta):
        return af.iterate(af.signsgd(eta), log_loss, jnp.full(2, 1.05), 30)

    lanes = eqx.filter_vmap(run)(jnp.array([0.1, 0.01]))
    assert lanes.outcome.name.tolist() == ["not_finite", "completed"]
    assert np.isnan(lanes.params[0, 11:]).all()
    assert np.isfinite(lanes.params[1]).all()
    assert lanes.outcome.message[0].startswith("not finite: after iteration 10 ")


@pytest.mark.parametrize("gamma", [0.9, 0.0])
def test_failure_second_moments_that_underflow_are_no_rest(gamma):
    def loss(p):
        return jnp.sum(p**4) / 4

    record = af.adam(1e-2, beta=0.93, gamma=gamma)
    start = jnp.array([1.0, 0.0], jnp.float32)
    run = af.iterate(record, loss, start, 4000, save_at=[0, 4000])
    assert (run.outcome.name, int(run.outcome.underflowed)) == ("completed", 1)
    assert "Of the parameters 1 stood still in the last iteration, though their gradient" in run.outcome.message
    assert run.final_state[0][0] != 0
    lanes = jax.vmap(lambda p: af.iterate(record, loss, p, 4000, save_at=[0, 4000]))(jnp.stack([start, 0 * start]))
    assert lanes.outcome.underflowed.tolist() == [1, 0]
    assert [("stood still" in words) for words in lanes.outcome.message] == [True, False]
    # In double precision it moves on, and with ε > 0 it is none.
    for other, place in ((record, start.astype(float)), (af.adam(1e-2, beta=0.93, gamma=gamma, epsilon=1e-8), start)):
        sound = af.iterate(other, loss, place, 4000, save_at=[0, 4000]).outcome
        assert int(sound.underflowed) == 0
        assert sound.message == "completed: reached iteration 4000."


def test_failure_square_of_the_gradient_beyond_the_arithmetic():
    with pytest.raises(ValueError, match="the loss or its gradient is not finite at the start"):
        af.iterate(af.adam(0.1), lambda p: 1e20 * jnp.sum(p**2), jnp.ones(2, jnp.float32), 20)


def test_failure_square_of_a_later_gradient_beyond_the_arithmetic():
    def loss(p):
        return jnp.sum(jnp.where(p < 0.75, 1e25 * p, p))

    run = af.iterate(af.adam(0.1), loss, jnp.ones(2, jnp.float32), 20, on_failure="ignore")
    assert (run.outcome.name, float(run.outcome.last_valid_iteration)) == ("not_finite", 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"steps": 2.5}, "steps must be a whole number of at least 1, got 2.5"),
        ({"save_at": [0, 11]}, "save_at must lie in [0, steps=10], got 11"),
        ({"save_at": [-1, 3]}, "save_at must lie in [0, steps=10], got -1"),
        ({"save_at": [3, 3]}, "save_at must increase strictly"),
        ({"save_at": []}, "save_at must be a sequence of at least one iteration"),
        ({"save_at": [0.5]}, "save_at must hold whole iterations in a discrete run, got 0.5"),
        (
            {"save_at": 5},
            "save_at must be a sequence of iterations, got 5; write [n] to save iteration n",
        ),
        ({"save_at": float("nan")}, "save_at must be a sequence of iterations, got nan"),
        ({"save_at": ["1"]}, "save_at must be a sequence of iterations, as numbers, got ['1']"),
        ({"save_at": [True]}, "save_at must be a sequence of iterations, as numbers, got [True]"),
        ({"save_at": {1, 2}}, "save_at must be a sequence of iterations, as numbers, got {1, 2}"),
        ({"save_at": [[0, 1], [2]]}, "save_at must be a sequence of iterations, as numbers, got [[0, 1], [2]]"),
        (
            {"optimizer": af.GouldTanakaFlow(af.adam(0.1))},
            "optimizer must be a record such as af.adam(1e-3), got GouldTanakaFlow(",
        ),
        ({"optimizer": 0.1}, "optimizer must be a record such as af.adam(1e-3), got 0.1"),
        ({"observe": 3}, "observe must be a function of a Snapshot, got int"),
        ({"loss": 3}, "loss must be a function of the parameters that returns a real scalar, got int"),
        ({"loss": lambda p: None}, "the loss must return a real scalar, got None; does it lack a return?"),
        ({"loss": lambda p: {"loss": jnp.sum(p)}}, "the loss must return a real scalar, got a dict; reduce it"),
        (
            {"loss": lambda p: (jnp.sum(p), p)},
            "the loss must return a real scalar, got a tuple; for (value, aux) give has_aux=True, or",
        ),
        ({"has_aux": True}, "with has_aux=True the loss must return (value, aux), got shape () of float64; leave"),
        (
            {"loss": lambda p: (p, p), "has_aux": True},
            "the loss must return a real scalar, got shape (3,) of float64; reduce it",
        ),
        ({"loss": PlainLoss(np.eye(3))}, "loss of type PlainLoss has no hash (unhashable type: 'PlainLoss'), by which"),
        ({"loss": FrozenLoss(np.eye(3))}, "loss of type FrozenLoss has no hash (unhashable type: 'numpy.ndarray')"),
        (
            {"params": np.ones(3, np.longdouble)},
            "params must be float32 or float64, got float128; convert it with np",
        ),
        ({"params": np.ones(3, ">f8")}, "params must be float32 or float64, got >f8; convert it with np.asarray(x, np"),
        ({"params": np.array(["a"])}, "params must be float32 or float64, got <U1; convert it"),
        ({"params": jax.random.key(0)}, "params must be float32 or float64, got key<fry>; convert it"),
        ({"params": jnp.arange(3)}, "params must be float32 or float64, got int64"),
        ({"params": {"w": jnp.ones(2), "n": jnp.arange(2)}}, "params['n'] must be float32 or float64, got int64"),
        ({"params": jnp.ones(2, jnp.float16)}, "params must be float32 or float64, got float16"),
        ({"params": {"w": "text"}}, "params['w'] must be an array, got str"),
        ({"params": {}}, "params has no leaves"),
        ({"batches": [1, 2]}, "batches must be a function of the iteration, got list"),
        ({"loss": lambda p: p}, "the loss must return a real scalar"),
        ({"loss": lambda p: jnp.sum(p).astype(int)}, "the loss must return a real scalar"),
        ({"loss": lambda p: jnp.sum(p) * jnp.nan}, "the loss or its gradient is not finite at the start"),
        ({"loss": lambda p: jnp.sum(jnp.sqrt(p - 1.0))}, "the loss or its gradient is not finite at the start"),
    ],
)
def test_failure_says_what_is_wrong(change, words, unchecked):
    given = {"optimizer": af.adam(0.1), "loss": lambda p: jnp.sum(p**2), "params": jnp.ones(3), "steps": 10} | change
    with pytest.raises((TypeError, ValueError), match=re.escape(words)):
        af.iterate(**given)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda numbers: af.sgd(numbers), "learning_rate must be a single number in a run, got an array of shape (3,)"),
        (lambda numbers: af.adamw(0.1, weight_decay=numbers), "weight_decay must be a single number in a run, got an"),
        (
            lambda numbers: af.adam(0.1, beta=numbers),
            "the decay of 'second_moment' in stage 0 must be a single number in",
        ),
    ],
)
def test_failure_numbers_of_a_batch_without_vmap(make, words, unchecked):
    record = make(np.array([0.1, 0.2, 0.3]))
    with pytest.raises(ValueError, match=re.escape(words)):
        af.iterate(record, lambda p: jnp.sum(p**2), jnp.ones(3), 10)
    with pytest.raises(ValueError, match=re.escape(words)):
        af.solve(af.GouldTanakaFlow(record), lambda p: jnp.sum(p**2), jnp.ones(3), 10)


@pytest.mark.parametrize("start", [[1.0, 2.0, 3.0], (1.0, 2.0, np.float64(3.0))])
def test_identity_parameters_in_other_forms(start, unchecked):
    def loss(p):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p))

    end = af.iterate(ADAM, loss, start, 5).final_state[0]
    expected = af.iterate(ADAM, loss, jnp.array([1.0, 2.0, 3.0]), 5).final_state[0]
    np.testing.assert_allclose(np.stack(jax.tree.leaves(end)).ravel(), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["iterate", "solve"])
def test_formula_aux_of_the_loss_reaches_the_observer(kind):
    def loss(p, scale=1.0):
        return scale * jnp.sum(p**2), {"first": p[0], "count": jnp.array(3.0), "scale": scale}

    options: dict = dict(observe=lambda s: (s.params, s.aux, s.loss), has_aux=True)
    if kind == "iterate":
        batches = lambda n: 1.0 + n  # noqa: E731
        run = af.iterate(ADAM, loss, jnp.ones(2), 5, batches=batches, **options)
        np.testing.assert_allclose(run.observed[1]["scale"], np.arange(1.0, 7.0))
        plain = af.iterate(ADAM, lambda p, b: loss(p, b)[0], jnp.ones(2), 5, batches=batches).params
    else:
        run = af.solve(af.GouldTanakaFlow(ADAM, order=2), loss, jnp.ones(2), 5, solver=diffrax.Tsit5(), **options)
        plain = af.solve(
            af.GouldTanakaFlow(ADAM, order=2), lambda p: loss(p)[0], jnp.ones(2), 5, solver=diffrax.Tsit5()
        ).params
    params, aux, value = run.observed
    np.testing.assert_allclose(params, plain, rtol=1e-12)
    np.testing.assert_allclose(aux["first"], params[:, 0], rtol=1e-12)
    np.testing.assert_array_equal(aux["count"], np.full(6, 3))
    np.testing.assert_allclose(value, aux["scale"] * jnp.sum(params**2, axis=1), rtol=1e-12)
