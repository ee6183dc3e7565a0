"""What looks wrong is said early, with the image's name; what looks right is not remarked on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

io = pytest.importorskip("skimage.io", reason="the extra 'train' is not installed")

from unet_deploy.training.data import TrainingData, read_training_data  # noqa: E402
from unet_deploy.training.data_config import DataConfig  # noqa: E402
from unet_deploy.training.data_warnings import count_scattered, find_masks, find_outliers  # noqa: E402

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
COUNT = 6


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Six sound images with two numbered objects each."""
    random = np.random.default_rng(0)
    label = np.zeros((24, 32), np.uint8)
    label[2:8, 2:8], label[12:20, 10:20] = 1, 2
    for index in range(COUNT):
        image = random.integers(0, 64, (24, 32)) + 128 * (label > 0)
        save(tmp_path / "images" / f"{index:02}.png", image.astype(np.uint8))
        save(tmp_path / "labels" / f"{index:02}.png", label)
    return tmp_path / "images", tmp_path / "labels"


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    io.imsave(path, array, check_contrast=False)


def load(folder: Path, index: int) -> np.ndarray:
    return np.asarray(io.imread(folder / f"{index:02}.png"))


def read(folders: tuple[Path, Path], **settings: Any) -> TrainingData:
    config = DataConfig(images=folders[0], labels=folders[1], **{"label_kind": "instances", **settings})
    return read_training_data(config)


def test_sound_data_has_no_warnings(folders: tuple[Path, Path]) -> None:
    for kind in ("instances", "binary", "classes"):
        assert read(folders, label_kind=kind).warnings == ()
    assert read(folders, percentiles=(1, 99.8)).warnings == ()


def test_images_without_foreground_and_ignored_ones(folders: tuple[Path, Path]) -> None:
    for index in (1, 3):
        save(folders[1] / f"{index:02}.png", np.zeros((24, 32), np.uint8))
    save(folders[1] / "02.png", np.full((24, 32), 255, np.uint8))
    assert read(folders, ignore=255).warnings == (
        "01, 03: no foreground: every annotated pixel is 'background'",
        "02: every pixel is ignored",
    )
    label = load(folders[1], 0)
    save(folders[1] / "00.png", np.ones_like(label))
    (warning, *_) = read(folders, ignore=255, label_kind="binary", foreground="cell").warnings
    assert warning == "00: every annotated pixel is 'cell'"


def test_a_long_list_of_images_is_cut(folders: tuple[Path, Path]) -> None:
    for index in range(7):
        save(folders[0] / f"x{index}.png", load(folders[0], 0))
        save(folders[1] / f"x{index}.png", np.zeros((24, 32), np.uint8))
    (warning,) = read(folders, validation=("00",)).warnings
    assert warning.startswith("x0, x1, x2, x3, x4 and 2 more: no foreground")


def test_a_class_missing_in_validation(folders: tuple[Path, Path]) -> None:
    label = load(folders[1], 5)
    save(folders[1] / "05.png", np.where(label == 2, 0, label))
    (warning,) = read(folders, label_kind="classes", classes={"a": 0, "b": 1, "c": 2}).warnings
    assert warning == "class 'c' is in no validation image: the scores say nothing about it; choose others"


@pytest.mark.parametrize(("largest", "bits"), [(4000, 12), (4095, 12), (4096, 13), (16382, 14), (16384, None)])
def test_a_small_part_of_the_data_type(folders: tuple[Path, Path], largest: int, bits: int | None) -> None:
    for index in range(COUNT):
        image = load(folders[0], index).astype(np.uint16)
        image[0, 0] = largest
        (folders[0] / f"{index:02}.png").unlink()
        save(folders[0] / f"{index:02}.tif", image)
    warnings = read(folders).warnings
    if bits is None:
        assert warnings == ()
    else:
        (warning,) = warnings
        assert f"the largest grey value of all images is {largest}, below 2**{bits} = {2**bits}, but uint16" in warning


def test_an_image_of_another_exposure(folders: tuple[Path, Path]) -> None:
    save(folders[0] / "03.png", 255 - load(folders[0], 3))
    (warning,) = read(folders).warnings
    assert warning.startswith("03: its mean grey value is 2")
    assert "is its contrast inverted, or its exposure another? --percentiles 1,99.8 makes exposures alike" in warning
    assert read(folders, percentiles=(1, 99.8)).warnings == ()


def test_the_rule_for_outliers() -> None:
    even = {str(i): 100.0 + i for i in range(9)}  # with one more: median 104.5, median distance 2.5, limit 22.2
    assert find_outliers({**even, "out": 127}, least=0) == ("out",)
    assert find_outliers({**even, "in": 126}, least=0) == ()
    assert find_outliers({**even, "out": 127}, least=30) == ()
    assert find_outliers({"a": 1, "b": 1, "c": 100}, least=1) == ()
    assert find_outliers(dict.fromkeys("abcd", 5.0), least=0) == ()


def test_percentiles_of_one_grey_value(folders: tuple[Path, Path]) -> None:
    image = np.zeros((24, 32), np.uint8)
    image[3, 3] = 200
    save(folders[0] / "02.png", image)
    (warning,) = read(folders, percentiles=(1, 90)).warnings
    assert warning == "02: both percentiles are one grey value, so the grey values are not scaled"


def test_one_number_for_far_apart_objects(folders: tuple[Path, Path]) -> None:
    label = load(folders[1], 1)
    label[22, 30] = label[2, 20] = 3
    save(folders[1] / "01.png", label)
    (warning,) = read(folders).warnings
    assert warning.startswith("1 of 13 objects (7.7%) consist of parts that lie far apart, first in 01: has one number")


def test_parts_that_lie_close_are_one_object() -> None:
    label = np.zeros((20, 20), np.int32)
    label[2:6, 2:12], label[8:12, 2:12] = 1, 1  # cut by a line
    label[15, 15] = label[16, 16] = 2  # joined by a corner
    label[18, 0:3], label[18, 17:20] = 3, 3
    assert count_scattered(label) == (1, 3)
    assert count_scattered(np.zeros((4, 4), np.int32)) == (0, 0)


def test_masks_taken_for_object_numbers(folders: tuple[Path, Path]) -> None:
    for index in range(COUNT):
        save(folders[1] / f"{index:02}.png", np.where(load(folders[1], index) > 0, 255, 0).astype(np.uint8))
    (warning,) = read(folders).warnings
    assert warning == (
        "the labels hold only 0 and 255, so all that is not background is one object of each image: of masks, "
        "use --label-kind binary"
    )
    assert read(folders, label_kind="binary").warnings == ()
    one = np.array([[1, 0, 0]])
    assert list(find_masks({"a": one, "b": one})) == []  # one object an image
    assert len(list(find_masks({"a": one, "b": np.array([[1, 0, 1]])}))) == 1
    assert list(find_masks({"a": one * 0})) == []


@pytest.mark.skipif(not (SHARED / "isbi2012").is_dir(), reason="../shared/data/isbi2012 is not there")
def test_membranes_as_a_stack_with_cells() -> None:
    data = read_training_data(
        DataConfig(
            images=SHARED / "isbi2012" / "train" / "image",
            labels=SHARED / "isbi2012" / "train" / "label",
            classes={"cell interior": 255, "membrane": 0},
            cell_class="cell interior",
            is_stack=True,
        )
    )
    assert [a.stem for a in data.validation] == ["06", "21"]
    assert data.excluded == ("05", "07", "20", "22")
    assert len(data.training) == 18
    assert data.cell_class == 0
    assert data.warnings == ()
    for annotated in data.training:
        assert annotated.cells is not None
        assert np.array_equal(annotated.cells > 0, annotated.label == 0)
        assert annotated.cells.max() > 50


@pytest.mark.skipif(not (SHARED / "dsb2018").is_dir(), reason="../shared/data/dsb2018 is not there")
def test_real_nuclei_are_not_remarked_on(tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        for path in sorted((SHARED / "dsb2018" / kind).iterdir())[::20]:
            (tmp_path / kind / path.name).write_bytes(path.read_bytes())
    for percentiles in (None, (1.0, 99.8)):
        data = read((tmp_path / "images", tmp_path / "labels"), foreground="nucleus", percentiles=percentiles)
        assert data.warnings == ()
        assert len(data.training) + len(data.validation) == 19
