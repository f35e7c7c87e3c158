r"""The preconditioned sharpness of a loss, and the value of it at which Adam's discrete step turns unstable.

[GT] = R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and Normalization, arXiv:2411.05746,
writes (β, γ) for the decays of the second and the first moment, where PyTorch and optax write (b2, b1). The results of
this file are derivations of this project.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.typing import DTypeLike
from jaxtyping import Bool, Float

from adamflow.analysis.array_namespace import with_namespace
from adamflow.checks import check_count, check_params, check_precision, check_range, is_concrete
from adamflow.flows import Snapshot
from adamflow.flows.lanczos import lanczos
from adamflow.flows.norms import norm
from adamflow.losses import admit_loss
from adamflow.optimizers import Optimizer, check_optimizer
from adamflow.optimizers.hyperparameters import beside
from adamflow.optimizers.record import Record
from adamflow.programs import program
from adamflow.types import Leaf, Loss, Numbers, Params, Scalar

#: An eigenvalue has converged if its residual is at most this share of it; its error is about the square of that.
TOLERANCE = 1e-3

Flat: TypeAlias = Float[Array, "size"]


class Sharpness(Record):
    """What `preconditioned_sharpness` returns: an estimate of an eigenvalue, and how far it can be trusted."""

    #: θ = ⟨y, A y⟩, the estimate of the largest eigenvalue of A = P^{−1/2} H P^{−1/2}; above it only by rounding.
    value: Float[Array, "*batch"]
    #: ‖A y − θ y‖: some eigenvalue of A lies within this distance of `value`. Not small against it: not converged.
    residual: Float[Array, "*batch"]
    #: The unit vector y, with the structure of the parameters. The direction in parameter space is P^{−1/2} y.
    vector: Params
    #: The smallest eigenvalue that the same iterations saw, an upper bound of A's smallest: negative says that the
    #: Hessian is indefinite (or negative definite), positive says nothing for sure.
    lowest_eigenvalue_bound: Float[Array, "*batch"]

    @property
    def converged(self) -> Bool[Array, "*batch"]:
        """Whether the residual is at most `TOLERANCE` = 1e-3 of the value."""
        return _converged(self.value, self.residual)

    def __str__(self) -> str:
        if not is_concrete(self.value) or self.value.ndim:
            return repr(self)
        if not jnp.isfinite(self.value):
            return f"largest eigenvalue {float(self.value)}: the Hessian or the preconditioner is not finite"
        word = "converged" if self.converged else "not converged, so take more iterations"
        rounding = 10 * jnp.finfo(self.value.dtype).eps * jnp.abs(self.value)
        sign = (
            f"; indefinite, lowest {float(self.lowest_eigenvalue_bound):.4g}"
            if self.lowest_eigenvalue_bound < -rounding < 0 < self.value
            else ""
        )
        return f"largest eigenvalue {float(self.value):.6g}, residual {float(self.residual):.1e}: {word}{sign}"


class ObservedSharpness(Record):
    """What `sharpness_observer` keeps of a `Sharpness` at each saved iteration: its numbers without the vector."""

    #: The estimate of the largest eigenvalue of P^{−1/2} H P^{−1/2}.
    value: Float[Array, "*saved"]
    #: Some eigenvalue lies within this distance of `value`. Not small against it: not converged.
    residual: Float[Array, "*saved"]
    #: An upper bound of the smallest eigenvalue: negative where the Hessian is indefinite.
    lowest_eigenvalue_bound: Float[Array, "*saved"]

    @property
    def converged(self) -> Bool[Array, "*saved"]:
        """Whether the residual is at most `TOLERANCE` = 1e-3 of the value."""
        return _converged(self.value, self.residual)


def adaptive_edge(gamma: Numbers) -> Numbers:
    r"""The critical learning rate times preconditioned sharpness: the adaptive edge of stability.

    $$\eta\,s < \frac{2 + 2\gamma}{1 - \gamma}$$

    is where the discrete step of Adam without weight decay is stable along an eigenvector of $P^{-1/2} H P^{-1/2}$ with
    eigenvalue $s > 0$, while the preconditioner $P = \mathrm{diag}(\sqrt{\hat v} + \varepsilon)$ changes slowly. At the
    edge an eigenvalue of the step passes −1. Derivation of this project.

    Args:
        gamma: decay γ of the first moment, 0 ≤ γ < 1 (b1 in PyTorch and optax).

    Returns:
        The critical η s (no unit), in the shape of `gamma`: float64 by NumPy, or a jax array of the dtype of `gamma` if
        that is a jax array.

    Raises:
        ValueError: γ is outside its interval.

    >>> print(round(float(adaptive_edge(0.9)), 9), adaptive_edge(0.0))
    38.0 2.0
    """
    check_range("gamma", gamma, 0.0, 1.0, high_open=True, hint="gamma decays the first moment: b1 in optax")
    xp, gamma = with_namespace(gamma)
    return xp.divide(2 + 2 * gamma, 1 - gamma)


def preconditioned_sharpness(
    loss: Loss,
    params: Params,
    preconditioner: Params,
    *,
    iterations: int = 32,
    seed: Scalar = 0,
    has_aux: bool = False,
) -> Sharpness:
    r"""The largest eigenvalue of $P^{-1/2} H P^{-1/2}$, with $H$ the Hessian of the loss and $P$ diagonal.

    With $P = \sqrt{\hat v} + \varepsilon$, times η, it is what `adaptive_edge` bounds; with P = 1 it is the sharpness
    of gradient descent. The Lanczos method, with full orthogonalization from a random start, takes `iterations` + 2
    Hessian-vector products (a jvp of the gradient) and keeps that many vectors of the size of the parameters. The
    result is the algebraically largest eigenvalue: where the Hessian is indefinite, it may be smaller in size than the
    most negative one, and where the Hessian is negative definite, it is negative. `lowest` tells such cases: it is the
    smallest eigenvalue that the iterations saw, above or at the true one.

    It works under jit and vmap and in `jax.lax.scan` and `cond`. The derivative of `value` counts the vector as
    constant, which is exact where the residual is 0; `residual`, `vector` and `lowest` have no useful derivative.

    Args:
        loss: `loss(params)`, a real scalar with second derivatives. The computation is compiled once for each function,
            so in a loop pass the same one; bind a batch that varies with `equinox.Partial(loss, batch=batch)`.
        params: any pytree of floating-point arrays, where the Hessian is taken.
        preconditioner: P, a pytree like `params`, entries ≥ 0. A coordinate with P = 0 has had no gradient so far and
            does not move: it is left out, that is, the result is that of the remaining coordinates; 0 if none remains.
        iterations: the most Lanczos iterations, at least 1. The number of parameters is enough in exact arithmetic, and
            no more are made. The iteration ends before that where the vectors span an invariant space.
        seed: a whole number that determines the start. Nothing else is random.
        has_aux: whether the loss returns (value, aux); aux is left out.

    Returns:
        A `Sharpness`; `print` says it in words. If the Hessian is not finite, its numbers are nan. A small residual, at
        most 1e-3 of the value where it has `converged`, says that `value` is an eigenvalue. It is then the largest one
        unless the start happens to be nearly orthogonal to that eigenvector, or eigenvalues are so close that
        `iterations` do not tell them apart.

    Raises:
        ValueError: `preconditioner` has another structure or other shapes than `params`, or a negative entry or nan;
            `params` has no entry; `iterations` is no whole number of at least 1.

    Source: derivation of this project for the role of the eigenvalue. The decomposition is that of the package matfree
    (N. Krämer et al., Gradients of functions of large matrices, arXiv:2405.17277).

    >>> curvature, preconditioner = jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 0.5, 4.0])
    >>> sharpness = preconditioned_sharpness(lambda x: (curvature * x**2).sum() / 2, jnp.ones(3), preconditioner)
    >>> print(sharpness)
    largest eigenvalue 4, residual ...: converged
    """
    loss, params = admit_loss(loss, has_aux), check_params(params)
    check_precision("preconditioner", preconditioner)
    _check_preconditioner(params, preconditioner)
    iterations = check_count("iterations", iterations)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return _sharpness(loss, params, preconditioner, min(iterations, size), jnp.asarray(seed))


class SharpnessObserver(eqx.Module):
    """What `sharpness_observer` returns: a function from a `Snapshot` to a `ObservedSharpness`."""

    optimizer: Optimizer
    loss: Loss
    seed: Array
    iterations: int = eqx.field(static=True)

    def __call__(self, snapshot: Snapshot) -> ObservedSharpness:
        preconditioner = self.optimizer.preconditioner(snapshot.filters, snapshot.iteration)
        preconditioner = self._relative_to_rates(preconditioner, snapshot)
        sharpness = preconditioned_sharpness(
            self.loss, snapshot.params, preconditioner, iterations=self.iterations, seed=self.seed
        )
        return ObservedSharpness(sharpness.value, sharpness.residual, sharpness.lowest_eigenvalue_bound)

    def _relative_to_rates(self, preconditioner: Params, snapshot: Snapshot) -> Params:
        """P, where rates differ between leaves divided by the rate of the leaf over the largest."""
        optimizer = self.optimizer.at(snapshot.iteration)
        uniform = optimizer.uniform(snapshot.params)
        if uniform is optimizer:
            return preconditioner

        def divided(leaf: Leaf, rate: Any) -> Leaf:
            share = rate / jnp.where(uniform.learning_rate > 0, uniform.learning_rate, 1.0)
            return leaf / beside(share, leaf)

        return jax.tree.map(divided, preconditioner, optimizer.learning_rates(snapshot.params))


def sharpness_observer(
    optimizer: Optimizer, loss: Loss, *, iterations: int = 32, seed: Scalar = 0, has_aux: bool = False
) -> SharpnessObserver:
    r"""The `preconditioned_sharpness` along a run, as its `observe=`, with the record's own $P$.

    $P = \sqrt{\hat v} + \varepsilon$, or $\sqrt{\hat v + \varepsilon}$, is read from the filters at each iteration. η
    times the value meets `adaptive_edge` where Adam's discrete step turns unstable; where leaves have rates of their
    own η is the largest, and P is divided by the rate of the leaf over that. Each saved iteration takes `iterations` +
    2 Hessian-vector products, so give the run a `save_at`.

    Args:
        optimizer: the record, with one stage and a filter "second_moment".
        loss: `loss(params)`. In a run with batches it is that of the full data, or of a batch that you bind.
        iterations: as in `preconditioned_sharpness`.
        seed: as in `preconditioned_sharpness`; the same start is used at all iterations.
        has_aux: whether the loss returns (value, aux); aux is left out.

    Returns:
        a function for `observe=` of `af.iterate` and `af.solve`. Those made with the same settings share compiled
        programs. The run's `observed` is a `ObservedSharpness` with a leading axis of time; look at its `converged`
        too.

    Raises:
        ValueError: `iterations` is no whole number of at least 1; once it is called, if the record has no single
            preconditioner.

    Source: derivation of this project.

    >>> import adamflow as af
    >>> problem, optimizer = af.problems.quadratic([1.0, 3.0]), af.adam(0.01)
    >>> observe = sharpness_observer(optimizer, problem.loss)
    >>> run = af.iterate(optimizer, problem.loss, problem.params, 20, save_at=[0, 10, 20], observe=observe)
    >>> print(run.observed.value.round(3))
    [1.    1.052 1.108]
    """
    check_optimizer("sharpness_observer", optimizer)
    loss = admit_loss(loss, has_aux)
    return SharpnessObserver(optimizer, loss, jnp.asarray(seed), check_count("iterations", iterations))


@program
def _sharpness(loss: Loss, params: Params, preconditioner: Params, depth: int, seed: Scalar) -> Sharpness:
    flat, unravel = ravel_pytree(params)
    weights, unit = _weights(preconditioner, flat.dtype)
    _, hessian = jax.linearize(jax.grad(loss), params)

    def operator(vector):
        return weights * ravel_pytree(hessian(unravel(weights * vector)))[0]

    top, lowest = jax.lax.stop_gradient(_extremes(operator, weights, depth, seed))
    image = operator(top)
    value = jnp.vdot(top, image)
    residual = norm(image - value * top)
    lowest = jnp.where(jnp.isfinite(value), jnp.minimum(lowest, value), jnp.nan)
    return Sharpness(value / unit, residual / unit, unravel(top), jax.lax.stop_gradient(lowest / unit))


def _weights(preconditioner: Params, dtype: DTypeLike) -> tuple[Flat, Float[Array, ""]]:
    """(p/P)^½ with the smallest P > 0 as the unit p, without which the square of 1/P overflows; 0 where P is."""
    diagonal = ravel_pytree(preconditioner)[0].astype(dtype)
    moves = diagonal != 0
    unit = jnp.min(diagonal, where=moves, initial=jnp.inf)
    unit = jax.lax.stop_gradient(jnp.where(jnp.isfinite(unit), unit, 1.0))
    return jnp.where(moves, jnp.sqrt(unit / jnp.where(moves, diagonal, 1.0)), 0.0), unit


def _converged(value: Float[Array, "*batch"], residual: Float[Array, "*batch"]) -> Bool[Array, "*batch"]:
    return residual <= TOLERANCE * jnp.abs(value)


def _extremes(
    operator: Callable[[Flat], Flat], weights: Flat, depth: int, seed: Scalar
) -> tuple[Flat, Float[Array, ""]]:
    """The unit vector of the largest Rayleigh quotient in a Krylov space, and the smallest; 0 if all weights are."""
    space = lanczos(operator, weights, depth, seed)
    moves = weights != 0
    top = space.eigh()[1][:, -1] @ space.basis
    lowest = space.unit * space.eigh(-1.0)[0][0]
    return moves * top / norm(top), jnp.where(moves.any(), lowest, 0.0)


def _check_preconditioner(params: Params, preconditioner: Params) -> None:
    hint = "pass sqrt(v_hat) + epsilon, a pytree like params: optimizer.preconditioner(filters, iteration)"
    shapes, expected = (jax.tree.map(jnp.shape, tree) for tree in (preconditioner, params))
    if jax.tree.structure(preconditioner) != jax.tree.structure(params) or shapes != expected:
        raise ValueError(f"preconditioner must have the shapes of params, {expected}, got {shapes}; {hint}")
    for leaf in jax.tree.leaves(preconditioner):
        check_range("preconditioner", leaf, 0.0, hint=hint)
