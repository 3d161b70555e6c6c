"""Re-weights classes late in training, since a network learns features better from the data as they are.

    w_j = 1 in epochs before `start_epoch`, then c · (1 - β) / (1 - β^n_j), with a mean of 1

Cao et al., 2019, arXiv:1906.07413 (DRW), by the effective numbers of Cui et al., 2019. The weights are a variable of
the loss, so that they change in a compiled step. Its counterpart for sampling is
`data.class_balanced(start_epoch=...)`.
"""

import keras

from keras_tricks._arguments import check_count
from keras_tricks._keras.patches import Replacements
from keras_tricks._keras.replicas import scope_of
from keras_tricks.losses._class_loss import ClassCountsLoss
from keras_tricks.losses.class_balanced import check_beta, class_balanced_weights


class DeferredReweighting(keras.callbacks.Callback):
    """Gives a loss class-balanced weights from `start_epoch` on, in the middle of a compiled `fit`.

    For any loss of `keras_tricks.losses` with class counts; `ClassBalanced(class_counts, beta=0)` is plain
    cross-entropy until then. Training and validation loss both change scale at that epoch, so judge by a metric. When
    training ends, the loss gets its original weights back. A run that continues with `initial_epoch` has the weights of
    that epoch; give it the callback again.

    `fit` does not tell callbacks when it is interrupted. So the next use of the model (`fit`, `evaluate`, `predict`,
    `save`, `compile`) first gives the loss its original weights back; before a loop of your own, call `on_train_end()`.

    Args:
        loss: The loss, as given to `compile`, alone or for one of several outputs. If the model has a different object,
            as after copying the callback or loading a model, its only loss of the same class and arguments is used.
        start_epoch: First epoch with class-balanced weights, counted from 0: an int of at least 0. Usually where the
            learning rate is stepped down, at 80 % of the epochs.
        beta: β of the effective numbers, in `[0, 1]`. Defaults to 0.9999.

    Raises:
        TypeError: If `loss` has no class counts.
        ValueError: If a number is out of range, and when training starts, if the model was not compiled with `loss`.

    Example:
    >>> import keras, numpy as np, keras_tricks as kt
    >>> loss = kt.losses.ClassBalanced([90, 9], beta=0)
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> model.compile("sgd", loss)
    >>> deferred = kt.callbacks.DeferredReweighting(loss, start_epoch=8)
    >>> history = model.fit(np.ones((8, 4)), np.ones(8), epochs=10, callbacks=[deferred], verbose=0)

    Reference:
        Kaidi Cao, Colin Wei, Adrien Gaidon, Nikos Arechiga, Tengyu Ma, "Learning Imbalanced Datasets with
        Label-Distribution-Aware Margin Loss", 2019, arXiv:1906.07413.
    """

    def __init__(self, loss, start_epoch, beta=0.9999):
        super().__init__()
        if not isinstance(loss, ClassCountsLoss):
            raise TypeError(
                "`loss` must be a loss of keras_tricks.losses with class counts, such as LDAM(class_counts), or "
                f"ClassBalanced(class_counts, beta=0) for plain cross-entropy. Received: {loss!r}"
            )
        self.loss = loss
        self.start_epoch = check_count("start_epoch", start_epoch, at_least=0)
        self.beta = check_beta(beta)
        self._acting = self._replaced = None

    def on_train_begin(self, logs=None):
        self._release()  # an interrupted run of another model did not
        self._acting = self._loss_of_the_model()
        self._deferred = False
        with scope_of(self.model):  # or XLA in the replicas could not read it
            self._acting.class_weights = keras.Variable(
                self._acting.starting_class_weights(), dtype=self._acting.dtype, trainable=False, name="class_weights"
            )
        self._replaced = Replacements(self.model, self._release)
        _compile_anew(self.model)

    def on_epoch_begin(self, epoch, logs=None):
        if (epoch >= self.start_epoch) == self._deferred:
            return
        self._deferred = not self._deferred
        late = class_balanced_weights(self._acting.class_counts, self.beta)
        self._acting.class_weights.assign(late if self._deferred else self._acting.starting_class_weights())
        if keras.backend.backend() != "tensorflow":
            _compile_anew(self.model)  # variables that are not the model's are constants of a compiled step there

    def on_train_end(self, logs=None):
        self._release()

    def _release(self):
        if self._replaced is None:
            return
        self._replaced.take_out()
        self._acting.class_weights = self._acting.starting_class_weights()
        _compile_anew(self._replaced.model)
        self._replaced = None

    def _loss_of_the_model(self):
        """The loss itself; else the model's only one like it, since copying a callback or loading a model copies it."""
        losses = [part for part in keras.tree.flatten(self.model.loss) if isinstance(part, ClassCountsLoss)]
        same = [part for part in losses if part is self.loss]
        alike = {id(part): part for part in losses if _config(part) == _config(self.loss)}
        if same:
            return self.loss
        if len(alike) == 1:
            return alike.popitem()[1]
        raise ValueError(
            f"DeferredReweighting: the model was not compiled with this {type(self.loss).__name__}, so its weights "
            f"would change nothing. Give both the same object; for a loaded model, `model.loss`. It was compiled "
            f"with {self.model.loss!r}."
        )


def _compile_anew(model):
    model.make_train_function(force=True)
    if model.test_function is not None:
        model.make_test_function(force=True)


def _config(loss):
    return type(loss), keras.saving.serialize_keras_object(loss)["config"]
