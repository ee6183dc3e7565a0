"""Scores on the images left out of training, through the runtime's own geometry.

1. Cover the mirrored image with tiles in phase with it (`geometry.cover_axis`), one for all but large images.
2. So the logits are what any other tiling gives; the class of a pixel is the greatest logit's.
3. Compare with the annotation, ignored pixels left out: pixels, foreground; the Rand error of the cells that a class
   surrounds (membranes); SEG of the foreground's connected components against annotated objects.

The metrics are those of `unet-deploy evaluate`. Which of them picks the best network follows from the labels
(`default_metric`), unless the user says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unet_deploy.geometry import Interval, cover_axis, mirror_index
from unet_deploy.metrics import Frame, RandCounter, SegCounter, number_components
from unet_deploy.training.config import Metric
from unet_deploy.training.data import AnnotatedImage, TrainingData, normalise
from unet_deploy.training.network import UNet

LARGEST_CORE = 1024
"""Larger validation images are segmented in tiles that keep this many pixels a side, so that memory has a bound."""
HIGHER_IS_BETTER: frozenset[Metric] = frozenset({"foreground_dice", "seg"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Scores of one image by metric."""

    stem: str
    values: dict[Metric, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Scores after `step` steps: over all validation images together (`values`), and of each.

    Pixel disagreement and Dice over all are means of the images; the Rand error and SEG are pooled, as their
    definitions say.
    """

    step: int
    values: dict[Metric, float]
    scores: tuple[Score, ...]

    def is_better(self, other: Validation | None, metric: Metric) -> bool:
        """Tell whether this is strictly better than `other` by `metric`; anything is better than nothing."""
        if other is None:
            return True
        if metric in HIGHER_IS_BETTER:
            return self.values[metric] > other.values[metric]
        return self.values[metric] < other.values[metric]


def default_metric(data: TrainingData) -> Metric:
    """Return what matters for these labels: SEG for objects, the Rand error for cells told apart, else pixels."""
    if all(a.instances is not None for a in data.validation):
        return "seg"
    return "pixel_disagreement" if data.cell_class is None else "rand_error"


def to_tensor(annotated: AnnotatedImage, data: TrainingData) -> Tensor:
    """Return the image normalised, float32, (1, y, x)."""
    return torch.from_numpy(normalise(annotated, mean=data.mean, std=data.std))[None]


def validate(model: UNet, data: TrainingData, *, step: int) -> Validation:
    """Score the model on every validation image."""
    return score_all([(a, predict_whole(model, a, data)) for a in data.validation], data, step=step)


def predict_whole(
    model: UNet, annotated: AnnotatedImage, data: TrainingData, *, largest_core: int = LARGEST_CORE
) -> npt.NDArray[np.float32]:
    """Return logits, float32, (classes, y, x), of a whole mirrored image, tile by tile where it is large."""
    image, geometry = to_tensor(annotated, data), model.geometry
    device = next(model.parameters()).device
    rows, columns = (
        cover_axis(geometry, Interval(0, side), geometry.tile_side(min(geometry.round_up(side), largest_core)))
        for side in annotated.image.shape
    )
    result = np.empty((model.head.out_channels, *annotated.image.shape), np.float32)
    model.eval()
    for row in rows:
        for column in columns:
            y, x = (
                torch.tensor([mirror_index(i, side) for i in range(tile.read.start, tile.read.stop)])
                for tile, side in zip((row, column), annotated.image.shape, strict=True)
            )
            with torch.no_grad():
                logits = model(image[None, :, y[:, None], x].to(device))  # (1, classes, y, x) of the tile's output
            kept = logits[0, :, row.crop.start : row.crop.stop, column.crop.start : column.crop.stop]
            result[:, row.keep.start : row.keep.stop, column.keep.start : column.keep.stop] = kept.float().cpu()
    return result


def score_all(
    predictions: Sequence[tuple[AnnotatedImage, npt.NDArray[np.float32]]], data: TrainingData, *, step: int = 0
) -> Validation:
    """Compare logits (classes, y, x) with the annotation of each image."""
    seg, rand = SegCounter(), RandCounter()
    scores: list[Score] = []
    for index, (annotated, logits) in enumerate(predictions):
        predicted = np.asarray(logits.argmax(0), np.uint8)
        values = pixel_scores(predicted, annotated)
        if annotated.instances is not None:
            one = SegCounter()
            for counter, frame in ((one, Frame(0)), (seg, Frame(index))):
                counter.add(frame, annotated.instances, number_components(predicted >= 1))
            score = one.scores().seg
            if score is not None:  # an image without objects has none
                values["seg"] = score
        elif data.cell_class is not None:
            alone = RandCounter()
            inside = probability(logits, data.cell_class)
            truth = (annotated.label == data.cell_class).astype(np.uint8)
            if annotated.ignored is not None:
                truth[annotated.ignored] = 0  # the metric counts pixels of true cells alone
            alone.add(truth, inside)
            rand.add(truth, inside)
            values["rand_error"] = alone.scores().error
        scores.append(Score(stem=annotated.stem, values=values))
    means: dict[Metric, float] = {
        metric: math.fsum(s.values[metric] for s in scores) / len(scores)
        for metric in ("pixel_disagreement", "foreground_dice")
    }
    if all(annotated.instances is not None for annotated, _ in predictions):
        means["seg"] = seg.scores().seg or 0.0
    if all("rand_error" in s.values for s in scores):
        means["rand_error"] = rand.scores().error
    return Validation(step=step, values=means, scores=tuple(scores))


def pixel_scores(predicted: npt.NDArray[np.uint8], annotated: AnnotatedImage) -> dict[Metric, float]:
    """Compare class indices (y, x) with the label where it is not ignored. Dice is 1 where neither has foreground."""
    here = np.ones(predicted.shape, np.bool_) if annotated.ignored is None else ~annotated.ignored
    came, expected = predicted[here], annotated.label[here]
    total = int((came >= 1).sum()) + int((expected >= 1).sum())
    both = int(((came >= 1) & (expected >= 1)).sum())
    return {
        "pixel_disagreement": float(np.mean(came != expected)) if came.size else 0.0,
        "foreground_dice": 2 * both / total if total else 1.0,
    }


def probability(logits: npt.NDArray[np.float32], index: int) -> npt.NDArray[np.float32]:
    """Return the soft-max of one class, (y, x)."""
    powers = np.exp(logits - logits.max(axis=0))
    return np.asarray(powers[index] / powers.sum(axis=0), np.float32)
