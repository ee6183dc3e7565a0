"""Carry a run out, and write down where its time went.

1. The timeline ends when the output is finished; then it is added up and written.
2. A run that was stopped has one as well, of what it did.
3. What an earlier run did is not in it, and it says so.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from unet_deploy.errors import InterruptedRunError
from unet_deploy.runtime.profile import Profile, Timeline
from unet_deploy.runtime.profile_file import check_profile_path, write_profile
from unet_deploy.runtime.results import SegmentationResult
from unet_deploy.runtime.run import carry_out
from unet_deploy.runtime.run_settings import Run


@contextmanager
def begin_timeline(path: str | Path | None, started: float) -> Iterator[Timeline | None]:
    """Record what this thread does meanwhile, where there is a file to write that to; else give None.

    Raises
    ------
    UsageError, OutputPathError
        As `check_profile_path`. Whether a file that is there may be replaced is only known later.
    """
    if path is None:
        yield None
        return
    check_profile_path(Path(path), overwrite=True)
    with Timeline(Path(path), started).recording() as timeline:
        yield timeline


def carry_out_profiled(run: Run, client: Any) -> SegmentationResult:
    """Do what `carry_out` does, and write a profile of it, where the run has a timeline.

    Parameters
    ----------
    run, client
        As of `carry_out`; the timeline records.

    Raises
    ------
    NoSpaceError, OutputPathError
        As `write_profile`, and what `carry_out` raises.
    """
    if run.timeline is None:
        return carry_out(run, client)
    try:
        result = carry_out(run, client)
    except InterruptedRunError as error:
        _write(run, run.timeline, part=error.headline)
        raise
    total = result.plan.n_blocks
    parts = [
        *([f"{result.blocks_found} of {total} blocks were done by an earlier run"] if result.blocks_found else []),
        *([f"{result.blocks_left} of {total} blocks are yet to be done"] if result.blocks_left else []),
    ]
    return replace(result, profile=_write(run, run.timeline, part=", and ".join(parts) or None))


def _write(run: Run, timeline: Timeline, *, part: str | None) -> Profile:
    info, plan, engine = run.ready.volume.info, run.ready.plan, run.engine
    extents = plan.extents
    facts = {
        "volume": info.path,
        "pixels": f"{extents.pixels:,} ({extents.t} × {extents.z} × {extents.y} × {extents.x} t z y x)",
        "model": run.ready.artifact.card.name,
        "engine": " ".join([engine.engine, *engine.versions.values(), f"on {engine.device}, {engine.precision}"]),
        "tiles": f"{plan.n_tiles} of {plan.tile_y} × {plan.tile_x} px in {plan.n_blocks} blocks",
        "written": " and ".join(run.spec.kinds),
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    title = f"{info.name}: where the time went"
    drawing = timeline.finish(title=title, facts=facts, part=part)
    write_profile(drawing)
    return drawing.profile
