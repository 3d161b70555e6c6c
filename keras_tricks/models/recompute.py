"""A model cut into segments that forget their activations: square-root memory for one more forward pass.

    bytes kept = sum of the tensors between segments + the largest segment          least of all cuts

For n equal layers the best segments have sqrt(n) layers. Chen et al., 2016, arXiv:1604.06174, whose heuristic fills
segments up to a budget; here every budget is tried, and the cuts are the best for it.
"""

import dataclasses
import functools
import itertools
import math
import numbers
import re
import warnings

import keras
from keras import tree

from keras_tricks._arguments import check_count
from keras_tricks._keras.replicas import scope_of
from keras_tricks.layers.recompute import Recompute
from keras_tricks.models._copy import rerun
from keras_tricks.models._graph import Call, is_graph, plain_functional, require_graph, trace
from keras_tricks.models._peak_memory import peak_in_a_process
from keras_tricks.models._report import as_text
from keras_tricks.models._segment import Segment
from keras_tricks.models.jit import is_jitted, jit


def recompute(model, segments="sqrt", measure=None):
    """Cuts a model into segments and returns a model that recomputes each of them in the backward pass.

    The new model has the same layers, so the same weights: training one trains the other. `model` itself is not
    changed. Losses and gradients are the same, bit for bit in graph mode; activations need about the square root of
    the memory, and a step costs up to one more forward pass.

    The model can be cut where a single tensor leads from what comes before to what comes after (inputs and masks do
    not count), so residual blocks and models inside the model stay whole. Everything but the last segment, whose
    activations are needed at once, is wrapped in `keras_tricks.layers.Recompute`. The cuts minimise the bytes of the
    tensors between segments plus those of the largest segment. A layer counts as its outputs, twice where it has an
    activation; unknown sizes count as 1.

    Args:
        model: A built Sequential or Functional `keras.Model`. If it is compiled, the new one is compiled alike, with a
            new optimizer. If its loss or metrics cannot be made from their configs, the new one is not compiled, and a
            warning says so. If it comes from `kt.jit`, so does the new one.
        segments: `"sqrt"` for the best number of segments (about the square root of the number of layers); an
            integer for that number, at least 2; or a list of layers or names to cut after. Defaults to `"sqrt"`.
        measure: A batch size, to measure the peak memory of a training step on the CPU before and after, each in a
            process of its own. This takes half a minute or more, and needs Linux and a model that loads without
            `custom_objects`. Defaults to `None`, not to measure.

    Returns:
        A Functional `keras.Model` of the same name, with a `recompute_report` that prints what to expect.

    Raises:
        TypeError: If `model` is not a Keras model, `segments` is none of the above, or `measure` not an integer.
        ValueError: If `model` is not built, subclassed, or has a constructor or `call` of its own; if it cannot be cut
            at all, or there, or that often; with `"sqrt"`, if the best cuts keep more than 90 % of the bytes.
        RuntimeError: If a training step cannot be measured.

    Example:
    >>> import keras, keras_tricks as kt
    >>> layers = [keras.layers.Dense(64, activation="relu") for _ in range(9)]
    >>> model = kt.models.recompute(keras.Sequential([keras.Input((64,)), *layers]))
    >>> print(model.recompute_report.after / model.recompute_report.before < 0.5)
    True

    Reference:
        Tianqi Chen, Bing Xu, Chiyuan Zhang, Carlos Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016,
        arXiv:1604.06174.
    """
    measure = None if measure is None else check_count("measure", measure)
    require_graph("recompute", model, "Wrap its blocks in `keras_tricks.layers.Recompute` in that code.")
    chain = _chain(model)
    ends = [piece.end for piece in chain[:-1]]
    if not ends:
        raise ValueError(
            f"Model {model.name!r} has no place to cut: nowhere does a single tensor lead from one part to the next. "
            "Wrap blocks in `keras_tricks.layers.Recompute` where you make the model."
        )
    cuts = _cuts(chain, segments)
    with scope_of(model):
        new = _rebuild(model, [chain[c - 1] for c in cuts])
        new.dtype_policy = model.dtype_policy  # not the global one; `compile` scales the loss by it
        _compile_alike(new, model)
    if is_jitted(model):
        jit(new)
    new.recompute_report = _report(chain, cuts)
    if measure is not None:
        measured = tuple(peak_in_a_process(m, measure) for m in (model, new))
        new.recompute_report = dataclasses.replace(new.recompute_report, measured=measured)
    return new


@dataclasses.dataclass(frozen=True)
class RecomputeReport:
    """What `recompute` expects of its cuts. Bytes are for one example, from the layers' output shapes.

    Attributes:
        before: Bytes of activations that the model keeps for the backward pass.
        after: The same after cutting: tensors between segments, and the largest segment.
        segments: For each segment, the name of its last layer and its bytes. The last one is not recomputed.
        measured: With `measure`, the peak memory of one training step in bytes, before and after; else `None`.
    """

    before: int
    after: int
    segments: tuple
    measured: tuple | None = None

    def __str__(self):
        summary = [f"expected: {self.before:,} -> {self.after:,} bytes an example ({self.after / self.before:.0%})"]
        if self.measured:
            before, after = self.measured
            summary.append(f"measured: {before:,} -> {after:,} bytes a step ({after / before:.0%})")
        return as_text(summary, segments=[f"up to {name}: {size:,} bytes" for name, size in self.segments])


def _compile_alike(new, model):
    if not model.compiled:
        return
    try:
        new.compile_from_config(model.get_compile_config())
    except (TypeError, ValueError) as error:
        warnings.warn(
            f"`recompute`: the new model is not compiled, since what {model.name!r} was compiled with cannot be made "
            f"again from its config ({type(error).__name__}: {str(error)[:200]}). Compile the new model yourself; a "
            "loss or metric of your own is made again if it is registered, "
            "`keras.saving.register_keras_serializable()`.",
            stacklevel=3,
        )


@dataclasses.dataclass(frozen=True)
class _Piece:
    """Operations between two neighbouring places to cut."""

    end: int  # position of its last operation, where a single tensor leaves it
    output: int  # which of that operation's outputs it is
    name: str
    edge: int  # bytes of that tensor
    work: int  # bytes of all outputs


def _chain(model):
    """The model as a chain of pieces, in the order in which it runs."""
    model_inputs, calls, model_outputs = trace(model, with_shapes=True)
    last_use = {}
    for position, call in enumerate(calls):
        last_use.update({id(t): position for t in call.takes})
    last_use.update({id(t): len(calls) for t in tree.flatten(model_outputs)})
    # Inputs may be used anywhere: they are kept in any case. So may masks and indices that are made of them alone, even
    # as numbers that attention adds to its scores: they take no memory worth saving.
    light = {id(t) for t in tree.flatten(model_inputs)}
    masks = {id(t) for t in tree.flatten(model_inputs) if not keras.backend.is_float_dtype(t.dtype)}
    pieces, live, work = [], set(), 0
    for position, call in enumerate(calls):
        inputs, outputs = call.takes, call.gives
        without_numbers = not any(keras.backend.is_float_dtype(t.dtype) for t in outputs)
        of_masks = all(id(t) in masks for t in inputs) and not getattr(call.layer, "variables", ())
        if of_masks or (without_numbers and all(id(t) in light for t in inputs)):
            light.update(map(id, outputs))
            masks.update(map(id, outputs))
        live.update(id(t) for t in outputs if id(t) not in light)
        live = {key for key in live if last_use.get(key, -1) > position}
        work += _bytes(call)
        made_here = [index for index, t in enumerate(outputs) if id(t) in live]
        if position == len(calls) - 1 or (len(live) == 1 and made_here):
            output = made_here[0] if made_here else 0
            pieces.append(_Piece(position, output, call.layer.name, _size(outputs[output]), work))
            work = 0
    return pieces


def _bytes(call):
    if is_graph(call.layer):
        return sum(piece.work for piece in _chain(call.layer))
    activated = getattr(call.layer, "activation", None) not in (None, keras.activations.linear)
    return sum(map(_size, call.gives)) * (2 if activated else 1)


def _size(tensor):
    bits = re.search(r"\d+", tensor.dtype)
    return math.prod(d or 1 for d in tensor.shape[1:]) * (int(bits[0]) // 8 if bits else 1)


# The largest share of the bytes that a plan may keep. Cutting costs up to a third of a step's arithmetic, however
# little it saves. To save less than a tenth, a batch that is smaller by a tenth does as well.
_WORTH = 0.9


def _cuts(chain, segments):
    """How many pieces lie before each cut."""
    if isinstance(segments, (list, tuple)):
        return _named(chain, segments)
    most = len(chain)
    if isinstance(segments, str) and segments == "sqrt":
        cuts = _best(chain, None)
        kept = _report(chain, cuts)
        if kept.after > _WORTH * kept.before:
            best = [name for name, _ in kept.segments[:-1]]
            raise ValueError(
                "Cutting this model would save next to nothing. "
                + (f"The best cuts, after {best}, keep {kept.after / kept.before:.0%} of the bytes. " if best else "")
                + f"It could be cut after: {[p.name for p in chain[:-1]]}; name some as `segments` to have it anyway. "
                "What lies between these stays whole, nested models too: cut them before you build on them, or wrap "
                "blocks in `keras_tricks.layers.Recompute` where you make the model."
            )
        return cuts
    if isinstance(segments, bool) or not isinstance(segments, numbers.Integral):
        raise TypeError(
            f"`segments` must be 'sqrt', a number, or a list of layers or their names. Received: segments={segments!r}"
        )
    if not 2 <= segments <= most:
        raise ValueError(
            f"`segments` must be from 2 to {most}, as many as this model has places to cut and one. "
            f"Received: segments={segments}"
        )
    return _best(chain, int(segments))


def _named(chain, layers):
    names = [layer if isinstance(layer, str) else getattr(layer, "name", layer) for layer in layers]
    places = [piece.name for piece in chain[:-1]]
    if not names or not set(names) <= set(places):
        raise ValueError(
            f"`segments` must name layers after which a single tensor leads on: {places}. Received: {names}"
        )
    return [index for index, name in enumerate(places, start=1) if name in names]


def _best(chain, count):
    """The cuts with the least sum of edges plus largest segment, by trying every size of the largest segment."""
    starts = [0, *itertools.accumulate(piece.work for piece in chain)]
    sizes = sorted({b - a for a, b in itertools.combinations(starts, 2)})
    sizes = sizes[:: max(1, len(sizes) // 256)]
    plans = []
    for budget in [*sizes, starts[-1]]:

        @functools.cache
        def edges(end, left, budget=budget):
            """Least bytes of edges before piece `end`, with `left` segments, and the cuts."""
            if end == 0:
                return (0, ()) if not left else (math.inf, ())
            best = (math.inf, ())
            if left == 0:
                return best
            for begin in range(end - 1, -1, -1):
                if starts[end] - starts[begin] > budget:
                    break
                kept, cuts = edges(begin, left and left - 1)
                if begin:
                    kept, cuts = kept + chain[begin - 1].edge, (*cuts, begin)
                best = min(best, (kept, cuts))
            return best

        for end in range(len(chain)):  # in this order, so that it does not recurse deeply
            edges(end, count and 0)
        plans.append(edges(len(chain), count)[1])
    valid = [plan for plan in plans if count is None or len(plan) == count - 1]
    return list(min(valid, key=lambda plan: (_report(chain, plan).after, len(plan))))


def _report(chain, cuts):
    bounds = [0, *cuts, len(chain)]
    parts = [chain[a:b] for a, b in itertools.pairwise(bounds)]
    works = [sum(piece.work for piece in part) for part in parts]
    after = max(works) + sum(part[-1].edge for part in parts[:-1])
    return RecomputeReport(sum(works), after, tuple((p[-1].name, w) for p, w in zip(parts, works, strict=True)))


def _rebuild(model, ends):
    """The model on new inputs; at each end, what has been run since the last one becomes a segment."""
    inputs, calls, outputs = trace(model)
    ends = {piece.end: piece for piece in ends}
    position, number = itertools.count(), itertools.count(1)
    done = []

    def run(call, args, kwargs):
        outputs = call.layer(*args, **kwargs)
        done.append(Call(call.layer, args, kwargs, outputs))
        piece = ends.get(next(position))
        if piece is None:
            return outputs
        flat = tree.flatten(outputs)
        needed, inside = _leading_to(flat[piece.output], done)
        name = f"segment_{next(number)}_{piece.name}"
        segment = Segment.of_calls(needed, inside, flat[piece.output], name=name)
        flat[piece.output] = Recompute(segment, name=f"recompute_{name}")(needed if len(needed) > 1 else needed[0])
        done.clear()
        return tree.pack_sequence_as(outputs, flat)

    graph = plain_functional(model) if isinstance(model, keras.Sequential) else model
    return type(graph)(inputs, rerun(calls, outputs, run), name=model.name)


def _leading_to(output, calls):
    """Those of the calls that compute a tensor, and what they take from elsewhere."""
    wanted, found = {id(output)}, []
    for call in reversed(calls):
        if any(id(t) in wanted for t in call.gives):
            found.insert(0, call)
            wanted.update(map(id, call.takes))
    made = {id(t) for call in found for t in call.gives}
    taken = {id(t): t for call in found for t in call.takes if id(t) not in made}
    return list(taken.values()), found
