"""The fp32 graph in fp16: half the bytes, float32 in and out.

1. Every float32 initialiser becomes float16; one Cast stands behind the input and one before the output.
2. float16 ends at 65,504. Weights beyond are refused, and so are activations beyond it or near it on real tiles:
   measured in float32 with torch, since an engine may compute in float32 between casts and not show them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from unet_deploy.errors import ParityError
from unet_deploy.runtime.artifact import INPUT_NAME, OUTPUT_NAME
from unet_deploy.runtime.engines.base import Batch
from unet_deploy.training.network import UNet

FP16_LARGEST = 65504.0
HEADROOM = 4
"""Activations on the tiles must stay below the largest value by this factor: other tiles will be brighter."""
_SHOWN = 5


def convert_to_fp16(parent: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph of `exporters.graph.build_graph` in float16, with float32 input and output.

    The weights must be in range: see `require_fp16_range`.
    """
    model = onnx.ModelProto()
    model.CopyFrom(parent)
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    inside = {name: f"{name}.fp16" for name in (INPUT_NAME, OUTPUT_NAME)}
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [inside.get(name, name) for name in names]
    first = _cast(INPUT_NAME, inside[INPUT_NAME], TensorProto.FLOAT16)
    last = _cast(inside[OUTPUT_NAME], OUTPUT_NAME, TensorProto.FLOAT)
    nodes = [first, *graph.node, last]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)  # types that do not meet are our bug
    return model


def _cast(source: str, target: str, data_type: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}.cast", to=data_type)


def require_fp16_range(model: UNet, tiles: Sequence[Batch], *, data: str) -> None:
    """Refuse a network whose weights, or activations on the tiles, do not fit float16.

    Parameters
    ----------
    model
        The torch network.
    tiles
        Normalised float32 tiles, (n, c, y, x).
    data
        What the tiles are, for the message.

    Raises
    ------
    ParityError
        If a weight is beyond 65,504, or an activation beyond a quarter of it.
    """
    weights = {name: float(value.detach().abs().max()) for name, value in model.state_dict().items()}
    activations = measure_activations(model, tiles)
    problems = [
        f"weight {name}: {value:.3g}, at most {FP16_LARGEST:.0f} fits"
        for name, value in weights.items()
        if not value <= FP16_LARGEST
    ]
    limit = FP16_LARGEST / HEADROOM
    problems += [
        f"output of {name}: {value:.3g} on {data}, at most {limit:.0f} was expected (a quarter of what fits)"
        for name, value in activations.items()
        if not value <= limit
    ]
    if problems:
        more = len(problems) - _SHOWN
        raise ParityError(
            "the network does not fit fp16: values would overflow to infinity",
            *problems[:_SHOWN],
            *([f"and {more} more"] if more > 0 else []),
            fix="export it as fp32: --precision fp32",
        )


def measure_activations(model: UNet, tiles: Sequence[Batch]) -> dict[str, float]:
    """Return the largest absolute value of the input and of every layer's output, over all tiles."""
    largest = {INPUT_NAME: max((float(np.abs(tile).max()) for tile in tiles), default=0.0)}

    def watch(name: str) -> Any:
        def note(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
            # Not Python's max: of two values it would drop a NaN.
            largest[name] = float(np.maximum(largest.get(name, 0.0), float(output.abs().max())))

        return note

    layers = [(name, module) for name, module in model.named_modules() if not [*module.children()]]
    handles = [module.register_forward_hook(watch(name)) for name, module in layers]
    try:
        model.eval()
        with torch.inference_mode():
            for tile in tiles:
                model(torch.from_numpy(tile))
    finally:
        for handle in handles:
            handle.remove()
    return largest
