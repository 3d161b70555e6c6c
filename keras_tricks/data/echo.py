"""Data echoing: use each example several times when reading is slower than training.

    element i is repeated floor((i + 1) · factor) - floor(i · factor) times; n elements become floor(n · factor)

Choi et al., 2019, arXiv:1907.05550. With R = upstream seconds / step seconds for the same data, a factor up to R costs
no time.
"""

import fractions
import math

from keras_tricks._arguments import check_count, check_number
from keras_tricks._labels.elements import require_dataset, require_tensorflow, tf

# Elements up to this many bytes are copied, larger ones repeated by reference: the two cost the same at 12 to 24 kB.
_SMALL = 8192
_MOST = 10**6  # with more, positions times the factor's numerator would leave int64 in a long pass


def echo(factor, shuffle_buffer=None, seed=None):
    """Repeats every element of a dataset, for `dataset.apply(echo(2))`.

    Its place decides what is repeated. Between reading and random augmentation, each repeat is augmented differently
    (the most useful form); after augmentation, equal examples repeat; after `batch`, whole batches do. Put a `prefetch`
    of at least `factor` elements after it, and never echo validation data. Epochs become `factor` times longer.

    Works on elements of any structure, keeps static shapes, is deterministic, and keeps the cardinality known:
    `floor(n * factor)` for `n` elements.

    Args:
        factor: How often to use each element, from 1 to a million. Fractions repeat in a fixed pattern: 1.5 gives 1,
            2, 1, 2, and so on. It is taken as the decimal it is written as, so 100 elements at 1.15 become 115. A
            factor of 1 leaves the dataset as it is.
        shuffle_buffer: If given, shuffle the repeats with a buffer of this many elements, so that equal ones do not
            follow each other. A buffer of `factor * batch_size` or more spreads them over batches. It holds that many
            elements in memory. Defaults to `None`.
        seed: Seed of that shuffle, an int. Defaults to `None`.

    Returns:
        A function from `tf.data.Dataset` to `tf.data.Dataset`.

    Raises:
        TypeError: If an argument is not a number, or what it is applied to is not a dataset.
        ValueError: If `factor` is out of range or not finite, `shuffle_buffer` below 1, or `seed` negative.
        RuntimeError: On a backend other than TensorFlow.

    Example:
    >>> import tensorflow as tf, keras_tricks as kt
    >>> [int(x) for x in tf.data.Dataset.range(4).apply(kt.data.echo(1.5))]
    [0, 1, 1, 2, 3, 3]

    Reference:
        Dami Choi, Alexandre Passos, Christopher J. Shallue, George E. Dahl, "Faster Neural Network Training with Data
        Echoing", 2019, arXiv:1907.05550.
    """
    require_tensorflow("echo")
    check_number("factor", factor, at_least=1, at_most=_MOST, hint=" To use fewer examples, use `dataset.take`.")
    shuffle_buffer = None if shuffle_buffer is None else check_count("shuffle_buffer", shuffle_buffer)
    seed = None if seed is None else check_count("seed", seed, at_least=0)
    exact = fractions.Fraction(str(factor)).limit_denominator(10**6)

    def transform(dataset):
        require_dataset("echo", dataset)
        cardinality = int(dataset.cardinality())
        if exact > 1:
            dataset = _repeat_elements(dataset, exact)
        if shuffle_buffer is not None:
            dataset = dataset.shuffle(shuffle_buffer, seed=seed)
        if cardinality not in (tf.data.UNKNOWN_CARDINALITY, tf.data.INFINITE_CARDINALITY):
            cardinality = cardinality * exact.numerator // exact.denominator
        if int(dataset.cardinality()) != cardinality:
            dataset = dataset.apply(tf.data.experimental.assert_cardinality(cardinality))
        return dataset

    return transform


def _repeat_elements(dataset, factor):
    is_tuple = type(dataset.element_spec) is tuple  # flat_map and map pass exactly those as separate arguments

    if factor.denominator == 1 and _are_small(dataset.element_spec, factor.numerator):

        @tf.autograph.experimental.do_not_convert
        def stacked(*parts):
            return tf.nest.map_structure(lambda t: tf.stack([t] * factor.numerator), parts if is_tuple else parts[0])

        return dataset.map(stacked).unbatch()

    if factor.denominator == 1:

        @tf.autograph.experimental.do_not_convert
        def all_times(*parts):
            return tf.data.Dataset.from_tensors(parts if is_tuple else parts[0]).repeat(factor.numerator)

        return dataset.flat_map(all_times)

    @tf.autograph.experimental.do_not_convert
    def some(index, element):
        out_before, out_after = (tf.math.floordiv((index + k) * factor.numerator, factor.denominator) for k in (0, 1))
        return tf.data.Dataset.from_tensors(element).repeat(out_after - out_before)

    return dataset.enumerate().flat_map(some)


def _are_small(element_spec, copies):
    """Whether elements are dense numbers of a known size that is small, for one element and for all of its copies."""
    specs = tf.nest.flatten(element_spec)
    if not all(type(s) is tf.TensorSpec and s.shape.is_fully_defined() and s.dtype.size for s in specs):
        return False
    size = sum(math.prod(s.shape) * s.dtype.size for s in specs)
    return size <= _SMALL and size * copies <= 8 * _SMALL
