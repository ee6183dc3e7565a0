"""A plan covers the output exactly once, in whole write units, and its figures are the sums over its blocks."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_deploy.card import Network
from unet_deploy.errors import ConfigurationError, TileNotLegalError
from unet_deploy.geometry import Interval, UnetGeometry
from unet_deploy.runtime._plan_fit import MOST_BLOCK_SIDE, MOST_CORE_SIDE, MOST_VOXELS
from unet_deploy.runtime.cost import tile_flops
from unet_deploy.runtime.engine_costs import CAUTIOUS
from unet_deploy.runtime.plan import (
    BLOCK_SIDE,
    BLOCKS_IN_FLIGHT,
    DEVICE_BLOCKS_IN_FLIGHT,
    MAX_CHUNK,
    MAX_CHUNK_Z,
    MIN_CHUNK,
    Extents,
    SegmentationPlan,
    WriteGrid,
    derive_write_grid,
    plan_segmentation,
)
from unet_deploy.runtime.windows import plan_window

MIB = 2**20
PAPER = Network(depth=4, base_width=64, in_channels=1, classes=2)
SMALL = Network(depth=4, base_width=16, in_channels=1, classes=2)


def plan_plane(y: int, x: int, *, chunk: int = 1024, z: int = 1, **options: Any) -> SegmentationPlan:
    network = options.pop("network", SMALL)
    return plan_segmentation(network, Extents(t=1, z=z, y=y, x=x), source_chunk=(1, chunk, chunk), **options)


@st.composite
def plans(draw: st.DrawFn) -> SegmentationPlan:
    """Draw what `plan_segmentation` may be asked; large enough for several blocks along every axis."""
    depth = draw(st.integers(1, 4))
    geometry = UnetGeometry(depth)
    side = st.one_of(st.integers(1, 300), st.integers(1, 9000))
    tile = st.integers(1, 60).map(lambda n: geometry.tile_side(n * geometry.divisor))
    chunk = draw(st.integers(1, 90)), draw(st.integers(1, 1500)), draw(st.integers(1, 1500))
    factors = draw(st.none() | st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)))
    return plan_segmentation(
        Network(depth=depth, base_width=draw(st.sampled_from([4, 64])), in_channels=draw(st.integers(1, 3)), classes=3),
        Extents(t=draw(st.integers(1, 2)), z=draw(st.integers(1, 100)), y=draw(side), x=draw(side)),
        source_chunk=chunk,
        source_shard=None if factors is None else tuple(c * f for c, f in zip(chunk, factors, strict=True)),
        bytes_per_value=draw(st.sampled_from([1, 2, 4])),
        tile=draw(st.none() | st.tuples(tile, tile)),
        batch=draw(st.integers(1, 4)),
        memory_bytes=draw(st.sampled_from([1024, 2048, 8192])) * MIB,
    )


@st.composite
def odd_plans(draw: st.DrawFn) -> SegmentationPlan:
    """Draw plans that no planner would make: any chunk, any block of whole chunks, any tile."""
    geometry = UnetGeometry(draw(st.integers(1, 4)))
    tile = st.integers(1, 9).map(lambda n: geometry.tile_side(n * geometry.divisor))
    chunk = tuple(draw(st.integers(1, 70)) for _ in range(3))
    return SegmentationPlan(
        network=Network(depth=geometry.depth, base_width=1, in_channels=draw(st.integers(1, 2)), classes=2),
        extents=Extents(
            t=draw(st.integers(1, 2)), z=draw(st.integers(1, 9)), y=draw(st.integers(1, 400)), x=draw(st.integers(1, 9))
        ),
        grid=WriteGrid(chunk=(chunk[0], chunk[1], chunk[2])),
        tile_y=draw(tile),
        tile_x=draw(tile),
        batch=1,
        block_shape=(chunk[0], chunk[1] * draw(st.integers(1, 3)), chunk[2] * draw(st.integers(1, 3))),
        bytes_per_value=draw(st.sampled_from([1, 2, 4])),
    )


def is_partition(intervals: list[Interval], stop: int, start: int = 0) -> bool:
    """Tell whether intervals, in order, cover [start, stop) without gap or overlap."""
    edges = [start, *(interval.stop for interval in intervals)]
    return edges[-1] == stop and [(i.start, i.stop) for i in intervals] == list(itertools.pairwise(edges))


# Every output pixel once.


@given(st.one_of(plans(), odd_plans()))
@settings(max_examples=60)
def test_every_output_pixel_is_written_exactly_once(plan: SegmentationPlan) -> None:
    # Blocks are boxes: all combinations of intervals that part each axis, each combination once, part the volume.
    blocks = list(plan.blocks())
    extents = (plan.extents.z, plan.extents.y, plan.extents.x)
    axes = [sorted({getattr(block, axis) for block in blocks}) for axis in "zyx"]
    assert all(is_partition(intervals, extent) for intervals, extent in zip(axes, extents, strict=True))
    boxes = [(block.t, block.z, block.y, block.x) for block in blocks]
    assert boxes == list(itertools.product(range(plan.extents.t), *axes))
    assert sum(block.pixels for block in blocks) == plan.extents.pixels
    for block in (blocks[0], blocks[-1]):
        assert is_partition([tile.keep for tile in block.tiles_y], block.y.stop, block.y.start)
        assert is_partition([tile.keep for tile in block.tiles_x], block.x.stop, block.x.start)


@given(st.one_of(plans(), odd_plans()))
@settings(max_examples=60)
def test_blocks_come_in_order_and_no_two_touch_one_write_unit(plan: SegmentationPlan) -> None:
    extents = (plan.extents.z, plan.extents.y, plan.extents.x)
    for index, block in enumerate(plan.blocks()):
        assert block.index == index
        for interval, unit, extent in zip((block.z, block.y, block.x), plan.grid.unit, extents, strict=True):
            assert interval.start % unit == 0
            assert interval.stop % unit == 0 or interval.stop == extent
    assert index + 1 == plan.n_blocks == math.prod(plan.block_counts)


@given(plans())
@settings(max_examples=60)
def test_one_tile_shape_in_phase_serves_the_run(plan: SegmentationPlan) -> None:
    geometry = plan.geometry
    assert geometry.is_legal(plan.tile_y)
    assert geometry.is_legal(plan.tile_x)
    for block in (plan.block(0), plan.block(plan.n_blocks - 1), plan.block(plan.n_blocks // 2)):
        for tiles, side in ((block.tiles_y, plan.tile_y), (block.tiles_x, plan.tile_x)):
            assert {tile.read.size for tile in tiles} == {side}
            assert {(tile.read.start + geometry.context) % geometry.divisor for tile in tiles} == {0}
        assert block.window_y == Interval(block.tiles_y[0].read.start, block.tiles_y[-1].read.stop)
        assert block.window_x == Interval(block.tiles_x[0].read.start, block.tiles_x[-1].read.stop)


# The figures.


@given(st.one_of(plans(), odd_plans()))
@settings(max_examples=60)
def test_figures_are_sums_over_the_blocks(plan: SegmentationPlan) -> None:
    blocks, network, context = list(plan.blocks()), plan.network, plan.geometry.context
    tiles = sum(b.z.size * len(b.tiles_y) * len(b.tiles_x) for b in blocks)
    assert plan.n_tiles == tiles
    assert plan.flops == tiles * tile_flops(network, plan.tile_y, plan.tile_x)

    def halo(interval: Interval, extent: int) -> int:
        return Interval(interval.start - context, interval.stop + context).clipped(extent).size

    read = sum(b.z.size * halo(b.y, plan.extents.y) * halo(b.x, plan.extents.x) for b in blocks)
    assert plan.bytes_read == read * network.in_channels * plan.bytes_per_value


@given(plans())
@settings(max_examples=40)
def test_what_is_read_is_what_is_said(plan: SegmentationPlan) -> None:
    # The window really read adds at most the surplus and the last cell a side, a few rows of a whole block.
    geometry, really = plan.geometry, 0
    for block in plan.blocks():
        y = plan_window(geometry, block.tiles_y, plan.extents.y).source
        x = plan_window(geometry, block.tiles_x, plan.extents.x).source
        really += block.z.size * y.size * x.size
    really *= plan.network.in_channels * plan.bytes_per_value
    assert plan.bytes_read <= really <= plan.bytes_read * 1.35


def test_the_ratio_is_against_an_infinite_tile() -> None:
    # A plane of whole tiles of core 384: facts of the network alone.
    plan = plan_plane(1536, 1536, chunk=768, tile=(572, 572), network=PAPER)
    assert plan.n_tiles == 16
    assert round(plan.flops_ratio, 2) == 1.39


def test_memory_does_not_depend_on_the_volume() -> None:
    small, large, deep = plan_plane(4096, 4096), plan_plane(16384, 16384), plan_plane(16384, 16384, z=500)
    for plan in (large, deep):
        assert (plan.tile_y, plan.tile_x, plan.block_shape) == (small.tile_y, small.tile_x, small.block_shape)
        assert plan.peak_memory_bytes == small.peak_memory_bytes
    assert large.n_blocks == 16 * small.n_blocks


@pytest.mark.parametrize(
    "change", [{"batch": 2}, {"bytes_per_value": 2}, {"tile_y": 1212}, {"block_shape": (2, 2048, 2048)}]
)
def test_memory_grows_with_what_is_held(change: dict[str, Any]) -> None:
    plan = plan_plane(4096, 4096, tile=(572, 572))
    assert replace(plan, **change).peak_memory_bytes > plan.peak_memory_bytes


def test_memory_holds_the_next_input_and_the_last_logits_beside_the_engines() -> None:
    plan = plan_plane(4096, 4096, tile=(572, 572), network=PAPER)
    smaller = replace(plan, tile_y=284, tile_x=284)
    grown = plan.peak_memory_bytes - smaller.peak_memory_bytes
    engine = plan.engine_memory_bytes - smaller.engine_memory_bytes
    inputs, logits = PAPER.in_channels * (572**2 - 284**2), PAPER.classes * (388**2 - 100**2)
    assert grown - engine == 4 * (inputs + logits)


def test_more_blocks_are_in_flight_where_a_device_computes() -> None:
    plan = plan_plane(8192, 8192, tile=(572, 572))
    on_device = replace(plan, costs=replace(CAUTIOUS, is_on_device=True))
    assert (plan.blocks_in_flight, on_device.blocks_in_flight) == (BLOCKS_IN_FLIGHT, DEVICE_BLOCKS_IN_FLIGHT)
    least = (DEVICE_BLOCKS_IN_FLIGHT - BLOCKS_IN_FLIGHT) * 2048**2 * (1 + plan.network.classes)
    assert on_device.peak_memory_bytes + plan.engine_memory_bytes > plan.peak_memory_bytes + least


def test_averaging_multiplies_the_operations_and_nothing_else() -> None:
    plain, tta = plan_plane(4096, 3000), plan_plane(4096, 3000, tta=True)
    assert (plain.passes, tta.passes) == (1, 8)
    assert tta.flops == 8 * plain.flops
    changed = {key for key, value in tta.to_object().items() if value != plain.to_object()[key]}
    assert changed == {"tta", "passes", "flops", "least_flops"}


def test_the_figures_are_plain_values() -> None:
    figures = plan_plane(5000, 3000, tile=(572, 1212)).to_object()
    assert figures["tile"] == [572, 1212]
    assert figures["core"] == [384, 1024]
    assert (figures["context"], figures["divisor"], figures["pixels"]) == (92, 16, 15_000_000)
    assert figures["output_chunk"] == [1, 1024, 1024]
    assert figures["output_shard"] is None
    assert figures["block"] == [1, 2048, 2048]
    assert figures["blocks"] == 3 * 2
    assert figures["tiles"] == (6 + 6 + 3) * (2 + 1)  # rows of blocks 2048, 2048 and 904; columns 2048 and 952


# The choice of tile and block.


@given(plans())
@settings(max_examples=60)
def test_blocks_are_whole_units_of_moderate_size(plan: SegmentationPlan) -> None:
    unit = plan.grid.unit
    assert plan.block_shape[0] == unit[0]
    assert all(size % step == 0 for size, step in zip(plan.block_shape, unit, strict=True))
    core = [plan.geometry.core_side(plan.tile_y), plan.geometry.core_side(plan.tile_x)]
    assert max(plan.block_shape[1:]) <= max(MOST_BLOCK_SIDE, *core, *unit[1:])
    room = math.prod(max(side, size) for side, size in zip(core, unit[1:], strict=True))  # of a tile in whole units
    assert math.prod(plan.block_shape) <= max(MOST_VOXELS, unit[0] * room)


@given(
    depth=st.integers(1, 5),
    width=st.sampled_from([1, 8, 64]),
    y=st.integers(1, 5000),
    x=st.integers(1, 5000),
    chunk=st.integers(1, 1500),
    memory=st.integers(2400, 6000),
    batch=st.integers(1, 3),
)
def test_a_chosen_tile_is_legal_and_fits(
    depth: int, width: int, y: int, x: int, chunk: int, memory: int, batch: int
) -> None:
    network = Network(depth=depth, base_width=width, in_channels=1, classes=2)
    plan = plan_plane(y, x, chunk=chunk, network=network, memory_bytes=memory * MIB, batch=batch)
    for side, extent in ((plan.tile_y, y), (plan.tile_x, x)):
        assert plan.geometry.require_legal(side, axis="y") == side
        assert plan.geometry.core_side(side) <= min(MOST_CORE_SIDE, plan.geometry.round_up(extent))
    assert plan.engine_memory_bytes <= memory * MIB
    assert plan.engine_memory_bytes == CAUTIOUS.memory_bytes(network, plan.tile_y, plan.tile_x, batch)


def test_less_memory_means_a_smaller_tile() -> None:
    areas, needs = [], []
    for memory in (400, 512, 768, 1024, 2048, 4096, 16384):
        plan = plan_plane(8192, 8192, network=PAPER, memory_bytes=memory * MIB)
        areas.append(plan.tile_y * plan.tile_x)
        needs.append(plan.peak_memory_bytes)
    assert areas == sorted(areas)
    assert needs == sorted(needs)
    assert areas[0] < areas[3] < areas[-1]
    assert areas[-1] == 1212**2  # core 1024


def test_tiles_share_a_block_evenly() -> None:
    # 1100 rows where only half of them fit: two tiles of 560, not 1024 and 76.
    plan = plan_plane(1100, 700, z=50, memory_bytes=400 * MIB)
    assert [t.keep.size for t in plan.block(0).tiles_y] == [560, 540]
    assert [t.keep.size for t in plan.block(0).tiles_x] == [700]


def test_a_tile_need_not_be_square() -> None:
    plan = plan_plane(300, 20_000, chunk=256, z=50)
    assert plan.geometry.core_side(plan.tile_y) == 304
    assert plan.geometry.core_side(plan.tile_x) >= 2048


def test_a_tiny_network_gets_few_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Network(depth=2, base_width=2, in_channels=1, classes=2)
    few = plan_plane(2048, 2048, network=tiny).n_tiles
    monkeypatch.setattr("unet_deploy.runtime._plan_fit.TILE_SECONDS", 0)
    assert few < plan_plane(2048, 2048, network=tiny).n_tiles


@pytest.mark.parametrize(("y", "x", "most"), [(4096, 4096, 1.14), (5000, 7000, 1.17), (6200, 9300, 1.19)])
def test_what_a_border_costs_is_small(y: int, x: int, most: float) -> None:
    # Blocks of 2048 would end in narrow rests, which cost as much as whole tiles: 1.19 for 5000 x 7000.
    plan = plan_plane(y, x, z=10)  # of a single plane, a large tile may not pay for its memory
    assert plan.flops_ratio <= most


def test_a_given_tile_is_used_and_its_sides_are_independent() -> None:
    plan = plan_plane(1000, 1000, tile=(204, 572))
    assert (plan.tile_y, plan.tile_x) == (204, 572)
    block = plan.block(0)
    assert ({t.read.size for t in block.tiles_y}, {t.read.size for t in block.tiles_x}) == ({204}, {572})


def test_thick_chunks_are_one_block_deep() -> None:
    plan = plan_segmentation(SMALL, Extents(t=1, z=130, y=4096, x=4096), source_chunk=(64, 256, 256))
    assert plan.block_shape[0] == 64
    assert [plan.block(i * plan.n_blocks // 3).z for i in range(3)] == [
        Interval(0, 64),
        Interval(64, 128),
        Interval(128, 130),
    ]


def test_a_plan_of_many_millions_of_blocks_costs_nothing() -> None:
    start = time.process_time()
    plan = plan_segmentation(PAPER, Extents(t=100, z=1000, y=40_000, x=40_000), source_chunk=(1, 1024, 1024))
    last = plan.block(plan.n_blocks - 1)
    figures = plan.to_object()
    assert time.process_time() - start < 2  # it takes milliseconds; a loop over the blocks takes minutes
    assert figures["blocks"] == 100 * 1000 * 20 * 20
    assert (last.t, last.z) == (99, Interval(999, 1000))
    assert (last.y, last.x) == (Interval(38912, 40000), Interval(38912, 40000))


# The output's chunks and shards.


@pytest.mark.parametrize(
    ("depth", "extents", "chunk", "expected"),
    [
        (4, (30, 4000, 4000), (1, 512, 512), (1, 512, 512)),  # as the source's
        (4, (30, 4000, 4000), (1, 100, 300), (1, 112, 304)),  # rounded up to multiples of 16
        (4, (30, 512, 700), (1, 1024, 1024), (1, 512, 704)),  # not beyond the volume
        (4, (30, 4000, 4000), (1, 1, 7), (1, MIN_CHUNK, MIN_CHUNK)),
        (4, (300, 9000, 9000), (128, 4096, 9000), (MAX_CHUNK_Z, MAX_CHUNK, MAX_CHUNK)),
        (4, (3, 10, 40), (5, 20, 40), (3, 16, 48)),
        (8, (1, 4000, 4000), (1, 64, 300), (1, 256, 512)),
        (1, (1, 1, 1), (1, 1, 1), (1, 2, 2)),
    ],
)
def test_chunks_follow_the_source(
    depth: int, extents: tuple[int, int, int], chunk: tuple[int, int, int], expected: tuple[int, int, int]
) -> None:
    z, y, x = extents
    grid = derive_write_grid(UnetGeometry(depth), Extents(t=1, z=z, y=y, x=x), source_chunk=chunk, source_shard=None)
    assert (grid.chunk, grid.shard, grid.unit) == (expected, None, expected)


@pytest.mark.parametrize(
    ("extents", "chunk", "shard", "expected"),
    [
        ((10, 2000, 2000), (1, 64, 64), (4, 512, 1024), (4, 512, 1024)),  # as the source's
        ((10, 9000, 9000), (1, 512, 512), (1, 8192, 8192), (1, BLOCK_SIDE, BLOCK_SIDE)),
        ((200, 900, 900), (40, 128, 128), (160, 256, 256), (40, 256, 256)),  # not over 64 deep, whole chunks
        ((10, 2000, 2000), (1, 100, 100), (1, 200, 400), (1, 112, 336)),  # whole chunks of 112
        ((2, 100, 100), (1, 64, 64), (8, 512, 512), (2, 128, 128)),  # not beyond the volume
        ((2, 5000, 5000), (1, 3000, 3000), (1, 3000, 3000), (1, 2048, 2048)),  # chunks of 1024
    ],
)
def test_shards_follow_the_source(
    extents: tuple[int, int, int],
    chunk: tuple[int, int, int],
    shard: tuple[int, int, int],
    expected: tuple[int, int, int],
) -> None:
    z, y, x = extents
    grid = derive_write_grid(UnetGeometry(4), Extents(t=1, z=z, y=y, x=x), source_chunk=chunk, source_shard=shard)
    assert grid.unit == grid.shard == expected


def test_a_shard_is_whole_chunks_and_a_block_is_there() -> None:
    with pytest.raises(AssertionError):
        WriteGrid(chunk=(1, 64, 64), shard=(1, 100, 128))
    plan = plan_plane(100, 100)
    for index in (-1, plan.n_blocks):
        with pytest.raises(AssertionError):
            plan.block(index)


# What is refused.


@pytest.mark.parametrize(("tile", "axis"), [((250, 572), "y"), ((572, 250), "x")])
def test_an_illegal_tile_is_refused(tile: tuple[int, int], axis: str) -> None:
    with pytest.raises(TileNotLegalError, match=rf"^tile side 250 on axis {axis} is not 16·k − 4") as caught:
        plan_plane(1000, 1000, tile=tile)
    assert caught.value.fix == "--tile 252"


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^batch 0 is not at least 1\n  tiles per forward pass\n") as caught:
        plan_plane(100, 100, batch=0)
    assert caught.value.fix == "--batch 1"


def test_memory_for_less_than_one_tile_is_refused() -> None:
    needed = CAUTIOUS.memory_bytes(PAPER, 204, 204, 3)
    with pytest.raises(
        ConfigurationError,
        match=rf"^64 MiB do not hold a batch of the smallest tile \({needed / MIB:.0f} MiB\)\n"
        r"  3 tile\(s\) of 204 × 204 px, U-Net 2015, depth 4, width 64\n",
    ) as caught:
        plan_plane(1000, 1000, network=PAPER, batch=3, memory_bytes=64 * MIB)
    assert caught.value.fix == "allow more memory, or use --batch 1"
    assert plan_plane(1000, 1000, network=PAPER, batch=3, memory_bytes=needed).tile_y == 204
