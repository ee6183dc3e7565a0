"""One suite that every kind of store passes: what is read is what was written, and nothing broken reads as pixels."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import numpy.typing as npt
import ome_zarr_models.v04
import ome_zarr_models.v05
import pytest
import zarr

from tests.contract.volumes import (
    AXES,
    DTYPES,
    KINDS,
    StoreKind,
    chunk_files,
    edit_document,
    make_pixels,
    write_array,
    write_group,
    write_image,
)
from unet_deploy.errors import (
    NotAVolumeError,
    ReadError,
    SeveralImagesError,
    UnboundedMetadataError,
    UnetDeployError,
    UnsupportedAxesError,
    UnsupportedCodecError,
    UnsupportedDtypeError,
    UnsupportedMetadataError,
    UsageError,
    VolumeNotFoundError,
)
from unet_deploy.geometry import Interval
from unet_deploy.runtime._chunk_guard import DamagedChunkError, check_chunk
from unet_deploy.runtime.ome import OmeVersion
from unet_deploy.runtime.volume import Volume, describe_volume, open_volume

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
KIND = {kind.name: kind for kind in KINDS}
# Every kind with two and with five axes; the axes between and the data types take turns.
CASES = [
    (kind, axes, DTYPES[(index + turn) % len(DTYPES)])
    for index, kind in enumerate(KINDS)
    for turn, axes in enumerate(("yx", AXES[1 + index % (len(AXES) - 2)], "tczyx"))
]


def read_all(volume: Volume, **wanted: Any) -> npt.NDArray[Any]:
    window: dict[str, Any] = {axis: Interval(0, volume.extent(axis)) for axis in "zyx"}
    return volume.read(**(window | wanted))


def five_axes(pixels: npt.NDArray[Any], axes: str) -> npt.NDArray[Any]:
    sizes = dict(zip(axes, pixels.shape, strict=True))
    return pixels.reshape([sizes.get(axis, 1) for axis in "tczyx"])


def write_plain(directory: Path, *, kind: str = "v3-zstd", axes: str = "zyx", **options: Any) -> Path:
    return write_array(directory, make_pixels(axes, "uint8"), axes=axes, kind=KIND[kind], **options)


# What is read is what was written.


@pytest.mark.parametrize(("kind", "axes", "dtype"), CASES, ids=[f"{k.name}-{a}-{d}" for k, a, d in CASES])
def test_random_windows_equal_the_slice(tmp_path: Path, kind: StoreKind, axes: str, dtype: str) -> None:
    pixels = make_pixels(axes, dtype)
    volume = open_volume(write_array(tmp_path / "array", pixels, axes=axes, kind=kind), axes=axes)
    whole = five_axes(pixels, axes)
    assert volume.info.dtype == dtype
    np.testing.assert_array_equal(read_all(volume), whole)
    generator = np.random.default_rng(1)
    for _ in range(3):
        window = {}
        for place, axis in enumerate("tczyx"):
            start, stop = sorted(generator.choice(whole.shape[place] + 1, 2, replace=False).tolist())
            window[axis] = Interval(start, stop)
        channels = generator.permutation(range(window["c"].start, window["c"].stop)).tolist()
        read = volume.read(t=window["t"], c=channels, z=window["z"], y=window["y"], x=window["x"])
        expected = whole[tuple(window[axis].slice if axis != "c" else slice(None) for axis in "tczyx")][:, channels]
        np.testing.assert_array_equal(read, expected)
        assert read.dtype == np.dtype(dtype)
        assert read.dtype.isnative
        assert read.flags.c_contiguous
        assert read.flags.writeable


@pytest.mark.parametrize("kind", ["v2-blosc", "v2-fortran", "v3-zstd", "v3-sharded"])
@pytest.mark.parametrize(
    "chunks", [(1, 21, 19), (5, 3, 4), (5, 21, 19), (1, 1, 19), (64, 64, 64)], ids=lambda c: "x".join(map(str, c))
)
def test_chunks_thick_thin_and_larger_than_the_array(tmp_path: Path, kind: str, chunks: tuple[int, ...]) -> None:
    pixels = make_pixels("zyx", "uint16")
    volume = open_volume(write_array(tmp_path / "array", pixels, axes="zyx", kind=KIND[kind], chunks=chunks))
    assert volume.info.chunks == chunks
    np.testing.assert_array_equal(read_all(volume)[0, 0], pixels)
    window = {"z": Interval(2, 4), "y": Interval(7, 21), "x": Interval(5, 6)}
    np.testing.assert_array_equal(read_all(volume, **window)[0, 0], pixels[2:4, 7:21, 5:6])


@pytest.mark.parametrize("kind", ["v3-transposed", "v3-sharded-transposed-big"])
def test_an_order_by_its_letter_is_read(tmp_path: Path, kind: str) -> None:
    # Zarrita and other early writers of v3 say "F" where the standard came to say [2, 1, 0].
    pixels = make_pixels("zyx", "uint16")
    path = write_array(tmp_path / "array", pixels, axes="zyx", kind=KIND[kind])
    text = (path / "zarr.json").read_text()
    lettered, count = re.subn(r'"order": \[[\s\d,]+\]', '"order": "F"', text)
    assert count == 1
    (path / "zarr.json").write_text(lettered)
    np.testing.assert_array_equal(read_all(open_volume(path))[0, 0], pixels)
    (path / "zarr.json").write_text(lettered.replace('"F"', '"Z"'))
    with pytest.raises(UnsupportedMetadataError, match=r"zarr cannot open the array: .*Z"):
        open_volume(path)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_absent_chunks_read_as_the_fill_value(tmp_path: Path, kind: StoreKind) -> None:
    pixels = np.full((5, 21, 19), 7, np.int16)
    pixels[2:4, 8:16, 7:14] = make_pixels("zyx", "int16")[2:4, 8:16, 7:14]
    volume = open_volume(write_array(tmp_path / "array", pixels, axes="zyx", kind=kind, fill_value=7))
    assert len(chunk_files(tmp_path / "array")) == 1  # not vacuous: the others are absent
    assert volume.info.fill_value == 7
    np.testing.assert_array_equal(read_all(volume)[0, 0], pixels)


def test_an_undefined_fill_value_reads_as_zero(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "array", kind="v2-zstd")
    edit_document(path / ".zarray", fill_value=None, filters=[])
    for file in chunk_files(path):
        file.unlink()
    volume = open_volume(path)
    assert volume.info.fill_value == 0
    assert not read_all(volume).any()


@pytest.mark.parametrize("kind", ["v2-blosc", "v2-big-endian", "v3-zstd", "v3-sharded"])
@pytest.mark.parametrize("dtype", ["bool", "int8", "int32", "int64", "uint32", "uint64", "float64"])
def test_labels_and_scores_are_read_where_their_dtype_is_asked_for(tmp_path: Path, kind: str, dtype: str) -> None:
    pixels = make_pixels("zyx", "uint8") > 127 if dtype == "bool" else make_pixels("zyx", dtype)
    path = write_array(tmp_path / "array", pixels, axes="zyx", kind=KIND[kind])
    with pytest.raises(UnsupportedDtypeError, match="one of uint8, uint16, int16, float16, float32 was expected"):
        open_volume(path)
    with pytest.raises(UnsupportedDtypeError, match="one of uint8 was expected"):
        open_volume(path, dtypes=("uint8",))
    volume = open_volume(path, dtypes=(dtype,))
    read = read_all(volume)
    assert (volume.info.dtype, read.dtype) == (dtype, np.dtype(dtype))
    np.testing.assert_array_equal(read, five_axes(pixels, "zyx"))
    np.testing.assert_array_equal(read_all(pickle.loads(pickle.dumps(volume))), read)


def test_channels_come_in_the_order_asked_for_and_may_repeat(tmp_path: Path) -> None:
    pixels = make_pixels("czyx", "uint16")
    volume = open_volume(write_array(tmp_path / "array", pixels, axes="czyx", kind=KIND["v3-sharded"]), axes="czyx")
    for channels in ([2], [2, 0], [1, 1], (0, 2)):
        np.testing.assert_array_equal(read_all(volume, c=channels)[0], pixels[list(channels)])


def test_threads_read_one_volume(tmp_path: Path) -> None:
    pixels = make_pixels("zyx", "uint16")
    volume = open_volume(write_array(tmp_path / "array", pixels, axes="zyx", kind=KIND["v3-sharded"]))
    with ThreadPoolExecutor(4) as pool:
        planes = list(pool.map(lambda z: read_all(volume, z=Interval(z, z + 1))[0, 0, 0], [*range(5)] * 4))
    np.testing.assert_array_equal(planes, np.concatenate([pixels] * 4))


def test_the_info_says_how_it_is_stored(tmp_path: Path) -> None:
    v2 = open_volume(write_plain(tmp_path / "v2.zarr", kind="v2-blosc")).info
    assert (v2.zarr_format, v2.codecs, v2.chunks, v2.shards) == (2, ("blosc",), (2, 8, 7), None)
    assert (v2.name, v2.ome_version, v2.scale, v2.units, v2.array_path) == ("v2", None, None, None, "")
    v3 = open_volume(write_plain(tmp_path / "v3.ome.zarr", kind="v3-sharded")).info
    assert (v3.zarr_format, v3.chunks, v3.shards) == (3, (2, 8, 7), (4, 16, 14))
    assert v3.codecs == ("sharding_indexed", "bytes", "zstd")
    assert v3.name == "v3"


def test_extent_is_one_along_a_missing_axis(tmp_path: Path) -> None:
    volume = open_volume(write_plain(tmp_path / "array"))
    assert [volume.extent(axis) for axis in "tczyx"] == [1, 1, 5, 21, 19]
    assert repr(volume).endswith("axes='zyx', shape=(5, 21, 19), dtype='uint8')")


@pytest.mark.parametrize(
    "wanted", [{"x": Interval(0, 20)}, {"y": Interval(-1, 3)}, {"t": Interval(0, 2)}, {"c": [1]}, {"c": []}]
)
def test_a_window_must_lie_inside(tmp_path: Path, wanted: dict[str, Any]) -> None:
    volume = open_volume(write_plain(tmp_path / "array"))
    with pytest.raises(AssertionError):
        read_all(volume, **wanted)


# OME-Zarr images.


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", AXES)
def test_an_image_is_read_with_its_scale(tmp_path: Path, version: OmeVersion, axes: str) -> None:
    pixels = make_pixels(axes, "uint8")
    scale = tuple(range(2, 2 + len(axes)))
    path = write_image(tmp_path / "image.ome.zarr", pixels, axes=axes, version=version, scale=scale)
    volume, coarse = open_volume(path), open_volume(path, level=1)
    info = volume.info
    assert (info.ome_version, info.axes, info.array_path, info.name) == (version, axes, "0", "test")
    assert info.scale == scale
    assert [level.path for level in info.levels] == ["0", "1"]
    assert info.levels[1] == coarse.info.levels[1]
    assert coarse.info.shape[-2:] == (11, 10)
    assert coarse.info.scale == info.levels[1].scale
    np.testing.assert_array_equal(read_all(volume), five_axes(pixels, axes))
    np.testing.assert_array_equal(read_all(coarse), five_axes(pixels[..., ::2, ::2], axes))


def test_images_of_these_tests_are_valid_ome_zarr(tmp_path: Path) -> None:
    pixels = make_pixels("tczyx", "uint8")
    for version, models in (("0.4", ome_zarr_models.v04), ("0.5", ome_zarr_models.v05)):
        path = write_image(tmp_path / version, pixels, axes="tczyx", version=version)  # type: ignore[arg-type]
        group = zarr.open_group(path, mode="r")
        models.Image.from_zarr(group)  # type: ignore[attr-defined]


def test_channel_names_are_kept_where_they_fit(tmp_path: Path) -> None:
    pixels = make_pixels("cyx", "uint8")
    fits = write_image(tmp_path / "a", pixels, axes="cyx", version="0.5", channel_names=("red", "green", "blue"))
    odd = write_image(tmp_path / "b", pixels, axes="cyx", version="0.4", channel_names=("red",))
    assert open_volume(fits).info.channel_names == ("red", "green", "blue")
    assert open_volume(odd).info.channel_names is None


def test_an_absent_level_is_none_until_it_is_chosen(tmp_path: Path) -> None:
    path = write_image(tmp_path / "image", make_pixels("yx", "uint8"), axes="yx", version="0.5")
    shutil.rmtree(path / "1")
    assert open_volume(path).info.levels[1].shape is None
    with pytest.raises(NotAVolumeError, match="level 1 of the image has no array at '1'"):
        open_volume(path, level=1)


def test_a_broken_level_is_none_until_it_is_chosen(tmp_path: Path) -> None:
    path = write_image(tmp_path / "image", make_pixels("yx", "uint8"), axes="yx", version="0.4")
    edit_document(path / "1" / ".zarray", dtype="<c8")
    assert open_volume(path).info.levels[1].shape is None
    with pytest.raises(UnsupportedDtypeError, match="data type '<c8' came"):
        open_volume(path, level=1)


def test_a_level_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = write_image(tmp_path / "image", make_pixels("yx", "uint8"), axes="yx", version="0.4")
    with pytest.raises(UsageError, match="level 2 came, levels 0 to 1 were expected") as caught:
        open_volume(path, level=2)
    assert caught.value.fix == "--level 1"
    with pytest.raises(UsageError, match=r"level 1 came, but .* is an array, which has only level 0"):
        open_volume(path / "0", level=1)


def test_axes_may_not_contradict_the_image(tmp_path: Path) -> None:
    path = write_image(tmp_path / "image", make_pixels("tyx", "uint8"), axes="tyx", version="0.4")
    assert open_volume(path, axes="tyx").info.axes == "tyx"
    with pytest.raises(UsageError, match="--axes zyx came, but the OME-Zarr metadata says tyx") as caught:
        open_volume(path, axes="zyx")
    assert caught.value.fix.endswith(str(path / "0"))


def test_an_image_whose_array_has_other_axes_is_refused(tmp_path: Path) -> None:
    path = write_image(tmp_path / "image", make_pixels("zyx", "uint8"), axes="zyx", version="0.4")
    shutil.rmtree(path / "0")
    write_plain(path / "0", kind="v2-zstd", axes="yx")
    with pytest.raises(UnsupportedAxesError, match="the array has 2 axes, the image's metadata says zyx"):
        open_volume(path)


# Bare arrays and their axes.


@pytest.mark.parametrize("axes", ["yx", "zyx", "tczyx"])
def test_axes_without_names_where_they_are_certain(tmp_path: Path, axes: str) -> None:
    assert open_volume(write_plain(tmp_path / "array", axes=axes)).info.axes == axes


@pytest.mark.parametrize("kind", ["v2-zstd", "v3-zstd"])
@pytest.mark.parametrize("axes", ["tyx", "czyx"])
def test_an_arrays_own_names_are_its_axes(tmp_path: Path, kind: str, axes: str) -> None:
    path = write_plain(tmp_path / "array", kind=kind, axes=axes, names=tuple(axes))
    assert open_volume(path).info.axes == axes


def test_a_level_given_by_its_own_path_has_the_axes_of_its_image(tmp_path: Path) -> None:
    # 0.4 arrays have no names: read as zyx, its three channels would be three slices.
    path = write_image(tmp_path / "image", make_pixels("cyx", "uint8"), axes="cyx", version="0.4")
    info = open_volume(path / "1").info
    assert (info.axes, info.ome_version, info.scale, info.array_path) == ("cyx", None, None, "")
    write_group(path, {"ome": {"version": "0.7"}}, zarr_format=2)
    assert open_volume(path / "1").info.axes == "zyx"


def test_four_axes_without_names_are_ambiguous(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "array", axes="czyx")
    with pytest.raises(
        UnsupportedAxesError, match="4 axes without names came; they could be czyx, tzyx or tcyx"
    ) as caught:
        open_volume(path)
    assert caught.value.fix == "--axes czyx, --axes tzyx or --axes tcyx"
    assert open_volume(path, axes="tzyx").info.axes == "tzyx"


def test_what_looks_like_a_colour_picture_is_not_taken_for_slices(tmp_path: Path) -> None:
    path = write_array(tmp_path / "rgb", np.ones((21, 19, 3), np.uint8), axes="zyx", kind=KIND["v3-zstd"])
    with pytest.raises(
        UnsupportedAxesError, match=r"shape \[21, 19, 3\] without axis names .* y, x, channel"
    ) as caught:
        open_volume(path)
    assert "numpy.moveaxis" in caught.value.fix
    assert open_volume(path, axes="zyx").info.axes == "zyx"


def test_names_that_are_no_axes_are_refused_and_can_be_overridden(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "array", names=("plane", "row", "column"))
    with pytest.raises(UnsupportedAxesError, match="axes plane, row, column came") as caught:
        open_volume(path)
    assert caught.value.fix == "say what they are: --axes zyx"
    assert open_volume(path, axes="zyx").info.axes == "zyx"
    edit_document(path / "zarr.json", dimension_names=[None, "y", "x"])
    with pytest.raises(UnsupportedAxesError, match=r"axes \(unnamed\), y, x came"):
        open_volume(path)
    edit_document(path / "zarr.json", dimension_names=[None, None, None])
    assert open_volume(path).info.axes == "zyx"


def test_axes_given_must_fit_the_array(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "array")
    with pytest.raises(UnsupportedAxesError, match="2 axes yx came for an array of 3 dimensions") as caught:
        open_volume(path, axes="yx")
    assert caught.value.fix == "--axes zyx"
    with pytest.raises(UnsupportedAxesError, match="axes y, x, z came, a subset of") as caught:
        open_volume(path, axes="yxz")
    assert caught.value.details == ("in --axes",)


# Paths that mean no volume.


def test_nothing_at_the_path(tmp_path: Path) -> None:
    write_plain(tmp_path / "volume.zarr")
    with pytest.raises(VolumeNotFoundError, match="there is nothing at") as caught:
        open_volume(tmp_path / "volumes.zarr")
    assert caught.value.fix == f"did you mean {tmp_path / 'volume.zarr'}?"
    with pytest.raises(VolumeNotFoundError, match="is no directory, or empty\n  fix: check the path"):
        open_volume(tmp_path / "a" / "b")


def test_a_file_is_no_volume(tmp_path: Path) -> None:
    file = tmp_path / "volume.zarr.zip"
    file.write_bytes(b"PK\3\4")
    with pytest.raises(NotAVolumeError, match=r"volume\.zarr\.zip is a file, the directory of a Zarr array") as caught:
        open_volume(file)
    assert "unpack the ZIP file" in caught.value.fix


def test_a_directory_without_zarr(tmp_path: Path) -> None:
    with pytest.raises(NotAVolumeError, match=r"is a directory without Zarr metadata(.|\n)*it holds no array"):
        open_volume(tmp_path)


def test_a_plain_group_lists_its_arrays(tmp_path: Path) -> None:
    group = write_group(tmp_path / "group", {}, zarr_format=3)
    for index in range(10):
        write_plain(group / "raw" / str(index), axes="yx")
    with pytest.raises(NotAVolumeError, match="a Zarr group without an OME-Zarr image") as caught:
        open_volume(group)
    assert caught.value.details == ("arrays found inside:", *(f"raw/{index}" for index in range(8)), "and 2 more")
    assert caught.value.fix == f"give the path of one: unet-deploy segment {group / 'raw' / '0'}"


def test_a_bioformats2raw_series_must_be_chosen_unless_there_is_one(tmp_path: Path) -> None:
    store = write_group(tmp_path / "store", {"bioformats2raw.layout": 3}, zarr_format=2)
    pixels = make_pixels("tczyx", "uint8")
    write_image(store / "0", pixels, axes="tczyx", version="0.4")
    assert open_volume(store).info.path == str(store / "0")
    write_image(store / "1", pixels, axes="tczyx", version="0.4")
    with pytest.raises(SeveralImagesError, match="holds several images, one was expected") as caught:
        open_volume(store)
    assert caught.value.details == ("found 2 images:", "0 (test)", "1 (test)")
    assert caught.value.fix.startswith("name one: --image 0, or, where a command has no --image, give its path: ")
    assert caught.value.fix.endswith(f": {store / '0'} (in Python: image='0')")


def test_a_plates_images_are_listed(tmp_path: Path) -> None:
    plate = write_group(tmp_path / "plate", {"ome": {"version": "0.5", "plate": {}}}, zarr_format=3)
    for well in ("A/1/0", "A/2/0"):  # the row's group is left out, as some writers do
        write_image(plate / well, make_pixels("yx", "uint8"), axes="yx", version="0.5")
    with pytest.raises(SeveralImagesError, match="found 2 images:\n  A/1/0\n  A/2/0"):
        open_volume(plate)
    with pytest.raises(NotAVolumeError, match="images found inside:\n  0\n  fix: give the path of one"):
        open_volume(plate / "A" / "1")  # nothing says that it is a well


def test_several_multiscales_in_one_group_must_be_chosen_by_array(tmp_path: Path) -> None:
    path = write_image(tmp_path / "image", make_pixels("yx", "uint8"), axes="yx", version="0.4")
    attributes = json.loads((path / ".zattrs").read_text())
    edit_document(path / ".zattrs", multiscales=attributes["multiscales"] * 2)
    with pytest.raises(SeveralImagesError, match="the group declares 2 images") as caught:
        open_volume(path)
    assert caught.value.fix.endswith(f"give its path: {path / '0'} (in Python: image='0')")


# Metadata that is refused before zarr sees it.

SHARDING = {
    "name": "sharding_indexed",
    "configuration": {
        "chunk_shape": [1, 8, 7],
        "codecs": [{"name": "bytes"}],
        "index_codecs": [{"name": "bytes"}, {"name": "crc32c"}],
    },
}


def _sharding(**changes: Any) -> dict[str, Any]:
    return {"codecs": [SHARDING | {"configuration": SHARDING["configuration"] | changes}]}  # type: ignore[operator]


def _grid(*sizes: Any) -> dict[str, Any]:
    return {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(sizes)}}}


@pytest.mark.parametrize(
    ("kind", "changes", "error", "message"),
    [
        ("v2-zstd", {"dtype": "|b1"}, UnsupportedDtypeError, r"data type '\|b1' came, one of uint8, .* float32 was"),
        ("v2-zstd", {"dtype": "|O"}, UnsupportedDtypeError, r"data type '\|O' came"),
        ("v2-zstd", {"dtype": "<u4"}, UnsupportedDtypeError, "whole numbers up to 65,535 fit uint16"),
        ("v2-zstd", {"dtype": [["a", "<u1"]]}, UnsupportedDtypeError, r"data type \[\['a', '<u1'\]\] came"),
        ("v3-zstd", {"data_type": "complex64"}, UnsupportedDtypeError, "data type 'complex64' came"),
        ("v3-zstd", {"data_type": {"name": "numpy.datetime64"}}, UnsupportedDtypeError, "numpy.datetime64"),
        ("v2-zstd", {"compressor": {"id": "pickle"}}, UnsupportedCodecError, "codec 'pickle' came, one of blosc, "),
        ("v2-zstd", {"compressor": {"id": "bz2"}}, UnsupportedCodecError, "fix: write the array again with .* zstd"),
        ("v2-zstd", {"filters": [{"id": "delta"}]}, UnsupportedCodecError, "codec 'delta' came, no filter was"),
        ("v3-zstd", {"codecs": [{"name": "numcodecs.pickle"}]}, UnsupportedCodecError, "'numcodecs.pickle' came, one"),
        ("v3-zstd", {"codecs": [SHARDING, {"name": "crc32c"}]}, UnsupportedCodecError, "sharding_indexed alone"),
        ("v3-zstd", _sharding(codecs=[SHARDING]), UnsupportedCodecError, "'sharding_indexed' came, one of"),
        ("v3-zstd", _sharding(index_codecs=["zstd"]), UnsupportedCodecError, "'zstd' came, one of bytes, crc32c"),
        ("v3-zstd", _sharding(chunk_shape=[2, 8, 6]), UnsupportedMetadataError, "are not whole chunks of"),
        ("v3-zstd", {"codecs": []}, UnsupportedMetadataError, r"codecs are \[\], a list of codecs was expected"),
        ("v3-zstd", {"codecs": [{"configuration": {}}]}, UnsupportedMetadataError, "has no name"),
        ("v2-zstd", {"shape": [2**20]}, UnsupportedAxesError, r"shape \[1048576\] came, 2 to 5 axes"),
        ("v2-zstd", {"shape": [1] * 6}, UnsupportedAxesError, r"2 to 5 axes \(of t, c, z, y, x\) were expected"),
        ("v2-zstd", {"shape": [5, 0, 19]}, UnsupportedMetadataError, r"shape is \[5, 0, 19\]: the array is empty"),
        (
            "v2-zstd",
            {"shape": [5, -1, 19]},
            UnsupportedMetadataError,
            r"shape is \[5, -1, 19\], a list of 64-bit whole",
        ),
        ("v2-zstd", {"shape": [5, 10**40, 19]}, UnsupportedMetadataError, "a list of 64-bit whole numbers"),
        ("v2-zstd", {"shape": "big"}, UnsupportedMetadataError, "shape is 'big'"),
        ("v2-zstd", {"chunks": [2, 0, 7]}, UnsupportedMetadataError, r"chunks is \[2, 0, 7\]"),
        ("v2-zstd", {"chunks": [2, 8]}, UnsupportedMetadataError, r"chunks \[2, 8\] do not have the axes of shape"),
        ("v3-zstd", {"chunk_grid": {"name": "rectilinear"}}, UnsupportedMetadataError, "'rectilinear' came, 'regular'"),
        (
            "v3-zstd",
            {"storage_transformers": [{"name": "x"}]},
            UnsupportedMetadataError,
            "storage transformers .* none",
        ),
        ("v2-zstd", {"zarr_format": 1}, UnsupportedMetadataError, "zarr_format is 1, not 2"),
        ("v3-zstd", {"zarr_format": 4}, UnsupportedMetadataError, "zarr_format is 4, not 3"),
        ("v3-zstd", {"node_type": "table"}, UnsupportedMetadataError, "node_type is 'table', 'array' or 'group'"),
        ("v3-zstd", {"attributes": 3}, UnsupportedMetadataError, "attributes are no object"),
        (
            "v2-zstd",
            {"chunks": [2**20, 2**20, 1]},
            UnboundedMetadataError,
            "need 1,099,511,627,776 bytes each, at most",
        ),
        ("v3-zstd", _grid(2**11, 2**11, 2**9 + 1), UnboundedMetadataError, "bytes each, at most 2,147,483,648"),
        ("v3-zstd", _grid(2**14, 2**13, 7) | _sharding(), UnboundedMetadataError, "shards of 16,777,216 chunks"),
        ("v2-zstd", {"shape": [2**41, 8, 8]}, UnboundedMetadataError, "at most 1,099,511,627,776 pixels an axis"),
        ("v3-zstd", {"codecs": [{"name": "blosc"}]}, UnsupportedMetadataError, "zarr cannot open the array: .*blosc"),
        ("v3-zstd", {"fill_value": "seven"}, UnsupportedMetadataError, "zarr cannot open the array: "),
        ("v3-zstd", {"unknown_key": {"must_understand": True}}, UnsupportedMetadataError, "zarr cannot open the array"),
    ],
)
def test_metadata_is_refused_by_name(
    tmp_path: Path, kind: str, changes: dict[str, Any], error: type[UnetDeployError], message: str
) -> None:
    path = write_plain(tmp_path / "array", kind=kind)
    file = path / (".zarray" if kind.startswith("v2") else "zarr.json")
    edit_document(file, **changes)
    with pytest.raises(error) as caught:
        open_volume(path)
    caught.match(message)
    assert str(file) in str(caught.value)


def test_metadata_that_is_no_json_is_refused(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "array")
    for text in ("{", "[" * 100_000, '{"shape": ' + "9" * 5000 + "}"):
        (path / "zarr.json").write_text(text)
        with pytest.raises(UnsupportedMetadataError, match=r"the metadata is not valid JSON\n  in .*zarr\.json"):
            open_volume(path)
    (path / "zarr.json").write_text("[]")
    with pytest.raises(UnsupportedMetadataError, match="the metadata is no JSON object"):
        open_volume(path)


def test_metadata_beyond_its_bound_is_not_parsed(tmp_path: Path) -> None:
    (tmp_path / ".zattrs").write_bytes(b" " * (16 * 2**20 + 1))
    with pytest.raises(UnboundedMetadataError, match="the metadata is larger than 16,777,216 bytes"):
        open_volume(tmp_path)


def test_metadata_that_cannot_be_read_is_not_taken_for_absent(tmp_path: Path) -> None:
    (tmp_path / "zarr.json").mkdir()
    with pytest.raises(ReadError, match=r"the metadata cannot be read\n  in .*zarr\.json"):
        open_volume(tmp_path)


def test_version_3_is_read_where_both_versions_stand(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "array", kind="v2-zstd", axes="yx")
    write_plain(path, kind="v3-zstd")
    assert open_volume(path).info.zarr_format == 3


# Chunks that cannot be read are never holes.


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_truncated_chunk_is_an_error_with_its_window(tmp_path: Path, kind: StoreKind) -> None:
    path = write_plain(tmp_path / "array", kind=kind.name)
    file = chunk_files(path)[-1]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    volume = open_volume(path)
    with pytest.raises(ReadError, match="the window z 0:5, y 0:21, x 0:19 cannot be read") as caught:
        read_all(volume)
    assert caught.value.details[0] == f"in {path}"
    assert "check the disk" in caught.value.fix
    assert caught.value.__cause__ is not None
    assert pickle.loads(pickle.dumps(caught.value)).details == caught.value.details


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_an_empty_chunk_file_is_an_error(tmp_path: Path, kind: StoreKind) -> None:
    path = write_plain(tmp_path / "array", kind=kind.name)
    chunk_files(path)[0].write_bytes(b"")
    with pytest.raises(ReadError, match="cannot be read"):
        read_all(open_volume(path))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_chunk_cut_anywhere_never_reads_as_pixels(tmp_path: Path, kind: StoreKind) -> None:
    # Random pixels do not compress, and Blosc then copies: cut short, it would copy what stands behind in memory.
    pixels = make_pixels("zyx", "uint16")
    path = write_array(tmp_path / "array", pixels, axes="zyx", kind=kind)
    file = chunk_files(path)[0]
    whole = file.read_bytes()
    for keep in (1, 15, 40, len(whole) - 9, len(whole) - 1):
        file.write_bytes(whole[:keep])
        volume = open_volume(path)
        with pytest.raises(ReadError, match="cannot be read"):
            read_all(volume)
        for z in range(volume.info.chunks[0]):  # one plane, one chunk: zarr then reads parts of shards
            window = {"z": Interval(z, z + 1), "y": Interval(0, 1), "x": Interval(0, 1)}
            try:
                read = read_all(volume, **window)
            except ReadError:
                continue
            np.testing.assert_array_equal(read[0, 0], pixels[z : z + 1, :1, :1])


def test_a_directory_in_a_chunks_place_is_no_absent_chunk(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "array")
    file = chunk_files(path)[0]
    file.unlink()
    file.mkdir()
    with pytest.raises(ReadError, match=r"is there, but is no file|PermissionError"):
        read_all(open_volume(path))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("v2-blosc", "a blosc chunk declares 4,194,304 bytes, at most 1,137 were expected"),
        ("v2-zstd", "a zstd chunk declares 4,194,304 bytes, at most 1,137"),
        ("v2-lz4", "a lz4 chunk declares 4,194,304 bytes"),
        ("v3-blosc", "a blosc chunk declares 4,194,304 bytes"),
        ("v3-zstd", "a zstd chunk declares 4,194,304 bytes"),
    ],
)
def test_a_chunk_that_declares_more_than_its_array_is_not_inflated(tmp_path: Path, kind: str, message: str) -> None:
    path = write_plain(tmp_path / "array", kind=kind)
    codec = {"blosc": numcodecs.Blosc("zstd"), "zstd": numcodecs.Zstd(), "lz4": numcodecs.LZ4()}[kind[3:]]
    chunk_files(path)[0].write_bytes(bytes(codec.encode(np.zeros(2**22, np.uint8))))
    with pytest.raises(ReadError, match=message):
        read_all(open_volume(path))


def test_a_blosc_header_must_tell_the_truth() -> None:
    chunk = bytes(numcodecs.Blosc().encode(np.arange(100, dtype=np.uint8)))
    check_chunk("blosc", chunk[:32], len(chunk), 100)
    with pytest.raises(DamagedChunkError, match="a blosc chunk of 9 bytes came, at least 16 were expected"):
        check_chunk("blosc", chunk[:9], 9, 100)
    with pytest.raises(DamagedChunkError, match=f"a blosc chunk of 50 bytes came, its header says {len(chunk)}"):
        check_chunk("blosc", chunk[:32], 50, 100)


def test_a_shard_cut_short_says_so(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "array", kind="v3-sharded-index-first")
    file = chunk_files(path)[0]
    file.write_bytes(file.read_bytes()[:-1])
    volume = open_volume(path)
    with pytest.raises(ReadError, match=r"is cut short: \d+ bytes came, \d+ were expected"):
        read_all(volume, z=Interval(2, 4), y=Interval(8, 16), x=Interval(7, 14))  # the shard's last chunk


@pytest.mark.parametrize("size", [1, 200, 300, 70_000, 2**20])
def test_every_width_of_a_zstd_size_is_read(size: int) -> None:
    chunk = bytes(numcodecs.Zstd().encode(np.zeros(size, np.uint8)))
    check_chunk("zstd", chunk[:32], len(chunk), size)
    with pytest.raises(DamagedChunkError, match=f"a zstd chunk declares {size:,} bytes, at most {size - 1:,} were"):
        check_chunk("zstd", chunk[:32], len(chunk), size - 1)


def test_the_error_names_the_channels(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "array", axes="tczyx")
    for file in chunk_files(path):
        file.write_bytes(b"no zstd")
    with pytest.raises(ReadError, match="the window t 1:2, c 2,0, z 0:5, y 0:21, x 0:19 cannot be read"):
        read_all(open_volume(path), t=Interval(1, 2), c=[2, 0])


def test_a_volume_that_vanished_is_an_error_not_an_empty_one(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "array")
    volume = open_volume(path)
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(ReadError, match=r"zarr\.json is no longer there|FileNotFoundError"):
        read_all(volume)
    (tmp_path / "elsewhere").rename(path)
    assert read_all(volume).any()
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(ReadError, match=r"zarr\.json is no longer there"):
        read_all(volume)


# Travelling to a worker.


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_volume_pickles_small_and_reopens(tmp_path: Path, version: OmeVersion) -> None:
    pixels = make_pixels("zyx", "uint8")
    volume = open_volume(write_image(tmp_path / "image", pixels, axes="zyx", version=version), level=1)
    payload = pickle.dumps(volume)
    again = pickle.loads(payload)
    assert len(payload) < 2000
    assert again.info == volume.info
    np.testing.assert_array_equal(read_all(again), read_all(volume))


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_plain(tmp_path / "array")
    monkeypatch.chdir(tmp_path)
    payload = pickle.dumps(open_volume("array"))
    monkeypatch.chdir(Path(tmp_path.anchor))
    assert pickle.loads(payload).info.path == str(tmp_path / "array")


def test_a_volume_that_changed_on_the_way_is_refused(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "array")
    payload = pickle.dumps(open_volume(path))
    edit_document(path / "zarr.json", shape=[4, 21, 19])
    with pytest.raises(ReadError, match=r"the volume is not what it was when it was opened: \(\(4, 21, 19\)"):
        pickle.loads(payload)
    shutil.rmtree(path)
    with pytest.raises(ReadError, match="nothing is there now"):
        pickle.loads(payload)


def test_a_description_is_json(tmp_path: Path) -> None:
    pixels = make_pixels("cyx", "float32")
    path = write_image(
        tmp_path / "image", pixels, axes="cyx", version="0.5", scale=(1.0, 4.0, 4.0), channel_names=("a", "b", "c")
    )
    described = describe_volume(open_volume(path))
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    assert described["scale"]["x"] == {"value": 4.0, "unit": "nanometer"}
    assert (described["axes"], described["bytes"], described["channel_names"]) == (
        "cyx",
        3 * 21 * 19 * 4,
        ["a", "b", "c"],
    )
    bare = describe_volume(open_volume(write_plain(tmp_path / "bare", kind="v3-sharded")))
    assert (bare["scale"], bare["shards"], bare["levels"][0]["scale"]) == (None, [4, 16, 14], None)
    nan = write_array(tmp_path / "nan", pixels, axes="cyx", kind=KIND["v2-zstd"], fill_value=float("nan"))
    assert describe_volume(open_volume(nan, axes="cyx"))["fill_value"] == "nan"


# Stores by other programs.


@pytest.mark.skipif(not (SHARED / "zarr_isbi").is_dir(), reason="the ISBI stores are not beside the checkout")
def test_the_isbi_stores_hold_the_isbi_pictures() -> None:
    imageio = pytest.importorskip("imageio.v3", reason="reads the PNGs; comes with the extra 'train'")
    planes = np.stack([imageio.imread(SHARED / "isbi2012" / "test" / f"{index:02}.png") for index in range(8)])
    stores = sorted((SHARED / "zarr_isbi").glob("*.zarr"))
    assert len(stores) == 3
    for store in stores:
        volume = open_volume(store)
        assert volume.info.axes == "zyx"
        np.testing.assert_array_equal(read_all(volume)[0, 0], planes)


FOREIGN = SHARED / "zarr_foreign"
REFUSED = {
    "NotAVolumeError": 16,
    "SeveralImagesError": 13,
    "UnsupportedAxesError": 38,
    "UnsupportedDtypeError": 16,
    "UnsupportedMetadataError": 4,
}


def _open_or_reason(path: Path) -> Volume | UnetDeployError:
    try:
        return open_volume(path)
    except UnetDeployError as error:
        return error


@pytest.mark.skipif(not FOREIGN.is_dir(), reason="the stores by other programs are not beside the checkout")
def test_every_foreign_node_is_read_or_refused_with_a_reason() -> None:
    names = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
    nodes = sorted({file.parent for name in names for file in FOREIGN.rglob(name)})
    opened, refused = 0, dict.fromkeys(REFUSED, 0)
    for node in nodes:
        volume = _open_or_reason(node)
        if isinstance(volume, UnetDeployError):
            refused[type(volume).__name__] += 1
            assert str(node) in str(volume)
            assert volume.fix
            continue
        opened += 1
        info = volume.info
        path = Path(info.path, info.array_path)
        if path.name.endswith(".F"):  # zarr itself cannot read an order by its letter; these are the same pixels
            path = path.with_name(path.name[:-1] + "C")
        with warnings.catch_warnings():  # zarr's own reading warns of an empty list of filters; ours must not
            warnings.simplefilter("ignore")
            array: Any = zarr.open_array(path, mode="r")
        corner = {axis: Interval(max(0, volume.extent(axis) - 9), volume.extent(axis)) for axis in "tzyx"}
        selection = tuple(corner[axis].slice if axis != "c" else slice(None) for axis in info.axes)
        np.testing.assert_array_equal(volume.read(**corner).reshape(-1), np.asarray(array[selection]).reshape(-1))  # type: ignore[arg-type]
    assert (len(nodes), opened, refused) == (210, 123, REFUSED)
