"""Weighs classes late in training: a network learns features better from the data as they are.

    w_j = 1 in epochs before `start_epoch`, then c · (1 - β) / (1 - β^n_j), with a mean of 1

Cao et al., 2019, arXiv:1906.07413 (DRW), by the effective numbers of Cui et al., 2019. The weights are a variable of
the loss, so that they change in a compiled step. The same for sampling: `data.class_balanced(start_epoch=...)`.
"""

import keras

from keras_tricks._arguments import check_count
from keras_tricks._strategy import scope_of
from keras_tricks.losses._class_loss import ClassCountsLoss
from keras_tricks.losses.class_balanced import check_beta, class_balanced_weights


class DeferredReweighting(keras.callbacks.Callback):
    """Gives a loss class-balanced weights from an epoch on, in the middle of a compiled `fit`.

    For any loss of `keras_tricks.losses` with class counts; `ClassBalanced(class_counts, beta=0)` is plain
    cross-entropy until then. The loss of both training and validation changes its scale at that epoch: judge by a
    metric. At the end of training the loss has its first weights again. A run that goes on with `initial_epoch` has
    those of its epoch; give it the callback again.

    Args:
        loss: The loss, as given to `compile`, also where a model has several outputs.
        start_epoch: First epoch with class-balanced weights, counted from 0: an int of at least 0. Where the learning
            rate is stepped down, usually, at 80 % of the epochs.
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

    def on_train_begin(self, logs=None):
        if not any(part is self.loss for part in keras.tree.flatten(self.model.loss)):
            raise ValueError(
                f"DeferredReweighting: the model was not compiled with this {type(self.loss).__name__}, so its weights "
                f"would change nothing. Give both the same object; for a loaded model, `model.loss`. It was compiled "
                f"with {self.model.loss!r}."
            )
        self._deferred = False
        with scope_of(self.model):  # or XLA in the replicas could not read it
            self.loss.class_weights = keras.Variable(
                self.loss.starting_class_weights(), dtype=self.loss.dtype, trainable=False, name="class_weights"
            )
        self._compile_anew()

    def on_epoch_begin(self, epoch, logs=None):
        if (epoch >= self.start_epoch) == self._deferred:
            return
        self._deferred = not self._deferred
        late = class_balanced_weights(self.loss.class_counts, self.beta)
        self.loss.class_weights.assign(late if self._deferred else self.loss.starting_class_weights())
        if keras.backend.backend() != "tensorflow":
            self._compile_anew()  # variables that are not the model's are constants of a compiled step there

    def on_train_end(self, logs=None):
        self.loss.class_weights = self.loss.starting_class_weights()
        self._compile_anew()

    def _compile_anew(self):
        self.model.make_train_function(force=True)
        if self.model.test_function is not None:
            self.model.make_test_function(force=True)
