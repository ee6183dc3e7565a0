"""Pictures to try an engine on: a drawn one, or a piece of a volume, with the normalisation that the card asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.card import ModelCard
from unet_deploy.geometry import Geometry, Interval, mirror_index
from unet_deploy.runtime.normalise import Batch, Normaliser, choose_normaliser, needs_statistics, normaliser_of_image
from unet_deploy.runtime.preparation import choose_channels
from unet_deploy.runtime.volume import open_volume
from unet_deploy.sample import em_like_volume

PICTURE_PIXELS = 384
"""About the side of the picture; in cells of the divisor, and a little more, so that it ends within one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """An image to try an engine on: raw `pixels` (c, y, x), how they are normalised, and its black and white."""

    pixels: npt.NDArray[Any]
    normaliser: Normaliser
    black: float
    white: float
    source: str

    def normalised(self, raw: npt.NDArray[Any]) -> Batch:
        """Return raw (c, y, x) as the engine's input (1, c, y, x)."""
        return self.normaliser(raw)[None]

    def mirrored(self, y: Interval, x: Interval) -> npt.NDArray[np.float32]:
        """Return a window (c, y, x), raw; what lies outside the picture is mirrored."""
        rows, columns = (
            [mirror_index(i, extent) for i in range(window.start, window.stop)]
            for window, extent in zip((y, x), self.pixels.shape[1:], strict=True)
        )
        return self.pixels[:, rows][:, :, columns].astype(np.float32)

    def checkerboard(self, height: int, width: int) -> npt.NDArray[np.float32]:
        """Return black and white pixels by turns (c, y, x)."""
        is_white = np.add.outer(np.arange(height), np.arange(width)) % 2 == 1
        values = np.where(is_white, np.float32(self.white), np.float32(self.black))
        return np.broadcast_to(values, (self.pixels.shape[0], height, width))


def sample_picture(card: ModelCard) -> Picture:
    """Return a plane of the procedural sample in the card's grey values; each channel is another plane of it."""
    side = _picture_side(card.geometry)
    drawn = em_like_volume(shape=(card.network.in_channels, side, side - card.geometry.divisor))
    low, high = card.input.value_range
    pixels = low + drawn.astype(np.float32) * np.float32((high - low) / 255)
    if np.dtype(card.input.dtype).kind in "iu":
        pixels = np.rint(pixels)
    raw = pixels.astype(card.input.dtype)
    return Picture(
        pixels=raw, normaliser=normaliser_of_image(card, raw), black=low, white=high, source="the procedural sample"
    )


def volume_picture(
    card: ModelCard,
    path: str | Path,
    *,
    channels: Sequence[int | str] = (),
    axes: str | None = None,
    level: int = 0,
    input_range: tuple[float, float] | None = None,
) -> Picture:
    """Return the middle of a volume's middle plane; a card that asks for percentiles gets those of this piece.

    Raises
    ------
    InputDataError
        If the volume cannot be read or does not fit the model.
    ConfigurationError
        If the input range is empty.
    """
    volume = open_volume(path, level=level, axes=axes)
    chosen = choose_channels(volume.info, card, channels)
    side = _picture_side(card.geometry)
    z, y, x = (_middle(volume.extent(axis), size) for axis, size in (("z", 1), ("y", side), ("x", side)))
    t = _middle(volume.extent("t"), 1)
    raw = volume.read(t=t, c=chosen, z=z, y=y, x=x)[0, :, 0]  # (c, y, x)
    low, high = input_range or card.input.value_range
    if needs_statistics(card, input_range=input_range):
        normaliser: Normaliser = normaliser_of_image(card, raw)
        low, high = float(raw.min()), max(float(raw.max()), float(raw.min()) + 1)
    else:
        normaliser = choose_normaliser(card, volume.info.dtype, input_range=input_range, source=volume.info.path)
    source = f"{path}, t {t.start}, z {z.start}, y {y.start}:{y.stop}, x {x.start}:{x.stop}"
    return Picture(pixels=raw, normaliser=normaliser, black=low, white=high, source=source)


def _picture_side(geometry: Geometry) -> int:
    cells = max(PICTURE_PIXELS // geometry.divisor, 3)
    return cells * geometry.divisor + geometry.divisor // 2 + 1


def _middle(extent: int, size: int) -> Interval:
    start = max(extent - size, 0) // 2
    return Interval(start, min(start + size, extent))
