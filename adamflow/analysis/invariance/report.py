"""Scale-invariant weights along a run: what is assumed of them, and their norm and rotation against the laws.

[GT] = R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization, arXiv:2411.05746.
Proofs of what is this project's own: docs/scale-invariance.md.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from adamflow.analysis.invariance.norm_law import (
    equilibrium_norm,
    norm_factor,
    rotation_rate,
    square_norm_law,
    square_norm_recursion,
)
from adamflow.checks import is_concrete
from adamflow.flows import GouldTanakaFlow, Snapshot
from adamflow.flows.norms import norm, numpy_norm
from adamflow.optimizers import Optimizer, check_constant, reads_as_adam
from adamflow.runs import Trajectory
from adamflow.types import Dataset, Params

_LONG_NAMES = {
    "square_norm": "‖W‖²",
    "square_update": "‖u‖²",
    "orthogonality": "cosine of W with its gradient, in magnitude",
    "alignment": "cosine of W with the update u",
    "spread": "standard deviation of the elementwise second moment over the tensor, divided by its mean",
    "rotation": "angle by which W/‖W‖ turns, η ‖u without its part along W‖/‖W‖",
    "law_paper": "‖W‖² by the law of [GT]",
    "law_corrected": "‖W‖² by the law corrected for momentum",
    "law_exact": "‖W‖² by the recursion that holds exactly with one v per tensor",
    "measured_factor": "K in (‖W‖²)' = −2λ‖W‖² + K η‖u‖², fitted to the end of the run",
    "equilibrium": "‖W‖² in equilibrium under uncorrelated gradients, ηd/2λ",
    "cosine": "cosine of W at an iteration with the gradient of an earlier one",
}


class TensorObservation(NamedTuple):
    """What `invariance_observer` keeps of one tensor W with gradient g, update u and first moment m.

    Attributes:
        norm, update_norm, gradient_norm: ‖W‖, ‖u‖, ‖g‖; not their squares, which would underflow first.
        along_gradient, along_update: ⟨W, g⟩, ⟨W, u⟩.
        spread: of the first stage's elementwise v over the tensor, its standard deviation divided by its mean; 0 for
            stages with one v per tensor.
        divisor: ‖m‖/‖u‖, with m = g for stages without first moment.
        weights, gradient: W and g in one axis, or `None`.

    A tuple of arrays, so it has no hash; `jax.tree` functions compare two of them.
    """

    norm: Array
    update_norm: Array
    gradient_norm: Array
    along_gradient: Array
    along_update: Array
    spread: Array
    divisor: Array
    weights: Array | None
    gradient: Array | None


class InvarianceObserver(eqx.Module):
    """The `observe=` function that `invariance_observer` returns."""

    names: tuple[str, ...] = eqx.field(static=True)
    vectors: bool = eqx.field(static=True)

    def __call__(self, snapshot: Snapshot) -> dict[str, TensorObservation]:
        first = snapshot.filters[0] if snapshot.filters else {}
        moment, square = first.get("first_moment", snapshot.gradient), first.get("second_moment")
        trees = (snapshot.params, snapshot.gradient, snapshot.direction, moment, square)
        parts = [None if tree is None else named_leaves(tree, self.names) for tree in trees]
        return {name: self._row(*(None if part is None else part[name] for part in parts)) for name in self.names}

    def _row(self, weights: Any, gradient: Any, update: Any, moment: Any, square: Any) -> TensorObservation:
        mean = jnp.ones(()) if square is None else jnp.mean(square)
        spread = jnp.zeros_like(jnp.sum(weights)) if square is None else jnp.std(square) / jnp.where(mean, mean, 1.0)
        updated = norm(update.ravel())
        divisor = jnp.where(updated > 0, norm(moment.ravel()) / jnp.where(updated > 0, updated, 1.0), 0.0)
        return TensorObservation(
            norm(weights.ravel()),
            updated,
            norm(gradient.ravel()),
            jnp.sum(weights * gradient),
            jnp.sum(weights * update),
            spread,
            divisor,
            weights.ravel() if self.vectors else None,
            gradient.ravel() if self.vectors else None,
        )


def named_leaves(params: Params, names: Sequence[str]) -> dict[str, Array]:
    """The leaves of a pytree that are named as `jax.tree_util.keystr` does.

    Raises:
        ValueError: if there is no name, or no leaf of that name.
    """
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    unknown = [name for name in names if name not in leaves]
    if unknown or not names:
        raise ValueError(
            f"scale_invariant must name leaves of the parameters, such as {next(iter(leaves))!r}, got "
            f"{unknown[0] if unknown else names!r}; the names of a problem are in problem.scale_invariant"
        )
    return {name: leaves[name] for name in names}


def invariance_observer(
    scale_invariant: Sequence[str], *, vectors: bool = False
) -> Callable[[Snapshot], dict[str, TensorObservation]]:
    """An `observe=` function for `af.iterate` and `af.solve`, from which `scale_invariance_report` is made.

    Args:
        scale_invariant: names of the leaves to look at: `problem.scale_invariant`.
        vectors: whether to keep W and its gradient too, for the cosines of Assumption 1. Memory: twice the tensors for
            each saved iteration.

    Returns:
        a function from a `Snapshot` to an `TensorObservation` for each name.

    Raises:
        ValueError: when called, if a name is unknown.

    >>> import adamflow as af
    >>> problem = af.problems.rayleigh(dimension=10)
    >>> observe = af.analysis.invariance_observer(problem.scale_invariant)
    >>> run = af.iterate(af.adamw(1e-2, weight_decay=0.1), problem.loss, problem.params, 20, observe=observe)
    >>> {name: row.norm.shape for name, row in run.observed.items()}
    {'': (21,)}
    """
    return InvarianceObserver(tuple(scale_invariant), vectors)


def scale_invariance_report(trajectory: Trajectory, model: Optimizer | GouldTanakaFlow) -> Dataset:
    r"""Scale-invariant weights along a run beside what theory assumes of them and says of their norm.

    A loss with f(cW) = f(W) for c > 0 has ⟨W, g⟩ = 0. [GT] assumes that W(t) is nearly orthogonal to earlier gradients
    too (Assumption 1), and that the elementwise v may be replaced by its mean over the tensor (Assumption 2). Then
    ‖W‖² is a running integral over ‖u‖², `square_norm_law` with K = 1 by [GT], and with `norm_factor` corrected for
    momentum.

    Args:
        trajectory: a run with `observe=invariance_observer(problem.scale_invariant)`; with λ > 0 it has an equilibrium.
        model: the record that ran, or the `GouldTanakaFlow` whose solution this is, with one stage of Adam or RMSprop.

    Returns:
        Over the axes `tensor` and `iteration`: `square_norm`, `square_update`, `orthogonality` (0 up to rounding),
        `alignment`, `spread` (Assumption 2: 0 if v is the same in all entries), `rotation`, `law_paper`,
        `law_corrected`, and, for a discrete run with one v per tensor from 0 on, saved at each iteration, `law_exact`.
        Over `tensor`: `measured_factor`, which `attrs["factor"]` predicts, and `equilibrium`. With `vectors=True` also
        `cosine` (Assumption 1), between W at `iteration` and g at `gradient_iteration` ≤ `iteration`.
        `attrs["predicted_rotation"]` is `rotation_rate`; `attrs["summary"]` says the essence in words.

    Raises:
        ValueError: if the run observed something else, is a batch or traced, or the model has other stages.
        TypeError: if the model is neither a record nor a `GouldTanakaFlow`.

    Source: laws and assumptions [GT]; correction, recursion and rotation: derivations of this project.

    >>> import adamflow as af
    >>> problem = af.problems.rayleigh(dimension=10)
    >>> optimizer = af.adamw(1e-2, weight_decay=0.1, second_moment="per_tensor")
    >>> observe = af.analysis.invariance_observer(problem.scale_invariant)
    >>> run = af.iterate(optimizer, problem.loss, problem.params, 50, observe=observe)
    >>> report = af.analysis.scale_invariance_report(run, optimizer)
    >>> bool(abs(report.law_exact / report.square_norm - 1).max() < 1e-5)
    True
    """
    optimizer, order, rate = _reading(model)
    rows, n = _rows(trajectory)
    gamma = _gamma(optimizer)
    hint = "run it with a constant rate; the parameters that are not scale-invariant do not enter the law"
    check_constant("the law of the norm", optimizer, hint, takes_clipping=True)
    eta, decay = float(optimizer.learning_rate), float(optimizer.weight_decay)
    factor = float(norm_factor(gamma, order, rate))

    def column(name: str) -> np.ndarray:
        return np.stack([np.asarray(getattr(row, name), np.float64) for row in rows.values()])

    length, update_length, gradient_length = column("norm"), column("update_norm"), column("gradient_norm")
    square_norm, update = length**2, update_length**2
    along, inner = column("along_update"), column("along_gradient")
    laws = [square_norm_law(n, update, square_norm[:, 0], eta, decay, k) for k in (1.0, factor)]
    remembered = square_norm[:, :1] * np.exp(-2 * eta * decay * (n - n[0]))
    grown = (square_norm - remembered)[:, -1], (laws[0] - remembered)[:, -1]
    sizes = [leaf.size for leaf in named_leaves(trajectory.initial_params, tuple(rows)).values()]
    variables: dict[str, Any] = {
        "square_norm": square_norm,
        "square_update": update,
        "orthogonality": _ratio(np.abs(inner), length * gradient_length),
        "alignment": _ratio(along, length * update_length),
        "spread": column("spread"),
        "rotation": _ratio(eta * np.sqrt(np.maximum(update - _ratio(along**2, square_norm), 0)), length),
        "law_paper": laws[0],
        "law_corrected": laws[1],
    }
    if "mean_square" in _filters(optimizer) and order == 0 and n[0] == 0 and np.all(np.diff(n) == 1):
        exact = square_norm_recursion(update, column("divisor"), square_norm[:, 0], eta, decay, gamma)
        variables["law_exact"] = exact
    import xarray as xr

    report = xr.Dataset(
        {name: (("tensor", "iteration"), values) for name, values in variables.items()}
        | {
            "measured_factor": ("tensor", _ratio(*grown)),
            "equilibrium": ("tensor", [equilibrium_norm(d, eta, decay) ** 2 if decay else np.inf for d in sizes]),
        },
        {"tensor": list(rows), "iteration": ("iteration", n, {"long_name": "iteration n", "units": "1"})},
        {"run": trajectory.name, "factor": factor, "gamma": gamma},
    )
    report.attrs["predicted_rotation"] = float(rotation_rate(eta, decay, gamma))
    report = _with_cosines(report, rows)
    for name in report.data_vars:
        report[name].attrs.update(long_name=_LONG_NAMES[str(name)], units="1")
    return report.assign_attrs(summary=_summary(report))


def _reading(model: Any) -> tuple[Optimizer, Any, str]:
    """The record, the order of the flow (0 for the iterates), and the rate."""
    if isinstance(model, GouldTanakaFlow):
        return model.optimizer, model.order, model.rate
    if isinstance(model, Optimizer):
        return model, 0, "gould_tanaka"
    raise TypeError(f"model must be the optimizer that ran, or its GouldTanakaFlow, got {type(model).__name__}")


def _filters(optimizer: Optimizer) -> dict[str, Any]:
    return {filter.name: filter.decay for filter in optimizer.stages[0].filters()}


def _gamma(optimizer: Optimizer) -> float:
    filters = _filters(optimizer)
    plain = len(optimizer.stages) == 1 and optimizer.l2 is None
    known = plain and any(reads_as_adam(optimizer.stages[0], name) for name in ("second_moment", "mean_square"))
    gamma = filters.get("first_moment", 0.0)
    if not known or callable(gamma) or not is_concrete(optimizer) or np.ndim(gamma):
        raise ValueError(
            f"the laws of the norm are those of one stage of Adam or RMSprop with constant numbers, but "
            f"{optimizer.name!r} has another form, or is a batch of records"
        )
    return float(gamma)


def _rows(trajectory: Trajectory) -> tuple[dict[str, TensorObservation], Float[np.ndarray, " saved"]]:
    rows = trajectory.observed
    if not isinstance(rows, dict) or not rows or not all(isinstance(row, TensorObservation) for row in rows.values()):
        raise ValueError(
            "the run must have observed its scale-invariant weights; run it with "
            "observe=af.analysis.invariance_observer(problem.scale_invariant)"
        )
    if not is_concrete(trajectory) or trajectory.iterations.ndim != 1:
        raise ValueError(
            "scale_invariance_report takes one run, got a batch or a run that jax is tracing; take one lane with "
            "jax.tree.map(lambda leaf: leaf[i], trajectory), outside of jit"
        )
    good = np.asarray(trajectory.iterations <= trajectory.outcome.last_valid_iteration)
    if good.sum() < 2:
        raise ValueError(f"the run saved {good.sum()} good iterations, but laws need two; {trajectory.outcome.message}")
    return jax.tree.map(lambda leaf: leaf[good], rows), np.asarray(trajectory.iterations, np.float64)[good]


def _with_cosines(report: Dataset, rows: dict[str, TensorObservation]) -> Dataset:
    if any(row.weights is None for row in rows.values()):
        return report

    def unit(vectors: Any) -> np.ndarray:
        vectors = np.asarray(vectors, np.float64)
        return _ratio(vectors, numpy_norm(vectors)[:, None])

    products = np.stack([unit(row.weights) @ unit(row.gradient).T for row in rows.values()])
    later = np.arange(products.shape[2]) > np.arange(products.shape[1])[:, None]
    n = report.iteration.values
    report = report.assign_coords(gradient_iteration=n)
    return report.assign(cosine=(("tensor", "iteration", "gradient_iteration"), np.where(later, np.nan, products)))


def _ratio(numerator: Any, denominator: Any) -> np.ndarray:
    """Their quotient, and 0 where the denominator is 0."""
    return np.where(denominator > 0, numerator / np.where(denominator > 0, denominator, 1.0), 0.0)


def _summary(report: Dataset) -> str:
    last = report.isel(iteration=-1)
    tensors = "; ".join(
        f"{str(name) or 'params'}: ‖W‖² = {one.square_norm:.4g} (law of [GT] {one.law_paper:.4g}, corrected for "
        f"momentum {one.law_corrected:.4g}), measured K = {one.measured_factor:.4g}"
        for name, one in ((name, last.sel(tensor=name)) for name in report.tensor.values)
    )
    return (
        f"{report.run}: W is orthogonal to its gradient up to {float(report.orthogonality.max()):.1g}; at iteration "
        f"{float(last.iteration):g} {tensors}. The laws' K: 1 and {report.factor:.4g}. W/‖W‖ turns by "
        f"{float(last.rotation.mean()):.3g} per iteration (in equilibrium {report.predicted_rotation:.3g})."
    )
