"""How many touching objects are kept apart: what the paper's weight map is for.

1. Two true objects *touch* if, in some plane (y, x), a pixel of one lies at most `reach` pixels from a pixel of the
   other along y and along x (chessboard distance; 2 by default: side by side, corner to corner, or one pixel apart, as
   annotators leave it). Planes of a volume are looked at one by one: a step along z is another length.
2. A true object is *matched* by the predicted object that covers strictly more than half of it, as in SEG
   (`unet_deploy.metrics.ctc`); it has at most one match, or none.
3. A touching pair is *separated* if both objects are matched, by two different predicted objects. A pair of which one
   object was missed is not separated, nor is a pair that one predicted object covers.
4. Pairs are counted, not objects: in a row of three there are two. Frames add up.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.errors import ConfigurationError
from unet_deploy.metrics.pairs import BACKGROUND, PairCounts, count_pairs

REACH = 2
"""Objects with at most one pixel between them touch."""

LabelPair = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TouchingPairs:
    """How many pairs of true objects touch, and how many of these the prediction keeps apart.

    Examples
    --------
    >>> TouchingPairs(pairs=4, separated=3) + TouchingPairs(pairs=1, separated=0)
    TouchingPairs(pairs=5, separated=3)
    """

    pairs: int
    separated: int

    @property
    def ratio(self) -> float | None:
        """The part of the touching pairs that is kept apart; None if none touch."""
        return self.separated / self.pairs if self.pairs else None

    def __add__(self, other: TouchingPairs) -> TouchingPairs:
        return TouchingPairs(pairs=self.pairs + other.pairs, separated=self.separated + other.separated)


def count_touching_pairs(truth: npt.NDArray[Any], predicted: npt.NDArray[Any], *, reach: int = REACH) -> TouchingPairs:
    """Count the touching pairs of one frame, or of a volume whose objects span its slices.

    Parameters
    ----------
    truth
        Integer instances, (y, x), (z, y, x) or (x), 0 background. An object is its label, connected or not.
    predicted
        Likewise, of the same shape.
    reach
        Chessboard distance in pixels up to which two objects touch; 1 is side by side or corner to corner.

    Returns
    -------
    TouchingPairs
        The pairs of true objects that touch, and those of them that are separated.

    Raises
    ------
    ConfigurationError
        If reach is below 1.
    ShapeMismatchError
        If the shapes differ.
    UnsupportedDtypeError
        If an array is neither integer nor bool.
    ValueRangeError
        If a label is negative.

    Examples
    --------
    >>> count_touching_pairs(np.array([1, 1, 0, 2, 2]), np.array([5, 5, 0, 6, 6]))
    TouchingPairs(pairs=1, separated=1)
    >>> count_touching_pairs(np.array([1, 1, 0, 2, 2]), np.array([5, 5, 5, 5, 5]))
    TouchingPairs(pairs=1, separated=0)
    """
    table = count_pairs(truth, predicted)  # says what is wrong with the arrays
    return count_separated(find_touching(truth, reach=reach), table)


def find_touching(truth: npt.NDArray[Any], *, reach: int = REACH) -> set[LabelPair]:
    """Return the pairs of labels that touch in some plane, each once, the smaller label first.

    Parameters
    ----------
    truth
        Integer instances, (y, x), (z, y, x) or (x), 0 background. A volume may also be given plane by plane, and the
        sets be joined.
    reach
        Chessboard distance in pixels up to which two objects touch.

    Raises
    ------
    ConfigurationError
        If reach is below 1.

    Examples
    --------
    >>> sorted(find_touching(np.array([[1, 0, 2, 2], [1, 0, 0, 3]])))
    [(1, 2), (2, 3)]
    """
    if reach < 1:
        raise ConfigurationError(
            f"reach {reach} is not at least 1",
            "the chessboard distance in pixels up to which two objects touch; neighbouring pixels are 1 apart",
            fix=f"reach={REACH}",
        )
    found: set[LabelPair] = set()
    if not truth.size:
        return found
    for plane in truth.reshape(-1, *((1, *truth.shape)[-2:])):
        # half of the neighbourhood: the other half finds the same pairs
        for y, x in product(range(reach + 1), range(-reach, reach + 1)):
            if y > 0 or x > 0:
                found |= _pairs_at(plane, y, x)
    return found


def count_separated(touching: Collection[LabelPair], pairs: PairCounts) -> TouchingPairs:
    """Count which of the touching pairs of a frame are separated, given the frame's table of overlaps."""
    overlaps = pairs.objects()
    # At most one overlap of an object is more than half of it.
    is_match = 2 * overlaps.shared_pixels > overlaps.truth_pixels[overlaps.truth_index]
    true_ids = overlaps.truth_ids[overlaps.truth_index[is_match]].tolist()
    predicted_ids = overlaps.prediction_ids[overlaps.prediction_index[is_match]].tolist()
    match = dict(zip(true_ids, predicted_ids, strict=True))
    separated = sum(a in match and b in match and match[a] != match[b] for a, b in touching)
    return TouchingPairs(pairs=len(touching), separated=separated)


def _pairs_at(plane: npt.NDArray[Any], y: int, x: int) -> set[LabelPair]:
    """Return the pairs of different labels that lie (y, x) apart; y is not negative."""
    height, width = plane.shape
    here = plane[: max(height - y, 0), max(-x, 0) : width - max(x, 0)]
    there = plane[y:, max(x, 0) : width + min(x, 0)]
    is_pair = (here != there) & (here != BACKGROUND) & (there != BACKGROUND)
    first, second = here[is_pair], there[is_pair]
    both = np.unique(np.stack([np.minimum(first, second), np.maximum(first, second)]), axis=1)
    return set(map(tuple, both.T.tolist()))
