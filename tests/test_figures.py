"""The harness of the figures: what a run writes, and what happens when a claim fails or a name is wrong."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from adamflow.figures import cores, figure, legibility

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield figure
    sys.modules.pop("make_figures", None)


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 3
    points: int = 5


def make(harness, folder, holds=True, data=None, draw=None, flags=()):
    def compute(config):
        return {"x": np.arange(config.points)} if data is None else data

    def check(data):
        return [harness.Claim("x has points", holds, {"points": float(len(data["x"]))})]

    def curve(data):
        drawn, ax = plt.subplots()
        ax.plot(data["x"])
        return drawn

    configs = dict.fromkeys(("quick", "default", "full"), Config())
    flags = ["--quick", "--out", str(folder), *flags]
    return harness.main("/somewhere/fig99_test.py", "A figure.", configs, compute, check, draw or curve, flags)


def test_identity_a_run_writes_picture_data_and_manifest_and_nothing_else(harness, tmp_path):
    assert make(harness, tmp_path) == 0
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".npz", ".pdf", ".png"]
    manifest = json.loads((tmp_path / "fig99_test.json").read_text())
    assert manifest["settings"] == {"seed": 3, "points": 5}
    assert (manifest["mode"], manifest["seed"]) == ("quick", 3)
    assert manifest["claims"] == [{"sentence": "x has points", "holds": True, "numbers": {"points": 5.0}}]
    assert set(manifest["seconds"]) == {"compute", "draw"}
    assert manifest["versions"]["python"] == sys.version.split()[0]
    np.testing.assert_array_equal(np.load(tmp_path / "fig99_test.npz")["x"], np.arange(5))


def test_identity_redrawing_keeps_data_and_settings_and_checks_the_claims_again(harness, tmp_path, capsys):
    make(harness, tmp_path)
    data, before = (tmp_path / "fig99_test.npz").read_bytes(), json.loads((tmp_path / "fig99_test.json").read_text())

    def curves(data):
        return {"": plt.subplots()[0], "all": plt.subplots()[0]}

    assert make(harness, tmp_path, holds=False, draw=curves, flags=["--redraw"]) == 1
    assert (tmp_path / "fig99_test.npz").read_bytes() == data
    after = json.loads((tmp_path / "fig99_test.json").read_text())
    assert after["drawn_with"].keys() == {"commit", "uncommitted_changes", "matplotlib"}
    assert not after["claims"][0]["holds"]
    assert {name: after[name] for name in ("settings", "commit", "versions")} == {
        name: before[name] for name in ("settings", "commit", "versions")
    }
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["fig99_test.all.png", "fig99_test.png"]
    for flags, message in ((["--set", "seed=1"], "no setting can be changed"), (["--out", "/"], "--redraw needs")):
        with pytest.raises(SystemExit):
            make(harness, tmp_path, flags=["--redraw", *flags])
        assert message in capsys.readouterr().err


def test_identity_the_pictures_of_the_repository_are_easy_to_read():
    for path in sorted((Path(__file__).parents[1] / "figures").glob("*.json")):
        assert all(found == [] for found in json.loads(path.read_text())["faults_of_pictures"].values()), path.name


def test_failure_what_is_hard_to_read_is_named():
    with plt.rc_context(figure.STYLE):
        drawn, ax = plt.subplots(figsize=(4, 3))
        for height in range(6):
            ax.plot([0, 1, 2], [height, height, height], label="a line with a long name")
        ax.legend(loc="center")
        ax.text(1, 2.5, "one text", ha="center")
        ax.text(1, 2.6, "another", ha="center")
        ax.set_title("Lines")
        found = legibility.faults(drawn)
    plt.close(drawn)
    assert "panel 'Lines' has 6 lines, more than 5" in found
    assert "a legend of panel 'Lines' covers the line 'a line with a long name'" in found
    assert "a legend of panel 'Lines' covers the text 'one text'" in found
    assert "'one text' and 'another' overlap" in found
    drawn, axes = plt.subplots(2, 4)
    axes[0, 0].pcolormesh(np.eye(2))
    axes[0, 0].plot([], [], label="a")
    axes[0, 0].legend()
    found = legibility.faults(drawn)
    plt.close(drawn)
    assert found[:2] == ["8 panels, more than 6", "a legend of a panel covers a map"]
    drawn, ax = plt.subplots()
    ax.plot([0, 1, 2], [0, 1, 0], label="a")
    ax.set_ylim(top=3)
    ax.legend(loc="upper left")
    assert legibility.faults(drawn) == []
    plt.close(drawn)


def test_identity_equal_data_give_equal_files(harness, tmp_path):
    for folder in ("one", "two"):
        make(harness, tmp_path / folder)
    for ending in ("png", "pdf", "npz"):
        one, two = (tmp_path / folder / f"fig99_test.{ending}" for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_identity_damaged_manifests_stop_no_figure(harness, tmp_path, monkeypatch):
    make_figures = importlib.import_module("make_figures")
    monkeypatch.setitem(harness.FOLDERS, "default", tmp_path)
    for content in ("", "[]", "{}", '{"seconds": 3}'):
        (tmp_path / "fig02_region.json").write_text(content)
        assert make_figures.last_seconds("fig02_region") == 0.0


def test_failure_of_a_claim_is_loud_and_keeps_the_data(harness, tmp_path, capsys):
    assert make(harness, tmp_path, holds=False) == 1
    assert "!!! fig99_test: a claim does not hold on the data just computed" in capsys.readouterr().err
    assert not json.loads((tmp_path / "fig99_test.json").read_text())["claims"][0]["holds"]
    assert (tmp_path / "fig99_test.npz").exists()


def test_failure_of_the_drawing_or_a_full_disk_leaves_the_old_files_together(harness, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(harness, "UNFINISHED", tmp_path / "unfinished")
    out = tmp_path / "out"
    assert make(harness, out) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    data = {"x": np.zeros((2, 3))}
    with pytest.raises(ValueError, match="can't draw"):
        make(harness, out, data=data, draw=lambda _: (_ for _ in ()).throw(ValueError("can't draw")))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    np.testing.assert_array_equal(np.load(tmp_path / "unfinished" / "fig99_test.npz")["x"], data["x"])
    # The limit on the size of a file stands for a full disk: it fails the same call, after some files were written.
    program = (
        "import resource, signal, sys; from adamflow.figures import figure; from pathlib import Path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (99, 99))\n"
        "figure.publish(Path(sys.argv[1]), 'fig99_test', {'npz': bytes(10), 'png': bytes(1000)})"
    )
    run = subprocess.run([sys.executable, "-c", program, out], capture_output=True, text=True, check=False)
    assert "File too large" in run.stderr
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_failure_that_is_written_in_words(harness, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(harness, "UNFINISHED", tmp_path / "unfinished")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(harness, "publish", full)
    assert make(harness, tmp_path / "out") == 1
    assert "cannot be written to" in (told := capsys.readouterr().err)
    assert "No space left on device; the files there are as they were" in told
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("moved", [0, 2])
def test_identity_a_run_killed_while_it_publishes_is_completed_or_undone_by_the_next(harness, tmp_path, moved):
    make(harness, tmp_path)
    new = {ending: ending.encode() for ending in ("json", "npz", "pdf", "png")}
    program = (
        "import os, signal, sys; from adamflow.figures import figure; from pathlib import Path\n"
        "replace, count, moved = Path.replace, iter(range(9)), int(sys.argv[2])\n"
        "def killed(self, target):\n"
        "    return replace(self, target) if next(count) < moved else os.kill(os.getpid(), signal.SIGKILL)\n"
        "Path.replace = killed\n"
        "figure.publish(Path(sys.argv[1]), 'fig99_test', {e: e.encode() for e in ('json', 'npz', 'pdf', 'png')})"
    )
    run = subprocess.run([sys.executable, "-c", program, tmp_path, str(moved)], check=False)
    assert run.returncode == -9
    harness.recover(tmp_path, "fig99_test")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        f"fig99_test.{ending}": content for ending, content in new.items()
    }


def test_identity_a_run_killed_before_leaves_the_old_files_and_its_own_go_with_the_next(harness, tmp_path):
    make(harness, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    program = (
        "import os, signal, sys; from adamflow.figures import figure; from pathlib import Path\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "figure.publish(Path(sys.argv[1]), 'fig99_test', {'npz': b'new', 'png': b'new'})"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path], check=False)
    assert len(list(tmp_path.glob(".fig99_test.*.tmp"))) == 1
    harness.recover(tmp_path, "fig99_test")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("", "--out must be a folder, got an empty name"),
        ("file", "is no folder to write to: File exists; name another"),
    ],
)
def test_failure_of_the_folder_is_told_before_anything_is_computed(harness, tmp_path, monkeypatch, capsys, out, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stopped:
        make(harness, out, data=())
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err
    make_figures = importlib.import_module("make_figures")
    with pytest.raises(SystemExit):
        make_figures.main(["fig01", "--out", out])
    assert words in capsys.readouterr().err


def test_failure_data_that_are_objects(harness, tmp_path):
    with pytest.raises(ValueError, match=r"data\['x'\] must be a plain array"):
        make(harness, tmp_path, data={"x": np.array([None])})


def test_failure_unknown_figure():
    command = [sys.executable, str(SCRIPTS / "make_figures.py"), "fig98"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "fig98" in run.stderr
    assert "fig01_agreement" in run.stderr


def test_identity_the_figure_that_took_longest_last_time_comes_first(harness, tmp_path, monkeypatch):
    make_figures = importlib.import_module("make_figures")
    monkeypatch.setitem(harness.FOLDERS, "default", tmp_path)
    for name, seconds in {"fig02_region": 1.0, "fig05_learning_rate": 7.0}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"seconds": {"compute": seconds, "draw": 1.0}}))
    assert make_figures.last_seconds("fig05_learning_rate") == 8.0
    chosen = sorted(make_figures.SCRIPTS, key=make_figures.last_seconds, reverse=True)
    assert chosen[:2] == ["fig05_learning_rate", "fig02_region"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only on Linux can a program be kept to some cores")
def test_identity_programs_started_at_once_share_the_cores(harness):
    shows = "import os; print(*sorted(os.sched_getaffinity(0)))"

    def start(_):
        run = subprocess.run([sys.executable, "-c", shows], capture_output=True, text=True, check=True)
        return tuple(map(int, run.stdout.split()))

    own = cores.available()
    for count in (1, 2):
        with cores.workers(count) as pool:
            shares = set(pool.map(start, range(8)))
        assert {core for share in shares for core in share} <= set(own)
        assert shares <= {tuple(own[place::count] or own) for place in range(count)}
    assert cores.available() == own


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("width=3", "there is no setting 'width'; this figure has seed 3, points 5"),
        ("points=2.5", "--set points must be of type int, like 5, got '2.5'"),
        ("points=True", "--set points must be of type int, like 5, got 'True'"),
        ("points", "--set takes NAME=VALUE, got 'points'; for instance --set seed=..."),
    ],
)
def test_failure_of_a_setting_is_told_before_anything_is_computed(harness, tmp_path, capsys, change, words):
    with pytest.raises(SystemExit) as stopped:
        make(harness, tmp_path, data=(), flags=["--set", change])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_identity_settings_are_those_that_are_set(harness, tmp_path, monkeypatch):
    assert make(harness, tmp_path, flags=["--set", "points=7", "--set", "seed=4"]) == 0
    manifest = json.loads((tmp_path / "fig99_test.json").read_text())
    assert manifest["settings"] == {"seed": 4, "points": 7}
    assert np.load(tmp_path / "fig99_test.npz")["x"].size == 7


def test_identity_a_copy_of_a_script_in_another_folder_makes_figures_of_its_own_name(tmp_path):
    copy = tmp_path / "my_bounds.py"
    copy.write_text((SCRIPTS / "fig06_worst_case.py").read_text())
    run = subprocess.run([sys.executable, str(copy), "--help"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "--set NAME=VALUE" in run.stdout
