"""The order of a plan's blocks: each once, only those of the region, lazily, and chunks decoded about once.

Decodes are counted by a simulation of the cache on integers, with windows from `plan_window`, not from the order's own
arithmetic; `tests/contract/test_cached_reading.py` counts them on a real store.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_plan import MIB, PAPER, SMALL, odd_plans, plans
from unet_deploy.card import Network
from unet_deploy.errors import ConfigurationError, UsageError
from unet_deploy.geometry import Interval, UnetGeometry
from unet_deploy.runtime.block_order import CACHE_STEPS, FILLED, AxisBlocks, BlockOrder
from unet_deploy.runtime.cost import tile_memory_bytes
from unet_deploy.runtime.plan import PROCESS_BYTES, Extents, SegmentationPlan, plan_segmentation
from unet_deploy.runtime.region import Region, parse_region
from unet_deploy.runtime.windows import needed_window, plan_window

Chunk = tuple[int, int, int, int]


def plan_of(extents: tuple[int, int, int, int], chunk: tuple[int, int, int], **options: Any) -> SegmentationPlan:
    t, z, y, x = extents
    network = options.pop("network", SMALL)
    return plan_segmentation(network, Extents(t=t, z=z, y=y, x=x), source_chunk=chunk, **options)


def touched_by(plan: SegmentationPlan, index: int, chunk: list[int]) -> list[Chunk]:
    block = plan.block(index)
    y = plan_window(plan.geometry, block.tiles_y, plan.extents.y).source
    x = plan_window(plan.geometry, block.tiles_x, plan.extents.x).source
    axes = (Interval(block.t, block.t + 1), block.z, y, x)
    t, *zyx = (range(i.start // c, (i.stop - 1) // c + 1) for i, c in zip(axes, chunk, strict=True))
    return [*itertools.product(t, *zyx)]  # type: ignore[arg-type]


def simulate(
    plan: SegmentationPlan, order: Iterable[int], *, workers: int = 1, cache_bytes: int | None = None
) -> float:
    """Return decodes per chunk with caches of integers, one a worker; blocks go to workers at random."""
    e = plan.extents
    assert plan.source_chunk is not None
    chunk = [min(c, n) for c, n in zip(plan.source_chunk, (e.t, e.z, e.y, e.x), strict=True)]
    chunk_bytes = math.prod(chunk) * plan.network.in_channels * plan.bytes_per_value
    room = (plan.cache_bytes if cache_bytes is None else cache_bytes) // chunk_bytes
    caches: list[OrderedDict[Chunk, None]] = [OrderedDict() for _ in range(workers)]
    choose, decoded, seen = random.Random(0), 0, set()
    for index in order:
        kept, (end_y, end_x) = choose.choice(caches), plan.spent(index)
        for place in touched_by(plan, index, chunk):
            _, _, y, x = place
            seen.add(place)
            decoded += place not in kept
            kept[place] = None
            kept.move_to_end(place)
            if min((y + 1) * chunk[2], e.y) <= end_y and min((x + 1) * chunk[3], e.x) <= end_x:
                del kept[place]
            while len(kept) > max(room, 1):
                kept.popitem(last=False)
    return decoded / len(seen)


@st.composite
def regions(draw: st.DrawFn, plan: SegmentationPlan) -> Region:
    parts: dict[str, Interval] = {}
    for axis in draw(st.sets(st.sampled_from("tzyx"))):
        start = draw(st.integers(0, getattr(plan.extents, axis) - 1))
        parts[axis] = Interval(start, draw(st.integers(start + 1, getattr(plan.extents, axis))))
    return Region(**parts)


# Every block once, and no other.


@given(st.one_of(plans(), odd_plans()))
@settings(max_examples=60, deadline=None)
def test_every_block_runs_exactly_once(plan: SegmentationPlan) -> None:
    assert sorted(plan.order()) == [*range(plan.n_blocks)]
    assert plan.count() == plan.n_blocks


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_region_runs_the_blocks_that_touch_it_and_no_other(data: st.DataObject) -> None:
    plan = data.draw(st.one_of(plans(), odd_plans()))
    region = data.draw(regions(plan))

    def touches(index: int) -> bool:
        block = plan.block(index)
        own = {"t": Interval(block.t, block.t + 1), "z": block.z, "y": block.y, "x": block.x}
        parts = [(own[axis], region.along(axis)) for axis in "tzyx"]
        return all(part is None or (i.start < part.stop and part.start < i.stop) for i, part in parts)

    expected = [index for index in range(plan.n_blocks) if touches(index)]
    order = [*plan.order(region)]
    assert sorted(order) == expected
    assert plan.count(region) == len(expected) > 0


def test_a_region_outside_is_refused_before_any_block() -> None:
    plan = plan_of((1, 3, 900, 900), (1, 256, 256))
    for use in (plan.count, lambda region: next(plan.order(region))):
        with pytest.raises(UsageError, match=r"z 3:4 came, the volume has z 0:3"):
            use(parse_region("z=3"))


def test_blocks_that_share_deep_chunks_run_one_after_the_other() -> None:
    plan = plan_of((4, 256, 3000, 3000), (128, 256, 256), source_chunk_t=2)
    assert plan.block_shape[0] == 64
    blocks = [plan.block(index) for index in itertools.islice(plan.order(), 8)]
    assert [(block.t, block.z.start) for block in blocks[:4]] == [(0, 0), (0, 64), (1, 0), (1, 64)]
    assert {(block.y, block.x) for block in blocks[:4]} == {(blocks[0].y, blocks[0].x)}
    assert (blocks[4].y, blocks[4].x) != (blocks[0].y, blocks[0].x)


@pytest.mark.parametrize(("depth", "expected"), [(1, 1), (64, 64), (100, 50), (128, 64), (67, 64), (5000, 50)])
def test_output_chunks_are_whole_parts_of_deep_ones(depth: int, expected: int) -> None:
    assert plan_of((1, 10_000, 500, 500), (depth, 256, 256)).grid.chunk[0] == expected


# Decodes.

WIDE = {
    "thin-large": ((1, 1, 40_960, 40_960), (1, 1024, 1024), {}),
    "cubes": ((1, 64, 6000, 40_960), (64, 64, 64), {}),
    "thin-small": ((1, 2, 9000, 40_960), (1, 256, 256), {}),
    "shards": ((1, 8, 6000, 40_960), (1, 256, 256), {"source_shard": (4, 1024, 1024)}),
    "deep": ((1, 256, 3000, 9000), (128, 64, 64), {}),
    "times": ((6, 2, 3000, 9000), (1, 256, 256), {"source_chunk_t": 3}),
    "strips-of-tiff": ((1, 2, 6000, 40_000), (1, 8, 40_000), {}),
    "huge": ((1, 1, 40_960, 40_960), (1, 8192, 8192), {}),
    "pages": ((1, 2, 20_000, 40_000), (1, 20_000, 20_000), {}),
    "odd": ((1, 100, 3000, 9000), (33, 300, 500), {}),
}


@pytest.mark.parametrize("bytes_per_value", [1, 2, 4])
@pytest.mark.parametrize("name", WIDE)
def test_chunks_are_decoded_about_once(name: str, bytes_per_value: int) -> None:
    extents, chunk, options = WIDE[name]
    plan = plan_of(extents, chunk, bytes_per_value=bytes_per_value, **options)
    decodes = simulate(plan, plan.order())
    assert decodes <= plan.decodes_per_chunk + 0.005  # what the plan says is no less than what happens
    assert plan.cache_bytes <= max(1024 * MIB, plan.block_order.strip_bytes(1) / FILLED + MIB)
    if name == "huge" and bytes_per_value > 1:  # five chunks beside each other are more than a cache may be
        assert plan.decodes_per_chunk > 1.1
    else:
        assert decodes <= 1.1


@pytest.mark.parametrize(("name", "least"), [("thin-large", 1.4), ("times", 2.8), ("deep", 1.8)])
def test_the_order_and_the_cache_are_what_makes_it_so(name: str, least: float) -> None:
    extents, chunk, options = WIDE[name]
    plan = plan_of(extents, chunk, **options)
    assert simulate(plan, plan.order(), cache_bytes=0) > least
    room = plan.cache_bytes // 2
    assert simulate(plan, range(plan.n_blocks), cache_bytes=room) > least
    assert simulate(plan, replace(plan, cache_bytes=room).order(), cache_bytes=room) < 1.2


def test_blocks_that_run_out_of_order_now_and_then_cost_little() -> None:
    extents, chunk, options = WIDE["thin-large"]
    plan = plan_of(extents, chunk, **options)
    order = [*plan.order()]
    for i in range(0, len(order) - 1, 20):  # the second of two threads was faster
        order[i], order[i + 1] = order[i + 1], order[i]
    assert simulate(plan, order) <= 1.1


def test_two_processes_share_no_cache() -> None:
    # Which of them runs a block is chance: what blocks share is decoded in both, and no more.
    extents, chunk, options = WIDE["thin-small"]
    plan = plan_of(extents, chunk, **options)
    assert 1.1 < simulate(plan, plan.order(), workers=2) < 1.3


def test_a_plan_whose_cache_is_too_small_says_so() -> None:
    plan = plan_of((1, 64, 4096, 4096), (64, 64, 64), max_memory_bytes=1200 * MIB)
    assert plan.decodes_per_chunk >= simulate(plan, plan.order()) - 0.005


@given(
    extents=st.tuples(st.integers(1, 3), st.integers(1, 90), st.integers(1, 4000), st.integers(1, 9000)),
    chunk=st.tuples(st.integers(1, 100), st.integers(100, 1500), st.integers(100, 1500)),
    source_chunk_t=st.integers(1, 3),
    bytes_per_value=st.sampled_from([1, 4]),
)
@settings(max_examples=60, deadline=None)
def test_what_the_plan_says_of_decodes_is_no_less_than_what_happens(
    extents: tuple[int, int, int, int], chunk: tuple[int, int, int], source_chunk_t: int, bytes_per_value: int
) -> None:
    plan = plan_of(extents, chunk, source_chunk_t=source_chunk_t, bytes_per_value=bytes_per_value)
    assert simulate(plan, plan.order()) <= plan.decodes_per_chunk + 0.05


# The arithmetic behind it.


@given(st.integers(1, 3000), st.integers(1, 40), st.integers(1, 400), st.none() | st.integers(1, 4).map(UnetGeometry))
def test_axes_count_what_their_blocks_touch(
    extent: int, blocks: int, chunk: int, geometry: UnetGeometry | None
) -> None:
    axis = AxisBlocks(extent=extent, block=max(extent // blocks, 20), chunk=chunk, geometry=geometry)
    touched = [axis.touched(i) for i in range(axis.n_blocks)]
    assert axis.most_touched == max(map(len, touched))
    assert axis.most_shared == max((len({*a} & {*b}) for a, b in itertools.pairwise(touched)), default=0)
    assert {*itertools.chain(*touched)} == {*range(axis.n_chunks)}
    for width in (1, 2, 5):
        groups = [{*itertools.chain(*touched[i : i + width])} for i in range(0, axis.n_blocks, width)]
        assert axis.decodes(width) == pytest.approx(sum(map(len, groups)) / axis.n_chunks)


@given(st.integers(1, 4).map(UnetGeometry), st.integers(0, 500), st.integers(1, 500))
def test_what_is_needed_is_the_context_in_phase(geometry: UnetGeometry, start: int, size: int) -> None:
    needed = needed_window(geometry, Interval(start, start + size))
    assert (needed.start + geometry.context) % geometry.divisor == 0
    assert 0 <= start - needed.start - geometry.context < geometry.divisor
    assert 0 <= needed.stop - start - size - geometry.context - geometry.surplus < geometry.divisor


def test_a_wider_strip_takes_more_and_decodes_less() -> None:
    order: BlockOrder = plan_of((1, 1, 40_960, 40_960), (1, 1024, 1024)).block_order
    widths = [order.strip_for(size) for size in (32 * MIB, 64 * MIB, 128 * MIB, 1024 * MIB)]
    assert widths == sorted(widths)
    assert widths[-1] == 20
    assert [order.strip_bytes(w) for w in widths] == sorted(order.strip_bytes(w) for w in widths)
    decodes = [order.decodes_per_chunk(size) for size in (32 * MIB, 64 * MIB, 128 * MIB, 1024 * MIB)]
    assert decodes == sorted(decodes, reverse=True)
    assert decodes[-1] == 1
    for size in CACHE_STEPS:
        assert order.strip_bytes(order.strip_for(size)) <= size * FILLED


# A million blocks.


def test_a_million_blocks_are_planned_without_looking_at_each() -> None:
    start = time.process_time()
    plan = plan_of((1, 1000, 64_000, 64_000), (1, 1024, 1024))
    assert plan.n_blocks == 1000 * 32 * 32 > 10**6
    figures = plan.to_object()
    first = [*itertools.islice(plan.order(), 100)]
    near = [*itertools.islice(plan.order(parse_region("z=999,y=30000:50000")), 100)]
    assert time.process_time() - start < 2  # it takes hundredths of a second
    assert len({*first, *near}) == 200
    assert figures["decodes_per_chunk"] <= 1.1
    assert figures["blocks"] == plan.n_blocks


def test_one_axis_of_a_million_blocks_too() -> None:
    start = time.process_time()
    plan = plan_of((1, 1, 300, 2**31), (1, 512, 512), tile=(572, 572))
    assert plan.n_blocks > 10**6
    assert plan.to_object()["decodes_per_chunk"] <= 1.1
    assert next(plan.order(parse_region("x=2000000000:2000000001"))) > 9 * 10**5
    assert time.process_time() - start < 2


# Memory.


@pytest.mark.parametrize("mib", [600, 700, 1000, 1500, 2500, 10_000])
@pytest.mark.parametrize("chunk", [(1, 1024, 1024), (1, 256, 256), (64, 64, 64)])
def test_a_limit_of_memory_is_kept(chunk: tuple[int, int, int], mib: int) -> None:
    extents = (1, 64, 9000, 9000)
    free = plan_of(extents, chunk, bytes_per_value=2)
    try:
        plan = plan_of(extents, chunk, bytes_per_value=2, max_memory_bytes=mib * MIB)
    except ConfigurationError:
        assert free.peak_memory_bytes > mib * MIB
        return
    assert plan.peak_memory_bytes <= mib * MIB
    assert (plan == free) is (free.peak_memory_bytes <= mib * MIB)
    assert plan.infer_seconds + plan.decode_seconds >= 0.98 * (free.infer_seconds + free.decode_seconds)


def test_the_smallest_memory_is_named_and_is_enough() -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"^a process of 100 MiB does not hold this run; at least \d+ MiB were expected\n"
        r"  that is with the smallest tile \(204 × 204 px, batch 1\) and block \(1 × 256 × 256 px\) of U-Net 2015, "
        r"depth 4, width 64\n  the process alone takes 250 MiB\n",
    ) as caught:
        plan_of((1, 5, 9000, 9000), (1, 256, 256), network=PAPER, max_memory_bytes=100 * MIB)
    needed = int(caught.value.fix.removeprefix("--max-memory ").removesuffix("MiB")) * MIB
    plan = plan_of((1, 5, 9000, 9000), (1, 256, 256), network=PAPER, max_memory_bytes=needed)
    assert needed - MIB < plan.peak_memory_bytes <= needed
    assert needed > PROCESS_BYTES + tile_memory_bytes(PAPER, 204, 204, 1)
    with pytest.raises(ConfigurationError, match="at least"):
        plan_of((1, 5, 9000, 9000), (1, 256, 256), network=PAPER, max_memory_bytes=needed - MIB)


def test_a_given_tile_stays_where_memory_is_short() -> None:
    free = plan_of((1, 5, 9000, 9000), (1, 256, 256), tile=(572, 572))
    most = free.peak_memory_bytes - 20 * MIB
    plan = plan_of((1, 5, 9000, 9000), (1, 256, 256), tile=(572, 572), max_memory_bytes=most)
    assert (plan.tile_y, plan.tile_x) == (572, 572)
    assert plan.cache_bytes < free.cache_bytes or plan.block_shape < free.block_shape


def test_more_memory_never_costs_more() -> None:
    plans = [
        plan_of((1, 5, 9000, 9000), (1, 512, 512), network=PAPER, max_memory_bytes=mib * MIB)
        for mib in (700, 900, 1100, 1300, 1600)
    ]
    costs = [plan.infer_seconds + plan.decode_seconds for plan in plans]
    assert costs == sorted(costs, reverse=True)


def test_several_channels_take_their_room() -> None:
    network = Network(depth=4, base_width=16, in_channels=3, classes=2)
    one, three = (plan_of((1, 1, 9000, 9000), (1, 512, 512), network=n) for n in (SMALL, network))
    assert three.block_order.chunk_bytes == 3 * one.block_order.chunk_bytes
