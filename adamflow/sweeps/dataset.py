"""The dataset of a sweep: the grid's dimensions and coordinates, results, outcomes, and what they were made with."""

import json
import platform
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr

from adamflow.sweeps.grid import Grid
from adamflow.sweeps.lanes import Plan
from adamflow.sweeps.results import Schema, outcome_variable
from adamflow.sweeps.settings import versions

#: So many messages of lanes that raised are kept in the attributes.
_MESSAGES = 20


def coordinates_of(grid: Grid) -> dict[str, Any]:
    """The coordinates of a dataset, as xarray takes them."""
    return {name: (dim, values) for name, (dim, values) in grid.axes.items()}


def attributes_of(run: Callable[..., Any], plan: Plan, settings: str) -> dict[str, Any]:
    """What a sweep was made with: versions, commit, device, method. Nothing that differs between equal sweeps."""
    known = versions()
    device = jax.local_devices()[0]
    return {
        "function": f"{getattr(run, '__module__', '')}.{getattr(run, '__qualname__', type(run).__qualname__)}",
        "method": plan.method,
        "method_reason": plan.reason,
        "chunk": plan.chunk,
        "versions": json.dumps({name.removeprefix("version of "): text for name, text in known.items()}),
        "commit": _commit(run),
        "device": f"{device.device_kind} ({device.platform}), {jax.local_device_count()} in use",
        "platform": platform.platform(),
        "settings": settings,
        "float64": int(bool(jax.config.read("jax_enable_x64"))),
    }


def _commit(run: Callable[..., Any]) -> str:
    """The commit of the repository that holds the function, or that of the current folder; "" where git has none."""
    file = getattr(getattr(run, "__code__", None), "co_filename", "")
    folder = Path(file).parent if Path(file).is_file() else Path.cwd()
    try:
        command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def messages_of(errors: Mapping[int, str], grid: Grid) -> dict[str, Any]:
    """The attribute with the first messages of lanes that raised or crashed, if there are any."""
    if not errors:
        return {}
    return {"errors": [f"{grid.words(lane)}: {errors[lane]}" for lane in sorted(errors)[:_MESSAGES]]}


def dataset_of(
    grid: Grid, schema: Schema, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any]
) -> xr.Dataset:
    """The dataset of results by lane.

    Args:
        grid: the points.
        schema: what is known of the results.
        arrays: for each name an array with a leading axis of lanes.
        attributes: of the dataset.
    """
    variables = {
        name: (
            (*grid.sizes, *variable.dims),
            np.reshape(arrays[name], (*grid.shape, *variable.shape)),
            variable.attrs,
        )
        for name, variable in {"outcome": outcome_variable(), **schema}.items()
    }
    return xr.Dataset(variables, coordinates_of(grid), dict(attributes))
