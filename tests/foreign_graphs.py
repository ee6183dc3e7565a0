"""Networks as other programs export them, written node by node with random weights: small, and without torch.

`smp_like` is a residual encoder with batch normalisation and a decoder of nearest up-sampling to sizes computed from
shapes, as segmentation_models.pytorch exports it; `monai_like` strided convolutions with PReLU and transposed ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Change = Callable[[Any], object]


class Sketch:
    """Collects nodes and weights; each method returns the name of what it made."""

    def __init__(self, *, seed: int = 0) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._rng = np.random.default_rng(seed)

    def add(self, operator: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        name = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, [*inputs], [name], name=f"/{operator}_{name}", **attributes))
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def random(self, *shape: int) -> str:
        return self.constant(self._rng.normal(0.1, 1 / np.sqrt(np.prod(shape[1:])), shape))

    def conv(self, x: str, into: int, out: int, *, kernel: int = 3, stride: int = 1, **more: Any) -> str:
        attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4, **more}
        return self.add("Conv", [x, self.random(out, into, kernel, kernel), self.random(out)], **attributes)

    def norm(self, x: str, channels: int) -> str:
        """Add a batch normalisation whose constants are those of no tile."""
        scale, shift, mean = (self.constant(self._rng.normal(1, 0.3, channels)) for _ in range(3))
        var = self.constant(self._rng.uniform(0.5, 2, channels))
        return self.add("BatchNormalization", [x, scale, shift, mean, var])

    def size_of(self, x: str, *, times: int) -> str:
        """Return the sizes of `x` with y and x multiplied, computed as exporters do."""
        shape = self.add("Shape", [x])
        batch = self.add("Slice", [shape, *(self.constant([n], np.int64) for n in (0, 2, 0))])
        space = self.add("Slice", [shape, *(self.constant([n], np.int64) for n in (2, 4, 0))])
        return self.add("Concat", [batch, self.add("Mul", [space, self.constant([times] * 2, np.int64)])], axis=0)

    def up(self, x: str) -> str:
        """Add a nearest up-sampling to twice the size."""
        return self.add(
            "Resize",
            [x, "", "", self.size_of(x, times=2)],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    def model(
        self,
        logits: str,
        *,
        channels: int = 1,
        opset: int = 18,
        shape: Sequence[Any] | None = None,
        outputs: Sequence[str] = (),
        data_type: int = TensorProto.FLOAT,
    ) -> onnx.ModelProto:
        """Return the model, its input called ``input``."""
        graph = helper.make_graph(
            self.nodes,
            "foreign",
            [helper.make_tensor_value_info("input", data_type, shape or ["b", channels, "h", "w"])],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "k", "i", "j"])
                for name in outputs or (logits,)
            ],
            self.weights,
        )
        return helper.make_model(
            graph, producer_name="sketch", ir_version=8, opset_imports=[helper.make_opsetid("", opset)]
        )


def smp_like(*, classes: int = 1, channels: int = 1, opset: int = 18, head: str | None = None) -> onnx.ModelProto:
    """Return a U-Net of two levels: a strided stem, a residual block, nearest up-sampling, skips by concatenation."""
    s = Sketch()
    stem = s.add("Relu", [s.norm(s.conv("input", channels, 4), 4)])
    x = s.add("MaxPool", [stem], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    inner = s.norm(s.conv(s.add("Relu", [s.norm(s.conv(x, 4, 4), 4)]), 4, 4), 4)
    x = middle = s.add("Relu", [s.add("Add", [inner, x])])
    x = s.add("Relu", [s.conv(x, 4, 6, stride=2)])
    x = s.add("Concat", [s.up(x), middle], axis=1)
    x = s.add("Relu", [s.conv(x, 10, 4)])
    x = s.add("Concat", [s.up(x), stem], axis=1)
    x = s.conv(s.add("Identity", [x]), 8, classes)
    if head is not None:
        x = s.add(head, [x], **({"axis": 1} if head in ("Softmax", "ArgMax") else {}))
    return s.model(x, channels=channels, opset=opset)


def monai_like(*, classes: int = 3, norm: str = "batch") -> onnx.ModelProto:
    """Return a U-Net of two levels: strided convolutions, PReLU, transposed convolutions of 3 by 3, residual units."""
    s = Sketch(seed=1)

    def unit(x: str, into: int, out: int, *, stride: int = 1) -> str:
        x = s.conv(x, into, out, stride=stride)
        is_instance = norm == "instance"
        x = s.add("InstanceNormalization", [x, s.random(out), s.random(out)]) if is_instance else s.norm(x, out)
        return s.add("PRelu", [x, s.constant([[[0.2]]])])

    def rise(x: str, into: int, out: int) -> str:
        attributes = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]}
        return s.add("ConvTranspose", [x, s.random(into, out, 3, 3), s.random(out)], **attributes)

    first = unit("input", 1, 4, stride=2)
    bottom = unit(first, 4, 6, stride=2)
    bottom = s.add("Add", [unit(bottom, 6, 6), bottom])
    x = rise(bottom, 6, 4)
    x = s.add("Concat", [first, x], axis=1)
    return s.model(rise(x, 8, classes))


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Write a model."""
    path.write_bytes(model.SerializeToString())
    return path


def logits_of(model: onnx.ModelProto, image: npt.NDArray[Any], name: str | None = None) -> npt.NDArray[np.float32]:
    """Run a foreign model as it is."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None if name is None else [name], {"input": image})[0])
