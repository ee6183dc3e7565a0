"""The segmentation plan: which blocks, which tiles, where to read, where to write. Pure integers.

1. The output's chunks follow the volume's, rounded to multiples of the divisor; with shards, the shard is what
   one task writes.
2. A *block* is a box of whole write units, large enough for a good tile; thick chunks are one block deep.
3. Cores start at multiples of the divisor in volume coordinates (`geometry.cover_axis`), so a pixel's result does
   not depend on the tile, the block, the order or the worker.
4. One tile shape serves the whole run: the fastest by what is known of the engine (`engine_costs`) that the memory
   holds, and such that tiles divide the block evenly. It need not be square (`_plan_fit`).
5. A block reads its window once: the hull of its tiles, which may leave the volume (there it is mirrored).
6. Blocks run in an order in which a chunk that several of them touch is decoded about once (`block_order`), with a
   cache of decoded chunks that is as large as that takes, and no larger than the memory allows.

Blocks are computed from their number when asked for, so a plan of a million blocks costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from unet_deploy.card import AnyNetwork
from unet_deploy.errors import ConfigurationError
from unet_deploy.geometry import Geometry, Interval, cover_axis
from unet_deploy.runtime._plan_fit import (
    BLOCK_LIMITS,
    PROCESS_BYTES,
    TileChoice,
    choose_tile,
    explain_tile,
    fit_memory,
    tile_choices,
    worth_trying,
)
from unet_deploy.runtime.block_order import READ_BYTES, AxisBlocks, BlockOrder
from unet_deploy.runtime.cost import (
    TTA_PASSES,
    count_read,
    count_tiles,
    flops_per_pixel,
    tile_flops,
)
from unet_deploy.runtime.engine_costs import CAUTIOUS, CostModel
from unet_deploy.runtime.plan_parts import (
    BLOCK_SIDE,
    MAX_BLOCK_VOXELS,
    MAX_CHUNK,
    MAX_CHUNK_Z,
    MAX_CORE,
    MIN_CHUNK,
    Block,
    Extents,
    WriteGrid,
    choose_block,
    derive_write_grid,
    largest_core,
)
from unet_deploy.runtime.region import Region

__all__ = [
    "BLOCKS_IN_FLIGHT",
    "BLOCK_SIDE",
    "DEVICE_BLOCKS_IN_FLIGHT",
    "MAX_BLOCK_VOXELS",
    "MAX_CHUNK",
    "MAX_CHUNK_Z",
    "MAX_CORE",
    "MIN_CHUNK",
    "PROCESS_BYTES",
    "Block",
    "Extents",
    "SegmentationPlan",
    "WriteGrid",
    "count_in_flight",
    "derive_write_grid",
    "largest_core",
    "plan_segmentation",
]

BLOCKS_IN_FLIGHT = 2
"""One computes while the other reads or writes."""
DEVICE_BLOCKS_IN_FLIGHT = 6
"""A device leaves the cores alone, and is faster than one of them reads and writes (benchmarks/device_wait.py)."""
DECODED_BYTES_PER_S = 500e6
"""Of raw pixels, zstd through zarr-python on one core: 385 to 671 MB/s measured. Only weighs against the network."""


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
    source_chunk: tuple[int, int, int, int] | None = None
    """(t, z, y, x) of what is decoded at once; as the output's chunks if None."""
    cache_bytes: int = 64 * 2**20
    """What a process may keep of decoded chunks."""
    costs: CostModel = CAUTIOUS
    """What batches cost on the engine."""
    reason: str = "given"
    """Why this tile, for people."""

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
    def block_order(self) -> BlockOrder:
        """In which order the blocks run, and what that costs."""
        e, n_channels = self.extents, self.network.in_channels
        sizes = (e.t, e.z, e.y, e.x)
        chunk = [min(c, n) for c, n in zip(self.source_chunk or (1, *self.grid.chunk), sizes, strict=True)]
        t, z, y, x = (
            AxisBlocks(extent=n, block=b, chunk=c, geometry=g)
            for n, b, c, g in zip(
                sizes, (1, *self.block_shape), chunk, (None, None, self.geometry, self.geometry), strict=True
            )
        )
        return BlockOrder(t=t, z=z, y=y, x=x, chunk_bytes=math.prod(chunk) * n_channels * self.bytes_per_value)

    def order(self, region: Region | None = None) -> Iterator[int]:
        """Yield the numbers of the blocks that touch a region (all by default) in the order in which they should run.

        They are made one by one: a million of them cost nothing before they are asked for.
        """
        order = self.block_order
        _, nz, ny, nx = self.block_counts
        ranges = self._block_ranges(region)
        for t, z, y, x in order.places(strip=order.strip_for(self.cache_bytes), ranges=ranges):
            yield ((t * nz + z) * ny + y) * nx + x

    def count(self, region: Region | None = None) -> int:
        """Return how many blocks touch a region."""
        return math.prod(map(len, self._block_ranges(region)))

    def covered(self, region: Region | None) -> Region | None:
        """Return the part of the volume that the blocks which touch a region make; None for all of it."""
        if region is None:
            return None
        e = self.extents
        t, z, y, x = (
            Interval(numbers.start * size, min(numbers.stop * size, extent))
            for numbers, size, extent in zip(
                self._block_ranges(region), (1, *self.block_shape), (e.t, e.z, e.y, e.x), strict=True
            )
        )
        return Region(t=t, z=z, y=y, x=x)

    def spent(self, index: int) -> tuple[int, int]:
        """Return the (y, x) at or before which chunks end that no block after this one touches; for `Volume.read`."""
        rest, x = divmod(index, self.block_counts[3])
        rest, y = divmod(rest, self.block_counts[2])
        t, z = divmod(rest, self.block_counts[1])
        return self.block_order.spent((t, z, y, x))

    @property
    def decodes_per_chunk(self) -> float:
        """How often a chunk of the volume is decoded on average, if one process runs all blocks; an estimate."""
        return self.block_order.decodes_per_chunk(self.cache_bytes)

    def _block_ranges(self, region: Region | None) -> tuple[range, range, range, range]:
        if region is not None:
            region.require_inside(self.extents)
        ranges = []
        for axis, count, size in zip("tzyx", self.block_counts, (1, *self.block_shape), strict=True):
            part = None if region is None else region.along(axis)
            ranges.append(range(count) if part is None else range(part.start // size, (part.stop - 1) // size + 1))
        t, z, y, x = ranges
        return t, z, y, x

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
    def least_flops(self) -> int:
        """Operations that an infinitely large tile would need with as many passes; no tiling can spend less."""
        return round(self.passes * flops_per_pixel(self.network) * self.extents.pixels)

    @property
    def infer_seconds(self) -> float:
        """About how long the engine will take for the whole volume; a mere rank where it was not measured here."""
        each = self.costs.seconds(self.network, self.tile_y, self.tile_x, self.batch) / self.batch
        return self.passes * self.n_tiles * each

    @property
    def decode_seconds(self) -> float:
        """About how long decoding the volume's chunks takes on one core."""
        raw = self.extents.pixels * self.network.in_channels * self.bytes_per_value
        return self.decodes_per_chunk * raw / DECODED_BYTES_PER_S

    @property
    def engine_memory_bytes(self) -> int:
        """About how much the engine will hold, its weights included."""
        return self.costs.memory_bytes(self.network, self.tile_y, self.tile_x, self.batch)

    @property
    def blocks_in_flight(self) -> int:
        """How many blocks a process works on at once."""
        return count_in_flight(self.costs)

    @property
    def peak_memory_bytes(self) -> int:
        """About how much memory one process will hold; does not depend on the volume's size."""
        z, y, x = self.block_shape
        halo = 2 * self.geometry.context + self.geometry.surplus
        window = z * (y + halo) * (x + halo) * self.network.in_channels * self.bytes_per_value
        results = z * y * x * (1 + self.network.classes)
        order = self.block_order
        hull = order.chunk_bytes * order.z.most_touched
        hull *= math.prod(-(-(side + halo) // axis.chunk) + 1 for side, axis in ((y, order.y), (x, order.x)))
        at_once = max(min(READ_BYTES, hull), order.chunk_bytes)
        return (
            PROCESS_BYTES
            + (0 if self.costs.is_on_device else self.engine_memory_bytes + self._batch_bytes)
            + self.blocks_in_flight * (max(2 * window, window + 2 * at_once) + results)
            + max(self.cache_bytes, order.chunk_bytes)
        )

    @property
    def _batch_bytes(self) -> int:
        """Float32 input and logits of one batch: the next is normalised, and the last labelled, beside the engine's."""
        values = self.tile_y * self.tile_x * self.network.in_channels
        values += math.prod(map(self.geometry.output_side, (self.tile_y, self.tile_x))) * self.network.classes
        return 4 * self.batch * values

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
            "least_flops": self.least_flops,
            "flops_ratio": round(self.flops_ratio, 4),
            "bytes_read": self.bytes_read,
            "decodes_per_chunk": round(self.decodes_per_chunk, 3),
            "cache_bytes": self.cache_bytes,
            "engine_memory_bytes": self.engine_memory_bytes,
            "peak_memory_bytes": self.peak_memory_bytes,
            "reason": self.reason,
        }


def count_in_flight(costs: CostModel) -> int:
    """Return how many blocks a process works on at once with an engine."""
    return DEVICE_BLOCKS_IN_FLIGHT if costs.is_on_device else BLOCKS_IN_FLIGHT


def plan_segmentation(
    network: AnyNetwork,
    extents: Extents,
    *,
    source_chunk: tuple[int, int, int],
    source_shard: tuple[int, int, int] | None = None,
    source_chunk_t: int = 1,
    bytes_per_value: int = 1,
    tile: tuple[int, int] | None = None,
    batch: int = 1,
    memory_bytes: int | None = None,
    max_memory_bytes: int | None = None,
    tta: bool = False,
    costs: CostModel = CAUTIOUS,
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
    source_chunk_t
        How many time points a chunk of the volume holds.
    bytes_per_value
        Item size of the volume's dtype.
    tile
        Input side of a tile (y, x); chosen if None.
    batch
        Tiles per forward pass.
    memory_bytes
        What the engine may hold when the tile is chosen; by default what `costs` say of it.
    max_memory_bytes
        What the process may hold altogether: tile, block and cache are chosen so that the plan's peak stays below.
    tta
        Whether each tile's result is the mean over turned and mirrored inputs, which costs 8 passes.
    costs
        What batches cost on the engine that will run.

    Raises
    ------
    TileNotLegalError
        If a given tile side is not one the network takes, or has no core.
    ConfigurationError
        If batch is below 1, or the memory does not hold the smallest tile (the whole process, with the smallest tile,
        block and cache); the message says how much would.
    """
    geometry = network.geometry
    if batch < 1:
        raise ConfigurationError(f"batch {batch} is not at least 1", "tiles per forward pass", fix="--batch 1")
    for axis, side in zip("yx", tile or (), strict=False):
        geometry.require_legal(side, axis=axis)
    grid = derive_write_grid(geometry, extents, source_chunk=source_chunk, source_shard=source_shard)

    def make(core: tuple[int, int], shape: tuple[int, int, int]) -> SegmentationPlan:
        tile_y, tile_x = tile or [
            geometry.tile_side(min(side, geometry.round_up(min(size, extent))))
            for size, extent, side in zip(shape[1:], (extents.y, extents.x), core, strict=True)
        ]
        plan = SegmentationPlan(
            network=network,
            extents=extents,
            grid=grid,
            tile_y=tile_y,
            tile_x=tile_x,
            batch=batch,
            block_shape=shape,
            bytes_per_value=bytes_per_value,
            tta=tta,
            source_chunk=(source_chunk_t, *source_chunk),
            costs=costs,
        )
        return replace(plan, cache_bytes=plan.block_order.choose_cache())

    if tile is None:
        choices = tile_choices(network, extents, grid.unit, costs, batch=batch)
        budget = costs.budget_bytes if memory_bytes is None else memory_bytes
        chosen = choose_tile(choices, budget, network=network, batch=batch)
        reason = explain_tile(chosen, choices, budget, network=network, costs=costs)
    else:
        core = geometry.core_side(tile[0]), geometry.core_side(tile[1])
        size = choose_block(grid.unit, extents, core)
        choices = [TileChoice(core=core, block=size, tiles=0, seconds=0.0, memory_bytes=0)]
        chosen, reason = choices[0], "given"
    plan = replace(make(chosen.core, chosen.block), reason=reason)
    if max_memory_bytes is None or plan.peak_memory_bytes <= max_memory_bytes:
        return plan
    smaller = (
        make(choice.core, choose_block(grid.unit, extents, choice.core, side=side, voxels=voxels))
        for choice in worth_trying(choices)
        for side, voxels in BLOCK_LIMITS
    )
    plan = fit_memory([plan, *smaller], max_memory_bytes)
    return plan if tile else replace(plan, reason=f"what {max_memory_bytes / 2**20:.0f} MiB hold, {costs.words}")
