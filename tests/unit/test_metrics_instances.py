"""Object scores and kinds of error, on cases small enough to check by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from unet_deploy.errors import ConfigurationError, ShapeMismatchError, UnsupportedDtypeError, ValueRangeError
from unet_deploy.metrics.instances import IOU_THRESHOLDS, FrameErrors, InstanceCounter, ThresholdScore, instance_scores
from unet_deploy.metrics.pairs import PairCounter

Labels = npt.NDArray[Any]


def line(text: str) -> Labels:
    """Read labels from digits; a dot is background."""
    return np.array([0 if letter == "." else int(letter) for letter in text], np.uint8)


def test_the_thresholds_are_those_of_the_data_science_bowl() -> None:
    assert tuple(round(0.5 + 0.05 * step, 2) for step in range(10)) == IOU_THRESHOLDS


@pytest.mark.parametrize(
    ("truth", "prediction", "split", "merged", "missed", "added"),
    [
        ("11.22", "33.44", (), (), (), ()),
        ("11111", "22.33", (1,), (), (), ()),
        ("11111", "22.45", (1,), (), (), ()),  # three pieces are one split object
        ("11.22", "33333", (), (3,), (), ()),
        ("11..2", "55...", (), (), (2,), ()),
        ("11...", "55..6", (), (), (), (6,)),
        ("11111", "2....", (), (), (), ()),  # badly outlined, but found
        ("1....", "22222", (), (), (), ()),
        ("1111..", "..2222", (), (), (1,), (2,)),  # half and half: neither belongs to the other
        ("11112222", "33344444", (), (), (), ()),
        ("111122222", "333444445", (2,), (), (), ()),  # a crumb is a piece, however small
        ("1111111222", "3344444444", (1,), (4,), (), ()),  # both at once
        ("11111", ".....", (), (), (1,), ()),
        (".....", "2.3..", (), (), (), (2, 3)),
        (".....", ".....", (), (), (), ()),
    ],
)
def test_errors_by_hand(
    truth: str,
    prediction: str,
    split: tuple[int, ...],
    merged: tuple[int, ...],
    missed: tuple[int, ...],
    added: tuple[int, ...],
) -> None:
    scores = instance_scores(line(truth), line(prediction))
    assert scores.frames == (
        FrameErrors(
            frame=0,
            true_objects=len(set(truth) - {"."}),
            predicted_objects=len(set(prediction) - {"."}),
            split=split,
            merged=merged,
            missed=missed,
            added=added,
        ),
    )
    counts = (scores.splits, scores.merges, scores.missed, scores.added)
    assert counts == (len(split), len(merged), len(missed), len(added))


def test_scores_by_hand() -> None:
    # IoU 1, 3/4 and 1/2; two predicted objects too many.
    scores = instance_scores(line("11.2222.33..."), line("44.555..3.78."), thresholds=(0.5, 0.7, 0.75, 0.9))
    first, second, third, last = scores.thresholds
    assert first == ThresholdScore(
        threshold=0.5, true_positives=2, false_positives=3, false_negatives=1, matched_iou_sum=1.75
    )
    assert (first.precision, first.recall, first.f1) == (2 / 5, 2 / 3, 4 / 8)
    assert (first.average_precision, first.mean_matched_iou) == (2 / 6, 1.75 / 2)
    assert second.true_positives == 2
    assert third.true_positives == last.true_positives == 1  # an IoU that equals the threshold does not match
    assert scores.mean_f1 == (0.5 + 0.5 + 0.25 + 0.25) / 4
    assert (scores.true_objects, scores.predicted_objects) == (3, 5)


@pytest.mark.parametrize(
    ("truth", "prediction", "precision", "recall", "f1"),
    [("..", "..", None, None, None), ("1.", "..", None, 0, 0), ("..", ".1", 0, None, 0), ("1.", ".1", 0, 0, 0)],
)
def test_nothing_found_and_nothing_to_find(
    truth: str, prediction: str, precision: float | None, recall: float | None, f1: float | None
) -> None:
    scores = instance_scores(line(truth), line(prediction))
    for score in scores.thresholds:
        assert (score.precision, score.recall, score.f1) == (precision, recall, f1)
        assert (score.average_precision, score.mean_matched_iou) == (f1, None)
    assert scores.mean_f1 == f1


def test_an_iou_equal_to_a_threshold_matches_at_none_of_them() -> None:
    for threshold in IOU_THRESHOLDS:
        shared = round(threshold * 20)
        scores = instance_scores(np.ones(20, np.uint8), np.arange(20) < shared, thresholds=[threshold])
        assert scores.thresholds[0].true_positives == 0
        scores = instance_scores(np.ones(20, np.uint8), np.arange(20) <= shared, thresholds=[threshold])
        assert scores.thresholds[0].true_positives == 1


def test_frames_are_pooled() -> None:
    counter = InstanceCounter(thresholds=(0.5,))
    counter.add(line("11.22.33"), line("11.22.33"))
    counter.add(line("11......"), line("......11"))
    counter.add(line("........"), line("........"))
    scores = counter.scores()
    assert scores.thresholds[0].f1 == 6 / 8
    assert [(frame.frame, frame.missed, frame.added) for frame in scores.frames] == [
        (0, (), ()),
        (1, (1,), (1,)),
        (2, (), ()),
    ]


def test_a_volume_by_slices_keeps_its_objects_whole() -> None:
    truth = np.stack([line("11.22"), line("11.22"), line("...22")])
    prediction = np.stack([line("33.44"), line("33.44"), line("...55")])
    pairs = PairCounter()
    for z in range(3):
        pairs.add(truth[z], prediction[z])
    counter = InstanceCounter(thresholds=IOU_THRESHOLDS)
    counter.add_pairs(pairs.counts())
    assert counter.scores() == instance_scores(truth, prediction)
    assert counter.scores().frames[0].split == (2,)


def test_no_frame_no_score() -> None:
    scores = InstanceCounter(thresholds=(0.5,)).scores()
    assert (scores.frames, scores.true_objects, scores.mean_f1) == ((), 0, None)


def test_thresholds_may_be_an_array() -> None:
    scores = instance_scores(line("11"), line("11"), thresholds=np.arange(0.5, 1, 0.05))  # type: ignore[arg-type]
    assert len(scores.thresholds) == 10
    assert scores.mean_f1 == 1


# -- errors


@pytest.mark.parametrize(
    ("thresholds", "came"),
    [((), "none"), ((0.4, 0.6), "0.4, 0.6"), ((0.5, 1.0), "0.5, 1"), ((float("nan"),), "nan")],
)
def test_thresholds_are_at_least_a_half_and_below_one(thresholds: tuple[float, ...], came: str) -> None:
    match = rf"IoU thresholds {came}: at least one is needed, and each must be in \[0\.5, 1\)"
    with pytest.raises(ConfigurationError, match=match) as caught:
        instance_scores(line("1"), line("1"), thresholds=thresholds)
    assert "fix: thresholds=(0.5, 0.75, 0.95)" in str(caught.value)


@pytest.mark.parametrize(
    ("thresholds", "came", "fix"),
    [((0.7, 0.5), "0.7, 0.5", "(0.5, 0.7,)"), ((0.5, 0.5), "0.5, 0.5", "(0.5,)")],
)
def test_thresholds_out_of_order_are_refused(thresholds: tuple[float, ...], came: str, fix: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"IoU thresholds {came} are out of order; they must ascend") as e:
        InstanceCounter(thresholds=thresholds)
    assert str(e.value).endswith(f"fix: thresholds={fix}")


def test_wrong_labels_are_refused() -> None:
    with pytest.raises(ShapeMismatchError, match=r"truth has shape \(2,\), prediction \(3,\); they must be equal"):
        instance_scores(line("11"), line("111"))
    with pytest.raises(UnsupportedDtypeError, match="truth has dtype float32, not integer or bool"):
        instance_scores(line("11").astype(np.float32), line("11"))
    with pytest.raises(ValueRangeError, match="prediction holds the label -1; labels are integers from 0"):
        instance_scores(line("11"), np.array([-1, 2]))
