"""A patch is decided by its generator alone, and image and label stay together."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'train' is not installed")

from unet_deploy.geometry import Geometry  # noqa: E402
from unet_deploy.training.augment import (  # noqa: E402
    AugmentationConfig,
    blur,
    draw_coordinates,
    draw_patch,
    sample,
    vary_grey_values,
)

GEOMETRY = Geometry(2)
TILE = 92  # output 52
STILL = AugmentationConfig(
    deform_probability=0, gain_log_std=0, offset_std=0, gamma_log_std=0, blur_probability=0, noise_probability=0
)
WILD = AugmentationConfig(deform_probability=1, blur_probability=1, noise_probability=1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(seed: int, config: AugmentationConfig = WILD, side: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.rand(1, side, side + 8, generator=generator(99))
    label = (image[0] > 0.5).to(torch.uint8)
    return draw_patch(image, label, tile_side=TILE, geometry=GEOMETRY, config=config, generator=generator(seed))


def test_the_generator_decides_everything() -> None:
    first, again, other = draw(1), draw(1), draw(2)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_shapes_and_types() -> None:
    tile, target = draw(0)
    assert (tile.shape, tile.dtype) == ((1, 1, 92, 92), torch.float32)
    assert (target.shape, target.dtype) == ((1, 52, 52), torch.int64)
    assert torch.isfinite(tile).all()


@pytest.mark.parametrize("seed", range(12))
def test_without_deformation_pixels_are_exact_and_the_label_is_the_tiles_centre(seed: int) -> None:
    tile, target = draw(seed, STILL)
    assert torch.equal(target[0], (tile[0, 0, 20:-20, 20:-20] > 0.5).long())


def test_all_eight_symmetries_occur() -> None:
    ramp = torch.arange(64.0).expand(64, 64)[None]  # grows along x
    directions = set()
    for seed in range(60):
        tile, _ = draw_patch(
            ramp,
            torch.zeros(64, 64, dtype=torch.uint8),
            tile_side=44,
            geometry=GEOMETRY,
            config=STILL,
            generator=generator(seed),
        )
        centre = tile[0, 0, 20:24, 20:24]
        directions.add((torch.sign(centre[2, 1] - centre[1, 1]).item(), torch.sign(centre[1, 2] - centre[1, 1]).item()))
    assert directions >= {(0, 1), (0, -1), (1, 0), (-1, 0)}


def test_sampling_mirrors_at_the_border_like_numpy() -> None:
    image = torch.rand(1, 7, 9, generator=generator(0))
    steps = torch.stack(torch.meshgrid(torch.arange(-20.0, 27), torch.arange(-20.0, 29), indexing="ij"), -1)
    expected = np.pad(image.numpy(), ((0, 0), (20, 20), (20, 20)), mode="reflect")
    assert np.allclose(sample(image, steps, mode="bicubic")[0].numpy(), expected, atol=1e-4)
    assert np.array_equal(sample(image, steps, mode="nearest")[0].numpy(), expected)


def test_displacement_is_smooth_and_as_wide_as_asked() -> None:
    config = AugmentationConfig(deform_probability=1, rotation_max_degrees=0)
    corners = []
    for seed in range(200):
        coordinates = draw_coordinates(
            (512, 512), tile_side=92, output_side=52, config=config, generator=generator(seed)
        )
        steps = (coordinates[1:] - coordinates[:-1]).norm(dim=-1)
        assert steps.max() < 4  # neighbours stay neighbours
        corners.append((coordinates[-1, -1] - coordinates[0, 0]).norm().item())
    # Two independent vectors of 10 px a component change the diagonal (91·√2 px) by about 10·√2 px.
    assert np.std(corners) == pytest.approx(14.1, rel=0.25)


def test_the_output_keeps_at_least_half_inside_the_image() -> None:
    for seed in range(100):
        coordinates = draw_coordinates(
            (200, 300), tile_side=92, output_side=52, config=STILL, generator=generator(seed)
        )
        centre = coordinates.mean(dim=(0, 1))
        assert 12 <= centre[0] <= 188
        assert 12 <= centre[1] <= 288


def test_an_image_smaller_than_the_tile_is_filled_by_mirroring() -> None:
    tile, target = draw(3, STILL, side=17)
    assert torch.equal(target[0], (tile[0, 0, 20:-20, 20:-20] > 0.5).long())


def test_grey_values_vary_but_a_constant_tile_stays_constant_without_noise() -> None:
    config = AugmentationConfig(noise_probability=0, blur_probability=1)
    tile = vary_grey_values(torch.ones(1, 1, 44, 44), config=config, generator=generator(0))
    assert tile.std() < 1e-5
    assert tile.mean() != 1


def test_blur_keeps_the_mean_and_lowers_the_spread() -> None:
    tile = torch.randn(1, 2, 64, 64, generator=generator(0))
    soft = blur(tile, sigma_px=1.0)
    assert soft.shape == tile.shape
    assert soft.std() < 0.5 * tile.std()
    assert soft.mean().item() == pytest.approx(tile.mean().item(), abs=0.02)
    assert torch.allclose(blur(tile, sigma_px=0.0), tile)
