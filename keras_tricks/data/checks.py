"""Checks for `drop_corrupt`: what an element of a dataset has to satisfy.

`part` names the part of an element that is checked: an index, a dict's key, a named tuple's field, or a function from
an element to it, which gets a tuple's parts as separate arguments, as in `Dataset.map`.
"""

import dataclasses
from collections.abc import Callable

from keras_tricks._arguments import check_count, check_number
from keras_tricks._labels.elements import called_with, flat_values, label_of, picked, require_tensorflow, tf

# The errors that a corrupt element causes, not those of a machine in trouble or of an abandoned iterator.
_FAILURES = tf and (
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.OutOfRangeError,
    tf.errors.DataLossError,
    tf.errors.FailedPreconditionError,
    tf.errors.UnimplementedError,
    tf.errors.UnknownError,
)


@dataclasses.dataclass(frozen=True)
class Check:
    """One condition on an element.

    Attributes:
        reason: In words, why an element that does not satisfy it is dropped.
        test: A function from an element to a boolean scalar tensor. Raises where no element can ever satisfy it.
    """

    reason: str
    test: Callable


def finite(part=None):
    """No NaN and no infinity, in `part` or, by default, in any floating-point or complex part."""
    require_tensorflow("finite")

    def test(element):
        parts = tf.nest.flatten(element if part is None else picked(element, part))
        inexact = [flat_values(p) for p in parts if p.dtype.is_floating or p.dtype.is_complex]
        if not inexact:
            raise TypeError(
                "`finite` checks floating-point parts, but there are none among "
                f"{[p.dtype.name for p in parts]}. Leave it out, or place it after the conversion to floats."
            )
        # x - x is 0 for every finite x, even of a complex dtype, which `is_finite` refuses.
        return tf.reduce_all([tf.reduce_all(tf.equal(p - p, 0)) for p in inexact])

    return Check(_named(part, "not finite"), test)


def valid_label(num_classes, label=None):
    """Integer labels in `0 .. num_classes - 1`. `label` names them as a `part`; by default, the second part."""
    require_tensorflow("valid_label")
    num_classes = check_count("num_classes", num_classes)

    def test(element):
        labels = flat_values(label_of(element, label))
        if not labels.dtype.is_integer:
            raise TypeError(f"`valid_label` checks integer labels. Received: labels of dtype {labels.dtype.name}")
        return tf.reduce_all((labels >= 0) & (tf.cast(labels, tf.int64) < num_classes))

    return Check(f"label outside 0..{num_classes - 1}", test)


def within(low, high, part):
    """All numbers of `part` in `low .. high`, both included. NaN is not."""
    require_tensorflow("within")
    if check_number("low", low, finite=False) > check_number("high", high, finite=False):
        raise ValueError(f"`low` must be at most `high`. Received: low={low}, high={high}")

    def test(element):
        x = tf.cast(flat_values(picked(element, part)), tf.float64)
        return tf.reduce_all((x >= low) & (x <= high))

    return Check(_named(part, f"outside {low}..{high}"), test)


def shape(expected, part):
    """`part` has the shape `expected`, in which `None` stands for any size."""
    require_tensorflow("shape")
    expected = tuple(expected)

    def test(element):
        return _has_shape(picked(element, part), expected, "shape")

    return Check(_named(part, f"of a shape other than {expected}"), test)


def dtype(expected, part):
    """`part` has the dtype `expected`; all elements of a dataset share one, so this fails at once or never."""
    require_tensorflow("dtype")
    expected = tf.as_dtype(expected)

    def test(element):
        found = picked(element, part).dtype
        if found != expected:
            raise TypeError(
                f"All elements have dtype {found.name} in part {part!r}, where {expected.name} is expected. Convert "
                "them by `dataset.map`."
            )
        return tf.constant(True)

    return Check(_named(part, f"not {expected.name}"), test)


def min_length(length, part):
    """A string of at least `length` characters without surrounding white space, or a sequence of as many entries."""
    require_tensorflow("min_length")
    length = check_count("length", length)

    def test(element):
        x = picked(element, part)
        if x.dtype == tf.string:
            lengths = tf.strings.length(tf.strings.strip(flat_values(x)), unit="UTF8_CHAR")
            return tf.reduce_all(lengths >= length)
        if x.shape.rank == 0:
            raise TypeError(f"`min_length` checks strings and sequences. Received: part {part!r} with shape ()")
        entries = x.dense_shape[0] if isinstance(x, tf.SparseTensor) else tf.shape(x)[0]
        return tf.cast(entries, tf.int64) >= length

    return Check(_named(part, f"shorter than {length}"), test)


def image(part, expected_shape=(None, None, None)):
    """`part` is the bytes of a JPEG, PNG, GIF or BMP image that decodes, whole, to `expected_shape`.

    That is (height, width, channels), in which `None` stands for any size. The image is actually decoded, and then
    discarded.
    """
    require_tensorflow("image")
    expected_shape = tuple(expected_shape)

    def test(element):
        encoded = picked(element, part)
        if encoded.dtype != tf.string or encoded.shape.rank != 0:
            raise TypeError(
                f"`image` checks encoded images, each one string of bytes. Received: {encoded.dtype.name} of shape "
                f"{encoded.shape} in part {part!r}"
            )

        def decoded_well(encoded):
            decoded = tf.io.decode_image(encoded, expand_animations=False)
            return decoded, _has_shape(decoded, expected_shape, "expected_shape")

        return _succeeds(decoded_well, encoded)

    wrong = "" if expected_shape == (None, None, None) else f" to {expected_shape}"
    return Check(_named(part, f"does not decode{wrong}"), test)


def computable(function):
    """`function` of the element, TensorFlow code as in `Dataset.map`, raises no error: for parsers and decoders."""
    require_tensorflow("computable")
    if not callable(function):
        raise TypeError(f"`function` must be a function from an element. Received: {function!r}")

    def test(element):
        def ran(element):
            return called_with(function, element), tf.constant(True)

        return _succeeds(ran, element)

    return Check(f"{getattr(function, '__name__', function)} fails", test)


def _succeeds(function, element):
    """Whether `function` of the element, which gives a result and a boolean, is true and raises no error.

    Called from Python, since a graph cannot catch an error; a dataset within the graph could, but takes 13 ms per call.
    """
    flat = tf.nest.flatten(element, expand_composites=True)
    # The whole result is an output: parts that nothing uses would not be computed, and so would never fail.
    traced = tf.function(
        lambda *parts: function(tf.nest.pack_sequence_as(element, parts, expand_composites=True)),
        input_signature=[tf.TensorSpec(t.shape, t.dtype) for t in flat],
        autograph=False,
    )
    with tf.init_scope():
        traced = traced.get_concrete_function()  # what fails for every element is reported now

    def attempt(*parts):
        try:
            return traced(*parts)[-1]
        except _FAILURES:
            return tf.constant(False)

    return tf.ensure_shape(tf.py_function(attempt, flat, tf.bool), ())


def _has_shape(x, expected, argument):
    found = x.dense_shape if isinstance(x, tf.SparseTensor) else tf.shape(x)
    if isinstance(x, tf.RaggedTensor):
        raise TypeError(f"A ragged part has no one shape to compare with `{argument}`={expected}.")
    if not x.shape.is_compatible_with(expected):
        raise ValueError(f"No element can have shape {expected}: all have {x.shape}. Is `{argument}` right?")
    if x.shape.rank is None:
        # Sizes can be compared only if the rank is right, so they have to wait for its check.
        same_rank = tf.equal(tf.size(found), len(expected))
        return tf.cond(same_rank, lambda: _has_sizes(found, expected), lambda: False)
    return _has_sizes(found, expected)


def _has_sizes(found, expected):
    same = [tf.equal(tf.cast(found[axis], tf.int64), size) for axis, size in enumerate(expected) if size is not None]
    return tf.reduce_all(same) if same else tf.constant(True)


def _named(part, complaint):
    if part is None:
        return complaint
    return f"{getattr(part, '__name__', part)}: {complaint}" if callable(part) else f"{part!r}: {complaint}"
