"""V_Rand and V_info, the scores of Arganda-Carreras et al. 2015 (Front. Neuroanat. 9:142), after thinning.

For each slice and threshold:

1. The truth's segments are its 4-connected cells, the prediction's those of ``probability > threshold``, grown over the
   membrane between them by watershed until one pixel is left (*thinning*): a thick membrane costs nothing.
2. Only pixels inside true cells count. There, c[i, j] is how many pixels true segment i and predicted segment j share;
   a pixel of predicted membrane counts as a segment of its own.
3. V_Rand = sum c² / mean(sum a², sum b²), the F-score of the pairs of pixels that share a segment, with the segments'
   sizes a (truth) and b (prediction); precision is sum c² / sum b², recall sum c² / sum a².
4. V_info = 2 I / (H(truth) + H(prediction)), from mutual information and entropies of the same table.
5. Both are means over slices (slices without any true cell do not count), and the score is the highest threshold's.

These are the scores of the challenge's own program (Fiji, Trainable Segmentation), whose watershed is followed pixel by
pixel. One departure: where truth and prediction are both one single segment, V_info is 0/0; we say 1, for they agree,
and that program says 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    is_inside,
    label_components,
    require_thresholds,
)
from unet_deploy.metrics.pairs import PairCounts, count_pairs

# States of a pixel without label while segments grow; what lies beyond the image waits for ever.
_WAITING, _UNSEEN = -1, -2


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelPairs:
    """Ordered pairs of pixels inside true cells, a pixel with itself included, that share a segment; they add up."""

    both: int = 0
    """In the truth and in the prediction."""
    prediction: int = 0
    truth: int = 0
    total: int = 0

    def __add__(self, other: PixelPairs) -> PixelPairs:
        return PixelPairs(
            both=self.both + other.both,
            prediction=self.prediction + other.prediction,
            truth=self.truth + other.truth,
            total=self.total + other.total,
        )

    @property
    def precision(self) -> float:
        """The part of the prediction's pairs that the truth joins too; 1 where it joins none."""
        return 1.0 if self.both == self.prediction else self.both / self.prediction

    @property
    def recall(self) -> float:
        """The part of the truth's pairs that the prediction joins too; 1 where it joins none."""
        return 1.0 if self.both == self.truth else self.both / self.truth

    @property
    def f(self) -> float:
        """Harmonic mean of precision and recall."""
        together = self.precision + self.recall
        return 2 * self.precision * self.recall / together if together else 0.0

    @property
    def index(self) -> float:
        """The Rand index: the part of all pairs on which both agree."""
        return 1.0 - (self.prediction + self.truth - 2 * self.both) / self.total if self.total else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VScore:
    """The scores at one threshold: means over slices, but for `pooled`."""

    threshold: float
    v_rand: float
    v_info: float
    rand_index: float
    pooled: PixelPairs
    """Of all slices together: low precision means merged cells, low recall split ones. Its `f` is V_Rand if pairs weigh
    the same and not slices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VScores:
    """V_Rand and V_info over the thresholds; of equally good ones, the lowest is the best."""

    rows: tuple[VScore, ...]

    @property
    def v_rand(self) -> float:
        """The challenge's V_Rand; 1 is perfect."""
        return self.best_v_rand.v_rand

    @property
    def v_info(self) -> float:
        """The challenge's V_info; 1 is perfect."""
        return self.best_v_info.v_info

    @property
    def v_rand_pooled(self) -> float:
        """The highest V_Rand if pairs and not slices weigh the same."""
        return max(row.pooled.f for row in self.rows)

    @property
    def best_v_rand(self) -> VScore:
        """Where V_Rand is highest."""
        return max(self.rows, key=lambda row: row.v_rand)

    @property
    def best_v_info(self) -> VScore:
        """Where V_info is highest, which may be another threshold."""
        return max(self.rows, key=lambda row: row.v_info)


class VCounter:
    """Scores slice after slice; only the scores are kept.

    Examples
    --------
    >>> truth = np.array([[1, 1, 0, 2, 2, 2]])
    >>> counter = VCounter(thresholds=(0.5,))
    >>> counter.add(truth, np.array([[0.9, 0.2, 0.1, 0.3, 0.8, 0.9]]))
    >>> counter.scores().v_rand
    1.0
    """

    def __init__(self, *, thresholds: Sequence[float] = ISBI_THRESHOLDS) -> None:
        self._thresholds = require_thresholds(thresholds)
        self._pairs: list[list[PixelPairs]] = []  # by slice, then by threshold
        self._infos: list[list[float]] = []
        self._n_slices = 0

    def add(self, truth: SliceReadable, probability: SliceReadable) -> None:
        """Score a slice (y, x) or a stack (z, y, x); takes and raises what `v_scores` does."""
        for labels, values in each_slice(truth, probability):
            self.add_checked(labels, values)

    def add_checked(self, labels: Labels, probability: Probability) -> None:
        """Score one slice that `each_slice` gave."""
        self._n_slices += 1
        if not labels.any():
            return
        truth = label_components(labels)
        masks = [is_inside(probability, threshold) for threshold in self._thresholds]
        tables: list[PairCounts] = []
        for k, mask in enumerate(masks):
            # The same mask has the same table, and flooding is what costs.
            same = k > 0 and np.array_equal(mask, masks[k - 1])
            tables.append(tables[-1] if same else count_pairs(truth, thin(mask)))
        self._pairs.append([count_pixel_pairs(table) for table in tables])
        self._infos.append([information_score(table) for table in tables])

    def scores(self) -> VScores:
        """Return the scores of all slices added so far."""
        require_slices(self._n_slices)
        rows = []
        for k, threshold in enumerate(self._thresholds):
            pairs = [slice_pairs[k] for slice_pairs in self._pairs]
            rows.append(
                VScore(
                    threshold=threshold,
                    v_rand=mean_or_one([item.f for item in pairs]),
                    v_info=mean_or_one([infos[k] for infos in self._infos]),
                    rand_index=mean_or_one([item.index for item in pairs]),
                    pooled=sum(pairs, PixelPairs()),
                )
            )
        return VScores(rows=tuple(rows))


def v_scores(
    truth: SliceReadable, probability: SliceReadable, *, thresholds: Sequence[float] = ISBI_THRESHOLDS
) -> VScores:
    """Score a segmentation by V_Rand and V_info after thinning.

    Parameters
    ----------
    truth
        Integer or bool, (y, x) or (z, y, x): 0 is membrane, 255 or the cell's id is inside. Touching cells with
        different ids are different cells.
    probability
        Of the inside of cells, the same shape: float in [0, 1], or uint8 to be divided by 255.
    thresholds
        Increasing, in [0, 1).

    Returns
    -------
    VScores
        Each threshold's, and the highest. All are 1 if no slice has a true cell: nothing could be wrong.

    Raises
    ------
    ConfigurationError
        If the shapes differ, there is no pixel, or the thresholds are not increasing in [0, 1).
    UnsupportedAxesError
        If the arrays are neither (y, x) nor (z, y, x).
    UnsupportedDtypeError
        If the truth is neither integer nor bool, or the probability neither float, uint8 nor bool.
    ValueRangeError
        If a label is negative, or a probability outside [0, 1].
    MissingDependencyError
        If SciPy is not installed.
    """
    counter = VCounter(thresholds=thresholds)
    counter.add(truth, probability)
    return counter.scores()


def thin(inside: Mask) -> npt.NDArray[np.intp]:
    """Grow the 4-connected segments of a mask (y, x) until lines of about one pixel (label 0) part them.

    All segments grow at the same speed: Vincent and Soille 1991 (IEEE PAMI 13:583) on an image of two levels. A pixel
    is of the line if, when its turn comes, two different segments are beside it, or only line. The turns are those of
    the challenge's program: first the pixels beside a segment, column by column, then as found, from each west, north,
    east, south. A mask of nothing is one segment, as it is for a flooding from its lowest level.

    >>> thin(np.array([[True, False, False, False, True]]))
    array([[1, 1, 0, 2, 2]])
    """
    if not inside.any():
        return np.ones(inside.shape, np.intp)
    stride = inside.shape[1] + 2
    padded = np.pad(inside, 1)
    is_beside = np.pad(inside[:, :-1], ((0, 0), (1, 0))) | np.pad(inside[:, 1:], ((0, 0), (0, 1)))
    is_beside[1:] |= inside[:-1]
    is_beside[:-1] |= inside[1:]
    x, y = np.nonzero((is_beside & ~inside).T)
    start = (y + 1) * stride + x + 1
    states = np.full(padded.shape, _WAITING)
    states[1:-1, 1:-1] = np.where(inside, label_components(inside), _UNSEEN)
    states.ravel()[start] = _WAITING
    flooded = np.array(_flood(states.ravel().tolist(), start.tolist(), stride), np.intp)
    return flooded.reshape(padded.shape)[1:-1, 1:-1]


def _flood(states: list[int], queue: list[int], stride: int) -> list[int]:
    """Label the pixels of `queue` and all unseen ones; `states` holds labels, or `_WAITING` or `_UNSEEN`."""
    for pixel in queue:  # which grows as it is read
        segment, is_line = 0, False
        for other in (pixel - 1, pixel - stride, pixel + 1, pixel + stride):
            state = states[other]
            if state > 0:
                is_line = is_line or 0 < segment != state
                segment = state
            elif state == _UNSEEN:
                states[other] = _WAITING
                queue.append(other)
        states[pixel] = 0 if is_line else segment
    return states


def count_pixel_pairs(table: PairCounts) -> PixelPairs:
    """Count the pairs of one slice from its table of segments; label 0 as in the module's rule 2."""
    c, a, b, alone = _inside_truth(table)
    return PixelPairs(
        both=_sum_of_squares(c) + alone,
        prediction=_sum_of_squares(b) + alone,
        truth=_sum_of_squares(a),
        total=int(a.sum()) ** 2,
    )


def information_score(table: PairCounts) -> float:
    """Return V_info of one slice from its table of segments; label 0 as in the module's rule 2."""
    c, a, b, alone = _inside_truth(table)
    n = int(a.sum())
    if n == 0:
        return 1.0
    of_singles = alone / n * float(np.log(n))
    truth, prediction = _entropy(a / n), _entropy(b / n) + of_singles
    information = truth + prediction - (_entropy(c / n) + of_singles)
    if truth + prediction == 0:
        return 1.0
    return min(max(2 * information / (truth + prediction), 0.0), 1.0)  # rounding goes 1e-16 beyond


def mean_or_one(values: Sequence[float]) -> float:
    """Return the mean over the slices that have a true cell; 1, a perfect score, if none has."""
    return float(np.mean(values)) if values else 1.0


def require_slices(n_slices: int) -> None:
    """Say that there is nothing to score.

    Raises
    ------
    ConfigurationError
        If `n_slices` is 0.
    """
    if n_slices == 0:
        raise ConfigurationError(
            "no slice was added; scores need at least one",
            "a score of no pixels means nothing",
            fix="call add(truth, probability) before scores()",
        )


def _inside_truth(table: PairCounts) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
    # Shared pixels c, sizes of the true segments a and of the predicted b, and the pixels that are alone.
    objects = table.objects()
    c, size = objects.shared_pixels, len(objects.prediction_ids)
    b = np.zeros(size, np.int64)
    np.add.at(b, objects.prediction_index, c)
    a = objects.truth_pixels
    return c, a, b, int(a.sum() - c.sum())


def _sum_of_squares(counts: npt.NDArray[np.int64]) -> int:
    return sum(value * value for value in counts.tolist())  # Python's integers: a billion squared is near int64's end


def _entropy(parts: npt.NDArray[np.float64]) -> float:
    parts = parts[parts > 0]
    return float(-(parts * np.log(parts)).sum())
