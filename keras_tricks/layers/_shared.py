"""Keeps a layer that is used in two places of a model a single layer when the model is loaded from a file."""

import keras


def serialized(layer):
    """The config of a layer inside another, which may be used elsewhere in the model too."""
    # When a model is saved, an object that occurs a second time gets an id, and is one object again when loaded. Keras
    # then adds the id to the object's first config, but if it is inside another layer, that config has been copied by
    # then.
    keras.saving.serialize_keras_object(layer)
    return keras.saving.serialize_keras_object(layer)
