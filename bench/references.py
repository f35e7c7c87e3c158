"""The truth about random problems, checked, with the amplification of a perturbed start; kept on disk by seed.

The reference is Dopri8 at rtol·1e-4 or 1e-10, whichever is less. It counts if a second run, thirty times looser and
with another absolute tolerance, agrees to a tenth of rtol. Otherwise, and where the flow is too stiff for it, Kvaerno5
in logarithms of v at 1e-10 is tried, against Dopri8 or, where that has none, against itself at 1e-9. What is left is
without a reference, and says why.
"""

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from random_problems import VERSION, RandomProblem

import adamflow as af

#: The most steps of a reference: beyond, the flow is too stiff for an explicit solver.
EXPLICIT_STEPS = 100_000
IMPLICIT_STEPS = 10_000

_DOPRI8 = diffrax.Dopri8()
_KVAERNO5 = diffrax.Kvaerno5(root_finder=af.CHORD)


@dataclasses.dataclass(frozen=True)
class Reference:
    """What is known of a problem.

    Attributes:
        status: "good, by …" or "none: …" with the reason.
        rows: θ at the saved iterations, shape (saved, d); fewer if there is no good reference.
        uncertainty: how far the two runs are apart, in the measure of errors (not over rtol).
        amplification: A, at least 1: how much a relative perturbation of the start grows, where distances are relative
            to the larger of the start and the distance moved.
        growth: the same without the "relative".
        gradients: that Dopri8 takes for the problem at its rtol; NaN if it does not complete.
    """

    status: str
    rows: np.ndarray
    uncertainty: float = np.nan
    amplification: float = np.nan
    growth: float = np.nan
    gradients: float = np.nan

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
    found = compute(problem)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        with partial.open("wb") as handle:
            np.savez(handle, **dataclasses.asdict(found))
        partial.replace(path)
    return found


def compute(problem: RandomProblem) -> Reference:
    """The reference of a problem, its check, and the amplification."""
    tight = min(1e-10, 1e-4 * problem.rtol)
    explicit = functools.partial(_explicit, problem)
    rows, outcome = explicit(problem.params, tight, 1e-13)
    looser, _ = explicit(problem.params, 30 * tight, 1e-16)
    method, uncertainty, repeat = "dopri8", _apart(rows, looser, problem), lambda start: explicit(start, tight, 1e-13)
    if not uncertainty <= 0.1 * problem.rtol:
        implicit = functools.partial(_implicit, problem)
        other, reason = implicit(problem.params, 1e-10)
        uncertainty = _apart(rows, other, problem)
        if not uncertainty <= 0.1 * problem.rtol:
            uncertainty = _apart(other, implicit(problem.params, 1e-9)[0], problem)
            method, rows, repeat = "kvaerno5", other, lambda start: implicit(start, 1e-10)
        if not uncertainty <= 0.1 * problem.rtol:
            return Reference(f"none: {_reason(outcome, reason)}", rows, uncertainty)
    perturbed, _ = repeat(problem.perturbed)
    if len(perturbed) < len(rows):
        return Reference("none: the perturbed run fails", rows, uncertainty)
    amplification, growth = amplification_of(rows, perturbed)
    return Reference(f"good, by {method}", rows, uncertainty, amplification, growth, _gradients(problem))


def _apart(rows: np.ndarray, others: np.ndarray, problem: RandomProblem) -> float:
    """How far two runs are apart; infinitely if one of them has failed."""
    if min(len(rows), len(others)) < len(problem.save_at):
        return np.inf
    return float(distances(rows, others).max())


def _reason(explicit: str, implicit: str) -> str:
    """Why there is no reference, from the outcomes of both solvers."""
    if "diverged" in (explicit, implicit):
        return "diverged"
    if explicit == "completed" or implicit == "completed":
        return "the runs disagree"
    return f"{explicit} and {implicit}"


def _explicit(problem: RandomProblem, start: np.ndarray, rtol: float, atol: float) -> tuple[np.ndarray, str]:
    """Rows and outcome of Dopri8."""
    options: dict[str, Any] = {"save_at": problem.save_at, "rtol": rtol, "atol": atol, "max_steps": EXPLICIT_STEPS}
    found = af.solve(problem.flow, problem.loss, start, problem.steps, solver=_DOPRI8, **options)
    return np.asarray(found.params), found.outcome.name


def _gradients(problem: RandomProblem) -> float:
    """What Dopri8 takes at the problem's own rtol."""
    options: dict[str, Any] = {"save_at": problem.save_at, "rtol": problem.rtol, "max_steps": EXPLICIT_STEPS}
    found = af.solve(problem.flow, problem.loss, problem.params, problem.steps, solver=_DOPRI8, **options)
    return float(found.stats.gradient_evaluations) if bool(found.outcome.successful) else np.nan


def _implicit(problem: RandomProblem, start: np.ndarray, rtol: float) -> tuple[np.ndarray, str]:
    """Rows and outcome of Kvaerno5 in the coordinates of the flow, without a count of gradients, which is slow."""
    tolerances = jnp.asarray([rtol, 1e-3 * rtol])
    flow, loss, steps = problem.flow, problem.loss, jnp.asarray(float(problem.steps))
    rows, completed = _kvaerno5(flow, loss, jnp.asarray(start), steps, jnp.asarray(problem.save_at), tolerances)
    kept = np.asarray(rows)[: int(np.isfinite(np.asarray(rows)).all(axis=1).sum())]
    return kept, "completed" if bool(completed) else "step_limit"


@eqx.filter_jit
def _kvaerno5(flow: af.PaperFlow, loss: Any, start: jax.Array, steps: jax.Array, times: jax.Array, tolerances: Any):
    state = flow.initial_state(loss, start)
    coordinates = flow.coordinates(state)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda time, encoded, args: coordinates.field(flow, loss, time, encoded)),
        _KVAERNO5,
        t0=0.0,
        t1=steps,
        dt0=jnp.ones(()),
        y0=coordinates.encode(state),
        saveat=diffrax.SaveAt(ts=times, fn=lambda time, encoded, args: flow.params(coordinates.decode(encoded))),
        stepsize_controller=diffrax.PIDController(rtol=tolerances[0], atol=tolerances[1], dtmin=1e-9),
        max_steps=IMPLICIT_STEPS,
        throw=False,
    )
    return solution.ys, solution.result == diffrax.RESULTS.successful
