"""The truth about random problems, checked, with the amplification of a perturbed start; kept on disk by seed.

The reference is Dopri8 at rtol·1e-4 or 1e-10, whichever is less. It counts if a run that is thirty times looser, or
one that is thirty times tighter, agrees to a tenth of rtol, both with another absolute tolerance. Where the flow is too
stiff for that it is Kvaerno5 at 1e-10, in logarithms of v, if it agrees to that with itself at 1e-9. A problem for
which that fails too has no reference, and says why.
"""

import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from random_problems import VERSION, RandomProblem, draw

import adamflow as af

#: The most steps of a reference: beyond, the flow is too stiff for an explicit solver.
EXPLICIT_STEPS = 100_000
IMPLICIT_STEPS = 5_000

#: The status of a problem whose parameters run away: nothing to measure, but solvers are to say so.
DIVERGED = "none: diverged"

_DOPRI8 = diffrax.Dopri8()
_KVAERNO5 = diffrax.Kvaerno5(root_finder=af.CHORD_ROOT_FINDER)


@dataclasses.dataclass(frozen=True)
class Reference:
    """What is known of a problem.

    Attributes:
        status: "good, by …" or "none: …" with the reason.
        rows: θ at the saved iterations, shape (saved, d); fewer if there is no good reference.
        uncertainty: how far the two runs are apart, in the measure of errors (not over rtol).
        amplification: A, at least 1: how much a relative perturbation of the start grows at most, where distances are
            relative to the larger of the start and the distance moved.
        growth: the same without the "relative".
        gradients: that Dopri8 takes for the problem at its rtol; NaN if it does not complete.
        seconds: of the processor that all of this took, compilation included.
    """

    status: str
    rows: np.ndarray
    uncertainty: float = np.nan
    amplification: float = np.nan
    growth: float = np.nan
    gradients: float = np.nan
    seconds: float = np.nan

    @property
    def good(self) -> bool:
        return self.status.startswith("good")

    def errors(self, rows: np.ndarray) -> np.ndarray:
        """Of rows of another run, over the distance moved and a tenth of the start, shape (rows,); 0 for the first."""
        return distances(rows, self.rows)


def rms(values: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean(values**2, axis=-1))


def distances(rows: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The measure of errors: rms over the coordinates, over the largest distance moved plus a tenth of the start.

    Both have shape (saved, d), of which the rows that both have count.
    """
    count = min(len(rows), len(reference))
    rows, reference = rows[:count], reference[:count]
    moved = np.maximum.accumulate(rms(reference - reference[0]))
    found = rms(rows - reference) / (moved + 0.1 * rms(reference[0]))
    found[:1] = 0.0
    return np.where(np.isfinite(found), found, np.inf)


def amplification_of(rows: np.ndarray, perturbed: np.ndarray) -> tuple[float, float]:
    """(A, growth) from rows of both runs, shape (saved, d)."""
    apart, start = rms(perturbed - rows), rms(rows[0])
    scale = np.maximum(start, np.maximum.accumulate(rms(rows - rows[0])))
    return max(1.0, float(np.max(apart / apart[0] * start / scale))), float(np.max(apart / apart[0]))


def reference_of(problem: RandomProblem, cache: Path | None) -> Reference:
    """The reference of a problem, from the cache if it has it."""
    path = None if cache is None else cache / f"references-{VERSION}" / f"{problem.seed:06}.npz"
    if path is not None and path.exists():
        with np.load(path) as stored:
            values = {name: stored[name] for name in stored.files}
        rows = values.pop("rows")
        return Reference(str(values.pop("status")), rows, **{name: float(value) for name, value in values.items()})
    started = time.process_time()
    found = compute(problem)
    found = dataclasses.replace(found, seconds=time.process_time() - started)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        with partial.open("wb") as handle:
            np.savez(handle, **dataclasses.asdict(found))
        partial.replace(path)
    return found


def compute(problem: RandomProblem) -> Reference:
    """The reference of a problem, its check, and the amplification."""
    tight, enough = min(1e-10, 1e-4 * problem.rtol), 0.1 * problem.rtol
    # (rtol, atol) of three runs by Dopri8: the second confirms the first, or the third does.
    tolerances = ((tight, 1e-13), (30 * tight, 1e-16), (max(tight / 30, 1e-13), 1e-16))
    rows, outcome = _explicit(problem, problem.params, *tolerances[0])
    if outcome not in ("completed", "diverged"):
        return _stiff(problem, enough)
    uncertainty = np.inf
    for pair in tolerances[1:]:
        other, other_outcome = _explicit(problem, problem.params, *pair)
        if outcome == other_outcome == "diverged":
            return Reference(DIVERGED, rows)
        uncertainty = _apart(rows, other, problem)
        if uncertainty <= enough:
            perturbed = [_explicit(problem, start, *tolerances[0])[0] for start in problem.perturbed]
            return _with_amplification("good, by dopri8", problem, rows, uncertainty, perturbed)
    return Reference("none: runs by dopri8 disagree", rows, uncertainty)


def _stiff(problem: RandomProblem, enough: float) -> Reference:
    """The reference of a problem for which Dopri8 has too few steps."""
    rows = _implicit(problem, problem.params, 1e-10)
    if len(rows) < len(problem.save_at):
        return Reference("none: too stiff", rows)
    uncertainty = _apart(rows, _implicit(problem, problem.params, 1e-9), problem)
    if not uncertainty <= enough:
        return Reference("none: runs by kvaerno5 disagree", rows, uncertainty)
    perturbed = [_implicit(problem, start, 1e-10) for start in problem.perturbed]
    return _with_amplification("good, by kvaerno5", problem, rows, uncertainty, perturbed)


def _with_amplification(
    status: str, problem: RandomProblem, rows: np.ndarray, uncertainty: float, perturbed: list[np.ndarray]
) -> Reference:
    """A good reference with all that is to be known of its problem."""
    if any(len(other) < len(rows) for other in perturbed):
        return Reference("none: a perturbed run fails", rows, uncertainty)
    amplification, growth = np.max(np.array([amplification_of(rows, other) for other in perturbed]), axis=0)
    return Reference(status, rows, uncertainty, float(amplification), float(growth), _gradients(problem))


def _apart(rows: np.ndarray, others: np.ndarray, problem: RandomProblem) -> float:
    """How far two runs are apart; infinitely if one of them has failed."""
    if min(len(rows), len(others)) < len(problem.save_at):
        return np.inf
    return float(distances(rows, others).max())


def _explicit(problem: RandomProblem, start: jax.Array, rtol: float, atol: float) -> tuple[np.ndarray, str]:
    """Rows and outcome of Dopri8."""
    options: dict[str, Any] = {"save_at": problem.save_at, "rtol": rtol, "atol": atol, "max_steps": EXPLICIT_STEPS}
    options["on_failure"] = "ignore"
    found = af.solve(problem.flow, problem.loss, start, problem.steps, solver=_DOPRI8, **options)
    return np.asarray(found.params), found.outcome.name


def _gradients(problem: RandomProblem) -> float:
    """What Dopri8 takes at the problem's own rtol."""
    options: dict[str, Any] = {"save_at": problem.save_at, "rtol": problem.rtol, "max_steps": EXPLICIT_STEPS}
    options["on_failure"] = "ignore"
    found = af.solve(problem.flow, problem.loss, problem.params, problem.steps, solver=_DOPRI8, **options)
    return float(found.stats.gradient_evaluations) if bool(found.outcome.successful) else np.nan


def _implicit(problem: RandomProblem, start: jax.Array, rtol: float) -> np.ndarray:
    """Rows by Kvaerno5 in the coordinates of the flow; without a count of gradients, which is slow."""
    tolerances, times = jnp.asarray([rtol, 1e-3 * rtol]), jnp.asarray(problem.save_at)
    rows = np.asarray(_kvaerno5(problem.flow, problem.loss, start, times, tolerances))
    # Rows after the end of a run that failed are infinite.
    return rows[: int(np.cumprod(np.isfinite(rows).all(axis=1)).sum())]


@eqx.filter_jit
def _kvaerno5(flow: af.GouldTanakaFlow, loss: Any, start: jax.Array, times: jax.Array, tolerances: jax.Array) -> Any:
    state = flow.initial_state(loss, start)
    coordinates = flow.coordinates(state)
    return diffrax.diffeqsolve(
        diffrax.ODETerm(lambda time, encoded, args: coordinates.field(flow, loss, time, encoded)),
        _KVAERNO5,
        t0=times[0],
        t1=times[-1],
        dt0=jnp.ones(()),
        y0=coordinates.encode(state),
        saveat=diffrax.SaveAt(ts=times, fn=lambda time, encoded, args: flow.params(coordinates.decode(encoded))),
        stepsize_controller=diffrax.PIDController(rtol=tolerances[0], atol=tolerances[1], dtmin=1e-9),
        max_steps=IMPLICIT_STEPS,
        throw=False,
    ).ys


def bundle(seeds: list[int], cache: Path | None, out: Path) -> None:
    """Write rows and amplifications of the problems that have a reference into one file, for tests."""
    found = {seed: reference_of(draw(seed), cache) for seed in seeds}
    good = {seed: reference for seed, reference in found.items() if reference.good}
    arrays: dict[str, Any] = {f"rows_{seed}": reference.rows for seed, reference in good.items()}
    arrays["seeds"] = np.array(list(good))
    arrays["amplification"] = np.array([reference.amplification for reference in good.values()])
    partial = out.with_suffix(".partial")
    with partial.open("wb") as handle:
        np.savez_compressed(handle, **arrays)
    partial.replace(out)


if __name__ == "__main__":
    # python bench/references.py tests/accuracy_references.npz 50 70 0 110: blocks of ten seeds from these on.
    jax.config.update("jax_enable_x64", True)
    first_seeds = [int(text) for text in sys.argv[2:]]
    bundle([seed for first in first_seeds for seed in range(first, first + 10)], None, Path(sys.argv[1]))
