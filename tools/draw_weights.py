"""Draw docs/images/weights.png, after figure 3 of the paper: a drawn image, its cells, and the weight of each pixel.

python tools/draw_weights.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unet_deploy.picture import heat, overlay, side_by_side, to_display, write_png
from unet_deploy.training.weight_map import separate_touching, weight_map

SIDE = 256
TARGET = Path(__file__).resolve().parent.parent / "docs" / "images" / "weights.png"
COLOURS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")


def main() -> None:
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:SIDE, :SIDE]
    cells, number = np.zeros((SIDE, SIDE), np.int32), 0
    image = rng.normal(14, 3, cells.shape)
    for _ in range(900):  # ellipses thrown at random: one stays if it covers little of the others
        centre, radii, turn = rng.uniform(0, SIDE, 2), rng.uniform(14, 24, 2), rng.uniform(0, np.pi)
        along = (y - centre[0]) * np.cos(turn) + (x - centre[1]) * np.sin(turn)
        across = (x - centre[1]) * np.cos(turn) - (y - centre[0]) * np.sin(turn)
        inside = (along / radii[0]) ** 2 + (across / radii[1]) ** 2 < 1
        if np.count_nonzero(cells[inside]) > 0.04 * inside.sum():
            continue
        number += 1
        new = inside & (cells == 0)
        cells[new] = number
        image[new] += rng.uniform(60, 170) * (1 + 0.08 * rng.standard_normal(int(new.sum())))
    apart = separate_touching(cells)
    weights = weight_map((apart > 0).astype(np.uint8), apart, class_weights=(1, 1), border_weight=10, border_sigma_px=5)
    grey = to_display(np.clip(image, 0, 255).astype(np.uint8))
    coloured = overlay(grey, np.where(apart > 0, 1 + apart % (len(COLOURS) - 1), 0), COLOURS)
    scaled = np.asarray(255 * (weights - weights.min()) / np.ptp(weights), np.uint8)
    panels = [np.repeat(np.repeat(panel, 2, 0), 2, 1) for panel in (grey, coloured, heat(scaled))]
    print(write_png(TARGET, side_by_side(panels)))


if __name__ == "__main__":
    main()
