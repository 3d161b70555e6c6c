"""Cross-entropy weighted by the effective number of a class's examples.

    E_n = (1 - β^n) / (1 - β)        w_j proportional to 1 / E_{n_j}, with a mean of 1

The n-th example of a class is likely to repeat what the others show, so n of them count as E_n. β = 0 gives plain
cross-entropy, β towards 1 the inverse frequency. Cui et al., 2019, arXiv:1901.05555. The loss is divided by the batch
size, as in richardaecn/class-balanced-loss, and not by the sum of the weights as in PyTorch's weighted cross-entropy.
"""

import math

import keras
import numpy as np
from keras import ops

from keras_tricks._arguments import check_choice, check_number
from keras_tricks.losses._class_loss import ClassCountsLoss
from keras_tricks.losses.focal import check_gamma, focal_loss

BASES = ("softmax", "sigmoid", "focal", "sigmoid_focal")


@keras.saving.register_keras_serializable(package="keras_tricks")
class ClassBalanced(ClassCountsLoss):
    """Cross-entropy in which an example weighs as much as its class needs, by the effective number of examples.

    `loss = w_y · base(y, z)`, `w_j = c · (1 - β) / (1 - β^n_j)`, with `c` such that the weights have a mean of 1 over
    the classes that have examples.

    Args:
        class_counts: Number of training examples of each class, of shape `(classes,)`, or the training dataset, which
            is then read once. A class without examples counts as one with a single example.
        beta: β in `[0, 1]`. 0 weighs all classes alike, 1 by the inverse of their counts. Defaults to 0.999; the paper
            tries 0.9, 0.99, 0.999 and 0.9999.
        base: `"softmax"` (default); `"focal"`, the softmax cross-entropy times `(1 - p_y)^gamma`; `"sigmoid"`, the sum
            of the classes' binary cross-entropies; `"sigmoid_focal"`, each of these times `(1 - p)^gamma`. With the
            sigmoids, start the last layer's bias at `-log(classes - 1)` and exclude it from decay, or training starts
            unstable.
        gamma: Exponent of the focal bases, at least 0. Defaults to 2.
        from_logits: Must be `True`.
        reduction: As in `keras.losses.Loss`: `"sum_over_batch_size"` (default) divides by the number of examples.
        name: Defaults to `"class_balanced"`.

    Call arguments: integer labels of shape `(batch,)` or `(batch, 1)`, `(batch, time)` for sequences, or class
    probabilities of the shape of the logits, `(batch, ..., classes)`.

    Raises:
        ValueError: If an argument is out of range, in the call if the shapes do not fit, and in eager mode for labels
            outside the classes; in a compiled step their loss is NaN.

    Example:
    >>> import numpy as np, keras_tricks as kt
    >>> loss = kt.losses.ClassBalanced([900, 90, 10], beta=0.99)
    >>> np.round(loss.class_weights, 2)
    array([0.23, 0.38, 2.39])

    Reference:
        Yin Cui, Menglin Jia, Tsung-Yi Lin, Yang Song, Serge Belongie, "Class-Balanced Loss Based on Effective Number
        of Samples", 2019, arXiv:1901.05555.
    """

    def __init__(
        self,
        class_counts,
        beta=0.999,
        base="softmax",
        gamma=2.0,
        from_logits=True,
        reduction="sum_over_batch_size",
        name="class_balanced",
    ):
        self.beta = check_beta(beta)
        self.base = check_choice("base", base, BASES)
        self.applies = "Sigmoid" if base.startswith("sigmoid") else "Softmax"
        self.gamma = check_gamma(gamma)
        super().__init__(class_counts, from_logits, reduction, name)

    def starting_class_weights(self):
        return class_balanced_weights(self.class_counts, self.beta)

    def losses(self, targets, logits):
        if self.base == "softmax":
            return targets.crossentropy(logits)
        if self.base == "focal":
            return focal_loss(targets, logits, self.gamma)
        probabilities = targets.as_probabilities(logits.dtype)
        losses = ops.binary_crossentropy(probabilities, logits, from_logits=True)
        if self.base == "sigmoid_focal":
            # (1 - p)^gamma of each class's right answer, for logits of any size.
            losses = losses * ops.exp(-self.gamma * (probabilities * logits + ops.softplus(-logits)))
        return ops.sum(losses, -1)

    def get_config(self):
        return {**super().get_config(), "beta": self.beta, "base": self.base, "gamma": self.gamma}


def check_beta(beta):
    return check_number("beta", beta, at_least=0, at_most=1)


def class_balanced_weights(class_counts, beta):
    """The classes' weights, float64, with a mean of 1 over those that have examples."""
    counts = np.maximum(class_counts, 1).astype("float64")
    if beta == 0:
        return np.ones(len(counts))
    # 1 - β^n would cancel where β is close to 1.
    effective = counts if beta == 1 else np.expm1(counts * math.log(beta)) / (beta - 1)
    weights = 1 / effective
    return weights / weights[class_counts > 0].mean()
