"""What stands at a path is read as the slices that were written, and paired with the right ones."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("skimage", reason="the extra 'evaluate' is not installed")

import tifffile
import zarr

from tests.tiny import write_array, write_image
from unet_deploy.cli._pairing import is_ctc_result, is_ctc_truth, pair_ctc, pair_stacks
from unet_deploy.cli._stacks import SLAB_BYTES, Slice, Stack, join_stacks, list_files, open_stack
from unet_deploy.errors import (
    ChannelError,
    MissingDependencyError,
    NotAVolumeError,
    ReadError,
    SeveralImagesError,
    ShapeMismatchError,
    UnsupportedAxesError,
    UnsupportedDtypeError,
    VolumeNotFoundError,
)
from unet_deploy.metrics.ctc import Frame
from unet_deploy.picture import write_png

Array = npt.NDArray[Any]


def pixels(shape: tuple[int, ...], dtype: str = "uint8") -> Array:
    generator = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return generator.random(shape).astype(dtype)
    return generator.integers(0, 200, shape).astype(dtype)


def read_all(stack: Stack) -> Array:
    planes = np.stack([stack.read(index) for index in range(len(stack))])
    stack.close()
    return planes


def as_tiff(path: Path, data: Array) -> Path:
    tifffile.imwrite(path, data, photometric="minisblack")
    return path


def as_png_folder(path: Path, data: Array) -> Path:
    path.mkdir()
    for index, plane in enumerate(data):
        write_png(path / f"{index}.png", plane)
    return path


def as_tiff_folder(path: Path, data: Array) -> Path:
    path.mkdir()
    for index, plane in enumerate(data):
        tifffile.imwrite(path / f"{index}.tif", plane)
    return path


WRITERS: dict[str, Callable[[Path, Array], Path]] = {
    "a.ome.zarr": write_image,
    "a.zarr": write_array,
    "a.tif": as_tiff,
    "a_tif": as_tiff_folder,
    "a_png": as_png_folder,
}


# ---- what is read is what was written


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("count", [1, 3, 12])  # three pages are not colours; 10 comes after 9
def test_slices_are_those_written(name: str, count: int, tmp_path: Path) -> None:
    data = pixels((count, 7, 9))
    stack = open_stack(WRITERS[name](tmp_path / name, data))
    assert len(stack) == count
    assert stack.is_folder == (not Path(name).suffix)
    assert stack.shape in (None, (7, 9))
    np.testing.assert_array_equal(read_all(stack), data)


@pytest.mark.parametrize("dtype", ["bool", "uint16", "int32", "uint32", "int64", "float32", "float64"])
@pytest.mark.parametrize("suffix", [".zarr", ".tif"])
def test_labels_and_probabilities_of_other_programs(suffix: str, dtype: str, tmp_path: Path) -> None:
    data = pixels((2, 7, 9), dtype)
    if suffix == ".tif" and dtype == "bool":
        data = data.astype("uint8")
    path = tmp_path / f"a{suffix}"
    stack = open_stack(as_tiff(path, data) if suffix == ".tif" else write_array(path, data))
    assert stack.dtype == data.dtype.name
    np.testing.assert_array_equal(read_all(stack), data)


def test_one_png_file(tmp_path: Path) -> None:
    data = pixels((7, 9))
    np.testing.assert_array_equal(read_all(open_stack(write_png(tmp_path / "a.png", data)))[0], data)


def test_time_comes_before_depth(tmp_path: Path) -> None:
    data = pixels((2, 3, 7, 9))
    stack = open_stack(write_array(tmp_path / "a.zarr", data, names="tzyx"))
    assert [str(item) for item in stack.slices] == ["z=0", "z=1", "z=2", "t=1 z=0", "t=1 z=1", "t=1 z=2"]
    np.testing.assert_array_equal(read_all(stack), data.reshape(6, 7, 9))


def test_axes_of_a_hyperstack(tmp_path: Path) -> None:
    data = pixels((2, 3, 2, 7, 9))
    tifffile.imwrite(tmp_path / "a.tif", data, imagej=True, metadata={"axes": "TZCYX"})
    stack = open_stack(tmp_path / "a.tif", channel=1)
    assert [(item.t, item.z) for item in stack.slices] == [(t, z) for t in range(2) for z in range(3)]
    np.testing.assert_array_equal(read_all(stack), data[:, :, 1].reshape(6, 7, 9))


def test_a_channel_by_number_or_name(tmp_path: Path) -> None:
    data = pixels((2, 3, 7, 9))
    path = write_image(tmp_path / "a.ome.zarr", data, axes="czyx", channel_names=("inside", "membrane"))
    for channel in (1, "1", "membrane"):
        np.testing.assert_array_equal(read_all(open_stack(path, channel=channel)), data[1])


def test_slices_of_a_thick_chunk_are_decoded_once(tmp_path: Path) -> None:
    data = pixels((8, 7, 9))
    array = zarr.create_array(tmp_path / "a.zarr", shape=data.shape, chunks=(4, 7, 9), dtype="uint8")
    array[...] = data
    stack = open_stack(tmp_path / "a.zarr")
    first, second = stack.read(4), stack.read(5)
    assert 4 * first.nbytes < SLAB_BYTES
    assert first.base is second.base
    assert stack.read(0).base is not first.base
    np.testing.assert_array_equal(read_all(stack), data)


def test_joined_stacks_have_new_names(tmp_path: Path) -> None:
    data = pixels((3, 7, 9))
    parts = [open_stack(as_tiff(tmp_path / "a.tif", data[:2])), open_stack(as_tiff(tmp_path / "b.tif", data[2:]))]
    joined = join_stacks(parts, [Slice(t=i, stem=stem) for i, stem in enumerate("xyz")], where="here", is_folder=True)
    assert [str(item) for item in joined.slices] == ["x", "y", "z"]
    np.testing.assert_array_equal(read_all(joined), data)
    for part in parts:
        part.close()


# ---- what cannot be read


def test_nothing_at_the_path(tmp_path: Path) -> None:
    write_png(tmp_path / "truth.png", pixels((7, 9)))
    with pytest.raises(VolumeNotFoundError, match=r"there is nothing at .*trut\.png") as caught:
        open_stack(tmp_path / "trut.png")
    assert caught.value.fix == f"did you mean {tmp_path / 'truth.png'}?"


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no pixels")
    with pytest.raises(NotAVolumeError, match=r"a\.txt is a file of another kind"):
        open_stack(tmp_path / "a.txt")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(NotAVolumeError, match="is a folder without PNG or TIFF files, and no Zarr"):
        list_files(tmp_path)


def test_two_files_of_one_stem(tmp_path: Path) -> None:
    write_png(tmp_path / "1.png", pixels((7, 9)))
    as_tiff(tmp_path / "1.tif", pixels((7, 9)))
    with pytest.raises(SeveralImagesError, match=r"1\.png and 1\.tif have the same stem"):
        open_stack(tmp_path)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_damaged_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"not what the name says")
    with pytest.raises(ReadError, match=rf"{name} cannot be read") as caught:
        open_stack(tmp_path / name).read(0)
    assert caught.value.fix == "check the file, and write it again"


def test_a_truncated_file(tmp_path: Path) -> None:
    path = write_png(tmp_path / "a.png", pixels((70, 90)))
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(ReadError, match=r"a\.png cannot be read"):
        open_stack(path).read(0)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_colour_picture(name: str, tmp_path: Path) -> None:
    colours = pixels((7, 9, 3))
    if name.endswith("png"):
        write_png(tmp_path / name, colours)
    else:
        tifffile.imwrite(tmp_path / name, colours, photometric="rgb")
    with pytest.raises(UnsupportedAxesError, match=r"\(7, 9, 3\), .*\(y, x\)"):
        open_stack(tmp_path / name).read(0)


def test_a_tiff_of_several_sizes(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(pixels((7, 9)))
        writer.write(pixels((5, 5)))
    with pytest.raises(SeveralImagesError, match=r"a\.tif holds 2 images, one of pages of one size"):
        open_stack(tmp_path / "a.tif")


def test_channels_must_be_chosen(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.ome.zarr", pixels((2, 3, 7, 9)), axes="czyx")
    with pytest.raises(ChannelError, match="has 2 channels, one number a pixel was expected"):
        open_stack(path)
    with pytest.raises(ChannelError, match="has no channel 'red'"):
        open_stack(path, channel="red")


def test_a_dtype_that_is_no_number(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", shape=(7, 9), chunks=(7, 9), dtype="complex64")
    with pytest.raises(UnsupportedDtypeError, match=r"data type 'complex64' came, one of bool, uint8, .* was expected"):
        open_stack(tmp_path / "a.zarr")


@pytest.mark.parametrize(("name", "module"), [("a.png", "skimage.io"), ("a.tif", "tifffile")])
def test_readers_come_with_an_extra(name: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).write_bytes(b"")
    monkeypatch.setitem(sys.modules, module, None)  # what an absent package does
    with pytest.raises(MissingDependencyError, match=r"reading .* files needs the package 'scikit-image'") as caught:
        open_stack(tmp_path / name).read(0)
    assert caught.value.fix == "pip install 'unet-deploy[evaluate]'"


# ---- pairs


def test_folders_are_paired_by_stem(tmp_path: Path) -> None:
    data = pixels((12, 7, 9))
    prediction, truth = as_tiff_folder(tmp_path / "p", data), as_png_folder(tmp_path / "t", data)
    (truth / "3.png").unlink()
    paired = pair_stacks(open_stack(prediction), open_stack(truth))
    assert [pair.name for pair in paired.pairs] == [str(i) for i in range(12) if i != 3]
    assert paired.notes == ("not scored, for want of a truth: 3",)
    for pair in paired.pairs:
        np.testing.assert_array_equal(*paired.read(pair))
    paired.prediction.close()


def test_all_missing_slices_are_named(tmp_path: Path) -> None:
    data = pixels((12, 7, 9))
    prediction, truth = as_tiff_folder(tmp_path / "p", data), as_png_folder(tmp_path / "t", data)
    for stem in (0, 5, 11):
        (prediction / f"{stem}.tif").unlink()
    with pytest.raises(VolumeNotFoundError, match="the prediction lacks 3 of 12 slices: 0, 5, 11"):
        pair_stacks(open_stack(prediction), open_stack(truth))


def test_a_volume_and_a_folder_are_paired_in_order(tmp_path: Path) -> None:
    data = pixels((12, 7, 9))
    paired = pair_stacks(
        open_stack(write_array(tmp_path / "p.zarr", data)), open_stack(as_png_folder(tmp_path / "t", data))
    )
    assert paired.notes == ("slices are compared in order: 0 with z=0, ..., 11 with z=11",)
    assert [frame for frame, _ in paired.frames()] == [Frame(i) for i in range(12)]
    for pair in paired.pairs:
        np.testing.assert_array_equal(*paired.read(pair))


def test_time_and_depth_may_be_named_differently(tmp_path: Path) -> None:
    data = pixels((3, 7, 9))
    prediction = open_stack(write_array(tmp_path / "p.zarr", data, names="zyx"))
    paired = pair_stacks(prediction, open_stack(write_array(tmp_path / "t.zarr", data, names="tyx")))
    (note,) = paired.notes
    assert note.startswith("t and z of prediction and truth differ: slices are compared in order")
    assert len([*paired.frames()]) == 3


def test_other_numbers_of_slices(tmp_path: Path) -> None:
    prediction = open_stack(write_array(tmp_path / "p.zarr", pixels((4, 7, 9))))
    truth = open_stack(write_array(tmp_path / "t.zarr", pixels((3, 7, 9))))
    with pytest.raises(ShapeMismatchError, match="the truth has 3 slices, the prediction 4; they must be as many"):
        pair_stacks(prediction, truth)


def test_other_shapes(tmp_path: Path) -> None:
    prediction = open_stack(write_array(tmp_path / "p.zarr", pixels((3, 7, 8))))
    truth = open_stack(write_array(tmp_path / "t.zarr", pixels((3, 7, 9))))
    with pytest.raises(ShapeMismatchError, match=r"differ in shape: \(3, 7, 9\) and \(3, 7, 8\)"):
        pair_stacks(prediction, truth)


def test_another_shape_of_one_file(tmp_path: Path) -> None:
    prediction, truth = (as_png_folder(tmp_path / name, pixels((3, 7, 9))) for name in "pt")
    write_png(prediction / "1.png", pixels((7, 8)))
    paired = pair_stacks(open_stack(prediction), open_stack(truth))
    with pytest.raises(ShapeMismatchError, match=r"slice 1 of truth and prediction differ in shape: \(7, 9\) and"):
        paired.read(paired.pairs[1])


# ---- the Cell Tracking Challenge


@pytest.fixture
def challenge(tmp_path: Path) -> tuple[Path, Path]:
    """Four frames of three slices; frame 1 annotated whole, slice 2 of frame 3 alone."""
    data = pixels((4, 3, 7, 9), "uint16")
    result, truth = tmp_path / "01_RES", tmp_path / "01_GT"
    result.mkdir()
    (truth / "SEG").mkdir(parents=True)
    for t in range(4):
        as_tiff(result / f"mask{t:03}.tif", data[t])
    as_tiff(truth / "SEG" / "man_seg001.tif", data[1])
    as_tiff(truth / "SEG" / "man_seg_003_002.tif", data[3, 2])
    return result, truth


def test_only_annotated_frames_are_paired(challenge: tuple[Path, Path]) -> None:
    result, truth = challenge
    assert is_ctc_result(result)
    assert is_ctc_truth(truth)
    assert is_ctc_truth(truth / "SEG")
    assert not is_ctc_result(truth)
    paired = pair_ctc(result, truth)
    assert [pair.name for pair in paired.pairs] == ["T=1 Z=0", "T=1 Z=1", "T=1 Z=2", "T=3 Z=2"]
    assert [(frame, len(pairs)) for frame, pairs in paired.frames()] == [(Frame(1), 3), (Frame(3, 2), 1)]
    for pair in paired.pairs:
        np.testing.assert_array_equal(*paired.read(pair))
    paired.prediction.close()
    paired.truth.close()


def test_missing_frames_are_named(challenge: tuple[Path, Path]) -> None:
    result, truth = challenge
    (result / "mask001.tif").unlink()
    (result / "mask003.tif").unlink()
    with pytest.raises(VolumeNotFoundError, match="lacks 2 of 2 annotated frames: T=1 Z=0, T=3 Z=2"):
        pair_ctc(result, truth)


def test_no_annotated_frame(challenge: tuple[Path, Path]) -> None:
    result, _ = challenge
    with pytest.raises(VolumeNotFoundError, match="the truth has no annotated frame"):
        pair_ctc(result, result)


def test_no_folder(challenge: tuple[Path, Path]) -> None:
    result, truth = challenge
    with pytest.raises(VolumeNotFoundError, match=r"the result .*mask000\.tif is no folder"):
        pair_ctc(result / "mask000.tif", truth)


@pytest.mark.parametrize(
    ("name", "shape", "depths"), [("man_seg001", (2, 7, 9), "2 and 3"), ("man_seg_003_002", (2, 7, 9), "4 and 3")]
)
def test_another_depth(name: str, shape: tuple[int, ...], depths: str, challenge: tuple[Path, Path]) -> None:
    result, truth = challenge
    as_tiff(truth / "SEG" / f"{name}.tif", pixels(shape, "uint16"))
    with pytest.raises(ShapeMismatchError, match=f"differ in depth: {depths} slices"):
        pair_ctc(result, truth)


def test_two_files_of_one_frame(challenge: tuple[Path, Path]) -> None:
    result, truth = challenge
    as_tiff(truth / "SEG" / "man_seg_0001.tif", pixels((3, 7, 9), "uint16"))
    with pytest.raises(SeveralImagesError, match=r"man_seg\d+\.tif and man_seg_?\d+\.tif are both of frame T=1 Z=0"):
        pair_ctc(result, truth)
