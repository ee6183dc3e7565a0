"""The one network in the forms that peers take: same weights, other padding, other engine.

1. *valid*: the artifact itself. A tile gives what is left when the context is gone, 572 → 388.
2. *same*: its graph with each 3×3 convolution padded by one pixel of zeros and no skip cropped, so that the output has
   the input's size, as tools expect that blend or cut equal-sized tiles. Their users would have trained such a network;
   with these weights it is as fast as theirs, and its seams are measured against its own pass over the whole image.
3. Engines: onnxruntime with the options it has by itself, and OpenVINO and torch in float32; threads are given to each.
4. A bioimage.io package of the *same* form, since ``bioimageio.core`` cuts no blocks for a network whose output is
   smaller than its input (0.11: "Block data shape does not match block meta information").
"""

from __future__ import annotations

import io
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[Any]
Predictor = Callable[[Image], Image]
"""(n, 1, y, x) normalised float32 → (n, classes, y', x') logits."""
VALID, SAME, PACKAGE = "valid.onnx", "same.onnx", "same.bioimageio.zip"
HALO = 96
"""What bioimage.io's users declare of such a network: its context, rounded up to the divisor."""
BLOCK_MIN, BLOCK_STEP = 208, 16


def pad_convolutions(data: bytes) -> bytes:
    """Return the graph with padded 3×3 convolutions: output and input have one size.

    Parameters
    ----------
    data
        The paper's network as `unet_deploy.exporters` writes it, in fp32.
    """
    import onnx

    model = onnx.load_model_from_string(data)
    graph = model.graph
    whole: dict[str, str] = {}  # what a crop gives → what it takes
    kept = []
    for node in graph.node:
        if node.op_type == "Slice":
            whole[node.output[0]] = node.input[0]
            continue
        for i, name in enumerate(node.input):
            node.input[i] = whole.get(name, name)
        if node.op_type == "Conv" and list(onnx.helper.get_node_attr_value(node, "kernel_shape")) == [3, 3]:
            node.attribute.append(onnx.helper.make_attribute("pads", [1, 1, 1, 1]))
        kept.append(node)
    assert whole, "no skip is cropped: this is no network of valid convolutions"
    del graph.node[:]
    graph.node.extend(kept)
    del graph.value_info[:]
    used = {name for node in kept for name in node.input}
    weights = [t for t in graph.initializer if t.name in used]
    del graph.initializer[:]
    graph.initializer.extend(weights)
    for axis, name in ((2, "y"), (3, "x")):
        graph.output[0].type.tensor_type.shape.dim[axis].dim_param = name
    del model.metadata_props[:]  # the card describes the valid network
    onnx.checker.check_model(model)
    result: bytes = model.SerializeToString()
    return result


def open_predictor(data: bytes, *, engine: str, threads: int) -> Predictor:
    """Return what runs a graph: ``onnxruntime-cpu`` as its documentation opens it, or ``openvino`` in float32."""
    if engine == "openvino":
        return _open_openvino(data, threads)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(None, {"image": batch})[0]


def _open_openvino(data: bytes, threads: int) -> Predictor:
    """Return what runs the graph as it is, in float32; compiled for a shape when the first batch of it comes."""
    from unet_deploy.runtime.engines.openvino import import_openvino

    core = import_openvino().Core()
    core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads})
    model = core.read_model(io.BytesIO(data))
    lock = threading.Lock()  # one request at a time; it has all threads anyway
    requests: dict[tuple[int, ...], Any] = {}

    def predict(batch: Image) -> Image:
        with lock:
            if batch.shape not in requests:
                model.reshape(list(batch.shape))
                requests[batch.shape] = core.compile_model(model, "CPU").create_infer_request()
            logits: Image = requests[batch.shape].infer({0: batch}, share_inputs=True)[0]
            return logits

    return predict


def label_blocks(predict: Predictor, image: Image, *, block: int, halo: int) -> npt.NDArray[np.uint8]:
    """Return the labels that padded convolutions give in one pass: blocks and halo are multiples of the divisor.

    At the image's border a block ends where the image does, so that the network pads there and nowhere else.
    """
    labels = np.empty(image.shape, np.uint8)
    for y in range(0, image.shape[0], block):
        for x in range(0, image.shape[1], block):
            top, left = max(y - halo, 0), max(x - halo, 0)
            window = np.ascontiguousarray(image[top : y + block + halo, left : x + block + halo])
            part = predict(window[None, None])[0].argmax(0)[y - top :, x - left :]
            here = labels[y : y + block, x : x + block]
            here[:] = part[: here.shape[0], : here.shape[1]]
    return labels


def torch_network(data: bytes, *, padding: str, threads: int) -> Any:
    """Return the network as a torch module in evaluation mode; `padding` is ``valid`` or ``same``."""
    import onnx
    import torch
    from onnx import numpy_helper
    from torch import nn

    from unet_deploy.training.network import UNet

    torch.set_num_threads(threads)
    graph = onnx.load_model_from_string(data).graph
    weights = {
        t.name: torch.from_numpy(numpy_helper.to_array(t).copy())
        for t in graph.initializer
        if not t.name.startswith("crop")
    }
    first, head = weights["contracting.0.0.weight"], weights["head.weight"]
    depth = sum(name.startswith("up.") and name.endswith("weight") for name in weights)
    model = UNet(depth=depth, base_width=first.shape[0], in_channels=first.shape[1], classes=head.shape[0])
    model.load_state_dict(weights)
    model.eval()
    if padding == "valid":
        return model
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.padding = (1, 1)
    return _PaddedUNet(model)


def _PaddedUNet(model: Any) -> Any:  # noqa: N802  # a class that needs torch to be defined
    """Return a module that runs a network of padded convolutions without cropping its skips."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x: Any) -> Any:
            skips = []
            for level, block in enumerate(self.net.contracting):
                x = block(functional.max_pool2d(x, 2) if level else x)
                skips.append(x)
            skips.pop()
            for up, block in zip(self.net.up, self.net.expanding, strict=True):
                x = block(torch.cat([skips.pop(), up(x)], dim=1))
            return self.net.head(x)

    return Padded().eval()


def write_same_package(artifact: Any, same: bytes, path: Path) -> Path:
    """Write a bioimage.io package of the *same* form: the exporter's own, with that graph, a halo and no offset."""
    from unet_deploy.exporters import bioimageio as exporter
    from unet_deploy.exporters._bioimageio_text import write_yaml

    card = artifact.card
    image = np.random.default_rng(0).integers(0, 256, (1, 1, BLOCK_MIN, BLOCK_MIN), dtype=np.uint8)
    mean, std = np.float32(card.normalisation.mean[0]), np.float32(card.normalisation.std[0])
    logits = open_predictor(same, engine="onnxruntime-cpu", threads=1)((image.astype(np.float32) - mean) / std)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    files = exporter.package_files(artifact)
    del files[exporter.DESCRIPTION]
    files[exporter.WEIGHTS] = same
    for name, array in ((exporter.TEST_INPUT, image), (exporter.TEST_OUTPUT, probabilities)):
        files[name] = _to_npy(array)
    description = exporter.describe_package(
        artifact, files, largest_probability=float(probabilities.max()), authors=["benchmark"]
    )
    for axis in description["inputs"][0]["axes"][2:]:
        axis["size"] = {"min": BLOCK_MIN, "step": BLOCK_STEP}
    for axis in description["outputs"][0]["axes"][2:]:
        axis["size"]["offset"] = 0
        axis["halo"] = HALO
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(exporter.DESCRIPTION, write_yaml(description))
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def _to_npy(array: Image) -> bytes:
    import io

    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
