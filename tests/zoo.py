"""Small real networks with their data and losses: what people train, in a few thousand parameters each.

    network = zoo.NETWORKS["token_classifier"]
    run = zoo.train(network, lambda: kt.LAMB(0.01))        # as tests/runs.py has it: run.model, run.losses, run.weights

Ten examples in batches of four: the last batch is smaller, and the batch size is unknown when a step is traced.
`DATA` puts the same examples into every form that `fit` takes.
"""

import collections.abc
import dataclasses
import importlib.util
import typing
import warnings

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

import keras_tricks as kt
from tests import runs

EXAMPLES, BATCH = 10, 4

# What some tests must know of a network.
GRAPH = "graph"  # Functional or Sequential, so that its layers can be read
OWN_STEP = "own train_step"
RANDOM = "random"  # draws random numbers in training, which Keras does not save, and which replicas draw differently
STATISTICS = "statistics"  # BatchNormalization, or a mean over tokens that count: of each replica's part of the batch
ADDED_LOSS = "added loss"
NOT_FOR_XLA = "not for XLA"
ONE_DEVICE = "one device"  # has inputs of strings, which Keras' `fit` takes from datasets only, on one device
CLASSIFIER = "classifier"  # one output of logits for integer labels, so that losses and metrics of classes apply
TWO_OPTIMIZERS = "two optimizers"
MERGED = "merged"  # has LoRA factors, which Keras adds to the kernel when it saves, so that they begin anew
NOT_IN_FLOAT16 = "not in float16"  # CPUs have no gradient of such convolutions; Keras refuses it after `quantize`
LARGE = "large"  # takes ten seconds to trace


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """One network: `make()` a new model that is not compiled, `data()` x, y and sample_weight as arrays."""

    name: str
    make: collections.abc.Callable
    data: collections.abc.Callable
    loss: typing.Any
    traits: frozenset

    def __str__(self):
        return self.name

    def is_(self, *traits):
        return not self.traits.isdisjoint(traits)

    def compiled(self, optimizer, **arguments):
        """A new model, compiled with what `optimizer()` makes; call it in the scope of the strategy."""
        keras.utils.set_random_seed(0)
        model = self.make()
        arguments = {"jit_compile": False, **arguments}
        if self.is_(TWO_OPTIMIZERS):
            arguments["second_optimizer"] = optimizer()
        model.compile(optimizer(), self.loss, **arguments)
        return model


NETWORKS = {}


def network(data, loss, *traits):
    """Registers the function that makes a network under its name."""

    def register(make):
        NETWORKS[make.__name__] = Network(make.__name__, make, data, loss, frozenset(traits))
        return make

    return register


def select(*traits, without=()):
    """The networks that have all of `traits` and none of those in `without`."""
    return [n for n in NETWORKS.values() if n.traits.issuperset(traits) and n.traits.isdisjoint(without)]


def fit(model, network, callbacks=(), epochs=1, data=None):
    """The losses of each epoch; `data` is what `fit` takes instead of the network's own arrays."""
    arguments = arrays(network) if data is None else data
    with warnings.catch_warnings():
        # Keras says so where a head gets no gradient, and of data whose size it learns on the way.
        warnings.filterwarnings("ignore", "Your input ran out of data")
        history = model.fit(epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks), **arguments)
    return history.history["loss"]


def train(
    network, optimizer, mode="graph", replicas=1, precision="float32", callbacks=(), epochs=1, data=None, **arguments
):
    """Trains a new model; eager, as a graph, or under XLA as it works on so many replicas."""
    keras.config.set_dtype_policy(precision)
    with runs.strategy_of(replicas).scope():
        model = network.compiled(
            optimizer, run_eagerly=mode == "eager", jit_compile=mode == "xla" and replicas == 1, **arguments
        )
        if mode == "xla" and replicas > 1:
            kt.jit(model)
    losses = fit(model, network, callbacks, epochs, data)
    return runs.Run(model, losses, [np.array(w) for w in model.get_weights()])


# Data


def _random(seed=0):
    return np.random.default_rng(seed)


def images(size=8, channels=3, classes=3):
    x = _random().normal(size=(EXAMPLES, size, size, channels)).astype("float32")
    return x, _random(1).integers(0, classes, EXAMPLES)


def images_channels_first():
    x, y = images()
    return np.moveaxis(x, -1, 1), y


def pixels():
    x, _ = images(channels=1)
    return x, _random(1).integers(0, 3, (EXAMPLES, 8, 8))


def vectors(size=8, classes=3):
    return _random().normal(size=(EXAMPLES, size)).astype("float32"), _random(1).integers(0, classes, EXAMPLES)


def tokens(length=6, vocabulary=20):
    """Sequences of different lengths, padded with 0."""
    x = _random().integers(1, vocabulary, (EXAMPLES, length))
    lengths = _random(2).integers(2, length + 1, EXAMPLES)
    return np.where(np.arange(length) < lengths[:, None], x, 0).astype("int32")


def labelled_sequences():
    return tokens(), _random(1).integers(0, 3, EXAMPLES)


def labelled_tokens():
    """Token and mask as two inputs; a label and a weight for each token, 0 where it is padding.

    The mask is of integers, since Keras' `fit` cannot add booleans of several replicas.
    """
    x = tokens()
    mask = (x > 0).astype("int32")
    return {"tokens": x, "mask": mask}, np.where(mask, x % 5, 0), mask.astype("float32")


def next_tokens():
    x = _random().integers(1, 20, (EXAMPLES, 7)).astype("int32")
    return x[:, :-1], x[:, 1:]


def two_tasks():
    x = {"image": images()[0], "series": _random(3).normal(size=(EXAMPLES, 5, 2)).astype("float32")}
    y = {"label": _random(1).integers(0, 3, EXAMPLES), "forecast": _random(4).normal(size=(EXAMPLES, 5, 1))}
    return x, y | {"forecast": y["forecast"].astype("float32")}


def pairs():
    x = [vectors()[0], _random(5).normal(size=(EXAMPLES, 8)).astype("float32")]
    return x, _random(1).integers(0, 2, (EXAMPLES, 1)).astype("float32")


def unlabelled():
    x = _random().normal(size=(EXAMPLES, 8)).astype("float32")
    return x, x


def strings_and_images():
    words = np.array(["red", "green", "blue"])[_random(1).integers(0, 3, EXAMPLES)]
    x, y = images()
    return {"image": x, "colour": words.astype(object)}, y


def arrays(network):
    x, y, *w = network.data()
    if _has_strings(x):  # Keras takes no arrays of strings
        return DATA["dataset"](network)
    return {"x": x, "y": y, "batch_size": BATCH, **({"sample_weight": w[0]} if w else {})}


def _has_strings(x):
    return any(np.asarray(a).dtype == object for a in keras.tree.flatten(x))


def _dataset(network):
    parts = (tuple(part) if isinstance(part, list) else part for part in network.data())  # a list would be stacked
    return tf.data.Dataset.from_tensor_slices(tuple(parts))


def _generator(network):
    batches = list(_dataset(network).batch(BATCH).as_numpy_iterator())

    def generate():
        while True:
            yield from batches

    return generate()


class _Batches(keras.utils.PyDataset):
    def __init__(self, network):
        super().__init__()
        self.batches = list(_dataset(network).batch(BATCH).as_numpy_iterator())

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def _of_unknown_size(dataset):
    return dataset.filter(lambda *_: True)


STEPS = -(-EXAMPLES // BATCH)

# The forms of the same ten examples: arguments of `fit` that make the same batches in the same order.
DATA = {
    "arrays": arrays,
    "dataset": lambda n: {"x": _dataset(n).batch(BATCH)},
    "dataset of unknown size": lambda n: {"x": _of_unknown_size(_dataset(n)).batch(BATCH)},
    "infinite dataset": lambda n: {"x": _dataset(n).batch(BATCH).repeat(), "steps_per_epoch": STEPS},
    "generator": lambda n: {"x": _generator(n), "steps_per_epoch": STEPS},
    "PyDataset": lambda n: {"x": _Batches(n)},
}


# Losses


def classes(from_logits=True):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)


# Layers and models that a user would write


@keras.saving.register_keras_serializable(package="zoo")
class ScalarGain(layers.Layer):
    """Weights of rank 0."""

    def build(self, input_shape):
        self.gain = self.add_weight(shape=(), initializer="ones", name="gain")
        self.shift = self.add_weight(shape=(), initializer="zeros", name="shift")

    def call(self, x):
        return x * self.gain + self.shift


@keras.saving.register_keras_serializable(package="zoo")
class OddSizes(layers.Layer):
    """Weights without elements, and with one."""

    def build(self, input_shape):
        self.empty = self.add_weight(shape=(0, input_shape[-1]), name="empty")
        self.none = self.add_weight(shape=(0,), name="none")
        self.single = self.add_weight(shape=(1, 1), initializer="ones", name="single")

    def call(self, x):
        nothing = ops.sum(ops.matmul(x, ops.transpose(self.empty)), axis=-1, keepdims=True) + ops.sum(self.none)
        return x * self.single + nothing


@keras.saving.register_keras_serializable(package="zoo")
class Sampling(layers.Layer):
    """A draw from the normal distribution whose mean and logarithm of the variance come in, and its divergence."""

    def __init__(self, seed=0, **kwargs):
        super().__init__(**kwargs)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs):
        mean, log_variance = inputs
        self.add_loss(-0.05 * ops.mean(1 + log_variance - ops.square(mean) - ops.exp(log_variance)))
        noise = keras.random.normal(ops.shape(mean), dtype=mean.dtype, seed=self.seed_generator)
        return mean + ops.exp(0.5 * log_variance) * noise

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}


@keras.saving.register_keras_serializable(package="zoo")
class Subclassed(keras.Model):
    """Its `call` is code, with an argument `training`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = [layers.Dense(8, activation="gelu") for _ in range(2)]
        self.normalization = layers.LayerNormalization()
        self.head = layers.Dense(3)

    def build(self, input_shape):
        self.hidden[0].build(input_shape)
        self.hidden[1].build((None, 8))
        self.normalization.build((None, 8))
        self.head.build((None, 8))
        self.built = True

    def call(self, x, training=False):
        for layer in self.hidden:
            x = layer(x, training=training)
        return self.head(self.normalization(x))


def _replicas():
    return tf.distribute.get_strategy().num_replicas_in_sync


def _tracked(model, loss):
    tracker = next(m for m in model.metrics if m.name == "loss")
    tracker.update_state(loss * _replicas())  # as Keras does, whose losses are divided by that number
    return {"loss": tracker.result()}


@keras.saving.register_keras_serializable(package="zoo")
class OwnStep(keras.Model):
    """Functional, with a training step of its own that adds a penalty on the logits."""

    def train_step(self, data):
        x, y, w = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            logits = self(x, training=True)
            loss = self.compute_loss(x, y, logits, w) + 0.01 * ops.mean(ops.square(logits)) / _replicas()
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return _tracked(self, loss)


@keras.saving.register_keras_serializable(package="zoo")
class Adversarial(keras.Model):
    """A generator against a discriminator, each with an optimizer, trained in one step."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.generator = keras.Sequential([layers.Dense(8, activation="tanh"), layers.Dense(8)], name="generator")
        self.discriminator = keras.Sequential(
            [layers.Dense(8), layers.LeakyReLU(), layers.Dense(1)], name="discriminator"
        )

    def build(self, input_shape):
        self.generator.build(input_shape)
        self.discriminator.build(input_shape)
        self.built = True

    def compile(self, optimizer, loss, second_optimizer=None, **arguments):
        super().compile(optimizer, loss, **arguments)
        self.second_optimizer = second_optimizer

    def call(self, x):
        return self.discriminator(self.generator(x))

    def train_step(self, data):
        real, _ = data
        cross_entropy = keras.losses.BinaryCrossentropy(from_logits=True, reduction="sum_over_batch_size")
        with tf.GradientTape() as tape:
            fakes = self.generator(ops.flip(real, axis=-1))
            judged = ops.concatenate([self.discriminator(real), self.discriminator(fakes)], axis=0)
            ones = ops.ones_like(judged[: ops.shape(real)[0]])
            loss = cross_entropy(ops.concatenate([ones, 0 * ones], axis=0), judged)
            scaled = self.optimizer.scale_loss(loss)
        weights = self.discriminator.trainable_variables
        self.optimizer.apply(tape.gradient(scaled, weights), weights)
        with tf.GradientTape() as tape:
            judged = self.discriminator(self.generator(ops.flip(real, axis=-1)))
            scaled = self.second_optimizer.scale_loss(cross_entropy(ops.ones_like(judged), judged))
        weights = self.generator.trainable_variables
        self.second_optimizer.apply(tape.gradient(scaled, weights), weights)
        return _tracked(self, loss)


@keras.saving.register_keras_serializable(package="zoo")
class Backbone(keras.Model):
    """Functional with a constructor of its own, as model zoos make them."""

    def __init__(self, width=8, **kwargs):
        inputs = keras.Input((8, 8, 3), name="images")
        x = layers.Conv2D(width, 3, padding="same", use_bias=False, name="stem")(inputs)
        x = layers.BatchNormalization(name="stem_normalization")(x)
        x = layers.ReLU()(x)
        super().__init__(inputs, layers.Conv2D(width, 3, strides=2, activation="relu", name="body")(x), **kwargs)
        self.width = width

    def get_config(self):
        return {"width": self.width, "name": self.name, "trainable": self.trainable}


# The networks


@network(images, classes(), GRAPH, STATISTICS, CLASSIFIER)
def residual_cnn():
    x = inputs = keras.Input((8, 8, 3))
    for number, (filters, strides) in enumerate([(8, 1), (8, 2)]):
        y = layers.Conv2D(filters, 3, strides, "same", use_bias=False, name=f"conv_{number}_a")(x)
        y = layers.Activation("relu")(layers.BatchNormalization(name=f"norm_{number}_a")(y))
        y = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv_{number}_b")(y)
        y = layers.BatchNormalization(name=f"norm_{number}_b")(y)
        x = layers.Conv2D(filters, 1, strides, use_bias=False, name=f"shortcut_{number}")(x)
        x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3, dtype="float32", name="logits")(x))


@network(images, classes(), GRAPH, STATISTICS, CLASSIFIER)
def separable_cnn():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(max_value=6),
            layers.DepthwiseConv2D(3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(max_value=6),
            layers.SeparableConv2D(12, 3, padding="same"),
            layers.GlobalMaxPooling2D(),
            layers.Dense(3, dtype="float32"),
        ]
    )


@network(pixels, classes(), GRAPH)
def encoder_decoder():
    inputs = keras.Input((8, 8, 1))
    skip = layers.Conv2D(6, 3, padding="same", activation="relu")(inputs)
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(skip)
    x = layers.GroupNormalization(2)(x)
    x = layers.Conv2DTranspose(6, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.Concatenate()([x, skip])
    return keras.Model(inputs, layers.Conv2D(3, 1, dtype="float32")(x))


@network(labelled_tokens, classes(), GRAPH)
def token_classifier():
    tokens, mask = keras.Input((6,), dtype="int32", name="tokens"), keras.Input((6,), dtype="int32", name="mask")
    embedding = layers.ReversibleEmbedding(20, 8, name="embedding")
    x = embedding(tokens)
    allowed = layers.Reshape((1, 6))(mask)
    expand = layers.Dense(16, activation="gelu", name="expand")  # one layer for both blocks
    for number in range(2):
        y = layers.LayerNormalization(name=f"norm_{number}_a")(x)
        y = layers.MultiHeadAttention(2, 4, name=f"attention_{number}")(y, y, attention_mask=allowed)
        x = layers.Add()([x, y])
        y = expand(layers.LayerNormalization(name=f"norm_{number}_b")(x))
        x = layers.Add()([x, layers.Dense(8, name=f"contract_{number}")(y)])
    logits = embedding(layers.LayerNormalization(name="last_norm")(x), reverse=True)
    return keras.Model({"tokens": tokens, "mask": mask}, layers.Activation("linear", dtype="float32")(logits))


@keras.saving.register_keras_serializable(package="zoo")
class CausalAttention(layers.Layer):
    def __init__(self, heads=2, size=4, **kwargs):
        super().__init__(**kwargs)
        self.heads, self.size = heads, size
        self.attention = layers.MultiHeadAttention(heads, size, name="attention")

    def build(self, input_shape):
        self.attention.build(input_shape, input_shape)

    def call(self, x):
        return self.attention(x, x, use_causal_mask=True)

    def get_config(self):
        return {**super().get_config(), "heads": self.heads, "size": self.size}


@network(next_tokens, classes(), GRAPH, RANDOM)
def causal_transformer():
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Dropout(0.1, seed=1)(layers.Embedding(20, 8)(tokens))
    for number in range(2):
        x = kt.layers.ReZero(CausalAttention(name=f"attention_{number}"), name=f"rezero_attention_{number}")(x)
        feed_forward = keras.Sequential(
            [keras.Input((6, 8)), layers.Dense(16, activation="gelu"), layers.Dense(8), layers.Dropout(0.1, seed=2)],
            name=f"feed_forward_{number}",
        )
        x = kt.layers.ReZero(feed_forward, name=f"rezero_feed_forward_{number}")(x)
    return keras.Model(tokens, layers.Dense(20, dtype="float32")(x))


@network(labelled_sequences, classes(), GRAPH, CLASSIFIER)
def bidirectional_lstm():
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 6, mask_zero=True)(tokens)
    x = layers.Bidirectional(layers.LSTM(5, return_sequences=True))(x)
    return keras.Model(tokens, layers.Dense(3, dtype="float32")(layers.LSTM(4)(x)))


@network(labelled_tokens, classes(), GRAPH, STATISTICS)
def gru_tagger():
    tokens, mask = keras.Input((6,), dtype="int32", name="tokens"), keras.Input((6,), dtype="int32", name="mask")
    x = layers.Embedding(20, 6)(tokens)
    x = layers.GRU(5, return_sequences=True)(x, mask=ops.cast(mask, "bool"))
    x = layers.TimeDistributed(layers.Dense(6, activation="tanh"))(x)
    return keras.Model({"tokens": tokens, "mask": mask}, layers.Dense(5, dtype="float32")(x))


@network(two_tasks, {"label": classes(), "forecast": keras.losses.Huber()}, GRAPH)
def two_inputs_two_outputs():
    image, series = keras.Input((8, 8, 3), name="image"), keras.Input((5, 2), name="series")
    x = layers.Flatten()(layers.Conv2D(4, 3, strides=2, activation="relu")(image))
    s = layers.Conv1D(6, 3, padding="causal", activation="relu")(series)
    both = layers.Concatenate()([x, layers.GlobalAveragePooling1D()(s)])
    label = layers.Dense(3, dtype="float32", name="label")(both)
    forecast = layers.Dense(1, dtype="float32", name="forecast")(s)
    return keras.Model({"image": image, "series": series}, {"label": label, "forecast": forecast})


@network(pairs, keras.losses.BinaryCrossentropy(from_logits=True), GRAPH)
def siamese():
    one = keras.Sequential([keras.Input((8,)), layers.Dense(8, activation="relu"), layers.Dense(4)], name="tower")
    a, b = keras.Input((8,), name="a"), keras.Input((8,), name="b")
    difference = layers.Subtract()([one(a), one(b)])
    return keras.Model([a, b], layers.Dense(1, dtype="float32")(layers.UnitNormalization(dtype="float32")(difference)))


@network(vectors, classes(), GRAPH, CLASSIFIER)
def reused_layer():
    x = inputs = keras.Input((8,))
    step, activation = layers.Dense(8, name="step"), layers.Activation("tanh")
    for _ in range(4):
        x = activation(step(x))
    return keras.Model(inputs, layers.Dense(3, dtype="float32")(x))


@network(vectors, classes(), GRAPH, CLASSIFIER)
def equal_inner_names():
    def tower(name):
        inputs = keras.Input((8,), name="inputs")
        x = layers.Dense(6, activation="relu", name="first")(inputs)
        return keras.Model(inputs, layers.Dense(6, name="second")(x), name=name)

    inputs = keras.Input((8,))
    both = layers.Concatenate()([tower("left")(inputs), tower("right")(inputs)])
    return keras.Model(inputs, layers.Dense(3, dtype="float32", name="first")(both))


@network(vectors, classes(), CLASSIFIER)
def subclassed():
    model = Subclassed()
    model.build((None, 8))
    return model


@network(vectors, classes(), GRAPH, OWN_STEP, CLASSIFIER)
def own_train_step():
    inputs = keras.Input((8,))
    x = layers.Dense(8, activation="relu")(inputs)
    return OwnStep(inputs, layers.Dense(3, dtype="float32")(x))


@network(unlabelled, keras.losses.MeanSquaredError(), GRAPH, ADDED_LOSS, RANDOM)
def variational_autoencoder():
    inputs = keras.Input((8,))
    x = layers.Dense(8, activation="relu", activity_regularizer=keras.regularizers.L2(1e-3))(inputs)
    z = Sampling()([layers.Dense(3, name="mean")(x), layers.Dense(3, name="log_variance")(x)])
    x = layers.Dense(8, activation="relu", kernel_regularizer=keras.regularizers.L1(1e-3))(z)
    return keras.Model(inputs, layers.Dense(8, dtype="float32")(x))


@network(unlabelled, keras.losses.MeanSquaredError(), OWN_STEP, TWO_OPTIMIZERS)
def adversarial():
    model = Adversarial()
    model.build((None, 8))
    return model


@network(strings_and_images, classes(), GRAPH, RANDOM, NOT_FOR_XLA, ONE_DEVICE, CLASSIFIER)
def preprocessing():
    image, colour = keras.Input((8, 8, 3), name="image"), keras.Input((), dtype="string", name="colour")
    x = layers.RandomRotation(0.1, seed=1)(image)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(6, 3, activation="relu")(x))
    one_hot = layers.StringLookup(vocabulary=["red", "green", "blue"], output_mode="one_hot")(
        layers.Reshape((1,))(colour)
    )
    x = layers.Concatenate()([x, layers.Dense(4)(one_hot)])
    return keras.Model({"image": image, "colour": colour}, layers.Dense(3, dtype="float32")(x))


@network(images_channels_first, classes(), GRAPH, STATISTICS, CLASSIFIER, NOT_IN_FLOAT16)
def channels_first():
    inputs = keras.Input((3, 8, 8))
    x = layers.Conv2D(6, 3, use_bias=False, data_format="channels_first")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(axis=1)(x))
    x = layers.GlobalAveragePooling2D(data_format="channels_first")(x)
    return keras.Model(inputs, layers.Dense(3, dtype="float32")(x))


@network(vectors, classes(), GRAPH, CLASSIFIER)
def scalar_weights():
    inputs = keras.Input((8,))
    x = kt.layers.ReZero(layers.Dense(8, activation="relu"))(ScalarGain()(inputs))
    return keras.Model(inputs, layers.Dense(3, dtype="float32")(x))


@network(vectors, classes(), GRAPH, CLASSIFIER)
def odd_sizes():
    return keras.Sequential(
        [keras.Input((8,)), OddSizes(), layers.Dense(1), layers.Dense(3, dtype="float32", use_bias=False)]
    )


@network(vectors, classes(), GRAPH, CLASSIFIER, LARGE)
def two_hundred_layers():
    x = inputs = keras.Input((8,))
    for _ in range(100):
        x = layers.Dense(8, activation="tanh", use_bias=False)(x)
        x = layers.Rescaling(1.1)(x)
    return keras.Model(inputs, layers.Dense(3, dtype="float32")(x))


@network(lambda: images(size=32), classes(), GRAPH, CLASSIFIER, LARGE)
def keras_application():
    """As it is fine-tuned: a new head, the last block, and everything before and all normalisations frozen."""
    base = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, include_top=False, weights=None, pooling="avg")
    for layer in base.layers:
        layer.trainable = layer.name.startswith("block_16") and not isinstance(layer, layers.BatchNormalization)
    return keras.Model(base.input, layers.Dense(3, dtype="float32")(base.output))


@network(images, classes(), GRAPH, STATISTICS, CLASSIFIER)
def backbone_and_head():
    backbone = Backbone(name="backbone")
    x = layers.GlobalAveragePooling2D()(backbone(backbone.input))
    return keras.Model(backbone.input, layers.Dense(3, dtype="float32", name="head")(x))


@network(vectors, classes(), GRAPH, CLASSIFIER, MERGED)
def low_rank_adaptation():
    model = equal_inner_names()
    for tower in model.layers:
        for layer in getattr(tower, "layers", []):
            if isinstance(layer, layers.Dense):
                layer.enable_lora(2)
    return model


@network(vectors, classes(), GRAPH, CLASSIFIER, MERGED, NOT_IN_FLOAT16)
def quantized_int8():
    inputs = keras.Input((8,))
    x = layers.Dense(8, activation="relu", name="body")(inputs)
    model = keras.Model(inputs, layers.Dense(3, name="head")(x))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have a `quantize` method")
        model.quantize("int8")
    model.get_layer("body").enable_lora(2)
    return model


if importlib.util.find_spec("keras_hub"):

    @network(labelled_sequences, classes(), GRAPH, RANDOM, CLASSIFIER)
    def keras_hub_backbone():
        import keras_hub

        backbone = keras_hub.models.BertBackbone(
            vocabulary_size=20, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16, max_sequence_length=6
        )
        tokens = keras.Input((6,), dtype="int32")
        mask = ops.not_equal(tokens, 0)
        x = backbone({"token_ids": tokens, "segment_ids": 0 * tokens, "padding_mask": mask})["pooled_output"]
        return keras.Model(tokens, layers.Dense(3, dtype="float32")(x))
