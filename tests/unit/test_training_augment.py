"""A patch is decided by its generator alone, and image, label and weight stay together."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'train' is not installed")

from unet_deploy.geometry import UnetGeometry  # noqa: E402
from unet_deploy.training.augment import (  # noqa: E402
    AugmentationConfig,
    blur,
    draw_coordinates,
    draw_displacement,
    draw_patch,
    sample,
    vary_grey_values,
)

GEOMETRY = UnetGeometry(2)
TILE = 92  # output 52
STILL = AugmentationConfig(
    deform_probability=0, gain_log_std=0, offset_std=0, gamma_log_std=0, blur_probability=0, noise_probability=0
)
WILD = AugmentationConfig(deform_probability=1, blur_probability=1, noise_probability=1, zoom_log_std=0.2)
FIELD = AugmentationConfig(deformation="field", field_alpha_px=200, field_sigma_px=8)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(
    seed: int, config: AugmentationConfig = WILD, side: int = 64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw from noise whose label is 1 above a half, and whose weights are 3 times the grey value."""
    image = torch.rand(1, side, side + 8, generator=generator(99))
    truth = torch.stack([(image[0] > 0.5).float(), 3 * image[0]])
    return draw_patch(image, truth, tile_side=TILE, geometry=GEOMETRY, config=config, generator=generator(seed))


@pytest.mark.parametrize("config", [WILD, replace(WILD, deformation="field")])
def test_the_generator_decides_everything(config: AugmentationConfig) -> None:
    torch.manual_seed(1)
    first = draw(1, config)
    torch.manual_seed(2)
    again, other = draw(1, config), draw(2, config)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_shapes_and_types() -> None:
    tile, target, weight = draw(0)
    assert (tile.shape, tile.dtype) == ((1, 1, 92, 92), torch.float32)
    assert (target.shape, target.dtype) == ((1, 52, 52), torch.int64)
    assert (weight.shape, weight.dtype) == ((1, 52, 52), torch.float32)
    assert torch.isfinite(tile).all()


@pytest.mark.parametrize("seed", range(12))
def test_without_deformation_pixels_are_exact_and_the_truth_is_the_tiles_centre(seed: int) -> None:
    tile, target, weight = draw(seed, STILL)
    centre = tile[0, 0, 20:-20, 20:-20]
    assert torch.equal(target[0], (centre > 0.5).long())
    assert torch.allclose(weight[0], 3 * centre, atol=1e-4)  # bicubic weights are not exactly 0 and 1


@pytest.mark.parametrize("config", [WILD, replace(WILD, deformation="field", field_sigma_px=8.0)])
def test_labels_and_weights_are_of_one_source_pixel_each_however_the_patch_is_bent(config: AugmentationConfig) -> None:
    label = torch.randint(3, (64, 64), generator=generator(5))
    weights = torch.arange(64.0 * 64).view(64, 64)  # a weight names its pixel
    for seed in range(5):
        _, target, weight = draw_patch(
            torch.zeros(1, 64, 64),
            torch.stack([label.float(), weights]),
            tile_side=TILE,
            geometry=GEOMETRY,
            config=config,
            generator=generator(seed),
        )
        assert torch.equal(weight, weight.round())  # nearest: never a mixture
        assert torch.equal(label.flatten()[weight.long()], target)


def test_all_eight_symmetries_occur_unless_flips_are_off() -> None:
    ramp = torch.arange(64.0).expand(64, 64)[None] + 100 * torch.arange(64.0)[:, None]  # (1, 64, 64), along x and y
    for flip, expected in ((True, 8), (False, 1)):
        slopes = set()
        for seed in range(80):
            tile, _, _ = draw_patch(
                ramp,
                torch.zeros(2, 64, 64),
                tile_side=44,
                geometry=GEOMETRY,
                config=replace(STILL, flip=flip),
                generator=generator(seed),
            )
            centre = tile[0, 0, 20:24, 20:24]
            slopes.add((round((centre[2, 1] - centre[1, 1]).item()), round((centre[1, 2] - centre[1, 1]).item())))
        kept = {s for s in slopes if sorted(map(abs, s)) == [1, 100]}  # away from the mirrored border
        assert len(kept) == expected
        assert flip or kept == {(100, 1)}


def test_sampling_mirrors_at_the_border_like_numpy() -> None:
    image = torch.rand(1, 7, 9, generator=generator(0))
    steps = torch.stack(torch.meshgrid(torch.arange(-20.0, 27), torch.arange(-20.0, 29), indexing="ij"), -1)
    expected = np.pad(image.numpy(), ((0, 0), (20, 20), (20, 20)), mode="reflect")
    assert np.allclose(sample(image, steps, mode="bicubic")[0].numpy(), expected, atol=1e-4)
    assert np.array_equal(sample(image, steps, mode="nearest")[0].numpy(), expected)


def test_the_grids_vectors_are_as_long_as_asked_and_smooth_in_between() -> None:
    config = AugmentationConfig(displacement_std_px=10, displacement_grid=3)
    fields = torch.stack([draw_displacement(93, config=config, generator=generator(seed)) for seed in range(300)])
    knots = fields[:, ::46, ::46]  # (300, 3, 3, 2)
    assert knots.shape == (300, 3, 3, 2)
    assert knots.std().item() == pytest.approx(10, rel=0.04)
    assert abs(knots.mean().item()) < 0.5
    assert abs(torch.corrcoef(knots[..., 0].flatten(1).T)[0, 8].item()) < 0.2  # vectors are independent
    assert (fields[:, 1:] - fields[:, :-1]).abs().max() < 2.5  # neighbours stay neighbours
    finer = draw_displacement(93, config=replace(config, displacement_grid=10), generator=generator(0))
    assert (finer[1:] - finer[:-1]).abs().mean() > 2 * (fields[0, 1:] - fields[0, :-1]).abs().mean()


def test_the_field_is_simards_uniform_noise_smoothed_and_scaled() -> None:
    side, reach = 200, 24
    fields = torch.stack([draw_displacement(side, config=FIELD, generator=generator(seed)) for seed in range(6)])
    inner = fields[:, reach:-reach, reach:-reach]  # where nothing was mirrored
    # A value in -1..1 has variance 1/3; a Gaussian that sums to 1 divides it by 4·π·σ².
    expected = FIELD.field_alpha_px / math.sqrt(3 * 4 * math.pi * FIELD.field_sigma_px**2)
    assert inner.std().item() == pytest.approx(expected, rel=0.1)
    assert abs(inner.mean().item()) < 0.25 * expected
    # The difference of neighbours of a Gaussian-smoothed field has 1/(2·σ²) of its variance.
    steps = (inner[:, 1:] - inner[:, :-1]).std().item()
    assert steps == pytest.approx(expected / math.sqrt(2) / FIELD.field_sigma_px, rel=0.15)
    assert abs(torch.corrcoef(inner.reshape(-1, 2).T)[0, 1].item()) < 0.25  # y and x are drawn apart


def test_zoom_scales_about_the_tiles_centre() -> None:
    config = replace(STILL, deform_probability=1, rotation_max_degrees=0, displacement_std_px=0, flip=False)
    scales = []
    for seed in range(300):
        coordinates = draw_coordinates(
            (512, 512),
            tile_side=TILE,
            output_side=52,
            config=replace(config, zoom_log_std=0.2),
            generator=generator(seed),
        )
        steps = coordinates[1:, :, 0] - coordinates[:-1, :, 0]
        assert steps.std() < 1e-4  # alike everywhere
        assert (coordinates[1:, :, 1] - coordinates[:-1, :, 1]).abs().max() < 1e-3
        scales.append(-math.log(steps.mean().item()))
    assert np.std(scales) == pytest.approx(0.2, rel=0.15)
    assert np.mean(scales) == pytest.approx(0, abs=0.04)
    rigid = draw_coordinates((512, 512), tile_side=TILE, output_side=52, config=config, generator=generator(0))
    assert torch.allclose(rigid[1:, :, 0] - rigid[:-1, :, 0], torch.ones(()))


def test_rotation_keeps_distances_and_reaches_every_angle() -> None:
    config = replace(STILL, deform_probability=1, displacement_std_px=0, flip=False)
    angles = []
    for seed in range(200):
        coordinates = draw_coordinates(
            (512, 512), tile_side=TILE, output_side=52, config=config, generator=generator(seed)
        )
        along = coordinates[-1, 0] - coordinates[0, 0]
        assert along.norm().item() == pytest.approx(TILE - 1, rel=1e-4)
        angles.append(math.degrees(math.atan2(along[1], along[0])))
    assert np.histogram(angles, 4, (-180, 180))[0].min() > 25


def test_the_output_keeps_at_least_half_inside_the_image() -> None:
    for seed in range(100):
        coordinates = draw_coordinates(
            (200, 300), tile_side=92, output_side=52, config=STILL, generator=generator(seed)
        )
        centre = coordinates.mean(dim=(0, 1))
        assert 12 <= centre[0] <= 188
        assert 12 <= centre[1] <= 288


def test_an_image_smaller_than_the_tile_is_filled_by_mirroring() -> None:
    tile, target, weight = draw(3, STILL, side=17)
    centre = tile[0, 0, 20:-20, 20:-20]
    assert torch.equal(target[0], (centre > 0.5).long())
    assert torch.allclose(weight[0], 3 * centre, atol=1e-4)  # bicubic weights are not exactly 0 and 1


def test_grey_values_vary_but_a_constant_tile_stays_constant_without_noise() -> None:
    config = AugmentationConfig(noise_probability=0, blur_probability=1)
    tile = vary_grey_values(torch.ones(1, 1, 44, 44), config=config, generator=generator(0))
    assert tile.std() < 1e-5
    assert tile.mean() != 1


def test_noise_is_as_strong_as_asked_at_most() -> None:
    config = replace(STILL, noise_probability=1, noise_max_std=0.25)
    stds = [
        vary_grey_values(torch.zeros(1, 1, 44, 44), config=config, generator=generator(s)).std().item()
        for s in range(40)
    ]
    assert max(stds) < 0.27
    assert np.mean(stds) == pytest.approx(0.125, rel=0.3)


def test_blur_keeps_the_mean_and_lowers_the_spread() -> None:
    tile = torch.randn(1, 2, 64, 64, generator=generator(0))
    soft = blur(tile, sigma_px=1.0)
    assert soft.shape == tile.shape
    assert soft.std() < 0.5 * tile.std()
    assert soft.mean().item() == pytest.approx(tile.mean().item(), abs=0.02)
    assert torch.allclose(blur(tile, sigma_px=0.0), tile)
