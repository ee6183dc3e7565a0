"""Runs with a card that asks for the volume's percentiles: one scale for all tiles, measured before any is cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.tiny import make_pixels, read_arrays, read_provenance, snapshot, write_array
from unet_deploy.errors import ConfigurationError, ReadError, ValueRangeError
from unet_deploy.percentiles import percentile_range, scale_by_percentiles
from unet_deploy.runtime import Progress, prepare, segment
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engines.fake import FakeEngine
from unet_deploy.runtime.normalise import Normaliser, to_labels, to_probabilities

ArtifactFactory = Callable[..., Artifact]
PERCENTILES = (1.0, 99.8)


@pytest.fixture
def artifact(fake_artifact: ArtifactFactory) -> Artifact:
    """Return what makes grey values out of scaled ones again: the fake wants whole numbers."""
    return fake_artifact(classes=3, mean=0.25, std=1 / 256, percentiles=PERCENTILES)


def one_pass(plane: npt.NDArray[Any], artifact: Artifact, normalise: Normaliser) -> npt.NDArray[Any]:
    """Return logits (k, y, x) of one pass over the whole plane (y, x), mirrored by numpy."""
    network = artifact.card.network
    padding = []
    for extent in plane.shape:
        window = network.geometry.whole_window(extent)
        padding.append((-window.start, window.stop - extent))
    mirrored = normalise(np.pad(plane, padding, mode="reflect")[None])
    return FakeEngine(network).infer(mirrored[None])[0][:, : plane.shape[0], : plane.shape[1]]


def uneven(dtype: str = "uint8") -> npt.NDArray[Any]:
    """Return planes and corners so different in brightness that any part has other percentiles than the whole."""
    pixels = make_pixels((3, 70, 90)) // 4
    pixels[1] += 100
    pixels[:, 40:, 50:] += 90
    return pixels.astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("uint8", {"tile": (44, 44)}),
        ("uint8", {"tile": (44, 108)}),
        ("uint16", {"tile": (60, 44), "batch": 3}),
        ("int16", {}),
        ("float32", {"tile": (60, 60), "batch": 2}),
    ],
    ids=str,
)
def test_tiled_is_whole(
    tmp_path: Path, artifact: Artifact, fake_factory: Any, dtype: str, options: dict[str, Any]
) -> None:
    pixels = uneven(dtype)
    low, high = percentile_range(pixels, PERCENTILES)
    assert percentile_range(pixels[0], PERCENTILES) != (low, high)
    # Whole numbers after normalisation, so that the fake's sums are exact: the spread is made a power of two.
    pixels = np.minimum(pixels, low + 128).astype(dtype)
    low, high = percentile_range(pixels, PERCENTILES)
    assert high - low == 128
    volume = write_array(tmp_path / "v.zarr", pixels, chunk_side=32)
    result = segment(volume, model=artifact, engine_factory=fake_factory, **options)
    assert result.plan.n_tiles >= 3
    assert result.statistics is not None
    assert result.statistics.ranges == ((low, high),)
    normalise = Normaliser(mean=(low + 0.25 * 128,), std=(0.5,))
    expected = [one_pass(plane, artifact, normalise) for plane in pixels]
    found = read_arrays(result.output)
    labels = found["labels/segmentation/0"]
    np.testing.assert_array_equal(labels, np.stack([to_labels(logits) for logits in expected]), strict=True)
    np.testing.assert_array_equal(found["0"], np.stack([to_probabilities(v) for v in expected], axis=1), strict=True)
    assert np.unique(labels).size > 1


def test_16_times_the_grey_values_are_the_same_volume(tmp_path: Path, artifact: Artifact, fake_factory: Any) -> None:
    pixels = uneven()
    stores = [
        segment(write_array(tmp_path / name, values), model=artifact, engine_factory=fake_factory).output
        for name, values in (("narrow.zarr", pixels), ("wide.zarr", pixels.astype(np.uint16) * 16))
    ]
    narrow, wide = map(read_arrays, stores)
    assert set(narrow) == set(wide)
    for name, values in narrow.items():
        np.testing.assert_array_equal(values, wide[name], strict=True)
    assert np.unique(narrow["labels/segmentation/0"]).size > 1


def test_the_constants_are_stored_and_said(tmp_path: Path, artifact: Artifact, fake_factory: Any) -> None:
    pixels = uneven()
    volume = write_array(tmp_path / "v.zarr", pixels)
    said: list[Progress] = []
    result = segment(volume, model=artifact, engine_factory=fake_factory, progress=said.append)
    low, high = percentile_range(pixels, PERCENTILES)
    assert read_provenance(result.output)["statistics"] == {"percentiles": [1.0, 99.8], "ranges": [[low, high]]}
    assert result.seconds["statistics"] > 0
    stages = [p.stage for p in said]
    assert stages[0] == "statistics"
    assert stages.index("segment") == stages.count("statistics")


def test_a_range_takes_their_place_and_nothing_is_measured(
    tmp_path: Path, artifact: Artifact, fake_factory: Any
) -> None:
    pixels = uneven()
    low, high = percentile_range(pixels, PERCENTILES)
    whole = segment(write_array(tmp_path / "v.zarr", pixels), model=artifact, engine_factory=fake_factory)
    one = write_array(tmp_path / "one.zarr", pixels[1:2])
    said: list[Progress] = []
    given = segment(one, model=artifact, engine_factory=fake_factory, input_range=(low, high), progress=said.append)
    assert (given.statistics, given.seconds["statistics"] < 0.1) == (None, True)
    assert "statistics" not in {p.stage for p in said}
    provenance = read_provenance(given.output)
    assert (provenance["statistics"], provenance["parameters"]["input_range"]) == (None, [low, high])
    alone = segment(one, model=artifact, engine_factory=fake_factory, output=tmp_path / "alone.zarr")
    name = "labels/segmentation/0"
    plane = read_arrays(whole.output)[name][1:2]
    np.testing.assert_array_equal(read_arrays(given.output)[name], plane, strict=True)
    assert (read_arrays(alone.output)[name] != plane).any()


def test_each_channel_has_its_own(tmp_path: Path, fake_artifact: ArtifactFactory, fake_factory: Any) -> None:
    pixels = np.stack([uneven("uint16"), uneven("uint16")[::-1] * 50, np.full((3, 70, 90), 7, np.uint16)])
    artifact = fake_artifact(in_channels=3, mean=0.25, std=1 / 256, percentiles=PERCENTILES)
    result = segment(
        write_array(tmp_path / "v.zarr", pixels, names="czyx"),
        model=artifact,
        engine_factory=fake_factory,
        channels=(1, 2, 0),
    )
    assert result.statistics is not None
    assert result.statistics.ranges == tuple(percentile_range(pixels[c], PERCENTILES) for c in (1, 2, 0))
    assert result.statistics.ranges[1] == (7, 7)  # constant, and no division by zero


def test_preparing_reads_nothing(tmp_path: Path, artifact: Artifact) -> None:
    volume = write_array(tmp_path / "v.zarr", uneven("float32"))
    for chunk in (volume / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"damaged")
    ready = prepare(volume, model=artifact)
    assert ready.normaliser is None
    assert ready.statistics_bytes == 2 * 4 * 3 * 70 * 90
    given = prepare(volume, model=artifact, input_range=(0, 1))
    assert given.normaliser is not None
    assert given.statistics_bytes == 0


def test_what_cannot_be_measured_is_refused_with_nothing_written(
    tmp_path: Path, artifact: Artifact, fake_factory: Any
) -> None:
    damaged = write_array(tmp_path / "damaged.zarr", uneven())
    next(path for path in (damaged / "c").rglob("*") if path.is_file()).write_bytes(b"damaged")
    pixels = uneven("float32")
    pixels[1, 2, 3] = np.nan
    with_nan = write_array(tmp_path / "nan.zarr", pixels)
    before = snapshot(tmp_path)
    cases: list[tuple[type[Exception], str, Path, dict[str, Any]]] = [
        (ReadError, r"^the window .* cannot be read\n", damaged, {}),
        (ValueRangeError, r"^grey values that are no numbers came, .*\n  .*nan\.zarr at z ", with_nan, {}),
        (ConfigurationError, r"^input range 3:3 is empty", damaged, {"input_range": (3, 3)}),
    ]
    for error, text, volume, options in cases:
        with pytest.raises(error, match=text):
            segment(volume, model=artifact, engine_factory=fake_factory, **options)
        assert snapshot(tmp_path) == before


def test_the_network_sees_what_training_saw(tmp_path: Path, fake_artifact: ArtifactFactory) -> None:
    pixels = uneven()[:1]
    seen: list[npt.NDArray[Any]] = []

    class Seeing(FakeEngine):
        def infer(self, batch: Any) -> Any:
            seen.append(batch.copy())
            return super().infer(batch)

    artifact = fake_artifact(mean=0.3, std=0.2, percentiles=PERCENTILES)
    segment(write_array(tmp_path / "v.zarr", pixels), model=artifact, engine_factory=lambda a: Seeing(a.card.network))
    trained = (scale_by_percentiles(pixels, PERCENTILES) - 0.3) / 0.2
    values = np.concatenate([batch.ravel() for batch in seen])
    assert values.min() == pytest.approx(trained.min(), abs=1e-5)
    assert values.max() == pytest.approx(trained.max(), abs=1e-5)
