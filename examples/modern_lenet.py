"""LeNet with today's parts, for the examples: ReLU and max pooling where the original has sigmoid and mean pooling."""

import keras
from keras import layers


def compiled(shape, optimizer):
    """LeNet for ten classes. Images of less than 28 pixels keep their border in the second convolution, too."""
    model = keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv2D(6, 5, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 5, padding="valid" if shape[0] >= 28 else "same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(120, activation="relu"),
            layers.Dense(84, activation="relu"),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # In runs as short as these, compiling with XLA takes longer than the training.
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    return model
