"""Which chunk files each block of a plan reads, and which blocks read a chunk file.

Both are products over the axes, so they are kept by axis: a plan of a million blocks is a few lists.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.geometry import Interval
from unet_deploy.runtime._chunk_files import ChunkFiles, ChunkNumber
from unet_deploy.runtime.ome import AXES
from unet_deploy.runtime.plan import SegmentationPlan
from unet_deploy.runtime.windows import plan_window

_BLOCK_AXES = "tzyx"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockChunks:
    """`reads` has, by axis of `_BLOCK_AXES`, the run of files of each block; `readers` the blocks of each file."""

    axes: str
    counts: tuple[int, int, int, int]
    reads: dict[str, tuple[range, ...]]
    readers: dict[str, tuple[list[int], ...]]
    channels: tuple[int, ...]
    """The files along c that are read, one for several channels where they share it."""
    file_counts: tuple[int, ...]

    def files_of(self, index: int) -> tuple[Any, ...]:
        """Return what selects a block's files in an array of one value a file."""
        place = dict(zip(_BLOCK_AXES, np.unravel_index(index, self.counts), strict=True))
        runs = [self.channels if axis == "c" else self.reads[axis][int(place[axis])] for axis in self.axes]
        return np.ix_(*runs)

    def blocks_of(self, number: ChunkNumber) -> tuple[Any, ...]:
        """Return what selects the blocks that read a file in an array of one value a block, (t, z, y, x)."""
        place = dict(zip(self.axes, number, strict=True))
        return np.ix_(*(self.readers[axis][place.get(axis, 0)] for axis in _BLOCK_AXES))

    def count_files(self) -> npt.NDArray[np.int32]:
        """Return how many files each block reads, (t, z, y, x)."""
        t, z, y, x = (np.array([len(run) for run in self.reads[axis]], np.int32) for axis in _BLOCK_AXES)
        counts: npt.NDArray[np.int32] = len(self.channels) * np.einsum("t,z,y,x->tzyx", t, z, y, x)
        return counts

    def needed(self, blocks: Collection[int]) -> npt.NDArray[np.bool_]:
        """Return which files some of `blocks` read, one value a file."""
        needed = np.zeros(self.file_counts, np.bool_)
        if len(blocks) == math.prod(self.counts):
            needed[tuple(list(self.channels) if axis == "c" else slice(None) for axis in self.axes)] = True
        else:
            for index in blocks:
                needed[self.files_of(index)] = True
        return needed


def find_block_chunks(plan: SegmentationPlan, axes: str, files: ChunkFiles, channels: Sequence[int]) -> BlockChunks:
    """Return which files a plan's blocks read of an array with these axes."""
    assert list(axes) == [axis for axis in AXES if axis in axes], axes
    size_of = dict(zip(axes, files.sizes, strict=True))
    count_of = dict(zip(axes, files.counts, strict=True))
    reads = {
        axis: tuple(_run(part, size_of.get(axis)) for part in parts)
        for axis, parts in zip(_BLOCK_AXES, _parts(plan), strict=True)
    }
    readers: dict[str, tuple[list[int], ...]] = {}
    for axis, runs in reads.items():
        readers[axis] = tuple([] for _ in range(count_of.get(axis, 1)))
        for block, run in enumerate(runs):
            for file in run:
                readers[axis][file].append(block)
    return BlockChunks(
        axes=axes,
        counts=plan.block_counts,
        reads=reads,
        readers=readers,
        channels=tuple(sorted({channel // size_of.get("c", 1) for channel in channels})),
        file_counts=files.counts,
    )


def _run(part: Interval, size: int | None) -> range:
    """Return the files that an interval of pixels lies in; the one there is, of an axis the array does not have."""
    return range(1) if size is None else range(part.start // size, -(-part.stop // size))


def _parts(plan: SegmentationPlan) -> tuple[list[Interval], ...]:
    """Return what the blocks read along t, z, y and x, in pixels of the volume."""
    nt, nz, ny, nx = plan.block_counts
    rows = (plan.block(i * nx) for i in range(ny))
    columns = (plan.block(i) for i in range(nx))
    return (
        [Interval(i, i + 1) for i in range(nt)],
        [plan.block(i * ny * nx).z for i in range(nz)],
        [plan_window(plan.geometry, block.tiles_y, plan.extents.y).source for block in rows],
        [plan_window(plan.geometry, block.tiles_x, plan.extents.x).source for block in columns],
    )
