"""What a run returns, whether discrete or continuous: the same record."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, Real
from typing_extensions import TypeAliasType

from adamflow.checks import is_concrete
from adamflow.display import fields_text, html_table
from adamflow.flows import Start
from adamflow.optimizers import OptimizerState
from adamflow.optimizers.record import Record
from adamflow.runs.summary import summary, summary_rows
from adamflow.runs.underflow import REMEDY
from adamflow.types import Dataset, Params, State

#: How runs end; a code is a place in this tuple.
OUTCOMES = ("completed", "diverged", "not_finite", "max_steps_reached", "min_step_reached", "interrupted")
COMPLETED, DIVERGED, NOT_FINITE, MAX_STEPS_REACHED, MIN_STEP_REACHED, INTERRUPTED = range(len(OUTCOMES))

_SENTENCES = {
    "completed": "completed: reached iteration {iteration}.",
    "diverged": (
        "diverged: after iteration {iteration} a parameter exceeded {limit:.0e} times its initial scale. What came "
        "before is kept. Try a smaller learning rate; af.assess(optimizer) says whether its updates are bounded and "
        "which sharpness it stands."
    ),
    "not_finite": (
        "not finite: after iteration {iteration} the loss, a parameter, filter or gradient was NaN or infinite. What "
        "came before is kept. Check the loss there, try a smaller learning rate, or epsilon > 0."
    ),
    "max_steps_reached": (
        "maximum number of steps reached: max_steps was used up at iteration {iteration}. What came before is kept. "
        "Raise max_steps, loosen rtol, or take an implicit solver: the flow is stiff where curvature or filters are "
        "fast."
    ),
    "min_step_reached": (
        "minimum step reached: at iteration {iteration} no step, however small, met the tolerance. What came before is "
        "kept. The flow is not smooth there, or rtol asks for more digits than the arithmetic has; loosen "
        "rtol, or use float64."
    ),
    "interrupted": (
        "interrupted: the run ended after iteration {iteration}, by Ctrl-C or with its process. What came before is "
        "kept, and `restart` says where it goes on."
    ),
}

_UNDERFLOW = (
    "Of the parameters {count} stood still in the last iteration, though their gradient was not 0: their second moment "
    "underflowed to 0, and epsilon is 0. " + REMEDY
)

#: Flows of order 2 or more that stall within so many iterations of n = 0 are told to leave these to the optimizer.
SETTLING = 20

_START_LATER = (
    "Flows of order 2 or more stall most easily in the first iterations, where filters forget their initial values; "
    "leave these to the optimizer by start={first}."
)

#: A run has diverged when a parameter exceeds this many times max(1, its largest initial magnitude).
DIVERGENCE_LIMIT = 1e8


#: Errors are relative to the distance moved so far, plus this share of the norm of the initial parameters.
INITIAL_NORM_WEIGHT = 0.1


class Outcome(Record):
    """How a run ended, one entry for each lane of a batch.

    Attributes:
        code: place in `OUTCOMES`.
        last_valid_iteration: the last iteration up to which the run is good; an integer where floats do not hold it
            exactly.
        underflowed: the number of parameters of a discrete run that stood still in its last iteration since their
            second moment had underflowed to 0, with a gradient that was not 0 and ε = 0. That is no rest: in more
            precise arithmetic, or with the loss multiplied by a large number, they move on. 0 for a run that ended
            early, `None` for flows.
        is_told_to_start_later: whether the message of a run that stalled in its first iterations names `start=`: that
            of a flow of order 2 or more from n = 0.
    """

    code: Int[Array, "..."]
    last_valid_iteration: Real[Array, "..."]
    underflowed: Int[Array, "..."] | None = None
    is_told_to_start_later: bool = eqx.field(static=True, default=False)

    @property
    def successful(self) -> np.bool | Bool[Array | np.ndarray, "..."]:
        """Whether the run reached its last iteration: a bool, or an array of them for a batch."""
        # By NumPy where the code is known: an operation of jax on its own would be compiled at the first call.
        return np.asarray(self.code) == 0 if is_array(self.code) else self.code == 0

    # `Any` spares those who have one run, and so one word, a check for a batch.
    @property
    def name(self) -> str | Any:
        """One of `OUTCOMES`, or an array of them for a batch."""
        names = np.asarray(OUTCOMES)[np.asarray(self.code)]
        return str(names) if names.ndim == 0 else names

    @property
    def message(self) -> str | Any:
        """A sentence that says what happened, at which iteration, and what to try; a list of them for a batch."""

        def sentence(code: int, iteration: float, underflowed: int) -> str:
            if iteration < 0:
                return "not finite: the loss or its gradient is not finite at the start; check the loss there."
            number = f"{iteration:.0f}" if iteration == round(iteration) else f"{iteration:g}"
            words = _SENTENCES[OUTCOMES[code]].format(iteration=number, limit=DIVERGENCE_LIMIT)
            if self.is_told_to_start_later and OUTCOMES[code] == "min_step_reached" and iteration < SETTLING:
                return f"{words} {_START_LATER.format(first=SETTLING)}"
            return f"{words} {_UNDERFLOW.format(count=underflowed)}" if underflowed else words

        codes, iterations = np.asarray(self.code), np.asarray(self.last_valid_iteration)
        counts = np.broadcast_to(0 if self.underflowed is None else np.asarray(self.underflowed), codes.shape)
        if codes.ndim == 0:
            return sentence(int(codes), float(iterations), int(counts))
        lanes = zip(codes.flat, iterations.flat, counts.flat, strict=True)
        return [sentence(int(code), float(n), int(count)) for code, n, count in lanes]

    def __str__(self) -> str:
        if not is_array(self.code):
            return "unknown while jax is tracing the run"
        if not self.code.ndim:
            return self.message
        codes = np.asarray(self.code).ravel()
        counts = [f"{np.sum(codes == code)} {OUTCOMES[code]}" for code in np.unique(codes)]
        text = f"{codes.size} runs: {', '.join(counts)}"
        failed = np.flatnonzero(codes)
        if len(failed):
            text += f". The first that did not complete is number {failed[0]}: {self.message[failed[0]]}"
        return text

    def __repr__(self) -> str:
        return f"Outcome({str(self)!r})" if is_array(self.code) else super().__repr__()

    def _repr_html_(self) -> str:
        return html_table("Outcome", [("outcome", str(self))])


#: How often something was done, a number for a run and an array of them for a batch.
Count = TypeAliasType("Count", int | Int[Array | np.ndarray, "..."])


class Stats(Record):
    """What a run cost.

    Attributes:
        gradient_evaluations: of the loss, derivatives of the gradient counted as 2 each (`gradients_per_evaluation` of
            a flow); `None` where it cannot be counted (an implicit solver under jit or vmap).
            Implicit solves in several threads at once count each other's.
        accepted_steps: steps taken; a discrete run accepts every iteration.
        rejected_steps: steps computed and thrown away.
        discrete_steps: of the accepted steps those of the optimizer itself: all of a discrete run, and the first
            iterations of a flow that starts behind them (`start=` of `af.solve`).
        jacobian_evaluations: dense Jacobians of the vector field (implicit solvers), not counted among the gradients;
            in collocation dense Hessians, those that turn out to be diagonal included, each of which is counted as one
            gradient more than there are parameters.
        seconds: wall time of the call, compilation included if this was the first; `None` under jit or vmap.
    """

    # `None` is rare: `Any` spares those who print or sum it a check.
    gradient_evaluations: Count | Any
    accepted_steps: Count
    rejected_steps: Count
    jacobian_evaluations: Count
    seconds: float | None
    discrete_steps: Count = 0

    def __repr__(self) -> str:
        return fields_text(self)


class Trajectory(Record):
    """A run of an optimizer or a flow.

    Runs, their outcomes and costs, and the reports on them are equal, and hash, by value, all arrays bit for bit. So
    two runs of one optimizer differ by their `stats.seconds`: compare their `params`, or other parts.

    Attributes:
        iterations: the saved iterations n = t/η, shape (saved,): floats, or integers if they are whole and beyond
            what floats hold exactly (2²⁴ in single precision).
        params: θ at these, a pytree with a leading axis of time; `None` if the run had an `observe=` function.
        observed: what `observe=` returned at each, with a leading axis of time; `None` without one.
        initial_params: θ at n = 0.
        final_state: the state at the end: (params, OptimizerState) or the state of the flow. Of a run that failed, that
            at which it was given up, which may lie one step past the rows that are kept.
        outcome: how it ended. A run that failed keeps the rows before its end and no others. Under jit and vmap,
            where shapes are fixed, the rows after it are NaN (zero for integers), and `outcome` tells which.
        stats: what it cost.
        name: what reports and legends call it.
        error_estimate: with `estimate_error=True` of `solve`, the estimated error of the parameters at the saved
            iterations, in the measure of rtol: relative to the distance moved so far plus a tenth of the start.
        follows_mean: whether the parameters are the mean of an oscillation, as those of `TwoBranchFlow` and
            `CentralFlow`.
        filter_rate: the rate of the filters of the flow that ran, "exact" or "gould_tanaka", if it has a choice of
            rates.
    """

    iterations: Real[Array, "*lanes saved"]
    params: Params | None
    observed: PyTree
    initial_params: Params
    final_state: State
    outcome: Outcome
    stats: Stats
    name: str = eqx.field(static=True, default="")
    error_estimate: Float[Array, "*lanes saved"] | None = None
    follows_mean: bool = eqx.field(static=True, default=False)
    filter_rate: str | None = eqx.field(static=True, default=None)

    def __len__(self) -> int:
        return self.iterations.shape[-1]

    def with_observed_as_params(self) -> "Trajectory":
        """The same run, with what was observed in the place of the parameters, for `compare` and pictures.

        That is the run of the average of a model, with `observe=optimizer.evaluation_params`.

        Raises:
            ValueError: if nothing was observed, or something of another structure than the parameters.
        """
        if self.observed is None or jax.tree.structure(self.observed) != jax.tree.structure(self.initial_params):
            raise ValueError(
                f"the run {self.name!r} did not observe anything with the structure of the parameters; give "
                "observe=optimizer.evaluation_params, or another function that returns such a pytree"
            )
        return dataclasses.replace(self, params=self.observed, observed=None)

    def to_xarray(self) -> Dataset:
        """The saved run as a Dataset: a variable for each leaf of `params` or `observed`, over the saved iterations.

        A leaf is named by its path, for example "params.layers.0.weight", and has the dimension "iteration" and one
        for each axis of its own, such as "params.layers.0.weight_dim_0". A batch of runs has leading dimensions
        "batch_dim_0", …. `error_estimate` is a variable, too. `initial_params` and `final_state` are not part of it.

        Returns:
            the Dataset. Its attributes hold the name of the run, its outcome (name, sentence and last valid iteration)
            and its stats, as numbers and strings that netCDF can store; what is not known is left out. Of a batch
            outcome and stats are variables, with one entry per run. Variables have `long_name` and, where they are
            known, `units`.

        Raises:
            ValueError: if jax is tracing the run, a leaf of `observed` has no leading axis of saved iterations, or the
                runs of a batch were saved at different iterations.

        Example:
            >>> import adamflow as af
            >>> problem = af.problems.chain(dimension=3)
            >>> data = af.iterate(af.adam(1e-3), problem.loss, problem.params, 20).to_xarray()
            >>> dict(data.params.sizes), data.attrs["outcome"]
            ({'iteration': 21, 'params_dim_0': 3}, 'completed')
        """
        # xarray takes a part of a second to import, which runs do without.
        from adamflow.runs.dataset import dataset_of

        return dataset_of(self)

    def save(self, path: str | Path) -> None:
        """Write the run into a netCDF file, from which `af.load` reads it back bit for bit.

        The file is a Dataset, that of `to_xarray`, with `initial_params` and `final_state`: `xarray.open_dataset` reads
        it, and so does every program that knows netCDF. It is netCDF-3 with 64-bit offsets, which SciPy writes: no more
        has to be installed, and one file can be put in its place at one stroke, which a zarr folder cannot. A variable
        may have up to 4 GiB. Its attribute `adamflow_format` is the version of what `af.load` reads.

        Args:
            path: of the file, "run.nc" for one; a file that exists is replaced once the new one is complete.

        Raises:
            ValueError: if the run is a batch, jax is tracing it, or it observed something that is not made of numbers.
            FileNotFoundError: if there is no such folder.
        """
        from adamflow.runs.storage import save

        save(self, path)

    @property
    def restart(self) -> tuple[Params, Start]:
        """Where a discrete run goes on: `params, start = run.restart`, for `af.iterate` and `af.solve`.

        With the same optimizer the run goes on as if it had not ended, with another it is a fork.

        Raises:
            ValueError: if it is the run of a flow, a batch, or did not complete for another reason than Ctrl-C.
        """
        final = self.final_state
        if not (isinstance(final, tuple) and len(final) == 2 and isinstance(final[1], OptimizerState)):
            raise ValueError(f"{self.name!r} is the run of a flow, whose state is none of an optimizer")
        if self.iterations.ndim != 1 or not is_concrete(self):
            raise ValueError(f"{self.name!r} must be a single run with known numbers; take one of a batch")
        ended = self.outcome.name
        if ended not in ("completed", "interrupted"):
            raise ValueError(
                f"{self.name!r} cannot go on from where it ended: {self.outcome.message} Restart from an earlier state"
            )
        last = int(self.outcome.last_valid_iteration)
        return final[0], Start(last + (ended == "interrupted"), final[1])

    def __repr__(self) -> str:
        return summary(self) if self._holds_arrays() else super().__repr__()

    def _holds_arrays(self) -> bool:
        """Whether this is a run: `jax.tree.map` and `jax.eval_shape` make trajectories of other things than arrays."""
        arrays = (self.iterations, getattr(self.outcome, "code", None))
        return isinstance(self.stats, Stats) and all(isinstance(value, jax.Array | np.ndarray) for value in arrays)

    def _repr_html_(self) -> str | None:
        if not self._holds_arrays():
            return None
        title, rows = summary_rows(self)
        return html_table(title, rows)


def is_array(value: Any) -> bool:
    """Whether a value is an array whose numbers are known."""
    return isinstance(value, jax.Array | np.ndarray) and is_concrete(value)


def check_rows(*runs: Trajectory) -> None:
    """Raise `ValueError` if a run holds no rows, as one that ended before its first saved iteration."""
    for run in runs:
        if not len(run):
            ending = f"; {run.outcome.message}" if is_concrete(run) else ""
            raise ValueError(
                f"the run {run.name!r} holds no rows: it ended before the first iteration of its save_at{ending} Save "
                "earlier iterations, or read the last state in `final_state`"
            )


def largest_exact_float() -> int:
    """The integer up to which jax's default floats hold each integer exactly: 2²⁴, or 2⁵³ in double precision."""
    return 2 ** (jnp.finfo(jnp.result_type(float)).nmant + 1)


def exact_iterations(rows: np.ndarray) -> jax.Array:
    """Saved iterations as floats, or as integers if they are whole and floats do not hold them exactly."""
    whole = np.all(rows == np.round(rows))
    dtype = jnp.result_type(int if whole and rows[-1] > largest_exact_float() else float)
    return on_device(np.asarray(rows, dtype))


def on_device(value: Any) -> jax.Array:
    """An array of known numbers, without the program that `jnp.asarray` would compile for each new shape."""
    return value if isinstance(value, jax.Array) else jax.device_put(np.asarray(value))


def namespace_for(*values: Any) -> Any:
    """NumPy where these are numbers: each operation of jax on its own would be compiled at the first call."""
    return np if is_concrete(*values) else jnp


def known(values: Any) -> Any:
    """These as NumPy arrays where they are numbers, for what `namespace_for` says."""
    return jax.tree.map(np.asarray, values) if is_concrete(values) else values


def divergence_limit(params: Params) -> jax.Array:
    """The magnitude beyond which a parameter has diverged, for a run that starts at `params`."""
    return DIVERGENCE_LIMIT * jnp.maximum(1.0, largest(params))


def largest(params: Params) -> jax.Array:
    """The largest magnitude in a pytree; NaN if any entry is."""
    return jnp.stack([jnp.max(jnp.abs(leaf), initial=0.0) for leaf in jax.tree.leaves(params)]).max()


def within(params: Params, limit: jax.Array) -> jax.Array:
    """Whether every parameter is finite and at most `limit` in magnitude."""
    return jnp.stack([jnp.all(jnp.abs(leaf) <= limit) for leaf in jax.tree.leaves(params)]).all()


def conclude(trajectory: Trajectory, started: float) -> Trajectory:
    """Keep the good rows: alone those where the run is single and concrete, otherwise with blanks for the others.

    Args:
        trajectory: with a row for each iteration that was asked for.
        started: `time.perf_counter()` at the start of the call.
    """
    outcome = trajectory.outcome
    rows = (trajectory.iterations, trajectory.params, trajectory.observed, trajectory.error_estimate)
    if not is_concrete(trajectory):
        params, observed, error_estimate = _blank_rows(rows[1:], trajectory.iterations, outcome.last_valid_iteration)
        return dataclasses.replace(trajectory, params=params, observed=observed, error_estimate=error_estimate)
    jax.block_until_ready(trajectory)
    if not bool(outcome.successful):
        good = np.asarray(trajectory.iterations) <= np.asarray(outcome.last_valid_iteration)
        iterations, params, observed, error_estimate = jax.tree.map(lambda leaf: leaf[: int(good.sum())], rows)
        trajectory = dataclasses.replace(
            trajectory, iterations=iterations, params=params, observed=observed, error_estimate=error_estimate
        )
    counts = jax.tree.map(int, trajectory.stats) if outcome.code.ndim == 0 else trajectory.stats
    stats = dataclasses.replace(counts, seconds=time.perf_counter() - started)
    return dataclasses.replace(trajectory, stats=stats)


@jax.jit
def _blank_rows(rows: Any, iterations: Any, last: Any) -> Any:
    """Set rows behind the last good iteration to NaN, or to zero where the type has none."""
    good = iterations <= last

    def blank(leaf: jax.Array) -> jax.Array:
        kept = good.reshape((-1,) + (1,) * (leaf.ndim - 1))
        # NaN only in blank rows: a run without any makes no NaN, which `jax_debug_nans` would take for a fault.
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            return jnp.where(kept, leaf, jnp.sqrt(jnp.where(kept, 0.0, -1.0)).astype(leaf.dtype))
        return jnp.where(kept, leaf, jnp.zeros((), leaf.dtype))

    return jax.tree.map(blank, rows)
