"""The procedural volume: the same everywhere, any shape a crop of any other, and like a micrograph in numbers."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from unet_deploy.errors import ConfigurationError
from unet_deploy.sample import SampleVolume, em_like_volume, em_like_volume_with_truth


@pytest.fixture(scope="module")
def volume() -> SampleVolume:
    return em_like_volume_with_truth(shape=(2, 384, 512), seed=0)


def test_types_and_the_two_entry_points_agree(volume: SampleVolume) -> None:
    assert volume.image.shape == volume.membrane.shape == (2, 384, 512)
    assert (volume.image.dtype, volume.membrane.dtype) == (np.uint8, np.bool_)
    assert (em_like_volume(shape=(1, 64, 64)) == em_like_volume_with_truth(shape=(1, 64, 64)).image).all()


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 37), (1, 33, 2), (1, 300, 130), (2, 257, 256)])
def test_a_smaller_shape_is_a_crop(volume: SampleVolume, shape: tuple[int, int, int]) -> None:
    image = em_like_volume(shape=shape)
    assert image.shape == shape
    same = image == volume.image[: shape[0], : shape[1], : shape[2]]
    assert same.all()


def test_a_seed_gives_the_same_bytes_on_every_platform() -> None:
    """The numbers change whenever the drawing does; set them anew then. They are the same with and without SIMD."""
    drawn = em_like_volume_with_truth(shape=(2, 96, 160), seed=7)
    assert (zlib.crc32(drawn.image.tobytes()), zlib.crc32(drawn.membrane.tobytes())) == (854256787, 1002311431)


def test_planes_and_seeds_differ(volume: SampleVolume) -> None:
    assert (volume.image[0] != volume.image[1]).mean() > 0.9
    assert (em_like_volume(shape=(1, 64, 64), seed=1) != volume.image[:1, :64, :64]).mean() > 0.9


def test_numbers_are_those_of_a_micrograph(volume: SampleVolume) -> None:
    """Of the ISBI 2012 slices: mean 127, deviation 44, 22 % membrane, membranes 53 grey values darker than the rest."""
    image = volume.image.astype(float)
    assert 110 < image.mean() < 145
    assert 34 < image.std() < 51
    assert 0.17 < volume.membrane.mean() < 0.28
    darker = image[~volume.membrane].mean() - image[volume.membrane].mean()
    assert 40 < darker < 70
    assert ((image == 0) | (image == 255)).mean() < 0.02


def test_cells_go_on_through_z(volume: SampleVolume) -> None:
    one, two = volume.membrane
    both = (one & two).sum() / one.sum()
    assert 1.8 * two.mean() < both < 0.95


def test_membranes_are_lines_of_even_width(volume: SampleVolume) -> None:
    """Across straight stretches of membrane most runs are about twice the half width, wherever space is bent."""
    padded = np.pad(volume.membrane[0], ((0, 0), (1, 1))).astype(np.int8)
    steps = np.diff(padded, axis=1)
    runs = np.argwhere(steps == -1)[:, 1] - np.argwhere(steps == 1)[:, 1]
    assert len(runs) > 2000
    assert 6 <= np.median(runs) <= 12  # along x; slanted ones are longer
    assert (runs >= 5).mean() > 0.9


def test_neither_blocks_nor_tiles_show_in_the_truth() -> None:
    """Membranes cross the borders of rendering blocks (256) and tiles (32) as often as any other line."""
    membrane = em_like_volume_with_truth(shape=(2, 512, 512), seed=5).membrane
    changes = (membrane[:, 1:] != membrane[:, :-1]).mean(axis=(0, 2))
    at_tiles = changes[31::32]
    assert len(at_tiles) == 15
    assert abs(at_tiles.mean() - changes.mean()) < 3 * changes.std() / np.sqrt(len(at_tiles))


def test_a_plane_beyond_the_period_is_drawn() -> None:
    image = em_like_volume(shape=(1, 8, 1300))
    assert image[0, :, 1024:].std() > 20
    assert (image[0, :, 1024:] != image[0, :, :276]).mean() > 0.5


@pytest.mark.parametrize("shape", [(1, 0, 4), (4, 4), (1, 2, 3, 4), (1, 2.5, 3)])
def test_other_shapes_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(
        ConfigurationError, match=r"sample shape \(.*\) is not three positive integers(.|\n)*\(z, y, x\)"
    ):
        em_like_volume(shape=shape)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="sample seed -3 is negative"):
        em_like_volume(seed=-3)
