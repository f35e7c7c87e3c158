"""Lanes where a boundary is: a fine map from a coarse sweep, with the lanes near one level of a result alone."""

import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import xarray as xr

from adamflow.checks import check_count, check_flag, check_single, describe
from adamflow.sweeps.accessor import grid_of, remember
from adamflow.sweeps.choice import Wishes, choose, workers
from adamflow.sweeps.dataset import attributes_of, dataset_of, messages_of
from adamflow.sweeps.grid import Grid, Zipped
from adamflow.sweeps.lanes import Lanes, Plan
from adamflow.sweeps.settings import settings_digest
from adamflow.sweeps.work import InMemory, lane_bar, quiet_runs, warn_at_caller

#: Lanes of one program; few, since the lanes of a small step of the search fill no more.
_CHUNK = 256

#: A boundary takes about so many lanes for each pair of neighbours that it separates.
_LANES_PER_CROSSING = 3

#: Axes are halved at most so often.
_MOST_HALVINGS = 12

#: What is not yet known of a point: 0 and 1 are below and above.
_UNKNOWN = 2

#: Scales in which an axis may be equally spaced: from values to that scale, and back.
_SCALES: tuple[tuple[Callable[[Any], Any], Callable[[Any], Any]], ...] = (
    (lambda x: x, lambda y: y),
    (np.log, np.exp),
    (lambda x: -np.log(1 - x), lambda y: 1 - np.exp(-y)),
    (lambda x: np.log(x / (1 - x)), lambda y: 1 / (1 + np.exp(-y))),
)


def refine(
    runs: xr.Dataset,
    field: str | Callable[[xr.Dataset], xr.DataArray],
    level: float,
    budget: int,
    *,
    grid: Mapping[str, Any] | None = None,
    run: Callable[..., Any] | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Run lanes where a result crosses a level, and know on a fine grid which side of it each point is on.

    Neighbours on different sides have the boundary between them, so the point between them is run; a point whose
    neighbours agree is taken to agree with them. This is repeated at half the spacing, and at each spacing the boundary
    is followed until all points on both sides of it have been run. What it cannot find is a part of the boundary that
    passes between the points of the sweep without enclosing one.

    Args:
        runs: a sweep over the axes to refine, and possibly others. It must show the boundary.
        field: the name of a result that is one number for each lane, or a function from a dataset of lanes to such
            numbers, for example `lambda lanes: lanes.outcome > 0`.
        level: where the boundary is. Points above it, and those where the field is NaN as after a run that diverged,
            are "above".
        budget: how many lanes may be run at most, those of `runs` not counted.
        grid: for each axis to refine the values of the fine grid, those of `runs` among them. By default each axis of
            floats is halved as often as the budget is expected to allow, in the scale (x, ln x, −ln(1−x) or
            ln x/(1−x)) in which it is most equally spaced.
        run: the function of the sweep, where this process has not made it.
        progress: whether to show a bar.

    Returns:
        the dataset over the fine grid: `above`, known everywhere; results and `outcome` of the lanes that were run,
        NaN and "not_run" at the others. Its attributes say how many were run.

    Raises:
        ValueError: if the field has no number for each lane, is on one side of the level everywhere, or the fine grid
            lacks a value of the sweep.

    Warns:
        SweepWarning: if the budget was used up at a coarser spacing; then `above` is only known to that.

    Example:
        >>> import adamflow as af, numpy as np
        >>> axis = np.linspace(-1, 1, 9)
        >>> runs = af.sweep(lambda x, y: {"r": np.hypot(x, y)}, {"x": axis, "y": axis}, progress=False)
        >>> fine = af.refine(runs, "r", 0.7, budget=1000, progress=False)
        >>> dict(fine.sizes), fine.attrs["lanes_run"] < fine.above.size / 5
        ({'x': 65, 'y': 65}, True)
    """
    check_count("budget", budget)
    check_flag("progress", progress)
    level = float(check_single("level", level))
    coarse = grid_of(runs)
    above = _sides(runs, field, level, coarse)
    fine = Grid(_fine_axes(coarse, grid, above, budget))
    with quiet_runs(), lane_bar(budget, 0, progress) as bar:
        search = _Search(run or runs.adamflow.run, runs, coarse, fine, lambda data: _values(data, field, level))
        finished = search.follow(above, budget, bar)
    if not finished:
        warn_at_caller(
            f"the budget of {budget} lanes was used up before the boundary was found on the whole fine grid; raise it, "
            "or give a coarser grid"
        )
    return search.dataset(field, level)


def _values(data: xr.Dataset, field: Any, level: float) -> np.ndarray:
    """Which side of the level lanes are on, as 0 and 1."""
    if isinstance(field, str) and field not in data:
        raise ValueError(f"the sweep has no result {field!r}; it has {', '.join(map(str, data.data_vars))}")
    values = np.asarray(data[field] if isinstance(field, str) else field(data), float)
    return np.where(values <= level, 0, 1).astype(np.int8)


def _sides(runs: xr.Dataset, field: Any, level: float, coarse: Grid) -> np.ndarray:
    above = _values(runs, field, level)
    if above.shape != coarse.shape:
        raise ValueError(
            f"field must be one number for each lane, of shape {coarse.shape}, got shape {above.shape}; reduce it, as "
            "in lambda lanes: lanes.size.max('iteration')"
        )
    if above.min() == above.max():
        side = "above" if above.all() else "at or below"
        raise ValueError(f"every lane of the sweep is {side} {level:g}, so that there is no boundary; change level")
    return above


def _fine_axes(coarse: Grid, given: Mapping[str, Any] | None, above: np.ndarray, budget: int) -> dict[str, Any]:
    """The grid to refine to, as `Grid` takes it."""
    whole: dict[str, Any] = {
        dim: coarse.axes[dim][1] if dim in coarse.axes else _zipped(coarse, dim) for dim in coarse.sizes
    }
    if given is not None:
        for name, values in given.items():
            whole[name] = _containing(name, values, coarse)
        return whole
    chosen = [dim for dim, values in whole.items() if _can_be_halved(values)]
    if not chosen:
        raise ValueError("no axis of the sweep holds rising floats, at least two; give the fine grid as grid=")
    crossings = sum(int(np.count_nonzero(np.diff(above, axis=coarse_axis(coarse, dim)))) for dim in chosen)
    halvings = 0
    for halving in range(1, _MOST_HALVINGS + 1):
        cost = sum(_LANES_PER_CROSSING * crossings * 2 ** (done * (len(chosen) - 1)) for done in range(1, halving + 1))
        halvings = halving if cost <= budget else halvings
    return whole | {dim: _halved(whole[dim], max(1, halvings)) for dim in chosen}


def _zipped(grid: Grid, dim: str) -> Zipped:
    return Zipped({name: values for name, (along, values) in grid.axes.items() if along == dim})


def coarse_axis(grid: Grid, dim: str) -> int:
    """The place of a dimension among those of a grid."""
    return list(grid.sizes).index(dim)


def _can_be_halved(values: Any) -> bool:
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or len(values) < 2:
        return False
    return bool(np.all(np.diff(values) > 0))


def _containing(name: str, values: Any, coarse: Grid) -> np.ndarray:
    if name not in coarse.axes or coarse.axes[name][0] != name or coarse.axes[name][1].dtype.kind != "f":
        raise ValueError(f"grid has {name!r}, which is no axis of floats of the sweep; it has {', '.join(coarse.axes)}")
    fine, given = np.array(values, dtype=float), coarse.axes[name][1]
    places = np.argmin(np.abs(fine[:, None] - given), axis=0) if fine.ndim == 1 and fine.size else np.zeros(0, int)
    if len(places) != len(given) or not np.allclose(fine[places], given, rtol=1e-9, atol=0):
        raise ValueError(
            f"grid[{name!r}] must hold all {len(given)} values of the sweep, got {describe(values)}; take the sweep's "
            "from it, such as values[::8]"
        )
    if np.any(np.diff(fine) <= 0) or np.any(np.diff(given) <= 0):
        raise ValueError(f"grid[{name!r}] must rise, and so must the sweep's")
    # Exactly the sweep's, so that its lanes are those of the fine grid.
    fine[places] = given
    return fine


def _halved(values: np.ndarray, times: int) -> np.ndarray:
    """An axis with 2^times − 1 values more between neighbours, in the scale in which it is most equally spaced."""
    best, spread = _SCALES[0], math.inf
    for scale in _SCALES:
        with np.errstate(all="ignore"):
            steps = np.diff(scale[0](values))
        if np.isfinite(steps).all() and (found := np.ptp(steps) / np.abs(steps).mean()) < spread - 1e-6:
            best, spread = scale, found
    forth, back = best
    inside = np.linspace(forth(values[:-1]), forth(values[1:]), 2**times, endpoint=False)
    fine = np.append(back(inside.T.ravel()), values[-1])
    fine[:: 2**times] = values
    return fine


class _Search:
    """The lanes of a fine grid: some have been run, and others are taken to be as their neighbours.

    Args:
        run: the function.
        runs, coarse: the sweep to start from, and its grid.
        fine: the grid.
        sides: from a dataset of lanes to 0 and 1.
    """

    def __init__(
        self, run: Callable[..., Any], runs: xr.Dataset, coarse: Grid, fine: Grid, sides: Callable[[xr.Dataset], Any]
    ) -> None:
        self.lanes, self.fine, self.sides = Lanes(run, fine), fine, sides
        self.origin = str(runs.attrs.get("settings"))
        method = runs.attrs.get("method", "auto")
        chunk = _CHUNK if method == "vmap" else 1
        self.trial = choose(
            self.lanes, Wishes(method=method if method in ("vmap", "threads") else "threads", chunk=chunk)
        )
        self.results = InMemory(fine, self.trial.plan.schema)
        #: The axes that are refined; along others, such as seeds, neighbours tell nothing of each other.
        self.refined = [axis for axis, dim in enumerate(fine.sizes) if fine.sizes[dim] != coarse.sizes[dim]]
        self.nodes = [
            np.searchsorted(fine.axes[dim][1], coarse.axes[dim][1]) if size != coarse.sizes[dim] else np.arange(size)
            for dim, size in fine.sizes.items()
        ]
        start = np.ravel_multi_index(np.ix_(*self.nodes), fine.shape).ravel()
        for name, array in self.results.arrays.items():
            array[start] = runs[name].transpose(*coarse.sizes, ...).values.reshape(array[start].shape)
        self.was_run = np.zeros(fine.lanes, bool)
        self.was_run[start] = True
        self.start = len(start)
        self.above = np.zeros(fine.shape, np.int8)

    def follow(self, above: np.ndarray, budget: int, bar: Any) -> bool:
        """Halve the spacing until it is that of the fine grid; whether the budget was enough."""
        rest = budget
        while True:
            lanes = np.ravel_multi_index(np.ix_(*self.nodes), self.fine.shape)
            while (wanted := self._wanted(above, lanes)).size and wanted.size <= rest:
                above.ravel()[np.isin(lanes.ravel(), wanted)] = self._run(np.sort(wanted), bar)
                rest -= wanted.size
            if wanted.size or all(len(nodes) == size for nodes, size in zip(self.nodes, self.fine.shape, strict=True)):
                self.above = self._spread(above)
                return not wanted.size
            for axis, nodes in enumerate(self.nodes):
                above, self.nodes[axis] = _between(above, nodes, axis)

    def _wanted(self, above: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        """Lanes that are to be run: unknown ones, and on each side of the boundary those that were not."""
        wanted = above == _UNKNOWN
        for axis in self.refined:
            low, high = (np.take(above, range(first, above.shape[axis] - 1 + first), axis) for first in (0, 1))
            differ = (low != high) & (low != _UNKNOWN) & (high != _UNKNOWN)
            index = [slice(None)] * above.ndim
            for part in (slice(None, -1), slice(1, None)):
                index[axis] = part
                wanted[tuple(index)] |= differ
        return lanes[wanted & ~self.was_run[lanes]]

    def _run(self, wanted: np.ndarray, bar: Any) -> np.ndarray:
        """Run lanes, and return which side each is on."""
        plan = self.trial.plan
        with ThreadPoolExecutor(workers()) as pool:
            compute = lambda lanes: self.lanes.compute(plan, lanes, self.trial.known)  # noqa: E731
            for number, chunk in enumerate(pool.map(compute, self._chunks(plan, wanted))):
                self.results.add(number, chunk)
                bar.update(int(np.sum(chunk.lanes >= 0)))
        self.was_run[wanted] = True
        names = self.results.arrays
        variables = {name: (("lanes", *variable.dims), names[name][wanted]) for name, variable in plan.schema.items()}
        return self.sides(xr.Dataset(variables | {"outcome": ("lanes", names["outcome"][wanted])}))

    def _chunks(self, plan: Plan, wanted: np.ndarray) -> Iterable[np.ndarray]:
        """Lanes in chunks of equal constants."""
        constants = np.zeros(len(wanted), int)
        for values in self.fine.values(wanted, plan.fixed).values():
            constants = constants * (len(wanted) + 1) + np.unique(values, return_inverse=True)[1]
        for constant in np.unique(constants):
            group = wanted[constants == constant]
            for first in range(0, len(group), plan.chunk):
                part = group[first : first + plan.chunk]
                yield np.pad(part, (0, plan.chunk - len(part)), constant_values=-1)

    def _spread(self, above: np.ndarray) -> np.ndarray:
        """What is known at the present spacing, as that of the nearest point before it on the fine grid."""
        known = np.where(above == _UNKNOWN, 1, above)
        for axis, (nodes, size) in enumerate(zip(self.nodes, self.fine.shape, strict=True)):
            known = np.take(known, np.searchsorted(nodes, np.arange(size), side="right") - 1, axis)
        return known

    def dataset(self, field: Any, level: float) -> xr.Dataset:
        """The results on the fine grid."""
        plan = self.trial.plan
        name = field if isinstance(field, str) else getattr(field, "__name__", "function")
        origin = {"sweep": self.origin, "field": name, "level": repr(level), "shape": repr(self.fine.shape)}
        attributes = attributes_of(self.lanes.run, plan, settings_digest(origin))
        attributes |= messages_of(self.results.errors, self.fine)
        attributes |= {"field": name, "level": level, "lanes_run": int(self.was_run.sum())}
        data = dataset_of(self.fine, plan.schema, self.results.arrays, attributes)
        words = {"long_name": f"whether {name} is above {level:g}; by its neighbours where it was not run"}
        remember(data, self.lanes.run)
        return data.assign(above=(tuple(self.fine.sizes), self.above.astype(bool), words))


def _between(above: np.ndarray, nodes: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Points in the middle of neighbours along an axis: as these if they agree, unknown otherwise."""
    middles = (nodes[:-1] + nodes[1:]) // 2
    new = np.flatnonzero(np.diff(nodes) > 1)
    low, high = np.take(above, new, axis), np.take(above, new + 1, axis)
    joined = np.concatenate([above, np.where(low == high, low, _UNKNOWN)], axis)
    every = np.concatenate([nodes, middles[new]])
    order = np.argsort(every)
    return np.take(joined, order, axis), every[order]
