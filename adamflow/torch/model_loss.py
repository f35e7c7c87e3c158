"""A PyTorch model as a loss: `loss(params)` for jax, and its derivatives as NumPy arrays for the monitor.

A gradient is one backward pass; a Hessian-vector product is a second one through it.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from adamflow.checks import describe
from adamflow.torch.undisturbed import undisturbed

Closure = Callable[[], torch.Tensor]


class TorchLoss:
    """What `adamflow.torch.loss` returns: `loss(params)`, with the model's present parameters as `params`.

    Attributes:
        params: by name, the parameters that require a gradient, as jax arrays.
    """

    def __init__(self, model: torch.nn.Module, closure: Closure) -> None:
        self._model = model
        self._closure = closure
        self._named = trained_parameters(model)
        self.params = {name: _as_jax(name, parameter) for name, parameter in self._named.items()}
        shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in self.params.items()}
        dtype = jnp.result_type(*self.params.values())
        self._call = _differentiable(self._value, self._gradient, self._product, shapes, dtype)

    def __call__(self, params: dict[str, Any]) -> jax.Array:
        """The loss at other parameters of the model, of the same names and shapes."""
        if not isinstance(params, dict) or params.keys() != self.params.keys():
            raise ValueError(f"params must be a dict like loss.params, got {describe(params)}; start from loss.params")
        return self._call({name: jnp.asarray(params[name], leaf.dtype) for name, leaf in self.params.items()})

    def _value(self, params: dict[str, Any]) -> np.ndarray:
        with self._at(params), torch.no_grad():
            return np.asarray(evaluate(self._model, self._closure).item(), self._dtype)

    def _gradient(self, params: dict[str, Any]) -> dict[str, np.ndarray]:
        with self._at(params):
            return self._as_numpy(gradients_of(self._model, self._closure, self._named, twice=False)[1])

    def _product(self, params: dict[str, Any], vector: dict[str, Any]) -> dict[str, np.ndarray]:
        with self._at(params):
            _, gradients = gradients_of(self._model, self._closure, self._named, twice=True)
            tensors = [_like(np.asarray(vector[name]), leaf) for name, leaf in self._named.items()]
            return self._as_numpy(products_of(gradients, self._named, tensors))

    @property
    def _dtype(self) -> np.dtype:
        return np.result_type(*(np.dtype(leaf.dtype) for leaf in self.params.values()))

    @contextlib.contextmanager
    def _at(self, params: dict[str, Any]) -> Iterator[None]:
        """The model with other parameters, for as long as it lasts."""
        with undisturbed(self._model):
            for name, parameter in self._named.items():
                parameter.data = _like(np.asarray(params[name]), parameter)
            yield

    def _as_numpy(self, tensors: Sequence[torch.Tensor]) -> dict[str, np.ndarray]:
        named = zip(self.params.items(), tensors, strict=True)
        return {name: numpy_of(tensor, np.dtype(leaf.dtype)) for (name, leaf), tensor in named}


def loss(model: torch.nn.Module, closure: Closure) -> TorchLoss:
    """A PyTorch model as a loss of jax, for `af.iterate`, `af.solve` and the analysis.

    Values, gradients and Hessian-vector products are computed by PyTorch, on the model's device, in callbacks. That is
    enough for discrete runs, the flow that takes gradients once (`GouldTanakaFlow` of order 1),
    the sharpness, `training_report` and `jacobian_spectrum`. Third derivatives do not exist: `ModifiedFlow` of order 2
    and more says so. Under `vmap` the evaluations are made one after the other. The model is left as it was.

    Args:
        model: any module; its parameters that require a gradient are the variables.
        closure: evaluates the model on fixed data and returns the loss, a scalar tensor, without calling `backward`.

    Returns:
        `loss(params)`, where `params` is a dict by name, and `loss.params` the present one.

    Raises:
        ValueError: a parameter is complex or sparse, or in float64 while jax is in float32; or, when it is called,
            the closure returns no scalar, calls `backward`, or changes from one call to the next.

    Example:
        >>> import torch
        >>> import adamflow as af, adamflow.torch
        >>> model, inputs = torch.nn.Linear(2, 1, bias=False).double(), torch.eye(2).double()
        >>> loss = adamflow.torch.loss(model, lambda: (model(inputs) - 1).square().mean())
        >>> bool(af.iterate(af.adam(0.1), loss, loss.params, 200).outcome.successful)
        True
    """
    made = TorchLoss(model, closure)
    with undisturbed(model):
        check_deterministic(model, closure)
    return made


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters of a model that require a gradient, by name, or a `ValueError`."""
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, got {describe(model)}")
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not named:
        raise ValueError("model has no parameters that require a gradient, so there is nothing to look at")
    for name, parameter in named.items():
        check_real_and_dense(name, parameter)
    return named


def check_real_and_dense(name: str, tensor: torch.Tensor) -> None:
    """Raise `ValueError` for a parameter, or gradient, that is complex or sparse."""
    if tensor.is_complex():
        raise ValueError(f"{name} is complex ({tensor.dtype}); keep torch.view_as_real of it as the parameter")
    if tensor.layout != torch.strided:
        raise ValueError(f"{name} has the layout {tensor.layout}; for an embedding set sparse=False")


def evaluate(model: torch.nn.Module, closure: Closure) -> torch.Tensor:
    """What the closure returns, or a `ValueError` unless it is a real scalar and `backward` was not called."""
    value = closure()
    if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.is_floating_point():
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else describe(value)
        raise ValueError(f"the closure must return the loss, a real scalar tensor, got {got}")
    if any(parameter.grad is not None for parameter in model.parameters()):
        raise ValueError("the closure must return the loss without calling backward(), which it did")
    return value.reshape(())


def check_deterministic(model: torch.nn.Module, closure: Closure) -> float:
    """The loss; `ValueError` if two calls of the closure differ by more than rounding, or it is not finite."""
    # With gradients on, so that a closure that calls backward() gets as far as that.
    with torch.enable_grad():
        first, second = (evaluate(model, closure).detach() for _ in range(2))
    a, b = float(first), float(second)
    if not math.isfinite(a):
        raise ValueError(f"the loss is {a} at the present parameters, so there is no curvature; look at it earlier")
    if abs(a - b) > 1e3 * torch.finfo(first.dtype).eps * max(abs(a), abs(b)):
        raise ValueError(
            f"the closure is not deterministic: two calls gave {a:.8g} and {b:.8g}. Dropout, or a new batch at each "
            "call? Let it evaluate one fixed batch, with dropout off: model.eval() inside the closure; the mode is put "
            "back"
        )
    return a


def gradients_of(
    model: torch.nn.Module, closure: Closure, named: dict[str, torch.nn.Parameter], *, twice: bool
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss and its gradient; with `twice` the graph is kept, to be differentiated again."""
    with torch.enable_grad():
        value = evaluate(model, closure)
        if not value.requires_grad:
            raise ValueError("the loss of the closure depends on no parameter; is it computed under torch.no_grad()?")
        parameters = list(named.values())
        gradients = torch.autograd.grad(
            value, parameters, create_graph=twice, allow_unused=True, materialize_grads=True
        )
    for name, gradient in zip(named, gradients, strict=True):
        check_real_and_dense(f"the gradient of {name}", gradient)
    return value.detach(), list(gradients)


def products_of(
    gradients: list[torch.Tensor], named: dict[str, torch.nn.Parameter], vector: list[torch.Tensor]
) -> list[torch.Tensor]:
    """H x, by a backward pass through gradients whose graph was kept."""
    dependent = [(gradient, x) for gradient, x in zip(gradients, vector, strict=True) if gradient.requires_grad]
    parameters = list(named.values())
    if not dependent:
        return [torch.zeros_like(parameter) for parameter in parameters]
    try:
        return list(
            torch.autograd.grad(
                [gradient for gradient, _ in dependent],
                parameters,
                [x for _, x in dependent],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
        )
    except RuntimeError as error:
        words = str(error).lower()
        if not ("not implemented" in words or "double backward" in words or "higher order" in words):
            raise
        raise ValueError(
            f"this model has no second derivative in PyTorch ({str(error).splitlines()[0][:120]}). For attention, run "
            "the closure with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH); otherwise give "
            "Monitor second_derivatives=False, which takes differences of gradients"
        ) from error


def numpy_of(tensor: torch.Tensor, dtype: Any) -> np.ndarray:
    """A tensor as a new array on the host."""
    kind = torch.float64 if np.dtype(dtype) == np.float64 else torch.float32
    return np.array(tensor.detach().to("cpu", kind).numpy())


def _like(array: np.ndarray, parameter: torch.Tensor) -> torch.Tensor:
    """A new tensor of the type and device of a parameter."""
    return torch.tensor(array).to(parameter.device, parameter.dtype)


def _as_jax(name: str, parameter: torch.Tensor) -> jax.Array:
    double = parameter.dtype == torch.float64
    if double and not jax.config.jax_enable_x64:
        raise ValueError(
            f"{name} is in float64, but jax computes in float32; jax.config.update('jax_enable_x64', True) at the "
            "start of the program, or model.float()"
        )
    return jnp.asarray(numpy_of(parameter, np.float64 if double else np.float32))


def _differentiable(
    host_value: Callable[..., Any],
    host_gradient: Callable[..., Any],
    host_product: Callable[..., Any],
    shapes: dict[str, Any],
    dtype: Any,
) -> Callable[[Any], jax.Array]:
    """A function of jax whose first and second derivatives are computed on the host."""

    def call(function: Callable[..., Any], result: Any, *args: Any) -> Any:
        return jax.pure_callback(function, result, *args, vmap_method="sequential")

    @jax.custom_jvp
    def value(params: Any) -> jax.Array:
        return call(host_value, jax.ShapeDtypeStruct((), dtype), params)

    @jax.custom_jvp
    def gradient(params: Any) -> Any:
        return call(host_gradient, shapes, params)

    @jax.custom_jvp
    def product(params: Any, vector: Any) -> Any:
        # As the "solution" of a symmetric system it has a transpose, which is itself, and works under vmap.
        return jax.lax.custom_linear_solve(
            lambda x: x, vector, lambda _, b: call(host_product, shapes, params, b), symmetric=True
        )

    @value.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        slopes = gradient(*primals)
        parts = jax.tree.map(lambda slope, tangent: jnp.sum(slope * tangent), slopes, tangents[0])
        return value(*primals), sum(jax.tree.leaves(parts)).astype(dtype)

    @gradient.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        return gradient(*primals), product(*primals, *tangents)

    def derivative_of_product(primals: Any, tangents: Any) -> Any:
        moved = [leaf for leaf in jax.tree.leaves(tangents[0], is_leaf=_is_zero) if not _is_zero(leaf)]
        if moved:
            raise ValueError(
                "a PyTorch model has no third derivative here; take what needs two at most: iterate, GouldTanakaFlow "
                "of order 1, preconditioned_sharpness, training_report, jacobian_spectrum"
            )
        vector = jax.tree.map(
            lambda leaf, like: jnp.zeros_like(like) if _is_zero(leaf) else leaf,
            tangents[1],
            primals[1],
            is_leaf=_is_zero,
        )
        return product(*primals), product(primals[0], vector)

    product.defjvp(derivative_of_product, symbolic_zeros=True)
    return value


def _is_zero(leaf: Any) -> bool:
    return isinstance(leaf, jax.custom_derivatives.SymbolicZero)
