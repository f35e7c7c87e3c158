"""The explorer: its numbers are those of the public API; the page itself, in headless Chromium where there is one."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

import adamflow as af
from adamflow import explorer
from adamflow.command_line import app

BENCH = Path(__file__).parents[1] / "bench" / "explorer.py"


@pytest.fixture(scope="module")
def view():
    """A view of the flow of order 1, which compiles fastest."""
    return explorer.settings_view(explorer.Settings(learning_rate=0.03, weight_decay=0.1, order=1, iteration=100))


def test_identity_the_view_has_the_numbers_of_the_public_api(view):
    problem = af.problems.chain(2)
    optimizer = af.adamw(0.03, beta=0.99, gamma=0.9, weight_decay=0.1)
    observe = af.analysis.sharpness_observer(optimizer, problem.loss)
    observed = af.iterate(optimizer, problem.loss, problem.params, 100, save_at=[0, 50, 100], observe=observe).observed
    np.testing.assert_allclose(view.scaled_sharpness[[0, 50, 100]], 0.03 * observed.value, rtol=1e-9)
    assert view.exponent == pytest.approx(float(af.analysis.stability_exponent(beta=0.99, gamma=0.9)))
    assert view.is_bounded
    np.testing.assert_allclose(view.edge, 0.03 * af.analysis.critical_curvature(optimizer), rtol=1e-9)
    assert np.isinf(view.flow_edge)
    dominant = af.analysis.dominant_eigenvalue(optimizer, observed.value[-1])
    assert np.abs(view.multipliers).max() == pytest.approx(abs(complex(dominant)), rel=1e-9)
    # No update of the run is beyond the bound.
    bound = np.interp(np.arange(1, 401), view.bound_iterations, view.bound)
    assert np.all(view.updates[1:] < bound * 1.01)


def test_identity_the_runs_of_the_view_are_those_of_optax_and_the_flow_stays_near(view):
    import optax

    problem = af.problems.chain(2)
    peer = optax.adamw(0.03, b1=0.9, b2=0.99, eps=0.0, weight_decay=0.1)

    @jax.jit
    def step(params, state):
        updates, state = peer.update(jax.grad(problem.loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state, path = problem.params, peer.init(problem.params), []
    for _ in range(explorer.STEPS):
        path.append(np.asarray(params))
        params, state = step(params, state)
    np.testing.assert_allclose(view.discrete[:-1], path, atol=1e-9)
    distance = np.linalg.norm(view.continuous[:-1] - path, axis=1)
    moved = np.maximum.accumulate(np.linalg.norm(np.subtract(path, path[0]), axis=1))
    np.testing.assert_allclose(view.relative_error[1:-1], distance[1:] / moved[1:], rtol=1e-6, atol=1e-9)
    assert view.relative_error.max() < 0.05


def test_identity_no_slider_but_k_and_order_compiles(view):
    compiled = []
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("jax._src.interpreters.pxla.logger.log", lambda level, text, *_: compiled.append(text))
        other = explorer.settings_view(explorer.Settings(beta=0.8, gamma=0.95, learning_rate=0.001, order=1))
        assert compiled == []
        # What does compile is seen.
        jax.jit(lambda x: 3 * x)(1.0)
    assert len(compiled) == 1
    assert not other.is_bounded
    assert other.exponent < 0


def test_failure_the_command_says_what_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["explore"])
    assert result.exit_code == 4
    assert "pip install '.[explorer]'" in result.output


def test_failure_a_port_that_is_taken():
    pytest.importorskip("bokeh", reason="the page needs the extra `explorer`")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(app, ["explore", "--no-browser", "--port", port])
    assert result.exit_code == 1
    assert f"port {port} cannot be had" in result.output


@pytest.mark.slow
def test_identity_the_page_follows_its_sliders_in_a_browser():
    run = subprocess.run([sys.executable, BENCH, "--moves", "5"], capture_output=True, text=True)
    if run.returncode == 4:
        pytest.skip(run.stderr.strip())
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    assert answer["errors"] == []
    assert answer["requests_elsewhere"] == []
    assert answer["handles"] == 7
    for name, change in answer["changed"].items():
        assert change["numbers"], name
        assert change["plots"], name
    # β and γ move the point, the bound and the runs: all six pictures.
    assert answer["changed"]["beta"]["plots"] == [0, 1, 2, 3, 4, 5]
    assert any(line.startswith("distance") for line in answer["compiling"]["numbers"])
