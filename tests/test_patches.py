"""Replacing methods: what of others lies below or on top of a replacement survives it, whoever is taken out first."""

import gc
import itertools
import weakref

import keras
import pytest

from keras_tricks._keras.patches import is_replaced, replace, replaced, replacing


class Owner:
    def method(self, x):
        return [x]


def ours(name):
    return lambda plain, x: [name, *plain(x)]


class Foreign:
    """Somebody else's replacement, put back in the way that most callbacks do."""

    def __init__(self, owner, name):
        self.owner, self.before = owner, owner.method
        owner.method = lambda x: [name, *self.before(x)]

    def __call__(self):
        self.owner.method = self.before


@pytest.mark.parametrize("out", list(itertools.permutations(range(3))))
def test_three_of_ours_are_taken_out_in_any_order(out):
    owner, names = Owner(), "abc"
    taking_out = [replace(owner, "method", ours(name)) for name in names]
    assert owner.method(0) == ["c", "b", "a", 0]
    left = set(range(3))
    for i in out:
        taking_out[i]()
        left.remove(i)
        assert owner.method(0) == [*(names[k] for k in sorted(left, reverse=True)), 0]
    assert "method" not in vars(owner)
    assert not is_replaced(owner, "method")


@pytest.mark.parametrize("ours_first_in", [True, False])
@pytest.mark.parametrize("ours_first_out", [True, False])
def test_another_ones_wrapper_survives_ours_in_any_order(ours_first_in, ours_first_out):
    owner = Owner()
    if ours_first_in:
        take_out, put_back = replace(owner, "method", ours("ours")), Foreign(owner, "other")
        assert owner.method(0) == ["other", "ours", 0]
    else:
        put_back, take_out = Foreign(owner, "other"), replace(owner, "method", ours("ours"))
        assert owner.method(0) == ["ours", "other", 0]
    if ours_first_out:
        take_out()
        assert owner.method(0) == ["other", 0]
        put_back()
    else:
        put_back()
        take_out()
    assert owner.method(0) == [0]
    take_out = replace(owner, "method", ours("again"))
    assert owner.method(0) == ["again", 0]
    take_out()
    assert owner.method(0) == [0]


def test_what_stands_in_for_a_method_is_asked_of_it():
    owner, function = Owner(), ours("a")
    assert not is_replaced(owner, "method")
    with replaced(owner, "method", function):
        assert is_replaced(owner, "method")
        assert list(replacing(owner, "method")) == [function]
        with replaced(owner, "method", ours("b")):
            assert [f is function for f in replacing(owner, "method")] == [False, True]
        with pytest.raises(ZeroDivisionError), replaced(owner, "method", ours("b")):
            _ = 1 / 0
        assert list(replacing(owner, "method")) == [function]
    assert not list(replacing(owner, "method"))


def test_a_replacement_that_is_taken_out_holds_nothing_alive():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    take_out = replace(model, "evaluate", lambda plain: plain())
    take_out()
    gone = weakref.ref(model)
    del model, take_out
    gc.collect()
    assert gone() is None
