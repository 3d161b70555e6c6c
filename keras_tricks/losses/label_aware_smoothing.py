"""Label smoothing that is strong for frequent classes and weak for rare ones.

    loss = (1 - s_y) · CE(z, y) + s_y · mean_j(-log p_j)
    s_j = tail + (head - tail) · sin(π (n_j - n_min) / (2 (n_max - n_min)))

Networks are surest of themselves on frequent classes. Made for the second stage, when the classifier is trained again
on balanced data: `models.retrain_classifier`. Zhong et al., 2021, arXiv:2104.00466, the form "concave" of
dvlab-research/MiSLAS.
"""

import keras
import numpy as np
from keras import ops

from keras_tricks._arguments import check_number
from keras_tricks.losses._class_loss import ClassCountsLoss


@keras.saving.register_keras_serializable(package="keras_tricks")
class LabelAwareSmoothing(ClassCountsLoss):
    """Cross-entropy with label smoothing by the class's number of training examples.

    `(1 - s_y) · CE + s_y · mean_j(-log p_j)`, with
    `s_j = tail + (head - tail) · sin(π (n_j - n_min) / (2 (n_max - n_min)))`.

    Args:
        class_counts: Number of training examples of each class, of shape `(classes,)`, or the training dataset, which
            is then read once. A class without examples is smoothed as the rarest one.
        smooth_head: Smoothing of the most frequent class, in `[0, 1]`. Defaults to 0.3.
        smooth_tail: Smoothing of the rarest class, in `[0, smooth_head]`. Defaults to 0.
        from_logits: Must be `True`.
        reduction: As in `keras.losses.Loss`: `"sum_over_batch_size"` (default) divides by the number of examples.
        name: Defaults to `"label_aware_smoothing"`.

    Call arguments: integer labels of shape `(batch,)` or `(batch, 1)`, `(batch, time)` for sequences, or class
    probabilities t of the shape of the logits, `(batch, ..., classes)`, for which s is the mean over t.

    Raises:
        ValueError: If an argument is out of range, in the call if the shapes do not fit, and in eager mode for labels
            outside the classes; in a compiled step their loss is NaN.

    Example:
    >>> import numpy as np, keras_tricks as kt
    >>> loss = kt.losses.LabelAwareSmoothing([900, 90, 10])
    >>> np.round(loss.smoothing, 3)
    array([0.3  , 0.042, 0.   ])

    Reference:
        Zhisheng Zhong, Jiequan Cui, Shu Liu, Jiaya Jia, "Improving Calibration for Long-Tailed Recognition", 2021,
        arXiv:2104.00466.
    """

    def __init__(
        self,
        class_counts,
        smooth_head=0.3,
        smooth_tail=0.0,
        from_logits=True,
        reduction="sum_over_batch_size",
        name="label_aware_smoothing",
    ):
        self.smooth_head = check_number("smooth_head", smooth_head, at_least=0, at_most=1)
        self.smooth_tail = check_number("smooth_tail", smooth_tail, at_least=0, at_most=self.smooth_head)
        super().__init__(class_counts, from_logits, reduction, name)

    @property
    def smoothing(self):
        """The smoothing of each class, float64, of shape `(classes,)`."""
        used = self.class_counts[self.class_counts > 0]
        rank = np.maximum(self.class_counts - used.min(), 0) / max(used.max() - used.min(), 1)
        # If all classes are of one size, each counts as the most frequent one.
        rank = rank if used.max() > used.min() else np.ones(len(rank))
        return self.smooth_tail + (self.smooth_head - self.smooth_tail) * np.sin(np.pi / 2 * rank)

    def losses(self, targets, logits):
        smoothing = targets.mean(ops.convert_to_tensor(self.smoothing, logits.dtype))
        uniform = -ops.mean(ops.log_softmax(logits, -1), -1)
        return (1 - smoothing) * targets.crossentropy(logits) + smoothing * uniform

    def get_config(self):
        return {**super().get_config(), "smooth_head": self.smooth_head, "smooth_tail": self.smooth_tail}
