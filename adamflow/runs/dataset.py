"""A run as an xarray Dataset, with names for its axes."""

from typing import Any

import jax
import numpy as np
import xarray as xr

from adamflow.checks import is_concrete
from adamflow.runs.summary import leaf_names

_LONG_NAMES = {
    "gradient_evaluations": "gradients that the run evaluated",
    "accepted_steps": "steps that were accepted",
    "rejected_steps": "steps that were computed and rejected",
    "jacobian_evaluations": "dense Jacobians or Hessians that the run evaluated",
    "seconds": "wall time of the call, compilation included",
}


def dataset_of(run: Any) -> xr.Dataset:
    """The Dataset of `Trajectory.to_xarray`, whose docstring describes it.

    Args:
        run: a `Trajectory`.
    """
    if not is_concrete(run):
        raise ValueError("to_xarray needs the numbers of a run, but jax is tracing it; call it outside of jit and vmap")
    *batch, saved = run.iterations.shape
    batch_dims = [f"batch_dim_{axis}" for axis in range(len(batch))]
    iterations = _common_iterations(run)
    coordinate = {"long_name": "iteration n = t/η", "units": "1"}
    data = xr.Dataset(coords={"iteration": ("iteration", iterations, coordinate)}, attrs={"name": run.name})
    for name, tree, words in (
        ("params", run.params, "parameters θ"),
        ("observed", run.observed, "what `observe` returned"),
    ):
        for leaf_name, leaf in zip(leaf_names(name, tree), jax.tree.leaves(tree), strict=True):
            values = np.asarray(leaf)
            if values.shape[: len(batch) + 1] != (*batch, saved):
                raise ValueError(
                    f"{leaf_name} has the shape {values.shape}, which does not begin with that of the saved "
                    f"iterations, {(*batch, saved)}; to_xarray needs a run as iterate or solve returned it"
                )
            own_dims = [f"{leaf_name}_dim_{axis}" for axis in range(values.ndim - len(batch) - 1)]
            data[leaf_name] = ([*batch_dims, "iteration", *own_dims], values, {"long_name": words})
    if run.error_estimate is not None:
        words = "estimated error of the parameters, relative to the distance moved so far"
        estimate = np.asarray(run.error_estimate)
        data["error_estimate"] = ([*batch_dims, "iteration"], estimate, {"long_name": words, "units": "1"})
    return _with_outcome(data, run, batch_dims)


def _common_iterations(run: Any) -> np.ndarray:
    """The saved iterations, which all runs of a batch share."""
    rows = np.asarray(run.iterations).reshape(-1, len(run))
    if not len(rows):
        raise ValueError("the batch holds no run; to_xarray needs one at least")
    if np.any(rows != rows[0]):
        raise ValueError(
            "the runs of the batch were saved at different iterations; give all the same save_at, or make a Dataset of "
            "each"
        )
    return rows[0]


def _with_outcome(data: xr.Dataset, run: Any, batch_dims: list[str]) -> xr.Dataset:
    """The Dataset with outcome and stats: attributes of a single run, variables of a batch."""
    values: dict[str, Any] = {
        "outcome": run.outcome.name,
        "outcome_message": run.outcome.message,
        "last_valid_iteration": np.asarray(run.outcome.last_valid_iteration),
    }
    values |= {name: value for name, value in vars(run.stats).items() if value is not None}
    if not batch_dims:
        return data.assign_attrs({name: _plain(value) for name, value in values.items()})
    shape = run.iterations.shape[:-1]
    for name, value in values.items():
        array = np.asarray(value)
        if name == "outcome_message":
            array = array.reshape(shape)
        attributes = {"long_name": _LONG_NAMES.get(name, name.replace("_", " "))}
        if name not in ("outcome", "outcome_message"):
            attributes["units"] = "s" if name == "seconds" else "1"
        data[name] = (batch_dims if array.shape == shape else [], array, attributes)
    return data


def _plain(value: Any) -> Any:
    """A value as an attribute that netCDF can store."""
    return value if isinstance(value, str) else np.asarray(value).item()
