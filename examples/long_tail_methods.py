"""The methods for long-tailed classes that `long_tail.py` compares, on one network and one schedule."""

import keras
import numpy as np
import tensorflow as tf

import keras_tricks as kt

BATCH, RATE = 64, 0.05
NETWORK = "3 convolutions (16, 32, 64), hidden layer of 64"
SHIFT = {8: 1, 28: 2, 32: 4}  # pixels, by the size of the image
LOSSES = ("focal", "class_balanced_focal", "class_balanced", "label_aware_smoothing", "ldam")
LOSSES += ("balanced_softmax", "logit_adjusted")
SAMPLING = ("class_balanced_sampling", "square_root_sampling", "progressive_sampling")
TRAINED = ("plain", *LOSSES, *SAMPLING, "remix", "drw", "ldam_drw", "drs")
SECOND_STAGE = ("post_hoc_adjustment", "tau_norm", "crt", "lws")  # these start from the plain model
METHODS = (*TRAINED, *SECOND_STAGE)


def network(shape, classes, cosine=False, bias=0.0):
    """Convolutions for images, and a hidden layer; with a classifier by angles for LDAM."""
    x = inputs = keras.Input(shape)
    if len(shape) == 3:
        for filters in (16, 32, 64):
            x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            x = keras.layers.MaxPooling2D()(x)  # first, so that only a quarter is left to normalise
            x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
        x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(64, use_bias=False)(x)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    dense = keras.layers.Dense(classes, bias_initializer=keras.initializers.Constant(bias), name="classifier")
    return keras.Model(inputs, (kt.layers.NormalizedDense(classes) if cosine else dense)(x))


def augmentation(shape, seed):
    """Flips and shifts each image of a batch at random; digits are not flipped."""
    size, shift = shape[0], SHIFT[shape[0]]
    random = tf.random.Generator.from_seed(seed)  # tf.random.uniform would repeat itself in each epoch

    def augment(images, labels):
        count = tf.shape(images)[0]
        images = tf.pad(images, [[0, 0], [shift, shift], [shift, shift], [0, 0]])
        rows, columns = tf.unstack(random.uniform([2, count, 1], 0, 2 * shift + 1, tf.int32) + tf.range(size))
        flipped = (random.uniform([count, 1]) < 0.5) & (size != 8)
        columns = tf.where(flipped, columns[:, ::-1], columns)
        return tf.gather(tf.gather(images, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1), labels

    return augment


def batches(method, data, epochs, defer, seed):
    """The method's training data: re-sampling before augmentation, mixing after it."""
    examples = tf.data.Dataset.from_tensor_slices(data.train).shuffle(len(data.train[1]), seed=seed)
    sampling = {
        "class_balanced_sampling": {"q": 0},
        "square_root_sampling": {"q": 0.5},
        "progressive_sampling": {"epochs": epochs},
        "drs": {"start_epoch": defer},
        "second stage": {"q": 0},
    }
    if method in sampling:
        examples = examples.apply(kt.data.class_balanced(data.counts, seed=seed, **sampling[method]))
    examples = examples.batch(BATCH)
    if len(data.train[0].shape) == 4:
        examples = examples.map(augmentation(data.train[0].shape[1:], seed))
    if method == "remix":
        examples = examples.apply(kt.data.remix(data.counts, seed=seed))
    return examples.prefetch(4)


def train(method, data, epochs, seed):
    """A model trained by the method; all methods have the same schedule."""
    keras.utils.set_random_seed(seed)
    counts, defer = data.counts, max(1, round(0.8 * epochs))
    steps = -(-int(counts.sum()) // BATCH)
    loss = {
        "focal": kt.losses.SparseFocal(),
        "class_balanced_focal": kt.losses.ClassBalanced(counts, beta=0.9999, base="sigmoid_focal"),
        "class_balanced": kt.losses.ClassBalanced(counts, beta=0.9999),
        "label_aware_smoothing": kt.losses.LabelAwareSmoothing(counts),
        "ldam": kt.losses.LDAM(counts),
        "balanced_softmax": kt.losses.BalancedSoftmax(counts),
        "logit_adjusted": kt.losses.LogitAdjusted(counts),
        "remix": keras.losses.CategoricalCrossentropy(from_logits=True),
        "drw": kt.losses.ClassBalanced(counts, beta=0),
        "ldam_drw": kt.losses.LDAM(counts),
    }.get(method, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    callbacks = [kt.callbacks.DeferredReweighting(loss, defer)] if method in ("drw", "ldam_drw") else []
    bias = -np.log(len(counts) - 1) if method == "class_balanced_focal" else 0.0
    model = network(data.train[0].shape[1:], len(counts), cosine=method.startswith("ldam"), bias=bias)
    warmup = min(steps, epochs * steps // 5)
    drops = [defer * steps, max(defer * steps + 1, round(0.9 * epochs * steps))]
    schedule = kt.schedules.MultiFactor(RATE, 0.1, [step - warmup for step in drops])
    # Decoupled from momentum, this is as strong as an L2 penalty of 2e-4 within the gradient.
    optimizer = keras.optimizers.SGD(kt.schedules.WarmUp(schedule, warmup), momentum=0.9, weight_decay=2e-3)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model.compile(optimizer, loss)
    model.fit(batches(method, data, epochs, defer, seed), epochs=epochs, callbacks=callbacks, shuffle=False, verbose=0)
    return model


def second_stage(method, plain, data, epochs, seed):
    """The plain model with its classifier adjusted or trained again, for a third as many epochs."""
    keras.utils.set_random_seed(seed)
    if method == "post_hoc_adjustment":
        return kt.models.adjust_logits(plain, data.counts)
    if method == "tau_norm":
        return kt.models.tau_normalize(plain)
    again = {"crt": kt.models.retrain_classifier, "lws": kt.models.learn_scale}[method]
    epochs = max(1, epochs // 3)
    return again(plain, batches("second stage", data, epochs, 0, seed), epochs=epochs, shuffle=False, verbose=0)
