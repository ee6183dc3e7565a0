"""A plan that fits into the memory there is: with smaller tiles, blocks and caches, whatever costs the least. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from unet_deploy.errors import ConfigurationError
from unet_deploy.geometry import Geometry
from unet_deploy.runtime.block_order import CACHE_STEPS, SMALL_CACHE_STEPS
from unet_deploy.runtime.plan_parts import BLOCK_SIDE, MAX_BLOCK_VOXELS

if TYPE_CHECKING:
    from unet_deploy.runtime.plan import SegmentationPlan

PROCESS_BYTES = 250 * 2**20
"""Python, NumPy, Zarr, Dask and onnxruntime, loaded and idle."""
BLOCK_LIMITS = ((BLOCK_SIDE, MAX_BLOCK_VOXELS), (1024, 2**22), (512, 2**20), (1, 1))
"""Largest side and number of pixels of a block, from what is best down to what has no room for better."""
CACHES = (*CACHE_STEPS, *SMALL_CACHE_STEPS)
DECODE_COST = 0.05
"""Decoding all chunks once, as a share of the least that the network can cost."""


def core_sides(geometry: Geometry, most: int) -> Iterator[int]:
    """Yield sides of cores from `most` down to the smallest, each about an eighth smaller."""
    core = most
    while core > geometry.divisor:
        yield core
        core = min(geometry.round_up(core * 7 // 8), core - geometry.divisor)
    yield geometry.divisor


def fit_memory(plans: Sequence[SegmentationPlan], max_memory_bytes: int) -> SegmentationPlan:
    """Return the cheapest of the plans, with its own or a smaller cache, whose peak stays below the limit."""
    each = [
        replace(plan, cache_bytes=size)
        for plan in plans
        for size in (plan.cache_bytes, *(n for n in CACHES if n < plan.cache_bytes))
    ]
    fitting = [plan for plan in each if plan.peak_memory_bytes <= max_memory_bytes]
    if fitting:
        return min(fitting, key=lambda plan: (_relative_cost(plan), plan.peak_memory_bytes))
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


def _relative_cost(plan: SegmentationPlan) -> float:
    """Return the cost of a run: operations above the least any tile could spend, and a little for each decode."""
    return plan.flops_ratio + DECODE_COST * plan.decodes_per_chunk
