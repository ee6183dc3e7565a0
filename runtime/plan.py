"""The segmentation plan: which blocks, which tiles, where to read, where to write. Pure integers.

1. The output's chunks follow the volume's, rounded to multiples of the divisor; with shards, the shard is what
   one task writes.
2. A *block* is a box of whole write units, large enough for a good tile; thick chunks are one block deep.
3. Cores start at multiples of the divisor in volume coordinates (`geometry.cover_axis`), so a pixel's result does
   not depend on the tile, the block, the order or the worker.
4. One tile shape serves the whole run: as large as the memory budget and `MAX_CORE` allow, shrunk so that tiles
   divide the block evenly. The sides of y and x are chosen independently.
5. A block reads its window once: the hull of its tiles, which may leave the volume (there it is mirrored).

Blocks are computed from their number when asked for, so a plan of a million blocks costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from unet_deploy.card import AnyNetwork
from unet_deploy.errors import ConfigurationError
from unet_deploy.geometry import AxisTile, Geometry, Interval, cover_axis
from unet_deploy.runtime.cost import (
    TTA_PASSES,
    count_read,
    count_tiles,
    flops_per_pixel,
    tile_flops,
    tile_memory_bytes,
    weights_bytes,
)

DEFAULT_MEMORY_BYTES = 2 * 2**30
MAX_CORE = 1024
"""Larger cores were not faster on the CPUs measured, and cost memory (docs/experiments.md)."""
MIN_CHUNK, MAX_CHUNK = 64, 1024
MAX_CHUNK_Z = 64
BLOCK_SIDE = 2048
MAX_BLOCK_VOXELS = 2**24
PROCESS_BYTES = 250 * 2**20
"""Python, NumPy, Zarr, Dask and onnxruntime, loaded and idle."""
BLOCKS_IN_FLIGHT = 2
"""One computes while the other reads or writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extents:
    """Sizes of the volume's axes without channels; 1 for an axis it does not have."""

    t: int
    z: int
    y: int
    x: int

    @property
    def pixels(self) -> int:
        """Number of output pixels."""
        return self.t * self.z * self.y * self.x


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteGrid:
    """Chunk shape of the output and, if sharded, shard shape; both (z, y, x). t and c are always 1."""

    chunk: tuple[int, int, int]
    shard: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        assert self.shard is None or all(s % c == 0 for s, c in zip(self.shard, self.chunk, strict=True)), self

    @property
    def unit(self) -> tuple[int, int, int]:
        """What one task must write whole: the shard if there is one, else the chunk."""
        return self.shard or self.chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One unit of scheduling: a box of whole write units, clipped to the volume.

    `tiles_y` × `tiles_x` are its tiles. `window_y` and `window_x` are what it reads; they may leave the volume.
    """

    index: int
    t: int
    z: Interval
    y: Interval
    x: Interval
    tiles_y: tuple[AxisTile, ...]
    tiles_x: tuple[AxisTile, ...]

    @property
    def window_y(self) -> Interval:
        """Rows covered by the tiles."""
        return Interval(self.tiles_y[0].read.start, self.tiles_y[-1].read.stop)

    @property
    def window_x(self) -> Interval:
        """Columns covered by the tiles."""
        return Interval(self.tiles_x[0].read.start, self.tiles_x[-1].read.stop)

    @property
    def pixels(self) -> int:
        """Number of output pixels."""
        return self.z.size * self.y.size * self.x.size


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentationPlan:
    """Everything about a run that arithmetic alone decides."""

    network: AnyNetwork
    extents: Extents
    grid: WriteGrid
    tile_y: int
    tile_x: int
    batch: int
    block_shape: tuple[int, int, int]
    """(z, y, x) of a block that does not touch the volume's far border."""
    bytes_per_value: int = 1
    tta: bool = False
    """Whether a tile's result is the mean over turned and mirrored inputs."""

    @property
    def geometry(self) -> Geometry:
        """The network's geometry."""
        return self.network.geometry

    @property
    def batch_shape(self) -> tuple[int, int, int, int]:
        """(n, c, y, x) of most batches."""
        return self.batch, self.network.in_channels, self.tile_y, self.tile_x

    @property
    def block_counts(self) -> tuple[int, int, int, int]:
        """Blocks along (t, z, y, x)."""
        extents = (self.extents.z, self.extents.y, self.extents.x)
        z, y, x = (-(-n // b) for n, b in zip(extents, self.block_shape, strict=True))
        return self.extents.t, z, y, x

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return math.prod(self.block_counts)

    def block(self, index: int) -> Block:
        """Return block number `index` in the order t, z, y, x."""
        assert 0 <= index < self.n_blocks, index
        _, nz, ny, nx = self.block_counts
        rest, ix = divmod(index, nx)
        rest, iy = divmod(rest, ny)
        t, iz = divmod(rest, nz)
        z, y, x = (
            Interval(i * size, min((i + 1) * size, extent))
            for i, size, extent in zip(
                (iz, iy, ix), self.block_shape, (self.extents.z, self.extents.y, self.extents.x), strict=True
            )
        )
        return Block(
            index=index,
            t=t,
            z=z,
            y=y,
            x=x,
            tiles_y=cover_axis(self.geometry, y, self.tile_y),
            tiles_x=cover_axis(self.geometry, x, self.tile_x),
        )

    def blocks(self) -> Iterator[Block]:
        """Yield all blocks."""
        return map(self.block, range(self.n_blocks))

    @property
    def n_tiles(self) -> int:
        """Number of tiles of the whole run."""
        e, block = self.extents, self.block_shape
        y = count_tiles(self.geometry, extent=e.y, block=block[1], tile=self.tile_y)
        x = count_tiles(self.geometry, extent=e.x, block=block[2], tile=self.tile_x)
        return self.extents.t * self.extents.z * y * x

    @property
    def flops(self) -> int:
        """Floating-point operations the network will spend."""
        return self.passes * self.n_tiles * tile_flops(self.network, self.tile_y, self.tile_x)

    @property
    def passes(self) -> int:
        """How often the network runs over each tile."""
        return TTA_PASSES if self.tta else 1

    @property
    def flops_ratio(self) -> float:
        """`flops` over the least any tiling could spend (an infinitely large tile) with as many passes."""
        return self.flops / (self.passes * flops_per_pixel(self.network) * self.extents.pixels)

    @property
    def peak_memory_bytes(self) -> int:
        """About how much memory one process will hold; does not depend on the volume's size."""
        z, y, x = self.block_shape
        halo = 2 * self.geometry.context + self.geometry.surplus
        window = z * (y + halo) * (x + halo) * self.network.in_channels * self.bytes_per_value
        results = z * y * x * (1 + self.network.classes)
        return (
            PROCESS_BYTES
            + 2 * weights_bytes(self.network)
            + tile_memory_bytes(self.network, self.tile_y, self.tile_x, self.batch)
            + BLOCKS_IN_FLIGHT * (2 * window + results)
        )

    @property
    def bytes_read(self) -> int:
        """Raw bytes of the windows of all blocks, halos included, clipped at the volume's border."""
        y, x = (
            count_read(extent=extent, block=block, context=self.geometry.context)
            for extent, block in ((self.extents.y, self.block_shape[1]), (self.extents.x, self.block_shape[2]))
        )
        return self.extents.t * self.extents.z * y * x * self.network.in_channels * self.bytes_per_value

    def to_object(self) -> dict[str, Any]:
        """Return the plan's figures as JSON values, for people, machines and the output's provenance."""
        return {
            "pixels": self.extents.pixels,
            "tile": [self.tile_y, self.tile_x],
            "core": [self.geometry.core_side(self.tile_y), self.geometry.core_side(self.tile_x)],
            "context": self.geometry.context,
            "divisor": self.geometry.divisor,
            "batch": self.batch,
            "tta": self.tta,
            "passes": self.passes,
            "tiles": self.n_tiles,
            "blocks": self.n_blocks,
            "block": list(self.block_shape),
            "output_chunk": list(self.grid.chunk),
            "output_shard": None if self.grid.shard is None else list(self.grid.shard),
            "flops": self.flops,
            "flops_ratio": round(self.flops_ratio, 4),
            "bytes_read": self.bytes_read,
            "peak_memory_bytes": self.peak_memory_bytes,
        }


def plan_segmentation(
    network: AnyNetwork,
    extents: Extents,
    *,
    source_chunk: tuple[int, int, int],
    source_shard: tuple[int, int, int] | None = None,
    bytes_per_value: int = 1,
    tile: tuple[int, int] | None = None,
    batch: int = 1,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    tta: bool = False,
) -> SegmentationPlan:
    """Plan a run. The result of the run does not depend on any choice made here; its cost does.

    Parameters
    ----------
    network
        The network's sizes, from its card.
    extents
        The volume's axes, in pixels.
    source_chunk, source_shard
        The volume's chunk and shard shape (z, y, x), which the output's follow.
    bytes_per_value
        Item size of the volume's dtype.
    tile
        Input side of a tile (y, x); chosen if None.
    batch
        Tiles per forward pass.
    memory_bytes
        What the engine may hold for activations when the tile is chosen.
    tta
        Whether each tile's result is the mean over turned and mirrored inputs, which costs 8 passes.

    Raises
    ------
    TileNotLegalError
        If a given tile side is not one the network takes, or has no core.
    ConfigurationError
        If batch is below 1, or the memory does not hold the smallest tile.
    """
    geometry = network.geometry
    if batch < 1:
        raise ConfigurationError(f"batch {batch} is not at least 1", "tiles per forward pass", fix="--batch 1")
    for axis, side in zip("yx", tile or (), strict=False):
        geometry.require_legal(side, axis=axis)
    grid = derive_write_grid(geometry, extents, source_chunk=source_chunk, source_shard=source_shard)
    cap = (
        (geometry.core_side(tile[0]), geometry.core_side(tile[1]))
        if tile
        else (largest_core(network, batch=batch, memory_bytes=memory_bytes),) * 2
    )
    block = _choose_block(grid.unit, extents, cap)
    if tile is None:
        sides = tuple(
            _balanced_tile(geometry, size=min(size, extent), cap=limit)
            for size, extent, limit in zip(block[1:], (extents.y, extents.x), cap, strict=True)
        )
        tile = sides[0], sides[1]
    return SegmentationPlan(
        network=network,
        extents=extents,
        grid=grid,
        tile_y=tile[0],
        tile_x=tile[1],
        batch=batch,
        block_shape=block,
        bytes_per_value=bytes_per_value,
        tta=tta,
    )


def derive_write_grid(
    geometry: Geometry,
    extents: Extents,
    *,
    source_chunk: tuple[int, int, int],
    source_shard: tuple[int, int, int] | None,
) -> WriteGrid:
    """Return output chunks like the source's, but of a sane size, in multiples of the divisor along y and x."""
    z = min(source_chunk[0], MAX_CHUNK_Z, extents.z)
    y, x = (
        min(geometry.round_up(min(max(size, MIN_CHUNK), MAX_CHUNK)), geometry.round_up(extent))
        for size, extent in zip(source_chunk[1:], (extents.y, extents.x), strict=True)
    )
    chunk = (z, y, x)
    if source_shard is None:
        return WriteGrid(chunk=chunk)
    limits = (MAX_CHUNK_Z, BLOCK_SIDE, BLOCK_SIDE)
    shard = tuple(
        max(min(size, limit, -(-extent // c) * c) // c, 1) * c
        for size, limit, extent, c in zip(source_shard, limits, (extents.z, extents.y, extents.x), chunk, strict=True)
    )
    return WriteGrid(chunk=chunk, shard=(shard[0], shard[1], shard[2]))


def largest_core(network: AnyNetwork, *, batch: int, memory_bytes: int) -> int:
    """Return the largest square core up to MAX_CORE whose activations fit the budget."""
    geometry = network.geometry
    for core in range(geometry.round_up(MAX_CORE), 0, -geometry.divisor):
        side = geometry.tile_side(core)
        if tile_memory_bytes(network, side, side, batch) <= memory_bytes:
            return core
    smallest = geometry.smallest_tile
    needed = tile_memory_bytes(network, smallest, smallest, batch)
    raise ConfigurationError(
        f"{memory_bytes / 2**20:.0f} MiB do not hold a batch of the smallest tile ({needed / 2**20:.0f} MiB)",
        f"{batch} tile(s) of {smallest} × {smallest} px, {network.words}",
        fix="allow more memory, or use --batch 1",
    )


def _choose_block(unit: tuple[int, int, int], extents: Extents, cap: tuple[int, int]) -> tuple[int, int, int]:
    """Grow the write unit along y and x until a tile fits, then on towards BLOCK_SIDE while it stays moderate."""
    z = unit[0]
    sides = [unit[1], unit[2]]
    limits = [-(-n // u) * u for n, u in zip((extents.y, extents.x), sides, strict=True)]
    for target, voxels in ((cap, None), ((BLOCK_SIDE, BLOCK_SIDE), MAX_BLOCK_VOXELS)):
        for axis in (0, 1):
            step = unit[1 + axis]
            wanted = min(max(target[axis] // step, 1) * step, limits[axis])
            grown = list(sides)
            grown[axis] = max(wanted, sides[axis])
            if voxels is None or z * grown[0] * grown[1] <= voxels:
                sides = grown
    return z, sides[0], sides[1]


def _balanced_tile(geometry: Geometry, *, size: int, cap: int) -> int:
    """Return the tile side that covers `size` pixels with as few tiles as `cap` allows, all about equally full."""
    count = -(-size // cap)
    return geometry.tile_side(geometry.round_up(-(-size // count)))
