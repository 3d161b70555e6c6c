"""Cross-entropy that gives less weight to examples that are classified well already.

    loss = alpha_y · (1 - p_y)^gamma · -log p_y        p = softmax(z)

Lin et al., 2017, arXiv:1708.02002, who write it for sigmoids; this is the form of
`keras.losses.CategoricalFocalCrossentropy`, for integer labels too.
"""

import keras
import numpy as np
from keras import ops

from keras_tricks._arguments import check_number
from keras_tricks.losses._class_loss import ClassLoss


@keras.saving.register_keras_serializable(package="keras_tricks")
class SparseFocal(ClassLoss):
    """Softmax cross-entropy times `(1 - p_y)^gamma`, for integer labels or class probabilities.

    `loss = alpha_y · (1 - p_y)^gamma · -log p_y`. With `gamma=0` and a list as `alpha` it is cross-entropy with
    class weights, for sequences and for each output of a model too, where `fit(class_weight=...)` does not work.

    Args:
        gamma: At least 0; 0 is plain cross-entropy. Defaults to 2.
        alpha: `None` (default) for 1, one number for all classes, or a list of one per class, not negative.
        from_logits: Must be `True`.
        reduction: As in `keras.losses.Loss`: `"sum_over_batch_size"` (default) divides by the number of examples.
        name: Defaults to `"sparse_focal"`.

    Call arguments: integer labels of shape `(batch,)` or `(batch, 1)`, `(batch, time)` for sequences, or class
    probabilities t of the shape of the logits, `(batch, ..., classes)`, for which it is the sum of t_j times the loss
    of class j.

    Raises:
        ValueError: If an argument is out of range, in the call if the shapes do not fit, and in eager mode for labels
            outside the classes; in a compiled step their loss is NaN.

    Example:
    >>> import keras, numpy as np, keras_tricks as kt
    >>> labels, logits = np.array([0, 2]), np.array([[2.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    >>> np.round(kt.losses.SparseFocal(gamma=2.0, reduction=None)(labels, logits).numpy(), 3)
    array([0.011, 1.788], dtype=float32)

    Reference:
        Tsung-Yi Lin, Priya Goyal, Ross Girshick, Kaiming He, Piotr Dollár, "Focal Loss for Dense Object Detection",
        2017, arXiv:1708.02002.
    """

    def __init__(self, gamma=2.0, alpha=None, from_logits=True, reduction="sum_over_batch_size", name="sparse_focal"):
        super().__init__(from_logits, reduction, name)
        self.gamma = check_gamma(gamma)
        self.alpha = _checked_alpha(alpha)

    def check_logits(self, y_pred):
        super().check_logits(y_pred)
        if isinstance(self.alpha, list) and len(self.alpha) != y_pred.shape[-1]:
            raise ValueError(
                f"`alpha` has {len(self.alpha)} values, one a class, but the logits have shape {tuple(y_pred.shape)}."
            )

    def losses(self, targets, logits):
        if not isinstance(self.alpha, list):
            return (1.0 if self.alpha is None else self.alpha) * focal_loss(targets, logits, self.gamma)
        return focal_loss(targets, logits, self.gamma, ops.convert_to_tensor(self.alpha, logits.dtype))

    def get_config(self):
        return {**super().get_config(), "gamma": self.gamma, "alpha": self.alpha}


def check_gamma(gamma):
    return check_number("gamma", gamma, at_least=0)


def focal_loss(targets, logits, gamma, alpha=None):
    """sum_j t_j · alpha_j · (1 - p_j)^gamma · -log p_j, of shape `(...)`."""
    if targets.labels is not None:
        losses = _modulated(targets.crossentropy(logits), gamma)
        return losses if alpha is None else losses * targets.mean(alpha)
    losses = _modulated(-ops.log_softmax(logits, -1), gamma)
    return ops.sum(targets.probabilities * (losses if alpha is None else losses * alpha), -1)


def _modulated(crossentropy, gamma):
    # 1 - p, which must not be 0: for gamma < 1 its power has no gradient there.
    miss = ops.maximum(-ops.expm1(-crossentropy), 1e-14)
    return ops.power(miss, gamma) * crossentropy


def _checked_alpha(alpha):
    if alpha is None:
        return None
    if np.ndim(alpha) == 0:
        return check_number("alpha", alpha, at_least=0)
    if np.ndim(alpha) > 1 or np.size(alpha) == 0:
        raise ValueError(f"`alpha` must be None, a number or a list of one a class. Received: alpha={alpha!r}")
    return [check_number("alpha", value, at_least=0) for value in alpha]
