"""Percentiles of a whole volume, by streaming it once (32 bit: twice) before anything is segmented.

1. The volume is cut along its chunk grid into *pieces* of whole chunks, so that every chunk is decoded once a pass.
2. Each piece is one Dask task, read where it runs: it returns counts of digits, half a megabyte a channel whatever the
   piece's size, and of the same kind as a part of a training image's (`unet_deploy.percentiles`).
3. The sums narrow the search down; the result is exact, and the same for any chunks, pieces and workers.

A chunk that cannot be read ends the run: constants without it would silently be another volume's.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.geometry import Interval
from unet_deploy.percentiles import PercentileSearch
from unet_deploy.runtime.execute import Progress, ProgressCallback
from unet_deploy.runtime.scheduling import run_tasks
from unet_deploy.runtime.volume import Volume, VolumeInfo

PIECE_VALUES = 2**22
"""Pieces are grown to about so many values, where chunks are smaller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeStatistics:
    """What a card asked for of a volume: `ranges` holds the grey values at the two `percentiles`, by channel."""

    percentiles: tuple[float, float]
    ranges: tuple[tuple[float, float], ...]

    def to_object(self) -> dict[str, Any]:
        """Return JSON values for provenance."""
        return {"percentiles": list(self.percentiles), "ranges": [list(pair) for pair in self.ranges]}

    @classmethod
    def from_object(cls, value: Any) -> VolumeStatistics | None:
        """Return what `to_object` gave; None for anything else, which is then measured again."""
        try:
            low, high = value["percentiles"]
            ranges = tuple((float(first), float(last)) for first, last in value["ranges"])
            return cls(percentiles=(float(low), float(high)), ranges=ranges)
        except (KeyError, TypeError, ValueError):
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counting:
    """One pass over a volume: everything a worker needs to know."""

    volume: Volume
    channels: tuple[int, ...]
    """Each once, in ascending order."""
    searches: tuple[PercentileSearch, ...]
    piece: tuple[int, int, int, int]
    """(t, z, y, x) of a piece that does not touch the volume's far border."""
    cache_bytes: int = 0
    """What a process may keep of decoded chunks, for the passes after this one."""

    @property
    def n_pieces(self) -> int:
        """Number of pieces."""
        return math.prod(self._counts)

    def place(self, index: int) -> dict[str, Interval]:
        """Return where piece number `index` lies, by axis."""
        place = {}
        for axis, size, count in reversed([*zip("tzyx", self.piece, self._counts, strict=True)]):
            index, i = divmod(index, count)
            place[axis] = Interval(i * size, min((i + 1) * size, self.volume.extent(axis)))
        return place

    @property
    def _counts(self) -> list[int]:
        return [-(-self.volume.extent(axis) // size) for axis, size in zip("tzyx", self.piece, strict=True)]


def count_piece(counting: Counting, index: int) -> tuple[int, list[npt.NDArray[np.int64]]]:
    """Return a piece's number of pixels, and its counts by channel; the Dask task."""
    place = counting.place(index)
    pixels = counting.volume.read(  # (t, c, z, y, x)
        t=place["t"],
        c=counting.channels,
        z=place["z"],
        y=place["y"],
        x=place["x"],
        cache_bytes=counting.cache_bytes,
    )
    axes = [axis for axis in counting.volume.info.axes if axis != "c"]
    where = ", ".join(f"{axis} {place[axis].start}:{place[axis].stop}" for axis in axes)
    source = f"{counting.volume.info.path} at {where}"
    counts = [search.count(pixels[:, i], source=source) for i, search in enumerate(counting.searches)]
    return pixels[:, 0].size, counts


def measure_volume(
    volume: Volume,
    channels: tuple[int, ...],
    percentiles: tuple[float, float],
    client: Any,
    *,
    cache_bytes: int = 0,
    progress: ProgressCallback | None = None,
) -> VolumeStatistics:
    """Return the grey values at two percentiles of each channel, over the whole volume.

    Parameters
    ----------
    volume
        At the level that will be segmented. Chunks that are absent count as their fill value.
    channels
        Indices, in the model's order.
    percentiles
        Two of 0..100, low first.
    client
        A ``distributed.Client``, whose workers see the volume.
    cache_bytes
        What a process may keep of decoded chunks. Only a volume that fits is kept; 0 for one that is still growing.
    progress
        Called after every piece, with the stage ``"statistics"``.

    Raises
    ------
    ReadError
        If a chunk cannot be read.
    ValueRangeError
        If the volume holds NaN or infinity.
    """
    start = time.perf_counter()
    info = volume.info
    each = tuple(sorted(set(channels)))
    count = math.prod(volume.extent(axis) for axis in "tzyx")
    search = PercentileSearch.begin(info.dtype, count, percentiles, source=info.path)
    counting = Counting(
        volume=volume,
        channels=each,
        searches=(search,) * len(each),
        piece=piece_shape(info, n_channels=len(each)),
        cache_bytes=volume.cache_for_all(each, cache_bytes),
    )
    total, done, pixels = counting.n_pieces * search.n_passes, 0, 0
    for _ in range(search.n_passes):
        sums: list[Any] = [0] * len(each)
        for n, counts in run_tasks(client, count_piece, (counting,), counting.n_pieces):
            sums = [a + b for a, b in zip(sums, counts, strict=True)]
            done, pixels = done + 1, pixels + n
            if progress is not None:
                seconds = time.perf_counter() - start
                progress(Progress(stage="statistics", done=done, total=total, failed=0, pixels=pixels, seconds=seconds))
        counting = replace(
            counting, searches=tuple(s.narrowed(c) for s, c in zip(counting.searches, sums, strict=True))
        )
    found = dict(zip(each, (s.values for s in counting.searches), strict=True))
    return VolumeStatistics(percentiles=percentiles, ranges=tuple(found[channel] for channel in channels))


def piece_shape(info: VolumeInfo, *, n_channels: int) -> tuple[int, int, int, int]:
    """Return (t, z, y, x) of whole chunks, or of whole shards if they are small, of about `PIECE_VALUES` together."""
    extents, chunk, shard = (
        [dict(zip(info.axes, sizes, strict=True)).get(axis, 1) for axis in "tzyx"]
        for sizes in (info.shape, info.chunks, info.shards or info.chunks)
    )
    unit = shard if math.prod(shard) * n_channels <= PIECE_VALUES else chunk
    piece = [min(size, extent) for size, extent in zip(unit, extents, strict=True)]
    for axis in (3, 2, 1, 0):
        room = PIECE_VALUES // (math.prod(piece) * n_channels)
        piece[axis] = min(piece[axis] * max(room, 1), extents[axis])
    t, z, y, x = piece
    return t, z, y, x


def bytes_to_measure(volume: Volume, channels: tuple[int, ...]) -> int:
    """Return how many raw bytes `measure_volume` will read, all passes together."""
    kind = np.dtype(volume.info.dtype)
    values = math.prod(volume.extent(axis) for axis in "tzyx") * len(set(channels))
    return values * kind.itemsize * PercentileSearch.begin(kind.name, 1, (0, 100)).n_passes
