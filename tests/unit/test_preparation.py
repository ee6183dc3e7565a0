"""What a run is made of, before it begins: which image, which level, and where the result goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.contract.test_images import write_plate, write_series
from tests.contract.volumes import make_pixels, write_image
from unet_deploy.errors import ConfigurationError, NotAVolumeError, SeveralImagesError, UsageError
from unet_deploy.runtime import default_output, prepare
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.drift import check_drift

Artifacts = Callable[..., Artifact]


@pytest.fixture
def trained_at(fake_artifact: Artifacts) -> Callable[[float | None], Artifact]:
    """Return a maker of artifacts by the pixel size that they were trained at."""

    def make(nm: float | None) -> Artifact:
        artifact = fake_artifact()
        size = None if nm is None else (nm, nm)
        return replace(artifact, card=replace(artifact.card, input=replace(artifact.card.input, pixel_size_nm=size)))

    return make


@pytest.fixture
def pyramid(tmp_path: Path) -> Path:
    """Return an image of 2, 4 and 8 nm."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 96, 128)).astype(np.uint8)
    return write_image(tmp_path / "em.ome.zarr", pixels, axes="zyx", version="0.5", scale=(50, 2, 2), levels=3)


@pytest.mark.parametrize(("nm", "level"), [(2.0, 0), (4.0, 1), (4.4, 1), (8.0, 2), (100.0, 2), (0.1, 0)])
def test_the_level_is_that_of_the_size_trained_at(pyramid: Path, trained_at: Any, nm: float, level: int) -> None:
    ready = prepare(pyramid, model=trained_at(nm))
    assert ready.volume.info.level == level
    assert ready.volume.info.shape == (2, 96 >> level, 128 >> level)
    assert ready.plan.extents.y == 96 >> level
    assert ready.level_choice == f"level {level} of 3: {2 << level} nm is nearest to the {nm:.4g} nm trained at"


def test_no_level_is_near_enough_and_the_guard_says_so(pyramid: Path, trained_at: Any) -> None:
    ready = prepare(pyramid, model=trained_at(100.0))
    (finding,) = check_drift(ready.volume, ready.artifact.card, ready.channels, None)
    assert finding.code == "pixel-size"
    assert finding.text == "pixels are 8 nm, the model was trained at 100 nm: a factor of 12.5"
    assert finding.fix.startswith("resample the volume to about 100 nm")
    insisted = prepare(pyramid, model=trained_at(100.0), level=0)
    (finding,) = check_drift(insisted.volume, insisted.artifact.card, insisted.channels, None)
    assert finding.fix == "--level 2"


def test_a_level_that_is_named_is_an_order(pyramid: Path, trained_at: Any) -> None:
    ready = prepare(pyramid, model=trained_at(8.0), level=0)
    assert (ready.volume.info.level, ready.level_choice) == (0, None)
    with pytest.raises(UsageError, match="level 3 came, levels 0 to 2 were expected"):
        prepare(pyramid, model=trained_at(8.0), level=3)


def test_without_sizes_it_is_the_finest(pyramid: Path, tmp_path: Path, trained_at: Any) -> None:
    ready = prepare(pyramid, model=trained_at(None))
    assert ready.volume.info.level == 0
    assert ready.level_choice is None
    array = prepare(pyramid / "1", model=trained_at(8.0))  # the array that was named
    assert (array.volume.info.shape, array.level_choice) == ((2, 48, 64), None)
    one = write_image(tmp_path / "one.zarr", make_pixels("yx", "uint8"), axes="yx", version="0.4", levels=1)
    assert prepare(one, model=trained_at(8.0)).level_choice is None


def test_a_level_that_is_lost_says_so(pyramid: Path, trained_at: Any) -> None:
    (pyramid / "1" / "zarr.json").unlink()
    assert prepare(pyramid, model=trained_at(4.0)).volume.info.level == 0  # as near as the next
    (pyramid / "0" / "zarr.json").unlink()
    with pytest.raises(NotAVolumeError, match="level 0 of the image has no array"):
        prepare(pyramid, model=trained_at(8.0))
    assert prepare(pyramid, model=trained_at(8.0), level=2).volume.info.level == 2


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (None, "plate"),
        ("", "plate"),
        ("A/1/0", "plate_A_1_0"),
        ("Position 1", "plate_Position 1"),
        ("dapi: 5%?/<x>", "plate_dapi- 5%-_-x-"),
        ("../..\\up/.", "plate_up"),
    ],
)
def test_an_image_is_in_the_name_of_its_output(tmp_path: Path, image: str | None, name: str) -> None:
    assert default_output(tmp_path / "plate.zarr", image) == tmp_path / f"{name}_segmentation.ome.zarr"
    remote = default_output("https://host/data/plate.ome.zarr", image)
    assert remote == Path(f"{name}_segmentation.ome.zarr")


def test_an_image_of_several_is_named_by_path_or_name(tmp_path: Path, fake_artifact: Artifacts) -> None:
    plate = write_plate(tmp_path / "plate.zarr")
    by_name = prepare(plate, model=fake_artifact(), image="A/2/1")
    by_path = prepare(plate / "A" / "2" / "1", model=fake_artifact())
    assert by_name.volume.info == by_path.volume.info
    assert by_name.default_output == by_path.default_output == tmp_path / "plate_A_2_1_segmentation.ome.zarr"
    assert default_output(plate / "A" / "2", "1") == by_path.default_output
    with pytest.raises(SeveralImagesError, match="holds several images, one was expected") as caught:
        prepare(plate, model=fake_artifact())
    assert caught.value.fix.startswith("name one: --image A/1/0, or, where a command has no --image, give its path: ")
    series = write_series(tmp_path / "two series.zarr")
    with pytest.raises(SeveralImagesError):
        prepare(series, model=fake_artifact())
    assert prepare(series, model=fake_artifact(), image="1").volume.info.path == str(series / "1")


def test_what_a_process_may_hold_is_planned_for(pyramid: Path, fake_artifact: Artifacts) -> None:
    free = prepare(pyramid, model=fake_artifact()).plan
    assert prepare(pyramid, model=fake_artifact(), max_memory_bytes=2**40).plan.block_shape == free.block_shape
    with pytest.raises(ConfigurationError):
        prepare(pyramid, model=fake_artifact(), max_memory_bytes=1)
