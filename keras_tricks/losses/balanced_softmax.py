"""Softmax cross-entropy that knows how frequent the classes are in training.

    loss = CE(z + log n, y)

With the counts in the training loss, the logits need not learn them: without them, at test time, they are those of a
balanced world. Ren et al., 2020, arXiv:2007.10740. Adding log n or log n/N is the same, so it equals `LogitAdjusted`
with tau 1.
"""

import keras
from keras import ops

from keras_tricks._labels.class_counts import log_priors
from keras_tricks.losses._class_loss import ClassCountsLoss


@keras.saving.register_keras_serializable(package="keras_tricks")
class BalancedSoftmax(ClassCountsLoss):
    """Softmax cross-entropy of `z + log n`, where n is each class's number of training examples.

    Predict with the plain logits, `argmax z`; do not adjust them again. There is nothing to tune.

    Args:
        class_counts: Number of training examples of each class, of shape `(classes,)`, or the training dataset, which
            is then read once. A class without examples counts as one with a single example.
        from_logits: Must be `True`.
        reduction: As in `keras.losses.Loss`: `"sum_over_batch_size"` (default) divides by the number of examples.
        name: Defaults to `"balanced_softmax"`.

    Call arguments: integer labels of shape `(batch,)` or `(batch, 1)`, `(batch, time)` for sequences, or class
    probabilities of the shape of the logits, `(batch, ..., classes)`.

    Raises:
        ValueError: If an argument is out of range, in the call if the shapes do not fit, and in eager mode for labels
            outside the classes; in a compiled step their loss is NaN.

    Example:
    >>> import numpy as np, keras_tricks as kt
    >>> loss = kt.losses.BalancedSoftmax([900, 90, 10])
    >>> round(float(loss(np.array([2]), np.zeros((1, 3)))), 3)  # -log(10 / 1000)
    4.605

    Reference:
        Jiawei Ren, Cunjun Yu, Shunan Sheng, Xiao Ma, Haiyu Zhao, Shuai Yi, Hongsheng Li, "Balanced Meta-Softmax for
        Long-Tailed Visual Recognition", 2020, arXiv:2007.10740.
    """

    def __init__(self, class_counts, from_logits=True, reduction="sum_over_batch_size", name="balanced_softmax"):
        super().__init__(class_counts, from_logits, reduction, name)

    def losses(self, targets, logits):
        return targets.crossentropy(logits + ops.convert_to_tensor(log_priors(self.class_counts), logits.dtype))
