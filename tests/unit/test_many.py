"""Every image of a store: each as if it was given alone, none left out, and what is finished is not done again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.contract.test_images import write_plate, write_series
from tests.contract.volumes import chunk_files, write_image
from tests.tiny import read_arrays, read_provenance, snapshot
from unet_deploy.errors import (
    ChannelError,
    InterruptedRunError,
    NoSpaceError,
    OutputPathError,
    PartialResultError,
    TileNotLegalError,
    UnknownNameError,
)
from unet_deploy.runtime import default_output, list_images, segment
from unet_deploy.runtime._image_outputs import choose_outputs
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.images import ImageEntry
from unet_deploy.runtime.many import ImageResult, ManyResult, listed_images, segment_images
from unet_deploy.runtime.segmenter import Segmenter

NAMES = ["A/1/0", "A/1/1", "A/2/0", "A/2/1"]


@pytest.fixture
def options(fake_artifact: Callable[..., Artifact], fake_factory: Any) -> dict[str, Any]:
    return {"model": fake_artifact(), "engine_factory": fake_factory, "check_free_space": False}


@pytest.fixture
def plate(tmp_path: Path) -> Path:
    """Return a plate of two wells of two fields of noise."""
    path = write_plate(tmp_path / "plate.zarr")
    for seed, name in enumerate(NAMES):
        pixels = np.random.default_rng(seed).integers(0, 256, (70, 90)).astype(np.uint8)
        shutil.rmtree(path / name)
        write_image(path / name, pixels, axes="yx", version="0.4", levels=1)
    return path


def outcomes(result: ManyResult | list[ImageResult]) -> dict[str, str]:
    return {found.image.name: found.outcome for found in (result if isinstance(result, list) else result.results)}


def test_each_field_is_segmented_as_if_it_was_alone(plate: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    begun: list[str] = []
    result = segment_images(plate, on_start=lambda image: begun.append(image.name), **options)
    assert outcomes(result) == dict.fromkeys(NAMES, "done")
    assert (result.count("done"), result.count("failed")) == (4, 0)
    assert begun == NAMES
    for found in result.results:
        assert found.output == default_output(found.image.path) == default_output(plate, found.image.name)
        alone = segment(found.image.path, output=tmp_path / "alone.ome.zarr", overwrite=True, **options).output
        came = read_arrays(found.output)
        assert came.keys() == read_arrays(alone).keys()
        for name, array in read_arrays(alone).items():
            np.testing.assert_array_equal(came[name], array)
    assert (tmp_path / "plate_A_2_1_segmentation.ome.zarr").is_dir()


def test_the_same_call_does_only_what_is_missing(plate: Path, options: dict[str, Any]) -> None:
    folder = plate.parent / "results"
    first = segment_images(plate, output_folder=folder, **options)
    before = snapshot(folder)
    assert {found.output.parent for found in first.results} == {folder}
    assert outcomes(segment_images(plate, output_folder=folder, **options)) == dict.fromkeys(NAMES, "found")
    assert snapshot(folder) == before
    shutil.rmtree(first.results[2].output)
    again = segment_images(plate, output_folder=folder, retry_failed=True, **options)
    assert outcomes(again) == dict.fromkeys(NAMES, "found") | {"A/2/0": "done"}
    assert again.results[0].result is None
    anew = segment_images(plate, output_folder=folder, overwrite=True, **options)
    assert outcomes(anew) == dict.fromkeys(NAMES, "done")


def test_images_can_be_named(plate: Path, options: dict[str, Any]) -> None:
    result = segment_images(plate, images=["A/2/1", "A/1/0", "A/2/1"], **options)
    assert list(outcomes(result)) == ["A/2/1", "A/1/0"]
    with pytest.raises(UnknownNameError, match="holds no image called 'B/1/0'"):
        segment_images(plate, images=["B/1/0"], **options)


def test_one_that_fails_does_not_stop_the_others(plate: Path, options: dict[str, Any]) -> None:
    shutil.rmtree(plate / "A" / "1" / "1")
    (damaged,) = chunk_files(plate / "A" / "2" / "0" / "0")[:1]
    whole = damaged.read_bytes()
    damaged.write_bytes(b"no zstd")
    seen: list[ImageResult] = []
    with pytest.raises(PartialResultError, match="2 of 4 images failed; the others are done") as caught:
        segment_images(plate, on_result=seen.append, **options)
    assert outcomes(seen) == {"A/1/0": "done", "A/1/1": "failed", "A/2/0": "failed", "A/2/1": "done"}
    gone, holes = caught.value.details
    assert gone.startswith("A/1/1: [volume-not-found] there is nothing at ")
    assert holes.startswith("A/2/0: [partial-result] 1 of 1 blocks failed")
    assert caught.value.fix == (
        "mend the cause, then give the same command again with --retry-failed: what is finished stays as it is"
    )
    assert [type(found.error).__name__ for found in seen[1:3]] == ["VolumeNotFoundError", "PartialResultError"]
    damaged.write_bytes(whole)
    shutil.copytree(plate / "A" / "1" / "0", plate / "A" / "1" / "1")
    result = segment_images(plate, retry_failed=True, **options)
    assert outcomes(result) == {"A/1/0": "found", "A/1/1": "done", "A/2/0": "done", "A/2/1": "found"}


def test_many_failures_are_shortened_and_need_no_retry(tmp_path: Path, options: dict[str, Any]) -> None:
    plate = write_plate(tmp_path / "plate.zarr", fields=7)
    for name in ("A/1", "A/2"):
        for field in range(7):
            shutil.rmtree(plate / name / str(field))
    with pytest.raises(PartialResultError, match=r"^14 of 14 images failed\n") as caught:
        segment_images(plate, **options)
    assert (len(caught.value.details), caught.value.details[-1]) == (11, "and 4 more")
    assert caught.value.fix == "mend the cause, then give the same command again: what is finished stays as it is"


def test_what_one_flag_mends_for_every_image_is_said_as_of_one(
    plate: Path, fake_artifact: Callable[..., Artifact]
) -> None:
    def missing(channel: int) -> ChannelError:
        return ChannelError("the model takes 1 channel(s)", f"image {channel}", fix="--channel 0")

    alike = Scripted(fake_artifact(), *map(missing, range(4)))
    with pytest.raises(ChannelError, match="the model takes 1 channel") as caught:
        segment_images(plate, segmenter=alike)
    assert (len(alike.calls), caught.value.details, caught.value.fix) == (4, ("image 0",), "--channel 0")
    with pytest.raises(PartialResultError, match=r"^3 of 4 images failed; the others are done"):
        segment_images(plate, segmenter=Scripted(fake_artifact(), None, *map(missing, range(3))))


def test_a_finished_output_of_another_origin_is_not_taken(
    plate: Path, options: dict[str, Any], fake_artifact: Callable[..., Artifact]
) -> None:
    segment_images(plate, write=["labels"], **options)
    changed = {**options, "model": fake_artifact(base_width=2), "input_range": (0, 200)}
    seen: list[ImageResult] = []
    with pytest.raises(PartialResultError, match="4 of 4 images failed"):
        segment_images(plate, on_result=seen.append, **changed)
    error = seen[0].error
    assert error is not None
    assert error.headline == f"the output {default_output(plate, 'A/1/0')} is finished, and was made in another way"
    assert error.details[0].startswith("sha256: made with ")
    assert error.details[1:] == (
        "input_range: made with nothing, now [0, 200]",
        "write: probabilities are not there",
    )
    assert error.fix == "choose another --output, or replace it with --overwrite"
    first, second = default_output(plate, "A/1/0"), default_output(plate, "A/1/1")
    shutil.rmtree(second)
    first.rename(second)
    with pytest.raises(PartialResultError, match=r"A/1/1: \[output-exists\] the output .* was made in another way"):
        segment_images(plate, write=["labels"], **options)


def test_objects_are_of_one_rule(plate: Path, options: dict[str, Any]) -> None:
    named = {**options, "images": ["A/1/0"], "write": ["labels", "instances"]}
    assert outcomes(segment_images(plate, **named)) == {"A/1/0": "done"}
    assert outcomes(segment_images(plate, **named)) == {"A/1/0": "found"}
    assert outcomes(segment_images(plate, **{**named, "write": ["labels"]})) == {"A/1/0": "found"}
    seen: list[ImageResult] = []
    with pytest.raises(PartialResultError):
        segment_images(plate, on_result=seen.append, min_object_size=9, **named)
    assert seen[0].error is not None
    assert seen[0].error.details == ("min_size: made with 0, now 9",)
    shutil.rmtree(seen[0].output / "labels" / "instances")
    with pytest.raises(PartialResultError, match="was made in another way"):
        segment_images(plate, **named)


def test_a_stopped_call_goes_on(plate: Path, options: dict[str, Any]) -> None:
    seen: list[ImageResult] = []
    with pytest.raises(InterruptedRunError, match="stopped after 2 of 4 images") as caught:
        segment_images(plate, on_result=seen.append, should_stop=lambda: len(seen) >= 2, **options)
    assert caught.value.fix == "give the same command again: it goes on where it was"
    begun: list[str] = []
    with pytest.raises(InterruptedRunError, match="stopped after 2 of 4 images"):  # within an image
        segment_images(
            plate,
            on_start=lambda image: begun.append(image.name),
            should_stop=lambda: "A/2/0" in begun,
            **options,
        )
    result = segment_images(plate, **options)
    assert outcomes(result) == {"A/1/0": "found", "A/1/1": "found", "A/2/0": "done", "A/2/1": "done"}


class Scripted(Segmenter):
    """A segmenter that fails with what it is given, image by image; None succeeds."""

    def __init__(self, artifact: Artifact, *errors: Exception | None) -> None:
        super().__init__(artifact)
        self.script = list(errors)
        self.calls: list[dict[str, Any]] = []

    def segment(self, volume: str | Path, **options: Any) -> Any:
        self.calls.append({"volume": volume, **options})
        error = self.script.pop(0)
        if error is not None:
            raise error

        class Done:
            output = options.get("output")

        return Done()


def test_what_fails_for_every_image_ends_the_loop(plate: Path, fake_artifact: Callable[..., Artifact]) -> None:
    wrong, full = TileNotLegalError("tile side 250", fix="252"), NoSpaceError("the disk is full", fix="free space")
    with pytest.raises(TileNotLegalError, match="tile side 250"):
        segment_images(plate, segmenter=Scripted(fake_artifact(), wrong))
    with pytest.raises(NoSpaceError, match="the disk is full"):
        segment_images(plate, segmenter=Scripted(fake_artifact(), None, full))
    odd = Scripted(fake_artifact(), None, wrong, None, None)
    with pytest.raises(PartialResultError, match=r"1 of 4 images failed(.|\n)*A/1/1: \[tile-not-legal\] tile side 250"):
        segment_images(plate, segmenter=odd)
    assert len(odd.calls) == 4  # what is wrong for a later one is that image's


def test_labels_and_tables_have_a_place_for_each_image(plate: Path, fake_artifact: Callable[..., Artifact]) -> None:
    into = Scripted(fake_artifact(), None, None, None, None)
    result = segment_images(plate, segmenter=into, into_labels="cells", table=plate.parent / "blocks.csv")
    assert [call.get("output") for call in into.calls] == [None] * 4
    assert {call["into_labels"] for call in into.calls} == {"cells"}
    assert result.count("done") == 4
    apart = Scripted(fake_artifact(), None, None, None, None)
    segment_images(plate, segmenter=apart, table=plate.parent / "blocks.csv")
    assert [call["table"].name for call in apart.calls] == [
        f"blocks_plate_A_{n}.csv" for n in ("1_0", "1_1", "2_0", "2_1")
    ]
    timed = Scripted(fake_artifact(), None, None, None, None)
    segment_images(plate, segmenter=timed, profile="profile.html", overwrite=True)
    assert [str(call["profile"]) for call in timed.calls] == [
        f"profile_plate_A_{n}.html" for n in ("1_0", "1_1", "2_0", "2_1")
    ]


def test_series_and_the_images_of_one_group_are_listed_and_folders_are_not(tmp_path: Path) -> None:
    series = write_series(tmp_path / "series.zarr")
    assert [entry.name for entry in listed_images(series)] == ["0", "1"]
    assert listed_images(series / "0") == listed_images(series / "0" / "0") == ()
    assert [entry.kind for entry in list_images(tmp_path)] == ["nested", "nested"]
    assert listed_images(tmp_path) == ()  # may hold anything, results too


def test_the_images_of_a_tiff_file(tmp_path: Path, options: dict[str, Any]) -> None:
    tifffile = pytest.importorskip("tifffile", reason="the extra 'tiff' is not installed")
    file = tmp_path / "slides.ome.tif"
    with tifffile.TiffWriter(file, ome=True) as writer:
        for seed in range(2):
            writer.write(
                np.random.default_rng(seed).integers(0, 256, (40, 50)).astype(np.uint8), metadata={"axes": "YX"}
            )
    result = segment_images(file, **options)
    assert outcomes(result) == {"0": "done", "1": "done"}
    assert [found.output.name for found in result.results] == [f"slides_{n}_segmentation.ome.zarr" for n in (0, 1)]
    assert outcomes(segment_images(file, **options)) == {"0": "found", "1": "found"}


def test_names_of_outputs_never_meet(tmp_path: Path) -> None:
    entries = [ImageEntry(name=name, path="", kind="series") for name in ("a", "A", "a_2", "b/c", "b_c", "b:c", 'b"c')]
    outputs = choose_outputs(tmp_path / "s.zarr", entries, None)
    assert [path.name.removesuffix("_segmentation.ome.zarr") for path in outputs] == [
        "s_a",
        "s_A_segmentation_2.ome.zarr",
        "s_a_2",
        "s_b_c",
        "s_b_c_segmentation_2.ome.zarr",
        "s_b-c",
        "s_b-c_segmentation_2.ome.zarr",
    ]
    assert {path.parent for path in outputs} == {tmp_path}
    assert len({path.name.casefold() for path in outputs}) == len(entries)


def test_an_image_has_one_output_whichever_are_asked_for(tmp_path: Path, options: dict[str, Any]) -> None:
    store = tmp_path / "s.zarr"
    for name in ("a/b", "a_b"):
        write_image(store / name, np.zeros((40, 50), np.uint8), axes="yx", version="0.5")
    alone = segment_images(store, images=["a_b"], **options)
    both = segment_images(store, **options)
    assert outcomes(both) == {"a/b": "done", "a_b": "found"}
    assert alone.results[0].output == both.results[1].output == tmp_path / "s_a_b_segmentation_2.ome.zarr"


def test_an_image_of_a_long_name_has_one_of_its_own(tmp_path: Path) -> None:
    names = [f"{'ä' * 200}{end}" for end in "12"]
    entries = [ImageEntry(name=name, path="", kind="multiscale") for name in names]
    first, second = (path.name for path in choose_outputs(tmp_path / "s.zarr", entries, None))
    assert first != second
    assert first.startswith("s_ääää")
    assert max(len(name.encode()) for name in (first, second)) < 130


def test_the_folder_of_the_outputs_is_no_store(plate: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    for place, why in (
        (plate, f"is or lies in the store {plate}"),
        (plate / "A" / "results", f"is or lies in the store {plate}"),
        (tmp_path / "results.ome.zarr", "is named as a store"),
    ):
        with pytest.raises(OutputPathError) as caught:
            segment_images(plate, output_folder=place, **options)
        assert caught.value.headline == f"several images are to be segmented, and the output {place} {why}"
        assert caught.value.details == ("a folder was expected: each image's segmentation is a store in it",)
        assert caught.value.fix == f"--output {tmp_path / 'segmentations'}, or name one image with --image"
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "no" / "folder"):
        with pytest.raises(OutputPathError, match=r"the folder .* for the outputs cannot be made: ") as caught:
            segment_images(plate, output_folder=place, **options)
        assert caught.value.details == (f"{place.parent} was expected to be a folder where you may write",)
        assert caught.value.fix == "create it, or choose another --output"


def test_one_engine_serves_all(plate: Path, options: dict[str, Any]) -> None:
    opened: list[int] = []
    make = options["engine_factory"]

    def factory(artifact: Artifact) -> Any:
        opened.append(1)
        return make(artifact)

    after_each: list[int] = []
    changed = {**options, "engine_factory": factory}
    segment_images(plate, on_result=lambda _: after_each.append(len(opened)), **changed)
    assert after_each == [1, 1, 1, 1]


def test_failed_blocks_of_a_killed_run_are_run_again_too(plate: Path, options: dict[str, Any]) -> None:
    named = {**options, "images": ["A/1/0"]}
    (damaged,) = chunk_files(plate / "A" / "1" / "0" / "0")[:1]
    whole = damaged.read_bytes()
    damaged.write_bytes(b"no zstd")
    with pytest.raises(PartialResultError, match="1 of 1 images failed"):
        segment_images(plate, **named)
    with pytest.raises(PartialResultError, match=r"\[output-exists\] the output .* exists, and 1 of its blocks failed"):
        segment_images(plate, **named)
    damaged.write_bytes(whole)
    output = default_output(plate, "A/1/0")
    document = output / ".zattrs"
    document.write_text(document.read_text().replace('"partial"', '"running"'))  # killed before it was finished
    assert outcomes(segment_images(plate, retry_failed=True, **named)) == {"A/1/0": "done"}
    assert read_provenance(output)["status"] == "complete"
