"""The random problems and the measure of `bench/accuracy.py`."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest

import adamflow as af

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def problems(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("random_problems")


@pytest.fixture
def references(problems: ModuleType) -> ModuleType:
    return importlib.import_module("references")


@pytest.fixture
def accuracy(references: ModuleType) -> Iterator[ModuleType]:
    yield importlib.import_module("accuracy")
    sys.modules.pop("accuracy")


def test_identity_a_seed_decides_everything(problems):
    for seed in (0, 15, 29, 43):
        one, other = problems.draw(seed), problems.draw(seed)
        assert one.describe() == other.describe()
        jax.tree.map(np.testing.assert_array_equal, (one.loss, one.params), (other.loss, other.params))


def test_identity_problems_of_a_shape_share_their_form(problems):
    """Otherwise each would compile its programs anew."""
    forms = {}
    for seed in range(500):
        if seed % problems.BLOCK in (0, 7):
            problem = problems.draw(seed)
            tree = (problem.flow, problem.loss, problem.params)
            form = jax.tree.structure(tree), tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree))
            assert forms.setdefault(problem.shape, form) == form
    assert len(forms) > 20


def test_formula_gradients_are_finite_and_settings_bounded(problems):
    gradient = jax.jit(jax.grad(lambda loss, params: loss(params), argnums=1))
    seen = set()
    # Blocks of three shapes, each a program: sums of ridge functions, a perceptron, a valley.
    for seed in (*range(30), *range(30, 33), *range(70, 73)):
        problem = problems.draw(seed)
        if problem.shape.dimension == 16 or problem.shape.form == "valley":
            assert np.isfinite(gradient(problem.loss, problem.params)).all()
            seen.add(problem.family)
        assert problem.settings["beta"] > problem.settings["gamma"] / (2 - problem.settings["gamma"])
    assert seen == set(problems.FAMILIES)


def test_formula_errors_are_over_the_distance_moved_and_a_tenth_of_the_start(references):
    reference = np.array([[1.0, 1.0], [1.0, 3.0], [1.0, 1.0]])
    rows = reference + np.array([[9.0], [1.0], [0.5]])
    moved = np.sqrt(2)
    np.testing.assert_allclose(references.distances(rows, reference), [0, 1 / (moved + 0.1), 0.5 / (moved + 0.1)])
    rows[2] = np.nan
    assert references.distances(rows, reference)[2] == np.inf


def test_formula_amplification_is_relative_to_the_way(references):
    rows = np.array([[1.0, 1.0], [5.0, 5.0]])
    perturbed = rows + np.array([[1e-6], [2e-5]])
    amplification, growth = references.amplification_of(rows, perturbed)
    assert amplification == pytest.approx(20 / 4)
    assert growth == pytest.approx(20)


def test_formula_verdict_and_table_count_what_is_beyond(accuracy):
    base = {"reference": "good, by dopri8", "amplification": 2.0, "dopri8": 100.0, "outcome": "completed"}
    base |= {
        "solver": "auto",
        "family": "waves",
        "d": 2,
        "k": 1,
        "order": 1,
        "rate": "gould_tanaka",
        "strategy": "naive",
    }
    base |= {"rtol": 1e-3, "steps": 30, "learning_rate": 0.1, "beta": 0.9, "gamma": 0.5, "weight_decay": 0.0}
    base |= {"epsilon": 0.0, "gradients": 50, "work": 50, "worst_at": 3}
    records = [base | {"seed": seed, "worst": 2.0, "relative": 1.0} for seed in range(98)]
    records += [base | {"seed": 98, "worst": 300.0, "relative": 150.0}]
    records += [base | {"seed": 99, "worst": None, "relative": None, "outcome": "min_step_reached"}]
    assert accuracy.verdict(records) == (
        "the tolerance is not kept: of 99 runs that completed 1 are beyond 10 A rtol, 1 beyond 100 A rtol"
    )
    assert accuracy.verdict(records[:98]).startswith("the tolerance is kept")
    text = "\n".join(accuracy.table(json.loads(json.dumps(records))))
    assert "runs of auto: 99 completed, 1 min_step_reached" in text
    assert "      98       150       300 at row  3, A 2" in text


#: Fifty problems: blocks of ten seeds that share a shape. Seeds 6 and 55 take some seconds each, and are left out.
BLOCKS = {"d 2, valley": 70, "d 5, exact rate": 50, "d 16": 0, "d 2, k 2": 110, "d 40, perceptron": 830}
#: Rows and amplifications, by `python bench/references.py tests/accuracy_references.npz 50 70 0 110 830`.
STORED = Path(__file__).parent / "accuracy_references.npz"


@pytest.mark.parametrize("first", BLOCKS.values(), ids=BLOCKS)
def test_identity_auto_keeps_its_tolerance(problems, references, first):
    """None beyond 100·A·rtol, and at most one of ten beyond 10·A·rtol."""
    with np.load(STORED) as stored:
        amplification = dict(zip(stored["seeds"].tolist(), stored["amplification"].tolist(), strict=True))
        rows = {seed: stored[f"rows_{seed}"] for seed in amplification}
    errors = []
    for seed in sorted(amplification.keys() & set(range(first, first + 10)) - {6, 55}):
        problem = problems.draw(seed)
        options = {"save_at": problem.save_at, "rtol": jax.numpy.asarray(problem.rtol)}
        run = af.solve(problem.flow, problem.loss, problem.params, problem.steps, **options)
        assert run.outcome.successful
        error = references.distances(np.asarray(run.params), rows[seed]).max()
        errors.append(error / (amplification[seed] * problem.rtol))
    assert len(errors) >= 7
    assert max(errors) < 100
    assert np.sum(np.array(errors) > 10) <= 1


@pytest.mark.slow
def test_identity_a_reference_comes_back_from_the_cache(problems, references, tmp_path):
    problem = problems.draw(12)
    found = references.reference_of(problem, tmp_path)
    stored = references.reference_of(problem, tmp_path)
    assert found.good
    assert found.status == stored.status
    np.testing.assert_array_equal(found.rows, stored.rows)
    assert found.errors(found.rows).max() == 0
