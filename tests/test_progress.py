"""Bars of runs: the numbers stay the same to the bit, and a bar ends where its run does."""

import contextlib
import io
import logging
import re
from collections.abc import Iterator

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamflow as af

CHAIN = af.problems.chain(dimension=4)
ADAM = af.adam(1e-2, beta=0.99)
ROTATION = np.linalg.qr(np.random.default_rng(0).normal(size=(40, 40)))[0]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def shares(self) -> list[int]:
        """The percentages that were shown, one after the other."""
        return [int(found) for found in re.findall(r"(\d+)%\|", self.getvalue())]


@contextlib.contextmanager
def on_terminal() -> Iterator[Terminal]:
    """What is written to a terminal until all that callbacks have to say is said."""
    with contextlib.redirect_stderr(Terminal()) as shown:
        yield shown
        jax.effects_barrier()
    assert shown.getvalue().endswith("\n"), "a bar is open"


def coupled(params):
    """A quadratic along random directions."""
    rotation = ROTATION[: params.size, : params.size]
    return jnp.sum(jnp.geomspace(0.3, 30, params.size) * (rotation @ params) ** 2)


def by_collocation(loss, params, steps=300, **options):
    return af.solve(af.GouldTanakaFlow(ADAM), loss, params, steps, solver="collocation", **options)


RUNS = {
    "diagonal": lambda **options: by_collocation(CHAIN.loss, CHAIN.params, **options),
    "dense": lambda **options: by_collocation(coupled, jnp.linspace(-1, 2, 6), **options),
    "surrogate": lambda **options: by_collocation(coupled, jnp.linspace(-1, 2, 40), 60, rtol=1e-3, **options),
    "diffrax": lambda **options: af.solve(
        af.GouldTanakaFlow(ADAM), CHAIN.loss, CHAIN.params, 100, solver=diffrax.Tsit5(), rtol=1e-3, **options
    ),
    "iterate": lambda **options: af.iterate(ADAM, CHAIN.loss, CHAIN.params, 300, **options),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "surrogate" else []) for name in RUNS]
)
def test_identity_a_bar_changes_no_bit_and_takes_no_gradient(name):
    without = RUNS[name]()
    with on_terminal() as terminal:
        run = RUNS[name](progress=True)
    for left, right in ((run.params, without.params), (run.final_state, without.final_state)):
        jax.tree.map(np.testing.assert_array_equal, left, right)
    for field in ("gradient_evaluations", "accepted_steps", "rejected_steps", "jacobian_evaluations"):
        assert getattr(run.stats, field) == getattr(without.stats, field)
    shares = terminal.shares()
    assert shares[0] == 0
    assert shares[-1] == 100
    assert shares == sorted(shares)


def test_identity_a_bar_compiles_nothing(caplog):
    for name in ("diagonal", "iterate"):
        RUNS[name]()
        with jax.log_compiles(), caplog.at_level(logging.WARNING), on_terminal():
            RUNS[name](progress=True)
    assert not [record for record in caplog.records if "Finished XLA compilation" in record.getMessage()]


def test_identity_where_the_output_is_no_terminal_short_runs_print_nothing(capsys):
    RUNS["diagonal"](progress=True)
    RUNS["iterate"](progress=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_identity_a_batch_shows_its_slowest_element():
    def run(rate, progress):
        flow = af.GouldTanakaFlow(af.adam(rate, beta=0.99))
        ended = af.solve(flow, CHAIN.loss, CHAIN.params, 300, save_at=[300], rtol=1e-3, progress=progress)
        return ended.params, ended.stats.gradient_evaluations

    rates = jnp.geomspace(1e-4, 1e-1, 9)
    without = jax.vmap(lambda rate: run(rate, False))(rates)
    with on_terminal() as terminal:
        shown = jax.block_until_ready(jax.vmap(lambda rate: run(rate, True))(rates))
    jax.tree.map(np.testing.assert_array_equal, shown, without)
    shares = terminal.shares()
    assert shares[0] == 0
    assert shares[-1] == 100


@pytest.mark.slow
def test_identity_derivatives_go_through_a_run_with_a_bar():
    def final(beta, progress):
        flow = af.GouldTanakaFlow(af.adam(1e-2, beta=beta))
        return jnp.sum(af.solve(flow, CHAIN.loss, CHAIN.params, 20, save_at=[20], progress=progress).params)

    with on_terminal():
        derivative = jax.block_until_ready(jax.grad(final)(0.99, True))
    np.testing.assert_array_equal(derivative, jax.grad(final)(0.99, False))


def test_failure_a_run_that_does_not_complete_leaves_its_bar_where_it_ended():
    with on_terminal() as terminal:
        run = by_collocation(CHAIN.loss, CHAIN.params, 3000, max_steps=20, on_failure="ignore", progress=True)
    assert not run.outcome.successful
    assert terminal.shares()[-1] == round(100 * int(run.outcome.last_valid_iteration) / 3000) < 100


@pytest.mark.parametrize("solver", ["collocation", diffrax.Tsit5()], ids=["collocation", "diffrax"])
def test_failure_an_error_within_a_run_closes_its_bar(solver):
    calls = []

    def count(_):
        calls.append(1)
        if len(calls) > 40:
            raise RuntimeError("the loss has failed")

    def loss(params):
        jax.debug.callback(count, params[0])
        return jnp.sum(params**2)

    with contextlib.redirect_stderr(Terminal()) as terminal, pytest.raises(Exception, match="the loss has failed"):
        af.solve(af.GouldTanakaFlow(ADAM), loss, jnp.ones(2), 3000, solver=solver, progress=True)
    assert terminal.getvalue().endswith("\n")
