"""What a discrete run looks like past the edge of stability: a mean path, and an oscillation of period 2 about it."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from adamflow.checks import is_concrete
from adamflow.flows.norms import row_norms
from adamflow.optimizers.record import Record
from adamflow.runs.trajectory import Trajectory, check_rows, on_device
from adamflow.types import Params


class MeanAndOscillation(Record):
    """What `mean_and_oscillation` returns.

    Attributes:
        mean: the run with (xₙ₋₁ + 2xₙ + xₙ₊₁)/4 in the place of every parameter and observed number.
        oscillation: (xₙ₋₁ − 2xₙ + xₙ₊₁)/4, ±δₙ, of the parameters; `None` where the run holds none.
        observed_oscillation: the same of what was observed, or `None`.
    """

    mean: Trajectory
    oscillation: Params | None
    observed_oscillation: PyTree

    @property
    def amplitude(self) -> Float[Array, " saved"]:
        """‖δₙ‖ over all parameters, in the Euclidean norm: beside `TwoBranchSnapshot.amplitude`.

        Raises:
            ValueError: if the run holds no parameters.
        """
        if self.oscillation is None:
            raise ValueError("the run holds no parameters, so their amplitude is unknown; run it without observe=")
        if is_concrete(self.oscillation):
            with np.errstate(all="ignore"):
                return on_device(row_norms(jax.tree.map(np.asarray, self.oscillation), np))
        return row_norms(self.oscillation)


def mean_and_oscillation(run: Trajectory) -> MeanAndOscillation:
    """Split a discrete run into xₙ = x̄ₙ + (−1)ⁿ δₙ with slow x̄ and δ, by three iterates in a row.

        (xₙ₋₁ + 2xₙ + xₙ₊₁)/4 = x̄ₙ + ¼Δ²x̄ − (−1)ⁿ ¼Δ²δ,     (2xₙ − xₙ₋₁ − xₙ₊₁)/4 = (−1)ⁿ (δₙ + ¼Δ²δ) − ¼Δ²x̄,

    Δ² the second differences about n. The mean of two, (xₙ + xₙ₊₁)/2 = x̄ₙ + ½Δx̄ − (−1)ⁿ ½Δδ, errs by first ones: it
    stands half an iteration later, and keeps a part of an oscillation that grows or decays.

    Args:
        run: of `af.iterate`, saved at every iteration, or at n − 1, n and n + 1 for each n of interest:
            `save_at=np.unique(np.add.outer(wanted, [-1, 0, 1]))`. With `observe=`, what was observed is split.

    Returns:
        A `MeanAndOscillation` at the iterations of which both neighbours are saved, too.

    Raises:
        ValueError: if no saved iteration has both neighbours, or the run is a batch or is traced.

    Source: derivation of this project. Cohen et al. (arXiv:2410.24206) take the same mean: second-order midpoints.

    Example:
        >>> import adamflow as af
        >>> problem, optimizer = af.problems.quadratic([1.0, 21.0]), af.sgd(0.1)
        >>> split = af.mean_and_oscillation(af.iterate(optimizer, problem.loss, problem.params, 20))
        >>> len(split.mean), float((split.amplitude[-1] / split.amplitude[-2]).round(2))
        (19, 1.1)
    """
    places = middles(run)
    if not len(places):
        raise ValueError(
            f"no iteration of the run {run.name!r} was saved together with the one before and the one after it; save "
            "every iteration, or save_at=np.unique(np.add.outer(wanted, [-1, 0, 1]))"
        )

    def mean(rows: Any) -> Any:
        return (rows[places - 1] + 2 * rows[places] + rows[places + 1]) / 4

    def oscillation(rows: Any) -> Any:
        return (rows[places - 1] - 2 * rows[places] + rows[places + 1]) / 4

    # By NumPy: each operation of jax on its own would be compiled at the first call.
    rows = jax.tree.map(np.asarray, (run.params, run.observed))
    iterations = np.asarray(run.iterations)[places]
    # What was observed may be infinite, which is no reason to warn.
    with np.errstate(all="ignore"):
        means, oscillations = (jax.tree.map(part, rows) for part in (mean, oscillation))
    means, oscillations = jax.tree.map(on_device, (means, oscillations))
    averaged = dataclasses.replace(
        run,
        iterations=on_device(iterations),
        params=means[0],
        observed=means[1],
        name=f"mean of {run.name}",
    )
    return MeanAndOscillation(averaged, *oscillations)


def mean_beside(iterates: Trajectory, run: Trajectory) -> tuple[Trajectory, Trajectory, Trajectory]:
    """The mean of the iterates wherever it is known, and at the iterations of another run; and the rows of that there.

    The first and the last of the iterates, which have no mean, are left out; that others have none is an error.
    """
    mean, wanted = mean_and_oscillation(iterates).mean, np.asarray(run.iterations)
    known, ends = np.asarray(mean.iterations), np.asarray(iterates.iterations)[[0, -1]]
    inside = ~np.isin(wanted, ends)
    missing = wanted[inside & ~np.isin(wanted, known)]
    if missing.size or not inside.any():
        raise ValueError(
            f"average='period 2' needs the iterates before, at and after each iteration of {run.name!r}, and "
            f"{iterates.name!r} lacks one of them at n = {(missing if missing.size else wanted)[0]:g}; save every "
            "iteration of it, one more than of the run, or save_at=np.unique(np.add.outer(wanted, [-1, 0, 1]))"
        )
    return mean, _rows(mean, np.isin(known, wanted)), _rows(run, inside)


def middles(run: Trajectory) -> np.ndarray:
    """The rows of a run whose neighbours in time are its neighbouring rows."""
    if not is_concrete(run.iterations) or run.iterations.ndim != 1:
        raise ValueError(
            f"the run {run.name!r} is a batch of runs, or is traced by jit or vmap; split the oscillation of single "
            "runs, outside of both"
        )
    check_rows(run)
    steps = np.diff(np.asarray(run.iterations))
    return 1 + np.flatnonzero((steps[:-1] == 1) & (steps[1:] == 1))


def _rows(run: Trajectory, kept: np.ndarray) -> Trajectory:
    """A run with some of its saved iterations."""
    places = np.flatnonzero(kept)
    rows = run.iterations, run.params, run.observed
    iterations, params, observed = jax.tree.map(lambda leaf: leaf[places], rows)
    return dataclasses.replace(run, iterations=iterations, params=params, observed=observed)
