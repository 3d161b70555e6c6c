"""Layers that are used in two places of a model and are one layer again when its file is loaded."""

import keras


def serialized(layer):
    """The config of a layer inside another, which may be used elsewhere in the model too."""
    # When a model is saved, what occurs a second time gets an id, by which it is one object again when it is loaded.
    # Keras notes the id in the first config afterwards too, but that of a layer inside another was copied meanwhile.
    keras.saving.serialize_keras_object(layer)
    return keras.saving.serialize_keras_object(layer)
