"""Layers that are used in two places of a model and are one layer again when its file is loaded."""

import keras


def serialized(layer):
    """The config of a layer inside another, which may be used elsewhere in the model too."""
    # When a model is saved, an object that occurs a second time gets an id, and is one object again when loaded. Keras
    # then adds the id to its first config, but that of a layer inside another has been copied by then.
    keras.saving.serialize_keras_object(layer)
    return keras.saving.serialize_keras_object(layer)
