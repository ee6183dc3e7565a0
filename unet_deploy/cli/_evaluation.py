"""Score paired slices by kind, and put the scores in words; each slice is read once and only counts are kept.

- *classes*: the confusion of all pixels; IoU and Dice of each class.
- *membranes*: pixel, Rand and warping error, V_Rand and V_info of the ISBI challenges.
- *instances*: F1 over IoU thresholds, objects that were split, merged, missed and added, frame by frame.
- *ctc*: SEG of the Cell Tracking Challenge, by annotated frame and pooled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from unet_deploy.cli._pairing import Pair, Paired
from unet_deploy.cli._planes import PlanePair
from unet_deploy.metrics import (
    InstanceCounter,
    InstanceScores,
    IsbiScores,
    OverlapCounter,
    PairCounter,
    PixelCounter,
    RandCounter,
    SegCounter,
    SegScores,
    VCounter,
    WarpingCounter,
)
from unet_deploy.metrics.ctc import Frame
from unet_deploy.metrics.instances import FrameErrors

MAX_CONFUSION_CLASSES = 12
MAX_FRAME_ROWS = 20

ReadPair = Callable[[Pair], PlanePair]
OnSlice = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One number of the summary; `value` is None where there is nothing to divide."""

    key: str
    title: str
    value: float | int | None
    better: Literal["lower", "higher", ""] = ""
    decimals: int = 6
    note: str = ""

    @property
    def text(self) -> str:
        """The value in digits."""
        if self.value is None:
            return "none"
        return f"{self.value:,}" if isinstance(self.value, int) else f"{self.value:.{self.decimals}f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table in words; one that `is_detail` is left to the report."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    is_detail: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Scores of one kind: the summary, tables, everything as JSON values, and what the pictures need."""

    kind: str
    summary: tuple[Score, ...]
    tables: tuple[Table, ...]
    details: dict[str, Any]
    threshold: float | None = None
    errors: Mapping[Frame, FrameErrors] = field(default_factory=dict)

    def value(self, key: str) -> float | None:
        """Return a score of the summary."""
        return next(score.value for score in self.summary if score.key == key)


def score_classes(paired: Paired, read: ReadPair, *, names: Sequence[str], on_slice: OnSlice) -> Evaluation:
    """Score class labels from 0 to 255; `names` are those of the first classes, as far as known."""
    counter = OverlapCounter(classes=256)
    for done, pair in enumerate(paired.pairs, 1):
        counter.add(*read(pair))
        on_slice(done)
    scores = counter.scores()
    present = [c for c in scores.classes if c.true_pixels + c.predicted_pixels or c.label < len(names)]
    titles = {c.label: f"{c.label} {names[c.label]}" if c.label < len(names) else str(c.label) for c in present}
    rows = tuple(
        (titles[c.label], *map(_four, (c.iou, c.dice, c.precision, c.recall)), f"{c.true_pixels:,}") for c in present
    )
    tables = [Table(title="by class", header=("class", "IoU", "Dice", "precision", "recall", "true px"), rows=rows)]
    confusion = [[scores.confusion[t.label][p.label] for p in present] for t in present]
    if len(present) <= MAX_CONFUSION_CLASSES:
        tables.append(
            Table(
                title="confusion in pixels: truth down, prediction across",
                header=("truth", *titles.values()),
                rows=tuple(
                    (title, *(f"{n:,}" for n in row)) for title, row in zip(titles.values(), confusion, strict=True)
                ),
                is_detail=True,
            )
        )
    return Evaluation(
        kind="classes",
        summary=(
            Score(key="mean_iou", title="mean IoU", value=scores.mean_iou, better="higher", decimals=4),
            Score(key="mean_dice", title="mean Dice", value=scores.mean_dice, better="higher", decimals=4),
            Score(
                key="pixel_accuracy", title="pixel accuracy", value=scores.pixel_accuracy, better="higher", decimals=4
            ),
        ),
        tables=tuple(tables),
        details={
            "classes": [
                {
                    "label": c.label,
                    "name": names[c.label] if c.label < len(names) else None,
                    "iou": c.iou,
                    "dice": c.dice,
                    "precision": c.precision,
                    "recall": c.recall,
                    "true_pixels": c.true_pixels,
                    "predicted_pixels": c.predicted_pixels,
                    "shared_pixels": c.shared_pixels,
                }
                for c in present
            ],
            "confusion": confusion,
        },
    )


def score_membranes(
    paired: Paired, read: ReadPair, *, thresholds: Sequence[float], radius: int, on_slice: OnSlice
) -> Evaluation:
    """Score probabilities of the inside of cells."""
    pixel, rand = PixelCounter(thresholds=thresholds), RandCounter(thresholds=thresholds)
    warping, v = WarpingCounter(thresholds=thresholds, radius=radius), VCounter(thresholds=thresholds)
    for done, pair in enumerate(paired.pairs, 1):
        truth, interior = read(pair)
        for counter in (pixel, rand, warping, v):
            counter.add(truth, interior)
        on_slice(done)
    scores = IsbiScores(pixel=pixel.scores(), rand=rand.scores(), warping=warping.scores(), v=v.scores())
    best = scores.warping.best
    where = "in the whole image" if radius == -1 else f"within {radius} px"
    rows = [
        {
            "threshold": p.threshold,
            "pixel_error": 1 - p.f,
            "rand_error": 1 - r.pairs.f,
            "warping_error": w.error,
            "v_rand": vi.v_rand,
            "v_info": vi.v_info,
            "mismatch_pixels": asdict(w.mismatches),
        }
        for p, r, w, vi in zip(scores.pixel.rows, scores.rand.rows, scores.warping.rows, scores.v.rows, strict=True)
    ]
    split_merge = f"{best.mismatches.split:,} split px, {best.mismatches.merge:,} merge px"
    return Evaluation(
        kind="membranes",
        summary=(
            Score(
                key="warping_error",
                title="warping error",
                value=scores.warping.error,
                better="lower",
                note=f"at {best.threshold:g}: {split_merge}; splits told {where}",
            ),
            Score(
                key="rand_error",
                title="Rand error",
                value=scores.rand.error,
                better="lower",
                note=f"at {scores.rand.best.threshold:g}",
            ),
            Score(
                key="pixel_error",
                title="pixel error",
                value=scores.pixel.error,
                better="lower",
                note=f"at {scores.pixel.best.threshold:g}",
            ),
            Score(
                key="v_rand",
                title="V_Rand",
                value=scores.v.v_rand,
                better="higher",
                note=f"at {scores.v.best_v_rand.threshold:g}, after thinning",
            ),
            Score(
                key="v_info",
                title="V_info",
                value=scores.v.v_info,
                better="higher",
                note=f"at {scores.v.best_v_info.threshold:g}, after thinning",
            ),
        ),
        tables=(_threshold_table(rows),),
        details={"radius": radius, "thresholds": rows},
        threshold=best.threshold,
    )


def _threshold_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    keys = ("warping_error", "rand_error", "pixel_error", "v_rand", "v_info")
    return Table(
        title="by threshold on the probability of the inside of cells",
        header=("threshold", "warping error", "Rand error", "pixel error", "V_Rand", "V_info", "split px", "merge px"),
        rows=tuple(
            (
                f"{row['threshold']:g}",
                *(f"{row[key]:.6f}" for key in keys),
                *(f"{row['mismatch_pixels'][key]:,}" for key in ("split", "merge")),
            )
            for row in rows
        ),
        is_detail=True,
    )


def score_instances(paired: Paired, read: ReadPair, *, thresholds: Sequence[float], on_slice: OnSlice) -> Evaluation:
    """Score objects; those of one frame may span its slices."""
    counter = InstanceCounter(thresholds=thresholds)
    frames: list[Frame] = []
    done = 0
    for frame, pairs in paired.frames():
        table = PairCounter()
        for pair in pairs:
            table.add(*read(pair))
            on_slice(done := done + 1)
        counter.add_pairs(table.counts())
        frames.append(frame)
    scores = counter.scores()
    first = scores.thresholds[0]
    rows = tuple(
        (f"{s.threshold:g}", *map(_four, (s.f1, s.precision, s.recall, s.average_precision)), f"{s.true_positives:,}")
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
            *_error_scores(scores),
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


def _four(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
