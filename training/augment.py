"""One random training patch: place, turn, bend and grey values, drawn from one torch generator.

1. Place a legal input tile at random over the mirrored image: the shift.
2. Flip and turn by quarter turns (exact), then rotate by any angle, zoom, and displace by a smooth random field
   (`draw_displacement`). Some patches skip the latter three, so that the network also sees pixels never interpolated.
3. Sample the image (bicubic), and label and weight (nearest: labels stay labels), mirroring at the border.
4. Vary gain, offset and gamma; blur some patches a little and add noise to some, to serve sharp and soft images alike.

Steps 2 and 3 sample the input tile with its full context; label and weight are its valid centre. Random numbers are
drawn on the CPU, so that a seed means the same on every device; all work on pixels is done where the image lies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional

from unet_deploy.geometry import Geometry

Deformation = Literal["grid", "field"]
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentationConfig:
    """How far patches are varied. Grey values are in units of the training images' standard deviation.

    `deformation` chooses between the two random displacements. ``grid`` is the paper's: vectors on a coarse
    `displacement_grid` x `displacement_grid` grid over the tile, Gaussian with `displacement_std_px`, bicubic in
    between. ``field`` is that of Simard et al. (2003): a uniform value in -1..1 for each pixel, smoothed by a Gaussian
    of `field_sigma_px`, times `field_alpha_px`.
    """

    flip: bool = True
    deform_probability: float = 0.8
    rotation_max_degrees: float = 180.0
    zoom_log_std: float = 0.0
    deformation: Deformation = "grid"
    displacement_std_px: float = 10.0
    displacement_grid: int = 3
    field_alpha_px: float = 400.0
    field_sigma_px: float = 16.0
    gain_log_std: float = 0.15
    offset_std: float = 0.15
    gamma_log_std: float = 0.15
    blur_probability: float = 0.25
    blur_max_sigma_px: float = 1.0
    noise_probability: float = 0.4
    noise_max_std: float = 0.25


def draw_patch(
    image: Tensor,
    truth: Tensor,
    *,
    tile_side: int,
    geometry: Geometry,
    config: AugmentationConfig,
    generator: Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one random patch with its label and weight.

    Parameters
    ----------
    image
        float32, (c, y, x), normalised.
    truth
        float32, (2, y, x), on the same device: class indices, and the loss's weights.
    tile_side
        Side of the input tile in pixels; legal for `geometry`.
    generator
        The only source of randomness, on the CPU: its state decides the patch.

    Returns
    -------
    tuple of Tensor
        The tile, float32, (1, c, tile_side, tile_side), and of its valid centre, with side
        ``out = tile_side - 2·context``, the label, int64, (1, out, out), and the weights, float32, (1, out, out).
    """
    coordinates = draw_coordinates(
        (image.shape[-2], image.shape[-1]),
        tile_side=tile_side,
        output_side=geometry.output_side(tile_side),
        config=config,
        generator=generator,
        device=image.device,
    )  # (tile, tile, 2): the source pixel (y, x) of each tile pixel
    context = geometry.context
    tile = sample(image, coordinates, mode="bicubic")  # (1, c, tile, tile)
    centre = coordinates[context:-context, context:-context]  # (out, out, 2)
    sampled = sample(truth, centre, mode="nearest")  # (1, 2, out, out)
    return vary_grey_values(tile, config=config, generator=generator), sampled[:, 0].long(), sampled[:, 1]


def draw_coordinates(
    extent: tuple[int, int],
    *,
    tile_side: int,
    output_side: int,
    config: AugmentationConfig,
    generator: Generator,
    device: torch.device = CPU,
) -> Tensor:
    """Return for each tile pixel the (y, x) it is taken from, in absolute pixels; float32, (tile_side, tile_side, 2).

    The output's centre falls anywhere that leaves at least half of the output inside the image.
    """
    offset = torch.arange(tile_side, dtype=torch.float32, device=device) - (tile_side - 1) / 2
    position = torch.stack(torch.meshgrid(offset, offset, indexing="ij"), dim=-1)  # (tile, tile, 2), centred
    if config.flip:
        position = position @ _draw_quarter_turn(generator).to(device)
    if _uniform(generator) < config.deform_probability:
        angle = math.radians(config.rotation_max_degrees) * (2 * _uniform(generator) - 1)
        cos, sin = math.cos(angle), math.sin(angle)
        zoom = math.exp(config.zoom_log_std * _normal(generator))
        position = position @ (torch.tensor([[cos, sin], [-sin, cos]], device=device) / zoom)
        position = position + draw_displacement(tile_side, config=config, generator=generator, device=device)
    centre = []
    for side in extent:
        low, high = sorted((output_side / 4, side - output_side / 4))
        # Whole steps from the first pixel: without deformation, sampling hits pixels exactly.
        first = round(low + (high - low) * _uniform(generator) - (tile_side - 1) / 2)
        centre.append(first + (tile_side - 1) / 2)
    return position + torch.tensor(centre, device=device)


def draw_displacement(
    side: int, *, config: AugmentationConfig, generator: Generator, device: torch.device = CPU
) -> Tensor:
    """Return a smooth random displacement (y, x) in pixels for each pixel of a tile; float32, (side, side, 2).

    The paper's section 3.1, or Simard et al. (2003), section 2, as `config` says.
    """
    if config.deformation == "grid":
        grid = config.displacement_grid
        coarse = torch.randn((1, 2, grid, grid), generator=generator).to(device) * config.displacement_std_px
        field = functional.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True)
    else:
        noise = 2 * torch.rand((1, 2, side, side), generator=generator).to(device) - 1
        field = config.field_alpha_px * blur(noise, sigma_px=config.field_sigma_px)
    return field[0].permute(1, 2, 0)


def sample(source: Tensor, coordinates: Tensor, *, mode: str) -> Tensor:
    """Return `source` (c, y, x) at `coordinates` (h, w, 2) as (1, c, h, w), mirrored at its border (``reflect``)."""
    last = coordinates.new_tensor([max(side - 1, 1) for side in source.shape[-2:]])
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
        tile = tile + std * torch.randn(tile.shape, generator=generator).to(tile.device)
    return tile


def blur(tile: Tensor, *, sigma_px: float) -> Tensor:
    """Return the tile (1, c, y, x) convolved with a Gaussian, mirrored at its border."""
    radius = max(1, math.ceil(3 * sigma_px))
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=tile.device) / max(sigma_px, 1e-3)) ** 2)
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
