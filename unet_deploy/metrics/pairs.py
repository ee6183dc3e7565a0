"""How many pixels each true label shares with each predicted label: the one table that every overlap metric needs.

1. Walk both label maps in memory order and cut them into runs where neither label changes.
2. Sort the runs by (truth, prediction) and add up the lengths of equal ones. Segmentations have long runs, so the
   sort sees a small part of the pixels; labels may be any integers, however many and however large.
3. Tables add up: a volume larger than memory is counted slice by slice with `PairCounter`, and an object that spans
   slices is still one object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.errors import ShapeMismatchError, UnsupportedDtypeError, ValueRangeError

Ids = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]
Indices = npt.NDArray[np.intp]

BACKGROUND = 0
"""In instances, the label of what is no object."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairCounts:
    """Pixels of every pair of labels that occurs: three arrays of one length, sorted by truth, then prediction."""

    truth: Ids
    prediction: Ids
    pixels: Counts

    def objects(self) -> ObjectOverlaps:
        """Return the sizes of all objects and the overlaps between them; label 0 is background."""
        truth_ids, rows = np.unique(self.truth, return_inverse=True)
        prediction_ids, columns = np.unique(self.prediction, return_inverse=True)
        # Background takes part in the sizes: an object's pixels over background are its own.
        truth_pixels = _sum_by(rows, self.pixels, len(truth_ids))
        prediction_pixels = _sum_by(columns, self.pixels, len(prediction_ids))
        first_truth, first_prediction = (int(BACKGROUND in ids[:1]) for ids in (truth_ids, prediction_ids))
        is_shared = (self.truth != BACKGROUND) & (self.prediction != BACKGROUND)
        return ObjectOverlaps(
            truth_ids=truth_ids[first_truth:],
            truth_pixels=truth_pixels[first_truth:],
            prediction_ids=prediction_ids[first_prediction:],
            prediction_pixels=prediction_pixels[first_prediction:],
            truth_index=rows[is_shared] - first_truth,
            prediction_index=columns[is_shared] - first_prediction,
            shared_pixels=self.pixels[is_shared],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ObjectOverlaps:
    """Objects and where they overlap.

    `truth_ids` and `prediction_ids` ascend, with the pixels of each. Overlap number k is between the objects at
    ``truth_index[k]`` and ``prediction_index[k]`` and has ``shared_pixels[k]`` pixels.
    """

    truth_ids: Ids
    truth_pixels: Counts
    prediction_ids: Ids
    prediction_pixels: Counts
    truth_index: Indices
    prediction_index: Indices
    shared_pixels: Counts

    def iou(self) -> npt.NDArray[np.float64]:
        """Return the intersection over union of each overlap."""
        both = self.truth_pixels[self.truth_index] + self.prediction_pixels[self.prediction_index]
        ratio: npt.NDArray[np.float64] = self.shared_pixels / (both - self.shared_pixels)
        return ratio


class PairCounter:
    """Counts pairs part by part: slices or blocks of one volume, in any order, each pixel once.

    Examples
    --------
    >>> counter = PairCounter()
    >>> counter.add(np.array([0, 1, 1]), np.array([0, 7, 7]))
    >>> counter.add(np.array([1, 1, 0]), np.array([7, 0, 0]))
    >>> counter.counts().pixels.tolist()
    [2, 1, 3]
    """

    def __init__(self) -> None:
        self._parts: list[PairCounts] = []
        self._pending = 0

    def add(self, truth: npt.NDArray[Any], prediction: npt.NDArray[Any]) -> None:
        """Add a part; takes and raises what `count_pairs` does."""
        part = count_pairs(truth, prediction)
        self._parts.append(part)
        self._pending += len(part.pixels)
        # Merging whenever the new parts outweigh the old sum keeps both the memory and the total work linear.
        if self._pending > 2 * len(self._parts[0].pixels):
            self.counts()

    def counts(self) -> PairCounts:
        """Return the table of all parts added so far."""
        merged = merge_pairs(self._parts)
        self._parts = [merged]
        self._pending = 0
        return merged


def count_pairs(truth: npt.NDArray[Any], prediction: npt.NDArray[Any]) -> PairCounts:
    """Count the pixels of every pair of a true and a predicted label.

    Parameters
    ----------
    truth
        Integer or bool, any shape: the true label of each pixel, from 0.
    prediction
        Likewise, of the same shape.

    Returns
    -------
    PairCounts
        The table; its pixels sum to the size of the arrays.

    Raises
    ------
    ConfigurationError
        If the shapes differ.
    UnsupportedDtypeError
        If an array is neither integer nor bool.
    ValueRangeError
        If a label is negative.

    Examples
    --------
    >>> table = count_pairs(np.array([[0, 1], [1, 1]]), np.array([[0, 2], [2, 0]]))
    >>> list(zip(table.truth.tolist(), table.prediction.tolist(), table.pixels.tolist()))
    [(0, 0, 1), (1, 0, 1), (1, 2, 2)]
    """
    _require_comparable(truth, prediction)
    if truth.size == 0:
        return _sum_equal(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.int64))
    flat_truth, flat_prediction = truth.ravel(), prediction.ravel()
    is_start = np.ones(truth.size, np.bool_)
    np.not_equal(flat_truth[1:], flat_truth[:-1], out=is_start[1:])
    is_start[1:] |= flat_prediction[1:] != flat_prediction[:-1]
    starts = np.flatnonzero(is_start)
    return _sum_equal(
        _as_ids(flat_truth[starts], what="truth"),
        _as_ids(flat_prediction[starts], what="prediction"),
        np.diff(starts, append=truth.size).astype(np.int64),
    )


def merge_pairs(parts: Sequence[PairCounts]) -> PairCounts:
    """Return the sum of the tables of disjoint parts of one image or volume."""
    return _sum_equal(
        np.concatenate([np.empty(0, np.uint64), *(part.truth for part in parts)]),
        np.concatenate([np.empty(0, np.uint64), *(part.prediction for part in parts)]),
        np.concatenate([np.empty(0, np.int64), *(part.pixels for part in parts)]),
    )


def _sum_equal(truth: Ids, prediction: Ids, pixels: Counts) -> PairCounts:
    order = _order(truth, prediction)
    truth, prediction, pixels = truth[order], prediction[order], pixels[order]
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = (truth[1:] != truth[:-1]) | (prediction[1:] != prediction[:-1])
    firsts = np.flatnonzero(is_first)
    summed = np.add.reduceat(pixels, firsts) if firsts.size else pixels
    return PairCounts(truth=truth[firsts], prediction=prediction[firsts], pixels=summed)


def _order(truth: Ids, prediction: Ids) -> Indices:
    if truth.size and int(truth.max()) < 2**32 and int(prediction.max()) < 2**32:
        return np.argsort((truth << np.uint64(32)) | prediction)  # one key sorts four times as fast as two
    return np.lexsort((prediction, truth))


def _sum_by(index: Indices, pixels: Counts, size: int) -> Counts:
    total = np.zeros(size, np.int64)  # integers: np.bincount would add in float64
    np.add.at(total, index, pixels)
    return total


def _require_comparable(truth: npt.NDArray[Any], prediction: npt.NDArray[Any]) -> None:
    for what, labels in (("truth", truth), ("prediction", prediction)):
        if labels.dtype.kind not in "biu":
            raise UnsupportedDtypeError(
                f"{what} has dtype {labels.dtype}, not integer or bool",
                "these metrics compare labels: the class or the object id of each pixel",
                fix=f"give labels: threshold probabilities, or {what}.astype('uint32') if its values are whole numbers",
            )
    if truth.shape != prediction.shape:
        raise ShapeMismatchError(
            f"truth has shape {truth.shape}, prediction {prediction.shape}; they must be equal",
            "each pixel of the prediction is compared with the pixel of the truth at the same place",
            fix="crop both to the same region, or squeeze axes of extent 1",
        )


def _as_ids(labels: npt.NDArray[Any], *, what: str) -> Ids:
    # `labels` are those of the runs: every label of the map is among them.
    if labels.dtype.kind == "i" and (lowest := int(labels.min())) < 0:
        raise ValueRangeError(
            f"{what} holds the label {lowest}; labels are integers from 0",
            "0 is background (or the first class); a negative label often marks pixels that were not annotated",
            fix=f"{what}[{what} < 0] = 0 makes them background; for classes, use a label of their own and `ignore` it",
        )
    return labels.astype(np.uint64)
