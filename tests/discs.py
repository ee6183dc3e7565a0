"""Bright discs on a dark, noisy ground: data that a tiny network learns in seconds; needs no torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from unet_deploy.card import Histogram
from unet_deploy.training.data import AnnotatedImage, TrainingData

SHAPE = (40, 56)


def annotate(stem: str, seed: int, *, has_cells: bool = False) -> AnnotatedImage:
    """Return one image of four discs or fewer; with cells, each disc has a number and overlaps none."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    numbers: npt.NDArray[np.int32] = np.zeros(SHAPE, np.int32)
    for number in range(1, 5):
        disc = (y - random.integers(SHAPE[0])) ** 2 + (x - random.integers(SHAPE[1])) ** 2 < 36
        numbers[disc & (numbers == 0)] = number
    label = (numbers > 0).astype(np.uint8)
    image = np.clip(60 + 120.0 * label + random.normal(0, 10, SHAPE), 0, 255).astype(np.uint8)
    cells = numbers if has_cells else None
    return AnnotatedImage(stem=stem, image=image, label=label, cells=cells, instances=cells)


def make_discs(validation: int = 1, *, has_cells: bool = False) -> TrainingData:
    """Return three training images and some for validation, with constants as `read_training_data` takes them."""
    images = [annotate(f"{i}", i, has_cells=has_cells) for i in range(3)]
    values = np.concatenate([a.image.ravel() for a in images])
    pixels = np.bincount(np.concatenate([a.label.ravel() for a in images]))
    return TrainingData(
        training=tuple(images),
        validation=tuple(annotate(f"v{i}", 10 + i, has_cells=has_cells) for i in range(validation)),
        excluded=(),
        classes=("ground", "disc"),
        dtype="uint8",
        value_range=(0.0, 255.0),
        mean=float(values.mean()),
        std=float(values.std()),
        histogram=Histogram(value_range=(0.0, 255.0), counts=(values.size,)),
        class_pixels=(int(pixels[0]), int(pixels[1])),
    )
