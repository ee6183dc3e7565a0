"""Values of a graph that is not ours yet, computed by onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx

from unet_deploy.errors import AdoptionError
from unet_deploy.runtime.engines.onnxruntime_session import import_onnxruntime


def evaluate(
    model: onnx.ModelProto, feeds: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str], *, source: str
) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors named `outputs`, which need not be the graph's own.

    Raises
    ------
    AdoptionError
        If onnxruntime cannot load the graph, or cannot run it on these inputs.
    MissingDependencyError
        If onnxruntime is not installed.
    """
    onnxruntime = import_onnxruntime(package="onnxruntime", extra="cpu", purpose="adopting a network")
    part = _part_of(model, outputs)
    for value in part.graph.input:
        if value.name in feeds:  # many are exported for one size, though their nodes take any
            for dimension in value.type.tensor_type.shape.dim:
                dimension.Clear()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, in our words
    shapes = ", ".join(" × ".join(map(str, value.shape)) for value in feeds.values())
    try:
        session = onnxruntime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = session.run(list(outputs), dict(feeds))
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        lines = str(error).splitlines()
        raise AdoptionError(
            f"onnxruntime {onnxruntime.__version__} cannot run {source}",
            f"on an input of {shapes}: {type(error).__name__}: {lines[0] if lines else 'no reason given'}",
            fix="export the network with dynamic y and x and a batch of any size, and try it in onnxruntime first",
        ) from error
    return dict(zip(outputs, values, strict=True))


def _part_of(model: onnx.ModelProto, outputs: Sequence[str]) -> onnx.ModelProto:
    """Return the nodes that some tensors need, and no others: onnxruntime would run them all."""
    needed, kept = set(outputs), []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            needed.update(node.input)
            kept.append(node)
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.node[:], part.graph.output[:], part.graph.value_info[:]
    part.graph.node.extend(reversed(kept))
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return part
