"""The paper's network as an ONNX graph, written node by node.

1. The architecture is one, so its graph is written down instead of traced: 53 nodes at depth 4, no shape arithmetic,
   no local paths, the same bytes on every machine (docs/decisions/0003-graph-written-not-traced.md).
2. Sizes n, y, x are dynamic; crop margins are constants of the depth.
3. What the graph computes is proved against the torch network by `exporters.parity`, never assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from unet_deploy.card import ModelCard, Network
from unet_deploy.card_json import CARD_HASH_KEY, METADATA_KEY, dump_card
from unet_deploy.runtime.artifact import INPUT_NAME, MAX_IR_VERSION, OPSET, OUTPUT_NAME, hash_card

Weights = Mapping[str, npt.NDArray[np.float32]]


def build_graph(network: Network, weights: Weights) -> onnx.ModelProto:
    """Return the network as an ONNX model without metadata.

    Parameters
    ----------
    network
        Its sizes.
    weights
        float32 arrays by their names in `training.network.UNet`.
    """
    writer = _Writer(weights)
    x, skips = INPUT_NAME, []
    for level in range(network.depth + 1):
        if level:
            x = writer.add("MaxPool", [x], f"pool.{level}", kernel_shape=[2, 2], strides=[2, 2])
        x = writer.add_block(x, f"contracting.{level}")
        skips.append(x)
    skips.pop()  # the bottom is no skip
    for step, margin in enumerate(network.geometry.crop_margins):
        x = writer.add_convolution("ConvTranspose", x, f"up.{step}", kernel_shape=[2, 2], strides=[2, 2])
        skip = writer.add_crop(skips.pop(), f"crop.{step}", margin)
        x = writer.add("Concat", [skip, x], f"concat.{step}", axis=1)
        x = writer.add_block(x, f"expanding.{step}")
    writer.add_convolution("Conv", x, "head", output=OUTPUT_NAME, kernel_shape=[1, 1])
    assert not set(weights) - writer.used, f"weights left over: {sorted(set(weights) - writer.used)}"

    shrink = 2 * network.geometry.context
    graph = helper.make_graph(
        writer.nodes,
        "unet",
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, ["n", network.in_channels, "y", "x"])],
        [
            helper.make_tensor_value_info(
                OUTPUT_NAME, TensorProto.FLOAT, ["n", network.classes, f"y - {shrink}", f"x - {shrink}"]
            )
        ],
        writer.initializers,
    )
    model = helper.make_model(
        graph,
        producer_name="unet-deploy",
        ir_version=MAX_IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    onnx.checker.check_model(model)
    return model


def stamp_card(model: onnx.ModelProto, card: ModelCard) -> bytes:
    """Return the model's bytes with the card as metadata; any earlier metadata is replaced."""
    stamped = onnx.ModelProto()
    stamped.CopyFrom(model)
    del stamped.metadata_props[:]
    text = dump_card(card)
    for key, value in ((METADATA_KEY, text), (CARD_HASH_KEY, hash_card(text))):
        entry = stamped.metadata_props.add()
        entry.key, entry.value = key, value
    data: bytes = stamped.SerializeToString(deterministic=True)
    return data


class _Writer:
    """Collects nodes and initialisers; each `add` returns the name of the node's output."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.used: set[str] = set()
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def add(self, operator: str, inputs: list[str], name: str, *, output: str | None = None, **attributes: Any) -> str:
        output = output or f"{name}.out"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=name, **attributes))
        return output

    def add_constant(self, name: str, value: npt.NDArray[Any]) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add_convolution(self, operator: str, x: str, name: str, *, output: str | None = None, **attributes: Any) -> str:
        names = [f"{name}.weight", f"{name}.bias"]
        self.used.update(names)
        return self.add(
            operator, [x, *(self.add_constant(n, self.weights[n]) for n in names)], name, output=output, **attributes
        )

    def add_block(self, x: str, name: str) -> str:
        for layer in (0, 2):  # positions of the convolutions in the torch block; 1 and 3 are the ReLUs
            x = self.add_convolution("Conv", x, f"{name}.{layer}", kernel_shape=[3, 3])
            x = self.add("Relu", [x], f"{name}.{layer + 1}")
        return x

    def add_crop(self, x: str, name: str, margin: int) -> str:
        bounds = {"starts": [margin] * 2, "ends": [-margin] * 2, "axes": [2, 3]}
        names = [self.add_constant(f"{name}.{key}", np.array(value, np.int64)) for key, value in bounds.items()]
        return self.add("Slice", [x, *names], name)
