"""Windows put together from whole chunks, which the cache keeps for the windows beside it.

1. A window touches the chunks of a box. Those that the cache does not have are decoded in as few calls as they make
   boxes, none of them beyond `READ_BYTES` unless a single chunk is.
2. All the channels that are asked for are one chunk to the cache, wherever the store divides them.
3. Places are in the order of axes that the store has; pixels are put where they belong as they come.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.geometry import Interval
from unet_deploy.runtime.block_order import READ_BYTES
from unet_deploy.runtime.chunk_cache import ChunkCache, Place
from unet_deploy.runtime.ome import AXES

Pixels = npt.NDArray[Any]
Box = tuple[range, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkGrid:
    """How an array is cut into chunks; along `axes`, as the store has them."""

    axes: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str

    def interval(self, axis: int, index: int) -> Interval:
        """Return where a chunk lies along an axis (by its position)."""
        size = self.chunks[axis]
        return Interval(index * size, min((index + 1) * size, self.shape[axis]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A window inside the volume, and its channels, in the order wanted; as `Volume.read` is asked."""

    window: Mapping[str, Interval]
    channels: tuple[int, ...]
    cache_bytes: int
    spent: tuple[int, int]
    """Chunks that end at or before this y and this x will not be needed again."""


def read_window(
    grid: ChunkGrid,
    wanted: Wanted,
    *,
    token: Hashable,
    cache: ChunkCache,
    decode: Callable[[tuple[Any, ...]], Pixels],
) -> Pixels:
    """Return a window's pixels, axes (t, c, z, y, x) in native byte order, decoding what the cache does not have.

    Parameters
    ----------
    decode
        Returns the pixels of a selection by axis: a slice, or an array of indices along c.
    """
    distinct = sorted(set(wanted.channels))
    sizes = [len(distinct) if axis == "c" else wanted.window[axis].size for axis in AXES]
    pixels = np.empty(sizes, grid.dtype)
    fill = partial(_copy, grid, wanted.window, _as_stored(pixels, grid.axes))

    def use(place: Place, chunk: Pixels) -> None:
        fill([grid.interval(axis, index) for axis, index in enumerate(place)], chunk)

    is_along_c = [axis == "c" for axis in grid.axes]
    touched = [
        range(1) if along_c else chunks_of(wanted.window[axis], size)
        for axis, along_c, size in zip(grid.axes, is_along_c, grid.chunks, strict=True)
    ]
    in_store = {c // grid.chunks[grid.axes.index("c")] for c in distinct} if "c" in grid.axes else {0}
    cache.fetch(
        (token, tuple(distinct)),
        list(product(*touched)),
        decode=partial(_decode, grid, distinct, decode, fill),
        use=use,
        cache_bytes=wanted.cache_bytes,
        is_spent=partial(_is_spent, grid, wanted.spent),
        each=len(in_store),
    )
    if list(wanted.channels) != distinct:
        pixels = np.take(pixels, [distinct.index(c) for c in wanted.channels], axis=1)
    return pixels


def chunks_of(interval: Interval, size: int) -> range:
    """Return which chunks of a size an interval touches.

    >>> chunks_of(Interval(10, 20), 10), chunks_of(Interval(9, 21), 10)
    (range(1, 2), range(0, 3))
    """
    return range(interval.start // size, (interval.stop - 1) // size + 1)


def boxes_of(places: Collection[Place]) -> list[Box]:
    """Return boxes that hold each place once and nothing else, few of them.

    >>> boxes_of([(0, 0), (0, 1), (1, 0), (1, 1), (2, 1)])
    [(range(0, 2), range(0, 2)), (range(2, 3), range(1, 2))]
    """
    if not places:
        return []
    columns = [*zip(*places, strict=True)]
    hull = tuple(range(min(column), max(column) + 1) for column in columns)
    if math.prod(map(len, hull)) == len(places):
        return [hull]
    boxes: list[Box] = [tuple(range(i, i + 1) for i in place) for place in places]
    for axis in reversed(range(len(hull))):  # join what lies end to end, and is alike across
        lines: dict[tuple[range, ...], list[range]] = {}
        for box in boxes:
            lines.setdefault((*box[:axis], *box[axis + 1 :]), []).append(box[axis])
        boxes = [
            (*across[:axis], joined, *across[axis:])
            for across, parts in lines.items()
            for joined in _join(sorted(parts, key=lambda part: part.start))
        ]
    return sorted(boxes, key=lambda box: [part.start for part in box])


def cut_box(box: Box, *, most: int) -> Iterator[Box]:
    """Yield parts of a box of at most so many chunks, each as long along the last axes as that allows.

    >>> [*cut_box((range(0, 3), range(4, 9)), most=10)]
    [(range(0, 2), range(4, 9)), (range(2, 3), range(4, 9))]
    """
    axis = next((i for i, part in enumerate(box) if len(part) > 1), None)
    if axis is None or math.prod(map(len, box)) <= most:
        yield box
        return
    step = max(most // math.prod(map(len, box[axis + 1 :])), 1)
    for start in range(0, len(box[axis]), step):
        yield from cut_box((*box[:axis], box[axis][start : start + step], *box[axis + 1 :]), most=most)


def _join(parts: Sequence[range]) -> Iterator[range]:
    start, stop = parts[0].start, parts[0].stop
    for part in parts[1:]:
        if part.start != stop:
            yield range(start, stop)
            start = part.start
        stop = part.stop
    yield range(start, stop)


def _decode(
    grid: ChunkGrid,
    channels: list[int],
    decode: Callable[[tuple[Any, ...]], Pixels],
    fill: Callable[[Sequence[Interval], Pixels], None],
    places: Sequence[Place],
) -> Iterator[tuple[Place, Pixels]]:
    """Decode the chunks at `places` box by box, fill the window with each, and yield the chunks."""
    each = [len(channels) if axis == "c" else size for axis, size in zip(grid.axes, grid.chunks, strict=True)]
    chunk_bytes = math.prod(each) * np.dtype(grid.dtype).itemsize
    for box in boxes_of(places):
        for part in cut_box(box, most=max(READ_BYTES // chunk_bytes, 1)):
            hull = [
                Interval(grid.interval(i, indices[0]).start, grid.interval(i, indices[-1]).stop)
                for i, indices in enumerate(part)
            ]
            selection = tuple(
                as_index(channels) if axis == "c" else interval.slice
                for axis, interval in zip(grid.axes, hull, strict=True)
            )
            pixels = np.asarray(decode(selection), dtype=grid.dtype)
            fill(hull, pixels)
            for place in product(*part):
                inside = tuple(
                    slice(None) if axis == "c" else grid.interval(i, place[i]).shifted(-interval.start).slice
                    for i, (axis, interval) in enumerate(zip(grid.axes, hull, strict=True))
                )
                yield place, pixels[inside]


def _copy(
    grid: ChunkGrid, window: Mapping[str, Interval], into: Pixels, place: Sequence[Interval], pixels: Pixels
) -> None:
    """Copy what the window has of the pixels at a place, of one chunk or of several."""
    source: list[slice] = []
    target: list[slice] = []
    for axis, part in zip(grid.axes, place, strict=True):
        if axis == "c":
            source.append(slice(None))
            target.append(slice(None))
            continue
        wanted = window[axis]
        start, stop = max(part.start, wanted.start), min(part.stop, wanted.stop)
        source.append(slice(start - part.start, stop - part.start))
        target.append(slice(start - wanted.start, stop - wanted.start))
    into[tuple(target)] = pixels[tuple(source)] if pixels.ndim else pixels


def _as_stored(pixels: Pixels, axes: str) -> Pixels:
    """Return a view of (t, c, z, y, x) with the axes of the store."""
    present = [axis for axis in AXES if axis in axes]
    view = pixels[tuple(slice(None) if axis in axes else 0 for axis in AXES)]
    return view.transpose([present.index(axis) for axis in axes])


def _is_spent(grid: ChunkGrid, spent: tuple[int, int], place: Place) -> bool:
    ends = (grid.interval(i, place[i]).stop for i in (grid.axes.index("y"), grid.axes.index("x")))
    return all(end <= limit for end, limit in zip(ends, spent, strict=True))


def as_index(channels: Sequence[int]) -> slice | npt.NDArray[np.int64]:
    """Return channels as what an array is indexed with: a slice where they are a run."""
    run = range(channels[0], channels[0] + len(channels))
    return slice(run.start, run.stop) if [*channels] == [*run] else np.asarray(channels, dtype=np.int64)
