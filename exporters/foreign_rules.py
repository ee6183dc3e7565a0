"""Which nodes of a foreign graph can stream, told from the graph alone; what cannot is named, with what to do.

A node may compute on pixels only what `runtime.adopted_graph` lists: something that depends on a pixel's surroundings.
What depends on the tile as a whole (its mean, its size, its middle) would differ from tile to tile, and every seam
would show it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.errors import AdoptionError
from unet_deploy.exporters.foreign import PASSED_OVER, SHOWN, attribute_of, name_node
from unet_deploy.runtime.adopted_graph import ADOPTED_OPERATORS, POINTWISE_OPERATORS

Constants = Mapping[str, npt.NDArray[Any]]

STATISTICS = "is computed from the whole tile, so that every tile would be normalised by itself"
POOLED = "looks at the whole tile, so that a pixel's result would depend on where its tile ends"
RETRAIN_NORM = "train the network with batch normalisation, whose constants are fixed, and export that"
RETRAIN_GATE = "train it without global pooling (squeeze-and-excite, scSE, ASPP image pooling), and export that"
EXPORT_PLAIN = "export a network of convolutions, poolings, up-sampling and pointwise functions"
WHOLE_TILE: dict[str, tuple[str, str]] = {
    "InstanceNormalization": (STATISTICS, RETRAIN_NORM),
    "GroupNormalization": (STATISTICS, RETRAIN_NORM),
    "LayerNormalization": (STATISTICS, RETRAIN_NORM),
    "MeanVarianceNormalization": (STATISTICS, RETRAIN_NORM),
    "LpNormalization": (STATISTICS, RETRAIN_NORM),
    "GlobalAveragePool": (POOLED, RETRAIN_GATE),
    "GlobalMaxPool": (POOLED, RETRAIN_GATE),
    "GlobalLpPool": (POOLED, RETRAIN_GATE),
    "MatMul": ("relates every pixel of the tile to every other", "use a network without attention over space"),
    "Einsum": ("relates every pixel of the tile to every other", "use a network without attention over space"),
    "Softmax": ("sums over the tile or ties channels in its middle", "use a network without attention over space"),
    "GridSample": ("reads from places that it computes", "use a network without sampling on a grid"),
}
"""What an operator does that cannot stream, and what to do about it."""
MEANS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare")
CHANNEL_AXES = (1, -3)
COORDINATES = ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric", "asymmetric")
"""Of Resize: where a pixel lies does not depend on how large the tile is."""


def require_streamable(nodes: Iterable[Any], *, source: str) -> None:
    """Refuse operators whose result depends on more than a pixel's surroundings.

    Raises
    ------
    AdoptionError
        If there are any; all are named, those with the plainest reason first.
    """
    nodes = list(nodes)
    worst = [n for n in nodes if n.op_type in WHOLE_TILE or n.op_type in MEANS]
    if worst:
        _refuse_whole_tile(worst, source)
    problems = [p for node in nodes if (p := _node_problem(node))]
    if problems:
        more = [f"and {len(problems) - SHOWN} more like these"] if len(problems) > SHOWN else []
        raise AdoptionError(
            f"{source} cannot be tiled: {len(problems)} of its nodes cannot be",
            *problems[:SHOWN],
            *more,
            fix=EXPORT_PLAIN,
        )


def require_uniform(nodes: Iterable[Any], constants: Constants, *, source: str) -> None:
    """Refuse constants that are not the same at every pixel: they belong to a tile of one size.

    Raises
    ------
    AdoptionError
        If there are any.
    """
    problems = []
    for node in nodes:
        if node.op_type not in POINTWISE_OPERATORS and node.op_type != "Concat":
            continue
        for name in node.input:
            value = constants.get(name)
            if value is None:
                continue
            if node.op_type == "Concat" or any(n != 1 for n in value.shape[-2:]) or value.ndim > 4:
                shape = " × ".join(map(str, value.shape))
                problems.append(f"{name_node(node)} takes a constant of {shape}, one value for each place in a tile")
    if problems:
        raise AdoptionError(
            f"{source} depends on where in its tile a pixel lies",
            *problems[:SHOWN],
            fix="use a network without learnt positions or coordinate channels",
        )


def _refuse_whole_tile(nodes: list[Any], source: str) -> None:
    order = {name: i for i, name in enumerate((*WHOLE_TILE, *MEANS))}
    first = min(nodes, key=lambda node: order[node.op_type])
    why, fix = WHOLE_TILE.get(first.op_type, (POOLED, RETRAIN_GATE))
    same = [node.name or node.output[0] for node in nodes if node.op_type == first.op_type]
    others = sorted({str(node.op_type) for node in nodes} - {first.op_type})
    raise AdoptionError(
        f"{source} cannot be tiled without seams: it has {len(same)} {first.op_type}",
        f"{name_node(first)} {why}",
        *([f"and so {'do' if len(same) > 2 else 'does'} {_list_names(same[1:])}"] if len(same) > 1 else []),
        *([f"other operators of this kind: {', '.join(others)}"] if others else []),
        fix=fix,
    )


def _list_names(names: list[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(map(repr, names[:SHOWN])) + (f" and {rest} more" if rest > 0 else "")


def _node_problem(node: Any) -> str | None:
    operator, name = node.op_type, name_node(node)
    if operator in PASSED_OVER:
        return None
    if operator not in ADOPTED_OPERATORS:
        return f"{name} is no operator that a tile can be computed with"
    if len([made for made in node.output if made]) > 1 and operator != "Split":
        return f"{name} gives more than one result"
    if operator in ("Concat", "Split") and attribute_of(node, "axis", 0) not in CHANNEL_AXES:
        return f"{name} is along axis {attribute_of(node, 'axis', 0)}, the channels (1) were expected"
    if operator == "BatchNormalization" and attribute_of(node, "training_mode", 0):
        return f"{name} is in training mode: it {STATISTICS}"
    if operator == "ConvTranspose" and (
        attribute_of(node, "output_shape") or attribute_of(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    ):
        return f"{name} has an output of fixed size, pads were expected"
    return _resize_problem(node, name) if operator == "Resize" else None


def _resize_problem(node: Any, name: str) -> str | None:
    mode = attribute_of(node, "coordinate_transformation_mode", "half_pixel")
    if mode not in COORDINATES:
        return f"{name} places pixels by {mode}, so that where one lies depends on the tile's size"
    if attribute_of(node, "antialias", 0):
        return f"{name} smooths over its surroundings (antialias), which is not known to be the same everywhere"
    if attribute_of(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return f"{name} keeps an aspect ratio, which depends on the tile's"
    return None


def fix_pads(node: Any, kernel: tuple[int, ...]) -> dict[str, Any]:
    """Return a convolution's or pooling's attributes with pads in place of ``auto_pad``, for sides that divide evenly.

    >>> import onnx
    >>> node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2])
    >>> fix_pads(node, (3, 3))["pads"]
    [0, 0, 1, 1]
    """
    attributes = {a.name: attribute_of(node, a.name) for a in node.attribute}
    policy = attributes.pop("auto_pad", "NOTSET")
    if policy in ("SAME_UPPER", "SAME_LOWER"):
        strides, dilations = (attributes.get(key, [1, 1]) for key in ("strides", "dilations"))
        total = [max(d * (k - 1) + 1 - s, 0) for k, s, d in zip(kernel, strides, dilations, strict=True)]
        less, more = [n // 2 for n in total], [n - n // 2 for n in total]
        attributes["pads"] = [*less, *more] if policy == "SAME_UPPER" else [*more, *less]
    return attributes


def is_index(operator: str, position: int) -> bool:
    """Tell whether an operator's input of that position holds indices rather than values.

    >>> is_index("Slice", 1), is_index("Pad", 2), is_index("Conv", 1)
    (True, False, False)
    """
    kinds = {"Slice": (1, 2, 3, 4), "Pad": (1, 3), "Split": (1,)}
    return position in kinds.get(operator, ())


def as_index(value: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return indices as int64, which is what our graphs hold."""
    return np.asarray(value, np.int64)
