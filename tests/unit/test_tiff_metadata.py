"""OME-XML and ImageJ's words: sizes with their units, and nothing where they are odd."""

from __future__ import annotations

from typing import Any

import pytest

from unet_deploy.runtime._tiff_metadata import TiffSize, imagej_size, ome_sizes

SCHEMA = 'xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"'


def of_pixels(attributes: str, inside: str = "") -> TiffSize:
    (size,) = ome_sizes(f"<OME {SCHEMA}><Image><Pixels {attributes}>{inside}</Pixels></Image></OME>")
    return size


def test_sizes_have_units_and_micrometres_where_none_is_given() -> None:
    size = of_pixels('PhysicalSizeX="0.5" PhysicalSizeY="4" PhysicalSizeYUnit="nm" TimeIncrement="2"')
    assert size.scale == {"x": (0.5, "micrometer"), "y": (4.0, "nanometer"), "t": (2.0, "second")}
    assert size.channel_names is None


@pytest.mark.parametrize(
    ("unit", "name"),
    [("µm", "micrometer"), ("μm", "micrometer"), ("Å", "angstrom"), ("\u212b", "angstrom"), ("mm", "millimeter")],
)
def test_units_by_their_signs(unit: str, name: str) -> None:
    assert of_pixels(f'PhysicalSizeX="3" PhysicalSizeXUnit="{unit}"').scale == {"x": (3.0, name)}


@pytest.mark.parametrize("attributes", ["", 'PhysicalSizeX="wide"', 'PhysicalSizeX="0"', 'PhysicalSizeX="nan"'])
def test_odd_sizes_are_unknown(attributes: str) -> None:
    assert of_pixels(attributes) == TiffSize()
    assert of_pixels(attributes + ' PhysicalSizeZ="1" PhysicalSizeZUnit="pixel"') == TiffSize()


def test_channels_have_names_or_numbers() -> None:
    assert of_pixels("", '<Channel Name="DAPI"/><Channel/>').channel_names == ("DAPI", "1")
    assert of_pixels("", "<Channel/><Channel/>").channel_names is None


def test_every_image_is_returned() -> None:
    image = '<Image><Pixels PhysicalSizeX="{}"/></Image>'
    sizes = ome_sizes(f"<OME>{image.format(1)}{image.format(2)}</OME>")  # of any version of the schema, or none
    assert [size.scale["x"][0] for size in sizes] == [1, 2]


@pytest.mark.parametrize(
    "text", ["no xml", "", '<!DOCTYPE x [<!ENTITY a "b">]><OME><Image><Pixels/></Image></OME>', "<OME/>"]
)
def test_what_is_no_ome_xml_or_could_grow_says_nothing(text: str) -> None:
    assert ome_sizes(text) == ()


@pytest.mark.parametrize(
    ("metadata", "tags", "scale"),
    [
        ({"unit": "micron"}, {"XResolution": (4, 1), "YResolution": (1, 2)}, {"x": 0.25, "y": 2.0}),
        ({"unit": "\\u00B5m", "spacing": 3}, {"XResolution": (1, 1)}, {"x": 1.0, "z": 3.0}),
        ({"unit": "nm", "finterval": 0.5}, {"XResolution": (0, 1)}, {"t": 0.5}),
        ({"unit": "pixel", "spacing": 3}, {"XResolution": (1, 1)}, {}),
        ({}, {"XResolution": 72, "YResolution": None}, {}),
    ],
)
def test_imagej_says_pixels_a_unit(metadata: Any, tags: Any, scale: dict[str, float]) -> None:
    assert {axis: value for axis, (value, _) in imagej_size(metadata, tags).scale.items()} == scale
