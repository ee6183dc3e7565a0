"""Training data is checked as a whole, split by stem, and measured on its training part only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

io = pytest.importorskip("skimage.io", reason="the extra 'train' is not installed")

from unet_deploy.errors import TrainingDataError  # noqa: E402
from unet_deploy.percentiles import percentile_range  # noqa: E402
from unet_deploy.training.data import TrainingData, normalise, read_training_data  # noqa: E402
from unet_deploy.training.data_config import DataConfig  # noqa: E402

CLASSES = {"inside": 255, "membrane": 0}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three sound pairs of 24 x 32 px: 00, 01, 02."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    random = np.random.default_rng(0)
    for index in range(3):
        save(images / f"{index:02}.png", random.integers(0, 256, (24, 32), np.uint8))
        save(labels / f"{index:02}.png", np.where(random.random((24, 32)) < 0.25, 0, 255).astype(np.uint8))
    return images, labels


def save(path: Path, array: np.ndarray) -> None:
    io.imsave(path, array, check_contrast=False)


def load(folder: Path, stem: str) -> np.ndarray:
    return np.asarray(io.imread(folder / f"{stem}.png"))


def read(folders: tuple[Path, Path], **settings: Any) -> TrainingData:
    return read_training_data(DataConfig(images=folders[0], labels=folders[1], **settings))


def problems_of(folders: tuple[Path, Path], **settings: Any) -> str:
    with pytest.raises(TrainingDataError, match=r"problem\(s\) with the training data") as caught:
        read(folders, **{"classes": CLASSES, "validation": ("02",), **settings})
    return str(caught.value)


def test_sound_data_is_split_indexed_and_measured_on_its_training_part(folders: tuple[Path, Path]) -> None:
    data = read(folders, classes=CLASSES, validation=("02",), exclude=("01",))
    only = load(folders[0], "00")
    assert [a.stem for a in data.training] == ["00"]
    assert [a.stem for a in data.validation] == ["02"]
    assert data.excluded == ("01",)
    assert data.classes == ("inside", "membrane")
    assert (data.dtype, data.value_range) == ("uint8", (0.0, 255.0))
    assert data.mean == pytest.approx(only.mean())
    assert data.std == pytest.approx(only.std())
    assert len(data.histogram.counts) == 64
    assert sum(data.histogram.counts) == only.size
    label = load(folders[1], "00")
    assert data.class_pixels == (int((label == 255).sum()), int((label == 0).sum()))
    assert np.array_equal(data.training[0].label, np.where(label == 0, 1, 0))


def test_without_classes_the_sorted_values_are_the_classes(folders: tuple[Path, Path]) -> None:
    data = read(folders)
    assert data.classes == ("class 0", "class 1")
    assert np.array_equal(data.training[0].label, load(folders[1], "00") // 255)


def test_without_validation_the_last_tenth_is_taken(folders: tuple[Path, Path]) -> None:
    assert [a.stem for a in read(folders).validation] == ["02"]
    assert [a.stem for a in read(folders, exclude=("02",)).validation] == ["01"]


@pytest.mark.parametrize(
    ("dtype", "expected"), [("uint16", (0.0, 65535.0)), ("float32", (-1.5, 2.0)), ("int16", (-32768.0, 32767.0))]
)
def test_other_dtypes_come_as_tiff_with_their_range(
    folders: tuple[Path, Path], dtype: str, expected: tuple[float, float]
) -> None:
    for index in range(3):
        (folders[0] / f"{index:02}.png").unlink()
        values = np.linspace(-1.5, 2.0, 24 * 32) if dtype == "float32" else np.arange(24 * 32) + index
        save(folders[0] / f"{index:02}.tif", values.reshape(24, 32).astype(dtype))
    data = read(folders, classes=CLASSES)
    assert (data.dtype, data.value_range) == (dtype, expected)


def test_every_problem_is_reported_together(folders: tuple[Path, Path]) -> None:
    images, labels = folders
    random = np.random.default_rng(1)
    noise = random.integers(0, 256, (24, 32), np.uint8)
    label = load(labels, "00")
    save(images / "03.png", noise)  # no label
    save(labels / "04.png", label)  # no image
    for stem, image, its_label in (
        ("05", noise[:, :20], label),
        ("06", np.full_like(noise, 7), label),
        ("07", noise[:8, :8], label[:8, :8]),
        ("08", np.stack([noise] * 3, -1), label),
        ("09", noise, np.full_like(label, 100)),
    ):
        save(images / f"{stem}.png", image)
        save(labels / f"{stem}.png", its_label)
    save(images / "10.tif", noise.astype(np.float64))
    save(labels / "10.tif", label.astype(np.float32))
    save(images / "11.tif", np.where(noise > 128, np.nan, 1.0).astype(np.float32))
    save(labels / "11.png", label)
    (images / "12.png").write_bytes(b"no picture")
    (labels / "12.tif").write_bytes(b"no picture")
    whole = (images / "00.png").read_bytes()
    (images / "13.png").write_bytes(whole[: len(whole) // 2])
    save(labels / "13.png", label)
    text = problems_of(folders, validation=("02x", "00"), exclude=("00",))
    for expected in (
        "03: an image without a label",
        "04: a label without an image",
        "05: the image is (24, 20), its label (24, 32)",
        "06.png is constant (7)",
        "07: (8, 8) is smaller than 16 x 16 px",
        "08.png has shape (24, 32, 3), which is RGB; one grey channel (y, x) was expected: convert it",
        "09: label values 100 on 768 px belong to no class (inside=255, membrane=0)",
        "10.tif is float64; one of uint8, uint16, int16, float32 was expected",
        "10.tif is float32 holding whole numbers; an integer type was expected: save it as uint8 or uint16",
        "11.tif holds NaN or infinity",
        "12.png cannot be read (it does not start as a PNG file does)",
        "12.tif cannot be read",
        "13.png cannot be read",
        "02x: named as validation, but no file has that stem; did you mean '02'?",
        "00: both validation and excluded",
        "fix: correct these files or settings, or leave an image out with --exclude STEM",
    ):
        assert expected in text
    assert text.startswith("15 problem(s)")


def test_a_folder_that_is_not_there_and_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    text = problems_of((tmp_path / "nowhere", tmp_path / "empty"), validation=None)
    assert f"images: there is no folder {tmp_path / 'nowhere'}" in text
    assert f"labels: no .png, .tif, .tiff, .zarr file in {tmp_path / 'empty'}" in text


def test_two_files_of_one_stem(folders: tuple[Path, Path]) -> None:
    save(folders[0] / "00.tif", load(folders[0], "00"))
    assert "00: two files of that stem" in problems_of(folders)


def test_images_of_several_dtypes(folders: tuple[Path, Path]) -> None:
    (folders[0] / "00.png").unlink()
    save(folders[0] / "00.tif", np.arange(24 * 32, dtype=np.uint16).reshape(24, 32))
    assert "the images differ in dtype: uint16, uint8; all must have one" in problems_of(folders)


def test_a_class_that_occurs_nowhere(folders: tuple[Path, Path]) -> None:
    text = problems_of(folders, classes={**CLASSES, "nucleus": 7})
    assert "class 'nucleus' (value 7) occurs in no training label" in text


def test_classes_that_cannot_be(folders: tuple[Path, Path]) -> None:
    assert "1 class(es) given; at least two are needed" in problems_of(folders, classes={"all": 0})
    assert "two classes have the same label value" in problems_of(folders, classes={"a": 0, "b": 0})


def test_object_numbers_are_no_classes(folders: tuple[Path, Path]) -> None:
    save(folders[1] / "00.png", np.arange(24 * 32, dtype=np.uint16).reshape(24, 32))
    assert "object numbers are no classes" in problems_of(folders, classes=None)


def test_nothing_left_to_train_on(folders: tuple[Path, Path]) -> None:
    text = problems_of(folders, validation=("01", "02"), exclude=("00",))
    assert "no image is left to train on: 2 for validation, 1 excluded" in text


def test_a_long_list_is_cut(folders: tuple[Path, Path]) -> None:
    for index in range(40):
        save(folders[0] / f"x{index:02}.png", load(folders[0], "00"))
    text = problems_of(folders)
    assert text.startswith("40 problem(s)")
    assert "... and 10 more" in text


def test_training_data_compares_by_identity(folders: tuple[Path, Path]) -> None:
    data = read(folders)
    assert isinstance(data, TrainingData)
    assert data != read(folders)


def test_settings_that_cannot_be_come_with_the_rest(folders: tuple[Path, Path]) -> None:
    text = problems_of(folders, gap=-1, percentiles=(99, 1), validation=(), classes={"a": 0, "b": 255}, ignore=255)
    assert "gap -1: a number of images, 0 or more, was expected" in text
    assert "percentiles (99, 1): two of 0..100, the lower first, were expected" in text
    assert "no image to validate on is named" in text
    assert "ignore: 255 is the label value of class 'b'" in text
    text = problems_of(folders, label_kind="binary", cell_class="inside", foreground="background", ignore=0)
    assert "classes are named, but the labels are binary: name none, or use --label-kind classes" in text
    assert "cell class 'inside': labels that are binary have none but the foreground" in text
    assert "the foreground is called 'background', as the other class is" in text
    assert "ignore: 0 is the background of labels that are binary" in text
    assert "label kind 'blobs': one of classes, instances, binary was expected" in problems_of(
        folders, label_kind="blobs"
    )
    text = problems_of(folders, cell_class="insied")
    assert "cell class 'insied' is none of the classes (inside, membrane); did you mean 'inside'?" in text


def test_percentiles_give_each_image_its_range_and_the_constants_are_of_scaled_values(
    folders: tuple[Path, Path],
) -> None:
    data = read(folders, classes=CLASSES, percentiles=(10, 90))
    assert data.percentiles == (10, 90)
    for annotated in (*data.training, *data.validation):
        assert annotated.grey_range == percentile_range(annotated.image, (10, 90))
    scaled = np.stack([normalise(a, mean=0, std=1) for a in data.training]).astype(np.float64)
    assert data.mean == pytest.approx(scaled.mean(), rel=1e-12)
    assert data.std == pytest.approx(scaled.std(), rel=1e-12)
    together = np.stack([normalise(a, mean=data.mean, std=data.std) for a in data.training])
    assert together.mean() == pytest.approx(0, abs=1e-5)
    assert together.std() == pytest.approx(1, abs=1e-5)
    plain = read(folders, classes=CLASSES)
    assert data.histogram == plain.histogram  # of grey values as they are in the files
    assert all(a.grey_range is None for a in plain.training)


def test_ignored_pixels_are_not_counted_but_their_grey_values_are(folders: tuple[Path, Path]) -> None:
    for stem in ("00", "01", "02"):
        label = load(folders[1], stem)
        label[:6] = 9
        save(folders[1] / f"{stem}.png", label)
    data = read(folders, classes=CLASSES, ignore=9, validation=("02",))
    assert sum(data.class_pixels) == 2 * 18 * 32
    assert data.mean == pytest.approx(np.mean([load(folders[0], s) for s in ("00", "01")]))
    for annotated in data.training:
        assert annotated.ignored is not None
        assert np.array_equal(annotated.ignored, load(folders[1], annotated.stem) == 9)
        assert not annotated.label[:6].any()
    assert "label values 9 on 192 px belong to no class" in problems_of(folders)


def test_a_stack_leaves_neighbours_out_and_says_so_when_nothing_is_left(folders: tuple[Path, Path]) -> None:
    for index in range(3, 12):
        save(folders[0] / f"{index:02}.png", load(folders[0], "00"))
        save(folders[1] / f"{index:02}.png", load(folders[1], "00"))
    data = read(folders, classes=CLASSES, is_stack=True, exclude=("00",))
    assert [a.stem for a in data.validation] == ["03", "09"]
    assert data.excluded == ("00", "02", "04", "08", "10")
    assert [a.stem for a in data.training] == ["01", "05", "06", "07", "11"]
    text = problems_of(folders, is_stack=True, validation=None, gap=3)
    assert "no image is left to train on: 2 for validation, 10 excluded, 10 of them as neighbours in the stack" in text
    assert "choose with --validate, or a smaller --gap" in text


def test_no_objects_and_no_foreground_in_any_training_label(folders: tuple[Path, Path]) -> None:
    for stem in ("00", "01"):
        save(folders[1] / f"{stem}.png", np.zeros((24, 32), np.uint8))
    text = problems_of(folders, classes=None, label_kind="instances")
    assert "the training labels hold no objects: every pixel is 0" in text
    text = problems_of(folders, classes=None, label_kind="binary")
    assert "the training labels hold no foreground: every pixel is 0" in text
    for stem in ("00", "01"):
        save(folders[1] / f"{stem}.png", np.ones((24, 32), np.uint8))
    text = problems_of(folders, classes=None, label_kind="binary")
    assert "the training labels hold no background" in text


def test_labels_with_values_below_0(folders: tuple[Path, Path]) -> None:
    (folders[1] / "00.png").unlink()
    label = np.zeros((24, 32), np.int16)
    label[2:5, 2:5], label[9:12] = 4, -1
    save(folders[1] / "00.tif", label)
    for kind in ("instances", "binary"):
        text = problems_of(folders, classes=None, label_kind=kind)
        assert "00: label values below 0, the least -1, on 96 px; 0 for the background" in text
    data = read(folders, label_kind="instances", ignore=-1)
    assert data.training[0].ignored is not None
    assert int(data.training[0].ignored.sum()) == 96
    text = problems_of(folders, classes=None)
    assert "the labels hold values below 0, the least -1: name the classes" in text


def test_the_order_is_that_of_the_stems_whatever_the_files_are_called(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        tiff = load(folder, "00")
        save(folder / "a-b.tif", tiff)
        save(folder / "a.png", tiff)  # as a file name after a-b.tif, as a stem before a-b
    assert [a.stem for a in read(folders, validation=("02",)).training] == ["00", "01", "a", "a-b"]
