"""A decoder-only transformer over characters, small enough for a CPU and for flows."""

import functools
from pathlib import Path
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from adamflow.checks import check_count
from adamflow.problems.cross_entropy import mean_cross_entropy
from adamflow.problems.examples import check_label_range
from adamflow.problems.invariant import check_enough_to_normalize, normalize
from adamflow.problems.numbers import array_size
from adamflow.problems.problem import Problem, random_key
from adamflow.problems.text import encode, read_text, split

Weights: TypeAlias = dict[str, Any]


def layer_norm(weights: Weights, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """(x − mean) / √(variance + 1e-5) · gain + bias, over the last axis."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-5)
    return centred * scale * weights["gain"] + weights["bias"]


def attention(weights: Weights, x: Float[Array, "batch time width"], heads: int) -> Float[Array, "batch time width"]:
    """Causal multi-head attention: each position sees itself and those before it.

    Where queries and keys have weights of their own, they are normalized over each head, times a gain.
    """
    batch, time, width = x.shape
    if "query" in weights:
        query, key, value = (
            (x @ weights[name]).reshape(batch, time, heads, width // heads) for name in ("query", "key", "value")
        )
        query = exactly_normalized(query) * weights["query_gain"]
        key = exactly_normalized(key) * weights["key_gain"]
    else:
        projected = (x @ weights["query_key_value"]).reshape(batch, time, 3, heads, width // heads)
        query, key, value = projected[:, :, 0], projected[:, :, 1], projected[:, :, 2]
    scores = jnp.einsum("bthd,bshd->bhts", query, key) * (width // heads) ** -0.5
    visible = jnp.tril(jnp.ones((time, time), bool))
    shares = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf))
    mixed = jnp.einsum("bhts,bshd->bthd", shares, value).reshape(batch, time, width)
    return mixed @ weights["out"] + weights["out_bias"]


def exactly_normalized(x: Float[Array, "batch time heads size"]) -> Float[Array, "batch time heads size"]:
    """(x − mean) / deviation over each head, without `layer_norm`'s 1e-5: a factor in front of x has no effect."""
    return normalize(x.reshape(-1, x.shape[-1]), "layer").reshape(x.shape)


def perceptron(weights: Weights, x: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
    """GELU between two affine maps, four times as wide as the rest."""
    return jax.nn.gelu(x @ weights["up"] + weights["up_bias"]) @ weights["down"] + weights["down_bias"]


# A program of its own: called by itself it compiles once, not for each operation, and runs that call it in several
# places trace it once.
@functools.partial(jax.jit, static_argnames="heads")
def transformer_logits(
    params: Weights, tokens: Int[Array, "batch time"], heads: int
) -> Float[Array, "batch time vocabulary"]:
    """Logits of the next character at every position, `time` at most the model's context."""
    # A token outside of the vocabulary makes NaN; by default indexing would take another token in its place.
    embedded = params["tokens"].at[tokens].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    x = embedded + params["positions"][: tokens.shape[1]]
    for block in params["blocks"]:
        x = x + attention(block["attention"], layer_norm(block["attention_norm"], x), heads)
        x = x + perceptron(block["perceptron"], layer_norm(block["perceptron_norm"], x))
    return layer_norm(params["norm"], x) @ params["head"]


class TransformerLoss(eqx.Module):
    """Mean cross-entropy in nats per character over the module's own windows, or over a batch of windows."""

    windows: Int[Array, "size length"]
    heads: int = eqx.field(static=True)

    def __call__(self, params: Weights, batch: Int[Array, "batch length"] | None = None) -> Float[Array, ""]:
        windows = self.windows if batch is None else batch
        if batch is not None:
            check_windows(batch, params["positions"].shape[0], params["tokens"].shape[0])
        return mean_cross_entropy(transformer_logits(params, windows[:, :-1], self.heads), windows[:, 1:])


def check_windows(batch: Any, context: int, vocabulary: int) -> None:
    """Raise `ValueError` unless a batch holds windows of tokens, in the vocabulary as far as they are concrete."""
    shape, dtype = jnp.shape(batch), jnp.result_type(batch)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"batch must hold tokens, integers below {vocabulary}, got {dtype}")
    if len(shape) != 2 or shape[0] == 0:
        raise ValueError(f"batch must hold at least one window, shape (size, context + 1), got shape {shape}")
    if not 2 <= shape[1] <= context + 1:
        raise ValueError(f"a batch must hold windows of 2 to context + 1 = {context + 1} characters, got {shape[1]}")
    check_label_range("the tokens of a batch", batch, vocabulary)


class TransformerAccuracy(eqx.Module):
    """Fraction of the characters of the module's windows that have the largest logit at their place."""

    windows: Int[Array, "size length"]
    heads: int = eqx.field(static=True)

    @eqx.filter_jit
    def __call__(self, params: Weights) -> Float[Array, ""]:
        logits = transformer_logits(params, self.windows[:, :-1], self.heads)
        return jnp.mean(jnp.argmax(logits, axis=-1) == self.windows[:, 1:], dtype=float)


def initial_weights(
    vocabulary: int, layers: int, width: int, context: int, seed: int, normalized_heads: int = 0
) -> Weights:
    """Normal weights that keep every layer's output near unit variance at any width; gains one, biases zero.

    The deviation is √½ for both embeddings, which add up to unit variance; 1/√inputs for projections, divided by
    √(2 layers) where a block adds to the residual stream; and 1/width for the head, so that the loss starts near
    ln(vocabulary). GPT-2's 0.02 everywhere is made for a width of 768: at 16, attention starts so flat that the
    queries' and keys' gradients are hundreds of times smaller than the rest. With `normalized_heads` > 0 queries, keys
    and values have weights of their own, the same numbers, and queries and keys a gain for each place in a head.
    """
    generator = np.random.default_rng(seed)

    def normal(*shape: int, deviation: float) -> Array:
        return jnp.asarray(generator.normal(0.0, deviation, shape), dtype=float)

    def norm() -> Weights:
        return {"gain": jnp.ones(width), "bias": jnp.zeros(width)}

    def projection(inputs: int, outputs: int, branches: int = 1) -> Array:
        return normal(inputs, outputs, deviation=(inputs * branches) ** -0.5)

    def block() -> Weights:
        # No bias for queries and keys: softmax ignores a bias of the keys, so its gradient would be rounding error
        # and nothing else, which Adam without epsilon blows up to full steps.
        attend = {"query_key_value": projection(width, 3 * width), "out": projection(width, width, 2 * layers)}
        if normalized_heads:
            parts = jnp.split(attend.pop("query_key_value"), 3, axis=1)
            attend |= dict(zip(("query", "key", "value"), parts, strict=True))
            attend |= {name: jnp.ones(width // normalized_heads) for name in ("query_gain", "key_gain")}
        widen = {"up": projection(width, 4 * width), "down": projection(4 * width, width, 2 * layers)}
        return {
            "attention_norm": norm(),
            "attention": attend | {"out_bias": jnp.zeros(width)},
            "perceptron_norm": norm(),
            "perceptron": widen | {"up_bias": jnp.zeros(4 * width), "down_bias": jnp.zeros(width)},
        }

    return {
        "tokens": normal(vocabulary, width, deviation=0.5**0.5),
        "positions": normal(context, width, deviation=0.5**0.5),
        "blocks": tuple(block() for _ in range(layers)),
        "norm": norm(),
        "head": normal(width, vocabulary, deviation=1 / width),
    }


def char_transformer(
    *,
    text: str | Path | None = None,
    layers: int = 2,
    heads: int = 4,
    width: int = 64,
    context: int = 64,
    batch_size: int = 16,
    normalize_queries_and_keys: bool = False,
    validation_fraction: float = 0.1,
    validation_size: int = 64,
    seed: int = 0,
    data_seed: int = 0,
) -> Problem:
    """A decoder-only transformer that predicts the next character of a text.

    Layer norm before attention, before the perceptron and before the linear head; learned positions; causal
    multi-head attention; GELU. As GPT-2 (Radford et al. 2019), but the head is not tied to the embedding,
    attention's inner projections have no bias, and the initial weights scale with the width (`initial_weights`).

    Args:
        text: path of a UTF-8 text file; `None` for the help topics of Python 3.11 (see `read_text`).
        layers: blocks of attention and perceptron.
        heads: attention heads; must divide width.
        width: of the residual stream.
        context: characters the model sees; a window has one more, the last target.
        batch_size: windows in the fixed batch of `loss(params)`.
        normalize_queries_and_keys: whether queries and keys are normalized over each head, times a gain, so that their
            weights are scale-invariant (Henry et al. 2020; layer norm as in Dehghani et al. 2023, without ε).
        validation_fraction: share of the text, at its end, that is kept for `validation_loss`.
        validation_size: windows in the fixed set of `validation_loss`, evenly spaced.
        seed: of the initial weights.
        data_seed: of the windows in the fixed batch.

    Returns:
        A problem whose `loss(params)` is the mean cross-entropy in nats per character over one fixed batch,
        `loss(params, batch)` that over integers of shape (size, context + 1), with the metrics `train_accuracy` on that
        fixed batch, `validation_accuracy` and `validation_loss`. Characters that a batch lacks get an embedding
        gradient of exactly zero. With `normalize_queries_and_keys` its `scale_invariant` names the weights of queries
        and keys.

    Raises:
        OSError: the file cannot be opened.
        ValueError: an argument out of range, heads not a divisor of width, text not UTF-8 or too short.

    Example:
        >>> import adamflow as af
        >>> import numpy as np
        >>> problem = af.problems.char_transformer(layers=1, heads=2, width=16, context=16, batch_size=4)
        >>> vocabulary = problem.params["head"].shape[1]
        >>> bool(abs(problem.loss(problem.params) - np.log(vocabulary)) < 0.1)
        True
        >>> problem.batches(size=8, seed=0)(0).shape
        (8, 17)
    """
    layers, heads, width = array_size("layers", layers), array_size("heads", heads), array_size("width", width)
    context, batch_size = array_size("context", context), array_size("batch_size", batch_size)
    validation_size, seed = array_size("validation_size", validation_size), check_count("seed", seed, low=0)
    if width % heads:
        raise ValueError(
            f"heads must divide width, got heads={heads} and width={width}; try width={heads * (width // heads + 1)}"
        )
    if normalize_queries_and_keys:
        check_enough_to_normalize("width / heads", width // heads)
    vocabulary, tokens = encode(read_text(text))
    train, validation = split(tokens, validation_fraction, context + 1)
    fixed_batch = train(random_key("data_seed", data_seed), batch_size)
    held_out = validation.evenly_spaced(validation_size)
    normalized_heads = heads if normalize_queries_and_keys else 0
    names = ("query", "key") if normalize_queries_and_keys else ()
    return Problem(
        "char_transformer",
        initial_weights(len(vocabulary), layers, width, context, seed, normalized_heads),
        TransformerLoss(fixed_batch, heads),
        {
            "train_accuracy": TransformerAccuracy(fixed_batch, heads),
            "validation_accuracy": TransformerAccuracy(held_out, heads),
            "validation_loss": TransformerLoss(held_out, heads),
        },
        train,
        tuple(f"['blocks'][{block}]['attention']['{name}']" for block in range(layers) for name in names),
    )
