"""Rows of `bench/run.py`: a look at a training run, over one training step of optax at the same batch.

Each look is at a state three steps after the last one, from which it starts, in float32. What bounds it, in gradients:
linearizing one, and two for each product, since the tangent of a gradient does each matrix product twice.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

import adamflow as af

#: By name, the width of a perceptron with three hidden layers; the batch is as large as that of a small experiment.
WIDTHS = {"1e6": 560, "1e7": 1800}
BATCH, CLASSES, STEPS_BETWEEN = 64, 10, 3


class _Run:
    """A run that goes on: `step` is a training step, `look` one at a state that changed little since the last."""

    def __init__(self, width: int) -> None:
        keys = jax.random.split(jax.random.key(0), 6)
        sizes = [width, width, width, width, CLASSES]
        shapes = zip(keys[:4], sizes[:-1], sizes[1:], strict=True)
        self._params: Any = [
            {"w": jax.random.normal(key, (a, b), jnp.float32) / math.sqrt(a), "b": jnp.zeros(b, jnp.float32)}
            for key, a, b in shapes
        ]
        inputs = jax.random.normal(keys[4], (BATCH, width), jnp.float32)
        labels = jax.random.randint(keys[5], (BATCH,), 0, CLASSES)

        def loss(params: Any) -> jax.Array:
            hidden = inputs
            for layer in params[:-1]:
                hidden = jnp.tanh(hidden @ layer["w"] + layer["b"])
            outputs = hidden @ params[-1]["w"] + params[-1]["b"]
            return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()

        transformation = optax.adamw(1e-3, weight_decay=0.01)

        @jax.jit
        def step(params: Any, state: Any) -> Any:
            updates, state = transformation.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        self._loss, self._step, self._state = loss, step, transformation.init(self._params)
        self._last: Any = None
        for _ in range(20):
            self.step()

    def step(self) -> Any:
        """A training step."""
        self._params, self._state = self._step(self._params, self._state)
        return self._params

    def prepare(self) -> None:
        """Some steps, which are not timed."""
        for _ in range(STEPS_BETWEEN):
            jax.block_until_ready(self.step())

    def look(self, **options: Any) -> Callable[[], Any]:
        """A look that starts at the last one."""

        def look() -> None:
            reading = af.from_optax(self._state, jnp.float32(1e-3), weight_decay=0.01)
            report = af.analysis.training_report(self._loss, self._params, *reading, start=self._last, **options)
            self._last = report

        return look


def rows(repeats: int = 5) -> Iterator[tuple]:
    """Name, our side, the peer's, how often."""
    for size, width in WIDTHS.items():
        for kind, options in (
            ("full", {}),
            ("without the plain sharpness", dict(plain_sharpness=False)),
            ("cheap", dict(cheap=True)),
        ):
            run = _Run(width)
            look = run.look(**options)
            look()

            def peer(run: _Run = run) -> Any:
                run.prepare()
                return run.step()

            # The peer makes all the steps between two looks; the share makes the ratio that over one.
            yield (
                f"a {kind} look, {size} parameters: training_report over a step",
                look,
                peer,
                repeats,
                STEPS_BETWEEN + 1,
            )
