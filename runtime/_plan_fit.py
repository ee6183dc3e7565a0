"""Which tile, block and cache: the fastest that the memory holds. Pure.

1. The candidates are cores that part a block of whole write units evenly, along each axis by itself; a tile need not
   be square. Blocks may be somewhat larger than usual where fewer or smaller tiles then reach the volume's border.
2. Each has a time for the whole volume (tiles times the engine's seconds a tile and what a tile takes beside it, and
   what its memory costs at the start) and a memory. Of tiles that take about as long, one in usual blocks is taken, and
   the one that holds least.
3. Where the whole process has a limit, blocks and caches become smaller too, whatever costs the least.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

from unet_deploy.card import AnyNetwork
from unet_deploy.errors import ConfigurationError
from unet_deploy.geometry import Geometry
from unet_deploy.runtime.block_order import CACHE_STEPS, SMALL_CACHE_STEPS
from unet_deploy.runtime.cost import count_tiles, tile_flops
from unet_deploy.runtime.engine_costs import CostModel
from unet_deploy.runtime.plan_parts import BLOCK_SIDE, MAX_BLOCK_VOXELS, Extents, choose_block

if TYPE_CHECKING:
    from unet_deploy.runtime.plan import SegmentationPlan

PROCESS_BYTES = 250 * 2**20
"""Python, NumPy, Zarr, Dask and onnxruntime, loaded and idle."""
BLOCK_LIMITS = ((BLOCK_SIDE, MAX_BLOCK_VOXELS), (1024, 2**22), (512, 2**20), (1, 1))
"""Largest side and number of pixels of a block, from what is best down to what has no room for better."""
CACHES = (*CACHE_STEPS, *SMALL_CACHE_STEPS)
MOST_CORE_SIDE = 4096
MOST_BLOCK_SIDE = 10240
LARGER_BLOCKS = 4
"""Sizes above the usual one that are looked at."""
MOST_VOXELS = 2**26
"""Of a block that is as large as one tile asks for: with thick chunks, a wide tile makes a block of many planes."""
PARTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
LEAST_CORE = 448
"""Smaller ones are for want of memory only: fewer of them are looked at, and none in larger blocks."""
TOUCHED_BYTES_PER_S = 2e9
"""What an engine holds is paid for when it is first touched: 0.5 s a gigabyte; in a virtual machine 3.4 s (measured) of
what it had given back to its host."""
TILE_SECONDS = 1e-3
"""What a tile takes beside the engine; more than a tiny network's own time."""
WORTH_SAYING = 0.02
"""Of the operations."""
AS_GOOD = 1.01
"""Times that differ by less are taken as equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TileChoice:
    """A tile that could be used in blocks of a size: both sides (y, x), and what it would cost."""

    core: tuple[int, int]
    block: tuple[int, int, int]
    tiles: int
    seconds: float
    memory_bytes: int
    """Of the engine."""

    @property
    def running_seconds(self) -> float:
        """Its time without what its memory costs at the start."""
        return self.seconds - self.memory_bytes / TOUCHED_BYTES_PER_S

    def flops(self, network: AnyNetwork) -> int:
        """Return the operations for the whole volume."""
        y, x = map(network.geometry.tile_side, self.core)
        return self.tiles * tile_flops(network, y, x)


def block_sides(*, unit: int, extent: int) -> list[int]:
    """Return the sides of blocks to consider along an axis: whole write units, about `BLOCK_SIDE` or equal parts.

    A block that ends at the volume's border should not be a narrow rest of one.

    >>> block_sides(unit=1024, extent=4096), block_sides(unit=1024, extent=5000), block_sides(unit=4096, extent=9000)
    ([2048, 3072, 4096], [2048, 3072, 4096, 5120], [4096, 8192])
    """
    units = -(-extent // unit)
    usual = min(max(BLOCK_SIDE // unit, 1), units)
    larger = range(usual + 1, min(MOST_BLOCK_SIDE // unit, units) + 1)
    by_rest = sorted(larger, key=lambda n: (-units % n, n))
    return [n * unit for n in sorted([usual, *by_rest[:LARGER_BLOCKS]])]


def core_sides(geometry: Geometry, *, block: int, extent: int) -> list[int]:
    """Return the sides of cores that part a block evenly, or the last one, which may be smaller; in whole divisors.

    >>> from unet_deploy.geometry import UnetGeometry
    >>> core_sides(UnetGeometry(4), block=2048, extent=3000)[-4:]
    [688, 960, 1024, 2048]
    """
    last = extent - (extent - 1) // block * block
    sizes = {geometry.round_up(min(block, extent)), geometry.round_up(last)}
    sides = {geometry.divisor, *(geometry.round_up(-(-size // n)) for size in sizes for n in PARTS)}
    return sorted(side for side in sides if side <= MOST_CORE_SIDE)


def tile_choices(
    network: AnyNetwork, extents: Extents, unit: tuple[int, int, int], costs: CostModel, *, batch: int
) -> list[TileChoice]:
    """Return the tiles that could be used for a volume.

    Those in blocks of the usual size come first, then those in larger ones; either from what holds least.
    """
    geometry = network.geometry

    def along(extent: int, unit: int) -> list[tuple[int, int]]:
        """Return cores and blocks of an axis; of cores of about one size, that which covers least beyond the axis."""
        best: dict[tuple[int, int], tuple[int, int]] = {}
        for block in block_sides(unit=unit, extent=extent):
            for core in core_sides(geometry, block=block, extent=extent):
                if block > BLOCK_SIDE and core < LEAST_CORE:
                    continue
                tiles = count_tiles(geometry, extent=extent, block=block, tile=geometry.tile_side(core))
                alike = block, round((4 if core >= LEAST_CORE else 2) * math.log2(core))
                best[alike] = min(best.get(alike, (tiles * core, core)), (tiles * core, core))
        return [(core, block) for (block, _), (_, core) in best.items()]

    each: dict[tuple[int, int], tuple[float, int]] = {}
    usual: list[TileChoice] = []
    larger: list[TileChoice] = []
    for (core_y, block_y), (core_x, block_x) in product(along(extents.y, unit[1]), along(extents.x, unit[2])):
        core = core_y, core_x
        is_larger = max(block_y, block_x) > BLOCK_SIDE
        if is_larger and unit[0] * block_y * block_x > MAX_BLOCK_VOXELS:
            continue
        block = choose_block(unit, extents, (block_y, block_x) if is_larger else core)
        if block != unit and math.prod(block) > MOST_VOXELS:
            continue
        tile = geometry.tile_side(core_y), geometry.tile_side(core_x)
        if core not in each:
            each[core] = costs.seconds(network, *tile, batch) / batch, costs.memory_bytes(network, *tile, batch)
        seconds, memory_bytes = each[core]
        tiles = extents.t * extents.z
        for extent, size, side in zip((extents.y, extents.x), block[1:], tile, strict=True):
            tiles *= count_tiles(geometry, extent=extent, block=size, tile=side)
        choice = TileChoice(
            core=core,
            block=block,
            tiles=tiles,
            seconds=tiles * (seconds + TILE_SECONDS) + memory_bytes / TOUCHED_BYTES_PER_S,
            memory_bytes=memory_bytes,
        )
        (larger if is_larger else usual).append(choice)
    return [*sorted(usual, key=_rank), *sorted(larger, key=_rank)]


def _rank(choice: TileChoice) -> tuple[float, ...]:
    """Return what orders choices: memory, time, the block's size, and how far the tile is from a square."""
    return choice.memory_bytes, choice.seconds, math.prod(choice.block), abs(choice.core[0] - choice.core[1])


def worth_trying(choices: Iterable[TileChoice]) -> Iterator[TileChoice]:
    """Yield, by growing memory, each that is faster than all before it."""
    best = float("inf")
    for choice in sorted(choices, key=_rank):
        if choice.seconds < best:
            best = choice.seconds
            yield choice


def choose_tile(choices: Sequence[TileChoice], memory_bytes: int, *, network: AnyNetwork, batch: int) -> TileChoice:
    """Return the fastest tile that the memory holds; of those that are as good, the first.

    Raises
    ------
    ConfigurationError
        If it holds none.
    """
    fitting = [choice for choice in choices if choice.memory_bytes <= memory_bytes]
    if not fitting:
        least = choices[0]
        tile_y, tile_x = map(network.geometry.tile_side, least.core)
        raise ConfigurationError(
            f"{memory_bytes / 2**20:.0f} MiB do not hold a batch of the smallest tile"
            f" ({least.memory_bytes / 2**20:.0f} MiB)",
            f"{batch} tile(s) of {tile_y} × {tile_x} px, {network.words}",
            fix="allow more memory, or use --batch 1",
        )
    best = min(choice.seconds for choice in fitting)
    return next(choice for choice in fitting if choice.seconds <= AS_GOOD * best)


def explain_tile(
    chosen: TileChoice, choices: Sequence[TileChoice], memory_bytes: int, *, network: AnyNetwork, costs: CostModel
) -> str:
    """Return why a tile was chosen, and what of fewer operations was not; for people."""
    said = f"the fastest within {memory_bytes / 2**30:.1f} GiB for the engine, {costs.words}"
    least = min(
        (c for c in choices if c.memory_bytes <= memory_bytes), key=lambda c: (c.flops(network), c.memory_bytes)
    )
    saved = 1 - least.flops(network) / chosen.flops(network)
    if saved < WORTH_SAYING:
        return said
    y, x = least.core
    if least.running_seconds < chosen.running_seconds:
        why = "it touches more memory than a run as short as this repays"
    elif costs.is_measured:
        why = f"takes {least.seconds / chosen.seconds:.2f} times as long"
    else:
        why = "was not seen to be faster"
    return f"{said}; a tile keeping {y} × {x} would spend {saved:.0%} fewer operations, but {why}"


def fit_memory(plans: Iterable[SegmentationPlan], max_memory_bytes: int) -> SegmentationPlan:
    """Return the cheapest of the plans, with its own or a smaller cache, whose peak stays below the limit."""
    each = [
        replace(plan, cache_bytes=size)
        for plan in plans
        for size in (plan.cache_bytes, *(n for n in CACHES if n < plan.cache_bytes))
    ]
    fitting = [plan for plan in each if plan.peak_memory_bytes <= max_memory_bytes]
    if fitting:
        return min(fitting, key=lambda plan: (plan.infer_seconds + plan.decode_seconds, plan.peak_memory_bytes))
    smallest = min(each, key=lambda plan: plan.peak_memory_bytes)
    needed = -(-smallest.peak_memory_bytes // 2**20)
    z, y, x = smallest.block_shape
    raise ConfigurationError(
        f"a process of {max_memory_bytes / 2**20:.0f} MiB does not hold this run; at least {needed} MiB were expected",
        f"that is with the smallest tile ({smallest.tile_y} × {smallest.tile_x} px, batch {smallest.batch})"
        f" and block ({z} × {y} × {x} px) of {smallest.network.words}",
        f"the process alone takes {PROCESS_BYTES // 2**20} MiB",
        fix=f"--max-memory {needed}MiB",
    )
