"""Images and labels come from files, Zarr stores and stacks, paired by stem or by slice."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

io = pytest.importorskip("skimage.io", reason="the extra 'train' is not installed")
tifffile = pytest.importorskip("tifffile", reason="the extra 'train' is not installed")

from unet_deploy.errors import MissingDependencyError, TrainingDataError  # noqa: E402
from unet_deploy.training.annotation import number_parts  # noqa: E402
from unet_deploy.training.cell_tracking import unannotated_area  # noqa: E402
from unet_deploy.training.data import TrainingData, read_training_data  # noqa: E402
from unet_deploy.training.data_config import DataConfig  # noqa: E402
from unet_deploy.training.image_files import PlaneReader, Source, read_image, read_stack  # noqa: E402

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 4000, (6, 24, 32), np.uint16)
LABELS = (IMAGES > 2000).astype(np.uint8)


def read(images: Path, labels: Path, **settings: Any) -> TrainingData:
    return read_training_data(DataConfig(images=images, labels=labels, **settings))


def problems_of(images: Path, labels: Path, **settings: Any) -> str:
    with pytest.raises(TrainingDataError) as caught:
        read(images, labels, **settings)
    return str(caught.value)


def problem_of(path: Path, *, is_stack: bool = False) -> str:
    problems: list[str] = []
    assert (read_stack if is_stack else read_image)(path, problems) is None
    (problem,) = problems
    return problem


def write_ome_zarr(path: Path, array: np.ndarray, axes: str, *, version: int = 3) -> Path:
    group = zarr.create_group(path, zarr_format=version)
    group.create_array("s0", data=array, chunks=array.shape)
    levels = [{"axes": [{"name": a} for a in axes], "datasets": [{"path": "s0"}]}]
    group.attrs.update({"ome": {"version": "0.5", "multiscales": levels}} if version == 3 else {"multiscales": levels})
    return path


def write_zarr(path: Path, array: np.ndarray, **settings: Any) -> Path:
    zarr.create_array(path, data=array, chunks=array.shape, **settings)
    return path


def write_tiff(path: Path, array: np.ndarray, **settings: Any) -> Path:
    tifffile.imwrite(path, array, photometric="minisblack", **settings)
    return path


@pytest.mark.parametrize(
    "kind", ["tiff", "imagej", "bigendian", "zarr 3", "zarr 2", "ome 0.5", "ome 0.4, t and c of 1"]
)
def test_slices_of_two_stacks_are_paired(tmp_path: Path, kind: str) -> None:
    images = tmp_path / "images.tif"
    match kind:
        case "tiff":
            write_tiff(images, IMAGES)
        case "imagej":
            write_tiff(images, IMAGES, imagej=True, metadata={"axes": "ZYX"})
        case "bigendian":
            write_tiff(images, IMAGES, byteorder=">")
        case "zarr 3" | "zarr 2":
            write_zarr(images := tmp_path / "images.zarr", IMAGES, zarr_format=int(kind[-1]))
        case "ome 0.5":
            write_ome_zarr(images := tmp_path / "images", IMAGES, "zyx")
        case _:
            write_ome_zarr(images := tmp_path / "images.ome.zarr", IMAGES[None, None], "tczyx", version=2)
    labels = write_tiff(tmp_path / "labels.tif", LABELS)
    data = read(images, labels, is_stack=True, gap=0)
    assert [a.stem for a in data.validation] == ["z001", "z004"]
    assert [a.stem for a in data.training] == ["z000", "z002", "z003", "z005"]
    for annotated in (*data.training, *data.validation):
        z = int(annotated.stem[1:])
        assert annotated.image.dtype == np.dtype("uint16")
        assert np.array_equal(annotated.image, IMAGES[z])
        assert np.array_equal(annotated.label, LABELS[z])


def test_stores_and_files_of_one_stem_are_paired(tmp_path: Path) -> None:
    (images := tmp_path / "images").mkdir()
    (labels := tmp_path / "labels").mkdir()
    write_zarr(images / "00.zarr", IMAGES[0])
    write_zarr(images / "01.zarr", IMAGES[1][None], dimension_names=("z", "y", "x"))
    write_ome_zarr(images / "02.ome.zarr", IMAGES[2][None, None], "czyx")
    write_tiff(images / "03.ome.tif", IMAGES[3])
    for stem in range(4):
        io.imsave(labels / f"{stem:02}.png", LABELS[stem], check_contrast=False)
    data = read(images, labels)
    read_again = [*data.training, *data.validation]
    assert [a.stem for a in read_again] == ["00", "01", "02", "03"]
    for index, annotated in enumerate(read_again):
        assert np.array_equal(annotated.image, IMAGES[index])


def test_pages_written_one_by_one_are_a_stack(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "pages.tif") as writer:
        for page in IMAGES:
            writer.write(page)
    stack = read_stack(tmp_path / "pages.tif", [])
    assert stack is not None
    assert np.array_equal(stack, IMAGES)


def test_stacks_that_do_not_match(tmp_path: Path) -> None:
    images, labels = write_tiff(tmp_path / "images.tif", IMAGES), write_tiff(tmp_path / "labels.tif", LABELS[:4])
    assert f"{images} has 6 slice(s), {labels} has 4; as many were expected" in problems_of(images, labels)
    (folder := tmp_path / "folder").mkdir()
    assert f"images are one stack, {images}, but labels are not: {folder}" in problems_of(images, folder)
    assert f"labels are one stack, {images}, but images are not: {folder}" in problems_of(folder, images)


def test_a_folder_of_folders_names_them(tmp_path: Path) -> None:
    (tmp_path / "01").mkdir()
    (tmp_path / "01_GT").mkdir()
    text = problems_of(tmp_path, tmp_path)
    assert f"images: no .png, .tif, .tiff, .zarr file in {tmp_path}; it holds the folders 01, 01_GT" in text


def test_colours_channels_and_pages_are_refused_by_name(tmp_path: Path) -> None:
    rgb = np.zeros((24, 32, 3), np.uint8)
    tifffile.imwrite(tmp_path / "rgb.tif", rgb, photometric="rgb")
    io.imsave(tmp_path / "rgba.png", np.zeros((24, 32, 4), np.uint8), check_contrast=False)
    write_zarr(tmp_path / "rgb.zarr", rgb)
    for name in ("rgb.tif", "rgba.png", "rgb.zarr"):
        for is_stack in (False, True):
            text = problem_of(tmp_path / name, is_stack=is_stack)
            assert "which is RGB; one grey channel (y, x) was expected: convert it to grey, or keep one channel" in text
    write_tiff(tmp_path / "channels.tif", IMAGES[:4].reshape(2, 2, 24, 32), imagej=True, metadata={"axes": "ZCYX"})
    text = problem_of(tmp_path / "channels.tif", is_stack=True)
    assert "has shape (2, 2, 24, 32): 2 channels; one (y, x) was expected: keep one channel" in text
    write_tiff(tmp_path / "pages.tif", IMAGES)
    assert "has 6 pages, one (y, x) was expected; of a stack, give the files themselves" in problem_of(
        tmp_path / "pages.tif"
    )
    write_ome_zarr(tmp_path / "time", IMAGES.reshape(2, 3, 24, 32), "tzyx")
    assert "has shape (2, 3, 24, 32) with the axes tzyx" in problem_of(tmp_path / "time", is_stack=True)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "sizes.tif") as writer:
        writer.write(IMAGES[0])
        writer.write(IMAGES[1][:20])
    assert "cannot be read (it holds images of 2 sizes, (20, 32), (24, 32); one" in problem_of(tmp_path / "sizes.tif")
    whole = write_tiff(tmp_path / "half.tif", IMAGES[0]).read_bytes()
    (tmp_path / "half.tif").write_bytes(whole[: len(whole) // 2])
    assert f"half: {tmp_path / 'half.tif'} cannot be read (" in problem_of(tmp_path / "half.tif")
    assert f"none: {tmp_path / 'none.tif'} cannot be read (FileNotFoundError" in problem_of(tmp_path / "none.tif")
    (tmp_path / "empty.zarr").mkdir()
    assert f"empty: {tmp_path / 'empty.zarr'} cannot be read (" in problem_of(tmp_path / "empty.zarr")
    zarr.create_group(tmp_path / "group.zarr").create_array("inside", data=IMAGES)
    text = problem_of(tmp_path / "group.zarr")
    assert "it is a Zarr group without an OME-Zarr image; give the path of the array inside" in text
    group = write_ome_zarr(tmp_path / "nested.zarr", IMAGES, "zyx")
    zarr.open_group(group).attrs["ome"] = {"multiscales": [{"datasets": [{"path": "."}]}]}
    assert "nested.zarr cannot be read (" in problem_of(group)
    write_zarr(tmp_path / "xy.zarr", IMAGES, dimension_names=("x", "y", "z"))
    text = problem_of(tmp_path / "xy.zarr")
    assert "its axes are x, y, z of shape (6, 24, 32); y and x were expected last" in text


def test_a_stack_is_read_once_and_its_end_is_known(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "stack.tif", IMAGES)
    reader, problems = PlaneReader(), list[str]()
    assert reader.read_stack(path, problems) is reader.read_stack(path, problems)
    assert reader.read(Source(path=path, z=6), problems) is None
    assert problems == [f"{path} has 6 slice(s); slice 6 was expected"]
    for index in range(4):
        reader.read(Source(path=tmp_path / f"{index}.tif", z=0), problems)
        reader.read(Source(path=tmp_path / f"{index}.tif", z=1), problems)
    assert len(problems) == 5  # each said once
    assert str(Source(path=path, z=2)) == f"{path}, slice 2"


class Without(MetaPathFinder):
    """Python without some packages."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname in {"skimage", "tifffile"}:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiff(tmp_path / "image.tif", IMAGES[0])
    io.imsave(tmp_path / "image.png", LABELS[0], check_contrast=False)
    for module in [name for name in sys.modules if name.partition(".")[0] in {"skimage", "tifffile"}]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [Without(), *sys.meta_path])
    two = np.array([[1, 0, 2]])
    calls: dict[str, Callable[[], object]] = {
        "reading images": lambda: read_image(path, []),
        "reading images ": lambda: read_image(tmp_path / "image.png", []),
        "telling cells apart": lambda: number_parts(two, connectivity=1),
        "partial annotation": lambda: unannotated_area(two, two, radius=1),
    }
    for purpose, call in calls.items():
        with pytest.raises(
            MissingDependencyError, match=f"{purpose.strip()} needs the package 'scikit-image'"
        ) as caught:
            call()
        assert "pip install 'unet-deploy[train]'" in str(caught.value)


@pytest.mark.skipif(not (SHARED / "zarr_isbi").is_dir(), reason="../shared/data/zarr_isbi is not there")
@pytest.mark.parametrize("name", ["ngff_zarr_v04", "ngff_zarr_v05_sharded", "ome_zarr_py_v05"])
def test_stores_of_other_programs(name: str) -> None:
    problems: list[str] = []
    stack = read_stack(SHARED / "zarr_isbi" / f"{name}.ome.zarr", problems)
    assert problems == []
    assert stack is not None
    assert (stack.shape, stack.dtype) == ((8, 512, 512), np.dtype("uint8"))
