"""Score paired slices by kind, and put the scores in words; each slice is read once and only counts are kept.

- *classes*: the confusion of all pixels; IoU and Dice of each class.
- *membranes*: pixel, Rand and warping error, V_Rand and V_info of the ISBI challenges.
- *instances* and *ctc* are in `_object_scores`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from unet_deploy.cli._pairing import Pair, Paired
from unet_deploy.cli._planes import PlanePair
from unet_deploy.metrics import (
    IsbiScores,
    OverlapCounter,
    PixelCounter,
    RandCounter,
    VCounter,
    WarpingCounter,
)
from unet_deploy.metrics.ctc import Frame
from unet_deploy.metrics.instances import FrameErrors

MAX_CONFUSION_CLASSES = 12

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
        (titles[c.label], *map(four_digits, (c.iou, c.dice, c.precision, c.recall)), f"{c.true_pixels:,}")
        for c in present
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


def four_digits(value: float | None) -> str:
    """Return a score to four digits."""
    return "none" if value is None else f"{value:.4f}"
