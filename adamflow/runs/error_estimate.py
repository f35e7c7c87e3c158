"""The global error of a run, estimated by a second one with a tighter tolerance."""

import dataclasses

import jax
import jax.numpy as jnp

from adamflow.flows.norms import row_norms
from adamflow.runs.trajectory import INITIAL_NORM_WEIGHT, Trajectory


def with_error_estimate(trajectory: Trajectory, tighter: Trajectory) -> Trajectory:
    r"""A run with the distance to a tighter one as its `error_estimate`, and the cost of both.

    With θ of this run and ϑ of the tighter one, at each saved time

    $$\frac{\|\theta(n) - \vartheta(n)\|}{\max_{n' \le n} \|\vartheta(n') - \theta(0)\| + \|\theta(0)\|/10}$$

    in Euclidean norms over all parameters: the measure of collocation's tolerance. NaN where the tighter run has ended.
    """
    difference = row_norms(jax.tree.map(jnp.subtract, trajectory.params, tighter.params))
    moved = row_norms(jax.tree.map(lambda row, start: row - start, tighter.params, tighter.initial_params))
    initial = row_norms(jax.tree.map(lambda leaf: leaf[None], tighter.initial_params))
    scale = jax.lax.cummax(moved) + INITIAL_NORM_WEIGHT * initial
    estimate = difference / jnp.where(scale > 0, scale, 1.0)
    known = trajectory.iterations <= tighter.outcome.last_valid_iteration
    stats = jax.tree.map(lambda ours, theirs: ours + theirs, trajectory.stats, tighter.stats)
    return dataclasses.replace(
        trajectory, error_estimate=jnp.where(known, estimate, jnp.nan), stats=dataclasses.replace(stats, seconds=None)
    )
