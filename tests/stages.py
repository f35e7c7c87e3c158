"""Stages that adamflow does not ship, as a user would add them: the proof that the contract has room for the family."""

import jax
import jax.numpy as jnp

from adamflow import AbstractStage, Filter


class AMSGradStage(AbstractStage):
    """Memory that is no average: the maximum of v̂ so far."""

    beta: float
    gamma: float

    def filters(self):
        return (
            Filter("first", self.gamma, lambda signal, _: signal.value),
            Filter("second", self.beta, lambda signal, _: signal.value**2, nonnegative=True),
        )

    def initial_memory(self, leaf):
        return {"maximum": jnp.zeros_like(leaf)}

    def update_memory(self, signal, averages, memory, iteration):
        return {"maximum": jnp.maximum(memory["maximum"], averages["second"])}

    def direction(self, signal, averages, memory, iteration, ratio):
        return ratio(averages["first"], memory["maximum"])


class AdanStage(AbstractStage):
    """Inputs that need the gradient before: averages of gₙ − gₙ₋₁."""

    uses_difference = True
    b1: float
    b2: float
    b3: float

    def filters(self):
        return (
            Filter("first", self.b1, lambda signal, _: signal.value),
            Filter("change", self.b2, lambda signal, _: signal.difference),
            Filter(
                "second",
                self.b3,
                lambda signal, _: (signal.value + (1 - self.b2) * signal.difference) ** 2,
                nonnegative=True,
            ),
        )

    def direction(self, signal, averages, memory, iteration, ratio):
        return ratio(averages["first"] + (1 - self.b2) * averages["change"], averages["second"])


class AdaBeliefStage(AbstractStage):
    """A filter that averages a function of another: (g − m)²."""

    beta: float
    gamma: float

    def filters(self):
        return (
            Filter("first", self.gamma, lambda signal, _: signal.value),
            Filter("second", self.beta, lambda signal, others: (signal.value - others["first"]) ** 2, nonnegative=True),
        )

    def direction(self, signal, averages, memory, iteration, ratio):
        return ratio(averages["first"], averages["second"])


class AdaFomStage(AbstractStage):
    """A decay that depends on n: v is the plain mean of all squared gradients, βₙ = 1 − 1/(n+1)."""

    gamma: float

    def filters(self):
        return (
            Filter("first", self.gamma, lambda signal, _: signal.value),
            Filter(
                "second",
                lambda n: 1 - 1 / (n + 1),
                lambda signal, _: signal.value**2,
                nonnegative=True,
                weight_sum=lambda n: jnp.ones_like(jnp.asarray(n, float)),
            ),
        )

    def direction(self, signal, averages, memory, iteration, ratio):
        return ratio(averages["first"], averages["second"])


class AdaBoundStage(AbstractStage):
    """Bounds that depend on n: the rate 1/√v̂ is clipped to [1 − 1/(s(n+1) + 1), 1 + 1/(s(n+1))], s = 1 − β."""

    beta: float
    gamma: float

    def filters(self):
        return (
            Filter("first", self.gamma, lambda signal, _: signal.value),
            Filter("second", self.beta, lambda signal, _: signal.value**2, nonnegative=True),
        )

    def direction(self, signal, averages, memory, iteration, ratio):
        pace = (1 - self.beta) * (iteration + 1)
        rate = ratio(jnp.ones_like(signal.value), averages["second"])
        return averages["first"] * jax.lax.clamp(1 - 1 / (pace + 1), rate, 1 + 1 / pace)


class PlainStage(AbstractStage):
    """u = g: gradient descent, whose state is θ alone."""

    def filters(self):
        return ()

    def direction(self, signal, averages, memory, iteration, ratio):
        return signal.value


class MomentumStage(AbstractStage):
    """u = m: what makes the step, and the flow, linear in the gradient."""

    gamma: float

    def filters(self):
        return (Filter("first", self.gamma, lambda signal, _: signal.value),)

    def direction(self, signal, averages, memory, iteration, ratio):
        return averages["first"]


class CountingStage(PlainStage):
    """Memory that cannot move continuously: a counter."""

    def initial_memory(self, leaf):
        return {"count": jnp.zeros((), int)}
