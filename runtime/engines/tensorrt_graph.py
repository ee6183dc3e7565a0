"""What TensorRT would read wrongly in a graph, found before it sees the graph.

1. Operators must be of the standard set, in a version that its parser knows.
2. Its int8 is signed, and symmetric about zero. A zero point of unsigned bytes it takes for a signed one, with a
   warning, and every value is then half the range off; one that is not zero it may drop.
3. It has no 32 bit quantised values, which onnxruntime makes of biases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from unet_deploy.errors import NotAnArtifactError
from unet_deploy.runtime.engine_plan import Flavour

OPSETS = range(13, 23)
"""13 brought per-channel quantisation."""
_SCALED = ("QuantizeLinear", "DequantizeLinear")
_SHOWN = 4


def require_buildable(onnx_bytes: bytes, flavour: Flavour) -> None:
    """Refuse a graph that TensorRT would read wrongly, or not at all.

    Raises
    ------
    NotAnArtifactError
        If so; the message names the nodes.
    """
    try:
        model = onnx.load_model_from_string(onnx_bytes)
    except Exception as error:  # protobuf's own class is imported at one seam only, `runtime.artifact`
        raise NotAnArtifactError(
            f"{len(onnx_bytes)} bytes came to build a plan from, which are no ONNX graph",
            f"{type(error).__name__}: {error}",
            fix="export the model again",
        ) from error
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if set(opsets) != {"ai.onnx"} or opsets["ai.onnx"] not in OPSETS:
        came = ", ".join(f"{domain} {version}" for domain, version in opsets.items()) or "none"
        raise NotAnArtifactError(
            f"{flavour} is given graphs of operator set ai.onnx {OPSETS.start} to {OPSETS.stop - 1}, {came} came",
            fix="export the model again: unet-deploy export writes operator set 18",
        )
    problems = quantisation_problems(model)
    if problems:
        more = len(problems) - _SHOWN
        raise NotAnArtifactError(
            f"{flavour} would read this graph wrongly",
            *problems[:_SHOWN],
            *([f"and {more} more like these"] if more > 0 else []),
            "an int8 graph for the CPU is like this; TensorRT needs one of its own, from the same calibration",
            fix=f"unet-deploy export model.pt --precision int8 --calibrate DATA --target {flavour}",
        )


def quantisation_problems(model: Any) -> list[str]:
    """Return what TensorRT would read wrongly, in words; `model` is an ``onnx.ModelProto``."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    found = ((node, _problem(node, tensors)) for node in model.graph.node if node.op_type in _SCALED)
    return [f"{node.op_type} of {node.input[0]}: {problem}" for node, problem in found if problem]


def _problem(node: Any, tensors: Mapping[str, Any]) -> str | None:
    values = tensors.get(node.input[0])
    if values is not None and values.data_type == TensorProto.INT32:
        return "32 bit quantised values"
    if len(node.input) < 3 or not node.input[2]:
        # The standard's default is an unsigned zero; of values that are stored, it is their own type.
        is_signed = values is not None and values.data_type == TensorProto.INT8
        return None if is_signed else "no zero point, which means an unsigned one"
    zero_point = tensors.get(node.input[2])
    if zero_point is None:
        return "a zero point that is computed"
    if zero_point.data_type != TensorProto.INT8:
        return f"a zero point of {TensorProto.DataType.Name(zero_point.data_type)}, INT8 was expected"
    if np.any(numpy_helper.to_array(zero_point)):
        return "a zero point that is not zero"
    return None
