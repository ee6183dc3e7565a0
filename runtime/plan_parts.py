"""The parts of a plan and how they are chosen: output chunks, the largest tile, blocks. Pure; `plan` says the rules."""

from __future__ import annotations

from dataclasses import dataclass

from unet_deploy.card import AnyNetwork
from unet_deploy.errors import ConfigurationError
from unet_deploy.geometry import AxisTile, Geometry, Interval
from unet_deploy.runtime.cost import tile_memory_bytes

MAX_CORE = 1024
"""Of `largest_core`, which knows nothing of the engine."""
MIN_CHUNK, MAX_CHUNK = 64, 1024
MAX_CHUNK_Z = 64
BLOCK_SIDE = 2048
MAX_BLOCK_VOXELS = 2**24


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


def derive_write_grid(
    geometry: Geometry,
    extents: Extents,
    *,
    source_chunk: tuple[int, int, int],
    source_shard: tuple[int, int, int] | None,
) -> WriteGrid:
    """Return output chunks like the source's, but of a sane size, in multiples of the divisor along y and x."""
    z = _shared_depth(min(source_chunk[0], extents.z))
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


def _shared_depth(depth: int) -> int:
    """Return how deep output chunks are: as the source's, or a whole part of it, so that few blocks share a chunk."""
    if depth <= MAX_CHUNK_Z:
        return depth
    return next((n for n in range(MAX_CHUNK_Z, MAX_CHUNK_Z // 4, -1) if depth % n == 0), MAX_CHUNK_Z)


def choose_block(
    unit: tuple[int, int, int],
    extents: Extents,
    cap: tuple[int, int],
    *,
    side: int = BLOCK_SIDE,
    voxels: int = MAX_BLOCK_VOXELS,
) -> tuple[int, int, int]:
    """Grow the write unit along y and x until a tile fits, then on towards `side` while it has at most `voxels`."""
    z = unit[0]
    sides = [unit[1], unit[2]]
    limits = [-(-n // u) * u for n, u in zip((extents.y, extents.x), sides, strict=True)]
    for target, most in ((cap, None), ((side, side), voxels)):
        for axis in (0, 1):
            step = unit[1 + axis]
            wanted = min(max(target[axis] // step, 1) * step, limits[axis])
            grown = list(sides)
            grown[axis] = max(wanted, sides[axis])
            if most is None or z * grown[0] * grown[1] <= most:
                sides = grown
    return z, sides[0], sides[1]
