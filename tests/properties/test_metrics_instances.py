"""What the overlap metrics promise for every pair of label maps, checked against plain loops."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, product
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unet_deploy.metrics.ctc import Frame, SegScores, seg_scores
from unet_deploy.metrics.instances import InstanceScores, instance_scores
from unet_deploy.metrics.overlap import class_overlap
from unet_deploy.metrics.pairs import PairCounter, count_pairs

Labels = npt.NDArray[Any]
CLASSES = 5
shapes = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=6)


@st.composite
def maps(draw: st.DrawFn) -> tuple[Labels, Labels]:
    """Draw two label maps of one shape: noise, blocks, empty or one object."""
    shape = draw(shapes)
    noise = hnp.arrays(draw(st.sampled_from([np.uint8, np.int32, np.uint64])), shape, elements=st.integers(0, 4))
    constant = st.integers(0, 4).map(lambda label: np.full(shape, label, np.uint16))
    blocks = hnp.arrays(np.int64, shape[-1:], elements=st.integers(0, 4)).map(
        lambda row: np.array(np.broadcast_to(row, shape))
    )
    anything = st.one_of(noise, constant, blocks)
    return draw(anything), draw(anything)


def seg_of(truth: Labels, prediction: Labels) -> SegScores:
    return seg_scores({Frame(0): truth}, {Frame(0): prediction})


def ids(labels: Labels) -> list[int]:
    return sorted(set(labels.ravel().tolist()) - {0})


def iou(truth: Labels, prediction: Labels, t: int, p: int) -> float:
    return float(np.sum((truth == t) & (prediction == p)) / np.sum((truth == t) | (prediction == p)))


def counts(scores: InstanceScores) -> list[tuple[int, int, int]]:
    return [(s.true_positives, s.false_positives, s.false_negatives) for s in scores.thresholds]


# -- against plain loops


@given(maps())
def test_pairs_are_those_of_a_loop(both: tuple[Labels, Labels]) -> None:
    truth, prediction = both
    expected = Counter(zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True))
    pairs = count_pairs(truth, prediction)
    found = zip(pairs.truth.tolist(), pairs.prediction.tolist(), pairs.pixels.tolist(), strict=True)
    assert list(found) == [(t, p, pixels) for (t, p), pixels in sorted(expected.items())]


@given(maps())
def test_seg_is_that_of_the_definition(both: tuple[Labels, Labels]) -> None:
    truth, prediction = both
    for item in seg_of(truth, prediction).objects:
        mine = truth == item.label
        matches = [p for p in ids(prediction) if np.sum(mine & (prediction == p)) > 0.5 * np.sum(mine)]
        assert [item.match] == (matches or [None])
        assert item.jaccard == (iou(truth, prediction, item.label, matches[0]) if matches else 0)
        assert item.best_iou == max((iou(truth, prediction, item.label, p) for p in ids(prediction)), default=0)


@given(maps())
def test_matches_are_those_of_a_loop(both: tuple[Labels, Labels]) -> None:
    truth, prediction = both
    values = [iou(truth, prediction, t, p) for t, p in product(ids(truth), ids(prediction))]
    for score in instance_scores(truth, prediction).thresholds:
        hits = sum(value > score.threshold for value in values)
        assert score.true_positives == hits <= min(len(ids(truth)), len(ids(prediction)))
        assert score.true_positives + score.false_negatives == len(ids(truth))
        assert score.true_positives + score.false_positives == len(ids(prediction))


@given(maps())
def test_errors_are_those_of_the_definition(both: tuple[Labels, Labels]) -> None:
    truth, prediction = both

    def belongs(inner: Labels, i: int, outer: Labels, o: int) -> bool:
        return bool(2 * np.sum((inner == i) & (outer == o)) > np.sum(inner == i))

    (errors,) = instance_scores(truth, prediction).frames
    true, predicted = ids(truth), ids(prediction)
    into = {t: [p for p in predicted if belongs(prediction, p, truth, t)] for t in true}
    onto = {p: [t for t in true if belongs(truth, t, prediction, p)] for p in predicted}
    assert list(errors.split) == [t for t in true if len(into[t]) >= 2]
    assert list(errors.merged) == [p for p in predicted if len(onto[p]) >= 2]
    assert list(errors.missed) == [t for t in true if not into[t] and not any(t in onto[p] for p in predicted)]
    assert list(errors.added) == [p for p in predicted if not onto[p] and not any(p in into[t] for t in true)]


@given(maps(), st.sampled_from([1, 2**30 - 1, 2**30, 2**61]))
def test_large_labels_are_counted_like_small_ones(both: tuple[Labels, Labels], factor: int) -> None:
    small = count_pairs(*both)
    truth, prediction = (labels.astype(np.uint64) * np.uint64(factor) for labels in both)
    large = count_pairs(truth, prediction)
    assert large.truth.tolist() == [factor * label for label in small.truth.tolist()]
    assert large.prediction.tolist() == [factor * label for label in small.prediction.tolist()]
    assert large.pixels.tolist() == small.pixels.tolist()


# -- symmetry, labels, identity


@given(maps())
def test_exchanging_truth_and_prediction(both: tuple[Labels, Labels]) -> None:
    forth, back = instance_scores(*both), instance_scores(*reversed(both))
    for one, other in zip(forth.thresholds, back.thresholds, strict=True):
        assert (one.f1, one.average_precision) == (other.f1, other.average_precision)
        assert (one.precision, one.recall) == (other.recall, other.precision)
    (one_frame,), (other_frame,) = forth.frames, back.frames
    assert (one_frame.split, one_frame.missed) == (other_frame.merged, other_frame.added)
    assert (one_frame.merged, one_frame.added) == (other_frame.split, other_frame.missed)
    overlap, transposed = class_overlap(*both, classes=CLASSES), class_overlap(*reversed(both), classes=CLASSES)
    assert overlap.confusion == tuple(zip(*transposed.confusion, strict=True))
    assert [(c.iou, c.dice, c.precision) for c in overlap.classes] == [
        (c.iou, c.dice, c.recall) for c in transposed.classes
    ]


@given(maps(), st.permutations([1, 2, 3, 4]), st.sampled_from([1, 1000, 2**40]))
def test_labels_are_only_names(both: tuple[Labels, Labels], order: list[int], factor: int) -> None:
    truth, prediction = both
    names = np.array([0, *(factor * label for label in order)], np.uint64)
    renamed_truth, renamed = names[truth.astype(np.intp)], names[::-1][(4 - prediction.astype(np.intp))]
    assert counts(instance_scores(renamed_truth, renamed)) == counts(instance_scores(truth, prediction))
    was, now = instance_scores(truth, prediction), instance_scores(renamed_truth, renamed)
    assert (was.splits, was.merges, was.missed, was.added) == (now.splits, now.merges, now.missed, now.added)
    new_scores = {int(names[item.label]): item.jaccard for item in seg_of(truth, prediction).objects}
    assert {item.label: item.jaccard for item in seg_of(renamed_truth, renamed).objects} == new_scores


@given(maps())
def test_identical_maps_are_perfect(both: tuple[Labels, Labels]) -> None:
    labels, _ = both
    perfect = 1 if ids(labels) else None
    scores = instance_scores(labels, labels.copy())
    assert {score.f1 for score in scores.thresholds} == {perfect}
    assert (scores.mean_f1, scores.splits, scores.merges, scores.missed, scores.added) == (perfect, 0, 0, 0, 0)
    assert (seg_of(labels, labels).seg, seg_of(labels, labels).mean_iou) == (perfect, perfect)
    overlap = class_overlap(labels, labels, classes=CLASSES)
    assert (overlap.mean_iou, overlap.mean_dice, overlap.pixel_accuracy) == (1, 1, 1)


@given(maps())
def test_empty_truth_and_empty_prediction(both: tuple[Labels, Labels]) -> None:
    labels, _ = both
    empty = np.zeros_like(labels)
    objects = len(ids(labels))
    found, invented = instance_scores(labels, empty), instance_scores(empty, labels)
    assert set(counts(found)) == {(0, 0, objects)}
    assert set(counts(invented)) == {(0, objects, 0)}
    assert (found.missed, found.added, found.splits, found.merges) == (objects, 0, 0, 0)
    assert (invented.missed, invented.added, invented.splits, invented.merges) == (0, objects, 0, 0)
    assert seg_of(labels, empty).seg == (0 if objects else None)
    assert seg_of(empty, labels).seg is None


@given(maps())
def test_every_score_is_a_fraction(both: tuple[Labels, Labels]) -> None:
    scores, overlap, seg = instance_scores(*both), class_overlap(*both, classes=CLASSES), seg_of(*both)
    values = [value for s in scores.thresholds for value in (s.precision, s.recall, s.f1, s.average_precision)]
    values += [value for c in overlap.classes for value in (c.iou, c.dice, c.precision, c.recall)]
    values += [overlap.mean_iou, overlap.mean_dice, overlap.pixel_accuracy, seg.seg, seg.mean_iou, scores.mean_f1]
    assert all(value is None or 0 <= value <= 1 for value in values)
    assert [score.true_positives for score in scores.thresholds] == sorted(
        (score.true_positives for score in scores.thresholds), reverse=True
    )


# -- streaming


@given(maps(), st.data())
def test_any_cut_of_a_volume_gives_the_same_table(both: tuple[Labels, Labels], data: st.DataObject) -> None:
    truth, prediction = both
    cuts = sorted(data.draw(st.lists(st.integers(0, len(truth)), max_size=4)))
    edges = [0, *cuts, len(truth)]
    parts = data.draw(st.permutations(list(pairwise(edges))))
    counter = PairCounter()
    for start, stop in parts:  # empty ones too
        counter.add(truth[start:stop], prediction[start:stop])
    whole, streamed = count_pairs(truth, prediction), counter.counts()
    for name in ("truth", "prediction", "pixels"):
        assert getattr(whole, name).tolist() == getattr(streamed, name).tolist()


@settings(max_examples=5)
@given(st.integers(65_536, 200_000), st.integers(1, 100), st.sampled_from([np.uint32, np.int64, np.uint64]))
def test_more_objects_than_sixteen_bits_hold(objects: int, deleted: int, dtype: type[Any]) -> None:
    truth = np.arange(1, objects + 1, dtype=dtype)
    prediction = truth[::-1].copy()  # other labels, the same objects
    prediction[:deleted] = 0
    scores = instance_scores(truth, prediction, thresholds=(0.5,))
    assert counts(scores) == [(objects - deleted, 0, deleted)]
    assert (scores.missed, scores.splits, scores.merges, scores.added) == (deleted, 0, 0, 0)
    assert seg_of(truth, prediction).seg == (objects - deleted) / objects
