"""Cell Tracking Challenge sequences: the layout of their folders, and annotation that is partial.

1. A frame that ``01_GT/SEG`` annotates (``man_segTTT.tif``, or ``man_seg_TTT_ZZZ.tif`` for one slice of a frame with
   z) is paired with ``01/tTTT.tif``; other frames are not used.
2. ``01_GT/TRA/man_trackTTT.tif`` marks every cell, SEG need not annotate each: a marker that overlaps no annotated cell
   is a cell without annotation. What lies around such a marker must not be taught as background.
3. How far such a cell may reach is not written anywhere. The rule here: as far as the largest annotated cell,
   that is, R is the largest distance from the centroid of an annotated cell, of the training frames, to a pixel of its
   own. Pixels within R of the marker that belong to no annotated cell are ignored.

The layout is that of "Naming and file content conventions" at celltrackingchallenge.net/datasets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.errors import MissingDependencyError
from unet_deploy.training.image_files import Source
from unet_deploy.training.pairing import Pair, Pairs

_FRAME = re.compile(r"t(\d+)\.tiff?", re.IGNORECASE)
_SEG = re.compile(r"man_seg_?(\d+)(?:_(\d+))?\.tiff?", re.IGNORECASE)
_TRACK = re.compile(r"man_track(\d+)\.tiff?", re.IGNORECASE)


def is_cell_tracking(labels: Path) -> bool:
    """Tell whether a folder of labels is of the Cell Tracking Challenge: it holds a folder ``SEG``."""
    return (labels / "SEG").is_dir()


def find_frames(images: Path, labels: Path, problems: list[str]) -> Pairs:
    """Return the annotated frames as pairs with the stems ``t012``, or ``t012_z003``; problems are noted."""
    if not images.is_dir():
        problems.append(f"images: there is no folder {images}")
        return Pairs(by_stem={}, stems=())
    frames = _by_number(images, _FRAME)
    markers = _by_number(labels / "TRA", _TRACK) if (labels / "TRA").is_dir() else {}
    by_stem: dict[str, Pair] = {}
    stems: list[str] = []
    for path in sorted((labels / "SEG").iterdir()):
        match = _SEG.fullmatch(path.name)
        if match is None:
            continue
        number, z = int(match[1]), None if match[2] is None else int(match[2])
        stem = f"t{match[1]}" if z is None else f"t{match[1]}_z{match[2]}"
        stems.append(stem)
        if number not in frames:
            problems.append(f"{stem}: {path} has no image t{match[1]}.tif in {images}")
            continue
        by_stem[stem] = Pair(
            image=Source(path=frames[number], z=z),
            label=Source(path=path),
            markers=Source(path=markers[number], z=z) if number in markers else None,
        )
    if not stems:
        problems.append(f"labels: no man_segTTT.tif in {labels / 'SEG'}")
    order = sorted(stems)
    return Pairs(by_stem={stem: by_stem[stem] for stem in order if stem in by_stem}, stems=tuple(order))


def largest_radius(annotated: Iterable[npt.NDArray[Any]]) -> float:
    """Return the largest distance, in pixels, from a cell's centroid to a pixel of its own, over label images (y, x).

    >>> largest_radius([np.array([[1, 1, 1, 0, 2]])])
    1.0
    """
    largest = 0.0
    for cells in annotated:
        y, x = np.nonzero(cells)
        if y.size == 0:
            continue
        _, cell = np.unique(cells[y, x], return_inverse=True)
        count = np.bincount(cell)
        from_y = y - (np.bincount(cell, y) / count)[cell]
        from_x = x - (np.bincount(cell, x) / count)[cell]
        largest = max(largest, math.sqrt(float((from_y**2 + from_x**2).max())))
    return largest


def unannotated_area(cells: npt.NDArray[Any], markers: npt.NDArray[Any], *, radius: float) -> npt.NDArray[np.bool_]:
    """Return which pixels lie within `radius` of a marker without annotation, and in no annotated cell.

    Parameters
    ----------
    cells
        Integer, (y, x): the annotated cells, 0 elsewhere.
    markers
        Integer, (y, x): a marker in every cell, 0 elsewhere. One that shares no pixel with a cell has no annotation.
    radius
        In pixels, from pixel centre to the nearest pixel centre of the marker.
    """
    try:
        from skimage.morphology import isotropic_dilation
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "skimage":
            raise
        raise MissingDependencyError.of_extra("scikit-image", extra="train", purpose="partial annotation") from error
    lone = np.setdiff1d(np.unique(markers[markers > 0]), markers[cells > 0])
    if lone.size == 0:
        return np.zeros(cells.shape, np.bool_)
    near: npt.NDArray[np.bool_] = np.asarray(isotropic_dilation(np.isin(markers, lone), radius), np.bool_)
    return np.asarray(near & (cells == 0))


def _by_number(folder: Path, pattern: re.Pattern[str]) -> dict[int, Path]:
    matches = ((pattern.fullmatch(path.name), path) for path in sorted(folder.iterdir()))
    return {int(match[1]): path for match, path in matches if match}
