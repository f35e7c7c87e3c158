"""The record every problem is: a loss with its data, where to start, and what to measure."""

from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key

from adamflow.checks import check_count
from adamflow.problems.numbers import array_size
from adamflow.types import Batch, Loss, Params

#: `sampler(key, size)` draws a batch of `size` examples.
Sampler: TypeAlias = Callable[[Key[Array, ""], int], Batch]


class Batches(eqx.Module):
    """A batch for every iteration: batch n is drawn with the key `fold_in(key, n)`.

    A pure function of the iteration, so it runs inside jit, scan and vmap, and batch n is the same whichever
    iterations came before it.
    """

    sampler: Sampler
    key: Key[Array, ""]
    size: int = eqx.field(static=True)

    def __call__(self, iteration: int | Int[Array, ""]) -> Batch:
        return self.sampler(jax.random.fold_in(self.key, iteration), self.size)


def random_key(name: str, seed: Any) -> Key[Array, ""]:
    """The random key of a seed, or a `ValueError` unless it is an integer in [0, 2³²), where all precisions agree."""
    if check_count(name, seed, low=0) >= 2**32:
        raise ValueError(f"{name} must be below 2**32, since larger seeds need 64-bit integers, got {seed}")
    return jax.random.key(np.uint32(seed))


class OfVector(eqx.Module):
    """A function of parameters as one of the vector of all of them."""

    function: Callable[..., Any]
    unravel: Callable[[Any], Params] = eqx.field(static=True)

    def __call__(self, vector: Float[Array, " size"], *batch: Batch) -> Any:
        return self.function(self.unravel(vector), *batch)


class Problem(eqx.Module):
    """A loss, the parameters to start from, and metrics of the parameters.

    To add a problem, write one function that returns this record. Make the loss an `equinox.Module` which keeps its
    data in array fields: then `equinox.filter_jit` takes the data as an argument rather than a constant, and problems
    of equal shapes share compiled code. (`jax.jit(problem.loss)` fails, since it hashes what it compiles.)
    Minibatches come for free once a sampler is given.

    Problems have no hash, since they hold data as arrays; a name or the function that makes one can be a key.

    Args:
        name: what reports and figures call it.
        params: initial parameters, any pytree of floating-point arrays in jax's default float type.
        loss: `loss(params)` on fixed data, deterministic. With a sampler also `loss(params, batch)`.
        metrics: scalar functions of the parameters by name, for instance `test_accuracy`; empty where none makes sense.
        sampler: `sampler(key, size)` draws a batch of `size` examples; `None` for problems without minibatches.
        scale_invariant: the leaves W of the parameters with loss(cW) = loss(W) for c > 0, each by itself: their names
            by `jax.tree_util.keystr`, such as "[0]['weight']". Empty where none is, or none is known.

    Example:
        >>> import adamflow as af
        >>> problem = af.problems.quadratic([1.0, 4.0])
        >>> float(problem.loss(problem.params))
        2.5
    """

    name: str = eqx.field(static=True)
    params: Params
    loss: Loss
    metrics: dict[str, Callable[[Params], Any]] = eqx.field(default_factory=dict)
    sampler: Sampler | None = None
    scale_invariant: tuple[str, ...] = eqx.field(static=True, default=())

    def __check_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ValueError(f"name must be a string, got {self.name!r}")
        if not callable(self.loss):
            raise ValueError(f"loss must be a function of the parameters, got {type(self.loss).__name__}")
        if not isinstance(self.metrics, dict) or not all(map(callable, self.metrics.values())):
            raise ValueError("metrics must be a dict of functions of the parameters, by name")
        if self.sampler is not None and not callable(self.sampler):
            raise ValueError(f"sampler must be a function (key, size) or None, got {type(self.sampler).__name__}")
        if isinstance(self.scale_invariant, str):
            raise ValueError(f"scale_invariant must be a tuple of names, got the string {self.scale_invariant!r}")
        names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(self.params)]
        unknown = [name for name in self.scale_invariant if name not in names]
        if unknown:
            raise ValueError(f"scale_invariant must name leaves of params, {names}, got {unknown[0]!r}")

    def batches(self, size: int, seed: int = 0) -> Batches:
        """Minibatches of `size` examples, drawn independently with replacement, as a function of the iteration.

        Args:
            size: examples per batch, at least 1.
            seed: equal seeds give equal batches, in float32 and float64 alike; below 2³².

        Raises:
            ValueError: the problem has no minibatches, or an argument is out of range.

        Example:
            >>> import adamflow as af
            >>> problem = af.problems.logistic()
            >>> features, labels = problem.batches(size=32, seed=0)(7)
            >>> features.shape, labels.shape
            ((32, 64), (32,))
        """
        if self.sampler is None:
            raise ValueError(
                f"problem {self.name!r} has no minibatches, its loss has no data to draw from; "
                "run it without batches=, or take one with data (logistic, mlp, cnn, char_transformer)"
            )
        size = array_size("size", size)
        return Batches(self.sampler, random_key("seed", seed), size)

    def flatten(self) -> "Problem":
        """The same problem with all parameters in one vector, for which flows of networks compile three times as fast.

        Returns:
            A problem whose parameters are an array of shape (size,): those of this one, leaf after leaf as
            `jax.tree.leaves` lists them. Loss and metrics take such a vector, none of whose leaves, being one, is
            known to be scale-invariant.

        Example:
            >>> import adamflow as af
            >>> af.problems.logistic().flatten().params.shape
            (650,)
        """
        vector, unravel = ravel_pytree(self.params)
        metrics = {name: OfVector(metric, unravel) for name, metric in self.metrics.items()}
        return Problem(self.name, vector, OfVector(self.loss, unravel), metrics, self.sampler)
