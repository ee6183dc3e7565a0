"""A plan made anew: when an engine was measured, when another was taken than was expected, when a run goes on.

What was learnt of engines meanwhile would choose another tile. A new run takes that; one that goes on keeps its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeGuard

from unet_deploy.errors import ConfigurationError
from unet_deploy.runtime._plan_fit import CACHES, fit_memory
from unet_deploy.runtime.engine_costs import CostModel
from unet_deploy.runtime.preparation import Preparation, plan_volume


def replan(ready: Preparation, *, costs: CostModel | None, **options: Any) -> Preparation:
    """Return a preparation planned anew with other costs, the same without; `options` as of `plan_volume`, no tile."""
    if costs is None:
        return ready
    return replace(ready, plan=plan_volume(ready.volume, ready.artifact, costs=costs, tile=None, **options))


def plan_for_taken(ready: Preparation, costs: CostModel, *, may_change: bool, **options: Any) -> Preparation:
    """Return a preparation whose plan tells the costs of the engine that was taken, perhaps not the one expected.

    The tile stays, unless it was chosen for a GPU's memory and main memory is to hold it, or the other way round.

    Parameters
    ----------
    ready
        As planned for the engine that was expected.
    costs
        Of the one that was taken.
    may_change
        Whether another tile may be chosen: neither was one given, nor does the run go on with one.
    **options
        As of `replan`.
    """
    if may_change and costs.is_on_device != ready.plan.costs.is_on_device:
        return replan(ready, costs=costs, **options)
    return replace(ready, plan=replace(ready.plan, costs=costs))


def plan_as_begun(
    ready: Preparation,
    said: Mapping[str, Any],
    *,
    tile: tuple[int, int] | None = None,
    max_memory_bytes: int | None = None,
) -> Preparation:
    """Return a preparation with the tile and blocks of a run that was begun, if they can be had.

    Parameters
    ----------
    ready
        As it would be planned now.
    said
        What the output says of its plan (`SegmentationPlan.to_object`); it may be anybody's.
    tile
        One that was given: no other is taken.
    max_memory_bytes
        What the process may hold. A plan that was within it when the run began is taken, whatever is foretold now.
    """
    plan, (sides, block) = ready.plan, (said.get("tile"), said.get("block"))
    geometry, unit = plan.geometry, plan.grid.unit
    if not (_are_sizes(sides, 2) and _are_sizes(block, 3) and said.get("batch") == plan.batch):
        return ready
    if not all(map(geometry.is_legal, sides)) or any(b % u for b, u in zip(block, unit, strict=True)):
        return ready
    if tile is not None and [*tile] != sides:
        return ready
    begun = replace(plan, tile_y=sides[0], tile_x=sides[1], block_shape=(block[0], block[1], block[2]))
    if isinstance(reason := said.get("reason"), str):
        begun = replace(begun, reason=reason)
    begun = replace(begun, cache_bytes=begun.block_order.choose_cache())
    if max_memory_bytes is None:
        return replace(ready, plan=begun)
    try:
        return replace(ready, plan=fit_memory([begun], max_memory_bytes))
    except ConfigurationError:
        peak = said.get("peak_memory_bytes")
        was_within = type(peak) is int and 0 < peak <= max_memory_bytes
        return replace(ready, plan=replace(begun, cache_bytes=min(CACHES))) if was_within else ready


def _are_sizes(value: object, count: int) -> TypeGuard[list[int]]:
    return isinstance(value, list) and len(value) == count and all(type(n) is int and 0 < n < 2**31 for n in value)
