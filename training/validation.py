"""Scores on the images left out of training, through the runtime's own geometry.

1. Mirror the whole image into one legal window in phase with the volume (`Geometry.whole_window`).
2. One forward pass gives what any tiling gives; the class of a pixel is the greatest logit's.
3. Compare with the label: share of pixels that differ, and Dice of the foreground.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unet_deploy.geometry import mirror_index
from unet_deploy.training.data import AnnotatedImage, TrainingData
from unet_deploy.training.network import UNet


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Agreement of one segmentation with its label: share of wrong pixels, and Dice of all classes but the first."""

    stem: str
    disagreement: float
    dice: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Scores after `step` steps, by image; the properties are over all images, which have equal weight."""

    step: int
    scores: tuple[Score, ...]

    @property
    def disagreement(self) -> float:
        """Mean share of pixels whose class differs from the label's."""
        return math.fsum(s.disagreement for s in self.scores) / len(self.scores)

    @property
    def dice(self) -> float:
        """Mean foreground Dice."""
        return math.fsum(s.dice for s in self.scores) / len(self.scores)


def to_tensor(image: npt.NDArray[Any], data: TrainingData) -> Tensor:
    """Return the image (y, x) normalised, float32, (1, y, x)."""
    return torch.from_numpy(((image.astype(np.float32) - data.mean) / data.std).astype(np.float32))[None]


def validate(model: UNet, data: TrainingData, *, step: int) -> Validation:
    """Score the model on every validation image."""
    scores = tuple(score(a.stem, predict_whole(model, a.image, data).argmax(0), a) for a in data.validation)
    return Validation(step=step, scores=scores)


def predict_whole(model: UNet, image: npt.NDArray[Any], data: TrainingData) -> npt.NDArray[np.float32]:
    """Return logits (classes, y, x) of a raw image (y, x) in one pass over the whole mirrored image."""
    height, width = image.shape
    rows, columns = (
        [mirror_index(i, side) for i in range(window.start, window.stop)]
        for side in image.shape
        for window in [model.geometry.whole_window(side)]
    )
    tile = to_tensor(image[np.ix_(rows, columns)], data)[None]  # (1, 1, y + halo, x + halo)
    model.eval()
    with torch.no_grad():
        logits = model(tile)[0, :, :height, :width]  # the surplus and the rounding up are dropped
    result: npt.NDArray[np.float32] = logits.numpy()
    return result


def score(stem: str, predicted: npt.NDArray[Any], annotated: AnnotatedImage) -> Score:
    """Compare class indices (y, x) with the label. Dice is 1 where neither has foreground."""
    foreground, expected = predicted >= 1, annotated.label >= 1
    total = int(foreground.sum()) + int(expected.sum())
    dice = 2 * int((foreground & expected).sum()) / total if total else 1.0
    return Score(stem=stem, disagreement=float(np.mean(predicted != annotated.label)), dice=dice)
