"""Forward-mode derivatives of a run, which flows have none of: the error for them.

Runs are differentiated in reverse mode alone. Where jax asks for forward mode its own error says nothing of runs, and
under jit it comes when the program is compiled, outside of `solve`. So the inputs of a run pass an identity whose
derivative is an identity that can only be transposed: reverse mode does that, forward mode would have to compute it.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

MESSAGE = (
    "solve has reverse-mode derivatives alone (jax.grad, jax.vjp, jax.jacrev), but jax.jvp, jax.jacfwd or "
    "jax.hessian asked for forward-mode ones; take jax.jacrev, differentiate af.iterate, or give "
    "flow.term(loss) to diffrax.diffeqsolve with adjoint=diffrax.ForwardMode()"
)


def in_reverse_mode_alone(tree: Any) -> Any:
    """The same values, whose forward-mode derivative is a `TypeError` that says what to do."""
    return jax.tree.map(lambda leaf: _value.bind(leaf) if eqx.is_inexact_array(leaf) else leaf, tree)


@contextlib.contextmanager
def forward_mode_refused() -> Iterator[None]:
    """The same error where a loss closes over what is differentiated, which is no input of a run."""
    try:
        yield
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise TypeError(MESSAGE) from None


def _refuse(*_: Any, **__: Any) -> Any:
    raise TypeError(MESSAGE)


def _jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    (value,), (tangent,) = primals, tangents
    if isinstance(tangent, ad.Zero):
        return _value.bind(value), tangent
    return _value.bind(value), _tangent.bind(tangent)


def _same_batch(primitive: Primitive) -> Any:
    return lambda values, axes: (primitive.bind(*values), axes[0])


#: The identity of the inputs, and that of their tangents.
_value, _tangent = Primitive("run_input"), Primitive("run_input_tangent")

for _primitive in (_value, _tangent):
    _primitive.def_abstract_eval(lambda aval: aval)
    batching.primitive_batchers[_primitive] = _same_batch(_primitive)
_value.def_impl(lambda value: value)
mlir.register_lowering(_value, lambda context, value: [value])
ad.primitive_jvps[_value] = _jvp
_tangent.def_impl(_refuse)
mlir.register_lowering(_tangent, _refuse)
ad.deflinear2(_tangent, lambda cotangent, _: [cotangent])
