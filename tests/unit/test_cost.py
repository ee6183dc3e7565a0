"""The cost is exact: counted again from the torch network's own layers, and equal to the published ratios."""

from __future__ import annotations

import pytest

from unet_deploy.card import Network
from unet_deploy.geometry import UnetGeometry
from unet_deploy.runtime.cost import flops_per_pixel, tile_flops, tile_memory_bytes, weights_bytes

PAPER = Network(depth=4, base_width=64, in_channels=1, classes=2)
SIZES = [
    PAPER,
    Network(depth=1, base_width=3, in_channels=1, classes=2),
    Network(depth=2, base_width=4, in_channels=3, classes=5),
    Network(depth=3, base_width=2, in_channels=2, classes=2),
    Network(depth=4, base_width=16, in_channels=1, classes=3),
]
by_size = pytest.mark.parametrize("network", SIZES, ids=lambda n: f"depth{n.depth}-width{n.base_width}")


def ratio(network: Network, core: int) -> float:
    side = network.geometry.tile_side(core)
    return tile_flops(network, side, side) / (core**2 * flops_per_pixel(network))


@by_size
def test_flops_and_weights_are_those_of_the_torch_network(network: Network) -> None:
    torch = pytest.importorskip("torch", reason="counting the real layers needs the extra 'train'")
    from unet_deploy.training.network import UNet

    counted = 0

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal counted
        # Each weight is used once for each output pixel; of an up-convolution, for each input pixel.
        pixels = (inputs[0] if isinstance(module, torch.nn.ConvTranspose2d) else output).shape[-2:].numel()
        counted += 2 * module.weight.numel() * pixels

    with torch.device("meta"):
        model = UNet(
            depth=network.depth, base_width=network.base_width, in_channels=network.in_channels, classes=network.classes
        )
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            module.register_forward_hook(count)
    g = network.geometry
    y, x = g.tile_side(3 * g.divisor), g.tile_side(5 * g.divisor)
    model.eval()(torch.zeros(1, network.in_channels, y, x, device="meta"))
    assert tile_flops(network, y, x) == counted
    assert tile_flops(network, x, y) == counted
    assert weights_bytes(network) == 4 * sum(p.numel() for p in model.parameters())


def test_the_paper() -> None:
    assert weights_bytes(PAPER) == 4 * 31_030_658
    assert round(flops_per_pixel(PAPER) / 1e6, 3) == 1.468


@pytest.mark.parametrize(("width", "expected"), [(32, 0.367), (16, 0.092)])
def test_narrower_networks(width: int, expected: float) -> None:
    network = Network(depth=4, base_width=width, in_channels=1, classes=2)
    assert round(flops_per_pixel(network) / 1e6, 3) == expected


@pytest.mark.parametrize(
    ("core", "expected"),
    [
        (96, 3.24),
        (192, 1.89),
        (288, 1.55),
        (384, 1.39),
        (512, 1.28),
        (768, 1.18),
        (1024, 1.13),
        (1488, 1.09),
        (4096, 1.03),
    ],
)
def test_the_price_of_a_halo(core: int, expected: float) -> None:
    assert round(ratio(PAPER, core), 2) == expected


def test_the_price_of_a_halo_at_2048() -> None:
    assert round(ratio(PAPER, 2048), 3) == 1.065


@by_size
def test_a_larger_core_is_cheaper_a_pixel_down_to_the_least(network: Network) -> None:
    divisor = network.geometry.divisor
    ratios = [ratio(network, n * divisor) for n in (1, 2, 3, 5, 8, 20, 100, 1000, 10**6)]
    assert ratios == sorted(ratios, reverse=True)
    assert 1 < ratios[-1] < 1.0001


def test_memory_is_proportional_to_pixels_width_and_batch() -> None:
    one = tile_memory_bytes(PAPER, 572, 572, 1)
    assert tile_memory_bytes(PAPER, 572, 572, 3) == 3 * one
    assert tile_memory_bytes(Network(depth=4, base_width=16, in_channels=1, classes=2), 572, 572, 1) * 4 == one
    assert tile_memory_bytes(PAPER, 572, 1144, 1) == 2 * one


def test_memory_covers_what_was_measured() -> None:
    # Peak of onnxruntime at base width 64 with tiles keeping 384 and 1024, process included: 783 and 2,592 MiB.
    fixed = 250 * 2**20 + 2 * weights_bytes(PAPER)
    for core, measured in ((384, 783), (1024, 2592)):
        side = UnetGeometry(4).tile_side(core)
        assert measured * 2**20 < fixed + tile_memory_bytes(PAPER, side, side, 1) < 1.8 * measured * 2**20
