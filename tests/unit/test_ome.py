"""OME-Zarr metadata: what is read, what is refused with its name, and that what is written is valid."""

from __future__ import annotations

from typing import Any

import pytest
from ome_zarr_models.v04.image import ImageAttrs as ImageAttrs04
from ome_zarr_models.v04.image_label import ImageLabelAttrs as ImageLabelAttrs04
from ome_zarr_models.v05.image_label import ImageLabelAttrs as ImageLabelAttrs05

from unet_deploy.errors import UnsupportedAxesError, UnsupportedMetadataError
from unet_deploy.runtime.ome import (
    LevelTransform,
    OmeVersion,
    image_label_attributes,
    merge_attributes,
    multiscales_attributes,
    parse_multiscales,
    require_axes,
)

LEVELS = (
    LevelTransform(path="0", scale=(50.0, 4.0, 4.0), translation=None),
    LevelTransform(path="scale1/image", scale=(50.0, 8.0, 8.0), translation=(0.0, 2.0, 2.0)),
)
UNITS = ("nanometer", "nanometer", "nanometer")
CLASSES = (("membrane", "#ff0080"), ("interior", "#00ff00"))


def _attributes(version: OmeVersion = "0.4") -> dict[str, Any]:
    return multiscales_attributes(version=version, name="em", axes="zyx", units=UNITS, levels=LEVELS, type_="mean")


def _entry(**changes: Any) -> dict[str, Any]:
    """Return 0.4 attributes of one multiscale with some keys changed; ... removes one."""
    entry = _attributes()["multiscales"][0] | changes
    return {"multiscales": [{key: value for key, value in entry.items() if value is not ...}]}


def _dataset(*steps: dict[str, Any], path: Any = "0") -> dict[str, Any]:
    return _entry(datasets=[{"path": path, "coordinateTransformations": list(steps)}])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_what_is_written_is_read(version: OmeVersion) -> None:
    (image,) = parse_multiscales(_attributes(version), where="here")
    assert (image.version, image.name, image.axes, image.units) == (version, "em", "zyx", UNITS)
    assert image.levels[0] == LevelTransform(path="0", scale=(50.0, 4.0, 4.0), translation=(0.0, 0.0, 0.0))
    assert image.levels[1] == LEVELS[1]


def test_what_is_written_is_valid_04() -> None:
    label = image_label_attributes(version="0.4", classes=CLASSES, source="../../")
    attributes = merge_attributes(_attributes("0.4"), label)
    assert set(attributes) == {"multiscales", "image-label"}
    parsed = ImageLabelAttrs04.model_validate(attributes)
    assert parsed.multiscales[0].version == "0.4"
    assert parsed.image_label is not None
    assert parsed.image_label.colors is not None
    assert parsed.image_label.colors[0].rgba == (255, 0, 128, 255)


def test_what_is_written_is_valid_05() -> None:
    label = image_label_attributes(version="0.5", classes=CLASSES, source=None)
    attributes = merge_attributes(_attributes("0.5"), label)
    assert set(attributes) == {"ome"}
    assert attributes["ome"]["version"] == "0.5"
    assert "version" not in attributes["ome"]["multiscales"][0]
    assert "source" not in attributes["ome"]["image-label"]
    parsed = ImageLabelAttrs05.model_validate(attributes["ome"])
    assert parsed.image_label is not None
    assert [p.label_value for p in parsed.image_label.properties or ()] == [0, 1]
    assert attributes["ome"]["image-label"]["properties"][1] == {"label-value": 1, "name": "interior"}


def test_only_time_and_space_have_units_and_an_unknown_scale_is_one() -> None:
    levels = [LevelTransform(path="0", scale=None, translation=None)]
    attributes = multiscales_attributes(
        version="0.4", name="n", axes="tcyx", units=("second", "x", None, "nanometer"), levels=levels, type_="mode"
    )
    (entry,) = attributes["multiscales"]
    assert entry["axes"] == [
        {"name": "t", "type": "time", "unit": "second"},
        {"name": "c", "type": "channel"},
        {"name": "y", "type": "space"},
        {"name": "x", "type": "space", "unit": "nanometer"},
    ]
    assert entry["datasets"][0]["coordinateTransformations"] == [{"type": "scale", "scale": [1.0, 1.0, 1.0, 1.0]}]
    ImageAttrs04.model_validate(attributes)


def test_no_units_at_all_may_be_written() -> None:
    attributes = multiscales_attributes(version="0.5", name="n", axes="zyx", units=None, levels=LEVELS, type_="mode")
    assert all("unit" not in axis for axis in attributes["ome"]["multiscales"][0]["axes"])


def test_the_images_transformation_comes_after_the_datasets() -> None:
    attributes = _dataset(
        {"type": "scale", "scale": [1, 2, 3]},
        {"type": "identity"},
        {"type": "translation", "translation": [10, 20, 30]},
    )
    attributes["multiscales"][0]["coordinateTransformations"] = [
        {"type": "scale", "scale": [2, 2, 2]},
        {"type": "translation", "translation": [1, 1, 1]},
    ]
    (image,) = parse_multiscales(attributes, where="here")
    # pixel 1 on x: (1 * 3 + 30) * 2 + 1 = 67
    assert image.levels[0].scale == (2.0, 4.0, 6.0)
    assert image.levels[0].translation == (21.0, 41.0, 61.0)


def test_no_transformation_is_an_unknown_pixel_size() -> None:
    (image,) = parse_multiscales(_entry(datasets=[{"path": "0"}]), where="here")
    assert image.levels[0] == LevelTransform(path="0", scale=None, translation=None)


@pytest.mark.parametrize("version", ["0.1", "0.2"])
def test_old_versions_have_five_axes_and_no_pixel_size(version: str) -> None:
    (image,) = parse_multiscales({"multiscales": [{"version": version, "datasets": [{"path": "0"}]}]}, where="here")
    assert (image.axes, image.version, image.levels[0].scale) == ("tczyx", version, None)


@pytest.mark.parametrize("version", ["0.3", None])
def test_version_03_names_its_axes(version: str | None) -> None:
    entry = {"axes": ["c", "y", "x"], "datasets": [{"path": "0"}]} | ({"version": version} if version else {})
    (image,) = parse_multiscales({"multiscales": [entry]}, where="here")
    assert (image.axes, image.version, image.units) == ("cyx", "0.3", (None, None, None))


def test_a_04_image_need_not_say_its_version() -> None:
    (image,) = parse_multiscales(_entry(version=...), where="here")
    assert image.version == "0.4"


def test_channel_names_come_from_omero_and_are_never_a_reason_to_refuse() -> None:
    def names(omero: object) -> tuple[str, ...] | None:
        return parse_multiscales(_attributes() | {"omero": omero}, where="here")[0].channel_names

    assert names({"channels": [{"label": "DAPI"}, {"color": "00FF00"}]}) == ("DAPI", "1")
    assert names({"channels": "DAPI"}) is None
    assert names({"channels": []}) is None
    assert names(None) is None


def test_a_group_without_multiscales_declares_no_image() -> None:
    assert parse_multiscales({}, where="here") == ()
    assert parse_multiscales({"ome": {"version": "0.5", "plate": {}}}, where="here") == ()


def test_every_image_is_returned() -> None:
    attributes = {"multiscales": _attributes()["multiscales"] * 2}
    assert len(parse_multiscales(attributes, where="here")) == 2


SCALE = {"type": "scale", "scale": [1, 1, 1]}


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"ome": {"version": "0.7.dev4", "multiscales": []}}, r"version '0\.7\.dev4' came, one of 0\.1, .* 0\.6"),
        ({"ome": {"version": "0.6.1", "multiscales": []}}, r"version '0\.6\.1' came"),
        ({"ome": {"multiscales": []}}, "version None came"),
        ({"multiscales": [{"version": "0.4.1", "datasets": []}]}, r"version '0\.4\.1' came"),
        ({"multiscales": [{"datasets": [{"path": "0"}]}]}, "version None came"),
        ({"multiscales": {"0": 1}}, "multiscales is .* a list of objects was expected"),
        ({"multiscales": ["image"]}, "multiscales is .* a list of objects was expected"),
        (_entry(axes=...), "axes is None, a list of 2 to 5 axes was expected"),
        (_entry(axes=["y"]), r"axes is \['y'\], a list of 2 to 5 axes"),
        (_entry(axes=["z", 1, "x"]), "objects with a name were expected"),
        (_entry(datasets=[]), r"datasets is \[\], a list of 1 to 64 levels"),
        (_entry(datasets=["0"] * 65), r"datasets is .*\.\.\., a list of 1 to 64 levels"),
        (_dataset(SCALE, path="../other"), r"path '\.\./other' came, a relative path inside the group"),
        (_dataset(SCALE, path="/etc"), "path '/etc' came"),
        (_dataset(SCALE, path="C:/data"), "path 'C:/data' came"),
        (_dataset(SCALE, path="a\\..\\b"), "path .* came, a relative path"),
        (_dataset(SCALE, path=None), "path None came"),
        (_entry(datasets=["0"]), "path None came"),
        (_dataset({"type": "rotation", "rotation": []}), "transformation 'rotation' came, scale or translation"),
        (_dataset(SCALE, {"type": "affine", "affine": []}), "transformation 'affine' came"),
        (_dataset({"scale": [1, 1, 1]}), "transformation None came"),
        (_dataset({"type": "scale", "path": "scales"}), "scale is None, one number for each axis zyx"),
        (_dataset({"type": "scale", "scale": [1, 1]}), r"scale is \[1, 1\], one number for each axis zyx"),
        (_dataset({"type": "scale", "scale": [1, 1, "2"]}), "scale is .* one number for each axis"),
        (_dataset({"type": "scale", "scale": [1, 1, float("nan")]}), "scale is .* one number for each axis"),
        (_dataset({"type": "scale", "scale": [1, 0, 1]}), r"scale is \[1, 0, 1\], positive numbers"),
        (_entry(coordinateTransformations="none"), "coordinateTransformations is 'none', a list of objects"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedMetadataError, match=message) as caught:
        parse_multiscales(attributes, where="the/group")
    assert "the/group" in caught.value.details[0]
    assert "give the path of the array itself" in caught.value.fix


# Drafts of 0.6: what they say is read where 0.5 could say it too, and refused by name where not.

SYSTEM = {"name": "physical", "axes": [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]}


def _draft(*steps: dict[str, Any], output: Any = "physical", **changes: Any) -> dict[str, Any]:
    ends = [{"input": "0", "output": output, **step} for step in steps]
    entry = {"coordinateSystems": [SYSTEM], "datasets": [{"path": "0", "coordinateTransformations": ends}]}
    return {"ome": {"version": "0.6.dev3", "multiscales": [entry | changes]}}


SEQUENCE = {
    "type": "sequence",
    "transformations": [
        {"type": "scale", "scale": [4, 3, 2]},
        {"type": "sequence", "transformations": [{"type": "translation", "translation": [32, 21, 10]}]},
    ],
}


@pytest.mark.parametrize(
    ("attributes", "scale", "translation"),
    [
        (_draft({"type": "identity"}), (1, 1, 1), (0, 0, 0)),
        (_draft({"type": "scale", "scale": [4, 3, 2]}, output={"name": "physical"}), (4, 3, 2), (0, 0, 0)),
        (_draft({"type": "translation", "translation": [4, 3, 2]}), (1, 1, 1), (4, 3, 2)),
        (_draft(SEQUENCE), (4, 3, 2), (32, 21, 10)),
        (_draft(SEQUENCE, coordinateTransformations=[{"type": "identity"}]), (4, 3, 2), (32, 21, 10)),
    ],
)
def test_a_draft_of_06_is_read_where_05_could_say_it(
    attributes: dict[str, Any], scale: tuple[int, ...], translation: tuple[int, ...]
) -> None:
    (image,) = parse_multiscales(attributes, where="here")
    assert (image.version, image.axes, image.units) == ("0.6.dev3", "zyx", ("micrometer",) * 3)
    assert image.levels == (LevelTransform(path="0", scale=scale, translation=translation),)


@pytest.mark.parametrize("version", ["0.6", "0.6rc1", "0.6.dev12"])
def test_a_scene_of_06_declares_no_image_of_its_own(version: str) -> None:
    assert parse_multiscales({"ome": {"version": version, "scene": {}}}, where="here") == ()


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (_draft({"type": "rotation", "rotation": []}), "transformation 'rotation' came, scale or translation"),
        (_draft({"type": "affine", "affine": []}), "transformation 'affine' came, scale or translation"),
        (_draft({"type": "mapAxis", "mapAxis": [1, 2, 0]}), "transformation 'mapAxis' came"),
        (_draft({"type": "sequence", "transformations": [{"type": "displacements"}]}), "'displacements' came"),
        (_draft({"type": "sequence"}), "coordinateTransformations is None, a list of objects"),
        (_draft({"type": "sequence", "transformations": [SCALE] * 64}), "more than 64 transformations of one array"),
        (_draft({"type": "scale", "path": "scales"}), "scale is None, one number for each axis zyx"),
        (
            _draft(SCALE, coordinateTransformations=[{"type": "affine", "output": {"name": "world"}}]),
            "transformation 'affine' of the image to the coordinate system 'world' came",
        ),
        (_draft(SCALE, output="world"), "transformations to world came, one of the coordinate systems physical was"),
        (_draft(SCALE, coordinateSystems=None), r"one of the coordinate systems \(none\) was expected"),
        (_draft(SCALE, SCALE | {"output": "world"}), "transformations to physical, world came"),
        (_draft(SCALE, datasets=["0"]), r"datasets is \['0'\], a list of objects was expected"),
        (_draft(SCALE, coordinateSystems=[{"name": "physical"}]), "axes is None, a list of 2 to 5 axes"),
    ],
)
def test_a_draft_of_06_that_says_more_is_refused_by_name(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedMetadataError, match=message) as caught:
        parse_multiscales(attributes, where="the/group")
    assert "the/group" in caught.value.details[0]


@pytest.mark.parametrize("names", [["x", "y"], ["z", "y"], ["y", "x", "w"], ["y", "y", "x"], ["c", "t", "y", "x"], []])
def test_axes_outside_the_order_are_refused(names: list[str]) -> None:
    with pytest.raises(UnsupportedAxesError, match="a subset of t, c, z, y, x in this order with y and x") as caught:
        require_axes(names, where="the/group", fix="do this")
    assert caught.value.fix == "do this"


def test_channels_last_say_how_to_turn_them() -> None:
    with pytest.raises(UnsupportedAxesError, match="axes y, x, c came") as caught:
        parse_multiscales(_entry(axes=["y", "x", "c"]), where="here")
    assert "axes as c, y, x (numpy.moveaxis)" in caught.value.fix


def test_an_axis_of_another_type_is_refused() -> None:
    axes = [{"name": "z", "type": "time"}, {"name": "y"}, {"name": "x", "type": "space"}]
    with pytest.raises(UnsupportedAxesError, match="axis z has the type 'time', 'space' was expected"):
        parse_multiscales(_entry(axes=axes), where="here")
