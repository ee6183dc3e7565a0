"""A network with each up-convolution folded into the convolution after it: the same function, fewer operations.

1. In the paper's network nothing stands between a 2 × 2 up-convolution and the 3 × 3 convolution after it but the
   concatenation with the cropped map of the contracting path. The convolution of joined maps is the sum of one of each,
   and one linear map after another is a linear map.
2. Three neighbours of a doubled map come from two pixels of the map before. So the two steps are one transposed
   convolution, 4 × 4 with stride 2, without the border pixels that would see only part of what they need. The bias in
   between adds a constant to each output channel.
3. From 2n channels to n, that takes 8 n² multiplications a pixel instead of 11 n²: 7 % fewer in the whole network.
   Nothing is joined, so nothing is copied for it, and the joined map, the largest of all, is not held.
4. Weights are multiplied in float64 and rounded once.

What is not built so is left as it is: padded networks, a normalisation or activation in between, other sizes, integers,
few channels in between, which would make it more operations; and what would become too large for a file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Weights = npt.NDArray[np.float64]
MAX_BYTES = 2**31 - 2**20
"""Protobuf's own limit, less what nodes and names take: folded weights are more than what they are made of."""
PREFIX = "folded."
"""Of the names of what is made here."""
_DEFAULTS: dict[str, Any] = {
    "auto_pad": b"NOTSET",
    "dilations": [1, 1],
    "group": 1,
    "output_padding": [0, 0],
    "pads": [0, 0, 0, 0],
    "strides": [1, 1],
}


def fold_up_convolutions(onnx_bytes: bytes, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Return a graph that computes the same with fewer operations; the given bytes where nothing can be folded.

    Parameters
    ----------
    onnx_bytes
        An artifact's file, already checked by `runtime.artifact`.
    max_bytes
        What the graph and the folded weights may take; else nothing is folded.
    """
    model = onnx.load_model_from_string(onnx_bytes)
    graph = model.graph
    floats = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    found = _find(graph, floats)
    names = {name for node in graph.node for name in (*node.input, *node.output)}
    if not found or any(name.startswith(PREFIX) for name in names):  # no name may stand for two tensors
        return onnx_bytes
    gone = {id(node) for site in found for node in (site.up, site.join)}
    folded = {id(site.after): site for site in found}
    nodes, made = list[Any](), list[Any]()
    for node in graph.node:
        if id(node) in folded:
            _fold(folded[id(node)], floats, nodes, made)
        elif id(node) not in gone:
            nodes.append(node)
    if len(onnx_bytes) + sum(4 * math.prod(tensor.dims) for tensor in made) > max_bytes:
        return onnx_bytes
    read = {name for node in nodes for name in node.input}
    unread = [i for i, tensor in enumerate(graph.initializer) if tensor.name not in read]
    for i in reversed(unread):  # to make the list anew would copy every weight
        del graph.initializer[i]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(made)
    return bytes(model.SerializeToString())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Site:
    """One place to fold: three nodes of the graph; `skip` is what is joined to the up-convolution's output, and how."""

    up: Any
    join: Any
    after: Any
    skip: str
    is_skip_first: bool


def _find(graph: Any, tensors: Mapping[str, Any]) -> list[_Site]:
    """Return the places whose weights are among the tensors."""
    maker = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(output.name for output in graph.output)

    def once(name: str, operator: str) -> Any:
        """Return the node that makes a tensor for one other node alone, if it is such an operator."""
        node = maker.get(name)
        return node if node is not None and node.op_type == operator and uses[name] == 1 else None

    found = []
    for after in graph.node:
        if after.op_type != "Conv" or not _is_plain(after, kernel=3, stride=1):
            continue
        join = once(after.input[0], "Concat")
        if join is None or len(join.input) != 2 or _attributes(join) != {"axis": 1}:
            continue
        for index in (1, 0):
            up = once(join.input[index], "ConvTranspose")
            if up is None or not _is_plain(up, kernel=2, stride=2):
                continue
            if any(name not in tensors for node in (up, after) for name in node.input[1:]):
                continue
            if not _is_less(tensors[up.input[1]].dims, tensors[after.input[1]].dims):
                continue
            skip = join.input[1 - index]
            found.append(_Site(up=up, join=join, after=after, skip=skip, is_skip_first=index == 1))
            break
    return found


def _is_plain(node: Any, *, kernel: int, stride: int) -> bool:
    """Tell whether a convolution has that kernel and stride, and nothing else that is unusual."""
    expected = _DEFAULTS | {"kernel_shape": [kernel] * 2, "strides": [stride] * 2}
    return expected == {**_DEFAULTS, **_attributes(node)}


def _is_less(up: Sequence[int], after: Sequence[int]) -> bool:
    """Tell by the shapes of the weights whether a folded up-convolution takes fewer multiplications a pixel."""
    (c_in, c_up), c_out = up[:2], after[0]
    return 4 * c_in * c_out < c_up * (c_in + 9 * c_out)


def _attributes(node: Any) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _weights(node: Any, tensors: Mapping[str, Any], *, outputs_at: int) -> tuple[Weights, Weights]:
    """Return a convolution's weights, and its bias (zeros where it has none)."""
    values = [numpy_helper.to_array(tensors[name]).astype(np.float64) for name in node.input[1:]]
    return values[0], values[1] if len(values) > 1 else np.zeros(values[0].shape[outputs_at])


def _fold(site: _Site, tensors: Mapping[str, Any], nodes: list[Any], made: list[Any]) -> None:
    """Add the two convolutions that take a site's place, and their sum; and what they compute with."""
    up_weights, up_bias = _weights(site.up, tensors, outputs_at=1)
    weights, bias = _weights(site.after, tensors, outputs_at=0)
    n_up = up_weights.shape[1]
    of_up, of_skip = (
        (weights[:, -n_up:], weights[:, :-n_up]) if site.is_skip_first else (weights[:, :n_up], weights[:, n_up:])
    )
    bias += np.einsum("okyx,k->o", of_up, up_bias)
    output = site.after.output[0]
    names = {part: f"{PREFIX}{output}.{part}" for part in ("up", "up.weight", "skip", "skip.weight", "bias")}
    for part, values in (("up.weight", fold(up_weights, of_up)), ("skip.weight", of_skip), ("bias", bias)):
        made.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), names[part]))

    def add(operator: str, inputs: list[str], to: str, **attributes: Any) -> None:
        nodes.append(helper.make_node(operator, inputs, [to], name=to, **attributes))

    up_inputs = [site.up.input[0], names["up.weight"]]
    # The pads cut the border away, whose pixels a valid convolution does not give.
    add("ConvTranspose", up_inputs, names["up"], kernel_shape=[4, 4], strides=[2, 2], pads=[2, 2, 2, 2])
    add("Conv", [site.skip, names["skip.weight"], names["bias"]], names["skip"], kernel_shape=[3, 3])
    nodes.append(helper.make_node("Add", [names["skip"], names["up"]], [output], name=f"{PREFIX}{output}.sum"))


def fold(up: Weights, after: Weights) -> Weights:
    """Return the transposed convolution, 4 × 4 with stride 2, that a 2 × 2 one and a 3 × 3 convolution after it are.

    Tap u of the first puts pixel i at 2i + u, and tap k of the second takes that to 2i + u - k. With a border of 2,
    which is cut away, that is tap u + 2 - k of one transposed convolution.

    Parameters
    ----------
    up
        (c_in, c_up, 2, 2), as of an ONNX ConvTranspose.
    after
        (c_out, c_up, 3, 3), as of an ONNX Conv.

    Returns
    -------
    ndarray
        (c_in, c_out, 4, 4), as of an ONNX ConvTranspose.
    """
    ups, afters = (np.ascontiguousarray(w.transpose(2, 3, *axes)) for w, axes in ((up, (0, 1)), (after, (1, 0))))
    kernel = np.zeros((4, 4, up.shape[0], after.shape[0]))
    for up_y, up_x, y, x in product(range(2), range(2), range(3), range(3)):
        kernel[up_y + 2 - y, up_x + 2 - x] += ups[up_y, up_x] @ afters[y, x]
    return kernel.transpose(2, 3, 0, 1)
