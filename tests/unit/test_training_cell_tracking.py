"""Cell Tracking Challenge folders: annotated frames are used, cells without annotation are not taught as background."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

io = pytest.importorskip("skimage.io", reason="the extra 'train' is not installed")
tifffile = pytest.importorskip("tifffile", reason="the extra 'train' is not installed")

from unet_deploy.errors import TrainingDataError  # noqa: E402
from unet_deploy.training.cell_tracking import largest_radius, unannotated_area  # noqa: E402
from unet_deploy.training.data import TrainingData, read_training_data  # noqa: E402
from unet_deploy.training.data_config import DataConfig  # noqa: E402

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
SHAPE = (40, 48)


def read(root: Path, **settings: Any) -> TrainingData:
    config = DataConfig(images=root / "01", labels=root / "01_GT", **{"label_kind": "instances", **settings})
    return read_training_data(config)


def problems_of(root: Path, **settings: Any) -> str:
    with pytest.raises(TrainingDataError) as caught:
        read(root, **settings)
    return str(caught.value)


def disc(y: int, x: int, radius: float) -> np.ndarray:
    rows, columns = np.ogrid[: SHAPE[0], : SHAPE[1]]
    return np.asarray((rows - y) ** 2 + (columns - x) ** 2 <= radius**2)


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, array, photometric="minisblack")


@pytest.fixture
def sequence(tmp_path: Path) -> Path:
    """Five frames of three cells; SEG annotates frames 1, 3 and 4, and of frame 3 only one cell."""
    random = np.random.default_rng(0)
    for frame in range(5):
        write(tmp_path / "01" / f"t{frame:03}.tif", random.integers(0, 256, SHAPE, np.uint8))
        cells, markers = np.zeros(SHAPE, np.uint16), np.zeros(SHAPE, np.uint16)
        for number, (y, x, radius) in enumerate([(10, 10, 4), (10, 36, 6), (30, 24, 5)], start=1):
            markers[disc(y, x, 1)] = 10 * number
            if frame != 3 or number == 1:
                cells[disc(y, x, radius)] = number
        write(tmp_path / "01_GT" / "TRA" / f"man_track{frame:03}.tif", markers)
        if frame in {1, 3, 4}:
            write(tmp_path / "01_GT" / "SEG" / f"man_seg{frame:03}.tif", cells)
    (tmp_path / "01_GT" / "TRA" / "man_track.txt").write_text("1 0 4 0\n")
    return tmp_path


def test_only_annotated_frames_are_used_and_lone_markers_are_ignored_around(sequence: Path) -> None:
    data = read(sequence, validation=("t004",), foreground="cell")
    assert [a.stem for a in data.training] == ["t001", "t003"]
    assert [a.stem for a in data.validation] == ["t004"]
    assert data.classes == ("background", "cell")
    whole, partial = data.training
    assert whole.ignored is not None
    assert not whole.ignored.any()
    assert partial.ignored is not None
    lone = disc(10, 36, 1) | disc(30, 24, 1)
    near = [disc(int(y), int(x), 6) for y, x in np.argwhere(lone)]  # R is that of the largest cell: 6
    assert np.array_equal(partial.ignored, np.any(near, axis=0))
    assert partial.instances is not None
    assert np.array_equal(partial.instances, disc(10, 10, 4))
    assert sum(data.class_pixels) == 2 * SHAPE[0] * SHAPE[1] - int(partial.ignored.sum())


def test_validation_frames_do_not_decide_the_radius(sequence: Path) -> None:
    cells = np.zeros(SHAPE, np.uint16)
    cells[disc(20, 20, 15)] = 1
    path = sequence / "01_GT" / "SEG" / "man_seg004.tif"
    before = read(sequence, validation=("t004",)).training[1].ignored
    write(path, cells)
    after = read(sequence, validation=("t004",)).training[1].ignored
    assert before is not None
    assert after is not None
    assert np.array_equal(before, after)


def test_without_markers_nothing_is_ignored(sequence: Path) -> None:
    for path in (sequence / "01_GT" / "TRA").iterdir():
        path.unlink()
    assert all(a.ignored is None for a in read(sequence).training)
    (sequence / "01_GT" / "TRA").rmdir()
    assert all(a.ignored is None for a in read(sequence).training)


def test_slices_of_frames_with_z(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    frames = random.integers(0, 256, (2, 4, *SHAPE), np.uint8)
    cells = np.where(disc(20, 20, 6), 3, 0).astype(np.uint16)
    markers = np.stack([np.where(disc(20, 20, 1) | disc(8, 40, 1), 1 + disc(8, 40, 1), 0)] * 4).astype(np.uint16)
    for frame in range(2):
        write(tmp_path / "01" / f"t{frame:03}.tif", frames[frame])
        write(tmp_path / "01_GT" / "TRA" / f"man_track{frame:03}.tif", markers)
    for frame, z in ((0, 1), (0, 3), (1, 2)):
        write(tmp_path / "01_GT" / "SEG" / f"man_seg_{frame:03}_{z:03}.tif", cells)
    data = read(tmp_path)
    images = [*data.training, *data.validation]
    assert [a.stem for a in images] == ["t000_z001", "t000_z003", "t001_z002"]
    for annotated, (frame, z) in zip(images, ((0, 1), (0, 3), (1, 2)), strict=True):
        assert np.array_equal(annotated.image, frames[frame, z])
        assert annotated.ignored is not None
        assert annotated.ignored[8, 40]


def test_problems_of_a_sequence(sequence: Path) -> None:
    text = problems_of(sequence, label_kind="binary")
    assert "whose labels number the cells, but the label kind is binary: use --label-kind instances" in text
    (sequence / "01" / "t003.tif").unlink()
    write(sequence / "01_GT" / "TRA" / "man_track001.tif", np.zeros((8, 8), np.uint16))
    write(sequence / "01_GT" / "SEG" / "man_seg004.tif", np.zeros((3, *SHAPE), np.uint16))
    text = problems_of(sequence)
    assert "t003: " in text
    assert f"has no image t003.tif in {sequence / '01'}" in text
    assert "t001: the label is (40, 48), its markers are (8, 8)" in text
    assert "man_seg004.tif has shape (3, 40, 48)" in text or "man_seg004.tif has 3 pages" in text
    for path in (sequence / "01_GT" / "SEG").iterdir():
        path.unlink()
    assert f"labels: no man_segTTT.tif in {sequence / '01_GT' / 'SEG'}" in problems_of(sequence)
    for path in (sequence / "01").iterdir():
        path.unlink()
    (sequence / "01").rmdir()
    assert f"images: there is no folder {sequence / '01'}" in problems_of(sequence)


def test_radius_and_area_of_nothing() -> None:
    empty = np.zeros((8, 8), np.uint16)
    assert largest_radius([]) == 0
    assert largest_radius([empty]) == 0
    assert not unannotated_area(empty, empty, radius=3).any()
    one = empty.copy()
    one[4, 4] = 1
    assert unannotated_area(empty, one, radius=0).sum() == 1
    assert not unannotated_area(one, one, radius=3).any()
    assert largest_radius([np.array([[5, 5, 5, 5, 0]])]) == 1.5


@pytest.mark.skipif(not (SHARED / "dsb2018").is_dir(), reason="../shared/data/dsb2018 is not there")
def test_real_nuclei_with_partial_annotation(tmp_path: Path) -> None:
    """Half of the nuclei of real images lose their annotation; most of their pixels must come out ignored."""
    paths = sorted((SHARED / "dsb2018" / "images").iterdir())[:6]
    hidden: dict[str, np.ndarray] = {}
    for frame, path in enumerate(paths):
        truth = np.asarray(io.imread(SHARED / "dsb2018" / "labels" / path.name)).astype(np.uint16)
        partial = np.where(truth % 2 == 1, truth, 0).astype(np.uint16)
        write(tmp_path / "01" / f"t{frame:03}.tif", np.asarray(io.imread(path)))
        write(tmp_path / "01_GT" / "SEG" / f"man_seg{frame:03}.tif", partial)
        write(tmp_path / "01_GT" / "TRA" / f"man_track{frame:03}.tif", truth)
        hidden[f"t{frame:03}"] = (truth > 0) & (partial == 0)
    data = read(tmp_path)
    images = [*data.training, *data.validation]
    assert len(images) == 6
    assert sum(int(mask.sum()) for mask in hidden.values()) > 1000
    for annotated in images:
        assert annotated.ignored is not None
        assert annotated.cells is not None
        assert annotated.ignored[hidden[annotated.stem]].all()
        assert not (annotated.ignored & (annotated.cells > 0)).any()
        assert not annotated.label[annotated.ignored].any()
