"""The pictures of the training report: patches, weight maps, predicted borders against the annotation's.

1. A picture is an array of indices into one of two palettes: greys or heat colours, then those of lines and objects.
   With GREYS greys, which the eye hardly tells from 256, a picture takes a third of the room of a coloured one.
2. Images are cut to their centre, LARGEST_SIDE at most, so that lines a pixel wide stay visible; patches, which are to
   be seen whole, keep each k-th pixel instead.
3. A predicted border is found where one of the annotation lies within TOLERANCE_PX, since annotators are no more exact.
"""

from __future__ import annotations

import base64
import colorsys
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.metrics import number_components
from unet_deploy.picture import borders, encode_png, heat, to_display
from unet_deploy.training.data import AnnotatedImage

Indices = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

LARGEST_SIDE = 512
LARGEST_PATCH = 300
TOLERANCE_PX = 2
GREYS = 112
OBJECT_COLOURS = 128

# Yellow, blue and orange-red differ in lightness too, for all kinds of colour vision.
MATCHED, MISSED, EXTRA, OUTLINE, FRAME, STRIPE, GAP = range(GREYS, GREYS + 7)
LINE_COLOURS = ("#ffe119", "#2aa5ff", "#ff4a1c", "#ffe119", "#2aa5ff", "#8c8c8c", "#b8b8b8")
_FIRST_OBJECT = GREYS + len(LINE_COLOURS)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BorderMatch:
    """Borders of one image drawn over it, and the parts of them that agree; None where there is none to compare."""

    picture: Indices
    found: float | None
    right: float | None


def data_uri(picture: Indices, *, is_heat: bool = False) -> str:
    """Return a picture as the address of an image that needs no file."""
    png = encode_png(picture, palette=_HEAT_PALETTE if is_heat else _GREY_PALETTE)
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def heat_stops(count: int = 9) -> list[str]:
    """Return evenly spaced heat colours, smallest value first, as ``#rrggbb``: a colour bar."""
    return ["#" + bytes(colour).hex() for colour in heat(np.linspace(0, 255, count).astype(np.uint8)[None])[0]]


def centre(shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Return the part of an image that is shown.

    >>> centre((100, 600))
    (slice(0, 100, None), slice(44, 556, None))
    """
    first, second = (
        slice((side - shown) // 2, (side + shown) // 2) for side in shape for shown in [min(side, LARGEST_SIDE)]
    )
    return first, second


def draw_grey(image: npt.NDArray[Any]) -> Indices:
    """Return the shown part of an image, its grey values stretched."""
    return _greys(to_display(image[centre(image.shape)]).astype(np.float64) / 255)


def draw_patch_sample(
    tile: npt.NDArray[np.float32],
    label: npt.NDArray[np.int64],
    is_ignored: Mask,
    *,
    grey_range: tuple[float, float],
) -> Indices:
    """Draw a whole patch (y, x) with the frame of its valid centre, in which the label (y, x) has its borders drawn.

    `grey_range` are black and white; it is the same for all patches, so that their contrast can be compared.
    """
    context = (tile.shape[0] - label.shape[0]) // 2
    stride = -(-tile.shape[0] // LARGEST_PATCH)
    labels = np.full(tile.shape, -1, np.int64)
    labels[context : tile.shape[0] - context, context : tile.shape[1] - context] = label
    ignored = np.zeros(tile.shape, np.bool_)
    ignored[labels >= 0] = is_ignored.ravel()
    low, high = grey_range
    picture = _greys((tile[::stride, ::stride] - low) / (high - low if high > low else 1))
    labels, ignored = labels[::stride, ::stride], ignored[::stride, ::stride]
    _hatch(picture, ignored)
    picture[borders(labels) & (labels > 0)] = OUTLINE  # on one side, so that thin membranes stay visible
    picture[borders(labels >= 0)] = FRAME
    return picture


def draw_annotation(annotated: AnnotatedImage) -> Indices:
    """Draw each object, cell or class of an annotation in its own colour, background black, ignored pixels striped."""
    here = centre(annotated.label.shape)
    numbers = _objects(annotated)[here].astype(np.int64)
    picture = np.where(numbers > 0, _FIRST_OBJECT + numbers % OBJECT_COLOURS, 0).astype(np.uint8)
    _hatch(picture, None if annotated.ignored is None else annotated.ignored[here], is_solid=True)
    return picture


def draw_weights(weights: npt.NDArray[np.float32], ignored: Mask | None, *, greatest: float) -> Indices:
    """Draw a weight map in heat colours from 0 to `greatest`, ignored pixels striped."""
    here = centre(weights.shape)
    picture = _greys(weights[here] / (greatest or 1.0))
    _hatch(picture, None if ignored is None else ignored[here], is_solid=True)
    return picture


def draw_borders(annotated: AnnotatedImage, predicted: npt.NDArray[np.uint8]) -> BorderMatch:
    """Draw where the borders of predicted classes (y, x) agree with the annotation's.

    Where the annotation numbers objects, the borders are those of the objects and of the predicted foreground's parts.
    """
    if annotated.instances is not None:
        came, expected = borders(number_components(predicted >= 1)), borders(annotated.instances)
    else:
        came, expected = borders(predicted), borders(annotated.label)
    if annotated.ignored is not None:
        came, expected = came & ~annotated.ignored, expected & ~annotated.ignored
    is_right, is_found = came & _near(expected), expected & _near(came)
    here = centre(annotated.label.shape)
    picture = draw_grey(annotated.image)
    _hatch(picture, None if annotated.ignored is None else annotated.ignored[here])
    picture[is_right[here]] = MATCHED
    picture[(expected & ~is_found)[here]] = MISSED
    picture[(came & ~is_right)[here]] = EXTRA
    return BorderMatch(
        picture=picture,
        found=int(is_found.sum()) / int(expected.sum()) if expected.any() else None,
        right=int(is_right.sum()) / int(came.sum()) if came.any() else None,
    )


def _objects(annotated: AnnotatedImage) -> npt.NDArray[Any]:
    for numbers in (annotated.instances, annotated.cells):
        if numbers is not None:
            return numbers
    return annotated.label


def _near(mask: Mask) -> Mask:
    """Tell which pixels have one of the mask within TOLERANCE_PX, along both axes."""
    for _ in (0, 1):
        wide = mask.copy()
        for shift in range(1, TOLERANCE_PX + 1):
            wide[shift:] |= mask[:-shift]
            wide[:-shift] |= mask[shift:]
        mask = wide.T  # the other axis next; after both, as it was
    return mask


def _greys(values: npt.NDArray[Any]) -> Indices:
    """Return the indices of values in 0..1, cut off at both ends."""
    return np.asarray(np.rint(np.clip(values, 0, 1) * (GREYS - 1)), np.uint8)


def _hatch(picture: Indices, mask: Mask | None, *, is_solid: bool = False) -> None:
    """Draw slanted stripes where the mask is; the picture stays visible between them unless they are solid."""
    if mask is None:
        return
    rows, columns = (np.arange(side) for side in picture.shape)
    is_stripe = (rows[:, None] + columns) % 8 < (4 if is_solid else 2)
    picture[mask & is_stripe] = STRIPE
    if is_solid:
        picture[mask & ~is_stripe] = GAP


def _object_colours() -> npt.NDArray[np.uint8]:
    """Return colours that differ from their neighbours in number: hues a golden section apart, three lightnesses."""
    colours = [
        colorsys.hls_to_rgb(number * 0.618034 % 1, (0.45, 0.6, 0.75)[number % 3], 0.75)
        for number in range(OBJECT_COLOURS)
    ]
    return np.asarray(np.rint(np.array(colours) * 255), np.uint8)


def _palette(shades: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    lines = np.array([list(bytes.fromhex(colour[1:])) for colour in LINE_COLOURS], np.uint8)
    return np.concatenate([shades, lines, _object_colours()])


_SHADES = np.rint(np.linspace(0, 255, GREYS)).astype(np.uint8)
_GREY_PALETTE = _palette(np.repeat(_SHADES[:, None], 3, axis=1))
_HEAT_PALETTE = _palette(heat(_SHADES[None])[0])
