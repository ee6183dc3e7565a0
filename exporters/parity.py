"""Parity: the exported file computes what its parent computes, shown through the engine that will run it.

1. fp32 against the torch network: inputs are noise of the statistics the network expects, at several legal sizes: the
   smallest, oblong ones both ways, a batch, and the paper's 572.
2. fp16 and int8 against the fp32 graph: inputs are real tiles (`exporters.calibration`), since rounding that is
   harmless on real images can be seen on noise, and the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from unet_deploy.card import Network
from unet_deploy.errors import ParityError
from unet_deploy.runtime.engines import CheckedEngine
from unet_deploy.runtime.engines.base import Batch
from unet_deploy.runtime.tolerances import TOLERANCES, Tolerance
from unet_deploy.training.network import UNet


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityRow:
    """The comparison at one input shape (n, c, y, x)."""

    shape: tuple[int, int, int, int]
    max_difference: float
    limit: float
    mean_difference: float
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
        rows.append(_row(expected, came, shape, tolerance))
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


def compare_tiles(
    parent: CheckedEngine, engine: CheckedEngine, tiles: Sequence[Batch], *, data: str
) -> tuple[ParityRow, ...]:
    """Compare an fp16 or int8 graph with the fp32 graph it was made from.

    Parameters
    ----------
    parent, engine
        The engines of the fp32 graph and of the product.
    tiles
        Normalised float32 tiles, (n, c, y, x).
    data
        What the tiles are of, for the message.

    Raises
    ------
    ParityError
        If they differ by more than the engine's tolerance on any tile, or in too many labels on all together.
    """
    description = engine.describe()
    tolerance = TOLERANCES[description.engine, description.precision]
    rows: list[ParityRow] = []
    problems: list[str] = []
    for tile in tiles:
        n, c, y, x = tile.shape
        expected = parent.infer(tile)
        row = _row(expected, engine.infer(tile), (n, c, y, x), tolerance)
        mean_limit = tolerance.mean_limit(float(np.abs(expected).max()))
        if not (row.max_difference <= row.limit and row.mean_difference <= mean_limit):  # also caught: NaN
            problems.append(
                f"tile {len(rows)}: difference {row.max_difference:.3g}, at most {row.limit:.3g} allowed; "
                f"mean {row.mean_difference:.3g}, at most {mean_limit:.3g}"
            )
        rows.append(row)
    share = mean_labels_equal(rows)
    if not share >= tolerance.labels:
        problems.append(f"labels equal on {share:.3%} of the pixels, at least {tolerance.labels:.2%} expected")
    if problems:
        better = {"fp16": "fp32", "int8": "fp16, or calibrate it on data like what will be segmented (--calibrate)"}
        raise ParityError(
            f"{description.engine} ({description.precision}) does not compute what the fp32 graph computes",
            *problems,
            f"on {data}",
            fix=f"no file was written; export it as {better.get(description.precision, 'fp32')}",
        )
    return tuple(rows)


def mean_labels_equal(rows: Sequence[ParityRow]) -> float:
    """Return the share of equal labels over all rows, which are of tiles of one size."""
    return float(np.mean([row.labels_equal for row in rows]))


def _row(expected: Batch, came: Batch, shape: tuple[int, int, int, int], tolerance: Tolerance) -> ParityRow:
    difference = np.abs(came - expected)
    return ParityRow(
        shape=shape,
        max_difference=float(difference.max()),
        limit=tolerance.limit(float(np.abs(expected).max())),
        mean_difference=float(difference.mean(dtype=np.float64)),
        labels_equal=float((came.argmax(1) == expected.argmax(1)).mean()),
    )


def torch_logits(model: UNet, batch: Batch) -> Batch:
    """Return the torch network's logits in evaluation mode: float32 (n, c, y, x) to (n, classes, y', x')."""
    model.eval()
    with torch.inference_mode():
        logits: Batch = model(torch.from_numpy(batch)).numpy()
    return logits
