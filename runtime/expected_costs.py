"""What batches will cost on the engine that a run will most likely use: asked before it is opened, for the plan.

1. The engine is the one named, or the first in order whose package is installed and whose device is there.
2. What was measured of it on this machine counts; otherwise the rule of thumb for it.
3. Before a run that takes long, an engine that was not measured is: it takes seconds, once (`probe_if_long`). It is as
   `unet-deploy bench` does it: within the memory there is, and kept only if it tells enough and nothing disturbed it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from unet_deploy.errors import UnetDeployError
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engine_costs import DEFAULT_BUDGET_BYTES, CostModel, EngineCosts, rule_for
from unet_deploy.runtime.engines.choice import candidates, ordered_candidates, parse_device
from unet_deploy.runtime.kept_costs import keep_costs, read_costs
from unet_deploy.runtime.machine import Gpus, Memory, ask_driver, busy_share, read_memory
from unet_deploy.runtime.measuring import measure_engine
from unet_deploy.runtime.plan import PROCESS_BYTES, SegmentationPlan
from unet_deploy.runtime.planned import PlannedArtifact
from unet_deploy.runtime.region import Region
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


def engine_to_go_on_with(
    artifact: Artifact,
    begun_with: str | None,
    *,
    device: str = "auto",
    threads: int = 0,
    folder: Path | None = None,
) -> str | None:
    """Return the engine of a run that goes on, where another one would be tried first now; None where it would be.

    So it is after a measurement. Parameters as of `expect_costs`; `begun_with` is its name, which may be anybody's.
    """
    if isinstance(artifact, PlannedArtifact) or begun_with not in {kind.name for kind in candidates(device)}:
        return None
    first = expected_engine(artifact, device=device, threads=threads, folder=folder)
    return None if begun_with == first else begun_with


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


def is_worth_a_probe(plan: SegmentationPlan, n_blocks: int) -> bool:
    """Tell whether so many blocks take so long, on an engine that was not measured here, that this is done before."""
    flops = plan.flops * n_blocks / plan.n_blocks
    return not plan.costs.is_measured and not plan.costs.is_on_device and flops >= WORTH_A_PROBE


def probe_if_long(
    artifact: Artifact,
    plan: SegmentationPlan,
    *,
    device: str = "auto",
    engine: str | None = None,
    threads: int = 0,
    region: Region | None = None,
    max_memory_bytes: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    folder: Path | None = None,
    memory: Memory | None = None,
    ask_busy: Callable[[], float | None] = busy_share,
    measure: Callable[..., EngineCosts] = measure_engine,
) -> CostModel | None:
    """Measure the engine of a long run first, once for this machine and kind of network, and keep what was found.

    Parameters
    ----------
    artifact, device, engine, threads, folder
        As for `expect_costs`.
    plan
        The run, as planned by rule of thumb.
    region
        What is to be made of it, if not all.
    max_memory_bytes
        What a process may hold; the one that measures, too.
    should_stop
        Whether to measure no further; nothing is kept then.
    memory, ask_busy, measure
        What memory there is, what tells how busy other programs keep the processor, and what measures; asked of the
        system by default.

    Returns
    -------
    CostModel or None
        What to plan with now. None where it would not pay, was done before, or cannot be done. A GPU's engine is
        measured by ``unet-deploy bench`` only: TensorRT builds an engine for each tile, which takes minutes.
    """
    costs, geometry = plan.costs, plan.geometry
    if not is_worth_a_probe(plan, plan.count(region)):
        return None
    from unet_deploy.runtime.trials import TELLING_CORE, TOO_BUSY, available_bytes

    expect = partial(expected_engine, artifact, device=device, engine=engine, threads=threads, folder=folder)
    name = expect()
    sides = [geometry.tile_side(geometry.round_up(core)) for core in PROBE_CORES]
    needed = {n: costs.memory_bytes(plan.network, n, n, plan.batch) for n in sides}
    tiles = [(n, n) for n in sides if needed[n] <= costs.budget_bytes]
    limits = [n for n in (max_memory_bytes, available_bytes(memory or read_memory())) if n is not None]
    if name is None or not tiles or (limits and needed[tiles[-1][0]] + 2 * PROCESS_BYTES > min(limits)):
        return None
    logger.info("measuring %s for up to %.0f s, once for this machine and kind of network", name, PROBE_SECONDS)
    busy = ask_busy() or 0.0
    try:
        found = measure(
            artifact,
            engine=name,
            device=device,
            threads=threads,
            tiles=tiles,
            batch=plan.batch,
            seconds_limit=PROBE_SECONDS,
            should_stop=should_stop,
        )
    except UnetDeployError as error:  # opening the engine for the run will say so, if it matters
        if not should_stop():
            logger.warning(
                "%s could not be measured, and the tile is chosen by rule of thumb: %s", name, error.headline
            )
        return None
    largest = max(sample.tile_y for sample in found.samples)
    if should_stop() or largest < min(tiles[-1][0], geometry.tile_side(geometry.round_up(TELLING_CORE))):
        return None  # with small tiles alone, larger ones would not be chosen, by this run and all later ones
    if max(busy, ask_busy() or 0.0) >= TOO_BUSY:
        logger.info("what was measured is used now and not kept: other programs keep the processor busy")
        return found
    keep_costs(artifact, found, folder=folder)
    faster = expect()  # perhaps another one, that was measured before
    return found if faster == name else costs_of(artifact, faster, device=device, threads=threads, folder=folder)
