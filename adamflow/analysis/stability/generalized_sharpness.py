r"""The sharpness of a loss in a norm that is not the Euclidean one: what sign descent and Muon bring to 2/η."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from adamflow.checks import check_choice, check_count, check_params, is_concrete
from adamflow.flows.lanczos import lanczos
from adamflow.losses import admit_loss, as_scalar
from adamflow.optimizers.record import Record
from adamflow.optimizers.steepest import NORMS, steepest_direction
from adamflow.programs import program
from adamflow.types import Loss, Params, Scalar

#: Lanczos iterations for the lowest eigenvalue of the Hessian.
_DEPTH = 16


class GeneralizedSharpness(Record):
    """What `generalized_sharpness` returns: S = max ⟨D, H D⟩ over ‖D‖ ≤ 1, as far as the search found it.

    Attributes:
        value: ⟨D, H D⟩ of the best direction found, a lower bound of S.
        direction: that D, with the structure of the parameters.
        dual_norm: ‖g‖∗ of the gradient: the sum of its entries' sizes, or of its singular values.
        agreeing: the share of starts that end within 1e-3 of `value`. Where it is small take more starts.
    """

    value: Float[Array, "*batch"]
    direction: Params
    dual_norm: Float[Array, "*batch"]
    agreeing: Float[Array, "*batch"]

    @property
    def of_fixed_steps(self) -> Float[Array, "*batch"]:
        """S/‖g‖∗: steps of fixed length η, as sign descent has them, are steepest descent at the rate η/‖g‖∗."""
        return self.value / self.dual_norm

    def __str__(self) -> str:
        if not is_concrete(self.value) or self.value.ndim:
            return repr(self)
        return (
            f"generalized sharpness at least {float(self.value):.6g}, found from {float(self.agreeing):.0%} of the "
            f"starts; dual norm of the gradient {float(self.dual_norm):.4g}"
        )


def generalized_sharpness(
    loss: Loss,
    params: Params,
    norm: str,
    *,
    starts: int = 16,
    iterations: int = 30,
    seed: Scalar = 0,
    has_aux: bool = False,
) -> GeneralizedSharpness:
    r"""The sharpness $S = \max_{\|D\| \le 1} \langle D, H D \rangle$ of a loss in a norm, with $H$ its Hessian.

    Steepest descent in that norm, $\theta - \eta \|g\|_* D_g$ (`af.steepest_descent`), lowers a convex quadratic at
    every step if $\eta S < 2$, and beyond that has starts from which the loss grows: along a direction that attains S
    the step multiplies by $1 - \eta S$. So 2/η is its edge. Sign descent and Muon without momentum make steps of fixed
    length, that is, at the rate $\eta/\|g\|_*$: for them η times `of_fixed_steps` is to be compared with 2.

    In the norm of the largest entry the problem is that of the largest cut of a graph, which is hard, so the result
    is a lower bound: the best place of several ascents $D \leftarrow \mathrm{argmax}\,\langle (H + c) D, D' \rangle$
    over ‖D'‖ ≤ 1. With c = −λ_min they never fall; they begin with less, and so leave the nearest maximum behind.
    They go through extreme points of the ball, where S is attained if H has no negative eigenvalue; otherwise points
    inside may be better, and are not searched.

    Args:
        loss: `loss(params)`, a real scalar with second derivatives.
        params: any pytree of floating-point arrays, where the Hessian is taken.
        norm: "max", the largest entry; its dual is the sum of entries. "spectral", the largest singular value of
            matrices (leaves with two axes) and length of other leaves; its dual is the nuclear norm.
        starts: ascents, at least 2: one from the gradient, the others from random directions.
        iterations: steps of each, a Hessian-vector product each.
        seed: a whole number that determines the random directions.
        has_aux: whether the loss returns (value, aux); aux is left out.

    Raises:
        ValueError: an argument is out of its range.

    Source: R. Islamov et al., arXiv:2603.05002 (2026), for the definition and the ascent; the shift c and the
    multiplier are this project's.

    Example:
        >>> import adamflow as af, jax.numpy as jnp
        >>> loss = lambda x: (x[0] ** 2 + x[1] ** 2 - x[0] * x[1]) / 2
        >>> print(af.analysis.generalized_sharpness(loss, jnp.array([1.0, 0.5]), "max"))
        generalized sharpness at least 3, found from ... of the starts; dual norm of the gradient 0.75
    """
    loss, params = admit_loss(loss, has_aux), check_params(params)
    check_choice("norm", norm, NORMS)
    sizes = check_count("starts", starts, 2), check_count("iterations", iterations)
    return _generalized_sharpness(loss, params, norm, sizes, jnp.asarray(seed))


@program
def _generalized_sharpness(loss: Loss, params: Params, norm: str, sizes: Any, seed: Array) -> GeneralizedSharpness:
    starts, iterations = sizes
    flat, unravel = ravel_pytree(params)
    gradient, hessian = jax.linearize(jax.grad(as_scalar(loss)), params)

    def product(vector: Array) -> Array:
        return ravel_pytree(hessian(unravel(vector)))[0]

    space = lanczos(product, jnp.ones_like(flat), min(_DEPTH, flat.size), seed)
    lowest = jnp.minimum(space.unit * space.eigh(-1.0)[0][0], 0.0)
    spread = space.unit * space.eigh()[0][-1] - lowest

    def ascend(start_and_share: tuple[Array, Array]) -> tuple[Array, Array]:
        start, share = start_and_share

        def step(carry: Any, fraction: Array) -> tuple[Any, None]:
            place, image, best, value = carry
            shift = -lowest - share * spread * (1 - fraction)
            place = ravel_pytree(steepest_direction(unravel(image + shift * place), norm)[0])[0]
            image = product(place)
            found = jnp.vdot(place, image)
            return (place, image, jnp.where(found > value, place, best), jnp.maximum(found, value)), None

        fractions = jnp.arange(iterations) / iterations
        place = ravel_pytree(steepest_direction(unravel(start), norm)[0])[0]
        image = product(place)
        return jax.lax.scan(step, (place, image, place, jnp.vdot(place, image)), fractions)[0][2:]

    own = ravel_pytree(gradient)[0]
    others = jax.random.normal(jax.random.key(seed), (starts - 1, flat.size), flat.dtype)
    places, values = jax.lax.map(ascend, (jnp.concatenate([own[None], others]), jnp.linspace(0.0, 1.0, starts)))
    best = jnp.argmax(values)
    agreeing = jnp.mean(values >= values[best] - 1e-3 * jnp.abs(values[best]))
    dual = steepest_direction(gradient, norm)[1]
    return GeneralizedSharpness(values[best], unravel(places[best]), dual, agreeing)
