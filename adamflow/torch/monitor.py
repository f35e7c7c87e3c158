"""A monitor for a PyTorch training loop: where does the run stand, every so many steps?"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
import xarray as xr

from adamflow.analysis import TrainingReport, stack_reports
from adamflow.analysis.stability.training import LocalLoss, ReportSettings, in_working_precision, report_of
from adamflow.checks import check_count, check_flag, check_range
from adamflow.optimizers import with_clipping
from adamflow.torch.model_loss import (
    Closure,
    check_deterministic,
    evaluate,
    gradients_of,
    numpy_of,
    products_of,
    trained_parameters,
)
from adamflow.torch.torch_state import TorchReading, from_torch, parameters_of
from adamflow.torch.undisturbed import undisturbed


class Monitor:
    """Looks at a training run every so many steps: `monitor()` in the loop, after `optimizer.step()`.

    A look computes a `training_report` with PyTorch's own derivatives, on the model's device, and leaves the model, its
    gradients, buffers and modes, and the random states as they were. Between looks a call costs an addition. A look
    takes a forward pass twice to see whether the closure is deterministic, a gradient, and as many Hessian-vector
    products as its report says; it keeps as many vectors of the size of the model on the host.

    Args:
        model: the model that is trained.
        optimizer: `torch.optim.Adam`, `AdamW`, `RMSprop`, `SGD` or `KAdam`, over the model's parameters.
        closure: evaluates the model on fixed data and returns the loss, a scalar tensor, without calling `backward`.
            It must be the same number at each call, so with dropout off. The data may be a batch or several.
        every: how many steps lie between two looks.
        cheap: whether to leave out the eigenvalues.
        plain_sharpness: whether to compute the sharpness without preconditioner too, at the same cost again.
        leaf_sharpness: whether to compute the largest eigenvalue of each parameter's block too, at that cost for each.
        clip_norm: the norm at which the loop clips the gradient, if it does.
        second_derivatives: `False` takes central differences of gradients in the place of Hessian-vector products, for
            models without second derivatives; their relative errors are about 1e-3 in float32.
        tolerance, max_products, seed: as in `training_report`.

    Attributes:
        reports: the reports so far, oldest first; the last one alone has its vectors.

    Raises:
        ValueError, TypeError: the model has no trained parameters, or an argument is out of its range; in a look, what
            `from_torch` and `training_report` raise, or the closure is not deterministic, calls `backward`, or has no
            second derivative.

    Example:
        >>> import torch
        >>> from adamflow.torch import Monitor
        >>> model, inputs = torch.nn.Linear(2, 1), torch.eye(2)
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        >>> monitor = Monitor(model, optimizer, lambda: (model(inputs) - 1).square().mean(), every=10)
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     (model(inputs) - 1).square().mean().backward()
        ...     optimizer.step()
        ...     scalars = monitor()
        >>> [report.iteration for report in monitor.reports], scalars["edge"]
        ([10, 20], 37.99...)
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        closure: Closure,
        every: int = 100,
        *,
        cheap: bool = False,
        plain_sharpness: bool = False,
        leaf_sharpness: bool = False,
        clip_norm: float | None = None,
        second_derivatives: bool = True,
        tolerance: float = 1e-3,
        max_products: int = 40,
        seed: int = 0,
    ) -> None:
        trained_parameters(model)
        if not callable(closure):
            raise ValueError(f"closure must be a function that returns the loss, got {type(closure).__name__}")
        self.model = model
        self.optimizer = optimizer
        self.closure = closure
        self.every = check_count("every", every)
        self.reports: list[TrainingReport] = []
        self._second_derivatives = check_flag("second_derivatives", second_derivatives)
        self._settings = ReportSettings(
            cheap=check_flag("cheap", cheap),
            plain_sharpness=check_flag("plain_sharpness", plain_sharpness),
            leaf_sharpness=leaf_sharpness,
            tolerance=tolerance,
            max_products=max_products,
            seed=seed,
        )
        if clip_norm is not None:
            check_range("clip_norm", clip_norm, 0, low_open=True, hint="give None for no clipping")
        self._clip_norm = clip_norm
        self._calls = 0

    def __call__(self, *_: object) -> dict[str, float]:
        """Count a step, and look if it is time.

        It takes and ignores the arguments of a hook: `optimizer.register_step_post_hook(monitor)` is another way to
        call it.

        Returns:
            the numbers for a logger, `report.scalars()`; empty between looks, and while every learning rate is 0.
        """
        self._calls += 1
        if self._calls % self.every or not any(float(group["lr"]) for group in self.optimizer.param_groups):
            return {}
        return self.look().scalars()

    def look(self) -> TrainingReport:
        """The report of the present state, which joins `reports`."""
        iteration = self._calls if type(self.optimizer) is torch.optim.SGD else None
        reading = from_torch(self.optimizer, self.model, iteration=iteration)
        last = self.reports[-1] if self.reports else None
        if self._clip_norm is not None:
            reading = dataclasses.replace(reading, optimizer=with_clipping(reading.optimizer, self._clip_norm))
        settings = dataclasses.replace(self._settings, start=last)
        params = in_working_precision(reading.params)
        with undisturbed(self.model):
            check_deterministic(self.model, self.closure)
            near = _ModelNear(self, reading, params)
            local = LocalLoss(near.gradient, near.curvatures, near.product, near.difference)
            report = report_of(local, params, *reading, settings)
        if last is not None:
            self.reports[-1] = dataclasses.replace(last, vector=None, plain_vector=None, leaf_vectors=None)
        self.reports.append(report)
        return report

    def to_xarray(self) -> xr.Dataset:
        """All reports as a dataset, as `af.analysis.stack_reports` makes it; `af.plotting.training_run` draws it."""
        if not self.reports:
            raise ValueError("there are no reports yet; call the monitor after optimizer.step(), or look()")
        return stack_reports(self.reports)


class _ModelNear:
    """A model's loss near its present parameters, with the penalty that the optimizer adds.

    Vectors are dicts by the names of the parameters.
    """

    def __init__(self, monitor: Monitor, reading: TorchReading, params: dict[str, Any]) -> None:
        self._model, self._closure = monitor.model, monitor.closure
        parameters = parameters_of(monitor.optimizer, monitor.model)
        self._named = {name: parameters[name] for name in sorted(parameters)}
        self._penalties = reading.penalties or dict.fromkeys(self._named, 0.0)
        self._origin = {name: np.asarray(params[name]) for name in self._named}
        self._twice = monitor._second_derivatives
        self._graph: list[torch.Tensor] = []

    def gradient(self) -> tuple[float, dict[str, Any]]:
        """The loss and its gradient; its graph is kept for the products."""
        value, self._graph = gradients_of(self._model, self._closure, self._named, twice=self._twice)
        return float(value) + self._penalty(self._origin), self._with_penalties(self._graph, self._origin)

    def curvatures(self, vectors: Sequence[dict[str, Any]]) -> list[float]:
        """xᵀHx of each vector."""
        images = [self.product(vector, None) for vector in vectors]
        pairs = zip(images, vectors, strict=True)
        return [sum(float(np.vdot(image[name], x[name])) for name in self._named) for image, x in pairs]

    def product(self, vector: dict[str, Any], scales: dict[str, Any] | None) -> dict[str, Any]:
        """H x, or D H D x, exactly or by a central difference of gradients."""
        vector = {name: np.asarray(vector[name]) for name in self._named}
        if scales is not None:
            vector = {name: np.asarray(scales[name]) * leaf for name, leaf in vector.items()}
        parts = self._exact_product(vector) if self._twice else self._difference_of_gradients(vector)
        image = self._with_penalties(parts, vector)
        return image if scales is None else {name: scales[name] * leaf for name, leaf in image.items()}

    def difference(self, direction: dict[str, Any]) -> Callable[[float], float]:
        """c ↦ L(θ + c d) − L(θ)."""
        direction = {name: np.asarray(direction[name]) for name in self._named}

        def evaluated() -> float:
            with torch.no_grad():
                return float(evaluate(self._model, self._closure))

        def value(step: float) -> float:
            moved = {name: step * leaf for name, leaf in direction.items()}
            place = {name: self._origin[name] + leaf for name, leaf in moved.items()}
            return self._at(moved, evaluated) + self._penalty(place)

        initial = value(0.0)
        return lambda step: value(step) - initial

    def _exact_product(self, vector: dict[str, np.ndarray]) -> list[torch.Tensor]:
        return products_of(self._graph, self._named, self._tensors(vector))

    def _difference_of_gradients(self, vector: dict[str, np.ndarray]) -> list[torch.Tensor]:
        length = _norm(vector) or 1.0
        eps = float(np.finfo(next(iter(self._origin.values())).dtype).eps)
        shift = eps ** (1 / 3) * max(1.0, _norm(self._origin)) / length

        def slope() -> list[torch.Tensor]:
            return gradients_of(self._model, self._closure, self._named, twice=False)[1]

        moves = ({name: sign * shift * leaf for name, leaf in vector.items()} for sign in (1, -1))
        ahead, behind = (self._at(displacement, slope) for displacement in moves)
        return [(a.double() - b.double()) / (2 * shift) for a, b in zip(ahead, behind, strict=True)]

    def _at(self, displacement: dict[str, np.ndarray], compute: Callable[[], Any]) -> Any:
        """What `compute` returns with other parameters."""
        leaves = list(self._named.values())
        values = [leaf.data for leaf in leaves]
        shifts = self._tensors(displacement)
        try:
            for leaf, value, shift in zip(leaves, values, shifts, strict=True):
                leaf.data = value + shift
            return compute()
        finally:
            for leaf, value in zip(leaves, values, strict=True):
                leaf.data = value

    def _tensors(self, vector: dict[str, np.ndarray]) -> list[torch.Tensor]:
        return [torch.tensor(vector[name]).to(leaf.device, leaf.dtype) for name, leaf in self._named.items()]

    def _with_penalties(self, parts: Sequence[torch.Tensor], vector: dict[str, np.ndarray]) -> dict[str, Any]:
        """Tensors in the order of the names, and what the penalty adds to them at a vector, as arrays of jax."""
        arrays = {}
        for (name, leaf), part in zip(vector.items(), parts, strict=True):
            array = numpy_of(part, leaf.dtype)
            arrays[name] = jnp.asarray(array + self._penalties[name] * leaf if self._penalties[name] else array)
        return arrays

    def _penalty(self, vector: dict[str, np.ndarray]) -> float:
        terms = [weight * float(np.sum(vector[name].astype(float) ** 2)) for name, weight in self._penalties.items()]
        return sum(terms, 0.0) / 2


def _norm(vector: dict[str, np.ndarray]) -> float:
    return math.sqrt(sum(float(np.linalg.norm(leaf)) ** 2 for leaf in vector.values()))
