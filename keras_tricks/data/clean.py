"""Data cleaning: drop what is corrupt before it spoils a run, and say what was dropped and why.

    element -> kept if every check holds, else dropped and counted under the first check that fails

An element with one NaN makes the weights NaN; a label outside the classes gives a NaN loss or an arbitrary one; one
broken image ends an epoch after hours. `tf.data`'s own `ignore_errors` drops such elements and tells nobody.
"""

import collections
import dataclasses
import itertools
import logging

from keras_tricks._arguments import check_choice, check_flag
from keras_tricks._labels.elements import called_with, require_dataset, require_tensorflow, tf
from keras_tricks.data import checks as ready_checks

_KEPT = -1  # what stands for "no check fails"
_TOLD = 10  # positions that a sentence names
_REMEMBERED = 1000  # positions that `positions` holds for each reason
_logger = logging.getLogger("keras_tricks")


def drop_corrupt(checks=None, on_error="drop", count_first=False):
    """Drops corrupt elements of a dataset, counts them by reason, and reports them; for `dataset.apply(...)`.

    The first dropped element of each reason is logged at once (logger `keras_tricks`, level warning), the totals at
    the end of each pass. Keep what this function returns to read them: `counts`, `seen`, `kept`, `positions`.

    Place it where elements are examples (before `batch`: a batch is dropped as a whole), and before `echo` and
    `cache`. The cardinality becomes unknown, so `fit` shows no total in its first epoch and warns at its end that it
    "ran out of data"; with `count_first`, it is known. With `on_error="raise"` it does not change.

    Args:
        checks: What to check, in this order: a list of checks of `keras_tricks.data.checks` (`finite`, `valid_label`,
            `within`, `shape`, `dtype`, `min_length`, `image`, `computable`) and of functions from an element to a
            boolean scalar tensor, which get a tuple's parts as separate arguments, as in `Dataset.map`; or a dict of
            those, with the reasons to count under as its keys. `None` (default) checks that all floating-point parts
            are finite.
        on_error: `"drop"` (default), or `"raise"` to stop at the first corrupt element, with its position.
        count_first: Whether to read the whole dataset once when it is applied, so that the cardinality is known. A
            later pass that keeps another number stops with an error. Defaults to `False`.

    Returns:
        A function from `tf.data.Dataset` to `tf.data.Dataset`. Its attributes describe the latest finished pass, or the
        running one before any has finished: `counts`, a dict from each reason to the number dropped; `seen`, `kept`,
        `dropped`; `positions`, a dict from each reason to the first thousand positions in the dataset, counted from 0;
        and `str(...)`, all in words.

    Raises:
        TypeError: If a check is not one, or cannot be applied to such elements.
        ValueError: If `on_error` or a check's arguments are wrong, or two checks share a reason.
        RuntimeError: On a backend other than TensorFlow.
        tf.errors.InvalidArgumentError: While the dataset is read: with `on_error="raise"` for the first corrupt
            element, and at the end of a pass in which every element was dropped.

    Example:
    >>> import numpy as np, tensorflow as tf, keras_tricks as kt
    >>> x, y = np.array([[1.0], [np.nan], [3.0]]), np.array([0, 1, 7])
    >>> clean = kt.data.drop_corrupt([kt.data.checks.finite(), kt.data.checks.valid_label(2)])
    >>> dataset = tf.data.Dataset.from_tensor_slices((x, y)).apply(clean)
    >>> [int(label) for _, label in dataset]
    [0]
    >>> clean.counts
    {'not finite': 1, 'label outside 0..1': 1}
    """
    require_tensorflow("drop_corrupt")
    check_choice("on_error", on_error, ("drop", "raise"))
    return _Cleaning(_as_checks(checks), on_error, check_flag("count_first", count_first))


def _as_checks(checks):
    if checks is None:
        return (ready_checks.finite(),)
    named = checks.items() if isinstance(checks, dict) else [(None, c) for c in _listed(checks)]
    found = []
    for reason, check in named:
        if isinstance(check, ready_checks.Check):
            found.append(check if reason is None else ready_checks.Check(str(reason), check.test))
        elif callable(check):
            reason = str(reason or getattr(check, "__name__", check))
            found.append(ready_checks.Check(reason, lambda element, c=check: called_with(c, element)))
        else:
            raise TypeError(
                "`checks` holds checks of `keras_tricks.data.checks`, such as `checks.finite()`, and functions from an "
                f"element to a boolean. Received: {check!r}"
            )
    reasons = [check.reason for check in found]
    if not found or len(set(reasons)) < len(reasons):
        raise ValueError(
            "`checks` must hold one check or more, each with a reason of its own; give a dict from reasons to checks "
            f"to name them. Received reasons: {reasons}"
        )
    return tuple(found)


def _listed(checks):
    if isinstance(checks, ready_checks.Check) or callable(checks):
        return [checks]
    try:
        return list(checks)
    except TypeError:
        raise TypeError(f"`checks` must be a list or dict of checks, or None. Received: {checks!r}") from None


@dataclasses.dataclass
class _Pass:
    """What one walk through the dataset has found."""

    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    positions: dict = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    seen: int = 0


class _Cleaning:
    """See `drop_corrupt`."""

    def __init__(self, checks, on_error, count_first):
        self._checks, self._on_error, self._count_first = checks, on_error, count_first
        self._numbers = itertools.count()
        self._running = {}  # passes by their number; an abandoned one never finishes
        self._finished = None
        self._told = set()
        # Elements seen by each pass: a table can be written to from a dataset, and no strategy makes copies of it.
        self._seen = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, default_value=0)

    def __call__(self, dataset):
        require_dataset("drop_corrupt", dataset)
        return self._raising(dataset) if self._on_error == "raise" else self._dropping(dataset)

    @property
    def counts(self):
        return {check.reason: self._shown.counts[check.reason] for check in self._checks}

    @property
    def positions(self):
        return {check.reason: list(self._shown.positions[check.reason]) for check in self._checks}

    @property
    def seen(self):
        return self._shown.seen

    @property
    def dropped(self):
        return sum(self.counts.values())

    @property
    def kept(self):
        return self.seen - self.dropped

    def __str__(self):
        return self._in_words(self._shown)

    @property
    def _shown(self):
        if self._finished is not None:
            return self._finished
        if not self._running:
            return _Pass()
        number = max(self._running)
        running = self._running[number]
        running.seen = int(self._seen.lookup(tf.constant(number, tf.int64)))
        return running

    def _in_words(self, walk):
        dropped = sum(walk.counts.values())
        if not dropped:
            return f"drop_corrupt found none of {walk.seen:,} elements corrupt."
        reasons = []
        for check in self._checks:
            count, first = walk.counts[check.reason], walk.positions[check.reason]
            if count:
                places = ", ".join(map(str, first[:_TOLD])) + (", ..." if count > _TOLD else "")
                reasons.append(f'{count:,} for "{check.reason}", at position{"s" * (count > 1)} {places}')
        return f"drop_corrupt dropped {dropped:,} of {walk.seen:,} elements: {'; '.join(reasons)}."

    def _first_failure(self, element):
        """The index of the first check that the element fails, or _KEPT."""
        failure = tf.constant(_KEPT, tf.int64)
        for index, check in reversed(list(enumerate(self._checks))):
            good = tf.convert_to_tensor(check.test(element))
            if good.dtype != tf.bool or good.shape.rank not in (0, None):
                raise TypeError(
                    f"A check must give one boolean for an element. Received: {good.dtype.name} of shape {good.shape} "
                    f"from {check.reason!r}; `tf.reduce_all` makes one of many."
                )
            failure = tf.where(good, failure, tf.constant(index, tf.int64))
        return failure

    def _raising(self, dataset):
        @tf.autograph.experimental.do_not_convert
        def checked(position, element):
            failure = self._first_failure(element)
            reason = tf.gather([check.reason for check in self._checks], tf.maximum(failure, 0))
            message = tf.strings.join(
                ["drop_corrupt: the element at position ", tf.strings.as_string(position), " is corrupt: ", reason]
            )
            with tf.control_dependencies([tf.debugging.Assert(failure < 0, [message])]):
                return tf.nest.map_structure(tf.identity, element, expand_composites=True)

        # Checked in parallel, but handed on in order: the first corrupt element is the one that is named.
        return dataset.enumerate().map(checked, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def _dropping(self, dataset):
        @tf.autograph.experimental.do_not_convert
        def checked(position, element):
            return position, self._first_failure(element), element

        examined = dataset.enumerate().map(checked, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        element_only = tf.autograph.experimental.do_not_convert(lambda _, __, element: element)
        nothing = examined.map(element_only).take(0)

        @tf.autograph.experimental.do_not_convert
        def one_pass(_):
            number = tf.numpy_function(self._begin, [], tf.int64)
            number.set_shape(())

            @tf.autograph.experimental.do_not_convert
            def is_kept(position, failure, element):
                counted = self._seen.insert(number, position + 1)

                def recorded():
                    return tf.ensure_shape(tf.numpy_function(self._drop, [number, position, failure], tf.bool), ())

                with tf.control_dependencies([counted]):
                    return tf.cond(failure < 0, lambda: True, recorded)

            @tf.autograph.experimental.do_not_convert
            def end(number):
                finished = tf.numpy_function(self._finish, [number, self._seen.lookup(number)], tf.int64)
                return nothing.take(finished)

            kept = examined.filter(is_kept).map(element_only)
            return kept.concatenate(tf.data.Dataset.from_tensors(number).flat_map(end))

        cleaned = tf.data.Dataset.from_tensors(0).flat_map(one_pass)
        if int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
            cardinality = tf.data.INFINITE_CARDINALITY
        elif self._count_first:
            cardinality = cleaned.reduce(tf.constant(0, tf.int64), lambda count, _: count + 1)
        else:
            return cleaned
        return cleaned.apply(tf.data.experimental.assert_cardinality(cardinality))

    def _begin(self):
        number = next(self._numbers)
        self._running[number] = _Pass()
        return number

    def _drop(self, number, position, failure):
        reason = self._checks[int(failure)].reason
        walk = self._running[int(number)]
        walk.counts[reason] += 1
        if len(walk.positions[reason]) < _REMEMBERED:
            walk.positions[reason].append(int(position))
        if reason not in self._told:
            self._told.add(reason)
            _logger.warning(
                'drop_corrupt dropped the element at position %d for "%s". More of this kind are only counted, and the '
                "totals follow at the end of the pass.",
                position,
                reason,
            )
        return False

    def _finish(self, number, seen):
        walk = self._running.pop(int(number))
        walk.seen = int(seen)
        self._finished = walk
        dropped = sum(walk.counts.values())
        _logger.log(logging.WARNING if dropped else logging.INFO, "%s", self._in_words(walk))
        if dropped and dropped == walk.seen:
            raise ValueError(f"nothing is left. {self._in_words(walk)} Do the checks fit the data?")
        return 0
