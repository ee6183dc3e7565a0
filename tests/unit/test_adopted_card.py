"""The card and the file of an adopted network: what goes in comes out, what cannot be is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.foreign_graphs import save, smp_like
from tests.unit.test_artifact import damaged, forged
from tests.unit.test_card import Json, a_card, put, take_away
from unet_deploy.card import AdoptedNetwork, ModelCard, TestTensor
from unet_deploy.card_json import card_to_object, dump_card, parse_card
from unet_deploy.errors import CardError, ConfigurationError, TestTensorError, UnsafeModelError
from unet_deploy.geometry import SameGeometry
from unet_deploy.runtime.artifact import Artifact, load_artifact, read_artifact
from unet_deploy.runtime.engines import open_engine

NETWORK = AdoptedNetwork(
    divisor=4,
    context=8,
    in_channels=1,
    classes=2,
    flops_per_pixel=336.5,
    activation_bytes_per_pixel=44,
    weights_bytes=772,
)


def an_adopted_card() -> ModelCard:
    rng = np.random.default_rng(0)
    tensor = TestTensor(
        image=rng.integers(0, 256, (1, 1, 20, 24), np.uint8),
        logits=rng.standard_normal((1, 2, 4, 8)).astype(np.float32),
    )
    return replace(a_card(), network=NETWORK, test_tensor=tensor)


def problems_of(change: Callable[[Json], object]) -> list[str]:
    data = card_to_object(an_adopted_card())
    change(data)
    with pytest.raises(CardError, match=r"^the model card has \d+ problem\(s\)\n") as caught:
        parse_card(json.dumps(data), source="model.onnx")
    return list(caught.value.details[1:])


def test_it_comes_back() -> None:
    card = an_adopted_card()
    again = parse_card(dump_card(card), source="here")
    assert again == card
    assert again.network == NETWORK
    assert again.geometry == SameGeometry(4, 8)


def test_what_it_says_of_its_network() -> None:
    data = card_to_object(an_adopted_card())
    assert data["network"] == {
        "architecture": "adopted",
        "in_channels": 1,
        "classes": 2,
        "flops_per_pixel": 336.5,
        "activation_bytes_per_pixel": 44,
        "weights_bytes": 772,
    }
    assert data["geometry"] == {"divisor": 4, "context": 8}


def test_all_cards_but_the_network_have_the_same_keys() -> None:
    ours, adopted = card_to_object(a_card()), card_to_object(an_adopted_card())
    assert ours.keys() == adopted.keys()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (put("network.depth", 4), "network.depth: unknown key"),
        (put("network.base_width", 4), "network.base_width: unknown key"),
        (take_away("network.weights_bytes"), "network.weights_bytes: missing"),
        (put("network.classes", 1), "network.classes: an integer in 2..255 was expected, 1 came"),
        (put("network.in_channels", 0), "network.in_channels: an integer in 1..64 was expected, 0 came"),
        (put("network.flops_per_pixel", -1), "network.flops_per_pixel: a number from 0 was expected, -1 came"),
        (
            put("network.activation_bytes_per_pixel", 0),
            "network.activation_bytes_per_pixel: a number above 0 was expected, 0 came",
        ),
        (
            put("network.weights_bytes", 2**31),
            "network.weights_bytes: an integer in 0..2147483647 was expected, 2147483648 came",
        ),
        (put("geometry.crop_margins", []), "geometry.crop_margins: unknown key"),
        (put("geometry.divisor", 0), "geometry.divisor: an integer in 1..256 was expected, 0 came"),
        (put("geometry.context", 5000), "geometry.context: an integer in 0..4096 was expected, 5000 came"),
        (put("geometry.context", 9), "geometry.context: a multiple of the divisor 4 was expected, 9 came"),
        (
            put("test_tensor.image.shape", [1, 1, 24, 20]),
            "test_tensor.logits: (1, 2, 8, 4) of float32 was expected, (1, 2, 4, 8) of float32 came",
        ),
        (
            put("test_tensor.image.shape", [1, 1, 16, 30]),
            "test_tensor.image: sides that a network of divisor 4 and context 8 takes were expected, 16 x 30 came",
        ),
    ],
)
def test_a_wrong_value(change: Callable[[Json], object], problem: str) -> None:
    assert problem in problems_of(change)


def test_all_problems_are_said_at_once() -> None:
    def spoil(data: Json) -> None:
        for change in (put("network.classes", 0), put("geometry.divisor", "4"), put("name", 1)):
            change(data)

    assert problems_of(spoil) == [
        "name: text was expected, 1 came",
        "network.classes: an integer in 2..255 was expected, 0 came",
        'geometry.divisor: an integer in 1..256 was expected, "4" came',
    ]


def test_no_value_brings_another_exception() -> None:
    values = [10**400, -1, 0, 0.5, True, None, "", [], {}]
    for group in ("network", "geometry"):
        for key in card_to_object(an_adopted_card())[group]:
            for value in values:
                data = card_to_object(an_adopted_card())
                data[group][key] = value
                try:
                    card = parse_card(json.dumps(data), source="here")
                except CardError as error:
                    assert "in here" in error.details  # noqa: PT017 - either ending is right
                else:
                    assert parse_card(dump_card(card), source="there") == card


def test_a_geometry_that_cannot_be() -> None:
    with pytest.raises(ConfigurationError, match=r"^context 9 is not a multiple of the divisor 4\n"):
        _ = replace(NETWORK, context=9).geometry


# ---- the file


@pytest.fixture(scope="module")
def adopted(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    pytest.importorskip("onnxruntime", reason="adopting needs onnxruntime: extra 'cpu'")
    from unet_deploy.exporters import AdoptionSettings, adopt_model

    folder = tmp_path_factory.mktemp("adopted")
    source = save(smp_like(), folder / "other.onnx")
    settings = AdoptionSettings(mean=(100.0,), std=(50.0,))
    return load_artifact(adopt_model(source, folder / "ours.onnx", settings, threads=1).path)


def insert(operator: str, **attributes: Any) -> Callable[[Any], None]:
    """Return a change that puts a node before all others."""

    def change(model: Any) -> None:
        first = next(node for node in model.graph.node if "image" in node.input)
        first.input[[*first.input].index("image")] = "inserted"
        domain = attributes.pop("domain", "")
        model.graph.node.insert(0, helper.make_node(operator, ["image"], ["inserted"], domain=domain, **attributes))

    return change


def another_type(model: Any) -> None:
    values = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, model.graph.initializer[0].name))


def a_file_outside(model: Any) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def another_opset(model: Any) -> None:
    model.opset_import[0].version = 22


def a_function(model: Any) -> None:
    model.functions.append(helper.make_function("f", "F", ["x"], ["y"], [], [helper.make_opsetid("", 18)]))


BODY = helper.make_graph([], "body", [], [])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (insert("InstanceNormalization"), r"InstanceNormalization came"),
        (insert("GlobalAveragePool"), r"GlobalAveragePool came"),
        (insert("Shape"), r"Shape came"),
        (insert("Relu", domain="com.example"), r"operators: .+ Relu came"),
        (insert("If", then_branch=BODY), r"If came"),
        (insert("Relu", then_branch=BODY), r"attributes that are no numbers or words: sub-graphs, tensors"),
        (insert("Relu", value=numpy_helper.from_array(np.zeros(1))), r"attributes that are no numbers or words"),
        (another_type, r"has the data type DOUBLE"),
        (a_file_outside, r"lies in another file"),
        (another_opset, r"operator sets: ai\.onnx 18 was expected, ai\.onnx 22 came"),
        (a_function, r"functions, training information, sparse or annotated tensors"),
    ],
)
def test_what_it_may_not_hold(change: Callable[[Any], object], problem: str, adopted: Artifact) -> None:
    with pytest.raises(UnsafeModelError, match=rf"(?s)holds what a segmentation network has no need of.+{problem}"):
        read_artifact(forged(adopted, change), source="x")


def test_an_attribute_that_carries_more(adopted: Artifact) -> None:
    def change(model: Any) -> None:
        node = next(node for node in model.graph.node if node.op_type == "Resize")
        attribute = next(a for a in node.attribute if a.name == "mode")
        attribute.t.CopyFrom(numpy_helper.from_array(np.zeros(4)))

    with pytest.raises(UnsafeModelError, match="attributes that are no numbers or words"):
        read_artifact(forged(adopted, change), source="x")


def test_a_precision_that_it_does_not_have(adopted: Artifact) -> None:
    card = replace(adopted.card, precision="fp16")
    with pytest.raises(CardError, match=r"precision: fp32 was expected of an adopted network, fp16 came"):
        read_artifact(forged(adopted, card=card), source="x")


def test_a_weight_that_was_changed(adopted: Artifact) -> None:
    def change(model: Any) -> None:
        tensor = next(t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT)
        tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]

    with pytest.raises(CardError, match=r"graph_sha256 \w+… was expected, \w+… came"):
        read_artifact(damaged(adopted, change), source="x")


def test_a_card_of_more_classes(adopted: Artifact) -> None:
    tensor = adopted.card.test_tensor
    assert tensor is not None
    assert isinstance(adopted.card.network, AdoptedNetwork)
    logits = np.repeat(tensor.logits, 2, axis=1)
    card = replace(
        adopted.card,
        network=replace(adopted.card.network, classes=4),
        classes=adopted.card.classes * 2,
        test_tensor=replace(tensor, logits=logits),
    )
    with pytest.raises(CardError, match=r"output: logits \(n, 4, y, x\) was expected"):
        read_artifact(forged(adopted, card=card), source="x")


def test_a_forged_context_is_found_when_it_opens(adopted: Artifact) -> None:
    """The crop belongs to the graph: a card that declares less gets a tensor of another size."""
    tensor, network = adopted.card.test_tensor, adopted.card.network
    assert tensor is not None
    assert isinstance(network, AdoptedNetwork)
    n, classes, y, x = tensor.logits.shape
    card = replace(
        adopted.card,
        network=replace(network, context=network.context - 4),
        test_tensor=replace(tensor, logits=np.zeros((n, classes, y + 8, x + 8), np.float32)),
    )
    artifact = read_artifact(forged(adopted, card=card), source="x")
    with pytest.raises(TestTensorError, match=r"cannot run the model's test tensor|does not compute what"):
        open_engine(artifact, device="cpu", engine="onnxruntime-cpu")


def test_its_file_is_one_file(adopted: Artifact, tmp_path: Path) -> None:
    (tmp_path / "alone.onnx").write_bytes(adopted.data)
    assert load_artifact(tmp_path / "alone.onnx").card == adopted.card
    assert {t.data_location for t in onnx.load_model_from_string(adopted.data).graph.initializer} == {0}
