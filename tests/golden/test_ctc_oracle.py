"""SEG is the number that the Cell Tracking Challenge's own program prints, object by object."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pytest

from unet_deploy.metrics.ctc import Frame, SegScores, seg_scores

ORACLE = Path(__file__).resolve().parents[2].parent / "shared" / "oracle" / "ctc"


def read_frames(folder: Path, pattern: str) -> dict[Frame, npt.NDArray[Any]]:
    skimage_io = pytest.importorskip("skimage.io", reason="scikit-image reads the oracle's TIFF files")
    return {
        Frame(int(re.findall(r"\d+", path.stem)[-1])): skimage_io.imread(path) for path in sorted(folder.glob(pattern))
    }


@pytest.fixture(scope="module")
def scores() -> SegScores:
    if not ORACLE.is_dir():
        pytest.skip(f"the oracle {ORACLE} is not on this machine")
    truth = read_frames(ORACLE / "01_GT" / "SEG", "man_seg*.tif")
    assert len(truth) == 3
    return seg_scores(truth, read_frames(ORACLE / "01_RES", "mask*.tif"))


def test_seg_is_the_official_value(scores: SegScores) -> None:
    assert len(scores.objects) == 192
    assert scores.seg is not None
    assert f"{scores.seg:.6f}" == "0.656356"


def test_every_object_is_as_in_the_official_log(scores: SegScores) -> None:
    theirs = (ORACLE / "SEG_log.txt").read_text(encoding="utf-8").splitlines()
    assert len([line for line in theirs if line.startswith("GT_label=")]) == 192
    assert scores.log().splitlines() == theirs


def test_the_pool_is_not_the_mean_of_frames(scores: SegScores) -> None:
    by_frame = [frame.seg for frame in scores.frames if frame.seg is not None]
    assert [len(frame.objects) for frame in scores.frames] == [125, 64, 3]
    assert f"{sum(by_frame) / 3:.2f}" == "0.54"


def test_mean_iou_is_never_below_seg(scores: SegScores) -> None:
    assert all(item.best_iou >= item.jaccard for item in scores.objects)
    assert scores.mean_iou is not None
    assert scores.seg is not None
    assert scores.mean_iou > scores.seg
