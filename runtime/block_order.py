"""The order in which blocks run, so that a chunk which several of them need is decoded about once. Pure integers.

1. Windows overlap by the network's context, so that blocks side by side touch the same chunks.
2. A plane's blocks run in *strips*: down through it, a few blocks wide, row by row. What two rows share waits in the
   cache for one row of a strip; what two strips share is decoded twice. A strip is as wide as the cache allows.
3. Where a chunk holds several planes or time points than a block has, those run one after the other at each place.
4. What no later block touches is *spent* when it is read, and takes no room (`SegmentationPlan.spent`).

How much room a strip takes, and how often chunks will be decoded, is counted here from the sizes alone.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from unet_deploy.geometry import Geometry, Interval, mirrored_source
from unet_deploy.runtime.windows import needed_window

MIB = 2**20
READ_BYTES = 32 * MIB
"""What one call decodes; enough for many chunks at once, and little beside a block's window."""
CACHE_STEPS = tuple(n * MIB for n in (64, 96, 128, 192, 256))
"""Caches to choose from: the least that brings the decodes below `GOOD_DECODES`."""
LARGE_CACHE_STEPS = tuple(n * MIB for n in (384, 512, 768, 1024))
"""Further ones, for huge chunks, where those leave more than `MOST_DECODES`."""
SMALL_CACHE_STEPS = tuple(n * MIB for n in (32, 16, 8, 4))
"""And for machines that have no room."""
GOOD_DECODES, MOST_DECODES = 1.05, 1.09
FILLED = 0.8
"""So much of a cache is planned for; the rest is for blocks that do not run quite in order."""
MOST_COUNTED = 2048
"""So many blocks of an axis are counted one by one; a longer axis is taken to go on like that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisBlocks:
    """The blocks along one axis, and the chunks that each one's window touches; no context if `geometry` is None."""

    extent: int
    block: int
    chunk: int
    geometry: Geometry | None = None

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return -(-self.extent // self.block)

    @property
    def n_chunks(self) -> int:
        """Number of chunks."""
        return -(-self.extent // self.chunk)

    def interval(self, index: int) -> Interval:
        """Return what a block writes."""
        return Interval(index * self.block, min((index + 1) * self.block, self.extent))

    def source(self, index: int) -> Interval:
        """Return what a block reads."""
        region = self.interval(index)
        return region if self.geometry is None else mirrored_source(needed_window(self.geometry, region), self.extent)

    def touched(self, first: int, last: int | None = None) -> range:
        """Return the chunks that a block reads, or those from one block to another, both included."""
        ends = {first, first if last is None else last}
        sources = [self.source(i) for i in ends]
        start, stop = min(s.start for s in sources), max(s.stop for s in sources)
        return range(start // self.chunk, (stop - 1) // self.chunk + 1)

    @property
    def most_touched(self) -> int:
        """The most chunks that one block reads."""
        return self._most()[0]

    @property
    def most_shared(self) -> int:
        """The most chunks that two neighbours both read."""
        return self._most()[1]

    def _most(self) -> tuple[int, int]:
        return _most(self)

    def decodes(self, width: int) -> float:
        """Return how often a chunk is decoded on average, if each `width` blocks decode what they touch once."""
        n = -(-self.n_blocks // width)
        if n == 1:
            return 1.0
        counted = min(n, MOST_COUNTED)
        last = min(counted * width, self.n_blocks) - 1
        total = sum(len(self.touched(i * width, min((i + 1) * width - 1, last))) for i in range(counted))
        return total / len(self.touched(0, last))


@functools.lru_cache(maxsize=256)
def _most(axis: AxisBlocks) -> tuple[int, int]:
    """Return the most chunks that a block reads, and that two neighbours both read."""
    n = axis.n_blocks
    looked_at = [axis.touched(i) for i in {*range(min(n, MOST_COUNTED // 8)), n - 2, n - 1} if 0 <= i < n]
    looked_at.sort(key=lambda part: (part.start, part.stop))
    shared = (max(a.stop - b.start, 0) for a, b in itertools.pairwise(looked_at))
    return max(map(len, looked_at)), max(shared, default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockOrder:
    """The axes of a plan's blocks, and what one decoded chunk of all channels takes."""

    t: AxisBlocks
    z: AxisBlocks
    y: AxisBlocks
    x: AxisBlocks
    chunk_bytes: int

    @property
    def t_group(self) -> int:
        """How many time points share a chunk."""
        return max(self.t.chunk // self.t.block, 1)

    @property
    def z_group(self) -> int:
        """How many blocks along z share a chunk."""
        return max(self.z.chunk // self.z.block, 1)

    @property
    def window_bytes(self) -> int:
        """What the chunks take that one block touches."""
        touched = math.prod(axis.most_touched for axis in (self.t, self.z, self.y, self.x))
        return touched * self.chunk_bytes

    def strip_bytes(self, width: int) -> int:
        """Return what waits in the cache while a strip of `width` blocks runs."""
        deep = self.t.most_touched * self.z.most_touched
        most = -(-width * self.x.block // self.x.chunk) + self.x.most_shared + 1  # a strip begins anywhere in a chunk
        columns, row = min(most, self.x.n_chunks), self.y.most_touched
        beside = self.x.most_shared
        here = self.x.most_touched if self.t_group > 1 or self.z_group > 1 else beside
        at_most = min(columns * (2 * row - self.y.most_shared), columns * self.y.n_chunks)
        return deep * min(columns * self.y.most_shared + (here + beside) * row, at_most) * self.chunk_bytes

    def strip_for(self, cache_bytes: int) -> int:
        """Return how many blocks wide strips are with a cache; 1 where it is too small for any."""
        room = int(cache_bytes * FILLED)
        n = self.x.n_blocks
        if self.strip_bytes(n) <= room:
            return n
        low, high = 1, n  # `high` is too wide
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.strip_bytes(middle) <= room else (low, middle)
        return -(-n // -(-n // low))  # as many strips, all about equally wide

    def decodes_per_chunk(self, cache_bytes: int) -> float:
        """Return how often a chunk is decoded on average, in one process; an estimate."""
        return _decodes(self, cache_bytes)

    def choose_cache(self) -> int:
        """Return what the cache should hold: little, unless more saves decodes worth having."""
        for size in CACHE_STEPS:
            if self.decodes_per_chunk(size) <= GOOD_DECODES:
                return size
        sizes = [CACHE_STEPS[-1], *LARGE_CACHE_STEPS]
        if (large := self.strip_bytes(1) / FILLED) > sizes[-1]:
            sizes.append(math.ceil(large / MIB) * MIB)
        for size in sizes:
            if self.decodes_per_chunk(size) <= MOST_DECODES:
                return size
        best = min(self.decodes_per_chunk(size) for size in sizes)
        return next(size for size in sizes if self.decodes_per_chunk(size) <= best + 0.01)

    def places(self, *, strip: int, ranges: tuple[range, range, range, range]) -> Iterator[tuple[int, int, int, int]]:
        """Yield the blocks of a box (ranges of t, z, y, x) in the order to run in, one at a time."""
        ts, zs, ys, xs = ranges
        for t_group in _groups(ts, self.t_group):
            for z_group in _groups(zs, self.z_group):
                for start in range(xs.start, xs.stop, strip):
                    for y in ys:
                        for x in range(start, min(start + strip, xs.stop)):
                            for t in t_group:
                                for z in z_group:
                                    yield t, z, y, x

    def spent(self, place: tuple[int, int, int, int]) -> tuple[int, int]:
        """Return the (y, x) at or before which chunks end that no later block touches."""
        t, z, y, x = place
        for index, group, axis in ((t, self.t_group, self.t), (z, self.z_group, self.z)):
            if index % group != group - 1 and index != axis.n_blocks - 1:
                return 0, 0  # the next one touches them all
        next_y, next_x = (
            axis.source(i + 1).start if i + 1 < axis.n_blocks else axis.extent for i, axis in ((y, self.y), (x, self.x))
        )
        return next_y, next_x


@functools.lru_cache(maxsize=1024)
def _decodes(order: BlockOrder, cache_bytes: int) -> float:
    if order.strip_bytes(width := order.strip_for(cache_bytes)) <= cache_bytes * FILLED:
        by_axis = ((order.t, order.t_group), (order.z, order.z_group), (order.x, width))
    else:
        by_axis = ((order.t, 1), (order.z, 1), (order.x, 1), (order.y, 1))  # type: ignore[assignment]
    return math.prod(axis.decodes(step) for axis, step in by_axis)


def _groups(numbers: range, size: int) -> Iterator[range]:
    """Yield the numbers in groups that begin at multiples of a size, or where the numbers do."""
    start = numbers.start
    while start < numbers.stop:
        stop = min((start // size + 1) * size, numbers.stop)
        yield range(start, stop)
        start = stop
