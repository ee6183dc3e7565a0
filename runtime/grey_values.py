"""The grey values of a volume, counted: all of them, or those of a sample of chunks spread over it.

1. A value is counted in one of 65,536 *digits* that sort like the values: of 8 and 16 bit each value has its own; wider
   numbers are taken as float32 and share one with those that begin with the same 16 bits (to 1 part in 256).
2. Counts of parts add up to those of the whole. The smallest and largest value are kept exactly; what is no finite
   number is counted apart.
3. A sample is of whole chunks, so each is decoded once, at places that are spread evenly and do not follow the grid:
   the same ones on every run. Boxes of a single value (absent chunks, the black around a mosaic) are counted apart,
   since they say nothing of how the volume was exposed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.geometry import Interval
from unet_deploy.runtime._box_grid import BoxGrid
from unet_deploy.runtime.plan import Extents
from unet_deploy.runtime.scheduling import run_tasks
from unet_deploy.runtime.volume import Volume, VolumeInfo

DIGITS = 65536
BOX_VALUES = 2**20
"""Boxes are grown to about so many values, where chunks are smaller, """
BOX_CHUNKS = 512
"""as long as they are of no more chunks: to read one of a few pixels takes as long as one of thousands."""
PART_VALUES = 2**17
"""So many are counted at a time: counting needs 8 bytes for each, which should stay in the processor's cache."""
SAMPLE_VALUES = 2**26
HERE_VALUES = 2**24
"""So many are counted at once by whoever asks: sending them out would take longer."""
TASK_VALUES = 2**22
"""So many are counted by one task, where boxes are smaller: to send one out takes as long as to count a box."""
SMALLEST_SAMPLE = 16
"""So many boxes are sampled where each is large, as long as they are not more than `MOST_OVER` times what was asked."""
MOST_OVER = 4
CHUNK_COST = 2**13
"""To read a chunk takes as long as so many values, however few it holds: where they are tiny, a sample is smaller."""
GOLDEN = (math.sqrt(5) - 1) / 2

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GreyCounts:
    """How often each grey value occurs. `low` and `high` are the smallest and largest; `not_finite` counts no number.

    Values are of `dtype` as `kind_of` names it.
    """

    dtype: str
    counts: Counts
    low: float
    high: float
    not_finite: int = 0

    @property
    def total(self) -> int:
        """Number of finite values."""
        return int(self.counts.sum())

    @property
    def is_constant(self) -> bool:
        """Whether they are all one value, or none is a number."""
        return not self.low < self.high

    @property
    def histogram(self) -> tuple[npt.NDArray[np.float64], Counts]:
        """The values that occur, ascending, and how often."""
        found = np.flatnonzero(self.counts)
        values = np.clip(values_of(self.dtype)[found], self.low, self.high)  # a digit of floats is its middle
        return values, self.counts[found]

    def __add__(self, other: GreyCounts) -> GreyCounts:
        assert self.dtype == other.dtype, (self.dtype, other.dtype)
        return GreyCounts(
            dtype=self.dtype,
            counts=self.counts + other.counts,
            low=min(self.low, other.low),
            high=max(self.high, other.high),
            not_finite=self.not_finite + other.not_finite,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GreySample:
    """The grey values that were looked at. `pixels` counts them by channel, `empty_pixels` those of one-valued boxes.

    `counts` leaves those out, unless there are no others.
    """

    counts: GreyCounts
    pixels: int
    empty_pixels: int
    is_whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Which boxes of a volume are looked at: everything a worker needs to know."""

    volume: Volume
    channels: tuple[int, ...]
    grid: BoxGrid
    boxes: tuple[int, ...]
    cache_bytes: int = 0


def kind_of(dtype: str) -> str:
    """Return the type that values of a dtype are counted as.

    >>> kind_of("uint8"), kind_of(">i2"), kind_of("uint32"), kind_of("float16")
    ('uint8', 'int16', 'float32', 'float32')
    """
    kind = np.dtype(dtype)
    return kind.newbyteorder("=").name if kind.kind in "iu" and kind.itemsize <= 2 else "float32"


def count_grey_values(pixels: npt.NDArray[Any]) -> GreyCounts:
    """Count the values of pixels of any shape and of a real number type.

    >>> found = count_grey_values(np.array([3, 250, 3], np.uint8))
    >>> [part.tolist() for part in found.histogram], found.low, found.high
    ([[3.0, 250.0], [2, 1]], 3.0, 250.0)
    """
    kind = kind_of(pixels.dtype.str)
    flat = pixels.reshape(-1)
    counts = np.zeros(DIGITS, np.int64)
    low, high, not_finite = math.inf, -math.inf, 0
    for start in range(0, flat.size, PART_VALUES):
        part = flat[start : start + PART_VALUES]
        if kind == "float32":
            with np.errstate(over="ignore"):
                part = part.astype(np.float32)
            is_number = np.isfinite(part)
            not_finite += int(part.size - is_number.sum())
            part = part[is_number]
        if part.size:
            if kind == "uint8":
                counts[:256] += _count_bytes(part)
            else:
                counts += np.bincount(_digits(part, kind), minlength=DIGITS)
            low, high = min(low, float(part.min())), max(high, float(part.max()))
    return GreyCounts(dtype=kind, counts=counts, low=low, high=high, not_finite=not_finite)


def _count_bytes(values: npt.NDArray[np.uint8]) -> Counts:
    """Count two at a time, as the pair that they make: half as many to count."""
    n_pairs = values.size // 2
    digits = values[: 2 * n_pairs].view(np.uint16).astype(np.intp)
    pairs = np.bincount(digits, minlength=DIGITS).reshape(256, 256)
    counts: Counts = pairs.sum(axis=0) + pairs.sum(axis=1)
    return counts + np.bincount(values[2 * n_pairs :], minlength=256)


def _digits(values: npt.NDArray[Any], kind: str) -> npt.NDArray[np.intp]:
    if kind != "float32":
        return values.astype(np.intp) - int(np.iinfo(kind).min)
    bits = values.view(np.uint32)
    sign = np.uint32(1 << 31)  # negative numbers sort backwards: all their bits are turned
    return (np.where(bits & sign, ~bits, bits | sign) >> np.uint32(16)).astype(np.intp)


def values_of(dtype: str) -> npt.NDArray[np.float64]:
    """Return the value that each digit stands for: for floats the middle of those that share it.

    >>> values_of("int16")[[0, 32768]].tolist(), values_of("uint8").size
    ([-32768.0, 0.0], 65536)
    """
    digits = np.arange(DIGITS, dtype=np.uint32)
    if dtype != "float32":
        return digits.astype(np.float64) + float(np.iinfo(dtype).min)
    keys = digits << np.uint32(16) | np.uint32(1 << 15)
    sign = np.uint32(1 << 31)
    with np.errstate(invalid="ignore"):  # digits that no finite number has
        values: npt.NDArray[np.float64] = np.where(keys & sign, keys ^ sign, ~keys).view(np.float32).astype(np.float64)
    return values


def sample_volume(
    volume: Volume,
    channels: tuple[int, ...],
    client: Any,
    *,
    sample_values: int | None = SAMPLE_VALUES,
    cache_bytes: int = 0,
) -> GreySample:
    """Count the grey values of a volume's channels, all together.

    Parameters
    ----------
    volume
        At the level that will be segmented.
    channels
        Indices; one that is named twice counts once.
    client
        A ``distributed.Client``, whose workers see the volume; None to look here, one box after the other.
    sample_values
        About how many values to look at; None for all of them.
    cache_bytes
        What a process may keep of decoded chunks. Only a volume that fits is kept; 0 for one that is still growing.

    Raises
    ------
    ReadError
        If a chunk that is looked at cannot be read.
    """
    sampling = plan_sampling(volume, channels, sample_values=sample_values)
    sampling = replace(sampling, cache_bytes=volume.cache_for_all(sampling.channels, cache_bytes))
    empty: GreyCounts | None = None
    rest: GreyCounts | None = None
    pixels = empty_pixels = 0
    n_boxes, box_values = len(sampling.boxes), math.prod(sampling.grid.box) * len(sampling.channels)
    each = max(TASK_VALUES // box_values, 1)
    n_tasks = -(-n_boxes // each)
    is_here = client is None or n_boxes * box_values <= HERE_VALUES
    counted = (
        (count_boxes(sampling, each, number) for number in range(n_tasks))
        if is_here
        else run_tasks(client, count_boxes, (sampling, each), n_tasks)
    )
    for found in chain.from_iterable(counted):
        seen = found.total + found.not_finite
        pixels += seen
        if found.is_constant and not found.not_finite:
            empty = found if empty is None else empty + found
            empty_pixels += seen
        else:
            rest = found if rest is None else rest + found
    counts = empty if rest is None else rest
    assert counts is not None, "a volume has at least one box"
    n = len(sampling.channels)
    return GreySample(
        counts=counts,
        pixels=pixels // n,
        empty_pixels=empty_pixels // n,
        is_whole=len(sampling.boxes) == sampling.grid.n_boxes,
    )


def plan_sampling(volume: Volume, channels: tuple[int, ...], *, sample_values: int | None) -> Sampling:
    """Return which boxes to look at; see `sample_volume`."""
    each = tuple(sorted(set(channels)))
    sizes = {axis: volume.extent(axis) for axis in "tzyx"}
    grid = BoxGrid(extents=Extents(**sizes), box=_box(volume.info, sizes, n_channels=len(each)))
    wanted = grid.n_boxes
    if sample_values is not None:
        each_box = math.prod(grid.box) * len(each)
        sample_values = min(sample_values, sample_values * _chunk_values(volume.info, sizes) // CHUNK_COST)
        few = min(SMALLEST_SAMPLE, max(MOST_OVER * sample_values // each_box, 1))
        wanted = min(max(sample_values // each_box, few), wanted)
    return Sampling(volume=volume, channels=each, grid=grid, boxes=spread_evenly(wanted, grid.n_boxes))


def spread_evenly(wanted: int, count: int) -> tuple[int, ...]:
    """Return about `wanted` of the numbers below `count`, spread evenly but in step with no grid.

    >>> spread_evenly(5, 100), spread_evenly(4, 4)
    ((16, 30, 54, 78, 92), (0, 1, 2, 3))
    """
    if wanted >= count:
        return tuple(range(count))
    return tuple(sorted({int((0.5 + i) * GOLDEN % 1 * count) for i in range(wanted)}))


def count_boxes(sampling: Sampling, each: int, number: int) -> list[GreyCounts]:
    """Count the grey values of some boxes, one by one, so many `each` time; the Dask task."""
    return [count_box(sampling, index) for index in range(len(sampling.boxes))[number * each : (number + 1) * each]]


def count_box(sampling: Sampling, index: int) -> GreyCounts:
    """Count the grey values of one box."""
    box = sampling.grid.at(sampling.boxes[index])
    time_point = Interval(box.t, box.t + 1)
    pixels = sampling.volume.read(
        t=time_point, c=sampling.channels, z=box.z, y=box.y, x=box.x, cache_bytes=sampling.cache_bytes
    )
    return count_grey_values(pixels)


def _box(info: VolumeInfo, sizes: dict[str, int], *, n_channels: int) -> tuple[int, int, int]:
    chunk = dict(zip(info.axes, info.chunks, strict=True))
    z, y, x = (min(chunk.get(axis, 1), sizes[axis]) for axis in "zyx")
    values = min(BOX_VALUES, BOX_CHUNKS * _chunk_values(info, sizes))
    x = min(x * max(values // (z * y * x * n_channels), 1), sizes["x"])
    y = min(y * max(values // (z * y * x * n_channels), 1), sizes["y"])
    return z, y, x


def _chunk_values(info: VolumeInfo, sizes: dict[str, int]) -> int:
    """Return how many pixels of a plane's z, y and x a chunk holds."""
    return math.prod(min(n, sizes[axis]) for axis, n in zip(info.axes, info.chunks, strict=True) if axis in "zyx")
