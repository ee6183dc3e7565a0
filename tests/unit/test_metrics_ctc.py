"""SEG on cases small enough to check by hand, and what is said of sequences that cannot be scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from unet_deploy.errors import (
    ConfigurationError,
    ShapeMismatchError,
    UnsupportedDtypeError,
    ValueRangeError,
    VolumeNotFoundError,
)
from unet_deploy.metrics.ctc import Frame, SegCounter, require_frames, seg_scores
from unet_deploy.metrics.pairs import PairCounter

Labels = npt.NDArray[Any]


def line(*labels: int) -> Labels:
    return np.array([labels], np.uint16)


def seg_of(truth: Labels, prediction: Labels) -> float | None:
    return seg_scores({Frame(0): truth}, {Frame(0): prediction}).seg


@pytest.mark.parametrize(
    ("truth", "prediction", "seg", "mean_iou"),
    [
        (line(1, 1, 0, 2), line(7, 7, 0, 3), 1.0, 1.0),
        (line(1, 1, 1, 0), line(5, 5, 0, 0), 2 / 3, 2 / 3),
        (line(1, 1, 1, 1), line(5, 5, 0, 0), 0.0, 0.5),  # exactly half does not match
        (line(1, 1, 1, 1), line(5, 5, 6, 6), 0.0, 0.5),  # split into halves
        (line(1, 1, 1, 1), line(5, 5, 5, 6), 3 / 4, 3 / 4),  # the piece too many costs nothing
        (line(1, 1, 2, 2), line(5, 5, 5, 5), 1 / 2, 1 / 2),  # one result matches both
        (line(1, 1, 2, 2), line(5, 5, 0, 0), 1 / 2, 1 / 2),  # one missed
        (line(1, 1, 0, 0), line(5, 5, 6, 6), 1.0, 1.0),  # one too many
        (line(1, 1, 1, 2), line(0, 0, 0, 0), 0.0, 0.0),
    ],
    ids=["same", "part", "half", "halves", "piece", "merge", "missed", "added", "empty prediction"],
)
def test_seg_by_hand(truth: Labels, prediction: Labels, seg: float, mean_iou: float) -> None:
    scores = seg_scores({Frame(0): truth}, {Frame(0): prediction})
    assert (scores.seg, scores.mean_iou) == (seg, mean_iou)


def test_an_object_says_what_matched_it() -> None:
    scores = seg_scores({Frame(4): line(1, 1, 1, 300, 300)}, {Frame(4): line(9, 9, 0, 8, 0)})
    (frame,) = scores.frames
    assert frame.frame == Frame(4)
    assert [(item.label, item.pixels, item.match) for item in frame.objects] == [(1, 3, 9), (300, 2, None)]
    assert [item.jaccard for item in frame.objects] == [2 / 3, 0]
    assert [item.best_iou for item in frame.objects] == [2 / 3, 1 / 2]


def test_objects_are_pooled_not_frames() -> None:
    truth = {Frame(0): line(1, 2, 3, 0), Frame(1): line(1, 1, 1, 1)}
    result = {Frame(0): line(1, 2, 3, 0), Frame(1): line(0, 0, 0, 0)}
    scores = seg_scores(truth, result)
    assert [frame.seg for frame in scores.frames] == [1, 0]
    assert scores.seg == 3 / 4
    assert len(scores.objects) == 4


def test_a_truth_without_objects_has_no_seg() -> None:
    scores = seg_scores({Frame(0): line(0, 0)}, {Frame(0): line(0, 1)})
    assert (scores.seg, scores.mean_iou, scores.frames[0].seg, scores.objects) == (None, None, None, ())
    assert scores.log().endswith("\nSEG measure: none, no object\n")


def test_an_empty_frame_does_not_change_the_pool() -> None:
    frames = {Frame(0): line(1, 1, 1), Frame(1): line(0, 0, 0)}
    assert seg_scores(frames, {Frame(0): line(1, 1, 0), Frame(1): line(2, 2, 2)}).seg == 2 / 3


def test_one_object_fills_the_image() -> None:
    full = np.ones((64, 48), np.uint8)
    assert seg_of(full, full * 3) == 1
    assert seg_of(full, np.zeros_like(full)) == 0


def test_more_objects_than_sixteen_bits_hold() -> None:
    truth = np.arange(1, 90_001, dtype=np.uint32).reshape(300, 300)
    prediction = truth.copy()
    prediction[0] = 0
    scores = seg_scores({Frame(0): truth}, {Frame(0): prediction})
    assert len(scores.objects) == 90_000
    assert scores.seg == 89_700 / 90_000


def test_labels_of_64_bits_keep_their_value() -> None:
    huge = 2**64 - 1
    scores = seg_scores({Frame(0): np.array([huge, 1], np.uint64)}, {Frame(0): np.array([huge - 1, 0], np.uint64)})
    assert [(item.label, item.match) for item in scores.objects] == [(1, None), (huge, huge - 1)]


def test_the_log_is_that_of_the_challenge() -> None:
    frames = {Frame(2): line(1, 1, 1, 0, 4), Frame(10): line(3, 3, 3, 3, 3)}
    result = {Frame(2): line(1, 1, 0, 0, 4), Frame(10): line(0, 0, 3, 3, 3)}
    assert seg_scores(frames, result).log().splitlines() == [
        "----------T=2 Z=0----------",
        "GT_label=1 J=0.666667",
        "GT_label=4 J=1",
        "----------T=10 Z=0----------",
        "GT_label=3 J=0.6",
        "========================================================",
        "SEG measure: 0.755556",
    ]


def test_frames_come_out_in_order_whatever_the_order_of_adding() -> None:
    counter = SegCounter()
    for frame in (Frame(3), Frame(1, 5), Frame(1, 2)):
        counter.add(frame, line(1), line(1))
    assert [str(frame.frame) for frame in counter.scores().frames] == ["T=1 Z=2", "T=1 Z=5", "T=3 Z=0"]


def test_a_stack_counted_by_slices_is_the_whole_stack() -> None:
    truth = np.array([[1, 1, 0], [1, 2, 2], [0, 2, 2]], np.uint16)
    result = np.array([[1, 0, 0], [1, 1, 2], [0, 2, 2]], np.uint16)
    pairs = PairCounter()
    for z in range(3):
        pairs.add(truth[z], result[z])
    counter = SegCounter()
    counter.add_pairs(Frame(0), pairs.counts())
    assert counter.scores() == seg_scores({Frame(0): truth}, {Frame(0): result})


class ReadOnAccess(Mapping[Frame, Labels]):
    """A sequence of files, of which one is in memory at a time."""

    def __init__(self, count: int) -> None:
        self.read: list[Frame] = []
        self._frames = [Frame(t) for t in range(count)]

    def __getitem__(self, frame: Frame) -> Labels:
        self.read.append(frame)
        return line(frame.t + 1)

    def __iter__(self) -> Iterator[Frame]:
        return iter(self._frames)

    def __len__(self) -> int:
        return len(self._frames)


def test_each_annotated_frame_is_read_once() -> None:
    truth, result = ReadOnAccess(3), ReadOnAccess(50)
    assert seg_scores(truth, result).seg == 1
    assert truth.read == result.read == [Frame(0), Frame(1), Frame(2)]


# -- errors


def test_missing_frames_are_named_before_anything_is_read() -> None:
    truth = ReadOnAccess(9)
    with pytest.raises(VolumeNotFoundError, match="the result lacks 8 of 9 annotated frames: T=1 Z=0, ") as caught:
        seg_scores(truth, {Frame(0): line(1)})
    assert "T=5 Z=0, ...\n" in str(caught.value)
    assert "fix: segment those frames too; a frame in which nothing was found is an image of zeros" in str(caught.value)
    assert truth.read == []
    with pytest.raises(VolumeNotFoundError, match=r"the result lacks 1 of 2 annotated frames: T=7 Z=3\n"):
        require_frames([Frame(0), Frame(7, 3)], [Frame(0), Frame(7)])


def test_a_truth_without_frames_is_refused() -> None:
    with pytest.raises(VolumeNotFoundError, match="the truth has no annotated frame; SEG needs at least one"):
        seg_scores({}, {Frame(0): line(1)})


def test_a_frame_counts_once() -> None:
    counter = SegCounter()
    counter.add(Frame(1), line(1), line(1))
    with pytest.raises(ConfigurationError, match="frame T=1 Z=0 was added twice"):
        counter.add(Frame(1), line(1), line(1))


def test_shapes_must_be_equal() -> None:
    with pytest.raises(ShapeMismatchError, match=r"truth has shape \(1, 3\), prediction \(1, 2\); they must be equal"):
        seg_of(line(1, 2, 3), line(1, 2))


@pytest.mark.parametrize("dtype", [np.float32, np.complex64, np.str_])
def test_labels_are_whole_numbers(dtype: type[Any]) -> None:
    with pytest.raises(UnsupportedDtypeError, match=r"prediction has dtype .*, not integer or bool") as caught:
        seg_of(line(1, 2), line(1, 2).astype(dtype))
    assert "fix: give labels: threshold probabilities, or prediction.astype('uint32')" in str(caught.value)


def test_labels_are_not_negative() -> None:
    with pytest.raises(ValueRangeError, match="truth holds the label -2; labels are integers from 0") as caught:
        seg_of(np.array([[1, -2, -1]]), line(1, 2, 3))
    assert "fix: truth[truth < 0] = 0 makes them background; for classes, use a label" in str(caught.value)
