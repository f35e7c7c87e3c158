"""Reports of a training run as a table over its iterations."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from adamflow.analysis.stability.training import BY_LEAF, TrainingReport
from adamflow.checks import describe
from adamflow.types import Dataset


def stack_reports(reports: Sequence[TrainingReport]) -> Dataset:
    """Reports of a run as a dataset: each scalar over the dimension `iteration`, and what is by leaf over `leaf` too.

    By leaf are `share` and, where they were asked for, `leaf_sharpness` and `leaf_sharpness_residual`. What a report
    lacks is nan. `af.plotting.training_run` draws the dataset.

    Args:
        reports: those of `training_report`, oldest first.

    Raises:
        ValueError: if there are none.
        TypeError: if one is something else.

    >>> import adamflow as af
    >>> from adamflow.analysis import training_report
    >>> problem, optimizer, reports = af.problems.quadratic([1.0, 3.0]), af.adam(0.01), []
    >>> for n in (5, 10):
    ...     params, start = af.iterate(optimizer, problem.loss, problem.params, n).restart
    ...     reports.append(training_report(problem.loss, params, optimizer, start[1], n, cheap=True))
    >>> stack_reports(reports)["iteration"].values
    array([ 5, 10])
    """
    if not len(reports):
        raise ValueError("there are no reports; give at least one, as training_report returns them")
    for report in reports:
        if not isinstance(report, TrainingReport):
            raise TypeError(f"reports must be what training_report returns, got {describe(report)} among them")
    # xarray takes as long to import as jax does, which analyses do without.
    import xarray as xr

    rows = [report.scalars() for report in reports]
    names = dict.fromkeys(name for row in rows for name in row if "/" not in name and name != "iteration")
    columns: dict[str, Any] = {name: ("iteration", [row.get(name, np.nan) for row in rows]) for name in names}
    coordinates: dict[str, Any] = {"iteration": [report.iteration for report in reports]}
    leaves = list(dict.fromkeys(leaf for report in reports for leaf in report.share_by_leaf))
    for name, field in BY_LEAF.items():
        tables = [getattr(report, field) for report in reports]
        if any(tables):
            columns[name] = (("iteration", "leaf"), [[table.get(leaf, np.nan) for leaf in leaves] for table in tables])
            coordinates["leaf"] = leaves
    return xr.Dataset(columns, coordinates)
