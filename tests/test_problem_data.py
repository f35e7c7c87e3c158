"""What users pass to problems is checked once, where it comes in: shapes, types, and values where they are concrete."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import adamflow as af
from adamflow import problems
from adamflow.problems.cross_entropy import mean_cross_entropy

EXAMPLES, CLASSES = 12, 3


@pytest.fixture
def images():
    return np.random.default_rng(0).random((EXAMPLES, 8, 8, 1))


@pytest.fixture
def labels():
    return np.arange(EXAMPLES) % CLASSES


# --- formula and identity --------------------------------------------------------------------------------------------


@given(st.integers(-2, 6), st.booleans())
def test_formula_a_label_outside_of_the_classes_is_an_error_or_nan_and_never_a_loss(label, first):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, CLASSES)))
    labels = jnp.array([label, 1] if first else [1, label])
    traced = float(jax.jit(mean_cross_entropy)(logits, labels))
    if 0 <= label < CLASSES:
        expected = -np.mean(np.asarray(jax.nn.log_softmax(logits))[[0, 1], np.asarray(labels)])
        np.testing.assert_allclose([traced, float(mean_cross_entropy(logits, labels))], expected, rtol=1e-13)
        return
    assert np.isnan(traced)
    with pytest.raises(ValueError, match=rf"labels must lie in \[0, 2\], got {label}"):
        mean_cross_entropy(logits, labels)


def test_identity_a_run_on_batches_with_a_label_outside_ends_as_not_finite(images, labels):
    problem = problems.cnn((2,), data=((images, labels), (images, labels)))
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    bad = labels.at[3].set(-1)
    options = dict(batches=lambda n: (images, jnp.where(n < 2, labels, bad)), on_failure="ignore")
    run = af.iterate(af.sgd(0.1), problem.loss, problem.params, 4, **options)
    assert run.outcome.name == "not_finite"


@pytest.mark.parametrize(
    "convert",
    [
        lambda images, labels: (images.astype(np.float32), labels.astype(np.uint8)),
        lambda images, labels: (images.astype(">f8"), labels.astype(">i4")),
        lambda images, labels: (jnp.asarray(images), jnp.asarray(labels)),
        lambda images, labels: [images.tolist(), labels.tolist()],
    ],
    ids=["narrow", "big-endian", "jax", "lists"],
)
@pytest.mark.usefixtures("unchecked")
def test_identity_data_of_any_kind_of_array_give_one_loss(images, labels, convert):
    reference = problems.cnn((2,), data=((images, labels), (images, labels)))
    data = convert(images, labels)
    problem = problems.cnn((2,), data=(data, data))
    np.testing.assert_allclose(problem.loss(problem.params), reference.loss(reference.params), rtol=1e-6)
    assert problem.loss.examples[1].dtype == jnp.int32


# --- failure ---------------------------------------------------------------------------------------------------------

BAD_PARTS = {
    "a column of labels": (lambda x, y: (x, y[:, None]), r"data\[0\]\[1\] .*got shape \(12, 1\); take labels\[:, 0\]"),
    "one-hot": (lambda x, y: (x, np.eye(3)[y]), r"integer label .*float64; from one-hot labels take labels\.argmax"),
    "one-hot integers": (lambda x, y: (x, np.eye(3, dtype=int)[y]), r"got shape \(12, 3\); take labels\.argmax"),
    "floats": (lambda x, y: (x, y.astype(float)), r"got float64; convert them with labels\.astype\(int\)"),
    "negative": (lambda x, y: (x, y - 1), r"data\[0\]\[1\] must lie in \[0, .*got -1; labels count the classes"),
    "beyond int32": (lambda x, y: (x, y + 2**32), r"data\[0\]\[1\] must lie in \[0, 2147483647\], got 4294967296"),
    "too few": (lambda x, y: (x, y[:-1]), r"each of the 12 examples, shape \(12,\), got shape \(11,\)"),
    "too many": (lambda x, y: (x[:-1], y), r"each of the 11 examples, shape \(11,\), got shape \(12,\)"),
    "bytes": (lambda x, y: ((255 * x).astype(np.uint8), y), r"data\[0\]\[0\] .*got uint8; scale them .*images / 255"),
    "complex": (lambda x, y: (x + 0j, y), r"data\[0\]\[0\] must .*got .*complex128"),
    "NaN": (lambda x, y: (np.where(x == x[4, 1, 1], np.nan, x), y), r"must be finite, got nan in image 4"),
    "no colours": (
        lambda x, y: (x[..., 0], y),
        r"got shape \(12, 8, 8\); add the axis of colours with images",
    ),
    "no images": (lambda x, y: (x[:0], y[:0]), r"none of which is 0, got shape \(0, 8, 8, 1\)"),
    "ragged": (lambda x, y: (x, [[1], [1, 2]]), r"data\[0\]\[1\] must be an array of numbers, .*unequal length"),
    "text": (lambda x, y: (x, ["a"] * 12), r"data\[0\]\[1\] must be an array of numbers, got list of length 12"),
    "images alone": (lambda x, y: x, r"data\[0\] must be a pair \(images, labels\), got an array of shape"),
}


@pytest.mark.parametrize("case", BAD_PARTS)
@pytest.mark.usefixtures("unchecked")
def test_failure_bad_data_of_cnn_are_named(images, labels, case):
    spoil, message = BAD_PARTS[case]
    with pytest.raises(ValueError, match=message):
        problems.cnn((2,), data=(spoil(images, labels), (images, labels)))
    with pytest.raises(ValueError, match=message.replace(r"data\[0\]", r"data\[1\]")):
        problems.cnn((2,), data=((images, labels), spoil(images, labels)))


@pytest.mark.usefixtures("unchecked")
def test_failure_data_that_are_no_pair_or_of_two_sizes(images, labels):
    with pytest.raises(ValueError, match=r"data must be two pairs, .*got tuple of length 3"):
        problems.cnn((2,), data=(images, labels, images))
    with pytest.raises(ValueError, match=r"data\[1\] must hold images of the shape of data\[0\], \(8, 8, 1\), got \(6"):
        problems.cnn((2,), data=((images, labels), (images[:, :6, :6], labels)))
    with pytest.raises(ValueError, match=r"data\[0\]\[1\] must be concrete"):
        jax.jit(lambda y: problems.cnn((2,), data=((images, y), (images, y))).params)(jnp.asarray(labels))


@pytest.mark.usefixtures("unchecked")
def test_failure_pixels_like_bytes_and_colours_that_come_first_warn_the_caller(images, labels):
    colours_first = images.reshape(-1, 3, 8, 8)
    for bad, count, words in (
        (200 * images, 12, r"data\[[01]\]\[0\] has pixels up to 1\d\d.*divide bytes by 255"),
        (colours_first, 4, r"data\[[01]\]\[0\] has shape \(4, 3, 8, 8\), .*3 pixels high and have 8 colours"),
    ):
        part = bad, labels[:count]
        with pytest.warns(UserWarning, match=words) as caught:
            problems.cnn((2,), data=(part, part))
        assert len(caught) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problems.cnn((2,), data=((3 * (images - 0.5), labels), (images, labels)))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (lambda x, y: (x, y[:-1]), r"batch\[1\] must hold one label for each of the 12 examples"),
        (lambda x, y: (x, y + 5), r"labels must lie in \[0, 2\], got 5"),
        (lambda x, y: (x, y * 1.0), r"batch\[1\] must hold the integer label"),
        (
            lambda x, y: (x[:, :4], y),
            r"batch\[0\] must hold at least one example of shape \(8, 8, 1\), .*\(12, 4",
        ),
        (lambda x, y: ((x * 9).astype(int), y), r"batch\[0\] must hold real floating-point numbers, got int64"),
        (lambda x, y: x, r"batch must be a pair \(features, labels\), got ArrayImpl"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_failure_bad_batches_are_named(images, labels, batch, message):
    problem = problems.cnn((2,), data=((images, labels), (images, labels)))
    with pytest.raises(ValueError, match=message):
        problem.loss(problem.params, batch(jnp.asarray(images), jnp.asarray(labels)))


@pytest.mark.usefixtures("unchecked")
def test_failure_noise_and_windows_of_the_wrong_kind():
    rayleigh = problems.rayleigh(3)
    with pytest.raises(ValueError, match=r"at least one noise vector, shape \(size, 3\), got shape \(3,\)"):
        rayleigh.loss(rayleigh.params, rayleigh.params)
    text = problems.char_transformer(layers=1, heads=1, width=4, context=3, batch_size=2, validation_size=1)
    vocabulary = text.params["head"].shape[1]
    windows = text.batches(2)(0)
    with pytest.raises(ValueError, match=rf"tokens of a batch must lie in \[0, {vocabulary - 1}\], got {vocabulary}"):
        text.loss(text.params, windows.at[0, 0].set(vocabulary))
    for outside in (vocabulary, -1):
        # The first token of a window is the only one that is no target.
        assert np.isnan(eqx.filter_jit(text.loss)(text.params, windows.at[0, 0].set(outside)))
    with pytest.raises(ValueError, match=r"batch must hold tokens, integers below \d+, got float64"):
        text.loss(text.params, windows * 1.0)
    with pytest.raises(ValueError, match=r"at least one window, .*got shape \(4,\)"):
        text.loss(text.params, windows[0])


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((2, 3)), np.array([0]), r"labels must have one entry .*shape \(2,\) .*got shape \(1,\)"),
        (np.zeros((2, 3)), np.array([[0], [1]]), r"got shape \(2, 1\)"),
        (np.zeros((2, 3)), np.array([0.0, 1.0]), "labels must be integers, got float64; from one-hot"),
        (np.zeros((2, 3), int), np.array([0, 1]), "logits must be real floating-point numbers, got int64"),
        (np.zeros(()), np.array(0), "logits must have an axis of classes"),
        (np.zeros(3), 5, r"labels must lie in \[0, 2\], got 5"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_failure_cross_entropy_of_labels_that_do_not_fit(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        mean_cross_entropy(logits, labels)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: problems.quadratic([1j]), r"curvatures must be a real number, got 1j"),
        (lambda: problems.quadratic(["1"]), "curvatures must be a real number"),
        (lambda: problems.quadratic([[1.0], [1.0, 2.0]]), "curvatures must be a real number"),
        (lambda: problems.quadratic(None), "curvatures must be a real number, got None"),
        (lambda: problems.quadratic([2**70]), "curvatures must be a real number"),
        (lambda: problems.quartic(coupling=[1.0, 2.0]), r"coupling must be one number, got shape \(2,\)"),
        (lambda: problems.monomial(2, start=jax.random.key(0)), "start must be a real number"),
        (lambda: problems.monomial(2, start=True), "start must be a real number, got True"),
        (lambda: problems.rayleigh(spread=[1.0]), r"spread must be one number, got shape \(1,\)"),
        (lambda: problems.rayleigh(spread=-1.0), r"spread must lie in \[0, inf\), got -1.0"),
        (lambda: problems.logistic(test_fraction=np.array([0.1, 0.2])), "test_fraction must be one number"),
        (lambda: problems.mlp(8), "widths must be a sequence of whole numbers, one for each hidden layer, got 8"),
        (lambda: problems.cnn("84"), "channels must be a sequence of whole numbers"),
        (lambda: problems.chain(2**63), r"dimension must be below 2\*\*31, got about 2\*\*63"),
        (lambda: problems.monomial(10**400), r"power must be below 2\*\*31"),
        (lambda: problems.mlp((4,), normalization=np.array([])), "normalization must be one of 'layer', 'batch', got"),
        (lambda: problems.logistic().batches(2, seed=2**40), r"seed must be below 2\*\*32"),
        (lambda: af.Problem("p", jnp.ones(2), 3), "loss must be a function of the parameters, got int"),
        (lambda: af.Problem("p", jnp.ones(2), jnp.sum, {"a": 1}), "metrics must be a dict of functions"),
        (lambda: af.Problem("p", jnp.ones(2), jnp.sum, scale_invariant=("w",)), r"leaves of params, \[''\], got 'w'"),
        (lambda: af.Problem("p", jnp.ones(2), jnp.sum, sampler=1), "sampler must be a function"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_failure_numbers_and_records_that_are_none(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_failure_a_number_that_is_infinite_in_single_precision():
    with jax.enable_x64(False), pytest.raises(ValueError, match=r"curvatures must be finite in float32, got 1e\+300"):
        problems.quadratic(np.array([1e300]))
