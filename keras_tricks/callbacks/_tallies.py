"""Counts of values by logarithmic bin, in variables that a compiled step can add to.

bins: the sign times 10^(k/5) for 1e-12 <= |x| < 1e4; smaller and larger values go to the end bins;
      exact zeros, NaN and infinities are counted apart

All tensors of a kind are counted together, with a row for each in two variables. Counting them one by one would make
the graph of a deep model several times as large, and lengthen the time until the first step accordingly.
"""

import math

import keras
import numpy as np
from keras import ops

# Values of gradients span decades, so bins are equal on a logarithmic scale, mirrored at zero.
LOWEST_EXPONENT, HIGHEST_EXPONENT, BINS_A_DECADE = -12, 4, 5
BINS = (HIGHEST_EXPONENT - LOWEST_EXPONENT) * BINS_A_DECADE  # of one sign
ZERO, NAN, INFINITE = BINS, 2 * BINS + 1, 2 * BINS + 2
SLOTS = 2 * BINS + 3
NO_MOMENTS = np.array([np.inf, -np.inf, 0, 0])  # minimum, maximum, sum and sum of squares of the finite values

# Tensors are cut into rows of this length, so that few numbers per tensor are left to add up.
WIDTH = 256
# At most this many values are counted together, which bounds the memory that this takes.
AT_ONCE = 2**22
UNKNOWN_SIZE = AT_ONCE // 32


class Tallies:
    """Counts and moments of `number` tensors, which are the same on every replica."""

    def __init__(self, number, count):
        self.number, self.count = number, count
        self.starts = [np.zeros((number, SLOTS), "int64"), np.tile(NO_MOMENTS, (number, 1))]
        self.variables = [
            keras.Variable(start, dtype=start.dtype.name, trainable=False, name=name)
            for start, name in zip(self.starts, ("histograms_counts", "histograms_moments"), strict=True)
        ]

    def add_if(self, predicate, values, positions):
        def add():
            counts, moments = tally(values, positions, self.number, self.count)
            mine = self.variables
            mine[0].assign(mine[0] + counts)
            mine[1].assign(merged(mine[1].value, moments))

        ops.cond(predicate, add, lambda: None)

    def take(self):
        """The counts and moments as arrays. The counting starts over."""
        values = [ops.convert_to_numpy(v) for v in self.variables]
        self.reset()
        return values

    def reset(self):
        for v, start in zip(self.variables, self.starts, strict=True):
            v.assign(start)


class LocalTallies:
    """Counts of layers' outputs, of which every replica has its own part; `take` puts the parts together."""

    def __init__(self, strategy, channels, count):
        import tensorflow as tf

        def local(initial):
            # Not a Keras variable: `jit` and `Recompute` run layers in a scope that would keep what is assigned.
            return tf.Variable(
                initial,
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.SUM,
            )

        self.strategy = strategy
        self.channels = channels
        self.count = count
        self.starts = [
            np.zeros((len(channels), SLOTS), "int64"),
            np.tile(NO_MOMENTS, (len(channels), 1)),
            np.zeros((len(channels), 2), "float32"),  # saturated units, and units
            np.zeros(sum(channels), "bool"),  # of each layer in turn: the channels that were not 0 for some example
        ]
        with strategy.scope():
            self.variables = [local(value) for value in self.starts]

    def add_if(self, predicate, values, positions, saturated, alive):
        """`saturated` and `alive` hold what the layer of each of the values adds to those counts, or None."""
        import tensorflow as tf

        def add():
            counts, moments = tally(values, positions, len(self.channels), self.count)
            mine = self.variables
            mine[0].assign_add(counts)
            mine[1].assign(merged(mine[1].read_value(), moments))
            units = [(p, s) for p, s in zip(positions, saturated, strict=True) if s is not None]
            if units:
                mine[2].assign_add(
                    tf.math.unsorted_segment_sum(
                        tf.stack([s for _, s in units]), [p for p, _ in units], len(self.channels)
                    )
                )
            seen = [np.zeros(n, "bool") for n in self.channels]
            for p, channels in zip(positions, alive, strict=True):
                if channels is not None:
                    seen[p] = tf.logical_or(seen[p], channels)
            mine[3].assign(tf.logical_or(mine[3].read_value(), tf.concat(seen, 0)))
            return tf.constant(0)

        tf.cond(predicate, add, lambda: tf.constant(0))

    def take(self):
        """Counts, moments, saturated units and units, and for each layer an array of its channels. Starts over."""
        counts, moments, saturated, alive = (
            np.stack([on_device.numpy() for on_device in self.strategy.experimental_local_results(v)])
            for v in self.variables
        )
        self.reset()
        low, high, total, squares = np.moveaxis(moments, -1, 0)
        moments = np.stack([low.min(0), high.max(0), total.sum(0), squares.sum(0)], axis=-1)
        return counts.sum(0), moments, saturated.sum(0), np.split(alive.any(0), np.cumsum(self.channels)[:-1])

    def reset(self):
        for v, start in zip(self.variables, self.starts, strict=True):
            for on_device in self.strategy.experimental_local_results(v):
                on_device.assign(start)


def merged(a, b):
    low, high = ops.minimum(a[:, 0], b[:, 0]), ops.maximum(a[:, 1], b[:, 1])
    return ops.stack([low, high, a[:, 2] + b[:, 2], a[:, 3] + b[:, 3]], axis=1)


def count(slots, number):
    import tensorflow as tf

    return tf.math.bincount(slots, minlength=number, maxlength=number)  # ten times as fast, but XLA has no bincount


def count_for_xla(slots, number):
    return ops.segment_sum(ops.ones_like(slots), slots, num_segments=number)


def tally(values, positions, number, count=count):
    """Counts by slot, (number, SLOTS), and moments, (number, 4), of several tensors, in the rows `positions`.

    Positions may repeat. A row without finite values has NO_MOMENTS.
    """
    counts, moments = np.zeros((number, SLOTS), "int64"), np.tile(NO_MOMENTS, (number, 1))
    for pack in _packs([_size(v) for v in values]):
        more, more_moments = _tally([values[i] for i in pack], [positions[i] for i in pack], number, count)
        counts, moments = counts + more, merged(moments, more_moments)
    return counts, moments


def _packs(sizes):
    """The indices in groups of about AT_ONCE values."""
    packs, room = [], 0
    for i, size in enumerate(sizes):
        size = size if isinstance(size, int) else UNKNOWN_SIZE
        if size > room or not packs:
            packs.append([])
            room = AT_ONCE
        packs[-1].append(i)
        room -= size
    return packs


def _tally(values, positions, number, count):
    import tensorflow as tf

    x, row_of, filled = _in_rows(values, positions, number)
    finite = tf.math.is_finite(x)
    safe = tf.where(finite, x, 0.0)
    exponent = tf.math.log(tf.maximum(tf.abs(safe), 1e-30)) / math.log(10)
    k = tf.cast(tf.clip_by_value(tf.floor((exponent - LOWEST_EXPONENT) * BINS_A_DECADE), 0, BINS - 1), "int32")
    slot = tf.where(x > 0, ZERO + 1 + k, tf.where(x < 0, ZERO - 1 - k, ZERO))
    slot = tf.where(finite, slot, tf.where(tf.math.is_nan(x), NAN, INFINITE))
    counts = count(tf.reshape(row_of[:, None] * SLOTS + slot, [-1]), number * SLOTS)
    counts = tf.reshape(counts, [number, SLOTS]) - filled[:, None] * tf.one_hot(INFINITE, SLOTS, dtype="int32")

    some = tf.reduce_any(counts[:, :NAN] > 0, axis=1)
    low = tf.math.unsorted_segment_min(tf.reduce_min(tf.where(finite, x, np.inf), 1), row_of, number)
    high = tf.math.unsorted_segment_max(tf.reduce_max(tf.where(finite, x, -np.inf), 1), row_of, number)
    total, squares = (
        tf.math.unsorted_segment_sum(tf.cast(tf.reduce_sum(v, 1), "float64"), row_of, number)
        for v in (safe, tf.square(safe))
    )
    low = tf.where(some, tf.cast(low, "float64"), np.inf)
    high = tf.where(some, tf.cast(high, "float64"), -np.inf)
    return tf.cast(counts, "int64"), tf.stack([low, high, total, squares], axis=1)


def _in_rows(values, positions, number):
    """All values in float32 as rows of WIDTH, each row's position, and the amount of padding for each position.

    The padding is infinities, since the moments leave those out already. TensorFlow operations are few, since each one
    in the loops enters the graph once per tensor.
    """
    import tensorflow as tf

    parts, sizes, rows, of_parts = [], [], [], []  # of parts, vectors whose sizes are multiples of WIDTH
    narrow = {}
    for x, position in zip(values, positions, strict=True):
        x = tf.cast(x, "float32")
        if len(x.shape) == 2 and x.shape[0] is None and (x.shape[1] or WIDTH + 1) <= WIDTH:  # samples of a batch
            narrow.setdefault(x.shape[1], []).append((x, position))
            continue
        size = _size(x)
        missing = -size % WIDTH
        filler = (
            np.full(missing, np.inf, "float32") if isinstance(size, int) else tf.fill([missing], np.float32(np.inf))
        )
        parts += [tf.reshape(x, [-1]), filler]
        sizes.append(size)
        rows.append((size + missing) // WIDTH)
        of_parts.append(position)
    for width, of_width in narrow.items():
        x = tf.concat([x for x, _ in of_width], 0)
        parts.append(tf.reshape(tf.pad(x, [[0, 0], [0, WIDTH - width]], constant_values=np.inf), [-1]))
        lengths = [tf.shape(x)[0] for x, _ in of_width]
        sizes += [n * width for n in lengths]
        rows += lengths
        of_parts += [position for _, position in of_width]
    x = tf.reshape(tf.concat(parts, 0), [-1, WIDTH])
    rows = tf.stack(rows)
    row_of = tf.searchsorted(tf.cumsum(rows), tf.range(tf.shape(x)[0]), side="right")
    filled = tf.math.unsorted_segment_sum(rows * WIDTH - tf.stack(sizes), of_parts, number)
    return x, tf.gather(tf.constant(of_parts), row_of), filled


def _size(x):
    import tensorflow as tf

    return math.prod(x.shape) if x.shape.is_fully_defined() else tf.size(x)


def bin_edges():
    """The 2·BINS + 2 borders of the bins in ascending order; the middle bin holds the exact zeros."""
    positive = 10.0 ** np.linspace(LOWEST_EXPONENT, HIGHEST_EXPONENT, BINS + 1)
    return np.concatenate([-positive[::-1], positive])


def magnitudes(counts):
    """Counts by |x| alone, (BINS,)."""
    return counts[ZERO + 1 : NAN] + counts[:ZERO][::-1]
