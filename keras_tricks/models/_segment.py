"""A piece of a model's graph as a layer: calls of layers, in order, from some tensors to one."""

import dataclasses

import keras
from keras import tree

from keras_tricks.layers._shared import serialized


@keras.saving.register_keras_serializable(package="keras_tricks")
@dataclasses.dataclass(frozen=True)
class Edge:
    """Stands for a tensor of the graph."""

    number: int

    def get_config(self):
        return {"number": self.number}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@dataclasses.dataclass(frozen=True)
class _Call:
    """One call. Keras and TensorFlow leave the contents alone in this form, which they would not in a tuple."""

    operation: int  # its position among the segment's
    args: tuple  # with an `Edge` for each tensor
    kwargs: dict
    outputs: int  # how many tensors it gives; edges are numbered in this order, after the inputs


@dataclasses.dataclass(frozen=True)
class _Input:
    arguments: dict  # of `keras.Input`


@keras.saving.register_keras_serializable(package="keras_tricks")
class Segment(keras.layers.Layer):
    """Calls of operations as one layer, from some tensors to one.

    It calls them itself. A Functional model would do so too, but two of these that share a layer cannot be loaded: each
    numbers the calls of a layer from 0, and finds those of the other. Here calls leave no trace in the layers.

    `Segment.of_calls` makes one.
    """

    def __init__(self, inputs, operations, calls, output, **kwargs):
        super().__init__(autocast=False, **kwargs)  # each layer inside has a dtype policy of its own
        self.supports_masking = True
        self.inputs = tuple(inputs)
        self.operations = operations
        self.calls = tuple(calls)
        self.output_edge = output

    @classmethod
    def of_calls(cls, inputs, calls, output, **kwargs):
        """The segment of calls that `_graph.trace` has found, or that were made since."""
        edges, operations, numbered = {}, {}, []

        def number(tensor):
            return edges.setdefault(id(tensor), Edge(len(edges)))

        for tensor in inputs:
            number(tensor)
        for call in calls:
            position, _ = operations.setdefault(id(call.layer), (len(operations), call.layer))
            arguments = tree.map_structure(lambda x: edges.get(id(x), x), (call.args, call.kwargs))
            numbered.append(_Call(position, *arguments, len(call.gives)))
            for tensor in call.gives:
                number(tensor)
        return cls(
            [_Input(input_arguments(tensor)) for tensor in inputs],
            [operation for _, operation in operations.values()],
            numbered,
            edges[id(output)],
            **kwargs,
        )

    def as_model(self):
        """A Functional model of the same calls, for reading."""
        inputs = [keras.Input(**x.arguments) for x in self.inputs]
        inputs = inputs if len(inputs) > 1 else inputs[0]
        return keras.Model(inputs, self.call(inputs), name=self.name)

    def call(self, inputs, training=None):
        tensors = list(inputs) if isinstance(inputs, list | tuple) else [inputs]

        def fill_in(x):
            return tensors[x.number] if isinstance(x, Edge) else x

        for call in self.calls:
            args, kwargs = tree.map_structure(fill_in, (call.args, call.kwargs))
            operation = self.operations[call.operation]
            if training is not None and isinstance(operation, keras.Layer):
                kwargs = {**kwargs, "training": training}  # over what the call said, as in Keras' models
            tensors += tree.flatten(operation(*args, **kwargs))
        return tensors[self.output_edge.number]

    def compute_mask(self, inputs, previous_mask):
        return None  # the layers inside have put theirs on the output

    def get_config(self):
        return {
            **super().get_config(),
            "inputs": [x.arguments for x in self.inputs],
            "operations": [serialized(operation) for operation in self.operations],
            "calls": [
                {
                    "operation": call.operation,
                    "arguments": keras.saving.serialize_keras_object([call.args, call.kwargs]),
                    "outputs": call.outputs,
                }
                for call in self.calls
            ],
            "output": self.output_edge.number,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        inputs = [_Input(arguments) for arguments in config.pop("inputs")]
        operations = [keras.saving.deserialize_keras_object(operation) for operation in config.pop("operations")]
        calls = [
            _Call(call["operation"], *keras.saving.deserialize_keras_object(call["arguments"]), call["outputs"])
            for call in config.pop("calls")
        ]
        return cls(inputs, operations, calls, Edge(config.pop("output")), **config)


def input_arguments(tensor):
    """What makes a `keras.Input` like this tensor."""
    arguments = {"batch_shape": tuple(tensor.shape), "dtype": tensor.dtype}
    return arguments | {kind: True for kind in ("sparse", "ragged") if getattr(tensor, kind, False)}
