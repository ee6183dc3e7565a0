"""What a run made, and what its output says of how it was made."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

import unet_deploy
from unet_deploy.card import ModelCard
from unet_deploy.card_json import card_to_object
from unet_deploy.errors import PartialResultError
from unet_deploy.runtime.drift import Finding
from unet_deploy.runtime.engines import EngineDescription
from unet_deploy.runtime.engines.memory import Rung
from unet_deploy.runtime.instances import InstanceResult
from unet_deploy.runtime.journal import BlockRecord, Journal
from unet_deploy.runtime.layout import OutputSpec
from unet_deploy.runtime.plan import SegmentationPlan
from unet_deploy.runtime.preparation import Preparation
from unet_deploy.runtime.profile import Profile
from unet_deploy.runtime.region import Region
from unet_deploy.runtime.resume import identify_volume
from unet_deploy.runtime.statistics import VolumeStatistics

Status = Literal["complete", "partial", "region"]
_LISTED = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentationResult:
    """What a run made.

    `status` is ``complete``, ``partial`` where blocks failed, or ``region`` where only a part of the volume was asked
    for and the rest is yet to be done. `class_fractions` has the share of each class by name, where labels were made,
    over all that is done. `seconds` has the wall time by stage ("total" among them) and the summed thread time of
    reading, inference (waiting for the engine included) and writing.

    `failed` lists the blocks that are holes in the output, `n_empty` how many were answered without the network,
    `blocks_found` how many of the blocks asked for an earlier run had done, `blocks_left` how many of the volume's are
    yet to be done, and `pixels` how many pixels were made now.
    `statistics` are the grey values that the volume was scaled by; None where the card asks for none, or `input_range`
    was given. `findings` say how the volume differs from what the model was trained on; none also where `is_compared`
    says that it was not compared. `rungs` are the sizes that were given to the engine where its memory ran out, from
    the planned one down; else empty. `instances` and `table` are what was asked for of objects and of blocks, `profile`
    is where the time went, where that was asked for.
    """

    output: Path
    labels: Path | None
    status: Status
    plan: SegmentationPlan
    engine: EngineDescription
    class_fractions: dict[str, float]
    seconds: dict[str, float]
    pixels: int
    failed: tuple[BlockRecord, ...]
    n_empty: int = 0
    blocks_found: int = 0
    blocks_left: int = 0
    statistics: VolumeStatistics | None = None
    findings: tuple[Finding, ...] = ()
    is_compared: bool = True
    level_choice: str | None = None
    rungs: tuple[Rung, ...] = ()
    instances: InstanceResult | None = None
    table: Path | None = None
    profile: Profile | None = None

    @property
    def pixels_per_second(self) -> float:
        """Output pixels made now per second of wall time, everything included."""
        return self.pixels / self.seconds["total"]


def class_fractions(journal: Journal, card: ModelCard) -> dict[str, float]:
    """Return the share of each class by name over all blocks that are done; nothing where no labels were made."""
    totals = np.asarray(journal.class_totals, np.int64)
    if not totals.sum():
        return {}
    return {c.name: float(n / totals.sum()) for c, n in zip(card.classes, totals, strict=True)}


def describe_run(
    ready: Preparation,
    engine: EngineDescription,
    spec: OutputSpec,
    *,
    region: Region | None,
    input_range: tuple[float, float] | None,
    statistics: VolumeStatistics | None,
    findings: tuple[Finding, ...] | None,
) -> dict[str, Any]:
    """Return what an output says of the run that makes it, before the first block, as JSON values.

    `region` is what was asked for, None for all of the volume: of an output that was made part by part, the last part
    stands here, and the earlier ones in `parts`. `findings` are None where the volume was not compared with the
    training images.
    """
    artifact, info = ready.artifact, ready.volume.info
    return {
        "software": {"unet-deploy": unet_deploy.__version__, "numpy": np.__version__, "zarr": version("zarr")},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "region": None if region is None else region.to_object(),
        "model": {
            "name": artifact.card.name,
            "source": artifact.source,
            "sha256": artifact.sha256,
            "precision": artifact.card.precision,
            "licence": artifact.card.training.licence,
            "classes": [c.name for c in artifact.card.classes],
            "card": card_to_object(replace(artifact.card, test_tensor=None)),
        },
        "engine": engine.to_object(),
        "volume": {**identify_volume(info), "level": info.level, "level_choice": ready.level_choice},
        "parameters": {
            "channels": list(ready.channels),
            "input_range": None if input_range is None else list(input_range),
            "write": list(spec.kinds),
            "tta": ready.plan.tta,
        },
        "statistics": None if statistics is None else statistics.to_object(),
        "differs_from_training": None if findings is None else [finding.text for finding in findings],
        "plan": ready.plan.to_object(),
    }


def describe_end(result: SegmentationResult, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an output says of a run that has ended; `seconds` are of this part, as `started` and `region` are."""
    return {
        **provenance,
        "status": result.status,
        "failed_blocks": [{"block": r.index, "reason": r.reason} for r in result.failed],
        "empty_blocks": result.n_empty,
        "out_of_memory": [rung.to_object() for rung in result.rungs],
        "class_fractions": result.class_fractions,
        "seconds": {k: round(v, 3) for k, v in result.seconds.items()},
    }


def require_whole(result: SegmentationResult, *, is_region: bool = False) -> None:
    """Say which blocks are missing; where a region was asked for, they may lie outside.

    Raises
    ------
    PartialResultError
        If any is.
    """
    if not result.failed:
        return
    listing = [f"block {r.index}: {(r.reason or '').splitlines()[0]}" for r in result.failed[:_LISTED]]
    more = len(result.failed) - len(listing)
    error = PartialResultError(
        f"{len(result.failed)} of {result.plan.n_blocks} blocks failed; they are 0 in {result.output}",
        *listing,
        *([f"and {more} more, listed in the output's attributes"] if more else []),
        fix="mend the cause, then give the same command with --retry-failed"
        + (", and with a --region that holds them or none" if is_region else ""),
    )
    error.result = result
    raise error
