"""fp16 and int8 artifacts are read as strictly as fp32 ones: of each precision's own operators, types and tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.unit.test_artifact import forged
from unet_deploy.card import ModelCard, Network, Precision
from unet_deploy.errors import CardError, ModelError, TestTensorError, UnsafeModelError
from unet_deploy.runtime.artifact import Artifact, load_artifact, read_artifact
from unet_deploy.runtime.engines import open_engine
from unet_deploy.runtime.unet_graph import weight_shapes, weight_tensors

Change = Callable[[Any], object]
DERIVED = ("fp16", "int8")


@pytest.fixture(params=DERIVED)
def product(request: pytest.FixtureRequest, tiny_products: dict[str, Path]) -> Artifact:
    return load_artifact(tiny_products[request.param])


@pytest.fixture
def int8(tiny_products: dict[str, Path]) -> Artifact:
    return load_artifact(tiny_products["int8"])


@pytest.fixture
def fp16(tiny_products: dict[str, Path]) -> Artifact:
    return load_artifact(tiny_products["fp16"])


def tensor_named(model: Any, name: str) -> Any:
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    return tensor


def set_tensor(name: str, change: Callable[[Any], Any]) -> Change:
    def edit(model: Any) -> None:
        tensor = tensor_named(model, name)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(numpy_helper.to_array(tensor))), name))

    return edit


def test_what_is_written_is_read(product: Artifact) -> None:
    again = read_artifact(forged(product), source="a socket")
    assert (again.sha256, again.card) == (product.sha256, product.card)
    open_engine(again, device="cpu", engine="onnxruntime-cpu").close()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_tensors_of_a_precision_are_those_of_the_sizes(precision: Precision) -> None:
    network = Network(depth=3, base_width=4, in_channels=2, classes=5)
    tensors, shapes = weight_tensors(network, precision), weight_shapes(network)
    if precision != "int8":
        assert {name: shape for name, (_, shape) in tensors.items()} == shapes
        assert {kind for kind, _ in tensors.values()} == {"FLOAT16" if precision == "fp16" else "FLOAT"}
        return
    assert tensors["up.0.weight_quantized"] == ("INT8", (32, 16, 2, 2))
    assert tensors["up.0.weight_scale"] == ("FLOAT", (16,))
    assert tensors["contracting.0.2.weight_zero_point"] == ("INT8", (4,))
    assert tensors["expanding.2.2.bias_quantized"] == ("INT32", (4,))
    assert tensors["expanding.2.2.bias_quantized_scale"] == ("FLOAT", (4,))
    assert tensors["head.weight"] == ("FLOAT", (5, 4, 1, 1))
    assert tensors["contracting.0.0.bias"] == ("FLOAT", (4,))
    assert len(tensors) == 3 * (len(shapes) - 4) + 4


@pytest.mark.parametrize("claimed", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("made", ["fp32", "fp16", "int8"])
def test_a_graph_of_another_precision_is_refused(tiny_products: dict[str, Path], made: str, claimed: Precision) -> None:
    artifact = load_artifact(tiny_products[made])
    card: ModelCard = replace(artifact.card, precision=claimed, parent_sha256="0" * 64)
    if made == claimed:
        read_artifact(forged(artifact, card=card), source="x")
        return
    with pytest.raises((UnsafeModelError, CardError), match=r"^.+\n(  .+\n)*  fix: "):
        read_artifact(forged(artifact, card=card), source="x")


def test_the_precision_that_was_claimed_is_said(tiny_artifact: Artifact) -> None:
    card = replace(tiny_artifact.card, precision="fp16", parent_sha256="0" * 64)
    with pytest.raises(UnsafeModelError, match=r"^x holds what a segmentation network has no need of\n") as caught:
        read_artifact(forged(tiny_artifact, card=card), source="x")
    first, *_, more, last = caught.value.details
    assert first == "tensor 'contracting.0.0.weight' has the data type FLOAT"
    assert (more, last) == ("and 21 more tensors like these", "its card says that it computes in fp16")


def test_a_product_without_its_parent_is_refused(product: Artifact) -> None:
    card = replace(product.card, parent_sha256=None)
    with pytest.raises(CardError, match=rf"\n  parent_sha256 was expected in a card of {card.precision}: that of the"):
        read_artifact(forged(product, card=card), source="x")


def add_node(operator: str) -> Change:
    return lambda model: model.graph.node.append(helper.make_node(operator, ["image"], ["unused"]))


@pytest.mark.parametrize(
    ("precision", "operator"),
    [
        ("fp32", "Cast"),
        ("fp32", "QuantizeLinear"),
        ("fp16", "DequantizeLinear"),
        ("int8", "Cast"),
        ("int8", "QLinearConv"),
        ("int8", "If"),
        ("fp16", "Sigmoid"),
    ],
)
def test_an_operator_of_another_precision_is_refused(
    tiny_products: dict[str, Path], precision: str, operator: str
) -> None:
    artifact = load_artifact(tiny_products[precision])
    with pytest.raises(UnsafeModelError, match=rf"\n  operators: .* were expected, {operator} came\n"):
        read_artifact(forged(artifact, add_node(operator)), source="x")


@pytest.mark.parametrize("data_type", [TensorProto.DOUBLE, TensorProto.BFLOAT16, TensorProto.STRING, TensorProto.INT4])
def test_a_data_type_that_no_precision_needs_is_refused(product: Artifact, data_type: int) -> None:
    def change(model: Any) -> None:
        tensor = model.graph.initializer.add()
        tensor.name, tensor.data_type = "more", data_type

    name = TensorProto.DataType.Name(data_type)
    with pytest.raises(UnsafeModelError, match=rf"\n  tensor 'more' has the data type {name}\n"):
        read_artifact(forged(product, change), source="x")


@pytest.mark.parametrize(
    "name", ["contracting.0.2.weight_quantized", "up.0.bias_quantized", "contracting.0.1.out_zero_point"]
)
def test_a_tensor_shorter_than_it_says_is_refused(int8: Artifact, name: str) -> None:
    def change(model: Any) -> None:
        tensor = tensor_named(model, name)
        tensor.raw_data = tensor.raw_data[:-1]

    with pytest.raises(UnsafeModelError, match=rf"\n  tensor '{name}' declares (\d+) bytes and has (?!\1)\d+\n"):
        read_artifact(forged(int8, change), source="x")


def test_values_beside_the_bytes_are_refused(int8: Artifact) -> None:
    def change(model: Any) -> None:
        tensor = tensor_named(model, "contracting.0.1.out_scale")
        tensor.CopyFrom(helper.make_tensor("contracting.0.1.out_scale", TensorProto.FLOAT, [], [0.5]))

    with pytest.raises(UnsafeModelError, match=r"\n  tensor 'contracting.0.1.out_scale' declares 4 bytes and has 0\n"):
        read_artifact(forged(int8, change), source="x")


@pytest.mark.parametrize(
    "change",
    [
        set_tensor("contracting.0.2.weight_quantized", lambda a: a[:1]),
        set_tensor("contracting.0.2.weight_quantized", lambda a: a.astype(np.uint8)),
        set_tensor("contracting.0.2.weight_scale", lambda a: a[0]),
        set_tensor("up.0.bias_quantized", lambda a: a.astype(np.int8)),
        set_tensor("contracting.0.1.out_scale", lambda a: a[None]),
        set_tensor("contracting.0.1.out_zero_point", lambda a: a.astype(np.int8)),
        set_tensor("head.weight", lambda a: a.astype(np.int8)),
        lambda m: m.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "more_scale")),
        lambda m: m.graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), "more")),
        lambda m: m.graph.initializer.append(m.graph.initializer[0]),
        lambda m: m.graph.initializer.remove(tensor_named(m, "head.bias")),
    ],
)
def test_tensors_that_are_not_the_cards_are_refused(int8: Artifact, change: Change) -> None:
    with pytest.raises(
        CardError, match=r"\n  weights: those of depth 2 and width 2 in int8 were expected, \d+ tensors"
    ):
        read_artifact(forged(int8, change), source="x")


def test_fp16_weights_of_another_size_are_refused(fp16: Artifact) -> None:
    with pytest.raises(
        CardError, match=r"\n  weights: those of depth 2 and width 2 in fp16 were expected, \d+ tensors"
    ):
        read_artifact(forged(fp16, set_tensor("up.0.weight", lambda a: a[..., :1])), source="x")


def test_a_flipped_bit_is_found(product: Artifact) -> None:
    model = onnx.load_model_from_string(product.data)
    tensor = model.graph.initializer[3]
    tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]
    with pytest.raises(CardError, match=r"\n  graph_sha256 [0-9a-f]{12}… was expected"):
        read_artifact(bytes(model.SerializeToString(deterministic=True)), source="x")


@pytest.mark.parametrize("precision", DERIVED)
def test_a_graph_that_computes_something_else_is_found_when_it_opens(
    tiny_products: dict[str, Path], precision: str
) -> None:
    artifact = load_artifact(tiny_products[precision])
    change = set_tensor("head.bias", lambda a: a + a.dtype.type(50))
    with pytest.raises(
        TestTensorError, match=rf"does not compute what the model's parent computed\n(.*\n)*.*{precision}"
    ):
        open_engine(read_artifact(forged(artifact, change), source="x"), device="cpu", engine="onnxruntime-cpu")


def test_an_input_of_half_precision_is_refused(fp16: Artifact) -> None:
    def change(model: Any) -> None:
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16

    with pytest.raises(ModelError, match=r"\n  input: float32 was expected\n"):
        read_artifact(forged(fp16, change), source="x")
