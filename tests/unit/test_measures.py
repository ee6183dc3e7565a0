"""The figures of a block: what they count, and that a thick block costs no more memory than a plane."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from unet_deploy.runtime.measures import count_classes, mean_confidence, saturated_fraction

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 40, 30)])
@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_each_is_what_numpy_says_of_the_whole_block(shape: tuple[int, ...], dtype: str) -> None:
    labels = RNG.integers(0, 3, shape, np.uint8)
    probabilities = RNG.integers(0, 256, (3, *shape), np.uint8)
    info = np.iinfo(dtype)
    pixels = RNG.choice(np.array([info.min, -1 if info.min else 1, 9, info.max], dtype), (2, *shape))
    assert count_classes(labels, 3) == tuple(np.bincount(labels.ravel(), minlength=3))
    assert mean_confidence(probabilities) == pytest.approx(probabilities.max(axis=0).mean() / 255, abs=1e-6)
    ends = (pixels == info.min) | (pixels == info.max)
    assert saturated_fraction(pixels[:, :, 1:, ::2]) == pytest.approx(ends[:, :, 1:, ::2].mean(), abs=1e-6)


def test_a_thick_block_is_measured_plane_by_plane() -> None:
    depth, plane = 64, (128, 128)
    labels: Any = np.zeros((depth, *plane), np.uint8)
    probabilities: Any = np.zeros((2, depth, *plane), np.uint8)
    tracemalloc.start()
    try:
        count_classes(labels, 2)
        mean_confidence(probabilities)
        saturated_fraction(labels[None])
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < labels.nbytes / 4, most
