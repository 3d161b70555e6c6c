"""The learning rate for another batch size: in proportion to the batch, or to its square root.

    linear: base · batch_size/base_batch_size        sqrt: base · sqrt(batch_size/base_batch_size)

Goyal et al., 2017, arXiv:1706.02677 (linear, SGD with momentum); You et al., 2020, arXiv:1904.00962 (sqrt, LAMB).
"""

import math

from keras_tricks._arguments import check_choice, check_count, check_number


def scale_learning_rate(base, *sizes, batch_size=None, base_batch_size=None, rule="linear"):
    """The rate for `batch_size`, from one that is known to be good for `base_batch_size`.

    Args:
        base: The rate that is good for `base_batch_size`.
        *sizes: Not used: the batch sizes and the rule must be given by name, since by position they are easily
            confused.
        batch_size: Examples per optimizer step, of all replicas and all accumulated batches together.
        base_batch_size: The same for the run that `base` comes from.
        rule: `"linear"` (default) multiplies the rate by the ratio of the batches: for SGD with momentum. `"sqrt"`
            multiplies it by the square root of the ratio: for LAMB, and usually for Adam.

    Returns:
        The rate, a float.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If a number is not positive, or for an unknown rule.

    Example:
    >>> import keras_tricks as kt
    >>> kt.schedules.scale_learning_rate(0.1, batch_size=1024, base_batch_size=256)
    0.4
    >>> kt.schedules.scale_learning_rate(0.1, batch_size=1024, base_batch_size=256, rule="sqrt")
    0.2

    Reference:
        Priya Goyal, Piotr Dollár, Ross Girshick, Pieter Noordhuis, Lukasz Wesolowski, Aapo Kyrola, Andrew Tulloch,
        Yangqing Jia, Kaiming He, "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017, arXiv:1706.02677.
    """
    if sizes or batch_size is None or base_batch_size is None:
        raise TypeError(
            "The batch sizes are given by name: scale_learning_rate(0.1, batch_size=1024, base_batch_size=256) is the "
            f"rate for batches of 1024, if 0.1 is good for 256. Received: {sizes or (batch_size, base_batch_size)}"
        )
    base = check_number("base", base, above=0)
    ratio = check_count("batch_size", batch_size) / check_count("base_batch_size", base_batch_size)
    check_choice("rule", rule, ("linear", "sqrt"))
    return base * (ratio if rule == "linear" else math.sqrt(ratio))
