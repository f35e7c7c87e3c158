"""Type names shared by every layer: shapes stand in types (jaxtyping), spelled once here.

They are aliases with names: signatures, `help` and the reference show `Scalar`, not what it stands for.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ForwardRef, TypeAlias

from jax import Array
from jaxtyping import Float, Inexact, Int, PyTree
from numpy import floating, integer, ndarray
from numpy.typing import ArrayLike as NumpyArrayLike
from typing_extensions import TypeAliasType

if TYPE_CHECKING:
    from xarray import Dataset
else:
    # Who has no use for xarray does not wait for its import, which takes as long as that of jax.
    Dataset: TypeAlias = ForwardRef("xarray.Dataset")

#: A real number, which is a Python float, a NumPy or JAX scalar, or a tracer of one.
Scalar = TypeAliasType(
    "Scalar", float | int | floating | integer | Float[Array | ndarray, ""] | Int[Array | ndarray, ""]
)
#: A whole number of Python or NumPy, or a JAX scalar.
WholeNumber = TypeAliasType("WholeNumber", int | integer | Int[Array | ndarray, ""])
#: Numbers of any shape, for a batch of records or to broadcast against others.
Numbers = TypeAliasType(
    "Numbers", float | int | floating | integer | Float[Array | ndarray, "..."] | Int[Array | ndarray, "..."]
)
#: What `numpy.asarray` makes an array of, such as a number, an array, a sequence of these, or a column of a table.
ArrayLike = TypeAliasType("ArrayLike", float | int | Sequence[Any] | NumpyArrayLike)
#: One leaf of the parameters, or anything with its shape (gradient, filter, direction).
Leaf = TypeAliasType("Leaf", Inexact[Array, "..."])
#: Parameters, any pytree of floating-point arrays.
Params = TypeAliasType("Params", PyTree[Inexact[Array, "..."]])
#: A pytree of arrays, the state of a flow, which chooses it, or (params, OptimizerState) of an optimizer.
State = TypeAliasType("State", PyTree)
#: What a batch function returns, any pytree of arrays.
Batch = TypeAliasType("Batch", PyTree)
#: `loss(params)`, or `loss(params, batch)` for minibatch runs; returns a real scalar.
Loss = TypeAliasType("Loss", Callable[..., Any])
#: By stage, then by the name of the filter, a pytree like the parameters.
Filters = TypeAliasType("Filters", tuple[dict[str, Params], ...])
