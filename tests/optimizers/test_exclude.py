"""What `exclude...` arguments leave out, before and after saving."""

import pathlib
import re
import warnings

import keras
import pytest
import tensorflow as tf

import keras_tricks as kt

L = keras.layers
GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.fixture(autouse=True)
def nothing_is_traced():
    """What is kept does not depend on it, and tracing takes most of the time."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def attention():
    inputs = keras.Input((3, 8))
    x = inputs
    for name in "ab":
        x = L.MultiHeadAttention(2, 4, name=name)(x, inputs)
    return keras.Model(inputs, L.Dense(1)(L.Flatten()(x)))


def towers():
    def tower(name):
        inputs = keras.Input((4,))
        return keras.Model(inputs, L.Dense(3, name="second")(L.Dense(3, name="first")(inputs)), name=name)

    inputs = keras.Input((4,))
    both = L.Concatenate()([tower("left")(inputs), tower("right")(inputs)])
    return keras.Model(inputs, L.Dense(1, name="first")(both))


def sequential():
    return keras.Sequential([keras.Input((4,)), L.Dense(3), L.Dense(3), L.Dense(2, name="head")], name="net")


def in_a_sequential():
    return keras.Sequential([keras.Input((4,)), sequential(), L.Dense(2, name="head")], name="outer")


def recurrent():
    inputs = keras.Input((4, 2))
    x = L.Bidirectional(L.LSTM(3, return_sequences=True))(inputs)
    return keras.Model(inputs, L.TimeDistributed(L.Dense(2))(kt.layers.ReZero(L.Dense(6))(x)))


@keras.saving.register_keras_serializable(package="test_exclude")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [keras.Sequential([L.Dense(3), L.Dense(3)]) for _ in range(2)]

    def build(self, input_shape):
        for block in self.blocks:
            block.build((None, 3))
        self.built = True

    def call(self, x):
        return self.blocks[1](self.blocks[0](x))


def subclassed():
    model = Subclassed()
    model.build((None, 3))
    return model


# A model, what to leave out, and how many variables that is.
ENTRIES = [
    (attention, lambda m: [v for v in m.get_layer("a").trainable_variables if v.path.endswith("query/kernel")], 1),
    (attention, lambda m: m.get_layer("b"), 8),
    (towers, lambda m: [m.get_layer("left")], 4),
    (towers, lambda m: m.get_layer("right").get_layer("first"), 2),
    (towers, lambda m: [m.get_layer("first").kernel, m.get_layer("left").get_layer("first").kernel], 2),
    (towers, lambda m: ["^first/kernel"], 3),
    (sequential, lambda m: [m.layers[1]], 2),
    (sequential, lambda m: [m.layers[2].kernel.path], 1),
    (sequential, lambda m: [f"^{m.layers[2].kernel.path}$", "bias"], 4),
    (in_a_sequential, lambda m: [m.layers[0].layers[2], m.layers[1].bias], 3),
    (recurrent, lambda m: [m.layers[1]], 6),
    (recurrent, lambda m: [m.layers[2].trainable_variables[0], m.layers[3]], 3),
    (subclassed, lambda m: m.blocks[1], 4),
    (subclassed, lambda m: m.blocks[0].layers[1].kernel, 1),
]


def left_out(optimizer):
    return optimizer.without_decay


@pytest.mark.parametrize(("make", "entries", "count"), ENTRIES)
def test_what_was_left_out_before_saving_is_left_out_after_loading(make, entries, count, tmp_path):
    L.Dense(1)  # so that layers without a name have other numbers than in a new process
    model = make()
    optimizer = kt.AdaptiveGradientClipping(
        kt.LAMB(
            weight_decay=0.5, exclude_from_weight_decay=entries(model), exclude_from_layer_adaptation=entries(model)
        ),
        exclude=entries(model),
    )
    model.compile(optimizer, "mse")
    optimizer.build(model.trainable_variables)
    inner = optimizer.inner_optimizer
    expected = left_out(inner)
    assert sum(expected) == count
    model.save(tmp_path / "m.keras")
    keras.backend.clear_session(free_memory=False)
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert left_out(loaded.optimizer.inner_optimizer) == expected
    assert loaded.optimizer.inner_optimizer.adapted == inner.adapted == [not out for out in expected]
    assert [axes is None for axes in loaded.optimizer.unit_axes] == expected
    assert loaded.optimizer.unit_axes == optimizer.unit_axes
    # and a second time
    loaded.save(tmp_path / "again.keras")
    assert left_out(keras.models.load_model(tmp_path / "again.keras").optimizer.inner_optimizer) == expected


# One with "^net/" means the paths of that model, and is refused after loading, where they do not begin so.
UNIQUE_PATHS = [c for c in ENTRIES if c[0] in (attention, sequential, recurrent) and "^" not in str(c[1](c[0]()))]


@pytest.mark.parametrize(("make", "entries", "count"), UNIQUE_PATHS)
def test_an_optimizer_that_is_saved_before_it_is_built_leaves_out_the_same(make, entries, count, tmp_path):
    model = make()
    model.compile(kt.LAMB(weight_decay=0.5, exclude_from_weight_decay=entries(model)), "mse")
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras").optimizer
    model.optimizer.build(model.trainable_variables)
    assert left_out(loaded) == left_out(model.optimizer)
    assert sum(left_out(loaded)) == count


def test_a_path_that_several_variables_have_is_not_guessed(tmp_path):
    model = towers()
    model.compile(kt.LAMB(exclude_from_weight_decay=[model.get_layer("left")]), "mse")
    model.save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match=r"3 variables have that path.*before it is saved"):
        keras.models.load_model(tmp_path / "m.keras")
    model.optimizer.build(model.trainable_variables)
    model.get_layer("left").trainable = False
    with pytest.raises(ValueError, match=r"with the path '.*' some were left out"):
        kt.LAMB.from_config(model.optimizer.get_config()).build(model.trainable_variables)


def test_the_config_is_to_be_read():
    keras.backend.clear_session(free_memory=False)
    model = sequential()
    optimizer = kt.LAMB(exclude_from_weight_decay=[model.layers[2], "dense/kernel"])
    optimizer.build(model.trainable_variables)
    config = optimizer.get_config()["exclude_from_weight_decay"]
    assert config["entries"] == ["dense/kernel"]
    assert [config["paths"][position] for position in config["positions"]] == [
        "dense/kernel",
        "head/kernel",
        "head/bias",
    ]


def test_a_clone_for_a_new_model_of_the_same_kind_leaves_out_the_same_layers():
    model, other = sequential(), sequential()
    optimizer = kt.LAMB(weight_decay=0.5, exclude_from_weight_decay=[model.layers[1]])
    optimizer.build(model.trainable_variables)
    clone = kt.LAMB.from_config(optimizer.get_config())
    clone.build(other.trainable_variables)
    assert left_out(clone) == left_out(optimizer)


def named(*names):
    inputs = x = keras.Input((4,))
    for name in names:
        x = L.Dense(4, name=name)(x)
    return keras.Model(inputs, x)


def test_other_variables_are_found_by_path_and_new_ones_by_the_patterns():
    model = named("stem", "body", "head")
    model.get_layer("head").trainable = False
    optimizer = kt.LAMB(weight_decay=0.5, exclude_from_weight_decay=[model.get_layer("body"), "bias"])
    optimizer.build(model.trainable_variables)
    model.get_layer("stem").trainable, model.get_layer("head").trainable = False, True
    clone = kt.LAMB.from_config(optimizer.get_config())
    with pytest.warns(UserWarning, match="was resolved for 4 variables, and the optimizer has 4 now, or others"):
        clone.build(model.trainable_variables)
    assert [v.path for v in model.trainable_variables] == ["body/kernel", "body/bias", "head/kernel", "head/bias"]
    assert left_out(clone) == [True, True, False, True]
    with pytest.raises(ValueError, match="of which the optimizer has none now"):
        kt.LAMB.from_config(optimizer.get_config()).build([keras.Variable([1.0], name="elsewhere")])


def test_a_layer_that_was_frozen_after_the_build_does_not_keep_the_file_from_loading(tmp_path):
    model = named("body", "head")
    model.compile(kt.LAMB(weight_decay=0.5, exclude_from_weight_decay=[model.get_layer("head").kernel]), "mse")
    model.optimizer.build(model.trainable_variables)
    model.get_layer("body").trainable = False
    model.save(tmp_path / "m.keras")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = keras.models.load_model(tmp_path / "m.keras")
    assert any("was resolved for 4 variables" in str(w.message) for w in caught)
    assert any("does not fit the optimizer" in str(w.message) for w in caught)
    assert left_out(loaded.optimizer) == [True, False]


HOSTILE = ["(a+)+X", "(a|a)*X", "a*a*a*a*a*a*a*X", "a?" * 40 + "a" * 40 + "X", "([a-z]+)*X", r"(\w{1,9}){9}X"]


@pytest.mark.parametrize("pattern", HOSTILE)
def test_a_pattern_of_a_file_cannot_run_for_ever(pattern):
    variables = [keras.Variable([1.0], name="a" * 60)]
    optimizer = kt.LAMB(exclude_from_weight_decay=["aaa"])
    optimizer.build(variables)
    config = optimizer.get_config()
    config["exclude_from_weight_decay"]["entries"] = [pattern]
    again = kt.LAMB.from_config(config)
    again.build(variables)  # by position: the pattern is not run
    assert again.decay_exclusions.of(variables) == [True]
    config["exclude_from_weight_decay"] = [pattern]
    with pytest.raises(ValueError, match=r"repeats too much.*compile=False"):
        kt.LAMB.from_config(config).build(variables)


@pytest.mark.parametrize("pattern", [r"block_\d+/.*l$", r"(^|/)a\.b/", "(gamma|beta)$", r"norm[^/]*/(?:gamma|b)", "*"])
def test_the_patterns_that_people_write_are_run_from_a_config(pattern):
    variables = []
    for layer, name in (("block_12", "kernel"), ("a.b", "beta"), ("norm", "gamma")):
        with keras.name_scope(layer):
            variables.append(keras.Variable([1.0], name=name))
    if pattern == "*":
        with pytest.raises(ValueError, match="invalid regular expression"):
            kt.LAMB.from_config({"exclude_from_weight_decay": [pattern]})
        return
    optimizer = kt.LAMB.from_config({"exclude_from_weight_decay": [pattern]})
    expected = [re.search(pattern, v.path) is not None for v in variables]
    assert optimizer.decay_exclusions.of(variables) == expected


@pytest.mark.parametrize("value", [{"entries": []}, {"paths": ["a"], "positions": [0], "more": 1}, {"head": 1}])
def test_a_mapping_that_is_no_saved_exclusion_is_refused(value):
    with pytest.raises((TypeError, ValueError), match="exclude_from_weight_decay"):
        kt.LAMB(exclude_from_weight_decay=value).build([keras.Variable([1.0])])


def test_files_with_patterns_load():
    # Written before positions were saved: LAMB(weight_decay=0.5, beta_1=0.8, exclude_from_weight_decay=[head],
    # exclude_from_layer_adaptation=[body.kernel, "bias"]).
    optimizer = keras.models.load_model(GOLDEN / "lamb.keras").optimizer
    assert left_out(optimizer) == [False, False, True, True]
    assert optimizer.adapted == [False, False, True, False]
    assert int(optimizer.iterations) == 1
    assert float(optimizer.beta_1) == optimizer.get_config()["beta_1"] == 0.8
    assert all(abs(v.numpy()).max() > 0 for v in [*optimizer.first_moments, *optimizer.second_moments])
