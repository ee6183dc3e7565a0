"""Score paired slices of objects, and put the scores in words; each slice is read once and only counts are kept.

- *instances*: F1 over IoU thresholds, SEG, objects that were split, merged, missed and added, frame by frame, and how
  many of the true objects that touch are kept apart.
- *ctc*: SEG of the Cell Tracking Challenge, by annotated frame and pooled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from unet_deploy.cli._evaluation import Evaluation, OnSlice, ReadPair, Score, Table, four_digits
from unet_deploy.cli._pairing import Paired
from unet_deploy.metrics import (
    InstanceCounter,
    InstanceScores,
    PairCounter,
    SegCounter,
    SegScores,
    TouchingPairs,
    count_separated,
    find_touching,
)
from unet_deploy.metrics.ctc import Frame
from unet_deploy.metrics.touching import LabelPair

MAX_FRAME_ROWS = 20


def score_instances(paired: Paired, read: ReadPair, *, thresholds: Sequence[float], on_slice: OnSlice) -> Evaluation:
    """Score objects; those of one frame may span its slices."""
    counter, seg = InstanceCounter(thresholds=thresholds), SegCounter()
    kept_apart = TouchingPairs(pairs=0, separated=0)
    frames: list[Frame] = []
    done = 0
    for frame, pairs in paired.frames():
        table = PairCounter()
        touching: set[LabelPair] = set()
        for pair in pairs:
            truth, prediction = read(pair)
            table.add(truth, prediction)
            touching |= find_touching(truth)
            on_slice(done := done + 1)
        counts = table.counts()
        counter.add_pairs(counts)
        seg.add_pairs(frame, counts)
        kept_apart += count_separated(touching, counts)
        frames.append(frame)
    scores = counter.scores()
    first = scores.thresholds[0]
    rows = tuple(
        (
            f"{s.threshold:g}",
            *map(four_digits, (s.f1, s.precision, s.recall, s.average_precision)),
            f"{s.true_positives:,}",
        )
        for s in scores.thresholds
    )
    return Evaluation(
        kind="instances",
        summary=(
            Score(
                key="mean_f1",
                title="mean F1",
                value=scores.mean_f1,
                better="higher",
                decimals=4,
                note=f"over IoU above {first.threshold:g} to {scores.thresholds[-1].threshold:g}",
            ),
            Score(
                key="f1",
                title=f"F1 at {first.threshold:g}",
                value=first.f1,
                better="higher",
                decimals=4,
                note=f"{first.true_positives:,} matches",
            ),
            Score(
                key="seg",
                title="SEG",
                value=seg.scores().seg,
                better="higher",
                decimals=4,
                note="of the Cell Tracking Challenge, pooled",
            ),
            *_error_scores(scores),
            Score(
                key="touching_pairs",
                title="touching",
                value=kept_apart.pairs,
                note="pairs of true objects at most one pixel apart",
            ),
            Score(
                key="separated_pairs",
                title="kept apart",
                value=kept_apart.separated,
                better="higher",
                note="of these" + (f" ({kept_apart.ratio:.1%})" if kept_apart.ratio is not None else ""),
            ),
        ),
        tables=(
            Table(title="by IoU threshold", header=("IoU >", "F1", "precision", "recall", "AP", "matches"), rows=rows),
        ),
        details={
            "thresholds": [
                {
                    "threshold": s.threshold,
                    "f1": s.f1,
                    "precision": s.precision,
                    "recall": s.recall,
                    "average_precision": s.average_precision,
                    "mean_matched_iou": s.mean_matched_iou,
                    "true_positives": s.true_positives,
                    "false_positives": s.false_positives,
                    "false_negatives": s.false_negatives,
                }
                for s in scores.thresholds
            ],
            "frames": [asdict(frame) for frame in scores.frames],
        },
        errors=dict(zip(frames, scores.frames, strict=True)),
    )


def _error_scores(scores: InstanceScores) -> tuple[Score, ...]:
    true, predicted = f"of {scores.true_objects:,} true objects", f"of {scores.predicted_objects:,} predicted objects"
    return (
        Score(key="splits", title="split", value=scores.splits, better="lower", note=true),
        Score(key="merges", title="merging", value=scores.merges, better="lower", note=predicted),
        Score(key="missed", title="missed", value=scores.missed, better="lower", note=true),
        Score(key="added", title="added", value=scores.added, better="lower", note=predicted),
    )


def score_ctc(paired: Paired, read: ReadPair, *, on_slice: OnSlice) -> Evaluation:
    """Score annotated frames by SEG."""
    counter, errors = SegCounter(), InstanceCounter(thresholds=(0.5,))
    done = 0
    for frame, pairs in paired.frames():
        table = PairCounter()
        for pair in pairs:
            table.add(*read(pair))
            on_slice(done := done + 1)
        counts = table.counts()
        counter.add_pairs(frame, counts)
        errors.add_pairs(counts)
    scores = counter.scores()
    found = errors.scores()
    unmatched = sum(item.match is None for item in scores.objects)
    return Evaluation(
        kind="ctc",
        summary=(
            Score(
                key="seg",
                title="SEG",
                value=scores.seg,
                better="higher",
                note=f"{len(scores.objects):,} objects in {len(scores.frames)} frames, pooled",
            ),
            Score(key="mean_iou", title="mean IoU", value=scores.mean_iou, better="higher", note="without SEG's half"),
            Score(
                key="unmatched",
                title="not matched",
                value=unmatched,
                better="lower",
                note="true objects that no result object covers by more than half",
            ),
            *_error_scores(found)[:3],  # added ones cost nothing in SEG, and annotation may be partial
        ),
        tables=(_frame_table(scores),),
        details=_seg_details(scores),
        errors={frame.frame: error for frame, error in zip(scores.frames, found.frames, strict=True)},
    )


def _frame_table(scores: SegScores) -> Table:
    return Table(
        title="by frame",
        header=("frame", "SEG", "mean IoU", "objects", "not matched"),
        rows=tuple(
            (
                str(f.frame),
                "none" if f.seg is None else f"{f.seg:.6f}",
                "none" if f.mean_iou is None else f"{f.mean_iou:.6f}",
                f"{len(f.objects):,}",
                f"{sum(item.match is None for item in f.objects):,}",
            )
            for f in scores.frames
        ),
        is_detail=len(scores.frames) > MAX_FRAME_ROWS,
    )


def _seg_details(scores: SegScores) -> dict[str, Any]:
    return {
        "frames": [
            {
                "t": f.frame.t,
                "z": f.frame.z,
                "seg": f.seg,
                "mean_iou": f.mean_iou,
                "objects": [asdict(item) for item in f.objects],
            }
            for f in scores.frames
        ]
    }
