"""What a model must be for the operations that read its graph: the same for all, refused in the same words."""

import re

import keras
import numpy as np
import pytest
from keras import layers

import keras_tricks as kt

X, Y = np.ones((6, 4), "float32"), np.arange(6) % 3
OPERATIONS = {
    "convert": lambda model: kt.convert(model, {layers.Dense: "ws_conv"}),
    "fuse": kt.fuse,
    "recompute": kt.recompute,
    "adjust_logits": lambda model: kt.models.adjust_logits(model, [3, 2, 1]),
    "tau_normalize": kt.models.tau_normalize,
    "retrain_classifier": lambda model: kt.models.retrain_classifier(model, X, y=Y),
    "learn_scale": lambda model: kt.models.learn_scale(model, X, y=Y),
}
KEEPS_A_CONSTRUCTOR = ("fuse", "adjust_logits")


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.head = layers.Dense(3)

    def call(self, x):
        return self.head(x)


class OwnConstructor(keras.Model):
    def __init__(self, **kwargs):
        x = keras.Input((4,))
        super().__init__(x, layers.Dense(3)(x), **kwargs)


class OwnCall(keras.Model):
    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=training, mask=mask) * 2


def refusal(name, error, model):
    with pytest.raises(error) as caught:
        OPERATIONS[name](model)
    return str(caught.value)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_subclassed_model_is_refused_with_what_was_expected_and_received_and_what_to_do(name):
    model = Subclassed(name="code")
    model(X)
    assert re.fullmatch(
        rf"`{name}` expects a Functional or Sequential model\. Received: code \(Subclassed\), which is a subclassed "
        r"model, whose `call` is code that cannot be read\. (Build|Use|Wrap) .*\.",
        refusal(name, ValueError, model),
    )


@pytest.mark.parametrize("name", OPERATIONS)
def test_methods_that_the_new_model_would_lose_are_refused(name):
    x = keras.Input((4,))
    model = OwnCall(x, layers.Dense(3)(x), name="twice")
    words = (
        "`{}` expects a plain Functional or Sequential model. Received: {}, whose own {} the new model would lose. "
        "Give its graph, as a plain model of the same layers: `keras.Model(model.input, model.output)`."
    )
    assert refusal(name, ValueError, model) == words.format(name, "twice (OwnCall)", "`call`")
    model = OwnConstructor(name="zoo")
    if name not in KEEPS_A_CONSTRUCTOR:
        assert refusal(name, ValueError, model) == words.format(name, "zoo (OwnConstructor)", "`__init__`")
    else:
        assert OPERATIONS[name](model)(X).shape == (6, 3)


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_not_built_or_no_model_is_refused(name):
    unbuilt = keras.Sequential([layers.Dense(3)], name="new")
    assert refusal(name, ValueError, unbuilt).startswith(f"`{name}`: model 'new' is not built, so its layers have no")
    assert re.fullmatch(rf"`{name}` expects a .*keras\.Model\. Received: 'model'", refusal(name, TypeError, "model"))
