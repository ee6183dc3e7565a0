"""One random training patch: place, turn, bend and grey values, drawn from one torch generator.

1. Place a legal input tile at random over the mirrored image.
2. Flip and turn by quarter turns (exact), then rotate by any angle and displace by a smooth random field: vectors
   on a coarse 3x3 grid, Gaussian with a standard deviation of 10 px, bicubic in between (Ronneberger et al. 2015,
   section 3.1). Some patches skip the latter two, so that the network also sees pixels that were never interpolated.
3. Sample the image (bicubic) and the label (nearest) once, mirroring at the border.
4. Vary gain, offset and gamma; blur some patches a little and add noise to some, to serve sharp and soft images alike.

Steps 2 and 3 sample the input tile with its full context; the label is its valid centre.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional

from unet_deploy.geometry import Geometry


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentationConfig:
    """How far patches are varied. Grey values are in units of the training images' standard deviation."""

    deform_probability: float = 0.8
    rotation_max_degrees: float = 180.0
    displacement_std_px: float = 10.0
    displacement_grid: int = 3
    gain_log_std: float = 0.15
    offset_std: float = 0.15
    gamma_log_std: float = 0.15
    blur_probability: float = 0.25
    blur_max_sigma_px: float = 1.0
    noise_probability: float = 0.4
    noise_max_std: float = 0.25


def draw_patch(
    image: Tensor,
    label: Tensor,
    *,
    tile_side: int,
    geometry: Geometry,
    config: AugmentationConfig,
    generator: Generator,
) -> tuple[Tensor, Tensor]:
    """Draw one random patch with its label.

    Parameters
    ----------
    image
        float32, (c, y, x), normalised.
    label
        uint8, (y, x), class indices.
    tile_side
        Side of the input tile in pixels; legal for `geometry`.
    generator
        The only source of randomness: its state decides the patch.

    Returns
    -------
    tuple of Tensor
        The tile, float32, (1, c, tile_side, tile_side), and the label of its valid centre, int64,
        (1, tile_side - 2·context, tile_side - 2·context).
    """
    coordinates = draw_coordinates(
        (image.shape[-2], image.shape[-1]),
        tile_side=tile_side,
        output_side=geometry.output_side(tile_side),
        config=config,
        generator=generator,
    )  # (tile, tile, 2): the source pixel (y, x) of each tile pixel
    context = geometry.context
    tile = sample(image, coordinates, mode="bicubic")  # (1, c, tile, tile)
    centre = coordinates[context:-context, context:-context]  # (out, out, 2)
    target = sample(label[None].float(), centre, mode="nearest")[:, 0].long()  # (1, out, out)
    return vary_grey_values(tile, config=config, generator=generator), target


def draw_coordinates(
    extent: tuple[int, int], *, tile_side: int, output_side: int, config: AugmentationConfig, generator: Generator
) -> Tensor:
    """Return for each tile pixel the (y, x) it is taken from, in absolute pixels; float32, (tile_side, tile_side, 2).

    The output's centre falls anywhere that leaves at least half of the output inside the image.
    """
    offset = torch.arange(tile_side, dtype=torch.float32) - (tile_side - 1) / 2
    position = torch.stack(torch.meshgrid(offset, offset, indexing="ij"), dim=-1)  # (tile, tile, 2), centred
    position = position @ _draw_quarter_turn(generator)
    if _uniform(generator) < config.deform_probability:
        angle = math.radians(config.rotation_max_degrees) * (2 * _uniform(generator) - 1)
        cos, sin = math.cos(angle), math.sin(angle)
        position = position @ torch.tensor([[cos, sin], [-sin, cos]])
        grid = config.displacement_grid
        coarse = torch.randn((1, 2, grid, grid), generator=generator) * config.displacement_std_px
        field = functional.interpolate(coarse, size=(tile_side, tile_side), mode="bicubic", align_corners=True)
        position = position + field[0].permute(1, 2, 0)
    centre = []
    for side in extent:
        low, high = sorted((output_side / 4, side - output_side / 4))
        # Whole steps from the first pixel: without deformation, sampling hits pixels exactly.
        first = round(low + (high - low) * _uniform(generator) - (tile_side - 1) / 2)
        centre.append(first + (tile_side - 1) / 2)
    return position + torch.tensor(centre)


def sample(source: Tensor, coordinates: Tensor, *, mode: str) -> Tensor:
    """Return `source` (c, y, x) at `coordinates` (h, w, 2) as (1, c, h, w), mirrored at its border (``reflect``)."""
    last = torch.tensor([max(side - 1, 1) for side in source.shape[-2:]], dtype=torch.float32)
    grid = (2 * coordinates / last - 1).flip(-1)[None]  # (1, h, w, 2): (x, y) in -1..1 between the outer pixel centres
    return functional.grid_sample(source[None], grid, mode=mode, padding_mode="reflection", align_corners=True)


def vary_grey_values(tile: Tensor, *, config: AugmentationConfig, generator: Generator) -> Tensor:
    """Return the tile (1, c, y, x) with gamma, gain and offset varied, sometimes blurred, sometimes noisy."""
    low, high = tile.amin(), tile.amax()
    if high > low:
        gamma = math.exp(config.gamma_log_std * _normal(generator))
        tile = low + (high - low) * ((tile - low) / (high - low)).pow(gamma)
    tile = tile * math.exp(config.gain_log_std * _normal(generator)) + config.offset_std * _normal(generator)
    if _uniform(generator) < config.blur_probability:
        tile = blur(tile, sigma_px=config.blur_max_sigma_px * _uniform(generator))
    if _uniform(generator) < config.noise_probability:
        std = config.noise_max_std * _uniform(generator)
        tile = tile + std * torch.randn(tile.shape, generator=generator)
    return tile


def blur(tile: Tensor, *, sigma_px: float) -> Tensor:
    """Return the tile (1, c, y, x) convolved with a Gaussian, mirrored at its border."""
    radius = max(1, math.ceil(3 * sigma_px))
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / max(sigma_px, 1e-3)) ** 2)
    taps = taps / taps.sum()
    channels = tile.shape[1]
    padded = functional.pad(tile, (radius, radius, radius, radius), mode="reflect")
    rows = functional.conv2d(padded, taps.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return functional.conv2d(rows, taps.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


def _draw_quarter_turn(generator: Generator) -> Tensor:
    """Return one of the eight symmetries of the square as a (2, 2) matrix of -1, 0 and 1."""
    swap, flip_y, flip_x = torch.randint(2, (3,), generator=generator).tolist()
    matrix = torch.diag(torch.tensor([1.0 - 2 * flip_y, 1.0 - 2 * flip_x]))
    return matrix.flip(0) if swap else matrix


def _uniform(generator: Generator) -> float:
    return float(torch.rand((), generator=generator))


def _normal(generator: Generator) -> float:
    return float(torch.randn((), generator=generator))
