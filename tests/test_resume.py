"""Long figures go on where they stopped: finished parts are read, with other settings everything is computed anew."""

import dataclasses

import numpy as np
import pytest

from adamflow.figures import figure
from adamflow.figures import resume as parts


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 3


@pytest.fixture
def resume(tmp_path, monkeypatch):
    monkeypatch.setattr(figure, "ROOT", tmp_path)
    return parts


def run(resume, config, names, fail_at=None):
    """The names of the parts that were computed, and what was returned for each."""
    computed, found = [], {}

    def compute(name):
        if name == fail_at:
            raise KeyboardInterrupt
        computed.append(name)
        return {"x": np.array([len(name), config.seed])}

    try:
        with resume.Parts(__file__, config) as parts:
            for name in names:
                found[name] = parts.get(name, lambda name=name: compute(name))["x"].tolist()
    except KeyboardInterrupt:
        pass
    return computed, found


def test_identity_a_run_that_was_cut_short_goes_on(resume):
    assert run(resume, Config(), ["a", "bb", "ccc"], fail_at="ccc")[0] == ["a", "bb"]
    assert run(resume, Config(), ["a", "bb", "ccc"]) == (["ccc"], {"a": [1, 3], "bb": [2, 3], "ccc": [3, 3]})


def test_identity_a_finished_run_leaves_nothing_and_starts_anew(resume, tmp_path):
    assert run(resume, Config(), ["a"])[0] == ["a"]
    assert not list(tmp_path.rglob("*.npz"))
    assert run(resume, Config(), ["a"])[0] == ["a"]


def test_identity_other_settings_share_nothing(resume):
    run(resume, Config(), ["a", "b"], fail_at="b")
    assert run(resume, Config(seed=4), ["a", "b"]) == (["a", "b"], {"a": [1, 4], "b": [1, 4]})
