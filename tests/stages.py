"""A stage that adamflow does not ship, as a user would add it."""

import jax.numpy as jnp

from adamflow import AbstractStage


class CountingStage(AbstractStage):
    """u = g, with memory that cannot move continuously: a counter."""

    def filters(self):
        return ()

    def initial_memory(self, leaf):
        return {"count": jnp.zeros((), int)}

    def direction(self, signal, averages, memory, iteration, ratio):
        return signal.value
