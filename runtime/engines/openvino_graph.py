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
5. It is done in OpenVINO's own graph. To write the artifact's file again, for OpenVINO to read, takes longer than that.

What is not built so is left as it is: padded networks, a normalisation or activation in between, other sizes, weights
that are not float32, and few channels in between, which would make it more operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.floating[Any]]
_Node = Any
"""An ``openvino.Node``; that package comes with an extra."""
_PLAIN: dict[str, Any] = {
    "auto_pad": "explicit",
    "dilations": [1, 1],
    "output_padding": [0, 0],
    "pads_begin": [0, 0],
    "pads_end": [0, 0],
}


def fold_up_convolutions(model: Any) -> int:
    """Change a graph so that it computes the same with fewer operations.

    Parameters
    ----------
    model
        An ``openvino.Model`` as it was read, its shapes not fixed yet.

    Returns
    -------
    int
        How many up-convolutions were folded.
    """
    sites = [site for node in model.get_ordered_ops() if (site := _find(node)) is not None]
    for site in sites:
        _fold(site)
    if sites:
        model.validate_nodes_and_infer_types()
    return len(sites)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Convolution:
    """A convolution or up-convolution; `end` is its last node, which adds the bias if there is one."""

    node: _Node
    end: _Node
    weights: _Node
    bias: _Node | None

    def read_bias(self) -> Weights | float:
        """Return the bias (c,), in float64."""
        return 0.0 if self.bias is None else self.bias.data.ravel().astype(np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Site:
    """One place to fold: an up-convolution, what joins its output to another as input `up_at`, and what comes after."""

    up: _Convolution
    join: _Node
    up_at: int
    after: _Convolution


def _find(node: _Node) -> _Site | None:
    """Return the place that ends in a convolution, if there is one and it is worth it."""
    after = _read_convolution(node, "Convolution", kernel=3, stride=1)
    if after is None:
        return None
    join = _source(node, 0)
    if join.get_type_name() != "Concat" or join.get_attributes() != {"axis": 1} or len(join.inputs()) != 2:
        return None
    for index in (1, 0):
        end = _source(join, index)
        start = _source(end, 0) if end.get_type_name() == "Add" else end
        up = _read_convolution(start, "ConvolutionBackpropData", kernel=2, stride=2)
        if up is None or not _is_same(up.end, end) or any(len(_users(made)) != 1 for made in (end, join)):
            continue
        if _is_less(up.weights.shape, after.weights.shape):
            return _Site(up=up, join=join, up_at=index, after=after)
    return None


def _read_convolution(node: _Node, kind: str, *, kernel: int, stride: int) -> _Convolution | None:
    """Return what a convolution is, if it is of that kind, kernel and stride, and nothing about it is unusual."""
    if node.get_type_name() != kind or len(node.inputs()) != 2:
        return None
    weights, attributes = _source(node, 1), node.get_attributes()
    if not _is_constant(weights) or list(weights.shape)[2:] != [kernel, kernel]:
        return None
    if attributes != {name: value for name, value in _PLAIN.items() if name in attributes} | {"strides": [stride] * 2}:
        return None
    users = _users(node)
    if len(users) == 1 and users[0].get_type_name() == "Add" and _is_same(_source(users[0], 0), node):
        bias = _read_bias(users[0])
        if bias is not None:
            return _Convolution(node=node, end=users[0], weights=weights, bias=bias)
    return _Convolution(node=node, end=node, weights=weights, bias=None)


def _read_bias(add: _Node) -> _Node | None:
    """Return the constant that a node adds, if that is one number for each channel."""
    shape, bias = add.input_value(1).get_partial_shape(), _source(add, 1)
    if bias.get_type_name() == "Reshape":
        bias = _source(bias, 0)
    if not _is_constant(bias) or not shape.is_static or len(shape) != 4:
        return None
    return bias if list(shape.to_shape()) == [1, bias.data.size, 1, 1] else None


def _source(node: _Node, index: int) -> _Node:
    return node.input_value(index).get_node()


def _users(node: _Node) -> list[_Node]:
    """Return what reads the values of a node's one output; not what asks for their shape, which stays as it is."""
    users = [at.get_node() for at in node.output(0).get_target_inputs()]
    return [user for user in users if user.get_type_name() != "ShapeOf"]


def _is_same(one: _Node, other: _Node) -> bool:
    return bool(one.get_name() == other.get_name())  # of a graph's nodes, each has its own


def _is_constant(node: _Node) -> bool:
    return bool(node.get_type_name() == "Constant" and node.get_element_type().get_type_name() == "f32")


def _is_less(up: Sequence[int], after: Sequence[int]) -> bool:
    """Tell by the shapes of the weights whether a folded up-convolution takes fewer multiplications a pixel."""
    (c_in, c_up), c_out = list(up)[:2], after[0]
    return 4 * c_in * c_out < c_up * (c_in + 9 * c_out)


def _fold(site: _Site) -> None:
    """Put the two convolutions that take a site's place, and their sum, where the values of its last node go."""
    from openvino import opset8

    up, after = site.up.weights.data, site.after.weights.data
    n_up = up.shape[1]
    of_up, of_skip = (after[:, -n_up:], after[:, :-n_up]) if site.up_at else (after[:, :n_up], after[:, n_up:])
    bias = (
        of_up.sum(axis=(2, 3), dtype=np.float64) @ np.broadcast_to(site.up.read_bias(), n_up) + site.after.read_bias()
    )
    joined = site.join.input_value(1 - site.up_at)
    skip = opset8.convolution(joined, _constant(of_skip), [1, 1], [0, 0], [0, 0], [1, 1])
    # The pads cut the border away, whose pixels a valid convolution does not give.
    raised = opset8.convolution_backprop_data(
        site.up.node.input_value(0), _constant(fold(up, of_up)), [2, 2], None, [2, 2], [2, 2], [1, 1]
    )
    total = opset8.add(opset8.add(skip, _constant(bias[None, :, None, None])), raised)
    total.set_friendly_name(site.after.end.get_friendly_name())
    for at in site.after.end.output(0).get_target_inputs():
        at.replace_source_output(total.output(0))


def _constant(values: Weights) -> _Node:
    from openvino import op

    return op.Constant(np.ascontiguousarray(values, np.float32), shared_memory=True)


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
    ndarray of float32
        (c_in, c_out, 4, 4), as of an ONNX ConvTranspose; multiplied in float64 and rounded once.
    """
    ups, afters = (
        np.ascontiguousarray(w.transpose(2, 3, *axes), np.float64) for w, axes in ((up, (0, 1)), (after, (1, 0)))
    )
    kernel = np.empty((up.shape[0], after.shape[0], 4, 4), np.float32)
    for y, x in product(range(4), repeat=2):
        kernel[:, :, y, x] = sum(
            ups[up_y, up_x] @ afters[up_y + 2 - y, up_x + 2 - x]
            for up_y in range(max(y - 2, 0), min(y, 1) + 1)
            for up_x in range(max(x - 2, 0), min(x, 1) + 1)
        )
    return kernel
