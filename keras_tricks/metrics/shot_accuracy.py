"""Accuracy on the classes with many, a medium number of, or few training examples.

    many: n_j > 100        medium: 20 <= n_j <= 100        few: n_j < 20        n_j: training examples of class j
    shot accuracy = mean of recall_j over the classes of the group that occur

The three figures in which results on long-tailed data have been given since Liu et al., 2019, arXiv:1904.05160.
"""

import keras

from keras_tricks._arguments import check_choice, check_count
from keras_tricks._labels.class_counts import as_class_counts
from keras_tricks.metrics._recalls import MeanRecall

GROUPS = ("many", "medium", "few")


@keras.saving.register_keras_serializable(package="keras_tricks")
class ShotAccuracy(MeanRecall):
    """Mean recall of the classes with many, a medium number of, or few training examples.

    `mean_j (right_j / examples_j)` over the classes `j` of the group that occur in the evaluated data. Give a model
    three of them, one per group, and `BalancedAccuracy` for all classes.

    State: two variables, each of 2 numbers for about 4096 sums, or for one per class if there are more classes.

    Args:
        class_counts: Number of *training* examples of each class, of shape `(classes,)`, or the training dataset,
            which is then read once.
        group: `"many"`, `"medium"` or `"few"`.
        many: Classes with more training examples than this are in `"many"`. Defaults to 100.
        few: Classes with fewer training examples than this are in `"few"`. Defaults to 20.
        name: Defaults to `None`, for `"many_shot_accuracy"`, `"medium_shot_accuracy"` or `"few_shot_accuracy"`.
        dtype: Dtype of the result. Defaults to `None`, Keras' float type.

    Call arguments: those of `BalancedAccuracy`.

    Returns: NaN before the first example of the group, and if a label is none of the classes, unless its weight is 0.

    Raises:
        TypeError, ValueError: If an argument is out of range, or no class is in the group; when called, if shapes do
            not fit, and in eager mode for labels that are none of the classes.

    Example:
    >>> import keras_tricks as kt
    >>> metrics = [kt.metrics.ShotAccuracy([500, 50, 5], group) for group in ("many", "medium", "few")]
    >>> for metric in metrics:
    ...     metric.update_state([0, 1, 2], [[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [3.0, 0.0, 0.0]])
    ...     print(metric.name, float(metric.result()))
    many_shot_accuracy 1.0
    medium_shot_accuracy 1.0
    few_shot_accuracy 0.0

    Reference:
        Ziwei Liu, Zhongqi Miao, Xiaohang Zhan, Jiayun Wang, Boqing Gong, Stella X. Yu, "Large-Scale Long-Tailed
        Recognition in an Open World", 2019, arXiv:1904.05160.
    """

    def __init__(self, class_counts, group, many=100, few=20, name=None, dtype=None):
        counts = as_class_counts(class_counts)
        check_choice("group", group, GROUPS)
        many, few = check_bounds(many, few)
        classes = groups_of(counts, many, few)[group]
        if not classes.any():
            raise ValueError(
                f"No class has {bounds_in_words(many, few)[group]} training examples: the counts are {counts.min()} to "
                f"{counts.max()}. Set the bounds `many` and `few` to suit them, or leave this metric out. Received: "
                f"group={group!r}, many={many}, few={few}"
            )
        super().__init__(classes, name or f"{group}_shot_accuracy", dtype)
        # Not an array, which Keras could not save, and not a list, which it would track.
        self.class_counts = tuple(counts.tolist())
        self.group, self.many, self.few = group, many, few

    def get_config(self):
        return {
            **super().get_config(),
            "class_counts": list(self.class_counts),
            "group": self.group,
            "many": self.many,
            "few": self.few,
        }


def groups_of(counts, many, few):
    """For each group, which classes are in it: bool of shape `(classes,)`."""
    return {"many": counts > many, "medium": (counts >= few) & (counts <= many), "few": counts < few}


def check_bounds(many, few):
    """The bounds as plain integers; raises TypeError or ValueError if they are none, or in the wrong order."""
    many, few = check_count("many", many, at_least=0), check_count("few", few, at_least=0)
    if many < few:
        raise ValueError(f"`many` must be at least `few`: between them is 'medium'. Received: many={many}, few={few}")
    return many, few


def bounds_in_words(many, few):
    """How many training examples a class of each group has, for use in a sentence."""
    return {"many": f"more than {many}", "medium": f"{few} to {many}", "few": f"fewer than {few}"}
