"""Stores of several images: what is listed is what can be opened, by name, and nothing is left out."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from tests.contract.volumes import KINDS, edit_document, make_pixels, write_array, write_group, write_image
from unet_deploy.errors import (
    InputDataError,
    NotAVolumeError,
    SeveralImagesError,
    UnknownNameError,
    UnsupportedMetadataError,
    VolumeNotFoundError,
)
from unet_deploy.geometry import Interval
from unet_deploy.runtime import ImageEntry, list_images, open_volume
from unet_deploy.runtime.volume import Volume

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "zarr_foreign"
Version = Literal["0.4", "0.5"]


def write_holder(path: Path, version: Version, **attributes: Any) -> Path:
    if version == "0.4":
        return write_group(path, attributes, zarr_format=2)
    return write_group(path, {"ome": {"version": "0.5", **attributes}}, zarr_format=3)


def write_field(path: Path, value: int, version: Version = "0.4") -> Path:
    return write_image(path, np.full((21, 19), value, np.uint8), axes="yx", version=version)


def write_plate(path: Path, version: Version = "0.4", *, wells: int = 2, fields: int = 2) -> Path:
    """Write wells A/1, A/2, ... whose fields hold 10 · well + field."""
    names = [f"A/{well + 1}" for well in range(wells)]
    write_holder(path, version, plate={"wells": [{"path": name} for name in names]})
    for well, name in enumerate(names):
        write_holder(path / name, version, well={"images": [{"path": str(field)} for field in range(fields)]})
        for field in range(fields):
            write_field(path / name / str(field), 10 * well + field, version)
    return path


def write_series(path: Path, values: tuple[int, ...] = (0, 1), version: Version = "0.4") -> Path:
    write_holder(path, version, **{"bioformats2raw.layout": 3})
    for value in values:
        write_field(path / str(value), value, version)
    return path


def value_of(volume: Volume) -> int:
    pixels = volume.read(**{axis: Interval(0, volume.extent(axis)) for axis in "zyx"})
    assert (pixels == pixels.flat[0]).all()
    return int(pixels.flat[0])


def test_an_image_and_an_array_are_their_own_only_entry(tmp_path: Path) -> None:
    image = write_field(tmp_path / "image", 3)
    assert list_images(image) == (ImageEntry(name="", path=str(image), kind="image", title="test"),)
    assert list_images(str(image / "0")) == (ImageEntry(name="", path=str(image / "0"), kind="array"),)
    for name in ("", "0", "test"):  # the name listed, an array inside, its title
        assert value_of(open_volume(image, image=name)) == 3


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_the_fields_of_a_plate_are_named_by_well(tmp_path: Path, version: Version) -> None:
    plate = write_plate(tmp_path / "plate.zarr", version)
    entries = list_images(plate)
    assert [entry.name for entry in entries] == ["A/1/0", "A/1/1", "A/2/0", "A/2/1"]
    assert {entry.kind for entry in entries} == {"field"}
    assert entries[3].path == str(plate / "A" / "2" / "1")
    assert [value_of(open_volume(plate, image=entry.name)) for entry in entries] == [0, 1, 10, 11]
    assert [value_of(open_volume(entry.path)) for entry in entries] == [0, 1, 10, 11]
    volume = open_volume(plate, image="A/2/1")
    assert (volume.info.path, volume.info.name) == (entries[3].path, "test")
    assert value_of(pickle.loads(pickle.dumps(volume))) == 11
    assert pickle.loads(pickle.dumps(entries)) == entries
    assert [entry.name for entry in list_images(plate / "A" / "2")] == ["0", "1"]
    assert value_of(open_volume(plate / "A" / "2", image="1")) == 11
    with pytest.raises(SeveralImagesError, match="holds several images, one was expected") as caught:
        open_volume(plate)
    assert caught.value.details == ("found 4 images:", "A/1/0", "A/1/1", "A/2/0", "A/2/1")
    assert caught.value.fix == (
        "name one: --image A/1/0, or, where a command has no --image, give its path: "
        f"{plate / 'A' / '1' / '0'} (in Python: image='A/1/0')"
    )


def test_a_well_by_name_is_answered_with_its_first_field(tmp_path: Path) -> None:
    plate = write_plate(tmp_path / "plate.zarr")
    for name in ("A/2", "A/2/"):
        with pytest.raises(UnknownNameError, match="holds no image called") as caught:
            open_volume(plate, image=name)
        assert caught.value.fix == "did you mean 'A/2/0'?"


def test_a_plate_of_one_field_is_that_field(tmp_path: Path) -> None:
    plate = write_plate(tmp_path / "plate.zarr", wells=1, fields=1)
    assert open_volume(plate).info.path == open_volume(plate / "A" / "1").info.path == str(plate / "A" / "1" / "0")


def test_only_the_fields_that_a_plate_lists_are_its(tmp_path: Path) -> None:
    plate = write_plate(tmp_path / "plate.zarr")
    write_field(plate / "A" / "1" / "thumbnail", 9)
    edit_document(plate / "A" / "2" / ".zattrs", well={"images": [{"path": "1"}]})
    assert [entry.name for entry in list_images(plate)] == ["A/1/0", "A/1/1", "A/2/1"]


def test_a_well_that_is_not_there_is_not_left_out(tmp_path: Path) -> None:
    plate = write_plate(tmp_path / "plate.zarr", wells=4)
    edit_document(plate / ".zattrs", plate={"wells": [{"path": f"A/{n}"} for n in (1, 2, 3, 4, 9)]})
    (plate / "A" / "2" / ".zattrs").write_text("broken")
    edit_document(plate / "A" / "3" / ".zattrs", well={"images": []})
    names = [entry.name for entry in list_images(plate)]
    assert names == ["A/1/0", "A/1/1", "A/2", "A/3", "A/4/0", "A/4/1", "A/9"]
    assert value_of(open_volume(plate, image="A/4/1")) == 31
    for name, error, words in (
        ("A/2", UnsupportedMetadataError, "the metadata is not valid JSON"),
        ("A/3", SeveralImagesError, "found 2 images:\n  0\n  1"),  # which of them it means, it does not say
        ("A/9", VolumeNotFoundError, "there is nothing at"),
    ):
        with pytest.raises(error, match=words):
            open_volume(plate, image=name)


def test_a_field_that_is_not_there_is_listed_and_fails_when_opened(tmp_path: Path) -> None:
    plate = write_plate(tmp_path / "plate.zarr")
    edit_document(plate / "A" / "1" / ".zattrs", well={"images": [{"path": "0"}, {"path": "7"}]})
    entries = list_images(plate)
    assert [entry.name for entry in entries][:2] == ["A/1/0", "A/1/7"]
    with pytest.raises(VolumeNotFoundError, match="there is nothing at"):
        open_volume(plate, image="A/1/7")


@pytest.mark.parametrize("path", ["../other", "/etc", None])
def test_a_plate_may_not_point_outside(tmp_path: Path, path: object) -> None:
    plate = write_plate(tmp_path / "plate.zarr")
    edit_document(plate / ".zattrs", plate={"wells": [{"path": path}]})
    with pytest.raises(UnsupportedMetadataError, match=f"path {path!r} came, a relative path inside the group"):
        list_images(plate)
    with pytest.raises(UnknownNameError, match=r"no image called '\.\./plate\.zarr/A/1/0'"):
        open_volume(write_series(tmp_path / "series"), image="../plate.zarr/A/1/0")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_series_is_opened_by_number_or_title(tmp_path: Path, version: Version) -> None:
    store = write_series(tmp_path / "store.zarr", tuple(range(12)), version)
    document = store / "3" / (".zattrs" if version == "0.4" else "zarr.json")
    document.write_text(document.read_text().replace('"test"', '"overview"'))
    entries = list_images(store)
    assert [entry.name for entry in entries] == [str(n) for n in range(12)]  # by number, not by letter
    assert entries[3] == ImageEntry(name="3", path=str(store / "3"), kind="series", title="overview")
    assert value_of(open_volume(store, image="3")) == value_of(open_volume(store, image="overview")) == 3
    with pytest.raises(UnknownNameError, match=r"holds several images called 'test'\n  it holds:\n  0 \(test\)\n"):
        open_volume(store, image="test")
    with pytest.raises(UnknownNameError, match="holds no image called '13'") as caught:
        open_volume(store, image="13")
    assert caught.value.details[-1] == "and 4 more"
    assert caught.value.fix.startswith("did you mean '")


def test_a_series_in_a_broken_group_is_listed_and_fails_when_opened(tmp_path: Path) -> None:
    store = write_series(tmp_path / "store.zarr")
    (store / "1" / ".zattrs").write_text("broken")
    assert [(entry.name, entry.title) for entry in list_images(store)] == [("0", "test"), ("1", None)]
    with pytest.raises(UnsupportedMetadataError, match="the metadata is not valid JSON"):
        open_volume(store, image="1")


def test_the_series_that_a_store_declares_are_its(tmp_path: Path) -> None:
    store = write_series(tmp_path / "store.zarr", (0, 1, 2))
    write_group(store / "OME", {"series": ["2", "0"]}, zarr_format=2)
    assert [entry.name for entry in list_images(store)] == ["2", "0"]
    (store / "OME" / ".zattrs").write_text(json.dumps({"series": ["../x"]}))
    with pytest.raises(UnsupportedMetadataError, match=r"path '\.\./x' came"):
        list_images(store)


def test_images_of_one_group_have_their_names_or_numbers(tmp_path: Path) -> None:
    path = write_field(tmp_path / "image", 0)
    write_array(path / "other", np.full((21, 19), 7, np.uint8), axes="yx", kind=KINDS[0])
    attributes = json.loads((path / ".zattrs").read_text())
    first = attributes["multiscales"][0]
    second = json.loads(json.dumps(first).replace('"0"', '"other"')) | {"name": "second"}
    edit_document(path / ".zattrs", multiscales=[first, second])
    assert [entry.name for entry in list_images(path)] == ["test", "second"]
    volume = open_volume(path, image="second")
    assert (volume.info.array_path, value_of(volume)) == ("other", 7)
    assert value_of(pickle.loads(pickle.dumps(volume))) == 7
    edit_document(path / ".zattrs", multiscales=[first, second | {"name": "test"}])
    entries = list_images(path)
    assert [(entry.name, entry.kind, entry.path) for entry in entries] == [
        ("0", "multiscale", str(path)),
        ("1", "multiscale", str(path)),
    ]
    assert value_of(open_volume(path, image="1")) == 7


def test_a_plain_group_lists_what_is_inside_and_no_labels(tmp_path: Path) -> None:
    group = write_group(tmp_path / "group", {}, zarr_format=2)
    for value, name in enumerate(("raw/a", "raw/b")):
        write_field(group / name / "labels" / "cells", 99)
        write_field(group / name, value)
    assert [(entry.name, entry.kind) for entry in list_images(group)] == [("raw/a", "nested"), ("raw/b", "nested")]
    assert value_of(open_volume(group, image="raw/b")) == 1
    assert value_of(open_volume(group / "raw" / "a", image="labels/cells")) == 99  # asked for by its path


def test_a_scene_says_which_of_its_transformations_are_not_applied(tmp_path: Path) -> None:
    steps = [{"type": "affine"}, {"type": "rotation"}, {"type": "affine"}]
    attributes = {"ome": {"version": "0.6.dev3", "scene": {"coordinateTransformations": steps}}}
    scene = write_group(tmp_path / "scene", attributes, zarr_format=3)
    write_field(scene / "a", 1, "0.5")
    write_field(scene / "b", 2, "0.5")
    with pytest.raises(SeveralImagesError, match=r"the scene places them \(affine, rotation\) is not applied"):
        open_volume(scene)
    assert value_of(open_volume(scene, image="b")) == 2


def test_no_image_at_all(tmp_path: Path) -> None:
    group = write_group(tmp_path / "group", {}, zarr_format=3)
    write_array(group / "raw", make_pixels("yx", "uint8"), axes="yx", kind=KINDS[0])
    with pytest.raises(NotAVolumeError, match="arrays found inside:\n  raw"):
        list_images(group)
    assert open_volume(group, image="raw").info.axes == "yx"
    with pytest.raises(UnknownNameError, match="holds no image called 'b'\n  it is an image or array itself"):
        open_volume(group / "raw", image="b")
    with pytest.raises(VolumeNotFoundError, match="there is nothing at"):
        list_images(tmp_path / "nothing")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the stores by other programs are not beside the checkout")
@pytest.mark.parametrize(
    ("store", "names", "kind"),
    [
        ("ome2024-ngff-challenge/tests/data/bf2raw.zarr", ("0", "1"), "series"),
        (
            "ome2024-ngff-challenge/tests/data/hcs.zarr",
            tuple(f"{row}/{column}/{field}" for row in "AB" for column in "12" for field in "01"),
            "field",
        ),
        ("mobie-viewer-fiji/single-plane-hcs.zarr", ("E/08/0", "E/07/0"), "field"),
        ("zarr-java/testdata/ome/v0.5_hcs", ("A/1/0",), "field"),
        ("ome-zarr-models-py/tests/data/examples/v06/stitched_tiles_2d.zarr", ("tile_0", "tile_1"), "nested"),
    ],
)
def test_stores_of_several_images_by_other_programs(store: str, names: tuple[str, ...], kind: str) -> None:
    entries = list_images(SHARED / store)
    assert tuple(entry.name for entry in entries) == names
    assert {entry.kind for entry in entries} == {kind}
    for entry in entries:
        volume = open_volume(SHARED / store, image=entry.name)
        assert volume.info.path == entry.path
        assert volume.info == open_volume(entry.path).info


@pytest.mark.skipif(not SHARED.is_dir(), reason="the stores by other programs are not beside the checkout")
def test_a_listed_image_of_any_foreign_group_is_opened_or_refused() -> None:
    listed = 0
    for document in (*SHARED.rglob(".zgroup"), *SHARED.rglob("zarr.json")):
        try:
            entries = list_images(document.parent)
        except InputDataError:
            continue
        for entry in entries:
            listed += 1
            try:
                open_volume(document.parent, image=entry.name)
            except InputDataError as error:
                assert type(error).__name__.startswith("Unsupported")  # noqa: PT017  # some are, and say so
    assert listed > 100
