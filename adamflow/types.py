"""Type names shared by every layer: shapes stand in types (jaxtyping), spelled once here."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from jax import Array
from jaxtyping import Float, Inexact, Int, PyTree
from numpy import ndarray

if TYPE_CHECKING:
    from xarray import Dataset
else:
    # Who has no use for xarray does not wait for its import, which takes as long as that of jax.
    Dataset: TypeAlias = Any

#: A real number: a Python float, a NumPy or JAX scalar, or a tracer of one.
Scalar: TypeAlias = float | int | Float[Array | ndarray, ""] | Int[Array | ndarray, ""]
#: Numbers of any shape that broadcast against each other, in the functions of `analysis`.
Numbers: TypeAlias = float | int | Float[Array | ndarray, "..."] | Int[Array | ndarray, "..."]
#: One leaf of the parameters, or anything with its shape (gradient, filter, direction).
Leaf: TypeAlias = Inexact[Array, "..."]
#: Parameters: any pytree of floating-point arrays.
Params: TypeAlias = PyTree[Inexact[Array, "..."]]
#: What a batch function returns: any pytree of arrays.
Batch: TypeAlias = PyTree
#: `loss(params)`, or `loss(params, batch)` for minibatch runs; returns a real scalar.
Loss: TypeAlias = Callable[..., Any]
#: By stage, then by the name of the filter: a pytree like the parameters.
Filters: TypeAlias = tuple[dict[str, Params], ...]
