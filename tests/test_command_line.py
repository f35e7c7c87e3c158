"""The command line: words, JSON, exit codes."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import adamflow as af
from adamflow import command_line
from adamflow.command_line import app


def call(*arguments):
    return CliRunner().invoke(app, arguments)


def numbers(*arguments):
    result = call(*arguments, "--json")
    assert result.exit_code == 0
    return json.loads(result.stdout)


@pytest.mark.parametrize("name", [command.callback.__name__ for command in app.registered_commands])
def test_identity_help_teaches_by_an_example_that_runs(name):
    text = " ".join(call(name, "--help").stdout.split())
    example = text.split("Example: adamflow ")[1].split(" Example:")[0].split(" ╭")[0].split()
    assert example[0] == name
    if name not in ("compare", "doctor", "explore"):
        result = call(*example)
        assert result.exit_code == 0
        assert result.stdout.strip()


def test_formula_numbers_are_those_of_the_package():
    assert numbers("bound", "--beta", "0.999", "--gamma", "0.9", "--iteration", "100")["bound"] == [
        pytest.approx(float(af.analysis.update_bound(100, beta=0.999, gamma=0.9, kind="discrete")))
    ]
    assert numbers("edge", "--lr", "0.01", "--b1", "0.5")["edge"] == pytest.approx(6.0)
    assert numbers("region", "--b2", "0.95", "--b1", "0.99") == {
        "beta": 0.95,
        "gamma": 0.99,
        "gould_tanaka": -1,
        "discrete": -1,
        "exponent": pytest.approx(float(af.analysis.stability_exponent(beta=0.95, gamma=0.99))),
    }
    answer = numbers("assess", "--b2", "0.8", "--b1", "0.95")
    assert answer["bounded"] is False
    assert answer["largest_update"] == "inf"
    assert answer["epsilon"] == 1e-8


def test_identity_compare_runs_both_and_says_how_far_apart_they_are():
    answer = numbers("compare", "--flow", "gould-tanaka", "--order", "1", "--steps", "40", "--dimension", "3")
    problem, optimizer = af.problems.chain(3), af.adam(1e-3)
    discrete = af.iterate(optimizer, problem.loss, problem.params, 40)
    continuous = af.solve(af.GouldTanakaFlow(optimizer), problem.loss, problem.params, 40)
    assert answer["max_relative_error"] == pytest.approx(float(af.compare(discrete, continuous).max_relative_error))


def test_identity_doctor_checks_known_numbers():
    answer = numbers("doctor")
    assert all(answer["checks"].values())
    assert answer["adamflow"] == af.__version__


def test_identity_figures_lists_the_scripts_by_their_claims():
    listed = numbers("figures")
    assert sorted(listed) == sorted(path.stem for path in command_line.SCRIPTS.glob("fig[0-9][0-9]_*.py"))
    assert all(listed.values())
    assert call("figures").stdout.count("\n") >= len(listed)


def test_failure_figures_say_what_is_missing(monkeypatch, tmp_path):
    unknown = call("figures", "fig99", "--json")
    assert unknown.exit_code == 2
    monkeypatch.setattr(command_line.importlib.util, "find_spec", lambda name: None)
    assert "install the extra `figures`" in call("figures", "fig02").output
    assert call("figures", "fig02").exit_code == 4
    monkeypatch.setattr(command_line, "SCRIPTS", tmp_path)
    absent = call("figures")
    assert absent.exit_code == 4
    assert "a wheel has none. Clone the repository" in absent.output


def test_identity_json_has_no_infinity():
    assert numbers("bound", "--beta", "0.1", "--gamma", "0.99", "--iteration", "1000")["bound"] == ["inf"]


def test_failure_exit_codes_tell_failures_apart():
    assert call("region", "--beta", "0.95").exit_code == 2
    outside = call("region", "--beta", "0.95", "--gamma", "1.5")
    assert outside.exit_code == 3
    assert "gamma must lie in [0, 1), got 1.5" in outside.output
    many = call("compare", "--order", "7")
    assert many.exit_code == 3
    assert "order must be at most 4, got 7" in many.output
    failed = call("compare", "--lr", "1e30", "--steps", "5", "--flow", "gould-tanaka", "--order", "1")
    assert failed.exit_code == 1
    assert "diverged" in failed.output


def test_identity_the_module_runs():
    printed = subprocess.run(
        [sys.executable, "-m", "adamflow", "--version"], capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == af.__version__
