"""What to give a segmentation after engines were tried: the flags that differ from what it does by itself, if any.

1. What it does by itself follows from what is kept of this machine, and else from rules: an engine, and a tile for a
   large volume.
2. A flag is advised only where it was measured to be worth it (`trials.WORTH`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engine_costs import CostModel
from unet_deploy.runtime.engines.choice import ordered_candidates
from unet_deploy.runtime.expected_costs import costs_of
from unet_deploy.runtime.plan import Extents, plan_segmentation
from unet_deploy.runtime.preparation import plan_for
from unet_deploy.runtime.trials import WORTH, Trial

LARGE = 8192
"""Side of the volume that is planned for."""
CHUNK = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What runs one file fastest: engine, tile, and the flags that it takes.

    `seconds_per_pixel` is of the engine alone with these flags; `own_seconds_per_pixel` without them. They are as
    measured, unless `is_foretold`: of a tile that is larger than all that were run.
    """

    artifact: Artifact
    engine: str
    tile: tuple[int, int]
    flags: tuple[str, ...]
    seconds_per_pixel: float
    own_seconds_per_pixel: float
    is_foretold: bool


def advise(
    trials: Sequence[Trial],
    artifact: Artifact,
    *,
    device: str = "auto",
    engine: str | None = None,
    threads: int = 0,
    folder: Path | None = None,
) -> Advice | None:
    """Return what runs a file fastest here, and what differs from what a segmentation with the same flags would do.

    Parameters
    ----------
    trials
        What was tried.
    artifact
        The file.
    device, engine, threads
        As they were tried.
    folder
        Where costs are kept, as for `read_costs`.

    Returns
    -------
    Advice or None
        None if the file ran on no engine.
    """
    by_engine = {trial.engine: trial for trial in trials if trial.artifact is artifact and trial.costs is not None}
    if not by_engine:
        return None
    kinds, _ = ordered_candidates(artifact, device=device, engine=engine, threads=threads, costs_folder=folder)
    own = next(by_engine[kind.name] for kind in kinds if kind.name in by_engine)

    def plan(trial: Trial) -> tuple[tuple[int, int], float]:
        costs = costs_of(artifact, trial.engine, device=device, threads=threads, folder=folder)
        tile = plan_tile(artifact, costs)
        return tile, _seconds_per_pixel(trial, tile)

    options = []
    _, own_seconds = plan(own)
    for trial in by_engine.values():
        flags = [] if trial is own else ["--engine", trial.engine]
        tile, seconds = plan(trial)
        options.append((seconds, flags, trial, tile))
        best = trial.best
        assert best is not None
        given = (best.tile_y, best.tile_x)
        options.append((_seconds_per_pixel(trial, given), [*flags, "--tile", _words(given)], trial, given))
    fastest = min(seconds for seconds, *_ in options)
    good = [option for option in options if option[0] <= fastest * (1 + WORTH)]
    seconds, chosen, trial, tile = min(good, key=lambda option: (len(option[1]), option[0]))
    return Advice(
        artifact=artifact,
        engine=trial.engine,
        tile=tile,
        flags=tuple(chosen),
        seconds_per_pixel=seconds,
        own_seconds_per_pixel=own_seconds,
        is_foretold=trial.costs is not None and tile[0] * tile[1] > max(s.pixels for s in trial.costs.samples),
    )


def plan_tile(artifact: Artifact, costs: CostModel) -> tuple[int, int]:
    """Return the tile that is planned for a large volume in chunks of a usual size."""
    extents = Extents(t=1, z=1, y=LARGE, x=LARGE)
    chunk = (1, CHUNK, CHUNK)
    make = partial(plan_segmentation, artifact.card.network, extents, source_chunk=chunk, costs=costs)
    plan = plan_for(artifact, make, tile=None)
    return plan.tile_y, plan.tile_x


def _seconds_per_pixel(trial: Trial, tile: tuple[int, int]) -> float:
    assert trial.costs is not None
    geometry, network = trial.artifact.card.geometry, trial.artifact.card.network
    kept = geometry.core_side(tile[0]) * geometry.core_side(tile[1])
    return trial.costs.seconds(network, *tile, 1) / kept


def _words(tile: tuple[int, int]) -> str:
    return str(tile[0]) if tile[0] == tile[1] else f"{tile[0]},{tile[1]}"
