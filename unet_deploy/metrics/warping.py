"""The warping error of Jain et al. 2010 (CVPR, 2488): which errors are of topology and not of a border's exact place.

For each slice and threshold, with foreground 4-connected, background 8-connected, and background around the slice:

1. *Mismatches* are the pixels where truth and thresholded prediction differ.
2. The truth is warped towards the prediction: mismatches are visited in descending distance of their probability from
   the threshold (of equal ones, column by column) and flipped if they are *simple*, that is if flipping changes neither
   the number of objects nor of holes. Passes repeat until one flips nothing.
3. What is left cannot be removed without changing the topology. Each pixel left is classified by its eight neighbours
   in the warped truth: whether flipping it would split or merge cells, or add or delete a hole or an object.
4. The warping error is (split + merge pixels) / pixels, the lowest over the thresholds. The classic warping error, of
   all six types, is given beside it.

A pixel whose neighbours are of one object and background is a split if, with it removed, its neighbours fall into two
objects. *radius* says how far is looked for another way round: -1 the whole image, 20 the 41×41 pixels around it.
Scores with different radii cannot be compared; the challenge's program takes either.

Taken as they are, though odd, from the program that defined the published numbers (Fiji, Trainable Segmentation): a
pixel that touches a second object only by a corner counts as split or merge, and an object shrunk to one pixel beside a
corner of another counts as a hole deleted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.errors import ConfigurationError
from unet_deploy.metrics._isbi_input import (
    ISBI_THRESHOLDS,
    Labels,
    Mask,
    Probability,
    SliceReadable,
    each_slice,
    find_touching,
    require_thresholds,
)
from unet_deploy.metrics._warp import Mismatch, classify_mismatches, warp
from unet_deploy.metrics.vrand import require_slices

WHOLE_IMAGE = -1
"""The radius that looks everywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MismatchPixels:
    """Pixels left over by the warping, by type; in the order of `Mismatch`."""

    split: int = 0
    merge: int = 0
    hole_added: int = 0
    hole_deleted: int = 0
    object_added: int = 0
    object_deleted: int = 0

    @property
    def total(self) -> int:
        """Of all types."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class WarpingScore:
    """The mismatches at one threshold, summed over slices."""

    threshold: float
    mismatches: MismatchPixels
    pixels: int

    @property
    def error(self) -> float:
        """The part of all pixels that split or merge cells."""
        return (self.mismatches.split + self.mismatches.merge) / self.pixels

    @property
    def classic_error(self) -> float:
        """The part of all pixels that are mismatches of any type."""
        return self.mismatches.total / self.pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class WarpingScores:
    """The warping error over the thresholds; of equally good ones, the lowest is the best."""

    rows: tuple[WarpingScore, ...]
    radius: int
    """With which splits were told from deleted holes; -1 is the whole image."""

    @property
    def error(self) -> float:
        """The challenge's warping error; 0 is perfect."""
        return self.best.error

    @property
    def best(self) -> WarpingScore:
        """Where splits and merges are fewest."""
        return min(self.rows, key=lambda row: row.error)

    @property
    def lowest_classic_error(self) -> float:
        """The lowest error of all types, perhaps at another threshold."""
        return min(row.classic_error for row in self.rows)


class WarpingCounter:
    """Counts mismatches slice after slice; only the counts are kept.

    Examples
    --------
    >>> truth = np.zeros((7, 9), np.uint8)
    >>> truth[1:6, 1:4] = truth[1:6, 5:8] = 255
    >>> prediction = truth / 255
    >>> prediction[3, 4] = 1  # the membrane has a gap
    >>> counter = WarpingCounter(thresholds=(0.5,))
    >>> counter.add(truth, prediction)
    >>> counter.scores().best.mismatches.merge
    1
    """

    def __init__(self, *, thresholds: Sequence[float] = ISBI_THRESHOLDS, radius: int = WHOLE_IMAGE) -> None:
        self._thresholds = require_thresholds(thresholds)
        self._radius = _require_radius(radius)
        self._counts = np.zeros((len(self._thresholds), len(Mismatch)), np.int64)
        self._pixels = 0
        self._n_slices = 0

    def add(self, truth: SliceReadable, probability: SliceReadable) -> None:
        """Count a slice (y, x) or a stack (z, y, x); takes and raises what `warping_error` does."""
        for labels, values in each_slice(truth, probability):
            self.add_checked(labels, values)

    def add_checked(self, labels: Labels, probability: Probability) -> None:
        """Count one slice that `each_slice` gave."""
        _require_membrane(labels)
        self._n_slices += 1
        self._pixels += labels.size
        for k, threshold in enumerate(self._thresholds):
            kinds = _find_mismatches(labels != 0, probability, threshold=threshold, radius=self._radius)
            self._counts[k] += np.bincount(kinds.ravel(), minlength=len(Mismatch))

    def scores(self) -> WarpingScores:
        """Return the scores of all slices added so far."""
        require_slices(self._n_slices)
        names = [field.name for field in fields(MismatchPixels)]
        rows = tuple(
            WarpingScore(
                threshold=threshold,
                mismatches=MismatchPixels(**dict(zip(names, counts[1:], strict=True))),
                pixels=self._pixels,
            )
            for threshold, counts in zip(self._thresholds, self._counts.tolist(), strict=True)
        )
        return WarpingScores(rows=rows, radius=self._radius)


def warping_error(
    truth: SliceReadable,
    probability: SliceReadable,
    *,
    thresholds: Sequence[float] = ISBI_THRESHOLDS,
    radius: int = WHOLE_IMAGE,
) -> WarpingScores:
    """Score topology: the lowest part of pixels, over the thresholds, that split or merge cells.

    Not symmetric: it is the truth that is warped.

    Parameters
    ----------
    truth
        Integer or bool, (y, x) or (z, y, x): 0 is membrane, 255 or the cell's id is inside.
    probability
        Of the inside of cells, the same shape: float in [0, 1], or uint8 to be divided by 255.
    thresholds
        Increasing, in [0, 1).
    radius
        How far around a pixel to look whether it splits a cell, in pixels; -1, or one larger than the image, is the
        whole image.

    Returns
    -------
    WarpingScores
        The mismatches by type at each threshold, the lowest error, and the radius.

    Raises
    ------
    ConfigurationError
        If the shapes differ, there is no pixel, cells with different ids touch, the radius is neither -1 nor positive,
        or the thresholds are not increasing in [0, 1).
    UnsupportedAxesError
        If the arrays are neither (y, x) nor (z, y, x).
    UnsupportedDtypeError
        If the truth is neither integer nor bool, or the probability neither float, uint8 nor bool.
    ValueRangeError
        If a label is negative, or a probability outside [0, 1].
    MissingDependencyError
        If SciPy is not installed.
    """
    counter = WarpingCounter(thresholds=thresholds, radius=radius)
    counter.add(truth, probability)
    return counter.scores()


def find_mismatches(
    truth: npt.NDArray[Any], probability: npt.NDArray[Any], *, threshold: float, radius: int = WHOLE_IMAGE
) -> npt.NDArray[np.uint8]:
    """Return where the prediction's topology is wrong, and how: a map of `Mismatch` values, shaped as the truth.

    Parameters and errors are those of `warping_error`.
    """
    (threshold,), radius = require_thresholds((threshold,)), _require_radius(radius)
    kinds = []
    for labels, values in each_slice(truth, probability):
        _require_membrane(labels)
        kinds.append(_find_mismatches(labels != 0, values, threshold=threshold, radius=radius))
    return np.stack(kinds).reshape(truth.shape)


def _find_mismatches(truth: Mask, probability: Probability, *, threshold: float, radius: int) -> npt.NDArray[np.uint8]:
    warped, is_mismatch = warp(truth, probability, threshold=threshold)
    return classify_mismatches(warped, is_mismatch, radius=radius)


def _require_radius(radius: int) -> int:
    if radius != WHOLE_IMAGE and radius < 1:
        raise ConfigurationError(
            f"radius {radius} is neither -1 nor at least 1",
            "within it the warping error looks whether a pixel splits a cell; -1 is the whole image",
            fix="leave it out for the whole image, or use 20 to compare with scores that did",
        )
    return radius


def _require_membrane(labels: Labels) -> None:
    if (found := find_touching(labels)) is not None:
        y, x, near, far = found
        raise ConfigurationError(
            f"labels {near} and {far} touch at y={y}, x={x} of the truth; 0 must lie between",
            "the warping error sees only what is inside and what is membrane: touching cells would be one",
            fix="set the border to 0: truth[skimage.segmentation.find_boundaries(truth, connectivity=1)] = 0",
        )
