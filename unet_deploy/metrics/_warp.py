"""Warp one slice of a truth towards a prediction by simple points, classify what is left: rules 1 to 3 of warping.py.

Speed, without changing the order of visits:

1. The eight neighbours of a pixel are one byte, kept up to date, and a table of 256 says whether it is simple: its
   Yokoi number is 1 (Yokoi, Toriwaki and Fukumura 1975). That is the number of 4-connected pieces of foreground that
   meet at the pixel, and of the background arcs that part them.
2. A pixel that is not simple stays so until a neighbour flips. So a pass visits, from a heap ordered by rank, only the
   pixels that have become simple, and the passes of the definition do no work where nothing changes.
3. Over the whole image, removing a pixel splits its object just if two of the background arcs around it are of one
   background component (by the Euler number: joining m components by k arcs makes k − m more objects). So no pixel has
   to be removed to see. Within a radius, only pixels that do not split the whole image have to be looked at.
"""

from __future__ import annotations

from enum import IntEnum
from heapq import heappop, heappush

import numpy as np
import numpy.typing as npt

from unet_deploy.metrics._isbi_input import Mask, Probability, is_inside, label_components

# (y, x) of the neighbours that make up a pixel's byte, lowest bit first: east, then against the clock.
_RING = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))


class Mismatch(IntEnum):
    """What flipping a pixel of the warped truth would do; values of the map that `find_mismatches` returns."""

    NONE = 0
    SPLIT = 1
    MERGE = 2
    HOLE_ADDED = 3
    HOLE_DELETED = 4
    OBJECT_ADDED = 5
    OBJECT_DELETED = 6


def warp(truth: Mask, probability: Probability, *, threshold: float) -> tuple[Mask, Mask]:
    """Warp a slice (y, x) of the truth towards the prediction by simple points.

    Returns
    -------
    warped
        The truth's topology, in a shape as near to the prediction as the order of visits leads to.
    is_mismatch
        Where it still differs from the prediction.
    """
    height, width = truth.shape
    stride = width + 2
    inside = is_inside(probability, threshold)
    x, y = np.nonzero((truth != inside).T)  # column by column
    # Float32, as the challenge's program stores it: what it holds equal is visited column by column.
    distance = np.abs(probability[y, x] - np.float64(threshold)).astype(np.float32)
    order = np.argsort(-distance, kind="stable")
    pixels = ((y + 1) * stride + x + 1)[order]
    left = _flip_simple_points(_neighbour_bytes(np.pad(truth, 1)), pixels, stride)
    is_mismatch = np.zeros((height + 2) * stride, np.bool_)
    is_mismatch[pixels[left]] = True
    is_mismatch = is_mismatch.reshape(height + 2, stride)[1:-1, 1:-1]
    return inside ^ is_mismatch, is_mismatch


def classify_mismatches(warped: Mask, is_mismatch: Mask, *, radius: int) -> npt.NDArray[np.uint8]:
    """Say for each mismatch (y, x) what flipping it in the warped truth would do; a map of `Mismatch` values."""
    kinds = np.zeros(warped.shape, np.uint8)
    y, x = np.nonzero(is_mismatch)
    if not y.size:
        return kinds
    components = label_components(warped)
    around = _neighbours(np.pad(components, 1, constant_values=-1), y, x)  # (pixels, 8); -1 beyond the image
    n_objects = _count_distinct(around)
    n_different = n_objects + ((around == 0).any(axis=1) | (n_objects == 0))
    is_set = warped[y, x]
    kind = np.select(
        [
            n_objects == 0,  # background all around
            n_different == 1,  # one object all around
            (n_different == 2) & ~is_set,
            n_different > 2,
        ],
        [
            np.where(is_set, Mismatch.OBJECT_DELETED, Mismatch.OBJECT_ADDED),
            np.where(is_set, Mismatch.HOLE_ADDED, Mismatch.HOLE_DELETED),
            Mismatch.HOLE_ADDED,
            np.where(is_set, Mismatch.SPLIT, Mismatch.MERGE),
        ],
        Mismatch.HOLE_DELETED,
    )
    unsure = np.flatnonzero((n_objects > 0) & (n_different == 2) & is_set)
    kind[unsure[_is_split(warped, y[unsure], x[unsure], radius=radius)]] = Mismatch.SPLIT
    kinds[y, x] = kind
    return kinds


def _flip_simple_points(neighbours: npt.NDArray[np.uint8], pixels: npt.NDArray[np.intp], stride: int) -> list[int]:
    """Flip what is simple of `pixels`, which come in the order of visits; return the ranks of those left."""
    simple = (_YOKOI == 1).tolist()
    codes = bytearray(neighbours.tobytes())
    # A neighbour in direction k sees the pixel in the direction opposite.
    steps = [(dy * stride + dx, 1 << (k + 4) % 8) for k, (dy, dx) in enumerate(_RING)]
    rank_of = dict(zip(pixels.tolist(), range(pixels.size), strict=True))
    pixel_at = pixels.tolist()
    now = np.flatnonzero((_YOKOI == 1)[neighbours.ravel()[pixels]]).tolist()  # ascending is a heap
    while now:
        later = set()
        while now:
            rank = heappop(now)
            pixel = pixel_at[rank]
            if pixel not in rank_of or not simple[codes[pixel]]:
                continue  # flipped, or no longer simple, since it came on the heap
            del rank_of[pixel]
            for step, bit in steps:
                other = pixel + step
                codes[other] ^= bit
                other_rank = rank_of.get(other)
                if other_rank is not None and simple[codes[other]]:
                    if other_rank > rank:
                        heappush(now, other_rank)
                    else:  # this pass has been there
                        later.add(other_rank)
        now = sorted(later)
    return list(rank_of.values())


def _is_split(warped: Mask, y: npt.NDArray[np.intp], x: npt.NDArray[np.intp], *, radius: int) -> npt.NDArray[np.bool_]:
    """Tell for set pixels, with one object and background around, whether removing each leaves two objects there."""
    padded = np.pad(warped, 1)
    background = label_components(~padded, neighbours=8)
    arcs = _YOKOI[_neighbour_bytes(padded)[y + 1, x + 1]]
    split: npt.NDArray[np.bool_] = arcs > _count_distinct(_neighbours(background, y, x))
    if 1 <= radius <= min(warped.shape):
        # What is split in the whole image is split in a part of it too.
        for k in np.flatnonzero(~split):
            split[k] = _is_split_in_window(warped, int(y[k]), int(x[k]), radius=radius)
    return split


def _is_split_in_window(warped: Mask, y: int, x: int, *, radius: int) -> bool:
    top, left = max(y - radius, 0), max(x - radius, 0)
    window = np.pad(warped[top : y + radius + 1, left : x + radius + 1], 1)
    here = np.array([y - top]), np.array([x - left])
    window[here[0] + 1, here[1] + 1] = False
    return int(_count_distinct(_neighbours(label_components(window), *here))[0]) > 1


def _neighbour_bytes(padded: Mask) -> npt.NDArray[np.uint8]:
    """Return each pixel's eight neighbours as one byte; of the outermost pixels it means nothing."""
    codes = np.zeros(padded.shape, np.uint8)
    height, width = padded.shape
    for k, (dy, dx) in enumerate(_RING):
        codes[1:-1, 1:-1] |= padded[1 + dy : height - 1 + dy, 1 + dx : width - 1 + dx].astype(np.uint8) << k
    return codes


def _neighbours(padded: npt.NDArray[np.intp], y: npt.NDArray[np.intp], x: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Return the eight neighbours of pixels (y, x) of the image that was padded by one: shape (pixels, 8)."""
    return np.stack([padded[y + 1 + dy, x + 1 + dx] for dy, dx in _RING], axis=1)


def _count_distinct(around: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Count the different positive labels in each row."""
    ascending = np.sort(around, axis=1)
    is_new = ascending > 0
    is_new[:, 1:] &= ascending[:, 1:] != ascending[:, :-1]
    counts: npt.NDArray[np.intp] = is_new.sum(axis=1)
    return counts


def _yokoi_numbers() -> npt.NDArray[np.intp]:
    """Return, by byte of neighbours, how many 4-connected pieces of foreground meet at the pixel, 0 if all are set."""
    ring = np.arange(256)[:, None] >> np.arange(9) % 8 & 1  # the first again at the end
    return np.asarray(
        sum(ring[:, k] - ring[:, k] * ring[:, k + 1] * ring[:, k + 2 - 8 * (k == 6)] for k in (0, 2, 4, 6))
    )


_YOKOI = _yokoi_numbers()
