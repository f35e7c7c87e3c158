"""The linear stability of an optimizer's step, or of a flow, while its preconditioner changes slowly.

One reading of the record gives all: the step (or the vector field) is differentiated at rest, θ = 0 and m = 0, with
every second moment, and memory that is no average, held at 1. The results of this file are derivations of this project.
"""

import dataclasses
import functools
import math
from collections.abc import Hashable
from typing import Any, Literal, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Complex, Float

from adamflow.analysis.stability.eigenvalues import characteristic_polynomial, dominant_by_numpy, dominant_of
from adamflow.analysis.stability.uncompiled import NotEvaluableError, evaluate
from adamflow.checks import check_range, is_concrete
from adamflow.flows import AbstractFlow
from adamflow.optimizers import Optimizer, check_constant, check_optimizer
from adamflow.optimizers.linearization import Build, System, at_rest, jacobian, step_system, without_bias, zero_of
from adamflow.types import Loss, Numbers

#: What is linearized: the discrete step, or a flow, of which only the settings count.
Model: TypeAlias = AbstractFlow | Literal["discrete"]

#: What to do where the numbers of an optimizer vary.
ONE_ITERATION = (
    "take optimizer.at(iteration), with the numbers of one iteration, and where leaves differ "
    "optimizer.uniform(params), with the largest rate"
)

#: Batches of at most so many systems are evaluated by NumPy, larger ones by a compiled program.
_FEW = 1024
#: The curvatures 0, 1, 2 at which the form of a system is checked.
_CHECKED = 3
#: Traced programs that are kept, by their form.
_KEPT_PROGRAMS = 64


def linear_stability(optimizer: Optimizer, curvature: Numbers, *, model: Model = "discrete") -> Float[Array, "..."]:
    r"""How fast perturbations grow or decay along an eigenvector of $P^{-1/2} H P^{-1/2}$ with eigenvalue s.

    P is the preconditioner, $\mathrm{diag}(\sqrt{\hat v} + \varepsilon)$ for Adam and the product over its stages for
    k-Adam, taken as constant: it changes slowly where β is nearer to 1 than the result. In $z = P^{1/2}\theta$ each s
    has a system of its own. For Adam and AdamW, with s in the gradient $g = sz$:

    - "discrete": $m^+ = \gamma m + (1-\gamma) s z$, $z^+ = (1-\eta\lambda) z - \eta m^+$;
    - flow of order 1, filters with rate a: $m' = a\,(sz - m)$, $z' = -\eta\,(\lambda z + m)$;
    - flow of order 2: the same with $z' + \tfrac12 z'' = -\eta\,(\lambda z + m)$.

    Every other record and flow follows from its own step or vector field in the same way, bias correction over.

    Args:
        optimizer: the record, or a batch of records, as `jax.vmap` of a constructor makes: its numbers then have a
            shape, which broadcasts against that of `curvature`.
        curvature: s, any real number. Where s + λ < 0 the result is an instability of the loss and not of the step
            size: a saddle or maximum, left at that rate. At s + λ = 0 the direction is neutral: 1, or 0 for a flow.
        model: "discrete", or a flow such as `GouldTanakaFlow(optimizer, order=2)`, whose `optimizer` is replaced by
            `optimizer` and whose other settings count.

    Returns:
        For "discrete" the spectral radius: the factor per iteration; below 1 the step is stable. For a flow the
        spectral abscissa, the largest real part, per iteration; below 0 it is stable. In the broadcast shape and the
        dtype of the record's numbers. Systems of three rows lose accuracy where their entries span more than a third
        of the exponents of that dtype: ηs beyond 1e12 in float32, 1e100 in float64.

    Raises:
        TypeError: the direction is not linear in the gradients while second moments are held (sign descent), or the
            state of the flow has no `filters`.
        ValueError: `curvature` is nan or infinite, or `model` is neither.

    Source: derivation of this project.

    >>> import adamflow as af
    >>> optimizer = af.adam(learning_rate=0.01, gamma=0.9)
    >>> print(linear_stability(optimizer, jnp.array([3799.0, 3801.0])) < 1)
    [ True False]
    >>> flow = af.GouldTanakaFlow(optimizer, order=2)
    >>> print(linear_stability(optimizer, jnp.array([211.0, 212.0]), model=flow) < 0)
    [ True False]
    """
    values = _dominant(optimizer, curvature, model)
    if isinstance(values, np.ndarray):
        return jnp.asarray(np.abs(values) if model == "discrete" else values.real)
    return jnp.abs(values) if model == "discrete" else values.real


def dominant_eigenvalue(
    optimizer: Optimizer, curvature: Numbers, *, model: Model = "discrete"
) -> Complex[Array, "..."]:
    """The eigenvalue behind `linear_stability`: that with the largest modulus, of a flow with the largest real part.

    A negative real one of the discrete step is an oscillation of period 2, that of the edge of stability.

    Args:
        optimizer, curvature, model: as in `linear_stability`.

    Returns:
        The eigenvalue, per iteration; of a conjugate pair the one with positive imaginary part. Complex, in the
        broadcast shape.

    Raises:
        TypeError, ValueError: as in `linear_stability`.

    Source: derivation of this project.

    >>> import adamflow as af
    >>> print(dominant_eigenvalue(af.adam(0.01, gamma=0.9), 3800.0).round(6))
    (-1+0j)
    """
    return jnp.asarray(_dominant(optimizer, curvature, model))


def _dominant(optimizer: Optimizer, curvature: Numbers, model: Model) -> Any:
    """The dominant eigenvalues, as an array of NumPy if nothing had to be compiled."""
    checked = _checked(optimizer, curvature, model)
    measure = "modulus" if model == "discrete" else "real part"
    systems = systems_by_numpy(*checked)
    return _batched(*checked, measure) if systems is None else dominant_by_numpy(systems, measure)


def linear_system(
    optimizer: Optimizer, curvature: Numbers, *, model: Model = "discrete"
) -> Float[Array, "... rows rows"]:
    """The matrix of which `linear_stability` takes the dominant eigenvalue.

    Args:
        optimizer, curvature, model: as in `linear_stability`.

    Returns:
        For each set of numbers the Jacobian of the step, or of the vector field per iteration, in θ, the velocity (in
        a flow of order 2) and the filters that are not held, in the order in which the state holds them. The last two
        axes are those of the matrix.

    Raises:
        TypeError, ValueError: as in `linear_stability`.

    Source: derivation of this project.

    >>> import adamflow as af
    >>> print(linear_system(af.adam(0.1, gamma=0.5), 3.0).round(6))
    [[ 0.85 -0.05]
     [ 1.5   0.5 ]]
    """
    checked = _checked(optimizer, curvature, model)
    systems = systems_by_numpy(*checked)
    return _batched(*checked, None) if systems is None else jnp.asarray(systems)


def _checked(optimizer: Optimizer, curvature: Numbers, model: Model) -> tuple[Optimizer, Array, Model]:
    """The arguments as arrays; the model with a record of its own, of which only the structure counts."""
    check_optimizer("linear stability", optimizer)
    check_constant("linear stability", optimizer, ONE_ITERATION, takes_clipping=True)
    check_range("curvature", curvature, -math.inf, math.inf, low_open=True, high_open=True, hint="pass s per direction")
    dtype = optimizer.dtype
    # A Python number would become an array of jax by a compiled program.
    curvature = curvature if isinstance(curvature, jax.Array) else np.asarray(curvature, dtype)
    return optimizer, jnp.asarray(curvature, dtype), check_model(optimizer, model)


def systems_by_numpy(optimizer: Optimizer, curvature: Any, model: Model) -> np.ndarray | None:
    """The systems of a batch by NumPy, shape (..., rows, rows).

    `None` where a compiled program has to do it: for a large batch, for numbers that jax is tracing, and for a step or
    flow with operations that `evaluate` does not know.

    Args:
        optimizer, curvature: as in `linear_system`.
        model: as `check_model` returns it.
    """
    if not is_concrete(optimizer, curvature, model):
        return None
    values = [np.asarray(value) for value in (*jax.tree.leaves(optimizer), curvature)]
    shape = np.broadcast_shapes(*(value.shape for value in values))
    count = math.prod(shape)
    if not 0 < count <= _FEW:
        return None
    # All small batches share the program by which the form was checked.
    padding = max(_CHECKED - count, 0)
    columns = [np.pad(np.broadcast_to(value, shape).ravel(), (0, padding), mode="edge") for value in values]
    try:
        matrices, _ = evaluate(_program(_form_of(optimizer, model), count + padding), *columns)
    except NotEvaluableError:
        return None
    return matrices[:count].reshape(*shape, *matrices.shape[1:])


class _Form(NamedTuple):
    """All that the traced program of a linear system depends on, but for the size of the batch."""

    structure: Any
    #: Of each number of the optimizer: its type, and whether jax lets other types win over it.
    types: tuple[tuple[Any, bool], ...]
    model: Model
    double_precision: bool


def _form_of(optimizer: Optimizer, model: Model) -> _Form:
    leaves, structure = jax.tree.flatten(optimizer)
    types = tuple((jnp.result_type(leaf), bool(getattr(leaf, "weak_type", False))) for leaf in leaves)
    return _Form(structure, types, model, bool(jax.config.read("jax_enable_x64")))


def _program(form: _Form, count: int) -> Any:
    """The program from a batch of numbers and curvatures to matrices and responses, traced once per form and size."""
    return _kept_program(form, count) if _has_hash(form) else _traced(form, count)


def _has_hash(form: _Form) -> bool:
    if not isinstance(form.model, Hashable):
        return False
    try:
        hash(form)
    except TypeError:
        # A field of a class of the user's own.
        return False
    return True


#: The coordinates at which the response is compared with its linear part.
_SMALL = 1e-3


def _traced(form: _Form, count: int) -> Any:
    leaves = [jax.ShapeDtypeStruct((count,), dtype, weak_type=weak) for dtype, weak in form.types]
    curvatures = jax.ShapeDtypeStruct((count,), _dtype_of(form))
    return jax.make_jaxpr(_systems_of(form.model))(jax.tree.unflatten(form.structure, leaves), curvatures)


def _dtype_of(form: _Form) -> Any:
    """The type of the learning rate, which is the first number of an optimizer, and of curvatures."""
    return form.types[0][0]


def _systems_of(model: Model) -> Any:
    """The function from a batch of optimizers and curvatures to their matrices and responses to `_SMALL`."""

    def system(optimizer: Optimizer, curvature: Array) -> tuple[Array, Array]:
        respond, origin = at_rest(without_bias(optimizer), curvature, _build(model))
        return jacobian(respond, origin), respond(origin + _SMALL)

    return jax.vmap(system)


_kept_program = functools.lru_cache(maxsize=_KEPT_PROGRAMS)(_traced)


@eqx.filter_jit
def _batched(optimizer: Optimizer, curvature: Array, model: Model, measure: str | None) -> Array:
    """The systems of a batch, or their dominant eigenvalues by a measure."""
    shape = jnp.broadcast_shapes(curvature.shape, *map(jnp.shape, jax.tree.leaves(optimizer)))
    optimizer, curvature = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, shape).reshape(-1), (without_bias(optimizer), curvature)
    )
    matrices = jax.vmap(lambda numbers, s: jacobian(*at_rest(numbers, s, _build(model))))(optimizer, curvature)
    results = matrices if measure is None else dominant_of(matrices, measure)
    return results.reshape(*shape, *results.shape[1:])


def _build(model: Model) -> Build:
    """The system of the record's step, or of a flow with the record in it."""
    if model == "discrete":
        return step_system

    def build(optimizer: Optimizer, loss: Loss) -> System:
        flow = dataclasses.replace(model, optimizer=optimizer)
        return System(
            flow.initial_state(loss, zero_of(optimizer)),
            lambda state: flow.vector_field(math.inf, state, loss),
            lambda state: state.filters,
            lambda state: getattr(getattr(state, "inner", state), "memory", None),
        )

    return build


class Sample(NamedTuple):
    """What the systems of a form have in common, measured at numbers of one's own.

    Attributes:
        rows: of the system.
        bend: how far the response to small coordinates is from its linear part, in units of them.
        is_affine: whether the characteristic polynomial, of up to three rows, is linear in the curvature.
    """

    rows: int
    bend: float
    is_affine: bool


def sample_of(optimizer: Optimizer, model: Model) -> Sample:
    """Measure the systems of an optimizer and model at numbers of one's own, so that theirs may be traced.

    Args:
        optimizer: of which only the structure counts.
        model: as `check_model` returns it.
    """
    form = _form_of(optimizer, model)
    return _kept_sample(form) if _has_hash(form) else _measured(form)


def _measured(form: _Form) -> Sample:
    halves = [np.full(_CHECKED, 0.5, dtype) for dtype, _ in form.types]
    curvatures = np.arange(_CHECKED, dtype=_dtype_of(form))
    try:
        systems, responses = evaluate(_program(form, _CHECKED), *halves, curvatures)
    except NotEvaluableError:
        with jax.ensure_compile_time_eval():
            optimizer = jax.tree.unflatten(form.structure, map(jnp.asarray, halves))
            compiled = jax.jit(_systems_of(form.model))
            systems, responses = map(np.asarray, compiled(optimizer, jnp.asarray(curvatures)))
    rows = systems.shape[-1]
    bend = np.max(np.abs(responses[1] - _SMALL * systems[1].sum(axis=-1))) / _SMALL
    if rows > 3:
        return Sample(rows, float(bend), False)
    coefficients: list[Any] = list(characteristic_polynomial(systems))
    curved = [np.abs(c[0] - 2 * c[1] + c[2]) for c in coefficients]
    return Sample(rows, float(bend), bool(max(curved) < 1e-4))


_kept_sample = functools.lru_cache(maxsize=_KEPT_PROGRAMS)(_measured)


def check_model(optimizer: Optimizer, model: Model) -> Model:
    """The model, a flow with an optimizer whose numbers are constants, so that those of the argument may be traced.

    Raises:
        TypeError: if the direction is not linear in the gradients, or the state of the flow has no `filters`.
        ValueError: if it is no model.
    """
    if model != "discrete" and not isinstance(model, AbstractFlow):
        raise ValueError(f"model must be 'discrete' or a flow such as af.GouldTanakaFlow(optimizer), got {model!r}")
    if model != "discrete":
        with jax.ensure_compile_time_eval():
            halves = jax.tree.map(lambda leaf: jnp.asarray(np.full((), 0.5, jnp.result_type(leaf))), optimizer)
            epsilon = np.zeros((), jnp.result_type(optimizer.epsilon))
            halves = dataclasses.replace(halves, bias_correction=False, epsilon=epsilon)
            model = dataclasses.replace(model, optimizer=halves)
        state = jax.eval_shape(lambda: model.initial_state(jnp.square, jnp.zeros(())))
        if not hasattr(state, "filters"):
            raise TypeError(
                "linear_stability needs a flow whose state has `filters`, by stage and name, to hold the second "
                f"moments of; that of {type(model).__name__} has none"
            )
    if not sample_of(optimizer, model).bend <= 0.1:
        raise TypeError(
            f"the direction of {optimizer.name!r} is not linear in the gradients while second moments are held, so it "
            "has no linear stability; sign descent, for one, has no step size at which it settles"
        )
    return model
