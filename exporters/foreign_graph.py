"""A foreign graph rewritten: the nodes that compute on pixels, and constants for all else.

Exported graphs are full of arithmetic on sizes (Shape, Gather, Div, ...), which says the same for every tile but in a
way that no reader can check and no accelerator likes.

1. A tensor is *pixels* if it depends on values of the input; everything else is a constant, or depends on the input's
   size alone.
2. What the pixel nodes take from the latter is computed by onnxruntime for two inputs of different size, shape and
   batch. Equal values become constants. A Resize to a size in proportion to its input becomes one by constant scales,
   a Slice up to an end counted from the other side becomes that. What differs otherwise depends on the tile's size, and
   is refused.
3. Nodes keep operator, attributes and order; names of files, stack traces and documentation are left behind.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from unet_deploy.errors import AdoptionError
from unet_deploy.exporters.foreign import PASSED_OVER, ForeignModel, attribute_of, name_node
from unet_deploy.exporters.foreign_rules import as_index, fix_pads, is_index, require_streamable, require_uniform
from unet_deploy.exporters.foreign_session import evaluate
from unet_deploy.runtime.adopted_graph import POINTWISE_OPERATORS

Array = npt.NDArray[Any]
SHAPE_OPERATORS = ("Shape", "Size")
END = 2**63 - 1
"""Of a Slice: all that there is."""
SAMPLES = (64, 128, 256)
"""Sides of the inputs that sizes are computed for, in turn, until what comes is in proportion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node that computes on pixels: no optional parts, no words of its exporter."""

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PixelGraph:
    """What `rewrite` makes: nodes in order, constants by name, and the names of its input and logits."""

    nodes: tuple[Node, ...]
    constants: dict[str, Array] = field(repr=False)
    input_name: str
    logits: str
    in_channels: int


def rewrite(foreign: ForeignModel) -> PixelGraph:
    """Rewrite a foreign graph; see the module.

    Raises
    ------
    AdoptionError
        If a node cannot stream, or depends on the tile's size.
    """
    nodes, used = _pixel_nodes(foreign)
    require_streamable(nodes, source=foreign.source)
    _require_constant_parts(nodes, used, foreign.source)
    error: AdoptionError | None = None
    for side in SAMPLES:
        try:
            return _freeze(foreign, nodes, used, side)
        except AdoptionError as problem:  # a side that the network's grid does not divide looks like this, too
            error = problem
    assert error is not None
    resize = next((node for node in nodes if node.op_type == "Resize"), None)
    if resize is not None:  # the first of a fixed size is why nodes behind it cannot run: better said of it
        parts = [name for name in resize.input[1:] if name]
        small, large = (_evaluate(foreign, parts, [resize.input[0]], shape) for shape in _samples(SAMPLES[-1]))
        _fix_resize(resize, small, large, foreign.source)
    raise error


def _pixel_nodes(foreign: ForeignModel) -> tuple[list[Any], list[str]]:
    """Return the nodes that the logits depend on by values, and the names of what else these take."""
    model, pixels = foreign.model, {foreign.input_name}
    chosen = []
    for node in model.graph.node:
        if node.op_type not in SHAPE_OPERATORS and pixels & set(node.input):
            pixels.update(name for name in node.output if name)
            chosen.append(node)
    if foreign.logits not in pixels or foreign.logits == foreign.input_name:
        raise AdoptionError(
            f"{foreign.source}: its output does not depend on its input",
            f"output {foreign.logits!r}, input {foreign.input_name!r}",
            fix="export the network again",
        )
    needed, kept = {foreign.logits}, []
    for node in reversed(chosen):
        if needed & set(node.output):
            needed.update(name for name in node.input if name in pixels)
            kept.append(node)
    kept.reverse()
    used = [name for node in kept for name in node.input if name and name not in pixels]
    return kept, list(dict.fromkeys(used))


def _require_constant_parts(nodes: list[Any], used: list[str], source: str) -> None:
    """Refuse weights, scales and margins that are computed from the image."""
    constant = {*used, ""}
    for node in nodes:
        if node.op_type in POINTWISE_OPERATORS or node.op_type == "Concat":
            continue
        for name in node.input[1:]:
            if name not in constant:
                raise AdoptionError(
                    f"{source} cannot be tiled: {name_node(node)} takes {name!r}, which is computed from the image",
                    "weights, factors and margins that are the same for every tile were expected",
                    fix="use a network whose weights are fixed",
                )


def _freeze(foreign: ForeignModel, nodes: list[Any], used: list[str], side: int) -> PixelGraph:
    shaped = [n.input[0] for n in nodes if n.op_type in ("Resize", "Slice")]
    small, large = (_evaluate(foreign, used, shaped, shape) for shape in _samples(side))
    aliases: dict[str, str] = {}
    constants: dict[str, Array] = {}
    written: list[Node] = []
    for node in nodes:
        if node.op_type in PASSED_OVER:
            _require_idle(node, small, foreign.source)
            aliases[node.output[0]] = aliases.get(node.input[0], node.input[0])
            continue
        inputs = [aliases.get(name, name) for name in node.input]
        kernel = (
            small[node.input[1]].shape[2:] if node.op_type == "Conv" else tuple(attribute_of(node, "kernel_shape", ()))
        )
        attributes = fix_pads(node, kernel)
        replaced: dict[int, Array] = {}
        if node.op_type == "Resize":
            replaced = _fix_resize(node, small, large, foreign.source)
            attributes = {key: value for key, value in attributes.items() if key in RESIZE_ATTRIBUTES}
            inputs = [inputs[0], "", f"{node.output[0]}.scales"]
        elif node.op_type == "Slice":
            replaced = _fix_slice(node, small, large)
            inputs = [inputs[0], *(f"{node.output[0]}.{part}" for part in ("starts", "ends", "axes", "steps"))]
        for position, name in enumerate(inputs):
            if position in replaced:
                constants[name] = replaced[position]
            elif name in small:
                value = _require_equal(node, name, small, large, foreign.source)
                key = f"{name}.index" if is_index(node.op_type, position) else name
                constants[key] = as_index(value) if is_index(node.op_type, position) else value
                inputs[position] = key
        while inputs and not inputs[-1]:
            inputs.pop()
        written.append(
            Node(
                operator=node.op_type,
                name=node.name or node.output[0],
                inputs=tuple(inputs),
                outputs=tuple(node.output),
                attributes=attributes,
            )
        )
    _require_float32(written, constants, foreign.source)
    require_uniform(nodes, constants, source=foreign.source)
    return PixelGraph(
        nodes=tuple(written),
        constants=constants,
        input_name=foreign.input_name,
        logits=aliases.get(foreign.logits, foreign.logits),
        in_channels=foreign.in_channels,
    )


def _require_idle(node: Any, small: dict[str, Array], source: str) -> None:
    """Refuse a drop-out that is at work: exported as in training."""
    if len(node.input) > 2 and node.input[2] and bool(small[node.input[2]].any()):
        raise AdoptionError(
            f"{source} drops values at random: {name_node(node)} is in training mode",
            "the same input would give another result each time",
            fix="export the network in evaluation mode: model.eval()",
        )


def _samples(side: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return two inputs (n, y, x) that differ in everything a size could be computed from."""
    return (1, side, 2 * side), (2, 3 * side, side)


def _evaluate(
    foreign: ForeignModel, used: list[str], shaped: list[str], shape: tuple[int, int, int]
) -> dict[str, Array]:
    """Return the values of `used`, and the shapes of `shaped` under ``NAME#shape``, for one input (n, y, x)."""
    held = {t.name: onnx.numpy_helper.to_array(t) for t in foreign.model.graph.initializer}
    wanted = [name for name in used if name not in held]
    shapes = [f"{name}#shape" for name in dict.fromkeys(shaped)]
    values: dict[str, Array] = {}
    if wanted or shapes:
        model = onnx.ModelProto()
        model.CopyFrom(foreign.model)
        model.graph.node.extend(
            onnx.helper.make_node("Shape", [name], [f"{name}#shape"]) for name in dict.fromkeys(shaped)
        )
        rng = np.random.default_rng(0)
        image = rng.standard_normal((shape[0], foreign.in_channels, *shape[1:])).astype(np.float32)
        values = evaluate(model, {foreign.input_name: image}, [*wanted, *shapes], source=foreign.source)
    return {**{name: held[name] for name in used if name in held}, **values}


RESIZE_ATTRIBUTES = ("mode", "nearest_mode", "coordinate_transformation_mode", "cubic_coeff_a", "exclude_outside")


def _fix_resize(node: Any, small: dict[str, Array], large: dict[str, Array], source: str) -> dict[int, Array]:
    """Return the scales of a Resize, whether it was given scales or sizes."""
    ratios: list[tuple[Fraction, ...]] = []
    sizes: list[tuple[int, ...]] = []
    axes = [axis % 4 for axis in attribute_of(node, "axes", [0, 1, 2, 3])]
    for values in (small, large):
        extents = values[f"{node.input[0]}#shape"]
        scale = [Fraction(1)] * 4
        if len(node.input) > 3 and node.input[3]:
            given = values[node.input[3]]
            sizes.append(tuple(int(n) for n, axis in zip(given, axes, strict=True) if axis > 1))
            for n, axis in zip(given, axes, strict=True):
                scale[axis] = Fraction(int(n), int(extents[axis]))
        else:
            for n, axis in zip(values[node.input[2]], axes, strict=True):
                scale[axis] = Fraction(float(n))
        ratios.append(tuple(scale))
    if ratios[0] == ratios[1] and ratios[0][0] == ratios[0][1] == 1:
        return {2: np.array([float(ratio) for ratio in ratios[0]], np.float32)}
    if sizes and sizes[0] == sizes[1]:
        raise AdoptionError(
            f"{source} cannot be tiled: {name_node(node)} gives {' × '.join(map(str, sizes[0]))} px whatever comes in",
            "its size was fixed when the network was exported",
            fix="export it with dynamic y and x (dynamic_axes or dynamic_shapes of torch.onnx.export)",
        )
    raise AdoptionError(
        f"{source} cannot be tiled: {name_node(node)} enlarges by another factor for another tile",
        f"factors y, x: {_words(ratios[0])} and {_words(ratios[1])}",
        fix="export a network whose up-sampling is by constant factors",
    )


def _words(ratios: tuple[Fraction, ...]) -> str:
    return ", ".join(f"{float(ratio):g}" for ratio in ratios[2:])


def _fix_slice(node: Any, small: dict[str, Array], large: dict[str, Array]) -> dict[int, Array]:
    """Return starts, ends, axes and steps of a Slice, ends counted from the far side where they move with it.

    What cannot be written so is returned as it is for one size; `_require_equal` is not asked, the comparison is here.
    """
    parts: list[list[list[int]]] = []
    for values in (small, large):
        given = [values[name].tolist() if name else None for name in [*node.input[1:], "", ""][:4]]
        starts, ends = given[0] or [], given[1] or []
        axes = [axis % 4 for axis in (given[2] or range(len(starts)))]
        extents = [int(values[f"{node.input[0]}#shape"][axis]) for axis in axes]
        far = [end if end < 0 else END if end >= n else end - n for end, n in zip(ends, extents, strict=True)]
        parts.append([starts, ends, axes, given[3] or [1] * len(starts), far])
    (starts, ends, axes, steps, far), (starts_2, ends_2, axes_2, steps_2, far_2) = parts
    is_same = (starts, axes, steps) == (starts_2, axes_2, steps_2)
    fixed = [e if e == e2 and axis < 2 else f for e, e2, f, axis in zip(ends, ends_2, far, axes, strict=True)]
    moves = any(f != f2 for f, f2, axis in zip(far, far_2, axes, strict=True) if axis > 1)
    backwards = any(step < 1 or (axis > 1 and start < 0) for step, axis, start in zip(steps, axes, starts, strict=True))
    if not is_same or moves or backwards:
        raise AdoptionError(
            f"{name_node(node)} cuts another part out of another tile",
            "a margin of constant width was expected",
            fix="export a network that crops by constant margins",
        )
    return {1 + i: np.array(value, np.int64) for i, value in enumerate((starts, fixed, axes, steps))}


def _require_equal(node: Any, name: str, small: dict[str, Array], large: dict[str, Array], source: str) -> Array:
    if np.array_equal(small[name], large[name], equal_nan=small[name].dtype.kind == "f"):
        return small[name]
    raise AdoptionError(
        f"{source} cannot be tiled: {name_node(node)} depends on the tile's size",
        f"its input {name!r} is {_show(small[name])} for one tile and {_show(large[name])} for another",
        fix="export a network that computes the same whatever the size of its input",
    )


def _show(value: Array) -> str:
    text = " ".join(str(value.tolist()).split())
    return text if len(text) <= 40 else f"{text[:37]}..."


def _require_float32(nodes: list[Node], constants: dict[str, Array], source: str) -> None:
    """Refuse weights of another type than our graphs hold."""
    for node in nodes:
        for position, name in enumerate(node.inputs):
            value = constants.get(name)
            if value is not None and not is_index(node.operator, position) and value.dtype != np.float32:
                raise AdoptionError(
                    f"{source} computes in {value.dtype}, float32 was expected",
                    f"{node.operator} {node.name!r}, input {name!r}",
                    fix="export the network in float32",
                )
