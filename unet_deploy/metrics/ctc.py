"""SEG, the segmentation measure of the Cell Tracking Challenge (Maška et al. 2014; Ulman et al. 2017, Online Methods).

1. A result object S matches a true object R if it covers strictly more than half of it: ``|R ∩ S| > 0.5 |R|``. So each
   true object has at most one match; one result object may match several true ones.
2. The score of R is the Jaccard index with its match, ``|R ∩ S| / |R ∪ S|``, or 0 if it has none.
3. SEG is the mean over all true objects of all annotated frames, pooled: a frame with more objects weighs more. Result
   objects that match nothing cost nothing. Frames without annotation do not count.

The mean IoU given beside it leaves out the rule of the half: each true object scores its highest Jaccard index with any
result object. It is never below SEG.

Maška et al. 2014: Bioinformatics 30:1609. Ulman et al. 2017: Nature Methods 14:1141.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.errors import ConfigurationError, VolumeNotFoundError
from unet_deploy.metrics.pairs import PairCounts, count_pairs


@dataclass(frozen=True, slots=True, order=True)
class Frame:
    """A point in time and, where only single slices of a stack are annotated, a slice of it."""

    t: int
    z: int = 0

    def __str__(self) -> str:
        return f"T={self.t} Z={self.z}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectScore:
    """How one true object was segmented; `match` is the result object that covers more than half of it, or None."""

    label: int
    pixels: int
    match: int | None
    jaccard: float
    best_iou: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameScore:
    """The true objects of one annotated frame, by ascending label."""

    frame: Frame
    objects: tuple[ObjectScore, ...]

    @property
    def seg(self) -> float | None:
        """SEG of this frame alone; None if it has no object."""
        return _mean([item.jaccard for item in self.objects])

    @property
    def mean_iou(self) -> float | None:
        """Mean of the highest IoU of each object; None if there is no object."""
        return _mean([item.best_iou for item in self.objects])


@dataclass(frozen=True, slots=True, kw_only=True)
class SegScores:
    """SEG of a sequence, by frame and by object."""

    frames: tuple[FrameScore, ...]

    @property
    def objects(self) -> tuple[ObjectScore, ...]:
        """The true objects of all frames."""
        return tuple(item for frame in self.frames for item in frame.objects)

    @property
    def seg(self) -> float | None:
        """The challenge's SEG, pooled over all objects; None if there is no object."""
        return _mean([item.jaccard for item in self.objects])

    @property
    def mean_iou(self) -> float | None:
        """Mean of the highest IoU of each object, pooled; None if there is no object."""
        return _mean([item.best_iou for item in self.objects])

    def log(self) -> str:
        """Return what the challenge's own program writes to ``SEG_log.txt``: each object's score to six digits."""
        lines: list[str] = []
        for frame in self.frames:
            lines.append(f"----------{frame.frame}----------")
            lines += [f"GT_label={item.label} J={item.jaccard:.6g}" for item in frame.objects]
        lines.append("=" * 56)
        lines.append("SEG measure: none, no object" if self.seg is None else f"SEG measure: {self.seg:.6f}")
        return "\n".join(lines) + "\n"


class SegCounter:
    """Scores frame after frame; only the scores are kept.

    Examples
    --------
    >>> counter = SegCounter()
    >>> counter.add(Frame(0), np.array([[1, 1, 1, 2, 2]]), np.array([[0, 5, 5, 5, 6]]))
    >>> [(item.label, item.match, round(item.jaccard, 3)) for item in counter.scores().objects]
    [(1, 5, 0.5), (2, None, 0.0)]
    >>> counter.scores().seg
    0.25
    """

    def __init__(self) -> None:
        self._frames: dict[Frame, FrameScore] = {}

    def add(self, frame: Frame, truth: npt.NDArray[Any], prediction: npt.NDArray[Any]) -> None:
        """Score an annotated frame: integer instances, (y, x) or (z, y, x), 0 background.

        Raises
        ------
        ConfigurationError
            If the shapes differ, or the frame was added before.
        UnsupportedDtypeError
            If an array is neither integer nor bool.
        ValueRangeError
            If a label is negative.
        """
        self.add_pairs(frame, count_pairs(truth, prediction))

    def add_pairs(self, frame: Frame, pairs: PairCounts) -> None:
        """Score an annotated frame that was counted part by part with `PairCounter`."""
        if frame in self._frames:
            raise ConfigurationError(
                f"frame {frame} was added twice",
                "SEG is pooled over objects, and each true object counts once",
                fix="add a frame larger than memory through one PairCounter",
            )
        self._frames[frame] = FrameScore(frame=frame, objects=_score_objects(pairs))

    def scores(self) -> SegScores:
        """Return the scores of all frames added so far, in order."""
        return SegScores(frames=tuple(self._frames[frame] for frame in sorted(self._frames)))


def seg_scores(truth: Mapping[Frame, npt.NDArray[Any]], prediction: Mapping[Frame, npt.NDArray[Any]]) -> SegScores:
    """Score a sequence against its annotated frames.

    Each array is taken from its mapping once, in order, so mappings that read files on access keep one frame in memory.

    Parameters
    ----------
    truth
        The annotated frames: integer instances, (y, x) or (z, y, x), 0 background.
    prediction
        The result, likewise; frames that are not annotated are not looked at.

    Returns
    -------
    SegScores
        SEG pooled, by frame and by object.

    Raises
    ------
    VolumeNotFoundError
        If no frame is annotated, or the result lacks an annotated one.
    ConfigurationError
        If the shapes of a frame differ.
    UnsupportedDtypeError
        If an array is neither integer nor bool.
    ValueRangeError
        If a label is negative.
    """
    require_frames(truth.keys(), prediction.keys())
    counter = SegCounter()
    for frame in sorted(truth):
        counter.add(frame, truth[frame], prediction[frame])
    return counter.scores()


def require_frames(annotated: Collection[Frame], result: Collection[Frame]) -> None:
    """Say which annotated frames the result lacks, before any of them is read.

    Raises
    ------
    VolumeNotFoundError
        If no frame is annotated, or the result lacks an annotated one.
    """
    if not annotated:
        raise VolumeNotFoundError(
            "the truth has no annotated frame; SEG needs at least one",
            "the challenge's annotations are 01_GT/SEG/man_segTTT.tif; those in TRA only mark where the cells are",
            fix="give the folder that holds SEG",
        )
    missing = sorted(set(annotated) - set(result))
    if missing:
        shown = ", ".join(str(frame) for frame in missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise VolumeNotFoundError(
            f"the result lacks {len(missing)} of {len(annotated)} annotated frames: {shown}",
            "the challenge scores every annotated frame; leaving some out would change the score silently",
            fix="segment those frames too; a frame in which nothing was found is an image of zeros",
        )


def _score_objects(pairs: PairCounts) -> tuple[ObjectScore, ...]:
    overlaps = pairs.objects()
    iou = overlaps.iou()
    best = np.zeros(len(overlaps.truth_ids))
    np.maximum.at(best, overlaps.truth_index, iou)
    # At most one overlap of an object is more than half of it, so plain assignment cannot lose one.
    is_match = 2 * overlaps.shared_pixels > overlaps.truth_pixels[overlaps.truth_index]
    matched = overlaps.truth_index[is_match]
    jaccard = np.zeros(len(overlaps.truth_ids))
    jaccard[matched] = iou[is_match]
    match = np.zeros(len(overlaps.truth_ids), np.uint64)
    match[matched] = overlaps.prediction_ids[overlaps.prediction_index[is_match]]
    columns = (overlaps.truth_ids, overlaps.truth_pixels, match, jaccard, best)
    return tuple(
        ObjectScore(label=label, pixels=pixels, match=matched_label or None, jaccard=score, best_iou=highest)
        for label, pixels, matched_label, score, highest in zip(*(c.tolist() for c in columns), strict=True)
    )


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
