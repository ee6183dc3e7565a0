"""Training data is checked as a whole, split by stem, and measured on its training part only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

io = pytest.importorskip("skimage.io", reason="the extra 'train' is not installed")

from unet_deploy.errors import TrainingDataError  # noqa: E402
from unet_deploy.training.data import TrainingData, last_tenth, read_training_data  # noqa: E402

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


def problems_of(folders: tuple[Path, Path], **settings: object) -> str:
    with pytest.raises(TrainingDataError, match=r"problem\(s\) with the training data") as caught:
        read_training_data(*folders, **{"classes": CLASSES, "validation": ["02"], **settings})  # type: ignore[arg-type]
    return str(caught.value)


def test_sound_data_is_split_indexed_and_measured_on_its_training_part(folders: tuple[Path, Path]) -> None:
    data = read_training_data(*folders, classes=CLASSES, validation=["02"], exclude=["01"])
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
    data = read_training_data(*folders)
    assert data.classes == ("class 0", "class 1")
    assert np.array_equal(data.training[0].label, load(folders[1], "00") // 255)


def test_without_validation_the_last_tenth_is_taken(folders: tuple[Path, Path]) -> None:
    assert [a.stem for a in read_training_data(*folders).validation] == ["02"]
    assert [a.stem for a in read_training_data(*folders, exclude=["02"]).validation] == ["01"]
    assert last_tenth([str(i) for i in range(30)]) == ("27", "28", "29")


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
    data = read_training_data(*folders, classes=CLASSES)
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
    text = problems_of(folders, validation=["02x", "00"], exclude=["00"])
    for expected in (
        "03: an image without a label",
        "04: a label without an image",
        "05: the image is (24, 20), its label (24, 32)",
        "06.png is constant (7)",
        "07: (8, 8) is smaller than 16 x 16 px",
        "08.png has shape (24, 32, 3); (y, x) with one grey channel was expected",
        "09: label values 100 on 768 px belong to no class (inside=255, membrane=0)",
        "10.tif is float64; one of uint8, uint16, int16, float32 was expected",
        "10.tif is float32; whole numbers were expected",
        "11.tif holds NaN or infinity",
        "12.png cannot be read (ValueError: it does not start as a PNG file does)",
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
    text = problems_of((tmp_path / "nowhere", tmp_path / "empty"), validation=[])
    assert f"images: there is no folder {tmp_path / 'nowhere'}" in text
    assert f"labels: no .png, .tif, .tiff file in {tmp_path / 'empty'}" in text


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
    assert "1 class given; at least two are needed" in problems_of(folders, classes={"all": 0})
    assert "two classes have the same label value" in problems_of(folders, classes={"a": 0, "b": 0})


def test_object_numbers_are_no_classes(folders: tuple[Path, Path]) -> None:
    save(folders[1] / "00.png", np.arange(24 * 32, dtype=np.uint16).reshape(24, 32))
    assert "object numbers are no classes" in problems_of(folders, classes=None)


def test_nothing_left_to_train_on(folders: tuple[Path, Path]) -> None:
    text = problems_of(folders, validation=["01", "02"], exclude=["00"])
    assert "no image is left to train on: 2 for validation, 1 excluded" in text


def test_a_long_list_is_cut(folders: tuple[Path, Path]) -> None:
    for index in range(40):
        save(folders[0] / f"x{index:02}.png", load(folders[0], "00"))
    text = problems_of(folders)
    assert text.startswith("40 problem(s)")
    assert "... and 10 more" in text


def test_training_data_compares_by_identity(folders: tuple[Path, Path]) -> None:
    data = read_training_data(*folders)
    assert isinstance(data, TrainingData)
    assert data != read_training_data(*folders)
