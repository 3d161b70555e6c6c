"""Softmax cross-entropy with a margin that is larger for rarer classes.

    loss = CE(s · (z - m_y e_y), y)        m_j = max_margin · n_j^(-1/4) / max_k n_k^(-1/4)

A rare class must win by more, since few examples pin its border down poorly. The logits are cosines, since otherwise a
long weight vector would win the margin back: the last layer is a `layers.NormalizedDense`. Cao et al., 2019,
arXiv:1906.07413, equal to kaidic/LDAM-DRW.
"""

import keras
import numpy as np
from keras import ops

from keras_tricks._arguments import check_number
from keras_tricks.losses._class_loss import ClassCountsLoss


@keras.saving.register_keras_serializable(package="keras_tricks")
class LDAM(ClassCountsLoss):
    """Cross-entropy of `scale · (z - m_y)`, with a margin m_y from the label's class, on logits that are cosines.

    `m_j = max_margin · n_j^(-1/4) / max_k n_k^(-1/4)`. End the model with `layers.NormalizedDense(classes)`, with its
    scale of 1. Its `argmax` is the prediction; its probabilities are `softmax(scale · z)`. Made for deferred
    re-weighting: `callbacks.DeferredReweighting`.

    Args:
        class_counts: Number of training examples of each class, of shape `(classes,)`, or the training dataset, which
            is then read once. A class without examples has the largest margin.
        max_margin: The margin of the rarest class, at least 0, in units of a cosine. Defaults to 0.5.
        scale: Greater than 0; multiplies the cosines, whose softmax would otherwise be almost flat. Defaults to 30.
        from_logits: Must be `True`.
        reduction: As in `keras.losses.Loss`: `"sum_over_batch_size"` (default) divides by the number of examples.
        name: Defaults to `"ldam"`.

    Call arguments: integer labels of shape `(batch,)` or `(batch, 1)`, `(batch, time)` for sequences, or class
    probabilities t of the shape of the logits, `(batch, ..., classes)`, for which `t_j · m_j` is taken off.

    Raises:
        ValueError: If an argument is out of range, in the call if the shapes do not fit, and in eager mode for labels
            outside the classes; in a compiled step their loss is NaN.

    Example:
    >>> import numpy as np, keras_tricks as kt
    >>> loss = kt.losses.LDAM([10000, 625, 16])
    >>> loss.margins
    array([0.1, 0.2, 0.5])

    Reference:
        Kaidi Cao, Colin Wei, Adrien Gaidon, Nikos Arechiga, Tengyu Ma, "Learning Imbalanced Datasets with
        Label-Distribution-Aware Margin Loss", 2019, arXiv:1906.07413.
    """

    def __init__(
        self,
        class_counts,
        max_margin=0.5,
        scale=30.0,
        from_logits=True,
        reduction="sum_over_batch_size",
        name="ldam",
    ):
        self.max_margin = check_number("max_margin", max_margin, at_least=0)
        self.scale = check_number("scale", scale, above=0)
        super().__init__(class_counts, from_logits, reduction, name)

    @property
    def margins(self):
        """The margin of each class, float64, of shape `(classes,)`."""
        fewest = self.class_counts[self.class_counts > 0].min()
        return self.max_margin * (fewest / np.maximum(self.class_counts, fewest)) ** 0.25

    def losses(self, targets, logits):
        margins = targets.as_probabilities(logits.dtype) * ops.convert_to_tensor(self.margins, logits.dtype)
        return targets.crossentropy(self.scale * (logits - margins))

    def get_config(self):
        return {**super().get_config(), "max_margin": self.max_margin, "scale": self.scale}
