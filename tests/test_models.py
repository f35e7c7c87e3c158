"""Models of other libraries as parameters: one perceptron in equinox, flax nnx, flax linen and haiku, and as a dict."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamflow as af
from adamflow.analysis import training_report

GENERATOR = np.random.default_rng(0)
INPUTS, TARGETS = GENERATOR.normal(size=(9, 3)), GENERATOR.normal(size=(9, 1))
#: Bias and weight of each layer, in the order in which sorted names list them.
LEAVES = [GENERATOR.normal(size=shape) for shape in ((4,), (3, 4), (1,), (4, 1))]
OPTIMIZER = af.adamw(0.01, epsilon=1e-8, weight_decay=0.1)


def loss_of(outputs: Any) -> Any:
    return jnp.mean((outputs - TARGETS) ** 2)


def expected_leaves() -> list[np.ndarray]:
    """After three steps of AdamW, with the gradient written out."""
    leaves = [leaf.copy() for leaf in LEAVES]
    first, second = ([np.zeros_like(leaf) for leaf in leaves] for _ in range(2))
    for n in range(3):
        b, w, c, v = leaves
        hidden = np.tanh(INPUTS @ w + b)
        error = 2 * (hidden @ v + c - TARGETS) / TARGETS.size
        back = (error @ v.T) * (1 - hidden**2)
        gradients = [back.sum(axis=0), INPUTS.T @ back, error.sum(axis=0), hidden.T @ error]
        for i, g in enumerate(gradients):
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.999 * second[i] + 0.001 * g**2
            u = first[i] / (1 - 0.9 ** (n + 1)) / (np.sqrt(second[i] / (1 - 0.999 ** (n + 1))) + 1e-8)
            leaves[i] = leaves[i] - 0.01 * (0.1 * leaves[i] + u)
    return leaves


def assert_trains(loss: Any, params: Any, arrange: Any = lambda leaves: leaves) -> None:
    """Three steps are those of NumPy, and a report names the leaves."""
    run = af.iterate(OPTIMIZER, loss, params, 3, save_at=[3])
    end, state = run.final_state
    assert jax.tree.structure(end) == jax.tree.structure(params)
    for found, expected in zip(jax.tree.leaves(end), arrange(expected_leaves()), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-11)
    report = training_report(loss, end, OPTIMIZER, state, 3, plain_sharpness=False)
    assert len(report.share_by_leaf) == 4
    assert report.converged


def transposed(leaves: list[np.ndarray]) -> list[np.ndarray]:
    """The order and shapes of equinox: weights (out, in) before biases."""
    b, w, c, v = leaves
    return [w.T, b, v.T, c]


def test_identity_a_module_of_equinox_is_split_by_its_own_function(unchecked: None):
    # An activation function is a leaf of the tree, the sizes are static fields.
    model = eqx.nn.MLP(3, 1, 4, 1, activation=jnp.tanh, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    params = jax.tree.unflatten(jax.tree.structure(params), map(jnp.asarray, transposed(LEAVES)))

    def loss(params: Any) -> Any:
        return loss_of(jax.vmap(eqx.combine(params, static))(INPUTS))

    assert_trains(loss, params, transposed)
    with pytest.raises(ValueError, match=r"params, static = equinox\.partition\(model, equinox\.is_inexact_array\)"):
        af.iterate(OPTIMIZER, lambda model: loss_of(jax.vmap(model)(INPUTS)), model, 3)


def test_identity_a_module_of_flax_nnx():
    nnx = pytest.importorskip("flax.nnx", reason="the extra adamflow[frameworks] is not installed")

    class Perceptron(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.first = nnx.Linear(3, 4, rngs=rngs)
            self.last = nnx.Linear(4, 1, rngs=rngs)
            self.activation = jnp.tanh

        def __call__(self, x: Any) -> Any:
            return self.last(self.activation(self.first(x)))

    graph, params, rest = nnx.split(Perceptron(nnx.Rngs(0)), nnx.Param, ...)
    params = jax.tree.unflatten(jax.tree.structure(params), map(jnp.asarray, LEAVES))
    assert_trains(lambda params: loss_of(nnx.merge(graph, params, rest)(INPUTS)), params)


def test_identity_a_module_of_flax_linen():
    linen = pytest.importorskip("flax.linen", reason="the extra adamflow[frameworks] is not installed")
    model = linen.Sequential([linen.Dense(4), jnp.tanh, linen.Dense(1)])
    params = model.init(jax.random.key(0), INPUTS)["params"]
    params = jax.tree.unflatten(jax.tree.structure(params), map(jnp.asarray, LEAVES))
    assert_trains(lambda params: loss_of(model.apply({"params": params}, INPUTS)), params)


def test_identity_the_dicts_of_haiku():
    haiku = pytest.importorskip("haiku", reason="the extra adamflow[frameworks] is not installed")
    model = haiku.without_apply_rng(haiku.transform(lambda x: haiku.nets.MLP([4, 1], activation=jnp.tanh)(x)))
    params = model.init(jax.random.key(0), jnp.asarray(INPUTS))
    assert list(params) == ["mlp/~/linear_0", "mlp/~/linear_1"]
    params = jax.tree.unflatten(jax.tree.structure(params), map(jnp.asarray, LEAVES))
    assert_trains(lambda params: loss_of(model.apply(params, jnp.asarray(INPUTS))), params)
