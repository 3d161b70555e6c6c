import numpy as np
import pytest
import tensorflow as tf

import keras_tricks as kt

checks = kt.data.checks


def dropped_by(check, *elements):
    """The positions that the check drops, of elements that may differ in shape."""
    sample = tf.nest.map_structure(tf.convert_to_tensor, elements[0])
    spec = tf.nest.map_structure(lambda t: tf.TensorSpec([None] * t.shape.rank, t.dtype), sample)
    clean = kt.data.drop_corrupt(check)
    dataset = tf.data.Dataset.from_generator(lambda: iter([*elements]), output_signature=spec)
    list(dataset.apply(clean))
    return next(iter(clean.positions.values()))


def images():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3)).astype("uint8")
    jpeg, png = tf.io.encode_jpeg(pixels).numpy(), tf.io.encode_png(pixels).numpy()
    grey = tf.io.encode_png(pixels[..., :1]).numpy()
    broken = bytearray(png)
    broken[len(png) // 2] ^= 255
    return jpeg, png, jpeg[: len(jpeg) // 2], png[:60], b"", b"no image", bytes(broken), grey


def test_images_are_really_decoded():
    assert dropped_by(checks.image(lambda x: x), *images()) == [2, 3, 4, 5, 6]
    assert dropped_by(checks.image(lambda x: x, (None, 30, 3)), *images()) == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("check", "elements", "dropped"),
    [
        (lambda: checks.finite(), [1.0, np.nan, np.inf, -np.inf, 3e38], [1, 2, 3]),
        (lambda: checks.finite(), [1 + 1j, complex(0, np.nan), complex(np.inf, 0)], [1, 2]),
        (lambda: checks.finite("a"), [{"a": 1.0, "b": np.nan}, {"a": np.nan, "b": 1.0}], [1]),
        (lambda: checks.valid_label(3), [(0.0, 0), (0.0, 2), (0.0, 3), (0.0, -1)], [2, 3]),
        (lambda: checks.valid_label(3, "y"), [{"y": np.array([0, 1])}, {"y": np.array([2, 3])}], [1]),
        (lambda: checks.within(0, 1, 0), [(0.0, 1), (1.0, 1), (1.1, 1), (-0.1, 1), (np.nan, 1)], [2, 3, 4]),
        (lambda: checks.shape((None, 2), 0), [(np.ones((1, 2)), 0), (np.ones((2, 2)), 0), (np.ones((1, 1)), 0)], [2]),
        (lambda: checks.min_length(2, 0), [("ab", 0), (" a ", 0), ("", 0), ("äö", 0)], [1, 2]),
        (lambda: checks.min_length(2, 0), [(np.ones(2), 0), (np.ones(1), 0), (np.ones(0), 0)], [1, 2]),
        (lambda: checks.computable(lambda x: tf.strings.to_number(x)), ["1.5", "x", "", "-2"], [1, 2]),
    ],
    ids=["float", "complex", "one-part", "label", "labels", "within", "shape", "text", "sequence", "computable"],
)
def test_each_check_drops_what_it_says(check, elements, dropped):
    assert dropped_by(check(), *elements) == dropped


def test_a_shape_of_unknown_rank_is_checked_too():
    shapes = [tf.zeros((2, 3)), tf.zeros(3), tf.zeros((2, 2))]
    dataset = tf.data.Dataset.from_generator(lambda: iter(shapes), output_signature=tf.TensorSpec(None, tf.float32))
    clean = kt.data.drop_corrupt(checks.shape((None, 3), lambda x: x))
    assert [t.shape for t in dataset.apply(clean)] == [(2, 3)]


def drop(check):
    examples = np.zeros((4, 3), "float32"), np.arange(4)
    return tf.data.Dataset.from_tensor_slices(examples).apply(kt.data.drop_corrupt(check))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: checks.valid_label(0), ValueError, "num_classes"),
        (lambda: checks.within(2, 1, 0), ValueError, "at most"),
        (lambda: checks.min_length(0, 0), ValueError, "at least 1"),
        (lambda: checks.computable(3), TypeError, "function"),
        (lambda: drop(checks.finite("image")), ValueError, "part='image'"),
        (lambda: drop(checks.finite(1)), TypeError, "none among"),
        (lambda: drop(checks.valid_label(3, 0)), TypeError, "integer labels"),
        (lambda: drop(checks.shape((4,), 0)), ValueError, "No element can have shape"),
        (lambda: drop(checks.dtype("int8", 0)), TypeError, "float32.*int8 is expected"),
        (lambda: drop(checks.min_length(1, 1)), TypeError, "strings and sequences"),
        (lambda: drop(checks.image(0)), TypeError, "encoded images"),
    ],
)
def test_what_cannot_be_checked_is_said_at_construction(make, error, message):
    with pytest.raises(error, match=message):
        make()
