"""What the dataset of a sweep can do beside being one: `data.adamflow`."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from adamflow.sweeps.grid import Grid, Zipped
from adamflow.sweeps.results import LANE_OUTCOMES
from adamflow.types import Scalar

#: The functions of the last sweeps of this process, by the attribute "settings" of their datasets.
_FUNCTIONS: OrderedDict[str, Callable[..., Any]] = OrderedDict()
_KEPT = 64


def remember(data: xr.Dataset, run: Callable[..., Any]) -> None:
    """Let a dataset find the function that made it, as long as this process lives."""
    _FUNCTIONS[data.attrs["settings"]] = run
    _FUNCTIONS.move_to_end(data.attrs["settings"])
    while len(_FUNCTIONS) > _KEPT:
        _FUNCTIONS.popitem(last=False)


def grid_of(data: xr.Dataset) -> Grid:
    """The grid that a dataset of a sweep is over, read from its coordinates."""
    dims = data["outcome"].dims
    names: dict[Any, list[str]] = {dim: [] for dim in dims}
    for name, coordinate in data.coords.items():
        if len(coordinate.dims) == 1 and coordinate.dims[0] in names:
            names[coordinate.dims[0]].append(str(name))
    return Grid(
        {
            str(dim): data[dim].values if dim in data.coords else Zipped({n: data[n].values for n in names[dim]})
            for dim in dims
        }
    )


@xr.register_dataset_accessor("adamflow")
class SweepAccessor:
    """The dataset of `af.sweep`, of which lanes can be run again and outcomes read as words."""

    def __init__(self, data: xr.Dataset) -> None:
        if "outcome" not in data:
            raise AttributeError("this dataset is not one of af.sweep: it has no variable 'outcome'")
        self._data = data

    @property
    def outcome(self) -> xr.DataArray:
        """How each lane ended, as one of `af.sweeps.LANE_OUTCOMES`."""
        codes = self._data["outcome"]
        return codes.copy(data=np.asarray(LANE_OUTCOMES)[codes.values]).drop_attrs()

    @property
    def successful(self) -> xr.DataArray:
        """Whether each lane completed."""
        return self._data["outcome"] == 0

    @property
    def run(self) -> Callable[..., Any]:
        """The function of the sweep.

        Raises:
            ValueError: if this process did not make the dataset, or has made many since.
        """
        name = self._data.attrs.get("settings")
        if name not in _FUNCTIONS:
            raise ValueError(
                "this process does not know the function of this sweep, which a dataset does not hold; give it, as in "
                "data.adamflow.rerun(run, beta=0.9, gamma=0.5)"
            )
        return _FUNCTIONS[name]

    def rerun(self, run: Callable[..., Any] | None = None, /, **coordinates: Scalar | str) -> Any:
        """Run one lane again, alone, and return what the function returns there.

        Args:
            run: the function; by default that of the sweep, where this process has made it. Another one may look
                closer, and save more.
            coordinates: of the lane: a value of each name of the grid, to 9 digits; along zipped names one of them is
                enough, or the place along their dimension.

        Raises:
            ValueError: if there is no such lane, or the function is not known.

        Example:
            >>> import adamflow as af
            >>> runs = af.sweep(lambda x, y: {"sum": x + y}, {"x": [1.0, 2.0], "y": [10.0, 20.0]}, progress=False)
            >>> float(runs.adamflow.rerun(x=2, y=10)["sum"])
            12.0
        """
        grid = grid_of(self._data)
        return (run or self.run)(**grid.point(grid.place(coordinates)))
