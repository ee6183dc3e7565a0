"""Pixel error and Rand error of the ISBI 2012 EM segmentation challenge, and all of its metrics in one pass.

For each threshold, with a pixel predicted inside a cell if its probability is greater:

1. **Pixel error**: 1 − the F-score of the pixels, where inside is the positive class. The plain part of pixels that
   disagree is given beside it; it is not the challenge's.
2. **Rand error**: 1 − the F-score of the pairs of pixels that share a cell, restricted to the foreground: only pixels
   inside true cells count, and predicted membrane there counts as cells of one pixel (`PixelPairs` in vrand.py).
   Cells are 4-connected within their slice. ``skimage.metrics.adapted_rand_error`` is something else.
3. **Warping error**: warping.py.

Pixels and pairs are summed over slices before F is formed, and the error is the lowest over the thresholds
(Arganda-Carreras et al. 2015, Front. Neuroanat. 9:142; the challenge's page; Fiji's Trainable Segmentation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from unet_deploy.metrics._isbi_input import (
    ISBI_THRESHOLDS,
    Labels,
    Probability,
    SliceReadable,
    each_slice,
    is_inside,
    label_components,
    require_thresholds,
)
from unet_deploy.metrics.pairs import count_pairs
from unet_deploy.metrics.vrand import (
    PixelPairs,
    VCounter,
    VScores,
    count_pixel_pairs,
    mean_or_one,
    require_slices,
)
from unet_deploy.metrics.warping import WHOLE_IMAGE, WarpingCounter, WarpingScores


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelScore:
    """Pixels at one threshold; inside a cell is positive."""

    threshold: float
    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @property
    def precision(self) -> float:
        """The part of the pixels predicted inside that are; 1 where none is wrong."""
        positives = self.true_positives + self.false_positives
        return self.true_positives / positives if self.false_positives else 1.0

    @property
    def recall(self) -> float:
        """The part of the pixels truly inside that were found; 1 where none is missing."""
        inside = self.true_positives + self.false_negatives
        return self.true_positives / inside if self.false_negatives else 1.0

    @property
    def f(self) -> float:
        """Harmonic mean of precision and recall."""
        together = self.precision + self.recall
        return 2 * self.precision * self.recall / together if together else 0.0

    @property
    def disagreement(self) -> float:
        """The part of all pixels that differ."""
        wrong = self.false_positives + self.false_negatives
        return wrong / (wrong + self.true_positives + self.true_negatives)


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelScores:
    """The pixel error over the thresholds; of equally good ones, the lowest is the best."""

    rows: tuple[PixelScore, ...]

    @property
    def error(self) -> float:
        """The challenge's pixel error; 0 is perfect."""
        return 1.0 - self.best.f

    @property
    def best(self) -> PixelScore:
        """Where the F-score is highest."""
        return max(self.rows, key=lambda row: row.f)

    @property
    def lowest_disagreement(self) -> float:
        """The lowest part of pixels that differ, perhaps at another threshold."""
        return min(row.disagreement for row in self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandScore:
    """Pairs of pixels at one threshold, summed over slices, and the Rand index, a mean over slices."""

    threshold: float
    pairs: PixelPairs
    rand_index: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RandScores:
    """The Rand error over the thresholds; of equally good ones, the lowest is the best."""

    rows: tuple[RandScore, ...]

    @property
    def error(self) -> float:
        """The challenge's Rand error; 0 is perfect."""
        return 1.0 - self.best.pairs.f

    @property
    def best(self) -> RandScore:
        """Where the F-score is highest."""
        return max(self.rows, key=lambda row: row.pairs.f)


@dataclass(frozen=True, slots=True, kw_only=True)
class IsbiScores:
    """All metrics of the challenges of 2012 and (`v`) 2015."""

    pixel: PixelScores
    rand: RandScores
    warping: WarpingScores
    v: VScores


class PixelCounter:
    """Counts pixels slice after slice.

    Examples
    --------
    >>> counter = PixelCounter(thresholds=(0.5,))
    >>> counter.add(np.array([[0, 255, 255, 255]], np.uint8), np.array([[0.6, 0.7, 0.8, 0.2]]))
    >>> counter.scores().error, counter.scores().lowest_disagreement
    (0.33333333333333337, 0.5)
    """

    def __init__(self, *, thresholds: Sequence[float] = ISBI_THRESHOLDS) -> None:
        self._thresholds = require_thresholds(thresholds)
        self._counts = np.zeros((len(self._thresholds), 4), np.int64)  # of PixelScore, in its order
        self._n_slices = 0

    def add(self, truth: SliceReadable, probability: SliceReadable) -> None:
        """Count a slice (y, x) or a stack (z, y, x); takes and raises what `pixel_error` does."""
        for labels, values in each_slice(truth, probability):
            self.add_checked(labels, values)

    def add_checked(self, labels: Labels, probability: Probability) -> None:
        """Count one slice that `each_slice` gave."""
        self._n_slices += 1
        truth = labels != 0
        n_truth = int(truth.sum())
        for k, threshold in enumerate(self._thresholds):
            inside = is_inside(probability, threshold)
            n_inside, n_both = int(inside.sum()), int((inside & truth).sum())
            self._counts[k] += (n_both, n_inside - n_both, n_truth - n_both, truth.size - n_inside - n_truth + n_both)

    def scores(self) -> PixelScores:
        """Return the scores of all slices added so far."""
        require_slices(self._n_slices)
        rows = zip(self._thresholds, self._counts.tolist(), strict=True)
        return PixelScores(
            rows=tuple(
                PixelScore(threshold=t, true_positives=tp, false_positives=fp, false_negatives=fn, true_negatives=tn)
                for t, (tp, fp, fn, tn) in rows
            )
        )


class RandCounter:
    """Counts pairs of pixels slice after slice; only the sums are kept.

    Examples
    --------
    >>> counter = RandCounter(thresholds=(0.5,))
    >>> counter.add(np.array([[1, 1, 0, 2, 2]]), np.array([[0.9, 0.9, 0.1, 0.9, 0.3]]))
    >>> row = counter.scores().best  # the last pixel has become a cell of its own
    >>> row.pairs.precision, row.pairs.recall
    (1.0, 0.75)
    """

    def __init__(self, *, thresholds: Sequence[float] = ISBI_THRESHOLDS) -> None:
        self._thresholds = require_thresholds(thresholds)
        self._pairs = [PixelPairs() for _ in self._thresholds]
        self._indices: list[list[float]] = [[] for _ in self._thresholds]
        self._n_slices = 0

    def add(self, truth: SliceReadable, probability: SliceReadable) -> None:
        """Count a slice (y, x) or a stack (z, y, x); takes and raises what `rand_error` does."""
        for labels, values in each_slice(truth, probability):
            self.add_checked(labels, values)

    def add_checked(self, labels: Labels, probability: Probability) -> None:
        """Count one slice that `each_slice` gave."""
        self._n_slices += 1
        if not labels.any():
            return
        truth = label_components(labels)
        masks = [is_inside(probability, threshold) for threshold in self._thresholds]
        in_slice: list[PixelPairs] = []
        for k, mask in enumerate(masks):
            same = k > 0 and np.array_equal(mask, masks[k - 1])  # then so are the cells
            in_slice.append(in_slice[-1] if same else count_pixel_pairs(count_pairs(truth, label_components(mask))))
            self._pairs[k] += in_slice[k]
            self._indices[k].append(in_slice[k].index)

    def scores(self) -> RandScores:
        """Return the scores of all slices added so far."""
        require_slices(self._n_slices)
        columns = zip(self._thresholds, self._pairs, self._indices, strict=True)
        return RandScores(
            rows=tuple(RandScore(threshold=t, pairs=p, rand_index=mean_or_one(indices)) for t, p, indices in columns)
        )


def pixel_error(
    truth: SliceReadable, probability: SliceReadable, *, thresholds: Sequence[float] = ISBI_THRESHOLDS
) -> PixelScores:
    """Score pixels: 1 − the highest F-score over the thresholds.

    Parameters and errors are those of `isbi_scores`. Nothing predicted where nothing is has error 0.
    """
    counter = PixelCounter(thresholds=thresholds)
    counter.add(truth, probability)
    return counter.scores()


def rand_error(
    truth: SliceReadable, probability: SliceReadable, *, thresholds: Sequence[float] = ISBI_THRESHOLDS
) -> RandScores:
    """Score pairs of pixels inside true cells: 1 − the highest foreground-restricted Rand F-score.

    Parameters and errors are those of `isbi_scores`. Not symmetric: what is predicted outside true cells costs nothing,
    so a truth without cells has error 0 whatever is predicted.
    """
    counter = RandCounter(thresholds=thresholds)
    counter.add(truth, probability)
    return counter.scores()


def isbi_scores(
    truth: SliceReadable,
    probability: SliceReadable,
    *,
    thresholds: Sequence[float] = ISBI_THRESHOLDS,
    radius: int = WHOLE_IMAGE,
    on_slice: Callable[[int], None] | None = None,
) -> IsbiScores:
    """Score a segmentation by every metric of the challenge, reading each slice once.

    Parameters
    ----------
    truth
        Integer or bool, (y, x) or (z, y, x): 0 is membrane, 255 or the cell's id is inside. An array, or anything that
        gives slices when indexed, such as a Zarr array.
    probability
        Of the inside of cells, the same shape: float in [0, 1], or uint8 to be divided by 255.
    thresholds
        Increasing, in [0, 1).
    radius
        How far around a pixel the warping error looks to call it a split, in pixels; -1 is the whole image.
    on_slice
        Called with the number of slices done, after each.

    Returns
    -------
    IsbiScores
        Pixel, Rand and warping error, V_Rand and V_info, each at every threshold and in total.

    Raises
    ------
    ConfigurationError
        If the shapes differ, there is no pixel, cells with different ids touch (the warping error needs membrane
        between them), the radius is neither -1 nor positive, or the thresholds are not increasing in [0, 1).
    UnsupportedAxesError
        If the arrays are neither (y, x) nor (z, y, x).
    UnsupportedDtypeError
        If the truth is neither integer nor bool, or the probability neither float, uint8 nor bool.
    ValueRangeError
        If a label is negative, or a probability outside [0, 1].
    MissingDependencyError
        If SciPy is not installed.
    """
    pixel, rand = PixelCounter(thresholds=thresholds), RandCounter(thresholds=thresholds)
    warping, v = WarpingCounter(thresholds=thresholds, radius=radius), VCounter(thresholds=thresholds)
    for done, (labels, values) in enumerate(each_slice(truth, probability), 1):
        for counter in (pixel, rand, warping, v):
            counter.add_checked(labels, values)
        if on_slice is not None:
            on_slice(done)
    return IsbiScores(pixel=pixel.scores(), rand=rand.scores(), warping=warping.scores(), v=v.scores())
