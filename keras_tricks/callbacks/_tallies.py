"""Counts of values by logarithmic bin, in variables that a compiled step can add to.

bins: the sign times 10^(k/5) for 1e-12 <= |x| < 1e4; smaller and larger values go to the end bins;
      exact zeros, NaN and infinities are counted apart
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
NO_MOMENTS = np.array([np.inf, -np.inf, 0, 0], "float32")


class Tally:
    """Counts and moments of one variable's values, which are the same on every replica."""

    def __init__(self, path):
        name = path.replace("/", "_")
        self.counts = keras.Variable(np.zeros(SLOTS), dtype="int64", trainable=False, name=f"{name}_counts")
        self.moments = keras.Variable(NO_MOMENTS, dtype="float32", trainable=False, name=f"{name}_moments")

    def add_if(self, predicate, tally_of_values):
        def add():
            counts, moments = tally_of_values()
            self.counts.assign(self.counts + ops.cast(counts, "int64"))
            self.moments.assign(merged(self.moments.value, moments))

        ops.cond(predicate, add, lambda: None)

    def parts(self):
        """[(variable on one device, its start), ...] of each device that it is on; all are equal."""
        import tensorflow as tf

        starts = (np.zeros(SLOTS, "int64"), NO_MOMENTS)
        strategy = tf.distribute.get_strategy()
        devices = zip(*(strategy.experimental_local_results(v.value) for v in (self.counts, self.moments)), strict=True)
        return [list(zip(variables, starts, strict=True)) for variables in devices]

    @staticmethod
    def merge(parts):
        return parts[0]


class LocalTally:
    """Counts of one layer's output, of which every replica has its own part; `take` puts the parts together."""

    def __init__(self, strategy, channels):
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
        self.initial = [
            np.zeros(SLOTS, "int64"),
            NO_MOMENTS,
            np.zeros(2, "float32"),  # saturated units, and units
            np.zeros(channels, "int32"),  # 1 for a channel that was not 0 for some example
        ]
        self.variables = [local(value) for value in self.initial]

    def add(self, counts, moments, saturated, alive):
        import tensorflow as tf

        mine = self.variables
        mine[0].assign_add(tf.cast(counts, "int64"))
        mine[1].assign(merged(mine[1].read_value(), moments))
        mine[2].assign_add(saturated)
        mine[3].assign(tf.maximum(mine[3].read_value(), alive))

    def parts(self):
        devices = zip(*(self.strategy.experimental_local_results(v) for v in self.variables), strict=True)
        return [list(zip(variables, self.initial, strict=True)) for variables in devices]

    @staticmethod
    def merge(parts):
        counts, moments, saturated, alive = zip(*parts, strict=True)
        low, high, total, squares = np.array(moments, "float64").T
        moments = np.array([low.min(), high.max(), total.sum(), squares.sum()])
        return sum(counts), moments, sum(saturated), np.maximum.reduce(alive)


def reader(strategy, tallies, variables, tally):
    """A function that returns the values of all tallies, which it sets back, and the tallies of `variables`.

    All of it is one graph: a hundred small reads and assignments from Python would take longer than training steps.
    """
    import tensorflow as tf

    with strategy.scope():
        parts = [t.parts() for t in tallies]

    @tf.function(autograph=False)
    def take():
        values = [[[v.read_value() for v, _ in part] for part in of_tally] for of_tally in parts]
        with tf.control_dependencies(tf.nest.flatten(values)):
            for v, start in (pair for of_tally in parts for part in of_tally for pair in part):
                v.assign(start)
        return values, [tally(flat(v)) for v in variables]

    def read():
        values, of_variables = tf.nest.map_structure(lambda x: x.numpy(), take())
        return [t.merge(value) for t, value in zip(tallies, values, strict=True)], of_variables

    return read


def merged(a, b):
    return ops.stack([ops.minimum(a[0], b[0]), ops.maximum(a[1], b[1]), a[2] + b[2], a[3] + b[3]])


def flat(values):
    # ops.convert_to_tensor would leave the gradient of an embedding sparse; ops.cast reads variables.
    import tensorflow as tf

    return tf.reshape(ops.cast(tf.convert_to_tensor(values), "float32"), (-1,))


def count(slots):
    import tensorflow as tf

    return tf.math.bincount(slots, minlength=SLOTS, maxlength=SLOTS)  # ten times as fast, but XLA has no bincount


def count_for_xla(slots):
    return ops.segment_sum(ops.ones_like(slots), slots, num_segments=SLOTS)


def tally(values, count=count):
    """For a float32 vector: counts by slot, (SLOTS,), and [minimum, maximum, sum, sum of squares] of finite values."""
    x = values
    finite = ops.isfinite(x)
    safe = ops.where(finite, x, 0.0)
    magnitude = ops.abs(safe)
    exponent = ops.log(ops.maximum(magnitude, 1e-30)) / math.log(10)
    k = ops.cast(ops.clip(ops.floor((exponent - LOWEST_EXPONENT) * BINS_A_DECADE), 0, BINS - 1), "int32")
    slot = ops.where(x > 0, ZERO + 1 + k, ops.where(x < 0, ZERO - 1 - k, ZERO))
    slot = ops.where(finite, slot, ops.where(ops.isnan(x), NAN, INFINITE))
    counts = count(slot)
    moments = ops.stack(
        [
            ops.min(ops.where(finite, x, np.inf)),
            ops.max(ops.where(finite, x, -np.inf)),
            ops.sum(safe),
            ops.sum(ops.square(safe)),
        ]
    )
    return counts, moments


def traced_tally(for_xla):
    """One traced function for all variables: tracing `tally` for each would cost seconds in a deep model."""
    import tensorflow as tf

    counting = count_for_xla if for_xla else count
    return tf.function(lambda values: tally(values, counting), input_signature=[tf.TensorSpec([None], "float32")])


def bin_edges():
    """The 2·BINS + 2 borders of the bins in ascending order; the middle bin holds the exact zeros."""
    positive = 10.0 ** np.linspace(LOWEST_EXPONENT, HIGHEST_EXPONENT, BINS + 1)
    return np.concatenate([-positive[::-1], positive])


def magnitudes(counts):
    """Counts by |x| alone, (BINS,)."""
    return counts[ZERO + 1 : NAN] + counts[:ZERO][::-1]
