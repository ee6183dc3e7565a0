"""Object-wise scores: found, missed and invented objects over IoU thresholds, and which were split or merged.

1. At threshold t a true and a predicted object match if their IoU is strictly greater than t, as in the 2018 Data
   Science Bowl (Caicedo et al. 2019, Nature Methods 16:1247). From t = 0.5 on an object has at most one match, so the
   matching needs no assignment problem. A program that matches at IoU >= t differs only where an IoU is exactly t.
2. TP are matches, FP predicted objects without one, FN true objects without one. Precision is TP / (TP + FP), recall
   TP / (TP + FN), F1 is 2 TP / (2 TP + FP + FN), average precision (so called there) TP / (TP + FP + FN).
3. Errors are told apart by majority, the rule of Matula et al. 2015 (PLoS ONE 10:e0144959): one object *belongs to*
   another if more than half of its own pixels lie in it. Used in both directions,

   - a true object is *split* if two or more predicted objects belong to it;
   - a predicted object is a *merge* if two or more true objects belong to it;
   - a true object is *missed* if it belongs to no predicted object and none belongs to it;
   - a predicted object is *added* if it belongs to no true object and none belongs to it.

   Exchanging truth and prediction exchanges splits with merges and missed with added. A piece counts however small, so
   crumbs inside a cell make it split. An object in none of these lists may still be badly outlined: that is what the
   thresholds are for.
4. Frames are counted one by one and pooled: scores come from the sums, not from the mean of the frames' scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.errors import ConfigurationError
from unet_deploy.metrics.pairs import Ids, Indices, ObjectOverlaps, PairCounts, count_pairs

IOU_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""Those of the 2018 Data Science Bowl."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdScore:
    """Counts of objects at one threshold; a ratio is None where nothing is divided by nothing."""

    threshold: float
    true_positives: int
    false_positives: int
    false_negatives: int
    matched_iou_sum: float

    @property
    def precision(self) -> float | None:
        """The part of the predicted objects that match."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float | None:
        """The part of the true objects that match."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float | None:
        """The harmonic mean of precision and recall; 0 if nothing matches, None only if there is no object at all."""
        wrong = self.false_positives + self.false_negatives
        return _ratio(2 * self.true_positives, 2 * self.true_positives + wrong)

    @property
    def average_precision(self) -> float | None:
        """Matches over all objects, matched ones once: what the Data Science Bowl calls so."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives + self.false_negatives)

    @property
    def mean_matched_iou(self) -> float | None:
        """The mean IoU of the matches."""
        return _ratio(self.matched_iou_sum, self.true_positives)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameErrors:
    """The objects of one frame that went wrong, by label: true ones in `split` and `missed`, predicted in the others.

    `frame` is the place of the frame in the order of adding, from 0.
    """

    frame: int
    true_objects: int
    predicted_objects: int
    split: tuple[int, ...]
    merged: tuple[int, ...]
    missed: tuple[int, ...]
    added: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceScores:
    """Scores pooled over frames, by ascending threshold, and the errors of each frame."""

    thresholds: tuple[ThresholdScore, ...]
    frames: tuple[FrameErrors, ...]

    @property
    def true_objects(self) -> int:
        """The number of objects in the truth."""
        return sum(frame.true_objects for frame in self.frames)

    @property
    def predicted_objects(self) -> int:
        """The number of objects in the prediction."""
        return sum(frame.predicted_objects for frame in self.frames)

    @property
    def splits(self) -> int:
        """The number of true objects that were split."""
        return sum(len(frame.split) for frame in self.frames)

    @property
    def merges(self) -> int:
        """The number of predicted objects that merge true ones."""
        return sum(len(frame.merged) for frame in self.frames)

    @property
    def missed(self) -> int:
        """The number of true objects that were missed."""
        return sum(len(frame.missed) for frame in self.frames)

    @property
    def added(self) -> int:
        """The number of predicted objects where there is none."""
        return sum(len(frame.added) for frame in self.frames)

    @property
    def mean_f1(self) -> float | None:
        """The mean F1 over the thresholds; None if there is no object at all."""
        values = [score.f1 for score in self.thresholds if score.f1 is not None]
        return sum(values) / len(values) if values else None


class InstanceCounter:
    """Adds up the objects of frame after frame; only counts and the labels of wrong objects are kept.

    Parameters
    ----------
    thresholds
        IoU thresholds, ascending, each in [0.5, 1).

    Raises
    ------
    ConfigurationError
        If there is no threshold, one is outside [0.5, 1), or they do not ascend.

    Examples
    --------
    >>> counter = InstanceCounter(thresholds=(0.5, 0.75))
    >>> counter.add(np.array([1, 1, 1, 0, 2, 2]), np.array([1, 1, 0, 0, 3, 3]))
    >>> [(score.threshold, score.f1) for score in counter.scores().thresholds]
    [(0.5, 1.0), (0.75, 0.5)]
    """

    def __init__(self, *, thresholds: Sequence[float]) -> None:
        self._thresholds = tuple(float(threshold) for threshold in thresholds)
        _require_thresholds(self._thresholds)
        self._matches = [0] * len(self._thresholds)
        self._iou_sums = [0.0] * len(self._thresholds)
        self._frames: list[FrameErrors] = []

    def add(self, truth: npt.NDArray[Any], prediction: npt.NDArray[Any]) -> None:
        """Count a frame, or a whole volume: integer instances, any shape, both the same, 0 background.

        Raises
        ------
        ConfigurationError
            If the shapes differ.
        UnsupportedDtypeError
            If an array is neither integer nor bool.
        ValueRangeError
            If a label is negative.
        """
        self.add_pairs(count_pairs(truth, prediction))

    def add_pairs(self, pairs: PairCounts) -> None:
        """Count a frame or volume that was itself counted part by part with `PairCounter`."""
        overlaps = pairs.objects()
        iou = overlaps.iou()
        for index, threshold in enumerate(self._thresholds):
            matched = iou[iou > threshold]
            self._matches[index] += len(matched)
            self._iou_sums[index] += float(matched.sum())
        self._frames.append(_find_errors(overlaps, frame=len(self._frames)))

    def scores(self) -> InstanceScores:
        """Return the scores of all frames added so far."""
        frames = tuple(self._frames)
        true_objects = sum(frame.true_objects for frame in frames)
        predicted_objects = sum(frame.predicted_objects for frame in frames)
        return InstanceScores(
            thresholds=tuple(
                ThresholdScore(
                    threshold=threshold,
                    true_positives=matches,
                    false_positives=predicted_objects - matches,
                    false_negatives=true_objects - matches,
                    matched_iou_sum=iou_sum,
                )
                for threshold, matches, iou_sum in zip(self._thresholds, self._matches, self._iou_sums, strict=True)
            ),
            frames=frames,
        )


def instance_scores(
    truth: npt.NDArray[Any], prediction: npt.NDArray[Any], *, thresholds: Sequence[float] = IOU_THRESHOLDS
) -> InstanceScores:
    """Score the objects of one frame, or of a volume whose objects span its slices.

    Parameters
    ----------
    truth
        Integer instances, any shape, 0 background. An object is its label, connected or not.
    prediction
        Likewise, of the same shape.
    thresholds
        IoU thresholds, ascending, each in [0.5, 1).

    Returns
    -------
    InstanceScores
        Scores at each threshold, and the objects that were split, merged, missed or added.

    Raises
    ------
    ConfigurationError
        If the shapes differ, there is no threshold, one is outside [0.5, 1), or they do not ascend.
    UnsupportedDtypeError
        If an array is neither integer nor bool.
    ValueRangeError
        If a label is negative.
    """
    counter = InstanceCounter(thresholds=thresholds)
    counter.add(truth, prediction)
    return counter.scores()


def _find_errors(overlaps: ObjectOverlaps, *, frame: int) -> FrameErrors:
    shared, rows, columns = overlaps.shared_pixels, overlaps.truth_index, overlaps.prediction_index
    true_belongs = 2 * shared > overlaps.truth_pixels[rows]
    predicted_belongs = 2 * shared > overlaps.prediction_pixels[columns]
    is_related = true_belongs | predicted_belongs
    return FrameErrors(
        frame=frame,
        true_objects=len(overlaps.truth_ids),
        predicted_objects=len(overlaps.prediction_ids),
        split=_labels(overlaps.truth_ids, rows[predicted_belongs], more_than=1),
        merged=_labels(overlaps.prediction_ids, columns[true_belongs], more_than=1),
        missed=_labels_without(overlaps.truth_ids, rows[is_related]),
        added=_labels_without(overlaps.prediction_ids, columns[is_related]),
    )


def _labels(ids: Ids, index: Indices, *, more_than: int) -> tuple[int, ...]:
    return tuple(ids[np.bincount(index, minlength=len(ids)) > more_than].tolist())


def _labels_without(ids: Ids, index: Indices) -> tuple[int, ...]:
    return tuple(ids[np.bincount(index, minlength=len(ids)) == 0].tolist())


def _require_thresholds(thresholds: tuple[float, ...]) -> None:
    came = ", ".join(f"{threshold:g}" for threshold in thresholds) or "none"
    if not thresholds or not all(0.5 <= threshold < 1 for threshold in thresholds):
        raise ConfigurationError(
            f"IoU thresholds {came}: at least one is needed, and each must be in [0.5, 1)",
            "below 0.5 an object could match several others; at 1 not even equal objects match",
            fix="thresholds=(0.5, 0.75, 0.95)",
        )
    if any(second <= first for first, second in pairwise(thresholds)):
        raise ConfigurationError(
            f"IoU thresholds {came} are out of order; they must ascend, each once",
            "scores are listed in the order of the thresholds",
            fix=f"thresholds=({', '.join(f'{threshold:g}' for threshold in sorted(set(thresholds)))},)",
        )


def _ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None
