"""Another program's ONNX file, opened safely: what it takes, what it gives, nothing rewritten yet.

1. The file is read once, as bytes; it must parse and be valid ONNX, without external data, functions, sub-graphs
   (If, Loop, Scan) or operators of other domains. Nothing in it is run before that.
2. Its operator set is brought to ours: an older one by onnx's own converter; a newer one stays and is given our number
   when the graph is rewritten (`exporters.foreign_graph`), where the result is compared.
3. It has one input, float32 (n, c, y, x), and one output, or the one that was named.
4. A soft-max or sigmoid at its end is passed over, so that the output is logits; an arg-max cannot be.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, numpy_helper

from unet_deploy.card_json import METADATA_KEY
from unet_deploy.errors import AdoptionError, ModelNotFoundError, NotAnArtifactError, UnknownNameError, UnsafeModelError
from unet_deploy.runtime.artifact import MAX_FILE_BYTES, OPSET, parse_model

SHOWN = 5
"""So many problems of one kind are named in a message."""
GRAPH_ATTRIBUTES = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
TENSOR_ATTRIBUTES = (onnx.AttributeProto.TENSOR, onnx.AttributeProto.TENSORS)
PASSED_OVER = {"Identity", "Dropout"}
"""Nodes that change nothing when a network is used."""
NOT_LOGITS = {
    *("ArgMax", "ArgMin", "TopK", "Hardmax", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "Where"),
    *("Round", "Floor", "Ceil", "Cast", "Not", "Squeeze", "Flatten", "Reshape", "Tanh", "Relu", "Clip", "HardSigmoid"),
    *("NonMaxSuppression", "Transpose", "Exp"),
}
"""What a graph that ends in logits does not end in."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ForeignModel:
    """A foreign file in memory.

    `logits` is the name of the tensor that is the network's logits, `input_name` of its input; `notes` say in words
    what was passed over; `opset` and `producer` are what the file says of itself.
    """

    model: onnx.ModelProto
    source: str
    sha256: str
    opset: int
    producer: str
    input_name: str
    in_channels: int
    logits: str
    is_sigmoid: bool
    notes: tuple[str, ...]


def load_foreign(path: Path, *, output: str | None = None) -> ForeignModel:
    """Read and check a foreign ONNX file; see the module.

    Parameters
    ----------
    path
        The file.
    output
        Which of the graph's outputs is the segmentation, if there are several.

    Raises
    ------
    ModelNotFoundError
        If there is no file.
    NotAnArtifactError
        If it is no ONNX file, or is damaged.
    UnsafeModelError
        If it holds what a segmentation network has no need of.
    AdoptionError
        If it is an artifact of ours already, or its input or output are not those of a 2-D segmentation network.
    UnknownNameError
        If it has no output of that name.
    """
    if not path.is_file():
        raise ModelNotFoundError(
            f"no model file at {path}", "an ONNX file was expected", fix="check the path, or export the network as ONNX"
        )
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise UnsafeModelError(
            f"{path} is {size} bytes, at most {MAX_FILE_BYTES} were expected",
            "ONNX files beyond that keep their weights outside themselves",
            fix="adopt a smaller network",
        )
    return read_foreign(path.read_bytes(), source=str(path), output=output)


def read_foreign(data: bytes, *, source: str, output: str | None = None) -> ForeignModel:
    """Check the bytes of a foreign file; see `load_foreign`."""
    model = parse_model(data, source)
    if any(entry.key == METADATA_KEY for entry in model.metadata_props):
        raise AdoptionError(
            f"{source} has a model card of ours already",
            "there is nothing to adopt",
            fix="use it as it is, unpacked if it is in a package: unet-deploy segment VOLUME.zarr --model FILE",
        )
    _require_plain(model, source)
    _require_valid(model, source)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    model = _raise_opset(model, opset, source)
    input_name, channels = _find_input(model, source)
    last = _choose_output(model, output, source)
    logits, is_sigmoid, notes = _find_logits(model, last, source)
    return ForeignModel(
        model=model,
        source=source,
        sha256=hashlib.sha256(data).hexdigest(),
        opset=opset,
        producer=f"{model.producer_name} {model.producer_version}".strip() or "unknown",
        input_name=input_name,
        in_channels=channels,
        logits=logits,
        is_sigmoid=is_sigmoid,
        notes=notes,
    )


def attribute_of(node: Any, name: str, default: Any = None) -> Any:
    """Return an attribute's value as Python has it, or the default."""
    for attribute in node.attribute:
        if attribute.name == name:
            value = onnx.helper.get_attribute_value(attribute)
            return value.decode() if isinstance(value, bytes) else value
    return default


def name_node(node: Any) -> str:
    """Return how messages call a node: its operator and its name, or its output's."""
    return f"{node.op_type} {node.name or node.output[0]!r}"


def _require_plain(model: Any, source: str) -> None:
    problems: list[str] = []
    nodes = list(model.graph.node)
    tensors = [
        *model.graph.initializer,
        *(t for n in nodes for a in n.attribute if a.type in TENSOR_ATTRIBUTES for t in (a.t, *a.tensors)),
    ]
    outside = [t.name or "(constant)" for t in tensors if t.external_data or t.data_location != TensorProto.DEFAULT]
    if outside:
        problems.append(f"weights in another file: {', '.join(map(repr, outside[:SHOWN]))}")
    holders = [name_node(n) for n in nodes if any(a.type in GRAPH_ATTRIBUTES for a in n.attribute)]
    if holders:
        problems.append(f"graphs within the graph: {', '.join(holders[:SHOWN])}")
    strangers = sorted({f"{n.domain}.{n.op_type}" for n in nodes if n.domain not in ("", "ai.onnx")})
    if strangers:
        problems.append(f"operators of other domains: {', '.join(strangers[:SHOWN])}")
    if model.functions or model.training_info or model.graph.sparse_initializer or model.graph.quantization_annotation:
        problems.append("functions, training information, sparse or annotated tensors")
    if problems:
        raise UnsafeModelError(
            f"{source} holds what a segmentation network has no need of",
            *problems,
            fix="export the network again as one plain ONNX file of standard operators, weights included",
        )


def _require_valid(model: Any, source: str) -> None:
    try:
        onnx.checker.check_model(model)
        for tensor in model.graph.initializer:
            numpy_helper.to_array(tensor)  # does it have as many bytes as it declares?
    except (onnx.checker.ValidationError, ValueError, TypeError) as error:
        raise NotAnArtifactError(
            f"{source} is not valid ONNX, or is damaged",
            str(error).splitlines()[0] if str(error) else type(error).__name__,
            fix="copy or export the file again",
        ) from error


def _raise_opset(model: Any, opset: int, source: str) -> Any:
    newest = onnx.defs.onnx_opset_version()
    if opset > newest:
        raise AdoptionError(
            f"{source} has operator set {opset}, at most {newest} was expected",
            f"that is the newest which onnx {onnx.__version__} knows",
            fix=f"export it with an older one (opset_version={OPSET}), or update onnx",
        )
    if opset >= OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except (RuntimeError, onnx.version_converter.ConvertError) as error:
        raise AdoptionError(
            f"{source} has operator set {opset}, which cannot be brought to {OPSET}",
            f"onnx {onnx.__version__}: {str(error).splitlines()[0]}",
            fix=f"export it with a newer one: opset_version={OPSET}",
        ) from error


def _find_input(model: Any, source: str) -> tuple[str, int]:
    held = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in held]
    shapes = {v.name: [d.dim_value or d.dim_param or "?" for d in v.type.tensor_type.shape.dim] for v in inputs}
    if len(inputs) != 1 or len(shapes[inputs[0].name]) != 4:
        came = "; ".join(f"{name} ({', '.join(map(str, shape))})" for name, shape in shapes.items()) or "none"
        raise AdoptionError(
            f"{source} does not take one image (n, c, y, x): it takes {came}",
            "a 2-D network with one input was expected",
            fix="export a network of two dimensions with one input",
        )
    (value,) = inputs
    if value.type.tensor_type.elem_type != TensorProto.FLOAT:
        raise AdoptionError(
            f"{source} takes {TensorProto.DataType.Name(value.type.tensor_type.elem_type)}, FLOAT was expected",
            f"input {value.name!r}; grey values are normalised outside the graph, by what the card says",
            fix="export the network in float32, without the steps that read an image",
        )
    channels = value.type.tensor_type.shape.dim[1].dim_value or _channels_of_first(model, value.name)
    if not channels:
        raise AdoptionError(
            f"{source} does not say how many channels it takes",
            f"input {value.name!r} has a channel axis of any length, and no convolution stands first",
            fix="export it with a fixed number of channels; y and x may be of any length",
        )
    return value.name, channels


def _channels_of_first(model: Any, name: str) -> int:
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[0] == name and node.input[1] in shapes:
            return int(shapes[node.input[1]][1] * attribute_of(node, "group", 1))
    return 0


def _choose_output(model: Any, output: str | None, source: str) -> str:
    names = [str(value.name) for value in model.graph.output]
    if output is not None:
        if output not in names:
            raise UnknownNameError.of_unknown_name("output", output, names)
        return output
    if len(names) > 1:
        raise AdoptionError(
            f"{source} has {len(names)} outputs: {', '.join(names)}",
            "which of them is the segmentation cannot be guessed",
            fix=f"--logits {names[0]}",
        )
    return names[0]


def _find_logits(model: Any, name: str, source: str) -> tuple[str, bool, tuple[str, ...]]:
    """Return the tensor before a final soft-max or sigmoid, whether that was a sigmoid, and what was passed over."""
    producers = {made: node for node in model.graph.node for made in node.output}
    notes: list[str] = []
    is_sigmoid = False
    while (node := producers.get(name)) is not None:
        if node.op_type in PASSED_OVER:
            name = node.input[0]
        elif node.op_type in ("Softmax", "LogSoftmax", "Sigmoid") and not notes:
            axis = attribute_of(node, "axis", -1)
            if node.op_type != "Sigmoid" and axis not in (1, -3):
                raise AdoptionError(
                    f"{source} ends in {name_node(node)} over axis {axis}, axis 1 was expected",
                    "probabilities of a pixel's classes are those over its channels",
                    fix="export the network without it: its output must be logits",
                )
            notes.append(f"the final {name_node(node)} is left out: logits come out, probabilities are made of them")
            is_sigmoid = node.op_type == "Sigmoid"
            name = node.input[0]
        elif node.op_type in NOT_LOGITS and not notes:  # before a soft-max anything is logits
            raise AdoptionError(
                f"{source} ends in {name_node(node)}, not in logits",
                "probabilities and labels are made of logits: one number for each class and pixel",
                fix="export the network without its last step, or name another output: --logits NAME",
            )
        else:
            break
    return name, is_sigmoid, tuple(notes)
