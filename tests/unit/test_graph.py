"""The written graph: plain, self-contained, the same on every machine, and of the sizes the paper gives."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch", reason="the weights' names are those of the torch network: extra 'train'")

from unet_deploy.card import ModelCard, Network  # noqa: E402
from unet_deploy.card_json import CARD_HASH_KEY, METADATA_KEY, dump_card  # noqa: E402
from unet_deploy.exporters.graph import Weights, build_graph, stamp_card  # noqa: E402
from unet_deploy.runtime.artifact import hash_card, hash_graph  # noqa: E402
from unet_deploy.runtime.unet_graph import KNOWN_OPERATORS  # noqa: E402
from unet_deploy.training.network import UNet  # noqa: E402

DEPTHS = (1, 2, 3, 4, 5)


@pytest.fixture
def tiny_card(make_card: Callable[..., ModelCard]) -> ModelCard:
    return make_card()


def weights_of(network: Network, seed: int = 0) -> Weights:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = UNet(
            depth=network.depth, base_width=network.base_width, in_channels=network.in_channels, classes=network.classes
        )
    return {name: value.numpy() for name, value in model.state_dict().items()}


def build(depth: int = 2, *, width: int = 2, channels: int = 1, classes: int = 2, seed: int = 0) -> onnx.ModelProto:
    network = Network(depth=depth, base_width=width, in_channels=channels, classes=classes)
    return build_graph(network, weights_of(network, seed))


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_nodes_are_counted(depth: int) -> None:
    nodes = [node.op_type for node in build(depth).graph.node]
    # Two convolutions with ReLU a block; a pooling, an up-convolution, a crop and a concatenation a level; the head.
    assert nodes.count("Conv") == 2 * (2 * depth + 1) + 1
    assert nodes.count("Relu") == 2 * (2 * depth + 1)
    assert (
        nodes.count("MaxPool") == nodes.count("ConvTranspose") == nodes.count("Slice") == nodes.count("Concat") == depth
    )
    assert len(nodes) == 12 * depth + 5
    assert set(nodes) == KNOWN_OPERATORS


def test_the_papers_network_has_23_convolutional_layers_in_53_nodes() -> None:
    nodes = [node.op_type for node in build(4).graph.node]
    assert len(nodes) == 53
    assert nodes.count("Conv") + nodes.count("ConvTranspose") == 23


@pytest.mark.parametrize("depth", DEPTHS)
def test_crops_are_the_constants_of_the_depth(depth: int) -> None:
    graph = build(depth).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    margins = []
    for node in graph.node:
        if node.op_type == "Slice":
            starts, ends, axes = (constants[name].tolist() for name in node.input[1:])
            assert (axes, ends) == ([2, 3], [-starts[0]] * 2)
            margins.append(starts[0])
            assert starts == [margins[-1]] * 2
    assert margins == [4, 16, 40, 88, 184][:depth]


def test_every_weight_is_in_the_graph_once() -> None:
    network = Network(depth=2, base_width=3, in_channels=2, classes=4)
    weights = weights_of(network)
    graph = build_graph(network, weights).graph
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    assert set(stored) == set(weights)
    assert len(graph.initializer) == len(weights) + 3 * network.depth
    for name, value in weights.items():
        np.testing.assert_array_equal(stored[name], value, strict=True)


def test_sizes_are_dynamic_and_versions_fixed() -> None:
    model = build(4, channels=3, classes=5)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert model.ir_version == 10
    (image,), (logits,) = model.graph.input, model.graph.output
    dimensions = [[d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in (image, logits)]
    assert dimensions == [["n", 3, "y", "x"], ["n", 5, "y - 184", "x - 184"]]
    assert (image.name, logits.name) == ("image", "logits")


def test_nothing_lies_outside_the_file_and_no_place_is_named() -> None:
    model = build(2)
    assert all(t.data_location == onnx.TensorProto.DEFAULT and not t.external_data for t in model.graph.initializer)
    assert not model.functions
    assert not model.metadata_props
    assert not any(node.doc_string or node.domain for node in model.graph.node)
    data = model.SerializeToString()
    for trace in (b".py", b"/tmp", b"site-packages", os.fsencode(Path.cwd()), os.fsencode(Path(__file__).parent)):
        assert trace not in data


def test_equal_weights_give_equal_bytes(tiny_card: ModelCard) -> None:
    assert stamp_card(build(seed=1), tiny_card) == stamp_card(build(seed=1), tiny_card)
    assert stamp_card(build(seed=1), tiny_card) != stamp_card(build(seed=2), tiny_card)


def test_the_hash_is_of_the_graph_and_not_of_the_card(tiny_card: ModelCard) -> None:
    model = build(seed=1)
    stamped = onnx.load_model_from_string(stamp_card(model, tiny_card))
    assert hash_graph(stamped) == hash_graph(model)
    tensor = stamped.graph.initializer[0]
    tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]
    assert hash_graph(stamped) != hash_graph(model)


def test_a_stamp_replaces_the_one_before(tiny_card: ModelCard) -> None:
    model = build()
    once = onnx.load_model_from_string(stamp_card(model, tiny_card))
    once.metadata_props.add().key = "someone else's"
    twice = onnx.load_model_from_string(stamp_card(once, tiny_card))
    text = dump_card(tiny_card)
    stamps = {entry.key: entry.value for entry in twice.metadata_props}
    assert stamps == {METADATA_KEY: text, CARD_HASH_KEY: hash_card(text)}
    assert len(once.metadata_props) == 3  # the model given is not changed


def test_weights_that_have_no_place_are_our_bug() -> None:
    network = Network(depth=1, base_width=2, in_channels=1, classes=2)
    with pytest.raises(AssertionError, match=r"^weights left over: \['extra'\]$"):
        build_graph(network, {**weights_of(network), "extra": np.zeros(1, np.float32)})


def test_the_size_is_that_of_the_weights() -> None:
    network = Network(depth=3, base_width=8, in_channels=1, classes=2)
    weights = weights_of(network)
    n_bytes = 4 * sum(math.prod(value.shape) for value in weights.values())
    assert n_bytes < len(build_graph(network, weights).SerializeToString()) < n_bytes + 10_000
