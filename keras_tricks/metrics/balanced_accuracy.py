"""Balanced accuracy: the mean of the classes' recalls, in which a rare class counts as much as a frequent one.

    recall_j = (examples of class j that are predicted as j) / (examples of class j)
    balanced accuracy = mean of recall_j over the classes that occur

Brodersen et al., 2010. Equals scikit-learn's `balanced_accuracy_score`.
"""

import keras
import numpy as np

from keras_tricks._arguments import check_count
from keras_tricks.metrics._recalls import MeanRecall


@keras.saving.register_keras_serializable(package="keras_tricks")
class BalancedAccuracy(MeanRecall):
    """Mean over the classes of the share of a class's examples that is predicted right.

    `mean_j (right_j / examples_j)`, over the classes that occur in the data. A model that only knows frequent classes
    has a high accuracy on long-tailed data and a low balanced one. With weights, both sums are of weights.

    State: two variables, each of 2 numbers for about 4096 sums, or for one per class if there are more classes.

    Args:
        num_classes: Number of classes, at least 2.
        name: Defaults to `"balanced_accuracy"`.
        dtype: Dtype of the result. Defaults to `None`, Keras' float type.

    Call arguments: `y_true`, integer labels of shape `(batch,)` or `(batch, 1)`, with more axes for sequences and
    images, or class probabilities of the outputs' shape, of which the largest counts; `y_pred`, logits or probabilities
    of shape `(batch, ..., num_classes)`; `sample_weight`, of the labels' shape or that of its first axes. Masks count
    as weights of 0.

    Returns: NaN before the first example, and if a label is none of the classes, unless its weight is 0.

    Raises:
        TypeError, ValueError: If `num_classes` is not an integer of at least 2; when called, if shapes do not fit, and
            in eager mode for labels that are none of the classes.

    Example:
    >>> import keras_tricks as kt
    >>> metric = kt.metrics.BalancedAccuracy(2)
    >>> metric.update_state([0, 0, 0, 1], [[2.0, 1.0], [2.0, 1.0], [2.0, 1.0], [2.0, 1.0]])
    >>> float(metric.result())  # 1 for class 0, 0 for class 1
    0.5

    Reference:
        Kay H. Brodersen, Cheng Soon Ong, Klaas E. Stephan, Joachim M. Buhmann, "The Balanced Accuracy and Its Posterior
        Distribution", 2010, International Conference on Pattern Recognition.
    """

    def __init__(self, num_classes, name="balanced_accuracy", dtype=None):
        num_classes = check_count("num_classes", num_classes, at_least=2)
        super().__init__(np.ones(num_classes, "bool"), name, dtype)
        self.num_classes = num_classes

    def get_config(self):
        return {**super().get_config(), "num_classes": self.num_classes}
