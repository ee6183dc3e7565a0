"""The network is the paper's: its weights, its layers, its sides."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="the extra 'train' is not installed")

from unet_deploy.errors import ConfigurationError, TileNotLegalError  # noqa: E402
from unet_deploy.geometry import UnetGeometry  # noqa: E402
from unet_deploy.training.network import UNet  # noqa: E402


def test_the_papers_configuration_has_the_papers_numbers() -> None:
    with torch.device("meta"):
        model = UNet()
        output = model(torch.zeros(1, 1, 572, 572))
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d)]
    assert sum(p.numel() for p in model.parameters()) == 31_030_658
    assert len(layers) == 23
    assert max(layer.out_channels for layer in layers) == 1024
    assert output.shape == (1, 2, 388, 388)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_output_sides_are_the_geometrys_for_both_sides_independently(depth: int) -> None:
    geometry = UnetGeometry(depth)
    height, width = geometry.smallest_tile, geometry.smallest_tile + 2 * geometry.divisor
    with torch.device("meta"):
        output = UNet(depth=depth, base_width=2, in_channels=3, classes=5)(torch.zeros(2, 3, height, width))
    assert output.shape == (2, 5, geometry.output_side(height), geometry.output_side(width))


def test_an_illegal_side_is_refused_with_the_nearest_legal_ones() -> None:
    model = UNet(base_width=2)
    with pytest.raises(TileNotLegalError, match="tile side 250 on axis x is not 16·k − 4") as caught:
        model(torch.zeros(1, 1, 252, 250))
    assert "nearest legal sides: 236, 252" in str(caught.value)
    with pytest.raises(TileNotLegalError, match="axis y"):
        model(torch.zeros(1, 1, 184, 252))


def test_a_depth_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"network depth 0 is not in 1\.\.8"):
        UNet(depth=0)


def test_the_side_check_adds_nothing_to_an_exported_graph() -> None:
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        UNet(depth=1, base_width=2).eval(),
        (torch.zeros(2, 1, 44, 60),),
        dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},),
    )
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.conv2d.default" in operators
    assert not [name for name in operators if "sym" in name or "assert" in name]


def test_initial_weights_have_the_papers_spread_and_no_bias() -> None:
    torch.manual_seed(0)
    model = UNet(depth=2, base_width=32)
    convolution = model.contracting[1][2]  # 3x3 over 64 channels
    assert convolution.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.03)
    assert model.up[0].weight.std().item() == pytest.approx(math.sqrt(2 / 128), rel=0.03)
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith("bias"))


def test_dropout_works_in_training_only() -> None:
    torch.manual_seed(0)
    model, x = UNet(depth=1, base_width=8), torch.randn(1, 1, 28, 28)
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_tiles_in_phase_agree_with_one_pass_and_tiles_out_of_phase_do_not() -> None:
    torch.manual_seed(0)
    model, side = UNet(depth=2, base_width=4).eval(), 60
    plane = torch.randn(1, 1, 92, 60)
    with torch.no_grad():
        whole = model(plane)
        in_phase, out_of_phase = model(plane[:, :, 16 : 16 + side]), model(plane[:, :, 18 : 18 + side])
    assert torch.allclose(in_phase, whole[:, :, 16:36], atol=1e-5)
    assert not torch.allclose(out_of_phase, whole[:, :, 18:38], atol=1e-2)
