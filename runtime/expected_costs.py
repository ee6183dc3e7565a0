"""What batches will cost on the engine that a run will most likely use: asked before it is opened, for the plan.

1. The engine is the one named, or the first in order whose package is installed and whose device is there.
2. What was measured of it on this machine counts; otherwise the rule of thumb for it.
3. Before a run that takes long, an engine that was not measured is: it takes seconds, once (`probe_if_long`).
4. If another engine is taken in the end, since the first did not work, the plan stays, and its memory is told anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from unet_deploy.errors import UnetDeployError
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engine_costs import DEFAULT_BUDGET_BYTES, CostModel, EngineCosts, rule_for
from unet_deploy.runtime.engines.choice import ordered_candidates, parse_device
from unet_deploy.runtime.kept_costs import keep_costs, read_costs
from unet_deploy.runtime.machine import Gpus, ask_driver
from unet_deploy.runtime.measuring import measure_engine
from unet_deploy.runtime.plan import SegmentationPlan
from unet_deploy.runtime.planned import PlannedArtifact
from unet_deploy.runtime.survey import ORIGINS, installed_versions

logger = logging.getLogger(__name__)

WORTH_A_PROBE = 2e14
"""Operations of a run: minutes on a few cores."""
PROBE_SECONDS = 20.0
PROBE_CORES = (384, 768, 1024, 1536, 2048)


def expect_costs(
    artifact: Artifact,
    *,
    device: str = "auto",
    engine: str | None = None,
    threads: int = 0,
    is_here: bool = True,
    folder: Path | None = None,
    ask: Callable[[], Gpus] = ask_driver,
) -> CostModel:
    """Return what to plan with.

    Parameters
    ----------
    artifact
        The model.
    device, engine, threads
        As for `open_engine`.
    is_here
        Whether the engine will run on this machine; what was measured here says nothing of another.
    folder
        Where costs are kept; the user's own by default.
    ask
        What tells which GPUs there are.
    """
    name = expected_engine(artifact, device=device, engine=engine, threads=threads, folder=folder, ask=ask)
    return costs_of(artifact, name, device=device, threads=threads, is_here=is_here, folder=folder, ask=ask)


def expected_engine(
    artifact: Artifact,
    *,
    device: str = "auto",
    engine: str | None = None,
    threads: int = 0,
    folder: Path | None = None,
    ask: Callable[[], Gpus] = ask_driver,
) -> str | None:
    """Return the engine's name; None if none is installed. Nothing of an engine is imported."""
    if isinstance(artifact, PlannedArtifact):
        return artifact.plan.manifest.flavour
    kinds, _ = ordered_candidates(artifact, device=device, engine=engine, threads=threads, costs_folder=folder)
    if len(kinds) == 1:
        return kinds[0].name
    has_gpu: bool | None = None
    for kind in kinds:
        if not installed_versions(ORIGINS[kind.name].packages):
            continue
        if kind.device == "cuda":
            has_gpu = bool(ask().found) if has_gpu is None else has_gpu
            if not has_gpu:
                continue
        return kind.name
    return None


def costs_of(
    artifact: Artifact,
    engine: str | None,
    *,
    device: str = "auto",
    threads: int = 0,
    is_here: bool = True,
    folder: Path | None = None,
    ask: Callable[[], Gpus] = ask_driver,
) -> CostModel:
    """Return what is known of an engine by name. Parameters as of `expect_costs`."""
    kept = None
    if is_here and engine is not None:
        kept = read_costs(artifact, engine=engine, device=device, threads=threads, folder=folder, ask=ask)
    costs = rule_for(engine, artifact.card.precision) if kept is None else kept
    if not costs.is_on_device:
        return costs
    _, index = parse_device(device)
    gpus = ask().found
    size = gpus[index].memory_bytes if index < len(gpus) else None
    return replace(costs, budget_bytes=max(DEFAULT_BUDGET_BYTES, (size or 0) // 2))


def probe_if_long(
    artifact: Artifact,
    plan: SegmentationPlan,
    *,
    device: str = "auto",
    engine: str | None = None,
    threads: int = 0,
    folder: Path | None = None,
    measure: Callable[..., EngineCosts] = measure_engine,
) -> EngineCosts | None:
    """Measure the engine of a long run first, once for this machine and kind of network, and keep what was found.

    Parameters
    ----------
    artifact, device, engine, threads, folder
        As for `expect_costs`.
    plan
        The run, as planned by rule of thumb.
    measure
        What measures; tests hand in their own.

    Returns
    -------
    EngineCosts or None
        None where it would not pay, was done before, or cannot be done. A GPU's engine is measured by
        ``unet-deploy bench`` only: TensorRT builds an engine for each tile, which takes minutes.
    """
    costs = plan.costs
    if costs.is_measured or costs.is_on_device or plan.flops < WORTH_A_PROBE:
        return None
    name = expected_engine(artifact, device=device, engine=engine, threads=threads, folder=folder)
    if name is None:
        return None
    geometry = plan.geometry
    sides = [geometry.tile_side(geometry.round_up(core)) for core in PROBE_CORES]
    budget = costs.budget_bytes
    tiles = [(n, n) for n in sides if costs.memory_bytes(plan.network, n, n, plan.batch) <= budget]
    logger.info("measuring %s for up to %.0f s, once for this machine and kind of network", name, PROBE_SECONDS)
    try:
        found = measure(
            artifact,
            engine=name,
            device=device,
            threads=threads,
            tiles=tiles or [(geometry.smallest_tile,) * 2],
            batch=plan.batch,
            seconds_limit=PROBE_SECONDS,
        )
    except UnetDeployError as error:  # opening the engine for the run will say so, if it matters
        logger.warning("%s could not be measured, and the tile is chosen by rule of thumb: %s", name, error.headline)
        return None
    keep_costs(artifact, found, folder=folder)
    return found
