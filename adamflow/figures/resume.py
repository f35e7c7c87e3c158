"""What a long run has already computed, kept in files, so that a run which was cut short goes on where it stopped.

    with resume.Parts(__file__, config) as parts:
        tables = parts.get("digits-3", lambda: train(...))

A part is computed only if no run with equal settings and the same sources has finished it. At the end of the block the
files are removed, unless it was left by an exception.
"""

import dataclasses
import hashlib
import importlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr

from adamflow.figures import figure
from adamflow.sweeps import sweep


class Parts:
    """Arrays by name, in a folder of build/ that belongs to a figure and its settings.

    Args:
        script: the file of the figure's script.
        config: its settings, a dataclass; other settings have another folder.
    """

    def __init__(self, script: str, config: Any) -> None:
        name = Path(script).stem
        settings = json.dumps(dataclasses.asdict(config), sort_keys=True, default=str)
        digest = hashlib.sha256(settings.encode() + _sources(Path(script))).hexdigest()[:12]
        self.folder: Path = figure.ROOT / "build" / "parts" / f"{name}-{digest}"

    def __enter__(self) -> "Parts":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def get(self, name: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The arrays of a part: from its file, or computed and written there."""
        path = self.folder / f"{name}.npz"
        if not path.exists():
            arrays = compute()
            # Here and not at the start: someone may clean build/ while a long run goes on.
            self.folder.mkdir(parents=True, exist_ok=True)
            figure.write(path, lambda file: np.savez(file, allow_pickle=False, **arrays))
        with np.load(path, allow_pickle=False) as file:
            return dict(file)

    def sweep(self, name: str, run: Callable[..., Any], grid: Mapping[str, Any], **options: Any) -> xr.Dataset:
        """The dataset of `af.sweep`, whose finished chunks are kept like parts, where zarr is installed.

        With the address of a dask scheduler in the variable ADAMFLOW_SCHEDULER its workers compute it.
        """
        address = os.environ.get("ADAMFLOW_SCHEDULER")
        if importlib.util.find_spec("zarr") is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            options |= {"store": self.folder / f"{name}.zarr"}
        if address is None:
            data = sweep(run, grid, **options)
        else:
            with importlib.import_module("distributed").Client(address) as client:
                data = sweep(run, grid, client=client, **options)
        if np.any(data.adamflow.outcome == "not_run"):
            raise KeyboardInterrupt("the sweep was ended; the same command goes on")
        # In memory, since the folder is removed at the end.
        return data.load()


def _sources(script: Path) -> bytes:
    """What the package and the script say, and by which jax: other code has other parts."""
    files = [*sorted(Path(__file__).parents[1].rglob("*.py")), script]
    return jax.__version__.encode() + b"".join(path.read_bytes() for path in files)
