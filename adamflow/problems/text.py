"""Text as data: where it comes from, its vocabulary, its split, and windows drawn from it."""

import functools
import importlib.resources
import lzma
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Integer, Key

from adamflow.checks import check_range, check_single


class Windows(eqx.Module):
    """Draws windows of `length` consecutive tokens, uniformly with replacement."""

    tokens: Int[Array, " characters"]
    length: int = eqx.field(static=True)

    def __call__(self, key: Key[Array, ""], size: int) -> Int[Array, "size length"]:
        return _draw(self.tokens, key, int(size), self.length)

    def evenly_spaced(self, count: int) -> Int[Array, "count length"]:
        """`count` windows from the first to the last, as far apart as the text allows."""
        starts = np.linspace(0, self.tokens.shape[0] - self.length, count).astype(np.int32)
        return jnp.asarray(np.asarray(self.tokens)[starts[:, None] + np.arange(self.length)])


@functools.partial(jax.jit, static_argnames=("size", "length"))
def _draw(tokens: Int[Array, " characters"], key: Key[Array, ""], size: int, length: int) -> Int[Array, "size length"]:
    starts = jax.random.randint(key, (size,), 0, tokens.shape[0] - length + 1, dtype=jnp.int32)
    return tokens[starts[:, None] + jnp.arange(length)]


#: The help topics of Python 3.11.7 in alphabetical order: the same text for everyone, whichever Python runs.
_PYTHON_HELP = importlib.resources.files("adamflow.problems") / "data" / "python-3.11-help.txt.xz"


def read_text(path: str | Path | None = None) -> str:
    """The text of a file, or the help topics of Python 3.11 (465 thousand characters), which come with the package.

    Args:
        path: a UTF-8 text file, without or with a byte-order mark, which is no part of the text; `None` for the help
            topics.

    Raises:
        OSError: the file cannot be opened.
        ValueError: not a path, or the file is not UTF-8 or contains NUL, as UTF-16 and binary files do.

    Example:
        >>> from adamflow.problems.text import read_text
        >>> "assert" in read_text()
        True
    """
    if path is None:
        return lzma.decompress(_PYTHON_HELP.read_bytes()).decode()
    advice = "give the path of a text file, or text=None for the text that comes with adamflow"
    try:
        text = check_path("text", path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise OSError(error.errno, f"text {str(path)!r} cannot be read: {error.strerror}; {advice}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"text {str(path)!r} is not UTF-8 (byte {error.start}: {error.reason}); {advice}") from error
    if "\0" in text:
        raise ValueError(
            f"text {str(path)!r} contains NUL characters, as UTF-16 without a byte-order mark does; {advice}"
        )
    return text


def check_path(name: str, path: Any) -> Path:
    """The path, or a `ValueError` unless it is a non-empty string or a `pathlib.Path`.

    An empty string would be the current folder.
    """
    if not isinstance(path, str | Path) or not str(path) or "\0" in str(path):
        raise ValueError(f"{name} must be a path, a non-empty string or pathlib.Path, got {path!r}")
    return Path(path)


def encode(text: str) -> tuple[str, Integer[np.ndarray, " characters"]]:
    """The vocabulary, which is the text's distinct characters in order, and each character's place in it.

    Example:
        >>> from adamflow.problems.text import encode
        >>> vocabulary, tokens = encode("hello")
        >>> vocabulary, tokens.tolist()
        ('ehlo', [1, 0, 2, 2, 3])
    """
    vocabulary, tokens = np.unique(np.frombuffer(text.encode("utf-32-le"), np.uint32), return_inverse=True)
    return "".join(map(chr, vocabulary)), tokens.astype(np.int32)


def split(
    tokens: Integer[np.ndarray, " characters"], validation_fraction: float, length: int
) -> tuple[Windows, Windows]:
    """Windows of the train part, which comes first, and of the validation part, the last fraction of the text.

    Args:
        tokens: the encoded text.
        validation_fraction: strictly between 0 and 1.
        length: tokens per window.

    Raises:
        ValueError: one of the parts is shorter than a window.
    """
    fraction = check_single("validation_fraction", validation_fraction)
    check_range("validation_fraction", fraction, 0.0, 1.0, low_open=True, high_open=True)
    border = len(tokens) - round(validation_fraction * len(tokens))
    parts = {"train": tokens[:border], "validation": tokens[border:]}
    for name, part in parts.items():
        if len(part) < length:
            raise ValueError(
                f"text of {len(tokens)} characters is too short: its {name} part has {len(part)} of them, and a window "
                f"takes context + 1 = {length}; give a longer text, a smaller context, or another validation_fraction "
                f"than {validation_fraction}"
            )
    train, validation = (Windows(jnp.asarray(part, dtype=jnp.int32), length) for part in parts.values())
    return train, validation
