"""Overlap of classes: intersection over union and Dice of each class of two label maps, and the confusion behind them.

For class c, with T the pixels that are truly c and P the pixels predicted c:

1. IoU (Jaccard 1912) is ``|T ∩ P| / |T ∪ P|``; Dice (Dice 1945), the F1 of pixels, is ``2 |T ∩ P| / (|T| + |P|)``.
2. A class that is in neither map has no value (None) and does not count in the means. A class that is in one map only
   has IoU and Dice 0.
3. Pixel counts are added over all parts of a volume first and divided once, so that cutting a volume differently
   changes nothing; the mean of the slices' scores is another number.
4. Pixels whose *true* label is `ignore` were not annotated: they count nowhere, whatever is predicted there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.errors import ConfigurationError, ValueRangeError
from unet_deploy.metrics.pairs import PairCounter, PairCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassOverlap:
    """How well one class is found, in pixels; the ratios are None where nothing is divided by nothing."""

    label: int
    true_pixels: int
    predicted_pixels: int
    shared_pixels: int

    @property
    def iou(self) -> float | None:
        """Intersection over union."""
        return _ratio(self.shared_pixels, self.true_pixels + self.predicted_pixels - self.shared_pixels)

    @property
    def dice(self) -> float | None:
        """Twice the intersection over the sum of both sizes."""
        return _ratio(2 * self.shared_pixels, self.true_pixels + self.predicted_pixels)

    @property
    def precision(self) -> float | None:
        """The part of the predicted pixels that is right."""
        return _ratio(self.shared_pixels, self.predicted_pixels)

    @property
    def recall(self) -> float | None:
        """The part of the true pixels that was found."""
        return _ratio(self.shared_pixels, self.true_pixels)


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapScores:
    """Scores of all classes. ``confusion[t][p]`` is the number of pixels of class t that were predicted class p."""

    confusion: tuple[tuple[int, ...], ...]

    @property
    def classes(self) -> tuple[ClassOverlap, ...]:
        """The scores of each class; its index is its label."""
        matrix = self.confusion
        return tuple(
            ClassOverlap(
                label=label,
                true_pixels=sum(matrix[label]),
                predicted_pixels=sum(row[label] for row in matrix),
                shared_pixels=matrix[label][label],
            )
            for label in range(len(matrix))
        )

    @property
    def mean_iou(self) -> float | None:
        """The mean IoU of the classes that occur."""
        return _mean(overlap.iou for overlap in self.classes)

    @property
    def mean_dice(self) -> float | None:
        """The mean Dice of the classes that occur."""
        return _mean(overlap.dice for overlap in self.classes)

    @property
    def pixel_accuracy(self) -> float | None:
        """The part of all pixels whose class is right."""
        right = sum(row[label] for label, row in enumerate(self.confusion))
        return _ratio(right, sum(sum(row) for row in self.confusion))


class OverlapCounter:
    """Adds up the confusion of two label maps, part by part.

    Parameters
    ----------
    classes
        How many classes there are; labels are 0..classes - 1.
    ignore
        A true label, among the classes or not, whose pixels count nowhere.

    Raises
    ------
    ConfigurationError
        If `classes` is not in 1..256.

    Examples
    --------
    >>> counter = OverlapCounter(classes=2)
    >>> for z in range(3):
    ...     counter.add(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]))
    >>> scores = counter.scores()
    >>> scores.confusion, scores.classes[0].iou, scores.classes[1].dice
    (((3, 0), (3, 6)), 0.5, 0.8)
    """

    def __init__(self, *, classes: int, ignore: int | None = None) -> None:
        if not 1 <= classes <= 256:
            raise ConfigurationError(
                f"number of classes {classes} is not in 1..256",
                "a class map has a few classes; maps of objects are scored by unet_deploy.metrics.instances",
                fix="give the number of the model's classes, background included",
            )
        self._classes = classes
        self._ignore = ignore
        self._pairs = PairCounter()

    def add(self, truth: npt.NDArray[Any], prediction: npt.NDArray[Any]) -> None:
        """Add a part of the volume: integer or bool labels, any shape, both the same.

        Raises
        ------
        ConfigurationError
            If the shapes differ.
        UnsupportedDtypeError
            If an array is neither integer nor bool.
        ValueRangeError
            If a label is negative.
        """
        self._pairs.add(truth, prediction)

    def scores(self) -> OverlapScores:
        """Return the scores of all parts added so far.

        Raises
        ------
        ValueRangeError
            If a label is not one of the classes.
        """
        pairs = self._pairs.counts()
        if self._ignore is not None:
            is_counted = pairs.truth != self._ignore
            pairs = PairCounts(
                truth=pairs.truth[is_counted],
                prediction=pairs.prediction[is_counted],
                pixels=pairs.pixels[is_counted],
            )
        for what, labels in (("truth", pairs.truth), ("prediction", pairs.prediction)):
            self._require_classes(labels, what=what)
        matrix = np.zeros((self._classes, self._classes), np.int64)
        matrix[pairs.truth.astype(np.intp), pairs.prediction.astype(np.intp)] = pairs.pixels
        return OverlapScores(confusion=tuple(tuple(row) for row in matrix.tolist()))

    def _require_classes(self, labels: npt.NDArray[np.uint64], *, what: str) -> None:
        if labels.size and (highest := int(labels.max())) >= self._classes:
            raise ValueRangeError(
                f"{what} holds the label {highest}, but there are the classes 0..{self._classes - 1}",
                "a mask of 0 and 255 has two labels, but not the labels 0 and 1",
                fix=f"for a mask: {what} > 0; for more classes: classes={highest + 1}",
            )


def class_overlap(
    truth: npt.NDArray[Any], prediction: npt.NDArray[Any], *, classes: int = 2, ignore: int | None = None
) -> OverlapScores:
    """Score two label maps that fit in memory.

    Parameters
    ----------
    truth
        Integer or bool, any shape: the true class of each pixel.
    prediction
        Likewise, of the same shape.
    classes
        How many classes there are; labels are 0..classes - 1.
    ignore
        A true label whose pixels count nowhere.

    Returns
    -------
    OverlapScores
        The confusion and what follows from it.

    Raises
    ------
    ConfigurationError
        If the shapes differ, or `classes` is not in 1..256.
    UnsupportedDtypeError
        If an array is neither integer nor bool.
    ValueRangeError
        If a label is negative, or not one of the classes.
    """
    counter = OverlapCounter(classes=classes, ignore=ignore)
    counter.add(truth, prediction)
    return counter.scores()


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
