"""Images from files: CIFAR-10's binary version, and the idx files of Fashion-MNIST and MNIST, as data for `cnn`."""

import gzip
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer, UInt8

from adamflow.problems.classification import Examples
from adamflow.problems.text import check_path

CIFAR_SIDE, CIFAR_COLOURS, CLASSES = 32, 3, 10
#: A byte for the label, then the planes of red, green and blue.
CIFAR_RECORD = 1 + CIFAR_COLOURS * CIFAR_SIDE**2
CIFAR_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
CIFAR_TEST = ("test_batch.bin",)
#: What a gzip file starts with.
GZIP = b"\x1f\x8b"


def read_cifar10(folder: str | Path) -> tuple[Examples, Examples]:
    """CIFAR-10 (Krizhevsky 2009) from the folder of its binary version, usually called cifar-10-batches-bin.

    The folder holds data_batch_1.bin to data_batch_5.bin and test_batch.bin. Each is a sequence of records of 3073
    bytes: the label, then 32 by 32 bytes of red, as many of green and of blue, row by row. The published files hold
    10,000 records each; other numbers are read too, and files compressed by gzip, with the ending .gz.

    Args:
        folder: where the six files are.

    Returns:
        The train and the test part, each images of shape (examples, 32, 32, 3) in [0, 1] and labels from 0 to 9, as
        `cnn(data=...)` takes them. The published images take 740 MB in float32.

    Raises:
        OSError: the folder or a file is missing, empty or cannot be read.
        ValueError: folder is no path; a file's size is no whole number of records, or a label is above 9.

    Example:
        >>> import adamflow as af, numpy as np, pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        ...         _ = pathlib.Path(folder, name).write_bytes(bytes(2 * 3073))
        ...     train, test = af.problems.read_cifar10(folder)
        >>> train[0].shape, test[1].shape
        ((10, 32, 32, 3), (2,))
    """
    folder = _folder(folder, CIFAR_TEST[0])
    train, test = (_cifar_part(folder, names) for names in (CIFAR_TRAIN, CIFAR_TEST))
    return train, test


def read_fashion_mnist(folder: str | Path) -> tuple[Examples, Examples]:
    """Fashion-MNIST (Xiao et al. 2017), or MNIST, from the folder of its four idx files, compressed by gzip or not.

    The files are train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte,
    each with or without the ending .gz, and with a hyphen or a dot before "idx", as mirrors name them. Of several, the
    first with content counts; empty files and folders of such a name are passed over. An idx file starts with two
    zeros, the type (8: bytes) and the number of axes, then their lengths as big-endian integers of 4 bytes, then the
    bytes themselves.

    Args:
        folder: where the four files are.

    Returns:
        The train and the test part, each images of shape (examples, height, width, 1) in [0, 1], 28 by 28 in the
        published files, and labels from 0 to 9, as `cnn(data=...)` takes them.

    Raises:
        OSError: the folder or a file is missing, empty or cannot be read.
        ValueError: folder is no path; a file is no idx file of bytes with the right number of axes, its size is not
            what it says, images and labels differ in number, or a label is above 9.

    Example:
        >>> import adamflow as af, pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("train", "t10k"):
        ...         images = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 4]) + bytes(range(32))
        ...         _ = pathlib.Path(folder, f"{name}-images-idx3-ubyte").write_bytes(images)
        ...         labels = bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 3])
        ...         _ = pathlib.Path(folder, f"{name}-labels-idx1-ubyte").write_bytes(labels)
        ...     train, test = af.problems.read_fashion_mnist(folder)
        >>> train[0].shape, test[1].tolist()
        ((2, 4, 4, 1), [7, 3])
    """
    folder = _folder(folder, "train-images-idx3-ubyte")
    train, test = (_idx_part(folder, name) for name in ("train", "t10k"))
    return train, test


def _folder(folder: str | Path, example: str) -> Path:
    path = check_path("folder", folder)
    if not path.is_dir():
        raise NotADirectoryError(f"{str(folder)!r} is no folder; give the one that holds {example}")
    return path


def _cifar_part(folder: Path, names: tuple[str, ...]) -> Examples:
    records = np.concatenate([_cifar_records(_existing(folder, name, f"{name}.gz")) for name in names])
    planes = records[:, 1:].reshape(-1, CIFAR_COLOURS, CIFAR_SIDE, CIFAR_SIDE)
    return _examples(planes.transpose(0, 2, 3, 1), records[:, 0])


def _cifar_records(path: Path) -> UInt8[np.ndarray, "records bytes"]:
    content = _read(path)
    if not content or len(content) % CIFAR_RECORD:
        raise ValueError(
            f"{str(path)!r} has {len(content)} bytes, which is no whole number of records of {CIFAR_RECORD} bytes; it "
            "is cut short, or not of the binary version (the Python version is a pickle)"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, CIFAR_RECORD)
    _check_classes(records[:, 0], path)
    return records


def _idx_part(folder: Path, part: str) -> Examples:
    paths = [
        _existing(folder, *(f"{part}-{kind}{sign}{idx}-ubyte{ending}" for sign in "-." for ending in ("", ".gz")))
        for kind, idx in (("images", "idx3"), ("labels", "idx1"))
    ]
    images, labels = (_read_idx(path, axes) for path, axes in zip(paths, (3, 1), strict=True))
    if len(images) != len(labels):
        raise ValueError(
            f"{str(paths[0])!r} holds {len(images)} images, but {str(paths[1])!r} {len(labels)} labels; take both from "
            "the same data set"
        )
    _check_classes(labels, paths[1])
    return _examples(images[..., None], labels)


def _read_idx(path: Path, axes: int) -> UInt8[np.ndarray, "..."]:
    content = _read(path)
    if content[:4] != bytes([0, 0, 8, axes]):
        raise ValueError(
            f"{str(path)!r} starts with the bytes {content[:4].hex(' ') or '(none)'}, but an idx file of bytes with "
            f"{axes} axes with 00 00 08 {axes:02x}; is it another file?"
        )
    shape = tuple(np.frombuffer(content[4 : 4 + 4 * axes].ljust(4 * axes, b"\0"), ">u4").tolist())
    expected, found = int(np.prod(shape, dtype=object)), len(content) - 4 - 4 * axes
    if found != expected or not expected:
        raise ValueError(
            f"{str(path)!r} says that it holds {' by '.join(map(str, shape))} bytes, but holds {max(found, 0)}; it is "
            "cut short or damaged: copy it again"
        )
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _existing(folder: Path, *names: str) -> Path:
    """The path of the first file with one of the names that has content, or an `OSError` that says what is there."""
    blanks = []
    for path in (folder / name for name in names):
        if path.is_file() and path.stat().st_size:
            return path
        if path.exists():
            blanks.append(f"{path.name} is {'a folder' if path.is_dir() else 'empty'}")
    present = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    found = f", but {' and '.join(blanks)}" if blanks else f", but: {present}"
    below = next((path for depth in ("*", "*/*") for name in names for path in folder.glob(f"{depth}/{name}")), None)
    advice = "" if below is None or below.is_dir() else f"; {str(below.parent)!r} does: give that folder"
    raise FileNotFoundError(f"{str(folder)!r} holds no {' or '.join(names)}{found}{advice}")


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise OSError(error.errno, f"{str(path)!r} cannot be read: {error.strerror}; check its permissions") from error
    if not content.startswith(GZIP):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}; copy it again") from error


def _check_classes(labels: Integer[np.ndarray, "_"], path: Path) -> None:
    if labels.max() >= CLASSES:
        raise ValueError(
            f"a label in {str(path)!r} is {labels.max()}, but there are {CLASSES} classes, from 0; is it another file?"
        )


def _examples(images: UInt8[np.ndarray, "_ ..."], labels: Integer[np.ndarray, "_"]) -> Examples:
    return jnp.asarray(images, dtype=float) / 255, jnp.asarray(labels, dtype=jnp.int32)
