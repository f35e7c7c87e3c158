"""What is said of a run that does not complete: a warning at the caller's line, or an error that carries the run."""

import sys
import warnings
from typing import Any, Literal, TypeAlias

import numpy as np

from adamflow.checks import check_choice, is_concrete
from adamflow.runs.trajectory import Trajectory

OnFailure: TypeAlias = Literal["warn", "raise", "ignore"]

#: Frames of these packages lie between a user's call and the warning.
_INSIDE = ("adamflow", "jaxtyping", "beartype", "equinox", "jax")


class IncompleteRunWarning(UserWarning):
    """A run of `iterate` or `solve` did not reach its last iteration."""


class IncompleteRunError(RuntimeError):
    """A run of `iterate` or `solve` with on_failure="raise" did not reach its last iteration.

    Attributes:
        trajectory: the run, with all that it saved before its end.
    """

    def __init__(self, trajectory: Trajectory):
        super().__init__(trajectory)
        self.trajectory = trajectory

    def __str__(self) -> str:
        return f"the run {self.trajectory.name!r} did not complete; {self.trajectory.outcome}"


def check_on_failure(on_failure: Any) -> None:
    """Raise `ValueError` unless this is a known way to treat a run that does not complete."""
    check_choice("on_failure", on_failure, ("warn", "raise", "ignore"))


def tell_failure(trajectory: Trajectory, on_failure: OnFailure, first_saved: float) -> Trajectory:
    """Warn or raise if a run did not complete, and return it otherwise.

    Args:
        trajectory: the run. Of a run that jax is tracing the outcome is not known, and nothing is said.
        on_failure: "warn", "raise" or "ignore".
        first_saved: the first iteration of its `save_at`.

    Raises:
        IncompleteRunError: with on_failure="raise", if the run did not complete.
    """
    if on_failure == "ignore" or not is_concrete(trajectory.outcome):
        return trajectory
    if np.all(trajectory.outcome.successful):
        _warn_of_missing_estimate(trajectory)
        return trajectory
    if on_failure == "raise":
        raise IncompleteRunError(trajectory)
    text = f"{IncompleteRunError(trajectory)} "
    if not len(trajectory):
        text += f"It saved nothing, since it ended before the first iteration of its save_at, {first_saved:.10g}. "
    _warn_at_caller(f'{text}Give on_failure="raise" for an error, or on_failure="ignore" if this is expected.')
    return trajectory


def _warn_of_missing_estimate(trajectory: Trajectory) -> None:
    """Warn if the second run that estimates the error ended early, so that estimates are missing."""
    estimate = trajectory.error_estimate
    if estimate is None or not is_concrete(estimate) or not np.any(np.isnan(estimate)):
        return
    known = np.asarray(trajectory.iterations)[~np.isnan(estimate)]
    until = f"after iteration {known[-1]:g}" if len(known) else "at all saved iterations"
    _warn_at_caller(
        f"the run {trajectory.name!r} completed, but not the second one, at a tighter tolerance, that estimates its "
        f"error: error_estimate is NaN {until}. Loosen rtol, or raise max_steps."
    )


def _warn_at_caller(text: str) -> None:
    """Warn at the line that called this package, whatever wraps its functions (jaxtyping, beartype, equinox)."""
    frame: Any = sys._getframe()
    while frame.f_back is not None and _is_inside(frame):
        frame = frame.f_back
    warnings.warn_explicit(
        text,
        IncompleteRunWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


def _is_inside(frame: Any) -> bool:
    """Whether a frame runs code of this package, or of what wraps its functions."""
    module = str(frame.f_globals.get("__name__", ""))
    return module.split(".")[0] in _INSIDE or frame.f_code.co_filename.startswith("<@beartype")
