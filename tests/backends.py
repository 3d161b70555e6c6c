"""Runs that have to end equal on every backend."""

import functools

import keras
import numpy as np

import keras_tricks as kt
from keras_tricks import catalog
from tests import runs


def with_fixed_weights(model, seed=0):
    # The backends draw different numbers from the same seed.
    random = np.random.default_rng(seed)
    model.set_weights([0.3 * random.normal(size=w.shape) for w in model.get_weights()])
    return model


def dense():
    layers = [keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(5, activation="tanh")]
    return with_fixed_weights(keras.Sequential([*layers, keras.layers.Dense(3, dtype="float32")]))


def train(optimizer, **arguments):
    """Compiled on JAX. On TensorFlow op by op, which is quicker for a few steps; compiled is equal, as others test."""
    return runs.train(optimizer, "eager" if keras.backend.backend() == "tensorflow" else "graph", **arguments)


def results(whole):
    """Final weights by the name of the run, and values of losses; not of what is like another if not `whole`."""
    ends = {}
    for trick in catalog.TRICKS:
        if "jax" not in trick.backends:
            continue
        if trick.kind == "optimizer" and trick.make:
            everything = {"gradient_accumulation_steps": 2, "global_clipnorm": 0.5, "use_ema": True}
            ends[f"{trick.name} everything"] = train(lambda t=trick, o=everything: t.make(**o), network=dense)
        elif trick.kind == "layer" and trick.make and (whole or trick.object not in runs.ALIKE):
            layer, shape = trick.make()
            random = np.random.default_rng(1)
            data = random.normal(size=(16, *shape)).astype("float32"), random.integers(0, 3, 16)

            def network(layer=layer, shape=shape):
                head = keras.layers.Dense(3, dtype="float32")
                return with_fixed_weights(keras.Sequential([keras.Input(shape), layer, keras.layers.Flatten(), head]))

            ends[trick.name] = train(lambda: keras.optimizers.SGD(0.05), network=network, data=data)
    overwriting = {"gradient_accumulation_steps": 2, "use_ema": True, "ema_overwrite_frequency": 2}
    ends["LAMB overwriting"] = train(lambda: kt.LAMB(0.01, **overwriting), network=dense)
    schedule = kt.schedules.CyclicalLearningRate(0.001, 0.1, 3, mode="exp_range", gamma=0.97)
    cycled = {
        "LAMB": lambda: kt.LAMB(0.1),
        "SGD": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
        "RMSprop": lambda: keras.optimizers.RMSprop(0.01, momentum=0.9),
    }
    for name, optimizer in cycled.items() if whole else [("LAMB", cycled["LAMB"])]:
        cycle = kt.callbacks.CyclicLR(schedule, momentum=(0.95, 0.3))
        ends[f"CyclicLR {name}"] = train(optimizer, network=dense, callbacks=[cycle])
    ends["schedule LAMB"] = train(lambda: kt.LAMB(schedule), network=dense)
    sgd = functools.partial(keras.optimizers.SGD, 0.05)
    for loss in (kt.losses.ClassBalanced([20, 9, 3], base="focal"), kt.losses.LDAM([20, 9, 3])):
        ends[loss.name] = train(sgd, network=dense, loss=lambda loss=loss: loss, epochs=1)
    return {name: np.concatenate([w.ravel() for w in run.weights]) for name, run in ends.items()} | losses()


def losses():
    """The values of each loss, for labels of both forms."""
    random = np.random.default_rng(0)
    logits, labels, rows = random.normal(size=(8, 3)), random.integers(0, 3, 8), random.dirichlet(np.ones(3), 8)
    makes = {trick.name: trick.make for trick in catalog.TRICKS if trick.kind == "loss"}
    return {
        f"{name} of {form}": keras.ops.convert_to_numpy(make(reduction=None)(y, logits))
        for name, make in makes.items()
        for form, y in (("integers", labels), ("rows", rows))
    }
