"""How long the metrics take: one 512² slice at one threshold, and a 2,048² frame with 2,000 objects.

    python benchmarks/metrics.py [--runs 5]

Inputs are drawn: the procedural EM sample as truth, the truth blurred with noise as probability; discs as objects.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from common import save

from unet_deploy.metrics import pixel_error, rand_error, v_scores, warping_error
from unet_deploy.metrics.ctc import Frame, seg_scores
from unet_deploy.metrics.instances import instance_scores
from unet_deploy.sample import em_like_volume_with_truth


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    truth, probability = draw_membranes()
    objects, found = draw_objects()
    frames = {Frame(0): objects}, {Frame(0): found}
    cases: dict[str, Callable[[], Any]] = {
        "warping error, 512², one threshold": lambda: warping_error(truth, probability, thresholds=(0.5,)),
        "pixel error, 512², ten thresholds": lambda: pixel_error(truth, probability),
        "Rand error, 512², ten thresholds": lambda: rand_error(truth, probability),
        "V_Rand and V_info, 512², ten thresholds": lambda: v_scores(truth, probability),
        f"SEG, 2,048², {objects.max()} objects": lambda: seg_scores(*frames),
        f"instance F1, 2,048², {objects.max()} objects": lambda: instance_scores(objects, found),
    }
    rows = {}
    for name, run in cases.items():
        seconds = []
        for _ in range(options.runs):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        rows[name] = round(statistics.median(seconds), 4)
    save(
        "metrics",
        {
            "what": "seconds by metric, medians",
            "data": "drawn",
            "command": "python benchmarks/metrics.py",
            "seconds": rows,
        },
    )


def draw_membranes() -> tuple[Any, Any]:
    """Return truth (y, x), 255 inside cells, and a probability of the inside that is often wrong."""
    membrane = em_like_volume_with_truth(shape=(1, 512, 512), seed=1).membrane[0]
    noise = np.random.default_rng(0).standard_normal(membrane.shape)
    blurred = sum(np.roll(noise, (i, j), (0, 1)) for i in range(-2, 3) for j in range(-2, 3)) / 5
    return np.where(membrane, 0, 255).astype(np.uint8), np.clip(np.where(membrane, 0.35, 0.75) + 0.25 * blurred, 0, 1)


def draw_objects() -> tuple[Any, Any]:
    """Return two label images (y, x) of about 2,000 discs, the second a little shifted."""
    side, step = 2048, 45
    y, x = np.ogrid[:side, :side]
    number = (y // step) * (side // step + 1) + x // step + 1
    inside = (y % step - step // 2) ** 2 + (x % step - step // 2) ** 2 < (step // 2 - 3) ** 2
    labels = np.unique(np.where(inside, number, 0), return_inverse=True)[1].reshape(side, side).astype(np.uint32)
    return labels, np.roll(labels, 4, axis=1)


if __name__ == "__main__":
    main()
