"""The linear stability of an optimizer's step, or of a flow, while its preconditioner changes slowly.

One reading of the record gives all: the step (or the vector field) is differentiated at rest, θ = 0 and m = 0, with
every second moment held at 1. The results of this file are derivations of this project.
"""

import dataclasses
import math
from typing import Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Complex, Float

from adamflow.analysis.stability.eigenvalues import dominant_of
from adamflow.checks import check_range
from adamflow.flows import AbstractFlow
from adamflow.optimizers import Optimizer, check_optimizer
from adamflow.optimizers.linearization import Build, System, at_rest, jacobian, step_system, without_bias, zero_of
from adamflow.types import Loss, Numbers

#: What is linearized: the discrete step, or a flow, of which only the settings count.
Model: TypeAlias = AbstractFlow | Literal["discrete"]


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
    values = dominant_eigenvalue(optimizer, curvature, model=model)
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
    return _batched(*_checked(optimizer, curvature, model), "modulus" if model == "discrete" else "real part")


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
    return _batched(*_checked(optimizer, curvature, model), None)


def _checked(optimizer: Optimizer, curvature: Numbers, model: Model) -> tuple[Optimizer, Array, Model]:
    """The arguments as arrays; the model with a record of its own, of which only the structure counts."""
    check_optimizer("linear stability", optimizer)
    check_range("curvature", curvature, -math.inf, math.inf, low_open=True, high_open=True, hint="pass s per direction")
    if model != "discrete" and not isinstance(model, AbstractFlow):
        raise ValueError(f"model must be 'discrete' or a flow such as af.GouldTanakaFlow(optimizer), got {model!r}")
    dtype = jnp.result_type(optimizer.learning_rate)
    return optimizer, jnp.asarray(curvature, dtype), _check_linear(optimizer, model)


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
        )

    return build


def _check_linear(optimizer: Optimizer, model: Model) -> Model:
    """Raise unless the response is linear; return the model with the record of numbers at which that was tried.

    These are numbers of its own, so that a record can be checked while its numbers are traced.
    """
    with jax.ensure_compile_time_eval():
        sample = without_bias(jax.tree.map(lambda leaf: jnp.full((), 0.5, jnp.result_type(leaf)), optimizer))
        if model != "discrete":
            model = dataclasses.replace(model, optimizer=sample)
            if not hasattr(model.initial_state(jnp.square, jnp.zeros(())), "filters"):
                raise TypeError(
                    "linear_stability needs a flow whose state has `filters`, by stage and name, to hold the second "
                    f"moments of; that of {type(model).__name__} has none"
                )
        bent = float(_bend(sample, model))
    if not bent <= 0.1:
        raise TypeError(
            f"the direction of {optimizer.name!r} is not linear in the gradients while second moments are held, so it "
            "has no linear stability; sign descent, for one, has no step size at which it settles"
        )
    return model


@eqx.filter_jit
def _bend(optimizer: Optimizer, model: Model) -> Array:
    """How far the response to small equal coordinates is from its linear part, in units of them."""
    respond, origin = at_rest(optimizer, jnp.ones_like(zero_of(optimizer)), _build(model))
    small = origin + 1e-3
    return jnp.max(jnp.abs(respond(small) - jacobian(respond, origin) @ small)) / small[0]
