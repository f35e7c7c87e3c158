"""AdamW on scale-invariant weights as 2-Adam on weights of fixed norm.

The correspondence is of [GT] = R. Gould and H. Tanaka, Continuous-Time Analysis of Adaptive Optimization and
Normalization, arXiv:2411.05746; its constant and its start are derivations of this project: docs/scale-invariance.md.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from adamflow.analysis.invariance.norm_law import norm_factor
from adamflow.analysis.invariance.report import named_leaves
from adamflow.checks import check_count, check_params, check_range, is_concrete
from adamflow.flows.norms import norm, numpy_norm
from adamflow.losses import admit_loss
from adamflow.optimizers import Optimizer, PerTensorRMSpropStage, check_constant, check_optimizer, reads_as_adam
from adamflow.programs import program
from adamflow.runs import Outcome, Stats, Trajectory
from adamflow.runs.failure import OnFailure, check_on_failure, tell_failure
from adamflow.runs.trajectory import check_rows
from adamflow.types import Batch, Dataset, Loss, Params, Scalar


def equivalent_two_adam(
    optimizer: Optimizer, *, mean_square: Scalar | None = None, momentum_correction: bool = True
) -> Optimizer:
    r"""The 2-Adam whose steps on weights of root mean square 1 turn them as AdamW's turn scale-invariant weights.

    $$\eta_2 = \sqrt{2\eta\lambda/K}, \qquad u^{(2)} = u / \sqrt{v_2}, \qquad \gamma_2 = 0, \quad
      \beta_2 = e^{-2\eta\lambda}$$

    with u the direction of AdamW's stage, $v_2$ the average of its mean square over the tensor, and K the
    `norm_factor`. AdamW turns W/‖W‖ by η‖u‖/‖W‖, and by the law of the norm ‖W‖² is Kηd/2λ times $v_2$. This holds
    where ‖W‖ changes little while AdamW's filters forget, 2ηλ ≪ 1−β.

    Args:
        optimizer: AdamW or RMSprop, elementwise or not, with λ > 0 and ε = 0.
        mean_square: of the entries of W(0), the same in all tensors: then $v_2$ starts at
            $(1-\beta_2) \, \overline{W(0)^2}/(K\eta^2)$, without bias correction. By default $v_2$ starts at 0 and its
            bias is corrected, as in k-Adam, which forgets AdamW's initial norm.
        momentum_correction: whether K is that of the iterates, (1+γ)/(1−γ), or the 1 of [GT].

    Returns:
        the record of 2-Adam, without weight decay, for `iterate_on_spheres`.

    Raises:
        ValueError: if the record has another number of stages, no first moment and no γ = 0, λ = 0, or ε > 0.

    Source: 2-Adam [GT]; K, the learning rate and the start: derivations of this project.

    >>> import adamflow as af
    >>> record = equivalent_two_adam(af.adamw(1e-2, weight_decay=0.5, gamma=0.5))
    >>> [type(stage).__name__ for stage in record.stages], round(float(record.learning_rate), 4)
    (['AdamStage', 'PerTensorRMSpropStage'], 0.0577)
    """
    check_optimizer("equivalent_two_adam", optimizer)
    check_constant("equivalent_two_adam", optimizer, "take the optimizer of one iteration, optimizer.at(iteration)")
    filters = {filter.name: filter.decay for filter in optimizer.stages[0].filters()}
    if len(optimizer.stages) != 1 or optimizer.l2 is not None or not _is_adam(optimizer):
        raise ValueError(f"2-Adam stands in for one stage of Adam or RMSprop, but {optimizer.name!r} has another form")
    hint = "without decay the norm grows without end, and forgets nothing"
    check_range("weight_decay", optimizer.weight_decay, 0, low_open=True, hint=hint)
    hint = "with epsilon > 0 AdamW's update depends on the norm of the weights through the size of the gradient"
    check_range("epsilon", optimizer.epsilon, 0, 0, hint=hint)
    eta, decay = optimizer.learning_rate, optimizer.weight_decay
    gamma: Any = filters.get("first_moment", 0.0)
    factor = jnp.asarray(norm_factor(gamma)) if momentum_correction else jnp.ones(())
    beta, start = jnp.exp(-2 * eta * decay), None
    if mean_square is not None:
        check_range("mean_square", mean_square, 0, low_open=True)
        start = -jnp.expm1(-2 * eta * decay) * mean_square / (factor * eta**2)
    return Optimizer(
        learning_rate=jnp.sqrt(2 * eta * decay / factor),
        stages=(*optimizer.stages, PerTensorRMSpropStage(beta, start)),
        bias_correction=optimizer.bias_correction,
        name=f"2-adam of {optimizer.name}",
    )


def _is_adam(optimizer: Optimizer) -> bool:
    """Whether the first stage is Adam's or RMSprop's, with a second moment by entry or by tensor."""
    return any(reads_as_adam(optimizer.stages[0], name) for name in ("second_moment", "mean_square"))


def iterate_on_spheres(
    optimizer: Optimizer,
    loss: Loss,
    params: Params,
    steps: int,
    scale_invariant: Sequence[str],
    *,
    other_optimizer: Optimizer,
    save_every: int = 1,
    batches: Callable[[Any], Batch] | None = None,
    has_aux: bool = False,
    on_failure: OnFailure = "warn",
) -> Trajectory:
    r"""Run an optimizer on tensors of fixed norm: after each step they are divided by their root mean square.

    Args:
        optimizer: for the tensors named.
        loss: `loss(params)`, or `loss(params, batch)` with `batches`; a real scalar, scale-invariant in these tensors.
        params: where to start; the tensors named are first divided by their root mean square.
        steps: number of iterations, at least 1.
        scale_invariant: names of tensors: `problem.scale_invariant`.
        other_optimizer: for all other parameters.
        save_every: iterations between saved ones; it must divide `steps`.
        batches: a jax-traceable function from the iteration to the batch.
        has_aux: whether the loss returns (value, aux); aux is left out.
        on_failure: what to do if the run does not complete: "warn", "raise" or "ignore", as in `iterate`.

    Returns:
        the trajectory, with θ at 0, `save_every`, … `steps`. Rows that are not finite end the run, as `outcome` says.

    Raises:
        ValueError: if an argument is out of its range, or a name unknown.
        IncompleteRunError: with on_failure="raise", if the run does not complete.

    Warns:
        IncompleteRunWarning: with on_failure="warn", if the run does not complete.

    >>> import adamflow as af
    >>> problem, adamw = af.problems.rayleigh(dimension=10), af.adamw(1e-2, weight_decay=0.5)
    >>> two_adam = af.analysis.equivalent_two_adam(adamw)
    >>> given = two_adam, problem.loss, problem.params, 20, problem.scale_invariant
    >>> run = iterate_on_spheres(*given, other_optimizer=adamw)
    >>> print(round(float((run.params[-1] ** 2).mean()), 5))
    1.0
    """
    check_optimizer("iterate_on_spheres", optimizer)
    check_optimizer("other_optimizer= of iterate_on_spheres", other_optimizer)
    for record in (optimizer, other_optimizer):
        if record.uses_gradient_change:
            raise ValueError(
                f"iterate_on_spheres takes one gradient of each batch, but {record.name!r} takes a second one at the "
                "parameters before, for which both optimizers would have to keep them; take af.iterate"
            )
    check_on_failure(on_failure)
    steps, save_every = check_count("steps", steps), check_count("save_every", save_every)
    if steps % save_every:
        raise ValueError(f"save_every must divide steps={steps}, got {save_every}; both are whole iterations")
    named_leaves(params, scale_invariant)
    loss = admit_loss(loss, has_aux)
    params = check_params(params)
    names = tuple(scale_invariant)
    rows, final = _run(optimizer, other_optimizer, loss, params, names, steps // save_every, save_every, batches)
    finite = jnp.stack([jnp.isfinite(leaf).reshape(len(leaf), -1).all(axis=1) for leaf in jax.tree.leaves(rows)])
    good = jnp.cumprod(finite.all(axis=0)).sum()
    none = jnp.zeros((), int)
    trajectory = Trajectory(
        iterations=jnp.arange(0.0, steps + 1, save_every),
        params=rows,
        observed=None,
        initial_params=jax.tree.map(lambda leaf: leaf[0], rows),
        final_state=final,
        outcome=Outcome(jnp.where(good == len(jax.tree.leaves(rows)[0]), 0, 2), (good - 1.0) * save_every),
        stats=Stats(jnp.asarray(steps), jnp.asarray(steps), none, none, None),
        name=f"{optimizer.name}, discrete, fixed norms",
    )
    return tell_failure(trajectory, on_failure, 0.0)


def direction_distance(reference: Trajectory, run: Trajectory, scale_invariant: Sequence[str]) -> Dataset:
    r"""How far the directions W/‖W‖ of two runs are apart: angles, for each scale-invariant tensor.

    Args:
        reference: the run from which angles are measured.
        run: the other one, saved at the same iterations.
        scale_invariant: names of tensors: `problem.scale_invariant`.

    Returns:
        Over `tensor` and `iteration`, in radians: `angle` between the runs, `moved`, of the reference from its own
        start, and `relative`, the first divided by the largest of the second so far (0 at the start).

    Raises:
        ValueError: if the runs hold no parameters, were saved at other iterations, are batches or traced, or a name is
            unknown.

    >>> import adamflow as af
    >>> problem = af.problems.rayleigh(dimension=10)
    >>> one, other = (
    ...     af.iterate(af.adamw(rate, weight_decay=0.1), problem.loss, problem.params, 20) for rate in (1e-2, 2e-2)
    ... )
    >>> dict(direction_distance(one, other, problem.scale_invariant).sizes)
    {'tensor': 1, 'iteration': 21}
    """
    for trajectory in (reference, run):
        if trajectory.params is None or not is_concrete(trajectory) or trajectory.iterations.ndim != 1:
            raise ValueError(f"{trajectory.name!r} must be one run, outside of jit, that holds its parameters")
    check_rows(reference, run)
    if not np.array_equal(reference.iterations, run.iterations):
        raise ValueError("the runs were saved at different iterations; give both the same save_at=")

    def directions(params: Params) -> list[np.ndarray]:
        rows = [np.asarray(leaf, np.float64) for leaf in named_leaves(params, scale_invariant).values()]
        rows = [row.reshape(len(row), -1) for row in rows]
        return [row / numpy_norm(row)[:, None] for row in rows]

    one, other = directions(reference.params), directions(run.params)
    # By the chord: the arc cosine has no digits at small angles.
    angle = [2 * np.arcsin(np.minimum(np.linalg.norm(a - b, axis=1) / 2, 1)) for a, b in zip(one, other, strict=True)]
    moved = [2 * np.arcsin(np.minimum(np.linalg.norm(a - a[:1], axis=1) / 2, 1)) for a in one]
    so_far = np.maximum.accumulate(moved, axis=1)
    relative = np.where(so_far > 0, np.array(angle) / np.where(so_far > 0, so_far, 1.0), 0.0)
    axes = ("tensor", "iteration")
    words = {"angle": "angle between the directions", "moved": "angle from the start of the reference"}
    import xarray as xr

    result = xr.Dataset(
        {"angle": (axes, np.array(angle)), "moved": (axes, np.array(moved)), "relative": (axes, relative)},
        {"tensor": list(scale_invariant), "iteration": np.asarray(reference.iterations, np.float64)},
        {"reference": reference.name, "run": run.name},
    )
    for name, long_name in words.items():
        result[name].attrs.update(long_name=long_name, units="rad")
    result.relative.attrs.update(long_name="angle divided by the largest angle moved so far", units="1")
    return result


@program
def _run(optimizer, other_optimizer, loss, params, names: tuple[str, ...], rows: int, stride: int, batches) -> Any:
    """Rows of parameters, one before each `stride` iterations and one at the end, and the final state."""
    mask = jax.tree_util.tree_map_with_path(lambda path, _: jax.tree_util.keystr(path) in names, params)

    def normalized(tensors: Params) -> Params:
        return jax.tree.map(lambda w: w / (norm(w.reshape(-1)) / w.size**0.5), tensors)

    def value(tensors: Params, others: Params, n: jax.Array) -> jax.Array:
        return loss(eqx.combine(tensors, others), *(() if batches is None else (batches(n),)))

    def step(state: Any, n: jax.Array) -> tuple[Any, None]:
        (tensors, others), (memory, other_memory) = state
        gradients = jax.grad(value, argnums=(0, 1))(tensors, others, n)
        direction, memory = optimizer.update(gradients[0], memory, n, tensors)
        other_direction, other_memory = other_optimizer.update(gradients[1], other_memory, n, others)
        moved = (
            normalized(optimizer.at(n).apply(tensors, direction)),
            other_optimizer.at(n).apply(others, other_direction),
        )
        return (moved, (memory, other_memory)), None

    def block(state: Any, row: jax.Array) -> tuple[Any, Params]:
        advanced, _ = jax.lax.scan(step, state, row * stride + jnp.arange(stride))
        return advanced, eqx.combine(*state[0])

    tensors, others = eqx.partition(params, mask)
    tensors = normalized(tensors)
    memories = optimizer.initial_state(tensors), other_optimizer.initial_state(others)
    final, saved = jax.lax.scan(block, ((tensors, others), memories), jnp.arange(rows))
    last = eqx.combine(*final[0])
    return jax.tree.map(lambda rows, end: jnp.concatenate([rows, end[None]]), saved, last), (last, final[1])
