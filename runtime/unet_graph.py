"""What the graph of the paper's network holds, by its sizes and precision: operators, types, every weight by name.

`runtime.artifact` checks a file by it; a graph with anything more, less, or of another shape is refused.
"""

from __future__ import annotations

from unet_deploy.card import Network, Precision

KNOWN_OPERATORS = frozenset({"Conv", "ConvTranspose", "Relu", "MaxPool", "Slice", "Concat"})
PRECISION_OPERATORS: dict[Precision, frozenset[str]] = {
    "fp32": KNOWN_OPERATORS,
    "fp16": KNOWN_OPERATORS | {"Cast"},
    "int8": KNOWN_OPERATORS | {"QuantizeLinear", "DequantizeLinear"},
}
"""What a graph of each precision may compute with."""
DATA_TYPE_BYTES: dict[Precision, dict[str, int]] = {
    "fp32": {"FLOAT": 4, "INT64": 8},
    "fp16": {"FLOAT16": 2, "INT64": 8},
    "int8": {"FLOAT": 4, "INT64": 8, "INT32": 4, "INT8": 1, "UINT8": 1},
}
"""What it may store, and the bytes of one value."""
INT8_FLOAT_LAYERS = ("contracting.0.0", "head")
"""What an int8 graph computes in float32, by name; `exporters.int8` says why."""


def weight_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of the network's graph by its name; see `training.network.UNet`."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add(name: str, *shape: int, bias: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, (bias,)

    channels = network.in_channels
    for level in range(network.depth + 1):
        width = network.base_width << level
        add(f"contracting.{level}.0", width, channels, 3, 3, bias=width)
        add(f"contracting.{level}.2", width, width, 3, 3, bias=width)
        channels = width
    for step in range(network.depth):
        width = network.base_width << (network.depth - 1 - step)
        add(f"up.{step}", 2 * width, width, 2, 2, bias=width)
        add(f"expanding.{step}.0", width, 2 * width, 3, 3, bias=width)
        add(f"expanding.{step}.2", width, width, 3, 3, bias=width)
    add("head", network.classes, network.base_width, 1, 1, bias=network.classes)
    return shapes


def weight_tensors(network: Network, precision: Precision) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return data type and shape of every tensor that holds the weights of a graph, by name.

    In int8 (`exporters.int8`) a weight and its bias are three tensors each: values, scales and zero points, the latter
    two by output channel, which is the second axis of an up-convolution; `INT8_FLOAT_LAYERS` stay float32.
    """
    shapes = weight_shapes(network)
    if precision != "int8":
        data_type = "FLOAT16" if precision == "fp16" else "FLOAT"
        return {name: (data_type, shape) for name, shape in shapes.items()}
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if name.rpartition(".")[0] in INT8_FLOAT_LAYERS:
            tensors[name] = "FLOAT", shape
            continue
        is_bias = name.endswith(".bias")
        data_type, scale = ("INT32", f"{name}_quantized") if is_bias else ("INT8", name)
        channels = shape[1:2] if name.startswith("up.") and not is_bias else shape[:1]
        tensors[f"{name}_quantized"] = data_type, shape
        tensors[f"{scale}_scale"] = "FLOAT", channels
        tensors[f"{scale}_zero_point"] = data_type, channels
    return tensors


def is_activation_constant(name: str, tensor: tuple[str, tuple[int, ...]], precision: Precision) -> bool:
    """Tell whether a tensor is the one scale, or the one zero point, of an int8 graph's activation."""
    kinds = (("_scale", ("FLOAT", ())), ("_zero_point", ("UINT8", ())))
    return precision == "int8" and any(name.endswith(end) and tensor == kind for end, kind in kinds)
