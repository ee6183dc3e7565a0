"""Pictures of an evaluated slice: truth outline, prediction, and what went wrong where.

1. A slice larger than PANEL_SIDE is cut where it has most errors; a small one is enlarged by whole pixels.
2. Three panels: the truth's outline (over the image, if there is one, else over the prediction), the prediction, and
   the errors on a dark ground. Colours are near those of Okabe and Ito, which colour-blind people tell apart.
3. Topological errors are a few pixels in a large slice, so each gets a ring around it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.metrics.instances import FrameErrors
from unet_deploy.picture import to_display

Rgb = npt.NDArray[np.uint8]
Labels = npt.NDArray[Any]
Legend = tuple[tuple[str, str], ...]

PANEL_SIDE = 512
SMALLEST_SIDE = 256
TITLES = ("truth", "prediction", "errors")

_SPLIT, _MERGE, _MISSED, _ADDED, _OTHER = "#ff4a1c", "#2aa5ff", "#e28ac0", "#00c08a", "#ffffff"
_TRUTH_LINE = "#ffe119"
_GROUND, _RIGHT, _WRONGLY_0 = "#161616", "#606060", "#ffffff"
_LACKS, _EXTRA = "#7a93a6", "#8d7a62"
CLASS_COLOURS = ("#404040", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")

LEGENDS: dict[str, Legend] = {
    "membranes": (
        (_SPLIT, "split: predicted membrane divides a true cell"),
        (_MERGE, "merge: a gap joins true cells"),
        (_OTHER, "other topology: objects and holes"),
        (_EXTRA, "membrane predicted inside a cell"),
        (_LACKS, "membrane not predicted"),
        (_TRUTH_LINE, "outline of the true cells"),
    ),
    "classes": ((_RIGHT, "right, and not class 0"), (_TRUTH_LINE, "outline of the true classes")),
    "instances": (
        (_SPLIT, "split: a true object in pieces"),
        (_MERGE, "merge: a predicted object joins true ones"),
        (_MISSED, "missed"),
        (_ADDED, "added"),
        (_RIGHT, "neither"),
        (_TRUTH_LINE, "outline of the true objects"),
    ),
}
LEGENDS["ctc"] = LEGENDS["instances"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlicePicture:
    """A slice in three panels (y, x, 3) of one size; `caption` says what they show."""

    name: str
    caption: str
    panels: tuple[Rgb, Rgb, Rgb]


def class_legend(names: Sequence[str], labels: Sequence[int]) -> Legend:
    """Return the legend of class errors: a wrong pixel has the colour of what it was taken for."""
    wrong = tuple(
        (
            _class_colour(label) if label else _WRONGLY_0,
            f"wrongly {names[label] if label < len(names) else f'class {label}'}",
        )
        for label in labels[: len(CLASS_COLOURS)]
    )
    return wrong + LEGENDS["classes"]


def draw_membranes(
    name: str,
    truth: Labels,
    interior: npt.NDArray[Any],
    image: npt.NDArray[Any] | None,
    *,
    threshold: float,
    radius: int,
) -> SlicePicture:
    """Draw a slice at the threshold of the lowest warping error."""
    from unet_deploy.metrics import Mismatch, find_mismatches

    kinds = find_mismatches(truth, interior, threshold=threshold, radius=radius)
    is_cell = truth != 0
    grey = interior if interior.dtype == np.uint8 else np.rint(interior.astype(np.float64) * 255).astype(np.uint8)
    inside = grey / np.float64(255) > threshold if interior.dtype == np.uint8 else interior > np.float64(threshold)
    view = _View(kinds if kinds.any() else is_cell != inside)
    is_cell, inside, grey, kinds = (view.cut(plane) for plane in (is_cell, inside, grey, kinds))
    errors = _ground(is_cell.shape)
    _paint(errors, is_cell & inside, _RIGHT)
    _paint(errors, is_cell & ~inside, _EXTRA)
    _paint(errors, ~is_cell & inside, _LACKS)
    is_other = (kinds != 0) & (kinds != Mismatch.SPLIT) & (kinds != Mismatch.MERGE)
    _paint(errors, _widen(is_other, lambda y, x: abs(y) + abs(x) <= 1), _OTHER)  # they do not count in the score
    for mask, colour in ((kinds == Mismatch.MERGE, _MERGE), (kinds == Mismatch.SPLIT, _SPLIT)):
        _ring(errors, mask, colour)
    counts = [int(np.sum(kinds == kind)) // view.enlarged**2 for kind in (Mismatch.SPLIT, Mismatch.MERGE)]
    caption = (
        f"{counts[0]} split px, {counts[1]} merge px, {int(is_other.sum()) // view.enlarged**2} px of other topology"
    )
    outlined = _rgb(grey if image is None else to_display(view.cut(image)))
    _paint(outlined, edges(is_cell), _TRUTH_LINE)
    return SlicePicture(name=name, caption=caption + view.where, panels=(outlined, _rgb(grey), errors))


def draw_classes(name: str, truth: Labels, prediction: Labels, image: npt.NDArray[Any] | None) -> SlicePicture:
    """Draw a slice of class labels."""
    view = _View(truth != prediction)
    share = float(np.mean(truth != prediction))
    truth, prediction = view.cut(truth).astype(np.int64), view.cut(prediction).astype(np.int64)
    shown = np.zeros((*prediction.shape, 3), np.uint8)
    errors = _ground(prediction.shape)
    _paint(errors, truth == prediction, _RIGHT)
    _paint(errors, (truth == prediction) & (truth == 0), _GROUND)
    for label in np.unique(prediction).tolist():
        _paint(shown, prediction == label, _class_colour(label))
        _paint(errors, (prediction == label) & (truth != label), _class_colour(label) if label else _WRONGLY_0)
    outlined = shown.copy() if image is None else _rgb(to_display(view.cut(image)))
    _paint(outlined, edges(truth), _TRUTH_LINE)
    return SlicePicture(name=name, caption=f"{share:.2%} of pixels wrong{view.where}", panels=(outlined, shown, errors))


def draw_instances(
    name: str, truth: Labels, prediction: Labels, image: npt.NDArray[Any] | None, *, errors: FrameErrors
) -> SlicePicture:
    """Draw a slice of objects; `errors` are those of its frame."""
    wrong = [
        (np.isin(prediction, errors.added), _ADDED),
        (np.isin(prediction, errors.merged), _MERGE),
        (np.isin(truth, errors.split), _SPLIT),
        (np.isin(truth, errors.missed), _MISSED),
    ]
    view = _View(np.logical_or.reduce([mask for mask, _ in wrong]))
    truth, prediction = view.cut(truth), view.cut(prediction)
    shown = _colour_objects(prediction)
    errors_shown = _ground(truth.shape)
    _paint(errors_shown, (truth != 0) | (prediction != 0), _RIGHT)
    for mask, colour in wrong:
        _paint(errors_shown, view.cut(mask), colour)
    _paint(errors_shown, seams(prediction), _GROUND)
    outlined = shown.copy() if image is None else _rgb(to_display(view.cut(image)))
    for picture in (outlined, errors_shown):
        _paint(picture, edges(truth), _TRUTH_LINE)
    parts = (
        f"{len(errors.split)} split", f"{len(errors.merged)} merging", f"{len(errors.missed)} missed",
        f"{len(errors.added)} added",
    )  # fmt: skip
    caption = f"{', '.join(parts)} of {errors.true_objects} objects in the frame"
    return SlicePicture(name=name, caption=caption + view.where, panels=(outlined, shown, errors_shown))


def edges(labels: Labels) -> npt.NDArray[np.bool_]:
    """Return the outermost pixels of each area, which have another label above, below, left or right; 0 has none.

    >>> edges(np.array([[0, 5, 5, 5, 7]])).astype(int).tolist()
    [[0, 1, 0, 1, 1]]
    """
    edge = np.zeros(labels.shape, np.bool_)
    down, across = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge &= labels != 0
    return edge


def seams(labels: Labels) -> npt.NDArray[np.bool_]:
    """Return the pixels before another object, to the right or below: lines between objects that touch.

    >>> seams(np.array([[0, 5, 5, 7, 0]])).astype(int).tolist()
    [[0, 0, 1, 0, 0]]
    """
    seam = np.zeros(labels.shape, np.bool_)
    seam[:-1] |= (labels[1:] != labels[:-1]) & (labels[1:] != 0)
    seam[:, :-1] |= (labels[:, 1:] != labels[:, :-1]) & (labels[:, 1:] != 0)
    seam &= labels != 0
    return seam


class _View:
    """The part of a slice that is shown, and how much it is enlarged."""

    def __init__(self, errors: npt.NDArray[Any]) -> None:
        height, width = errors.shape
        self._y, self._x = _busiest(errors != 0, PANEL_SIDE)
        self.enlarged = max(1, SMALLEST_SIDE // max(height, width))
        is_cut = max(height, width) > PANEL_SIDE
        self.where = (
            f"; shown: y {self._y.start}:{self._y.stop}, x {self._x.start}:{self._x.stop} of {height} × {width} px"
            if is_cut
            else ""
        )

    def cut(self, plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
        part = plane[self._y, self._x]
        return part if self.enlarged == 1 else part.repeat(self.enlarged, axis=0).repeat(self.enlarged, axis=1)


def _busiest(is_wrong: npt.NDArray[np.bool_], side: int) -> tuple[slice, slice]:
    """Return the window of at most `side` with most errors, to an eighth of `side`; the middle if there is none."""
    windows = []
    for axis, extent in enumerate(is_wrong.shape):
        if extent <= side:
            windows.append(slice(0, extent))
            continue
        step = side // 8
        # One axis after the other: rows first, then columns of those rows.
        part = is_wrong if axis == 0 else is_wrong[windows[0]]
        total = np.concatenate([[0], np.cumsum(part.sum(axis=1 - axis, dtype=np.int64))])
        starts = np.unique([*range(0, extent - side, step), extent - side])
        counts = total[starts + side] - total[starts]
        start = int(starts[np.argmax(counts)]) if counts.any() else (extent - side) // 2
        windows.append(slice(start, start + side))
    return windows[0], windows[1]


def _ground(shape: tuple[int, ...]) -> Rgb:
    picture = np.empty((*shape, 3), np.uint8)
    picture[...] = _as_rgb(_GROUND)
    return picture


def _rgb(grey: npt.NDArray[np.uint8]) -> Rgb:
    return np.repeat(grey[..., None], 3, axis=2)


def _as_rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _paint(picture: Rgb, mask: npt.NDArray[np.bool_], colour: str) -> None:
    picture[mask] = _as_rgb(colour)


def _ring(picture: Rgb, mask: npt.NDArray[np.bool_], colour: str) -> None:
    """Mark the pixels of a mask, and draw a line around each group of them."""
    near, far = _widen(mask, lambda y, x: y * y + x * x <= 37), _widen(mask, lambda y, x: y * y + x * x <= 80)
    _paint(picture, far & ~near, colour)
    _paint(picture, _widen(mask, lambda y, x: abs(y) + abs(x) <= 1), colour)


def _widen(mask: npt.NDArray[np.bool_], reaches: Callable[[int, int], bool]) -> npt.NDArray[np.bool_]:
    wide = np.zeros(mask.shape, np.bool_)
    y, x = np.nonzero(mask)  # few
    for dy in range(-9, 10):
        for dx in range(-9, 10):
            if reaches(dy, dx):
                wide[np.clip(y + dy, 0, mask.shape[0] - 1), np.clip(x + dx, 0, mask.shape[1] - 1)] = True
    return wide


def _class_colour(label: int) -> str:
    return CLASS_COLOURS[label % len(CLASS_COLOURS)]


def _colour_objects(labels: Labels) -> Rgb:
    """Give each object a hue, neighbouring numbers far apart; the same number always the same."""
    ids, index = np.unique(labels, return_inverse=True)
    hue = (ids.astype(np.float64) * 0.618034 % 1)[:, None] * 6
    ramp = np.clip(np.abs((hue + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    table = np.rint(70 + 160 * ramp).astype(np.uint8)
    table[ids == 0] = _as_rgb(_GROUND)
    coloured: Rgb = table[index.reshape(labels.shape)]
    return coloured
