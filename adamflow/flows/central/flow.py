"""The central flow of gradient descent and RMSprop at the edge of stability: the baseline beside `TwoBranchFlow`."""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from adamflow.checks import check_range, describe
from adamflow.flows import averages
from adamflow.flows.averages import AbstractAveragesFlow, FlowState
from adamflow.flows.central.complementarity import complementary
from adamflow.flows.flow import Snapshot, StartLike
from adamflow.flows.lanczos import lanczos
from adamflow.flows.norms import unit_of
from adamflow.optimizers import GradientStage, Optimizer, RMSpropStage, check_constant, check_standard
from adamflow.optimizers.hyperparameters import count_called, number_called
from adamflow.types import Filters, Leaf, Loss, Params, Scalar

#: Up to this many parameters the Hessian is dense.
_DENSE_LIMIT = 64


class CentralSnapshot(Snapshot):
    """What `observe=` functions get of a central flow. What a function does not use is not computed.

    Attributes:
        sharpness: the leading eigenvalues of P^{−1/2} H P^{−1/2}, the largest first, shape (modes,); times η they are
            at most 2 − ηλ, the edge.
        amplitude: √tr Σ, beside the amplitude of the iterates.
        mean_loss: L + ½⟨H, Σ⟩, beside the mean loss of the iterates.
    """

    sharpness: Leaf
    amplitude: Leaf
    mean_loss: Leaf


class _Rates(NamedTuple):
    """What the covariance does not move, and what the entries X_p of Σ = Uᵀ X U on and above the diagonal do."""

    params: jax.Array
    second: jax.Array | None


class CentralFlow(AbstractAveragesFlow):
    r"""The central flow of Cohen et al. for gradient descent and RMSprop: the mean path at the edge of stability.

        θ' = −η (λθ + P⁻¹ (∇L + ½ ∇⟨Σ, H⟩)),     ν' = ((1−β)/β) (∇L² + (2P/η)² diag Σ − ν),
        Σ ⪰ 0,   2P/η − H ⪰ 0,   ⟨Σ, 2P/η − H⟩ = 0,

    per iteration, with P = 1 for gradient descent and P = √ν̂ + ε for RMSprop (with bias correction as the record
    says; 2 − ηλ stands for 2 with weight decay). Σ is the covariance of the oscillation, which has no time of its own
    here: below the edge it is 0, and this is the `GouldTanakaFlow` of order 1. Σ lives in the span of the leading
    eigenvectors, H u = s P u, and of

        M = A + h (A₀' + A'[Σ]),    A = 2P/η − H,     Σ ⪰ 0,   M ⪰ 0,   ⟨Σ, M⟩ = 0

    in that span: what the constraint asks for within the horizon h, a convex problem for a matrix of `modes` rows. So
    the field is continuous, A goes to 0 at the rate 1/h, and Euler's method with the step h is the authors'
    discretization. An evaluation takes `iterations` + 2 Hessian-vector products (up to 64 parameters a dense Hessian)
    and modes (modes + 1)/2 third derivatives.

    *Where it fails:* an edge that no Σ holds, such as that of a quadratic, whose iterates diverge: the run ends as
    "not_finite". More than `modes` modes at the edge: `CentralSnapshot.sharpness` then rises above it. Oscillations so
    wide that the Hessian's change along them is not linear: cycles such as that of x² − x⁴ are none of its solutions.

    Derivatives of the flow (implicit solvers, `jax.grad`) count eigenvectors as constant, so take explicit solvers:
    `solver=diffrax.Euler(), step_size=0.25`.

    Args:
        optimizer: `sgd` without momentum, or `rmsprop`.
        modes: how many eigenvectors span Σ, at least 1; no more than there are parameters.
        iterations: of Lanczos, at least `modes` + 1.
        horizon: h in iterations, above 0.

    Raises:
        TypeError: if the record is another one.
        ValueError: if a number is out of its range.

    Source: J. Cohen, A. Damian, A. Talwalkar, Z. Kolter, J. D. Lee, Understanding optimization in deep learning with
    central flows, arXiv:2410.24206. The horizon as part of the field, and weight decay, are this project's.

    Example:
        >>> import adamflow as af, diffrax, jax.numpy as jnp
        >>> loss = lambda x: (20 + x[0]) * x[1] ** 2 / 2 - x[0]  # sharper and sharper, up to the edge at x₀ = 0
        >>> run = af.solve(
        ...     af.CentralFlow(af.sgd(0.1), modes=1), loss, jnp.array([-1.0, 0.0]), 20,
        ...     solver=diffrax.Euler(), step_size=0.25, observe=lambda s: (s.sharpness, s.amplitude),
        ... )
        >>> print(*(float(row[-1].squeeze().round(3)) for row in run.observed))
        20.0 1.414
    """

    follows_mean: ClassVar[bool] = True

    optimizer: Optimizer
    modes: int = eqx.field(static=True, converter=count_called("modes"), default=2)
    iterations: int = eqx.field(static=True, converter=count_called("iterations"), default=32)
    horizon: jax.Array = eqx.field(converter=number_called("horizon"), default=0.25)

    def __check_init__(self):
        check_standard("CentralFlow", self.optimizer, "take af.TwoBranchFlow, which needs the discrete step alone")
        check_constant("CentralFlow", self.optimizer, "take af.TwoBranchFlow, which needs the discrete step alone")
        stages = self.optimizer.stages
        if len(stages) != 1 or type(stages[0]) not in (GradientStage, RMSpropStage):
            raise TypeError(
                f"CentralFlow has equations for af.sgd without momentum and af.rmsprop, not for "
                f"{self.optimizer.name!r}; take af.TwoBranchFlow, which exists for every record"
            )
        if self.iterations <= self.modes:
            raise ValueError(
                f"iterations must be more than modes, got iterations = {self.iterations} and modes = "
                f"{describe(self.modes)}: as many eigenvectors are taken from as many Lanczos vectors"
            )
        check_range("horizon", self.horizon, 0, float("inf"), low_open=True, high_open=True, hint="it is in iterations")
        averages.check_averages(self.optimizer, "CentralFlow")
        averages.check_no_l2(self.optimizer, "CentralFlow")

    @property
    def name(self) -> str:
        return "central flow"

    @property
    def gradients_per_evaluation(self) -> int:
        return 1 + 2 * (self.iterations + 2) + 2 * self.modes * (self.modes + 1)

    def initial_state(self, loss: Loss, params: Params, start: StartLike | None = None) -> FlowState:
        return averages.initial_state(self.optimizer, loss, params, start)[0]

    def vector_field(self, time: Scalar, state: FlowState, loss: Loss) -> FlowState:
        found = _Point.at(self, time, state, loss)
        stable, moved = found.stable(), found.moved()
        change = jax.tree.map(lambda rate, by: rate + jnp.tensordot(found.covariance(), by, 1), stable, moved)
        _, unravel = ravel_pytree(state.params)
        return FlowState(unravel(change.params), None, self._as_filters(state, change.second))

    def snapshot(self, time: Scalar, state: FlowState, loss: Loss) -> CentralSnapshot:
        plain, found = super().snapshot(time, state, loss), _Point.at(self, time, state, loss)
        entries = found.covariance()
        variances = entries[np.flatnonzero(found.diagonal)]
        trace = jnp.sum(entries * found.twice * jnp.sum(found.left * found.right, axis=1))
        return CentralSnapshot(
            time,
            plain.params,
            plain.gradient,
            plain.direction,
            plain.filters,
            plain.loss,
            found.values,
            jnp.sqrt(jnp.maximum(trace, 0.0)),
            plain.loss + jnp.sum(found.values * variances) / 2,
        )

    def preconditioner(self, time: Scalar, state: FlowState, second: jax.Array | None) -> jax.Array:
        """P as a vector."""
        if second is None:
            return jnp.ones_like(ravel_pytree(state.params)[0])
        return ravel_pytree(self.optimizer.preconditioner(self._as_filters(state, second), time))[0]

    def _as_filters(self, state: FlowState, second: jax.Array | None) -> Filters:
        if second is None:
            return ({},)
        return ({"second_moment": ravel_pytree(state.filters[0]["second_moment"])[1](second)},)


class _Point(NamedTuple):
    """A central flow at one time: leading eigenvectors, and the rates of all that moves.

    Entries of symmetric matrices stand in vectors, those on and above the diagonal: X_p = X_ij, with `left` = u_i and
    `right` = u_j.
    """

    flow: CentralFlow
    time: jax.Array
    state: FlowState
    second: jax.Array | None
    flat: jax.Array
    gradient: jax.Array
    diagonal: np.ndarray
    values: jax.Array
    left: jax.Array
    right: jax.Array
    thirds: jax.Array

    @classmethod
    def at(cls, flow: CentralFlow, time: Scalar, state: FlowState, loss: Loss) -> "_Point":
        state = FlowState(state.params, None, averages.clipped(flow.optimizer, state.filters))
        flat, unravel = ravel_pytree(state.params)
        second = ravel_pytree(state.filters)[0] if state.filters[0] else None
        slope = jax.grad(lambda vector: loss(unravel(vector)))
        preconditioner = flow.preconditioner(time, state, second)
        values, vectors = _leading(slope, flat, preconditioner, min(flow.modes, flat.size), flow.iterations)
        rows, columns = np.triu_indices(len(values))
        left, right = vectors[rows], vectors[columns]

        def third(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
            """∇ (uᵢ · H uⱼ), which is the third derivative along both, as it is symmetric."""

            def product(vector: jax.Array) -> jax.Array:
                return jax.jvp(slope, (vector,), (pair[0],))[1]

            return jax.jvp(product, (flat,), (pair[1],))[1]

        thirds = jax.lax.map(third, (left, right))
        return cls(
            flow, jnp.asarray(time, flat.dtype), state, second, flat, slope(flat), rows == columns, values, left, right,
            thirds,
        )  # fmt: skip

    @property
    def twice(self) -> jax.Array:
        """2 for entries off the diagonal, each of which stands in a matrix twice."""
        return jnp.where(self.diagonal, 1.0, 2.0).astype(self.flat.dtype)

    @property
    def edge(self) -> jax.Array:
        """The eigenvalue at the edge, (2 − ηλ)/η."""
        record = self.flow.optimizer
        return (2 - record.learning_rate * record.weight_decay) / record.learning_rate

    @property
    def scale(self) -> jax.Array:
        """P."""
        return self.flow.preconditioner(self.time, self.state, self.second)

    def stable(self) -> _Rates:
        """The rates where Σ = 0."""
        record, scale = self.flow.optimizer, self.scale
        params = -record.learning_rate * (record.weight_decay * self.flat + _quotient(self.gradient, scale))
        return _Rates(params, None if self.second is None else self._rate() * (self.gradient**2 - self.second))

    def moved(self) -> _Rates:
        """For each entry of X, what it adds to the rates."""
        twice, scale = self.twice[:, None], self.scale
        params = -self.flow.optimizer.learning_rate * _quotient(twice * self.thirds / 2, scale)
        if self.second is None:
            return _Rates(params, None)
        return _Rates(params, self._rate() * (self.edge * scale) ** 2 * twice * self.left * self.right)

    def covariance(self) -> jax.Array:
        """The entries of X."""
        zero, one = jnp.zeros((), self.flat.dtype), jnp.ones((), self.flat.dtype)
        own = self._change_of_distance(self.stable(), one)
        by = jax.vmap(lambda rates: self._change_of_distance(rates, zero))(self.moved()).T
        roots, horizon = jnp.sqrt(self.twice), self.flow.horizon
        distances = jnp.zeros_like(own).at[np.flatnonzero(self.diagonal)].set(self.edge - self.values)
        constant = roots * (distances + horizon * own)
        return complementary(constant, horizon * roots[:, None] * by / roots) / roots

    def _rate(self) -> jax.Array:
        (filter,) = self.flow.optimizer.stages[0].filters()
        return averages.filter_rate(filter.decay_at(self.time + 1), True)

    def _change_of_distance(self, rates: _Rates, pace: jax.Array) -> jax.Array:
        """The entries of Uᵀ A' U, where the state has the given rates and the time that of `pace`."""
        if self.second is None:
            change = jnp.zeros_like(self.flat)
        else:
            see = lambda time, second: self.flow.preconditioner(time, self.state, second)  # noqa: E731
            change = jax.jvp(see, (self.time, self.second), (pace, rates.second))[1]
        return self.edge * (self.left * self.right) @ change - self.thirds @ rates.params


def _leading(slope: Any, flat: jax.Array, preconditioner: jax.Array, count: int, depth: int) -> tuple[Any, Any]:
    """The largest s with H u = s P u, and their u in rows, uᵢ · P uⱼ = 1 or 0. Coordinates with P = 0 do not move."""
    weights = jnp.where(preconditioner > 0, 1 / jnp.sqrt(jnp.where(preconditioner > 0, preconditioner, 1.0)), 0.0)
    if flat.size <= _DENSE_LIMIT:
        hessian = jax.jacfwd(slope)(flat)
        scaled = weights * ((hessian + hessian.T) / 2) * weights[:, None]
        unit = unit_of(scaled, (0, 1))
        values, vectors = jnp.linalg.eigh(scaled / unit)
        values = unit[0] * values[-count:][::-1]
        vectors = vectors[:, -count:][:, ::-1].T
    else:
        _, product = jax.linearize(slope, flat)
        space = lanczos(lambda vector: weights * product(weights * vector), weights, min(depth, flat.size), 0)
        values, coordinates = space.eigh()
        values = space.unit * values[-count:][::-1]
        vectors = (coordinates[:, -count:].T @ space.basis)[::-1]
    return jax.lax.stop_gradient((values, weights * vectors))


def _quotient(values: jax.Array, by: jax.Array) -> jax.Array:
    """0 where P is."""
    return jnp.where(by > 0, values / jnp.where(by > 0, by, 1.0), 0.0)
