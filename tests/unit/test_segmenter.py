"""One model for many volumes: opened once, and with the numbers of `segment`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from tests.conftest import ArtifactFactory
from tests.tiny import make_pixels, write_image
from tests.unit.test_measured_order import costs_of
from unet_deploy.runtime import Segmenter, segment
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.dask_client import connect, runs_here
from unet_deploy.runtime.engines.fake import FakeEngine
from unet_deploy.runtime.kept_costs import keep_costs
from unet_deploy.runtime.plan import BLOCKS_IN_FLIGHT

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


def test_what_was_measured_here_counts(
    tmp_path: Path, tiny_artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client that a segmenter keeps is in this process, and nobody named another."""
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    assert keep_costs(tiny_artifact, costs_of("onnxruntime-cpu", {104: 0.01})) is not None
    volume = write_image(tmp_path / "v.zarr", make_pixels((1, 70, 90)))
    with Segmenter(tiny_artifact, engine="onnxruntime-cpu") as segmenter:
        result = segmenter.segment(volume)
    assert result.plan.costs.is_measured
    assert "measured here on 2026-11-21" in result.plan.reason


def test_what_is_elsewhere_is_not_here() -> None:
    assert not runs_here("tcp://node1:8786")
    assert not runs_here(None, "scheduler.json")
    assert runs_here()
    with connect() as client:
        assert runs_here(client)


def test_the_blocks_in_flight_are_those_of_the_engine_that_runs(
    tmp_path: Path, fake_artifact: ArtifactFactory, fake_factory: Callable[[Artifact], FakeEngine]
) -> None:
    """Of a GPU's engine there are more, for which a CPU has no memory."""
    volume = write_image(tmp_path / "v.zarr", make_pixels((1, 70, 90)))
    with Segmenter(fake_artifact(), engine="tensorrt") as segmenter:
        segmenter.segment(volume, engine=None, engine_factory=fake_factory)
        assert segmenter._client is not None
        assert sum(segmenter._client.nthreads().values()) == BLOCKS_IN_FLIGHT
