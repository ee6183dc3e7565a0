"""The order of engines by what was measured of them on this machine, where that is known.

1. Engines of one kind of device are compared on the largest tile that all of them were measured on, for this network's
   sizes, this precision and as many threads.
2. That takes the place of the order measured elsewhere only if every engine that is installed was measured.
3. One file an engine is read, and only by the process that chooses: workers are given the engine's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.machine import Gpus, ask_driver

if TYPE_CHECKING:
    from unet_deploy.runtime.engine_costs import EngineCosts
    from unet_deploy.runtime.engines.choice import EngineKind


def order_as_measured(
    kinds: Sequence[EngineKind],
    artifact: Artifact,
    *,
    device: str,
    threads: int = 0,
    folder: Path | None = None,
    ask: Callable[[], Gpus] = ask_driver,
) -> tuple[tuple[EngineKind, ...], dict[str, str]]:
    """Return engines, the fastest measured here first, and the reason by kind of device; else in the order they came.

    Parameters
    ----------
    kinds
        The candidates; those of one kind of device stay together.
    artifact, device, threads, folder, ask
        As for `read_costs`.

    Returns
    -------
    tuple
        The engines, and a text for each kind of device that was ordered by what was measured.
    """
    ordered: list[EngineKind] = []
    whys: dict[str, str] = {}
    for kind in dict.fromkeys(item.device for item in kinds):
        group = [item for item in kinds if item.device == kind]
        measured = _read(group, artifact, device=device, threads=threads, folder=folder, ask=ask)
        times, date = compare(list(measured.values()))
        if times:
            group.sort(key=lambda item: times.get(item.name, float("inf")))
            first, second = group[:2]
            share = times[first.name] / times[second.name]
            whys[kind] = f"measured here on {date}: {first.name} takes {share:.2f} of {second.name}'s time"
        ordered += group
    return tuple(ordered), whys


def compare(measured: Sequence[EngineCosts]) -> tuple[dict[str, float], str]:
    """Return the seconds of each engine on the largest batch that all were measured on, and the earliest date.

    Both are empty where there are not two engines, or no such batch.
    """
    if len(measured) < 2:
        return {}, ""
    seconds = [{(s.tile_y, s.tile_x, s.batch): s.seconds for s in costs.samples} for costs in measured]
    common = set.intersection(*map(set, seconds))
    if not common:
        return {}, ""
    largest = max(common, key=lambda shape: (shape[0] * shape[1] * shape[2], shape))
    times = {costs.engine: of[largest] for costs, of in zip(measured, seconds, strict=True)}
    return times, min(costs.measured for costs in measured)


def _read(
    group: Sequence[EngineKind],
    artifact: Artifact,
    *,
    device: str,
    threads: int,
    folder: Path | None,
    ask: Callable[[], Gpus],
) -> dict[str, EngineCosts]:
    """Return what was measured of each engine; nothing if one that is installed was not."""
    from unet_deploy.runtime.kept_costs import has_costs, read_costs
    from unet_deploy.runtime.survey import ORIGINS, installed_versions

    found: dict[str, EngineCosts] = {}
    if len(group) < 2 or not has_costs(folder):
        return found
    for item in group:
        costs = read_costs(artifact, engine=item.name, device=device, threads=threads, folder=folder, ask=ask)
        if costs is not None:
            found[item.name] = costs
        elif installed_versions(ORIGINS[item.name].packages):
            return {}
    return found
