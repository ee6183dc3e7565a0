"""Pixels shared by labels and classes, counted by hand; streaming changes nothing; wrong labels are refused."""

from __future__ import annotations

import numpy as np
import pytest

from unet_deploy.errors import ConfigurationError, ShapeMismatchError, UnsupportedDtypeError, ValueRangeError
from unet_deploy.metrics.overlap import ClassOverlap, OverlapCounter, class_overlap
from unet_deploy.metrics.pairs import PairCounter, count_pairs, merge_pairs

TRUTH = np.array([[0, 0, 1, 1], [0, 2, 2, 1]], np.uint8)
PREDICTION = np.array([[0, 1, 1, 1], [0, 2, 0, 0]], np.uint8)


def test_confusion_by_hand() -> None:
    scores = class_overlap(TRUTH, PREDICTION, classes=3)
    assert scores.confusion == ((2, 1, 0), (1, 2, 0), (1, 0, 1))
    assert scores.classes[1] == ClassOverlap(label=1, true_pixels=3, predicted_pixels=3, shared_pixels=2)
    assert [overlap.iou for overlap in scores.classes] == [2 / 5, 2 / 4, 1 / 2]
    assert [overlap.dice for overlap in scores.classes] == [4 / 7, 4 / 6, 2 / 3]
    assert [overlap.precision for overlap in scores.classes] == [2 / 4, 2 / 3, 1]
    assert [overlap.recall for overlap in scores.classes] == [2 / 3, 2 / 3, 1 / 2]
    assert scores.mean_iou == pytest.approx((0.4 + 0.5 + 0.5) / 3, abs=1e-15)
    assert scores.mean_dice == pytest.approx((4 / 7 + 4 / 3) / 3, abs=1e-15)
    assert scores.pixel_accuracy == 5 / 8


def test_a_class_in_neither_map_does_not_count() -> None:
    scores = class_overlap(np.zeros((3, 3), np.int64), np.zeros((3, 3), np.uint8), classes=2)
    assert (scores.classes[1].iou, scores.classes[1].dice) == (None, None)
    assert (scores.classes[1].precision, scores.classes[1].recall) == (None, None)
    assert (scores.classes[0].iou, scores.mean_iou, scores.mean_dice, scores.pixel_accuracy) == (1, 1, 1, 1)


@pytest.mark.parametrize("is_exchanged", [False, True])
def test_a_class_in_one_map_only_scores_nothing(is_exchanged: bool) -> None:
    maps = [np.zeros((2, 2), np.bool_), np.array([[False, False], [True, False]])]
    scores = class_overlap(*(reversed(maps) if is_exchanged else maps))
    assert (scores.classes[1].iou, scores.classes[1].dice) == (0, 0)
    assert {scores.classes[1].precision, scores.classes[1].recall} == {0, None}
    assert scores.mean_iou == 3 / 8


def test_one_class_fills_the_image() -> None:
    full = np.ones((5, 7), np.bool_)
    scores = class_overlap(full, full)
    assert (scores.classes[0].iou, scores.classes[1].iou, scores.mean_iou) == (None, 1, 1)


def test_nothing_at_all_has_no_score() -> None:
    scores = OverlapCounter(classes=2).scores()
    assert scores.confusion == ((0, 0), (0, 0))
    assert (scores.mean_iou, scores.mean_dice, scores.pixel_accuracy) == (None, None, None)
    assert class_overlap(np.empty((0, 4), np.uint8), np.empty((0, 4), np.uint8)) == scores


@pytest.mark.parametrize("ignore", [1, 255])
def test_pixels_that_were_not_annotated_count_nowhere(ignore: int) -> None:
    truth = np.where(TRUTH == 1, ignore, TRUTH).astype(np.uint8)
    prediction = np.where(TRUTH == 1, 77, PREDICTION)  # even what is no class
    scores = class_overlap(truth, prediction, classes=3, ignore=ignore)
    assert scores.confusion == ((2, 1, 0), (0, 0, 0), (1, 0, 1))


def test_slices_add_up_to_the_volume() -> None:
    random = np.random.default_rng(5)
    truth, prediction = random.integers(0, 4, (2, 9, 16, 12))
    counter = OverlapCounter(classes=4)
    for z in (3, 0, 8, 1, 2, 4, 7, 6, 5):
        counter.add(truth[z], prediction[z])
        counter.scores()  # looking in between changes nothing
    assert counter.scores() == class_overlap(truth, prediction, classes=4)
    assert class_overlap(truth, prediction, classes=4) == class_overlap(
        np.asfortranarray(truth), prediction[::-1][::-1], classes=4
    )


# -- pairs


def test_pairs_are_sorted_and_complete() -> None:
    pairs = count_pairs(np.array([3, 3, 0, 3, 70_000]), np.array([1, 1, 2, 1, 0], np.uint8))
    assert pairs.truth.tolist() == [0, 3, 70_000]
    assert pairs.prediction.tolist() == [2, 1, 0]
    assert pairs.pixels.tolist() == [1, 3, 1]


def test_an_object_includes_what_lies_over_background() -> None:
    objects = count_pairs(np.array([1, 1, 1, 0, 2]), np.array([4, 0, 0, 4, 4])).objects()
    assert (objects.truth_ids.tolist(), objects.truth_pixels.tolist()) == ([1, 2], [3, 1])
    assert (objects.prediction_ids.tolist(), objects.prediction_pixels.tolist()) == ([4], [3])
    assert (objects.truth_index.tolist(), objects.prediction_index.tolist()) == ([0, 1], [0, 0])
    assert objects.iou().tolist() == [1 / 5, 1 / 3]


def test_a_map_without_background_keeps_its_first_object() -> None:
    objects = count_pairs(np.array([1, 2]), np.array([0, 0])).objects()
    assert (objects.truth_ids.tolist(), objects.prediction_ids.tolist()) == ([1, 2], [])
    assert objects.iou().tolist() == []


def test_the_counter_holds_no_more_than_a_few_tables() -> None:
    labels = np.arange(1000)
    counter = PairCounter()
    for _ in range(100):
        counter.add(labels, labels)
        assert sum(len(part.pixels) for part in counter._parts) <= 4 * len(labels)
    assert counter.counts().pixels.tolist() == [100] * 1000


def test_no_parts_make_an_empty_table() -> None:
    assert merge_pairs([]).pixels.tolist() == PairCounter().counts().pixels.tolist() == []


# -- errors


@pytest.mark.parametrize(("classes", "came"), [(0, "0"), (-1, "-1"), (257, "257")])
def test_the_number_of_classes_is_bounded(classes: int, came: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"number of classes {came} is not in 1..256") as caught:
        OverlapCounter(classes=classes)
    assert "maps of objects are scored by unet_deploy.metrics.instances" in str(caught.value)


def test_a_label_beyond_the_classes_is_refused() -> None:
    mask = np.array([0, 255], np.uint8)
    with pytest.raises(ValueRangeError, match=r"prediction holds the label 255, but there are the classes 0\.\.1") as e:
        class_overlap(mask > 0, mask)
    assert "fix: for a mask: prediction > 0; for more classes: classes=256" in str(e.value)
    with pytest.raises(ValueRangeError, match=r"truth holds the label 2, but"):
        class_overlap(TRUTH, PREDICTION, classes=2)


def test_shapes_must_be_equal() -> None:
    with pytest.raises(ShapeMismatchError, match=r"truth has shape \(2, 4\), prediction \(8,\); they must be equal"):
        class_overlap(TRUTH, PREDICTION.ravel())


def test_labels_are_whole_numbers_from_0() -> None:
    with pytest.raises(UnsupportedDtypeError, match="truth has dtype float64, not integer or bool"):
        class_overlap(TRUTH / 2, PREDICTION)
    with pytest.raises(ValueRangeError, match="prediction holds the label -1; labels are integers from 0"):
        class_overlap(TRUTH, PREDICTION.astype(np.int8) - 1)
