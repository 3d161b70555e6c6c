"""Copies of layers, and of their weights."""

import tempfile

import keras

from keras_tricks.models._graph import inside


def plain_copy(layer):
    try:
        config = unbuilt(layer.get_config())
        if isinstance(layer, keras.layers.Lambda):
            copy = type(layer).from_config(config, safe_mode=False)  # its code is already in this process
            copy.function, copy.mask = layer.function, layer.mask  # those of the config have lost their globals
        else:
            copy = type(layer).from_config(config)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(
            f"Each layer is copied, and {type(layer).__name__} {layer.name!r} cannot be made from its "
            "config, as saving and loading would need too. Let its `get_config` return all arguments of its `__init__`."
        ) from error
    if hasattr(layer, "save_assets"):  # a vocabulary
        with tempfile.TemporaryDirectory() as folder:
            layer.save_assets(folder)
            copy.load_assets(folder)
    return copy


def unbuilt(config):
    """Lets the copy build what is inside it, as the original did; otherwise the weights' paths would be shorter."""
    if isinstance(config, dict):
        return {k: unbuilt(v) for k, v in config.items() if k != "build_config"}
    return [unbuilt(v) for v in config] if isinstance(config, list) else config


def carry_nothing(old, new):
    pass


def carry_everything(old, new):
    for a, b in zip(inside(old), inside(new), strict=True):
        b.trainable = a.trainable
        carry_everything(a, b)
    for a, b in zip(old.variables, new.variables, strict=True):
        assign(b, a)
    if isinstance(new, keras.layers.Normalization):
        new.finalize_state()  # it uses tensors that it once made from its weights


def assign(variable, value):
    variable.assign(keras.ops.convert_to_numpy(value))
    if not value.trainable:
        variable.trainable = False
