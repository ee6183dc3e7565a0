"""A graph that begins at raw pixels and ends at the bytes that are stored: one byte a pixel crosses the bus each way.

1. Before the network: the raw pixels as float32, times `gain`, plus `offset`; both are inputs, by channel, since a
   volume's own grey values decide them.
2. After it: labels, and the soft-max in 8 bit, by the rules of `runtime.normalise`; on a tie the lower class.
3. Always the sum of a tile's logits, which is no number if one of them is none: bytes cannot tell.
4. Integers are only cast to float32 and from it, and every operator is one that onnxruntime's CUDA provider and
   TensorRT both take. Opset 18, as the artifact's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from unet_deploy.card import ModelCard
from unet_deploy.runtime.artifact import INPUT_NAME, OPSET, OUTPUT_NAME
from unet_deploy.runtime.engines.base import ByteForm

RAW, GAIN, OFFSET = "raw", "gain", "offset"
LABELS, PROBABILITIES, CHECKSUM = "labels", "probabilities", "checksum"
RAW_TYPES: dict[str, int] = {
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "int16": TensorProto.INT16,
    "float32": TensorProto.FLOAT,
}
"""Data types that a composed graph may begin with; float32 holds every value of each."""
PREFIX = "composed_"
"""Of every tensor that is neither input nor output."""
_OURS = frozenset({RAW, GAIN, OFFSET, LABELS, PROBABILITIES, CHECKSUM})


def compose_bytes(onnx_bytes: bytes, card: ModelCard, form: ByteForm) -> bytes:
    """Return an artifact's graph, composed; without its card, which describes the graph inside.

    Parameters
    ----------
    onnx_bytes
        An artifact's file, already checked by `runtime.artifact`.
    card
        Its card.
    form
        The data type of the raw pixels, one of `RAW_TYPES`, and what is wanted.

    Returns
    -------
    bytes
        An ONNX file. Inputs: `raw` (n, c, y, x), `gain` and `offset` float32 (c, 1, 1). Outputs in this order, where
        asked for: `labels` uint8 (n, y', x'), `probabilities` uint8 (n, classes, y', x'); last `checksum` float32 (n,).
    """
    model = onnx.load_model_from_string(onnx_bytes)
    graph = model.graph
    (image,), (logits,) = graph.input, graph.output
    assert (image.name, logits.name) == (INPUT_NAME, OUTPUT_NAME), (image.name, logits.name)
    _rename(graph)
    n, _, y_in, x_in = (_size(dimension) for dimension in image.type.tensor_type.shape.dim)
    n_out, _, y, x = (_size(dimension) for dimension in logits.type.tensor_type.shape.dim)
    channels, classes = card.network.in_channels, card.network.classes
    parts = _Parts()
    parts.add("Cast", [RAW], f"{PREFIX}float", to=TensorProto.FLOAT)
    parts.add("Mul", [f"{PREFIX}float", GAIN], f"{PREFIX}scaled")
    parts.add("Add", [f"{PREFIX}scaled", OFFSET], INPUT_NAME)
    before = parts.take()
    outputs = []
    if LABELS in form.kinds:
        _add_labels(parts, classes)
        outputs.append(helper.make_tensor_value_info(LABELS, TensorProto.UINT8, [n_out, y, x]))
    if PROBABILITIES in form.kinds:
        _add_probabilities(parts, classes)
        outputs.append(helper.make_tensor_value_info(PROBABILITIES, TensorProto.UINT8, [n_out, classes, y, x]))
    axes = parts.constant("pixels", np.array([1, 2, 3], np.int64))
    parts.add("ReduceSum", [OUTPUT_NAME, axes], CHECKSUM, keepdims=0)
    outputs.append(helper.make_tensor_value_info(CHECKSUM, TensorProto.FLOAT, [n_out]))
    constants = parts.constants
    composed = helper.make_graph(
        [*before, *graph.node, *parts.take()],
        graph.name or "composed",
        [
            helper.make_tensor_value_info(RAW, RAW_TYPES[form.dtype], [n, channels, y_in, x_in]),
            helper.make_tensor_value_info(GAIN, TensorProto.FLOAT, [channels, 1, 1]),
            helper.make_tensor_value_info(OFFSET, TensorProto.FLOAT, [channels, 1, 1]),
        ],
        outputs,
        initializer=[*graph.initializer, *constants],
    )
    made = helper.make_model(
        composed,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=model.ir_version,
        producer_name="unet-deploy",
    )
    return bytes(made.SerializeToString(deterministic=True))


class _Parts:
    """Nodes and constants as they are made."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node, named as its output, unless it is there; return that name."""
        if any(output in node.output for node in self._nodes):
            return output
        self._nodes.append(helper.make_node(operator, inputs, [output], name=f"{PREFIX}{output}_node", **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        """Add a constant and return its name."""
        full = f"{PREFIX}{name}"
        if all(made.name != full for made in self.constants):
            self.constants.append(numpy_helper.from_array(np.asarray(value), full))
        return full

    def take(self) -> list[Any]:
        """Return the nodes added so far, and begin anew."""
        nodes, self._nodes = self._nodes, []
        return nodes


def _rename(graph: Any) -> None:
    """Give other names to the network's own tensors that have one of ours, as an adopted network's may."""

    def renamed(name: str) -> str:
        return f"network_{name}" if name in _OURS or name.startswith(PREFIX) else name

    for node in graph.node:
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = renamed(tensor.name)


def _size(dimension: Any) -> int | str | None:
    """Return a dimension's size or name; None where it has neither."""
    return dimension.dim_param or dimension.dim_value or None


def _slice_class(parts: _Parts, index: int) -> str:
    """Return the logits of one class, (n, 1, y, x)."""
    bounds = [parts.constant(f"class_{i}", np.array([i], np.int64)) for i in (index, index + 1)]
    axis = parts.constant("class_axis", np.array([1], np.int64))
    name = f"{PREFIX}logits_{index}"
    return parts.add("Slice", [OUTPUT_NAME, *bounds, axis], name)


def _add_labels(parts: _Parts, classes: int) -> None:
    """Two classes: is the second greater? More: the first of the largest."""
    if classes == 2:
        greater = parts.add("Greater", [_slice_class(parts, 1), _slice_class(parts, 0)], f"{PREFIX}greater")
        number = parts.add("Cast", [greater], f"{PREFIX}class_with_axis", to=TensorProto.FLOAT)
        squeezed = parts.add(
            "Squeeze", [number, parts.constant("class_axis", np.array([1], np.int64))], f"{PREFIX}class"
        )
    else:
        index = parts.add("ArgMax", [OUTPUT_NAME], f"{PREFIX}index", axis=1, keepdims=0)
        squeezed = parts.add("Cast", [index], f"{PREFIX}class", to=TensorProto.FLOAT)
    parts.add("Cast", [squeezed], LABELS, to=TensorProto.UINT8)


def _add_probabilities(parts: _Parts, classes: int) -> None:
    """Two classes: the logistic function of the difference, and what is left of 255. More: the soft-max."""
    full = parts.constant("255", np.float32(255))
    if classes == 2:
        one = parts.constant("1", np.float32(1))
        odds = parts.add("Sub", [_slice_class(parts, 1), _slice_class(parts, 0)], f"{PREFIX}difference")
        odds = parts.add("Exp", [odds], f"{PREFIX}odds")
        odds = parts.add("Add", [odds, one], f"{PREFIX}odds_and_1")
        first = parts.add("Round", [parts.add("Div", [full, odds], f"{PREFIX}share")], f"{PREFIX}first")
        second = parts.add("Sub", [full, first], f"{PREFIX}second")
        levels = parts.add("Concat", [first, second], f"{PREFIX}levels", axis=1)
    else:
        share = parts.add("Softmax", [OUTPUT_NAME], f"{PREFIX}share", axis=1)
        levels = parts.add("Round", [parts.add("Mul", [share, full], f"{PREFIX}share_255")], f"{PREFIX}levels")
    parts.add("Cast", [levels], PROBABILITIES, to=TensorProto.UINT8)
