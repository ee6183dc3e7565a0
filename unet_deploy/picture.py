"""Pictures without an imaging library: grey and colour arrays to PNG, labels over an image, panels side by side.

A PNG is its signature and three chunks: IHDR (size, 8 bits, grey, RGB or indexed), IDAT (rows, each after a filter byte
0, deflated) and IEND; each chunk is length, name, data, CRC-32 (PNG specification, sections 5 and 11). An indexed
picture has its colours in one more chunk, PLTE, before IDAT.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.errors import ConfigurationError

Grey = npt.NDArray[np.uint8]
Rgb = npt.NDArray[np.uint8]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_SIDE = 2**31 - 1
# Dark violet to bright yellow, even steps of lightness; straight lines between these are close enough to see no bands.
_HEAT = ("#05040c", "#2a1052", "#641a80", "#9e2f7f", "#d3436e", "#f4695c", "#fe9f6d", "#fed395", "#fcfdbf")


def write_png(path: str | os.PathLike[str], image: npt.NDArray[Any]) -> Path:
    """Write an 8-bit picture; a reader sees the old file or the whole new one, never a part.

    Parameters
    ----------
    path
        The file; its folder must exist.
    image
        uint8, (y, x) grey or (y, x, 3) red, green, blue.

    Returns
    -------
    pathlib.Path
        The file written.

    Raises
    ------
    ConfigurationError
        If the array is not such a picture.
    """
    data = encode_png(image)
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def encode_png(image: npt.NDArray[Any], *, palette: npt.NDArray[np.uint8] | None = None) -> bytes:
    """Return an 8-bit picture as the bytes of a PNG file.

    Parameters
    ----------
    image
        uint8, (y, x) grey or (y, x, 3) red, green, blue; with a palette, (y, x) indices into it.
    palette
        uint8, (colours, 3), at most 256. A picture of few colours is a third as large that way.

    Returns
    -------
    bytes
        The file.

    Raises
    ------
    ConfigurationError
        If the array is not such a picture, or the palette is not of that shape or lacks a colour of the picture.
    """
    _require_picture(image, what="picture to write", grey_only=palette is not None)
    if palette is not None:
        _require_palette(palette, colours=int(image.max()) + 1)
    height, width = image.shape[:2]
    colour_type = 3 if palette is not None else 0 if image.ndim == 2 else 2
    rows = np.ascontiguousarray(image).reshape(height, -1)
    data = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)  # filter 0 before each row
    chunks = [
        _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)),
        b"" if palette is None else _chunk(b"PLTE", palette.tobytes()),
        _chunk(b"IDAT", zlib.compress(data.tobytes(), 6)),
        _chunk(b"IEND", b""),
    ]
    return _SIGNATURE + b"".join(chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def to_display(image: npt.NDArray[Any]) -> Grey:
    """Stretch a numeric (y, x) image so that its 0.5 and 99.5 percentiles are black and white.

    Values that are not finite do not count and are drawn black; a constant image is drawn mid-grey.

    Raises
    ------
    ConfigurationError
        If the array is not (y, x), empty, or not of real numbers.
    """
    is_real = image.dtype == np.bool_ or (np.issubdtype(image.dtype, np.number) and image.dtype.kind != "c")
    if image.ndim != 2 or image.size == 0 or not is_real:
        raise ConfigurationError(
            f"image to display has shape {image.shape} and dtype {image.dtype}, not (y, x) real numbers",
            "one plane of one channel can be shown",
            fix="choose one plane, for example volume[0]",
        )
    values = image.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(image.shape, np.uint8)
    low, high = np.percentile(values[finite], [0.5, 99.5])
    if high <= low:
        low, high = values[finite].min(), values[finite].max()
    if high <= low:
        return 128 * finite.astype(np.uint8)
    stretched = np.clip((np.where(finite, values, low) - low) / (high - low), 0, 1)
    shown: Grey = np.rint(stretched * 255).astype(np.uint8)
    return shown


def overlay(
    image: npt.NDArray[np.uint8],
    labels: npt.NDArray[Any],
    colours: Sequence[str],
    *,
    opacity: float = 0.45,
) -> Rgb:
    """Lay the classes of `labels` over a grey image in their colours, with a solid outline where classes meet.

    Parameters
    ----------
    image
        uint8, (y, x).
    labels
        Integer or bool, (y, x): the class of each pixel. Class 0 stays clear.
    colours
        ``#rrggbb`` of each class, class 0 included.
    opacity
        Of the areas, from 0 to 1. The outlines, the outermost pixels of each area, are solid.

    Returns
    -------
    numpy.ndarray
        uint8, (y, x, 3).

    Raises
    ------
    ConfigurationError
        If image or labels are of another shape or dtype, a class has no colour, a colour is not ``#rrggbb``,
        or the opacity is outside 0..1.
    """
    _require_picture(image, what="image under the labels", grey_only=True)
    palette = _palette(colours)
    _require_labels(labels, image.shape, len(palette))
    if not 0 <= opacity <= 1:
        raise ConfigurationError(f"opacity {opacity} is not in 0..1", "0 is clear, 1 is solid", fix="opacity=0.45")
    classes = labels.astype(np.intp)
    strength = np.where(borders(classes), 1.0, opacity) * (classes > 0)
    grey = np.repeat(image[..., None].astype(np.float64), 3, axis=2)
    mixed = grey + strength[..., None] * (palette[classes] - grey)
    return np.rint(mixed).astype(np.uint8)


def borders(labels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Tell which pixels of (y, x) labels have a neighbour above, below, left or right with another label.

    >>> borders(np.array([[1, 1, 1, 2, 2]])).tolist()
    [[False, False, True, True, False]]
    """
    border = np.zeros(labels.shape, np.bool_)
    down, across = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    border[1:] |= down
    border[:-1] |= down
    border[:, 1:] |= across
    border[:, :-1] |= across
    return border


def heat(probability: npt.NDArray[np.uint8]) -> Rgb:
    """Colour an 8-bit probability map from dark violet (0) to bright yellow (255), lighter always meaning more.

    Raises
    ------
    ConfigurationError
        If the array is not uint8 (y, x).
    """
    _require_picture(probability, what="probability map", grey_only=True)
    anchors = _palette(_HEAT)
    at = np.linspace(0, 255, len(anchors))
    table = np.stack([np.interp(np.arange(256), at, anchors[:, channel]) for channel in range(3)], axis=1)
    coloured: Rgb = np.rint(table).astype(np.uint8)[probability]
    return coloured


def side_by_side(panels: Sequence[npt.NDArray[np.uint8]], *, gap: int = 8) -> Rgb:
    """Set pictures, grey or colour, in a row on white, `gap` pixels apart; lower ones stand at the top.

    Raises
    ------
    ConfigurationError
        If there is no panel, a panel is no 8-bit picture, or the gap is negative.
    """
    if not panels:
        raise ConfigurationError("no pictures to set side by side", fix="give at least one panel")
    if gap < 0:
        raise ConfigurationError(f"gap {gap} between panels is negative", "it is in pixels", fix="gap=8")
    for number, panel in enumerate(panels):
        _require_picture(panel, what=f"panel {number}")
    height = max(panel.shape[0] for panel in panels)
    width = sum(panel.shape[1] for panel in panels) + gap * (len(panels) - 1)
    canvas = np.full((height, width, 3), 255, np.uint8)
    left = 0
    for panel in panels:
        right = left + panel.shape[1]
        canvas[: panel.shape[0], left:right] = panel if panel.ndim == 3 else panel[..., None]
        left = right + gap
    return canvas


def _palette(colours: Sequence[str]) -> npt.NDArray[np.float64]:
    for colour in colours:
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", colour):
            raise ConfigurationError(
                f"colour {colour!r} is not #rrggbb", "two hexadecimal digits each of red, green, blue", fix="'#ff7f0e'"
            )
    return np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours], np.float64).reshape(-1, 3)


def _require_picture(image: npt.NDArray[Any], *, what: str, grey_only: bool = False) -> None:
    is_grey = image.ndim == 2
    is_rgb = image.ndim == 3 and image.shape[2] == 3 and not grey_only
    has_sides = image.size > 0 and max(image.shape) <= _MAX_SIDE
    if image.dtype == np.uint8 and (is_grey or is_rgb) and has_sides:
        return
    expected = "uint8 (y, x)" if grey_only else "uint8 (y, x) or (y, x, 3)"
    raise ConfigurationError(
        f"{what} has shape {image.shape} and dtype {image.dtype}, not {expected}",
        "a picture has at least one pixel and 8 bits a channel",
        fix="unet_deploy.picture.to_display(plane) makes a grey picture of any numeric plane",
    )


def _require_palette(palette: npt.NDArray[Any], *, colours: int) -> None:
    if palette.dtype == np.uint8 and palette.ndim == 2 and palette.shape[1] == 3 and colours <= len(palette) <= 256:
        return
    raise ConfigurationError(
        f"palette has shape {palette.shape} and dtype {palette.dtype}, not uint8 ({colours}..256, 3)",
        f"the picture's greatest index is {colours - 1}; each index needs red, green, blue",
        fix="give each index of the picture a colour",
    )


def _require_labels(labels: npt.NDArray[Any], shape: tuple[int, ...], classes: int) -> None:
    if labels.shape != shape or labels.dtype.kind not in "biu":
        raise ConfigurationError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}, not {shape} and integers",
            "they must lie on the image pixel by pixel",
            fix="take image and labels from the same plane",
        )
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= classes:
        raise ConfigurationError(
            f"labels span {lowest}..{highest}, but there are colours for classes 0..{classes - 1}",
            "each class, 0 included, needs a colour",
            fix=f"give {max(highest + 1, 1)} colours",
        )
