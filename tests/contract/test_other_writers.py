"""What other programs write is read as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.contract.other_writers import CHUNK, SCALE, UNITS, WRITERS, Pixels, acquire_plate
from tests.contract.volumes import make_pixels
from unet_deploy.geometry import Interval
from unet_deploy.runtime import list_images, open_volume
from unet_deploy.runtime.volume import Volume


def read_all(volume: Volume) -> Pixels:
    return volume.read(**{axis: Interval(0, volume.extent(axis)) for axis in "zyx"})[0, 0]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.filterwarnings("ignore")  # the writers' own
def test_what_they_write_is_read(tmp_path: Path, write: Callable[[Path, Pixels], Path], dtype: str) -> None:
    pixels = make_pixels("zyx", dtype)
    volume = open_volume(write(tmp_path / "volume.zarr", pixels))
    assert (volume.info.axes, volume.info.chunks, volume.info.dtype) == ("zyx", CHUNK, dtype)
    np.testing.assert_array_equal(read_all(volume), pixels)
    if volume.info.ome_version is not None:
        assert (volume.info.scale, volume.info.units) == (SCALE, UNITS)
        assert len(volume.info.levels) > 1


@pytest.mark.filterwarnings("ignore")
def test_a_plate_as_a_microscope_streams_it(tmp_path: Path) -> None:
    fields = {"fov1": make_pixels("zyx", "uint16"), "fov2": make_pixels("zyx", "uint16", seed=1)}
    plate = acquire_plate(tmp_path / "run.zarr", fields)
    entries = list_images(plate)
    assert [entry.name for entry in entries] == ["A/2/fov1", "A/2/fov2"]
    for entry, pixels in zip(entries, fields.values(), strict=True):
        np.testing.assert_array_equal(read_all(open_volume(plate, image=entry.name)), pixels)
    # The group around the plate says nothing; what is inside is found all the same.
    assert [entry.name for entry in list_images(plate.parent)] == ["plate/A/2/fov1", "plate/A/2/fov2"]
