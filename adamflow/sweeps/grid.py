"""The points of a sweep: a product of axes, each of one name or of several that belong together."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from adamflow.checks import describe
from adamflow.types import ArrayLike

#: What runs return beside their own numbers; no axis can have such a name.
RESERVED = ("outcome", "lane", "chunk", "slot", "error", "digest")


class Zipped:
    """Values of several names that change together, along one dimension; made by `zip_axes`."""

    def __init__(self, values: dict[str, np.ndarray]) -> None:
        self.values = values
        self.length = len(next(iter(values.values())))

    def __repr__(self) -> str:
        return f"zip_axes({', '.join(self.values)}: {self.length} points)"


def zip_axes(**values: ArrayLike) -> Zipped:
    """Points that belong together, such as those of a curve: the i-th values of all names make the i-th point.

    Args:
        values: for each name a sequence of numbers or of strings, all of one length.

    Returns:
        a value for the `grid` of `af.sweep`, where its key is the name of the dimension.

    Raises:
        ValueError: if there are no values, lengths differ, or a value is no number or string.

    Example:
        >>> import adamflow as af
        >>> {"point": af.zip_axes(beta=[0.9, 0.99], gamma=[0.5, 0.9]), "seed": [0, 1, 2]}
        {'point': zip_axes(beta, gamma: 2 points), 'seed': [0, 1, 2]}
    """
    if not values:
        raise ValueError("zip_axes needs at least one name, as in zip_axes(beta=betas, gamma=gammas); got none")
    arrays = {name: _axis(name, axis) for name, axis in values.items()}
    lengths = {name: len(axis) for name, axis in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(
            f"zip_axes takes values of one length, since they belong together, but {listed}; for a product of axes "
            "give each as a name of its own in the grid"
        )
    return Zipped(arrays)


class Grid:
    """A product of axes. A lane is a point of it, numbered in C order.

    Attributes:
        sizes: the length of each dimension, in order.
        axes: for each name that the function takes, its dimension and its values along it.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        if not isinstance(given, Mapping) or not given:
            raise ValueError(
                f"grid must map names to values, as in {{'beta': [0.9, 0.99]}}, got {describe(given)}; for one point "
                "call the function itself"
            )
        self.sizes: dict[str, int] = {}
        self.axes: dict[str, tuple[str, np.ndarray]] = {}
        for name, values in given.items():
            if not isinstance(name, str) or not name.isidentifier():
                raise ValueError(f"names of a grid must be names of Python, got {describe(name)}")
            zipped = values.values if isinstance(values, Zipped) else {name: _distinct(name, _axis(name, values))}
            for axis, array in zipped.items():
                self._add(axis, name, array)
            self.sizes[name] = len(next(iter(zipped.values())))
        if crossed := sorted(
            set(self.sizes).intersection(self.axes) - {a for a, (d, _) in self.axes.items() if a == d}
        ):
            raise ValueError(f"grid has {crossed[0]!r} as a dimension and as a name inside of another; rename one")

    def _add(self, axis: str, dim: str, values: np.ndarray) -> None:
        if axis in RESERVED:
            raise ValueError(f"{axis!r} cannot be a name of the grid, since the dataset has a variable of that name")
        if axis in self.axes:
            raise ValueError(f"grid has {axis!r} twice, along {self.axes[axis][0]!r} and {dim!r}; leave one out")
        self.axes[axis] = (dim, values)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.sizes.values())

    @property
    def lanes(self) -> int:
        """The number of points."""
        return int(np.prod(self.shape, dtype=np.int64))

    def values(self, lanes: np.ndarray, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """The values of names (by default all) at lanes, as arrays of one entry for each lane."""
        places = dict(zip(self.sizes, np.unravel_index(lanes, self.shape), strict=True))
        chosen = self.axes if names is None else names
        return {name: self.axes[name][1][places[self.axes[name][0]]] for name in chosen}

    def point(self, lane: int) -> dict[str, Any]:
        """The arguments of the function at a lane: `np.float64`, `int`, `bool` or `str`."""
        return {name: _scalar(array[0]) for name, array in self.values(np.array([lane])).items()}

    def words(self, lane: int) -> str:
        """A point as messages show it."""
        return ", ".join(f"{name}={_short(value)}" for name, value in self.point(lane).items())

    def place(self, coordinates: Mapping[str, Any]) -> int:
        """The lane at coordinates: a value for each name, or the place along a dimension of zipped names.

        Raises:
            ValueError: if a name is missing or unknown, or there is no such value.
        """
        places: dict[str, int] = {}
        known = {*self.axes, *self.sizes}
        if unknown := sorted(set(coordinates) - known):
            raise ValueError(f"the sweep has no {unknown[0]!r}; it has {', '.join(self.axes)}")
        for dim, size in self.sizes.items():
            names = [name for name, (along, _) in self.axes.items() if along == dim and name in coordinates]
            if dim in coordinates and dim not in self.axes:
                places[dim] = range(size)[coordinates[dim]]
                continue
            if not names:
                wanted = [name for name, (along, _) in self.axes.items() if along == dim]
                raise ValueError(f"name the lane's {' and '.join(wanted)}, too: the sweep has {size} along {dim!r}")
            hit = np.all([_matches(self.axes[name][1], coordinates[name]) for name in names], axis=0)
            if not hit.any():
                name = names[0]
                raise ValueError(
                    f"the sweep has no lane at {name}={_short(coordinates[name])}; the nearest {name} is "
                    f"{_short(_nearest(self.axes[name][1], coordinates[name]))}"
                )
            places[dim] = int(np.flatnonzero(hit)[0])
        return int(np.ravel_multi_index(tuple(places[dim] for dim in self.sizes), self.shape))


def check_signature(run: Callable[..., Any], grid: Grid) -> None:
    """Raise `ValueError` unless a function can be called with the names of a grid, by keyword."""
    if not callable(run):
        raise ValueError(f"run must be a function of one point, such as def run(beta, gamma), got {describe(run)}")
    try:
        parameters = inspect.signature(run).parameters
    except (TypeError, ValueError):  # a builtin does not tell
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        taken = None
    else:
        taken = [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if unknown := [name for name in grid.axes if name not in taken]:
            raise ValueError(f"run does not take {unknown[0]!r}, a name of the grid; it takes {', '.join(taken)}")
    for name, parameter in parameters.items():
        optional = parameter.default is not parameter.empty or parameter.kind in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        if not optional and (name not in grid.axes or parameter.kind is parameter.POSITIONAL_ONLY):
            raise ValueError(
                f"run takes {name!r}, which the grid does not have by keyword; add it to the grid, or bind it with "
                "functools.partial"
            )


def _axis(name: str, values: Any) -> np.ndarray:
    """The values of a name as an array of numbers or strings, of one axis."""
    try:
        array = np.asarray(values)
    except Exception:
        array = np.empty((), object)
    if array.ndim != 1 or array.dtype.kind not in "biufU" or array.dtype.itemsize == 0:
        if array.ndim == 1 and array.size == 0:
            raise ValueError(f"grid[{name!r}] is empty, so that there is nothing to run; give at least one value")
        raise ValueError(
            f"grid[{name!r}] must be a sequence of numbers or strings, got {describe(values)}; for other objects give "
            "their names and look them up in the function"
        )
    if array.size == 0:
        raise ValueError(f"grid[{name!r}] is empty, so that there is nothing to run; give at least one value")
    if array.dtype.kind == "f":
        array = array.astype(np.float64)
        if np.isnan(array).any():
            raise ValueError(f"grid[{name!r}] holds NaN, which is no coordinate; leave it out")
    return array


def _distinct(name: str, values: np.ndarray) -> np.ndarray:
    found, counts = np.unique(values, return_counts=True)
    if (counts > 1).any():
        value = _short(_scalar(found[counts > 1][0]))
        raise ValueError(f"grid[{name!r}] holds {value} more than once; leave it out, or give seeds as an axis")
    return values


def _scalar(value: Any) -> Any:
    # Floats stay NumPy's: as numbers of Python they would be constants of compiled programs, a program for each value.
    return value if isinstance(value, np.floating) else value.item()


def _short(value: Any) -> str:
    return f"{float(value):.10g}" if isinstance(value, float | np.floating) else repr(value)


def _matches(values: np.ndarray, wanted: Any) -> np.ndarray:
    if values.dtype.kind == "f":
        return np.isclose(values, wanted, rtol=1e-9, atol=0)
    return values == wanted


def _nearest(values: np.ndarray, wanted: Any) -> Any:
    if values.dtype.kind == "U":
        return _scalar(values[0])
    return _scalar(values[np.argmin(np.abs(values.astype(float) - float(wanted)))])
