"""Calibration tiles are those a run would cut of the same data, the same each time, and bad data are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch", reason="exporting needs the extra 'train'")
skio = pytest.importorskip("skimage.io", reason="image files are read by scikit-image")

from tests.tiny import CARD, make_pixels, write_array, write_image  # noqa: E402
from unet_deploy.card import Normalisation  # noqa: E402
from unet_deploy.errors import (  # noqa: E402
    ChannelError,
    NotAVolumeError,
    ReadError,
    ValueRangeError,
    VolumeNotFoundError,
)
from unet_deploy.exporters.calibration import CalibrationSource, Tiles, read_tiles  # noqa: E402
from unet_deploy.percentiles import scale_by_percentiles  # noqa: E402
from unet_deploy.runtime.artifact import Artifact  # noqa: E402

SIDE = 424  # 384 px and the context of depth 2
PERCENTILES = (1.0, 99.0)


def artifact_of(**changes: Any) -> Artifact:
    return Artifact(data=b"", card=replace(CARD, **changes), source="here", sha256="0" * 64, n_nodes=0)


def two_channels() -> Artifact:
    return artifact_of(
        network=replace(CARD.network, in_channels=2),
        input=replace(CARD.input, channels=("a", "b")),
        normalisation=Normalisation(mean=(1.0, 2.0), std=(3.0, 4.0), source="made up"),
    )


def by_percentiles() -> Artifact:
    normalisation = Normalisation(mean=(0.5,), std=(0.25,), source="made up", percentiles=PERCENTILES)
    return artifact_of(normalisation=normalisation)


def write_images(folder: Path, *planes: npt.NDArray[Any], suffix: str = ".png") -> Path:
    folder.mkdir()
    for index, plane in enumerate(planes):
        skio.imsave(folder / f"{index:02}{suffix}", plane, check_contrast=False)
    return folder


def mirrored(plane: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return the one tile of a plane that is smaller than a tile's core, by numpy."""
    wide = [(20, 424 - 20 - n) for n in plane.shape]
    return np.asarray((np.pad(plane, wide, mode="reflect").astype(np.float32) - 128) / 40, np.float32)


def draw(path: Path, artifact: Artifact | None = None, *, count: int = 16, **options: Any) -> Tiles:
    return read_tiles(CalibrationSource(path=path, **options), artifact or artifact_of(), count=count)


# What is drawn.


def test_a_small_plane_is_one_mirrored_tile(tmp_path: Path) -> None:
    plane = make_pixels((90, 110))
    needed = np.s_[: 90 + 40, : 110 + 40]  # beyond, no pixel of the plane depends on it
    expected = mirrored(plane)[needed]
    volume = draw(write_array(tmp_path / "v.zarr", plane))
    images = draw(write_images(tmp_path / "images", plane))
    assert volume.data == "v.zarr, 1 tile(s) of 424 x 424 px"
    for tiles in (volume, images):
        (tile,) = tiles.tiles
        assert (tile.shape, tile.dtype) == ((1, 1, SIDE, SIDE), np.float32)
        np.testing.assert_array_equal(tile[0, 0][needed], expected)
        assert tiles.calibration == tiles.parity == tiles.tiles


@pytest.mark.parametrize("kind", ["volume", "images"])
def test_equal_data_give_equal_tiles_without_repeats(tmp_path: Path, kind: str) -> None:
    planes = make_pixels((6, 500, 400))
    path = write_image(tmp_path / "v.zarr", planes) if kind == "volume" else write_images(tmp_path / "images", *planes)
    first, second, fewer = (draw(path, count=n) for n in (8, 8, 5))
    assert len(first.tiles) == 8
    assert len(fewer.tiles) == 5
    np.testing.assert_array_equal(np.concatenate(first.tiles), np.concatenate(second.tiles))
    assert len({tile.tobytes() for tile in first.tiles}) == 8
    assert (len(first.calibration), len(first.parity)) == (6, 2)
    assert len(draw(path, count=100).tiles) == 6 * 2 * 2  # all there are


def test_tiles_are_of_all_planes_times_and_chosen_channels(tmp_path: Path) -> None:
    pixels = np.zeros((2, 3, 2, 50, 60), np.uint8)  # t c z y x
    pixels += np.arange(12, dtype=np.uint8).reshape(2, 3, 2, 1, 1) * 20
    pixels[..., 0, 0] += 5  # or each would be of one value
    path = write_image(tmp_path / "v.zarr", pixels, axes="tczyx")
    tiles = draw(path, two_channels(), channels=("2", "0")).tiles
    found = {tuple(round(float(v)) for v in (tile[0, :, 100, 100] * [3, 4] + [1, 2])) for tile in tiles}
    assert found == {tuple(int(v) for v in pixels[t, [2, 0], z, 30, 30]) for t in range(2) for z in range(2)}


def test_tiles_of_one_value_are_passed_over(tmp_path: Path) -> None:
    planes = np.zeros((8, 50, 60), np.uint8)
    planes[3] = make_pixels((50, 60))
    for path in (write_array(tmp_path / "v.zarr", planes, names="zyx"), write_images(tmp_path / "images", *planes)):
        (tile,) = draw(path, count=2).tiles
        np.testing.assert_array_equal(tile[0, 0, 20:70, 20:80], (planes[3].astype(np.float32) - 128) / 40)


def test_a_stack_in_a_file_is_all_its_pages(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, make_pixels((3, 50, 60)), photometric="minisblack")
    assert len(draw(path).tiles) == 3
    (tmp_path / "folder").mkdir()
    path.rename(tmp_path / "folder" / "stack.tif")
    assert len(draw(tmp_path / "folder").tiles) == 3


def test_percentiles_are_of_the_volume_or_of_each_image(tmp_path: Path) -> None:
    planes = make_pixels((3, 60, 70)) // 4
    planes[1] += 100
    volume = write_image(tmp_path / "v.zarr", planes)
    folder = write_images(tmp_path / "images", *planes)

    def standardised(scaled: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return (scaled - np.float32(0.5)) / np.float32(0.25)

    whole = standardised(scale_by_percentiles(planes, PERCENTILES))
    each = np.stack([standardised(scale_by_percentiles(plane, PERCENTILES)) for plane in planes])
    assert np.abs(whole - each).max() > 1
    for path, expected in ((volume, whole), (folder, each)):
        came = np.stack([tile[0, 0, 20:80, 20:90] for tile in draw(path, by_percentiles()).tiles])
        order = [int(np.argmin([np.abs(tile - plane).max() for plane in expected])) for tile in came]
        assert sorted(order) == [0, 1, 2]
        np.testing.assert_allclose(came, expected[order], atol=1e-5)
    fixed = draw(folder, by_percentiles(), input_range=(0.0, 200.0)).tiles
    values = [planes.astype(np.float64) / 200, np.stack([tile[0, 0, 20:80, 20:90] for tile in fixed]) * 0.25 + 0.5]
    np.testing.assert_allclose(np.sort(values[0].ravel()), np.sort(values[1].ravel()), atol=1e-5)


def test_grey_values_are_mapped_as_asked(tmp_path: Path) -> None:
    plane = make_pixels((50, 60)).astype(np.uint16) * 16
    folder = write_images(tmp_path / "images", plane, suffix=".tif")
    (tile,) = draw(folder, input_range=(0.0, 4080.0)).tiles
    np.testing.assert_allclose(tile[0, 0, 20:70, 20:80], (plane / 16 - 128) / 40, atol=1e-5)


# What is refused.


def test_another_dtype_is_refused(tmp_path: Path) -> None:
    plane = make_pixels((50, 60)).astype(np.uint16)
    for path in (write_array(tmp_path / "v.zarr", plane), write_images(tmp_path / "images", plane, suffix=".tif")):
        with pytest.raises(ValueRangeError, match=r"^the volume is uint16, the model was trained on uint8") as caught:
            draw(path)
        assert "--input-range" in caught.value.fix


def test_data_that_show_nothing_are_refused(tmp_path: Path) -> None:
    plane = np.full((50, 60), 7, np.uint8)
    for path in (write_array(tmp_path / "v.zarr", plane), write_images(tmp_path / "images", plane)):
        with pytest.raises(ValueRangeError, match=r"^every tile drawn from .* has one grey value\n") as caught:
            draw(path)
        assert caught.value.fix.startswith("--calibrate a volume or images that show")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    plane = make_pixels((50, 60)).astype(np.float32)
    plane[5, 5] = value
    artifact = artifact_of(input=replace(CARD.input, dtype="float32"))
    with pytest.raises(
        ValueRangeError, match=r"^grey values that are no numbers came to calibrate on\n.*v\.zarr holds"
    ):
        draw(write_array(tmp_path / "v.zarr", plane), artifact)


def test_nothing_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VolumeNotFoundError, match=r"none\.zarr"):
        draw(tmp_path / "none.zarr")


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    with pytest.raises(
        NotAVolumeError, match=r"holds no PNG or TIFF files, and is no Zarr volume\n  2 other"
    ) as caught:
        draw(tmp_path)
    assert caught.value.fix.startswith("--calibrate VOLUME.zarr, or a folder of images")


def test_images_of_one_channel_do_not_do_for_two(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", make_pixels((50, 60)))
    with pytest.raises(ChannelError, match=r"^the model takes 2 channels \(a, b\), images have one\n") as caught:
        draw(folder, two_channels())
    assert caught.value.fix == "--calibrate a Zarr volume with these channels"


@pytest.mark.parametrize("what", ["colours", "damaged"])
def test_a_file_that_is_no_grey_image_is_refused(tmp_path: Path, what: str) -> None:
    folder = write_images(tmp_path / "images", make_pixels((3, 50, 60)).transpose(1, 2, 0))
    said = "RGB"
    if what == "damaged":
        (folder / "00.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
        said = "cannot be read"
    with pytest.raises(ReadError, match=rf"00\.png cannot be calibrated on\n  .*{said}") as caught:
        draw(folder)
    assert caught.value.fix == "--calibrate a folder of grey images only, or a Zarr volume"
