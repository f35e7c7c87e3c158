"""Image files: what was written is read, networks train on it, and damaged files are told from good ones."""

import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamflow as af

RECORD = 1 + 3 * 32 * 32


@pytest.fixture
def cifar(tmp_path):
    """A folder in CIFAR-10's binary format with 4 images per file, and what is in it: labels and images by file."""
    generator = np.random.default_rng(0)
    content = {}
    for name in [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]:
        labels, images = generator.integers(0, 10, 4), generator.integers(0, 256, (4, 32, 32, 3))
        records = [
            bytes([label]) + np.moveaxis(image, -1, 0).astype(np.uint8).tobytes()
            for label, image in zip(labels, images, strict=True)
        ]
        (tmp_path / name).write_bytes(b"".join(records))
        content[name] = labels, images
    return tmp_path, content


def idx(array):
    """The bytes of an idx file."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def fashion(tmp_path):
    """A folder in Fashion-MNIST's format with 6 train images, compressed, and 3 test images, not; and their content."""
    generator = np.random.default_rng(1)
    parts = []
    for name, count in (("train", 6), ("t10k", 3)):
        images, labels = generator.integers(0, 256, (count, 28, 28)), generator.integers(0, 10, count)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            if name == "train":
                (tmp_path / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (tmp_path / f"{name}-{kind}-ubyte").write_bytes(idx(array))
        parts.append((images, labels))
    return tmp_path, parts


# --- identity --------------------------------------------------------------------------------------------------------


def test_identity_cifar10_is_read_as_it_was_written(cifar):
    folder, content = cifar
    train, test = af.problems.read_cifar10(folder)
    *batches, last = content.values()
    for (images, labels), parts in ((train, batches), (test, [last])):
        np.testing.assert_array_equal(labels, np.concatenate([part[0] for part in parts]))
        np.testing.assert_allclose(images, np.concatenate([part[1] for part in parts]) / 255, rtol=1e-15)


def test_identity_fashion_mnist_is_read_as_it_was_written(fashion):
    folder, parts = fashion
    for (images, labels), written in zip(af.problems.read_fashion_mnist(folder), parts, strict=True):
        np.testing.assert_allclose(images[..., 0], written[0] / 255, rtol=1e-15)
        np.testing.assert_array_equal(labels, written[1])


@pytest.mark.parametrize("data", ["cifar", "fashion"])
def test_identity_networks_take_what_was_read(data, request):
    folder, _ = request.getfixturevalue(data)
    read = af.problems.read_cifar10 if data == "cifar" else af.problems.read_fashion_mnist
    problem = af.problems.cnn((2,), data=read(folder))
    # Shapes alone: nothing is compiled.
    batch = jax.eval_shape(problem.batches(2), jnp.zeros((), int))
    for function, more in ((problem.loss, ()), (problem.loss, (batch,)), (problem.metrics["test_accuracy"], ())):
        assert jax.eval_shape(function, problem.params, *more).shape == ()


@pytest.mark.parametrize("sign", "-.")
@pytest.mark.parametrize("blank", ["nothing", "folder", "empty"])
def test_identity_mirrors_names_are_read_and_blank_ones_hide_no_file(fashion, sign, blank):
    folder, parts = fashion
    for path in [path for path in folder.iterdir() if path.is_file()]:
        name = path.name.replace("-idx", f"{sign}idx")
        path.rename(folder / name.removesuffix(".gz")).rename(folder / name)
        for other in {name.removesuffix(".gz"), path.name} - {name}:
            if blank == "folder":
                (folder / other).mkdir()
            elif blank == "empty":
                (folder / other).touch()
    for (images, labels), written in zip(af.problems.read_fashion_mnist(folder), parts, strict=True):
        np.testing.assert_allclose(images[..., 0], written[0] / 255, rtol=1e-15)
        np.testing.assert_array_equal(labels, written[1])


def test_identity_compressed_cifar10_is_read_as_it_was_written(cifar):
    folder, content = cifar
    for path in folder.glob("*.bin"):
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    np.testing.assert_array_equal(af.problems.read_cifar10(folder)[1][1], content["test_batch.bin"][0])


# --- failure ---------------------------------------------------------------------------------------------------------


def test_failure_cifar10_missing_damaged_or_another_file(cifar):
    folder, _ = cifar
    with pytest.raises(NotADirectoryError, match=r"nowhere' is no folder; give the one that holds test_batch\.bin"):
        af.problems.read_cifar10(folder / "nowhere")
    file = folder / "data_batch_3.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"data_batch_3\.bin' has {4 * RECORD - 1} bytes, .* records of {RECORD}"):
        af.problems.read_cifar10(folder)
    file.write_bytes(bytes([10]) * RECORD)
    with pytest.raises(ValueError, match=r"a label in .*data_batch_3\.bin' is 10, but there are 10 classes"):
        af.problems.read_cifar10(folder)
    file.unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"holds no data_batch_3\.bin or data_batch_3\.bin\.gz, but: data_batch_1",
    ):
        af.problems.read_cifar10(folder)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t10k-labels-idx1-ubyte", idx(np.zeros(4)), "holds 3 images, but .* 4 labels; take both from the same"),
        (
            "t10k-labels-idx1-ubyte",
            idx(np.zeros((3, 28, 28))),
            "starts with the bytes 00 00 08 03, .* with 00 00 08 01",
        ),
        ("t10k-labels-idx1-ubyte", idx(np.full(3, 11)), "is 11, but there are 10 classes"),
        (
            "t10k-images-idx3-ubyte",
            idx(np.zeros((3, 28, 28)))[:-5],
            "holds 3 by 28 by 28 bytes, but holds 2347; it is cut",
        ),
        ("t10k-images-idx3-ubyte", idx(np.zeros((3, 28, 28)))[:6], "cut short or damaged"),
        ("train-images-idx3-ubyte.gz", gzip.compress(bytes(99))[:-9], "train-images.* is damaged: .*; copy it again"),
    ],
    ids=["labels of others", "images as labels", "eleven classes", "cut images", "cut header", "cut gzip"],
)
def test_failure_fashion_mnist_damaged_or_another_file(fashion, name, content, words):
    folder, _ = fashion
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        af.problems.read_fashion_mnist(folder)


def test_failure_fashion_mnist_missing_file(fashion):
    folder, _ = fashion
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    words = r"holds no train-labels-idx1-ubyte or train-labels-idx1-ubyte\.gz or .*, but: t10k-images-idx3-ubyte, "
    with pytest.raises(FileNotFoundError, match=words):
        af.problems.read_fashion_mnist(folder)
    (folder / "train-labels-idx1-ubyte").touch()
    (folder / "train-labels.idx1-ubyte").mkdir()
    words = r"but train-labels-idx1-ubyte is empty and train-labels\.idx1-ubyte is a folder"
    with pytest.raises(FileNotFoundError, match=words):
        af.problems.read_fashion_mnist(folder)


def test_failure_the_folder_above_names_the_one_that_holds_the_files(fashion):
    folder, _ = fashion
    inner = folder / "FashionMNIST" / "raw"
    inner.mkdir(parents=True)
    for path in folder.glob("t*"):
        path.rename(inner / path.name)
    with pytest.raises(FileNotFoundError, match=r"but: FashionMNIST; '.*FashionMNIST/raw' does: give that folder"):
        af.problems.read_fashion_mnist(folder)


@pytest.mark.parametrize("read", [af.problems.read_cifar10, af.problems.read_fashion_mnist])
@pytest.mark.parametrize("folder", ["", None, 3, b"data", "a\0b"])
@pytest.mark.usefixtures("unchecked")
def test_failure_folders_that_are_no_path(read, folder):
    with pytest.raises(ValueError, match="folder must be a path, a non-empty string or"):
        read(folder)
