"""Configs of layers, changed to another precision or freed of what is not Keras' own."""

import keras

from keras_tricks.models._graph import is_keras


def float_policy(dtype):
    try:
        policy = keras.dtype_policies.get(dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`dtype` must be a dtype policy, such as 'float32'. Received: dtype={dtype!r}") from error
    if not is_float_policy(policy):
        raise ValueError(f"`dtype` must be a policy that computes in floating point. Received: dtype={dtype!r}")
    return policy


def is_float_policy(policy):
    return (
        policy is not None
        and getattr(policy, "quantization_mode", None) is None
        and keras.backend.is_float_dtype(policy.compute_dtype or "")
    )


def in_policy(config, policy):
    """`config` with another dtype policy, for everything inside too."""
    if isinstance(config, list):
        return [in_policy(value, policy) for value in config]
    if not isinstance(config, dict):
        return config
    result = {key: in_policy(value, policy) for key, value in config.items()}
    given = config.get("dtype")
    if isinstance(given, dict) and "class_name" in given:
        given = keras.dtype_policies.deserialize(given)
        if is_float_policy(given):
            result["dtype"] = keras.dtype_policies.serialize(policy)
    elif "batch_shape" in config and isinstance(given, str) and keras.backend.is_float_dtype(given):
        result["dtype"] = policy.compute_dtype  # an input of a model inside, which casts to it
    return result


def without_foreign_training(config):
    """`config` without the initializers, regularizers and constraints that are not Keras' own."""
    if isinstance(config, list):
        return [without_foreign_training(value) for value in config]
    if not isinstance(config, dict):
        return config
    return {
        key: without_foreign_training(value)
        for key, value in config.items()
        if not (key.endswith(("_initializer", "_regularizer", "_constraint")) and list(foreign(value)))
    }


def foreign(config):
    """Names of those parts of a serialized object that are not Keras' own."""
    if isinstance(config, list | tuple):
        for value in config:
            yield from foreign(value)
    elif isinstance(config, dict):
        if config.get("class_name") == "__lambda__":
            yield "a lambda"
        elif "registered_name" in config and not is_keras(config.get("module")):
            yield config["registered_name"] or config["class_name"]
        for value in config.values():
            yield from foreign(value)
