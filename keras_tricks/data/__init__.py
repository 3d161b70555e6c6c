"""`tf.data` transformations, each used as `dataset.apply(...)`, and what to know before placing them."""

from keras_tricks.data import checks as checks
from keras_tricks.data.balance import class_balanced, class_counts
from keras_tricks.data.clean import drop_corrupt
from keras_tricks.data.echo import echo
from keras_tricks.data.echo_factor import measure_echo_factor
from keras_tricks.data.long_tail import make_long_tailed
from keras_tricks.data.remix import remix

__all__ = [
    "class_balanced",
    "class_counts",
    "drop_corrupt",
    "echo",
    "make_long_tailed",
    "measure_echo_factor",
    "remix",
]
