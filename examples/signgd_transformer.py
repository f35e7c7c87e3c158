"""Sign descent on a two-layer transformer, and Adam beside it whose memory becomes shorter and shorter.

Sign descent, θₙ₊₁ = θₙ − η sign gₙ, is Adam's limit for β, γ → 0 with ε = 0. It has no memory, so it is the simplest
of the systems related to Adam. Both train a character transformer from the same weights on the same minibatches. The
distance between their parameters shrinks slowly with β: where a character is missing in a batch, its gradient is
exactly zero and sign descent stands still, but Adam with γ = β still moves by m/√v, about √β; and from then on each
gradient that was near zero may have the other sign, which is worth a full step.

    python examples/signgd_transformer.py
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

import adamflow as af

STEPS, LEARNING_RATE = 60, 1e-3

problem = af.problems.char_transformer(layers=2, heads=2, width=16, context=16, batch_size=16)
batches = problem.batches(size=16, seed=0)
evaluate = eqx.filter_jit(problem.metrics["validation_loss"])


def train(optimizer: af.Optimizer) -> tuple[float, jax.Array]:
    """The test loss after the last iteration, and all parameters there."""
    run = af.iterate(
        optimizer, problem.loss, problem.params, STEPS, save_at=[STEPS], batches=batches, on_failure="raise"
    )
    params = run.final_state[0]
    return float(evaluate(params)), ravel_pytree(params)[0]


start = ravel_pytree(problem.params)[0]
sign_loss, sign_params = train(af.signsgd(LEARNING_RATE))
moved = jnp.linalg.norm(sign_params - start)

print(f"{'':28}  test loss  distance from sign descent / distance moved")
print(f"{'start':28}  {float(evaluate(problem.params)):9.4f}")
print(f"{'sign descent':28}  {sign_loss:9.4f}")
distances = []
for decay in (0.5, 0.1, 1e-2, 1e-3, 1e-4):
    loss, params = train(af.adam(LEARNING_RATE, beta=decay, gamma=decay))
    distances.append(float(jnp.linalg.norm(params - sign_params) / moved))
    print(f"{f'Adam, beta = gamma = {decay:g}':28}  {loss:9.4f}  {distances[-1]:.4f}")

if not distances[-1] < distances[0] / 4:
    raise RuntimeError(f"Adam does not approach sign descent: its distances are {distances}")
