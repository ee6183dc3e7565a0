"""How far a rewritten network sees, and what it costs: exact, from the graph.

Along each axis, for a tensor of which one pixel stands for `stride` pixels of the input (a fraction, where a tensor is
finer):

1. The *divisor* is the smallest move of the input by which every tensor moves by whole pixels of its own: the least
   common multiple of the strides' numerators. Poolings, strided convolutions and up-samplings then meet what they met.
2. One *cell* of the output, a divisor wide, needs an interval of every tensor before it. Walking the nodes backwards
   gives it exactly: a convolution of kernel k, stride s, pad p needs ``[lo·s − p, (hi − 1)·s − p + k)`` of its input.
3. The cell is what it would be in an endless image if in every tensor that interval lies where the tensor has pixels,
   so that no padding is met. The *reach* before and after is how far the tile must go on for that; the *context* is the
   larger one, rounded up to a multiple of the divisor.
4. Operations are counted from the sizes that each layer has, memory from the tensors alive at once, as onnxruntime
   was measured to hold them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from unet_deploy.errors import AdoptionError
from unet_deploy.exporters.foreign_graph import Node, PixelGraph
from unet_deploy.geometry import MAX_CONTEXT, MAX_DIVISOR
from unet_deploy.runtime.adopted_graph import CHANNEL_OPERATORS, POINTWISE_OPERATORS

Shapes = Mapping[str, tuple[int, ...]]
Span = tuple[int, int]
"""Of one tensor along one axis: first pixel needed, and one past the last."""
SIDES = (512, 1024)
"""Sides of the inputs whose sizes tell strides; multiples of every divisor that is a power of two and allowed."""


CHANNEL_BLOCK, SLACK = 16, 1.5
"""onnxruntime's CPU kernels keep channels in blocks of so many, and its arena was measured to hold up to 1.3 times what
is alive (networks of segmentation_models.pytorch and MONAI, tiles of 960 and 1,600 px)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What the graph says: `before` and `after` are the context a cell needs, the larger of both axes."""

    divisor: int
    before: int
    after: int

    @property
    def context(self) -> int:
        """What is cut off each side: the reach, rounded up to a multiple of the divisor."""
        return -(-max(self.before, self.after) // self.divisor) * self.divisor


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one input pixel; the weights are of the whole."""

    flops_per_pixel: float
    activation_bytes_per_pixel: float
    weights_bytes: int


def find_reach(graph: PixelGraph, shapes: Sequence[Shapes], *, source: str) -> Reach:
    """Return how far a network sees.

    Parameters
    ----------
    graph
        The network, rewritten.
    shapes
        The shape of every tensor, for square inputs of the two `SIDES`.
    source
        Where it came from, for messages.

    Raises
    ------
    AdoptionError
        If the output is not as large as the input, or the network's grid is coarser, or its reach longer, than a tile
        can hold.
    """
    small, large = shapes
    for axis in (2, 3):
        came = small[graph.logits][axis], large[graph.logits][axis]
        if came != SIDES:
            raise AdoptionError(
                f"{source} gives {came[0]} px for {SIDES[0]} px on axis {'ncyx'[axis]}, and {came[1]} for {SIDES[1]}",
                "an output as large as the input was expected",
                fix="export a network that pads its convolutions and up-samples back to its input's size",
            )
    strides = [{name: _stride(small[name][axis], large[name][axis]) for name in small} for axis in (2, 3)]
    divisor = math.lcm(*(stride.numerator for by_name in strides for stride in by_name.values()))
    if divisor > MAX_DIVISOR or SIDES[0] % divisor:
        raise AdoptionError(
            f"{source} reduces its input {divisor}-fold, a power of two up to {MAX_DIVISOR} was expected",
            "tiles begin at multiples of it",
            fix="use a network of fewer levels, each halving the sides",
        )
    before = after = 0
    for axis, by_name in zip((2, 3), strides, strict=True):
        for name, (low, high) in needed_spans(graph, axis, (0, divisor)).items():
            stride, extent = by_name[name], small[name][axis]
            surplus = extent - SIDES[0] / stride  # pixels beyond those that stand for the input's
            before = max(before, math.ceil(-low * stride))
            after = max(after, math.ceil((high - surplus) * stride) - divisor)
    reach = Reach(divisor=divisor, before=before, after=after)
    if reach.context > MAX_CONTEXT:
        raise AdoptionError(
            f"{source} sees {max(before, after)} px far, at most {MAX_CONTEXT} was expected",
            "no tile would hold more than its border",
            fix="use a network of fewer levels",
        )
    return reach


def _stride(small: int, large: int) -> Fraction:
    assert large > small, (small, large)  # what has a fixed size was refused before
    return Fraction(SIDES[1] - SIDES[0], large - small)


def needed_spans(graph: PixelGraph, axis: int, span: Span) -> dict[str, Span]:
    """Return what a span of the output needs of every tensor along one axis (2 for y, 3 for x), input and all."""
    spans = {graph.logits: span}
    for node in reversed(graph.nodes):
        wanted = [spans[name] for name in node.outputs if name in spans]
        if not wanted:
            continue
        out = min(low for low, _ in wanted), max(high for _, high in wanted)
        need = _span_of(node, graph, axis)(out)
        for name in node.inputs:
            if name and name not in graph.constants:
                low, high = spans.get(name, need)
                spans[name] = min(low, need[0]), max(high, need[1])
    return spans


def _span_of(node: Node, graph: PixelGraph, axis: int) -> Callable[[Span], Span]:
    """Return the rule of a node: from what is needed of its output to what it needs of its input."""
    place, given = axis - 2, node.attributes
    match node.operator:
        case "Conv" | "MaxPool" | "AveragePool":
            step = given.get("strides", [1, 1])[place]
            wide = given.get("dilations", [1, 1])[place] * (_kernel(node, graph)[place] - 1)
            pad = given.get("pads", [0] * 4)[place]
            return lambda out: (out[0] * step - pad, (out[1] - 1) * step - pad + wide + 1)
        case "ConvTranspose":
            step = given.get("strides", [1, 1])[place]
            wide = given.get("dilations", [1, 1])[place] * (_kernel(node, graph)[place] - 1)
            pad = given.get("pads", [0] * 4)[place]
            return lambda out: (-((wide - out[0] - pad) // step), (out[1] - 1 + pad) // step + 1)
        case "Resize":
            return _resize_span(node, float(graph.constants[node.inputs[2]][axis]))
        case "Pad":
            pads = graph.constants[node.inputs[1]]
            axes = [int(a) % 4 for a in graph.constants[node.inputs[3]]] if len(node.inputs) > 3 else [0, 1, 2, 3]
            pad = int(pads[axes.index(axis)]) if axis in axes else 0
            return lambda out: (out[0] - pad, out[1] - pad)
        case "Slice":
            starts, _, axes, steps = (graph.constants[name].tolist() for name in node.inputs[1:])
            start, step = (starts[axes.index(axis)], steps[axes.index(axis)]) if axis in axes else (0, 1)
            return lambda out: (start + out[0] * step, start + (out[1] - 1) * step + 1)
        case "DepthToSpace":
            block = given["blocksize"]
            return lambda out: (out[0] // block, (out[1] - 1) // block + 1)
        case "SpaceToDepth":
            block = given["blocksize"]
            return lambda out: (out[0] * block, out[1] * block)
        case operator:
            assert operator in POINTWISE_OPERATORS | CHANNEL_OPERATORS, operator
            return lambda out: out


def _kernel(node: Node, graph: PixelGraph) -> tuple[int, ...]:
    return tuple(node.attributes.get("kernel_shape") or graph.constants[node.inputs[1]].shape[2:])


def _resize_span(node: Node, factor: float) -> Callable[[Span], Span]:
    """Return the rule of a Resize: where the samples lie that it takes for its first pixel, and for its last."""
    scale = Fraction(factor).limit_denominator(MAX_DIVISOR)
    is_asymmetric = node.attributes.get("coordinate_transformation_mode", "half_pixel") == "asymmetric"
    mode = node.attributes.get("mode", "nearest")

    def place(i: int) -> Fraction:
        return i / scale if is_asymmetric else (i + Fraction(1, 2)) / scale - Fraction(1, 2)

    if mode == "nearest":
        choose = _nearest(node.attributes.get("nearest_mode", "round_prefer_floor"))
        return lambda out: (choose(place(out[0])), choose(place(out[1] - 1)) + 1)
    more = 0 if mode == "linear" else 1  # cubic: another sample on each side
    return lambda out: (math.floor(place(out[0])) - more, math.ceil(place(out[1] - 1)) + more + 1)


def _nearest(mode: str) -> Callable[[Fraction], int]:
    half = Fraction(1, 2)
    match mode:
        case "floor":
            return math.floor
        case "ceil":
            return math.ceil
        case "round_prefer_ceil":
            return lambda x: math.floor(x + half)
        case _:
            return lambda x: math.ceil(x - half)


def find_cost(graph: PixelGraph, shapes: Shapes) -> Cost:
    """Return what one input of the first of `SIDES` costs, by input pixel: a multiply and an add count 2."""
    flops, live, peak = 0, 0, 0
    last_use = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
    last_use[graph.logits] = len(graph.nodes)
    sizes = {name: 4 * -(-c // CHANNEL_BLOCK) * CHANNEL_BLOCK * y * x for name, (_, c, y, x) in shapes.items()}
    sizes[graph.input_name] = 4 * math.prod(shapes[graph.input_name])
    alive = {graph.input_name}
    for i, node in enumerate(graph.nodes):
        if node.operator in ("Conv", "ConvTranspose"):
            weight = graph.constants[
                node.inputs[1]
            ].shape  # (out, in / groups, y, x); of the transposed (in, out / groups)
            at = node.outputs[0] if node.operator == "Conv" else node.inputs[0]
            flops += 2 * math.prod(shapes[at]) * math.prod(weight[1:])
        alive.update(name for name in node.outputs if name in last_use)
        live = sum(sizes[name] for name in alive)
        peak = max(peak, live)
        alive = {name for name in alive if last_use[name] > i}
    pixels = SIDES[0] ** 2
    return Cost(
        flops_per_pixel=flops / pixels,
        activation_bytes_per_pixel=SLACK * peak / pixels,
        weights_bytes=sum(value.nbytes for value in graph.constants.values()),
    )
