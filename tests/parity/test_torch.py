"""The exported graph computes what the torch network computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity with torch needs the extra 'train'")

from unet_deploy.card import Network  # noqa: E402
from unet_deploy.errors import ParityError  # noqa: E402
from unet_deploy.exporters.graph import build_graph  # noqa: E402
from unet_deploy.exporters.parity import compare  # noqa: E402
from unet_deploy.runtime.engines import CheckedEngine  # noqa: E402
from unet_deploy.runtime.engines.onnxruntime_cpu import OnnxruntimeCpuEngine  # noqa: E402
from unet_deploy.training.network import UNet  # noqa: E402

SIZES = [
    Network(depth=1, base_width=3, in_channels=1, classes=2),
    Network(depth=2, base_width=4, in_channels=3, classes=5),
    Network(depth=3, base_width=2, in_channels=2, classes=2),
    Network(depth=4, base_width=4, in_channels=1, classes=3),
    Network(depth=5, base_width=1, in_channels=1, classes=2),
]


@pytest.mark.parametrize("network", SIZES, ids=lambda n: f"depth{n.depth}")
def test_graph_equals_torch_at_legal_sizes(network: Network) -> None:
    torch.manual_seed(1)
    model = UNet(
        depth=network.depth, base_width=network.base_width, in_channels=network.in_channels, classes=network.classes
    ).eval()
    for parameter in model.parameters():  # biases start at 0, which would hide a forgotten one
        torch.nn.init.normal_(parameter, std=0.2)
    graph = build_graph(network, {k: v.detach().numpy() for k, v in model.state_dict().items()})
    engine = OnnxruntimeCpuEngine(graph.SerializeToString(), precision="fp32")
    engine.open()
    g = network.geometry
    rng = np.random.default_rng(2)
    for n, y, x in ((1, 1, 1), (2, 2, 1), (1, 1, 3), (3, 1, 2)):
        shape = (n, network.in_channels, g.tile_side(y * g.divisor), g.tile_side(x * g.divisor))
        batch = rng.standard_normal(shape, np.float32)
        with torch.inference_mode():
            expected = model(torch.from_numpy(batch)).numpy()
        came = engine.infer(batch)
        assert came.shape == expected.shape == (n, network.classes, *(g.output_side(s) for s in shape[2:]))
        assert np.abs(came - expected).max() <= 1e-5 * np.abs(expected).max() + 1e-5


def test_a_difference_is_refused_with_every_shape(make_card: Any) -> None:
    network = Network(depth=1, base_width=4, in_channels=1, classes=2)
    exported, other = UNet(depth=1, base_width=4), UNet(depth=1, base_width=4)
    graph = build_graph(network, {k: v.detach().numpy() for k, v in exported.state_dict().items()})
    engine = CheckedEngine(
        OnnxruntimeCpuEngine(graph.SerializeToString(), precision="fp32"), make_card(depth=1, base_width=4)
    ).open()
    assert len(compare(exported, engine, network)) == 4
    with pytest.raises(ParityError, match=r"does not compute what the checkpoint computes(\n.*input \(.*){4}"):
        compare(other, engine, network)


def test_dropout_is_not_exported() -> None:
    network = Network(depth=1, base_width=2, in_channels=1, classes=2)
    model = UNet(depth=1, base_width=2).train()
    graph = build_graph(network, {k: v.detach().numpy() for k, v in model.state_dict().items()})
    assert {node.op_type for node in graph.graph.node} == {
        "Conv",
        "ConvTranspose",
        "Relu",
        "MaxPool",
        "Slice",
        "Concat",
    }
