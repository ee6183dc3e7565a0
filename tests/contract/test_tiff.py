"""TIFF files: what is read is what tifffile wrote, and no missing page, cut file or unknown codec reads as pixels."""

from __future__ import annotations

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.contract.volumes import make_pixels
from unet_deploy.errors import (
    NotAVolumeError,
    ReadError,
    SeveralImagesError,
    UnboundedMetadataError,
    UnknownNameError,
    UnsupportedAxesError,
    UnsupportedDtypeError,
    UsageError,
)
from unet_deploy.geometry import Interval
from unet_deploy.runtime import list_images, open_volume
from unet_deploy.runtime.volume import Volume, describe_volume

tifffile = pytest.importorskip("tifffile", reason="reads TIFF; comes with the extra 'tiff'")

DTYPES = ("uint8", "uint16", "int16", "float32")
AXES = ("YX", "ZYX", "CYX", "TYX", "ZCYX", "TZCYX")
LAYOUTS: dict[str, dict[str, Any]] = {
    "strips": {"rowsperstrip": 4},
    "whole": {},
    "tiles": {"tile": (16, 16)},
    "deflate": {"tile": (16, 16), "compression": "zlib"},
    "big": {"bigtiff": True, "byteorder": ">"},
}


def five_axes(pixels: npt.NDArray[Any], axes: str) -> npt.NDArray[Any]:
    order = [axes.index(axis) for axis in "TCZYX" if axis in axes]
    sizes = dict(zip(axes, pixels.shape, strict=True))
    return pixels.transpose(order).reshape([sizes.get(axis, 1) for axis in "TCZYX"])


def read_all(volume: Volume, **wanted: Any) -> npt.NDArray[Any]:
    window: dict[str, Any] = {axis: Interval(0, volume.extent(axis)) for axis in "zyx"}
    return volume.read(**(window | wanted))


def write_ome(path: Path, pixels: npt.NDArray[Any], axes: str, **options: Any) -> Path:
    metadata = {
        "axes": axes,
        "Name": "cells",
        "PhysicalSizeX": 0.25,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": 250.0,
        "PhysicalSizeYUnit": "nm",
        "PhysicalSizeZ": 2,  # micrometres, where nothing is said
    }
    options = {"photometric": "minisblack", "metadata": metadata | options.pop("metadata", {})} | options
    tifffile.imwrite(path, pixels, ome=True, **options)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axes", AXES)
def test_what_is_written_is_read(tmp_path: Path, axes: str, layout: str) -> None:
    dtype = DTYPES[(AXES.index(axes) + len(layout)) % len(DTYPES)]
    pixels = make_pixels(axes.lower(), dtype)
    volume = open_volume(write_ome(tmp_path / "a.ome.tif", pixels, axes, **LAYOUTS[layout]))
    whole = five_axes(pixels, axes)
    info = volume.info
    assert info.axes == "".join(sorted(axes.lower(), key="tczyx".index))
    assert (info.dtype, info.name, info.container, info.ome_version) == (dtype, "cells", "tiff", None)
    assert info.codecs == (("adobe_deflate",) if layout == "deflate" else ())
    expected = {"strips": (4, 19), "whole": (21, 19), "tiles": (16, 16), "deflate": (16, 16), "big": (21, 19)}
    assert info.chunks[-2:] == expected[layout]
    assert set(info.chunks[:-2]) <= {1}
    np.testing.assert_array_equal(read_all(volume), whole)
    window = {axis: Interval(min(1, volume.extent(axis) - 1), volume.extent(axis)) for axis in "tzyx"}
    channels = [*range(volume.extent("c"))][::-1]
    expected_window = whole[tuple(window[axis].slice if axis != "c" else slice(None) for axis in "tczyx")][:, channels]
    read = volume.read(c=channels, **window)
    np.testing.assert_array_equal(read, expected_window)
    assert read.flags.c_contiguous
    assert read.dtype.isnative


def test_an_ome_tiff_has_sizes_units_and_channels(tmp_path: Path) -> None:
    names = {"Channel": {"Name": ["DAPI", "GFP", "Cy5"]}, "TimeIncrement": 1.5}
    path = write_ome(tmp_path / "a.ome.tif", make_pixels("tzcyx", "uint8"), "TZCYX", metadata=names)
    info = open_volume(path).info
    assert info.axes == "tczyx"
    assert info.scale == (1.5, 1.0, 2.0, 250.0, 0.25)
    assert info.units == ("second", None, "micrometer", "nanometer", "micrometer")
    assert info.channel_names == ("DAPI", "GFP", "Cy5")
    assert describe_volume(open_volume(path))["container"] == "tiff"


def test_an_imagej_stack_has_sizes(tmp_path: Path) -> None:
    pixels = make_pixels("zcyx", "uint16")
    path = tmp_path / "a.tif"
    metadata = {"axes": "ZCYX", "spacing": 40.0, "unit": "nm"}
    tifffile.imwrite(path, pixels, imagej=True, metadata=metadata, resolution=(0.25, 0.125))
    volume = open_volume(path)
    assert (volume.info.axes, volume.info.scale) == ("czyx", (1.0, 40.0, 8.0, 4.0))
    assert volume.info.units == (None, "nanometer", "nanometer", "nanometer")
    np.testing.assert_array_equal(read_all(volume)[0], pixels.transpose(1, 0, 2, 3))


def test_a_plain_stack_is_z_unless_said_otherwise(tmp_path: Path) -> None:
    pixels = make_pixels("zyx", "uint8")
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, pixels, photometric="minisblack", metadata=None)
    info = open_volume(path).info
    assert (info.axes, info.shape, info.scale, info.units, info.name) == ("zyx", (5, 21, 19), None, None, "stack")
    volume = open_volume(path, axes="tyx")
    assert volume.info.axes == "tyx"
    np.testing.assert_array_equal(read_all(pickle.loads(pickle.dumps(volume)))[:, 0, 0], pixels)
    for axes in ("yx", "wyx"):
        with pytest.raises(UnsupportedAxesError) as caught:
            open_volume(path, axes=axes)
        caught.match("2 axes yx came for an image of 3 dimensions|axes w, y, x came, a subset of")
        assert caught.value.fix == "say what they are with --axes"


@pytest.mark.parametrize("planarconfig", ["contig", "separate"])
def test_colours_are_channels(tmp_path: Path, planarconfig: str) -> None:
    pixels = make_pixels("cyx", "uint8")
    path = tmp_path / "rgb.tif"
    data = pixels if planarconfig == "separate" else np.ascontiguousarray(pixels.transpose(1, 2, 0))
    tifffile.imwrite(path, data, photometric="rgb", planarconfig=planarconfig)
    volume = open_volume(path)
    assert (volume.info.axes, volume.info.shape) == ("cyx", (3, 21, 19))
    np.testing.assert_array_equal(read_all(volume)[0, :, 0], pixels)
    np.testing.assert_array_equal(read_all(volume, c=[2, 0])[0, :, 0], pixels[[2, 0]])


def test_axes_may_not_contradict_the_file(tmp_path: Path) -> None:
    path = write_ome(tmp_path / "a.ome.tif", make_pixels("zyx", "uint8"), "ZYX")
    assert open_volume(path, axes="zyx").info.axes == "zyx"
    with pytest.raises(UsageError, match="--axes tyx came, but the TIFF's metadata says zyx"):
        open_volume(path, axes="tyx")


def test_axes_that_cannot_be_placed_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.ones((2, 3, 21, 19), np.uint8), photometric="minisblack", metadata={"axes": "HQYX"})
    with pytest.raises(UnsupportedAxesError, match="tifffile says HQYX"):
        open_volume(path)
    assert open_volume(path, axes="tzyx").info.axes == "tzyx"


def test_a_pyramid_has_levels(tmp_path: Path) -> None:
    pixels = make_pixels("zyx", "uint8")
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        metadata = {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        writer.write(pixels, subifds=1, metadata=metadata, photometric="minisblack")
        writer.write(pixels[:, :20:2, :18:2], subfiletype=1, photometric="minisblack")
    volume, coarse = open_volume(path), open_volume(path, level=1)
    assert [level.shape for level in volume.info.levels] == [(5, 21, 19), (5, 10, 9)]
    assert coarse.info.scale == pytest.approx((1.0, 0.5 * 21 / 10, 0.5 * 19 / 9))
    np.testing.assert_array_equal(read_all(coarse)[0, 0], pixels[:, :20:2, :18:2])
    np.testing.assert_array_equal(read_all(pickle.loads(pickle.dumps(coarse))), read_all(coarse))
    with pytest.raises(UsageError, match="level 2 came, levels 0 to 1 were expected") as caught:
        open_volume(path, level=2)
    assert caught.value.fix == "--level 1"


def test_several_images_are_chosen_by_number_or_name(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        for value, name in enumerate(("left", "right")):
            size = {"PhysicalSizeX": value + 1.0, "PhysicalSizeY": value + 1.0}
            writer.write(np.full((21, 19 + value), value, np.uint8), metadata={"axes": "YX", "Name": name} | size)
    assert [(entry.name, entry.title, entry.kind) for entry in list_images(path)] == [
        ("0", "left", "series"),
        ("1", "right", "series"),
    ]
    for image in ("1", "right"):
        volume = open_volume(path, image=image)
        assert (volume.info.shape, volume.info.scale, volume.info.series) == ((21, 20), (2.0, 2.0), 1)
        assert (read_all(pickle.loads(pickle.dumps(volume))) == 1).all()
    with pytest.raises(SeveralImagesError, match=r"found 2 images:\n  0 \(left\)\n  1 \(right\)") as caught:
        open_volume(path)
    assert caught.value.fix == "name one: --image 0 (in Python: image='0')"
    with pytest.raises(UnknownNameError, match="holds no image called 'righ'"):
        open_volume(path, image="righ")


def test_one_image_needs_no_name(tmp_path: Path) -> None:
    path = write_ome(tmp_path / "a.ome.tif", make_pixels("yx", "uint8"), "YX")
    (entry,) = list_images(path)
    assert (entry.name, entry.title, entry.kind) == ("", "cells", "image")
    for name in ("", "cells"):
        assert open_volume(path, image=name).info.series == 0


def test_data_types_are_those_asked_for(tmp_path: Path) -> None:
    path = write_ome(tmp_path / "a.ome.tif", make_pixels("yx", "int32"), "YX")
    with pytest.raises(UnsupportedDtypeError, match="data type 'int32' came, one of uint8, uint16"):
        open_volume(path)
    volume = open_volume(path, dtypes=("int32",))
    assert pickle.loads(pickle.dumps(volume)).info == volume.info


def test_strips_beyond_memory_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, bigtiff=True) as writer:  # sparse: nothing is written but where it would stand
        writer.write(shape=(70_000, 70_000), dtype="uint8", data=None, photometric="minisblack")
    with pytest.raises(UnboundedMetadataError, match="strips or tiles of 4,900,000,000 bytes came, at most"):
        open_volume(path)


# Files that are not whole.


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_cut_anywhere_never_reads_as_pixels(tmp_path: Path, layout: str) -> None:
    pixels = make_pixels("zyx", "uint16")
    path = write_ome(tmp_path / "a.ome.tif", pixels, "ZYX", **LAYOUTS[layout])
    whole = path.read_bytes()
    ends = 0
    for keep in (*range(9, len(whole), len(whole) // 23), len(whole) - 500, len(whole) - 1):
        path.write_bytes(whole[:keep])
        try:
            read = read_all(open_volume(path))
        except (NotAVolumeError, ReadError, UnsupportedAxesError) as error:
            assert error.fix  # noqa: PT017  # which of them depends on where it was cut
            ends += 1
            continue
        np.testing.assert_array_equal(read[0, 0], pixels)  # only what nobody needs was cut off
    assert ends >= 20


def test_a_file_without_its_page_or_other_file_is_refused(tmp_path: Path) -> None:
    pixels = make_pixels("zyx", "uint8")
    names = [tmp_path / f"z{z}.ome.tif" for z in range(5)]
    blocks = "".join(
        f'<TiffData FirstZ="{z}" IFD="0" PlaneCount="1"><UUID FileName="{name.name}">urn:uuid:{z}</UUID></TiffData>'
        for z, name in enumerate(names)
    )
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:0">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="19" SizeY="21" '
        f'SizeZ="5" SizeC="1" SizeT="1"><Channel ID="Channel:0" SamplesPerPixel="1"/>{blocks}</Pixels></Image></OME>'
    )
    for z, name in enumerate(names):
        tifffile.imwrite(name, pixels[z], description=xml if z == 0 else None, metadata=None, photometric="minisblack")
    np.testing.assert_array_equal(read_all(open_volume(names[0]))[0, 0], pixels)
    names[3].unlink()
    tifffile.imwrite(names[0], pixels[0], description=xml, metadata=None, photometric="minisblack")  # parsed anew
    with pytest.raises(NotAVolumeError, match=r"z0\.ome\.tif is no TIFF that can be read whole") as caught:
        open_volume(names[0])
    assert caught.value.details[0]
    assert caught.value.fix == "copy the file again from its source, with all files of its series"


def edit_counts(path: Path, page: int, counts: tuple[int, ...]) -> None:
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[page].tags["TileByteCounts"].overwrite(counts)


def test_a_tile_that_could_inflate_without_bound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    pixels = make_pixels("zyx", "uint8")
    tifffile.imwrite(path, pixels, photometric="minisblack", metadata=None, tile=(16, 16), compression="zlib")
    with path.open("ab") as stream:
        stream.truncate(2**20)
    counts = (100, 100, 100, 50_000)
    edit_counts(path, 3, counts)
    with pytest.raises(UnboundedMetadataError, match="a strip or tile of 50,000 bytes came for 256 bytes of pixels"):
        open_volume(path)


def test_absent_tiles_read_as_0_and_are_said_and_a_short_list_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.tif"
    pixels = make_pixels("zyx", "uint8")
    tifffile.imwrite(path, pixels, photometric="minisblack", metadata=None, tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(path) as file:
        counts = file.pages[3].databytecounts
    edit_counts(path, 3, (0, *counts[1:]))
    read = read_all(open_volume(path))[0, 0]
    assert not read[3, :16, :16].any()
    np.testing.assert_array_equal(read[3, 16:], pixels[3, 16:])
    assert "a.tif: 1 strips or tiles are not there, and read as 0" in caplog.text
    edit_counts(path, 3, counts[:3])
    with pytest.raises(NotAVolumeError, match="page 3 has 3 strips or tiles, 4 were expected"):
        open_volume(path)


def test_no_tiff_after_all(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0")
    for look in (open_volume, list_images):
        with pytest.raises(NotAVolumeError, match=r"a\.tif is no TIFF that can be read whole"):
            look(path)  # type: ignore[operator]
    path.write_bytes(b"II*\0\0\0\0\0")
    with pytest.raises(NotAVolumeError, match="is no TIFF that can be read whole"):
        open_volume(path)


def test_a_damaged_strip_is_an_error_with_its_window(tmp_path: Path) -> None:
    path = write_ome(tmp_path / "a.ome.tif", make_pixels("zyx", "uint8"), "ZYX", compression="zlib", rowsperstrip=4)
    with tifffile.TiffFile(path) as file:
        offset = file.pages[2].dataoffsets[1]
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"no zlib")
    volume = open_volume(path)
    assert read_all(volume, z=Interval(0, 2)).any()
    with pytest.raises(ReadError, match="the window z 2:3, y 0:21, x 0:19 cannot be read") as caught:
        read_all(volume, z=Interval(2, 3))
    assert caught.value.details[0] == f"in {path}"


def test_a_file_that_vanished_or_changed_is_an_error(tmp_path: Path) -> None:
    path = write_ome(tmp_path / "a.ome.tif", make_pixels("zyx", "uint8"), "ZYX")
    volume = open_volume(path)
    payload = pickle.dumps(volume)
    path.rename(tmp_path / "elsewhere")  # nothing holds it open
    with pytest.raises(ReadError, match=r"No such file|is no longer there"):
        read_all(volume)
    with pytest.raises(ReadError, match="the TIFF cannot be read"):
        pickle.loads(payload)
    write_ome(path, make_pixels("yx", "uint8"), "YX")
    with pytest.raises((ReadError, UsageError), match=r"was opened|the TIFF's metadata says yx"):
        pickle.loads(payload)
    write_ome(path, make_pixels("zyx", "uint8")[:3], "ZYX")
    with pytest.raises(ReadError, match="the volume is not what it was when it was opened"):
        pickle.loads(payload)


# Workers.


def test_threads_read_one_file_and_nothing_holds_it(tmp_path: Path) -> None:
    pixels = make_pixels("zyx", "uint16")
    path = write_ome(tmp_path / "a.ome.tif", pixels, "ZYX", **LAYOUTS["deflate"])
    volumes = [open_volume(path), pickle.loads(pickle.dumps(open_volume(path)))]  # parsed once, and yet two

    def read(number: int) -> npt.NDArray[Any]:
        z = number % 5
        return read_all(volumes[number % 2], z=Interval(z, z + 1))[0, 0, 0]

    with ThreadPoolExecutor(8) as pool:
        planes = list(pool.map(read, range(200)))
    np.testing.assert_array_equal(planes, np.concatenate([pixels] * 40))


def test_a_volume_pickles_small(tmp_path: Path) -> None:
    volume = open_volume(write_ome(tmp_path / "a.ome.tif", make_pixels("tzcyx", "uint8"), "TZCYX"))
    payload = pickle.dumps(volume)
    assert len(payload) < 2000
    again = pickle.loads(payload)
    assert again.info == volume.info
    np.testing.assert_array_equal(read_all(again), read_all(volume))


# What is not installed.


def run_without(module: str, path: Path) -> str:
    """Open a file in a Python that lacks a module, and return the error."""
    code = (
        "import sys\n"
        f"sys.modules[{module!r}] = None\n"
        "from unet_deploy.errors import MissingDependencyError\n"
        "from unet_deploy.runtime import open_volume\n"
        f"try: open_volume({str(path)!r})\n"
        "except MissingDependencyError as error: print(error)\n"
    )
    return subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True).stdout


def test_without_tifffile_the_extra_is_named(tmp_path: Path) -> None:
    path = write_ome(tmp_path / "a.ome.tif", make_pixels("yx", "uint8"), "YX")
    said = run_without("tifffile", path)
    assert said.startswith("reading TIFF needs the package 'tifffile', which is not installed")
    assert "pip install 'unet-deploy[tiff]'" in said


LZW = (  # 8 × 8 pixels by tifffile 2026.3.3 with imagecodecs, which need not be here
    "49492a00080000000c000001040001000000080000000101040001000000080000000201030001000000080000000301030001000000"
    "050000000601030001000000010000001101040001000000b00000001501030001000000010000001601040001000000080000001701"
    "040001000000230000001a010500010000009e0000001b01050001000000a60000002801030001000000010000000000000001000000"
    "0100000001000000010000000000800020503818060d078380a150b8580e1d0f878122513898162d178b81a351b8d81e02"
)


def test_without_imagecodecs_lzw_names_the_extra(tmp_path: Path) -> None:
    path = tmp_path / "lzw.tif"
    path.write_bytes(bytes.fromhex(LZW))
    said = run_without("imagecodecs", path)
    assert said.startswith("reading a TIFF compressed with LZW needs the package 'imagecodecs'")
    pytest.importorskip("imagecodecs", reason="decodes LZW; comes with the extra 'tiff'")
    np.testing.assert_array_equal(read_all(open_volume(path))[0, 0, 0], np.arange(64).reshape(8, 8) // 9)
