"""`tf.data` transformations, each used as `dataset.apply(...)`."""

from keras_tricks.data.echo import echo

__all__ = ["echo"]
