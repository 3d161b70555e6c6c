"""Softmax cross-entropy with the classes' log frequencies, times tau, added to the logits in training.

    loss = CE(z + τ · log π, y)        π_j = n_j / N

τ = 1 is right for the balanced error rate; other values are a means of tuning. Menon et al., 2021, arXiv:2007.07314.
For a model that is trained already, `models.adjust_logits` does the same.
"""

import keras
from keras import ops

from keras_tricks._arguments import check_number
from keras_tricks._labels.class_counts import log_priors
from keras_tricks.losses._class_loss import ClassCountsLoss


@keras.saving.register_keras_serializable(package="keras_tricks")
class LogitAdjusted(ClassCountsLoss):
    """Softmax cross-entropy of `z + tau · log(n / N)`, where n is each class's number of training examples.

    Predict with the plain logits, `argmax z`; do not adjust them again.

    Args:
        class_counts: Number of training examples of each class, of shape `(classes,)`, or the training dataset, which
            is then read once. A class without examples counts as one with a single example.
        tau: τ, at least 0. 0 is plain cross-entropy, 1 (default) aims at equal classes, more favours rare ones.
        from_logits: Must be `True`.
        reduction: As in `keras.losses.Loss`: `"sum_over_batch_size"` (default) divides by the number of examples.
        name: Defaults to `"logit_adjusted"`.

    Call arguments: integer labels of shape `(batch,)` or `(batch, 1)`, `(batch, time)` for sequences, or class
    probabilities of the shape of the logits, `(batch, ..., classes)`.

    Raises:
        ValueError: If an argument is out of range, in the call if the shapes do not fit, and in eager mode for labels
            outside the classes; in a compiled step their loss is NaN.

    Example:
    >>> import numpy as np, keras_tricks as kt
    >>> loss = kt.losses.LogitAdjusted([900, 90, 10], tau=0.5)
    >>> round(float(loss(np.array([2]), np.zeros((1, 3)))), 3)
    2.602

    Reference:
        Aditya Krishna Menon, Sadeep Jayasumana, Ankit Singh Rawat, Himanshu Jain, Andreas Veit, Sanjiv Kumar,
        "Long-tail learning via logit adjustment", 2021, arXiv:2007.07314.
    """

    def __init__(self, class_counts, tau=1.0, from_logits=True, reduction="sum_over_batch_size", name="logit_adjusted"):
        self.tau = check_number("tau", tau, at_least=0)
        super().__init__(class_counts, from_logits, reduction, name)

    def losses(self, targets, logits):
        offsets = self.tau * log_priors(self.class_counts)
        return targets.crossentropy(logits + ops.convert_to_tensor(offsets, logits.dtype))

    def get_config(self):
        return {**super().get_config(), "tau": self.tau}
