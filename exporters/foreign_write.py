"""A rewritten network as an ONNX graph like ours: input ``image``, output ``logits``, the context cut off."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from unet_deploy.errors import AdoptionError
from unet_deploy.exporters.foreign_graph import END, PixelGraph
from unet_deploy.exporters.foreign_reach import Shapes
from unet_deploy.runtime.artifact import INPUT_NAME, MAX_IR_VERSION, OPSET, OUTPUT_NAME


def infer_shapes(graph: PixelGraph, side: int, *, source: str) -> Shapes:
    """Return the shape of every tensor on the way from a square input to the logits.

    Raises
    ------
    AdoptionError
        If they do not follow from the graph.
    """
    dims = (1, graph.in_channels, side, side)
    model = _make_model(
        [_node(node.operator, node.inputs, node.outputs, node.name, node.attributes) for node in graph.nodes],
        graph,
        helper.make_tensor_value_info(graph.input_name, TensorProto.FLOAT, dims),
        onnx.ValueInfoProto(name=graph.logits),
    )
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        raise AdoptionError(
            f"{source} is no network of constant sizes: a tile of {side} px goes through it no further than this",
            next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__),
            fix="export a network whose input sides may be any multiple of its down-sampling",
        ) from error
    shapes = {graph.input_name: dims}
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    names = [name for node in graph.nodes for name in node.outputs if name]
    unknown = [name for name in names if len(shapes.get(name, ())) != 4 or min(shapes[name]) < 1]
    if unknown:
        raise AdoptionError(
            f"{source}: the size of {unknown[0]!r} does not follow from its input's",
            f"{shapes.get(unknown[0], 'nothing')} was found for an input of {side} px, (n, c, y, x) was expected",
            fix="export a network of two dimensions whose input sides may be any multiple of its down-sampling",
        )
    return shapes


def write_graph(graph: PixelGraph, *, classes: int, context: int, source: str) -> onnx.ModelProto:
    """Return the network as a model of ours, without metadata.

    Parameters
    ----------
    graph
        The network, rewritten.
    classes
        Channels of its logits. A single one is the logit of the second of two classes: the first's is 0.
    context
        Pixels to cut off each side.
    source
        Where it came from, for messages.

    Raises
    ------
    AdoptionError
        If operator set 18 cannot express it.
    """
    names = {graph.input_name: INPUT_NAME}

    def ours(name: str) -> str:  # no name of theirs can then be one that we, or a composed graph, have use for
        return names.get(name) or (name and f"foreign.{name}")

    nodes = [
        _node(node.operator, [*map(ours, node.inputs)], [*map(ours, node.outputs)], ours(node.name), node.attributes)
        for node in graph.nodes
    ]
    last, constants = ours(graph.logits), {ours(name): value for name, value in graph.constants.items()}
    if classes == 1:
        nodes.append(_node("Sub", [last, last], ["adopted.zero"], "adopted.zero", {}))  # stays no number if one is none
        nodes.append(_node("Concat", ["adopted.zero", last], ["adopted.both"], "adopted.both", {"axis": 1}))
        last = "adopted.both"
    cut = {"starts": [context] * 2, "ends": [-context or END] * 2, "axes": [2, 3]}
    constants |= {f"adopted.crop.{key}": np.array(value, np.int64) for key, value in cut.items()}
    nodes.append(_node("Slice", [last, *(f"adopted.crop.{key}" for key in cut)], [OUTPUT_NAME], "adopted.crop", {}))
    renamed = PixelGraph(
        nodes=graph.nodes,
        constants=constants,
        input_name=INPUT_NAME,
        logits=OUTPUT_NAME,
        in_channels=graph.in_channels,
    )
    shrink = f" - {2 * context}" if context else ""
    model = _make_model(
        nodes,
        renamed,
        helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, ["n", graph.in_channels, "y", "x"]),
        helper.make_tensor_value_info(
            OUTPUT_NAME, TensorProto.FLOAT, ["n", max(classes, 2), f"y{shrink}", f"x{shrink}"]
        ),
    )
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise AdoptionError(
            f"{source} cannot be written in operator set {OPSET}",
            str(error).splitlines()[0],
            fix=f"export it with opset_version={OPSET}",
        ) from error
    return model


def _node(operator: str, inputs: Any, outputs: Any, name: str, attributes: dict[str, Any]) -> onnx.NodeProto:
    return helper.make_node(operator, [*inputs], [*outputs], name=name, **attributes)


def _make_model(nodes: list[onnx.NodeProto], graph: PixelGraph, image: Any, logits: Any) -> onnx.ModelProto:
    constants = [numpy_helper.from_array(np.ascontiguousarray(v), name) for name, v in graph.constants.items()]
    return helper.make_model(
        helper.make_graph(nodes, "adopted", [image], [logits], constants),
        producer_name="unet-deploy",
        ir_version=MAX_IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
