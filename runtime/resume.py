"""A run that was broken off, found where the next one is to write: whether, and how, that goes on.

1. An output whose journal has blocks and whose status is *running* is gone on with by the same command; so is one of
   status *region*, which is whole as far as it was asked for. One that ended with failed blocks is left as it is,
   unless those are to be run again; one that is complete, unless blocks that are done are.
2. What must be the same is the *fingerprint*: every input, version and parameter that decides a byte. Which
   of the blocks are run, when, and what is told of them, is none of these.
3. Grey values that were measured for the first part serve the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import unet_deploy
from unet_deploy.errors import OutputExistsError
from unet_deploy.runtime.engines import EngineDescription
from unet_deploy.runtime.journal import read_journal
from unet_deploy.runtime.layout import OutputSpec
from unet_deploy.runtime.output_paths import read_provenance
from unet_deploy.runtime.preparation import Preparation
from unet_deploy.runtime.statistics import VolumeStatistics
from unet_deploy.runtime.volume_info import VolumeInfo

OPEN = ("running", "region")
"""The status of outputs that are yet to be gone on with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A run that can go on: what its output says of it, and how many of its blocks are in the journal."""

    provenance: dict[str, Any]
    n_blocks: int

    @property
    def statistics(self) -> VolumeStatistics | None:
        """The grey values that were measured for it."""
        return VolumeStatistics.from_object(self.provenance.get("statistics"))

    @property
    def engine(self) -> str | None:
        """The name of the engine that it began with."""
        name = _object(self.provenance.get("engine")).get("engine")
        return name if isinstance(name, str) else None

    @property
    def plan(self) -> dict[str, Any]:
        """What its output says of its plan."""
        return _object(self.provenance.get("plan"))

    @property
    def is_broken_off(self) -> bool:
        """Whether it did not end: of which blocks the pyramid was made is not known."""
        return self.provenance.get("status") == "running"

    @property
    def parts(self) -> list[dict[str, Any]]:
        """What is to be kept of the parts of the run before this one, the latest last.

        `blocks_done` are all there were when it was over; `seconds` are None of a part that was broken off.
        """
        earlier = self.provenance.get("parts")
        kept = {name: self.provenance.get(name) for name in ("started", "region", "seconds")}
        this = {**kept, "blocks_done": self.n_blocks}
        return [*(earlier if isinstance(earlier, list) else []), this]


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def find_begun(output: Path, *, retry_failed: bool, again: bool = False) -> Begun | None:
    """Return the run at `output` that can be gone on with; None if there is none.

    Parameters
    ----------
    output
        Where the next run is to write.
    retry_failed
        Whether blocks that failed are to be run again.
    again
        Whether blocks that are done are: then a run that has ended is gone on with too.

    Raises
    ------
    OutputExistsError
        If it ended, with failed blocks, and these are not to be run again; or they are, and there are none; or blocks
        are to be run again, and which there are is not known.
    JournalError
        If its journal is damaged.
    """
    provenance = read_provenance(output)
    status = None if provenance is None else provenance.get("status")
    wanted = (*OPEN, "partial", *(("complete",) if again else ()))
    journal = read_journal(output) if status in wanted else None
    if again and provenance is not None and journal is None:
        raise OutputExistsError(
            f"a region of {output} cannot be made again by itself",
            f"it has no journal of its blocks; its status is {status}",
            fix="make all of it anew with --overwrite and without --region, or choose another --output",
        )
    if provenance is not None and journal is not None:
        if status == "partial" and not (retry_failed or again):
            raise OutputExistsError(
                f"the output {output} exists, and {journal.count('failed')} of its blocks failed",
                "nothing was written",
                fix="run just those again with --retry-failed, choose another --output, or start anew with --overwrite",
            )
        if journal.n_recorded or status not in OPEN:
            return Begun(provenance=provenance, n_blocks=journal.n_recorded)
    if retry_failed:
        raise OutputExistsError(
            f"there are no failed blocks to run again at {output}",
            f"its status is {status}" if status else "no segmentation of ours is there",
            fix="leave --retry-failed out",
        )
    return None


def is_unborn(output: Path) -> bool:
    """Tell whether a run of ours was killed there before its first block was done: nothing would be lost."""
    provenance = read_provenance(output)
    if provenance is None or provenance.get("status") != "running":
        return False
    journal = read_journal(output)
    return journal is not None and not journal.n_recorded


def identify_volume(info: VolumeInfo) -> dict[str, Any]:
    """Return what a volume is known by, as JSON values; its pixels are not looked at."""
    return {
        "path": info.path,
        "array": info.array_path,
        "shape": list(info.shape),
        "axes": info.axes,
        "dtype": info.dtype,
        **({"grows": info.grows} if info.grows else {}),
        **({"series": info.series, "level": info.level} if info.container == "tiff" else {}),  # both in one file
    }


def fingerprint_of(
    ready: Preparation,
    engine: EngineDescription,
    spec: OutputSpec,
    *,
    threads: int,
    input_range: tuple[float, float] | None,
    statistics: VolumeStatistics | None,
) -> Mapping[str, Any]:
    """Return what decides a byte of the result, as JSON values by name."""
    info, plan = ready.volume.info, ready.plan
    return {
        "unet-deploy": unet_deploy.__version__,
        "model": {"sha256": ready.artifact.sha256, "precision": ready.artifact.card.precision},
        "engine": {
            "name": engine.engine,
            "provider": engine.provider,
            "versions": engine.versions,
            "threads": threads,
        },
        "volume": identify_volume(info),
        "parameters": {
            "channels": list(ready.channels),
            "input_range": None if input_range is None else list(input_range),
            "write": list(spec.kinds),
            "tta": plan.tta,
            "tile": [plan.tile_y, plan.tile_x],
            "batch": plan.batch,
        },
        "statistics": None if statistics is None else statistics.to_object(),
        "output": {
            "zarr_format": spec.zarr_format,
            "chunk": list(spec.grid.chunk),
            "shard": None if spec.grid.shard is None else list(spec.grid.shard),
            "block": list(spec.block),
        },
    }
