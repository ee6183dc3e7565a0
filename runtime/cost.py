"""What a run costs: exact counts of operations, tiles and pixels read, and a model of memory. Pure.

FLOPs are counted layer by layer from the sizes each layer really has (a multiply and an add count 2), so the ratio
between two tile shapes is exact; so are the counts of tiles and of pixels read. The memory model is an upper bound of
what onnxruntime was measured to hold.
"""

from __future__ import annotations

import math

from unet_deploy.card import AdoptedNetwork, AnyNetwork
from unet_deploy.geometry import Geometry, UnetGeometry

FEATURE_MAPS_HELD = 9
"""Feature maps of the top level alive at once, where the engine is not known; see `runtime.engine_costs`."""
TTA_PASSES = 8
"""Forward passes over a tile whose result is the mean over the symmetries of the square."""


def tile_flops(network: AnyNetwork, tile_y: int, tile_x: int) -> int:
    """Return the floating-point operations of one forward pass over one legal input of (tile_y, tile_x) pixels."""
    if isinstance(network, AdoptedNetwork):
        return round(network.flops_per_pixel * tile_y * tile_x)
    total = 0

    def convolve(y: int, x: int, channels_in: int, channels_out: int, kernel: int) -> None:
        nonlocal total
        total += 2 * y * x * channels_in * channels_out * kernel**2

    y, x, channels = tile_y, tile_x, network.in_channels
    for level in range(network.depth + 1):
        width = network.base_width << level
        if level:
            y, x = y // 2, x // 2
        convolve(y - 2, x - 2, channels, width, 3)
        convolve(y - 4, x - 4, width, width, 3)
        y, x, channels = y - 4, x - 4, width
    for level in reversed(range(network.depth)):
        width = network.base_width << level
        y, x = 2 * y, 2 * x
        convolve(y, x, 2 * width, width, 1)  # 2x2 with stride 2: each output pixel sees one input pixel
        convolve(y - 2, x - 2, 2 * width, width, 3)
        convolve(y - 4, x - 4, width, width, 3)
        y, x = y - 4, x - 4
    convolve(y, x, network.base_width, network.classes, 1)
    return total


def flops_per_pixel(network: AnyNetwork) -> float:
    """Return the operations per output pixel of an infinitely large tile: the least any tiling can spend."""
    if isinstance(network, AdoptedNetwork):
        return network.flops_per_pixel
    side = UnetGeometry(network.depth).divisor  # one period of the pooling grid, without any border
    total = 0.0
    channels = network.in_channels
    for level in range(network.depth + 1):
        width, pixels = network.base_width << level, (side >> level) ** 2
        total += 2 * pixels * 9 * width * (channels + width)
        channels = width
    for level in range(network.depth):
        width, pixels = network.base_width << level, (side >> level) ** 2
        total += 2 * pixels * (2 * width * width + 9 * width * (2 * width + width))
    total += 2 * side**2 * network.base_width * network.classes
    return total / side**2


def tile_memory_bytes(
    network: AnyNetwork, tile_y: int, tile_x: int, batch: int, *, maps_held: float = FEATURE_MAPS_HELD
) -> int:
    """Return about how much memory an engine needs for one batch, beside its weights (float32 activations).

    `maps_held` feature maps of the top level are alive at once; of an adopted network, its own figure is taken.
    """
    if isinstance(network, AdoptedNetwork):
        return round(network.activation_bytes_per_pixel * tile_y * tile_x * batch)
    return round(maps_held * 4 * network.base_width * tile_y * tile_x * batch)


def weights_bytes(network: AnyNetwork) -> int:
    """Return the size of the weights in float32."""
    if isinstance(network, AdoptedNetwork):
        return network.weights_bytes
    total, channels = 0, network.in_channels
    for level in range(network.depth + 1):
        width = network.base_width << level
        total += 9 * channels * width + width + 9 * width * width + width
        channels = width
    for level in range(network.depth):
        width = network.base_width << level
        total += 4 * 2 * width * width + width + 9 * 2 * width * width + width + 9 * width * width + width
    return 4 * (total + network.base_width * network.classes + network.classes)


def count_tiles(geometry: Geometry, *, extent: int, block: int, tile: int) -> int:
    """Return how many tiles cover an axis, block by block: ``len(cover_axis(...))`` summed, without the loop."""
    core, divisor = geometry.core_side(tile), geometry.divisor
    full, rest = divmod(extent, block)

    def count(index: int, size: int) -> int:
        return -(-(index * block % divisor + size) // core)

    period = divisor // math.gcd(block, divisor)  # blocks until one starts at the same phase again
    by_phase = [count(i, block) for i in range(period)]
    total = sum(by_phase) * (full // period) + sum(by_phase[: full % period])
    return total + (count(full, rest) if rest else 0)


def count_read(*, extent: int, block: int, context: int) -> int:
    """Return the pixels that the blocks of an axis read, each with its context as far as the volume goes."""
    n_blocks = -(-extent // block)
    near = min(n_blocks - 1, -(-context // block))  # only so many borders lie nearer to the volume's end than that
    left = sum(min(context, i * block) for i in range(1, near + 1)) + context * (n_blocks - 1 - near)
    right = sum(min(context, extent - (n_blocks - i) * block) for i in range(1, near + 1))
    return extent + left + right + context * (n_blocks - 1 - near)
