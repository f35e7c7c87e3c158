"""Phase diagrams: linear stability over a grid of the numbers of an optimizer."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from adamflow.analysis.stability.critical import critical_curvature
from adamflow.analysis.stability.linear import Model, dominant_eigenvalue
from adamflow.checks import is_concrete
from adamflow.optimizers import Optimizer
from adamflow.types import Dataset, Numbers

_SOURCE = "derivation of this project"


def phase_diagram(
    constructor: Callable[..., Optimizer],
    hyperparameters: Mapping[str, Numbers],
    curvature: Numbers,
    *,
    model: Model = "discrete",
) -> Dataset:
    r"""Dominant eigenvalue and critical curvature over a grid of hyperparameters and curvatures.

    Args:
        constructor: what makes the optimizer from hyperparameters given by name, such as `adamflow.adamw`, or a
            `functools.partial` of `adamflow.kadam`.
        hyperparameters: by the name of the constructor's argument, a number or an increasing one-dimensional array,
            which becomes an axis of that name. With a learning rate of 1 the curvature is ηs and the weight decay ηλ.
        curvature: s, a number, or a one-dimensional array, which becomes the last axis.
        model: "discrete", or a flow, whose `optimizer` is replaced and whose other settings count.

    Returns:
        Over the axes, in the order of `hyperparameters`:

        - `growth`, per iteration: ln of the spectral radius of the discrete step, or the spectral abscissa of the flow,
          so that both are the rate in $e^{n \cdot \text{growth}}$; negative where stable;
        - `eigenvalue_real`, `eigenvalue_imag`: of the dominant eigenvalue, as by `dominant_eigenvalue`;
        - `critical_curvature`, without the axis of curvature: as by `critical_curvature`.

    Raises:
        ValueError: an array has more than one axis, or a value is out of its range; also under jit and vmap, which
            know no named axes: `linear_stability` takes arrays there.
        TypeError: as in `linear_stability`.

    Source: derivation of this project.

    >>> import adamflow as af
    >>> numbers = {"learning_rate": 1.0, "gamma": np.array([0.5, 0.9])}
    >>> diagram = phase_diagram(af.adam, numbers, np.array([1.0, 10.0]))
    >>> print(dict(diagram.growth.sizes), diagram.critical_curvature.values.round(6))
    {'gamma': 2, 'curvature': 2} [ 6. 38.]
    """
    if "curvature" in hyperparameters:
        raise ValueError(
            "hyperparameters are those of the constructor, got 'curvature' among them; pass curvature= instead"
        )
    axes = {**hyperparameters, "curvature": curvature}
    if not is_concrete(axes):
        raise ValueError(
            "phase_diagram has named axes, which jit and vmap do not know; take linear_stability inside them"
        )
    coordinates = {name: _coordinate(name, value) for name, value in axes.items() if np.ndim(value) > 0}
    # Ranges are checked here, at the ends of the axes: inside vmap numbers have no values.
    for end in (np.min, np.max):
        constructor(
            **{name: float(end(value)) if name in coordinates else value for name, value in hyperparameters.items()}
        )

    fixed = [name for name in coordinates if name != "curvature"]
    names = list(coordinates)
    optimizer, s = _grid(constructor, axes, coordinates, names)
    eigenvalue = np.asarray(dominant_eigenvalue(optimizer, s, model=model))
    edge = np.asarray(critical_curvature(_grid(constructor, axes, coordinates, fixed)[0], model=model))
    with np.errstate(divide="ignore"):
        growth = np.log(np.abs(eigenvalue)) if model == "discrete" else np.real(eigenvalue)

    def variable(dimensions: list[str], values: np.ndarray, name: str, units: str) -> Any:
        shape = [len(coordinates[name]) for name in dimensions]
        return dimensions, values.reshape(shape), {"long_name": name, "units": units, "source": _SOURCE}

    import xarray as xr

    return xr.Dataset(
        {
            "growth": variable(names, growth, "growth rate of perturbations", "1/iteration"),
            "eigenvalue_real": variable(names, np.real(eigenvalue), "real part of the dominant eigenvalue", "1"),
            "eigenvalue_imag": variable(names, np.imag(eigenvalue), "imaginary part of the dominant eigenvalue", "1"),
            "critical_curvature": variable(fixed, edge, "curvature s at the edge of stability", "1"),
        },
        coordinates,
        {"optimizer": optimizer.name, "model": model if isinstance(model, str) else model.name}
        | {name: float(np.asarray(value)) for name, value in axes.items() if name not in coordinates},
    )


def _coordinate(name: str, value: Numbers) -> np.ndarray:
    values = np.asarray(value)
    if values.ndim != 1 or values.size == 0 or np.any(np.diff(values) <= 0):
        raise ValueError(f"{name} must be a number or an increasing one-dimensional array, got {value!r}")
    return values


def _grid(
    constructor: Callable[..., Optimizer], axes: Mapping[str, Numbers], coordinates: Mapping[str, Any], names: list[str]
) -> tuple[Optimizer, np.ndarray]:
    """The records at all points of the grid of the named axes, and the curvature at each, in one axis."""
    points = dict(zip(names, map(np.ravel, np.meshgrid(*(coordinates[n] for n in names), indexing="ij")), strict=True))
    single = {name: value for name, value in axes.items() if name not in coordinates}
    s = points.pop("curvature", np.asarray(single.pop("curvature", 0.0), float))
    if not points:
        return constructor(**single), s
    return jax.vmap(lambda numbers: constructor(**single, **numbers))(points), s
