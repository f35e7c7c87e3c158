"""Many runs of one system side by side: means, variances, covariances and quantiles with their standard errors."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree, Real

from adamflow.checks import check_range
from adamflow.optimizers.record import Record
from adamflow.types import ArrayLike


class Estimate(NamedTuple):
    """A statistic and its standard error: pytrees like what was observed, with a leading axis of time."""

    value: PyTree
    error: PyTree


class Ensemble(Record):
    """What `StochasticFlow.solve` and `discrete_paths` return.

    Attributes:
        iterations: the saved times, in iterations.
        observed: what was observed: a pytree of arrays with leading axes (paths, times).
        finite: by path, whether all of it is finite. Statistics are over these; `failed` says how many are not.
        name: what reports and legends call it.
    """

    iterations: Real[np.ndarray, "saved"]
    observed: PyTree
    finite: Bool[Array, "paths"]
    name: str

    @classmethod
    def of(cls, iterations: ArrayLike, observed: PyTree, name: str) -> "Ensemble":
        """An ensemble from what was observed on all paths."""
        finite = [jnp.all(jnp.isfinite(leaf).reshape(len(leaf), -1), axis=1) for leaf in jax.tree.leaves(observed)]
        return cls(np.asarray(iterations), observed, jnp.all(jnp.stack(finite), axis=0), name)

    @property
    def failed(self) -> Int[Array, ""]:
        """The number of paths that left the finite numbers."""
        return jnp.sum(~self.finite)

    @property
    def _used(self) -> Any:
        finite = np.asarray(self.finite)
        if finite.sum() < 2:
            raise ValueError(
                f"{self.name}: {finite.sum()} of {finite.size} paths are finite, and a statistic needs two; take a "
                "smaller learning rate, or more paths"
            )
        return jax.tree.map(lambda leaf: np.asarray(leaf)[finite], self.observed)

    def mean(self) -> Estimate:
        """The mean over paths, with the error σ/√n."""
        return self._estimate(lambda leaf: leaf)

    def second_moment(self) -> Estimate:
        """The mean square over paths."""
        return self._estimate(np.square)

    def variance(self) -> Estimate:
        """The variance over paths."""
        return self._estimate(lambda leaf: (leaf - leaf.mean(axis=0)) ** 2)

    def covariance(self) -> Estimate:
        """The covariance over paths between the entries of what was observed at each time, leaf by leaf."""

        def products(leaf: np.ndarray) -> np.ndarray:
            centred = (leaf - leaf.mean(axis=0)).reshape(*leaf.shape[:2], -1)
            return centred[..., :, None] * centred[..., None, :]

        return self._estimate(products)

    def quantile(self, share: float) -> Estimate:
        """A quantile over paths, with the error from the order statistics a standard deviation away.

        Args:
            share: in (0, 1): .5 is the median.
        """
        check_range("share", share, 0, 1, low_open=True, high_open=True)
        count = int(np.asarray(self.finite).sum())
        spread = np.sqrt(share * (1 - share) / count)
        low, high = max(share - spread, 0.0), min(share + spread, 1.0)
        value = jax.tree.map(lambda leaf: np.quantile(leaf, share, axis=0), self._used)
        error = jax.tree.map(
            lambda leaf: (np.quantile(leaf, high, axis=0) - np.quantile(leaf, low, axis=0)) / 2, self._used
        )
        return Estimate(value, error)

    def __str__(self) -> str:
        return f"{self.name}: {len(self.finite)} paths, {int(self.failed)} of them not finite"

    def _estimate(self, function: Any) -> Estimate:
        values = jax.tree.map(function, self._used)
        root = np.sqrt(int(np.asarray(self.finite).sum()))
        mean = jax.tree.map(lambda leaf: leaf.mean(axis=0), values)
        return Estimate(mean, jax.tree.map(lambda leaf: leaf.std(axis=0, ddof=1) / root, values))
