"""One model for many volumes: opened once, and with the numbers of `segment`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr

from tests.conftest import ArtifactFactory
from tests.tiny import make_pixels, write_image
from unet_deploy.runtime import Segmenter, segment
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engines.fake import FakeEngine

OPENED: list[str] = []


class CountedEngine(FakeEngine):
    """Says when it is opened."""

    def open(self) -> None:
        """Open it."""
        OPENED.append("open")


def counted(artifact: Artifact) -> FakeEngine:
    """Return a counted engine."""
    return CountedEngine(artifact.card.network)


def test_the_engine_is_opened_once_for_all_volumes(tmp_path: Path, fake_artifact: ArtifactFactory) -> None:
    OPENED.clear()
    volumes = [write_image(tmp_path / f"v{i}.zarr", make_pixels((1, 70, 90), seed=i)) for i in range(3)]
    with Segmenter(fake_artifact(), engine_factory=counted, tile=(60, 60)) as segmenter:
        results = [segmenter.segment(volume) for volume in volumes]
        assert OPENED == ["open"]
    with Segmenter(fake_artifact(), engine_factory=counted, tile=(60, 60)) as segmenter:
        segmenter.segment(volumes[0], overwrite=True)
    assert OPENED == ["open", "open"]  # the first was let go
    for i, volume in enumerate(volumes):
        alone = segment(volume, output=tmp_path / f"a{i}.zarr", model=fake_artifact(), engine_factory=counted)
        for name in ("labels/segmentation/0", "0"):
            ours, theirs = zarr.open_array(results[i].output / name), zarr.open_array(alone.output / name)
            np.testing.assert_array_equal(ours[...], theirs[...])


def test_an_array_in_memory_has_the_numbers_of_a_store(
    tmp_path: Path, fake_artifact: ArtifactFactory, fake_factory: Callable[[Artifact], FakeEngine]
) -> None:
    pixels = make_pixels((2, 70, 90))
    with Segmenter(fake_artifact(), engine_factory=fake_factory) as segmenter:
        result = segmenter.segment(write_image(tmp_path / "v.zarr", pixels))
        labels = segmenter.segment_pixels(pixels)
        probabilities = segmenter.segment_pixels(pixels, kind="probabilities", axes="zyx")
    np.testing.assert_array_equal(labels, zarr.open_array(result.output / "labels/segmentation/0")[...])
    stored = zarr.open_array(result.output / "0")[...]
    np.testing.assert_array_equal(np.moveaxis(probabilities, 0, 0), stored)


def test_what_a_call_says_goes_before_what_the_segmenter_says(
    tmp_path: Path, fake_artifact: ArtifactFactory, fake_factory: Callable[[Artifact], FakeEngine]
) -> None:
    volume = write_image(tmp_path / "v.zarr", make_pixels((1, 70, 90)))
    with Segmenter(fake_artifact(), engine_factory=fake_factory, tile=(60, 60)) as segmenter:
        assert segmenter.segment(volume).plan.tile_y == 60
        assert segmenter.segment(volume, tile=(44, 44), overwrite=True).plan.tile_y == 44
        segmenter.close()
        assert segmenter.segment(volume, overwrite=True).plan.tile_y == 60  # it opens again
