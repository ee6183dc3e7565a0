"""Parity: the exported file computes what the torch network computes, shown through the engine that will run it.

Inputs are noise of the statistics the network expects, at several legal sizes: the smallest, oblong ones both ways,
a batch, and the paper's 572.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from unet_deploy.card import Network
from unet_deploy.errors import ParityError
from unet_deploy.runtime.engines.base import Batch, CheckedEngine
from unet_deploy.runtime.tolerances import TOLERANCES
from unet_deploy.training.network import UNet


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityRow:
    """The comparison at one input shape (n, c, y, x)."""

    shape: tuple[int, int, int, int]
    max_difference: float
    limit: float
    labels_equal: float
    """Share of pixels with the same most likely class."""


def parity_shapes(network: Network) -> tuple[tuple[int, int, int, int], ...]:
    """Return the legal input shapes that parity is shown at."""
    geometry = network.geometry
    small = geometry.smallest_tile
    wide = small + 3 * geometry.divisor
    large = geometry.tile_side(geometry.round_up(384))
    c = network.in_channels
    return (1, c, small, small), (2, c, small, wide), (1, c, wide, small), (1, c, large, large)


def compare(model: UNet, engine: CheckedEngine, network: Network, *, seed: int = 0) -> tuple[ParityRow, ...]:
    """Compare an engine with the torch network it was exported from.

    Raises
    ------
    ParityError
        If they differ by more than the engine's tolerance at any shape; the message lists all shapes.
    """
    description = engine.describe()
    tolerance = TOLERANCES[description.engine, description.precision]
    rng = np.random.default_rng(seed)
    rows = []
    for shape in parity_shapes(network):
        batch = rng.standard_normal(shape, np.float32)
        expected = torch_logits(model, batch)
        came = engine.infer(batch)
        rows.append(
            ParityRow(
                shape=shape,
                max_difference=float(np.abs(came - expected).max()),
                limit=tolerance.limit(float(np.abs(expected).max())),
                labels_equal=float((came.argmax(1) == expected.argmax(1)).mean()),
            )
        )
    if not all(row.max_difference <= row.limit for row in rows):  # also caught: NaN
        raise ParityError(
            f"{description.engine} ({description.precision}) does not compute what the checkpoint computes",
            *(
                f"input {row.shape}: difference {row.max_difference:.3g}, at most {row.limit:.3g} allowed"
                for row in rows
            ),
            fix="no file was written; please report this with the checkpoint's sizes and both versions",
        )
    return tuple(rows)


def torch_logits(model: UNet, batch: Batch) -> Batch:
    """Return the torch network's logits in evaluation mode: float32 (n, c, y, x) to (n, classes, y', x')."""
    model.eval()
    with torch.inference_mode():
        logits: Batch = model(torch.from_numpy(batch)).numpy()
    return logits
